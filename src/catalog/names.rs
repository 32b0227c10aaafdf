//! Name records: of one name the later (clock, version) stays.
//!
//! Tombstones are records like others and stay: only when all owners hold one may it go, and nothing decides that yet.

use super::CatalogError;
use super::rows::{self, NAME, key};
use super::thread::Engine;
use crate::format::name::NameRecord;
use crate::format::{BucketId, NameId};

fn decode(record: &[u8]) -> Result<NameRecord, fjall::Error> {
    NameRecord::decode(record).map_err(|_| rows::damaged())
}

impl Engine {
    /// A record that does not decode never got an acknowledgement, since it is decoded before it is written; were there one
    /// in the log it would be ignored here, loudly, like any record of a kind that nobody knows.
    pub(super) fn apply_name(&mut self, encoded: Vec<u8>) -> Result<(), fjall::Error> {
        let record = match NameRecord::decode(&encoded) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(%error, "a name record in the log cannot be read and is ignored");
                return Ok(());
            }
        };
        let row = key(NAME, &[&record.bucket.0, &record.name.0]);
        let known = match self.recent.kept(&record.bucket, &record.name) {
            Some(known) => known,
            None => self.draft.get(&self.rows, &row)?.map(|known| decode(&known)).transpose()?,
        };
        let wins = match &known {
            None => true,
            Some(known) if known.order() != record.order() => known.order() < record.order(),
            // Two different records of one clock and version: the greater bytes, so that their order does not matter.
            Some(known) => known.encode() < encoded,
        };
        if wins {
            let lived = known.is_some_and(|known| !known.tombstone);
            self.totals.names = self.totals.names + u64::from(!record.tombstone) - u64::from(lived);
            self.draft.put(row, &encoded);
            self.recent.keep(&record.bucket, &record.name, Some(&record));
        }
        Ok(())
    }

    pub(super) fn name(&mut self, bucket: &BucketId, name: &NameId) -> Result<Option<NameRecord>, CatalogError> {
        if self.is_behind() {
            return Err(CatalogError::Full); // it may be among what is not applied
        }
        self.read(|engine, rows| {
            if let Some(known) = engine.recent.kept(bucket, name) {
                return Ok(known);
            }
            let known = engine.draft.get(rows, &key(NAME, &[&bucket.0, &name.0]))?;
            let known = known.map(|record| decode(&record)).transpose()?;
            engine.recent.keep(bucket, name, known.as_ref());
            Ok(known)
        })
    }

    pub(super) fn names(
        &mut self,
        bucket: Option<&BucketId>,
        after: Option<(BucketId, NameId)>,
        limit: usize,
    ) -> Result<Vec<NameRecord>, CatalogError> {
        let prefix = bucket.map_or_else(|| key(NAME, &[]), |bucket| key(NAME, &[&bucket.0]));
        let start = after.map_or_else(|| prefix.clone(), |(bucket, name)| key(NAME, &[&bucket.0, &name.0]));
        // A place in an earlier bucket is before all of this one's names.
        let start = start.max(prefix.clone());
        self.read(|_, rows| rows.after(&prefix, &start).take(limit).map(|row| decode(&row?.1)).collect())
    }
}
