//! The node: one process, one thread a core, everything below put together.
//!
//! ```text
//!                  control socket                TCP port (SO_REUSEPORT: one listener a shard)
//!                        |                             |
//!   commands ------> shard 0 .. shard n-1  <---- serve (answers to peers)
//!                        |  jobs go across, buffers and sockets never do
//!          +-------------+--------------+------------------+
//!       chunks        names         membership          deaths, reclaim, mend
//!          |             |              |
//!        store        catalog        peers, layouts                (shared by all shards)
//! ```
//! The catalog and the store's committer have threads of their own (`threads`), and each shard has one that only computes.
//!
//! Start-up: lock the data directory; load the keys, or found or join a network; open the store, which replays what the
//! catalog has not seen; listen; meet the other nodes. Nothing is served before a layout is known.
//!
//! Shutdown (SIGINT, SIGTERM): no new connections or commands; running ones are cancelled, which leaves nothing
//! half-done that anybody was told of; the segments are synced, the index is checkpointed; exit 0. What does not end
//! within [`SHUTDOWN_MAX`] is cut off: it was not acknowledged.

mod ask;
mod bootstrap;
mod cache;
mod checkpoints;
mod chunks;
mod commands;
mod connections;
pub mod control;
mod deaths;
mod doubt;
mod gather;
mod layout_turns;
mod log;
mod membership;
mod mend;
mod mend_log;
mod name_claims;
mod name_quorum;
mod name_scan;
mod name_sync;
mod names;
mod owners;
mod peers;
mod reclaim;
mod serve;
mod shard;
mod shared;
mod small;
mod start;
mod strangers;
mod threads;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::format::NodeId;
use crate::store::StoreError;

pub use start::run;

/// What a node that runs tells whoever started it.
#[derive(Debug, Clone)]
pub struct Ready {
    pub node_id: NodeId,
    /// As bound.
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
    /// This start has founded a network.
    pub founded: bool,
    pub member: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("the data directory {} cannot be used: {reason}", .path.display())]
    DataDir { path: PathBuf, reason: String },
    #[error("another gabion node runs on {}: stop it first, or give --data-dir another directory", .path.display())]
    Locked { path: PathBuf },
    #[error("{} was written by a newer gabion (data format {found}, this one knows {known}): update this program", .path.display())]
    NewerFormat { path: PathBuf, found: u32, known: u32 },
    #[error("{0}")]
    Keys(#[from] crate::crypto::keyfile::KeyFileError),
    #[error("the data directory belongs to another network than the ticket: give --data-dir another directory")]
    OtherNetwork,
    #[error(
        "the network's layout is missing from {}, which is of a node that has run: restore the directory from a copy, or \
         start anew with an empty --data-dir", .path.display()
    )]
    LayoutLost { path: PathBuf },
    #[error("cannot listen on {address}: {reason}")]
    Listen { address: SocketAddr, reason: String },
    #[error(transparent)]
    Ring(#[from] crate::io::RingError),
    #[error("{0}")]
    Store(#[from] crate::store::StoreError),
    #[error("{0}")]
    Catalog(#[from] crate::catalog::CatalogError),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
    #[error("a thread of the node ended before its time")]
    ThreadLost,
}

impl NodeError {
    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Keys(_) | Self::OtherNetwork => 7,
            Self::Store(StoreError::NoSpace { .. }) => 8,
            Self::Store(StoreError::Io { source, .. }) if source.kind() == ErrorKind::StorageFull => 8,
            Self::Io { source, .. } if source.kind() == ErrorKind::StorageFull => 8,
            _ => 1,
        }
    }
}

/// Unix milliseconds by the wall clock; a clock before 1970 counts as 1970.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_finds_no_space_to_start_in_ends_with_its_own_code() {
        let full = || std::io::Error::from(ErrorKind::StorageFull);
        assert_eq!(NodeError::from(StoreError::no_space(0)).exit_code(), 8);
        assert_eq!(NodeError::from(StoreError::io("writing", "1.seg", full())).exit_code(), 8);
        assert_eq!(NodeError::Io { what: "opening the data directory", source: full() }.exit_code(), 8);
        assert_eq!(NodeError::ThreadLost.exit_code(), 1);
    }
}
