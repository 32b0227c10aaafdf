//! A link: the capability to read one file, in text form `gl1…`. Who has it can read the file.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | format version |
//! | 1 | 1 | depth of the file tree |
//! | 2 | 8 | length of the file in bytes |
//! | 10 | 32 | root address |
//! | 42 | 32 | root key |
//! | 74 | 8 | checksum over all of the above ([`super::id::checksum`]) |
//!
//! Depth and length agree with each other ([`super::tree::depth_of`]), and the empty file's root and key are zero: a
//! link that says otherwise is damaged. The key is wiped from memory when a link is dropped; the text it was printed to
//! is the caller's.

use std::fmt;
use std::str::FromStr;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::{Zeroize, Zeroizing};

use super::id::{Address, ContentId, TextError, checksum, from_text, to_text, without_checksum};
use super::tree::depth_of;

pub const LINK_PREFIX: &str = "gl1";
pub const LINK_VERSION: u8 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Zeroize)]
#[repr(C)]
struct LinkBytes {
    version: u8,
    depth: u8,
    length: [u8; 8],
    root: [u8; 32],
    root_key: [u8; 32],
}

const _: () = assert!(size_of::<LinkBytes>() == 74);

#[derive(Clone, PartialEq, Eq)]
pub struct Link {
    pub depth: u8,
    pub length: u64,
    pub root: Address,
    /// Secret.
    pub root_key: [u8; 32],
}

impl Link {
    pub fn content_id(&self) -> ContentId {
        ContentId(self.root)
    }

    fn is_consistent(&self) -> bool {
        self.depth == depth_of(self.length)
            && (self.length == 0) == self.root.is_zero()
            && (self.length != 0 || self.root_key == [0; 32])
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.root_key.zeroize();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("root", &self.root)
            .field("depth", &self.depth)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// The whole link, key included: for handing on, never for a log.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = Zeroizing::new(LinkBytes {
            version: LINK_VERSION,
            depth: self.depth,
            length: self.length.to_le_bytes(),
            root: self.root.0,
            root_key: self.root_key,
        });
        let mut bytes = Zeroizing::new(Vec::with_capacity(size_of::<LinkBytes>() + 8));
        bytes.extend_from_slice(fields.as_bytes());
        bytes.extend_from_slice(&checksum(LINK_PREFIX, fields.as_bytes()));
        f.write_str(&Zeroizing::new(to_text(LINK_PREFIX, &bytes)))
    }
}

impl FromStr for Link {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let bytes = Zeroizing::new(from_text(LINK_PREFIX, text)?);
        let body = without_checksum(LINK_PREFIX, &bytes)?;
        if let Some(&version) = body.first().filter(|version| **version != LINK_VERSION) {
            return Err(TextError::Version { found: version.into(), known: LINK_VERSION.into() });
        }
        let fields = LinkBytes::ref_from_bytes(body)
            .map_err(|_| TextError::Length { expected: size_of::<LinkBytes>(), found: body.len() })?;
        let link = Self {
            depth: fields.depth,
            length: U64::from_bytes(fields.length).get(),
            root: Address(fields.root),
            root_key: fields.root_key,
        };
        if link.is_consistent() { Ok(link) } else { Err(TextError::Field("depth, length and root disagree")) }
    }
}
