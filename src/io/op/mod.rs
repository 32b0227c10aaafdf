//! Submission of ring operations: the one place where memory is lent to the kernel.
//!
//! An entry is a bag of raw numbers. What makes it sound is that the operation owns everything these numbers point to
//! (buffers, descriptors, addresses, time-outs) until the kernel has reported its end:
//!
//! ```text
//! start --> in flight --(awaited to its end)--> result and data go back to the caller
//!              |
//!              +-(future dropped)--> the driver keeps the data until the completion, then drops it
//! ring closing --> refused: never starts, never ends (a task that retries in a loop must not spin)
//! ```
//!
//! # Invariants
//! - Pointers in an entry lead to memory that does not move when its owner does: [`Stable`], `Vec`, `Buffer`.
//! - The data holds the descriptor ([`Fd`]), so its number cannot be reused between submission and the kernel's look.
//! - Data is dropped while the driver is borrowed: its destructors must not submit anything.
//! - [`RingState::in_flight`] counts data that the kernel may still use. The ring is torn down only at zero, because
//!   the driver's own destructor frees the data of dropped operations before it cancels them.
//! - A linked time-out must follow its operation directly. The queue may be flushed when it is full, even between the
//!   two, so a pair is pushed only when both are known to fit: what was pushed after the latest entry that has
//!   completed is an upper bound of what is still queued, as the kernel consumes entries in order.
//! - No entry may lead to more than one completion: the driver cannot take it.
#![allow(unsafe_code)] // submission of entries that point to memory

pub(super) mod file;
pub(super) mod socket;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue, types};
use tokio::sync::{Mutex, MutexGuard};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

/// A descriptor that stays open for as long as an operation uses it.
pub(super) type Fd = Rc<OwnedFd>;

/// What the thread knows about one ring.
pub(super) struct RingState {
    /// Unique in the process: registered buffers are valid on their own ring only.
    pub(super) id: u64,
    entries: u64,
    /// Entries ever pushed.
    pushed: Cell<u64>,
    /// Entries that the kernel is known to have taken from the queue.
    consumed: Cell<u64>,
    in_flight: Cell<usize>,
    closing: Cell<bool>,
    waiting_for_room: Mutex<()>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<RingState>>> = const { RefCell::new(None) };
}

impl RingState {
    pub(super) fn new(entries: u32) -> Rc<RingState> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Rc::new(RingState {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            entries: u64::from(entries),
            pushed: Cell::new(0),
            consumed: Cell::new(0),
            in_flight: Cell::new(0),
            closing: Cell::new(false),
            waiting_for_room: Mutex::new(()),
        })
    }

    /// The ring whose `block_on` runs on this thread.
    pub(super) fn current() -> Option<Rc<RingState>> {
        CURRENT.with_borrow(Clone::clone)
    }

    pub(super) fn make_current(self: &Rc<Self>) -> CurrentGuard {
        CurrentGuard { before: CURRENT.replace(Some(Rc::clone(self))) }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    pub(super) fn close(&self) {
        self.closing.set(true);
    }

    /// Entries that certainly fit into the queue without a flush.
    fn room(&self) -> u64 {
        self.entries.saturating_sub(self.pushed.get() - self.consumed.get())
    }
}

pub(super) struct CurrentGuard {
    before: Option<Rc<RingState>>,
}

impl Drop for CurrentGuard {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

/// Memory that stays where it is while its owner moves, without the aliasing promise that a `Box` makes.
pub(super) struct Stable<T>(NonNull<T>);

impl<T> Stable<T> {
    pub(super) fn new(value: T) -> Stable<T> {
        Stable(NonNull::from(Box::leak(Box::new(value))))
    }

    pub(super) fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Stable<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a leaked box in `new` and is freed nowhere else; the operation that lent it to
        // the kernel has ended, as it owned this value.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Counts the data of one operation as lent to the kernel.
struct InFlight(Rc<RingState>);

impl InFlight {
    fn new(state: &Rc<RingState>) -> InFlight {
        state.in_flight.set(state.in_flight.get() + 1);
        InFlight(Rc::clone(state))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get().saturating_sub(1));
    }
}

struct Held<D> {
    data: D,
    _in_flight: InFlight,
}

/// Turns a completion into the operation's output.
struct Collect<D> {
    state: Rc<RingState>,
    sequence: u64,
    data: std::marker::PhantomData<fn() -> D>,
}

impl<D> OneshotOutputTransform for Collect<D> {
    type Output = (io::Result<u32>, D);
    type StoredData = Held<D>;

    fn transform_oneshot_output(self, held: Held<D>, completion: cqueue::Entry) -> Self::Output {
        self.state.consumed.set(self.state.consumed.get().max(self.sequence));
        let code = completion.result();
        let result = u32::try_from(code).map_err(|_| io::Error::from_raw_os_error(code.saturating_neg()));
        (result, held.data)
    }
}

/// An operation; its output is the result and the data it was given.
#[must_use = "an operation that is not awaited leaves its result behind"]
pub(super) struct Op<D: Unpin + 'static>(Stage<D>);

enum Stage<D: Unpin + 'static> {
    InFlight(InFlightOneshot<Held<D>, Collect<D>>),
    /// The ring is closing. The data waits here until the task is dropped.
    Refused {
        _data: D,
    },
}

impl<D: Unpin + 'static> Future for Op<D> {
    type Output = (io::Result<u32>, D);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Stage::InFlight(operation) => Poll::Ready(ready!(Pin::new(operation).poll(context))),
            Stage::Refused { .. } => Poll::Pending,
        }
    }
}

fn current_or_panic() -> Rc<RingState> {
    match RingState::current() {
        Some(state) => state,
        None => panic!("a ring operation was started outside of Ring::block_on"),
    }
}

/// Hands an entry to the queue; the kernel sees it when the thread parks.
///
/// # Safety
/// Every pointer in `entry` must lead to memory owned by `data` that neither moves nor is freed nor, where the kernel
/// writes, is accessed in any other way until `data` is given back or dropped. Its descriptors must be held by `data`.
/// The entry must lead to exactly one completion.
unsafe fn start<D: Unpin + 'static>(entry: squeue::Entry, data: D) -> Op<D> {
    let state = current_or_panic();
    if state.closing.get() {
        return Op(Stage::Refused { _data: data });
    }
    push(&state, entry, data)
}

fn push<D: Unpin + 'static>(state: &Rc<RingState>, entry: squeue::Entry, data: D) -> Op<D> {
    let sequence = state.pushed.get() + 1;
    state.pushed.set(sequence);
    let held = Held { data, _in_flight: InFlight::new(state) };
    let collect = Collect { state: Rc::clone(state), sequence, data: std::marker::PhantomData };
    Op(Stage::InFlight(UnsubmittedOneshot::new(held, collect, entry).submit()))
}

/// Like [`start`], awaited, and cancelled by the kernel after `wait`. An operation that had already moved bytes then
/// ends with their number, any other with `ECANCELED`.
///
/// # Safety
/// As for [`start`].
async unsafe fn run_within<D: Unpin + 'static>(
    entry: squeue::Entry,
    data: D,
    wait: Option<Duration>,
) -> (io::Result<u32>, D) {
    let Some(wait) = wait else {
        // SAFETY: the caller's promise.
        return unsafe { start(entry, data) }.await;
    };
    let state = current_or_panic();
    let turn = make_room_for_pair(&state).await;
    // SAFETY: the caller's promise.
    let operation = unsafe { start(entry.flags(squeue::Flags::IO_LINK), data) };
    let timespec = Stable::new(types::Timespec::from(wait));
    let timeout = opcode::LinkTimeout::new(timespec.as_ptr()).build();
    // SAFETY: the entry points to the time only, and the operation owns it. Nobody needs its result: dropped here, it
    // lives on in the driver until its completion.
    drop(unsafe { start(timeout, timespec) });
    drop(turn);
    operation.await
}

/// Waits until two entries fit without a flush; true until the next await. Those who must wait do so one by one: if
/// each of many had a no-op of its own in the queue, there would never be room.
async fn make_room_for_pair(state: &RingState) -> Option<MutexGuard<'_, ()>> {
    if state.room() >= 2 {
        return None;
    }
    let turn = state.waiting_for_room.lock().await;
    while state.room() < 2 {
        nop().await;
    }
    Some(turn)
}

/// Ends once the kernel has taken everything queued before it.
pub(super) async fn nop() {
    // SAFETY: the entry holds no pointer.
    let (result, ()) = unsafe { start(opcode::Nop::new().build(), ()) }.await;
    debug_assert!(result.is_ok(), "a no-op failed: {result:?}");
}

/// Cancels everything that is pending on the current ring, even one that is closing.
pub(super) async fn cancel_everything() {
    let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
    // The entry holds no pointer, and bypasses `start` because that refuses on a closing ring.
    let (_number_or_none, ()) = push(&current_or_panic(), entry, ()).await;
}
