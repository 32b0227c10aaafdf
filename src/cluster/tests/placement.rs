use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use proptest::prelude::*;

use super::{GIB, node};
use crate::cluster::placement::{Candidate, PlacementTable};
use crate::format::{NodeId, PlacementId};

fn candidate(number: u16, weight: u64, zone: &str) -> Candidate {
    let mut placement = [0; 16];
    placement.copy_from_slice(&node(number).0[16..]);
    Candidate { node: node(number), placement: PlacementId(placement), weight, zone: zone.into() }
}

fn each_in_its_zone(count: u16) -> Vec<Candidate> {
    (0..count).map(|number| candidate(number, 100 * GIB, &format!("z{number}"))).collect()
}

fn owner_ids(table: &PlacementTable, candidates: &[Candidate], partition: u16) -> Vec<NodeId> {
    table.owners(partition).iter().map(|index| candidates[usize::from(*index)].node).collect()
}

#[test]
fn partitions_follow_capacity() {
    let weights = [1u64, 2, 3, 4, 10];
    let candidates: Vec<Candidate> = weights
        .iter()
        .enumerate()
        .map(|(number, weight)| candidate(number as u16, weight * GIB, &format!("z{number}")))
        .collect();
    let table = PlacementTable::build(&candidates, 1);
    let mut owned = [0u32; 5];
    (0..=u16::MAX).for_each(|partition| owned[usize::from(table.owners(partition)[0])] += 1);
    for (owned, weight) in owned.iter().zip(weights) {
        let expected = 65_536.0 * weight as f64 / 20.0;
        // Six standard deviations of a binomial draw.
        let tolerance = 6.0 * (expected * (1.0 - weight as f64 / 20.0)).sqrt();
        assert!((f64::from(*owned) - expected).abs() < tolerance, "weight {weight}: {owned} instead of {expected}");
    }
}

#[test]
fn copies_of_equal_nodes_are_balanced() {
    let candidates = each_in_its_zone(20);
    let table = PlacementTable::build(&candidates, 3);
    let mut owned = [0u32; 20];
    for partition in 0..=u16::MAX {
        table.owners(partition).iter().for_each(|index| owned[usize::from(*index)] += 1);
    }
    let expected = 65_536 * 3 / 20;
    assert!(owned.iter().all(|owned| owned.abs_diff(expected) < expected / 15), "{owned:?}, expected {expected}");
}

#[test]
fn table_does_not_depend_on_the_order_of_candidates() {
    let candidates = each_in_its_zone(7);
    let mut turned = candidates.clone();
    turned.reverse();
    let (table, other) = (PlacementTable::build(&candidates, 3), PlacementTable::build(&turned, 3));
    for partition in 0..=u16::MAX {
        assert_eq!(owner_ids(&table, &candidates, partition), owner_ids(&other, &turned, partition));
    }
}

/// Every node of a network must compute the same table, whatever it runs on: these owners were computed once and stay.
#[test]
fn owners_are_the_same_on_every_platform() {
    let candidates: Vec<Candidate> =
        (0..9).map(|number| candidate(number, (u64::from(number) + 1) * GIB, &format!("z{}", number % 4))).collect();
    let table = PlacementTable::build(&candidates, 3);
    let mut hasher = blake3::Hasher::new();
    for partition in 0..=u16::MAX {
        table.owners(partition).iter().for_each(|index| {
            hasher.update(&index.to_le_bytes());
        });
    }
    assert_eq!(&hasher.finalize().to_hex()[..16], FROZEN_TABLE);
}

const FROZEN_TABLE: &str = "26a1e1528b329be2";

#[test]
fn one_owner_per_zone_while_zones_last() {
    let candidates: Vec<Candidate> =
        (0..12).map(|number| candidate(number, 100 * GIB, ["a", "b", "c", "d"][usize::from(number % 4)])).collect();
    let table = PlacementTable::build(&candidates, 3);
    for partition in 0..=u16::MAX {
        let zones: BTreeSet<&str> =
            table.owners(partition).iter().map(|index| candidates[usize::from(*index)].zone.as_str()).collect();
        assert_eq!(zones.len(), 3, "partition {partition}");
    }
}

#[test]
fn fewer_zones_than_replicas_still_give_all_replicas_on_different_nodes() {
    let candidates: Vec<Candidate> =
        (0..5).map(|number| candidate(number, 100 * GIB, if number == 0 { "a" } else { "b" })).collect();
    let table = PlacementTable::build(&candidates, 3);
    for partition in 0..=u16::MAX {
        let owners: BTreeSet<u16> = table.owners(partition).iter().copied().collect();
        assert_eq!(owners.len(), 3, "partition {partition}");
        assert!(owners.contains(&0), "zone a has one node only, which owns everything");
    }
}

#[test]
fn node_without_capacity_owns_nothing_unless_all_are_so() {
    let mut candidates = each_in_its_zone(4);
    candidates[2].weight = 0;
    let table = PlacementTable::build(&candidates, 3);
    assert!(
        (0..=u16::MAX).all(|partition| !table.owners(partition).contains(&2) && table.owners(partition).len() == 3)
    );
    candidates.iter_mut().for_each(|candidate| candidate.weight = 0);
    let table = PlacementTable::build(&candidates, 3);
    assert!((0..=u16::MAX).any(|partition| table.owners(partition).contains(&2)));
}

#[test]
fn no_candidates_no_owners() {
    let table = PlacementTable::build(&[], 3);
    assert!(table.owners(0).is_empty() && table.owners(u16::MAX).is_empty());
}

/// The bound of two seconds holds for a release build; `cargo test` is built with less optimization.
#[test]
fn table_of_a_thousand_nodes_is_built_in_seconds() {
    let started = Instant::now();
    let candidates: Vec<Candidate> =
        (0..1000).map(|number| candidate(number, 100 * GIB, &format!("z{}", number % 50))).collect();
    let table = PlacementTable::build(&candidates, 3);
    let took = started.elapsed();
    println!("1,000 nodes: {took:?}");
    assert_eq!(table.owners_per_partition(), 3);
    assert!(took.as_secs() < 20, "{took:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// A joining node takes partitions only to itself: no copy moves between two others.
    #[test]
    fn joining_node_moves_only_what_it_takes(
        weights in prop::collection::vec((1u64..1000, 0u8..6), 2..12),
        joining in (1u64..1000, 0u8..6),
        replicas in 1u8..=4,
    ) {
        let mut candidates: Vec<Candidate> = weights
            .iter()
            .enumerate()
            // A zone for each node: then nothing but the node itself can push others.
            .map(|(number, (weight, _))| candidate(number as u16, weight * GIB, &format!("z{number}")))
            .collect();
        let before = PlacementTable::build(&candidates, replicas);
        candidates.push(candidate(candidates.len() as u16, joining.0 * GIB, "joining"));
        let after = PlacementTable::build(&candidates, replicas);
        let new = (candidates.len() - 1) as u16;
        for partition in 0..=u16::MAX {
            let kept: Vec<u16> = after.owners(partition).iter().copied().filter(|owner| *owner != new).collect();
            prop_assert!(kept.iter().all(|owner| before.owners(partition).contains(owner)));
            let lost = before.owners(partition).iter().filter(|owner| !kept.contains(owner)).count();
            prop_assert!(lost <= 1, "one place at most changes hands");
        }
    }

    /// With shared zones too, a change touches few partitions: not more than the node's own share needs, twice over for
    /// owners that a zone rule pushes along.
    #[test]
    fn leaving_node_moves_about_its_share(zones in prop::collection::vec(0u8..5, 6..12), leaving in 0usize..6) {
        let candidates: Vec<Candidate> = zones
            .iter()
            .enumerate()
            .map(|(number, zone)| candidate(number as u16, 100 * GIB, &format!("z{zone}")))
            .collect();
        let before = PlacementTable::build(&candidates, 2);
        let mut rest = candidates.clone();
        let gone = rest.remove(leaving).node;
        let after = PlacementTable::build(&rest, 2);
        let mut owned: BTreeMap<bool, u32> = BTreeMap::new();
        let mut moved = 0u32;
        for partition in 0..=u16::MAX {
            let old = owner_ids(&before, &candidates, partition);
            let new = owner_ids(&after, &rest, partition);
            *owned.entry(old.contains(&gone)).or_default() += 1;
            moved += new.iter().filter(|owner| !old.contains(owner)).count() as u32;
        }
        prop_assert!(moved <= 2 * owned.get(&true).copied().unwrap_or(0), "{} moved, {:?} owned", moved, owned);
    }
}
