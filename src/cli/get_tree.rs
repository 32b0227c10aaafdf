//! `gabion get -r`: everything below a name into a directory, several files at once.
//!
//! Small files are fetched many at once ([`super::get_small`]), longer ones each by itself. What the tree's names are is made
//! durable at the end, for all of it.
//!
//! Names come from other people. A key that would leave the directory (an empty, `.` or `..` part, a NUL) is refused,
//! and so is one that leads through a symbolic link: directories are made and checked part by part, and the links of
//! the tree itself are made after all its files, so that no file can be written through one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use super::context::{Connection, Context};
use super::exit::{Exit, Failure};
use super::get::{Fetched, GetChoices, interrupted, line_of, print, to_file};
use super::get_small::{self, Batch, Outcome};
use super::list::each_entry;
use super::target::{Prefix, Wanted};
use super::{output, parallel};
use crate::format::name::Name;
use crate::io::{raise_fd_limit, sync_filesystem};
use crate::node::control::Entry;

#[derive(Default)]
struct Tally {
    files: AtomicU64,
    bytes: AtomicU64,
    bytes_resumed: AtomicU64,
    failed: AtomicU64,
}

/// The tree on its way out.
struct Tree<'a> {
    context: &'a Context,
    prefix: Prefix,
    root: PathBuf,
    choices: GetChoices,
    tally: Tally,
    /// Made or checked already.
    directories: Mutex<HashSet<PathBuf>>,
    /// Where those are: a directory of each, by its device.
    filesystems: Mutex<HashMap<u64, fs::File>>,
}

pub fn run(context: &Context, target: &str, output: Option<&Path>, choices: GetChoices) -> Result<(), Failure> {
    if output == Some(Path::new("-")) {
        return Err(Failure::usage("a tree cannot go to standard output; give a directory as -o PATH"));
    }
    let prefix = Prefix::parse_tree(target)?;
    let root = match output {
        Some(output) => output.to_owned(),
        None => PathBuf::from(default_root(&prefix)?),
    };
    if fs::metadata(&root).is_ok_and(|found| !found.is_dir()) {
        return Err(Failure::other(format!(
            "{} is no directory; move it away, or give another -o PATH",
            root.display()
        )));
    }
    let files_max = get_small::batch_files_max(raise_fd_limit());
    let tree = Tree {
        context,
        prefix,
        root,
        choices,
        tally: Tally::default(),
        directories: Mutex::default(),
        filesystems: Mutex::default(),
    };
    let sorted = |work: &mut dyn FnMut(Work)| {
        let mut batch = Batch::default();
        let listed = tree.list(false, &mut |entry| {
            if !get_small::takes(&entry) {
                return work(Work::Large(entry));
            }
            batch.add(entry);
            if batch.is_full(files_max) {
                work(Work::Small(std::mem::take(&mut batch)));
            }
        });
        if !batch.is_empty() {
            work(Work::Small(batch));
        }
        listed
    };
    let no_connection = || None;
    parallel::each(sorted, no_connection, |connection, work, queue| match work {
        Work::Large(entry) => tree.get(&entry),
        Work::Small(batch) => tree.get_small(connection, batch, &mut |entry| queue.hand_back(Work::Large(entry))),
    })?;
    let mut links = Ok(0);
    if interrupted().is_none() {
        links = tree.list(true, &mut |entry| tree.get(&entry));
    }
    links?;
    tree.finish()
}

/// What one worker takes at once.
enum Work {
    Small(Batch),
    Large(Entry),
}

fn default_root(prefix: &Prefix) -> Result<String, Failure> {
    let last = prefix.key.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match last {
        "" => Ok(prefix.bucket.clone()),
        "." | ".." => Err(Failure::usage(format!("{prefix} does not end in a directory's name; give -o PATH"))),
        last => Ok(last.to_owned()),
    }
}

impl Tree<'_> {
    /// The files of the tree, or its symbolic links.
    fn list(&self, symlinks: bool, found: &mut dyn FnMut(Entry)) -> Result<u64, Failure> {
        each_entry(self.context, Some(&self.prefix.bucket), &self.prefix.key, None, &mut |entry| {
            let wanted =
                entry.metadata.symlink_target.is_some() == symlinks && self.prefix.relative(&entry.key).is_some();
            if wanted {
                found(entry);
            }
            Ok(interrupted().is_none())
        })
    }

    fn get(&self, entry: &Entry) {
        if let Err(failure) = self.try_get(entry) {
            self.failed(entry, failure);
        }
    }

    fn failed(&self, entry: &Entry, failure: Failure) {
        if failure.code == Exit::Interrupted.code() {
            return;
        }
        self.tally.failed.fetch_add(1, Ordering::Relaxed);
        let failure = failure.at(format_args!("{}/{}", entry.bucket, entry.key));
        self.context.display.suspend(|| output::failure(&failure, self.context.json));
    }

    fn get_small(&self, connection: &mut Option<Connection>, batch: Batch, hand_back: &mut dyn FnMut(Entry)) {
        if interrupted().is_some() {
            return;
        }
        let mut lines = String::new();
        let place = |entry: &Entry| self.make_way(self.prefix.relative(&entry.key).unwrap_or_default());
        let settle = &mut |entry: &Entry, outcome| match outcome {
            Outcome::Fetched(path, fetched) => {
                self.fetched(fetched);
                lines.push_str(&line_of(self.context, &format!("{}/{}", entry.bucket, entry.key), &path, fetched));
                lines.push('\n');
            }
            Outcome::Failed(failure) => self.failed(entry, failure),
            Outcome::Other => hand_back(entry.clone()),
        };
        get_small::get(self.context, connection, batch, self.choices.remote, &place, settle);
        if let Err(failure) = self.context.display.suspend(|| output::lines(&lines)) {
            self.tally.failed.fetch_add(1, Ordering::Relaxed);
            self.context.display.suspend(|| output::failure(&failure, self.context.json));
        }
    }

    fn fetched(&self, fetched: Fetched) {
        self.tally.files.fetch_add(1, Ordering::Relaxed);
        self.tally.bytes.fetch_add(fetched.total(), Ordering::Relaxed);
        self.tally.bytes_resumed.fetch_add(fetched.bytes_resumed, Ordering::Relaxed);
    }

    fn try_get(&self, entry: &Entry) -> Result<(), Failure> {
        if let Some(failure) = interrupted() {
            return Err(failure);
        }
        let relative = self.prefix.relative(&entry.key).unwrap_or_default();
        let path = self.make_way(relative)?;
        let name = Name::new(&entry.bucket, &entry.key).map_err(|error| Failure::other(error.to_string()))?;
        let wanted = Wanted::Name(name);
        let mut progress = self.context.display.start(&wanted.to_string());
        let fetched = to_file(self.context, &wanted, &path, self.choices, &mut progress)?;
        drop(progress);
        self.fetched(fetched);
        print(self.context, &wanted.to_string(), &path, fetched)
    }

    /// The output's path; the directories to it exist when this returns, and none of them is a symbolic link.
    fn make_way(&self, relative: &str) -> Result<PathBuf, Failure> {
        let parts = safe_parts(relative)?;
        let mut path = self.root.clone();
        // With its first file, so that a tree without any leaves nothing behind.
        if !self.is_made(&path) {
            fs::create_dir_all(&path)
                .map_err(|error| Failure::other(format!("the directory {} cannot be made: {error}", path.display())))?;
            self.note_made(&path)
                .map_err(|error| Failure::other(format!("the directory {} cannot be read: {error}", path.display())))?;
        }
        let (file, directories) = parts.split_last().ok_or_else(|| Failure::other("the key is empty"))?;
        for part in directories {
            path.push(part);
            self.make_directory(&path)
                .map_err(|error| Failure::other(format!("the directory {} cannot be made: {error}", path.display())))?;
        }
        path.push(file);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            return Err(Failure::other(format!("{} is a directory; move it away", path.display())));
        }
        Ok(path)
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        if self.is_made(path) {
            return Ok(());
        }
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if !fs::symlink_metadata(path)?.is_dir() {
            return Err(io::Error::other("something that is no directory is in the way"));
        }
        self.note_made(path)
    }

    fn is_made(&self, path: &Path) -> bool {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).contains(path)
    }

    fn note_made(&self, path: &Path) -> io::Result<()> {
        let directory = fs::File::open(path)?;
        let device = directory.metadata()?.dev();
        self.filesystems.lock().unwrap_or_else(PoisonError::into_inner).entry(device).or_insert(directory);
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
        Ok(())
    }

    /// The names stay, too.
    fn sync(&self) -> Result<(), Failure> {
        let filesystems = self.filesystems.lock().unwrap_or_else(PoisonError::into_inner);
        let synced = filesystems.values().try_for_each(sync_filesystem);
        synced.map_err(|error| Failure::other(format!("{} cannot be made durable: {error}", self.root.display())))
    }

    fn finish(&self) -> Result<(), Failure> {
        self.sync()?;
        let tally = &self.tally;
        let [files, bytes, bytes_resumed, failed] = [&tally.files, &tally.bytes, &tally.bytes_resumed, &tally.failed]
            .map(|count| count.load(Ordering::Relaxed));
        if let Some(failure) = interrupted() {
            return Err(failure);
        }
        if files + failed == 0 {
            return Err(Failure::new(
                Exit::NotFound,
                format!("there is nothing below {}; see gabion ls {}/", self.prefix, self.prefix.bucket),
            ));
        }
        let root = output::one_line(&self.root.display().to_string());
        if self.context.json {
            output::json(&json!({
                "prefix": self.prefix.to_string(), "output": root, "files": files, "bytes": bytes,
                "bytes_resumed": bytes_resumed, "failed": failed,
            }))?;
        } else {
            output::line(&format!("{root}: {files} files  {bytes} bytes  {failed} failed"))?;
        }
        if failed > 0 { Err(Failure::silent(Exit::Partial)) } else { Ok(()) }
    }
}

/// The parts of a relative path that stays where it is put.
fn safe_parts(relative: &str) -> Result<Vec<&str>, Failure> {
    let parts: Vec<&str> = relative.split('/').collect();
    if parts.iter().any(|part| matches!(*part, "" | "." | "..") || part.contains('\0')) {
        return Err(Failure::other("the key would leave the directory it is read into; get it alone, with -o PATH"));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_would_leave_the_directory_are_refused() {
        for escape in ["", ".", "..", "../a", "a/../b", "a/..", "/a", "a//b", "a/", "./a", "a/\0b"] {
            assert!(safe_parts(escape).is_err(), "{escape:?}");
        }
        assert_eq!(safe_parts("a/..b/c.").unwrap(), ["a", "..b", "c."]);
    }
}
