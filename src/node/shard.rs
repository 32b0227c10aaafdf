//! One thread of the node: its ring, its buffers, its segment, its connections.
//!
//! Nothing in here crosses threads. What does is a [`Job`]: a function sent to a shard, which builds its future there,
//! next to the buffers and sockets that it will use.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use super::commands::{Sessions, SmallWork};
use super::connections::Connections;
use super::shared::Shared;
use super::small::Outbox;
use crate::cluster::Latencies;
use crate::io::BufferPool;
use crate::store::{RingDisk, Store};

pub type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Work for another thread: made here, run there.
pub type Job = Box<dyn FnOnce(Rc<Shard>) -> LocalFuture + Send>;

pub struct Shard {
    pub index: usize,
    pub node: Arc<Shared>,
    pub store: Store<RingDisk>,
    pub pool: BufferPool,
    pub connections: Connections,
    /// Small chunks that wait to be sent.
    pub outbox: Outbox,
    /// Requests about small files that are answered together.
    pub small: SmallWork,
    /// Connections of commands.
    pub sessions: Rc<Sessions>,
    /// How fast each peer usually answers this shard.
    pub latencies: RefCell<Latencies>,
    /// Buffers that answers to peers may hold: never all, or two busy nodes would refuse each other's payloads.
    pub answers: Arc<Semaphore>,
}

impl Shard {
    /// Runs what other threads send, each job a task of its own, until the node stops.
    pub async fn run_jobs(self: &Rc<Self>, mut jobs: mpsc::UnboundedReceiver<Job>) {
        while let Some(job) = jobs.recv().await {
            crate::io::spawn(job(self.clone()));
        }
    }
}

/// Sends a job to shard `index`; a node that is stopping drops it.
pub fn send_job<F, Fut>(node: &Shared, index: usize, work: F)
where
    F: FnOnce(Rc<Shard>) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    if let Some(shard) = node.shards.get(index % node.shards.len()) {
        let job: Job = Box::new(move |shard| Box::pin(work(shard)));
        if shard.send(job).is_err() {
            tracing::debug!(index, "shard has stopped: job dropped");
        }
    }
}
