//! Which frame leaves next.
//!
//! - Frames without a payload go first, in their order: an answer of 80 bytes does not wait behind 16 MiB.
//! - Then one frame with a payload, if there is credit for it; then small frames again. Answers and requests with
//!   payloads take turns, each kind in its order: an answer holds a buffer until it has left, and must not hold it for
//!   as long as our own requests keep coming.
//! - A keepalive leaves only when nothing else does; a goodbye comes last of all small frames, and nothing after it.
//!
//! An answer with a payload holds a buffer of ours, so it does not wait for credit for ever: where nothing has moved for
//! [`STALL_MAX`], all answers that wait lose their payload and say that it is unavailable, and so do those that come
//! before there is credit again.
//!
//! Bounded by the requests in flight: at most one frame for each request of ours and each of theirs, and a cancel. The bodies
//! of answers are bounded in bytes too, by whoever looks at [`Queue::has_room_for_answer`] before it pushes one.

use std::collections::VecDeque;
use std::time::Instant;

use super::PayloadSource;
use super::flow::SendCredit;
use crate::format::Address;
use crate::format::frame::{FrameHeader, FrameKind, Status};
use crate::limits::{ANSWER_BODIES_QUEUED_BYTES_MAX, STALL_MAX};

pub(super) struct Outgoing {
    pub(super) header: FrameHeader,
    pub(super) body: Vec<u8>,
    pub(super) payload: Option<PayloadSource>,
}

impl Outgoing {
    pub(super) fn bare(kind: FrameKind, request: u64) -> Self {
        Self { header: FrameHeader::new(kind, request), body: Vec::new(), payload: None }
    }

    /// An answer that says why its payload does not come.
    fn without_payload(self) -> Self {
        if self.payload.is_none() {
            return self;
        }
        let status = (Status::Unavailable as u16).into();
        let header = FrameHeader { status, address: Address::ZERO, ..self.header };
        Self { header, body: b"no credit came for its payload".to_vec(), payload: None }
    }

    fn is_answer(&self) -> bool {
        self.header.kind == FrameKind::Answer as u8
    }

    fn is(&self, kind_is_answer: bool, request: u64) -> bool {
        self.header.request.get() == request && self.is_answer() == kind_is_answer
    }

    /// What counts against the limit on the bodies of answers.
    fn answer_body_bytes(&self) -> usize {
        if self.is_answer() { self.body.len() } else { 0 }
    }
}

#[derive(Default)]
pub(super) struct Queue {
    small: VecDeque<Outgoing>,
    answers: VecDeque<Outgoing>,
    requests: VecDeque<Outgoing>,
    /// Bodies of the answers in all lanes together.
    answer_body_bytes: usize,
    /// The last payload that left was an answer's.
    answered_last: bool,
    keepalive: bool,
    goodbye: Option<String>,
    /// Since when an answer is known to wait for credit.
    starved_since: Option<Instant>,
    /// The peer has given no credit for too long.
    is_starved: bool,
    pub(super) credit: SendCredit,
}

impl Queue {
    pub(super) fn push(&mut self, frame: Outgoing) {
        let is_starved = self.is_starved && self.credit.available() == 0;
        let frame = if is_starved && frame.is_answer() { frame.without_payload() } else { frame };
        self.answer_body_bytes += frame.answer_body_bytes();
        let lane = match (&frame.payload, frame.is_answer()) {
            (None, _) => &mut self.small,
            (Some(_), true) => &mut self.answers,
            (Some(_), false) => &mut self.requests,
        };
        lane.push_back(frame);
    }

    /// Whether an answer with such a body may wait here too. An answer without a body always may.
    pub(super) fn has_room_for_answer(&self, body_bytes: usize) -> bool {
        body_bytes == 0 || self.answer_body_bytes + body_bytes <= ANSWER_BODIES_QUEUED_BYTES_MAX
    }

    /// Every frame that leaves the queue.
    fn taken(&mut self, frame: Outgoing) -> Outgoing {
        self.answer_body_bytes -= frame.answer_body_bytes();
        frame
    }

    /// Looks whether answers wait for credit for too long; `moved`: when something last moved on the connection. How many
    /// have given their payload up, and when to look again.
    pub(super) fn look_at_answers(&mut self, now: Instant, moved: Instant) -> (usize, Option<Instant>) {
        if self.answers.is_empty() || self.credit.available() > 0 {
            self.starved_since = None;
            self.is_starved &= self.credit.available() == 0;
            return (0, None);
        }
        let deadline = moved.max(*self.starved_since.get_or_insert(now)) + STALL_MAX;
        if now < deadline {
            return (0, Some(deadline));
        }
        self.is_starved = true;
        self.starved_since = None;
        let starved = std::mem::take(&mut self.answers);
        let count = starved.len();
        for frame in starved {
            let frame = self.taken(frame).without_payload();
            self.answer_body_bytes += frame.answer_body_bytes();
            self.small.push_back(frame);
        }
        (count, None)
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
        Some(self.taken(frame))
    }

    /// The next frame with a payload, if there is credit, which it spends.
    pub(super) fn pop_bulk(&mut self) -> Option<Outgoing> {
        let is_empty = self.answers.is_empty() && self.requests.is_empty();
        if self.goodbye.is_some() || is_empty || !self.credit.spend() {
            return None;
        }
        self.keepalive = false;
        self.answered_last = self.requests.is_empty() || !(self.answered_last || self.answers.is_empty());
        let frame = if self.answered_last { self.answers.pop_front() } else { self.requests.pop_front() }?;
        Some(self.taken(frame))
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
        let frame = [&mut self.small, &mut self.answers, &mut self.requests].into_iter().find_map(|lane| {
            let at = lane
                .iter()
                .position(|frame| frame.header.kind != FrameKind::Cancel as u8 && frame.is(is_answer, request))?;
            lane.remove(at)
        })?;
        Some(self.taken(frame))
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
    fn answers_that_get_no_credit_give_their_payload_up_and_those_that_do_keep_it() {
        let answer = |id| Outgoing { header: FrameHeader::new(FrameKind::Answer, id), ..bulk(id) };
        let mut queue = Queue::default();
        let start = Instant::now();
        (0..u64::from(PAYLOAD_CREDIT) + 3).for_each(|id| queue.push(answer(id)));
        queue.push(bulk(99));
        assert_eq!(queue.look_at_answers(start, start), (0, None), "there is credit");
        while queue.pop_bulk().is_some() {}
        assert_eq!(queue.look_at_answers(start, start), (0, Some(start + STALL_MAX)));
        // A payload or credit that moved in between is progress.
        let moved = start + STALL_MAX / 2;
        assert_eq!(queue.look_at_answers(start + STALL_MAX, moved), (0, Some(moved + STALL_MAX)));
        let (count, next) = queue.look_at_answers(moved + STALL_MAX, moved);
        assert!(count > 0 && next.is_none());
        let small: Vec<_> = std::iter::from_fn(|| queue.pop_small()).collect();
        assert_eq!(small.len(), count);
        assert!(small.iter().all(|frame| frame.payload.is_none()));
        assert!(small.iter().all(|frame| frame.header.status.get() == Status::Unavailable as u16));
        // Until credit comes, the next one does not even begin to wait.
        queue.push(answer(200));
        assert!(queue.pop_small().is_some_and(|frame| frame.payload.is_none()));
        queue.credit.grant(2).unwrap();
        queue.push(answer(201));
        let ids: Vec<_> = ids(|| queue.pop_bulk());
        assert!(ids.contains(&201), "{ids:?}");
    }

    #[test]
    fn bodies_of_answers_are_counted_until_they_leave_however_they_do() {
        let answer = |id, bytes, payload: bool| Outgoing {
            header: FrameHeader::new(FrameKind::Answer, id),
            body: vec![0; bytes],
            payload: payload.then(|| PayloadSource::Bytes(vec![1])),
        };
        let mut queue = Queue::default();
        let piece = ANSWER_BODIES_QUEUED_BYTES_MAX / 16;
        (0..14).for_each(|id| queue.push(answer(id, piece, false)));
        queue.push(answer(14, piece, true));
        queue.push(answer(15, piece, true));
        queue.push(Outgoing { body: vec![0; piece], ..Outgoing::bare(FrameKind::Fetch, 1) });
        assert!(queue.has_room_for_answer(0) && !queue.has_room_for_answer(1));
        assert!(queue.withdraw(true, 3).is_some());
        assert!(queue.has_room_for_answer(piece) && !queue.has_room_for_answer(piece + 1));
        assert!(queue.pop_small().is_some());
        assert!(queue.pop_bulk().is_some_and(|frame| frame.header.request.get() == 14));
        assert!(queue.has_room_for_answer(3 * piece) && !queue.has_room_for_answer(3 * piece + 1));
        while queue.credit.spend() {}
        let start = Instant::now();
        queue.look_at_answers(start, start);
        assert_eq!(queue.look_at_answers(start + STALL_MAX, start).0, 1, "it gives its own body up too");
        assert!(queue.has_room_for_answer(4 * piece - 100));
        while queue.pop_small().is_some() {}
        assert_eq!(queue.answer_body_bytes, 0);
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
