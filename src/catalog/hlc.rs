//! The node's hybrid logical clock (Kulkarni et al., "Logical physical clocks", 2014), in one 64-bit number: 48 bits of Unix
//! milliseconds above 16 bits of counter.
//!
//! - Each stamp is later than every stamp made or observed before, and as close to the wall clock as that allows. A counter that
//!   overflows carries into the milliseconds: the number simply goes on.
//! - A stamp more than 60 s ahead of the wall clock is refused and never merged: one broken clock must not drag all others into
//!   the future. Exactly 60 s is still accepted.
//! - Over restarts it does not go back, even if the wall clock does: a floor is made durable ahead of what is handed
//!   out ([`Clock::floor_to_persist`]), and the next run starts above it.

use std::time::Duration;

use crate::format::Stamp;
use crate::limits::{CLOCK_AHEAD_MAX, CLOCK_RESERVE, CLOCK_RESERVE_AHEAD};

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a clock stamp is {ahead_ms} ms ahead of this machine's clock (at most {} ms are accepted): set both machines' clocks by NTP",
    CLOCK_AHEAD_MAX.as_millis()
)]
pub struct ClockAhead {
    pub ahead_ms: u64,
}

#[derive(Clone, Debug)]
pub struct Clock {
    /// The latest made or observed.
    last: Stamp,
    /// No stamp above it may leave the node.
    floor: Stamp,
}

impl Clock {
    /// `floor`: the one made durable last; zero for a new node.
    pub fn new(floor: Stamp) -> Self {
        Self { last: floor, floor }
    }

    pub fn last(&self) -> Stamp {
        self.last
    }

    /// A stamp later than all before. Ask [`Self::floor_to_persist`] before it leaves the node.
    pub fn now(&mut self, wall_ms: u64) -> Stamp {
        self.last = at(wall_ms).max(next(self.last));
        self.last
    }

    /// Takes note of another node's stamp.
    pub fn observe(&mut self, stamp: Stamp, wall_ms: u64) -> Result<(), ClockAhead> {
        check_ahead(stamp, wall_ms)?;
        self.last = self.last.max(stamp);
        Ok(())
    }

    /// A stamp later than `stamp` and than all before.
    pub fn later_than(&mut self, stamp: Stamp, wall_ms: u64) -> Result<Stamp, ClockAhead> {
        self.observe(stamp, wall_ms)?;
        Ok(self.now(wall_ms))
    }

    /// If this is `Some`, make it durable before the last stamp leaves the node, then tell [`Self::persisted`]. It lies ahead
    /// of the wall clock, so this happens every few seconds of use, not with every stamp; but not far ahead of stamps that
    /// are so already: quick restarts, each of which begins at its floor, would drive the clock away.
    pub fn floor_to_persist(&self, wall_ms: u64) -> Option<Stamp> {
        let (wall, last) = (ahead(at(wall_ms), CLOCK_RESERVE), ahead(self.last, CLOCK_RESERVE_AHEAD));
        (self.last > self.floor).then(|| wall.max(last))
    }

    pub fn persisted(&mut self, floor: Stamp) {
        self.floor = self.floor.max(floor);
    }
}

/// Whether a stamp is one that a sound clock can have made by now.
pub fn check_ahead(stamp: Stamp, wall_ms: u64) -> Result<(), ClockAhead> {
    let ahead_ms = stamp.millis().saturating_sub(wall_ms);
    if Duration::from_millis(ahead_ms) > CLOCK_AHEAD_MAX { Err(ClockAhead { ahead_ms }) } else { Ok(()) }
}

/// The first stamp of a millisecond; a wall clock beyond the year 10,000 stands still.
fn at(wall_ms: u64) -> Stamp {
    Stamp::new(wall_ms.min((1 << 48) - 1), 0)
}

fn next(stamp: Stamp) -> Stamp {
    Stamp(stamp.get().saturating_add(1).into())
}

fn ahead(stamp: Stamp, by: Duration) -> Stamp {
    at(stamp.millis().saturating_add(by.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counter_overflow_carries_into_the_milliseconds() {
        let mut clock = Clock::new(Stamp::new(1_000, u16::MAX));
        assert_eq!(clock.now(1_000), Stamp::new(1_001, 0));
    }

    #[test]
    fn stamp_too_far_ahead_is_refused_and_never_merged() {
        let mut clock = Clock::new(Stamp::ZERO);
        let refused = clock.observe(Stamp::new(160_001, 0), 100_000);
        assert_eq!(refused, Err(ClockAhead { ahead_ms: 60_001 }));
        assert_eq!(clock.now(100_000), Stamp::new(100_000, 0));
        assert_eq!(clock.observe(Stamp::new(160_000, u16::MAX), 100_000), Ok(()));
        assert!(clock.now(100_000) > Stamp::new(160_000, u16::MAX));
    }

    #[test]
    fn restart_with_the_wall_clock_set_back_does_not_go_back() {
        let mut clock = Clock::new(Stamp::ZERO);
        let first = clock.now(1_000_000);
        let floor = clock.floor_to_persist(1_000_000).expect("a first stamp lies above no floor");
        clock.persisted(floor);
        assert_eq!(clock.floor_to_persist(1_000_000), None);
        let later = 1_000_000 + CLOCK_RESERVE.as_millis() as u64 - 1;
        let last = clock.now(later);
        assert_eq!(clock.floor_to_persist(later), None, "the reserve covers it");
        let mut restarted = Clock::new(floor);
        let after = restarted.now(0);
        assert!(after > first && after > last);
    }

    #[test]
    fn quick_restarts_do_not_drive_the_clock_ahead() {
        let (mut floor, mut latest) = (Stamp::ZERO, Stamp::ZERO);
        for restart in 0..200 {
            let wall_ms = 1_000_000 + restart * 50;
            let mut clock = Clock::new(floor);
            for _ in 0..3 {
                let stamp = clock.now(wall_ms);
                assert!(stamp > latest);
                latest = stamp;
                assert_eq!(check_ahead(stamp, wall_ms), Ok(()));
                if let Some(next) = clock.floor_to_persist(wall_ms) {
                    clock.persisted(next);
                    floor = next;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn stamps_only_rise_and_stay_near_the_wall(steps in prop::collection::vec((0u64..1 << 40, 0u64..1 << 17, any::<bool>()), 1..200)) {
            let mut clock = Clock::new(Stamp::ZERO);
            let mut last = Stamp::ZERO;
            let mut wall_max = 0;
            for (wall, ahead, observes) in steps {
                wall_max = wall.max(wall_max);
                if observes {
                    let stamp = Stamp::new(wall + ahead, 7);
                    let before = clock.last();
                    prop_assert_eq!(clock.observe(stamp, wall).is_ok(), ahead <= 60_000);
                    prop_assert!(clock.last() >= before && (ahead <= 60_000 || clock.last() == before));
                } else {
                    let stamp = clock.now(wall);
                    prop_assert!(stamp > last && stamp.millis() >= wall);
                    prop_assert!(stamp.millis() <= wall_max + 60_001);
                    last = stamp;
                }
            }
        }
    }
}
