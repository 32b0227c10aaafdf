//! One runtime per shard thread: tokio's current-thread scheduler with an io_uring beside it.
//!
//! # Set-up
//! The ring is probed with the flags that pay, then with fewer, until the kernel takes them; only then is the runtime
//! built. A ring's own memory counts as locked memory of its *user* on newer kernels, so it can be refused because of
//! what another process registered: then it shrinks. Not used, because they hang or lose here: DEFER_TASKRUN, R_DISABLED, SQPOLL.
//!
//! Of the flags that are taken, `COOP_TASKRUN`, `SUBMIT_ALL` and `SINGLE_ISSUER` change nothing that can be measured here:
//! without them puts and gets of 4 GiB and of 50,000 values took 0.95 to 1.07 of the CPU time on average (three and four
//! alternated runs, which differ by more among themselves). The longer completion queue is no matter of speed.
//!
//! # Submissions
//! Operations reach the kernel when the thread parks, all in one call. So the busier a thread is, the less a call costs
//! it: 128 clients that get 4 KiB each submit 51 operations in each `io_uring_enter`, and 9 when they put them. A cold get
//! of a big file submits 2. A put of one needs 4,813 to 7,400 operations for 4,096 chunks (each write carries what is ready) and
//! more calls than that, since its work ends on other threads, which wake this one.
//!
//! # Tear-down
//! The driver's own destructor frees the memory of dropped operations before it cancels them. So a ring first refuses
//! new operations, cancels the pending ones and waits until the kernel holds none of our memory. When that takes too
//! long, or while the thread panics, the runtime is leaked instead: a leak at the end beats a write into freed memory.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use thiserror::Error;

use super::op::{self, RingState};
use crate::limits::{
    RING_COMPLETIONS_PER_ENTRY, RING_DRAIN_INTERVAL, RING_DRAIN_MAX, RING_ENTRIES, RING_ENTRIES_MIN,
    RING_MEMORY_LOOK_INTERVAL, RING_MEMORY_WAIT_MAX, RING_RESERVE_ENTRIES,
};

/// A task of this thread: await it, or abort it.
pub type JoinHandle = tokio::task::JoinHandle<()>;

/// Why there is no ring.
#[derive(Debug, Error)]
pub enum RingError {
    #[error(
        "io_uring is forbidden here (container seccomp or kernel.io_uring_disabled): {source}; allow it with \
         `sysctl kernel.io_uring_disabled=0` or a seccomp profile that permits io_uring_setup, io_uring_enter and \
         io_uring_register"
    )]
    Forbidden { source: io::Error },
    #[error(
        "no ring with {entries} entries within this process's limits: {source}; raise the limit on open files \
         (`ulimit -n`) or on locked memory (`ulimit -l`)"
    )]
    Limits { entries: u32, source: io::Error },
    #[error("no ring with {entries} entries: {source}; gabion needs Linux 5.19 or later")]
    Other { entries: u32, source: io::Error },
}

impl RingError {
    fn new(entries: u32, source: io::Error) -> RingError {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => RingError::Forbidden { source },
            Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE) => RingError::Limits { entries, source },
            _ => RingError::Other { entries, source },
        }
    }

    #[cfg(test)]
    pub(super) fn from_code(code: i32) -> RingError {
        RingError::new(8, io::Error::from_raw_os_error(code))
    }
}

#[derive(Clone, Debug)]
pub struct RingOptions {
    /// Entries of the submission queue, a power of two.
    pub entries: u32,
}

impl Default for RingOptions {
    fn default() -> RingOptions {
        RingOptions { entries: RING_ENTRIES }
    }
}

pub struct Ring {
    /// `None` only while the ring is dropped.
    runtime: Option<tokio_uring::Runtime>,
    state: Rc<RingState>,
}

impl Ring {
    pub fn new(options: &RingOptions) -> Result<Ring, RingError> {
        let wanted = options.entries.next_power_of_two().max(8);
        let (entries, runtime) = fitting_runtime(wanted).map_err(|source| RingError::new(wanted, source))?;
        if entries < wanted {
            tracing::warn!(entries, wanted, "a smaller ring, as locked memory is short (`ulimit -l`, LimitMEMLOCK=)");
        }
        Ok(Ring { runtime: Some(runtime), state: RingState::new(entries) })
    }

    /// Runs `future`, and the tasks it spawns, until it ends. Tasks that are left go on with the next call.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        let Some(runtime) = &self.runtime else { unreachable!("the runtime goes with the ring") };
        let _current = self.state.make_current();
        runtime.block_on(future)
    }

    /// Waits until the kernel holds nothing of ours; `false` when it still does.
    fn drain(&mut self) -> bool {
        self.state.close();
        let state = Rc::clone(&self.state);
        self.block_on(async move {
            let deadline = Instant::now() + RING_DRAIN_MAX;
            while state.in_flight() > 0 && Instant::now() < deadline {
                op::cancel_everything().await;
                tokio::time::sleep(RING_DRAIN_INTERVAL).await;
            }
            state.in_flight() == 0
        })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let drained = !std::thread::panicking() && (self.state.in_flight() == 0 || self.drain());
        let Some(runtime) = self.runtime.take() else { return };
        if drained {
            drop(runtime);
        } else {
            tracing::warn!(in_flight = self.state.in_flight(), "a ring is left behind with operations in flight");
            std::mem::forget(runtime);
        }
    }
}

/// Makes the largest ring that the limit on locked memory allows, and waits a little where it allows none.
fn fitting_runtime(wanted: u32) -> io::Result<(u32, tokio_uring::Runtime)> {
    let deadline = Instant::now() + RING_MEMORY_WAIT_MAX;
    let mut entries = wanted;
    loop {
        match runtime_with(entries) {
            Ok(runtime) => return Ok((entries, runtime)),
            Err(error) if error.raw_os_error() != Some(libc::ENOMEM) => return Err(error),
            Err(_) if entries > RING_ENTRIES_MIN => entries /= 2,
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => {
                std::thread::sleep(RING_MEMORY_LOOK_INTERVAL);
                entries = wanted;
            }
        }
    }
}

fn runtime_with(entries: u32) -> io::Result<tokio_uring::Runtime> {
    let _alone = memory_turn();
    let mut builder = tokio_uring::builder();
    builder.entries(entries).uring_builder(&working_flags(entries)?);
    tokio_uring::Runtime::new(&builder)
}

/// Held by whoever tries out how much locked memory there is, so that threads of one process that start together do
/// not starve each other with their attempts.
pub(super) fn memory_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the limit on locked memory leaves the reserve for other rings. Asked of the kernel by making a large one:
/// the limit holds for a user, some processes are exempt, and only the kernel knows what counts.
pub(super) fn has_reserve_for_rings() -> bool {
    let probe: io::Result<io_uring::IoUring> = io_uring::IoUring::builder().dontfork().build(RING_RESERVE_ENTRIES);
    !probe.is_err_and(|error| error.raw_os_error() == Some(libc::ENOMEM))
}

/// Finds the best set of flags that this kernel knows.
fn working_flags(entries: u32) -> io::Result<io_uring::Builder> {
    let completions = entries.saturating_mul(RING_COMPLETIONS_PER_ENTRY);
    let mut refusal = None;
    for level in (0..=3).rev() {
        let mut flags = tokio_uring::uring_builder();
        flags.dontfork();
        if level >= 1 {
            flags.setup_cqsize(completions);
        }
        if level >= 2 {
            flags.setup_coop_taskrun().setup_submit_all();
        }
        if level >= 3 {
            flags.setup_single_issuer();
        }
        match flags.build(entries) {
            Ok(_probe) => return Ok(flags),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refusal.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)))
}

/// Starts a task on this thread's runtime.
pub fn spawn<F: Future<Output = ()> + 'static>(future: F) -> JoinHandle {
    tokio_uring::spawn(future)
}

/// Lets other tasks and all queued I/O make progress. A task that yields in any other way starves the ring.
pub async fn yield_now() {
    op::nop().await;
}

/// Runs an operation to its end whatever becomes of the caller, so that a result that owns something is never lost.
pub(super) async fn run_to_end<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let _detached = tokio_uring::spawn(async move {
        // A caller that is gone gets nothing: the value is dropped here, and closes what it owns.
        let _unwanted = sender.send(future.await);
    });
    match receiver.await {
        Ok(value) => value,
        // The task can end early only together with this one, when the runtime goes.
        Err(_gone) => std::future::pending().await,
    }
}

/// Raises the soft limit on open files to the hard one, and returns what holds now.
pub fn raise_fd_limit() -> u64 {
    super::system::raise_fd_limit()
}
