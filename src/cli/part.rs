//! The file that a get writes to until it is whole: `.NAME.ID.gabion-part` beside the output.
//!
//! Its name follows from the output, the content and the range, so that the same get started again finds it and goes
//! on. It is locked while a get writes to it. It becomes the output by a rename after mode, mtime and fsync, so the
//! output appears whole or not at all, and stays after a crash. Those of small files are synced many at once
//! (`get_small.rs`).

use std::fs::{self, File, FileTimes, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::exit::Failure;
use super::interrupt;
use crate::format::name::Metadata;
use crate::format::{Address, ContentId};
use crate::limits::{PART_LOCK_RETRY_INTERVAL, PART_LOCK_WAIT_MAX};

/// Bytes of the output's name that go into the part's name: a name has at most 255 of them.
const NAME_BYTES_MAX: usize = 180;
/// Characters of the content id that go into the part's name.
const ID_CHARACTERS: usize = 16;
/// Permission bits that a get restores: set-uid, set-gid and sticky are not.
const MODE_MASK: u32 = 0o777;

pub struct Part {
    pub file: File,
    path: PathBuf,
    output: PathBuf,
}

/// What decides a part's name besides the output.
#[derive(Clone, Copy)]
pub struct PartOf {
    pub content: Address,
    pub range: Option<(u64, u64)>,
}

impl Part {
    /// Opens the part of `output`, new or as an earlier get left it, and locks it.
    pub fn open(output: &Path, of: PartOf, metadata: &Metadata) -> Result<Self, Failure> {
        let path = part_path(output, of)?;
        let fail = |error: &io::Error| Failure::other(format!("{} cannot be written: {error}", path.display()));
        let mode = if metadata.mode == 0 { 0o666 } else { 0o600 };
        let deadline = Instant::now() + PART_LOCK_WAIT_MAX;
        loop {
            let file = open_regular(&path, mode).map_err(|error| fail(&error))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if Instant::now() < deadline && !interrupt::requested() => {
                    std::thread::sleep(PART_LOCK_RETRY_INTERVAL);
                    continue;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Failure::other(format!(
                        "another gabion get is writing {}; wait for it, or choose another -o PATH",
                        output.display()
                    )));
                }
                Err(TryLockError::Error(error)) => return Err(fail(&error)),
            }
            // Whoever held the lock may have renamed or removed the file in the meantime.
            if same_file(&file, &path).map_err(|error| fail(&error))? {
                return Ok(Self { file, path: path.clone(), output: output.to_owned() });
            }
        }
    }

    /// Bytes that an earlier get left.
    pub fn bytes_found(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// The part, complete, becomes the output.
    pub fn finish(self, length: u64, metadata: &Metadata) -> Result<(), Failure> {
        self.try_finish(length, metadata)
            .map_err(|error| Failure::other(format!("{} cannot be completed: {error}", self.output.display())))
    }

    fn try_finish(&self, length: u64, metadata: &Metadata) -> io::Result<()> {
        self.complete(length, metadata)?;
        self.file.sync_all()?;
        self.publish()?;
        sync_parent(&self.output)
    }

    /// All that the output is to be, but durable and in its place.
    pub fn complete(&self, length: u64, metadata: &Metadata) -> io::Result<()> {
        let found = self.file.metadata()?.len();
        if found < length {
            return Err(io::Error::other(format!("{found} bytes were written instead of {length}")));
        }
        if found > length {
            self.file.set_len(length)?;
        }
        if metadata.mode != 0 {
            self.file.set_permissions(Permissions::from_mode(metadata.mode & MODE_MASK))?;
            if let Some(time) = modified(metadata) {
                self.file.set_times(FileTimes::new().set_modified(time))?;
            }
        }
        Ok(())
    }

    /// Becomes the output; durable already, and the directory is not synced.
    pub fn publish(&self) -> io::Result<()> {
        fs::rename(&self.path, &self.output)
    }

    /// After a failure: keeps what a later get can use, and says what became of it.
    pub fn abandon(self) -> Option<PathBuf> {
        if self.bytes_found() > 0 {
            return Some(self.path);
        }
        // Empty: of no use to anybody. That it cannot be removed changes nothing.
        let _ = fs::remove_file(&self.path);
        None
    }

    /// Removes it: what it holds is of no use any more.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the symbolic link `output` in one step, in place of a file but never of a directory.
pub fn make_symlink(output: &Path, target: &[u8], of: PartOf) -> Result<(), Failure> {
    use std::os::unix::ffi::OsStrExt;
    let make = || {
        let path = part_path(output, of).map_err(|failure| io::Error::other(failure.message))?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(std::ffi::OsStr::from_bytes(target), &path)?;
        fs::rename(&path, output).inspect_err(|_| drop(fs::remove_file(&path)))?;
        sync_parent(output)
    };
    make().map_err(|error| Failure::other(format!("the symbolic link {} cannot be made: {error}", output.display())))
}

fn part_path(output: &Path, of: PartOf) -> Result<PathBuf, Failure> {
    let name = output
        .file_name()
        .ok_or_else(|| Failure::usage(format!("{} does not end in a file name", output.display())))?
        .to_string_lossy()
        .into_owned();
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let name = name.get(..end).unwrap_or_default();
    let id: String = ContentId(of.content).to_string().chars().skip(3).take(ID_CHARACTERS).collect();
    let range = of.range.map(|(first, last)| format!(".{first}-{last}")).unwrap_or_default();
    Ok(output.with_file_name(format!(".{name}.{id}{range}.gabion-part")))
}

/// Opens for reading and writing without following a symbolic link that somebody put there.
fn open_regular(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.clone().create_new(true).mode(mode).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("it is in the way and no regular file; remove it"));
    }
    let file = options.open(path)?;
    if !same_file(&file, path)? {
        return Err(io::Error::other("it changed while it was opened; try again"));
    }
    Ok(file)
}

fn same_file(file: &File, path: &Path) -> io::Result<bool> {
    let here = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn modified(metadata: &Metadata) -> Option<SystemTime> {
    let seconds = Duration::from_secs(metadata.mtime_s.unsigned_abs());
    let whole = if metadata.mtime_s < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    whole?.checked_add(Duration::from_nanos(metadata.mtime_ns.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: PartOf = PartOf { content: Address([1; 32]), range: None };

    #[test]
    fn a_part_becomes_the_output_with_mode_and_mtime() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out");
        let metadata = Metadata { mtime_s: -5, mtime_ns: 7, mode: 0o104_640, ..Metadata::default() };
        let part = Part::open(&output, OF, &metadata).unwrap();
        io::Write::write_all(&mut &part.file, b"hello and more").unwrap();
        part.finish(5, &metadata).unwrap();
        let found = fs::metadata(&output).unwrap();
        assert_eq!(fs::read(&output).unwrap(), b"hello");
        assert_eq!((found.mode() & 0o7777, found.mtime(), found.mtime_nsec()), (0o640, -5, 7));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_part_is_found_again_and_only_one_get_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out");
        let part = Part::open(&output, OF, &Metadata::default()).unwrap();
        io::Write::write_all(&mut &part.file, b"half").unwrap();
        assert!(Part::open(&output, OF, &Metadata::default()).is_err());
        assert!(part.abandon().is_some());
        assert_eq!(Part::open(&output, OF, &Metadata::default()).unwrap().bytes_found(), 4);
        let other = PartOf { range: Some((0, 1)), ..OF };
        assert_eq!(Part::open(&output, other, &Metadata::default()).unwrap().bytes_found(), 0);
    }

    #[test]
    fn an_incomplete_part_never_becomes_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out");
        fs::write(&output, b"old").unwrap();
        let part = Part::open(&output, OF, &Metadata::default()).unwrap();
        assert!(part.finish(1, &Metadata::default()).is_err());
        assert_eq!(fs::read(&output).unwrap(), b"old");
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_part_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out");
        let victim = dir.path().join("victim");
        fs::write(&victim, b"mine").unwrap();
        symlink(&victim, part_path(&output, OF).unwrap()).unwrap();
        assert!(Part::open(&output, OF, &Metadata::default()).is_err());
    }

    #[test]
    fn long_names_have_parts_too() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("ü".repeat(127));
        let part = Part::open(&output, OF, &Metadata::default()).unwrap();
        part.finish(0, &Metadata::default()).unwrap();
        assert!(output.exists());
    }
}
