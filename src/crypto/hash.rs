//! Addresses: BLAKE3 of a chunk's ciphertext. Whoever holds a chunk can check it without any key.

mod many;

use crate::format::Address;

pub(super) use many::keyed_hashes;

/// Short chunks that are hashed as one.
pub const SIDE_BY_SIDE: usize = many::LANES;

pub fn address_of(ciphertext: &[u8]) -> Address {
    Address(*blake3::hash(ciphertext).as_bytes())
}

/// The addresses of short chunks, in less time than one by one.
pub fn addresses_of(ciphertexts: &[&[u8]]) -> Vec<Address> {
    many::hashes(ciphertexts).into_iter().map(Address).collect()
}

/// Answers a request to prove that a range of a chunk is at hand: both sides hash the bytes under the asker's nonce.
pub fn proof_of_holding(nonce: &[u8; 32], range: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(nonce, range).as_bytes()
}
