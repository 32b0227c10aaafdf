//! Going through the names of a bucket, or of all: the latest record that a quorum holds of each, page by page.
//!
//! All owners are asked for their pages at once. Those that are lost are asked only where the others do not suffice, and
//! who has not answered [`HEDGE_MAX`] after there were enough is left out from there on: a listing takes as long as its
//! quorum, whoever hangs.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::ask::{Question, ask};
use super::connections::is_near;
use super::name_quorum::{name_groups, too_few};
use super::names::NameError;
use super::shard::Shard;
use crate::cluster::ActiveLayout;
use crate::cluster::coverage::{NameGroup, uncovered};
use crate::format::frame::{FrameKind, Status};
use crate::format::name::NameRecord;
use crate::format::{Address, BucketId, NameId, NodeId, message};
use crate::io::spawn;
use crate::limits::{HEDGE_MAX, NAME_RECORDS_PER_PAGE_MAX, STALL_MAX};

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
    let (near, mut left_out): (Vec<NodeId>, Vec<NodeId>) = owners.into_iter().partition(|owner| is_near(shard, owner));
    let mut listing = Listing { shard, layout, groups, bucket, left_out: Vec::new(), failures: Vec::new() };
    let (mut pages, mut done): (Vec<Pages>, _) =
        (near.into_iter().map(|owner| Pages::new(owner, None)).collect(), None);
    loop {
        pages = listing.fill(pages).await;
        left_out.append(&mut listing.left_out);
        let heard = heard(&pages);
        if let Some(group) = uncovered(groups, &heard) {
            if left_out.is_empty() {
                return Err(too_few(groups, group, &heard, listing.failures.join("; ")).into());
            }
            // Now they are needed, from where the listing is.
            pages.extend(left_out.drain(..).map(|owner| Pages::new(owner, done)));
            continue;
        }
        // Up to where every owner's page reaches, the merge is complete.
        let Some(next) = pages.iter().filter_map(Pages::first).min() else { return Ok(()) };
        done = Some(next);
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

fn heard(pages: &[Pages]) -> Vec<(NodeId, u32)> {
    pages.iter().map(|page| (page.owner, page.synced)).collect()
}

/// What all pages of one listing are asked with.
struct Listing<'a> {
    shard: &'a Rc<Shard>,
    layout: &'a Arc<ActiveLayout>,
    groups: &'a [NameGroup],
    bucket: Option<&'a BucketId>,
    /// Owners that were not waited for.
    left_out: Vec<NodeId>,
    failures: Vec<String>,
}

impl Listing<'_> {
    /// Fills the pages that are empty, all at once; gives back those that may be merged.
    async fn fill(&mut self, pages: Vec<Pages>) -> Vec<Pages> {
        let (mut full, empty): (Vec<Pages>, Vec<Pages>) = pages.into_iter().partition(Pages::is_full);
        let mut waiting: Vec<NodeId> = empty.iter().map(|source| source.owner).collect();
        let (tell, mut told) = mpsc::unbounded_channel();
        for mut source in empty {
            let (shard, layout, bucket) = (self.shard.clone(), self.layout.clone(), self.bucket.copied());
            let tell = tell.clone();
            spawn(async move {
                let outcome = source.fill(&shard, &layout, bucket.as_ref()).await;
                let _ = tell.send((source, outcome));
            });
        }
        drop(tell);
        let mut deadline = None;
        while !waiting.is_empty() {
            if deadline.is_none() && uncovered(self.groups, &heard(&full)).is_none() {
                deadline = Some(Instant::now() + HEDGE_MAX);
            }
            let next = match deadline {
                Some(deadline) => timeout_at(deadline, told.recv()).await.unwrap_or(None),
                None => told.recv().await,
            };
            let Some((source, outcome)) = next else { break };
            waiting.retain(|owner| *owner != source.owner);
            match outcome {
                Ok(()) => full.push(source),
                Err(reason) => self.failures.push(format!("{:?}: {reason}", source.owner)),
            }
        }
        self.left_out.append(&mut waiting);
        full
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
    fn new(owner: NodeId, after: Option<(BucketId, NameId)>) -> Self {
        Self { owner, page: Default::default(), after, ended: false, synced: u32::MAX }
    }

    /// Nothing has to be asked for.
    fn is_full(&self) -> bool {
        self.ended || !self.page.is_empty()
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
        let records = if self.owner == shard.node.id() {
            self.synced = self.synced.min(shard.node.names_synced());
            let page = shard.node.catalog.names(bucket, self.after, NAME_RECORDS_PER_PAGE_MAX).await;
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
        let layout = layout.number();
        let question = Question { kind: FrameKind::NameList, address: Address::ZERO, layout, patience: STALL_MAX };
        let body = || message::encode_name_list(bucket, self.after.as_ref());
        let answer = ask(shard, &self.owner, question, || (body(), None)).await.map_err(|error| error.to_string())?;
        if answer.status != Status::Ok {
            return Err(format!("answered {:?}", answer.status));
        }
        self.synced = self.synced.min(answer.header.layout.get());
        let items = message::decode_page(&answer.body, "name record").map_err(|error| error.to_string())?;
        items.into_iter().map(|item| NameRecord::decode(item).map_err(|error| error.to_string())).collect()
    }
}
