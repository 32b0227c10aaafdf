use std::fs::Permissions;

use super::*;
use crate::format::certificate::InviteCertificate;

fn storage() -> InviteTerms {
    InviteTerms { class: Class::Storage, zone: "cellar".into(), capacity_limit: 0, expiry_s: 0 }
}

fn member() -> InviteTerms {
    InviteTerms { class: Class::Member, zone: String::new(), capacity_limit: 0, expiry_s: 0 }
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn key_file(data_directory: &Path, name: &str) -> PathBuf {
    data_directory.join(KEYS_DIRECTORY).join(name)
}

#[test]
fn a_founder_loads_what_it_founded() {
    let directory = tempfile::tempdir().unwrap();
    assert!(KeyRing::load(directory.path()).unwrap().is_none());
    let founded = KeyRing::found(directory.path(), "attic").unwrap();
    let loaded = KeyRing::load(directory.path()).unwrap().unwrap();
    assert_eq!(loaded.node().node_id(), founded.node().node_id());
    assert_eq!(loaded.certificate(), founded.certificate());
    assert_eq!(loaded.certificate().zone, "attic");
    assert_eq!(loaded.authority().unwrap().network_id(), loaded.network());
    assert_eq!(loaded.vault().unwrap().as_bytes(), founded.vault().unwrap().as_bytes());
    assert_eq!(loaded.network_keys().len(), 1);
}

#[test]
fn a_node_joins_by_a_ticket_in_text_form_and_holds_no_vault_key() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let founder = KeyRing::found(home.path(), "").unwrap();
    let ticket = founder.mint_ticket(&storage(), vec!["192.0.2.1:4400".into()]).unwrap();
    let ticket: Ticket = ticket.to_string().parse().unwrap();
    let joined = KeyRing::join(other.path(), &ticket, "").unwrap();
    assert_eq!(joined.network(), founder.network());
    assert_eq!(joined.network_keys()[0].as_bytes(), founder.network_keys()[0].as_bytes());
    assert_eq!((joined.certificate().class, joined.certificate().zone.as_str()), (Class::Storage, "cellar"));
    assert!(joined.vault().is_none() && joined.authority().is_none());
    assert!(matches!(joined.mint_ticket(&storage(), Vec::new()), Err(KeyFileError::NotTheFounder)));
}

#[test]
fn only_a_member_stores_the_vault_key() {
    let (home, of_member, of_storage) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let founder = KeyRing::found(home.path(), "").unwrap();
    let key = founder.vault().unwrap();
    let mut joined = KeyRing::join(of_member.path(), &founder.mint_ticket(&member(), vec![]).unwrap(), "").unwrap();
    joined.store_vault_key(key.clone()).unwrap();
    let loaded = KeyRing::load(of_member.path()).unwrap().unwrap();
    assert_eq!(loaded.vault().unwrap().as_bytes(), key.as_bytes());
    let mut joined = KeyRing::join(of_storage.path(), &founder.mint_ticket(&storage(), vec![]).unwrap(), "").unwrap();
    assert!(matches!(joined.store_vault_key(key.clone()), Err(KeyFileError::NotAMember)));
    assert!(!key_file(of_storage.path(), "vault.key").exists());
}

#[test]
fn every_key_file_is_made_0600_and_refused_when_wider() {
    let directory = tempfile::tempdir().unwrap();
    KeyRing::found(directory.path(), "").unwrap();
    for name in ["node.seed", "authority.seed", "network.keys", "vault.key", "certificate"] {
        let path = key_file(directory.path(), name);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        for wider in [0o640, 0o604, 0o620, 0o601, 0o666] {
            chmod(&path, wider);
            let error = KeyRing::load(directory.path()).unwrap_err();
            assert!(matches!(error, KeyFileError::TooWide { .. }), "{name}: {error}");
            assert!(error.to_string().contains(&format!("`chmod 600 {}`", path.display())), "{error}");
        }
        for narrow in [0o600, 0o400] {
            chmod(&path, narrow);
            assert!(KeyRing::load(directory.path()).unwrap().is_some());
        }
        chmod(&path, 0o600);
    }
    let directory = std::fs::metadata(directory.path().join(KEYS_DIRECTORY)).unwrap();
    assert_eq!(directory.permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_damaged_key_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    KeyRing::found(directory.path(), "").unwrap();
    for name in ["node.seed", "authority.seed", "network.keys", "vault.key", "certificate"] {
        let path = key_file(directory.path(), name);
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            let error = KeyRing::load(directory.path()).unwrap_err();
            assert!(matches!(error, KeyFileError::Damaged { .. }), "{name}, byte {at}: {error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(KeyRing::load(directory.path()).unwrap().is_some());
}

#[test]
fn one_key_file_in_the_place_of_another_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    KeyRing::found(directory.path(), "").unwrap();
    std::fs::copy(key_file(directory.path(), "vault.key"), key_file(directory.path(), "node.seed")).unwrap();
    assert!(matches!(KeyRing::load(directory.path()), Err(KeyFileError::Damaged { .. })));
}

#[test]
fn a_seed_of_another_node_is_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    KeyRing::found(one.path(), "").unwrap();
    KeyRing::found(two.path(), "").unwrap();
    std::fs::copy(key_file(two.path(), "node.seed"), key_file(one.path(), "node.seed")).unwrap();
    assert!(matches!(KeyRing::load(one.path()), Err(KeyFileError::TwoNodes { .. })));
    std::fs::remove_file(key_file(one.path(), "node.seed")).unwrap();
    assert!(matches!(KeyRing::load(one.path()), Err(KeyFileError::Missing { .. })));
}

#[test]
fn a_data_directory_belongs_to_one_network() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let founder = KeyRing::found(home.path(), "").unwrap();
    let ticket = founder.mint_ticket(&storage(), vec![]).unwrap();
    KeyRing::join(other.path(), &ticket, "").unwrap();
    assert!(matches!(KeyRing::join(other.path(), &ticket, ""), Err(KeyFileError::Taken { .. })));
    assert!(matches!(KeyRing::found(home.path(), ""), Err(KeyFileError::Taken { .. })));
    assert_eq!(KeyRing::load(home.path()).unwrap().unwrap().node().node_id(), founder.node().node_id());
}

#[test]
fn founding_cut_off_before_the_certificate_starts_over() {
    let directory = tempfile::tempdir().unwrap();
    KeyRing::found(directory.path(), "").unwrap();
    std::fs::remove_file(key_file(directory.path(), "certificate")).unwrap();
    std::fs::write(key_file(directory.path(), "vault.new"), b"torn").unwrap();
    assert!(KeyRing::load(directory.path()).unwrap().is_none());
    KeyRing::found(directory.path(), "").unwrap();
    assert!(KeyRing::load(directory.path()).unwrap().is_some());
}

#[test]
fn an_edited_ticket_leaves_nothing_behind() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut ticket = KeyRing::found(home.path(), "").unwrap().mint_ticket(&storage(), vec![]).unwrap();
    ticket.invite = InviteCertificate { class: Class::Member, ..ticket.invite.clone() };
    assert!(matches!(KeyRing::join(other.path(), &ticket, ""), Err(KeyFileError::Identity(_))));
    assert!(!other.path().join(KEYS_DIRECTORY).exists());
}

#[test]
fn the_newest_network_keys_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut keys = KeyRing::found(directory.path(), "").unwrap();
    for generation in [2, 3, 2, 1] {
        keys.store_network_key(NetworkKey::random(generation)).unwrap();
    }
    let loaded = KeyRing::load(directory.path()).unwrap().unwrap();
    let generations: Vec<_> = loaded.network_keys().iter().map(NetworkKey::generation).collect();
    assert_eq!(generations, [3, 2]);
    assert_eq!(loaded.network_keys()[0].as_bytes(), keys.network_keys()[0].as_bytes());
}

#[test]
fn exported_keys_found_the_network_anew_after_its_last_member() {
    let (home, new_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let founder = KeyRing::found(home.path(), "").unwrap();
    let text = founder.export().to_string();
    assert!(text.starts_with("gk1"));
    drop(home);
    let recovered = KeyRing::recover(new_home.path(), &text.parse().unwrap(), "").unwrap();
    assert_eq!(recovered.network(), founder.network());
    assert_eq!(recovered.vault().unwrap().as_bytes(), founder.vault().unwrap().as_bytes());
    assert_eq!(recovered.network_keys()[0].as_bytes(), founder.network_keys()[0].as_bytes());
    assert_ne!(recovered.node().node_id(), founder.node().node_id());
}

#[test]
fn exported_keys_without_the_authority_say_where_to_export_them() {
    let (home, other, third) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let founder = KeyRing::found(home.path(), "").unwrap();
    let joined = KeyRing::join(other.path(), &founder.mint_ticket(&member(), vec![]).unwrap(), "").unwrap();
    let exported: ExportedKeys = joined.export().to_string().parse().unwrap();
    assert!(exported.vault.is_none() && exported.authority.is_none());
    let error = KeyRing::recover(third.path(), &exported, "").unwrap_err();
    assert!(error.to_string().contains("founded"), "{error}");
}

#[test]
fn exported_keys_damaged_by_one_character_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let text = KeyRing::found(directory.path(), "").unwrap().export().to_string();
    for at in 0..text.len() {
        for replacement in ["a", "7", ""] {
            let mut damaged = text.clone();
            damaged.replace_range(at..=at, replacement);
            assert!(damaged == text || damaged.parse::<ExportedKeys>().is_err(), "{replacement:?} at {at}");
        }
    }
}

#[test]
fn a_key_ring_prints_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let keys = KeyRing::found(directory.path(), "").unwrap();
    let printed = format!("{keys:?} {:?}", keys.export());
    for secret in [keys.vault().unwrap().as_bytes(), keys.network_keys()[0].as_bytes()] {
        let decimal = format!("{:?}", &secret[..4]);
        assert!(!printed.contains(decimal.trim_matches(['[', ']'])), "{printed}");
        assert!(!printed.contains(&data_encoding::HEXLOWER.encode(&secret[..4])), "{printed}");
    }
}
