use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

fn metadata() -> impl Strategy<Value = Metadata> {
    (any::<i64>(), 0u32..1_000_000_000, any::<u32>(), option::of(vec(1u8.., 0..50)), option::of(".{0,20}")).prop_map(
        |(mtime_s, mtime_ns, mode, symlink_target, content_type)| Metadata {
            mtime_s,
            mtime_ns,
            mode,
            symlink_target,
            content_type,
        },
    )
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        (".*", ".*").prop_map(|(bucket, key)| Target::Name { bucket, key }),
        any::<[u8; 32]>().prop_map(|bytes| Target::Content { address: Address(bytes) }),
        ".*".prop_map(|text| Target::Link { text: SecretText::new(text) }),
    ]
}

fn request() -> impl Strategy<Value = ControlRequest> {
    prop_oneof![
        (".*", ".*", any::<bool>(), any::<bool>(), metadata(), any::<Option<u64>>()).prop_map(
            |(bucket, key, no_dedup, no_clobber, metadata, length_hint)| ControlRequest::Put {
                bucket,
                key,
                no_dedup,
                no_clobber,
                metadata,
                length_hint,
            }
        ),
        (target(), any::<Option<(u64, u64)>>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(target, range, remote, resume, file)| ControlRequest::Get {
                target,
                range,
                remote,
                resume,
                output: if file { OutputKind::File } else { OutputKind::Stream },
            }
        ),
        target().prop_map(|target| ControlRequest::Stat { target }),
        (option::of(".*"), ".*", option::of((".*", ".*")), any::<u64>())
            .prop_map(|(bucket, prefix, after, limit)| { ControlRequest::List { bucket, prefix, after, limit } }),
        (any::<bool>(), option::of(".*"), any::<u64>()).prop_map(|(member, zone, expires_s)| ControlRequest::Ticket {
            member,
            zone,
            expires_s
        }),
        (any::<[u8; 32]>(), any::<u32>(), any::<bool>()).prop_map(|(bytes, len, remote)| ControlRequest::FetchChunk {
            address: Address(bytes),
            len,
            remote
        }),
        (".*", any::<bool>(), any::<bool>(), vec((".*", metadata(), vec(any::<u8>(), 0..100)), 0..4)).prop_map(
            |(bucket, no_dedup, no_clobber, files)| {
                let file = |(key, metadata, contents)| SmallFile { key, metadata, contents: Bytes(contents) };
                ControlRequest::PutSmall { bucket, no_dedup, no_clobber, files: files.into_iter().map(file).collect() }
            }
        ),
        (vec(target(), 0..4), any::<bool>()).prop_map(|(targets, remote)| ControlRequest::GetSmall { targets, remote }),
        Just(ControlRequest::Status),
        Just(ControlRequest::Peers),
        Just(ControlRequest::Verify),
        Just(ControlRequest::Reclaim),
        Just(ControlRequest::KeyExport),
    ]
}

fn event() -> impl Strategy<Value = ControlEvent> {
    prop_oneof![
        any::<(u64, Option<u64>, u64)>().prop_map(|(done, total, new)| ControlEvent::Progress { done, total, new }),
        (metadata(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(metadata, length, bytes)| ControlEvent::Info {
            metadata,
            length,
            content: Address(bytes)
        }),
        (".*", ".*", any::<[u8; 32]>(), any::<u64>(), metadata(), any::<u64>()).prop_map(
            |(bucket, key, bytes, length, metadata, stamp_ms)| ControlEvent::Entry {
                entry: Entry { bucket, key, content: Address(bytes), length, metadata, stamp_ms }
            }
        ),
        (any::<[u8; 32]>(), ".*", vec(".*", 0..4), any::<bool>(), any::<Option<u64>>()).prop_map(
            |(bytes, zone, addresses, alive, rtt_us)| ControlEvent::Peer {
                report: PeerReport {
                    node_id: NodeId(bytes),
                    class: NodeClass::Storage,
                    zone,
                    addresses,
                    alive,
                    last_seen_s: None,
                    rtt_us,
                    capacity_bytes: 1,
                    certificate: "certified".to_owned(),
                }
            }
        ),
        vec(any::<u8>(), 0..1000).prop_map(|bytes| ControlEvent::Chunk { payload: Bytes(bytes) }),
        vec((any::<[u8; 32]>(), any::<(u64, u64, u8)>(), ".*", any::<bool>()), 0..4).prop_map(|outcomes| {
            let outcome = |(content, (bytes, bytes_new, code), message, is_stored)| match is_stored {
                true => SmallStored::Stored { content: Address(content), bytes, bytes_new },
                false => SmallStored::Failed { code, message },
            };
            ControlEvent::StoredSmall { outcomes: outcomes.into_iter().map(outcome).collect() }
        }),
        vec((metadata(), any::<[u8; 32]>(), vec(any::<u8>(), 0..100), any::<Option<u64>>()), 0..4).prop_map(
            |outcomes| {
                let outcome = |(metadata, content, contents, large)| match large {
                    None => SmallFetched::Contents { metadata, content: Address(content), contents: Bytes(contents) },
                    Some(length) => SmallFetched::Large { length },
                };
                ControlEvent::FetchedSmall { outcomes: outcomes.into_iter().map(outcome).collect() }
            }
        ),
        any::<bool>().prop_map(|more| ControlEvent::Listed { more }),
        ".*".prop_map(|text| ControlEvent::Text { text: SecretText::new(text) }),
        (any::<u8>(), ".*").prop_map(|(code, message)| ControlEvent::Error { code, message }),
        Just(ControlEvent::Naming),
        Just(ControlEvent::Done),
    ]
}

/// The message behind its length, which must be right.
fn body(message: &[u8]) -> &[u8] {
    let (head, body) = message.split_first_chunk::<LENGTH_BYTES>().unwrap();
    assert_eq!(message_len(*head), Ok(body.len()));
    body
}

proptest! {
    #[test]
    fn requests_come_back_as_they_went(request in request()) {
        prop_assert_eq!(ControlRequest::decode(body(&request.encode())), Ok(request));
    }

    #[test]
    fn events_come_back_as_they_went(event in event()) {
        prop_assert_eq!(ControlEvent::decode(body(&event.encode())), Ok(event));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in vec(any::<u8>(), 0..300), tag in 0u8..16) {
        let _ = ControlEvent::decode(&bytes);
        let _ = ControlEvent::decode(&[&[tag], bytes.as_slice()].concat());
        let _ = ControlRequest::decode(&[PROTOCOL_VERSION.to_le_bytes().as_slice(), &[tag], &bytes].concat());
    }

    #[test]
    fn a_cut_message_is_malformed(request in request(), at in any::<prop::sample::Index>()) {
        let message = request.encode();
        let body = body(&message);
        prop_assert!(ControlRequest::decode(&body[..at.index(body.len())]).is_err());
    }
}

#[test]
fn a_huge_count_reserves_nothing() {
    let mut writer = Writer::new();
    writer.u8(7).bytes(&[0; 32]).u8(0).u32(0).u32(u32::MAX);
    assert!(ControlEvent::decode(&writer.finish()).is_err());
}

#[test]
fn the_longest_chunk_fits_and_more_is_refused() {
    let chunk = ControlEvent::Chunk { payload: Bytes(vec![0; limits::CHUNK_BYTES_MAX]) };
    assert_eq!(ControlEvent::decode(body(&chunk.encode())), Ok(chunk));
    let len = limits::CONTROL_MESSAGE_BYTES_MAX + 1;
    assert_eq!(message_len((len as u32).to_le_bytes()), Err(ProtocolError::TooLong { len }));
}

#[test]
fn another_version_is_named() {
    let mut message = ControlRequest::Status.encode().split_off(LENGTH_BYTES);
    message[0] = 9;
    assert_eq!(ControlRequest::decode(&message), Err(ProtocolError::Version { found: 9 }));
}

#[test]
fn secrets_are_not_shown_by_debug() {
    let event = ControlEvent::Text { text: SecretText::new("gl1secret".to_owned()) };
    assert!(!format!("{event:?}").contains("gl1secret"));
}
