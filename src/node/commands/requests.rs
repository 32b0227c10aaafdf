//! What a client asks for on its connection: requests one behind the other, a descriptor with the first.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use super::CLIENT_STALL;
use crate::io::{Buffer, UnixStream};
use crate::node::control::{ControlRequest, LENGTH_BYTES, ProtocolError, message_len};

/// A small file of a few KiB fits.
const REQUEST_BYTES: usize = 16 << 10;

/// A short request is taken with one receive.
pub(super) struct Requests {
    buffer: Buffer,
    /// What was received and not taken yet.
    held: Range<usize>,
}

/// A request, or what is wrong with it. An error of the connection is also that the client has hung up.
pub(super) type Received = io::Result<Result<ControlRequest, ProtocolError>>;

impl Requests {
    pub fn new() -> Self {
        Self { buffer: Buffer::heap(REQUEST_BYTES), held: 0..0 }
    }

    /// The first request, and the descriptor that came with it.
    pub async fn first(&mut self, stream: &UnixStream) -> (Received, Option<OwnedFd>) {
        let (outcome, buffer) = stream.recv_with_fds(self.take_buffer(), 0..REQUEST_BYTES).await;
        self.buffer = buffer;
        match outcome {
            Ok((received, descriptors)) => {
                self.held = 0..received;
                (self.next(stream).await, descriptors.into_iter().next())
            }
            Err(error) => (Err(error), None),
        }
    }

    pub async fn next(&mut self, stream: &UnixStream) -> Received {
        if self.held.is_empty() {
            self.receive(stream).await?;
        }
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let head = loop {
            match self.held().first_chunk::<LENGTH_BYTES>() {
                Some(head) => break *head,
                None => self.complete(stream, LENGTH_BYTES).await?,
            }
        };
        let len = LENGTH_BYTES + message_len(head).map_err(invalid)?;
        if self.held.len() < len {
            self.complete(stream, len).await?;
        }
        let request = ControlRequest::decode(self.held().get(LENGTH_BYTES..len).unwrap_or_default());
        self.held.start += len;
        if self.held.is_empty() && self.buffer.len() > REQUEST_BYTES {
            self.buffer = Buffer::heap(REQUEST_BYTES);
        }
        Ok(request)
    }

    fn held(&self) -> &[u8] {
        self.buffer.as_slice().get(self.held.clone()).unwrap_or_default()
    }

    fn take_buffer(&mut self) -> Buffer {
        std::mem::replace(&mut self.buffer, Buffer::heap(0))
    }

    /// Waits for a request for as long as it takes.
    async fn receive(&mut self, stream: &UnixStream) -> io::Result<()> {
        let (received, buffer) = stream.recv(self.take_buffer(), 0..REQUEST_BYTES).await;
        self.buffer = buffer;
        self.held = 0..received?;
        if self.held.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Receives the rest of what has begun, until `len` bytes of it are held.
    async fn complete(&mut self, stream: &UnixStream, len: usize) -> io::Result<()> {
        let begun = self.held.len();
        if len > self.buffer.len() {
            let mut longer = Buffer::heap(len);
            longer.as_mut_slice().split_at_mut(begun).0.copy_from_slice(self.held());
            self.buffer = longer;
        } else {
            self.buffer.as_mut_slice().copy_within(self.held.clone(), 0);
        }
        let buffer = self.take_buffer();
        let (outcome, buffer) = stream.recv_exact(buffer, begun..len, CLIENT_STALL).await;
        (self.buffer, self.held) = (buffer, 0..len);
        outcome
    }
}
