//! Names: quorum reads and writes.
//!
//! Owners of a name are members; stand-ins never count. With R owners, a majority W writes and R + 1 - W read, in every active
//! layout, so that each read meets each acknowledged write.
//!
//! Writing ([`NameWrite`]):
//!
//! ```text
//! ask all owners for the clock --R+1-W answers--> pick a later clock --record--> send to all owners --W acks--> done
//!        \___ too few left: failed ___/                                   \____ too few left: failed (it may still appear)
//!        \___ a refusal (other layouts, dead version): restart ___________/
//! ```
//!
//! Reading ([`NameRead`]): the newest of R+1-W answers wins; before it is returned it is written back until a majority holds it,
//! so that no later read can return something older. "No such name" from a quorum needs no write-back: there is nothing to lose.

use std::collections::BTreeMap;

use super::layout::Quorum;
use crate::format::name::NameRecord;
use crate::format::{NodeId, Stamp, VersionId};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Vote {
    Asked,
    Given,
    Failed,
}

/// Who has said yes so far.
#[derive(Clone, Debug)]
struct Votes {
    quorums: Vec<Quorum>,
    votes: BTreeMap<NodeId, Vote>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tally {
    Open,
    Reached,
    Lost { have: usize, need: usize },
}

impl Votes {
    fn new(quorums: Vec<Quorum>) -> Self {
        let nodes = quorums.iter().flat_map(|quorum| quorum.owners.as_slice());
        let votes = nodes.map(|node| (*node, Vote::Asked)).collect();
        Self { quorums, votes }
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.votes.keys().copied().collect()
    }

    /// False if the node was not asked, or has voted.
    fn set(&mut self, node: NodeId, vote: Vote) -> bool {
        match self.votes.get_mut(&node) {
            Some(known) if *known == Vote::Asked => {
                *known = vote;
                true
            }
            _ => false,
        }
    }

    fn given(&self) -> Vec<NodeId> {
        self.votes.iter().filter(|(_, vote)| **vote == Vote::Given).map(|(node, _)| *node).collect()
    }

    fn tally(&self, need: impl Fn(&Quorum) -> usize) -> Tally {
        let mut tally = if self.quorums.is_empty() { Tally::Lost { have: 0, need: 1 } } else { Tally::Reached };
        for quorum in &self.quorums {
            let need = need(quorum);
            let count = |vote: fn(&Vote) -> bool| {
                quorum.owners.iter().filter(|owner| self.votes.get(owner).is_some_and(vote)).count()
            };
            let have = count(|vote| *vote == Vote::Given);
            if count(|vote| *vote != Vote::Failed) < need {
                return Tally::Lost { have, need };
            }
            if have < need {
                tally = Tally::Open;
            }
        }
        tally
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameWriteStep {
    Wait,
    /// The quorum has answered: make a stamp later than this one (the latest seen) and hand it to [`NameWrite::picked`].
    PickClock {
        later_than: Stamp,
    },
    /// Durable on a majority in every active layout.
    Done,
    /// In the worst layout. If the record was sent already, it may still appear.
    Failed {
        have: usize,
        need: usize,
    },
    /// An owner runs under other layouts or knows the version as dead: nothing so far counts, begin a new one.
    Restart,
}

#[derive(Clone, Debug)]
enum Writing {
    Clock { votes: Votes, latest: Stamp },
    Picking { quorums: Vec<Quorum>, latest: Stamp },
    Record { votes: Votes },
    Refused,
}

/// One put or removal of one name, under a fixed list of layouts.
#[derive(Clone, Debug)]
pub struct NameWrite {
    state: Writing,
}

impl NameWrite {
    pub fn new(quorums: Vec<Quorum>) -> Self {
        Self { state: Writing::Clock { votes: Votes::new(quorums), latest: Stamp::ZERO } }
    }

    /// The second half alone, for a record that has its clock.
    pub fn of_record(quorums: Vec<Quorum>) -> Self {
        Self { state: Writing::Record { votes: Votes::new(quorums) } }
    }

    /// Whom to ask for the clock, and later to send the record to.
    pub fn owners(&self) -> Vec<NodeId> {
        match &self.state {
            Writing::Clock { votes, .. } | Writing::Record { votes } => votes.nodes(),
            Writing::Picking { quorums, .. } => Votes::new(quorums.clone()).nodes(),
            Writing::Refused => Vec::new(),
        }
    }

    /// The clock of the record that `node` holds, if it holds one.
    pub fn on_clock(&mut self, node: NodeId, clock: Option<Stamp>) -> NameWriteStep {
        if let Writing::Clock { votes, latest } = &mut self.state
            && votes.set(node, Vote::Given)
        {
            *latest = (*latest).max(clock.unwrap_or(Stamp::ZERO));
        }
        self.step()
    }

    /// The record, with its new clock, now goes to [`Self::owners`]. Who did not answer the first round is asked again too.
    pub fn picked(&mut self) -> NameWriteStep {
        if let Writing::Picking { quorums, .. } = &mut self.state {
            self.state = Writing::Record { votes: Votes::new(std::mem::take(quorums)) };
        }
        self.step()
    }

    /// `node` holds the record durably (or a later one: then ours has lost, but it was written).
    pub fn on_ack(&mut self, node: NodeId) -> NameWriteStep {
        if let Writing::Record { votes } = &mut self.state {
            votes.set(node, Vote::Given);
        }
        self.step()
    }

    /// `node` could not be reached or has no room.
    pub fn on_fail(&mut self, node: NodeId) -> NameWriteStep {
        if let Writing::Clock { votes, .. } | Writing::Record { votes } = &mut self.state {
            votes.set(node, Vote::Failed);
        }
        self.step()
    }

    pub fn on_refused(&mut self, _node: NodeId) -> NameWriteStep {
        if !matches!(self.step(), NameWriteStep::Done) {
            self.state = Writing::Refused;
        }
        self.step()
    }

    /// Owners that acknowledged the record: the holders that a death of the version before is signed on.
    pub fn holders(&self) -> Vec<NodeId> {
        match &self.state {
            Writing::Record { votes } => votes.given(),
            _ => Vec::new(),
        }
    }

    fn step(&mut self) -> NameWriteStep {
        match &mut self.state {
            Writing::Clock { votes, latest } => match votes.tally(|quorum| quorum.owners.read_quorum()) {
                Tally::Open => NameWriteStep::Wait,
                Tally::Lost { have, need } => NameWriteStep::Failed { have, need },
                Tally::Reached => {
                    let latest = *latest;
                    self.state = Writing::Picking { quorums: std::mem::take(&mut votes.quorums), latest };
                    NameWriteStep::PickClock { later_than: latest }
                }
            },
            Writing::Picking { latest, .. } => NameWriteStep::PickClock { later_than: *latest },
            Writing::Record { votes } => match votes.tally(|quorum| quorum.owners.write_quorum()) {
                Tally::Open => NameWriteStep::Wait,
                Tally::Lost { have, need } => NameWriteStep::Failed { have, need },
                Tally::Reached => NameWriteStep::Done,
            },
            Writing::Refused => NameWriteStep::Restart,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClaimStep {
    Wait,
    /// By a majority in every active layout.
    Granted,
    Failed {
        have: usize,
        need: usize,
    },
}

/// The claims of one name for one version ([`super::claims`]), under a fixed list of layouts.
#[derive(Clone, Debug)]
pub struct NameClaim {
    votes: Votes,
}

impl NameClaim {
    pub fn new(quorums: Vec<Quorum>) -> Self {
        Self { votes: Votes::new(quorums) }
    }

    pub fn owners(&self) -> Vec<NodeId> {
        self.votes.nodes()
    }

    pub fn on_grant(&mut self, node: NodeId) -> ClaimStep {
        self.votes.set(node, Vote::Given);
        self.step()
    }

    /// `node` has granted the name to another version, or could not be reached.
    pub fn on_fail(&mut self, node: NodeId) -> ClaimStep {
        self.votes.set(node, Vote::Failed);
        self.step()
    }

    fn step(&self) -> ClaimStep {
        match self.votes.tally(|quorum| quorum.owners.write_quorum()) {
            Tally::Open => ClaimStep::Wait,
            Tally::Reached => ClaimStep::Granted,
            Tally::Lost { have, need } => ClaimStep::Failed { have, need },
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameReadStep {
    Wait,
    /// Send `record` to these, which answered with less or not at all; their acks go to [`NameRead::on_ack`].
    WriteBack {
        record: NameRecord,
        to: Vec<NodeId>,
    },
    /// A tombstone is an answer too; `None`: no owner has heard of the name.
    Done(Option<NameRecord>),
    Failed {
        have: usize,
        need: usize,
    },
    Restart,
}

#[derive(Clone, Debug)]
enum Reading {
    Asking { votes: Votes, best: Option<NameRecord>, found: BTreeMap<NodeId, (Stamp, VersionId)> },
    WritingBack { votes: Votes, record: NameRecord },
    Absent,
    Refused,
}

/// One read of one name, under a fixed list of layouts.
#[derive(Clone, Debug)]
pub struct NameRead {
    state: Reading,
}

impl NameRead {
    pub fn new(quorums: Vec<Quorum>) -> Self {
        Self { state: Reading::Asking { votes: Votes::new(quorums), best: None, found: BTreeMap::new() } }
    }

    pub fn owners(&self) -> Vec<NodeId> {
        match &self.state {
            Reading::Asking { votes, .. } | Reading::WritingBack { votes, .. } => votes.nodes(),
            Reading::Absent | Reading::Refused => Vec::new(),
        }
    }

    /// What `node` holds. Answers of owners under earlier layouts may be handed in as well: they add knowledge, no vote.
    pub fn on_answer(&mut self, node: NodeId, record: Option<NameRecord>) -> NameReadStep {
        match &mut self.state {
            Reading::Asking { votes, best, found } => {
                votes.set(node, Vote::Given);
                if let Some(record) = record {
                    found.insert(node, record.order());
                    if best.as_ref().is_none_or(|best| record.wins_over(best)) {
                        *best = Some(record);
                    }
                }
                self.conclude()
            }
            Reading::WritingBack { votes, record: returned } => {
                if record.is_some_and(|record| record.order() >= returned.order()) {
                    votes.set(node, Vote::Given);
                }
                self.step()
            }
            Reading::Absent | Reading::Refused => self.step(),
        }
    }

    /// Once done with a record: who holds it, or something later.
    pub fn holders(&self) -> Vec<NodeId> {
        match &self.state {
            Reading::WritingBack { votes, .. } => votes.given(),
            _ => Vec::new(),
        }
    }

    /// `node` holds what was written back, or something later.
    pub fn on_ack(&mut self, node: NodeId) -> NameReadStep {
        if let Reading::WritingBack { votes, .. } = &mut self.state {
            votes.set(node, Vote::Given);
        }
        self.step()
    }

    pub fn on_fail(&mut self, node: NodeId) -> NameReadStep {
        match &mut self.state {
            Reading::Asking { votes, .. } => {
                votes.set(node, Vote::Failed);
                self.conclude()
            }
            Reading::WritingBack { votes, .. } => {
                votes.set(node, Vote::Failed);
                self.step()
            }
            Reading::Absent | Reading::Refused => self.step(),
        }
    }

    /// `node` runs under other layouts, or knows the record's version as dead: start over.
    pub fn on_refused(&mut self, _node: NodeId) -> NameReadStep {
        if !matches!(self.step(), NameReadStep::Done(_)) {
            self.state = Reading::Refused;
        }
        self.step()
    }

    /// From asking to writing back, once a quorum has answered.
    fn conclude(&mut self) -> NameReadStep {
        let Reading::Asking { votes, best, found } = &mut self.state else { return self.step() };
        if votes.tally(|quorum| quorum.owners.read_quorum()) != Tally::Reached {
            return self.step();
        }
        let Some(record) = best.take() else {
            self.state = Reading::Absent;
            return self.step();
        };
        let mut holding = Votes::new(std::mem::take(&mut votes.quorums));
        for (node, order) in std::mem::take(found) {
            if order == record.order() {
                holding.set(node, Vote::Given);
            }
        }
        let to = holding.votes.iter().filter(|(_, vote)| **vote == Vote::Asked).map(|(node, _)| *node).collect();
        self.state = Reading::WritingBack { votes: holding, record: record.clone() };
        match self.step() {
            NameReadStep::Wait => NameReadStep::WriteBack { record, to },
            done => done,
        }
    }

    fn step(&self) -> NameReadStep {
        let (tally, record) = match &self.state {
            Reading::Asking { votes, .. } => (votes.tally(|quorum| quorum.owners.read_quorum()), None),
            Reading::WritingBack { votes, record } => {
                (votes.tally(|quorum| quorum.owners.write_quorum()), Some(record))
            }
            Reading::Absent => return NameReadStep::Done(None),
            Reading::Refused => return NameReadStep::Restart,
        };
        match (tally, record) {
            (Tally::Lost { have, need }, _) => NameReadStep::Failed { have, need },
            (Tally::Reached, Some(record)) => NameReadStep::Done(Some(record.clone())),
            (Tally::Open, _) | (Tally::Reached, None) => NameReadStep::Wait,
        }
    }
}
