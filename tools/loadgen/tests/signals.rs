//! What a run that is ended leaves behind: nothing.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

const WAIT_MAX: Duration = Duration::from_secs(20);

/// Looks until there is something.
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        match look() {
            Some(found) => return found,
            None => assert!(Instant::now() < deadline, "nothing came"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The id that a node's script has written, once it is whole.
fn id_in(file: &Path) -> Option<Pid> {
    Pid::from_raw(fs::read_to_string(file).ok()?.strip_suffix('\n')?.parse().ok()?)
}

#[test]
fn nodes_and_their_directory_go_with_any_signal() {
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        let dir = tempfile::tempdir().unwrap();
        let (gabion, id, nodes) = (dir.path().join("gabion"), dir.path().join("id"), dir.path().join("nodes"));
        fs::create_dir(&nodes).unwrap();
        // A node that never answers.
        fs::write(&gabion, format!("#!/bin/sh\necho $$ > {}\nexec sleep 1000\n", id.display())).unwrap();
        fs::set_permissions(&gabion, fs::Permissions::from_mode(0o700)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
        command.args(["get", "--spawn", "1", "--gabion"]).arg(&gabion).arg("--dir").arg(&nodes);
        // A signal that this test's own group gets is none of its.
        let mut loadgen = command.stderr(Stdio::null()).process_group(0).spawn().unwrap();
        let node = wait_for(|| id_in(&id));
        kill_process(Pid::from_child(&loadgen), signal).unwrap();
        let status = wait_for(|| loadgen.try_wait().unwrap());
        assert_eq!(status.code(), Some(130), "{signal:?}");
        assert!(test_kill_process(node).is_err(), "{signal:?}: the node goes on");
        assert_eq!(fs::read_dir(&nodes).unwrap().count(), 0, "{signal:?}: the directory is left");
    }
}
