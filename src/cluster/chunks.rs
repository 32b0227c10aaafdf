//! Chunks: when a write has succeeded, and whom to read from.
//!
//! Writing ([`WriteQuorum`]): the chunk goes to all owners at once; it counts as written when W owners hold it in every
//! active layout. A stand-in that keeps it for an owner which is away counts like that owner (never besides it). Once written
//! it stays written; once too few are left that could still answer, it has failed, and waiting longer is useless.
//!
//! Reading ([`ReadPlan`]): ourselves first, then owners that are alive, fastest first, then owners that are not said to be alive
//! (liveness is a hint), then owners under earlier layouts. One is asked; when it has not begun to answer within its hedge
//! delay (twice its usual time, bounded), the next is asked as well; when it fails, has not got it, or sent wrong bytes, the next
//! one is asked at once. At most [`READS_AT_ONCE_MAX`] count as asked. Who was asked [`STALL_MAX`] ago and has not ended its
//! answer does not count any more: else a few that send a byte now and then keep the read from those that have the chunk.
//!
//! | somebody was silent | somebody sent wrong bytes | there are owners, and each says "absent" | then the plan ends as |
//! | --- | --- | --- | --- |
//! | yes | any | any | [`ReadStep::Unreachable`]: an earlier owner may be the one that has it |
//! | no | any | yes | [`ReadStep::NotFound`] |
//! | no | yes | no | [`ReadStep::Damaged`] |
//! | no | no | no | [`ReadStep::Unreachable`] |

use std::collections::BTreeMap;
use std::time::Duration;

use super::layout::Quorum;
use crate::format::NodeId;
use crate::limits::{HEDGE_MAX, HEDGE_MIN, READS_AT_ONCE_MAX, STALL_MAX};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteProgress {
    Pending,
    Acknowledged,
    /// In the worst layout: so many hold it, so many would have to.
    Failed {
        have: usize,
        need: usize,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holding {
    Asked,
    Holds,
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    node: NodeId,
    /// The owner whose place it takes; itself if it is the owner.
    owner: NodeId,
    state: Holding,
}

/// One chunk's write, under a fixed list of layouts. Under another list: a new one, earlier acknowledgements void.
#[derive(Clone, Debug)]
pub struct WriteQuorum {
    quorums: Vec<Quorum>,
    holders: Vec<Holder>,
}

impl WriteQuorum {
    pub fn new(quorums: Vec<Quorum>) -> Self {
        let mut holders: Vec<Holder> = Vec::new();
        for node in quorums.iter().flat_map(|quorum| quorum.owners.as_slice()) {
            if !holders.iter().any(|holder| holder.node == *node) {
                holders.push(Holder { node: *node, owner: *node, state: Holding::Asked });
            }
        }
        Self { quorums, holders }
    }

    /// All owners, of every active layout: whom to send the chunk to.
    pub fn owners(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.holders.iter().filter(|holder| holder.node == holder.owner).map(|holder| holder.node)
    }

    /// `node` is asked to keep the chunk until `away` has it. False if it cannot count: it is an owner or stand-in already, or
    /// `away` is no owner or has a stand-in that may still succeed.
    pub fn add_stand_in(&mut self, node: NodeId, away: NodeId) -> bool {
        let known = self.holders.iter().any(|holder| holder.node == node);
        let owner = self.holders.iter().any(|holder| holder.node == away && holder.owner == away);
        let covered = self.holders.iter().any(|holder| {
            holder.owner == away && holder.node != away && matches!(holder.state, Holding::Asked | Holding::Holds)
        });
        if known || !owner || covered {
            return false;
        }
        self.holders.push(Holder { node, owner: away, state: Holding::Asked });
        true
    }

    pub fn on_ack(&mut self, node: NodeId) -> WriteProgress {
        self.set(node, Holding::Holds);
        self.progress()
    }

    /// It refused, or could not be reached. An acknowledgement given before stays.
    pub fn on_fail(&mut self, node: NodeId) -> WriteProgress {
        if self.holders.iter().any(|holder| holder.node == node && holder.state == Holding::Asked) {
            self.set(node, Holding::Failed);
        }
        self.progress()
    }

    fn set(&mut self, node: NodeId, state: Holding) {
        if let Some(holder) = self.holders.iter_mut().find(|holder| holder.node == node) {
            holder.state = state;
        }
    }

    pub fn progress(&self) -> WriteProgress {
        let mut progress = WriteProgress::Acknowledged;
        for quorum in &self.quorums {
            let need = quorum.owners.write_quorum();
            let have = self.count(quorum, |state| state == Holding::Holds);
            if self.count(quorum, |state| state != Holding::Failed) < need {
                return WriteProgress::Failed { have, need };
            }
            if have < need {
                progress = WriteProgress::Pending;
            }
        }
        if self.quorums.is_empty() { WriteProgress::Failed { have: 0, need: 1 } } else { progress }
    }

    /// Owners with a copy at themselves or at their stand-in.
    fn count(&self, quorum: &Quorum, counts: impl Fn(Holding) -> bool) -> usize {
        let covered =
            |owner: &&NodeId| self.holders.iter().any(|holder| holder.owner == **owner && counts(holder.state));
        quorum.owners.iter().filter(covered).count()
    }

    /// Owners that have not acknowledged themselves: whom a stand-in or a later repair still owes the chunk.
    pub fn missing(&self) -> impl Iterator<Item = NodeId> + '_ {
        let misses = |holder: &&Holder| holder.node == holder.owner && holder.state != Holding::Holds;
        self.holders.iter().filter(misses).map(|holder| holder.node)
    }
}

/// How long each node usually takes to begin an answer: an exponentially weighted moving average, as TCP keeps of its
/// round trips (RFC 6298: gain 1/8).
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    usual: BTreeMap<NodeId, Duration>,
}

/// What an unknown node is taken for: it is tried soon, but not before a fast one.
const UNKNOWN_LATENCY: Duration = Duration::from_millis(20);

impl Latencies {
    pub fn record(&mut self, node: NodeId, took: Duration) {
        let usual = self.usual.entry(node).or_insert(took);
        *usual = (*usual * 7 + took) / 8;
    }

    /// A failure makes a node slow, so that others are tried first for a while.
    pub fn record_failure(&mut self, node: NodeId) {
        self.record(node, HEDGE_MAX * 4);
    }

    pub fn usual(&self, node: &NodeId) -> Duration {
        self.usual.get(node).copied().unwrap_or(UNKNOWN_LATENCY)
    }

    pub fn hedge_delay(&self, node: &NodeId) -> Duration {
        (self.usual(node) * 2).clamp(HEDGE_MIN, HEDGE_MAX)
    }

    /// The same, with each node as much slower as it has requests of ours to answer: chunks of one file come from all its
    /// holders at once, from the faster ones more.
    pub fn under_load(&self, in_flight: impl Fn(&NodeId) -> usize) -> Self {
        let loaded = |(node, usual): (&NodeId, &Duration)| (*node, *usual * (1 + in_flight(node)) as u32);
        Self { usual: self.usual.iter().map(loaded).collect() }
    }

    pub fn forget(&mut self, node: &NodeId) {
        self.usual.remove(node);
    }
}

/// What to do next for one read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadStep {
    Ask(NodeId),
    /// Until then, or until an answer: a stale or early call is harmless.
    Wait(Duration),
    NotFound,
    /// Every copy that could be reached was wrong.
    Damaged,
    /// These gave no answer that counts.
    Unreachable {
        silent: Vec<NodeId>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Not,
    /// When, and until when it is waited for alone.
    Running {
        since: Duration,
        until: Duration,
    },
    Absent,
    Damaged,
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct ReadCandidate {
    node: NodeId,
    /// Owns the chunk under the newest layout.
    owner: bool,
    hedge: Duration,
    asked: Asked,
}

/// One chunk's read.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    candidates: Vec<ReadCandidate>,
}

impl ReadPlan {
    /// `local`: this node. `owners`: under the newest layout. `earlier`: under those before, latest first.
    pub fn new(
        local: NodeId,
        owners: &[NodeId],
        earlier: &[NodeId],
        latencies: &Latencies,
        alive: impl Fn(&NodeId) -> bool,
    ) -> Self {
        let mut candidates: Vec<ReadCandidate> = Vec::with_capacity(owners.len() + earlier.len() + 1);
        let mut add = |node: NodeId, owner: bool| {
            if !candidates.iter().any(|known| known.node == node) {
                let hedge = latencies.hedge_delay(&node);
                candidates.push(ReadCandidate { node, owner, hedge, asked: Asked::Not });
            }
        };
        owners.iter().for_each(|node| add(*node, true));
        earlier.iter().for_each(|node| add(*node, false));
        candidates.sort_by_key(|known| {
            let away = known.node != local && !alive(&known.node);
            let usual = if known.owner { latencies.usual(&known.node) } else { Duration::ZERO };
            // The sort is stable: earlier owners keep their order.
            (known.node != local, !known.owner, away, usual)
        });
        Self { candidates }
    }

    /// Somebody else is said to hold a copy (a cache): asked first.
    pub fn add_holder(&mut self, node: NodeId, latencies: &Latencies) {
        if !self.candidates.iter().any(|known| known.node == node) {
            let hedge = latencies.hedge_delay(&node);
            self.candidates.insert(0, ReadCandidate { node, owner: false, hedge, asked: Asked::Not });
        }
    }

    /// The next thing to do at `now`; a node that it names counts as asked.
    pub fn step(&mut self, now: Duration) -> ReadStep {
        let patient_until = self.running().map(|(_, until)| until).max();
        let fresh = self.running().filter(|(since, _)| now.saturating_sub(*since) < STALL_MAX).count();
        let may_hedge = fresh < READS_AT_ONCE_MAX && patient_until.is_none_or(|until| now >= until);
        if may_hedge && let Some(next) = self.candidates.iter_mut().find(|known| known.asked == Asked::Not) {
            next.asked = Asked::Running { since: now, until: now + next.hedge };
            return ReadStep::Ask(next.node);
        }
        match patient_until {
            // With nobody left to hedge with, only an answer or the caller's own deadline ends the wait.
            Some(until) if now < until => ReadStep::Wait(until),
            Some(_) => ReadStep::Wait(now + HEDGE_MAX),
            None => self.verdict(),
        }
    }

    /// Since when, and until when alone.
    fn running(&self) -> impl Iterator<Item = (Duration, Duration)> + '_ {
        self.candidates.iter().filter_map(|known| match known.asked {
            Asked::Running { since, until } => Some((since, until)),
            _ => None,
        })
    }

    /// It answered that it has no such chunk.
    pub fn on_absent(&mut self, node: NodeId) {
        self.answered(node, Asked::Absent);
    }

    /// Its bytes do not match the address: perhaps the wire's fault, so it is blamed for nothing but this read.
    pub fn on_damage(&mut self, node: NodeId) {
        self.answered(node, Asked::Damaged);
    }

    pub fn on_fail(&mut self, node: NodeId) {
        self.answered(node, Asked::Failed);
    }

    fn answered(&mut self, node: NodeId, how: Asked) {
        if let Some(known) = self.candidates.iter_mut().find(|known| known.node == node) {
            known.asked = how;
        }
    }

    fn verdict(&self) -> ReadStep {
        let silent: Vec<NodeId> =
            self.candidates.iter().filter(|known| known.asked == Asked::Failed).map(|known| known.node).collect();
        if !silent.is_empty() {
            return ReadStep::Unreachable { silent };
        }
        let mut owners = self.candidates.iter().filter(|known| known.owner).peekable();
        if owners.peek().is_some() && owners.all(|known| known.asked == Asked::Absent) {
            return ReadStep::NotFound;
        }
        let damaged = self.candidates.iter().any(|known| known.asked == Asked::Damaged);
        if damaged { ReadStep::Damaged } else { ReadStep::Unreachable { silent } }
    }
}
