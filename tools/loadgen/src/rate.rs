//! How many small objects a second, with a fixed number in flight: each on a connection of its own that carries one
//! request at a time, the way a key-value server is measured without pipelining.
//!
//! Contents are made before the clock starts, and a sample of what comes back is compared.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gabion::format::name::Metadata;
use gabion::node::control::client::Client;
use gabion::node::control::{Bytes, ControlEvent, ControlRequest, SmallFetched, SmallFile, SmallStored, Target};

use crate::Failure;
use crate::node::Node;

const OBJECT_BYTES: usize = 4096;
/// One of so many objects that are got back is compared; all are counted and measured.
const COMPARED_ONE_OF: u64 = 64;

pub struct Rate {
    pub count: u64,
    pub in_flight: usize,
    pub threads: usize,
}

/// One connection, and the object that is under way on it.
struct Lane {
    client: Client,
    number: u64,
    since: Instant,
}

impl Rate {
    pub fn puts(&self, node: &Node, seed: u64) -> Result<(), Failure> {
        self.run("put", node, &|number| put_request(seed, number), &|_, event| match event {
            ControlEvent::StoredSmall { outcomes } => match outcomes.as_slice() {
                [SmallStored::Stored { bytes, .. }] if *bytes == OBJECT_BYTES as u64 => Ok(()),
                other => Err(Failure::other(format!("a put was answered with {other:?}"))),
            },
            other => Err(Failure::other(format!("a put was answered with {other:?}"))),
        })
    }

    pub fn gets(&self, node: &Node, seed: u64) -> Result<(), Failure> {
        self.run("get", node, &get_request, &|number, event| match event {
            ControlEvent::FetchedSmall { outcomes } => match outcomes.as_slice() {
                [SmallFetched::Contents { contents, .. }] => check(seed, number, &contents.0),
                other => Err(Failure::other(format!("a get was answered with {other:?}"))),
            },
            other => Err(Failure::other(format!("a get was answered with {other:?}"))),
        })
    }

    fn run(
        &self,
        what: &str,
        node: &Node,
        request: &(impl Fn(u64) -> ControlRequest + Sync),
        check: &(impl Fn(u64, &ControlEvent) -> Result<(), Failure> + Sync),
    ) -> Result<(), Failure> {
        let next = AtomicU64::new(0);
        let cpu_before = node.cpu().map_err(Failure::other)?;
        let started = Instant::now();
        let lanes = self.in_flight.div_ceil(self.threads);
        let mut times = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..self.threads).map(|_| scope.spawn(|| self.drive(lanes, node, &next, request, check))).collect();
            let mut times = Vec::new();
            for worker in workers {
                times.extend(worker.join().map_err(|_| Failure::other("a worker ended"))??);
            }
            Ok::<_, Failure>(times)
        })?;
        let took = started.elapsed();
        let cpu = node.cpu().map_err(Failure::other)? - cpu_before;
        times.sort_unstable();
        let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
        println!(
            "{what} 4 KiB, {} in flight  {:>9.0}/s  median {:.2?}  99 % {:.2?}  node CPU {:.2} s per 10,000",
            self.in_flight,
            self.count as f64 / took.as_secs_f64(),
            at(50),
            at(99),
            cpu * 10_000.0 / self.count as f64,
        );
        Ok(())
    }

    /// Keeps a request under way on each of some connections, until there are no more objects.
    fn drive(
        &self,
        lanes: usize,
        node: &Node,
        next: &AtomicU64,
        request: &impl Fn(u64) -> ControlRequest,
        check: &impl Fn(u64, &ControlEvent) -> Result<(), Failure>,
    ) -> Result<Vec<Duration>, Failure> {
        let claim = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < self.count);
        let mut busy = Vec::new();
        for _ in 0..lanes {
            let Some(number) = claim() else { break };
            let mut client = node.connect()?;
            client.send(&request(number), None).map_err(Failure::other)?;
            busy.push(Lane { client, number, since: Instant::now() });
        }
        let mut times = Vec::new();
        while !busy.is_empty() {
            let mut still = Vec::with_capacity(busy.len());
            for mut lane in busy {
                let event = lane.client.next_event().map_err(Failure::other)?;
                times.push(lane.since.elapsed());
                check(lane.number, &event)?;
                let Some(number) = claim() else { continue };
                lane.client.send(&request(number), None).map_err(Failure::other)?;
                (lane.number, lane.since) = (number, Instant::now());
                still.push(lane);
            }
            busy = still;
        }
        Ok(times)
    }
}

fn contents(seed: u64, number: u64) -> Vec<u8> {
    // Different for each object, and cheap: the clock runs.
    let mut word = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(OBJECT_BYTES);
    while bytes.len() < OBJECT_BYTES {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn key(number: u64) -> String {
    format!("rate/{number}")
}

fn put_request(seed: u64, number: u64) -> ControlRequest {
    let metadata = Metadata { mode: 0o100_644, ..Metadata::default() };
    let file = SmallFile { key: key(number), metadata, contents: Bytes(contents(seed, number)) };
    ControlRequest::PutSmall { bucket: "load".to_owned(), no_dedup: false, no_clobber: false, files: vec![file] }
}

fn get_request(number: u64) -> ControlRequest {
    ControlRequest::GetSmall { targets: vec![Target::Name { bucket: "load".to_owned(), key: key(number) }] }
}

fn check(seed: u64, number: u64, found: &[u8]) -> Result<(), Failure> {
    let is_compared = number.is_multiple_of(COMPARED_ONE_OF);
    if found.len() != OBJECT_BYTES || is_compared && found != contents(seed, number) {
        return Err(Failure::WrongByte(format!("{} came back different", key(number))));
    }
    Ok(())
}
