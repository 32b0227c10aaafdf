//! `status`, `peers`, `ticket`, `key export`: the node and its network.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::{Client, Failure, code};
use crate::crypto::identity::InviteTerms;
use crate::crypto::keyfile::KeyFileError;
use crate::format::certificate::Class;
use crate::limits::ADDRESSES_PER_NODE_MAX;
use crate::node::control::{ControlEvent, NodeClass, NodeState, SecretText, StatusReport};
use crate::node::shard::Shard;
use crate::node::shared::lock;
use crate::node::wall_ms;

pub async fn status(shard: &Rc<Shard>, client: &Rc<Client>) -> Result<(), Failure> {
    let report = report(shard).await?;
    client.send(ControlEvent::Status { report }).await
}

async fn report(shard: &Rc<Shard>) -> Result<StatusReport, Failure> {
    let node = &shard.node;
    let stats = shard.store.stats();
    let counts = node.catalog.counts().await?;
    let layout = node.layout().ok();
    let (known, alive) = node.peers.counts();
    let mut reasons = Vec::new();
    match &layout {
        None => reasons.push("has not joined its network yet: no node of the ticket has answered".to_owned()),
        Some(layout) if layout.node(&node.id()).is_none() => {
            reasons.push("waits for the founder to add it to the layout: start the founder".to_owned());
        }
        Some(layout) => {
            let missing = layout.nodes().iter().filter(|known| !node.peers.is_alive(&known.node)).count();
            if missing > 0 {
                reasons.push(format!("{missing} of {} nodes do not answer", layout.nodes().len()));
            }
        }
    }
    if node.is_member() && node.vault_key().is_none() {
        reasons.push("has not received the vault key yet: start another member".to_owned());
    }
    if let Err(error) = shard.store.room() {
        reasons.push(format!("takes no new chunks: {error}"));
    }
    let opened = &node.opened;
    let lost_blocks = node.lost_blocks();
    if !opened.unreadable.is_empty() || lost_blocks > 0 || opened.damaged_records > 0 {
        reasons.push(format!(
            "opening the store found {} unreadable segments, {} lost blocks, {} damaged records: gabion verify",
            opened.unreadable.len(),
            lost_blocks,
            opened.damaged_records
        ));
    }
    reasons.extend(lock(&node.doubt).reason());
    if stats.quarantined > 0 {
        reasons.push(format!("{} damaged chunks are in quarantine: gabion verify", stats.quarantined));
    }
    Ok(StatusReport {
        state: if reasons.is_empty() { NodeState::Ready } else { NodeState::Degraded },
        reasons,
        node_id: node.id(),
        class: class(node.certificate.class),
        network_id: node.network_id(),
        listen: node.listen.to_string(),
        layout: node.layout_number(),
        replicas: layout.as_ref().map_or(0, |layout| layout.replicas()),
        nodes_known: known,
        nodes_alive: alive,
        chunks: stats.chunks,
        bytes_live: stats.bytes_live,
        bytes_disk: stats.bytes_disk,
        bytes_free: crate::io::filesystem_space(&node.config.data_dir).map_or(0, |space| space.free_bytes),
        capacity_bytes: node.config.capacity,
        names: counts.names,
        versions: counts.versions,
        deaths_pending: lock(&node.deaths).len() as u64,
        cache_bytes: node.cache.bytes(),
        payload_bytes_sent: node.traffic.sent_bytes.load(Ordering::Relaxed),
        payload_bytes_received: node.traffic.received_bytes.load(Ordering::Relaxed),
        registered_buffers: shard.pool.registered() as u32,
        rss_anon_bytes: crate::io::rss().anon_bytes,
        uptime_s: node.started.elapsed().as_secs(),
    })
}

pub fn class(class: Class) -> NodeClass {
    match class {
        Class::Member => NodeClass::Member,
        Class::Storage => NodeClass::Storage,
    }
}

pub async fn peers(shard: &Rc<Shard>, client: &Rc<Client>) -> Result<(), Failure> {
    for report in shard.node.peers.reports() {
        client.send(ControlEvent::Peer { report }).await?;
    }
    Ok(())
}

/// A new invite, signed by the authority, with everything a new node needs to find us.
pub async fn ticket(
    shard: &Rc<Shard>,
    client: &Rc<Client>,
    member: bool,
    zone: Option<String>,
    expires_s: u64,
) -> Result<(), Failure> {
    let node = &shard.node;
    let class = if member { Class::Member } else { Class::Storage };
    let zone = match (zone, class) {
        (Some(zone), _) => zone,
        // One operator holds at most one copy while zones last: each storage ticket is a zone of its own.
        (None, Class::Storage) => format!("z-{:08x}", rand::random::<u32>()),
        (None, Class::Member) => String::new(),
    };
    let expiry_s = expiry(wall_ms() / 1000, expires_s)?;
    let terms = InviteTerms { class, zone, capacity_limit: 0, expiry_s };
    let mut addresses = node.peers.own_role().addresses.clone();
    for address in node.peers.known_addresses() {
        if addresses.len() < ADDRESSES_PER_NODE_MAX && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let ticket = node.key_ring().mint_ticket(&terms, addresses).map_err(key_failure)?;
    client.send(ControlEvent::Text { text: SecretText::new(ticket.to_string()) }).await
}

/// Unix seconds; nothing that a ticket can carry is out of range but what the sum itself does not hold.
fn expiry(now_s: u64, expires_s: u64) -> Result<u64, Failure> {
    let too_far = || Failure::new(code::USAGE, "a ticket cannot expire that far ahead; give --expires 7d, or 3650d");
    now_s.checked_add(expires_s).ok_or_else(too_far)
}

fn key_failure(error: KeyFileError) -> Failure {
    match error {
        KeyFileError::Identity(error) => Failure::new(code::USAGE, error.to_string()),
        other => Failure::new(code::KEY, other.to_string()),
    }
}

pub async fn key_export(shard: &Rc<Shard>, client: &Rc<Client>) -> Result<(), Failure> {
    if !shard.node.is_member() {
        return Err(Failure::new(code::KEY, "this is a storage node: it holds no keys worth exporting; ask a member"));
    }
    let text = shard.node.key_ring().export().to_string();
    client.send(ControlEvent::Text { text: SecretText::new(text) }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_beyond_all_time_is_a_usage_error() {
        assert_eq!(expiry(1000, 7 * 86_400).unwrap(), 1000 + 7 * 86_400);
        assert_eq!(expiry(1000, u64::MAX - 999).unwrap_err().code, code::USAGE);
    }
}
