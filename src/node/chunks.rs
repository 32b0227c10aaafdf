//! Chunks over the cluster: written to all owners at once and acknowledged at W durable copies, read from whoever is
//! fastest.
//!
//! Writing. Each owner decides for itself whether it needs the bytes: it is offered {address, version}; either it
//! already holds the chunk and has made the reference durable ("held"), or it is sent the chunk and answers once the
//! record is durable. All owners work in parallel from one buffer; the put goes on at W, the rest follow in the
//! background and hold the buffer until they have it or fail, which bounds how far a slow owner lags: by the pool.
//!
//! Reading. The local copy first; then owners in the order of [`ReadPlan`]; the next one is asked as soon as one
//! fails, and in addition when one has not answered within the hedge delay. Bytes are verified on receipt by the wire
//! and again by the vault before they are decrypted.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::connections::connect;
use super::shard::Shard;
use crate::cluster::{ActiveLayout, WriteProgress, WriteQuorum};
use crate::format::frame::{FrameKind, Status};
use crate::format::message;
use crate::format::record::FLAG_CACHED;
use crate::format::{Address, NodeId, VersionId};
use crate::io::{Buffer, JoinHandle, SharedBuffer, spawn};
use crate::limits::{CHUNKS_IN_FLIGHT_PER_SHARD, RECORD_HEAD_BYTES, STALL_MAX};
use crate::store::{Hold, ReadOutcome, StoreError};
use crate::vault::{ChunkError, ChunkSink, ChunkSource, Stored};
use crate::wire::{Payload, PayloadSource};

/// How long an owner may take to make a chunk durable before it counts as failed for this write.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

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

#[derive(Debug, thiserror::Error)]
enum OwnerError {
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
    ) -> Result<Stored, ChunkError> {
        let layout = self.shard.node.layout()?;
        let owners = layout.chunk_owners(&address);
        let me = self.shard.node.id();
        if owners.as_slice().iter().all(|owner| *owner == me) {
            return store_locally(&self.shard, address, buffer, len, version).await;
        }
        store_at_owners(&self.shard, &layout, address, buffer, len, version).await
    }
}

/// The only owner is this node: no tasks, no quorum.
async fn store_locally(
    shard: &Rc<Shard>,
    address: Address,
    buffer: Buffer,
    len: usize,
    version: VersionId,
) -> Result<Stored, ChunkError> {
    match shard.store.hold(&address, &version).await.map_err(store_error)? {
        Hold::Held => Ok(Stored { new: false }),
        Hold::Absent(claim) => {
            let staged = shard.store.stage(claim, buffer, len, &version, 0).await.map_err(store_error)?;
            staged.commit().await.map_err(store_error)?;
            Ok(Stored { new: true })
        }
    }
}

async fn store_at_owners(
    shard: &Rc<Shard>,
    layout: &Arc<ActiveLayout>,
    address: Address,
    buffer: Buffer,
    len: usize,
    version: VersionId,
) -> Result<Stored, ChunkError> {
    let owners = layout.chunk_owners(&address);
    let me = shard.node.id();
    let mut quorum = WriteQuorum::new(&owners);
    let (outcomes, mut arrived) = mpsc::unbounded_channel::<OwnerOutcome>();
    let shared = if owners.as_slice().contains(&me) {
        match shard.store.hold(&address, &version).await {
            Ok(Hold::Held) => {
                let _ = outcomes.send((me, Ok(false)));
                buffer.freeze()
            }
            Ok(Hold::Absent(claim)) => {
                let staged = shard.store.stage(claim, buffer, len, &version, 0).await.map_err(store_error)?;
                let shared = staged.buffer().clone();
                let outcomes = outcomes.clone();
                spawn(async move {
                    let outcome = staged.commit().await.map(|()| true).map_err(|error| OwnerError::Failed(error.to_string()));
                    let _ = outcomes.send((me, outcome));
                });
                shared
            }
            Err(error) => {
                let _ = outcomes.send((me, Err(own_error(&error))));
                buffer.freeze()
            }
        }
    } else {
        buffer.freeze()
    };
    for owner in owners.as_slice().iter().copied().filter(|owner| *owner != me) {
        let (shard, shared, outcomes) = (shard.clone(), shared.clone(), outcomes.clone());
        let number = layout.number();
        spawn(async move {
            let outcome = send_to_owner(&shard, owner, number, address, shared, len, version).await;
            let _ = outcomes.send((owner, outcome));
        });
    }
    drop((outcomes, shared));
    let mut new = false;
    let mut last_error = None;
    while let Some((owner, outcome)) = arrived.recv().await {
        let progress = match outcome {
            Ok(was_new) => {
                new |= was_new;
                quorum.on_ack(&owner)
            }
            Err(error) => {
                tracing::debug!(?owner, ?address, %error, "an owner did not take a chunk");
                last_error = Some(error);
                quorum.on_fail(&owner)
            }
        };
        match progress {
            WriteProgress::Pending => {}
            WriteProgress::Acknowledged => return Ok(Stored { new }),
            WriteProgress::Failed { have, need } => {
                return Err(match last_error {
                    Some(OwnerError::NoSpace) => ChunkError::NoSpace,
                    Some(OwnerError::Dead) => ChunkError::Other { reason: "the version was declared dead".into() },
                    _ => ChunkError::TooFewNodes { have, need },
                });
            }
        }
    }
    Err(ChunkError::Cancelled)
}

fn own_error(error: &StoreError) -> OwnerError {
    match error {
        StoreError::NoSpace { .. } => OwnerError::NoSpace,
        other => OwnerError::Failed(other.to_string()),
    }
}

fn store_error(error: StoreError) -> ChunkError {
    match error {
        StoreError::NoSpace { .. } => ChunkError::NoSpace,
        other => ChunkError::Other { reason: other.to_string() },
    }
}

/// Offers the chunk to a remote owner and sends it when asked to.
async fn send_to_owner(
    shard: &Rc<Shard>,
    owner: NodeId,
    layout: u32,
    address: Address,
    buffer: SharedBuffer,
    len: usize,
    version: VersionId,
) -> Result<bool, OwnerError> {
    let failed = |error: &dyn std::fmt::Display| OwnerError::Failed(error.to_string());
    let connection = connect(shard, &owner).await.map_err(|error| failed(&error))?;
    let offer = message::encode_offer(&version, &[address]);
    let answer = connection
        .request(FrameKind::Offer, Address::ZERO, layout, offer, None, STORE_PATIENCE)
        .await
        .map_err(|error| failed(&error))?;
    owner_status(answer.status)?;
    if answer.body.first() == Some(&1) {
        return Ok(false);
    }
    let payload = PayloadSource::Shared(buffer, payload_range(len));
    let body = message::encode_store(&version, 0);
    let answer = connection
        .request(FrameKind::Store, address, layout, body, Some(payload), STORE_PATIENCE)
        .await
        .map_err(|error| failed(&error))?;
    owner_status(answer.status)?;
    Ok(true)
}

fn owner_status(status: Status) -> Result<(), OwnerError> {
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
    /// Holders that gave wrong bytes for a chunk: not asked for it again.
    liars: RefCell<HashMap<Address, Vec<NodeId>>>,
    last_holder: RefCell<HashMap<Address, NodeId>>,
}

impl ClusterSource {
    pub fn new(shard: Rc<Shard>, remote: bool) -> Self {
        Self { shard, remote, liars: RefCell::default(), last_holder: RefCell::default() }
    }

    fn is_liar(&self, address: &Address, holder: &NodeId) -> bool {
        self.liars.borrow().get(address).is_some_and(|liars| liars.contains(holder))
    }
}

impl ChunkSource for ClusterSource {
    async fn fetch(&self, address: Address, len: usize, buffer: Buffer, _attempt: u32) -> Result<Buffer, ChunkError> {
        let me = self.shard.node.id();
        let mut is_damaged_here = false;
        if !self.remote && !self.is_liar(&address, &me) {
            match self.shard.store.read(&address, buffer).await.map_err(store_error)? {
                ReadOutcome::Found { buffer, len: found, .. } if found == len => {
                    self.shard.node.cache.touch(&address);
                    self.last_holder.borrow_mut().insert(address, me);
                    return Ok(buffer);
                }
                ReadOutcome::Found { buffer, .. } | ReadOutcome::Damaged { buffer } => {
                    drop(buffer);
                    is_damaged_here = true;
                    self.shard.store.quarantine(&address).await;
                }
                ReadOutcome::Absent { buffer } => drop(buffer),
            }
        } else {
            is_damaged_here = self.is_liar(&address, &me);
            drop(buffer);
        }
        let mut holders = self.shard.node.chunk_holders(&address);
        holders.retain(|holder| !self.is_liar(&address, holder));
        let (holder, payload) = fetch_hedged(&self.shard, &holders, address, is_damaged_here).await?;
        if payload.len != len {
            self.liars.borrow_mut().entry(address).or_default().push(holder);
            return Err(ChunkError::Damaged { address });
        }
        self.last_holder.borrow_mut().insert(address, holder);
        if !self.remote {
            keep(&self.shard, address, &payload);
        }
        Ok(payload.buffer)
    }

    fn damaged(&self, address: &Address) {
        let Some(holder) = self.last_holder.borrow_mut().remove(address) else { return };
        tracing::warn!(?address, ?holder, "a chunk does not match its address");
        self.liars.borrow_mut().entry(*address).or_default().push(holder);
        if holder == self.shard.node.id() {
            let (shard, address) = (self.shard.clone(), *address);
            spawn(async move { shard.store.quarantine(&address).await });
        }
    }
}

/// After this long without an answer the next holder is asked too.
const HEDGE_DELAY: Duration = Duration::from_millis(300);

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("does not hold it")]
    Absent,
    #[error("holds it damaged")]
    Damaged,
    #[error("{0}")]
    Failed(String),
}

/// Asks one holder.
pub async fn fetch_from(shard: &Rc<Shard>, holder: &NodeId, address: &Address) -> Result<Payload, FetchError> {
    let connection = connect(shard, holder).await.map_err(|error| FetchError::Failed(error.to_string()))?;
    let number = shard.node.layout_number();
    let answer = connection
        .request(FrameKind::Fetch, *address, number, Vec::new(), None, STALL_MAX)
        .await
        .map_err(|error| FetchError::Failed(error.to_string()))?;
    match (answer.status, answer.payload) {
        (Status::Ok, Some(payload)) => Ok(payload),
        (Status::NotFound, _) => Err(FetchError::Absent),
        (Status::Damaged, _) => Err(FetchError::Damaged),
        (status, _) => Err(FetchError::Failed(format!("answered {status:?}"))),
    }
}

/// Asks the holders in order: the next one as soon as one fails, and in addition when none has answered for
/// [`HEDGE_DELAY`]. The first right payload wins; the requests that lost are cancelled by being dropped.
async fn fetch_hedged(
    shard: &Rc<Shard>,
    holders: &[NodeId],
    address: Address,
    mut is_damaged: bool,
) -> Result<(NodeId, Payload), ChunkError> {
    let (answers, mut arrived) = mpsc::unbounded_channel();
    let mut rest = rotated(holders, &address, shard);
    let (mut running, mut reasons) = (Vec::new(), Vec::new());
    let (mut absent, mut waiting) = (0, 0);
    loop {
        if let Some(holder) = rest.next() {
            let (shard, answers) = (shard.clone(), answers.clone());
            running.push(Asked(spawn(async move {
                let outcome = fetch_from(&shard, &holder, &address).await;
                let _ = answers.send((holder, outcome));
            })));
            waiting += 1;
        } else if waiting == 0 {
            break;
        }
        // Only channels and timers are raced here, never a ring operation.
        let answer = tokio::time::timeout(HEDGE_DELAY, arrived.recv()).await;
        match answer {
            Err(_slow) => continue,
            Ok(None) => break,
            Ok(Some((holder, Ok(payload)))) => return Ok((holder, payload)),
            Ok(Some((holder, Err(error)))) => {
                waiting -= 1;
                match error {
                    FetchError::Absent => absent += 1,
                    FetchError::Damaged => is_damaged = true,
                    FetchError::Failed(reason) => reasons.push(format!("{holder:?}: {reason}")),
                }
            }
        }
    }
    tracing::debug!(?address, absent, ?reasons, "no holder gave a chunk");
    if is_damaged && reasons.is_empty() {
        return Err(ChunkError::Damaged { address });
    }
    if reasons.is_empty() {
        return Err(ChunkError::NotFound { address });
    }
    Err(ChunkError::Network { reason: reasons.join("; ") })
}

/// Living holders in an order of the chunk's own, so that the chunks of one file come from all of them at once; the
/// dead after them.
fn rotated(holders: &[NodeId], address: &Address, shard: &Rc<Shard>) -> std::vec::IntoIter<NodeId> {
    let mut order = holders.to_vec();
    let alive = order.iter().take_while(|holder| shard.node.peers.is_alive(holder)).count();
    if let Some(living) = order.get_mut(..alive).filter(|living| !living.is_empty()) {
        living.rotate_left(usize::from(address.partition()) % alive);
    }
    order.into_iter()
}

/// A request that is given up when nobody waits for it any more.
struct Asked(JoinHandle);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps a copy of what was fetched, flagged as cached, in the background. It costs one copy of the bytes and is left
/// out when buffers are short: the reader goes first.
fn keep(shard: &Rc<Shard>, address: Address, payload: &Payload) {
    let len = payload.len;
    if !shard.node.cache.takes(len) || shard.pool.available() < CACHE_BUFFERS_SPARE {
        return;
    }
    let Some(mut buffer) = shard.pool.try_take() else { return };
    let range = payload_range(len);
    if let (Some(to), Some(from)) = (buffer.as_mut_slice().get_mut(range.clone()), payload.buffer.as_slice().get(range)) {
        to.copy_from_slice(from);
    }
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
    for evicted in shard.node.cache.insert(address, len) {
        shard.store.evict(&evicted).await?;
    }
    Ok(())
}

/// Buffers that stay free for readers while copies are written.
const CACHE_BUFFERS_SPARE: usize = CHUNKS_IN_FLIGHT_PER_SHARD;
