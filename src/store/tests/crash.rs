//! Power cuts at random moments: what was acknowledged is there, what was removed is not, nothing needs a person.
//!
//! A workload of several tasks runs on the simulated disk; at a random operation the disk is cut off as a power cut
//! would leave it, together with a copy of what had been acknowledged by then. The same is done to the recovery itself.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::support::*;
use crate::format::{Address, VersionId};
use crate::store::simulated::{Faults, SimulatedDisk};
use crate::store::{Applied, AppliedEvent, Removal, SmallRecord, StoreOptions};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// An operation runs, or failed: both outcomes are right.
    Open,
    Here,
    Gone,
}

#[derive(Clone, Default)]
struct Model {
    chunks: BTreeMap<u64, Fate>,
    /// Acknowledged while the chunk was there, and the chunk was not removed since.
    references: BTreeSet<(u64, VersionId)>,
    names: BTreeSet<Vec<u8>>,
    /// A write that failed may be whole on the disk and appear after a cut, even when the chunk was removed since.
    failed: BTreeSet<u64>,
    acknowledged: usize,
}

/// What the power cut left, and what must be in it.
struct Cut {
    disk: SimulatedDisk,
    model: Model,
    /// What the catalog had been told by then.
    applied: Vec<Applied>,
}

fn bytes_of(number: u64) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(number);
    let len =
        if random.random_bool(0.4) { random.random_range(65_536..200_000) } else { random.random_range(32..9000) };
    payload(number, len)
}

fn address(number: u64) -> Address {
    address_of(&bytes_of(number))
}

async fn one_task(store: Sim, model: Rc<RefCell<Model>>, task: u64, mut random: SmallRng) {
    for _ in 0..30 {
        // Each task has its own chunks, so that the model knows the order of what happens to one.
        let number = task * 1000 + random.random_range(0..12);
        let version = version(random.random_range(1..4));
        match random.random_range(0..10) {
            0..6 => {
                let before = model.borrow().chunks.get(&number).copied();
                if before != Some(Fate::Here) {
                    model.borrow_mut().chunks.insert(number, Fate::Open);
                }
                let result = put(&store, &bytes_of(number), &version).await;
                let mut model = model.borrow_mut();
                if result.is_err() {
                    model.failed.insert(number);
                } else {
                    model.chunks.insert(number, Fate::Here);
                    model.references.insert((number, version));
                    model.acknowledged += 1;
                }
            }
            6 => {
                {
                    let mut model = model.borrow_mut();
                    model.references.retain(|(other, _)| *other != number);
                    model.chunks.entry(number).and_modify(|fate| *fate = Fate::Open);
                }
                match store.remove(&address(number), async |_| false).await {
                    Ok(Removal::Removed | Removal::Absent) => {
                        model.borrow_mut().chunks.insert(number, Fate::Gone);
                    }
                    Ok(Removal::Kept) => panic!("nobody refers"),
                    Err(_) => {}
                }
            }
            7 => {
                let name = format!("{task} {}", random.random::<u32>()).into_bytes();
                if store.append(SmallRecord::Name(name.clone())).await.is_ok() {
                    model.borrow_mut().names.insert(name);
                }
            }
            8 => {
                let _ = match random.random_range(0..3) {
                    0 => store.checkpoint().await,
                    _ => store.seal_open(&crate::store::KeepAll).await,
                };
            }
            _ => {
                let here = model.borrow().chunks.get(&number) == Some(&Fate::Here);
                let found = get(&store, &address(number)).await;
                if here {
                    assert_eq!(found, Some(bytes_of(number)), "chunk {number} while running");
                }
            }
        }
    }
}

/// Runs the workload until the cut; None when it ended before.
fn run_until_cut(seed: u64, options: StoreOptions, with_faults: bool) -> Cut {
    run(async {
        let mut random = SmallRng::seed_from_u64(seed);
        let disk = SimulatedDisk::new(random.random());
        let opened = open_with(&disk, options, &HashMap::new()).await.unwrap();
        let model = Rc::new(RefCell::new(Model::default()));
        let observed = Rc::new(RefCell::new(opened.observed));
        let cut = Rc::new(RefCell::new(None));
        let take_cut = {
            let (cut, model) = (cut.clone(), model.clone());
            move |disk| {
                let applied = std::iter::from_fn(|| observed.borrow_mut().try_recv().ok()).collect();
                *cut.borrow_mut() = Some(Cut { disk, model: model.borrow().clone(), applied });
            }
        };
        disk.crash_at(random.random_range(20..2500), take_cut.clone());
        if with_faults {
            disk.set_faults(Faults {
                fail_write: random.random_bool(0.7).then(|| random.random_range(5..150)),
                fail_sync: random.random_bool(0.7).then(|| random.random_range(5..100)),
            });
        }
        let tasks: Vec<_> = (0..4)
            .map(|task| {
                let random = SmallRng::seed_from_u64(random.random());
                tokio::task::spawn_local(one_task(opened.store.clone(), model.clone(), task, random))
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        if cut.borrow().is_none() {
            if random.random_bool(0.5) {
                let closed = opened.store.close().await;
                assert!(with_faults || closed.is_ok(), "{closed:?}");
            }
            take_cut(disk.crash(random.random()));
        }
        let taken = cut.borrow_mut().take();
        taken.unwrap()
    })
}

/// Opens what the cut left and compares. `positions` are those of a catalog that had `known` and kept it.
async fn check(disk: &SimulatedDisk, options: StoreOptions, cut: &Cut, known: usize) -> Result<(), String> {
    let mut positions = HashMap::new();
    let mut events: Vec<AppliedEvent> = Vec::new();
    for applied in cut.applied.iter().take(known) {
        positions.insert(applied.segment, applied.end_offset);
        events.extend(applied.events.iter().cloned());
    }
    let opened = open_with(disk, options, &positions).await.map_err(|error| format!("open: {error}"))?;
    events.extend(opened.told.events.iter().cloned());
    let told = Told { events, ..Told::default() };
    if !opened.report.quarantined.is_empty() || opened.report.lost_blocks > 0 {
        return Err(format!("damage without a media fault: {:?}", opened.report));
    }
    for (number, fate) in &cut.model.chunks {
        let found = get(&opened.store, &address(*number)).await;
        let right = match fate {
            Fate::Here => found.as_ref() == Some(&bytes_of(*number)),
            Fate::Gone if !cut.model.failed.contains(number) => found.is_none(),
            Fate::Gone | Fate::Open => found.is_none_or(|found| found == bytes_of(*number)),
        };
        if !right {
            return Err(format!("chunk {number} should be {fate:?}"));
        }
    }
    for (number, version) in &cut.model.references {
        if !told.refers(&address(*number), version) {
            return Err(format!("the reference of chunk {number} by {version:?} is lost"));
        }
    }
    for name in &cut.model.names {
        if !told.events.contains(&AppliedEvent::Name { payload: name.clone() }) {
            return Err(format!("the name {} is lost", String::from_utf8_lossy(name)));
        }
    }
    let mut wrong = 0;
    let report = opened.store.verify(&mut |verified| wrong += usize::from(!verified.ok)).await;
    match report {
        Ok(report) if wrong == 0 && report.damaged_records == 0 => {}
        other => return Err(format!("verification found {wrong} wrong chunks: {other:?}")),
    }
    // It takes new chunks.
    let chunk = payload(u64::MAX, 70_000);
    put(&opened.store, &chunk, &version(9)).await.map_err(|error| format!("put: {error}"))?;
    (get(&opened.store, &address_of(&chunk)).await == Some(chunk))
        .then_some(())
        .ok_or("a new chunk is not there".into())
}

fn power_cut(seed: u64, options: StoreOptions, with_faults: bool) -> Result<usize, String> {
    let cut = run_until_cut(seed, options.clone(), with_faults);
    let options = StoreOptions { acknowledge_unsynced: false, ..options };
    let mut random = SmallRng::seed_from_u64(!seed);
    let known = random.random_range(0..=cut.applied.len());
    // The power fails once more, while the first recovery is at work.
    let second = Rc::new(RefCell::new(None));
    let hook = second.clone();
    cut.disk.crash_at(random.random_range(1..60), move |disk| *hook.borrow_mut() = Some(disk));
    run(check(&cut.disk, options.clone(), &cut, known))?;
    if let Some(disk) = second.take() {
        // The catalog may have lost what it had not synced.
        let known = random.random_range(0..=known);
        run(check(&disk, options, &cut, known)).map_err(|error| format!("after a second cut: {error}"))?;
    }
    Ok(cut.model.acknowledged)
}

/// The first `count`, and a new one. `GABION_SEED=n` runs one again, `GABION_SEEDS=n` runs more of them.
fn seeds(count: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    if let Some(seed) = number("GABION_SEED") {
        return vec![seed];
    }
    let random = rand::random();
    println!("the last seed is {random}");
    (0..number("GABION_SEEDS").unwrap_or(count)).chain([random]).collect()
}

#[test]
fn acknowledged_is_durable_across_power_cuts() {
    let mut acknowledged = 0;
    for seed in seeds(120) {
        acknowledged += power_cut(seed, options(), false).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    assert!(acknowledged > 1000, "only {acknowledged} puts were acknowledged before the cuts");
}

#[test]
fn acknowledged_is_durable_across_power_cuts_of_failing_disks() {
    for seed in seeds(80) {
        power_cut(seed, options(), true).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn acknowledging_before_the_sync_is_caught() {
    let early = StoreOptions { acknowledge_unsynced: true, ..options() };
    let caught = (0..20).filter(|seed| power_cut(*seed, early.clone(), false).is_err()).count();
    assert!(caught >= 5, "only {caught} of 20 power cuts showed that acknowledgements came before the sync");
}
