use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::{node, permutations, quorum};
use crate::cluster::names::{NameRead, NameReadStep, NameWrite, NameWriteStep};
use crate::format::name::NameRecord;
use crate::format::{BucketId, NameId, NodeId, Stamp, VaultId, VersionId};

fn record(name: u8, clock: u64) -> NameRecord {
    NameRecord {
        tombstone: false,
        vault: VaultId::ZERO,
        key_generation: 0,
        bucket: BucketId([1; 32]),
        name: NameId([name; 32]),
        clock: Stamp::new(clock, 0),
        version: VersionId::new(1, 1, [clock as u8; 8]),
        nonce: [0; 24],
        sealed: vec![0; 16],
    }
}

#[test]
fn write_picks_a_later_clock_than_any_of_a_quorum_in_every_schedule() {
    let clocks = [Some(Stamp::new(5, 0)), None, Some(Stamp::new(9, 0))];
    for order in permutations(&[0u16, 1, 2]) {
        for failing in 0..8u8 {
            let mut write = NameWrite::new(vec![quorum(1, &[0, 1, 2])]);
            let (mut step, mut seen, mut answered) = (NameWriteStep::Wait, Stamp::ZERO, 0);
            for number in &order {
                if !matches!(step, NameWriteStep::Wait) {
                    break;
                }
                if failing & (1 << number) != 0 {
                    step = write.on_fail(node(*number));
                } else {
                    answered += 1;
                    seen = seen.max(clocks[usize::from(*number)].unwrap_or(Stamp::ZERO));
                    step = write.on_clock(node(*number), clocks[usize::from(*number)]);
                }
            }
            if failing.count_ones() <= 1 {
                assert_eq!(step, NameWriteStep::PickClock { later_than: seen }, "{order:?} {failing:03b}");
                assert_eq!(answered, 2);
            } else {
                assert!(matches!(step, NameWriteStep::Failed { need: 2, .. }), "{order:?} {failing:03b}: {step:?}");
            }
        }
    }
}

#[test]
fn write_is_done_when_a_majority_holds_it_and_not_before() {
    for order in permutations(&[0u16, 1, 2]) {
        for failing in 0..8u8 {
            let mut write = NameWrite::new(vec![quorum(1, &[0, 1, 2])]);
            write.on_clock(node(0), None);
            assert_eq!(write.on_clock(node(1), None), NameWriteStep::PickClock { later_than: Stamp::ZERO });
            assert_eq!(write.owners().len(), 3);
            let mut step = write.picked();
            let mut acks = 0;
            for number in &order {
                let fails = failing & (1 << number) != 0;
                step = if fails { write.on_fail(node(*number)) } else { write.on_ack(node(*number)) };
                acks += usize::from(!fails);
                assert_eq!(matches!(step, NameWriteStep::Done), acks >= 2, "{order:?} {failing:03b}");
            }
            assert_eq!(matches!(step, NameWriteStep::Failed { .. }), failing.count_ones() >= 2);
            assert_eq!(write.holders().len(), acks);
        }
    }
}

#[test]
fn refusal_voids_everything_and_strangers_count_nothing() {
    let mut write = NameWrite::new(vec![quorum(1, &[0, 1, 2])]);
    write.on_clock(node(7), Some(Stamp::new(99, 0)));
    write.on_clock(node(0), None);
    assert_eq!(write.on_clock(node(0), None), NameWriteStep::Wait, "one node, one vote");
    write.on_clock(node(1), None);
    write.picked();
    write.on_ack(node(0));
    assert_eq!(write.on_refused(node(1)), NameWriteStep::Restart);
    assert_eq!(write.on_ack(node(2)), NameWriteStep::Restart);
}

#[test]
fn read_returns_the_newest_only_once_a_majority_holds_it() {
    let mut read = NameRead::new(vec![quorum(1, &[0, 1, 2])]);
    assert_eq!(read.on_answer(node(0), Some(record(1, 5))), NameReadStep::Wait);
    let NameReadStep::WriteBack { record: newest, mut to } = read.on_answer(node(1), Some(record(1, 6))) else {
        panic!("one of three holds the newest: it must be written back");
    };
    assert_eq!(newest, record(1, 6));
    to.sort();
    let mut expected = vec![node(0), node(2)];
    expected.sort();
    assert_eq!(to, expected);
    assert_eq!(read.on_fail(node(0)), NameReadStep::Wait);
    assert_eq!(read.on_ack(node(2)), NameReadStep::Done(Some(record(1, 6))));
}

#[test]
fn read_without_write_back_where_a_majority_agrees_or_nobody_knows() {
    let mut read = NameRead::new(vec![quorum(1, &[0, 1, 2])]);
    read.on_answer(node(0), Some(record(1, 5)));
    assert_eq!(read.on_answer(node(2), Some(record(1, 5))), NameReadStep::Done(Some(record(1, 5))));
    let mut read = NameRead::new(vec![quorum(1, &[0, 1, 2])]);
    read.on_fail(node(1));
    read.on_answer(node(0), None);
    assert_eq!(read.on_answer(node(2), None), NameReadStep::Done(None));
    let mut read = NameRead::new(vec![quorum(1, &[0, 1, 2])]);
    read.on_fail(node(1));
    assert_eq!(read.on_fail(node(2)), NameReadStep::Failed { have: 0, need: 2 });
}

#[test]
fn earlier_owners_add_knowledge_but_no_vote() {
    let mut read = NameRead::new(vec![quorum(2, &[0, 1, 2])]);
    assert_eq!(read.on_answer(node(9), Some(record(1, 8))), NameReadStep::Wait);
    assert_eq!(read.on_answer(node(0), None), NameReadStep::Wait);
    let NameReadStep::WriteBack { record: newest, to } = read.on_answer(node(1), Some(record(1, 7))) else {
        panic!("an earlier owner alone holds the newest");
    };
    assert_eq!((newest, to.len()), (record(1, 8), 3));
    read.on_ack(node(0));
    assert_eq!(read.on_ack(node(1)), NameReadStep::Done(Some(record(1, 8))));
}

/// Owners that keep the later of two records, as the real ones do; some may be away.
struct Owners {
    held: BTreeMap<NodeId, Option<NameRecord>>,
    away: Vec<NodeId>,
}

impl Owners {
    fn offer(&mut self, owner: NodeId, record: &NameRecord) -> bool {
        if self.away.contains(&owner) {
            return false;
        }
        let held = self.held.entry(owner).or_default();
        if held.as_ref().is_none_or(|held| record.wins_over(held)) {
            *held = Some(record.clone());
        }
        true
    }
}

/// Any mixture of whole and half-done writes and reads, with any one owner away at a time: what a read has returned, no later
/// read falls behind, and it never falls behind an acknowledged write.
#[test]
fn reads_never_go_backwards() {
    for seed in 0..500 {
        let mut rng = StdRng::seed_from_u64(seed);
        let ids: Vec<NodeId> = (0..3).map(node).collect();
        let mut owners = Owners { held: ids.iter().map(|id| (*id, None)).collect(), away: vec![] };
        let mut seen = Stamp::ZERO;
        let mut clock = 0;
        for _ in 0..30 {
            owners.away = if rng.random_bool(0.5) { vec![ids[rng.random_range(0..3)]] } else { vec![] };
            let mut order = ids.clone();
            order.shuffle(&mut rng);
            if rng.random_bool(0.5) {
                clock += 1;
                let acknowledged = write(&mut owners, &order, &record(1, clock), rng.random_range(0..=3));
                seen = if acknowledged { seen.max(Stamp::new(clock, 0)) } else { seen };
            } else if let Some(answer) = read(&mut owners, &order, rng.random_range(0..=3)) {
                let found = answer.map_or(Stamp::ZERO, |record| record.clock);
                assert!(found >= seen, "seed {seed}: {found:?} after {seen:?}");
                seen = found;
            }
        }
    }
}

/// Sends the record to the first `reach` owners only, as a writer that dies on the way. Whether it was acknowledged.
fn write(owners: &mut Owners, order: &[NodeId], record: &NameRecord, reach: usize) -> bool {
    let mut write = NameWrite::new(vec![quorum(1, &[0, 1, 2])]);
    for owner in order {
        if owners.away.contains(owner) {
            write.on_fail(*owner);
        } else {
            write.on_clock(*owner, owners.held[owner].as_ref().map(|held| held.clock));
        }
    }
    let mut step = write.picked();
    for owner in order.iter().take(reach) {
        step = if owners.offer(*owner, record) { write.on_ack(*owner) } else { write.on_fail(*owner) };
    }
    step == NameWriteStep::Done
}

/// `None`: gave up (the reader died after `reach` write-backs).
fn read(owners: &mut Owners, order: &[NodeId], reach: usize) -> Option<Option<NameRecord>> {
    let mut read = NameRead::new(vec![quorum(1, &[0, 1, 2])]);
    let mut step = NameReadStep::Wait;
    for owner in order {
        step = match step {
            NameReadStep::Wait if owners.away.contains(owner) => read.on_fail(*owner),
            NameReadStep::Wait => read.on_answer(*owner, owners.held[owner].clone()),
            concluded => concluded,
        };
    }
    if let NameReadStep::WriteBack { record, to } = step.clone() {
        for owner in to.iter().take(reach) {
            step = if owners.offer(*owner, &record) { read.on_ack(*owner) } else { read.on_fail(*owner) };
            if let NameReadStep::Done(_) = step {
                break;
            }
        }
    }
    if let NameReadStep::Done(answer) = step { Some(answer) } else { None }
}
