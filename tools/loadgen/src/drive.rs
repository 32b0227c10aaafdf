//! Runs a phase: its workers, and beside them the watch that samples, shows and stops.
//!
//! A run is stopped by Ctrl-C, by the first wrong byte or missing object, and by too many failures. Stopped workers take no further
//! operation; those that wait for a node have their connections cut, which is no failure of the node's, and counted apart.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use gabion::cli::exit::{Exit, Failure};
use gabion::node::control::ControlRequest;
use gabion::node::control::client::Client;

use crate::beside::{PutBeside, PutReport, Repeated};
use crate::connection::{Kept, Line};
use crate::content::Content;
use crate::dice::Dice;
use crate::interrupt;
use crate::measure::{Kind, Recorder};
use crate::nodes::{self, Node, Nodes};
use crate::operation::{Operation, Source, Stored, Subject, Trouble, Wanted};
use crate::pacing::{Clock, Pacer, RealClock, Timing, Turn};
use crate::progress::Progress;
use crate::report::PhaseReport;
use crate::sampling::Sampler;
use crate::scenario::{Choice, Phase, Task};

/// How often the watch looks around.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
/// A worker generates and checks on the heap: its stack stays small, so that thousands fit.
const STACK_BYTES: usize = 256 << 10;
/// Objects tried for an overwrite before it becomes a read, when others are being written.
const FREE_OBJECT_TRIES: u64 = 16;
const INTEGRITY: u8 = Exit::Integrity as u8;
const IDLE_ANSWER_MAX: Duration = Duration::from_secs(10);

pub struct Run<'a> {
    pub subject: &'a Subject,
    pub progress: &'a Progress,
    pub interval: Duration,
    pub failures_max: u64,
    stop: AtomicBool,
    wrong: Mutex<Option<Failure>>,
}

impl<'a> Run<'a> {
    pub fn new(subject: &'a Subject, progress: &'a Progress, interval: Duration, failures_max: u64) -> Self {
        let (stop, wrong) = (AtomicBool::new(false), Mutex::new(None));
        Self { subject, progress, interval, failures_max, stop, wrong }
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The first wrong byte, or else the first object that is not there.
    pub fn wrong(&self) -> Option<Failure> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An error: it did not begin. What comes between is in the report.
    pub fn phase(&self, phase: &Phase, nodes: &Nodes) -> Result<PhaseReport, Failure> {
        let idle = idle_connections(nodes, phase.idle)?;
        let put = phase.put.map(|put| self.prepare_put(put)).transpose()?;
        let recorder = Recorder::new(phase.mode, nodes.all.len());
        let pacer = Pacer::new(phase.mode, phase.limit);
        let lines: Vec<Line> = (0..phase.workers).map(|_| Line::default()).collect();
        let put_line = Line::default();
        let gate = Gate::default();
        let (ended, all_ended) = channel();
        let mut report = std::thread::scope(|scope| {
            let mut unstarted = None;
            for (index, line) in lines.iter().enumerate() {
                let worker = Worker { run: self, nodes, phase, pacer: &pacer, recorder: &recorder, line, index };
                let (gate, ended) = (&gate, ended.clone());
                let work = move || worker.work(gate, ended);
                if let Err(error) = Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work) {
                    let message =
                        format!("thread {index} of {} cannot be started: {error}; lower --concurrency", lines.len());
                    unstarted = Some(Failure::other(message));
                    self.stop.store(true, Ordering::Relaxed);
                    break;
                }
            }
            let begin_put = |(put, content, source): (PutBeside, Repeated, Source)| {
                let worker =
                    Worker { run: self, nodes, phase, pacer: &pacer, recorder: &recorder, line: &put_line, index: 0 };
                let (gate, ended) = (&gate, ended.clone());
                Builder::new().spawn_scoped(scope, move || worker.put_beside(gate, ended, put, &content, source))
            };
            let mut putter = None;
            match put.filter(|_| unstarted.is_none()).map(begin_put).transpose() {
                Ok(begun) => putter = begun,
                Err(error) => {
                    unstarted = Some(Failure::other(format!("the thread of the put cannot be started: {error}")));
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
            drop(ended);
            let mut sampler = Sampler::start(phase, nodes, self.interval);
            let clock = gate.open();
            self.watch(&recorder, &lines, &put_line, &mut sampler, clock, &all_ended);
            sampler.report.put = putter.and_then(|putter| putter.join().ok().flatten());
            sampler.report.error = unstarted;
            let end = clock.now();
            for (wait, count) in pacer.never_started(end) {
                recorder.never_started(phase.choice.usual(), wait, count);
                sampler.report.never_started += count;
            }
            sampler.finish(&recorder, end)
        });
        self.progress.clear();
        if !self.is_stopped() {
            report.error = check_idle(idle).err();
        }
        Ok(report)
    }

    /// Until every worker has ended.
    fn watch(
        &self,
        recorder: &Recorder,
        lines: &[Line],
        put_line: &Line,
        sampler: &mut Sampler<'_>,
        clock: RealClock,
        all_ended: &Receiver<()>,
    ) {
        while all_ended.recv_timeout(WATCH_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if interrupt::requested() {
                self.stop.store(true, Ordering::Relaxed);
            }
            if self.is_stopped() {
                lines.iter().chain([put_line]).for_each(Line::hang_up);
            }
            if sampler.look(recorder, clock.now()) {
                self.progress.show(&sampler.line());
            }
        }
    }

    /// What is put beside the workers is made before the phase begins.
    fn prepare_put(&self, put: PutBeside) -> Result<(PutBeside, Repeated, Source), Failure> {
        let content = put.content(&self.subject.contents);
        match self.subject.source(&content) {
            Ok(source) => Ok((put, content, source)),
            Err(Trouble::Failed(failure) | Trouble::Wrong(failure)) => Err(failure),
        }
    }

    fn note_wrong(&self, wrong: Failure) {
        let mut first = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        let is_worse = first.as_ref().is_none_or(|first| first.code != wrong.code && wrong.code == INTEGRITY);
        if is_worse {
            *first = Some(wrong);
        }
        nodes::leave_directory();
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Connections that say nothing, held while they are kept.
fn idle_connections(nodes: &Nodes, count: u32) -> Result<Vec<Client>, Failure> {
    let connect = |node: &Node| node.connect().map_err(|error| Failure::from(error).at("idle connection"));
    (0..count).flat_map(|_| nodes.all.iter().map(connect)).collect()
}

/// Each of them must still be answered: a node that dropped it held fewer than it seemed.
fn check_idle(idle: Vec<Client>) -> Result<(), Failure> {
    let count = idle.len();
    for (index, mut client) in idle.into_iter().enumerate() {
        // Without a limit it would only wait longer.
        let _ = client.set_answer_max(IDLE_ANSWER_MAX);
        let answer = client.run(&ControlRequest::Status, None, |_| ());
        answer.map_err(|error| Failure::from(error).at(format!("idle connection {index} of {count}")))?;
    }
    Ok(())
}

/// Holds all workers back until the last one is there: they begin at the same moment.
#[derive(Default)]
struct Gate {
    began: Mutex<Option<RealClock>>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) -> RealClock {
        let clock = RealClock(Instant::now());
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock);
        self.opened.notify_all();
        clock
    }

    fn wait(&self) -> RealClock {
        let mut began = self.began.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *began {
                Some(clock) => return clock,
                None => began = self.opened.wait(began).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// An operation whose time can begin.
enum Prepared {
    /// First byte and length of the range.
    Read {
        number: u64,
        range: Option<(u64, u64)>,
    },
    Put {
        number: u64,
        content: Content,
        source: Result<Source, Trouble>,
    },
    Remove {
        number: u64,
    },
}

struct Worker<'a> {
    run: &'a Run<'a>,
    nodes: &'a Nodes,
    phase: &'a Phase,
    pacer: &'a Pacer,
    recorder: &'a Recorder,
    line: &'a Line,
    index: usize,
}

impl Worker<'_> {
    /// `ended` goes when this returns, and the watch ends with the last of them.
    fn work(&self, gate: &Gate, ended: Sender<()>) {
        // Wakes from its sleeps when it is time, not up to 50 microseconds later; only a loss of precision if refused.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let clock = gate.wait();
        let is_stopped = || self.run.is_stopped();
        let mut kept: Vec<Kept> = self.nodes.all.iter().map(|_| Kept::default()).collect();
        self.pacer.work(
            &clock,
            is_stopped,
            |turn| self.prepare(turn),
            |prepared| self.operate(prepared, &mut kept),
            |timing, outcome| self.note(timing, outcome),
        );
        drop(ended);
    }

    /// Decides on the operation, and makes what a put reads.
    fn prepare(&self, turn: Turn) -> (Turn, Prepared) {
        let mut dice = Dice::new(&[self.run.subject.contents.seed, turn.index, 3]);
        let prepared = match self.phase.choice.task(turn.index, &mut dice) {
            Task::Write { number } => self.prepare_write(number),
            Task::Read { number, range: None } => Prepared::Read { number, range: None },
            Task::Read { number, range: Some(sizes) } => {
                let contents = &self.run.subject.contents;
                let length = contents.of(number, self.run.subject.ledger.floor(number)).len;
                let range = (length > 0).then(|| {
                    let len = sizes.draw(&mut dice).clamp(1, length);
                    (dice.below(length - len + 1), len)
                });
                Prepared::Read { number, range }
            }
        };
        (turn, prepared)
    }

    /// The next generation of the object, or of a near one that nobody else writes just now.
    fn prepare_write(&self, number: u64) -> Prepared {
        let Subject { contents, ledger, .. } = self.run.subject;
        for number in self.near(number) {
            let Some(generation) = ledger.begin_write(number) else { continue };
            if ledger.is_absent(number, generation) {
                return Prepared::Remove { number };
            }
            let content = contents.of(number, generation);
            return Prepared::Put { number, content, source: self.run.subject.source(&content) };
        }
        Prepared::Read { number, range: None }
    }

    /// The put beside the workers: the phase ends with it.
    fn put_beside(
        &self,
        gate: &Gate,
        ended: Sender<()>,
        put: PutBeside,
        content: &Repeated,
        source: Source,
    ) -> Option<PutReport> {
        let node = self.nodes.all.first()?;
        let mut kept = Kept::default();
        let mut operation = self.operation(node, &mut kept);
        let ledger = &self.run.subject.ledger;
        let clock = gate.wait();
        ledger.begin_write(put.number);
        let began = clock.now();
        let outcome = operation.put(put.number, content, source, true).map(|stored| stored.bytes);
        let elapsed = clock.now().saturating_sub(began);
        self.pacer.end(clock.now());
        ledger.end_write(put.number, outcome.is_ok());
        let report = outcome.as_ref().ok().map(|bytes| PutReport { bytes: *bytes, elapsed });
        if outcome.is_err() {
            self.note(Timing { latency: elapsed, service: elapsed }, (Kind::Put, outcome));
        }
        drop(ended);
        report
    }

    fn operation<'b>(&'b self, node: &'b Node, kept: &'b mut Kept) -> Operation<'b> {
        Operation { subject: self.run.subject, node, recorder: self.recorder, line: self.line, kept }
    }

    /// `kept`: this worker's connections, one place for each node.
    fn operate(&self, (turn, prepared): (Turn, Prepared), kept: &mut [Kept]) -> (Kind, Result<u64, Trouble>) {
        let index = self.phase.route.node(turn.index, self.nodes.all.len());
        let (Some(node), Some(kept)) = (self.nodes.all.get(index), kept.get_mut(index)) else {
            return (Kind::Get, Err(Trouble::Failed(Failure::other("no node"))));
        };
        let mut operation = self.operation(node, kept);
        let ledger = &self.run.subject.ledger;
        match prepared {
            Prepared::Read { number, range } => {
                let kind = if range.is_some() { Kind::Range } else { Kind::Get };
                let read = operation.read(Wanted { number, range, remote: self.phase.remote });
                (kind, read.inspect(|bytes| self.recorder.read_through(index, *bytes)))
            }
            Prepared::Put { number, content, source } => {
                let outcome =
                    source.and_then(|source| operation.put(number, &content, source, self.run.subject.no_dedup));
                ledger.end_write(number, outcome.is_ok());
                let bytes = |stored: Stored| {
                    self.recorder.stored_new(stored.bytes_new);
                    stored.bytes
                };
                (Kind::Put, outcome.map(bytes))
            }
            Prepared::Remove { number } => {
                let outcome = operation.remove(number);
                ledger.end_write(number, outcome.is_ok());
                (Kind::Remove, outcome.map(|()| 0))
            }
        }
    }

    fn near(&self, number: u64) -> impl Iterator<Item = u64> {
        let objects = match &self.phase.choice {
            Choice::Drawn { popularity, .. } => popularity.objects(),
            Choice::PutEach | Choice::GetEach(_) | Choice::Get(_) => u64::MAX,
        };
        (0..FREE_OBJECT_TRIES.min(objects)).map(move |step| number.wrapping_add(step) % objects)
    }

    fn note(&self, timing: Timing, (kind, outcome): (Kind, Result<u64, Trouble>)) {
        match outcome {
            Ok(bytes) => self.recorder.done(self.index, kind, timing, bytes),
            Err(Trouble::Wrong(wrong)) => {
                self.recorder.fail(self.index, kind, timing, wrong.code, wrong.message.clone());
                self.run.note_wrong(wrong);
            }
            Err(Trouble::Failed(_)) if self.run.is_stopped() || interrupt::requested() => {
                self.recorder.cut_off(self.index, kind, timing);
            }
            Err(Trouble::Failed(failure)) => {
                self.recorder.fail(self.index, kind, timing, failure.code, failure.message);
                if self.recorder.failed() >= self.run.failures_max {
                    self.run.stop.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}
