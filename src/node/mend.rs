//! Mending: a chunk that is damaged or missing here is fetched again from another holder. One that nobody refers to is
//! dropped, unless references may have been lost ([`super::doubt`]).

use std::rc::Rc;

use super::chunks::fetch_from;
use super::shard::Shard;
use super::shared::lock;
use crate::format::{Address, NodeId, VersionId};
use crate::limits::RECORD_HEAD_BYTES;
use crate::store::{Hold, SmallRecord};
use crate::wire::Payload;

/// What became of a damaged chunk.
pub enum Mended {
    Fetched(NodeId),
    /// Nobody refers to it.
    Dropped,
}

/// Fetches the chunk from the first holder that has it right, and stores it again under its living versions.
pub async fn mend(shard: &Rc<Shard>, address: &Address) -> Result<Mended, String> {
    let node = &shard.node;
    let versions = node.catalog.references(address).await.map_err(|error| error.to_string())?;
    let Some(version) = versions.first() else {
        if let Some(reason) = lock(&node.doubt).reason() {
            return Err(reason);
        }
        // Cached, or of a dead version: whoever wants it again fetches it from its owners.
        let is_wanted = async |address: &Address| super::reclaim::is_wanted(&node.catalog, address).await;
        shard.store.remove(address, is_wanted).await.map_err(|error| error.to_string())?;
        node.cache.forget(address);
        return Ok(Mended::Dropped);
    };
    let holders = node.chunk_holders(address).all();
    let mut reason = "no other node holds a copy".to_owned();
    for holder in holders {
        match fetch_from(shard, &holder, address).await {
            Ok(payload) => {
                store(shard, address, version, payload).await?;
                refer_again(shard, address, &versions).await?;
                return Ok(Mended::Fetched(holder));
            }
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}

/// Stores a chunk again that was damaged here, with sound bytes from elsewhere; `false` when no living version refers to
/// it.
pub async fn hold_again(shard: &Rc<Shard>, address: &Address, payload: Payload) -> Result<bool, String> {
    let versions = shard.node.catalog.references(address).await.map_err(|error| error.to_string())?;
    let Some(version) = versions.first() else { return Ok(false) };
    store(shard, address, version, payload).await?;
    refer_again(shard, address, &versions).await?;
    Ok(true)
}

async fn store(shard: &Rc<Shard>, address: &Address, version: &VersionId, payload: Payload) -> Result<(), String> {
    debug_assert!(payload.buffer.len() >= RECORD_HEAD_BYTES + payload.len);
    match shard.store.hold(address, version).await.map_err(|error| error.to_string())? {
        Hold::Held => Ok(()), // somebody stored it meanwhile
        Hold::Absent(claim) => {
            let staged = shard.store.stage(claim, payload.buffer, payload.len, version, 0).await;
            staged.map_err(|refused| refused.error.to_string())?.commit().await.map_err(|error| error.to_string())
        }
    }
}

/// The damaged record may have been the only one to say that a version refers to the chunk.
async fn refer_again(shard: &Rc<Shard>, address: &Address, versions: &[VersionId]) -> Result<(), String> {
    let reference =
        |version: &VersionId| SmallRecord::Reference { address: *address, version: *version, capsule: Vec::new() };
    let records = versions.iter().map(reference).collect();
    shard.store.append_all(records).await.map_err(|error| error.to_string())
}
