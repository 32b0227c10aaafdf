//! A certified peer that breaks the rules, breaks off, or stops.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::harness::*;
use crate::format::Address;
use crate::format::frame::{FrameHeader, FrameKind};
use crate::io::{SendSource, spawn};
use crate::limits::{CHUNK_BYTES_MAX, MIB, PAYLOAD_CREDIT, REQUESTS_IN_FLIGHT_MAX, STALL_MAX};
use crate::wire::*;

async fn rogue_at(handler: Rc<Scripted>) -> (Rogue, Node) {
    let network = Network::new();
    let node = Node::listen(&network, handler, 24);
    (Rogue::dial(&network, &node).await, node)
}

fn store_header(request: u64, address: Address, payload_bytes: usize) -> FrameHeader {
    FrameHeader { address, payload_bytes: (payload_bytes as u32).into(), ..FrameHeader::new(FrameKind::Store, request) }
}

async fn closed(node: &Node) -> CloseReason {
    until("the connection is closed", || node.handler.close_reason().is_some()).await;
    node.handler.close_reason().unwrap()
}

async fn is_violation(node: &Node) -> bool {
    matches!(closed(node).await, CloseReason::Violation(Violation::Malformed(_)))
}

#[test]
fn a_flipped_payload_byte_closes_and_nothing_is_handed_over() {
    run(async {
        let (mut rogue, node) = rogue_at(Scripted::echo()).await;
        let (address, mut bytes) = payload(1, MIB);
        bytes[777_777] ^= 4;
        rogue.say(store_header(1, address, MIB), &[]).await;
        rogue.send(bytes).await;
        assert_eq!(closed(&node).await, CloseReason::PayloadMismatch(address));
        assert_eq!(node.handler.handled.get(), 0);
        assert_eq!(node.pool.available(), 24);
    });
}

#[test]
fn a_flipped_byte_of_a_sealed_frame_closes() {
    run(async {
        let (mut rogue, node) = rogue_at(Scripted::echo()).await;
        let mut bytes = rogue.seal(FrameHeader::new(FrameKind::Fetch, 1), b"body");
        bytes[3] ^= 1;
        rogue.send(bytes).await;
        assert_eq!(closed(&node).await, CloseReason::Violation(Violation::Unreadable));
    });
}

#[test]
fn payloads_without_credit_are_a_breach() {
    run(async {
        let (mut rogue, node) = rogue_at(Scripted::mute()).await;
        let (address, bytes) = payload(1, 32);
        for number in 0..=u64::from(PAYLOAD_CREDIT) {
            rogue.say(store_header(2 * number + 1, address, 32), &[]).await;
            rogue.send(bytes.clone()).await;
        }
        assert!(is_violation(&node).await);
        assert_eq!(node.handler.handled.get(), PAYLOAD_CREDIT as usize);
    });
}

#[test]
fn a_payload_that_the_handler_does_not_take_never_gets_a_buffer() {
    run(async {
        let (mut rogue, node) = rogue_at(Scripted::mute()).await;
        node.handler.takes_payloads.set(false);
        // No byte of the payload follows: the header is enough.
        rogue.say(store_header(1, Address::ZERO, CHUNK_BYTES_MAX), &[]).await;
        assert!(is_violation(&node).await);
        assert_eq!((node.pool.available(), node.handler.handled.get()), (24, 0));
    });
}

#[test]
fn a_payload_in_the_answer_to_a_hello_never_gets_a_buffer() {
    run(async {
        let (mut rogue, node) = rogue_at(Scripted::mute()).await;
        let connection = node.connection();
        spawn(async move {
            // The node is the listener: its first request has the id 2.
            let header =
                FrameHeader { kind: FrameKind::Answer as u8, ..store_header(2, Address::ZERO, CHUNK_BYTES_MAX) };
            rogue.say(header, &[]).await;
            std::future::pending::<()>().await;
        });
        let asked = connection.request(FrameKind::Hello, Address::ZERO, 0, Vec::new(), None, LONG).await;
        assert!(matches!(asked.err(), Some(RequestError::Closed { .. })));
        assert!(is_violation(&node).await);
        assert_eq!(node.pool.available(), 24);
    });
}

#[test]
fn requests_beyond_what_the_handler_allows_are_refused_and_not_handed_over() {
    run(async {
        let (mut rogue, node) = rogue_at(Scripted::mute()).await;
        node.handler.requests_max.set(4);
        for number in 0..10 {
            rogue.say(FrameHeader::new(FrameKind::Fetch, 2 * number + 1), &[]).await;
        }
        let link = node.connection().link().clone();
        until("those beyond were answered", || link.serving.borrow().len() == 4).await;
        rogue.say(FrameHeader::new(FrameKind::Cancel, 1), &[]).await;
        until("one has ended", || link.serving.borrow().len() == 3).await;
        rogue.say(FrameHeader::new(FrameKind::Fetch, 101), &[]).await;
        until("there is a place again", || node.handler.handled.get() == 5).await;
        assert_eq!(node.handler.close_reason(), None);
    });
}

#[test]
fn breaches_of_the_order_of_requests_close() {
    run(async {
        use FrameKind::*;
        let network = Network::new();
        let frames = |kinds: &[(FrameKind, u64)]| kinds.iter().map(|(kind, id)| FrameHeader::new(*kind, *id)).collect();
        let granted = FrameHeader { credit: 1.into(), ..FrameHeader::new(Keepalive, 0) };
        let crowd = (0..=REQUESTS_IN_FLIGHT_MAX as u64).map(|n| FrameHeader::new(Fetch, 2 * n + 1)).collect();
        let cases: [(&str, Vec<FrameHeader>); 6] = [
            ("an id in use", frames(&[(Fetch, 1), (Fetch, 1)])),
            ("an id of ours", frames(&[(Fetch, 2)])),
            ("an answer to nothing", frames(&[(Answer, 2)])),
            ("a last word about nothing", frames(&[(Cancel, 2)])),
            ("credit for nothing", vec![granted]),
            ("too many at once", crowd),
        ];
        for (what, headers) in cases {
            let node = Node::listen(&network, Scripted::mute(), 1);
            let mut rogue = Rogue::dial(&network, &node).await;
            for header in headers {
                rogue.say(header, &[]).await;
            }
            assert!(is_violation(&node).await, "{what}");
        }
        let node = Node::listen(&network, Scripted::mute(), 1);
        let mut rogue = Rogue::dial(&network, &node).await;
        rogue.say(FrameHeader::new(Cancel, 5), &[]).await;
        rogue.say(FrameHeader::new(Fetch, 7), &[]).await;
        until("a cancel that came late means nothing", || node.handler.handled.get() == 1).await;
    });
}

#[test]
fn a_peer_that_is_killed_ends_requests_and_handlers() {
    run(async {
        let (mut rogue, node) = rogue_at(Scripted::mute()).await;
        rogue.say(FrameHeader::new(FrameKind::Fetch, 1), &[]).await;
        until("it is asked", || node.handler.handled.get() == 1).await;
        let connection = node.connection();
        spawn(async move {
            rogue.0.stream.shutdown().await;
            drop(rogue);
        });
        let error = ask(&connection, b"are you there").await.err().unwrap();
        assert!(matches!(error, RequestError::Closed { .. }), "{error}");
        assert!(matches!(closed(&node).await, CloseReason::HungUp | CloseReason::Lost(_)));
        assert!(!connection.is_open());
    });
}

#[test]
fn an_answer_that_stops_half_way_stalls() {
    run(async {
        let (mut rogue, node) = rogue_at(Scripted::mute()).await;
        let connection = node.connection();
        let (address, bytes) = payload(1, CHUNK_BYTES_MAX);
        spawn(async move {
            // The node is the listener: its first request has the id 2.
            let header = FrameHeader { kind: FrameKind::Answer as u8, ..store_header(2, address, CHUNK_BYTES_MAX) };
            rogue.say(header, &[]).await;
            rogue.send(bytes[..CHUNK_BYTES_MAX / 2].to_vec()).await;
            std::future::pending::<()>().await;
        });
        let stalled = ask(&connection, b"x").await.err();
        assert_eq!(stalled, Some(RequestError::Stalled { patience: LONG }));
        assert_eq!(closed(&node).await, CloseReason::Stalled(STALL_MAX));
        assert_eq!(node.pool.available(), 24);
    });
}

#[test]
fn a_peer_that_stops_reading_stalls() {
    run(async {
        let (_rogue, node) = rogue_at(Scripted::mute()).await;
        let connection = node.connection();
        let stores: Vec<_> = (0..PAYLOAD_CREDIT as u8).map(|seed| (connection.clone(), seed)).collect();
        for (connection, seed) in stores {
            spawn(async move { drop(store(&connection, seed, CHUNK_BYTES_MAX).await) });
        }
        assert_eq!(closed(&node).await, CloseReason::Stalled(STALL_MAX));
    });
}

#[test]
fn who_asks_and_cancels_without_reading_does_not_fill_our_queue() {
    run(async {
        let (mut rogue, node) = rogue_at(Scripted::mute()).await;
        spawn(async move {
            for thousand in 0.. {
                let mut flood = Vec::new();
                for number in thousand * 1000..(thousand + 1) * 1000 {
                    flood.extend(rogue.seal(FrameHeader::new(FrameKind::Fetch, 2 * number + 1), &[]));
                    flood.extend(rogue.seal(FrameHeader::new(FrameKind::Cancel, 2 * number + 1), &[]));
                }
                if rogue.0.stream.send_all(SendSource::Bytes(flood), STALL_MAX).await.is_err() {
                    return;
                }
            }
        });
        // Either it is too much at once, or our cancels stall on their way to it; both end the connection.
        let reason = closed(&node).await;
        assert!(matches!(reason, CloseReason::Violation(_) | CloseReason::Stalled(_)), "{reason}");
    });
}

#[test]
fn a_peer_that_gives_no_credit_gets_no_buffers_for_long() {
    run(async {
        let pool: Rc<std::cell::RefCell<Option<crate::io::BufferPool>>> = Rc::default();
        let own = pool.clone();
        let (mut rogue, node) = rogue_at(Scripted::new(move |_| {
            let pool = own.borrow().clone().expect("it listens");
            async move {
                let buffer = pool.take().await;
                let payload = Some(PayloadSource::Shared(buffer.freeze(), 4096..4096 + 32));
                Reply { payload, ..Reply::ok(Vec::new()) }
            }
        }))
        .await;
        *pool.borrow_mut() = Some(node.pool.clone());
        let asked = u64::from(PAYLOAD_CREDIT) + 6;
        for number in 0..asked {
            rogue.say(FrameHeader::new(FrameKind::Fetch, 2 * number + 1), &[]).await;
        }
        until("some answers wait for credit", || node.pool.available() == 24 - 6).await;
        let deadline = Instant::now() + 2 * STALL_MAX + Duration::from_secs(2);
        while node.pool.available() < 24 {
            assert!(Instant::now() < deadline, "{} buffers are still held", 24 - node.pool.available());
            rogue.say(FrameHeader::new(FrameKind::Keepalive, 0), &[]).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The next one is refused at once, and the connection goes on.
        rogue.say(FrameHeader::new(FrameKind::Fetch, 2 * asked + 1), &[]).await;
        until("it was handled", || node.handler.handled.get() == asked as usize + 1).await;
        until("its buffer is back", || node.pool.available() == 24).await;
        assert_eq!(node.handler.close_reason(), None);
    });
}
