use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use crate::io::{
    FdKind, data_end, dup_fd, fd_kind, filesystem_space, lock_directory, open_in, peer_is_regular, raise_fd_limit, rss,
    set_blocking, widen_pipe,
};

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
fn a_pipe_is_widened_and_never_narrowed() {
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    let held = widen_pipe(&writer, 1).expect("it holds something");
    let widened = widen_pipe(&writer, 4 * held).expect("it still does");
    // Where a user's pipes hold all that they may, it stays as it was.
    assert!([held, 4 * held].contains(&widened), "{held}, then {widened}");
    assert_eq!(widen_pipe(&writer, 1), Some(widened));
    assert_eq!(widen_pipe(&writer, usize::MAX), None);
    assert_eq!(widen_pipe(tempfile::tempfile().expect("a file"), 256 << 10), None);
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

#[test]
fn of_a_directory_only_what_is_there_is_opened_and_nobody_is_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("file"), b"mine").expect("written");
    std::os::unix::fs::symlink("file", directory.path().join("link")).expect("a link");
    assert!(Command::new("mkfifo").arg(directory.path().join("pipe")).status().expect("mkfifo").success());
    let opened = File::open(directory.path()).expect("opened");
    let open = |name: &str| open_in(&opened, OsStr::new(name));
    assert_eq!(open("link").expect_err("a link is not followed").raw_os_error(), Some(libc::ELOOP));
    assert!(open("missing").is_err() && open("a\0b").is_err());
    let pipe = open("pipe").expect("without a writer");
    assert_eq!(fd_kind(pipe.as_fd()), FdKind::Pipe);
    let mut file = open("file").expect("a file");
    let flags = |file: &File| {
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))
            .expect("of this process")
            .lines()
            .find_map(|line| i32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok())
            .expect("its flags")
    };
    assert_ne!(flags(&file) & libc::O_NONBLOCK, 0);
    set_blocking(&file).expect("any file");
    assert_eq!(flags(&file) & libc::O_NONBLOCK, 0);
    let mut contents = String::new();
    file.read_to_string(&mut contents).expect("read");
    assert_eq!(contents, "mine");
}

#[test]
fn data_ends_before_holes_at_the_end_and_not_before_others() {
    use std::os::unix::fs::FileExt;
    let file = tempfile::tempfile().expect("a file");
    assert_eq!(data_end(&file).expect("empty"), 0);
    file.set_len(1 << 20).expect("a hole");
    assert_eq!(data_end(&file).expect("a hole alone"), 0);
    file.write_all_at(&[1; 4096], 64 << 10).expect("written");
    assert_eq!(data_end(&file).expect("holes on both sides"), 68 << 10);
    file.write_all_at(b"x", (2 << 20) - 1).expect("written");
    assert_eq!(data_end(&file).expect("to the end"), 2 << 20);
}
