use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{certificate, node, role};
use crate::cluster::membership::{ConnectionId, Known, Membership, MembershipAction, MembershipEvent};
use crate::format::NodeId;
use crate::format::certificate::Class;
use crate::limits::{CANDIDATES_PER_INVITE_MAX, NODES_MAX, PEERS_DIALLED_UNASKED_MAX};

const NOW_S: u64 = 1_000_000;

fn address(number: u16) -> String {
    format!("10.0.0.{number}:7000")
}

fn known(number: u16, serial: u64) -> Known {
    Known { certificate: certificate(number, Class::Member, ""), role: role(number, serial, &[address(number)]) }
}

/// Something that happens at a node at some time.
#[derive(Debug, Clone)]
enum Happening {
    Event(MembershipEvent),
    Dial { address: String },
}

/// Nodes on a virtual clock and network, driven by their own actions.
struct Network {
    nodes: BTreeMap<u16, Membership>,
    /// (when, sequence) -> (where, what).
    agenda: BTreeMap<(Duration, u64), (u16, Happening)>,
    /// Each connection is one id at both ends; who dialled, and both ends.
    connections: BTreeMap<ConnectionId, (u16, u16)>,
    down: BTreeSet<u16>,
    now: Duration,
    sequence: u64,
    rng: StdRng,
    dials: u64,
}

impl Network {
    fn new(count: u16, seed: u64) -> Self {
        let mut network = Self {
            nodes: BTreeMap::new(),
            agenda: BTreeMap::new(),
            connections: BTreeMap::new(),
            down: BTreeSet::new(),
            now: Duration::ZERO,
            sequence: 0,
            rng: StdRng::seed_from_u64(seed),
            dials: 0,
        };
        for number in 0..count {
            // Everybody's ticket names the founder alone, the founder's own included.
            network.nodes.insert(number, Membership::new(node(number), vec![address(0)], seed ^ u64::from(number)));
            let own = MembershipEvent::Roles { from: node(number), known: vec![known(number, 1)], wall_s: NOW_S };
            network.schedule(Duration::ZERO, number, Happening::Event(own));
        }
        network
    }

    fn schedule(&mut self, after: Duration, at: u16, what: Happening) {
        self.sequence += 1;
        self.agenda.insert((self.now + after, self.sequence), (at, what));
    }

    fn latency(&mut self) -> Duration {
        Duration::from_micros(self.rng.random_range(100..50_000))
    }

    fn number_of(&self, id: &NodeId) -> u16 {
        (0..1000).find(|number| node(*number) == *id).expect("a node of this network")
    }

    fn run_until(&mut self, end: Duration) {
        while let Some(((when, _), (at, what))) = self.agenda.pop_first() {
            if when > end {
                self.schedule(when - self.now, at, what);
                break;
            }
            self.now = when;
            match what {
                Happening::Dial { address } => self.dialled(at, &address),
                Happening::Event(event) => self.deliver(at, event),
            }
        }
        self.now = end;
    }

    /// The end of a dial: a connection at both ends, or a failure.
    fn dialled(&mut self, from: u16, target: &str) {
        self.dials += 1;
        let to = (0..1000).find(|number| address(*number) == target).expect("an address of this network");
        if self.down.contains(&to) || self.down.contains(&from) || !self.nodes.contains_key(&to) {
            self.deliver(from, MembershipEvent::DialFailed { address: target.into() });
            return;
        }
        self.sequence += 1;
        let connection = self.sequence;
        self.connections.insert(connection, (from, to));
        for (here, there, dialled) in [(from, to, Some(target.to_owned())), (to, from, None)] {
            let latency = self.latency();
            let certificate = Box::new(certificate(there, Class::Member, ""));
            let event = MembershipEvent::Connected { connection, certificate, dialled, wall_ms: 1 };
            self.schedule(latency, here, Happening::Event(event));
        }
    }

    fn deliver(&mut self, at: u16, event: MembershipEvent) {
        if self.down.contains(&at) {
            return;
        }
        if let MembershipEvent::Connected { connection, .. } = &event
            && !self.connections.contains_key(connection)
        {
            // It was closed at the other end before this end had noticed it.
            let ended = MembershipEvent::DialFailed { address: address(0) };
            let event = if let MembershipEvent::Connected { dialled: Some(address), .. } = event {
                MembershipEvent::DialFailed { address }
            } else {
                ended
            };
            self.handle(at, event);
            return;
        }
        self.handle(at, event);
    }

    fn handle(&mut self, at: u16, event: MembershipEvent) {
        let now = self.now;
        let membership = self.nodes.get_mut(&at).expect("a node");
        let actions = membership.handle(event, now);
        let deadline = membership.next_deadline();
        for action in actions {
            let latency = self.latency();
            match action {
                MembershipAction::Dial { address, .. } => self.schedule(latency, at, Happening::Dial { address }),
                MembershipAction::SendRoles { to, connection, known } => {
                    if self.connections.contains_key(&connection) {
                        let event = MembershipEvent::Roles { from: node(at), known, wall_s: NOW_S };
                        let to = self.number_of(&to);
                        self.schedule(latency, to, Happening::Event(event));
                    }
                }
                MembershipAction::Close { connection, .. } => self.close(connection),
                MembershipAction::Alive(_) | MembershipAction::Gone(_) | MembershipAction::Save => {}
            }
        }
        if let Some(deadline) = deadline {
            self.schedule(deadline.saturating_sub(self.now), at, Happening::Event(MembershipEvent::Tick));
        }
    }

    fn close(&mut self, connection: ConnectionId) {
        if let Some((from, to)) = self.connections.remove(&connection) {
            for end in [from, to] {
                let latency = self.latency();
                self.schedule(latency, end, Happening::Event(MembershipEvent::Closed { connection }));
            }
        }
    }

    fn crash(&mut self, number: u16) {
        self.down.insert(number);
        let theirs: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, (from, to))| *from == number || *to == number)
            .map(|(connection, _)| *connection)
            .collect();
        theirs.into_iter().for_each(|connection| self.close(connection));
    }

    /// Everybody up knows everybody, and each pair has exactly one connection, known to both ends.
    fn assert_complete(&self) {
        let up: Vec<u16> = self.nodes.keys().copied().filter(|number| !self.down.contains(number)).collect();
        for here in &up {
            for there in up.iter().filter(|there| *there != here) {
                let connection = self.nodes[here].connection(&node(*there));
                assert!(connection.is_some(), "{here} has no connection to {there} at {:?}", self.now);
                assert_eq!(
                    connection,
                    self.nodes[there].connection(&node(*here)),
                    "{here} and {there} hold different ones"
                );
                assert!(self.nodes[here].role(&node(*there)).is_some(), "{here} has no role of {there}");
            }
        }
        let pairs = up.len() * (up.len() - 1) / 2;
        assert_eq!(self.connections.len(), pairs, "no connection besides the kept ones");
    }
}

#[test]
fn nodes_learn_each_other_from_one_bootstrap_address() {
    for seed in 0..20 {
        println!("seed {seed}");
        let mut network = Network::new(8, seed);
        network.run_until(Duration::from_secs(30));
        network.assert_complete();
        let dials = network.dials;
        network.run_until(Duration::from_secs(120));
        network.assert_complete();
        assert_eq!(network.dials, dials, "a whole network dials no more");
    }
}

#[test]
fn node_that_was_away_is_found_again() {
    for seed in 0..10 {
        println!("seed {seed}");
        let mut network = Network::new(5, seed);
        network.run_until(Duration::from_secs(20));
        // The bootstrap node itself goes; the others have each other's addresses.
        network.crash(0);
        network.run_until(Duration::from_secs(200));
        network.assert_complete();
        network.down.clear();
        let restarted = Membership::new(node(0), vec![address(0)], 99);
        network.nodes.insert(0, restarted);
        let own = MembershipEvent::Roles { from: node(0), known: vec![known(0, 2)], wall_s: NOW_S };
        network.schedule(Duration::ZERO, 0, Happening::Event(own));
        network.run_until(Duration::from_secs(300));
        network.assert_complete();
        assert!((1..5).all(|number| network.nodes[&number].role(&node(0)).expect("known").serial == 2));
    }
}

#[test]
fn change_of_role_reaches_everybody_and_an_older_one_changes_nothing() {
    let mut network = Network::new(6, 3);
    network.run_until(Duration::from_secs(20));
    let newer = MembershipEvent::Roles { from: node(4), known: vec![known(4, 7)], wall_s: NOW_S };
    network.schedule(Duration::ZERO, 4, Happening::Event(newer));
    network.run_until(Duration::from_secs(25));
    assert!(network.nodes.values().all(|membership| membership.role(&node(4)).expect("known").serial == 7));
    let older = MembershipEvent::Roles { from: node(1), known: vec![known(4, 6)], wall_s: NOW_S };
    let actions = network.nodes.get_mut(&2).expect("a node").handle(older, network.now);
    assert_eq!(actions, [], "old news is nothing to pass on");
}

fn connected(connection: ConnectionId, number: u16, dialled: bool) -> MembershipEvent {
    let certificate = Box::new(certificate(number, Class::Member, ""));
    MembershipEvent::Connected { connection, certificate, dialled: dialled.then(|| address(number)), wall_ms: 5 }
}

fn closes(actions: &[MembershipAction]) -> Vec<ConnectionId> {
    let close = |action: &MembershipAction| match action {
        MembershipAction::Close { connection, .. } => Some(*connection),
        _ => None,
    };
    actions.iter().filter_map(close).collect()
}

/// Both ends see the two connections of a double dial in either order, and always keep the same one.
#[test]
fn double_dial_leaves_the_same_connection_at_both_ends() {
    let (smaller, larger) = if node(0) < node(1) { (0, 1) } else { (1, 0) };
    for (me, peer) in [(smaller, larger), (larger, smaller)] {
        // Connection 1 was dialled by the smaller id, connection 2 by the larger.
        for order in [[1, 2], [2, 1]] {
            let mut membership = Membership::new(node(me), vec![], 1);
            for connection in order {
                let mine = (connection == 1) == (me == smaller);
                membership.handle(connected(connection, peer, mine), Duration::ZERO);
            }
            assert_eq!(membership.connection(&node(peer)), Some(1), "at {me}, order {order:?}");
        }
    }
}

#[test]
fn stale_connection_of_the_same_dialler_gives_way() {
    let mut membership = Membership::new(node(0), vec![], 1);
    membership.handle(connected(1, 5, false), Duration::ZERO);
    let actions = membership.handle(connected(2, 5, false), Duration::ZERO);
    assert_eq!(closes(&actions), [1]);
    let actions = membership.handle(MembershipEvent::Closed { connection: 1 }, Duration::ZERO);
    assert_eq!(actions, [], "the end of the loser is no news");
    assert!(membership.is_alive(&node(5)));
}

/// Its role, which names the address, may be long in coming.
#[test]
fn bootstrap_node_is_not_dialled_again_while_it_is_connected() {
    let mut membership = Membership::new(node(0), vec![address(5)], 1);
    membership.handle(MembershipEvent::Tick, Duration::ZERO);
    membership.handle(connected(1, 5, true), Duration::ZERO);
    assert_eq!(membership.handle(MembershipEvent::Tick, Duration::from_secs(60)), []);
    let actions = membership.handle(MembershipEvent::Closed { connection: 1 }, Duration::from_secs(60));
    assert!(matches!(actions.last(), Some(MembershipAction::Dial { expect: None, .. })), "{actions:?}");
}

#[test]
fn own_address_is_not_dialled_twice() {
    let mut membership = Membership::new(node(0), vec![address(0)], 1);
    let actions = membership.handle(MembershipEvent::Tick, Duration::ZERO);
    assert!(matches!(actions[..], [MembershipAction::Dial { expect: None, .. }]));
    assert_eq!(closes(&membership.handle(connected(1, 0, true), Duration::ZERO)), [1]);
    assert_eq!(membership.next_deadline(), None);
}

#[test]
fn failed_dials_pause_longer_and_longer_but_never_stop() {
    let mut membership = Membership::new(node(0), vec![address(9)], 7);
    let mut now = Duration::ZERO;
    let mut pauses = Vec::new();
    for _ in 0..200 {
        let actions = membership.handle(MembershipEvent::Tick, now);
        assert!(matches!(actions[..], [MembershipAction::Dial { .. }]), "{actions:?}");
        membership.handle(MembershipEvent::DialFailed { address: address(9) }, now);
        let next = membership.next_deadline().expect("a ticket's address is dialled for ever");
        pauses.push(next - now);
        now = next;
    }
    assert!(pauses[0] < Duration::from_millis(151));
    assert!(pauses[100..].iter().all(|pause| (30..=45).contains(&pause.as_secs())));
    assert!(pauses[100..].iter().collect::<BTreeSet<_>>().len() > 10, "the pauses vary");
}

#[test]
fn big_network_is_dialled_only_in_part_unless_a_node_is_wanted() {
    let mut membership = Membership::new(node(0), vec![], 1);
    (1..400).for_each(|number| drop(membership.admit(&[known(number, 1)], NOW_S)));
    let actions = membership.handle(MembershipEvent::Tick, Duration::ZERO);
    let dialled: BTreeSet<NodeId> = actions
        .iter()
        .filter_map(|action| match action {
            MembershipAction::Dial { expect, .. } => *expect,
            _ => None,
        })
        .collect();
    assert_eq!(dialled.len(), PEERS_DIALLED_UNASKED_MAX);
    assert_eq!(membership.next_deadline(), None, "nothing to come back for");
    let other = (1..400).map(node).find(|node| !dialled.contains(node)).expect("some are left");
    let actions = membership.handle(MembershipEvent::Wanted(other), Duration::ZERO);
    assert!(matches!(actions[..], [MembershipAction::Dial { expect, .. }] if expect == Some(other)), "{actions:?}");
}

#[test]
fn barred_node_is_closed_forgotten_and_refused() {
    let mut membership = Membership::new(node(0), vec![], 1);
    membership.handle(connected(1, 5, false), Duration::ZERO);
    membership
        .handle(MembershipEvent::Roles { from: node(5), known: vec![known(5, 1)], wall_s: NOW_S }, Duration::ZERO);
    assert_eq!(closes(&membership.handle(MembershipEvent::Barred(node(5)), Duration::ZERO)), [1]);
    membership
        .handle(MembershipEvent::Roles { from: node(1), known: vec![known(5, 9)], wall_s: NOW_S }, Duration::ZERO);
    assert!(membership.role(&node(5)).is_none() && membership.known().is_empty());
    assert_eq!(closes(&membership.handle(connected(2, 5, false), Duration::ZERO)), [2]);
}

#[test]
fn book_survives_on_disk_and_leads_back_without_the_bootstrap() {
    let mut membership = Membership::new(node(0), vec![address(9)], 1);
    membership.handle(connected(1, 5, false), Duration::ZERO);
    let roles = vec![known(5, 3), known(6, 4)];
    membership.handle(MembershipEvent::Roles { from: node(5), known: roles, wall_s: NOW_S }, Duration::ZERO);
    let book = membership.encode();
    let mut restored = Membership::new(node(0), vec![], 1);
    restored.restore(&book, NOW_S).expect("a sound book");
    assert_eq!(restored.known(), membership.known());
    assert_eq!(restored.last_seen_ms(&node(5)), Some(5));
    let dials = restored.handle(MembershipEvent::Tick, Duration::ZERO);
    assert_eq!(dials.len(), 2, "{dials:?}");
    for cut in 0..book.len() {
        assert!(Membership::new(node(0), vec![], 1).restore(&book[..cut], NOW_S).is_err(), "cut at {cut}");
    }
}

/// Of somebody who comes with a ticket of its own, numbered `invite`, that expires then.
fn candidate(number: u16, invite: u8, expiry_s: u64) -> Known {
    let mut candidate = known(number, 1);
    candidate.certificate.invite.public = [invite; 32];
    candidate.certificate.invite.expiry_s = expiry_s;
    candidate
}

/// Whether it was kept.
fn is_kept(membership: &mut Membership, from: u16, candidate: Known) -> bool {
    let number = candidate.role.node;
    let event = MembershipEvent::Roles { from: node(from), known: vec![candidate], wall_s: NOW_S };
    membership.handle(event, Duration::ZERO);
    membership.role(&number).is_some()
}

fn with_layout(admitted: std::ops::Range<u16>) -> Membership {
    let mut membership = Membership::new(node(0), vec![], 1);
    admitted.for_each(|number| drop(membership.admit(&[known(number, 1)], NOW_S)));
    membership
}

#[test]
fn role_by_an_expired_invite_is_kept_of_the_admitted_alone() {
    let mut membership = with_layout(0..3);
    assert!(!is_kept(&mut membership, 1, candidate(5, 5, NOW_S - 1)));
    assert!(is_kept(&mut membership, 1, candidate(5, 5, NOW_S)));
    assert!(is_kept(&mut membership, 1, candidate(6, 5, 0)));
    let mut newer = candidate(2, 5, NOW_S - 1);
    newer.role.serial = 9;
    is_kept(&mut membership, 1, newer);
    assert_eq!(membership.role(&node(2)).map(|role| role.serial), Some(9), "it was admitted in time");
    let mut newcomer = Membership::new(node(0), vec![], 1);
    assert!(is_kept(&mut newcomer, 1, candidate(5, 5, NOW_S - 1)), "without a layout nobody can be told apart");
    newcomer.admit(&[known(1, 1)], NOW_S);
    assert!(newcomer.role(&node(5)).is_none() && newcomer.role(&node(1)).is_some(), "now they can");
}

#[test]
fn who_is_not_admitted_tells_of_itself_alone() {
    let mut membership = with_layout(0..3);
    assert!(!is_kept(&mut membership, 7, candidate(8, 5, 0)));
    assert!(is_kept(&mut membership, 7, candidate(7, 5, 0)));
    assert!(is_kept(&mut membership, 2, candidate(8, 5, 0)));
}

#[test]
fn candidates_of_one_invite_have_few_places_and_leave_those_of_others_alone() {
    let mut membership = with_layout(0..3);
    for number in 100..400 {
        is_kept(&mut membership, 1, candidate(number, 5, 0));
    }
    assert_eq!(membership.known().len(), 3 + CANDIDATES_PER_INVITE_MAX, "this node and the two others of the layout");
    assert!(is_kept(&mut membership, 1, candidate(50, 6, 0)));
    // Connected ones keep their place against whoever comes with the same invite, and lose it when they leave without a role.
    let mut membership = with_layout(0..3);
    for number in 100..400 {
        let Known { certificate, .. } = candidate(number, 5, NOW_S - 1);
        let certificate = Box::new(certificate);
        let connection = ConnectionId::from(number);
        let event = MembershipEvent::Connected { connection, certificate, dialled: None, wall_ms: 1 };
        let closed = closes(&membership.handle(event, Duration::ZERO));
        let has_place = usize::from(number - 100) < CANDIDATES_PER_INVITE_MAX;
        assert_eq!(closed, if has_place { vec![] } else { vec![connection] });
    }
    membership.handle(MembershipEvent::Closed { connection: 100 }, Duration::ZERO);
    assert!(membership.certificate(&node(100)).is_none());
    assert!(is_kept(&mut membership, 1, candidate(1000, 5, 0)), "there is a place again");
}

#[test]
fn full_book_lets_candidates_go_for_whoever_is_admitted() {
    let mut membership = with_layout(0..3);
    let mut number = 3;
    for invite in 0..=u8::MAX {
        for _ in 0..CANDIDATES_PER_INVITE_MAX {
            is_kept(&mut membership, 1, candidate(number, invite, 0));
            number += 1;
        }
    }
    assert_eq!(membership.known().len(), 1 + NODES_MAX, "this node, and as many as there may be");
    for admitted in number..number + 500 {
        membership.admit(&[known(admitted, 1)], NOW_S);
        assert!(membership.role(&node(admitted)).is_some(), "{admitted}");
    }
    assert!((1..3).all(|admitted| membership.role(&node(admitted)).is_some()));
    assert_eq!(membership.known().len(), 1 + NODES_MAX, "this node, and as many as there may be");
}

#[test]
fn node_is_lost_once_it_was_tried_in_vain_and_not_before() {
    let mut membership = with_layout(0..3);
    assert!(!membership.is_lost(&node(1)), "nobody has tried");
    membership.handle(MembershipEvent::Tick, Duration::ZERO);
    membership.handle(MembershipEvent::DialFailed { address: address(1) }, Duration::ZERO);
    assert!(membership.is_lost(&node(1)) && !membership.is_lost(&node(2)));
    membership.handle(connected(1, 1, false), Duration::ZERO);
    assert!(!membership.is_lost(&node(1)));
    membership.handle(MembershipEvent::Closed { connection: 1 }, Duration::ZERO);
    assert!(membership.is_lost(&node(1)));
}
