//! Socket addresses in the form that the kernel reads.
#![allow(unsafe_code)] // raw sockets: creation, options, bind

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// An IPv4 or IPv6 address as a `sockaddr`, at the beginning of the value.
#[repr(C)]
pub(super) union RawAddress {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    pub(super) fn new(address: SocketAddr) -> RawAddress {
        match address {
            SocketAddr::V4(address) => RawAddress {
                v4: libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                },
            },
            SocketAddr::V6(address) => RawAddress {
                v6: libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                },
            },
        }
    }

    pub(super) fn len_bytes(&self) -> libc::socklen_t {
        // SAFETY: both variants begin with the family.
        let family = unsafe { self.v4.sin_family };
        let len_bytes = if i32::from(family) == libc::AF_INET {
            size_of::<libc::sockaddr_in>()
        } else {
            size_of::<libc::sockaddr_in6>()
        };
        len_bytes as libc::socklen_t
    }
}

pub(super) fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A stream socket that closes on exec.
pub(super) fn stream_socket(domain: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let number = check(unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just made, and known to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

pub(super) fn tcp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    stream_socket(if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 })
}

pub(super) fn set_option(socket: &OwnedFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let len_bytes = size_of::<i32>() as libc::socklen_t;
    // SAFETY: points to an i32 that outlives the call, with its size.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len_bytes) })
        .map(drop)
}

/// Lets the end of this socket reset its connection.
#[cfg(test)]
pub(super) fn reset_at_end(socket: &OwnedFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let len_bytes = size_of::<libc::linger>() as libc::socklen_t;
    let (level, option, fd) = (libc::SOL_SOCKET, libc::SO_LINGER, socket.as_raw_fd());
    // SAFETY: points to a linger that outlives the call, with its size.
    check(unsafe { libc::setsockopt(fd, level, option, (&raw const linger).cast(), len_bytes) }).map(drop)
}

pub(super) fn bind(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let address = RawAddress::new(address);
    let len_bytes = address.len_bytes();
    // SAFETY: points to an address of that length that outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len_bytes) }).map(drop)
}

pub(super) fn bind_path(socket: &OwnedFd, path: &[u8]) -> io::Result<()> {
    // SAFETY: all-zero is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // One byte stays zero and ends the path.
    if path.len() >= address.sun_path.len() || path.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket path is too long or holds a zero byte"));
    }
    for (slot, byte) in address.sun_path.iter_mut().zip(path) {
        *slot = byte.cast_signed();
    }
    let len_bytes = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: points to an address of that length that outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len_bytes) }).map(drop)
}

/// Mode of the socket file that `bind` will make: set on the socket before, so that no moment has another.
pub(super) fn set_socket_mode(socket: &OwnedFd, mode: u32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), mode) }).map(drop)
}

pub(super) fn listen(socket: &OwnedFd, backlog: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) }).map(drop)
}
