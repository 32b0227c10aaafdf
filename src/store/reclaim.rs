//! Giving space back on request: sealing what holds dead chunks, compacting segments of small records.
//!
//! A dead chunk in a bulk segment is punched, at once or when the segment is sealed. Small records share blocks; their
//! segments are copied instead, when mostly dead, or when there are many short ones (each start leaves one): what is
//! alive goes through the committer once more, and once that is durable the old file is unlinked.
//!
//! | record | is carried |
//! | --- | --- |
//! | chunk | when the index says that it lies here; under its address lock; without waiting: a chunk that is busy leaves its segment for the next time |
//! | reference, name, death, document | when [`Keep`] says so: the log still needs it |
//! | removed | while the segment that it names exists: without it a footer would bring the dead chunk back |
//!
//! Chunks are counted when they die, other records are not: whether a segment is mostly dead for their sake is found out
//! by looking through it, a few segments at a time and only when more versions have died since it was looked through last.
//!
//! A segment with damaged records stays as it is until somebody says of each of them that what it held stands elsewhere
//! ([`Store::retire_damaged`]): then it is copied without them. Any other record that cannot be read then, though it could
//! be when they were looked for, keeps the segment where it is.
//!
//! A crash at any moment leaves either the old segment, and perhaps some of its records a second time, or all that is kept
//! of it elsewhere: replaying both gives the same as replaying one. The record that makes another one superfluous (the
//! later name, the death, the newer document) was durable before it was asked for, and is kept itself.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use zerocopy::FromBytes;

use super::committer::{Message, Op};
use super::context::FLAG_REMOVED_AS_DAMAGED;
use super::disk::{Disk, DiskFile};
use super::finish::Effect;
use super::index::Place;
use super::scan::{Window, checked_payload};
use super::segment::{self, BLOCK, name_of, record_bytes};
use super::shared::SegmentEntry;
use super::{SmallRecord, Store, StoreError};
use crate::format::record::{RECORD_HEADER_BYTES, RecordKind, Removed};
use crate::format::segment::{FooterEntry, SegmentClass};
use crate::limits::{BATCH_BYTES_MAX, MIB, SMALL_SEGMENTS_SHORT_MAX};

/// Who knows which records the log still needs.
pub trait Keep {
    /// For each, whether it is carried along; true where that is not known. What a record is superfluous for must be
    /// durable.
    fn needed(&self, records: Vec<SmallRecord>) -> impl Future<Output = Vec<bool>>;

    /// Versions known as dead, and how many segments may be looked through for what that has made superfluous.
    fn survey(&self) -> impl Future<Output = Survey>;
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Survey {
    pub deaths: u64,
    pub segments_max: usize,
}

/// Without better knowledge.
pub struct KeepAll;

impl Keep for KeepAll {
    async fn needed(&self, records: Vec<SmallRecord>) -> Vec<bool> {
        vec![true; records.len()]
    }

    async fn survey(&self) -> Survey {
        Survey::default()
    }
}

/// A record that was read, and its payload.
type Read = (FooterEntry, Vec<u8>);

impl<D: Disk> Store<D> {
    /// Seals this shard's segment if it holds dead chunks, and gives their space back. Shard 0 has the committer do the same
    /// with the segment of small records, and compacts. Space of removed chunks that are being read is waited for, within
    /// a limit: their readers may be slow.
    pub async fn seal_open(&self, keep: &impl Keep) -> Result<(), StoreError> {
        if !self.shared().releases.ended_within(self.shared().options.release_wait_max).await {
            tracing::debug!("removed chunks are still being read: their space comes back later");
        }
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
        self.compact(keep).await
    }

    /// Copies the living out of mostly dead segments of small records.
    pub async fn compact(&self, keep: &impl Keep) -> Result<(), StoreError> {
        let _alone = self.shared().housekeeping.lock().await;
        let mut small: Vec<_> = self
            .shared()
            .segments()
            .into_iter()
            .filter(|entry| entry.class == SegmentClass::Small && entry.is_sealed())
            .collect();
        // Who was looked through longest ago comes first: the number of looks is limited.
        small.sort_by_key(|entry| entry.surveyed.load(Ordering::Relaxed));
        let short_max = self.shared().options.segment_bytes_max / 16;
        let is_short = |entry: &SegmentEntry| used(entry) < short_max;
        let many = small.iter().filter(|entry| is_short(entry)).count() > SMALL_SEGMENTS_SHORT_MAX;
        let mut survey = keep.survey().await;
        for entry in small {
            let mostly_dead = entry.dead_bytes.load(Ordering::Relaxed) * 2 > used(&entry);
            if mostly_dead || (many && is_short(&entry)) || self.is_worn(&entry, keep, &mut survey).await? {
                self.compact_segment(&entry, keep, &BTreeSet::new()).await?;
            }
        }
        Ok(())
    }

    /// Copies segments of small records without damaged records, chunks excepted, at these offsets. Whoever calls has made
    /// durable elsewhere what they held. A segment that is still there afterwards could not go yet.
    pub async fn retire_damaged(
        &self,
        mended: &BTreeMap<u64, BTreeSet<u64>>,
        keep: &impl Keep,
    ) -> Result<(), StoreError> {
        let (answer, receiver) = oneshot::channel();
        self.context().send(Message::Seal { always: true, answer }).await?;
        receiver.await.unwrap_or(Err(StoreError::Closed))?;
        // A removal that is dropped must not be missed by the next start: the checkpoint has it.
        self.checkpoint().await?;
        let _alone = self.shared().housekeeping.lock().await;
        for (segment, offsets) in mended {
            if let Some(entry) = self.shared().segment(*segment)
                && entry.class == SegmentClass::Small
                && entry.is_sealed()
            {
                self.compact_segment(&entry, keep, offsets).await?;
            }
        }
        Ok(())
    }

    /// Whether a segment is mostly dead with its superfluous records counted in.
    async fn is_worn(&self, entry: &SegmentEntry, keep: &impl Keep, survey: &mut Survey) -> Result<bool, StoreError> {
        if survey.segments_max == 0 || entry.surveyed.load(Ordering::Relaxed) >= survey.deaths {
            return Ok(false);
        }
        survey.segments_max -= 1;
        let mut dead = entry.dead_bytes.load(Ordering::Relaxed);
        let looked_through = self
            .each_page(entry, &BTreeSet::new(), async |page: Vec<Read>| {
                let bytes: Vec<u64> = page.iter().map(|(_, payload)| record_bytes(payload.len()) as u64).collect();
                let needed = self.judge(&page, keep).await;
                dead += bytes.iter().zip(needed).filter(|(_, needed)| !needed).map(|(bytes, _)| bytes).sum::<u64>();
                Ok(())
            })
            .await?;
        entry.surveyed.store(survey.deaths, Ordering::Relaxed);
        Ok(looked_through.is_some() && dead * 2 > used(entry))
    }

    /// `mended`: damaged records at these offsets are left behind.
    async fn compact_segment(
        &self,
        entry: &SegmentEntry,
        keep: &impl Keep,
        mended: &BTreeSet<u64>,
    ) -> Result<(), StoreError> {
        // Nothing is copied out of a segment that has to stay: it would be copied again each time.
        let mut stays = false;
        let readable = self
            .each_page(entry, mended, async |page: Vec<Read>| {
                stays |= page.iter().any(|(record, _)| self.is_quarantined_at(entry.id, record));
                Ok(())
            })
            .await?;
        if stays || readable != Some(true) {
            return Ok(());
        }
        let mut is_busy = false;
        let whole = self
            .each_page(entry, mended, async |page: Vec<Read>| {
                let needed = self.judge(&page, keep).await;
                let mut ops = Vec::new();
                for ((record, payload), needed) in page.into_iter().zip(needed) {
                    match self.carry(entry.id, &record, payload, needed) {
                        Carry::Drop => {}
                        Carry::Busy => is_busy = true,
                        Carry::Take(op) => ops.push(op),
                    }
                }
                self.context().commit(ops).await
            })
            .await?;
        if whole == Some(true) && !is_busy {
            self.context().unlink(entry.id).await;
        }
        Ok(())
    }

    /// Shows the records of a sealed segment that may live, some at a time. Whether all could be read, but for those that
    /// are mended; none when nobody knows which there are: the next start walks the segment.
    async fn each_page(
        &self,
        entry: &SegmentEntry,
        mended: &BTreeSet<u64>,
        mut show: impl AsyncFnMut(Vec<Read>) -> Result<(), StoreError>,
    ) -> Result<Option<bool>, StoreError> {
        let name = name_of(entry.id);
        let failed = |error| StoreError::io("compacting", &name, error);
        let file = self.context().reader(entry.id).await.map_err(failed)?;
        let Some(entries) = entries_of::<D>(&file, entry).await.map_err(failed)? else { return Ok(None) };
        let len = file.len().await.map_err(failed)?;
        let mut window = Window::new(file, len, MIB);
        let (mut page, mut bytes, mut whole) = (Vec::new(), 0, true);
        for record in entries {
            if !self.may_live(entry.id, &record) {
                continue;
            }
            let len = RECORD_HEADER_BYTES + record.payload_bytes.get() as usize;
            let read = window.get(record.offset.get(), len).await.map_err(failed)?;
            let Some(payload) = checked_payload(read, &entry.nonce, &record) else {
                // Verification will find any other, and its segment stays until it was mended or fetched again.
                whole &= mended.contains(&record.offset.get()) && record.kind != RecordKind::Chunk as u8;
                continue;
            };
            bytes += record_bytes(payload.len());
            page.push((record, payload.to_vec()));
            if bytes >= BATCH_BYTES_MAX / 2 {
                bytes = 0;
                show(std::mem::take(&mut page)).await?;
            }
        }
        show(page).await?;
        Ok(Some(whole))
    }

    /// What [`Keep`] says of the records that it is asked about; the others are needed as far as it knows.
    async fn judge(&self, page: &[Read], keep: &impl Keep) -> Vec<bool> {
        let asked: Vec<Option<SmallRecord>> =
            page.iter().map(|(record, payload)| small_record(record, payload)).collect();
        let places: Vec<bool> = asked.iter().map(Option::is_some).collect();
        let mut needed = keep.needed(asked.into_iter().flatten().collect()).await.into_iter();
        places.into_iter().map(|is_asked| !is_asked || needed.next().unwrap_or(true)).collect()
    }

    fn may_live(&self, segment: u64, record: &FooterEntry) -> bool {
        record.kind != RecordKind::Chunk as u8 || self.shared().index.has(&record.address, &place_of(segment, record))
    }

    /// A chunk whose bytes are not to be trusted and not to be forgotten: it stays until it is replaced.
    fn is_quarantined_at(&self, segment: u64, record: &FooterEntry) -> bool {
        let mut candidates = self.shared().index.candidates(&record.address).into_iter();
        record.kind == RecordKind::Chunk as u8
            && candidates.any(|place| place.is_at(segment, record.offset.get()) && place.is_quarantined())
    }

    fn carry(&self, segment: u64, record: &FooterEntry, payload: Vec<u8>, needed: bool) -> Carry {
        let (address, version) = (record.address, record.version);
        let Some(kind) = RecordKind::parse(record.kind).filter(|_| needed) else { return Carry::Drop };
        let take = |payload, effect| Carry::Take(Op { kind, flags: record.flags, address, version, payload, effect });
        match kind {
            RecordKind::Chunk => {
                let Some(lock) = self.shared().locks.try_lock(&address) else { return Carry::Busy };
                let candidates = self.shared().index.candidates(&address);
                let here = candidates.into_iter().find(|place| place.is_at(segment, record.offset.get()));
                match here {
                    None => Carry::Drop,
                    // Since the look at the whole segment.
                    Some(place) if place.is_quarantined() => Carry::Busy,
                    Some(from) => take(payload, Effect::Move { from, lock }),
                }
            }
            RecordKind::Reference | RecordKind::Name | RecordKind::Death | RecordKind::Document => {
                take(payload, Effect::None)
            }
            RecordKind::Removed => {
                let target = Removed::read_from_bytes(&payload).map_or(0, |removed| removed.segment.get());
                let damaged = record.flags & FLAG_REMOVED_AS_DAMAGED != 0;
                let meant = target != segment && self.shared().segment(target).is_some();
                let done = damaged && !self.shared().index.candidates(&address).iter().any(Place::is_quarantined);
                if meant && !done { take(payload, Effect::Carry) } else { Carry::Drop }
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

/// What [`Keep`] decides on.
fn small_record(record: &FooterEntry, payload: &[u8]) -> Option<SmallRecord> {
    let payload = || payload.to_vec();
    Some(match RecordKind::parse(record.kind)? {
        RecordKind::Reference => {
            SmallRecord::Reference { address: record.address, version: record.version, capsule: payload() }
        }
        RecordKind::Name => SmallRecord::Name(payload()),
        RecordKind::Death => SmallRecord::Death(payload()),
        RecordKind::Document => SmallRecord::Document(payload()),
        RecordKind::Chunk | RecordKind::Removed | RecordKind::Batch | RecordKind::Padding => return None,
    })
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
