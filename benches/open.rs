//! Opening a large store: after a clean stop, and after its process was killed. The store alone, with neither catalog nor
//! node: what a node needs for its own start comes on top. The catalog opens its database, and catches up with what the
//! log has beyond what it committed; the node reads its keys and meets its peers.
//!
//! | 10 million chunks, written in 60 s | opens in | memory of a chunk |
//! | --- | --- | --- |
//! | after `SIGKILL` | 1.22 s | 21.6 bytes |
//! | after a clean stop | 0.59 to 0.72 s | 20.1 bytes |
//!
//! (AMD EPYC, 2 virtual cores of a shared machine, files in the page cache, 27 November 2026.)
//!
//! What it decides: whether the checkpoint of the index, written at a clean stop and now and then before, is worth having
//! beside the footers of the segments, and what a chunk costs in memory. Not a criterion bench: each figure needs a
//! process of its own, one that is killed and some that only open.
//!
//! ```text
//! cargo bench --bench open -- 10000000      # chunks; 1,000,000 unless given
//! ```
//!
//! Chunks are of 32 bytes, the shortest there are: what opening costs depends on their number alone. They are written by a
//! child process in the shards' usual way (hold, stage, commit), which checkpoints as a node does, and is killed with
//! `SIGKILL` while it goes on writing. Up to where the catalog would know each segment is kept in a file,
//! written with each checkpoint. Each row then opens the same directory in a new process. Memory is what that
//! process has more of after opening than before (`VmRSS`), a chunk.

#![allow(clippy::unwrap_used)] // a bench that cannot go on ends with a panic

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Instant;

use gabion::format::{Address, Incarnation, VersionId};
use gabion::io::{BufferPool, Ring, RingOptions, spawn};
use gabion::store::{Applied, Hold, OpenReport, Replayed, RingDisk, Store, StoreOptions, open};

#[path = "drive/mod.rs"]
mod drive;

const CHUNKS: u64 = 1_000_000;
const CHUNK_BYTES: usize = 32;
const IN_FLIGHT: usize = 2048;
/// How many chunks are written between two looks whether a checkpoint is due.
const STRETCH: u64 = 100_000;
const BUFFERS: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["fill", directory, chunks] => fill(Path::new(directory), chunks.parse().unwrap()),
        ["open", directory, how] => open_once(Path::new(directory), how),
        [chunks] => compare(chunks.parse().unwrap()),
        _ => compare(CHUNKS),
    }
}

fn compare(chunks: u64) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let began = Instant::now();
    let mut filling = child(&["fill", directory.path().to_str().unwrap(), &chunks.to_string()]);
    let mut line = String::new();
    BufReader::new(filling.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "written", "the child has stopped early");
    // The cut comes in the middle of writing: the child goes on until it is killed.
    filling.kill().unwrap();
    filling.wait().unwrap();
    println!("{chunks} chunks written in {:.1} s", began.elapsed().as_secs_f64());
    for how in ["after kill -9", "after a clean stop", "after a clean stop, again"] {
        let opened = child(&["open", directory.path().to_str().unwrap(), how]).wait_with_output().unwrap();
        assert!(opened.status.success());
        print!("{}", String::from_utf8(opened.stdout).unwrap());
    }
}

fn child(arguments: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap()).args(arguments).stdout(Stdio::piped()).spawn().unwrap()
}

/// Up to where the catalog knows each segment: its part in opening, played by a file.
type Positions = Rc<RefCell<HashMap<u64, u64>>>;

async fn attach(root: &Path) -> (Store<RingDisk>, Positions, OpenReport) {
    let disk = RingDisk::new(root).unwrap();
    let options = StoreOptions::new(1, Incarnation([1; 16]), 0);
    let known: HashMap<u64, u64> = std::fs::read_to_string(root.join(POSITIONS))
        .unwrap_or_default()
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(segment, end)| (segment.parse().unwrap(), end.parse().unwrap()))
        .collect();
    let positions = Rc::new(RefCell::new(known.clone()));
    let mut replay = |replayed: Replayed<'_>| {
        if let Replayed::Position { segment, offset } = replayed {
            positions.borrow_mut().insert(segment, offset);
        }
    };
    let (shared, report) = open(&disk, options, &known, &mut replay).await.unwrap();
    let observed = positions.clone();
    let observe = Rc::new(move |applied: Applied| {
        observed.borrow_mut().insert(applied.segment, applied.end_offset);
    });
    (Store::attach(shared, disk, 0, observe, |task| drop(spawn(task))), positions, report)
}

fn keep(positions: &Positions, root: &Path) {
    let lines = positions.borrow().iter().map(|(segment, end)| format!("{segment} {end}\n")).collect::<String>();
    std::fs::write(root.join(POSITIONS), lines).unwrap();
}

const POSITIONS: &str = "positions";

fn address(number: u64) -> Address {
    Address(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn fill(root: &Path, chunks: u64) {
    let mut ring = Ring::new(&RingOptions::default()).unwrap();
    ring.block_on(async {
        let (store, positions, _) = attach(root).await;
        let pool = BufferPool::new(BUFFERS).unwrap();
        let mut from = 0;
        loop {
            let (writing, pool) = (store.clone(), pool.clone());
            drive::drive(STRETCH, IN_FLIGHT, move |number| {
                let (store, pool) = (writing.clone(), pool.clone());
                async move { append(&store, &pool, from + number).await }
            })
            .await;
            from += STRETCH;
            if store.checkpoint_is_due() {
                store.checkpoint().await.unwrap();
                keep(&positions, root);
            }
            if from == chunks.next_multiple_of(STRETCH) {
                println!("written");
            }
        }
    });
}

async fn append(store: &Store<RingDisk>, pool: &BufferPool, number: u64) {
    let version = VersionId::new(7, 1000, [1; 8]);
    let Hold::Absent(claim) = store.hold(&address(number), &version).await.unwrap() else { return };
    let staged = store.stage(claim, pool.take().await, CHUNK_BYTES, &version, 0).await.unwrap();
    staged.commit().await.unwrap();
}

fn open_once(root: &Path, how: &str) {
    let mut ring = Ring::new(&RingOptions::default()).unwrap();
    ring.block_on(async {
        let before = resident_bytes();
        let began = Instant::now();
        let (store, positions, report) = attach(root).await;
        let took = began.elapsed().as_secs_f64();
        let bytes_each = resident_bytes().saturating_sub(before) as f64 / report.chunks as f64;
        println!(
            "{how:<26} {took:>6.2} s  {:>9} chunks  {bytes_each:>5.1} bytes a chunk  (index alone {:.1})",
            report.chunks,
            store.stats().index_bytes as f64 / report.chunks as f64,
        );
        store.close().await.unwrap();
        keep(&positions, root);
    });
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
