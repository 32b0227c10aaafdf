//! One operation against one node, over its control socket, with every byte that comes back checked.
//!
//! | what | how |
//! | --- | --- |
//! | small: put, get | by `PutSmall` and `GetSmall` on a connection that the worker keeps |
//! | put, fits a pipe | a pipe that holds the content already |
//! | put, longer | a pipe that a second thread feeds; with `--via memfd` or `file` a file |
//! | get, range | a pipe, checked while it runs; by a second thread when it may run for long |
//! | removal | without a descriptor |
//!
//! All but the first are commands: each connects, and passes at most one descriptor. Objects are small when the longest
//! that the run may put fits a request: who gets one then need not know its length. With `--disable-keepalive` none is.
//! What a node calls too long for its answer is asked for by a command.
//!
//! What a put reads is made before its time is taken, and a file is on the disk by then: neither making nor writing back
//! counts against the node. A pipe that must be fed is the exception: its bytes are made while the node reads.
//!
//! A pipe's size is asked for, not assumed: the kernel gives small ones to a user who has many.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use gabion::cli::exit::{Exit, Failure};
use gabion::format::name::Metadata;
use gabion::limits::SMALL_CHUNK_BYTES_MAX;
use gabion::node::control::{
    Bytes, ControlEvent, ControlRequest, OutputKind, SmallFetched, SmallFile, SmallStored, Target,
};
use rustix::fs::MemfdFlags;

use crate::beside::{Compared, PutBeside};
use crate::connection::{Connection, Kept, Line};
use crate::content::{Check, Content, Contents};
use crate::ledger::Ledger;
use crate::measure::Recorder;
use crate::nodes::Node;

/// What is generated or checked at once.
const PIECE_BYTES: usize = 256 << 10;
/// Asked for the pipes of long transfers: what an ordinary user may have.
const LONG_PIPE_BYTES: usize = 1 << 20;

/// What a put of more than a pipe holds comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Via {
    /// A pipe, fed while the node reads
    Pipe,
    /// An anonymous file in memory, written before the node is asked
    Memfd,
    /// A file without a name in --dir, written before the node is asked
    File,
}

/// How an operation went wrong.
#[derive(Debug)]
pub enum Trouble {
    /// A byte that is not the one put in (exit code 6), or an acknowledged object that is not there (exit code 4): ends the
    /// run, whatever else happens.
    Wrong(Failure),
    Failed(Failure),
}

impl Trouble {
    fn wrong(message: String) -> Self {
        Self::Wrong(Failure::new(Exit::Integrity, message))
    }

    fn here(error: io::Error) -> Self {
        Self::Failed(Failure::other(format!("loadgen itself: {error}")))
    }
}

/// What all workers share.
#[derive(Debug)]
pub struct Subject {
    pub contents: Contents,
    pub ledger: Ledger,
    pub bucket: String,
    pub via: Via,
    pub no_dedup: bool,
    /// Whole objects go over connections that are kept: all of them are small.
    pub keepalive: bool,
    /// An object whose content is not one of `contents`.
    pub beside: Option<PutBeside>,
    /// Where files for `--via file` are made.
    pub scratch: PathBuf,
}

/// One worker's means for one operation.
#[derive(Debug)]
pub struct Operation<'a> {
    pub subject: &'a Subject,
    pub node: &'a Node,
    pub recorder: &'a Recorder,
    pub line: &'a Line,
    /// The worker's connection to this node.
    pub kept: &'a mut Kept,
}

/// Contents as a put reads them.
pub trait Feed: Sync {
    fn len_bytes(&self) -> u64;

    /// Writes all of it, and says piece by piece how much went.
    fn feed(&self, out: &mut dyn Write, moved: &dyn Fn(u64)) -> io::Result<()>;
}

impl Feed for Content {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn feed(&self, out: &mut dyn Write, moved: &dyn Fn(u64)) -> io::Result<()> {
        let mut piece = vec![0; PIECE_BYTES.min(self.len as usize)];
        let mut offset = 0;
        while offset < self.len {
            let count = (self.len - offset).min(PIECE_BYTES as u64);
            let part = piece.get_mut(..count as usize).unwrap_or_default();
            self.fill(offset, part);
            out.write_all(part)?;
            moved(count);
            offset += count;
        }
        Ok(())
    }
}

/// What a put reads.
#[derive(Debug)]
pub enum Source {
    /// Small, and sent within the request.
    Bytes(Vec<u8>),
    /// A pipe or a file that holds all of it.
    Whole(OwnedFd),
    /// A pipe that is fed while the node reads.
    Fed(PipeReader, PipeWriter),
}

/// What a node says that it stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub bytes: u64,
    /// Of chunks that were not there before.
    pub bytes_new: u64,
}

/// What a read asks for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub number: u64,
    /// First byte and length.
    pub range: Option<(u64, u64)>,
    /// Past what the asked node holds itself.
    pub remote: bool,
}

impl Subject {
    /// Makes what a put of this content reads.
    pub fn source(&self, content: &impl Feed) -> Result<Source, Trouble> {
        self.make_source(content).map_err(Trouble::here)
    }

    fn make_source(&self, content: &impl Feed) -> io::Result<Source> {
        if self.keepalive && content.len_bytes() <= SMALL_CHUNK_BYTES_MAX as u64 {
            let mut bytes = Vec::with_capacity(content.len_bytes() as usize);
            content.feed(&mut bytes, &|_| ())?;
            return Ok(Source::Bytes(bytes));
        }
        let (reader, mut writer) = io::pipe()?;
        if content.len_bytes() <= capacity(&writer) {
            content.feed(&mut writer, &|_| ())?;
            return Ok(Source::Whole(reader.into()));
        }
        if self.via == Via::Pipe {
            widen(&writer);
            return Ok(Source::Fed(reader, writer));
        }
        let mut file = self.file()?;
        content.feed(&mut file, &|_| ())?;
        if self.via == Via::File {
            file.sync_data()?;
        }
        Ok(Source::Whole(file.into()))
    }

    /// An empty file that nobody else sees.
    fn file(&self) -> io::Result<File> {
        if self.via == Via::Memfd {
            return Ok(rustix::fs::memfd_create("loadgen", MemfdFlags::CLOEXEC)?.into());
        }
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.scratch, flags, rustix::fs::Mode::RUSR)?.into())
    }
}

impl Operation<'_> {
    /// Writes this content to the object.
    pub fn put(&mut self, number: u64, content: &impl Feed, source: Source, no_dedup: bool) -> Result<Stored, Trouble> {
        let len = content.len_bytes();
        let answer = match source {
            Source::Bytes(contents) => self
                .send_small(number, contents, no_dedup)
                .inspect(|stored| self.recorder.moved(stored.bytes))
                .map(Some),
            Source::Whole(descriptor) => {
                let mut moved = 0;
                let mut note = |done: u64| {
                    self.recorder.moved(done.saturating_sub(moved));
                    moved = moved.max(done);
                };
                let answer = self.send_content(number, len, descriptor, no_dedup, &mut note);
                answer.inspect(|stored| note(stored.map_or(0, |stored| stored.bytes)))
            }
            Source::Fed(reader, mut writer) => std::thread::scope(|scope| {
                // It ends with a broken pipe when the node stops reading; the node's answer then says why.
                let recorder = self.recorder;
                scope.spawn(move || content.feed(&mut writer, &|bytes| recorder.moved(bytes)));
                self.send_content(number, len, reader.into(), no_dedup, &mut |_| ())
            }),
        };
        match answer.map_err(|failure| Trouble::Failed(failure.at(format!("put of {}", key(number)))))? {
            Some(stored) if stored.bytes == len => Ok(stored),
            stored => {
                let bytes = stored.map(|stored| stored.bytes);
                Err(Trouble::wrong(format!("put of {}: the node stored {bytes:?} bytes of {len}", key(number))))
            }
        }
    }

    /// `on_progress` hears how much of the content the node has done so far.
    fn send_content(
        &self,
        number: u64,
        len: u64,
        descriptor: OwnedFd,
        no_dedup: bool,
        on_progress: &mut dyn FnMut(u64),
    ) -> Result<Option<Stored>, Failure> {
        let request = ControlRequest::Put {
            bucket: self.subject.bucket.clone(),
            key: key(number),
            no_dedup,
            no_clobber: false,
            metadata: metadata(),
            length_hint: Some(len),
        };
        let mut stored = None;
        self.ask(&request, Some(descriptor), |event| match event {
            ControlEvent::Progress { done, .. } => on_progress(done),
            ControlEvent::Stored { bytes, bytes_new, .. } => stored = Some(Stored { bytes, bytes_new }),
            _ => {}
        })?;
        Ok(stored)
    }

    fn send_small(&mut self, number: u64, contents: Vec<u8>, no_dedup: bool) -> Result<Stored, Failure> {
        let request = ControlRequest::PutSmall {
            bucket: self.subject.bucket.clone(),
            no_dedup,
            no_clobber: false,
            files: vec![SmallFile { key: key(number), metadata: metadata(), contents: Bytes(contents) }],
        };
        let stored = self.kept.exchange(self.node, self.line, &request, |event| match event {
            ControlEvent::StoredSmall { outcomes } => only(outcomes),
            _ => None,
        })?;
        match stored {
            SmallStored::Stored { bytes, bytes_new, .. } => Ok(Stored { bytes, bytes_new }),
            SmallStored::Failed { code, message } => Err(Failure { code, message }),
        }
    }

    pub fn remove(&self, number: u64) -> Result<(), Trouble> {
        let request = ControlRequest::Remove { bucket: self.subject.bucket.clone(), key: key(number) };
        let answer = self.ask(&request, None, |_| ());
        answer.map_err(|failure| Trouble::Failed(failure.at(format!("rm of {}", key(number)))))
    }

    /// Reads and checks; the bytes read. 0 also for an object that may be absent and is.
    pub fn read(&mut self, wanted: Wanted) -> Result<u64, Trouble> {
        if let Some(put) = self.subject.beside.filter(|put| put.number == wanted.number) {
            self.read_put(put, wanted)
        } else if self.subject.keepalive && wanted.range.is_none() {
            self.read_small(wanted)
        } else {
            self.read_by_command(wanted)
        }
    }

    fn read_small(&mut self, wanted: Wanted) -> Result<u64, Trouble> {
        let floor = self.subject.ledger.floor(wanted.number);
        let request = ControlRequest::GetSmall { targets: vec![self.target(&wanted)], remote: wanted.remote };
        let fetched = self.kept.exchange(self.node, self.line, &request, |event| match event {
            ControlEvent::FetchedSmall { outcomes } => only(outcomes),
            _ => None,
        });
        let mut check = self.begin_check(&wanted, floor);
        let answer = match fetched {
            Ok(SmallFetched::Contents { contents: Bytes(found), .. }) => {
                self.recorder.moved(found.len() as u64);
                check.feed(&found).map_err(|at| self.wrong(&wanted, floor, at, 0, &found))?;
                Ok(())
            }
            Ok(SmallFetched::Failed { code, message }) => Err(Failure { code, message }),
            Ok(SmallFetched::Large { .. }) => return self.read_by_command(wanted),
            Err(failure) => Err(failure),
        };
        self.judge(&wanted, floor, answer, check.finish().map(|()| check.seen()))
    }

    fn target(&self, wanted: &Wanted) -> Target {
        Target::Name { bucket: self.subject.bucket.clone(), key: key(wanted.number) }
    }

    fn get(&self, wanted: &Wanted) -> ControlRequest {
        ControlRequest::Get {
            target: self.target(wanted),
            range: wanted.range.map(|(first, len)| (first, first + len.max(1) - 1)),
            remote: wanted.remote,
            resume: false,
            output: OutputKind::Stream,
        }
    }

    fn read_by_command(&self, wanted: Wanted) -> Result<u64, Trouble> {
        let floor = self.subject.ledger.floor(wanted.number);
        let request = self.get(&wanted);
        let (reader, writer) = io::pipe().map_err(Trouble::here)?;
        let bytes_max = wanted.range.map_or(self.subject.contents.sizes.bytes_max, |(_, len)| len);
        let (answer, checked) = if bytes_max <= capacity(&writer) {
            let connection = self.begin(&request, Some(writer.into()));
            let checked = self.check(&wanted, floor, reader);
            (connection.and_then(|connection| self.finish(connection, |_| ())), checked)
        } else {
            widen(&writer);
            std::thread::scope(|scope| {
                let check = scope.spawn(|| self.check(&wanted, floor, reader));
                let answer = self.ask(&request, Some(writer.into()), |_| ());
                (answer, check.join().unwrap_or_else(|_| Err(Trouble::here(checker_ended()))))
            })
        };
        let check = checked?;
        self.judge(&wanted, floor, answer, check.finish().map(|()| check.seen()))
    }

    /// All of what was put beside the workers.
    fn read_put(&self, put: PutBeside, wanted: Wanted) -> Result<u64, Trouble> {
        let floor = self.subject.ledger.floor(wanted.number);
        let (reader, writer) = io::pipe().map_err(Trouble::here)?;
        widen(&writer);
        let content = put.content(&self.subject.contents);
        let (answer, compared) = std::thread::scope(|scope| {
            let moved = |bytes| self.recorder.moved(bytes);
            // The reader goes with it: the node then need not send what nobody looks at any more.
            let compare = scope.spawn(move || content.compare(reader, &moved));
            let answer = self.ask(&self.get(&wanted), Some(writer.into()), |_| ());
            (answer, compare.join().unwrap_or_else(|_| Err(checker_ended())))
        });
        let came = match compared.map_err(Trouble::here)? {
            Compared::Same => Ok(put.bytes),
            Compared::Short(at) => Err(at),
            Compared::Differs(at) => {
                let (name, node) = (key(wanted.number), self.node.dir.display());
                return Err(Trouble::wrong(format!("get of {name} at {node}: wrong from byte {at} on")));
            }
        };
        self.judge(&wanted, floor, answer, came)
    }

    /// Puts together what the node said and what came: how many bytes, or from where on they are missing.
    fn judge(
        &self,
        wanted: &Wanted,
        floor: u32,
        answer: Result<(), Failure>,
        came: Result<u64, u64>,
    ) -> Result<u64, Trouble> {
        let what = || format!("get of {} at {}", key(wanted.number), self.node.dir.display());
        match answer {
            Ok(()) => came.map_err(|at| Trouble::wrong(format!("{}: nothing more came from byte {at} on", what()))),
            Err(failure) if failure.code == Exit::NotFound.code() => {
                let mut generations = self.subject.ledger.acceptable(wanted.number, floor);
                if generations.any(|generation| self.subject.ledger.is_absent(wanted.number, generation)) {
                    return Ok(0);
                }
                let message = format!("{}: acknowledged and not there: {}", what(), failure.message);
                Err(Trouble::Wrong(Failure::new(Exit::NotFound, message)))
            }
            Err(failure) => Err(Trouble::Failed(failure.at(what()))),
        }
    }

    /// Checks all that comes out of `reader`.
    fn check(&self, wanted: &Wanted, floor: u32, mut reader: PipeReader) -> Result<Check, Trouble> {
        let bytes_max = wanted.range.map_or(self.subject.contents.sizes.bytes_max, |(_, len)| len);
        // One more than can be right, so that an excess is seen at once.
        let mut piece = vec![0; bytes_max.saturating_add(1).min(PIECE_BYTES as u64) as usize];
        let mut check = None;
        loop {
            let count = match reader.read(&mut piece) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Trouble::here(error)),
            };
            // Which contents are right is known once the node has decided: when it sends.
            let check = check.get_or_insert_with(|| self.begin_check(wanted, floor));
            if count == 0 {
                break;
            }
            self.recorder.moved(count as u64);
            let found = piece.get(..count).unwrap_or_default();
            let offset = wanted.range.map_or(0, |(first, _)| first) + check.seen();
            check.feed(found).map_err(|at| self.wrong(wanted, floor, at, offset, found))?;
        }
        Ok(check.unwrap_or_else(|| self.begin_check(wanted, floor)))
    }

    fn begin_check(&self, wanted: &Wanted, floor: u32) -> Check {
        let ledger = &self.subject.ledger;
        let contents = ledger
            .acceptable(wanted.number, floor)
            .filter(|generation| !ledger.is_absent(wanted.number, *generation))
            .map(|generation| self.subject.contents.of(wanted.number, generation))
            .collect();
        match wanted.range {
            None => Check::whole(contents),
            Some((first, len)) => Check::range(contents, first, len),
        }
    }

    /// Says what came instead, where that can be known.
    fn wrong(&self, wanted: &Wanted, floor: u32, at: u64, offset: u64, found: &[u8]) -> Trouble {
        let is_of =
            |generation: &u32| self.subject.contents.of(wanted.number, *generation).difference(offset, found).is_none();
        let instead = match (1..floor).rev().find(is_of) {
            Some(generation) => format!("these bytes are of write {generation}, but write {floor} was acknowledged"),
            None => "no write of it has these bytes there".to_owned(),
        };
        let (name, node) = (key(wanted.number), self.node.dir.display());
        Trouble::wrong(format!("get of {name} at {node}: wrong from byte {at} on: {instead}"))
    }

    /// One connection, one command.
    fn ask(
        &self,
        request: &ControlRequest,
        descriptor: Option<OwnedFd>,
        on_event: impl FnMut(ControlEvent),
    ) -> Result<(), Failure> {
        self.finish(self.begin(request, descriptor)?, on_event)
    }

    /// The descriptor is the node's alone afterwards: only then does either end of a pipe see the other one go.
    fn begin(&self, request: &ControlRequest, descriptor: Option<OwnedFd>) -> Result<Connection, Failure> {
        let mut connection = Connection::to(self.node)?;
        self.line.hold(&connection);
        connection.client.send(request, descriptor.as_ref().map(AsFd::as_fd))?;
        Ok(connection)
    }

    fn finish(&self, mut connection: Connection, mut on_event: impl FnMut(ControlEvent)) -> Result<(), Failure> {
        let answer = loop {
            match connection.client.next_event() {
                Ok(ControlEvent::Done) => break Ok(()),
                Ok(event) => on_event(event),
                Err(error) => break Err(error.into()),
            }
        };
        self.line.release();
        answer
    }
}

/// An object's key in its bucket.
pub fn key(number: u64) -> String {
    format!("object-{number}")
}

fn checker_ended() -> io::Error {
    io::Error::other("the checking thread ended")
}

/// Of every object.
fn metadata() -> Metadata {
    Metadata { mode: 0o100_644, ..Metadata::default() }
}

/// The outcome of a request for one object.
fn only<T>(outcomes: Vec<T>) -> Option<T> {
    <[T; 1]>::try_from(outcomes).ok().map(|[outcome]| outcome)
}

/// What goes into a pipe before its writer must wait.
fn capacity(pipe: &PipeWriter) -> u64 {
    rustix::pipe::fcntl_getpipe_size(pipe).unwrap_or(0) as u64
}

fn widen(pipe: &PipeWriter) {
    // As it is, it works too.
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, LONG_PIPE_BYTES);
}

#[cfg(test)]
mod tests;
