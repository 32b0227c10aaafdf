//! What a run leaves behind of the nodes that it started: nothing, unless it shows what went wrong.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test, in helpers too

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
use tempfile::TempDir;

const WAIT_MAX: Duration = Duration::from_secs(20);

/// A place for a run whose nodes are this script.
struct Place(TempDir);

impl Place {
    fn of(script: &str) -> Self {
        let place = Self(TempDir::new().unwrap());
        fs::create_dir(place.nodes()).unwrap();
        fs::write(place.gabion(), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(place.gabion(), fs::Permissions::from_mode(0o700)).unwrap();
        place
    }

    fn gabion(&self) -> PathBuf {
        self.0.path().join("gabion")
    }

    fn nodes(&self) -> PathBuf {
        self.0.path().join("nodes")
    }

    fn loadgen(&self) -> Command {
        // Whoever runs the tests may ignore it.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_loadgen")]);
        command.args(["get", "--spawn", "1", "--gabion"]).arg(self.gabion()).arg("--dir").arg(self.nodes());
        command
    }

    fn left(&self) -> usize {
        fs::read_dir(self.nodes()).unwrap().count()
    }
}

/// A load generator that goes with the test, whatever becomes of it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

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

#[test]
fn nodes_and_their_directory_go_with_any_signal() {
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        // A node that never answers.
        let place = Place::of("echo $$ > \"${0%/*}/id\"; exec sleep 1000");
        // A signal that this test's own group gets is none of its.
        let mut loadgen = Running(place.loadgen().stderr(Stdio::null()).process_group(0).spawn().unwrap());
        let node = wait_for(|| {
            let text = fs::read_to_string(place.0.path().join("id")).ok()?;
            Pid::from_raw(text.strip_suffix('\n')?.parse().ok()?)
        });
        let id = Pid::from_child(&loadgen.0);
        kill_process(id, signal).unwrap();
        if signal == Signal::HUP {
            // As shells and the kernel do between them. It may have ended by now.
            let _ = kill_process(id, signal);
        }
        let status = wait_for(|| loadgen.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(130), "{signal:?}");
        assert!(test_kill_process(node).is_err(), "{signal:?}: the node goes on");
        assert_eq!(place.left(), 0, "{signal:?}: the directory is left");
    }
}

#[test]
fn the_directory_of_a_node_that_ended_by_itself_stays_and_is_named() {
    let place = Place::of("echo the disk is on fire >&2; exit 9");
    let output = place.loadgen().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), place.left()), (Some(1), 1), "{said}");
    let dir = place.nodes().join("gabion-loadgen-");
    assert!(said.contains("exit status: 9") && said.contains("the disk is on fire"), "{said}");
    assert!(
        said.contains(&format!("loadgen: {}", dir.display())) && said.contains("is left, to be looked at"),
        "{said}"
    );
}
