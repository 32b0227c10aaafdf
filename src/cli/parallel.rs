//! A few workers over items that are found one after the other: what is found waits in a queue no longer than the
//! workers are many, so a tree of any size takes the same memory.
//!
//! A worker may find that a part of its item is better done by itself, and hand that back: whoever is free takes it before
//! anything that was found.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::limits::TREE_FILES_AT_ONCE;

/// What waits for a worker.
pub struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    changed: Condvar,
}

struct Waiting<T> {
    handed_back: VecDeque<T>,
    found: VecDeque<T>,
    /// Nothing more will be found.
    is_all_found: bool,
    /// Those at work may still hand something back.
    at_work: usize,
}

impl<T> Queue<T> {
    fn new() -> Self {
        let waiting = Waiting { handed_back: VecDeque::new(), found: VecDeque::new(), is_all_found: false, at_work: 0 };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    /// For whoever works on an item: a part of it. As many may wait as the items in work have parts.
    pub fn hand_back(&self, item: T) {
        self.waiting().handed_back.push_back(item);
        self.changed.notify_all();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place.
    fn add(&self, item: T) {
        let has_no_place = |waiting: &mut Waiting<T>| waiting.found.len() >= TREE_FILES_AT_ONCE;
        let waiting = self.changed.wait_while(self.waiting(), has_no_place);
        waiting.unwrap_or_else(PoisonError::into_inner).found.push_back(item);
        self.changed.notify_all();
    }

    fn all_found(&self) {
        self.waiting().is_all_found = true;
        self.changed.notify_all();
    }

    /// Waits for an item, and for those who may hand one back.
    fn next(&self) -> Option<T> {
        let may_come = |waiting: &mut Waiting<T>| {
            let is_empty = waiting.handed_back.is_empty() && waiting.found.is_empty();
            is_empty && !(waiting.is_all_found && waiting.at_work == 0)
        };
        let waiting = self.changed.wait_while(self.waiting(), may_come);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        let Waiting { handed_back, found, at_work, .. } = &mut *waiting;
        let item = handed_back.pop_front().or_else(|| found.pop_front())?;
        *at_work += 1;
        self.changed.notify_all();
        Some(item)
    }
}

/// Ends the search, however it ends.
struct Finding<'a, T>(&'a Queue<T>);

impl<T> Drop for Finding<'_, T> {
    fn drop(&mut self) {
        self.0.all_found();
    }
}

/// Counts one worker, however its item ends.
struct AtWork<'a, T>(&'a Queue<T>);

impl<T> Drop for AtWork<'_, T> {
    fn drop(&mut self) {
        self.0.waiting().at_work -= 1;
        self.0.changed.notify_all();
    }
}

/// Calls `work` on everything that `find` hands to its argument, on [`TREE_FILES_AT_ONCE`] threads, each with a state of its
/// own that `start` makes.
pub fn each<T: Send, S, R>(
    find: impl FnOnce(&mut dyn FnMut(T)) -> R,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T, &Queue<T>) + Sync,
) -> R {
    let queue = Queue::new();
    thread::scope(|scope| {
        for _ in 0..TREE_FILES_AT_ONCE {
            scope.spawn(|| {
                let mut state = start();
                while let Some(item) = queue.next() {
                    let _at_work = AtWork(&queue);
                    work(&mut state, item, &queue);
                }
            });
        }
        let _all_found = Finding(&queue);
        find(&mut |item| queue.add(item))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        let sum = AtomicU64::new(0);
        let found = each(
            |found| (1..=1000u64).map(found).count(),
            || (),
            |(), item, _| {
                sum.fetch_add(item, Ordering::Relaxed);
            },
        );
        assert_eq!((found, sum.into_inner()), (1000, 500_500));
    }

    #[test]
    fn what_is_handed_back_is_worked_on_too_the_last_included() {
        let count = AtomicU64::new(0);
        each(
            |found| found(10_u64),
            || (),
            |(), item, queue| {
                count.fetch_add(1, Ordering::Relaxed);
                (0..item).for_each(|less| queue.hand_back(less));
            },
        );
        assert_eq!(count.into_inner(), 1 << 10);
    }

    #[test]
    fn a_worker_keeps_its_state() {
        let (states, items) = (AtomicU64::new(0), AtomicU64::new(0));
        each(
            |found| (0..100_u64).for_each(found),
            || {
                states.fetch_add(1, Ordering::Relaxed);
                0_u64
            },
            |done, _, _| {
                *done += 1;
                items.fetch_max(*done, Ordering::Relaxed);
            },
        );
        assert_eq!(states.into_inner(), TREE_FILES_AT_ONCE as u64);
        assert!(items.into_inner() >= 100 / TREE_FILES_AT_ONCE as u64);
    }
}
