//! Small files, many at once: `PutSmall` ([`put`]) and `GetSmall` ([`get`]).
//!
//! A node that is alone in its network asks itself: that needs no quorum machinery, and the names of all files are read by
//! one question. With other nodes each file has its own reads and writes, many under way at once, so that what they send
//! shares frames and system calls.
//!
//! Requests of one connection follow each other; a client that hangs up leaves a put that runs to its end.

mod get;
mod put;

use std::pin::pin;
use std::rc::Rc;

use tokio::sync::{Semaphore, oneshot};

pub use self::get::read_contents;
pub use self::put::put_one;
use super::{Client, Failure, Requests, code, node_stops, vault_key};
use crate::catalog::CatalogError;
use crate::format::name::{Metadata, NameRecord};
use crate::format::{BucketId, NameId};
use crate::io::{BufferPool, spawn};
use crate::limits::{
    RECORD_HEAD_BYTES, SMALL_BUFFERS_PER_SHARD, SMALL_CHUNK_BYTES_MAX, SMALL_FAILURE_BYTES_MAX,
    SMALL_FETCHES_AT_ONCE_MAX, SMALL_FILES_MAX, SMALL_NAMES_AT_ONCE_MAX, SMALL_PUTS_AT_ONCE_MAX,
    SMALL_REQUESTS_GATHERED_MAX,
};
use crate::node::control::{ControlEvent, ControlRequest, SmallStored};
use crate::node::gather::Gather;
use crate::node::shard::Shard;
use crate::vault::PutResult;

/// Answers requests about small files until the client hangs up.
pub async fn serve(
    shard: &Rc<Shard>,
    client: &Rc<Client>,
    requests: &mut Requests,
    mut request: ControlRequest,
) -> Result<(), Failure> {
    let mut closed = pin!(client.stream.closed());
    loop {
        let event = match request {
            ControlRequest::PutSmall { bucket, no_dedup, no_clobber, files } => {
                check_count(files.len())?;
                let outcomes = put::put_files(shard, &bucket, no_dedup, no_clobber, files).await?;
                ControlEvent::StoredSmall { outcomes: outcomes.into_iter().map(told).collect() }
            }
            ControlRequest::GetSmall { targets, remote } => {
                check_count(targets.len())?;
                let stop = shard.node.stopping();
                let gone = async {
                    tokio::select! {
                        () = &mut closed => {}
                        () = stop.wait() => {}
                    }
                };
                match get::get_files(shard, targets, remote, gone).await {
                    Some(outcomes) => ControlEvent::FetchedSmall { outcomes },
                    None if shard.node.is_stopping() => return Err(node_stops()),
                    None => return Err(Failure::new(code::OTHER, "the command sends nothing any more")),
                }
            }
            _ => return Err(Failure::new(code::USAGE, "only small files can be put and got on this connection")),
        };
        client.send(event).await?;
        match client.next_request(requests, shard.node.stopping()).await? {
            Some(next) => request = next,
            None => return Ok(()),
        }
    }
}

fn check_count(count: usize) -> Result<(), Failure> {
    if count <= SMALL_FILES_MAX {
        return Ok(());
    }
    Err(Failure::new(code::USAGE, format!("{count} small files in one request: at most {SMALL_FILES_MAX}")))
}

fn told(outcome: Result<PutResult, Failure>) -> SmallStored {
    match outcome {
        Ok(result) => SmallStored::Stored { content: result.root, bytes: result.length, bytes_new: result.bytes_new },
        Err(failure) => {
            let Failure { code, message } = cut(failure);
            SmallStored::Failed { code, message }
        }
    }
}

/// As long as many of them fit an answer.
fn cut(Failure { code, mut message }: Failure) -> Failure {
    message.truncate(message.floor_char_boundary(SMALL_FAILURE_BYTES_MAX));
    Failure { code, message }
}

type Looked = Result<Option<NameRecord>, CatalogError>;

/// What a shard does for several requests together.
pub struct SmallWork {
    puts: Rc<Gather<put::Puts, Result<Vec<put::Outcome>, Failure>>>,
    names: Rc<Gather<(BucketId, NameId), Looked>>,
    /// That chunks are read to; who finds none makes one.
    buffers: BufferPool,
    /// A permit for each name that may be read by quorum at once.
    reads: Semaphore,
    /// A permit for each chunk that may be fetched from other nodes at once.
    pub fetches: Semaphore,
}

impl Default for SmallWork {
    fn default() -> Self {
        Self {
            puts: Gather::new(SMALL_PUTS_AT_ONCE_MAX, SMALL_REQUESTS_GATHERED_MAX),
            names: Gather::new(1, SMALL_REQUESTS_GATHERED_MAX),
            buffers: BufferPool::plain(SMALL_BUFFERS_PER_SHARD, RECORD_HEAD_BYTES + SMALL_CHUNK_BYTES_MAX),
            reads: Semaphore::new(SMALL_NAMES_AT_ONCE_MAX),
            fetches: Semaphore::new(SMALL_FETCHES_AT_ONCE_MAX),
        }
    }
}

/// A task that was started.
type InTask<T> = oneshot::Receiver<Result<T, Failure>>;

/// Starts a future as a task; its end is waited for by [`ended`].
fn in_task<T: 'static>(future: impl Future<Output = Result<T, Failure>> + 'static) -> InTask<T> {
    let (tell, told) = oneshot::channel();
    spawn(async move {
        let _ = tell.send(future.await);
    });
    told
}

/// One that has nothing to do.
fn settled<T>(outcome: T) -> InTask<T> {
    let (tell, told) = oneshot::channel();
    let _ = tell.send(Ok(outcome));
    told
}

async fn ended<T>(task: InTask<T>) -> Result<T, Failure> {
    task.await.unwrap_or_else(|_| Err(node_stops()))
}

/// The layout's number, if this node is the only one there is and ever was.
fn alone(shard: &Rc<Shard>) -> Option<u32> {
    let layouts = shard.node.layouts();
    let [layout] = layouts.active() else { return None };
    let [node] = layout.nodes() else { return None };
    (layouts.earlier().is_empty() && node.node == shard.node.id()).then(|| layout.number())
}

/// Whether a file is put like this: its metadata and length are known before its contents.
pub fn takes(length: u64, metadata: &Metadata) -> bool {
    length <= SMALL_CHUNK_BYTES_MAX as u64 && metadata.symlink_target.is_none()
}
