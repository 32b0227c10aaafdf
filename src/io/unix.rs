//! The control socket: a Unix stream in the data directory that only its owner can open, and that carries descriptors.
//!
//! The path of a Unix socket is limited to 107 bytes, that of a data directory is not: both ends reach the socket
//! through an open descriptor of its directory.
#![allow(unsafe_code)] // sendmsg with control data

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::buffers::Buffer;
use super::op::socket as entries;
use super::ring::run_to_end;
use super::sockaddr::{bind_path, listen, set_socket_mode, stream_socket};
use super::socket::{SendSource, Socket, stream_operations};
use super::tcp::is_of_one_connection;
use crate::limits::{CONTROL_FDS_MAX, LISTEN_BACKLOG};

/// Mode of the control socket: its owner alone may connect.
const SOCKET_MODE: u32 = 0o600;

pub struct UnixListener {
    listener: std::os::unix::net::UnixListener,
    /// The same socket under another number.
    socket: Socket,
}

impl UnixListener {
    /// Listens on `path`, with mode 0600 from its first moment. A socket that is already there is taken as left over:
    /// the caller holds the directory's lock.
    pub fn bind(path: &Path) -> io::Result<UnixListener> {
        if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
            std::fs::remove_file(path)?;
        }
        let socket = stream_socket(libc::AF_UNIX)?;
        set_socket_mode(&socket, SOCKET_MODE)?;
        let (_directory, short) = short_path(path)?;
        bind_path(&socket, short.as_os_str().as_bytes())?;
        listen(&socket, LISTEN_BACKLOG)?;
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        let socket = Socket::new(listener.try_clone()?.into());
        Ok(UnixListener { listener, socket })
    }

    /// The next connection, still free to go to any thread ([`UnixStream::from_std`]). Safe to drop and ask again.
    /// `ECANCELED` after `cancel`.
    pub async fn accept(&self) -> io::Result<std::os::unix::net::UnixStream> {
        loop {
            self.socket.check()?;
            match self.accept_waiting() {
                Ok(Some(stream)) => return Ok(stream),
                Ok(None) => self.socket.readable().await?,
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection that waits to be accepted, also after `cancel`.
    pub fn accept_waiting(&self) -> io::Result<Option<std::os::unix::net::UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _peer)) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ends the pending accept, and every later one, with `ECANCELED`.
    pub async fn cancel(&self) {
        self.socket.cancel().await;
    }
}

#[derive(Clone)]
pub struct UnixStream {
    socket: Rc<Socket>,
}

stream_operations!(UnixStream);

impl UnixStream {
    pub fn from_std(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
        // The ring waits for blocking sockets only.
        stream.set_nonblocking(false)?;
        Ok(UnixStream { socket: Rc::new(Socket::new(OwnedFd::from(stream))) })
    }

    /// One receive, with the descriptors that came along (at most [`CONTROL_FDS_MAX`], the kernel closes others).
    pub async fn recv_with_fds(
        &self,
        buffer: Buffer,
        range: Range<usize>,
    ) -> (io::Result<(usize, Vec<OwnedFd>)>, Buffer) {
        if let Err(error) = self.socket.check() {
            return (Err(error), buffer);
        }
        // The task holds the descriptor only, so dropping the last stream still cancels it.
        run_to_end(entries::recv_with_fds(Rc::clone(self.socket.fd()), buffer, range)).await
    }

    /// Ends once the other end sends nothing any more. Takes nothing of what it has sent, and is safe to drop, but the kernel
    /// goes on waiting until the stream is dropped, too: to be begun once for a stream.
    pub async fn closed(&self) {
        let _ = entries::poll(self.socket.fd(), libc::POLLRDHUP).await;
    }
}

/// A path to the same file that is short enough for a socket address; valid while the directory is open.
fn short_path(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not the path of a socket", path.display()))
    })?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory: OwnedFd =
        OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(parent)?.into();
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, short))
}

/// Connects to a control socket, without a ring: the command's side.
pub fn connect_blocking(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    let (_directory, short) = short_path(path)?;
    std::os::unix::net::UnixStream::connect(short)
}

/// Sends all of `bytes`, which must not be empty, with descriptors attached to the first; without a ring.
pub fn send_with_fds(stream: &std::os::unix::net::UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > CONTROL_FDS_MAX || bytes.is_empty() {
        let text = format!("a control message has at least 1 byte and at most {CONTROL_FDS_MAX} descriptors");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let sent = loop {
        match send_once(stream, bytes, fds) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    match bytes.get(sent..) {
        Some(rest) => io::Write::write_all(&mut &*stream, rest),
        None => Ok(()),
    }
}

fn send_once(stream: &std::os::unix::net::UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let frame = entries::control_frame(bytes.as_ptr().cast_mut(), bytes.len());
    let numbers_bytes = size_of_val(fds) as u32;
    // SAFETY: the frame is initialised and ours; its control data has room for CONTROL_FDS_MAX descriptors and is
    // aligned for the header written here.
    let sent = unsafe {
        let header = &raw mut (*frame.as_ptr()).header;
        if fds.is_empty() {
            (*header).msg_control = std::ptr::null_mut();
            (*header).msg_controllen = 0;
        } else {
            (*header).msg_controllen = libc::CMSG_SPACE(numbers_bytes) as _;
            let message = libc::CMSG_FIRSTHDR(header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(numbers_bytes) as _;
            for (index, fd) in fds.iter().enumerate() {
                libc::CMSG_DATA(message).cast::<i32>().add(index).write_unaligned(fd.as_raw_fd());
            }
        }
        libc::sendmsg(stream.as_fd().as_raw_fd(), header, libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
