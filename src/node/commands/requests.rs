//! What a client asks for on its connection: requests one behind the other, a descriptor with the first.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use crate::io::{Buffer, UnixStream};
use crate::limits::{CLIENT_STALL_MAX, CONTROL_READ_BYTES};
use crate::node::control::{ControlRequest, LENGTH_BYTES, ProtocolError, message_len};

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
        Self { buffer: Buffer::heap(CONTROL_READ_BYTES), held: 0..0 }
    }

    /// The first request, and the descriptor that came with it.
    pub async fn first(&mut self, stream: &UnixStream) -> (Received, Option<OwnedFd>) {
        let (outcome, buffer) = stream.recv_with_fds(self.take_buffer(), 0..CONTROL_READ_BYTES).await;
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
        // Whoever sends one long request often sends another: room for it is kept until a short one comes.
        if self.held.is_empty() && self.buffer.len() > CONTROL_READ_BYTES && len <= CONTROL_READ_BYTES {
            self.buffer = Buffer::heap(CONTROL_READ_BYTES);
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
        let (received, buffer) = stream.recv(self.take_buffer(), 0..CONTROL_READ_BYTES).await;
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
        let (outcome, buffer) = stream.recv_exact(buffer, begun..len, CLIENT_STALL_MAX).await;
        (self.buffer, self.held) = (buffer, 0..len);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream as StdUnixStream;

    use super::*;
    use crate::format::name::Metadata;
    use crate::io::{Ring, RingOptions, send_with_fds};
    use crate::node::control::{Bytes, SmallFile, Target};

    fn stat(key: &str) -> ControlRequest {
        ControlRequest::Stat { target: Target::Name { bucket: "main".into(), key: key.into() } }
    }

    /// Longer than what is received at once.
    fn long() -> ControlRequest {
        let contents = Bytes((0..3 * CONTROL_READ_BYTES).map(|at| at as u8).collect());
        let file = SmallFile { key: "long".into(), metadata: Metadata::default(), contents };
        ControlRequest::PutSmall { bucket: "main".into(), no_dedup: false, no_clobber: false, files: vec![file] }
    }

    fn on_ring<T>(test: impl AsyncFnOnce(UnixStream, StdUnixStream) -> T) -> T {
        let (near, far) = StdUnixStream::pair().unwrap();
        Ring::new(&RingOptions::default())
            .unwrap()
            .block_on(async { test(UnixStream::from_std(near).unwrap(), far).await })
    }

    #[test]
    fn requests_come_out_as_they_went_in_however_they_are_cut() {
        let sent = [stat("a"), long(), stat("b"), stat("c"), long()];
        let bytes = sent.iter().flat_map(|request| request.encode()).collect::<Vec<_>>();
        for cut in [1, 3, LENGTH_BYTES, LENGTH_BYTES + 1, 1000, CONTROL_READ_BYTES, bytes.len()] {
            let received = on_ring(async |stream, mut far| {
                let bytes = bytes.clone();
                let writer = std::thread::spawn(move || {
                    bytes.chunks(cut).for_each(|piece| far.write_all(piece).unwrap());
                });
                let mut requests = Requests::new();
                let (first, descriptor) = requests.first(&stream).await;
                assert!(descriptor.is_none());
                let mut received = vec![first.unwrap().unwrap()];
                for _ in 1..sent.len() {
                    received.push(requests.next(&stream).await.unwrap().unwrap());
                }
                writer.join().unwrap();
                let end = requests.next(&stream).await.unwrap_err();
                assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
                received
            });
            assert!(
                received.iter().map(ControlRequest::encode).eq(sent.iter().map(ControlRequest::encode)),
                "by {cut}"
            );
        }
    }

    #[test]
    fn descriptor_comes_with_the_first_request() {
        on_ring(async |stream, far| {
            let (mut reader, writer) = io::pipe().unwrap();
            send_with_fds(&far, &long().encode(), &[writer.as_fd()]).unwrap();
            drop(writer);
            let (request, descriptor) = Requests::new().first(&stream).await;
            assert_eq!(request.unwrap().unwrap().encode(), long().encode());
            std::fs::File::from(descriptor.unwrap()).write_all(b"passed").unwrap();
            let mut passed = Vec::new();
            reader.read_to_end(&mut passed).unwrap();
            assert_eq!(passed, b"passed");
        });
    }

    #[test]
    fn what_is_too_long_or_cut_off_is_no_request() {
        for (bytes, kind) in [
            (u32::MAX.to_le_bytes().to_vec(), io::ErrorKind::InvalidData),
            (stat("a").encode()[..7].to_vec(), io::ErrorKind::UnexpectedEof),
            (long().encode()[..20_000].to_vec(), io::ErrorKind::UnexpectedEof),
            (vec![1], io::ErrorKind::UnexpectedEof),
            (vec![], io::ErrorKind::UnexpectedEof),
        ] {
            on_ring(async |stream, mut far| {
                far.write_all(&bytes).unwrap();
                drop(far);
                let (request, _) = Requests::new().first(&stream).await;
                assert_eq!(request.unwrap_err().kind(), kind, "{} bytes", bytes.len());
            });
        }
    }
}
