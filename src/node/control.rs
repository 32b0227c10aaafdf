//! The control protocol: how the `gabion` command talks to the node on its own machine.
//!
//! A node listens on the unix socket `control.sock` (mode 0600) in its data directory: whoever may open it may do
//! everything, so the file's mode is the access control. One connection carries one command:
//!
//! 1. The command sends one [`ControlRequest`], with at most one descriptor (`SCM_RIGHTS`, sent with the first byte).
//! 2. The node answers with [`ControlEvent`]s and ends with exactly one [`ControlEvent::Done`] or
//!    [`ControlEvent::Error`].
//! 3. The command hangs up. When it hangs up earlier (Ctrl-C), the node cancels the operation.
//!
//! Three requests may follow others of their kind on the same connection, each answered by one event and no `Done`:
//! [`ControlRequest::FetchChunk`], [`ControlRequest::PutSmall`] and [`ControlRequest::GetSmall`]. An `Error` in place of
//! the answer ends the connection for the last two. A node may still close after a chunk; the command then connects
//! again.
//!
//! Message, both directions:
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | `length` of the rest, u32 little-endian, at most [`limits::CONTROL_MESSAGE_BYTES_MAX`] |
//! | 2 | requests only: [`PROTOCOL_VERSION`] |
//! | 1 | tag |
//! | … | the variant's fields, see `field` |
//!
//! Command and node come from one binary, so there is one version and no negotiation: a node of another version answers
//! with an `Error` that says so. (`Error` keeps its tag and its fields for ever.)
//!
//! Bulk data never crosses the socket: `Put` and `Get` carry the open file itself, and the node reads or writes it. There
//! are two exceptions. A link read on a storage node: such a node must never hold a key, so the command fetches
//! ciphertext by `FetchChunk`, checks it and decrypts it itself. And small files, many at once (`PutSmall`, `GetSmall`):
//! handing over a descriptor, and reading a few KiB through it, costs more than the bytes themselves.

pub mod client;
mod field;
mod small_files;

use crate::format::name::Metadata;
use crate::format::{Address, Malformed, NetworkId, NodeId, Reader, Writer};
use crate::limits;
use field::{Field, structure, tagged};

pub use field::{Bytes, SecretText};
pub use small_files::SmallFiles;

pub const PROTOCOL_VERSION: u16 = 5;

/// The socket's file name in the data directory.
pub const SOCKET_NAME: &str = "control.sock";

/// Bytes of the length in front of each message.
pub const LENGTH_BYTES: usize = 4;

/// Code of an `Error` that says that nobody reads the output of a `Get` any more (EPIPE): no reason to print anything.
pub const OUTPUT_CLOSED: u8 = 141;

tagged! {
    /// What to read.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Target {
        0 => Name { bucket: String, key: String, },
        /// A root's address; a member finds the key in its references.
        1 => Content { address: Address, },
        /// A link's text form. Sent to members only.
        2 => Link { text: SecretText, },
    }
}

tagged! {
    /// What the descriptor of a `Get` is.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum OutputKind {
        /// A regular file, open for reading and writing, written by position: file offset minus start of the range.
        0 => File,
        /// Anything else: written in order.
        1 => Stream,
    }
}

tagged! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum ControlRequest {
        /// Answers: `Progress`…, `Naming`, `Stored`, `Done`. With a descriptor open for reading, unless `metadata` is of a
        /// symbolic link.
        0 => Put {
            bucket: String,
            key: String,
            /// A random scope: the content is not shared with any other put.
            no_dedup: bool,
            /// Refuse when the name exists.
            no_clobber: bool,
            metadata: Metadata,
            /// What `stat` said of a regular file: for the progress total, never trusted.
            length_hint: Option<u64>,
        },
        /// Answers: `Info`, `Progress`…, `Fetched`, `Done`. With a descriptor. A name that is a symbolic link is
        /// answered by `Info`, `Fetched` of 0 bytes and `Done`.
        1 => Get {
            target: Target,
            /// First and last byte, inclusive as in HTTP; the end is clamped to the file.
            range: Option<(u64, u64)>,
            /// Read past local copies and the cache.
            remote: bool,
            /// Keep what the output already holds where it is right.
            resume: bool,
            output: OutputKind,
        },
        /// Answers: `Entry`, `Done`.
        2 => Stat { target: Target, },
        /// Answers: `Done`.
        3 => Remove { bucket: String, key: String, },
        /// Answers: `Entry`… in order of (bucket, key), `Listed`, `Done`. At most `limit` entries, and no more than the
        /// node holds at once ([`limits::LISTING_BYTES_MAX`]).
        4 => List {
            /// All buckets when absent.
            bucket: Option<String>,
            prefix: String,
            /// Only entries behind this one.
            after: Option<(String, String)>,
            limit: u64,
        },
        /// Answers: `Text` (the link), `Done`.
        5 => Share { bucket: String, key: String, },
        /// Answers: `Status`, `Done`.
        6 => Status,
        /// Answers: `Peer`…, `Done`. The node itself is not among them.
        7 => Peers,
        /// Answers: `Verified`…, `Damaged`…, `VerifyDone`, `Done`.
        8 => Verify,
        /// Answers: `Reclaimed`, `Done`.
        9 => Reclaim,
        /// Answers: `Text` (the ticket), `Done`.
        10 => Ticket { member: bool, zone: Option<String>, expires_s: u64, },
        /// Answers: `Text` (the keys' text form), `Done`.
        11 => KeyExport,
        /// Answers: `Chunk` alone, so that many of these can share a connection.
        12 => FetchChunk { address: Address, len: u32, remote: bool, },
        /// At most [`limits::SMALL_FILES_MAX`] files that were read whole, and did not change meanwhile. Answers:
        /// `StoredSmall` alone, once each file that it calls stored is durable.
        13 => PutSmall { bucket: String, no_dedup: bool, no_clobber: bool, files: Vec<SmallFile>, },
        /// At most [`limits::SMALL_FILES_MAX`] targets. Answers: `FetchedSmall` alone.
        14 => GetSmall {
            targets: Vec<Target>,
            /// Read past local copies and the cache.
            remote: bool,
        },
        /// Answers: `Removed` for each of at most [`limits::REMOVALS_MAX`] keys, `Done`. What they held is declared dead
        /// together, before any of them is answered.
        15 => RemoveMany { bucket: String, keys: Vec<String>, },
    }
}

structure! {
    /// A file of at most [`limits::SMALL_CHUNK_BYTES_MAX`] bytes, or a symbolic link, which has none.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct SmallFile {
        pub key: String,
        pub metadata: Metadata,
        pub contents: Bytes,
    }
}

tagged! {
    /// What became of one file of a `PutSmall`.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum SmallStored {
        0 => Stored { content: Address, bytes: u64, bytes_new: u64, },
        1 => Failed { code: u8, message: String, },
    }
}

tagged! {
    /// What became of one target of a `GetSmall`.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum SmallFetched {
        0 => Contents { metadata: Metadata, content: Address, contents: Bytes, },
        1 => Failed { code: u8, message: String, },
        /// It is too long for this, or the answer was full: to be asked for by `Get`.
        2 => Large { length: u64, },
    }
}

tagged! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum ControlEvent {
        /// `new`: bytes so far that the network did not hold before (put) or that were not in the output yet (get).
        0 => Progress { done: u64, total: Option<u64>, new: u64, },
        /// Before the first byte of a get. A link carries no metadata: its mode is 0.
        1 => Info { metadata: Metadata, length: u64, content: Address, },
        2 => Stored { bucket: String, key: String, content: Address, bytes: u64, bytes_new: u64, },
        /// `bytes`: written by this get; `bytes_resumed`: were in the output already. Their sum is the whole output.
        3 => Fetched { bytes: u64, bytes_resumed: u64, },
        4 => Entry { entry: Entry, },
        5 => Text { text: SecretText, },
        6 => Status { report: StatusReport, },
        7 => Peer { report: PeerReport, },
        /// Chunks verified so far.
        8 => Verified { done: u64, total: u64, },
        9 => Damaged { address: Address, mended: bool, message: String, },
        10 => VerifyDone { chunks: u64, bytes: u64, damaged: u64, mended: u64, left: u64, },
        11 => Reclaimed { bytes: u64, chunks: u64, segments: u64, },
        /// Ciphertext, to be checked by whoever asked.
        12 => Chunk { payload: Bytes, },
        /// One line that the command passes on to stderr.
        13 => Warning { message: String, },
        /// One for each file of the request, in its order.
        14 => StoredSmall { outcomes: Vec<SmallStored>, },
        /// One for each target of the request, in its order.
        15 => FetchedSmall { outcomes: Vec<SmallFetched>, },
        /// The end of one page of a listing; `more`: there are entries behind it.
        16 => Listed { more: bool, },
        /// One name of many; where it was not removed, with the exit code and the reason.
        17 => Removed { key: String, failure: Option<(u8, String)>, },
        /// From here on the name of a `Put` may be written, whatever becomes of the command. Not before.
        18 => Naming,
        254 => Done,
        /// `code` is the exit code of the command.
        255 => Error { code: u8, message: String, },
    }
}

structure! {
    /// One name. For content ids and links, `bucket` and `key` are empty.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Entry {
        pub bucket: String,
        pub key: String,
        pub content: Address,
        pub length: u64,
        pub metadata: Metadata,
        /// When it was put, Unix milliseconds; 0 when unknown.
        pub stamp_ms: u64,
    }
}

tagged! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum NodeState {
        0 => Ready,
        /// Runs, but not everything works; the reasons say what.
        1 => Degraded,
    }
}

tagged! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum NodeClass {
        0 => Member,
        1 => Storage,
    }
}

structure! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct StatusReport {
        pub state: NodeState,
        /// Why it is degraded, one line each.
        pub reasons: Vec<String>,
        pub node_id: NodeId,
        pub class: NodeClass,
        pub network_id: NetworkId,
        /// Where it listens, as bound.
        pub listen: String,
        pub layout: u32,
        pub replicas: u8,
        pub nodes_known: u32,
        /// Itself included.
        pub nodes_alive: u32,
        pub chunks: u64,
        pub bytes_live: u64,
        pub bytes_disk: u64,
        pub bytes_free: u64,
        /// What it was told to offer.
        pub capacity_bytes: Option<u64>,
        pub names: u64,
        pub versions: u64,
        pub deaths_pending: u64,
        pub cache_bytes: u64,
        /// Payloads to and from other nodes, since it began.
        pub payload_bytes_sent: u64,
        pub payload_bytes_received: u64,
        pub registered_buffers: u32,
        pub rss_anon_bytes: u64,
        pub uptime_s: u64,
    }
}

structure! {
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct PeerReport {
        pub node_id: NodeId,
        pub class: NodeClass,
        pub zone: String,
        pub addresses: Vec<String>,
        pub alive: bool,
        pub last_seen_s: Option<u64>,
        pub rtt_us: Option<u64>,
        pub capacity_bytes: u64,
        /// `certified`, `expired`, …: one word.
        pub certificate: String,
    }
}

/// Why bytes are not a message of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("command and node do not match: protocol version {found} instead of {PROTOCOL_VERSION}; restart the node")]
    Version { found: u16 },
    #[error("a message of {len} bytes, and at most {} are allowed", limits::CONTROL_MESSAGE_BYTES_MAX)]
    TooLong { len: usize },
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// The length of the message whose first four bytes these are, checked.
pub fn message_len(head: [u8; LENGTH_BYTES]) -> Result<usize, ProtocolError> {
    let len = u32::from_le_bytes(head) as usize;
    if len > limits::CONTROL_MESSAGE_BYTES_MAX { Err(ProtocolError::TooLong { len }) } else { Ok(len) }
}

impl ControlRequest {
    /// The whole message, its length included.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(0).u16(PROTOCOL_VERSION);
        self.write(&mut writer);
        with_length(writer.finish())
    }

    /// From a message without its length.
    pub fn decode(message: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new(message);
        let found = reader.u16("protocol version")?;
        if found != PROTOCOL_VERSION {
            return Err(ProtocolError::Version { found });
        }
        finish(reader)
    }
}

impl ControlEvent {
    /// The whole message, its length included.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(0);
        self.write(&mut writer);
        with_length(writer.finish())
    }

    /// From a message without its length.
    pub fn decode(message: &[u8]) -> Result<Self, ProtocolError> {
        finish(Reader::new(message))
    }
}

/// Fills in the length, whose place is at the message's beginning.
fn with_length(mut message: Vec<u8>) -> Vec<u8> {
    let Some((length, body)) = message.split_first_chunk_mut::<LENGTH_BYTES>() else {
        unreachable!("a message begins with the place of its length")
    };
    assert!(body.len() <= limits::CONTROL_MESSAGE_BYTES_MAX, "control message of {} bytes", body.len());
    *length = (body.len() as u32).to_le_bytes();
    message
}

fn finish<T: Field>(mut reader: Reader<'_>) -> Result<T, ProtocolError> {
    let value = T::read(&mut reader, "message")?;
    reader.end("bytes after the message")?;
    Ok(value)
}

#[cfg(test)]
mod tests;
