//! Files in and out: streams to trees of encrypted chunks, and back, in constant memory on all cores.
//!
//! ```text
//! put:  input --1 MiB--> buffer --key, encrypt, address, in place--> ChunkSink     (any shard, any order)
//!                                                    entry --> window --> TreeBuilder --> ChunkSink (coordinator, in order)
//! get:  root --> Walk --nodes fetched, verified, checked--> runs of leaves          (coordinator)
//!                 leaf --> ChunkSource --> buffer --verify, decrypt, in place--> output (any shard; streams in order)
//! ```
//!
//! A job ([`PutJob`], [`GetJob`]) is shared by all shard threads. Each runs `work` with its own buffers; one of them,
//! the coordinator, also runs `finish` or `walk`, which holds the job's result. The first error, or `cancel`, stops the
//! job everywhere: chunks under way are let go, and no further one is begun.
//!
//! # Rules
//! - This layer knows no store and no wire: chunks go through [`ChunkSink`] and [`ChunkSource`].
//! - What a source delivers is not believed. A chunk is checked against its address, once, before it is decrypted (by
//!   the wire as it arrives, or here), a node against the shape that its parent gave it, and only then is a byte of
//!   either used.
//! - Nobody waits for another leaf while holding a buffer, except for its turn to write to a stream; and then all
//!   earlier leaves have their buffers, or get them: when the stream stands still, those that wait behind the leaf whose
//!   turn it is give theirs back (`get.rs`). So jobs that share a pool cannot block each other for ever.
//! - All jobs of a shard together leave some of its buffers alone (`share.rs`): chunks arrive in them. And streams leave
//!   some of the jobs' alone: a file never waits for somebody's pipe. A stream that stands still keeps one buffer; a
//!   further stream waits only where as many as the limit on them stand still on one shard.
//! - Memory of a job: `width` buffers a shard, one node (576 KiB) a level, a window of entries. Nothing grows with the
//!   file.

use std::future::Future;

use crate::crypto::cipher::{ChunkKey, apply_keystream, open_chunk};
use crate::format::{Address, VersionId};
use crate::io::{Buffer, Turn};
use crate::limits::{FETCH_ATTEMPTS_MAX, RECORD_HEAD_BYTES};

mod get;
mod input;
mod job;
mod output;
mod plain;
mod put;
mod share;
mod tree;
mod walk;
mod window;

pub use get::{GetError, GetJob, GetOptions, GetResult};
pub use input::{FileStamp, Input, InputKind};
pub use job::Progress;
pub use output::{Output, write_whole};
pub use plain::{Fetch, PlainOutput, get_plain};
pub use put::{PutError, PutJob, PutOptions, PutResult};
pub use share::Share;
pub use tree::{Finish, Node, TreeBuilder, TreeError, check_depth, check_node, check_padding, chunk_bytes};
pub use walk::{Inner, Leaf, LeafRun, Root, Step, Walk};

/// What became of a stored chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Some owner did not have it yet.
    pub new: bool,
}

/// Why a chunk could not be stored or fetched, after all other ways were tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("chunk {address:?} is on no node that can be reached")]
    NotFound { address: Address },
    #[error("every copy of chunk {address:?} that can be reached is damaged")]
    Damaged { address: Address },
    #[error("only {have} of the {need} nodes that must confirm a write can be reached")]
    TooFewNodes { have: usize, need: usize },
    #[error(
        "no space left for new chunks: too many of the nodes that would hold them are full, or have reached their \
         --capacity (gabion status says it there); remove files and run gabion reclaim there, or offer more space"
    )]
    NoSpace,
    #[error("network: {reason}")]
    Network { reason: String },
    #[error("cancelled")]
    Cancelled,
    #[error("{reason}")]
    Other { reason: String },
}

/// Where sealed chunks go.
pub trait ChunkSink: 'static {
    /// Stores the `len` bytes behind the record head of `buffer`, for `version`. Durable on enough owners once it
    /// returns. `share` is dropped as soon as nothing but a write of our own disk holds the buffer: waiting for a sync
    /// is no reason to keep the next chunk from being read.
    fn store(
        &self,
        address: Address,
        buffer: Buffer,
        len: usize,
        version: VersionId,
        share: Share,
    ) -> impl Future<Output = Result<Stored, ChunkError>>;
}

/// A chunk that a source delivered, behind the record head of its buffer.
pub enum Fetched {
    /// Read from somewhere that does not check: the vault does, in the turn in which it was read, if it was in one.
    Unchecked(Buffer, Turn),
    /// Hashed and found to be its address's since it came into this buffer, which nobody else can write to.
    Checked(Buffer),
}

/// Where sealed chunks come from.
pub trait ChunkSource: 'static {
    /// Puts the `len` bytes of a chunk behind the record head of `buffer`, from wherever. The vault verifies what is
    /// unchecked; when it is wrong it says so ([`Self::damaged`]) and asks again with the next `attempt`, counted from
    /// 0, for as long as there is an answer.
    fn fetch(
        &self,
        address: Address,
        len: usize,
        buffer: Buffer,
        attempt: u32,
    ) -> impl Future<Output = Result<Fetched, ChunkError>>;

    /// What the last `fetch` of this chunk delivered was not it.
    fn damaged(&self, address: &Address);
}

/// The chunk's place in a buffer.
fn payload_mut(buffer: &mut Buffer, len: usize) -> &mut [u8] {
    let (_head, payload) = buffer.as_mut_slice().split_at_mut(RECORD_HEAD_BYTES);
    payload.split_at_mut(len).0
}

/// Fetches a chunk until it is the right one, and decrypts it in place.
async fn fetch_open<S: ChunkSource>(
    source: &S,
    address: Address,
    key: &ChunkKey,
    len: usize,
    mut buffer: Buffer,
) -> Result<Buffer, ChunkError> {
    for attempt in 0..FETCH_ATTEMPTS_MAX {
        let fetched = source.fetch(address, len, buffer, attempt).await?;
        let (is_checked, turn);
        (is_checked, buffer, turn) = match fetched {
            Fetched::Checked(buffer) => (true, buffer, Turn::none()),
            Fetched::Unchecked(buffer, turn) => (false, buffer, turn),
        };
        let turn = if turn.is_none() { Turn::take(len).await } else { turn };
        let chunk = payload_mut(&mut buffer, len);
        let opened = if is_checked {
            apply_keystream(chunk, key);
            Ok(())
        } else {
            open_chunk(chunk, &address, key)
        };
        turn.pass();
        match opened {
            Ok(()) => return Ok(buffer),
            Err(mismatch) => {
                tracing::warn!(attempt, %mismatch, "a fetched chunk is not what was asked for");
                source.damaged(&address);
            }
        }
    }
    Err(ChunkError::Damaged { address })
}

#[cfg(test)]
mod tests;
