//! Streams whose other end stands still, beside jobs that have nothing to do with them.

use std::io::{PipeReader, PipeWriter};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::sleep;

use super::*;
use crate::limits::{CHUNKS_IN_FLIGHT_PER_SHARD, JOB_BUFFERS_PER_SHARD, STREAM_BUFFERS_PER_SHARD, STREAM_STALL_MAX};
use crate::vault::share::{self, Use};

/// Some that no job may take.
const BUFFERS: usize = JOB_BUFFERS_PER_SHARD + 5;
const STREAM_CHUNKS: usize = 14;

/// Waits until so many buffers are out, and it stays so.
async fn held(pool: &BufferPool, count: usize) {
    let mut rounds = 0;
    while rounds < 20 {
        rounds = if BUFFERS - pool.available() == count { rounds + 1 } else { 0 };
        sleep(Duration::from_millis(5)).await;
    }
}

type Task<T> = oneshot::Receiver<T>;

/// Runs beside the caller, and keeps what comes of it.
fn start<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    let (sender, receiver) = oneshot::channel();
    drop(spawn(async move { drop(sender.send(future.await)) }));
    receiver
}

/// A get that nobody reads yet.
struct Paused {
    reader: PipeReader,
    job: Arc<GetJob>,
    task: Task<Result<GetResult, GetError>>,
}

fn run(job: &Arc<GetJob>, chunks: &Arc<Chunks>, pool: &BufferPool) -> Task<Result<GetResult, GetError>> {
    let (job, chunks, pool) = (Arc::clone(job), Arc::clone(chunks), pool.clone());
    start(async move { run_get_on(&job, &chunks, 0, pool).await.unwrap() })
}

fn paused(file: &PutResult, chunks: &Arc<Chunks>, pool: &BufferPool) -> Paused {
    let (reader, writer) = std::io::pipe().unwrap();
    let job = GetJob::new(get_options(file, None, Output::Stream(writer.into()), CHUNKS_IN_FLIGHT_PER_SHARD));
    let task = run(&job, chunks, pool);
    Paused { reader, job, task }
}

fn read(mut reader: PipeReader, len: usize) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = vec![0; len];
        reader.read_exact(&mut bytes).unwrap();
        bytes
    })
}

/// All go on, and get the right bytes.
async fn resume(streams: Vec<Paused>, bytes: &[u8]) {
    let (reading, tasks): (Vec<_>, Vec<_>) =
        streams.into_iter().map(|stream| (read(stream.reader, bytes.len()), stream.task)).unzip();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap().bytes_written, bytes.len() as u64);
    }
    assert!(reading.into_iter().all(|reader| reader.join().unwrap() == bytes));
}

/// A put and a get of a file, wider than all buffers.
async fn file_there_and_back(chunks: &Arc<Chunks>, pool: &BufferPool) {
    let bytes = content(2 * BUFFERS * CHUNK + 7, 50);
    let put = put_job(Input::of(file_of(&bytes).into()), 64);
    let file = run_put_on(&put, chunks, 0, pool.clone()).await.unwrap().unwrap();
    let output = tempfile::tempfile().unwrap();
    let fd = OwnedFd::from(output.try_clone().unwrap());
    let get = GetJob::new(get_options(&file, None, Output::File(fd), CHUNKS_IN_FLIGHT_PER_SHARD));
    run_get_on(&get, chunks, 0, pool.clone()).await.unwrap().unwrap();
    assert!(all_of(output) == bytes);
}

#[test]
fn two_paused_readers_leave_room_for_files() {
    let bytes = content(STREAM_CHUNKS * CHUNK, 44);
    let (chunks, file) = stored(&bytes);
    on_shards(1, BUFFERS, async |_, pool| {
        let streams: Vec<_> = (0..2).map(|_| paused(&file, &chunks, &pool)).collect();
        // Each has its node, and together they have taken what streams may have.
        while chunks.fetched().len() < 2 + STREAM_BUFFERS_PER_SHARD {
            yield_now().await;
        }
        file_there_and_back(&chunks, &pool).await;
        resume(streams, &bytes).await;
        Some(())
    });
}

#[test]
fn a_paused_stream_keeps_one_buffer_and_others_go_on() {
    let bytes = content(STREAM_CHUNKS * CHUNK + 9, 45);
    let (chunks, file) = stored(&bytes);
    on_shards(1, BUFFERS, async |_, pool| {
        let most = STREAM_BUFFERS_PER_SHARD - 1;
        let streams: Vec<_> = (0..most).map(|_| paused(&file, &chunks, &pool)).collect();
        held(&pool, most).await;
        // Through the one permit that is left.
        resume(vec![paused(&file, &chunks, &pool)], &bytes).await;
        let put = put_job(Input::of(pipe_with(&bytes).into()), 64);
        assert_eq!(run_put_on(&put, &chunks, 0, pool.clone()).await.unwrap().unwrap().root, file.root);
        held(&pool, most).await;
        resume(streams, &bytes).await;
        Some(())
    });
}

#[test]
fn more_paused_streams_than_permits_still_let_files_through() {
    let bytes = content(STREAM_CHUNKS * CHUNK, 46);
    let (chunks, file) = stored(&bytes);
    on_shards(1, BUFFERS, async |_, pool| {
        let streams: Vec<_> = (0..STREAM_BUFFERS_PER_SHARD + 3).map(|_| paused(&file, &chunks, &pool)).collect();
        held(&pool, STREAM_BUFFERS_PER_SHARD).await;
        sleep(3 * STREAM_STALL_MAX).await;
        held(&pool, STREAM_BUFFERS_PER_SHARD).await;
        file_there_and_back(&chunks, &pool).await;
        resume(streams, &bytes).await;
        Some(())
    });
}

/// A pipe that somebody writes these bytes to, and closes.
fn pipe_with(bytes: &[u8]) -> PipeReader {
    let (reader, writer) = std::io::pipe().unwrap();
    write(writer, bytes.to_vec());
    reader
}

fn write(mut writer: PipeWriter, bytes: Vec<u8>) {
    std::thread::spawn(move || writer.write_all(&bytes).unwrap());
}

#[test]
fn more_silent_inputs_than_permits_still_let_files_through() {
    let bytes = content(2 * CHUNK + 1, 47);
    let (chunks, file) = stored(&bytes);
    on_shards(1, BUFFERS, async |_, pool| {
        let (writers, puts): (Vec<_>, Vec<_>) = (0..STREAM_BUFFERS_PER_SHARD + 3)
            .map(|_| {
                let (reader, writer) = std::io::pipe().unwrap();
                let (put, chunks, pool) = (put_job(Input::of(reader.into()), 64), Arc::clone(&chunks), pool.clone());
                (writer, start(async move { run_put_on(&put, &chunks, 0, pool).await.unwrap() }))
            })
            .unzip();
        held(&pool, STREAM_BUFFERS_PER_SHARD).await;
        file_there_and_back(&chunks, &pool).await;
        writers.into_iter().for_each(|writer| write(writer, bytes.clone()));
        for put in puts {
            assert_eq!(put.await.unwrap().unwrap().root, file.root);
        }
        Some(())
    });
}

#[test]
fn streams_that_wait_for_others_can_be_cancelled() {
    let (chunks, file) = stored(&content(STREAM_CHUNKS * CHUNK, 48));
    on_shards(1, BUFFERS, async |_, pool| {
        let streams: Vec<_> = (0..STREAM_BUFFERS_PER_SHARD).map(|_| paused(&file, &chunks, &pool)).collect();
        sleep(3 * STREAM_STALL_MAX).await;
        held(&pool, STREAM_BUFFERS_PER_SHARD).await;
        let late = paused(&file, &chunks, &pool);
        let (silent, _writer) = std::io::pipe().unwrap();
        let put = put_job(Input::of(silent.into()), 64);
        let putting = start({
            let (put, chunks, pool) = (Arc::clone(&put), Arc::clone(&chunks), pool.clone());
            async move { run_put_on(&put, &chunks, 0, pool).await.unwrap() }
        });
        held(&pool, STREAM_BUFFERS_PER_SHARD).await;
        late.job.cancel();
        put.cancel();
        // Their lanes have ended too, while all others stand still.
        assert!(matches!(late.task.await.unwrap(), Err(GetError::Cancelled)));
        assert!(matches!(putting.await.unwrap(), Err(PutError::Cancelled)));
        for stream in streams {
            drop(stream.reader);
            assert!(matches!(stream.task.await.unwrap(), Err(GetError::OutputClosed)));
        }
        Some(())
    });
}

#[test]
fn a_put_that_is_cancelled_leaves_its_stream_to_others() {
    let (reader, writer) = std::io::pipe().unwrap();
    on_shards(1, BUFFERS, async |_, pool| {
        let (put, chunks) = (put_job(Input::of(reader.try_clone().unwrap().into()), 64), Chunks::new());
        let putting = start({
            let (put, pool) = (Arc::clone(&put), pool.clone());
            async move { run_put_on(&put, &chunks, 0, pool).await.unwrap() }
        });
        // In the middle of a leaf.
        (&writer).write_all(b"taken").unwrap();
        held(&pool, 1).await;
        put.cancel();
        assert!(matches!(putting.await.unwrap(), Err(PutError::Cancelled)), "though nothing comes");
        held(&pool, 0).await;
        (&writer).write_all(b"left").unwrap();
        Some(())
    });
    let mut rest = [0; 4];
    (&reader).read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"left");
}

#[test]
fn a_paused_stream_keeps_one_buffer_of_all_shards() {
    const SHARDS: usize = 3;
    let bytes = content(60 * CHUNK + 5, 49);
    let (chunks, file) = stored(&bytes);
    let (reader, writer) = std::io::pipe().unwrap();
    let job = GetJob::new(get_options(&file, None, Output::Stream(writer.into()), CHUNKS_IN_FLIGHT_PER_SHARD));
    let out: [AtomicUsize; SHARDS] = Default::default();
    // The pipe's end, and then the thread that reads it.
    let reading = Mutex::new((Some(reader), None));
    let lanes = SHARDS * CHUNKS_IN_FLIGHT_PER_SHARD;
    let result = on_shards(SHARDS, BUFFERS, async |shard, pool| {
        let working = start({
            let (job, chunks, pool) = (Arc::clone(&job), Arc::clone(&chunks), pool.clone());
            async move { run_get_on(&job, &chunks, shard, pool).await }
        });
        // All that can be fetched was; then all but one buffer come back.
        let is_read = || {
            out[shard].store(BUFFERS - pool.available(), Ordering::SeqCst);
            let all: usize = out.iter().map(|count| count.load(Ordering::SeqCst)).sum();
            let mut reading = reading.lock().unwrap();
            if chunks.fetched().len() > lanes && all == 1 && reading.1.is_none() {
                assert_eq!(chunks.fetched().len(), lanes + 1);
                reading.1 = reading.0.take().map(|reader| read(reader, bytes.len()));
            }
            reading.1.is_some()
        };
        while !is_read() {
            sleep(Duration::from_millis(5)).await;
        }
        working.await.unwrap()
    });
    assert_eq!(result.unwrap().bytes_written, bytes.len() as u64);
    assert!(reading.into_inner().unwrap().1.unwrap().join().unwrap() == bytes);
    let leaves = 61;
    let fetched_twice = chunks.fetched().len() - leaves - 1;
    assert!(fetched_twice > 0, "what was given back is fetched again");
}

/// Stores a chunk only when it is let through.
struct Gate {
    passes: Semaphore,
    door: Door,
}

impl ChunkSink for Gate {
    async fn store(
        &self,
        address: Address,
        buffer: Buffer,
        len: usize,
        version: VersionId,
        share: Share,
    ) -> Result<Stored, ChunkError> {
        self.passes.acquire().await.unwrap().forget();
        self.door.store(address, buffer, len, version, share).await
    }
}

#[test]
fn a_put_with_many_lanes_stands_in_line_for_a_buffer_once() {
    on_shards(1, BUFFERS, async |_, pool| {
        let chunks = Chunks::new();
        let bytes = content(3 * JOB_BUFFERS_PER_SHARD * CHUNK, 51);
        let job = put_job(Input::of(file_of(&bytes).into()), 2 * JOB_BUFFERS_PER_SHARD);
        let sink = Rc::new(Gate { passes: Semaphore::new(0), door: Door(Arc::clone(&chunks)) });
        let put = {
            let (job, pool, sink) = (Arc::clone(&job), pool.clone(), Rc::clone(&sink));
            start(async move {
                let (worker_job, worker_pool, worker_sink) = (Arc::clone(&job), pool.clone(), Rc::clone(&sink));
                let worker = spawn(async move { worker_job.work(&worker_pool, &worker_sink).await });
                let result = job.finish(&pool, &sink).await;
                worker.await.unwrap();
                result
            })
        };
        held(&pool, JOB_BUFFERS_PER_SHARD).await;
        let own_pool = pool.clone();
        let other = start(async move { share::take(&own_pool, Use::File).await });
        yield_now().await;
        // The first buffer that comes back is for the lane that is in line already, the second for the other job.
        sink.passes.add_permits(2);
        drop(other.await.unwrap());
        sink.passes.add_permits(bytes.len());
        assert_eq!(put.await.unwrap().unwrap().length, bytes.len() as u64);
        Some(())
    });
}
