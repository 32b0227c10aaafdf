use std::cell::RefCell;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{LONG, on_ring, pattern};
use crate::io::{Buffer, BufferPool, File, OpenOptions, Ring, RingOptions, spawn, yield_now};
use crate::limits::{BLOCK_BYTES, BUFFER_BYTES};

#[test]
fn buffers_are_aligned_zeroed_and_come_home() {
    on_ring(async {
        let pool = BufferPool::new(3).expect("a pool");
        assert_eq!(pool.available(), 3);
        let mut buffer = pool.take().await;
        assert_eq!(buffer.len(), BUFFER_BYTES);
        assert!(buffer.as_slice().as_ptr().addr().is_multiple_of(BLOCK_BYTES));
        assert!(buffer.as_slice().iter().all(|byte| *byte == 0));
        buffer.as_mut_slice().fill(1);
        assert_eq!(pool.available(), 2);
        let shared = buffer.freeze();
        let other = shared.clone();
        let shared = shared.try_unfreeze().expect_err("it has two owners");
        drop(other);
        drop(shared.try_unfreeze().expect("it has one owner"));
        assert_eq!(pool.available(), 3);
    });
}

#[test]
fn heap_buffers_have_any_size() {
    for len_bytes in [0, 1, 63, 4096, 5000, 3 << 20] {
        let mut buffer = Buffer::heap(len_bytes);
        assert_eq!(buffer.len(), len_bytes);
        assert!(buffer.as_slice().iter().all(|byte| *byte == 0));
        buffer.as_mut_slice().fill(255);
        let alignment = if len_bytes < BLOCK_BYTES { 64 } else { BLOCK_BYTES };
        assert!(buffer.as_slice().as_ptr().addr().is_multiple_of(alignment));
    }
}

#[test]
fn who_waits_first_is_served_first() {
    on_ring(async {
        let pool = BufferPool::new(1).expect("a pool");
        let first = pool.take().await;
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..5 {
            let (pool, order) = (pool.clone(), Rc::clone(&order));
            tasks.push(spawn(async move {
                let _buffer = pool.take().await;
                order.borrow_mut().push(number);
            }));
            yield_now().await;
        }
        // One that gave up waiting must not swallow its turn.
        tasks.remove(2).abort();
        drop(first);
        assert!(pool.try_take().is_none(), "others wait");
        for task in tasks {
            task.await.expect("no panic");
        }
        assert_eq!(*order.borrow(), [0, 1, 3, 4]);
        assert_eq!(pool.available(), 1);
    });
}

#[test]
fn a_second_pool_of_a_ring_works_unregistered() {
    on_ring(async {
        let first = BufferPool::new(2).expect("a pool");
        let second = BufferPool::new(2).expect("a pool");
        assert!(first.registered() == 0 || second.registered() == 0, "a ring takes one registration");
        round_trip(&first).await;
        round_trip(&second).await;
    });
}

#[test]
fn a_buffer_that_outlives_its_ring_works_on_the_next() {
    let buffers = on_ring(async {
        let pool = BufferPool::new(2).expect("a pool");
        (pool.take().await, pool)
    });
    on_ring(async move {
        let (buffer, pool) = buffers;
        drop(buffer);
        round_trip(&pool).await;
    });
}

#[test]
fn a_pool_outside_of_a_ring_is_refused() {
    assert!(BufferPool::new(1).is_err());
}

/// Every buffer of the pool to a file and back.
async fn round_trip(pool: &BufferPool) {
    let directory = tempfile::tempdir().expect("a directory");
    let options = OpenOptions { read: true, write: true, create: true, direct: true, ..Default::default() };
    let file = File::open(&directory.path().join("file"), &options).await.expect("a file");
    let mut taken = Vec::new();
    while let Some(mut buffer) = pool.try_take() {
        let offset = (taken.len() * BUFFER_BYTES) as u64;
        let bytes = pattern(BUFFER_BYTES, taken.len() as u8);
        buffer.as_mut_slice().copy_from_slice(&bytes);
        let shared = buffer.freeze();
        file.write_at(shared.clone(), 0..BUFFER_BYTES, offset).await.expect("written");
        let mut buffer = shared.try_unfreeze().expect("the write has ended");
        buffer.as_mut_slice().fill(0);
        let (result, buffer) = file.read_at(buffer, 0..BUFFER_BYTES, offset).await;
        assert_eq!(result.expect("read"), BUFFER_BYTES);
        assert!(buffer.as_slice() == bytes, "buffer {} came back changed", taken.len());
        taken.push(buffer);
    }
    assert!(!taken.is_empty());
}

const CHILD: &str = "GABION_TEST_LOW_MEMLOCK";

/// The limit holds for a whole process, so a child sets it for itself.
#[test]
fn a_low_limit_on_locked_memory_registers_fewer_buffers() {
    if std::env::var_os(CHILD).is_some() {
        lower_memlock_limit(6 << 20);
        // Without privileges the limit counts what other processes of this user hold for the moment.
        let deadline = Instant::now() + LONG;
        let mut ring = loop {
            match Ring::new(&RingOptions::default()) {
                Ok(ring) => break ring,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        ring.block_on(async {
            let pool = BufferPool::new(8).expect("a pool");
            assert!(pool.registered() <= 5, "{} buffers do not fit into 6 MiB", pool.registered());
            assert_eq!(pool.available(), 8);
            round_trip(&pool).await;
            // Other shards of the same process still get their rings, however many buffers they would like.
            let others: Vec<_> = (0..4).map(|_| std::thread::spawn(shard_with_a_pool)).collect();
            for other in others {
                other.join().expect("a ring and a pool");
            }
        });
        println!("degraded as it should");
        return;
    }
    let name = "io::tests::buffers::a_low_limit_on_locked_memory_registers_fewer_buffers";
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("a child");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("degraded as it should"), "{output:?}");
}

fn shard_with_a_pool() {
    Ring::new(&RingOptions::default()).expect("a ring").block_on(async {
        round_trip(&BufferPool::new(8).expect("a pool")).await;
    });
}

/// Lowers the limit and gives up the capability that overrides it, which root has.
#[allow(unsafe_code)]
fn lower_memlock_limit(bytes: u64) {
    const CAP_IPC_LOCK: u32 = 14;
    const VERSION_3: u32 = 0x2008_0522;
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    let mut header = [VERSION_3, 0];
    // Effective, permitted, inheritable: for capabilities 0-31, then for 32-63.
    let mut sets = [0_u32; 6];
    // SAFETY: all pointers lead to arrays of the sizes that the calls expect.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
        assert_eq!(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()), 0);
        sets[0] &= !(1 << CAP_IPC_LOCK);
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()), 0);
    }
}
