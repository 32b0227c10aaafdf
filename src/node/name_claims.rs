//! Claims of names, carried to the owners and granted by one: see [`crate::cluster::claims`] for the rules.

use std::rc::Rc;
use std::time::Instant;

use super::name_quorum::{Answer, Asked, Owners};
use super::names::{NameError, taken_by};
use super::shard::Shard;
use super::shared::lock;
use super::wall_ms;
use crate::catalog::CatalogError;
use crate::catalog::hlc::check_ahead;
use crate::cluster::names::ClaimStep;
use crate::cluster::{NameClaim, Quorum};
use crate::format::frame::{FrameKind, Status};
use crate::format::message::{NameOrigin, NameWriteAnswer, encode_name_write};
use crate::format::name::NameRecord;
use crate::limits::{NAME_CLAIM_ANSWER_MAX, NAME_CLAIM_MAX, STALL_MAX};

/// Whether a record that must be the first is taken: its version has the claim, or this is the one owner there is.
pub fn is_held(shard: &Rc<Shard>, record: &NameRecord) -> bool {
    let node = &shard.node;
    let is_alone = node.layout().is_ok_and(|layout| layout.name_owners(&record.bucket).len() == 1);
    is_alone || lock(&node.name_claims).is_held(&record.name, &record.order(), node.uptime())
}

/// Keeps the name for a version that wants to be the first, if no file has it and nobody else wants it.
pub async fn grant(shard: &Rc<Shard>, record: &NameRecord) -> Result<NameWriteAnswer, Status> {
    let (node, asked) = (&shard.node, Instant::now());
    if node.opened.segments > 0 {
        // What the process before this one has granted may still count.
        tokio::time::sleep(NAME_CLAIM_MAX.saturating_sub(node.uptime())).await;
    }
    check_ahead(record.clock, wall_ms()).map_err(|_| Status::ClockAhead)?;
    let unavailable = |error: CatalogError| {
        tracing::warn!(%error, "a name was not claimed");
        Status::Unavailable
    };
    let _alone = node.name_locks.lock(&record.name).await;
    if node.catalog.is_dead(&record.version).await.map_err(unavailable)? {
        return Err(Status::Dead);
    }
    let held = node.catalog.name(&record.bucket, &record.name).await.map_err(unavailable)?;
    if let Some((clock, version)) = taken_by(held.as_ref(), record) {
        return Ok(NameWriteAnswer::Taken(clock, version));
    }
    if asked.elapsed() >= NAME_CLAIM_ANSWER_MAX {
        // Who asked has given up, and its release may have come by: it is to ask again.
        return Ok(NameWriteAnswer::Claimed);
    }
    let is_granted = lock(&node.name_claims).grant(record.name, record.order(), node.uptime());
    Ok(if is_granted { NameWriteAnswer::Kept } else { NameWriteAnswer::Claimed })
}

pub fn release(shard: &Rc<Shard>, record: &NameRecord) {
    lock(&shard.node.name_claims).release(&record.name, &record.order());
}

/// How a round of claims has ended, if not with an error.
pub enum Claimed {
    Granted,
    Contended,
    /// An owner runs under another layout.
    Refused,
}

/// Claims the name for a record that must be the first, with a majority of its owners or not at all.
/// `latest`: what the name is now, as a quorum knows. `has_left`: the record was sent before, under a layout that was refused.
pub async fn claim(
    asked: &mut Asked,
    quorums: &[Quorum],
    record: &NameRecord,
    latest: Option<&NameRecord>,
    has_left: bool,
) -> Result<Claimed, NameError> {
    let (began, mut machine) = (Instant::now(), NameClaim::new(quorums.to_vec()));
    for owner in machine.owners() {
        asked.ask(owner, FrameKind::NameWrite, encode_name_write(NameOrigin::Claim, record));
    }
    let mut is_contended = false;
    let outcome = loop {
        let Some((owner, answer)) = asked.next().await else { break Err(asked.too_few(0, 1)) };
        let step = match answer {
            // It was away when that file was removed.
            Answer::Written(NameWriteAnswer::Taken(clock, version))
                if latest.is_some_and(|latest| (clock, version) < latest.order()) =>
            {
                machine.on_fail(owner)
            }
            Answer::Written(NameWriteAnswer::Taken(..)) => break Err(NameError::Taken),
            Answer::Written(NameWriteAnswer::Claimed) => {
                is_contended = true;
                machine.on_fail(owner)
            }
            Answer::Written(_) => machine.on_grant(owner),
            Answer::Refused => break Ok(Claimed::Refused),
            Answer::Record(..) | Answer::Failed => machine.on_fail(owner),
        };
        match step {
            ClaimStep::Wait => {}
            ClaimStep::Granted if began.elapsed() < NAME_CLAIM_ANSWER_MAX => {
                asked.forget_running();
                return Ok(Claimed::Granted);
            }
            ClaimStep::Granted => break Ok(Claimed::Contended), // for too little time
            ClaimStep::Failed { .. } if is_contended => break Ok(Claimed::Contended),
            ClaimStep::Failed { have, need } => break Err(asked.too_few(have, need)),
        }
    };
    asked.forget_running();
    if has_left {
        // The next attempt claims for the same record: a late release would free that claim. It ends by itself.
        return outcome;
    }
    for owner in machine.owners() {
        asked.ask(owner, FrameKind::NameWrite, encode_name_write(NameOrigin::Release, record));
    }
    // So that no release overtakes the next claim. Who does not answer releases it by itself, in time.
    let _ = tokio::time::timeout(STALL_MAX, async { while asked.next().await.is_some() {} }).await;
    asked.forget_running();
    outcome
}
