//! Reading and writing a frame header: the fixed layout against a serialization library.
//!
//! What the group decides: whether headers stay fixed structs that are checked in place (`zerocopy`, and
//! [`FrameHeader::check`]), or become a derived, compact encoding that leaves out what is zero. Both sides start from
//! unsealed bytes, end with every field at hand, and refuse the same headers. `serde` and `postcard` are used here
//! only.
//!
//! | bench | measures |
//! | --- | --- |
//! | `decode/fixed` | 64 bytes -> a header whose fields are within their bounds |
//! | `decode/fixed, unchecked` | the same without the bounds: the layout alone |
//! | `decode/postcard` | what the line `encoded_bytes` says -> the same fields, the same bounds |
//! | `encode/…` | the other direction, into memory that is there already |
//!
//! Each pass goes over 1,024 different headers, so that neither side lives off the branch predictor alone.
//!
//! Nanoseconds a header (AMD EPYC with AVX-512, 2 virtual cores of a shared machine, 27 November 2026): decoding 7.8 fixed,
//! 1.9 unchecked, 42.6 by `postcard`; encoding 1.1 and 33.0. So headers stay fixed.
#![allow(clippy::unwrap_used)] // a bench that cannot go on ends with a panic

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gabion::format::Address;
use gabion::format::frame::{FrameHeader, FrameKind, Status};
use gabion::limits::{CHUNK_BYTES_MAX, FRAME_HEADER_BYTES, SEALED_BODY_BYTES_MAX};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

const HEADERS: usize = 1024;
const SEED: u64 = 0x6761_6269_6f6e;

/// The fields of [`FrameHeader`]; a derived encoding has no reserved bytes.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
struct Derived {
    kind: u8,
    flags: u8,
    status: u16,
    body_bytes: u32,
    request: u64,
    payload_bytes: u32,
    credit: u32,
    address: [u8; 32],
    layout: u32,
}

impl From<&FrameHeader> for Derived {
    fn from(header: &FrameHeader) -> Self {
        Self {
            kind: header.kind,
            flags: header.flags,
            status: header.status.get(),
            body_bytes: header.body_bytes.get(),
            request: header.request.get(),
            payload_bytes: header.payload_bytes.get(),
            credit: header.credit.get(),
            address: header.address.0,
            layout: header.layout.get(),
        }
    }
}

impl Derived {
    /// What [`FrameHeader::check`] demands.
    fn check(&self) -> Option<FrameKind> {
        let kind = FrameKind::parse(self.kind)?;
        let fits = self.flags == 0
            && Status::parse(self.status).is_some()
            && self.body_bytes as usize <= SEALED_BODY_BYTES_MAX
            && self.payload_bytes as usize <= CHUNK_BYTES_MAX;
        fits.then_some(kind)
    }
}

/// What travels most: fetches, their answers with a payload, keepalives with credit.
fn headers() -> Vec<FrameHeader> {
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut requests = 1u64;
    (0..HEADERS)
        .map(|_| {
            requests += 2;
            let address = Address(random.random());
            match random.random_range(0..10) {
                0 => {
                    let credit = random.random_range(1..16u32).into();
                    FrameHeader { credit, ..FrameHeader::new(FrameKind::Keepalive, 0) }
                }
                1..=4 => FrameHeader { address, layout: 7.into(), ..FrameHeader::new(FrameKind::Fetch, requests) },
                _ => FrameHeader {
                    address,
                    payload_bytes: random.random_range(1..=CHUNK_BYTES_MAX as u32).into(),
                    credit: random.random_range(0..3u32).into(),
                    ..FrameHeader::new(FrameKind::Answer, requests)
                },
            }
        })
        .collect()
}

fn decode(criterion: &mut Criterion) {
    let headers = headers();
    let fixed: Vec<[u8; FRAME_HEADER_BYTES]> = headers.iter().map(bytes_of).collect();
    let derived: Vec<Vec<u8>> = headers
        .iter()
        .map(|header| postcard::to_slice(&Derived::from(header), &mut [0; 2 * FRAME_HEADER_BYTES]).unwrap().to_vec())
        .collect();
    let encoded_bytes = derived.iter().map(Vec::len);
    println!(
        "encoded_bytes: fixed {FRAME_HEADER_BYTES}, postcard {} to {}",
        encoded_bytes.clone().min().unwrap(),
        encoded_bytes.max().unwrap()
    );
    for (fixed, derived) in fixed.iter().zip(&derived) {
        let fixed = FrameHeader::ref_from_bytes(fixed).unwrap();
        let derived: Derived = postcard::from_bytes(derived).unwrap();
        assert_eq!((Derived::from(fixed), fixed.check().ok()), (derived, derived.check()));
    }

    let mut group = criterion.benchmark_group("frame header/decode");
    group.throughput(Throughput::Elements(HEADERS as u64));
    group.bench_function("fixed", |bencher| {
        bencher.iter(|| {
            for bytes in black_box(&fixed) {
                let header = FrameHeader::read_from_bytes(bytes).unwrap();
                let kind = header.check().unwrap();
                black_box((header, kind));
            }
        });
    });
    group.bench_function("fixed, unchecked", |bencher| {
        bencher.iter(|| {
            for bytes in black_box(&fixed) {
                black_box(FrameHeader::read_from_bytes(bytes).unwrap());
            }
        });
    });
    group.bench_function("postcard", |bencher| {
        bencher.iter(|| {
            for bytes in black_box(&derived) {
                let header: Derived = postcard::from_bytes(bytes).unwrap();
                let kind = header.check().unwrap();
                black_box((header, kind));
            }
        });
    });
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let fixed = headers();
    let derived: Vec<Derived> = fixed.iter().map(Derived::from).collect();
    let mut group = criterion.benchmark_group("frame header/encode");
    group.throughput(Throughput::Elements(HEADERS as u64));
    let mut out = [0; 2 * FRAME_HEADER_BYTES];
    group.bench_function("fixed", |bencher| {
        bencher.iter(|| {
            for header in black_box(&fixed) {
                header.write_to_prefix(&mut out).unwrap();
                black_box(&out);
            }
        });
    });
    group.bench_function("postcard", |bencher| {
        bencher.iter(|| {
            for header in black_box(&derived) {
                postcard::to_slice(header, &mut out).unwrap();
                black_box(&out);
            }
        });
    });
    group.finish();
}

fn bytes_of(header: &FrameHeader) -> [u8; FRAME_HEADER_BYTES] {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    bytes.copy_from_slice(header.as_bytes());
    bytes
}

criterion_group!(benches, decode, encode);
criterion_main!(benches);
