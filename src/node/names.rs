//! Names over the cluster: read and written by majority of a bucket's owners among the members.
//!
//! - A write first reads a quorum, picks a later clock than it saw, and is done once W owners hold it durably.
//! - A read takes the latest of R + 1 - W answers, and waits until a majority holds it before it answers
//!   (write-back), so that reads never go backwards.
//! - Every request carries the layout's number. An owner that runs under another refuses, the operation starts over
//!   under the newest, and earlier answers count for nothing.
//! - Reads under a new layout also ask the owners of the one before and add what they answer: a name is never lost by
//!   a change of owners.
//!
//! The decisions are [`NameRead`]'s and [`NameWrite`]'s; this file carries their questions to the owners.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::connections::connect;
use super::shard::Shard;
use super::shared::lock;
use super::{log, wall_ms};
use crate::catalog::hlc::check_ahead;
use crate::catalog::{CatalogError, ClockAhead, check_age};
use crate::cluster::names::{NameReadStep, NameWriteStep};
use crate::cluster::{ActiveLayout, NameRead, NameWrite, Quorum};
use crate::format::certificate::Class;
use crate::format::frame::{FrameKind, Status};
use crate::format::name::NameRecord;
use crate::format::{Address, BucketId, NameId, NodeId, Stamp, VersionId, message};
use crate::io::spawn;
use crate::limits::STALL_MAX;
use crate::store::SmallRecord;

/// A durable write may wait behind a disk.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a node that has just started may take to meet the others.
const MEETING_TIME: Duration = Duration::from_secs(10);
/// How often an operation starts over because the layout changed under it.
const RESTARTS_MAX: u32 = 8;

#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error(
        "only {have} of the name's owners answered, and {need} are needed: start the missing members or wait for them ({reason})"
    )]
    TooFewOwners { have: usize, need: usize, reason: String },
    #[error(
        "no owner of today knows the name, and of those before only {have} answered where {need} are needed: start the members that were there first"
    )]
    EarlierOwnersSilent { have: usize, need: usize },
    #[error("this node does not hold the network's layout yet: wait until it has joined")]
    NotJoined,
    #[error("the layout kept changing, or the put took longer than a day: try again")]
    LayoutChanged,
    #[error("somebody gave this name to another file meanwhile: put without --no-clobber, or under another name")]
    Taken,
    #[error(transparent)]
    ClockAhead(#[from] ClockAhead),
    #[error("this node cannot make the name durable: {0}")]
    Here(String),
}

/// What one owner answered to a read or a write.
enum Answer {
    /// With the newest layout whose names the owner has brought in.
    Record(Option<NameRecord>, u32),
    Written,
    /// It runs under another layout, or knows the version as dead.
    Refused,
    Failed,
}

/// Keeps a record here, durably, or says why not. Called for a peer's write and for our own.
pub async fn accept(shard: &Rc<Shard>, record: &NameRecord) -> Result<(), Status> {
    let now_ms = wall_ms();
    check_ahead(record.clock, now_ms).map_err(|_| Status::ClockAhead)?;
    let catalog = &shard.node.catalog;
    let unavailable = |error: CatalogError| {
        tracing::warn!(%error, "a name record was not accepted");
        Status::Unavailable
    };
    if catalog.is_dead(&record.version).await.map_err(unavailable)? {
        return Err(Status::Dead);
    }
    let held = catalog.name(&record.bucket, &record.name).await.map_err(unavailable)?;
    if held.as_ref().is_some_and(|held| held.order() >= record.order()) {
        return Ok(()); // something as late or later is durable here already
    }
    let is_first = held.as_ref().is_none_or(|held| held.version != record.version);
    // Who is slower than a version's time to be named mints a new one and refers again.
    if is_first && !record.tombstone && check_age(&record.version, now_ms / 1000).is_err() {
        return Err(Status::Dead);
    }
    shard.store.append(SmallRecord::Name(record.encode())).await.map_err(|error| {
        tracing::warn!(%error, "a name record could not be made durable");
        Status::NoSpace
    })?;
    shard.node.observe(record.clock);
    Ok(())
}

/// Makes durable those of `records` that are news here. They were acknowledged under earlier layouts: how old their
/// versions are is no question any more.
pub async fn take_in(shard: &Rc<Shard>, records: Vec<NameRecord>) -> Result<(), NameError> {
    let failed = |error: &dyn std::fmt::Display| NameError::Here(error.to_string());
    let catalog = &shard.node.catalog;
    let mut news = Vec::new();
    for record in records {
        let held = catalog.name(&record.bucket, &record.name).await.map_err(|error| failed(&error))?;
        let is_known = held.is_some_and(|held| held.order() >= record.order());
        if !is_known && !catalog.is_dead(&record.version).await.map_err(|error| failed(&error))? {
            shard.node.observe(record.clock);
            news.push(SmallRecord::Name(record.encode()));
        }
    }
    shard.store.append_all(news).await.map_err(|error| failed(&error))
}

/// The latest record of a name that a quorum knows, held by a majority when this returns. Tombstones are returned too.
pub async fn read(shard: &Rc<Shard>, bucket: &BucketId, name: &NameId) -> Result<Option<NameRecord>, NameError> {
    for _ in 0..RESTARTS_MAX {
        if let Some(outcome) = read_once(shard, bucket, name).await? {
            return Ok(outcome);
        }
        super::membership::refresh_layout(shard).await;
    }
    Err(NameError::LayoutChanged)
}

/// `None`: an owner runs under another layout, start over.
async fn read_once(
    shard: &Rc<Shard>,
    bucket: &BucketId,
    name: &NameId,
) -> Result<Option<Option<NameRecord>>, NameError> {
    let (mut machine, mut asked) = {
        let quorums = quorums(shard, bucket)?;
        (NameRead::new(quorums), Asked::new(shard))
    };
    let body = message::encode_name_read(bucket, name);
    for owner in machine.owners() {
        asked.ask(owner, FrameKind::NameRead, body.clone());
    }
    // What owners under earlier layouts know is added: the quorum's verdict waits for those of them that live.
    let voters = machine.owners();
    let groups = name_groups(shard, Some(bucket));
    let mut awaited: Vec<NodeId> = groups.iter().skip(1).flat_map(|group| group.owners.clone()).collect();
    // Right after a start nobody counts as alive yet.
    let is_young = shard.node.uptime() < MEETING_TIME;
    awaited.retain(|owner| is_young || shard.node.peers.is_alive(owner));
    awaited.sort();
    awaited.dedup();
    let mut heard = Vec::new();
    for owner in awaited.iter().filter(|owner| !voters.contains(owner)) {
        asked.ask(*owner, FrameKind::NameRead, body.clone());
    }
    let mut held_back = Vec::new();
    while let Some((owner, answer)) = asked.next().await {
        awaited.retain(|known| *known != owner);
        if let Answer::Record(_, synced) = &answer {
            heard.push((owner, *synced));
            if groups.first().is_some_and(|newest| newest.is_synced(&heard)) {
                awaited.clear(); // those of before have nothing that these have not
            }
        }
        if voters.contains(&owner) {
            held_back.push((owner, answer));
        } else if let Answer::Record(record, _) = answer {
            machine.on_answer(owner, record);
        }
        if awaited.is_empty() {
            // The latest goes last and comes first: a quorum of those who know less must not conclude without it.
            held_back.sort_by_key(|(_, answer)| answer.order());
        }
        while let Some((owner, answer)) = awaited.is_empty().then(|| held_back.pop()).flatten() {
            match step_read(&mut machine, owner, answer) {
                NameReadStep::Wait => {}
                NameReadStep::WriteBack { record, to } => {
                    for owner in to {
                        asked.ask(owner, FrameKind::NameWrite, record.encode());
                    }
                }
                NameReadStep::Done(None) => {
                    return uncovered(&groups, &heard).map_or(Ok(Some(None)), |group| {
                        let have = group.heard(&heard);
                        Err(NameError::EarlierOwnersSilent { have, need: group.need })
                    });
                }
                NameReadStep::Done(record) => return Ok(Some(record)),
                NameReadStep::Failed { have, need } => return Err(asked.too_few(have, need)),
                NameReadStep::Restart => return Ok(None),
            }
        }
    }
    Err(asked.too_few(0, 1))
}

/// Who holds a bucket's names (or all names) under one layout, and how many of them must be heard so that none of its
/// names can hide behind those that are not.
struct NameGroup {
    layout: u32,
    owners: Vec<NodeId>,
    need: usize,
}

impl NameGroup {
    fn heard(&self, heard: &[(NodeId, u32)]) -> usize {
        heard.iter().filter(|(node, _)| self.owners.contains(node)).count()
    }

    /// Whether enough of those who were heard have brought in everything from the layouts before this one.
    fn is_synced(&self, heard: &[(NodeId, u32)]) -> bool {
        let synced = heard.iter().filter(|(node, synced)| self.owners.contains(node) && *synced >= self.layout);
        synced.count() >= self.need
    }
}

/// The groups of all layouts known, the newest first.
fn name_groups(shard: &Rc<Shard>, bucket: Option<&BucketId>) -> Vec<NameGroup> {
    let layouts = shard.node.layouts();
    let known = layouts.active().iter().rev().chain(layouts.earlier());
    known.map(|layout| name_group(layout, bucket)).collect()
}

fn name_group(layout: &Arc<ActiveLayout>, bucket: Option<&BucketId>) -> NameGroup {
    let owners: Vec<NodeId> = match bucket {
        Some(bucket) => layout.name_owners(bucket).as_slice().to_vec(),
        None => layout.nodes().iter().filter(|node| node.class == Class::Member).map(|node| node.node).collect(),
    };
    let replicas = owners.len().min(usize::from(layout.replicas()));
    let need = owners.len() - replicas / 2;
    NameGroup { layout: layout.number(), owners, need }
}

/// The first layout, from the newest back, of which too few owners were heard; none when what was heard is all there can
/// be. A name may have been put before its owners changed, and not have been brought in yet: then the owners of before
/// have to be heard too, back to a layout enough of whose owners have brought in everything.
fn uncovered<'a>(groups: &'a [NameGroup], heard: &[(NodeId, u32)]) -> Option<&'a NameGroup> {
    for group in groups {
        if group.heard(heard) < group.need {
            return Some(group);
        }
        if group.is_synced(heard) {
            return None;
        }
    }
    None
}

impl Answer {
    fn order(&self) -> Option<(Stamp, VersionId)> {
        match self {
            Self::Record(Some(record), _) => Some(record.order()),
            _ => None,
        }
    }
}

fn step_read(machine: &mut NameRead, owner: NodeId, answer: Answer) -> NameReadStep {
    match answer {
        Answer::Record(record, _) => machine.on_answer(owner, record),
        Answer::Written => machine.on_ack(owner),
        Answer::Refused => machine.on_refused(owner),
        Answer::Failed => machine.on_fail(owner),
    }
}

/// What a write has made sure of: the ground on which the deaths of what it replaced may be signed.
pub struct Written {
    pub order: (Stamp, VersionId),
    pub holders: Vec<NodeId>,
    pub quorums: Vec<Quorum>,
    /// Files under this name that owners showed before the write: (clock, version) of each.
    pub replaced: Vec<(Stamp, VersionId)>,
}

/// One write of one name, over as many attempts as the layouts ask for.
pub struct WriteName<'a> {
    pub bucket: &'a BucketId,
    pub name: &'a NameId,
    /// What the name was when the operation began.
    pub earlier: Option<&'a NameRecord>,
    /// Fail when somebody else has given the name to a file meanwhile.
    pub no_clobber: bool,
}

impl WriteName<'_> {
    /// Writes the record that `make` seals, under a clock later than all that a quorum knows, to a majority of its
    /// owners. Once a record has left this node, a restart sends the very same again: under a later clock it could
    /// outlive its own death, signed by somebody who has rightly replaced it.
    pub async fn run(&self, shard: &Rc<Shard>, make: impl Fn(Stamp) -> NameRecord) -> Result<Written, NameError> {
        let mut attempt = Attempt { sent: None, replaced: Vec::new() };
        if let Some(earlier) = self.earlier.filter(|earlier| !earlier.tombstone) {
            attempt.replaced.push(earlier.order());
        }
        for _ in 0..RESTARTS_MAX {
            if let Some(written) = self.attempt(shard, &make, &mut attempt).await? {
                return Ok(written);
            }
            super::membership::refresh_layout(shard).await;
        }
        Err(NameError::LayoutChanged)
    }

    async fn attempt(
        &self,
        shard: &Rc<Shard>,
        make: &impl Fn(Stamp) -> NameRecord,
        attempt: &mut Attempt,
    ) -> Result<Option<Written>, NameError> {
        let quorums = quorums(shard, self.bucket)?;
        let (mut machine, mut asked) = (NameWrite::new(quorums.clone()), Asked::new(shard));
        let body = message::encode_name_read(self.bucket, self.name);
        for owner in machine.owners() {
            asked.ask(owner, FrameKind::NameRead, body.clone());
        }
        let mut has_picked = false;
        while let Some((owner, answer)) = asked.next().await {
            let mut step = match answer {
                Answer::Record(record, _) => {
                    if let Some(record) = &record {
                        self.note(record, attempt)?;
                    }
                    machine.on_clock(owner, record.map(|record| record.clock))
                }
                Answer::Written => machine.on_ack(owner),
                Answer::Refused => machine.on_refused(owner),
                Answer::Failed => machine.on_fail(owner),
            };
            if let (NameWriteStep::PickClock { later_than }, false) = (&step, has_picked) {
                has_picked = true;
                let record = match attempt.sent.take() {
                    Some(record) => record,
                    None => {
                        let earlier = self.earlier.map_or(Stamp::ZERO, |earlier| earlier.clock);
                        make(later_clock(shard, earlier.max(*later_than)).await?)
                    }
                };
                step = machine.picked();
                asked.forget_running();
                for owner in machine.owners() {
                    asked.ask(owner, FrameKind::NameWrite, record.encode());
                }
                attempt.sent = Some(record);
            }
            match step {
                NameWriteStep::Done => {
                    let Some(record) = &attempt.sent else { continue };
                    let (order, holders) = (record.order(), machine.holders());
                    let replaced = std::mem::take(&mut attempt.replaced);
                    return Ok(Some(Written { order, holders, quorums, replaced }));
                }
                NameWriteStep::Failed { have, need } => return Err(asked.too_few(have, need)),
                NameWriteStep::Restart => return Ok(None),
                NameWriteStep::Wait | NameWriteStep::PickClock { .. } => {}
            }
        }
        Err(asked.too_few(0, 1))
    }

    /// Takes note of what an owner holds before the write.
    fn note(&self, record: &NameRecord, attempt: &mut Attempt) -> Result<(), NameError> {
        let is_ours = attempt.sent.as_ref().is_some_and(|sent| sent.version == record.version);
        if record.tombstone || is_ours {
            return Ok(());
        }
        if self.no_clobber {
            return Err(NameError::Taken);
        }
        if !attempt.replaced.contains(&record.order()) {
            attempt.replaced.push(record.order());
        }
        Ok(())
    }
}

/// What outlives a restart of the write.
struct Attempt {
    sent: Option<NameRecord>,
    replaced: Vec<(Stamp, VersionId)>,
}

fn quorums(shard: &Rc<Shard>, bucket: &BucketId) -> Result<Vec<Quorum>, NameError> {
    let quorums = shard.node.layouts().name_quorums(bucket);
    if quorums.is_empty() { Err(NameError::NotJoined) } else { Ok(quorums) }
}

/// Questions under way to several owners. Those that nobody waits for any more go on in the background, so that a write
/// reaches every owner that can be reached.
struct Asked {
    shard: Rc<Shard>,
    layout: u32,
    answers: mpsc::UnboundedSender<(u32, NodeId, Answer, Option<String>)>,
    arrived: mpsc::UnboundedReceiver<(u32, NodeId, Answer, Option<String>)>,
    round: u32,
    running: usize,
    failures: Vec<String>,
}

impl Asked {
    fn new(shard: &Rc<Shard>) -> Self {
        let (answers, arrived) = mpsc::unbounded_channel();
        let layout = shard.node.layout_number();
        Self { shard: shard.clone(), layout, answers, arrived, round: 0, running: 0, failures: Vec::new() }
    }

    fn ask(&mut self, owner: NodeId, kind: FrameKind, body: Vec<u8>) {
        let (shard, answers, layout, round) = (self.shard.clone(), self.answers.clone(), self.layout, self.round);
        self.running += 1;
        spawn(async move {
            let (answer, reason) = match ask_one(&shard, owner, layout, kind, body).await {
                Ok(answer) => (answer, None),
                Err(reason) => (Answer::Failed, Some(format!("{owner:?}: {reason}"))),
            };
            let _ = answers.send((round, owner, answer, reason));
        });
    }

    /// Answers to what was asked so far are of no interest any more.
    fn forget_running(&mut self) {
        self.round += 1;
        self.running = 0;
    }

    async fn next(&mut self) -> Option<(NodeId, Answer)> {
        while self.running > 0 {
            let (round, owner, answer, reason) = self.arrived.recv().await?;
            if round != self.round {
                continue;
            }
            self.running -= 1;
            self.failures.extend(reason);
            return Some((owner, answer));
        }
        None
    }

    fn too_few(&self, have: usize, need: usize) -> NameError {
        NameError::TooFewOwners { have, need, reason: self.failures.join("; ") }
    }
}

async fn ask_one(
    shard: &Rc<Shard>,
    owner: NodeId,
    layout: u32,
    kind: FrameKind,
    body: Vec<u8>,
) -> Result<Answer, String> {
    if owner == shard.node.id() {
        return ask_self(shard, kind, &body).await;
    }
    let connection = connect(shard, &owner).await.map_err(|error| error.to_string())?;
    let patience = if kind == FrameKind::NameWrite { WRITE_PATIENCE } else { STALL_MAX };
    let answer = connection
        .request(kind, Address::ZERO, layout, body, None, patience)
        .await
        .map_err(|error| error.to_string())?;
    match (answer.status, kind) {
        (Status::Ok, FrameKind::NameWrite) => Ok(Answer::Written),
        (Status::Ok, _) => NameRecord::decode(&answer.body)
            .map(|record| Answer::Record(Some(record), answer.header.layout.get()))
            .map_err(|error| error.to_string()),
        (Status::NotFound, FrameKind::NameRead) => Ok(Answer::Record(None, answer.header.layout.get())),
        (Status::WrongLayout | Status::Dead, _) => Ok(Answer::Refused),
        (status, _) => Err(format!("answered {status:?}")),
    }
}

async fn ask_self(shard: &Rc<Shard>, kind: FrameKind, body: &[u8]) -> Result<Answer, String> {
    if kind == FrameKind::NameWrite {
        let record = NameRecord::decode(body).map_err(|error| error.to_string())?;
        return match accept(shard, &record).await {
            Ok(()) => Ok(Answer::Written),
            Err(Status::Dead) => Ok(Answer::Refused),
            Err(status) => Err(format!("answered {status:?}")),
        };
    }
    let (bucket, name) = message::decode_name_read(body).map_err(|error| error.to_string())?;
    let synced = shard.node.names_synced();
    let record = shard.node.catalog.name(&bucket, &name).await.map_err(|error| error.to_string())?;
    Ok(Answer::Record(record, synced))
}

/// A stamp later than `after` and than everything this node has seen. It does not leave the node before a floor above it
/// is durable, so that no restart goes back behind it.
pub(super) async fn later_clock(shard: &Rc<Shard>, after: Stamp) -> Result<Stamp, NameError> {
    let node = &shard.node;
    let (stamp, floor) = {
        let mut clock = lock(&node.clock);
        let stamp = clock.later_than(after, wall_ms())?;
        (stamp, clock.floor_to_persist())
    };
    if let Some(floor) = floor {
        let document = log::document(node.document_serial(), CLOCK_DOCUMENT, &floor.get().to_le_bytes());
        shard.store.append(document).await.map_err(|error| NameError::Here(error.to_string()))?;
        lock(&node.clock).persisted(floor);
    }
    Ok(stamp)
}

/// The clock's floor, over restarts.
pub const CLOCK_DOCUMENT: &[u8] = b"clock/floor";

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
            let (have, need) = (group.heard(&heard), group.need);
            return Err(NameError::TooFewOwners { have, need, reason: failures.join("; ") }.into());
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
