//! What no bytes may do: make a decoder panic, or decode to a value that encodes to other bytes.

use std::fmt::Debug;

use gabion::format::certificate::{Class, Death, Eviction, InviteCertificate, Layout, NodeCertificate, Role};
use gabion::format::frame::FrameHeader;
use gabion::format::id::{TextError, from_text, to_text};
use gabion::format::link::Link;
use gabion::format::name::{Capsule, Metadata, Name, NameBody, NameRecord};
use gabion::format::record::{Batch, RecordHeader};
use gabion::format::ticket::Ticket;
use gabion::format::tree::{depth_of, full_span_bytes, leaf_count};
use gabion::format::{Address, ContentId, Malformed, Reader, Stamp, VersionId};
use proptest::prelude::*;
use zerocopy::FromBytes;

use crate::samples;

type Decoder = fn(&[u8]) -> Result<Vec<u8>, Malformed>;

/// Each variable-length format: its decoder followed by its encoder, and valid bytes.
fn formats() -> Vec<(&'static str, Decoder, Vec<u8>)> {
    vec![
        ("invite", |b| InviteCertificate::decode(b).map(|v| v.encode()), samples::invite(Class::Member).encode()),
        (
            "certificate",
            |b| NodeCertificate::decode(b).map(|v| v.encode()),
            samples::certificate(3, Class::Storage).encode(),
        ),
        ("role", |b| Role::decode(b).map(|v| v.encode()), samples::role(3).encode()),
        ("layout", |b| Layout::decode(b).map(|v| v.encode()), samples::layout().encode()),
        ("death", |b| Death::decode(b).map(|v| v.encode()), samples::death().encode()),
        ("eviction", |b| Eviction::decode(b).map(|v| v.encode()), samples::evictions()[0].encode()),
        ("name record", |b| NameRecord::decode(b).map(|v| v.encode()), samples::name_record(false).encode()),
        ("name body", |b| NameBody::decode(b).map(|v| v.encode().to_vec()), samples::name_body().encode().to_vec()),
        ("capsule", |b| Capsule::decode(b).map(|v| v.encode().to_vec()), samples::capsule().encode().to_vec()),
    ]
}

#[test]
fn every_truncation_and_every_extension_is_refused() {
    for (name, decode, valid) in formats() {
        assert_eq!(decode(&valid).as_ref(), Ok(&valid), "{name}");
        for len in 0..valid.len() {
            assert!(decode(&valid[..len]).is_err(), "{name} cut to {len} of {} bytes", valid.len());
        }
        assert!(decode(&[&valid[..], &[0]].concat()).is_err(), "{name} with a byte behind it");
    }
}

#[test]
fn a_flipped_bit_is_refused_or_is_another_value_with_those_bytes() {
    for (name, decode, valid) in formats() {
        for bit in 0..valid.len() * 8 {
            let mut edited = valid.clone();
            edited[bit / 8] ^= 1 << (bit % 8);
            if let Ok(again) = decode(&edited) {
                assert_eq!(again, edited, "{name}, bit {bit}: decodes, but not canonically");
            }
        }
    }
}

#[test]
fn counts_far_beyond_the_bytes_are_refused_without_room_for_them() {
    let mut layout = samples::layout().encode();
    layout[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Layout::decode(&layout), Err(Malformed::new("number of layout entries")));
    let mut layout = samples::layout().encode();
    layout[8..12].copy_from_slice(&4096u32.to_le_bytes());
    assert!(Layout::decode(&layout).is_err());
    let mut death = samples::death().encode();
    death[2..4].copy_from_slice(&u16::MAX.to_le_bytes());
    assert_eq!(Death::decode(&death), Err(Malformed::new("number of dead versions")));
}

#[test]
fn a_layout_lists_each_node_once_and_in_order() {
    let mut layout = samples::layout();
    layout.entries.reverse();
    assert_eq!(Layout::decode(&layout.encode()), Err(Malformed::new("order of layout entries")));
    layout.entries[1] = layout.entries[0].clone();
    assert_eq!(Layout::decode(&layout.encode()), Err(Malformed::new("order of layout entries")));
    layout.entries.pop();
    layout.entries[0].role = samples::role(9);
    assert_eq!(
        Layout::decode(&layout.encode()),
        Err(Malformed::new("layout entry: certificate and role of two nodes"))
    );
}

fn damaged_at_each_character<T: std::str::FromStr<Err = TextError> + Debug>(text: &str) {
    for at in 0..text.len() {
        for replacement in ["a", "z", "2", "0", "-", ""] {
            let mut damaged = text.to_owned();
            damaged.replace_range(at..=at, replacement);
            if damaged != text {
                assert!(damaged.parse::<T>().is_err(), "{text} with {replacement:?} at {at} was read");
            }
        }
    }
}

#[test]
fn a_link_damaged_by_one_character_is_refused() {
    damaged_at_each_character::<Link>(&samples::link().to_string());
}

#[test]
fn a_ticket_damaged_by_one_character_is_refused() {
    damaged_at_each_character::<Ticket>(&samples::ticket().to_string());
}

#[test]
fn two_characters_swapped_in_a_link_are_refused() {
    let text = samples::link().to_string();
    for at in 3..text.len() - 1 {
        let mut bytes = text.clone().into_bytes();
        bytes.swap(at, at + 1);
        let swapped = String::from_utf8(bytes).unwrap();
        assert!(swapped == text || swapped.parse::<Link>().is_err(), "swapped at {at}");
    }
}

#[test]
fn a_link_whose_shape_contradicts_itself_is_refused() {
    let edit = |change: fn(&mut Link)| {
        let mut link = samples::link();
        change(&mut link);
        link.to_string().parse::<Link>()
    };
    assert!(edit(|_| ()).is_ok());
    let field = |result: Result<Link, _>| matches!(result, Err(TextError::Field(_)));
    assert!(field(edit(|link| link.depth = 0)));
    assert!(field(edit(|link| link.length = 1)));
    assert!(field(edit(|link| (link.length, link.depth) = (0, 0))));
    assert!(field(edit(|link| link.root = Address::ZERO)));
}

#[test]
fn text_of_another_kind_names_the_prefix_that_was_expected() {
    let error = samples::ticket().to_string().parse::<Link>().unwrap_err();
    assert_eq!(error, TextError::Prefix { expected: "gl1" });
    assert_eq!("gc1aaaa".parse::<ContentId>(), Err(TextError::Length { expected: 32, found: 2 }));
    assert_eq!(format!("  {}\n", samples::link()).parse::<Link>().unwrap(), samples::link());
}

#[test]
fn secrets_do_not_print() {
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let decimal = |bytes: &[u8]| format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
    let printed =
        format!("{:?} {:?} {:?} {:?}", samples::link(), samples::ticket(), samples::name_body(), samples::capsule());
    for secret in [samples::run::<32>(0x20), samples::run(0xa0), samples::run(2)] {
        assert!(!printed.contains(&hexadecimal(&secret[..4])), "{printed}");
        assert!(!printed.contains(&decimal(&secret[..4])), "{printed}");
    }
}

#[test]
fn names_split_at_the_first_slash() {
    let parse = |text: &str| Name::parse(text).map(|name| (name.bucket().to_owned(), name.key().to_owned()));
    assert_eq!(parse("film.mkv").unwrap(), ("main".into(), "film.mkv".into()));
    assert_eq!(parse("films/2026/a b.mkv").unwrap(), ("films".into(), "2026/a b.mkv".into()));
    assert_eq!(parse("a/über").unwrap().1, "über");
    for wrong in ["", "/x", "x/", "Films/x", "-a/x", "a b/x", "x/a\0b"] {
        let error = parse(wrong).unwrap_err().to_string();
        assert!(error.len() > 20, "{wrong:?} is refused without help: {error}");
    }
    assert!(parse(&format!("{}/x", "b".repeat(63))).is_ok());
    assert!(parse(&format!("{}/x", "b".repeat(64))).is_err());
    assert!(parse(&format!("b/{}", "k".repeat(1024))).is_ok());
    assert!(parse(&format!("b/{}", "k".repeat(1025))).is_err());
}

#[test]
fn the_later_clock_wins_and_then_the_greater_version() {
    let older = samples::name_record(false);
    let mut newer = older.clone();
    newer.clock = Stamp::new(older.clock.millis(), older.clock.counter() + 1);
    newer.version = VersionId::ZERO;
    assert!(newer.wins_over(&older) && !older.wins_over(&newer));
    let mut twin = older.clone();
    twin.version = VersionId::new(u32::MAX, 0, [0; 8]);
    assert!(twin.wins_over(&older) && !older.wins_over(&twin) && !older.wins_over(&older));
}

#[test]
fn the_longest_name_and_metadata_fit_a_record() {
    let mut body = samples::name_body();
    body.bucket = "b".repeat(63);
    body.key = "k".repeat(1024);
    body.metadata.symlink_target = Some(vec![b's'; 4095]);
    body.metadata.content_type = Some("t".repeat(255));
    let mut record = samples::name_record(false);
    record.sealed = [&body.encode()[..], &[0; 16]].concat();
    assert_eq!(NameRecord::decode(&record.encode()).unwrap(), record);
    assert_eq!(NameBody::decode(&body.encode()).unwrap(), body);
}

#[test]
fn a_stamp_orders_by_time_then_counter_and_never_wraps() {
    assert!(Stamp::new(2, 0) > Stamp::new(1, u16::MAX));
    assert!(Stamp::new(1, 2) > Stamp::new(1, 1));
    assert!(Stamp::new(1 << 48, 0) > Stamp::new((1 << 48) - 2, 0));
}

#[test]
fn a_record_of_an_unknown_kind_is_not_valid_even_with_its_sum() {
    let mut header = samples::chunk_record();
    header.kind = 9;
    header.seal(&[1; 16], 64, &[]);
    assert!(!header.is_valid_at(&[1; 16], 64));
    header.kind = 2;
    header.reserved = 1.into();
    header.seal(&[1; 16], 64, &[]);
    assert!(!header.is_valid_at(&[1; 16], 64));
}

#[test]
fn a_batch_record_gives_its_batch_back_and_others_give_none() {
    let batch: Batch = samples::batch_record().as_batch().unwrap();
    assert_eq!(
        (batch.sequence.get(), batch.bytes.get(), batch.watermark.get(), batch.records.get()),
        (5, 8192, 4096, 3)
    );
    assert_eq!(samples::chunk_record().as_batch(), None);
}

#[test]
fn depth_follows_from_the_length_at_every_border() {
    assert_eq!((depth_of(0), leaf_count(0)), (0, 0));
    assert_eq!((depth_of(1 << 20), leaf_count(1 << 20)), (0, 1));
    assert_eq!((depth_of((1 << 20) + 1), leaf_count((1 << 20) + 1)), (1, 2));
    assert_eq!(depth_of(1 << 33), 1);
    assert_eq!(depth_of((1 << 33) + 1), 2);
    assert_eq!(depth_of(1 << 46), 2);
    assert_eq!(depth_of((1 << 46) + 1), 3);
    assert_eq!(depth_of((1 << 59) + 1), 4);
    assert_eq!(depth_of(u64::MAX), 4);
    assert_eq!(full_span_bytes(4), u64::MAX);
}

#[test]
fn a_reader_never_reads_past_the_end() {
    let mut reader = Reader::new(&[3, 0, b'a', b'b']);
    assert!(reader.clone().short_bytes("short").is_err());
    assert_eq!(reader.u16("length"), Ok(3));
    assert!(reader.u32("word").is_err());
    assert_eq!(reader.remaining(), 2);
    assert_eq!(reader.bytes(2, "rest"), Ok(&b"ab"[..]));
    assert_eq!(reader.end("end"), Ok(()));
}

fn arbitrary_metadata() -> impl Strategy<Value = Metadata> {
    let target = prop::option::of(prop::collection::vec(1u8.., 0..200));
    let content_type = prop::option::of("[ -~]{0,60}");
    (any::<i64>(), 0u32..1_000_000_000, any::<u32>(), target, content_type).prop_map(
        |(mtime_s, mtime_ns, mode, symlink_target, content_type)| Metadata {
            mtime_s,
            mtime_ns,
            mode,
            symlink_target,
            content_type,
        },
    )
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        for (name, decode, _) in formats() {
            if let Ok(again) = decode(&bytes) {
                prop_assert_eq!(&again, &bytes, "{}", name);
            }
        }
        if let Ok((header, _)) = FrameHeader::read_from_prefix(&bytes) {
            let _ = header.check();
        }
        if let Ok((header, _)) = RecordHeader::read_from_prefix(&bytes) {
            let _ = (header.as_batch(), header.is_valid_at(&[0; 16], 0), header.payload_is_valid_at(&[0; 16], 0, &bytes));
        }
    }

    #[test]
    fn no_edit_of_valid_bytes_makes_a_decoder_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        for (name, decode, mut bytes) in formats() {
            for (at, byte) in &edits {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            if let Ok(again) = decode(&bytes) {
                prop_assert_eq!(&again, &bytes, "{}", name);
            }
        }
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "g[clt]1[a-z2-7]{0,200}", any_text in ".{0,50}") {
        for text in [&text, &any_text] {
            let _ = (text.parse::<Link>(), text.parse::<Ticket>(), text.parse::<ContentId>(), Name::parse(text));
        }
    }

    #[test]
    fn text_gives_its_bytes_back(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let text = to_text("gl1", &bytes);
        prop_assert_eq!(from_text("gl1", &text).unwrap(), bytes);
    }

    #[test]
    fn names_give_themselves_back(bucket in "[a-z0-9][a-z0-9._-]{0,62}", key in "[^\0]{1,200}") {
        let name = Name::new(&bucket, &key).unwrap();
        prop_assert_eq!(Name::parse(&name.to_string()).unwrap(), name);
    }

    #[test]
    fn links_give_themselves_back(length in 1u64.., root in any::<[u8; 32]>(), root_key in any::<[u8; 32]>()) {
        prop_assume!(root != [0; 32]);
        let link = Link { depth: depth_of(length), length, root: Address(root), root_key };
        prop_assert_eq!(link.to_string().parse::<Link>().unwrap(), link);
    }

    #[test]
    fn name_bodies_give_themselves_back(
        key in "[^\0]{1,100}", length in any::<u64>(), root in any::<[u8; 32]>(), metadata in arbitrary_metadata(),
    ) {
        let empty = length == 0;
        prop_assume!(root != [0; 32]);
        let body = NameBody {
            bucket: "films".into(),
            key,
            length,
            depth: depth_of(length),
            root: if empty { Address::ZERO } else { Address(root) },
            root_key: if empty { [0; 32] } else { root },
            metadata,
        };
        prop_assert_eq!(NameBody::decode(&body.encode()).unwrap(), body);
    }

    #[test]
    fn a_frame_header_within_its_bounds_passes_and_others_do_not(bytes in any::<[u8; 64]>()) {
        let header = FrameHeader::read_from_bytes(&bytes).unwrap();
        if header.check().is_ok() {
            prop_assert!(header.body_bytes.get() <= 65_519 && header.payload_bytes.get() <= 1 << 20);
        }
    }
}
