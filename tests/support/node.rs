//! Real nodes for the tests: processes of the program under test on loopback, in temporary directories.
//!
//! Only what was started here is ever signalled, by its own handle or number, and everything is killed and reaped when
//! its handle goes, be it by a panic. Every wait has a deadline and polls for what it waits for.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gabion::format::Address;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::Value;

/// For a node to start, or to see the others.
const READY_MAX: Duration = Duration::from_secs(40);
/// For any command.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// For a process to go. A node that took longer than is promised says itself that it was cut off.
const STOP_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

/// One process and its directory.
pub struct Node {
    pub dir: PathBuf,
    port: u16,
    options: Vec<String>,
    child: Option<Child>,
}

impl Node {
    /// Starts a node that founds its network.
    pub fn found(dir: &Path, options: &[&str]) -> Self {
        Self::new(dir, options, None)
    }

    pub fn join(dir: &Path, ticket: &str) -> Self {
        Self::new(dir, &[], Some(ticket))
    }

    fn new(dir: &Path, options: &[&str], ticket: Option<&str>) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut node = Self { dir: dir.to_owned(), port: 0, options, child: None };
        node.spawn(ticket);
        node
    }

    fn spawn(&mut self, ticket: Option<&str>) {
        let mut command = gabion();
        command.args(["--listen", &format!("127.0.0.1:{}", self.port), "--data-dir"]).arg(&self.dir);
        command.args(&self.options).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::options().create(true).append(true).open(self.log_path()).unwrap());
        if let Some(ticket) = ticket {
            command.env("GABION_TICKET", ticket);
        }
        self.child = Some(command.spawn().unwrap());
        let status = self.wait_for("an answer", |_| true);
        self.port = status["listen"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
    }

    /// Starts it again, on the port it had, without any ticket.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.spawn(None);
    }

    /// Starts it again on any port.
    pub fn start_elsewhere(&mut self) {
        self.port = 0;
        self.start();
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// As a power cut does: nothing is finished.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// As an operator does, by either signal in turn: it must end by itself, with 0, within ten seconds and a blink, and
    /// must have finished what it does then.
    pub fn stop(&mut self) {
        static STOPS: AtomicUsize = AtomicUsize::new(0);
        let name = ["TERM", "INT"][STOPS.fetch_add(1, Ordering::Relaxed) % 2];
        signal(name, self.pid());
        self.ends_well(name);
    }

    /// It hangs, and finds what `meanwhile` did together with the signal to stop when it goes on.
    pub fn stop_suspended<T>(&mut self, meanwhile: impl FnOnce(&Self) -> T) -> T {
        self.suspend();
        let outcome = meanwhile(self);
        signal("TERM", self.pid());
        self.resume();
        self.ends_well("TERM");
        outcome
    }

    fn ends_well(&mut self, name: &str) {
        let output = finish(self.child.take().unwrap(), STOP_MAX);
        assert_eq!(output.status.code(), Some(0), "the node after SIG{name}: {}", self.log());
        assert!(!self.log().contains("cut off"), "the node after SIG{name}: {}", self.log());
    }

    /// It hangs from here on: its connections stay, and nobody answers. [`Node::resume`] or [`Node::kill`] end that.
    pub fn suspend(&self) {
        signal("STOP", self.pid());
    }

    pub fn resume(&self) {
        signal("CONT", self.pid());
    }

    fn log_path(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    /// For the next start.
    pub fn add_options(&mut self, options: &[&str]) {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
    }

    /// For the next start, instead of those it had.
    pub fn set_options(&mut self, options: &[&str]) {
        self.options.clear();
        self.add_options(options);
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A command for this node, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = gabion();
        command.env("GABION_DATA_DIR", &self.dir).args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments))
    }

    /// Runs it, and it must work.
    pub fn ok(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}\n{}", text(&output.stderr), self.log());
        output
    }

    /// Runs it, and it must end with this code and one line that says why.
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}\n{}", self.log());
        assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
        error
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.ok(&[arguments, &["--json"]].concat()).stdout).unwrap()
    }

    /// Puts these bytes through standard input; exit code and stderr.
    pub fn try_put(&self, name: &str, bytes: &[u8]) -> (i32, String) {
        let output = feed(&mut self.command(&["put", "-", "--name", name]), bytes);
        (output.status.code().unwrap_or(-1), text(&output.stderr))
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        let (code, error) = self.try_put(name, bytes);
        assert_eq!(code, 0, "put {name}: {error}\n{}", self.log());
    }

    /// The content id of these bytes, put from a file.
    pub fn put_id(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.with_extension("input");
        fs::write(&path, bytes).unwrap();
        let output = self.ok(&["put", "-q", path.to_str().unwrap(), "--name", name]);
        text(&output.stdout).trim().to_owned()
    }

    pub fn cat(&self, name: &str) -> Vec<u8> {
        self.ok(&["cat", name]).stdout
    }

    /// The whole of it, exactly. (A failed comparison of megabytes must not print them.)
    pub fn holds(&self, name: &str, bytes: &[u8]) {
        self.reads(&["cat", name], bytes);
    }

    pub fn reads(&self, arguments: &[&str], bytes: &[u8]) {
        let found = self.ok(arguments).stdout;
        assert_same(&found, bytes, &format!("{arguments:?}"));
    }

    /// What `status --json` says, whether ready or degraded.
    pub fn status(&self) -> Option<Value> {
        let output = self.run(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    pub fn count(&self, field: &str) -> u64 {
        let status = self.status().unwrap();
        status[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {status}"))
    }

    /// Until its status is as wanted.
    pub fn wait_for(&mut self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = None;
        let deadline = Instant::now() + READY_MAX;
        loop {
            if let Some(ended) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("the node ended ({ended}) instead of {what}: {}", self.log());
            }
            let status = self.status();
            if let Some(status) = status.as_ref().filter(|status| is_so(status)) {
                return status.clone();
            }
            last = status.or(last);
            assert!(Instant::now() < deadline, "no {what}: {last:?}\n{}", self.log());
            thread::sleep(POLL);
        }
    }

    /// Until it is ready and sees this many nodes, itself included.
    pub fn wait_ready(&mut self, nodes: u64) {
        self.wait_for(&format!("{nodes} nodes"), |status| {
            status["state"] == "ready" && status["nodes_alive"].as_u64() == Some(nodes)
        });
    }

    pub fn ticket(&self, options: &[&str]) -> String {
        text(&self.ok(&[&["ticket"], options].concat()).stdout).trim().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Nodes of one network; the first one founded it.
pub struct Network {
    // Before the directory, so that the processes end before it goes.
    pub nodes: Vec<Node>,
    pub scratch: tempfile::TempDir,
}

impl Network {
    /// `members` members with as many copies of everything, and storage nodes.
    pub fn start(members: usize, replicas: usize, storage_nodes: usize) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let founder = Node::found(&scratch.path().join("0"), &["--replicas", &replicas.to_string()]);
        let mut network = Self { nodes: vec![founder], scratch };
        for number in 1..members + storage_nodes {
            let class: &[&str] = if number < members { &["--member"] } else { &[] };
            let ticket = network.nodes[0].ticket(class);
            let node = Node::join(&network.scratch.path().join(number.to_string()), &ticket);
            network.nodes.push(node);
        }
        network.wait_ready();
        network
    }

    pub fn one() -> Self {
        Self::start(1, 1, 0)
    }

    pub fn wait_ready(&mut self) {
        let count = self.nodes.len() as u64;
        self.nodes.iter_mut().for_each(|node| node.wait_ready(count));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The same as text.
    pub fn file(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

impl std::ops::Index<usize> for Network {
    type Output = Node;

    fn index(&self, index: usize) -> &Node {
        &self.nodes[index]
    }
}

impl std::ops::IndexMut<usize> for Network {
    fn index_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }
}

fn gabion() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gabion"));
    command.env_remove("GABION_TICKET").env_remove("GABION_DATA_DIR").env_remove("RUST_LOG");
    command
}

/// A node that must refuse to start: its code and what it said last.
pub fn refused_start(dir: &Path) -> (i32, String) {
    let mut command = gabion();
    let output = run(command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir));
    let error = text(&output.stderr);
    (output.status.code().unwrap_or(-1), error.lines().last().unwrap_or_default().to_owned())
}

/// Runs a command to its end, which must come in time.
pub fn run(command: &mut Command) -> Output {
    finish(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), COMMAND_MAX)
}

/// The same with something on standard input. Whoever stops reading has a reason, which the exit code tells.
pub fn feed(command: &mut Command, bytes: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(bytes)));
        finish(child, COMMAND_MAX)
    })
}

/// Waits for a child, and kills it when its time is over.
pub fn finish(mut child: Child, time: Duration) -> Output {
    fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            bytes
        })
    }
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let deadline = Instant::now() + time;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("a process did not end within {time:?}: {}", text(&stderr.join().unwrap()));
        }
        thread::sleep(Duration::from_millis(2));
    };
    assert_eq!(status.signal(), None, "a process was killed");
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

pub fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(sent.success(), "SIG{name} to {pid}");
}

/// Until it is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + READY_MAX;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {READY_MAX:?}: {what}");
        thread::sleep(POLL);
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    if found != expected {
        let at = found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
        panic!("{what}: {} bytes instead of {}, different from byte {at} on", found.len(), expected.len());
    }
}

/// Random numbers of this test: from GABION_TEST_SEED, else new ones. The seed is printed when the test fails.
pub fn random() -> StdRng {
    let seed = match std::env::var("GABION_TEST_SEED") {
        Ok(seed) => seed.parse().expect("GABION_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("GABION_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

pub fn noise(random: &mut impl Rng, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    random.fill_bytes(&mut noise);
    noise
}

/// A duration below this one.
pub fn moment(random: &mut impl Rng, below: Duration) -> Duration {
    Duration::from_micros(random.random_range(0..below.as_micros() as u64))
}

/// The segments of a data directory.
pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("segments")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    segments.sort();
    segments
}

/// Where the payload of this chunk lies: in which segment, from which byte on.
pub fn find_chunk(dir: &Path, address: &Address, payload_bytes: usize) -> (PathBuf, usize) {
    for path in segments(dir) {
        let bytes = fs::read(&path).unwrap();
        for at in positions(&bytes, &address.0) {
            // Behind the header, on a block boundary where it is long.
            for offset in [at.next_multiple_of(4096), at.next_multiple_of(64), (at & !63) + 64] {
                let payload = bytes.get(offset..offset + payload_bytes);
                if payload.is_some_and(|payload| *blake3::hash(payload).as_bytes() == address.0) {
                    return (path, offset);
                }
            }
        }
    }
    panic!("the chunk {address} is in no segment of {}", dir.display());
}

pub fn positions<'a>(bytes: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let first = wanted[0];
    bytes
        .iter()
        .enumerate()
        .filter(move |(_, byte)| **byte == first)
        .map(|(at, _)| at)
        .filter(move |at| bytes.get(*at..*at + wanted.len()).is_some_and(|found| found == wanted))
}

/// Turns one bit of a file over.
pub fn flip(path: &Path, offset: usize) {
    use std::os::unix::fs::FileExt;
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset as u64).unwrap();
}

/// What a directory takes on the disk.
pub fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(dir).unwrap() {
        // Files come and go under a node that runs.
        let Ok(found) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) else { continue };
        bytes += if found.1.is_dir() { disk_bytes(&found.0) } else { found.1.blocks() * 512 };
    }
    bytes
}

/// A test that this machine lacks something for. Where GABION_TEST_STRICT is set, as .ci/run does, that is a failure.
pub fn not_tried(why: &str) {
    let is_strict = std::env::var_os("GABION_TEST_STRICT").is_some_and(|value| !value.is_empty());
    assert!(!is_strict, "not tried: {why}");
    println!("not tried: {why}");
}
