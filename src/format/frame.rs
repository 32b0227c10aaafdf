//! A connection's opening and its frame header.
//!
//! Opening, 80 bytes, dialler to listener, the only bytes ever sent in clear:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic `gabn` |
//! | 4 | 2 | preface version |
//! | 6 | 2 | zero |
//! | 8 | 8 | network key id (derived from the network key) |
//! | 16 | 64 | first Noise message: ephemeral 32, sealed [`OpeningPayload`] 16, tag 16 |
//!
//! Frame header, 64 bytes, always sealed by the session (80 bytes on the wire):
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | kind |
//! | 1 | 1 | flags |
//! | 2 | 2 | status (answers; 0 = ok) |
//! | 4 | 4 | body bytes (plaintext; 0..=65,519; sealed it is 16 longer, absent when 0) |
//! | 8 | 8 | request id: chosen by the asker, odd for the dialler, even for the listener |
//! | 16 | 4 | payload bytes (raw, after the body) |
//! | 20 | 4 | credit: payloads that the sender of this frame is ready to receive in addition |
//! | 24 | 32 | address: the payload's, or the chunk that is asked for |
//! | 56 | 4 | layout: number of the newest layout that this operation runs under |
//! | 60 | 4 | reserved, zero |

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cursor::Malformed;
use super::id::Address;
use crate::limits::{CHUNK_BYTES_MAX, FRAME_HEADER_BYTES, OPENING_BYTES, PREFACE_BYTES, SEALED_BODY_BYTES_MAX};

pub const PREFACE_MAGIC: [u8; 4] = *b"gabn";
pub const PREFACE_VERSION: u16 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Preface {
    pub magic: [u8; 4],
    pub version: U16,
    pub zero: U16,
    pub network_key_id: [u8; 8],
}

/// The first message's payload: nothing secret.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct OpeningPayload {
    pub version_min: U16,
    pub version_max: U16,
    /// log2 of the longest payload, then zero: room for limits.
    pub payload_bytes_log2: u8,
    pub reserved: [u8; 3],
    pub unix_ms: U64,
}

const _: () = assert!(size_of::<Preface>() == PREFACE_BYTES);
const _: () = assert!(size_of::<OpeningPayload>() == 16);
const _: () = assert!(PREFACE_BYTES + 32 + size_of::<OpeningPayload>() + 16 == OPENING_BYTES);

/// What a frame is. Requests are answered by `Answer` with the same request id, or by `Cancelled`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Nothing: proof of life, carrier of credit.
    Keepalive = 1,
    /// Forget the request of this id.
    Cancel = 2,
    /// The answer to a request.
    Answer = 3,
    /// The session ends; the body says why, in words.
    Goodbye = 4,
    /// The asker's role and newest layout, exchanged first and whenever they change. Who says it counts as connected;
    /// connections that only move data never say it.
    Hello = 16,
    /// Roles that are news, with their certificates.
    Roles = 17,
    /// The layout of a number (0 = the newest).
    Layout = 18,
    /// The vault key, for a member certificate.
    VaultKey = 19,
    /// Which of these chunks do you hold? What is held is referenced at once, durably.
    Offer = 32,
    /// Keep this chunk (raw payload) under this version.
    Store = 33,
    /// Keep these small chunks (sealed body), each under its version.
    StoreSmall = 34,
    /// Give me the chunk at `address`.
    Fetch = 35,
    /// Prove that you hold the chunk at `address`.
    Prove = 36,
    /// Read a name's record.
    NameRead = 48,
    /// Keep this name record.
    NameWrite = 49,
    /// Records of a bucket, page by page.
    NameList = 50,
    /// Signed deaths, to be confirmed once durable.
    Deaths = 51,
    /// Keep a reference of a root with its sealed capsule.
    Refer = 52,
    /// The sealed capsules of the living versions of a root.
    Capsules = 53,
}

impl FrameKind {
    pub fn parse(byte: u8) -> Option<Self> {
        use FrameKind::*;
        [
            Keepalive, Cancel, Answer, Goodbye, Hello, Roles, Layout, VaultKey, Offer, Store, StoreSmall, Fetch, Prove,
            NameRead, NameWrite, NameList, Deaths, Refer, Capsules,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

impl FrameKind {
    /// What is asked of anybody with a certificate, admitted or not. Neither side has a payload to bring.
    pub fn is_of_membership(self) -> bool {
        matches!(self, Self::Hello | Self::Roles | Self::Layout | Self::VaultKey)
    }
}

/// The payload is sealed by the session too. Reserved: refused so far.
pub const FRAME_FLAG_PAYLOAD_SEALED: u8 = 1 << 0;

/// How an answer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Status {
    Ok = 0,
    NotFound = 1,
    /// Asked under layouts that are not the active ones here; the body is the newest layout's number.
    WrongLayout = 2,
    NoSpace = 3,
    /// The asker's certificate does not allow it.
    Forbidden = 4,
    /// What was asked for is refused for ever (a dead version).
    Dead = 5,
    /// The answerer cannot now: try another.
    Unavailable = 6,
    /// The request makes no sense; the body says why.
    Malformed = 7,
    /// A chunk's bytes were asked for and are damaged here.
    Damaged = 8,
    /// A stamp lies too far ahead of this node's clock.
    ClockAhead = 9,
}

impl Status {
    pub fn parse(value: u16) -> Option<Self> {
        use Status::*;
        [Ok, NotFound, WrongLayout, NoSpace, Forbidden, Dead, Unavailable, Malformed, Damaged, ClockAhead]
            .into_iter()
            .find(|status| *status as u16 == value)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FrameHeader {
    pub kind: u8,
    pub flags: u8,
    pub status: U16,
    pub body_bytes: U32,
    pub request: U64,
    pub payload_bytes: U32,
    pub credit: U32,
    pub address: Address,
    pub layout: U32,
    pub reserved: U32,
}

const _: () = assert!(size_of::<FrameHeader>() == FRAME_HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(FrameHeader, address) == 24);

impl FrameHeader {
    pub fn new(kind: FrameKind, request: u64) -> Self {
        Self {
            kind: kind as u8,
            flags: 0,
            status: U16::ZERO,
            body_bytes: U32::ZERO,
            request: request.into(),
            payload_bytes: U32::ZERO,
            credit: U32::ZERO,
            address: Address::ZERO,
            layout: U32::ZERO,
            reserved: U32::ZERO,
        }
    }

    /// A header whose every field is within its bounds, or the reason why not. Unknown kinds are malformed: versions
    /// are negotiated, so nobody sends what the other does not know.
    pub fn check(&self) -> Result<FrameKind, Malformed> {
        let kind = FrameKind::parse(self.kind).ok_or(Malformed::new("frame kind"))?;
        if self.flags != 0 {
            return Err(Malformed::new("frame flags"));
        }
        if self.reserved.get() != 0 {
            return Err(Malformed::new("frame reserved bytes"));
        }
        if Status::parse(self.status.get()).is_none() {
            return Err(Malformed::new("frame status"));
        }
        if self.body_bytes.get() as usize > SEALED_BODY_BYTES_MAX {
            return Err(Malformed::new("frame body length"));
        }
        if self.payload_bytes.get() as usize > CHUNK_BYTES_MAX {
            return Err(Malformed::new("frame payload length"));
        }
        Ok(kind)
    }
}
