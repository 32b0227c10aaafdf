//! From a TCP stream to a session, on both sides.
//!
//! | dialler | listener |
//! | --- | --- |
//! | connects | admits the source, or closes unread |
//! | opening, 80 bytes | magic, key id, one symmetric check, clock, replay filter; else closes without a byte |
//! | | second message: who listens |
//! | checks it, and that it is whom it expected | |
//! | third message: who dials | checks it; else closes |
//! | | a keepalive: accepted |
//! | dialling has succeeded with the first frame | |
//!
//! The whole of it may take [`HANDSHAKE_MAX`] on either side, however the bytes drip in. All lengths are fixed, so one
//! buffer serves for all that is read.
//!
//! The listener's silence tells a stranger nothing; the dialler's error therefore names what may be the cause, and
//! the listener's log names which it was.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::CloseReason;
use super::admission::{Admission, Admitted, Crowded};
use super::decoder::{Opener, Violation};
use crate::crypto::identity::CheckedCertificate;
use crate::crypto::keys::{NetworkKey, NodeKeys};
use crate::crypto::replay::{ReplayFilter, ReplayRefused};
use crate::crypto::session::{
    HandshakeError, Initiator, OpeningRefused, ReceiveHalf, Responder, SendHalf, Session, SessionError,
};
use crate::crypto::source::Source;
use crate::format::{NetworkId, NodeId};
use crate::io::{Buffer, SendSource, TcpStream};
use crate::limits::{
    CONNECT_MAX, HANDSHAKE_MAX, HANDSHAKE_SECOND_BYTES, HANDSHAKE_THIRD_BYTES, OPENING_BYTES, SESSION_FRAMES_MAX,
};

/// What this node shows of itself, the same for all its connections.
pub struct Identity {
    pub keys: NodeKeys,
    /// Our certificate's bytes.
    pub certificate: Vec<u8>,
    pub network: NetworkId,
    /// The newest first; it is dialled with. The one before is still accepted.
    pub network_keys: Vec<NetworkKey>,
}

/// A handshake that both sides have finished.
pub(super) struct Established {
    pub(super) stream: TcpStream,
    pub(super) certificate: CheckedCertificate,
    pub(super) network_key_generation: u32,
    pub(super) sealer: Sealer,
    pub(super) unsealer: Unsealer,
}

pub(super) struct Sealer(SendHalf);

impl Sealer {
    pub(super) fn seal_frame(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), SessionError> {
        self.0.seal(plain, out)
    }

    /// True when a frame and a goodbye, of two messages each, may not fit any more.
    pub(super) fn is_exhausted(&self) -> bool {
        self.0.sent() + 4 > SESSION_FRAMES_MAX
    }
}

pub(super) struct Unsealer(ReceiveHalf);

impl Opener for Unsealer {
    fn open(&mut self, sealed: &[u8], plain: &mut Vec<u8>) -> Result<(), Violation> {
        self.0.open_append(sealed, plain).map(drop).map_err(|_| Violation::Unreadable)
    }
}

impl Established {
    fn new(stream: TcpStream, certificate: CheckedCertificate, network_key_generation: u32, session: Session) -> Self {
        let (send, receive) = session.split();
        Self { stream, certificate, network_key_generation, sealer: Sealer(send), unsealer: Unsealer(receive) }
    }
}

/// Why there is no connection to a node that was dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("{address} cannot be reached: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error(
        "{address} closed the connection without a word ({kind}). Possible causes: it is not a gabion node, it belongs to \
         another network or its network key was replaced, the clocks of the two machines differ by more than 15 \
         minutes, or it is overloaded. Its log says which"
    )]
    Silent { address: SocketAddr, kind: io::ErrorKind },
    #[error("{address} could not prove who it is: {source}")]
    Untrusted { address: SocketAddr, source: HandshakeError },
    #[error("{address} is node {found:?}, not {expected:?}: it may have changed its address")]
    OtherNode { address: SocketAddr, expected: NodeId, found: NodeId },
    #[error(
        "{address} knows this network but did not accept this node ({reason}). Possible causes: the certificate was \
         evicted, or is from another network. Its log says which"
    )]
    Unwelcome { address: SocketAddr, reason: CloseReason },
    #[error("the handshake could not be prepared: {0}")]
    Own(HandshakeError),
    #[error("this node holds no network key; join a network first")]
    NoNetworkKey,
}

/// Why somebody who connected was turned away.
#[derive(Debug, thiserror::Error)]
pub enum AcceptRefused {
    #[error(transparent)]
    Crowded(#[from] Crowded),
    #[error(transparent)]
    Opening(#[from] OpeningRefused),
    #[error(transparent)]
    Replay(#[from] ReplayRefused),
    #[error("did not finish its handshake within {} ms", HANDSHAKE_MAX.as_millis())]
    TooSlow,
    #[error("went away during the handshake ({0})")]
    Gone(io::ErrorKind),
    #[error("could not prove who it is: {0}")]
    Untrusted(HandshakeError),
    #[error("the answer could not be prepared: {0}")]
    Own(HandshakeError),
}

impl From<io::Error> for AcceptRefused {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TooSlow,
            kind => Self::Gone(kind),
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// A stream, the one buffer of its handshake, and when its time is up.
struct Exchange<'a> {
    stream: &'a TcpStream,
    buffer: Buffer,
    deadline: Instant,
}

impl<'a> Exchange<'a> {
    fn new(stream: &'a TcpStream, bytes_max: usize) -> Self {
        Self { stream, buffer: Buffer::heap(bytes_max), deadline: Instant::now() + HANDSHAKE_MAX }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    async fn receive(self, bytes: usize) -> (io::Result<()>, Self) {
        let left = self.left();
        let Self { stream, buffer, deadline } = self;
        let (result, buffer) = stream.recv_exact_within(buffer, 0..bytes, left).await;
        (result, Self { stream, buffer, deadline })
    }

    async fn send(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.stream.send_all(SendSource::Bytes(bytes), self.left()).await
    }

    fn bytes(&self, len: usize) -> &[u8] {
        self.buffer.as_slice().get(..len).unwrap_or_default()
    }
}

pub(super) async fn dial(
    address: SocketAddr,
    identity: &Arc<Identity>,
    expect: Option<NodeId>,
) -> Result<Established, DialError> {
    let network_key = identity.network_keys.first().ok_or(DialError::NoNetworkKey)?;
    let connecting = TcpStream::connect(address, CONNECT_MAX).await;
    let stream = connecting.map_err(|source| DialError::Connect { address, source })?;
    let (mut initiator, opening) =
        Initiator::start(&identity.keys, network_key, &identity.network, unix_ms()).map_err(DialError::Own)?;

    let silent = |error: io::Error| DialError::Silent { address, kind: error.kind() };
    let exchange = Exchange::new(&stream, HANDSHAKE_SECOND_BYTES);
    exchange.send(opening.to_vec()).await.map_err(silent)?;
    let (received, exchange) = exchange.receive(HANDSHAKE_SECOND_BYTES).await;
    received.map_err(silent)?;
    let certificate = initiator
        .read_second(exchange.bytes(HANDSHAKE_SECOND_BYTES))
        .map_err(|source| DialError::Untrusted { address, source })?;
    if let Some(expected) = expect.filter(|expected| *expected != certificate.node_id) {
        return Err(DialError::OtherNode { address, expected, found: certificate.node_id });
    }
    let (third, session) = initiator.third(&identity.certificate).map_err(DialError::Own)?;
    exchange.send(third).await.map_err(silent)?;
    Ok(Established::new(stream, certificate, network_key.generation(), session))
}

pub(super) async fn accept(
    stream: TcpStream,
    address: SocketAddr,
    identity: &Arc<Identity>,
    admission: &Arc<Admission>,
    replay: &Arc<ReplayFilter>,
    is_admitted: impl FnOnce(&CheckedCertificate) -> bool,
) -> Result<Established, AcceptRefused> {
    let result = match admission.admit(address.ip(), Instant::now()) {
        Ok(admitted) => answer(stream, Source::of(address.ip()), identity, admitted, replay, is_admitted).await,
        Err(crowded) => Err(crowded.into()),
    };
    if let Err(refused) = &result {
        match refused {
            // What anybody can cause as often as they like is not worth a line each.
            AcceptRefused::Crowded(_) | AcceptRefused::Gone(_) => {
                tracing::debug!(source = %address, reason = %refused, "connection refused");
            }
            _ => tracing::info!(source = %address, reason = %refused, "connection refused"),
        }
    }
    result
}

async fn answer(
    stream: TcpStream,
    source: Source,
    identity: &Arc<Identity>,
    admitted: Admitted,
    replay: &Arc<ReplayFilter>,
    is_admitted: impl FnOnce(&CheckedCertificate) -> bool,
) -> Result<Established, AcceptRefused> {
    let exchange = Exchange::new(&stream, HANDSHAKE_THIRD_BYTES);
    let (received, exchange) = exchange.receive(OPENING_BYTES).await;
    received?;
    let now_ms = unix_ms();
    let opening = exchange.bytes(OPENING_BYTES).first_chunk::<OPENING_BYTES>().ok_or(OpeningRefused::Magic)?;
    let (mut responder, opening) =
        Responder::accept(&identity.keys, &identity.network_keys, &identity.network, opening, now_ms)?;
    replay.admit(&opening.ephemeral, source, now_ms)?;

    let second = responder.second(&identity.certificate).map_err(AcceptRefused::Own)?;
    exchange.send(second).await?;
    let (received, exchange) = exchange.receive(HANDSHAKE_THIRD_BYTES).await;
    received?;
    let (certificate, session) =
        responder.read_third(exchange.bytes(HANDSHAKE_THIRD_BYTES)).map_err(AcceptRefused::Untrusted)?;
    if is_admitted(&certificate) {
        admitted.succeeded();
    }
    drop(exchange);
    Ok(Established::new(stream, certificate, opening.network_key_generation, session))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_refusal_names_its_possible_causes() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let text = DialError::Silent { address, kind: io::ErrorKind::UnexpectedEof }.to_string();
        for cause in ["network key", "15 minutes", "not a gabion node"] {
            assert!(text.contains(cause), "{text}");
        }
        let reason = CloseReason::HungUp;
        assert!(DialError::Unwelcome { address, reason }.to_string().contains("evicted"));
    }
}
