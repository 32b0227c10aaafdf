//! The index on disk, so that opening a store need not read every footer.
//!
//! A checkpoint covers the segments that were sealed when it was begun: its slots of these are complete, since whatever
//! changes a sealed segment's chunks later (a removal, a move, a quarantine) leaves a record in a segment that is not
//! covered, and those are replayed. The other way round, a covered segment may hold the record that a chunk in a segment
//! that is not covered is dead or damaged: these places are noted. A checkpoint is written beside, synced, and renamed
//! over the last one; anything wrong with it and the index is rebuilt from footers.
//!
//! | bytes | field |
//! | --- | --- |
//! | 64 | head: magic `gabindx1`, version 2, clean 1, zero 1, segments 4, quarantined 4, notes 4, next segment 8, key 32 |
//! | 16 each | covered segments: id 8, dead bytes 8 |
//! | 32 each | quarantined addresses |
//! | 16 each | notes: segment 8, offset 8, its lowest bit set for a damaged place, clear for a dead one |
//! | per table | count 4, then 16 each: slots |
//! | 32 | BLAKE3 of all before |
//! | | zeros to the block's end |

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::disk::{Disk, DiskFile};
use super::index::Index;
use super::scan::Window;
use super::shared::{Note, SegmentEntry, State};
use super::{Store, StoreError};
use crate::format::Address;
use crate::format::segment::SegmentClass;
use crate::io::Buffer;
use crate::limits::{
    BLOCK_BYTES, CHECKPOINT_SEGMENTS_MIN, CHECKPOINT_SEGMENTS_SHARE, CHECKPOINT_SLOTS_AT_ONCE,
    CHECKPOINT_TABLE_SLOTS_MAX, CHECKPOINT_TABLE_SLOTS_RESERVED_MAX, MIB,
};

pub(super) const NAME: &str = "index.checkpoint";
pub(super) const NAME_NEW: &str = "index.checkpoint.new";
const MAGIC: [u8; 8] = *b"gabindx1";
const VERSION: u16 = 1;
const SLOT_BYTES: usize = 16;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U16,
    clean: u8,
    reserved: u8,
    segments: U32,
    quarantined: U32,
    notes: U32,
    next_segment: U64,
    key: [u8; 32],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Covered {
    segment: U64,
    dead_bytes: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Noted {
    segment: U64,
    offset: U64,
}

const _: () = assert!(size_of::<Head>() == 64);
const _: () = assert!(size_of::<Noted>() == 16);
const _: () = assert!(size_of::<Covered>() == 16);

/// A checkpoint that was whole.
pub(super) struct Checkpoint {
    pub clean: bool,
    pub next_segment: u64,
    /// Covered segments and their dead bytes.
    pub covered: HashMap<u64, u64>,
    pub quarantined: HashSet<Address>,
    /// Of segments that are not covered.
    pub notes: HashMap<u64, Vec<Note>>,
    pub index: Index,
}

/// Loads the checkpoint, with the slots of segments that `usable` says are still as they were. None: there is none, or it
/// is damaged.
pub(super) async fn load<D: Disk>(disk: &D, usable: impl Fn(u64) -> bool) -> Result<Option<Checkpoint>, StoreError> {
    let file = match disk.open(NAME, false).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("opening", NAME, error)),
    };
    let len = file.len().await.map_err(|error| StoreError::io("reading", NAME, error))?;
    let mut reader = Reader { window: Window::new(file, len, MIB), at: 0, len, hash: blake3::Hasher::new() };
    let loaded = reader.checkpoint(usable).await;
    match loaded {
        Ok(checkpoint) => Ok(Some(checkpoint)),
        Err(Unusable::Newer(found)) => Err(StoreError::NewerFormat { file: NAME.to_owned(), found, known: VERSION }),
        Err(Unusable::Damaged(what)) => {
            tracing::warn!(what, "the index checkpoint is damaged; the index is rebuilt from the segments");
            Ok(None)
        }
    }
}

enum Unusable {
    Newer(u16),
    Damaged(&'static str),
}

struct Reader<F: DiskFile> {
    window: Window<F>,
    at: u64,
    len: u64,
    hash: blake3::Hasher,
}

impl<F: DiskFile> Reader<F> {
    async fn take<T: FromBytes>(&mut self) -> Result<T, Unusable> {
        let bytes = self.bytes(size_of::<T>()).await?;
        T::read_from_bytes(bytes).map_err(|_| Unusable::Damaged("length"))
    }

    async fn bytes(&mut self, len: usize) -> Result<&[u8], Unusable> {
        if self.at + len as u64 > self.len {
            return Err(Unusable::Damaged("cut short"));
        }
        let bytes = self.window.get(self.at, len).await.map_err(|_| Unusable::Damaged("unreadable"))?;
        self.hash.update(bytes);
        self.at += len as u64;
        Ok(bytes)
    }

    async fn checkpoint(&mut self, usable: impl Fn(u64) -> bool) -> Result<Checkpoint, Unusable> {
        let head: Head = self.take().await?;
        if head.magic != MAGIC {
            return Err(Unusable::Damaged("magic"));
        }
        if head.version.get() > VERSION {
            return Err(Unusable::Newer(head.version.get()));
        }
        let mut covered = HashMap::new();
        for _ in 0..head.segments.get() {
            let Covered { segment, dead_bytes } = self.take().await?;
            covered.insert(segment.get(), dead_bytes.get());
        }
        let mut quarantined = HashSet::new();
        for _ in 0..head.quarantined.get() {
            quarantined.insert(Address(self.take().await?));
        }
        let mut notes: HashMap<u64, Vec<Note>> = HashMap::new();
        for _ in 0..head.notes.get() {
            let Noted { segment, offset } = self.take().await?;
            let note = Note { offset: offset.get() & !1, damaged: offset.get() & 1 != 0 };
            notes.entry(segment.get()).or_default().push(note);
        }
        let index = Index::new(head.key);
        // Mostly: then no slot's own need be looked up.
        let all_usable = covered.keys().all(|segment| usable(*segment));
        let is_usable = |slot: &u128| all_usable || usable(Index::place_of(*slot).segment);
        for table in 0..Index::table_count() {
            let count = self.take::<U32>().await?.get();
            if count > CHECKPOINT_TABLE_SLOTS_MAX {
                return Err(Unusable::Damaged("slots"));
            }
            // What is damaged must not ask for all memory: a longer table grows as it is filled.
            index.reserve(table, count.min(CHECKPOINT_TABLE_SLOTS_RESERVED_MAX) as usize);
            for left in (1..=count as usize).rev().step_by(CHECKPOINT_SLOTS_AT_ONCE) {
                let (slots, _) =
                    self.bytes(left.min(CHECKPOINT_SLOTS_AT_ONCE) * SLOT_BYTES).await?.as_chunks::<SLOT_BYTES>();
                let slots = slots.iter().map(|slot| u128::from_le_bytes(*slot));
                if !slots.clone().all(Index::is_slot) {
                    return Err(Unusable::Damaged("slot"));
                }
                index.load(table, slots.filter(is_usable));
            }
        }
        let expected = *self.hash.finalize().as_bytes();
        if self.take::<[u8; 32]>().await? != expected {
            return Err(Unusable::Damaged("checksum"));
        }
        let (clean, next_segment) = (head.clean == 1, head.next_segment.get());
        Ok(Checkpoint { clean, next_segment, covered, quarantined, notes, index })
    }
}

/// Writes whole blocks from pieces of any length.
struct Writer<F: DiskFile> {
    file: F,
    buffer: Vec<u8>,
    at: u64,
    hash: blake3::Hasher,
}

impl<F: DiskFile> Writer<F> {
    async fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() >= MIB {
            let rest = self.buffer.split_off(MIB);
            self.flush().await?;
            self.buffer = rest;
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        let len = self.buffer.len().next_multiple_of(BLOCK_BYTES);
        let mut block = Buffer::heap(len);
        block.as_mut_slice().get_mut(..self.buffer.len()).unwrap_or_default().copy_from_slice(&self.buffer);
        self.buffer.clear();
        self.file.write_at(block.freeze(), 0..len, self.at).await?;
        self.at += len as u64;
        Ok(())
    }
}

impl<D: Disk> Store<D> {
    /// Writes a checkpoint of the index, so that the next start reads less.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.write_checkpoint(false).await
    }

    /// Whether so many segments were sealed since the last checkpoint that a start after a crash would be slow to read
    /// their footers. In proportion to what there is, so that large stores do not write their index again and again.
    pub fn checkpoint_is_due(&self) -> bool {
        let (mut sealed, mut uncovered) = (0, 0);
        for entry in self.shared().segments().iter().filter(|entry| entry.is_sealed()) {
            sealed += 1;
            uncovered += usize::from(!entry.covered.load(Ordering::Relaxed));
        }
        uncovered >= CHECKPOINT_SEGMENTS_MIN.max(sealed / CHECKPOINT_SEGMENTS_SHARE)
    }

    pub(super) async fn write_checkpoint(&self, clean: bool) -> Result<(), StoreError> {
        let _alone = self.shared().housekeeping.lock().await;
        let disk = &self.context().disk;
        let written = async {
            match disk.remove(NAME_NEW).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = disk.create(NAME_NEW).await?;
            let covered = self.fill_checkpoint(file.clone(), clean).await?;
            file.sync_all().await?;
            disk.rename(NAME_NEW, NAME).await?;
            disk.sync_directory().await?;
            covered.iter().for_each(|entry| entry.covered.store(true, Ordering::Relaxed));
            Ok(())
        };
        written.await.map_err(|error| StoreError::io("writing", NAME, error))
    }

    /// Returns the segments that it covers.
    async fn fill_checkpoint(&self, file: D::File, clean: bool) -> io::Result<Vec<Arc<SegmentEntry>>> {
        let shared = self.shared();
        // First which segments, then their slots: what changes meanwhile stands in a segment that is not covered.
        let mut covered = HashMap::new();
        let mut notes = Vec::new();
        // A small segment may be sealed meanwhile, on the committer's thread. Whoever is seen as sealed has made its notes
        // about others before, so those are looked at after it: all other segments are, and small ones from the latest.
        let mut segments = shared.segments();
        segments.sort_unstable_by_key(|entry| (entry.class != SegmentClass::Small, Reverse(entry.id)));
        for entry in segments {
            let phase = entry.phase();
            let noted = |note: &Note| (entry.id, note.offset | u64::from(note.damaged));
            notes.extend(phase.notes.iter().map(noted));
            let sealed = phase.state == State::Sealed;
            drop(phase);
            if sealed {
                covered.insert(entry.id, entry);
            }
        }
        let quarantined: Vec<_> = shared.quarantined().iter().copied().collect();
        let head = Head {
            magic: MAGIC,
            version: VERSION.into(),
            clean: u8::from(clean),
            reserved: 0,
            segments: (covered.len() as u32).into(),
            quarantined: (quarantined.len() as u32).into(),
            notes: (notes.len() as u32).into(),
            next_segment: shared.next_segment().into(),
            key: *shared.index.key(),
        };
        let mut writer = Writer { file, buffer: Vec::with_capacity(2 * MIB), at: 0, hash: blake3::Hasher::new() };
        writer.put(head.as_bytes()).await?;
        for entry in covered.values() {
            let dead_bytes = entry.dead_bytes.load(Ordering::Relaxed).into();
            writer.put(Covered { segment: entry.id.into(), dead_bytes }.as_bytes()).await?;
        }
        for address in &quarantined {
            writer.put(address.as_bytes()).await?;
        }
        for (segment, offset) in notes {
            writer.put(Noted { segment: segment.into(), offset: offset.into() }.as_bytes()).await?;
        }
        for table in 0..Index::table_count() {
            let slots = shared.index.dump(table, |place| covered.contains_key(&place.segment));
            writer.put(&(slots.len() as u32).to_le_bytes()).await?;
            for slot in slots {
                writer.put(&slot.to_le_bytes()).await?;
            }
        }
        let hash = *writer.hash.finalize().as_bytes();
        writer.put(&hash).await?;
        writer.flush().await?;
        Ok(covered.into_values().collect())
    }
}
