//! The index: what a look-up and an insertion cost at one thousand, one million and ten million entries.
//!
//! What the group decides: whether sorted tables with gaps keep their price for holding a chunk in 16 to 24 bytes. They
//! are compared with a `HashMap` from whole addresses to places, which needs 65 to 130 bytes, as full as it happens to be.
//! What a look-up costs beyond hashing are cache misses; so addresses are picked at random over the whole index.
//!
//! | bench | measures |
//! | --- | --- |
//! | `hit` | a chunk that is here |
//! | `miss` | one that is not: what the dedup decision for new data costs |
//! | `insert` | one more entry in tables that have room; it is removed again off the clock |
//! | `fill` | all entries into an empty index: insertions with the growth of tables |
//! | `keyed hash` | the part of each of them that is hashing: it keeps strangers from aiming at one table |
//! | `map, …` | the same on the `HashMap` behind one lock, up to a million entries |
//!
//! The index is private to the store: its file is compiled into this bench, so that the library opens no door for it.

#![allow(clippy::unwrap_used)] // a bench that cannot go on ends with a panic

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gabion::format;
use gabion::format::Address;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

#[allow(unused)] // its other users are not here
#[path = "../src/store/index.rs"]
mod index;

use index::{Index, Place};

const ENTRIES: [u64; 3] = [1000, 1_000_000, 10_000_000];
const MAP_ENTRIES_MAX: u64 = 1_000_000;
/// Addresses that one pass looks up or inserts.
const PICKS: usize = 4096;
const SEED: u64 = 0x6761_6269_6f6e;

type Wall = criterion::measurement::WallTime;

/// As evenly spread as hashes.
fn address(number: u64) -> Address {
    Address(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn place(number: u64) -> Place {
    Place { segment: number % 4096 + 1, offset: 4096 + (number / 4096 % 65_536) * 64, len: 1 << 20, flags: 0 }
}

fn picks(from: u64, to: u64) -> Vec<Address> {
    let mut random = SmallRng::seed_from_u64(SEED);
    (0..PICKS).map(|_| address(random.random_range(from..to))).collect()
}

fn index(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("index");
    // Few enough that a small index stays small.
    group.throughput(Throughput::Elements(PICKS as u64)).sample_size(20);
    let asked = picks(0, PICKS as u64);
    group.bench_function("keyed hash", |bencher| {
        bencher.iter(|| {
            asked.iter().for_each(|address| {
                black_box(blake3::keyed_hash(&[7; 32], &address.0));
            })
        });
    });
    for entries in ENTRIES {
        bench_tables(&mut group, entries);
        if entries <= MAP_ENTRIES_MAX {
            bench_map(&mut group, entries);
        }
    }
    group.finish();

    let mut group = criterion.benchmark_group("index/fill");
    group.sample_size(10);
    for entries in ENTRIES.into_iter().filter(|entries| *entries <= MAP_ENTRIES_MAX) {
        let addresses: Vec<_> = (0..entries).map(address).collect();
        group.throughput(Throughput::Elements(entries));
        group.bench_function(BenchmarkId::from_parameter(entries), |bencher| {
            bencher.iter_with_large_drop(|| {
                let index = Index::new([7; 32]);
                for (number, address) in (0..).zip(&addresses) {
                    index.insert(address, &place(number));
                }
                index
            });
        });
    }
    group.finish();
}

fn bench_tables(group: &mut BenchmarkGroup<'_, Wall>, entries: u64) {
    let index = Index::new([7; 32]);
    (0..entries).for_each(|number| index.insert(&address(number), &place(number)));
    println!("index of {entries} entries: {:.1} bytes each", index.bytes() as f64 / entries as f64);
    for (name, asked, found) in
        [("hit", picks(0, entries), true), ("miss", picks(entries, 2 * entries + PICKS as u64), false)]
    {
        assert!(asked.iter().all(|address| index.flags(address).is_some() == found));
        group.bench_function(BenchmarkId::new(name, entries), |bencher| {
            bencher.iter(|| asked.iter().filter(|address| index.flags(black_box(address)).is_some()).count());
        });
    }
    let news = news(entries);
    group.bench_function(BenchmarkId::new("insert", entries), |bencher| {
        bencher.iter_custom(|rounds| (0..rounds).map(|_| timed_inserts(&index, &news)).sum());
    });
}

fn news(entries: u64) -> Vec<(Address, Place)> {
    (entries..entries + PICKS as u64).map(|number| (address(number), place(number))).collect()
}

fn timed_inserts(index: &Index, news: &[(Address, Place)]) -> Duration {
    // An eighth at a time, so that a small index grows by half at most.
    let passes = news.chunks(PICKS / 8).map(|some| {
        let start = Instant::now();
        some.iter().for_each(|(address, place)| index.insert(address, place));
        let elapsed = start.elapsed();
        for (address, place) in some {
            index.remove(address, place.segment, place.offset).unwrap();
        }
        elapsed
    });
    passes.sum()
}

fn bench_map(group: &mut BenchmarkGroup<'_, Wall>, entries: u64) {
    let map: HashMap<[u8; 32], Place> = (0..entries).map(|number| (address(number).0, place(number))).collect();
    let map = Mutex::new(map);
    let asked = picks(0, entries);
    group.bench_function(BenchmarkId::new("map, hit", entries), |bencher| {
        bencher
            .iter(|| asked.iter().filter(|address| map.lock().unwrap().get(&black_box(address).0).is_some()).count());
    });
    let news = news(entries);
    group.bench_function(BenchmarkId::new("map, insert", entries), |bencher| {
        bencher.iter_custom(|rounds| {
            let passes = (0..rounds).map(|_| {
                let start = Instant::now();
                for (address, place) in &news {
                    map.lock().unwrap().insert(address.0, *place);
                }
                let elapsed = start.elapsed();
                let mut map = map.lock().unwrap();
                news.iter().for_each(|(address, _)| assert!(map.remove(&address.0).is_some()));
                elapsed
            });
            passes.sum()
        });
    });
}

criterion_group!(benches, index);
criterion_main!(benches);
