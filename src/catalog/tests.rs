//! The catalog against a model that keeps everything in maps.

mod full_disk;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::{Applied, Catalog, CatalogCounts, CatalogError, Document, Event, Positions};
use crate::cluster::deaths::DeathId;
use crate::format::name::NameRecord;
use crate::format::{Address, BucketId, NameId, Stamp, VaultId, VersionId};
use crate::limits::{
    CATALOG_COMMIT_EVENTS_MAX, CATALOG_EVENTS_QUEUED_MAX, CATALOG_SWEEPS_REMEMBERED_MAX, CATALOG_WAITING_ROWS_MAX,
};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory for the test")
}

fn open(directory: &Path) -> (Catalog, Positions) {
    Catalog::open(directory).expect("the catalog opens")
}

fn address(number: u8) -> Address {
    Address([number; 32])
}

fn version(number: u8) -> VersionId {
    VersionId::new(u32::from(number), 7, [number; 8])
}

fn record(bucket: u8, name: u8, clock: u8, by: u8, tombstone: bool) -> NameRecord {
    NameRecord {
        tombstone,
        vault: VaultId::ZERO,
        key_generation: 0,
        bucket: BucketId([bucket; 32]),
        name: NameId([name; 32]),
        clock: Stamp::new(u64::from(clock), 0),
        version: version(by),
        nonce: [0; 24],
        sealed: vec![clock; 20],
    }
}

fn death(versions: &[u8]) -> Event {
    let versions: Vec<VersionId> = versions.iter().map(|number| version(*number)).collect();
    let death = versions.iter().flat_map(|version| zerocopy::IntoBytes::as_bytes(version).to_vec()).collect();
    Event::Death { versions, death }
}

fn applied(segment: u64, end_offset: u64, events: Vec<Event>) -> Applied {
    Applied { segment, end_offset, events }
}

fn refers(address_number: u8, version_number: u8) -> Event {
    Event::Reference {
        address: address(address_number),
        version: version(version_number),
        capsule: None,
        is_first: false,
    }
}

const ADDRESSES: u8 = 5;
const VERSIONS: u8 = 5;

/// Everything that can be asked, for comparison.
#[derive(PartialEq, Eq, Debug, Default)]
struct Seen {
    references: BTreeMap<Address, BTreeSet<VersionId>>,
    capsules: BTreeMap<Address, Vec<(VersionId, Vec<u8>)>>,
    chunks: BTreeMap<VersionId, Vec<Address>>,
    dead: BTreeMap<VersionId, Vec<u8>>,
    names: Vec<NameRecord>,
    documents: Vec<(Vec<u8>, Vec<u8>)>,
    garbage: BTreeSet<Address>,
    counts: CatalogCounts,
}

async fn see(catalog: &Catalog) -> Result<Seen, CatalogError> {
    catalog.settled().await?;
    let mut seen = Seen { counts: catalog.counts().await?, ..Seen::default() };
    for number in 0..ADDRESSES {
        let address = address(number);
        let listed = catalog.references(&address).await?;
        assert_eq!(catalog.first_reference(&address).await?, listed.first().copied());
        let references: BTreeSet<VersionId> = listed.into_iter().collect();
        assert_eq!(catalog.is_referenced(&address).await?, !references.is_empty());
        assert_eq!(catalog.unreferenced(vec![address]).await?.is_empty(), !references.is_empty());
        if !references.is_empty() {
            seen.references.insert(address, references);
        }
        let capsules = catalog.capsules(&address).await?;
        if !capsules.is_empty() {
            seen.capsules.insert(address, capsules);
        }
    }
    for number in 1..=VERSIONS {
        let version = version(number);
        let chunks = catalog.chunks_of(&version, None, 100).await?;
        if !chunks.is_empty() {
            seen.chunks.insert(version, chunks);
        }
        if let Some(death) = catalog.death_of(&version).await? {
            assert!(catalog.is_dead(&version).await? && catalog.has_death(&DeathId::of(&death)).await?);
            seen.dead.insert(version, death);
        }
    }
    assert_eq!(catalog.versions(None, 100).await?, seen.chunks.keys().copied().collect::<Vec<_>>());
    seen.names = catalog.names(None, None, 100).await?;
    seen.documents = catalog.documents(b"").await?;
    seen.garbage = catalog.garbage(100, Duration::ZERO).await?.into_iter().collect();
    Ok(seen)
}

/// What the rules say, by the simplest means.
fn expected(events: &[Event]) -> Seen {
    let mut seen = Seen::default();
    let mut names: BTreeMap<(BucketId, NameId), NameRecord> = BTreeMap::new();
    let mut documents: BTreeMap<Vec<u8>, (u64, Vec<u8>)> = BTreeMap::new();
    for event in events {
        if let Event::Death { versions, death } = event {
            for version in versions {
                let known = seen.dead.entry(*version).or_insert_with(|| death.clone());
                if DeathId::of(death) < DeathId::of(known) {
                    *known = death.clone();
                }
            }
        }
    }
    let mut capsules: BTreeMap<(Address, VersionId), Vec<u8>> = BTreeMap::new();
    let mut garbage = BTreeSet::new();
    for event in events {
        match event {
            Event::Chunk { address, version, cached: false } | Event::Reference { address, version, .. } => {
                if seen.dead.contains_key(version) {
                    garbage.insert(*address);
                    continue;
                }
                seen.references.entry(*address).or_default().insert(*version);
                if let Event::Reference { capsule: Some(capsule), .. } = event {
                    let known = capsules.entry((*address, *version)).or_default();
                    *known = known.clone().max(capsule.clone());
                }
            }
            Event::Name(encoded) => {
                let record = NameRecord::decode(encoded).expect("a sound record");
                let place = (record.bucket, record.name);
                if names
                    .get(&place)
                    .is_none_or(|known| (record.order(), record.encode()) > (known.order(), known.encode()))
                {
                    names.insert(place, record);
                }
            }
            Event::Document(document) => {
                let known = documents.entry(document.key.clone()).or_default();
                *known = known.clone().max((document.serial, document.value.clone()));
            }
            Event::Chunk { cached: true, .. } | Event::Death { .. } | Event::Removed { .. } => {}
        }
    }
    for ((address, version), capsule) in capsules {
        seen.capsules.entry(address).or_default().push((version, capsule));
    }
    for (address, versions) in &seen.references {
        for version in versions {
            seen.chunks.entry(*version).or_default().push(*address);
        }
    }
    seen.garbage = garbage.into_iter().filter(|address| !seen.references.contains_key(address)).collect();
    seen.counts = CatalogCounts {
        names: names.values().filter(|record| !record.tombstone).count() as u64,
        versions: seen.chunks.len() as u64,
        references: seen.references.values().map(|versions| versions.len() as u64).sum(),
        deaths: seen.dead.len() as u64,
    };
    seen.names = names.into_values().collect();
    seen.documents = documents
        .into_iter()
        .filter(|(_, (_, value))| !value.is_empty())
        .map(|(key, (_, value))| (key, value))
        .collect();
    seen
}

fn any_event() -> impl Strategy<Value = Event> {
    let capsule = prop::option::of(prop::collection::vec(1u8..4, 1..3));
    prop_oneof![
        3 => (0..ADDRESSES, 1..=VERSIONS, prop::bool::weighted(0.2)).prop_map(|(chunk, by, cached)| Event::Chunk {
            address: address(chunk),
            version: version(by),
            cached,
        }),
        3 => (0..ADDRESSES, 1..=VERSIONS, capsule).prop_map(|(chunk, by, capsule)| Event::Reference {
            address: address(chunk),
            version: version(by),
            capsule,
            is_first: false,
        }),
        2 => (0u8..2, 0u8..3, 0u8..4, 1..=VERSIONS, any::<bool>())
            .prop_map(|(bucket, name, clock, by, gone)| Event::Name(record(bucket, name, clock, by, gone).encode())),
        1 => prop::collection::btree_set(1..=VERSIONS, 1..3)
            .prop_map(|versions| death(&versions.into_iter().collect::<Vec<_>>())),
        1 => (0u64..4, 0u8..3, prop::collection::vec(0u8..2, 0..2))
            .prop_map(|(serial, key, value)| Event::Document(Document { serial, key: vec![key, 7], value })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever the order, however split into batches, also twice: the same state, and the one that the rules say.
    #[test]
    fn events_in_any_order_give_the_same_state(events in prop::collection::vec(any_event(), 1..40), seed in any::<u64>()) {
        let expected = expected(&events);
        let mut rng = StdRng::seed_from_u64(seed);
        for repeats in [1, 2] {
            let directory = directory();
            let (catalog, _) = open(directory.path());
            let mut shuffled: Vec<Event> = events.iter().cycle().take(events.len() * repeats).cloned().collect();
            shuffled.shuffle(&mut rng);
            let pieces = rng.random_range(1..6);
            for (segment, piece) in shuffled.chunks(shuffled.len().div_ceil(pieces)).enumerate() {
                catalog.apply(applied(segment as u64, 100, piece.to_vec())).expect("room");
                if rng.random_bool(0.3) {
                    block_on(catalog.counts()).expect("an answer");
                }
            }
            prop_assert_eq!(&block_on(see(&catalog)).expect("answers"), &expected);
        }
    }

    /// A node that dies at any moment, several times, and replays from the positions that the catalog opened with.
    #[test]
    fn replay_from_positions_after_crashes_gives_the_same_state(
        log in prop::collection::vec(prop::collection::vec(any_event(), 0..15), 3),
        crashes in prop::collection::vec((any::<u64>(), any::<bool>()), 1..4),
    ) {
        let all: Vec<Event> = log.iter().flatten().cloned().collect();
        let directory = directory();
        for (seed, waits) in crashes {
            let (catalog, positions) = open(directory.path());
            replay(&catalog, &log, &positions, seed, Some((seed % 20) as usize));
            if waits {
                block_on(catalog.counts()).expect("an answer");
            }
            // Dropped without being closed: what is queued is lost.
        }
        let (catalog, positions) = open(directory.path());
        replay(&catalog, &log, &positions, 0, None);
        prop_assert_eq!(&block_on(see(&catalog)).expect("answers"), &expected(&all));
        block_on(catalog.close()).expect("it closes");
        drop(catalog);
        let (catalog, positions) = open(directory.path());
        for (segment, events) in log.iter().enumerate() {
            prop_assert_eq!(positions.get(&(segment as u64)).copied().unwrap_or(0), events.len() as u64);
        }
        prop_assert_eq!(&block_on(see(&catalog)).expect("answers"), &expected(&all));
    }
}

/// Applies each segment's events (an event is one unit of offset) from its position on, segments interleaved by lot, `limit`
/// batches at most.
fn replay(catalog: &Catalog, log: &[Vec<Event>], positions: &Positions, seed: u64, limit: Option<usize>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut at: Vec<usize> =
        (0..log.len()).map(|segment| positions.get(&(segment as u64)).copied().unwrap_or(0) as usize).collect();
    let mut batches = 0;
    loop {
        let open: Vec<usize> = (0..log.len()).filter(|segment| at[*segment] < log[*segment].len()).collect();
        if open.is_empty() || limit.is_some_and(|limit| batches >= limit) {
            return;
        }
        let segment = open[rng.random_range(0..open.len())];
        let end = (at[segment] + rng.random_range(1..4)).min(log[segment].len());
        catalog.apply(applied(segment as u64, end as u64, log[segment][at[segment]..end].to_vec())).expect("room");
        at[segment] = end;
        batches += 1;
    }
}

#[test]
fn first_reference_of_a_version_counts_once_however_it_is_told() {
    let chunk = Event::Chunk { address: address(1), version: version(1), cached: false };
    let root = |is_first| Event::Reference {
        address: address(1),
        version: version(1),
        capsule: Some(b"sealed".to_vec()),
        is_first,
    };
    // Together; in two batches; with something between; told by who does not know.
    for batches in [
        vec![vec![chunk.clone(), root(true)]],
        vec![vec![chunk.clone()], vec![root(true)]],
        vec![vec![chunk.clone(), refers(2, 2), root(true)], vec![death(&[2])]],
        vec![vec![chunk.clone(), root(false)]],
        vec![vec![chunk.clone(), root(true)], vec![chunk.clone(), root(false)]],
    ] {
        let directory = directory();
        let (catalog, _) = open(directory.path());
        for (number, events) in batches.into_iter().enumerate() {
            catalog.apply(applied(1, 64 * (number as u64 + 1), events)).expect("room");
        }
        block_on(catalog.settled()).expect("everything is swept");
        let CatalogCounts { versions, references, .. } = block_on(catalog.counts()).expect("an answer");
        assert_eq!((versions, references), (1, 1));
        let capsules = block_on(catalog.capsules(&address(1))).expect("an answer");
        assert_eq!(capsules, [(version(1), b"sealed".to_vec())]);
        catalog.apply(applied(1, 640, vec![death(&[1])])).expect("room");
        block_on(catalog.settled()).expect("everything is swept");
        let CatalogCounts { versions, references, .. } = block_on(catalog.counts()).expect("an answer");
        assert_eq!((versions, references), (0, 0));
    }
}

#[test]
fn more_dead_versions_than_are_remembered_are_swept() {
    let count = CATALOG_SWEEPS_REMEMBERED_MAX as u64 + 10;
    let numbered = |number: u64| VersionId::new(3, 7, number.to_le_bytes());
    let directory = directory();
    let (catalog, _) = open(directory.path());
    let references = (0..count).map(|number| Event::Chunk {
        address: address((number % 200) as u8),
        version: numbered(number),
        cached: false,
    });
    for events in references.collect::<Vec<_>>().chunks(4096) {
        catalog.apply(applied(1, 64, events.to_vec())).expect("room");
    }
    let dead: Vec<VersionId> = (0..count).map(numbered).collect();
    catalog.apply(applied(1, 128, vec![Event::Death { versions: dead, death: vec![1; 16] }])).expect("room");
    block_on(catalog.settled()).expect("everything is swept");
    let counts = block_on(catalog.counts()).expect("an answer");
    assert_eq!(counts, CatalogCounts { deaths: count, ..CatalogCounts::default() });
    assert_eq!(block_on(catalog.garbage(1000, Duration::ZERO)).expect("an answer").len(), 200);
}

#[test]
fn damaged_database_is_deleted_and_asks_for_everything() {
    for victim in ["version", "jnl", "every"] {
        let directory = directory();
        let (catalog, _) = open(directory.path());
        catalog.apply(applied(1, 64, vec![refers(1, 1)])).expect("room");
        block_on(catalog.close()).expect("it closes");
        drop(catalog);
        let mut damaged = 0;
        for file in files_below(&directory.path().join("database")) {
            let name = file.to_string_lossy().into_owned();
            if victim == "every" || name.ends_with(victim) {
                let bytes = std::fs::read(&file).expect("a file");
                std::fs::write(&file, bytes.iter().map(|byte| byte ^ 0x5a).collect::<Vec<u8>>()).expect("damaged");
                damaged += 1;
            }
        }
        assert!(damaged > 0, "no file matches {victim}");
        let (catalog, positions) = open(directory.path());
        assert!(positions.is_empty(), "{victim}: {positions:?}");
        assert_eq!(block_on(catalog.counts()).expect("an answer"), CatalogCounts::default());
        catalog.apply(applied(1, 64, vec![refers(1, 1)])).expect("room");
        assert!(block_on(catalog.is_referenced(&address(1))).expect("an answer"));
    }
}

fn files_below(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn marker_of_doubt_makes_the_next_start_rebuild() {
    let directory = directory();
    let (catalog, _) = open(directory.path());
    catalog.apply(applied(1, 64, vec![refers(1, 1)])).expect("room");
    block_on(catalog.close()).expect("it closes");
    drop(catalog);
    let (catalog, positions) = open(directory.path());
    assert_eq!(positions.get(&1), Some(&64));
    drop(catalog);
    std::fs::write(directory.path().join("doubt"), b"").expect("a marker");
    let (catalog, positions) = open(directory.path());
    assert!(positions.is_empty());
    drop(catalog);
    let (_catalog, _) = open(directory.path());
    assert!(!directory.path().join("doubt").exists(), "the marker goes once the database is sound");
}

#[test]
fn unknown_format_is_rebuilt() {
    let directory = directory();
    let (catalog, _) = open(directory.path());
    catalog.apply(applied(1, 64, vec![refers(1, 1)])).expect("room");
    block_on(catalog.close()).expect("it closes");
    drop(catalog);
    let database = fjall::Database::builder(directory.path().join("database")).open().expect("it opens");
    let keyspace = database.keyspace("catalog", fjall::KeyspaceCreateOptions::default).expect("it is there");
    keyspace.insert([super::rows::META], 9u16.to_le_bytes()).expect("written");
    drop(keyspace);
    drop(database);
    assert!(open(directory.path()).1.is_empty());
}

#[test]
fn second_process_is_told_that_the_catalog_is_in_use_and_harms_nothing() {
    let directory = directory();
    let (catalog, _) = open(directory.path());
    catalog.apply(applied(1, 64, vec![refers(1, 1)])).expect("room");
    assert!(matches!(Catalog::open(directory.path()), Err(CatalogError::Locked { .. })));
    block_on(catalog.close()).expect("it closes");
    drop(catalog);
    assert_eq!(open(directory.path()).1.get(&1), Some(&64));
}

/// A catalog whose uptime the test moves.
fn open_at(directory: &Path) -> (Catalog, Arc<AtomicU64>) {
    let uptime = Arc::new(AtomicU64::new(0));
    let clock = uptime.clone();
    let uptime_of = Arc::new(move || Duration::from_secs(clock.load(Ordering::SeqCst)));
    (Catalog::open_with(directory, uptime_of).expect("the catalog opens").0, uptime)
}

#[test]
fn garbage_waits_out_its_grace_in_this_run_of_the_node() {
    let directory = directory();
    let grace = Duration::from_secs(900);
    let (catalog, uptime) = open_at(directory.path());
    block_on(async {
        uptime.store(10_000, Ordering::SeqCst);
        catalog.apply(applied(1, 64, vec![refers(1, 1), refers(2, 1), refers(2, 2), death(&[1])])).expect("room");
        assert_eq!(
            catalog.garbage(10, Duration::ZERO).await.expect("an answer"),
            [address(1)],
            "the other has version 2"
        );
        assert_eq!(catalog.garbage(10, grace).await.expect("an answer"), []);
        uptime.store(10_899, Ordering::SeqCst);
        assert_eq!(catalog.garbage(10, grace).await.expect("an answer"), []);
        uptime.store(10_900, Ordering::SeqCst);
        assert_eq!(catalog.garbage(10, grace).await.expect("an answer"), [address(1)]);
        catalog.close().await.expect("it closes");
    });
    drop(catalog);
    let (catalog, uptime) = open_at(directory.path());
    block_on(async {
        uptime.store(899, Ordering::SeqCst);
        assert_eq!(catalog.garbage(10, grace).await.expect("an answer"), [], "the wait starts again with the node");
        uptime.store(900, Ordering::SeqCst);
        assert_eq!(catalog.garbage(10, grace).await.expect("an answer"), [address(1)]);
    });
}

#[test]
fn new_reference_ends_the_wait_and_the_next_one_counts_anew() {
    let directory = directory();
    let grace = Duration::from_secs(900);
    let (catalog, uptime) = open_at(directory.path());
    block_on(async {
        catalog.apply(applied(1, 64, vec![refers(1, 1), death(&[1])])).expect("room");
        catalog.settled().await.expect("swept");
        uptime.store(2_000, Ordering::SeqCst);
        catalog.apply(applied(1, 128, vec![refers(1, 2)])).expect("room");
        assert_eq!(catalog.garbage(10, grace).await.expect("an answer"), []);
        catalog.apply(applied(1, 192, vec![death(&[2])])).expect("room");
        assert_eq!(catalog.garbage(10, grace).await.expect("an answer"), [], "it has been garbage for no time yet");
        assert_eq!(catalog.garbage(10, Duration::ZERO).await.expect("an answer"), [address(1)]);
        catalog.apply(applied(1, 256, vec![Event::Removed { address: address(1) }])).expect("room");
        assert_eq!(catalog.garbage(10, Duration::ZERO).await.expect("an answer"), [], "it is gone from the store");
    });
}

#[test]
fn a_name_in_memory_is_never_older_than_what_was_applied_before_the_question() {
    let directory = directory();
    let (catalog, _) = open(directory.path());
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut latest: BTreeMap<u8, NameRecord> = BTreeMap::new();
    let mut from_memory = 0;
    block_on(async {
        for step in 1..=2000_u64 {
            let number = random.random_range(0..20);
            let asked = record(1, number, 0, 0, false);
            if random.random_range(0..3) == 0 {
                let next = record(1, number, random.random_range(0..100), random.random_range(0..9), random.random());
                catalog.apply_now(applied(1, step, vec![Event::Name(next.encode())]));
                let wins = |held: &NameRecord| (next.order(), next.encode()) > (held.order(), held.encode());
                if latest.get(&number).is_none_or(wins) {
                    latest.insert(number, next);
                }
            }
            from_memory += usize::from(catalog.name_at_once(&asked.bucket, &asked.name).is_some());
            let told = match random.random() {
                true => catalog.name(&asked.bucket, &asked.name).await.expect("an answer"),
                false => {
                    let names = vec![(asked.bucket, asked.name)];
                    catalog.names_of(names).await.expect("an answer").pop().expect("one")
                }
            };
            assert_eq!(told.as_ref(), latest.get(&number), "step {step}");
        }
    });
    assert!(from_memory > 500, "{from_memory} of 2000 answers came from memory");
}

fn many(number: u32) -> Address {
    let mut address = Address::ZERO;
    address.0.copy_from_slice(blake3::hash(&number.to_le_bytes()).as_bytes());
    address
}

/// More references than one step drops, and more events than the queue takes at once.
#[test]
fn death_of_a_big_version_hides_it_at_once_and_frees_every_chunk() {
    let count = 90_000u32;
    let directory = directory();
    let (catalog, _) = open(directory.path());
    let started = std::time::Instant::now();
    block_on(async {
        for (batch, numbers) in (0..count).collect::<Vec<_>>().chunks(1000).enumerate() {
            let chunk = |number: &u32| Event::Chunk { address: many(*number), version: version(1), cached: false };
            catalog.apply_async(applied(1, batch as u64 + 1, numbers.iter().map(chunk).collect())).await;
        }
        assert_eq!(catalog.counts().await.expect("an answer").references, u64::from(count));
        println!("{count} references in {:?}", started.elapsed());
        let first = catalog.chunks_of(&version(1), None, 10).await.expect("an answer");
        let next = catalog.chunks_of(&version(1), first.last().copied(), 10).await.expect("an answer");
        assert!(first.is_sorted() && next.is_sorted() && first.last() < next.first());
        catalog.apply_async(applied(1, 1000, vec![death(&[1])])).await;
        assert!(!catalog.is_referenced(&many(17)).await.expect("an answer"), "hidden before it is dropped");
        assert!(!catalog.is_referenced(&many(count - 1)).await.expect("an answer"));
        let mut garbage = BTreeSet::new();
        for _ in 0..=count / 7_000 {
            garbage.extend(catalog.garbage(7_000, Duration::ZERO).await.expect("an answer"));
        }
        assert_eq!(garbage.len(), count as usize, "each call goes on where the last one stopped");
        let counts = catalog.counts().await.expect("an answer");
        assert_eq!(counts, CatalogCounts { names: 0, versions: 0, references: 0, deaths: 1 });
        println!("dropped after {:?}", started.elapsed());
    });
}

/// A crash between two steps of dropping leaves nothing behind.
#[test]
fn dropping_goes_on_after_a_restart() {
    let directory = directory();
    let count = 30_000u32;
    let (catalog, _) = open(directory.path());
    let chunk = |number: u32| Event::Chunk { address: many(number), version: version(1), cached: false };
    catalog.apply(applied(1, 1, (0..count).map(chunk).collect())).expect("room");
    catalog.apply(applied(1, 2, vec![death(&[1])])).expect("room");
    block_on(catalog.is_dead(&version(1))).expect("an answer");
    drop(catalog);
    let (catalog, positions) = open(directory.path());
    assert_eq!(positions.get(&1), Some(&2));
    block_on(async {
        catalog.settled().await.expect("swept");
        assert_eq!(catalog.counts().await.expect("an answer").references, 0);
        let mut garbage = BTreeSet::new();
        for _ in 0..4 {
            garbage.extend(catalog.garbage(10_000, Duration::ZERO).await.expect("an answer"));
        }
        assert_eq!(garbage.len(), count as usize);
    });
}

#[test]
fn question_sees_everything_that_was_applied_before_it() {
    let directory = directory();
    let (catalog, _) = open(directory.path());
    block_on(async {
        for number in 0..200u8 {
            catalog.apply(applied(1, u64::from(number), vec![refers(number, 1)])).expect("room");
            assert!(catalog.is_referenced(&address(number)).await.expect("an answer"));
        }
    });
}

#[test]
fn names_are_paged_in_order_over_one_bucket_or_all() {
    let directory = directory();
    let (catalog, _) = open(directory.path());
    let events = (0..30u8).map(|name| Event::Name(record(name % 3, name, 1, 1, name % 5 == 0).encode())).collect();
    catalog.apply(applied(1, 1, events)).expect("room");
    block_on(async {
        for bucket in [None, Some(BucketId([1; 32]))] {
            let (mut after, mut found) = (None, Vec::new());
            loop {
                let page = catalog.names(bucket.as_ref(), after, 4).await.expect("an answer");
                let Some(last) = page.last() else { break };
                after = Some((last.bucket, last.name));
                found.extend(page.into_iter().map(|record| (record.bucket, record.name)));
            }
            assert!(found.is_sorted());
            assert_eq!(found.len(), if bucket.is_some() { 10 } else { 30 });
        }
        let start = Some((BucketId([0; 32]), NameId([255; 32])));
        let behind = catalog.names(Some(&BucketId([1; 32])), start, 100).await.expect("an answer");
        assert_eq!(behind.len(), 10, "a place in an earlier bucket is before all of this one");
        assert_eq!(catalog.counts().await.expect("an answer").names, 24);
    });
}

#[test]
fn documents_keep_the_latest_and_deleted_ones_stay_away() {
    let directory = directory();
    let (catalog, _) = open(directory.path());
    let document =
        |serial, value: &[u8]| Event::Document(Document { serial, key: b"layout/1".to_vec(), value: value.to_vec() });
    block_on(async {
        assert_eq!(catalog.next_serial(b"layout/1").await.expect("an answer"), 1);
        catalog.apply(applied(1, 1, vec![document(2, b"two"), document(1, b"one")])).expect("room");
        assert_eq!(catalog.document(b"layout/1").await.expect("an answer"), Some(b"two".to_vec()));
        assert_eq!(catalog.documents(b"layout/").await.expect("an answer"), [(b"layout/1".to_vec(), b"two".to_vec())]);
        assert_eq!(catalog.next_serial(b"layout/1").await.expect("an answer"), 3);
        catalog.apply(applied(1, 1, vec![document(3, b""), document(2, b"two")])).expect("room");
        assert_eq!(catalog.document(b"layout/1").await.expect("an answer"), None);
        assert_eq!(catalog.next_serial(b"layout/1").await.expect("an answer"), 4);
    });
}

#[test]
fn closed_catalog_answers_with_an_error_and_swallows_events() {
    let directory = directory();
    let (catalog, _) = open(directory.path());
    block_on(async {
        catalog.close().await.expect("it closes");
        catalog.apply_async(applied(1, 1, vec![refers(1, 1)])).await;
        assert!(matches!(catalog.counts().await, Err(CatalogError::Closed)));
        assert!(matches!(catalog.is_referenced(&address(1)).await, Err(CatalogError::Closed)));
        catalog.room().await.expect("room");
        assert!(matches!(catalog.close().await, Err(CatalogError::Closed)));
    });
}

#[test]
fn unlinked_segment_leaves_no_position() {
    let directory = directory();
    let (catalog, _) = open(directory.path());
    catalog.apply(applied(1, 64, vec![])).expect("room");
    catalog.apply(applied(2, 64, vec![])).expect("room");
    block_on(async {
        catalog.forget_segment(1).await.expect("forgotten");
        catalog.close().await.expect("it closes");
    });
    drop(catalog);
    assert_eq!(open(directory.path()).1, Positions::from([(2, 64)]));
}

proptest! {
    #[test]
    fn document_record_round_trips_and_arbitrary_bytes_do_not_panic(
        serial in any::<u64>(),
        key in prop::collection::vec(any::<u8>(), 1..256),
        value in prop::collection::vec(any::<u8>(), 0..600),
        noise in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let document = Document { serial, key, value };
        let encoded = document.encode();
        prop_assert_eq!(Document::decode(&encoded), Ok(document));
        prop_assert!(Document::decode(&encoded[..encoded.len() - 1]).is_err());
        let _either = Document::decode(&noise);
    }
}

#[test]
fn what_is_durable_is_taken_at_once_and_the_next_waits_for_room_without_blocking_its_thread() {
    let directory = directory();
    let (catalog, _) = open(directory.path());
    block_on(async {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (started, is_held) = tokio::sync::oneshot::channel();
        let busy = catalog.clone();
        let question = busy.thread.ask(move |_| {
            let _unheard = started.send(());
            // The thread works on something for as long as it likes.
            held.recv().map_err(|_| CatalogError::Closed)
        });
        let mut question = std::pin::pin!(question);
        tokio::select! {
            _ = &mut question => panic!("it is held"),
            _ = is_held => {}
        }
        catalog.room().await.expect("room");
        // Twice as much as the queue takes: none of it blocks this thread, or the release below would never come.
        for batch in 0..2 * CATALOG_EVENTS_QUEUED_MAX as u64 / 1024 {
            let events = (0..1024).map(|number| refers((number % 250) as u8, 1)).collect();
            catalog.apply_now(applied(1, batch + 1, events));
        }
        {
            let mut room = std::pin::pin!(catalog.room());
            tokio::select! {
                biased;
                _ = &mut room => panic!("there is no room"),
                () = tokio::task::yield_now() => {}
            }
            release.send(()).expect("it waits");
            room.await.expect("room");
        }
        question.await.expect("an answer");
        assert_eq!(catalog.counts().await.expect("counts").references, 250);
    });
}
