//! Bytes of version 1, frozen: each is decoded and compared with the value it was made from. They are written once,
//! with `GABION_WRITE_FIXTURES=1`, and then committed; a new version gets a new directory.

use std::fmt::Debug;
use std::path::PathBuf;

use gabion::crypto::identity::{
    verify_certificate, verify_death, verify_eviction, verify_invite, verify_layout, verify_role,
};
use gabion::format::certificate::{Class, Death, Eviction, InviteCertificate, Layout, NodeCertificate, Role};
use gabion::format::frame::{FrameHeader, OpeningPayload, Preface};
use gabion::format::link::Link;
use gabion::format::name::{Capsule, NameBody, NameRecord};
use gabion::format::record::{RecordHeader, Removed};
use gabion::format::segment::{FooterEntry, FooterTail, SegmentHeader};
use gabion::format::ticket::Ticket;
use gabion::format::tree::TreeEntry;
use gabion::format::{ContentId, Stamp, VersionId};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::samples;

/// The frozen bytes called `name`; `now` is what this program makes of the same value.
fn frozen(name: &str, now: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-v1").join(name);
    if std::env::var_os("GABION_WRITE_FIXTURES").is_some() {
        std::fs::write(&path, now).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn struct_is_frozen<T: FromBytes + IntoBytes + Immutable + KnownLayout>(name: &str, value: T) {
    let frozen = frozen(name, value.as_bytes());
    let read = T::read_from_bytes(&frozen).unwrap_or_else(|_| panic!("{name}: wrong size"));
    assert_eq!(read.as_bytes(), value.as_bytes(), "{name} reads differently");
}

fn encoding_is_frozen<T: PartialEq + Debug, E: Debug>(
    name: &str,
    value: &T,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) -> T {
    let frozen = frozen(name, &encode(value));
    let read = decode(&frozen).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    assert_eq!(&read, value, "{name} reads differently");
    assert_eq!(encode(value), frozen, "{name} is written differently");
    read
}

fn text_is_frozen<T>(name: &str, value: &T)
where
    T: PartialEq + Debug + ToString + std::str::FromStr<Err: Debug>,
{
    encoding_is_frozen(
        name,
        value,
        |value| value.to_string().into_bytes(),
        |bytes| std::str::from_utf8(bytes).unwrap().parse::<T>(),
    );
}

#[test]
fn records_and_segments_of_version_1_are_read() {
    struct_is_frozen::<RecordHeader>("record-chunk", samples::chunk_record());
    struct_is_frozen::<RecordHeader>("record-batch", samples::batch_record());
    struct_is_frozen::<Removed>("record-removed", samples::removed());
    struct_is_frozen::<SegmentHeader>("segment-header", samples::segment_header());
    struct_is_frozen::<FooterEntry>("segment-footer-entry", samples::footer_entry());
    struct_is_frozen::<FooterTail>("segment-footer-tail", samples::footer_tail());
}

#[test]
fn a_frozen_record_is_valid_in_its_place_and_nowhere_else() {
    let bytes = frozen("record-chunk", samples::chunk_record().as_bytes());
    let header = RecordHeader::read_from_bytes(&bytes).unwrap();
    let (nonce, payload) = (samples::run(0xb0), samples::run::<40>(0xc0));
    assert!(header.is_valid_at(&nonce, 8128));
    assert!(header.payload_is_valid_at(&nonce, 8128, &payload));
    assert!(!header.is_valid_at(&nonce, 8192));
    assert!(!header.is_valid_at(&samples::run(0xb1), 8128));
    assert!(!header.payload_is_valid_at(&nonce, 8192, &payload));
}

#[test]
fn identifiers_and_tree_entries_of_version_1_are_read() {
    struct_is_frozen::<VersionId>("version-id", samples::version());
    struct_is_frozen::<Stamp>("stamp", samples::stamp());
    struct_is_frozen::<TreeEntry>("tree-entry", samples::tree_entry());
}

#[test]
fn frames_of_version_1_are_read() {
    struct_is_frozen::<Preface>("preface", samples::preface());
    struct_is_frozen::<OpeningPayload>("opening-payload", samples::opening_payload());
    struct_is_frozen::<FrameHeader>("frame-header", samples::frame_header());
}

#[test]
fn names_of_version_1_are_read() {
    let record = |name, value| encoding_is_frozen(name, &value, NameRecord::encode, NameRecord::decode);
    record("name-record", samples::name_record(false));
    record("name-record-tombstone", samples::name_record(true));
    let body = samples::name_body();
    encoding_is_frozen("name-body", &body, |body| body.encode().to_vec(), NameBody::decode);
    let capsule = samples::capsule();
    encoding_is_frozen("capsule", &capsule, |capsule| capsule.encode().to_vec(), Capsule::decode);
}

#[test]
fn text_forms_of_version_1_are_read() {
    text_is_frozen::<ContentId>("content-id.txt", &samples::content_id());
    text_is_frozen::<Link>("link.txt", &samples::link());
    text_is_frozen::<Ticket>("ticket.txt", &samples::ticket());
}

#[test]
fn signatures_of_version_1_still_count() {
    let network = samples::network();
    let invite = samples::invite(Class::Member);
    let invite = encoding_is_frozen("invite", &invite, InviteCertificate::encode, InviteCertificate::decode);
    verify_invite(&invite, &network).unwrap();
    let certificate = samples::certificate(3, Class::Member);
    let certificate =
        encoding_is_frozen("node-certificate", &certificate, NodeCertificate::encode, NodeCertificate::decode);
    verify_certificate(&certificate, &network).unwrap();
    let role = encoding_is_frozen("role", &samples::role(3), Role::encode, Role::decode);
    verify_role(&role, &network).unwrap();
    let layout = encoding_is_frozen("layout", &samples::layout(), Layout::encode, Layout::decode);
    assert_eq!(verify_layout(&layout, &network).unwrap().len(), 2);
    let death = encoding_is_frozen("death", &samples::death(), Death::encode, Death::decode);
    verify_death(&death, &network).unwrap();
    for (name, eviction) in ["eviction-node", "eviction-invite"].into_iter().zip(samples::evictions()) {
        let eviction = encoding_is_frozen(name, &eviction, Eviction::encode, Eviction::decode);
        verify_eviction(&eviction, &network).unwrap();
    }
}
