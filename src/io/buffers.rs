//! Aligned buffers, registered with the ring as far as the limit on locked memory allows.
//!
//! A pool buffer has room for a record head and the longest chunk, so that a chunk is received, hashed, encrypted and
//! written in one place. A pool has a fixed number of buffers; who wants one waits in line. Registered buffers save
//! the pinning of pages on every direct read and write, and change nothing else: a plain buffer works everywhere.
//! Locked memory is counted per user, and newer kernels count the rings themselves, so a registration must leave room
//! for the rings of other threads and processes: it is taken back where it does not. The buffers of a pool follow each
//! other in huge pages, so that a direct write of one is a few long pieces instead of 257; of a huge page the kernel counts
//! all as locked as soon as a part of it is.
//!
//! ```text
//! pool --take--> Buffer (one owner, writable) --freeze--> SharedBuffer (many owners, read only)
//!   ^                 |   ^                                     |
//!   +-----drop--------+   +------------try_unfreeze-------------+   the last drop of a SharedBuffer goes home too
//! ```
//!
//! # Invariants
//! - At most one `Buffer` exists for a piece of memory, inside a `SharedBuffer` or not.
//! - An operation that writes into memory owns its `Buffer`; one that reads owns a clone of the `SharedBuffer`.
//! - Memory is initialised before a `Buffer` is made of it, and zeroed never again: bytes of an earlier use are still there,
//!   so every user handles explicit ranges of what it wrote.
//! - A registration is used only on the ring it was made on.
#![allow(unsafe_code)] // memory that is shared with the kernel

use std::alloc::Layout;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use memmap2::{Advice, MmapMut, MmapRaw};
use tokio::sync::Semaphore;
use tokio_uring::buf::fixed::FixedBufRegistry;
use tokio_uring::buf::{IoBuf, IoBufMut};

use super::op::RingState;
use super::ring::{has_reserve_for_rings, memory_turn};
use crate::limits::{BLOCK_BYTES, BUFFER_BYTES, BUFFERS_REGISTERED_MAX, IO_BYTES_MAX};

/// Alignment of buffers that are shorter than a block, and so of no use for direct I/O.
const SMALL_ALIGNMENT_BYTES: usize = 64;
/// On the processors that this runs on. Elsewhere it aligns too much and nothing worse.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Owned memory. Only the one `Buffer` made of it looks inside, and work that has borrowed it from there.
pub(super) enum Memory {
    /// [`BUFFER_BYTES`] of a region, from `at` on.
    Pages {
        region: Arc<MmapRaw>,
        at: usize,
    },
    Heap {
        base: NonNull<u8>,
        layout: Layout,
        len_bytes: usize,
    },
}

impl Memory {
    /// One after the other in one region of anonymous pages, made when first touched: huge ones, where there are any.
    fn pages(count: usize) -> io::Result<Vec<Memory>> {
        let region = MmapMut::map_anon((count * BUFFER_BYTES).next_multiple_of(HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES)?;
        // A kernel without them says so, and then all is as it was.
        let _ = region.advise(Advice::HugePage);
        let start = region.as_ptr().align_offset(HUGE_PAGE_BYTES);
        let region = Arc::new(MmapRaw::from(region));
        let place = |number| Memory::Pages { region: Arc::clone(&region), at: start + number * BUFFER_BYTES };
        Ok((0..count).map(place).collect())
    }

    fn heap(len_bytes: usize) -> Memory {
        // SAFETY: of a size that is not zero.
        Memory::allocated(len_bytes, |layout| unsafe { std::alloc::alloc_zeroed(layout) })
    }

    /// Not initialised: to be written before anybody may see it.
    fn unwritten(len_bytes: usize) -> Memory {
        // SAFETY: of a size that is not zero.
        Memory::allocated(len_bytes, |layout| unsafe { std::alloc::alloc(layout) })
    }

    fn allocated(len_bytes: usize, allocate: impl FnOnce(Layout) -> *mut u8) -> Memory {
        let alignment = if len_bytes < BLOCK_BYTES { SMALL_ALIGNMENT_BYTES } else { BLOCK_BYTES };
        let Ok(layout) = Layout::from_size_align(len_bytes.max(1), alignment) else {
            panic!("a buffer of {len_bytes} bytes is longer than the address space");
        };
        let Some(base) = NonNull::new(allocate(layout)) else { std::alloc::handle_alloc_error(layout) };
        Memory::Heap { base, layout, len_bytes }
    }

    pub(super) fn base(&self) -> *mut u8 {
        match self {
            // SAFETY: `pages` made the region long enough for every place in it.
            Memory::Pages { region, at } => unsafe { region.as_mut_ptr().add(*at) },
            Memory::Heap { base, .. } => base.as_ptr(),
        }
    }

    pub(super) fn len_bytes(&self) -> usize {
        match self {
            Memory::Pages { .. } => BUFFER_BYTES,
            Memory::Heap { len_bytes, .. } => *len_bytes,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Heap { base, layout, .. } = self {
            // SAFETY: allocated with this layout, and freed only here.
            unsafe { std::alloc::dealloc(base.as_ptr(), *layout) };
        }
    }
}

// SAFETY: memory is bound to no thread; who may look inside is the matter of its one `Buffer`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// What the driver keeps of a registered buffer: the memory stays alive until the ring is gone.
struct Registered(Arc<Memory>);

// SAFETY: the address does not change when the value moves, and all bytes are initialised.
unsafe impl IoBuf for Registered {
    fn stable_ptr(&self) -> *const u8 {
        self.0.base()
    }

    fn bytes_init(&self) -> usize {
        self.0.len_bytes()
    }

    fn bytes_total(&self) -> usize {
        self.0.len_bytes()
    }
}

// SAFETY: as above. The registry only passes the address on: nothing is ever checked out of it.
unsafe impl IoBufMut for Registered {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.base()
    }

    unsafe fn set_init(&mut self, _position: usize) {}
}

/// A buffer at rest: its memory, and its ring's id and index where it is registered.
struct Slot {
    memory: Arc<Memory>,
    registration: Option<(u64, u16)>,
}

struct Shelf {
    /// Registered ones at the back, where they are taken from.
    free: RefCell<VecDeque<Slot>>,
    /// One permit for each free slot; hands them out in the order of asking.
    permits: Semaphore,
    registered: usize,
}

#[derive(Clone)]
pub struct BufferPool(Rc<Shelf>);

impl BufferPool {
    /// Makes a pool of `count` buffers of [`BUFFER_BYTES`] and registers as many as the kernel lets it: `count`, or
    /// half of it, and so on. Must be called inside `block_on`, once for each ring (a second pool stays plain).
    pub fn new(count: usize) -> io::Result<BufferPool> {
        let Some(ring) = RingState::current() else {
            return Err(io::Error::other("a buffer pool must be made inside Ring::block_on"));
        };
        let memories: Vec<_> = Memory::pages(count)?.into_iter().map(Arc::new).collect();
        let registered = register_most(&memories);
        let mut free = VecDeque::with_capacity(count);
        for (index, memory) in memories.into_iter().enumerate() {
            match u16::try_from(index) {
                Ok(number) if index < registered => {
                    free.push_back(Slot { memory, registration: Some((ring.id, number)) });
                }
                _ => free.push_front(Slot { memory, registration: None }),
            }
        }
        Ok(BufferPool(Rc::new(Shelf { free: RefCell::new(free), permits: Semaphore::new(count), registered })))
    }

    /// A pool of `count` plain buffers of any length, for what is no direct I/O: saves making and zeroing them.
    pub fn plain(count: usize, len_bytes: usize) -> BufferPool {
        let slot = |_| Slot { memory: Arc::new(Memory::heap(len_bytes)), registration: None };
        let free = RefCell::new((0..count).map(slot).collect());
        BufferPool(Rc::new(Shelf { free, permits: Semaphore::new(count), registered: 0 }))
    }

    /// The next free buffer; waits in line. Safe to drop and ask again.
    pub async fn take(&self) -> Buffer {
        loop {
            // The semaphore is never closed.
            if let Ok(permit) = self.0.permits.acquire().await {
                permit.forget();
            }
            if let Some(buffer) = self.pop() {
                return buffer;
            }
        }
    }

    /// A free buffer, unless others wait for it.
    pub fn try_take(&self) -> Option<Buffer> {
        self.0.permits.try_acquire().ok()?.forget();
        self.pop()
    }

    fn pop(&self) -> Option<Buffer> {
        let Slot { memory, registration } = self.0.free.borrow_mut().pop_back()?;
        Some(Buffer { memory, registration, home: Some(Rc::clone(&self.0)) })
    }

    pub fn available(&self) -> usize {
        self.0.permits.available_permits()
    }

    /// Buffers that the kernel holds registered.
    pub fn registered(&self) -> usize {
        self.0.registered
    }
}

/// Registers the first so many of `memories`, and returns how many.
fn register_most(memories: &[Arc<Memory>]) -> usize {
    let mut count = memories.len().min(BUFFERS_REGISTERED_MAX);
    let mut refusal = None;
    let turn = memory_turn();
    while count > 0 {
        let registry = FixedBufRegistry::new(memories.iter().take(count).map(|memory| Registered(Arc::clone(memory))));
        match register_with_reserve(&registry) {
            Ok(()) => break,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN)) => {
                count /= 2;
                refusal = Some(error);
            }
            Err(error) => {
                count = 0;
                refusal = Some(error);
            }
        }
    }
    drop(turn);
    if let Some(error) = refusal {
        tracing::warn!(
            registered = count,
            wanted = memories.len(),
            %error,
            "fewer buffers are registered with the kernel than wanted; raise the limit on locked memory \
             (`ulimit -l`, LimitMEMLOCK=) to save some CPU time"
        );
    }
    count
}

/// Registers, and takes it back when too little locked memory is left for other rings. As every registration looks
/// afterwards, two at the same moment cannot both overlook the other.
fn register_with_reserve(registry: &FixedBufRegistry<Registered>) -> io::Result<()> {
    registry.register()?;
    if has_reserve_for_rings() {
        return Ok(());
    }
    registry.unregister()?;
    Err(io::Error::from_raw_os_error(libc::ENOMEM))
}

/// A buffer that is written from its beginning to its end, which saves zeroing it before.
pub struct BufferWriter {
    memory: Memory,
    /// So many bytes at the beginning are initialised.
    written: usize,
}

impl BufferWriter {
    /// Of a buffer without a pool, aligned like [`Buffer::heap`].
    pub fn new(len_bytes: usize) -> BufferWriter {
        BufferWriter { memory: Memory::unwritten(len_bytes), written: 0 }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> usize {
        self.written
    }

    fn room(&self) -> usize {
        self.memory.len_bytes() - self.written
    }

    /// # Panics
    /// When there is no room for them.
    pub fn put(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.room(), "{} bytes, and room for {}", bytes.len(), self.room());
        // SAFETY: there is room, and nobody else has this memory.
        unsafe { self.memory.base().add(self.written).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.written += bytes.len();
    }

    /// # Panics
    /// When there is no room for them.
    pub fn put_zeros(&mut self, count: usize) {
        assert!(count <= self.room(), "{count} bytes, and room for {}", self.room());
        // SAFETY: as above.
        unsafe { self.memory.base().add(self.written).write_bytes(0, count) };
        self.written += count;
    }

    /// What was not written is zero.
    pub fn finish(mut self) -> Buffer {
        self.put_zeros(self.room());
        Buffer { memory: Arc::new(self.memory), registration: None, home: None }
    }
}

/// Memory with one owner. A pool's buffer goes back to its pool when dropped.
pub struct Buffer {
    memory: Arc<Memory>,
    registration: Option<(u64, u16)>,
    home: Option<Rc<Shelf>>,
}

impl Buffer {
    /// A buffer without a pool, zeroed; aligned to [`BLOCK_BYTES`] from that length on.
    pub fn heap(len_bytes: usize) -> Buffer {
        Buffer { memory: Arc::new(Memory::heap(len_bytes)), registration: None, home: None }
    }

    /// A buffer without a pool that holds a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::heap(bytes.len());
        buffer.as_mut_slice().copy_from_slice(bytes);
        buffer
    }

    /// All of the memory, whatever it holds.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the memory is initialised and lives as long as `self`; only its one buffer gives access to it, and
        // no operation writes into it, as such an operation would own the buffer.
        unsafe { std::slice::from_raw_parts(self.memory.base(), self.memory.len_bytes()) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.base(), self.memory.len_bytes()) }
    }

    /// Capacity, in bytes.
    pub fn len(&self) -> usize {
        self.memory.len_bytes()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn is_registered(&self) -> bool {
        self.registration.is_some()
    }

    /// Gives up writing, so that several operations can read at once.
    pub fn freeze(self) -> SharedBuffer {
        SharedBuffer(Rc::new(self))
    }

    pub(super) fn registration(&self) -> Option<(u64, u16)> {
        self.registration
    }

    /// For work on another thread; it keeps the memory alive.
    pub(super) fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory)
    }

    /// Where an operation reads or writes: the address, and as much of the length as one operation takes.
    pub(super) fn target(&self, range: &Range<usize>) -> (*mut u8, u32) {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "the range {range:?} is not inside a buffer of {} bytes",
            self.len()
        );
        let len_bytes = (range.end - range.start).min(IO_BYTES_MAX) as u32;
        // SAFETY: checked to lie inside of the memory, or at its end.
        (unsafe { self.memory.base().add(range.start) }, len_bytes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let slot = Slot { memory: Arc::clone(&self.memory), registration: self.registration };
            let mut free = home.free.borrow_mut();
            if slot.registration.is_some() {
                free.push_back(slot)
            } else {
                free.push_front(slot)
            }
            drop(free);
            home.permits.add_permits(1);
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the bytes: they may be plaintext.
        formatter.debug_struct("Buffer").field("len_bytes", &self.len()).finish_non_exhaustive()
    }
}

/// Memory with many readers.
#[derive(Clone, Debug)]
pub struct SharedBuffer(Rc<Buffer>);

impl SharedBuffer {
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// The buffer itself, if this was its last owner; operations in flight are owners too.
    pub fn try_unfreeze(self) -> Result<Buffer, SharedBuffer> {
        Rc::try_unwrap(self.0).map_err(SharedBuffer)
    }

    pub(super) fn registration(&self) -> Option<(u64, u16)> {
        self.0.registration()
    }

    pub(super) fn source(&self, range: &Range<usize>) -> (*const u8, u32) {
        let (pointer, len_bytes) = self.0.target(range);
        (pointer, len_bytes)
    }
}

impl From<Buffer> for SharedBuffer {
    fn from(buffer: Buffer) -> SharedBuffer {
        buffer.freeze()
    }
}
