//! `gabion put`: one file, or standard input.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::args::PutArguments;
use super::context::{Context, unanswered};
use super::exit::{Exit, Failure};
use super::output;
use super::progress::Progress;
use super::put_tree;
use super::target::parse_name;
use crate::format::name::{BUCKET_DEFAULT, Metadata, Name};
use crate::format::{Address, ContentId};
use crate::node::control::{ControlEvent, ControlRequest};

/// Mode of what comes from a pipe: a regular file that its owner may write.
const STREAM_MODE: u32 = 0o100_644;

/// What a put was told besides source and name.
#[derive(Clone, Copy)]
pub struct PutChoices {
    pub quiet: bool,
    pub no_dedup: bool,
    pub no_clobber: bool,
}

/// Bytes to store, opened.
pub struct Source {
    /// None for a symbolic link.
    pub descriptor: Option<OwnedFd>,
    pub metadata: Metadata,
    pub length: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Stored {
    pub name: Name,
    pub content: Address,
    pub bytes: u64,
    pub bytes_new: u64,
}

pub fn run(context: &Context, arguments: &PutArguments) -> Result<(), Failure> {
    let choices = PutChoices { quiet: arguments.quiet, no_dedup: arguments.no_dedup, no_clobber: arguments.no_clobber };
    if arguments.recursive {
        return put_tree::run(context, &arguments.path, arguments.name.as_deref(), choices);
    }
    let (source, name) = if arguments.path == Path::new("-") {
        let name = arguments
            .name
            .as_deref()
            .ok_or_else(|| Failure::usage("standard input has no name of its own; give --name BUCKET/KEY"))?;
        (open_stdin()?, parse_name(name)?)
    } else {
        (open_file(&arguments.path)?, name_for(&arguments.path, arguments.name.as_deref())?)
    };
    let mut progress = context.display.start(&name.to_string());
    let stored = store(context, &name, &source, choices, &mut progress)?;
    drop(progress);
    print(context, &stored, choices.quiet)
}

/// Stores one source under one name.
pub fn store(
    context: &Context,
    name: &Name,
    source: &Source,
    choices: PutChoices,
    progress: &mut Progress,
) -> Result<Stored, Failure> {
    let request = ControlRequest::Put {
        bucket: name.bucket().to_owned(),
        key: name.key().to_owned(),
        no_dedup: choices.no_dedup,
        no_clobber: choices.no_clobber,
        metadata: source.metadata.clone(),
        length_hint: source.length,
    };
    let mut stored = None;
    let mut is_being_named = false;
    let result = context.run(&request, source.descriptor.as_ref().map(AsFd::as_fd), |event| {
        match event {
            ControlEvent::Progress { done, total, .. } => progress.update(done, total),
            ControlEvent::Naming => is_being_named = true,
            ControlEvent::Stored { content, bytes, bytes_new, .. } => {
                stored = Some(Stored { name: name.clone(), content, bytes, bytes_new });
            }
            _ => {}
        }
        Ok(())
    });
    match result {
        Ok(()) => stored.ok_or_else(unanswered),
        Err(failure) if failure.code == Exit::Interrupted.code() => Err(interrupted(name, is_being_named)),
        Err(failure) => Err(failure),
    }
}

/// What is known of a put that was cut off: as long as the node has not begun to name it, it will not.
fn interrupted(name: &Name, is_being_named: bool) -> Failure {
    Failure::interrupted(if is_being_named {
        format!("interrupted: {name} may or may not be stored: see gabion stat {name}")
    } else {
        format!("interrupted: {name} is not stored; the same put started again sends only what is missing")
    })
}

pub fn print(context: &Context, stored: &Stored, quiet: bool) -> Result<(), Failure> {
    context.display.suspend(|| output::line(&line_of(context, stored, quiet)))
}

pub fn line_of(context: &Context, stored: &Stored, quiet: bool) -> String {
    let Stored { name, content, bytes, bytes_new } = stored;
    let content = ContentId(*content);
    if context.json {
        let fields = json!({
            "name": name.to_string(),
            "bucket": name.bucket(),
            "key": name.key(),
            "content": content.to_string(),
            "bytes": bytes,
            "bytes_new": bytes_new,
        });
        fields.to_string()
    } else if quiet {
        content.to_string()
    } else {
        let name = output::one_line(&name.to_string());
        format!("{name}  {content}  {bytes} bytes  {bytes_new} new")
    }
}

/// A file by its path; a symbolic link is followed.
pub fn open_file(path: &Path) -> Result<Source, Failure> {
    let fail = |error: &io::Error| unreadable(path, error);
    let found = fs::metadata(path).map_err(|error| fail(&error))?;
    if found.is_dir() {
        return Err(Failure::usage(format!("{} is a directory; give -r to store it and all in it", path.display())));
    }
    let file = File::open(path).map_err(|error| fail(&error))?;
    // Of what was opened, not of what the path names by now.
    let found = file.metadata().map_err(|error| fail(&error))?;
    let length = found.is_file().then_some(found.len());
    Ok(Source { descriptor: Some(file.into()), metadata: metadata_of(&found), length })
}

/// Why a file or directory to be stored cannot be.
pub fn unreadable(path: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::new(Exit::NotFound, format!("{}: no such file; check the path", path.display()))
        }
        io::ErrorKind::PermissionDenied => Failure::other(format!(
            "{} cannot be read: {error}; run the command as a user who may read it",
            path.display()
        )),
        _ => Failure::other(format!("{} cannot be read: {error}", path.display())),
    }
}

/// Modification time and mode, as a name keeps them.
pub fn metadata_of(found: &fs::Metadata) -> Metadata {
    Metadata {
        mtime_s: found.mtime(),
        mtime_ns: u32::try_from(found.mtime_nsec()).unwrap_or(0),
        mode: found.mode(),
        ..Metadata::default()
    }
}

fn open_stdin() -> Result<Source, Failure> {
    let fail = |error: io::Error| Failure::other(format!("standard input cannot be read: {error}"));
    let mut file = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(fail)?);
    let found = file.metadata().map_err(fail)?;
    if found.is_dir() {
        return Err(Failure::usage("standard input is a directory; give its path and -r"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let metadata = Metadata {
        mtime_s: i64::try_from(now.as_secs()).unwrap_or(0),
        mtime_ns: now.subsec_nanos(),
        mode: STREAM_MODE,
        ..Metadata::default()
    };
    if !found.is_file() {
        return Ok(Source { descriptor: Some(file.into()), metadata, length: None });
    }
    // The node reads a regular file from its first byte, but standard input may stand further in.
    if file.stream_position().map_err(fail)? == 0 {
        return Ok(Source { descriptor: Some(file.into()), metadata, length: Some(found.len()) });
    }
    let descriptor = through_a_pipe(file).map_err(fail)?;
    Ok(Source { descriptor: Some(descriptor), metadata, length: None })
}

fn through_a_pipe(mut file: File) -> io::Result<OwnedFd> {
    let (reader, mut writer) = io::pipe()?;
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        if let Err(error) = io::copy(&mut file, &mut writer) {
            // An end of input here would store half a file: rather no file.
            output::warn(&format!("standard input cannot be read: {error}"), false);
            std::process::exit(i32::from(Exit::Other.code()));
        }
    })?;
    Ok(reader.into())
}

/// As told; a name that ends in a slash gets the file's own name; without a name it is the file's own in `main`.
fn name_for(path: &Path, given: Option<&str>) -> Result<Name, Failure> {
    let own = || {
        path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Failure::usage(format!("{} has no name that is UTF-8 text; give --name BUCKET/KEY", path.display()))
        })
    };
    match given {
        Some(given) if given.ends_with('/') => parse_name(&format!("{given}{}", own()?)),
        Some(given) => parse_name(given),
        None => Name::new(BUCKET_DEFAULT, own()?).map_err(|error| Failure::usage(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_an_interrupted_put_is_what_is_known() {
        let name = parse_name("main/film").unwrap();
        assert!(interrupted(&name, false).message.contains("main/film is not stored"));
        assert!(interrupted(&name, true).message.contains("may or may not be stored: see gabion stat main/film"));
        assert_eq!(interrupted(&name, true).code, Exit::Interrupted.code());
    }

    #[test]
    fn only_what_is_not_there_is_not_found() {
        let code = |kind: io::ErrorKind| unreadable(Path::new("tree"), &kind.into()).code;
        assert_eq!(code(io::ErrorKind::NotFound), Exit::NotFound.code());
        assert_eq!(code(io::ErrorKind::PermissionDenied), Exit::Other.code());
        assert_eq!(code(io::ErrorKind::NotADirectory), Exit::Other.code());
    }

    #[test]
    fn a_file_gets_its_own_name_in_main_unless_told() {
        let named = |given| name_for(Path::new("/a/film.mkv"), given).map(|name| name.to_string());
        assert_eq!(named(None).unwrap(), "main/film.mkv");
        assert_eq!(named(Some("x/y/z")).unwrap(), "x/y/z");
        assert_eq!(named(Some("x/")).unwrap(), "x/film.mkv");
        assert_eq!(named(Some("x/y/")).unwrap(), "x/y/film.mkv");
        assert_eq!(named(Some("UPPER/y")).unwrap_err().code, Exit::Usage.code());
        assert_eq!(name_for(Path::new(".."), None).unwrap_err().code, Exit::Usage.code());
    }
}
