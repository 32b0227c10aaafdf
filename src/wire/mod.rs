//! Connections between nodes: one TCP stream each, sealed, symmetric, with requests that are answered in any order.
//!
//! Whoever dialled, either side may ask; so a node that cannot be dialled takes full part. A connection lives on one
//! shard thread, with three tasks: reader, writer and liveness; each request that arrives gets a task of its own.
//!
//! ```text
//!   request() --> queue --> writer --> socket --> reader --> handler task --> queue --> writer --> ... --> request()
//!                 small frames before payloads;   payloads land in pool buffers,
//!                 payloads wait for credit        verified before anybody sees them
//! ```
//!
//! | file | what it decides or does |
//! | --- | --- |
//! | [`decoder`] | from bytes to frames; every length bounded first |
//! | [`flow`] | credit: who may send how many payloads |
//! | [`admission`] | how much work strangers may cause |
//! | [`liveness`] | when a peer is gone, when a request has stalled |
//! | `queue` | which frame leaves next |
//! | `handshake` | opening, certificates, session |
//! | `connection` | dial, accept, request, close |
//! | `link` | what the tasks of a connection share; the end |
//! | `asking`, `serving` | requests of ours, of theirs; cancellation |
//! | `reader`, `writer` | the socket's two directions |
//!
//! # Rules
//! - Payloads are checked against the address in their sealed header before a handler or an asker sees them. One that
//!   does not match ends the connection and blames nobody: the wire may have flipped it.
//! - Every request ends with exactly one frame of the other side: its answer, or a cancel. A cancel that we sent is
//!   acknowledged by a cancel or crossed by the answer, which is then thrown away. So an answer to nothing is a breach.
//! - A payload comes only in a request for which the handler takes it from that peer, and in an answer to a question about
//!   data. Any other is a breach, found before a buffer is taken.
//! - At most [`REQUESTS_IN_FLIGHT_MAX`](crate::limits::REQUESTS_IN_FLIGHT_MAX) requests in each direction; more wait
//!   at the asker, and an asker that does not is cut off.
//! - Bodies of answers that wait to leave have a limit in bytes too, beyond which requests are refused
//!   ([`Status::Unavailable`]): a peer that asks much and reads slowly gets no memory for it.
//! - A request that stalls moves on alone; a stall inside of a frame ends the connection, because nobody knows where
//!   the next frame would begin.
//! - Sessions end at their age or their count of frames, with a goodbye; who dialled dials again.
//!
//! # Why nothing waits in a circle
//! - The reader waits for bytes, and at most [`BUFFER_WAIT_MAX`](crate::limits::BUFFER_WAIT_MAX) for a pool buffer;
//!   then it reads the payload away and refuses it ([`Status::Unavailable`], [`RequestError::NoBuffer`]). It never
//!   waits for a handler, for credit or for the queue, whose length is bounded by the requests in flight. So answers and
//!   credit always get through, even while every buffer is held by somebody who waits for exactly those.
//! - Buffers in answers that wait to leave are the handlers' affair, and must stay fewer than the pool has: else two nodes
//!   whose every buffer holds an answer for the other refuse each other's payloads, one a second. A permit for each, kept
//!   by [`PayloadSource::guarded`] until it has left, does it.
//! - The writer waits for the socket alone, which the other side's reader empties, by the same argument.
//! - Payloads wait for credit in the queue, where small frames go past them; answers for as long as something moves, and
//!   [`STALL_MAX`](crate::limits::STALL_MAX) beyond: then they give their buffers back and say so. Credit comes back when a handler is done.
//!   A handler that sends a payload to the very peer whose payload it holds may wait for itself; its patience ends it.

pub mod admission;
mod asking;
mod connection;
pub mod decoder;
pub mod flow;
mod handshake;
mod link;
pub mod liveness;
mod queue;
mod reader;
mod serving;
#[cfg(test)]
mod tests;
mod writer;

use std::any::Any;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

pub use admission::Admission;
pub use connection::Connection;
pub use decoder::Violation;
pub use handshake::{AcceptRefused, DialError, Identity};

use crate::crypto::identity::CheckedCertificate;
use crate::format::Address;
use crate::format::frame::{FrameHeader, FrameKind, Status};
use crate::io::{Buffer, MappedRange, SharedBuffer};
use crate::limits::{CHUNK_BYTES_MAX, RECORD_HEAD_BYTES, REQUESTS_IN_FLIGHT_MAX, SEALED_BODY_BYTES_MAX};

/// Who is at the other end.
pub struct PeerInfo {
    pub certificate: CheckedCertificate,
    pub address: SocketAddr,
    /// We dialled, not the peer.
    pub dialled: bool,
    /// Of the network key that the dialler used: an older one says that it needs the newest.
    pub network_key_generation: u32,
}

/// A payload that was received and matched its address.
pub struct Payload {
    /// The payload lies at `buffer[RECORD_HEAD_BYTES..][..len]`. What else the buffer holds is older and nobody's
    /// business.
    pub buffer: Buffer,
    pub len: usize,
}

impl Payload {
    pub fn range(&self) -> Range<usize> {
        RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + self.len
    }

    pub fn bytes(&self) -> &[u8] {
        self.buffer.as_slice().get(self.range()).unwrap_or_default()
    }
}

/// Where a payload to be sent lies. It is held until the last byte has left, or the frame was dropped.
pub enum PayloadSource {
    Shared(SharedBuffer, Range<usize>),
    /// With a guard that keeps the range from being punched.
    Mapped(MappedRange, Range<usize>, Box<dyn Any>),
    Bytes(Vec<u8>),
    /// Any of the above, and something that is dropped with it, such as a permit for the buffer that it occupies.
    Guarded(Box<PayloadSource>, Box<dyn Any>),
}

impl PayloadSource {
    pub fn guarded(self, guard: impl Any) -> Self {
        Self::Guarded(Box::new(self), Box::new(guard))
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Guarded(source, _) => source.len(),
            Self::Shared(_, range) | Self::Mapped(_, range, _) => range.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Payload> for PayloadSource {
    fn from(payload: Payload) -> Self {
        let range = payload.range();
        Self::Shared(payload.buffer.freeze(), range)
    }
}

/// What a peer asks.
pub struct Request {
    pub header: FrameHeader,
    pub kind: FrameKind,
    pub body: Vec<u8>,
    pub payload: Option<Payload>,
}

/// What we answer. `address` is the payload's, where there is one.
pub struct Reply {
    pub status: Status,
    pub address: Address,
    pub layout: u32,
    pub body: Vec<u8>,
    pub payload: Option<PayloadSource>,
}

impl Reply {
    pub fn status(status: Status) -> Self {
        Self { status, address: Address::ZERO, layout: 0, body: Vec::new(), payload: None }
    }

    pub fn ok(body: Vec<u8>) -> Self {
        Self { body, ..Self::status(Status::Ok) }
    }

    /// A refusal, in words.
    pub fn words(status: Status, words: &str) -> Self {
        Self { body: words.as_bytes().to_vec(), ..Self::status(status) }
    }
}

/// What a peer answered.
pub struct Answer {
    pub status: Status,
    pub header: FrameHeader,
    pub body: Vec<u8>,
    pub payload: Option<Payload>,
}

/// The answering side. Each request runs in a task of its own; when the asker cancels or the connection ends, the
/// task is aborted, so whatever must go on belongs into another task.
pub trait Handler: 'static {
    fn handle(self: Rc<Self>, peer: Rc<PeerInfo>, request: Request) -> impl Future<Output = Reply> + 'static;

    /// Whether whoever has just shown this certificate was admitted: then its handshake is not counted against its source.
    fn is_admitted(&self, certificate: &CheckedCertificate) -> bool;

    /// The handshake is done; from now on the connection can be asked.
    fn connected(&self, connection: &Connection);

    /// Called once for each `connected`, after the last request of the peer was handed over.
    fn closed(&self, connection: &Connection, reason: &CloseReason);

    /// Whether a request of this kind may bring a payload from this peer. Asked before a buffer is taken for it: a payload
    /// holds one for as long as a byte moves now and then, so no others than those who may store must hold any.
    fn takes_payload(&self, peer: &PeerInfo, kind: FrameKind) -> bool;

    /// Requests of this peer that may be under way at a time; what comes beyond is refused, and not handed over.
    fn requests_max(&self, _peer: &PeerInfo) -> usize {
        REQUESTS_IN_FLIGHT_MAX
    }

    /// A payload of so many bytes has left, in a request of ours or an answer.
    fn payload_sent(&self, _bytes: usize) {}

    /// A payload of so many bytes has come and matched its address.
    fn payload_received(&self, _bytes: usize) {}
}

/// Why a connection ended: the first of what happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("closed here: {0}")]
    Here(String),
    #[error("the peer said goodbye: {0}")]
    Goodbye(String),
    #[error("the peer hung up")]
    HungUp,
    #[error("the connection broke: {0}")]
    Lost(io::ErrorKind),
    #[error("not a byte of it for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("no byte of a frame that was under way moved for {} ms", .0.as_millis())]
    Stalled(Duration),
    #[error("the peer breached the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("a payload did not match its address {0:?}; the bytes were altered on the way")]
    PayloadMismatch(Address),
    #[error("the session is over after its time or its number of frames; a new connection starts another")]
    SessionOver,
}

/// Why a request has no answer. After each of them it is unknown whether the other side carried it out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the connection is closed: {reason}")]
    Closed { reason: CloseReason },
    #[error("the request made no progress for {} ms; another peer may be faster", patience.as_millis())]
    Stalled { patience: Duration },
    #[error("the peer dropped the request; it may be shutting down")]
    Cancelled,
    #[error("the answer's payload was thrown away: every buffer was in use for a second")]
    NoBuffer,
    #[error(
        "not sent: a body has at most {SEALED_BODY_BYTES_MAX} bytes, not {body_bytes}, and a payload 1 to {CHUNK_BYTES_MAX}, not {payload_bytes:?}"
    )]
    TooLong { body_bytes: usize, payload_bytes: Option<usize> },
}
