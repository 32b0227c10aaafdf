//! What the tasks of one connection share: requests under way in both directions, and how it all ends.
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
//! | served | entry in `serving`, task, the credit of its payload | the reply; their cancel |
//! | answered | entry, answer in the queue | its leaving; their cancel (the answer is withdrawn) |
//! | cancelled | entry, cancel in the queue | its leaving |
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

use super::flow::ReceiveWindow;
use super::handshake::DialError;
use super::liveness::{Liveness, Movement, Patience, Verdict};
use super::queue::{Outgoing, Queue};
use super::{Answer, CloseReason, Handler, Payload, PayloadSource, PeerInfo, Reply, Request, RequestError, Violation};
use crate::format::frame::{FrameHeader, FrameKind, Status};
use crate::format::{Address, Malformed};
use crate::io::{BufferPool, JoinHandle, TcpStream, spawn};
use crate::limits::{
    CHUNK_BYTES_MAX, HANDSHAKE_MAX, REQUESTS_IN_FLIGHT_MAX, SEALED_BODY_BYTES_MAX, SOCKET_WAIT, STALL_MAX,
};

/// What an asker is told.
pub(super) struct Delivery {
    pub(super) frame: (FrameHeader, Vec<u8>),
    pub(super) payload: Option<(Payload, Grant)>,
    /// There was a payload, but no buffer for it.
    pub(super) refused: bool,
}

pub(super) type Told = oneshot::Receiver<Result<Delivery, RequestError>>;

struct Asked {
    tell: Option<oneshot::Sender<Result<Delivery, RequestError>>>,
    patience: Patience,
    allowed: Duration,
    _place: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Serving {
    task: Option<JoinHandle>,
    /// Its cancel waits to leave.
    cancelled: bool,
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
    /// A goodbye is on its way, with this reason.
    leaving: RefCell<Option<CloseReason>>,
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

pub(super) fn check_lengths(body: &[u8], payload: Option<&PayloadSource>) -> Result<(), RequestError> {
    let payload_bytes = payload.map(PayloadSource::len);
    if body.len() <= SEALED_BODY_BYTES_MAX && payload_bytes.is_none_or(|bytes| (1..=CHUNK_BYTES_MAX).contains(&bytes)) {
        return Ok(());
    }
    Err(RequestError::TooLong { body_bytes: body.len(), payload_bytes })
}

impl Delivery {
    /// The asker takes it: from here on the credit is the peer's again.
    pub(super) fn into_answer(self) -> Result<Answer, RequestError> {
        if self.refused {
            return Err(RequestError::NoBuffer);
        }
        let (header, body) = self.frame;
        // Checked with the header.
        let status = Status::parse(header.status.get()).unwrap_or(Status::Malformed);
        Ok(Answer { status, header, body, payload: self.payload.map(|(payload, _grant)| payload) })
    }
}

/// What askers need.
impl Link {
    pub(super) fn new(stream: TcpStream, peer: PeerInfo, pool: BufferPool) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            stream,
            next_request: Cell::new(if peer.dialled { 1 } else { 2 }),
            peer: Rc::new(peer),
            pool,
            window: RefCell::default(),
            wake: Notify::new(),
            queue: RefCell::default(),
            asked: RefCell::default(),
            serving: RefCell::default(),
            places: Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT_MAX)),
            liveness: RefCell::new(Liveness::new(now)),
            movement: RefCell::new(Movement::new(now)),
            leaving: RefCell::new(None),
            closed: RefCell::new(None),
            proven: Cell::new(false),
            announced: Cell::new(false),
            changed: Notify::new(),
        })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.asked.borrow().len()
    }

    /// Queues a request as soon as there is a place for it.
    pub(super) async fn ask(
        &self,
        kind: FrameKind,
        (address, layout): (Address, u32),
        body: Vec<u8>,
        payload: Option<PayloadSource>,
        allowed: Duration,
    ) -> Result<(u64, Told), RequestError> {
        let place = self.place(allowed).await?;
        self.check_open()?;
        let request = self.next_request.get();
        self.next_request.set(request + 2);
        let (tell, told) = oneshot::channel();
        let patience = Patience::new(allowed, Instant::now(), &self.movement.borrow());
        self.asked.borrow_mut().insert(request, Asked { tell: Some(tell), patience, allowed, _place: place });
        let header = FrameHeader { address, layout: layout.into(), ..FrameHeader::new(kind, request) };
        self.push(Outgoing { header, body, payload });
        Ok((request, told))
    }

    fn check_open(&self) -> Result<(), RequestError> {
        match self.reason().or_else(|| self.leaving.borrow().clone()) {
            Some(reason) => Err(RequestError::Closed { reason }),
            None => Ok(()),
        }
    }

    /// A place among the requests in flight. Answers that come in are progress.
    async fn place(&self, patience: Duration) -> Result<OwnedSemaphorePermit, RequestError> {
        self.check_open()?;
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let clock = Patience::new(patience, Instant::now(), &self.movement.borrow());
        let mut waiting = pin!(self.places.clone().acquire_owned());
        loop {
            match timeout_at(self.next_look(&clock).into(), waiting.as_mut()).await {
                Ok(Ok(place)) => return Ok(place),
                Ok(Err(_)) => self.check_open()?,
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

    pub(super) async fn wait_for(
        &self,
        request: u64,
        mut told: Told,
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
    pub(super) fn forget(&self, request: u64) {
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
        let serving = {
            let mut serving = self.serving.borrow_mut();
            let Some(entry) = serving.get_mut(&request).filter(|entry| !entry.cancelled) else { return Ok(()) };
            // The entry stays until our cancel has left: or who asks and cancels and never reads could fill our queue.
            std::mem::replace(entry, Serving { cancelled: true, ..Serving::default() })
        };
        if let Some(task) = &serving.task {
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
        self.serving.borrow_mut().insert(id, Serving { task: Some(task), grant, cancelled: false });
        Ok(())
    }

    /// A request whose payload was thrown away.
    pub(super) fn refuse(&self, id: u64) -> Result<(), CloseReason> {
        self.open_request(id)?;
        self.serving.borrow_mut().insert(id, Serving::default());
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
            let Some(entry) = serving.get_mut(&id).filter(|entry| !entry.cancelled) else { return };
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

    /// Our last word about a request of theirs: from here on the peer may use its place for another.
    pub(super) fn last_word_leaves(&self, request: u64) {
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

    /// Why we said goodbye.
    pub(super) fn said_goodbye(&self) -> CloseReason {
        self.leaving.borrow().clone().unwrap_or(CloseReason::SessionOver)
    }
}

/// Life and death.
impl Link {
    pub(super) fn is_open(&self) -> bool {
        !self.is_closed() && self.leaving.borrow().is_none()
    }

    pub(super) fn look(&self, now: Instant) -> Verdict {
        self.liveness.borrow_mut().look(now, &self.movement.borrow())
    }

    pub(super) fn want_keepalive(&self) {
        // Counted as sent, or the next look would ask for another while this one waits.
        self.liveness.borrow_mut().sent(Instant::now());
        self.queue.borrow_mut().want_keepalive();
        self.wake.notify_one();
    }

    /// Waits for the first frame or the end, at most until `deadline`.
    pub(super) async fn change_or(&self, deadline: Instant) {
        let _ = timeout_at(deadline.into(), self.changed.notified()).await;
    }

    /// No new requests; a goodbye behind what is small and waits; then the end.
    pub(super) fn begin_to_leave(&self, reason: CloseReason) {
        let words = match &reason {
            CloseReason::Here(words) => words.clone(),
            reason => reason.to_string(),
        };
        self.leaving.borrow_mut().get_or_insert(reason);
        self.queue.borrow_mut().want_goodbye(&words);
        self.wake.notify_one();
    }

    /// Says goodbye, and waits until it is said or the peer does not take it.
    pub(super) async fn leave(self: &Rc<Self>, reason: CloseReason) {
        self.begin_to_leave(reason);
        let deadline = Instant::now() + STALL_MAX;
        while !self.is_closed() {
            self.change_or(deadline).await;
            if Instant::now() >= deadline {
                self.end(self.said_goodbye());
            }
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    pub(super) fn reason(&self) -> Option<CloseReason> {
        self.closed.borrow().clone()
    }

    /// Waits for the first frame of the peer.
    pub(super) async fn accepted(self: &Rc<Self>, address: SocketAddr) -> Result<(), DialError> {
        let deadline = Instant::now() + HANDSHAKE_MAX;
        loop {
            if let Some(reason) = self.reason() {
                return Err(DialError::Unwelcome { address, reason });
            }
            if self.proven.get() {
                return Ok(());
            }
            self.change_or(deadline).await;
            if Instant::now() >= deadline {
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
