//! The part of a shard's buffers that puts and gets may hold.
//!
//! A chunk that a job waits for arrives in another buffer of the same pool, and so do the chunks of peers. If jobs could
//! take the whole pool (many at once, or a few whose pipes stand still), they would wait for what cannot arrive. So they
//! take a buffer only with one of [`JOB_BUFFERS_PER_SHARD`] permits. A shard is a thread, and its jobs share them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::io::{Buffer, BufferPool};
use crate::limits::JOB_BUFFERS_PER_SHARD;

thread_local! {
    static PERMITS: Arc<Semaphore> = Arc::new(Semaphore::new(JOB_BUFFERS_PER_SHARD));
}

/// Held for as long as the buffer that came with it is the job's.
pub struct Share {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// For a buffer that is of no pool.
    pub fn of_no_pool() -> Self {
        Self { _permit: None }
    }
}

/// A buffer for a job of this shard. Waits in line twice, holding nothing but its place.
pub(super) async fn take(pool: &BufferPool) -> (Buffer, Share) {
    let permits = PERMITS.with(Arc::clone);
    // Refused only by a semaphore that was closed; this one never is.
    let permit = permits.acquire_owned().await.ok();
    (pool.take().await, Share { _permit: permit })
}

/// One buffer, and up to `count` altogether if they are free. Waits for one only: two jobs that waited for several
/// could each hold what the other lacks.
pub(super) async fn take_some(pool: &BufferPool, count: usize) -> Vec<(Buffer, Share)> {
    let mut taken = vec![take(pool).await];
    let permits = PERMITS.with(Arc::clone);
    while taken.len() < count
        && let Ok(permit) = permits.clone().try_acquire_owned()
        && let Some(buffer) = pool.try_take()
    {
        taken.push((buffer, Share { _permit: Some(permit) }));
    }
    taken
}
