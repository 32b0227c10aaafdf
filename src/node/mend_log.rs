//! Mending the log: records of names, references, deaths and documents that are damaged in their segment are written again
//! from the catalog, which was told of them before.
//!
//! Of a damaged reference its segment's table still says what it was. What a damaged name, death or document was nobody
//! knows: all of that kind that the catalog holds are written again, which is harmless, since each is idempotent. Then the
//! damaged segment is copied without its damaged records and goes.
//!
//! What the catalog was never told (it was deleted, or had not come so far when the node was killed) cannot be mended
//! here, and its segment stays.

use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::reclaim::Needed;
use super::shard::Shard;
use crate::format::{Address, VersionId};
use crate::node::commands::Failure;
use crate::store::{DamagedKind, DamagedRecord, SmallRecord};

/// Rows asked of the catalog, and written in one go.
const PAGE: usize = 256;

/// Mends damaged records; how many are.
pub async fn mend_records(shard: &Rc<Shard>, damaged: &[DamagedRecord]) -> Result<u64, Failure> {
    if damaged.is_empty() {
        return Ok(0);
    }
    let untold: HashSet<(u64, u64)> = shard.node.opened.untold.iter().copied().collect();
    let mut lost: BTreeSet<u64> = BTreeSet::new();
    for record in damaged {
        let is_known = !untold.contains(&(record.segment, record.offset))
            && (record.kind != DamagedKind::Reference || refer_again(shard, &record.address, &record.version).await?);
        if !is_known {
            lost.insert(record.segment);
        }
    }
    let has = |kind| damaged.iter().any(|record| record.kind == kind);
    if has(DamagedKind::Name) {
        write_names(shard).await?;
    }
    if has(DamagedKind::Death) {
        write_deaths(shard).await?;
    }
    if has(DamagedKind::Document) {
        write_documents(shard).await?;
    }
    let retired = damaged.iter().map(|record| record.segment).filter(|segment| !lost.contains(segment)).collect();
    let keep = Needed { catalog: shard.node.catalog.clone(), surveys_max: 0 };
    shard.store.retire_damaged(&retired, &keep).await?;
    super::reclaim::forget_unlinked(&shard.node.catalog, &shard.node.store).await?;
    Ok(damaged.iter().filter(|record| !shard.node.store.has_segment(record.segment)).count() as u64)
}

/// Writes again whatever may have stood in blocks that opening the store found lost, once; how many of them are mended by it.
pub async fn mend_lost(shard: &Rc<Shard>) -> Result<u64, Failure> {
    let node = &shard.node;
    let known = node.opened.lost_blocks - node.opened.lost_untold;
    if known == 0 || node.lost_mended.load(Ordering::Acquire) {
        return Ok(0);
    }
    write_names(shard).await?;
    write_deaths(shard).await?;
    write_documents(shard).await?;
    write_references(shard).await?;
    node.lost_mended.store(true, Ordering::Release);
    Ok(known)
}

/// Whether nothing is missing for this reference any more.
async fn refer_again(shard: &Rc<Shard>, address: &Address, version: &VersionId) -> Result<bool, Failure> {
    let catalog = &shard.node.catalog;
    if catalog.is_dead(version).await? {
        return Ok(true);
    }
    if !catalog.references(address).await?.contains(version) {
        return Ok(false);
    }
    write_reference(shard, address, version).await?;
    Ok(true)
}

async fn write_reference(shard: &Rc<Shard>, address: &Address, version: &VersionId) -> Result<(), Failure> {
    let capsules = shard.node.catalog.capsules(address).await?;
    let capsule = capsules.into_iter().find(|(of, _)| of == version).map(|(_, capsule)| capsule).unwrap_or_default();
    Ok(shard.store.append(SmallRecord::Reference { address: *address, version: *version, capsule }).await?)
}

async fn write_names(shard: &Rc<Shard>) -> Result<(), Failure> {
    let mut after = None;
    loop {
        let page = shard.node.catalog.names(None, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some((last.bucket, last.name));
        shard.store.append_all(page.iter().map(|record| SmallRecord::Name(record.encode())).collect()).await?;
    }
}

async fn write_deaths(shard: &Rc<Shard>) -> Result<(), Failure> {
    let mut after = None;
    loop {
        let page = shard.node.catalog.deaths(after, PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = Some(*last);
        shard.store.append_all(page.into_iter().map(|(_, death)| SmallRecord::Death(death)).collect()).await?;
    }
}

async fn write_documents(shard: &Rc<Shard>) -> Result<(), Failure> {
    let mut after = None;
    loop {
        let page = shard.node.catalog.all_documents(after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.key.clone());
        shard.store.append_all(page.iter().map(|document| SmallRecord::Document(document.encode())).collect()).await?;
    }
}

async fn write_references(shard: &Rc<Shard>) -> Result<(), Failure> {
    let catalog = &shard.node.catalog;
    let mut after_version = None;
    loop {
        let versions = catalog.versions(after_version, PAGE).await?;
        let Some(last) = versions.last() else { return Ok(()) };
        after_version = Some(*last);
        for version in &versions {
            let mut after = None;
            loop {
                let chunks = catalog.chunks_of(version, after, PAGE).await?;
                let Some(last) = chunks.last() else { break };
                after = Some(*last);
                write_page(shard, version, &chunks).await?;
            }
        }
    }
}

async fn write_page(shard: &Rc<Shard>, version: &VersionId, chunks: &[Address]) -> Result<(), Failure> {
    let mut records = Vec::with_capacity(chunks.len());
    for address in chunks {
        let capsules = shard.node.catalog.capsules(address).await?;
        let capsule = capsules.into_iter().find(|(of, _)| of == version).map(|(_, capsule)| capsule);
        records.push(SmallRecord::Reference {
            address: *address,
            version: *version,
            capsule: capsule.unwrap_or_default(),
        });
    }
    Ok(shard.store.append_all(records).await?)
}
