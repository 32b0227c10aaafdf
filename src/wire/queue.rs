//! Which frame leaves next.
//!
//! - Frames without a payload go first, in their order: an answer of 80 bytes does not wait behind 16 MiB.
//! - Then one frame with a payload, if there is credit for it; then small frames again. Answers and requests with
//!   payloads take turns, each kind in its order: an answer holds a buffer until it has left, and must not hold it for
//!   as long as our own requests keep coming.
//! - A keepalive leaves only when nothing else does; a goodbye comes last of all small frames, and nothing after it.
//!
//! Bounded by the requests in flight: at most one frame for each request of ours and each of theirs, and a cancel.

use std::collections::VecDeque;

use super::PayloadSource;
use super::flow::SendCredit;
use crate::format::frame::{FrameHeader, FrameKind};

pub(super) struct Outgoing {
    pub(super) header: FrameHeader,
    pub(super) body: Vec<u8>,
    pub(super) payload: Option<PayloadSource>,
}

impl Outgoing {
    pub(super) fn bare(kind: FrameKind, request: u64) -> Self {
        Self { header: FrameHeader::new(kind, request), body: Vec::new(), payload: None }
    }

    fn is(&self, kind_is_answer: bool, request: u64) -> bool {
        self.header.request.get() == request && (self.header.kind == FrameKind::Answer as u8) == kind_is_answer
    }
}

#[derive(Default)]
pub(super) struct Queue {
    small: VecDeque<Outgoing>,
    answers: VecDeque<Outgoing>,
    requests: VecDeque<Outgoing>,
    /// The last payload that left was an answer's.
    answered_last: bool,
    keepalive: bool,
    goodbye: Option<String>,
    pub(super) credit: SendCredit,
}

impl Queue {
    pub(super) fn push(&mut self, frame: Outgoing) {
        let lane = match (&frame.payload, frame.header.kind == FrameKind::Answer as u8) {
            (None, _) => &mut self.small,
            (Some(_), true) => &mut self.answers,
            (Some(_), false) => &mut self.requests,
        };
        lane.push_back(frame);
    }

    pub(super) fn want_keepalive(&mut self) {
        self.keepalive = true;
    }

    pub(super) fn want_goodbye(&mut self, words: &str) {
        self.goodbye.get_or_insert_with(|| words.to_owned());
    }

    /// The next frame without a payload, except keepalive and goodbye.
    pub(super) fn pop_small(&mut self) -> Option<Outgoing> {
        let frame = self.small.pop_front()?;
        self.keepalive = false;
        Some(frame)
    }

    /// The next frame with a payload, if there is credit, which it spends.
    pub(super) fn pop_bulk(&mut self) -> Option<Outgoing> {
        let is_empty = self.answers.is_empty() && self.requests.is_empty();
        if self.goodbye.is_some() || is_empty || !self.credit.spend() {
            return None;
        }
        self.keepalive = false;
        self.answered_last = self.requests.is_empty() || !(self.answered_last || self.answers.is_empty());
        if self.answered_last { self.answers.pop_front() } else { self.requests.pop_front() }
    }

    /// What leaves when there is nothing else to say; `true` with a goodbye, after which nothing may follow.
    pub(super) fn pop_last(&mut self) -> Option<(Outgoing, bool)> {
        if let Some(words) = self.goodbye.take() {
            return Some((Outgoing { body: words.into_bytes(), ..Outgoing::bare(FrameKind::Goodbye, 0) }, true));
        }
        std::mem::take(&mut self.keepalive).then(|| (Outgoing::bare(FrameKind::Keepalive, 0), false))
    }

    /// Takes back a frame that has not begun to leave: our request, or our answer to one.
    pub(super) fn withdraw(&mut self, is_answer: bool, request: u64) -> Option<Outgoing> {
        [&mut self.small, &mut self.answers, &mut self.requests].into_iter().find_map(|lane| {
            let at = lane
                .iter()
                .position(|frame| frame.header.kind != FrameKind::Cancel as u8 && frame.is(is_answer, request))?;
            lane.remove(at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PAYLOAD_CREDIT;

    fn bulk(request: u64) -> Outgoing {
        Outgoing { payload: Some(PayloadSource::Bytes(vec![1])), ..Outgoing::bare(FrameKind::Store, request) }
    }

    fn ids(next: impl FnMut() -> Option<Outgoing>) -> Vec<u64> {
        std::iter::from_fn(next).map(|frame| frame.header.request.get()).collect()
    }

    #[test]
    fn small_frames_pass_payloads_and_each_lane_keeps_its_order() {
        let mut queue = Queue::default();
        for request in [1, 3, 5] {
            queue.push(bulk(request));
            queue.push(Outgoing::bare(FrameKind::Fetch, request + 10));
        }
        assert_eq!(ids(|| queue.pop_small()), [11, 13, 15]);
        assert_eq!(ids(|| queue.pop_bulk()), [1, 3, 5]);
    }

    #[test]
    fn answers_and_requests_with_payloads_take_turns() {
        let mut queue = Queue::default();
        for request in [1, 3, 5, 7] {
            queue.push(bulk(request));
        }
        for request in [2, 4] {
            queue.push(Outgoing { header: FrameHeader::new(FrameKind::Answer, request), ..bulk(request) });
        }
        assert_eq!(ids(|| queue.pop_bulk()), [2, 1, 4, 3, 5, 7]);
    }

    #[test]
    fn payloads_wait_for_credit() {
        let mut queue = Queue::default();
        (0..u64::from(PAYLOAD_CREDIT) + 2).for_each(|request| queue.push(bulk(request)));
        assert_eq!(ids(|| queue.pop_bulk()).len(), PAYLOAD_CREDIT as usize);
        queue.credit.grant(1).unwrap();
        assert_eq!(ids(|| queue.pop_bulk()), [u64::from(PAYLOAD_CREDIT)]);
    }

    #[test]
    fn a_keepalive_is_made_superfluous_by_any_frame() {
        let mut queue = Queue::default();
        queue.want_keepalive();
        queue.push(Outgoing::bare(FrameKind::Fetch, 1));
        assert!(queue.pop_small().is_some());
        assert!(queue.pop_last().is_none());
        queue.want_keepalive();
        assert!(matches!(queue.pop_last(), Some((_, false))));
        assert!(queue.pop_last().is_none());
    }

    #[test]
    fn no_payload_leaves_once_goodbye_is_wanted() {
        let mut queue = Queue::default();
        queue.push(bulk(1));
        queue.want_goodbye("first");
        queue.want_goodbye("second");
        assert!(queue.pop_bulk().is_none());
        let (frame, is_last) = queue.pop_last().unwrap();
        assert!(is_last && frame.body == b"first");
    }

    #[test]
    fn what_has_not_left_can_be_withdrawn_and_nothing_else() {
        let mut queue = Queue::default();
        queue.push(bulk(1));
        queue.push(Outgoing::bare(FrameKind::Cancel, 3));
        queue.push(Outgoing::bare(FrameKind::Answer, 2));
        assert!(queue.withdraw(false, 2).is_none());
        assert!(queue.withdraw(false, 3).is_none(), "a cancel is not the request");
        assert!(queue.withdraw(true, 2).is_some());
        assert!(queue.withdraw(false, 1).is_some());
        assert!(queue.withdraw(false, 1).is_none());
    }
}
