//! `gabion put -r`: a directory and everything in it, several files at once.
//!
//! ```text
//! walk --names, many at once--> worker --small: many in one request--> node
//!                                 |  ^
//!                                 +--+ handed back: what is more than a request holds; anything else, to go by itself
//! ```
//! Small files go many in one request: a connection and a descriptor for each would cost more than their bytes. Whatever is
//! longer than a small file goes alone, as its own descriptor. Which is which shows when it is opened.
//!
//! Symbolic links are stored as links. Sockets, pipes and devices are skipped with a warning; directories exist by the
//! files in them, so an empty one leaves no trace. What fails does not stop the rest: exit code 3 at the end. When the node
//! is gone, nothing is tried any more, and that is said once, with exit code 5.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde_json::json;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::parallel::Queue;
use super::put::{PutChoices, Source, Stored, line_of, metadata_of, print, store, unreadable};
use super::put_small::{Outcome, Putting, Worker};
use super::target::Prefix;
use super::{interrupt, output, parallel};
use crate::format::name::{BUCKET_DEFAULT, Metadata, Name};
use crate::io::{open_in, raise_fd_limit, set_blocking};
use crate::limits::SMALL_FILES_PER_BATCH_MAX;

/// One whose files are put.
pub(super) struct Directory {
    pub path: PathBuf,
    /// Of the keys of its files.
    prefix: String,
}

impl Directory {
    fn key_of(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix.trim_end_matches('/')) }
    }
}

/// A file or a symbolic link on its way into the store.
pub(super) struct Found {
    pub directory: Arc<Directory>,
    /// In its directory.
    pub name: String,
    pub is_symlink: bool,
}

impl Found {
    pub fn path(&self) -> PathBuf {
        self.directory.path.join(&self.name)
    }

    pub fn key(&self) -> String {
        self.directory.key_of(&self.name)
    }
}

/// What one worker takes at once.
enum Work {
    Batch(Vec<Found>),
    /// No small file, as has been found out.
    Other(Found),
}

#[derive(Default)]
struct Tally {
    files: AtomicU64,
    bytes: AtomicU64,
    bytes_new: AtomicU64,
    failed: AtomicU64,
    /// Why nothing can be put any more.
    node_gone: OnceLock<Failure>,
}

impl Tally {
    fn is_over(&self) -> bool {
        interrupt::requested() || self.node_gone.get().is_some()
    }

    fn stored(&self, stored: &Stored) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(stored.bytes, Ordering::Relaxed);
        self.bytes_new.fetch_add(stored.bytes_new, Ordering::Relaxed);
    }
}

pub fn run(context: &Context, path: &Path, name: Option<&str>, choices: PutChoices) -> Result<(), Failure> {
    let found = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !found.is_dir() {
        return Err(Failure::usage(format!("{} is no directory; leave -r out", path.display())));
    }
    // One question before a thousand failures: is there a node at all?
    context.connect()?;
    raise_fd_limit();
    let prefix = prefix_for(path, name)?;
    let tally = Tally::default();
    let found = |work: &mut dyn FnMut(Work)| {
        let mut batch = Vec::with_capacity(SMALL_FILES_PER_BATCH_MAX);
        walk(context, path, &prefix.key, &tally, &mut |found| {
            batch.push(found);
            if batch.len() >= SMALL_FILES_PER_BATCH_MAX {
                work(Work::Batch(std::mem::replace(&mut batch, Vec::with_capacity(SMALL_FILES_PER_BATCH_MAX))));
            }
        });
        work(Work::Batch(batch));
    };
    parallel::each(found, Worker::default, |worker, work, queue| match work {
        Work::Other(found) => put_found(context, &prefix.bucket, &found, choices, &tally),
        Work::Batch(batch) => put_batch(context, &prefix.bucket, worker, batch, choices, &tally, queue),
    });
    finish(context, &prefix, &tally, choices)
}

/// Depth first. What cannot be listed or named counts as failed.
fn walk(context: &Context, root: &Path, prefix: &str, tally: &Tally, found: &mut dyn FnMut(Found)) {
    let mut directories = vec![Directory { path: root.to_owned(), prefix: prefix.to_owned() }];
    while let Some(directory) = directories.pop() {
        let directory = Arc::new(directory);
        let unlistable = |error: &std::io::Error| {
            failed(context, tally, &Failure::other(format!("{} cannot be listed: {error}", directory.path.display())));
        };
        let entries = match fs::read_dir(&directory.path) {
            Ok(entries) => entries,
            Err(error) => {
                unlistable(&error);
                continue;
            }
        };
        for entry in entries {
            if tally.is_over() {
                return;
            }
            let (entry, kind) = match entry.and_then(|entry| entry.file_type().map(|kind| (entry, kind))) {
                Ok(entry) => entry,
                Err(error) => {
                    unlistable(&error);
                    continue;
                }
            };
            let Ok(name) = entry.file_name().into_string() else {
                let message = format!("{} has a name that is not UTF-8; rename it", entry.path().display());
                failed(context, tally, &Failure::other(message));
                continue;
            };
            if kind.is_dir() {
                directories.push(Directory { path: entry.path(), prefix: directory.key_of(&name) });
            } else if !kind.is_file() && !kind.is_symlink() {
                let message = format!("{} is a socket, pipe or device: skipped", entry.path().display());
                context.display.suspend(|| output::warn(&message, context.json));
            } else {
                found(Found { directory: directory.clone(), name, is_symlink: kind.is_symlink() });
            }
        }
    }
}

fn put_found(context: &Context, bucket: &str, found: &Found, choices: PutChoices, tally: &Tally) {
    if tally.is_over() {
        return;
    }
    settle(context, tally, &found.path(), try_put(context, bucket, found, choices), choices);
}

fn put_batch(
    context: &Context,
    bucket: &str,
    worker: &mut Worker,
    batch: Vec<Found>,
    choices: PutChoices,
    tally: &Tally,
    queue: &Queue<Work>,
) {
    if tally.is_over() {
        return;
    }
    let mut lines = String::new();
    let settle = &mut |found: Found, outcome| match outcome {
        Outcome::Stored(stored) => {
            lines.push_str(&line_of(context, &stored, choices.quiet));
            lines.push('\n');
            tally.stored(&stored);
        }
        Outcome::Failed(failure) => not_stored(context, tally, &found.path(), failure),
        Outcome::Other => queue.hand_back(Work::Other(found)),
    };
    let hand_back = &|left| queue.hand_back(Work::Batch(left));
    worker.put(batch, Putting { context, bucket, choices, settle, hand_back });
    if let Err(failure) = context.display.suspend(|| output::lines(&lines)) {
        failed(context, tally, &failure);
    }
}

fn settle(context: &Context, tally: &Tally, path: &Path, outcome: Result<Stored, Failure>, choices: PutChoices) {
    let printed = outcome.and_then(|stored| print(context, &stored, choices.quiet).map(|()| stored));
    match printed {
        Ok(stored) => tally.stored(&stored),
        Err(failure) => not_stored(context, tally, path, failure),
    }
}

fn not_stored(context: &Context, tally: &Tally, path: &Path, failure: Failure) {
    if tally.is_over() {
        return;
    }
    match context.connect() {
        Ok(_there) => failed(context, tally, &failure.at(path.display())),
        Err(gone) => drop(tally.node_gone.set(gone)), // or another thread was first
    }
}

fn try_put(context: &Context, bucket: &str, found: &Found, choices: PutChoices) -> Result<Stored, Failure> {
    let name = Name::new(bucket, &found.key()).map_err(|error| Failure::usage(error.to_string()))?;
    let source = open(found)?;
    let mut progress = context.display.start(&name.to_string());
    store(context, &name, &source, choices, &mut progress)
}

/// What was found as a file, and still is one: whoever puts a link or a pipe in its place gets neither followed.
fn open(found: &Found) -> Result<Source, Failure> {
    let fail = |error: &std::io::Error| unreadable(&found.path(), error);
    let directory = fs::File::open(&found.directory.path).map_err(|error| fail(&error))?;
    let file = open_in(&directory, found.name.as_ref()).map_err(|error| fail(&error))?;
    let metadata = file.metadata().map_err(|error| fail(&error))?;
    if !metadata.is_file() {
        return Err(Failure::other("it was a file when the tree was listed, and is none any more; put it again"));
    }
    set_blocking(&file).map_err(|error| fail(&error))?;
    Ok(Source { descriptor: Some(file.into()), metadata: metadata_of(&metadata), length: Some(metadata.len()) })
}

/// A link's metadata, its target among them.
pub(super) fn symlink_metadata(path: &Path) -> Result<Metadata, Failure> {
    let read = || Ok((fs::symlink_metadata(path)?, fs::read_link(path)?));
    let (found, target) = read().map_err(|error: std::io::Error| Failure::other(error.to_string()))?;
    Ok(Metadata { symlink_target: Some(target.into_os_string().into_vec()), ..metadata_of(&found) })
}

fn failed(context: &Context, tally: &Tally, failure: &Failure) {
    tally.failed.fetch_add(1, Ordering::Relaxed);
    context.display.suspend(|| output::failure(failure, context.json));
}

fn finish(context: &Context, prefix: &Prefix, tally: &Tally, choices: PutChoices) -> Result<(), Failure> {
    let [files, bytes, bytes_new, failed] =
        [&tally.files, &tally.bytes, &tally.bytes_new, &tally.failed].map(|count| count.load(Ordering::Relaxed));
    if interrupt::requested() {
        return Err(Failure::interrupted(format!(
            "interrupted after {files} files; the same put started again sends only what is missing"
        )));
    }
    if let Some(Failure { code, message }) = tally.node_gone.get() {
        let message = format!(
            "{message}; {files} files were put before, and the same put started again sends only what is missing"
        );
        return Err(Failure { code: *code, message });
    }
    if context.json {
        output::json(&json!({
            "prefix": prefix.to_string(), "files": files, "bytes": bytes, "bytes_new": bytes_new, "failed": failed,
        }))?;
    } else if !choices.quiet {
        output::line(&format!("{prefix}: {files} files  {bytes} bytes  {bytes_new} new  {failed} failed"))?;
    }
    if failed > 0 { Err(Failure::silent(Exit::Partial)) } else { Ok(()) }
}

/// As told, else the directory's own name in `main`.
fn prefix_for(path: &Path, name: Option<&str>) -> Result<Prefix, Failure> {
    if let Some(name) = name {
        return Prefix::parse(name);
    }
    // `.` and `a/..` have a name too, behind the links.
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().or_else(|| real.file_name()).and_then(|name| name.to_str());
    match name {
        Some(name) => Ok(Prefix { bucket: BUCKET_DEFAULT.to_owned(), key: name.to_owned() }),
        None => Err(Failure::usage(format!("{} has no name of its own; give --name BUCKET/PREFIX", path.display()))),
    }
}
