//! Where a put's bytes come from.
//!
//! A regular file is read at positions, by all shards at once, and must not change meanwhile: its length and times are
//! compared before and after. Anything else is a stream, read in order by one shard at a time.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use crate::format::tree::leaf_count;
use crate::io::{self as ring_io, FdKind, fd_kind, widen_pipe};
use crate::limits::PIPE_BYTES;

/// An open descriptor and how to read it.
#[derive(Debug)]
pub struct Input {
    pub fd: OwnedFd,
    pub kind: InputKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    Regular { len: u64 },
    Stream,
}

impl Input {
    /// A regular file is read at positions, from its beginning; anything else as a stream.
    pub fn of(fd: OwnedFd) -> Input {
        let kind = match fd_kind(fd.as_fd()) {
            FdKind::Regular { len_bytes } => InputKind::Regular { len: len_bytes },
            _ => InputKind::Stream,
        };
        Input { fd, kind }
    }
}

/// What a file's content cannot change without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    pub len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    pub fn of(file: &File) -> io::Result<FileStamp> {
        file.metadata().map(|metadata| FileStamp::from(&metadata))
    }
}

impl From<&std::fs::Metadata> for FileStamp {
    fn from(metadata: &std::fs::Metadata) -> FileStamp {
        FileStamp {
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// An input while it is read.
pub(super) struct OpenInput {
    file: Descriptor,
    kind: InputKind,
    /// Of a regular file, before the first byte was read.
    before: Option<FileStamp>,
}

impl OpenInput {
    pub(super) fn new(input: Input) -> (OpenInput, io::Result<()>) {
        let file = Descriptor::from(input.fd);
        let (before, outcome) = match input.kind {
            InputKind::Stream => (None, Ok(())),
            InputKind::Regular { .. } => match FileStamp::of(file.get()) {
                Ok(stamp) => (Some(stamp), Ok(())),
                Err(error) => (None, Err(error)),
            },
        };
        (OpenInput { file, kind: input.kind, before }, outcome)
    }

    pub(super) fn len(&self) -> Option<u64> {
        match self.kind {
            InputKind::Regular { len } => Some(len),
            InputKind::Stream => None,
        }
    }

    pub(super) fn leaf_count(&self) -> Option<u64> {
        self.len().map(leaf_count)
    }

    /// A descriptor for the calling thread.
    pub(super) fn for_this_thread(&self) -> io::Result<ring_io::File> {
        Ok(ring_io::File::from_fd(self.file.get().as_fd().try_clone_to_owned()?))
    }

    /// For a stream that turns out to be long.
    pub(super) fn widen(&self) {
        widen_pipe(self.file.get(), PIPE_BYTES);
    }

    /// Fills `bytes` from a position of a regular file, if that takes no waiting.
    pub(super) fn read_cached(&self, bytes: &mut [u8], position: u64) -> bool {
        ring_io::read_cached(self.file.get(), bytes, position)
    }

    /// Whether a regular file is still what it was, and as long as was said. The kernel steps these times a few
    /// milliseconds at a time; a change within one step that leaves the length alone is not seen.
    pub(super) fn is_unchanged(&self) -> io::Result<bool> {
        let (Some(before), Some(len)) = (self.before, self.len()) else { return Ok(true) };
        Ok(before.len == len && FileStamp::of(self.file.get())? == before)
    }
}

/// A descriptor that may be the last one of a file without a name: closing it then frees the file, which takes 150 ms a GiB.
/// That is done by a thread of its own, as nobody else's requests may wait for it.
struct Descriptor(Option<File>);

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Descriptor {
        Descriptor(Some(File::from(fd)))
    }
}

impl Descriptor {
    fn get(&self) -> &File {
        let Some(file) = &self.0 else { unreachable!("it is taken out only when dropped") };
        file
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let is_nameless =
            |file: &File| file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 0);
        if let Some(file) = self.0.take_if(|file| is_nameless(file)) {
            // Where no thread can be started, it is closed here.
            let _ = std::thread::Builder::new().name("closing".into()).spawn(move || drop(file));
        }
    }
}
