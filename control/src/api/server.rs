//! The local socket: connections enter, their requests go to the gateway one at a time, answers leave. Only the owner
//! of the socket's file (mode 0600) may connect.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::types::{Request, Response};
use crate::clients::{Clients, Limits, Seat};

/// A client's process; `None` where the kernel does not tell.
type Process = Option<i32>;

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Call {
    /// What is asked for.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Response>,
}

/// Octets of the longest request.
const MAX_LINE: usize = 64 << 10;
/// What clients may take. All of them are one user's, so each process has its share.
const LIMITS: Limits = Limits {
    all: 64,
    each: 16,
    idle: Duration::from_secs(60),
    request: Duration::from_secs(10),
    answer: Duration::from_secs(30),
};

/// The socket of one gateway. Its file goes away with it.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens at `path`. A file that a dead gateway left is taken over; the tables' lock has shown that none lives.
    ///
    /// # Errors
    /// Where the directory or the socket cannot be made.
    pub fn bind(path: &Path) -> io::Result<Server> {
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        // Bound under another name until its mode is right, so that nobody slips in between.
        let hidden = path.with_extension("new");
        let _ = std::fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden)?;
        std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&hidden, path)?;
        Ok(Server { listener, path: path.into() })
    }

    /// Serves until it is dropped.
    pub async fn run(self, calls: mpsc::Sender<Call>) {
        let clients = Clients::new(LIMITS);
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
                    let Some(seat) = clients.seat(process) else {
                        refuse(&stream);
                        continue;
                    };
                    let calls = calls.clone();
                    tokio::spawn(async move {
                        if let Err(error) = serve(stream, &seat, calls).await {
                            log::debug!("api: {error}");
                        }
                    });
                }
                Err(error) => {
                    log::warn!("api: cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = self.path.parent().map(std::fs::remove_dir);
    }
}

/// Says so where every seat is being answered: without waiting, since it fits an empty buffer.
fn refuse(stream: &UnixStream) {
    let sentence = "too many requests are being answered: try again";
    let answer = serde_json::to_string(&Response::Error(sentence.into())).unwrap_or_default() + "\n";
    let _ = stream.try_write(answer.as_bytes());
}

async fn serve(mut stream: UnixStream, seat: &Seat<Process>, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    while let Some(line) = seat.request(&mut read, b"\n", MAX_LINE).await? {
        let response = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => ask(&calls, request).await,
            Err(error) => Response::Error(format!("not a request: {error}")),
        };
        let mut answer = serde_json::to_vec(&response)?;
        answer.push(b'\n');
        seat.answer(write.write_all(&answer)).await?;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
    }
    Ok(())
}

/// Has the gateway answer one request.
pub async fn ask(calls: &mpsc::Sender<Call>, request: Request) -> Response {
    let (reply, answer) = oneshot::channel();
    let stopping = || Response::Error("the gateway is stopping".into());
    match calls.send(Call { request, reply }).await {
        Ok(()) => answer.await.unwrap_or_else(|_| stopping()),
        Err(_) => stopping(),
    }
}
