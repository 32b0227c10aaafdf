//! What is asked of a chunk's owners beside its bytes: references with capsules.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::ask::{Question, ask};
use super::chunks::LAYOUT_RESTARTS_MAX;
use super::connections::is_near;
use super::shard::Shard;
use crate::format::frame::{FrameKind, Status};
use crate::format::{Address, NodeId, VersionId, message};
use crate::io::spawn;
use crate::limits::STALL_MAX;
use crate::store::SmallRecord;
use crate::vault::ChunkError;

const REFER_PATIENCE: Duration = Duration::from_secs(10);

/// Makes {root, version, capsule} durable on W of the root's owners.
pub async fn refer(shard: &Rc<Shard>, root: &Address, version: &VersionId, capsule: &[u8]) -> Result<(), ChunkError> {
    for _ in 0..LAYOUT_RESTARTS_MAX {
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
    let question = Question { kind: FrameKind::Refer, address: root, layout, patience: REFER_PATIENCE };
    let answer = ask(shard, &owner, question, || (message::encode_refer(&version, &capsule), None))
        .await
        .map_err(|error| error.to_string())?;
    match answer.status {
        Status::Ok => Ok(true),
        Status::WrongLayout => Ok(false),
        status => Err(format!("{owner:?} answered {status:?}")),
    }
}

/// The sealed capsules of a root's living versions: from here, else from the first owner (of any known layout) that has
/// some.
pub async fn capsules(shard: &Rc<Shard>, root: &Address) -> Result<Vec<(VersionId, Vec<u8>)>, ChunkError> {
    let local =
        shard.node.catalog.capsules(root).await.map_err(|error| ChunkError::Other { reason: error.to_string() })?;
    if !local.is_empty() {
        return Ok(local);
    }
    let mut unreachable = None;
    let mut owners: Vec<NodeId> = shard.node.chunk_holders(root).all().collect();
    owners.sort_by_key(|owner| !is_near(shard, owner));
    for owner in owners {
        let layout = shard.node.layout_number();
        let question = Question { kind: FrameKind::Capsules, address: *root, layout, patience: STALL_MAX };
        match ask(shard, &owner, question, || (Vec::new(), None)).await {
            Ok(answer) if answer.status == Status::Ok => {
                return message::decode_capsules(&answer.body)
                    .map_err(|error| ChunkError::Other { reason: error.to_string() });
            }
            Ok(_) => {}
            Err(error) => unreachable = Some(error.to_string()),
        }
    }
    match unreachable {
        Some(reason) => Err(ChunkError::Network { reason }),
        None => Ok(Vec::new()),
    }
}
