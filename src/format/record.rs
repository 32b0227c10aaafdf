//! Records: what a segment is made of.
//!
//! Record header, 64 bytes:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | `header_crc`: CRC32 of bytes 4..64, seeded with the segment's nonce and the record's offset |
//! | 4 | 4 | `payload_crc`: CRC32 of the payload, seeded alike; 0 for an empty payload |
//! | 8 | 1 | `kind` |
//! | 9 | 1 | `flags` |
//! | 10 | 2 | reserved, zero |
//! | 12 | 4 | `payload_bytes` |
//! | 16 | 32 | `address` (chunk, reference, removed: the chunk's; batch: [`Batch`]; else zero) |
//! | 48 | 16 | `version` (chunk: the version that introduced it, which is a reference; reference: the version) |
//!
//! Kinds:
//!
//! | kind | name | payload |
//! | --- | --- | --- |
//! | 1 | batch | none; opens a batch, always at a block boundary |
//! | 2 | chunk | the ciphertext |
//! | 3 | reference | none, or the sealed capsule of a root ([`super::name`]): {address, version} |
//! | 4 | name | a name record ([`super::name`]) |
//! | 5 | death | a signed death ([`super::certificate`]) |
//! | 6 | removed | segment id 8, record offset 8: that chunk record is dead |
//! | 7 | padding | zeros up to the end of a batch or to the next block boundary |
//! | 8 | document | a key of the node's own state, then its value: the later one in the log wins |
//!
//! A record starts at a multiple of 64 bytes. Replay of each kind is idempotent and needs no order between segments:
//! references are a union, of names the later clock wins, a death wins over all. (Documents live in one segment
//! lineage, the small one, and carry a serial of their own.)

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::id::{Address, VersionId};

/// Records start at multiples of this.
pub const RECORD_ALIGN_BYTES: usize = 64;
pub const RECORD_HEADER_BYTES: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RecordKind {
    Batch = 1,
    Chunk = 2,
    Reference = 3,
    Name = 4,
    Death = 5,
    Removed = 6,
    Padding = 7,
    Document = 8,
}

impl RecordKind {
    pub fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Batch,
            2 => Self::Chunk,
            3 => Self::Reference,
            4 => Self::Name,
            5 => Self::Death,
            6 => Self::Removed,
            7 => Self::Padding,
            8 => Self::Document,
            _ => return None,
        })
    }
}

/// The chunk is cached only: it counts as held by nobody and goes first when space is short.
pub const FLAG_CACHED: u8 = 1 << 0;
/// The chunk stands in for an owner that was away.
pub const FLAG_STAND_IN: u8 = 1 << 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct RecordHeader {
    pub header_crc: U32,
    pub payload_crc: U32,
    pub kind: u8,
    pub flags: u8,
    pub reserved: U16,
    pub payload_bytes: U32,
    pub address: Address,
    pub version: VersionId,
}

/// What a batch record carries in the place of the address.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Batch {
    /// Counts the batches of this segment from 0.
    pub sequence: U64,
    /// Blocks of this batch, this record's included.
    pub bytes: U64,
    /// Everything before this offset was on stable storage when this batch was submitted.
    pub watermark: U64,
    /// Records after this one, padding not counted.
    pub records: U32,
    pub reserved: U32,
}

/// Payload of a removed record.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Removed {
    pub segment: U64,
    pub offset: U64,
}

const _: () = assert!(size_of::<RecordHeader>() == RECORD_HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(RecordHeader, kind) == 8);
const _: () = assert!(std::mem::offset_of!(RecordHeader, address) == 16);
const _: () = assert!(std::mem::offset_of!(RecordHeader, version) == 48);
const _: () = assert!(size_of::<Batch>() == 32);
const _: () = assert!(size_of::<Removed>() == 16);

impl RecordHeader {
    /// A header without its CRCs: [`RecordHeader::seal`] sets them.
    pub fn new(kind: RecordKind, flags: u8, payload_bytes: u32, address: Address, version: VersionId) -> Self {
        Self {
            header_crc: U32::ZERO,
            payload_crc: U32::ZERO,
            kind: kind as u8,
            flags,
            reserved: U16::ZERO,
            payload_bytes: payload_bytes.into(),
            address,
            version,
        }
    }

    pub fn batch(batch: &Batch) -> Self {
        let mut address = Address::ZERO;
        address.0.copy_from_slice(batch.as_bytes());
        Self::new(RecordKind::Batch, 0, 0, address, VersionId::ZERO)
    }

    pub fn as_batch(&self) -> Option<Batch> {
        (self.kind == RecordKind::Batch as u8).then(|| Batch::read_from_bytes(&self.address.0).ok()).flatten()
    }

    /// Sets both CRCs for the place {`nonce`, `offset`}.
    pub fn seal(&mut self, nonce: &[u8; 16], offset: u64, payload: &[u8]) {
        self.payload_crc = if payload.is_empty() { U32::ZERO } else { crc(nonce, offset, payload).into() };
        self.header_crc = self.crc_at(nonce, offset).into();
    }

    /// Whether this header was written for exactly this place and is of a known kind.
    pub fn is_valid_at(&self, nonce: &[u8; 16], offset: u64) -> bool {
        self.header_crc.get() == self.crc_at(nonce, offset)
            && RecordKind::parse(self.kind).is_some()
            && self.reserved.get() == 0
    }

    pub fn payload_is_valid_at(&self, nonce: &[u8; 16], offset: u64, payload: &[u8]) -> bool {
        payload.len() == self.payload_bytes.get() as usize
            && (payload.is_empty() || self.payload_crc.get() == crc(nonce, offset, payload))
    }

    fn crc_at(&self, nonce: &[u8; 16], offset: u64) -> u32 {
        let (_, covered) = self.as_bytes().split_at_checked(4).unwrap_or_default();
        crc(nonce, offset, covered)
    }
}

/// CRC32 of `nonce || offset || bytes`: the same bytes in another place or file have another sum.
pub fn crc(nonce: &[u8; 16], offset: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(nonce);
    hasher.update(&offset.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}
