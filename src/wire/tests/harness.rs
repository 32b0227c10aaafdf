//! A network, handlers that do what a test says, and two connected nodes on one thread.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use crate::crypto::hash::address_of;
use crate::crypto::identity::{CheckedCertificate, InviteTerms, make_certificate, make_invite};
use crate::crypto::keys::{Authority, InviteSeed, NetworkKey, NodeSeed};
use crate::crypto::replay::ReplayFilter;
use crate::format::Address;
use crate::format::certificate::Class;
use crate::format::frame::{FrameHeader, FrameKind};
use crate::io::{BufferPool, Ring, RingOptions, SendSource, TcpListener, spawn, yield_now};
use crate::limits::{REQUESTS_IN_FLIGHT_MAX, STALL_MAX};
use crate::wire::handshake::{self, Established};
use crate::wire::*;

/// Longer than anything here should take, for tests that must not hang.
pub const LONG: Duration = Duration::from_secs(20);

pub fn run<F: Future>(test: F) -> F::Output {
    let mut ring = Ring::new(&RingOptions::default()).unwrap();
    ring.block_on(async { tokio::time::timeout(4 * LONG, test).await.expect("the test hangs") })
}

/// Gives everybody else on this thread a turn until `done`.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        yield_now().await;
    }
}

pub struct Network {
    pub authority: Authority,
    pub key: NetworkKey,
}

impl Network {
    pub fn new() -> Self {
        Self { authority: Authority::random(), key: NetworkKey::random(1) }
    }

    pub fn identity(&self) -> Arc<Identity> {
        self.identity_with(vec![self.key.clone()])
    }

    fn identity_with(&self, network_keys: Vec<NetworkKey>) -> Arc<Identity> {
        let (keys, seed) = (NodeSeed::random().keys(), InviteSeed::random());
        let terms = InviteTerms { class: Class::Member, zone: String::new(), capacity_limit: 0, expiry_s: 0 };
        let network = self.authority.network_id();
        let invite = make_invite(&self.authority, &seed, &terms).unwrap();
        let certificate = make_certificate(&invite, &seed, &network, &keys, "z").unwrap().encode();
        Arc::new(Identity { keys, certificate, network, network_keys })
    }
}

type Answering = Pin<Box<dyn Future<Output = Reply>>>;

/// Answers as told, and keeps what happened.
pub struct Scripted {
    script: Box<dyn Fn(Request) -> Answering>,
    pub handled: Cell<usize>,
    pub connected: RefCell<Vec<Connection>>,
    pub closed: RefCell<Vec<CloseReason>>,
    /// Sent and received.
    pub payload_bytes: [Cell<usize>; 2],
    /// Whether requests may bring payloads.
    pub takes_payloads: Cell<bool>,
    pub requests_max: Cell<usize>,
    /// Whether everybody counts as admitted.
    pub admits: Cell<bool>,
}

impl Scripted {
    pub fn new<F: Future<Output = Reply> + 'static>(script: impl Fn(Request) -> F + 'static) -> Rc<Self> {
        Rc::new(Self {
            script: Box::new(move |request| Box::pin(script(request))),
            handled: Cell::new(0),
            connected: RefCell::default(),
            closed: RefCell::default(),
            payload_bytes: Default::default(),
            takes_payloads: Cell::new(true),
            requests_max: Cell::new(REQUESTS_IN_FLIGHT_MAX),
            admits: Cell::new(true),
        })
    }

    pub fn mute() -> Rc<Self> {
        Self::new(|_| std::future::pending())
    }

    /// Gives back what it gets.
    pub fn echo() -> Rc<Self> {
        Self::new(|request| async move {
            let address = request.header.address;
            Reply { address, payload: request.payload.map(PayloadSource::from), ..Reply::ok(request.body) }
        })
    }

    pub fn close_reason(&self) -> Option<CloseReason> {
        self.closed.borrow().first().cloned()
    }
}

impl Handler for Scripted {
    fn handle(self: Rc<Self>, _peer: Rc<PeerInfo>, request: Request) -> impl Future<Output = Reply> + 'static {
        self.handled.set(self.handled.get() + 1);
        (self.script)(request)
    }

    fn is_admitted(&self, _certificate: &CheckedCertificate) -> bool {
        self.admits.get()
    }

    fn connected(&self, connection: &Connection) {
        self.connected.borrow_mut().push(connection.clone());
    }

    fn closed(&self, connection: &Connection, reason: &CloseReason) {
        assert!(self.connected.borrow().iter().any(|known| known.is_same(connection)));
        self.closed.borrow_mut().push(reason.clone());
    }

    fn takes_payload(&self, _peer: &PeerInfo, _kind: FrameKind) -> bool {
        self.takes_payloads.get()
    }

    fn requests_max(&self, _peer: &PeerInfo) -> usize {
        self.requests_max.get()
    }

    fn payload_sent(&self, bytes: usize) {
        self.payload_bytes[0].update(|sent| sent + bytes);
    }

    fn payload_received(&self, bytes: usize) {
        self.payload_bytes[1].update(|received| received + bytes);
    }
}

/// A listening node.
pub struct Node {
    pub identity: Arc<Identity>,
    pub handler: Rc<Scripted>,
    pub pool: BufferPool,
    pub address: SocketAddr,
    pub refused: Rc<RefCell<Vec<AcceptRefused>>>,
    pub admission: Arc<Admission>,
    pub started: Instant,
}

impl Node {
    /// Accepts until the ring ends.
    pub fn listen(network: &Network, handler: Rc<Scripted>, buffers: usize) -> Node {
        Self::listen_with(network, vec![network.key.clone()], handler, buffers)
    }

    pub fn listen_with(network: &Network, keys: Vec<NetworkKey>, handler: Rc<Scripted>, buffers: usize) -> Node {
        let listener = TcpListener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let started = Instant::now();
        let node = Node {
            identity: network.identity_with(keys),
            handler,
            pool: BufferPool::new(buffers).unwrap(),
            address: listener.local_addr().unwrap(),
            refused: Rc::default(),
            admission: Admission::new(started),
            started,
        };
        let (identity, handler, pool) = (node.identity.clone(), node.handler.clone(), node.pool.clone());
        let refused = node.refused.clone();
        let directory = tempfile::tempdir().unwrap();
        let replay = Arc::new(ReplayFilter::load(directory.path(), 0).unwrap());
        let admission = node.admission.clone();
        spawn(async move {
            let _directory = directory;
            while let Ok((stream, address)) = listener.accept().await {
                let (identity, admission, replay) = (identity.clone(), admission.clone(), replay.clone());
                let (handler, pool, refused) = (handler.clone(), pool.clone(), refused.clone());
                spawn(async move {
                    let accepted =
                        Connection::accept(stream, address, &identity, &admission, &replay, pool, handler).await;
                    if let Err(reason) = accepted {
                        refused.borrow_mut().push(reason);
                    }
                });
            }
        });
        node
    }

    /// The listening end of the one connection.
    pub fn connection(&self) -> Connection {
        self.handler.connected.borrow().last().expect("nobody has connected").clone()
    }
}

pub struct Pair {
    pub network: Network,
    pub node: Node,
    pub dialler: Rc<Scripted>,
    pub pool: BufferPool,
    pub connection: Connection,
}

/// A dialler whose requests `listener` answers, and the other way round.
pub async fn pair(dialler: Rc<Scripted>, listener: Rc<Scripted>) -> Pair {
    pair_with(dialler, 24, listener, 24).await
}

pub async fn pair_with(dialler: Rc<Scripted>, ours: usize, listener: Rc<Scripted>, theirs: usize) -> Pair {
    let network = Network::new();
    let node = Node::listen(&network, listener, theirs);
    let pool = BufferPool::new(ours).unwrap();
    let expect = Some(node.identity.keys.node_id());
    let connection =
        Connection::dial(node.address, &network.identity(), expect, pool.clone(), dialler.clone()).await.unwrap();
    Pair { network, node, dialler, pool, connection }
}

pub fn payload(seed: u8, len: usize) -> (Address, Vec<u8>) {
    let bytes: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(31) ^ seed ^ (at >> 8) as u8).collect();
    (address_of(&bytes), bytes)
}

/// A request without payload, which may take as long as it likes.
pub async fn ask(connection: &Connection, body: &[u8]) -> Result<Answer, RequestError> {
    connection.request(FrameKind::Fetch, Address::ZERO, 0, body.to_vec(), None, LONG).await
}

pub async fn store(connection: &Connection, seed: u8, len: usize) -> Result<Answer, RequestError> {
    let (address, bytes) = payload(seed, len);
    connection.request(FrameKind::Store, address, 0, vec![seed], Some(PayloadSource::Bytes(bytes)), LONG).await
}

/// A certified node that sends what it likes.
pub struct Rogue(pub Established);

impl Rogue {
    pub async fn dial(network: &Network, node: &Node) -> Rogue {
        let rogue = Rogue(handshake::dial(node.address, &network.identity(), None).await.unwrap());
        until("the node has accepted", || !node.handler.connected.borrow().is_empty()).await;
        rogue
    }

    pub fn seal(&mut self, header: FrameHeader, body: &[u8]) -> Vec<u8> {
        let header = FrameHeader { body_bytes: (body.len() as u32).into(), ..header };
        let mut bytes = Vec::new();
        self.0.sealer.seal_frame(header.as_bytes(), &mut bytes).unwrap();
        if !body.is_empty() {
            self.0.sealer.seal_frame(body, &mut bytes).unwrap();
        }
        bytes
    }

    pub async fn send(&self, bytes: Vec<u8>) {
        self.0.stream.send_all(SendSource::Bytes(bytes), STALL_MAX).await.unwrap();
    }

    pub async fn say(&mut self, header: FrameHeader, body: &[u8]) {
        let bytes = self.seal(header, body);
        self.send(bytes).await;
    }
}
