//! Questions about names, carried to several owners at once, and whom to hear before an answer counts.
//!
//! Owners of today are asked first. Where they have not yet brought in what others owned before them, those are asked
//! too, and until all are heard who have to be ([`crate::cluster::coverage`]), nothing is decided: neither that a name
//! is absent, nor which record of it is the latest, nor which clock is later than all.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::ask::{Question, ask};
use super::names::{NameError, accept};
use super::shard::Shard;
use crate::cluster::ActiveLayout;
use crate::cluster::coverage::{NameGroup, uncovered, without_gaps};
use crate::format::certificate::Class;
use crate::format::frame::{FrameKind, Status};
use crate::format::message::NameWriteAnswer;
use crate::format::name::NameRecord;
use crate::format::{Address, BucketId, NodeId, Stamp, VersionId, message};
use crate::io::spawn;
use crate::limits::{STALL_MAX, STORE_PATIENCE};

/// What one owner answered to a read or a write.
#[derive(Debug, Clone)]
pub enum Answer {
    /// With the newest layout whose names the owner has brought in.
    Record(Option<NameRecord>, u32),
    Written(NameWriteAnswer),
    /// It runs under another layout, or knows the version as dead.
    Refused,
    Failed,
}

impl Answer {
    pub fn order(&self) -> Option<(Stamp, VersionId)> {
        match self {
            Self::Record(Some(record), _) => Some(record.order()),
            _ => None,
        }
    }
}

/// The groups of all layouts that ever were, the newest first. A node that has just joined, or was away, may not know all
/// of them: a gap is an unknown group, and so is all that lies before the earliest that is remembered.
pub fn name_groups(shard: &Rc<Shard>, bucket: Option<&BucketId>) -> Vec<NameGroup> {
    let layouts = shard.node.layouts();
    let known = layouts.active().iter().rev().chain(layouts.earlier());
    without_gaps(known.map(|layout| name_group(layout, bucket)))
}

fn name_group(layout: &Arc<ActiveLayout>, bucket: Option<&BucketId>) -> NameGroup {
    let owners: Vec<NodeId> = match bucket {
        Some(bucket) => layout.name_owners(bucket).as_slice().to_vec(),
        None => layout.nodes().iter().filter(|node| node.class == Class::Member).map(|node| node.node).collect(),
    };
    NameGroup::new(layout.number(), owners, usize::from(layout.replicas()))
}

/// Where answers come from.
pub trait Owners {
    fn ask(&mut self, owner: NodeId, kind: FrameKind, body: Vec<u8>);
    /// The next answer; none when nobody is left to answer.
    async fn next(&mut self) -> Option<(NodeId, Answer)>;
    /// Why some have not answered, in words.
    fn reasons(&self) -> String;
}

/// What was heard of a name by the time that everybody was heard who has to be.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Of today's owners, the latest record last: who takes from the end never concludes without it.
    pub answers: Vec<(NodeId, Answer)>,
    /// What only owners of before hold: it adds knowledge, no vote.
    pub earlier: Vec<(NodeId, NameRecord)>,
}

/// Asks what is known of a name, until what was heard is all there can be. `None`: an owner refused, start over.
pub async fn gather(
    asked: &mut impl Owners,
    groups: &[NameGroup],
    voters: &[NodeId],
    body: &[u8],
) -> Result<Option<Gathered>, NameError> {
    for owner in voters {
        asked.ask(*owner, FrameKind::NameRead, body.to_vec());
    }
    let mut gathered = Gathered::default();
    let (mut heard, mut has_asked_earlier, mut is_refused) = (Vec::new(), false, false);
    while let Some(group) = uncovered(groups, &heard) {
        let Some((owner, answer)) = asked.next().await else {
            if is_refused {
                return Ok(None);
            }
            if !has_asked_earlier {
                has_asked_earlier = true;
                ask_earlier(asked, groups, voters, body);
                continue;
            }
            return Err(too_few(groups, group, &heard, asked.reasons()));
        };
        match &answer {
            Answer::Record(_, synced) => heard.push((owner, *synced)),
            Answer::Refused => is_refused = true,
            Answer::Written(_) | Answer::Failed => {}
        }
        if voters.contains(&owner) {
            gathered.answers.push((owner, answer));
        } else if let Answer::Record(Some(record), _) = answer {
            gathered.earlier.push((owner, record));
        }
    }
    gathered.answers.sort_by_key(|(_, answer)| answer.order());
    Ok(Some(gathered))
}

fn ask_earlier(asked: &mut impl Owners, groups: &[NameGroup], voters: &[NodeId], body: &[u8]) {
    let mut earlier: Vec<NodeId> = groups.iter().flat_map(|group| group.owners.iter().copied()).collect();
    earlier.sort();
    earlier.dedup();
    for owner in earlier.iter().filter(|owner| !voters.contains(owner)) {
        asked.ask(*owner, FrameKind::NameRead, body.to_vec());
    }
}

pub fn too_few(groups: &[NameGroup], group: &NameGroup, heard: &[(NodeId, u32)], reason: String) -> NameError {
    if group.is_unknown() {
        return NameError::LayoutUnknown { number: group.layout };
    }
    let (have, need) = (group.heard(heard), group.need);
    if groups.first().is_some_and(|newest| newest.layout == group.layout) {
        NameError::TooFewOwners { have, need, reason }
    } else {
        NameError::EarlierOwnersSilent { have, need }
    }
}

/// Questions under way to several owners. Those that nobody waits for any more go on in the background, so that a write
/// reaches every owner that can be reached.
pub struct Asked {
    shard: Rc<Shard>,
    layout: u32,
    answers: mpsc::UnboundedSender<(u32, NodeId, Answer, Option<String>)>,
    arrived: mpsc::UnboundedReceiver<(u32, NodeId, Answer, Option<String>)>,
    round: u32,
    running: usize,
    failures: Vec<String>,
}

impl Asked {
    /// `layout`: whose owners are asked; who runs under another refuses.
    pub fn new(shard: &Rc<Shard>, layout: u32) -> Self {
        let (answers, arrived) = mpsc::unbounded_channel();
        Self { shard: shard.clone(), layout, answers, arrived, round: 0, running: 0, failures: Vec::new() }
    }

    /// Answers to what was asked so far are of no interest any more.
    pub fn forget_running(&mut self) {
        self.round += 1;
        self.running = 0;
    }

    pub fn too_few(&self, have: usize, need: usize) -> NameError {
        NameError::TooFewOwners { have, need, reason: self.reasons() }
    }
}

impl Owners for Asked {
    fn ask(&mut self, owner: NodeId, kind: FrameKind, body: Vec<u8>) {
        let (shard, answers, layout, round) = (self.shard.clone(), self.answers.clone(), self.layout, self.round);
        self.running += 1;
        spawn(async move {
            let (answer, reason) = match ask_one(&shard, owner, layout, kind, body).await {
                Ok(answer) => (answer, None),
                Err(reason) => (Answer::Failed, Some(format!("{owner:?}: {reason}"))),
            };
            let _ = answers.send((round, owner, answer, reason));
        });
    }

    async fn next(&mut self) -> Option<(NodeId, Answer)> {
        while self.running > 0 {
            let (round, owner, answer, reason) = self.arrived.recv().await?;
            if round != self.round {
                continue;
            }
            self.running -= 1;
            self.failures.extend(reason);
            return Some((owner, answer));
        }
        None
    }

    fn reasons(&self) -> String {
        self.failures.join("; ")
    }
}

async fn ask_one(
    shard: &Rc<Shard>,
    owner: NodeId,
    layout: u32,
    kind: FrameKind,
    body: Vec<u8>,
) -> Result<Answer, String> {
    if owner == shard.node.id() {
        return ask_self(shard, layout, kind, &body).await;
    }
    let patience = if kind == FrameKind::NameWrite { STORE_PATIENCE } else { STALL_MAX };
    let question = Question { kind, address: Address::ZERO, layout, patience };
    let answer = ask(shard, &owner, question, || (body.clone(), None)).await.map_err(|error| error.to_string())?;
    match (answer.status, kind) {
        (Status::Ok, FrameKind::NameWrite) => {
            NameWriteAnswer::decode(&answer.body).map(Answer::Written).map_err(|error| error.to_string())
        }
        (Status::Ok, _) => NameRecord::decode(&answer.body)
            .map(|record| Answer::Record(Some(record), answer.header.layout.get()))
            .map_err(|error| error.to_string()),
        (Status::NotFound, FrameKind::NameRead) => Ok(Answer::Record(None, answer.header.layout.get())),
        (Status::WrongLayout | Status::Dead, _) => Ok(Answer::Refused),
        (status, _) => Err(format!("answered {status:?}")),
    }
}

async fn ask_self(shard: &Rc<Shard>, layout: u32, kind: FrameKind, body: &[u8]) -> Result<Answer, String> {
    if kind == FrameKind::NameWrite {
        let (origin, record) = message::decode_name_write(body).map_err(|error| error.to_string())?;
        return match accept(shard, origin, record, layout).await {
            Ok(answer) => Ok(Answer::Written(answer)),
            Err(Status::Dead | Status::WrongLayout) => Ok(Answer::Refused),
            Err(status) => Err(format!("answered {status:?}")),
        };
    }
    let (bucket, name) = message::decode_name_read(body).map_err(|error| error.to_string())?;
    let synced = shard.node.names_synced();
    let record = shard.node.catalog.name(&bucket, &name).await.map_err(|error| error.to_string())?;
    Ok(Answer::Record(record, synced))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use super::*;
    use crate::format::{NameId, VaultId};

    /// Owners that answer at once, or not at all.
    #[derive(Default)]
    struct Fake {
        knows: HashMap<NodeId, Answer>,
        due: VecDeque<NodeId>,
        asked: Vec<NodeId>,
    }

    impl Owners for Fake {
        fn ask(&mut self, owner: NodeId, _: FrameKind, _: Vec<u8>) {
            self.due.push_back(owner);
            self.asked.push(owner);
        }

        async fn next(&mut self) -> Option<(NodeId, Answer)> {
            let owner = self.due.pop_front()?;
            Some((owner, self.knows.get(&owner).cloned().unwrap_or(Answer::Failed)))
        }

        fn reasons(&self) -> String {
            "away".into()
        }
    }

    const FOUNDER: NodeId = NodeId([1; 32]);
    const SECOND: NodeId = NodeId([2; 32]);
    const THIRD: NodeId = NodeId([3; 32]);

    fn record(millis: u64) -> NameRecord {
        let version = VersionId::new(1, 2, [millis as u8; 8]);
        NameRecord {
            tombstone: false,
            vault: VaultId([0; 16]),
            key_generation: 1,
            clock: Stamp::new(millis, 0),
            bucket: BucketId([7; 32]),
            name: NameId([8; 32]),
            version,
            nonce: [0; 24],
            sealed: vec![1; 64],
        }
    }

    /// The founder was alone in layout 1; layout 2 has three.
    fn groups() -> Vec<NameGroup> {
        vec![NameGroup::new(2, vec![SECOND, THIRD], 2), NameGroup::new(1, vec![FOUNDER], 1)]
    }

    async fn heard(knows: &[(NodeId, Answer)]) -> (Result<Option<Gathered>, NameError>, Fake) {
        let mut fake = Fake { knows: knows.iter().cloned().collect(), ..Fake::default() };
        (gather(&mut fake, &groups(), &[SECOND, THIRD], b"").await, fake)
    }

    #[tokio::test]
    async fn a_record_found_today_does_not_hide_a_later_one_that_was_not_brought_in() {
        // The founder's clock was ahead: its record is the latest although it was written first.
        let young = [(SECOND, Answer::Record(Some(record(50)), 1)), (THIRD, Answer::Record(Some(record(50)), 1))];
        let (outcome, _) = heard(&young).await;
        assert!(matches!(outcome, Err(NameError::EarlierOwnersSilent { have: 0, need: 1 })), "{outcome:?}");
        let (outcome, _) = heard(&[&young[..], &[(FOUNDER, Answer::Record(Some(record(90)), 2))]].concat()).await;
        let gathered = outcome.unwrap().unwrap();
        assert_eq!(gathered.earlier, [(FOUNDER, record(90))]);
    }

    #[tokio::test]
    async fn owners_of_before_are_left_alone_once_the_names_were_brought_in() {
        let synced = [(SECOND, Answer::Record(None, 2)), (THIRD, Answer::Record(Some(record(50)), 2))];
        let (outcome, fake) = heard(&synced).await;
        assert!(!outcome.unwrap().unwrap().answers.is_empty());
        assert_eq!(fake.asked, [SECOND, THIRD]);
    }

    #[tokio::test]
    async fn the_latest_record_is_the_last_of_the_answers() {
        let (outcome, _) = heard(&[
            (SECOND, Answer::Record(Some(record(70)), 1)),
            (THIRD, Answer::Record(Some(record(50)), 1)),
            (FOUNDER, Answer::Record(None, 1)),
        ])
        .await;
        let orders: Vec<_> = outcome.unwrap().unwrap().answers.iter().map(|(_, answer)| answer.order()).collect();
        assert_eq!(orders.last(), Some(&Some(record(70).order())));
    }

    #[tokio::test]
    async fn too_few_of_today_and_a_refusal_are_told_apart() {
        let (outcome, _) = heard(&[(FOUNDER, Answer::Record(None, 1))]).await;
        assert!(matches!(outcome, Err(NameError::TooFewOwners { have: 0, need: 1, .. })), "{outcome:?}");
        let (outcome, _) = heard(&[(SECOND, Answer::Refused), (THIRD, Answer::Failed)]).await;
        assert!(outcome.unwrap().is_none());
    }
}
