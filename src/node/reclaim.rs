//! Reclaim: chunks that no living version refers to give their space back.
//!
//! The catalog says which chunks have lost their last reference and for how long; the store removes each under its
//! address lock after a recount, so that a reference that came meanwhile, durable before its ack, keeps it.

use std::rc::Rc;
use std::time::Duration;

use super::log;
use super::shard::{Shard, send_job};
use crate::format::Address;
use crate::io::spawn;
use crate::limits::RECLAIM_GRACE;
use crate::node::commands::Failure;
use crate::store::Removal;

/// Chunks asked of the catalog at once.
const GARBAGE_PAGE: usize = 1024;
/// How often the node looks by itself.
const INTERVAL: Duration = Duration::from_secs(60);

#[derive(Default, Debug, Clone, Copy)]
pub struct Reclaimed {
    pub bytes: u64,
    pub chunks: u64,
    pub segments: u64,
}

/// Removes what has been without references for at least `unreferenced_for`, then lets every shard seal and punch.
pub async fn run(shard: &Rc<Shard>, unreferenced_for: Duration) -> Result<Reclaimed, Failure> {
    let before = shard.store.stats();
    let mut reclaimed = Reclaimed::default();
    loop {
        let garbage = shard.node.catalog.garbage(GARBAGE_PAGE, unreferenced_for).await?;
        let mut removed = 0;
        for address in &garbage {
            if remove(shard, address).await? {
                removed += 1;
            }
        }
        reclaimed.chunks += removed;
        if garbage.len() < GARBAGE_PAGE || removed == 0 {
            break;
        }
    }
    seal_everywhere(shard).await;
    let after = shard.store.stats();
    reclaimed.bytes = before.bytes_disk.saturating_sub(after.bytes_disk);
    reclaimed.segments = before.segments.saturating_sub(after.segments);
    Ok(reclaimed)
}

/// Removes one chunk unless a living version refers to it after all.
async fn remove(shard: &Rc<Shard>, address: &Address) -> Result<bool, Failure> {
    let catalog = shard.node.catalog.clone();
    let removal =
        shard.store.remove(address, &|address| catalog.is_referenced_blocking(address).unwrap_or(true)).await?;
    shard.node.cache.forget(address);
    if removal == Removal::Absent {
        log::forget(&shard.node.catalog, *address); // or it would be named as garbage for ever
    }
    Ok(removal == Removal::Removed)
}

/// Every shard seals its open segment where that gives space back.
async fn seal_everywhere(shard: &Rc<Shard>) {
    let (done, mut sealed) = tokio::sync::mpsc::unbounded_channel();
    for index in 0..shard.node.shards.len() {
        let done = done.clone();
        send_job(&shard.node, index, move |shard| async move {
            if let Err(error) = shard.store.seal_open().await {
                tracing::warn!(%error, "an open segment was not sealed");
            }
            let _ = done.send(());
        });
    }
    drop(done);
    while sealed.recv().await.is_some() {}
}

/// Reclaims by itself, after the grace for running reads.
pub fn start(shard: &Rc<Shard>) {
    let shard = shard.clone();
    spawn(async move {
        let stopping = shard.node.stopping();
        loop {
            tokio::select! {
                () = stopping.clone().wait() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            match run(&shard, RECLAIM_GRACE).await {
                Ok(reclaimed) if reclaimed.chunks > 0 => tracing::info!(?reclaimed, "reclaimed"),
                Ok(_) => {}
                Err(failure) => tracing::warn!(reason = %failure.message, "reclaim"),
            }
        }
    });
}
