//! `GetSmall`: the names of all targets are read, then what they name.
//!
//! | step | on a node alone | with others |
//! | --- | --- | --- |
//! | 1 | names that are not in memory by one question to the catalog | each name by quorum, many at once |
//! | 2 | what is not small, or does not fit the answer any more, is said to be so | the same |
//! | 3 | contents from this node's disk, one after the other | contents from anywhere, several at once |
//!
//! What does not fit is not fetched, so that a request holds no more than one answer. With others, a request has a few
//! tasks under way at a time, in the order of its targets, and a shard a few questions for all requests: who reads much from
//! far away delays the others' next question, not all of them. Only those tasks go on when the client has hung up.
//!
//! Between the steps a name may get another content, and its old chunk may go. So who finds none looks at the name again.

use std::collections::VecDeque;
use std::rc::Rc;

use super::{InTask, Looked, alone, cut, ended, in_task, settled, vault_key};
use crate::crypto::cipher::{apply_keystream, open_chunk};
use crate::crypto::keys::VaultKey;
use crate::format::name::Name;
use crate::format::{BucketId, NameId};
use crate::io::Buffer;
use crate::limits::{
    CHUNK_BYTES_MIN, FETCH_ATTEMPTS_MAX, RECORD_HEAD_BYTES, SMALL_FETCHES_AT_ONCE_MAX, SMALL_FILES_BYTES_MAX,
    SMALL_NAMES_AT_ONCE_MAX,
};
use crate::node::chunks::ClusterSource;
use crate::node::commands::get::{Found, find, find_name, found_name, get_failure};
use crate::node::commands::{Failure, code};
use crate::node::control::{Bytes, SmallFetched, Target};
use crate::node::shard::Shard;
use crate::vault::{ChunkError, ChunkSource, Fetched, GetError, check_padding};

/// One outcome for each target, in their order. `None` when `gone` ended first, if other nodes had to be waited for.
pub(super) async fn get_files(
    shard: &Rc<Shard>,
    targets: Vec<Target>,
    remote: bool,
    gone: impl Future<Output = ()>,
) -> Option<Vec<SmallFetched>> {
    if alone(shard).is_some() {
        return Some(get_here(shard, targets, remote).await);
    }
    // What waits here waits for other tasks: nothing that the kernel writes to is dropped half-way.
    tokio::select! {
        biased;
        outcomes = get_anywhere(shard, targets, remote) => Some(outcomes),
        () = gone => None,
    }
}

async fn get_here(shard: &Rc<Shard>, targets: Vec<Target>, remote: bool) -> Vec<SmallFetched> {
    let source = ClusterSource::of_small(shard.clone(), remote);
    let (mut outcomes, mut bytes) = (Vec::with_capacity(targets.len()), 0);
    for found in find_here(shard, targets).await {
        outcomes.push(match Planned::new(found, &mut bytes) {
            Planned::Answer(outcome) => outcome,
            Planned::Read(found) => read(shard, &source, *found, remote).await,
        });
    }
    outcomes
}

async fn get_anywhere(shard: &Rc<Shard>, targets: Vec<Target>, remote: bool) -> Vec<SmallFetched> {
    let begin_find = |target: Target| {
        let shard = shard.clone();
        in_task(async move {
            // The semaphore is never closed.
            let _place = shard.small.reads.acquire().await;
            find_one(&shard, &target).await
        })
    };
    let found = in_turn(targets.into_iter().map(begin_find), SMALL_NAMES_AT_ONCE_MAX).await;
    let mut bytes = 0;
    let source = Rc::new(ClusterSource::of_small(shard.clone(), remote));
    let begin_read = |found| match Planned::new(found, &mut bytes) {
        Planned::Answer(outcome) => settled(outcome),
        Planned::Read(found) => {
            let (shard, source) = (shard.clone(), source.clone());
            in_task(async move { Ok(read(&shard, &source, *found, remote).await) })
        }
    };
    let outcomes = in_turn(found.into_iter().map(begin_read), SMALL_FETCHES_AT_ONCE_MAX).await;
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(failed)).collect()
}

/// Waits for tasks that begin when they are taken from `begun`, with at most `at_once` of them under way.
async fn in_turn<T>(begun: impl Iterator<Item = InTask<T>>, at_once: usize) -> Vec<Result<T, Failure>> {
    let (mut outcomes, mut running) = (Vec::new(), VecDeque::with_capacity(at_once));
    for task in begun {
        running.push_back(task);
        if running.len() >= at_once
            && let Some(first) = running.pop_front()
        {
            outcomes.push(ended(first).await);
        }
    }
    for task in running {
        outcomes.push(ended(task).await);
    }
    outcomes
}

fn failed(failure: Failure) -> SmallFetched {
    let Failure { code, message } = cut(failure);
    SmallFetched::Failed { code, message }
}

async fn find_one(shard: &Rc<Shard>, target: &Target) -> Result<Found, Failure> {
    match target {
        // What is wrong with one is told otherwise.
        Target::Link { .. } => Err(Failure::new(code::USAGE, "links are not got many at once: ask for each by itself")),
        _ => find(shard, target).await,
    }
}

/// Step 1, on a node alone: the same as for any get, but for the one question.
async fn find_here(shard: &Rc<Shard>, targets: Vec<Target>) -> Vec<Result<Found, Failure>> {
    let vault = vault_key(shard);
    let ids = |target: &Target| match (target, &vault) {
        (Target::Name { bucket, key }, Ok(vault)) => Some(vault.ids(bucket, key)),
        _ => None,
    };
    let ids: Vec<Option<(BucketId, NameId)>> = targets.iter().map(ids).collect();
    let at_once = |(bucket, name): (BucketId, NameId)| shard.node.catalog.name_at_once(&bucket, &name);
    let mut looked: Vec<Option<Looked>> = ids.iter().map(|ids| ids.and_then(at_once).map(Ok)).collect();
    let unknown = || looked.iter().zip(&ids).filter(|(looked, _)| looked.is_none()).filter_map(|(_, ids)| *ids);
    let mut answers = look_up(shard, unknown().collect()).await.into_iter();
    for (looked, _) in looked.iter_mut().zip(&ids).filter(|(looked, ids)| looked.is_none() && ids.is_some()) {
        *looked = answers.next();
    }
    let mut found = Vec::with_capacity(targets.len());
    for (target, looked) in targets.iter().zip(looked) {
        found.push(match (target, looked, &vault) {
            (Target::Name { bucket, key }, Some(looked), Ok(vault)) => open(shard, vault, (bucket, key), looked),
            _ => find_one(shard, target).await,
        });
    }
    found
}

fn open(shard: &Rc<Shard>, vault: &VaultKey, (bucket, key): (&str, &str), looked: Looked) -> Result<Found, Failure> {
    let name = Name::new(bucket, key).map_err(|error| Failure::new(code::USAGE, error.to_string()))?;
    found_name(shard, vault, &name, looked?)
}

/// What the catalog knows of names that are not in memory.
async fn look_up(shard: &Rc<Shard>, names: Vec<(BucketId, NameId)>) -> Vec<Looked> {
    if let [name] = *names {
        // Together with those of other requests.
        let own = shard.clone();
        let run = move |names: Vec<(BucketId, NameId)>| {
            let shard = own.clone();
            async move { ask_catalog(&shard, names).await }
        };
        return shard.small.names.join(name, run).await.into_iter().collect();
    }
    if names.is_empty() { Vec::new() } else { ask_catalog(shard, names).await }
}

async fn ask_catalog(shard: &Rc<Shard>, names: Vec<(BucketId, NameId)>) -> Vec<Looked> {
    let count = names.len();
    match shard.node.catalog.names_of(names).await {
        Ok(records) => records.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error); count],
    }
}

/// A target, once it is known what it names.
enum Planned {
    Answer(SmallFetched),
    Read(Box<Found>),
}

impl Planned {
    /// `bytes`: of the answer so far.
    fn new(found: Result<Found, Failure>, bytes: &mut usize) -> Self {
        let found = match found {
            Ok(found) => found,
            Err(failure) => return Self::Answer(failed(failure)),
        };
        let target = found.metadata.symlink_target.as_ref().map_or(0, Vec::len);
        let metadata = target + found.metadata.content_type.as_ref().map_or(0, String::len);
        let fits = |length: u64| *bytes + length as usize + metadata <= SMALL_FILES_BYTES_MAX;
        if !found.is_small() || !fits(found.length) {
            return Self::Answer(SmallFetched::Large { length: found.length });
        }
        *bytes += found.length as usize + metadata;
        Self::Read(Box::new(found))
    }
}

async fn read(shard: &Rc<Shard>, source: &ClusterSource, found: Found, remote: bool) -> SmallFetched {
    let error = match read_contents(shard, source, &found).await {
        Ok(contents) => {
            let Found { metadata, root, .. } = found;
            return SmallFetched::Contents { metadata, content: root, contents: Bytes(contents) };
        }
        Err(error) => error,
    };
    let is_missing = matches!(error, GetError::Chunk(ChunkError::NotFound { .. } | ChunkError::Damaged { .. }));
    if is_missing
        && !found.key.is_empty()
        && let Ok(again) = find_name(shard, &found.bucket, &found.key).await
        && again.root != found.root
    {
        return SmallFetched::Large { length: again.length };
    }
    failed(get_failure(error, None, remote))
}

/// All of what is small.
pub async fn read_contents(shard: &Rc<Shard>, source: &ClusterSource, found: &Found) -> Result<Vec<u8>, GetError> {
    let (address, key, length) = (found.root, &found.root_key, found.length as usize);
    if length == 0 {
        return Ok(Vec::new());
    }
    let len = length.max(CHUNK_BYTES_MIN);
    for attempt in 0..FETCH_ATTEMPTS_MAX {
        let mut buffer = shard.small.buffers.try_take().unwrap_or_else(|| Buffer::heap(RECORD_HEAD_BYTES + len));
        let is_checked;
        (buffer, is_checked) = match source.fetch(address, len, buffer, attempt).await? {
            Fetched::Checked(buffer) => (buffer, true),
            Fetched::Unchecked(buffer, _turn) => (buffer, false),
        };
        let payload = buffer.as_slice().get(RECORD_HEAD_BYTES..).and_then(|payload| payload.get(..len));
        let mut payload = payload.unwrap_or_default().to_vec();
        let opened = if is_checked {
            apply_keystream(&mut payload, key);
            Ok(())
        } else {
            open_chunk(&mut payload, &address, key)
        };
        match opened {
            Ok(()) => {
                check_padding(&payload, length)?;
                payload.truncate(length);
                return Ok(payload);
            }
            Err(mismatch) => {
                tracing::warn!(attempt, %mismatch, "a fetched chunk is not what was asked for");
                source.damaged(&address);
            }
        }
    }
    Err(ChunkError::Damaged { address }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::cipher::ChunkKey;
    use crate::format::Address;
    use crate::format::name::Metadata;
    use crate::limits::{
        CONTROL_MESSAGE_BYTES_MAX, KEY_BYTES_MAX, SMALL_CHUNK_BYTES_MAX, SMALL_FILES_MAX, SYMLINK_BYTES_MAX,
    };
    use crate::node::control::{ControlEvent, SmallStored};

    fn found(length: usize, target: usize) -> Found {
        Found {
            bucket: "main".into(),
            key: "key".into(),
            root: Address::ZERO,
            root_key: ChunkKey::from_bytes([0; 32]),
            depth: 0,
            length: length as u64,
            metadata: Metadata { symlink_target: Some(vec![b'a'; target]), ..Metadata::default() },
            stamp_ms: 0,
        }
    }

    #[test]
    fn an_answer_is_never_longer_than_a_message_whatever_is_asked_for() {
        for (length, target) in [(SMALL_CHUNK_BYTES_MAX, 0), (0, SYMLINK_BYTES_MAX), (100, SYMLINK_BYTES_MAX)] {
            let mut bytes = 0;
            let outcomes: Vec<SmallFetched> = (0..SMALL_FILES_MAX)
                .map(|_| match Planned::new(Ok(found(length, target)), &mut bytes) {
                    Planned::Answer(outcome) => outcome,
                    Planned::Read(found) => SmallFetched::Contents {
                        metadata: found.metadata,
                        content: found.root,
                        contents: Bytes(vec![0; found.length as usize]),
                    },
                })
                .collect();
            assert!(outcomes.iter().any(|outcome| matches!(outcome, SmallFetched::Contents { .. })));
            assert!(outcomes.iter().any(|outcome| matches!(outcome, SmallFetched::Large { .. })));
            assert!(ControlEvent::FetchedSmall { outcomes }.encode().len() <= CONTROL_MESSAGE_BYTES_MAX);
        }
        let message = "x".repeat(KEY_BYTES_MAX + 512);
        let outcomes = vec![SmallStored::Failed { code: 1, message }; SMALL_FILES_MAX];
        assert!(ControlEvent::StoredSmall { outcomes }.encode().len() <= CONTROL_MESSAGE_BYTES_MAX);
    }

    #[test]
    fn what_is_too_long_takes_no_room_from_what_is_small() {
        let mut bytes = 0;
        let large = Planned::new(Ok(found(SMALL_CHUNK_BYTES_MAX + 1, 0)), &mut bytes);
        assert!(matches!(large, Planned::Answer(SmallFetched::Large { .. })));
        assert_eq!(bytes, 0);
        assert!(matches!(Planned::new(Ok(found(100, 5)), &mut bytes), Planned::Read(_)));
        assert_eq!(bytes, 105);
    }
}
