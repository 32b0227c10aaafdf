//! Which records of the log are still needed: what compaction carries along.
//!
//! | record | is needed | dropped, since |
//! | --- | --- | --- |
//! | reference | while its version is not dead | the death is in the log, and hides it in every replay |
//! | name | while no later record of the name is known, be it a tombstone | the later one is in the log |
//! | death | while it is the one remembered for any of its versions | another death of each version is in the log |
//! | document | while no later one of its key is known, be it a deletion | the later one is in the log |
//!
//! Kept for good, since nobody can tell that nothing older will ever come: the latest tombstone of a name (an owner that was
//! away may still hold, and send, the record before), one death of each version (a reference to it may come late, and is
//! refused by it alone), and the deletion of a document (an older one may stand in another segment, moved there by
//! compaction). What is known here is durable: the catalog is told after the log.

use zerocopy::IntoBytes;

use super::CatalogError;
use super::rows::{DEAD, DOCUMENT, NAME, key, number};
use super::thread::Engine;
use crate::cluster::deaths::DeathId;
use crate::format::name::NameRecord;
use crate::format::{BucketId, NameId, Stamp, VersionId};

/// A record of the log, as far as it matters here.
#[derive(Clone, Debug)]
pub enum Stored {
    Reference(VersionId),
    Name(BucketId, NameId, (Stamp, VersionId)),
    Death(DeathId, Vec<VersionId>),
    Document(Vec<u8>, u64),
    /// Not understood: it stays.
    Unknown,
}

impl Engine {
    pub(super) fn needed(&mut self, records: &[Stored]) -> Result<Vec<bool>, CatalogError> {
        self.read(|_, rows| {
            let dead = |version: &VersionId| rows.get(&key(DEAD, &[version.as_bytes()]));
            let is_needed = |record: &Stored| -> Result<bool, fjall::Error> {
                Ok(match record {
                    Stored::Reference(version) => dead(version)?.is_none(),
                    Stored::Name(bucket, name, order) => {
                        let known = rows.get(&key(NAME, &[&bucket.0, &name.0]))?;
                        let known = known.and_then(|known| NameRecord::decode(&known).ok());
                        known.is_none_or(|known| known.order() <= *order)
                    }
                    Stored::Death(id, versions) => {
                        let mut is_remembered = false;
                        for version in versions {
                            is_remembered |= dead(version)?.is_none_or(|known| known.as_slice() == id.0.as_slice());
                        }
                        is_remembered
                    }
                    Stored::Document(name, serial) => {
                        let known = rows.get(&key(DOCUMENT, &[name]))?;
                        known.map(|known| number(&known, 0)).transpose()?.is_none_or(|known| known <= *serial)
                    }
                    Stored::Unknown => true,
                })
            };
            records.iter().map(is_needed).collect()
        })
    }
}
