//! The HTTP server of the metrics: scrapes enter, each asks the gateway for a snapshot, its text leaves.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::clients::{Clients, Limits, Seat};
use crate::telemetry::{Snapshot, text};

/// Octets of the longest request.
const MAX_REQUEST: usize = 8 << 10;
/// What scrapers may take.
const LIMITS: Limits = Limits {
    all: 32,
    each: 8,
    idle: Duration::from_secs(5),
    request: Duration::from_secs(5),
    answer: Duration::from_secs(10),
};

/// The HTTP server.
#[derive(Debug)]
pub struct Server(TcpListener);

impl Server {
    /// Listens on `address`.
    ///
    /// # Errors
    /// Where the address is taken.
    pub async fn bind(address: SocketAddr) -> io::Result<Server> {
        TcpListener::bind(address).await.map(Server)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves until it is dropped.
    pub async fn run(self, snapshots: mpsc::Sender<oneshot::Sender<Snapshot>>) {
        let clients = Clients::new(LIMITS);
        loop {
            match self.0.accept().await {
                Ok((stream, from)) => {
                    let Some(seat) = clients.seat(from.ip()) else {
                        let _ = stream.try_write(&response(503, "too many scrapes are being answered\n"));
                        continue;
                    };
                    let snapshots = snapshots.clone();
                    tokio::spawn(async move {
                        if let Err(error) = serve(stream, &seat, &snapshots).await {
                            log::debug!("metrics: {error}");
                        }
                    });
                }
                Err(error) => {
                    log::warn!("metrics: cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(
    mut stream: TcpStream,
    seat: &Seat<IpAddr>,
    snapshots: &mpsc::Sender<oneshot::Sender<Snapshot>>,
) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let Some(request) = seat.request(&mut BufReader::new(read), b"\r\n\r\n", MAX_REQUEST).await? else {
        return Ok(());
    };
    if !request.ends_with(b"\r\n\r\n") {
        return Ok(());
    }
    let target = request.split(|octet| *octet == b' ').nth(1).unwrap_or_default();
    let answer = match (request.starts_with(b"GET "), target) {
        (false, _) => response(405, "only GET\n"),
        (true, b"/metrics") => {
            let (reply, snapshot) = oneshot::channel();
            let asked = snapshots.send(reply).await.is_ok();
            match snapshot.await {
                Ok(snapshot) if asked => response(200, &text(snapshot)),
                _ => response(503, "the gateway is stopping\n"),
            }
        }
        (true, _) => response(404, "metrics are at /metrics\n"),
    };
    let written = async {
        write.write_all(&answer).await?;
        write.shutdown().await
    };
    seat.answer(written).await
}

fn response(status: u16, body: &str) -> Vec<u8> {
    let (reason, kind) = match status {
        200 => ("OK", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        404 => ("Not Found", "text/plain"),
        405 => ("Method Not Allowed", "text/plain"),
        _ => ("Service Unavailable", "text/plain"),
    };
    let len = body.len();
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}
