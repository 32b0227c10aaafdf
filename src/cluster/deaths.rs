//! Deaths: when a member may sign one, and that each reaches every node.
//!
//! A death is the only ground on which a node drops a reference, so a death that somebody missed keeps its chunks there for
//! ever, and one signed wrongly destroys data. Rules:
//!
//! - A member signs a version's death when it knows a later record of the same name, of another version, to be durable on a
//!   majority of the name's owners in every active layout ([`may_sign`]). Silence, absence and time never suffice.
//! - A death is sent again, with growing pauses, until every node has confirmed it: nodes that joined after it was signed
//!   too, since they take over references from others. Only a node that left the network for good is crossed off.
//! - What is pending is kept on disk, one document for each death ([`PendingDeaths::encode`]): the list of nodes
//!   that have not confirmed only shrinks, but for nodes that join, so an older document does no harm: it is sent once more.
//!
//! Document, under the key `death/` and the id in hexadecimal:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 2 | format version |
//! | 2 | 2 | nodes that have not confirmed |
//! | 4 | 32 each | their ids, ascending |
//! | | 4 + n | the signed death |

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::layout::Quorum;
use crate::format::{Malformed, NodeId, Reader, Stamp, VersionId, Writer};
use crate::limits::{DEATH_NODES_NAMED_MAX, DEATH_RETRY_MAX, DEATH_RETRY_MIN, DEATHS_PENDING_BYTES_MAX, NODES_MAX};

const PENDING_VERSION: u16 = 1;

/// The first 16 bytes of BLAKE3 of a signed death: what a confirmation names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DeathId(pub [u8; 16]);

impl DeathId {
    pub fn of(death: &[u8]) -> Self {
        let mut id = [0; 16];
        blake3::Hasher::new().update(death).finalize_xof().fill(&mut id);
        Self(id)
    }

    /// The key of the document that keeps it.
    pub fn document_key(&self) -> Vec<u8> {
        format!("{}{}", DOCUMENT_PREFIX, data_encoding::HEXLOWER.encode(&self.0)).into_bytes()
    }
}

pub const DOCUMENT_PREFIX: &str = "death/";

/// What a member knows of a name, one of whose versions it would like to see dead.
#[derive(Clone, Debug)]
pub struct Superseded<'a> {
    pub clock: Stamp,
    pub version: VersionId,
    /// The record that took its place (a tombstone also does).
    pub later: (Stamp, VersionId),
    /// Owners that said the later record is durable with them.
    pub holders: &'a [NodeId],
}

/// The version to declare dead, if that is allowed. `quorums`: the name's owners in every active layout.
pub fn may_sign(known: &Superseded<'_>, quorums: &[Quorum]) -> Option<VersionId> {
    let replaced = known.later > (known.clock, known.version) && known.later.1 != known.version;
    let durable = |quorum: &Quorum| {
        quorum.owners.iter().filter(|owner| known.holders.contains(owner)).count() >= quorum.owners.write_quorum()
    };
    (replaced && !quorums.is_empty() && !known.version.is_zero() && quorums.iter().all(durable))
        .then_some(known.version)
}

#[derive(Clone, Debug)]
struct Pending {
    death: Arc<[u8]>,
    waiting: BTreeMap<NodeId, Retry>,
}

impl Pending {
    /// How many bytes more that takes.
    fn wait_for(&mut self, node: NodeId, now: Duration) -> usize {
        match self.waiting.entry(node) {
            Entry::Occupied(_) => 0,
            Entry::Vacant(vacant) => {
                vacant.insert(Retry { at: now, tries: 0 });
                WAITING_BYTES
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Retry {
    at: Duration,
    tries: u32,
}

/// Why no more can be removed or overwritten for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooManyDeaths {
    pub pending: usize,
    /// Who has not confirmed them, who owes most first.
    pub waiting_for: Vec<NodeId>,
}

impl std::error::Error for TooManyDeaths {}

impl fmt::Display for TooManyDeaths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, others)) = self.waiting_for.split_first() else {
            return f.write_str("too many removals and overwrites run at once: try again");
        };
        write!(f, "{} removals and overwrites wait to be confirmed by node {first}", self.pending)?;
        for node in others.iter().take(DEATH_NODES_NAMED_MAX - 1) {
            write!(f, ", {node}")?;
        }
        match others.len().saturating_sub(DEATH_NODES_NAMED_MAX - 1) {
            0 => {}
            more => write!(f, " and {more} more")?,
        }
        f.write_str(
            ", and no more are kept: start what is away of these (gabion peers shows it); until they have confirmed, \
             nothing more can be removed or overwritten",
        )
    }
}

/// One death to send to one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeathToSend {
    pub node: NodeId,
    pub id: DeathId,
    pub death: Arc<[u8]>,
}

/// The deaths that somebody has not confirmed yet.
#[derive(Clone, Debug, Default)]
pub struct PendingDeaths {
    pending: BTreeMap<DeathId, Pending>,
    /// Of all of them, roughly.
    bytes: usize,
    /// For deaths that are about to be signed.
    reserved_bytes: usize,
}

/// What a death of so many versions counts for before it is signed.
fn reserved_bytes(versions: usize) -> usize {
    RESERVED_BYTES_MIN + versions * RESERVED_BYTES_PER_VERSION
}

/// Its certificate, its signature, and a few nodes that have not confirmed it.
const RESERVED_BYTES_MIN: usize = 1024;
const RESERVED_BYTES_PER_VERSION: usize = 2 * size_of::<VersionId>();

/// What one node that has not confirmed takes in a map.
const WAITING_BYTES: usize = 64;

impl PendingDeaths {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.pending.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub fn ids(&self) -> impl Iterator<Item = DeathId> + '_ {
        self.pending.keys().copied()
    }

    /// Whether one more may be signed.
    pub fn has_room(&self) -> bool {
        self.bytes + self.reserved_bytes < DEATHS_PENDING_BYTES_MAX
    }

    /// Before a name is written whose predecessor will be declared dead: afterwards it would be too late to refuse.
    /// `versions`: how many it may be about. Each ends with [`Self::release`] of the same.
    pub fn reserve(&mut self, versions: usize) -> Result<(), TooManyDeaths> {
        if !self.has_room() {
            return Err(TooManyDeaths { pending: self.pending.len(), waiting_for: self.waiting_for() });
        }
        self.reserved_bytes += reserved_bytes(versions);
        Ok(())
    }

    /// The nodes that have not confirmed something, who owes most first.
    fn waiting_for(&self) -> Vec<NodeId> {
        let mut owed: BTreeMap<NodeId, usize> = BTreeMap::new();
        for node in self.pending.values().flat_map(|pending| pending.waiting.keys()) {
            *owed.entry(*node).or_default() += 1;
        }
        let mut nodes: Vec<(NodeId, usize)> = owed.into_iter().collect();
        nodes.sort_by_key(|(_, owed)| std::cmp::Reverse(*owed));
        nodes.into_iter().map(|(node, _)| node).collect()
    }

    pub fn release(&mut self, versions: usize) {
        self.reserved_bytes = self.reserved_bytes.saturating_sub(reserved_bytes(versions));
    }

    /// `death` is to reach all of `nodes`. Adding it again adds nodes. Keep [`Self::encode`] on disk before sending. It is
    /// taken in whether there is room or not: it is signed, and the limit was asked for before ([`Self::reserve`]).
    pub fn add(&mut self, death: Vec<u8>, nodes: impl IntoIterator<Item = NodeId>, now: Duration) -> DeathId {
        let id = DeathId::of(&death);
        let added = death.len();
        let pending = self.pending.entry(id).or_insert_with(|| {
            self.bytes += added;
            Pending { death: death.into(), waiting: BTreeMap::new() }
        });
        for node in nodes {
            self.bytes += pending.wait_for(node, now);
        }
        id
    }

    /// What is due at `now`, at most `limit`; each counts as sent and comes again later.
    pub fn next_to_send(&mut self, now: Duration, limit: usize) -> Vec<DeathToSend> {
        let mut due = Vec::new();
        for (id, pending) in &mut self.pending {
            for (node, retry) in pending.waiting.iter_mut().filter(|(_, retry)| retry.at <= now) {
                if due.len() >= limit {
                    return due;
                }
                let pause = DEATH_RETRY_MIN.saturating_mul(1 << retry.tries.min(16)).min(DEATH_RETRY_MAX);
                *retry = Retry { at: now + pause, tries: retry.tries.saturating_add(1) };
                due.push(DeathToSend { node: *node, id: *id, death: pending.death.clone() });
            }
        }
        due
    }

    /// When [`Self::next_to_send`] has something next.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.pending.values().flat_map(|pending| pending.waiting.values()).map(|retry| retry.at).min()
    }

    /// True if with this every node has confirmed it: its document can go.
    pub fn on_confirm(&mut self, node: NodeId, id: DeathId) -> bool {
        self.cross_off(node, id)
    }

    /// The node can be reached (again): whatever it owes is due now.
    pub fn on_reachable(&mut self, node: NodeId, now: Duration) {
        for retry in self.pending.values_mut().filter_map(|pending| pending.waiting.get_mut(&node)) {
            *retry = Retry { at: now, tries: 0 };
        }
    }

    /// A node that is new in the layout owes a confirmation of every death that is still pending.
    pub fn on_joined(&mut self, node: NodeId, now: Duration) {
        for pending in self.pending.values_mut() {
            self.bytes += pending.wait_for(node, now);
        }
    }

    /// The node left the network for good. Returns the deaths that have no one left to confirm them.
    pub fn on_left(&mut self, node: NodeId) -> Vec<DeathId> {
        let ids: Vec<DeathId> = self.ids().collect();
        ids.into_iter().filter(|id| self.cross_off(node, *id)).collect()
    }

    fn cross_off(&mut self, node: NodeId, id: DeathId) -> bool {
        let Some(pending) = self.pending.get_mut(&id) else { return false };
        if pending.waiting.remove(&node).is_some() {
            self.bytes = self.bytes.saturating_sub(WAITING_BYTES);
        }
        let done = pending.waiting.is_empty();
        if done {
            self.bytes = self.bytes.saturating_sub(pending.death.len());
            self.pending.remove(&id);
        }
        done
    }

    pub fn waiting(&self, id: &DeathId) -> impl Iterator<Item = NodeId> + '_ {
        self.pending.get(id).into_iter().flat_map(|pending| pending.waiting.keys().copied())
    }

    pub fn death(&self, id: &DeathId) -> Option<Arc<[u8]>> {
        self.pending.get(id).map(|pending| pending.death.clone())
    }

    /// The document of one pending death.
    pub fn encode(&self, id: &DeathId) -> Option<Vec<u8>> {
        let pending = self.pending.get(id)?;
        let mut writer = Writer::new();
        writer.u16(PENDING_VERSION).u16(pending.waiting.len() as u16);
        for node in pending.waiting.keys() {
            writer.put(node);
        }
        Some(writer.long_bytes(&pending.death).finish())
    }

    /// Takes one document back in, at start.
    pub fn restore(&mut self, document: &[u8], now: Duration) -> Result<DeathId, Malformed> {
        let mut reader = Reader::new(document);
        if reader.u16("pending death")? != PENDING_VERSION {
            return Err(Malformed::new("pending death's format version (update gabion)"));
        }
        let count = usize::from(reader.u16("number of nodes that have not confirmed")?);
        if count > NODES_MAX {
            return Err(Malformed::new("number of nodes that have not confirmed"));
        }
        let nodes = (0..count)
            .map(|_| reader.take::<NodeId>("node that has not confirmed").copied())
            .collect::<Result<Vec<_>, _>>()?;
        let death = reader.long_bytes("pending death's bytes")?.to_vec();
        reader.end("bytes after a pending death")?;
        Ok(self.add(death, nodes, now))
    }
}
