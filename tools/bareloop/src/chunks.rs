//! Sealing and opening 1 MiB chunks on many threads, and nothing else.
//!
//! Each thread walks over chunks of its own, together more than a second-level cache holds, as chunks come from a disk.
//! All threads seal; all wait; all open; all wait: only ciphertext can be opened, so one direction prepares the other,
//! and each is timed by itself. What comes out must be what went in.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use gabion::crypto::cipher::{ScopeKey, open_chunk, seal_chunk};
use gabion::io::Buffer;
use gabion::limits::MIB;
use serde_json::{Value, json};

const CHUNKS_PER_THREAD: usize = 64;

/// Time of one direction.
#[derive(Default)]
struct Spent {
    wall: Duration,
    cpu: Duration,
}

struct Worker {
    chunks: Vec<Buffer>,
    scope: ScopeKey,
    seal: Spent,
    open: Spent,
}

impl Worker {
    fn new(number: usize) -> Self {
        let chunk = |chunk: usize| {
            let mut buffer = Buffer::heap(MIB);
            let seed = (number * CHUNKS_PER_THREAD + chunk) as u64;
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(buffer.as_mut_slice());
            buffer
        };
        Self {
            chunks: (0..CHUNKS_PER_THREAD).map(chunk).collect(),
            scope: ScopeKey::from_bytes(&[9; 32]),
            seal: Spent::default(),
            open: Spent::default(),
        }
    }

    fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for chunk in &self.chunks {
            hasher.update(chunk.as_slice());
        }
        hasher.finalize()
    }

    /// Seals and opens everything `rounds` times.
    fn run(&mut self, rounds: usize, barrier: &Barrier) -> Result<(), String> {
        let before = self.digest();
        let mut failed = None;
        for _ in 0..rounds {
            let mut sealed = Vec::with_capacity(self.chunks.len());
            self.seal.time(barrier, || {
                for chunk in &mut self.chunks {
                    sealed.push(seal_chunk(&self.scope, 0, chunk.as_mut_slice(), MIB));
                }
            });
            self.open.time(barrier, || {
                for (chunk, (address, key)) in self.chunks.iter_mut().zip(&sealed) {
                    if let Err(error) = open_chunk(chunk.as_mut_slice(), address, key) {
                        failed.get_or_insert(error.to_string());
                    }
                }
            });
        }
        // Only now: who leaves early keeps all others waiting.
        match failed {
            Some(message) => Err(message),
            None if self.digest() != before => Err("what was sealed did not open to what it was".to_owned()),
            None => Ok(()),
        }
    }
}

impl Spent {
    /// The wall clock runs until the slowest thread is through.
    fn time(&mut self, barrier: &Barrier, work: impl FnOnce()) {
        barrier.wait();
        let (start, cpu) = (Instant::now(), cpu_time());
        work();
        self.cpu += cpu_time().saturating_sub(cpu);
        barrier.wait();
        self.wall += start.elapsed();
    }
}

pub fn run(mib: usize, threads: usize) -> Result<Value, String> {
    let rounds = mib.div_ceil(threads * CHUNKS_PER_THREAD);
    let barrier = Barrier::new(threads);
    // Each makes its worker itself: buffers stay on their thread.
    let work = &|number| {
        let mut worker = Worker::new(number);
        worker.run(rounds, &barrier)?;
        Ok((worker.seal, worker.open))
    };
    let results: Vec<Result<(Spent, Spent), String>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|number| scope.spawn(move || work(number))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
            .collect()
    });
    let (seal, open): (Vec<Spent>, Vec<Spent>) =
        results.into_iter().collect::<Result<Vec<_>, String>>()?.into_iter().unzip();
    let bytes = rounds * threads * CHUNKS_PER_THREAD * MIB;
    let report = |spent: &[Spent]| {
        let wall = spent.iter().map(|spent| spent.wall).max().unwrap_or_default();
        let cpu: Duration = spent.iter().map(|spent| spent.cpu).sum();
        json!({
            "seconds": wall.as_secs_f64(),
            "bytes_per_second": bytes as f64 / wall.as_secs_f64(),
            "cpu_seconds": cpu.as_secs_f64(),
            "cpu_seconds_per_gib": cpu.as_secs_f64() / bytes as f64 * f64::from(1 << 30),
        })
    };
    Ok(json!({ "bytes": bytes, "threads": threads, "seal": report(&seal), "open": report(&open) }))
}

/// What this thread has used so far.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0))
}
