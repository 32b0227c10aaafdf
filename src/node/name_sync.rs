//! Bringing names in: after a change of layout, a member fetches the names that are its own now from those who owned them
//! before, and says in each later answer up to which layout it has done so.
//!
//! - An owner of before is asked under the newest layout, and answers only once it runs under it: from then on it takes
//!   no write under an older one. So what is read from a quorum of them is everything that was ever acknowledged there.
//! - The position stands for every layout up to it, also for those that came and went while names were being brought in:
//!   what was this node's own under any of them is taken in. It cannot be said while one of them is unknown.
//! - The position is durable before it is said. Until enough owners have got there, reads, writes and listings
//!   ask the owners of before as well, and fail while too few of them can be heard ([`super::name_quorum`]).
//! - Nothing is dropped anywhere: a copy with somebody who owns the name no more does no harm.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::log;
use super::name_scan;
use super::names::{self, NameError};
use super::shard::Shard;
use super::shared::Shared;
use crate::cluster::ActiveLayout;
use crate::format::name::NameRecord;
use crate::io::spawn;
use crate::limits::{NAME_RECORDS_PER_PAGE_MAX, NAME_SYNC_LOOK_INTERVAL, NAME_SYNC_RETRY_INTERVAL};

/// The newest layout that is synced, as four bytes.
pub const SYNCED_DOCUMENT: &[u8] = b"names/synced";

/// Brings names in whenever the layout has changed, until the node stops. Storage nodes own no names.
pub fn start(shard: &Rc<Shard>) {
    if !shard.node.is_member() {
        return;
    }
    let shard = shard.clone();
    spawn(async move {
        let stopping = shard.node.stopping();
        loop {
            let pause = match sync(&shard).await {
                Ok(()) => NAME_SYNC_LOOK_INTERVAL,
                Err(reason) => {
                    tracing::info!(%reason, "names not brought in yet");
                    NAME_SYNC_RETRY_INTERVAL
                }
            };
            tokio::select! {
                () = stopping.clone().wait() => return,
                () = shard.node.layout_changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    });
}

async fn sync(shard: &Rc<Shard>) -> Result<(), String> {
    let node = &shard.node;
    let Ok(layout) = node.layout() else { return Ok(()) };
    if node.names_synced() >= layout.number() {
        return Ok(());
    }
    let missed = node.missed_layouts().into_iter().find(|number| *number > node.names_synced());
    if let Some(number) = missed {
        return Err(format!("layout {number} was not learnt yet"));
    }
    let since = layouts_since(node, &layout);
    let me = node.id();
    let mut batch: Vec<NameRecord> = Vec::new();
    let mut keep = async |record: NameRecord| -> Result<(), NameError> {
        if since.iter().any(|layout| layout.name_owners(&record.bucket).as_slice().contains(&me)) {
            batch.push(record);
        }
        if batch.len() >= NAME_RECORDS_PER_PAGE_MAX {
            names::take_in(shard, std::mem::take(&mut batch)).await?;
        }
        Ok(())
    };
    name_scan::scan_before(shard, &layout, &mut keep).await.map_err(|error| error.to_string())?;
    names::take_in(shard, batch).await.map_err(|error| error.to_string())?;
    let document = log::document(node.document_serial(), SYNCED_DOCUMENT, &layout.number().to_le_bytes());
    shard.store.append(document).await.map_err(|error| error.to_string())?;
    node.names_synced.store(layout.number(), Ordering::Release);
    tracing::info!(layout = layout.number(), "names brought in");
    super::membership::propose_soon(node); // it may have waited for this
    Ok(())
}

/// `newest` and the layouts before it that this node has not brought names in for.
fn layouts_since(node: &Shared, newest: &Arc<ActiveLayout>) -> Vec<Arc<ActiveLayout>> {
    let numbers = node.names_synced() + 1..=newest.number();
    let layouts = node.layouts();
    let known = layouts.active().iter().chain(layouts.earlier());
    known.filter(|layout| numbers.contains(&layout.number())).cloned().collect()
}
