//! Networks without a network: what the tests of this layer share.

use super::layout::{Owners, Quorum};
use crate::format::certificate::{
    Class, InviteCertificate, Layout, LayoutEntry, NodeCertificate, Role, RoleState, SIGNATURE_BYTES,
};
use crate::format::{Incarnation, NetworkId, NodeId, PlacementId};

mod chunks;
mod claims;
mod deaths;
mod layout;
mod membership;
mod names;
mod placement;

/// Unsigned certificates do here: nothing in this layer checks a signature.
const UNSIGNED: [u8; SIGNATURE_BYTES] = [0; SIGNATURE_BYTES];
const GIB: u64 = 1 << 30;

fn node(number: u16) -> NodeId {
    let mut id = [0; 32];
    let hash = blake3::hash(&number.to_le_bytes());
    id.copy_from_slice(hash.as_bytes());
    NodeId(id)
}

fn certificate(number: u16, class: Class, zone: &str) -> NodeCertificate {
    let mut placement = [0; 16];
    placement.copy_from_slice(&node(number).0[16..]);
    NodeCertificate {
        class,
        network: NetworkId([9; 32]),
        node: node(number),
        handshake_key: [1; 32],
        placement: PlacementId(placement),
        capacity_limit: 0,
        zone: zone.into(),
        invite: InviteCertificate::unsigned(class, "", 0, 0, [2; 32]),
        signature: UNSIGNED,
    }
}

fn role(number: u16, serial: u64, addresses: &[String]) -> Role {
    Role {
        node: node(number),
        incarnation: Incarnation([3; 16]),
        state: RoleState::Active,
        serial,
        capacity_bytes: 100 * GIB,
        layout_confirmed: 0,
        layout_synced: 0,
        addresses: addresses.to_vec(),
        signature: UNSIGNED,
    }
}

fn entry(number: u16, class: Class, zone: &str) -> LayoutEntry {
    LayoutEntry { certificate: certificate(number, class, zone), role: role(number, 1, &[]) }
}

fn layout(number: u32, replicas: u8, mut entries: Vec<LayoutEntry>) -> Layout {
    entries.sort_by_key(|entry| entry.role.node);
    Layout { number, replicas, voters: Vec::new(), settings: Vec::new(), entries, signature: UNSIGNED }
}

fn quorum(layout: u32, numbers: &[u16]) -> Quorum {
    Quorum { layout, owners: numbers.iter().map(|number| node(*number)).collect::<Owners>() }
}

/// All orders of `items`.
fn permutations<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    (0..items.len())
        .flat_map(|first| {
            let mut rest = items.to_vec();
            let head = rest.remove(first);
            permutations(&rest).into_iter().map(move |mut tail| {
                tail.insert(0, head.clone());
                tail
            })
        })
        .collect()
}
