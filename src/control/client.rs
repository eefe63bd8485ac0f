//! The command line's side of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::wait::Progress;
use super::{ControlError, MAX_REPLY, MAX_REQUEST, Reply, Request, address_of};
use crate::spool::Layout;

/// How long a daemon may take over an answer that needs no waiting. Long, since its disk may be slow.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection to a running daemon.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
    state: PathBuf,
    /// Why the last request could not be sent whole.
    unsent: Option<io::Error>,
}

impl Client {
    /// Connects to the daemon of a state directory.
    pub(crate) fn connect(state: &Path) -> Result<Self, ControlError> {
        let path = Layout::new(state.to_owned()).control_socket();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ControlError::NotRunning(state.to_owned())
            }
            _ => ControlError::Io {
                action: "connect to",
                path: path.clone(),
                source,
            },
        };
        let (_dir, address) = address_of(&path).map_err(failed)?;
        let stream = UnixStream::connect(address).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWER)).map_err(failed)?;
        Ok(Self {
            stream: BufReader::new(stream),
            state: state.to_owned(),
            unsent: None,
        })
    }

    /// The daemon's process id.
    pub(crate) fn daemon_pid(&self) -> Option<u32> {
        let peer = rustix::net::sockopt::socket_peercred(self.stream.get_ref()).ok()?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
    }

    /// Asks, and waits for the answer; a refusal is an error.
    pub(crate) fn call(&mut self, request: &Request) -> Result<Reply, ControlError> {
        self.call_within(request, ANSWER)
    }

    /// [`Self::call`] of a daemon that may be stopped.
    pub(crate) fn call_within(
        &mut self,
        request: &Request,
        limit: Duration,
    ) -> Result<Reply, ControlError> {
        self.ask(request, limit)?;
        self.answer()
    }

    /// Asks for a wait, and hands over how far it is until it ends.
    pub(crate) fn wait(
        &mut self,
        request: &Request,
        mut progress: impl FnMut(Progress),
    ) -> Result<Reply, ControlError> {
        self.ask(request, ANSWER)?;
        loop {
            match self.answer()? {
                Reply::Progress(far) => progress(far),
                reply => return Ok(reply),
            }
        }
    }

    /// The next answer to [`Request::Watch`], whenever that comes.
    pub(crate) fn next(&mut self) -> Result<Reply, ControlError> {
        if let Err(source) = self.stream.get_ref().set_read_timeout(None) {
            let path = self.state.clone();
            return Err(ControlError::Io {
                action: "ask",
                path,
                source,
            });
        }
        self.answer()
    }

    fn ask(&mut self, request: &Request, limit: Duration) -> Result<(), ControlError> {
        let failed = |source| ControlError::Io {
            action: "ask",
            path: self.state.clone(),
            source,
        };
        let mut line = serde_json::to_vec(request).map_err(|err| failed(err.into()))?;
        line.push(b'\n');
        if line.len() as u64 > MAX_REQUEST {
            return Err(ControlError::TooLong);
        }
        // A wait has its own end, which the daemon keeps; only its death ends it early.
        let patience = if matches!(request, Request::Wait { .. }) {
            None
        } else {
            Some(limit)
        };
        self.stream
            .get_ref()
            .set_read_timeout(patience)
            .map_err(failed)?;
        // A daemon that refuses may have closed before it read; its words are still to be read then.
        self.unsent = self.stream.get_mut().write_all(&line).err();
        Ok(())
    }

    fn answer(&mut self) -> Result<Reply, ControlError> {
        let mut line = Vec::new();
        match (&mut self.stream)
            .take(MAX_REPLY)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => {
                let silent = || ControlError::Silent(self.state.clone());
                let unsent = self.unsent.take();
                return Err(unsent.map_or_else(silent, |source| ControlError::Io {
                    action: "ask",
                    path: self.state.clone(),
                    source,
                }));
            }
            Ok(_) => {}
        }
        match serde_json::from_slice(&line) {
            Ok(Reply::Error { message }) => Err(ControlError::Refused(message)),
            Ok(reply) => Ok(reply),
            Err(err) => Err(ControlError::Garbled(err.to_string())),
        }
    }
}
