//! Who works on which chunk right now, across all threads: address locks, pins and place guards.
//!
//! - An **address lock** makes each decision about one chunk (have it, write it, remove it, replace it) one step. It is
//!   handed on in order of arrival and travels as a value: a claim carries it until its record is durable.
//! - A **pin** says that a new reference is on its way to the log: the chunk is not removed meanwhile. It lets many
//!   references to one chunk be written at once, which a lock would put one behind the other.
//! - A **place guard** says that somebody reads that place: it is not punched meanwhile. Taken first, and the index asked
//!   again after: either the reader sees that the chunk went, or the remover sees the guard.
//!
//! Nothing here is held across anything but memory operations; waiting is by oneshot channels.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::format::Address;
use crate::key_locks::{KeyLock, KeyLocks, Parts};

/// {segment, offset}
type PlaceKey = (u64, u64);

#[derive(Default)]
struct Guarded {
    count: usize,
    waiting: Vec<oneshot::Sender<()>>,
}

pub(super) type AddressLock = KeyLock<Address>;

pub(super) struct Locks {
    addresses: Arc<KeyLocks<Address>>,
    pins: Parts<Address, usize>,
    /// Chunks whose references are being counted, and whether a pin came meanwhile.
    counted: Parts<Address, bool>,
    places: Parts<PlaceKey, Guarded>,
}

impl Locks {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { addresses: KeyLocks::new(), pins: Parts::new(), counted: Parts::new(), places: Parts::new() })
    }

    pub async fn lock(&self, address: &Address) -> AddressLock {
        self.addresses.lock(address).await
    }

    pub fn try_lock(&self, address: &Address) -> Option<AddressLock> {
        self.addresses.try_lock(address)
    }

    pub fn pin(self: &Arc<Self>, address: &Address) -> Pin {
        *self.pins.of(address).entry(*address).or_default() += 1;
        if let Some(pinned) = self.counted.of(address).get_mut(address) {
            *pinned = true;
        }
        Pin { locks: self.clone(), address: *address }
    }

    pub fn is_pinned(&self, address: &Address) -> bool {
        self.pins.of(address).contains_key(address)
    }

    /// From now on pins of this chunk are noticed, however short. One at a time: its address is locked.
    pub fn count(self: &Arc<Self>, address: &Address) -> Counting {
        self.counted.of(address).insert(*address, false);
        Counting { locks: self.clone(), address: *address }
    }

    pub fn guard(self: &Arc<Self>, segment: u64, offset: u64) -> PlaceGuard {
        self.places.of(&(segment, offset)).entry((segment, offset)).or_default().count += 1;
        PlaceGuard { locks: self.clone(), key: (segment, offset) }
    }

    pub fn is_guarded(&self, segment: u64, offset: u64) -> bool {
        self.places.of(&(segment, offset)).contains_key(&(segment, offset))
    }

    /// Waits until no guard of this place is left.
    pub async fn unguarded(&self, segment: u64, offset: u64) {
        let receiver = {
            let mut part = self.places.of(&(segment, offset));
            let Some(guarded) = part.get_mut(&(segment, offset)) else { return };
            let (sender, receiver) = oneshot::channel();
            guarded.waiting.push(sender);
            receiver
        };
        let _ = receiver.await;
    }
}

/// While the references of a chunk are counted.
pub(super) struct Counting {
    locks: Arc<Locks>,
    address: Address,
}

impl Counting {
    /// Whether somebody refers or has referred to it meanwhile. Asked before as well: what was pinned earlier and is not
    /// any more has been told by then.
    pub fn is_pinned(&self) -> bool {
        let came = self.locks.counted.of(&self.address).get(&self.address).copied().unwrap_or(true);
        came || self.locks.is_pinned(&self.address)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.locks.counted.of(&self.address).remove(&self.address);
    }
}

/// A reference to the chunk is being written.
pub(super) struct Pin {
    locks: Arc<Locks>,
    address: Address,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut part = self.locks.pins.of(&self.address);
        if let Some(count) = part.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                part.remove(&self.address);
            }
        }
    }
}

/// As long as one lives, the place that it was given for keeps its bytes.
pub struct PlaceGuard {
    locks: Arc<Locks>,
    key: PlaceKey,
}

impl Clone for PlaceGuard {
    fn clone(&self) -> Self {
        self.locks.guard(self.key.0, self.key.1)
    }
}

impl Drop for PlaceGuard {
    fn drop(&mut self) {
        let mut part = self.locks.places.of(&self.key);
        if let Some(guarded) = part.get_mut(&self.key) {
            guarded.count -= 1;
            if guarded.count == 0 {
                part.remove(&self.key).into_iter().flat_map(|guarded| guarded.waiting).for_each(|waiting| {
                    let _ = waiting.send(());
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn place_is_free_only_after_the_last_guard() {
        let locks = Locks::new();
        locks.unguarded(1, 64).await;
        let guard = locks.guard(1, 64);
        let second = guard.clone();
        let free = tokio::spawn({
            let locks = locks.clone();
            async move { locks.unguarded(1, 64).await }
        });
        drop(guard);
        tokio::task::yield_now().await;
        assert!(!free.is_finished());
        drop(second);
        free.await.unwrap();
    }
}
