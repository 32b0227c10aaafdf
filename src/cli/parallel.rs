//! A few workers over items that are found one after the other: what is found waits in a queue no longer than the
//! workers are many, so a tree of any size takes the same memory.

use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Files of one tree in work at once.
pub const FILES_AT_ONCE: usize = 16;

/// Calls `work` on everything that `find` hands to its argument, on [`FILES_AT_ONCE`] threads. The argument answers
/// false when nobody works any more.
pub fn each<T: Send, R>(find: impl FnOnce(&mut dyn FnMut(T) -> bool) -> R, work: impl Fn(T) + Sync) -> R {
    let (sender, receiver) = sync_channel(FILES_AT_ONCE);
    let receiver = Mutex::new(receiver);
    thread::scope(|scope| {
        for _ in 0..FILES_AT_ONCE {
            scope.spawn(|| {
                while let Some(item) = next(&receiver) {
                    work(item);
                }
            });
        }
        let found = find(&mut |item| sender.send(item).is_ok());
        drop(sender);
        found
    })
}

fn next<T>(receiver: &Mutex<Receiver<T>>) -> Option<T> {
    receiver.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        let sum = AtomicU64::new(0);
        let found = each(
            |found| (1..=1000u64).filter(|item| found(*item)).count(),
            |item| {
                sum.fetch_add(item, Ordering::Relaxed);
            },
        );
        assert_eq!((found, sum.into_inner()), (1000, 500_500));
    }
}
