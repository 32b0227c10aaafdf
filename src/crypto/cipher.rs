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
//! in 64 bits, and on processors with AVX-512 in 32, which with a zero IV gives the same bytes: a chunk has 2^16 blocks.
//!
//! What this costs is what a put costs: sealing alone takes 0.48 to 0.52 CPU seconds per GiB on a processor with AVX-512, and
//! 0.9 to 1.0 on one with AVX2 alone (BLAKE3 twice: 0.65, AES: 0.25). There `aes` leaves VAES unused, as `cpufeatures` 0.3
//! takes it for a part of AVX-512; a build with `-C target-cpu=native` gains 0 to 10 percent, which is no reason to ship one.

use aes::cipher::consts::U16;
use aes::cipher::typenum::Unsigned;
use aes::cipher::{
    BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit, KeyIvInit, ParBlocks,
    StreamCipher,
};
use aes::{Aes256, Block};
use ctr::Ctr64BE;
use zeroize::Zeroize;

use super::hash::{address_of, addresses_of, keyed_hashes};
use super::keys::{CHUNK_LEVELS, CONTEXT_CHUNK_KEY, secret};
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
        ChunkKey::from_bytes(blake3::keyed_hash(self.level_key(level), plaintext).into())
    }

    fn level_key(&self, level: u8) -> &[u8; 32] {
        match self.levels.get(usize::from(level)) {
            Some(key) => key,
            None => panic!("level {level} of a file tree: there are {CHUNK_LEVELS}"),
        }
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
    let key = key_of_chunk(scope, level, chunk, span);
    (seal_with(chunk, &key), key)
}

/// The first half of [`seal_chunk`], and as long as the second.
///
/// # Panics
/// As there.
pub fn key_of_chunk(scope: &ScopeKey, level: u8, chunk: &[u8], span: usize) -> ChunkKey {
    scope.chunk_key(level, plaintext_of(chunk, span))
}

fn plaintext_of(chunk: &[u8], span: usize) -> &[u8] {
    assert!((1..=CHUNK_BYTES_MAX).contains(&span), "a chunk holds 1 byte to 1 MiB, not {span} bytes");
    assert!(chunk.len() == span.max(CHUNK_BYTES_MIN), "a span of {span} bytes in a chunk of {}", chunk.len());
    let (plaintext, padding) = chunk.split_at(span);
    assert!(padding.iter().all(|byte| *byte == 0), "padding of a chunk is not zero");
    plaintext
}

/// [`seal_chunk`] of many short chunks, each with its span, in less time than one by one.
///
/// # Panics
/// As there.
pub fn seal_chunks(scope: &ScopeKey, level: u8, chunks: &mut [(&mut [u8], usize)]) -> Vec<(Address, ChunkKey)> {
    let plaintexts: Vec<&[u8]> = chunks.iter().map(|(chunk, span)| plaintext_of(chunk, *span)).collect();
    let mut hashes = keyed_hashes(scope.level_key(level), &plaintexts);
    let keys: Vec<ChunkKey> = hashes.iter().copied().map(ChunkKey::from_bytes).collect();
    hashes.zeroize();
    chunks.iter_mut().zip(&keys).for_each(|((chunk, _), key)| apply_keystream(chunk, key));
    let ciphertexts: Vec<&[u8]> = chunks.iter().map(|(chunk, _)| &**chunk).collect();
    addresses_of(&ciphertexts).into_iter().zip(keys).collect()
}

/// The second half: encrypts under the chunk's own key and gives the address.
pub fn seal_with(chunk: &mut [u8], key: &ChunkKey) -> Address {
    apply_keystream(chunk, key);
    address_of(chunk)
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
    if WideKeystream::is_faster() && bytes.len() >= WideKeystream::BYTES_MIN {
        Aes256::new(key.as_bytes().into()).encrypt_with_backend(WideKeystream { bytes });
    } else {
        Ctr64BE::<Aes256>::new(key.as_bytes().into(), &[0; 16].into()).apply_keystream(bytes);
    }
}

/// The same keystream, counted and applied inside of the cipher's own loop: what is inlined there is compiled for the
/// vectors that the cipher was picked for at run time, while `ctr` runs around it, for the least of all processors.
///
/// | of 1 MiB, on an EPYC with AVX-512 | CPU s/GiB |
/// | --- | --- |
/// | `ctr` | 0.215 to 0.24 |
/// | this | 0.094 |
/// | this, when it took bytes instead of words | 0.094, 0.170 or 0.37 |
/// | `ctr`, and this, with `-C target-cpu=native` | 0.132 to 0.165, 0.092 to 0.096 |
///
/// Bytes that are taken one by one are put together to vectors by some versions of the code around them, and by others not.
///
/// With the narrow vectors of AES-NI it is an eighth slower than `ctr`. To count by XOR of four blocks at a time, without a
/// branch or a byte of its own for any, made sealing and opening 3 to 6 % slower here. To hash each piece of 256, 64 or 16
/// KiB as soon as it is encrypted, while it is in the nearer caches, made sealing 1.00, 1.02 and 1.05 times as long.
struct WideKeystream<'a> {
    bytes: &'a mut [u8],
}

impl WideKeystream<'_> {
    /// What the cipher takes at once.
    const BYTES_MIN: usize = 1 << 10;

    fn is_faster() -> bool {
        #[cfg(target_arch = "x86_64")]
        return std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("vaes");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

impl BlockSizeUser for WideKeystream<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for WideKeystream<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, cipher: &B) {
        const { assert!(CHUNK_BYTES_MAX as u64 / 16 <= 1 << 32, "the counter has 32 bits") };
        let mut counter = 0_u32;
        let mut count = |block: &mut Block| {
            if let Some(low) = block.last_chunk_mut() {
                *low = counter.to_be_bytes();
            }
            counter = counter.wrapping_add(1);
        };
        let (mut counters, mut stream): (ParBlocks<B>, ParBlocks<B>) = Default::default();
        let mut wide = self.bytes.chunks_exact_mut(16 * B::ParBlocksSize::USIZE);
        for piece in &mut wide {
            counters.iter_mut().for_each(&mut count);
            cipher.encrypt_par_blocks((&counters, &mut stream).into());
            for (piece, block) in piece.as_chunks_mut().0.iter_mut().zip(&stream) {
                *piece = (u128::from_ne_bytes(*piece) ^ u128::from_ne_bytes(block.0)).to_ne_bytes();
            }
        }
        for piece in wide.into_remainder().chunks_mut(16) {
            let mut block = Block::default();
            count(&mut block);
            cipher.encrypt_block((&mut block).into());
            piece.iter_mut().zip(&block).for_each(|(byte, key)| *byte ^= key);
            block.zeroize();
        }
        stream.zeroize(); // it tells plaintext from ciphertext
    }
}

#[cfg(test)]
mod tests;
