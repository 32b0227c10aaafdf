//! A connection: what its tasks share, how requests are asked, answered, cancelled, and how it ends.
//!
//! # A request of ours
//!
//! | state | held | ends by |
//! | --- | --- | --- |
//! | waiting for a place | nothing | a place; its patience |
//! | queued | place, entry in `asked`, frame in the queue | leaving; withdrawn when dropped |
//! | sent | place, entry | the answer; a cancel from the peer; its patience |
//! | cancelled | place, entry without an asker | the peer's cancel, or the answer that crossed ours |
//!
//! # A request of theirs
//!
//! | state | held | ends by |
//! | --- | --- | --- |
//! | served | entry in `serving`, task, the credit of its payload | the reply; their cancel (task aborted, cancel sent) |
//! | answered | entry, frame in the queue | leaving; their cancel (withdrawn, cancel sent) |
//!
//! A cancel that finds no entry was crossed by the answer and means nothing.
//!
//! # The end
//! [`Link::end`] runs once, with the first reason: every asker is told, every task of a handler aborted, the queue
//! dropped, the socket shut down; that wakes the reader, whose last act is [`Handler::closed`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout_at;

use super::decoder::Decoder;
use super::flow::ReceiveWindow;
use super::handshake::{self, AcceptRefused, DialError, Established, Identity};
use super::liveness::{Liveness, Movement, Patience, Verdict};
use super::queue::{Outgoing, Queue};
use super::{Admission, Answer, CloseReason, Handler, Payload, PayloadSource, PeerInfo, Reply, Request, RequestError};
use super::{Violation, reader, writer};
use crate::crypto::replay::ReplayFilter;
use crate::format::frame::{FrameHeader, FrameKind, Status};
use crate::format::{Address, Malformed, NodeId};
use crate::io::{BufferPool, JoinHandle, TcpStream, spawn};
use crate::limits::{
    CHUNK_BYTES_MAX, HANDSHAKE_MAX, REQUESTS_IN_FLIGHT_MAX, SEALED_BODY_BYTES_MAX, SOCKET_WAIT, STALL_MAX,
};

/// A handle to an open or ended connection. Dropping handles ends nothing: the peer may still ask. Say
/// [`Connection::close`].
#[derive(Clone)]
pub struct Connection(Rc<Link>);

/// What an asker is told.
pub(super) struct Delivery {
    pub(super) frame: (FrameHeader, Vec<u8>),
    pub(super) payload: Option<(Payload, Grant)>,
    /// There was a payload, but no buffer for it.
    pub(super) refused: bool,
}

struct Asked {
    tell: Option<oneshot::Sender<Result<Delivery, RequestError>>>,
    patience: Patience,
    allowed: Duration,
    _place: OwnedSemaphorePermit,
}

struct Serving {
    task: Option<JoinHandle>,
    /// Given back when the handler is done.
    grant: Option<Grant>,
}

/// One payload's credit of the other side; dropped, it is given back.
pub(super) struct Grant(Rc<Link>);

impl Drop for Grant {
    fn drop(&mut self) {
        let mut window = self.0.window.borrow_mut();
        window.give_back();
        if window.is_urgent() {
            self.0.queue.borrow_mut().want_keepalive();
            self.0.wake.notify_one();
        }
    }
}

/// What the tasks of one connection share.
pub(super) struct Link {
    pub(super) stream: TcpStream,
    pub(super) peer: Rc<PeerInfo>,
    pub(super) pool: BufferPool,
    pub(super) window: RefCell<ReceiveWindow>,
    /// Wakes the writer.
    pub(super) wake: Notify,
    queue: RefCell<Queue>,
    asked: RefCell<HashMap<u64, Asked>>,
    serving: RefCell<HashMap<u64, Serving>>,
    places: Arc<Semaphore>,
    next_request: Cell<u64>,
    liveness: RefCell<Liveness>,
    movement: RefCell<Movement>,
    closing: RefCell<Option<String>>,
    closed: RefCell<Option<CloseReason>>,
    /// The first frame of the peer is here: it accepted us.
    proven: Cell<bool>,
    /// The handler knows of this connection.
    announced: Cell<bool>,
    /// Told of `proven` and of `closed`.
    changed: Notify,
}

impl CloseReason {
    pub(super) fn of_io(error: &io::Error, stall: Duration) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Stalled(stall),
            io::ErrorKind::UnexpectedEof => Self::HungUp,
            kind => Self::Lost(kind),
        }
    }
}

impl From<Malformed> for CloseReason {
    fn from(malformed: Malformed) -> Self {
        Self::Violation(Violation::Malformed(malformed))
    }
}

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
        let established = handshake::accept(stream, address, identity, admission, replay).await?;
        let connection = Self::start(established, address, false, pool, handler.clone());
        // This keepalive tells the dialler that it was accepted.
        connection.0.queue.borrow_mut().want_keepalive();
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
        let Established { stream, certificate, sealer, unsealer } = established;
        let now = Instant::now();
        let link = Rc::new(Link {
            stream,
            peer: Rc::new(PeerInfo { certificate, address, dialled }),
            pool,
            window: RefCell::default(),
            wake: Notify::new(),
            queue: RefCell::default(),
            asked: RefCell::default(),
            serving: RefCell::default(),
            places: Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT_MAX)),
            next_request: Cell::new(if dialled { 1 } else { 2 }),
            liveness: RefCell::new(Liveness::new(now)),
            movement: RefCell::new(Movement::new(now)),
            closing: RefCell::new(None),
            closed: RefCell::new(None),
            proven: Cell::new(false),
            announced: Cell::new(false),
            changed: Notify::new(),
        });
        spawn(writer::write(link.clone(), sealer));
        spawn(reader::read(link.clone(), Decoder::new(unsealer, dialled), handler));
        spawn(watch(link.clone()));
        Connection(link)
    }

    pub(super) fn of(link: &Rc<Link>) -> Connection {
        Connection(link.clone())
    }

    pub fn peer(&self) -> &Rc<PeerInfo> {
        &self.0.peer
    }

    pub fn is_open(&self) -> bool {
        !self.0.is_closed() && self.0.closing.borrow().is_none()
    }

    /// Whether two handles are of one connection.
    pub fn is_same(&self, other: &Connection) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Requests of ours that have no answer yet: who asks can spread its load.
    pub fn in_flight(&self) -> usize {
        self.0.asked.borrow().len()
    }

    /// Answers that wait are still sent (those without a payload), then a goodbye with `reason`; then it is over.
    pub async fn close(&self, reason: &str) {
        let link = &self.0;
        link.closing.borrow_mut().get_or_insert_with(|| reason.to_owned());
        link.queue.borrow_mut().want_goodbye(reason);
        link.wake.notify_one();
        let deadline = Instant::now() + STALL_MAX;
        while !link.is_closed() {
            if timeout_at(deadline.into(), link.changed.notified()).await.is_err() {
                link.end(link.said_goodbye());
            }
        }
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
        let place = link.place(patience).await?;
        if let Some(reason) = link.reason() {
            return Err(RequestError::Closed { reason });
        }
        let request = link.next_request.get();
        link.next_request.set(request + 2);
        let (tell, told) = oneshot::channel();
        let clock = Patience::new(patience, Instant::now(), &link.movement.borrow());
        let asked = Asked { tell: Some(tell), patience: clock, allowed: patience, _place: place };
        link.asked.borrow_mut().insert(request, asked);
        let _cancel = CancelOnDrop { link, request };
        let header = FrameHeader { address, layout: layout.into(), ..FrameHeader::new(kind, request) };
        link.push(Outgoing { header, body, payload });
        link.wait_for(request, told, patience).await.and_then(Delivery::into_answer)
    }
}

fn check_lengths(body: &[u8], payload: Option<&PayloadSource>) -> Result<(), RequestError> {
    let payload_bytes = payload.map(PayloadSource::len);
    if body.len() <= SEALED_BODY_BYTES_MAX && payload_bytes.is_none_or(|bytes| (1..=CHUNK_BYTES_MAX).contains(&bytes)) {
        return Ok(());
    }
    Err(RequestError::TooLong { body_bytes: body.len(), payload_bytes })
}

impl Delivery {
    /// The asker takes it: from here on the credit is the peer's again.
    fn into_answer(self) -> Result<Answer, RequestError> {
        if self.refused {
            return Err(RequestError::NoBuffer);
        }
        let (header, body) = self.frame;
        // Checked with the header.
        let status = Status::parse(header.status.get()).unwrap_or(Status::Malformed);
        Ok(Answer { status, header, body, payload: self.payload.map(|(payload, _grant)| payload) })
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

/// Keepalives, silence, age.
async fn watch(link: Rc<Link>) {
    while !link.is_closed() {
        let now = Instant::now();
        let verdict = link.liveness.borrow_mut().look(now, &link.movement.borrow());
        match verdict {
            Verdict::Wait(until) => {
                let _ = timeout_at(until.into(), link.changed.notified()).await;
            }
            Verdict::SendKeepalive => {
                link.liveness.borrow_mut().sent(now);
                link.queue.borrow_mut().want_keepalive();
                link.wake.notify_one();
            }
            Verdict::Silent(time) => link.end(CloseReason::Silent(time)),
            Verdict::Old => link.end(CloseReason::SessionOver),
        }
    }
}

/// What askers need.
impl Link {
    /// A place among the requests in flight. Answers that come in are progress.
    async fn place(&self, patience: Duration) -> Result<OwnedSemaphorePermit, RequestError> {
        let closed = || RequestError::Closed { reason: self.reason().unwrap_or(CloseReason::HungUp) };
        if self.is_closed() || self.closing.borrow().is_some() {
            let words = self.closing.borrow().clone().unwrap_or_default();
            return Err(RequestError::Closed { reason: self.reason().unwrap_or(CloseReason::Here(words)) });
        }
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let clock = Patience::new(patience, Instant::now(), &self.movement.borrow());
        let mut waiting = pin!(self.places.clone().acquire_owned());
        loop {
            match timeout_at(self.next_look(&clock).into(), waiting.as_mut()).await {
                Ok(place) => return place.map_err(|_| closed()),
                Err(_) if self.has_stalled(&clock) => return Err(RequestError::Stalled { patience }),
                Err(_) => {}
            }
        }
    }

    fn next_look(&self, clock: &Patience) -> Instant {
        clock.deadline(&self.movement.borrow()).unwrap_or_else(|| Instant::now() + SOCKET_WAIT)
    }

    fn has_stalled(&self, clock: &Patience) -> bool {
        clock.deadline(&self.movement.borrow()).is_some_and(|deadline| deadline <= Instant::now())
    }

    async fn wait_for(
        &self,
        request: u64,
        mut told: oneshot::Receiver<Result<Delivery, RequestError>>,
        patience: Duration,
    ) -> Result<Delivery, RequestError> {
        loop {
            let until = self.asked.borrow().get(&request).map(|asked| self.next_look(&asked.patience));
            // Without an entry the answer is there already.
            let until = until.unwrap_or_else(Instant::now);
            match timeout_at(until.into(), &mut told).await {
                Ok(Ok(result)) => return result,
                Ok(Err(_)) => return Err(RequestError::Cancelled),
                Err(_) => {
                    if self.asked.borrow().get(&request).is_some_and(|asked| self.has_stalled(&asked.patience)) {
                        return Err(RequestError::Stalled { patience });
                    }
                }
            }
        }
    }

    /// The asker has gone: what has not left is withdrawn, what has left is cancelled.
    fn forget(&self, request: u64) {
        // Bound outside of the block: what it holds may look at the connection when it is dropped.
        let _withdrawn = {
            let mut asked = self.asked.borrow_mut();
            let Entry::Occupied(mut entry) = asked.entry(request) else { return };
            let withdrawn = self.queue.borrow_mut().withdraw(false, request);
            if withdrawn.is_some() {
                entry.remove();
            } else {
                entry.get_mut().tell = None;
                self.push(Outgoing::bare(FrameKind::Cancel, request));
            }
            withdrawn
        };
    }

    /// The request's entry ends with the peer's last frame about it.
    fn answered(&self, request: u64) -> Result<Asked, CloseReason> {
        let asked = self.asked.borrow_mut().remove(&request);
        asked.ok_or_else(|| Malformed::new("answer to a request that is not open").into())
    }
}

/// What the reader needs.
impl Link {
    /// Any bytes at all.
    pub(super) fn heard(&self) {
        self.liveness.borrow_mut().received(Instant::now());
    }

    /// Every header: proof that we were accepted, carrier of credit.
    pub(super) fn note_header(&self, header: &FrameHeader) -> Result<(), CloseReason> {
        if !self.proven.replace(true) {
            self.changed.notify_waiters();
        }
        if header.credit.get() > 0 {
            self.queue.borrow_mut().credit.grant(header.credit.get())?;
            self.movement.borrow_mut().last = Instant::now();
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Marks the connection as known to the handler; `true` when it was before.
    pub(super) fn announce(&self) -> bool {
        self.announced.replace(true)
    }

    pub(super) fn is_announced(&self) -> bool {
        self.announced.get()
    }

    /// A payload follows: takes its credit. `false` when nobody waits for it any more.
    pub(super) fn payload_begins(
        self: &Rc<Self>,
        header: &FrameHeader,
        kind: FrameKind,
    ) -> Result<(Grant, bool), CloseReason> {
        self.window.borrow_mut().arrive()?;
        let grant = Grant(self.clone());
        let mut movement = self.movement.borrow_mut();
        movement.arriving = true;
        movement.payloads += 1;
        if kind != FrameKind::Answer {
            return Ok((grant, true));
        }
        let mut asked = self.asked.borrow_mut();
        let entry = asked.get_mut(&header.request.get());
        let entry = entry.ok_or(Malformed::new("answer to a request that is not open"))?;
        entry.patience.arrives();
        Ok((grant, entry.tell.is_some()))
    }

    pub(super) fn payload_ended(&self) {
        let mut movement = self.movement.borrow_mut();
        movement.arriving = false;
        movement.last = Instant::now();
    }

    pub(super) fn deliver(&self, delivery: Delivery) -> Result<(), CloseReason> {
        let asked = self.answered(delivery.frame.0.request.get())?;
        if let Some(tell) = asked.tell {
            // An asker that left this very moment throws it away.
            let _ = tell.send(Ok(delivery));
        }
        Ok(())
    }

    /// The peer's cancel: of its own request, or the last word about one of ours.
    pub(super) fn cancelled(&self, request: u64) -> Result<(), CloseReason> {
        if request % 2 == self.next_request.get() % 2 {
            if let Some(tell) = self.answered(request)?.tell {
                let _ = tell.send(Err(RequestError::Cancelled));
            }
            return Ok(());
        }
        let Some(mut serving) = self.serving.borrow_mut().remove(&request) else { return Ok(()) };
        if let Some(task) = serving.task.take() {
            task.abort();
        }
        let _withdrawn = self.queue.borrow_mut().withdraw(true, request);
        self.push(Outgoing::bare(FrameKind::Cancel, request));
        Ok(())
    }

    pub(super) fn serve<H: Handler>(
        self: &Rc<Self>,
        handler: &Rc<H>,
        request: Request,
        grant: Option<Grant>,
    ) -> Result<(), CloseReason> {
        let id = request.header.request.get();
        self.open_request(id)?;
        let (link, handler) = (self.clone(), handler.clone());
        let task = spawn(async move {
            let reply = handler.handle(link.peer.clone(), request).await;
            link.reply(id, reply);
        });
        self.serving.borrow_mut().insert(id, Serving { task: Some(task), grant });
        Ok(())
    }

    /// A request whose payload was thrown away.
    pub(super) fn refuse(&self, id: u64) -> Result<(), CloseReason> {
        self.open_request(id)?;
        self.serving.borrow_mut().insert(id, Serving { task: None, grant: None });
        self.reply(id, Reply::words(Status::Unavailable, "every buffer was in use for a second"));
        Ok(())
    }

    fn open_request(&self, id: u64) -> Result<(), CloseReason> {
        let serving = self.serving.borrow();
        if serving.contains_key(&id) {
            return Err(Malformed::new("request id in use").into());
        }
        if serving.len() >= REQUESTS_IN_FLIGHT_MAX {
            return Err(Malformed::new("more requests in flight than allowed").into());
        }
        Ok(())
    }

    fn reply(&self, id: u64, reply: Reply) {
        {
            let mut serving = self.serving.borrow_mut();
            let Some(entry) = serving.get_mut(&id) else { return };
            entry.task = None;
            entry.grant = None;
        }
        let reply = match check_lengths(&reply.body, reply.payload.as_ref()) {
            Ok(()) => reply,
            Err(error) => {
                tracing::error!(%error, "an answer of this node does not fit into a frame; refused instead");
                Reply::words(Status::Unavailable, "the answer does not fit into a frame")
            }
        };
        let header = FrameHeader {
            status: (reply.status as u16).into(),
            address: reply.address,
            layout: reply.layout.into(),
            ..FrameHeader::new(FrameKind::Answer, id)
        };
        self.push(Outgoing { header, body: reply.body, payload: reply.payload });
    }
}

/// What the writer needs.
impl Link {
    fn push(&self, frame: Outgoing) {
        if !self.is_closed() {
            self.queue.borrow_mut().push(frame);
            self.wake.notify_one();
        }
    }

    pub(super) fn pop_small(&self) -> Option<Outgoing> {
        self.queue.borrow_mut().pop_small()
    }

    pub(super) fn pop_bulk(&self) -> Option<Outgoing> {
        self.queue.borrow_mut().pop_bulk()
    }

    pub(super) fn pop_last(&self) -> Option<(Outgoing, bool)> {
        self.queue.borrow_mut().pop_last()
    }

    /// From here on the answer cannot be cancelled, and the peer may use its place for another request.
    pub(super) fn answer_leaves(&self, request: u64) {
        self.serving.borrow_mut().remove(&request);
    }

    pub(super) fn request_leaves(&self, request: u64) {
        if let Some(asked) = self.asked.borrow_mut().get_mut(&request) {
            asked.patience.leaves();
        }
    }

    pub(super) fn departs(&self, has_payload: bool) {
        let mut movement = self.movement.borrow_mut();
        movement.leaving = true;
        movement.payloads += u64::from(has_payload);
    }

    pub(super) fn departed(&self, now: Instant, had_payload: bool, requests: &[u64]) {
        let mut movement = self.movement.borrow_mut();
        movement.leaving = false;
        if had_payload {
            movement.last = now;
        }
        self.liveness.borrow_mut().sent(now);
        let mut asked = self.asked.borrow_mut();
        for request in requests {
            if let Some(asked) = asked.get_mut(request) {
                asked.patience.left(now, &movement);
            }
        }
    }

    pub(super) fn said_goodbye(&self) -> CloseReason {
        CloseReason::Here(self.closing.borrow().clone().unwrap_or_default())
    }
}

/// Life and death.
impl Link {
    pub(super) fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    pub(super) fn reason(&self) -> Option<CloseReason> {
        self.closed.borrow().clone()
    }

    /// Waits for the first frame of the peer.
    async fn accepted(self: &Rc<Self>, address: SocketAddr) -> Result<(), DialError> {
        let deadline = Instant::now() + HANDSHAKE_MAX;
        loop {
            if let Some(reason) = self.reason() {
                return Err(DialError::Unwelcome { address, reason });
            }
            if self.proven.get() {
                return Ok(());
            }
            if timeout_at(deadline.into(), self.changed.notified()).await.is_err() {
                self.end(CloseReason::Silent(HANDSHAKE_MAX));
            }
        }
    }

    /// Ends the connection; only the first reason counts.
    pub(super) fn end(self: &Rc<Self>, reason: CloseReason) {
        if self.is_closed() {
            return;
        }
        tracing::debug!(peer = %self.peer.address, %reason, "connection ends");
        *self.closed.borrow_mut() = Some(reason.clone());
        // Everything is taken out first: what is dropped here may look at the connection again.
        let asked = std::mem::take(&mut *self.asked.borrow_mut());
        let serving = std::mem::take(&mut *self.serving.borrow_mut());
        let queue = std::mem::take(&mut *self.queue.borrow_mut());
        for Asked { tell, patience, allowed, .. } in asked.into_values() {
            let error = match &reason {
                CloseReason::Stalled(_) if patience.is_moving() => RequestError::Stalled { patience: allowed },
                reason => RequestError::Closed { reason: reason.clone() },
            };
            if let Some(tell) = tell {
                let _ = tell.send(Err(error));
            }
        }
        for task in serving.into_values().filter_map(|serving| serving.task) {
            task.abort();
        }
        drop(queue);
        self.places.close();
        self.wake.notify_one();
        self.changed.notify_waiters();
        let stream = self.stream.clone();
        spawn(async move { stream.shutdown().await });
    }
}
