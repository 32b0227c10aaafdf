//! One value of each format, the same for ever: the frozen fixtures hold their bytes.

use gabion::crypto::identity::{
    InviteTerms, make_certificate, make_eviction, make_invite, sign_death, sign_layout, sign_role,
};
use gabion::crypto::keys::{Authority, InviteSeed, NodeKeys, NodeSeed};
use gabion::format::certificate::{
    Class, Death, Evicted, Eviction, InviteCertificate, Layout, LayoutEntry, NodeCertificate, Role, RoleState,
};
use gabion::format::frame::{FrameHeader, FrameKind, OpeningPayload, PREFACE_MAGIC, PREFACE_VERSION, Preface, Status};
use gabion::format::link::Link;
use gabion::format::name::{Capsule, Metadata, NameBody, NameRecord};
use gabion::format::record::{Batch, FLAG_STAND_IN, RecordHeader, RecordKind, Removed};
use gabion::format::segment::{
    FOOTER_MAGIC, FooterEntry, FooterTail, SEGMENT_MAGIC, SEGMENT_VERSION, SegmentClass, SegmentHeader,
};
use gabion::format::ticket::Ticket;
use gabion::format::tree::TreeEntry;
use gabion::format::{Address, BucketId, ContentId, Incarnation, NameId, NetworkId, NodeId, Stamp, VaultId, VersionId};

/// `N` bytes that count up from `from`: no field looks like another.
pub fn run<const N: usize>(from: u8) -> [u8; N] {
    std::array::from_fn(|i| from.wrapping_add(i as u8))
}

pub fn version() -> VersionId {
    VersionId::new(0x1234_5678, 1_800_000_000, run(0x61))
}

pub fn stamp() -> Stamp {
    Stamp::new(1_800_000_000_123, 7)
}

pub fn authority() -> Authority {
    Authority::from_bytes(run(1))
}

pub fn network() -> NetworkId {
    authority().network_id()
}

pub fn invite_seed() -> InviteSeed {
    InviteSeed::from_bytes(run(2))
}

pub fn node(seed: u8) -> NodeKeys {
    NodeSeed::from_bytes(run(seed)).keys()
}

pub fn invite(class: Class) -> InviteCertificate {
    let terms = InviteTerms { class, zone: "cellar-1".into(), capacity_limit: 1 << 40, expiry_s: 1_900_000_000 };
    make_invite(&authority(), &invite_seed(), &terms).unwrap()
}

pub fn certificate(seed: u8, class: Class) -> NodeCertificate {
    make_certificate(&invite(class), &invite_seed(), &network(), &node(seed), "").unwrap()
}

pub fn role(seed: u8) -> Role {
    let keys = node(seed);
    let mut role = Role {
        node: keys.node_id(),
        incarnation: Incarnation(run(0x80)),
        state: RoleState::Active,
        serial: 42,
        capacity_bytes: 1 << 39,
        layout_confirmed: 9,
        layout_synced: 8,
        addresses: vec!["192.0.2.7:4400".into(), "[2001:db8::7]:4400".into(), "nas.example:4400".into()],
        signature: [0; 64],
    };
    sign_role(&mut role, &keys, &network());
    role
}

pub fn layout() -> Layout {
    let mut entries = vec![
        LayoutEntry { certificate: certificate(3, Class::Member), role: role(3) },
        LayoutEntry { certificate: certificate(4, Class::Storage), role: role(4) },
    ];
    entries.sort_by_key(|entry| entry.role.node);
    let mut layout = Layout {
        number: 9,
        replicas: 3,
        voters: vec![node(3).node_id()],
        settings: Vec::new(),
        entries,
        signature: [0; 64],
    };
    sign_layout(&mut layout, &authority());
    layout
}

pub fn death() -> Death {
    let mut death = Death {
        signer: certificate(3, Class::Member),
        key_generation: 1,
        versions: vec![version(), VersionId::new(9, 8, run(7))],
        signature: [0; 64],
    };
    sign_death(&mut death, &node(3), &network());
    death
}

pub fn evictions() -> [Eviction; 2] {
    [Evicted::Node(NodeId(run(5))), Evicted::Invite(run(6))]
        .map(|evicted| make_eviction(&authority(), evicted, 1_800_000_000_123))
}

pub fn metadata() -> Metadata {
    Metadata {
        mtime_s: -5,
        mtime_ns: 999_999_999,
        mode: 0o100_644,
        symlink_target: Some(b"../else\xff".to_vec()),
        content_type: Some("video/matroska".into()),
    }
}

pub fn name_body() -> NameBody {
    NameBody {
        bucket: "films".into(),
        key: "2026/über.mkv".into(),
        root: Address(run(0x10)),
        root_key: run(0x20),
        depth: 1,
        length: 5 << 20,
        metadata: metadata(),
    }
}

pub fn capsule() -> Capsule {
    Capsule { root_key: run(0x20), depth: 0, length: 77, metadata: Metadata::default() }
}

pub fn name_record(tombstone: bool) -> NameRecord {
    NameRecord {
        tombstone,
        vault: VaultId(run(0x30)),
        key_generation: 1,
        bucket: BucketId(run(0x40)),
        name: NameId(run(0x50)),
        clock: stamp(),
        version: version(),
        nonce: run(0x70),
        sealed: run::<99>(0x90).to_vec(),
    }
}

pub fn link() -> Link {
    Link { depth: 1, length: 5 << 20, root: Address(run(0x10)), root_key: run(0x20) }
}

pub fn content_id() -> ContentId {
    ContentId(Address(run(0x10)))
}

pub fn ticket() -> Ticket {
    Ticket {
        network: network(),
        network_key_generation: 3,
        network_key: run(0xa0),
        invite_seed: *invite_seed().as_bytes(),
        invite: invite(Class::Storage),
        addresses: vec!["192.0.2.7:4400".into(), "nas.example:4400".into()],
    }
}

pub fn segment_header() -> SegmentHeader {
    SegmentHeader {
        magic: SEGMENT_MAGIC,
        version: SEGMENT_VERSION.into(),
        class: SegmentClass::Small as u8,
        reserved: 0,
        block_bytes: 4096.into(),
        nonce: run(0xb0),
        segment: 77.into(),
        incarnation: Incarnation(run(0x80)),
        created_ms: 1_800_000_000_123.into(),
        unused: [0; 4028],
        crc: 0xdead_beef.into(),
    }
}

pub fn footer_entry() -> FooterEntry {
    FooterEntry {
        address: Address(run(0x10)),
        version: version(),
        offset: 8128.into(),
        payload_bytes: 1_048_576.into(),
        kind: RecordKind::Chunk as u8,
        flags: FLAG_STAND_IN,
        reserved: 0.into(),
    }
}

pub fn footer_tail() -> FooterTail {
    FooterTail {
        magic: FOOTER_MAGIC,
        segment: 77.into(),
        offset: 4096.into(),
        records_end: 4000.into(),
        records: 1.into(),
        entries_crc: 0x0102_0304.into(),
        reserved: [0; 20],
        crc: 0x0506_0708.into(),
    }
}

pub fn chunk_record() -> RecordHeader {
    let mut header = RecordHeader::new(RecordKind::Chunk, FLAG_STAND_IN, 40, Address(run(0x10)), version());
    header.seal(&run(0xb0), 8128, &run::<40>(0xc0));
    header
}

pub fn batch_record() -> RecordHeader {
    let batch =
        Batch { sequence: 5.into(), bytes: 8192.into(), watermark: 4096.into(), records: 3.into(), reserved: 0.into() };
    let mut header = RecordHeader::batch(&batch);
    header.seal(&run(0xb0), 4096, &[]);
    header
}

pub fn removed() -> Removed {
    Removed { segment: 77.into(), offset: 8128.into() }
}

pub fn tree_entry() -> TreeEntry {
    TreeEntry { address: Address(run(0x10)), key: run(0x20), span: (1 << 20).into() }
}

pub fn preface() -> Preface {
    Preface { magic: PREFACE_MAGIC, version: PREFACE_VERSION.into(), zero: 0.into(), network_key_id: run(0xd0) }
}

pub fn opening_payload() -> OpeningPayload {
    OpeningPayload {
        version_min: 1.into(),
        version_max: 1.into(),
        payload_bytes_log2: 20,
        reserved: [0; 3],
        unix_ms: 1_800_000_000_123.into(),
    }
}

pub fn frame_header() -> FrameHeader {
    let mut header = FrameHeader::new(FrameKind::Answer, 0x0102_0304_0506_0708);
    header.status = (Status::Damaged as u16).into();
    header.body_bytes = 1000.into();
    header.payload_bytes = 1_048_576.into();
    header.credit = 2.into();
    header.address = Address(run(0x10));
    header.layout = 9.into();
    header
}
