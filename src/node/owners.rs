//! What is asked of a chunk's owners beside its bytes: references with capsules.

use std::rc::Rc;

use tokio::sync::mpsc;

use super::ask::{Question, ask};
use super::connections::is_near;
use super::shard::Shard;
use crate::format::frame::{FrameKind, Status};
use crate::format::{Address, NodeId, VersionId, message};
use crate::io::spawn;
use crate::limits::{CHUNK_LAYOUT_RESTARTS_MAX, STALL_MAX, STORE_PATIENCE};
use crate::store::SmallRecord;
use crate::vault::ChunkError;

/// Makes {root, version, capsule} durable on W of the root's owners.
pub async fn refer(shard: &Rc<Shard>, root: &Address, version: &VersionId, capsule: &[u8]) -> Result<(), ChunkError> {
    for _ in 0..CHUNK_LAYOUT_RESTARTS_MAX {
        if refer_once(shard, root, version, capsule).await? {
            return Ok(());
        }
        super::membership::refresh_layout(shard).await;
    }
    Err(ChunkError::Network { reason: "the layout kept changing: try again".into() })
}

/// False: an owner runs under another layout.
async fn refer_once(
    shard: &Rc<Shard>,
    root: &Address,
    version: &VersionId,
    capsule: &[u8],
) -> Result<bool, ChunkError> {
    let layout = shard.node.layout()?;
    let owners = layout.chunk_owners(root);
    let need = owners.write_quorum();
    let (acks, mut arrived) = mpsc::unbounded_channel();
    for owner in owners.as_slice().iter().copied() {
        let (shard, acks, number) = (shard.clone(), acks.clone(), layout.number());
        let (root, version, capsule) = (*root, *version, capsule.to_vec());
        spawn(async move {
            let _ = acks.send(refer_at(&shard, owner, number, root, version, capsule).await);
        });
    }
    drop(acks);
    let mut have = 0;
    while have < need {
        match arrived.recv().await {
            Some(Ok(true)) => have += 1,
            Some(Ok(false)) => return Ok(false),
            Some(Err(reason)) => tracing::debug!(%reason, "an owner did not take a reference"),
            None => return Err(ChunkError::TooFewNodes { have, need }),
        }
    }
    Ok(true)
}

async fn refer_at(
    shard: &Rc<Shard>,
    owner: NodeId,
    layout: u32,
    root: Address,
    version: VersionId,
    capsule: Vec<u8>,
) -> Result<bool, String> {
    if owner == shard.node.id() {
        let record = SmallRecord::Reference { address: root, version, capsule };
        return shard.store.append(record).await.map(|()| true).map_err(|error| error.to_string());
    }
    let question = Question { kind: FrameKind::Refer, address: root, layout, patience: STORE_PATIENCE };
    let answer = ask(shard, &owner, question, || (message::encode_refer(&version, &capsule), None))
        .await
        .map_err(|error| error.to_string())?;
    match answer.status {
        Status::Ok => Ok(true),
        Status::WrongLayout => Ok(false),
        status => Err(format!("{owner:?} answered {status:?}")),
    }
}

/// A living version of a root with its sealed capsule.
type Sealed = (VersionId, Vec<u8>);

/// What `open` makes of the first capsule of a root's living versions that opens: of those that are here, else owner after
/// owner (of any known layout). What one owner shows says nothing about what the others have: it may be junk.
pub async fn find_capsule<T>(
    shard: &Rc<Shard>,
    root: &Address,
    open: impl Fn(&Sealed) -> Option<T>,
) -> Result<Option<T>, ChunkError> {
    let local =
        shard.node.catalog.capsules(root).await.map_err(|error| ChunkError::Other { reason: error.to_string() })?;
    if let Some(found) = local.iter().find_map(&open) {
        return Ok(Some(found));
    }
    let mut owners: Vec<NodeId> = shard.node.chunk_holders(root).all().collect();
    owners.sort_by_key(|owner| !is_near(shard, owner));
    first_that_opens(&owners, async |owner| capsules_at(shard, &owner, root).await, open).await
}

async fn first_that_opens<T>(
    owners: &[NodeId],
    ask: impl AsyncFn(NodeId) -> Result<Vec<Sealed>, String>,
    open: impl Fn(&Sealed) -> Option<T>,
) -> Result<Option<T>, ChunkError> {
    let mut failed = None;
    for owner in owners {
        match ask(*owner).await {
            Ok(capsules) => {
                if let Some(found) = capsules.iter().find_map(&open) {
                    return Ok(Some(found));
                }
            }
            Err(reason) => failed = Some(reason),
        }
    }
    match failed {
        Some(reason) => Err(ChunkError::Network { reason }),
        None => Ok(None),
    }
}

async fn capsules_at(shard: &Rc<Shard>, owner: &NodeId, root: &Address) -> Result<Vec<Sealed>, String> {
    let layout = shard.node.layout_number();
    let question = Question { kind: FrameKind::Capsules, address: *root, layout, patience: STALL_MAX };
    let answer = ask(shard, owner, question, || (Vec::new(), None)).await.map_err(|error| error.to_string())?;
    if answer.status != Status::Ok {
        return Ok(Vec::new());
    }
    message::decode_capsules(&answer.body).map_err(|error| format!("{owner:?} answered what is no capsule: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIAR: NodeId = NodeId([1; 32]);
    const NONE: NodeId = NodeId([2; 32]);
    const BROKEN: NodeId = NodeId([3; 32]);
    const HONEST: NodeId = NodeId([4; 32]);

    async fn search(owners: &[NodeId]) -> Result<Option<u8>, ChunkError> {
        let version = VersionId::new(1, 2, [3; 8]);
        let ask = async |owner: NodeId| match owner {
            LIAR => Ok(vec![(version, b"junk".to_vec())]),
            HONEST => Ok(vec![(version, b"other".to_vec()), (version, b"right".to_vec())]),
            BROKEN => Err("answered what is no capsule".to_owned()),
            _ => Ok(Vec::new()),
        };
        first_that_opens(owners, ask, |(_, capsule)| (capsule == b"right").then_some(7)).await
    }

    #[tokio::test]
    async fn junk_of_one_owner_hides_nothing_that_another_has() {
        assert_eq!(search(&[LIAR, BROKEN, NONE, HONEST]).await.unwrap(), Some(7));
        assert_eq!(search(&[LIAR, NONE]).await.unwrap(), None);
        let undecided = search(&[NONE, BROKEN, LIAR]).await;
        assert!(matches!(undecided, Err(ChunkError::Network { .. })), "{undecided:?}");
    }
}
