//! What TCP and Unix streams share: receive and send until done, stall times, cancellation.
//!
//! # Waiting
//! A long receive or send is asked for as a whole, linked to a time-out of [`SOCKET_WAIT`]. When that fires the kernel
//! tells how many bytes had moved; any byte is progress, and the rest is asked for again. Only when no byte at all
//! moved for the stall time is it an error (`TimedOut`). So a slow transfer lives, a stalled one ends, and neither
//! costs more than two wake-ups a second.
//!
//! A short receive (a header) first takes what comes, with the whole stall time at once: an idle connection costs no
//! wake-ups.
//!
//! # Cancellation
//! `cancel` is final: pending operations end with `ECANCELED`, and so does every later one; otherwise a task that is
//! just between two operations would miss it. Dropping the last handle cancels too, or a receive that nobody awaits
//! any more would keep the connection open.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::buffers::{Buffer, SharedBuffer};
use super::mmap::MappedRange;
use super::op::socket as entries;
use super::op::{Fd, RingState};
use crate::limits::{RECV_WHOLE_BYTES_MAX, SOCKET_WAIT};

/// Longer waits are taken as "for ever".
const WAIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// What to send. The heads go out together with what follows them, in one call of the kernel.
pub enum SendSource {
    Bytes(Vec<u8>),
    Shared(SharedBuffer, Range<usize>),
    Mapped(MappedRange, Range<usize>),
    HeadAndShared(Vec<u8>, SharedBuffer, Range<usize>),
    HeadAndMapped(Vec<u8>, MappedRange, Range<usize>),
}

/// An address and a length that an operation reads from.
type Piece = (*const u8, usize);
const NOTHING: Piece = (std::ptr::null(), 0);

impl SendSource {
    pub fn len(&self) -> usize {
        match self {
            SendSource::Bytes(bytes) => bytes.len(),
            SendSource::Shared(_, range) | SendSource::Mapped(_, range) => range.len(),
            SendSource::HeadAndShared(head, _, range) | SendSource::HeadAndMapped(head, _, range) => {
                head.len() + range.len()
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Both parts, without what was sent already.
    pub(super) fn pieces(&self, done_bytes: usize) -> [Piece; 2] {
        let of_bytes = |bytes: &[u8]| (bytes.as_ptr(), bytes.len());
        let of_shared = |buffer: &SharedBuffer, range: &Range<usize>| (buffer.source(range).0, range.len());
        let (first, second) = match self {
            SendSource::Bytes(bytes) => (of_bytes(bytes), NOTHING),
            SendSource::Shared(buffer, range) => (of_shared(buffer, range), NOTHING),
            SendSource::Mapped(map, range) => (map.source(range), NOTHING),
            SendSource::HeadAndShared(head, buffer, range) => (of_bytes(head), of_shared(buffer, range)),
            SendSource::HeadAndMapped(head, map, range) => (of_bytes(head), map.source(range)),
        };
        let of_first = done_bytes.min(first.1);
        let of_second = (done_bytes - of_first).min(second.1);
        [advance(first, of_first), advance(second, of_second)]
    }
}

fn advance((base, len_bytes): Piece, by_bytes: usize) -> Piece {
    (base.wrapping_add(by_bytes), len_bytes - by_bytes)
}

pub(super) fn cancelled() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}

fn is_cancelled(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// How long a transfer may stand still, and how long it may take.
struct Patience {
    stall: Duration,
    deadline: Option<Instant>,
    moved: Instant,
}

impl Patience {
    fn new(stall: Duration, total: Option<Duration>) -> Patience {
        let now = Instant::now();
        Patience { stall, deadline: total.and_then(|total| now.checked_add(total)), moved: now }
    }

    fn moved(&mut self) {
        self.moved = Instant::now();
    }

    /// What is left; an error when nothing is.
    fn left(&self) -> io::Result<Duration> {
        let now = Instant::now();
        let stall = self.stall.saturating_sub(now.duration_since(self.moved));
        let total = self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
        let left = stall.min(total);
        if left.is_zero() {
            let text = if stall.is_zero() { "no byte moved for the stall time" } else { "the transfer took too long" };
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        Ok(left)
    }
}

fn limit(wait: Duration) -> Option<Duration> {
    (wait < WAIT_MAX).then_some(wait)
}

/// A socket and its cancellation.
pub(super) struct Socket {
    fd: Fd,
    cancelled: Cell<bool>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let is_in_use = Rc::strong_count(&self.fd) > 1;
        if is_in_use && RingState::current().is_some() {
            // Its result interests nobody; the driver keeps it until its completion.
            drop(entries::cancel(&self.fd));
        }
    }
}

impl Socket {
    pub(super) fn new(fd: OwnedFd) -> Socket {
        Socket { fd: Rc::new(fd), cancelled: Cell::new(false) }
    }

    pub(super) fn fd(&self) -> &Fd {
        &self.fd
    }

    pub(super) fn check(&self) -> io::Result<()> {
        if self.cancelled.get() { Err(cancelled()) } else { Ok(()) }
    }

    pub(super) async fn connect(&self, address: std::net::SocketAddr, wait: Duration) -> io::Result<()> {
        match entries::connect(&self.fd, address, wait).await {
            Err(error) if is_cancelled(&error) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address} within {wait:?}")))
            }
            result => result,
        }
    }

    /// Waits until the socket is readable (a listener: has a connection).
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.check()?;
        let (result, _fd) = entries::poll(&self.fd, libc::POLLIN).await;
        self.check()?;
        result.map(drop)
    }

    pub(super) async fn recv(&self, mut buffer: Buffer, range: Range<usize>) -> (io::Result<usize>, Buffer) {
        loop {
            if let Err(error) = self.check() {
                return (Err(error), buffer);
            }
            let (result, given_back) = entries::recv(&self.fd, buffer, range.clone(), 0, None).await;
            buffer = given_back;
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return (result.map(|count| count as usize), buffer),
            }
        }
    }

    pub(super) async fn recv_exact(
        &self,
        mut buffer: Buffer,
        range: Range<usize>,
        stall: Duration,
        total: Option<Duration>,
        mut progress: impl FnMut(usize),
    ) -> (io::Result<()>, Buffer) {
        let mut patience = Patience::new(stall, total);
        let mut done = 0;
        while range.start + done < range.end {
            let left = match self.check().and_then(|()| patience.left()) {
                Ok(left) => left,
                Err(error) => return (Err(error), buffer),
            };
            let takes_what_comes = done == 0 && range.len() <= RECV_WHOLE_BYTES_MAX;
            let (flags, wait) = if takes_what_comes { (0, left) } else { (libc::MSG_WAITALL, left.min(SOCKET_WAIT)) };
            let rest = range.start + done..range.end;
            let (result, given_back) = entries::recv(&self.fd, buffer, rest, flags, limit(wait)).await;
            buffer = given_back;
            match self.moved_bytes(result) {
                Ok(Some(0)) => return (Err(io::ErrorKind::UnexpectedEof.into()), buffer),
                Ok(Some(count)) => {
                    done += count;
                    patience.moved();
                    progress(done);
                }
                Ok(None) => {}
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    pub(super) async fn send_all(&self, mut source: SendSource, stall: Duration, more: bool) -> io::Result<()> {
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
        let len_bytes = source.len();
        let mut patience = Patience::new(stall, None);
        let mut done = 0;
        while done < len_bytes {
            self.check()?;
            let wait = limit(patience.left()?.min(SOCKET_WAIT));
            let (result, given_back) = entries::send(&self.fd, source, done, flags, wait).await;
            source = given_back;
            match self.moved_bytes(result)? {
                Some(0) => return Err(io::ErrorKind::WriteZero.into()),
                Some(count) => {
                    done += count;
                    patience.moved();
                }
                None => {}
            }
        }
        Ok(())
    }

    /// `None`: the wait is over, or was interrupted, and nothing moved.
    fn moved_bytes(&self, result: io::Result<u32>) -> io::Result<Option<usize>> {
        match result {
            Ok(count) => Ok(Some(count as usize)),
            Err(error) if is_cancelled(&error) => self.check().map(|()| None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn shutdown(&self) {
        // Fails only when the connection is gone already.
        let (_result, _fd) = entries::shutdown(&self.fd).await;
    }

    pub(super) async fn cancel(&self) {
        self.cancelled.set(true);
        // Fails only when nothing was pending.
        let (_result, _fd) = entries::cancel(&self.fd).await;
    }
}

/// The operations of a stream, in the words of its own type.
macro_rules! stream_operations {
    ($stream:ty) => {
        impl $stream {
            /// One receive: some bytes, or none at the end of the stream.
            pub async fn recv(&self, buffer: Buffer, range: Range<usize>) -> (io::Result<usize>, Buffer) {
                self.socket.recv(buffer, range).await
            }

            /// Fills `range`. `TimedOut` when no byte came for `stall`, `UnexpectedEof` at the end of the stream.
            pub async fn recv_exact(
                &self,
                buffer: Buffer,
                range: Range<usize>,
                stall: Duration,
            ) -> (io::Result<()>, Buffer) {
                self.socket.recv_exact(buffer, range, stall, None, |_| {}).await
            }

            /// Like `recv_exact`, and calls `progress` with the bytes received so far at each step.
            pub async fn recv_exact_with(
                &self,
                buffer: Buffer,
                range: Range<usize>,
                stall: Duration,
                progress: impl FnMut(usize),
            ) -> (io::Result<()>, Buffer) {
                self.socket.recv_exact(buffer, range, stall, None, progress).await
            }

            /// Like `recv_exact`, for those who are not trusted to drip: `TimedOut` after `total`, progress or not.
            pub async fn recv_exact_within(
                &self,
                buffer: Buffer,
                range: Range<usize>,
                total: Duration,
            ) -> (io::Result<()>, Buffer) {
                self.socket.recv_exact(buffer, range, total, Some(total), |_| {}).await
            }

            /// Sends all of `source`. `TimedOut` when no byte went out for `stall`. One call at a time.
            pub async fn send_all(&self, source: SendSource, stall: Duration) -> io::Result<()> {
                self.socket.send_all(source, stall, false).await
            }

            /// Like `send_all`, and says that more follows at once, so that the kernel may wait to fill a segment.
            pub async fn send_all_more(&self, source: SendSource, stall: Duration) -> io::Result<()> {
                self.socket.send_all(source, stall, true).await
            }

            /// Ends both directions; pending receives end as at the end of the stream.
            pub async fn shutdown(&self) {
                self.socket.shutdown().await;
            }

            /// Ends pending operations, and all later ones, with `ECANCELED`.
            pub async fn cancel(&self) {
                self.socket.cancel().await;
            }
        }
    };
}
pub(super) use stream_operations;
