//! A get: from a root to the bytes of a file, or of a range of it.
//!
//! The coordinator walks the tree and queues runs of leaves, one node of level 1 ahead of the one being read. Each
//! shard runs `width` lanes:
//!
//! ```text
//! wait for a leaf --> take buffer --> claim it --> (resume: in the file already? done)
//!                                        --> fetch, verify, decrypt --> (stream: wait for the turn) --> write
//!                                                                              |                    ^
//!                               stream stands still: give the buffer back, wait, take one, fetch again
//! ```
//! The buffer comes before the claim: a claimed leaf has one, so whoever waits for its turn waits for leaves that can
//! go on.
//!
//! Except while a stream stands still: its reader has paused, or the leaf whose turn it is waits for a buffer. After
//! [`STREAM_STALL_MAX`](crate::limits::STREAM_STALL_MAX) all leaves that wait behind that one give their buffers back, on
//! all shards. The one being written keeps its buffer, for the kernel reads from it. The others take a buffer again once
//! they have their turn, and fetch anew. So a stream that stands still holds one buffer of the node and begins no
//! further leaf; others go on for as long as there are permits of streams (`share.rs`). Time that goes into fetching is
//! not counted, or a slow network would have every leaf fetched twice. The price: so does a reader that takes longer
//! than that time for a leaf, and one that goes on after a pause has these leaves fetched one after the other.
//!
//! Resuming needs no record of what was done: a leaf that is in the file encrypts, with its key, to its address.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, oneshot};
use zeroize::{Zeroize, Zeroizing};

use super::job::{Latch, Progress, lock, wait_for};
use super::output::{OpenOutput, Output, ThreadOutput};
use super::share::{self, Share, Use};
use super::tree::{TreeError, check_padding};
use super::walk::{Inner, Leaf, LeafRun, Root, Step, Walk};
use super::window::Turnstile;
use super::{ChunkError, ChunkSource, fetch_open, payload_mut};
use crate::crypto::cipher::{ChunkKey, apply_keystream};
use crate::crypto::hash::address_of;
use crate::format::Address;
use crate::io::{Buffer, BufferPool, Turn, spawn};
use crate::limits::{CHUNK_BYTES_MAX, GET_LEAVES_AT_ONCE, GET_RUNS_AHEAD_MAX, RECORD_HEAD_BYTES};

#[derive(Debug, thiserror::Error)]
pub enum GetError {
    #[error("this is not a readable file: {0}")]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    #[error("the reader of the output has gone")]
    OutputClosed,
    #[error("cancelled")]
    Cancelled,
    #[error("a worker of this get ended before its time: a defect in gabion, see the node's log")]
    Worker,
}

impl GetError {
    pub(super) fn output(error: io::Error) -> GetError {
        if error.kind() == io::ErrorKind::BrokenPipe { GetError::OutputClosed } else { GetError::Output(error) }
    }
}

pub struct GetOptions {
    pub root: Address,
    pub root_key: ChunkKey,
    pub depth: u8,
    pub length: u64,
    /// The bytes of the file that are wanted; all, if none are named.
    pub range: Option<Range<u64>>,
    pub output: Output,
    /// Keep what is in the output already, where it is right. Only for [`Output::File`].
    pub resume: bool,
    /// Chunks under way on each shard.
    pub width: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GetResult {
    pub bytes_written: u64,
    /// Bytes that were in the output already.
    pub bytes_resumed: u64,
}

/// Leaves for the lanes.
#[derive(Default)]
struct Leaves {
    runs: VecDeque<LeafRun>,
    claimed: u64,
}

/// A leaf, and how many of the wanted ones come before it.
struct Claimed {
    leaf: Leaf,
    number: u64,
}

/// Shared by all shard threads.
pub struct GetJob {
    root: Root,
    range: Range<u64>,
    output: OpenOutput,
    resume: bool,
    width: usize,
    leaf_count: u64,
    leaves: Mutex<Leaves>,
    /// There are leaves to claim, or none will come any more.
    available: Notify,
    /// A run was used up.
    room: Notify,
    turnstile: Turnstile,
    delivered: AtomicU64,
    /// The last leaf is delivered, or the job has stopped.
    finished: Notify,
    latch: Latch<GetError>,
    bytes_written: AtomicU64,
    bytes_resumed: AtomicU64,
}

impl GetJob {
    pub fn new(options: GetOptions) -> Arc<GetJob> {
        let GetOptions { root, root_key, depth, length, range, output, resume, width } = options;
        let root = Root { address: root, key: root_key, depth, length };
        let checked = Walk::new(&root, range).map(|walk| (walk.range(), walk.leaf_count()));
        let (range, leaf_count) = checked.clone().unwrap_or_default();
        let job = GetJob {
            root,
            range,
            leaf_count,
            output: OpenOutput::new(output),
            resume,
            width: width.max(1),
            leaves: Mutex::default(),
            available: Notify::new(),
            room: Notify::new(),
            turnstile: Turnstile::default(),
            delivered: AtomicU64::new(0),
            finished: Notify::new(),
            latch: Latch::new(),
            bytes_written: AtomicU64::new(0),
            bytes_resumed: AtomicU64::new(0),
        };
        job.output.widen(job.len());
        if let Err(error) = checked {
            job.stop(error.into());
        }
        Arc::new(job)
    }

    /// Leaves that are wanted. With few of them, few shards have something to do.
    pub fn leaf_count(&self) -> u64 {
        self.leaf_count
    }

    pub fn progress(&self) -> Progress {
        let (written, resumed) =
            (self.bytes_written.load(Ordering::Relaxed), self.bytes_resumed.load(Ordering::Relaxed));
        Progress { bytes_done: written + resumed, bytes_total: Some(self.len()), bytes_new: written }
    }

    /// Stops the job; `walk` then says so at once.
    pub fn cancel(&self) {
        self.stop(GetError::Cancelled);
    }

    fn stop(&self, error: GetError) {
        self.latch.stop(error);
        self.turnstile.close();
        self.available.notify_waiters();
        self.room.notify_waiters();
        self.finished.notify_waiters();
    }

    /// Fetches and writes leaves, until there are no more. Runs on every shard; errors show up in `walk`.
    pub async fn work<S: ChunkSource>(self: &Arc<Self>, pool: &BufferPool, source: &Rc<S>) {
        let file = match self.output.for_this_thread(self.len()).await {
            Ok(file) => file,
            Err(error) => return self.stop(GetError::Output(error)),
        };
        let lane = || {
            let (job, file, pool, source) = (Arc::clone(self), file.clone(), pool.clone(), Rc::clone(source));
            spawn(async move { job.lane(&file, &pool, &source).await })
        };
        let runs = self.leaf_count.div_ceil(GET_LEAVES_AT_ONCE as u64);
        let lanes: Vec<_> = (0..runs.min(self.width.div_ceil(GET_LEAVES_AT_ONCE) as u64)).map(|_| lane()).collect();
        for lane in lanes {
            if lane.await.is_err() {
                self.stop(GetError::Worker);
            }
        }
    }

    /// What the buffers of leaves are for.
    fn purpose(&self) -> Use {
        if self.output.in_order() { Use::Stream } else { Use::File }
    }

    async fn stopped(&self) {
        wait_for(&self.finished, || self.latch.is_stopped().then_some(())).await;
    }

    async fn lane<S: ChunkSource>(self: &Arc<Self>, file: &ThreadOutput, pool: &BufferPool, source: &Rc<S>) {
        let at_once = self.leaf_count.min(GET_LEAVES_AT_ONCE as u64) as usize;
        while self.leaf_is_available().await {
            let places = tokio::select! {
                places = share::take_some(pool, at_once, self.purpose()) => places,
                () = self.stopped() => return,
            };
            // Other lanes may have been faster.
            let work = self.claim(places.len()).into_iter().zip(places).map(|(claimed, place)| {
                let (job, file, pool, source) = (Arc::clone(self), file.clone(), pool.clone(), Rc::clone(source));
                spawn(async move {
                    if let Err(error) = job.deliver(claimed, &file, &pool, place, &*source).await {
                        job.stop(error);
                    }
                })
            });
            for leaf in work.collect::<Vec<_>>() {
                if leaf.await.is_err() {
                    self.stop(GetError::Worker);
                }
            }
        }
    }

    async fn deliver<S: ChunkSource>(
        &self,
        claimed: Claimed,
        file: &ThreadOutput,
        pool: &BufferPool,
        place: (Buffer, Share),
        source: &S,
    ) -> Result<(), GetError> {
        if !self.output.in_order() {
            self.write_at_position(&claimed.leaf, file, place, source).await?;
        } else if !self.write_in_turn(&claimed, file, pool, place, source).await? {
            return Ok(());
        }
        if self.delivered.fetch_add(1, Ordering::AcqRel) + 1 == self.leaf_count {
            self.finished.notify_waiters();
        }
        Ok(())
    }

    /// Waits for a leaf to claim; `false` when there will be none.
    async fn leaf_is_available(&self) -> bool {
        let look = || {
            let leaves = lock(&self.leaves);
            if self.latch.is_stopped() || leaves.claimed == self.leaf_count {
                return Some(false);
            }
            leaves.runs.iter().any(|run| !run.is_empty()).then_some(true)
        };
        wait_for(&self.available, look).await
    }

    /// The next leaves, in order, at most `count`.
    fn claim(&self, count: usize) -> Vec<Claimed> {
        let mut claimed = Vec::with_capacity(count);
        if self.latch.is_stopped() {
            return claimed;
        }
        let mut leaves = lock(&self.leaves);
        while claimed.len() < count
            && let Some(run) = leaves.runs.front_mut()
        {
            if let Some(leaf) = run.next() {
                let number = leaf.start / CHUNK_BYTES_MAX as u64 - self.range.start / CHUNK_BYTES_MAX as u64;
                claimed.push(Claimed { leaf, number });
            }
            if run.is_empty() {
                leaves.runs.pop_front();
                self.room.notify_waiters();
            }
        }
        leaves.claimed += claimed.len() as u64;
        if leaves.claimed == self.leaf_count {
            self.available.notify_waiters();
        }
        claimed
    }

    async fn fetch_leaf<S: ChunkSource>(&self, leaf: &Leaf, buffer: Buffer, source: &S) -> Result<Buffer, GetError> {
        let mut buffer = fetch_open(source, leaf.address, &leaf.key, leaf.len(), buffer).await?;
        check_padding(payload_mut(&mut buffer, leaf.len()), leaf.span)?;
        Ok(buffer)
    }

    /// Where a leaf's wanted part belongs in the output.
    fn position(&self, leaf: &Leaf, wanted: &Range<usize>) -> u64 {
        leaf.start + wanted.start as u64 - self.range.start
    }

    /// Whether the output has this leaf already. A leaf of which only a part is wanted cannot be recognised.
    async fn is_there(
        &self,
        leaf: &Leaf,
        wanted: &Range<usize>,
        file: &ThreadOutput,
        buffer: Buffer,
    ) -> (bool, Buffer) {
        let position = self.position(leaf, wanted);
        if !self.resume || wanted.len() < leaf.span || !self.output.had_data_from(position) {
            return (false, buffer);
        }
        let range = RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + leaf.span;
        let (result, mut buffer) = file.read_at(buffer, range, position).await;
        // What cannot be read is written anew, and that says what is wrong.
        if !result.is_ok_and(|count| count == leaf.span) {
            return (false, buffer);
        }
        let chunk = payload_mut(&mut buffer, leaf.len());
        chunk.iter_mut().skip(leaf.span).for_each(|byte| *byte = 0);
        let turn = Turn::take(chunk.len()).await;
        apply_keystream(chunk, &leaf.key);
        let is_there = address_of(chunk) == leaf.address;
        turn.pass();
        (is_there, buffer)
    }

    async fn write_at_position<S: ChunkSource>(
        &self,
        leaf: &Leaf,
        file: &ThreadOutput,
        (buffer, _share): (Buffer, Share),
        source: &S,
    ) -> Result<(), GetError> {
        let wanted = leaf.cut(&self.range);
        let (here, buffer) = self.is_there(leaf, &wanted, file, buffer).await;
        let position = self.position(leaf, &wanted);
        let end = position + wanted.len() as u64;
        if here {
            self.output.reaches(end);
            self.bytes_resumed.fetch_add(wanted.len() as u64, Ordering::Relaxed);
            return Ok(());
        }
        let buffer = self.fetch_leaf(leaf, buffer, source).await?;
        if self.latch.is_stopped() {
            return Err(GetError::Cancelled); // the output may be cut back by now
        }
        file.write_at(buffer.freeze(), payload_range(&wanted), position).await.map_err(GetError::output)?;
        self.output.reaches(end);
        self.bytes_written.fetch_add(wanted.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// `false` when the job has stopped before the leaf could be written.
    async fn write_in_turn<S: ChunkSource>(
        &self,
        Claimed { leaf, number }: &Claimed,
        file: &ThreadOutput,
        pool: &BufferPool,
        (buffer, share): (Buffer, Share),
        source: &S,
    ) -> Result<bool, GetError> {
        let buffer = self.fetch_leaf(leaf, buffer, source).await?;
        let Some(kept) = self.wait_for_turn(*number, (buffer, share)).await else { return Ok(false) };
        let (buffer, _share) = match kept {
            Some(place) => place,
            None => {
                let (buffer, share) = tokio::select! {
                    place = share::take(pool, Use::Stream) => place,
                    () = self.stopped() => return Ok(false),
                };
                // No fault of the reader's: who waits behind this leaf keeps what it has.
                self.turnstile.works();
                let buffer = self.fetch_leaf(leaf, buffer, source).await?;
                self.turnstile.waits();
                (buffer, share)
            }
        };
        let wanted = leaf.cut(&self.range);
        file.write(buffer.freeze(), payload_range(&wanted)).await.map_err(GetError::output)?;
        self.turnstile.pass();
        self.bytes_written.fetch_add(wanted.len() as u64, Ordering::Relaxed);
        Ok(true)
    }

    /// Waits for a leaf's turn, with what it holds for as long as the stream moves. Nothing comes back when the job has
    /// stopped; no place, when it had to be given back.
    async fn wait_for_turn(&self, number: u64, place: (Buffer, Share)) -> Option<Option<(Buffer, Share)>> {
        let mut turn = std::pin::pin!(self.turnstile.wait(number));
        let came = tokio::select! {
            biased;
            came = &mut turn => Some(came),
            () = self.turnstile.stands_still() => None,
        };
        if let Some(came) = came {
            return came.then_some(Some(place));
        }
        drop(place);
        turn.await.then_some(None)
    }

    /// Walks the tree for the lanes, and waits until they are through. Runs on the coordinating shard, beside its
    /// `work`.
    pub async fn walk<S: ChunkSource>(
        self: &Arc<Self>,
        pool: &BufferPool,
        source: &Rc<S>,
    ) -> Result<GetResult, GetError> {
        let outcome = match self.queue_all(pool, &**source).await {
            Ok(()) => self.delivered().await,
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            // An error of the coordinator's own: the lanes must hear of it.
            self.stop(GetError::Cancelled);
            self.give_up().await;
        }
        outcome
    }

    /// On a thread of its own: it may wait for the disk.
    async fn give_up(self: &Arc<Self>) {
        if !self.output.is_reserved() {
            return;
        }
        let (tell, told) = oneshot::channel();
        let job = Arc::clone(self);
        let begun = std::thread::Builder::new().name("output".into()).spawn(move || {
            job.output.give_up();
            let _ = tell.send(());
        });
        if begun.is_ok() {
            let _ = told.await;
        }
    }

    /// Bytes that are wanted.
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    async fn queue_all<S: ChunkSource>(&self, pool: &BufferPool, source: &S) -> Result<(), GetError> {
        self.check_running()?;
        self.output.reserve(self.len()).await.map_err(GetError::Output)?;
        let mut walk = Walk::new(&self.root, Some(self.range.clone()))?;
        loop {
            match walk.step()? {
                Step::Node(node) => {
                    let plaintext = self.fetch_node(&node, pool, source).await?;
                    walk.expand(&node, plaintext)?;
                }
                Step::Leaves(run) => self.queue(run).await?,
                Step::End => return Ok(()),
            }
        }
    }

    fn check_running(&self) -> Result<(), GetError> {
        if self.latch.is_stopped() { Err(self.latch.take().unwrap_or(GetError::Cancelled)) } else { Ok(()) }
    }

    /// A node's plaintext, in memory of its own: the pool's buffers are for chunks that move.
    async fn fetch_node<S: ChunkSource>(
        &self,
        node: &Inner,
        pool: &BufferPool,
        source: &S,
    ) -> Result<Zeroizing<Vec<u8>>, GetError> {
        let (buffer, _share) = share::take(pool, Use::File).await;
        let mut buffer = fetch_open(source, node.address, &node.key, node.len, buffer).await?;
        let plaintext = payload_mut(&mut buffer, node.len);
        let copy = Zeroizing::new(plaintext.to_vec());
        plaintext.zeroize();
        Ok(copy)
    }

    async fn queue(&self, run: LeafRun) -> Result<(), GetError> {
        let look = || {
            let has_room = lock(&self.leaves).runs.len() < GET_RUNS_AHEAD_MAX;
            (has_room || self.latch.is_stopped()).then_some(())
        };
        wait_for(&self.room, look).await;
        self.check_running()?;
        lock(&self.leaves).runs.push_back(run);
        self.available.notify_waiters();
        Ok(())
    }

    async fn delivered(&self) -> Result<GetResult, GetError> {
        let look = || {
            let all = self.delivered.load(Ordering::Acquire) == self.leaf_count;
            (all || self.latch.is_stopped()).then_some(())
        };
        wait_for(&self.finished, look).await;
        self.check_running()?;
        self.output.cut_to(self.len()).map_err(GetError::Output)?;
        Ok(GetResult {
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
            bytes_resumed: self.bytes_resumed.load(Ordering::Relaxed),
        })
    }
}

/// Where the wanted part of a leaf is in its buffer.
fn payload_range(wanted: &Range<usize>) -> Range<usize> {
    RECORD_HEAD_BYTES + wanted.start..RECORD_HEAD_BYTES + wanted.end
}
