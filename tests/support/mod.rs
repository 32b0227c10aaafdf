//! A node that keeps files in memory and speaks the control protocol: what the command does is tested without what a
//! real node does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use gabion::format::name::Metadata;
use gabion::format::{Address, NetworkId, NodeId};
use gabion::io::{Buffer, Ring, RingOptions, SendSource, UnixListener, UnixStream, spawn};
use gabion::node::control::{
    Bytes, ControlEvent, ControlRequest, Entry, LENGTH_BYTES, NodeClass, NodeState, OutputKind, SOCKET_NAME,
    SecretText, SmallFetched, SmallFile, SmallStored, StatusReport, Target, message_len,
};

const STALL: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub struct Stored {
    pub metadata: Metadata,
    pub bytes: Vec<u8>,
}

impl Stored {
    fn content(&self) -> Address {
        if self.bytes.is_empty() { Address::ZERO } else { Address(*blake3::hash(&self.bytes).as_bytes()) }
    }
}

/// Names, and how the node is to behave.
#[derive(Default)]
pub struct Memory {
    pub names: BTreeMap<(String, String), Stored>,
    pub degraded: bool,
    /// Chunks that `verify` leaves damaged.
    pub left_damaged: u64,
    /// A get ends with an integrity error after this many bytes.
    pub damaged_after: Option<usize>,
    /// Keys of small files that do not verify, and of those that are too long for an answer by now.
    pub damaged: Vec<String>,
    pub grown: Vec<String>,
    /// Whether the last get was told to resume.
    pub resumed: bool,
    pub no_space: bool,
}

pub struct FakeNode {
    pub dir: tempfile::TempDir,
    pub memory: Arc<Mutex<Memory>>,
}

impl FakeNode {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let memory = Arc::new(Mutex::new(Memory::default()));
        let (ready, is_ready) = mpsc::channel();
        let (socket, shared) = (dir.path().join(SOCKET_NAME), Arc::clone(&memory));
        std::thread::spawn(move || {
            Ring::new(&RingOptions::default()).unwrap().block_on(async {
                let listener = UnixListener::bind(&socket).unwrap();
                ready.send(()).unwrap();
                while let Ok(stream) = listener.accept().await {
                    let stream = UnixStream::from_std(stream).unwrap();
                    drop(spawn(serve(stream, Arc::clone(&shared))));
                }
            });
        });
        is_ready.recv().unwrap();
        Self { dir, memory }
    }

    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) {
        self.insert(bucket, key, Metadata { mode: 0o100_644, ..Metadata::default() }, bytes);
    }

    pub fn put_symlink(&self, bucket: &str, key: &str, target: &str) {
        let metadata = Metadata { mode: 0o120_777, symlink_target: Some(target.into()), ..Metadata::default() };
        self.insert(bucket, key, metadata, b"");
    }

    fn insert(&self, bucket: &str, key: &str, metadata: Metadata, bytes: &[u8]) {
        let stored = Stored { metadata, bytes: bytes.to_vec() };
        self.memory.lock().unwrap().names.insert((bucket.to_owned(), key.to_owned()), stored);
    }

    pub fn stored(&self, bucket: &str, key: &str) -> Option<Stored> {
        self.memory.lock().unwrap().names.get(&(bucket.to_owned(), key.to_owned())).cloned()
    }

    /// A command for this node, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        command(self.dir.path(), arguments)
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

/// A command for whatever runs on `data_dir`.
pub fn command(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gabion"));
    command.env("GABION_DATA_DIR", data_dir).env_remove("GABION_TICKET").args(arguments);
    command
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

async fn serve(stream: UnixStream, memory: Arc<Mutex<Memory>>) {
    let stream = Rc::new(stream);
    while let Some((request, descriptor)) = receive(&stream).await {
        let may_follow = matches!(request, ControlRequest::PutSmall { .. } | ControlRequest::GetSmall { .. });
        let events = answer(&mut memory.lock().unwrap(), request, descriptor.map(File::from));
        for event in events {
            // A command that hung up wants no more.
            if stream.send_all(SendSource::Bytes(event.encode()), STALL).await.is_err() {
                return;
            }
        }
        if !may_follow {
            return;
        }
    }
}

async fn receive(stream: &UnixStream) -> Option<(ControlRequest, Option<OwnedFd>)> {
    let (result, buffer) = stream.recv_with_fds(Buffer::heap(4096), 0..LENGTH_BYTES).await;
    let (count, mut fds) = result.ok()?;
    if count != LENGTH_BYTES {
        return None;
    }
    let len = message_len(*buffer.as_slice().first_chunk().unwrap()).unwrap();
    let (result, buffer) = stream.recv_exact(Buffer::heap(len), 0..len, STALL).await;
    result.ok()?;
    Some((ControlRequest::decode(&buffer.as_slice()[..len]).unwrap(), fds.pop()))
}

fn error(code: u8, message: &str) -> Vec<ControlEvent> {
    vec![ControlEvent::Error { code, message: message.to_owned() }]
}

fn answer(memory: &mut Memory, request: ControlRequest, descriptor: Option<File>) -> Vec<ControlEvent> {
    let mut events = match request {
        ControlRequest::Put { bucket, key, metadata, no_clobber, .. } => {
            put(memory, (bucket, key), metadata, no_clobber, descriptor)
        }
        ControlRequest::Get { target, range, resume, output, .. } => {
            memory.resumed = resume;
            get(memory, &target, range, resume, output, descriptor)
        }
        ControlRequest::Stat { target } => match find(memory, &target) {
            Some((name, stored)) => vec![ControlEvent::Entry { entry: entry(&name, &stored) }],
            None => error(4, "it is not here; see gabion ls"),
        },
        ControlRequest::Remove { bucket, key } => match memory.names.remove(&(bucket.clone(), key.clone())) {
            Some(_) => vec![],
            None => error(4, &format!("{bucket}/{key} is not here; see gabion ls")),
        },
        ControlRequest::RemoveMany { bucket, keys } => keys
            .into_iter()
            .map(|key| {
                let gone = memory.names.remove(&(bucket.clone(), key.clone())).is_none();
                let failure = gone.then(|| (4, format!("{bucket}/{key} is not here; see gabion ls")));
                ControlEvent::Removed { key, failure }
            })
            .collect(),
        ControlRequest::List { bucket, prefix, after, limit } => {
            let wanted = memory
                .names
                .iter()
                .filter(|((in_bucket, key), _)| {
                    bucket.as_ref().is_none_or(|bucket| bucket == in_bucket) && key.starts_with(&prefix)
                })
                .filter(|(name, _)| after.as_ref().is_none_or(|after| *name > after));
            let mut events: Vec<_> =
                wanted.map(|(name, stored)| ControlEvent::Entry { entry: entry(name, stored) }).collect();
            let most = usize::try_from(limit).unwrap_or(usize::MAX).min(LISTED_AT_ONCE);
            let more = events.len() > most;
            events.truncate(most);
            events.push(ControlEvent::Listed { more });
            events
        }
        ControlRequest::PutSmall { bucket, no_clobber, files, .. } => {
            let outcomes = files.into_iter().map(|file| put_small(memory, &bucket, no_clobber, file)).collect();
            return vec![ControlEvent::StoredSmall { outcomes }];
        }
        ControlRequest::GetSmall { targets, .. } => {
            let outcomes = targets.iter().map(|target| get_small(memory, target)).collect();
            return vec![ControlEvent::FetchedSmall { outcomes }];
        }
        ControlRequest::Status => vec![ControlEvent::Status { report: status(memory) }],
        ControlRequest::Verify => vec![
            ControlEvent::Verified { done: 10, total: 10 },
            ControlEvent::VerifyDone {
                chunks: 10,
                bytes: 100,
                damaged: memory.left_damaged,
                mended: 0,
                left: memory.left_damaged,
            },
        ],
        ControlRequest::Ticket { .. } => vec![ControlEvent::Text { text: SecretText::new("gt1ticket".to_owned()) }],
        ControlRequest::Reclaim => vec![ControlEvent::Reclaimed { bytes: 5, chunks: 1, segments: 0 }],
        _ => return error(1, "not in this node"),
    };
    if !matches!(events.last(), Some(ControlEvent::Error { .. })) {
        events.push(ControlEvent::Done);
    }
    events
}

/// Names in one page, so that listings of a few have several.
const LISTED_AT_ONCE: usize = 3;

fn put_small(memory: &mut Memory, bucket: &str, no_clobber: bool, file: SmallFile) -> SmallStored {
    let name = (bucket.to_owned(), file.key);
    let contents = (!file.contents.0.is_empty()).then(|| {
        let contents = tempfile::tempfile().unwrap();
        contents.write_all_at(&file.contents.0, 0).unwrap();
        contents
    });
    match put(memory, name, file.metadata, no_clobber, contents).pop() {
        Some(ControlEvent::Stored { content, bytes, bytes_new, .. }) => {
            SmallStored::Stored { content, bytes, bytes_new }
        }
        Some(ControlEvent::Error { code, message }) => SmallStored::Failed { code, message },
        other => panic!("{other:?}"),
    }
}

fn get_small(memory: &Memory, target: &Target) -> SmallFetched {
    let Some(((_, key), stored)) = find(memory, target) else {
        return SmallFetched::Failed { code: 4, message: "it is not here; see gabion ls".to_owned() };
    };
    if memory.damaged_after.is_some() || memory.damaged.contains(&key) {
        let message = "chunk gc1x is damaged and no other node has it".to_owned();
        return SmallFetched::Failed { code: 6, message };
    }
    if memory.grown.contains(&key) {
        return SmallFetched::Large { length: stored.bytes.len() as u64 };
    }
    let content = stored.content();
    SmallFetched::Contents { metadata: stored.metadata, content, contents: Bytes(stored.bytes) }
}

fn put(
    memory: &mut Memory,
    name: (String, String),
    metadata: Metadata,
    no_clobber: bool,
    descriptor: Option<File>,
) -> Vec<ControlEvent> {
    if memory.no_space {
        return error(8, "no space: 12 KiB are free and 1 MiB is needed; remove something, then gabion reclaim");
    }
    if no_clobber && memory.names.contains_key(&name) {
        return error(1, "it exists already; leave --no-clobber out to replace it");
    }
    let mut bytes = Vec::new();
    if let Some(mut file) = descriptor {
        file.read_to_end(&mut bytes).unwrap();
    }
    let stored = Stored { metadata, bytes };
    let (content, len) = (stored.content(), stored.bytes.len() as u64);
    let known = memory.names.values().any(|other| other.content() == content);
    memory.names.insert(name.clone(), stored);
    vec![
        ControlEvent::Progress { done: len, total: None, new: len },
        ControlEvent::Naming,
        ControlEvent::Stored {
            bucket: name.0,
            key: name.1,
            content,
            bytes: len,
            bytes_new: if known { 0 } else { len },
        },
    ]
}

fn get(
    memory: &Memory,
    target: &Target,
    range: Option<(u64, u64)>,
    resume: bool,
    output: OutputKind,
    descriptor: Option<File>,
) -> Vec<ControlEvent> {
    let Some((_, stored)) = find(memory, target) else { return error(4, "it is not here; see gabion ls") };
    let len = stored.bytes.len();
    let (first, last) = range.unwrap_or((0, u64::MAX));
    let first = usize::try_from(first).unwrap().min(len);
    let end = usize::try_from(last).unwrap_or(usize::MAX).saturating_add(1).min(len);
    let mut bytes = &stored.bytes[first..end.max(first)];
    if let Some(damaged_after) = memory.damaged_after {
        bytes = &bytes[..damaged_after.min(bytes.len())];
    }
    let mut resumed = 0;
    if let Some(mut file) = descriptor {
        match output {
            OutputKind::File if resume => {
                resumed = file.metadata().unwrap().len().min(bytes.len() as u64);
                file.write_all_at(bytes, 0).unwrap();
            }
            OutputKind::File => file.write_all_at(bytes, 0).unwrap(),
            OutputKind::Stream => {
                if file.write_all(bytes).is_err() {
                    return error(gabion::node::control::OUTPUT_CLOSED, "nobody reads the output");
                }
            }
        }
    }
    let info = ControlEvent::Info { metadata: stored.metadata.clone(), length: len as u64, content: stored.content() };
    if memory.damaged_after.is_some() {
        let mut events = vec![info];
        events.extend(error(6, "chunk gc1x is damaged and no other node has it"));
        return events;
    }
    vec![info, ControlEvent::Fetched { bytes: bytes.len() as u64 - resumed, bytes_resumed: resumed }]
}

fn find(memory: &Memory, target: &Target) -> Option<((String, String), Stored)> {
    match target {
        Target::Name { bucket, key } => {
            let name = (bucket.clone(), key.clone());
            memory.names.get(&name).map(|stored| (name, stored.clone()))
        }
        Target::Content { address } => memory
            .names
            .iter()
            .find(|(_, stored)| stored.content() == *address)
            .map(|(name, stored)| (name.clone(), stored.clone())),
        Target::Link { .. } => None,
    }
}

fn entry(name: &(String, String), stored: &Stored) -> Entry {
    Entry {
        bucket: name.0.clone(),
        key: name.1.clone(),
        content: stored.content(),
        length: stored.bytes.len() as u64,
        metadata: stored.metadata.clone(),
        stamp_ms: 1_767_225_599_000,
    }
}

fn status(memory: &Memory) -> StatusReport {
    StatusReport {
        state: if memory.degraded { NodeState::Degraded } else { NodeState::Ready },
        reasons: if memory.degraded { vec!["1 of 3 nodes is silent".to_owned()] } else { vec![] },
        node_id: NodeId([1; 32]),
        class: NodeClass::Member,
        network_id: NetworkId([2; 32]),
        listen: "127.0.0.1:3000".to_owned(),
        layout: 1,
        replicas: 3,
        nodes_known: 1,
        nodes_alive: 1,
        chunks: 0,
        bytes_live: 0,
        bytes_disk: 0,
        bytes_free: 0,
        capacity_bytes: None,
        names: memory.names.len() as u64,
        versions: 0,
        deaths_pending: 0,
        cache_bytes: 0,
        payload_bytes_sent: 0,
        payload_bytes_received: 0,
        registered_buffers: 0,
        rss_anon_bytes: 0,
        uptime_s: 1,
    }
}
