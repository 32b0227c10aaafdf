//! Objects of one kind, put and got back by several threads.
//!
//! Small objects go through pipes, which hold them whole, so that nothing touches a disk but the node. Large ones go
//! through files.

use std::fs::File;
use std::io::{self, PipeReader, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gabion::format::name::Metadata;
use gabion::node::control::{ControlEvent, ControlRequest, OutputKind, Target};

use crate::Failure;
use crate::contents::Object;
use crate::node::Node;

/// What a pipe takes before its writer must wait.
const PIPE_BYTES: u64 = 64 << 10;

pub struct Workload {
    pub kind: &'static str,
    pub count: u64,
    pub bytes_max: u64,
    pub fixed: bool,
    pub threads: usize,
}

pub struct Report {
    pub objects: u64,
    pub bytes: u64,
    pub took: Duration,
}

impl Workload {
    pub fn put_all(&self, node: &Node, seed: u64) -> Result<Report, Failure> {
        self.each(seed, |object| self.put(node, object))
    }

    pub fn get_all(&self, node: &Node, seed: u64) -> Result<Report, Failure> {
        self.each(seed, |object| self.get(node, object))
    }

    /// Runs `work` on every object; the first failure stops all threads.
    fn each(&self, seed: u64, work: impl Fn(&Object) -> Result<(), Failure> + Sync) -> Result<Report, Failure> {
        let (next, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let failure = Mutex::new(None);
        let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.count || failed().is_some() {
                            return;
                        }
                        let object = Object::new(seed, number, self.bytes_max, self.fixed);
                        match work(&object) {
                            Ok(()) => bytes.fetch_add(object.len, Ordering::Relaxed),
                            Err(error) => {
                                failed().get_or_insert(error);
                                return;
                            }
                        };
                    }
                });
            }
        });
        let took = started.elapsed();
        match failed().take() {
            Some(failure) => Err(failure),
            None => Ok(Report { objects: self.count, bytes: bytes.into_inner(), took }),
        }
    }

    fn key(&self, object: &Object) -> String {
        format!("{}/{}", self.kind, object.number)
    }

    fn fits_a_pipe(&self) -> bool {
        self.bytes_max <= PIPE_BYTES
    }

    fn put(&self, node: &Node, object: &Object) -> Result<(), Failure> {
        let request = ControlRequest::Put {
            bucket: "load".to_owned(),
            key: self.key(object),
            no_dedup: false,
            no_clobber: false,
            metadata: Metadata { mode: 0o100_644, ..Metadata::default() },
            length_hint: Some(object.len),
        };
        let mut stored = None;
        let mut send = |descriptor: BorrowedFd<'_>| {
            let result = node.connect()?.run(&request, Some(descriptor), |event| {
                if let ControlEvent::Stored { bytes, .. } = event {
                    stored = Some(bytes);
                }
            });
            result.map_err(|error| Failure::other(format!("put of {}: {error}", self.key(object))))
        };
        if self.fits_a_pipe() {
            send(full_pipe(object).map_err(Failure::other)?.as_fd())?;
        } else {
            let mut file = scratch_file(node).map_err(Failure::other)?;
            object.write_to(&mut file).map_err(Failure::other)?;
            send(file.as_fd())?;
        }
        match stored {
            Some(bytes) if bytes == object.len => Ok(()),
            other => Err(Failure::WrongByte(format!("{}: {other:?} bytes stored of {}", self.key(object), object.len))),
        }
    }

    fn get(&self, node: &Node, object: &Object) -> Result<(), Failure> {
        if self.fits_a_pipe() {
            let (mut reader, writer) = io::pipe().map_err(Failure::other)?;
            self.fetch(node, object, writer.as_fd(), OutputKind::Stream)?;
            drop(writer);
            return self.check(object, &mut reader);
        }
        let mut file = scratch_file(node).map_err(Failure::other)?;
        self.fetch(node, object, file.as_fd(), OutputKind::File)?;
        file.rewind().map_err(Failure::other)?;
        self.check(object, &mut file)
    }

    fn fetch(&self, node: &Node, object: &Object, descriptor: BorrowedFd<'_>, kind: OutputKind) -> Result<(), Failure> {
        let request = ControlRequest::Get {
            target: Target::Name { bucket: "load".to_owned(), key: self.key(object) },
            range: None,
            remote: false,
            resume: false,
            output: kind,
        };
        let result = node.connect()?.run(&request, Some(descriptor), |_| ());
        result.map_err(|error| Failure::other(format!("get of {}: {error}", self.key(object))))
    }

    fn check(&self, object: &Object, input: &mut dyn Read) -> Result<(), Failure> {
        match object.difference(input).map_err(Failure::other)? {
            None => Ok(()),
            Some(at) => Err(Failure::WrongByte(format!("{} differs at byte {at} of {}", self.key(object), object.len))),
        }
    }
}

/// The reading end of a pipe that holds the whole object.
fn full_pipe(object: &Object) -> io::Result<PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    object.write_to(&mut writer)?;
    Ok(reader)
}

/// A file without a name.
fn scratch_file(node: &Node) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = node.scratch().join(format!("large-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
