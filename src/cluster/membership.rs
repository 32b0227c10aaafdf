//! The address book: who is in the network, where, and whom to dial when.
//!
//! - A node is known by its certificate and its newest role (by serial); merging is a union, so it needs no order and repeats
//!   do no harm. Both were checked before they come in here.
//! - Who is in a layout is admitted, and has its place here. Whoever else comes is a candidate, which costs it no more than a
//!   ticket, so: its role is kept only while its invite may still admit it, at most [`CANDIDATES_PER_INVITE_MAX`] of one
//!   invite; it may tell of itself alone; and where there is no room, candidates go first, the connected ones last. As long
//!   as no layout is known here nobody can be told apart, and everybody is a candidate whatever the time.
//! - A role that is news goes on to every node with an open connection but the one it came from; whoever connects gets
//!   everything. Since only news is passed on, this ends.
//! - Every known node is dialled while there is no connection to it, up to [`PEERS_DIALLED_UNASKED_MAX`] connections; beyond that
//!   on demand ([`MembershipEvent::Wanted`]). Pauses between failed dials double up to [`DIAL_RETRY_MAX`], each with up to a half of
//!   it more by lot, so that many nodes that lost one do not come back in step. An incoming connection ends the pause.
//! - A ticket's addresses are dialled, for ever, while this node has not joined or is connected to nobody.
//! - One connection for each pair of nodes. When both dialled, the one dialled by the smaller node id stays: both sides know
//!   both ids, so they agree without a word. Of two that the same side dialled the newer stays: its dialler would not have dialled
//!   while it thought the older one alive.
//! - Alive means connected. It is a hint, and removes nothing.
//!
//! | event | state | actions |
//! | --- | --- | --- |
//! | connected | no connection to it | keep; send it all roles |
//! | connected | another connection | close the loser; send roles if the new one stays |
//! | connected | to ourselves | close; that address is never dialled again |
//! | connected | barred node | close |
//! | closed | it was the kept one | gone; dial again after a short pause |
//! | closed | any other | nothing |
//! | dial failed | | the pause grows; the next address is tried next |
//! | roles | news | remember; pass on |
//!
//! On disk ([`Membership::encode`]): format version 2, count 4, then for each node: certificate and role, each behind a
//! u16 length, and the Unix milliseconds when it was last connected 8.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::format::certificate::{NodeCertificate, Role, RoleState};
use crate::format::{Malformed, NodeId, Reader, Writer};
use crate::limits::{
    CANDIDATES_PER_INVITE_MAX, DIAL_RETRY_MAX, DIAL_RETRY_MIN, NODES_MAX, PEERS_DIALLED_UNASKED_MAX,
    ROLES_PER_MESSAGE_MAX,
};

const BOOK_VERSION: u16 = 1;

/// A connection, as its owner numbers them.
pub type ConnectionId = u64;

/// A node as others hear of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    pub certificate: NodeCertificate,
    pub role: Role,
}

#[derive(Clone, Debug)]
pub enum MembershipEvent {
    /// A handshake has ended; `role` is not known yet. `dialled`: by us, at that address.
    Connected {
        connection: ConnectionId,
        certificate: Box<NodeCertificate>,
        dialled: Option<String>,
        wall_ms: u64,
    },
    Closed {
        connection: ConnectionId,
    },
    DialFailed {
        address: String,
    },
    /// From a peer, or from ourselves (`from` our own id) when our role has changed. `wall_s`: now, in Unix seconds.
    Roles {
        from: NodeId,
        known: Vec<Known>,
        wall_s: u64,
    },
    /// Somebody needs a connection to this node now.
    Wanted(NodeId),
    /// It was evicted or forgotten: never dial it, let it in or pass it on again.
    Barred(NodeId),
    /// This node holds a layout that names it.
    Joined,
    /// Nothing but time has passed.
    Tick,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MembershipAction {
    /// `expect`: who has to answer there; `None` for a ticket's address. Every dial ends in a [`MembershipEvent::Connected`] or a
    /// [`MembershipEvent::DialFailed`], the latter also when somebody else answers.
    Dial {
        address: String,
        expect: Option<NodeId>,
    },
    /// At most [`ROLES_PER_MESSAGE_MAX`].
    SendRoles {
        to: NodeId,
        connection: ConnectionId,
        known: Vec<Known>,
    },
    Close {
        connection: ConnectionId,
        reason: &'static str,
    },
    /// There was no connection to it, now there is.
    Alive(NodeId),
    Gone(NodeId),
    /// The book has changed: keep it.
    Save,
}

#[derive(Clone, Debug, Default)]
struct Dialling {
    at: Duration,
    failures: u32,
    running: Option<String>,
    next_address: usize,
    /// Who answered there last (of a ticket's address).
    peer: Option<NodeId>,
}

#[derive(Clone, Debug)]
struct Entry {
    certificate: NodeCertificate,
    role: Option<Role>,
    last_seen_ms: u64,
    connection: Option<Link>,
    dialling: Dialling,
    wanted: bool,
    /// The last connection to it has ended, and there was none since.
    lost: bool,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    id: ConnectionId,
    dialled: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Membership {
    me: NodeId,
    nodes: BTreeMap<NodeId, Entry>,
    own: Option<Known>,
    bootstrap: BTreeMap<String, Dialling>,
    own_addresses: BTreeSet<String>,
    /// Whom a layout names.
    admitted: BTreeSet<NodeId>,
    barred: BTreeSet<NodeId>,
    joined: bool,
    rng: StdRng,
}

impl Membership {
    /// `bootstrap`: the addresses of this node's ticket.
    pub fn new(me: NodeId, bootstrap: Vec<String>, seed: u64) -> Self {
        Self {
            me,
            nodes: BTreeMap::new(),
            own: None,
            bootstrap: bootstrap.into_iter().map(|address| (address, Dialling::default())).collect(),
            own_addresses: BTreeSet::new(),
            admitted: BTreeSet::new(),
            barred: BTreeSet::new(),
            joined: false,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// What to do about `event` at `now`.
    pub fn handle(&mut self, event: MembershipEvent, now: Duration) -> Vec<MembershipAction> {
        let mut actions = Vec::new();
        match event {
            MembershipEvent::Connected { connection, certificate, dialled, wall_ms } => {
                self.connected(connection, *certificate, dialled, wall_ms, now, &mut actions);
            }
            MembershipEvent::Closed { connection } => self.closed(connection, now, &mut actions),
            MembershipEvent::DialFailed { address } => self.dial_failed(&address, now),
            MembershipEvent::Roles { from, known, wall_s } => self.roles(from, known, wall_s, &mut actions),
            MembershipEvent::Wanted(node) => self.wanted(node, now),
            MembershipEvent::Barred(node) => self.bar(node, &mut actions),
            MembershipEvent::Joined => self.joined = true,
            MembershipEvent::Tick => {}
        }
        self.dial_due(now, &mut actions);
        actions
    }

    /// When to come back with a [`MembershipEvent::Tick`], if nothing happens before.
    pub fn next_deadline(&self) -> Option<Duration> {
        let bootstrap =
            self.bootstrap.iter().filter(|(address, _)| self.bootstraps(address)).map(|(_, dialling)| dialling);
        let room = self.room_unasked() > 0;
        let nodes = self.nodes.values().filter(|entry| room || entry.wanted);
        let nodes = nodes.filter(|entry| entry.may_be_dialled(&self.own_addresses)).map(|entry| &entry.dialling);
        bootstrap.chain(nodes).filter(|dialling| dialling.running.is_none()).map(|dialling| dialling.at).min()
    }

    // What is known

    pub fn is_alive(&self, node: &NodeId) -> bool {
        *node == self.me || self.connection(node).is_some()
    }

    /// Whether it was tried and cannot be reached: its connection has ended or a dial has failed, and none has worked since.
    /// Unlike a node that is not alive because nobody needed a connection to it yet.
    pub fn is_lost(&self, node: &NodeId) -> bool {
        let lost = |entry: &Entry| entry.connection.is_none() && (entry.lost || entry.dialling.failures > 0);
        self.nodes.get(node).is_some_and(lost)
    }

    pub fn connection(&self, node: &NodeId) -> Option<ConnectionId> {
        self.nodes.get(node)?.connection.map(|link| link.id)
    }

    pub fn role(&self, node: &NodeId) -> Option<&Role> {
        if *node == self.me { self.own.as_ref().map(|own| &own.role) } else { self.nodes.get(node)?.role.as_ref() }
    }

    pub fn certificate(&self, node: &NodeId) -> Option<&NodeCertificate> {
        if *node == self.me {
            self.own.as_ref().map(|own| &own.certificate)
        } else {
            self.nodes.get(node).map(|entry| &entry.certificate)
        }
    }

    pub fn last_seen_ms(&self, node: &NodeId) -> Option<u64> {
        self.nodes.get(node).map(|entry| entry.last_seen_ms).filter(|seen| *seen != 0)
    }

    /// Every node with a role, ourselves included, ascending by id.
    pub fn known(&self) -> Vec<Known> {
        let others = self.nodes.values().filter_map(|entry| {
            let role = entry.role.clone()?;
            Some(Known { certificate: entry.certificate.clone(), role })
        });
        let mut known: Vec<Known> = others.chain(self.own.clone()).collect();
        known.sort_by_key(|known| known.role.node);
        known
    }

    pub fn alive(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().filter(|(_, entry)| entry.connection.is_some()).map(|(node, _)| *node)
    }

    pub fn is_barred(&self, node: &NodeId) -> bool {
        self.barred.contains(node)
    }

    // Connections

    fn connected(
        &mut self,
        connection: ConnectionId,
        certificate: NodeCertificate,
        dialled: Option<String>,
        wall_ms: u64,
        now: Duration,
        actions: &mut Vec<MembershipAction>,
    ) {
        let node = certificate.node;
        self.dial_ended(dialled.as_deref(), node, now);
        if node == self.me {
            self.own_addresses.extend(dialled);
            actions.push(MembershipAction::Close { connection, reason: "this node dialled itself" });
            return;
        }
        if self.barred.contains(&node) {
            actions.push(MembershipAction::Close { connection, reason: "this node was put out of the network" });
            return;
        }
        if !self.nodes.contains_key(&node) && !self.make_room(&certificate, actions) {
            actions.push(MembershipAction::Close { connection, reason: "the network is full" });
            return;
        }
        let me = self.me;
        let entry = self.nodes.entry(node).or_insert_with(|| Entry::new(certificate.clone()));
        entry.certificate = certificate;
        entry.last_seen_ms = entry.last_seen_ms.max(wall_ms);
        entry.wanted = false;
        entry.lost = false;
        entry.dialling.failures = 0;
        let link = Link { id: connection, dialled: dialled.is_some() };
        match entry.connection {
            Some(held) if !replaces(me, node, held, link) => {
                actions.push(MembershipAction::Close { connection, reason: "another connection of this pair stays" });
                return;
            }
            Some(held) => actions
                .push(MembershipAction::Close { connection: held.id, reason: "another connection of this pair stays" }),
            None => actions.push(MembershipAction::Alive(node)),
        }
        entry.connection = Some(link);
        actions.push(MembershipAction::Save);
        let known: Vec<Known> = self.known().into_iter().filter(|known| known.role.node != node).collect();
        send_roles(node, connection, known, actions);
    }

    /// A dial to this address has come to an end, well.
    fn dial_ended(&mut self, address: Option<&str>, peer: NodeId, now: Duration) {
        let Some(address) = address else { return };
        for dialling in self.dialling_of(address) {
            dialling.running = None;
            dialling.failures = 0;
            dialling.peer = Some(peer);
            dialling.at = now + DIAL_RETRY_MIN;
        }
    }

    fn dialling_of<'a>(&'a mut self, address: &'a str) -> impl Iterator<Item = &'a mut Dialling> + 'a {
        let nodes = self.nodes.values_mut().map(|entry| &mut entry.dialling);
        nodes.chain(self.bootstrap.values_mut()).filter(move |dialling| dialling.running.as_deref() == Some(address))
    }

    fn closed(&mut self, connection: ConnectionId, now: Duration, actions: &mut Vec<MembershipAction>) {
        let lot = self.rng.random_range(0.0..0.5);
        let held = |entry: &&mut Entry| entry.connection.is_some_and(|link| link.id == connection);
        let Some(entry) = self.nodes.values_mut().find(held) else { return };
        entry.connection = None;
        entry.lost = true;
        entry.dialling.at = now + pause_after(1, lot);
        let (node, is_nobody) = (entry.certificate.node, entry.role.is_none());
        if is_nobody && !self.admitted.contains(&node) {
            self.nodes.remove(&node);
        }
        actions.push(MembershipAction::Gone(node));
        actions.push(MembershipAction::Save);
    }

    fn dial_failed(&mut self, address: &str, now: Duration) {
        let lot = self.rng.random_range(0.0..0.5);
        for dialling in self.dialling_of(address) {
            dialling.running = None;
            dialling.failures = dialling.failures.saturating_add(1);
            dialling.next_address = dialling.next_address.wrapping_add(1);
            dialling.at = now + pause_after(dialling.failures, lot);
        }
    }

    fn wanted(&mut self, node: NodeId, now: Duration) {
        if let Some(entry) = self.nodes.get_mut(&node).filter(|entry| entry.connection.is_none()) {
            entry.wanted = true;
            // Its pause stays when it has just failed: wanting does not make it a storm.
            entry.dialling.at = if entry.dialling.failures == 0 { now } else { entry.dialling.at };
        }
    }

    fn bar(&mut self, node: NodeId, actions: &mut Vec<MembershipAction>) {
        self.barred.insert(node);
        if let Some(entry) = self.nodes.remove(&node) {
            if let Some(link) = entry.connection {
                actions.push(MembershipAction::Close {
                    connection: link.id,
                    reason: "this node was put out of the network",
                });
                actions.push(MembershipAction::Gone(node));
            }
            actions.push(MembershipAction::Save);
        }
    }

    // Roles

    fn roles(&mut self, from: NodeId, known: Vec<Known>, wall_s: u64, actions: &mut Vec<MembershipAction>) {
        let tells_of_all = from == self.me || self.admitted.is_empty() || self.admitted.contains(&from);
        let mut news = Vec::new();
        for known in known {
            if (tells_of_all || known.role.node == from) && self.learn(&known, wall_s, actions) {
                news.push(known);
            }
        }
        if news.is_empty() {
            return;
        }
        actions.push(MembershipAction::Save);
        for (node, entry) in &self.nodes {
            let Some(link) = entry.connection.filter(|_| *node != from) else { continue };
            let theirs = news.iter().filter(|known| known.role.node != *node).cloned().collect();
            send_roles(*node, link.id, theirs, actions);
        }
    }

    /// Whether it is news.
    fn learn(&mut self, known: &Known, wall_s: u64, actions: &mut Vec<MembershipAction>) -> bool {
        let node = known.role.node;
        if known.certificate.node != node || self.barred.contains(&node) {
            return false;
        }
        if node == self.me {
            let newer = self.own.as_ref().is_none_or(|own| own.role.serial < known.role.serial);
            if newer {
                self.own_addresses.extend(known.role.addresses.iter().cloned());
                self.own = Some(known.clone());
            }
            return newer;
        }
        let may_come = self.admitted.is_empty() || known.certificate.invite.admits(wall_s);
        if !may_come && !self.admitted.contains(&node) {
            return false;
        }
        if !self.nodes.contains_key(&node) && !self.make_room(&known.certificate, actions) {
            return false;
        }
        match self.nodes.get_mut(&node) {
            Some(entry) if entry.role.as_ref().is_some_and(|role| role.serial >= known.role.serial) => false,
            Some(entry) => {
                entry.role = Some(known.role.clone());
                true
            }
            None => {
                let mut entry = Entry::new(known.certificate.clone());
                entry.role = Some(known.role.clone());
                self.nodes.insert(node, entry);
                true
            }
        }
    }

    /// Room for one that is not known yet; false when it may not have any.
    fn make_room(&mut self, certificate: &NodeCertificate, actions: &mut Vec<MembershipAction>) -> bool {
        let is_candidate = !self.admitted.contains(&certificate.node);
        let invite = certificate.invite.public;
        let of_its_invite = |entry: &Entry| entry.certificate.invite.public == invite;
        let candidates = self.candidates().filter(|(_, entry)| of_its_invite(entry)).count();
        if is_candidate && candidates >= CANDIDATES_PER_INVITE_MAX && !self.let_go(of_its_invite, false, actions) {
            return false;
        }
        self.nodes.len() < NODES_MAX || self.let_go(|_| true, !is_candidate, actions)
    }

    fn candidates(&self) -> impl Iterator<Item = (&NodeId, &Entry)> {
        self.nodes.iter().filter(|(node, _)| !self.admitted.contains(node))
    }

    /// Forgets one of these candidates: the one that was not seen for longest, and one that is connected only if it has to be.
    fn let_go(
        &mut self,
        of: impl Fn(&Entry) -> bool,
        even_connected: bool,
        actions: &mut Vec<MembershipAction>,
    ) -> bool {
        let gone = self
            .candidates()
            .filter(|(_, entry)| of(entry) && (even_connected || entry.connection.is_none()))
            .min_by_key(|(_, entry)| (entry.connection.is_some(), entry.last_seen_ms))
            .map(|(node, _)| *node);
        let Some(entry) = gone.and_then(|node| self.nodes.remove(&node)) else { return false };
        if let Some(link) = entry.connection {
            let reason = "the network is full, and this node is not admitted";
            actions.push(MembershipAction::Close { connection: link.id, reason });
            actions.push(MembershipAction::Gone(entry.certificate.node));
        }
        true
    }

    // Dialling

    fn bootstraps(&self, address: &str) -> bool {
        (!self.joined || self.nodes.values().all(|entry| entry.connection.is_none()))
            && !self.own_addresses.contains(address)
            && !self.is_connected_at(address)
            && self.bootstrap.get(address).and_then(|dialling| dialling.peer).is_none_or(|peer| !self.is_alive(&peer))
    }

    /// A node that is connected has said that it listens there.
    fn is_connected_at(&self, address: &str) -> bool {
        self.nodes
            .values()
            .any(|entry| entry.connection.is_some() && entry.addresses().iter().any(|listens| listens == address))
    }

    /// How many more nodes are dialled without being wanted.
    fn room_unasked(&self) -> usize {
        let busy = |entry: &&Entry| entry.connection.is_some() || entry.dialling.running.is_some();
        PEERS_DIALLED_UNASKED_MAX.saturating_sub(self.nodes.values().filter(busy).count())
    }

    fn dial_due(&mut self, now: Duration, actions: &mut Vec<MembershipAction>) {
        let due = |dialling: &Dialling| dialling.running.is_none() && dialling.at <= now;
        let addresses: Vec<String> = self
            .bootstrap
            .iter()
            .filter(|(address, dialling)| due(dialling) && self.bootstraps(address))
            .map(|(address, _)| address.clone())
            .collect();
        for address in addresses {
            if let Some(dialling) = self.bootstrap.get_mut(&address) {
                dialling.running = Some(address.clone());
                actions.push(MembershipAction::Dial { address, expect: None });
            }
        }
        let mut unasked = self.room_unasked();
        for (node, entry) in &mut self.nodes {
            if !due(&entry.dialling) || !entry.may_be_dialled(&self.own_addresses) || (unasked == 0 && !entry.wanted) {
                continue;
            }
            let Some(address) = entry.address(&self.own_addresses) else { continue };
            entry.dialling.running = Some(address.clone());
            unasked = unasked.saturating_sub(1);
            actions.push(MembershipAction::Dial { address, expect: Some(*node) });
        }
    }

    // On disk

    pub fn encode(&self) -> Vec<u8> {
        let known: Vec<(&Entry, &Role)> =
            self.nodes.values().filter_map(|entry| Some((entry, entry.role.as_ref()?))).collect();
        let mut writer = Writer::new();
        writer.u16(BOOK_VERSION).u32(known.len() as u32);
        for (entry, role) in known {
            writer.short_bytes(&entry.certificate.encode()).short_bytes(&role.encode()).u64(entry.last_seen_ms);
        }
        writer.finish()
    }

    /// Takes in what a layout that was checked says of its nodes: they are admitted. Whom nobody may admit any more, and who
    /// was remembered while no layout was known here, is forgotten.
    pub fn admit(&mut self, known: &[Known], wall_s: u64) -> Vec<MembershipAction> {
        let mut actions = Vec::new();
        self.admitted.extend(known.iter().map(|known| known.role.node));
        for known in known {
            self.learn(known, wall_s, &mut actions);
        }
        let admitted = &self.admitted;
        self.nodes.retain(|node, entry| {
            if admitted.contains(node) || entry.certificate.invite.admits(wall_s) {
                return true;
            }
            entry.role = None;
            entry.connection.is_some()
        });
        actions
    }

    /// Takes a book back in, at start. Our own disk's word, checked when it was learnt; a damaged book is an error and can be
    /// thrown away: the ticket's addresses lead back.
    pub fn restore(&mut self, book: &[u8], wall_s: u64) -> Result<(), Malformed> {
        let mut reader = Reader::new(book);
        if reader.u16("address book")? != BOOK_VERSION {
            return Err(Malformed::new("address book's format version (update gabion)"));
        }
        let count = reader.u32("number of nodes in the address book")?;
        if count as usize > NODES_MAX {
            return Err(Malformed::new("number of nodes in the address book"));
        }
        for _ in 0..count {
            let certificate = NodeCertificate::decode(reader.short_bytes("certificate in the address book")?)?;
            let role = Role::decode(reader.short_bytes("role in the address book")?)?;
            let seen = reader.u64("time in the address book")?;
            let node = role.node;
            // Nobody is connected yet: there is nothing to close.
            self.learn(&Known { certificate, role }, wall_s, &mut Vec::new());
            if let Some(entry) = self.nodes.get_mut(&node) {
                entry.last_seen_ms = entry.last_seen_ms.max(seen);
            }
        }
        reader.end("bytes after the address book")
    }
}

impl Entry {
    fn new(certificate: NodeCertificate) -> Self {
        Self {
            certificate,
            role: None,
            last_seen_ms: 0,
            connection: None,
            dialling: Dialling::default(),
            wanted: false,
            lost: false,
        }
    }

    fn addresses(&self) -> &[String] {
        self.role.as_ref().map_or(&[], |role| &role.addresses)
    }

    fn may_be_dialled(&self, own: &BTreeSet<String>) -> bool {
        let left = self.role.as_ref().is_some_and(|role| role.state == RoleState::Left);
        self.connection.is_none() && !left && self.address(own).is_some()
    }

    /// The one whose turn it is. An address that two nodes claim (one took over the other's machine) is dialled for both:
    /// the handshake tells who is there.
    fn address(&self, own: &BTreeSet<String>) -> Option<String> {
        let addresses: Vec<&String> = self.addresses().iter().filter(|address| !own.contains(*address)).collect();
        let turn = self.dialling.next_address.checked_rem(addresses.len())?;
        addresses.get(turn).map(|address| (*address).clone())
    }
}

/// Whether the newer of two connections to `peer` is the one that stays.
fn replaces(me: NodeId, peer: NodeId, held: Link, new: Link) -> bool {
    if held.dialled == new.dialled {
        return true;
    }
    let dialler = if new.dialled { me } else { peer };
    dialler == me.min(peer)
}

/// `lot`: how much of the pause comes on top, from 0 to 1/2.
fn pause_after(failures: u32, lot: f64) -> Duration {
    let doubled = DIAL_RETRY_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(DIAL_RETRY_MAX);
    doubled.mul_f64(1.0 + lot)
}

fn send_roles(to: NodeId, connection: ConnectionId, known: Vec<Known>, actions: &mut Vec<MembershipAction>) {
    for part in known.chunks(ROLES_PER_MESSAGE_MAX) {
        actions.push(MembershipAction::SendRoles { to, connection, known: part.to_vec() });
    }
}
