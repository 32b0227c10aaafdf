//! A worker's connections: those that it keeps for small objects, one to each node that it asks, and the line by which
//! the one in use is cut.
//!
//! A kept connection has one request under way. One on which anything but the expected answer came is not kept: what
//! comes next on it is anybody's guess.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gabion::cli::exit::Failure;
use gabion::node::control::client::{Client, HangUp};
use gabion::node::control::{ControlEvent, ControlRequest};

use crate::nodes::Node;

/// Cuts a worker's connection when the run is stopped.
#[derive(Debug, Default)]
pub struct Line(Mutex<Option<Arc<HangUp>>>);

impl Line {
    pub fn hang_up(&self) {
        if let Some(connection) = self.slot().as_ref() {
            connection.hang_up();
        }
    }

    pub fn hold(&self, connection: &Connection) {
        *self.slot() = connection.hang_up.clone();
    }

    pub fn release(&self) {
        *self.slot() = None;
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<HangUp>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub struct Connection {
    pub client: Client,
    /// Made once: a descriptor for each request would cost two system calls more.
    hang_up: Option<Arc<HangUp>>,
}

impl Connection {
    pub fn to(node: &Node) -> Result<Self, Failure> {
        let client = node.connect()?;
        let hang_up = client.hang_up_handle().ok().map(Arc::new);
        Ok(Self { client, hang_up })
    }
}

/// The place of one worker's connection to one node.
#[derive(Debug, Default)]
pub struct Kept(Option<Connection>);

impl Kept {
    /// One request and its answer, of which `expected` takes what it holds. Connects when there is no connection.
    pub fn exchange<T>(
        &mut self,
        node: &Node,
        line: &Line,
        request: &ControlRequest,
        expected: impl FnOnce(ControlEvent) -> Option<T>,
    ) -> Result<T, Failure> {
        let mut connection = match self.0.take() {
            Some(connection) => connection,
            None => Connection::to(node)?,
        };
        line.hold(&connection);
        let client = &mut connection.client;
        let answer = client.send(request, None).and_then(|()| client.next_event());
        line.release();
        let unexpected = || {
            Failure::other(format!(
                "the node on {} answered with something else than was asked for",
                node.dir.display()
            ))
        };
        let found = expected(answer?).ok_or_else(unexpected)?;
        self.0 = Some(connection);
        Ok(found)
    }
}
