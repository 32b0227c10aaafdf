//! Everything that touches the kernel: the ring, registered buffers, files, mappings, sockets, signals.
//!
//! This is the only layer that uses tokio-uring, io-uring, libc and memmap2, and the only one with unsafe code. What
//! it offers is safe to misuse: a future dropped half-way, a task aborted, a runtime torn down never leaves the kernel
//! with a pointer into freed memory.
//!
//! ```text
//! op        entries, their data, linked time-outs: all memory that the kernel sees is owned there
//! ring      one runtime per shard thread; set-up with fallback; tear-down that waits for the kernel
//! compute   long computing, on a thread beside the ring's own
//! turn      long computing, between two visits to the ring
//! buffers   the pool of registered, aligned buffers
//! file      files and directories
//! mmap      mappings as the source of a send, never as a slice
//! socket    what TCP and Unix streams share: receive, send, time-outs, cancellation
//! tcp, unix the two kinds of stream and listener; descriptors over the control socket
//! system    limits, locks, space, memory, descriptors: plain calls without a ring
//! signal    requests to stop
//! ```
//!
//! # Rules for users
//! - Everything that awaits is bound to the thread of its [`ring::Ring`] and works only inside `block_on`.
//! - Dropping a future never stops its operation: a receive still swallows the bytes that come next. Do not `select!`
//!   or `timeout` one; give it a stall time, or call `cancel` and await its result. Three things are safe to drop:
//!   `accept`, [`buffers::BufferPool::take`] and [`UnixStream::closed`].
//! - Yield with [`ring::yield_now`], never with tokio's: operations are submitted only when the thread has nothing
//!   left to run.
//! - Await what you wrote before the ring goes: its tear-down cancels what is pending.

pub mod buffers;
pub mod compute;
pub mod file;
#[cfg(test)]
pub mod guarded;
pub mod mmap;
mod op;
pub mod ring;
pub mod signal;
mod sockaddr;
mod socket;
pub mod system;
pub mod tcp;
pub mod turn;
pub mod unix;

pub use buffers::{Buffer, BufferPool, BufferWriter, SharedBuffer};
pub use compute::compute;
pub use file::{File, FileKind, Metadata, OpenOptions, sync_directory};
pub use mmap::{MappedRange, map};
pub use ring::{JoinHandle, Ring, RingError, RingOptions, raise_fd_limit, spawn, yield_now};
pub use signal::{StopSignals, stop_requested};
pub use socket::SendSource;
pub use system::{
    DirLock, FdKind, Memory, Space, data_end, dup_fd, fd_kind, filesystem_space, lock_directory, open_in,
    peer_is_regular, read_cached, restrict_new_files, rss, set_blocking, sync_filesystem, thread_count_default,
    widen_pipe,
};
pub use tcp::{TcpListener, TcpStream};
pub use turn::Turn;
pub use unix::{UnixListener, UnixStream, connect_blocking, send_with_fds};

#[cfg(test)]
mod tests;
