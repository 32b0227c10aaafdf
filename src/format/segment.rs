//! Segment files: header block and footer.
//!
//! Header, the first 4,096-byte block:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `gabion1\n` |
//! | 8 | 2 | format version |
//! | 10 | 1 | class: 1 bulk, 2 small |
//! | 11 | 1 | reserved, zero |
//! | 12 | 4 | block size in bytes |
//! | 16 | 16 | nonce: random, seeds every CRC in the file |
//! | 32 | 8 | segment id |
//! | 40 | 16 | store incarnation |
//! | 56 | 8 | created, Unix milliseconds |
//! | 64 | 4,028 | reserved, zero |
//! | 4,092 | 4 | CRC32 of bytes 0..4,092, unseeded |
//!
//! Footer, written at sealing, from a block boundary on: one entry per record, sorted by address, zeros up to a block
//! boundary, then one closing block whose last 64 bytes are the tail. A file is sealed exactly when its last block holds a
//! valid tail.
//!
//! Entry:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 32 | address |
//! | 32 | 16 | version |
//! | 48 | 8 | offset of the record's header in the file |
//! | 56 | 4 | payload bytes |
//! | 60 | 1 | kind |
//! | 61 | 1 | flags |
//! | 62 | 2 | reserved, zero |
//!
//! Tail:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `gabfoot1` |
//! | 8 | 8 | segment id |
//! | 16 | 8 | offset of the entries |
//! | 24 | 8 | end of the written records |
//! | 32 | 4 | number of entries |
//! | 36 | 4 | CRC32 of the entries, seeded with the nonce and their offset |
//! | 40 | 20 | reserved, zero |
//! | 60 | 4 | CRC32 of the 60 bytes before, seeded with the nonce and the tail's offset |

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::id::{Address, Incarnation, VersionId};
use crate::limits::BLOCK_BYTES;

pub const SEGMENT_MAGIC: [u8; 8] = *b"gabion1\n";
pub const SEGMENT_VERSION: u16 = 1;
pub const FOOTER_MAGIC: [u8; 8] = *b"gabfoot1";

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum SegmentClass {
    /// Chunks whose payloads start on block boundaries.
    Bulk = 1,
    /// Everything shorter, batched.
    Small = 2,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentHeader {
    pub magic: [u8; 8],
    pub version: U16,
    pub class: u8,
    pub reserved: u8,
    pub block_bytes: U32,
    pub nonce: [u8; 16],
    pub segment: U64,
    pub incarnation: Incarnation,
    pub created_ms: U64,
    pub unused: [u8; 4028],
    pub crc: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FooterEntry {
    pub address: Address,
    pub version: VersionId,
    /// Of the record's header in the file.
    pub offset: U64,
    pub payload_bytes: U32,
    pub kind: u8,
    pub flags: u8,
    pub reserved: U16,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FooterTail {
    pub magic: [u8; 8],
    pub segment: U64,
    /// Where the entries start.
    pub offset: U64,
    /// End of the written records.
    pub records_end: U64,
    pub records: U32,
    /// CRC32 of the entries, seeded with nonce and `offset`.
    pub entries_crc: U32,
    pub reserved: [u8; 20],
    /// CRC32 of the 60 bytes before, seeded with nonce and this tail's offset.
    pub crc: U32,
}

const _: () = assert!(size_of::<SegmentHeader>() == BLOCK_BYTES);
const _: () = assert!(std::mem::offset_of!(SegmentHeader, nonce) == 16);
const _: () = assert!(std::mem::offset_of!(SegmentHeader, crc) == 4092);
const _: () = assert!(size_of::<FooterEntry>() == 64);
const _: () = assert!(size_of::<FooterTail>() == 64);
