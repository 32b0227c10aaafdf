//! Who is there: the membership machine, shared by all shards, with this node's own role.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::shared::lock;
use super::wall_ms;
use crate::cluster::membership::{ConnectionId, Known};
use crate::cluster::{Membership, MembershipAction, MembershipEvent};
use crate::config::NodeConfig;
use crate::crypto::identity::{CheckedCertificate, sign_role};
use crate::crypto::keys::NodeKeys;
use crate::format::certificate::{Layout, LayoutEntry, Role, RoleState};
use crate::format::{Incarnation, Malformed, NodeId};
use crate::node::control::PeerReport;

pub struct Peers {
    machine: Mutex<Membership>,
    /// What the machine wants done once the node runs.
    first: Mutex<Vec<MembershipAction>>,
    /// Which shard each connection of the machine lives on.
    homes: Mutex<HashMap<ConnectionId, usize>>,
    next_connection: AtomicU64,
    own: Role,
    pub changed: tokio::sync::Notify,
}

impl Peers {
    pub fn new(
        config: &NodeConfig,
        certificate: &CheckedCertificate,
        keys: &NodeKeys,
        incarnation: Incarnation,
        listen: SocketAddr,
        bootstrap: Vec<String>,
    ) -> Self {
        let mut own = Role {
            node: certificate.node_id,
            incarnation,
            state: RoleState::Active,
            serial: wall_ms(),
            capacity_bytes: capacity(config),
            layout_confirmed: 0,
            layout_synced: 0,
            addresses: addresses(config, listen),
            signature: [0; 64],
        };
        sign_role(&mut own, keys, &certificate.network);
        let mut machine = Membership::new(certificate.node_id, bootstrap, rand::random());
        let known = vec![Known { certificate: certificate.certificate().clone(), role: own.clone() }];
        let first = machine.handle(
            MembershipEvent::Roles { from: certificate.node_id, known, wall_s: wall_ms() / 1000 },
            Duration::ZERO,
        );
        Self {
            machine: Mutex::new(machine),
            first: Mutex::new(first),
            homes: Mutex::default(),
            next_connection: AtomicU64::new(1),
            own,
            changed: tokio::sync::Notify::new(),
        }
    }

    /// Feeds the machine and gives back what it wants done.
    pub fn handle(&self, event: MembershipEvent, uptime: Duration) -> Vec<MembershipAction> {
        let is_tick = matches!(event, MembershipEvent::Tick);
        let mut actions = std::mem::take(&mut *lock(&self.first));
        actions.extend(lock(&self.machine).handle(event, uptime));
        if !is_tick {
            self.changed.notify_one();
        }
        actions
    }

    /// A number for a connection that lives on `shard`.
    pub fn settle(&self, shard: usize) -> ConnectionId {
        let connection = self.next_connection.fetch_add(1, Ordering::Relaxed);
        lock(&self.homes).insert(connection, shard);
        connection
    }

    pub fn home(&self, connection: ConnectionId) -> Option<usize> {
        lock(&self.homes).get(&connection).copied()
    }

    pub fn unsettle(&self, connection: ConnectionId) {
        lock(&self.homes).remove(&connection);
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        lock(&self.machine).next_deadline()
    }

    pub fn is_alive(&self, node: &NodeId) -> bool {
        lock(&self.machine).is_alive(node)
    }

    pub fn is_lost(&self, node: &NodeId) -> bool {
        lock(&self.machine).is_lost(node)
    }

    pub fn known(&self) -> Vec<Known> {
        lock(&self.machine).known()
    }

    pub fn known_nodes(&self) -> Vec<NodeId> {
        self.known().into_iter().map(|known| known.role.node).collect()
    }

    /// Known and alive nodes, this one included.
    pub fn counts(&self) -> (u32, u32) {
        let machine = lock(&self.machine);
        (machine.known().len() as u32, machine.alive().count() as u32 + 1)
    }

    pub fn own_role(&self) -> &Role {
        &self.own
    }

    /// Where a node listens, best first.
    pub fn addresses(&self, node: &NodeId) -> Vec<String> {
        lock(&self.machine).role(node).map(|role| role.addresses.clone()).unwrap_or_default()
    }

    /// Addresses of all other nodes, the living first.
    pub fn known_addresses(&self) -> Vec<String> {
        let mut known = self.known();
        known.retain(|known| known.role.node != self.own.node);
        known.sort_by_key(|known| !self.is_alive(&known.role.node));
        known.into_iter().filter_map(|known| known.role.addresses.into_iter().next()).collect()
    }

    pub fn reports(&self) -> Vec<PeerReport> {
        let now_ms = wall_ms();
        let machine = lock(&self.machine);
        let others = machine.known().into_iter().filter(|known| known.role.node != self.own.node);
        others
            .map(|known| PeerReport {
                node_id: known.role.node,
                class: super::commands::class(known.certificate.class),
                zone: known.certificate.zone.clone(),
                addresses: known.role.addresses.clone(),
                alive: machine.is_alive(&known.role.node),
                last_seen_s: machine.last_seen_ms(&known.role.node).map(|seen| now_ms.saturating_sub(seen) / 1000),
                rtt_us: None,
                capacity_bytes: known.role.capacity_bytes,
                certificate: "certified".into(),
            })
            .collect()
    }

    pub fn encode(&self) -> Vec<u8> {
        lock(&self.machine).encode()
    }

    /// Takes in whom a layout names; gives back what the machine wants done.
    pub fn admit(&self, layout: &Layout) -> Vec<MembershipAction> {
        let known = |entry: &LayoutEntry| Known { certificate: entry.certificate.clone(), role: entry.role.clone() };
        let known: Vec<Known> = layout.entries.iter().map(known).collect();
        lock(&self.machine).admit(&known, wall_ms() / 1000)
    }

    pub fn restore(&self, book: &[u8]) -> Result<(), Malformed> {
        lock(&self.machine).restore(book, wall_ms() / 1000)
    }
}

/// What this node offers: as told, else what its filesystem has.
fn capacity(config: &NodeConfig) -> u64 {
    let offered = config.capacity.or_else(|| {
        let space = crate::io::filesystem_space(&config.data_dir).ok()?;
        Some(space.total_bytes)
    });
    offered.unwrap_or(1).max(1)
}

/// Where others can dial us: as told, else where we listen; for the unspecified address, the one that the kernel would
/// send from, and the loopback one for neighbours on this machine.
fn addresses(config: &NodeConfig, listen: SocketAddr) -> Vec<String> {
    if let Some(advertise) = &config.advertise {
        return vec![advertise.clone()];
    }
    if !listen.ip().is_unspecified() {
        return vec![listen.to_string()];
    }
    let mut addresses = Vec::new();
    if let Some(ip) = outward_address().filter(|ip| !ip.is_loopback()) {
        addresses.push(SocketAddr::new(ip, listen.port()).to_string());
    }
    addresses.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listen.port()).to_string());
    addresses
}

/// The address that packets to the outside would carry. Connecting a datagram socket chooses it and sends nothing; the
/// address asked about is one of those set aside for documentation.
fn outward_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
