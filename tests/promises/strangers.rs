//! P5 and P6: storage nodes stay blind, and strangers get not one byte.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use gabion::crypto::keyfile::KeyRing;
use gabion::crypto::keys::VaultKey;
use rand::RngExt;

use crate::node::{MIB, Network, Node, noise, positions, random};

const CONTENT: &[u8] = b"CANARY-content-that-no-storage-node-may-see ";
const NAME: &str = "CANARY-name-that-no-storage-node-may-see";

/// The files below a directory that hold one of these.
fn holders(dir: &Path, wanted: &[&[u8]]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(holders(&entry.path(), wanted));
        } else if entry.file_type().unwrap().is_file() {
            let bytes = fs::read(entry.path()).unwrap();
            if wanted.iter().any(|wanted| positions(&bytes, wanted).next().is_some()) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

/// Whether the private memory of a process holds one of these. None where that may not be read.
fn remembers(pid: u32, wanted: &[&[u8]]) -> Option<bool> {
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        let mut bytes = vec![0; (to - from).min(256 * MIB as u64) as usize];
        let Ok(count) = memory.read_at(&mut bytes, from) else { continue };
        if wanted.iter().any(|wanted| positions(&bytes[..count], wanted).next().is_some()) {
            return Some(true);
        }
    }
    Some(false)
}

fn blind_memory(node: &Node, wanted: &[&[u8]]) {
    match remembers(node.pid(), wanted) {
        Some(found) => assert!(!found, "a canary is in the memory of the storage node"),
        None => println!("its memory may not be read here: only its disk is searched"),
    }
}

#[test]
fn p5_a_storage_node_keeps_what_it_can_neither_read_nor_name() {
    let mut network = Network::start(1, 2, 1);
    let (long, tiny) = (CONTENT.repeat(3 * MIB / CONTENT.len()), CONTENT.repeat(2));
    let (name, tiny_name) = (format!("secrets/{NAME}"), format!("secrets/tiny-{NAME}"));
    network[0].put_id(&name, &long);
    network[0].put(&tiny_name, &tiny);
    crate::node::eventually("the storage node has both", || network[1].count("chunks") >= 5);
    let link = network.path("link");
    fs::write(&link, network[0].ok(&["share", &name]).stdout).unwrap();
    let link = format!("@{}", link.display());
    let wanted: [&[u8]; 3] = [CONTENT, NAME.as_bytes(), b"secrets"];
    blind_memory(&network[1], &wanted[..2]);
    // Names are not for it (from here on it has heard one, of the command that asks), links are.
    let never = network.file("never");
    let error = network[1].fails(7, &["get", &name, "-o", &never]);
    assert!(error.contains("storage node"), "{error}");
    network[1].fails(7, &["ls", "secrets/"]);
    network[1].fails(7, &["rm", &name]);
    network[1].fails(7, &["share", &name]);
    network[1].fails(7, &["put", &network.file("link"), "--name", "x"]);
    assert!(!network.path("never").exists());
    network[1].reads(&["cat", &link], &long);
    network[1].reads(&["cat", &link, "--range", "1000000-1000099"], &long[1_000_000..1_000_100]);
    network[1].ok(&["get", &link, "-o", &never]);
    assert!(fs::read(&never).unwrap() == long);
    network[1].fails(2, &["cat", &link, "--range", "4000000-4000009"]);
    blind_memory(&network[1], &[CONTENT]);
    network[1].stop();
    assert_eq!(holders(&network[1].dir, &wanted), [""; 0], "of the storage node");
    // What is searched for can be found: in the clear it stands here.
    assert_eq!(holders(network.scratch.path(), &wanted[..1]).len(), 2, "the input and the copy");
}

/// What the node sends back to these bytes before it hangs up or the time is over.
fn answer(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    // Who was cut off cannot write any more: as good.
    let _ = stream.write_all(bytes);
    let (mut found, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return found,
            Ok(count) => found.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return found,
        }
    }
}

/// An honest opening: what a node with a ticket says to whoever listens on this port.
fn honest_opening(listener: &TcpListener) -> Vec<u8> {
    let (mut stream, _) = listener.accept().unwrap();
    let mut opening = vec![0; 80];
    stream.read_exact(&mut opening).unwrap();
    opening
}

#[test]
fn p6_strangers_get_not_one_byte_back() {
    let mut random = random();
    let scratch = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().to_string();
    let mut node = Node::found(&scratch.path().join("a"), &["--replicas", "1", "--advertise", &here]);
    node.wait_ready(1);
    let joining = Node::join(&scratch.path().join("b"), &node.ticket(&["--member"]));
    let honest = honest_opening(&listener);
    drop(joining);
    let address = node.address();
    let silent = |what: &str, bytes: &[u8]| {
        let found = answer(&address, bytes);
        assert!(found.is_empty(), "{what}: {} bytes came back", found.len());
    };
    for len in [1, 16, 79, 80, 81, 5000] {
        silent("random bytes", &noise(&mut random, len));
    }
    let zeros = [&honest[..16], &[0; 64]].concat();
    silent("the right magic and key id, then zeros", &zeros);
    let wrong_key = [&honest[..16], &noise(&mut random, 64)[..]].concat();
    silent("the right magic and key id, made with a wrong key", &wrong_key);
    for _ in 0..4 {
        let mut flipped = honest.clone();
        let at = random.random_range(0..80);
        flipped[at] ^= 1 << random.random_range(0..8);
        silent(&format!("an honest opening with byte {at} wrong"), &flipped);
    }
    silent("half of an honest opening", &honest[..40]);
    // What this compares with: the opening itself is answered, once.
    assert!(!answer(&address, &honest).is_empty(), "an honest opening gets no answer");
    silent("a replayed opening", &honest);
    node.kill();
    node.start();
    silent("an opening replayed after a restart", &honest);
    node.put("file", b"still serves");
    node.holds("file", b"still serves");
}

#[test]
fn p6_a_ticket_of_another_network_admits_nobody() {
    let networks = [Network::one(), Network::one()];
    // The ticket of the second leads to the first.
    let mut ticket: gabion::format::ticket::Ticket = networks[1][0].ticket(&["--member"]).parse().unwrap();
    ticket.addresses = vec![networks[0][0].address()];
    let mut lost = Node::join(&networks[0].path("lost"), &ticket.to_string());
    crate::node::eventually("the node was knocked at", || {
        let log = networks[0][0].log();
        log.contains("refused") || log.contains("wrong network key") || log.contains("closed")
    });
    lost.wait_for("loneliness", |status| status["nodes_alive"] == 1 && status["state"] == "degraded");
    assert_eq!(networks[0][0].count("nodes_known"), 1);
    lost.fails(7, &["put", "/proc/self/cmdline", "--name", "x"]);
}

/// A node with a member ticket that nobody may be admitted by any more, knowing the network all the same.
fn come_too_late(network: &Network, name: &str, prepare: impl FnOnce(&Path, &str)) -> Node {
    let ticket = network[0].ticket(&["--member", "--expires", "1s"]);
    std::thread::sleep(Duration::from_millis(2100));
    let dir = network.path(name);
    prepare(&dir, &ticket);
    let mut node = Node::join(&dir, &ticket);
    node.wait_for("the layout", |status| status["layout"] == network[0].count("layout"));
    node
}

#[test]
fn p5_a_member_that_was_never_admitted_cannot_plant_the_vault_key() {
    let mut network = Network::start(2, 2, 0);
    network[0].put("file", b"sealed under the key of the network");
    let _planter = come_too_late(&network, "planter", |dir, ticket| {
        let mut keys = KeyRing::join(dir, &ticket.parse().unwrap(), "").unwrap();
        keys.store_vault_key(VaultKey::from_bytes([7; 32])).unwrap();
    });
    // A member that has no vault key meets it before it meets any other.
    network.nodes.iter_mut().for_each(Node::stop);
    let key = network[1].dir.join("keys/vault.key");
    fs::remove_file(&key).unwrap();
    network[1].start();
    network[1].wait_for("the planter", |status| status["nodes_alive"] == 2);
    for _ in 0..20 {
        let error = network[1].fails(7, &["put", "/proc/self/cmdline", "--name", "x"]);
        assert!(error.contains("has not received the vault key"), "{error}");
        assert!(!key.exists(), "a vault key was planted");
        std::thread::sleep(Duration::from_millis(50));
    }
    network[0].start();
    network[1].wait_for("the true key", |status| !status["reasons"].to_string().contains("vault key"));
    network[1].holds("file", b"sealed under the key of the network");
}

#[test]
fn p6_who_comes_with_an_expired_ticket_stays_out_of_every_address_book() {
    let mut network = Network::start(2, 2, 0);
    let late: Vec<Node> = ["late-0", "late-1"].iter().map(|name| come_too_late(&network, name, |_, _| {})).collect();
    // Others are admitted all the same, and hear of nobody else.
    let third = Node::join(&network.path("2"), &network[0].ticket(&["--member"]));
    network.nodes.push(third);
    network.nodes.iter_mut().for_each(|node| {
        node.wait_for("three nodes in the layout", |status| status["layout"] == 3);
    });
    drop(late);
    network.wait_ready();
    for node in &network.nodes {
        assert_eq!(node.count("nodes_known"), 3, "{}", node.log());
    }
}
