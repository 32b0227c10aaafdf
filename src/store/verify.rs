//! Reading everything again, and listing what is there.
//!
//! Verification goes through every record of every segment, also those that the index no longer knows: header and payload
//! CRC, and BLAKE3 of chunks against their address. A chunk in the index that fails is quarantined. What is dead may have
//! been punched and says nothing. It reads one record at a time and yields at each, so the caller sets the pace in
//! `progress`'s thread by how often it polls.

use std::sync::atomic::Ordering;

use super::disk::Disk;
use super::index::Place;
use super::reclaim::entries_of;
use super::scan::{Window, checked_payload, scan};
use super::segment::name_of;
use super::shared::SegmentEntry;
use super::{Store, StoreError};
use crate::format::record::{RECORD_HEADER_BYTES, RecordKind};
use crate::format::segment::FooterEntry;
use crate::format::{Address, VersionId};
use crate::limits::{BLOCK_BYTES, RECORDS_MENDED_AT_ONCE};

/// One chunk that was read again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verified {
    pub address: Address,
    pub len: usize,
    pub ok: bool,
}

/// A record without a chunk's payload that is not what it was: what its segment's table says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DamagedRecord {
    pub segment: u64,
    pub offset: u64,
    pub kind: DamagedKind,
    /// Of references.
    pub address: Address,
    pub version: VersionId,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DamagedKind {
    Reference,
    Name,
    Death,
    Document,
    Removed,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifyReport {
    pub chunks: u64,
    pub bytes: u64,
    pub damaged_chunks: u64,
    /// Whole records of other kinds.
    pub records: u64,
    pub damaged_records: u64,
    /// As many of them as are mended at a time.
    pub damaged: Vec<DamagedRecord>,
    /// Dead chunks whose bytes still stand, whole.
    pub dead_chunks: u64,
}

/// Where a listing goes on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AddressCursor {
    pub segment: u64,
    pub offset: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed {
    pub address: Address,
    pub len: usize,
    pub flags: u8,
    pub cursor: AddressCursor,
}

impl VerifyReport {
    fn note_damaged(&mut self, segment: u64, record: &FooterEntry) {
        let kind = match RecordKind::parse(record.kind) {
            Some(RecordKind::Reference) => DamagedKind::Reference,
            Some(RecordKind::Name) => DamagedKind::Name,
            Some(RecordKind::Death) => DamagedKind::Death,
            Some(RecordKind::Document) => DamagedKind::Document,
            Some(RecordKind::Removed) => DamagedKind::Removed,
            Some(RecordKind::Chunk | RecordKind::Batch | RecordKind::Padding) | None => return,
        };
        self.damaged_records += 1;
        if self.damaged.len() < RECORDS_MENDED_AT_ONCE {
            let (address, version) = (record.address, record.version);
            self.damaged.push(DamagedRecord { segment, offset: record.offset.get(), kind, address, version });
        }
    }
}

impl<D: Disk> Store<D> {
    pub async fn verify(&self, progress: &mut dyn FnMut(Verified)) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport::default();
        for entry in self.shared().segments() {
            self.verify_segment(&entry, &mut report, progress).await?;
        }
        Ok(report)
    }

    async fn verify_segment(
        &self,
        entry: &SegmentEntry,
        report: &mut VerifyReport,
        progress: &mut dyn FnMut(Verified),
    ) -> Result<(), StoreError> {
        let Some(entries) = self.records(entry).await? else { return Ok(()) };
        let failed = |error| StoreError::io("verifying", &name_of(entry.id), error);
        let end = entry.durable_end.load(Ordering::Acquire);
        for record in entries {
            let Ok(file) = self.context().reader(entry.id).await else { return Ok(()) }; // unlinked meanwhile
            let mut window = Window::new(file, end, BLOCK_BYTES);
            let len = RECORD_HEADER_BYTES + record.payload_bytes.get() as usize;
            let bytes = window.get(record.offset.get(), len).await.map_err(failed)?;
            let payload = checked_payload(bytes, &entry.nonce, &record);
            if record.kind != RecordKind::Chunk as u8 {
                match payload {
                    Some(_) => report.records += 1,
                    None => report.note_damaged(entry.id, &record),
                }
                continue;
            }
            let ok = payload.is_some_and(|payload| blake3::hash(payload).as_bytes() == &record.address.0);
            self.note(entry.id, &record, ok, report, progress).await;
        }
        Ok(())
    }

    async fn note(
        &self,
        segment: u64,
        record: &FooterEntry,
        ok: bool,
        report: &mut VerifyReport,
        progress: &mut dyn FnMut(Verified),
    ) {
        let address = record.address;
        let places = self.shared().index.candidates(&address);
        let Some(place) = places.into_iter().find(|place| place.is_at(segment, record.offset.get())) else {
            report.dead_chunks += u64::from(ok);
            return;
        };
        report.chunks += 1;
        report.bytes += place.len as u64;
        if !ok {
            report.damaged_chunks += 1;
            self.flag_damaged(&address, vec![place]).await;
        }
        progress(Verified { address, len: place.len as usize, ok });
    }

    /// The records of a segment by offset; None when it is gone.
    async fn records(&self, entry: &SegmentEntry) -> Result<Option<Vec<FooterEntry>>, StoreError> {
        let failed = |error| StoreError::io("reading", &name_of(entry.id), error);
        let Ok(file) = self.context().reader(entry.id).await else { return Ok(None) };
        if entry.is_sealed()
            && let Some(entries) = entries_of::<D>(&file, entry).await.map_err(failed)?
        {
            return Ok(Some(entries));
        }
        let end = entry.durable_end.load(Ordering::Acquire);
        let scan = scan(&file, entry.nonce, entry.class, end, 0).await.map_err(failed)?;
        Ok(Some(scan.entries))
    }

    /// Indexed chunks in the order of the log, at most about `limit` (whole segments are read at a time: ask for many).
    /// The next call goes on after the last one's cursor; an empty answer is the end. A chunk that moves meanwhile may
    /// come twice.
    pub async fn addresses(&self, after: Option<AddressCursor>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let mut listed = Vec::new();
        for entry in self.shared().segments() {
            if after.is_some_and(|after| entry.id < after.segment) || entry.live_chunks.load(Ordering::Relaxed) <= 0 {
                continue;
            }
            let Some(records) = self.records(&entry).await? else { continue };
            for record in records {
                let cursor = AddressCursor { segment: entry.id, offset: record.offset.get() };
                let seen = after.is_some_and(|after| cursor <= after);
                if seen || record.kind != RecordKind::Chunk as u8 {
                    continue;
                }
                if let Some(place) = self.indexed(&record.address, &cursor) {
                    let (address, len) = (record.address, place.len as usize);
                    listed.push(Listed { address, len, flags: place.flags, cursor });
                }
                if listed.len() >= limit {
                    return Ok(listed);
                }
            }
        }
        Ok(listed)
    }

    fn indexed(&self, address: &Address, cursor: &AddressCursor) -> Option<Place> {
        let places = self.shared().index.candidates(address);
        places.into_iter().find(|place| place.is_at(cursor.segment, cursor.offset) && !place.is_quarantined())
    }
}
