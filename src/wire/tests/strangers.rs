//! Who does not belong here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::harness::*;
use crate::crypto::session::{Initiator, OpeningRefused};
use crate::io::{Buffer, BufferPool, SendSource, TcpStream};
use crate::limits::{HANDSHAKE_MAX, HANDSHAKE_SECOND_BYTES, OPENING_BYTES, STALL_MAX};
use crate::wire::*;

/// What a node answers to these first bytes, until it closes.
async fn answer_to(node: &Node, bytes: &[u8]) -> usize {
    let stream = TcpStream::connect(node.address, STALL_MAX).await.unwrap();
    stream.send_all(SendSource::Bytes(bytes.to_vec()), STALL_MAX).await.unwrap();
    let (received, _) = stream.recv(Buffer::heap(4096), 0..4096).await;
    // A reset instead of an end carries nothing either.
    received.unwrap_or(0)
}

fn opening(identity: &Identity) -> [u8; OPENING_BYTES] {
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    Initiator::start(&identity.keys, &identity.network_keys[0], &identity.network, now_ms).unwrap().1
}

#[test]
fn a_stranger_gets_not_one_byte() {
    run(async {
        let network = Network::new();
        let node = Node::listen(&network, Scripted::mute(), 1);
        let stranger = Network::new().identity();
        // The right key id in front of a message under another key.
        let mut forged = opening(&stranger);
        forged[..16].copy_from_slice(&opening(&network.identity())[..16]);
        let (_, noise) = payload(1, OPENING_BYTES);
        for (what, bytes) in
            [("noise", noise), ("another network", opening(&stranger).to_vec()), ("forged", forged.to_vec())]
        {
            assert_eq!(answer_to(&node, &bytes).await, 0, "{what}");
        }
        let refused = node.refused.borrow();
        assert!(matches!(refused[0], AcceptRefused::Opening(OpeningRefused::Magic)));
        assert!(matches!(refused[1], AcceptRefused::Opening(OpeningRefused::UnknownNetworkKey)));
        assert!(matches!(refused[2], AcceptRefused::Opening(OpeningRefused::Psk)));
        assert!(node.handler.connected.borrow().is_empty());
    });
}

#[test]
fn a_replayed_opening_gets_not_one_byte() {
    run(async {
        let network = Network::new();
        let node = Node::listen(&network, Scripted::mute(), 1);
        let recorded = opening(&network.identity());
        assert_eq!(answer_to(&node, &recorded).await, HANDSHAKE_SECOND_BYTES);
        assert_eq!(answer_to(&node, &recorded).await, 0);
        until("both have ended", || node.refused.borrow().len() == 2).await;
        assert!(node.refused.borrow().iter().any(|refused| matches!(refused, AcceptRefused::Replay(_))));
    });
}

#[test]
fn only_the_admitted_get_their_tokens_back() {
    run(async {
        let network = Network::new();
        let node = Node::listen(&network, Scripted::mute(), 1);
        let identity = network.identity();
        let has_tokens = || {
            // As of the same moment: nothing is filled up meanwhile.
            let (now, address) = (node.started, node.address.ip());
            let tokens: Vec<_> = std::iter::from_fn(|| node.admission.admit(address, now).ok()).collect();
            let count = tokens.len();
            tokens.into_iter().for_each(|token| token.succeeded());
            count
        };
        let full = has_tokens();
        for (admits, missing) in [(true, 0), (false, 1)] {
            node.handler.admits.set(admits);
            let pool = BufferPool::new(1).unwrap();
            let connection = Connection::dial(node.address, &identity, None, pool, Scripted::mute()).await.unwrap();
            assert_eq!(has_tokens(), full - missing, "admitted: {admits}");
            connection.close("done").await;
        }
    });
}

#[test]
fn who_drips_is_dropped_when_its_time_is_up() {
    run(async {
        let network = Network::new();
        let node = Node::listen(&network, Scripted::mute(), 1);
        let stream = TcpStream::connect(node.address, STALL_MAX).await.unwrap();
        let begun = Instant::now();
        for byte in opening(&network.identity()) {
            if stream.send_all(SendSource::Bytes(vec![byte]), STALL_MAX).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        until("it is dropped", || !node.refused.borrow().is_empty()).await;
        assert!(matches!(node.refused.borrow()[0], AcceptRefused::TooSlow));
        assert!(begun.elapsed() >= HANDSHAKE_MAX);
        let (received, _) = stream.recv(Buffer::heap(64), 0..64).await;
        assert_eq!(received.unwrap_or(0), 0);
    });
}

async fn dial(node: &Node, identity: &Arc<Identity>, expect: Option<crate::format::NodeId>) -> DialError {
    let pool = BufferPool::new(1).unwrap();
    let dialled = Connection::dial(node.address, identity, expect, pool, Scripted::mute()).await;
    dialled.err().expect("the dialler was not refused")
}

#[test]
fn a_dialler_learns_why_it_may_have_failed() {
    run(async {
        let network = Network::new();
        let node = Node::listen(&network, Scripted::mute(), 1);
        // Another network key.
        let stranger = Network::new().identity();
        assert!(matches!(dial(&node, &stranger, None).await, DialError::Silent { .. }));
        // Not who was expected.
        let ours = network.identity();
        let other = dial(&node, &ours, Some(stranger.keys.node_id())).await;
        assert!(matches!(other, DialError::OtherNode { found, .. } if found == node.identity.keys.node_id()));
        // Knows the network key, but shows the certificate of another network.
        let liar = Arc::new(Identity {
            keys: stranger.keys.clone(),
            certificate: stranger.certificate.clone(),
            network: ours.network,
            network_keys: ours.network_keys.clone(),
        });
        let unwelcome = dial(&node, &liar, None).await;
        assert!(matches!(unwelcome, DialError::Unwelcome { .. }), "{unwelcome}");
        // Somebody else's certificate.
        let thief = Arc::new(Identity {
            keys: stranger.keys.clone(),
            certificate: ours.certificate.clone(),
            network: ours.network,
            network_keys: ours.network_keys.clone(),
        });
        assert!(matches!(dial(&node, &thief, None).await, DialError::Unwelcome { .. }));
        // Nobody there.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let nobody = Connection::dial(free, &ours, None, BufferPool::new(1).unwrap(), Scripted::mute()).await;
        assert!(matches!(nobody.err(), Some(DialError::Connect { .. })));
        until("all were refused", || node.refused.borrow().len() == 4).await;
        assert!(node.handler.connected.borrow().is_empty());
    });
}

#[test]
fn the_network_key_before_the_newest_is_accepted() {
    run(async {
        let network = Network::new();
        let mut node_network = Network::new();
        node_network.authority = network.authority.clone();
        let old = network.identity();
        let node =
            Node::listen_with(&node_network, vec![node_network.key.clone(), network.key.clone()], Scripted::echo(), 2);
        let connection =
            Connection::dial(node.address, &old, None, BufferPool::new(1).unwrap(), Scripted::mute()).await.unwrap();
        assert!(ask(&connection, b"x").await.is_ok());
    });
}
