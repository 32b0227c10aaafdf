//! The index: what a look-up and an insertion cost at one thousand, one million and ten million entries.
//!
//! What the group decides: whether sorted tables with gaps keep their price for holding a chunk in 16 to 24 bytes. They
//! are compared with a `HashMap` from whole addresses to places, which needs 65 to 130 bytes, as full as it happens to be.
//!
//! What a look-up costs beyond hashing are cache misses. So addresses are picked at random over the whole index, two
//! million of them before the clock starts, and each pass takes the next few: when one comes back, everything that was
//! touched since (the picks themselves, too) is several times what a third-level cache of 32 MiB holds. Insertions walk
//! through a pool of new addresses in the same way.
//!
//! | bench | measures |
//! | --- | --- |
//! | `hit` | a chunk that is here |
//! | `miss` | one that is not: what the dedup decision for new data costs |
//! | `insert` | one more entry in tables that have room; it is removed again off the clock |
//! | `fill` | all entries into an empty index: insertions with the growth of tables |
//! | `keyed hash` | the part of each of them that is hashing: it keeps strangers from aiming at one table |
//! | `map, …` | the same on the `HashMap` behind one lock, which hashes by SipHash |
//!
//! Nanoseconds each, on an AMD EPYC with AVX-512, 2 virtual cores of a shared machine, 27 November 2026. A thousand
//! entries are in the cache, ten million are not:
//!
//! | entries | hit | miss | insert | fill | map, hit | map, miss | map, insert | index, bytes an entry |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | 1,000 | 89 | 87 | 94 | 103 | 24 | 22 | 39 | 124.5: 1,024 tables for next to nothing |
//! | 1,000,000 | 181 | 208 | 263 | 195 | 289 | 45 | 269 | 19.0 |
//! | 10,000,000 | 306 | 317 | 416 | 362 | 558 | 174 | 449 | 19.0 |
//!
//! 60 of them are the keyed hash. What is left of a hit grows from 28 to 246 with ten million entries: two or three misses of
//! some 90 ns, for a table's head, the slot that is guessed, and its neighbours where the guess was off. (The machine has no
//! counters of misses to ask.) So the tables keep their price where it matters, at the sizes that miss the cache, but for
//! misses: a map sees from its control bytes alone that something is not there, and is twice to four times as fast.
//!
//! The index is private to the store: its file is compiled into this bench, so that the library opens no door for it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a bench that cannot go on ends with a panic

use std::collections::HashMap;
use std::hint::black_box;
use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use criterion::{criterion_group, criterion_main};
use gabion::format;
use gabion::format::Address;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

#[allow(unused)] // its other users are not here
#[path = "../src/store/index.rs"]
mod index;

use index::{Index, Place};

const ENTRIES: [u64; 3] = [1000, 1_000_000, 10_000_000];
/// Addresses that one pass looks up or inserts.
const PASS: usize = 4096;
/// Addresses that are looked up before one comes again.
const PICKS: usize = 1 << 21;
/// Addresses that are inserted before one comes again.
const NEWS: usize = 1 << 20;
const SEED: u64 = 0x6761_6269_6f6e;

type Wall = criterion::measurement::WallTime;
type Group<'a> = BenchmarkGroup<'a, Wall>;

/// As evenly spread as hashes.
fn address(number: u64) -> Address {
    Address(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn place(number: u64) -> Place {
    Place { segment: number % 4096 + 1, offset: 4096 + (number / 4096 % 65_536) * 64, len: 1 << 20, flags: 0 }
}

/// What passes draw on, over and over.
struct Pool<T> {
    all: Vec<T>,
    next: usize,
}

impl<T> Pool<T> {
    fn new(all: Vec<T>) -> Self {
        assert!(all.len().is_multiple_of(PASS));
        Self { all, next: 0 }
    }

    fn pass(&mut self) -> &[T] {
        let from = self.next;
        self.next = (from + PASS) % self.all.len();
        &self.all[from..from + PASS]
    }
}

fn picks(from: Range<u64>) -> Pool<Address> {
    let mut random = SmallRng::seed_from_u64(SEED);
    Pool::new((0..PICKS).map(|_| address(random.random_range(from.clone()))).collect())
}

fn news(entries: u64) -> Pool<(Address, Place)> {
    Pool::new((entries..entries + NEWS as u64).map(|number| (address(number), place(number))).collect())
}

fn index(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("index");
    group.throughput(Throughput::Elements(PASS as u64)).sample_size(20);
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    let mut asked = picks(0..PICKS as u64);
    group.bench_function("keyed hash", |bencher| {
        bencher.iter(|| {
            asked.pass().iter().for_each(|address| {
                black_box(blake3::keyed_hash(&[7; 32], &address.0));
            })
        });
    });
    for entries in ENTRIES {
        bench_tables(&mut group, entries);
        bench_map(&mut group, entries);
    }
    group.finish();

    let mut group = criterion.benchmark_group("index/fill");
    // Ten million take seconds: one fill a sample is enough.
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    for entries in ENTRIES {
        let addresses: Vec<_> = (0..entries).map(address).collect();
        group.throughput(Throughput::Elements(entries));
        group.bench_function(BenchmarkId::from_parameter(entries), |bencher| {
            bencher.iter_batched(|| (), |()| filled(&addresses), BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn filled(addresses: &[Address]) -> Index {
    let index = Index::new([7; 32]);
    for (number, address) in (0..).zip(addresses) {
        index.insert(address, &place(number));
    }
    index
}

fn bench_tables(group: &mut Group<'_>, entries: u64) {
    let index = Index::new([7; 32]);
    (0..entries).for_each(|number| index.insert(&address(number), &place(number)));
    println!("index of {entries} entries: {:.1} bytes each", index.bytes() as f64 / entries as f64);
    look_ups(group, "", entries, |address| index.flags(address).is_some());
    insertions(
        group,
        "",
        entries,
        |address, place| index.insert(address, place),
        |address, place| index.remove(address, place.segment, place.offset).is_some(),
    );
}

fn bench_map(group: &mut Group<'_>, entries: u64) {
    let map: HashMap<[u8; 32], Place> = (0..entries).map(|number| (address(number).0, place(number))).collect();
    let map = Mutex::new(map);
    look_ups(group, "map, ", entries, |address| map.lock().unwrap().get(&address.0).is_some());
    insertions(
        group,
        "map, ",
        entries,
        |address, place| assert!(map.lock().unwrap().insert(address.0, *place).is_none()),
        |address, _| map.lock().unwrap().remove(&address.0).is_some(),
    );
}

fn look_ups(group: &mut Group<'_>, side: &str, entries: u64, has: impl Fn(&Address) -> bool) {
    for (name, from, is_there) in [("hit", 0..entries, true), ("miss", entries..2 * entries + PICKS as u64, false)] {
        let mut asked = picks(from);
        assert!(asked.all.iter().all(|address| has(address) == is_there));
        group.bench_function(BenchmarkId::new(format!("{side}{name}"), entries), |bencher| {
            bencher.iter(|| asked.pass().iter().filter(|address| has(black_box(address))).count());
        });
    }
}

fn insertions(
    group: &mut Group<'_>,
    side: &str,
    entries: u64,
    insert: impl Fn(&Address, &Place),
    remove: impl Fn(&Address, &Place) -> bool,
) {
    let mut news = news(entries);
    let mut timed_pass = || {
        // An eighth at a time, so that a small index grows by half at most.
        let parts = news.pass().chunks(PASS / 8).map(|some| {
            let start = Instant::now();
            some.iter().for_each(|(address, place)| insert(address, place));
            let elapsed = start.elapsed();
            some.iter().for_each(|(address, place)| assert!(remove(address, place)));
            elapsed
        });
        parts.sum::<Duration>()
    };
    group.bench_function(BenchmarkId::new(format!("{side}insert"), entries), |bencher| {
        bencher.iter_custom(|rounds| (0..rounds).map(|_| timed_pass()).sum());
    });
}

criterion_group!(benches, index);
criterion_main!(benches);
