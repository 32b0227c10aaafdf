//! What every part of one shard's store works with: the shared state, the disk, open descriptors, the way to the
//! committer, and giving space back.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use zerocopy::{FromBytes, IntoBytes};

use super::committer::{Message, Op};
use super::disk::{Disk, DiskFile};
use super::finish::{Effect, Stray};
use super::index::Place;
use super::reclaim::entries_of;
use super::segment::name_of;
use super::shared::{SegmentEntry, Shared, State};
use super::{Applied, StoreError};
use crate::format::record::{RECORD_HEADER_BYTES, RecordHeader, RecordKind, Removed};
use crate::format::segment::{FooterEntry, SegmentClass};
use crate::format::{Address, VersionId};
use crate::io::buffers::Buffer;
use crate::limits::{DISOWN_ATTEMPTS_MAX, PLACES_TOUCHED_MAX, SEGMENT_READERS_PER_SHARD};

/// Hears what has become durable, on the thread that made it so and before anybody is told of success.
pub type Observer = Rc<dyn Fn(Applied)>;

/// Awaited before records are written: whoever keeps the index over the log may say so when it cannot keep up, or that it
/// cannot take any more. The observer itself must not wait.
pub type Backpressure = Rc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), StoreError>>>>>;

/// Starts a task on the calling thread.
pub type Spawn = fn(Pin<Box<dyn Future<Output = ()>>>);

/// `removed` records with this flag mark a place as quarantined: its bytes are wrong, the chunk is wanted all the same.
pub(super) const FLAG_REMOVED_AS_DAMAGED: u8 = 1 << 0;

pub(super) struct Context<D: Disk> {
    pub shared: Arc<Shared>,
    pub disk: D,
    pub shard: usize,
    pub observer: Observer,
    pub backpressure: Backpressure,
    pub spawn: Spawn,
    readers: RefCell<Readers<D>>,
    pub touched: RefCell<Touched>,
}

/// Through the page cache, or past it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Path {
    Cached,
    Direct,
}

/// Descriptors for reading, the least recently used closed first.
struct Readers<D: Disk> {
    files: HashMap<(u64, Path), (D::File, u64)>,
    clock: u64,
    gone_seen: u64,
}

/// What a look at a place's record header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Confirmed {
    Yes,
    /// A sound record of another chunk with the same fingerprint.
    Other,
    Damaged,
}

impl<D: Disk> Context<D> {
    pub fn new(
        shared: Arc<Shared>,
        disk: D,
        shard: usize,
        (observer, backpressure): (Observer, Backpressure),
        spawn: Spawn,
    ) -> Self {
        let gone_seen = shared.gone.load(Ordering::Acquire);
        let readers = RefCell::new(Readers { files: HashMap::new(), clock: 0, gone_seen });
        Self { shared, disk, shard, observer, backpressure, spawn, readers, touched: RefCell::default() }
    }

    /// A descriptor for reading this segment, through the page cache.
    pub async fn reader(&self, segment: u64) -> io::Result<D::File> {
        self.reader_by(segment, Path::Cached).await
    }

    pub async fn reader_by(&self, segment: u64, path: Path) -> io::Result<D::File> {
        if let Some(file) = self.open_reader(segment, path) {
            return Ok(file);
        }
        let file = match path {
            Path::Cached => self.disk.open(&name_of(segment), false).await?,
            Path::Direct => self.disk.open_direct(&name_of(segment)).await?,
        };
        let mut readers = self.readers.borrow_mut();
        readers.clock += 1;
        let now = readers.clock;
        readers.files.insert((segment, path), (file.clone(), now));
        if readers.files.len() > SEGMENT_READERS_PER_SHARD {
            let oldest = readers.files.iter().min_by_key(|(_, (_, used))| *used).map(|(segment, _)| *segment);
            oldest.and_then(|segment| readers.files.remove(&segment));
        }
        Ok(file)
    }

    fn open_reader(&self, segment: u64, path: Path) -> Option<D::File> {
        self.close_gone_readers();
        let mut readers = self.readers.borrow_mut();
        readers.clock += 1;
        let now = readers.clock;
        let (file, used) = readers.files.get_mut(&(segment, path))?;
        *used = now;
        Some(file.clone())
    }

    /// An open descriptor would keep the space of an unlinked segment.
    pub fn close_gone_readers(&self) {
        let gone = self.shared.gone.load(Ordering::Acquire);
        let mut readers = self.readers.borrow_mut();
        if readers.gone_seen != gone {
            readers.gone_seen = gone;
            readers.files.retain(|(segment, _), _| self.shared.segment(*segment).is_some());
        }
    }

    /// Reads the record header at a place and compares the full address.
    pub async fn confirm(
        &self,
        address: &Address,
        place: &Place,
    ) -> Result<(Confirmed, Option<VersionId>), StoreError> {
        let Some(entry) = self.shared.segment(place.segment) else { return Ok((Confirmed::Other, None)) };
        let failed = |error| StoreError::io("opening", &name_of(place.segment), error);
        let file = self.reader(place.segment).await.map_err(failed)?;
        let buffer = Buffer::heap(RECORD_HEADER_BYTES);
        let (result, buffer) = file.read_at(buffer, 0..RECORD_HEADER_BYTES, place.offset).await;
        let confirmed = match result {
            Ok(RECORD_HEADER_BYTES) => check_header(buffer.as_slice(), address, place, &entry.nonce),
            Ok(_) => Confirmed::Damaged,
            Err(error) => {
                tracing::warn!(?place, %error, "a record header cannot be read");
                Confirmed::Damaged
            }
        };
        let header = RecordHeader::read_from_bytes(buffer.as_slice()).ok();
        Ok((confirmed, header.filter(|_| confirmed == Confirmed::Yes).map(|header| header.version)))
    }

    /// What its segment's table says of the chunk at a place; none where there is no table (yet), or none of it there.
    pub async fn introduced(&self, place: &Place) -> Option<FooterEntry> {
        let entry = self.shared.segment(place.segment).filter(|entry| entry.is_sealed())?;
        let file = self.reader(place.segment).await.ok()?;
        let entries = entries_of::<D>(&file, &entry).await.ok()??;
        let found = entries.binary_search_by_key(&place.offset, |entry| entry.offset.get()).ok()?;
        entries.get(found).filter(|entry| entry.kind == RecordKind::Chunk as u8).copied()
    }

    /// Durable when it returns.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        let (answer, receiver) = oneshot::channel();
        self.send(Message::Write { ops, answer }).await?;
        receiver.await.unwrap_or(Err(StoreError::Closed))
    }

    pub async fn send(&self, message: Message) -> Result<(), StoreError> {
        self.shared.committer.send(message).await.map_err(|_| StoreError::Closed)
    }

    pub fn removed_op(&self, address: &Address, place: &Place, flags: u8, effect: Effect) -> Op {
        let removed = Removed { segment: place.segment.into(), offset: place.offset.into() };
        Op {
            kind: RecordKind::Removed,
            flags,
            address: *address,
            version: VersionId::ZERO,
            payload: removed.as_bytes().to_vec(),
            effect,
        }
    }

    /// Makes it durable that these places, in the index no more, are dead; then gives their space back. The versions that
    /// had introduced the replaced copies are references that must outlive them, so they come first.
    pub async fn retire(&self, address: Address, replaced: Vec<Superseded>) {
        let references = replaced.iter().filter_map(|old| old.version);
        let references = references.map(|version| reference_op(&address, &version)).collect();
        let removals = replaced
            .iter()
            .map(|old| self.removed_op(&address, &old.place, 0, Effect::Retire { place: old.place }))
            .collect();
        let committed = async {
            self.commit(references).await?;
            self.commit(removals).await
        };
        if let Err(error) = committed.await {
            tracing::warn!(?address, %error, "a replaced copy of a chunk keeps its space until the next start");
            return;
        }
        for old in replaced {
            if let Some(entry) = self.shared.segment(old.place.segment) {
                entry.count_dead(&old.place);
            }
            self.release(&old.place).await;
        }
    }

    /// Makes it durable that these writes, which failed, are no chunks, should they be whole on the disk all the same. Their
    /// space comes back when the next start seals the segment.
    pub async fn disown(&self, stray: Vec<Stray>) {
        for attempt in 1..=DISOWN_ATTEMPTS_MAX {
            let ops = stray.iter().map(|Stray { address, place, .. }| {
                self.removed_op(address, place, 0, Effect::Retire { place: *place })
            });
            match self.commit(ops.collect()).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(attempt, %error, "failed writes of chunks were not recorded as such"),
            }
        }
    }

    /// Gives a dead chunk's space back once nobody reads it: at once in a sealed segment, else at its sealing.
    pub async fn release(&self, place: &Place) {
        let Some(entry) = self.shared.segment(place.segment) else { return };
        if entry.class == SegmentClass::Small {
            return; // compaction does it
        }
        self.shared.locks.unguarded(place.segment, place.offset).await;
        let (start, len) = entry.extent(place);
        {
            let mut phase = entry.phase();
            if phase.state != State::Sealed {
                phase.dead.push((start, len));
                return;
            }
        }
        if self.unlink_if_dead(&entry).await {
            return;
        }
        let name = name_of(entry.id);
        match self.disk.open(&name, true).await {
            Ok(file) => self.punch(&file, entry.id, start, len).await,
            Err(error) => tracing::warn!(segment = %name, %error, "a dead chunk's space was not given back"),
        }
    }

    pub async fn punch(&self, file: &D::File, segment: u64, start: u64, len: u64) {
        if let Err(error) = file.punch(start, len).await {
            let name = name_of(segment);
            tracing::warn!(segment = %name, %error, "a dead chunk's space was not given back");
        }
    }

    /// Unlinks a sealed bulk segment without any chunk; whether it did.
    pub async fn unlink_if_dead(&self, entry: &SegmentEntry) -> bool {
        let dead =
            entry.class == SegmentClass::Bulk && entry.is_sealed() && entry.live_chunks.load(Ordering::Relaxed) == 0;
        if dead {
            self.unlink(entry.id).await;
        }
        dead
    }

    pub async fn unlink(&self, segment: u64) {
        if self.shared.segment(segment).is_none() {
            return;
        }
        self.shared.drop_segment(segment);
        self.close_gone_readers();
        let name = name_of(segment);
        let removed = async {
            self.disk.remove(&name).await?;
            self.disk.sync_directory().await
        };
        if let Err(error) = removed.await {
            tracing::warn!(segment = %name, %error, "an empty segment was not unlinked");
        }
    }
}

/// A copy that a new one replaces.
#[derive(Clone, Copy)]
pub(super) struct Superseded {
    pub place: Place,
    /// The version that introduced it, unless it was only cached.
    pub version: Option<VersionId>,
}

pub(super) fn reference_op(address: &Address, version: &VersionId) -> Op {
    Op {
        kind: RecordKind::Reference,
        flags: 0,
        address: *address,
        version: *version,
        payload: Vec::new(),
        effect: Effect::None,
    }
}

/// Whether these 64 bytes are the header of this chunk's record, at this place.
pub(super) fn check_header(bytes: &[u8], address: &Address, place: &Place, nonce: &[u8; 16]) -> Confirmed {
    let Ok(header) = RecordHeader::ref_from_bytes(bytes) else { return Confirmed::Damaged };
    if !header.is_valid_at(nonce, place.offset)
        || header.kind != RecordKind::Chunk as u8
        || header.payload_bytes.get() != place.len
    {
        return Confirmed::Damaged;
    }
    if header.address == *address { Confirmed::Yes } else { Confirmed::Other }
}

/// Places that were read from the device lately. The second time, a chunk is read through the page cache, and is hot from
/// then on; what is read once leaves no trace in memory.
#[derive(Default)]
pub(super) struct Touched {
    places: HashSet<(u64, u64)>,
    order: VecDeque<(u64, u64)>,
}

impl Touched {
    /// Whether this is not the first time; notes it.
    pub fn again(&mut self, place: &Place) -> bool {
        let place = (place.segment, place.offset);
        if self.places.remove(&place) {
            return true;
        }
        self.places.insert(place);
        self.order.push_back(place);
        if self.order.len() > PLACES_TOUCHED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.places.remove(&oldest);
        }
        false
    }
}
