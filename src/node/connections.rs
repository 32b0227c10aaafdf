//! A shard's connections: found when there, dialled when needed, shared by all that need the same peer.
//!
//! Rules:
//! - Connections are symmetric: one that the peer dialled serves our requests just as well.
//! - One dial per peer at a time; who comes meanwhile waits for its outcome.
//! - A peer has at most [`CONNECTIONS_PER_PEER_MAX`] connections to a shard: a newer one takes the place of the oldest,
//!   which may well be dead without our knowing. All of them share what answers to that peer may hold.
//! - Where others do as well, a peer that was lost is left out ([`is_near`]): the dial that finds it hung takes seconds.
//! - A peer whose dial failed is not dialled again for [`REDIAL_PAUSE`]: a dead replica costs its callers nothing.
//! - What is remembered of a peer goes with its last connection, once nothing hangs on it: no answer to it that still holds a
//!   buffer (or whoever reconnects would get the buffers once more), no dial, no failure that callers are still told of.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use super::serve::Serve;
use super::shard::Shard;
use crate::cluster::membership::ConnectionId;
use crate::format::NodeId;
use crate::io::spawn;
use crate::limits::{ANSWER_BUFFERS_PER_PEER, CONNECTIONS_PER_PEER_MAX, REDIAL_PAUSE};
use crate::wire::Connection;

#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    #[error("node {0:?} is not known here")]
    Unknown(NodeId),
    #[error("node {node:?} cannot be reached: {reason}")]
    Unreachable { node: NodeId, reason: String },
}

#[derive(Default)]
pub struct Connections {
    peers: RefCell<HashMap<NodeId, Rc<Slot>>>,
    /// Those that count for membership, by its number for them.
    settled: RefCell<HashMap<ConnectionId, Connection>>,
}

struct Slot {
    open: RefCell<Vec<Connection>>,
    /// Buffers that answers to this peer may hold.
    answers: Arc<Semaphore>,
    dialling: tokio::sync::Mutex<Option<(Instant, String)>>,
}

impl Default for Slot {
    fn default() -> Self {
        let answers = Arc::new(Semaphore::new(ANSWER_BUFFERS_PER_PEER));
        Self { open: RefCell::default(), answers, dialling: Default::default() }
    }
}

impl Slot {
    /// Whether forgetting it changes nothing. Its user must hold no clone of it.
    fn is_idle(&self, now: Instant) -> bool {
        let is_over = |failure: &Option<(Instant, String)>| {
            failure.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= REDIAL_PAUSE)
        };
        self.open.borrow().is_empty()
            && Arc::strong_count(&self.answers) == 1
            && self.dialling.try_lock().is_ok_and(|failure| is_over(&failure))
    }
}

/// Adds the newest; the oldest where there are too many.
fn crowd_out<T>(open: &mut Vec<T>, newest: T, max: usize) -> Option<T> {
    let oldest = (open.len() >= max && !open.is_empty()).then(|| open.remove(0));
    open.push(newest);
    oldest
}

impl Connections {
    fn slot(&self, node: &NodeId) -> Rc<Slot> {
        self.peers.borrow_mut().entry(*node).or_default().clone()
    }

    /// An open connection to `node`, if this shard has one.
    pub fn find(&self, node: &NodeId) -> Option<Connection> {
        let peers = self.peers.borrow();
        let open = peers.get(node)?.open.borrow();
        open.iter().find(|connection| connection.is_open()).cloned()
    }

    /// Requests of this shard that `node` has not answered yet.
    pub fn in_flight(&self, node: &NodeId) -> usize {
        self.find(node).map_or(0, |connection| connection.in_flight())
    }

    pub fn add(&self, connection: Connection) {
        let slot = self.slot(&connection.peer().certificate.node_id);
        let mut open = slot.open.borrow_mut();
        open.retain(Connection::is_open);
        if let Some(oldest) = crowd_out(&mut open, connection, CONNECTIONS_PER_PEER_MAX) {
            let peer = oldest.peer().certificate.node_id;
            tracing::warn!(?peer, "a peer has more than {CONNECTIONS_PER_PEER_MAX} connections: the oldest is closed");
            spawn(async move { oldest.close("too many connections of one node").await });
        }
    }

    /// What answers to this peer may hold together.
    pub fn answers(&self, node: &NodeId) -> Arc<Semaphore> {
        self.slot(node).answers.clone()
    }

    pub fn all(&self) -> Vec<Connection> {
        let peers = self.peers.borrow();
        peers.values().flat_map(|slot| slot.open.borrow().clone()).filter(Connection::is_open).collect()
    }

    pub fn settle(&self, number: ConnectionId, connection: Connection) {
        self.settled.borrow_mut().insert(number, connection);
    }

    pub fn unsettle(&self, number: ConnectionId) {
        self.settled.borrow_mut().remove(&number);
    }

    pub fn settled(&self, number: ConnectionId) -> Option<Connection> {
        self.settled.borrow().get(&number).cloned()
    }

    pub fn all_settled(&self) -> Vec<Connection> {
        self.settled.borrow().values().filter(|connection| connection.is_open()).cloned().collect()
    }

    /// A connection has ended.
    pub fn forget(&self, connection: &Connection) {
        if let Some(slot) = self.peers.borrow().get(&connection.peer().certificate.node_id) {
            slot.open.borrow_mut().retain(|open| !open.is_same(connection));
        }
        self.forget_idle(Instant::now());
    }

    /// Looks at all peers: who could not be forgotten when its connection ended may have become idle since.
    fn forget_idle(&self, now: Instant) {
        self.peers.borrow_mut().retain(|_, slot| Rc::strong_count(slot) > 1 || !slot.is_idle(now));
    }

    /// Closes everything, all at once: a goodbye that is not taken costs its time only. Nothing new is added once the node
    /// stops: its listeners are cancelled before this, and nobody is dialled.
    pub async fn close_all(&self, reason: &'static str) {
        let close = |connection: Connection| spawn(async move { connection.close(reason).await });
        let closing: Vec<_> = self.all().into_iter().map(close).collect();
        for closed in closing {
            if let Err(error) = closed.await {
                tracing::warn!(%error, "a connection was not closed");
            }
        }
    }
}

/// Whether asking `node` is worth it while others can be asked: it is this one, connected, or not known to be away.
pub fn is_near(shard: &Rc<Shard>, node: &NodeId) -> bool {
    *node == shard.node.id() || shard.connections.find(node).is_some() || !shard.node.peers.is_lost(node)
}

/// The connection of this shard to `node`, dialled if there is none.
pub async fn connect(shard: &Rc<Shard>, node: &NodeId) -> Result<Connection, PeerError> {
    if let Some(connection) = shard.connections.find(node) {
        return Ok(connection);
    }
    // In a task of its own: a caller that gives up (a read that lost to a faster peer) does not take the dial with it.
    let (tell, told) = tokio::sync::oneshot::channel();
    let (own, peer) = (shard.clone(), *node);
    spawn(async move {
        let _ = tell.send(connect_or_dial(&own, &peer).await);
    });
    told.await.unwrap_or_else(|_| Err(PeerError::Unreachable { node: *node, reason: "the node stops".into() }))
}

async fn connect_or_dial(shard: &Rc<Shard>, node: &NodeId) -> Result<Connection, PeerError> {
    let slot = shard.connections.slot(node);
    let mut last_failure = slot.dialling.lock().await;
    if let Some(connection) = shard.connections.find(node) {
        return Ok(connection);
    }
    // Membership may have met it meanwhile: then it is worth another try at once.
    let is_recent = |at: &Instant| at.elapsed() < REDIAL_PAUSE && !shard.node.peers.is_alive(node);
    if let Some((at, reason)) = last_failure.as_ref().filter(|(at, _)| is_recent(at)) {
        tracing::trace!(?node, ?at, "dial skipped");
        return Err(PeerError::Unreachable { node: *node, reason: reason.clone() });
    }
    let outcome = dial(shard, node).await;
    *last_failure = match &outcome {
        Ok(_) => None,
        Err(error) => Some((Instant::now(), error.to_string())),
    };
    outcome
}

async fn dial(shard: &Rc<Shard>, node: &NodeId) -> Result<Connection, PeerError> {
    let addresses = shard.node.peers.addresses(node);
    if addresses.is_empty() {
        return Err(PeerError::Unknown(*node));
    }
    let mut reason = String::new();
    for address in addresses {
        match dial_at(shard, &address, Some(*node)).await {
            Ok((connection, _)) => return Ok(connection),
            Err(error) => reason = error,
        }
    }
    Err(PeerError::Unreachable { node: *node, reason })
}

/// Dials `host:port`, every address that it resolves to.
pub async fn dial_at(
    shard: &Rc<Shard>,
    address: &str,
    expect: Option<NodeId>,
) -> Result<(Connection, Rc<Serve>), String> {
    if shard.node.is_stopping() {
        return Err(format!("{address}: this node is stopping"));
    }
    let resolved = tokio::net::lookup_host(address).await.map_err(|error| format!("{address}: {error}"))?;
    let mut reason = format!("{address} resolves to nothing");
    for address in resolved {
        let serve = Rc::new(Serve::new(shard.clone()));
        match Connection::dial(address, &shard.node.identity, expect, shard.pool.clone(), serve.clone()).await {
            Ok(connection) => return Ok((connection, serve)),
            Err(error) => reason = format!("{address}: {error}"),
        }
    }
    Err(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_connection_of_a_peer_takes_the_place_of_the_oldest() {
        let mut open = Vec::new();
        let closed: Vec<_> = (0..10).filter_map(|number| crowd_out(&mut open, number, 4)).collect();
        assert_eq!((closed, open), (vec![0, 1, 2, 3, 4, 5], vec![6, 7, 8, 9]));
    }

    #[test]
    fn a_peer_is_forgotten_once_nothing_hangs_on_it_and_not_before() {
        let (connections, node, now) = (Connections::default(), NodeId([1; 32]), Instant::now());
        let is_known = |at: Instant| {
            connections.forget_idle(at);
            connections.peers.borrow().contains_key(&node)
        };
        let slot = connections.slot(&node);
        assert!(is_known(now), "somebody waits for its dial");
        drop(slot);
        assert!(!is_known(now));

        let permit = connections.answers(&node).try_acquire_owned().expect("a permit");
        assert!(is_known(now), "an answer to it holds a buffer");
        drop(permit);
        assert!(!is_known(now));

        let failed = |slot: Rc<Slot>| *slot.dialling.try_lock().expect("nobody dials") = Some((now, "away".into()));
        failed(connections.slot(&node));
        assert!(is_known(now), "callers are told that it is away");
        assert!(!is_known(now + REDIAL_PAUSE));
    }
}
