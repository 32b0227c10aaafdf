//! What puts and gets have in common: one outcome for all threads, and waiting for each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// File bytes that are through.
    pub bytes_done: u64,
    /// Unknown for a stream.
    pub bytes_total: Option<u64>,
    /// Bytes that had to be moved: new to some owner (put), not yet in the output (get).
    pub bytes_new: u64,
}

/// The first error of a job. Once there is one the job has stopped.
pub(super) struct Latch<E> {
    stopped: AtomicBool,
    error: Mutex<Option<E>>,
}

impl<E> Latch<E> {
    pub(super) fn new() -> Self {
        Self { stopped: AtomicBool::new(false), error: Mutex::new(None) }
    }

    /// Keeps the first error only.
    pub(super) fn stop(&self, error: E) {
        let mut kept = lock(&self.error);
        if !self.is_stopped() {
            *kept = Some(error);
            self.stopped.store(true, Ordering::Release);
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The error, for the one who reports it; `None` while there is none, and after it was taken.
    pub(super) fn take(&self) -> Option<E> {
        lock(&self.error).take()
    }
}

/// A panic elsewhere leaves nothing half-done behind these locks: they are held for single steps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks until there is something; in between, waits for `changed`.
pub(super) async fn wait_for<T>(changed: &Notify, mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        // Made before looking: it then also hears of a change that comes in between.
        let notified = changed.notified();
        if let Some(found) = look() {
            return found;
        }
        notified.await;
    }
}
