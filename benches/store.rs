//! The store on a real disk, through a real ring, from one thread.
//!
//! What the groups decide:
//!
//! | group | decides |
//! | --- | --- |
//! | `append 1 MiB` | whether segments are written past the page cache from registered buffers, with plain `pwrite`s and a sync, or by stores into a mapping and a sync; and how deep the queue must be |
//! | `append 4 KiB` | whether short chunks travel by the committer's batches, or each by a write of its own |
//! | `group commit` | how a batch grows with who waits for it: one waiter pays for a whole sync, 256 share one; against as many threads, each of which syncs for itself |
//! | `read 1 MiB, hot` | what the ring, the check of the header and the verification add to a copy out of the page cache |
//! | `read 4 KiB, hot` | the same where each read is short |
//!
//! Rules that make the two sides of a comparison alike:
//! - "durable" means the same: nothing counts before an `fdatasync` (or the store's own) covers it. The plain side
//!   writes as many pieces as the store has in flight, then syncs once for all of them.
//! - Each sample writes into a new store, or a new file, whose first write lies before the clock's start.
//! - Space is reserved on both sides: the store's in steps as it goes, on the clock; the plain side's at once, before it.
//! - The plain side of `group commit` writes all records into one file, as a log has it: each thread its own at its own
//!   place, with a `pwrite` and an `fdatasync` for each. What file system and kernel make of syncs of one file that come
//!   together is theirs.
//! - Everything lies in `target/tmp`: the figures are those of its file system, and of nothing if that is a `tmpfs`.
//!
//! An append is hold, stage and commit of a chunk that is not there yet; its address is made up (hashing is
//! benchmarked elsewhere, the store does not look). A read is verified by its real address. One thread drives
//! everything, as one shard of a node does. Buffers beyond the limit on locked memory are not registered; the line
//! `registered` says how many were.
//!
//! The plain side's CPU time is not steady: 0.2 to 1.5 s/GiB for the very same appends of 1 MiB in two runs on a shared
//! virtual machine, whatever the depth, where the store's stayed within 0.10 and 0.17. Compare several runs.
//!
//! `paths` has the same three ways without the store.
//!
//! CPU time of each (AMD EPYC with AVX-512, 2 virtual cores of a shared machine, 27 November 2026, ext4 without a journal):
//!
//! | in flight | store, 1 MiB | `pwrite` | mapping | store, 4 KiB | `pwrite` |
//! | --- | --- | --- | --- | --- | --- |
//! | 1 | 147 us | 212 | 719 | 77 us | 56 |
//! | 4 | 88 | 141 | 599 | 24 | 17 |
//! | 16 | 64 | 134 | 542 | 10 | 6.9 |
//! | 64 | 60 | 180 | 533 | 4.9 | 4.2 |
//!
//! | waiters | group commit | threads that sync each for itself |
//! | --- | --- | --- |
//! | 1 | 75 us | 35 us |
//! | 4 | 19 | 43 |
//! | 16 | 7.4 | 41 |
//! | 64 | 2.3 | 37 |
//! | 256 | 1.3 | 112 |
//!
//! So segments are written past the page cache, 16 deep is deep enough, and a commit is worth its batch from two waiters on.
//! A hot read of 1 MiB takes 50 to 54 us up to 8 at a time and 88 with 64, `pread` 52; of 4 KiB 3.1, 1.5 and 1.3 us, `pread`
//! 0.6. Verifying adds 164 and 1.4 us.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a bench that cannot go on ends with a panic

use std::collections::HashMap;
use std::future::Future;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use gabion::crypto::cipher::check_chunk;
use gabion::crypto::hash::address_of;
use gabion::format::{Address, Incarnation, VersionId};
use gabion::io::{BufferPool, File, OpenOptions, Ring, RingOptions, spawn};
use gabion::limits::{KIB, MIB, RECORD_HEAD_BYTES};
use gabion::store::{Hold, ReadOutcome, RingDisk, SmallRecord, Store, StoreOptions, open};
use tempfile::{NamedTempFile, TempDir};

mod cpu;
mod drive;
#[allow(unused)] // its other user is not here
#[path = "../src/io/plain_map.rs"]
mod plain_map;
use cpu::{Account, CpuTime};
use drive::drive;

const IN_FLIGHT: [usize; 4] = [1, 4, 16, 64];
const WAITERS: [usize; 5] = [1, 4, 16, 64, 256];
/// Operations of one iteration: a multiple of what is in flight.
const APPENDS: u64 = 64;
const SMALL_APPENDS: u64 = 256;
const READS: u64 = 64;
/// A reference with a sealed capsule is about this long.
const RECORD_BYTES: usize = 200;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// How many pieces are appended behind the first, and for how many at a time there is a sync.
#[derive(Clone, Copy)]
struct Load {
    operations: u64,
    in_flight: usize,
}

/// Appends a piece over and over, durably.
type PlainAppend = fn(&std::fs::File, &[u8], Load);

/// A ring and its buffers: as registered buffers are its ring's for ever, all benches share one.
struct Machine {
    ring: Ring,
    pool: BufferPool,
}

impl Machine {
    fn new() -> Self {
        let mut ring = Ring::new(&RingOptions::default()).unwrap();
        let buffers = IN_FLIGHT[IN_FLIGHT.len() - 1];
        let pool = ring.block_on(async { BufferPool::new(buffers).unwrap() });
        println!("registered: {} of {buffers} buffers", pool.registered());
        // Not zeros: a disk may be clever about those.
        ring.block_on(async {
            let mut taken = Vec::new();
            while let Some(mut buffer) = pool.try_take() {
                blake3::Hasher::new().finalize_xof().fill(buffer.as_mut_slice());
                taken.push(buffer);
            }
        });
        Self { ring, pool }
    }
}

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

async fn attach(root: &Path) -> Store<RingDisk> {
    let disk = RingDisk::new(root).unwrap();
    let options = StoreOptions::new(1, Incarnation([1; 16]), 0);
    let (shared, _) = open(&disk, options, &HashMap::new(), &mut |_| {}).await.unwrap();
    Store::attach(shared, disk, 0, Rc::new(|_| {}), |task| drop(spawn(task)))
}

fn version() -> VersionId {
    VersionId::new(7, 1000, [1; 8])
}

fn made_up_address(number: u64) -> Address {
    let mut address = Address([0; 32]);
    address.0[..8].copy_from_slice(&number.to_le_bytes());
    address
}

async fn append(store: &Store<RingDisk>, pool: &BufferPool, number: u64, len_bytes: usize) {
    let buffer = pool.take().await;
    let Hold::Absent(claim) = store.hold(&made_up_address(number), &version()).await.unwrap() else {
        panic!("chunk {number} is there already")
    };
    let staged = store.stage(claim, buffer, len_bytes, &version(), 0).await.unwrap();
    staged.commit().await.unwrap();
}

impl Machine {
    /// Times `operations` on a new store.
    fn time<F, O>(&mut self, operations: u64, in_flight: usize, account: &mut Account, operation: F) -> Duration
    where
        F: Fn(Store<RingDisk>, BufferPool, u64) -> O + 'static,
        O: Future<Output = ()> + 'static,
    {
        let (directory, pool) = (directory(), self.pool.clone());
        self.ring.block_on(async {
            let store = attach(directory.path()).await;
            let operation = Rc::new(operation);
            operation(store.clone(), pool.clone(), u64::MAX).await;
            let (cpu, start) = (CpuTime::now(), Instant::now());
            let of_drive = (store.clone(), pool, operation);
            drive(operations, in_flight, move |number| of_drive.2(of_drive.0.clone(), of_drive.1.clone(), number))
                .await;
            let elapsed = start.elapsed();
            account.add(operations, cpu);
            store.close().await.unwrap();
            elapsed
        })
    }

    fn append_group(&mut self, criterion: &mut Criterion, name: &str, len_bytes: usize, operations: u64) {
        let mut group = io_group(criterion, name);
        group.throughput(Throughput::Bytes(operations * len_bytes as u64));
        for in_flight in IN_FLIGHT {
            let mut account = Account::new(format!("{name}/store/{in_flight}"), len_bytes as u64);
            group.bench_function(BenchmarkId::new("store", in_flight), |bencher| {
                bencher.iter_custom(|rounds| {
                    self.time(rounds * operations, in_flight, &mut account, move |store, pool, number| async move {
                        append(&store, &pool, number, len_bytes).await;
                    })
                });
            });
            drop(account);
            self.plain_appends(&mut group, name, len_bytes, Load { operations, in_flight });
        }
        group.finish();
    }

    fn group_commit(&mut self, criterion: &mut Criterion) {
        let mut group = io_group(criterion, "group commit");
        group.throughput(Throughput::Elements(SMALL_APPENDS));
        for waiters in WAITERS {
            let mut account = Account::new(format!("group commit/store/{waiters}"), 0);
            group.bench_function(BenchmarkId::new("store", waiters), |bencher| {
                bencher.iter_custom(|rounds| {
                    self.time(rounds * SMALL_APPENDS, waiters, &mut account, |store, _pool, number| async move {
                        let record = SmallRecord::Reference {
                            address: made_up_address(number),
                            version: version(),
                            capsule: vec![7; RECORD_BYTES],
                        };
                        store.append(record).await.unwrap();
                    })
                });
            });
            drop(account);
            self.plain_commits(&mut group, waiters);
        }
        group.finish();
    }

    /// A file with room for `pieces` more than the first, which is written; all space is reserved.
    fn reserved(&mut self, piece: &[u8], pieces: u64) -> std::fs::File {
        let named = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let options = OpenOptions { read: true, write: true, ..OpenOptions::default() };
        self.ring.block_on(async {
            let file = File::open(named.path(), &options).await.unwrap();
            file.allocate(0, (pieces + 1) * piece.len() as u64).await.unwrap();
        });
        // The name goes, the descriptor stays.
        let file = named.into_file();
        file.write_all_at(piece, 0).unwrap();
        file.sync_all().unwrap();
        file
    }

    /// The plain ways: one file through the page cache, and a sync for each `in_flight` pieces.
    fn plain_appends(&mut self, group: &mut Group<'_>, name: &str, len_bytes: usize, load: Load) {
        let piece = chunks(len_bytes).swap_remove(0);
        let ways: [(&str, PlainAppend); 2] =
            [("pwrite, fdatasync", append_by_pwrite), ("stores into a mapping, fdatasync", append_by_mapping)];
        for (what, append) in ways {
            let in_flight = load.in_flight;
            let mut account = Account::new(format!("{name}/{what}/{in_flight}"), len_bytes as u64);
            group.bench_function(BenchmarkId::new(what, in_flight), |bencher| {
                bencher.iter_custom(|rounds| {
                    let load = Load { operations: rounds * load.operations, in_flight };
                    let file = self.reserved(&piece, load.operations);
                    let (cpu, start) = (CpuTime::now(), Instant::now());
                    append(&file, &piece, load);
                    let elapsed = start.elapsed();
                    account.add(load.operations, cpu);
                    elapsed
                });
            });
        }
    }

    /// As many threads as there are waiters, each of which syncs for itself.
    fn plain_commits(&mut self, group: &mut Group<'_>, waiters: usize) {
        let what = "threads, pwrite, fdatasync each";
        let mut account = Account::new(format!("group commit/{what}/{waiters}"), 0);
        let piece = chunks(RECORD_BYTES).swap_remove(0);
        group.bench_function(BenchmarkId::new(what, waiters), |bencher| {
            bencher.iter_custom(|rounds| {
                let operations = rounds * SMALL_APPENDS;
                let file = self.reserved(&piece, operations);
                let (next, gate) = (AtomicU64::new(1), Barrier::new(waiters + 1));
                std::thread::scope(|scope| {
                    for _ in 0..waiters {
                        scope.spawn(|| {
                            gate.wait();
                            commit_alone(&file, &piece, &next, operations);
                            gate.wait();
                            // What a thread has used is known only while it lives.
                            gate.wait();
                        });
                    }
                    let (cpu, start) = (CpuTime::now(), Instant::now());
                    gate.wait();
                    gate.wait();
                    let elapsed = start.elapsed();
                    account.add(operations, cpu);
                    gate.wait();
                    elapsed
                })
            });
        });
    }

    fn reads(&mut self, criterion: &mut Criterion, name: &str, len_bytes: usize) {
        let (directory, pool) = (directory(), self.pool.clone());
        let chunks = chunks(len_bytes);
        let addresses: Rc<[Address]> = chunks.iter().map(|chunk| address_of(chunk)).collect();
        let store = self.ring.block_on(async {
            let store = attach(directory.path()).await;
            for (chunk, address) in chunks.iter().zip(&*addresses) {
                let mut buffer = pool.take().await;
                buffer.as_mut_slice()[RECORD_HEAD_BYTES..][..len_bytes].copy_from_slice(chunk);
                let Hold::Absent(claim) = store.hold(address, &version()).await.unwrap() else { panic!("no claim") };
                store.stage(claim, buffer, len_bytes, &version(), 0).await.unwrap().commit().await.unwrap();
            }
            store.close().await.unwrap();
            // After a restart, as most chunks are read; a chunk's first read passes the page cache by.
            let store = attach(directory.path()).await;
            for _ in 0..3 {
                for address in &*addresses {
                    read(&store, &pool, address, true).await;
                }
            }
            store
        });
        let mut group = io_group(criterion, name);
        group.throughput(Throughput::Bytes(READS * len_bytes as u64));
        for (what, is_verified) in [("store", false), ("store, verified", true)] {
            for in_flight in [1, 8, 64] {
                let mut account = Account::new(format!("{name}/{what}/{in_flight}"), len_bytes as u64);
                group.bench_function(BenchmarkId::new(what, in_flight), |bencher| {
                    bencher.iter_custom(|rounds| {
                        let (store, pool, addresses) = (store.clone(), pool.clone(), addresses.clone());
                        self.ring.block_on(async {
                            let (cpu, start) = (CpuTime::now(), Instant::now());
                            drive(rounds * READS, in_flight, move |number| {
                                let (store, pool) = (store.clone(), pool.clone());
                                let address = addresses[(number % READS) as usize];
                                async move { read(&store, &pool, &address, is_verified).await }
                            })
                            .await;
                            account.add(rounds * READS, cpu);
                            start.elapsed()
                        })
                    });
                });
            }
        }
        self.ring.block_on(async { store.close().await.unwrap() });
        plain_reads(&mut group, name, &chunks, &addresses);
        group.finish();
    }
}

async fn read(store: &Store<RingDisk>, pool: &BufferPool, address: &Address, is_verified: bool) {
    match store.read(address, pool.take().await).await.unwrap() {
        ReadOutcome::Found { buffer, len, .. } => {
            let chunk = &buffer.as_slice()[RECORD_HEAD_BYTES..][..len];
            if is_verified {
                check_chunk(chunk, address).unwrap();
            }
            black_box(chunk);
        }
        _ => panic!("{address:?} is not there"),
    }
}

fn chunks(len_bytes: usize) -> Vec<Vec<u8>> {
    let chunk = |number: u64| {
        let mut bytes = vec![0; len_bytes];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    };
    (0..READS).map(chunk).collect()
}

fn append_by_pwrite(file: &std::fs::File, piece: &[u8], load: Load) {
    for number in 1..=load.operations {
        file.write_all_at(piece, number * piece.len() as u64).unwrap();
        if number % load.in_flight as u64 == 0 {
            file.sync_data().unwrap();
        }
    }
}

fn append_by_mapping(file: &std::fs::File, piece: &[u8], load: Load) {
    let mut map = plain_map::writable(file);
    for (number, place) in (1..=load.operations).zip(map.chunks_exact_mut(piece.len()).skip(1)) {
        place.copy_from_slice(piece);
        if number % load.in_flight as u64 == 0 {
            file.sync_data().unwrap();
        }
    }
}

/// Writes one record after the other, each with its own sync, until `operations` are done by all threads together.
fn commit_alone(file: &std::fs::File, piece: &[u8], next: &AtomicU64, operations: u64) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number > operations {
            return;
        }
        file.write_all_at(piece, number * piece.len() as u64).unwrap();
        file.sync_data().unwrap();
    }
}

fn plain_reads(group: &mut Group<'_>, name: &str, chunks: &[Vec<u8>], addresses: &[Address]) {
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    chunks.iter().for_each(|chunk| file.write_all(chunk).unwrap());
    // Dirty pages are hot, and written back in the midst of it all.
    file.sync_all().unwrap();
    let len_bytes = chunks[0].len();
    let mut into = vec![0; len_bytes];
    for (what, is_verified) in [("pread", false), ("pread, verified", true)] {
        let mut account = Account::new(format!("{name}/{what}"), len_bytes as u64);
        group.bench_function(what, |bencher| {
            bencher.iter_custom(|rounds| {
                let (cpu, start) = (CpuTime::now(), Instant::now());
                for number in 0..rounds * READS {
                    let number = number % READS;
                    file.read_exact_at(&mut into, number * len_bytes as u64).unwrap();
                    if is_verified {
                        check_chunk(&into, &addresses[number as usize]).unwrap();
                    }
                    black_box(&into);
                }
                let elapsed = start.elapsed();
                account.add(rounds * READS, cpu);
                elapsed
            });
        });
    }
}

/// Few and long samples, so that a bench writes some gigabytes and not some hundred.
fn io_group<'a>(criterion: &'a mut Criterion, name: &str) -> Group<'a> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group
}

fn store(criterion: &mut Criterion) {
    let mut machine = Machine::new();
    machine.append_group(criterion, "append 1 MiB", MIB, APPENDS);
    machine.append_group(criterion, "append 4 KiB", 4 * KIB, SMALL_APPENDS);
    machine.group_commit(criterion);
    machine.reads(criterion, "read 1 MiB, hot", MIB);
    machine.reads(criterion, "read 4 KiB, hot", 4 * KIB);
}

criterion_group!(benches, store);
criterion_main!(benches);
