//! The node under load: a child process with a directory of its own. Both go when it is dropped.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gabion::node::control::client::{Client, ClientError};
use gabion::node::control::{ControlEvent, ControlRequest, NodeState};

use crate::Failure;

const READY_MAX: Duration = Duration::from_secs(30);
const ASK_INTERVAL: Duration = Duration::from_millis(20);

pub struct Node {
    child: Child,
    scratch: PathBuf,
}

impl Node {
    pub fn start(gabion: Option<PathBuf>) -> Result<Self, Failure> {
        let gabion = match gabion {
            Some(gabion) => gabion,
            None => beside_this_program()?,
        };
        let scratch = std::env::temp_dir().join(format!("gabion-loadgen-{}", std::process::id()));
        let make = || -> std::io::Result<(Child, PathBuf)> {
            DirBuilder::new().mode(0o700).create(&scratch)?;
            let child = Command::new(&gabion)
                .args(["--listen", "127.0.0.1:0", "--replicas", "1", "--data-dir"])
                .arg(scratch.join("node"))
                .env_remove("GABION_TICKET")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(scratch.join("log"))?)
                .spawn()?;
            Ok((child, scratch.clone()))
        };
        let (child, scratch) =
            make().map_err(|error| Failure::other(format!("{} cannot be started: {error}", gabion.display())))?;
        let mut node = Self { child, scratch };
        node.wait()?;
        Ok(node)
    }

    pub fn connect(&self) -> Result<Client, Failure> {
        Client::connect(&self.scratch.join("node")).map_err(Failure::other)
    }

    /// Where large objects are made and read to.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    fn wait(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_MAX;
        while Instant::now() < deadline {
            if self.is_ready().map_err(Failure::other)? {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Failure::other(format!("the node ended ({status}): {}", self.log())));
            }
            std::thread::sleep(ASK_INTERVAL);
        }
        Err(Failure::other(format!("the node is not ready after {} s: {}", READY_MAX.as_secs(), self.log())))
    }

    fn is_ready(&self) -> Result<bool, ClientError> {
        let mut ready = false;
        let mut ask = || {
            Client::connect(&self.scratch.join("node"))?.run(&ControlRequest::Status, None, |event| {
                if let ControlEvent::Status { report } = event {
                    ready = report.state == NodeState::Ready;
                }
            })
        };
        match ask() {
            Ok(()) => Ok(ready),
            Err(ClientError::NoNode { .. } | ClientError::Lost { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must be waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

fn beside_this_program() -> Result<PathBuf, Failure> {
    let here = std::env::current_exe().map_err(Failure::other)?;
    let gabion = here.with_file_name("gabion");
    if gabion.is_file() {
        return Ok(gabion);
    }
    Err(Failure::other(format!(
        "there is no {}: build it first (cargo build --release), or give --gabion PATH",
        gabion.display()
    )))
}
