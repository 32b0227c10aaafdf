//! What the tasks of one connection share, and how it all ends. Its requests: [`super::asking`], [`super::serving`].
//!
//! # The end
//! [`Link::end`] runs once, with the first reason: every asker is told, every task of a handler aborted, the queue
//! dropped, the socket shut down; that wakes the reader, whose last act is [`Handler::closed`](super::Handler::closed).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout_at;

use super::asking::Asked;
use super::flow::ReceiveWindow;
use super::handshake::DialError;
use super::liveness::{Liveness, Movement, Verdict};
use super::queue::{Outgoing, Queue};
use super::serving::Serving;
use super::{CloseReason, PeerInfo, RequestError, Violation};
use crate::format::Malformed;
use crate::format::frame::{FrameHeader, FrameKind};
use crate::io::{BufferPool, TcpStream, spawn};
use crate::limits::{HANDSHAKE_MAX, REQUESTS_IN_FLIGHT_MAX, STALL_MAX};

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
    pub(super) queue: RefCell<Queue>,
    pub(super) asked: RefCell<HashMap<u64, Asked>>,
    pub(super) serving: RefCell<HashMap<u64, Serving>>,
    pub(super) places: Arc<Semaphore>,
    pub(super) next_request: Cell<u64>,
    liveness: RefCell<Liveness>,
    pub(super) movement: RefCell<Movement>,
    /// A goodbye is on its way, with this reason.
    pub(super) leaving: RefCell<Option<CloseReason>>,
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
        if !entry.takes_payload {
            return Err(Malformed::new("payload in an answer that has none").into());
        }
        entry.patience.arrives();
        Ok((grant, entry.tell.is_some()))
    }

    /// Whose request an id is.
    pub(super) fn is_ours(&self, request: u64) -> bool {
        request % 2 == self.next_request.get() % 2
    }

    pub(super) fn payload_ended(&self) {
        let mut movement = self.movement.borrow_mut();
        movement.arriving = false;
        movement.last = Instant::now();
    }
}

/// What the writer needs.
impl Link {
    pub(super) fn push(&self, frame: Outgoing) {
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

    pub(super) fn heard_at(&self) -> Instant {
        self.liveness.borrow().heard_at()
    }

    pub(super) fn look(&self, now: Instant) -> Verdict {
        self.liveness.borrow_mut().look(now, &self.movement.borrow())
    }

    /// Takes the buffers back of answers that the peer gives no credit for; when to look again.
    pub(super) fn look_at_answers(&self, now: Instant) -> Option<Instant> {
        let moved = {
            let movement = self.movement.borrow();
            if movement.leaving { now } else { movement.last }
        };
        let (count, next) = self.queue.borrow_mut().look_at_answers(now, moved);
        if count > 0 {
            let peer = &self.peer;
            tracing::warn!(peer = ?peer.certificate.node_id, address = %peer.address, count, "a peer gives no credit: its answers were taken back");
            self.wake.notify_one();
        }
        next
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
