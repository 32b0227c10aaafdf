use std::time::Duration;

use super::{node, permutations, quorum};
use crate::cluster::chunks::{Latencies, ReadPlan, ReadStep, WriteProgress, WriteQuorum};
use crate::format::NodeId;
use crate::limits::{HEDGE_MAX, STALL_MAX};

/// Every order of three owners times every pattern of acks and failures: the verdict depends only on the pattern, comes as
/// early as it can, and an acknowledgement once given stays.
#[test]
fn write_is_acknowledged_by_a_majority_in_every_schedule() {
    for order in permutations(&[0u16, 1, 2]) {
        for pattern in 0u8..8 {
            let mut write = WriteQuorum::new(vec![quorum(1, &[0, 1, 2])]);
            let (mut acks, mut failures) = (0, 0);
            for number in &order {
                let acked = pattern & (1 << number) != 0;
                let progress = if acked { write.on_ack(node(*number)) } else { write.on_fail(node(*number)) };
                *(if acked { &mut acks } else { &mut failures }) += 1;
                let expected = match (acks, failures) {
                    (2.., _) => WriteProgress::Acknowledged,
                    (have, 2..) => WriteProgress::Failed { have, need: 2 },
                    _ => WriteProgress::Pending,
                };
                assert_eq!(progress, expected, "{order:?} {pattern:03b}");
            }
        }
    }
}

#[test]
fn repeated_ack_counts_once_and_late_failure_takes_nothing_back() {
    let mut write = WriteQuorum::new(vec![quorum(1, &[0, 1, 2])]);
    write.on_ack(node(0));
    assert_eq!(write.on_ack(node(0)), WriteProgress::Pending);
    assert_eq!(write.on_ack(node(77)), WriteProgress::Pending, "a stranger's ack counts nothing");
    write.on_ack(node(1));
    assert_eq!(write.on_fail(node(1)), WriteProgress::Acknowledged);
    assert_eq!(write.missing().collect::<Vec<_>>(), [node(2)]);
}

#[test]
fn change_of_layouts_needs_a_majority_in_both() {
    let both = || WriteQuorum::new(vec![quorum(1, &[0, 1, 2]), quorum(2, &[2, 3, 4])]);
    for order in permutations(&[0u16, 1, 2, 3, 4]) {
        let mut write = both();
        let mut acked = Vec::new();
        for number in order {
            acked.push(number);
            let old = acked.iter().filter(|number| **number <= 2).count();
            let new = acked.iter().filter(|number| **number >= 2).count();
            let expected = if old >= 2 && new >= 2 { WriteProgress::Acknowledged } else { WriteProgress::Pending };
            assert_eq!(write.on_ack(node(number)), expected);
        }
    }
    let mut write = both();
    [0, 1, 2].into_iter().for_each(|number| assert_eq!(write.on_ack(node(number)), WriteProgress::Pending));
    write.on_fail(node(3));
    assert_eq!(write.on_fail(node(4)), WriteProgress::Failed { have: 1, need: 2 });
}

#[test]
fn stand_in_takes_the_place_of_one_owner_and_only_of_one() {
    let mut write = WriteQuorum::new(vec![quorum(1, &[0, 1, 2])]);
    write.on_ack(node(0));
    write.on_fail(node(1));
    assert_eq!(write.on_fail(node(2)), WriteProgress::Failed { have: 1, need: 2 });
    assert!(write.add_stand_in(node(5), node(1)));
    assert!(!write.add_stand_in(node(6), node(1)), "it has one");
    assert!(!write.add_stand_in(node(0), node(2)), "an owner stands in for nobody");
    assert!(!write.add_stand_in(node(7), node(8)), "for an owner only");
    assert_eq!(write.progress(), WriteProgress::Pending);
    assert_eq!(write.on_ack(node(5)), WriteProgress::Acknowledged);
    assert_eq!(write.missing().count(), 2, "both owners are still owed the chunk");
}

#[test]
fn owner_and_its_stand_in_are_one_copy() {
    let mut write = WriteQuorum::new(vec![quorum(1, &[0, 1, 2])]);
    assert!(write.add_stand_in(node(5), node(1)));
    write.on_ack(node(5));
    assert_eq!(write.on_ack(node(1)), WriteProgress::Pending);
    assert_eq!(write.on_ack(node(2)), WriteProgress::Acknowledged);
}

#[test]
fn write_without_owners_fails() {
    assert_eq!(WriteQuorum::new(Vec::new()).progress(), WriteProgress::Failed { have: 0, need: 1 });
    assert_eq!(WriteQuorum::new(vec![quorum(1, &[])]).progress(), WriteProgress::Failed { have: 0, need: 1 });
}

const START: Duration = Duration::from_secs(5);

fn latencies() -> Latencies {
    let mut latencies = Latencies::default();
    (0..8).for_each(|number| latencies.record(node(number), Duration::from_millis(u64::from(number) * 10 + 10)));
    latencies
}

fn plan(local: NodeId, alive: impl Fn(&NodeId) -> bool) -> ReadPlan {
    ReadPlan::new(local, &[node(2), node(1), node(0)], &[node(4), node(3)], &latencies(), alive)
}

/// Whom the plan asks, each failing in turn.
fn order_of(mut plan: ReadPlan) -> Vec<NodeId> {
    let mut asked = Vec::new();
    while let ReadStep::Ask(next) = plan.step(START) {
        asked.push(next);
        plan.on_fail(next);
    }
    asked
}

#[test]
fn read_asks_us_then_the_fastest_alive_then_the_silent_then_earlier_owners() {
    let all = [node(0), node(1), node(2), node(4), node(3)];
    assert_eq!(order_of(plan(node(99), |_| true)), all);
    assert_eq!(order_of(plan(node(2), |_| true)), [node(2), node(0), node(1), node(4), node(3)]);
    assert_eq!(order_of(plan(node(99), |peer| *peer != node(0))), [node(1), node(2), node(0), node(4), node(3)]);
    assert_eq!(order_of(plan(node(3), |_| true))[0], node(3), "we may be an earlier owner");
}

#[test]
fn slow_node_is_hedged_once_and_not_before_its_time() {
    let mut plan = plan(node(99), |_| true);
    assert_eq!(plan.step(START), ReadStep::Ask(node(0)));
    let hedge_at = START + Duration::from_millis(20);
    assert_eq!(plan.step(START), ReadStep::Wait(hedge_at));
    assert_eq!(plan.step(hedge_at - Duration::from_nanos(1)), ReadStep::Wait(hedge_at));
    assert_eq!(plan.step(hedge_at), ReadStep::Ask(node(1)));
    let later = hedge_at + Duration::from_secs(1);
    assert_eq!(plan.step(later), ReadStep::Wait(later + HEDGE_MAX), "two at once are enough");
    plan.on_fail(node(0));
    assert_eq!(plan.step(later), ReadStep::Ask(node(2)), "a failure makes room at once");
}

#[test]
fn nodes_that_answer_for_too_long_keep_no_other_from_being_asked() {
    let mut plan = plan(node(99), |_| true);
    assert_eq!(plan.step(START), ReadStep::Ask(node(0)));
    let second_at = START + Duration::from_millis(20);
    assert_eq!(plan.step(second_at), ReadStep::Ask(node(1)));
    let first_is_old = START + STALL_MAX;
    assert!(matches!(plan.step(first_is_old - Duration::from_nanos(1)), ReadStep::Wait(_)));
    assert_eq!(plan.step(first_is_old), ReadStep::Ask(node(2)));
    assert!(matches!(plan.step(first_is_old), ReadStep::Wait(_)), "the second and the third count");
    let third_is_late = first_is_old + Duration::from_millis(60);
    assert_eq!(plan.step(third_is_late), ReadStep::Ask(node(4)), "the second counts no more");
    plan.on_absent(node(2));
    plan.on_absent(node(4));
    assert_eq!(plan.step(third_is_late), ReadStep::Ask(node(3)));
    plan.on_absent(node(3));
    assert!(matches!(plan.step(third_is_late), ReadStep::Wait(_)), "those that still send may have it");
}

#[test]
fn wrong_bytes_move_the_read_to_the_next_node() {
    let mut plan = plan(node(99), |_| true);
    assert_eq!(plan.step(START), ReadStep::Ask(node(0)));
    plan.on_damage(node(0));
    assert_eq!(plan.step(START), ReadStep::Ask(node(1)));
}

/// Every way in which five nodes may answer: "not found" is said exactly when every owner of the newest layout said so, and
/// nobody else was silent.
#[test]
fn not_found_needs_the_word_of_every_owner() {
    for answers in 0..3u32.pow(5) {
        let mut plan = plan(node(99), |_| true);
        let answer = |number: u32| answers / 3u32.pow(number) % 3;
        let verdict = loop {
            match plan.step(START) {
                ReadStep::Ask(asked) => {
                    let number = (0..5).find(|number| node(*number) == asked).expect("a candidate");
                    match answer(u32::from(number)) {
                        0 => plan.on_absent(asked),
                        1 => plan.on_damage(asked),
                        _ => plan.on_fail(asked),
                    }
                }
                verdict => break verdict,
            }
        };
        let all_heard = (0..5).all(|number| answer(number) != 2);
        let all_absent = (0..3).all(|owner| answer(owner) == 0);
        assert_eq!(verdict == ReadStep::NotFound, all_absent && all_heard, "{answers}");
        let damaged = (0..5).any(|number| answer(number) == 1);
        assert_eq!(verdict == ReadStep::Damaged, damaged && all_heard && !all_absent, "{answers}");
    }
}

#[test]
fn network_without_owners_is_unreachable_and_not_empty() {
    let mut plan = ReadPlan::new(node(0), &[], &[], &Latencies::default(), |_| true);
    assert_eq!(plan.step(START), ReadStep::Unreachable { silent: vec![] });
}

#[test]
fn cache_that_is_said_to_hold_the_chunk_is_asked_first() {
    let mut plan = plan(node(99), |_| true);
    plan.add_holder(node(7), &latencies());
    assert_eq!(plan.step(START), ReadStep::Ask(node(7)));
    plan.on_absent(node(7));
    assert_eq!(plan.step(START), ReadStep::Ask(node(0)));
}

#[test]
fn failures_make_a_node_slower_and_successes_faster() {
    let mut latencies = latencies();
    let before = latencies.usual(&node(0));
    latencies.record_failure(node(0));
    assert!(latencies.usual(&node(0)) > before);
    for _ in 0..100 {
        latencies.record(node(0), Duration::from_millis(1));
    }
    assert!(latencies.usual(&node(0)) < Duration::from_millis(2));
}
