//! A store in memory, and jobs run over it by real rings on several threads.

mod get;
mod jobs;
mod put;
mod stalls;
mod tree;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::crypto::cipher::{ScopeKey, seal_chunk};
use crate::io::{BufferPool, Ring, RingOptions, spawn, yield_now};
use crate::limits::{CHUNK_BYTES_MAX, DIRECT_OUTPUT_BYTES_MIN};

const CHUNK: usize = CHUNK_BYTES_MAX;

/// Bytes that depend on the seed and never repeat.
fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn scope() -> ScopeKey {
    ScopeKey::from_bytes(&[7; 32])
}

type Hook = Box<dyn Fn(usize) -> Result<(), ChunkError> + Send + Sync>;
/// From address, attempt and the right bytes to those that are delivered.
type Lie = Box<dyn Fn(&Address, u32, &mut Vec<u8>) -> Result<(), ChunkError> + Send + Sync>;

/// Chunks by address.
#[derive(Default)]
struct Chunks {
    by_address: Mutex<HashMap<Address, Vec<u8>>>,
    stores: AtomicUsize,
    fetches: Mutex<Vec<Address>>,
    damaged: AtomicUsize,
    /// Called with the number of each store.
    on_store: Option<Hook>,
    lie: Option<Lie>,
}

impl Chunks {
    fn new() -> Arc<Chunks> {
        Arc::default()
    }

    fn bytes(&self, address: &Address) -> Option<Vec<u8>> {
        self.by_address.lock().unwrap().get(address).cloned()
    }

    fn count(&self) -> usize {
        self.by_address.lock().unwrap().len()
    }

    fn fetched(&self) -> Vec<Address> {
        self.fetches.lock().unwrap().clone()
    }

    /// Seals a chunk as somebody with any key could, whatever it says.
    fn forge(&self, level: u8, plaintext: &[u8]) -> (Address, ChunkKey) {
        let mut chunk = plaintext.to_vec();
        chunk.resize(plaintext.len().max(32), 0);
        let (address, key) = seal_chunk(&scope(), level, &mut chunk, plaintext.len());
        self.by_address.lock().unwrap().insert(address, chunk);
        (address, key)
    }

    /// The same chunks with other manners.
    fn with_lie(&self, lie: Lie) -> Arc<Chunks> {
        let by_address = Mutex::new(self.by_address.lock().unwrap().clone());
        Arc::new(Chunks { by_address, lie: Some(lie), ..Chunks::default() })
    }
}

/// One thread's way to the chunks. Chunks take different times, so that they finish in another order.
struct Door(Arc<Chunks>);

async fn dawdle(address: &Address) {
    for _ in 0..address.0[0] % 7 {
        yield_now().await;
    }
}

impl ChunkSink for Door {
    async fn store(
        &self,
        address: Address,
        buffer: Buffer,
        len: usize,
        version: VersionId,
        _share: Share,
    ) -> Result<Stored, ChunkError> {
        assert_eq!(version, VersionId::new(1, 2, [3; 8]));
        if let Some(hook) = &self.0.on_store {
            hook(self.0.stores.fetch_add(1, Ordering::SeqCst))?;
        }
        dawdle(&address).await;
        let bytes = buffer.as_slice()[RECORD_HEAD_BYTES..][..len].to_vec();
        assert_eq!(crate::crypto::hash::address_of(&bytes), address, "a chunk is stored under its address");
        Ok(Stored { new: self.0.by_address.lock().unwrap().insert(address, bytes).is_none() })
    }
}

impl ChunkSource for Door {
    async fn fetch(
        &self,
        address: Address,
        len: usize,
        mut buffer: Buffer,
        attempt: u32,
    ) -> Result<Fetched, ChunkError> {
        self.0.fetches.lock().unwrap().push(address);
        let mut bytes = self.0.bytes(&address).ok_or(ChunkError::NotFound { address })?;
        dawdle(&address).await;
        if let Some(lie) = &self.0.lie {
            lie(&address, attempt, &mut bytes)?;
        }
        bytes.resize(len, 0);
        buffer.as_mut_slice()[RECORD_HEAD_BYTES..][..len].copy_from_slice(&bytes);
        Ok(Fetched::Unchecked(buffer, Turn::none()))
    }

    fn damaged(&self, _address: &Address) {
        self.0.damaged.fetch_add(1, Ordering::SeqCst);
    }
}

/// Runs `each` on every shard thread with a pool of its own, and returns what the first one's returns. All buffers
/// must be back at the end.
fn on_shards<T: Send>(
    shards: usize,
    buffers: usize,
    each: impl AsyncFn(usize, BufferPool) -> Option<T> + Send + Sync,
) -> T {
    let run = |shard: usize| {
        Ring::new(&RingOptions::default()).unwrap().block_on(async {
            let pool = BufferPool::new(buffers).unwrap();
            let output = each(shard, pool.clone()).await;
            assert_eq!(pool.available(), buffers, "a buffer of shard {shard} is still out");
            output
        })
    };
    std::thread::scope(|threads| {
        let run = &run;
        let all: Vec<_> = (0..shards).map(|shard| threads.spawn(move || run(shard))).collect();
        let mut outputs = all.into_iter().map(|thread| thread.join().unwrap());
        let first = outputs.next().unwrap().unwrap();
        outputs.for_each(drop);
        first
    })
}

#[derive(Clone, Copy)]
struct Shape {
    shards: usize,
    buffers: usize,
    width: usize,
}

const WIDE: Shape = Shape { shards: 3, buffers: 6, width: 4 };
const NARROW: Shape = Shape { shards: 1, buffers: 1, width: 1 };
/// More lanes than buffers.
const CROWDED: Shape = Shape { shards: 2, buffers: 2, width: 8 };

fn put_job(input: Input, width: usize) -> Arc<PutJob> {
    PutJob::new(input, PutOptions { scope: scope(), version: VersionId::new(1, 2, [3; 8]), width })
}

async fn run_put_on(
    job: &Arc<PutJob>,
    chunks: &Arc<Chunks>,
    shard: usize,
    pool: BufferPool,
) -> Option<Result<PutResult, PutError>> {
    let sink = Rc::new(Door(Arc::clone(chunks)));
    if shard > 0 {
        job.work(&pool, &sink).await;
        return None;
    }
    let (worker_job, worker_pool, worker_sink) = (Arc::clone(job), pool.clone(), Rc::clone(&sink));
    let worker = spawn(async move { worker_job.work(&worker_pool, &worker_sink).await });
    let result = job.finish(&pool, &sink).await;
    worker.await.unwrap();
    Some(result)
}

fn run_put(job: &Arc<PutJob>, chunks: &Arc<Chunks>, shape: Shape) -> Result<PutResult, PutError> {
    on_shards(shape.shards, shape.buffers, async |shard, pool| run_put_on(job, chunks, shard, pool).await)
}

fn put_file(file: File, chunks: &Arc<Chunks>, shape: Shape) -> Result<PutResult, PutError> {
    run_put(&put_job(Input::of(file.into()), shape.width), chunks, shape)
}

/// Through a pipe, in pieces of these sizes, round and round.
fn put_stream(bytes: &[u8], pieces: &[usize], chunks: &Arc<Chunks>, shape: Shape) -> Result<PutResult, PutError> {
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::thread::scope(|threads| {
        threads.spawn(move || {
            let mut rest = bytes;
            for size in pieces.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at(rest.len().min(*size));
                writer.write_all(piece).unwrap();
                rest = after;
            }
        });
        run_put(&put_job(Input::of(reader.into()), shape.width), chunks, shape)
    })
}

fn stored(bytes: &[u8]) -> (Arc<Chunks>, PutResult) {
    let chunks = Chunks::new();
    let result = put_file(file_of(bytes), &chunks, WIDE).unwrap();
    (chunks, result)
}

fn get_options(file: &PutResult, range: Option<Range<u64>>, output: Output, width: usize) -> GetOptions {
    GetOptions {
        root: file.root,
        root_key: file.root_key.clone(),
        depth: file.depth,
        length: file.length,
        range,
        output,
        resume: false,
        width,
    }
}

async fn run_get_on(
    job: &Arc<GetJob>,
    chunks: &Arc<Chunks>,
    shard: usize,
    pool: BufferPool,
) -> Option<Result<GetResult, GetError>> {
    let source = Rc::new(Door(Arc::clone(chunks)));
    if shard > 0 {
        job.work(&pool, &source).await;
        return None;
    }
    let (worker_job, worker_pool, worker_source) = (Arc::clone(job), pool.clone(), Rc::clone(&source));
    let worker = spawn(async move { worker_job.work(&worker_pool, &worker_source).await });
    let result = job.walk(&pool, &source).await;
    worker.await.unwrap();
    Some(result)
}

fn run_get(job: &Arc<GetJob>, chunks: &Arc<Chunks>, shape: Shape) -> Result<GetResult, GetError> {
    on_shards(shape.shards, shape.buffers, async |shard, pool| run_get_on(job, chunks, shard, pool).await)
}

fn all_of(mut file: File) -> Vec<u8> {
    use std::io::Seek;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What came, and what came of it.
type Got = (Vec<u8>, Result<GetResult, GetError>);

fn get_file(file: &PutResult, range: Option<Range<u64>>, chunks: &Arc<Chunks>, shape: Shape) -> Got {
    let output = tempfile::tempfile().unwrap();
    let fd = OwnedFd::from(output.try_clone().unwrap());
    let job = GetJob::new(get_options(file, range, Output::File(fd), shape.width));
    let result = run_get(&job, chunks, shape);
    (all_of(output), result)
}

fn get_stream(file: &PutResult, range: Option<Range<u64>>, chunks: &Arc<Chunks>, shape: Shape) -> Got {
    let (mut reader, writer) = std::io::pipe().unwrap();
    std::thread::scope(|threads| {
        let reading = threads.spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let job = GetJob::new(get_options(file, range, Output::Stream(writer.into()), shape.width));
        let result = run_get(&job, chunks, shape);
        // The job holds the pipe's writing end.
        drop(job);
        (reading.join().unwrap(), result)
    })
}
