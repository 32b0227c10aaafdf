//! The database: opening it or building it anew, reading rows, committing drafts.
//!
//! # A full disk
//!
//! What is committed stands in the log already, so a disk without space is no reason to stop. While little is free nothing
//! is written: commits wait in memory, reads see them, and they are written once there is space again. The database
//! itself takes no more writes after one that failed, nor once one of its own threads has failed: then it is closed and
//! opened again as soon as there is space, without a restart of the node. Whether it came back with all that had been
//! committed is told by the number of the last commit, which stands in it. Anything else is doubt.

use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use fjall::config::{CompressionPolicy, PartitioningPolicy};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::draft::{Changes, Draft, merged};
use super::{CatalogCounts, CatalogError};
use crate::limits::{
    CATALOG_CACHE_BYTES_MAX, CATALOG_FILES_OPEN_MAX, CATALOG_FREE_BYTES_MIN, CATALOG_JOURNAL_BYTES_MAX,
    CATALOG_RETRY_INTERVAL, CATALOG_TABLE_BYTES_MAX, CATALOG_TABLES_LOOK_INTERVAL, CATALOG_TABLES_PATIENCE,
    CATALOG_TABLES_WAITING_MAX, CATALOG_WAITING_ROWS_MAX,
};

const CATALOG_VERSION: u16 = 2;

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
pub(super) const COMMITS: u8 = b'q';

/// Made before the database is opened and when it failed, removed when it is open and sound.
const DOUBT_FILE: &str = "doubt";
const DATABASE_DIRECTORY: &str = "database";

/// Bytes of a row, as the database takes them: made once, and shared from then on.
pub(super) type Bytes = fjall::Slice;

/// All keys but those of documents.
const KEY_BYTES_USUAL: usize = 1 + 32 + 32;

/// A row's key: its kind and its parts.
pub(super) fn key(kind: u8, parts: &[&[u8]]) -> Bytes {
    let len = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    let (mut usual, mut long) = ([0; KEY_BYTES_USUAL], Vec::new());
    let room = match usual.get_mut(..len) {
        Some(room) => room,
        None => {
            long.resize(len, 0);
            long.as_mut_slice()
        }
    };
    let bytes = std::iter::once(std::slice::from_ref(&kind)).chain(parts.iter().copied());
    let mut rest = &mut *room;
    for part in bytes {
        let (place, behind) = rest.split_at_mut(part.len());
        place.copy_from_slice(part);
        rest = behind;
    }
    Bytes::from(&*room)
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

/// Tells how much space the file system has; tests bring their own.
pub(super) type FreeBytes = Arc<dyn Fn() -> io::Result<u64> + Send + Sync>;

struct Opened {
    database: Database,
    keyspace: Keyspace,
}

pub(super) struct Rows {
    directory: PathBuf,
    free_bytes: FreeBytes,
    /// `None` only while it cannot be opened again for lack of space.
    opened: Option<Opened>,
    /// Number of the last commit in the database.
    commits: u64,
    /// Committed, and not written yet: see the module's docs.
    waiting: Changes,
    /// A write has failed: it has to be opened again before the next.
    is_broken: bool,
    tried: Option<Instant>,
    #[cfg(test)]
    pub(super) fail_next_write: bool,
    #[cfg(test)]
    pub(super) fail_opens: bool,
}

/// Whether an error comes from lack of space, or may: the database does not say what one of its threads failed of.
pub(super) fn is_of_space(error: &fjall::Error) -> bool {
    let io = match error {
        fjall::Error::Poisoned => return true,
        fjall::Error::Io(io) | fjall::Error::Storage(fjall::LsmError::Io(io)) => io,
        _ => return false,
    };
    matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn not_open() -> fjall::Error {
    fjall::Error::Io(io::ErrorKind::StorageFull.into())
}

impl Rows {
    /// Opens the database, or makes a new one if it is missing or in doubt.
    pub fn open(directory: &Path, free_bytes: FreeBytes) -> Result<Self, CatalogError> {
        let create = |reason: io::Error| CatalogError::Create {
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
        let opened = match Self::open_database(directory) {
            Ok(opened) => opened,
            Err(fjall::Error::Locked) => {
                // It is another node's, and sound for all we know.
                fs::remove_file(&doubt).map_err(create)?;
                return Err(CatalogError::Locked { directory: directory.display().to_string() });
            }
            Err(error) if is_of_space(&error) => {
                // Nor is it damaged for want of space.
                fs::remove_file(&doubt).map_err(create)?;
                return Err(CatalogError::Create {
                    directory: directory.display().to_string(),
                    reason: error.to_string(),
                });
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
        // One that does not read is found out by whoever reads the rest.
        let commits = opened.commits().unwrap_or(0);
        Ok(Self {
            directory: directory.to_owned(),
            free_bytes,
            opened: Some(opened),
            commits,
            waiting: Changes::new(),
            is_broken: false,
            tried: None,
            #[cfg(test)]
            fail_next_write: false,
            #[cfg(test)]
            fail_opens: false,
        })
    }

    fn open_database(directory: &Path) -> Result<Opened, fjall::Error> {
        let database = Database::builder(directory.join(DATABASE_DIRECTORY))
            .cache_size(CATALOG_CACHE_BYTES_MAX as u64)
            .max_cached_files(Some(CATALOG_FILES_OPEN_MAX))
            .max_journaling_size(CATALOG_JOURNAL_BYTES_MAX)
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
                // Rows are hashes and ciphertext.
                .data_block_compression_policy(CompressionPolicy::disabled())
        };
        let keyspace = database.keyspace("catalog", options)?;
        match keyspace.get([META])?.as_deref() {
            None if keyspace.is_empty()? => keyspace.insert([META], CATALOG_VERSION.to_le_bytes())?,
            Some(version) if version == CATALOG_VERSION.to_le_bytes() => {}
            _ => return Err(damaged()),
        }
        Ok(Opened { database, keyspace })
    }

    /// Closes this one, deletes it and makes a new one.
    pub fn rebuilt(self) -> Result<Self, CatalogError> {
        let Self { directory, free_bytes, opened, .. } = self;
        drop(opened);
        let doubt = directory.join(DOUBT_FILE);
        fs::write(&doubt, b"").map_err(|error| CatalogError::Create {
            directory: directory.display().to_string(),
            reason: error.to_string(),
        })?;
        Self::open(&directory, free_bytes)
    }

    /// The next start builds it anew. An error here changes nothing: the one that led here is reported already.
    pub fn doubt(&self) {
        if let Err(error) = fs::write(self.directory.join(DOUBT_FILE), b"") {
            tracing::error!(%error, "the failed catalog cannot be marked for rebuilding: delete its directory before the next start");
        }
    }

    /// Not while it cannot be opened again for lack of space.
    pub fn is_open(&self) -> bool {
        self.opened.is_some()
    }

    fn opened(&self) -> Result<&Opened, fjall::Error> {
        self.opened.as_ref().ok_or_else(not_open)
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, fjall::Error> {
        match self.waiting.get(key) {
            Some(value) => Ok(value.as_deref().map(<[u8]>::to_vec)),
            None => Ok(self.opened()?.keyspace.get(key)?.map(|value| value.to_vec())),
        }
    }

    pub fn contains(&self, key: &[u8]) -> Result<bool, fjall::Error> {
        match self.waiting.get(key) {
            Some(value) => Ok(value.is_some()),
            None => self.opened()?.keyspace.contains_key(key),
        }
    }

    pub fn prefix(&self, prefix: &[u8]) -> impl Iterator<Item = Result<Row, fjall::Error>> + use<'_> {
        let prefix = prefix.to_vec();
        let database = self.opened().map(|opened| opened.keyspace.prefix(prefix.clone()).map(row));
        let from = (Bound::Included(prefix.as_slice()), Bound::Unbounded);
        let waiting = self.waiting.range::<[u8], _>(from).take_while(move |(key, _)| key.starts_with(&prefix));
        merged(database, waiting)
    }

    /// Rows of one prefix behind a key.
    pub fn after(&self, prefix: &[u8], after: &[u8]) -> impl Iterator<Item = Result<Row, fjall::Error>> + use<'_> {
        let prefix = prefix.to_vec();
        let start = (Bound::Excluded(after), Bound::Unbounded);
        let database = self.opened().map(|opened| opened.keyspace.range::<&[u8], _>(start).map(row));
        merged(database, self.waiting.range::<[u8], _>(start))
            .take_while(move |row| row.as_ref().map_or(true, |(key, _)| key.starts_with(&prefix)))
    }

    /// All or nothing, not synced.
    pub fn commit(&mut self, draft: Draft) -> Result<(), fjall::Error> {
        let mut changes = draft.into_changes();
        if self.is_waiting() {
            self.waiting.append(&mut changes);
            return self.retry();
        }
        if self.has_space() {
            match self.write(&changes) {
                Err(error) if is_of_space(&error) => {
                    tracing::error!(%error, "the catalog cannot be written and goes on in memory until there is space");
                    self.is_broken = true;
                }
                done => return done,
            }
        } else {
            tracing::warn!("the disk is full: the catalog is not written, and goes on in memory until there is space");
        }
        self.waiting = changes;
        self.tried = Some(Instant::now());
        Ok(())
    }

    /// Something is committed that is not in the database.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// So much waits that no more should be added but what cannot be put off.
    pub fn is_swamped(&self) -> bool {
        self.waiting.len() >= CATALOG_WAITING_ROWS_MAX
    }

    fn has_space(&self) -> bool {
        (self.free_bytes)().is_ok_and(|free_bytes| free_bytes >= CATALOG_FREE_BYTES_MIN)
    }

    /// Writes what waits, if there is space again. An error is doubt.
    pub fn retry(&mut self) -> Result<(), fjall::Error> {
        let is_early = self.tried.is_some_and(|tried| tried.elapsed() < CATALOG_RETRY_INTERVAL);
        if !self.is_waiting() || is_early || !self.has_space() {
            return Ok(());
        }
        self.tried = Some(Instant::now());
        match self.write_waiting() {
            Ok(()) => {
                self.waiting.clear();
                tracing::info!("there is space again: the catalog is written");
                Ok(())
            }
            Err(error) if is_of_space(&error) => {
                self.is_broken = true;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    #[cfg(test)]
    pub(super) fn forget_when_it_was_tried(&mut self) {
        self.tried = None;
    }

    /// Without waiting for its time.
    #[cfg(test)]
    pub(super) fn retry_now(&mut self) -> Result<(), fjall::Error> {
        self.forget_when_it_was_tried();
        self.retry()
    }

    fn write_waiting(&mut self) -> Result<(), fjall::Error> {
        if self.is_broken {
            // One at a time may hold its directory.
            self.opened = None;
            #[cfg(test)]
            if self.fail_opens {
                return Err(not_open());
            }
            let opened = Self::open_database(&self.directory)?;
            let commits = opened.commits()?;
            // The one that failed may be there after all; what waits contains it.
            if commits != self.commits && commits != self.commits + 1 {
                return Err(damaged());
            }
            self.commits = commits;
            self.opened = Some(opened);
            self.is_broken = false;
        }
        let waiting = std::mem::take(&mut self.waiting);
        let written = self.write(&waiting);
        self.waiting = waiting;
        written
    }

    fn write(&mut self, changes: &Changes) -> Result<(), fjall::Error> {
        #[cfg(test)]
        if std::mem::take(&mut self.fail_next_write) {
            return Err(not_open());
        }
        let opened = self.opened()?;
        let commits = self.commits + 1;
        // In the page cache when it returns, not in the process alone: it is there when the database is opened again.
        let mut batch = opened.database.batch().durability(Some(PersistMode::Buffer));
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&opened.keyspace, key.clone(), value.clone()),
                None => batch.remove(&opened.keyspace, key.clone()),
            }
        }
        batch.insert(&opened.keyspace, [COMMITS], commits.to_le_bytes());
        opened.wait_for_tables()?;
        batch.commit()?;
        self.commits = commits;
        Ok(())
    }

    /// What cannot be written for lack of space is in the log, and replayed at the next start.
    pub fn persist(&mut self) -> Result<(), fjall::Error> {
        self.tried = None;
        self.retry()?;
        if self.is_waiting() {
            tracing::warn!("the disk is full: what the catalog has not written is read from the log at the next start");
            return Ok(());
        }
        match self.opened()?.database.persist(PersistMode::SyncAll) {
            Err(error) if is_of_space(&error) => {
                tracing::warn!(%error, "the catalog is not synced: what is missing is read from the log at the next start");
                Ok(())
            }
            done => done,
        }
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

impl Opened {
    /// Keeps the next commit from being the one that the database keeps: it waits without end for threads of its own, which
    /// end when they fail, as on a full disk.
    fn wait_for_tables(&self) -> Result<(), fjall::Error> {
        let began = Instant::now();
        while self.keyspace.sealed_memtable_count() + 1 >= CATALOG_TABLES_WAITING_MAX {
            if began.elapsed() >= CATALOG_TABLES_PATIENCE {
                return Err(fjall::Error::Poisoned);
            }
            std::thread::sleep(CATALOG_TABLES_LOOK_INTERVAL);
        }
        Ok(())
    }

    fn commits(&self) -> Result<u64, fjall::Error> {
        self.keyspace.get([COMMITS])?.map_or(Ok(0), |commits| number(&commits, 0))
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
