//! What happened in each interval of a phase: throughput, latency, CPU and memory.
//!
//! Memory is looked at more often than intervals end: the most anonymous memory of a node is the most that any look found,
//! some 20 a second; the most resident memory is the kernel's own peak, since the node began. What cannot be known of a
//! node, whose process is not visible here or has ended, is said to be unknown, and not 0.

use std::time::Duration;

use gabion::cli::units::{show_rate, show_size};

use crate::measure::{ByKind, Durations, Recorder, add_all};
use crate::nodes::{Node, Nodes, Traffic};
use crate::report::{Interval, NodeUsage, PhaseReport, known, show_micros};
use crate::scenario::Phase;
use crate::usage::Usage;

/// Collects the report of a phase while it runs.
pub struct Sampler<'a> {
    pub report: PhaseReport,
    nodes: &'a Nodes,
    interval: Duration,
    /// Of the interval that runs.
    began: Duration,
    bytes_before: u64,
    failed_before: u64,
    client_before: Usage,
    nodes_before: Vec<Option<Usage>>,
    traffic_before: Vec<Option<Traffic>>,
}

impl<'a> Sampler<'a> {
    pub fn start(phase: &Phase, nodes: &'a Nodes, interval: Duration) -> Self {
        let node = |node: &Node| NodeUsage { dir: node.dir.clone(), cpu: Some(Duration::ZERO), ..NodeUsage::default() };
        Self {
            report: PhaseReport {
                name: phase.name,
                mode: phase.mode,
                workers: phase.workers,
                idle: phase.idle,
                nodes: nodes.all.iter().map(node).collect(),
                ..PhaseReport::default()
            },
            nodes,
            interval,
            began: Duration::ZERO,
            bytes_before: 0,
            failed_before: 0,
            client_before: Usage::of_this_process(),
            nodes_before: usages(nodes),
            traffic_before: nodes.all.iter().map(Node::traffic).collect(),
        }
    }

    /// Notes the memory, ends the interval if it is time for that, and says whether it was.
    pub fn look(&mut self, recorder: &Recorder, now: Duration) -> bool {
        let is_over = now >= self.began + self.interval;
        if is_over {
            self.end_interval(recorder, now);
        } else {
            self.note_memory(&usages(self.nodes));
        }
        is_over
    }

    fn note_memory(&mut self, usages: &[Option<Usage>]) {
        for (node, usage) in self.report.nodes.iter_mut().zip(usages) {
            node.peak_bytes = node.peak_bytes.max(usage.map(|usage| usage.peak_bytes));
            node.anonymous_bytes_max = node.anonymous_bytes_max.max(usage.map(|usage| usage.anonymous_bytes));
        }
    }

    pub fn finish(mut self, recorder: &Recorder, now: Duration) -> PhaseReport {
        self.end_interval(recorder, now);
        self.report.elapsed = now;
        let nodes = self.report.nodes.iter_mut().zip(&self.nodes.all).zip(&self.traffic_before);
        for (((usage, node), before), read_bytes) in nodes.zip(recorder.read_bytes()) {
            usage.read_bytes = read_bytes;
            usage.traffic = node.traffic().zip(*before).map(|(after, before)| after.since(before));
        }
        self.report.failures = recorder.failures();
        self.report.bytes_new = recorder.bytes_new();
        self.report
    }

    fn end_interval(&mut self, recorder: &Recorder, now: Duration) {
        let drained = recorder.drain();
        let (bytes, failed) = (recorder.bytes(), recorder.failed());
        let (client, nodes) = (Usage::of_this_process(), usages(self.nodes));
        let client_cpu = client.cpu.saturating_sub(self.client_before.cpu);
        self.note_memory(&nodes);
        let mut nodes_cpu = Some(Duration::ZERO);
        for ((node, after), before) in self.report.nodes.iter_mut().zip(&nodes).zip(&self.nodes_before) {
            let cpu = after.zip(*before).map(|(after, before)| after.cpu.saturating_sub(before.cpu));
            let add = |sum: Option<Duration>| sum.zip(cpu).map(|(sum, cpu)| sum + cpu);
            nodes_cpu = add(nodes_cpu);
            node.cpu = add(node.cpu);
        }
        let latency = all_latencies(&drained);
        self.report.client_cpu += client_cpu;
        self.report.intervals.push(Interval {
            began: self.began,
            ended: now,
            operations: drained.values().map(|totals| totals.operations).sum(),
            failed: failed - self.failed_before,
            bytes: bytes - self.bytes_before,
            micros_p50: latency.micros_at(0.5),
            micros_p99: latency.micros_at(0.99),
            micros_max: latency.micros_max(),
            client_cpu,
            nodes_cpu,
            nodes_resident_bytes: nodes.iter().map(|usage| usage.map(|usage| usage.resident_bytes)).sum(),
        });
        add_all(&mut self.report.kinds, &drained);
        (self.began, self.bytes_before, self.failed_before) = (now, bytes, failed);
        (self.client_before, self.nodes_before) = (client, nodes);
    }

    /// The last interval in one line.
    pub fn line(&self) -> String {
        let Some(last) = self.report.intervals.last() else { return String::new() };
        let seconds = last.length().as_secs_f64();
        format!(
            "{} {:.0} s  {:.0}/s  {}  p50 {}  p99 {}  max {}  failed {}  cores: nodes {}, client {:.1}  memory {}",
            self.report.name,
            last.ended.as_secs_f64(),
            last.operations as f64 / seconds,
            show_rate(last.bytes, last.length()),
            show_micros(last.micros_p50),
            show_micros(last.micros_p99),
            show_micros(last.micros_max),
            self.failed_before,
            known(last.nodes_cpu, |cpu| format!("{:.1}", cpu.as_secs_f64() / seconds)),
            last.client_cpu.as_secs_f64() / seconds,
            known(last.nodes_resident_bytes, show_size),
        )
    }
}

fn usages(nodes: &Nodes) -> Vec<Option<Usage>> {
    nodes.all.iter().map(|node| node.process.and_then(Usage::of)).collect()
}

fn all_latencies(kinds: &ByKind) -> Durations {
    let mut all = Durations::default();
    kinds.values().for_each(|totals| all.add(&totals.latency));
    all
}
