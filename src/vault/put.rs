//! A put: from an input to the root of a stored file tree.
//!
//! Each shard runs `width` lanes. A lane claims a leaf, takes a buffer, reads the leaf to its final place in it, has it sealed
//! there on another thread, hands the buffer to the sink, and deposits the entry. The coordinator collects entries in file
//! order and builds the tree above them.
//!
//! ```text
//! claim --(window full: wait)--> take buffer --> read --> seal --> store --> deposit --> claim ...
//!   |                                              |                 |
//!   +-- input at its end: the lane ends            +-----------------+--> first error stops all lanes
//! ```
//! One lane of a put at a time, on each shard, is between its claim and its buffer: others wait behind one lane, not all.
//! What the page cache has is read by the thread that seals it ([`compute`]); what has to be waited for, by the ring.
//!
//! A stream is read by one lane at a time, a whole leaf each; the turn to read is taken before the leaf is claimed, and
//! the buffer after it. So a put whose stream is silent holds one buffer of the node, the one that the kernel reads into;
//! it comes out of those that streams share (`share.rs`), from which puts of files need none.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, Semaphore};

use super::input::{Input, OpenInput};
use super::job::{Latch, Progress, lock, wait_for};
use super::share::{self, Share, Use};
use super::tree::{Finish, Node, TreeBuilder, leaf_bytes};
use super::window::{Claim, Window};
use super::{ChunkError, ChunkSink, payload_mut};
use crate::crypto::cipher::{ChunkKey, ScopeKey, seal_chunk};
use crate::format::tree::TreeEntry;
use crate::format::{Address, VersionId};
use crate::io::{Buffer, BufferPool, File, compute, spawn};
use crate::limits::{CHUNK_BYTES_MAX, RECORD_HEAD_BYTES};

#[derive(Debug, thiserror::Error)]
pub enum PutError {
    #[error("the file changed while it was read; put it again once nobody writes to it")]
    Changed,
    #[error("cannot read the input: {0}")]
    Input(#[from] std::io::Error),
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error("cancelled")]
    Cancelled,
    #[error("a worker of this put ended before its time: a defect in gabion, see the node's log")]
    Worker,
}

pub struct PutOptions {
    pub scope: ScopeKey,
    pub version: VersionId,
    /// Chunks under way on each shard.
    pub width: usize,
}

/// What is needed to read the file again, and what it took.
#[derive(Debug, Clone)]
pub struct PutResult {
    pub root: Address,
    pub root_key: ChunkKey,
    pub depth: u8,
    pub length: u64,
    /// Of all chunks that some owner did not have yet.
    pub bytes_new: u64,
    /// Inner nodes included.
    pub chunks: u64,
}

impl PutResult {
    /// Of no bytes at all: no chunk.
    pub fn empty() -> Self {
        Self {
            root: Address::ZERO,
            root_key: ChunkKey::from_bytes([0; 32]),
            depth: 0,
            length: 0,
            bytes_new: 0,
            chunks: 0,
        }
    }
}

/// Shared by all shard threads.
pub struct PutJob {
    options: PutOptions,
    input: OpenInput,
    window: Mutex<Window>,
    /// The window has moved on, or the job has stopped.
    moved: Notify,
    /// The next entry to collect is there, or the input has ended, or the job has stopped.
    deposited: Notify,
    /// The turn to read from a stream; closed when the job has stopped.
    reading: Semaphore,
    latch: Latch<PutError>,
    bytes_done: AtomicU64,
    bytes_new: AtomicU64,
    chunks: AtomicU64,
}

/// A leaf and its place.
struct Piece {
    leaf: u64,
    span: usize,
    buffer: Buffer,
    share: Share,
    /// Where it is in the file, if it is still to be read from there.
    unread: Option<u64>,
}

type Sealed = (Address, ChunkKey);

/// The place of a chunk of `len` bytes, padded with zeros: the buffer still has bytes of its earlier uses.
fn chunk_mut(memory: &mut [u8], len: usize) -> &mut [u8] {
    let (_head, payload) = memory.split_at_mut(RECORD_HEAD_BYTES);
    let chunk = payload.split_at_mut(leaf_bytes(len)).0;
    chunk.split_at_mut(len).1.fill(0);
    chunk
}

/// All of a leaf, from where it is in the file.
async fn read_leaf(file: &File, buffer: Buffer, span: usize, position: u64) -> Result<Buffer, PutError> {
    let range = RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + span;
    let (result, buffer) = file.read_at(buffer, range, position).await;
    if result? < span { Err(PutError::Changed) } else { Ok(buffer) }
}

impl PutJob {
    pub fn new(input: Input, options: PutOptions) -> Arc<PutJob> {
        let (input, outcome) = OpenInput::new(input);
        let job = PutJob {
            window: Mutex::new(Window::new(input.leaf_count())),
            options,
            input,
            moved: Notify::new(),
            deposited: Notify::new(),
            reading: Semaphore::new(1),
            latch: Latch::new(),
            bytes_done: AtomicU64::new(0),
            bytes_new: AtomicU64::new(0),
            chunks: AtomicU64::new(0),
        };
        if let Err(error) = outcome {
            job.stop(error.into());
        }
        Arc::new(job)
    }

    /// Leaves of the input; unknown for a stream. With few of them, few shards have something to do.
    pub fn leaf_count(&self) -> Option<u64> {
        self.input.leaf_count()
    }

    pub fn progress(&self) -> Progress {
        Progress {
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.input.len(),
            bytes_new: self.bytes_new.load(Ordering::Relaxed),
        }
    }

    /// Stops the job; `finish` then says so at once. A lane that waits for bytes of a stream leaves them there.
    pub fn cancel(&self) {
        self.stop(PutError::Cancelled);
    }

    fn stop(&self, error: PutError) {
        self.latch.stop(error);
        self.reading.close();
        self.moved.notify_waiters();
        self.deposited.notify_one();
    }

    /// Reads, seals and stores leaves, until the input has no more. Runs on every shard; errors show up in `finish`.
    pub async fn work<S: ChunkSink>(self: &Arc<Self>, pool: &BufferPool, sink: &Rc<S>) {
        let file = match self.input.for_this_thread() {
            Ok(file) => file,
            Err(error) => return self.stop(error.into()),
        };
        let width = self.options.width.max(1) as u64;
        let lanes = self.leaf_count().map_or(width, |leaves| leaves.min(width));
        let line = Rc::new(Semaphore::new(1));
        let lane = || {
            let (job, file, pool, sink) = (Arc::clone(self), file.clone(), pool.clone(), Rc::clone(sink));
            let line = Rc::clone(&line);
            spawn(async move {
                if let Err(error) = job.lane(&file, &pool, &*sink, &line).await {
                    job.stop(error);
                }
            })
        };
        let lanes: Vec<_> = (0..lanes).map(|_| lane()).collect();
        for lane in lanes {
            if lane.await.is_err() {
                self.stop(PutError::Worker);
            }
        }
    }

    async fn lane<S: ChunkSink>(
        self: &Arc<Self>,
        file: &File,
        pool: &BufferPool,
        sink: &S,
        line: &Semaphore,
    ) -> Result<(), PutError> {
        while let Some(Piece { leaf, span, buffer, share, unread }) = self.read_next(file, pool, line).await? {
            // A read can take as long as it likes; the job may have stopped meanwhile.
            if self.latch.is_stopped() {
                break;
            }
            let (buffer, sealed) = match unread {
                Some(position) => self.read_and_seal(file, buffer, span, position).await?,
                None => self.seal(0, buffer, span).await,
            };
            let (address, key) = self.store(sealed, buffer, share, span, sink).await?;
            self.bytes_done.fetch_add(span as u64, Ordering::Relaxed);
            let entry = TreeEntry { address, key: *key.as_bytes(), span: (span as u64).into() };
            if lock(&self.window).deposit(leaf, entry) {
                self.deposited.notify_one();
            }
        }
        Ok(())
    }

    async fn read_next(&self, file: &File, pool: &BufferPool, line: &Semaphore) -> Result<Option<Piece>, PutError> {
        match self.input.len() {
            Some(len) => self.read_positioned(len, file, pool, line).await,
            None => self.read_stream(file, pool).await,
        }
    }

    async fn read_positioned(
        &self,
        len: u64,
        file: &File,
        pool: &BufferPool,
        line: &Semaphore,
    ) -> Result<Option<Piece>, PutError> {
        // One lane of this put at a time stands in line for a buffer: with all of them, others would wait behind dozens.
        let head_of_line = line.acquire().await;
        let Some(leaf) = self.claim().await else { return Ok(None) };
        let start = leaf * CHUNK_BYTES_MAX as u64;
        let span = (len - start).min(CHUNK_BYTES_MAX as u64) as usize;
        let (buffer, share) = share::take(pool, Use::File).await;
        drop(head_of_line);
        // What the page cache has is read by whoever seals it, while the core's own cache still has it.
        if !file.is_direct() && file.is_cached(start, span) {
            return Ok(Some(Piece { leaf, span, buffer, share, unread: Some(start) }));
        }
        let buffer = read_leaf(file, buffer, span, start).await?;
        Ok(Some(Piece { leaf, span, buffer, share, unread: None }))
    }

    async fn read_stream(&self, file: &File, pool: &BufferPool) -> Result<Option<Piece>, PutError> {
        // Refused only once the job has stopped.
        let Ok(_turn) = self.reading.acquire().await else { return Ok(None) };
        let Some(leaf) = self.claim().await else { return Ok(None) };
        // It may be long until other streams leave a buffer to this one.
        let (buffer, share) = tokio::select! {
            place = share::take(pool, Use::Stream) => place,
            () = wait_for(&self.moved, || self.latch.is_stopped().then_some(())) => return Ok(None),
        };
        let range = RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + CHUNK_BYTES_MAX;
        let stop = wait_for(&self.moved, || self.latch.is_stopped().then_some(()));
        let (result, buffer) = file.read(buffer, range, stop).await;
        let Some(span) = result? else { return Ok(None) };
        if span == CHUNK_BYTES_MAX && leaf == 0 {
            self.input.widen();
        }
        if span < CHUNK_BYTES_MAX {
            lock(&self.window).end_at(leaf + u64::from(span > 0));
            self.deposited.notify_one();
        }
        Ok((span > 0).then_some(Piece { leaf, span, buffer, share, unread: None }))
    }

    /// The next leaf that nobody works on; `None` at the end of the input, and when the job has stopped.
    async fn claim(&self) -> Option<u64> {
        let look = || {
            if self.latch.is_stopped() {
                return Some(None);
            }
            match lock(&self.window).claim() {
                Claim::Leaf(leaf) => Some(Some(leaf)),
                Claim::End => Some(None),
                Claim::Later => None,
            }
        };
        wait_for(&self.moved, look).await
    }

    /// Seals the first `len` bytes of the buffer's payload, in place.
    async fn seal(&self, level: u8, buffer: Buffer, len: usize) -> (Buffer, Sealed) {
        let scope = self.options.scope.clone();
        compute(buffer, len, move |memory| seal_chunk(&scope, level, chunk_mut(memory, len), len)).await
    }

    /// The same for a leaf that the page cache should have at `position`. Who seals it takes it from there, and waits for no disk
    /// and no server; where it has gone meanwhile, it is read as others are.
    async fn read_and_seal(
        self: &Arc<Self>,
        file: &File,
        buffer: Buffer,
        span: usize,
        position: u64,
    ) -> Result<(Buffer, Sealed), PutError> {
        let job = Arc::clone(self);
        let read_and_seal = move |memory: &mut [u8]| {
            let chunk = chunk_mut(memory, span);
            let is_read = job.input.read_cached(chunk.split_at_mut(span).0, position);
            is_read.then(|| seal_chunk(&job.options.scope, 0, chunk, span))
        };
        match compute(buffer, span, read_and_seal).await {
            (buffer, Some(sealed)) => Ok((buffer, sealed)),
            (buffer, None) => Ok(self.seal(0, read_leaf(file, buffer, span, position).await?, span).await),
        }
    }

    /// Gives the buffer away.
    async fn store<S: ChunkSink>(
        &self,
        (address, key): Sealed,
        buffer: Buffer,
        share: Share,
        len: usize,
        sink: &S,
    ) -> Result<Sealed, PutError> {
        let len = leaf_bytes(len);
        let stored = sink.store(address, buffer, len, self.options.version, share).await?;
        self.chunks.fetch_add(1, Ordering::Relaxed);
        if stored.new {
            self.bytes_new.fetch_add(len as u64, Ordering::Relaxed);
        }
        Ok((address, key))
    }

    /// Builds the tree while the leaves come in. Runs on the coordinating shard, beside its `work`.
    pub async fn finish<S: ChunkSink>(
        self: &Arc<Self>,
        pool: &BufferPool,
        sink: &Rc<S>,
    ) -> Result<PutResult, PutError> {
        let outcome = self.build(pool, &**sink).await;
        if outcome.is_err() {
            // An error of the coordinator's own: the lanes must hear of it.
            self.stop(PutError::Cancelled);
        }
        outcome
    }

    async fn build<S: ChunkSink>(&self, pool: &BufferPool, sink: &S) -> Result<PutResult, PutError> {
        let mut builder = TreeBuilder::new();
        while let Some(entry) = self.next_entry().await? {
            self.add(&mut builder, 0, entry, pool, sink).await?;
        }
        if !self.input.is_unchanged()? {
            return Err(PutError::Changed);
        }
        loop {
            match builder.finish() {
                Finish::Seal(node) => {
                    let (level, entry) = self.store_node(node, pool, sink).await?;
                    self.add(&mut builder, level, entry, pool, sink).await?;
                }
                Finish::Root { entry, depth } => {
                    return Ok(self.result(entry.address, ChunkKey::from_bytes(entry.key), depth, builder.length()));
                }
                Finish::Empty => return Ok(PutResult::empty()),
            }
        }
    }

    /// The next leaf's entry in file order; `None` after the last.
    async fn next_entry(&self) -> Result<Option<TreeEntry>, PutError> {
        let look = || {
            if self.latch.is_stopped() {
                return Some(Err(self.latch.take().unwrap_or(PutError::Cancelled)));
            }
            let mut window = lock(&self.window);
            if let Some(entry) = window.collect() {
                return Some(Ok(Some(entry)));
            }
            window.is_complete().then_some(Ok(None))
        };
        let entry = wait_for(&self.deposited, look).await?;
        if entry.is_some() {
            self.moved.notify_waiters();
        }
        Ok(entry)
    }

    /// Pushes an entry, and stores every node that becomes full by it.
    async fn add<S: ChunkSink>(
        &self,
        builder: &mut TreeBuilder,
        mut level: u8,
        mut entry: TreeEntry,
        pool: &BufferPool,
        sink: &S,
    ) -> Result<(), PutError> {
        while let Some(node) = builder.push(level, entry) {
            (level, entry) = self.store_node(node, pool, sink).await?;
        }
        Ok(())
    }

    async fn store_node<S: ChunkSink>(
        &self,
        node: Node,
        pool: &BufferPool,
        sink: &S,
    ) -> Result<(u8, TreeEntry), PutError> {
        let (mut buffer, share) = share::take(pool, Use::File).await;
        let len = node.plaintext.len();
        payload_mut(&mut buffer, len).copy_from_slice(&node.plaintext);
        let (buffer, sealed) = self.seal(node.level, buffer, len).await;
        let (address, key) = self.store(sealed, buffer, share, len, sink).await?;
        Ok((node.level, node.entry(address, *key.as_bytes())))
    }

    fn result(&self, root: Address, root_key: ChunkKey, depth: u8, length: u64) -> PutResult {
        PutResult {
            root,
            root_key,
            depth,
            length,
            bytes_new: self.bytes_new.load(Ordering::Relaxed),
            chunks: self.chunks.load(Ordering::Relaxed),
        }
    }
}
