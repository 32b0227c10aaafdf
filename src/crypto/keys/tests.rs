use super::*;
use crate::format::name::{Metadata, Name};

fn vault() -> VaultKey {
    VaultKey::from_bytes([3; 32])
}

fn network() -> NetworkId {
    NetworkId([4; 32])
}

fn body() -> NameBody {
    NameBody {
        bucket: "films".into(),
        key: "2026/one.mkv".into(),
        root: Address([5; 32]),
        root_key: [6; 32],
        depth: 0,
        length: 1000,
        metadata: Metadata::default(),
    }
}

fn stamp() -> NameStamp {
    NameStamp { clock: Stamp::new(1_800_000_000_000, 1), version: VersionId::new(1, 2, [3; 8]), tombstone: false }
}

#[test]
fn every_context_is_used_for_one_thing() {
    let mut contexts = CONTEXT_CHUNK_KEY.to_vec();
    contexts.extend([
        CONTEXT_NODE_SIGNING,
        CONTEXT_NODE_HANDSHAKE,
        CONTEXT_NETWORK_KEY_ID,
        CONTEXT_NETWORK_PSK,
        CONTEXT_BUCKET_ID,
        CONTEXT_NAME_ID,
        CONTEXT_NAME_SEAL,
        CONTEXT_CAPSULE_SEAL,
        CONTEXT_PLACEMENT_ID,
        crate::format::id::TEXT_CHECKSUM_CONTEXT,
    ]);
    let count = contexts.len();
    contexts.sort_unstable();
    contexts.dedup();
    assert_eq!(contexts.len(), count);
    assert!(contexts.iter().all(|context| context.starts_with("gabion v1 ")));
}

#[test]
fn a_name_opens_for_its_vault_and_for_no_other() {
    let record = vault().seal_name(&network(), stamp(), &body());
    assert_eq!(vault().open_name(&network(), &record), Ok(body()));
    assert_eq!(VaultKey::random().open_name(&network(), &record), Err(OpenError::Forged));
    assert_eq!(vault().open_name(&NetworkId([9; 32]), &record), Err(OpenError::Forged));
}

#[test]
fn a_name_record_edited_by_one_bit_does_not_open() {
    let valid = vault().seal_name(&network(), stamp(), &body()).encode();
    for bit in 0..valid.len() * 8 {
        let mut edited = valid.clone();
        edited[bit / 8] ^= 1 << (bit % 8);
        if let Ok(record) = NameRecord::decode(&edited) {
            assert!(vault().open_name(&network(), &record).is_err(), "bit {bit} of {} is not bound", valid.len() * 8);
        }
    }
}

#[test]
fn a_tombstone_cannot_be_made_of_a_file_nor_a_file_of_a_tombstone() {
    let mut record = vault().seal_name(&network(), stamp(), &body());
    record.tombstone = true;
    assert_eq!(vault().open_name(&network(), &record), Err(OpenError::Forged));
    let name = Name::parse("films/2026/one.mkv").unwrap();
    let dead = NameStamp { tombstone: true, ..stamp() };
    let mut record = vault().seal_name(&network(), dead, &NameBody::tombstone(&name));
    assert_eq!(vault().open_name(&network(), &record).unwrap().key, "2026/one.mkv");
    record.tombstone = false;
    assert_eq!(vault().open_name(&network(), &record), Err(OpenError::Forged));
}

#[test]
fn the_same_name_is_sealed_differently_each_time() {
    let (one, two) = (vault().seal_name(&network(), stamp(), &body()), vault().seal_name(&network(), stamp(), &body()));
    assert_ne!(one.nonce, two.nonce);
    assert_ne!(one.sealed, two.sealed);
    assert_eq!((one.bucket, one.name), (two.bucket, two.name));
}

#[test]
fn a_later_generation_is_named_in_the_error() {
    let mut record = vault().seal_name(&network(), stamp(), &body());
    record.key_generation = 2;
    assert_eq!(vault().open_name(&network(), &record), Err(OpenError::Generation { found: 2, held: 1 }));
}

#[test]
fn bucket_and_name_ids_differ_between_vaults_and_do_not_run_together() {
    let vault = vault();
    assert_ne!(vault.bucket_id("a"), VaultKey::random().bucket_id("a"));
    assert_ne!(vault.ids("a", "b/c").1, vault.ids("a/b", "c").1);
    assert_ne!(vault.ids("ab", "c").1, vault.ids("a", "bc").1);
    assert_ne!(vault.bucket_id("a").0, vault.ids("a", "").1.0);
    assert_eq!(vault.ids("a", "b"), vault.ids("a", "b"));
    assert_eq!(vault.ids("a", "b").0, vault.bucket_id("a"));
}

#[test]
fn a_capsule_opens_beside_its_own_root_and_version_only() {
    let capsule = Capsule { root_key: [6; 32], depth: 0, length: 1000, metadata: Metadata::default() };
    let (version, root) = (VersionId::new(1, 2, [3; 8]), Address([5; 32]));
    let sealed = vault().seal_capsule(&network(), &version, &root, &capsule);
    assert_eq!(vault().open_capsule(&network(), &version, &root, &sealed), Ok(capsule));
    let other = VersionId::new(1, 2, [4; 8]);
    assert_eq!(vault().open_capsule(&network(), &other, &root, &sealed), Err(OpenError::Forged));
    assert_eq!(vault().open_capsule(&network(), &version, &Address([6; 32]), &sealed), Err(OpenError::Forged));
    for bit in 0..sealed.len() * 8 {
        let mut edited = sealed.clone();
        edited[bit / 8] ^= 1 << (bit % 8);
        assert!(vault().open_capsule(&network(), &version, &root, &edited).is_err(), "bit {bit}");
    }
    for len in 0..sealed.len() {
        assert!(vault().open_capsule(&network(), &version, &root, &sealed[..len]).is_err(), "cut to {len}");
    }
}

#[test]
fn no_plaintext_shows_in_what_is_sealed() {
    let mut body = body();
    body.key = "a-name-that-nobody-may-see".repeat(8);
    let record = vault().seal_name(&network(), stamp(), &body).encode();
    for window in [&b"a-name-that"[..], &b"films"[..], &[6; 8][..]] {
        assert!(!record.windows(window.len()).any(|bytes| bytes == window));
    }
}

#[test]
fn a_nodes_two_keys_are_of_one_seed_and_not_alike() {
    let keys = NodeSeed::from_bytes([1; 32]).keys();
    let again = NodeSeed::from_bytes([1; 32]).keys();
    assert_eq!((keys.node_id(), keys.handshake_public()), (again.node_id(), again.handshake_public()));
    assert_ne!(&keys.node_id().0, keys.handshake_public());
    assert_ne!(keys.handshake_private(), &[1; 32]);
    assert_eq!(public_of(keys.handshake_private()), *keys.handshake_public());
    assert_ne!(NodeSeed::random().keys().node_id(), NodeSeed::random().keys().node_id());
}

#[test]
fn a_network_key_gives_neither_itself_nor_its_psk_away_by_its_id() {
    let key = NetworkKey::new(1, [8; 32]);
    assert_ne!(key.key_id(), [8; 8]);
    assert_ne!(key.key_id()[..], key.psk()[..8]);
    assert_ne!(key.key_id(), NetworkKey::new(1, [9; 32]).key_id());
}

#[test]
fn secrets_do_not_print() {
    let seed = [0xabu8; 32];
    let printed = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?}",
        NodeSeed::from_bytes(seed),
        InviteSeed::from_bytes(seed),
        VaultKey::from_bytes(seed),
        NetworkKey::new(1, seed),
        Authority::from_bytes(seed),
        NodeSeed::from_bytes(seed).keys(),
    );
    assert!(!printed.contains("abab") && !printed.contains("171"), "{printed}");
}
