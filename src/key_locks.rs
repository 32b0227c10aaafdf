//! One lock for each key that somebody works on, across all threads; nothing for any other key. The store locks addresses
//! with it, the node names.
//!
//! A lock is handed on in order of arrival and travels as a value. Nothing here is held across anything but memory
//! operations; waiting is by oneshot channels, so who gives up waiting takes no turn.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

const PARTS: usize = 64;

/// A map in parts, each with its own lock.
pub struct Parts<K, V> {
    hasher: RandomState,
    parts: Box<[Mutex<HashMap<K, V>>]>,
}

impl<K: Hash + Eq, V> Parts<K, V> {
    pub fn new() -> Self {
        Self { hasher: RandomState::new(), parts: (0..PARTS).map(|_| Mutex::default()).collect() }
    }

    pub fn of(&self, key: &K) -> MutexGuard<'_, HashMap<K, V>> {
        #[allow(clippy::indexing_slicing)] // a remainder of PARTS
        self.parts[self.hasher.hash_one(key) as usize % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq, V> Default for Parts<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

/// Those that wait for each key that is locked.
pub struct KeyLocks<K: Hash + Eq + Copy>(Parts<K, VecDeque<oneshot::Sender<KeyLock<K>>>>);

impl<K: Hash + Eq + Copy> KeyLocks<K> {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Parts::new()))
    }

    pub async fn lock(self: &Arc<Self>, key: &K) -> KeyLock<K> {
        loop {
            let receiver = {
                let mut part = self.0.of(key);
                match part.entry(*key) {
                    Entry::Vacant(place) => {
                        place.insert(VecDeque::new());
                        return KeyLock { locks: Some(self.clone()), key: *key };
                    }
                    Entry::Occupied(mut waiting) => {
                        let (sender, receiver) = oneshot::channel();
                        waiting.get_mut().push_back(sender);
                        receiver
                    }
                }
            };
            if let Ok(lock) = receiver.await {
                return lock;
            }
        }
    }

    pub fn try_lock(self: &Arc<Self>, key: &K) -> Option<KeyLock<K>> {
        match self.0.of(key).entry(*key) {
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => {
                place.insert(VecDeque::new());
                Some(KeyLock { locks: Some(self.clone()), key: *key })
            }
        }
    }

    /// The locks of all these keys, taken in one order by everybody.
    pub async fn lock_all(self: &Arc<Self>, keys: impl Iterator<Item = K>) -> Vec<KeyLock<K>>
    where
        K: Ord,
    {
        let keys: BTreeSet<K> = keys.collect();
        let mut held = Vec::with_capacity(keys.len());
        for key in &keys {
            held.push(self.lock(key).await);
        }
        held
    }
}

/// Held until dropped; dropping hands it to whoever waited longest.
pub struct KeyLock<K: Hash + Eq + Copy> {
    /// None once handed on.
    locks: Option<Arc<KeyLocks<K>>>,
    key: K,
}

impl<K: Hash + Eq + Copy> Drop for KeyLock<K> {
    fn drop(&mut self) {
        let Some(locks) = self.locks.take() else { return };
        loop {
            let next = {
                let mut part = locks.0.of(&self.key);
                let Entry::Occupied(mut waiting) = part.entry(self.key) else { return };
                match waiting.get_mut().pop_front() {
                    Some(next) => next,
                    None => {
                        waiting.remove();
                        return;
                    }
                }
            };
            match next.send(KeyLock { locks: Some(locks.clone()), key: self.key }) {
                Ok(()) => return,
                // That one gave up waiting: the lock came back unused.
                Err(mut unused) => unused.locks = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_lock_passes_over_those_who_gave_up() {
        let locks = KeyLocks::new();
        let first = locks.lock(&3).await;
        let wait = || {
            let locks = locks.clone();
            tokio::spawn(async move { drop(locks.lock(&3).await) })
        };
        let (gave_up, waits) = (wait(), wait());
        tokio::task::yield_now().await;
        gave_up.abort();
        assert!(locks.try_lock(&3).is_none());
        assert!(locks.try_lock(&4).is_some());
        drop(first);
        waits.await.unwrap();
        assert!(locks.try_lock(&3).is_some());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn those_who_take_many_in_any_order_wait_for_each_other_and_not_for_ever() {
        let locks = KeyLocks::new();
        let forth = locks.lock_all([1, 2, 3, 2].into_iter()).await;
        assert_eq!(forth.len(), 3);
        let back = tokio::spawn({
            let locks = locks.clone();
            async move { locks.lock_all([4, 3, 2].into_iter()).await.len() }
        });
        tokio::task::yield_now().await;
        assert!(!back.is_finished());
        drop(forth);
        assert_eq!(back.await.unwrap(), 3);
    }
}
