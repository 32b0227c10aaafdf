//! Entries for sockets.
#![allow(unsafe_code)] // entries that point to memory, see the parent module

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{opcode, types};

use super::{Fd, Op, Stable, run_within, start};
use crate::io::buffers::Buffer;
use crate::io::sockaddr::RawAddress;
use crate::io::socket::SendSource;
use crate::limits::CONTROL_FDS_MAX;

fn target(fd: &Fd) -> types::Fd {
    types::Fd(fd.as_raw_fd())
}

/// One receive. `flags` are those of recv(2).
pub(in crate::io) async fn recv(
    fd: &Fd,
    buffer: Buffer,
    range: Range<usize>,
    flags: i32,
    wait: Option<Duration>,
) -> (io::Result<u32>, Buffer) {
    let (pointer, len_bytes) = buffer.target(&range);
    let entry = opcode::Recv::new(target(fd), pointer, len_bytes).flags(flags).build();
    // SAFETY: `target` checked the range against the buffer, which the operation owns alone, with the descriptor.
    let (result, (buffer, _fd)) = unsafe { run_within(entry, (buffer, Fd::clone(fd)), wait) }.await;
    (result, buffer)
}

/// What a sendmsg(2) points to.
struct SendFrame {
    header: libc::msghdr,
    pieces: [libc::iovec; 2],
}

/// Sends what is left of `source` after its first `done_bytes`; one call of the kernel for a head and its payload.
pub(in crate::io) async fn send(
    fd: &Fd,
    source: SendSource,
    done_bytes: usize,
    flags: i32,
    wait: Option<Duration>,
) -> (io::Result<u32>, SendSource) {
    let [(first, first_bytes), (second, second_bytes)] = source.pieces(done_bytes);
    if first_bytes == 0 || second_bytes == 0 {
        let (pointer, len_bytes) = if first_bytes == 0 { (second, second_bytes) } else { (first, first_bytes) };
        let len_bytes = u32::try_from(len_bytes).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(target(fd), pointer, len_bytes).flags(flags).build();
        // SAFETY: `pieces` lie inside memory that the source owns and that does not move with it.
        let (result, (source, _fd)) = unsafe { run_within(entry, (source, Fd::clone(fd)), wait) }.await;
        return (result, source);
    }
    let frame = send_frame([(first, first_bytes), (second, second_bytes)]);
    // SAFETY: the frame was filled in just now; only a field's address is taken.
    let header = unsafe { &raw const (*frame.as_ptr()).header };
    let entry = opcode::SendMsg::new(target(fd), header).flags(flags.cast_unsigned()).build();
    // SAFETY: as above; the frame that points to the pieces is owned by the operation too.
    let (result, (source, _frame, _fd)) = unsafe { run_within(entry, (source, frame, Fd::clone(fd)), wait) }.await;
    (result, source)
}

fn send_frame(pieces: [(*const u8, usize); 2]) -> Stable<SendFrame> {
    // SAFETY: all-zero is a valid msghdr: null pointers with zero lengths.
    let header: libc::msghdr = unsafe { std::mem::zeroed() };
    let pieces = pieces.map(|(base, len_bytes)| libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len_bytes });
    let frame = Stable::new(SendFrame { header, pieces });
    // SAFETY: the frame is ours alone and initialised; it is made to point into itself, which its owner keeps in place.
    unsafe {
        (*frame.as_ptr()).header.msg_iov = (&raw mut (*frame.as_ptr()).pieces).cast();
        (*frame.as_ptr()).header.msg_iovlen = 2;
    }
    frame
}

/// Bytes of control data that carry [`CONTROL_FDS_MAX`] descriptors.
// SAFETY: CMSG_SPACE only computes.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE((CONTROL_FDS_MAX * size_of::<i32>()) as u32) } as usize;

/// What a recvmsg(2) or sendmsg(2) with descriptors points to. The control data is aligned as its header asks.
#[repr(C, align(8))]
pub(in crate::io) struct ControlFrame {
    control: [u8; CONTROL_BYTES],
    pub(in crate::io) header: libc::msghdr,
    piece: libc::iovec,
}

pub(in crate::io) fn control_frame(base: *mut u8, len_bytes: usize) -> Stable<ControlFrame> {
    let piece = libc::iovec { iov_base: base.cast(), iov_len: len_bytes };
    // SAFETY: all-zero is a valid msghdr: null pointers with zero lengths.
    let header: libc::msghdr = unsafe { std::mem::zeroed() };
    let frame = Stable::new(ControlFrame { control: [0; CONTROL_BYTES], header, piece });
    // SAFETY: the frame is ours alone and initialised; it is made to point into itself, which its owner keeps in place.
    unsafe {
        let inner = frame.as_ptr();
        (*inner).header.msg_iov = &raw mut (*inner).piece;
        (*inner).header.msg_iovlen = 1;
        (*inner).header.msg_control = (&raw mut (*inner).control).cast();
        (*inner).header.msg_controllen = CONTROL_BYTES as _;
    }
    frame
}

/// Takes the descriptors out of a frame that a successful recvmsg(2) has filled in.
///
/// # Safety
/// Must be called once per recvmsg(2): a second time would own the same descriptors again.
pub(in crate::io) unsafe fn received_descriptors(frame: &Stable<ControlFrame>) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: the frame and its control data are initialised (zeroed, then written by the kernel), and no call is in
    // progress on them.
    let header = unsafe { &(*frame.as_ptr()).header };
    // SAFETY: msg_control and msg_controllen describe the frame's own control data; the macros stay inside of it.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: not null, so it lies inside the control data and is aligned as a header.
    while let Some(current) = unsafe { message.as_ref() } {
        if (current.cmsg_level, current.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: only computes.
            let head_bytes = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = current.cmsg_len.saturating_sub(head_bytes) / size_of::<i32>();
            for index in 0..count {
                // SAFETY: the kernel wrote `count` descriptor numbers behind this header; the caller owns them now.
                descriptors.push(unsafe {
                    OwnedFd::from_raw_fd(libc::CMSG_DATA(message).cast::<i32>().add(index).read_unaligned())
                });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    descriptors
}

/// Must be awaited to its end (by a task of its own), or received descriptors are lost.
pub(in crate::io) async fn recv_with_fds(
    fd: Fd,
    buffer: Buffer,
    range: Range<usize>,
) -> (io::Result<(usize, Vec<OwnedFd>)>, Buffer) {
    let (pointer, len_bytes) = buffer.target(&range);
    let frame = control_frame(pointer, len_bytes as usize);
    // SAFETY: the frame is initialised; only a field's address is taken.
    let header = unsafe { &raw mut (*frame.as_ptr()).header };
    let entry = opcode::RecvMsg::new(target(&fd), header).flags(libc::MSG_CMSG_CLOEXEC.cast_unsigned()).build();
    // SAFETY: the operation owns the buffer alone, the frame that points to it, and the descriptor.
    let (result, (buffer, frame, _fd)) = unsafe { start(entry, (buffer, frame, fd)) }.await;
    // SAFETY: the call has succeeded, and this is the only look at its frame.
    let result = result.map(|count| (count as usize, unsafe { received_descriptors(&frame) }));
    (result, buffer)
}

pub(in crate::io) async fn connect(fd: &Fd, address: SocketAddr, wait: Duration) -> io::Result<()> {
    let address = RawAddress::new(address);
    let len_bytes = address.len_bytes();
    let address = Stable::new(address);
    let entry = opcode::Connect::new(target(fd), address.as_ptr().cast(), len_bytes).build();
    // SAFETY: the operation owns the address and the descriptor; a raw address begins with its sockaddr.
    unsafe { run_within(entry, (address, Fd::clone(fd)), Some(wait)) }.await.0.map(drop)
}

/// Ends when one of `events` (of poll(2)) is there. Has no effect: safe to drop.
pub(in crate::io) fn poll(fd: &Fd, events: i16) -> Op<Fd> {
    let entry = opcode::PollAdd::new(target(fd), u32::from(events.cast_unsigned())).build();
    // SAFETY: the entry holds no pointer; the operation holds the descriptor.
    unsafe { start(entry, Fd::clone(fd)) }
}

pub(in crate::io) fn shutdown(fd: &Fd) -> Op<Fd> {
    let entry = opcode::Shutdown::new(target(fd), libc::SHUT_RDWR).build();
    // SAFETY: the entry holds no pointer; the operation holds the descriptor.
    unsafe { start(entry, Fd::clone(fd)) }
}

/// Cancels every pending operation on the descriptor.
pub(in crate::io) fn cancel(fd: &Fd) -> Op<Fd> {
    let entry = opcode::AsyncCancel2::new(types::CancelBuilder::fd(target(fd)).all()).build();
    // SAFETY: the entry holds no pointer; the operation holds the descriptor.
    unsafe { start(entry, Fd::clone(fd)) }
}
