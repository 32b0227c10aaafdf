//! `gabion put -r`: a directory and everything in it, several files at once.
//!
//! Small files go many in one request, on one connection for each worker: a connection and a descriptor for each would
//! cost more than their bytes. Whatever is longer than a small file goes alone, as its own descriptor.
//!
//! Symbolic links are stored as links. Sockets, pipes and devices are skipped with a warning; directories exist by the
//! files in them, so an empty one leaves no trace. What fails does not stop the rest: exit code 3 at the end.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::put::{PutChoices, Source, Stored, line_of, metadata_of, open_file, print, store, unreadable};
use super::put_small::Batch;
use super::target::Prefix;
use super::{interrupt, output, parallel, put_small};
use crate::format::name::{BUCKET_DEFAULT, Metadata, Name};
use crate::limits::SMALL_CHUNK_BYTES_MAX;

/// A file or a symbolic link on its way into the store.
pub(super) struct Found {
    pub path: PathBuf,
    pub key: String,
    pub is_symlink: bool,
}

/// What one worker takes at once.
enum Work {
    Small(Batch),
    Large(Found),
}

#[derive(Default)]
struct Tally {
    files: AtomicU64,
    bytes: AtomicU64,
    bytes_new: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
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
    let prefix = prefix_for(path, name)?;
    let tally = Tally::default();
    let sorted = |work: &mut dyn FnMut(Work) -> bool| {
        let mut batch = Batch::default();
        walk(context, path, &prefix.key, &tally, &mut |found, len| {
            if !found.is_symlink && len > SMALL_CHUNK_BYTES_MAX as u64 {
                return work(Work::Large(found));
            }
            batch.add(found, len);
            !batch.is_full() || work(Work::Small(std::mem::take(&mut batch)))
        });
        if !batch.is_empty() {
            work(Work::Small(batch));
        }
    };
    parallel::each(sorted, |work| match work {
        Work::Large(found) => put_found(context, &prefix.bucket, &found, choices, &tally),
        Work::Small(batch) => put_small(context, &prefix.bucket, batch, choices, &tally),
    });
    finish(context, &prefix, &tally, choices)
}

/// Depth first, each file with its length. What cannot be listed or named counts as failed.
fn walk(context: &Context, root: &Path, prefix: &str, tally: &Tally, found: &mut dyn FnMut(Found, u64) -> bool) {
    let mut directories = vec![(root.to_owned(), prefix.to_owned())];
    while let Some((directory, prefix)) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                failed(context, tally, &Failure::other(format!("{} cannot be listed: {error}", directory.display())));
                continue;
            }
        };
        for entry in entries {
            if interrupt::requested() {
                return;
            }
            let (entry, kind) = match entry.and_then(|entry| entry.file_type().map(|kind| (entry, kind))) {
                Ok(entry) => entry,
                Err(error) => {
                    failed(
                        context,
                        tally,
                        &Failure::other(format!("{} cannot be listed: {error}", directory.display())),
                    );
                    continue;
                }
            };
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                let message = format!("{} has a name that is not UTF-8; rename it", path.display());
                failed(context, tally, &Failure::other(message));
                continue;
            };
            let key = if prefix.is_empty() { name } else { format!("{}/{name}", prefix.trim_end_matches('/')) };
            if kind.is_dir() {
                directories.push((path, key));
            } else if !kind.is_file() && !kind.is_symlink() {
                let message = format!("{} is a socket, pipe or device: skipped", path.display());
                context.display.suspend(|| output::warn(&message, context.json));
            } else {
                // What has gone or cannot be asked will fail where it is opened, and say why there.
                let len = entry.metadata().map_or(0, |metadata| metadata.len());
                if !found(Found { path, key, is_symlink: kind.is_symlink() }, len) {
                    return;
                }
            }
        }
    }
}

fn put_found(context: &Context, bucket: &str, found: &Found, choices: PutChoices, tally: &Tally) {
    if interrupt::requested() {
        return;
    }
    settle(context, tally, &found.path, try_put(context, bucket, found, choices), choices);
}

fn put_small(context: &Context, bucket: &str, batch: Batch, choices: PutChoices, tally: &Tally) {
    if interrupt::requested() {
        return;
    }
    let mut lines = String::new();
    put_small::put(context, bucket, batch, choices, &mut |path, outcome| match outcome {
        Ok(stored) => {
            lines.push_str(&line_of(context, &stored, choices.quiet));
            lines.push('\n');
            tally.stored(&stored);
        }
        Err(failure) => not_stored(context, tally, path, failure),
    });
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
    if failure.code != Exit::Interrupted.code() {
        failed(context, tally, &failure.at(path.display()));
    }
}

fn try_put(context: &Context, bucket: &str, found: &Found, choices: PutChoices) -> Result<Stored, Failure> {
    let name = Name::new(bucket, &found.key).map_err(|error| Failure::usage(error.to_string()))?;
    let source = open_file(&found.path)?;
    let mut progress = context.display.start(&name.to_string());
    store(context, &name, &source, choices, &mut progress)
}

/// A link's metadata, its target among them; the source has no descriptor.
pub(super) fn open_symlink(path: &Path) -> Result<Source, Failure> {
    let read = || Ok((fs::symlink_metadata(path)?, fs::read_link(path)?));
    let (found, target) = read().map_err(|error: std::io::Error| Failure::other(error.to_string()))?;
    let metadata = Metadata { symlink_target: Some(target.into_os_string().into_vec()), ..metadata_of(&found) };
    Ok(Source { descriptor: None, metadata, length: Some(0) })
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
