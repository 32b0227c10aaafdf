//! P2 and P7: no wrong byte comes out, and memory stays bounded.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use gabion::format::ContentId;
use gabion::format::record::{RECORD_HEADER_BYTES, RecordKind};
use gabion::format::segment::{FooterEntry, FooterTail};
use zerocopy::FromBytes;

use crate::node::{
    MIB, Network, Node, assert_same, eventually, find_chunk, flip, noise, positions, random, refused_start, segments,
    text,
};

/// A chunk of a megabyte that is a file of its own and the third leaf of a longer one.
struct Sample {
    single: Vec<u8>,
    long: Vec<u8>,
    chunk: ContentId,
}

fn put_sample(node: &Node) -> Sample {
    let mut random = random();
    let single = noise(&mut random, MIB);
    let long = [&noise(&mut random, 2 * MIB)[..], &single, &noise(&mut random, 2 * MIB + 5)].concat();
    let chunk = node.put_id("single", &single).parse().unwrap();
    node.put("long", &long);
    Sample { single, long, chunk }
}

/// Whether a record of this chunk lies in one of the node's segments.
fn has_record(node: &Node, chunk: &ContentId) -> bool {
    segments(&node.dir).iter().any(|path| positions(&fs::read(path).unwrap(), &chunk.0.0).next().is_some())
}

/// Turns one bit of the chunk over while the node is down.
fn damage(node: &mut Node, chunk: &ContentId) {
    node.stop();
    let (path, offset) = find_chunk(&node.dir, &chunk.0, MIB);
    flip(&path, offset + 123_456);
    node.start();
}

#[test]
fn p2_a_flipped_byte_without_another_copy_exits_6_and_no_output_appears() {
    let mut network = Network::one();
    let sample = put_sample(&network[0]);
    damage(&mut network[0], &sample.chunk);
    let (node, output) = (&network[0], network.file("output"));
    for name in ["single", "long", &sample.chunk.to_string()] {
        node.fails(6, &["get", name, "-o", &output]);
        assert!(!network.path("output").exists(), "{name} appeared");
    }
    // A stream has had what comes before the damage, and nothing of it.
    let streamed = node.run(&["cat", "long"]);
    assert_eq!(streamed.status.code(), Some(6), "{}", text(&streamed.stderr));
    assert!(streamed.stdout.len() <= 2 * MIB, "{} bytes", streamed.stdout.len());
    assert_same(&streamed.stdout, &sample.long[..streamed.stdout.len()], "before the damage");
    // What the damage does not touch is read.
    let after = format!("{}-", 3 * MIB);
    node.reads(&["cat", "long", "--range", &after], &sample.long[3 * MIB..]);
    let verified = node.run(&["verify"]);
    assert_eq!(verified.status.code(), Some(6));
    assert!(text(&verified.stdout).contains(&sample.chunk.to_string()), "{}", text(&verified.stdout));
}

#[test]
fn p2_a_flipped_byte_is_outdone_by_a_second_copy_and_mended() {
    let mut network = Network::start(2, 2, 0);
    let sample = put_sample(&network[0]);
    eventually("both have all chunks", || network.nodes.iter().all(|node| node.count("chunks") == 7));
    damage(&mut network[1], &sample.chunk);
    network.wait_ready();
    network[1].holds("long", &sample.long);
    network[1].holds("single", &sample.single);
    network[1].ok(&["verify"]);
    // And found by verify alone, on the other one.
    damage(&mut network[0], &sample.chunk);
    network[0].wait_for("the other", |status| status["nodes_alive"] == 2);
    let verified = text(&network[0].ok(&["verify"]).stdout);
    assert!(verified.contains(&format!("mended  {}", sample.chunk)), "{verified}");
    assert!(text(&network[0].ok(&["verify"]).stdout).contains(" 0 damaged"));
    // What was mended stands by itself.
    network[1].kill();
    network[0].reads(&["cat", &sample.chunk.to_string()], &sample.single);
}

#[test]
fn p2_a_get_that_meets_damage_holds_the_chunk_again() {
    let mut network = Network::start(2, 2, 0);
    let sample = put_sample(&network[0]);
    eventually("both have all chunks", || network.nodes.iter().all(|node| node.count("chunks") == 7));
    damage(&mut network[1], &sample.chunk);
    network.wait_ready();
    network[1].reads(&["cat", &sample.chunk.to_string()], &sample.single);
    eventually("the chunk is mended", || network[1].log().contains("a damaged chunk is mended"));
    // Held, not cached: it stays where nothing may be cached, and it is right without the other node.
    network[1].stop();
    network[1].add_options(&["--cache", "0"]);
    network[1].start();
    network[0].kill();
    network[1].reads(&["cat", &sample.chunk.to_string()], &sample.single);
}

#[test]
fn p2_damage_of_the_only_copy_exits_6_also_on_another_node() {
    let mut network = Network::start(2, 1, 0);
    let sample = put_sample(&network[0]);
    let holder = (0..2).find(|at| has_record(&network[*at], &sample.chunk)).unwrap();
    damage(&mut network[holder], &sample.chunk);
    network.wait_ready();
    for at in 0..2 {
        network[at].fails(6, &["cat", &sample.chunk.to_string()]);
    }
}

#[test]
fn p2_a_damaged_chunk_is_stored_again_by_the_next_put_and_the_get_goes_on_where_it_stopped() {
    let mut network = Network::one();
    let sample = put_sample(&network[0]);
    // So far behind that it is read only once others have been written.
    let longer = [&noise(&mut random(), 40 * MIB)[..], &sample.single, &[7; 100]].concat();
    network[0].put("longer", &longer);
    damage(&mut network[0], &sample.chunk);
    let (node, output) = (&network[0], network.file("output"));
    let error = node.fails(6, &["get", "longer", "-o", &output]);
    assert!(error.contains("is kept in"), "{error}");
    node.put("single", &sample.single);
    let fetched = node.json(&["get", "longer", "-o", &output]);
    assert!(fetched["bytes_resumed"].as_u64().unwrap() >= MIB as u64, "{fetched}");
    assert_same(&fs::read(&output).unwrap(), &longer, "the resumed file");
    node.holds("long", &sample.long);
    node.ok(&["verify"]);
}

#[test]
fn p2_what_an_interrupted_get_left_is_checked_before_it_is_kept() {
    let mut random = random();
    let network = Network::one();
    let bytes = noise(&mut random, 8 * MIB + 9);
    let id = network[0].put_id("file", &bytes);
    // Two right megabytes, then somebody else's.
    let mut left = bytes[..6 * MIB].to_vec();
    noise(&mut random, 2 * MIB).iter().zip(&mut left[2 * MIB..]).for_each(|(noise, byte)| *byte ^= noise);
    left.resize(20 * MIB, 7);
    fs::write(network.path(&format!(".output.{}.gabion-part", &id[3..19])), left).unwrap();
    let fetched = network[0].json(&["get", "file", "-o", &network.file("output")]);
    assert_same(&fs::read(network.path("output")).unwrap(), &bytes, "the resumed file");
    let resumed = fetched["bytes_resumed"].as_u64().unwrap();
    assert!((MIB as u64..=4 * MIB as u64).contains(&resumed), "{resumed} bytes were right, it says");
}

/// The records of a sealed segment.
fn records(path: &Path) -> Vec<FooterEntry> {
    let bytes = fs::read(path).unwrap();
    let tail = FooterTail::read_from_bytes(&bytes[bytes.len() - size_of::<FooterTail>()..]).unwrap();
    let entries = &bytes[tail.offset.get() as usize..][..tail.records.get() as usize * size_of::<FooterEntry>()];
    entries.chunks_exact(size_of::<FooterEntry>()).map(|entry| FooterEntry::read_from_bytes(entry).unwrap()).collect()
}

/// Turns a bit of every record of this kind over, in its payload where it has one; how many there were.
fn damage_records(node: &Node, kind: RecordKind) -> usize {
    let mut damaged = 0;
    for path in segments(&node.dir) {
        for record in records(&path).iter().filter(|record| record.kind == kind as u8) {
            let within = if record.payload_bytes.get() > 0 { RECORD_HEADER_BYTES } else { 20 };
            flip(&path, record.offset.get() as usize + within);
            damaged += 1;
        }
    }
    damaged
}

#[test]
fn p2_damaged_names_references_deaths_and_documents_are_written_again_from_the_catalog() {
    let mut network = Network::one();
    let sample = put_sample(&network[0]);
    for number in 0..20 {
        network[0].put(&format!("small-{}", number % 15), format!("content {number}").as_bytes());
    }
    network[0].ok(&["rm", "small-3"]);
    network[0].stop();
    let mut damaged = 0;
    for kind in [RecordKind::Name, RecordKind::Reference, RecordKind::Death, RecordKind::Document] {
        let of_kind = damage_records(&network[0], kind);
        assert!(of_kind > 0, "no {kind:?} to damage");
        damaged += of_kind as u64;
    }
    network[0].start();
    network[0].wait_ready(1);
    let node = &network[0];
    let verified = node.json(&["verify"]);
    assert_eq!((&verified["damaged"], &verified["mended"]), (&damaged.into(), &damaged.into()), "{verified}");
    assert_eq!(node.json(&["verify"])["damaged"], 0);
    // What was written again stands by itself.
    network[0].stop();
    fs::remove_dir_all(network[0].dir.join("catalog")).unwrap();
    network[0].start();
    network[0].wait_ready(1);
    network[0].holds("single", &sample.single);
    network[0].holds("long", &sample.long);
    network[0].holds("small-1", b"content 16");
    network[0].fails(4, &["cat", "small-3"]);
    assert_eq!(network[0].json(&["verify"])["damaged"], 0);
}

#[test]
fn p2_damage_that_the_catalog_was_never_told_of_stays_reported() {
    let mut network = Network::one();
    network[0].put("file", b"content");
    network[0].stop();
    let damaged = damage_records(&network[0], RecordKind::Name) as u64;
    fs::remove_dir_all(network[0].dir.join("catalog")).unwrap();
    for _ in 0..2 {
        network[0].start();
        let verified = network[0].run(&["verify", "--json"]);
        assert_eq!(verified.status.code(), Some(6), "{}", text(&verified.stderr));
        let report: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
        assert_eq!(report["left"], damaged, "{report}");
        network[0].stop();
    }
}

/// Damages the header of each segment of this class (1 bulk, 2 small); what they were.
fn damage_headers(node: &Node, class: u8) -> Vec<(PathBuf, Vec<u8>)> {
    let all = segments(&node.dir).into_iter().map(|path| (fs::read(&path).unwrap(), path));
    let of_class: Vec<_> = all.filter(|(bytes, _)| bytes[10] == class).map(|(bytes, path)| (path, bytes)).collect();
    of_class.iter().for_each(|(path, _)| flip(path, 100));
    of_class
}

#[test]
fn p2_a_segment_that_cannot_be_read_counts_as_damage_until_it_is_gone() {
    let mut network = Network::start(2, 2, 0);
    let sample = put_sample(&network[0]);
    eventually("both have all chunks", || network.nodes.iter().all(|node| node.count("chunks") == 7));
    network[1].stop();
    let damaged = damage_headers(&network[1], 1);
    network[1].start();
    network[1].wait_for("the other", |status| status["nodes_alive"] == 2);
    let verified = network[1].run(&["verify"]);
    assert_eq!(verified.status.code(), Some(6), "{}", text(&verified.stdout));
    let left = format!("{} left damaged", damaged.len());
    assert!(text(&verified.stdout).contains(&left), "{}", text(&verified.stdout));
    assert!(text(&verified.stderr).contains("its header is damaged"), "{}", text(&verified.stderr));
    // Its chunks were fetched again.
    network[1].holds("long", &sample.long);
    network[1].stop();
    damaged.iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
    network[1].start();
    network.wait_ready();
    assert!(text(&network[1].ok(&["verify"]).stdout).contains(" 0 left damaged"));
}

#[test]
fn a_node_that_lost_its_layout_founds_no_second_one_and_one_that_never_had_it_founds_the_first() {
    let mut network = Network::one();
    network[0].put("file", b"kept");
    network[0].stop();
    let dir = network[0].dir.clone();
    fs::remove_dir_all(dir.join("catalog")).unwrap();
    let damaged = damage_headers(&network[0], 2);
    let (code, error) = refused_start(&dir);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("layout is missing") && error.contains(dir.to_str().unwrap()), "{error}");
    damaged.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    network[0].start();
    network[0].holds("file", b"kept");
    network[0].stop();
    // As if it had been killed when it had its keys and nothing else.
    for name in ["catalog", "segments"] {
        fs::remove_dir_all(dir.join(name)).unwrap();
    }
    for name in ["address-book", "index.checkpoint"] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    network[0].start();
    network[0].wait_ready(1);
    network[0].put("file", b"anew");
}

/// Megabytes that differ from each other, made without holding them.
fn megabyte(pattern: &[u8], number: u64) -> Vec<u8> {
    let mut bytes = pattern.to_vec();
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn anonymous_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn p7_a_long_pipe_in_and_out_leaves_the_memory_of_the_node_bounded() {
    const MEGABYTES: u64 = 600;
    let network = Network::one();
    let (node, pattern) = (&network[0], noise(&mut random(), MIB));
    let (over, highest) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                highest.fetch_max(anonymous_kib(node.pid()), Ordering::SeqCst);
                thread::sleep(Duration::from_millis(10));
            }
        });
        let piped = std::panic::catch_unwind(|| {
            let mut put = node.command(&["put", "-", "--name", "long"]).stdin(Stdio::piped()).spawn().unwrap();
            let mut pipe = put.stdin.take().unwrap();
            (0..MEGABYTES).for_each(|number| pipe.write_all(&megabyte(&pattern, number)).unwrap());
            drop(pipe);
            assert!(put.wait().unwrap().success());
            let mut get = node.command(&["cat", "long"]).stdout(Stdio::piped()).spawn().unwrap();
            let (mut pipe, mut found) = (get.stdout.take().unwrap(), vec![0; MIB]);
            for number in 0..MEGABYTES {
                pipe.read_exact(&mut found).unwrap();
                assert_same(&found, &megabyte(&pattern, number), &format!("megabyte {number}"));
            }
            assert_eq!(pipe.read(&mut found).unwrap(), 0, "bytes after the end");
            assert!(get.wait().unwrap().success());
        });
        over.store(true, Ordering::SeqCst);
        piped.unwrap();
    });
    let highest = highest.into_inner() / 1024;
    assert!(highest > 0 && highest < 256, "{highest} MiB of anonymous memory");
}

#[test]
fn p7_the_cache_keeps_its_limit_over_restarts_and_what_a_node_owns_is_no_part_of_it() {
    const LIMIT_BYTES: u64 = 16 * MIB as u64;
    let mut random = random();
    let mut network = Network::start(2, 1, 0);
    network[1].stop();
    network[1].set_options(&["--cache", "16M"]);
    network[1].start();
    network.wait_ready();
    // Files of one chunk each, until some have their only copy at the second node.
    let mut owned: Vec<(String, Vec<u8>)> = Vec::new();
    for number in 0..64 {
        let bytes = noise(&mut random, MIB);
        let id = network[0].put_id(&format!("single/{number}"), &bytes);
        if has_record(&network[1], &id.parse().unwrap()) {
            owned.push((id, bytes));
        }
        if owned.len() == 3 {
            break;
        }
    }
    assert!(!owned.is_empty(), "the second node owns nothing");
    let long = noise(&mut random, 96 * MIB);
    network[0].put("long", &long);
    // Nothing was read there yet: all of it is owned.
    let chunks_owned = network[1].count("chunks");
    let chunks_cached = |node: &Node| node.count("chunks") - chunks_owned;
    let keeps_limit = |node: &Node| {
        let bytes = node.count("cache_bytes");
        // Chunks of a megabyte, and the root.
        0 < bytes && bytes <= LIMIT_BYTES && (1..=LIMIT_BYTES / MIB as u64 + 1).contains(&chunks_cached(node))
    };
    for _ in 0..2 {
        network[1].holds("long", &long);
    }
    eventually("the cache is used and keeps its limit", || keeps_limit(&network[1]));
    network[1].ok(&["reclaim"]);
    eventually("the cache keeps its limit after a reclaim", || keeps_limit(&network[1]));
    network[1].stop();
    network[1].start();
    eventually("what was cached is counted again", || keeps_limit(&network[1]));
    network[1].stop();
    network[1].set_options(&["--cache", "0"]);
    network[1].start();
    eventually("what was cached is gone", || network[1].count("cache_bytes") == 0 && chunks_cached(&network[1]) == 0);
    network[0].kill();
    owned.iter().for_each(|(id, bytes)| network[1].reads(&["cat", id], bytes));
}
