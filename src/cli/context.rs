//! What every command has: its node, how to print, how to show progress.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::exit::Failure;
use super::interrupt;
use super::progress::Display;
use crate::node::control::client::{Client, ClientError, HangUp};
use crate::node::control::{ControlEvent, ControlRequest, StatusReport};

pub struct Context {
    pub data_dir: PathBuf,
    pub json: bool,
    pub display: Display,
}

/// A connection that Ctrl-C cuts.
pub struct Connection {
    pub client: Client,
    _hang_up: Arc<HangUp>,
}

impl Context {
    pub fn connect(&self) -> Result<Connection, Failure> {
        let client = Client::connect(&self.data_dir)?;
        let hang_up = client
            .hang_up_handle()
            .map_err(|error| Failure::other(format!("the connection to the node cannot be shared: {error}")))?;
        Ok(Connection { client, _hang_up: interrupt::guard(hang_up) })
    }

    /// One command: the request with its descriptor, then every event until the node is done. An error of `on_event`
    /// hangs up, which cancels the command.
    pub fn run(
        &self,
        request: &ControlRequest,
        descriptor: Option<BorrowedFd<'_>>,
        mut on_event: impl FnMut(ControlEvent) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut connection = self.connect()?;
        connection.client.send(request, descriptor).map_err(failure_of)?;
        loop {
            match connection.client.next_event().map_err(failure_of)? {
                ControlEvent::Done => return Ok(()),
                ControlEvent::Warning { message } => self.display.suspend(|| super::output::warn(&message, self.json)),
                event => on_event(event)?,
            }
        }
    }

    /// One command that is answered by one event of interest.
    pub fn ask<T>(
        &self,
        request: &ControlRequest,
        mut choose: impl FnMut(ControlEvent) -> Option<T>,
    ) -> Result<T, Failure> {
        let mut answer = None;
        self.run(request, None, |event| {
            if let Some(value) = choose(event) {
                answer = Some(value);
            }
            Ok(())
        })?;
        answer.ok_or_else(unanswered)
    }

    /// A request that is answered by one event alone, encoded. `held`: the connection that the one before it used, and the
    /// next one can.
    pub fn exchange(&self, held: &mut Option<Connection>, message: &[u8]) -> Result<ControlEvent, Failure> {
        // The node may have been started anew since; of a message that did not go out whole it does nothing.
        let still_there = held.take().and_then(|mut connection| {
            let sent = connection.client.send_encoded(message);
            sent.is_ok().then_some(connection)
        });
        let mut connection = match still_there {
            Some(connection) => connection,
            None => {
                let mut connection = self.connect()?;
                connection.client.send_encoded(message).map_err(failure_of)?;
                connection
            }
        };
        let event = connection.client.next_event().map_err(failure_of)?;
        *held = Some(connection);
        Ok(event)
    }

    pub fn status(&self) -> Result<StatusReport, Failure> {
        self.ask(&ControlRequest::Status, |event| match event {
            ControlEvent::Status { report } => Some(report),
            _ => None,
        })
    }
}

/// The node was done without having said what was asked for.
pub fn unanswered() -> Failure {
    Failure::other("the node's answer is incomplete; restart it if it is older than this command")
}

/// A connection that broke because the user asked for it is no failure of the node.
pub fn failure_of(error: ClientError) -> Failure {
    match error {
        ClientError::Lost { .. } if interrupt::requested() => Failure::interrupted("interrupted"),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::mpsc::channel;

    use super::*;
    use crate::cli::args::ProgressChoice;
    use crate::node::control::{LENGTH_BYTES, SOCKET_NAME, message_len};

    /// Takes one request and answers it.
    fn answer(stream: &mut UnixStream) {
        let mut head = [0; LENGTH_BYTES];
        stream.read_exact(&mut head).unwrap();
        stream.read_exact(&mut vec![0; message_len(head).unwrap()]).unwrap();
        stream.write_all(&ControlEvent::Done.encode()).unwrap();
    }

    #[test]
    fn a_held_connection_serves_again_and_one_that_is_gone_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let (gone, is_gone) = channel();
        let node = std::thread::spawn(move || {
            let (mut first, _) = listener.accept().unwrap();
            answer(&mut first);
            answer(&mut first);
            drop(first);
            gone.send(()).unwrap();
            answer(&mut listener.accept().unwrap().0);
        });
        let display = Display::new(ProgressChoice::Never);
        let context = Context { data_dir: dir.path().to_owned(), json: false, display };
        let (mut held, request) = (None, ControlRequest::Status.encode());
        let mut ask = || context.exchange(&mut held, &request).map_err(|failure| failure.message);
        assert_eq!(ask(), Ok(ControlEvent::Done));
        assert_eq!(ask(), Ok(ControlEvent::Done));
        is_gone.recv().unwrap();
        assert_eq!(ask(), Ok(ControlEvent::Done));
        node.join().unwrap();
        assert!(ask().is_err(), "it is gone, and so is the node");
    }
}
