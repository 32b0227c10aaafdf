//! The catalog: what it costs to write what became durable into the index of names, versions and references.
//!
//! What the groups decide:
//!
//! | group | decides |
//! | --- | --- |
//! | `catalog writes` | how many small puts a second a node can keep up with before the queue in front of the catalog slows them down; and how large the batches must be that the store hands over |
//! | `catalog writes, big files` | the same for references alone: a chunk a MiB, all of one version |
//! | `catalog questions` | what the answer to a question costs that comes through the same queue |
//!
//! A small put is three events: its chunk, the root's reference with a sealed capsule, its name. They are written into an
//! empty catalog and into one with 300,000 of them, since a database that sorts pays for what it holds. Each sample
//! ends with a question: so everything handed over has been committed (to the database, which is not synced: the log is
//! what is durable).
//!
//! CPU time of each small put, and how many a second (AMD EPYC with AVX-512, 2 virtual cores, 27 November 2026):
//!
//! | handed over together | into an empty catalog | into a full one |
//! | --- | --- | --- |
//! | 1 | 15.6 us, 88,000/s | 27.3 us, 58,000/s |
//! | 16 | 18.2 us, 71,000/s | 25.5 us, 56,000/s |
//! | 256 | 18.9 us, 69,000/s | 26.6 us, 55,000/s |
//! | 4096 | 18.3 us, 70,000/s | 30.3 us, 54,000/s |
//!
//! So the store hands over what it has: the size of a batch decides nothing. B-trees in memory take 283,000 a second. A
//! reference of a big file takes 7.5 to 7.9 us, 160,000 a second, which is seventy times what puts of big files need. 12,700
//! questions a second whether a chunk is referenced are answered behind each other, and 1.17 million for a name, from memory.
//!
//! Beside them stand three B-trees in memory behind a lock with the same rows: the least that sorting and allocating
//! cost. They forget everything when the process ends, and take memory for each chunk without a bound.

#![allow(clippy::unwrap_used)] // a bench that cannot go on ends with a panic

use std::collections::BTreeMap;
use std::future::Future;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use gabion::catalog::{Applied, Catalog, Event};
use gabion::format::name::NameRecord;
use gabion::format::{Address, BucketId, NameId, Stamp, VaultId, VersionId};
use tempfile::TempDir;

mod cpu;
use cpu::{Account, CpuTime};

/// Small puts, or chunks of a big one, in one iteration.
const PUTS: u64 = 4096;
/// What a full catalog holds before anything is measured.
const PUTS_BEFORE: u64 = 300_000;
/// Puts that the store hands over together.
const BATCHES: [u64; 4] = [1, 16, 256, 4096];
const QUESTIONS: u64 = 1024;
/// About as long as a sealed capsule and a sealed name are.
const CAPSULE_BYTES: usize = 140;
const SEALED_NAME_BYTES: usize = 160;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// As evenly spread as hashes.
fn bytes(kind: u8, number: u64) -> [u8; 32] {
    *blake3::Hasher::new().update(&[kind]).update(&number.to_le_bytes()).finalize().as_bytes()
}

fn address(number: u64) -> Address {
    Address(bytes(0, number))
}

/// Puts of one second share its beginning.
fn version(number: u64) -> VersionId {
    VersionId::new(7, 1000 + (number / 1000) as u32, number.to_be_bytes())
}

fn name(number: u64) -> NameId {
    NameId(bytes(1, number))
}

const BUCKET: BucketId = BucketId([7; 32]);

fn record(number: u64) -> Vec<u8> {
    let record = NameRecord {
        tombstone: false,
        vault: VaultId::ZERO,
        key_generation: 0,
        bucket: BUCKET,
        name: name(number),
        clock: Stamp::new(number, 0),
        version: version(number),
        nonce: [0; 24],
        sealed: vec![7; SEALED_NAME_BYTES],
    };
    record.encode()
}

fn small_put(number: u64) -> [Event; 3] {
    let (address, version) = (address(number), version(number));
    [
        Event::Chunk { address, version, cached: false },
        Event::Reference { address, version, capsule: Some(vec![7; CAPSULE_BYTES]), is_first: true },
        Event::Name(record(number)),
    ]
}

fn chunk_of_big_file(number: u64) -> [Event; 1] {
    [Event::Chunk { address: address(number), version: version(0), cached: false }]
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// A catalog, and how many puts are in it.
struct Filled {
    catalog: Catalog,
    puts: u64,
    segment_end: u64,
    _directory: TempDir,
}

impl Filled {
    fn new(puts: u64) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (catalog, _) = Catalog::open(directory.path()).unwrap();
        let mut filled = Self { catalog, puts: 0, segment_end: 0, _directory: directory };
        while filled.puts < puts {
            filled.apply(PUTS.min(puts - filled.puts), PUTS, small_put);
        }
        filled
    }

    /// So many more puts, handed over `batch` at a time; the time until all are committed, and when it began.
    fn apply<const N: usize>(&mut self, puts: u64, batch: u64, events: fn(u64) -> [Event; N]) -> (Duration, CpuTime) {
        let first = self.puts;
        self.puts += puts;
        let batches: Vec<Applied> = (first..self.puts)
            .step_by(batch as usize)
            .map(|from| {
                self.segment_end += batch;
                let to = self.puts.min(from + batch);
                Applied { segment: 1, end_offset: self.segment_end, events: (from..to).flat_map(events).collect() }
            })
            .collect();
        let (cpu, start) = (CpuTime::now(), Instant::now());
        batches.into_iter().for_each(|applied| self.catalog.apply(applied).unwrap());
        assert!(block_on(self.catalog.is_referenced(&address(self.puts - 1))).unwrap());
        (start.elapsed(), cpu)
    }

    fn bench<const N: usize>(&mut self, group: &mut Group<'_>, name: &str, batch: u64, events: fn(u64) -> [Event; N]) {
        let mut account = Account::new(format!("catalog writes/{name}/{batch}"), 0);
        group.bench_function(BenchmarkId::new(name, batch), |bencher| {
            bencher.iter_custom(|rounds| {
                let passes = (0..rounds).map(|_| {
                    let (elapsed, cpu) = self.apply(PUTS, batch, events);
                    account.add(PUTS, cpu);
                    elapsed
                });
                passes.sum()
            });
        });
    }

    fn close(self) {
        block_on(self.catalog.close()).unwrap();
    }
}

fn catalog(criterion: &mut Criterion) {
    let mut group = io_group(criterion, "catalog writes", PUTS);
    for batch in BATCHES {
        let mut empty = Filled::new(0);
        empty.bench(&mut group, "into an empty one", batch, small_put);
        empty.close();
    }
    let mut full = Filled::new(PUTS_BEFORE);
    for batch in BATCHES {
        full.bench(&mut group, "into a full one", batch, small_put);
    }
    println!("small puts in the full one at the end: {}", full.puts);
    in_memory(&mut group);
    group.finish();

    let mut group = io_group(criterion, "catalog writes, big files", PUTS);
    for batch in BATCHES {
        let mut empty = Filled::new(0);
        empty.bench(&mut group, "big files", batch, chunk_of_big_file);
        empty.close();
    }
    group.finish();
    questions(criterion, &full.catalog);
    full.close();
}

/// The rows of a catalog, as far as puts make them.
#[derive(Default)]
struct Rows {
    references: BTreeMap<(Address, VersionId), Vec<u8>>,
    chunks: BTreeMap<(VersionId, Address), ()>,
    names: BTreeMap<(BucketId, NameId), Vec<u8>>,
}

fn in_memory(group: &mut Group<'_>) {
    let rows = Mutex::new(Rows::default());
    let mut puts = 0;
    group.bench_function("B-trees in memory", |bencher| {
        bencher.iter_custom(|rounds| {
            let all: Vec<_> =
                (puts..puts + rounds * PUTS).map(|number| (address(number), version(number), number)).collect();
            puts += rounds * PUTS;
            let start = Instant::now();
            for (address, version, number) in all {
                let mut rows = rows.lock().unwrap();
                rows.references.insert((address, version), vec![7; CAPSULE_BYTES]);
                rows.chunks.insert((version, address), ());
                rows.names.insert((BUCKET, name(number)), record(number));
            }
            start.elapsed()
        });
    });
}

fn questions(criterion: &mut Criterion, catalog: &Catalog) {
    // Far apart, and different ones in each pass.
    let picks =
        |rounds: u64| (0..rounds * QUESTIONS).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % PUTS_BEFORE);
    let absent = 1 << 40;
    let mut group = io_group(criterion, "catalog questions", QUESTIONS);
    group.bench_function("is this chunk referenced: yes", |bencher| {
        bencher.iter_custom(|rounds| {
            let start = Instant::now();
            block_on(async {
                for number in picks(rounds) {
                    assert!(catalog.is_referenced(&address(number)).await.unwrap());
                }
            });
            start.elapsed()
        });
    });
    group.bench_function("is this chunk referenced: no", |bencher| {
        bencher.iter_custom(|rounds| {
            let start = Instant::now();
            block_on(async {
                for number in picks(rounds) {
                    assert!(!catalog.is_referenced(&address(number + absent)).await.unwrap());
                }
            });
            start.elapsed()
        });
    });
    group.bench_function("name", |bencher| {
        bencher.iter_custom(|rounds| {
            let start = Instant::now();
            block_on(async {
                for number in picks(rounds) {
                    assert!(black_box(catalog.name(&BUCKET, &name(number)).await.unwrap()).is_some());
                }
            });
            start.elapsed()
        });
    });
    group.finish();
}

/// Few and long samples: a catalog that is written to grows with each.
fn io_group<'a>(criterion: &'a mut Criterion, name: &str, elements: u64) -> Group<'a> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Elements(elements));
    group
}

criterion_group!(benches, catalog);
criterion_main!(benches);
