//! Mappings of files, as the source of a send and of nothing else.
//!
//! The bytes are never exposed: the kernel copies from the mapping to the socket, so that a bad sector or a page that
//! was punched away is an `EFAULT` of that send and never a signal that kills the process. A cold page would stall the
//! whole reactor, so a range that is not known to be hot is populated on one of the kernel's worker threads first
//! ([`MappedRange::populate`]). The node has no such range: it maps what the kernel says is in the page cache, and reads
//! what is not past the cache into a buffer, which leaves the pages of others alone. A page that is evicted between the
//! question and the send is read by the send, one page at a time, as in any program that serves files.
//!
//! Each send has a mapping of its own: making one and faulting its pages in costs a few microseconds a MiB where pages are
//! hot, and nothing lingers, neither address space nor the space of a file that was removed.
//!
//! A mapping does not keep its range from being punched: then the send delivers zeros. Whoever removes data must wait
//! for the readers.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use memmap2::{MmapOptions, MmapRaw};

use super::file::File;
use super::op::file::advise;
use crate::limits::{BLOCK_BYTES, IO_BYTES_MAX};

/// A range of a file in memory; keeps the whole mapping alive that it lies in.
#[derive(Clone)]
pub struct MappedRange {
    map: Rc<MmapRaw>,
    start: usize,
    len_bytes: usize,
}

/// Maps `len_bytes` bytes of `file` from `offset` on; whole blocks around them are mapped.
pub fn map(file: &File, offset: u64, len_bytes: usize) -> io::Result<MappedRange> {
    let start = (offset % BLOCK_BYTES as u64) as usize;
    let mapped_bytes = (start + len_bytes).next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
    let map = map_blocks(file, offset - start as u64, mapped_bytes)?;
    Ok(MappedRange { map, start, len_bytes })
}

fn map_blocks(file: &File, offset: u64, len_bytes: usize) -> io::Result<Rc<MmapRaw>> {
    let map = MmapOptions::new().offset(offset).len(len_bytes).map_raw_read_only(file.as_fd().as_raw_fd())?;
    Ok(Rc::new(map))
}

impl MappedRange {
    pub fn len(&self) -> usize {
        self.len_bytes
    }

    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// A part of this range.
    pub fn slice(&self, range: Range<usize>) -> MappedRange {
        self.check(&range);
        MappedRange { map: Rc::clone(&self.map), start: self.start + range.start, len_bytes: range.len() }
    }

    /// Reads the range into the page cache and maps its pages, without stalling this thread.
    pub async fn populate(&self) -> io::Result<()> {
        let mut done = 0;
        while done < self.len_bytes {
            let end = self.len_bytes.min(done + IO_BYTES_MAX);
            match advise(self, done..end, libc::MADV_POPULATE_READ).await {
                Ok(()) => done = end,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Before Linux 5.14: starts reading ahead, which is the most that can be had.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    advise(self, done..end, libc::MADV_WILLNEED).await?;
                    done = end;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn check(&self, range: &Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.len_bytes,
            "the range {range:?} is not inside a mapping of {} bytes",
            self.len_bytes
        );
    }

    /// Where a send reads from.
    pub(super) fn source(&self, range: &Range<usize>) -> (*const u8, usize) {
        self.check(range);
        (self.map.as_ptr().wrapping_add(self.start + range.start), range.len())
    }

    /// The whole blocks around `range`.
    pub(super) fn pages(&self, range: &Range<usize>) -> (*const u8, usize) {
        self.check(range);
        let first = (self.start + range.start) / BLOCK_BYTES * BLOCK_BYTES;
        let end = (self.start + range.end).next_multiple_of(BLOCK_BYTES).min(self.map.len());
        (self.map.as_ptr().wrapping_add(first), end - first)
    }
}
