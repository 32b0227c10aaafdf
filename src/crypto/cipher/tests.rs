use std::io::Write;
use std::process::{Command, Stdio};

use ctr::Ctr128BE;
use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::*;
use crate::crypto::keys::VaultKey;

fn scope() -> ScopeKey {
    ScopeKey::from_bytes(&[7; 32])
}

/// A chunk of this plaintext, padded as chunks are.
fn padded(plaintext: &[u8]) -> Vec<u8> {
    let mut chunk = plaintext.to_vec();
    chunk.resize(plaintext.len().max(CHUNK_BYTES_MIN), 0);
    chunk
}

fn sealed(scope: &ScopeKey, level: u8, plaintext: &[u8]) -> (Vec<u8>, Address, ChunkKey) {
    let mut chunk = padded(plaintext);
    let (address, key) = seal_chunk(scope, level, &mut chunk, plaintext.len());
    (chunk, address, key)
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn the_keystream_is_the_published_one() {
    // AES-256 under a zero key of the counters 0, 1 and 2: the hash key, E(K, Y0) and first keystream block of test cases
    // 13 and 14 of the GCM specification.
    let mut bytes = [0; 48];
    apply_keystream(&mut bytes, &ChunkKey::from_bytes([0; 32]));
    assert_eq!(
        HEXLOWER.encode(&bytes),
        "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738bcea7403d4d606b6e074ec5d3baf39d18"
    );
}

#[test]
fn openssl_decrypts_a_leaf() {
    for len in [1, 33, 5000, CHUNK_BYTES_MAX] {
        let plaintext = noise(len);
        let (chunk, _, key) = sealed(&scope(), 0, &plaintext);
        let Ok(mut openssl) = Command::new("openssl")
            .args(["enc", "-d", "-aes-256-ctr", "-iv", &"0".repeat(32), "-K", &HEXLOWER.encode(key.as_bytes())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            let is_strict = std::env::var_os("GABION_TEST_STRICT").is_some_and(|value| !value.is_empty());
            assert!(!is_strict, "openssl is not installed");
            eprintln!("openssl is not installed: only the published vectors were checked");
            return;
        };
        let mut stdin = openssl.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(&chunk).unwrap());
        let output = openssl.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success());
        assert!(output.stdout == padded(&plaintext), "openssl decrypts {len} bytes to something else");
    }
}

#[test]
fn each_way_to_count_gives_the_bytes_of_the_standard_counter() {
    let key = ChunkKey::from_bytes([9; 32]);
    for len in [32, 1023, 1024, 1025, 1040, 2047, 5000, (64 << 10) + 1, CHUNK_BYTES_MAX - 5, CHUNK_BYTES_MAX] {
        let mut standard = noise(len);
        Ctr128BE::<Aes256>::new(key.as_bytes().into(), &[0; 16].into()).apply_keystream(&mut standard);
        let mut ours = noise(len);
        apply_keystream(&mut ours, &key);
        assert!(ours == standard, "{len} bytes");
        // On any processor, whichever way is the faster one there.
        let mut wide = noise(len);
        Aes256::new(key.as_bytes().into()).encrypt_with_backend(WideKeystream { bytes: &mut wide });
        assert!(wide == standard, "{len} bytes, wide");
    }
}

#[test]
fn a_chunk_gives_its_plaintext_back() {
    for len in [1, 31, 32, 33, 4096, CHUNK_BYTES_MAX] {
        let plaintext = noise(len);
        let (mut chunk, address, key) = sealed(&scope(), 0, &plaintext);
        assert_eq!(chunk.len(), len.max(32));
        assert_eq!(address, address_of(&chunk));
        assert!(chunk[..len] != plaintext[..], "{len} bytes are not encrypted");
        open_chunk(&mut chunk, &address, &key).unwrap();
        assert!(chunk == padded(&plaintext), "{len} bytes come back as others");
    }
}

#[test]
fn tiny_files_that_differ_in_trailing_zeros_have_keys_and_addresses_of_their_own() {
    let chunks: Vec<_> = (1..=40).map(|len| sealed(&scope(), 0, &[&b"a"[..], &vec![0; len]].concat())).collect();
    for (i, (_, address, key)) in chunks.iter().enumerate() {
        for (_, other_address, other_key) in &chunks[..i] {
            assert_ne!(address, other_address);
            assert_ne!(key.as_bytes(), other_key.as_bytes());
        }
    }
}

#[test]
fn chunks_that_are_sealed_together_are_those_sealed_one_by_one() {
    let scope = scope();
    let lengths = [1, 31, 32, 33, 1024, 4096, 4095, 5000, 40_000, 100];
    let mut together: Vec<(Vec<u8>, usize)> =
        lengths.iter().cycle().take(35).map(|len| (padded(&noise(*len)), *len)).collect();
    let mut chunks: Vec<(&mut [u8], usize)> =
        together.iter_mut().map(|(chunk, span)| (chunk.as_mut_slice(), *span)).collect();
    let outcomes = seal_chunks(&scope, 0, &mut chunks);
    assert_eq!(outcomes.len(), together.len());
    for ((chunk, span), (address, key)) in together.into_iter().zip(outcomes) {
        let (alone, address_alone, key_alone) = sealed(&scope, 0, &noise(span));
        assert_eq!((chunk, address), (alone, address_alone), "{span} bytes");
        assert_eq!(key.as_bytes(), key_alone.as_bytes(), "{span} bytes");
    }
    assert!(seal_chunks(&scope, 0, &mut []).is_empty());
}

#[test]
fn a_mismatch_decrypts_nothing() {
    let (chunk, address, key) = sealed(&scope(), 0, b"what only its owner reads");
    for bit in 0..chunk.len() * 8 {
        let mut damaged = chunk.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let before = damaged.clone();
        let mismatch = open_chunk(&mut damaged, &address, &key).unwrap_err();
        assert_eq!(mismatch, Mismatch { expected: address, found: address_of(&before) });
        assert_eq!(damaged, before);
    }
    let mut short = chunk[..31].to_vec();
    assert!(open_chunk(&mut short, &address, &key).is_err());
    assert_eq!(short, chunk[..31]);
}

#[test]
fn equal_content_is_one_chunk_within_a_scope_and_level_only() {
    let (_, address, _) = sealed(&scope(), 0, b"content");
    assert_eq!(address, sealed(&scope(), 0, b"content").1);
    let mut others = vec![sealed(&ScopeKey::random(), 0, b"content").1, sealed(&ScopeKey::random(), 0, b"content").1];
    others.extend((1..CHUNK_LEVELS as u8).map(|level| sealed(&scope(), level, b"content").1));
    others.push(address);
    let count = others.len();
    others.sort();
    others.dedup();
    assert_eq!(others.len(), count);
}

#[test]
fn a_vaults_scope_is_its_key() {
    let vault = VaultKey::from_bytes([7; 32]);
    assert_eq!(sealed(vault.scope(), 0, b"x").1, sealed(&scope(), 0, b"x").1);
}

#[test]
#[should_panic(expected = "padding of a chunk is not zero")]
fn padding_that_is_not_zero_is_the_callers_mistake() {
    seal_chunk(&scope(), 0, &mut [1; 32], 31);
}

#[test]
#[should_panic(expected = "a span of 40 bytes in a chunk of 32")]
fn a_span_beyond_its_chunk_is_the_callers_mistake() {
    seal_chunk(&scope(), 0, &mut [1; 32], 40);
}

#[test]
fn keys_do_not_print() {
    let (_, _, key) = sealed(&scope(), 0, b"x");
    assert_eq!(format!("{key:?} {:?}", scope()), "ChunkKey(secret) ScopeKey(secret)");
}

proptest! {
    #[test]
    fn every_chunk_gives_its_plaintext_back(plaintext in prop::collection::vec(any::<u8>(), 1..300), level in 0u8..5) {
        let (mut chunk, address, key) = sealed(&scope(), level, &plaintext);
        prop_assert_eq!(check_chunk(&chunk, &address), Ok(()));
        open_chunk(&mut chunk, &address, &key).unwrap();
        prop_assert_eq!(chunk, padded(&plaintext));
    }
}
