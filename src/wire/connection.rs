//! A connection: how it begins, how it is asked, how it is watched and closed.
//!
//! What its tasks share is in [`super::link`], the states of a request in [`super::asking`] and [`super::serving`].

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::asking::check_lengths;
use super::decoder::Decoder;
use super::handshake::{self, AcceptRefused, DialError, Established, Identity};
use super::link::Link;
use super::liveness::Verdict;
use super::{Admission, Answer, CloseReason, Handler, PayloadSource, PeerInfo, RequestError, reader, writer};
use crate::crypto::identity::CheckedCertificate;
use crate::crypto::replay::ReplayFilter;
use crate::format::frame::FrameKind;
use crate::format::{Address, NodeId};
use crate::io::{BufferPool, TcpStream, spawn};

/// A handle to an open or ended connection. Dropping handles ends nothing: the peer may still ask. Say
/// [`Connection::close`].
#[derive(Clone)]
pub struct Connection(Rc<Link>);

impl Connection {
    /// Connects, shakes hands, and waits until the other side has accepted us.
    pub async fn dial<H: Handler>(
        address: SocketAddr,
        identity: &Arc<Identity>,
        expect: Option<NodeId>,
        pool: BufferPool,
        handler: Rc<H>,
    ) -> Result<Connection, DialError> {
        let established = handshake::dial(address, identity, expect).await?;
        let connection = Self::start(established, address, true, pool, handler);
        // The reader announces the connection with the first frame.
        let unclaimed = EndOnDrop(&connection.0);
        connection.0.accepted(address).await?;
        drop(unclaimed);
        Ok(connection)
    }

    /// Shakes hands with whoever connected. A stranger gets no byte back.
    pub async fn accept<H: Handler>(
        stream: TcpStream,
        address: SocketAddr,
        identity: &Arc<Identity>,
        admission: &Arc<Admission>,
        replay: &Arc<ReplayFilter>,
        pool: BufferPool,
        handler: Rc<H>,
    ) -> Result<Connection, AcceptRefused> {
        let is_admitted = |certificate: &CheckedCertificate| handler.is_admitted(certificate);
        let established = handshake::accept(stream, address, identity, admission, replay, is_admitted).await?;
        let connection = Self::start(established, address, false, pool, handler.clone());
        // This keepalive tells the dialler that it was accepted.
        connection.0.want_keepalive();
        connection.0.announce();
        handler.connected(&connection);
        Ok(connection)
    }

    fn start<H: Handler>(
        established: Established,
        address: SocketAddr,
        dialled: bool,
        pool: BufferPool,
        handler: Rc<H>,
    ) -> Connection {
        let Established { stream, certificate, network_key_generation, sealer, unsealer } = established;
        let peer = PeerInfo { certificate, address, dialled, network_key_generation };
        let link = Link::new(stream, peer, pool);
        spawn(writer::write(link.clone(), sealer, handler.clone()));
        spawn(reader::read(link.clone(), Decoder::new(unsealer, dialled), handler));
        spawn(watch(link.clone()));
        Connection(link)
    }

    pub(super) fn of(link: &Rc<Link>) -> Connection {
        Connection(link.clone())
    }

    #[cfg(test)]
    pub(super) fn link(&self) -> &Rc<Link> {
        &self.0
    }

    pub fn peer(&self) -> &Rc<PeerInfo> {
        &self.0.peer
    }

    pub fn is_open(&self) -> bool {
        self.0.is_open()
    }

    /// Whether two handles are of one connection.
    pub fn is_same(&self, other: &Connection) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Requests of ours that have no answer yet: who asks can spread its load.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    /// When the peer last sent a byte: no later than a keepalive ago, unless it hangs or the way to it is cut.
    pub fn heard_at(&self) -> Instant {
        self.0.heard_at()
    }

    /// Answers that wait are still sent (those without a payload), then a goodbye with `reason`; then it is over.
    pub async fn close(&self, reason: &str) {
        self.0.leave(CloseReason::Here(reason.to_owned())).await;
    }

    /// Asks, and waits for the answer. `patience` is how long the request may make no progress at all. Dropping the
    /// future cancels the request on both sides.
    pub async fn request(
        &self,
        kind: FrameKind,
        address: Address,
        layout: u32,
        body: Vec<u8>,
        payload: Option<PayloadSource>,
        patience: Duration,
    ) -> Result<Answer, RequestError> {
        assert!(kind as u8 >= FrameKind::Hello as u8, "{kind:?} is not a request");
        let link = &self.0;
        check_lengths(&body, payload.as_ref())?;
        let (request, told) = link.ask(kind, (address, layout), body, payload, patience).await?;
        let _cancel = CancelOnDrop { link, request };
        link.wait_for(request, told, patience).await.and_then(|delivery| delivery.into_answer())
    }
}

/// Lives as long as the asker's future.
struct CancelOnDrop<'a> {
    link: &'a Rc<Link>,
    request: u64,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.link.forget(self.request);
    }
}

/// A connection that nobody knows of yet ends with the future that makes it.
struct EndOnDrop<'a>(&'a Rc<Link>);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        if !self.0.is_announced() {
            self.0.end(CloseReason::Here("no longer wanted".to_owned()));
        }
    }
}

/// Keepalives, silence, age, answers that are not taken.
async fn watch(link: Rc<Link>) {
    while !link.is_closed() {
        let answers = link.look_at_answers(Instant::now());
        match link.look(Instant::now()) {
            Verdict::Wait(until) => link.change_or(answers.map_or(until, |answers| until.min(answers))).await,
            Verdict::SendKeepalive => link.want_keepalive(),
            Verdict::Silent(time) => link.end(CloseReason::Silent(time)),
            Verdict::Old => link.leave(CloseReason::SessionOver).await,
        }
    }
}
