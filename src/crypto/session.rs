//! The handshake between two nodes and the session after it: Noise `XXpsk0_25519_AESGCM_BLAKE2s`.
//!
//! | | dialler | listener |
//! | --- | --- | --- |
//! | 1 | opening, 80 bytes: preface in clear, ephemeral, sealed time and versions | |
//! | 2 | | 608 bytes: ephemeral, sealed static key, sealed certificate |
//! | 3 | 576 bytes: sealed static key, sealed certificate | |
//! | then | frames, each direction under a key and counter of its own | |
//!
//! Rules:
//! - psk0: the network key is mixed in before anything else, so a stranger fails at the tag of its first message. That costs
//!   hashes and one AES-GCM check of 16 bytes: no curve operation and no byte of ours (a test counts both). For this our
//!   own public key is handed to snow ready-made (the private `Curve`), which would derive it for every stranger.
//! - The prologue binds the preface and the network id: an opening says nothing on another network.
//! - Message 2 is sent to everybody who knows the network key, hence carries nothing secret: a certificate is public. To read
//!   it one must also hold the ephemeral key, so a replayed opening learns nothing even where the replay filter
//!   ([`super::replay`]) has forgotten it.
//! - Certificates are padded to one size. So all three messages have a fixed length and need none in clear.
//! - A certificate counts only if the key it names is the one that Noise proved; that check lives here, so no session exists
//!   without it. Evictions are checked by the caller, who holds the list.
//! - Sessions end after [`SESSION_FRAMES_MAX`](crate::limits::SESSION_FRAMES_MAX) messages in a direction; the age limit is the
//!   connection's.
//! - Messages arrive in order over a stream: counters are implicit, and a message that does not open ends the session (the
//!   half refuses all that follows).

use std::sync::Arc;

use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState, StatelessTransportState};
use x25519_dalek::{PublicKey, StaticSecret};
use zerocopy::{FromBytes, IntoBytes};
use zeroize::Zeroizing;

use super::identity::{CheckedCertificate, IdentityError, verify_certificate_bytes};
use super::keys::{NetworkKey, NodeKeys, public_of};
use crate::format::NetworkId;
use crate::format::frame::{OpeningPayload, PREFACE_MAGIC, PREFACE_VERSION, Preface};
use crate::limits::{
    CERTIFICATE_BYTES_MAX, CHUNK_BYTES_MAX, CLOCK_SKEW_MAX, HANDSHAKE_PAYLOAD_BYTES, HANDSHAKE_SECOND_BYTES,
    HANDSHAKE_THIRD_BYTES, OPENING_BYTES, PREFACE_BYTES, SEALED_BODY_BYTES_MAX, SESSION_FRAMES_MAX,
};

const PATTERN: &str = "Noise_XXpsk0_25519_AESGCM_BLAKE2s";

/// What sealing adds to a message.
pub const SEAL_BYTES: usize = 16;

/// Why an opening gets no answer. The refusing node logs it; the dialler learns nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpeningRefused {
    #[error("not a gabion node: the first bytes are not its magic")]
    Magic,
    #[error("speaks version {found} of the preface, this node {PREFACE_VERSION}: update the older one")]
    Version { found: u16 },
    #[error("uses a network key that this node does not hold: another network, or a key that was replaced")]
    UnknownNetworkKey,
    #[error("names this network's key without knowing it, or was damaged on the way")]
    Psk,
    #[error("its clock is {off_ms} ms from this node's, more than 15 minutes: set the clocks of both machines")]
    Clock { off_ms: i64 },
    #[error("snow failed to set up the handshake")]
    Library,
}

/// Why a handshake ended after its opening.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("a handshake message of {found} bytes instead of {expected}")]
    Length { expected: usize, found: usize },
    #[error("a handshake message that does not open: damaged, or by somebody else than it began with")]
    Sealed,
    #[error("a certificate of {found} bytes: at most {CERTIFICATE_BYTES_MAX} are allowed")]
    CertificateLength { found: usize },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("snow failed to set up the handshake")]
    Library,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("the session has carried {SESSION_FRAMES_MAX} messages: connect again")]
    Exhausted,
    #[error("a message of {found} bytes: at most {SEALED_BODY_BYTES_MAX} and its tag of {SEAL_BYTES} are allowed")]
    Length { found: usize },
    #[error("a message does not open: damaged or forged on the way; the session ends")]
    Sealed,
}

/// X25519 for snow. Computes the public half of a key at most once, and never for the key that it was told.
struct Curve {
    known_private: Zeroizing<[u8; 32]>,
    known_public: [u8; 32],
    private: Option<StaticSecret>,
    private_bytes: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Curve {
    fn knowing(private: &Zeroizing<[u8; 32]>, public: &[u8; 32]) -> Self {
        Self {
            known_private: private.clone(),
            known_public: *public,
            private: None,
            private_bytes: Zeroizing::default(),
            public: [0; 32],
        }
    }

    fn install(&mut self, private: [u8; 32], public: [u8; 32]) {
        self.private = Some(StaticSecret::from(private));
        *self.private_bytes = private;
        self.public = public;
    }
}

#[cfg(test)]
thread_local! {
    /// Curve operations on this thread, for the test that a stranger causes none.
    static CURVE_OPERATIONS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

fn count_curve_operation() {
    #[cfg(test)]
    CURVE_OPERATIONS.with(|count| count.set(count.get() + 1));
}

impl Dh for Curve {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        let Ok(private) = <[u8; 32]>::try_from(private) else { panic!("an X25519 key has 32 bytes") };
        if private == *self.known_private {
            self.install(private, self.known_public);
        } else {
            count_curve_operation();
            self.install(private, public_of(&private));
        }
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut private = [0; 32];
        rng.try_fill_bytes(&mut private)?;
        count_curve_operation();
        self.install(private, public_of(&private));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &*self.private_bytes
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let (Some(private), Some(public), Some(out)) =
            (&self.private, public.first_chunk::<32>(), out.first_chunk_mut::<32>())
        else {
            return Err(snow::Error::Dh);
        };
        count_curve_operation();
        let shared = private.diffie_hellman(&PublicKey::from(*public));
        // A key of small order would make the secret a constant that everybody knows.
        if !shared.was_contributory() {
            return Err(snow::Error::Dh);
        }
        *out = *shared.as_bytes();
        Ok(())
    }
}

struct Generator;

impl Random for Generator {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), snow::Error> {
        rand::fill(bytes);
        Ok(())
    }
}

struct Resolver {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Generator))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519)
            .then(|| Box::new(Curve::knowing(&self.private, &self.public)) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

fn build(
    keys: &NodeKeys,
    network_key: &NetworkKey,
    network: &NetworkId,
    preface: &Preface,
    dialling: bool,
) -> Result<HandshakeState, snow::Error> {
    let params: NoiseParams = PATTERN.parse()?;
    let psk = network_key.psk();
    let prologue = [preface.as_bytes(), &network.0].concat();
    let resolver = Resolver { private: Zeroizing::new(*keys.handshake_private()), public: *keys.handshake_public() };
    let builder = Builder::with_resolver(params, Box::new(resolver))
        .local_private_key(keys.handshake_private())?
        .psk(0, &psk)?
        .prologue(&prologue)?;
    if dialling { builder.build_initiator() } else { builder.build_responder() }
}

/// The dialling side, between messages.
pub struct Initiator {
    noise: HandshakeState,
    network: NetworkId,
}

impl Initiator {
    /// A new handshake and the opening to send: under the newest network key that the dialler holds.
    pub fn start(
        keys: &NodeKeys,
        network_key: &NetworkKey,
        network: &NetworkId,
        now_ms: u64,
    ) -> Result<(Self, [u8; OPENING_BYTES]), HandshakeError> {
        let preface = Preface {
            magic: PREFACE_MAGIC,
            version: PREFACE_VERSION.into(),
            zero: 0.into(),
            network_key_id: network_key.key_id(),
        };
        let payload = OpeningPayload {
            version_min: PREFACE_VERSION.into(),
            version_max: PREFACE_VERSION.into(),
            payload_bytes_log2: CHUNK_BYTES_MAX.trailing_zeros() as u8,
            reserved: [0; 3],
            unix_ms: now_ms.into(),
        };
        let mut noise = build(keys, network_key, network, &preface, true).map_err(|_| HandshakeError::Library)?;
        let mut opening = [0; OPENING_BYTES];
        let (head, message) = opening.split_at_mut(PREFACE_BYTES);
        head.copy_from_slice(preface.as_bytes());
        match noise.write_message(payload.as_bytes(), message) {
            Ok(written) if written == OPENING_BYTES - PREFACE_BYTES => Ok((Self { noise, network: *network }, opening)),
            _ => Err(HandshakeError::Library),
        }
    }

    /// Who answered. The message has [`HANDSHAKE_SECOND_BYTES`].
    pub fn read_second(&mut self, message: &[u8]) -> Result<CheckedCertificate, HandshakeError> {
        read_certificate(&mut self.noise, message, HANDSHAKE_SECOND_BYTES, &self.network)
    }

    /// The last message, of [`HANDSHAKE_THIRD_BYTES`], and the session that starts behind it.
    pub fn third(mut self, certificate: &[u8]) -> Result<(Vec<u8>, Session), HandshakeError> {
        let message = write_certificate(&mut self.noise, certificate, HANDSHAKE_THIRD_BYTES)?;
        Ok((message, Session::start(self.noise)?))
    }
}

/// What an accepted opening said: for the replay filter and the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpeningInfo {
    pub ephemeral: [u8; 32],
    pub unix_ms: u64,
    /// Of the network key that it was made under.
    pub network_key_generation: u32,
}

/// The listening side, between messages.
pub struct Responder {
    noise: HandshakeState,
    network: NetworkId,
}

impl Responder {
    /// Checks an opening against the network keys (the newest and the one before). Nothing may be answered before the
    /// replay filter has admitted the ephemeral as well.
    pub fn accept(
        keys: &NodeKeys,
        network_keys: &[NetworkKey],
        network: &NetworkId,
        opening: &[u8; OPENING_BYTES],
        now_ms: u64,
    ) -> Result<(Self, OpeningInfo), OpeningRefused> {
        let (preface, message) = Preface::ref_from_prefix(opening).map_err(|_| OpeningRefused::Magic)?;
        check_preface(preface)?;
        let network_key = network_keys
            .iter()
            .find(|key| key.key_id() == preface.network_key_id)
            .ok_or(OpeningRefused::UnknownNetworkKey)?;
        let mut noise = build(keys, network_key, network, preface, false).map_err(|_| OpeningRefused::Library)?;
        let mut payload = [0; size_of::<OpeningPayload>()];
        let read = noise.read_message(message, &mut payload).map_err(|_| OpeningRefused::Psk)?;
        let payload = OpeningPayload::ref_from_bytes(&payload).map_err(|_| OpeningRefused::Psk)?;
        let ephemeral = message.first_chunk::<32>().ok_or(OpeningRefused::Psk)?;
        debug_assert_eq!(read, size_of::<OpeningPayload>());
        check_opening(payload, now_ms)?;
        let info = OpeningInfo {
            ephemeral: *ephemeral,
            unix_ms: payload.unix_ms.get(),
            network_key_generation: network_key.generation(),
        };
        Ok((Self { noise, network: *network }, info))
    }

    /// The answer, of [`HANDSHAKE_SECOND_BYTES`].
    pub fn second(&mut self, certificate: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        write_certificate(&mut self.noise, certificate, HANDSHAKE_SECOND_BYTES)
    }

    /// Who dialled, and the session. The message has [`HANDSHAKE_THIRD_BYTES`].
    pub fn read_third(mut self, message: &[u8]) -> Result<(CheckedCertificate, Session), HandshakeError> {
        let peer = read_certificate(&mut self.noise, message, HANDSHAKE_THIRD_BYTES, &self.network)?;
        Ok((peer, Session::start(self.noise)?))
    }
}

fn check_preface(preface: &Preface) -> Result<(), OpeningRefused> {
    if preface.magic != PREFACE_MAGIC {
        return Err(OpeningRefused::Magic);
    }
    if preface.version.get() != PREFACE_VERSION || preface.zero.get() != 0 {
        return Err(OpeningRefused::Version { found: preface.version.get() });
    }
    Ok(())
}

/// Reserved bytes of the payload are ignored: they are room for limits that a later version may announce.
fn check_opening(payload: &OpeningPayload, now_ms: u64) -> Result<(), OpeningRefused> {
    if !(payload.version_min.get()..=payload.version_max.get()).contains(&PREFACE_VERSION) {
        return Err(OpeningRefused::Version { found: payload.version_max.get() });
    }
    let theirs = payload.unix_ms.get();
    if u128::from(theirs.abs_diff(now_ms)) > CLOCK_SKEW_MAX.as_millis() {
        let off_ms = i128::from(theirs) - i128::from(now_ms);
        return Err(OpeningRefused::Clock { off_ms: off_ms.clamp(i64::MIN.into(), i64::MAX.into()) as i64 });
    }
    Ok(())
}

fn write_certificate(
    noise: &mut HandshakeState,
    certificate: &[u8],
    message_bytes: usize,
) -> Result<Vec<u8>, HandshakeError> {
    if certificate.len() > CERTIFICATE_BYTES_MAX {
        return Err(HandshakeError::CertificateLength { found: certificate.len() });
    }
    let mut payload = Vec::with_capacity(HANDSHAKE_PAYLOAD_BYTES);
    payload.extend_from_slice(&(certificate.len() as u16).to_le_bytes());
    payload.extend_from_slice(certificate);
    payload.resize(HANDSHAKE_PAYLOAD_BYTES, 0);
    let mut message = vec![0; message_bytes];
    match noise.write_message(&payload, &mut message) {
        Ok(written) if written == message_bytes => Ok(message),
        // A dialler whose ephemeral is of small order ends here.
        Err(snow::Error::Dh) => Err(HandshakeError::Sealed),
        _ => Err(HandshakeError::Library),
    }
}

fn read_certificate(
    noise: &mut HandshakeState,
    message: &[u8],
    message_bytes: usize,
    network: &NetworkId,
) -> Result<CheckedCertificate, HandshakeError> {
    if message.len() != message_bytes {
        return Err(HandshakeError::Length { expected: message_bytes, found: message.len() });
    }
    let mut payload = [0; HANDSHAKE_PAYLOAD_BYTES];
    noise.read_message(message, &mut payload).map_err(|_| HandshakeError::Sealed)?;
    let (len, padded) = payload.split_first_chunk::<2>().ok_or(HandshakeError::Sealed)?;
    let len = usize::from(u16::from_le_bytes(*len));
    let (certificate, padding) =
        padded.split_at_checked(len).ok_or(HandshakeError::CertificateLength { found: len })?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(HandshakeError::CertificateLength { found: len });
    }
    let checked = verify_certificate_bytes(certificate, network)?;
    if noise.get_remote_static() != Some(&checked.handshake_key[..]) {
        return Err(IdentityError::HandshakeKey.into());
    }
    Ok(checked)
}

/// An established session; both directions live apart once split.
pub struct Session {
    pub send: SendHalf,
    pub receive: ReceiveHalf,
}

impl Session {
    fn start(noise: HandshakeState) -> Result<Self, HandshakeError> {
        let state = Arc::new(noise.into_stateless_transport_mode().map_err(|_| HandshakeError::Library)?);
        Ok(Self { send: SendHalf { state: state.clone(), next: 0 }, receive: ReceiveHalf { state, next: 0 } })
    }

    pub fn split(self) -> (SendHalf, ReceiveHalf) {
        (self.send, self.receive)
    }

    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), SessionError> {
        self.send.seal(plaintext, out)
    }

    pub fn open(&mut self, sealed: &[u8], out: &mut [u8]) -> Result<usize, SessionError> {
        self.receive.open(sealed, out)
    }

    pub fn exhausted(&self) -> bool {
        self.send.exhausted() || self.receive.exhausted()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session(sent {}, received {})", self.send.next, self.receive.next)
    }
}

/// Seals what this node says.
pub struct SendHalf {
    state: Arc<StatelessTransportState>,
    /// Counter of the next message.
    next: u64,
}

impl SendHalf {
    /// Appends the sealed message, [`SEAL_BYTES`] longer than `plaintext`.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), SessionError> {
        let start = out.len();
        out.resize(start + plaintext.len() + SEAL_BYTES, 0);
        let Some(place) = out.get_mut(start..) else { unreachable!("just resized") };
        let sealed = self.seal_into(plaintext, place);
        if sealed.is_err() {
            out.truncate(start);
        }
        sealed.map(|_| ())
    }

    /// Seals into the front of `out`, which has room for [`SEAL_BYTES`] more than `plaintext`; gives the bytes written.
    pub fn seal_into(&mut self, plaintext: &[u8], out: &mut [u8]) -> Result<usize, SessionError> {
        if self.exhausted() {
            return Err(SessionError::Exhausted);
        }
        let found = plaintext.len();
        let written =
            self.state.write_message(self.next, plaintext, out).map_err(|_| SessionError::Length { found })?;
        // Only after success: a counter is never used for two messages, and an error wrote nothing that was sent.
        self.next += 1;
        Ok(written)
    }

    pub fn sent(&self) -> u64 {
        self.next
    }

    pub fn exhausted(&self) -> bool {
        self.next >= SESSION_FRAMES_MAX
    }
}

/// Opens what the peer says.
pub struct ReceiveHalf {
    state: Arc<StatelessTransportState>,
    /// Counter of the next message; at the limit once a message failed to open.
    next: u64,
}

impl ReceiveHalf {
    /// Opens into the front of `out`; gives the bytes written, [`SEAL_BYTES`] fewer than `sealed`. After an error of kind
    /// [`SessionError::Sealed`] the half opens nothing more.
    pub fn open(&mut self, sealed: &[u8], out: &mut [u8]) -> Result<usize, SessionError> {
        if self.exhausted() {
            return Err(SessionError::Exhausted);
        }
        let plaintext_bytes = sealed.len().checked_sub(SEAL_BYTES);
        let fits = plaintext_bytes.is_some_and(|bytes| bytes <= SEALED_BODY_BYTES_MAX && bytes <= out.len());
        if !fits {
            return Err(SessionError::Length { found: sealed.len() });
        }
        match self.state.read_message(self.next, sealed, out) {
            Ok(read) => {
                self.next += 1;
                Ok(read)
            }
            Err(_) => {
                self.next = SESSION_FRAMES_MAX;
                Err(SessionError::Sealed)
            }
        }
    }

    /// The same, appended to `out`.
    pub fn open_append(&mut self, sealed: &[u8], out: &mut Vec<u8>) -> Result<usize, SessionError> {
        let start = out.len();
        out.resize(start + sealed.len().saturating_sub(SEAL_BYTES), 0);
        let Some(place) = out.get_mut(start..) else { unreachable!("just resized") };
        let opened = self.open(sealed, place);
        if opened.is_err() {
            out.truncate(start);
        }
        opened
    }

    pub fn received(&self) -> u64 {
        self.next
    }

    pub fn exhausted(&self) -> bool {
        self.next >= SESSION_FRAMES_MAX
    }
}

#[cfg(test)]
mod tests;
