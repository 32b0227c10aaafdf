//! Keys and what they protect.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`hash`] | addresses |
//! | [`cipher`] | chunks: key from the content, AES-256-CTR, address of the result |
//! | [`keys`] | all secret types, and the one table of contexts that keys are derived with |
//! | [`keyfile`] | the `keys/` directory of a node, and the text form for safe keeping |
//! | [`identity`] | who signs what, and the checks |
//! | [`session`] | the handshake between two nodes, and what travels after it |
//! | [`replay`] | openings seen before |
//! | [`source`] | one machine or household from another, for what is counted for each |
//!
//! Rules:
//! - A chunk is checked against its address before a byte of it is decrypted ([`cipher::open_chunk`]).
//! - Every signature is over `context || 0 || network id || body` and checked by `verify_strict`, so nothing signed for one
//!   purpose or network passes for another.
//! - Checked things have types of their own ([`identity::CheckedCertificate`]) that only a check makes.
//! - Secrets wipe their memory when dropped and print their type's name only.
//!
//! What is not wiped, because libraries do not: `snow` keeps the pre-shared key, its chaining key and the transport keys in
//! plain arrays until the memory is reused; `blake3::derive_key` leaves its inner state on the stack; a value that is
//! moved leaves its old bytes behind. (The key schedules of `aes`, `ctr` and `chacha20poly1305` are wiped, and BLAKE3's
//! state where one of our secrets keyed it.) A core dump or the swap of a running node holds its keys.

pub mod cipher;
pub mod hash;
pub mod identity;
pub mod keyfile;
pub mod keys;
pub mod replay;
pub mod session;
pub mod source;

/// Bytes from the thread's generator, which the operating system seeds.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes);
    bytes
}
