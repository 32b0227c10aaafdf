//! File trees: the entry, and the shape that the length alone decides.
//!
//! Entry, 72 bytes: `address` 32, `key` 32, `span` 8 (file bytes below it). An inner node's plaintext is nothing but
//! its entries, in file order.
//!
//! A file of `length` bytes has ceil(length / 1 MiB) leaves. Depth 0: the root is the only leaf (or no chunk at all for
//! length 0). Depth d > 0: the root is an inner node of level d; a node of level n has level n-1 children, each but the
//! last of the whole file full (8,192^(n-1) MiB). So the shape follows from the length, and every length, span and
//! count that disagrees with it is an error before a byte comes out.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::id::Address;
use crate::limits::{CHUNK_BYTES_MAX, TREE_DEPTH_MAX, TREE_ENTRY_BYTES, TREE_FANOUT};

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, PartialEq, Eq)]
#[repr(C)]
pub struct TreeEntry {
    pub address: Address,
    /// The chunk's key: secret. (A plain array, since it is stored; holders zeroize what they copy out.)
    pub key: [u8; 32],
    pub span: U64,
}

const _: () = assert!(size_of::<TreeEntry>() == TREE_ENTRY_BYTES);

/// File bytes under one full node of `level` (0 = a leaf).
pub fn full_span_bytes(level: u8) -> u64 {
    (0..level).fold(CHUNK_BYTES_MAX as u64, |span, _| span.saturating_mul(TREE_FANOUT as u64))
}

/// The only depth a file of `length` bytes can have.
pub fn depth_of(length: u64) -> u8 {
    (0..=TREE_DEPTH_MAX).find(|&depth| length <= full_span_bytes(depth)).unwrap_or(TREE_DEPTH_MAX)
}

/// Leaves of a file of `length` bytes.
pub fn leaf_count(length: u64) -> u64 {
    length.div_ceil(CHUNK_BYTES_MAX as u64)
}
