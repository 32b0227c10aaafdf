//! Files through the ring.
//!
//! Reads and writes go on until all is done: the kernel may do less than it was asked for. A read is short at the end
//! of the file only. Direct I/O is asked for after the open, so that a refusal leaves a file that is open and buffered
//! (and so that a new file is not made twice); offsets, ranges and buffers are then multiples of a block.
//!
//! A direct write into preallocated space takes a lock of the file on ext4, though the ring asked for no waiting: while another
//! write's space is marked as written, the thread stood still for up to 11 ms, seven times in 1.5 s of a put at 2.5 GiB/s, and
//! with it all that it serves. So long direct writes are left to the kernel's worker threads: gets of 4 KiB beside that
//! put have their p99 at 1.5 to 2.3 ms so, and at 4.6 to 6.8 ms otherwise, at the same rate and CPU time of the put.

use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::buffers::{Buffer, SharedBuffer};
use super::op::file::{self as entries, CURRENT_POSITION};
use super::op::socket::{cancel, poll};
use super::op::{Fd, RingState};
use super::ring::run_to_end;
use super::system;
use crate::limits::{BLOCK_BYTES, WRITE_ELSEWHERE_BYTES_MIN};

/// How to open a file. The default opens nothing: set `read` or `write`.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    pub read: bool,
    pub write: bool,
    /// Make the file if there is none.
    pub create: bool,
    /// Make the file, and fail if there is one.
    pub create_new: bool,
    /// Past the page cache, where the file system can; [`File::is_direct`] tells.
    pub direct: bool,
    pub truncate: bool,
    /// Permissions of a new file.
    pub mode: u32,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            read: false,
            write: false,
            create: false,
            create_new: false,
            direct: false,
            truncate: false,
            mode: 0o600,
        }
    }
}

impl OpenOptions {
    pub fn for_reading() -> OpenOptions {
        OpenOptions { read: true, ..OpenOptions::default() }
    }

    fn flags(&self) -> io::Result<i32> {
        let access = match (self.read, self.write) {
            (true, true) => libc::O_RDWR,
            (true, false) => libc::O_RDONLY,
            (false, true) => libc::O_WRONLY,
            (false, false) => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file is opened to read, to write or both"));
            }
        };
        let optional = [
            (self.create, libc::O_CREAT),
            (self.create_new, libc::O_CREAT | libc::O_EXCL),
            (self.truncate, libc::O_TRUNC),
        ];
        let chosen = optional.iter().filter(|(wanted, _)| *wanted).fold(0, |flags, (_, flag)| flags | flag);
        Ok(access | chosen | libc::O_CLOEXEC)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Regular,
    Directory,
    Pipe,
    CharacterDevice,
    Other,
}

#[derive(Clone, Debug)]
pub struct Metadata {
    pub kind: FileKind,
    pub len_bytes: u64,
    /// Space that the file takes on disk; less than its length when there are holes.
    pub allocated_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    pub modified: SystemTime,
    pub inode: u64,
    pub links: u32,
}

struct Inner {
    fd: Fd,
    direct: bool,
}

#[derive(Clone)]
pub struct File(Rc<Inner>);

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl File {
    pub async fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
        let flags = options.flags()?;
        let fd = open_descriptor(path, flags, options.mode).await?;
        let direct = options.direct && system::set_direct(fd.as_fd())?;
        Ok(File(Rc::new(Inner { fd: Rc::new(fd), direct })))
    }

    /// A descriptor that somebody else opened; whether it is direct is asked of the kernel.
    pub fn from_fd(fd: OwnedFd) -> File {
        let direct = system::is_direct(fd.as_fd());
        File(Rc::new(Inner { fd: Rc::new(fd), direct }))
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }

    pub fn is_direct(&self) -> bool {
        self.0.direct
    }

    /// Fills `range` from `offset` on; less only when the file ends.
    pub async fn read_at(&self, buffer: Buffer, range: Range<usize>, offset: u64) -> (io::Result<usize>, Buffer) {
        self.read_loop(buffer, range, offset).await
    }

    /// Whether a read of this range would find everything in the page cache. Costs less than 1 us; where the kernel cannot
    /// say (before Linux 6.5), the answer is no: taking cold bytes for hot would stall the thread.
    pub fn is_cached(&self, offset: u64, len_bytes: usize) -> bool {
        system::is_cached(self.as_fd(), offset, len_bytes as u64).unwrap_or(false)
    }

    /// Fills `range` from the current position on (pipes, terminals); less only at the end. `None` once `stop` has ended:
    /// nothing more is taken from the file then. So bytes are waited for first, and read when they are there; a read that
    /// waits for them would take them whenever they come.
    pub async fn read(
        &self,
        mut buffer: Buffer,
        range: Range<usize>,
        stop: impl Future<Output = ()>,
    ) -> (io::Result<Option<usize>>, Buffer) {
        // Nothing would ever come of a wait for what cannot be read.
        match system::is_for_reading(self.as_fd()) {
            Ok(true) => {}
            Ok(false) => return (Err(io::Error::from_raw_os_error(libc::EBADF)), buffer),
            Err(error) => return (Err(error), buffer),
        }
        let mut stop = pin!(stop);
        let mut done = 0;
        while range.start + done < range.end {
            let ready = tokio::select! {
                biased;
                () = &mut stop => return (Ok(None), buffer),
                ready = self.readable() => ready,
            };
            if let Err(error) = ready {
                return (Err(error), buffer);
            }
            let rest = range.start + done..range.end;
            let (result, given_back) = entries::read(&self.0.fd, buffer, rest, CURRENT_POSITION).await;
            buffer = given_back;
            match result {
                Ok(0) => break,
                Ok(count) => done += count as usize,
                Err(error) if is_passing(&error) => {}
                Err(error) => return (Err(error), buffer),
            }
            if self.0.direct && !done.is_multiple_of(BLOCK_BYTES) {
                break; // the last block, as above
            }
        }
        (Ok(Some(done)), buffer)
    }

    /// Waits until there is something to read, or the end. Dropped, the kernel waits no longer, and lets go of the file.
    async fn readable(&self) -> io::Result<()> {
        loop {
            let wait = CancelOnDrop(&self.0.fd);
            let (result, _fd) = poll(&self.0.fd, libc::POLLIN).await;
            std::mem::forget(wait);
            match result {
                Err(error) if is_passing(&error) => {}
                result => return result.map(drop),
            }
        }
    }

    async fn read_loop(&self, mut buffer: Buffer, range: Range<usize>, offset: u64) -> (io::Result<usize>, Buffer) {
        let mut done = 0;
        while range.start + done < range.end {
            let rest = range.start + done..range.end;
            let (result, given_back) = entries::read(&self.0.fd, buffer, rest, offset + done as u64).await;
            buffer = given_back;
            match result {
                Ok(0) => break,
                Ok(count) => done += count as usize,
                Err(error) => match self.wait_or_fail(error, libc::POLLIN).await {
                    Ok(()) => continue,
                    Err(error) => return (Err(error), buffer),
                },
            }
            if self.0.direct && !done.is_multiple_of(BLOCK_BYTES) {
                // The file's last block. Asking for the rest would be refused as unaligned.
                return (self.direct_end(offset, done).await, buffer);
            }
        }
        (Ok(done), buffer)
    }

    async fn direct_end(&self, offset: u64, done: usize) -> io::Result<usize> {
        let len_bytes = self.len().await?;
        if offset + done as u64 >= len_bytes {
            return Ok(done);
        }
        let text = format!("a direct read at {offset} stopped inside a block after {done} bytes of {len_bytes}");
        Err(io::Error::other(text))
    }

    /// Writes all of `range` at `offset`, or fails.
    pub async fn write_at(&self, buffer: SharedBuffer, range: Range<usize>, offset: u64) -> io::Result<()> {
        self.write_loop(&buffer, range, Some(offset)).await
    }

    /// Writes all of `range` at the current position (pipes, terminals), or fails.
    pub async fn write(&self, buffer: SharedBuffer, range: Range<usize>) -> io::Result<()> {
        self.write_loop(&buffer, range, None).await
    }

    async fn write_loop(&self, buffer: &SharedBuffer, range: Range<usize>, offset: Option<u64>) -> io::Result<()> {
        let elsewhere = self.0.direct && range.len() >= WRITE_ELSEWHERE_BYTES_MIN;
        let mut done = 0;
        while range.start + done < range.end {
            let position = offset.map_or(CURRENT_POSITION, |offset| offset + done as u64);
            let rest = range.start + done..range.end;
            match entries::write(&self.0.fd, buffer, rest, position, elsewhere).await {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count as usize,
                Err(error) => self.wait_or_fail(error, libc::POLLOUT).await?,
            }
        }
        Ok(())
    }

    /// Descriptors that others pass to us may be non-blocking: then the ring does not wait for them by itself.
    async fn wait_or_fail(&self, error: io::Error, events: i16) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => poll(&self.0.fd, events).await.0.map(drop),
            _ => Err(error),
        }
    }

    /// Makes written bytes durable, and the length that is needed to read them.
    pub async fn sync_data(&self) -> io::Result<()> {
        entries::sync(&self.0.fd, true).await.0.map(drop)
    }

    pub async fn sync_all(&self) -> io::Result<()> {
        entries::sync(&self.0.fd, false).await.0.map(drop)
    }

    /// Reserves space and extends the file over it. A file system that cannot reserve only extends.
    pub async fn allocate(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        match self.fallocate(0, offset, len_bytes).await {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let end = offset + len_bytes;
                if self.len().await? < end { system::set_len(self.as_fd(), end) } else { Ok(()) }
            }
            result => result,
        }
    }

    /// Gives the space of a range back; it reads as zeros, and the length stays.
    pub async fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len_bytes).await
    }

    async fn fallocate(&self, mode: i32, offset: u64, len_bytes: u64) -> io::Result<()> {
        loop {
            match entries::allocate(&self.0.fd, mode, offset, len_bytes).await.0 {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }

    pub async fn metadata(&self) -> io::Result<Metadata> {
        Ok(Metadata::new(&entries::status(&self.0.fd).await?))
    }

    pub async fn len(&self) -> io::Result<u64> {
        Ok(entries::status(&self.0.fd).await?.stx_size)
    }

    /// Cuts or extends the file.
    pub fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        system::set_len(self.as_fd(), len_bytes)
    }
}

impl Metadata {
    fn new(status: &libc::statx) -> Metadata {
        let kind = match u32::from(status.stx_mode) & libc::S_IFMT {
            libc::S_IFREG => FileKind::Regular,
            libc::S_IFDIR => FileKind::Directory,
            libc::S_IFIFO => FileKind::Pipe,
            libc::S_IFCHR => FileKind::CharacterDevice,
            _ => FileKind::Other,
        };
        let seconds = Duration::from_secs(status.stx_mtime.tv_sec.unsigned_abs());
        let fraction = Duration::from_nanos(u64::from(status.stx_mtime.tv_nsec));
        let modified = if status.stx_mtime.tv_sec < 0 {
            UNIX_EPOCH.checked_sub(seconds).and_then(|time| time.checked_add(fraction))
        } else {
            UNIX_EPOCH.checked_add(seconds + fraction)
        };
        Metadata {
            kind,
            len_bytes: status.stx_size,
            allocated_bytes: status.stx_blocks * 512,
            mode: u32::from(status.stx_mode) & 0o7777,
            modified: modified.unwrap_or(UNIX_EPOCH),
            inode: status.stx_ino,
            links: status.stx_nlink,
        }
    }
}

/// Nothing is wrong: the descriptor is non-blocking, or the call was interrupted, or somebody gave up another wait on the same
/// open file.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
        || error.raw_os_error() == Some(libc::ECANCELED)
}

/// Ends what is pending on a descriptor when nobody waits for it any more.
struct CancelOnDrop<'a>(&'a Fd);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if RingState::current().is_some() {
            // Its result interests nobody; the driver keeps it until its completion.
            drop(cancel(self.0));
        }
    }
}

async fn open_descriptor(path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    run_to_end(entries::open(path, flags, mode)).await
}

/// Makes the names in a directory durable.
pub async fn sync_directory(path: &Path) -> io::Result<()> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let directory: Fd = Rc::new(open_descriptor(path, flags, 0).await?);
    entries::sync(&directory, false).await.0.map(drop)
}
