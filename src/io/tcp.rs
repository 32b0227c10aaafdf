//! TCP streams and listeners.
//!
//! Each shard thread listens on the same port with a socket of its own (SO_REUSEPORT); the kernel spreads connections.
//! An accept waits by a poll and then takes the connection with a plain, non-blocking call: a dropped future loses no
//! connection and leaks no descriptor.
//!
//! Who connects decides when the connection ends, and may have ended it before it is taken: the socket then has no peer
//! any more. So the peer's address is the one that came with the accept, and what goes wrong with one socket costs that
//! socket alone.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::buffers::Buffer;
use super::ring::yield_now;
use super::sockaddr::{bind, listen, set_option, tcp_socket};
use super::socket::{SendSource, Socket, stream_operations};
use crate::limits::{ACCEPTS_AT_ONCE_MAX, LISTEN_BACKLOG};

pub struct TcpListener {
    listener: std::net::TcpListener,
    /// The same socket under another number.
    socket: Socket,
    /// Connections taken without a visit to the ring.
    taken: Cell<u32>,
}

impl TcpListener {
    /// Listens on `address`; `[::]` takes IPv4 too.
    pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        let socket = tcp_socket(address)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        if address.is_ipv6() {
            let only = i32::from(!address.ip().is_unspecified());
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, only)?;
        }
        bind(&socket, address)?;
        listen(&socket, LISTEN_BACKLOG)?;
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        let socket = Socket::new(listener.try_clone()?.into());
        Ok(TcpListener { listener, socket, taken: Cell::new(0) })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection. Safe to drop and ask again. `ECANCELED` after `cancel`. Other errors are this machine's (no
    /// descriptors, no memory), never those of one connection.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            if self.taken.get() >= ACCEPTS_AT_ONCE_MAX {
                self.taken.set(0);
                yield_now().await;
            }
            self.socket.check()?;
            self.taken.set(self.taken.get() + 1);
            match self.listener.accept() {
                Ok((stream, peer)) => match TcpStream::accepted(stream, peer) {
                    Ok(stream) => return Ok((stream, peer)),
                    Err(error) => tracing::debug!(%peer, %error, "a connection was dropped before it began"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.taken.set(0);
                    self.socket.readable().await?;
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends the pending accept, and every later one, with `ECANCELED`.
    pub async fn cancel(&self) {
        self.socket.cancel().await;
    }
}

/// Errors of a connection that went away before it was taken. Linux hands those that wait on the new socket to accept;
/// the list is that of accept(2).
pub(super) fn is_of_one_connection(error: &io::Error) -> bool {
    const OF_ONE: [i32; 13] = [
        libc::EINTR,
        libc::ECONNABORTED,
        libc::ECONNRESET,
        libc::EPERM,
        libc::EPROTO,
        libc::ENOPROTOOPT,
        libc::EOPNOTSUPP,
        libc::ENETDOWN,
        libc::ENETUNREACH,
        libc::ENONET,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
        libc::ETIMEDOUT,
    ];
    error.raw_os_error().is_some_and(|code| OF_ONE.contains(&code))
}

#[derive(Clone)]
pub struct TcpStream {
    socket: Rc<Socket>,
    peer: SocketAddr,
    local: SocketAddr,
}

impl TcpStream {
    pub async fn connect(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let socket = Socket::new(tcp_socket(address)?);
        socket.connect(address, timeout).await?;
        let stream = std::net::TcpStream::from(socket.fd().try_clone()?);
        stream.set_nodelay(true)?;
        let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
        Ok(TcpStream { socket: Rc::new(socket), peer, local })
    }

    /// `peer`: as accept told it. A connection that was reset meanwhile cannot tell any more; its first receive will.
    fn accepted(stream: std::net::TcpStream, peer: SocketAddr) -> io::Result<TcpStream> {
        // The ring waits for blocking sockets only.
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        Ok(TcpStream { socket: Rc::new(Socket::new(OwnedFd::from(stream))), peer, local })
    }

    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

stream_operations!(TcpStream);
