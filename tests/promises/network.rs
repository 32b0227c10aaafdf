//! Joining, and coming back: who knows whom, without any help after the first ticket.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use gabion::format::ticket::Ticket;

use crate::node::{KIB, MIB, Network, Node, eventually, noise, random, text};

/// A ticket of the founder that leads to another node.
fn ticket_to(founder: &Node, other: &Node) -> String {
    let mut ticket: Ticket = founder.ticket(&["--member"]).parse().unwrap();
    ticket.addresses = vec![other.address()];
    ticket.to_string()
}

#[test]
fn the_third_node_knows_only_the_second_and_meets_all() {
    let mut random = random();
    let mut network = Network::start(2, 3, 0);
    let ticket = ticket_to(&network[0], &network[1]);
    let third = Node::join(&network.path("2"), &ticket);
    network.nodes.push(third);
    network.wait_ready();
    let bytes = noise(&mut random, 5 * MIB + 1);
    network[2].put("from the third", &bytes);
    for node in &network.nodes {
        node.holds("from the third", &bytes);
        node.reads(&["cat", "from the third", "--remote"], &bytes);
    }
    // Without the one that it was led to.
    network[1].kill();
    network[2].put("without the second", &bytes);
    network[0].holds("without the second", &bytes);
}

#[test]
fn what_was_stored_before_they_joined_is_read_by_all_who_join() {
    let mut random = random();
    let mut network = Network::start(1, 3, 0);
    let bytes = noise(&mut random, 3 * MIB);
    network[0].put("early", &bytes);
    for number in 1..3 {
        let node = Node::join(&network.path(&number.to_string()), &network[0].ticket(&["--member"]));
        network.nodes.push(node);
        network.wait_ready();
        network.nodes.iter().for_each(|node| node.holds("early", &bytes));
    }
}

#[test]
fn p3_what_is_put_while_nodes_join_is_read_by_those_who_joined() {
    let mut random = random();
    let mut network = Network::start(1, 3, 0);
    let bytes = noise(&mut random, 300);
    let ticket = network[0].ticket(&["--member"]);
    let paths = [network.path("1"), network.path("2")];
    let (joined, acknowledged) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        for lane in 0..4 {
            let (founder, bytes, joined, acknowledged) = (&network.nodes[0], &bytes, &joined, &acknowledged);
            threads.spawn(move || {
                let mut number = 0;
                while !joined.load(Ordering::Relaxed) {
                    let name = format!("{lane}-{number}");
                    number += 1;
                    // While one joins, too few owners may be there for a moment: that is refused, not lost.
                    if founder.try_put(&name, bytes).0 == 0 {
                        acknowledged.lock().unwrap().push(name);
                    }
                }
            });
        }
        let mut nodes = paths.map(|path| Node::join(&path, &ticket));
        nodes.iter_mut().for_each(|node| node.wait_ready(3));
        joined.store(true, Ordering::Relaxed);
        nodes
    })
    .into_iter()
    .for_each(|node| network.nodes.push(node));
    let acknowledged = acknowledged.into_inner().unwrap();
    assert!(!acknowledged.is_empty(), "nothing was put at all");
    for name in &acknowledged {
        network.nodes.iter().for_each(|node| node.holds(name, &bytes));
    }
}

#[test]
fn p3_names_stay_while_many_join_at_once() {
    let mut random = random();
    let mut network = Network::start(1, 3, 0);
    let bytes = noise(&mut random, 300);
    // Many buckets: of some, owners come and go from layout to layout before they have brought in anything.
    let names: Vec<String> = (0..24).map(|number| format!("b{number}/file")).collect();
    names.iter().for_each(|name| network[0].put(name, &bytes));
    let ticket = network[0].ticket(&["--member"]);
    let joined = std::thread::scope(|threads| {
        let joining: Vec<_> = (1..7)
            .map(|number| {
                let (path, ticket) = (network.path(&number.to_string()), &ticket);
                threads.spawn(move || Node::join(&path, ticket))
            })
            .collect();
        joining.into_iter().map(|node| node.join().unwrap()).collect::<Vec<_>>()
    });
    network.nodes.extend(joined);
    // Not known yet may be said, and then it is known who has to be heard; absent may not.
    for name in &names {
        for node in &network.nodes {
            let output = node.run(&["cat", name]);
            assert_ne!(output.status.code(), Some(4), "{name}: {}", crate::node::text(&output.stderr));
        }
    }
    network.wait_ready();
    for name in &names {
        network.nodes.iter().for_each(|node| node.holds(name, &bytes));
    }
}

#[test]
fn restarted_nodes_find_each_other_without_any_ticket() {
    let mut random = random();
    let mut network = Network::start(3, 3, 1);
    let bytes = noise(&mut random, 2 * MIB);
    network[0].put("file", &bytes);
    network.nodes.iter_mut().for_each(Node::stop);
    network.nodes.iter_mut().rev().for_each(Node::start);
    network.wait_ready();
    network.nodes[..3].iter().for_each(|node| node.holds("file", &bytes));
    // One comes back elsewhere, while the founder is away: the others are told.
    network[1].stop();
    network[0].stop();
    network[1].start_elsewhere();
    network[2].wait_for("the one that moved", |status| status["nodes_alive"] == 3);
    network[2].put("moved", &bytes[..64 * KIB]);
    network[1].holds("moved", &bytes[..64 * KIB]);
    // The founder looks where it used to be, and is found by it.
    network[0].start();
    network.wait_ready();
    network[0].holds("moved", &bytes[..64 * KIB]);
}

#[test]
fn a_node_that_hangs_stops_nobody_and_has_all_when_it_goes_on() {
    let mut random = random();
    let mut network = Network::start(3, 3, 0);
    for number in 0..5 {
        network[0].put(&format!("before/{number}"), b"short");
    }
    let bytes = noise(&mut random, 96 * MIB);
    network[2].suspend();
    // Nobody knows yet; and what follows, while it counts as gone, is no slower.
    for round in 0..2 {
        network[0].put(&format!("long/{round}"), &bytes);
        for _ in 0..12 {
            assert_eq!(text(&network[0].ok(&["ls", "before/"]).stdout).lines().count(), 5);
            network[1].put("short", b"short");
        }
        network[0].wait_for("the silence", |status| status["nodes_alive"] == 2);
        network[1].wait_for("the silence", |status| status["nodes_alive"] == 2);
    }
    network[2].resume();
    network.wait_ready();
    network[2].holds("long/1", &bytes);
    assert_eq!(text(&network[2].ok(&["ls", "before/"]).stdout).lines().count(), 5);
}

/// Reads at the first node while another, which holds everything too, hangs and still counts as alive.
fn reads_move_on_from(hung: usize) {
    let mut random = random();
    let network = Network::start(3, 3, 0);
    let files: Vec<_> = (0..9).map(|number| (format!("files/{number}"), noise(&mut random, MIB))).collect();
    files.iter().for_each(|(name, bytes)| network[0].put(name, bytes));
    eventually("all have all chunks", || network.nodes.iter().all(|node| node.count("chunks") == 9));
    let remote = |(name, bytes): &(String, Vec<u8>)| network[0].reads(&["cat", name, "--remote"], bytes);
    let (warming, others) = files.split_first().unwrap();
    remote(warming);
    assert_eq!(network[0].count("nodes_alive"), 3);
    network[hung].suspend();
    for (number, file) in others.iter().enumerate() {
        remote(file);
        // Whoever waits for the dead instead of asking another waits for as long as it takes to see that they are.
        assert!(number > 0 || network[0].count("nodes_alive") == 3, "it was known to be gone before it was read past");
    }
}

#[test]
fn a_read_moves_on_from_a_node_that_hangs() {
    reads_move_on_from(1);
}

#[test]
fn a_read_moves_on_from_the_other_node_that_hangs() {
    reads_move_on_from(2);
}

#[test]
fn a_node_that_reached_nobody_with_its_ticket_finds_the_network_after_a_restart_without_it() {
    let mut network = Network::start(1, 2, 0);
    let ticket = network[0].ticket(&["--member"]);
    network[0].stop();
    let mut second = Node::join(&network.path("1"), &ticket);
    second.stop();
    second.start();
    network[0].start();
    network.nodes.push(second);
    network.wait_ready();
    network[0].put("file", b"found");
    network[1].holds("file", b"found");
    assert!(!network.path("1").join("bootstrap").exists(), "it knows a layout now");
}
