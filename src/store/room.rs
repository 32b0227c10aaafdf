//! Room for new chunks: the file system keeps a reserve free, and the store takes no more than it was told to offer.
//!
//! The limit is held against an estimate that is never below what records take: every reservation adds to it, and it
//! is counted anew only when it would refuse something and space was given back since the last count. So a store with
//! room never looks through its segments for this, and a full one does so once for each thing that was freed.
//!
//! Only chunks are refused. Names, references, deaths and removals go on: they are what makes room again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::StoreError;
use super::shared::Shared;
use crate::limits::FREE_BYTES_RESERVE;

/// Why there is no room for new chunks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    #[error(
        "the disk is full: {free_bytes} bytes are free, {reserve_bytes} are kept in reserve; make room or remove files"
    )]
    Disk { free_bytes: u64, reserve_bytes: u64 },
    #[error(
        "this node's capacity is reached: {used_bytes} of {capacity_bytes} bytes are used; remove files and run gabion \
         reclaim, or restart the node with a larger --capacity"
    )]
    Capacity { used_bytes: u64, capacity_bytes: u64 },
    #[error("the disk is full, and no more changes that wait for space fit into memory: make room on the disk")]
    Memory,
    #[error("the disk is full: {doing} {name} failed; make room or remove files")]
    Failed { doing: &'static str, name: Arc<str> },
}

/// What the records of a store take, held against what it may take.
pub(super) struct Room {
    /// No limit when absent: then nothing is counted.
    capacity_bytes: Option<u64>,
    /// Never below what is reserved in all segments.
    used_bytes: Mutex<u64>,
    /// Space was given back since the last count.
    is_stale: AtomicBool,
}

impl Room {
    /// Of a store that is being opened: what is there is counted when it matters.
    pub fn new(capacity_bytes: Option<u64>) -> Self {
        Self { capacity_bytes, used_bytes: Mutex::new(u64::MAX), is_stale: AtomicBool::new(true) }
    }

    /// Records died, or a segment was sealed or unlinked.
    pub fn freed(&self) {
        self.is_stale.store(true, Ordering::Release);
    }

    fn used(&self) -> MutexGuard<'_, u64> {
        self.used_bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// An error when `bytes` of new chunks would pass the capacity.
    pub(super) fn check_capacity(&self, bytes: u64) -> Result<(), StoreError> {
        let Some(capacity_bytes) = self.room.capacity_bytes else { return Ok(()) };
        self.fit(&mut self.room.used(), bytes, capacity_bytes)
    }

    /// Counts `bytes` that `reserve` gives a place to; of chunks only if they fit.
    pub(super) fn take_room<T>(
        &self,
        bytes: u64,
        are_chunks: bool,
        reserve: impl FnOnce() -> T,
    ) -> Result<T, StoreError> {
        let Some(capacity_bytes) = self.room.capacity_bytes else { return Ok(reserve()) };
        // Held over the reservation: a count finds both it and these bytes, or neither.
        let mut used = self.room.used();
        if are_chunks {
            self.fit(&mut used, bytes, capacity_bytes)?;
        }
        let reserved = reserve();
        *used = used.saturating_add(bytes);
        Ok(reserved)
    }

    fn fit(&self, used: &mut u64, bytes: u64, capacity_bytes: u64) -> Result<(), StoreError> {
        if used.saturating_add(bytes) > capacity_bytes && self.room.is_stale.swap(false, Ordering::AcqRel) {
            *used = self.segments().iter().map(|entry| entry.bytes_reserved()).sum();
        }
        if used.saturating_add(bytes) <= capacity_bytes {
            return Ok(());
        }
        Err(StoreError::NoSpace { reason: NoRoom::Capacity { used_bytes: *used, capacity_bytes } })
    }

    /// What may still be taken; all there is without a limit.
    pub(super) fn room_left(&self) -> u64 {
        let Some(capacity_bytes) = self.room.capacity_bytes else { return u64::MAX };
        capacity_bytes.saturating_sub(*self.room.used())
    }
}

/// An error when the file system is too full for new chunks.
pub(super) fn check_free(free_bytes: u64) -> Result<(), StoreError> {
    if free_bytes < FREE_BYTES_RESERVE { Err(StoreError::no_space(free_bytes)) } else { Ok(()) }
}
