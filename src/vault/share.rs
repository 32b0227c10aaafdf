//! The part of a shard's buffers that puts and gets may hold.
//!
//! A chunk that a job waits for arrives in another buffer of the same pool, and so do the chunks of peers. If jobs could
//! take the whole pool (many at once, or a few whose pipes stand still), they would wait for what cannot arrive. So they
//! take a buffer only with one of [`JOB_BUFFERS_PER_SHARD`] permits. A shard is a thread, and its jobs share them.
//!
//! Some of those who hold one are sure to be done: with a disk, or with a node that answers or is given up. A pipe may
//! stand still for ever ([`Use::Stream`]). So of these permits, streams have at most [`STREAM_BUFFERS_PER_SHARD`]: the
//! rest is there for files however many streams stand still, and files may have them all while there are no streams.
//!
//! | holder                                       | waits for         | permits          |
//! |----------------------------------------------|-------------------|------------------|
//! | leaf of a file, or a node of any tree        | disks, nodes      | of the job       |
//! | leaf of a stream, fetched, stored or read    | disks, nodes, pipe| stream's, job's  |
//! | leaf of a stream that waits for its turn     | the leaf before   | stream's, job's, until the stream stands still (`get.rs`) |
//!
//! A stream's permit is taken before the job's. Who waits for the job's then waits for nothing but holders that are sure
//! to be done, or at most [`STREAM_BUFFERS_PER_SHARD`] others.
//!
//! A stream that stands still keeps one buffer, on one shard of the node: the one that the kernel writes from or reads
//! to. With [`STREAM_BUFFERS_PER_SHARD`] of them on one shard, a further stream waits for one to move on or to be ended.
//! The node's log says so.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::io::{Buffer, BufferPool};
use crate::limits::{JOB_BUFFERS_PER_SHARD, STREAM_BUFFERS_PER_SHARD, STREAM_STALL_MAX};

thread_local! {
    static PERMITS: Arc<Semaphore> = Arc::new(Semaphore::new(JOB_BUFFERS_PER_SHARD));
    static STREAM_PERMITS: Arc<Semaphore> = Arc::new(Semaphore::new(STREAM_BUFFERS_PER_SHARD));
}

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Nothing that waits for a pipe.
    File,
    /// The buffer may be held for as long as somebody else's pipe stands still.
    Stream,
}

/// Held for as long as the buffer that came with it is the job's.
pub struct Share {
    _permit: Option<OwnedSemaphorePermit>,
    _stream_permit: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// For a buffer that is of no pool.
    pub fn of_no_pool() -> Self {
        Self { _permit: None, _stream_permit: None }
    }
}

/// A buffer for a job of this shard. Waits in line for each permit and for the buffer; a stream that waits for the
/// permit of all holds that of streams, anybody else nothing but its place.
pub(super) async fn take(pool: &BufferPool, purpose: Use) -> (Buffer, Share) {
    let stream_permit = match purpose {
        Use::File => None,
        Use::Stream => stream_permit().await,
    };
    let permits = PERMITS.with(Arc::clone);
    // Refused only by a semaphore that was closed; this one never is.
    let permit = permits.acquire_owned().await.ok();
    (pool.take().await, Share { _permit: permit, _stream_permit: stream_permit })
}

async fn stream_permit() -> Option<OwnedSemaphorePermit> {
    let mut permit = std::pin::pin!(STREAM_PERMITS.with(Arc::clone).acquire_owned());
    let permit = match timeout(STREAM_STALL_MAX, &mut permit).await {
        Ok(permit) => permit,
        Err(_late) => {
            tracing::info!(
                streams = STREAM_BUFFERS_PER_SHARD,
                "a put or get of a stream waits: others that stand still, or are slow, have all buffers of streams"
            );
            permit.await
        }
    };
    permit.ok()
}

/// A buffer without waiting.
fn try_take(pool: &BufferPool, purpose: Use) -> Option<(Buffer, Share)> {
    let stream_permit = match purpose {
        Use::File => None,
        Use::Stream => Some(STREAM_PERMITS.with(Arc::clone).try_acquire_owned().ok()?),
    };
    let permit = PERMITS.with(Arc::clone).try_acquire_owned().ok()?;
    Some((pool.try_take()?, Share { _permit: Some(permit), _stream_permit: stream_permit }))
}

/// One buffer, and up to `count` altogether if they are free. Waits for one only: two jobs that waited for several
/// could each hold what the other lacks.
pub(super) async fn take_some(pool: &BufferPool, count: usize, purpose: Use) -> Vec<(Buffer, Share)> {
    let mut taken = vec![take(pool, purpose).await];
    while taken.len() < count
        && let Some(place) = try_take(pool, purpose)
    {
        taken.push(place);
    }
    taken
}
