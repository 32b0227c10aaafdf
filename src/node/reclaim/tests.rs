//! Compaction with a real catalog over a simulated disk: what the log loses, the catalog does not miss.

use std::path::Path;
use std::rc::Rc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::format::certificate::{Class, InviteCertificate, NodeCertificate};
use crate::format::{BucketId, Incarnation, NameId, NetworkId, NodeId, PlacementId, Stamp, VaultId, VersionId};
use crate::store::simulated::SimulatedDisk;
use crate::store::{KeepAll, Store, StoreOptions, open};

pub(in crate::node) struct World {
    pub catalog: Catalog,
    pub store: Store<SimulatedDisk>,
    pub shared: Arc<StoreShared>,
    pub report: OpenReport,
}

fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes_max: 2 << 20,
        segment_records_max: 64,
        step_bytes: 512 << 10,
        ..StoreOptions::new(1, Incarnation([1; 16]), 9)
    }
}

async fn world(disk: &SimulatedDisk, directory: &Path) -> World {
    let world = damaged_world(disk, directory).await;
    assert_eq!((world.report.damaged_records, world.report.lost_blocks), (0, 0));
    world
}

pub(in crate::node) async fn damaged_world(disk: &SimulatedDisk, directory: &Path) -> World {
    let (catalog, positions) = Catalog::open(directory).unwrap();
    let mut replay = log::Replay::new(&catalog);
    let (shared, report) = open(disk, options(), &positions, &mut |replayed| replay.apply(replayed)).await.unwrap();
    replay.finish().await.unwrap();
    forget_gone(&catalog, &shared, &positions, &report).await.unwrap();
    let told = catalog.clone();
    let observer = Rc::new(move |applied| log::observe(&told, applied));
    let store = Store::attach(shared.clone(), disk.clone(), 0, observer, |task| {
        tokio::task::spawn_local(task);
    });
    World { catalog, store, shared, report }
}

pub(in crate::node) fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

fn version(number: u8) -> VersionId {
    VersionId::new(7, 1000, [number; 8])
}

fn name(number: u8, round: u16, tombstone: bool) -> SmallRecord {
    let record = NameRecord {
        tombstone,
        vault: VaultId([0; 16]),
        key_generation: 1,
        bucket: BucketId([3; 32]),
        name: NameId([number; 32]),
        clock: Stamp::new(1000 + u64::from(round), 0),
        version: version(number),
        nonce: [0; 24],
        sealed: vec![number; 200],
    };
    SmallRecord::Name(record.encode())
}

fn death(signer: u8, versions: std::ops::Range<u8>) -> SmallRecord {
    let signer = NodeCertificate {
        class: Class::Member,
        network: NetworkId([9; 32]),
        node: NodeId([signer; 32]),
        handshake_key: [1; 32],
        placement: PlacementId([2; 16]),
        capacity_limit: 0,
        zone: String::new(),
        invite: InviteCertificate::unsigned(Class::Member, "", 0, 0, [2; 32]),
        signature: [0; 64],
    };
    let versions = versions.map(version).collect();
    SmallRecord::Death(Death { signer, key_generation: 1, versions, signature: [0; 64] }.encode())
}

const VERSIONS: u8 = 30;
const DEAD: u8 = 27;

/// What a node writes in a while: most of it is superfluous in the end.
async fn fill(store: &Store<SimulatedDisk>) {
    let mut records = Vec::new();
    for number in 0..VERSIONS {
        for chunk in 0..30u8 {
            let address = Address(*blake3::hash(&[chunk, number % 7]).as_bytes());
            let capsule = if chunk == 0 { vec![number; 60] } else { Vec::new() };
            records.push(SmallRecord::Reference { address, version: version(number), capsule });
        }
    }
    for round in 0..20 {
        records.extend((0..8).map(|number| name(number, round, round == 19 && number < 3)));
        let value = |key: u8| if key == 0 && round == 19 { Vec::new() } else { vec![round as u8; 50] };
        records.extend((0..4u8).map(|key| log::document(u64::from(round) + 1, &[b'k', key], &value(key))));
    }
    for records in records.chunks(40) {
        store.append_all(records.to_vec()).await.unwrap();
    }
    // Two members signed some of the same versions.
    for record in [death(1, 0..20), death(2, 0..20), death(1, 15..DEAD), death(3, 3..4)] {
        store.append(record).await.unwrap();
    }
}

/// Everything that is asked of a catalog.
pub(in crate::node) async fn dump(catalog: &Catalog) -> Vec<String> {
    catalog.settled().await.unwrap();
    let mut dump = vec![format!("{:?}", catalog.counts().await.unwrap())];
    dump.extend(catalog.names(None, None, 1000).await.unwrap().iter().map(|record| format!("{record:?}")));
    dump.push(format!("{:?}", catalog.documents(b"").await.unwrap()));
    dump.push(format!("{:?}", catalog.document(&[b'k', 0]).await.unwrap()));
    for number in 0..VERSIONS {
        let is_dead = catalog.is_dead(&version(number)).await.unwrap();
        let death = catalog.death_of(&version(number)).await.unwrap();
        let chunks = catalog.chunks_of(&version(number), None, 1000).await.unwrap();
        assert_eq!((is_dead, death.is_some(), chunks.is_empty()), (number < DEAD, number < DEAD, number < DEAD));
        dump.push(format!("{number} {death:?} {chunks:?}"));
        for chunk in 0..30u8 {
            let address = Address(*blake3::hash(&[chunk, number % 7]).as_bytes());
            let capsules = catalog.capsules(&address).await.unwrap();
            dump.push(format!("{:?} {capsules:?}", catalog.references(&address).await.unwrap()));
        }
    }
    dump
}

async fn compact(world: &World) {
    let keep = Needed { catalog: world.catalog.clone(), surveys_max: usize::MAX };
    world.store.seal_open(&keep).await.unwrap();
    forget_unlinked(&world.catalog, &world.shared).await.unwrap();
}

/// A disk and a catalog that hold all that was written, in sealed segments.
pub(in crate::node) async fn filled(seed: u64, directory: &Path) -> (SimulatedDisk, Vec<String>) {
    let disk = SimulatedDisk::new(seed);
    let first = world(&disk, directory).await;
    fill(&first.store).await;
    let before = dump(&first.catalog).await;
    first.store.close().await.unwrap();
    first.catalog.close().await.unwrap();
    (disk, before)
}

/// The same after a power cut: the last segment was open, and its last batches hold one name each.
pub(in crate::node) async fn cut_off(seed: u64, directory: &Path) -> (SimulatedDisk, Vec<String>) {
    let disk = SimulatedDisk::new(seed);
    let first = world(&disk, directory).await;
    fill(&first.store).await;
    for number in 200..210 {
        first.store.append(name(number, 0, false)).await.unwrap();
    }
    let before = dump(&first.catalog).await;
    first.catalog.close().await.unwrap();
    (disk.crash(seed), before)
}

#[test]
fn compaction_drops_what_is_superfluous_and_the_catalog_misses_nothing() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (disk, before) = filled(1, directory.path()).await;
        let world_now = world(&disk, directory.path()).await;
        let bytes = world_now.store.stats().bytes_disk;
        world_now.store.seal_open(&KeepAll).await.unwrap();
        assert!(world_now.store.stats().bytes_disk * 10 > bytes * 9, "without knowledge all is kept");
        compact(&world_now).await;
        let left = world_now.store.stats().bytes_disk;
        assert!(left * 3 < bytes, "{left} of {bytes} bytes are left");
        assert_eq!(dump(&world_now.catalog).await, before);
        // Once more: what was carried along is carried again at most.
        compact(&world_now).await;
        assert!(world_now.store.stats().bytes_disk <= left);
        assert_eq!(dump(&world_now.catalog).await, before);
        world_now.store.close().await.unwrap();
        world_now.catalog.close().await.unwrap();
        let (again, positions) = Catalog::open(directory.path()).unwrap();
        let gone: Vec<_> = positions.keys().filter(|segment| !world_now.shared.has_segment(**segment)).collect();
        assert!(gone.is_empty(), "positions of segments that are no more: {gone:?}");
        assert_eq!(dump(&again).await, before);
        // From the compacted log alone.
        let empty = tempfile::tempdir().unwrap();
        let rebuilt = world(&disk, empty.path()).await;
        assert_eq!(dump(&rebuilt.catalog).await, before);
    });
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_power_cut_in_the_middle_of_compaction_loses_nothing() {
    let seed: u64 = std::env::var("GABION_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(rand::random());
    println!("GABION_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cuts = 0;
    for _ in 0..8 {
        run(async {
            let directory = tempfile::tempdir().unwrap();
            let (disk, before) = filled(random.random(), directory.path()).await;
            let survivor = tempfile::tempdir().unwrap();
            copy(directory.path(), survivor.path());
            let world_now = world(&disk, directory.path()).await;
            let cut = Rc::new(std::cell::RefCell::new(None));
            let hook = cut.clone();
            disk.crash_at(random.random_range(1..80), move |disk| *hook.borrow_mut() = Some(disk));
            compact(&world_now).await;
            let taken = cut.borrow_mut().take();
            cuts += usize::from(taken.is_some());
            let left = taken.unwrap_or_else(|| disk.crash(random.random()));
            // With the catalog of before the compaction, then with none; compacted to the end in between.
            let again = world(&left, survivor.path()).await;
            assert_eq!(dump(&again.catalog).await, before, "with the catalog that survived");
            compact(&again).await;
            assert_eq!(dump(&again.catalog).await, before);
            again.store.close().await.unwrap();
            let empty = tempfile::tempdir().unwrap();
            let rebuilt = world(&left, empty.path()).await;
            assert_eq!(dump(&rebuilt.catalog).await, before, "rebuilt from the log");
        });
    }
    assert!(cuts > 0, "no cut came in the middle");
}
