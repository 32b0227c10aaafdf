//! Mappings whose bytes are read and written, which the library never does: the other side of a comparison. Not a part of the
//! library; the bench that compares compiles this file into itself. It lies here since unsafe code does.
#![allow(unsafe_code)] // a mapped file may be cut or changed by somebody else
#![allow(clippy::unwrap_used)] // a bench that cannot go on ends with a panic

use std::fs::File;

use memmap2::{Mmap, MmapMut, MmapOptions};

/// All of a file that nobody else writes to or cuts while the mapping lives.
pub fn writable(file: &File) -> MmapMut {
    // SAFETY: the bench's own file, in a directory of its own that nobody else knows; it keeps its length.
    unsafe { MmapMut::map_mut(file) }.unwrap()
}

/// A range of a file that nobody writes to or cuts while the mapping lives.
pub fn readable(file: &File, offset: u64, len_bytes: usize) -> Mmap {
    // SAFETY: as above; and after it was made the file is only read.
    unsafe { MmapOptions::new().offset(offset).len(len_bytes).map(file) }.unwrap()
}
