//! The receiving direction: bytes to frames, payloads to their place, frames to whom they concern.
//!
//! While it looks for a header the reader receives into a small buffer of its own, as much as comes: many small
//! frames in one call. Of a payload at most that much is copied; the rest is received in one call straight to where
//! it stays, `buffer[RECORD_HEAD_BYTES..]` of a pool buffer, and checked there. A body longer than the small buffer
//! gets one of its own for as long as it takes.
//!
//! An idle connection costs one pending receive and [`READ_AHEAD_BYTES`].

use std::ops::Range;
use std::rc::Rc;

use tokio::time::timeout;

use super::asking::Delivery;
use super::connection::Connection;
use super::decoder::{Decoder, Frame, Step};
use super::handshake::Unsealer;
use super::link::{Grant, Link};
use super::{CloseReason, Handler, Payload, Request};
use crate::crypto::hash::address_of;
use crate::format::Malformed;
use crate::format::frame::FrameKind;
use crate::io::{Buffer, Turn};
use crate::limits::{
    BUFFER_WAIT_MAX, GOODBYE_CHARS_MAX, READ_AHEAD_BYTES, RECORD_HEAD_BYTES, SCRATCH_BYTES, STALL_MAX,
};

pub(super) async fn read<H: Handler>(link: Rc<Link>, decoder: Decoder<Unsealer>, handler: Rc<H>) {
    let mut reader = Reader { link: link.clone(), decoder, handler: handler.clone(), ahead: Ahead::new() };
    if let Err(reason) = reader.run().await {
        link.end(reason);
    }
    drop(reader);
    if let Some(reason) = link.reason().filter(|_| link.is_announced()) {
        handler.closed(&Connection::of(&link), &reason);
    }
}

/// Bytes that were received and not yet looked at.
struct Ahead {
    /// `None` only during a receive.
    buffer: Option<Buffer>,
    filled: Range<usize>,
}

impl Ahead {
    fn new() -> Self {
        Self { buffer: Some(Buffer::heap(READ_AHEAD_BYTES)), filled: 0..0 }
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().and_then(|buffer| buffer.as_slice().get(self.filled.clone())).unwrap_or_default()
    }

    fn consume(&mut self, bytes: usize) {
        self.filled.start += bytes;
    }

    /// Moves what is left to the front of a buffer with room for `bytes`: the small one, or one that fits exactly.
    fn make_room(&mut self, bytes: usize) -> Buffer {
        let wanted = bytes.max(READ_AHEAD_BYTES);
        let left = self.filled.len();
        let buffer = match self.buffer.take() {
            Some(mut buffer) if buffer.len() == wanted => {
                buffer.as_mut_slice().copy_within(self.filled.clone(), 0);
                buffer
            }
            old => {
                let mut buffer = Buffer::heap(wanted);
                let bytes = old.as_ref().and_then(|old| old.as_slice().get(self.filled.clone()));
                if let (Some(to), Some(from)) = (buffer.as_mut_slice().get_mut(..left), bytes) {
                    to.copy_from_slice(from);
                }
                buffer
            }
        };
        self.filled = 0..left;
        buffer
    }
}

struct Reader<H> {
    link: Rc<Link>,
    decoder: Decoder<Unsealer>,
    handler: Rc<H>,
    ahead: Ahead,
}

impl<H: Handler> Reader<H> {
    async fn run(&mut self) -> Result<(), CloseReason> {
        while !self.link.is_closed() {
            let (used, step) = self.decoder.step(self.ahead.bytes())?;
            self.ahead.consume(used);
            match step {
                Step::Need(bytes) => self.fill(bytes).await?,
                Step::Frame(frame) => self.take_frame(frame).await?,
                Step::Payload(missing) => unreachable!("{missing} bytes of a payload were left behind"),
            }
        }
        Ok(())
    }

    /// Receives until `bytes` are there, and whatever comes with them.
    async fn fill(&mut self, bytes: usize) -> Result<(), CloseReason> {
        while self.ahead.filled.len() < bytes {
            let buffer = self.ahead.make_room(bytes);
            let (start, end) = (self.ahead.filled.end, buffer.len());
            let (received, buffer) = self.link.stream.recv(buffer, start..end).await;
            self.ahead.buffer = Some(buffer);
            match received {
                Ok(0) => return Err(CloseReason::HungUp),
                Ok(count) => self.ahead.filled.end += count,
                Err(error) => return Err(CloseReason::of_io(&error, STALL_MAX)),
            }
            self.link.heard();
        }
        Ok(())
    }

    async fn take_frame(&mut self, frame: Frame) -> Result<(), CloseReason> {
        self.link.note_header(&frame.header)?;
        if !self.link.announce() {
            self.handler.connected(&Connection::of(&self.link));
        }
        if frame.header.payload_bytes.get() == 0 {
            return self.dispatch(frame, None);
        }
        if frame.kind != FrameKind::Answer && !self.handler.takes_payload(&self.link.peer, frame.kind) {
            return Err(Malformed::new("payload of a request that takes none").into());
        }
        let (grant, is_wanted) = self.link.payload_begins(&frame.header, frame.kind)?;
        let buffer = if is_wanted { self.take_buffer().await } else { None };
        let payload_bytes = frame.header.payload_bytes.get() as usize;
        match buffer {
            Some(buffer) => {
                let payload = self.receive_payload(buffer, payload_bytes).await?;
                let turn = Turn::take(payload_bytes).await;
                let found = address_of(payload.bytes());
                turn.pass();
                if found != frame.header.address {
                    return Err(CloseReason::PayloadMismatch(frame.header.address));
                }
                self.link.payload_ended();
                self.handler.payload_received(payload_bytes);
                self.dispatch(frame, Some((payload, grant)))
            }
            None => {
                self.throw_away(payload_bytes).await?;
                self.link.payload_ended();
                drop(grant);
                self.refuse(frame)
            }
        }
    }

    async fn take_buffer(&self) -> Option<Buffer> {
        let pool = &self.link.pool;
        if let Some(buffer) = pool.try_take() {
            return Some(buffer);
        }
        timeout(BUFFER_WAIT_MAX, pool.take()).await.ok()
    }

    /// The payload, at its place: what was read ahead is copied, the rest received there.
    async fn receive_payload(&mut self, mut buffer: Buffer, len: usize) -> Result<Payload, CloseReason> {
        let copied = self.ahead.bytes().len().min(len);
        let place = buffer.as_mut_slice().get_mut(RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + copied);
        if let (Some(place), Some(bytes)) = (place, self.ahead.bytes().get(..copied)) {
            place.copy_from_slice(bytes);
        }
        self.ahead.consume(copied);
        if copied < len {
            let rest = RECORD_HEAD_BYTES + copied..RECORD_HEAD_BYTES + len;
            let (received, given_back) = self.link.stream.recv_exact(buffer, rest, STALL_MAX).await;
            buffer = given_back;
            received.map_err(|error| CloseReason::of_io(&error, STALL_MAX))?;
            self.link.heard();
        }
        self.decoder.payload_taken(len);
        Ok(Payload { buffer, len })
    }

    async fn throw_away(&mut self, len: usize) -> Result<(), CloseReason> {
        let copied = self.ahead.bytes().len().min(len);
        self.ahead.consume(copied);
        let mut missing = len - copied;
        let mut scratch = Buffer::heap(missing.min(SCRATCH_BYTES));
        while missing > 0 {
            let piece = missing.min(SCRATCH_BYTES);
            let (received, given_back) = self.link.stream.recv_exact(scratch, 0..piece, STALL_MAX).await;
            scratch = given_back;
            received.map_err(|error| CloseReason::of_io(&error, STALL_MAX))?;
            self.link.heard();
            missing -= piece;
        }
        self.decoder.payload_taken(len);
        Ok(())
    }

    fn dispatch(&self, frame: Frame, payload: Option<(Payload, Grant)>) -> Result<(), CloseReason> {
        let Frame { header, kind, body } = frame;
        match kind {
            FrameKind::Keepalive => Ok(()),
            FrameKind::Goodbye => Err(CloseReason::Goodbye(printable(&body))),
            FrameKind::Cancel if self.link.is_ours(header.request.get()) => {
                self.link.dropped_by_peer(header.request.get())
            }
            FrameKind::Cancel => {
                self.link.cancelled(header.request.get());
                Ok(())
            }
            FrameKind::Answer => self.link.deliver(Delivery { frame: (header, body), payload, refused: false }),
            kind => {
                let (payload, grant) = payload.unzip();
                self.link.serve(&self.handler, Request { header, kind, body, payload }, grant)
            }
        }
    }

    /// A frame whose payload was thrown away.
    fn refuse(&self, frame: Frame) -> Result<(), CloseReason> {
        let Frame { header, kind, body } = frame;
        if kind == FrameKind::Answer {
            return self.link.deliver(Delivery { frame: (header, body), payload: None, refused: true });
        }
        self.link.refuse(header.request.get())
    }
}

/// Words of a peer, fit for a log.
fn printable(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    text.chars().filter(|character| !character.is_control()).take(GOODBYE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_ahead_survives_a_longer_and_a_shorter_buffer() {
        let mut ahead = Ahead::new();
        let mut buffer = ahead.make_room(0);
        buffer.as_mut_slice()[..5].copy_from_slice(b"hello");
        (ahead.buffer, ahead.filled) = (Some(buffer), 0..5);
        ahead.consume(1);
        for bytes in [50_000, 80, 60_000, 0] {
            let buffer = ahead.make_room(bytes);
            assert_eq!(buffer.len(), bytes.max(READ_AHEAD_BYTES));
            ahead.buffer = Some(buffer);
            assert_eq!(ahead.bytes(), b"ello");
        }
    }

    #[test]
    fn words_of_a_peer_cannot_forge_a_log() {
        assert_eq!(printable(b"bye\n2026 INFO \x1b[31mall is well"), "bye2026 INFO [31mall is well");
        assert_eq!(printable(&[b'x'; 9000]).len(), GOODBYE_CHARS_MAX);
    }
}
