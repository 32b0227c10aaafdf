use super::*;
use crate::crypto::keys::NodeSeed;
use crate::format::certificate::{LayoutEntry, RoleState};
use crate::format::{Incarnation, VersionId};

fn terms(class: Class) -> InviteTerms {
    InviteTerms { class, zone: "cellar".into(), capacity_limit: 1000, expiry_s: 5000 }
}

struct Network {
    authority: Authority,
    seed: InviteSeed,
    invite: InviteCertificate,
}

impl Network {
    fn new(terms: &InviteTerms) -> Self {
        let (authority, seed) = (Authority::random(), InviteSeed::random());
        let invite = make_invite(&authority, &seed, terms).unwrap();
        Self { authority, seed, invite }
    }

    fn id(&self) -> NetworkId {
        self.authority.network_id()
    }

    fn certify(&self, keys: &NodeKeys) -> NodeCertificate {
        make_certificate(&self.invite, &self.seed, &self.id(), keys, "attic").unwrap()
    }

    /// Signed by the invite after `change`: what a node can make by itself.
    fn forge(&self, keys: &NodeKeys, change: impl FnOnce(&mut NodeCertificate)) -> Result<(), IdentityError> {
        let mut certificate = self.certify(keys);
        change(&mut certificate);
        certificate.signature = self.seed.sign(SignatureContext::NODE_CERTIFICATE, &self.id(), &certificate.body());
        verify_certificate(&certificate, &self.id()).map(|_| ())
    }
}

fn keys() -> NodeKeys {
    NodeSeed::random().keys()
}

fn role(keys: &NodeKeys, network: &NetworkId) -> Role {
    let mut role = Role {
        node: keys.node_id(),
        incarnation: Incarnation::ZERO,
        state: RoleState::Joining,
        serial: 1,
        capacity_bytes: 1,
        layout_confirmed: 0,
        layout_synced: 0,
        addresses: Vec::new(),
        signature: [0; 64],
    };
    sign_role(&mut role, keys, network);
    role
}

#[test]
fn a_certificate_by_an_invite_of_the_authority_is_accepted() {
    let network = Network::new(&terms(Class::Storage));
    let keys = keys();
    let checked = verify_certificate_bytes(&network.certify(&keys).encode(), &network.id()).unwrap();
    assert_eq!(checked.node_id, keys.node_id());
    assert_eq!(checked.handshake_key, *keys.handshake_public());
    assert_eq!((checked.class, checked.zone.as_str(), checked.capacity_limit), (Class::Storage, "cellar", 1000));
    assert_eq!(checked.invite_id, network.seed.public());
}

#[test]
fn a_certificate_of_another_network_is_refused() {
    let (network, other) = (Network::new(&terms(Class::Member)), Network::new(&terms(Class::Member)));
    let mut certificate = network.certify(&keys());
    let expected = IdentityError::Network { expected: other.id(), found: network.id() };
    assert_eq!(verify_certificate(&certificate, &other.id()), Err(expected));
    certificate.network = other.id();
    assert!(verify_certificate(&certificate, &other.id()).is_err());
}

#[test]
fn a_certificate_edited_by_one_bit_is_refused() {
    let network = Network::new(&terms(Class::Storage));
    let valid = network.certify(&keys()).encode();
    for bit in 0..valid.len() * 8 {
        let mut edited = valid.clone();
        edited[bit / 8] ^= 1 << (bit % 8);
        assert!(verify_certificate_bytes(&edited, &network.id()).is_err(), "bit {bit} of {}", valid.len() * 8);
    }
}

#[test]
fn a_certificate_signed_by_anybody_but_its_invite_is_refused() {
    let (network, keys) = (Network::new(&terms(Class::Member)), keys());
    let mut certificate = network.certify(&keys);
    let (context, body) = (SignatureContext::NODE_CERTIFICATE, certificate.body());
    let refused = IdentityError::Signature { what: "node certificate", signer: "invite" };
    certificate.signature = keys.sign(context, &network.id(), &body);
    assert_eq!(verify_certificate(&certificate, &network.id()), Err(refused.clone()));
    certificate.signature = network.authority.sign(context, &body);
    assert_eq!(verify_certificate(&certificate, &network.id()), Err(refused.clone()));
    certificate.signature = network.seed.sign(SignatureContext::INVITE, &network.id(), &body);
    assert_eq!(verify_certificate(&certificate, &network.id()), Err(refused));
}

#[test]
fn an_invite_that_signed_itself_admits_nobody() {
    let mut network = Network::new(&terms(Class::Member));
    let body = network.invite.body();
    network.invite.signature = network.seed.sign(SignatureContext::INVITE, &network.id(), &body);
    let refused = IdentityError::Signature { what: "invite", signer: "network's authority" };
    assert_eq!(verify_certificate(&network.certify(&keys()), &network.id()), Err(refused));
}

#[test]
fn a_node_cannot_certify_itself_beyond_its_invite() {
    let (network, keys) = (Network::new(&terms(Class::Storage)), keys());
    let beyond = |what| Err(IdentityError::BeyondInvite { what });
    assert_eq!(network.forge(&keys, |_| ()), Ok(()));
    assert_eq!(network.forge(&keys, |certificate| certificate.class = Class::Member), beyond("class"));
    assert_eq!(network.forge(&keys, |certificate| certificate.zone = "attic".into()), beyond("zone"));
    assert_eq!(network.forge(&keys, |certificate| certificate.capacity_limit = 1001), beyond("capacity limit"));
    assert_eq!(network.forge(&keys, |certificate| certificate.capacity_limit = 0), beyond("capacity limit"));
    assert_eq!(network.forge(&keys, |certificate| certificate.capacity_limit = 999), Ok(()));
    assert_eq!(network.forge(&keys, |certificate| certificate.placement.0[0] ^= 1), Err(IdentityError::Placement));
    assert!(network.forge(&keys, |certificate| certificate.invite.class = Class::Member).is_err());
}

#[test]
fn an_invite_without_a_zone_leaves_it_to_the_node() {
    let network = Network::new(&InviteTerms { zone: String::new(), ..terms(Class::Member) });
    let checked = verify_certificate(&network.certify(&keys()), &network.id()).unwrap();
    assert_eq!(checked.zone, "attic");
    let wrong = make_certificate(&network.invite, &network.seed, &network.id(), &keys(), "two words");
    assert_eq!(wrong, Err(IdentityError::Zone { zone: "two words".into() }));
}

#[test]
fn an_expired_invite_admits_nobody_and_puts_nobody_out() {
    let network = Network::new(&terms(Class::Member));
    let checked = verify_certificate(&network.certify(&keys()), &network.id()).unwrap();
    assert_eq!(checked.is_admissible(5000), Ok(()));
    assert_eq!(checked.is_admissible(5001), Err(IdentityError::Expired { expiry_s: 5000 }));
    let network = Network::new(&InviteTerms { expiry_s: 0, ..terms(Class::Member) });
    let checked = verify_certificate(&network.certify(&keys()), &network.id()).unwrap();
    assert_eq!(checked.is_admissible(u64::MAX), Ok(()));
}

#[test]
fn an_eviction_by_the_authority_meets_its_node_or_its_invite() {
    let (network, keys) = (Network::new(&terms(Class::Member)), keys());
    let checked = verify_certificate(&network.certify(&keys), &network.id()).unwrap();
    let of_node = make_eviction(&network.authority, Evicted::Node(keys.node_id()), 1);
    let of_invite = make_eviction(&network.authority, Evicted::Invite(network.seed.public()), 1);
    for eviction in [of_node, of_invite] {
        verify_eviction(&eviction, &network.id()).unwrap();
        assert!(checked.is_evicted_by(&eviction.evicted));
        let forged = Eviction { made_ms: 2, ..eviction };
        assert!(verify_eviction(&forged, &network.id()).is_err());
    }
    assert!(!checked.is_evicted_by(&Evicted::Node(NodeId(network.seed.public()))));
}

#[test]
fn a_role_is_by_its_own_node() {
    let network = Network::new(&terms(Class::Member));
    let mut mine = role(&keys(), &network.id());
    verify_role(&mine, &network.id()).unwrap();
    mine.capacity_bytes += 1;
    assert!(verify_role(&mine, &network.id()).is_err());
    sign_role(&mut mine, &keys(), &network.id());
    assert!(verify_role(&mine, &network.id()).is_err());
}

#[test]
fn what_was_signed_for_another_network_or_purpose_does_not_count() {
    let (network, other) = (Network::new(&terms(Class::Member)), Network::new(&terms(Class::Member)));
    let keys = keys();
    let mut mine = role(&keys, &other.id());
    assert!(verify_role(&mine, &network.id()).is_err());
    mine.signature = keys.sign(SignatureContext::DEATH, &network.id(), &mine.body());
    assert!(verify_role(&mine, &network.id()).is_err());
    mine.signature = keys.sign(SignatureContext::ROLE, &network.id(), &mine.body());
    assert_eq!(verify_role(&mine, &network.id()), Ok(()));
}

#[test]
fn a_layout_counts_with_all_that_is_in_it_or_not_at_all() {
    let network = Network::new(&terms(Class::Member));
    let mut nodes = [keys(), keys()];
    nodes.sort_by_key(NodeKeys::node_id);
    let entry = |keys| LayoutEntry { certificate: network.certify(keys), role: role(keys, &network.id()) };
    let mut layout = Layout {
        number: 1,
        replicas: 2,
        voters: vec![nodes[1].node_id()],
        settings: Vec::new(),
        entries: nodes.iter().map(entry).collect(),
        signature: [0; 64],
    };
    let check = |layout: &mut Layout| {
        sign_layout(layout, &network.authority);
        verify_layout(layout, &network.id())
    };
    assert_eq!(check(&mut layout).unwrap().len(), 2);
    layout.number = 2;
    assert!(verify_layout(&layout, &network.id()).is_err());
    let stranger = keys().node_id();
    layout.voters = vec![stranger];
    assert_eq!(check(&mut layout), Err(IdentityError::Voter { voter: stranger }));
    layout.voters.clear();
    layout.entries[0].role.serial += 1;
    assert!(check(&mut layout).is_err());
}

#[test]
fn only_a_member_signs_deaths() {
    for (class, accepted) in [(Class::Member, true), (Class::Storage, false)] {
        let (network, keys) = (Network::new(&terms(class)), keys());
        let mut death = Death {
            signer: network.certify(&keys),
            key_generation: 1,
            versions: vec![VersionId::new(1, 2, [3; 8])],
            signature: [0; 64],
        };
        sign_death(&mut death, &keys, &network.id());
        assert_eq!(verify_death(&death, &network.id()).is_ok(), accepted, "{class}");
        death.versions.push(VersionId::new(1, 2, [4; 8]));
        assert!(verify_death(&death, &network.id()).is_err());
        sign_death(&mut death, &super::tests::keys(), &network.id());
        assert!(verify_death(&death, &network.id()).is_err());
    }
}

#[test]
fn a_signature_under_the_identity_point_is_refused() {
    // With the neutral point as public key and as R, and s = 0, a lax check accepts every message.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    let checked = verify(&neutral, SignatureContext::ROLE, &NetworkId([0; 32]), b"anything", &signature);
    assert!(checked.is_err());
}
