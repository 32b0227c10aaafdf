//! All secrets but the per-chunk ones, and what is derived from each.
//!
//! Every `derive_key` context of the program (the constants below; a context is used for nothing else):
//!
//! | constant | from | gives |
//! | --- | --- | --- |
//! | `CONTEXT_CHUNK_KEY[N]` | scope key | key under which plaintexts of tree level N are hashed to chunk keys |
//! | `CONTEXT_NODE_SIGNING` | node seed | seed of the node's Ed25519 key; its public half is the node id |
//! | `CONTEXT_NODE_HANDSHAKE` | node seed | the node's X25519 key of the handshake |
//! | `CONTEXT_NETWORK_KEY_ID` | network key | 8 bytes that name the key in an opening |
//! | `CONTEXT_NETWORK_PSK` | network key | the pre-shared key of the handshake |
//! | `CONTEXT_BUCKET_ID` | vault key | key under which a bucket's name is hashed |
//! | `CONTEXT_NAME_ID` | vault key | key under which bucket and key are hashed |
//! | `CONTEXT_NAME_SEAL` | vault key | key that seals name records |
//! | `CONTEXT_CAPSULE_SEAL` | vault key | key that seals capsules |
//! | `CONTEXT_PLACEMENT_ID` | network id, node id, invite id (public) | placement id |
//! | [`TEXT_CHECKSUM_CONTEXT`](crate::format::id::TEXT_CHECKSUM_CONTEXT) | prefix and fields (no key) | checksums of text forms and key files |
//!
//! Signature contexts stand in [`SignatureContext`].
//!
//! Name records and capsules are sealed with XChaCha20-Poly1305 under a random nonce of 24 bytes: long enough that random
//! ones never meet. Bucket and name ids are keyed hashes: a node without the vault key cannot try a dictionary on them.
//! (What `blake3::keyed_hash` leaves of a key on the stack is not wiped; its `Hasher`, which can be, has 2 KiB to wipe.)

use std::sync::Arc;

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use ed25519_dalek::{Signer, SigningKey};
use zeroize::{Zeroize, Zeroizing};

use super::cipher::ScopeKey;
use super::random_bytes;
use crate::format::certificate::Signature;
use crate::format::name::{Capsule, NAME_VERSION, NameBody, NameRecord, SEAL_NONCE_BYTES, SEAL_TAG_BYTES};
use crate::format::{
    Address, BucketId, Malformed, NameId, NetworkId, NodeId, Reader, Stamp, VaultId, VersionId, Writer,
};
use crate::limits::TREE_DEPTH_MAX;

/// Tree levels that have a context: the leaves and each inner level.
pub const CHUNK_LEVELS: usize = TREE_DEPTH_MAX as usize + 1;

pub const CONTEXT_CHUNK_KEY: [&str; CHUNK_LEVELS] = [
    "gabion v1 chunk key level 0",
    "gabion v1 chunk key level 1",
    "gabion v1 chunk key level 2",
    "gabion v1 chunk key level 3",
    "gabion v1 chunk key level 4",
];
pub const CONTEXT_NODE_SIGNING: &str = "gabion v1 node signing key";
pub const CONTEXT_NODE_HANDSHAKE: &str = "gabion v1 node handshake key";
pub const CONTEXT_NETWORK_KEY_ID: &str = "gabion v1 network key id";
pub const CONTEXT_NETWORK_PSK: &str = "gabion v1 network handshake key";
pub const CONTEXT_BUCKET_ID: &str = "gabion v1 bucket id";
pub const CONTEXT_NAME_ID: &str = "gabion v1 name id";
pub const CONTEXT_NAME_SEAL: &str = "gabion v1 name seal";
pub const CONTEXT_CAPSULE_SEAL: &str = "gabion v1 capsule seal";
pub const CONTEXT_PLACEMENT_ID: &str = "gabion v1 placement id";

/// What a signature is for: the first part of what is signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SignatureContext(&'static str);

impl SignatureContext {
    /// By the authority.
    pub const INVITE: Self = Self("gabion v1 invite certificate");
    /// By an invite.
    pub const NODE_CERTIFICATE: Self = Self("gabion v1 node certificate");
    /// By the node itself.
    pub const ROLE: Self = Self("gabion v1 role");
    /// By the authority.
    pub const LAYOUT: Self = Self("gabion v1 layout");
    /// By a member.
    pub const DEATH: Self = Self("gabion v1 death");
    /// By the authority.
    pub const EVICTION: Self = Self("gabion v1 eviction");

    /// `context || 0 || network id || body`: what is really signed.
    pub(super) fn message(self, network: &NetworkId, body: &[u8]) -> Vec<u8> {
        [self.0.as_bytes(), &[0], &network.0, body].concat()
    }
}

/// A type of 32 secret bytes that wipes them when dropped and does not print them.
macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
        pub struct $name([u8; 32]);

        impl $name {
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            pub fn random() -> Self {
                Self($crate::crypto::random_bytes())
            }

            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(secret)"))
            }
        }
    };
}
pub(super) use secret;

secret!(
    /// All that a node is: its signing and handshake keys are derived from it.
    NodeSeed
);
secret!(
    /// The private half of an invite: certifies nodes.
    InviteSeed
);
/// What a vault's names and (by default) chunks are sealed under. Members hold it. Clones share what is derived from it
/// once: deriving keys anew for each name took a tenth of the time of a small get.
#[derive(Clone)]
pub struct VaultKey(Arc<VaultKeys>);

struct VaultKeys {
    key: Zeroizing<[u8; 32]>,
    bucket_id: Zeroizing<[u8; 32]>,
    name_id: Zeroizing<[u8; 32]>,
    name_seal: XChaCha20Poly1305,
    capsule_seal: XChaCha20Poly1305,
    scope: ScopeKey,
}

impl NodeSeed {
    pub fn keys(&self) -> NodeKeys {
        let mut signing_seed = blake3::derive_key(CONTEXT_NODE_SIGNING, &self.0);
        let signing = SigningKey::from_bytes(&signing_seed);
        signing_seed.zeroize();
        let handshake_private = Zeroizing::new(blake3::derive_key(CONTEXT_NODE_HANDSHAKE, &self.0));
        let handshake_public = public_of(&handshake_private);
        NodeKeys { signing, handshake_private, handshake_public }
    }
}

/// The public half of an X25519 key.
pub(super) fn public_of(private: &[u8; 32]) -> [u8; 32] {
    x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*private)).to_bytes()
}

/// A node's keys, derived from its seed once.
#[derive(Clone)]
pub struct NodeKeys {
    signing: SigningKey,
    handshake_private: Zeroizing<[u8; 32]>,
    handshake_public: [u8; 32],
}

impl NodeKeys {
    pub fn node_id(&self) -> NodeId {
        NodeId(self.signing.verifying_key().to_bytes())
    }

    pub fn sign(&self, context: SignatureContext, network: &NetworkId, body: &[u8]) -> Signature {
        self.signing.sign(&context.message(network, body)).to_bytes()
    }

    pub fn handshake_private(&self) -> &[u8; 32] {
        &self.handshake_private
    }

    pub fn handshake_public(&self) -> &[u8; 32] {
        &self.handshake_public
    }
}

impl std::fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeKeys({:?}, secret)", self.node_id())
    }
}

impl InviteSeed {
    /// The invite's id.
    pub fn public(&self) -> [u8; 32] {
        SigningKey::from_bytes(&self.0).verifying_key().to_bytes()
    }

    pub fn sign(&self, context: SignatureContext, network: &NetworkId, body: &[u8]) -> Signature {
        SigningKey::from_bytes(&self.0).sign(&context.message(network, body)).to_bytes()
    }
}

/// What a network is: who holds it admits and evicts.
#[derive(Clone)]
pub struct Authority {
    signing: SigningKey,
}

impl Authority {
    pub fn from_bytes(seed: [u8; 32]) -> Self {
        Self { signing: SigningKey::from_bytes(&seed) }
    }

    pub fn random() -> Self {
        Self::from_bytes(random_bytes())
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        self.signing.as_bytes()
    }

    pub fn network_id(&self) -> NetworkId {
        NetworkId(self.signing.verifying_key().to_bytes())
    }

    pub fn sign(&self, context: SignatureContext, body: &[u8]) -> Signature {
        self.signing.sign(&context.message(&self.network_id(), body)).to_bytes()
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({:?}, secret)", self.network_id())
    }
}

/// Shared by all nodes of one network: who does not know it gets no answer. Generations allow to replace it.
#[derive(Clone)]
pub struct NetworkKey {
    generation: u32,
    key: Zeroizing<[u8; 32]>,
}

impl NetworkKey {
    pub fn new(generation: u32, key: [u8; 32]) -> Self {
        Self { generation, key: Zeroizing::new(key) }
    }

    pub fn random(generation: u32) -> Self {
        Self::new(generation, random_bytes())
    }

    pub fn generation(&self) -> u32 {
        self.generation
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.key
    }

    /// Names the key in an opening, in clear.
    pub fn key_id(&self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = blake3::derive_key(CONTEXT_NETWORK_KEY_ID, &*self.key);
        [a, b, c, d, e, f, g, h]
    }

    /// The pre-shared key of the handshake.
    pub fn psk(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(CONTEXT_NETWORK_PSK, &*self.key))
    }
}

impl std::fmt::Debug for NetworkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NetworkKey(generation {}, secret)", self.generation)
    }
}

/// What a sealed record did not turn out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("sealed under generation {found} of the vault key, this node holds {held}; update gabion")]
    Generation { found: u32, held: u32 },
    #[error("cannot be opened: sealed under another vault key, or edited")]
    Forged,
    #[error("opened, but is not what its head says: {0}")]
    Inside(#[from] Malformed),
}

/// Where and when a name record stands; bucket, key and file are in its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameStamp {
    pub clock: Stamp,
    pub version: VersionId,
    pub tombstone: bool,
}

impl std::fmt::Debug for VaultKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VaultKey(secret)")
    }
}

impl VaultKey {
    /// There is one generation so far; records carry it so that there can be more.
    pub const GENERATION: u32 = 1;

    pub fn from_bytes(key: [u8; 32]) -> Self {
        let key = Zeroizing::new(key);
        let derived = |context| Zeroizing::new(blake3::derive_key(context, &*key));
        let seal = |context| XChaCha20Poly1305::new(<&Key>::from(&*derived(context)));
        Self(Arc::new(VaultKeys {
            bucket_id: derived(CONTEXT_BUCKET_ID),
            name_id: derived(CONTEXT_NAME_ID),
            name_seal: seal(CONTEXT_NAME_SEAL),
            capsule_seal: seal(CONTEXT_CAPSULE_SEAL),
            scope: ScopeKey::from_bytes(&key),
            key,
        }))
    }

    pub fn random() -> Self {
        Self::from_bytes(random_bytes())
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0.key
    }

    /// The scope in which equal content of this vault is one chunk.
    pub fn scope(&self) -> &ScopeKey {
        &self.0.scope
    }

    pub fn bucket_id(&self, bucket: &str) -> BucketId {
        BucketId(blake3::keyed_hash(&self.0.bucket_id, bucket.as_bytes()).into())
    }

    /// The bucket's id stands for its text, so that no two pairs are hashed alike.
    pub fn name_id(&self, bucket: &BucketId, key: &str) -> NameId {
        NameId(blake3::keyed_hash(&self.0.name_id, &[&bucket.0, key.as_bytes()].concat()).into())
    }

    /// What a name is to nodes without this key.
    pub fn ids(&self, bucket: &str, key: &str) -> (BucketId, NameId) {
        let bucket = self.bucket_id(bucket);
        (bucket, self.name_id(&bucket, key))
    }

    /// Seals `body` as a record of its name. Its metadata is within its limits
    /// ([`Metadata::check`](crate::format::name::Metadata::check)), its bucket and key come from a
    /// [`Name`](crate::format::name::Name).
    pub fn seal_name(&self, network: &NetworkId, stamp: NameStamp, body: &NameBody) -> NameRecord {
        self.seal_name_of(network, self.ids(&body.bucket, &body.key), stamp, body)
    }

    /// The same for who has the name's ids already. With others the record would be refused wherever it is opened.
    pub fn seal_name_of(
        &self,
        network: &NetworkId,
        (bucket, name): (BucketId, NameId),
        stamp: NameStamp,
        body: &NameBody,
    ) -> NameRecord {
        let mut record = NameRecord {
            tombstone: stamp.tombstone,
            vault: VaultId::ZERO,
            key_generation: Self::GENERATION,
            bucket,
            name,
            clock: stamp.clock,
            version: stamp.version,
            nonce: random_bytes(),
            sealed: Vec::new(),
        };
        record.sealed = seal(&self.0.name_seal, &record.nonce, &record.associated_data(network), &body.encode());
        record
    }

    /// The body of a record, if it was sealed under this key for exactly the head that it has.
    pub fn open_name(&self, network: &NetworkId, record: &NameRecord) -> Result<NameBody, OpenError> {
        check_generation(record.key_generation)?;
        let associated = record.associated_data(network);
        let plaintext = open(&self.0.name_seal, &record.nonce, &associated, &record.sealed)?;
        let body = NameBody::decode(&plaintext)?;
        if self.ids(&body.bucket, &body.key) != (record.bucket, record.name) {
            return Err(Malformed::new("name record of another name").into());
        }
        if record.tombstone && body.length != 0 {
            return Err(Malformed::new("tombstone of a file").into());
        }
        Ok(body)
    }

    /// Format version 2, key generation 4, nonce 24, sealed capsule.
    pub fn seal_capsule(&self, network: &NetworkId, version: &VersionId, root: &Address, capsule: &Capsule) -> Vec<u8> {
        let nonce = random_bytes();
        let associated = capsule_associated_data(network, version, root);
        let sealed = seal(&self.0.capsule_seal, &nonce, &associated, &capsule.encode());
        let bytes = size_of_val(&NAME_VERSION) + size_of_val(&Self::GENERATION) + nonce.len() + sealed.len();
        let mut writer = Writer::with_capacity(bytes);
        writer.u16(NAME_VERSION).u32(Self::GENERATION).bytes(&nonce).bytes(&sealed).finish()
    }

    pub fn open_capsule(
        &self,
        network: &NetworkId,
        version: &VersionId,
        root: &Address,
        sealed: &[u8],
    ) -> Result<Capsule, OpenError> {
        let mut reader = Reader::new(sealed);
        if reader.u16("capsule's format version")? != NAME_VERSION {
            return Err(Malformed::new("capsule's format version (update gabion)").into());
        }
        check_generation(reader.u32("capsule's key generation")?)?;
        let nonce = reader.take::<[u8; SEAL_NONCE_BYTES]>("capsule's nonce")?;
        let associated = capsule_associated_data(network, version, root);
        let plaintext = open(&self.0.capsule_seal, nonce, &associated, reader.rest())?;
        Ok(Capsule::decode(&plaintext)?)
    }
}

fn check_generation(found: u32) -> Result<(), OpenError> {
    let held = VaultKey::GENERATION;
    if found == held { Ok(()) } else { Err(OpenError::Generation { found, held }) }
}

fn capsule_associated_data(network: &NetworkId, version: &VersionId, root: &Address) -> Vec<u8> {
    Writer::new().u16(NAME_VERSION).u32(VaultKey::GENERATION).put(network).put(version).put(root).finish()
}

fn seal(
    cipher: &XChaCha20Poly1305,
    nonce: &[u8; SEAL_NONCE_BYTES],
    associated: &[u8],
    plaintext: &Zeroizing<Vec<u8>>,
) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(plaintext.len() + SEAL_TAG_BYTES);
    sealed.extend_from_slice(plaintext);
    let Ok(tag) = cipher.encrypt_inout_detached(<&XNonce>::from(nonce), associated, sealed.as_mut_slice().into())
    else {
        unreachable!("a few kilobytes are within the cipher's limit of 256 GB")
    };
    sealed.extend_from_slice(&tag);
    sealed
}

fn open(
    cipher: &XChaCha20Poly1305,
    nonce: &[u8; SEAL_NONCE_BYTES],
    associated: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let (bytes, tag) = sealed.split_last_chunk::<16>().ok_or(OpenError::Forged)?;
    let mut plaintext = Zeroizing::new(bytes.to_vec());
    cipher
        .decrypt_inout_detached(<&XNonce>::from(nonce), associated, plaintext.as_mut_slice().into(), tag.into())
        .map_err(|_| OpenError::Forged)?;
    Ok(plaintext)
}

#[cfg(test)]
mod tests;
