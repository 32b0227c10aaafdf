//! What the store asks of a disk: the seam between the log and the machine.
//!
//! Two implementations: [`super::RingDisk`] over io_uring, and in tests a simulated disk that keeps apart what was
//! written and what was synced, and loses, tears and reorders the former. Everything above runs on either.
//!
//! Rules that both keep:
//! - Names are relative to the data directory; the one folder is `segments/`.
//! - A write that returned is visible to every later read through any handle, and durable only after a sync of its file
//!   that was submitted after it returned.
//! - A created, removed or renamed name is durable only after [`Disk::sync_directory`].

use std::io;
use std::ops::Range;

use crate::io::buffers::{Buffer, SharedBuffer};

/// A data directory.
#[allow(async_fn_in_trait)] // Everything here stays on one thread; nobody needs these futures to be `Send`.
pub trait Disk: Clone + 'static {
    type File: DiskFile;

    /// A new file for block-aligned writing; it is an error when the name exists.
    async fn create(&self, name: &str) -> io::Result<Self::File>;
    /// `writable`: for block-aligned writing, past the page cache. Else: for reading at any place, through it.
    async fn open(&self, name: &str, writable: bool) -> io::Result<Self::File>;
    /// For block-aligned reading past the page cache.
    async fn open_direct(&self, name: &str) -> io::Result<Self::File>;
    /// All names, with their folder.
    async fn list(&self) -> io::Result<Vec<String>>;
    async fn remove(&self, name: &str) -> io::Result<()>;
    async fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    async fn sync_directory(&self) -> io::Result<()>;
    fn free_bytes(&self) -> io::Result<u64>;
}

#[allow(async_fn_in_trait)] // as above
#[allow(clippy::len_without_is_empty)] // a file is no collection
pub trait DiskFile: Clone + 'static {
    /// Reads until `range` is full or the file ends.
    async fn read_at(&self, buffer: Buffer, range: Range<usize>, offset: u64) -> (io::Result<usize>, Buffer);
    /// All of it, or an error.
    async fn write_at(&self, buffer: SharedBuffer, range: Range<usize>, offset: u64) -> io::Result<()>;
    async fn sync_data(&self) -> io::Result<()>;
    async fn sync_all(&self) -> io::Result<()>;
    /// Makes room from `offset` on and grows the file to cover it; what was never written reads as zeros.
    async fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Gives the space back; the range reads as zeros, the file keeps its length.
    async fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    async fn len(&self) -> io::Result<u64>;
    /// Whether a read of this range, through the page cache, would not touch the device.
    fn is_cached(&self, offset: u64, len: usize) -> bool;
}

/// `len` bytes from `offset` on; an error when the file ends before.
pub(super) async fn read_exact<F: DiskFile>(file: &F, offset: u64, len: usize) -> io::Result<Buffer> {
    let (result, buffer) = file.read_at(Buffer::heap(len), 0..len, offset).await;
    if result? < len {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("file ends before {}", offset + len as u64)));
    }
    Ok(buffer)
}
