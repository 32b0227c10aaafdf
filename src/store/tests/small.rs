//! Short chunks, many at once.

use std::rc::Rc;

use super::support::*;
use crate::format::VersionId;
use crate::limits::{BULK_PAYLOAD_BYTES_MIN, FREE_BYTES_RESERVE};
use crate::store::simulated::{Faults, SimulatedDisk};
use crate::store::{AppliedEvent, SmallChunk, StoreError};

fn chunk(payload: &[u8], version: VersionId) -> SmallChunk {
    SmallChunk {
        address: address_of(payload),
        version,
        flags: 0,
        payload: payload.to_vec(),
        capsule: None,
        is_first: false,
    }
}

fn root(payload: &[u8], version: VersionId) -> SmallChunk {
    SmallChunk { capsule: Some(b"sealed".to_vec()), ..chunk(payload, version) }
}

#[test]
fn each_chunk_has_its_own_answer_and_all_that_were_taken_outlive_a_crash() {
    run(async {
        let disk = SimulatedDisk::new(41);
        let mut first = opened(&disk).await;
        let payloads: Vec<_> = (0..8).map(|number| payload(number, 4096)).collect();
        put(&first.store, &payloads[3], &version(1)).await.unwrap();
        let chunks = vec![
            root(&payloads[0], version(2)),
            chunk(b"too short", version(2)),
            root(&payloads[3], version(2)),
            root(&payloads[4], version(2)),
            // The same content under another name of the same batch.
            root(&payloads[4], version(3)),
            chunk(&payload(9, BULK_PAYLOAD_BYTES_MIN), version(2)),
        ];
        let answers = first.store.hold_small(chunks).await;
        assert!(matches!(
            answers.as_slice(),
            [Ok(true), Err(StoreError::Length { .. }), Ok(false), Ok(true), Ok(false), Err(StoreError::Length { .. })]
        ));
        while let Ok(applied) = first.observed.try_recv() {
            for event in applied.events {
                if let AppliedEvent::Reference { capsule, .. } = event {
                    assert_eq!(capsule, b"sealed", "a capsule's reference is the only one that is written");
                }
            }
        }
        let again = opened(&disk.crash(41)).await;
        assert_eq!(again.report.chunks, 3);
        for (number, versions) in [(0, &[2][..]), (3, &[1, 2]), (4, &[2, 3])] {
            assert_eq!(get(&again.store, &address_of(&payloads[number])).await.as_ref(), Some(&payloads[number]));
            for version_number in versions {
                assert!(again.told.refers(&address_of(&payloads[number]), &version(*version_number)));
            }
        }
    });
}

#[test]
fn chunks_that_come_together_share_their_sync() {
    run(async {
        let disk = SimulatedDisk::new(42);
        let store = opened(&disk).await.store;
        put(&store, &payload(0, 4096), &version(1)).await.unwrap();
        let before = disk.syncs();
        // Few enough for the segment that is open: a new one would have syncs of its own.
        let chunks = (1..25).map(|number| root(&payload(number, 4096), version(1))).collect();
        assert!(store.hold_small(chunks).await.iter().all(|answer| matches!(answer, Ok(true))));
        let small = disk.syncs() - before;
        assert_eq!(small, 1, "syncs for one batch");
    });
}

#[test]
fn callers_with_the_same_chunks_in_opposite_order_do_not_wait_for_each_other() {
    run(async {
        let disk = SimulatedDisk::new(43);
        let store = opened(&disk).await.store;
        let payloads: Rc<Vec<_>> = Rc::new((0..20).map(|number| payload(number, 1000)).collect());
        let tasks: Vec<_> = (0..6u8)
            .map(|task| {
                let (store, payloads) = (store.clone(), payloads.clone());
                tokio::task::spawn_local(async move {
                    let mut chunks: Vec<_> = payloads.iter().map(|payload| chunk(payload, version(task))).collect();
                    if task % 2 == 1 {
                        chunks.reverse();
                    }
                    store.hold_small(chunks).await.into_iter().map(Result::unwrap).filter(|new| *new).count()
                })
            })
            .collect();
        let mut new = 0;
        for task in tasks {
            new += task.await.unwrap();
        }
        assert_eq!(new, payloads.len(), "each chunk was new to exactly one caller");
        let again = opened(&disk.crash(43)).await;
        for payload in payloads.iter() {
            assert!((0..6).all(|task| again.told.refers(&address_of(payload), &version(task))));
        }
    });
}

#[test]
fn a_full_disk_refuses_new_chunks_and_still_takes_references() {
    run(async {
        let disk = SimulatedDisk::new(44);
        let store = opened(&disk).await.store;
        let (here, new) = (payload(1, 500), payload(2, 500));
        put(&store, &here, &version(1)).await.unwrap();
        disk.set_free(FREE_BYTES_RESERVE - 1);
        let answers = store.hold_small(vec![chunk(&new, version(2)), chunk(&here, version(2))]).await;
        assert!(matches!(answers.as_slice(), [Err(StoreError::NoSpace { .. }), Ok(false)]));
    });
}

#[test]
fn a_failed_sync_fails_all_of_its_round_and_leaves_nobody_locked_out() {
    run(async {
        let disk = SimulatedDisk::new(45);
        let store = opened(&disk).await.store;
        put(&store, &payload(0, 500), &version(1)).await.unwrap();
        disk.set_faults(Faults { fail_sync: Some(1), ..Faults::default() });
        let batch = || (1..5).map(|number| chunk(&payload(number, 500), version(1))).collect::<Vec<_>>();
        assert!(store.hold_small(batch()).await.iter().all(|answer| matches!(answer, Err(StoreError::Io { .. }))));
        disk.set_faults(Faults::default());
        assert!(store.hold_small(batch()).await.iter().all(|answer| matches!(answer, Ok(true))));
    });
}
