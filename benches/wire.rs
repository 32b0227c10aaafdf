//! Chunks from node to node over loopback: the whole protocol on two real rings against bare TCP.
//!
//! What the groups decide:
//!
//! | group | decides |
//! | --- | --- |
//! | `fetch 1 MiB` | what framing, credit, sealed headers and verification cost above moving the bytes; how many fetches must be in flight; and from where a node should answer (below) |
//! | `fetch 4 KiB` | the price of a request: what it takes before small chunks need frames that carry many |
//!
//! | bench | the bytes come from |
//! | --- | --- |
//! | `node, memory` | buffers: the protocol alone |
//! | `node, mapped` | a mapping of a file in the page cache, sent from there |
//! | `node, read` | the same file, read through the ring into a pool's buffer first |
//! | `tcp` | memory; 16 bytes of request, the bare chunk as the answer, blocking calls, a thread at each end, as many requests ahead as the node has in flight |
//! | `tcp, verified` | the same, and the receiver hashes what it got, as a node always does |
//!
//! Both ends are in this process, each on a thread of its own; CPU times are those of both together. Loopback has no
//! card and no interrupts, so that its rates say nothing about a network: ratios do. Connections are made and keys
//! agreed upon before the clock starts.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a bench that cannot go on ends with a panic

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use gabion::crypto::cipher::check_chunk;
use gabion::crypto::hash::address_of;
use gabion::crypto::identity::{InviteTerms, make_certificate, make_invite};
use gabion::crypto::keys::{Authority, InviteSeed, NetworkKey, NodeSeed};
use gabion::crypto::replay::ReplayFilter;
use gabion::format::Address;
use gabion::format::certificate::Class;
use gabion::format::frame::{FrameKind, Status};
use gabion::io::{Buffer, BufferPool, File, OpenOptions, Ring, RingOptions, SharedBuffer, TcpListener, map, spawn};
use gabion::limits::{BUFFERS_PER_SHARD, KIB, MIB, RECORD_HEAD_BYTES};
use gabion::wire::{Admission, CloseReason, Connection, Handler, Identity, PayloadSource, PeerInfo, Reply, Request};
use tokio::sync::oneshot;

mod cpu;
mod drive;
use cpu::{Account, CpuTime};
use drive::drive;

/// All of them together are longer than a second-level cache, and stay in the page cache.
const CHUNKS: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(10);
const LENGTHS: [usize; 2] = [4 * KIB, MIB];

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// Chunk `number`; a shorter one is its beginning.
fn chunk(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn addresses(len_bytes: usize) -> Rc<[Address]> {
    (0..CHUNKS).map(|number| address_of(&chunk(number)[..len_bytes])).collect()
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

/// Answers fetches.
struct Source {
    /// Number and length by address.
    known: HashMap<Address, (usize, usize)>,
    memory: Vec<SharedBuffer>,
    file: File,
    pool: BufferPool,
}

impl Source {
    async fn new(pool: BufferPool) -> Rc<Self> {
        let mut known = HashMap::new();
        for len_bytes in LENGTHS {
            let numbered = addresses(len_bytes).iter().copied().enumerate().collect::<Vec<_>>();
            known.extend(numbered.into_iter().map(|(number, address)| (address, (number, len_bytes))));
        }
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("chunks");
        let mut file = std::fs::File::create_new(&path).unwrap();
        (0..CHUNKS).for_each(|number| file.write_all(&chunk(number)).unwrap());
        // Dirty pages are hot, and written back in the midst of it all. The file goes with its last descriptor.
        file.sync_all().unwrap();
        let file = File::open(&path, &OpenOptions::for_reading()).await.unwrap();
        let memory = (0..CHUNKS).map(|number| Buffer::copy_of(&chunk(number)).freeze()).collect();
        Rc::new(Self { known, memory, file, pool })
    }

    async fn payload(&self, origin: u8, number: usize, len_bytes: usize) -> PayloadSource {
        let offset = (number * MIB) as u64;
        if origin == Origin::Memory as u8 {
            PayloadSource::Shared(self.memory[number].clone(), 0..len_bytes)
        } else if origin == Origin::Mapped as u8 {
            let range = map(&self.file, offset, len_bytes).unwrap();
            PayloadSource::Mapped(range, 0..len_bytes, Box::new(()))
        } else {
            let range = RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + len_bytes;
            let (result, buffer) = self.file.read_at(self.pool.take().await, range.clone(), offset).await;
            assert_eq!(result.unwrap(), len_bytes);
            PayloadSource::Shared(buffer.freeze(), range)
        }
    }
}

impl Handler for Source {
    async fn handle(self: Rc<Self>, _peer: Rc<PeerInfo>, request: Request) -> Reply {
        let address = request.header.address;
        let (number, len_bytes) = self.known[&address];
        let payload = self.payload(request.body[0], number, len_bytes).await;
        Reply { address, payload: Some(payload), ..Reply::ok(Vec::new()) }
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

    /// Dials anew each time: between samples nobody would answer the node's keepalives.
    fn time(
        &mut self,
        (origin, addresses): (Origin, Rc<[Address]>),
        operations: u64,
        in_flight: usize,
        account: &mut Account,
    ) -> Duration {
        let (pool, identity, address) = (self.pool.clone(), self.identity.clone(), self.node.address);
        self.ring.block_on(async {
            let connection = Connection::dial(address, &identity, None, pool, Rc::new(Nobody)).await.unwrap();
            fetch(&connection, origin, &addresses[0]).await;
            let (cpu, start) = (CpuTime::now(), Instant::now());
            let asking = connection.clone();
            drive(operations, in_flight, move |number| {
                let (connection, address) = (asking.clone(), addresses[(number % CHUNKS) as usize]);
                async move { fetch(&connection, origin, &address).await }
            })
            .await;
            let elapsed = start.elapsed();
            account.add(operations, cpu);
            connection.close("measured").await;
            elapsed
        })
    }
}

/// What arrives is verified by the connection.
async fn fetch(connection: &Connection, origin: Origin, address: &Address) {
    let body = vec![origin as u8];
    let answer = connection.request(FrameKind::Fetch, *address, 0, body, None, PATIENCE).await.unwrap();
    assert!(answer.status == Status::Ok && answer.payload.is_some());
}

/// The bare server: {number 8, length 8} -> that many bytes of that chunk, for as long as somebody asks.
fn plain_server() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the process: it holds nothing that would need an end.
    std::thread::spawn(move || {
        let chunks: Vec<Vec<u8>> = (0..CHUNKS).map(chunk).collect();
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nodelay(true).unwrap();
            let mut asked = [0; 16];
            while stream.read_exact(&mut asked).is_ok() {
                let (number, len_bytes) = asked.split_at(8);
                let [number, len_bytes] =
                    [number, len_bytes].map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()) as usize);
                stream.write_all(&chunks[number][..len_bytes]).unwrap();
            }
        }
    });
    address
}

fn time_plain(
    server: SocketAddr,
    (addresses, is_verified): (&[Address], bool),
    len_bytes: usize,
    (operations, in_flight): (u64, usize),
    account: &mut Account,
) -> Duration {
    let mut stream = std::net::TcpStream::connect(server).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut into = vec![0; len_bytes];
    let ask = |stream: &mut std::net::TcpStream, number: u64| {
        let request = [(number % CHUNKS).to_le_bytes(), (len_bytes as u64).to_le_bytes()].concat();
        stream.write_all(&request).unwrap();
    };
    let (cpu, start) = (CpuTime::now(), Instant::now());
    let ahead = operations.min(in_flight as u64);
    (0..ahead).for_each(|number| ask(&mut stream, number));
    for number in 0..operations {
        stream.read_exact(&mut into).unwrap();
        if number + ahead < operations {
            ask(&mut stream, number + ahead);
        }
        if is_verified {
            check_chunk(&into, &addresses[(number % CHUNKS) as usize]).unwrap();
        }
    }
    let elapsed = start.elapsed();
    account.add(operations, cpu);
    elapsed
}

/// One iteration fetches `operations` chunks: a multiple of what is in flight.
fn fetches(asker: &mut Asker, group: &mut Group<'_>, name: &str, len_bytes: usize, operations: u64) {
    group.throughput(Throughput::Bytes(operations * len_bytes as u64));
    let addresses = addresses(len_bytes);
    let server = plain_server();
    for in_flight in [1, 8, 64] {
        for (origin, what) in Origin::ALL {
            let mut account = Account::new(format!("{name}/{what}/{in_flight}"), len_bytes as u64);
            group.bench_function(BenchmarkId::new(what, in_flight), |bencher| {
                bencher.iter_custom(|rounds| {
                    asker.time((origin, addresses.clone()), rounds * operations, in_flight, &mut account)
                });
            });
        }
        for (is_verified, what) in [(false, "tcp"), (true, "tcp, verified")] {
            let mut account = Account::new(format!("{name}/{what}/{in_flight}"), len_bytes as u64);
            group.bench_function(BenchmarkId::new(what, in_flight), |bencher| {
                bencher.iter_custom(|rounds| {
                    let load = (rounds * operations, in_flight);
                    time_plain(server, (&addresses, is_verified), len_bytes, load, &mut account)
                });
            });
        }
    }
}

fn wire(criterion: &mut Criterion) {
    let mut asker = Asker::new();
    for (name, len_bytes, operations) in [("fetch 1 MiB", MIB, CHUNKS), ("fetch 4 KiB", 4 * KIB, 16 * CHUNKS)] {
        let mut group = criterion.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
        fetches(&mut asker, &mut group, name, len_bytes, operations);
        group.finish();
    }
}

criterion_group!(benches, wire);
criterion_main!(benches);
