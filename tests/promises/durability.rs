//! P1, P8, P9, P10: what was acknowledged stays, whatever happens to the process, the disk or the other nodes.

use std::fs;
use std::mem::offset_of;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gabion::format::record::{RecordHeader, RecordKind};
use gabion::format::{Address, ContentId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zerocopy::FromBytes;

use crate::node::{
    KIB, MIB, Network, Node, eventually, moment, noise, positions, random, refused_start, segments, text,
};

/// Names and what they hold.
type Acknowledged = Mutex<Vec<(String, Vec<u8>)>>;

/// Puts until the node is gone, and notes what was acknowledged.
fn put_until_refused(node: &Node, prefix: &str, mut random: StdRng, acknowledged: &Acknowledged, stop: &AtomicBool) {
    for number in 0.. {
        let len =
            if random.random_bool(0.5) { random.random_range(0..64 * KIB) } else { random.random_range(0..3 * MIB) };
        let (name, bytes) = (format!("kills/{prefix}-{number}"), noise(&mut random, len));
        if node.try_put(&name, &bytes).0 != 0 || stop.load(Ordering::SeqCst) {
            return; // not acknowledged, or perhaps only after the kill: nothing was promised
        }
        acknowledged.lock().unwrap().push((name, bytes));
    }
}

/// Concurrent puts at the first node, ended by `end` at a random moment.
fn puts_until(
    network: &mut Network,
    round: usize,
    random: &mut StdRng,
    acknowledged: &Acknowledged,
    end: impl FnOnce(&Network),
) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for worker in 0..4 {
            let random = StdRng::seed_from_u64(random.random());
            let (node, stop) = (&network[0], &stop);
            scope.spawn(move || put_until_refused(node, &format!("{round}-{worker}"), random, acknowledged, stop));
        }
        thread::sleep(Duration::from_millis(50) + moment(random, Duration::from_millis(500)));
        end(network);
        stop.store(true, Ordering::SeqCst);
    });
}

fn all_there(node: &Node, acknowledged: &Acknowledged, prefix: &str) -> usize {
    let acknowledged = acknowledged.lock().unwrap();
    let wanted: Vec<_> = acknowledged.iter().filter(|(name, _)| name.starts_with(prefix)).collect();
    wanted.iter().for_each(|(name, bytes)| node.holds(name, bytes));
    wanted.len()
}

#[test]
fn p1_acknowledged_puts_survive_kill_9_of_the_node() {
    let mut random = random();
    let mut network = Network::one();
    let acknowledged = Acknowledged::default();
    for round in 0..6 {
        puts_until(&mut network, round, &mut random, &acknowledged, |network| {
            crate::node::signal("KILL", network[0].pid());
        });
        network[0].kill();
        network[0].start();
        network[0].wait_ready(1);
        all_there(&network[0], &acknowledged, &format!("kills/{round}-"));
    }
    let count = all_there(&network[0], &acknowledged, "kills/");
    assert!(count >= 6, "only {count} puts were acknowledged: nothing was tried");
    network[0].ok(&["verify"]);
}

#[test]
fn p1_acknowledged_puts_survive_kill_9_of_all_nodes_and_the_loss_of_one() {
    let mut random = random();
    let mut network = Network::start(3, 3, 0);
    let acknowledged = Acknowledged::default();
    puts_until(&mut network, 0, &mut random, &acknowledged, |network| {
        network.nodes.iter().for_each(|node| crate::node::signal("KILL", node.pid()));
    });
    network.nodes.iter_mut().for_each(Node::kill);
    // One that held copies stays away for good, not always the same.
    let lost = random.random_range(0..3);
    let others: Vec<usize> = (0..3).filter(|number| *number != lost).collect();
    for number in &others {
        network[*number].start();
    }
    for number in &others {
        network[*number].wait_for("two nodes", |status| status["nodes_alive"] == 2);
    }
    for number in others {
        assert!(
            all_there(&network[number], &acknowledged, "kills/") > 0,
            "nothing was acknowledged: nothing was tried"
        );
    }
}

#[test]
fn p1_a_put_without_w_nodes_is_refused_and_names_nothing() {
    let mut random = random();
    let mut network = Network::start(3, 3, 0);
    let bytes = noise(&mut random, 3 * MIB);
    network[2].kill();
    network[0].put("with-two-of-three", &bytes);
    network[1].kill();
    for size in [0, 100, 2 * MIB] {
        let (code, error) = network[0].try_put("with-one-of-three", &noise(&mut random, size));
        assert_eq!(code, 8, "{size} bytes: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    network[1].start();
    network[0].wait_for("two nodes", |status| status["nodes_alive"] == 2);
    network[1].wait_for("two nodes", |status| status["nodes_alive"] == 2);
    network[1].fails(4, &["get", "with-one-of-three", "-o", "/dev/null"]);
    network[1].holds("with-two-of-three", &bytes);
    network[0].put("with-one-of-three", &bytes);
}

const LENGTHS: [usize; 3] = [100, 70_000, 3 * MIB + 5];
/// Of these files together: leaves, and the root of the longest.
const CHUNKS: u64 = 1 + 1 + 4 + 1;

/// Whether this node has the reference of a root that carries its capsule: there, a content id is enough to read by.
fn has_capsule(node: &Node, root: &Address) -> bool {
    let is_it = |header: &[u8]| {
        let header = RecordHeader::read_from_prefix(header);
        header.is_ok_and(|(header, _)| header.kind == RecordKind::Reference as u8 && header.payload_bytes.get() > 0)
    };
    segments(&node.dir).iter().any(|path| {
        let bytes = fs::read(path).unwrap();
        positions(&bytes, &root.0).any(|at| {
            let header = at.checked_sub(offset_of!(RecordHeader, address)).and_then(|start| bytes.get(start..));
            header.is_some_and(is_it)
        })
    })
}

#[test]
fn p8_what_all_three_have_outlives_the_loss_of_any_two() {
    let mut random = random();
    let mut network = Network::start(3, 3, 0);
    let files = LENGTHS.map(|len| {
        let (name, bytes) = (format!("bucket/file-{len}"), noise(&mut random, len));
        let id: ContentId = network[0].put_id(&name, &bytes).parse().unwrap();
        let link = text(&network[0].ok(&["share", &name]).stdout).trim().to_owned();
        (name, id, link, bytes)
    });
    // A put waits for two of them; the promise is of what all have.
    eventually("all have all of it", || {
        let has_all = |node: &Node| files.iter().all(|(_, id, ..)| has_capsule(node, &id.0));
        network.nodes.iter().all(|node| node.count("chunks") == CHUNKS && has_all(node))
    });
    let last = random.random_range(0..3);
    (0..3).filter(|number| *number != last).for_each(|number| network[number].kill());
    for round in 0..2 {
        for (name, id, link, bytes) in &files {
            network[last].reads(&["cat", &id.to_string()], bytes);
            network[last].reads(&["cat", link], bytes);
            // A name is read from most of its owners. With one of three it is unknown, which is not absent (4).
            let named = network[last].run(&["cat", name]);
            assert!(matches!(named.status.code(), Some(5 | 8)), "round {round}: {}", text(&named.stderr));
        }
        network[last].kill();
        network[last].start();
    }
}

#[test]
fn p8_the_only_member_reads_everything_by_name_after_the_loss_of_both_storage_nodes() {
    let mut random = random();
    let mut network = Network::start(1, 3, 2);
    let files = LENGTHS.map(|len| (format!("bucket/file-{len}"), noise(&mut random, len)));
    files.iter().for_each(|(name, bytes)| network[0].put(name, bytes));
    eventually("all have all chunks", || network.nodes.iter().all(|node| node.count("chunks") == CHUNKS));
    network[1].kill();
    network[2].kill();
    for _ in 0..2 {
        files.iter().for_each(|(name, bytes)| network[0].holds(name, bytes));
        assert_eq!(text(&network[0].ok(&["ls", "bucket/"]).stdout).lines().count(), files.len());
        network[0].kill();
        network[0].start();
    }
}

#[test]
fn p9_a_full_disk_refuses_puts_and_goes_on_reading_and_removing() {
    let mut random = random();
    let scratch = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(scratch.path(), 384 * MIB) else { return };
    let mut node = Node::found(&disk.path.join("node"), &["--replicas", "1", "--threads", "1"]);
    node.wait_ready(1);
    let kept = noise(&mut random, 8 * MIB);
    node.put("kept", &kept);
    let large = noise(&mut random, 400 * MIB);
    let (code, error) = node.try_put("large", &large);
    assert_eq!((code, error.lines().count()), (8, 1), "{error}");
    assert!(error.contains("full") || error.contains("space"), "{error}");
    node.fails(4, &["get", "large", "-o", "/dev/null"]);
    node.holds("kept", &kept);
    node.ok(&["rm", "kept"]);
    node.ok(&["reclaim"]);
    node.fails(4, &["cat", "kept"]);
    // It opens again as it is.
    node.kill();
    node.start();
    node.fails(4, &["cat", "kept"]);
    node.stop();
}

#[test]
fn p9_a_disk_without_a_free_byte_is_read_a_removal_works_or_is_refused_and_nothing_needs_a_restart() {
    let mut random = random();
    let scratch = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(scratch.path(), 384 * MIB) else { return };
    let mut node = Node::found(&disk.path.join("node"), &["--replicas", "1", "--threads", "1"]);
    node.wait_ready(1);
    let files: Vec<_> = (0..6).map(|number| (format!("file-{number}"), noise(&mut random, 2 * MIB))).collect();
    files.iter().for_each(|(name, bytes)| node.put(name, bytes));
    let filler = disk.fill();
    // A removal has to be written down as well.
    let (mut removed, mut refused) = (Vec::new(), Vec::new());
    for (number, (name, bytes)) in files.iter().enumerate() {
        node.holds(name, bytes);
        if number % 2 == 0 {
            let output = node.run(&["rm", name]);
            let error = crate::node::text(&output.stderr);
            match output.status.code() {
                Some(0) => {
                    node.fails(4, &["cat", name]);
                    removed.push(name);
                }
                code => {
                    assert!(code == Some(8) && error.contains("disk is full"), "{code:?}: {error}");
                    node.holds(name, bytes);
                    refused.push(name);
                }
            }
        }
        assert!(node.status().is_some());
    }
    let names = crate::node::text(&node.ok(&["ls"]).stdout);
    fs::remove_file(filler).unwrap();
    node.put("after", &files[0].1);
    node.holds("after", &files[0].1);
    // With room again each that was refused works.
    refused.into_iter().for_each(|name| drop(node.ok(&["rm", name])));
    node.ok(&["rm", &files[1].0]);
    node.ok(&["reclaim"]);
    node.ok(&["verify"]);
    for (number, (name, bytes)) in files.iter().enumerate() {
        if number % 2 == 0 || number == 1 {
            node.fails(4, &["cat", name]);
        } else {
            node.holds(name, bytes);
        }
    }
    let listed = |name: &String| names.lines().any(|line| line.split_whitespace().any(|word| word.ends_with(name)));
    assert!(!removed.into_iter().any(listed), "{names}");
    // And it ends well, full again.
    let filler = disk.fill();
    node.holds("after", &files[0].1);
    node.stop();
    fs::remove_file(filler).unwrap();
    node.start();
    node.holds("after", &files[0].1);
    node.stop();
}

#[test]
fn an_output_that_does_not_fit_its_disk_fails_at_once_and_can_be_got_later() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(scratch.path(), 48 * MIB) else { return };
    let network = crate::node::Network::one();
    let node = &network[0];
    let bytes = noise(&mut random(), 32 * MIB);
    node.put("large", &bytes);
    let filler = disk.fill();
    fs::File::options().write(true).open(&filler).unwrap().set_len(24 * MIB as u64).unwrap();
    let output = disk.path.join("output");
    let error = node.fails(1, &["get", "large", "-o", output.to_str().unwrap()]);
    assert!(error.contains("No space left") && error.contains("output"), "{error}");
    let left = || fs::read_dir(&disk.path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    assert!(left().iter().all(|path| *path == filler || fs::metadata(path).unwrap().blocks() == 0), "{:?}", left());
    // With room it goes through.
    fs::remove_file(filler).unwrap();
    node.ok(&["get", "large", "-o", output.to_str().unwrap()]);
    crate::node::assert_same(&fs::read(&output).unwrap(), &bytes, "large");
    assert_eq!(left(), [output]);
}

/// A file system of its own in memory, gone with this.
struct SmallDisk {
    path: std::path::PathBuf,
}

impl SmallDisk {
    fn mount(below: &std::path::Path, bytes: usize) -> Option<Self> {
        let path = below.join("disk");
        fs::create_dir(&path).unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self { path });
        }
        crate::node::not_tried("no file system can be mounted here; run it as root");
        None
    }

    /// Takes every byte that is free: the file that has them.
    fn fill(&self) -> std::path::PathBuf {
        use std::io::Write;
        let path = self.path.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        for piece in [MIB, 4 * KIB] {
            while file.write_all(&vec![7; piece]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

#[test]
fn p10_a_data_directory_of_a_newer_format_is_refused_and_left_as_it_is() {
    let mut network = Network::one();
    network[0].put("file", b"kept");
    network[0].stop();
    let dir = network[0].dir.clone();
    let format = dir.join("format");
    let before = fs::read_to_string(&format).unwrap();
    assert!(before.contains('1'), "{before}");
    fs::write(&format, before.replace('1', "2")).unwrap();
    let (code, error) = refused_start(&dir);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("newer gabion") && error.contains(format.to_str().unwrap()), "{error}");
    fs::write(&format, before).unwrap();
    network[0].start();
    network[0].holds("file", b"kept");
}

#[test]
fn p10_a_segment_of_a_newer_format_is_refused_and_left_as_it_is() {
    let mut network = Network::one();
    network[0].put("file", b"kept");
    network[0].stop();
    let path = segments(&network[0].dir).pop().unwrap();
    let before = fs::read(&path).unwrap();
    let mut newer = before.clone();
    newer[8] = 2;
    let crc = crc32fast::hash(&newer[..4092]);
    newer[4092..4096].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, newer).unwrap();
    let (code, error) = refused_start(&network[0].dir);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("newer gabion"), "{error}");
    fs::write(&path, before).unwrap();
    network[0].start();
    network[0].holds("file", b"kept");
}

#[test]
fn p10_everything_is_there_after_the_catalog_was_deleted() {
    let mut random = random();
    let mut network = Network::one();
    let files: Vec<_> =
        [0, 100, 70_000, 3 * MIB].iter().map(|len| (format!("bucket/file-{len}"), noise(&mut random, *len))).collect();
    files.iter().for_each(|(name, bytes)| network[0].put(name, bytes));
    let id = network[0].put_id("by-id", &files[3].1);
    network[0].put("removed", &noise(&mut random, 100_000));
    network[0].ok(&["rm", "removed"]);
    let names = network[0].ok(&["ls", "--json"]).stdout;
    // After a clean end and after none.
    for round in 0..2 {
        if round == 0 {
            network[0].stop()
        } else {
            network[0].kill()
        }
        fs::remove_dir_all(network[0].dir.join("catalog")).unwrap();
        network[0].start();
        network[0].wait_ready(1);
        let node = &network[0];
        files.iter().for_each(|(name, bytes)| node.holds(name, bytes));
        node.reads(&["cat", &id], &files[3].1);
        node.fails(4, &["cat", "removed"]);
        assert_eq!(crate::node::text(&node.ok(&["ls", "--json"]).stdout), crate::node::text(&names));
        node.ok(&["reclaim"]);
        assert_eq!(node.json(&["verify"])["damaged"], 0);
    }
}

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data-directory-v1.pack");
/// What the frozen directory must hold, but for the catalog, which is made anew.
const FROZEN: [&str; 5] = ["format", "incarnation", "index.checkpoint", "address-book", "seen-openings"];
const BLOCK: usize = 4096;

fn frozen_file(number: u64) -> (String, Vec<u8>) {
    let len = [0, 33, 5_000, 70_000][number as usize % 4];
    (format!("frozen/{number}"), noise(&mut StdRng::seed_from_u64(number), len))
}

/// Files without their blocks of zeros: name, length, number of blocks, {offset, block}…; behind their lengths.
fn pack(dir: &std::path::Path, names: &[String]) -> Vec<u8> {
    let mut packed = Vec::new();
    for name in names {
        let bytes = fs::read(dir.join(name)).unwrap();
        let blocks: Vec<_> =
            bytes.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0)).collect();
        for number in [name.len(), bytes.len(), blocks.len()] {
            packed.extend((number as u64).to_le_bytes());
        }
        packed.extend(name.as_bytes());
        for (number, block) in blocks {
            packed.extend(((number * BLOCK) as u64).to_le_bytes());
            packed.extend((block.len() as u64).to_le_bytes());
            packed.extend(block);
        }
    }
    packed
}

fn unpack(mut packed: &[u8], dir: &std::path::Path) {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    fn take<'a>(packed: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (taken, rest) = packed.split_at(len);
        *packed = rest;
        taken
    }
    fn number(packed: &mut &[u8]) -> usize {
        u64::from_le_bytes(take(packed, 8).try_into().unwrap()) as usize
    }
    while !packed.is_empty() {
        let (name_len, len, blocks) = (number(&mut packed), number(&mut packed), number(&mut packed));
        let path = dir.join(std::str::from_utf8(take(&mut packed, name_len)).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = fs::File::options().write(true).create_new(true).mode(0o600).open(path).unwrap();
        file.set_len(len as u64).unwrap();
        for _ in 0..blocks {
            let (offset, len) = (number(&mut packed), number(&mut packed));
            file.write_all_at(take(&mut packed, len), offset as u64).unwrap();
        }
    }
}

/// The data directory that stands frozen, made anew and packed: [`FIXTURE`] for the next version of a format, whose name
/// must be another, is what this returns.
fn freeze() -> Vec<u8> {
    let mut network = Network::one();
    // Some of it in sealed segments, which a checkpoint covers, the rest in segments that were never sealed.
    (0..4).map(frozen_file).for_each(|(name, bytes)| network[0].put(&name, &bytes));
    network[0].put("removed", b"removed");
    network[0].stop();
    network[0].start();
    network[0].wait_ready(1);
    (4..8).map(frozen_file).for_each(|(name, bytes)| network[0].put(&name, &bytes));
    network[0].ok(&["rm", "removed"]);
    network[0].kill();
    let dir = network[0].dir.clone();
    let mut names: Vec<String> = FROZEN.iter().map(|name| (*name).to_owned()).collect();
    for folder in ["keys", "segments"] {
        for entry in fs::read_dir(dir.join(folder)).unwrap() {
            names.push(format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()));
        }
    }
    names.sort();
    pack(&dir, &names)
}

#[test]
fn p10_a_data_directory_of_version_1_opens_and_holds_what_was_put() {
    opens_and_holds_what_was_put(&fs::read(FIXTURE).unwrap());
}

#[test]
fn a_data_directory_that_is_frozen_today_opens_and_holds_what_was_put() {
    opens_and_holds_what_was_put(&freeze());
}

fn opens_and_holds_what_was_put(packed: &[u8]) {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("node");
    unpack(packed, &dir);
    FROZEN.iter().for_each(|name| assert!(dir.join(name).exists(), "{name} is not frozen"));
    let mut node = Node::found(&dir, &["--replicas", "1"]);
    node.wait_ready(1);
    for round in 0..2 {
        (0..8).map(frozen_file).for_each(|(name, bytes)| node.holds(&name, &bytes));
        node.fails(4, &["cat", "removed"]);
        assert_eq!(node.json(&["verify"])["damaged"], 0, "round {round}");
        node.put("new", b"it takes more");
        node.stop();
        node.start();
    }
    node.holds("new", b"it takes more");
}

#[test]
fn two_nodes_on_one_directory_are_refused_and_the_first_goes_on() {
    let network = Network::one();
    let (code, error) = refused_start(&network[0].dir);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("another gabion node runs on") && error.contains("--data-dir"), "{error}");
    network[0].put("file", b"goes on");
    network[0].holds("file", b"goes on");
}

#[test]
fn p9_a_node_at_its_capacity_refuses_puts_until_something_is_removed() {
    let mut random = random();
    let scratch = tempfile::tempdir().unwrap();
    let options = ["--replicas", "1", "--threads", "2", "--capacity", "10M"];
    let mut node = Node::found(&scratch.path().join("node"), &options);
    node.wait_ready(1);
    let kept = noise(&mut random, 6 * MIB);
    node.put("kept", &kept);
    let (code, error) = node.try_put("large", &noise(&mut random, 64 * MIB));
    assert_eq!((code, error.lines().count()), (8, 1), "{error}");
    assert!(error.contains("capacity is reached") && error.contains("gabion reclaim"), "{error}");
    let status = node.status().unwrap();
    assert_eq!((&status["state"], &status["capacity_bytes"]), (&"degraded".into(), &(10 * MIB).into()), "{status}");
    assert!(status["reasons"].to_string().contains("--capacity"), "{status}");
    assert!(node.count("bytes_disk") <= 11 * MIB as u64, "{status}");
    assert_eq!(node.try_put("more", &noise(&mut random, MIB)).0, 8);
    node.holds("kept", &kept);

    node.ok(&["rm", "kept"]);
    node.ok(&["reclaim"]);
    node.put("small", b"fits again");
    node.holds("small", b"fits again");
    node.stop();
}
