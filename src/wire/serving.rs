//! Requests of theirs.
//!
//! | state | held | ends by |
//! | --- | --- | --- |
//! | served | entry in `serving`, task, the credit of its payload | the reply; their cancel (the task is aborted) |
//! | answered | entry, answer in the queue | its leaving; their cancel (the answer is withdrawn) |
//! | cancelled | entry, cancel in the queue | its leaving |
//!
//! A cancel that finds no entry was crossed by the answer and means nothing.

use std::rc::Rc;

use super::asking::check_lengths;
use super::link::{Grant, Link};
use super::queue::Outgoing;
use super::{CloseReason, Handler, Reply, Request};
use crate::format::Malformed;
use crate::format::frame::{FrameHeader, FrameKind, Status};
use crate::io::{JoinHandle, spawn};
use crate::limits::REQUESTS_IN_FLIGHT_MAX;

#[derive(Default)]
pub(super) struct Serving {
    pub(super) task: Option<JoinHandle>,
    /// Its cancel waits to leave.
    cancelled: bool,
    /// Given back when the handler is done.
    grant: Option<Grant>,
}

impl Link {
    pub(super) fn serve<H: Handler>(
        self: &Rc<Self>,
        handler: &Rc<H>,
        request: Request,
        grant: Option<Grant>,
    ) -> Result<(), CloseReason> {
        if self.is_closed() {
            // Read ahead of the end; an entry made now would never leave.
            return Ok(());
        }
        let id = request.header.request.get();
        self.open_request(id)?;
        if self.serving.borrow().len() >= handler.requests_max(&self.peer) {
            drop((request, grant));
            self.turn_away(id, "too many requests at once");
            return Ok(());
        }
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
        self.turn_away(id, "every buffer was in use for a second");
        Ok(())
    }

    fn turn_away(&self, id: u64, words: &str) {
        self.serving.borrow_mut().insert(id, Serving::default());
        self.reply(id, Reply::words(Status::Unavailable, words));
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
        let reply = if self.queue.borrow().has_room_for_answer(reply.body.len()) {
            reply
        } else {
            tracing::debug!(peer = ?self.peer.certificate.node_id, "too many answers wait to leave: one was refused");
            Reply::status(Status::Unavailable)
        };
        let header = FrameHeader {
            status: (reply.status as u16).into(),
            address: reply.address,
            layout: reply.layout.into(),
            ..FrameHeader::new(FrameKind::Answer, id)
        };
        self.push(Outgoing { header, body: reply.body, payload: reply.payload });
    }

    /// The peer has forgotten its request.
    pub(super) fn cancelled(&self, request: u64) {
        let serving = {
            let mut serving = self.serving.borrow_mut();
            let Some(entry) = serving.get_mut(&request).filter(|entry| !entry.cancelled) else { return };
            // The entry stays until our cancel has left: or who asks and cancels and never reads could fill our queue.
            std::mem::replace(entry, Serving { cancelled: true, ..Serving::default() })
        };
        if let Some(task) = &serving.task {
            task.abort();
        }
        let _withdrawn = self.queue.borrow_mut().withdraw(true, request);
        self.push(Outgoing::bare(FrameKind::Cancel, request));
    }

    /// Our last word about a request of theirs: from here on the peer may use its place for another.
    pub(super) fn last_word_leaves(&self, request: u64) {
        self.serving.borrow_mut().remove(&request);
    }
}
