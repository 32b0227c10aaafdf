//! Whose turn it is to be asked for a layout: one at a time, so that hellos cannot ask for more memory than one layout.
//!
//! ```text
//! whoever asks --> the peer's own gate --> its lane --> asks, for a few seconds at most
//!                  one goes on, others     admitted: one at a time
//!                  of this peer wait       strangers: one at a time
//! ```
//! - Strangers have a lane of their own: however slowly they answer, and however many of them there are, nobody who was
//!   admitted waits for them.
//! - A peer has one place in its lane, whatever it says over however many connections.
//! - A turn ends with the answer. What is done with the layout needs none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{MutexGuard, OwnedMutexGuard};

use super::shared::lock;
use crate::format::NodeId;

type Gate = Arc<tokio::sync::Mutex<()>>;

#[derive(Default)]
pub struct LayoutTurns {
    admitted: tokio::sync::Mutex<()>,
    strangers: tokio::sync::Mutex<()>,
    /// Of those whose turn it is, and who wait.
    gates: Mutex<HashMap<NodeId, Gate>>,
}

/// Ends when it is dropped: the lane first, the gate last.
pub struct LayoutTurn<'a> {
    _lane: MutexGuard<'a, ()>,
    _passed: OwnedMutexGuard<()>,
    _place: Place<'a>,
}

/// Somebody at a peer's gate; the last one takes the gate away.
struct Place<'a> {
    turns: &'a LayoutTurns,
    peer: NodeId,
    gate: Gate,
}

impl LayoutTurns {
    /// Waits until `peer` may be asked.
    pub async fn take(&self, peer: NodeId, is_admitted: bool) -> LayoutTurn<'_> {
        let place = Place { turns: self, peer, gate: lock(&self.gates).entry(peer).or_default().clone() };
        let passed = place.gate.clone().lock_owned().await;
        let lane = if is_admitted { &self.admitted } else { &self.strangers };
        LayoutTurn { _lane: lane.lock().await, _passed: passed, _place: place }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut gates = lock(&self.turns.gates);
        // Gates are shared under this lock alone: two holders are the table and this place.
        if Arc::strong_count(&self.gate) <= 2 {
            gates.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    #[test]
    fn admitted_peers_never_wait_for_strangers() {
        let turns = LayoutTurns::default();
        let held = poll(pin!(turns.take(node(1), false))).expect("nobody else is there");
        assert!(poll(pin!(turns.take(node(2), false))).is_none());
        let admitted = poll(pin!(turns.take(node(3), true)));
        assert!(admitted.is_some());
        assert!(poll(pin!(turns.take(node(4), true))).is_none());
        drop((held, admitted));
        assert!(poll(pin!(turns.take(node(2), false))).is_some());
    }

    #[test]
    fn a_peer_has_one_place_in_line_however_often_it_is_asked_for() {
        let turns = LayoutTurns::default();
        let held = poll(pin!(turns.take(node(1), false))).expect("nobody else is there");
        let mut again: Vec<_> = (0..100).map(|_| Box::pin(turns.take(node(1), false))).collect();
        assert!(again.iter_mut().all(|again| poll(again.as_mut()).is_none()));
        let mut other = pin!(turns.take(node(2), false));
        assert!(poll(other.as_mut()).is_none());
        drop(held);
        // The next of the first peer now stands in line, behind the other.
        assert!(again.iter_mut().all(|again| poll(again.as_mut()).is_none()));
        let other = poll(other.as_mut());
        assert!(other.is_some());
        drop(other);
        assert_eq!(again.iter_mut().filter_map(|again| poll(again.as_mut())).count(), 100, "each in its turn");
    }

    #[test]
    fn who_gives_up_leaves_nothing_behind() {
        let turns = LayoutTurns::default();
        let held = poll(pin!(turns.take(node(1), false)));
        for number in 1..9 {
            let mut waiting = Box::pin(turns.take(node(number), false));
            assert!(poll(waiting.as_mut()).is_none());
        }
        assert_eq!(lock(&turns.gates).len(), 1);
        drop(held);
        assert!(lock(&turns.gates).is_empty());
    }
}
