//! The `keys/` directory of a data directory, and the text form of what must survive a network's last member.
//!
//! | file | holds | on |
//! | --- | --- | --- |
//! | `node.seed` | the node's seed | every node |
//! | `authority.seed` | the authority's seed | the founder |
//! | `network.keys` | network id, network keys (the newest and the one before) | every node |
//! | `vault.key` | the vault key | members, once they were given it |
//! | `certificate` | the node's certificate (public) | every node |
//!
//! Each file:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `gabkeys1` |
//! | 8 | 1 | kind: 1 node seed, 2 authority seed, 3 network keys, 4 vault key, 5 certificate |
//! | 9 | 3 | reserved, zero |
//! | 12 | … | seeds and keys: 32 bytes; certificate: its encoding; network keys: network id 32, count 1, then per key generation 4, key 32, newest first |
//! | | 8 | checksum over all of the above |
//!
//! - Files have mode 0600 and are refused when anybody else may read or write them.
//! - A file is made under another name, synced, renamed, and its directory synced. The certificate is written last: a
//!   directory without one was never used, and founding or joining starts over in it.
//! - `gk1…`, the exported text, carries what a network cannot be without: network id, network keys, and (where held) the vault
//!   key and the authority's seed. It carries no node's seed: two nodes of one identity would be a fault. A checksum
//!   guards against mistakes in copying. Keep it as you would keep the files themselves: it opens everything.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::{Zeroize, Zeroizing};

use super::identity::{
    CheckedCertificate, Class, IdentityError, InviteTerms, make_certificate, make_invite, verify_certificate_bytes,
};
use super::keys::{Authority, InviteSeed, NetworkKey, NodeKeys, NodeSeed, VaultKey};
use crate::format::id::{CHECKSUM_BYTES, TextError, checksum, from_text, to_text, without_checksum};
use crate::format::ticket::Ticket;
use crate::format::{Malformed, NetworkId, Reader, Writer};
use crate::limits::{KEY_FILE_BYTES_MAX, NETWORK_KEYS_MAX};

pub const KEYS_DIRECTORY: &str = "keys";
pub const EXPORT_PREFIX: &str = "gk1";
const EXPORT_VERSION: u8 = 1;

const MAGIC: [u8; 8] = *b"gabkeys1";
const HEAD_BYTES: usize = 12;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Kind {
    NodeSeed = 1,
    AuthoritySeed = 2,
    NetworkKeys = 3,
    VaultKey = 4,
    Certificate = 5,
}

impl Kind {
    fn file_name(self) -> &'static str {
        match self {
            Self::NodeSeed => "node.seed",
            Self::AuthoritySeed => "authority.seed",
            Self::NetworkKeys => "network.keys",
            Self::VaultKey => "vault.key",
            Self::Certificate => "certificate",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} may be read or written by others (mode {mode:03o}): run `chmod 600 {}`", .path.display(), .path.display())]
    TooWide { path: PathBuf, mode: u32 },
    #[error("{} is damaged ({what}): restore it from a copy of the data directory", .path.display())]
    Damaged { path: PathBuf, what: &'static str },
    #[error("{} is missing although the node has a certificate: restore it from a copy of the data directory", .path.display())]
    Missing { path: PathBuf },
    #[error("{} already belongs to a network: use another data directory", .path.display())]
    Taken { path: PathBuf },
    #[error("the seed and the certificate in {} are of two nodes: restore both from one copy", .path.display())]
    TwoNodes { path: PathBuf },
    #[error("this node does not hold the authority of its network: run this on the node that founded it")]
    NotTheFounder,
    #[error("this node is a storage node: it must never hold the vault key")]
    NotAMember,
    #[error("the exported keys hold no {what}: {way_out}")]
    NotExported { what: &'static str, way_out: &'static str },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// All that a node holds, loaded and checked.
#[derive(Clone)]
pub struct KeyRing {
    directory: PathBuf,
    node: NodeKeys,
    authority: Option<Authority>,
    network: NetworkId,
    /// Newest first, at least one.
    network_keys: Vec<NetworkKey>,
    vault: Option<VaultKey>,
    certificate: CheckedCertificate,
}

impl KeyRing {
    /// Makes a new network in `data_directory`, with this node as its founder and first member.
    pub fn found(data_directory: &Path, zone: &str) -> Result<Self, KeyFileError> {
        let exported = ExportedKeys::new_network();
        Self::recover(data_directory, &exported, zone)
    }

    /// Makes a new node of the network that a ticket invites to. `zone` counts only where the ticket leaves it open.
    pub fn join(data_directory: &Path, ticket: &Ticket, zone: &str) -> Result<Self, KeyFileError> {
        let invite_seed = InviteSeed::from_bytes(ticket.invite_seed);
        let seed = NodeSeed::random();
        let certificate = make_certificate(&ticket.invite, &invite_seed, &ticket.network, &seed.keys(), zone)?.encode();
        let keys = [NetworkKey::new(ticket.network_key_generation, ticket.network_key)];
        Self::settle(data_directory, &seed, &ticket.network, &keys, None, None, &certificate)
    }

    /// Makes a new member of the network whose keys were exported by its founder.
    pub fn recover(data_directory: &Path, exported: &ExportedKeys, zone: &str) -> Result<Self, KeyFileError> {
        let authority = exported.authority.as_ref().ok_or(KeyFileError::NotExported {
            what: "authority",
            way_out: "export them on the node that founded the network",
        })?;
        let terms = InviteTerms { class: Class::Member, zone: String::new(), capacity_limit: 0, expiry_s: 0 };
        let invite_seed = InviteSeed::random();
        let invite = make_invite(authority, &invite_seed, &terms)?;
        let (seed, network) = (NodeSeed::random(), authority.network_id());
        let certificate = make_certificate(&invite, &invite_seed, &network, &seed.keys(), zone)?.encode();
        let (keys, vault) = (&exported.network_keys, exported.vault.as_ref());
        Self::settle(data_directory, &seed, &network, keys, Some(authority), vault, &certificate)
    }

    fn settle(
        data_directory: &Path,
        seed: &NodeSeed,
        network: &NetworkId,
        network_keys: &[NetworkKey],
        authority: Option<&Authority>,
        vault: Option<&VaultKey>,
        certificate: &[u8],
    ) -> Result<Self, KeyFileError> {
        // Before a file exists: a ticket that was edited leaves nothing behind.
        verify_certificate_bytes(certificate, network)?;
        let directory = make_directory(data_directory)?;
        if directory.join(Kind::Certificate.file_name()).exists() {
            return Err(KeyFileError::Taken { path: directory });
        }
        write_file(&directory, Kind::NodeSeed, seed.as_bytes())?;
        write_file(&directory, Kind::NetworkKeys, &encode_network_keys(network, network_keys))?;
        if let Some(authority) = authority {
            write_file(&directory, Kind::AuthoritySeed, authority.as_bytes())?;
        }
        if let Some(vault) = vault {
            write_file(&directory, Kind::VaultKey, vault.as_bytes())?;
        }
        write_file(&directory, Kind::Certificate, certificate)?;
        Self::load(data_directory)?.ok_or(KeyFileError::Missing { path: directory.join(Kind::Certificate.file_name()) })
    }

    /// The keys of a node, or `None` where there is no node yet.
    pub fn load(data_directory: &Path) -> Result<Option<Self>, KeyFileError> {
        let directory = data_directory.join(KEYS_DIRECTORY);
        let Some(certificate) = read_file(&directory, Kind::Certificate)? else { return Ok(None) };
        let node = NodeSeed::from_bytes(read_key(&directory, Kind::NodeSeed)?).keys();
        let encoded = require(&directory, Kind::NetworkKeys)?;
        let (network, network_keys) = decode_network_keys(&encoded).map_err(damaged(&directory, Kind::NetworkKeys))?;
        let certificate = verify_certificate_bytes(&certificate, &network)?;
        if certificate.node_id != node.node_id() || certificate.handshake_key != *node.handshake_public() {
            return Err(KeyFileError::TwoNodes { path: directory });
        }
        let authority = read_optional_key(&directory, Kind::AuthoritySeed)?.map(|seed| Authority::from_bytes(*seed));
        if authority.as_ref().is_some_and(|authority| authority.network_id() != network) {
            return Err(damaged(&directory, Kind::AuthoritySeed)(Malformed::new("authority of another network")));
        }
        let vault = read_optional_key(&directory, Kind::VaultKey)?.map(|key| VaultKey::from_bytes(*key));
        Ok(Some(Self { directory, node, authority, network, network_keys, vault, certificate }))
    }

    pub fn node(&self) -> &NodeKeys {
        &self.node
    }

    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// Newest first, at least one.
    pub fn network_keys(&self) -> &[NetworkKey] {
        &self.network_keys
    }

    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    pub fn vault(&self) -> Option<&VaultKey> {
        self.vault.as_ref()
    }

    pub fn certificate(&self) -> &CheckedCertificate {
        &self.certificate
    }

    /// Keeps the vault key that a member was given in-session.
    pub fn store_vault_key(&mut self, key: VaultKey) -> Result<(), KeyFileError> {
        if self.certificate.class != Class::Member {
            return Err(KeyFileError::NotAMember);
        }
        write_file(&self.directory, Kind::VaultKey, key.as_bytes())?;
        self.vault = Some(key);
        Ok(())
    }

    /// Keeps a network key of a newer generation, and the one before it. An older or known one changes nothing.
    pub fn store_network_key(&mut self, key: NetworkKey) -> Result<(), KeyFileError> {
        if self.network_keys.first().is_some_and(|newest| newest.generation() >= key.generation()) {
            return Ok(());
        }
        let keys: Vec<_> =
            std::iter::once(key).chain(self.network_keys.iter().cloned()).take(NETWORK_KEYS_MAX).collect();
        write_file(&self.directory, Kind::NetworkKeys, &encode_network_keys(&self.network, &keys))?;
        self.network_keys = keys;
        Ok(())
    }

    /// A ticket into this network, with a new invite.
    pub fn mint_ticket(&self, terms: &InviteTerms, addresses: Vec<String>) -> Result<Ticket, KeyFileError> {
        let authority = self.authority.as_ref().ok_or(KeyFileError::NotTheFounder)?;
        let Some(key) = self.network_keys.first() else { unreachable!("a key ring holds a network key") };
        let seed = InviteSeed::random();
        Ok(Ticket {
            network: self.network,
            network_key_generation: key.generation(),
            network_key: *key.as_bytes(),
            invite_seed: *seed.as_bytes(),
            invite: make_invite(authority, &seed, terms)?,
            addresses,
        })
    }

    pub fn export(&self) -> ExportedKeys {
        ExportedKeys {
            network: self.network,
            network_keys: self.network_keys.clone(),
            vault: self.vault.clone(),
            authority: self.authority.clone(),
        }
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRing")
            .field("node", &self.node.node_id())
            .field("network", &self.network)
            .field("class", &self.certificate.class)
            .finish_non_exhaustive()
    }
}

/// What `gk1…` carries:
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 1 | format version |
/// | 1 | 1 | flags: bit 0 vault key, bit 1 authority |
/// | 2 | … | network keys, as in their file |
/// | | 32 each | vault key, authority's seed, as the flags say |
/// | | 8 | checksum |
#[derive(Clone, Debug)]
pub struct ExportedKeys {
    pub network: NetworkId,
    /// Newest first.
    pub network_keys: Vec<NetworkKey>,
    pub vault: Option<VaultKey>,
    pub authority: Option<Authority>,
}

impl ExportedKeys {
    fn new_network() -> Self {
        let authority = Authority::random();
        Self {
            network: authority.network_id(),
            network_keys: vec![NetworkKey::random(1)],
            vault: Some(VaultKey::random()),
            authority: Some(authority),
        }
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let flags = u8::from(self.vault.is_some()) | u8::from(self.authority.is_some()) << 1;
        let mut writer = Writer::with_capacity(512);
        writer.u8(EXPORT_VERSION).u8(flags).bytes(&encode_network_keys(&self.network, &self.network_keys));
        if let Some(vault) = &self.vault {
            writer.bytes(vault.as_bytes());
        }
        if let Some(authority) = &self.authority {
            writer.bytes(authority.as_bytes());
        }
        Zeroizing::new(writer.finish())
    }

    fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        reader.u8("version")?;
        let flags = reader.u8("flags")?;
        if flags > 0b11 {
            return Err(Malformed::new("flags"));
        }
        let (network, network_keys) = read_network_keys(&mut reader)?;
        let vault = (flags & 1 != 0).then(|| reader.take::<[u8; 32]>("vault key")).transpose()?;
        let authority = (flags & 2 != 0).then(|| reader.take::<[u8; 32]>("authority")).transpose()?;
        reader.end("bytes after the exported keys")?;
        let authority = authority.map(|seed| Authority::from_bytes(*seed));
        if authority.as_ref().is_some_and(|authority| authority.network_id() != network) {
            return Err(Malformed::new("authority of another network"));
        }
        Ok(Self { network, network_keys, vault: vault.map(|key| VaultKey::from_bytes(*key)), authority })
    }
}

/// The whole text, secrets included: for safe keeping, never for a log.
impl std::fmt::Display for ExportedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut bytes = self.encode();
        let sum = checksum(EXPORT_PREFIX, &bytes);
        bytes.extend_from_slice(&sum);
        f.write_str(&Zeroizing::new(to_text(EXPORT_PREFIX, &bytes)))
    }
}

impl FromStr for ExportedKeys {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let bytes = Zeroizing::new(from_text(EXPORT_PREFIX, text)?);
        let body = without_checksum(EXPORT_PREFIX, &bytes)?;
        if let Some(&version) = body.first().filter(|version| **version != EXPORT_VERSION) {
            return Err(TextError::Version { found: version.into(), known: EXPORT_VERSION.into() });
        }
        Self::decode(body).map_err(|malformed| TextError::Field(malformed.what))
    }
}

fn encode_network_keys(network: &NetworkId, keys: &[NetworkKey]) -> Zeroizing<Vec<u8>> {
    let mut writer = Writer::with_capacity(256);
    writer.put(network).u8(keys.len() as u8);
    for key in keys {
        writer.u32(key.generation()).bytes(key.as_bytes());
    }
    Zeroizing::new(writer.finish())
}

fn decode_network_keys(bytes: &[u8]) -> Result<(NetworkId, Vec<NetworkKey>), Malformed> {
    let mut reader = Reader::new(bytes);
    let keys = read_network_keys(&mut reader)?;
    reader.end("bytes after the network keys")?;
    Ok(keys)
}

fn read_network_keys(reader: &mut Reader<'_>) -> Result<(NetworkId, Vec<NetworkKey>), Malformed> {
    let network = *reader.take::<NetworkId>("network id")?;
    let count = usize::from(reader.u8("number of network keys")?);
    if !(1..=NETWORK_KEYS_MAX).contains(&count) {
        return Err(Malformed::new("number of network keys"));
    }
    let keys = (0..count)
        .map(|_| Ok(NetworkKey::new(reader.u32("generation")?, *reader.take::<[u8; 32]>("network key")?)))
        .collect::<Result<Vec<_>, Malformed>>()?;
    if !keys.is_sorted_by(|a, b| a.generation() > b.generation()) {
        return Err(Malformed::new("order of network keys"));
    }
    Ok((network, keys))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> KeyFileError + use<> {
    let path = path.to_owned();
    move |source| KeyFileError::Io { path, source }
}

fn damaged(directory: &Path, kind: Kind) -> impl FnOnce(Malformed) -> KeyFileError + use<> {
    let path = directory.join(kind.file_name());
    move |malformed| KeyFileError::Damaged { path, what: malformed.what }
}

fn make_directory(data_directory: &Path) -> Result<PathBuf, KeyFileError> {
    let directory = data_directory.join(KEYS_DIRECTORY);
    DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(io_error(&directory))?;
    sync_directory(data_directory)?;
    Ok(directory)
}

fn sync_directory(path: &Path) -> Result<(), KeyFileError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io_error(path))
}

fn write_file(directory: &Path, kind: Kind, content: &[u8]) -> Result<(), KeyFileError> {
    let path = directory.join(kind.file_name());
    let new = path.with_extension("new");
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX as usize));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[kind as u8, 0, 0, 0]);
    bytes.extend_from_slice(content);
    let sum = checksum(kind.file_name(), &bytes);
    bytes.extend_from_slice(&sum);
    // Left behind by a crash: whatever its mode, it is not reused.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&new)(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(io_error(&new))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io_error(&new))?;
    std::fs::rename(&new, &path).map_err(io_error(&path))?;
    sync_directory(directory)
}

/// The content of a key file, or `None` where there is none.
fn read_file(directory: &Path, kind: Kind) -> Result<Option<Zeroizing<Vec<u8>>>, KeyFileError> {
    let path = directory.join(kind.file_name());
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path)(error)),
    };
    // Of the open file: nobody can put another in its place between check and reading.
    let found = file.metadata().map_err(io_error(&path))?;
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::TooWide { path, mode });
    }
    if found.len() > KEY_FILE_BYTES_MAX {
        return Err(KeyFileError::Damaged { path, what: "too long" });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX as usize));
    (&mut file).take(KEY_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(io_error(&path))?;
    content_of(kind, &bytes).map(Some).map_err(|what| KeyFileError::Damaged { path, what })
}

fn content_of(kind: Kind, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    debug_assert!(HEAD_BYTES + CHECKSUM_BYTES < KEY_FILE_BYTES_MAX as usize);
    let body = without_checksum(kind.file_name(), bytes).map_err(|_| "its checksum does not match")?;
    let (head, content) = body.split_at_checked(HEAD_BYTES).ok_or("too short")?;
    let expected = [&MAGIC[..], &[kind as u8, 0, 0, 0]].concat();
    if head == expected { Ok(Zeroizing::new(content.to_vec())) } else { Err("not a key file of this kind and version") }
}

fn require(directory: &Path, kind: Kind) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    read_file(directory, kind)?.ok_or_else(|| KeyFileError::Missing { path: directory.join(kind.file_name()) })
}

fn read_optional_key(directory: &Path, kind: Kind) -> Result<Option<Zeroizing<[u8; 32]>>, KeyFileError> {
    let Some(content) = read_file(directory, kind)? else { return Ok(None) };
    let key = <[u8; 32]>::try_from(content.as_slice())
        .map_err(|_| damaged(directory, kind)(Malformed::new("a key has 32 bytes")))?;
    Ok(Some(Zeroizing::new(key)))
}

fn read_key(directory: &Path, kind: Kind) -> Result<[u8; 32], KeyFileError> {
    let mut key = read_optional_key(directory, kind)?
        .ok_or_else(|| KeyFileError::Missing { path: directory.join(kind.file_name()) })?;
    let copy = *key;
    key.zeroize();
    Ok(copy)
}

#[cfg(test)]
mod tests;
