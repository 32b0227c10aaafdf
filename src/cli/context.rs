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
        let mut connection = match held.take() {
            None => self.connect_and_send(message)?,
            Some(mut connection) => match connection.client.send_encoded(message) {
                Ok(()) => connection,
                // The node may have been started anew since; of a message that did not go out whole it does nothing. If
                // there is none, what the old one said last is the reason.
                Err(ClientError::Failed { code, message: reason }) => {
                    self.connect_and_send(message).map_err(|failure| {
                        if failure.is_network() { Failure { code, message: reason } } else { failure }
                    })?
                }
                Err(_) => self.connect_and_send(message)?,
            },
        };
        let event = connection.client.next_event().map_err(failure_of)?;
        *held = Some(connection);
        Ok(event)
    }

    fn connect_and_send(&self, message: &[u8]) -> Result<Connection, Failure> {
        let mut connection = self.connect()?;
        connection.client.send_encoded(message).map_err(failure_of)?;
        Ok(connection)
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

    #[test]
    fn what_a_node_that_stopped_said_last_is_why_nothing_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join(SOCKET_NAME);
        // A request that the socket holds, and one that is longer.
        for len in [100, 1 << 20] {
            let listener = UnixListener::bind(&socket).unwrap();
            let (gone, is_gone) = channel();
            let path = socket.clone();
            let node = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                answer(&mut stream);
                let last = ControlEvent::Error { code: 9, message: "it stops".into() };
                stream.write_all(&last.encode()).unwrap();
                std::fs::remove_file(path).unwrap();
                drop((stream, listener));
                gone.send(()).unwrap();
            });
            let display = Display::new(ProgressChoice::Never);
            let context = Context { data_dir: dir.path().to_owned(), json: false, display };
            let mut held = None;
            context.exchange(&mut held, &ControlRequest::Status.encode()).unwrap();
            is_gone.recv().unwrap();
            let failure = context.exchange(&mut held, &vec![0; len]).unwrap_err();
            assert_eq!((failure.code, failure.message.as_str()), (9, "it stops"));
            node.join().unwrap();
        }
    }

    #[test]
    fn a_node_that_stops_with_a_request_unread_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        for len in [100, 1 << 20] {
            let (mut near, far) = (Client::connect(dir.path()).unwrap(), listener.accept().unwrap().0);
            let (sent, is_sent) = channel();
            let asking = std::thread::spawn(move || {
                let outcome = near.send_encoded(&vec![0; len]);
                sent.send(()).unwrap();
                outcome.and_then(|()| near.next_event())
            });
            // What the socket does not hold goes out no further than to there.
            if len == 100 {
                is_sent.recv().unwrap();
            } else {
                (&far).read_exact(&mut [0; 10]).unwrap();
            }
            let last = ControlEvent::Error { code: 9, message: "it stops".into() };
            (&far).write_all(&last.encode()).unwrap();
            drop(far);
            match asking.join().unwrap() {
                Err(ClientError::Failed { code: 9, message }) => assert_eq!(message, "it stops"),
                outcome => panic!("{outcome:?}"),
            }
        }
    }
}
