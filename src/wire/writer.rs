//! The sending direction: takes frames from the queue, seals them, sends them.
//!
//! Sealing numbers the frames, so it happens here, in the order of sending, and never for a frame that may still be
//! withdrawn. All small frames that wait leave in one send; the head of a frame with a payload leaves in one call
//! together with the payload, which goes from where it lies.

use std::any::Any;
use std::rc::Rc;
use std::time::Instant;

use zerocopy::IntoBytes;

use super::handshake::Sealer;
use super::link::Link;
use super::queue::Outgoing;
use super::{CloseReason, Handler, PayloadSource, Violation};
use crate::format::frame::FrameKind;
use crate::io::SendSource;
use crate::limits::{SEND_COALESCED_BYTES_MAX, STALL_MAX};

/// What leaves in one send.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    payload: Option<PayloadSource>,
    /// Our requests in it.
    requests: Vec<u64>,
    is_last: bool,
}

pub(super) async fn write<H: Handler>(link: Rc<Link>, mut sealer: Sealer, handler: Rc<H>) {
    let reason = loop {
        if link.is_closed() {
            return;
        }
        let batch = match next_batch(&link, &mut sealer) {
            Ok(Some(batch)) => batch,
            Ok(None) => {
                link.wake.notified().await;
                continue;
            }
            Err(reason) => break reason,
        };
        let (is_last, payload_bytes) = (batch.is_last, batch.payload.as_ref().map_or(0, PayloadSource::len));
        if let Err(reason) = send(&link, batch).await {
            break reason;
        }
        if payload_bytes > 0 {
            handler.payload_sent(payload_bytes);
        }
        if is_last {
            break link.said_goodbye();
        }
    };
    link.end(reason);
}

/// Everything small that waits, up to a limit, then at most one frame with a payload.
fn next_batch(link: &Rc<Link>, sealer: &mut Sealer) -> Result<Option<Batch>, CloseReason> {
    let mut batch = Batch::default();
    if sealer.is_exhausted() {
        // What is left is for the goodbye.
        link.begin_to_leave(CloseReason::SessionOver);
    }
    while !sealer.is_exhausted() && batch.bytes.len() < SEND_COALESCED_BYTES_MAX {
        let Some(frame) = link.pop_small() else { break };
        seal(link, sealer, frame, &mut batch)?;
    }
    if !sealer.is_exhausted()
        && let Some(frame) = link.pop_bulk()
    {
        seal(link, sealer, frame, &mut batch)?;
    }
    if batch.bytes.is_empty()
        && let Some((frame, is_last)) = link.pop_last()
    {
        batch.is_last = is_last;
        seal(link, sealer, frame, &mut batch)?;
    }
    Ok((!batch.bytes.is_empty()).then_some(batch))
}

fn seal(link: &Rc<Link>, sealer: &mut Sealer, frame: Outgoing, batch: &mut Batch) -> Result<(), CloseReason> {
    let Outgoing { mut header, body, payload } = frame;
    // Lengths were checked when the frame was queued.
    header.body_bytes = (body.len() as u32).into();
    header.payload_bytes = (payload.as_ref().map_or(0, PayloadSource::len) as u32).into();
    header.credit = link.window.borrow_mut().take_returned().into();
    debug_assert!(header.check().is_ok());
    sealer.seal(header.as_bytes(), &mut batch.bytes)?;
    if !body.is_empty() {
        sealer.seal(&body, &mut batch.bytes)?;
    }
    let request = header.request.get();
    if [FrameKind::Answer as u8, FrameKind::Cancel as u8].contains(&header.kind) {
        // A cancel of our own request is no word about one of theirs: the ids differ in parity.
        link.last_word_leaves(request);
    } else if header.kind >= FrameKind::Hello as u8 {
        link.request_leaves(request);
        batch.requests.push(request);
    }
    batch.payload = payload;
    Ok(())
}

async fn send(link: &Rc<Link>, batch: Batch) -> Result<(), CloseReason> {
    let has_payload = batch.payload.is_some();
    let head = batch.bytes;
    // Guards are kept until the kernel has read the last byte.
    let mut guards = Vec::new();
    let source = match batch.payload {
        None => SendSource::Bytes(head),
        Some(payload) => with_head(head, payload, &mut guards),
    };
    link.departs(has_payload);
    let sent = link.stream.send_all(source, STALL_MAX).await;
    link.departed(Instant::now(), has_payload, &batch.requests);
    drop(guards);
    sent.map_err(|error| CloseReason::of_io(&error, STALL_MAX))
}

fn with_head(head: Vec<u8>, mut payload: PayloadSource, guards: &mut Vec<Box<dyn Any>>) -> SendSource {
    loop {
        payload = match payload {
            PayloadSource::Bytes(payload) => return SendSource::Bytes([head, payload].concat()),
            PayloadSource::Shared(buffer, range) => return SendSource::HeadAndShared(head, buffer, range),
            PayloadSource::Mapped(map, range, guard) => {
                guards.push(guard);
                return SendSource::HeadAndMapped(head, map, range);
            }
            PayloadSource::Guarded(inner, guard) => {
                guards.push(guard);
                *inner
            }
        }
    }
}

impl Sealer {
    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), CloseReason> {
        // Sealing fails only for lengths and counts that were checked: if it does, this session cannot go on.
        self.seal_frame(plain, out).map_err(|_| CloseReason::Violation(Violation::Unreadable))
    }
}
