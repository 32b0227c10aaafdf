//! Changes that are not in the database yet, and reading through them.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::CatalogCounts;
use super::rows::{Bytes, Row, Rows, TOTALS, key};

/// Key -> the new value, or that the row goes.
pub(super) type Changes = BTreeMap<Bytes, Option<Bytes>>;

/// Changes that are not committed yet; what reads a single row sees them.
#[derive(Default)]
pub(super) struct Draft {
    changes: Changes,
}

impl Draft {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub fn get(&self, rows: &Rows, key: &[u8]) -> Result<Option<Vec<u8>>, fjall::Error> {
        match self.changes.get(key) {
            Some(value) => Ok(value.as_deref().map(<[u8]>::to_vec)),
            None => rows.get(key),
        }
    }

    pub fn contains(&self, rows: &Rows, key: &[u8]) -> Result<bool, fjall::Error> {
        match self.changes.get(key) {
            Some(value) => Ok(value.is_some()),
            None => rows.contains(key),
        }
    }

    pub fn put(&mut self, key: Bytes, value: &[u8]) {
        self.changes.insert(key, Some(value.into()));
    }

    pub fn remove(&mut self, key: Bytes) {
        self.changes.insert(key, None);
    }

    pub fn put_totals(&mut self, totals: &CatalogCounts) {
        let numbers = [totals.names, totals.versions, totals.references, totals.deaths];
        self.put(key(TOTALS, &[]), numbers.map(u64::to_le_bytes).as_flattened());
    }

    pub fn into_changes(self) -> Changes {
        self.changes
    }
}

/// The rows of the database as `changes` leave them. Both ascend by key.
pub(super) fn merged<'a>(
    database: Result<impl Iterator<Item = Result<Row, fjall::Error>>, fjall::Error>,
    changes: impl Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>,
) -> impl Iterator<Item = Result<Row, fjall::Error>> {
    let (database, mut failed) = match database {
        Ok(database) => (Some(database), None),
        Err(error) => (None, Some(error)),
    };
    let (mut database, mut changes) = (database.into_iter().flatten().peekable(), changes.peekable());
    std::iter::from_fn(move || {
        if let Some(error) = failed.take() {
            return Some(Err(error));
        }
        loop {
            let order = match (database.peek(), changes.peek()) {
                (Some(Ok((key, _))), Some((changed, _))) => key.as_slice().cmp(changed),
                (Some(_), _) => Ordering::Less,
                (None, _) => Ordering::Greater,
            };
            if order == Ordering::Less {
                return database.next();
            }
            if order == Ordering::Equal {
                database.next();
            }
            let (key, value) = changes.next()?;
            if let Some(value) = value {
                return Some(Ok((key.to_vec(), value.to_vec())));
            }
        }
    })
}
