//! Chunks over the cluster: written to all owners at once and acknowledged at W durable copies, read from whoever is
//! fastest.
//!
//! Writing. Small chunks travel many in one frame (`small.rs`). Else each owner decides for itself whether it needs the
//! bytes: it is offered {address, version}; either it
//! already holds the chunk and has made the reference durable ("held"), or it is sent the chunk and answers once the
//! record is durable. All owners work in parallel from one buffer; the put goes on at W, the rest follow in the
//! background and hold the buffer until they have it or fail, which bounds how far a slow owner lags: by the pool. An owner
//! that is lost is asked only once another one has failed, and one that falls silent is given up [`STALL_MAX`] after its
//! last byte, once the chunk is acknowledged: else what hangs would hold the whole pool for its patience.
//!
//! Reading. The local copy first; then owners in the order of [`ReadPlan`]; the next one is asked as soon as one
//! fails, and in addition when one has not answered within the hedge delay. Bytes are verified once: by the wire on
//! receipt, or by the vault when they come from this node's disk.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::{Notify, mpsc};

use super::ask::{AskError, Question, ask, pause};
use super::connections::is_near;
use super::shard::Shard;
use super::shared::{Holders, Shared};
use super::small;
use crate::cluster::chunks::ReadStep;
use crate::cluster::{Quorum, ReadPlan, WriteProgress, WriteQuorum};
use crate::format::frame::{FrameKind, Status};
use crate::format::message;
use crate::format::record::FLAG_CACHED;
use crate::format::{Address, NodeId, VersionId};
use crate::io::{Buffer, JoinHandle, SharedBuffer, spawn};
use crate::limits::{
    BUSY_ROUNDS_MAX, CACHE_BUFFERS_SPARE, CHUNK_LAYOUT_RESTARTS_MAX, CHUNKS_GIVEN_MAX, CHUNKS_PER_PAGE_MAX,
    PAYLOAD_MISMATCHES_MAX, RECORD_HEAD_BYTES, STALL_MAX, STORE_PATIENCE,
};
use crate::store::{Hold, ReadOutcome, Refused, StoreError};
use crate::vault::{ChunkError, ChunkSink, ChunkSource, Fetched, Share, Stored};
use crate::wire::{CloseReason, Payload, PayloadSource, RequestError};

/// Where a put's chunks go.
pub struct ClusterSink {
    shard: Rc<Shard>,
}

impl ClusterSink {
    pub fn new(shard: Rc<Shard>) -> Self {
        Self { shard }
    }
}

/// What one owner answered: whether the bytes were new to it.
type OwnerOutcome = (NodeId, Result<bool, OwnerError>);

#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum OwnerError {
    #[error("no space")]
    NoSpace,
    #[error("runs under another layout")]
    WrongLayout,
    #[error("version is dead")]
    Dead,
    #[error("{0}")]
    Failed(String),
}

impl ChunkSink for ClusterSink {
    async fn store(
        &self,
        address: Address,
        buffer: Buffer,
        len: usize,
        version: VersionId,
        share: Share,
    ) -> Result<Stored, ChunkError> {
        let layout = self.shard.node.layout()?;
        let owners = layout.chunk_owners(&address);
        let me = self.shard.node.id();
        if owners.as_slice().iter().all(|owner| *owner == me) {
            return store_locally(&self.shard, address, buffer, len, version, share).await;
        }
        store_at_owners(&self.shard, address, buffer, len, version, Rc::new(share)).await
    }
}

/// The only owner is this node: no tasks, no quorum.
async fn store_locally(
    shard: &Rc<Shard>,
    address: Address,
    buffer: Buffer,
    len: usize,
    version: VersionId,
    share: Share,
) -> Result<Stored, ChunkError> {
    match shard.store.hold(&address, &version).await.map_err(store_error)? {
        Hold::Held => Ok(Stored { new: false }),
        Hold::Absent(claim) => {
            let staged = shard.store.stage(claim, buffer, len, &version, 0).await;
            let staged = staged.map_err(|refused| store_error(refused.error))?;
            drop(share);
            staged.commit().await.map_err(store_error)?;
            Ok(Stored { new: true })
        }
    }
}

/// The chunk's bytes: still ours to stage, or already shared with whoever sends them.
enum Bytes {
    Own(Buffer),
    Shared(SharedBuffer),
}

/// Writes under the newest layout, and again from the start when that changes meanwhile: acks of before are void.
async fn store_at_owners(
    shard: &Rc<Shard>,
    address: Address,
    buffer: Buffer,
    len: usize,
    version: VersionId,
    share: Rc<Share>,
) -> Result<Stored, ChunkError> {
    let mut bytes = Bytes::Own(buffer);
    for _ in 0..CHUNK_LAYOUT_RESTARTS_MAX {
        let quorums = shard.node.layouts().chunk_quorums(&address);
        let (outcome, shared) = store_once(shard, quorums, address, bytes, len, version, &share).await?;
        if let Some(stored) = outcome {
            return Ok(stored);
        }
        bytes = Bytes::Shared(shared);
        super::membership::refresh_layout(shard).await;
    }
    Err(ChunkError::Network { reason: "the layout kept changing: try again".into() })
}

/// One attempt; no outcome means that an owner runs under another layout.
async fn store_once(
    shard: &Rc<Shard>,
    quorums: Vec<Quorum>,
    address: Address,
    bytes: Bytes,
    len: usize,
    version: VersionId,
    share: &Rc<Share>,
) -> Result<(Option<Stored>, SharedBuffer), ChunkError> {
    let number = quorums.last().map_or(0, |quorum| quorum.layout);
    let mut quorum = WriteQuorum::new(quorums.clone());
    let owners: Vec<NodeId> = quorum.owners().collect();
    let me = shard.node.id();
    let (outcomes, mut arrived) = mpsc::unbounded_channel::<OwnerOutcome>();
    let shared = if owners.contains(&me) {
        write_own_copy(shard, address, bytes, len, version, &outcomes).await
    } else {
        bytes.shared()
    };
    let acknowledged = Rc::new(Acknowledged::default());
    let mut spare = spare_owners(&quorums, |owner| is_near(shard, owner));
    let send = |owner: NodeId| {
        let (shard, shared, outcomes) = (shard.clone(), shared.clone(), outcomes.clone());
        // Whoever still sends the buffer keeps its share: a slow owner slows the put, and cannot take the whole pool.
        let (share, acknowledged) = (share.clone(), acknowledged.clone());
        spawn(async move {
            let sending = send_to_owner(&shard, owner, number, address, shared, len, version);
            // Nothing of the ring is dropped here: requests and dials are tasks of their own.
            let outcome = tokio::select! {
                outcome = sending => outcome,
                () = fallen_silent(&shard, &owner, &acknowledged) => {
                    Err(OwnerError::Failed("not a byte came from it, and enough others have the chunk".into()))
                }
            };
            drop(share);
            let _ = outcomes.send((owner, outcome));
        });
    };
    owners.iter().filter(|owner| **owner != me && !spare.contains(owner)).for_each(|owner| send(*owner));
    let mut new = false;
    let mut no_space = false;
    while let Some((owner, outcome)) = arrived.recv().await {
        if outcome.is_err() {
            // Now those that seem to be away are needed.
            spare.drain(..).for_each(send);
        }
        let progress = match outcome {
            Ok(was_new) => {
                new |= was_new;
                quorum.on_ack(owner)
            }
            Err(OwnerError::WrongLayout) => return Ok((None, shared)),
            Err(OwnerError::Dead) => {
                return Err(ChunkError::Other {
                    reason: "the version was declared dead meanwhile: put it again".into(),
                });
            }
            Err(error) => {
                tracing::debug!(?owner, ?address, %error, "an owner did not take a chunk");
                no_space |= matches!(error, OwnerError::NoSpace);
                quorum.on_fail(owner)
            }
        };
        match progress {
            WriteProgress::Pending => {}
            WriteProgress::Acknowledged => {
                acknowledged.set();
                return Ok((Some(Stored { new }), shared));
            }
            WriteProgress::Failed { .. } if no_space => return Err(ChunkError::NoSpace),
            WriteProgress::Failed { have, need } => return Err(ChunkError::TooFewNodes { have, need }),
        }
    }
    Err(ChunkError::Cancelled)
}

/// The owners that can be left out because those that are near suffice in every layout.
fn spare_owners(quorums: &[Quorum], is_near: impl Fn(&NodeId) -> bool) -> Vec<NodeId> {
    let suffice = |quorum: &Quorum| quorum.owners.iter().filter(|owner| is_near(owner)).count();
    if !quorums.iter().all(|quorum| suffice(quorum) >= quorum.owners.write_quorum()) {
        return Vec::new();
    }
    let mut spare: Vec<NodeId> = quorums.iter().flat_map(|quorum| quorum.owners.as_slice().to_vec()).collect();
    spare.sort();
    spare.dedup();
    spare.retain(|owner| !is_near(owner));
    spare
}

/// Whether enough owners have a chunk, for those who still send it to others.
#[derive(Default)]
struct Acknowledged {
    is_so: Cell<bool>,
    told: Notify,
}

impl Acknowledged {
    fn set(&self) {
        self.is_so.set(true);
        self.told.notify_waiters();
    }

    async fn wait(&self) {
        let told = self.told.notified();
        if !self.is_so.get() {
            told.await;
        }
    }
}

/// Returns when the chunk does not need this owner any more and the owner has not sent a byte for too long.
async fn fallen_silent(shard: &Rc<Shard>, owner: &NodeId, acknowledged: &Acknowledged) {
    acknowledged.wait().await;
    let mut moved = Instant::now();
    loop {
        // Without a connection it is being dialled.
        if let Some(connection) = shard.connections.find(owner) {
            moved = connection.heard_at();
        }
        let until = moved + STALL_MAX;
        if until <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(until.into()).await;
        if until.elapsed() > STALL_MAX {
            // This process stood still, not the owner.
            tokio::time::sleep(STALL_MAX).await;
            moved = Instant::now();
        }
    }
}

impl Bytes {
    fn shared(self) -> SharedBuffer {
        match self {
            Self::Own(buffer) => buffer.freeze(),
            Self::Shared(shared) => shared,
        }
    }

    /// A buffer to stage from: this one, or a copy of what others still send from.
    async fn own(self, shard: &Rc<Shard>, len: usize) -> Buffer {
        let shared = match self {
            Self::Own(buffer) => return buffer,
            Self::Shared(shared) => shared,
        };
        let mut copy = shard.pool.take().await;
        let range = payload_range(len);
        if let (Some(to), Some(from)) = (copy.as_mut_slice().get_mut(range.clone()), shared.as_slice().get(range)) {
            to.copy_from_slice(from);
        }
        copy
    }
}

/// Begins this node's own copy; its outcome comes over the channel like everybody's.
async fn write_own_copy(
    shard: &Rc<Shard>,
    address: Address,
    bytes: Bytes,
    len: usize,
    version: VersionId,
    outcomes: &mpsc::UnboundedSender<OwnerOutcome>,
) -> SharedBuffer {
    let me = shard.node.id();
    let claim = match shard.store.hold(&address, &version).await {
        Ok(Hold::Absent(claim)) => claim,
        Ok(Hold::Held) => {
            let _ = outcomes.send((me, Ok(false)));
            return bytes.shared();
        }
        Err(error) => {
            let _ = outcomes.send((me, Err(own_error(&error))));
            return bytes.shared();
        }
    };
    let buffer = bytes.own(shard, len).await;
    let staged = match shard.store.stage(claim, buffer, len, &version, 0).await {
        Ok(staged) => staged,
        // The other owners may still make a quorum.
        Err(Refused { error, buffer }) => {
            tracing::debug!(?address, %error, "this node's own copy was not written");
            let _ = outcomes.send((me, Err(own_error(&error))));
            return buffer.freeze();
        }
    };
    let shared = staged.buffer().clone();
    let outcomes = outcomes.clone();
    spawn(async move {
        let outcome = staged.commit().await.map(|()| true).map_err(|error| own_error(&error));
        let _ = outcomes.send((me, outcome));
    });
    shared
}

fn own_error(error: &StoreError) -> OwnerError {
    match error {
        StoreError::NoSpace { .. } => OwnerError::NoSpace,
        other => OwnerError::Failed(other.to_string()),
    }
}

pub(super) fn store_error(error: StoreError) -> ChunkError {
    match error {
        StoreError::NoSpace { .. } => ChunkError::NoSpace,
        other => ChunkError::Other { reason: other.to_string() },
    }
}

/// Stores a chunk whose buffer is of no pool.
pub(super) async fn store_shared(
    shard: &Rc<Shard>,
    address: Address,
    buffer: Buffer,
    len: usize,
    version: VersionId,
) -> Result<Stored, ChunkError> {
    ClusterSink::new(shard.clone()).store(address, buffer, len, version, Share::of_no_pool()).await
}

/// Offers the chunk to a remote owner and sends it when asked to; a small one is sent at once, with others.
async fn send_to_owner(
    shard: &Rc<Shard>,
    owner: NodeId,
    layout: u32,
    address: Address,
    buffer: SharedBuffer,
    len: usize,
    version: VersionId,
) -> Result<bool, OwnerError> {
    if small::is_small(len) {
        return small::send(shard, owner, layout, address, buffer, len, version).await;
    }
    let failed = |error: &dyn std::fmt::Display| OwnerError::Failed(error.to_string());
    let offer = Question { kind: FrameKind::Offer, address: Address::ZERO, layout, patience: STORE_PATIENCE };
    let answer = ask(shard, &owner, offer, || (message::encode_offer(&version, &[address]), None))
        .await
        .map_err(|error| failed(&error))?;
    owner_status(answer.status)?;
    if answer.body.first() == Some(&1) {
        return Ok(false);
    }
    let store = Question { kind: FrameKind::Store, address, layout, patience: STORE_PATIENCE };
    let payload = || PayloadSource::Shared(buffer.clone(), payload_range(len));
    let answer = ask(shard, &owner, store, || (message::encode_store(&version, 0), Some(payload())))
        .await
        .map_err(|error| failed(&error))?;
    owner_status(answer.status)?;
    Ok(true)
}

pub(super) fn owner_status(status: Status) -> Result<(), OwnerError> {
    match status {
        Status::Ok => Ok(()),
        Status::NoSpace => Err(OwnerError::NoSpace),
        Status::WrongLayout => Err(OwnerError::WrongLayout),
        Status::Dead => Err(OwnerError::Dead),
        other => Err(OwnerError::Failed(format!("answered {other:?}"))),
    }
}

fn payload_range(len: usize) -> Range<usize> {
    RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + len
}

/// Where a get's chunks come from.
pub struct ClusterSource {
    shard: Rc<Shard>,
    /// Reads past local copies and the cache.
    remote: bool,
    /// See [`Self::of_small`].
    is_small: bool,
    /// Holders that gave wrong bytes for a chunk: not asked for it again.
    liars: RefCell<HashMap<Address, Vec<NodeId>>>,
    /// Who gave the chunks that the vault may still be verifying, the latest last.
    given: RefCell<VecDeque<(Address, NodeId)>>,
}

impl ClusterSource {
    pub fn new(shard: Rc<Shard>, remote: bool) -> Self {
        Self { shard, remote, is_small: false, liars: RefCell::default(), given: RefCell::default() }
    }

    /// Of requests for many small files: the chunks of all of them are fetched from others a few at a time.
    pub fn of_small(shard: Rc<Shard>, remote: bool) -> Self {
        Self { is_small: true, ..Self::new(shard, remote) }
    }

    fn note_given(&self, address: Address, holder: NodeId) {
        let mut given = self.given.borrow_mut();
        if given.len() >= CHUNKS_GIVEN_MAX {
            given.pop_front();
        }
        given.push_back((address, holder));
    }

    fn is_liar(&self, address: &Address, holder: &NodeId) -> bool {
        self.liars.borrow().get(address).is_some_and(|liars| liars.contains(holder))
    }
}

impl ChunkSource for ClusterSource {
    async fn fetch(&self, address: Address, len: usize, buffer: Buffer, _attempt: u32) -> Result<Fetched, ChunkError> {
        let me = self.shard.node.id();
        let is_damaged_here;
        if !self.remote && !self.is_liar(&address, &me) {
            match self.shard.store.read(&address, buffer).await {
                // Longer than the buffer, and so than `len`.
                Err(StoreError::Length { .. }) => is_damaged_here = true,
                Err(error) => return Err(store_error(error)),
                Ok(ReadOutcome::Found { buffer, len: found, turn, .. }) if found == len => {
                    self.shard.node.cache.touch(&address);
                    self.note_given(address, me);
                    return Ok(Fetched::Unchecked(buffer, turn));
                }
                Ok(wrong @ (ReadOutcome::Found { .. } | ReadOutcome::Damaged { .. })) => {
                    drop(wrong);
                    is_damaged_here = true;
                    self.shard.store.quarantine(&address).await;
                }
                Ok(ReadOutcome::Absent { buffer }) => {
                    drop(buffer);
                    is_damaged_here = self.shard.store.is_quarantined(&address);
                }
            }
        } else {
            is_damaged_here = self.is_liar(&address, &me);
            drop(buffer);
        }
        // The semaphore is never closed.
        let _place = if self.is_small { self.shard.small.fetches.acquire().await.ok() } else { None };
        let mut holders = self.shard.node.chunk_holders(&address);
        holders.retain(|holder| !self.is_liar(&address, holder));
        let (holder, payload) = fetch_planned(&self.shard, &holders, address, is_damaged_here).await?;
        if payload.len != len {
            // Right by its address, and not what the tree says: no other holder can have anything else.
            return Err(ChunkError::Damaged { address });
        }
        self.note_given(address, holder);
        if is_damaged_here {
            mend(&self.shard, address, &payload);
        } else if !self.remote {
            keep(&self.shard, address, &payload);
        }
        Ok(Fetched::Checked(payload.buffer))
    }

    fn damaged(&self, address: &Address) {
        let given = self.given.borrow().iter().rev().find(|(given, _)| given == address).copied();
        let Some((_, holder)) = given else { return };
        tracing::warn!(?address, ?holder, "a chunk does not match its address");
        self.liars.borrow_mut().entry(*address).or_default().push(holder);
        if holder == self.shard.node.id() {
            let (shard, address) = (self.shard.clone(), *address);
            spawn(async move { shard.store.quarantine(&address).await });
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("does not hold it")]
    Absent,
    #[error("holds it damaged")]
    Damaged,
    /// It, or this node, has no room for the answer now.
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Failed(String),
}

/// Asks one holder. What it sends may not match its address (its disk has changed it, or the way): the connection ends, with
/// all that was asked on it. It is asked for again: wrong twice, and the holder has no sound copy of this chunk.
pub async fn fetch_from(shard: &Rc<Shard>, holder: &NodeId, address: &Address) -> Result<Payload, FetchError> {
    let mut was_wrong = false;
    for _ in 0..PAYLOAD_MISMATCHES_MAX {
        let layout = shard.node.layout_number();
        let fetch = Question { kind: FrameKind::Fetch, address: *address, layout, patience: STALL_MAX };
        return match ask(shard, holder, fetch, || (Vec::new(), None)).await {
            Ok(answer) => match (answer.status, answer.payload) {
                (Status::Ok, Some(payload)) => Ok(payload),
                (Status::NotFound, _) => Err(FetchError::Absent),
                (Status::Damaged, _) => Err(FetchError::Damaged),
                (Status::Unavailable, _) => Err(FetchError::Busy("it cannot now".into())),
                (status, _) => Err(FetchError::Failed(format!("answered {status:?}"))),
            },
            Err(AskError::Request(RequestError::Closed { reason: CloseReason::PayloadMismatch(wrong) }))
                if wrong == *address && was_wrong =>
            {
                tracing::warn!(?address, ?holder, "a peer's copy of a chunk is damaged; run gabion verify there");
                Err(FetchError::Damaged)
            }
            Err(AskError::Request(RequestError::Closed { reason: CloseReason::PayloadMismatch(wrong) })) => {
                was_wrong |= wrong == *address;
                continue;
            }
            Err(error @ AskError::Request(RequestError::NoBuffer)) => Err(FetchError::Busy(error.to_string())),
            Err(error) => Err(FetchError::Failed(error.to_string())),
        };
    }
    Err(FetchError::Failed("other chunks that it sends are damaged, again and again".into()))
}

/// Asks holders as [`ReadPlan`] says: the best one first, the next as soon as one fails, and in addition when one is
/// slower than it usually is. The first right payload wins; the requests that lost are cancelled by being dropped.
async fn fetch_planned(
    shard: &Rc<Shard>,
    holders: &Holders,
    address: Address,
    is_damaged_here: bool,
) -> Result<(NodeId, Payload), ChunkError> {
    for _ in 0..BUSY_ROUNDS_MAX {
        if let Some(outcome) = fetch_once(shard, holders, address, is_damaged_here).await {
            return outcome;
        }
        pause().await;
    }
    Err(ChunkError::Network { reason: format!("the nodes that hold chunk {address:?} are busy: try again") })
}

/// `None`: nobody gave it, and somebody may in a moment.
async fn fetch_once(
    shard: &Rc<Shard>,
    holders: &Holders,
    address: Address,
    is_damaged_here: bool,
) -> Option<Result<(NodeId, Payload), ChunkError>> {
    let node = &shard.node;
    let mut is_busy = false;
    let mut plan = {
        let usual = shard.latencies.borrow();
        let loaded = usual.under_load(|holder| shard.connections.in_flight(holder));
        ReadPlan::new(node.id(), &holders.owners, &holders.earlier, &loaded, |holder| node.peers.is_alive(holder))
    };
    let (answers, mut arrived) = mpsc::unbounded_channel();
    let mut running = Vec::new();
    loop {
        let until = match plan.step(node.uptime()) {
            ReadStep::Ask(holder) => {
                let (own, answers) = (shard.clone(), answers.clone());
                running.push(Asked(spawn(async move {
                    let began = Instant::now();
                    let outcome = fetch_from(&own, &holder, &address).await;
                    let _ = answers.send((holder, began.elapsed(), outcome));
                })));
                continue;
            }
            ReadStep::Wait(until) => until,
            ReadStep::NotFound if is_damaged_here => return Some(Err(ChunkError::Damaged { address })),
            ReadStep::NotFound => return Some(Err(not_found(node, address))),
            ReadStep::Damaged => return Some(Err(ChunkError::Damaged { address })),
            ReadStep::Unreachable { silent } if silent.is_empty() && is_damaged_here => {
                return Some(Err(ChunkError::Damaged { address }));
            }
            ReadStep::Unreachable { silent } if silent.is_empty() => return Some(Err(not_found(node, address))),
            ReadStep::Unreachable { .. } if is_busy => return None,
            ReadStep::Unreachable { silent } => {
                return Some(Err(ChunkError::Network {
                    reason: format!("chunk {address:?} is not here, and {silent:?} cannot be asked: start those nodes"),
                }));
            }
        };
        // Only channels and timers are raced here, never a ring operation.
        let pause = until.saturating_sub(node.uptime());
        let Ok(Some((holder, took, outcome))) = tokio::time::timeout(pause, arrived.recv()).await else { continue };
        let mut latencies = shard.latencies.borrow_mut();
        match outcome {
            Ok(payload) => {
                latencies.record(holder, took);
                return Some(Ok((holder, payload)));
            }
            Err(FetchError::Absent) => plan.on_absent(holder),
            Err(FetchError::Damaged) => plan.on_damage(holder),
            Err(error @ (FetchError::Busy(_) | FetchError::Failed(_))) => {
                is_busy |= matches!(error, FetchError::Busy(_));
                tracing::debug!(?address, ?holder, %error, "a holder failed");
                latencies.record_failure(holder);
                plan.on_fail(holder);
            }
        }
    }
}

/// Nobody who is known to own it, or to have owned it, has the chunk.
fn not_found(node: &Shared, address: Address) -> ChunkError {
    match node.missed_layouts().first() {
        None => ChunkError::NotFound { address },
        Some(number) => ChunkError::Network {
            reason: format!(
                "who owned chunk {address:?} under layout {number} was not learnt yet: try again in a moment"
            ),
        },
    }
}

/// A request that is given up when nobody waits for it any more.
struct Asked(JoinHandle);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Holds again what was found damaged here, if living versions refer to it; in the background. Left out when buffers are
/// short: the damage stays known, and `verify` mends it.
fn mend(shard: &Rc<Shard>, address: Address, payload: &Payload) {
    let Some(copy) = copy_of(shard, payload) else { return };
    let shard = shard.clone();
    spawn(async move {
        match super::mend::hold_again(&shard, &address, copy).await {
            Ok(true) => tracing::info!(?address, "a damaged chunk is mended with what a get has fetched"),
            Ok(false) => {}
            Err(reason) => tracing::warn!(?address, %reason, "a damaged chunk was not mended; run gabion verify"),
        }
    });
}

/// A copy in another buffer of the pool, if there is one that nobody waits for.
fn copy_of(shard: &Rc<Shard>, payload: &Payload) -> Option<Payload> {
    if shard.pool.available() < CACHE_BUFFERS_SPARE {
        return None;
    }
    let mut buffer = shard.pool.try_take()?;
    let range = payload.range();
    buffer.as_mut_slice().get_mut(range.clone())?.copy_from_slice(payload.buffer.as_slice().get(range)?);
    Some(Payload { buffer, len: payload.len })
}

/// Keeps a copy of what was fetched, flagged as cached, in the background. It costs one copy of the bytes and is left
/// out when buffers are short: the reader goes first. (The copy has a ninth of the CPU time of a get that keeps all. To
/// decrypt from the one buffer into the other instead takes as much, 1.04 and 1.14 s/GiB against 1.11 and 1.07: what costs
/// is that the other buffer is in no cache.)
fn keep(shard: &Rc<Shard>, address: Address, payload: &Payload) {
    if !shard.node.cache.takes(payload.len) {
        return;
    }
    let Some(Payload { buffer, len }) = copy_of(shard, payload) else { return };
    let shard = shard.clone();
    spawn(async move {
        if let Err(error) = keep_copy(&shard, address, buffer, len).await {
            tracing::debug!(%error, ?address, "not cached");
        }
    });
}

async fn keep_copy(shard: &Rc<Shard>, address: Address, buffer: Buffer, len: usize) -> Result<(), StoreError> {
    let Some(claim) = shard.store.claim(&address).await? else { return Ok(()) };
    let staged = shard.store.stage(claim, buffer, len, &VersionId::ZERO, FLAG_CACHED).await?;
    staged.commit().await?;
    evict(shard, shard.node.cache.insert(address, len)).await;
    Ok(())
}

/// Lets cached chunks go. One that cannot go now is counted again, and goes another time.
async fn evict(shard: &Rc<Shard>, evicted: Vec<(Address, u32)>) {
    for (address, len) in evicted {
        if let Err(error) = shard.store.evict(&address).await {
            tracing::warn!(%error, ?address, "a cached chunk could not be removed");
            shard.node.cache.count_again(address, len);
        }
    }
}

/// Counts what earlier runs of the node have cached.
pub fn recount_cache(shard: &Rc<Shard>) {
    let shard = shard.clone();
    spawn(async move {
        let mut after = None;
        while !shard.node.is_stopping() {
            let listed = match shard.store.addresses(after, CHUNKS_PER_PAGE_MAX).await {
                Ok(listed) => listed,
                Err(error) => return tracing::warn!(%error, "the cache was not counted"),
            };
            let Some(last) = listed.last() else { return };
            after = Some(last.cursor);
            for chunk in listed.iter().filter(|chunk| chunk.flags & FLAG_CACHED != 0) {
                evict(&shard, shard.node.cache.insert(chunk.address, chunk.len)).await;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Owners;

    fn quorum(numbers: &[u8]) -> Quorum {
        Quorum { layout: 1, owners: numbers.iter().map(|number| NodeId([*number; 32])).collect::<Owners>() }
    }

    #[test]
    fn an_owner_that_is_away_is_left_out_only_while_the_others_suffice_in_every_layout() {
        let spare = |quorums: &[Quorum], near: &[u8]| -> Vec<u8> {
            let spare = spare_owners(quorums, |owner| near.contains(&owner.0[0]));
            spare.into_iter().map(|owner| owner.0[0]).collect()
        };
        assert_eq!(spare(&[quorum(&[1, 2, 3])], &[1, 2, 3]), [0; 0]);
        assert_eq!(spare(&[quorum(&[1, 2, 3])], &[1, 2]), [3]);
        assert_eq!(spare(&[quorum(&[1, 2, 3])], &[1]), [0; 0], "two are needed");
        assert_eq!(spare(&[quorum(&[1, 2])], &[1]), [0; 0], "both are needed");
        assert_eq!(spare(&[quorum(&[1, 2, 3]), quorum(&[3, 4, 5])], &[1, 2, 4, 5]), [3]);
        assert_eq!(spare(&[quorum(&[1, 2, 3]), quorum(&[3, 4, 5])], &[1, 2, 4]), [0; 0]);
    }
}
