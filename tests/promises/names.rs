//! P3 and P4: what is read after a write, and what becomes of what was removed.

use std::thread;

use crate::node::{KIB, MIB, Network, disk_bytes, eventually, noise, random, text};

/// Puts, overwrites and removes in turns on one member, and reads on the others at once.
fn read_your_writes(network: &Network, living: &[usize], prefix: &str) {
    let mut random = random();
    for round in 0..6 {
        let name = format!("names/{prefix}-{round}");
        let turn = |step: usize| &network[living[(round + step) % living.len()]];
        for step in 0..3 {
            let bytes = noise(&mut random, [0, 31, 70 * KIB][(round + step) % 3]);
            turn(step).put(&name, &bytes);
            living.iter().for_each(|other| network[*other].holds(&name, &bytes));
        }
        turn(3).ok(&["rm", &name]);
        for other in living {
            network[*other].fails(4, &["cat", &name]);
            assert!(!text(&network[*other].ok(&["ls", "names/"]).stdout).contains(&name));
        }
        let again = noise(&mut random, KIB);
        turn(4).put(&name, &again);
        living.iter().for_each(|other| network[*other].holds(&name, &again));
    }
}

#[test]
fn p3_every_member_reads_what_another_wrote_even_with_a_minority_of_owners_killed() {
    let mut network = Network::start(3, 3, 0);
    read_your_writes(&network, &[0, 1, 2], "all");
    network[1].put("stale", b"before the kill");
    network[2].kill();
    read_your_writes(&network, &[0, 1], "two");
    network[0].put("stale", b"after the kill");
    network[1].ok(&["rm", "names/all-0"]);
    // Who comes back knows nothing of that, and must not answer from what it knows.
    network[2].start();
    network[2].wait_for("the others", |status| status["nodes_alive"] == 3);
    network[2].holds("stale", b"after the kill");
    network[2].fails(4, &["cat", "names/all-0"]);
    // The founder is gone: names go on.
    network[0].kill();
    read_your_writes(&network, &[1, 2], "without the founder");
}

#[test]
fn p3_concurrent_puts_of_one_name_leave_one_winner_whole() {
    let mut random = random();
    let network = Network::start(3, 3, 0);
    for round in 0..5 {
        let name = format!("race/{round}");
        let contents: Vec<Vec<u8>> = (0..6).map(|_| noise(&mut random, 100 * KIB)).collect();
        thread::scope(|scope| {
            for (at, bytes) in contents.iter().enumerate() {
                let (node, name) = (&network[at % 3], &name);
                scope.spawn(move || node.put(name, bytes));
            }
        });
        let winner = network[0].cat(&name);
        assert!(contents.contains(&winner), "{} bytes that nobody put", winner.len());
        for node in &network.nodes {
            node.holds(&name, &winner);
            assert_eq!(text(&node.ok(&["ls", "race/"]).stdout).lines().count(), round + 1);
        }
    }
}

/// Puts each of these under one name at once, on the nodes in turns, none over another; the codes they ended with.
fn puts_of_the_first(network: &Network, name: &str, contents: &[Vec<u8>]) -> Vec<i32> {
    thread::scope(|scope| {
        let puts: Vec<_> = contents
            .iter()
            .enumerate()
            .map(|(at, bytes)| {
                let (node, path) = (&network[at % network.nodes.len()], network.path(&format!("{at}.input")));
                std::fs::write(&path, bytes).unwrap();
                let arguments = ["put", path.to_str().unwrap(), "--name", name, "--no-clobber"].map(str::to_owned);
                scope.spawn(move || {
                    let output = node.run(&arguments.each_ref().map(String::as_str));
                    let (code, error) = (output.status.code().unwrap(), text(&output.stderr));
                    assert!(code == 0 || code == 1 && error.contains("--no-clobber"), "{code}: {error}");
                    code
                })
            })
            .collect();
        puts.into_iter().map(|put| put.join().unwrap()).collect()
    })
}

fn one_put_is_the_first(network: &Network, bytes: usize, rounds: usize, at_once: usize) {
    let mut random = random();
    let mut won = Vec::new();
    for round in 0..rounds {
        let name = format!("first/{round}");
        let contents: Vec<Vec<u8>> = (0..at_once).map(|_| noise(&mut random, bytes)).collect();
        let codes = puts_of_the_first(network, &name, &contents);
        let winners: Vec<&Vec<u8>> =
            contents.iter().zip(&codes).filter(|(_, code)| **code == 0).map(|(bytes, _)| bytes).collect();
        assert!(winners.len() <= 1, "{codes:?}: several were told that they are the first");
        won.extend(winners.first().map(|winner| (name, (*winner).clone())));
    }
    assert!(won.len() * 2 > rounds, "{} of {rounds} had a winner", won.len());
    // Whoever lost has left nothing that comes out later, and nobody has declared the winner dead.
    for node in &network.nodes {
        node.ok(&["reclaim"]);
        won.iter().for_each(|(name, winner)| node.holds(name, winner));
    }
}

#[test]
fn p4_of_concurrent_puts_with_no_clobber_one_at_most_is_stored_and_stays() {
    let alone = Network::one();
    one_put_is_the_first(&alone, 300 * KIB, 6, 2);
    let three = Network::start(3, 3, 0);
    one_put_is_the_first(&three, 300 * KIB, 6, 3);
    three[0].put("removed", b"old");
    three[1].ok(&["rm", "removed"]);
    assert_eq!(puts_of_the_first(&three, "removed", &[b"new".to_vec()]), [0]);
    assert_eq!(puts_of_the_first(&three, "removed", &[b"newer".to_vec()]), [1]);
}

#[test]
fn p4_of_concurrent_puts_of_one_name_only_the_winner_keeps_space() {
    let mut random = random();
    let network = Network::start(3, 3, 0);
    for round in 0..3 {
        let name = format!("race/{round}");
        let contents: Vec<Vec<u8>> = (0..12).map(|_| noise(&mut random, 10 * KIB)).collect();
        thread::scope(|scope| {
            for (at, bytes) in contents.iter().enumerate() {
                let (node, name) = (&network[at % 3], &name);
                scope.spawn(move || node.put(name, bytes));
            }
        });
    }
    for node in &network.nodes {
        eventually("the versions that lost are dead", || {
            node.ok(&["reclaim"]);
            (node.count("versions"), node.count("chunks")) == (3, 3)
        });
    }
}

#[test]
fn p4_what_is_removed_together_is_declared_dead_together() {
    let mut network = Network::start(3, 3, 0);
    for number in 0..20 {
        network[0].put(&format!("tree/dir/{number}"), format!("file {number}").as_bytes());
    }
    network[0].put("tree/other", b"stays");
    network[2].kill();
    let output = network[0].ok(&["rm", "-r", "tree/dir"]);
    assert_eq!(text(&output.stdout).lines().count(), 20);
    assert_eq!(network[0].count("deaths_pending"), 1);
    network[2].start();
    network.wait_ready();
    for node in &network.nodes {
        eventually("what was removed is gone", || {
            node.ok(&["reclaim"]);
            (node.count("versions"), node.count("chunks")) == (1, 1)
        });
        node.holds("tree/other", b"stays");
    }
    eventually("the death is confirmed by all", || network[0].count("deaths_pending") == 0);
}

#[test]
fn p4_removed_space_comes_back_and_shared_chunks_stay() {
    let mut random = random();
    let network = Network::one();
    let node = &network[0];
    let (shared, own) = (noise(&mut random, 20 * MIB), noise(&mut random, 60 * MIB));
    let both = [&shared[..], &own].concat();
    node.put("small", &shared);
    let before = (node.count("chunks"), disk_bytes(&node.dir));
    node.put("both", &both);
    let with_both = disk_bytes(&node.dir);
    // The shared ones are there once: 60 more leaves and a root.
    assert_eq!(node.count("chunks"), before.0 + 61);
    node.put("link", &shared);
    assert_eq!(node.count("chunks"), before.0 + 61);
    node.ok(&["rm", "small"]);
    node.ok(&["reclaim"]);
    node.holds("both", &both);
    node.holds("link", &shared);
    node.ok(&["rm", "both"]);
    let reclaimed = node.json(&["reclaim"]);
    assert!(reclaimed["bytes"].as_u64().unwrap() >= 59 * MIB as u64, "{reclaimed}");
    node.holds("link", &shared);
    assert_eq!(node.count("chunks"), before.0);
    let left = disk_bytes(&node.dir);
    assert!(left + 50 * MIB as u64 <= with_both, "{with_both} bytes became {left}");
    node.ok(&["rm", "link"]);
    node.ok(&["reclaim"]);
    assert_eq!((node.count("chunks"), node.count("names")), (0, 0));
    // A segment that is open keeps the room that it was given.
    eventually("an empty store takes little", || disk_bytes(&node.dir) < 72 * MIB as u64);
    node.ok(&["verify"]);
}

#[test]
fn p4_an_overwrite_frees_the_old_version_on_all_nodes() {
    let mut random = random();
    let network = Network::start(3, 3, 0);
    let (old, new) = (noise(&mut random, 5 * MIB), noise(&mut random, 3 * MIB));
    network[0].put("file", &old);
    eventually("all have the old version", || network.nodes.iter().all(|node| node.count("chunks") == 6));
    network[1].put("file", &new);
    for node in &network.nodes {
        eventually("the old version is gone and the new one there", || {
            node.ok(&["reclaim"]);
            (node.count("chunks"), node.count("versions")) == (4, 1)
        });
        node.holds("file", &new);
    }
    assert_eq!(network[1].count("deaths_pending"), 0);
}

#[test]
fn p4_a_death_reaches_a_node_that_was_down_when_it_was_signed() {
    let mut random = random();
    let mut network = Network::start(3, 3, 0);
    let (dead, alive) = (noise(&mut random, 3 * MIB), noise(&mut random, 2 * MIB));
    network[0].put("dead", &dead);
    network[0].put("alive", &alive);
    eventually("the third has all copies", || network[2].count("chunks") == 7);
    network[2].kill();
    network[0].ok(&["rm", "dead"]);
    assert_eq!(network[0].count("deaths_pending"), 1);
    // Not even the signer's end makes it forget whom it owes the death.
    network[0].kill();
    network[0].start();
    network[2].start();
    network.wait_ready();
    eventually("the death is confirmed", || network[0].count("deaths_pending") == 0);
    for node in &network.nodes {
        eventually("the dead version's chunks are gone", || {
            node.ok(&["reclaim"]);
            node.count("chunks") == 3
        });
        node.holds("alive", &alive);
        node.fails(4, &["cat", "dead"]);
    }
}
