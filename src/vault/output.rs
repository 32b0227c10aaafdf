//! Where a get's bytes go.
//!
//! A long file is written past the page cache: it is to be durable in the end, so its bytes go to the disk in any case, and
//! through the cache each would be copied once more and written back by threads that nobody counts. Space for all of it is
//! reserved before, so that a disk too small is found out at once, and that writes change no length. What needs blocks to be
//! whole (the last one, a range that begins anywhere) and what file systems refuse goes through the cache.
//!
//! An output that is given up is cut back to what was written, or found. What was reserved and not written is a hole to whoever
//! asks where data ends, so a get that goes on after a crash neither reads nor keeps it. (Where a file system compresses,
//! more is reserved than would be needed.)

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::GetError;
use crate::io::{self as ring_io, Buffer, OpenOptions, SharedBuffer, widen_pipe};
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES_MAX, DIRECT_OUTPUT_BYTES_MIN, PIPE_BYTES};

/// An open descriptor and how to write it.
#[derive(Debug)]
pub enum Output {
    /// Written at positions, in any order: the first wanted byte lands at 0, and what follows the last one is cut off.
    /// Must be open for reading too if the get is to resume.
    File(OwnedFd),
    /// Written in order: pipes, terminals, sockets, and files that are appended to.
    Stream(OwnedFd),
}

/// Writes what is whole in memory already.
pub async fn write_whole(output: Output, contents: &[u8]) -> Result<(), GetError> {
    let output = OpenOutput::new(output);
    let file = output.buffered().map_err(GetError::Output)?;
    let (buffer, range) = (Buffer::copy_of(contents).freeze(), 0..contents.len());
    let written = if output.in_order { file.write(buffer, range).await } else { file.write_at(buffer, range, 0).await };
    written.map_err(GetError::output)?;
    output.cut_to(contents.len() as u64).map_err(GetError::Output)
}

pub(super) struct OpenOutput {
    file: File,
    in_order: bool,
    /// Space may have been reserved: then `end` tells what of it to keep.
    is_reserved: AtomicBool,
    /// Up to where it has something worth keeping.
    end: AtomicU64,
    /// Up to where it had data before this get.
    found: AtomicU64,
}

impl OpenOutput {
    pub(super) fn new(output: Output) -> OpenOutput {
        let (fd, in_order) = match output {
            Output::File(fd) => (fd, false),
            Output::Stream(fd) => (fd, true),
        };
        OpenOutput {
            file: File::from(fd),
            in_order,
            is_reserved: AtomicBool::new(false),
            end: AtomicU64::new(0),
            found: AtomicU64::new(u64::MAX),
        }
    }

    /// For `len` bytes to come. A short content needs no more than a pipe holds anyway.
    pub(super) fn widen(&self, len: u64) {
        if self.in_order && len >= PIPE_BYTES as u64 {
            widen_pipe(&self.file, PIPE_BYTES);
        }
    }

    pub(super) fn in_order(&self) -> bool {
        self.in_order
    }

    fn is_direct(&self, len: u64) -> bool {
        let is_regular = || self.file.metadata().is_ok_and(|metadata| metadata.is_file());
        !self.in_order && len >= DIRECT_OUTPUT_BYTES_MIN && is_regular()
    }

    fn buffered(&self) -> io::Result<ring_io::File> {
        Ok(ring_io::File::from_fd(self.file.as_fd().try_clone_to_owned()?))
    }

    /// For the calling thread to write `len` bytes with others.
    pub(super) async fn for_this_thread(&self, len: u64) -> io::Result<ThreadOutput> {
        let buffered = self.buffered()?;
        let mut direct = None;
        if self.is_direct(len) {
            // An open file of its own: what it is to the others does not change. Where that cannot be had, it is no loss.
            let path = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
            let options = OpenOptions { write: true, direct: true, ..OpenOptions::default() };
            direct = ring_io::File::open(&path, &options).await.ok().filter(ring_io::File::is_direct);
        }
        Ok(ThreadOutput { buffered, direct })
    }

    /// Space for `len` bytes, where that is worth it.
    pub(super) async fn reserve(&self, len: u64) -> io::Result<()> {
        if !self.is_direct(len) {
            return Ok(());
        }
        let found = ring_io::data_end(&self.file).or_else(|_| self.file.metadata().map(|metadata| metadata.len()))?;
        self.end.fetch_max(found, Ordering::Relaxed);
        self.found.store(found, Ordering::Relaxed);
        self.is_reserved.store(true, Ordering::Release);
        // What an error leaves of it is given back like the rest.
        self.buffered()?.allocate(0, len).await
    }

    /// Whether there may be something from here on that an earlier get has left.
    pub(super) fn had_data_from(&self, position: u64) -> bool {
        position < self.found.load(Ordering::Relaxed)
    }

    /// Something up to here is right.
    pub(super) fn reaches(&self, end: u64) {
        self.end.fetch_max(end, Ordering::Relaxed);
    }

    pub(super) fn is_reserved(&self) -> bool {
        self.is_reserved.load(Ordering::Acquire)
    }

    /// Gives back what was reserved in vain. May take long: it waits for writes that are under way. Nothing can be done where
    /// it fails; who comes later uses the space.
    pub(super) fn give_up(&self) {
        if self.is_reserved() {
            let _ = self.cut_to(self.end.load(Ordering::Relaxed));
        }
    }

    /// Cuts off what an earlier, longer content left behind the last byte.
    pub(super) fn cut_to(&self, len: u64) -> io::Result<()> {
        if !self.in_order && self.file.metadata()?.len() > len { self.file.set_len(len) } else { Ok(()) }
    }
}

/// An output, as one thread writes it. The lock of its file is held through `buffered` alone.
#[derive(Clone)]
pub(super) struct ThreadOutput {
    buffered: ring_io::File,
    direct: Option<ring_io::File>,
}

impl ThreadOutput {
    pub(super) async fn read_at(
        &self,
        buffer: Buffer,
        range: Range<usize>,
        offset: u64,
    ) -> (io::Result<usize>, Buffer) {
        self.buffered.read_at(buffer, range, offset).await
    }

    pub(super) async fn write(&self, buffer: SharedBuffer, range: Range<usize>) -> io::Result<()> {
        self.buffered.write(buffer, range).await
    }

    pub(super) async fn write_at(&self, buffer: SharedBuffer, range: Range<usize>, offset: u64) -> io::Result<()> {
        let is_whole = |position: u64| position.is_multiple_of(BLOCK_BYTES as u64);
        // In whole chunks, so that no page of the cache is shared with what goes through it.
        let begins_chunk = offset.is_multiple_of(CHUNK_BYTES_MAX as u64);
        let are_blocks = begins_chunk && is_whole(range.start as u64) && is_whole(range.end as u64);
        if let Some(direct) = self.direct.as_ref().filter(|_| are_blocks) {
            match direct.write_at(buffer.clone(), range.clone(), offset).await {
                // Its blocks are longer than ours.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                outcome => return outcome,
            }
        }
        self.buffered.write_at(buffer, range, offset).await
    }
}
