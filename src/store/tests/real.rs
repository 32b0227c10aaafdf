//! The same code on a real disk, on real rings, on several threads.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::support::*;
use crate::format::{Address, Incarnation, VersionId};
use crate::io::{Buffer, BufferPool, Ring, RingOptions};
use crate::limits::{BUFFER_BYTES, RECORD_HEAD_BYTES};
use crate::store::{Disk, Hold, ReadOutcome, Removal, RingDisk, Shared, SmallRecord, Store, StoreOptions, open};

const SHARDS: usize = 3;

fn ring() -> Ring {
    Ring::new(&RingOptions::default()).unwrap()
}

fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes_max: 16 << 20,
        step_bytes: 4 << 20,
        ..StoreOptions::new(SHARDS, Incarnation([2; 16]), 0)
    }
}

/// The data directory lies where direct I/O works: beside the build's output.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
}

fn open_shared(root: &std::path::Path) -> (Arc<Shared>, crate::store::OpenReport) {
    ring().block_on(async {
        let disk = RingDisk::new(root).unwrap();
        open(&disk, options(), &HashMap::new(), &mut |_| {}).await.unwrap()
    })
}

async fn put_pooled<D: Disk>(store: &Store<D>, mut buffer: Buffer, payload: &[u8], version: &VersionId) -> bool {
    buffer.as_mut_slice()[RECORD_HEAD_BYTES..][..payload.len()].copy_from_slice(payload);
    match store.hold(&address_of(payload), version).await.unwrap() {
        Hold::Held => false,
        Hold::Absent(claim) => {
            let staged = store.stage(claim, buffer, payload.len(), version, 0).await.unwrap();
            staged.commit().await.unwrap();
            true
        }
    }
}

async fn read<D: Disk>(store: &Store<D>, address: &Address) -> Option<Vec<u8>> {
    match store.read(address, Buffer::heap(BUFFER_BYTES)).await.unwrap() {
        ReadOutcome::Found { buffer, len, .. } => Some(buffer.as_slice()[RECORD_HEAD_BYTES..][..len].to_vec()),
        _ => None,
    }
}

/// Every shard puts the same chunks at the same time; each may be written once only.
async fn shard_work(store: Store<RingDisk>, shard: usize, written: Arc<AtomicU64>, barrier: Arc<tokio::sync::Barrier>) {
    let pool = BufferPool::new(8).unwrap();
    barrier.wait().await;
    let tasks: Vec<_> = (0..40_u64)
        .map(|number| {
            let (store, pool, written) = (store.clone(), pool.clone(), written.clone());
            tokio::task::spawn_local(async move {
                let payload = payload(number, if number % 2 == 0 { 200_000 } else { 2_000 });
                if put_pooled(&store, pool.take().await, &payload, &version(shard as u8)).await {
                    written.fetch_add(1, Ordering::Relaxed);
                }
                assert!(read(&store, &address_of(&payload)).await == Some(payload));
                store.append(SmallRecord::Name(number.to_le_bytes().to_vec())).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    barrier.wait().await;
    // Some go again, from whatever thread comes first.
    for number in (shard as u64..40).step_by(4) {
        let address = address_of(&payload(number, if number % 2 == 0 { 200_000 } else { 2_000 }));
        let removal = store.remove(&address, async |_| number >= 20).await.unwrap();
        assert_eq!(removal == Removal::Removed, number < 20);
    }
    store.seal_open(&crate::store::KeepAll).await.unwrap();
    store.close().await.unwrap();
}

#[test]
fn several_threads_write_each_chunk_once_and_all_of_it_is_there_after_a_restart() {
    let directory = directory();
    let (shared, _) = open_shared(directory.path());
    let written = Arc::new(AtomicU64::new(0));
    let barrier = Arc::new(tokio::sync::Barrier::new(SHARDS));
    let (sender, mut observed) = mpsc::unbounded_channel();
    let threads: Vec<_> = (0..SHARDS)
        .map(|shard| {
            let (shared, written, root) = (shared.clone(), written.clone(), directory.path().to_owned());
            let (barrier, sender) = (barrier.clone(), sender.clone());
            std::thread::spawn(move || {
                ring().block_on(async move {
                    let disk = RingDisk::new(&root).unwrap();
                    let spawn = |task| drop(crate::io::spawn(task));
                    let store = Store::attach(shared, disk, shard, observer(sender), spawn);
                    shard_work(store, shard, written, barrier).await;
                });
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(written.load(Ordering::Relaxed), 40);
    let events = std::iter::from_fn(|| observed.try_recv().ok()).flat_map(|applied| applied.events).count();
    assert!(events >= 40 * SHARDS, "{events} events");
    let (shared, report) = open_shared(directory.path());
    assert!(report.clean, "{report:?}");
    let (sender, _observed) = mpsc::unbounded_channel();
    ring().block_on(async {
        let disk = RingDisk::new(directory.path()).unwrap();
        let store = Store::attach(shared, disk, 0, observer(sender), |task| drop(crate::io::spawn(task)));
        for number in 20..40 {
            let payload = payload(number, if number % 2 == 0 { 200_000 } else { 2_000 });
            assert!(read(&store, &address_of(&payload)).await == Some(payload), "chunk {number}");
        }
        let verified = store.verify(&mut |verified| assert!(verified.ok)).await.unwrap();
        assert_eq!((verified.damaged_chunks, verified.damaged_records), (0, 0));
        store.close().await.unwrap();
    });
}
