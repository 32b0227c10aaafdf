//! The real disk: a data directory through io_uring.
//!
//! Names are made and changed by plain calls: they are rare, and short except for unlinking a big file, which goes to a
//! thread of its own.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::disk::{Disk, DiskFile};
use crate::io::{Buffer, File, OpenOptions, SharedBuffer, filesystem_space, sync_directory};

const SEGMENTS: &str = "segments";

#[derive(Clone)]
pub struct RingDisk {
    root: Rc<PathBuf>,
}

impl RingDisk {
    /// The folder of segments is made when it is missing.
    pub fn new(root: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root.join(SEGMENTS))?;
        // The folder's own name must last; its content is synced with each segment.
        std::fs::File::open(root)?.sync_all()?;
        Ok(Self { root: Rc::new(root.to_owned()) })
    }
}

impl Disk for RingDisk {
    type File = File;

    async fn create(&self, name: &str) -> io::Result<File> {
        let options = OpenOptions { read: true, write: true, create_new: true, direct: true, ..OpenOptions::default() };
        File::open(&self.root.join(name), &options).await
    }

    async fn open(&self, name: &str, writable: bool) -> io::Result<File> {
        let options = OpenOptions { read: true, write: writable, direct: writable, ..OpenOptions::default() };
        File::open(&self.root.join(name), &options).await
    }

    async fn open_direct(&self, name: &str) -> io::Result<File> {
        let options = OpenOptions { read: true, direct: true, ..OpenOptions::default() };
        File::open(&self.root.join(name), &options).await
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for (folder, prefix) in [(self.root.to_path_buf(), ""), (self.root.join(SEGMENTS), "segments/")] {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string()) {
                    names.push(format!("{prefix}{name}"));
                }
            }
        }
        Ok(names)
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.root.join(name);
        tokio::task::spawn_blocking(move || std::fs::remove_file(path)).await.map_err(io::Error::other)?
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.root.join(from), self.root.join(to))
    }

    async fn sync_directory(&self) -> io::Result<()> {
        sync_directory(&self.root.join(SEGMENTS)).await?;
        sync_directory(&self.root).await
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(filesystem_space(&self.root)?.free_bytes)
    }
}

impl DiskFile for File {
    async fn read_at(&self, buffer: Buffer, range: Range<usize>, offset: u64) -> (io::Result<usize>, Buffer) {
        File::read_at(self, buffer, range, offset).await
    }

    async fn write_at(&self, buffer: SharedBuffer, range: Range<usize>, offset: u64) -> io::Result<()> {
        File::write_at(self, buffer, range, offset).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self).await
    }

    async fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self).await
    }

    async fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        File::allocate(self, offset, len).await
    }

    async fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        File::punch(self, offset, len).await
    }

    async fn len(&self) -> io::Result<u64> {
        File::len(self).await
    }

    fn is_cached(&self, offset: u64, len: usize) -> bool {
        File::is_cached(self, offset, len)
    }
}
