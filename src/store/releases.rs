//! Space on its way back: removed chunks whose readers have not let go of them yet.
//!
//! Whoever removes a chunk that is being read is answered once that is durable. The space follows when the last guard of
//! its place goes, and a reader has as long as it likes: whoever waits for the space gives up in the end.
//!
//! There are as many as there are places that are read, so nothing else bounds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// How many there are, over all threads.
#[derive(Default)]
pub(super) struct Releases {
    pending: AtomicUsize,
    none_left: Notify,
}

impl Releases {
    pub fn begin(self: &Arc<Self>) -> Release {
        self.pending.fetch_add(1, Ordering::AcqRel);
        Release(self.clone())
    }

    /// Whether all that were begun have ended; waits for it, but no longer than this.
    pub async fn ended_within(&self, wait_max: Duration) -> bool {
        self.have_ended() || tokio::time::timeout(wait_max, self.ended()).await.is_ok()
    }

    fn have_ended(&self) -> bool {
        self.pending.load(Ordering::Acquire) == 0
    }

    async fn ended(&self) {
        loop {
            let none_left = self.none_left.notified();
            if self.have_ended() {
                return;
            }
            none_left.await;
        }
    }
}

/// One removed chunk; ends when dropped, however its task does.
pub(super) struct Release(Arc<Releases>);

impl Drop for Release {
    fn drop(&mut self) {
        if self.0.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}
