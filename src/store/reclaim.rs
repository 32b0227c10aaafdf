//! Giving space back on request: sealing what holds dead chunks, compacting segments of small records.
//!
//! A dead chunk in a bulk segment is punched, at once or when the segment is sealed. Small records share blocks; their
//! segments are copied instead, when mostly dead, or when there are many short ones (each start leaves one): what is
//! alive goes through the committer once more, and once that is durable the old file is unlinked.
//!
//! | record | is carried |
//! | --- | --- |
//! | chunk | when the index says that it lies here; under its address lock; without waiting: a chunk that is busy leaves its segment for the next time |
//! | reference, name, death, document | when `keep` says so; without better knowledge always (the catalog's word: a reference may well come before its chunk) |
//! | removed | while the segment that it names exists: without it a footer would bring the dead chunk back |

use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use zerocopy::FromBytes;

use super::committer::{Message, Op};
use super::context::FLAG_REMOVED_AS_DAMAGED;
use super::disk::{Disk, DiskFile};
use super::finish::Effect;
use super::index::Place;
use super::recovery::Replayed;
use super::scan::{Window, checked_payload};
use super::segment::{self, BLOCK, name_of, record_bytes};
use super::shared::SegmentEntry;
use super::{Store, StoreError};
use crate::format::record::{RECORD_HEADER_BYTES, RecordKind, Removed};
use crate::format::segment::{FooterEntry, SegmentClass};
use crate::limits::{BATCH_BYTES_MAX, MIB, SMALL_SEGMENTS_SHORT_MAX};

impl<D: Disk> Store<D> {
    /// Seals this shard's segment if it holds dead chunks, and gives their space back. Shard 0 does the same for the
    /// segment of small records, and compacts.
    pub async fn seal_open(&self) -> Result<(), StoreError> {
        self.0.bulk.seal(|entry| !entry.phase().dead.is_empty()).await;
        for entry in self.shared().segments() {
            self.context().unlink_if_dead(&entry).await;
        }
        if self.context().shard != 0 {
            return Ok(());
        }
        let (answer, receiver) = oneshot::channel();
        self.context().send(Message::Seal { always: false, answer }).await?;
        receiver.await.unwrap_or(Err(StoreError::Closed))?;
        self.compact(&|_| true).await
    }

    /// Copies the living out of mostly dead segments of small records. `keep` decides on references, names, deaths and
    /// documents.
    pub async fn compact(&self, keep: &dyn Fn(&Replayed<'_>) -> bool) -> Result<(), StoreError> {
        let _alone = self.shared().housekeeping.lock().await;
        let small: Vec<_> = self
            .shared()
            .segments()
            .into_iter()
            .filter(|entry| entry.class == SegmentClass::Small && entry.is_sealed())
            .collect();
        let short_max = self.shared().options.segment_bytes_max / 16;
        let is_short = |entry: &SegmentEntry| used(entry) < short_max;
        let many = small.iter().filter(|entry| is_short(entry)).count() > SMALL_SEGMENTS_SHORT_MAX;
        for entry in small {
            let mostly_dead = entry.dead_bytes.load(Ordering::Relaxed) * 2 > used(&entry);
            if mostly_dead || (many && is_short(&entry)) {
                self.compact_segment(&entry, keep).await?;
            }
        }
        Ok(())
    }

    async fn compact_segment(
        &self,
        entry: &SegmentEntry,
        keep: &dyn Fn(&Replayed<'_>) -> bool,
    ) -> Result<(), StoreError> {
        let name = name_of(entry.id);
        let failed = |error| StoreError::io("compacting", &name, error);
        let file = self.context().reader(entry.id).await.map_err(failed)?;
        let Some(entries) = entries_of::<D>(&file, entry).await.map_err(failed)? else {
            return Ok(()); // damaged: the next start walks it
        };
        let len = file.len().await.map_err(failed)?;
        let mut window = Window::new(file, len, MIB);
        let mut ops = Vec::new();
        let mut bytes = 0;
        let mut whole = true;
        for record in entries {
            if !self.may_live(entry.id, &record) {
                continue;
            }
            let len = RECORD_HEADER_BYTES + record.payload_bytes.get() as usize;
            let read = window.get(record.offset.get(), len).await.map_err(failed)?;
            let Some(payload) = checked_payload(read, &entry.nonce, &record) else {
                whole = false; // verification will find it; its segment stays until it was fetched again
                continue;
            };
            match self.carry(entry.id, &record, payload, keep) {
                Carry::Drop => {}
                Carry::Busy => whole = false,
                Carry::Take(op) => {
                    bytes += record_bytes(op.payload.len());
                    ops.push(op);
                }
            }
            if bytes >= BATCH_BYTES_MAX / 2 {
                bytes = 0;
                self.context().commit(std::mem::take(&mut ops)).await?;
            }
        }
        self.context().commit(ops).await?;
        if whole {
            self.context().unlink(entry.id).await;
        }
        Ok(())
    }

    fn may_live(&self, segment: u64, record: &FooterEntry) -> bool {
        record.kind != RecordKind::Chunk as u8 || self.shared().index.has(&record.address, &place_of(segment, record))
    }

    fn carry(&self, segment: u64, record: &FooterEntry, payload: &[u8], keep: &dyn Fn(&Replayed<'_>) -> bool) -> Carry {
        let (address, version) = (record.address, record.version);
        let Some(kind) = RecordKind::parse(record.kind) else { return Carry::Drop };
        let take =
            |effect| Carry::Take(Op { kind, flags: record.flags, address, version, payload: payload.to_vec(), effect });
        let kept = |replayed: &Replayed<'_>| if keep(replayed) { take(Effect::None) } else { Carry::Drop };
        match kind {
            RecordKind::Chunk => {
                let Some(lock) = self.shared().locks.try_lock(&address) else { return Carry::Busy };
                let candidates = self.shared().index.candidates(&address);
                let here = candidates.into_iter().find(|place| place.is_at(segment, record.offset.get()));
                match here {
                    None => Carry::Drop,
                    // Its bytes are not to be trusted and not to be forgotten: it stays until it is replaced.
                    Some(place) if place.is_quarantined() => Carry::Busy,
                    Some(from) => take(Effect::Move { from, lock }),
                }
            }
            RecordKind::Reference => kept(&Replayed::Reference { address, version, capsule: payload }),
            RecordKind::Name => kept(&Replayed::Name { payload }),
            RecordKind::Death => kept(&Replayed::Death { payload }),
            RecordKind::Document => kept(&Replayed::Document { payload }),
            RecordKind::Removed => {
                let target = Removed::read_from_bytes(payload).map_or(0, |removed| removed.segment.get());
                let damaged = record.flags & FLAG_REMOVED_AS_DAMAGED != 0;
                let meant = target != segment && self.shared().segment(target).is_some();
                let done = damaged && !self.shared().index.candidates(&address).iter().any(Place::is_quarantined);
                if meant && !done { take(Effect::Carry) } else { Carry::Drop }
            }
            RecordKind::Batch | RecordKind::Padding => Carry::Drop,
        }
    }
}

enum Carry {
    Take(Op),
    Drop,
    Busy,
}

fn used(entry: &SegmentEntry) -> u64 {
    entry.durable_end.load(Ordering::Relaxed).saturating_sub(BLOCK)
}

fn place_of(segment: u64, record: &FooterEntry) -> Place {
    Place { segment, offset: record.offset.get(), len: record.payload_bytes.get().max(1), flags: record.flags }
}

/// The records of a sealed segment, by offset.
pub(super) async fn entries_of<D: Disk>(
    file: &D::File,
    entry: &SegmentEntry,
) -> std::io::Result<Option<Vec<FooterEntry>>> {
    let Some(footer) = segment::read_footer(file, entry.id, &entry.nonce).await? else { return Ok(None) };
    let entries = segment::read_entries(file, &footer, &entry.nonce).await?;
    Ok(entries.map(|mut entries| {
        entries.sort_unstable_by_key(|entry| entry.offset.get());
        entries
    }))
}
