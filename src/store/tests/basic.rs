//! What the layer does when nothing fails.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use super::support::*;
use crate::format::record::{FLAG_CACHED, FLAG_STAND_IN};
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};
use crate::store::segment::name_of;
use crate::store::simulated::SimulatedDisk;
use crate::store::{
    AppliedEvent, Backpressure, Hold, Observer, Removal, SmallRecord, SmallRecords, Spawn, Store, StoreError,
    StoreOptions, open,
};

const LENGTHS: [usize; 6] = [CHUNK_BYTES_MIN, 5000, 65_535, 65_536, 70_001, CHUNK_BYTES_MAX];

#[test]
fn chunks_of_every_length_come_back_before_and_after_a_restart() {
    run(async {
        let disk = SimulatedDisk::new(1);
        let opened_first = opened(&disk).await;
        let payloads: Vec<_> = LENGTHS.iter().enumerate().map(|(n, len)| payload(n as u64, *len)).collect();
        for payload in &payloads {
            assert!(put(&opened_first.store, payload, &version(1)).await.unwrap());
            assert!(!put(&opened_first.store, payload, &version(2)).await.unwrap());
            assert_eq!(get(&opened_first.store, &address_of(payload)).await.as_ref(), Some(payload));
        }
        opened_first.store.close().await.unwrap();
        let again = opened(&disk).await;
        assert!(again.report.clean);
        assert_eq!(again.report.chunks, payloads.len() as u64);
        for payload in &payloads {
            assert_eq!(get(&again.store, &address_of(payload)).await.as_ref(), Some(payload));
            assert!(again.told.refers(&address_of(payload), &version(1)));
            assert!(again.told.refers(&address_of(payload), &version(2)));
        }
        let report = again.store.verify(&mut |verified| assert!(verified.ok)).await.unwrap();
        assert_eq!((report.chunks, report.damaged_chunks, report.damaged_records), (6, 0, 0));
    });
}

#[test]
fn catalog_hears_of_everything_before_the_acknowledgement_and_only_news_after_a_restart() {
    run(async {
        let disk = SimulatedDisk::new(2);
        let mut first = opened(&disk).await;
        let chunk = payload(1, 100_000);
        put(&first.store, &chunk, &version(1)).await.unwrap();
        let told = first.observed.try_recv().unwrap();
        let expected = AppliedEvent::Chunk { address: address_of(&chunk), version: version(1), flags: 0 };
        assert_eq!(told.events, [expected]);
        first.store.append(SmallRecord::Name(b"first".to_vec())).await.unwrap();
        let told_name = first.observed.try_recv().unwrap();
        assert_eq!(told_name.events, [AppliedEvent::Name { payload: b"first".to_vec() }]);
        first.store.append(SmallRecord::Document(b"second".to_vec())).await.unwrap();
        first.store.close().await.unwrap();
        let positions = [(told.segment, told.end_offset), (told_name.segment, told_name.end_offset)].into();
        let again = open_with(&disk, options(), &positions).await.unwrap();
        assert_eq!(again.told.events, [AppliedEvent::Document { payload: b"second".to_vec() }]);
        assert_eq!(again.told.positions.len(), 2);
    });
}

#[test]
fn capsule_of_a_reference_is_told_and_replayed() {
    run(async {
        let disk = SimulatedDisk::new(3);
        let mut first = opened(&disk).await;
        let address = address_of(b"root");
        let record = SmallRecord::Reference { address, version: version(1), capsule: b"sealed".to_vec() };
        first.store.append(record).await.unwrap();
        let told = first.observed.try_recv().unwrap().events;
        let capsule = b"sealed".to_vec();
        assert_eq!(told, [AppliedEvent::Reference { address, version: version(1), capsule, is_first: false }]);
        first.store.close().await.unwrap();
        assert_eq!(opened(&disk).await.told.events, told);
    });
}

#[test]
fn second_writer_waits_and_gets_the_claim_only_if_the_first_fails() {
    run(async {
        let disk = SimulatedDisk::new(3);
        let store = opened(&disk).await.store;
        let chunk = payload(1, 80_000);
        for first_succeeds in [false, true] {
            let Hold::Absent(claim) = store.hold(&address_of(&chunk), &version(1)).await.unwrap() else { panic!() };
            let second = tokio::task::spawn_local({
                let (store, chunk) = (store.clone(), chunk.clone());
                async move { matches!(store.hold(&address_of(&chunk), &version(2)).await.unwrap(), Hold::Held) }
            });
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            assert!(!second.is_finished());
            if first_succeeds {
                let staged = store.stage(claim, buffer_with(&chunk), chunk.len(), &version(1), 0).await.unwrap();
                staged.commit().await.unwrap();
            } else {
                drop(claim);
            }
            assert_eq!(second.await.unwrap(), first_succeeds);
        }
    });
}

#[test]
fn concurrent_small_records_share_syncs() {
    run(async {
        let disk = SimulatedDisk::new(4);
        let store = opened(&disk).await.store;
        store.append(SmallRecord::Name(vec![1])).await.unwrap();
        let before = disk.syncs();
        let tasks: Vec<_> = (0..50)
            .map(|number: u8| {
                let store = store.clone();
                tokio::task::spawn_local(async move { store.append(SmallRecord::Name(vec![number])).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert!(disk.syncs() - before <= 4, "{} syncs for 50 records", disk.syncs() - before);
    });
}

#[test]
fn removed_chunk_is_gone_its_space_punched_and_its_bytes_no_more_on_the_disk() {
    run(async {
        let disk = SimulatedDisk::new(5);
        let store = opened(&disk).await.store;
        let (dead, live) = (payload(1, 200_000), payload(2, 200_000));
        for chunk in [&dead, &live] {
            put(&store, chunk, &version(1)).await.unwrap();
        }
        assert_eq!(store.remove(&address_of(&dead), async |_| true).await.unwrap(), Removal::Kept);
        assert_eq!(store.remove(&address_of(&dead), async |_| false).await.unwrap(), Removal::Removed);
        assert_eq!(store.remove(&address_of(&dead), async |_| false).await.unwrap(), Removal::Absent);
        assert_eq!(get(&store, &address_of(&dead)).await, None);
        store.seal_open(&crate::store::KeepAll).await.unwrap();
        for name in disk.names() {
            let found = disk.edit(&name, |bytes| bytes.windows(64).any(|window| window == &dead[1000..1064]));
            assert!(!found, "{name} still has the bytes of a removed chunk");
        }
        assert_eq!(get(&store, &address_of(&live)).await, Some(live.clone()));
        store.close().await.unwrap();
        let again = opened(&disk).await;
        assert_eq!(get(&again.store, &address_of(&dead)).await, None);
        assert_eq!(get(&again.store, &address_of(&live)).await, Some(live));
    });
}

#[test]
fn a_reader_keeps_a_removed_chunk_until_it_lets_go() {
    run(async {
        let disk = SimulatedDisk::new(6);
        let store = opened(&disk).await.store;
        let (chunk, other) = (payload(1, 100_000), payload(2, 100_000));
        put(&store, &chunk, &version(1)).await.unwrap();
        put(&store, &other, &version(1)).await.unwrap();
        store.close().await.unwrap();
        let options = StoreOptions { release_wait_max: Duration::from_millis(10), ..options() };
        let store = open_with(&disk, options, &HashMap::new()).await.unwrap().store;
        let located = store.locate(&address_of(&chunk)).expect("the segment is sealed");
        let removal = tokio::task::spawn_local({
            let (store, address) = (store.clone(), address_of(&chunk));
            async move { store.remove(&address, async |_| false).await.unwrap() }
        });
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        assert!(removal.is_finished(), "a reader holds up who removes a chunk");
        assert_eq!(removal.await.unwrap(), Removal::Removed);
        assert!(store.locate(&address_of(&chunk)).is_none(), "new readers do not find it");
        // Nor does it hold up for ever who waits for the space.
        store.seal_open(&crate::store::KeepAll).await.unwrap();
        let name = crate::store::segment::name_of(located.segment);
        let there = |bytes: &mut Vec<u8>| bytes[located.offset as usize..][..located.len] == chunk;
        assert!(disk.edit(&name, there));
        drop(located.guard.clone());
        let (offset, len, guard) = (located.offset, located.len, located.guard);
        drop(guard);
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        assert!(disk.edit(&name, |bytes| bytes[offset as usize..][..len].iter().all(|byte| *byte == 0)));
    });
}

#[test]
fn space_of_a_chunk_that_was_read_as_it_was_removed_is_waited_for() {
    run(async {
        for seed in 0..20 {
            let disk = SimulatedDisk::new(seed);
            let store = opened(&disk).await.store;
            let chunk = payload(1, 100_000);
            put(&store, &chunk, &version(1)).await.unwrap();
            put(&store, &payload(2, 100_000), &version(1)).await.unwrap();
            store.close().await.unwrap();
            let store = opened(&disk).await.store;
            let located = store.locate(&address_of(&chunk)).expect("the segment is sealed");
            let (segment, range) = (located.segment, located.offset as usize..located.offset as usize + located.len);
            store.remove(&address_of(&chunk), async |_| false).await.unwrap();
            drop(located);
            store.seal_open(&crate::store::KeepAll).await.unwrap();
            let name = crate::store::segment::name_of(segment);
            assert!(disk.edit(&name, |bytes| bytes[range].iter().all(|byte| *byte == 0)), "seed {seed}");
        }
    });
}

#[test]
fn a_put_that_is_given_up_leaves_no_file_that_the_store_does_not_know() {
    run(async {
        for turns in 0..40 {
            let disk = SimulatedDisk::new(turns);
            let store = opened(&disk).await.store;
            let given_up = tokio::task::spawn_local({
                let store = store.clone();
                async move { put(&store, &payload(1, 100_000), &version(1)).await }
            });
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            given_up.abort();
            put(&store, &payload(2, 100_000), &version(1)).await.unwrap();
            let files = disk.names().iter().filter(|name| name.ends_with(".seg")).count();
            assert_eq!(files as u64, store.stats().segments, "given up after {turns} turns: {:?}", disk.names());
        }
    });
}

#[test]
fn cached_chunk_counts_as_not_held_and_is_replaced() {
    run(async {
        let disk = SimulatedDisk::new(7);
        let store = opened(&disk).await.store;
        for len in [40_000, 90_000] {
            let chunk = payload(len as u64, len);
            assert!(put_flagged(&store, &chunk, &version(1), FLAG_CACHED).await.unwrap());
            assert_eq!(store.flags(&address_of(&chunk)), Some(FLAG_CACHED));
            assert!(put_flagged(&store, &chunk, &version(2), FLAG_STAND_IN).await.unwrap());
            assert_eq!(store.flags(&address_of(&chunk)), Some(FLAG_STAND_IN));
            assert!(!put(&store, &chunk, &version(3)).await.unwrap());
        }
        assert_eq!(store.stats().chunks, 2);
    });
}

#[test]
fn segments_roll_over_and_listing_meets_each_chunk_once() {
    run(async {
        let disk = SimulatedDisk::new(8);
        let store = opened(&disk).await.store;
        let mut expected = std::collections::BTreeSet::new();
        let tasks: Vec<_> = (0..60)
            .map(|number| {
                let chunk = payload(number, if number % 2 == 0 { 90_000 } else { 3_000 });
                expected.insert(address_of(&chunk));
                let store = store.clone();
                tokio::task::spawn_local(async move { put(&store, &chunk, &version(1)).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert!(store.stats().segments > 2);
        let mut listed = Vec::new();
        let mut after = None;
        loop {
            let page = store.addresses(after, 7).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.cursor);
            listed.extend(page.iter().map(|listed| listed.address));
        }
        assert_eq!(listed.len(), 60);
        assert_eq!(listed.into_iter().collect::<std::collections::BTreeSet<_>>(), expected);
    });
}

#[test]
fn nothing_is_copied_out_of_a_small_segment_that_has_to_stay() {
    run(async {
        let disk = SimulatedDisk::new(10);
        let store = Rc::new(opened(&disk).await.store);
        let chunks: Vec<_> = (0..40).map(|number| payload(number, 20_000)).collect();
        for chunk in &chunks {
            put(&store, chunk, &version(1)).await.unwrap();
        }
        disk.edit(&name_of(1), |bytes| bytes[BLOCK_BYTES + 128 + 10] ^= 1);
        store.quarantine(&address_of(&chunks[0])).await;
        assert_eq!(store.stats().quarantined, 1);
        for chunk in chunks.iter().skip(4) {
            store.remove(&address_of(chunk), async |_| false).await.unwrap();
        }
        store.seal_open(&crate::store::KeepAll).await.unwrap();
        let before = store.stats().bytes_disk;
        for _ in 0..5 {
            store.seal_open(&crate::store::KeepAll).await.unwrap();
        }
        assert_eq!(store.stats().bytes_disk, before, "the same records were copied again and again");
    });
}

#[test]
fn mostly_dead_small_segments_are_compacted_and_keep_their_living() {
    run(async {
        let disk = SimulatedDisk::new(9);
        let store = Rc::new(opened(&disk).await.store);
        let chunks: Vec<_> = (0..40).map(|number| payload(number, 20_000)).collect();
        for chunk in &chunks {
            put(&store, chunk, &version(1)).await.unwrap();
        }
        store.append(SmallRecord::Name(b"kept".to_vec())).await.unwrap();
        for chunk in chunks.iter().skip(4) {
            store.remove(&address_of(chunk), async |_| false).await.unwrap();
        }
        let before = store.stats().bytes_disk;
        store.seal_open(&crate::store::KeepAll).await.unwrap();
        let after = store.stats().bytes_disk;
        assert!(after * 3 < before, "{before} bytes before, {after} after compaction");
        for step in 0..2 {
            for (number, chunk) in chunks.iter().enumerate() {
                let expected = (number < 4).then_some(chunk);
                assert_eq!(get(&store, &address_of(chunk)).await.as_ref(), expected, "chunk {number}, step {step}");
            }
            if step == 0 {
                store.close().await.unwrap();
                disk.edit("index.checkpoint", |bytes| bytes[70] ^= 1);
                let again = opened(&disk).await;
                assert_eq!(again.report.chunks, 4, "{:?}", again.report);
                assert!(again.told.events.contains(&AppliedEvent::Name { payload: b"kept".to_vec() }));
                assert!(chunks.iter().take(4).all(|chunk| again.told.refers(&address_of(chunk), &version(1))));
            }
        }
    });
}

#[test]
fn where_nobody_writes_small_records_they_are_refused() {
    run(async {
        let disk = SimulatedDisk::new(22);
        let (shared, _) = open(&disk, options(), &HashMap::new(), &mut |_| {}).await.unwrap();
        drop(SmallRecords::of(&shared));
        let spawn: Spawn = |task| drop(tokio::task::spawn_local(task));
        let backpressure: Backpressure = Rc::new(|| Box::pin(async { Ok(()) }));
        let store = Store::attach_with(shared, disk, 0, Rc::new(|_| {}), backpressure, spawn);
        let outcome = store.append(SmallRecord::Name(b"n".to_vec())).await;
        assert!(matches!(outcome, Err(StoreError::Closed)), "{outcome:?}");
        assert!(matches!(store.close().await, Err(StoreError::Closed)));
    });
}

#[test]
fn records_wait_for_their_index_before_they_are_written_and_nobody_else_does() {
    run(async {
        let disk = SimulatedDisk::new(21);
        let (shared, _) = open(&disk, options(), &HashMap::new(), &mut |_| {}).await.unwrap();
        let gate = Rc::new(tokio::sync::Semaphore::new(0));
        let (told, waiting) = (Rc::new(RefCell::new(0)), gate.clone());
        let hears = told.clone();
        let observer: Observer = Rc::new(move |applied| *hears.borrow_mut() += applied.events.len());
        let backpressure: Backpressure = Rc::new(move || {
            let gate = waiting.clone();
            Box::pin(async move {
                gate.acquire().await.unwrap().forget();
                Ok(())
            })
        });
        let spawn: Spawn = |task| drop(tokio::task::spawn_local(task));
        let records = SmallRecords::of(&shared);
        spawn(Box::pin(records.commit(shared.clone(), disk.clone(), observer.clone(), backpressure.clone(), spawn)));
        let store = Rc::new(Store::attach_with(shared, disk.clone(), 0, observer, backpressure, spawn));
        let chunk = payload(1, 100_000);
        let syncs = disk.syncs();
        let (own, bytes) = (store.clone(), chunk.clone());
        let bulk = tokio::task::spawn_local(async move { put(&own, &bytes, &version(1)).await.unwrap() });
        let own = store.clone();
        let small = tokio::task::spawn_local(async move { own.append(SmallRecord::Name(b"n".to_vec())).await });
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        assert_eq!((*told.borrow(), disk.syncs()), (0, syncs));
        // Whoever only reads goes on.
        assert_eq!(get(&store, &address_of(&chunk)).await, None);
        gate.add_permits(2);
        assert!(bulk.await.unwrap());
        small.await.unwrap().unwrap();
        assert_eq!(*told.borrow(), 2, "told before it was acknowledged");
    });
}
