//! Identifiers: fixed byte arrays that sort, hash and print.
//!
//! Text forms are a three-letter prefix and lower-case base32 (RFC 4648, no padding): `gc1` content id, `gl1` link,
//! `gt1` ticket. Base32 survives shells, URLs, phones and case-insensitive file systems.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian};
use zeroize::Zeroizing;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(transparent)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            pub const ZERO: Self = Self([0; $bytes]);
            pub const BYTES: usize = $bytes;

            pub fn is_zero(&self) -> bool {
                self.0 == [0; $bytes]
            }
        }

        /// The first eight bytes in hexadecimal: enough to tell two apart in a log line.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let head: &[u8] = self.0.first_chunk::<8>().map_or(&self.0, |head| head);
                write!(f, "{}", HEXLOWER.encode(head))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", HEXLOWER.encode(&self.0))
            }
        }
    };
}

identifier!(
    /// BLAKE3 of a chunk's ciphertext. Zero stands for "no chunk" (the empty file).
    Address, 32
);
identifier!(
    /// The public half of a node's Ed25519 key.
    NodeId, 32
);
identifier!(
    /// The public half of the authority's Ed25519 key.
    NetworkId, 32
);
identifier!(
    /// What a node is placed by: stable for the life of its certificate, unknown to whoever wants a partition.
    PlacementId, 16
);
identifier!(
    /// One life of a store: an emptied or restored store is another.
    Incarnation, 16
);
identifier!(
    /// One encryption namespace. There is one a network so far: the zero id.
    VaultId, 16
);
identifier!(
    /// Keyed hash of a bucket's name: nobody without the vault key can try a dictionary.
    BucketId, 32
);
identifier!(
    /// Keyed hash of a bucket's and a key's text.
    NameId, 32
);

impl Address {
    /// The unit of ownership: the top 16 bits.
    pub fn partition(&self) -> u16 {
        let [high, low, ..] = self.0;
        u16::from_be_bytes([high, low])
    }
}

impl BucketId {
    /// The four bytes of a bucket that stand in each of its versions, so that a chunk's holder knows whom to ask.
    pub fn slot(&self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }
}

/// One put under one name: `bucket slot` 4, `minted` in Unix seconds 4, `random` 8.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct VersionId {
    slot: zerocopy::big_endian::U32,
    minted_s: little_endian::U32,
    random: [u8; 8],
}

const _: () = assert!(size_of::<VersionId>() == 16);

impl VersionId {
    pub const ZERO: Self =
        Self { slot: zerocopy::big_endian::U32::ZERO, minted_s: little_endian::U32::ZERO, random: [0; 8] };

    pub fn new(slot: u32, minted_s: u32, random: [u8; 8]) -> Self {
        Self { slot: slot.into(), minted_s: minted_s.into(), random }
    }

    /// The bucket slot of the name that this version was put under.
    pub fn slot(&self) -> u32 {
        self.slot.get()
    }

    /// The partition whose owners (among the members) hold this version's name.
    pub fn partition(&self) -> u16 {
        (self.slot.get() >> 16) as u16
    }

    pub fn minted_s(&self) -> u32 {
        self.minted_s.get()
    }

    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

impl fmt::Debug for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", HEXLOWER.encode(self.as_bytes()))
    }
}

/// A hybrid logical clock: 48 bits of Unix milliseconds above 16 bits of counter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Default)]
#[repr(transparent)]
pub struct Stamp(pub little_endian::U64);

impl Stamp {
    pub const ZERO: Self = Self(little_endian::U64::ZERO);

    /// Milliseconds beyond 48 bits (the year 10,889) stand still there rather than wrap round to 1970.
    pub fn new(millis: u64, counter: u16) -> Self {
        let millis = millis.min((1 << 48) - 1);
        Self(((millis << 16) | u64::from(counter)).into())
    }

    pub fn get(&self) -> u64 {
        self.0.get()
    }

    pub fn millis(&self) -> u64 {
        self.0.get() >> 16
    }

    pub fn counter(&self) -> u16 {
        (self.0.get() & 0xffff) as u16
    }
}

impl PartialOrd for Stamp {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Stamp {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.get().cmp(&other.get())
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis(), self.counter())
    }
}

/// A file's id as a user sees it: its root's address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ContentId(pub Address);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("does not start with `{expected}`")]
    Prefix { expected: &'static str },
    #[error("is damaged: not base32 after the prefix")]
    Alphabet,
    #[error("is damaged: {found} bytes instead of {expected}")]
    Length { expected: usize, found: usize },
    #[error("is damaged: its checksum does not match; copy it again, whole")]
    Checksum,
    #[error("has format version {found}, newer than this program knows ({known}); update gabion")]
    Version { found: u16, known: u16 },
    #[error("is damaged: {0}")]
    Field(&'static str),
}

/// Prefix and base32 of `bytes`.
pub fn to_text(prefix: &'static str, bytes: &[u8]) -> String {
    // In one allocation: some texts are secrets, and one that grows leaves copies behind.
    let mut text = String::with_capacity(prefix.len() + BASE32_NOPAD.encode_len(bytes.len()));
    text.push_str(prefix);
    BASE32_NOPAD.encode_append(bytes, &mut text);
    text.make_ascii_lowercase();
    text
}

/// The bytes behind `prefix`; surrounding white space is forgiven.
pub fn from_text(prefix: &'static str, text: &str) -> Result<Vec<u8>, TextError> {
    let body = text.trim().strip_prefix(prefix).ok_or(TextError::Prefix { expected: prefix })?;
    if body.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(TextError::Alphabet);
    }
    let upper = Zeroizing::new(body.to_ascii_uppercase());
    BASE32_NOPAD.decode(upper.as_bytes()).map_err(|_| TextError::Alphabet)
}

/// The `derive_key` context of [`checksum`]; listed with all the others in `crypto::keys`.
pub const TEXT_CHECKSUM_CONTEXT: &str = "gabion v1 text checksum";

pub const CHECKSUM_BYTES: usize = 8;

/// What closes every text form (and key file) that a person may damage while copying it: 8 bytes over the prefix and
/// all fields. It guards against accidents only; whoever edits on purpose computes it anew.
pub fn checksum(prefix: &str, bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key(TEXT_CHECKSUM_CONTEXT);
    hasher.update(prefix.as_bytes()).update(&[0]).update(bytes);
    let mut sum = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

/// Splits the checksum off and checks it.
pub fn without_checksum<'a>(prefix: &str, bytes: &'a [u8]) -> Result<&'a [u8], TextError> {
    let (body, sum) = bytes
        .split_last_chunk::<CHECKSUM_BYTES>()
        .ok_or(TextError::Length { expected: CHECKSUM_BYTES, found: bytes.len() })?;
    if checksum(prefix, body) == *sum { Ok(body) } else { Err(TextError::Checksum) }
}

pub const CONTENT_ID_PREFIX: &str = "gc1";

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_text(CONTENT_ID_PREFIX, &self.0.0))
    }
}

impl FromStr for ContentId {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let bytes = from_text(CONTENT_ID_PREFIX, text)?;
        let address = <[u8; 32]>::try_from(bytes.as_slice())
            .map_err(|_| TextError::Length { expected: 32, found: bytes.len() })?;
        Ok(Self(Address(address)))
    }
}
