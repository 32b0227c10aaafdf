//! The demo's made-up file, and whether two files are equal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::cli::exit::{Exit, Failure};
use crate::cli::interrupt;

const PIECE_BYTES: usize = 1 << 20;
/// Seed of the made-up file: the same bytes each time.
const SEED: &str = "gabion demo";

/// Writes `bytes` bytes that no compression shortens and no two chunks of which are equal.
pub fn make(path: &Path, bytes: u64) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).open(path)?;
        let mut stream = blake3::Hasher::new_derive_key(SEED).finalize_xof();
        let mut piece = vec![0; PIECE_BYTES];
        let mut left = bytes;
        while left > 0 && !interrupt::requested() {
            stream.fill(&mut piece);
            let count = usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            file.write_all(piece.get(..count).unwrap_or_default())?;
            left -= count as u64;
        }
        Ok(())
    };
    write().map_err(|error| {
        let exit = if error.kind() == io::ErrorKind::StorageFull { Exit::NoSpace } else { Exit::Other };
        Failure::new(exit, format!("{} cannot be written: {error}; choose another --size or TMPDIR", path.display()))
    })
}

pub fn same(one: &Path, other: &Path) -> Result<bool, Failure> {
    try_same(one, other).map_err(|error| {
        Failure::other(format!("{} and {} cannot be compared: {error}", one.display(), other.display()))
    })
}

fn try_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let mut pieces = [Vec::new(), Vec::new()];
    loop {
        let [left, right] = &mut pieces;
        left.clear();
        right.clear();
        (&mut one).take(PIECE_BYTES as u64).read_to_end(left)?;
        (&mut other).take(PIECE_BYTES as u64).read_to_end(right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_files_are_told_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "c"].map(|name| dir.path().join(name));
        let [a, b, c] = &paths;
        for (path, bytes) in [(a, PIECE_BYTES as u64 + 7), (b, PIECE_BYTES as u64 + 7), (c, PIECE_BYTES as u64 + 6)] {
            make(path, bytes).unwrap();
        }
        assert!(same(a, b).unwrap());
        assert!(!same(a, c).unwrap());
        std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(b).unwrap(), b"!", 1 << 20).unwrap();
        assert!(!same(a, b).unwrap());
    }
}
