//! Long computing, on a thread beside the ring's own.
//!
//! While a thread hashes and encrypts a chunk it goes to the ring for nobody. A request that takes six visits to the ring
//! then waits six times for up to half a millisecond, and the disk waits for its next write. So each ring's thread has a
//! companion that takes such work in the order in which it was asked for, while the thread itself stays free to answer. The
//! companion asks the kernel for long slices of time, so that whoever wakes runs before it, and is nicer than other
//! threads, so that who woke and is woken again soon need not give its turn back. (Linux 6.12 and later heed the slice;
//! before, the batch policy and the niceness do.)
//!
//! ```text
//! ring's thread   compute(buffer, work) ---> other tasks, the ring ... ---> (buffer, output)
//!                           |  the buffer's memory alone                         ^
//! companion                 +--> work ------------------------------------------+
//! ```
//!
//! # Measured
//! Gets of 4 KiB, 500 a second, beside a put of 8 GiB of a file, alternated runs: p50 1.5 to 1.7 ms and p99 3.7 to 4.1 ms
//! when the ring's thread computes and goes to the ring in between; p50 0.35 to 0.5 ms and p99 2.0 to 2.3 ms so.
//! Later, over connections that are kept, beside a put of 10 GiB, four pairs of runs: with a niceness of 5, p90 takes 0.72
//! of the time (0.30 to 0.46 instead of 0.42 to 0.49 ms) and p99 0.78 (0.95 to 1.7 instead of 1.2 to 1.7 ms; one run
//! without it had a disk that stood still), and the put is 8 % faster; with one of 19 the longest gets take longer again.
//! Where the rest of p99 comes from, by the kernel's scheduling events: some 0.85 ms is the node, with the disk's reads; the
//! client's own threads wait for one of the two cores for as long.
//!
//! # Invariants
//! - While a buffer's memory is lent, the buffer is inside of a [`Lent`], which gives no access to it.
//! - A caller that is dropped changes nothing: the work ends, and the buffer goes home then. When the runtime goes first,
//!   the buffer never does: it and its memory are leaked.
//! - Work waits for nothing: no disk, no server, no other work. One that hung would hang all that come behind it.
#![allow(unsafe_code)] // memory that another thread works on

use std::any::Any;
use std::cell::OnceCell;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{SendError, Sender, channel};

use tokio::sync::oneshot;

use super::buffers::Buffer;
use super::ring::run_to_end;
use super::system;
use crate::limits::COMPUTE_BYTES_MIN;

type Work = Box<dyn FnOnce() + Send>;

thread_local! {
    static COMPANION: OnceCell<Sender<Work>> = const { OnceCell::new() };
}

/// Ends when the thread that started it does.
fn start_companion() -> Sender<Work> {
    let (sender, queue) = channel::<Work>();
    let started = std::thread::Builder::new().name("compute".into()).spawn(move || {
        system::yield_to_others();
        for work in queue {
            work();
            // Who woke with its share used up was not let in, and would wait for the next tick of the kernel's clock.
            std::thread::yield_now();
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "no thread for computing: chunks are encrypted between other work");
    }
    sender
}

/// A buffer whose memory is lent. Dropped, it is lost to its pool: nobody would know when the work ends.
struct Lent(ManuallyDrop<Buffer>);

/// Runs `work` on the memory of a buffer, of which it takes in `bytes`. What is done sooner than it is handed over is done
/// here. Dropping the future does not stop the work.
///
/// # Panics
/// When `work` does.
pub async fn compute<T: Send + 'static>(
    mut buffer: Buffer,
    bytes: usize,
    work: impl FnOnce(&mut [u8]) -> T + Send + 'static,
) -> (Buffer, T) {
    if bytes < COMPUTE_BYTES_MIN {
        let output = work(buffer.as_mut_slice());
        return (buffer, output);
    }
    let (buffer, outcome) = run_to_end(hand_over(buffer, work)).await;
    (buffer, outcome.unwrap_or_else(|panic| resume_unwind(panic)))
}

async fn hand_over<T: Send + 'static>(
    buffer: Buffer,
    work: impl FnOnce(&mut [u8]) -> T + Send + 'static,
) -> (Buffer, Result<T, Box<dyn Any + Send>>) {
    let memory = buffer.memory();
    let lent = Lent(ManuallyDrop::new(buffer));
    let (done, outcome) = oneshot::channel();
    let work: Work = Box::new(move || {
        // SAFETY: initialised, and kept alive by `memory`. Its one buffer gives no access while it is lent, which is
        // until this has ended.
        let bytes = unsafe { std::slice::from_raw_parts_mut(memory.base(), memory.len_bytes()) };
        let outcome = catch_unwind(AssertUnwindSafe(|| work(bytes)));
        drop(memory);
        // Nobody to tell when the runtime is gone.
        let _ = done.send(outcome);
    });
    // Without a companion, the work comes back.
    if let Err(SendError(work)) = COMPANION.with(|companion| companion.get_or_init(start_companion).send(work)) {
        work();
    }
    match outcome.await {
        Ok(outcome) => (ManuallyDrop::into_inner(lent.0), outcome),
        Err(_) => unreachable!("work tells its outcome, even when it panics"),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::io::{BufferPool, Ring, RingOptions, spawn, yield_now};

    const LONG: Duration = Duration::from_secs(20);

    fn on_ring<F: Future>(future: F) -> F::Output {
        Ring::new(&RingOptions::default()).unwrap().block_on(future)
    }

    #[test]
    fn work_sees_the_bytes_and_its_output_comes_back() {
        on_ring(async {
            let pool = BufferPool::new(1).unwrap();
            for bytes in [COMPUTE_BYTES_MIN - 1, COMPUTE_BYTES_MIN] {
                let mut buffer = pool.take().await;
                buffer.as_mut_slice()[7] = 41;
                let here = std::thread::current().id();
                let (buffer, was_here) = compute(buffer, bytes, move |memory| {
                    memory[7] += 1;
                    std::thread::current().id() == here
                })
                .await;
                assert_eq!((buffer.as_slice()[7], was_here), (42, bytes < COMPUTE_BYTES_MIN));
            }
            assert_eq!(pool.available(), 1);
        });
    }

    #[test]
    fn ring_goes_on_while_work_takes_long() {
        on_ring(async {
            let (release, released) = mpsc::channel::<()>();
            let is_done = Rc::new(Cell::new(false));
            let done = is_done.clone();
            let working = spawn(async move {
                let work = move |_: &mut [u8]| released.recv_timeout(LONG).is_ok();
                assert!(compute(Buffer::heap(8), COMPUTE_BYTES_MIN, work).await.1, "released in time");
                done.set(true);
            });
            for _ in 0..100 {
                yield_now().await;
            }
            assert!(!is_done.get());
            release.send(()).unwrap();
            working.await.unwrap();
            assert!(is_done.get());
        });
    }

    #[test]
    fn caller_that_is_gone_leaves_the_buffer_to_the_work() {
        on_ring(async {
            let pool = BufferPool::new(1).unwrap();
            let buffer = pool.take().await;
            let (release, released) = mpsc::channel::<()>();
            let work = move |_: &mut [u8]| released.recv_timeout(LONG).is_ok();
            let caller = spawn(async move { drop(compute(buffer, COMPUTE_BYTES_MIN, work).await) });
            yield_now().await;
            caller.abort();
            for _ in 0..100 {
                yield_now().await;
            }
            assert_eq!(pool.available(), 0, "its memory is still worked on");
            release.send(()).unwrap();
            drop(pool.take().await);
        });
    }

    #[test]
    fn runtime_that_goes_first_leaves_the_memory_to_the_work() {
        let (release, released) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        on_ring(async move {
            let buffer = BufferPool::new(1).unwrap().take().await;
            spawn(async move {
                let work = move |memory: &mut [u8]| {
                    let in_time = released.recv_timeout(LONG).is_ok();
                    memory.fill(3);
                    tell.send(in_time && memory.iter().all(|byte| *byte == 3)).unwrap();
                };
                compute(buffer, COMPUTE_BYTES_MIN, work).await;
            });
            yield_now().await;
            yield_now().await;
        });
        release.send(()).unwrap();
        assert!(told.recv_timeout(LONG).unwrap());
    }

    #[test]
    fn panic_of_the_work_is_the_callers_and_the_next_work_is_done() {
        on_ring(async {
            let caller = spawn(async {
                compute(Buffer::heap(8), COMPUTE_BYTES_MIN, |_| panic!("on purpose")).await;
            });
            assert!(caller.await.unwrap_err().is_panic());
            assert_eq!(compute(Buffer::heap(8), COMPUTE_BYTES_MIN, |memory| memory.len()).await.1, 8);
        });
    }
}
