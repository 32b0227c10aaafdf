//! Descriptors over a unix socket: the command's blocking side.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Descriptors that one message may carry.
pub const DESCRIPTORS_MAX: usize = 4;

/// Sends all of `bytes`, the descriptors with the first of them.
pub fn send_with_fds(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    use std::io::Write;
    if fds.len() > DESCRIPTORS_MAX || bytes.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = if fds.is_empty() { 0 } else { send_first(stream, bytes, fds)? };
    let rest = bytes.get(sent..).unwrap_or_default();
    (&mut &*stream).write_all(rest)
}

fn send_first(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<libc::c_int> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let payload_len = mem::size_of_val(raw.as_slice()) as u32;
    // u64s, because a control message must be aligned like its header.
    let mut control = [0u64; 8];
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    loop {
        // SAFETY: `msghdr` is plain data for which all zeroes is a valid value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(payload_len) } as usize;
        assert!(message.msg_controllen <= mem::size_of_val(&control), "room for every descriptor");
        // SAFETY: `control` is aligned and, by the assertion, long enough for one header and `payload_len` bytes;
        // CMSG_FIRSTHDR therefore returns a pointer into it, and `raw` holds `payload_len` bytes. The kernel only reads
        // `bytes`, which outlives the call.
        let sent = unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload_len) as usize;
            std::ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), payload_len as usize);
            libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
        };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(sent);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
