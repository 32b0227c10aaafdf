use std::cell::Cell;
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;

use super::{LONG, on_ring, pattern, shared, tcp_pair, tcp_to_thread};
use crate::io::{Buffer, BufferPool, Ring, RingError, RingOptions, SendSource, spawn, yield_now};

#[test]
fn yielding_lets_other_tasks_run() {
    on_ring(async {
        let turns = Rc::new(Cell::new(0));
        let counted = Rc::clone(&turns);
        let task = spawn(async move {
            for _ in 0..10 {
                counted.set(counted.get() + 1);
                yield_now().await;
            }
        });
        while turns.get() < 10 {
            yield_now().await;
        }
        task.await.expect("the task ends");
    });
}

#[test]
fn a_forbidden_ring_is_named_as_such() {
    for code in [libc::EPERM, libc::ENOSYS, libc::EACCES] {
        let error = RingError::from_code(code);
        assert!(matches!(error, RingError::Forbidden { .. }), "{error}");
        assert!(error.to_string().contains("kernel.io_uring_disabled"), "{error}");
    }
    assert!(matches!(RingError::from_code(libc::ENOMEM), RingError::Limits { .. }));
    assert!(matches!(RingError::from_code(libc::EINVAL), RingError::Other { .. }));
}

/// The receive of each task is pending in the kernel when its ring, its buffer and its socket go.
#[test]
fn a_ring_goes_with_operations_in_flight() {
    for abort in [false, true] {
        let mut ring = Ring::new(&RingOptions::default()).expect("a ring");
        let far = ring.block_on(async {
            let pool = BufferPool::new(2).expect("a pool");
            let (near, far) = tcp_to_thread().await;
            let buffer = pool.take().await;
            let task = spawn(async move {
                let (_result, _buffer) = near.recv(buffer, 0..100).await;
                // A task that tries again must not spin while the ring closes.
                loop {
                    let (_result, _buffer) = near.recv(Buffer::heap(8), 0..8).await;
                }
            });
            yield_now().await;
            yield_now().await;
            if abort {
                task.abort();
            }
            far
        });
        drop(ring);
        // A ring that was left behind would keep the socket.
        far.set_read_timeout(Some(LONG)).expect("set");
        let end = (&far).read(&mut [0; 8]);
        assert!(end.as_ref().is_ok_and(|count| *count == 0), "{end:?}");
    }
}

#[test]
fn a_dropped_receive_keeps_its_buffer_until_its_end() {
    on_ring(async {
        let pool = BufferPool::new(1).expect("a pool");
        let (near, far) = tcp_pair().await;
        let receiver = near.clone();
        let buffer = pool.take().await;
        let task = spawn(async move {
            let (_result, _buffer) = receiver.recv(buffer, 0..100).await;
        });
        yield_now().await;
        yield_now().await;
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(pool.available(), 0, "the kernel may still write into the buffer");
        far.send_all(SendSource::Bytes(vec![7; 10]), LONG).await.expect("sent");
        // Comes home when the receive that nobody awaits has swallowed its bytes.
        let buffer = pool.take().await;
        assert_eq!(buffer.as_slice().get(..10), Some([7; 10].as_slice()));
    });
}

#[test]
fn dropping_the_last_handle_ends_a_forgotten_receive() {
    on_ring(async {
        let pool = BufferPool::new(1).expect("a pool");
        let (near, far) = tcp_pair().await;
        let buffer = pool.take().await;
        let task = spawn(async move {
            let (_result, _buffer) = near.recv(buffer, 0..100).await;
        });
        yield_now().await;
        yield_now().await;
        task.abort();
        drop(tokio::time::timeout(LONG, pool.take()).await.expect("the receive has ended"));
        let (result, _buffer) = far.recv(Buffer::heap(8), 0..8).await;
        assert_eq!(result.expect("the end"), 0, "the connection is closed");
    });
}

/// More linked pairs than the queue has entries, pushed in one turn after a single entry, so that a flush would fall
/// between the two of a pair: each must keep its time-out.
#[test]
fn linked_timeouts_survive_a_full_queue() {
    let mut ring = Ring::new(&RingOptions { entries: 8 }).expect("a ring");
    ring.block_on(async {
        let mut pairs = Vec::new();
        for _ in 0..50 {
            pairs.push(tcp_pair().await);
        }
        let mut tasks = vec![spawn(yield_now())];
        for (near, _far) in &pairs {
            let near = near.clone();
            tasks.push(spawn(async move {
                let stall = Duration::from_millis(200);
                let (result, _buffer) = near.recv_exact(Buffer::heap(10_000), 0..10_000, stall).await;
                assert_eq!(result.expect_err("nothing comes").kind(), std::io::ErrorKind::TimedOut);
            }));
        }
        for task in tasks {
            tokio::time::timeout(LONG, task).await.expect("every wait ends").expect("no panic");
        }
    });
}

#[test]
fn many_operations_at_once_on_a_small_ring() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    let mut ring = Ring::new(&RingOptions { entries: 8 }).expect("a ring");
    ring.block_on(async {
        let options = crate::io::OpenOptions { read: true, write: true, create: true, ..Default::default() };
        let file = crate::io::File::open(&path, &options).await.expect("a file");
        let tasks: Vec<_> = (0..300_u64)
            .map(|number| {
                let file = file.clone();
                spawn(async move {
                    let bytes = pattern(1000, number as u8);
                    file.write_at(shared(&bytes), 0..1000, number * 1000).await.expect("written");
                    let (result, buffer) = file.read_at(Buffer::heap(1000), 0..1000, number * 1000).await;
                    assert_eq!(result.expect("read"), 1000);
                    assert_eq!(buffer.as_slice(), bytes);
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        assert_eq!(file.len().await.expect("a length"), 300_000);
    });
}
