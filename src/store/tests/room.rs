//! The capacity: what is refused when it is used up, and what goes on.

use std::collections::HashMap;
use std::rc::Rc;

use super::support::*;
use crate::limits::MIB;
use crate::store::simulated::SimulatedDisk;
use crate::store::{KeepAll, NoRoom, Removal, SmallChunk, SmallRecord, StoreError, StoreOptions};

const CAPACITY_BYTES: u64 = 3 * MIB as u64;
const CHUNK_BYTES: usize = 100_000;

async fn limited(disk: &SimulatedDisk) -> Sim {
    let options = StoreOptions { capacity_bytes: Some(CAPACITY_BYTES), ..options() };
    open_with(disk, options, &HashMap::new()).await.unwrap().store
}

fn is_at_capacity<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::NoSpace { reason: NoRoom::Capacity { .. } }))
}

#[test]
fn many_writers_at_once_stay_within_the_capacity() {
    run(async {
        let disk = SimulatedDisk::new(61);
        let store = limited(&disk).await;
        let tasks: Vec<_> = (0..64)
            .map(|number| {
                let store = store.clone();
                tokio::task::spawn_local(async move { put(&store, &payload(number, CHUNK_BYTES), &version(1)).await })
            })
            .collect();
        let (mut taken, mut refused) = (0, 0);
        for task in tasks {
            let result = task.await.unwrap();
            if is_at_capacity(&result) { refused += 1 } else { taken += u64::from(result.unwrap()) }
        }
        let used = store.stats().bytes_disk;
        assert!(used <= CAPACITY_BYTES, "{used} bytes used");
        assert!(used + 2 * CHUNK_BYTES as u64 > CAPACITY_BYTES, "no more is refused than must be: {used} bytes used");
        assert_eq!((taken + refused, store.stats().chunks, store.has_room()), (64, taken, false));
    });
}

#[test]
fn a_store_at_its_capacity_reads_refers_names_and_removes_and_takes_chunks_again_after_that() {
    run(async {
        let disk = SimulatedDisk::new(62);
        let store = Rc::new(limited(&disk).await);
        let mut here = Vec::new();
        let refused = loop {
            let chunk = payload(here.len() as u64, CHUNK_BYTES);
            match put(&store, &chunk, &version(1)).await {
                Ok(_) => here.push(chunk),
                refused => break refused,
            }
            assert!(here.len() < 1000, "it is bounded");
        };
        assert!(is_at_capacity(&refused));
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("--capacity") && text.contains("gabion reclaim"), "{text}");
        assert!(!store.stats().writable);

        assert!(!put(&store, &here[0], &version(2)).await.unwrap(), "a reference to what is here");
        store.append(SmallRecord::Name(b"name".to_vec())).await.unwrap();
        assert_eq!(get(&store, &address_of(&here[1])).await.as_ref(), Some(&here[1]));
        // Opened again it is as full as before.
        store.close().await.unwrap();
        let store = Rc::new(limited(&disk).await);
        let new = payload(5000, CHUNK_BYTES);
        assert!(is_at_capacity(&put(&store, &new, &version(1)).await));

        for chunk in here.iter().skip(5) {
            assert_eq!(store.remove(&address_of(chunk), async |_| false).await.unwrap(), Removal::Removed);
        }
        store.seal_open(&KeepAll).await.unwrap();
        assert!(store.has_room());
        assert!(put(&store, &new, &version(1)).await.unwrap());
        assert_eq!(get(&store, &address_of(&here[1])).await.as_ref(), Some(&here[1]));
    });
}

#[test]
fn small_chunks_are_refused_too() {
    run(async {
        let disk = SimulatedDisk::new(63);
        let store = limited(&disk).await;
        let (mut number, mut refused) = (0, 0);
        while refused == 0 {
            let chunks: Vec<_> = (0..32).map(|of| payload(number + of, 10_000)).collect();
            number += chunks.len() as u64;
            assert!(number < 1000, "it is bounded");
            let chunks = chunks.into_iter().map(|payload| {
                let address = address_of(&payload);
                SmallChunk { address, version: version(1), flags: 0, payload, capsule: None, is_first: false }
            });
            refused = store.hold_small(chunks.collect()).await.iter().filter(|answer| is_at_capacity(answer)).count();
        }
        // One round was asked about before any of it was written.
        assert!(store.stats().bytes_disk <= CAPACITY_BYTES + 32 * 11_000, "{:?}", store.stats());
    });
}
