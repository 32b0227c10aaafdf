//! Going through the names of a bucket, or of all: the latest record that a quorum holds of each, page by page.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::connections::connect;
use super::name_quorum::{name_groups, too_few};
use super::names::NameError;
use super::shard::Shard;
use crate::cluster::ActiveLayout;
use crate::cluster::coverage::{NameGroup, uncovered};
use crate::format::frame::{FrameKind, Status};
use crate::format::name::NameRecord;
use crate::format::{Address, BucketId, NameId, NodeId, message};
use crate::limits::STALL_MAX;

/// Shows `keep` every record (tombstones too) of a bucket, or of all: the latest that a quorum holds of each, merged
/// page by page, so that memory is one page per owner. No snapshot: what changes meanwhile may be seen or not.
pub async fn scan<E: From<NameError>>(
    shard: &Rc<Shard>,
    bucket: Option<&BucketId>,
    keep: &mut impl AsyncFnMut(NameRecord) -> Result<(), E>,
) -> Result<(), E> {
    let layout = shard.node.layout().map_err(|_| NameError::NotJoined)?;
    let groups = name_groups(shard, bucket);
    scan_groups(shard, &layout, &groups, bucket, keep).await
}

/// Every record that may have to be brought in: what the owners under the layouts before the newest hold.
pub async fn scan_before(
    shard: &Rc<Shard>,
    layout: &Arc<ActiveLayout>,
    keep: &mut impl AsyncFnMut(NameRecord) -> Result<(), NameError>,
) -> Result<(), NameError> {
    let mut groups = name_groups(shard, None);
    groups.retain(|group| group.layout < layout.number());
    scan_groups(shard, layout, &groups, None, keep).await
}

async fn scan_groups<E: From<NameError>>(
    shard: &Rc<Shard>,
    layout: &Arc<ActiveLayout>,
    groups: &[NameGroup],
    bucket: Option<&BucketId>,
    keep: &mut impl AsyncFnMut(NameRecord) -> Result<(), E>,
) -> Result<(), E> {
    let mut owners: Vec<NodeId> = groups.iter().flat_map(|group| group.owners.clone()).collect();
    owners.sort();
    owners.dedup();
    let mut pages: Vec<Pages> = owners.into_iter().map(Pages::new).collect();
    let mut failures = Vec::new();
    loop {
        let mut live = Vec::with_capacity(pages.len());
        for mut source in pages {
            match source.fill(shard, layout, bucket).await {
                Ok(()) => live.push(source),
                Err(reason) => failures.push(format!("{:?}: {reason}", source.owner)),
            }
        }
        pages = live;
        let heard: Vec<(NodeId, u32)> = pages.iter().map(|page| (page.owner, page.synced)).collect();
        if let Some(group) = uncovered(groups, &heard) {
            return Err(too_few(groups, group, &heard, failures.join("; ")).into());
        }
        // Up to where every owner's page reaches, the merge is complete.
        let Some(next) = pages.iter().filter_map(Pages::first).min() else { return Ok(()) };
        let mut latest: Option<NameRecord> = None;
        for source in &mut pages {
            if source.first() == Some(next)
                && let Some(record) = source.page.pop_front()
                && latest.as_ref().is_none_or(|latest| latest.order() < record.order())
            {
                latest = Some(record);
            }
        }
        if let Some(record) = latest {
            keep(record).await?;
        }
    }
}

/// One owner's listing, a page at a time.
struct Pages {
    owner: NodeId,
    page: VecDeque<NameRecord>,
    after: Option<(BucketId, NameId)>,
    ended: bool,
    /// The lowest layout that the owner named in an answer as brought in.
    synced: u32,
}

impl Pages {
    fn new(owner: NodeId) -> Self {
        Self { owner, page: Default::default(), after: None, ended: false, synced: u32::MAX }
    }

    fn first(&self) -> Option<(BucketId, NameId)> {
        self.page.front().map(|record| (record.bucket, record.name))
    }

    async fn fill(
        &mut self,
        shard: &Rc<Shard>,
        layout: &Arc<ActiveLayout>,
        bucket: Option<&BucketId>,
    ) -> Result<(), String> {
        if self.ended || !self.page.is_empty() {
            return Ok(());
        }
        let records = if self.owner == shard.node.id() {
            self.synced = self.synced.min(shard.node.names_synced());
            let page = shard.node.catalog.names(bucket, self.after, NAME_PAGE_RECORDS).await;
            page.map_err(|error| error.to_string())?
        } else {
            self.ask(shard, layout, bucket).await?
        };
        self.ended = records.is_empty();
        let is_forward = records.first().is_none_or(|first| Some((first.bucket, first.name)) > self.after);
        if !is_forward || !records.is_sorted_by_key(|record| (record.bucket, record.name)) {
            return Err("its listing is out of order".into());
        }
        self.after = records.last().map(|last| (last.bucket, last.name)).or(self.after);
        self.page = records.into();
        Ok(())
    }

    async fn ask(
        &mut self,
        shard: &Rc<Shard>,
        layout: &Arc<ActiveLayout>,
        bucket: Option<&BucketId>,
    ) -> Result<Vec<NameRecord>, String> {
        let connection = connect(shard, &self.owner).await.map_err(|error| error.to_string())?;
        let body = message::encode_name_list(bucket, self.after.as_ref());
        let answer = connection
            .request(FrameKind::NameList, Address::ZERO, layout.number(), body, None, STALL_MAX)
            .await
            .map_err(|error| error.to_string())?;
        if answer.status != Status::Ok {
            return Err(format!("answered {:?}", answer.status));
        }
        self.synced = self.synced.min(answer.header.layout.get());
        let items = message::decode_page(&answer.body, "name record").map_err(|error| error.to_string())?;
        items.into_iter().map(|item| NameRecord::decode(item).map_err(|error| error.to_string())).collect()
    }
}

/// Records in one page of a listing, before the limit of a body cuts it.
pub const NAME_PAGE_RECORDS: usize = 256;
