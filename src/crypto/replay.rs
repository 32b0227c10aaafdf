//! Openings seen before, so that a recorded one gets no second answer, not even after a crash.
//!
//! An opening is valid while its time is within 15 minutes of our clock, either way; so an ephemeral is remembered for 30
//! minutes from its first arrival. The memory is also an append-only file, `seen-openings` in the data directory:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `gabseen1` |
//! | then, each 40 bytes: | 8 | arrival, Unix milliseconds |
//! | | 32 | ephemeral |
//!
//! - The entry is written before the answer goes out. It is in the kernel's hands by then: kill -9 loses nothing. It is not
//!   synced: after a power cut a replayed opening may get one answer, which its sender cannot read and which
//!   contains a public certificate (see [`super::session`]).
//! - Only who knows the network key gets as far as this, so strangers do not grow it. It is bounded all the same: full, or with
//!   a file that cannot be written, it refuses new openings. Each source has a share of the room, so that who floods is
//!   refused long before others are; shares are counted from when this process began, since the file does not tell whose
//!   an entry was.
//! - A torn last entry (an odd length) is dropped at load. The file is rewritten at load, and when it holds more
//!   than twice what is still remembered.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::source::Source;
use crate::limits::{REPLAY_ENTRIES_MAX, REPLAY_ENTRIES_PER_SOURCE_MAX, REPLAY_FILE_SLACK_ENTRIES, REPLAY_MEMORY};

pub const REPLAY_FILE: &str = "seen-openings";
const MAGIC: [u8; 8] = *b"gabseen1";

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    arrived_ms: U64,
    ephemeral: [u8; 32],
}

const _: () = assert!(size_of::<Entry>() == 40);

#[derive(Debug, thiserror::Error)]
pub enum ReplayRefused {
    #[error("the opening was seen before: a recording of it was sent again")]
    Replayed,
    #[error(
        "{REPLAY_ENTRIES_MAX} openings arrived within 30 minutes: somebody who knows the network key floods this node"
    )]
    Full,
    #[error(
        "{REPLAY_ENTRIES_PER_SOURCE_MAX} openings arrived from this address within 30 minutes: somebody there who knows the \
         network key floods this node"
    )]
    SourceFull,
    #[error("the opening cannot be remembered in {}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
}

/// Shared by all threads that accept connections.
#[derive(Debug)]
pub struct ReplayFilter {
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    path: PathBuf,
    file: File,
    ephemerals: HashSet<[u8; 32]>,
    /// In the order of arrival.
    order: VecDeque<Entry>,
    /// Whose the last of `order` are; there is none for those that were read from the file.
    sources: VecDeque<Source>,
    /// How many of `sources` are of each.
    shares: HashMap<Source, usize>,
    entries_in_file: usize,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.arrived_ms.get())
    }
}

impl ReplayFilter {
    /// Reads what `directory` remembers, forgets what is too old, and rewrites the file.
    pub fn load(directory: &Path, now_ms: u64) -> Result<Self, ReplayRefused> {
        let path = directory.join(REPLAY_FILE);
        let fail = |source| ReplayRefused::File { path: path.clone(), source };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(fail(error)),
        };
        let order = parse(&bytes).map_err(fail)?.into_iter().filter(|entry| !is_old(entry, now_ms)).collect();
        let file = rewrite(&path, &order).map_err(fail)?;
        let ephemerals = order.iter().map(|entry| entry.ephemeral).collect();
        let entries_in_file = order.len();
        let (sources, shares) = (VecDeque::new(), HashMap::new());
        Ok(Self { seen: Mutex::new(Seen { path, file, ephemerals, order, sources, shares, entries_in_file }) })
    }

    /// Remembers an ephemeral that was never seen, durably against a crash of this process. Anything but `Ok` means that
    /// the opening gets no answer.
    pub fn admit(&self, ephemeral: &[u8; 32], source: Source, now_ms: u64) -> Result<(), ReplayRefused> {
        // A thread that panicked here left at worst an entry in the file and not in memory.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.forget_old(now_ms);
        if seen.ephemerals.contains(ephemeral) {
            return Err(ReplayRefused::Replayed);
        }
        if seen.shares.get(&source).is_some_and(|share| *share >= REPLAY_ENTRIES_PER_SOURCE_MAX) {
            return Err(ReplayRefused::SourceFull);
        }
        if seen.order.len() >= REPLAY_ENTRIES_MAX {
            return Err(ReplayRefused::Full);
        }
        let entry = Entry { arrived_ms: now_ms.into(), ephemeral: *ephemeral };
        seen.append(&entry).map_err(|source| ReplayRefused::File { path: seen.path.clone(), source })?;
        seen.ephemerals.insert(*ephemeral);
        seen.order.push_back(entry);
        seen.sources.push_back(source);
        *seen.shares.entry(source).or_default() += 1;
        Ok(())
    }
}

impl Seen {
    fn forget_old(&mut self, now_ms: u64) {
        while let Some(entry) = self.order.front().filter(|entry| is_old(entry, now_ms)).copied() {
            self.order.pop_front();
            self.ephemerals.remove(&entry.ephemeral);
            if self.sources.len() > self.order.len() {
                self.forget_source();
            }
        }
    }

    fn forget_source(&mut self) {
        let Some(source) = self.sources.pop_front() else { return };
        if let Some(share) = self.shares.get_mut(&source) {
            *share -= 1;
            if *share == 0 {
                self.shares.remove(&source);
            }
        }
    }

    fn append(&mut self, entry: &Entry) -> io::Result<()> {
        if self.entries_in_file > 2 * self.order.len() + REPLAY_FILE_SLACK_ENTRIES {
            self.file = rewrite(&self.path, &self.order)?;
            self.entries_in_file = self.order.len();
        }
        // One write(2) of 40 bytes in append mode. A short one would shift all later entries: start the file anew then.
        if self.file.write(entry.as_bytes())? != size_of::<Entry>() {
            self.file = rewrite(&self.path, &self.order)?;
            self.entries_in_file = self.order.len();
            return Err(io::Error::new(io::ErrorKind::WriteZero, "only part of an entry was written"));
        }
        self.entries_in_file += 1;
        Ok(())
    }
}

/// Entries from the future (our clock was set back) stay until their time has come.
fn is_old(entry: &Entry, now_ms: u64) -> bool {
    u128::from(now_ms.saturating_sub(entry.arrived_ms.get())) > REPLAY_MEMORY.as_millis()
}

fn parse(bytes: &[u8]) -> io::Result<Vec<Entry>> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let entries = bytes
        .strip_prefix(&MAGIC)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a file of seen openings; remove it"))?;
    let (entries, _torn) = entries.as_chunks::<{ size_of::<Entry>() }>();
    Ok(entries.iter().filter_map(|entry| Entry::read_from_bytes(entry).ok()).collect())
}

/// Replaces the file in one step; gives it open for appending.
fn rewrite(path: &Path, entries: &VecDeque<Entry>) -> io::Result<File> {
    let new = path.with_extension("new");
    let mut bytes = MAGIC.to_vec();
    for entry in entries {
        bytes.extend_from_slice(entry.as_bytes());
    }
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    OpenOptions::new().append(true).open(path)
}

#[cfg(test)]
mod tests;
