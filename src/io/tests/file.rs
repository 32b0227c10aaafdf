use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::{on_ring, pattern, shared};
use crate::io::{Buffer, BufferPool, File, FileKind, OpenOptions, SharedBuffer, read_cached, spawn, sync_directory};
use crate::limits::{BLOCK_BYTES, BUFFER_BYTES};

fn fresh() -> OpenOptions {
    OpenOptions { read: true, write: true, create_new: true, ..Default::default() }
}

#[test]
fn what_is_written_is_read_and_a_read_is_short_at_the_end_only() {
    let directory = tempfile::tempdir().expect("a directory");
    on_ring(async {
        let file = File::open(&directory.path().join("file"), &fresh()).await.expect("a file");
        let bytes = pattern(3_000_000, 1);
        file.write_at(shared(&bytes), 0..3_000_000, 500).await.expect("written");
        file.sync_data().await.expect("synced");
        file.sync_all().await.expect("synced");
        let (result, buffer) = file.read_at(Buffer::heap(4_000_000), 100..4_000_000, 500).await;
        assert_eq!(result.expect("read"), 3_000_000);
        assert!(buffer.as_slice()[100..3_000_100] == bytes);
        let (result, _buffer) = file.read_at(buffer, 0..10, 3_000_500).await;
        assert_eq!(result.expect("the end"), 0);
    });
}

#[test]
fn what_the_page_cache_has_is_read_on_the_spot_and_nothing_else_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    let bytes = pattern(300_001, 3);
    std::fs::write(&path, &bytes).expect("written");
    let file = std::fs::File::open(&path).expect("a file");
    let mut read = vec![0; 300_001];
    // Just written: all of it is there, unless something else has used up the memory meanwhile.
    if read_cached(&file, &mut read, 0) {
        assert!(read == bytes);
        assert!(read_cached(&file, &mut read[..5], 299_996));
        assert!(read[..5] == bytes[299_996..]);
    }
    assert!(!read_cached(&file, &mut read, 1), "a byte beyond the end");
    assert!(!read_cached(&file, &mut read[..1], 300_001));
    assert!(read_cached(&file, &mut [], 0));
    let (pipe, _writer) = std::io::pipe().expect("a pipe");
    assert!(!read_cached(&pipe, &mut read[..1], 0));
}

#[test]
fn one_buffer_serves_several_writes_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    on_ring(async {
        let file = File::open(&directory.path().join("file"), &fresh()).await.expect("a file");
        let bytes = pattern(100_000, 2);
        let source = shared(&bytes);
        let tasks: Vec<_> = (0..4)
            .map(|number: u64| {
                let (file, source) = (file.clone(), source.clone());
                spawn(async move { file.write_at(source, 0..100_000, number * 100_000).await.expect("written") })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        let (result, buffer) = file.read_at(Buffer::heap(400_000), 0..400_000, 0).await;
        assert_eq!(result.expect("read"), 400_000);
        assert!(buffer.as_slice().chunks(100_000).all(|chunk| chunk == bytes));
        assert!(source.try_unfreeze().is_ok(), "the writes have given their shares back");
    });
}

#[test]
fn direct_files_take_blocks_and_end_where_they_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    on_ring(async {
        let pool = BufferPool::new(2).expect("a pool");
        let file = File::open(&path, &OpenOptions { direct: true, ..fresh() }).await.expect("a file");
        file.allocate(0, 4 * BUFFER_BYTES as u64).await.expect("allocated");
        assert_eq!(file.len().await.expect("a length"), 4 * BUFFER_BYTES as u64);
        let bytes = pattern(BUFFER_BYTES, 3);
        let mut buffer = pool.take().await;
        buffer.as_mut_slice().copy_from_slice(&bytes);
        let source = buffer.freeze();
        file.write_at(source.clone(), 0..BUFFER_BYTES, BUFFER_BYTES as u64).await.expect("written");
        // A file whose end is inside a block reads short there instead of failing.
        let end = BUFFER_BYTES + 2 * BLOCK_BYTES + 100;
        file.set_len(end as u64).expect("cut");
        let (result, buffer) = file.read_at(pool.take().await, 0..BUFFER_BYTES, BUFFER_BYTES as u64).await;
        assert_eq!(result.expect("read"), 2 * BLOCK_BYTES + 100);
        assert!(buffer.as_slice()[..2 * BLOCK_BYTES + 100] == bytes[..2 * BLOCK_BYTES + 100]);
        assert_eq!(File::from_fd(file.as_fd().try_clone_to_owned().expect("a copy")).is_direct(), file.is_direct());
    });
}

/// procfs has no direct I/O; tmpfs has it on newer kernels only.
#[test]
fn direct_falls_back_where_there_is_none() {
    on_ring(async {
        let options = OpenOptions { read: true, direct: true, ..Default::default() };
        let file = File::open(Path::new("/proc/self/status"), &options).await.expect("a file");
        assert!(!file.is_direct());
        let (result, _buffer) = file.read_at(Buffer::heap(100), 0..100, 3).await;
        assert_eq!(result.expect("unaligned, as the file is buffered"), 100);
        if let Ok(directory) = tempfile::tempdir_in("/dev/shm") {
            let path = directory.path().join("file");
            let file = File::open(&path, &OpenOptions { direct: true, ..fresh() }).await.expect("a file");
            file.write_at(shared(&[5; BLOCK_BYTES]), 0..BLOCK_BYTES, 0).await.expect("written");
            let (result, buffer) = file.read_at(Buffer::heap(BLOCK_BYTES), 0..BLOCK_BYTES, 0).await;
            assert_eq!((result.expect("read"), buffer.as_slice()), (BLOCK_BYTES, [5; BLOCK_BYTES].as_slice()));
        }
    });
}

#[test]
fn punched_space_comes_back_and_reads_as_zeros() {
    let directory = tempfile::tempdir().expect("a directory");
    on_ring(async {
        let file = File::open(&directory.path().join("file"), &fresh()).await.expect("a file");
        file.write_at(shared(&pattern(1 << 20, 4)), 0..1 << 20, 0).await.expect("written");
        file.sync_all().await.expect("synced");
        let before = file.metadata().await.expect("metadata");
        file.punch(4096, 512 * 1024).await.expect("punched");
        let after = file.metadata().await.expect("metadata");
        assert_eq!(after.len_bytes, 1 << 20);
        assert!(after.allocated_bytes + 500 * 1024 <= before.allocated_bytes, "{before:?} {after:?}");
        let (result, buffer) = file.read_at(Buffer::heap(1 << 20), 0..1 << 20, 0).await;
        assert_eq!(result.expect("read"), 1 << 20);
        assert!(buffer.as_slice()[4096..4096 + 512 * 1024].iter().all(|byte| *byte == 0));
        assert!(buffer.as_slice()[..4096] == pattern(1 << 20, 4)[..4096]);
    });
}

#[test]
fn open_says_what_is_wrong_and_sets_the_mode() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    on_ring(async {
        let missing = File::open(&path, &OpenOptions::for_reading()).await.err().expect("there is no file");
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
        let nothing = File::open(&path, &OpenOptions::default()).await.err().expect("neither read nor write");
        assert_eq!(nothing.kind(), std::io::ErrorKind::InvalidInput);
        // Once only, even where direct I/O is refused.
        let file = File::open(&path, &OpenOptions { direct: true, ..fresh() }).await.expect("a file");
        let twice = File::open(&path, &OpenOptions { direct: true, ..fresh() }).await.err().expect("there is one");
        assert_eq!(twice.kind(), std::io::ErrorKind::AlreadyExists);
        let metadata = file.metadata().await.expect("metadata");
        assert_eq!((metadata.kind, metadata.mode, metadata.len_bytes), (FileKind::Regular, 0o600, 0));
        let known = std::fs::metadata(&path).expect("metadata");
        assert_eq!(metadata.modified, known.modified().expect("a time"));
        assert_eq!(known.permissions().mode() & 0o777, 0o600);
        sync_directory(directory.path()).await.expect("synced");
        assert!(sync_directory(&path).await.is_err(), "not a directory");
    });
}

#[test]
fn pipes_are_read_and_written_in_pieces_blocking_or_not() {
    for non_blocking in [false, true] {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let (near, mut far) = std::io::pipe().expect("a pipe");
        for fd in [writer.as_fd(), near.as_fd()] {
            set_non_blocking(fd, non_blocking);
        }
        let bytes = pattern(1_000_000, 6);
        let expected = bytes.clone();
        let echo = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).expect("read");
            far.write_all(&all).expect("written");
        });
        on_ring(async move {
            let source: SharedBuffer = shared(&bytes);
            let output = File::from_fd(OwnedFd::from(writer));
            output.write(source, 0..1_000_000).await.expect("written");
            drop(output);
            let input = File::from_fd(OwnedFd::from(near));
            let (result, buffer) = input.read(Buffer::heap(200_0000), 0..2_000_000, std::future::pending()).await;
            assert_eq!(result.expect("read"), Some(1_000_000));
            assert!(buffer.as_slice()[..1_000_000] == expected);
        });
        echo.join().expect("no panic");
    }
}

#[test]
fn a_read_that_is_stopped_takes_nothing_and_lets_go_of_its_pipe() {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    on_ring(async move {
        let input = File::from_fd(OwnedFd::from(reader));
        let moment = Duration::from_millis(20);
        let (result, _buffer) = input.read(Buffer::heap(8), 0..8, tokio::time::sleep(moment)).await;
        assert_eq!(result.expect("stopped"), None);
        writer.write_all(b"kept").expect("written");
        let (result, buffer) = input.read(Buffer::heap(4), 0..4, std::future::pending()).await;
        assert_eq!((result.expect("read"), buffer.as_slice()), (Some(4), &b"kept"[..]));
        let (result, _buffer) = input.read(Buffer::heap(8), 0..8, tokio::time::sleep(moment)).await;
        assert_eq!(result.expect("stopped"), None);
        drop(input);
        // The kernel lets go of it soon; until then the pipe takes what is written.
        let refused = loop {
            match writer.write_all(b"x") {
                Ok(()) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), std::io::ErrorKind::BrokenPipe);
    });
}

#[allow(unsafe_code)]
fn set_non_blocking(fd: std::os::fd::BorrowedFd<'_>, non_blocking: bool) {
    use std::os::fd::AsRawFd;
    let flags = if non_blocking { libc::O_NONBLOCK } else { 0 };
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }, 0);
}
