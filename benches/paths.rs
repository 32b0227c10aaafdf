//! The ways of a chunk between a file, memory and a disk, with nothing of the store around them.
//!
//! What the groups decide:
//!
//! | group | decides |
//! | --- | --- |
//! | `put path` | whether a chunk is read, sealed and written in one registered buffer, or may be copied on its way (which would let any memory be used), and what the registration itself saves |
//! | `stores` | how segments are written: past the page cache, by `pwrite`, or by stores into a mapping. The store itself stands beside the last two in `append 1 MiB` of the bench `store` |
//! | `hot reads` | where the bytes that get hashed are read from: a copy in a registered buffer, or the page cache itself through a mapping, kept or made anew |
//!
//! Rules that make the sides alike:
//! - All work on chunks of 1 MiB, from one thread. What goes through the ring has 16 chunks in flight; what blocks cannot.
//! - What is written goes into a new file whose space is reserved before the clock starts, and counts once a sync covers
//!   it: one for each 16 chunks.
//! - What is read was read twice before, and is hashed, as everything that arrives is.
//!
//! A mapping's faults are taken by the thread that touches it. In a node that is a thread that drives a ring: a fault that
//! waits for the disk stalls everybody on it, which no figure here shows, since here everything is hot.
//!
//! The mappings are the one thing here that the library does not offer: it never shows the bytes of one.
//!
//! CPU seconds per GiB (AMD EPYC with AVX-512, 2 virtual cores of a shared machine, 27 November 2026, ext4 without a journal):
//!
//! | group | |
//! | --- | --- |
//! | `put path` | in place, registered 0.584; not registered 0.632; copied on its way 0.697 |
//! | `stores` | past the page cache 0.019; `pwrite` 0.205; into a mapping 0.548 |
//! | `hot reads` | `pread` 0.215; a mapping that is kept 0.236, made anew 0.254; the ring, registered 0.266, which blocks nobody |

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a bench that cannot go on ends with a panic

use std::cell::RefCell;
use std::hint::black_box;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use gabion::crypto::cipher::{ScopeKey, seal_chunk};
use gabion::crypto::hash::address_of;
use gabion::io::{Buffer, BufferPool, File, OpenOptions, Ring, RingOptions};
use gabion::limits::{BUFFER_BYTES, MIB, RECORD_HEAD_BYTES};
use tempfile::TempDir;

mod cpu;
mod drive;
#[path = "../src/io/plain_map.rs"]
mod plain_map;
use cpu::{Account, CpuTime};
use drive::drive;

const IN_FLIGHT: usize = 16;
/// Chunks of one iteration, and of the file that is read.
const CHUNKS: u64 = 64;
/// Where a chunk lies in a buffer.
const PAYLOAD: Range<usize> = RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + MIB;

type Group<'a> = BenchmarkGroup<'a, WallTime>;
/// Writes one chunk over and over into a file, durably.
type Store = fn(&std::fs::File, &[u8], u64);

/// A ring and its buffers: registered ones, and as many that are not.
struct Machine {
    ring: Ring,
    pool: BufferPool,
    heap: Rc<RefCell<Vec<Buffer>>>,
    directory: TempDir,
    scope: Rc<ScopeKey>,
}

/// What happens to a chunk between the file it comes from and the one it goes to.
#[derive(Clone, Copy)]
enum Way {
    InPlaceRegistered,
    InPlace,
    Copied,
}

impl Way {
    const ALL: [(Way, &'static str); 3] = [
        (Way::InPlaceRegistered, "in place, registered"),
        (Way::InPlace, "in place, not registered"),
        (Way::Copied, "copied into a registered buffer"),
    ];
}

fn position(number: u64) -> u64 {
    number * MIB as u64
}

fn io_group<'a>(criterion: &'a mut Criterion, name: &str) -> Group<'a> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Bytes(CHUNKS * MIB as u64));
    group
}

/// A new file, its space reserved, open past the page cache.
async fn reserved(path: &Path, chunks: u64) -> File {
    let _ = std::fs::remove_file(path);
    let options = OpenOptions { read: true, write: true, create_new: true, direct: true, ..OpenOptions::default() };
    let file = File::open(path, &options).await.unwrap();
    file.allocate(0, position(chunks)).await.unwrap();
    file.sync_all().await.unwrap();
    file
}

/// One put's way: both files, the buffers and the key.
#[derive(Clone)]
struct Copying {
    way: Way,
    source: File,
    target: File,
    pool: BufferPool,
    heap: Rc<RefCell<Vec<Buffer>>>,
    scope: Rc<ScopeKey>,
}

impl Copying {
    async fn one(self, number: u64) {
        let mut buffer = match self.way {
            Way::InPlaceRegistered => self.pool.take().await,
            // One for each that is in flight.
            Way::InPlace | Way::Copied => self.heap.borrow_mut().pop().unwrap(),
        };
        let result;
        (result, buffer) = self.source.read_at(buffer, PAYLOAD, position(number % CHUNKS)).await;
        assert_eq!(result.unwrap(), MIB);
        black_box(seal_chunk(&self.scope, 0, &mut buffer.as_mut_slice()[PAYLOAD], MIB));
        if let Way::Copied = self.way {
            let mut copy = self.pool.take().await;
            copy.as_mut_slice()[PAYLOAD].copy_from_slice(&buffer.as_slice()[PAYLOAD]);
            self.heap.borrow_mut().push(buffer);
            buffer = copy;
        }
        let buffer = buffer.freeze();
        self.target.write_at(buffer.clone(), PAYLOAD, position(number)).await.unwrap();
        if number.is_multiple_of(IN_FLIGHT as u64) {
            self.target.sync_data().await.unwrap();
        }
        if let Way::InPlace = self.way {
            self.heap.borrow_mut().push(buffer.try_unfreeze().unwrap());
        }
    }
}

impl Machine {
    fn new() -> Self {
        let mut ring = Ring::new(&RingOptions::default()).unwrap();
        let pool = ring.block_on(async { BufferPool::new(IN_FLIGHT).unwrap() });
        println!("registered: {} of {IN_FLIGHT} buffers", pool.registered());
        let heap = Rc::new(RefCell::new((0..IN_FLIGHT).map(|_| Buffer::heap(BUFFER_BYTES)).collect()));
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = std::fs::File::create_new(directory.path().join("source")).unwrap();
        let mut stream = blake3::Hasher::new().finalize_xof();
        let mut chunk = vec![0; MIB];
        for number in 0..CHUNKS {
            stream.fill(&mut chunk);
            file.write_all_at(&chunk, position(number)).unwrap();
        }
        // Dirty pages are hot, and written back in the midst of it all.
        file.sync_all().unwrap();
        Self { ring, pool, heap, directory, scope: Rc::new(ScopeKey::from_bytes(&[9; 32])) }
    }

    fn source(&self) -> std::fs::File {
        std::fs::File::open(self.directory.path().join("source")).unwrap()
    }

    fn put_path(&mut self, criterion: &mut Criterion) {
        let mut group = io_group(criterion, "put path");
        for (way, name) in Way::ALL {
            let mut account = Account::new(format!("put path/{name}"), MIB as u64);
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|rounds| self.time_put(way, rounds * CHUNKS, &mut account));
            });
        }
        group.finish();
    }

    fn time_put(&mut self, way: Way, chunks: u64, account: &mut Account) -> Duration {
        let (pool, heap, scope) = (self.pool.clone(), self.heap.clone(), self.scope.clone());
        let (from, to) = (self.directory.path().join("source"), self.directory.path().join("target"));
        self.ring.block_on(async {
            let source = File::open(&from, &OpenOptions::for_reading()).await.unwrap();
            let target = reserved(&to, chunks).await;
            let copying = Copying { way, source, target: target.clone(), pool, heap, scope };
            let (cpu, start) = (CpuTime::now(), Instant::now());
            drive(chunks, IN_FLIGHT, move |number| copying.clone().one(number)).await;
            target.sync_data().await.unwrap();
            let elapsed = start.elapsed();
            account.add(chunks, cpu);
            elapsed
        })
    }

    fn stores(&mut self, criterion: &mut Criterion) {
        let mut group = io_group(criterion, "stores");
        let mut chunk = vec![0; MIB];
        self.source().read_exact_at(&mut chunk, 0).unwrap();
        let mut account = Account::new("stores/O_DIRECT, registered", MIB as u64);
        group.bench_function("O_DIRECT, registered", |bencher| {
            bencher.iter_custom(|rounds| self.time_direct(rounds * CHUNKS, &mut account));
        });
        let ways: [(&str, Store); 2] = [("pwrite", store_by_pwrite), ("stores into a mapping", store_by_mapping)];
        for (name, store) in ways {
            let mut account = Account::new(format!("stores/{name}"), MIB as u64);
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|rounds| {
                    let chunks = rounds * CHUNKS;
                    let path = self.directory.path().join("target");
                    drop(self.ring.block_on(reserved(&path, chunks)));
                    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
                    let (cpu, start) = (CpuTime::now(), Instant::now());
                    store(&file, &chunk, chunks);
                    let elapsed = start.elapsed();
                    account.add(chunks, cpu);
                    elapsed
                });
            });
        }
        group.finish();
    }

    fn time_direct(&mut self, chunks: u64, account: &mut Account) -> Duration {
        let (pool, path) = (self.pool.clone(), self.directory.path().join("target"));
        self.ring.block_on(async {
            let file = reserved(&path, chunks).await;
            let target = file.clone();
            let (cpu, start) = (CpuTime::now(), Instant::now());
            drive(chunks, IN_FLIGHT, move |number| {
                let (target, pool) = (target.clone(), pool.clone());
                async move {
                    let buffer = pool.take().await.freeze();
                    target.write_at(buffer, PAYLOAD, position(number)).await.unwrap();
                    if number.is_multiple_of(IN_FLIGHT as u64) {
                        target.sync_data().await.unwrap();
                    }
                }
            })
            .await;
            file.sync_data().await.unwrap();
            let elapsed = start.elapsed();
            account.add(chunks, cpu);
            elapsed
        })
    }

    fn hot_reads(&mut self, criterion: &mut Criterion) {
        let mut group = io_group(criterion, "hot reads");
        let mut account = Account::new("hot reads/ring, registered", MIB as u64);
        group.bench_function("ring, registered", |bencher| {
            bencher.iter_custom(|rounds| self.time_reads(rounds * CHUNKS, &mut account));
        });
        let file = self.source();
        let mut into = vec![0; MIB];
        blocking(&mut group, "pread", |number| {
            file.read_exact_at(&mut into, position(number)).unwrap();
            black_box(address_of(&into));
        });
        let kept = plain_map::readable(&file, 0, CHUNKS as usize * MIB);
        blocking(&mut group, "mapping, kept", |number| {
            let start = position(number) as usize;
            black_box(address_of(&kept[start..start + MIB]));
        });
        blocking(&mut group, "mapping, anew for each chunk", |number| {
            black_box(address_of(&plain_map::readable(&file, position(number), MIB)));
        });
        group.finish();
    }

    fn time_reads(&mut self, chunks: u64, account: &mut Account) -> Duration {
        let (pool, path) = (self.pool.clone(), self.directory.path().join("source"));
        self.ring.block_on(async {
            let file = File::open(&path, &OpenOptions::for_reading()).await.unwrap();
            let (cpu, start) = (CpuTime::now(), Instant::now());
            drive(chunks, IN_FLIGHT, move |number| {
                let (file, pool) = (file.clone(), pool.clone());
                async move {
                    let (result, buffer) = file.read_at(pool.take().await, PAYLOAD, position(number % CHUNKS)).await;
                    assert_eq!(result.unwrap(), MIB);
                    black_box(address_of(&buffer.as_slice()[PAYLOAD]));
                }
            })
            .await;
            let elapsed = start.elapsed();
            account.add(chunks, cpu);
            elapsed
        })
    }
}

/// Reads each chunk of the source, over and over, on this thread.
fn blocking(group: &mut Group<'_>, name: &str, mut read: impl FnMut(u64)) {
    (0..2 * CHUNKS).for_each(|number| read(number % CHUNKS));
    let mut account = Account::new(format!("hot reads/{name}"), MIB as u64);
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|rounds| {
            let (cpu, start) = (CpuTime::now(), Instant::now());
            (0..rounds * CHUNKS).for_each(|number| read(number % CHUNKS));
            let elapsed = start.elapsed();
            account.add(rounds * CHUNKS, cpu);
            elapsed
        });
    });
}

fn store_by_pwrite(file: &std::fs::File, chunk: &[u8], chunks: u64) {
    for number in 0..chunks {
        file.write_all_at(chunk, position(number)).unwrap();
        if number.is_multiple_of(IN_FLIGHT as u64) {
            file.sync_data().unwrap();
        }
    }
    file.sync_data().unwrap();
}

fn store_by_mapping(file: &std::fs::File, chunk: &[u8], chunks: u64) {
    let mut map = plain_map::writable(file);
    for (number, place) in (0..chunks).zip(map.chunks_exact_mut(MIB)) {
        place.copy_from_slice(chunk);
        if number.is_multiple_of(IN_FLIGHT as u64) {
            file.sync_data().unwrap();
        }
    }
    file.sync_data().unwrap();
}

fn paths(criterion: &mut Criterion) {
    let mut machine = Machine::new();
    machine.put_path(criterion);
    machine.stores(criterion);
    machine.hot_reads(criterion);
}

criterion_group!(benches, paths);
criterion_main!(benches);
