//! Names: what a user calls a file, and the records that carry it between nodes.
//!
//! Name record, the payload of a store record of kind *name* and of frames about names. Everything that a node without
//! the vault key may know stands in the head; the rest is sealed with XChaCha20-Poly1305 under the vault key, the head
//! (and the network id) being associated data, so that no holder can move, date or flag a record differently:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 2 | format version |
//! | 2 | 1 | kind: 1 name |
//! | 3 | 1 | flags: bit 0 tombstone |
//! | 4 | 4 | generation of the vault key |
//! | 8 | 16 | vault id (zero so far) |
//! | 24 | 32 | bucket id |
//! | 56 | 32 | name id |
//! | 88 | 8 | clock |
//! | 96 | 16 | version id |
//! | 112 | 24 | nonce |
//! | 136 | 4 | bytes sealed, tag included |
//! | 140 | … | sealed [`NameBody`] |
//!
//! Name body (plaintext): [`FileHead`] 73 (root 32, root key 32, length 8, depth 1), metadata, then the bucket and the key,
//! each behind a u16 length. A tombstone's root, key, depth and length are zero.
//!
//! Metadata: mtime in seconds 8 (signed), its nanoseconds 4, mode 4, flags 1 (bit 0 link target, bit 1 content type), then
//! each optional string behind a u16 length.
//!
//! Capsule (plaintext; sealed beside the root's reference, so that a member can read by content id alone): [`FileHead`]
//! with a zero root (the root is associated data), metadata. Sealed: format version 2, key generation 4, nonce 24, bytes.
//!
//! Two records of one name: the one with the later (clock, version) wins.

use std::fmt;
use std::str::FromStr;

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::{Zeroize, Zeroizing};

use super::cursor::{Malformed, Reader, Writer};
use super::id::{Address, BucketId, NameId, Stamp, VaultId, VersionId};
use super::tree::depth_of;
use crate::limits::{
    BUCKET_BYTES_MAX, CONTENT_TYPE_BYTES_MAX, KEY_BYTES_MAX, NAME_RECORD_BYTES_MAX, SYMLINK_BYTES_MAX,
};

pub const NAME_VERSION: u16 = 1;
pub const NAME_KIND: u8 = 1;
pub const NAME_FLAG_TOMBSTONE: u8 = 1 << 0;
/// A Poly1305 tag.
pub const SEAL_TAG_BYTES: usize = 16;
pub const SEAL_NONCE_BYTES: usize = 24;

/// The bucket of a name that is written without one.
pub const BUCKET_DEFAULT: &str = "main";

/// A bucket and a key, checked: `bucket/key`, or `key` alone for the bucket `main`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Name {
    bucket: String,
    key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the bucket of `{name}` is empty: write `bucket/key`, or leave the slash out for the bucket `main`")]
    BucketEmpty { name: String },
    #[error("the bucket `{bucket}` has {len} bytes: at most {BUCKET_BYTES_MAX} are allowed")]
    BucketLength { bucket: String, len: usize },
    #[error(
        "the bucket `{bucket}` contains `{found}`: only a-z, 0-9, `.`, `-` and `_` are allowed, \
         and the first must be a letter or digit"
    )]
    BucketCharacter { bucket: String, found: char },
    #[error("the key of `{name}` is empty: write what the file is to be called after `{name}`")]
    KeyEmpty { name: String },
    #[error("the key has {len} bytes: at most {KEY_BYTES_MAX} are allowed; shorten the name")]
    KeyLength { len: usize },
    #[error("the key contains a NUL byte: remove it")]
    KeyNul,
}

impl Name {
    pub fn new(bucket: &str, key: &str) -> Result<Self, NameError> {
        check_bucket(bucket)?;
        check_key(bucket, key)?;
        Ok(Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// `bucket/key`, split at the first slash; without a slash the bucket is `main`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some(("", _)) => Err(NameError::BucketEmpty { name: text.to_owned() }),
            Some((bucket, key)) => Self::new(bucket, key),
            None => Self::new(BUCKET_DEFAULT, text),
        }
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket, self.key)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

/// 1..=63 of a-z, 0-9, `.`, `-`, `_`, the first a letter or digit.
pub fn check_bucket(bucket: &str) -> Result<(), NameError> {
    let Some(first) = bucket.chars().next() else {
        return Err(NameError::BucketEmpty { name: bucket.to_owned() });
    };
    if bucket.len() > BUCKET_BYTES_MAX {
        return Err(NameError::BucketLength { bucket: bucket.to_owned(), len: bucket.len() });
    }
    let allowed = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(*c);
    let wrong = if ".-_".contains(first) { Some(first) } else { bucket.chars().find(|c| !allowed(c)) };
    match wrong {
        Some(found) => Err(NameError::BucketCharacter { bucket: bucket.to_owned(), found }),
        None => Ok(()),
    }
}

fn check_key(bucket: &str, key: &str) -> Result<(), NameError> {
    if key.is_empty() {
        return Err(NameError::KeyEmpty { name: format!("{bucket}/") });
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(NameError::KeyLength { len: key.len() });
    }
    if key.contains('\0') {
        return Err(NameError::KeyNul);
    }
    Ok(())
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct NameHead {
    format: U16,
    kind: u8,
    flags: u8,
    key_generation: U32,
    vault: VaultId,
    bucket: BucketId,
    name: NameId,
    clock: Stamp,
    version: VersionId,
    nonce: [u8; SEAL_NONCE_BYTES],
    sealed_bytes: U32,
}

const NAME_HEAD_BYTES: usize = size_of::<NameHead>();
const _: () = assert!(NAME_HEAD_BYTES == 140);
const _: () = assert!(
    NAME_HEAD_BYTES
        + size_of::<FileHead>()
        + size_of::<MetadataHead>()
        + (2 + SYMLINK_BYTES_MAX)
        + (2 + CONTENT_TYPE_BYTES_MAX)
        + (2 + BUCKET_BYTES_MAX)
        + (2 + KEY_BYTES_MAX)
        + SEAL_TAG_BYTES
        <= NAME_RECORD_BYTES_MAX
);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameRecord {
    pub tombstone: bool,
    pub vault: VaultId,
    pub key_generation: u32,
    pub bucket: BucketId,
    pub name: NameId,
    pub clock: Stamp,
    pub version: VersionId,
    pub nonce: [u8; SEAL_NONCE_BYTES],
    /// A [`NameBody`], sealed, its tag at the end.
    pub sealed: Vec<u8>,
}

impl NameRecord {
    /// What decides between two records of one name: the greater wins.
    pub fn order(&self) -> (Stamp, VersionId) {
        (self.clock, self.version)
    }

    pub fn wins_over(&self, other: &Self) -> bool {
        self.order() > other.order()
    }

    fn flags(&self) -> u8 {
        if self.tombstone { NAME_FLAG_TOMBSTONE } else { 0 }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(NAME_HEAD_BYTES + self.sealed.len());
        writer.put(&NameHead {
            format: NAME_VERSION.into(),
            kind: NAME_KIND,
            flags: self.flags(),
            key_generation: self.key_generation.into(),
            vault: self.vault,
            bucket: self.bucket,
            name: self.name,
            clock: self.clock,
            version: self.version,
            nonce: self.nonce,
            sealed_bytes: (self.sealed.len() as u32).into(),
        });
        writer.bytes(&self.sealed).finish()
    }

    /// Whose record this is; nothing is checked but that it is long enough.
    pub fn name_of(encoded: &[u8]) -> Option<NameId> {
        NameHead::ref_from_prefix(encoded).ok().map(|(head, _)| head.name)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > NAME_RECORD_BYTES_MAX {
            return Err(Malformed::new("length of a name record"));
        }
        let mut reader = Reader::new(bytes);
        let head = reader.take::<NameHead>("name record")?;
        if head.format.get() != NAME_VERSION {
            return Err(Malformed::new("name record's format version (update gabion)"));
        }
        if head.kind != NAME_KIND || head.flags & !NAME_FLAG_TOMBSTONE != 0 {
            return Err(Malformed::new("name record's kind or flags"));
        }
        let sealed = reader.bytes(head.sealed_bytes.get() as usize, "name record's sealed bytes")?;
        if sealed.len() < SEAL_TAG_BYTES {
            return Err(Malformed::new("name record's sealed bytes"));
        }
        reader.end("bytes after a name record")?;
        Ok(Self {
            tombstone: head.flags & NAME_FLAG_TOMBSTONE != 0,
            vault: head.vault,
            key_generation: head.key_generation.get(),
            bucket: head.bucket,
            name: head.name,
            clock: head.clock,
            version: head.version,
            nonce: head.nonce,
            sealed: sealed.to_vec(),
        })
    }

    /// What is bound to the sealed bytes: `format || kind || flags || network id || key generation || vault || bucket id ||
    /// name id || clock || version`.
    pub fn associated_data(&self, network: &super::id::NetworkId) -> Vec<u8> {
        Writer::with_capacity(160)
            .u16(NAME_VERSION)
            .u8(NAME_KIND)
            .u8(self.flags())
            .put(network)
            .u32(self.key_generation)
            .put(&self.vault)
            .put(&self.bucket)
            .put(&self.name)
            .put(&self.clock)
            .put(&self.version)
            .finish()
    }
}

/// What a file carries besides its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    pub mtime_s: i64,
    /// Below 1,000,000,000.
    pub mtime_ns: u32,
    /// Permission bits and file type as in `st_mode`; 0 = unknown.
    pub mode: u32,
    /// A symbolic link's target; such a file is empty.
    pub symlink_target: Option<Vec<u8>>,
    pub content_type: Option<String>,
}

const METADATA_FLAG_SYMLINK: u8 = 1 << 0;
const METADATA_FLAG_CONTENT_TYPE: u8 = 1 << 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MetadataHead {
    mtime_s: I64,
    mtime_ns: U32,
    mode: U32,
    flags: u8,
}

const _: () = assert!(size_of::<MetadataHead>() == 17);

impl Metadata {
    fn encoded_bytes(&self) -> usize {
        let target = self.symlink_target.as_ref().map_or(0, |target| 2 + target.len());
        let content_type = self.content_type.as_ref().map_or(0, |text| 2 + text.len());
        size_of::<MetadataHead>() + target + content_type
    }

    fn write(&self, writer: &mut Writer) {
        let symlink = if self.symlink_target.is_some() { METADATA_FLAG_SYMLINK } else { 0 };
        let content_type = if self.content_type.is_some() { METADATA_FLAG_CONTENT_TYPE } else { 0 };
        writer.put(&MetadataHead {
            mtime_s: self.mtime_s.into(),
            mtime_ns: self.mtime_ns.into(),
            mode: self.mode.into(),
            flags: symlink | content_type,
        });
        if let Some(target) = &self.symlink_target {
            writer.short_bytes(target);
        }
        if let Some(content_type) = &self.content_type {
            writer.short_bytes(content_type.as_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let head = reader.take::<MetadataHead>("metadata")?;
        if head.flags & !(METADATA_FLAG_SYMLINK | METADATA_FLAG_CONTENT_TYPE) != 0 {
            return Err(Malformed::new("metadata flags"));
        }
        let symlink_target = (head.flags & METADATA_FLAG_SYMLINK != 0)
            .then(|| reader.short_bytes("symbolic link's target").map(<[u8]>::to_vec))
            .transpose()?;
        let content_type = (head.flags & METADATA_FLAG_CONTENT_TYPE != 0)
            .then(|| reader.short_str("content type").map(str::to_owned))
            .transpose()?;
        let metadata = Self {
            mtime_s: head.mtime_s.get(),
            mtime_ns: head.mtime_ns.get(),
            mode: head.mode.get(),
            symlink_target,
            content_type,
        };
        metadata.check()?;
        Ok(metadata)
    }

    /// Within its limits: to be asked before sealing what a user handed in.
    pub fn check(&self) -> Result<(), Malformed> {
        if self.mtime_ns >= 1_000_000_000 {
            return Err(Malformed::new("nanoseconds of mtime"));
        }
        if self.symlink_target.as_ref().is_some_and(|target| target.len() > SYMLINK_BYTES_MAX || target.contains(&0)) {
            return Err(Malformed::new("symbolic link's target"));
        }
        if self.content_type.as_ref().is_some_and(|text| text.len() > CONTENT_TYPE_BYTES_MAX) {
            return Err(Malformed::new("length of the content type"));
        }
        Ok(())
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FileHead {
    pub root: Address,
    pub root_key: [u8; 32],
    pub length: U64,
    pub depth: u8,
}

const _: () = assert!(size_of::<FileHead>() == 73);

/// What a name record seals.
#[derive(Clone, PartialEq, Eq)]
pub struct NameBody {
    pub bucket: String,
    pub key: String,
    pub root: Address,
    /// Secret.
    pub root_key: [u8; 32],
    pub depth: u8,
    pub length: u64,
    pub metadata: Metadata,
}

impl NameBody {
    /// What a tombstone seals: the name alone.
    pub fn tombstone(name: &Name) -> Self {
        Self {
            bucket: name.bucket.clone(),
            key: name.key.clone(),
            root: Address::ZERO,
            root_key: [0; 32],
            depth: 0,
            length: 0,
            metadata: Metadata::default(),
        }
    }

    fn encoded_bytes(&self) -> usize {
        size_of::<FileHead>() + self.metadata.encoded_bytes() + 2 + self.bucket.len() + 2 + self.key.len()
    }

    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Exactly as long: what is behind it would be wiped, too.
        let mut writer = Writer::with_capacity(self.encoded_bytes());
        write_file_head(&mut writer, &self.root, &self.root_key, self.length, self.depth);
        self.metadata.write(&mut writer);
        writer.short_bytes(self.bucket.as_bytes()).short_bytes(self.key.as_bytes());
        Zeroizing::new(writer.finish())
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let head = read_file_head(&mut reader)?;
        if (head.length.get() == 0) != head.root.is_zero() {
            return Err(Malformed::new("root of a file of this length"));
        }
        let metadata = Metadata::read(&mut reader)?;
        let bucket = reader.short_str("bucket")?.to_owned();
        let key = reader.short_str("key")?.to_owned();
        reader.end("bytes after a name body")?;
        Name::new(&bucket, &key).map_err(|_| Malformed::new("bucket or key"))?;
        let (root, root_key, depth, length) = (head.root, head.root_key, head.depth, head.length.get());
        Ok(Self { bucket, key, root, root_key, depth, length, metadata })
    }
}

impl Drop for NameBody {
    fn drop(&mut self) {
        self.root_key.zeroize();
    }
}

impl fmt::Debug for NameBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NameBody")
            .field("bucket", &self.bucket)
            .field("key", &self.key)
            .field("root", &self.root)
            .field("depth", &self.depth)
            .field("length", &self.length)
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

/// What lies sealed beside the root's reference: all that reading a file takes, but its name.
#[derive(Clone, PartialEq, Eq)]
pub struct Capsule {
    /// Secret.
    pub root_key: [u8; 32],
    pub depth: u8,
    pub length: u64,
    pub metadata: Metadata,
}

impl Capsule {
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut writer = Writer::with_capacity(size_of::<FileHead>() + self.metadata.encoded_bytes());
        write_file_head(&mut writer, &Address::ZERO, &self.root_key, self.length, self.depth);
        self.metadata.write(&mut writer);
        Zeroizing::new(writer.finish())
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let head = read_file_head(&mut reader)?;
        if !head.root.is_zero() {
            return Err(Malformed::new("capsule's reserved bytes"));
        }
        let metadata = Metadata::read(&mut reader)?;
        reader.end("bytes after a capsule")?;
        Ok(Self { root_key: head.root_key, depth: head.depth, length: head.length.get(), metadata })
    }
}

impl Drop for Capsule {
    fn drop(&mut self) {
        self.root_key.zeroize();
    }
}

impl fmt::Debug for Capsule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capsule")
            .field("depth", &self.depth)
            .field("length", &self.length)
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

fn write_file_head(writer: &mut Writer, root: &Address, root_key: &[u8; 32], length: u64, depth: u8) {
    let mut head = FileHead { root: *root, root_key: *root_key, length: length.into(), depth };
    writer.put(&head);
    head.root_key.zeroize();
}

fn read_file_head<'a>(reader: &mut Reader<'a>) -> Result<&'a FileHead, Malformed> {
    let head = reader.take::<FileHead>("file head")?;
    if head.depth != depth_of(head.length.get()) {
        return Err(Malformed::new("depth of a file of this length"));
    }
    if head.length.get() == 0 && head.root_key != [0; 32] {
        return Err(Malformed::new("root key of an empty file"));
    }
    Ok(head)
}
