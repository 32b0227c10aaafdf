//! `verify` and `reclaim`: everything read and checked again, and the space of the dead given back.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::{Client, Failure, code, node_stops};
use crate::format::Address;
use crate::io::{JoinHandle, spawn};
use crate::limits::{PROGRESS_INTERVAL, REFERENCES_PER_PAGE_MAX};
use crate::node::control::ControlEvent;
use crate::node::mend::{self, Mended};
use crate::node::mend_log;
use crate::node::reclaim;
use crate::node::shard::Shard;
use crate::node::shared::lock;
use crate::store::{StoreError, VerifyReport};

/// Reads every record of every segment, then asks for every chunk that a living version refers to: what does not match,
/// or is not there, is fetched again from another holder. Ends when the client hangs up, and when the node stops.
pub async fn verify(shard: &Rc<Shard>, client: &Rc<Client>) -> Result<(), Failure> {
    // Whatever is dropped half-way here may be: peers' requests are, when they cancel.
    tokio::select! {
        outcome = verify_all(shard, client) => outcome,
        () = client.hung_up() => Err(Failure::new(code::OTHER, "the command has hung up")),
        () = async { shard.node.stopping().wait().await } => Err(node_stops().about("verify")),
    }
}

async fn verify_all(shard: &Rc<Shard>, client: &Rc<Client>) -> Result<(), Failure> {
    let total = shard.store.stats().chunks;
    let mut walk = Walk::start(shard);
    let mut tally = Tally::default();
    let report = loop {
        tokio::select! {
            biased;
            Some(damaged) = walk.damaged.recv() => tally.damage(shard, client, &damaged, "damaged").await?,
            report = &mut walk.end => break report.map_err(|_| node_stops().about("verify"))??,
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                let done = walk.done.get();
                client.send(ControlEvent::Verified { done, total: total.max(done) }).await?;
            }
        }
    };
    while let Ok(damaged) = walk.damaged.try_recv() {
        tally.damage(shard, client, &damaged, "damaged").await?;
    }
    let done = walk.done.get();
    find_missing(shard, client, &mut tally, ControlEvent::Verified { done, total: total.max(done) }).await?;
    tally.segments(shard, client).await?;
    tally.records(shard, client, &report).await?;
    let Tally { damaged, mended, left } = tally;
    let (chunks, bytes) = (report.chunks, report.bytes);
    client.send(ControlEvent::VerifyDone { chunks, bytes, damaged, mended, left }).await
}

/// The walk over the segments, in a task of its own, which ends with this.
struct Walk {
    done: Rc<Cell<u64>>,
    damaged: mpsc::UnboundedReceiver<Address>,
    end: oneshot::Receiver<Result<VerifyReport, StoreError>>,
    task: JoinHandle,
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Walk {
    fn start(shard: &Rc<Shard>) -> Self {
        let (tell, damaged) = mpsc::unbounded_channel();
        let (finished, end) = oneshot::channel();
        let done = Rc::new(Cell::new(0));
        let (store, counted) = (shard.store.clone(), done.clone());
        let task = spawn(async move {
            let report = store
                .verify(&mut |verified| {
                    counted.set(counted.get() + 1);
                    if !verified.ok {
                        let _ = tell.send(verified.address);
                    }
                })
                .await;
            let _ = finished.send(report);
        });
        Self { done, damaged, end, task }
    }
}

#[derive(Default)]
struct Tally {
    damaged: u64,
    mended: u64,
    left: u64,
}

impl Tally {
    async fn damage(
        &mut self,
        shard: &Rc<Shard>,
        client: &Rc<Client>,
        address: &Address,
        what: &str,
    ) -> Result<(), Failure> {
        self.damaged += 1;
        let (mended, message) = match mend::mend(shard, address).await {
            Ok(Mended::Fetched(from)) => (true, format!("{what}; fetched again from {from:?}")),
            Ok(Mended::Dropped) => (true, format!("{what}; nobody refers to it: dropped")),
            Err(reason) => (false, format!("{what}; {reason}")),
        };
        if mended {
            self.mended += 1
        } else {
            self.left += 1
        }
        client.send(ControlEvent::Damaged { address: *address, mended, message }).await
    }
}

impl Tally {
    fn count(&mut self, damaged: u64, mended: u64) {
        self.damaged += damaged;
        self.mended += mended;
        self.left += damaged - mended;
    }

    /// What opening the store found, and no record tells of any more.
    async fn segments(&mut self, shard: &Rc<Shard>, client: &Rc<Client>) -> Result<(), Failure> {
        let opened = &shard.node.opened;
        let mended = mend_log::mend_lost(shard).await?;
        // Now that what is known of them stands elsewhere: until then removing one could lose names.
        for file in &opened.unreadable {
            let way_out = match lock(&shard.node.doubt).is_settled(file) {
                true => "restore the file from a copy, or remove it",
                false => "restore the file from a copy",
            };
            let message = format!(
                "{file}: its header is damaged, and it is left as it is; what of it is known to be missing was fetched \
                 again where others hold it: {way_out}"
            );
            client.send(ControlEvent::Warning { message }).await?;
        }
        self.count(opened.unreadable.len() as u64, 0);
        if mended > 0 {
            let message = format!("{mended} blocks of the log were lost; what they may have held is written again");
            client.send(ControlEvent::Warning { message }).await?;
        }
        let lost = shard.node.lost_blocks();
        if lost > 0 {
            let message = format!("{lost} blocks of the log were lost, and nobody knows what they held");
            client.send(ControlEvent::Warning { message }).await?;
        }
        self.count(mended + lost, mended);
        let doubt = lock(&shard.node.doubt).reason();
        if let Some(message) = doubt {
            client.send(ControlEvent::Warning { message }).await?;
            self.count(1, 0);
        }
        Ok(())
    }

    /// Records without a chunk's payload.
    async fn records(&mut self, shard: &Rc<Shard>, client: &Rc<Client>, report: &VerifyReport) -> Result<(), Failure> {
        let mended = mend_log::mend_records(shard, &report.damaged).await?;
        if report.damaged_records > 0 {
            let message = format!(
                "{} records of names, references or deaths are damaged; {mended} of them are written again",
                report.damaged_records
            );
            client.send(ControlEvent::Warning { message }).await?;
        }
        self.count(report.damaged_records, mended);
        Ok(())
    }
}

/// Chunks that a living version refers to and that are not here: their segment was lost. `verified`: how far the walk came,
/// told again now and then, as a client that has hung up shows when it is told something.
async fn find_missing(
    shard: &Rc<Shard>,
    client: &Rc<Client>,
    tally: &mut Tally,
    verified: ControlEvent,
) -> Result<(), Failure> {
    let catalog = &shard.node.catalog;
    let (mut after_version, mut reported) = (None, Instant::now());
    loop {
        let versions = catalog.versions(after_version, REFERENCES_PER_PAGE_MAX).await?;
        let Some(last) = versions.last() else { return Ok(()) };
        after_version = Some(*last);
        for version in &versions {
            let mut after = None;
            loop {
                if reported.elapsed() >= PROGRESS_INTERVAL {
                    client.send(verified.clone()).await?;
                    reported = Instant::now();
                }
                let chunks = catalog.chunks_of(version, after, REFERENCES_PER_PAGE_MAX).await?;
                let Some(last) = chunks.last() else { break };
                after = Some(*last);
                for address in chunks.iter().filter(|address| !shard.store.contains(address)) {
                    // Several versions may refer to one chunk: it is missing once, under the first that lives.
                    let is_known = shard.store.is_quarantined(address);
                    if !is_known && catalog.first_reference(address).await? == Some(*version) {
                        tally.damage(shard, client, address, "missing").await?;
                    }
                }
            }
        }
    }
}

/// Gives back the space of everything without a living reference, now: the grace for running reads is skipped, local
/// readers' guards are not.
pub async fn reclaim(shard: &Rc<Shard>, client: &Rc<Client>) -> Result<(), Failure> {
    let (tell, told) = oneshot::channel();
    let own = shard.clone();
    // A task of its own, so that its client hears of a stop; it then goes on for as long as there is time.
    spawn(async move {
        let _ = tell.send(reclaim::run(&own, Duration::ZERO, usize::MAX).await);
    });
    let reclaimed = tokio::select! {
        outcome = told => outcome.unwrap_or_else(|_| Err(node_stops().about("reclaim")))?,
        () = async { shard.node.stopping().wait().await } => return Err(node_stops().about("reclaim")),
    };
    let doubt = lock(&shard.node.doubt).reason();
    if let Some(message) = doubt {
        client.send(ControlEvent::Warning { message }).await?;
    }
    client
        .send(ControlEvent::Reclaimed {
            bytes: reclaimed.bytes,
            chunks: reclaimed.chunks,
            segments: reclaimed.segments,
        })
        .await
}
