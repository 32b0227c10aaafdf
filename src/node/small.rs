//! Small chunks on their way to their owners: many in one frame, many in one commit.
//!
//! For a chunk of a few KiB the question "do you need it?" costs as much as the chunk. So a small chunk is sent with its
//! bytes at once, together with others that go to the same owner at that moment, whichever puts they belong to:
//!
//! ```text
//! chunk --> lane of its owner --(frames under way < SMALL_FRAMES_IN_FLIGHT_MAX)--> frame --> owner: one answer a chunk
//!                |                                                                                     |
//!                +-- else it waits; each answer that comes back lets the next frame go, with all that waits --+
//! ```
//! Nothing waits for company: a lone chunk leaves at once, and frames fill up by themselves where many are under way.
//!
//! # Rules
//! - An answer comes only when the chunk is durable there; each chunk has its own, and a refused one says nothing about
//!   its neighbours. A frame that is lost twice fails all that was in it.
//! - All chunks of a frame run under one layout: whoever began under another waits for the next frame.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use tokio::sync::oneshot;

use super::ask::{Question, ask};
use super::chunks::{OwnerError, owner_status, store_error, store_shared};
use super::owners;
use super::shard::Shard;
use crate::format::frame::{FrameKind, Status};
use crate::format::message::{self, SMALL_CHUNK_HELD};
use crate::format::{Address, NodeId, VersionId, Writer};
use crate::io::{Buffer, SharedBuffer, spawn};
use crate::limits::{
    RECORD_HEAD_BYTES, SEALED_BODY_BYTES_MAX, SMALL_CHUNK_BYTES_MAX, SMALL_CHUNK_HEAD_BYTES,
    SMALL_FRAMES_IN_FLIGHT_MAX, STORE_PATIENCE,
};
use crate::store::SmallChunk;
use crate::vault::{ChunkError, Stored};

/// A shard's small chunks that wait to be sent.
#[derive(Default)]
pub struct Outbox {
    lanes: RefCell<HashMap<NodeId, Rc<Lane>>>,
}

/// Those for one owner.
#[derive(Default)]
struct Lane {
    waiting: RefCell<VecDeque<Parcel>>,
    senders: Cell<usize>,
}

struct Parcel {
    layout: u32,
    address: Address,
    version: VersionId,
    buffer: SharedBuffer,
    len: usize,
    answer: oneshot::Sender<Result<bool, OwnerError>>,
}

impl Parcel {
    fn bytes(&self) -> &[u8] {
        self.buffer.as_slice().get(RECORD_HEAD_BYTES..).and_then(|payload| payload.get(..self.len)).unwrap_or_default()
    }
}

/// Whether a chunk is sent in the company of others.
pub fn is_small(len: usize) -> bool {
    len <= SMALL_CHUNK_BYTES_MAX
}

/// Sends one small chunk, which lies behind the record head of its buffer, to an owner. Durable there when this returns:
/// whether it was new to it.
pub(super) async fn send(
    shard: &Rc<Shard>,
    owner: NodeId,
    layout: u32,
    address: Address,
    buffer: SharedBuffer,
    len: usize,
    version: VersionId,
) -> Result<bool, OwnerError> {
    let lane = shard.outbox.lanes.borrow_mut().entry(owner).or_default().clone();
    let (answer, told) = oneshot::channel();
    lane.waiting.borrow_mut().push_back(Parcel { layout, address, version, buffer, len, answer });
    if lane.senders.get() < SMALL_FRAMES_IN_FLIGHT_MAX {
        lane.senders.set(lane.senders.get() + 1);
        let shard = shard.clone();
        spawn(async move { send_waiting(&shard, owner, &lane).await });
    }
    told.await.unwrap_or_else(|_| Err(OwnerError::Failed("the node stops".into())))
}

/// Frame after frame, until nothing waits.
async fn send_waiting(shard: &Rc<Shard>, owner: NodeId, lane: &Lane) {
    loop {
        let frame = lane.next_frame();
        let Some(layout) = frame.first().map(|parcel| parcel.layout) else { break };
        match send_frame(shard, owner, layout, &frame).await {
            Ok(answers) => frame.into_iter().zip(answers).for_each(|(parcel, answer)| {
                let _ = parcel.answer.send(answer);
            }),
            Err(error) => frame.into_iter().for_each(|parcel| {
                let _ = parcel.answer.send(Err(error.clone()));
            }),
        }
    }
    lane.senders.set(lane.senders.get() - 1);
}

impl Lane {
    /// As many of those that wait as one body holds.
    fn next_frame(&self) -> Vec<Parcel> {
        let mut waiting = self.waiting.borrow_mut();
        let mut frame: Vec<Parcel> = Vec::new();
        let mut bytes = 0;
        while let Some(next) = waiting.front() {
            bytes += SMALL_CHUNK_HEAD_BYTES + next.len;
            let is_of_this_layout = frame.first().is_none_or(|first| first.layout == next.layout);
            if !frame.is_empty() && (bytes > SEALED_BODY_BYTES_MAX || !is_of_this_layout) {
                break;
            }
            frame.extend(waiting.pop_front());
        }
        frame
    }
}

async fn send_frame(
    shard: &Rc<Shard>,
    owner: NodeId,
    layout: u32,
    frame: &[Parcel],
) -> Result<Vec<Result<bool, OwnerError>>, OwnerError> {
    let failed = |error: &dyn std::fmt::Display| OwnerError::Failed(error.to_string());
    let question = Question { kind: FrameKind::StoreSmall, address: Address::ZERO, layout, patience: STORE_PATIENCE };
    let answer = ask(shard, &owner, question, || (encode_frame(frame), None)).await.map_err(|error| failed(&error))?;
    owner_status(answer.status)?;
    if answer.body.len() != frame.len() {
        return Err(OwnerError::Failed(format!("answered for {} of {} chunks", answer.body.len(), frame.len())));
    }
    Ok(answer.body.iter().map(|byte| chunk_answer(*byte)).collect())
}

fn encode_frame(frame: &[Parcel]) -> Vec<u8> {
    let mut body = Writer::with_capacity(SEALED_BODY_BYTES_MAX);
    for parcel in frame {
        let chunk =
            message::SmallChunk { address: parcel.address, version: parcel.version, flags: 0, bytes: parcel.bytes() };
        message::encode_small_chunk(&mut body, &chunk);
    }
    body.finish()
}

/// Whether the chunk was new to the owner.
fn chunk_answer(byte: u8) -> Result<bool, OwnerError> {
    let status = Status::parse(u16::from(byte & !SMALL_CHUNK_HELD));
    owner_status(status.ok_or_else(|| OwnerError::Failed(format!("answered {byte} for a chunk")))?)?;
    Ok(byte & SMALL_CHUNK_HELD == 0)
}

/// Stores roots of small files, each with its capsule, on their owners; durable on enough of them where an answer says so.
pub async fn store_roots(shard: &Rc<Shard>, roots: Vec<SmallChunk>) -> Vec<Result<Stored, ChunkError>> {
    let layout = match shard.node.layout() {
        Ok(layout) => layout,
        Err(error) => return roots.iter().map(|_| Err(error.clone())).collect(),
    };
    let me = shard.node.id();
    let is_only_ours =
        |root: &SmallChunk| layout.chunk_owners(&root.address).as_slice().iter().all(|owner| *owner == me);
    if roots.iter().all(is_only_ours) {
        let held = shard.store.hold_small(roots).await;
        return held.into_iter().map(|held| held.map(|new| Stored { new }).map_err(store_error)).collect();
    }
    let mut answers = Vec::with_capacity(roots.len());
    for root in roots {
        let (answer, told) = oneshot::channel();
        let shard = shard.clone();
        spawn(async move {
            let _ = answer.send(store_root(&shard, root).await);
        });
        answers.push(told);
    }
    let mut outcomes = Vec::with_capacity(answers.len());
    for told in answers {
        outcomes.push(told.await.unwrap_or(Err(ChunkError::Cancelled)));
    }
    outcomes
}

/// The chunk and the reference that carries its capsule travel at the same time: a reference to a chunk that did not
/// arrive keeps nothing alive, and nobody learns of either before both are durable.
async fn store_root(shard: &Rc<Shard>, root: SmallChunk) -> Result<Stored, ChunkError> {
    let SmallChunk { address, version, flags: _, payload, capsule, is_first: _ } = root;
    let mut buffer = Buffer::heap(RECORD_HEAD_BYTES + payload.len());
    if let Some(place) = buffer.as_mut_slice().get_mut(RECORD_HEAD_BYTES..) {
        place.copy_from_slice(&payload);
    }
    let refer = async {
        match &capsule {
            Some(capsule) => owners::refer(shard, &address, &version, capsule).await,
            None => Ok(()),
        }
    };
    let (stored, referred) = tokio::join!(store_shared(shard, address, buffer, payload.len(), version), refer);
    referred?;
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(layout: u32, len: usize) -> (Parcel, oneshot::Receiver<Result<bool, OwnerError>>) {
        let (answer, told) = oneshot::channel();
        let buffer = Buffer::heap(RECORD_HEAD_BYTES + len).freeze();
        (Parcel { layout, address: Address::ZERO, version: VersionId::ZERO, buffer, len, answer }, told)
    }

    fn frames(parcels: &[(u32, usize)]) -> Vec<Vec<usize>> {
        let lane = Lane::default();
        lane.waiting.borrow_mut().extend(parcels.iter().map(|(layout, len)| parcel(*layout, *len).0));
        let next = || Some(lane.next_frame()).filter(|frame| !frame.is_empty());
        std::iter::from_fn(next).map(|frame| frame.iter().map(|parcel| parcel.len).collect()).collect()
    }

    #[test]
    fn a_frame_takes_what_one_body_holds_and_no_more() {
        let full = SMALL_CHUNK_BYTES_MAX;
        assert_eq!(frames(&[(1, full), (1, 32), (1, 4096)]), [vec![full], vec![32, 4096]]);
        let frames = frames(&[(1, 4096); 40]);
        assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [15, 15, 10]);
        for frame in frames {
            let bytes: usize = frame.iter().map(|len| len + SMALL_CHUNK_HEAD_BYTES).sum();
            assert!(bytes <= SEALED_BODY_BYTES_MAX);
        }
    }

    #[test]
    fn chunks_of_two_layouts_share_no_frame() {
        assert_eq!(frames(&[(1, 100), (1, 101), (2, 102), (1, 103)]), [vec![100, 101], vec![102], vec![103]]);
    }

    #[test]
    fn each_byte_of_an_answer_speaks_for_its_chunk_alone() {
        assert!(matches!(chunk_answer(Status::Ok as u8), Ok(true)));
        assert!(matches!(chunk_answer(Status::Ok as u8 | SMALL_CHUNK_HELD), Ok(false)));
        assert!(matches!(chunk_answer(Status::Dead as u8), Err(OwnerError::Dead)));
        assert!(matches!(chunk_answer(Status::NoSpace as u8), Err(OwnerError::NoSpace)));
        assert!(matches!(chunk_answer(99), Err(OwnerError::Failed(_))));
    }
}
