//! The command line against a node in memory: exit codes, outputs, what is left on the disk.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // of a test: a panic is its way to fail

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Stdio;

use gabion::format::name::Metadata;
use support::{FakeNode, code, command, scratch, stderr, stdout};

#[test]
fn without_a_node_every_command_exits_5_and_says_how_to_start_one() {
    let (_guard, dir) = scratch();
    let file = dir.join("f");
    fs::write(&file, b"x").unwrap();
    let file = file.to_str().unwrap();
    for arguments in [
        &["status"][..],
        &["put", file],
        &["put", "-r", dir.to_str().unwrap()],
        &["get", "a", "-o", "/tmp/never"],
        &["ls"],
        &["rm", "a"],
        &["verify"],
        &["ticket"],
        &["key", "export"],
    ] {
        let output = command(&dir, arguments).output().unwrap();
        let expected = format!(
            "gabion: no gabion node is running on {0}: start one with gabion --listen 0.0.0.0:3000 --data-dir {0}\n",
            dir.display()
        );
        assert_eq!((code(&output), stderr(&output)), (5, expected), "{arguments:?}");
    }
}

#[test]
fn a_wrong_command_line_exits_2_with_one_line() {
    let (_guard, dir) = scratch();
    for arguments in [
        &["put"][..],
        &["frobnicate"],
        &["--listen", "nowhere"],
        &["--zone", "a"],
        &["get", "a", "--range", "9-1"],
        &["--listen", "127.0.0.1:0", "status"],
        &["put", "-"],
        &["get", "UPPER/a"],
        &["get", "gc1abc"],
        &["--json"],
        &["put", dir.to_str().unwrap()],
    ] {
        let output = command(&dir, arguments).output().unwrap();
        let text = stderr(&output);
        assert_eq!(code(&output), 2, "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn errors_are_json_when_asked_for() {
    let (_guard, dir) = scratch();
    for (arguments, expected) in [(&["put", "--json"][..], 2), (&["status", "--json"], 5)] {
        let output = command(&dir, arguments).output().unwrap();
        let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!((code(&output), error["code"].as_i64()), (expected, Some(i64::from(expected))));
        assert!(error["error"].as_str().is_some_and(|text| !text.is_empty()));
    }
}

#[test]
fn help_and_version_go_to_stdout_and_exit_0() {
    let (_guard, dir) = scratch();
    for arguments in [&[][..], &["--help"], &["put", "--help"], &["--version"]] {
        let output = command(&dir, arguments).output().unwrap();
        assert_eq!(code(&output), 0, "{arguments:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn damaged_tickets_and_links_exit_7() {
    let (_guard, dir) = scratch();
    let node = FakeNode::start();
    fs::write(dir.join("ticket"), "gt1damaged\n").unwrap();
    let from_file = format!("@{}", dir.join("ticket").display());
    for ticket in ["gt1damaged", "nonsense", &from_file] {
        let output = command(&dir, &["--listen", "127.0.0.1:0", "--join", ticket]).output().unwrap();
        assert_eq!((code(&output), stderr(&output).lines().count()), (7, 1), "{ticket}: {}", stderr(&output));
    }
    let output = command(&dir, &["--listen", "127.0.0.1:0"]).env("GABION_TICKET", "gt1damaged").output().unwrap();
    assert_eq!(code(&output), 7);
    assert!(stderr(&output).contains("GABION_TICKET"), "{}", stderr(&output));
    assert_eq!(code(&node.run(&["get", "gl1damaged", "-o", "/dev/null"])), 7);
}

#[test]
fn a_file_comes_back_with_bytes_mode_and_mtime() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    let (path, copy) = (dir.join("film.mkv"), dir.join("copy"));
    fs::write(&path, vec![7; 100_000]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let output = node.run(&["put", path.to_str().unwrap()]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    let text = stdout(&output);
    assert!(text.starts_with("main/film.mkv  gc1") && text.ends_with("  100000 bytes  100000 new\n"), "{text}");
    let output = node.run(&["get", "film.mkv", "-o", copy.to_str().unwrap()]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    assert_eq!(fs::read(&copy).unwrap(), fs::read(&path).unwrap());
    let (old, new) = (fs::metadata(&path).unwrap(), fs::metadata(&copy).unwrap());
    assert_eq!((old.mode(), old.mtime(), old.mtime_nsec()), (new.mode(), new.mtime(), new.mtime_nsec()));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "no part is left");
}

#[test]
fn the_content_id_alone_is_printed_when_quiet_and_can_be_read() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    fs::write(dir.join("f"), b"hello").unwrap();
    let output = node.run(&["put", "-q", dir.join("f").to_str().unwrap()]);
    let id = stdout(&output).trim().to_owned();
    let output = node.run(&["cat", &id]);
    assert_eq!((code(&output), output.stdout.as_slice()), (0, &b"hello"[..]));
    let output = node.command(&["get", &id]).current_dir(&dir).output().unwrap();
    assert_eq!(code(&output), 0);
    assert_eq!(fs::read(dir.join(&id)).unwrap(), b"hello");
}

#[test]
fn standard_input_is_stored_and_ranges_are_read() {
    let node = FakeNode::start();
    let mut child = node
        .command(&["put", "-", "--name", "pipes/x", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"0123456789").unwrap();
    let output = child.wait_with_output().unwrap();
    let stored: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((stored["name"].as_str(), stored["bytes"].as_u64()), (Some("pipes/x"), Some(10)));
    for (range, expected) in [("0-0", "0"), ("3-5", "345"), ("8-", "89"), ("5-99", "56789"), ("20-30", "")] {
        assert_eq!(stdout(&node.run(&["get", "pipes/x", "--range", range, "-o", "-"])), expected, "{range}");
        assert_eq!(stdout(&node.run(&["cat", "pipes/x", "--range", range])), expected, "{range}");
    }
}

#[test]
fn standard_input_that_was_read_in_part_is_stored_from_where_it_stands() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    fs::write(dir.join("f"), b"first line\nthe rest\n").unwrap();
    let mut file = fs::File::open(dir.join("f")).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(11)).unwrap();
    let output = node.command(&["put", "-", "--name", "rest"]).stdin(file).output().unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(node.stored("main", "rest").unwrap().bytes, b"the rest\n");
}

#[test]
fn a_damaged_file_never_replaces_a_whole_one_and_what_arrived_is_resumed() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    let path = dir.join("f");
    fs::write(&path, b"the old one").unwrap();
    node.put("main", "f", b"the new one, longer");
    node.memory.lock().unwrap().damaged_after = Some(7);
    let output = node.run(&["get", "f", "-o", path.to_str().unwrap()]);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert_eq!(fs::read(&path).unwrap(), b"the old one");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "the part is kept");
    node.memory.lock().unwrap().damaged_after = None;
    assert_eq!(code(&node.run(&["get", "f", "-o", path.to_str().unwrap()])), 0);
    assert!(node.memory.lock().unwrap().resumed);
    assert_eq!(fs::read(&path).unwrap(), b"the new one, longer");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}

#[test]
fn a_missing_name_exits_4_and_leaves_nothing() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    let output = node.run(&["get", "nothing", "-o", dir.join("f").to_str().unwrap()]);
    assert_eq!((code(&output), stderr(&output).lines().count()), (4, 1));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    for arguments in [&["stat", "nothing"][..], &["rm", "nothing"], &["rm", "-r", "nothing"], &["cat", "nothing"]] {
        assert_eq!(code(&node.run(arguments)), 4, "{arguments:?}");
    }
}

#[test]
fn rm_removes_nothing_when_one_of_the_names_is_none() {
    let node = FakeNode::start();
    node.put("main", "a", b"kept");
    for arguments in [&["rm", "a", "BAD/"][..], &["rm", "-r", "a", "BAD/"], &["rm", "BAD/b", "a"]] {
        let output = node.run(arguments);
        assert_eq!((code(&output), stdout(&output).as_str()), (2, ""), "{arguments:?}: {}", stderr(&output));
        assert!(node.stored("main", "a").is_some(), "{arguments:?} has removed something");
    }
    assert_eq!(code(&node.run(&["rm", "a"])), 0);
}

#[test]
fn unreadable_and_missing_files_are_named() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    let output = node.run(&["put", dir.join("missing").to_str().unwrap()]);
    assert_eq!(code(&output), 4);
    assert!(stderr(&output).contains("missing"), "{}", stderr(&output));
}

#[test]
fn errors_of_the_node_keep_their_exit_codes() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    fs::write(dir.join("f"), b"x").unwrap();
    let path = dir.join("f");
    let path = path.to_str().unwrap();
    assert_eq!(code(&node.run(&["put", path])), 0);
    assert_eq!(code(&node.run(&["put", path, "--no-clobber"])), 1);
    assert_eq!(code(&node.run(&["status"])), 0);
    assert_eq!(code(&node.run(&["verify"])), 0);
    let mut memory = node.memory.lock().unwrap();
    (memory.no_space, memory.degraded, memory.left_damaged) = (true, true, 2);
    drop(memory);
    assert_eq!(code(&node.run(&["put", path])), 8);
    let output = node.run(&["status"]);
    assert_eq!(code(&output), 3);
    assert!(stdout(&output).contains("1 of 3 nodes is silent"));
    assert_eq!(code(&node.run(&["verify"])), 6);
}

#[test]
fn a_tree_comes_back_with_its_links() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    for number in 0..50 {
        fs::write(tree.join(format!("a/b/{number}")), format!("file {number}")).unwrap();
    }
    symlink("a/b/1", tree.join("link")).unwrap();
    symlink("/nowhere/at all", tree.join("a/dangling")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    let output = node.run(&["put", "-r", tree.to_str().unwrap(), "--name", "backup/t"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stderr(&output).contains("socket"), "{}", stderr(&output));
    assert!(stdout(&output).contains("backup/t: 52 files"), "{}", stdout(&output));
    drop(socket);
    assert_eq!(node.stored("backup", "t/link").unwrap().metadata.symlink_target, Some(b"a/b/1".to_vec()));
    let copy = dir.join("copy");
    let output = node.run(&["get", "-r", "backup/t", "-o", copy.to_str().unwrap()]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    for number in 0..50 {
        assert_eq!(fs::read_to_string(copy.join(format!("a/b/{number}"))).unwrap(), format!("file {number}"));
    }
    assert_eq!(fs::read_link(copy.join("link")).unwrap().to_str(), Some("a/b/1"));
    assert_eq!(fs::read_link(copy.join("a/dangling")).unwrap().to_str(), Some("/nowhere/at all"));
    assert_eq!(code(&node.run(&["rm", "-r", "backup/t"])), 0);
    assert!(node.memory.lock().unwrap().names.is_empty());
}

#[test]
fn each_small_file_of_a_tree_is_stored_or_refused_by_itself() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    for number in 0..10 {
        fs::write(tree.join(number.to_string()), format!("file {number}")).unwrap();
    }
    // Longer than what is sent with others: it goes as a descriptor, and to the same place.
    fs::write(tree.join("long"), vec![1; 100_000]).unwrap();
    let path = tree.to_str().unwrap();
    assert_eq!(code(&node.run(&["put", "-r", path, "--name", "b/t"])), 0);
    assert_eq!(node.stored("b", "t/long").unwrap().bytes.len(), 100_000);
    fs::write(tree.join("new"), b"new").unwrap();
    let output = node.run(&["put", "-r", path, "--name", "b/t", "--no-clobber"]);
    assert_eq!(code(&output), 3);
    assert!(stdout(&output).contains("b/t: 1 files  3 bytes  3 new  11 failed"), "{}", stdout(&output));
    assert_eq!(stderr(&output).lines().count(), 11, "{}", stderr(&output));
    assert!(stderr(&output).contains(&format!("{path}/7: it exists already")), "{}", stderr(&output));
    assert_eq!(node.stored("b", "t/new").unwrap().bytes, b"new");
}

#[test]
fn files_of_a_tree_that_fill_many_requests_are_each_stored_once() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    let contents = |number: usize| vec![number as u8; 60_000 + number];
    // More than all workers' requests hold together, and between them what goes by itself.
    for number in 0..300 {
        fs::write(tree.join(number.to_string()), contents(number)).unwrap();
    }
    for number in 0..20 {
        fs::write(tree.join(format!("long {number}")), vec![7; 70_000]).unwrap();
    }
    let output = node.run(&["put", "-r", tree.to_str().unwrap(), "--name", "b/t"]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    assert!(stdout(&output).contains("b/t: 320 files"), "{}", stdout(&output));
    let lines = stdout(&output).lines().map(str::to_owned).collect::<std::collections::HashSet<_>>();
    assert_eq!((lines.len(), stdout(&output).lines().count()), (321, 321), "a line for each, and one for all");
    for number in 0..300 {
        assert_eq!(node.stored("b", &format!("t/{number}")).unwrap().bytes, contents(number));
    }
    assert_eq!(node.stored("b", "t/long 19").unwrap().bytes, vec![7; 70_000]);
}

#[test]
fn each_small_file_of_a_tree_is_fetched_or_refused_by_itself() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    for number in 0..100 {
        node.put("b", &format!("t/{number:03}"), format!("file {number}").as_bytes());
    }
    node.put("b", "t/empty", b"");
    node.put("b", "t/long", &[1; 100_000]);
    let mut memory = node.memory.lock().unwrap();
    (memory.damaged, memory.grown) = (vec!["t/007".to_owned()], vec!["t/008".to_owned()]);
    let kept = Metadata { mtime_s: 77, mtime_ns: 5, mode: 0o100_640, ..Metadata::default() };
    memory.names.get_mut(&("b".to_owned(), "t/009".to_owned())).unwrap().metadata = kept;
    drop(memory);
    let into = dir.join("into");
    // Something in the way of one, an older file in the place of another.
    fs::create_dir_all(into.join("010")).unwrap();
    fs::write(into.join("011"), vec![2; 5000]).unwrap();
    let output = node.run(&["get", "-r", "b/t", "-o", into.to_str().unwrap()]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert!(stderr(&output).contains("b/t/007: chunk gc1x is damaged"), "{}", stderr(&output));
    assert!(stderr(&output).contains("010 is a directory; move it away"), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 2, "{}", stderr(&output));
    assert!(stdout(&output).contains("100 files"), "{}", stdout(&output));
    assert_eq!(stdout(&output).lines().count(), 101, "a line for each, and one for all");
    assert!(!into.join("007").exists() && into.join("010").is_dir());
    for number in (0..100).filter(|number| ![7, 10].contains(number)) {
        assert_eq!(fs::read_to_string(into.join(format!("{number:03}"))).unwrap(), format!("file {number}"));
    }
    assert_eq!(fs::read(into.join("long")).unwrap().len(), 100_000);
    assert_eq!(fs::read(into.join("empty")).unwrap().len(), 0);
    let found = fs::metadata(into.join("009")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.mtime(), found.mtime_nsec()), (0o640, 77, 5));
    // Nothing is left beside them.
    assert_eq!(fs::read_dir(&into).unwrap().count(), 101);
}

#[test]
fn no_key_writes_outside_of_the_directory_it_is_read_into() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    let outside = dir.join("outside");
    fs::create_dir(&outside).unwrap();
    let into = dir.join("into");
    for key in ["t/../../outside/a", "t//a", "t/./b", "t/x/../c"] {
        node.put("main", key, b"escaped");
    }
    node.put("main", "t/good", b"good");
    // A link of the tree, and a file that would go through it.
    node.put_symlink("main", "t/way", "../outside");
    node.put("main", "t/way/through", b"escaped");
    let output = node.run(&["get", "-r", "t", "-o", into.to_str().unwrap()]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::read(into.join("good")).unwrap(), b"good");
    // Again, into a directory where the link stands already.
    fs::remove_dir_all(&into).unwrap();
    fs::create_dir(&into).unwrap();
    symlink(&outside, into.join("way")).unwrap();
    assert_eq!(code(&node.run(&["get", "-r", "t", "-o", into.to_str().unwrap()])), 3);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
}

#[test]
fn a_tree_that_is_not_there_leaves_no_directory() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    node.put("main", "file", b"one");
    let content = format!("gc1{}", "a".repeat(60));
    for (expected, target) in [(4, "nothere"), (4, "file"), (2, "@link"), (2, "-"), (2, &content), (2, "gl1abc")] {
        let output = node.command(&["get", "-r", target]).current_dir(&dir).output().unwrap();
        assert_eq!(code(&output), expected, "{target}: {}", stderr(&output));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "{target} left something behind");
    }
}

#[test]
fn a_symbolic_link_is_made_by_get_and_explained_by_cat() {
    let node = FakeNode::start();
    let (_guard, dir) = scratch();
    node.put_symlink("main", "l", "target");
    let path = dir.join("l");
    assert_eq!(code(&node.run(&["get", "l", "-o", path.to_str().unwrap()])), 0);
    assert_eq!(fs::read_link(&path).unwrap().to_str(), Some("target"));
    let output = node.run(&["cat", "l"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("symbolic link to target"), "{}", stderr(&output));
}

#[test]
fn long_listings_come_page_by_page() {
    let node = FakeNode::start();
    for number in 0..2500 {
        node.put("main", &format!("k{number:04}"), b"");
    }
    node.put("other", "x", b"");
    let text = stdout(&node.run(&["ls"]));
    assert_eq!(text.lines().count(), 2500);
    assert!(text.lines().is_sorted());
    assert_eq!(stdout(&node.run(&["ls", "k00"])).lines().count(), 100);
    assert_eq!(stdout(&node.run(&["ls", "--all", "--limit", "1500"])).lines().count(), 1500);
    assert_eq!(stdout(&node.run(&["ls", "--all"])).lines().count(), 2501);
    let output = node.run(&["ls", "other/", "--json"]);
    let entry: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((entry["bucket"].as_str(), entry["key"].as_str()), (Some("other"), Some("x")));
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let node = FakeNode::start();
    for number in 0..3000 {
        node.put("main", &format!("a long enough name {number:04}"), b"");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = node.command(&["ls"]).stdout(writer).output().unwrap();
    assert_eq!((code(&output), stderr(&output)), (1, String::new()));
}

#[test]
fn control_characters_of_a_name_do_not_reach_the_terminal() {
    let node = FakeNode::start();
    node.put("main", "a\u{1b}[31mb\nc", b"");
    assert!(!stdout(&node.run(&["ls"])).contains('\u{1b}'));
    assert_eq!(stdout(&node.run(&["ls"])).lines().count(), 1);
}
