//! The database: opening it or building it anew, reading rows, drafts of changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fjall::config::PartitioningPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{CatalogCounts, CatalogError};
use crate::limits::{CATALOG_CACHE_BYTES_MAX, CATALOG_TABLE_BYTES_MAX};

const CATALOG_VERSION: u16 = 1;

pub(super) const META: u8 = b'm';
pub(super) const TOTALS: u8 = b't';
pub(super) const POSITION: u8 = b'p';
pub(super) const REFERENCE: u8 = b'r';
pub(super) const CHUNK: u8 = b'c';
pub(super) const VERSION: u8 = b'v';
pub(super) const DEAD: u8 = b'd';
pub(super) const DEATH: u8 = b'D';
pub(super) const SWEEP: u8 = b's';
pub(super) const GARBAGE: u8 = b'o';
pub(super) const NAME: u8 = b'n';
pub(super) const DOCUMENT: u8 = b'k';

/// Made before the database is opened and when it failed, removed when it is open and sound.
const DOUBT_FILE: &str = "doubt";
const DATABASE_DIRECTORY: &str = "database";

/// A row's key: its kind and its parts.
pub(super) fn key(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(kind);
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

/// The fixed-size part of a key at `at`.
pub(super) fn part<const N: usize>(key: &[u8], at: usize) -> Result<[u8; N], fjall::Error> {
    key.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().ok_or_else(damaged)
}

pub(super) fn number(value: &[u8], at: usize) -> Result<u64, fjall::Error> {
    part::<8>(value, at).map(u64::from_le_bytes)
}

/// A row that is not what this version of the program writes.
pub(super) fn damaged() -> fjall::Error {
    fjall::Error::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, "a row of the catalog is damaged"))
}

pub(super) type Row = (Vec<u8>, Vec<u8>);

pub(super) struct Rows {
    directory: PathBuf,
    database: Database,
    keyspace: Keyspace,
}

impl Rows {
    /// Opens the database, or makes a new one if it is missing or in doubt.
    pub fn open(directory: &Path) -> Result<Self, CatalogError> {
        let create = |reason: std::io::Error| CatalogError::Create {
            directory: directory.display().to_string(),
            reason: reason.to_string(),
        };
        fs::create_dir_all(directory).map_err(create)?;
        let doubt = directory.join(DOUBT_FILE);
        if doubt.try_exists().map_err(create)? {
            tracing::warn!(directory = %directory.display(), "the catalog is in doubt and will be rebuilt from the log");
            remove_database(directory).map_err(create)?;
        }
        fs::write(&doubt, b"").map_err(create)?;
        let rows = match Self::open_database(directory) {
            Ok(rows) => rows,
            Err(fjall::Error::Locked) => {
                // It is another node's, and sound for all we know.
                fs::remove_file(&doubt).map_err(create)?;
                return Err(CatalogError::Locked { directory: directory.display().to_string() });
            }
            Err(error) => {
                tracing::warn!(directory = %directory.display(), %error, "the catalog does not open and will be rebuilt");
                remove_database(directory).map_err(create)?;
                Self::open_database(directory).map_err(|error| CatalogError::Create {
                    directory: directory.display().to_string(),
                    reason: error.to_string(),
                })?
            }
        };
        fs::remove_file(&doubt).map_err(create)?;
        Ok(rows)
    }

    fn open_database(directory: &Path) -> Result<Self, fjall::Error> {
        let database = Database::builder(directory.join(DATABASE_DIRECTORY))
            .cache_size(CATALOG_CACHE_BYTES_MAX as u64)
            .max_cached_files(Some(64))
            .max_journaling_size(64 << 20)
            // One writes tables first of all, so that a long compaction does not keep the next from being written. It
            // passes compactions on, and as long as nobody takes them it does so in a loop: with only one other it
            // burned a core during every compaction (13 % of all CPU time of a put of 100,000 files).
            .worker_threads(3)
            .open()?;
        // Filters and indexes in small blocks: whole ones grow to megabytes each, and once they are larger than the cache
        // together, every look-up reads one anew (measured on two busy cores: 700 us a reference
        // from 800,000 references on, against 45 us at 1.2 million like this, the whole process within 62 MB).
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(CATALOG_TABLE_BYTES_MAX as u64)
                .filter_block_partitioning_policy(PartitioningPolicy::all(true))
                .index_block_partitioning_policy(PartitioningPolicy::all(true))
        };
        let keyspace = database.keyspace("catalog", options)?;
        let rows = Self { directory: directory.to_owned(), database, keyspace };
        match rows.get(&[META])?.as_deref() {
            None if rows.keyspace.is_empty()? => rows.keyspace.insert([META], CATALOG_VERSION.to_le_bytes())?,
            Some(version) if version == CATALOG_VERSION.to_le_bytes() => {}
            _ => return Err(damaged()),
        }
        Ok(rows)
    }

    /// Closes this one, deletes it and makes a new one.
    pub fn rebuilt(self) -> Result<Self, CatalogError> {
        let Self { directory, database, keyspace } = self;
        drop(keyspace);
        drop(database);
        let doubt = directory.join(DOUBT_FILE);
        fs::write(&doubt, b"").map_err(|error| CatalogError::Create {
            directory: directory.display().to_string(),
            reason: error.to_string(),
        })?;
        Self::open(&directory)
    }

    /// The next start builds it anew. An error here changes nothing: the one that led here is reported already.
    pub fn doubt(&self) {
        if let Err(error) = fs::write(self.directory.join(DOUBT_FILE), b"") {
            tracing::error!(%error, "the failed catalog cannot be marked for rebuilding: delete its directory before the next start");
        }
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, fjall::Error> {
        Ok(self.keyspace.get(key)?.map(|value| value.to_vec()))
    }

    pub fn contains(&self, key: &[u8]) -> Result<bool, fjall::Error> {
        self.keyspace.contains_key(key)
    }

    pub fn prefix(&self, prefix: &[u8]) -> impl Iterator<Item = Result<Row, fjall::Error>> + use<> {
        self.keyspace.prefix(prefix).map(row)
    }

    /// Rows of one prefix behind a key.
    pub fn after(&self, prefix: &[u8], after: &[u8]) -> impl Iterator<Item = Result<Row, fjall::Error>> + use<> {
        let prefix = prefix.to_vec();
        let start = (std::ops::Bound::Excluded(after.to_vec()), std::ops::Bound::Unbounded);
        self.keyspace
            .range(start)
            .map(row)
            .take_while(move |row| row.as_ref().map_or(true, |(key, _)| key.starts_with(&prefix)))
    }

    /// All or nothing, not synced.
    pub fn commit(&self, draft: Draft) -> Result<(), fjall::Error> {
        let mut batch = self.database.batch();
        for (key, value) in draft.rows {
            match value {
                Some(value) => batch.insert(&self.keyspace, key, value),
                None => batch.remove(&self.keyspace, key),
            }
        }
        batch.commit()
    }

    pub fn persist(&self) -> Result<(), fjall::Error> {
        self.database.persist(PersistMode::SyncAll)
    }

    pub fn totals(&self) -> Result<CatalogCounts, fjall::Error> {
        let Some(totals) = self.get(&[TOTALS])? else { return Ok(CatalogCounts::default()) };
        Ok(CatalogCounts {
            names: number(&totals, 0)?,
            versions: number(&totals, 8)?,
            references: number(&totals, 16)?,
            deaths: number(&totals, 24)?,
        })
    }
}

fn row(guard: fjall::Guard) -> Result<Row, fjall::Error> {
    let (key, value) = guard.into_inner()?;
    Ok((key.to_vec(), value.to_vec()))
}

fn remove_database(directory: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(directory.join(DATABASE_DIRECTORY)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Changes that are not committed yet; what reads a single row sees them.
#[derive(Default)]
pub(super) struct Draft {
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Draft {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn get(&self, rows: &Rows, key: &[u8]) -> Result<Option<Vec<u8>>, fjall::Error> {
        match self.rows.get(key) {
            Some(value) => Ok(value.clone()),
            None => rows.get(key),
        }
    }

    pub fn contains(&self, rows: &Rows, key: &[u8]) -> Result<bool, fjall::Error> {
        match self.rows.get(key) {
            Some(value) => Ok(value.is_some()),
            None => rows.contains(key),
        }
    }

    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.rows.insert(key, Some(value));
    }

    pub fn remove(&mut self, key: Vec<u8>) {
        self.rows.insert(key, None);
    }

    pub fn put_totals(&mut self, totals: &CatalogCounts) {
        let numbers = [totals.names, totals.versions, totals.references, totals.deaths];
        self.put(vec![TOTALS], numbers.iter().flat_map(|number| number.to_le_bytes()).collect());
    }
}
