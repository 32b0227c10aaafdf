//! Facts about the layer, each on a real ring.

mod buffers;
mod file;
mod mmap;
mod ring;
mod socket;
mod system;
mod unix;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Buffer, Ring, RingOptions, SharedBuffer, TcpListener, TcpStream};

pub(super) const LONG: Duration = Duration::from_secs(20);

/// Runs a test on a ring of its own.
pub(super) fn on_ring<F: Future>(future: F) -> F::Output {
    Ring::new(&RingOptions::default()).expect("a ring").block_on(future)
}

/// Bytes that differ from place to place.
pub(super) fn pattern(len_bytes: usize, seed: u8) -> Vec<u8> {
    (0..len_bytes).map(|place| (place.wrapping_mul(31) >> 3) as u8 ^ place as u8 ^ seed).collect()
}

pub(super) fn shared(bytes: &[u8]) -> SharedBuffer {
    Buffer::copy_of(bytes).freeze()
}

pub(super) fn local() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// Both ends of a connection.
pub(super) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(local()).expect("a listener");
    let near = TcpStream::connect(listener.local_addr().expect("an address"), LONG).await.expect("a connection");
    let (far, peer) = listener.accept().await.expect("a connection");
    assert_eq!(peer, near.local_addr());
    (near, far)
}

/// Our end on the ring, the other end for a plain thread.
pub(super) async fn tcp_to_thread() -> (TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind(local()).expect("a listener");
    let ours = TcpStream::connect(listener.local_addr().expect("an address"), LONG).await.expect("a connection");
    (ours, listener.accept().expect("a connection").0)
}
