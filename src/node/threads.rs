//! The threads of a node beside the first, each with a ring of its own.
//!
//! | thread | what runs there |
//! | --- | --- |
//! | `shard-1` and up | a shard: the same as on the first thread, without what is there once per node |
//! | `committer` | the one writer of small records ([`SmallRecords`]) |
//!
//! The committer was a task of shard 0 before. There it waited, and with it whoever waits for a small record on any thread,
//! until each request that shard 0 had in work had computed for up to half a millisecond. Measured with `put -r` of 100,000
//! files of 4 KiB on two cores: 0.93 and 0.965 of the time so, for the same CPU time; 128 writers of single values
//! need 4 % more CPU time, since both shards are woken by another thread now.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::connections::Connections;
use super::shard::{Job, Shard};
use super::shared::Shared;
use super::start::{listen, start_shard, stop_shard};
use super::{NodeError, log};
use crate::io::{BufferPool, Ring, RingOptions, spawn};
use crate::limits::{ANSWER_BUFFERS_PER_SHARD, BUFFERS_PER_SHARD, COMMITTER_RING_ENTRIES};
use crate::store::{Backpressure, Observer, RingDisk, SmallRecords, Store};

/// A thread that was started.
pub struct Thread(oneshot::Receiver<Result<(), NodeError>>);

impl Thread {
    /// Stops the node when it ends, however it does: without it, the others can do nothing any more.
    fn start(
        name: String,
        node: &Arc<Shared>,
        run: impl FnOnce(&Arc<Shared>) -> Result<(), NodeError> + Send + 'static,
    ) -> Result<Self, NodeError> {
        let (done, ended) = oneshot::channel();
        let stops = StopsNode(node.clone());
        let of_thread = name.clone();
        std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                let outcome = run(&stops.0);
                if let Err(error) = &outcome {
                    tracing::error!(thread = of_thread, %error, "a thread cannot run");
                }
                let _ = done.send(outcome);
            })
            .map_err(|source| NodeError::Io { what: "starting a thread", source })?;
        Ok(Self(ended))
    }

    pub async fn ended(self) -> Result<(), NodeError> {
        self.0.await.unwrap_or(Err(NodeError::ThreadLost))
    }
}

struct StopsNode(Arc<Shared>);

impl Drop for StopsNode {
    fn drop(&mut self) {
        self.0.stop.begin();
    }
}

/// The threads of shards 1 and up; each takes its jobs from one of `jobs`.
pub fn start_shards(
    node: &Arc<Shared>,
    jobs: impl Iterator<Item = mpsc::UnboundedReceiver<Job>>,
) -> Result<Vec<Thread>, NodeError> {
    let start = |(index, jobs)| Thread::start(format!("shard-{index}"), node, move |node| run_shard(index, node, jobs));
    (1..).zip(jobs).map(start).collect()
}

fn run_shard(index: usize, node: &Arc<Shared>, jobs: mpsc::UnboundedReceiver<Job>) -> Result<(), NodeError> {
    let mut ring = Ring::new(&RingOptions::default())?;
    ring.block_on(async {
        let listener = Rc::new(listen(node.listen)?);
        let shard = attach(index, node)?;
        start_shard(&shard, &listener, jobs);
        node.stopping().wait().await;
        stop_shard(&shard, &listener).await;
        shard.store.close().await?;
        Ok(())
    })
}

/// Makes shard `index`, on the thread that calls.
pub fn attach(index: usize, node: &Arc<Shared>) -> Result<Rc<Shard>, NodeError> {
    let pool = BufferPool::new(BUFFERS_PER_SHARD)
        .map_err(|source| NodeError::Io { what: "allocating the buffers", source })?;
    let (observer, backpressure) = to_catalog(node);
    let spawn = |task| drop(spawn(task));
    let store = Store::attach_with(node.store.clone(), disk(node)?, index, observer, backpressure, spawn);
    Ok(Rc::new(Shard {
        index,
        node: node.clone(),
        store,
        pool,
        connections: Connections::default(),
        outbox: Default::default(),
        small: Default::default(),
        sessions: Default::default(),
        latencies: Default::default(),
        answers: Arc::new(Semaphore::new(ANSWER_BUFFERS_PER_SHARD)),
    }))
}

/// The thread that writes small records, until shard 0 has closed the store. It runs when this returns.
pub async fn start_committer(node: &Arc<Shared>) -> Result<Thread, NodeError> {
    let (ready, is_ready) = oneshot::channel();
    let records = SmallRecords::of(&node.store);
    let thread = Thread::start("committer".to_owned(), node, move |node| {
        let mut ring = Ring::new(&RingOptions { entries: COMMITTER_RING_ENTRIES })?;
        ring.block_on(async {
            let disk = disk(node)?;
            let _ = ready.send(());
            let (observer, backpressure) = to_catalog(node);
            records.commit(node.store.clone(), disk, observer, backpressure, |task| drop(spawn(task))).await;
            Ok(())
        })
    })?;
    match is_ready.await {
        Ok(()) => Ok(thread),
        Err(_) => Err(thread.ended().await.err().unwrap_or(NodeError::ThreadLost)),
    }
}

fn disk(node: &Arc<Shared>) -> Result<RingDisk, NodeError> {
    RingDisk::new(&node.config.data_dir).map_err(|source| NodeError::Io { what: "opening the data directory", source })
}

fn to_catalog(node: &Arc<Shared>) -> (Observer, Backpressure) {
    let catalog = node.catalog.clone();
    (Rc::new(move |applied| log::observe(&catalog, applied)), log::backpressure(&node.catalog))
}
