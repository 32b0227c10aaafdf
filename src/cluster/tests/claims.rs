use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{node, quorum};
use crate::cluster::claims::NameClaims;
use crate::cluster::names::{ClaimStep, NameClaim, NameWrite, NameWriteStep};
use crate::format::{NameId, NodeId, Stamp, VersionId};
use crate::limits::{NAME_CLAIM_MAX, NAME_CLAIMS_MAX};

const NAME: NameId = NameId([7; 32]);

fn version(number: u8) -> VersionId {
    VersionId::new(1, 1, [number; 8])
}

fn order(number: u8) -> (Stamp, VersionId) {
    (Stamp::new(1, 0), version(number))
}

#[test]
fn a_name_is_granted_to_one_version_until_its_time_is_over() {
    let (mut claims, start) = (NameClaims::default(), Duration::from_secs(100));
    assert!(claims.grant(NAME, order(1), start));
    assert!(!claims.grant(NAME, order(2), start + NAME_CLAIM_MAX - Duration::from_millis(1)));
    assert!(claims.is_held(&NAME, &order(1), start) && !claims.is_held(&NAME, &order(2), start));
    assert!(claims.grant(NAME, order(2), start + NAME_CLAIM_MAX));
    claims.release(&NAME, &order(1));
    assert!(claims.is_held(&NAME, &order(2), start + NAME_CLAIM_MAX), "who has it no more releases nothing");
    claims.release(&NAME, &order(2));
    assert!(claims.grant(NAME, order(3), start + NAME_CLAIM_MAX));
}

#[test]
fn claims_are_bounded_and_make_room_when_their_time_is_over() {
    let mut claims = NameClaims::default();
    let name = |number: usize| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(number as u64).to_le_bytes());
        NameId(id)
    };
    assert!((0..NAME_CLAIMS_MAX).all(|number| claims.grant(name(number), order(1), Duration::ZERO)));
    assert!(!claims.grant(name(NAME_CLAIMS_MAX), order(1), Duration::ZERO));
    assert!(claims.grant(name(NAME_CLAIMS_MAX), order(1), NAME_CLAIM_MAX));
}

#[test]
fn a_late_release_of_one_attempt_leaves_the_claim_of_the_next() {
    let (mut claims, now) = (NameClaims::default(), Duration::ZERO);
    let later = (Stamp::new(5, 0), version(1));
    assert!(claims.grant(NAME, order(1), now) && claims.grant(NAME, later, now));
    claims.release(&NAME, &order(1));
    assert!(claims.is_held(&NAME, &later, now));
    assert!(!claims.grant(NAME, order(1), now), "a claim that was overtaken on its way counts for nothing");
    assert!(!claims.is_held(&NAME, &order(1), now));
}

#[derive(Default)]
struct Owner {
    claims: NameClaims,
    record: Option<VersionId>,
    grants_from: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Message {
    Claim,
    Granted,
    NotGranted,
    New,
    Kept,
    Refused,
    Release,
}

enum Writing {
    Claiming(NameClaim),
    Record(NameWrite),
    Won,
    Lost,
}

/// Three owners and some writers of one name; messages take up to half the time of a claim.
struct World {
    owners: BTreeMap<NodeId, Owner>,
    writers: Vec<(Writing, Duration, u32)>,
    agenda: BTreeMap<(Duration, u64), (usize, NodeId, u32, Message)>,
    now: Duration,
    sequence: u64,
    rng: StdRng,
    /// Messages get lost, and owners start again.
    is_rough: bool,
}

impl World {
    fn send(&mut self, writer: usize, owner: NodeId, message: Message) {
        if self.is_rough && self.rng.random_ratio(1, 20) {
            return;
        }
        let half = (NAME_CLAIM_MAX / 2).as_micros() as u64;
        let longest = if self.rng.random_ratio(1, 4) { half } else { half / 100 };
        let delay = Duration::from_micros(self.rng.random_range(0..longest));
        self.sequence += 1;
        let attempt = self.writers[writer].2;
        self.agenda.insert((self.now + delay, self.sequence), (writer, owner, attempt, message));
    }

    fn send_all(&mut self, writer: usize, message: Message) {
        for owner in self.owners.keys().copied().collect::<Vec<_>>() {
            self.send(writer, owner, message);
        }
    }

    fn begin(&mut self, writer: usize) {
        self.writers[writer] =
            (Writing::Claiming(NameClaim::new(vec![quorum(1, &[0, 1, 2])])), self.now, self.writers[writer].2 + 1);
        self.send_all(writer, Message::Claim);
    }

    fn give_up(&mut self, writer: usize) {
        self.writers[writer].0 = Writing::Lost;
        if self.writers[writer].2 < 4 && self.rng.random_ratio(1, 2) {
            // It waits until its claims are released before it begins again.
            self.owners.values_mut().for_each(|owner| owner.claims.release(&NAME, &order(writer as u8)));
            self.begin(writer);
        } else {
            self.send_all(writer, Message::Release);
        }
    }

    fn at_owner(&mut self, writer: usize, at: NodeId, message: Message) {
        let (now, version) = (self.now, version(writer as u8));
        let owner = self.owners.get_mut(&at).unwrap();
        let is_taken = owner.record.is_some_and(|record| record != version);
        let answer = match message {
            Message::Claim if is_taken || now < owner.grants_from => Message::NotGranted,
            Message::Claim if owner.claims.grant(NAME, (Stamp::new(1, 0), version), now) => Message::Granted,
            Message::Claim => Message::NotGranted,
            Message::New if is_taken || !owner.claims.is_held(&NAME, &(Stamp::new(1, 0), version), now) => {
                Message::Refused
            }
            Message::New => {
                owner.record = Some(version);
                Message::Kept
            }
            _ => return owner.claims.release(&NAME, &(Stamp::new(1, 0), version)),
        };
        self.send(writer, at, answer);
    }

    fn at_writer(&mut self, writer: usize, from: NodeId, message: Message) {
        let (writing, began, _) = &mut self.writers[writer];
        match (writing, message) {
            (Writing::Claiming(claim), Message::Granted | Message::NotGranted) => {
                let is_granted = matches!(message, Message::Granted);
                match if is_granted { claim.on_grant(from) } else { claim.on_fail(from) } {
                    ClaimStep::Wait => {}
                    ClaimStep::Granted if self.now - *began < NAME_CLAIM_MAX / 2 => {
                        self.writers[writer].0 = Writing::Record(NameWrite::of_record(vec![quorum(1, &[0, 1, 2])]));
                        self.send_all(writer, Message::New);
                    }
                    ClaimStep::Granted | ClaimStep::Failed { .. } => self.give_up(writer),
                }
            }
            (Writing::Record(write), Message::Kept | Message::Refused) => {
                match if matches!(message, Message::Kept) { write.on_ack(from) } else { write.on_fail(from) } {
                    NameWriteStep::Done => self.writers[writer].0 = Writing::Won,
                    NameWriteStep::Failed { .. } => self.writers[writer].0 = Writing::Lost,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn run(seed: u64, is_rough: bool) -> Self {
        let mut world = Self {
            owners: (0..3).map(|number| (node(number), Owner::default())).collect(),
            writers: (0..3).map(|_| (Writing::Lost, Duration::ZERO, 0)).collect(),
            agenda: BTreeMap::new(),
            now: Duration::ZERO,
            sequence: 0,
            rng: StdRng::seed_from_u64(seed),
            is_rough,
        };
        (0..3).for_each(|writer| world.begin(writer));
        while let Some(((when, _), (writer, owner, attempt, message))) = world.agenda.pop_first() {
            world.now = when;
            if is_rough && world.rng.random_ratio(1, 40) {
                let number = world.rng.random_range(0..3);
                let restarted = world.owners.get_mut(&node(number)).unwrap();
                restarted.claims = NameClaims::default();
                restarted.grants_from = when + NAME_CLAIM_MAX;
            }
            match message {
                Message::Claim | Message::New | Message::Release => world.at_owner(writer, owner, message),
                // An answer to an attempt that was given up says nothing any more.
                _ if attempt != world.writers[writer].2 => {}
                _ => world.at_writer(writer, owner, message),
            }
        }
        world
    }

    fn winner(&self, seed: u64) -> Option<VersionId> {
        let winners: Vec<u8> =
            (0..3).filter(|writer| matches!(self.writers[usize::from(*writer)].0, Writing::Won)).collect();
        assert!(winners.len() <= 1, "seed {seed}: {winners:?} all won");
        winners.first().map(|winner| version(*winner))
    }
}

#[test]
fn of_puts_that_must_be_the_first_one_wins_at_most_whatever_gets_lost() {
    let won = (0..20_000).filter(|seed| World::run(*seed, true).winner(*seed).is_some()).count();
    assert!(won > 5_000, "{won} of 20,000 had a winner");
}

#[test]
fn of_puts_that_must_be_the_first_the_losers_leave_nothing_beside_the_winner() {
    let mut won = 0;
    for seed in 0..20_000 {
        let world = World::run(seed, false);
        let Some(winner) = world.winner(seed) else { continue };
        won += 1;
        for owner in world.owners.values() {
            let record = owner.record.filter(|record| *record != winner);
            assert_eq!(record, None, "seed {seed}: a loser's record stands beside the winner's");
        }
    }
    assert!(won > 10_000, "{won} of 20,000 had a winner");
}
