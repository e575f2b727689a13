//! The command line's side of the local socket: a request enters, the answer of the running gateway leaves.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::types::{Answer, Request, Response};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No gateway runs under that name.
    #[error("no gateway runs here ({path}): start it with `penstock up`, or name another with --name")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// Not allowed.
    #[error("no permission on {path}: run as the user that runs the gateway (root, usually)")]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The gateway went away, or said what is no answer.
    #[error("the gateway did not answer: {0}")]
    Io(#[from] io::Error),
    /// The gateway refused.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a running gateway.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] and [`ClientError::Permission`], mostly.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path: path.into() }
            }
            io::ErrorKind::PermissionDenied => ClientError::Permission { path: path.into() },
            _ => ClientError::Io(error),
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Asks, and asks on until a long list is whole or as long as the request wants it.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn ask_all(&mut self, request: &Request) -> Result<Answer, ClientError> {
        let mut answer = self.ask(request)?;
        let mut next = request.following(&answer);
        while let Some(request) = next {
            let part = self.ask(&request)?;
            next = request.following(&part);
            answer.append(part);
        }
        Ok(answer)
    }

    /// Asks once.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the gateway's sentence, or a broken connection.
    pub fn ask(&mut self, request: &Request) -> Result<Answer, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_str(&answer).map_err(io::Error::from)? {
            Response::Ok(answer) => Ok(answer),
            Response::Error(sentence) => Err(ClientError::Refused(sentence)),
        }
    }
}
