//! Names over the cluster: read and written by majority of a bucket's owners among the members.
//!
//! - A write first reads a quorum, picks a later clock than it saw, and is done once W owners hold it durably.
//! - A read takes the latest of R + 1 - W answers, and waits until a majority holds it before it answers
//!   (write-back), so that reads never go backwards.
//! - Every request carries the layout's number. An owner that runs under another refuses, the operation starts over
//!   under the newest, and earlier answers count for nothing.
//! - Under a new layout both also hear the owners of the one before until the names were brought in, be the name found
//!   or not ([`super::name_quorum`]): no record is lost by a change of owners, or hidden by one with an earlier clock.
//!
//! The decisions are [`NameRead`]'s and [`NameWrite`]'s; this file carries their questions to the owners.
//!
//! # Two puts of one name at once
//!
//! Both see the same predecessor, so neither sees the other in its clock round. Each owner keeps the later of the two, by
//! (clock, version), and says in its answer what else was given the name: the record that the write took the place of,
//! or the later one that it lost to. It decides that under a lock of the name, so that of two writes one hears of the
//! other. Then:
//!
//! | what is known | who signs the death of the earlier |
//! | --- | --- |
//! | an owner displaced it, before the write was done | the later writer, with that of the predecessor |
//! | an owner displaced it after the write was done, or by a write-back | who wrote, by a [`witness`] |
//! | the write lost with an owner | its own writer, by a [`witness`] |
//! | a read met it beside a later record | the reader, by a [`witness`] |
//! | an owner refused it as dead | nobody: it is dead. The put was done and replaced at once, and is told so |
//!
//! # Puts that must be the first
//! With `--no-clobber` all of that must not happen: whoever lost must not be told that it has stored, must not come out on
//! top by its clock, and signs no death of what has won. The flag travels with the record: an owner refuses it, under the
//! lock of the name, where a file of another version has the name. That alone leaves one winner at most, since two majorities
//! meet in an owner. So that a loser leaves no record behind, with a minority and perhaps under the latest clock of all, it
//! claims the name with a majority before it writes ([`super::name_claims`]). Once the write is done,
//! owners that have not taken it under a claim get it as they get what a reader found elsewhere. It displaces no file, so
//! there is none whose death its writer could sign.
//!
//! # Witnesses
//! A witness waits a moment for the writer that should sign, reads the name anew, so that the later record is durable on a
//! majority under the layouts of that moment, and signs if nobody has. A version leaks (its chunks keep their space) if
//! the node that heard of its end stops before it has signed, or if the answer that told it was lost on the way, and
//! no owner still shows the record to a later reader or writer.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;

use rand::RngExt;

use super::name_claims::{self, Claimed};
use super::name_quorum::{Answer, Asked, Owners, gather, name_groups};
use super::shard::Shard;
use super::shared::lock;
use super::{deaths, log, wall_ms};
use crate::catalog::hlc::check_ahead;
use crate::catalog::{CatalogError, ClockAhead, check_age};
use crate::cluster::coverage::NameGroup;
use crate::cluster::names::{NameReadStep, NameWriteStep};
use crate::cluster::{NameRead, NameWrite, Quorum};
use crate::format::frame::{FrameKind, Status};
use crate::format::message::{NameOrigin, NameWriteAnswer, encode_name_write};
use crate::format::name::NameRecord;
use crate::format::{BucketId, NameId, NodeId, Stamp, VersionId, message};
use crate::io::spawn;
use crate::limits::{
    NAME_CLAIM_PAUSE_MS, NAME_CLAIM_RETRIES_MAX, NAME_LAYOUT_RESTARTS_MAX, WITNESS_PAUSE, WITNESSES_MAX,
};
use crate::store::{SmallRecord, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error(
        "only {have} of the name's owners answered, and {need} are needed: start the missing members or wait for them ({reason})"
    )]
    TooFewOwners { have: usize, need: usize, reason: String },
    #[error(
        "names of before the last change of members were not brought in yet, and of their owners only {have} answered where {need} are needed: start the members that were there first"
    )]
    EarlierOwnersSilent { have: usize, need: usize },
    #[error(
        "layout {number} was not learnt yet, so names of that time cannot be looked for: wait a moment, or start the members that were there then"
    )]
    LayoutUnknown { number: u32 },
    #[error("this node does not hold the network's layout yet: wait until it has joined")]
    NotJoined,
    #[error("the layout kept changing, or the put took longer than a day: try again")]
    LayoutChanged,
    #[error("somebody gave this name to another file meanwhile: put without --no-clobber, or under another name")]
    Taken,
    #[error("others put under this name at the same moment, all with --no-clobber, and none was the first: try again")]
    Contended,
    #[error(transparent)]
    ClockAhead(#[from] ClockAhead),
    #[error("this node cannot make the name durable: {0}")]
    Here(String),
    #[error("this node cannot make the name durable: {0}")]
    NoSpace(String),
}

/// Keeps a record here, durably, or says why not, and tells what else has the name here. Called for a peer's write and
/// for our own. What was begun is finished though nobody waits for it: the next answer about the name must know of it.
///
/// `layout`: what the write runs under. It must be the newest here when the record is durable, too: whoever brings names in
/// under a newer one may have looked before the record was there.
pub async fn accept(
    shard: &Rc<Shard>,
    origin: NameOrigin,
    record: NameRecord,
    layout: u32,
) -> Result<NameWriteAnswer, Status> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let shard = shard.clone();
    spawn(async move {
        let kept = match origin {
            NameOrigin::Claim => name_claims::grant(&shard, &record).await,
            NameOrigin::Release => {
                name_claims::release(&shard, &record);
                Ok(NameWriteAnswer::Kept)
            }
            NameOrigin::Put | NameOrigin::ReadElsewhere | NameOrigin::New => keep(&shard, origin, &record).await,
        };
        let is_newest = shard.node.layout_number() == layout;
        let _ = tell.send(kept.and_then(|answer| if is_newest { Ok(answer) } else { Err(Status::WrongLayout) }));
    });
    told.await.unwrap_or(Err(Status::Unavailable))
}

async fn keep(shard: &Rc<Shard>, origin: NameOrigin, record: &NameRecord) -> Result<NameWriteAnswer, Status> {
    let now_ms = wall_ms();
    check_ahead(record.clock, now_ms).map_err(|_| Status::ClockAhead)?;
    let catalog = &shard.node.catalog;
    let unavailable = |error: CatalogError| {
        tracing::warn!(%error, "a name record was not accepted");
        Status::Unavailable
    };
    let _alone = shard.node.name_locks.lock(&record.name).await;
    if catalog.is_dead(&record.version).await.map_err(unavailable)? {
        return Err(Status::Dead);
    }
    let held = catalog.name(&record.bucket, &record.name).await.map_err(unavailable)?;
    if let Some((clock, version)) = taken_by(held.as_ref(), record).filter(|_| origin == NameOrigin::New) {
        return Ok(NameWriteAnswer::Taken(clock, version));
    }
    if let Some(held) = held.as_ref().filter(|held| held.order() >= record.order()) {
        // Something as late or later is durable here already.
        let (clock, version) = held.order();
        let is_same = version == record.version;
        return Ok(if is_same { NameWriteAnswer::Kept } else { NameWriteAnswer::Lost(clock, version) });
    }
    if origin == NameOrigin::New && !name_claims::is_held(shard, record) {
        return Err(Status::Unavailable);
    }
    let is_first = held.as_ref().is_none_or(|held| held.version != record.version);
    if is_first && is_too_late(origin, record, now_ms) {
        return Err(Status::Dead);
    }
    shard.store.append(SmallRecord::Name(record.encode())).await.map_err(|error| {
        tracing::warn!(%error, "a name record could not be made durable");
        Status::NoSpace
    })?;
    shard.node.observe(record.clock);
    name_claims::release(shard, record);
    Ok(match held.filter(|held| is_first && !held.tombstone) {
        Some(held) => NameWriteAnswer::Displaced(held.clock, held.version),
        None => NameWriteAnswer::Kept,
    })
}

/// The file of another version that has the name of `record` here.
pub(super) fn taken_by(held: Option<&NameRecord>, record: &NameRecord) -> Option<(Stamp, VersionId)> {
    held.filter(|held| !held.tombstone && held.version != record.version).map(NameRecord::order)
}

/// Whether a version is named later than it may be: then its chunks may be gone, and its writer mints a new one and refers
/// again. What another owner holds was named in time.
fn is_too_late(origin: NameOrigin, record: &NameRecord, now_ms: u64) -> bool {
    origin != NameOrigin::ReadElsewhere && !record.tombstone && check_age(&record.version, now_ms / 1000).is_err()
}

/// Makes durable those of `records` that are news here. They were acknowledged under earlier layouts: how old their
/// versions are is no question any more.
pub async fn take_in(shard: &Rc<Shard>, records: Vec<NameRecord>) -> Result<(), NameError> {
    let failed = |error: &dyn std::fmt::Display| NameError::Here(error.to_string());
    let catalog = &shard.node.catalog;
    let _alone = shard.node.name_locks.lock_all(records.iter().map(|record| record.name)).await;
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

/// What a read has made sure of.
pub struct Found {
    /// Held by a majority, or there is none. Tombstones are found too.
    pub record: Option<NameRecord>,
    pub holders: Vec<NodeId>,
    pub quorums: Vec<Quorum>,
    /// Files that owners showed under the name beside a later record: (clock, version) of each.
    older: BTreeSet<(Stamp, VersionId)>,
}

/// The latest record of a name that a quorum knows, held by a majority when this returns. Tombstones are returned too.
pub async fn read(shard: &Rc<Shard>, bucket: &BucketId, name: &NameId) -> Result<Option<NameRecord>, NameError> {
    let found = find(shard, bucket, name).await?;
    for superseded in found.older {
        witness(shard, bucket, name, superseded);
    }
    Ok(found.record)
}

async fn find(shard: &Rc<Shard>, bucket: &BucketId, name: &NameId) -> Result<Found, NameError> {
    for _ in 0..NAME_LAYOUT_RESTARTS_MAX {
        if let Some(found) = find_once(shard, bucket, name).await? {
            return Ok(found);
        }
        super::membership::refresh_layout(shard).await;
    }
    Err(NameError::LayoutChanged)
}

/// `None`: an owner runs under another layout, start over.
async fn find_once(shard: &Rc<Shard>, bucket: &BucketId, name: &NameId) -> Result<Option<Found>, NameError> {
    let quorums = quorums(shard, bucket)?;
    let layout = layout_of(&quorums);
    let (mut machine, mut asked) = (NameRead::new(quorums.clone()), Asked::new(shard, layout));
    let groups = name_groups(shard, Some(bucket));
    if !are_of(&groups, layout) {
        return Ok(None);
    }
    let body = message::encode_name_read(bucket, name);
    let Some(gathered) = gather(&mut asked, &groups, &machine.owners(), &body).await? else { return Ok(None) };
    let mut seen: BTreeSet<(Stamp, VersionId)> = BTreeSet::new();
    for (owner, record) in gathered.earlier {
        seen.extend((!record.tombstone).then(|| record.order()));
        machine.on_answer(owner, Some(record));
    }
    let mut known = gathered.answers;
    loop {
        // The latest goes first: a quorum of those who know less must not conclude without it.
        let Some((owner, answer)) = (match known.pop() {
            Some(answer) => Some(answer),
            None => asked.next().await,
        }) else {
            return Err(asked.too_few(0, 1));
        };
        match &answer {
            Answer::Record(Some(record), _) if !record.tombstone => _ = seen.insert(record.order()),
            Answer::Written(NameWriteAnswer::Displaced(clock, version)) => _ = seen.insert((*clock, *version)),
            _ => {}
        }
        match step_read(&mut machine, owner, answer) {
            NameReadStep::Wait => {}
            NameReadStep::WriteBack { record, to } => {
                for owner in to {
                    asked.ask(owner, FrameKind::NameWrite, encode_name_write(NameOrigin::ReadElsewhere, &record));
                }
            }
            NameReadStep::Done(record) => {
                seen.extend(known.iter().filter_map(|(_, answer)| match answer {
                    Answer::Record(Some(record), _) if !record.tombstone => Some(record.order()),
                    _ => None,
                }));
                if let Some(latest) = &record {
                    seen.retain(|(clock, version)| (*clock, *version) < latest.order() && *version != latest.version);
                }
                return Ok(Some(Found { record, holders: machine.holders(), quorums, older: seen }));
            }
            NameReadStep::Failed { have, need } => return Err(asked.too_few(have, need)),
            NameReadStep::Restart => return Ok(None),
        }
    }
}

/// A version under this name was seen to have been superseded, and whoever replaced it may not know. Sees to it, behind
/// the caller's back, that it is declared dead if the rule allows it and nobody else has.
fn witness(shard: &Rc<Shard>, bucket: &BucketId, name: &NameId, superseded: (Stamp, VersionId)) {
    {
        let mut witnessed = lock(&shard.node.witnessed);
        if witnessed.len() >= WITNESSES_MAX || !witnessed.insert(superseded.1) {
            return;
        }
    }
    let (shard, bucket, name) = (shard.clone(), *bucket, *name);
    spawn(async move {
        if let Err(reason) = bear_witness(&shard, &bucket, &name, superseded).await {
            tracing::info!(version = ?superseded.1, %reason, "a replaced version was not declared dead");
        }
        lock(&shard.node.witnessed).remove(&superseded.1);
    });
}

async fn bear_witness(
    shard: &Rc<Shard>,
    bucket: &BucketId,
    name: &NameId,
    superseded: (Stamp, VersionId),
) -> Result<(), String> {
    let is_dead = async || shard.node.catalog.is_dead(&superseded.1).await.map_err(|error| error.to_string());
    if is_dead().await? {
        return Ok(());
    }
    tokio::select! {
        () = shard.node.stopping().wait() => return Err("the node stops".into()),
        () = tokio::time::sleep(WITNESS_PAUSE) => {}
    }
    if is_dead().await? {
        return Ok(());
    }
    let found = find(shard, bucket, name).await.map_err(|error| error.to_string())?;
    let Some(record) = &found.record else { return Ok(()) };
    let replaced = vec![superseded];
    let written = Written { order: record.order(), holders: found.holders, quorums: found.quorums, replaced };
    let _room = deaths::reserve(shard, 1).map_err(|failure| failure.message)?;
    deaths::sign_replaced(shard, &[written]).await.map_err(|failure| failure.message)
}

/// Versions that a witness is busy with.
pub type Witnessed = Mutex<BTreeSet<VersionId>>;

fn step_read(machine: &mut NameRead, owner: NodeId, answer: Answer) -> NameReadStep {
    match answer {
        Answer::Record(record, _) => machine.on_answer(owner, record),
        Answer::Written(_) => machine.on_ack(owner),
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
    /// Fail when somebody else has given the name to a file, or does so at the same time.
    pub no_clobber: bool,
}

impl WriteName<'_> {
    /// Writes the record that `make` seals, under a clock later than all that a quorum knows, to a majority of its
    /// owners. Once a record has left this node, a restart sends the very same again: under a later clock it could
    /// outlive its own death, signed by somebody who has rightly replaced it.
    pub async fn run(&self, shard: &Rc<Shard>, make: impl Fn(Stamp) -> NameRecord) -> Result<Written, NameError> {
        self.run_from(shard, make, None).await
    }

    /// The same for a record that an owner holds already, under a layout that has been replaced since.
    pub async fn send_again(&self, shard: &Rc<Shard>, record: NameRecord) -> Result<Written, NameError> {
        let make = |_| record.clone();
        self.run_from(shard, make, Some(record.clone())).await
    }

    async fn run_from(
        &self,
        shard: &Rc<Shard>,
        make: impl Fn(Stamp) -> NameRecord,
        sent: Option<NameRecord>,
    ) -> Result<Written, NameError> {
        let mut attempt = Attempt { sent, replaced: Vec::new(), latest: None };
        if let Some(earlier) = self.earlier.filter(|earlier| !earlier.tombstone) {
            attempt.replaced.push(earlier.order());
        }
        let (mut restarts, mut contended) = (0, 0);
        while restarts < NAME_LAYOUT_RESTARTS_MAX {
            match self.attempt(shard, &make, &mut attempt).await? {
                Attempted::Written(written) => return Ok(written),
                Attempted::Contended if contended >= NAME_CLAIM_RETRIES_MAX => return Err(NameError::Contended),
                Attempted::Contended => {
                    contended += 1;
                    let pause = rand::rng().random_range(NAME_CLAIM_PAUSE_MS);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                Attempted::Refused => {
                    restarts += 1;
                    super::membership::refresh_layout(shard).await;
                    if let Some(written) = self.overtaken(shard, &mut attempt).await? {
                        return Ok(written);
                    }
                }
            }
        }
        Err(NameError::LayoutChanged)
    }

    /// A record that has left this node and was refused may have been replaced already, and declared dead by whoever did:
    /// then it was written, and is over.
    async fn overtaken(&self, shard: &Rc<Shard>, attempt: &mut Attempt) -> Result<Option<Written>, NameError> {
        let Some(sent) = &attempt.sent else { return Ok(None) };
        let found = find(shard, self.bucket, self.name).await?;
        let Some(later) = found.record.filter(|record| record.wins_over(sent) && record.version != sent.version) else {
            return Ok(None);
        };
        if self.no_clobber && !sent.tombstone {
            witness(shard, self.bucket, self.name, sent.order());
            return Err(NameError::Taken);
        }
        let mut replaced = std::mem::take(&mut attempt.replaced);
        replaced.extend((!sent.tombstone).then(|| sent.order()));
        let (holders, quorums) = (found.holders, found.quorums);
        Ok(Some(Written { order: later.order(), holders, quorums, replaced }))
    }

    async fn attempt(
        &self,
        shard: &Rc<Shard>,
        make: &impl Fn(Stamp) -> NameRecord,
        attempt: &mut Attempt,
    ) -> Result<Attempted, NameError> {
        let quorums = quorums(shard, self.bucket)?;
        let layout = layout_of(&quorums);
        let (mut machine, mut asked) = (NameWrite::new(quorums.clone()), Asked::new(shard, layout));
        let Some(latest) = self.clock_round(shard, layout, &mut machine, &mut asked, attempt).await? else {
            return Ok(Attempted::Refused);
        };
        let record = match &attempt.sent {
            Some(record) => record.clone(),
            None => make(later_clock(shard, latest).await?),
        };
        asked.forget_running();
        let is_new = self.no_clobber && !record.tombstone;
        if is_new && quorums.iter().any(|quorum| quorum.owners.len() > 1) {
            match name_claims::claim(&mut asked, &quorums, &record, attempt.latest.as_ref(), attempt.sent.is_some())
                .await?
            {
                Claimed::Granted => {}
                Claimed::Contended => return Ok(Attempted::Contended),
                Claimed::Refused => return Ok(Attempted::Refused),
            }
        }
        let mut step = machine.picked();
        let origin = if is_new { NameOrigin::New } else { NameOrigin::Put };
        for owner in machine.owners() {
            asked.ask(owner, FrameKind::NameWrite, encode_name_write(origin, &record));
        }
        let order = record.order();
        let own = (!record.tombstone).then_some(order);
        attempt.sent = Some(record.clone());
        let (mut is_taken, mut missed) = (false, Vec::new());
        loop {
            match step {
                NameWriteStep::Done => break,
                NameWriteStep::Failed { .. } if is_taken => return Err(NameError::Taken),
                NameWriteStep::Failed { have, need } => return Err(asked.too_few(have, need)),
                NameWriteStep::Restart => return Ok(Attempted::Refused),
                NameWriteStep::Wait | NameWriteStep::PickClock { .. } => {}
            }
            let Some((owner, answer)) = asked.next().await else { return Err(asked.too_few(0, 1)) };
            step = match answer {
                Answer::Written(NameWriteAnswer::Taken(..) | NameWriteAnswer::Claimed) => {
                    is_taken = true;
                    missed.push(owner);
                    machine.on_fail(owner)
                }
                Answer::Written(answer) => {
                    self.note_answer(shard, &answer, own, &mut attempt.replaced);
                    machine.on_ack(owner)
                }
                Answer::Refused => machine.on_refused(owner),
                Answer::Record(..) | Answer::Failed => {
                    missed.push(owner);
                    machine.on_fail(owner)
                }
            };
        }
        let (holders, replaced) = (machine.holders(), std::mem::take(&mut attempt.replaced));
        if is_new {
            for owner in missed {
                asked.ask(owner, FrameKind::NameWrite, encode_name_write(NameOrigin::ReadElsewhere, &record));
            }
        }
        self.hear_the_others(shard, asked, own, replaced.clone(), is_new.then_some(record));
        Ok(Attempted::Written(Written { order, holders, quorums, replaced }))
    }

    /// The latest clock that a quorum knows. `None`: start over.
    async fn clock_round(
        &self,
        shard: &Rc<Shard>,
        layout: u32,
        machine: &mut NameWrite,
        asked: &mut Asked,
        attempt: &mut Attempt,
    ) -> Result<Option<Stamp>, NameError> {
        let groups = name_groups(shard, Some(self.bucket));
        if !are_of(&groups, layout) {
            return Ok(None);
        }
        attempt.see(self.earlier);
        let body = message::encode_name_read(self.bucket, self.name);
        let Some(gathered) = gather(asked, &groups, &machine.owners(), &body).await? else { return Ok(None) };
        let mut latest = self.earlier.map_or(Stamp::ZERO, |earlier| earlier.clock);
        for (_, record) in &gathered.earlier {
            latest = latest.max(record.clock);
            attempt.note(record);
        }
        let mut known = gathered.answers;
        // All that came together is taken note of, though a quorum of it may do.
        for (_, answer) in &known {
            if let Answer::Record(Some(record), _) = answer {
                latest = latest.max(record.clock);
                attempt.note(record);
            }
        }
        loop {
            let Some((owner, answer)) = (match known.pop() {
                Some(answer) => Some(answer),
                None => asked.next().await,
            }) else {
                return Err(asked.too_few(0, 1));
            };
            let step = match answer {
                Answer::Record(record, _) => {
                    if let Some(record) = &record {
                        attempt.note(record);
                    }
                    machine.on_clock(owner, record.map(|record| record.clock))
                }
                Answer::Refused => machine.on_refused(owner),
                Answer::Written(_) | Answer::Failed => machine.on_fail(owner),
            };
            match step {
                // The latest decides: an owner that was away may still hold what was removed since.
                NameWriteStep::PickClock { .. } if self.no_clobber && attempt.is_anothers_file() => {
                    return Err(NameError::Taken);
                }
                NameWriteStep::PickClock { later_than } => return Ok(Some(latest.max(later_than))),
                NameWriteStep::Failed { have, need } => return Err(asked.too_few(have, need)),
                NameWriteStep::Restart => return Ok(None),
                NameWriteStep::Wait | NameWriteStep::Done => {}
            }
        }
    }

    /// What an owner says else has the name.
    fn note_answer(
        &self,
        shard: &Rc<Shard>,
        answer: &NameWriteAnswer,
        own: Option<(Stamp, VersionId)>,
        replaced: &mut Vec<(Stamp, VersionId)>,
    ) {
        match answer {
            NameWriteAnswer::Displaced(clock, version) if !replaced.contains(&(*clock, *version)) => {
                replaced.push((*clock, *version));
            }
            NameWriteAnswer::Lost(..) => own.into_iter().for_each(|own| witness(shard, self.bucket, self.name, own)),
            NameWriteAnswer::Kept
            | NameWriteAnswer::Displaced(..)
            | NameWriteAnswer::Taken(..)
            | NameWriteAnswer::Claimed => {}
        }
    }

    /// The write is done; owners that answer later may tell of versions that nobody else knows of. `to_bring`: a record
    /// that had to be the first, for one who did not take it as such.
    fn hear_the_others(
        &self,
        shard: &Rc<Shard>,
        mut asked: Asked,
        own: Option<(Stamp, VersionId)>,
        known: Vec<(Stamp, VersionId)>,
        mut to_bring: Option<NameRecord>,
    ) {
        let (shard, bucket, name) = (shard.clone(), *self.bucket, *self.name);
        spawn(async move {
            while let Some((owner, answer)) = asked.next().await {
                match answer {
                    Answer::Written(NameWriteAnswer::Taken(..)) | Answer::Failed => {
                        // Once is enough: who is away is told by the readers.
                        let Some(record) = to_bring.take() else { continue };
                        asked.ask(owner, FrameKind::NameWrite, encode_name_write(NameOrigin::ReadElsewhere, &record));
                    }
                    Answer::Written(NameWriteAnswer::Displaced(clock, version))
                        if !known.contains(&(clock, version)) =>
                    {
                        witness(&shard, &bucket, &name, (clock, version));
                    }
                    Answer::Written(NameWriteAnswer::Lost(..)) => {
                        own.into_iter().for_each(|own| witness(&shard, &bucket, &name, own));
                    }
                    _ => {}
                }
            }
        });
    }
}

/// How one attempt to write has ended.
enum Attempted {
    Written(Written),
    /// An owner runs under another layout, or knows the version as dead: start over.
    Refused,
    /// Somebody else claims the name: nothing was written.
    Contended,
}

/// What outlives a restart of the write.
struct Attempt {
    sent: Option<NameRecord>,
    replaced: Vec<(Stamp, VersionId)>,
    /// The latest record that anybody showed.
    latest: Option<NameRecord>,
}

impl Attempt {
    fn see(&mut self, record: Option<&NameRecord>) {
        if let Some(record) = record
            && self.latest.as_ref().is_none_or(|latest| record.wins_over(latest))
        {
            self.latest = Some(record.clone());
        }
    }

    /// Takes note of what an owner holds before the write.
    fn note(&mut self, record: &NameRecord) {
        self.see(Some(record));
        if !record.tombstone && !self.is_ours(record) && !self.replaced.contains(&record.order()) {
            self.replaced.push(record.order());
        }
    }

    fn is_ours(&self, record: &NameRecord) -> bool {
        self.sent.as_ref().is_some_and(|sent| sent.version == record.version)
    }

    fn is_anothers_file(&self) -> bool {
        self.latest.as_ref().is_some_and(|latest| !latest.tombstone && !self.is_ours(latest))
    }
}

/// The layout that an operation runs under: the newest of its quorums'. Read once: the next may be adopted at any moment, on
/// another thread too, and what one layout's quorum acknowledged is nothing to another's.
fn layout_of(quorums: &[Quorum]) -> u32 {
    quorums.last().map_or(0, |quorum| quorum.layout)
}

/// Whether whom to hear was asked under the same layout.
fn are_of(groups: &[NameGroup], layout: u32) -> bool {
    groups.first().is_some_and(|newest| newest.layout == layout)
}

fn quorums(shard: &Rc<Shard>, bucket: &BucketId) -> Result<Vec<Quorum>, NameError> {
    let quorums = shard.node.layouts().name_quorums(bucket);
    if quorums.is_empty() { Err(NameError::NotJoined) } else { Ok(quorums) }
}

/// A stamp later than `after` and than everything this node has seen. It does not leave the node before a floor above it
/// is durable, so that no restart goes back behind it.
pub(super) async fn later_clock(shard: &Rc<Shard>, after: Stamp) -> Result<Stamp, NameError> {
    let node = &shard.node;
    let (stamp, floor) = {
        let (mut clock, wall_ms) = (lock(&node.clock), wall_ms());
        let stamp = clock.later_than(after, wall_ms)?;
        (stamp, clock.floor_to_persist(wall_ms))
    };
    if let Some(floor) = floor {
        let document = log::document(node.document_serial(), CLOCK_DOCUMENT, &floor.get().to_le_bytes());
        shard.store.append(document).await.map_err(|error| match error {
            StoreError::NoSpace { .. } => NameError::NoSpace(error.to_string()),
            other => NameError::Here(other.to_string()),
        })?;
        lock(&node.clock).persisted(floor);
    }
    Ok(stamp)
}

/// The clock's floor, over restarts.
pub const CLOCK_DOCUMENT: &[u8] = b"clock/floor";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::VaultId;

    #[test]
    fn a_version_is_named_within_a_day_and_brought_to_other_owners_at_any_time() {
        let minted_s = 1_000_000;
        let record = |tombstone| NameRecord {
            tombstone,
            vault: VaultId([0; 16]),
            key_generation: 1,
            clock: Stamp::new(5, 0),
            bucket: BucketId([7; 32]),
            name: NameId([8; 32]),
            version: VersionId::new(1, minted_s, [3; 8]),
            nonce: [0; 24],
            sealed: vec![1; 64],
        };
        let after = |days: f64| (f64::from(minted_s) + days * 86_400.0) as u64 * 1000;
        assert!(!is_too_late(NameOrigin::Put, &record(false), after(0.9)));
        assert!(is_too_late(NameOrigin::Put, &record(false), after(2.0)));
        assert!(!is_too_late(NameOrigin::Put, &record(true), after(2.0)), "a removal has no chunks to lose");
        assert!(!is_too_late(NameOrigin::ReadElsewhere, &record(false), after(200.0)));
    }
}
