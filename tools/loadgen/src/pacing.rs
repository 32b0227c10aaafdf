//! When operations begin.
//!
//! - **Closed loop**: each worker begins its next operation when the one before has ended. It measures how fast a node
//!   can go; a stalled node is asked less, so the stall shows in one operation a worker and not more.
//! - **Open loop**: operation `i` is meant to begin at `i / rate`, whatever the node does. Latency counts from that
//!   moment, also when every worker was still busy: whoever would have had to wait is counted as having waited.
//!
//! An open loop ends at its duration. What is still late then may begin for [`DRAIN_MAX`] more; what does not even
//! then is reported as never started, with the wait so far as its latency (a lower bound). So is a turn that a worker had
//! taken when the run was stopped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long an open loop that is late goes on behind its end.
pub const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Operations that never began are counted in at most so many groups.
const WAITS_MAX: u64 = 10_000;
/// How long a worker sleeps before it looks whether the run was stopped.
const NAP_MAX: Duration = Duration::from_millis(50);

/// The time since the phase began.
pub trait Clock: Sync {
    fn now(&self) -> Duration;
    fn sleep(&self, duration: Duration);
}

#[derive(Debug, Clone, Copy)]
pub struct RealClock(pub Instant);

impl Clock for RealClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loop {
    Closed,
    /// Operations a second.
    Open(f64),
}

/// When a phase ends: at whatever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub operations: Option<u64>,
    pub duration: Option<Duration>,
}

/// One operation's place in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub index: u64,
    pub intended: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From the intended start.
    pub latency: Duration,
    /// From the real start.
    pub service: Duration,
}

/// Hands out turns to workers.
#[derive(Debug)]
pub struct Pacer {
    pub mode: Loop,
    limit: Limit,
    next: AtomicU64,
    /// When the phase was ended from outside.
    ended: OnceLock<Duration>,
    /// Intended starts of turns that were taken and given up, because the run was stopped.
    abandoned: Mutex<Vec<Duration>>,
}

impl Pacer {
    pub fn new(mode: Loop, limit: Limit) -> Self {
        Self { mode, limit, next: AtomicU64::new(0), ended: OnceLock::new(), abandoned: Mutex::default() }
    }

    /// The duration is over now, whatever the limit was.
    pub fn end(&self, now: Duration) {
        // Only the first end counts.
        let _ = self.ended.set(now);
    }

    fn duration(&self) -> Duration {
        let limit = self.limit.duration.unwrap_or(Duration::MAX);
        self.ended.get().map_or(limit, |ended| limit.min(*ended))
    }

    /// One worker: takes turns until there is none left or `is_stopped`. What `prepare` does for a turn is in no timing.
    pub fn work<P, T>(
        &self,
        clock: &impl Clock,
        is_stopped: impl Fn() -> bool,
        mut prepare: impl FnMut(Turn) -> P,
        mut operation: impl FnMut(P) -> T,
        mut done: impl FnMut(Timing, T),
    ) {
        while let Some(turn) = self.take(clock) {
            let taken = clock.now();
            let prepared = prepare(turn);
            let ready = clock.now();
            while !is_stopped() && turn.intended < self.duration() {
                match turn.intended.checked_sub(clock.now()) {
                    Some(early) if !early.is_zero() => clock.sleep(early.min(NAP_MAX)),
                    _ => break,
                }
            }
            if turn.intended >= self.duration() {
                return;
            }
            if is_stopped() {
                self.abandoned.lock().unwrap_or_else(PoisonError::into_inner).push(turn.intended);
                return;
            }
            let began = clock.now();
            let outcome = operation(prepared);
            let ended = clock.now();
            // Preparing that fell behind the intended start: no wait of the node's making.
            let own = ready.saturating_sub(taken.max(turn.intended));
            let latency = ended.saturating_sub(turn.intended).saturating_sub(own);
            done(Timing { latency, service: ended.saturating_sub(began) }, outcome);
        }
    }

    fn take(&self, clock: &impl Clock) -> Option<Turn> {
        let now = clock.now();
        let step = |index: u64| self.turn(index, now).map(|_| index + 1);
        let index = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).ok()?;
        self.turn(index, now)
    }

    fn turn(&self, index: u64, now: Duration) -> Option<Turn> {
        let duration = self.duration();
        let (intended, last) = match self.mode {
            Loop::Closed => (now, duration),
            Loop::Open(rate) => (Self::intended(index, rate), duration.saturating_add(DRAIN_MAX)),
        };
        let is_over = index >= self.limit.operations.unwrap_or(u64::MAX) || intended >= duration || now >= last;
        (!is_over).then_some(Turn { index, intended })
    }

    fn intended(index: u64, rate: f64) -> Duration {
        Duration::try_from_secs_f64(index as f64 / rate).unwrap_or(Duration::MAX)
    }

    /// How long the operations waited that should have begun before `end` and never did: waits, and how many waited
    /// about so long.
    pub fn never_started(&self, end: Duration) -> Vec<(Duration, u64)> {
        let Loop::Open(rate) = self.mode else { return Vec::new() };
        let until = end.min(self.duration());
        let due = ((until.as_secs_f64() * rate).ceil() as u64).min(self.limit.operations.unwrap_or(u64::MAX));
        let next = self.next.load(Ordering::Relaxed);
        let stride = due.saturating_sub(next).div_ceil(WAITS_MAX).max(1);
        let wait = |index| end.saturating_sub(Self::intended(index, rate));
        let never_taken = (next..due).step_by(stride as usize).map(|index| (wait(index), stride.min(due - index)));
        let abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        let abandoned = abandoned.iter().filter(|intended| **intended < end).map(|intended| (end - *intended, 1));
        never_taken.chain(abandoned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Moves when somebody sleeps, and when the server is said to have taken its time.
    #[derive(Default)]
    struct VirtualClock(AtomicU64);

    impl Clock for VirtualClock {
        fn now(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::Relaxed))
        }

        fn sleep(&self, duration: Duration) {
            self.0.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    fn run(pacer: &Pacer, service: impl Fn(u64) -> Duration) -> (Vec<Timing>, Duration) {
        let clock = VirtualClock::default();
        let mut timings = Vec::new();
        pacer.work(
            &clock,
            || false,
            |turn| turn.index,
            |index| clock.sleep(service(index)),
            |timing, ()| timings.push(timing),
        );
        (timings, clock.now())
    }

    fn seconds(seconds: u64) -> Limit {
        Limit { operations: None, duration: Some(Duration::from_secs(seconds)) }
    }

    /// 1 ms each, but operation 100 takes a second.
    fn with_a_stall(index: u64) -> Duration {
        if index == 100 { 1000 * MS } else { MS }
    }

    #[test]
    fn a_stall_shows_in_the_latency_of_all_who_would_have_waited() {
        let pacer = Pacer::new(Loop::Open(100.0), seconds(10));
        let (timings, _) = run(&pacer, with_a_stall);
        assert_eq!(timings.len(), 1000);
        assert_eq!(timings.iter().filter(|timing| timing.service > 10 * MS).count(), 1);
        // Of the hundred that were due in the stalled second, the first waited for nearly all of it.
        let late: Vec<_> = timings.iter().filter(|timing| timing.latency > 10 * MS).collect();
        assert!((100..120).contains(&late.len()), "{} late", late.len());
        assert!(timings[101].latency > 980 * MS, "{:?}", timings[101]);
        assert!(timings[150].latency > 500 * MS, "{:?}", timings[150]);
        assert_eq!(timings[300].latency, MS);
        assert_eq!(pacer.never_started(Duration::from_secs(10)), []);
    }

    #[test]
    fn a_closed_loop_hides_it_in_one_operation() {
        let (timings, _) = run(&Pacer::new(Loop::Closed, seconds(10)), with_a_stall);
        assert_eq!(timings.iter().filter(|timing| timing.latency > 10 * MS).count(), 1);
        assert!(timings.iter().all(|timing| timing.latency == timing.service));
    }

    #[test]
    fn operations_begin_on_schedule_while_the_node_keeps_up() {
        let (timings, end) = run(&Pacer::new(Loop::Open(250.0), seconds(2)), |_| MS);
        assert_eq!(timings.len(), 500);
        assert!(timings.iter().all(|timing| timing.latency == MS));
        assert_eq!(end, Duration::from_secs_f64(499.0 / 250.0) + MS);
    }

    #[test]
    fn what_a_slow_node_never_gets_to_is_counted_with_its_wait() {
        let pacer = Pacer::new(Loop::Open(1000.0), seconds(4));
        let (timings, end) = run(&pacer, |_| 10 * MS);
        assert_eq!(timings.len(), 500, "100 a second, for 4 s and the second of grace");
        let waits = pacer.never_started(end);
        assert_eq!(waits.len(), 3500);
        assert_eq!(waits.first(), Some(&(4500 * MS, 1)));
    }

    #[test]
    fn millions_that_never_began_are_counted_in_groups() {
        let pacer = Pacer::new(Loop::Open(1e6), seconds(60));
        let waits = pacer.never_started(Duration::from_secs(60));
        assert!(waits.len() <= 10_000);
        assert_eq!(waits.iter().map(|(_, count)| count).sum::<u64>(), 60_000_000);
    }

    #[test]
    fn the_number_of_operations_ends_either_loop() {
        let limit = Limit { operations: Some(7), duration: None };
        for mode in [Loop::Closed, Loop::Open(10.0)] {
            assert_eq!(run(&Pacer::new(mode, limit), |_| MS).0.len(), 7);
        }
    }

    #[test]
    fn who_is_stopped_takes_no_further_turn() {
        let clock = VirtualClock::default();
        let pacer = Pacer::new(Loop::Open(0.001), Limit { operations: None, duration: None });
        let stopped = || clock.now() > 20 * MS;
        let mut count = 0;
        pacer.work(&clock, stopped, |_| (), |()| clock.sleep(MS), |_, ()| count += 1);
        assert_eq!(count, 1);
        assert!(clock.now() < 200 * MS, "the second was due after 1000 s");
        assert_eq!(pacer.never_started(clock.now()), [], "and is none that never began");
    }

    #[test]
    fn a_phase_that_is_ended_from_outside_owes_nothing_behind_that() {
        let clock = VirtualClock::default();
        let pacer = Pacer::new(Loop::Open(100.0), Limit { operations: None, duration: None });
        let mut count = 0;
        let operate = |()| {
            if clock.now() >= 300 * MS {
                pacer.end(clock.now())
            }
        };
        pacer.work(&clock, || false, |_| (), operate, |_, ()| count += 1);
        assert_eq!((count, clock.now()), (31, 300 * MS), "at 0, 10, … 300 ms");
        assert_eq!(pacer.never_started(clock.now()), []);
    }

    #[test]
    fn preparing_is_in_no_timing_and_a_wait_for_the_node_is() {
        for (mode, latencies) in [(Loop::Closed, [50, 50, 50]), (Loop::Open(100.0), [50, 95, 140])] {
            let clock = VirtualClock::default();
            let pacer = Pacer::new(mode, Limit { operations: Some(3), duration: None });
            let mut timings = Vec::new();
            let (prepare, operate) = (|_| clock.sleep(5 * MS), |()| clock.sleep(50 * MS));
            pacer.work(&clock, || false, prepare, operate, |timing, ()| timings.push(timing));
            assert!(timings.iter().all(|timing| timing.service == 50 * MS));
            let found: Vec<_> = timings.iter().map(|timing| timing.latency.as_millis()).collect();
            assert_eq!(found, latencies, "{mode:?}");
        }
    }

    #[test]
    fn a_turn_that_was_taken_and_given_up_never_started() {
        let clock = VirtualClock::default();
        let pacer = Pacer::new(Loop::Open(100.0), seconds(1));
        let mut count = 0;
        // The second operation is due after 10 ms; the run is stopped while the first one goes on.
        pacer.work(&clock, || clock.now() > 20 * MS, |_| (), |()| clock.sleep(50 * MS), |_, ()| count += 1);
        assert_eq!((count, clock.now()), (1, 50 * MS));
        let waits = pacer.never_started(clock.now());
        assert_eq!(waits, [(30 * MS, 1), (20 * MS, 1), (10 * MS, 1), (40 * MS, 1)]);
    }
}
