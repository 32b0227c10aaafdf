//! Order among chunks that finish in any order.
//!
//! [`Window`] (put): workers claim leaves by number and hand in their entries when they are done; the coordinator
//! collects the entries in file order. No leaf is claimed that is too far ahead of the first one still missing, so
//! that one slow store does not pile up entries.
//!
//! [`Turnstile`] (get, streams): a worker waits until all earlier leaves are written, and is told when the one whose turn
//! it is takes long.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use zeroize::Zeroize;

use super::job::lock;
use crate::format::tree::TreeEntry;
use crate::limits::{PUT_WINDOW_LEAVES, STREAM_STALL_MAX};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Leaf(u64),
    /// Too far ahead: ask again when an entry was collected.
    Later,
    /// The input has no further leaf.
    End,
}

pub(super) struct Window {
    /// Leaves of the input, once known.
    total: Option<u64>,
    claimed: u64,
    collected: u64,
    /// Entries from `collected` on.
    slots: VecDeque<Option<TreeEntry>>,
}

impl Window {
    pub(super) fn new(total: Option<u64>) -> Self {
        Self { total, claimed: 0, collected: 0, slots: VecDeque::new() }
    }

    pub(super) fn claim(&mut self) -> Claim {
        if self.total.is_some_and(|total| self.claimed >= total) {
            Claim::End
        } else if self.claimed - self.collected >= PUT_WINDOW_LEAVES {
            Claim::Later
        } else {
            self.claimed += 1;
            Claim::Leaf(self.claimed - 1)
        }
    }

    /// The input ends before leaf `total`; one that was claimed past it has turned out not to exist.
    pub(super) fn end_at(&mut self, total: u64) {
        self.total = Some(total);
        self.claimed = self.claimed.min(total);
    }

    /// Takes a claimed leaf's entry; `true` when it is the one to be collected next.
    pub(super) fn deposit(&mut self, leaf: u64, entry: TreeEntry) -> bool {
        assert!((self.collected..self.claimed).contains(&leaf), "leaf {leaf} was not claimed, or came twice");
        let index = (leaf - self.collected) as usize;
        if self.slots.len() <= index {
            self.slots.resize(index + 1, None);
        }
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(entry);
        }
        index == 0
    }

    /// The next entry in file order, if it is there.
    pub(super) fn collect(&mut self) -> Option<TreeEntry> {
        let slot = self.slots.front_mut()?.as_mut()?;
        let entry = *slot;
        slot.key.zeroize();
        self.slots.pop_front();
        self.collected += 1;
        Some(entry)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.total == Some(self.collected)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.slots.iter_mut().flatten().for_each(|entry| entry.key.zeroize());
    }
}

#[derive(Default)]
struct Queue {
    next: u64,
    /// Since when whoever has the turn waits for something that may take for ever; none while it does not.
    waits_since: Option<Instant>,
    waiting: HashMap<u64, oneshot::Sender<()>>,
    closed: bool,
}

#[derive(Default)]
pub(super) struct Turnstile(Mutex<Queue>);

impl Turnstile {
    /// Waits until everyone before `number` has passed; `false` when it was closed instead.
    pub(super) async fn wait(&self, number: u64) -> bool {
        let turn = {
            let mut queue = lock(&self.0);
            if queue.closed {
                return false;
            }
            if queue.next == number {
                queue.waits_since = Some(Instant::now());
                return true;
            }
            let (sender, turn) = oneshot::channel();
            queue.waiting.insert(number, sender);
            turn
        };
        turn.await.is_ok()
    }

    /// Whose turn it was is done.
    pub(super) fn pass(&self) {
        let mut queue = lock(&self.0);
        queue.next += 1;
        let next = queue.next;
        queue.waits_since = None;
        if let Some(sender) = queue.waiting.remove(&next) {
            queue.waits_since = Some(Instant::now());
            // Nobody there to hear it: the job was stopped.
            let _gone = sender.send(());
        }
    }

    /// Whose turn it is does something that is sure to be done: that is no standing still, however long it takes. Ends
    /// with [`Self::waits`].
    pub(super) fn works(&self) {
        lock(&self.0).waits_since = None;
    }

    /// Whose turn it is waits for what may take for ever, as it does from the beginning of its turn.
    pub(super) fn waits(&self) {
        lock(&self.0).waits_since = Some(Instant::now());
    }

    /// Returns when the one whose turn it is has waited for [`STREAM_STALL_MAX`], at the latest as much later. One that
    /// is not yet there to take its turn does not wait.
    pub(super) async fn stands_still(&self) {
        loop {
            let now = Instant::now();
            let deadline = lock(&self.0).waits_since.unwrap_or(now) + STREAM_STALL_MAX;
            if deadline <= now {
                return;
            }
            sleep_until(deadline).await;
        }
    }

    /// Sends everyone away, now and later.
    pub(super) fn close(&self) {
        let mut queue = lock(&self.0);
        queue.closed = true;
        queue.waiting.clear();
    }
}
