//! Segment files: names, header block, footer, and where a record's bytes lie.
//!
//! Life of a segment file:
//!
//! ```text
//! created -> (header written, file and directory synced) -> open -> full or told to -> sealed -> dead -> unlinked
//!                                                            |
//!                                                            +-> failed: the first failed write or sync; readable, no
//!                                                                more writes; recovery seals it at the next start
//! ```
//!
//! The footer ends the file, so that the file's last block tells whether it is sealed. A file is preallocated in steps
//! and never truncated: the footer goes to the end of what is allocated, and the unused middle is punched. Recovery
//! cannot know which blocks behind the last whole record were touched by a torn write, and no block is written
//! twice: its footer goes behind the end of the file as it found it.

use std::io;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::StoreError;
use super::disk::{Disk, DiskFile, read_exact};
use crate::format::Incarnation;
use crate::format::record::{RECORD_ALIGN_BYTES, RECORD_HEADER_BYTES, crc};
use crate::format::segment::{
    FOOTER_MAGIC, FooterEntry, FooterTail, SEGMENT_MAGIC, SEGMENT_VERSION, SegmentClass, SegmentHeader,
};
use crate::io::buffers::Buffer;
use crate::limits::{BLOCK_BYTES, RECORD_HEAD_BYTES};

pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;
const ENTRY_BYTES: usize = size_of::<FooterEntry>();
const TAIL_BYTES: usize = size_of::<FooterTail>();

pub(super) fn name_of(segment: u64) -> String {
    format!("segments/{segment:016x}.seg")
}

pub(super) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segments/")?.strip_suffix(".seg")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

pub(super) fn round_up(len: u64, unit: u64) -> u64 {
    len.div_ceil(unit) * unit
}

/// The bytes of a chunk's record, {start, length}: what removing it gives back.
pub(super) fn extent(class: SegmentClass, offset: u64, payload_bytes: u32) -> (u64, u64) {
    match class {
        SegmentClass::Bulk => (
            offset - (RECORD_HEAD_BYTES - RECORD_HEADER_BYTES) as u64,
            RECORD_HEAD_BYTES as u64 + round_up(u64::from(payload_bytes), BLOCK),
        ),
        SegmentClass::Small => (offset, record_bytes(payload_bytes as usize) as u64),
    }
}

/// A record in a batch of small ones: header, payload, up to the next place where a record may start.
pub(super) fn record_bytes(payload_bytes: usize) -> usize {
    RECORD_HEADER_BYTES + payload_bytes.next_multiple_of(RECORD_ALIGN_BYTES)
}

pub(super) fn header_block(
    segment: u64,
    class: SegmentClass,
    nonce: [u8; 16],
    incarnation: Incarnation,
    created_ms: u64,
) -> Buffer {
    let mut header = SegmentHeader::new_zeroed();
    header.magic = SEGMENT_MAGIC;
    header.version = SEGMENT_VERSION.into();
    header.class = class as u8;
    header.block_bytes = (BLOCK_BYTES as u32).into();
    header.nonce = nonce;
    header.segment = segment.into();
    header.incarnation = incarnation;
    header.created_ms = created_ms.into();
    header.crc = unseeded_crc(&header).into();
    let mut buffer = Buffer::heap(BLOCK_BYTES);
    buffer.as_mut_slice().copy_from_slice(header.as_bytes());
    buffer
}

fn unseeded_crc(header: &SegmentHeader) -> u32 {
    let (covered, _) = header.as_bytes().split_at(BLOCK_BYTES - 4);
    crc32fast::hash(covered)
}

/// What a valid header says.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub class: SegmentClass,
    pub nonce: [u8; 16],
}

/// None: not a header, or damaged. A sound header of a newer format is an error: its file must not be touched.
pub(super) fn parse_header(name: &str, segment: u64, block: &[u8]) -> Result<Option<Header>, StoreError> {
    let Ok(header) = SegmentHeader::ref_from_bytes(block) else { return Ok(None) };
    if header.magic != SEGMENT_MAGIC || header.crc.get() != unseeded_crc(header) {
        return Ok(None);
    }
    let found = header.version.get();
    if found > SEGMENT_VERSION {
        return Err(StoreError::NewerFormat { file: name.to_owned(), found, known: SEGMENT_VERSION });
    }
    let class = match header.class {
        1 => SegmentClass::Bulk,
        2 => SegmentClass::Small,
        _ => return Ok(None),
    };
    let sound = header.segment.get() == segment && header.block_bytes.get() as usize == BLOCK_BYTES;
    Ok(sound.then_some(Header { class, nonce: header.nonce }))
}

/// A checked footer, its entries not read yet.
#[derive(Clone, Copy)]
pub(super) struct Footer {
    pub entries_start: u64,
    pub records_end: u64,
    pub records: u32,
    entries_crc: u32,
}

pub(super) fn footer_bytes(records: usize) -> u64 {
    round_up((records * ENTRY_BYTES) as u64, BLOCK) + BLOCK
}

/// Where the footer of a segment whose header is damaged seems to start. Its CRC is seeded with the nonce in that header:
/// so what it says of itself must fit the length of the file.
pub(super) async fn footer_start<F: DiskFile>(file: &F, segment: u64, len: u64) -> Option<u64> {
    let bytes = read_exact(file, len.checked_sub(TAIL_BYTES as u64)?, TAIL_BYTES).await.ok()?;
    let tail = FooterTail::read_from_bytes(bytes.as_slice()).ok()?;
    let (start, records) = (tail.offset.get(), tail.records.get());
    let fits = start.checked_add(footer_bytes(records as usize)) == Some(len);
    (tail.magic == FOOTER_MAGIC && tail.segment.get() == segment && fits).then_some(start)
}

/// The footer of a sealed segment; None when the last block holds no valid tail.
pub(super) async fn read_footer<F: DiskFile>(file: &F, segment: u64, nonce: &[u8; 16]) -> io::Result<Option<Footer>> {
    let len = file.len().await?;
    if len < 2 * BLOCK || !len.is_multiple_of(BLOCK) {
        return Ok(None);
    }
    let offset = len - TAIL_BYTES as u64;
    let bytes = match read_exact(file, offset, TAIL_BYTES).await {
        Ok(bytes) => bytes,
        // An unreadable footer is rebuilt from the records.
        Err(error) => {
            tracing::warn!(segment = format_args!("{segment:016x}"), %error, "the footer cannot be read");
            return Ok(None);
        }
    };
    let Ok(tail) = FooterTail::read_from_bytes(bytes.as_slice()) else { return Ok(None) };
    let footer = Footer {
        entries_start: tail.offset.get(),
        records_end: tail.records_end.get(),
        records: tail.records.get(),
        entries_crc: tail.entries_crc.get(),
    };
    let sound = tail.magic == FOOTER_MAGIC
        && tail.segment.get() == segment
        && tail.crc.get() == tail_crc(&tail, nonce, offset)
        && footer.entries_start.checked_add(footer_bytes(footer.records as usize)) == Some(len)
        && footer.records_end <= footer.entries_start;
    Ok(sound.then_some(footer))
}

fn tail_crc(tail: &FooterTail, nonce: &[u8; 16], offset: u64) -> u32 {
    let (covered, _) = tail.as_bytes().split_at(TAIL_BYTES - 4);
    crc(nonce, offset, covered)
}

/// The entries, sorted by address; None when they are damaged (the records themselves may well be whole).
pub(super) async fn read_entries<F: DiskFile>(
    file: &F,
    footer: &Footer,
    nonce: &[u8; 16],
) -> io::Result<Option<Vec<FooterEntry>>> {
    let bytes = match read_exact(file, footer.entries_start, footer.records as usize * ENTRY_BYTES).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
        Err(_) => return Ok(None),
    };
    if crc(nonce, footer.entries_start, bytes.as_slice()) != footer.entries_crc {
        return Ok(None);
    }
    Ok(bytes
        .as_slice()
        .chunks_exact(ENTRY_BYTES)
        .map(|entry| FooterEntry::read_from_bytes(entry).ok())
        .collect::<Option<Vec<_>>>())
}

/// In the order of a footer. What is sorted is short: the entries themselves are 64 bytes, and tens of thousands in a
/// segment of small chunks.
fn by_address(entries: &[FooterEntry]) -> impl Iterator<Item = &FooterEntry> {
    let prefix = |entry: &FooterEntry| entry.address.0.first_chunk().copied().map_or(0, u64::from_be_bytes);
    let mut order: Vec<(u64, &FooterEntry)> = entries.iter().map(|entry| (prefix(entry), entry)).collect();
    order.sort_unstable_by(|(a, first), (b, second)| {
        a.cmp(b).then_with(|| (first.address, first.offset.get()).cmp(&(second.address, second.offset.get())))
    });
    order.into_iter().map(|(_, entry)| entry)
}

/// Writes and syncs the footer so that it ends the file, at or behind `start`; then gives back the unused middle.
/// Returns the length of the file.
pub(super) async fn write_footer<F: DiskFile>(
    file: &F,
    segment: u64,
    nonce: &[u8; 16],
    entries: &[FooterEntry],
    records_end: u64,
    start: u64,
    file_len: u64,
) -> io::Result<u64> {
    let bytes = footer_bytes(entries.len());
    let start = start.max(file_len.saturating_sub(bytes));
    let end = start + bytes;
    if end > file_len {
        file.allocate(file_len, end - file_len).await?;
    }
    let mut buffer = Buffer::heap(bytes as usize);
    let (covered, _) = buffer.as_mut_slice().split_at_mut(size_of_val(entries));
    for (place, entry) in covered.chunks_exact_mut(size_of::<FooterEntry>()).zip(by_address(entries)) {
        place.copy_from_slice(entry.as_bytes());
    }
    let mut tail = FooterTail {
        magic: FOOTER_MAGIC,
        segment: segment.into(),
        offset: start.into(),
        records_end: records_end.into(),
        records: (entries.len() as u32).into(),
        entries_crc: crc(nonce, start, covered).into(),
        reserved: [0; 20],
        crc: 0.into(),
    };
    tail.crc = tail_crc(&tail, nonce, end - TAIL_BYTES as u64).into();
    let (_, last) = buffer.as_mut_slice().split_at_mut(bytes as usize - TAIL_BYTES);
    last.copy_from_slice(tail.as_bytes());
    file.write_at(buffer.freeze(), 0..bytes as usize, start).await?;
    file.sync_all().await?;
    if start > records_end {
        // Space that is not given back is only space: the segment is sealed all the same.
        if let Err(error) = file.punch(records_end, start - records_end).await {
            tracing::warn!(segment = format_args!("{segment:016x}"), %error, "the unused tail was not punched");
        }
    }
    Ok(end)
}

/// Reads the header block of a file; None when it is shorter than that or cannot be read.
pub(super) async fn read_header<D: Disk>(disk: &D, segment: u64) -> Result<Option<(D::File, Header)>, StoreError> {
    let name = name_of(segment);
    let file = disk.open(&name, false).await.map_err(|error| StoreError::io("opening", &name, error))?;
    let Ok(block) = read_exact(&file, 0, BLOCK_BYTES).await else { return Ok(None) };
    Ok(parse_header(&name, segment, block.as_slice())?.map(|header| (file, header)))
}
