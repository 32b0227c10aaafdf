use proptest::prelude::*;

use super::*;
use crate::crypto::identity::{Class, InviteTerms, make_certificate, make_invite};
use crate::crypto::keys::{Authority, InviteSeed, NodeSeed};

const NOW_MS: u64 = 1_800_000_000_000;
const MINUTE_MS: u64 = 60_000;

/// A node with its certificate.
struct Node {
    keys: NodeKeys,
    certificate: Vec<u8>,
}

struct Network {
    authority: Authority,
    key: NetworkKey,
}

impl Network {
    fn new() -> Self {
        Self { authority: Authority::random(), key: NetworkKey::random(1) }
    }

    fn id(&self) -> NetworkId {
        self.authority.network_id()
    }

    fn node(&self) -> Node {
        let terms = InviteTerms { class: Class::Member, zone: String::new(), capacity_limit: 0, expiry_s: 0 };
        let (keys, seed) = (NodeSeed::random().keys(), InviteSeed::random());
        let invite = make_invite(&self.authority, &seed, &terms).unwrap();
        let certificate = make_certificate(&invite, &seed, &self.id(), &keys, "").unwrap().encode();
        Node { keys, certificate }
    }

    fn start(&self, node: &Node) -> (Initiator, [u8; OPENING_BYTES]) {
        Initiator::start(&node.keys, &self.key, &self.id(), NOW_MS).unwrap()
    }

    fn accept(&self, node: &Node, opening: &[u8; OPENING_BYTES]) -> Result<(Responder, OpeningInfo), OpeningRefused> {
        Responder::accept(&node.keys, std::slice::from_ref(&self.key), &self.id(), opening, NOW_MS)
    }

    fn connect(&self, dialler: &Node, listener: &Node) -> (Session, Session) {
        let (mut initiator, opening) = self.start(dialler);
        let (mut responder, _) = self.accept(listener, &opening).unwrap();
        let second = responder.second(&listener.certificate).unwrap();
        let answered = initiator.read_second(&second).unwrap();
        assert_eq!(answered.node_id, listener.keys.node_id());
        let (third, mine) = initiator.third(&dialler.certificate).unwrap();
        let (dialled, theirs) = responder.read_third(&third).unwrap();
        assert_eq!(dialled.node_id, dialler.keys.node_id());
        assert_eq!((opening.len(), second.len(), third.len()), (80, HANDSHAKE_SECOND_BYTES, HANDSHAKE_THIRD_BYTES));
        (mine, theirs)
    }
}

fn curve_operations_in(work: impl FnOnce()) -> u64 {
    let before = CURVE_OPERATIONS.with(std::cell::Cell::get);
    work();
    CURVE_OPERATIONS.with(std::cell::Cell::get) - before
}

fn refusal(result: Result<(Responder, OpeningInfo), OpeningRefused>) -> OpeningRefused {
    result.map(|_| ()).expect_err("the opening was accepted")
}

#[test]
fn two_nodes_of_one_network_learn_who_the_other_is_and_talk_both_ways() {
    let network = Network::new();
    let (mut one, mut two) = network.connect(&network.node(), &network.node());
    for (plaintext, to_listener) in [(&b"header"[..], true), (b"", true), (b"answer", false), (b"body", true)] {
        let (from, to) = if to_listener { (&mut one, &mut two) } else { (&mut two, &mut one) };
        let mut sealed = b"kept".to_vec();
        from.seal(plaintext, &mut sealed).unwrap();
        assert_eq!(sealed.len(), 4 + plaintext.len() + SEAL_BYTES);
        let mut out = [0; 16];
        assert_eq!(to.open(&sealed[4..], &mut out), Ok(plaintext.len()));
        assert_eq!(&out[..plaintext.len()], plaintext);
    }
}

#[test]
fn the_halves_of_a_session_live_apart() {
    let network = Network::new();
    let (one, two) = network.connect(&network.node(), &network.node());
    let ((mut one_sends, _), (_, mut two_receives)) = (one.split(), two.split());
    let sealed = std::thread::spawn(move || {
        let mut sealed = Vec::new();
        one_sends.seal(b"from another thread", &mut sealed).unwrap();
        sealed
    });
    let mut out = Vec::new();
    two_receives.open_append(&sealed.join().unwrap(), &mut out).unwrap();
    assert_eq!(out, b"from another thread");
}

#[test]
fn a_stranger_gets_no_answer_and_causes_no_curve_operation() {
    let (network, stranger) = (Network::new(), Network::new());
    let (listener, foreign) = (network.node(), stranger.node());
    // Knows the network's id and has seen the key's id on the wire, but does not hold the key.
    let (_, mut opening) = Initiator::start(&foreign.keys, &stranger.key, &network.id(), NOW_MS).unwrap();
    let operations = curve_operations_in(|| {
        assert_eq!(refusal(network.accept(&listener, &opening)), OpeningRefused::UnknownNetworkKey);
        opening[8..16].copy_from_slice(&network.key.key_id());
        assert_eq!(refusal(network.accept(&listener, &opening)), OpeningRefused::Psk);
        opening[16..].fill(0);
        assert_eq!(refusal(network.accept(&listener, &opening)), OpeningRefused::Psk);
    });
    assert_eq!(operations, 0);
}

#[test]
fn an_accepted_opening_costs_no_curve_operation_until_it_is_answered() {
    let network = Network::new();
    let (dialler, listener) = (network.node(), network.node());
    let (_, opening) = network.start(&dialler);
    let mut responder = None;
    assert_eq!(curve_operations_in(|| responder = network.accept(&listener, &opening).ok()), 0);
    // Our ephemeral, its secret with theirs, our static key's secret with theirs.
    let answering = || drop(responder.unwrap().0.second(&listener.certificate).unwrap());
    assert_eq!(curve_operations_in(answering), 3);
}

#[test]
fn an_opening_edited_by_one_bit_is_refused() {
    let network = Network::new();
    let (dialler, listener) = (network.node(), network.node());
    let (_, opening) = network.start(&dialler);
    for bit in 0..opening.len() * 8 {
        let mut edited = opening;
        edited[bit / 8] ^= 1 << (bit % 8);
        let refused = refusal(network.accept(&listener, &edited));
        let expected = match bit / 8 {
            0..4 => matches!(refused, OpeningRefused::Magic),
            4..8 => matches!(refused, OpeningRefused::Version { .. }),
            8..16 => refused == OpeningRefused::UnknownNetworkKey,
            _ => refused == OpeningRefused::Psk,
        };
        assert!(expected, "bit {bit}: {refused}");
    }
}

#[test]
fn an_opening_of_another_network_with_the_same_key_is_refused() {
    let network = Network::new();
    let other = Network { authority: Authority::random(), key: network.key.clone() };
    let (_, opening) = other.start(&other.node());
    assert_eq!(refusal(network.accept(&network.node(), &opening)), OpeningRefused::Psk);
}

#[test]
fn clocks_more_than_15_minutes_apart_are_refused_with_the_difference() {
    let network = Network::new();
    let (dialler, listener) = (network.node(), network.node());
    let opened_at = |now_ms| {
        let (_, opening) = Initiator::start(&dialler.keys, &network.key, &network.id(), now_ms).unwrap();
        network.accept(&listener, &opening).map(|(_, info)| info.unix_ms)
    };
    for near in [NOW_MS - 15 * MINUTE_MS, NOW_MS, NOW_MS + 15 * MINUTE_MS] {
        assert_eq!(opened_at(near), Ok(near));
    }
    assert_eq!(opened_at(NOW_MS + 16 * MINUTE_MS), Err(OpeningRefused::Clock { off_ms: 960_000 }));
    assert_eq!(opened_at(NOW_MS - 16 * MINUTE_MS), Err(OpeningRefused::Clock { off_ms: -960_000 }));
    assert_eq!(opened_at(u64::MAX), Err(OpeningRefused::Clock { off_ms: i64::MAX }));
}

#[test]
fn the_key_before_the_newest_is_still_answered() {
    let network = Network::new();
    let (dialler, listener) = (network.node(), network.node());
    let (_, opening) = network.start(&dialler);
    let keys = [NetworkKey::random(2), network.key.clone()];
    let (_, info) = Responder::accept(&listener.keys, &keys, &network.id(), &opening, NOW_MS).unwrap();
    assert_eq!(info.network_key_generation, 1);
    assert_eq!(info.ephemeral, opening[16..48]);
}

#[test]
fn a_certificate_with_another_handshake_key_is_refused_on_both_sides() {
    let network = Network::new();
    let (dialler, listener, other) = (network.node(), network.node(), network.node());
    let swapped = HandshakeError::Identity(IdentityError::HandshakeKey);

    let (mut initiator, opening) = network.start(&dialler);
    let (mut responder, _) = network.accept(&listener, &opening).unwrap();
    let second = responder.second(&other.certificate).unwrap();
    assert_eq!(initiator.read_second(&second).unwrap_err(), swapped);

    let (mut initiator, opening) = network.start(&dialler);
    let (mut responder, _) = network.accept(&listener, &opening).unwrap();
    initiator.read_second(&responder.second(&listener.certificate).unwrap()).unwrap();
    let (third, _) = initiator.third(&other.certificate).unwrap();
    assert_eq!(responder.read_third(&third).unwrap_err(), swapped);
}

#[test]
fn who_knows_the_network_key_but_is_not_certified_gets_no_session() {
    let network = Network::new();
    let impostor = Network { authority: Authority::random(), key: network.key.clone() };
    let (foreign, listener) = (impostor.node(), network.node());
    let (mut initiator, opening) = network.start(&foreign);
    let (mut responder, _) = network.accept(&listener, &opening).unwrap();
    initiator.read_second(&responder.second(&listener.certificate).unwrap()).unwrap();
    let (third, _) = initiator.third(&foreign.certificate).unwrap();
    let refused = responder.read_third(&third).unwrap_err();
    assert!(matches!(refused, HandshakeError::Identity(IdentityError::Network { .. })), "{refused}");
}

#[test]
fn damaged_or_shortened_handshake_messages_are_refused() {
    let network = Network::new();
    let (dialler, listener) = (network.node(), network.node());
    let (mut initiator, opening) = network.start(&dialler);
    let (mut responder, _) = network.accept(&listener, &opening).unwrap();
    let second = responder.second(&listener.certificate).unwrap();
    let expected = HandshakeError::Length { expected: HANDSHAKE_SECOND_BYTES, found: 607 };
    assert_eq!(initiator.read_second(&second[..607]).unwrap_err(), expected);
    for at in [0, 40, 100, 607] {
        let mut damaged = second.clone();
        damaged[at] ^= 1;
        assert_eq!(initiator.read_second(&damaged).unwrap_err(), HandshakeError::Sealed, "byte {at}");
    }
    assert!(initiator.read_second(&second).is_ok());
    assert_eq!(
        responder.second(&[0; CERTIFICATE_BYTES_MAX + 1]).unwrap_err(),
        HandshakeError::CertificateLength { found: CERTIFICATE_BYTES_MAX + 1 }
    );
}

#[test]
fn a_replayed_opening_is_answered_with_what_only_its_first_sender_reads() {
    let network = Network::new();
    let (dialler, listener) = (network.node(), network.node());
    let (_, opening) = network.start(&dialler);
    // The filter has forgotten: the recording is answered. Another dialler cannot read the answer.
    let (mut responder, _) = network.accept(&listener, &opening).unwrap();
    let second = responder.second(&listener.certificate).unwrap();
    let (mut thief, _) = network.start(&dialler);
    assert_eq!(thief.read_second(&second).unwrap_err(), HandshakeError::Sealed);
    assert!(!second.windows(32).any(|bytes| bytes == listener.keys.handshake_public()));
    assert!(!second.windows(32).any(|bytes| bytes == listener.keys.node_id().0));
}

#[test]
fn messages_out_of_order_repeated_or_damaged_end_the_session() {
    let network = Network::new();
    for attack in ["repeated", "skipped", "damaged", "reflected"] {
        let (mut one, mut two) = network.connect(&network.node(), &network.node());
        let (mut first, mut second) = (Vec::new(), Vec::new());
        one.seal(b"first", &mut first).unwrap();
        one.seal(b"second", &mut second).unwrap();
        let mut out = [0xee; 16];
        let result = match attack {
            "repeated" => two.open(&first, &mut out).and_then(|_| two.open(&first, &mut out)),
            "skipped" => two.open(&second, &mut out),
            "reflected" => one.open(&first, &mut out),
            _ => {
                first[2] ^= 1;
                two.open(&first, &mut out)
            }
        };
        assert_eq!(result, Err(SessionError::Sealed), "{attack}");
        let victim = if attack == "reflected" { &mut one } else { &mut two };
        assert!(victim.receive.exhausted());
        assert_eq!(victim.open(&second, &mut out), Err(SessionError::Exhausted), "{attack}");
    }
}

#[test]
fn message_lengths_are_bounded_both_ways() {
    let network = Network::new();
    let (mut one, mut two) = network.connect(&network.node(), &network.node());
    let mut sealed = Vec::new();
    let longest = vec![7; SEALED_BODY_BYTES_MAX];
    one.seal(&longest, &mut sealed).unwrap();
    let mut out = Vec::new();
    assert_eq!(two.receive.open_append(&sealed, &mut out), Ok(SEALED_BODY_BYTES_MAX));
    assert!(out == longest);
    sealed.clear();
    let found = SEALED_BODY_BYTES_MAX + 1;
    assert_eq!(one.seal(&vec![7; found], &mut sealed), Err(SessionError::Length { found }));
    assert!(sealed.is_empty());
    for wrong in [vec![0; 15], vec![0; 65_536]] {
        let found = wrong.len();
        assert_eq!(two.receive.open_append(&wrong, &mut out), Err(SessionError::Length { found }));
    }
    assert_eq!(two.open(&[0; 64], &mut [0; 47]), Err(SessionError::Length { found: 64 }));
    // None of these counted: the next message still opens.
    one.seal(b"next", &mut sealed).unwrap();
    assert_eq!(two.open(&sealed, &mut [0; 4]), Ok(4));
}

#[test]
fn a_session_ends_after_its_last_counter() {
    let network = Network::new();
    let (mut one, mut two) = network.connect(&network.node(), &network.node());
    (one.send.next, two.receive.next) = (SESSION_FRAMES_MAX - 1, SESSION_FRAMES_MAX - 1);
    let mut sealed = Vec::new();
    one.seal(b"last", &mut sealed).unwrap();
    assert_eq!(two.open(&sealed, &mut [0; 4]), Ok(4));
    assert!(one.exhausted() && two.exhausted());
    assert_eq!(one.seal(b"one more", &mut sealed), Err(SessionError::Exhausted));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_of_a_stranger_make_a_panic(
        tail in prop::array::uniform32(any::<u8>()),
        second in prop::collection::vec(any::<u8>(), HANDSHAKE_SECOND_BYTES),
        sealed in prop::collection::vec(any::<u8>(), 0..200),
        known_key in any::<bool>(),
    ) {
        let network = Network::new();
        let (dialler, listener) = (network.node(), network.node());
        let (mut initiator, mut opening) = network.start(&dialler);
        opening[48..].copy_from_slice(&tail);
        if !known_key {
            opening[..32].copy_from_slice(&tail);
        }
        prop_assert!(network.accept(&listener, &opening).is_err());
        prop_assert!(initiator.read_second(&second).is_err());
        let (mut one, _) = network.connect(&dialler, &listener);
        prop_assert!(one.receive.open_append(&sealed, &mut Vec::new()).is_err());
    }
}

#[test]
fn our_curve_agrees_with_snows() {
    let network = Network::new();
    let listener = network.node();
    let foreign = network.node();
    let (_, opening) = network.start(&foreign);
    let preface = &opening[..PREFACE_BYTES];
    let prologue = [preface, &network.id().0].concat();
    let psk = network.key.psk();
    let mut snows = Builder::new(PATTERN.parse().unwrap())
        .local_private_key(foreign.keys.handshake_private())
        .unwrap()
        .psk(0, &psk)
        .unwrap()
        .prologue(&prologue)
        .unwrap()
        .build_initiator()
        .unwrap();
    let mut theirs = [0; OPENING_BYTES];
    theirs[..PREFACE_BYTES].copy_from_slice(preface);
    let payload = OpeningPayload {
        version_min: 1.into(),
        version_max: 9.into(),
        payload_bytes_log2: 20,
        reserved: [0; 3],
        unix_ms: NOW_MS.into(),
    };
    snows.write_message(payload.as_bytes(), &mut theirs[PREFACE_BYTES..]).unwrap();
    let (mut responder, _) = network.accept(&listener, &theirs).unwrap();
    let second = responder.second(&listener.certificate).unwrap();
    let mut certificate = [0; 1024];
    snows.read_message(&second, &mut certificate).unwrap();
    assert_eq!(snows.get_remote_static(), Some(&listener.keys.handshake_public()[..]));
}

#[test]
fn a_public_key_of_small_order_makes_no_secret() {
    let mut curve = Curve::knowing(&Zeroizing::new([1; 32]), &[2; 32]);
    curve.generate(&mut Generator).unwrap();
    let mut one = [0; 32];
    one[0] = 1;
    for public in [[0; 32], one] {
        assert_eq!(curve.dh(&public, &mut [0; 32]), Err(snow::Error::Dh));
    }
}
