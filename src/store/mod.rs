//! The store: segments as the only log, an index over them, group commit, recovery, removal, verification.
//!
//! Whatever is acknowledged here stands in a segment on stable storage; everything else (the index, the catalog) is
//! rebuilt from segments on any doubt. One store per data directory. [`Shared`] is `Send + Sync`; each shard thread
//! attaches a [`Store`] of its own to it.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`disk`], [`ring_disk`], `simulated` | the seam to the machine, io_uring behind it, and the disk of the tests |
//! | [`segment`] | names, header and footer of segment files |
//! | [`appender`] | the open segment: reserve, write, sync, watermark, latch, roll over, seal |
//! | [`committer`] | the batches of small records of all threads |
//! | [`finish`] | what a durable record does to the index and tells the catalog |
//! | [`index`] | address -> place, 16 to 24 bytes a chunk |
//! | [`locks`] | address locks, pins, guards of places |
//! | [`releases`] | removed chunks that are still being read |
//! | [`small`] | short chunks, many at once |
//! | [`chunks`] | hold, stage, commit, read, locate, quarantine, remove |
//! | [`scan`], [`recovery`], [`checkpoint`] | opening a store |
//! | [`reclaim`] | sealing on request, compaction |
//! | [`room`] | whether new chunks are taken |
//! | [`verify`] | reading everything again, listing what is there |
//!
//! # What the catalog must know
//!
//! Every durable record is told through the observer before it is acknowledged to anybody. So the answer to "is this
//! chunk still referenced" (for [`Store::remove`]) must take into account all that the observer was sent until the
//! question came: drain first, then answer. References that are not durable yet are this layer's business (pins), also
//! those that come and go while the question is answered.
//!
//! The observer runs on the thread that wrote, and never waits. Where what it tells cannot be taken in as fast,
//! [`Backpressure`] holds the next records back before they are written.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::format::{Address, Incarnation, VersionId};
use crate::limits;

mod appender;
mod checkpoint;
mod chunks;
mod committer;
mod context;
mod disk;
mod finish;
mod index;
mod locks;
mod reclaim;
mod recovery;
mod releases;
mod ring_disk;
mod room;
mod scan;
mod segment;
mod shared;
#[cfg(test)]
pub(crate) mod simulated;
mod small;
#[cfg(test)]
mod tests;
mod verify;

pub use chunks::{Claim, Hold, Located, ReadOutcome, Refused, Removal, Staged};
pub use context::{Backpressure, Observer, Spawn};
pub use disk::{Disk, DiskFile};
pub use index::Place;
pub use locks::PlaceGuard;
pub use reclaim::{Keep, KeepAll, Survey};
pub use recovery::{DamagedSegment, OpenReport, Replayed, open};
pub use ring_disk::RingDisk;
pub use room::NoRoom;
pub use shared::Shared;
pub use small::SmallChunk;
pub use verify::{AddressCursor, DamagedKind, DamagedRecord, Listed, Verified, VerifyReport};

use appender::Appender;
use committer::{Committer, Message, Op};
use context::Context;
use finish::Effect;

#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("{doing} {name} failed: {source}")]
    Io { doing: &'static str, name: String, source: Arc<io::Error> },
    #[error("{file} was written by a newer gabion (format {found}, this one knows {known}): update this program")]
    NewerFormat { file: String, found: u16, known: u16 },
    #[error("{reason}")]
    NoSpace { reason: NoRoom },
    #[error("a {what} of {len_bytes} bytes was handed to the store, which takes {min_bytes} to {max_bytes}")]
    Length { what: &'static str, len_bytes: usize, min_bytes: usize, max_bytes: usize },
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Lack of space is told apart, whatever met it.
    pub(crate) fn io(doing: &'static str, name: &str, error: io::Error) -> Self {
        if is_of_space(&error) {
            return Self::NoSpace { reason: NoRoom::Failed { doing, name: name.into() } };
        }
        Self::Io { doing, name: name.to_owned(), source: Arc::new(error) }
    }

    pub(crate) fn no_space(free_bytes: u64) -> Self {
        Self::NoSpace { reason: NoRoom::Disk { free_bytes, reserve_bytes: limits::FREE_BYTES_RESERVE } }
    }
}

/// A segment's file, as messages name it.
pub fn segment_name(segment: u64) -> String {
    segment::name_of(segment)
}

pub(crate) fn is_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// How a store is opened. The sizes are limits of the format; tests make them smaller.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    pub shards: usize,
    /// Stands in the header of every segment made from now on.
    pub incarnation: Incarnation,
    /// 0: nonces and keys come from the operating system, as they must outside tests. Else they are derived from it.
    pub seed: u64,
    pub segment_bytes_max: u64,
    pub segment_records_max: u32,
    pub step_bytes: u64,
    /// New chunks are refused once records would take more; only the file system limits them when absent.
    pub capacity_bytes: Option<u64>,
    /// How long [`Store::seal_open`] waits for the space of removed chunks that are still being read.
    pub release_wait_max: Duration,
    /// A mutation for the tests: acknowledge without a sync. The crash tests must catch it.
    #[cfg(test)]
    pub acknowledge_unsynced: bool,
}

impl StoreOptions {
    pub fn new(shards: usize, incarnation: Incarnation, seed: u64) -> Self {
        Self {
            shards,
            incarnation,
            seed,
            segment_bytes_max: limits::SEGMENT_BYTES_MAX,
            segment_records_max: limits::SEGMENT_RECORDS_MAX,
            step_bytes: limits::SEGMENT_STEP_BYTES,
            capacity_bytes: None,
            release_wait_max: limits::RELEASE_WAIT_MAX,
            #[cfg(test)]
            acknowledge_unsynced: false,
        }
    }

    pub(crate) fn nonce(&self, segment: u64) -> [u8; 16] {
        if self.seed == 0 {
            return rand::random();
        }
        let hash = blake3::hash(&[self.seed.to_le_bytes(), segment.to_le_bytes()].concat());
        hash.as_bytes().first_chunk().copied().unwrap_or_default()
    }

    pub(crate) fn index_key(&self) -> [u8; 32] {
        if self.seed == 0 { rand::random() } else { *blake3::hash(&self.seed.to_le_bytes()).as_bytes() }
    }
}

/// What became durable, in log order per segment; sent before anybody is told of success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub segment: u64,
    /// Every record of the segment before this offset has been told.
    pub end_offset: u64,
    pub events: Vec<AppliedEvent>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppliedEvent {
    /// The version that introduced a chunk is its first reference.
    Chunk {
        address: Address,
        version: VersionId,
        flags: u8,
    },
    /// `capsule`: of a root, sealed; else empty.
    Reference {
        address: Address,
        version: VersionId,
        capsule: Vec<u8>,
        /// Nothing but this chunk was ever referred to by this version.
        is_first: bool,
    },
    Name {
        payload: Vec<u8>,
    },
    Death {
        payload: Vec<u8>,
    },
    Document {
        payload: Vec<u8>,
    },
    /// No copy of this chunk is here any more.
    Removed {
        address: Address,
    },
}

/// A record without a chunk's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SmallRecord {
    /// `capsule`: of a root, sealed; else empty.
    Reference {
        address: Address,
        version: VersionId,
        capsule: Vec<u8>,
    },
    Name(Vec<u8>),
    Death(Vec<u8>),
    Document(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreStats {
    pub chunks: u64,
    /// Bytes of indexed chunks' records.
    pub bytes_live: u64,
    /// Bytes of all records that take space, dead ones that wait for sealing or compaction included.
    pub bytes_disk: u64,
    pub segments: u64,
    pub quarantined: u64,
    /// Whether there is room for new chunks.
    pub writable: bool,
    pub index_bytes: u64,
}

struct Inner<D: Disk> {
    context: Rc<Context<D>>,
    bulk: Rc<Appender<D>>,
}

/// One shard thread's handle of the store.
pub struct Store<D: Disk>(Rc<Inner<D>>);

impl<D: Disk> Clone for Store<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The small records that all shards want written. Dropped, each of them is an error from then on.
pub struct SmallRecords(tokio::sync::mpsc::Receiver<Message>);

impl SmallRecords {
    /// # Panics
    /// When they were taken before.
    pub fn of(shared: &Shared) -> Self {
        let inbox = shared.committer_inbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        Self(inbox.unwrap_or_else(|| panic!("a store has one committer")))
    }

    /// Writes them, on the thread that runs this, until the store is closed.
    pub async fn commit<D: Disk>(
        self,
        shared: Arc<Shared>,
        disk: D,
        observer: Observer,
        backpressure: Backpressure,
        spawn: Spawn,
    ) {
        let context = Rc::new(Context::new(shared, disk, 0, (observer, backpressure), spawn));
        Committer::new(context, self.0).run().await;
    }
}

impl<D: Disk> Store<D> {
    /// One shard's handle. On the thread of shard 0, the small records are written as well.
    pub fn attach(shared: Arc<Shared>, disk: D, shard: usize, observer: Observer, spawn: Spawn) -> Self {
        let backpressure: Backpressure = Rc::new(|| Box::pin(async { Ok(()) }));
        if shard == 0 {
            let (records, shared, disk) = (SmallRecords::of(&shared), shared.clone(), disk.clone());
            spawn(Box::pin(records.commit(shared, disk, observer.clone(), backpressure.clone(), spawn)));
        }
        Self::attach_with(shared, disk, shard, observer, backpressure, spawn)
    }

    /// Chunks are written once `backpressure` has let them: what is durable is told at once, and never too much of it.
    /// Small records wait for who writes them: [`SmallRecords::commit`].
    pub fn attach_with(
        shared: Arc<Shared>,
        disk: D,
        shard: usize,
        observer: Observer,
        backpressure: Backpressure,
        spawn: Spawn,
    ) -> Self {
        shared.attach();
        let context = Rc::new(Context::new(shared, disk, shard, (observer, backpressure), spawn));
        let bulk = Appender::new(context.clone(), crate::format::segment::SegmentClass::Bulk);
        Self(Rc::new(Inner { context, bulk }))
    }

    fn context(&self) -> &Rc<Context<D>> {
        &self.0.context
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.context.shared
    }

    /// Durable when it returns.
    pub async fn append(&self, record: SmallRecord) -> Result<(), StoreError> {
        self.append_all(vec![record]).await
    }

    /// Durable all of them when it returns; after an error, any of them may be.
    pub async fn append_all(&self, records: Vec<SmallRecord>) -> Result<(), StoreError> {
        let ops = records.into_iter().map(small_op).collect::<Result<Vec<_>, _>>()?;
        let pins: Vec<_> = ops
            .iter()
            .filter(|op| op.kind == crate::format::record::RecordKind::Reference)
            .map(|op| self.shared().locks.pin(&op.address))
            .collect();
        let result = self.context().commit(ops).await;
        drop(pins);
        result
    }

    /// Whether new chunks of any length are taken.
    pub fn has_room(&self) -> bool {
        self.room().is_ok()
    }

    /// The same, and why not.
    pub fn room(&self) -> Result<(), StoreError> {
        self.check_room((limits::RECORD_HEAD_BYTES + limits::CHUNK_BYTES_MAX) as u64)
    }

    pub fn stats(&self) -> StoreStats {
        let shared = self.shared();
        let segments = shared.segments();
        StoreStats {
            chunks: shared.index.chunks(),
            bytes_live: segments
                .iter()
                .map(|entry| entry.live_bytes.load(std::sync::atomic::Ordering::Relaxed).max(0) as u64)
                .sum(),
            bytes_disk: segments.iter().map(|entry| entry.bytes_disk()).sum(),
            segments: segments.len() as u64,
            quarantined: shared.quarantined().len() as u64,
            writable: self.has_room(),
            index_bytes: shared.index.bytes(),
        }
    }

    /// Ends this shard's part: everything given to it becomes durable and its segment is sealed. Shard 0 waits for all
    /// others, then closes the committer and leaves a checkpoint that makes the next start a clean one.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.0.bulk.close().await;
        let shared = self.shared();
        if self.context().shard != 0 {
            shared.detach();
            return Ok(());
        }
        loop {
            let detached = shared.detached.notified();
            if shared.attached() <= 1 {
                break;
            }
            detached.await;
        }
        let (answer, receiver) = tokio::sync::oneshot::channel();
        self.context().send(Message::Close { answer }).await?;
        receiver.await.unwrap_or(Err(StoreError::Closed))?;
        shared.detach();
        shared.closed.store(true, std::sync::atomic::Ordering::Release);
        if let Err(error) = self.write_checkpoint(true).await {
            // All is durable without it.
            tracing::warn!(%error, "no checkpoint: the next start takes longer");
        }
        Ok(())
    }
}

fn small_op(record: SmallRecord) -> Result<Op, StoreError> {
    use crate::format::record::{RECORD_HEADER_BYTES, RecordKind};
    let (kind, address, version, payload) = match record {
        SmallRecord::Reference { address, version, capsule } => (RecordKind::Reference, address, version, capsule),
        SmallRecord::Name(payload) => (RecordKind::Name, Address::ZERO, VersionId::ZERO, payload),
        SmallRecord::Death(payload) => (RecordKind::Death, Address::ZERO, VersionId::ZERO, payload),
        SmallRecord::Document(payload) => (RecordKind::Document, Address::ZERO, VersionId::ZERO, payload),
    };
    let max_bytes = limits::BATCH_BYTES_MAX - 2 * RECORD_HEADER_BYTES;
    if payload.len() > max_bytes {
        return Err(StoreError::Length { what: "record", len_bytes: payload.len(), min_bytes: 0, max_bytes });
    }
    Ok(Op { kind, flags: 0, address, version, payload, effect: Effect::None })
}
