//! Connections of peers that no layout known here names: they know the network key and hold an invite, no more.
//!
//! Each costs tasks, buffers of its own and what it asks, so there are few: [`STRANGER_CONNECTIONS_MAX`] for the node,
//! [`STRANGER_CONNECTIONS_PER_INVITE_MAX`] of those who came with one invite, so that no ticket can use up the places of the
//! others. While no layout is known here invites are not told apart: then everybody is a stranger, and many may have come
//! with one ticket. A place is free again when the connection has ended, or when a layout has admitted its peer.
//!
//! Only connections that the peer dialled need a place: those that this node dials have a bound of their own
//! ([`PEERS_DIALLED_UNASKED_MAX`](crate::limits::PEERS_DIALLED_UNASKED_MAX)).

use std::collections::HashMap;

use crate::format::NodeId;
use crate::limits::{STRANGER_CONNECTIONS_MAX, STRANGER_CONNECTIONS_PER_INVITE_MAX};

/// One of the places, as its holder gives it back.
pub type PlaceId = u64;

type InviteId = [u8; 32];

#[derive(Default)]
pub struct Strangers {
    places: HashMap<PlaceId, Stranger>,
    next: PlaceId,
}

struct Stranger {
    node: NodeId,
    invite: Option<InviteId>,
}

impl Strangers {
    /// A place for a connection of `node`, if there is one. `invite`: with which it came, where that counts.
    pub fn take(&mut self, node: NodeId, invite: Option<InviteId>) -> Option<PlaceId> {
        let is_same = |stranger: &&Stranger| invite.is_some() && stranger.invite == invite;
        let same = self.places.values().filter(is_same).count();
        if self.places.len() >= STRANGER_CONNECTIONS_MAX || same >= STRANGER_CONNECTIONS_PER_INVITE_MAX {
            return None;
        }
        self.next += 1;
        self.places.insert(self.next, Stranger { node, invite });
        Some(self.next)
    }

    /// The connection has ended.
    pub fn give_back(&mut self, place: PlaceId) {
        self.places.remove(&place);
    }

    /// There is a new layout: whom it admits is no stranger any more.
    pub fn on_layout(&mut self, is_admitted: impl Fn(&NodeId) -> bool) {
        self.places.retain(|_, stranger| !is_admitted(&stranger.node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: usize) -> NodeId {
        NodeId([number as u8; 32])
    }

    const TICKET: Option<InviteId> = Some([1; 32]);

    #[test]
    fn strangers_have_few_places_and_those_of_one_invite_fewer() {
        let mut strangers = Strangers::default();
        for _ in 0..STRANGER_CONNECTIONS_PER_INVITE_MAX {
            assert!(strangers.take(node(1), TICKET).is_some());
        }
        assert!(strangers.take(node(2), TICKET).is_none(), "another identity, the same invite");
        let taken = (2..=u8::MAX).filter(|invite| strangers.take(node(2), Some([*invite; 32])).is_some()).count();
        assert_eq!(taken, STRANGER_CONNECTIONS_MAX - STRANGER_CONNECTIONS_PER_INVITE_MAX);
        let mut newcomer = Strangers::default();
        let taken = (0..1000).filter(|_| newcomer.take(node(2), None).is_some()).count();
        assert_eq!(taken, STRANGER_CONNECTIONS_MAX);
    }

    #[test]
    fn a_place_comes_back_once_when_its_connection_ends_or_its_peer_is_admitted() {
        let mut strangers = Strangers::default();
        let places: Vec<PlaceId> =
            (0..STRANGER_CONNECTIONS_PER_INVITE_MAX).filter_map(|_| strangers.take(node(1), TICKET)).collect();
        strangers.give_back(places[0]);
        let again = strangers.take(node(2), TICKET).expect("a place is free");
        strangers.give_back(places[0]);
        assert!(strangers.take(node(3), TICKET).is_none(), "given back twice frees nothing of others");
        strangers.on_layout(|admitted| *admitted == node(2));
        assert!(strangers.take(node(3), TICKET).is_some());
        strangers.give_back(again);
        assert!(strangers.take(node(3), TICKET).is_none(), "its end frees no second place");
    }
}
