//! Who may sign what, and the checks.
//!
//! Two signatures lead from the network's name to a node: the authority signs an invite, the invite signs the node's
//! certificate. An invite's seed travels in a ticket, so joining takes no message to the authority: a node makes its own
//! certificate ([`make_certificate`]) within what the invite allows.
//!
//! | thing | signed by | checked by |
//! | --- | --- | --- |
//! | invite | authority | [`verify_invite`] |
//! | node certificate | invite | [`verify_certificate`] |
//! | role | its node | [`verify_role`] |
//! | layout | authority | [`verify_layout`], and everything in it |
//! | death | a member | [`verify_death`] |
//! | eviction | authority | [`verify_eviction`] |
//!
//! Expiry. An invite's expiry ends *admission*: the founder asks [`CheckedCertificate::is_admissible`] when a node joins. A
//! node admitted before stays a node afterwards, so a handshake does not look at the expiry; only an eviction ends it.
//! Evictions are not looked at here either: whoever holds the list compares
//! [`CheckedCertificate::is_evicted_by`].
//!
//! The placement id is derived from network, node and invite, so that nobody takes another's or simply writes down
//! the one that owns a wished-for partition. (Who makes keys by the thousand still finds one; zones and the
//! replicas of others are what stands against that.)

use ed25519_dalek::VerifyingKey;

use super::keys::{Authority, CONTEXT_PLACEMENT_ID, InviteSeed, NodeKeys, SignatureContext};
use crate::format::certificate::{
    Death, Evicted, Eviction, InviteCertificate, Layout, NodeCertificate, Role, Signature, is_zone,
};
use crate::format::{Malformed, NetworkId, NodeId, PlacementId};
use crate::limits::VOTERS_MAX;

pub use crate::format::certificate::Class;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate cannot be read: {0}")]
    Malformed(#[from] Malformed),
    #[error(
        "the certificate belongs to network {found:?}, this node to {expected:?}: join with a ticket of this network"
    )]
    Network { expected: NetworkId, found: NetworkId },
    #[error("the signature of the {what} is not by its {signer}: it was edited or forged")]
    Signature { what: &'static str, signer: &'static str },
    #[error("the certificate's {what} is not what its invite allows: join with a ticket that allows it")]
    BeyondInvite { what: &'static str },
    #[error("the certificate's placement id is not the one of this node")]
    Placement,
    #[error("the ticket expired at Unix second {expiry_s}: ask for a new one (`gabion ticket`)")]
    Expired { expiry_s: u64 },
    #[error("{signer:?} is a storage node: only members sign deaths")]
    NotAMember { signer: NodeId },
    #[error("the certificate's handshake key is not the one that was proved: it belongs to another node")]
    HandshakeKey,
    #[error("the layout names voter {voter:?}, which has no entry in it")]
    Voter { voter: NodeId },
    #[error("the zone `{zone}` is too long or has characters other than letters, digits, `.`, `-`, `_`")]
    Zone { zone: String },
}

fn verify(
    public: &[u8; 32],
    context: SignatureContext,
    network: &NetworkId,
    body: &[u8],
    signature: &Signature,
) -> Result<(), ed25519_dalek::SignatureError> {
    let signature = ed25519_dalek::Signature::from_bytes(signature);
    VerifyingKey::from_bytes(public)?.verify_strict(&context.message(network, body), &signature)
}

/// A certificate whose chain of signatures was checked: made by [`verify_certificate`] alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckedCertificate {
    pub node_id: NodeId,
    pub network: NetworkId,
    pub handshake_key: [u8; 32],
    pub class: Class,
    /// May be empty: then the node is a zone of its own.
    pub zone: String,
    /// In bytes; 0 = none.
    pub capacity_limit: u64,
    pub placement_id: PlacementId,
    pub invite_id: [u8; 32],
    /// Unix seconds after which nobody is admitted by the invite; 0 = never.
    pub expiry_s: u64,
    certificate: NodeCertificate,
}

impl CheckedCertificate {
    /// As it was signed.
    pub fn certificate(&self) -> &NodeCertificate {
        &self.certificate
    }

    /// Whether a node may be admitted with it now; asked once, when it joins.
    pub fn is_admissible(&self, now_s: u64) -> Result<(), IdentityError> {
        if self.certificate.invite.admits(now_s) {
            Ok(())
        } else {
            Err(IdentityError::Expired { expiry_s: self.expiry_s })
        }
    }

    pub fn is_evicted_by(&self, evicted: &Evicted) -> bool {
        match evicted {
            Evicted::Node(node) => *node == self.node_id,
            Evicted::Invite(invite) => *invite == self.invite_id,
        }
    }
}

/// What an invite allows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InviteTerms {
    pub class: Class,
    /// Empty leaves it to the node.
    pub zone: String,
    /// In bytes, for each node; 0 = none.
    pub capacity_limit: u64,
    /// Unix seconds; 0 = never.
    pub expiry_s: u64,
}

/// A new invite of `authority`'s network.
pub fn make_invite(
    authority: &Authority,
    seed: &InviteSeed,
    terms: &InviteTerms,
) -> Result<InviteCertificate, IdentityError> {
    if !is_zone(&terms.zone) {
        return Err(IdentityError::Zone { zone: terms.zone.clone() });
    }
    let mut invite =
        InviteCertificate::unsigned(terms.class, &terms.zone, terms.capacity_limit, terms.expiry_s, seed.public());
    invite.signature = authority.sign(SignatureContext::INVITE, &invite.body());
    Ok(invite)
}

/// A node's certificate by an invite. `zone` counts only where the invite leaves it open.
pub fn make_certificate(
    invite: &InviteCertificate,
    seed: &InviteSeed,
    network: &NetworkId,
    keys: &NodeKeys,
    zone: &str,
) -> Result<NodeCertificate, IdentityError> {
    if !is_zone(zone) {
        return Err(IdentityError::Zone { zone: zone.to_owned() });
    }
    let mut certificate = NodeCertificate {
        class: invite.class,
        network: *network,
        node: keys.node_id(),
        handshake_key: *keys.handshake_public(),
        placement: placement_id(network, &keys.node_id(), &invite.public),
        capacity_limit: invite.capacity_limit,
        zone: if invite.zone.is_empty() { zone.to_owned() } else { invite.zone.clone() },
        invite: invite.clone(),
        signature: [0; 64],
    };
    certificate.signature = seed.sign(SignatureContext::NODE_CERTIFICATE, network, &certificate.body());
    Ok(certificate)
}

fn placement_id(network: &NetworkId, node: &NodeId, invite: &[u8; 32]) -> PlacementId {
    let mut id = PlacementId::ZERO;
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_PLACEMENT_ID);
    hasher.update(&network.0).update(&node.0).update(invite).finalize_xof().fill(&mut id.0);
    id
}

pub fn verify_invite(invite: &InviteCertificate, network: &NetworkId) -> Result<(), IdentityError> {
    verify(&network.0, SignatureContext::INVITE, network, &invite.body(), &invite.signature)
        .map_err(|_| IdentityError::Signature { what: "invite", signer: "network's authority" })
}

/// The chain from the network's id to the node; not the expiry, not evictions (see the module).
pub fn verify_certificate(
    certificate: &NodeCertificate,
    network: &NetworkId,
) -> Result<CheckedCertificate, IdentityError> {
    if certificate.network != *network {
        return Err(IdentityError::Network { expected: *network, found: certificate.network });
    }
    let invite = &certificate.invite;
    verify_invite(invite, network)?;
    let (context, body) = (SignatureContext::NODE_CERTIFICATE, certificate.body());
    verify(&invite.public, context, network, &body, &certificate.signature)
        .map_err(|_| IdentityError::Signature { what: "node certificate", signer: "invite" })?;
    check_terms(certificate)?;
    if certificate.placement != placement_id(network, &certificate.node, &invite.public) {
        return Err(IdentityError::Placement);
    }
    Ok(CheckedCertificate {
        node_id: certificate.node,
        network: *network,
        handshake_key: certificate.handshake_key,
        class: certificate.class,
        zone: certificate.zone.clone(),
        capacity_limit: certificate.capacity_limit,
        placement_id: certificate.placement,
        invite_id: invite.public,
        expiry_s: invite.expiry_s,
        certificate: certificate.clone(),
    })
}

/// The same for encoded bytes.
pub fn verify_certificate_bytes(bytes: &[u8], network: &NetworkId) -> Result<CheckedCertificate, IdentityError> {
    verify_certificate(&NodeCertificate::decode(bytes)?, network)
}

fn check_terms(certificate: &NodeCertificate) -> Result<(), IdentityError> {
    let invite = &certificate.invite;
    if certificate.class != invite.class {
        return Err(IdentityError::BeyondInvite { what: "class" });
    }
    if !invite.zone.is_empty() && certificate.zone != invite.zone {
        return Err(IdentityError::BeyondInvite { what: "zone" });
    }
    let limited = invite.capacity_limit != 0;
    if limited && (certificate.capacity_limit == 0 || certificate.capacity_limit > invite.capacity_limit) {
        return Err(IdentityError::BeyondInvite { what: "capacity limit" });
    }
    Ok(())
}

pub fn sign_role(role: &mut Role, keys: &NodeKeys, network: &NetworkId) {
    role.signature = keys.sign(SignatureContext::ROLE, network, &role.body());
}

/// Whether the role is by the node that it is about. Whether that node belongs to the network says its certificate.
pub fn verify_role(role: &Role, network: &NetworkId) -> Result<(), IdentityError> {
    verify(&role.node.0, SignatureContext::ROLE, network, &role.body(), &role.signature)
        .map_err(|_| IdentityError::Signature { what: "role", signer: "node" })
}

pub fn sign_layout(layout: &mut Layout, authority: &Authority) {
    layout.signature = authority.sign(SignatureContext::LAYOUT, &layout.body());
}

/// The authority's signature, each certificate and role in the layout, and that each voter is one of its nodes. Gives the
/// certificates, in the order of the entries.
pub fn verify_layout(layout: &Layout, network: &NetworkId) -> Result<Vec<CheckedCertificate>, IdentityError> {
    verify(&network.0, SignatureContext::LAYOUT, network, &layout.body(), &layout.signature)
        .map_err(|_| IdentityError::Signature { what: "layout", signer: "network's authority" })?;
    debug_assert!(layout.voters.len() <= VOTERS_MAX);
    for voter in &layout.voters {
        if layout.entries.binary_search_by_key(voter, |entry| entry.role.node).is_err() {
            return Err(IdentityError::Voter { voter: *voter });
        }
    }
    layout
        .entries
        .iter()
        .map(|entry| {
            verify_role(&entry.role, network)?;
            verify_certificate(&entry.certificate, network)
        })
        .collect()
}

/// Signs for the node whose certificate the death carries.
pub fn sign_death(death: &mut Death, keys: &NodeKeys, network: &NetworkId) {
    death.signature = keys.sign(SignatureContext::DEATH, network, &death.body());
}

/// Whether a member of this network signed it; gives the member.
pub fn verify_death(death: &Death, network: &NetworkId) -> Result<CheckedCertificate, IdentityError> {
    let signer = verify_certificate(&death.signer, network)?;
    if signer.class != Class::Member {
        return Err(IdentityError::NotAMember { signer: signer.node_id });
    }
    verify(&signer.node_id.0, SignatureContext::DEATH, network, &death.body(), &death.signature)
        .map_err(|_| IdentityError::Signature { what: "death", signer: "member" })?;
    Ok(signer)
}

pub fn make_eviction(authority: &Authority, evicted: Evicted, now_ms: u64) -> Eviction {
    let mut eviction = Eviction { evicted, made_ms: now_ms, signature: [0; 64] };
    eviction.signature = authority.sign(SignatureContext::EVICTION, &eviction.body());
    eviction
}

pub fn verify_eviction(eviction: &Eviction, network: &NetworkId) -> Result<(), IdentityError> {
    verify(&network.0, SignatureContext::EVICTION, network, &eviction.body(), &eviction.signature)
        .map_err(|_| IdentityError::Signature { what: "eviction", signer: "network's authority" })
}

#[cfg(test)]
mod tests;
