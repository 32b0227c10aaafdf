//! What a user types: files, trees, ranges, links, and Ctrl-C.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use gabion::limits::STREAM_BUFFERS_PER_SHARD;
use gabion::node::control::client::{Client, ClientError};
use rand::RngExt;

use crate::node::{KIB, MIB, Network, Node, eventually, feed, finish, moment, noise, random, run, signal, text};

const SIZES: [usize; 8] = [0, 1, 31, 32, MIB - 1, MIB, MIB + 1, 10 * MIB + 7];

#[test]
fn every_size_comes_back_by_name_content_id_and_link() {
    let mut random = random();
    let network = Network::one();
    let node = &network[0];
    for size in SIZES {
        let bytes = noise(&mut random, size);
        let name = format!("sizes/{size}");
        let id = node.put_id(&name, &bytes);
        let link = text(&node.ok(&["share", &name]).stdout).trim().to_owned();
        assert!(id.starts_with("gc1") && link.starts_with("gl1"), "{id} {link}");
        node.holds(&name, &bytes);
        node.reads(&["cat", &link], &bytes);
        if size > 0 {
            node.reads(&["cat", &id], &bytes);
        }
        let output = network.file("output");
        node.ok(&["get", &name, "-o", &output]);
        crate::node::assert_same(&fs::read(&output).unwrap(), &bytes, &name);
        assert_eq!(node.json(&["stat", &name])["bytes"], size);
        // The same content from a pipe is the same content.
        node.put(&format!("sizes/piped-{size}"), &bytes);
        assert_eq!(node.json(&["stat", &format!("sizes/piped-{size}")])["content"], id.as_str());
    }
}

#[test]
fn a_range_is_what_dd_would_cut_out() {
    let mut random = random();
    let network = Network::one();
    let len = 4 * MIB + 77;
    let bytes = noise(&mut random, len);
    network[0].put("file", &bytes);
    let mut ranges = vec![(0, 0), (0, len - 1), (len - 1, len - 1), (MIB - 1, MIB), (MIB, 2 * MIB - 1), (3, len + 5)];
    for _ in 0..8 {
        let first = random.random_range(0..len);
        ranges.push((first, random.random_range(first..len + 1000)));
    }
    for (first, last) in ranges {
        let expected = &bytes[first..(last + 1).min(len)];
        let range = format!("{first}-{last}");
        network[0].reads(&["get", "file", "--range", &range, "-o", "-"], expected);
        network[0].ok(&["get", "file", "--range", &range, "-o", &network.file("output")]);
        crate::node::assert_same(&fs::read(network.path("output")).unwrap(), expected, &range);
    }
    network[0].fails(2, &["get", "file", "--range", "9-1"]);
    let short = &bytes[..5000];
    network[0].put("short", short);
    fs::write(network.path("output"), &bytes[..MIB]).unwrap();
    for (first, last) in [(0, 0), (0, 4999), (31, 4096), (4999, 4999), (4000, 5003)] {
        let (expected, range) = (&short[first..(last + 1).min(5000)], format!("{first}-{last}"));
        network[0].reads(&["get", "short", "--range", &range, "-o", "-"], expected);
        network[0].ok(&["get", "short", "--range", &range, "-o", &network.file("output")]);
        crate::node::assert_same(&fs::read(network.path("output")).unwrap(), expected, &range);
    }
    network[0].fails(2, &["get", "short", "--range", "5000-5000"]);
}

#[test]
fn the_same_content_is_stored_once_unless_told_otherwise() {
    let mut random = random();
    let network = Network::one();
    let node = &network[0];
    let path = network.file("input");
    let len = 3 * MIB;
    fs::write(&path, noise(&mut random, len)).unwrap();
    let first = node.json(&["put", &path, "--name", "one"]);
    let second = node.json(&["put", &path, "--name", "two"]);
    let apart = node.json(&["put", &path, "--name", "three", "--no-dedup"]);
    let new = |put: &serde_json::Value| put["bytes_new"].as_u64().unwrap();
    assert!(new(&first) >= len as u64);
    assert_eq!((new(&second), &second["content"]), (0, &first["content"]));
    assert!(new(&apart) >= len as u64 && apart["content"] != first["content"], "{apart}");
    assert_eq!(node.cat("two"), node.cat("three"));
    node.fails(1, &["put", &path, "--name", "one", "--no-clobber"]);
}

fn make_tree(tree: &Path, random: &mut impl rand::Rng) {
    fs::create_dir_all(tree.join("a/b c")).unwrap();
    for number in 0..20 {
        let len = random.random_range(0..100 * KIB);
        let path = tree.join(format!("a/b c/{number}"));
        fs::write(&path, noise(random, len)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode([0o644, 0o600, 0o755, 0o444][number % 4])).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000 + number as u64, 123_456_789);
        fs::File::open(&path).unwrap().set_modified(time).unwrap();
    }
    symlink("a/b c/1", tree.join("link")).unwrap();
    symlink("/nowhere/at all", tree.join("a/dangling")).unwrap();
}

/// A path; mode and mtime of what is no link; its bytes or where it leads.
type Listed = (String, Option<(u32, i64, i64)>, Vec<u8>);

/// All that is below.
fn listing(dir: &Path) -> Vec<Listed> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if metadata.is_dir() {
            found.extend(listing(&path).into_iter().map(|(below, of, bytes)| (format!("{name}/{below}"), of, bytes)));
        } else if metadata.is_symlink() {
            found.push((name, None, fs::read_link(&path).unwrap().to_str().unwrap().into()));
        } else {
            let of = (metadata.mode(), metadata.mtime(), metadata.mtime_nsec());
            found.push((name, Some(of), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_tree_comes_back_on_another_node_with_links_modes_and_times() {
    let mut random = random();
    let network = Network::start(2, 2, 0);
    let (tree, copy) = (network.path("tree"), network.path("copy"));
    make_tree(&tree, &mut random);
    network[0].ok(&["put", "-r", tree.to_str().unwrap(), "--name", "backup/t"]);
    network[1].ok(&["get", "-r", "backup/t", "-o", copy.to_str().unwrap()]);
    assert!(listing(&tree) == listing(&copy), "{}", text(&network[1].ok(&["ls", "backup/"]).stdout));
    // Past what the reader holds itself, too.
    let remote = network.path("remote");
    let received = || network[1].count("payload_bytes_received");
    let before = received();
    network[1].ok(&["get", "-r", "backup/t", "--remote", "-o", remote.to_str().unwrap()]);
    assert!(listing(&tree) == listing(&remote));
    let len: usize = listing(&tree).iter().filter(|(_, of, _)| of.is_some()).map(|(.., bytes)| bytes.len()).sum();
    assert!(received() - before >= len as u64, "{} of {len} bytes came from elsewhere", received() - before);
    network[1].ok(&["rm", "-r", "backup/t"]);
    assert!(network[0].ok(&["ls", "backup/"]).stdout.is_empty());
    network[0].fails(4, &["get", "-r", "backup/t", "-o", &network.file("never")]);
}

#[test]
fn a_tree_that_only_the_reader_holds_does_not_come_from_elsewhere() {
    let mut random = random();
    let network = Network::one();
    let tree = network.path("tree");
    make_small_files(&tree, &mut random);
    fs::remove_file(tree.join(OsStr::from_bytes(b"not \xff utf-8"))).unwrap();
    network[0].ok(&["put", "-r", tree.to_str().unwrap(), "--name", "t"]);
    let output = network[0].run(&["get", "-r", "t", "--remote", "-o", &network.file("remote")]);
    // Empty files and the link are in their names.
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let complaints = text(&output.stderr);
    assert!(complaints.contains("main/t/deep/001: ") && complaints.contains("leave --remote out"), "{complaints}");
    assert!(!network.path("remote").join("deep/001").exists());
    network[0].ok(&["get", "-r", "t", "-o", &network.file("remote")]);
    assert!(listing(&tree) == listing(&network.path("remote")));
}

/// Many small files of every length that matters, some of the same content, and one that cannot be put.
fn make_small_files(tree: &Path, random: &mut impl rand::Rng) {
    const LENGTHS: [usize; 9] = [0, 1, 31, 32, 4096, 20_000, 65_468, 65_469, 70_000];
    fs::create_dir_all(tree.join("deep")).unwrap();
    for number in 0..300 {
        let bytes = if number % 10 == 9 { vec![7; 4096] } else { noise(random, LENGTHS[number % LENGTHS.len()]) };
        fs::write(tree.join(format!("deep/{number:03}")), bytes).unwrap();
    }
    let _ = fs::remove_file(tree.join("link"));
    symlink("deep/001", tree.join("link")).unwrap();
    fs::write(tree.join(OsStr::from_bytes(b"not \xff utf-8")), b"x").unwrap();
}

#[test]
fn p1_small_files_put_together_outlive_a_kill_and_each_has_its_own_fate() {
    let mut random = random();
    for members in [1, 3] {
        let mut network = Network::start(members, members, 0);
        let (tree, copy) = (network.path("tree"), network.path("copy"));
        let put = |network: &Network, name: &str| {
            let output = network[0].run(&["put", "-r", tree.to_str().unwrap(), "--name", name]);
            assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
            text(&output.stdout)
        };
        make_small_files(&tree, &mut random);
        assert!(put(&network, "small/t").contains("301 files"), "of {members}");
        // Every file anew: each put replaces one.
        make_small_files(&tree, &mut random);
        assert!(put(&network, "small/t").ends_with("1 failed\n"));
        network.nodes.iter_mut().for_each(crate::node::Node::kill);
        network.nodes.iter_mut().for_each(crate::node::Node::start);
        network.wait_ready();
        let last = &network[members - 1];
        last.ok(&["get", "-r", "small/t", "-o", copy.to_str().unwrap()]);
        let mut expected = listing(&tree);
        expected.retain(|(name, ..)| !name.starts_with("not "));
        assert!(expected == listing(&copy), "of {members} members");
        assert_eq!(text(&last.ok(&["ls", "small/"]).stdout).lines().count(), 301);
        // What is there already is refused file by file; what is new goes in.
        fs::write(tree.join("deep/new"), b"new").unwrap();
        let output = network[0].run(&["put", "-r", tree.to_str().unwrap(), "--name", "small/t", "--no-clobber"]);
        assert_eq!(output.status.code(), Some(3));
        assert!(text(&output.stdout).contains(": 1 files"), "{}", text(&output.stdout));
        last.holds("small/t/deep/new", b"new");
    }
}

#[test]
fn ctrl_c_ends_a_put_with_130_and_names_nothing() {
    let mut random = random();
    let network = Network::one();
    let node = &network[0];
    let mut put = node
        .command(&["put", "-", "--name", "half", "--progress", "never"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than pipe and buffers hold: the node reads it. It waits for more when the signal comes.
    let mut stdin = put.stdin.take().unwrap();
    stdin.write_all(&noise(&mut random, 24 * MIB)).unwrap();
    signal("INT", put.id());
    let output = finish(put, Duration::from_secs(10));
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    node.fails(4, &["stat", "half"]);
    drop(stdin);
    node.put("half", b"another try");
    node.holds("half", b"another try");
}

#[test]
fn what_an_interrupted_put_says_of_its_name_is_true() {
    let mut random = random();
    let network = Network::one();
    let (node, path) = (&network[0], network.path("short"));
    let (mut interrupted, mut rounds) = (0, 0);
    // On a machine on which every put is over before its signal comes, some more.
    while rounds < 60 || interrupted == 0 && rounds < 600 {
        let round = rounds;
        rounds += 1;
        let name = format!("short/{round}");
        fs::write(&path, noise(&mut random, KIB)).unwrap();
        let put = node
            .command(&["put", path.to_str().unwrap(), "--name", &name, "--progress", "never"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(moment(&mut random, Duration::from_millis(20)));
        signal("INT", put.id());
        // So early that it does not listen yet, the signal just ends it.
        let output = put.wait_with_output().unwrap();
        let error = text(&output.stderr);
        let stored = || node.run(&["stat", &name]).status.code();
        match output.status.code() {
            Some(0) => assert_eq!(stored(), Some(0)),
            Some(130) if error.contains("is not stored") => assert_eq!(stored(), Some(4), "{error}"),
            Some(130) => {
                assert!(error.contains(&format!("may or may not be stored: see gabion stat {name}")), "{error}")
            }
            None => assert_eq!(output.status.signal(), Some(2), "{error}"),
            code => panic!("{code:?}: {error}"),
        }
        interrupted += u32::from(output.status.code() == Some(130));
    }
    println!("{interrupted} of {rounds} were interrupted in the middle");
    assert!(interrupted > 0, "none of {rounds} puts was interrupted: nothing was tried");
}

#[test]
fn ctrl_c_ends_a_get_with_130_and_the_node_serves_on() {
    let mut random = random();
    let network = Network::one();
    let node = &network[0];
    let bytes = noise(&mut random, 24 * MIB);
    node.put("file", &bytes);
    // Nobody reads the fifo to its end: the get is stuck in it.
    let fifo = network.file("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let reader = fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let get = node
        .command(&["get", "file", "-o", &fifo])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut begun = [0; 1024];
    std::io::Read::read_exact(&mut &reader, &mut begun).unwrap();
    assert_eq!(begun, bytes[..1024]);
    signal("INT", get.id());
    let output = finish(get, Duration::from_secs(10));
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    drop(reader);
    node.holds("file", &bytes);
}

#[test]
fn a_small_get_waits_for_no_stream_that_stands_still() {
    let random = &mut random();
    let mut network = Network::one();
    let node = &mut network[0];
    node.stop();
    node.add_options(&["--threads", "1"]);
    node.start();
    let small = noise(random, 5000);
    node.put("small", &small);
    node.put("big", &noise(random, 4 * MIB));
    // All the buffers that streams may have are in the hands of those that nobody reads any further.
    let streams = (0..STREAM_BUFFERS_PER_SHARD).map(|_| {
        let mut stream = node.command(&["cat", "big"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut first = [0];
        stream.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        stream
    });
    let mut streams: Vec<Child> = streams.collect();
    node.holds("small", &small);
    node.reads(&["get", "small", "--range", "17-4016", "-o", "-"], &small[17..4017]);
    for stream in &mut streams {
        stream.kill().unwrap();
        stream.wait().unwrap();
    }
}

#[test]
fn a_node_that_stops_says_so_to_a_get_that_is_on_its_way() {
    let mut random = random();
    let mut network = Network::one();
    let bytes = noise(&mut random, 24 * MIB);
    network[0].put("file", &bytes);
    let mut get = network[0].command(&["cat", "file"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Nobody reads the pipe to its end while the node runs.
    let mut stdout = get.stdout.take().unwrap();
    let mut begun = [0; 1024];
    std::io::Read::read_exact(&mut stdout, &mut begun).unwrap();
    network[0].stop();
    let output = finish(get, Duration::from_secs(10));
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("the node is stopping: start it again"), "{error}");
}

#[test]
fn who_waits_to_be_accepted_by_a_node_that_stops_is_told() {
    let mut network = Network::one();
    let connect = |node: &Node| (0..9).map(|_| Client::connect(&node.dir).unwrap()).collect::<Vec<_>>();
    for mut client in network[0].stop_suspended(connect) {
        match client.next_event() {
            Err(ClientError::Failed { code: _, message }) => assert!(message.contains("the node is stopping")),
            other => panic!("{other:?}"),
        }
    }
}

/// Once for the whole tree, and not for each of its files.
#[test]
fn a_node_that_stops_ends_a_put_of_a_tree_which_says_so_once() {
    let mut network = Network::one();
    let tree = network.path("tree");
    fs::create_dir(&tree).unwrap();
    const FILES: usize = 5000;
    for number in 0..FILES {
        fs::write(tree.join(number.to_string()), number.to_string()).unwrap();
    }
    let mut put = network[0].command(&["put", "-r", tree.to_str().unwrap()]);
    let mut put = put.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Nobody reads the lines to their end while the node runs: more of them than the pipe holds.
    let mut stdout = put.stdout.take().unwrap();
    std::io::Read::read_exact(&mut stdout, &mut [0]).unwrap();
    network[0].stop();
    let drained = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()).unwrap());
    let output = finish(put, Duration::from_secs(30));
    drained.join().unwrap();
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(5), 1), "{error}");
    assert!(error.contains("no gabion node is running") && error.contains("files were put before"), "{error}");
    network[0].start();
    network[0].ok(&["put", "-r", tree.to_str().unwrap()]);
    assert_eq!(network[0].count("names"), FILES as u64);
}

/// A pipe that takes no further byte, and what its ends are called in `/proc`.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter, std::path::PathBuf) {
    let (reader, writer) = std::io::pipe().unwrap();
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut filling = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    while filling.write(&[0; 4096]).is_ok() {}
    (reader, writer, fs::read_link(path).unwrap())
}

#[test]
fn a_small_get_into_a_full_pipe_ends_with_its_client_and_with_its_node() {
    let mut network = Network::one();
    let bytes = noise(&mut random(), 5000);
    network[0].put("small", &bytes);
    let (_reader, writer, name) = full_pipe();
    let stuck = |node: &Node| {
        let held = || fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().flatten().map(|fd| fd.path());
        let count = || held().filter(|fd| fs::read_link(fd).is_ok_and(|link| link == name)).count();
        let before = count();
        let get = node.command(&["cat", "small"]).stdout(writer.try_clone().unwrap()).stderr(Stdio::piped()).spawn();
        eventually("the node has the pipe", || count() > before);
        get.unwrap()
    };
    let get = stuck(&network[0]);
    signal("INT", get.id());
    assert_eq!(finish(get, Duration::from_secs(10)).status.code(), Some(130));
    network[0].holds("small", &bytes);
    let get = stuck(&network[0]);
    network[0].stop();
    let output = finish(get, Duration::from_secs(10));
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("the node is stopping: start it again"), "{error}");
}

#[test]
fn a_get_into_a_file_that_is_cut_off_leaves_no_output_and_goes_on_later() {
    let mut random = random();
    let mut network = Network::one();
    let bytes = noise(&mut random, 200 * MIB);
    let path = network.path("input");
    fs::write(&path, &bytes).unwrap();
    network[0].ok(&["put", path.to_str().unwrap(), "--name", "file"]);
    let output = network.path("output");
    let get = network[0]
        .command(&["get", "file", "-o", output.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let part = || {
        let names = fs::read_dir(network.scratch.path()).unwrap().map(|entry| entry.unwrap());
        names.into_iter().find(|entry| entry.file_name().to_string_lossy().ends_with(".gabion-part"))
    };
    // As soon as some of it has arrived the node is killed; a machine that is faster than that has won.
    let begins_well = |part: fs::DirEntry| {
        let mut first = vec![0; MIB];
        let read = fs::File::open(part.path()).and_then(|part| part.read_exact_at(&mut first, 0));
        read.is_ok() && bytes.starts_with(&first)
    };
    eventually("some of it arrives", || output.exists() || part().is_some_and(begins_well));
    signal("KILL", network[0].pid());
    let ended = finish(get, Duration::from_secs(20));
    let was_cut = ended.status.code() != Some(0);
    if was_cut {
        assert_eq!(ended.status.code(), Some(5), "{}", text(&ended.stderr));
        assert!(!output.exists(), "half a file appeared");
        assert!(part().is_some(), "what arrived was not kept");
    }
    network[0].kill();
    network[0].start();
    network[0].wait_ready(1);
    let again = network[0].json(&["get", "file", "-o", output.to_str().unwrap()]);
    crate::node::assert_same(&fs::read(&output).unwrap(), &bytes, "the file");
    assert!(!was_cut || again["bytes_resumed"].as_u64().unwrap() > 0, "{again}");
}

/// A put from standard input that has read this much and waits for more.
fn begun_put(node: &Node, name: &str, bytes: &[u8]) -> (Child, std::process::ChildStdin) {
    let mut put = node
        .command(&["put", "-", "--name", name, "--progress", "never"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = put.stdin.take().unwrap();
    stdin.write_all(bytes).unwrap();
    (put, stdin)
}

#[test]
fn a_node_that_stops_ends_well_and_so_does_a_put_that_is_on_its_way() {
    let mut random = random();
    let mut network = Network::one();
    let (put, stdin) = begun_put(&network[0], "half", &noise(&mut random, 24 * MIB));
    network[0].stop();
    let output = finish(put, Duration::from_secs(10));
    drop(stdin);
    let error = text(&output.stderr);
    assert!(matches!(output.status.code(), Some(1 | 5)), "{:?}: {error}", output.status);
    assert_eq!(error.lines().count(), 1, "{error}");
    network[0].start();
    network[0].wait_ready(1);
    network[0].fails(4, &["stat", "half"]);
}

#[test]
fn a_file_that_changes_while_it_is_put_is_refused_and_names_nothing() {
    let mut random = random();
    let network = Network::one();
    let node = &network[0];
    let path = network.path("changing");
    fs::write(&path, noise(&mut random, 64 * MIB)).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let mut put = node
        .command(&["put", path.to_str().unwrap(), "--name", "changing", "--progress", "never"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // As long as it is, and other bytes, until the put has ended.
    let mut changes = 0_u64;
    while put.try_wait().unwrap().is_none() {
        file.write_all_at(&changes.to_le_bytes(), random.random_range(0..64 * MIB as u64 - 8)).unwrap();
        changes += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = finish(put, Duration::from_secs(1));
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "after {changes} changes: {error}");
    assert!(error.contains("changed while it was read") && error.lines().count() == 1, "{error}");
    node.fails(4, &["stat", "changing"]);
    // Nobody writes to it any more.
    node.ok(&["put", path.to_str().unwrap(), "--name", "changing"]);
    node.holds("changing", &fs::read(&path).unwrap());
}

#[test]
fn a_put_that_was_cut_off_and_is_started_again_sends_only_what_is_missing() {
    let mut random = random();
    let network = Network::one();
    let node = &network[0];
    let bytes = noise(&mut random, 64 * MIB);
    let (mut put, stdin) = begun_put(node, "resumed", &bytes[..48 * MIB]);
    eventually("some of it is stored", || node.count("chunks") >= 8);
    // The command, not the node.
    put.kill().unwrap();
    put.wait().unwrap();
    drop(stdin);
    node.fails(4, &["stat", "resumed"]);
    let output = feed(&mut node.command(&["put", "-", "--name", "resumed", "--json"]), &bytes);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let stored: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(stored["bytes"], bytes.len());
    let new = stored["bytes_new"].as_u64().unwrap();
    assert!(new >= 16 * MIB as u64 && new < bytes.len() as u64, "{stored}");
    node.holds("resumed", &bytes);
}

/// A node that [`Node`] does not know of, ended with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn without_a_data_directory_node_and_commands_use_the_one_below_xdg_data_home() {
    let scratch = tempfile::tempdir().unwrap();
    let (home, data_home) = (scratch.path().join("home"), scratch.path().join("data home"));
    fs::create_dir(&home).unwrap();
    let gabion = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gabion"));
        command.env_clear().env("HOME", &home).env("XDG_DATA_HOME", &data_home).args(arguments);
        command
    };
    let log = fs::File::create(scratch.path().join("log")).unwrap();
    let mut node = gabion(&["--listen", "127.0.0.1:0"]);
    let node = Ended(node.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    eventually("an answer", || run(&mut gabion(&["status"])).status.code() == Some(0));
    let output = feed(&mut gabion(&["put", "-", "--name", "file"]), b"hello");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(run(&mut gabion(&["cat", "file"])).stdout, b"hello");
    assert!(data_home.join("gabion/format").exists());
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0, "something is below HOME");
    drop(node);
    assert_eq!(run(&mut gabion(&["cat", "file"])).status.code(), Some(5));
}
