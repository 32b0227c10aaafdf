//! Walking the records of a segment whose footer does not exist (yet): what recovery and verification build on.
//!
//! The walk goes from place to place in steps of 64 bytes. A header that is valid (its CRC is seeded with the file's
//! random nonce and its own offset) is a record, wherever it is found: a torn batch record hides nothing behind it. Its
//! payload is stepped over. What else is found is judged once the highest watermark of all batch records is known:
//!
//! | row | header | payload | end lies | is | and is |
//! | --- | --- | --- | --- | --- | --- |
//! | A | valid | whole | below the watermark | acknowledged | kept |
//! | B | valid | whole | above | written, perhaps acknowledged | kept |
//! | C | valid | broken | below | a media fault | a chunk: quarantined; else counted as lost |
//! | D | valid | broken | above | torn | skipped |
//! | E | invalid | - | below | a media fault | counted as lost; the walk goes on |
//! | F | invalid | - | above | torn | skipped; the walk goes on |
//! | G | zeros | - | below | a lost write | counted as lost; the walk goes on |
//! | H | zeros | - | above | never written | skipped; the walk goes on |
//! | I | unreadable, or valid | -, or unreadable | anywhere | a media fault | as row C, or as row E |
//!
//! The catalog's position in a segment is a watermark too: it was told of nothing before that was durable.
//!
//! Row I knows no watermark: what cannot be read may have been acknowledged. Such a file is left as it is
//! ([`super::recovery`]), since the next read may succeed.
//! Row B keeps what may never have been acknowledged: a write that failed may appear, and each record is idempotent.
//! A valid record is never dropped. The payloads of bulk chunks below the watermark are not read here: scrubbing
//! does that, and row C then holds for what it finds.

use std::collections::BTreeSet;
use std::io;

use zerocopy::FromBytes;

use super::committer::entry_of;
use super::disk::{DiskFile, read_exact};
use super::segment::{BLOCK, record_bytes, round_up};
use crate::format::record::{RECORD_HEADER_BYTES, RecordHeader, RecordKind};
use crate::format::segment::{FooterEntry, SegmentClass};
use crate::io::Buffer;
use crate::limits::{BLOCK_BYTES, MIB};

const HEADER: u64 = RECORD_HEADER_BYTES as u64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Whole,
    Broken,
    Invalid,
    Zeros,
    Unreadable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Row {
    A,
    B,
    C,
    D,
    E,
    F,
    G,
    H,
    I,
}

/// The table above.
pub(super) fn row(found: Found, below: bool) -> Row {
    match (found, below) {
        (Found::Whole, true) => Row::A,
        (Found::Whole, false) => Row::B,
        (Found::Broken, true) => Row::C,
        (Found::Broken, false) => Row::D,
        (Found::Invalid, true) => Row::E,
        (Found::Invalid, false) => Row::F,
        (Found::Zeros, true) => Row::G,
        (Found::Zeros, false) => Row::H,
        (Found::Unreadable, _) => Row::I,
    }
}

/// What a segment holds.
#[derive(Default)]
pub(super) struct Scan {
    /// Records of rows A, B and C, by offset; no batch and padding records.
    pub entries: Vec<FooterEntry>,
    /// Rows C and I.
    pub damaged: Vec<FooterEntry>,
    /// End of the last valid record's blocks.
    pub records_end: u64,
    /// Rows D and F: places that were torn.
    pub torn: u64,
    /// Rows E, G and I: blocks that were durable and are not records any more.
    pub lost: Vec<u64>,
    /// Blocks that could not be read, those inside records included.
    pub unreadable: BTreeSet<u64>,
    /// What lies before it is known to have been durable.
    pub watermark: u64,
}

struct Seen {
    entry: FooterEntry,
    end: u64,
    /// None: not looked at yet.
    found: Option<Found>,
}

struct Walk {
    nonce: [u8; 16],
    class: SegmentClass,
    seen: Vec<Seen>,
    /// Blocks with bytes that belong to no valid record.
    strange: Vec<(u64, Found)>,
    watermark: u64,
    end: u64,
}

/// Reads everything in `BLOCK..end`. What lies before `durable` is known to have been synced.
pub(super) async fn scan<F: DiskFile>(
    file: &F,
    nonce: [u8; 16],
    class: SegmentClass,
    end: u64,
    durable: u64,
) -> io::Result<Scan> {
    let window = if class == SegmentClass::Bulk { 16 * BLOCK_BYTES } else { MIB };
    let mut window = Window::new(file.clone(), end, window);
    let mut walk = Walk { nonce, class, seen: Vec::new(), strange: Vec::new(), watermark: durable, end };
    let mut at = BLOCK;
    while at + HEADER <= end {
        at = walk.step(&mut window, at).await?;
    }
    for seen in &mut walk.seen {
        if seen.found.is_none() {
            let unchecked = walk.class == SegmentClass::Bulk && seen.end <= walk.watermark;
            seen.found =
                Some(if unchecked { Found::Whole } else { look(&mut window, &walk.nonce, &seen.entry).await? });
        }
    }
    let mut scan = walk.judge();
    scan.unreadable = window.unreadable;
    Ok(scan)
}

impl Walk {
    /// Looks at one place; returns the next.
    async fn step<F: DiskFile>(&mut self, window: &mut Window<F>, at: u64) -> io::Result<u64> {
        let block = at / BLOCK * BLOCK;
        window.get(block, BLOCK_BYTES).await?;
        if window.is_unreadable(block, BLOCK_BYTES) {
            self.strange.push((block, Found::Unreadable));
            return Ok(block + BLOCK);
        }
        if at == block && is_zero(window.get(at, BLOCK_BYTES).await?) {
            self.strange.push((at, Found::Zeros));
            return Ok(at + BLOCK);
        }
        let bytes = window.get(at, RECORD_HEADER_BYTES).await?;
        let header = RecordHeader::read_from_bytes(bytes).ok();
        let Some(header) = header.filter(|header| self.is_sound(header, at)) else {
            self.note_strange(at);
            return Ok(at + HEADER);
        };
        let payload_bytes = header.payload_bytes.get() as usize;
        let end = at + record_bytes(payload_bytes) as u64;
        match RecordKind::parse(header.kind) {
            Some(RecordKind::Batch) => {
                let claimed = header.as_batch().map_or(0, |batch| batch.watermark.get());
                // Nobody can have synced what lies behind the batch that says so.
                self.watermark = self.watermark.max(claimed.min(at));
            }
            Some(RecordKind::Padding) | None => {}
            Some(_) => {
                let entry = entry_of(&header, at);
                let found = match self.class {
                    SegmentClass::Bulk => None,
                    SegmentClass::Small => Some(look(window, &self.nonce, &entry).await?),
                };
                self.seen.push(Seen { entry, end, found });
                if self.class == SegmentClass::Bulk {
                    return Ok(round_up(end, BLOCK));
                }
            }
        }
        Ok(end)
    }

    fn is_sound(&self, header: &RecordHeader, at: u64) -> bool {
        header.is_valid_at(&self.nonce, at) && at + HEADER + u64::from(header.payload_bytes.get()) <= self.end
    }

    fn note_strange(&mut self, at: u64) {
        let block = at / BLOCK * BLOCK;
        if self.strange.last().is_none_or(|(last, _)| *last != block) {
            self.strange.push((block, Found::Invalid));
        }
    }

    fn judge(self) -> Scan {
        let mut scan = Scan { records_end: BLOCK, watermark: self.watermark, ..Scan::default() };
        for seen in self.seen {
            match row(seen.found.unwrap_or(Found::Broken), seen.end <= self.watermark) {
                Row::A | Row::B => scan.entries.push(seen.entry),
                Row::C | Row::I => {
                    scan.entries.push(seen.entry);
                    scan.damaged.push(seen.entry);
                }
                _ => {
                    scan.torn += 1;
                    continue;
                }
            }
            scan.records_end = round_up(seen.end, BLOCK);
        }
        for (block, found) in self.strange {
            match row(found, block < self.watermark) {
                Row::E | Row::G | Row::I => scan.lost.push(block),
                Row::F => scan.torn += 1,
                _ => {}
            }
        }
        scan
    }
}

/// Reads and checks one record.
async fn look<F: DiskFile>(window: &mut Window<F>, nonce: &[u8; 16], entry: &FooterEntry) -> io::Result<Found> {
    let (offset, len) = (entry.offset.get(), RECORD_HEADER_BYTES + entry.payload_bytes.get() as usize);
    let is_whole = checked_payload(window.get(offset, len).await?, nonce, entry).is_some();
    Ok(match is_whole {
        true => Found::Whole,
        false if window.is_unreadable(offset, len) => Found::Unreadable,
        false => Found::Broken,
    })
}

/// The payload in a record's bytes, if header and payload are what they were written as.
pub(super) fn checked_payload<'a>(bytes: &'a [u8], nonce: &[u8; 16], entry: &FooterEntry) -> Option<&'a [u8]> {
    let (header, payload) = bytes.split_at_checked(RECORD_HEADER_BYTES)?;
    let header = RecordHeader::ref_from_bytes(header).ok()?;
    let offset = entry.offset.get();
    (header.is_valid_at(nonce, offset) && header.kind == entry.kind && header.address == entry.address).then_some(())?;
    header.payload_is_valid_at(nonce, offset, payload).then_some(payload)
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && tail.iter().all(|byte| *byte == 0)
}

/// Reads a file through a buffer that holds a stretch of it. Blocks that the disk cannot read come as zeros, and are
/// remembered.
pub(super) struct Window<F: DiskFile> {
    file: F,
    file_end: u64,
    step: usize,
    buffer: Buffer,
    start: u64,
    len: usize,
    unreadable: BTreeSet<u64>,
}

impl<F: DiskFile> Window<F> {
    pub fn new(file: F, file_end: u64, step: usize) -> Self {
        Self { file, file_end, step, buffer: Buffer::heap(0), start: 0, len: 0, unreadable: BTreeSet::new() }
    }

    /// `len` bytes from `at` on; what lies behind the end reads as zeros.
    pub async fn get(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let held = at >= self.start && at + len as u64 <= self.start + self.len as u64;
        if !held {
            self.load(at, len).await?;
        }
        let from = (at - self.start) as usize;
        Ok(self.buffer.as_slice().get(from..from + len).unwrap_or_default())
    }

    /// Whether a block of this range, which was read, could not be.
    pub fn is_unreadable(&self, at: u64, len: usize) -> bool {
        self.unreadable.range(at / BLOCK * BLOCK..at + len as u64).next().is_some()
    }

    async fn load(&mut self, at: u64, len: usize) -> io::Result<()> {
        let start = at / BLOCK * BLOCK;
        let wanted = round_up(at + len as u64 - start, BLOCK).max(self.step as u64) as usize;
        let there = self.file_end.saturating_sub(start).min(wanted as u64) as usize;
        self.buffer = match read_exact(&self.file, start, there).await {
            Ok(read) if there == wanted => read,
            Ok(read) => {
                let mut buffer = Buffer::heap(wanted);
                buffer.as_mut_slice().get_mut(..there).unwrap_or_default().copy_from_slice(read.as_slice());
                buffer
            }
            Err(_) => self.load_by_block(start, wanted, there).await?,
        };
        self.start = start;
        self.len = wanted;
        Ok(())
    }

    async fn load_by_block(&mut self, start: u64, wanted: usize, there: usize) -> io::Result<Buffer> {
        let mut buffer = Buffer::heap(wanted);
        let readable = buffer.as_mut_slice().get_mut(..there).unwrap_or_default();
        for (number, block) in readable.chunks_mut(BLOCK_BYTES).enumerate() {
            let offset = start + number as u64 * BLOCK;
            match read_exact(&self.file, offset, block.len()).await {
                Ok(read) => block.copy_from_slice(read.as_slice()),
                Err(error) => {
                    tracing::warn!(offset, %error, "a block cannot be read");
                    self.unreadable.insert(offset);
                }
            }
        }
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_combination_meets_exactly_one_row() {
        let mut met = Vec::new();
        for found in [Found::Whole, Found::Broken, Found::Invalid, Found::Zeros, Found::Unreadable] {
            for below in [true, false] {
                met.push(row(found, below));
            }
        }
        assert_eq!(met, [Row::A, Row::B, Row::C, Row::D, Row::E, Row::F, Row::G, Row::H, Row::I, Row::I]);
    }
}
