//! Plain calls that need no ring: limits, locks, space, memory, what a descriptor is.
#![allow(unsafe_code)] // libc calls over numbers and structures of ours

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::sockaddr::check;
use crate::limits::{COMPUTE_NICENESS, COMPUTE_SLICE};

/// Name of the lock file of a data directory.
const LOCK_NAME: &str = "lock";

/// Raises the soft limit on open files to the hard one, and returns what holds now.
pub(super) fn raise_fd_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: points to a structure of ours.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 0;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: points to a structure of ours.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        raised.rlim_cur
    } else {
        limit.rlim_cur
    }
}

/// The nicest that a thread can be: `sched(7)`.
const NICENESS_MAX: i32 = 19;

/// What `sched_setattr(2)` takes, in its first version.
#[repr(C)]
struct SchedulingAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// Lets whoever wakes run before this thread: it wakes nobody's turn away, takes its time in long slices, and is nicer than
/// the rest of the process. Where the kernel refuses, all is as it was.
pub(super) fn yield_to_others() {
    // SAFETY: takes numbers only.
    let niceness = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = SchedulingAttributes {
        size: size_of::<SchedulingAttributes>() as u32,
        policy: libc::SCHED_BATCH as u32,
        flags: 0,
        nice: (niceness + COMPUTE_NICENESS).min(NICENESS_MAX),
        priority: 0,
        runtime_ns: COMPUTE_SLICE.as_nanos() as u64,
        deadline_ns: 0,
        period_ns: 0,
    };
    // SAFETY: points to a structure of ours that says how long it is.
    let outcome = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if outcome != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "the kernel takes no scheduling attributes");
    }
}

fn status_flags(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })
}

/// Whether it was opened for reading.
pub(super) fn is_for_reading(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(status_flags(fd)? & libc::O_ACCMODE != libc::O_WRONLY)
}

pub(super) fn is_direct(fd: BorrowedFd<'_>) -> bool {
    status_flags(fd).is_ok_and(|flags| flags & libc::O_DIRECT != 0)
}

/// Asks for direct I/O; `false` when the file system has none.
pub(super) fn set_direct(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let flags = status_flags(fd)? | libc::O_DIRECT;
    // SAFETY: takes numbers only.
    match check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn set_len(fd: BorrowedFd<'_>, len_bytes: u64) -> io::Result<()> {
    let len_bytes = libc::off_t::try_from(len_bytes).map_err(io::Error::other)?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), len_bytes) }).map(drop)
}

/// Lets a pipe hold this much, where it holds less and the kernel allows it: who waits at its ends then wakes for more at
/// a time. It may be refused, as a user's pipes hold no more than some limit together. What it holds now; `None` of what is no
/// pipe.
pub fn widen_pipe(fd: impl AsFd, bytes: usize) -> Option<usize> {
    let fd = fd.as_fd().as_raw_fd();
    let wanted = libc::c_int::try_from(bytes).ok()?;
    // SAFETY: takes numbers only.
    let held = unsafe { libc::fcntl(fd, libc::F_GETPIPE_SZ) };
    // SAFETY: takes numbers only.
    let widened = if held < wanted { unsafe { libc::fcntl(fd, libc::F_SETPIPE_SZ, wanted) } } else { held };
    usize::try_from(held.max(widened)).ok()
}

/// Makes everything durable that was written to the file system of `fd`, names included; says what could not be.
pub fn sync_filesystem(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: takes a number only.
    check(unsafe { libc::syncfs(fd.as_fd().as_raw_fd()) }).map(drop)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    /// What is free for a process without privileges.
    pub free_bytes: u64,
}

/// Number of `cachestat(2)`, the same on every architecture; the C library has no wrapper for it yet.
const SYS_CACHESTAT: libc::c_long = 451;

#[repr(C)]
struct CachestatRange {
    offset: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether the page cache holds all of a range; `None` where the kernel cannot say (before Linux 6.5).
pub(super) fn is_cached(fd: BorrowedFd<'_>, offset: u64, len_bytes: u64) -> Option<bool> {
    let range = CachestatRange { offset, len: len_bytes };
    let mut found = Cachestat::default();
    // SAFETY: two structures of ours, of the layout that the call defines; it reads the one and fills the other.
    let code = unsafe { libc::syscall(SYS_CACHESTAT, fd.as_raw_fd(), &raw const range, &raw mut found, 0) };
    let first = offset / PAGE_BYTES;
    let pages = (offset + len_bytes).div_ceil(PAGE_BYTES) - first;
    (code == 0).then_some(found.cached >= pages)
}

const PAGE_BYTES: u64 = 4096;

/// Fills `bytes` with what the page cache has of a file at `offset`; `false` where it has not all of it, or the kernel cannot
/// tell without waiting. Never waits.
pub fn read_cached(fd: impl AsFd, bytes: &mut [u8], offset: u64) -> bool {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let part = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        let Ok(position) = libc::off_t::try_from(offset + done as u64) else { return false };
        // SAFETY: one part, of memory that is borrowed exclusively.
        let count = unsafe { libc::preadv2(fd.as_fd().as_raw_fd(), &raw const part, 1, position, libc::RWF_NOWAIT) };
        match usize::try_from(count) {
            Ok(count) if count > 0 => done += count,
            _ => return false,
        }
    }
    true
}

/// Opens a file of a directory for reading, by its name there: nobody has to walk the path to it again. What has become a
/// symbolic link is an error, and what has become a pipe is not waited for. Of the file, [`set_blocking`] before it goes to a
/// ring: some file systems would have reads of it tried again instead of waiting.
pub fn open_in(directory: impl AsFd, name: &OsStr) -> io::Result<File> {
    let name = CString::new(name.as_bytes())?;
    // SAFETY: a number and a name that ends in zero.
    let fd = unsafe { libc::openat(directory.as_fd().as_raw_fd(), name.as_ptr(), OPEN_FLAGS) };
    let fd = check(fd)?;
    // SAFETY: just opened, and nobody else's.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

const OPEN_FLAGS: i32 = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Takes O_NONBLOCK, and whatever else can be changed of an open file, off it.
pub fn set_blocking(file: impl AsFd) -> io::Result<()> {
    // SAFETY: numbers alone.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETFL, 0) }).map(drop)
}

/// Where the last data of a file ends, before holes and space that was only reserved; its length, where the file system tells
/// no difference.
pub fn data_end(file: impl AsFd) -> io::Result<u64> {
    let fd = file.as_fd().as_raw_fd();
    let seek = |from: i64, whence: i32| {
        // SAFETY: numbers alone. Whoever has the file writes it at positions.
        let found = unsafe { libc::lseek(fd, from, whence) };
        if found < 0 { Err(io::Error::last_os_error()) } else { Ok(found) }
    };
    let mut end = 0;
    loop {
        match seek(end, libc::SEEK_DATA) {
            Ok(data) => end = seek(data, libc::SEEK_HOLE)?,
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(end.unsigned_abs()),
            Err(error) => return Err(error),
        }
    }
}

/// Space of the file system that holds `path`.
pub fn filesystem_space(path: &Path) -> io::Result<Space> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut status = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: a path that ends in zero, and a structure of ours.
    check(unsafe { libc::statvfs(path.as_ptr(), status.as_mut_ptr()) })?;
    // SAFETY: plain numbers, zeroed and then filled in.
    let status = unsafe { status.assume_init() };
    Ok(Space { total_bytes: status.f_blocks * status.f_frsize, free_bytes: status.f_bavail * status.f_frsize })
}

/// Holds a data directory for one process; released when dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Locks a directory; `None` when another process (or another lock of this one) holds it.
pub fn lock_directory(path: &Path) -> io::Result<Option<DirLock>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join(LOCK_NAME))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(DirLock { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Another number for the same open file, to be moved to another thread.
pub fn dup_fd(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdKind {
    Regular { len_bytes: u64 },
    Pipe,
    CharacterDevice,
    Other,
}

/// What a descriptor from elsewhere is; `Other` too when it cannot be told.
pub fn fd_kind(fd: BorrowedFd<'_>) -> FdKind {
    let Ok(metadata) = dup_fd(fd).and_then(|fd| File::from(fd).metadata()) else { return FdKind::Other };
    let kind = metadata.file_type();
    if kind.is_file() {
        FdKind::Regular { len_bytes: metadata.len() }
    } else if kind.is_fifo() {
        FdKind::Pipe
    } else if kind.is_char_device() {
        FdKind::CharacterDevice
    } else {
        FdKind::Other
    }
}

pub fn peer_is_regular(fd: BorrowedFd<'_>) -> bool {
    matches!(fd_kind(fd), FdKind::Regular { .. })
}

/// Memory of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident and not backed by a file: what counts as ours.
    pub anon_bytes: u64,
    /// Most that was ever resident, mapped files included.
    pub hwm_bytes: u64,
}

pub fn rss() -> Memory {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    Memory { anon_bytes: status_bytes(&status, "RssAnon:"), hwm_bytes: status_bytes(&status, "VmHWM:") }
}

/// A line of /proc/self/status, given there in KiB; 0 when it is missing.
fn status_bytes(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Shard threads where nobody asked for another number: the cores that this process may use.
pub fn thread_count_default() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Files that this process makes from now on are for its owner alone.
pub fn restrict_new_files() {
    // SAFETY: takes a number only.
    unsafe { libc::umask(0o077) };
}
