//! What all threads of the node share: who it is, what it knows, what it holds.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};

use super::cache::Cache;
use super::doubt::Doubt;
use super::layout_turns::LayoutTurns;
use super::names::Witnessed;
use super::peers::Peers;
use super::shard::Job;
use super::strangers::Strangers;
use crate::catalog::{Catalog, Clock, versions};
use crate::cluster::claims::NameClaims;
use crate::cluster::{ActiveLayout, Layouts, PendingDeaths};
use crate::config::NodeConfig;
use crate::crypto::identity::CheckedCertificate;
use crate::crypto::keyfile::{KeyFileError, KeyRing};
use crate::crypto::keys::VaultKey;
use crate::crypto::replay::ReplayFilter;
use crate::format::certificate::Class;
use crate::format::{Address, Incarnation, NameId, NetworkId, NodeId, Stamp, VersionId};
use crate::key_locks::KeyLocks;
use crate::limits::LAYOUTS_EARLIER_MAX;
use crate::store::OpenReport;
use crate::vault::ChunkError;
use crate::wire::{Admission, Identity};

pub struct Shared {
    pub config: NodeConfig,
    /// As bound: port 0 has become a real one.
    pub listen: SocketAddr,
    pub started: Instant,
    pub identity: Arc<Identity>,
    pub keys: RwLock<KeyRing>,
    pub certificate: CheckedCertificate,
    pub incarnation: Incarnation,
    pub store: Arc<crate::store::Shared>,
    /// What opening the store found.
    pub opened: OpenReport,
    /// What may have stood in the blocks that it found lost was written again.
    pub lost_mended: AtomicBool,
    pub doubt: Mutex<Doubt>,
    pub catalog: Catalog,
    /// The newest is active, the earlier ones say where older chunks lie.
    pub layouts: RwLock<Layouts>,
    pub peers: Peers,
    pub clock: Mutex<Clock>,
    pub deaths: Mutex<PendingDeaths>,
    pub cache: Cache,
    pub traffic: Traffic,
    pub admission: Arc<Admission>,
    pub replay: Arc<ReplayFilter>,
    pub shards: Vec<mpsc::UnboundedSender<Job>>,
    pub stop: Stop,
    /// A death waits to be sent.
    pub deaths_changed: Notify,
    /// The address book waits to be written.
    pub book_changed: Notify,
    /// Connections of peers that no layout known here names.
    pub strangers: Mutex<Strangers>,
    /// Taken while a peer is asked for a layout.
    pub layout_turns: LayoutTurns,
    /// Held while the address book is written.
    pub book_file: Mutex<()>,
    /// Held while a layout is made durable and adopted.
    pub layout_change: tokio::sync::Mutex<()>,
    /// The newest layout whose names this node has brought in from the owners before.
    pub names_synced: AtomicU32,
    pub layout_changed: Notify,
    /// Of names whose records are compared and made durable: held from looking at what is here until the write is durable,
    /// so that an owner's answers about two writes of one name tell of each other.
    pub name_locks: Arc<KeyLocks<NameId>>,
    /// Names that puts with `--no-clobber` have claimed here.
    pub name_claims: Mutex<NameClaims>,
    pub witnessed: Witnessed,
    pub document_serial: AtomicU64,
}

/// Payloads that went to other nodes and came from them since this node began: chunks, but for small ones that are
/// stored many in one message.
#[derive(Default)]
pub struct Traffic {
    pub sent_bytes: AtomicU64,
    pub received_bytes: AtomicU64,
}

/// Nodes that may hold a chunk: those that own it, and those that did under an earlier layout.
pub struct Holders {
    pub owners: Vec<NodeId>,
    pub earlier: Vec<NodeId>,
}

impl Holders {
    pub fn retain(&mut self, keep: impl Fn(&NodeId) -> bool) {
        self.owners.retain(&keep);
        self.earlier.retain(&keep);
    }

    pub fn all(self) -> impl Iterator<Item = NodeId> {
        self.owners.into_iter().chain(self.earlier)
    }
}

/// What a mutex guards here is valid after every statement: a panic elsewhere does not spoil it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn id(&self) -> NodeId {
        self.certificate.node_id
    }

    pub fn network_id(&self) -> NetworkId {
        self.certificate.network
    }

    pub fn is_member(&self) -> bool {
        self.certificate.class == Class::Member
    }

    pub fn vault_key(&self) -> Option<VaultKey> {
        self.key_ring().vault().cloned()
    }

    /// All keys of this node.
    pub fn key_ring(&self) -> RwLockReadGuard<'_, KeyRing> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the vault key that another member gave.
    pub fn keep_vault_key(&self, key: VaultKey) -> Result<(), KeyFileError> {
        self.keys.write().unwrap_or_else(PoisonError::into_inner).store_vault_key(key)
    }

    pub fn layouts(&self) -> RwLockReadGuard<'_, Layouts> {
        self.layouts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a layout that is known here names this node.
    pub fn is_admitted(&self, node: &NodeId) -> bool {
        self.admitted_as(node).is_some()
    }

    /// As what the newest of the layouts known here that names this node has admitted it. A certificate alone says what an
    /// invite once allowed: the invite may have expired, and a node may have several.
    pub fn admitted_as(&self, node: &NodeId) -> Option<Class> {
        let layouts = self.layouts();
        let mut layouts = layouts.active().iter().rev().chain(layouts.earlier());
        layouts.find_map(|layout| layout.node(node)).map(|node| node.class)
    }

    /// Whether whoever showed this certificate may be treated as a member: it claims to be one, and was admitted as one.
    pub fn is_fellow_member(&self, certificate: &CheckedCertificate) -> bool {
        certificate.class == Class::Member && self.admitted_as(&certificate.node_id) == Some(Class::Member)
    }

    /// The newest layout; none before this node has joined.
    pub fn layout(&self) -> Result<Arc<ActiveLayout>, ChunkError> {
        self.layouts().newest().cloned().ok_or_else(|| ChunkError::Network {
            reason: "this node has not joined its network yet: no layout is known here".into(),
        })
    }

    pub fn layout_number(&self) -> u32 {
        self.layouts().newest().map_or(0, |layout| layout.number())
    }

    /// A layout's bytes as signed; 0 asks for the newest.
    pub fn layout_bytes(&self, number: u32) -> Option<Vec<u8>> {
        let layouts = self.layouts();
        let found = match number {
            0 => layouts.newest(),
            number => layouts.active().iter().chain(layouts.earlier()).find(|layout| layout.number() == number),
        };
        found.map(|layout| layout.layout().encode())
    }

    /// Which other nodes may hold a chunk.
    pub fn chunk_holders(&self, address: &Address) -> Holders {
        let layouts = self.layouts();
        let mut holders = Holders {
            owners: layouts.chunk_owners(address).as_slice().to_vec(),
            earlier: layouts.chunk_owners_before(address),
        };
        holders.retain(|holder| *holder != self.id());
        holders
    }

    /// Merges a stamp seen elsewhere; one too far ahead is not merged.
    pub fn observe(&self, stamp: Stamp) {
        if let Err(error) = lock(&self.clock).observe(stamp, super::wall_ms()) {
            tracing::warn!(%error, "a clock was not merged");
        }
    }

    pub fn mint(&self, slot: u32) -> VersionId {
        versions::mint(slot, super::wall_ms() / 1000, &mut rand::rng())
    }

    /// How long this node has run: the clock of everything that waits.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn names_synced(&self) -> u32 {
        self.names_synced.load(Ordering::Acquire)
    }

    /// Later documents have higher serials, over restarts too.
    pub fn document_serial(&self) -> u64 {
        let now = super::wall_ms() << 16;
        self.document_serial.fetch_max(now, Ordering::Relaxed);
        self.document_serial.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Numbers of layouts before the newest that are not known here, as far back as any are remembered; the latest first.
    pub fn missed_layouts(&self) -> Vec<u32> {
        let layouts = self.layouts();
        let newest = layouts.newest().map_or(0, |newest| newest.number());
        let known =
            |number: &u32| layouts.active().iter().chain(layouts.earlier()).any(|layout| layout.number() == *number);
        (1..newest).rev().take(LAYOUTS_EARLIER_MAX).filter(|number| !known(number)).collect()
    }

    /// A layout from before the newest, that this node was away for.
    pub fn missed_layout(&self, layout: ActiveLayout) {
        self.layouts.write().unwrap_or_else(PoisonError::into_inner).remember(layout);
    }

    /// Blocks that opening the store found lost and that nothing makes up for.
    pub fn lost_blocks(&self) -> u64 {
        let opened = &self.opened;
        if !self.lost_mended.load(Ordering::Acquire) {
            return opened.lost_blocks;
        }
        // Of small records all is settled, or none of what was not told.
        let settled = if lock(&self.doubt).references_are_whole() { opened.lost_small_untold } else { 0 };
        opened.lost_untold - settled
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.is_stopping()
    }

    pub fn stopping(&self) -> Stopping {
        self.stop.stopping()
    }
}

/// The end of the node, told to everybody at once.
pub struct Stop {
    sender: watch::Sender<bool>,
}

impl Default for Stop {
    fn default() -> Self {
        Self { sender: watch::Sender::new(false) }
    }
}

impl Stop {
    pub fn begin(&self) {
        self.sender.send_replace(true);
    }

    pub fn is_stopping(&self) -> bool {
        *self.sender.borrow()
    }

    pub fn stopping(&self) -> Stopping {
        Stopping(self.sender.subscribe())
    }
}

#[derive(Clone)]
pub struct Stopping(watch::Receiver<bool>);

impl Stopping {
    /// Returns once the node begins to stop.
    pub async fn wait(mut self) {
        // An error means that the sender is gone, and with it the node.
        let _ = self.0.wait_for(|stopping| *stopping).await;
    }
}
