//! The normative byte tables of everything that gabion writes to a disk or a wire.
//!
//! Rules:
//! - Little-endian, no padding, named reserved bytes that must be zero; sizes and offsets are asserted at compile time.
//! - Bytes are parsed once, at the edge, into types that only checked bytes can become; nobody indexes into raw bytes
//!   further in.
//! - Every format that outlives a process carries a version. An unknown version is an error that says so; it is
//!   never guessed at.
//! - A change of a table is a new version and a new frozen fixture, never an edit of an old one.
//!
//! | file | what it fixes |
//! | --- | --- |
//! | [`id`] | addresses and identifiers, and their text form |
//! | [`cursor`] | reading and writing a fixed head followed by variable parts |
//! | [`record`] | records inside segments, batch records |
//! | [`segment`] | segment header and footer |
//! | [`tree`] | entries and shape of a file tree |
//! | [`frame`] | the opening and the frame header of a connection |
//! | [`message`] | the bodies of frames |
//! | [`name`] | name records and what is sealed in them |
//! | [`certificate`] | invites, node certificates, roles, layouts, deaths: everything signed |
//! | [`link`], [`ticket`] | the text forms a person hands on |

pub mod certificate;
pub mod cursor;
pub mod frame;
pub mod id;
pub mod link;
pub mod message;
pub mod name;
pub mod record;
pub mod segment;
pub mod ticket;
pub mod tree;

pub use cursor::{Malformed, Reader, Writer};
pub use id::{
    Address, BucketId, ContentId, Incarnation, NameId, NetworkId, NodeId, PlacementId, Stamp, VaultId, VersionId,
};
