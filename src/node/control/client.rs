//! The command's side of the control socket: blocking, without a ring.

use std::io::{self, BufReader, Read};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ControlEvent, ControlRequest, LENGTH_BYTES, ProtocolError, SOCKET_NAME, message_len};
use crate::io::{connect_blocking, send_with_fds};
use crate::limits::CONTROL_EVENTS_BYTES;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no gabion node is running on {}: start one with gabion --listen 0.0.0.0:3000 --data-dir {}",
        .dir.display(), .dir.display()
    )]
    NoNode { dir: PathBuf },
    #[error("{}: {source}; run the command as the user that runs the node", .socket.display())]
    Refused { socket: PathBuf, source: io::Error },
    #[error("the node on {} went away in the middle of the command; see its log, start it again and repeat", .dir.display())]
    Lost { dir: PathBuf },
    #[error("the node on {} did not answer within {} s; see its log", .dir.display(), .waited.as_secs())]
    Silent { dir: PathBuf, waited: Duration },
    #[error("the node on {} answered with something else than this command expects: {source}", .dir.display())]
    Protocol { dir: PathBuf, source: ProtocolError },
    #[error("{message}")]
    Failed { code: u8, message: String },
}

/// One connection to a node.
#[derive(Debug)]
pub struct Client {
    /// Events come many at once.
    stream: BufReader<UnixStream>,
    dir: PathBuf,
    answer_max: Option<Duration>,
}

/// Cuts a connection from another thread: the node then cancels what it does for it.
#[derive(Debug)]
pub struct HangUp(UnixStream);

impl HangUp {
    pub fn hang_up(&self) {
        // It may be gone already: then there is nothing to cut.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Client {
    /// Connects to the node whose data directory is `dir`.
    pub fn connect(dir: &Path) -> Result<Self, ClientError> {
        let stream = connect_blocking(&dir.join(SOCKET_NAME)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                ClientError::NoNode { dir: dir.to_owned() }
            }
            _ => ClientError::Refused { socket: dir.join(SOCKET_NAME), source },
        })?;
        Ok(Self {
            stream: BufReader::with_capacity(CONTROL_EVENTS_BYTES, stream),
            dir: dir.to_owned(),
            answer_max: None,
        })
    }

    /// From now on an answer that takes longer than this is [`ClientError::Silent`].
    pub fn set_answer_max(&mut self, answer_max: Duration) -> io::Result<()> {
        self.answer_max = Some(answer_max);
        self.stream.get_ref().set_read_timeout(Some(answer_max))
    }

    pub fn hang_up_handle(&self) -> io::Result<HangUp> {
        self.stream.get_ref().try_clone().map(HangUp)
    }

    pub fn send(&mut self, request: &ControlRequest, descriptor: Option<BorrowedFd<'_>>) -> Result<(), ClientError> {
        let fds: &[BorrowedFd<'_>] = match &descriptor {
            Some(descriptor) => std::slice::from_ref(descriptor),
            None => &[],
        };
        let sent = send_with_fds(self.stream.get_ref(), &request.encode(), fds);
        sent.map_err(|_| self.why_unsent())
    }

    /// A request that was encoded already ([`super::SmallFiles`]).
    pub fn send_encoded(&mut self, message: &[u8]) -> Result<(), ClientError> {
        send_with_fds(self.stream.get_ref(), message, &[]).map_err(|_| self.why_unsent())
    }

    /// A node that stops says so before it is asked, and closes.
    fn why_unsent(&mut self) -> ClientError {
        // One that is still there waits for nothing more, and closes too.
        let _ = self.stream.get_ref().shutdown(Shutdown::Write);
        match self.next_event() {
            Err(failed @ ClientError::Failed { .. }) => failed,
            _ => self.lost(),
        }
    }

    /// The next event. An `Error` event comes out as [`ClientError::Failed`].
    pub fn next_event(&mut self) -> Result<ControlEvent, ClientError> {
        let mut head = [0; LENGTH_BYTES];
        self.read_exact(&mut head)?;
        let len = message_len(head).map_err(|source| self.malformed(source))?;
        let mut message = vec![0; len];
        self.read_exact(&mut message)?;
        match ControlEvent::decode(&message).map_err(|source| self.malformed(source))? {
            ControlEvent::Error { code, message } => Err(ClientError::Failed { code, message }),
            event => Ok(event),
        }
    }

    /// Sends `request` and hands every event to `on_event` until the node is done.
    pub fn run(
        &mut self,
        request: &ControlRequest,
        descriptor: Option<BorrowedFd<'_>>,
        mut on_event: impl FnMut(ControlEvent),
    ) -> Result<(), ClientError> {
        self.send(request, descriptor)?;
        loop {
            match self.next_event()? {
                ControlEvent::Done => return Ok(()),
                event => on_event(event),
            }
        }
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ClientError> {
        self.stream.read_exact(bytes).map_err(|source| match (source.kind(), self.answer_max) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(waited)) => {
                ClientError::Silent { dir: self.dir.clone(), waited }
            }
            _ => self.lost(),
        })
    }

    fn lost(&self) -> ClientError {
        ClientError::Lost { dir: self.dir.clone() }
    }

    fn malformed(&self, source: ProtocolError) -> ClientError {
        ClientError::Protocol { dir: self.dir.clone(), source }
    }
}
