//! Hashing and encryption: single stages, and the pipelines that a put and a get run them in.
//!
//! What the groups decide:
//!
//! | group | decides |
//! | --- | --- |
//! | `hash` | the ceiling of everything that verifies; whether short chunks cost more per byte, and how much of that hashing many of them together takes away |
//! | `aes-256-ctr` | the counter of [`apply_keystream`] where the processor has no AVX-512: with a zero IV the bytes are the same, so the faster one is used. The function itself stands beside them: see below |
//! | `put` | whether [`seal_chunk`] costs more than its three stages, and whether walking a chunk once, in pieces that fit the first-level cache, beats one stage after the other over a chunk in the second-level cache |
//! | `get` | the same for [`open_chunk`]. It has no variant in pieces: no byte is decrypted before the whole chunk is verified |
//!
//! What the library's stream cipher becomes differs from what the same expression in this crate does. So variants are compared
//! with what is compiled beside them ("compiled here"), never with the library's, and a change of the library's rate after
//! a change of nothing but the build is to be looked at.
//!
//! A chunk is hot in the cache of the core that works on it, as it is when it was just received or read. `put, cold` and
//! `get, cold` walk over 64 chunks instead, more than a second-level cache holds. One thread throughout.
//!
//! Microseconds for 1 MiB (AMD EPYC with AVX-512, 2 virtual cores of a shared machine, 27 November 2026):
//!
//! | | hot | cold |
//! | --- | --- | --- |
//! | chunk key, encrypt, address | 160, 90, 161 | |
//! | `seal_chunk`, in one go | 410 | 495 |
//! | compiled here, one stage after the other, and in pieces | 445, 450 | 539, 547 |
//! | verify, decrypt | 160, 90 | |
//! | `open_chunk` | 250 | 335 |
//!
//! A pipeline costs its stages, and pieces gain nothing (nor do they with the library's cipher, see there): a chunk that does
//! not fit the second-level cache comes from the third fast enough.
#![allow(clippy::unwrap_used)] // a bench that cannot go on ends with a panic

use std::hint::black_box;
use std::time::{Duration, Instant};

use aes::Aes256;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ctr::cipher::{KeyIvInit, StreamCipher};
use ctr::{Ctr64BE, Ctr128BE};
use gabion::crypto::cipher::{ChunkKey, ScopeKey, apply_keystream, check_chunk, open_chunk, seal_chunk};
use gabion::crypto::hash::{address_of, addresses_of};
use gabion::format::Address;
use gabion::io::Buffer;
use gabion::limits::{KIB, MIB};

/// A quarter of a usual second-level cache at most, and a multiple of what BLAKE3 hashes at once.
const PIECE_BYTES: usize = 64 * KIB;
const PIECES: [(&str, usize); 2] = [("compiled here, whole", MIB), ("compiled here, pieces of 64 KiB", PIECE_BYTES)];
const CHUNKS_COLD: usize = 64;

/// Aligned to a block, as the buffers of a node are.
fn plaintext(len_bytes: usize) -> Buffer {
    let mut bytes = Buffer::heap(len_bytes);
    blake3::Hasher::new().finalize_xof().fill(bytes.as_mut_slice());
    bytes
}

fn key() -> ChunkKey {
    ChunkKey::from_bytes([7; 32])
}

fn scope() -> ScopeKey {
    ScopeKey::from_bytes(&[9; 32])
}

fn hash(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash");
    for len_bytes in [4 * KIB, 64 * KIB, MIB] {
        let buffer = plaintext(len_bytes);
        let bytes = buffer.as_slice();
        let scope = scope();
        group.throughput(Throughput::Bytes(len_bytes as u64));
        group.bench_with_input(BenchmarkId::new("address", len_bytes), bytes, |bencher, bytes| {
            bencher.iter(|| address_of(black_box(bytes)));
        });
        group.bench_with_input(BenchmarkId::new("chunk key", len_bytes), bytes, |bencher, bytes| {
            bencher.iter(|| scope.chunk_key(0, black_box(bytes)));
        });
    }
    let buffer = plaintext(16 * 4 * KIB);
    let chunks: Vec<&[u8]> = buffer.as_slice().chunks(4 * KIB).collect();
    group.throughput(Throughput::Bytes(buffer.len() as u64));
    group.bench_function("16 addresses of 4 KiB, one by one", |bencher| {
        bencher.iter(|| black_box(&chunks).iter().map(|chunk| address_of(chunk)).collect::<Vec<_>>());
    });
    group.bench_function("16 addresses of 4 KiB, together", |bencher| {
        bencher.iter(|| addresses_of(black_box(&chunks)));
    });
    group.finish();
}

fn aes_ctr(criterion: &mut Criterion) {
    let key = key();
    let (mut by_64, mut by_128) = (plaintext(MIB), plaintext(MIB));
    Ctr64BE::<Aes256>::new(key.as_bytes().into(), &[0; 16].into()).apply_keystream(by_64.as_mut_slice());
    Ctr128BE::<Aes256>::new(key.as_bytes().into(), &[0; 16].into()).apply_keystream(by_128.as_mut_slice());
    assert!(by_64.as_slice() == by_128.as_slice(), "the two counters are no longer interchangeable");

    let mut group = criterion.benchmark_group("aes-256-ctr");
    for len_bytes in [4 * KIB, MIB] {
        let mut buffer = plaintext(len_bytes);
        let bytes = buffer.as_mut_slice();
        group.throughput(Throughput::Bytes(len_bytes as u64));
        group.bench_function(BenchmarkId::new("Ctr64BE", len_bytes), |bencher| {
            bencher.iter(|| {
                Ctr64BE::<Aes256>::new(key.as_bytes().into(), &[0; 16].into()).apply_keystream(black_box(&mut *bytes));
            });
        });
        group.bench_function(BenchmarkId::new("Ctr128BE", len_bytes), |bencher| {
            bencher.iter(|| {
                Ctr128BE::<Aes256>::new(key.as_bytes().into(), &[0; 16].into()).apply_keystream(black_box(&mut *bytes));
            });
        });
        group.bench_function(BenchmarkId::new("apply_keystream", len_bytes), |bencher| {
            bencher.iter(|| apply_keystream(black_box(&mut *bytes), &key));
        });
    }
    group.finish();
}

/// [`seal_chunk`] with its last two stages taken piece by piece; one piece as long as the chunk is one after the other.
fn seal_in_pieces(scope: &ScopeKey, chunk: &mut [u8], piece_bytes: usize) -> (Address, ChunkKey) {
    let key = scope.chunk_key(0, chunk);
    let mut cipher = Ctr64BE::<Aes256>::new(key.as_bytes().into(), &[0; 16].into());
    let mut hasher = blake3::Hasher::new();
    for piece in chunk.chunks_mut(piece_bytes) {
        cipher.apply_keystream(piece);
        hasher.update(piece);
    }
    (Address(*hasher.finalize().as_bytes()), key)
}

fn put(criterion: &mut Criterion) {
    let (scope, key) = (scope(), key());
    let (mut whole, mut pieces) = (plaintext(MIB), plaintext(MIB));
    let sealed = seal_chunk(&scope, 0, whole.as_mut_slice(), MIB);
    assert!(
        sealed.0 == seal_in_pieces(&scope, pieces.as_mut_slice(), PIECE_BYTES).0
            && whole.as_slice() == pieces.as_slice()
    );

    let mut buffer = plaintext(MIB);
    let chunk = buffer.as_mut_slice();
    let mut group = criterion.benchmark_group("put");
    group.throughput(Throughput::Bytes(MIB as u64));
    group.bench_function("stage 1: chunk key", |bencher| bencher.iter(|| scope.chunk_key(0, black_box(&*chunk))));
    group.bench_function("stage 2: encrypt", |bencher| bencher.iter(|| apply_keystream(black_box(&mut *chunk), &key)));
    group.bench_function("stage 3: address", |bencher| bencher.iter(|| address_of(black_box(&*chunk))));
    group.bench_function("seal_chunk", |bencher| {
        bencher.iter(|| seal_chunk(&scope, 0, black_box(&mut *chunk), MIB));
    });
    for (name, piece_bytes) in PIECES {
        group.bench_function(name, |bencher| {
            bencher.iter(|| seal_in_pieces(&scope, black_box(&mut *chunk), piece_bytes));
        });
    }
    group.finish();

    let mut chunks: Vec<Buffer> = (0..CHUNKS_COLD).map(|_| plaintext(MIB)).collect();
    let mut group = criterion.benchmark_group("put, cold");
    group.throughput(Throughput::Bytes((MIB * CHUNKS_COLD) as u64));
    group.sample_size(20);
    group.bench_function("seal_chunk", |bencher| {
        bencher.iter(|| {
            for chunk in &mut chunks {
                black_box(seal_chunk(&scope, 0, chunk.as_mut_slice(), MIB));
            }
        });
    });
    for (name, piece_bytes) in PIECES {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for chunk in &mut chunks {
                    black_box(seal_in_pieces(&scope, chunk.as_mut_slice(), piece_bytes));
                }
            });
        });
    }
    group.finish();
}

fn get(criterion: &mut Criterion) {
    let mut buffer = plaintext(MIB);
    let chunk = buffer.as_mut_slice();
    let (address, key) = seal_chunk(&scope(), 0, chunk, MIB);
    let mut group = criterion.benchmark_group("get");
    group.throughput(Throughput::Bytes(MIB as u64));
    group.bench_function("stage 1: verify", |bencher| {
        bencher.iter(|| check_chunk(black_box(&*chunk), &address).unwrap());
    });
    group.bench_function("stage 2: decrypt", |bencher| {
        let mut bytes = Buffer::copy_of(chunk);
        bencher.iter(|| apply_keystream(black_box(bytes.as_mut_slice()), &key));
    });
    group.bench_function("open_chunk", |bencher| {
        bencher.iter_custom(|rounds| (0..rounds).map(|_| timed_open(chunk, &address, &key)).sum());
    });
    group.finish();

    let mut chunks: Vec<Buffer> = (0..CHUNKS_COLD).map(|_| Buffer::copy_of(chunk)).collect();
    let mut group = criterion.benchmark_group("get, cold");
    group.throughput(Throughput::Bytes((MIB * CHUNKS_COLD) as u64));
    group.sample_size(20);
    group.bench_function("open_chunk", |bencher| {
        bencher.iter_custom(|rounds| (0..rounds).map(|_| timed_pass(&mut chunks, &address, &key)).sum());
    });
    group.finish();
}

/// Only ciphertext can be opened: the chunk is encrypted again once the clock has stopped.
fn timed_open(chunk: &mut [u8], address: &Address, key: &ChunkKey) -> Duration {
    let start = Instant::now();
    open_chunk(black_box(chunk), address, key).unwrap();
    let elapsed = start.elapsed();
    apply_keystream(chunk, key);
    elapsed
}

fn timed_pass(chunks: &mut [Buffer], address: &Address, key: &ChunkKey) -> Duration {
    let start = Instant::now();
    for chunk in &mut *chunks {
        open_chunk(black_box(chunk.as_mut_slice()), address, key).unwrap();
    }
    let elapsed = start.elapsed();
    chunks.iter_mut().for_each(|chunk| apply_keystream(chunk.as_mut_slice(), key));
    elapsed
}

criterion_group!(benches, hash, aes_ctr, put, get);
criterion_main!(benches);
