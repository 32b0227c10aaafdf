//! Entries for files and mappings.
#![allow(unsafe_code)] // entries that point to memory, see the parent module

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::{opcode, squeue, types};

use super::{Fd, Op, RingState, Stable, start};
use crate::io::buffers::{Buffer, SharedBuffer};
use crate::io::mmap::MappedRange;

/// Reads and writes at the file's own position, as read(2) and write(2) do.
pub(in crate::io) const CURRENT_POSITION: u64 = u64::MAX;

fn target(fd: &Fd) -> types::Fd {
    types::Fd(fd.as_raw_fd())
}

/// The buffer's registration, if it is one of the ring that would use it.
fn fixed_index(slot: Option<(u64, u16)>) -> Option<u16> {
    let (ring_id, index) = slot?;
    RingState::current().filter(|state| state.id == ring_id).map(|_| index)
}

pub(in crate::io) async fn read(
    fd: &Fd,
    buffer: Buffer,
    range: Range<usize>,
    offset: u64,
) -> (io::Result<u32>, Buffer) {
    let (pointer, len_bytes) = buffer.target(&range);
    let entry = match fixed_index(buffer.registration()) {
        Some(index) => opcode::ReadFixed::new(target(fd), pointer, len_bytes, index).offset(offset).build(),
        None => opcode::Read::new(target(fd), pointer, len_bytes).offset(offset).build(),
    };
    // SAFETY: `target` checked the range against the buffer, which the operation owns alone, with the descriptor.
    let (result, (buffer, _fd)) = unsafe { start(entry, (buffer, Fd::clone(fd))) }.await;
    (result, buffer)
}

/// `elsewhere`: submitted by a worker thread of the kernel, which may wait where this one must not.
pub(in crate::io) async fn write(
    fd: &Fd,
    buffer: &SharedBuffer,
    range: Range<usize>,
    offset: u64,
    elsewhere: bool,
) -> io::Result<u32> {
    let (pointer, len_bytes) = buffer.source(&range);
    let entry = match fixed_index(buffer.registration()) {
        Some(index) => opcode::WriteFixed::new(target(fd), pointer, len_bytes, index).offset(offset).build(),
        None => opcode::Write::new(target(fd), pointer, len_bytes).offset(offset).build(),
    };
    let entry = if elsewhere { entry.flags(squeue::Flags::ASYNC) } else { entry };
    // SAFETY: `source` checked the range; the operation co-owns the buffer, which nobody can write to while shared.
    unsafe { start(entry, (buffer.clone(), Fd::clone(fd))) }.await.0
}

pub(in crate::io) fn sync(fd: &Fd, data_only: bool) -> Op<Fd> {
    let flags = if data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
    let entry = opcode::Fsync::new(target(fd)).flags(flags).build();
    // SAFETY: the entry holds no pointer; the operation holds the descriptor.
    unsafe { start(entry, Fd::clone(fd)) }
}

pub(in crate::io) fn allocate(fd: &Fd, mode: i32, offset: u64, len_bytes: u64) -> Op<Fd> {
    let entry = opcode::Fallocate::new(target(fd), len_bytes).offset(offset).mode(mode).build();
    // SAFETY: the entry holds no pointer; the operation holds the descriptor.
    unsafe { start(entry, Fd::clone(fd)) }
}

/// Must be awaited to its end (by a task of its own), or the descriptor is lost.
pub(in crate::io) async fn open(path: CString, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let path = Stable::new(path);
    // SAFETY: the pointer is valid and initialised, and nothing else refers to it.
    let pointer = unsafe { (*path.as_ptr()).as_ptr() };
    let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), pointer).flags(flags).mode(mode).build();
    // SAFETY: the operation owns the path, whose bytes stay where they are.
    let (result, _path) = unsafe { start(entry, path) }.await;
    let number = i32::try_from(result?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us, and nobody else knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

pub(in crate::io) async fn status(fd: &Fd) -> io::Result<libc::statx> {
    let status = Stable::new(MaybeUninit::<libc::statx>::zeroed());
    let entry = opcode::Statx::new(target(fd), c"".as_ptr(), status.as_ptr().cast())
        .flags(libc::AT_EMPTY_PATH)
        .mask(libc::STATX_BASIC_STATS)
        .build();
    // SAFETY: the operation owns the structure and the descriptor; the empty path is static.
    let (result, (status, _fd)) = unsafe { start(entry, (status, Fd::clone(fd))) }.await;
    result?;
    // SAFETY: the structure is plain numbers, was zeroed, and has been filled in.
    Ok(unsafe { (*status.as_ptr()).assume_init() })
}

/// Advice on whole pages around `range`; runs on a worker thread of the kernel.
pub(in crate::io) async fn advise(map: &MappedRange, range: Range<usize>, advice: i32) -> io::Result<()> {
    let (pointer, len_bytes) = map.pages(&range);
    let entry = opcode::Madvise::new(pointer.cast(), len_bytes as libc::off_t, advice).build();
    // SAFETY: the pages lie inside the mapping, which the operation co-owns; both kinds of advice only read pages in.
    unsafe { start(entry, map.clone()) }.await.0.map(drop)
}
