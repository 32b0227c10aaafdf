//! Small files of a tree: asked for many in one request, written here, made durable together.
//!
//! ```text
//! batch of entries --one request--> contents --> a part each, complete --> syncfs --> renames ... --> syncfs at the end
//! ```
//! A file appears under its name only after a sync that covers it, so a crash leaves it whole or not there. That the names
//! stay is made sure once for the whole tree ([`super::get_tree`]). 100,000 files of 4 KiB take 9.6 s like this, and took 64 s
//! with two questions, a sync of the file and one of its directory for each (on an ext4 that had just lost as many files, where
//! `cp -r` takes 40 s).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::context::{Connection, Context, unanswered};
use super::exit::Failure;
use super::get::Fetched;
use super::part::{Part, PartOf};
use crate::format::Address;
use crate::format::name::Metadata;
use crate::io::sync_filesystem;
use crate::limits::{
    OTHER_FILES_OPEN_MAX, SMALL_CHUNK_BYTES_MAX, SMALL_FILES_BYTES_MAX, SMALL_FILES_PER_BATCH_MAX, TREE_FILES_AT_ONCE,
};
use crate::node::control::{ControlEvent, ControlRequest, Entry, SmallFetched, Target};

/// Of a file in an answer, beside contents: metadata, ids and lengths.
const ANSWER_OVERHEAD_BYTES: usize = 256;

/// Names of files that were small when they were listed.
#[derive(Default)]
pub(super) struct Batch {
    entries: Vec<Entry>,
    bytes: usize,
}

/// Whether a file goes like this, as far as its listing tells.
pub(super) fn takes(entry: &Entry) -> bool {
    entry.length <= SMALL_CHUNK_BYTES_MAX as u64 && entry.metadata.symlink_target.is_none()
}

/// Each file of a batch is open until all of them are renamed, in each of the workers.
pub(super) fn batch_files_max(open_files_max: u64) -> usize {
    let open_files_max = usize::try_from(open_files_max).unwrap_or(usize::MAX);
    (open_files_max.saturating_sub(OTHER_FILES_OPEN_MAX) / TREE_FILES_AT_ONCE).clamp(1, SMALL_FILES_PER_BATCH_MAX)
}

impl Batch {
    pub fn add(&mut self, entry: Entry) {
        self.bytes += entry.length as usize + ANSWER_OVERHEAD_BYTES;
        self.entries.push(entry);
    }

    /// `files_max`: see [`batch_files_max`].
    pub fn is_full(&self, files_max: usize) -> bool {
        self.entries.len() >= files_max || self.bytes + SMALL_CHUNK_BYTES_MAX > SMALL_FILES_BYTES_MAX
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What became of one file.
pub(super) enum Outcome {
    Fetched(PathBuf, Fetched),
    Failed(Failure),
    /// It is something else by now than what was listed: to be fetched by itself.
    Other,
}

/// A file on its way: written, and neither durable nor in its place.
struct Written {
    entry: Entry,
    part: Part,
    path: PathBuf,
    fetched: Fetched,
}

/// Fetches every file of the batch to where `place` says, and tells each outcome.
pub(super) fn get(
    context: &Context,
    connection: &mut Option<Connection>,
    batch: Batch,
    remote: bool,
    place: &dyn Fn(&Entry) -> Result<PathBuf, Failure>,
    settle: &mut dyn FnMut(&Entry, Outcome),
) {
    let answered = ask(context, connection, &batch.entries, remote)
        .and_then(|outcomes| if outcomes.len() == batch.entries.len() { Ok(outcomes) } else { Err(unanswered()) });
    let outcomes = match answered {
        Ok(outcomes) => outcomes,
        Err(Failure { code, message }) => {
            for entry in &batch.entries {
                settle(entry, Outcome::Failed(Failure { code, message: message.clone() }));
            }
            return;
        }
    };
    let mut written = Vec::with_capacity(outcomes.len());
    for (entry, outcome) in batch.entries.into_iter().zip(outcomes) {
        let (metadata, content, contents) = match outcome {
            SmallFetched::Contents { metadata, content, contents } if metadata.symlink_target.is_none() => {
                (metadata, content, contents.0)
            }
            SmallFetched::Contents { .. } | SmallFetched::Large { .. } => {
                settle(&entry, Outcome::Other);
                continue;
            }
            SmallFetched::Failed { code, message } => {
                settle(&entry, Outcome::Failed(Failure { code, message }));
                continue;
            }
        };
        match place(&entry).and_then(|path| write(path, &metadata, content, &contents)) {
            Ok((part, path)) => {
                let fetched = Fetched { content, bytes: contents.len() as u64, bytes_resumed: 0 };
                written.push(Written { entry, part, path, fetched });
            }
            Err(failure) => settle(&entry, Outcome::Failed(failure)),
        }
    }
    publish(written, settle);
}

fn ask(
    context: &Context,
    connection: &mut Option<Connection>,
    entries: &[Entry],
    remote: bool,
) -> Result<Vec<SmallFetched>, Failure> {
    let target = |entry: &Entry| Target::Name { bucket: entry.bucket.clone(), key: entry.key.clone() };
    let request = ControlRequest::GetSmall { targets: entries.iter().map(target).collect(), remote };
    match context.exchange(connection, &request.encode())? {
        ControlEvent::FetchedSmall { outcomes } => Ok(outcomes),
        _ => {
            *connection = None; // what comes next on it is anybody's guess
            Err(unanswered())
        }
    }
}

fn write(path: PathBuf, metadata: &Metadata, content: Address, contents: &[u8]) -> Result<(Part, PathBuf), Failure> {
    let part = Part::open(&path, PartOf { content, range: None }, metadata)?;
    let outcome = part.file.write_all_at(contents, 0).and_then(|()| part.complete(contents.len() as u64, metadata));
    match outcome {
        Ok(()) => Ok((part, path)),
        Err(error) => {
            part.discard();
            Err(cannot_complete(&path, &error))
        }
    }
}

fn cannot_complete(path: &Path, error: &io::Error) -> Failure {
    Failure::other(format!("{} cannot be completed: {error}", path.display()))
}

/// Of the file system that a file is on, unless that was done: a tree may reach into several.
fn sync(file: &File, synced: &mut HashMap<u64, io::Result<()>>) -> io::Result<()> {
    let outcome = synced.entry(file.metadata()?.dev()).or_insert_with(|| sync_filesystem(file));
    // An error has no copy of itself.
    outcome.as_ref().copied().map_err(|error| io::Error::new(error.kind(), error.to_string()))
}

/// One sync for all of them, then each gets its name.
fn publish(written: Vec<Written>, settle: &mut dyn FnMut(&Entry, Outcome)) {
    let mut synced = HashMap::new();
    for Written { entry, part, path, fetched } in written {
        match sync(&part.file, &mut synced).and_then(|()| part.publish()) {
            Ok(()) => settle(&entry, Outcome::Fetched(path, fetched)),
            Err(error) => {
                part.discard();
                settle(&entry, Outcome::Failed(cannot_complete(&path, &error)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_batches_together_stay_within_the_limit_of_open_files() {
        for limit in [1024, 1500, 4096] {
            assert!(batch_files_max(limit) * TREE_FILES_AT_ONCE + OTHER_FILES_OPEN_MAX <= limit as usize);
        }
        assert_eq!(batch_files_max(1024), 56);
        assert_eq!((batch_files_max(0), batch_files_max(u64::MAX)), (1, SMALL_FILES_PER_BATCH_MAX));
    }
}
