//! Where a get's bytes go.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::GetError;
use crate::io::{self as ring_io, Buffer};

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
    let file = output.for_this_thread().map_err(GetError::Output)?;
    let (buffer, range) = (Buffer::copy_of(contents).freeze(), 0..contents.len());
    let written = if output.in_order { file.write(buffer, range).await } else { file.write_at(buffer, range, 0).await };
    written.map_err(GetError::output)?;
    output.cut_to(contents.len() as u64).map_err(GetError::Output)
}

pub(super) struct OpenOutput {
    file: File,
    in_order: bool,
}

impl OpenOutput {
    pub(super) fn new(output: Output) -> OpenOutput {
        match output {
            Output::File(fd) => OpenOutput { file: File::from(fd), in_order: false },
            Output::Stream(fd) => OpenOutput { file: File::from(fd), in_order: true },
        }
    }

    pub(super) fn in_order(&self) -> bool {
        self.in_order
    }

    /// A descriptor for the calling thread.
    pub(super) fn for_this_thread(&self) -> io::Result<ring_io::File> {
        Ok(ring_io::File::from_fd(self.file.as_fd().try_clone_to_owned()?))
    }

    /// Cuts off what an earlier, longer content left behind the last byte.
    pub(super) fn cut_to(&self, len: u64) -> io::Result<()> {
        if !self.in_order && self.file.metadata()?.len() > len { self.file.set_len(len) } else { Ok(()) }
    }
}
