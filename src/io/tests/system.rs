use std::os::fd::AsFd;

use crate::io::{FdKind, dup_fd, fd_kind, filesystem_space, lock_directory, peer_is_regular, raise_fd_limit, rss};

#[test]
fn a_directory_is_locked_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let lock = lock_directory(directory.path()).expect("no error").expect("free");
    assert!(lock_directory(directory.path()).expect("no error").is_none());
    drop(lock);
    assert!(lock_directory(directory.path()).expect("no error").is_some());
}

#[test]
fn descriptors_are_told_apart() {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(123).expect("extended");
    assert_eq!(fd_kind(file.as_fd()), FdKind::Regular { len_bytes: 123 });
    assert!(peer_is_regular(dup_fd(file.as_fd()).expect("a copy").as_fd()));
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    assert_eq!(fd_kind(reader.as_fd()), FdKind::Pipe);
    assert_eq!(fd_kind(std::fs::File::open("/dev/null").expect("a device").as_fd()), FdKind::CharacterDevice);
    assert_eq!(fd_kind(std::fs::File::open("/").expect("a directory").as_fd()), FdKind::Other);
}

#[test]
fn the_machine_answers() {
    let space = filesystem_space(std::env::temp_dir().as_path()).expect("space");
    assert!(space.total_bytes >= space.free_bytes && space.total_bytes > 0);
    assert!(filesystem_space(std::path::Path::new("/no/such/place")).is_err());
    let memory = rss();
    assert!(memory.anon_bytes > 0 && memory.hwm_bytes >= memory.anon_bytes);
    assert!(raise_fd_limit() > 2);
}
