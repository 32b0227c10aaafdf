//! Everything signed: invites, node certificates, roles, layouts, deaths, evictions.
//!
//! Each encodes as a body followed by a 64-byte Ed25519 signature over `context || 0 || network id || body`; contexts and
//! checks live in `crypto`. The encoding is canonical: what decodes encodes to the very same bytes, so a signature can
//! be checked against the decoded value.
//!
//! A *short* is a u16 length followed by that many bytes; an *address* is `host:port` in a short.
//!
//! Invite certificate, signed by the authority:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 2 | format version |
//! | 2 | 1 | class: 1 member, 2 storage |
//! | 3 | 1 | reserved, zero |
//! | 4 | 32 | public half of the invite's key (the invite's id) |
//! | 36 | 8 | capacity limit in bytes for each node it certifies; 0 = none |
//! | 44 | 8 | expiry in Unix seconds; 0 = never |
//! | 52 | 2 + 0..=63 | short: zone; empty leaves it to the node |
//! | | 64 | signature |
//!
//! Node certificate, signed by the invite:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 2 | format version |
//! | 2 | 1 | class |
//! | 3 | 1 | reserved, zero |
//! | 4 | 32 | network id |
//! | 36 | 32 | node id |
//! | 68 | 32 | handshake key (X25519, public) |
//! | 100 | 16 | placement id |
//! | 116 | 8 | capacity limit in bytes; 0 = none |
//! | 124 | 2 + 0..=63 | short: zone |
//! | | 2 + n | short: the invite certificate, with its signature |
//! | | 64 | signature |
//!
//! Role, signed by its node:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 2 | format version |
//! | 2 | 1 | state: 1 joining, 2 active, 3 draining, 4 left |
//! | 3 | 1 | addresses, 0..=8 |
//! | 4 | 32 | node id |
//! | 36 | 16 | store incarnation |
//! | 52 | 8 | serial: a node's later role has the higher one |
//! | 60 | 8 | capacity in bytes |
//! | 68 | 4 | newest layout that the node has confirmed |
//! | 72 | 4 | newest layout whose partitions the node has synced |
//! | 76 | … | the addresses |
//! | | 64 | signature |
//!
//! Layout, signed by the authority:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 2 | format version |
//! | 2 | 1 | replicas, 1..=7 |
//! | 3 | 1 | voters, 0..=7 |
//! | 4 | 4 | number, from 1 |
//! | 8 | 4 | entries |
//! | 12 | 4 | reserved, zero |
//! | 16 | 32 each | voters' node ids |
//! | | 2 + n | short: settings, opaque (reserved: empty so far) |
//! | | … | per entry two shorts: node certificate, role; ascending by node id |
//! | | 64 | signature |
//!
//! Death, signed by the member whose certificate it carries:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 2 | format version |
//! | 2 | 2 | versions, 1..=1,024 |
//! | 4 | 4 | key generation |
//! | 8 | 16 each | version ids |
//! | | 2 + n | short: the signer's certificate |
//! | | 64 | signature |
//!
//! Eviction, signed by the authority; final:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 2 | format version |
//! | 2 | 1 | of: 1 node, 2 invite |
//! | 3 | 1 | reserved, zero |
//! | 4 | 4 | reserved, zero |
//! | 8 | 8 | made, Unix milliseconds |
//! | 16 | 32 | node id or invite id |
//! | 48 | 64 | signature |

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cursor::{Malformed, Reader, Writer};
use super::id::{Incarnation, NetworkId, NodeId, PlacementId, VersionId};
use crate::limits::{
    ADDRESS_BYTES_MAX, ADDRESSES_PER_NODE_MAX, CERTIFICATE_BYTES_MAX, DEATH_VERSIONS_MAX, LAYOUT_SETTINGS_BYTES_MAX,
    NODES_MAX, REPLICAS_MAX, VOTERS_MAX, ZONE_BYTES_MAX,
};

pub const CERTIFICATE_VERSION: u16 = 1;
pub const SIGNATURE_BYTES: usize = 64;

pub type Signature = [u8; SIGNATURE_BYTES];

const UNSIGNED: Signature = [0; SIGNATURE_BYTES];

/// What a node may be asked for: a member holds the vault key, a storage node does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    Member = 1,
    Storage = 2,
}

impl Class {
    pub fn parse(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Member),
            2 => Some(Self::Storage),
            _ => None,
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Member => "member",
            Self::Storage => "storage",
        })
    }
}

/// A zone's name: letters, digits, `.`, `-`, `_`, at most 63 bytes; empty where the node may choose.
pub fn is_zone(zone: &str) -> bool {
    zone.len() <= ZONE_BYTES_MAX && zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

/// The shape of `host:port`: no white space, a host, a port from 1 to 65,535. Nothing is resolved.
pub fn is_address(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    address.len() <= ADDRESS_BYTES_MAX
        && !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_graphic())
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

pub(super) fn read_addresses(reader: &mut Reader<'_>, count: u8) -> Result<Vec<String>, Malformed> {
    if usize::from(count) > ADDRESSES_PER_NODE_MAX {
        return Err(Malformed::new("number of addresses"));
    }
    (0..count)
        .map(|_| {
            let address = reader.short_str("address")?;
            if is_address(address) { Ok(address.to_owned()) } else { Err(Malformed::new("address")) }
        })
        .collect()
}

pub(super) fn write_addresses(writer: &mut Writer, addresses: &[String]) {
    for address in addresses {
        writer.short_bytes(address.as_bytes());
    }
}

/// The number of addresses as it stands in a head; more than allowed is the caller's mistake.
pub(super) fn address_count(addresses: &[String]) -> u8 {
    assert!(addresses.len() <= ADDRESSES_PER_NODE_MAX, "more than {ADDRESSES_PER_NODE_MAX} addresses");
    addresses.len() as u8
}

fn read_zone(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let zone = reader.short_str("zone")?;
    if is_zone(zone) { Ok(zone.to_owned()) } else { Err(Malformed::new("zone")) }
}

fn read_class(byte: u8) -> Result<Class, Malformed> {
    Class::parse(byte).ok_or(Malformed::new("class"))
}

fn check_version(version: U16) -> Result<(), Malformed> {
    if version.get() == CERTIFICATE_VERSION { Ok(()) } else { Err(Malformed::new("format version (update gabion)")) }
}

fn read_signature(reader: &mut Reader<'_>) -> Result<Signature, Malformed> {
    reader.take::<Signature>("signature").copied()
}

fn with_signature(mut body: Vec<u8>, signature: &Signature) -> Vec<u8> {
    body.extend_from_slice(signature);
    body
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct InviteHead {
    version: U16,
    class: u8,
    reserved: u8,
    public: [u8; 32],
    capacity_limit: U64,
    expiry_s: U64,
}

const _: () = assert!(size_of::<InviteHead>() == 52);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InviteCertificate {
    pub class: Class,
    /// Empty leaves the zone to the node.
    pub zone: String,
    /// For each node that it certifies; 0 = none.
    pub capacity_limit: u64,
    /// Unix seconds after which no node is admitted with it; 0 = never.
    pub expiry_s: u64,
    /// The public half of the invite's key, its id.
    pub public: [u8; 32],
    pub signature: Signature,
}

impl InviteCertificate {
    /// Whether somebody may still be admitted by it.
    pub fn admits(&self, now_s: u64) -> bool {
        self.expiry_s == 0 || now_s <= self.expiry_s
    }

    pub fn unsigned(class: Class, zone: &str, capacity_limit: u64, expiry_s: u64, public: [u8; 32]) -> Self {
        Self { class, zone: zone.to_owned(), capacity_limit, expiry_s, public, signature: UNSIGNED }
    }

    pub fn body(&self) -> Vec<u8> {
        Writer::new()
            .put(&InviteHead {
                version: CERTIFICATE_VERSION.into(),
                class: self.class as u8,
                reserved: 0,
                public: self.public,
                capacity_limit: self.capacity_limit.into(),
                expiry_s: self.expiry_s.into(),
            })
            .short_bytes(self.zone.as_bytes())
            .finish()
    }

    pub fn encode(&self) -> Vec<u8> {
        with_signature(self.body(), &self.signature)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let head = reader.take::<InviteHead>("invite certificate")?;
        check_version(head.version)?;
        if head.reserved != 0 {
            return Err(Malformed::new("invite certificate's reserved byte"));
        }
        let invite = Self {
            class: read_class(head.class)?,
            zone: read_zone(&mut reader)?,
            capacity_limit: head.capacity_limit.get(),
            expiry_s: head.expiry_s.get(),
            public: head.public,
            signature: read_signature(&mut reader)?,
        };
        reader.end("bytes after an invite certificate")?;
        Ok(invite)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct NodeHead {
    version: U16,
    class: u8,
    reserved: u8,
    network: NetworkId,
    node: NodeId,
    handshake_key: [u8; 32],
    placement: PlacementId,
    capacity_limit: U64,
}

const _: () = assert!(size_of::<NodeHead>() == 124);
const _: () = assert!(
    size_of::<NodeHead>()
        + (2 + ZONE_BYTES_MAX)
        + (2 + size_of::<InviteHead>() + 2 + ZONE_BYTES_MAX + SIGNATURE_BYTES)
        + SIGNATURE_BYTES
        <= CERTIFICATE_BYTES_MAX
);

/// What a node says it is. Nothing here is checked: `crypto::identity` turns it into a checked certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeCertificate {
    pub class: Class,
    pub network: NetworkId,
    pub node: NodeId,
    pub handshake_key: [u8; 32],
    pub placement: PlacementId,
    /// 0 = none.
    pub capacity_limit: u64,
    pub zone: String,
    pub invite: InviteCertificate,
    pub signature: Signature,
}

impl NodeCertificate {
    pub fn body(&self) -> Vec<u8> {
        Writer::new()
            .put(&NodeHead {
                version: CERTIFICATE_VERSION.into(),
                class: self.class as u8,
                reserved: 0,
                network: self.network,
                node: self.node,
                handshake_key: self.handshake_key,
                placement: self.placement,
                capacity_limit: self.capacity_limit.into(),
            })
            .short_bytes(self.zone.as_bytes())
            .short_bytes(&self.invite.encode())
            .finish()
    }

    pub fn encode(&self) -> Vec<u8> {
        with_signature(self.body(), &self.signature)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let head = reader.take::<NodeHead>("node certificate")?;
        check_version(head.version)?;
        if head.reserved != 0 {
            return Err(Malformed::new("node certificate's reserved byte"));
        }
        let certificate = Self {
            class: read_class(head.class)?,
            network: head.network,
            node: head.node,
            handshake_key: head.handshake_key,
            placement: head.placement,
            capacity_limit: head.capacity_limit.get(),
            zone: read_zone(&mut reader)?,
            invite: InviteCertificate::decode(reader.short_bytes("invite certificate")?)?,
            signature: read_signature(&mut reader)?,
        };
        reader.end("bytes after a node certificate")?;
        Ok(certificate)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum RoleState {
    /// Has no data to answer from yet: in no quorum.
    Joining = 1,
    Active = 2,
    /// Asks to be relieved of its partitions.
    Draining = 3,
    /// Has gone for good.
    Left = 4,
}

impl RoleState {
    pub fn parse(byte: u8) -> Option<Self> {
        [Self::Joining, Self::Active, Self::Draining, Self::Left].into_iter().find(|state| *state as u8 == byte)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RoleHead {
    version: U16,
    state: u8,
    addresses: u8,
    node: NodeId,
    incarnation: Incarnation,
    serial: U64,
    capacity_bytes: U64,
    layout_confirmed: U32,
    layout_synced: U32,
}

const _: () = assert!(size_of::<RoleHead>() == 76);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Role {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub state: RoleState,
    /// A node's later role has the higher serial.
    pub serial: u64,
    pub capacity_bytes: u64,
    /// Newest layout that the node has confirmed.
    pub layout_confirmed: u32,
    /// Newest layout whose partitions the node has synced.
    pub layout_synced: u32,
    /// `host:port`, best first.
    pub addresses: Vec<String>,
    pub signature: Signature,
}

impl Role {
    pub fn body(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.put(&RoleHead {
            version: CERTIFICATE_VERSION.into(),
            state: self.state as u8,
            addresses: address_count(&self.addresses),
            node: self.node,
            incarnation: self.incarnation,
            serial: self.serial.into(),
            capacity_bytes: self.capacity_bytes.into(),
            layout_confirmed: self.layout_confirmed.into(),
            layout_synced: self.layout_synced.into(),
        });
        write_addresses(&mut writer, &self.addresses);
        writer.finish()
    }

    pub fn encode(&self) -> Vec<u8> {
        with_signature(self.body(), &self.signature)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let head = reader.take::<RoleHead>("role")?;
        check_version(head.version)?;
        let role = Self {
            node: head.node,
            incarnation: head.incarnation,
            state: RoleState::parse(head.state).ok_or(Malformed::new("role state"))?,
            serial: head.serial.get(),
            capacity_bytes: head.capacity_bytes.get(),
            layout_confirmed: head.layout_confirmed.get(),
            layout_synced: head.layout_synced.get(),
            addresses: read_addresses(&mut reader, head.addresses)?,
            signature: read_signature(&mut reader)?,
        };
        reader.end("bytes after a role")?;
        Ok(role)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LayoutHead {
    version: U16,
    replicas: u8,
    voters: u8,
    number: U32,
    entries: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<LayoutHead>() == 16);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayoutEntry {
    pub certificate: NodeCertificate,
    pub role: Role,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// From 1.
    pub number: u32,
    pub replicas: u8,
    pub voters: Vec<NodeId>,
    /// Opaque here and signed; empty so far.
    pub settings: Vec<u8>,
    /// Ascending by node id, each node once.
    pub entries: Vec<LayoutEntry>,
    pub signature: Signature,
}

impl Layout {
    pub fn body(&self) -> Vec<u8> {
        assert!(self.voters.len() <= VOTERS_MAX && self.entries.len() <= NODES_MAX, "layout beyond its limits");
        let mut writer = Writer::new();
        writer.put(&LayoutHead {
            version: CERTIFICATE_VERSION.into(),
            replicas: self.replicas,
            voters: self.voters.len() as u8,
            number: self.number.into(),
            entries: (self.entries.len() as u32).into(),
            reserved: U32::ZERO,
        });
        for voter in &self.voters {
            writer.put(voter);
        }
        writer.short_bytes(&self.settings);
        for entry in &self.entries {
            writer.short_bytes(&entry.certificate.encode()).short_bytes(&entry.role.encode());
        }
        writer.finish()
    }

    pub fn encode(&self) -> Vec<u8> {
        with_signature(self.body(), &self.signature)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let head = reader.take::<LayoutHead>("layout")?;
        check_version(head.version)?;
        check_layout_head(head)?;
        let voters =
            (0..head.voters).map(|_| reader.take::<NodeId>("voter").copied()).collect::<Result<Vec<_>, _>>()?;
        let settings = reader.short_bytes("layout settings")?.to_vec();
        if settings.len() > LAYOUT_SETTINGS_BYTES_MAX {
            return Err(Malformed::new("length of layout settings"));
        }
        // Grows with what is really there: the count is a stranger's word.
        let mut entries: Vec<LayoutEntry> = Vec::new();
        for _ in 0..head.entries.get() {
            let entry = read_entry(&mut reader)?;
            if entries.last().is_some_and(|last| last.role.node >= entry.role.node) {
                return Err(Malformed::new("order of layout entries"));
            }
            entries.push(entry);
        }
        let signature = read_signature(&mut reader)?;
        reader.end("bytes after a layout")?;
        Ok(Self { number: head.number.get(), replicas: head.replicas, voters, settings, entries, signature })
    }
}

fn check_layout_head(head: &LayoutHead) -> Result<(), Malformed> {
    if head.reserved.get() != 0 {
        return Err(Malformed::new("layout's reserved bytes"));
    }
    if head.number.get() == 0 {
        return Err(Malformed::new("layout number"));
    }
    if head.replicas == 0 || head.replicas > REPLICAS_MAX {
        return Err(Malformed::new("layout replicas"));
    }
    if usize::from(head.voters) > VOTERS_MAX {
        return Err(Malformed::new("number of voters"));
    }
    if head.entries.get() as usize > NODES_MAX {
        return Err(Malformed::new("number of layout entries"));
    }
    Ok(())
}

fn read_entry(reader: &mut Reader<'_>) -> Result<LayoutEntry, Malformed> {
    let certificate = NodeCertificate::decode(reader.short_bytes("layout entry's certificate")?)?;
    let role = Role::decode(reader.short_bytes("layout entry's role")?)?;
    if certificate.node != role.node {
        return Err(Malformed::new("layout entry: certificate and role of two nodes"));
    }
    Ok(LayoutEntry { certificate, role })
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DeathHead {
    version: U16,
    versions: U16,
    key_generation: U32,
}

const _: () = assert!(size_of::<DeathHead>() == 8);

/// A member's word that versions are dead: the only ground on which a node drops a reference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Death {
    pub signer: NodeCertificate,
    pub key_generation: u32,
    /// 1..=1,024.
    pub versions: Vec<VersionId>,
    pub signature: Signature,
}

impl Death {
    pub fn body(&self) -> Vec<u8> {
        assert!((1..=DEATH_VERSIONS_MAX).contains(&self.versions.len()), "a death names 1 to 1,024 versions");
        let mut writer = Writer::new();
        writer.put(&DeathHead {
            version: CERTIFICATE_VERSION.into(),
            versions: (self.versions.len() as u16).into(),
            key_generation: self.key_generation.into(),
        });
        for version in &self.versions {
            writer.put(version);
        }
        writer.short_bytes(&self.signer.encode()).finish()
    }

    pub fn encode(&self) -> Vec<u8> {
        with_signature(self.body(), &self.signature)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let head = reader.take::<DeathHead>("death")?;
        check_version(head.version)?;
        if !(1..=DEATH_VERSIONS_MAX).contains(&usize::from(head.versions.get())) {
            return Err(Malformed::new("number of dead versions"));
        }
        let versions = (0..head.versions.get())
            .map(|_| reader.take::<VersionId>("dead version").copied())
            .collect::<Result<Vec<_>, _>>()?;
        let death = Self {
            signer: NodeCertificate::decode(reader.short_bytes("death's signer")?)?,
            key_generation: head.key_generation.get(),
            versions,
            signature: read_signature(&mut reader)?,
        };
        reader.end("bytes after a death")?;
        Ok(death)
    }
}

/// Who is put out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Evicted {
    Node(NodeId),
    /// An invite's id: every node that it certified.
    Invite([u8; 32]),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EvictionHead {
    version: U16,
    of: u8,
    reserved: u8,
    reserved_more: U32,
    made_ms: U64,
    id: [u8; 32],
}

const _: () = assert!(size_of::<EvictionHead>() == 48);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Eviction {
    pub evicted: Evicted,
    pub made_ms: u64,
    pub signature: Signature,
}

impl Eviction {
    pub fn body(&self) -> Vec<u8> {
        let (of, id) = match self.evicted {
            Evicted::Node(node) => (1, node.0),
            Evicted::Invite(invite) => (2, invite),
        };
        Writer::new()
            .put(&EvictionHead {
                version: CERTIFICATE_VERSION.into(),
                of,
                reserved: 0,
                reserved_more: U32::ZERO,
                made_ms: self.made_ms.into(),
                id,
            })
            .finish()
    }

    pub fn encode(&self) -> Vec<u8> {
        with_signature(self.body(), &self.signature)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let head = reader.take::<EvictionHead>("eviction")?;
        check_version(head.version)?;
        if head.reserved != 0 || head.reserved_more.get() != 0 {
            return Err(Malformed::new("eviction's reserved bytes"));
        }
        let evicted = match head.of {
            1 => Evicted::Node(NodeId(head.id)),
            2 => Evicted::Invite(head.id),
            _ => return Err(Malformed::new("what is evicted")),
        };
        let eviction = Self { evicted, made_ms: head.made_ms.get(), signature: read_signature(&mut reader)? };
        reader.end("bytes after an eviction")?;
        Ok(eviction)
    }
}
