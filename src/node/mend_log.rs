//! Mending the log: records of names, references, deaths and documents that are damaged in their segment are written again
//! from the catalog, which was told of them before.
//!
//! Of a damaged reference its segment's table still says what it was. What a damaged name, death or document was nobody
//! knows: all of that kind that the catalog holds are written again, which is harmless, since each is idempotent. Then the
//! damaged segment is copied without its damaged records and goes.
//!
//! Of lost blocks, and of a segment whose header is damaged, no table says what they held: all that the catalog holds is
//! written again. Until then those names and references stand in the catalog alone, which is not synced and may have to
//! be rebuilt from the log; only afterwards may anybody be told that such a segment can go.
//!
//! What the catalog was never told (it was deleted, or had not come so far when the node was killed) cannot be mended
//! here, and its segment stays.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::doubt::{self, Doubt};
use super::reclaim::Needed;
use super::shard::Shard;
use super::shared::lock;
use crate::catalog::Catalog;
use crate::format::{Address, VersionId};
use crate::limits::MENDED_ROWS_PER_PAGE_MAX;
use crate::node::commands::Failure;
use crate::store::{DamagedKind, DamagedRecord, Disk, OpenReport, SmallRecord, Store};

/// Mends damaged records; how many are.
pub async fn mend_records(shard: &Rc<Shard>, damaged: &[DamagedRecord]) -> Result<u64, Failure> {
    if damaged.is_empty() {
        return Ok(0);
    }
    let rewriting = Rewriting { catalog: &shard.node.catalog, store: &shard.store };
    let untold: HashSet<(u64, u64)> = shard.node.opened.untold.iter().copied().collect();
    let mut lost: BTreeSet<u64> = BTreeSet::new();
    for record in damaged {
        let is_known = !untold.contains(&(record.segment, record.offset))
            && (record.kind != DamagedKind::Reference
                || rewriting.refer_again(&record.address, &record.version).await?);
        if !is_known {
            lost.insert(record.segment);
        }
    }
    let has = |kind| damaged.iter().any(|record| record.kind == kind);
    if has(DamagedKind::Name) {
        rewriting.names().await?;
    }
    if has(DamagedKind::Death) {
        rewriting.deaths().await?;
    }
    if has(DamagedKind::Document) {
        rewriting.documents().await?;
    }
    let mut mended: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for record in damaged.iter().filter(|record| !lost.contains(&record.segment)) {
        mended.entry(record.segment).or_default().insert(record.offset);
    }
    let keep = Needed { catalog: shard.node.catalog.clone(), surveys_max: 0 };
    shard.store.retire_damaged(&mended, &keep).await?;
    super::reclaim::forget_unlinked(&shard.node.catalog, &shard.node.store).await?;
    Ok(damaged.iter().filter(|record| !shard.node.store.has_segment(record.segment)).count() as u64)
}

/// Writes again whatever may have stood in what opening the store found lost, once; how many lost blocks are mended by it.
pub async fn mend_lost(shard: &Rc<Shard>) -> Result<u64, Failure> {
    let node = &shard.node;
    if node.lost_mended.load(Ordering::Acquire) {
        return Ok(0);
    }
    let serial = || node.document_serial();
    let mended = settle(&node.doubt, &node.opened, &node.catalog, &shard.store, serial).await?;
    node.lost_mended.store(true, Ordering::Release);
    Ok(mended)
}

/// First the doubt is made durable: whoever removes a damaged file must not end it. What is damaged still, and was written
/// again at an earlier start, is not written once more.
async fn settle<D: Disk>(
    doubt: &Mutex<Doubt>,
    opened: &OpenReport,
    catalog: &Catalog,
    store: &Store<D>,
    serial: impl Fn() -> u64,
) -> Result<u64, Failure> {
    doubt::keep(doubt, catalog, store, serial()).await?;
    let lost_bulk = opened.lost_blocks - opened.lost_small;
    let untold_bulk = opened.lost_untold - opened.lost_small_untold;
    if lost_bulk == untold_bulk && !lock(doubt).wants_writing() {
        return Ok(0);
    }
    // Also where all that is lost is untold: what the segment loses after this was told, and is not written out again.
    Rewriting { catalog, store }.all().await?;
    lock(doubt).written();
    doubt::keep(doubt, catalog, store, serial()).await?;
    Ok(opened.lost_blocks - opened.lost_untold)
}

/// What the catalog knows, written to the log once more.
struct Rewriting<'a, D: Disk> {
    catalog: &'a Catalog,
    store: &'a Store<D>,
}

impl<D: Disk> Rewriting<'_, D> {
    async fn all(&self) -> Result<(), Failure> {
        self.names().await?;
        self.deaths().await?;
        self.documents().await?;
        self.references().await
    }

    /// Whether nothing is missing for this reference any more.
    async fn refer_again(&self, address: &Address, version: &VersionId) -> Result<bool, Failure> {
        if self.catalog.is_dead(version).await? {
            return Ok(true);
        }
        if !self.catalog.references(address).await?.contains(version) {
            return Ok(false);
        }
        self.store.append(self.reference(address, version).await?).await?;
        Ok(true)
    }

    async fn reference(&self, address: &Address, version: &VersionId) -> Result<SmallRecord, Failure> {
        let capsules = self.catalog.capsules(address).await?;
        let capsule = capsules.into_iter().find(|(of, _)| of == version).map(|(_, capsule)| capsule);
        let capsule = capsule.unwrap_or_default();
        Ok(SmallRecord::Reference { address: *address, version: *version, capsule })
    }

    async fn names(&self) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let page = self.catalog.names(None, after, MENDED_ROWS_PER_PAGE_MAX).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some((last.bucket, last.name));
            self.store.append_all(page.iter().map(|record| SmallRecord::Name(record.encode())).collect()).await?;
        }
    }

    async fn deaths(&self) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let page = self.catalog.deaths(after, MENDED_ROWS_PER_PAGE_MAX).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(*last);
            self.store.append_all(page.into_iter().map(|(_, death)| SmallRecord::Death(death)).collect()).await?;
        }
    }

    async fn documents(&self) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let page = self.catalog.all_documents(after, MENDED_ROWS_PER_PAGE_MAX).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key.clone());
            let records = page.iter().map(|document| SmallRecord::Document(document.encode()));
            self.store.append_all(records.collect()).await?;
        }
    }

    async fn references(&self) -> Result<(), Failure> {
        let mut after_version = None;
        loop {
            let versions = self.catalog.versions(after_version, MENDED_ROWS_PER_PAGE_MAX).await?;
            let Some(last) = versions.last() else { return Ok(()) };
            after_version = Some(*last);
            for version in &versions {
                self.references_of(version).await?;
            }
        }
    }

    async fn references_of(&self, version: &VersionId) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let chunks = self.catalog.chunks_of(version, after, MENDED_ROWS_PER_PAGE_MAX).await?;
            let Some(last) = chunks.last() else { return Ok(()) };
            after = Some(*last);
            let mut records = Vec::with_capacity(chunks.len());
            for address in &chunks {
                records.push(self.reference(address, version).await?);
            }
            self.store.append_all(records).await?;
        }
    }
}

#[cfg(test)]
mod tests;
