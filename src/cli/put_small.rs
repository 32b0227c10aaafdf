//! Small files of a tree: read here, sent many in one request.
//!
//! A file that changes while it is read is refused, as everywhere: its times are compared before and after. What turns
//! out to be no small regular file any more goes alone, through its descriptor.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::context::{Context, unanswered};
use super::exit::Failure;
use super::put::{PutChoices, Source, Stored, metadata_of, open_file, store};
use super::put_tree::{Found, open_symlink};
use crate::format::name::Name;
use crate::limits::{SMALL_CHUNK_BYTES_MAX, SMALL_FILES_BYTES_MAX, SMALL_FILES_MAX};
use crate::node::control::{Bytes, ControlEvent, ControlRequest, SmallFile, SmallStored};
use crate::vault::FileStamp;

/// Paths of files that were small when they were found.
#[derive(Default)]
pub(super) struct Batch {
    found: Vec<Found>,
    bytes: usize,
}

/// In a message, beside contents and key: metadata with the longest link target that is likely, and lengths.
const FILE_OVERHEAD_BYTES: usize = 128;
/// Enough for a commit, and few enough that a tree of some hundred files keeps several workers busy.
const BATCH_FILES_MAX: usize = 128;

impl Batch {
    pub fn add(&mut self, found: Found, len: u64) {
        self.bytes += len as usize + found.key.len() + FILE_OVERHEAD_BYTES;
        self.found.push(found);
    }

    pub fn is_full(&self) -> bool {
        self.found.len() >= BATCH_FILES_MAX || self.bytes >= SMALL_FILES_BYTES_MAX / 2
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}

/// A file that was read.
enum Taken {
    Small(SmallFile),
    /// It has grown, or is something else by now.
    Other(Source),
}

/// Puts every file of the batch and tells each outcome.
pub(super) fn put(
    context: &Context,
    bucket: &str,
    batch: Batch,
    choices: PutChoices,
    settle: &mut dyn FnMut(&Path, Result<Stored, Failure>),
) {
    let mut request = Request::default();
    for found in batch.found {
        let taken = Name::new(bucket, &found.key)
            .map_err(|error| Failure::usage(error.to_string()))
            .and_then(|name| take(&found).map(|taken| (name, taken)));
        match taken {
            Err(failure) => settle(&found.path, Err(failure)),
            Ok((name, Taken::Other(source))) => {
                let mut progress = context.display.start(&name.to_string());
                settle(&found.path, store(context, &name, &source, choices, &mut progress));
            }
            Ok((name, Taken::Small(file))) => {
                if !request.has_room(&file) {
                    std::mem::take(&mut request).send(context, bucket, choices, settle);
                }
                request.add(found.path, name, file);
            }
        }
    }
    request.send(context, bucket, choices, settle);
}

fn take(found: &Found) -> Result<Taken, Failure> {
    let small =
        |metadata, contents| Taken::Small(SmallFile { key: found.key.clone(), metadata, contents: Bytes(contents) });
    if found.is_symlink {
        return Ok(small(open_symlink(&found.path)?.metadata, Vec::new()));
    }
    let Ok(mut file) = File::open(&found.path) else {
        return open_file(&found.path).map(Taken::Other); // which says why
    };
    let fail = |error: std::io::Error| Failure::other(format!("it cannot be read: {error}"));
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() || metadata.len() > SMALL_CHUNK_BYTES_MAX as u64 {
        let (length, kept) = (metadata.is_file().then_some(metadata.len()), metadata_of(&metadata));
        return Ok(Taken::Other(Source { descriptor: Some(file.into()), metadata: kept, length }));
    }
    let before = FileStamp::from(&metadata);
    let contents = read_whole(&mut file, before.len as usize).map_err(fail)?;
    if contents.len() as u64 != before.len || FileStamp::of(&file).map_err(fail)? != before {
        return Err(Failure::other("the file changed while it was read; put it again once nobody writes to it"));
    }
    Ok(small(metadata_of(&metadata), contents))
}

/// Up to `len` bytes.
fn read_whole(file: &mut File, len: usize) -> std::io::Result<Vec<u8>> {
    let mut contents = vec![0; len];
    let mut done = 0;
    while let Some(rest) = contents.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    contents.truncate(done);
    Ok(contents)
}

/// What goes to the node at once.
#[derive(Default)]
struct Request {
    names: Vec<(PathBuf, Name)>,
    files: Vec<SmallFile>,
    bytes: usize,
}

impl Request {
    fn has_room(&self, file: &SmallFile) -> bool {
        self.files.len() < SMALL_FILES_MAX && self.bytes + bytes_of(file) <= SMALL_FILES_BYTES_MAX
    }

    fn add(&mut self, path: PathBuf, name: Name, file: SmallFile) {
        self.bytes += bytes_of(&file);
        self.names.push((path, name));
        self.files.push(file);
    }

    fn send(
        self,
        context: &Context,
        bucket: &str,
        choices: PutChoices,
        settle: &mut dyn FnMut(&Path, Result<Stored, Failure>),
    ) {
        if self.files.is_empty() {
            return;
        }
        let PutChoices { no_dedup, no_clobber, .. } = choices;
        let request = ControlRequest::PutSmall { bucket: bucket.to_owned(), no_dedup, no_clobber, files: self.files };
        let answered = ask(context, &request);
        drop(request);
        match answered {
            Ok(outcomes) if outcomes.len() == self.names.len() => {
                for ((path, name), outcome) in self.names.into_iter().zip(outcomes) {
                    settle(&path, stored(name, outcome));
                }
            }
            answered => {
                let Failure { code, message } = answered.err().unwrap_or_else(unanswered);
                for (path, _) in self.names {
                    settle(&path, Err(Failure { code, message: message.clone() }));
                }
            }
        }
    }
}

fn bytes_of(file: &SmallFile) -> usize {
    let target = file.metadata.symlink_target.as_ref().map_or(0, Vec::len);
    file.contents.0.len() + file.key.len() + target + FILE_OVERHEAD_BYTES
}

fn ask(context: &Context, request: &ControlRequest) -> Result<Vec<SmallStored>, Failure> {
    match context.exchange(request)? {
        ControlEvent::StoredSmall { outcomes } => Ok(outcomes),
        _ => Err(unanswered()),
    }
}

fn stored(name: Name, outcome: SmallStored) -> Result<Stored, Failure> {
    match outcome {
        SmallStored::Stored { content, bytes, bytes_new } => Ok(Stored { name, content, bytes, bytes_new }),
        SmallStored::Failed { code, message } => Err(Failure { code, message }),
    }
}
