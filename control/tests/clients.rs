//! Many idle and slow clients at once, on the local socket and at the metrics: one that asks is answered.

use std::time::Duration;

use penstock_control::api::client::Client;
use penstock_control::api::server;
use penstock_control::api::types::{Answer, Request, Response};
use penstock_control::scrape;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

/// Longer than an answer takes on any machine, and less than a client may be idle.
const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn idle_connections_leave_the_local_socket_to_who_asks() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let path = folder.path().join("api.sock");
    let server = server::Server::bind(&path).expect("bound");
    let (calls, mut called) = mpsc::channel::<server::Call>(4);
    tokio::spawn(server.run(calls));
    tokio::spawn(async move {
        while let Some(call) = called.recv().await {
            let _ = call.reply.send(Response::Ok(Answer::Drops(Vec::new())));
        }
    });
    let mut idle = Vec::new();
    for number in 0..200 {
        let mut stream = UnixStream::connect(&path).await.expect("the kernel has room");
        // Half of them have begun a request.
        if number % 2 == 0 {
            stream.write_all(b"{\"comm").await.expect("written");
        }
        idle.push(stream);
    }
    let asked = tokio::task::spawn_blocking(move || {
        Client::connect(&path).expect("connected").ask(&Request::Drops).expect("answered")
    });
    let answer = tokio::time::timeout(SOON, asked).await.expect("it does not wait for those who are silent");
    assert!(matches!(answer.expect("no panic"), Answer::Drops(_)));
    // Of the others those are left that came last.
    let last = idle.last_mut().expect("some");
    last.write_all(b"{\"command\":\"drops\"}\n").await.expect("open");
    assert!(last.read(&mut [0; 100]).await.expect("open") > 0);
    assert_eq!(idle[0].read(&mut [0; 100]).await.expect("closed"), 0);
}

#[tokio::test]
async fn slow_scrapers_leave_the_metrics_to_who_asks() {
    let server = scrape::Server::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bound");
    let address = server.address().expect("known");
    let (snapshots, _asked) = mpsc::channel(1);
    tokio::spawn(server.run(snapshots));
    let mut slow = Vec::new();
    for _ in 0..130 {
        let mut stream = TcpStream::connect(address).await.expect("the kernel has room");
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.expect("written");
        slow.push(stream);
    }
    let asked = async {
        let mut stream = TcpStream::connect(address).await.expect("the kernel has room");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        answer
    };
    let answer = tokio::time::timeout(SOON, asked).await.expect("it does not wait for those who are slow");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}
