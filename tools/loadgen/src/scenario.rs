//! Scenarios: what each one puts beforehand, does, and assumes where the command line leaves it open.
//!
//! | scenario | objects | size | then | at a time |
//! | --- | --- | --- | --- | --- |
//! | put | - | 1M | new objects for 10 s | 8 |
//! | get | 256 | 1M | get, 10 s | 8 |
//! | mixed | 1,000 | 64K | 90 % get, 10 % overwrite, skew 0.99, 10 s | 16 |
//! | ranges | 16 | 16M | ranges of 1-256K, 10 s | 8 |
//! | overwrite | 200 | 1-256K | 40 % get, of the writes 20 % removals, 10 s | 8 |
//! | small | 5,000 | 1-4K | get each, in number as many | 32 |
//! | huge | 2 | 1G | get each | 2 |
//! | connections | 1,000 | 4K | get, 10 s, 256 idle ones beside | 256 |
//! | peers | 4 | 256M | get each through the first node, past its own copies | 1 |
//! | beside | 1,000 | 4K | get, 10 s at 500 a second; then the same for as long as a put of 10G runs (one of 1G at most is read back) | 64 |
//! | crowd | 1 | 256M | every receiver once, through all nodes but the first | one for each of these nodes |
//!
//! Whole objects that all fit a request go over connections that are kept, one for each worker and node; all else is one
//! command a connection, and with `--disable-keepalive` everything is. The idle ones must answer in the end. (How many
//! sessions of other nodes a node bears, and how many strangers, is another question: `tools/acceptance` asks the second.)
//!
//! Of a crowd, with `--spawn`, the first node is alone when the file is put, with one copy; the others join then: it has the
//! whole file, and every receiver's node must fetch. On nodes that run already the layout says who has which chunk.

use std::time::Duration;

use gabion::cli::exit::Failure;
use gabion::limits::SMALL_CHUNK_BYTES_MAX;

use crate::arguments::{LoadArguments, Scenario};
use crate::beside::PutBeside;
use crate::content::Sizes;
use crate::dice::Dice;
use crate::measure::Kind;
use crate::operation::Via;
use crate::pacing::{Limit, Loop};
use crate::popularity::Popularity;

const DURATION: Duration = Duration::from_secs(10);
/// Puts at a time beforehand.
const FILLERS_MIN: u32 = 4;
const FILLERS_MAX: u32 = 16;
/// A node reads a chunk past the page cache for the first time, and leaves it there the second time.
const READS_UNTIL_HOT: u64 = 2;
/// Of the gets that a put runs beside.
const BESIDE_RATE: f64 = 500.0;
const BESIDE_PUT_BYTES: u64 = 10 << 30;
/// A longer one is read back only where all is.
pub const BESIDE_READ_BACK_BYTES_MAX: u64 = 1 << 30;

/// What the operations of a phase are.
#[derive(Debug)]
pub enum Choice {
    /// Operation `i` puts object `i`.
    PutEach,
    /// Operation `i` reads object `i` of so many, again from the first one after the last.
    GetEach(u64),
    /// Every operation reads this object.
    Get(u64),
    Drawn {
        popularity: Popularity,
        reads: u32,
        ranges: Option<Sizes>,
    },
}

/// What one operation is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Write { number: u64 },
    Read { number: u64, range: Option<Sizes> },
}

impl Choice {
    pub fn task(&self, index: u64, dice: &mut Dice) -> Task {
        match self {
            Choice::PutEach => Task::Write { number: index },
            Choice::GetEach(objects) => Task::Read { number: index.checked_rem(*objects).unwrap_or(0), range: None },
            Choice::Get(number) => Task::Read { number: *number, range: None },
            Choice::Drawn { popularity, reads, ranges } => {
                let number = popularity.draw(dice);
                if dice.percent(*reads) { Task::Read { number, range: *ranges } } else { Task::Write { number } }
            }
        }
    }

    /// What an operation that never began would most likely have been.
    pub fn usual(&self) -> Kind {
        match self {
            Choice::PutEach => Kind::Put,
            Choice::GetEach(_) | Choice::Get(_) => Kind::Get,
            Choice::Drawn { ranges: Some(_), .. } => Kind::Range,
            Choice::Drawn { reads, .. } => {
                if *reads >= 50 {
                    Kind::Get
                } else {
                    Kind::Put
                }
            }
        }
    }
}

/// Which node is asked by operation `i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    InTurn,
    First,
    /// In turn, but not the first one unless it is alone.
    AllButFirst,
}

impl Route {
    pub fn node(self, index: u64, nodes: usize) -> usize {
        let (first, of) = match self {
            Route::First => (0, 1),
            Route::AllButFirst if nodes > 1 => (1, nodes - 1),
            Route::InTurn | Route::AllButFirst => (0, nodes),
        };
        first + (index % of.max(1) as u64) as usize
    }
}

#[derive(Debug)]
pub struct Phase {
    pub name: &'static str,
    pub choice: Choice,
    pub route: Route,
    pub remote: bool,
    pub workers: u32,
    pub mode: Loop,
    pub limit: Limit,
    /// Silent connections on each node meanwhile.
    pub idle: u32,
    /// Runs beside the operations, which end with it.
    pub put: Option<PutBeside>,
    /// All nodes must have joined.
    pub after_joining: bool,
}

/// A scenario with everything decided.
#[derive(Debug)]
pub struct Plan {
    pub name: &'static str,
    pub sizes: Sizes,
    pub via: Via,
    /// Whole objects go over connections that are kept.
    pub keepalive: bool,
    pub removals: u32,
    /// Objects that are there before the last phase, for `--reuse`.
    pub objects: u64,
    pub phases: Vec<Phase>,
}

/// What a scenario is when the command line says nothing.
struct Usual {
    name: &'static str,
    objects: u64,
    sizes: Sizes,
    workers: u32,
    idle: u32,
    remote: bool,
    /// Of `Drawn`.
    reads: u32,
    removals: u32,
    skew: f64,
    ranges: Option<Sizes>,
    /// Operations; by time when none.
    count: Option<u64>,
    each: bool,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

impl Usual {
    fn of(scenario: Scenario) -> Self {
        let drawn = |name, objects, sizes, workers| Self {
            name,
            objects,
            sizes,
            workers,
            idle: 0,
            remote: false,
            reads: 100,
            removals: 0,
            skew: 0.0,
            ranges: None,
            count: None,
            each: false,
        };
        let each = |name, objects, sizes, workers| Self {
            each: true,
            count: Some(objects),
            ..drawn(name, objects, sizes, workers)
        };
        let exactly = Sizes::exactly;
        let upto = |bytes_max| Sizes { bytes_min: 1, bytes_max };
        match scenario {
            Scenario::Put => drawn("put", 0, exactly(MIB), 8),
            Scenario::Get => drawn("get", 256, exactly(MIB), 8),
            Scenario::Mixed => Self { reads: 90, skew: 0.99, ..drawn("mixed", 1000, exactly(64 * KIB), 16) },
            Scenario::Ranges => Self { ranges: Some(upto(256 * KIB)), ..drawn("ranges", 16, exactly(16 * MIB), 8) },
            Scenario::Overwrite => Self { reads: 40, removals: 20, ..drawn("overwrite", 200, upto(256 * KIB), 8) },
            Scenario::Small => each("small", 5000, upto(4 * KIB), 32),
            Scenario::Huge => each("huge", 2, exactly(1024 * MIB), 2),
            Scenario::Connections => Self { idle: 256, ..drawn("connections", 1000, exactly(4 * KIB), 256) },
            Scenario::Beside => drawn("beside", 1000, exactly(4 * KIB), 64),
            Scenario::Peers => Self { remote: true, ..each("peers", 4, exactly(256 * MIB), 1) },
            // Receivers: as many as nodes that ask.
            Scenario::Crowd => each("crowd", 1, exactly(256 * MIB), 1),
        }
    }
}

impl Plan {
    pub fn new(scenario: Scenario, load: &LoadArguments, nodes: usize) -> Result<Self, Failure> {
        if scenario == Scenario::Peers && nodes < 2 {
            return Err(Failure::usage("peers needs at least two nodes: --spawn 3, or --node several times"));
        }
        if scenario == Scenario::Crowd && nodes < 2 {
            return Err(Failure::usage(
                "crowd needs at least two nodes, one that has the file and one that asks: --spawn 3",
            ));
        }
        let mut usual = Usual::of(scenario);
        if scenario == Scenario::Crowd {
            usual.workers = (nodes - 1) as u32;
        }
        let objects = if scenario == Scenario::Crowd { 1 } else { load.objects.unwrap_or(usual.objects) };
        let workers = load.concurrency.unwrap_or(usual.workers);
        let measured = Measured { scenario, load, usual: &usual, objects, workers };
        let mut phases = Vec::new();
        if objects > 0 && scenario != Scenario::Put && !load.reuse {
            phases.push(measured.fill());
        }
        match scenario {
            Scenario::Beside => phases.extend(measured.beside()),
            _ => phases.push(measured.phase()),
        }
        // A client that feeds a pipe takes the processor from the gets that it measures.
        let via_usual = if scenario == Scenario::Beside { Via::File } else { Via::Pipe };
        let sizes = load.size.unwrap_or(usual.sizes);
        Ok(Self {
            name: usual.name,
            via: load.via.unwrap_or(via_usual),
            // Who gets an object does not know its length before: all must fit.
            keepalive: !load.disable_keepalive && sizes.bytes_max <= SMALL_CHUNK_BYTES_MAX as u64,
            sizes,
            removals: load.removes.unwrap_or(usual.removals),
            objects: if scenario == Scenario::Put { 0 } else { objects },
            phases,
        })
    }

    /// What is put beside the gets, if anything is.
    pub fn put_beside(&self) -> Option<PutBeside> {
        self.phases.iter().find_map(|phase| phase.put)
    }

    /// Reads what was put, each object once.
    pub fn read_back(workers: u32, objects: u64) -> Phase {
        Phase {
            name: "read back",
            choice: Choice::GetEach(objects),
            route: Route::InTurn,
            remote: false,
            workers,
            mode: Loop::Closed,
            limit: Limit { operations: Some(objects), duration: None },
            idle: 0,
            put: None,
            after_joining: true,
        }
    }
}

struct Measured<'a> {
    scenario: Scenario,
    load: &'a LoadArguments,
    usual: &'a Usual,
    objects: u64,
    workers: u32,
}

impl Measured<'_> {
    fn fill(&self) -> Phase {
        // Of small and huge objects the puts are half of the point.
        let is_measured = matches!(self.scenario, Scenario::Small | Scenario::Huge);
        Phase {
            name: if is_measured { "put" } else { "put beforehand" },
            choice: Choice::PutEach,
            route: if self.scenario == Scenario::Crowd { Route::First } else { Route::InTurn },
            remote: false,
            workers: if is_measured { self.workers } else { self.workers.clamp(FILLERS_MIN, FILLERS_MAX) },
            mode: if is_measured { self.mode() } else { Loop::Closed },
            // All of them, whatever ends the phases that follow: those read them all.
            limit: Limit { operations: Some(self.objects), duration: None },
            idle: 0,
            put: None,
            after_joining: self.scenario != Scenario::Crowd,
        }
    }

    /// Every object until all are hot; gets alone; the same gets beside a put; mostly a get of what was put.
    fn beside(&self) -> Vec<Phase> {
        let hot = Phase {
            name: "make hot",
            route: Route::First,
            limit: Limit { operations: Some(READS_UNTIL_HOT * self.objects), duration: None },
            ..Plan::read_back(FILLERS_MAX, self.objects)
        };
        let alone = || Phase {
            name: "alone",
            route: Route::First,
            mode: Loop::Open(self.load.rate.unwrap_or(BESIDE_RATE)),
            ..self.phase()
        };
        let put = PutBeside { number: self.objects, bytes: self.load.put.unwrap_or(BESIDE_PUT_BYTES) };
        let limit = Limit { operations: None, duration: None };
        let mut phases = vec![hot, alone(), Phase { name: "beside", put: Some(put), limit, ..alone() }];
        if put.bytes <= BESIDE_READ_BACK_BYTES_MAX && !self.load.read_back {
            let choice = Choice::Get(put.number);
            phases.push(Phase { name: "read put back", choice, route: Route::First, ..Plan::read_back(1, 1) });
        }
        phases
    }

    fn phase(&self) -> Phase {
        let (load, usual) = (self.load, self.usual);
        let choice = match self.scenario {
            Scenario::Put => Choice::PutEach,
            _ if usual.each => Choice::GetEach(self.objects),
            _ => Choice::Drawn {
                popularity: Popularity::new(self.objects, load.zipf.unwrap_or(usual.skew)),
                reads: load.reads.filter(|_| usual.reads < 100).unwrap_or(usual.reads),
                ranges: usual.ranges.map(|ranges| load.range_size.unwrap_or(ranges)),
            },
        };
        Phase {
            name: usual.name,
            choice,
            route: match self.scenario {
                Scenario::Crowd => Route::AllButFirst,
                // One reader: else each node would serve the others, and nothing say that several served one.
                Scenario::Peers => Route::First,
                _ => Route::InTurn,
            },
            remote: load.remote || usual.remote,
            workers: self.workers,
            mode: self.mode(),
            limit: self.limit(),
            idle: load.idle.unwrap_or(usual.idle),
            put: None,
            after_joining: true,
        }
    }

    fn mode(&self) -> Loop {
        self.load.rate.map_or(Loop::Closed, Loop::Open)
    }

    fn limit(&self) -> Limit {
        let (count, duration) = (self.load.count, self.load.duration);
        if self.scenario == Scenario::Crowd {
            return Limit { operations: Some(u64::from(self.workers)), duration: None };
        }
        if count.is_some() || duration.is_some() {
            return Limit { operations: count, duration };
        }
        match self.usual.count {
            Some(_) => Limit { operations: Some(self.objects), duration: None },
            None => Limit { operations: None, duration: Some(DURATION) },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Parser, ValueEnum};

    use super::*;
    use crate::arguments::Arguments;

    fn plan(line: &str, nodes: usize) -> Result<Plan, Failure> {
        let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        Plan::new(arguments.scenario.unwrap(), &arguments.load, nodes)
    }

    #[test]
    fn every_scenario_has_an_end_and_objects_to_read() {
        for scenario in Scenario::value_variants() {
            let name = scenario.to_possible_value().unwrap().get_name().to_owned();
            let plan = plan(&format!("loadgen {name} --spawn 3"), 3).unwrap();
            assert_eq!(plan.name, name);
            for phase in &plan.phases {
                let Limit { operations, duration } = phase.limit;
                assert!(operations.is_some() || duration.is_some() || phase.put.is_some(), "{name}");
            }
            let phases = match scenario {
                Scenario::Put => 1,
                Scenario::Beside => 4,
                _ => 2,
            };
            assert_eq!(plan.phases.len(), phases, "{name}");
        }
    }

    #[test]
    fn a_crowd_asks_all_but_the_node_that_has_the_file() {
        let plan = plan("loadgen crowd --spawn 3 --concurrency 9", 3).unwrap();
        let [fill, crowd] = plan.phases.as_slice() else { panic!() };
        assert!((0..9).all(|index| fill.route.node(index, 3) == 0));
        let asked: Vec<_> = (0..4).map(|index| crowd.route.node(index, 3)).collect();
        assert_eq!(asked, [1, 2, 1, 2]);
        assert_eq!(crowd.route.node(5, 1), 0);
        assert_eq!((crowd.workers, crowd.limit.operations), (9, Some(9)));
        assert_eq!((fill.after_joining, crowd.after_joining), (false, true), "the first node alone has the file");
    }

    #[test]
    fn a_crowd_has_a_receiver_for_each_node_that_asks() {
        assert_eq!(plan("loadgen crowd --spawn 1", 1).unwrap_err().code, 2);
        let plan = plan("loadgen crowd --spawn 5", 5).unwrap();
        assert_eq!(plan.phases.last().map(|crowd| crowd.workers), Some(4));
    }

    #[test]
    fn puts_that_are_measured_come_at_the_rate_and_are_all_done() {
        for (line, puts) in [("small", Loop::Open(50.0)), ("huge", Loop::Open(50.0)), ("get", Loop::Closed)] {
            let plan = plan(&format!("loadgen {line} --spawn 1 --objects 9 --rate 50 --count 3"), 1).unwrap();
            let [fill, read] = plan.phases.as_slice() else { panic!() };
            assert_eq!((fill.mode, fill.limit.operations), (puts, Some(9)), "{line}");
            assert_eq!((read.mode, read.limit.operations), (Loop::Open(50.0), Some(3)), "{line}");
        }
    }

    #[test]
    fn the_put_beside_is_read_back_unless_it_is_long_or_all_is() {
        for (options, is_read) in [("1G", true), ("200M", true), ("1025M", false), ("1G --read-back", false)] {
            let arguments = format!("loadgen beside --spawn 1 --objects 9 --put {options}");
            let plan = plan(&arguments, 1).unwrap();
            let last = &plan.phases.last().unwrap().choice;
            let task = last.task(0, &mut Dice::new(&[1]));
            assert_eq!(task == Task::Read { number: 9, range: None }, is_read, "{options}");
            assert_eq!(plan.put_beside().unwrap().number, 9);
        }
    }

    #[test]
    fn peers_need_two_nodes() {
        assert_eq!(plan("loadgen peers --spawn 1", 1).unwrap_err().code, 2);
        assert!(plan("loadgen peers --spawn 2", 2).is_ok());
    }

    #[test]
    fn connections_are_kept_where_every_object_fits_a_request() {
        let longest = SMALL_CHUNK_BYTES_MAX;
        for (line, keepalive) in [
            ("small --spawn 1", true),
            ("connections --spawn 1", true),
            ("beside --spawn 1", true),
            ("small --spawn 1 --disable-keepalive", false),
            ("get --spawn 1", false),
            (&format!("get --spawn 1 --size {longest}"), true),
            (&format!("get --spawn 1 --size {}", longest + 1), false),
            (&format!("put --spawn 1 --size 1-{}", longest + 1), false),
        ] {
            assert_eq!(plan(&format!("loadgen {line}"), 1).unwrap().keepalive, keepalive, "{line}");
        }
    }

    #[test]
    fn reads_come_at_their_share() {
        let plan = plan("loadgen mixed --spawn 1 --reads 70 --objects 50", 1).unwrap();
        let choice = &plan.phases.last().unwrap().choice;
        let tasks = (0..10_000).map(|index| choice.task(index, &mut Dice::new(&[1, index])));
        let reads = tasks.filter(|task| matches!(task, Task::Read { number, .. } if *number < 50)).count();
        assert!((6_800..7_200).contains(&reads), "{reads}");
    }
}
