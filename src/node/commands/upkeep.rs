//! `verify` and `reclaim`: everything read and checked again, and the space of the dead given back.

use std::rc::Rc;
use std::time::Duration;

use super::{Client, Failure};
use crate::node::control::ControlEvent;
use crate::node::mend::{self, Mended};
use crate::node::reclaim;
use crate::node::shard::Shard;

/// Reads every record of every segment; what does not match is quarantined and fetched again from another holder.
pub async fn verify(shard: &Rc<Shard>, client: &Rc<Client>) -> Result<(), Failure> {
    let total = shard.store.stats().chunks;
    let mut done = 0;
    let (events, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let store = shard.store.clone();
    let (finished, outcome) = tokio::sync::oneshot::channel();
    crate::io::spawn(async move {
        let report = store
            .verify(&mut |verified| {
                let _ = events.send(verified);
            })
            .await;
        let _ = finished.send(report);
    });
    let (mut mended, mut left) = (0, 0);
    let mut damaged = 0;
    let mut last_report = std::time::Instant::now();
    while let Some(verified) = arrived.recv().await {
        done += 1;
        if !verified.ok {
            damaged += 1;
            let outcome = mend::mend(shard, &verified.address).await;
            let (is_mended, message) = match &outcome {
                Ok(Mended::Fetched(from)) => (true, format!("fetched again from {from:?}")),
                Ok(Mended::Dropped) => (true, "nobody refers to it: dropped".to_owned()),
                Err(reason) => (false, reason.clone()),
            };
            if is_mended {
                mended += 1
            } else {
                left += 1
            }
            client.send(ControlEvent::Damaged { address: verified.address, mended: is_mended, message }).await?;
        }
        if last_report.elapsed() > REPORT_INTERVAL {
            last_report = std::time::Instant::now();
            client.send(ControlEvent::Verified { done, total: total.max(done) }).await?;
        }
    }
    let report = outcome.await.map_err(|_| Failure::new(super::code::OTHER, "the node is stopping"))??;
    client.send(ControlEvent::VerifyDone { chunks: report.chunks, bytes: report.bytes, damaged, mended, left }).await
}

const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Gives back the space of everything without a living reference, now: the grace for running reads is skipped, local
/// readers' guards are not.
pub async fn reclaim(shard: &Rc<Shard>, client: &Rc<Client>) -> Result<(), Failure> {
    let reclaimed = reclaim::run(shard, Duration::ZERO).await?;
    client
        .send(ControlEvent::Reclaimed {
            bytes: reclaimed.bytes,
            chunks: reclaimed.chunks,
            segments: reclaimed.segments,
        })
        .await
}
