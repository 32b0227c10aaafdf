//! The nodes under load: children of this process, each with a directory of its own, or nodes that run already.
//!
//! Children and directories go when their owner is dropped, or by [`end_at_once`]; but a directory that shows what went wrong
//! stays: after a wrong byte, or when a child ended by itself. Children are in process groups of
//! their own: Ctrl-C and the end of a terminal are for this process, which ends them itself once it has reported.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gabion::cli::exit::{Exit, Failure};
use gabion::config::TICKET_VARIABLE;
use gabion::node::control::client::{Client, ClientError};
use gabion::node::control::{ControlEvent, ControlRequest, NodeClass, NodeState, SOCKET_NAME, StatusReport};
use rustix::process::{Pid, Signal, kill_process};

use crate::output::remark;
use crate::{interrupt, machine};

const READY_MAX: Duration = Duration::from_secs(60);
const ASK_INTERVAL: Duration = Duration::from_millis(20);
const ANSWER_MAX: Duration = Duration::from_secs(10);
const TICKET_SECONDS: u64 = 3600;
/// Lines of a node's log that an error shows.
const LOG_LINES: usize = 5;

/// What [`end_at_once`] must not leave behind.
static STARTED: Mutex<Started> = Mutex::new(Started { processes: Vec::new(), scratch: None, is_evidence: false });

struct Started {
    processes: Vec<u32>,
    scratch: Option<PathBuf>,
    /// The directory stays.
    is_evidence: bool,
}

/// How to start nodes.
#[derive(Debug, Clone)]
pub struct SpawnOptions {
    pub count: usize,
    pub gabion: PathBuf,
    /// Where the directory of all of them is made.
    pub parent: PathBuf,
    pub replicas: u8,
    /// The first node alone at first; the others with [`Nodes::join_rest`].
    pub one_first: bool,
}

#[derive(Debug)]
pub struct Node {
    pub dir: PathBuf,
    pub process: Option<u32>,
    child: Option<Child>,
    log: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

impl Traffic {
    pub fn since(self, before: Self) -> Self {
        Self {
            sent_bytes: self.sent_bytes.saturating_sub(before.sent_bytes),
            received_bytes: self.received_bytes.saturating_sub(before.received_bytes),
        }
    }
}

/// All nodes of a run.
#[derive(Debug)]
pub struct Nodes {
    pub all: Vec<Node>,
    /// Of the nodes that this process started.
    scratch: Option<PathBuf>,
    /// How to start those that have not joined yet.
    to_join: Option<SpawnOptions>,
}

impl Nodes {
    /// Whether this process started them.
    pub fn are_ours(&self) -> bool {
        self.scratch.is_some()
    }

    /// Nodes that run already, by their data directories.
    pub fn attach(dirs: &[PathBuf]) -> Result<Self, Failure> {
        let mut all = Vec::new();
        for dir in dirs {
            let dir =
                std::path::absolute(dir).map_err(|error| Failure::other(format!("{}: {error}", dir.display())))?;
            let node = Node::at(dir);
            let status = node.status()?;
            if status.class == NodeClass::Storage {
                let message =
                    format!("{} is a storage node: it reads and writes no files; name a member", node.dir.display());
                return Err(Failure::new(Exit::Key, message));
            }
            all.push(node);
        }
        Ok(Self { all, scratch: None, to_join: None })
    }

    /// Starts nodes of one new network and waits until each sees all of them.
    pub fn spawn(options: SpawnOptions) -> Result<Self, Failure> {
        machine::warn_of_memory(&options.parent);
        let scratch = make_scratch(&options.parent)?;
        started().scratch = Some(scratch.clone());
        let mut nodes = Self { all: Vec::new(), scratch: Some(scratch.clone()), to_join: None };
        nodes.start_upto(&options, &scratch, if options.one_first { 1 } else { options.count })?;
        nodes.to_join = Some(options);
        Ok(nodes)
    }

    /// Starts those that were to come later, if any.
    pub fn join_rest(&mut self) -> Result<(), Failure> {
        match (self.to_join.take(), self.scratch.clone()) {
            (Some(options), Some(scratch)) => self.start_upto(&options, &scratch, options.count),
            _ => Ok(()),
        }
    }

    /// Whether none of those that this process started has ended.
    pub fn check_alive(&mut self) -> Result<(), Failure> {
        self.all.iter_mut().try_for_each(Node::check_alive)
    }

    fn start_upto(&mut self, options: &SpawnOptions, scratch: &Path, count: usize) -> Result<(), Failure> {
        while self.all.len() < count {
            let index = self.all.len();
            let ticket = self.all.first().map(Node::ticket).transpose()?;
            let mut node = Node::start(options, scratch, index, ticket.as_deref())?;
            let ready = node.wait(index as u32 + 1);
            self.all.push(node);
            ready?;
        }
        self.all.iter_mut().try_for_each(|node| node.wait(count as u32))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        let Some(scratch) = &self.scratch else { return };
        let is_wrong = started().is_evidence;
        let mut is_evidence = is_wrong;
        for node in &mut self.all {
            let dir = node.dir.display().to_string();
            if let Some(status) = node.end().filter(|status| !was_asked_too(*status)) {
                remark(&format!("the node {dir} ended by itself ({status})"));
                is_evidence = true;
            }
            // Of one that ended by itself the error of the run says it.
            let log = node.log_tail();
            if is_wrong && !log.is_empty() {
                remark(&format!("the node {dir}{log}"));
            }
        }
        if is_evidence {
            remark(&format!("{} is left, to be looked at", scratch.display()));
        } else if let Err(error) = fs::remove_dir_all(scratch) {
            remark(&format!("{} is left behind: {error}", scratch.display()));
        }
        *started() = Started { processes: Vec::new(), scratch: None, is_evidence: false };
    }
}

/// What the nodes that this process started have on the disk is to be looked at.
pub fn leave_directory() {
    started().is_evidence = true;
}

/// Ends all children and removes their directory, for a process that has no time to unwind, or that panics.
pub fn end_at_once() {
    let started = started();
    for process in started.processes.iter().filter_map(|process| Pid::from_raw(process.cast_signed())) {
        // It may have ended by itself.
        let _ = kill_process(process, Signal::KILL);
    }
    if let Some(scratch) = started.scratch.as_ref().filter(|_| !started.is_evidence) {
        // A child that is just ending may still make a file: once more, then.
        let _ = fs::remove_dir_all(scratch).or_else(|_| fs::remove_dir_all(scratch));
    }
}

fn started() -> std::sync::MutexGuard<'static, Started> {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory that an earlier run left, whose process had the same number, stays as it is.
fn make_scratch(parent: &Path) -> Result<PathBuf, Failure> {
    let mut name = format!("gabion-loadgen-{}", std::process::id());
    loop {
        let scratch = parent.join(&name);
        match DirBuilder::new().mode(0o700).create(&scratch) {
            Ok(()) => return Ok(scratch),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => name.push('+'),
            Err(error) => {
                let message = format!("the directory {} cannot be made: {error}; give --dir DIR", scratch.display());
                return Err(Failure::other(message));
            }
        }
    }
}

/// Whoever interrupts this process often means all that it started: a node that then ended well did as it was told.
fn was_asked_too(status: ExitStatus) -> bool {
    interrupt::requested() && status.success()
}

impl Node {
    /// One that runs already.
    pub fn at(dir: PathBuf) -> Self {
        Self { process: process_of(&dir), dir, child: None, log: None }
    }

    fn start(options: &SpawnOptions, scratch: &Path, index: usize, ticket: Option<&str>) -> Result<Self, Failure> {
        let dir = scratch.join(format!("node-{index}"));
        let log = scratch.join(format!("node-{index}.log"));
        let fail =
            |error: io::Error| Failure::other(format!("{} cannot be started: {error}", options.gabion.display()));
        let mut command = Command::new(&options.gabion);
        command.args(["--listen", "127.0.0.1:0", "--replicas", &options.replicas.to_string(), "--data-dir"]);
        command.arg(&dir).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        command.stderr(File::create(&log).map_err(fail)?);
        match ticket {
            Some(ticket) => command.env(TICKET_VARIABLE, ticket),
            None => command.env_remove(TICKET_VARIABLE),
        };
        // Under the lock, so that `end_at_once` cannot miss a child that has just been started.
        let mut started = started();
        let child = command.spawn().map_err(fail)?;
        started.processes.push(child.id());
        Ok(Self { dir, process: Some(child.id()), child: Some(child), log: Some(log) })
    }

    pub fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.dir)
    }

    /// Payloads sent to other nodes and received from them since it began; none when it does not say.
    pub fn traffic(&self) -> Option<Traffic> {
        let status = self.status().ok()?;
        Some(Traffic { sent_bytes: status.payload_bytes_sent, received_bytes: status.payload_bytes_received })
    }

    pub fn status(&self) -> Result<StatusReport, ClientError> {
        let mut report = None;
        self.ask(&ControlRequest::Status, |event| {
            if let ControlEvent::Status { report: found } = event {
                report = Some(found);
            }
        })?;
        report.ok_or(ClientError::Lost { dir: self.dir.clone() })
    }

    fn ticket(&self) -> Result<String, Failure> {
        let mut ticket = None;
        let request = ControlRequest::Ticket { member: true, zone: None, expires_s: TICKET_SECONDS };
        self.ask(&request, |event| {
            if let ControlEvent::Text { text } = event {
                ticket = Some(text.as_str().to_owned());
            }
        })?;
        ticket.ok_or_else(|| Failure::other("the first node printed no ticket"))
    }

    fn ask(&self, request: &ControlRequest, on_event: impl FnMut(ControlEvent)) -> Result<(), ClientError> {
        let mut client = self.connect()?;
        // Without a limit it would only wait longer.
        let _ = client.set_answer_max(ANSWER_MAX);
        client.run(request, None, on_event)
    }

    /// Until the node is ready and sees this many nodes, itself included.
    fn wait(&mut self, nodes: u32) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_MAX;
        let mut last = String::from("it does not answer");
        while Instant::now() < deadline {
            if interrupt::requested() {
                return Err(Failure::interrupted("interrupted before the nodes were ready"));
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
        let message = format!("a node is not ready after {} s: {last}{}", READY_MAX.as_secs(), self.log_tail());
        Err(Failure::new(Exit::Network, message))
    }

    fn check_alive(&mut self) -> Result<(), Failure> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => {
                started().processes.retain(|process| Some(*process) != self.process);
                if was_asked_too(status) {
                    return Ok(());
                }
                let message = format!("the node {} ended ({status}){}", self.dir.display(), self.log_tail());
                Err(Failure::other(message))
            }
            _ => Ok(()),
        }
    }

    fn log_tail(&self) -> String {
        let log = self.log.as_ref().and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
        if tail.is_empty() { String::new() } else { format!("; its log ends: {}", tail.join(" | ")) }
    }

    /// How it had ended, if it did by itself.
    fn end(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        let ended = child.try_wait().ok().flatten();
        // It may have ended by itself; either way it must be waited for.
        let _ = child.kill();
        let _ = child.wait();
        ended
    }
}

/// The process that listens on the control socket, so that its use of the machine can be watched.
fn process_of(dir: &Path) -> Option<u32> {
    let stream = gabion::io::connect_blocking(&dir.join(SOCKET_NAME)).ok()?;
    let owner = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    u32::try_from(owner.pid.as_raw_nonzero().get()).ok()
}

/// The `gabion` that lies beside this program.
pub fn beside_this_program() -> Result<PathBuf, Failure> {
    let here = std::env::current_exe().map_err(|error| Failure::other(format!("where is this program? {error}")))?;
    let gabion = here.with_file_name("gabion");
    if gabion.is_file() {
        return Ok(gabion);
    }
    Err(Failure::other(format!(
        "there is no {}: build it first (cargo build --release), or give --gabion PATH",
        gabion.display()
    )))
}
