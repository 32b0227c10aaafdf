//! Chunks: from file bytes to ciphertext and back, in place.
//!
//! 1. key = BLAKE3 keyed(level key, unpadded plaintext), all 32 bytes of it. The level key is derived from the scope key with
//!    a context of its own for each tree level, so a leaf never shares a key with an inner node. Under one scope, equal
//!    content has one key, one ciphertext and one address; that is what deduplication is, and all it gives away.
//! 2. padding: a plaintext shorter than 32 bytes is followed by zeros up to 32. The key is derived *before*, from the span
//!    alone: otherwise `a` and `a\0` would be one chunk.
//! 3. ciphertext = AES-256-CTR(key, zero IV). A zero IV is sound since one key meets one plaintext only.
//! 4. address = BLAKE3 of the ciphertext.
//!
//! The counter is the standard big-endian one of 128 bits, and `openssl enc -aes-256-ctr` decrypts a chunk. The code counts
//! in 64 bits, which with a zero IV gives the same bytes up to 2^64 blocks and is a quarter faster.
//!
//! What this costs is what a put costs: sealing alone takes about 0.45 CPU seconds per GiB on a processor with AVX-512, and
//! 0.9 to 1.0 on one with AVX2 alone (BLAKE3 twice: 0.65, AES: 0.25). There `aes` leaves VAES unused, as `cpufeatures` 0.3
//! takes it for a part of AVX-512; a build with `-C target-cpu=native` gains 0 to 10 percent, which is no reason to ship one.

use aes::Aes256;
use ctr::Ctr64BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use zeroize::Zeroize;

use super::hash::address_of;
use super::keys::{CHUNK_LEVELS, CONTEXT_CHUNK_KEY, VaultKey, secret};
use crate::format::Address;
use crate::limits::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};

secret!(
    /// What one chunk is encrypted with.
    ChunkKey
);

/// Chunk keys depend on the content and on one of these: a vault's, or one of random bytes for a file that is to share no
/// chunk with any other. Holds the derived key of each level, not what they came from.
#[derive(Clone)]
pub struct ScopeKey {
    levels: [[u8; 32]; CHUNK_LEVELS],
}

impl ScopeKey {
    pub fn from_bytes(key: &[u8; 32]) -> Self {
        Self { levels: CONTEXT_CHUNK_KEY.map(|context| blake3::derive_key(context, key)) }
    }

    pub fn random() -> Self {
        let mut key = super::random_bytes();
        let scope = Self::from_bytes(&key);
        key.zeroize();
        scope
    }

    /// The key of a chunk with this plaintext (without its padding).
    pub fn chunk_key(&self, level: u8, plaintext: &[u8]) -> ChunkKey {
        let Some(level_key) = self.levels.get(usize::from(level)) else {
            panic!("level {level} of a file tree: there are {CHUNK_LEVELS}");
        };
        let mut hasher = blake3::Hasher::new_keyed(level_key);
        let mut hash = hasher.update(plaintext).finalize();
        let key = ChunkKey::from_bytes(*hash.as_bytes());
        hasher.zeroize();
        hash.zeroize();
        key
    }
}

impl VaultKey {
    /// The scope in which equal content of this vault is one chunk.
    pub fn scope(&self) -> ScopeKey {
        ScopeKey::from_bytes(self.as_bytes())
    }
}

impl Drop for ScopeKey {
    fn drop(&mut self) {
        self.levels.zeroize();
    }
}

impl std::fmt::Debug for ScopeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScopeKey(secret)")
    }
}

/// The bytes are not the chunk that was asked for. Nothing was decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunk {expected:?} is damaged: its bytes hash to {found:?}; fetch it from another holder")]
pub struct Mismatch {
    pub expected: Address,
    pub found: Address,
}

/// Turns `chunk` (plaintext in `chunk[..span]`, zeros from there on, `chunk.len() == max(32, span)`) into ciphertext.
///
/// # Panics
/// When lengths, padding or level are not as said: the caller's mistake, which would lose data if it passed.
pub fn seal_chunk(scope: &ScopeKey, level: u8, chunk: &mut [u8], span: usize) -> (Address, ChunkKey) {
    assert!((1..=CHUNK_BYTES_MAX).contains(&span), "a chunk holds 1 byte to 1 MiB, not {span} bytes");
    assert!(chunk.len() == span.max(CHUNK_BYTES_MIN), "a span of {span} bytes in a chunk of {}", chunk.len());
    let (plaintext, padding) = chunk.split_at(span);
    assert!(padding.iter().all(|byte| *byte == 0), "padding of a chunk is not zero");
    let key = scope.chunk_key(level, plaintext);
    apply_keystream(chunk, &key);
    (address_of(chunk), key)
}

/// Checks `chunk` against its address and, only if it matches, decrypts it.
pub fn open_chunk(chunk: &mut [u8], address: &Address, key: &ChunkKey) -> Result<(), Mismatch> {
    check_chunk(chunk, address)?;
    apply_keystream(chunk, key);
    Ok(())
}

/// Whether these bytes are the chunk at `address`; takes no key.
pub fn check_chunk(chunk: &[u8], address: &Address) -> Result<(), Mismatch> {
    let found = address_of(chunk);
    if found == *address { Ok(()) } else { Err(Mismatch { expected: *address, found }) }
}

/// Encrypts or decrypts a whole chunk in place. Checks nothing: see [`open_chunk`].
pub fn apply_keystream(bytes: &mut [u8], key: &ChunkKey) {
    Ctr64BE::<Aes256>::new(key.as_bytes().into(), &[0; 16].into()).apply_keystream(bytes);
}

#[cfg(test)]
mod tests;
