//! Requests of ours.
//!
//! | state | held | ends by |
//! | --- | --- | --- |
//! | waiting for a place | nothing | a place; its patience |
//! | queued | place, entry in `asked`, frame in the queue | its leaving; withdrawn when the asker goes or loses patience |
//! | sent | place, entry | the answer; a cancel from the peer; its patience |
//! | cancelled | place, entry without an asker | the peer's cancel, or the answer that crossed ours |
//!
//! An answer or a cancel of the peer that finds no entry is a breach.

use std::collections::hash_map::Entry;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout_at;

use super::link::{Grant, Link};
use super::liveness::Patience;
use super::queue::Outgoing;
use super::{Answer, CloseReason, Payload, PayloadSource, RequestError};
use crate::format::frame::{FrameHeader, FrameKind, Status};
use crate::format::{Address, Malformed};
use crate::limits::{CHUNK_BYTES_MAX, SEALED_BODY_BYTES_MAX, SOCKET_WAIT};

/// What an asker is told.
pub(super) struct Delivery {
    pub(super) frame: (FrameHeader, Vec<u8>),
    pub(super) payload: Option<(Payload, Grant)>,
    /// There was a payload, but no buffer for it.
    pub(super) refused: bool,
}

pub(super) type Told = oneshot::Receiver<Result<Delivery, RequestError>>;

pub(super) struct Asked {
    pub(super) tell: Option<oneshot::Sender<Result<Delivery, RequestError>>>,
    pub(super) patience: Patience,
    pub(super) allowed: Duration,
    /// Whether the answer may bring one.
    pub(super) takes_payload: bool,
    _place: OwnedSemaphorePermit,
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

impl Link {
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
        let asked =
            Asked { tell: Some(tell), patience, allowed, takes_payload: !kind.is_of_membership(), _place: place };
        self.asked.borrow_mut().insert(request, asked);
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

    pub(super) fn deliver(&self, delivery: Delivery) -> Result<(), CloseReason> {
        let asked = self.answered(delivery.frame.0.request.get())?;
        if let Some(tell) = asked.tell {
            // An asker that left this very moment throws it away.
            let _ = tell.send(Ok(delivery));
        }
        Ok(())
    }

    /// The peer's last word about a request of ours: there will be no answer.
    pub(super) fn dropped_by_peer(&self, request: u64) -> Result<(), CloseReason> {
        if let Some(tell) = self.answered(request)?.tell {
            let _ = tell.send(Err(RequestError::Cancelled));
        }
        Ok(())
    }

    pub(super) fn request_leaves(&self, request: u64) {
        if let Some(asked) = self.asked.borrow_mut().get_mut(&request) {
            asked.patience.leaves();
        }
    }
}
