//! Names that were asked for or written lately, in memory: who asks for one of them again need not wait for the catalog's
//! thread, nor that for the database.
//!
//! An answer from here is as good as one of the thread. The thread alone changes what is kept, in the order in which it
//! applies records and answers questions. What it has not applied yet is counted when it is queued, before anybody is
//! told that it is durable:
//!
//! ```text
//! record is queued --> counted --> acknowledged ... --> applied: kept --> counted off
//!                         |                                                  |
//!                         +------- nothing is answered from here ------------+
//! ```
//! The counts are of groups of names, so that writes keep few readers waiting. What does not fit is forgotten, the least
//! useful first; that a name has no record is worth keeping too.

use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Event;
use crate::format::name::{NameRecord, SEAL_NONCE_BYTES};
use crate::format::{BucketId, NameId, Stamp, VaultId, VersionId};
use crate::limits::CATALOG_NAMES_CACHED_BYTES_MAX;

/// Half of it a hash of a bucket's id and a name's id under a key of this process, so that nobody can make two names that
/// share one; half of it from the name's id, itself a hash, so that no two do by chance.
type Key = u128;

/// Of a key that is a hash already: its keyed half.
#[derive(Default)]
struct Keyed(u64);

impl Hasher for Keyed {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = (key >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A record without its ids, as one piece of memory: half of what the structure takes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    vault: VaultId,
    clock: Stamp,
    version: VersionId,
    nonce: [u8; SEAL_NONCE_BYTES],
    key_generation: [u8; 4],
    tombstone: u8,
}

fn pack(record: &NameRecord) -> Arc<[u8]> {
    let head = Head {
        vault: record.vault,
        clock: record.clock,
        version: record.version,
        nonce: record.nonce,
        key_generation: record.key_generation.to_ne_bytes(),
        tombstone: u8::from(record.tombstone),
    };
    [head.as_bytes(), &record.sealed].concat().into()
}

fn unpack(bucket: &BucketId, name: &NameId, packed: &[u8]) -> Option<NameRecord> {
    let (head, sealed) = Head::ref_from_prefix(packed).ok()?;
    Some(NameRecord {
        tombstone: head.tombstone != 0,
        vault: head.vault,
        key_generation: u32::from_ne_bytes(head.key_generation),
        bucket: *bucket,
        name: *name,
        clock: head.clock,
        version: head.version,
        nonce: head.nonce,
        sealed: sealed.to_vec(),
    })
}

const GROUPS: usize = 256;
/// Of an entry beside its record: its place in the table and in the lists, and two allocations' heads.
const ENTRY_BYTES: usize = 112;
/// To size the table with.
const ENTRY_BYTES_USUAL: usize = ENTRY_BYTES + size_of::<Head>() + 140;

#[derive(Clone)]
struct Weigh;

impl Weighter<Key, Option<Arc<[u8]>>> for Weigh {
    fn weight(&self, _: &Key, packed: &Option<Arc<[u8]>>) -> u64 {
        (ENTRY_BYTES + packed.as_ref().map_or(0, |packed| packed.len())) as u64
    }
}

pub(super) struct Recent {
    known: Cache<Key, Option<Arc<[u8]>>, Weigh, BuildHasherDefault<Keyed>>,
    hasher: RandomState,
    /// Records that are queued and not applied, by [`group_of`].
    unapplied: Vec<AtomicUsize>,
    /// The catalog has failed, or has been closed.
    closed: AtomicBool,
}

impl Default for Recent {
    fn default() -> Self {
        let bytes = CATALOG_NAMES_CACHED_BYTES_MAX;
        Self {
            known: Cache::with(
                bytes / ENTRY_BYTES_USUAL,
                bytes as u64,
                Weigh,
                BuildHasherDefault::default(),
                DefaultLifecycle::default(),
            ),
            hasher: RandomState::new(),
            unapplied: (0..GROUPS).map(|_| AtomicUsize::new(0)).collect(),
            closed: AtomicBool::new(false),
        }
    }
}

/// Ids are hashes: any byte spreads them.
fn group_of(name: &NameId) -> Group {
    Group(usize::from(name.0[0]))
}

/// Where the records of a group are counted.
#[derive(Clone, Copy)]
pub(super) struct Group(usize);

impl Recent {
    /// Of what may be no record at all.
    pub fn group_of_record(encoded: &[u8]) -> Option<Group> {
        NameRecord::name_of(encoded).as_ref().map(group_of)
    }

    fn unapplied(&self, group: Group) -> &AtomicUsize {
        let Some(count) = self.unapplied.get(group.0) else { unreachable!("a byte is below {GROUPS}") };
        count
    }

    /// These are about to be queued.
    pub fn queued(&self, events: &[Event]) {
        for event in events {
            if let Event::Name(encoded) = event
                && let Some(group) = Self::group_of_record(encoded)
            {
                self.unapplied(group).fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// This record was applied, and [`Self::keep`] has been told.
    pub fn applied(&self, group: Group) {
        self.unapplied(group).fetch_sub(1, Ordering::AcqRel);
    }

    /// Answers nothing any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn key_of(&self, bucket: &BucketId, name: &NameId) -> Key {
        let unguessable = self.hasher.hash_one((bucket, name));
        let distinct = name.0.last_chunk().copied().map_or(0, u64::from_le_bytes);
        u128::from(unguessable) << 64 | u128::from(distinct)
    }

    /// What is known of a name (that it has no record, too), if that is known here and nothing newer is on its way.
    pub fn get(&self, bucket: &BucketId, name: &NameId) -> Option<Option<NameRecord>> {
        if self.unapplied(group_of(name)).load(Ordering::Acquire) > 0 || self.closed.load(Ordering::Acquire) {
            return None;
        }
        self.kept(bucket, name)
    }

    /// The same for the thread, which knows what is on its way.
    pub fn kept(&self, bucket: &BucketId, name: &NameId) -> Option<Option<NameRecord>> {
        let packed = self.known.get(&self.key_of(bucket, name))?;
        Some(packed.and_then(|packed| unpack(bucket, name, &packed)))
    }

    /// For the thread alone.
    pub fn keep(&self, bucket: &BucketId, name: &NameId, known: Option<&NameRecord>) {
        self.known.insert(self.key_of(bucket, name), known.map(pack));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: u8) -> NameRecord {
        NameRecord {
            tombstone: false,
            vault: VaultId::ZERO,
            key_generation: 1,
            bucket: BucketId([1; 32]),
            name: NameId([name; 32]),
            clock: Stamp::new(1, 0),
            version: VersionId::ZERO,
            nonce: [0; 24],
            sealed: vec![0; 16],
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let recent = Recent::default();
        let mut kept = record(7);
        (kept.tombstone, kept.nonce, kept.clock) = (true, [5; 24], Stamp::new(77, 3));
        recent.keep(&kept.bucket, &kept.name, Some(&kept));
        assert_eq!(recent.get(&kept.bucket, &kept.name), Some(Some(kept.clone())));
        recent.keep(&kept.bucket, &kept.name, None);
        assert_eq!(recent.get(&kept.bucket, &kept.name), Some(None));
        assert_eq!(recent.get(&kept.bucket, &NameId([8; 32])), None);
    }

    #[test]
    fn nothing_is_answered_while_a_newer_record_is_on_its_way() {
        let recent = Recent::default();
        let (held, other) = (record(1), record(2));
        for record in [&held, &other] {
            recent.keep(&record.bucket, &record.name, Some(record));
        }
        let is_known = |record: &NameRecord| recent.get(&record.bucket, &record.name).is_some();
        let event = Event::Name(held.encode());
        recent.queued(std::slice::from_ref(&event));
        assert!(!is_known(&held));
        assert!(is_known(&other));
        let group = Recent::group_of_record(&held.encode()).expect("a record");
        recent.applied(group);
        assert!(is_known(&held));
        recent.close();
        assert!(!is_known(&held) && !is_known(&other));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let recent = Recent::default();
        for number in 0..400_000_u32 {
            let mut record = record(0);
            record.name.0[..4].copy_from_slice(&number.to_le_bytes());
            recent.keep(&record.bucket, &record.name, Some(&record));
        }
        assert!(recent.known.weight() <= CATALOG_NAMES_CACHED_BYTES_MAX as u64);
        assert!(recent.known.len() > 100_000, "{} names", recent.known.len());
    }
}
