//! Short chunks, many at once: decided one by one, durable together.
//!
//! A chunk that is alone costs a message to the committer, an answer from it and a sync shared with whoever else waits.
//! Those that come together share all three. Each has its own answer all the same:
//!
//! | the chunk is | what is written | answer |
//! | --- | --- | --- |
//! | not here | the chunk, then the capsule's reference if it has one | new |
//! | here | its reference, with the capsule if it has one | held |
//! | refused (its length, no space) | nothing | the error; the others go on |
//!
//! # Rules
//! - Nobody waits for an address lock while holding another that is not on its way to the log, or two callers with the
//!   same chunks in another order would wait for each other. So a round waits for its first lock only, takes others that
//!   are free, and commits; the next round looks at what is left.
//! - Of several chunks of one address the first is written; the others find it here in the next round.
//! - A failed commit fails all of its round: which of them is on the disk all the same is not known.

use super::committer::Op;
use super::context::{Superseded, reference_op};
use super::disk::Disk;
use super::finish::Effect;
use super::locks::{AddressLock, Pin};
use super::{Store, StoreError};
use crate::format::record::{RECORD_HEADER_BYTES, RecordKind};
use crate::format::{Address, VersionId};
use crate::limits::{BULK_PAYLOAD_BYTES_MIN, CHUNK_BYTES_MIN};

/// A chunk to be held for a version.
pub struct SmallChunk {
    pub address: Address,
    pub version: VersionId,
    /// Of its record.
    pub flags: u8,
    pub payload: Vec<u8>,
    /// Of a root: sealed, for its reference.
    pub capsule: Option<Vec<u8>>,
    /// The version was minted for this chunk: nothing refers to anything by it yet.
    pub is_first: bool,
}

/// What one round writes.
#[derive(Default)]
struct Round {
    ops: Vec<Op>,
    /// Of chunks that are here: they stay while their references are written.
    pins: Vec<Pin>,
    /// Which chunk, and whether it is new.
    chunks: Vec<(usize, bool)>,
    /// Whether the file system has space for new chunks, once somebody wanted to know.
    free: Option<Result<(), StoreError>>,
}

impl<D: Disk> Store<D> {
    /// Holds every chunk for its version. Durable when it returns, each as its own answer says: whether it was new.
    pub async fn hold_small(&self, chunks: Vec<SmallChunk>) -> Vec<Result<bool, StoreError>> {
        let mut answers: Vec<Result<bool, StoreError>> = chunks.iter().map(|_| Err(StoreError::Closed)).collect();
        let mut settle = |at: usize, answer| {
            if let Some(place) = answers.get_mut(at) {
                *place = answer;
            }
        };
        let mut left: Vec<(usize, SmallChunk)> = chunks.into_iter().enumerate().collect();
        while !left.is_empty() {
            let mut round = Round::default();
            let mut later = Vec::new();
            for (at, chunk) in left {
                let lock = match self.shared().locks.try_lock(&chunk.address) {
                    Some(lock) => lock,
                    // The first of those that wait may do so while this round holds nothing.
                    None if round.chunks.is_empty() && later.is_empty() => {
                        self.shared().locks.lock(&chunk.address).await
                    }
                    None => {
                        later.push((at, chunk));
                        continue;
                    }
                };
                if let Err(error) = self.join(&mut round, at, chunk, lock).await {
                    settle(at, Err(error));
                }
            }
            let Round { ops, pins, chunks, free: _ } = round;
            let result = if ops.is_empty() { Ok(()) } else { self.context().commit(ops).await };
            drop(pins);
            chunks.into_iter().for_each(|(at, new)| settle(at, result.clone().map(|()| new)));
            left = later;
        }
        answers
    }

    /// Decides about one chunk under its lock, and adds what has to be written.
    async fn join(&self, round: &mut Round, at: usize, chunk: SmallChunk, lock: AddressLock) -> Result<(), StoreError> {
        let SmallChunk { address, version, flags, payload, capsule, is_first } = chunk;
        if !(CHUNK_BYTES_MIN..BULK_PAYLOAD_BYTES_MIN).contains(&payload.len()) {
            return Err(StoreError::Length {
                what: "small chunk",
                len_bytes: payload.len(),
                min_bytes: CHUNK_BYTES_MIN,
                max_bytes: BULK_PAYLOAD_BYTES_MIN - 1,
            });
        }
        let reference = |capsule: Option<Vec<u8>>| {
            let mut op = reference_op(&address, &version);
            op.payload = capsule.unwrap_or_default();
            if is_first {
                op.effect = Effect::First;
            }
            op
        };
        match self.superseded(&address).await? {
            None => {
                // The pin keeps it from here on; others need not wait for our reference.
                round.pins.push(self.shared().locks.pin(&address));
                drop(lock);
                round.ops.push(reference(capsule));
                round.chunks.push((at, false));
            }
            Some(superseded) => {
                round.free.get_or_insert_with(|| self.check_free()).clone()?;
                self.shared().check_capacity((RECORD_HEADER_BYTES + payload.len()) as u64)?;
                round.ops.push(chunk_op(address, version, flags, payload, superseded, lock));
                if capsule.is_some() {
                    round.ops.push(reference(capsule));
                }
                round.chunks.push((at, true));
            }
        }
        Ok(())
    }
}

fn chunk_op(
    address: Address,
    version: VersionId,
    flags: u8,
    payload: Vec<u8>,
    superseded: Vec<Superseded>,
    lock: AddressLock,
) -> Op {
    let effect = Effect::Insert { superseded, lock };
    Op { kind: RecordKind::Chunk, flags, address, version, payload, effect }
}
