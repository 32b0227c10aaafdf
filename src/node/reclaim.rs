//! Reclaim: chunks that no living version refers to give their space back, and the log loses what nobody needs.
//!
//! The catalog says which chunks have lost their last reference and for how long; the store removes each under its
//! address lock after a recount, so that a reference that came meanwhile, durable before its ack, keeps it. Many are
//! removed at a time: the catalog answers what waits in one go, and the removals share their syncs.
//!
//! While references may have been lost, no chunk is removed for having none ([`super::doubt`]).
//!
//! Segments of small records are compacted by what the catalog knows ([`crate::catalog::Stored`]). A segment that was
//! unlinked has no position in the catalog any more; one that went without that being noted is forgotten at the start.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::log;
use super::shard::{Shard, send_job};
use super::shared::lock;
use crate::catalog::{Catalog, CatalogError, Document, Stored};
use crate::cluster::DeathId;
use crate::format::Address;
use crate::format::certificate::Death;
use crate::format::name::NameRecord;
use crate::io::spawn;
use crate::limits::{CHUNK_REMOVALS_AT_ONCE, GARBAGE_PER_PAGE_MAX, RECLAIM_GRACE, RECLAIM_INTERVAL};
use crate::node::commands::Failure;
use crate::store::{Keep, OpenReport, Removal, Shared as StoreShared, SmallRecord, Survey};

#[derive(Default, Debug, Clone, Copy)]
pub struct Reclaimed {
    pub bytes: u64,
    pub chunks: u64,
    pub segments: u64,
}

/// Removes what has been without references for at least `unreferenced_for`, then lets every shard seal and punch.
/// `surveys_max`: segments of small records that may be looked through.
pub async fn run(shard: &Rc<Shard>, unreferenced_for: Duration, surveys_max: usize) -> Result<Reclaimed, Failure> {
    let before = shard.store.stats();
    let mut reclaimed = Reclaimed::default();
    while lock(&shard.node.doubt).references_are_whole() {
        let garbage = shard.node.catalog.garbage(GARBAGE_PER_PAGE_MAX, unreferenced_for).await?;
        let page_len = garbage.len();
        let Settled { removed, forgotten } = remove_all(shard, garbage).await?;
        reclaimed.chunks += removed;
        // A page of which nothing went would come again.
        if page_len < GARBAGE_PER_PAGE_MAX || removed + forgotten == 0 {
            break;
        }
    }
    seal_everywhere(shard, surveys_max).await;
    forget_unlinked(&shard.node.catalog, &shard.node.store).await?;
    let after = shard.store.stats();
    reclaimed.bytes = before.bytes_disk.saturating_sub(after.bytes_disk);
    reclaimed.segments = before.segments.saturating_sub(after.segments);
    Ok(reclaimed)
}

/// What became of chunks that were named as garbage.
#[derive(Default)]
struct Settled {
    removed: u64,
    /// They had gone before: only the mark was left.
    forgotten: u64,
}

/// Removes chunks unless a living version refers to them after all.
async fn remove_all(shard: &Rc<Shard>, addresses: Vec<Address>) -> Result<Settled, Failure> {
    let places = Rc::new(Semaphore::new(CHUNK_REMOVALS_AT_ONCE));
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    for address in addresses {
        let (shard, places, tell) = (shard.clone(), places.clone(), tell.clone());
        spawn(async move {
            let _place = places.acquire().await;
            let _ = tell.send(remove(&shard, &address).await);
        });
    }
    drop(tell);
    let (mut settled, mut failure) = (Settled::default(), None);
    while let Some(outcome) = told.recv().await {
        match outcome {
            Ok(Removal::Removed) => settled.removed += 1,
            Ok(Removal::Absent) => settled.forgotten += 1,
            Ok(Removal::Kept) => {}
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(settled), Err)
}

async fn remove(shard: &Rc<Shard>, address: &Address) -> Result<Removal, Failure> {
    let removal = shard.store.remove(address, async |address| is_wanted(&shard.node.catalog, address).await).await?;
    shard.node.cache.forget(address);
    if removal == Removal::Absent {
        log::forget(&shard.node.catalog, *address).await; // or it would be named as garbage for ever
    }
    Ok(removal)
}

/// Whether a living version refers to a chunk; if that cannot be told, it is wanted.
pub async fn is_wanted(catalog: &Catalog, address: &Address) -> bool {
    catalog.is_referenced(address).await.unwrap_or(true)
}

/// Every shard seals its open segment where that gives space back.
async fn seal_everywhere(shard: &Rc<Shard>, surveys_max: usize) {
    let (done, mut sealed) = tokio::sync::mpsc::unbounded_channel();
    for index in 0..shard.node.shards.len() {
        let done = done.clone();
        send_job(&shard.node, index, move |shard| async move {
            let keep = Needed { catalog: shard.node.catalog.clone(), surveys_max };
            if let Err(error) = shard.store.seal_open(&keep).await {
                tracing::warn!(%error, "an open segment was not sealed");
            }
            let _ = done.send(());
        });
    }
    drop(done);
    while sealed.recv().await.is_some() {}
}

/// What the catalog says of records in segments that may be compacted.
pub struct Needed {
    pub catalog: Catalog,
    pub surveys_max: usize,
}

impl Keep for Needed {
    async fn needed(&self, records: Vec<SmallRecord>) -> Vec<bool> {
        let count = records.len();
        match self.catalog.needed(records.iter().map(stored).collect()).await {
            Ok(needed) => needed,
            Err(error) => {
                tracing::warn!(%error, "nothing is known to be superfluous in the log");
                vec![true; count]
            }
        }
    }

    async fn survey(&self) -> Survey {
        let deaths = self.catalog.counts().await.map_or(0, |counts| counts.deaths);
        Survey { deaths, segments_max: self.surveys_max }
    }
}

fn stored(record: &SmallRecord) -> Stored {
    let understood = match record {
        SmallRecord::Reference { version, .. } => Ok(Stored::Reference(*version)),
        SmallRecord::Name(bytes) => {
            NameRecord::decode(bytes).map(|record| Stored::Name(record.bucket, record.name, record.order()))
        }
        SmallRecord::Death(bytes) => {
            Death::decode(bytes).map(|death| Stored::Death(DeathId::of(bytes), death.versions))
        }
        SmallRecord::Document(bytes) => {
            Document::decode(bytes).map(|document| Stored::Document(document.key, document.serial))
        }
    };
    understood.unwrap_or(Stored::Unknown)
}

/// The catalog's positions in segments that are no more.
pub async fn forget_unlinked(catalog: &Catalog, store: &Arc<StoreShared>) -> Result<(), CatalogError> {
    for segment in store.take_unlinked() {
        catalog.forget_segment(segment).await?;
    }
    Ok(())
}

/// The same for those of earlier runs, at the start. Files that cannot be read now may be read again: up to where they were
/// told is what says whether anything in them was not.
pub async fn forget_gone(
    catalog: &Catalog,
    store: &Arc<StoreShared>,
    positions: &HashMap<u64, u64>,
    opened: &OpenReport,
) -> Result<(), CatalogError> {
    forget_unlinked(catalog, store).await?;
    let damaged: HashSet<u64> = opened.damaged_segments.iter().map(|damaged| damaged.segment).collect();
    let is_gone = |segment: &&u64| !store.has_segment(**segment) && !damaged.contains(segment);
    for segment in positions.keys().filter(is_gone) {
        catalog.forget_segment(*segment).await?;
    }
    Ok(())
}

/// Reclaims by itself, after the grace for running reads.
pub fn start(shard: &Rc<Shard>) {
    let shard = shard.clone();
    spawn(async move {
        let stopping = shard.node.stopping();
        loop {
            tokio::select! {
                () = stopping.clone().wait() => return,
                () = tokio::time::sleep(RECLAIM_INTERVAL) => {}
            }
            match run(&shard, RECLAIM_GRACE, 1).await {
                Ok(reclaimed) if reclaimed.chunks > 0 => tracing::info!(?reclaimed, "reclaimed"),
                Ok(_) => {}
                Err(failure) => tracing::warn!(reason = %failure.message, "reclaim"),
            }
        }
    });
}

#[cfg(test)]
pub(super) mod tests;
