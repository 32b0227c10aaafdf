//! What was measured: HdrHistograms of latency in microseconds (three significant digits), counts and bytes, by kind of
//! operation.
//!
//! Failures have a histogram of their own. In an open loop they count in the latencies too: whoever asked waited for them,
//! and an operation that fails after 30 s must not make the others look better. So do operations that were cut off when
//! the run was stopped, with the time that they had taken by then.
//!
//! Workers record into a few locked shards. The sampler drains these into the totals every interval, so that it also
//! knows the percentiles of that interval alone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::pacing::{Loop, Timing};

const SHARDS: usize = 8;
const DIGITS: u8 = 3;
/// A day: whatever took longer counts as that.
const MICROS_MAX: u64 = 86_400_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Put,
    Get,
    Range,
    Remove,
}

impl Kind {
    /// What comes back is checked.
    pub fn is_read(self) -> bool {
        matches!(self, Kind::Get | Kind::Range)
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Put => "put",
            Kind::Get => "get",
            Kind::Range => "range",
            Kind::Remove => "remove",
        }
    }
}

/// Durations, from a microsecond up.
#[derive(Debug, Clone)]
pub struct Durations(Option<Histogram<u64>>);

impl Default for Durations {
    fn default() -> Self {
        // Fails for digits above 5 only.
        Self(Histogram::new(DIGITS).ok())
    }
}

impl Durations {
    pub fn record(&mut self, duration: Duration, count: u64) {
        if let Some(histogram) = &mut self.0 {
            let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).clamp(1, MICROS_MAX);
            // Fails for one that cannot grow only. (`saturating_record_n` would not let it grow at all.)
            let _ = histogram.record_n(micros, count);
        }
    }

    pub fn add(&mut self, other: &Self) {
        if let (Some(histogram), Some(other)) = (&mut self.0, &other.0) {
            // Fails for one that cannot grow only.
            let _ = histogram.add(other);
        }
    }

    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    /// `quantile` in `0..=1`.
    pub fn micros_at(&self, quantile: f64) -> u64 {
        self.0.as_ref().map_or(0, |histogram| histogram.value_at_quantile(quantile))
    }

    /// Whether at least one of those counted lies above this quantile: where none does, it is the longest by another name.
    pub fn supports(&self, quantile: f64) -> bool {
        // A whole one, but for the rounding of 1 - 0.9999.
        self.count() as f64 * (1.0 - quantile) > 1.0 - 1e-6
    }

    pub fn micros_mean(&self) -> f64 {
        self.0.as_ref().map_or(0.0, Histogram::mean)
    }

    pub fn micros_max(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::max)
    }
}

/// All of one kind.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    pub latency: Durations,
    pub service: Durations,
    /// Of failures, from the intended start.
    pub failures: Durations,
    pub operations: u64,
    pub failed: u64,
    /// Running when the run was stopped.
    pub cut_off: u64,
    pub bytes: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency);
        self.service.add(&other.service);
        self.failures.add(&other.failures);
        self.operations += other.operations;
        self.failed += other.failed;
        self.cut_off += other.cut_off;
        self.bytes += other.bytes;
    }
}

pub type ByKind = BTreeMap<Kind, Totals>;

pub fn add_all(to: &mut ByKind, from: &ByKind) {
    for (kind, totals) in from {
        to.entry(*kind).or_default().add(totals);
    }
}

/// Failures of one exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub count: u64,
    /// The first one's.
    pub message: String,
}

#[derive(Debug)]
pub struct Recorder {
    mode: Loop,
    shards: Vec<Mutex<ByKind>>,
    failures: Mutex<BTreeMap<u8, Failed>>,
    failed: AtomicU64,
    /// Moved so far, also by operations that have not ended.
    bytes: AtomicU64,
    /// Put, and not there before.
    bytes_new: AtomicU64,
    /// Read through each node.
    read_bytes: Vec<AtomicU64>,
}

impl Recorder {
    pub fn new(mode: Loop, nodes: usize) -> Self {
        Self {
            mode,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            failures: Mutex::default(),
            failed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            bytes_new: AtomicU64::new(0),
            read_bytes: (0..nodes).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub fn moved(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn stored_new(&self, bytes: u64) {
        self.bytes_new.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn bytes_new(&self) -> u64 {
        self.bytes_new.load(Ordering::Relaxed)
    }

    pub fn read_through(&self, node: usize, bytes: u64) {
        if let Some(read) = self.read_bytes.get(node) {
            read.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub fn read_bytes(&self) -> impl Iterator<Item = u64> {
        self.read_bytes.iter().map(|read| read.load(Ordering::Relaxed))
    }

    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub fn done(&self, worker: usize, kind: Kind, timing: Timing, bytes: u64) {
        self.with(worker, kind, |totals| {
            totals.latency.record(timing.latency, 1);
            totals.service.record(timing.service, 1);
            totals.operations += 1;
            totals.bytes += bytes;
        });
    }

    pub fn fail(&self, worker: usize, kind: Kind, timing: Timing, code: u8, message: String) {
        self.with(worker, kind, |totals| {
            totals.failed += 1;
            totals.failures.record(timing.latency, 1);
            self.count_waiting(totals, timing);
        });
        self.failed.fetch_add(1, Ordering::Relaxed);
        locked(&self.failures).entry(code).or_insert(Failed { count: 0, message }).count += 1;
    }

    /// Its connection was cut because the run was stopped: that says nothing of the node but how long it had taken.
    pub fn cut_off(&self, worker: usize, kind: Kind, timing: Timing) {
        self.with(worker, kind, |totals| {
            totals.cut_off += 1;
            self.count_waiting(totals, timing);
        });
    }

    fn count_waiting(&self, totals: &mut Totals, timing: Timing) {
        if self.mode != Loop::Closed {
            totals.latency.record(timing.latency, 1);
            totals.service.record(timing.service, 1);
        }
    }

    /// Operations of an open loop that never began.
    pub fn never_started(&self, kind: Kind, wait: Duration, count: u64) {
        self.with(0, kind, |totals| totals.latency.record(wait, count));
    }

    /// All since the last time.
    pub fn drain(&self) -> ByKind {
        let mut drained = ByKind::new();
        for shard in &self.shards {
            let taken = std::mem::take(&mut *locked(shard));
            add_all(&mut drained, &taken);
        }
        drained
    }

    pub fn failures(&self) -> BTreeMap<u8, Failed> {
        locked(&self.failures).clone()
    }

    fn with(&self, worker: usize, kind: Kind, look: impl FnOnce(&mut Totals)) {
        if let Some(shard) = self.shards.get(worker % SHARDS) {
            look(locked(shard).entry(kind).or_default());
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_three_digits_and_nothing_is_lost_by_draining() {
        let recorder = Recorder::new(Loop::Closed, 1);
        let mut all = ByKind::new();
        for micros in 1..=100_000u64 {
            let time = Duration::from_micros(micros);
            recorder.done(micros as usize, Kind::Get, Timing { latency: time, service: time }, 3);
            if micros % 30_000 == 0 {
                add_all(&mut all, &recorder.drain());
            }
        }
        add_all(&mut all, &recorder.drain());
        let totals = &all[&Kind::Get];
        assert_eq!((totals.operations, totals.bytes, totals.latency.count()), (100_000, 300_000, 100_000));
        for (quantile, wanted) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.9999, 99_990.0)] {
            let found = totals.latency.micros_at(quantile) as f64;
            assert!((found / wanted - 1.0).abs() < 0.001, "{quantile}: {found}");
        }
        assert!(totals.latency.micros_max() >= 100_000);
    }

    #[test]
    fn a_percentile_needs_operations_above_it() {
        let mut durations = Durations::default();
        assert!(!durations.supports(0.5));
        durations.record(Duration::from_millis(1), 500);
        assert!(durations.supports(0.99) && !durations.supports(0.999));
        durations.record(Duration::from_millis(1), 9_499);
        assert!(durations.supports(0.999) && !durations.supports(0.9999));
        durations.record(Duration::from_millis(1), 1);
        assert!(durations.supports(0.9999));
    }

    #[test]
    fn failures_are_counted_by_code_with_the_first_message() {
        let recorder = Recorder::new(Loop::Closed, 1);
        for (code, message) in [(5, "no node"), (5, "other"), (8, "full")] {
            recorder.fail(0, Kind::Put, HANGING, code, message.to_owned());
        }
        let failures = recorder.failures();
        assert_eq!(failures[&5], Failed { count: 2, message: "no node".to_owned() });
        assert_eq!(failures[&8].count, 1);
        assert_eq!((recorder.failed(), recorder.drain()[&Kind::Put].failed), (3, 3));
    }

    const HANGING: Timing = Timing { latency: Duration::from_secs(31), service: Duration::from_secs(30) };

    #[test]
    fn what_hangs_and_fails_is_in_the_percentiles_of_an_open_loop() {
        for (mode, counted) in [(Loop::Open(10.0), 2), (Loop::Closed, 0)] {
            let recorder = Recorder::new(mode, 1);
            recorder.fail(0, Kind::Get, HANGING, 5, String::new());
            recorder.cut_off(0, Kind::Get, HANGING);
            let totals = &recorder.drain()[&Kind::Get];
            assert_eq!((totals.operations, totals.failed, totals.cut_off), (0, 1, 1));
            assert_eq!((totals.failures.count(), totals.latency.count()), (1, counted));
            assert!(totals.failures.micros_max() >= 31_000_000);
        }
    }
}
