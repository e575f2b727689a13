//! The HTTP server of the metrics: scrapes enter, each asks the gateway for a snapshot, its text leaves. The text is made
//! beside control's loop, as fast as it is read.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::clients::{Clients, Limits, Seat};
use crate::telemetry::Snapshot;
use crate::telemetry::text::Format;

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

/// Octets of an answer that are made before they are sent. An answer that is not longer says its length beforehand.
const PART: usize = 256 << 10;

/// Where a snapshot is asked for.
pub type Snapshots = mpsc::Sender<oneshot::Sender<Arc<Snapshot>>>;

/// The HTTP server.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    allowed: Vec<IpNet>,
}

impl Server {
    /// Listens on `address`, for this machine itself.
    ///
    /// # Errors
    /// Where the address is taken.
    pub async fn bind(address: SocketAddr) -> io::Result<Server> {
        Ok(Server { listener: TcpListener::bind(address).await?, allowed: Vec::new() })
    }

    /// Answers hosts of these networks too.
    #[must_use]
    pub fn allow(self, allowed: Vec<IpNet>) -> Server {
        Server { allowed, ..self }
    }

    fn is_allowed(&self, from: IpAddr) -> bool {
        let from = from.to_canonical();
        from.is_loopback() || self.allowed.iter().any(|net| net.contains(&from))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is dropped.
    pub async fn run(self, snapshots: Snapshots) {
        let clients = Clients::new(LIMITS);
        loop {
            match self.listener.accept().await {
                // Hung up on: nothing is read, and no seat taken.
                Ok((_, from)) if !self.is_allowed(from.ip()) => {}
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

async fn serve(mut stream: TcpStream, seat: &Seat<IpAddr>, snapshots: &Snapshots) -> io::Result<()> {
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
                Ok(snapshot) if asked => {
                    let chunked =
                        !request.split(|octet| *octet == b'\r').next().unwrap_or_default().ends_with(b"/1.0");
                    let format = Format::wanted_by(&request);
                    return seat.answer(tell(&mut write, snapshot, format, chunked)).await;
                }
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
    let reason = match status {
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Service Unavailable",
    };
    let head = format!("HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\n");
    format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).into_bytes()
}

/// Writes a snapshot: at once where it is short, else in chunks as they are made (RFC 9112 section 7.1), or up to the end
/// of the connection for who knows no chunks.
async fn tell(
    write: &mut (impl AsyncWrite + Unpin),
    snapshot: Arc<Snapshot>,
    format: Format,
    chunked: bool,
) -> io::Result<()> {
    let (parts, mut made) = mpsc::channel(2);
    let making =
        tokio::task::spawn_blocking(move || snapshot.write(format, Parts { made: Vec::new(), parts }));
    let (first, mut second) = (made.recv().await.unwrap_or_default(), made.recv().await);
    let length = match (&second, chunked) {
        (None, _) => format!("Content-Length: {}\r\n", first.len()),
        (Some(_), true) => "Transfer-Encoding: chunked\r\n".into(),
        (Some(_), false) => String::new(),
    };
    let (kind, chunked) = (format.content_type(), chunked && second.is_some());
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{length}Connection: close\r\n\r\n");
    write.write_all(head.as_bytes()).await?;
    let mut next = Some(first);
    while let Some(part) = next {
        if chunked {
            write.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await?;
        }
        write.write_all(&part).await?;
        if chunked {
            write.write_all(b"\r\n").await?;
        }
        next = match second.take() {
            Some(part) => Some(part),
            None => made.recv().await,
        };
    }
    // What is not whole must not look as if it were.
    making.await??;
    if chunked {
        write.write_all(b"0\r\n\r\n").await?;
    }
    write.shutdown().await
}

/// Text on its way from who makes it to who sends it.
struct Parts {
    made: Vec<u8>,
    parts: mpsc::Sender<Vec<u8>>,
}

impl Write for Parts {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.made.extend_from_slice(text);
        if self.made.len() >= PART {
            self.flush()?;
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.made);
        match part.is_empty() {
            true => Ok(()),
            false => self.parts.blocking_send(part).map_err(|_| io::ErrorKind::BrokenPipe.into()),
        }
    }
}
