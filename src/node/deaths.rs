//! Deaths: signed here when a name moved on, made durable, sent until every node has confirmed them.
//!
//! The rule (model-checked; kept to the letter): a member signs the death of a version only when it knows a later clock
//! for that name to be durable on a majority of the name's owners. `rm` and an overwrite know it: they have just written
//! that later clock; who finds that a version was replaced behind its writer's back reads the name first
//! ([`super::names`]). Absence, time-outs and partitions never kill.
//!
//! A removal or an overwrite asks for room among the pending deaths before it writes the name: a death that could not be
//! signed afterwards would leak what it is about. The removals of one `rm -r` share deaths of up to 1,024 versions.
//!
//! A death is a record of the log on every node that got it. Who signed it also keeps a document that lists who has
//! confirmed; it goes once all nodes of the newest layout, and all others known, have.

use std::cell::RefCell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::commands::{Failure, code};
use super::connections::connect;
use super::log;
use super::names::Written;
use super::shard::Shard;
use super::shared::{Shared, lock};
use crate::catalog::CatalogError;
use crate::cluster::deaths::{DOCUMENT_PREFIX, Superseded, may_sign};
use crate::cluster::{DeathId, PendingDeaths};
use crate::crypto::identity::{sign_death, verify_death};
use crate::crypto::keys::VaultKey;
use crate::format::certificate::{Class, Death};
use crate::format::frame::{FrameKind, Status};
use crate::format::{Address, NodeId, VersionId, message};
use crate::io::spawn;
use crate::limits::{DEATH_LOOK_INTERVAL, DEATH_VERSIONS_MAX, DEATHS_SENT_AT_ONCE_MAX, STORE_PATIENCE};
use crate::store::{SmallRecord, StoreError};

/// Room among the pending deaths for what a write will replace, kept until this is dropped.
pub struct Room {
    node: Arc<Shared>,
    versions: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        lock(&self.node.deaths).release(self.versions);
    }
}

/// Asked for before names are written, of which so many versions may be replaced: a death that cannot be signed afterwards
/// would leak what it is about.
pub fn reserve(shard: &Rc<Shard>, versions: usize) -> Result<Room, Failure> {
    lock(&shard.node.deaths).reserve(versions).map_err(|error| Failure::new(code::SPACE, error.to_string()))?;
    Ok(Room { node: shard.node.clone(), versions })
}

/// Signs the deaths of all that these writes have replaced, where the rule allows it and nobody has, many versions in one
/// document; durable here when it returns, and under way to everybody else.
pub async fn sign_replaced(shard: &Rc<Shard>, written: &[Written]) -> Result<(), Failure> {
    let mut versions: BTreeSet<VersionId> = BTreeSet::new();
    for written in written {
        for (clock, version) in &written.replaced {
            let known =
                Superseded { clock: *clock, version: *version, later: written.order, holders: &written.holders };
            // Where the rule says no, somebody else's later write has won: whoever replaces that one signs.
            versions.extend(may_sign(&known, &written.quorums));
        }
    }
    let mut undead = Vec::with_capacity(versions.len());
    for version in versions {
        if !shard.node.catalog.is_dead(&version).await? {
            undead.push(version);
        }
    }
    let signed: Vec<Vec<u8>> = undead.chunks(DEATH_VERSIONS_MAX).map(|versions| sign(&shard.node, versions)).collect();
    if signed.is_empty() { Ok(()) } else { publish(shard, signed).await }
}

fn sign(node: &Arc<Shared>, versions: &[VersionId]) -> Vec<u8> {
    let mut death = Death {
        signer: node.certificate.certificate().clone(),
        key_generation: VaultKey::GENERATION,
        versions: versions.to_vec(),
        signature: [0; 64],
    };
    sign_death(&mut death, node.key_ring().node(), &node.network_id());
    death.encode()
}

/// Makes deaths durable, and sends them. First who has to confirm them, and only then what they say: were they torn apart
/// the other way round, a version would be dead here, and nobody would ever tell the others. This way round the next
/// start finds the death in the document of those who have to confirm it.
async fn publish(shard: &Rc<Shard>, signed: Vec<Vec<u8>>) -> Result<(), Failure> {
    let (node, others) = (&shard.node, others(&shard.node));
    if !others.is_empty() {
        let mut deaths = PendingDeaths::new();
        let mut documents = Vec::with_capacity(signed.len());
        for death in &signed {
            let id = deaths.add(death.clone(), others.clone(), Duration::ZERO);
            if let Some(document) = deaths.encode(&id) {
                documents.push(log::document(node.document_serial(), &id.document_key(), &document));
            }
        }
        shard.store.append_all(documents).await?;
    }
    shard.store.append_all(signed.iter().cloned().map(SmallRecord::Death).collect()).await?;
    if !others.is_empty() {
        for death in signed {
            lock(&node.deaths).add(death, others.clone(), node.uptime());
        }
        node.deaths_changed.notify_one();
    }
    Ok(())
}

/// Every other node of the newest layout, and every other that is known and was admitted: all of them must hear of a death.
/// Who was not holds nothing yet, and hears of all that are pending once it is.
fn others(node: &Arc<Shared>) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = node.peers.known_nodes();
    nodes.retain(|known| node.is_admitted(known));
    if let Ok(layout) = node.layout() {
        nodes.extend(layout.nodes().iter().map(|known| known.node));
    }
    nodes.sort();
    nodes.dedup();
    nodes.retain(|known| *known != node.id());
    nodes
}

/// A death that a peer sent: checked, then durable here before it is confirmed.
pub async fn accept(shard: &Rc<Shard>, bytes: &[u8]) -> Result<(), Status> {
    let death = Death::decode(bytes).map_err(|_| Status::Malformed)?;
    verify_death(&death, &shard.node.network_id()).map_err(|error| {
        tracing::warn!(%error, "a death was refused");
        Status::Forbidden
    })?;
    if shard.node.admitted_as(&death.signer.node) != Some(Class::Member) {
        return Err(Status::Forbidden);
    }
    let mut is_known = true;
    for version in &death.versions {
        is_known &= shard.node.catalog.is_dead(version).await.map_err(|_| Status::Unavailable)?;
    }
    if is_known {
        return Ok(());
    }
    shard.store.append(SmallRecord::Death(bytes.to_vec())).await.map_err(|error| match error {
        StoreError::NoSpace { .. } => Status::NoSpace,
        _ => Status::Unavailable,
    })
}

/// Takes the deaths back in that were not confirmed by all before the last stop.
pub async fn restore(node: &Arc<Shared>) -> Result<(), CatalogError> {
    for (key, document) in node.catalog.documents(DOCUMENT_PREFIX.as_bytes()).await? {
        if document.is_empty() {
            continue; // confirmed by all
        }
        if let Err(error) = lock(&node.deaths).restore(&document, node.uptime()) {
            tracing::warn!(%error, key = %String::from_utf8_lossy(&key), "a pending death was not understood");
        }
    }
    Ok(())
}

/// A peer can be reached again: whatever it owes is due now.
pub fn on_reachable(node: &Arc<Shared>, peer: NodeId) {
    lock(&node.deaths).on_reachable(peer, node.uptime());
    node.deaths_changed.notify_one();
}

/// Whoever is new in the layout owes a confirmation of every death that is still pending.
pub fn on_layout(node: &Arc<Shared>) {
    let now = node.uptime();
    for peer in others(node) {
        lock(&node.deaths).on_joined(peer, now);
    }
    node.deaths_changed.notify_one();
}

/// Sends what is due, for ever.
pub fn start(shard: &Rc<Shard>) {
    let shard = shard.clone();
    on_layout(&shard.node); // nodes that joined after a pending death was written down
    spawn(async move {
        let stopping = shard.node.stopping();
        let sending = Sending::default();
        if let Err(failure) = finish_signed(&shard).await {
            tracing::warn!(reason = %failure.message, "deaths signed before the last stop are not in the log yet");
        }
        loop {
            send_due(&shard, &sending);
            let next = lock(&shard.node.deaths).next_deadline();
            let pause =
                next.map_or(DEATH_LOOK_INTERVAL, |at| at.saturating_sub(shard.node.uptime())).min(DEATH_LOOK_INTERVAL);
            tokio::select! {
                () = stopping.clone().wait() => return,
                () = shard.node.deaths_changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    });
}

/// Makes those pending deaths durable that the last stop kept from it: they were rightly signed.
async fn finish_signed(shard: &Rc<Shard>) -> Result<(), Failure> {
    let pending: Vec<DeathId> = lock(&shard.node.deaths).ids().collect();
    let mut missing = Vec::new();
    for id in pending {
        if !shard.node.catalog.has_death(&id).await? {
            let death = lock(&shard.node.deaths).death(&id);
            missing.extend(death.map(|death| SmallRecord::Death(death.to_vec())));
        }
    }
    Ok(shard.store.append_all(missing).await?)
}

type Signed = (DeathId, Arc<[u8]>);

/// The peers that are being sent to, and whether more came due for them meanwhile.
type Sending = Rc<RefCell<BTreeMap<NodeId, bool>>>;

/// Begins to send what is due, to all peers at once: one that is slow delays no other.
fn send_due(shard: &Rc<Shard>, sending: &Sending) {
    let node = &shard.node;
    let due = lock(&node.deaths).next_to_send(node.uptime(), DEATHS_SENT_AT_ONCE_MAX);
    let mut by_node: BTreeMap<NodeId, Vec<Signed>> = BTreeMap::new();
    for death in due {
        if node.peers.is_alive(&death.node) {
            by_node.entry(death.node).or_default().push((death.id, death.death));
        }
    }
    for (peer, deaths) in by_node {
        match sending.borrow_mut().entry(peer) {
            Entry::Occupied(mut has_more) => *has_more.get_mut() = true,
            Entry::Vacant(idle) => {
                idle.insert(false);
                spawn(send_to(shard.clone(), sending.clone(), peer, deaths));
            }
        }
    }
}

async fn send_to(shard: Rc<Shard>, sending: Sending, peer: NodeId, deaths: Vec<Signed>) {
    let outcome = send(&shard, peer, deaths).await;
    let has_more = sending.borrow_mut().remove(&peer).unwrap_or_default();
    match outcome {
        // What came due meanwhile was not sent, and counts as sent.
        Ok(()) if has_more => on_reachable(&shard.node, peer),
        Ok(()) => {}
        Err(reason) => tracing::debug!(?peer, %reason, "deaths not confirmed yet"),
    }
}

async fn send(shard: &Rc<Shard>, peer: NodeId, mut deaths: Vec<Signed>) -> Result<(), String> {
    while !deaths.is_empty() {
        let (body, count) = message::encode_page(deaths.iter().map(|(_, death)| &**death));
        let connection = connect(shard, &peer).await.map_err(|error| error.to_string())?;
        let answer = connection
            .request(FrameKind::Deaths, Address::ZERO, shard.node.layout_number(), body, None, STORE_PATIENCE)
            .await
            .map_err(|error| error.to_string())?;
        if answer.status != Status::Ok {
            return Err(format!("answered {:?}", answer.status));
        }
        let rest = deaths.split_off(count.max(1).min(deaths.len()));
        let mut done = Vec::new();
        for (id, _) in std::mem::replace(&mut deaths, rest) {
            if lock(&shard.node.deaths).on_confirm(peer, id) {
                done.push(log::document(shard.node.document_serial(), &id.document_key(), &[]));
            }
        }
        shard.store.append_all(done).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}
