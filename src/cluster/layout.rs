//! Layouts: the numbered table of all nodes, and who owns what under it.
//!
//! - Chunks are owned by nodes of either class, names by members alone, both by the same rule ([`super::placement`]).
//! - A node that drains or has left owns nothing. A node without a zone is a zone of its own.
//! - With R' = min(replicas, owners): a write needs W = majority of R', a read R' + 1 - W; any two writes meet in a node,
//!   and so do a write and a read. Two nodes: both must write.
//! - [`Layouts`] keeps the active layouts (one, or the old and the new during a change; every operation then needs its
//!   quorum in each) and some earlier ones: chunk reads fall back to earlier owners, name reads add what they answer.
//!
//! ```text
//! begin(n+1)                 retire(n)
//! {n} active  ------------>  {n, n+1} active  ------------> {n+1} active, n earlier
//!     \_____________ adopt(n+1) _____________________________/
//! ```

use std::sync::Arc;

use super::placement::{Candidate, PlacementTable};
use crate::format::certificate::{Class, Layout, LayoutEntry, RoleState};
use crate::format::{Address, BucketId, NodeId, PlacementId};
use crate::limits::{LAYOUTS_ACTIVE_MAX, LAYOUTS_EARLIER_MAX, REPLICAS_MAX};

/// A few nodes, best first, without an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owners {
    nodes: [NodeId; REPLICAS_MAX as usize],
    len: u8,
}

impl Owners {
    pub const NONE: Self = Self { nodes: [NodeId::ZERO; REPLICAS_MAX as usize], len: 0 };

    pub fn as_slice(&self) -> &[NodeId] {
        self.nodes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// W: how many of them must hold what counts as written.
    pub fn write_quorum(&self) -> usize {
        usize::from(self.len) / 2 + 1
    }

    /// R + 1 - W: how many of them must answer a read, so that it meets every write.
    pub fn read_quorum(&self) -> usize {
        usize::from(self.len) + 1 - self.write_quorum().min(usize::from(self.len))
    }
}

impl FromIterator<NodeId> for Owners {
    /// Takes the first [`REPLICAS_MAX`].
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> Self {
        let mut owners = Self::NONE;
        for (slot, node) in owners.nodes.iter_mut().zip(nodes) {
            *slot = node;
            owners.len += 1;
        }
        owners
    }
}

impl std::ops::Deref for Owners {
    type Target = [NodeId];

    fn deref(&self) -> &[NodeId] {
        self.as_slice()
    }
}

impl<'a> IntoIterator for &'a Owners {
    type Item = &'a NodeId;
    type IntoIter = std::slice::Iter<'a, NodeId>;

    fn into_iter(self) -> Self::IntoIter {
        self.as_slice().iter()
    }
}

/// The owners under one layout: what an operation must satisfy in each active layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quorum {
    pub layout: u32,
    pub owners: Owners,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayoutNode {
    pub node: NodeId,
    pub class: Class,
    pub state: RoleState,
    pub zone: String,
    /// What the node offers, within what its certificate allows.
    pub capacity_bytes: u64,
    pub placement: PlacementId,
    pub addresses: Vec<String>,
}

/// One layout, with the owners of all partitions.
#[derive(Clone, Debug)]
pub struct ActiveLayout {
    layout: Layout,
    nodes: Vec<LayoutNode>,
    chunks: Placed,
    names: Placed,
}

#[derive(Clone, Debug)]
struct Placed {
    nodes: Vec<NodeId>,
    table: PlacementTable,
}

impl Placed {
    fn build<'a>(nodes: impl Iterator<Item = &'a LayoutNode>, replicas: u8) -> Self {
        let candidates: Vec<Candidate> = nodes
            .map(|node| Candidate {
                node: node.node,
                placement: node.placement,
                weight: node.capacity_bytes,
                zone: node.zone.clone(),
            })
            .collect();
        let table = PlacementTable::build(&candidates, replicas);
        Self { nodes: candidates.into_iter().map(|candidate| candidate.node).collect(), table }
    }

    fn owners(&self, partition: u16) -> Owners {
        self.table.owners(partition).iter().filter_map(|index| self.nodes.get(usize::from(*index)).copied()).collect()
    }
}

impl ActiveLayout {
    /// `layout`'s signature and those of its certificates and roles have been checked.
    pub fn from_checked(layout: Layout) -> Self {
        let nodes: Vec<LayoutNode> = layout.entries.iter().map(layout_node).collect();
        let places = |node: &&LayoutNode| matches!(node.state, RoleState::Active | RoleState::Joining);
        let chunks = Placed::build(nodes.iter().filter(places), layout.replicas);
        let members = nodes.iter().filter(places).filter(|node| node.class == Class::Member);
        let names = Placed::build(members, layout.replicas);
        Self { layout, nodes, chunks, names }
    }

    pub fn number(&self) -> u32 {
        self.layout.number
    }

    pub fn replicas(&self) -> u8 {
        self.layout.replicas
    }

    /// As signed: what is sent on and kept on disk.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Ascending by node id.
    pub fn nodes(&self) -> &[LayoutNode] {
        &self.nodes
    }

    pub fn node(&self, node: &NodeId) -> Option<&LayoutNode> {
        self.nodes.binary_search_by(|known| known.node.cmp(node)).ok().and_then(|at| self.nodes.get(at))
    }

    pub fn chunk_owners(&self, address: &Address) -> Owners {
        self.chunk_partition_owners(address.partition())
    }

    pub fn chunk_partition_owners(&self, partition: u16) -> Owners {
        self.chunks.owners(partition)
    }

    pub fn name_owners(&self, bucket: &BucketId) -> Owners {
        self.name_partition_owners((bucket.slot() >> 16) as u16)
    }

    /// Owners of the names of a version's or bucket's partition.
    pub fn name_partition_owners(&self, partition: u16) -> Owners {
        self.names.owners(partition)
    }

    /// How many owners must hold a chunk for it to count as written.
    pub fn write_quorum(&self) -> usize {
        self.chunks.table.owners_per_partition() / 2 + 1
    }

    /// The next layout, unsigned, with this node added or its entry replaced. The authority signs its body.
    pub fn next_with(&self, entry: LayoutEntry) -> Layout {
        self.next(|entries| {
            entries.retain(|known| known.role.node != entry.role.node);
            entries.push(entry);
            entries.sort_by_key(|known| known.role.node);
        })
    }

    /// The next layout, unsigned, without these nodes.
    pub fn next_without(&self, nodes: &[NodeId]) -> Layout {
        let mut next = self.next(|entries| entries.retain(|known| !nodes.contains(&known.role.node)));
        next.voters.retain(|voter| !nodes.contains(voter));
        next
    }

    fn next(&self, change: impl FnOnce(&mut Vec<LayoutEntry>)) -> Layout {
        let mut next = self.layout.clone();
        next.number = next.number.saturating_add(1);
        next.signature = [0; 64];
        change(&mut next.entries);
        next
    }
}

fn layout_node(entry: &LayoutEntry) -> LayoutNode {
    let (certificate, role) = (&entry.certificate, &entry.role);
    let limit = if certificate.capacity_limit == 0 { u64::MAX } else { certificate.capacity_limit };
    let zone = if certificate.zone.is_empty() { format!("node:{}", role.node) } else { certificate.zone.clone() };
    LayoutNode {
        node: role.node,
        class: certificate.class,
        state: role.state,
        zone,
        capacity_bytes: role.capacity_bytes.min(limit),
        placement: certificate.placement,
        addresses: role.addresses.clone(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutRefused {
    #[error("layout {number} is not newer than layout {newest}, which is active: ask its sender for the newest one")]
    Old { number: u32, newest: u32 },
    #[error("layout {number} cannot begin while {LAYOUTS_ACTIVE_MAX} layouts are active: retire layout {oldest} first")]
    TooManyActive { number: u32, oldest: u32 },
}

/// The active layouts and some earlier ones.
#[derive(Clone, Debug, Default)]
pub struct Layouts {
    /// Oldest first.
    active: Vec<Arc<ActiveLayout>>,
    /// Newest first.
    earlier: Vec<Arc<ActiveLayout>>,
}

impl Layouts {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn newest(&self) -> Option<&Arc<ActiveLayout>> {
        self.active.last()
    }

    /// One, or two during a change (the older first), or none before the first was learnt.
    pub fn active(&self) -> &[Arc<ActiveLayout>] {
        &self.active
    }

    pub fn earlier(&self) -> &[Arc<ActiveLayout>] {
        &self.earlier
    }

    /// The numbers under which an operation of now runs.
    pub fn numbers(&self) -> Vec<u32> {
        self.active.iter().map(|layout| layout.number()).collect()
    }

    /// Makes `layout` the only active one.
    pub fn adopt(&mut self, layout: ActiveLayout) -> Result<(), LayoutRefused> {
        self.check_newer(layout.number())?;
        for old in self.active.drain(..) {
            self.earlier.insert(0, old);
        }
        self.active.push(Arc::new(layout));
        self.earlier.truncate(LAYOUTS_EARLIER_MAX);
        Ok(())
    }

    /// Makes `layout` active beside the one that is.
    pub fn begin(&mut self, layout: ActiveLayout) -> Result<(), LayoutRefused> {
        self.check_newer(layout.number())?;
        if let Some(oldest) = self.active.first().filter(|_| self.active.len() >= LAYOUTS_ACTIVE_MAX) {
            return Err(LayoutRefused::TooManyActive { number: layout.number(), oldest: oldest.number() });
        }
        self.active.push(Arc::new(layout));
        Ok(())
    }

    /// Ends the change: every layout older than `number` is active no more. The newest always stays.
    pub fn retire_before(&mut self, number: u32) {
        while self.active.len() > 1 && self.active.first().is_some_and(|oldest| oldest.number() < number) {
            let oldest = self.active.remove(0);
            self.earlier.insert(0, oldest);
        }
        self.earlier.truncate(LAYOUTS_EARLIER_MAX);
    }

    /// Remembers a layout from before the active ones (read from disk at start).
    pub fn remember(&mut self, layout: ActiveLayout) {
        let number = layout.number();
        let known = self.active.iter().chain(&self.earlier).any(|known| known.number() == number);
        if known || self.active.first().is_none_or(|oldest| oldest.number() < number) {
            return;
        }
        self.earlier.push(Arc::new(layout));
        self.earlier.sort_by_key(|known| std::cmp::Reverse(known.number()));
        self.earlier.truncate(LAYOUTS_EARLIER_MAX);
    }

    fn check_newer(&self, number: u32) -> Result<(), LayoutRefused> {
        match self.newest() {
            Some(newest) if newest.number() >= number => Err(LayoutRefused::Old { number, newest: newest.number() }),
            _ => Ok(()),
        }
    }

    /// What a chunk's write must satisfy: its owners in each active layout.
    pub fn chunk_quorums(&self, address: &Address) -> Vec<Quorum> {
        self.quorums(|layout| layout.chunk_owners(address))
    }

    /// What a name's read or write must satisfy: its owners in each active layout.
    pub fn name_quorums(&self, bucket: &BucketId) -> Vec<Quorum> {
        self.quorums(|layout| layout.name_owners(bucket))
    }

    fn quorums(&self, owners: impl Fn(&ActiveLayout) -> Owners) -> Vec<Quorum> {
        self.active.iter().map(|layout| Quorum { layout: layout.number(), owners: owners(layout) }).collect()
    }

    /// Owners of a chunk under the newest layout.
    pub fn chunk_owners(&self, address: &Address) -> Owners {
        self.newest().map_or(Owners::NONE, |newest| newest.chunk_owners(address))
    }

    /// Nodes that owned this chunk under older layouts and do not under the newest, latest first. They may have gone: they are asked last and count in no quorum.
    pub fn chunk_owners_before(&self, address: &Address) -> Vec<NodeId> {
        self.owners_before(|layout| layout.chunk_owners(address))
    }

    pub fn name_owners_before(&self, bucket: &BucketId) -> Vec<NodeId> {
        self.owners_before(|layout| layout.name_owners(bucket))
    }

    fn owners_before(&self, owners: impl Fn(&ActiveLayout) -> Owners) -> Vec<NodeId> {
        let Some((newest, older)) = self.active.split_last() else { return Vec::new() };
        let now = owners(newest);
        let mut before: Vec<NodeId> = Vec::new();
        for layout in older.iter().rev().chain(&self.earlier) {
            for node in &owners(layout) {
                if !now.contains(node) && !before.contains(node) {
                    before.push(*node);
                }
            }
        }
        before
    }
}
