//! What is done to the bytes of each chunk and each frame takes no memory from the allocator: sealing, opening, framing.
//!
//! Counted by a global allocator that this test program runs under, for the thread that works alone. What is not
//! covered: requests and their answers have bodies, tasks and timers of their own, and so have chunks on their way to the
//! disk and back. Counted in a whole node (probes on jemalloc's entries, by `perf`), a chunk of 1 MiB that is put takes 25, one
//! that is got 6, one that goes from node to node 45 to 99; a small file that is put 46 to 56, one that is got 31 to 34. The
//! allocator has 3.5 % of the CPU time of small puts, 4.3 % of that of small gets, and no share that shows of the others'
//! (`tools/compare --profile`).

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test, in helpers too

use std::hint::black_box;

use allocation_counter::measure;
use gabion::crypto::cipher::{ScopeKey, open_chunk, seal_chunk};
use gabion::crypto::identity::{InviteTerms, make_certificate, make_invite};
use gabion::crypto::keys::{Authority, InviteSeed, NetworkKey, NodeKeys, NodeSeed};
use gabion::crypto::session::{Initiator, ReceiveHalf, Responder, SendHalf};
use gabion::format::Address;
use gabion::format::certificate::Class;
use gabion::format::frame::{FrameHeader, FrameKind};
use gabion::limits::{CHUNK_BYTES_MIN, FRAME_HEADER_BYTES, KIB, MIB};
use gabion::wire::Violation;
use gabion::wire::decoder::{Decoder, Opener, SEALED_HEADER_BYTES, Step};
use zerocopy::{FromBytes, IntoBytes};

const NOW_MS: u64 = 1_800_000_000_000;

/// What `work` has allocated so far, even if it freed it again.
fn allocations(work: impl FnOnce()) -> u64 {
    measure(work).count_total
}

#[test]
fn what_is_allocated_is_counted() {
    assert_eq!(allocations(|| drop(black_box(vec![0u8; 32]))), 1);
    let mut grown = vec![0u8; 32];
    assert_eq!(allocations(|| grown.resize(black_box(4096), 0)), 1);
    assert_eq!(allocations(|| grown.truncate(black_box(1))), 0);
}

#[test]
fn chunk_is_sealed_and_opened_in_place() {
    let scope = ScopeKey::from_bytes(&[9; 32]);
    for span in [1, CHUNK_BYTES_MIN, 4 * KIB, MIB] {
        let mut chunk = vec![0; span.max(CHUNK_BYTES_MIN)];
        let (plain, _) = chunk.split_at_mut(span);
        plain.fill(3);
        let before = chunk.clone();
        let counted = allocations(|| {
            let (address, key) = seal_chunk(&scope, 0, &mut chunk, span);
            open_chunk(&mut chunk, &address, &key).unwrap();
        });
        assert_eq!(counted, 0, "for a span of {span} bytes");
        assert!(chunk == before);
    }
}

fn headers() -> Vec<FrameHeader> {
    let address = Address([5; 32]);
    vec![
        FrameHeader { credit: 3.into(), ..FrameHeader::new(FrameKind::Keepalive, 0) },
        FrameHeader { address, layout: 7.into(), ..FrameHeader::new(FrameKind::Fetch, 1) },
        FrameHeader { address, payload_bytes: (MIB as u32).into(), ..FrameHeader::new(FrameKind::Answer, 2) },
    ]
}

#[test]
fn frame_header_is_written_and_read() {
    for header in headers() {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let counted = allocations(|| {
            header.write_to(&mut bytes).unwrap();
            let read = FrameHeader::read_from_bytes(black_box(&bytes)).unwrap();
            assert!(read == header && read.check().is_ok());
        });
        assert_eq!(counted, 0, "for {header:?}");
    }
}

struct Unsealer(ReceiveHalf);

impl Opener for Unsealer {
    fn open(&mut self, sealed: &[u8], plain: &mut Vec<u8>) -> Result<(), Violation> {
        self.0.open_append(sealed, plain).map(drop).map_err(|_| Violation::Unreadable)
    }
}

/// One direction of a session.
fn session() -> (SendHalf, ReceiveHalf) {
    let (authority, key) = (Authority::random(), NetworkKey::random(1));
    let network = authority.network_id();
    let node = || -> (NodeKeys, Vec<u8>) {
        let terms = InviteTerms { class: Class::Member, zone: String::new(), capacity_limit: 0, expiry_s: 0 };
        let (keys, seed) = (NodeSeed::random().keys(), InviteSeed::random());
        let invite = make_invite(&authority, &seed, &terms).unwrap();
        let certificate = make_certificate(&invite, &seed, &network, &keys, "").unwrap().encode();
        (keys, certificate)
    };
    let ((dialler, of_dialler), (listener, of_listener)) = (node(), node());
    let (mut initiator, opening) = Initiator::start(&dialler, &key, &network, NOW_MS).unwrap();
    let keys = std::slice::from_ref(&key);
    let (mut responder, _) = Responder::accept(&listener, keys, &network, &opening, NOW_MS).unwrap();
    initiator.read_second(&responder.second(&of_listener).unwrap()).unwrap();
    let (third, mine) = initiator.third(&of_dialler).unwrap();
    let (_, theirs) = responder.read_third(&third).unwrap();
    (mine.send, theirs.receive)
}

#[test]
fn frame_without_a_body_is_sealed_opened_and_decoded() {
    let (mut send, receive) = session();
    let mut decoder = Decoder::new(Unsealer(receive), false);
    let mut wire = Vec::with_capacity(SEALED_HEADER_BYTES);
    for number in 0..100 {
        // Odd ids are the dialler's, which sends here.
        let header = FrameHeader { layout: 7.into(), ..FrameHeader::new(FrameKind::Fetch, 2 * number + 1) };
        let counted = allocations(|| {
            wire.clear();
            send.seal(header.as_bytes(), &mut wire).unwrap();
            let (used, step) = decoder.step(&wire).unwrap();
            assert!(used == SEALED_HEADER_BYTES);
            assert!(matches!(step, Step::Frame(frame) if frame.header == header && frame.body.is_empty()));
        });
        assert_eq!(counted, 0, "for frame {number}");
    }
}
