//! Chunks from node to node over loopback: the whole protocol on two real rings against bare TCP.
//!
//! What the groups decide:
//!
//! | group | decides |
//! | --- | --- |
//! | `fetch 1 MiB` | what framing, credit, sealed headers and verification cost above moving the bytes; how many fetches must be in flight; and from where a node should answer (below) |
//! | `fetch 4 KiB` | the price of a request, which carries next to nothing here, and whether the three origins differ where bytes are few |
//! | `send 4 KiB` | whether small chunks travel to an owner many in one frame, sealed, or each behind a request of its own with its bytes raw |
//!
//! | bench | the bytes come from |
//! | --- | --- |
//! | `node, memory` | buffers: the protocol alone |
//! | `node, mapped` | a mapping of a file in the page cache, sent from there |
//! | `node, read` | the same file, read through the ring into a pool's buffer first |
//! | `tcp` | memory; 16 bytes of request, the bare chunk as the answer, blocking calls, a thread at each end, as many requests ahead as the node has in flight |
//! | `tcp, verified` | the same, and the receiver hashes what it got, as a node always does |
//!
//! | bench of `send` | how chunks travel |
//! | --- | --- |
//! | `node, payload` | `Store`: a request for each, the chunk as its raw payload, which needs credit and a buffer |
//! | `node, body` | `StoreSmall`: a request for each, the chunk in the sealed body |
//! | `node, body of 15` | the same with as many as one body holds |
//! | `tcp, verified`, `tcp of 15, verified` | {address 32, chunk} in clear, one or 15 in a write; a byte each as the answer |
//!
//! Chunks in flight are counted, whatever frames they travel in. Who receives verifies each chunk, and keeps none.
//!
//! Both ends are in this process, each on a thread of its own; CPU times are those of both together. Loopback has no
//! card and no interrupts, so that its rates say nothing about a network: ratios do. Connections are made and keys
//! agreed upon before the clock starts.
//!
//! CPU time of each, both ends (AMD EPYC with AVX-512, 2 virtual cores of a shared machine, 27 November 2026):
//!
//! | in flight | node, memory | mapped | read | tcp | tcp, verified |
//! | --- | --- | --- | --- | --- | --- |
//! | 1 MiB, 1 | 562 us | 613 | 580 | 341 | 413 |
//! | 1 MiB, 8 | 453 | 480 | 492 | 327 | 444 |
//! | 1 MiB, 64 | 553 | 934 | 1003 | 462 | 419 |
//! | 4 KiB, 1 | 79 | 84 | 85 | 44 | 47 |
//! | 4 KiB, 8 | 32 | 56 | 33 | 12 | 14 |
//! | 4 KiB, 64 | 33 | 59 | 34 | 11 | 12 |
//!
//! So 8 fetches at a time are enough, and 64 too many: what they hold no cache does. Short chunks are read and not sent out of
//! a mapping.
//!
//! | chunks of 4 KiB sent, in flight | payload each | body each | 15 in a body | tcp | tcp, 15 in a write |
//! | --- | --- | --- | --- | --- | --- |
//! | 15 | 33 us | 38 | 13.7 | 14 | 5.4 |
//! | 60 | 33 | 36 | 12.4 | 12 | 3.5 |
//!
//! So they travel 15 in a body: 2.6 times cheaper than each by itself.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a bench that cannot go on ends with a panic

use std::collections::HashMap;
use std::future::Future;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use gabion::crypto::cipher::check_chunk;
use gabion::crypto::hash::address_of;
use gabion::crypto::identity::{CheckedCertificate, InviteTerms, make_certificate, make_invite};
use gabion::crypto::keys::{Authority, InviteSeed, NetworkKey, NodeSeed};
use gabion::crypto::replay::ReplayFilter;
use gabion::format::certificate::Class;
use gabion::format::frame::{FrameKind, Status};
use gabion::format::message::{SmallChunk, decode_small_chunks, encode_small_chunk, encode_store};
use gabion::format::{Address, VersionId, Writer};
use gabion::io::{Buffer, BufferPool, File, OpenOptions, Ring, RingOptions, SharedBuffer, TcpListener, map, spawn};
use gabion::limits::{BUFFERS_PER_SHARD, KIB, MIB, RECORD_HEAD_BYTES, SEALED_BODY_BYTES_MAX, SMALL_CHUNK_HEAD_BYTES};
use gabion::wire::{Admission, CloseReason, Connection, Handler, Identity, PayloadSource, PeerInfo, Reply, Request};
use tokio::sync::oneshot;

mod cpu;
mod drive;
use cpu::{Account, CpuTime};
use drive::drive;

/// All chunks of one length together: more than a third-level cache of 32 MiB holds, and they stay in the page cache.
const DATA_BYTES: usize = 64 * MIB;
const PATIENCE: Duration = Duration::from_secs(10);
const SMALL_BYTES: usize = 4 * KIB;
const LENGTHS: [usize; 2] = [SMALL_BYTES, MIB];
/// As many small chunks as one body holds.
const IN_ONE_BODY: usize = SEALED_BODY_BYTES_MAX / (SMALL_CHUNK_HEAD_BYTES + SMALL_BYTES);
const _: () = assert!(IN_ONE_BODY == 15); // as names and docs say

type Group<'a> = BenchmarkGroup<'a, WallTime>;

static DATA: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; DATA_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
});

/// How many chunks of one length there are.
fn count(len_bytes: usize) -> u64 {
    (DATA_BYTES / len_bytes) as u64
}

fn offset(number: u64, len_bytes: usize) -> usize {
    (number % count(len_bytes)) as usize * len_bytes
}

fn chunk(number: u64, len_bytes: usize) -> &'static [u8] {
    &DATA[offset(number, len_bytes)..][..len_bytes]
}

fn addresses(len_bytes: usize) -> Rc<[Address]> {
    (0..count(len_bytes)).map(|number| address_of(chunk(number, len_bytes))).collect()
}

/// The data in buffers that can be sent from, each of 1 MiB.
fn buffers() -> Vec<SharedBuffer> {
    DATA.chunks(MIB).map(|bytes| Buffer::copy_of(bytes).freeze()).collect()
}

fn shared(buffers: &[SharedBuffer], offset: usize, len_bytes: usize) -> PayloadSource {
    PayloadSource::Shared(buffers[offset / MIB].clone(), offset % MIB..offset % MIB + len_bytes)
}

fn version() -> VersionId {
    VersionId::new(7, 1000, [1; 8])
}

/// Chunks of one sample: each begins where the one before has ended.
#[derive(Clone, Copy)]
struct Load {
    first: u64,
    chunks: u64,
    in_flight: usize,
}

impl Load {
    fn new(in_flight: usize) -> Self {
        Self { first: 0, chunks: 0, in_flight }
    }

    fn next(&mut self, chunks: u64) -> Self {
        self.first += self.chunks;
        self.chunks = chunks;
        *self
    }
}

fn identity(authority: &Authority, key: &NetworkKey) -> Arc<Identity> {
    let (keys, seed) = (NodeSeed::random().keys(), InviteSeed::random());
    let terms = InviteTerms { class: Class::Member, zone: String::new(), capacity_limit: 0, expiry_s: 0 };
    let network = authority.network_id();
    let invite = make_invite(authority, &seed, &terms).unwrap();
    let certificate = make_certificate(&invite, &seed, &network, &keys, "z").unwrap().encode();
    Arc::new(Identity { keys, certificate, network, network_keys: vec![key.clone()] })
}

/// Where an answer's payload comes from; travels as the request's body.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Origin {
    Memory,
    Mapped,
    Read,
}

impl Origin {
    const ALL: [(Origin, &'static str); 3] =
        [(Origin::Memory, "node, memory"), (Origin::Mapped, "node, mapped"), (Origin::Read, "node, read")];
}

/// Answers fetches, and takes chunks as an owner does, which it then forgets.
struct Source {
    /// Offset and length by address.
    known: HashMap<Address, (usize, usize)>,
    memory: Vec<SharedBuffer>,
    file: File,
    pool: BufferPool,
}

impl Source {
    async fn new(pool: BufferPool) -> Rc<Self> {
        let mut known = HashMap::new();
        for len_bytes in LENGTHS {
            let numbered = (0..).zip(addresses(len_bytes).iter().copied()).collect::<Vec<_>>();
            known.extend(
                numbered.into_iter().map(|(number, address)| (address, (offset(number, len_bytes), len_bytes))),
            );
        }
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("chunks");
        let mut file = std::fs::File::create_new(&path).unwrap();
        file.write_all(&DATA).unwrap();
        // Dirty pages are hot, and written back in the midst of it all. The file goes with its last descriptor.
        file.sync_all().unwrap();
        let file = File::open(&path, &OpenOptions::for_reading()).await.unwrap();
        Rc::new(Self { known, memory: buffers(), file, pool })
    }

    async fn payload(&self, origin: u8, offset: usize, len_bytes: usize) -> PayloadSource {
        if origin == Origin::Memory as u8 {
            shared(&self.memory, offset, len_bytes)
        } else if origin == Origin::Mapped as u8 {
            let range = map(&self.file, offset as u64, len_bytes).unwrap();
            PayloadSource::Mapped(range, 0..len_bytes, Box::new(()))
        } else {
            let range = RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + len_bytes;
            let (result, buffer) = self.file.read_at(self.pool.take().await, range.clone(), offset as u64).await;
            assert_eq!(result.unwrap(), len_bytes);
            PayloadSource::Shared(buffer.freeze(), range)
        }
    }
}

impl Handler for Source {
    async fn handle(self: Rc<Self>, _peer: Rc<PeerInfo>, request: Request) -> Reply {
        let address = request.header.address;
        match request.kind {
            // The connection has verified the payload.
            FrameKind::Store => Reply::ok(Vec::new()),
            FrameKind::StoreSmall => {
                let chunks = decode_small_chunks(&request.body).unwrap();
                chunks.iter().for_each(|chunk| check_chunk(chunk.bytes, &chunk.address).unwrap());
                Reply::ok(vec![Status::Ok as u8; chunks.len()])
            }
            _ => {
                let (offset, len_bytes) = self.known[&address];
                let payload = self.payload(request.body[0], offset, len_bytes).await;
                Reply { address, payload: Some(payload), ..Reply::ok(Vec::new()) }
            }
        }
    }

    fn takes_payload(&self, _peer: &PeerInfo, kind: FrameKind) -> bool {
        kind == FrameKind::Store
    }

    fn is_admitted(&self, _certificate: &CheckedCertificate) -> bool {
        true
    }

    fn connected(&self, _connection: &Connection) {}

    fn closed(&self, _connection: &Connection, _reason: &CloseReason) {}
}

/// The one who asks is asked nothing.
struct Nobody;

impl Handler for Nobody {
    async fn handle(self: Rc<Self>, _peer: Rc<PeerInfo>, _request: Request) -> Reply {
        Reply::status(Status::Unavailable)
    }

    fn takes_payload(&self, _peer: &PeerInfo, _kind: FrameKind) -> bool {
        false
    }

    fn is_admitted(&self, _certificate: &CheckedCertificate) -> bool {
        true
    }

    fn connected(&self, _connection: &Connection) {}

    fn closed(&self, _connection: &Connection, _reason: &CloseReason) {}
}

/// A node on a thread of its own, until it is dropped.
struct Node {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    fn start(identity: Arc<Identity>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            Ring::new(&RingOptions::default()).unwrap().block_on(async {
                let pool = BufferPool::new(BUFFERS_PER_SHARD).unwrap();
                let source = Source::new(pool.clone()).await;
                let listener = TcpListener::bind(([127, 0, 0, 1], 0).into()).unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                spawn(accept(listener, identity, pool, source));
                stopped.await.unwrap();
            });
        });
        Self { address: told.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn accept(listener: TcpListener, identity: Arc<Identity>, pool: BufferPool, source: Rc<Source>) {
    let directory = tempfile::tempdir().unwrap();
    let replay = Arc::new(ReplayFilter::load(directory.path(), 0).unwrap());
    let admission = Admission::new(Instant::now());
    // Ends with the ring, which cancels what waits.
    while let Ok((stream, address)) = listener.accept().await {
        Connection::accept(stream, address, &identity, &admission, &replay, pool.clone(), source.clone())
            .await
            .unwrap();
    }
}

struct Asker {
    ring: Ring,
    pool: BufferPool,
    identity: Arc<Identity>,
    node: Node,
}

impl Asker {
    fn new() -> Self {
        let (authority, key) = (Authority::random(), NetworkKey::random(1));
        let node = Node::start(identity(&authority, &key));
        let mut ring = Ring::new(&RingOptions::default()).unwrap();
        let pool = ring.block_on(async { BufferPool::new(BUFFERS_PER_SHARD).unwrap() });
        Self { ring, pool, identity: identity(&authority, &key), node }
    }

    /// Times `load.chunks / each` operations of `each` chunks. Dials anew each time: between samples nobody would answer
    /// the node's keepalives.
    fn time<F, O>(&mut self, load: Load, each: usize, account: &mut Account, operation: F) -> Duration
    where
        F: Fn(Connection, u64) -> O + 'static,
        O: Future<Output = ()> + 'static,
    {
        let (pool, identity, address) = (self.pool.clone(), self.identity.clone(), self.node.address);
        self.ring.block_on(async {
            let connection = Connection::dial(address, &identity, None, pool, Rc::new(Nobody)).await.unwrap();
            operation(connection.clone(), load.first).await;
            let (cpu, start) = (CpuTime::now(), Instant::now());
            let (asking, each) = (connection.clone(), each as u64);
            drive(load.chunks / each, load.in_flight / each as usize, move |number| {
                operation(asking.clone(), load.first + number * each)
            })
            .await;
            let elapsed = start.elapsed();
            account.add(load.chunks, cpu);
            connection.close("measured").await;
            elapsed
        })
    }
}

/// What arrives is verified by the connection.
async fn fetch(connection: Connection, origin: Origin, address: Address) {
    let body = vec![origin as u8];
    let answer = connection.request(FrameKind::Fetch, address, 0, body, None, PATIENCE).await.unwrap();
    assert!(answer.status == Status::Ok && answer.payload.is_some());
}

async fn send_payload(connection: Connection, address: Address, payload: PayloadSource) {
    let body = encode_store(&version(), 0);
    let answer = connection.request(FrameKind::Store, address, 0, body, Some(payload), PATIENCE).await.unwrap();
    assert!(answer.status == Status::Ok);
}

/// `count` chunks from number `first` on.
async fn send_body(connection: Connection, addresses: Rc<[Address]>, first: u64, count: usize) {
    let mut body = Writer::with_capacity(count * (SMALL_CHUNK_HEAD_BYTES + SMALL_BYTES));
    for number in first..first + count as u64 {
        let (address, bytes) = (addresses[number as usize % addresses.len()], chunk(number, SMALL_BYTES));
        encode_small_chunk(&mut body, &SmallChunk { address, version: version(), flags: 0, bytes });
    }
    let body = body.finish();
    let answer = connection.request(FrameKind::StoreSmall, Address::ZERO, 0, body, None, PATIENCE).await.unwrap();
    assert!(answer.status == Status::Ok && answer.body.len() == count);
}

/// Serves one connection after the other on a thread. Ends with the process: it holds nothing that would need an end.
fn plain_server(serve: fn(&mut std::net::TcpStream) -> std::io::Result<()>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nodelay(true).unwrap();
            // The asker hangs up after each sample.
            while serve(&mut stream).is_ok() {}
        }
    });
    address
}

fn plain_client(server: SocketAddr) -> std::net::TcpStream {
    let stream = std::net::TcpStream::connect(server).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn pair_of(bytes: [u8; 16]) -> [u64; 2] {
    let (first, second) = bytes.split_at(8);
    [first, second].map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// {number 8, length 8} -> that chunk.
fn serve_chunk(stream: &mut std::net::TcpStream) -> std::io::Result<()> {
    let mut asked = [0; 16];
    stream.read_exact(&mut asked)?;
    let [number, len_bytes] = pair_of(asked);
    stream.write_all(chunk(number, len_bytes as usize))
}

fn fetch_plain(
    server: SocketAddr,
    (addresses, is_verified): (&[Address], bool),
    len_bytes: usize,
    load: Load,
    account: &mut Account,
) -> Duration {
    let mut stream = plain_client(server);
    let mut into = vec![0; len_bytes];
    let ask = |stream: &mut std::net::TcpStream, number: u64| {
        let request = [(load.first + number).to_le_bytes(), (len_bytes as u64).to_le_bytes()].concat();
        stream.write_all(&request).unwrap();
    };
    let (cpu, start) = (CpuTime::now(), Instant::now());
    let ahead = load.chunks.min(load.in_flight as u64);
    (0..ahead).for_each(|number| ask(&mut stream, number));
    for number in 0..load.chunks {
        stream.read_exact(&mut into).unwrap();
        if number + ahead < load.chunks {
            ask(&mut stream, number + ahead);
        }
        if is_verified {
            check_chunk(&into, &addresses[(load.first + number) as usize % addresses.len()]).unwrap();
        }
    }
    let elapsed = start.elapsed();
    account.add(load.chunks, cpu);
    elapsed
}

/// All that a connection brings: {chunks in a write 8, zero 8}, then of each {address 32, chunk}, until it ends.
fn serve_sent(stream: &mut std::net::TcpStream) -> std::io::Result<()> {
    let mut head = [0; 16];
    stream.read_exact(&mut head)?;
    let [each, _] = pair_of(head).map(|word| word as usize);
    let mut sent = vec![0; each * (Address::BYTES + SMALL_BYTES)];
    loop {
        stream.read_exact(&mut sent)?;
        for one in sent.chunks(Address::BYTES + SMALL_BYTES) {
            let (address, bytes) = one.split_at(Address::BYTES);
            check_chunk(bytes, &Address(address.try_into().unwrap())).unwrap();
        }
        stream.write_all(&vec![Status::Ok as u8; each])?;
    }
}

fn send_plain(server: SocketAddr, addresses: &[Address], each: usize, load: Load, account: &mut Account) -> Duration {
    let mut stream = plain_client(server);
    stream.write_all(&[(each as u64).to_le_bytes(), [0; 8]].concat()).unwrap();
    let (mut out, mut answers) = (Vec::new(), vec![0; each]);
    let mut send = |stream: &mut std::net::TcpStream, write: u64| {
        out.clear();
        let first = load.first + write * each as u64;
        for number in first..first + each as u64 {
            out.extend_from_slice(&addresses[number as usize % addresses.len()].0);
            out.extend_from_slice(chunk(number, SMALL_BYTES));
        }
        stream.write_all(&out).unwrap();
    };
    let (cpu, start) = (CpuTime::now(), Instant::now());
    let writes = load.chunks / each as u64;
    let ahead = writes.min((load.in_flight / each) as u64);
    (0..ahead).for_each(|write| send(&mut stream, write));
    for write in 0..writes {
        stream.read_exact(&mut answers).unwrap();
        if write + ahead < writes {
            send(&mut stream, write + ahead);
        }
    }
    let elapsed = start.elapsed();
    account.add(load.chunks, cpu);
    elapsed
}

/// One iteration moves `chunks`: a multiple of what is in flight. Gives each sample its load.
fn measured(
    group: &mut Group<'_>,
    (name, what): (&str, &str),
    len_bytes: usize,
    (chunks, in_flight): (u64, usize),
    mut time: impl FnMut(Load, &mut Account) -> Duration,
) {
    let mut account = Account::new(format!("{name}/{what}/{in_flight}"), len_bytes as u64);
    let mut load = Load::new(in_flight);
    group.throughput(Throughput::Bytes(chunks * len_bytes as u64));
    group.bench_function(BenchmarkId::new(what, in_flight), |bencher| {
        bencher.iter_custom(|rounds| time(load.next(rounds * chunks), &mut account));
    });
}

fn fetches(asker: &mut Asker, criterion: &mut Criterion, name: &str, len_bytes: usize, chunks: u64) {
    let mut group = io_group(criterion, name);
    let addresses = addresses(len_bytes);
    let server = plain_server(serve_chunk);
    for in_flight in [1, 8, 64] {
        let amount = (chunks, in_flight);
        for (origin, what) in Origin::ALL {
            measured(&mut group, (name, what), len_bytes, amount, |load, account| {
                let addresses = addresses.clone();
                asker.time(load, 1, account, move |connection, number| {
                    fetch(connection, origin, addresses[number as usize % addresses.len()])
                })
            });
        }
        for (is_verified, what) in [(false, "tcp"), (true, "tcp, verified")] {
            measured(&mut group, (name, what), len_bytes, amount, |load, account| {
                fetch_plain(server, (&addresses, is_verified), len_bytes, load, account)
            });
        }
    }
    group.finish();
}

fn sends(asker: &mut Asker, criterion: &mut Criterion, name: &str, chunks: u64) {
    let mut group = io_group(criterion, name);
    let (addresses, memory) = (addresses(SMALL_BYTES), Rc::new(buffers()));
    let server = plain_server(serve_sent);
    for in_flight in [1, IN_ONE_BODY, 4 * IN_ONE_BODY] {
        let amount = (chunks, in_flight);
        measured(&mut group, (name, "node, payload"), SMALL_BYTES, amount, |load, account| {
            let (addresses, memory) = (addresses.clone(), memory.clone());
            asker.time(load, 1, account, move |connection, number| {
                let payload = shared(&memory, offset(number, SMALL_BYTES), SMALL_BYTES);
                send_payload(connection, addresses[number as usize % addresses.len()], payload)
            })
        });
        let ways = [(1, "node, body", "tcp, verified"), (IN_ONE_BODY, "node, body of 15", "tcp of 15, verified")];
        for (each, what, plain) in ways.into_iter().filter(|(each, ..)| *each <= in_flight) {
            measured(&mut group, (name, what), SMALL_BYTES, amount, |load, account| {
                let addresses = addresses.clone();
                asker.time(load, each, account, move |connection, number| {
                    send_body(connection, addresses.clone(), number, each)
                })
            });
            measured(&mut group, (name, plain), SMALL_BYTES, amount, |load, account| {
                send_plain(server, &addresses, each, load, account)
            });
        }
    }
    group.finish();
}

fn io_group<'a>(criterion: &'a mut Criterion, name: &str) -> Group<'a> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group
}

fn wire(criterion: &mut Criterion) {
    let mut asker = Asker::new();
    fetches(&mut asker, criterion, "fetch 1 MiB", MIB, 64);
    fetches(&mut asker, criterion, "fetch 4 KiB", SMALL_BYTES, 1024);
    sends(&mut asker, criterion, "send 4 KiB", 64 * IN_ONE_BODY as u64);
}

criterion_group!(benches, wire);
criterion_main!(benches);
