//! What version 1 sealed, frozen: these bytes were made once, with random nonces and keys that stand here, and must open
//! for ever. Written with `GABION_WRITE_FIXTURES=1` only where they do not exist yet.

use std::path::PathBuf;
use std::str::FromStr;

use gabion::crypto::cipher::{ScopeKey, open_chunk, seal_chunk};
use gabion::crypto::hash::address_of;
use gabion::crypto::keyfile::{ExportedKeys, KeyRing};
use gabion::crypto::keys::{NameStamp, VaultKey};
use gabion::format::name::NameRecord;

use crate::samples;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/crypto-v1")
}

/// The frozen bytes called `name`; `make` is run once in the life of the version.
fn frozen(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = directory().join(name);
    if std::env::var_os("GABION_WRITE_FIXTURES").is_some() && !path.exists() {
        std::fs::write(&path, make()).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn vault() -> VaultKey {
    VaultKey::from_bytes(samples::run(0x33))
}

#[test]
fn a_name_sealed_by_version_1_opens() {
    let stamp = NameStamp { clock: samples::stamp(), version: samples::version(), tombstone: false };
    let bytes = frozen("name-record", || vault().seal_name(&samples::network(), stamp, &samples::name_body()).encode());
    let record = NameRecord::decode(&bytes).unwrap();
    assert_eq!(vault().open_name(&samples::network(), &record).unwrap(), samples::name_body());
    assert_eq!(record.bucket, vault().bucket_id("films"));
    assert_eq!((record.clock, record.version), (samples::stamp(), samples::version()));
}

#[test]
fn a_capsule_sealed_by_version_1_opens() {
    let (network, version, root) = (samples::network(), samples::version(), samples::content_id().0);
    let bytes = frozen("capsule", || vault().seal_capsule(&network, &version, &root, &samples::capsule()));
    assert_eq!(vault().open_capsule(&network, &version, &root, &bytes).unwrap(), samples::capsule());
}

#[test]
fn a_chunk_of_version_1_has_the_same_key_and_address_at_each_level() {
    let scope = ScopeKey::from_bytes(&samples::run(0x44));
    for level in 0..5 {
        let seal = || {
            let mut chunk = [0; 32];
            chunk[..5].copy_from_slice(b"hello");
            let (address, key) = seal_chunk(&scope, level, &mut chunk, 5);
            [&chunk[..], &address.0, key.as_bytes()].concat()
        };
        let bytes = frozen(&format!("chunk-level-{level}"), seal);
        assert_eq!(bytes, seal());
        let mut chunk = bytes[..32].to_vec();
        let key = gabion::crypto::cipher::ChunkKey::from_bytes(bytes[64..].try_into().unwrap());
        let address = address_of(&chunk);
        assert_eq!(address.0, bytes[32..64]);
        open_chunk(&mut chunk, &address, &key).unwrap();
        assert_eq!(&chunk[..6], b"hello\0");
    }
}

#[test]
fn keys_exported_by_version_1_are_read() {
    let bytes = frozen("exported-keys.txt", || {
        let directory = tempfile::tempdir().unwrap();
        KeyRing::found(directory.path(), "").unwrap().export().to_string().into_bytes()
    });
    let text = String::from_utf8(bytes).unwrap();
    let exported = ExportedKeys::from_str(&text).unwrap();
    assert_eq!(exported.authority.as_ref().unwrap().network_id(), exported.network);
    assert!(exported.vault.is_some());
    assert_eq!(exported.to_string(), text);
}

#[test]
fn the_keys_directory_of_version_1_is_loaded() {
    let names = ["node.seed", "authority.seed", "network.keys", "vault.key", "certificate"];
    let made = tempfile::tempdir().unwrap();
    KeyRing::found(made.path(), "attic").unwrap();
    // Copied, since a checkout does not keep the mode 0600.
    let data = tempfile::tempdir().unwrap();
    let keys = data.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    for name in names {
        let bytes = frozen(&format!("keys.{name}"), || std::fs::read(made.path().join("keys").join(name)).unwrap());
        let path = keys.join(name);
        std::fs::write(&path, bytes).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).unwrap();
    }
    let loaded = KeyRing::load(data.path()).unwrap().unwrap();
    assert_eq!(loaded.certificate().zone, "attic");
    assert!(loaded.vault().is_some() && loaded.authority().is_some());
}
