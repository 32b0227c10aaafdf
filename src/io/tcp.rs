//! TCP streams and listeners.
//!
//! Each shard thread listens on the same port with a socket of its own (SO_REUSEPORT); the kernel spreads connections.
//! An accept waits by a poll and then takes the connection with a plain, non-blocking call: a dropped future loses no
//! connection and leaks no descriptor.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::buffers::Buffer;
use super::sockaddr::{bind, listen, set_option, tcp_socket};
use super::socket::{SendSource, Socket, stream_operations};
use crate::limits::LISTEN_BACKLOG;

pub struct TcpListener {
    listener: std::net::TcpListener,
    /// The same socket under another number.
    socket: Socket,
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
        Ok(TcpListener { listener, socket })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection. Safe to drop and ask again. `ECANCELED` after `cancel`.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            self.socket.check()?;
            match self.listener.accept() {
                Ok((stream, peer)) => return Ok((TcpStream::from_std(stream)?, peer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.readable().await?,
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

/// Errors of a connection that went away before it was taken.
pub(super) fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
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

    pub fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
        // The ring waits for blocking sockets only.
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
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
