//! Two honest nodes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};

use super::harness::*;
use crate::format::Address;
use crate::format::frame::{FrameKind, Status};
use crate::io::{Buffer, BufferPool, File, OpenOptions, map, spawn, yield_now};
use crate::limits::{
    BUFFER_WAIT_MAX, CHUNK_BYTES_MAX, KEEPALIVE_MISSED_MAX, MIB, PAYLOAD_CREDIT, RECORD_HEAD_BYTES,
    REQUESTS_IN_FLIGHT_MAX, SEALED_BODY_BYTES_MAX,
};
use crate::wire::*;

#[test]
fn bodies_of_every_length_come_back_as_they_were() {
    run(async {
        let pair = pair(Scripted::mute(), Scripted::echo()).await;
        for len in [0, 1, 79, 80, 4000, 4080, 4096, 5000, 40_000, SEALED_BODY_BYTES_MAX] {
            let (_, body) = payload(7, len);
            let answer = ask(&pair.connection, &body).await.unwrap();
            assert_eq!((answer.status, answer.body.len()), (Status::Ok, len));
            assert!(answer.body == body && answer.payload.is_none());
        }
        let long = ask(&pair.connection, &[0; SEALED_BODY_BYTES_MAX + 1]).await;
        assert!(matches!(long, Err(RequestError::TooLong { .. })));
        assert!(ask(&pair.connection, b"still open").await.is_ok());
    });
}

#[test]
fn payloads_of_every_length_arrive_verified_in_both_directions() {
    run(async {
        let pair = pair(Scripted::echo(), Scripted::echo()).await;
        let lengths = [1, 32, 3900, 4016, 4017, 4096, 65_536, CHUNK_BYTES_MAX - 1, CHUNK_BYTES_MAX];
        for connection in [pair.connection.clone(), pair.node.connection()] {
            for len in lengths {
                let answer = store(&connection, 3, len).await.unwrap();
                let (address, bytes) = payload(3, len);
                assert_eq!(answer.header.address, address);
                assert!(answer.payload.unwrap().bytes() == bytes, "{len} bytes");
            }
        }
        assert_eq!((pair.pool.available(), pair.node.pool.available()), (24, 24));
        // Stored and echoed, from either side.
        let moved = 2 * lengths.iter().sum::<usize>();
        for handler in [&pair.dialler, &pair.node.handler] {
            until("both directions are counted", || handler.payload_bytes.iter().all(|bytes| bytes.get() == moved))
                .await;
        }
    });
}

#[test]
fn a_shared_buffer_and_a_mapping_are_sent_from_where_they_lie() {
    run(async {
        let pair = pair(Scripted::mute(), Scripted::echo()).await;
        let (address, bytes) = payload(9, MIB);
        let mut buffer = Buffer::heap(RECORD_HEAD_BYTES + MIB);
        buffer.as_mut_slice()[RECORD_HEAD_BYTES..].copy_from_slice(&bytes);
        let source = PayloadSource::Shared(buffer.freeze(), RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + MIB);
        let answer = pair.connection.request(FrameKind::Store, address, 0, Vec::new(), Some(source), LONG).await;
        assert!(answer.unwrap().payload.unwrap().bytes() == bytes);

        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("chunk"), [vec![0; 4096], bytes.clone()].concat()).unwrap();
        let options = OpenOptions { read: true, ..OpenOptions::default() };
        let file = File::open(&directory.path().join("chunk"), &options).await.unwrap();
        let mapped = map(&file, 4096, MIB).unwrap();
        let guard = Rc::new(());
        let source = PayloadSource::Mapped(mapped, 0..MIB, Box::new(guard.clone()));
        let answer = pair.connection.request(FrameKind::Store, address, 0, Vec::new(), Some(source), LONG).await;
        assert!(answer.unwrap().payload.unwrap().bytes() == bytes);
        assert_eq!(Rc::strong_count(&guard), 1, "the guard is let go once everything is sent");
    });
}

type Gates = Rc<RefCell<HashMap<u8, Rc<Notify>>>>;

/// A handler whose request `n` waits until it is let go.
fn gated() -> (Rc<Scripted>, Gates) {
    let gates = Gates::default();
    let shared = gates.clone();
    let handler = Scripted::new(move |request| {
        let gate = Rc::new(Notify::new());
        shared.borrow_mut().insert(request.body[0], gate.clone());
        async move {
            gate.notified().await;
            Reply::ok(request.body)
        }
    });
    (handler, gates)
}

#[test]
fn pipelined_requests_are_answered_in_any_order() {
    run(async {
        let (handler, gates) = gated();
        let pair = pair(Scripted::mute(), handler).await;
        let answered = Rc::new(RefCell::new(Vec::new()));
        for number in 0..50u8 {
            let (connection, answered) = (pair.connection.clone(), answered.clone());
            spawn(async move {
                let answer = ask(&connection, &[number]).await.unwrap();
                answered.borrow_mut().push(answer.body[0]);
            });
        }
        until("all are asked", || gates.borrow().len() == 50).await;
        for number in (0..50u8).rev() {
            gates.borrow()[&number].notify_one();
            until("the next is answered", || answered.borrow().last() == Some(&number)).await;
        }
        assert_eq!(pair.connection.in_flight(), 0);
    });
}

#[test]
fn without_credit_payloads_wait_small_frames_pass_and_one_done_lets_one_in() {
    run(async {
        let (handler, gates) = gated();
        let pair = pair(Scripted::mute(), handler.clone()).await;
        let credit = PAYLOAD_CREDIT as usize;
        let done = Rc::new(Cell::new(0));
        for number in 0..PAYLOAD_CREDIT as u8 + 5 {
            let (connection, done) = (pair.connection.clone(), done.clone());
            spawn(async move {
                store(&connection, number, 100_000).await.unwrap();
                done.set(done.get() + 1);
            });
        }
        until("the credit is spent", || handler.handled.get() == credit).await;
        let connection = pair.connection.clone();
        spawn(async move { drop(ask(&connection, &[200]).await) });
        until("a small request passes", || gates.borrow().contains_key(&200)).await;
        assert_eq!(handler.handled.get(), credit + 1, "no payload came without credit");
        for number in 0..5u8 {
            gates.borrow()[&number].notify_one();
            until("one more is let in", || handler.handled.get() == credit + 2 + usize::from(number)).await;
        }
        gates.borrow().values().for_each(|gate| gate.notify_one());
        until("all are stored", || done.get() == credit + 5).await;
    });
}

/// Counts those of its requests that neither ended nor were dropped.
struct Alive(Rc<Cell<usize>>);

impl Alive {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[test]
fn a_dropped_request_ends_on_both_sides() {
    run(async {
        let alive = Rc::new(Cell::new(0));
        let count = alive.clone();
        let handler = Scripted::new(move |_| {
            let alive = Alive::new(&count);
            async move {
                let _alive = alive;
                std::future::pending().await
            }
        });
        let pair = pair(Scripted::mute(), handler).await;
        // More payloads than there is credit: some are withdrawn before they leave.
        let tasks: Vec<_> = (0..PAYLOAD_CREDIT as u8 + 8)
            .map(|number| {
                let connection = pair.connection.clone();
                spawn(async move { drop(store(&connection, number, 50_000).await) })
            })
            .collect();
        until("the credit is spent", || alive.get() == PAYLOAD_CREDIT as usize).await;
        assert_eq!(pair.connection.in_flight(), PAYLOAD_CREDIT as usize + 8);
        tasks.iter().for_each(|task| task.abort());
        until("the handlers are dropped", || alive.get() == 0).await;
        until("the asker has forgotten them", || pair.connection.in_flight() == 0).await;
        until("the buffers are back", || pair.node.pool.available() == 24).await;
        // All credit came back: as many can be under way again.
        for number in 0..PAYLOAD_CREDIT as u8 {
            let connection = pair.connection.clone();
            spawn(async move { drop(store(&connection, number, 50_000).await) });
        }
        until("all credit is usable", || alive.get() == PAYLOAD_CREDIT as usize).await;
    });
}

#[test]
fn cancels_that_cross_answers_lose_neither_credit_nor_places() {
    run(async {
        let pair = pair(Scripted::mute(), Scripted::echo()).await;
        for round in 0..300usize {
            let connection = pair.connection.clone();
            let task = spawn(async move { drop(store(&connection, round as u8, 20_000).await) });
            for _ in 0..round % 12 {
                yield_now().await;
            }
            task.abort();
        }
        until("nothing is left in flight", || pair.connection.in_flight() == 0).await;
        let done = Rc::new(Cell::new(0));
        for number in 0..3 * PAYLOAD_CREDIT as u8 {
            let (connection, done) = (pair.connection.clone(), done.clone());
            spawn(async move {
                let answer = store(&connection, number, 20_000).await.unwrap();
                assert!(answer.payload.unwrap().bytes() == payload(number, 20_000).1);
                done.set(done.get() + 1);
            });
        }
        until("the connection works as before", || done.get() == 3 * PAYLOAD_CREDIT as usize).await;
        assert!(pair.connection.is_open() && pair.node.connection().is_open());
    });
}

#[test]
fn requests_beyond_the_limit_wait_at_the_asker() {
    run(async {
        let gate = Rc::new(Semaphore::new(0));
        let (shared, peak, now) = (gate.clone(), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (highest, count) = (peak.clone(), now.clone());
        let handler = Scripted::new(move |request| {
            let (gate, alive) = (shared.clone(), Alive::new(&count));
            highest.set(highest.get().max(count.get()));
            async move {
                let _alive = alive;
                gate.acquire().await.unwrap().forget();
                Reply::ok(request.body)
            }
        });
        let pair = pair(Scripted::mute(), handler).await;
        let done = Rc::new(Cell::new(0));
        for _ in 0..2 * REQUESTS_IN_FLIGHT_MAX {
            let (connection, done) = (pair.connection.clone(), done.clone());
            spawn(async move {
                ask(&connection, b"x").await.unwrap();
                done.set(done.get() + 1);
            });
        }
        until("the places are full", || now.get() == REQUESTS_IN_FLIGHT_MAX).await;
        gate.add_permits(2 * REQUESTS_IN_FLIGHT_MAX);
        until("all are answered", || done.get() == 2 * REQUESTS_IN_FLIGHT_MAX).await;
        assert!(peak.get() <= REQUESTS_IN_FLIGHT_MAX);
    });
}

#[test]
fn a_request_without_progress_stalls_alone_and_is_cancelled() {
    run(async {
        let (handler, gates) = gated();
        let pair = pair(Scripted::mute(), handler).await;
        let patience = Duration::from_millis(100);
        let begun = Instant::now();
        let stalled = pair.connection.request(FrameKind::Fetch, Address::ZERO, 0, vec![1], None, patience).await.err();
        assert_eq!(stalled, Some(RequestError::Stalled { patience }));
        assert!(begun.elapsed() >= patience);
        until("it is cancelled", || pair.connection.in_flight() == 0).await;
        assert_eq!(Rc::strong_count(&gates.borrow()[&1]), 1, "its handler is gone");
        assert!(pair.connection.is_open());
    });
}

#[test]
fn without_buffers_a_payload_is_refused_and_the_connection_lives() {
    run(async {
        let pair = pair_with(Scripted::mute(), 1, Scripted::echo(), 1).await;
        let taken = pair.node.pool.take().await;
        let begun = Instant::now();
        let answer = store(&pair.connection, 1, 300_000).await.unwrap();
        assert_eq!(answer.status, Status::Unavailable);
        assert!(begun.elapsed() >= BUFFER_WAIT_MAX);
        assert_eq!(pair.node.handler.handled.get(), 0);
        drop(taken);
        let ours = pair.pool.take().await;
        assert_eq!(store(&pair.connection, 2, 300_000).await.err(), Some(RequestError::NoBuffer));
        drop(ours);
        assert!(store(&pair.connection, 3, 300_000).await.unwrap().payload.is_some());
    });
}

#[test]
fn an_idle_connection_stays_open() {
    run(async {
        let pair = pair(Scripted::mute(), Scripted::echo()).await;
        tokio::time::sleep(KEEPALIVE_MISSED_MAX + Duration::from_millis(1500)).await;
        assert!(pair.connection.is_open() && pair.node.connection().is_open());
        assert!(ask(&pair.connection, b"hello").await.is_ok());
    });
}

#[test]
fn a_goodbye_carries_words_and_ends_what_is_under_way() {
    run(async {
        let pair = pair(Scripted::mute(), Scripted::mute()).await;
        let (connection, told) = (pair.connection.clone(), Rc::new(RefCell::new(None)));
        let tell = told.clone();
        spawn(async move { *tell.borrow_mut() = ask(&connection, b"x").await.err() });
        until("it is asked", || pair.node.handler.handled.get() == 1).await;
        pair.node.connection().close("closing for the night").await;
        until("the dialler is told", || pair.dialler.close_reason().is_some()).await;
        let reason = CloseReason::Goodbye("closing for the night".to_owned());
        assert_eq!(pair.dialler.close_reason(), Some(reason.clone()));
        assert_eq!(*told.borrow(), Some(RequestError::Closed { reason: reason.clone() }));
        let here = CloseReason::Here("closing for the night".to_owned());
        until("the listener is told", || pair.node.handler.close_reason() == Some(here.clone())).await;
        assert!(!pair.connection.is_open() && !pair.node.connection().is_open());
        assert_eq!(ask(&pair.connection, b"y").await.err(), Some(RequestError::Closed { reason }));
        assert_eq!((pair.dialler.closed.borrow().len(), pair.node.handler.closed.borrow().len()), (1, 1));
    });
}

/// Takes what is stored, and answers fetches from its own buffers, a few at a time.
fn busy_node(pool: Rc<RefCell<Option<BufferPool>>>) -> Rc<Scripted> {
    let readers = Arc::new(Semaphore::new(6));
    Scripted::new(move |request| {
        let (pool, readers) = (pool.borrow().clone(), readers.clone());
        async move {
            if let Some(payload) = request.payload {
                yield_now().await;
                yield_now().await;
                assert!(payload.bytes().len() > 100_000);
                return Reply::ok(request.body);
            }
            let permit = readers.acquire_owned().await.unwrap();
            let mut buffer = pool.unwrap().take().await;
            let (address, bytes) = payload(request.body[0], 250_000);
            buffer.as_mut_slice()[..bytes.len()].copy_from_slice(&bytes);
            let payload = Some(PayloadSource::Shared(buffer.freeze(), 0..bytes.len()).guarded(permit));
            Reply { address, payload, ..Reply::ok(request.body) }
        }
    })
}

#[test]
fn stores_and_fetches_in_both_directions_at_once_all_succeed() {
    run(async {
        // Fewer buffers than payloads under way: nothing may wait in a circle, nothing be refused.
        let pools = [Rc::default(), Rc::default()];
        let [ours, theirs] = pools.clone().map(busy_node);
        let pair = pair_with(ours, 30, theirs, 30).await;
        *pools[0].borrow_mut() = Some(pair.pool.clone());
        *pools[1].borrow_mut() = Some(pair.node.pool.clone());
        let done = Rc::new(Cell::new(0));
        for number in 0..60u8 {
            for connection in [pair.connection.clone(), pair.node.connection()] {
                let (done, storing) = (done.clone(), connection.clone());
                let count = done.clone();
                spawn(async move {
                    assert_eq!(store(&storing, number, 200_000).await.unwrap().status, Status::Ok);
                    count.set(count.get() + 1);
                });
                spawn(async move {
                    let answer = ask(&connection, &[number]).await.unwrap();
                    assert!(answer.payload.unwrap().bytes() == payload(number, 250_000).1);
                    done.set(done.get() + 1);
                });
            }
        }
        until("all are answered", || done.get() == 240).await;
        assert!(pair.connection.is_open() && pair.connection.in_flight() == 0);
        assert_eq!((pair.pool.available(), pair.node.pool.available()), (30, 30));
    });
}

#[test]
fn a_session_that_is_over_says_so_and_the_next_one_works() {
    run(async {
        let pair = pair(Scripted::mute(), Scripted::echo()).await;
        pair.node.connection().link().leave(CloseReason::SessionOver).await;
        until("it is over", || pair.node.handler.close_reason() == Some(CloseReason::SessionOver)).await;
        until("the dialler is told", || pair.dialler.close_reason().is_some()).await;
        assert_eq!(pair.dialler.close_reason(), Some(CloseReason::Goodbye(CloseReason::SessionOver.to_string())));
        let identity = pair.network.identity();
        let next = Connection::dial(pair.node.address, &identity, None, pair.pool.clone(), Scripted::mute()).await;
        assert!(ask(&next.unwrap(), b"hello again").await.is_ok());
    });
}

#[test]
fn a_dial_that_is_dropped_leaves_nothing_behind() {
    run(async {
        let network = Network::new();
        let node = Node::listen(&network, Scripted::mute(), 1);
        let pool = BufferPool::new(1).unwrap();
        for turns in 0..40usize {
            let (identity, pool, address) = (network.identity(), pool.clone(), node.address);
            let handler = Scripted::mute();
            let dialler = handler.clone();
            let task = spawn(async move { drop(Connection::dial(address, &identity, None, pool, dialler).await) });
            for _ in 0..turns {
                yield_now().await;
            }
            task.abort();
            let known = handler.clone();
            until("the dialler has ended", move || {
                Rc::strong_count(&known) == 2 || !known.connected.borrow().is_empty()
            })
            .await;
            let connections = handler.connected.borrow().clone();
            for connection in connections {
                connection.close("was not wanted").await;
            }
        }
        let (opened, closed) = (&node.handler.connected, &node.handler.closed);
        until("the node has seen all of them end", || opened.borrow().len() == closed.borrow().len()).await;
    });
}

#[test]
fn a_connection_that_has_ended_is_freed_whatever_was_under_way() {
    run(async {
        for kind in 0..3 {
            let pair = pair(Scripted::mute(), Scripted::mute()).await;
            let ends = [pair.connection.clone(), pair.node.connection()];
            let links = ends.clone().map(|connection| Rc::downgrade(connection.link()));
            for number in 0..PAYLOAD_CREDIT as u8 + 4 {
                for connection in ends.clone() {
                    spawn(async move { drop(store(&connection, number, 50_000).await) });
                    // Some end while requests arrive, some while all handlers run.
                    for _ in 0..kind {
                        yield_now().await;
                    }
                }
            }
            if kind == 2 {
                until("handlers run", || pair.node.handler.handled.get() == PAYLOAD_CREDIT as usize).await;
            }
            ends[kind % 2].close("enough").await;
            until("both ends are told", || {
                pair.dialler.closed.borrow().len() + pair.node.handler.closed.borrow().len() == 2
            })
            .await;
            pair.dialler.connected.borrow_mut().clear();
            pair.node.handler.connected.borrow_mut().clear();
            let (ours, theirs) = (pair.pool.clone(), pair.node.pool.clone());
            drop((pair, ends));
            until("both are freed", || links.iter().all(|link| link.strong_count() == 0)).await;
            assert_eq!((ours.available(), theirs.available()), (24, 24));
        }
    });
}
