//! `gabion get` and `gabion cat`: one file into a file, or in order to standard output.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{CatArguments, GetArguments};
use super::context::{Context, unanswered};
use super::exit::{Exit, Failure};
use super::part::{Part, PartOf, make_symlink};
use super::progress::Progress;
use super::target::Wanted;
use super::{get_link, get_tree, interrupt, output};
use crate::format::link::Link;
use crate::format::name::Metadata;
use crate::format::{Address, ContentId};
use crate::limits::GET_ATTEMPTS_MAX;
use crate::node::control::{ControlEvent, ControlRequest, Entry, NodeClass, OUTPUT_CLOSED, OutputKind, Target};
use crate::vault::PlainOutput;

#[derive(Clone, Copy, Default)]
pub struct GetChoices {
    pub range: Option<(u64, u64)>,
    pub remote: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    pub content: Address,
    /// Written by this get.
    pub bytes: u64,
    /// In the output before it, and right.
    pub bytes_resumed: u64,
}

impl Fetched {
    pub fn total(&self) -> u64 {
        self.bytes + self.bytes_resumed
    }
}

pub fn run(context: &Context, arguments: &GetArguments) -> Result<(), Failure> {
    let choices = GetChoices { range: arguments.range, remote: arguments.remote };
    if arguments.recursive {
        return get_tree::run(context, &arguments.target, arguments.output.as_deref(), choices);
    }
    let wanted = Wanted::parse(&arguments.target)?;
    if arguments.output.as_deref() == Some(Path::new("-")) {
        return to_stdout(context, &wanted, choices);
    }
    let path = output_path(&wanted, arguments.output.clone())?;
    if is_special(&path) {
        let file = OpenOptions::new().write(true).open(&path);
        let file = file.map_err(|error| Failure::other(format!("{} cannot be opened: {error}", path.display())))?;
        return to_stream(context, &wanted, file.as_fd(), choices);
    }
    let mut progress = context.display.start(&wanted.to_string());
    let fetched = to_file(context, &wanted, &path, choices, &mut progress)?;
    drop(progress);
    print(context, &wanted.to_string(), &path, fetched)
}

pub fn cat(context: &Context, arguments: &CatArguments) -> Result<(), Failure> {
    let choices = GetChoices { range: arguments.range, remote: arguments.remote };
    to_stdout(context, &Wanted::parse(&arguments.target)?, choices)
}

pub fn print(context: &Context, wanted: &str, path: &Path, fetched: Fetched) -> Result<(), Failure> {
    context.display.suspend(|| output::line(&line_of(context, wanted, path, fetched)))
}

/// What is said of a file that was fetched, without the end of the line.
pub fn line_of(context: &Context, wanted: &str, path: &Path, fetched: Fetched) -> String {
    let (content, bytes, bytes_resumed) = (ContentId(fetched.content), fetched.total(), fetched.bytes_resumed);
    if context.json {
        return json!({
            "source": wanted,
            "output": path.display().to_string(),
            "content": content.to_string(),
            "bytes": bytes,
            "bytes_resumed": bytes_resumed,
        })
        .to_string();
    }
    let path = output::one_line(&path.display().to_string());
    format!("{path}  {content}  {bytes} bytes  {bytes_resumed} were there")
}

/// What the node knows of it. A link says itself what can be known.
pub fn stat(context: &Context, wanted: &Wanted) -> Result<Entry, Failure> {
    if let Wanted::Link(link) = wanted {
        return Ok(Entry {
            bucket: String::new(),
            key: String::new(),
            content: link.root,
            length: link.length,
            metadata: Metadata::default(),
            stamp_ms: 0,
        });
    }
    context.ask(&ControlRequest::Stat { target: wanted.request() }, |event| match event {
        ControlEvent::Entry { entry } => Some(entry),
        _ => None,
    })
}

/// Into a file that appears whole or not at all.
pub fn to_file(
    context: &Context,
    wanted: &Wanted,
    path: &Path,
    choices: GetChoices,
    progress: &mut Progress,
) -> Result<Fetched, Failure> {
    for _ in 0..GET_ATTEMPTS_MAX {
        let entry = stat(context, wanted)?;
        let of = PartOf { content: entry.content, range: choices.range };
        if let Some(target) = &entry.metadata.symlink_target {
            make_symlink(path, target, of)?;
            return Ok(Fetched { content: entry.content, bytes: 0, bytes_resumed: 0 });
        }
        let part = Part::open(path, of, &entry.metadata)?;
        match fill(context, wanted, &part, &entry, choices, progress) {
            Ok(Some(fetched)) => {
                let wanted_bytes = output_bytes(entry.length, choices.range);
                if fetched.total() != wanted_bytes {
                    let message = format!("the node wrote {} of {wanted_bytes} bytes; see its log", fetched.total());
                    let failure = Failure::other(message);
                    return Err(abandoned(part, failure, wanted));
                }
                part.finish(wanted_bytes, &entry.metadata)?;
                return Ok(fetched);
            }
            // The name got another content between the question and the read.
            Ok(None) => part.discard(),
            Err(failure) => return Err(abandoned(part, failure, wanted)),
        }
    }
    Err(Failure::other(format!("{wanted} changes faster than it can be read; try again later")))
}

/// What a range of a file of `length` bytes comes to.
fn output_bytes(length: u64, range: Option<(u64, u64)>) -> u64 {
    range.map_or(length, |(first, last)| {
        let range = get_link::clamp(first, last, length);
        range.end - range.start
    })
}

/// None when the content is no longer the one of `entry`.
fn fill(
    context: &Context,
    wanted: &Wanted,
    part: &Part,
    entry: &Entry,
    choices: GetChoices,
    progress: &mut Progress,
) -> Result<Option<Fetched>, Failure> {
    if let Wanted::Link(link) = wanted
        && needs_plain_reading(context)?
    {
        return get_link::read(context, link, PlainOutput::File(&part.file), choices, progress).map(Some);
    }
    let resume = part.bytes_found() > 0;
    let output = Output { descriptor: part.file.as_fd(), kind: OutputKind::File, resume };
    read(context, wanted.request(), output, choices, Some(entry.content), progress)
}

fn abandoned(part: Part, failure: Failure, wanted: &Wanted) -> Failure {
    let kept = part.abandon();
    let message = match (failure.code == Exit::Interrupted.code(), kept) {
        (true, Some(kept)) => {
            format!("interrupted: {} keeps what arrived; the same get started again goes on from there", kept.display())
        }
        (true, None) => "interrupted: nothing was written".to_owned(),
        (false, Some(kept)) => format!("{wanted}: {} (what arrived is kept in {})", failure.message, kept.display()),
        (false, None) => return failure,
    };
    Failure { code: failure.code, message }
}

fn to_stdout(context: &Context, wanted: &Wanted, choices: GetChoices) -> Result<(), Failure> {
    to_stream(context, wanted, io::stdout().as_fd(), choices)
}

fn to_stream(
    context: &Context,
    wanted: &Wanted,
    descriptor: BorrowedFd<'_>,
    choices: GetChoices,
) -> Result<(), Failure> {
    let mut progress = context.display.beside(&descriptor).start(&wanted.to_string());
    if let Wanted::Link(link) = wanted
        && needs_plain_reading(context)?
    {
        return quiet_if_closed(wanted, stream_link(context, link, descriptor, choices, &mut progress));
    }
    let output = Output { descriptor, kind: OutputKind::Stream, resume: false };
    quiet_if_closed(wanted, read(context, wanted.request(), output, choices, None, &mut progress))
}

/// Nobody reads any more: no reason to print anything.
fn quiet_if_closed<T>(wanted: &Wanted, result: Result<T, Failure>) -> Result<(), Failure> {
    match result {
        Ok(_) => Ok(()),
        Err(failure) if failure.code == OUTPUT_CLOSED => Err(Failure::silent(Exit::Other)),
        Err(failure) if failure.code == Exit::Interrupted.code() => {
            Err(Failure::interrupted(format!("interrupted: {wanted} was written in part")))
        }
        Err(failure) => Err(failure),
    }
}

fn stream_link(
    context: &Context,
    link: &Link,
    descriptor: BorrowedFd<'_>,
    choices: GetChoices,
    progress: &mut Progress,
) -> Result<Fetched, Failure> {
    let file = descriptor.try_clone_to_owned().map_err(|error| output::write_failure(&error))?;
    get_link::read(context, link, PlainOutput::Stream(&mut std::fs::File::from(file)), choices, progress)
}

/// A storage node must not see a link's key: there the command decrypts.
fn needs_plain_reading(context: &Context) -> Result<bool, Failure> {
    Ok(context.status()?.class == NodeClass::Storage)
}

struct Output<'a> {
    descriptor: BorrowedFd<'a>,
    kind: OutputKind,
    resume: bool,
}

/// The node writes into the descriptor. None when the content is not the expected one.
fn read(
    context: &Context,
    target: Target,
    output: Output<'_>,
    choices: GetChoices,
    expected: Option<Address>,
    progress: &mut Progress,
) -> Result<Option<Fetched>, Failure> {
    let request = ControlRequest::Get {
        target,
        range: choices.range,
        remote: choices.remote,
        resume: output.resume,
        output: output.kind,
    };
    let mut content = None;
    let mut fetched = None;
    let result = context.run(&request, Some(output.descriptor), |event| {
        match event {
            ControlEvent::Info { metadata, content: found, .. } => {
                if expected.is_some_and(|expected| expected != found) {
                    // Hangs up.
                    return Err(Failure::silent(Exit::Other));
                }
                if let Some(target) = metadata.symlink_target.filter(|_| expected.is_none()) {
                    let target = String::from_utf8_lossy(&target).into_owned();
                    return Err(Failure::other(format!(
                        "it is a symbolic link to {target}; get that, or give -o PATH"
                    )));
                }
                content = Some(found);
            }
            ControlEvent::Progress { done, total, .. } => progress.update(done, total),
            ControlEvent::Fetched { bytes, bytes_resumed } => fetched = Some((bytes, bytes_resumed)),
            _ => {}
        }
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(failure) if failure == Failure::silent(Exit::Other) && expected.is_some() && content.is_none() => {
            return Ok(None);
        }
        Err(failure) => return Err(failure),
    }
    let (Some(content), Some((bytes, bytes_resumed))) = (content, fetched) else { return Err(unanswered()) };
    Ok(Some(Fetched { content, bytes, bytes_resumed }))
}

/// As told, inside a directory if that is what was told, else the last part of the name in this directory.
fn output_path(wanted: &Wanted, given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let path = match given {
        Some(given) if given.is_dir() || given.as_os_str().as_bytes().ends_with(b"/") => {
            given.join(wanted.file_name()?)
        }
        Some(given) => given,
        None => PathBuf::from(wanted.file_name()?),
    };
    if path.is_dir() {
        return Err(Failure::usage(format!("{} is a directory; give -o PATH", path.display())));
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        return Err(Failure::other(format!("there is no directory {}; make it first", parent.display())));
    }
    Ok(path)
}

/// Exists, and is neither a file nor a link to nothing: a pipe, a terminal, /dev/null.
fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Whether a get of several files should go on.
pub fn interrupted() -> Option<Failure> {
    interrupt::requested().then(|| Failure::interrupted("interrupted: the same get started again goes on from there"))
}
