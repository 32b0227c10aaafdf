//! What a run found, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use gabion::cli::exit::Failure;
use gabion::cli::units::{show_rate, show_size};
use serde_json::{Value, json};

use crate::beside::{self, PutReport};
use crate::machine::Machine;
use crate::measure::{ByKind, Durations, Failed, Kind, Totals};
use crate::nodes::Traffic;
use crate::pacing::Loop;

/// The percentiles that are reported, in percent.
pub const PERCENTILES: [(&str, f64); 7] =
    [("p50", 50.0), ("p75", 75.0), ("p90", 90.0), ("p95", 95.0), ("p99", 99.0), ("p99_9", 99.9), ("p99_99", 99.99)];

/// Behind a percentile that not one operation lies above.
pub const UNSUPPORTED: &str = " (too few)";

#[derive(Debug, Clone, Default)]
pub struct Interval {
    /// Since the phase began.
    pub began: Duration,
    pub ended: Duration,
    pub operations: u64,
    pub failed: u64,
    /// Moved in the interval, by operations that ended in it or not: of a pipe what went through it, of a file what the node
    /// said that it had done. What goes within a request or an answer moves as one.
    pub bytes: u64,
    pub micros_p50: u64,
    pub micros_p99: u64,
    pub micros_max: u64,
    pub client_cpu: Duration,
    /// Of all nodes together; none where one is not visible.
    pub nodes_cpu: Option<Duration>,
    pub nodes_resident_bytes: Option<u64>,
}

impl Interval {
    pub fn length(&self) -> Duration {
        self.ended.saturating_sub(self.began).max(Duration::from_micros(1))
    }
}

#[derive(Debug, Clone, Default)]
pub struct NodeUsage {
    pub dir: PathBuf,
    /// None, as of memory, where its process is not visible or has ended.
    pub cpu: Option<Duration>,
    /// Resident, since it began.
    pub peak_bytes: Option<u64>,
    pub anonymous_bytes_max: Option<u64>,
    /// That gets through this node brought.
    pub read_bytes: u64,
    /// Payloads to and from other nodes meanwhile; none where the node does not say.
    pub traffic: Option<Traffic>,
}

impl NodeUsage {
    /// Of what was read through it, what no other node sent: none where it cannot be told.
    fn local_bytes(&self) -> Option<u64> {
        self.traffic.map(|traffic| self.read_bytes.saturating_sub(traffic.received_bytes))
    }
}

#[derive(Debug, Clone)]
pub struct PhaseReport {
    pub name: &'static str,
    pub mode: Loop,
    pub workers: u32,
    pub idle: u32,
    pub elapsed: Duration,
    pub kinds: ByKind,
    pub failures: BTreeMap<u8, Failed>,
    /// Of what the operations put, what no node had before.
    pub bytes_new: u64,
    /// Operations of an open loop that the workers did not get to in time.
    pub never_started: u64,
    pub intervals: Vec<Interval>,
    /// The put that ran beside the operations.
    pub put: Option<PutReport>,
    /// What ended it before its time, or was wrong in the end; no operation's.
    pub error: Option<Failure>,
    pub client_cpu: Duration,
    pub nodes: Vec<NodeUsage>,
}

impl Default for PhaseReport {
    fn default() -> Self {
        Self {
            name: "",
            mode: Loop::Closed,
            workers: 0,
            idle: 0,
            elapsed: Duration::ZERO,
            kinds: ByKind::new(),
            failures: BTreeMap::new(),
            bytes_new: 0,
            never_started: 0,
            intervals: Vec::new(),
            put: None,
            error: None,
            client_cpu: Duration::ZERO,
            nodes: Vec::new(),
        }
    }
}

impl PhaseReport {
    pub fn operations(&self) -> u64 {
        self.kinds.values().map(|totals| totals.operations).sum()
    }

    /// Of operations that ended well.
    pub fn bytes(&self) -> u64 {
        self.kinds.values().map(|totals| totals.bytes).sum()
    }

    fn bytes_put(&self) -> u64 {
        self.kinds.get(&Kind::Put).map_or(0, |totals| totals.bytes)
    }

    /// Whether nothing but reads ran: then what a node received was read through it.
    fn is_reading(&self) -> bool {
        self.kinds.keys().all(|kind| kind.is_read())
    }

    fn seconds(&self) -> f64 {
        self.elapsed.as_secs_f64().max(1e-6)
    }

    /// What it did, in a few lines.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}, {}", self.name, show_mode(self.mode), show_count(self.workers));
        if self.idle > 0 {
            let _ = write!(text, ", {} idle connections on each node", self.idle);
        }
        let rate = self.operations() as f64 / self.seconds();
        let _ = write!(
            text,
            "\n  {:.2} s  {} operations  {rate:.1}/s  {}  {}",
            self.seconds(),
            self.operations(),
            show_size(self.bytes()),
            show_rate(self.bytes(), self.elapsed),
        );
        for (kind, totals) in &self.kinds {
            text += &kind_text(kind.name(), totals, self.mode);
        }
        if self.bytes_new < self.bytes_put() {
            let (put, new) = (show_size(self.bytes_put()), show_size(self.bytes_new));
            let _ = write!(text, "\n  put {put}, {new} of it new: the rest was there; for other contents give --seed");
        }
        if self.never_started > 0 {
            let _ = write!(
                text,
                "\n  NOT KEPT UP: {} operations never began; their waits so far are in the latencies",
                self.never_started
            );
        }
        for (code, failed) in &self.failures {
            let _ = write!(text, "\n  FAILED {} times with code {code}, first: {}", failed.count, failed.message);
        }
        text += &self.usage_text();
        text
    }

    fn usage_text(&self) -> String {
        let cores =
            |cpu: Duration| format!("{:.2} s ({:.2} cores)", cpu.as_secs_f64(), cpu.as_secs_f64() / self.seconds());
        let mut text = format!("\n  CPU: client {}", cores(self.client_cpu));
        for (index, node) in self.nodes.iter().enumerate() {
            let cpu = known(node.cpu, cores);
            let (peak, anonymous) = (known(node.peak_bytes, show_size), known(node.anonymous_bytes_max, show_size));
            let _ = write!(text, "\n  node {index}: CPU {cpu}, memory {peak} at most, anonymous {anonymous}");
            if let Some(Traffic { sent_bytes, received_bytes }) = node.traffic
                && self.nodes.len() > 1
            {
                let (sent, received) = (show_size(sent_bytes), show_size(received_bytes));
                let _ = write!(text, "; from other nodes {received}, to other nodes {sent}");
            }
            if let Some(local) = node.local_bytes().filter(|_| self.nodes.len() > 1 && self.is_reading()) {
                let _ = write!(text, "; read {}, {} of it its own", show_size(node.read_bytes), show_size(local));
            }
        }
        text
    }

    fn json(&self) -> Value {
        let kinds: serde_json::Map<String, Value> =
            self.kinds.iter().map(|(kind, totals)| (kind.name().to_owned(), totals_json(totals))).collect();
        let failures: Vec<Value> = self
            .failures
            .iter()
            .map(|(code, failed)| json!({ "code": code, "count": failed.count, "first": failed.message }))
            .collect();
        let nodes: Vec<Value> = self.nodes.iter().map(|node| node_json(node, self.is_reading())).collect();
        json!({
            "name": self.name,
            "loop": match self.mode { Loop::Closed => "closed", Loop::Open(_) => "open" },
            "rate": match self.mode { Loop::Closed => None, Loop::Open(rate) => Some(rate) },
            "concurrency": self.workers,
            "idle_connections": self.idle,
            "elapsed_s": self.elapsed.as_secs_f64(),
            "operations": self.operations(),
            "operations_per_s": self.operations() as f64 / self.seconds(),
            "bytes": self.bytes(),
            "bytes_per_s": self.bytes() as f64 / self.seconds(),
            "bytes_put": self.bytes_put(),
            "bytes_new": self.bytes_new,
            "never_started": self.never_started,
            "kinds": kinds,
            "failures": failures,
            "client_cpu_s": self.client_cpu.as_secs_f64(),
            "nodes": nodes,
            "intervals": self.intervals.iter().map(interval_json).collect::<Vec<_>>(),
        })
    }
}

/// A whole run.
#[derive(Debug, Clone)]
pub struct RunReport {
    pub scenario: &'static str,
    /// Whole objects went over connections that were kept.
    pub keepalive: bool,
    pub machine: Machine,
    pub seed: u64,
    pub phases: Vec<PhaseReport>,
    /// The first wrong byte or missing object.
    pub wrong: Option<Failure>,
    /// What ended it before its time, or was wrong with the nodes in the end; no operation's.
    pub error: Option<Failure>,
    pub is_interrupted: bool,
    /// Objects that should have been removed from the nodes and could not be.
    pub left_behind: u64,
}

impl RunReport {
    /// The exit code of the first failure that has one worth telling, integrity before all.
    pub fn failure_code(&self) -> Option<u8> {
        let codes = || self.phases.iter().flat_map(|phase| phase.failures.keys().copied());
        codes().find(|code| *code == 6).or_else(|| codes().next())
    }

    fn reads(&self) -> impl Iterator<Item = &Totals> {
        let kinds = self.phases.iter().flat_map(|phase| &phase.kinds);
        kinds.filter(|(kind, _)| kind.is_read()).map(|(_, totals)| totals)
    }

    /// Came back, and was right.
    fn bytes_verified(&self) -> u64 {
        self.reads().map(|totals| totals.bytes).sum()
    }

    fn is_nothing_read(&self) -> bool {
        self.reads().all(|totals| totals.operations == 0)
    }

    /// Nothing went wrong, and something was looked at.
    fn is_verified(&self) -> bool {
        let is_whole = self.error.is_none() && self.failure_code().is_none() && !self.is_interrupted;
        self.wrong.is_none() && is_whole && !self.is_nothing_read()
    }

    /// Of a run in which nothing went wrong.
    pub fn verdict(&self) -> String {
        if self.is_nothing_read() {
            return "nothing was read, so no byte was checked; puts are checked by --read-back".to_owned();
        }
        format!("every byte that came back was right: {}", show_size(self.bytes_verified()))
    }

    pub fn json(&self) -> Value {
        json!({
            "scenario": self.scenario,
            "keepalive": self.keepalive,
            "machine": self.machine.json(),
            "seed": self.seed,
            "verified": self.is_verified(),
            "bytes_verified": self.bytes_verified(),
            "wrong": self.wrong.as_ref().map(|wrong| &wrong.message),
            "error": self.error.as_ref().map(|error| &error.message),
            "interrupted": self.is_interrupted,
            "left_behind": self.left_behind,
            "beside": beside::json(self),
            "phases": self.phases.iter().map(PhaseReport::json).collect::<Vec<_>>(),
        })
    }
}

fn kind_text(name: &str, totals: &Totals, mode: Loop) -> String {
    let mut text = format!("\n  {name:<6} {:>8} ok {:>4} failed", totals.operations, totals.failed);
    if totals.cut_off > 0 {
        let _ = write!(text, " {} cut off", totals.cut_off);
    }
    if totals.latency.count() > 0 {
        let _ = write!(text, "  latency {}", latency_text(&totals.latency));
    }
    if mode != Loop::Closed && totals.service.count() > 0 {
        let _ = write!(text, "\n{:34}service {}", "", latency_text(&totals.service));
    }
    if totals.failures.count() > 0 {
        let _ = write!(text, "\n{:34}failed  {}", "", latency_text(&totals.failures));
    }
    text
}

fn latency_text(durations: &Durations) -> String {
    let mut text = String::new();
    for (name, percent) in PERCENTILES.iter().filter(|(name, _)| !matches!(*name, "p75" | "p95")) {
        let mark = if durations.supports(percent / 100.0) { "" } else { UNSUPPORTED };
        let shown = show_micros(durations.micros_at(percent / 100.0));
        let _ = write!(text, "{} {shown}{mark}  ", name.replace('_', "."));
    }
    text + &format!("max {}", show_micros(durations.micros_max()))
}

fn totals_json(totals: &Totals) -> Value {
    json!({
        "operations": totals.operations,
        "failed": totals.failed,
        "cut_off": totals.cut_off,
        "bytes": totals.bytes,
        "latency_us": durations_json(&totals.latency),
        "service_us": durations_json(&totals.service),
        "failed_us": durations_json(&totals.failures),
    })
}

pub fn durations_json(durations: &Durations) -> Value {
    let mut object = serde_json::Map::new();
    for (name, percent) in PERCENTILES {
        object.insert(name.to_owned(), durations.micros_at(percent / 100.0).into());
    }
    let unsupported = PERCENTILES.iter().filter(|(_, percent)| !durations.supports(percent / 100.0));
    object.insert("too_few_for".to_owned(), unsupported.map(|(name, _)| *name).collect::<Vec<_>>().into());
    object.insert("count".to_owned(), durations.count().into());
    object.insert("mean".to_owned(), durations.micros_mean().into());
    object.insert("max".to_owned(), durations.micros_max().into());
    Value::Object(object)
}

fn node_json(node: &NodeUsage, is_reading: bool) -> Value {
    json!({
        "data_dir": node.dir.display().to_string(),
        "cpu_s": node.cpu.map(|cpu| cpu.as_secs_f64()),
        "peak_bytes": node.peak_bytes,
        "anonymous_bytes_max": node.anonymous_bytes_max,
        "read_bytes": node.read_bytes,
        "read_locally_bytes": node.local_bytes().filter(|_| is_reading),
        "payload_bytes_sent": node.traffic.map(|traffic| traffic.sent_bytes),
        "payload_bytes_received": node.traffic.map(|traffic| traffic.received_bytes),
    })
}

fn interval_json(interval: &Interval) -> Value {
    json!({
        "began_s": interval.began.as_secs_f64(),
        "ended_s": interval.ended.as_secs_f64(),
        "operations": interval.operations,
        "failed": interval.failed,
        "bytes": interval.bytes,
        "p50_us": interval.micros_p50,
        "p99_us": interval.micros_p99,
        "max_us": interval.micros_max,
        "client_cpu_s": interval.client_cpu.as_secs_f64(),
        "nodes_cpu_s": interval.nodes_cpu.map(|cpu| cpu.as_secs_f64()),
        "nodes_resident_bytes": interval.nodes_resident_bytes,
    })
}

/// What is not known is not 0.
pub fn known<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "unknown".to_owned(), show)
}

pub fn show_mode(mode: Loop) -> String {
    match mode {
        Loop::Closed => "closed loop".to_owned(),
        Loop::Open(rate) => format!("open loop of {rate}/s"),
    }
}

fn show_count(workers: u32) -> String {
    format!("{workers} at a time")
}

/// `85 us`, `1.25 ms`, `3.1 s`.
pub fn show_micros(micros: u64) -> String {
    let value = micros as f64;
    match micros {
        0..1000 => format!("{micros} us"),
        1000..10_000 => format!("{:.2} ms", value / 1e3),
        10_000..1_000_000 => format!("{:.0} ms", value / 1e3),
        _ => format!("{:.2} s", value / 1e6),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::measure::Recorder;
    use crate::pacing::Timing;

    /// Two seconds of an open loop: 1,000 gets of 100 bytes that took 1 to 1,000 ms, and one failed put.
    pub fn sample() -> RunReport {
        let recorder = Recorder::new(Loop::Open(600.0), 1);
        for millis in 1..=1000 {
            let (latency, service) = (Duration::from_millis(millis), Duration::from_millis(1));
            recorder.done(0, Kind::Get, Timing { latency, service }, 100);
        }
        let timing = Timing { latency: Duration::from_secs(30), service: Duration::from_secs(30) };
        recorder.fail(0, Kind::Put, timing, 8, "no space <on> \"disk\" & more".to_owned());
        let interval = |began: u64, operations| Interval {
            began: Duration::from_secs(began),
            ended: Duration::from_secs(began + 1),
            operations,
            bytes: operations * 100,
            micros_p50: 500,
            micros_p99: 900,
            micros_max: 1000,
            ..Interval::default()
        };
        let phase = PhaseReport {
            name: "mixed",
            mode: Loop::Open(600.0),
            workers: 4,
            elapsed: Duration::from_secs(2),
            kinds: recorder.drain(),
            failures: recorder.failures(),
            never_started: 3,
            intervals: vec![interval(0, 400), interval(1, 600)],
            client_cpu: Duration::from_millis(500),
            nodes: vec![NodeUsage { dir: "/tmp/a".into(), ..NodeUsage::default() }],
            ..PhaseReport::default()
        };
        RunReport {
            scenario: "mixed",
            keepalive: true,
            machine: Machine::default(),
            seed: 9,
            phases: vec![phase],
            wrong: None,
            error: None,
            is_interrupted: false,
            left_behind: 0,
        }
    }

    #[test]
    fn the_json_report_has_every_figure_under_its_name() {
        let json = sample().json();
        assert_eq!((&json["scenario"], &json["seed"]), (&json!("mixed"), &json!(9)));
        assert_eq!(json["keepalive"], json!(true));
        assert_eq!((&json["wrong"], &json["verified"]), (&Value::Null, &json!(false)), "a put failed");
        let phase = &json["phases"][0];
        for (name, value) in [
            ("loop", json!("open")),
            ("rate", json!(600.0)),
            ("concurrency", json!(4)),
            ("elapsed_s", json!(2.0)),
            ("operations", json!(1000)),
            ("operations_per_s", json!(500.0)),
            ("bytes_per_s", json!(50_000.0)),
            ("never_started", json!(3)),
            ("client_cpu_s", json!(0.5)),
        ] {
            assert_eq!(phase[name], value, "{name}");
        }
        let get = &phase["kinds"]["get"];
        assert_eq!((&get["operations"], &get["bytes"]), (&json!(1000), &json!(100_000)));
        for (name, wanted) in [("p50", 500_000.0), ("p99", 990_000.0), ("p99_99", 1_000_000.0), ("max", 1_000_000.0)] {
            let found = get["latency_us"][name].as_f64().unwrap();
            assert!((found / wanted - 1.0).abs() < 0.002, "{name}: {found}");
        }
        assert!(get["service_us"]["max"].as_f64().unwrap() < 1010.0);
        assert_eq!(get["latency_us"]["too_few_for"], json!(["p99_99"]), "of 1,000 operations");
        assert_eq!(phase["failures"][0]["code"], json!(8));
        let put = &phase["kinds"]["put"];
        assert_eq!((&put["failed"], &put["failed_us"]["count"]), (&json!(1), &json!(1)));
        assert!(put["latency_us"]["max"].as_f64().unwrap() >= 30e6, "who waited for a failure waited");
        assert_eq!(phase["intervals"].as_array().unwrap().len(), 2);
        assert_eq!(phase["nodes"][0]["data_dir"], json!("/tmp/a"));
    }

    #[test]
    fn integrity_comes_before_every_other_failure() {
        let mut report = sample();
        assert_eq!(report.failure_code(), Some(8));
        let failed = Failed { count: 1, message: String::new() };
        report.phases[0].failures.insert(5, failed.clone());
        assert_eq!(report.failure_code(), Some(5));
        report.phases[0].failures.insert(6, failed);
        assert_eq!(report.failure_code(), Some(6));
    }

    #[test]
    fn a_run_that_read_nothing_has_verified_nothing() {
        let mut report = sample();
        report.phases[0].failures.clear();
        let json = report.json();
        assert_eq!((&json["verified"], &json["bytes_verified"]), (&json!(true), &json!(100_000)));
        assert_eq!(report.verdict(), "every byte that came back was right: 97.7 KiB");
        report.phases[0].kinds.remove(&Kind::Get);
        let json = report.json();
        assert_eq!((&json["verified"], &json["bytes_verified"]), (&json!(false), &json!(0)));
        assert!(report.verdict().contains("nothing was read"));
    }

    #[test]
    fn what_was_there_already_is_told_apart() {
        let recorder = Recorder::new(Loop::Closed, 1);
        let timing = Timing { latency: Duration::from_secs(1), service: Duration::from_secs(1) };
        recorder.done(0, Kind::Put, timing, 2048);
        let mut phase = PhaseReport { kinds: recorder.drain(), bytes_new: 1024, ..PhaseReport::default() };
        assert!(phase.text().contains("put 2.0 KiB, 1.0 KiB of it new"), "{}", phase.text());
        assert_eq!((&phase.json()["bytes_put"], &phase.json()["bytes_new"]), (&json!(2048), &json!(1024)));
        phase.bytes_new = 2048;
        assert!(!phase.text().contains("new"), "{}", phase.text());
    }

    #[test]
    fn the_text_names_what_went_wrong() {
        let text = sample().phases[0].text();
        assert!(text.contains("node 0: CPU unknown, memory unknown"), "{text}");
        for part in ["open loop of 600/s", "4 at a time", "1000 operations", "500.0/s", "NOT KEPT UP: 3", "code 8"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
