use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{node, quorum};
use crate::cluster::deaths::{DeathId, PendingDeaths, Superseded, may_sign};
use crate::format::{Stamp, VersionId};
use crate::limits::{DEATH_RETRY_MAX, DEATHS_PENDING_BYTES_MAX};

fn version(number: u8) -> VersionId {
    VersionId::new(1, 2, [number; 8])
}

#[test]
fn death_is_signed_only_knowing_a_later_clock_on_a_majority_of_every_layout() {
    let quorums = [quorum(1, &[0, 1, 2]), quorum(2, &[2, 3, 4])];
    let sign = |later: (Stamp, VersionId), holders: &[u16]| {
        let holders: Vec<_> = holders.iter().map(|number| node(*number)).collect();
        let known = Superseded { clock: Stamp::new(10, 0), version: version(1), later, holders: &holders };
        may_sign(&known, &quorums)
    };
    let later = (Stamp::new(11, 0), version(2));
    for holders in 0u8..32 {
        let numbers: Vec<u16> = (0..5).filter(|number| holders & (1 << number) != 0).collect();
        let old = numbers.iter().filter(|number| **number <= 2).count();
        let new = numbers.iter().filter(|number| **number >= 2).count();
        assert_eq!(sign(later, &numbers).is_some(), old >= 2 && new >= 2, "{numbers:?}");
    }
    let all = [0, 1, 2, 3, 4];
    assert_eq!(sign(later, &all), Some(version(1)));
    assert_eq!(sign((Stamp::new(9, 0), version(2)), &all), None, "the other record is the older one");
    assert_eq!(sign((Stamp::new(10, 0), version(0)), &all), None, "at one clock the smaller version loses");
    assert_eq!(sign((Stamp::new(11, 0), version(1)), &all), None, "a later record of the same version kills nothing");
    let known = Superseded { clock: Stamp::ZERO, version: version(1), later, holders: &[node(0)] };
    assert_eq!(may_sign(&known, &[]), None, "without a layout nobody knows anything");
}

/// Nodes that answer one time in five, one that comes hours late, one that joins in between: everybody gets to know.
#[test]
fn deaths_are_sent_again_until_every_node_has_confirmed() {
    let seed = 41;
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut pending = PendingDeaths::new();
    let mut now = Duration::ZERO;
    for death in 0..5u8 {
        pending.add(vec![death; 100], (0..6).map(node), now);
    }
    let mut confirmed: BTreeSet<_> = BTreeSet::new();
    let late = Duration::from_secs(3 * 3600);
    let mut joined = false;
    while !pending.is_empty() {
        now = pending.next_deadline().expect("something is pending").max(now);
        assert!(now < late * 2, "it must end");
        if !joined && now > Duration::from_secs(60) {
            joined = true;
            pending.on_joined(node(9), now);
        }
        for due in pending.next_to_send(now, 3) {
            assert!(!confirmed.contains(&(due.id, due.node)), "confirmed deaths are not sent again");
            let answers = if due.node == node(5) { now > late } else { rng.random_bool(0.2) };
            if answers {
                confirmed.insert((due.id, due.node));
                pending.on_confirm(due.node, due.id);
            }
        }
    }
    assert!(joined);
    assert_eq!(confirmed.len(), 5 * 7, "each of seven nodes confirmed each of five deaths");
}

#[test]
fn pauses_grow_up_to_a_minute_and_end_when_the_node_is_back() {
    let mut pending = PendingDeaths::new();
    let id = pending.add(vec![1], [node(0)], Duration::ZERO);
    let mut now = Duration::ZERO;
    for _ in 0..40 {
        assert_eq!(pending.next_to_send(now, 10).len(), 1);
        assert!(pending.next_to_send(now, 10).is_empty(), "sent once for each turn");
        let next = pending.next_deadline().expect("pending");
        assert!(next > now && next - now <= DEATH_RETRY_MAX);
        now = next;
    }
    pending.next_to_send(now, 10);
    pending.on_reachable(node(0), now);
    assert_eq!(pending.next_deadline(), Some(now));
    assert!(pending.on_confirm(node(0), id) && pending.is_empty());
    assert!(!pending.on_confirm(node(0), id), "a repeated confirmation changes nothing");
}

#[test]
fn node_that_left_for_good_is_waited_for_no_more() {
    let mut pending = PendingDeaths::new();
    let alone = pending.add(vec![1], [node(0)], Duration::ZERO);
    let shared = pending.add(vec![2], [node(0), node(1)], Duration::ZERO);
    assert_eq!(pending.on_left(node(0)), [alone]);
    assert_eq!(pending.waiting(&shared).collect::<Vec<_>>(), [node(1)]);
}

#[test]
fn pending_deaths_survive_on_disk() {
    let mut pending = PendingDeaths::new();
    let id = pending.add(vec![7; 300], (0..4).map(node), Duration::ZERO);
    pending.on_confirm(node(2), id);
    let document = pending.encode(&id).expect("pending");
    let mut restored = PendingDeaths::new();
    assert_eq!(restored.restore(&document, Duration::ZERO), Ok(id));
    assert_eq!(restored.waiting(&id).collect::<Vec<_>>(), pending.waiting(&id).collect::<Vec<_>>());
    assert_eq!(restored.next_to_send(Duration::ZERO, 1)[0].death, [7; 300].into());
    for cut in 0..document.len() {
        assert!(PendingDeaths::new().restore(&document[..cut], Duration::ZERO).is_err(), "cut at {cut}");
    }
}

#[test]
fn pending_deaths_are_bounded_before_a_name_is_written_and_what_was_signed_is_kept() {
    let mut pending = PendingDeaths::new();
    let death = |number: u32| [number.to_le_bytes().to_vec(), vec![0; 16_000]].concat();
    let mut count = 0;
    while pending.reserve(1).is_ok() {
        pending.add(death(count), [node(0)], Duration::ZERO);
        pending.release(1);
        count += 1;
    }
    assert_eq!(count as usize, DEATHS_PENDING_BYTES_MAX.div_ceil(16_004 + 64));
    pending.on_joined(node(1), Duration::ZERO);
    assert!(!pending.on_confirm(node(1), DeathId::of(&death(0))));
    let refused = pending.reserve(1).expect_err("it is full");
    assert_eq!((refused.pending, &refused.waiting_for), (count as usize, &vec![node(0), node(1)]));
    let text = refused.to_string();
    assert!(text.contains(&node(0).to_string()) && text.contains(&node(1).to_string()), "{text}");
    pending.on_left(node(1));
    // Whoever had room before, or signs without a predecessor known, is not refused: the name is written.
    pending.add(death(count), [node(0)], Duration::ZERO);
    assert_eq!(pending.add(death(0), [node(1)], Duration::ZERO), DeathId::of(&death(0)));
    let documents: Vec<_> = pending.ids().filter_map(|id| pending.encode(&id)).collect();
    let mut restored = PendingDeaths::new();
    for document in &documents {
        restored.restore(document, Duration::ZERO).expect("a restart forgets none");
    }
    assert_eq!(restored.len(), count as usize + 1);
    pending.on_left(node(0));
    assert_eq!(pending.len(), 1, "one still waits for another node");
    pending.on_left(node(1));
    assert_eq!(pending.reserve(1), Ok(()));
}

#[test]
fn room_that_is_reserved_is_taken() {
    let mut pending = PendingDeaths::new();
    let mut reserved = 0;
    while pending.reserve(1).is_ok() {
        reserved += 1;
        assert!(reserved < 1_000_000, "it is bounded");
    }
    assert!(!pending.has_room());
    pending.release(1);
    assert!(pending.has_room());
}

#[test]
fn of_two_versions_with_one_clock_the_lesser_may_be_declared_dead_and_not_the_greater() {
    let clock = Stamp::new(5, 0);
    let (less, greater) = (VersionId::new(1, 1, [1; 8]), VersionId::new(1, 1, [2; 8]));
    let holders = [node(1), node(2)];
    let quorums = [quorum(1, &[1, 2, 3])];
    let known = |version, later| Superseded { clock, version, later: (clock, later), holders: &holders };
    assert_eq!(may_sign(&known(less, greater), &quorums), Some(less));
    assert_eq!(may_sign(&known(greater, less), &quorums), None);
}
