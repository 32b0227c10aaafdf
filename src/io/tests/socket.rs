use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use super::{LONG, local, on_ring, pattern, shared, tcp_pair, tcp_to_thread};
use crate::io::{Buffer, SendSource, TcpListener, TcpStream, spawn, yield_now};
use crate::limits::MIB;

#[test]
fn a_head_and_its_payload_arrive_as_one() {
    on_ring(async {
        let (near, far) = tcp_pair().await;
        let (head, payload) = (pattern(64, 1), pattern(MIB, 2));
        let source = SendSource::HeadAndShared(head.clone(), shared(&payload), 100..MIB - 100);
        let len_bytes = source.len();
        assert_eq!(len_bytes, 64 + MIB - 200);
        let sender = spawn(async move { near.send_all(source, LONG).await.expect("sent") });
        let (result, buffer) = far.recv_exact(Buffer::heap(64), 0..64, LONG).await;
        result.expect("a head");
        assert_eq!(buffer.as_slice(), head);
        let (result, buffer) = far.recv_exact(Buffer::heap(MIB), 4..MIB - 196, LONG).await;
        result.expect("a payload");
        assert!(buffer.as_slice()[4..MIB - 196] == payload[100..MIB - 100]);
        sender.await.expect("no panic");
    });
}

/// A resumed send must go on at the right byte, in the head or behind it.
#[test]
fn a_partly_sent_source_goes_on_where_it_stopped() {
    let (head, payload) = (pattern(64, 1), pattern(1000, 2));
    let source = SendSource::HeadAndShared(head, shared(&payload), 10..1000);
    let whole = source.pieces(0);
    for done in [0, 1, 63, 64, 65, 1053, 1054] {
        let [first, second] = source.pieces(done);
        assert_eq!(first.1 + second.1, 1054 - done);
        assert_eq!(first.0.addr(), whole[0].0.addr() + done.min(64));
        assert_eq!(second.0.addr(), whole[1].0.addr() + done.saturating_sub(64));
    }
}

#[test]
fn a_slow_reader_gets_all_of_a_vectored_send() {
    on_ring(async {
        let (near, mut far) = tcp_to_thread().await;
        let (head, payload) = (pattern(500_000, 3), pattern(9 * MIB, 4));
        let expected = [head.as_slice(), payload.as_slice()].concat();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            let mut piece = vec![0; 400_000];
            loop {
                let count = far.read(&mut piece).expect("read");
                if count == 0 {
                    return all;
                }
                all.extend_from_slice(&piece[..count]);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let source = SendSource::HeadAndShared(head, shared(&payload), 0..payload.len());
        near.send_all_more(source, Duration::from_millis(900)).await.expect("sent");
        near.send_all(SendSource::Bytes(vec![1]), LONG).await.expect("sent");
        near.shutdown().await;
        let all = reader.join().expect("no panic");
        assert!(all[..all.len() - 1] == expected && all.last() == Some(&1));
    });
}

#[test]
fn a_stalled_receive_ends_after_its_stall_time() {
    on_ring(async {
        let (near, far) = tcp_pair().await;
        for len_bytes in [64, MIB] {
            far.send_all(SendSource::Bytes(vec![1; 10]), LONG).await.expect("sent");
            let (started, mut seen) = (Instant::now(), 0);
            let stall = Duration::from_millis(700);
            let (result, _buffer) =
                near.recv_exact_with(Buffer::heap(len_bytes), 0..len_bytes, stall, |bytes| seen = bytes).await;
            assert_eq!(result.expect_err("it stalls").kind(), ErrorKind::TimedOut);
            assert_eq!(seen, 10, "what had come was progress");
            assert!(started.elapsed() >= stall, "ended after {:?}", started.elapsed());
        }
    });
}

#[test]
fn a_slow_drip_is_progress() {
    on_ring(async {
        let (near, mut far) = tcp_to_thread().await;
        let dripper = std::thread::spawn(move || {
            for number in 0..12_u8 {
                std::thread::sleep(Duration::from_millis(100));
                far.write_all(&[number; 1000]).expect("written");
            }
            far
        });
        let (started, mut steps) = (Instant::now(), Vec::new());
        // Twice the stall time in all, never as long without a byte.
        let stall = Duration::from_millis(600);
        let (result, buffer) =
            near.recv_exact_with(Buffer::heap(12_000), 0..12_000, stall, |bytes| steps.push(bytes)).await;
        result.expect("received");
        assert!(started.elapsed() > stall);
        assert!(steps.len() > 1 && steps.is_sorted() && steps.last() == Some(&12_000), "{steps:?}");
        assert!(buffer.as_slice().chunks(1000).zip(0..).all(|(chunk, number)| chunk == [number; 1000]));
        drop(dripper.join().expect("no panic"));
    });
}

#[test]
fn a_drip_from_the_untrusted_ends_in_time() {
    on_ring(async {
        let (near, mut far) = tcp_to_thread().await;
        let dripper = std::thread::spawn(move || {
            while far.write_all(&[1]).is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let (started, total) = (Instant::now(), Duration::from_millis(400));
        let (result, _buffer) = near.recv_exact_within(Buffer::heap(80), 0..80, total).await;
        assert_eq!(result.expect_err("too slow").kind(), ErrorKind::TimedOut);
        assert!(started.elapsed() >= total, "{:?}", started.elapsed());
        near.shutdown().await;
        drop(near);
        dripper.join().expect("the connection is closed");
    });
}

#[test]
fn a_stalled_send_ends_after_its_stall_time() {
    on_ring(async {
        let (near, _far) = tcp_pair().await;
        let stall = Duration::from_millis(600);
        let source = SendSource::Shared(shared(&vec![0; 32 * MIB]), 0..32 * MIB);
        let error = near.send_all(source, stall).await.expect_err("nobody reads");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn cancel_wakes_what_is_pending_and_is_final() {
    on_ring(async {
        let (near, far) = tcp_pair().await;
        let mut tasks = Vec::new();
        for exact in [false, true] {
            let near = near.clone();
            tasks.push(spawn(async move {
                let buffer = Buffer::heap(MIB);
                let code = if exact {
                    near.recv_exact(buffer, 0..MIB, Duration::MAX).await.0.expect_err("cancelled").raw_os_error()
                } else {
                    near.recv(buffer, 0..MIB).await.0.expect_err("cancelled").raw_os_error()
                };
                assert_eq!(code, Some(libc::ECANCELED));
            }));
        }
        yield_now().await;
        yield_now().await;
        near.cancel().await;
        for task in tasks {
            tokio::time::timeout(LONG, task).await.expect("woken").expect("no panic");
        }
        let error = near.send_all(SendSource::Bytes(vec![1]), LONG).await.expect_err("cancelled");
        assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
        drop(near);
        assert_eq!(far.recv(Buffer::heap(1), 0..1).await.0.expect("the end"), 0);
    });
}

#[test]
fn shutdown_wakes_a_pending_receive() {
    on_ring(async {
        let (near, far) = tcp_pair().await;
        let receiver = near.clone();
        let task = spawn(async move {
            let (result, _buffer) = receiver.recv_exact(Buffer::heap(64), 0..64, LONG).await;
            assert_eq!(result.expect_err("the end").kind(), ErrorKind::UnexpectedEof);
        });
        yield_now().await;
        yield_now().await;
        near.shutdown().await;
        tokio::time::timeout(LONG, task).await.expect("woken").expect("no panic");
        let error = near.send_all(SendSource::Bytes(vec![1]), LONG).await.expect_err("shut down");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert_eq!(far.recv(Buffer::heap(1), 0..1).await.0.expect("the end"), 0);
    });
}

#[test]
fn a_cancelled_listener_ends_its_accept() {
    on_ring(async {
        let listener = std::rc::Rc::new(TcpListener::bind(local()).expect("a listener"));
        let acceptor = std::rc::Rc::clone(&listener);
        let task = spawn(async move {
            let error = acceptor.accept().await.err().expect("cancelled");
            assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
        });
        yield_now().await;
        yield_now().await;
        listener.cancel().await;
        tokio::time::timeout(LONG, task).await.expect("woken").expect("no panic");
    });
}

#[test]
fn a_dropped_accept_loses_no_connection() {
    on_ring(async {
        let listener = TcpListener::bind(local()).expect("a listener");
        let address = listener.local_addr().expect("an address");
        for _ in 0..3 {
            let short = Duration::from_millis(1);
            assert!(tokio::time::timeout(short, listener.accept()).await.is_err());
        }
        let near = TcpStream::connect(address, LONG).await.expect("a connection");
        let (_far, peer) = listener.accept().await.expect("a connection");
        assert_eq!(peer, near.local_addr());
        assert_eq!(near.peer_addr(), address);
    });
}

/// Connects and resets the connection at once.
fn hit_and_run(address: std::net::SocketAddr) {
    let stream = std::net::TcpStream::connect(address).expect("a connection");
    crate::io::sockaddr::reset_at_end(&stream.into()).expect("an option");
}

#[test]
fn a_connection_that_was_reset_before_it_was_taken_is_no_error_of_the_listener() {
    on_ring(async {
        let listener = TcpListener::bind(local()).expect("a listener");
        let address = listener.local_addr().expect("an address");
        for _ in 0..3 {
            hit_and_run(address);
        }
        let near = TcpStream::connect(address, LONG).await.expect("a connection");
        loop {
            let (stream, peer) = listener.accept().await.expect("the listener is sound");
            assert_eq!(stream.peer_addr(), peer);
            if peer == near.local_addr() {
                return;
            }
            assert!(stream.recv(Buffer::heap(1), 0..1).await.0.is_err(), "it was reset");
        }
    });
}

#[test]
fn whoever_connects_in_a_crowd_leaves_others_their_turn() {
    on_ring(async {
        let listener = TcpListener::bind(local()).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let count = 2 * crate::limits::ACCEPTS_AT_ONCE_MAX;
        let crowd: Vec<_> = (0..count).map(|_| std::net::TcpStream::connect(address).expect("connected")).collect();
        let turns = std::rc::Rc::new(std::cell::Cell::new(0));
        let others = turns.clone();
        let task = spawn(async move {
            loop {
                others.set(others.get() + 1);
                yield_now().await;
            }
        });
        for _ in &crowd {
            listener.accept().await.expect("a connection");
        }
        assert!(turns.get() > 0);
        task.abort();
    });
}

/// What a dropped listener had pending must not keep its port open.
#[test]
fn a_dropped_listener_closes_its_port() {
    on_ring(async {
        let listener = TcpListener::bind(local()).expect("a listener");
        let address = listener.local_addr().expect("an address");
        assert!(tokio::time::timeout(Duration::from_millis(1), listener.accept()).await.is_err());
        drop(listener);
        yield_now().await;
        let error = TcpStream::connect(address, LONG).await.err().expect("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn listeners_share_a_port_and_v6_takes_v4() {
    on_ring(async {
        let first = TcpListener::bind(local()).expect("a listener");
        let again = TcpListener::bind(first.local_addr().expect("an address")).expect("the same port");
        assert_eq!(first.local_addr().expect("an address"), again.local_addr().expect("an address"));
        // Where the machine has IPv6 at all.
        if let Ok(both) = TcpListener::bind("[::]:0".parse().expect("an address")) {
            let port = both.local_addr().expect("an address").port();
            let v4 = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            TcpStream::connect(v4, LONG).await.expect("a connection");
        }
    });
}

#[test]
fn connecting_to_nobody_times_out() {
    on_ring(async {
        // A listener whose queue is full answers no more: the same as a host that is away, without leaving this one.
        let socket = crate::io::sockaddr::tcp_socket(local()).expect("a socket");
        crate::io::sockaddr::bind(&socket, local()).expect("bound");
        crate::io::sockaddr::listen(&socket, 0).expect("listening");
        let listener = std::net::TcpListener::from(socket);
        let address = listener.local_addr().expect("an address");
        let mut kept = Vec::new();
        let error = loop {
            assert!(kept.len() < 10, "the queue never fills up");
            match TcpStream::connect(address, Duration::from_millis(300)).await {
                Ok(stream) => kept.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    });
}
