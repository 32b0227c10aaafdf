//! From bytes to frames: the state machine that everything a peer sends goes through.
//!
//! It holds no bytes of its own. The reader shows it what it has; the decoder says how much more it needs or hands
//! out a frame and how many bytes it used up. Every length is checked against its limit before anything is
//! allocated or awaited for it.
//!
//! | state | needs | then |
//! | --- | --- | --- |
//! | `Header` | 80 bytes: a sealed header | opened and checked; a body follows or not |
//! | `Body` | `body bytes + 16`: a sealed body | opened: a frame; a payload follows or not |
//! | `Payload` | nothing: the reader takes the bytes itself, straight to their place, and says so | `Header` |
//!
//! What a header must satisfy beyond its own bounds ([`FrameHeader::check`]):
//!
//! | kind | request id | status | body | payload |
//! | --- | --- | --- | --- | --- |
//! | `Keepalive` | 0 | 0 | none | none |
//! | `Goodbye` | 0 | 0 | words | none |
//! | `Cancel` | anybody's: ours says that our request will not be answered | 0 | none | none |
//! | `Answer` | ours | any | any | any |
//! | a request | the other side's: odd from the dialler, even from the listener, not 0 | 0 | any | any |
//!
//! Any breach ends the connection: after it, nobody knows where the next header would begin.
//!
//! The handshake's messages come before all this and have fixed lengths: they need no decoder.

use zerocopy::FromBytes;

use crate::format::Malformed;
use crate::format::frame::{FrameHeader, FrameKind};
use crate::limits::FRAME_HEADER_BYTES;

pub use crate::crypto::session::SEAL_BYTES;

pub const SEALED_HEADER_BYTES: usize = FRAME_HEADER_BYTES + SEAL_BYTES;
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("a frame that this session's keys do not open: altered on the way, or out of order")]
    Unreadable,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Violation {
    fn of(what: &'static str) -> Self {
        Self::Malformed(Malformed::new(what))
    }
}

/// Opens what the other side's session sealed, in the order in which it was sealed.
pub trait Opener {
    /// Appends the plaintext to `plain`.
    fn open(&mut self, sealed: &[u8], plain: &mut Vec<u8>) -> Result<(), Violation>;
}

/// A header that was checked, and its body. `header.payload_bytes` raw bytes follow it at once.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub header: FrameHeader,
    pub kind: FrameKind,
    pub body: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Show at least this many bytes.
    Need(usize),
    Frame(Frame),
    /// The payload of the frame before is not read yet: so many bytes of it are missing.
    Payload(usize),
}

enum State {
    Header,
    Body(FrameHeader, FrameKind),
    Payload(usize),
}

pub struct Decoder<O> {
    opener: O,
    state: State,
    /// The parity of our own request ids.
    our_parity: u64,
    /// Reused for every header.
    plain: Vec<u8>,
}

impl<O: Opener> Decoder<O> {
    pub fn new(opener: O, dialled: bool) -> Self {
        Self {
            opener,
            state: State::Header,
            our_parity: u64::from(dialled),
            plain: Vec::with_capacity(FRAME_HEADER_BYTES),
        }
    }

    /// Looks at `bytes`, which begin where the last step ended. Returns how many of them are used up.
    pub fn step(&mut self, bytes: &[u8]) -> Result<(usize, Step), Violation> {
        match self.state {
            State::Payload(missing) => Ok((0, Step::Payload(missing))),
            State::Body(header, kind) => self.step_body(header, kind, bytes),
            State::Header => self.step_header(bytes),
        }
    }

    /// The reader has taken `taken` bytes of the payload.
    pub fn payload_taken(&mut self, taken: usize) {
        let State::Payload(missing) = self.state else { panic!("no payload is expected") };
        assert!(taken <= missing, "{taken} bytes taken of {missing}");
        self.state = if taken == missing { State::Header } else { State::Payload(missing - taken) };
    }

    fn step_header(&mut self, bytes: &[u8]) -> Result<(usize, Step), Violation> {
        let Some((sealed, rest)) = bytes.split_at_checked(SEALED_HEADER_BYTES) else {
            return Ok((0, Step::Need(SEALED_HEADER_BYTES)));
        };
        self.plain.clear();
        self.opener.open(sealed, &mut self.plain)?;
        let header = FrameHeader::read_from_bytes(&self.plain).map_err(|_| Violation::of("frame header length"))?;
        let kind = header.check()?;
        check_kind(&header, kind, self.our_parity)?;
        if header.body_bytes.get() == 0 {
            return Ok((SEALED_HEADER_BYTES, self.finish(header, kind, Vec::new())));
        }
        self.state = State::Body(header, kind);
        let (used, step) = self.step_body(header, kind, rest)?;
        Ok((SEALED_HEADER_BYTES + used, step))
    }

    fn step_body(&mut self, header: FrameHeader, kind: FrameKind, bytes: &[u8]) -> Result<(usize, Step), Violation> {
        // Checked to be at most SEALED_BODY_BYTES_MAX with the header.
        let body_bytes = header.body_bytes.get() as usize;
        let Some((sealed, _)) = bytes.split_at_checked(body_bytes + SEAL_BYTES) else {
            return Ok((0, Step::Need(body_bytes + SEAL_BYTES)));
        };
        let mut body = Vec::with_capacity(body_bytes);
        self.opener.open(sealed, &mut body)?;
        if body.len() != body_bytes {
            return Err(Violation::of("frame body length"));
        }
        Ok((sealed.len(), self.finish(header, kind, body)))
    }

    fn finish(&mut self, header: FrameHeader, kind: FrameKind, body: Vec<u8>) -> Step {
        self.state = match header.payload_bytes.get() as usize {
            0 => State::Header,
            payload_bytes => State::Payload(payload_bytes),
        };
        Step::Frame(Frame { header, kind, body })
    }
}

fn check_kind(header: &FrameHeader, kind: FrameKind, our_parity: u64) -> Result<(), Violation> {
    let request = header.request.get();
    let ours = request % 2 == our_parity;
    let (body, payload) = (header.body_bytes.get() != 0, header.payload_bytes.get() != 0);
    if kind != FrameKind::Answer && header.status.get() != 0 {
        return Err(Violation::of("status outside an answer"));
    }
    match kind {
        FrameKind::Keepalive | FrameKind::Goodbye if request != 0 => Err(Violation::of("request id of a lone frame")),
        FrameKind::Keepalive | FrameKind::Cancel if body => Err(Violation::of("body of an empty frame")),
        FrameKind::Keepalive | FrameKind::Cancel | FrameKind::Goodbye if payload => {
            Err(Violation::of("payload of an empty frame"))
        }
        FrameKind::Keepalive | FrameKind::Goodbye => Ok(()),
        _ if request == 0 => Err(Violation::of("request id zero")),
        FrameKind::Cancel => Ok(()),
        FrameKind::Answer if !ours => Err(Violation::of("answer to a request that was not ours")),
        FrameKind::Answer => Ok(()),
        _ if ours => Err(Violation::of("request under an id of ours")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{CHUNK_BYTES_MAX, SEALED_BODY_BYTES_MAX};
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    /// "Seals" by adding 16 zero bytes, so that arbitrary headers reach the checks behind it.
    struct Clear;

    impl Opener for Clear {
        fn open(&mut self, sealed: &[u8], plain: &mut Vec<u8>) -> Result<(), Violation> {
            let (text, tag) = sealed.split_at(sealed.len() - SEAL_BYTES);
            if tag != [0; SEAL_BYTES] {
                return Err(Violation::Unreadable);
            }
            plain.extend_from_slice(text);
            Ok(())
        }
    }

    fn clear(header: FrameHeader, body: &[u8]) -> Vec<u8> {
        let mut bytes = [header.as_bytes(), &[0; SEAL_BYTES]].concat();
        if !body.is_empty() {
            bytes.extend_from_slice(body);
            bytes.extend_from_slice(&[0; SEAL_BYTES]);
        }
        bytes
    }

    fn header(kind: FrameKind, request: u64, body: usize, payload: usize) -> FrameHeader {
        FrameHeader {
            body_bytes: (body as u32).into(),
            payload_bytes: (payload as u32).into(),
            ..FrameHeader::new(kind, request)
        }
    }

    /// Feeds `pieces` as a reader does, checking at each step that no more is asked for than the longest frame.
    fn feed(pieces: &[Vec<u8>]) -> Result<Vec<(Frame, Vec<u8>)>, Violation> {
        let mut decoder = Decoder::new(Clear, true);
        let (mut held, mut frames) = (Vec::new(), Vec::<(Frame, Vec<u8>)>::new());
        for piece in pieces {
            held.extend_from_slice(piece);
            loop {
                let (used, step) = decoder.step(&held)?;
                held.drain(..used);
                match step {
                    Step::Need(bytes) => {
                        assert!(bytes > held.len() && bytes <= SEALED_BODY_BYTES_MAX + SEAL_BYTES);
                        break;
                    }
                    Step::Frame(frame) => {
                        assert!(frame.body.capacity() <= SEALED_BODY_BYTES_MAX);
                        frames.push((frame, Vec::new()));
                    }
                    Step::Payload(missing) => {
                        assert!(missing <= CHUNK_BYTES_MAX);
                        if held.is_empty() {
                            break;
                        }
                        let taken = missing.min(held.len());
                        frames.last_mut().unwrap().1.extend(held.drain(..taken));
                        decoder.payload_taken(taken);
                    }
                }
            }
        }
        Ok(frames)
    }

    #[test]
    fn each_rule_of_the_table_is_enforced() {
        let refused = |header: FrameHeader| check_kind(&header, header.check().unwrap(), 1).is_err();
        use FrameKind::*;
        for (kind, request, body, payload, bad) in [
            (Keepalive, 0, 0, 0, false),
            (Keepalive, 2, 0, 0, true),
            (Keepalive, 0, 1, 0, true),
            (Keepalive, 0, 0, 1, true),
            (Goodbye, 0, 9, 0, false),
            (Goodbye, 0, 9, 1, true),
            (Goodbye, 1, 9, 0, true),
            (Cancel, 1, 0, 0, false),
            (Cancel, 2, 0, 0, false),
            (Cancel, 0, 0, 0, true),
            (Cancel, 1, 1, 0, true),
            (Cancel, 1, 0, 1, true),
            (Answer, 1, 5, 5, false),
            (Answer, 2, 0, 0, true),
            (Answer, 0, 0, 0, true),
            (Store, 2, 5, 5, false),
            (Store, 1, 0, 0, true),
            (Fetch, 0, 0, 0, true),
        ] {
            assert_eq!(refused(header(kind, request, body, payload)), bad, "{kind:?} {request} {body} {payload}");
        }
        assert!(refused(FrameHeader { status: 1.into(), ..FrameHeader::new(Fetch, 2) }));
        assert!(!refused(FrameHeader { status: 1.into(), ..FrameHeader::new(Answer, 1) }));
    }

    #[test]
    fn a_length_beyond_its_limit_is_refused_before_a_byte_of_it_came() {
        for long in [
            header(FrameKind::Store, 2, SEALED_BODY_BYTES_MAX + 1, 0),
            header(FrameKind::Store, 2, u32::MAX as usize, 0),
            header(FrameKind::Store, 2, 0, CHUNK_BYTES_MAX + 1),
        ] {
            assert!(matches!(feed(&[clear(long, &[])]), Err(Violation::Malformed(_))));
        }
    }

    fn any_frame() -> impl Strategy<Value = (FrameHeader, Vec<u8>, Vec<u8>)> {
        let bytes = |max: usize| proptest::collection::vec(any::<u8>(), 0..max);
        (any::<bool>(), bytes(300), bytes(300), any::<u8>()).prop_map(|(answer, body, payload, id)| {
            let (kind, request) = if answer {
                (FrameKind::Answer, 2 * u64::from(id) + 1)
            } else {
                (FrameKind::Store, 2 * u64::from(id) + 2)
            };
            (header(kind, request, body.len(), payload.len()), body, payload)
        })
    }

    fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut at: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        at.windows(2).map(|ends| bytes[ends[0]..ends[1]].to_vec()).collect()
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            sent in proptest::collection::vec(any_frame(), 0..8),
            cuts in proptest::collection::vec(any::<usize>(), 0..40),
        ) {
            let mut bytes = Vec::new();
            for (header, body, payload) in &sent {
                bytes.extend(clear(*header, body));
                bytes.extend(payload);
            }
            let seen: Vec<_> =
                feed(&cut(&bytes, &cuts)).unwrap().into_iter().map(|(f, payload)| (f.header, f.body, payload)).collect();
            prop_assert_eq!(seen, sent);
        }

        #[test]
        fn arbitrary_bytes_neither_panic_nor_ask_for_more_than_the_limits(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            cuts in proptest::collection::vec(any::<usize>(), 0..20),
        ) {
            let _ = feed(&cut(&bytes, &cuts));
        }

        /// As above, behind a seal that opens: the checks of the header are what stands in the way.
        #[test]
        fn arbitrary_headers_neither_panic_nor_ask_for_more_than_the_limits(
            fields in any::<(u8, u8, u16, u32, u64, u32)>(),
            few in any::<[bool; 4]>(),
            rest in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let (kind, flags, status, body, request, payload) = fields;
            let header = FrameHeader {
                kind: if few[0] { kind % 64 } else { kind },
                flags: if few[1] { 0 } else { flags },
                status: if few[2] { 0 } else { status }.into(),
                body_bytes: if few[3] { body % 100 } else { body }.into(),
                payload_bytes: payload.into(),
                ..FrameHeader::new(FrameKind::Store, request)
            };
            let _ = feed(&[clear(header, &[]), rest]);
        }
    }
}
