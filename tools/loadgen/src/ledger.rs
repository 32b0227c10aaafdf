//! What each object may hold now, so that a read that runs beside writes can still be judged.
//!
//! An object's writes are numbered by generation, from 1. Its state is the newest generation that a node has
//! acknowledged and the newest that was started; no two writes of one object run at the same time. Rules:
//!
//! | what | rule |
//! | --- | --- |
//! | what a generation does | a function of seed, number and generation: a put, or (even generations only) a removal |
//! | a read may return | any generation from the one acknowledged when it began to the last one started when it answers |
//! | a write fails | it may still appear, until a later one is acknowledged: that one's clock is later, so it wins |

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::dice::Dice;

const SHARDS: u64 = 64;

#[derive(Debug, Clone, Copy, Default)]
struct State {
    acknowledged: u32,
    started: u32,
    is_written: bool,
    is_uncertain: bool,
}

#[derive(Debug)]
pub struct Ledger {
    seed: u64,
    /// Of 100 overwrites.
    removals: u32,
    shards: Vec<Mutex<HashMap<u64, State>>>,
}

impl Ledger {
    pub fn new(seed: u64, removals: u32) -> Self {
        Self { seed, removals, shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// Whether the object does not exist after this generation.
    pub fn is_absent(&self, number: u64, generation: u32) -> bool {
        let removes = || Dice::new(&[self.seed, number, u64::from(generation), 2]).percent(2 * self.removals);
        generation == 0 || generation.is_multiple_of(2) && removes()
    }

    /// The generation that is about to be written, unless a write of this object is running.
    pub fn begin_write(&self, number: u64) -> Option<u32> {
        self.with(number, |state| {
            if state.is_written {
                return None;
            }
            state.is_written = true;
            state.started += 1;
            Some(state.started)
        })
    }

    pub fn end_write(&self, number: u64, is_acknowledged: bool) {
        self.with(number, |state| {
            state.is_written = false;
            state.is_uncertain = !is_acknowledged;
            if is_acknowledged {
                state.acknowledged = state.started;
            }
        });
    }

    /// Takes the object as put once, by an earlier run.
    pub fn assume_put(&self, number: u64) {
        self.with(number, |state| *state = State { acknowledged: 1, started: 1, ..State::default() });
    }

    /// Whether some object was written more than once: then [`Self::assume_put`] is wrong of it from now on.
    pub fn is_overwritten(&self) -> bool {
        self.shards.iter().any(|shard| locked(shard).values().any(|state| state.started > 1))
    }

    /// The oldest generation that a read which begins now may return.
    pub fn floor(&self, number: u64) -> u32 {
        self.with(number, |state| state.acknowledged)
    }

    /// All that a read which began at `floor` and answers now may return.
    pub fn acceptable(&self, number: u64, floor: u32) -> RangeInclusive<u32> {
        floor..=self.with(number, |state| state.started)
    }

    /// Every object that may exist.
    pub fn leftovers(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        for shard in &self.shards {
            let shard = locked(shard);
            let exists = |(number, state): (&u64, &State)| {
                (state.is_uncertain || !self.is_absent(*number, state.acknowledged)).then_some(*number)
            };
            numbers.extend(shard.iter().filter_map(exists));
        }
        numbers.sort_unstable();
        numbers
    }

    /// One more than the highest number that was written.
    pub fn written(&self) -> u64 {
        let highest = |shard: &Mutex<HashMap<u64, State>>| locked(shard).keys().max().copied();
        self.shards.iter().filter_map(highest).max().map_or(0, |number| number + 1)
    }

    fn with<T>(&self, number: u64, look: impl FnOnce(&mut State) -> T) -> T {
        match self.shards.get((number % SHARDS) as usize) {
            Some(shard) => look(locked(shard).entry(number).or_default()),
            None => look(&mut State::default()),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_beside_a_write_may_return_either() {
        let ledger = Ledger::new(1, 0);
        assert_eq!(ledger.acceptable(9, ledger.floor(9)), 0..=0);
        assert_eq!(ledger.begin_write(9), Some(1));
        let floor = ledger.floor(9);
        assert_eq!(ledger.acceptable(9, floor), 0..=1);
        assert_eq!(ledger.begin_write(9), None, "one write of an object at a time");
        ledger.end_write(9, true);
        assert_eq!(ledger.acceptable(9, floor), 0..=1, "it began before the acknowledgement");
        assert!(!ledger.is_overwritten());
        assert_eq!(ledger.acceptable(9, ledger.floor(9)), 1..=1);
    }

    #[test]
    fn a_failed_write_may_appear_until_a_later_one_is_acknowledged() {
        let ledger = Ledger::new(1, 0);
        for (is_acknowledged, acceptable) in
            [(true, 1..=1), (false, 1..=2), (false, 1..=3), (true, 4..=4), (false, 4..=5)]
        {
            assert!(ledger.begin_write(9).is_some());
            ledger.end_write(9, is_acknowledged);
            assert_eq!(ledger.acceptable(9, ledger.floor(9)), acceptable);
        }
        assert_eq!(ledger.leftovers(), [9]);
        assert!(ledger.is_overwritten());
    }

    #[test]
    fn removals_come_at_their_share_and_never_twice_in_a_row() {
        let ledger = Ledger::new(1, 20);
        let absent = |generation: &u32| ledger.is_absent(4, *generation);
        assert!(absent(&0) && !absent(&1));
        let removals = (1..=10_000).filter(absent).count();
        assert!((1_800..2_200).contains(&removals), "{removals}");
        assert!((1..10_000).all(|generation| !(absent(&generation) && absent(&(generation + 1)))));
    }
}
