//! The demo's processes and its directory; both go when their owner is dropped.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::exit::{Exit, Failure};
use crate::cli::interrupt;
use crate::config::TICKET_VARIABLE;
use crate::format::ticket::Ticket;
use crate::node::control::client::{Client, ClientError};
use crate::node::control::{ControlEvent, ControlRequest, NodeState, StatusReport};

/// How often a node is asked whether it is ready.
pub(super) const ASK_INTERVAL: Duration = Duration::from_millis(20);
/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Lines of a node's log that an error shows.
const LOG_LINES: usize = 3;

/// A directory of our own.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn make() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("gabion-demo-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| {
            Failure::other(format!("the directory {} cannot be made: {error}; set TMPDIR", path.display()))
        })?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            crate::cli::output::warn(&format!("{} is left behind: {error}", self.0.display()), false);
        }
    }
}

/// One node, a child of this process.
pub struct Node {
    child: RefCell<Child>,
    data_dir: PathBuf,
    log: PathBuf,
    label: &'static str,
    port: u16,
}

impl Node {
    pub fn start(scratch: &Scratch, label: &'static str, port: u16, ticket: Option<&Ticket>) -> Result<Self, Failure> {
        let data_dir = scratch.path().join(label);
        let log = scratch.path().join(format!("{label}.log"));
        let fail = |error: std::io::Error| Failure::other(format!("the {label} node cannot be started: {error}"));
        let mut command = Command::new(std::env::current_exe().map_err(fail)?);
        command
            .args(["--listen", &format!("127.0.0.1:{port}"), "--data-dir"])
            .arg(&data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).map_err(fail)?)
            // Ctrl-C is for the demo, which stops its nodes itself.
            .process_group(0);
        match ticket {
            // Not as an argument: it is a secret.
            Some(ticket) => command.env(TICKET_VARIABLE, ticket.to_string()),
            None => command.env_remove(TICKET_VARIABLE),
        };
        Ok(Self { child: RefCell::new(command.spawn().map_err(fail)?), data_dir, log, label, port })
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Until the node is ready and sees this many nodes, itself included, all that its layout needs.
    pub fn wait(&self, patience: Duration, nodes: u32) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        let mut last = String::from("it does not answer");
        while Instant::now() < deadline {
            if interrupt::requested() {
                return Err(Failure::interrupted("interrupted"));
            }
            match self.status() {
                Ok(status) if status.state == NodeState::Ready && status.nodes_alive >= nodes => return Ok(()),
                Ok(status) => {
                    last = format!("it sees {} of {nodes} nodes {}", status.nodes_alive, status.reasons.join("; "));
                }
                Err(ClientError::NoNode { .. } | ClientError::Lost { .. }) => self.check_alive()?,
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(ASK_INTERVAL);
        }
        let message = format!("the {} node is not ready after {} s: {last}", self.label, patience.as_secs());
        Err(Failure::new(Exit::Network, message + &self.log_tail()))
    }

    fn status(&self) -> Result<StatusReport, ClientError> {
        let mut client = Client::connect(&self.data_dir)?;
        let mut report = None;
        // Without a limit it would only wait longer.
        let _ = client.set_answer_max(ANSWER_MAX);
        client.run(&ControlRequest::Status, None, |event| {
            if let ControlEvent::Status { report: found } = event {
                report = Some(found);
            }
        })?;
        report.ok_or(ClientError::Lost { dir: self.data_dir.clone() })
    }

    /// A node that has ended says in its log why.
    fn check_alive(&self) -> Result<(), Failure> {
        match self.child.borrow_mut().try_wait() {
            Ok(None) => Ok(()),
            ended => {
                let code =
                    ended.ok().flatten().and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok());
                let message = format!("the {} node on port {} ended{}", self.label, self.port, self.log_tail());
                Err(Failure { code: code.filter(|code| *code != 0).unwrap_or(Exit::Other.code()), message })
            }
        }
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
        if tail.is_empty() { String::new() } else { format!("; its log ends: {}", tail.join(" | ")) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        // It may have ended by itself; either way it must be waited for.
        let _ = child.kill();
        let _ = child.wait();
    }
}
