//! When a peer counts as gone, when it needs a sign of life from us, and when a request has waited long enough.
//!
//! Pure: events and a clock value go in, decisions come out.
//!
//! A connection ([`Liveness`]):
//! - nothing sent for [`KEEPALIVE_INTERVAL`]: send a keepalive;
//! - not a byte received for [`KEEPALIVE_MISSED_MAX`]: the peer is gone. A payload that moves is a sign of life, and
//!   one that does not is the reader's business, which stops waiting earlier ([`STALL_MAX`](crate::limits::STALL_MAX));
//! - older than [`SESSION_AGE_MAX`]: start over.
//! - A wake-up that comes late means that this process stood still, not the peer: silence is counted anew.
//!
//! A request ([`Patience`]), given `patience` by its asker:
//!
//! | the request | its deadline |
//! | --- | --- |
//! | is being written, or its answer's payload is arriving | none: the writer and the reader watch bytes themselves |
//! | waits (for a place, for credit, for its answer) while payloads move on the connection | none: it may be behind them |
//! | the same, but [`OVERTAKEN_PAYLOADS_MAX`] payloads went past it | `patience` after its own last event |
//! | waits, and nothing moves | `patience` after its own last event or the last payload, whichever is later |
//!
//! So a slow link cuts nothing that moves, and a request that was forgotten cannot hide behind a busy one for ever.

use std::time::{Duration, Instant};

use crate::limits::{KEEPALIVE_INTERVAL, KEEPALIVE_MISSED_MAX, OVERTAKEN_PAYLOADS_MAX, SESSION_AGE_MAX};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do until the given time.
    Wait(Instant),
    SendKeepalive,
    /// Not a byte for this long.
    Silent(Duration),
    /// The session has reached its age.
    Old,
}

#[derive(Debug)]
pub struct Liveness {
    started: Instant,
    sent: Instant,
    received: Instant,
    /// When the next look was promised, to notice that it came late.
    expected: Instant,
}

impl Liveness {
    pub fn new(now: Instant) -> Self {
        Self { started: now, sent: now, received: now, expected: now }
    }

    pub fn sent(&mut self, now: Instant) {
        self.sent = now;
    }

    pub fn received(&mut self, now: Instant) {
        self.received = now;
    }

    /// When a byte last came, as far as is known.
    pub fn heard_at(&self) -> Instant {
        self.received
    }

    pub fn look(&mut self, now: Instant, movement: &Movement) -> Verdict {
        if movement.arriving || now > self.expected + KEEPALIVE_INTERVAL {
            self.received = now;
        }
        self.expected = now;
        let silent = now.saturating_duration_since(self.received);
        if silent >= KEEPALIVE_MISSED_MAX {
            return Verdict::Silent(silent);
        }
        if now.saturating_duration_since(self.started) >= SESSION_AGE_MAX {
            return Verdict::Old;
        }
        // A frame that is leaving is a sign of life; if it got stuck, another behind it would not help.
        let quiet = now.saturating_duration_since(self.sent);
        if quiet >= KEEPALIVE_INTERVAL && !movement.leaving {
            return Verdict::SendKeepalive;
        }
        let keepalive = if movement.leaving { now + KEEPALIVE_INTERVAL } else { self.sent + KEEPALIVE_INTERVAL };
        self.expected = keepalive.min(self.received + KEEPALIVE_MISSED_MAX).min(self.started + SESSION_AGE_MAX);
        Verdict::Wait(self.expected)
    }
}

/// What moves on a connection, whosever it is.
#[derive(Debug)]
pub struct Movement {
    /// A payload is arriving now.
    pub arriving: bool,
    /// A frame is being written now.
    pub leaving: bool,
    /// When a payload last ended or credit came back.
    pub last: Instant,
    /// Payloads begun so far, in both directions.
    pub payloads: u64,
}

impl Movement {
    pub fn new(now: Instant) -> Self {
        Self { arriving: false, leaving: false, last: now, payloads: 0 }
    }
}

/// One request's clock.
#[derive(Debug)]
pub struct Patience {
    patience: Duration,
    since: Instant,
    payloads_at: u64,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Leaving,
    Arriving,
}

impl Patience {
    pub fn new(patience: Duration, now: Instant, movement: &Movement) -> Self {
        Self { patience, since: now, payloads_at: movement.payloads, stage: Stage::Waiting }
    }

    /// Its frame begins to leave.
    pub fn leaves(&mut self) {
        self.stage = Stage::Leaving;
    }

    /// Its answer's header is here, the payload follows. This may be noticed before the request's own end of sending.
    pub fn arrives(&mut self) {
        self.stage = Stage::Arriving;
    }

    /// Its frame has left.
    pub fn left(&mut self, now: Instant, movement: &Movement) {
        if self.stage != Stage::Leaving {
            return;
        }
        self.stage = Stage::Waiting;
        self.since = now;
        self.payloads_at = movement.payloads;
    }

    pub fn is_moving(&self) -> bool {
        self.stage != Stage::Waiting
    }

    pub fn deadline(&self, movement: &Movement) -> Option<Instant> {
        if self.is_moving() {
            return None;
        }
        if movement.payloads.saturating_sub(self.payloads_at) > OVERTAKEN_PAYLOADS_MAX {
            return Some(self.since + self.patience);
        }
        if movement.arriving || movement.leaving {
            return None;
        }
        Some(self.since.max(movement.last) + self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::STALL_MAX;

    const MS: Duration = Duration::from_millis(1);

    fn run(liveness: &mut Liveness, mut now: Instant, until: Instant, peer_lives: bool) -> (Instant, Vec<Verdict>) {
        let mut seen = Vec::new();
        let movement = Movement::new(now);
        while now < until {
            if peer_lives {
                liveness.received(now);
            }
            match liveness.look(now, &movement) {
                Verdict::Wait(next) => {
                    assert!(next > now, "a timer that fires at once would spin");
                    now = next;
                }
                Verdict::SendKeepalive => {
                    seen.push(Verdict::SendKeepalive);
                    liveness.sent(now);
                }
                end => {
                    seen.push(end);
                    break;
                }
            }
        }
        (now, seen)
    }

    #[test]
    fn an_idle_connection_sends_one_keepalive_an_interval() {
        let start = Instant::now();
        let (_, seen) = run(&mut Liveness::new(start), start, start + 60 * KEEPALIVE_INTERVAL, true);
        assert_eq!(seen, vec![Verdict::SendKeepalive; 59]);
    }

    #[test]
    fn a_silent_peer_is_gone_after_exactly_the_limit() {
        let start = Instant::now();
        let (end, seen) = run(&mut Liveness::new(start), start, start + Duration::from_secs(60), false);
        assert_eq!(seen.last(), Some(&Verdict::Silent(KEEPALIVE_MISSED_MAX)));
        assert_eq!(end, start + KEEPALIVE_MISSED_MAX);
    }

    #[test]
    fn a_payload_that_arrives_is_life_however_long_it_takes() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let movement = Movement { arriving: true, ..Movement::new(start) };
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            liveness.sent(now);
            assert!(matches!(liveness.look(now, &movement), Verdict::Wait(_)));
        }
    }

    #[test]
    fn a_pause_of_this_process_is_not_held_against_the_peer() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let Verdict::Wait(next) = liveness.look(start, &Movement::new(start)) else { panic!("nothing is due yet") };
        let late = next + Duration::from_secs(30);
        assert_eq!(liveness.look(late, &Movement::new(start)), Verdict::SendKeepalive);
    }

    #[test]
    fn a_session_ends_at_its_age() {
        let start = Instant::now();
        let (end, seen) = run(&mut Liveness::new(start), start, start + 2 * SESSION_AGE_MAX, true);
        assert_eq!(seen.last(), Some(&Verdict::Old));
        assert_eq!(end, start + SESSION_AGE_MAX);
    }

    #[test]
    fn a_request_without_an_answer_stalls_after_its_patience() {
        let start = Instant::now();
        let movement = Movement::new(start);
        let mut request = Patience::new(STALL_MAX, start, &movement);
        assert_eq!(request.deadline(&movement), Some(start + STALL_MAX));
        request.leaves();
        assert_eq!(request.deadline(&movement), None);
        request.left(start + 500 * MS, &movement);
        assert_eq!(request.deadline(&movement), Some(start + 500 * MS + STALL_MAX));
        request.arrives();
        request.left(start + 600 * MS, &movement);
        assert_eq!(request.deadline(&movement), None, "the end of sending was noticed late");
    }

    #[test]
    fn waiting_behind_payloads_that_move_is_no_stall_until_overtaken_too_often() {
        let start = Instant::now();
        let mut movement = Movement::new(start);
        let request = Patience::new(STALL_MAX, start, &movement);
        for count in 1..=OVERTAKEN_PAYLOADS_MAX {
            let now = start + Duration::from_secs(10 * count);
            movement = Movement { arriving: true, payloads: count, ..movement };
            assert_eq!(request.deadline(&movement), None);
            movement = Movement { arriving: false, last: now, ..movement };
            assert_eq!(request.deadline(&movement), Some(now + STALL_MAX));
        }
        movement = Movement { arriving: true, payloads: OVERTAKEN_PAYLOADS_MAX + 1, ..movement };
        assert_eq!(request.deadline(&movement), Some(start + STALL_MAX), "it was forgotten");
    }
}
