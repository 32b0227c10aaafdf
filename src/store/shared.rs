//! What all shard threads share: the index, the locks, the table of segments, the way to the small-record committer.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::{Notify, mpsc};

use super::StoreOptions;
use super::committer::Message;
use super::index::{Index, Place};
use super::locks::Locks;
use super::releases::Releases;
use super::room::Room;
use super::segment::extent;
use crate::format::Address;
use crate::format::segment::SegmentClass;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Takes records.
    Open,
    /// Failed, or being sealed: takes no more records, is not punched yet.
    Closed,
    Sealed,
}

pub(super) struct Phase {
    pub state: State,
    /// Extents of dead chunks {start, length} that wait for the sealing.
    pub dead: Vec<(u64, u64)>,
    /// Until the sealing: which places are dead or damaged. The record of that may stand in a segment that a checkpoint
    /// covers, which then has to say it for this one.
    pub notes: Vec<Note>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Note {
    pub offset: u64,
    pub damaged: bool,
}

/// One segment file, as every thread sees it.
pub(super) struct SegmentEntry {
    pub id: u64,
    pub class: SegmentClass,
    pub nonce: [u8; 16],
    phase: Mutex<Phase>,
    /// Records before this offset are durable.
    pub durable_end: AtomicU64,
    /// Of an open segment: places before this offset are given away.
    pub reserved_end: AtomicU64,
    /// Bytes of chunk records that are in the index.
    pub live_bytes: AtomicI64,
    pub live_chunks: AtomicI64,
    pub dead_bytes: AtomicU64,
    /// The checkpoint on disk has its slots.
    pub covered: AtomicBool,
    /// Of a segment of small records: how many versions were known as dead when it was last looked through.
    pub surveyed: AtomicU64,
}

impl SegmentEntry {
    pub fn new(id: u64, class: SegmentClass, nonce: [u8; 16], state: State, durable_end: u64) -> Arc<Self> {
        Arc::new(Self {
            id,
            class,
            nonce,
            phase: Mutex::new(Phase { state, dead: Vec::new(), notes: Vec::new() }),
            durable_end: AtomicU64::new(durable_end),
            reserved_end: AtomicU64::new(durable_end),
            live_bytes: AtomicI64::new(0),
            live_chunks: AtomicI64::new(0),
            dead_bytes: AtomicU64::new(0),
            covered: AtomicBool::new(false),
            surveyed: AtomicU64::new(0),
        })
    }

    pub fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_sealed(&self) -> bool {
        self.phase().state == State::Sealed
    }

    pub fn extent(&self, place: &Place) -> (u64, u64) {
        extent(self.class, place.offset, place.len)
    }

    pub fn count_live(&self, place: &Place) {
        self.live_bytes.fetch_add(self.extent(place).1 as i64, Ordering::Relaxed);
        self.live_chunks.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_dead(&self, place: &Place) {
        let bytes = self.extent(place).1;
        self.live_bytes.fetch_sub(bytes as i64, Ordering::Relaxed);
        self.live_chunks.fetch_sub(1, Ordering::Relaxed);
        self.dead_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that the segment takes on the disk.
    pub fn bytes_disk(&self) -> u64 {
        let end = self.durable_end.load(Ordering::Relaxed);
        match (self.class, self.is_sealed()) {
            (SegmentClass::Bulk, true) => end.saturating_sub(self.dead_bytes.load(Ordering::Relaxed)),
            _ => end,
        }
    }

    /// The same with the records that are on their way.
    pub fn bytes_reserved(&self) -> u64 {
        if self.is_sealed() { self.bytes_disk() } else { self.reserved_end.load(Ordering::Relaxed) }
    }
}

/// The part of the store that is `Send + Sync`.
pub struct Shared {
    pub(super) options: StoreOptions,
    pub(super) index: Index,
    pub(super) locks: Arc<Locks>,
    pub(super) room: Room,
    pub(super) releases: Arc<Releases>,
    segments: RwLock<BTreeMap<u64, Arc<SegmentEntry>>>,
    next_segment: AtomicU64,
    /// Counts the segments that went, so that each thread knows when to look through its open descriptors.
    pub(super) gone: AtomicU64,
    pub(super) quarantined: Mutex<HashSet<Address>>,
    pub(super) committer: mpsc::Sender<Message>,
    pub(super) committer_inbox: Mutex<Option<mpsc::Receiver<Message>>>,
    attached: AtomicUsize,
    pub(super) detached: Notify,
    pub(super) closed: AtomicBool,
    /// Segments that were unlinked, and that nobody asked for yet.
    unlinked: Mutex<Vec<u64>>,
    /// One compaction or checkpoint at a time.
    pub(super) housekeeping: tokio::sync::Mutex<()>,
}

impl Shared {
    pub(super) fn new(options: StoreOptions, index: Index, next_segment: u64) -> Self {
        let (committer, inbox) = mpsc::channel(crate::limits::COMMITTER_QUEUE_MESSAGES);
        Self {
            room: Room::new(options.capacity_bytes),
            options,
            index,
            locks: Locks::new(),
            releases: Arc::default(),
            segments: RwLock::default(),
            next_segment: AtomicU64::new(next_segment),
            gone: AtomicU64::new(0),
            quarantined: Mutex::default(),
            committer,
            committer_inbox: Mutex::new(Some(inbox)),
            attached: AtomicUsize::new(0),
            detached: Notify::new(),
            closed: AtomicBool::new(false),
            unlinked: Mutex::default(),
            housekeeping: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn segment(&self, id: u64) -> Option<Arc<SegmentEntry>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(super) fn segments(&self) -> Vec<Arc<SegmentEntry>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn add_segment(&self, entry: Arc<SegmentEntry>) {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).insert(entry.id, entry);
    }

    pub(super) fn drop_segment(&self, id: u64) {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.room.freed();
        self.gone.fetch_add(1, Ordering::AcqRel);
        self.unlinked.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    /// Segments that went since the last call, none of whose records will be told any more: their positions mean nothing.
    pub fn take_unlinked(&self) -> Vec<u64> {
        std::mem::take(&mut self.unlinked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn has_segment(&self, id: u64) -> bool {
        self.segment(id).is_some()
    }

    /// Ids are never used twice: a removed record names a segment for ever.
    pub(super) fn take_segment_id(&self) -> u64 {
        self.next_segment.fetch_add(1, Ordering::AcqRel)
    }

    pub(super) fn next_segment(&self) -> u64 {
        self.next_segment.load(Ordering::Acquire)
    }

    pub(super) fn quarantined(&self) -> MutexGuard<'_, HashSet<Address>> {
        self.quarantined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn attach(&self) {
        self.attached.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn detach(&self) {
        self.attached.fetch_sub(1, Ordering::AcqRel);
        self.detached.notify_waiters();
    }

    pub(super) fn attached(&self) -> usize {
        self.attached.load(Ordering::Acquire)
    }

    /// Puts a committed chunk into the index, and its bytes into its segment's account.
    pub(super) fn insert(&self, address: &Address, place: &Place) {
        self.index.insert(address, place);
        if let Some(entry) = self.segment(place.segment) {
            entry.count_live(place);
        }
    }

    /// Remembers for checkpoints what became of a place in a segment that is not sealed.
    pub(super) fn note(&self, place: &Place, damaged: bool) {
        let Some(entry) = self.segment(place.segment) else { return };
        let mut phase = entry.phase();
        if phase.state != State::Sealed {
            phase.notes.push(Note { offset: place.offset, damaged });
        }
    }

    /// Takes a place out of the index; its bytes are dead from now on. Whether it was there.
    pub(super) fn forget(&self, address: &Address, segment: u64, offset: u64) -> Option<Place> {
        let place = self.index.remove(address, segment, offset)?;
        if let Some(entry) = self.segment(segment) {
            entry.count_dead(&place);
            self.room.freed();
        }
        Some(place)
    }
}
