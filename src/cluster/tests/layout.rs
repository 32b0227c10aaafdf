use super::{certificate, entry, layout, node, role};
use crate::cluster::layout::{ActiveLayout, LayoutRefused, Layouts, Owners};
use crate::format::certificate::{Class, LayoutEntry, RoleState};
use crate::format::{Address, BucketId};

fn three(number: u32) -> ActiveLayout {
    ActiveLayout::from_checked(layout(number, 3, (0..3).map(|node| entry(node, Class::Member, "")).collect()))
}

#[test]
fn quorums_of_each_size_meet() {
    for count in 1..=7u16 {
        let owners: Owners = (0..count).map(node).collect();
        let (write, read) = (owners.write_quorum(), owners.read_quorum());
        assert!(write + read > owners.len(), "{count}: a read meets every write");
        assert!(2 * write > owners.len(), "{count}: two writes meet");
        assert!(write <= owners.len() && read >= 1 && read <= owners.len());
    }
    let pair: Owners = (0..2).map(node).collect();
    assert_eq!((pair.write_quorum(), pair.read_quorum()), (2, 1), "of two nodes both must write");
    assert_eq!(Owners::NONE.write_quorum(), 1, "nobody can never be enough");
}

#[test]
fn names_are_owned_by_members_alone_and_chunks_by_all() {
    let mut entries: Vec<LayoutEntry> = (0..2).map(|node| entry(node, Class::Member, "")).collect();
    entries.extend((2..8).map(|node| entry(node, Class::Storage, "")));
    let active = ActiveLayout::from_checked(layout(1, 3, entries));
    let mut storage_owns = false;
    for first in 0..=255 {
        let owners = active.name_owners(&BucketId([first; 32]));
        assert_eq!(owners.len(), 2);
        assert!(owners.iter().all(|owner| [node(0), node(1)].contains(owner)));
        let owners = active.chunk_owners(&Address([first; 32]));
        assert_eq!(owners.len(), 3);
        storage_owns |= owners.iter().any(|owner| !([node(0), node(1)].contains(owner)));
    }
    assert!(storage_owns);
}

#[test]
fn draining_and_gone_nodes_own_nothing() {
    let mut entries: Vec<LayoutEntry> = (0..5).map(|node| entry(node, Class::Member, "")).collect();
    entries[1].role.state = RoleState::Draining;
    entries[2].role.state = RoleState::Left;
    let active = ActiveLayout::from_checked(layout(1, 3, entries));
    for first in 0..=255 {
        let owners = active.chunk_owners(&Address([first; 32]));
        assert!(!owners.contains(&node(1)) && !owners.contains(&node(2)) && owners.len() == 3);
    }
    assert_eq!(active.nodes().len(), 5, "they are still known");
}

#[test]
fn certificate_limits_the_capacity_that_a_role_offers() {
    let mut limited = entry(0, Class::Storage, "");
    limited.certificate.capacity_limit = 7;
    let active = ActiveLayout::from_checked(layout(1, 1, vec![limited]));
    assert_eq!(active.node(&node(0)).expect("in the layout").capacity_bytes, 7);
}

#[test]
fn next_layout_counts_on_and_stays_sorted() {
    let mut active = three(4);
    for number in 3..20 {
        let joined = LayoutEntry { certificate: certificate(number, Class::Member, "z"), role: role(number, 1, &[]) };
        let next = active.next_with(joined);
        assert_eq!(next.number, active.number() + 1);
        assert!(next.entries.is_sorted_by(|one, next| one.role.node < next.role.node));
        active = ActiveLayout::from_checked(next);
    }
    let replaced =
        active.next_with(LayoutEntry { certificate: certificate(0, Class::Member, ""), role: role(0, 9, &[]) });
    assert_eq!(replaced.entries.len(), 20);
    let without = active.next_without(&[node(0), node(7)]);
    assert_eq!(without.entries.len(), 18);
    assert!(without.entries.iter().all(|entry| entry.role.node != node(7)));
}

#[test]
fn older_layout_is_refused_and_at_most_two_are_active() {
    let mut layouts = Layouts::new();
    layouts.adopt(three(2)).expect("the first");
    assert_eq!(layouts.adopt(three(2)), Err(LayoutRefused::Old { number: 2, newest: 2 }));
    assert_eq!(layouts.begin(three(1)), Err(LayoutRefused::Old { number: 1, newest: 2 }));
    layouts.begin(three(3)).expect("beside the first");
    assert_eq!(layouts.numbers(), [2, 3]);
    assert_eq!(layouts.begin(three(4)), Err(LayoutRefused::TooManyActive { number: 4, oldest: 2 }));
    layouts.retire_before(3);
    assert_eq!(layouts.numbers(), [3]);
    layouts.retire_before(9);
    assert_eq!(layouts.numbers(), [3], "the newest always stays");
    layouts.remember(three(1));
    assert_eq!(layouts.earlier().iter().map(|layout| layout.number()).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn change_asks_for_a_quorum_in_both_layouts_and_reads_fall_back() {
    let mut layouts = Layouts::new();
    layouts.adopt(three(1)).expect("the first");
    let second = layout(2, 3, (3..6).map(|node| entry(node, Class::Member, "")).collect());
    layouts.begin(ActiveLayout::from_checked(second)).expect("the second");
    let address = Address([7; 32]);
    let quorums = layouts.chunk_quorums(&address);
    assert_eq!(quorums.iter().map(|quorum| quorum.layout).collect::<Vec<_>>(), [1, 2]);
    assert!(layouts.chunk_owners(&address).contains(&node(4)));
    let mut before = layouts.chunk_owners_before(&address);
    before.sort();
    let mut expected = vec![node(0), node(1), node(2)];
    expected.sort();
    assert_eq!(before, expected);
    layouts.retire_before(2);
    assert_eq!(layouts.chunk_owners_before(&address).len(), 3, "still asked when they are earlier ones");
}
