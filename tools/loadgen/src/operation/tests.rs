//! Against a node that answers as each test has it.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gabion::format::Address;
use gabion::node::control::{LENGTH_BYTES, SOCKET_NAME, message_len};
use tempfile::TempDir;

use super::*;
use crate::content::Sizes;
use crate::pacing::Loop;

const LEN: u64 = 1000;
const NOT_FOUND: u8 = 4;
const WAIT_MAX: Duration = Duration::from_secs(20);

/// A request, and on which connection it came.
type Asked = (usize, ControlRequest);

/// Answers requests by `answer`; where it gives nothing, the node hangs up.
struct FakeNode {
    node: Node,
    asked: Receiver<Asked>,
    _dir: TempDir,
}

impl FakeNode {
    fn start(answer: impl FnMut(&ControlRequest) -> Vec<ControlEvent> + Send + Clone + 'static) -> Self {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let (note, asked) = channel();
        let node = Node::at(dir.path().to_owned());
        std::thread::spawn(move || {
            // The first connection only asked who listens.
            for (index, stream) in listener.incoming().skip(1).enumerate() {
                let (mut stream, note, mut answer) = (stream.unwrap(), note.clone(), answer.clone());
                std::thread::spawn(move || {
                    while let Some(request) = next_request(&mut stream) {
                        let events = answer(&request);
                        let is_end = events.is_empty();
                        let _ = note.send((index, request));
                        events.iter().for_each(|event| stream.write_all(&event.encode()).unwrap());
                        if is_end {
                            return;
                        }
                    }
                });
            }
        });
        Self { node, asked, _dir: dir }
    }

    /// Answers every `GetSmall` by this.
    fn of_gets(outcome: SmallFetched) -> Self {
        Self::start(move |request| match request {
            ControlRequest::GetSmall { .. } => fetched(outcome.clone()),
            _ => vec![ControlEvent::Fetched { bytes: 0, bytes_resumed: 0 }, ControlEvent::Done],
        })
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.try_iter().collect()
    }
}

fn next_request(stream: &mut UnixStream) -> Option<ControlRequest> {
    let mut head = [0; LENGTH_BYTES];
    stream.read_exact(&mut head).ok()?;
    let mut message = vec![0; message_len(head).unwrap()];
    stream.read_exact(&mut message).ok()?;
    Some(ControlRequest::decode(&message).unwrap())
}

fn fetched(outcome: SmallFetched) -> Vec<ControlEvent> {
    vec![ControlEvent::FetchedSmall { outcomes: vec![outcome] }]
}

fn stored(bytes: u64) -> Vec<ControlEvent> {
    let outcome = SmallStored::Stored { content: Address::ZERO, bytes, bytes_new: bytes };
    vec![ControlEvent::StoredSmall { outcomes: vec![outcome] }]
}

fn contents(contents: Vec<u8>) -> SmallFetched {
    let content = Address::ZERO;
    SmallFetched::Contents { metadata: metadata(), content, contents: Bytes(contents) }
}

/// A worker and what it shares with others; object 1 was written twice.
struct Bench {
    subject: Subject,
    recorder: Recorder,
    line: Line,
    kept: Kept,
}

impl Bench {
    fn new() -> Self {
        let subject = Subject {
            contents: Contents { seed: 5, sizes: Sizes::exactly(LEN) },
            ledger: Ledger::new(5, 0),
            bucket: "bench".to_owned(),
            via: Via::Pipe,
            no_dedup: false,
            keepalive: true,
            beside: None,
            scratch: std::env::temp_dir(),
        };
        for _ in 0..2 {
            subject.ledger.begin_write(1);
            subject.ledger.end_write(1, true);
        }
        Self { subject, recorder: Recorder::new(Loop::Closed, 1), line: Line::default(), kept: Kept::default() }
    }

    fn on<'a>(&'a mut self, fake: &'a FakeNode) -> Operation<'a> {
        let Self { subject, recorder, line, kept } = self;
        Operation { subject, node: &fake.node, recorder, line, kept }
    }

    fn bytes(&self, number: u64, generation: u32) -> Vec<u8> {
        let mut bytes = vec![0; LEN as usize];
        self.subject.contents.of(number, generation).fill(0, &mut bytes);
        bytes
    }

    fn put(&mut self, fake: &FakeNode, number: u64, no_dedup: bool) -> Result<u64, Trouble> {
        let content = self.subject.contents.of(number, 1);
        let source = self.subject.source(&content)?;
        self.on(fake).put(number, &content, source, no_dedup).map(|stored| stored.bytes)
    }

    /// Reads a whole object against a new node that answers every `GetSmall` so.
    fn read_of(&mut self, number: u64, outcome: SmallFetched) -> Result<u64, Trouble> {
        self.kept = Kept::default();
        self.on(&FakeNode::of_gets(outcome)).read(whole(number))
    }
}

fn whole(number: u64) -> Wanted {
    Wanted { number, range: None, remote: false }
}

/// The exit code and the message of what ends the run.
fn wrong(outcome: Result<u64, Trouble>) -> (u8, String) {
    match outcome {
        Err(Trouble::Wrong(failure)) => (failure.code, failure.message),
        other => panic!("not seen: {other:?}"),
    }
}

fn failed(outcome: Result<u64, Trouble>) -> Failure {
    match outcome {
        Err(Trouble::Failed(failure)) => failure,
        other => panic!("no failure: {other:?}"),
    }
}

#[test]
fn one_connection_carries_puts_and_gets_and_what_they_ask_for() {
    let mut bench = Bench::new();
    let right = bench.bytes(1, 2);
    let answer = contents(right.clone());
    let fake = FakeNode::start(move |request| match request {
        ControlRequest::PutSmall { .. } => stored(LEN),
        _ => fetched(answer.clone()),
    });
    for (no_dedup, remote) in [(false, false), (true, true)] {
        assert_eq!(bench.put(&fake, 7, no_dedup).unwrap(), LEN);
        assert_eq!(bench.on(&fake).read(Wanted { remote, ..whole(1) }).unwrap(), LEN);
    }
    assert_eq!(bench.recorder.bytes(), 4 * LEN);
    let put = |no_dedup| ControlRequest::PutSmall {
        bucket: "bench".to_owned(),
        no_dedup,
        no_clobber: false,
        files: vec![SmallFile { key: key(7), metadata: metadata(), contents: Bytes(bench.bytes(7, 1)) }],
    };
    let get = |remote| ControlRequest::GetSmall {
        targets: vec![Target::Name { bucket: "bench".to_owned(), key: key(1) }],
        remote,
    };
    let asked = [put(false), get(false), put(true), get(true)].map(|request| (0, request));
    assert_eq!(fake.asked(), asked);
}

#[test]
fn bytes_that_are_not_those_of_the_acknowledged_write_are_wrong() {
    let mut bench = Bench::new();
    let right = bench.bytes(1, 2);
    let mut flipped = right.clone();
    flipped[617] ^= 1;
    let longer = [right.as_slice(), &[0]].concat();
    for (found, told) in [
        (flipped, "wrong from byte 617 on: no write of it has these bytes there"),
        (longer, "wrong from byte 1000 on"),
        (right[..999].to_vec(), "nothing more came from byte 999 on"),
        (Vec::new(), "nothing more came from byte 0 on"),
        (bench.bytes(1, 1), "these bytes are of write 1, but write 2 was acknowledged"),
    ] {
        let (code, message) = wrong(bench.read_of(1, contents(found)));
        assert_eq!(code, Exit::Integrity.code());
        assert!(message.contains(told), "{message}");
    }
    assert_eq!(bench.read_of(1, contents(right)).unwrap(), LEN);
}

#[test]
fn a_read_beside_a_write_may_return_either() {
    let mut bench = Bench::new();
    bench.subject.ledger.begin_write(1);
    for generation in [2, 3] {
        let found = contents(bench.bytes(1, generation));
        assert_eq!(bench.read_of(1, found).unwrap(), LEN);
    }
    let oldest = contents(bench.bytes(1, 1));
    assert_eq!(wrong(bench.read_of(1, oldest)).0, Exit::Integrity.code());
}

#[test]
fn an_object_that_is_not_there_is_missed_only_where_it_was_acknowledged() {
    let mut bench = Bench::new();
    let absent = || SmallFetched::Failed { code: NOT_FOUND, message: "no such name".to_owned() };
    let (code, message) = wrong(bench.read_of(1, absent()));
    assert_eq!(code, NOT_FOUND);
    assert!(message.contains("object-1 at") && message.contains("acknowledged and not there"), "{message}");
    assert_eq!(bench.read_of(2, absent()).unwrap(), 0, "it was never put");
    let full = SmallFetched::Failed { code: 8, message: "full".to_owned() };
    assert_eq!(failed(bench.read_of(1, full)).code, 8);
}

#[test]
fn a_put_is_what_the_node_says_became_of_it() {
    let mut bench = Bench::new();
    let fake = FakeNode::start(|_| stored(LEN - 1));
    assert_eq!(wrong(bench.put(&fake, 7, false)).0, Exit::Integrity.code());
    let full = SmallStored::Failed { code: 8, message: "full".to_owned() };
    let fake = FakeNode::start(move |_| vec![ControlEvent::StoredSmall { outcomes: vec![full.clone()] }]);
    bench.kept = Kept::default();
    for _ in 0..2 {
        assert_eq!(failed(bench.put(&fake, 7, false)).code, 8);
    }
    assert!(fake.asked().iter().all(|(connection, _)| *connection == 0), "such a failure does not end the connection");
}

#[test]
fn a_put_of_a_file_moves_as_the_node_says() {
    let mut bench = Bench::new();
    bench.subject.keepalive = false;
    let progress = |done| ControlEvent::Progress { done, total: Some(LEN), new: done };
    let (bucket, key) = ("bench".to_owned(), key(7));
    let stored = ControlEvent::Stored { bucket, key, content: Address::ZERO, bytes: LEN, bytes_new: LEN };
    let lost = ControlEvent::Error { code: 5, message: "the node stops".to_owned() };
    for (events, moved) in [
        (vec![progress(300), progress(600), lost], 600),
        (vec![progress(300), progress(200), stored.clone(), ControlEvent::Done], LEN),
        (vec![stored, ControlEvent::Done], LEN),
    ] {
        bench.recorder = Recorder::new(Loop::Closed, 1);
        let fake = FakeNode::start(move |_| events.clone());
        let is_stored = bench.put(&fake, 7, false).is_ok();
        assert_eq!((bench.recorder.bytes(), is_stored), (moved, moved == LEN));
    }
}

#[test]
fn the_put_that_ran_beside_is_read_by_a_command_and_compared() {
    let mut bench = Bench::new();
    bench.subject.beside = Some(PutBeside { number: 1, bytes: 3 << 20 });
    let fake = FakeNode::of_gets(contents(Vec::new()));
    let (code, message) = wrong(bench.on(&fake).read(whole(1)));
    assert_eq!(code, Exit::Integrity.code());
    assert!(message.contains("object-1 at") && message.contains("nothing more came from byte 0 on"), "{message}");
    assert!(matches!(&fake.asked()[..], [(0, ControlRequest::Get { .. })]));
}

#[test]
fn a_connection_is_made_anew_after_anything_but_the_answer() {
    let error = ControlEvent::Error { code: 5, message: "the node stops".to_owned() };
    let two = ControlEvent::FetchedSmall { outcomes: vec![contents(Vec::new()), contents(Vec::new())] };
    for (broken, code) in [(Vec::new(), 5), (vec![error], 5), (vec![two], 1), (vec![ControlEvent::Done], 1)] {
        let mut bench = Bench::new();
        let answer = contents(bench.bytes(1, 2));
        let fake = FakeNode::start(move |request| match request {
            ControlRequest::GetSmall { remote: true, .. } => broken.clone(),
            _ => fetched(answer.clone()),
        });
        bench.on(&fake).read(whole(1)).unwrap();
        assert_eq!(failed(bench.on(&fake).read(Wanted { remote: true, ..whole(1) })).code, code);
        bench.on(&fake).read(whole(1)).unwrap();
        let connections: Vec<usize> = fake.asked().iter().map(|(connection, _)| *connection).collect();
        assert_eq!(connections, [0, 0, 1]);
    }
}

#[test]
fn what_the_node_calls_long_is_asked_for_by_a_command_and_judged_as_any() {
    let mut bench = Bench::new();
    let fake = FakeNode::of_gets(SmallFetched::Large { length: 1 << 20 });
    let (code, message) = wrong(bench.on(&fake).read(whole(1)));
    assert_eq!(code, Exit::Integrity.code());
    assert!(message.contains("nothing more came from byte 0 on"), "{message}");
    let asked = fake.asked();
    assert!(matches!(&asked[..], [(0, ControlRequest::GetSmall { .. }), (1, ControlRequest::Get { .. })]), "{asked:?}");
}

#[test]
fn ranges_and_all_without_keepalive_are_commands() {
    let mut bench = Bench::new();
    let fake = FakeNode::start(|_| vec![ControlEvent::Error { code: 8, message: "no".to_owned() }]);
    failed(bench.on(&fake).read(Wanted { range: Some((3, 4)), ..whole(1) }));
    bench.subject.keepalive = false;
    failed(bench.on(&fake).read(whole(1)));
    failed(bench.put(&fake, 7, false));
    let asked = fake.asked();
    let is_commands = matches!(
        &asked[..],
        [(0, ControlRequest::Get { .. }), (1, ControlRequest::Get { .. }), (2, ControlRequest::Put { .. })]
    );
    assert!(is_commands, "{asked:?}");
}

#[test]
fn the_line_cuts_a_kept_connection_that_waits() {
    let mut bench = Bench::new();
    let line = Line::default();
    let (give_up, may_answer) = channel::<()>();
    let may_answer = Arc::new(Mutex::new(may_answer));
    let fake = FakeNode::start(move |_| {
        // Until the test has seen what it waits for, or for ever too long.
        let _ = may_answer.lock().unwrap().recv_timeout(WAIT_MAX);
        Vec::new()
    });
    let is_cut = std::thread::scope(|scope| {
        let Bench { subject, recorder, kept, .. } = &mut bench;
        let (node, line) = (&fake.node, &line);
        let waiting = scope.spawn(move || Operation { subject, node, recorder, line, kept }.read(whole(1)));
        let began = std::time::Instant::now();
        while !waiting.is_finished() && began.elapsed() < WAIT_MAX / 2 {
            line.hang_up();
            std::thread::sleep(Duration::from_millis(5));
        }
        let is_cut = waiting.is_finished();
        drop(give_up);
        failed(waiting.join().unwrap());
        is_cut
    });
    assert!(is_cut);
}
