//! Metrics as a scraper sees them: what is told is what docs/metrics.md lists, `promtool` finds nothing odd in it, and only
//! who may ask is answered.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use penstock_control::api::types::{CertificateEnd, PortStatus, TunnelState};
use penstock_control::publish::live::{Refused, Traffic};
use penstock_control::scrape::Server;
use penstock_control::telemetry::series::{ALL, Kind};
use penstock_control::telemetry::text::Format;
use penstock_control::telemetry::{Snapshot, TunnelSample};
use penstock_ike::Reason;
use penstock_tables::worker::Tally;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

fn tunnel(name: String) -> TunnelSample {
    TunnelSample {
        name,
        since: 1_700_000_000,
        down: Some("psk-mismatch".into()),
        failures: vec![(Reason::PskMismatch, 3)],
        generation: 2,
        rekey_at: Some(1_700_003_600),
        ends_at: Some(1_700_003_900),
        sent: Traffic { packets: 900, bytes: 90_000 },
        last: (Some(1_700_000_900), Some(1_700_000_860)),
        unanswered_packets: 900,
        unanswered: true,
        refused: Refused { replay: 1, auth_failed: 2 },
        ..TunnelSample::default()
    }
}

/// Something of everything.
fn snapshot(tunnels: usize) -> Snapshot {
    let port = serde_json::json!({
        "name": "wan", "device": "net_null0", "driver": "net_null", "open": true, "link_up": true, "speed_mbit": 0,
        "mac": "", "addresses": [], "public": true, "queues": 1, "mtu": 1500, "missed": 0, "receive_errors": 0,
        "received": {"packets": 1, "bytes": 100}, "sent": {"packets": 0, "bytes": 0}, "send_errors": 0,
        "buffers_in_use": 1, "buffers_waiting": 0, "reports": 1, "buffers": 100,
        "multisegment": 0,
        "twin": {"to_kernel": 1, "detached": 0, "refused": 0, "from_kernel": 1, "no_frame": 0},
    });
    let port: PortStatus = serde_json::from_value(port).expect("a port");
    let mut snapshot = Snapshot {
        name: "berlin".into(),
        states: TunnelState::ALL.map(|state| (state, 1)).into(),
        tunnels: Some((0..tunnels).map(|number| tunnel(format!("t\"{number}"))).collect()),
        certificates: vec![CertificateEnd {
            tunnel: "t".into(),
            role: "peer".into(),
            subject: "CN=a\\,b".into(),
            not_after: 1,
        }],
        ports: vec![port],
        workers: vec![Tally::default()],
        ..Snapshot::default()
    };
    snapshot.ike.failures = [(Reason::PskMismatch, 3)].into();
    snapshot
}

fn text(snapshot: &Snapshot, format: Format) -> String {
    let mut out = Vec::new();
    snapshot.write(format, &mut out).expect("memory");
    String::from_utf8(out).expect("text")
}

/// Names of the samples of a text, each once, in their order.
fn names(text: &str) -> Vec<&str> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let mut names: Vec<&str> = samples.map(|line| line.split(['{', ' ']).next().expect("a name")).collect();
    names.dedup();
    names
}

#[test]
fn every_series_is_told_and_documented() {
    let all: Vec<&str> = ALL.iter().map(|series| series.name).collect();
    assert_eq!(
        names(&text(&snapshot(1), Format::Text)),
        all,
        "a series of the list has no sample, or the reverse"
    );
    let mut table = String::from("| Series | Kind | Labels | Meaning |\n|---|---|---|---|\n");
    for one in ALL {
        let labels = one.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        writeln!(table, "| `{}` | {} | {labels} | {} |", one.name, one.kind.word(), one.help)
            .expect("memory");
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let document = std::fs::read_to_string(&path).expect("docs/metrics.md");
    let (head, rest) = document.split_once("<!-- table -->\n").expect("where the table begins");
    let (_, tail) = rest.split_once("<!-- end -->").expect("where it ends");
    let wanted = format!("{head}<!-- table -->\n{table}<!-- end -->{tail}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).expect("the tree is ours");
    }
    let found = std::fs::read_to_string(&path).expect("docs/metrics.md");
    assert_eq!(found, wanted, "docs/metrics.md is not up to date: run this test with UPDATE_DOCS=1");
}

#[test]
fn series_of_tunnels_can_be_switched_off() {
    let without = text(&Snapshot { tunnels: None, ..snapshot(0) }, Format::Text);
    let wanted: Vec<&str> =
        ALL.iter().filter(|series| !series.is_per_tunnel()).map(|series| series.name).collect();
    assert_eq!(names(&without), wanted);
    assert!(without.contains("\npenstock_tunnels{state=\"up\"} 1\n"), "{without}");
}

#[test]
fn promtool_finds_nothing_odd() {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut promtool = match command.spawn() {
        Ok(running) => running,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "promtool: {error}: install the package prometheus");
            eprintln!("SKIPPED: promtool: {error}: install the package prometheus");
            return;
        }
    };
    let mut input = promtool.stdin.take().expect("piped");
    input.write_all(text(&snapshot(3), Format::Text).as_bytes()).expect("it reads");
    drop(input);
    let output = promtool.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn openmetrics_ends_and_names_families_without_total() {
    let text = text(&snapshot(1), Format::OpenMetrics);
    assert!(text.ends_with("\n# EOF\n"));
    for counter in ALL.iter().filter(|series| series.kind == Kind::Counter) {
        let family = counter.name.trim_end_matches("_total");
        assert!(text.contains(&format!("# TYPE {family} counter\n")), "{family}");
    }
}

/// A server that tells of so many tunnels.
async fn served(address: &str, allowed: &[&str], tunnels: usize) -> SocketAddr {
    let server = Server::bind(address.parse().expect("an address")).await.expect("bound");
    let address = server.address().expect("known");
    let allowed = allowed.iter().map(|net| net.parse().expect("a network")).collect();
    let (snapshots, mut asked) = mpsc::channel::<oneshot::Sender<Arc<Snapshot>>>(4);
    tokio::spawn(server.allow(allowed).run(snapshots));
    tokio::spawn(async move {
        while let Some(reply) = asked.recv().await {
            let _ = reply.send(Arc::new(snapshot(tunnels)));
        }
    });
    address
}

async fn asked(mut stream: TcpStream, request: &str) -> String {
    let mut answer = String::new();
    let _ = stream.write_all(request.as_bytes()).await;
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

/// What chunks hold.
fn joined(mut chunks: &str) -> String {
    let mut body = String::new();
    loop {
        let (length, rest) = chunks.split_once("\r\n").expect("a length");
        let length = usize::from_str_radix(length, 16).expect("hexadecimal");
        body.push_str(&rest[..length]);
        chunks = rest[length..].strip_prefix("\r\n").expect("an end");
        if length == 0 {
            return body;
        }
    }
}

#[tokio::test]
async fn short_answers_have_a_length_and_long_ones_come_in_chunks() {
    let request = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    for (tunnels, chunked) in [(1, false), (5000, true)] {
        let wanted = text(&snapshot(tunnels), Format::Text);
        let address = served("127.0.0.1:0", &[], tunnels).await;
        let answer = asked(TcpStream::connect(address).await.expect("open"), request).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert_eq!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), chunked, "{head}");
        assert_eq!(head.contains(&format!("\r\nContent-Length: {}\r\n", wanted.len())), !chunked, "{head}");
        assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
        let body = if chunked { joined(body) } else { body.into() };
        assert!(body == wanted, "the body is another");
        let old =
            asked(TcpStream::connect(address).await.expect("open"), "GET /metrics HTTP/1.0\r\n\r\n").await;
        assert!(old.split_once("\r\n\r\n").expect("a head").1 == wanted, "no chunks for HTTP/1.0");
    }
}

#[tokio::test]
async fn only_hosts_of_the_named_networks_are_answered() {
    let request = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n";
    // A host of this machine that is no loopback address of the server's view: an address of an interface.
    let Some(own) = own_address() else {
        eprintln!("SKIPPED: this machine has no other address than those of its loopback");
        return;
    };
    let connect = |address: SocketAddr| async move {
        TcpStream::connect((own, address.port())).await.expect("the kernel accepts it")
    };
    for (allowed, answered) in
        [(vec!["198.51.100.0/24"], false), (vec!["198.51.100.0/24", "0.0.0.0/0"], true)]
    {
        for listen in ["0.0.0.0:0", "[::]:0"] {
            let address = served(listen, &allowed, 1).await;
            let answer = asked(connect(address).await, request).await;
            assert_eq!(answer.starts_with("HTTP/1.1 200 OK\r\n"), answered, "{listen} {allowed:?}: {answer}");
            assert!(answered || answer.is_empty(), "not a byte: {answer}");
            let here = asked(TcpStream::connect(("127.0.0.1", address.port())).await.expect("open"), request);
            assert!(here.await.ends_with("# EOF\n"), "this machine itself may always ask");
        }
    }
}

/// An address of this machine that is not of its loopback.
fn own_address() -> Option<std::net::Ipv4Addr> {
    let output = Command::new("ip").args(["-json", "-4", "address"]).output().ok()?;
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let addresses = links.as_array()?.iter().filter_map(|link| link["addr_info"].as_array()).flatten();
    let mut found = addresses.filter_map(|one| one["local"].as_str()?.parse::<std::net::Ipv4Addr>().ok());
    found.find(|address| !address.is_loopback())
}
