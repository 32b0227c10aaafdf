//! The catalog: names, versions, references and deaths, as an index over the log.
//!
//! What is true stands in the segments; this database (fjall, in a directory of its own) only finds it quickly. So it is
//! written behind, never synced for a commit, and on any doubt thrown away and built anew from the log:
//!
//! | doubt | what happens |
//! | --- | --- |
//! | the database does not open, or its format is unknown | deleted; no positions: everything is replayed |
//! | the process died while opening it (a marker stayed behind) | the same |
//! | a read or write of it failed | latched: every question is an error from then on; a marker makes the next start rebuild it |
//!
//! Lack of space is no doubt: what cannot be written waits in memory, bounded, and is read through (see `rows`).
//! A position beyond the log is none either: the end of a segment may be damaged, and then the catalog knows more than it.
//!
//! Rules:
//! - One thread owns the database. Events and questions pass through one queue, so a question sees everything that was applied
//!   before it was asked.
//! - A segment's position is written in the same batch as what it covers. After a crash the database is some earlier state,
//!   whole, and replay from its positions leads to the same state as no crash.
//! - Events are idempotent and need no order: references are a union; a name keeps the record with the later (clock, version);
//!   a death wins over references, those that come later too; of documents the later serial wins.
//! - The references of a dead version are dropped in steps, so that a death of a million chunks takes no memory; until
//!   then they are hidden. Chunks that lose their last reference are remembered as garbage, with the uptime when that happened.
//! - Of names that are used much the answer is in memory (see `recent`), and never an older one than the thread would give.
//! - Garbage is a hint. Who removes a chunk asks again under the chunk's lock ([`Catalog::is_referenced`]). A chunk that
//!   turns out not to be there is reported back as [`Event::Removed`].
//!
//! One keyspace, so that its tables are written in the order of commits and memory has one limit. Rows:
//!
//! | key | value |
//! | --- | --- |
//! | `m` | format version 2 |
//! | `t` | totals: names 8, versions 8, references 8, deaths 8 |
//! | `p` segment 8 | offset up to which that segment is applied, 8 |
//! | `r` address 32 version 16 | the sealed capsule, or nothing |
//! | `v` version 16 | number of its references 8, the address of the first 32 |
//! | `c` version 16 address 32 | nothing: a further reference. A small file has none, and so a row less |
//! | `d` version 16 | id of the death 16 |
//! | `D` death id 16 | the signed death |
//! | `s` version 16 | nothing: dead, references still to be dropped |
//! | `o` address 32 | since when it is garbage: which run of the node 8, milliseconds of uptime 8 |
//! | `n` bucket id 32 name id 32 | name record |
//! | `k` key | serial 8, value |
//! | `q` | number of the last commit 8 |
//!
//! Numbers in keys are big-endian, in values little-endian.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::deaths::DeathId;
use crate::format::name::NameRecord;
use crate::format::{Address, BucketId, NameId, VersionId};
use crate::io::filesystem_space;

pub mod documents;
mod draft;
pub mod hlc;
mod names;
mod needed;
mod queue;
mod recent;
mod references;
mod rows;
mod thread;
pub mod versions;

#[cfg(test)]
mod tests;

pub use documents::Document;
pub use hlc::{Clock, ClockAhead};
pub use needed::Stored;
pub use versions::{VersionRefused, check_age, mint};

#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    #[error("the catalog in {directory} cannot be made: {reason}; check the directory's permissions and free space")]
    Create { directory: String, reason: String },
    #[error("the catalog in {directory} is in use by another process: stop the other node of this data directory")]
    Locked { directory: String },
    #[error("the catalog failed ({reason}) and answers no more: restart the node, it will be rebuilt from the log")]
    Failed { reason: Arc<str> },
    #[error("the disk is full, and what the catalog has to write waits for space: make room on the disk")]
    Full,
    #[error("the catalog has been closed")]
    Closed,
}

/// Something that has become durable in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The version that introduced it refers to it; a chunk that is only cached is referred to by nobody.
    Chunk { address: Address, version: VersionId, cached: bool },
    Reference {
        address: Address,
        version: VersionId,
        capsule: Option<Vec<u8>>,
        /// Just minted for this chunk, the version refers to nothing else, and this is said once.
        is_first: bool,
    },
    /// An encoded name record.
    Name(Vec<u8>),
    /// A death whose signature has been checked, and the versions in it.
    Death { versions: Vec<VersionId>, death: Vec<u8> },
    /// The chunk is in the store no more.
    Removed { address: Address },
    /// An empty value deletes.
    Document(Document),
}

/// What became durable in one segment; `end_offset`: up to where that segment is now applied. Batches of one segment must
/// come in their order, one forwarder for each: a position covers everything before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    pub segment: u64,
    pub end_offset: u64,
    pub events: Vec<Event>,
}

/// Segment -> offset up to which it is in the catalog.
pub type Positions = HashMap<u64, u64>;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CatalogCounts {
    /// Tombstones not counted.
    pub names: u64,
    /// With at least one reference here.
    pub versions: u64,
    pub references: u64,
    /// Dead versions.
    pub deaths: u64,
}

/// The node's uptime; tests bring their own.
pub type Uptime = Arc<dyn Fn() -> Duration + Send + Sync>;

/// A handle; clones share the thread. When the last one goes without [`Catalog::close`], what is still queued is dropped: the
/// log has it.
#[derive(Clone)]
pub struct Catalog {
    thread: Arc<thread::Handle>,
}

impl Catalog {
    /// `directory` belongs to the catalog alone (`catalog/` of the data directory). Blocks while the database is opened.
    pub fn open(directory: &Path) -> Result<(Self, Positions), CatalogError> {
        let started = Instant::now();
        Self::open_with(directory, Arc::new(move || started.elapsed()))
    }

    pub fn open_with(directory: &Path, uptime: Uptime) -> Result<(Self, Positions), CatalogError> {
        let on_disk = directory.to_owned();
        Self::open_within(directory, uptime, Arc::new(move || Ok(filesystem_space(&on_disk)?.free_bytes)))
    }

    fn open_within(
        directory: &Path,
        uptime: Uptime,
        free_bytes: rows::FreeBytes,
    ) -> Result<(Self, Positions), CatalogError> {
        let (thread, positions) = thread::Handle::start(directory, uptime, free_bytes)?;
        Ok((Self { thread: Arc::new(thread) }, positions))
    }

    /// Waits, blocking, while the queue is full; an error when only space on the disk would make room. For replay and for
    /// threads of their own.
    pub fn apply(&self, applied: Applied) -> Result<(), CatalogError> {
        self.thread.queue.push(applied)
    }

    /// Never waits: for what is durable already and is about to be acknowledged, on a thread that others wait for. Who makes
    /// more durable asks for [`Self::room`] first, so that the queue outgrows its bound by what is under way at most.
    pub fn apply_now(&self, applied: Applied) {
        self.thread.queue.push_now(applied);
    }

    /// Returns once the queue is not full; an error when only space on the disk would make room.
    pub async fn room(&self) -> Result<(), CatalogError> {
        self.thread.queue.room().await
    }

    /// Waits while the queue is full.
    pub async fn apply_async(&self, applied: Applied) {
        self.thread.queue.push_async(applied).await;
    }

    /// Living versions that refer to this chunk.
    pub async fn references(&self, address: &Address) -> Result<Vec<VersionId>, CatalogError> {
        let address = *address;
        self.thread.ask(move |engine| engine.references(&address)).await
    }

    /// The first of them: those of one chunk are in the order of versions.
    pub async fn first_reference(&self, address: &Address) -> Result<Option<VersionId>, CatalogError> {
        let address = *address;
        self.thread.ask(move |engine| engine.first_reference(&address)).await
    }

    /// By a living version.
    pub async fn is_referenced(&self, address: &Address) -> Result<bool, CatalogError> {
        let address = *address;
        self.thread.ask(move |engine| engine.is_referenced(&address)).await
    }

    pub async fn is_dead(&self, version: &VersionId) -> Result<bool, CatalogError> {
        let version = *version;
        self.thread.ask(move |engine| engine.is_dead(&version)).await
    }

    /// The signed death of this version: what whoever still refers to it is answered with.
    pub async fn death_of(&self, version: &VersionId) -> Result<Option<Vec<u8>>, CatalogError> {
        let version = *version;
        self.thread.ask(move |engine| engine.death_of(&version)).await
    }

    /// Whether this very death has been stored.
    pub async fn has_death(&self, id: &DeathId) -> Result<bool, CatalogError> {
        let id = *id;
        self.thread.ask(move |engine| engine.has_death(&id)).await
    }

    /// The newest record, a tombstone too.
    pub async fn name(&self, bucket: &BucketId, name: &NameId) -> Result<Option<NameRecord>, CatalogError> {
        if let Some(known) = self.name_at_once(bucket, name) {
            return Ok(known);
        }
        let (bucket, name) = (*bucket, *name);
        self.thread.ask_name(move |engine| engine.name(&bucket, &name)).await
    }

    /// The same, if it is in memory: nothing is known about it otherwise.
    pub fn name_at_once(&self, bucket: &BucketId, name: &NameId) -> Option<Option<NameRecord>> {
        self.thread.queue.recent.get(bucket, name)
    }

    /// The newest records of many names, in their order.
    pub async fn names_of(&self, names: Vec<(BucketId, NameId)>) -> Result<Vec<Option<NameRecord>>, CatalogError> {
        self.thread.ask_name(move |engine| names.iter().map(|(bucket, name)| engine.name(bucket, name)).collect()).await
    }

    /// Which of these versions are dead.
    pub async fn dead_among(&self, versions: Vec<VersionId>) -> Result<Vec<VersionId>, CatalogError> {
        self.thread
            .ask(move |engine| {
                let mut dead = Vec::new();
                for version in versions {
                    if engine.is_dead(&version)? {
                        dead.push(version);
                    }
                }
                Ok(dead)
            })
            .await
    }

    /// Records (tombstones too) in the order of (bucket id, name id), after `after`; of one bucket, or of all.
    pub async fn names(
        &self,
        bucket: Option<&BucketId>,
        after: Option<(BucketId, NameId)>,
        limit: usize,
    ) -> Result<Vec<NameRecord>, CatalogError> {
        let bucket = bucket.copied();
        self.thread.ask(move |engine| engine.names(bucket.as_ref(), after, limit)).await
    }

    /// Sealed capsules of living versions that have this root.
    pub async fn capsules(&self, root: &Address) -> Result<Vec<(VersionId, Vec<u8>)>, CatalogError> {
        let root = *root;
        self.thread.ask(move |engine| engine.capsules(&root)).await
    }

    /// Chunks that a version refers to (those of a dead one until they were dropped), ascending, after `after`.
    pub async fn chunks_of(
        &self,
        version: &VersionId,
        after: Option<Address>,
        limit: usize,
    ) -> Result<Vec<Address>, CatalogError> {
        let version = *version;
        self.thread.ask(move |engine| engine.chunks_of(&version, after, limit)).await
    }

    /// Versions with references here, ascending, after `after`: what is asked about when they are old and nameless.
    pub async fn versions(&self, after: Option<VersionId>, limit: usize) -> Result<Vec<VersionId>, CatalogError> {
        self.thread.ask(move |engine| engine.versions(after, limit)).await
    }

    /// Chunks that have been without references for that long of this run's uptime. A wait that began in an earlier run begins
    /// anew with this one. Each call goes on where the last one stopped.
    pub async fn garbage(&self, limit: usize, unreferenced_for: Duration) -> Result<Vec<Address>, CatalogError> {
        // On a full disk sweeping waits for the space that this gives back: what is marked already will do.
        match self.settled().await {
            Ok(()) | Err(CatalogError::Full) => {}
            Err(error) => return Err(error),
        }
        self.thread.ask(move |engine| engine.garbage(limit, unreferenced_for)).await
    }

    /// Which of these have no reference at all: for a sweep over everything that the store holds, which finds also what replay in
    /// another order than events happened in may have missed.
    pub async fn unreferenced(&self, addresses: Vec<Address>) -> Result<Vec<Address>, CatalogError> {
        self.thread.ask(move |engine| engine.unreferenced(addresses)).await
    }

    /// Returns when every reference of a dead version has been dropped; an error when that has to wait for space.
    pub async fn settled(&self) -> Result<(), CatalogError> {
        self.thread.ask_when_settled(|engine| engine.settled()).await
    }

    pub async fn document(&self, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        let key = key.to_vec();
        self.thread.ask(move |engine| engine.document(&key)).await
    }

    /// Keys and values, ascending by key.
    pub async fn documents(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>, CatalogError> {
        let prefix = prefix.to_vec();
        self.thread.ask(move |engine| engine.documents(&prefix)).await
    }

    /// A serial above that of any version of this document: for the next one. One writer for each key: two that ask at once get
    /// the same, and then the greater value stays.
    pub async fn next_serial(&self, key: &[u8]) -> Result<u64, CatalogError> {
        let key = key.to_vec();
        self.thread.ask(move |engine| engine.next_serial(&key)).await
    }

    /// Signed deaths, ascending by id, after `after`.
    pub async fn deaths(&self, after: Option<DeathId>, limit: usize) -> Result<Vec<(DeathId, Vec<u8>)>, CatalogError> {
        self.thread.ask(move |engine| engine.deaths(after, limit)).await
    }

    /// Documents, deletions too, ascending by key, after `after`.
    pub async fn all_documents(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Vec<Document>, CatalogError> {
        self.thread.ask(move |engine| engine.all_documents(after, limit)).await
    }

    pub async fn counts(&self) -> Result<CatalogCounts, CatalogError> {
        self.thread.ask(|engine| engine.counts()).await
    }

    /// For each of these records, whether the log still needs it ([`Stored`]).
    pub async fn needed(&self, records: Vec<Stored>) -> Result<Vec<bool>, CatalogError> {
        self.thread.ask(move |engine| engine.needed(&records)).await
    }

    /// A segment was unlinked: its position means nothing any more.
    pub async fn forget_segment(&self, segment: u64) -> Result<(), CatalogError> {
        self.thread.ask(move |engine| engine.forget_segment(segment)).await
    }

    /// Works the queue off and makes everything durable; every later call is an error.
    pub async fn close(&self) -> Result<(), CatalogError> {
        self.thread.close().await
    }
}
