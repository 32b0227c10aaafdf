//! Every scenario once, small, on nodes of its own: the quick test of a build, and of this tool. A crowd has nodes for
//! itself: all but the first join when the file is there.

use std::time::Instant;

use gabion::cli::exit::{Exit, Failure};

use crate::arguments::{Arguments, SMOKE_NODES_MIN, Scenario};
use crate::nodes::Nodes;
use crate::output::line;
use crate::report::{NodeUsage, PhaseReport, RunReport};
use crate::scenario::Plan;

/// Who sent less than this part of what was read did not serve.
const SERVED_SHARE: u64 = 10;

/// As after `loadgen`, without the nodes.
const RUNS: [&str; 18] = [
    "put --count 40 --size 100K-2M --read-back",
    "put --count 12 --size 3M --via memfd --read-back",
    "put --count 12 --size 3M --via file --no-dedup --read-back",
    "get --objects 40 --count 200 --size 1-1M",
    "mixed --objects 50 --count 600 --size 1-200K --reads 70",
    "mixed --objects 50 --size 4K --rate 200 --duration 2s --concurrency 32",
    "ranges --objects 3 --count 100 --size 5M --range-size 1-2M",
    "overwrite --objects 20 --count 600 --size 0-200K --concurrency 16",
    "overwrite --objects 20 --count 1000 --size 0-60K --concurrency 16 --read-back",
    "small --objects 1000 --size 0-4K",
    "small --objects 1000 --size 0-4K --disable-keepalive",
    "put --count 200 --size 0-60K --no-dedup --read-back",
    "huge --objects 2 --size 40M",
    "connections --objects 50 --count 600 --concurrency 150 --idle 50",
    "beside --objects 50 --rate 200 --duration 1s --put 200M",
    "peers --objects 2 --size 16M",
    "crowd --size 16M",
    "crowd --size 16M --concurrency 9",
];

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let began = Instant::now();
    let places = &arguments.where_;
    let spawn =
        |scenario| Nodes::spawn(crate::spawn_options(places, places.spawn.unwrap_or(SMOKE_NODES_MIN), scenario)?);
    // Of all scenarios but crowds.
    let mut shared = None;
    for (index, text) in RUNS.iter().enumerate() {
        // Another seed, so another bucket and other contents.
        let seed = arguments.load.seed.wrapping_add(index as u64);
        let one = arguments_of(text, seed, arguments)?;
        let scenario = one.scenario.ok_or_else(|| Failure::other("a scenario has no name"))?;
        let mut nodes = match shared.take().filter(|_| scenario != Scenario::Crowd) {
            Some(nodes) => nodes,
            None => spawn(scenario)?,
        };
        let count = usize::from(places.spawn.unwrap_or(SMOKE_NODES_MIN));
        let report = crate::run(&Plan::new(scenario, &one.load, count)?, &one, &mut nodes);
        show(&report, text)?;
        let outcome = crate::outcome(&report).and_then(|()| check_traffic(scenario, &report));
        outcome.map_err(|failure| failure.at(format!("{text} --seed {seed}")))?;
        shared = (scenario != Scenario::Crowd).then_some(nodes);
    }
    line(&format!("every byte came back as it went in, {:.1} s", began.elapsed().as_secs_f64()))
}

fn arguments_of(line: &str, seed: u64, outer: &Arguments) -> Result<Arguments, Failure> {
    let seed = seed.to_string();
    let words = ["loadgen", "--spawn", "1", "--seed", &seed].into_iter().chain(line.split_whitespace());
    let mut arguments = Arguments::of(words).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    arguments.smoke = true;
    arguments.output = outer.output.clone();
    arguments.where_ = outer.where_.clone();
    Ok(arguments)
}

/// Whether the bytes came from where the scenario says.
fn check_traffic(scenario: Scenario, report: &RunReport) -> Result<(), Failure> {
    let Some(phase) = report.phases.last() else { return Ok(()) };
    match scenario {
        Scenario::Peers => check_peers(phase),
        Scenario::Crowd => check_crowd(phase),
        _ => Ok(()),
    }
}

/// Each receiver's node must have fetched the file; where it has several receivers, once at least.
fn check_crowd(phase: &PhaseReport) -> Result<(), Failure> {
    let file_bytes = phase.bytes() / phase.operations().max(1);
    let fetched = |node: &NodeUsage| node.traffic.map_or(0, |traffic| traffic.received_bytes);
    let fetched: Vec<u64> = phase.nodes.iter().skip(1).map(fetched).collect();
    if fetched.iter().all(|fetched| *fetched >= file_bytes) {
        return Ok(());
    }
    Err(Failure::other(format!("not every receiver's node fetched the {file_bytes} bytes: {fetched:?}")))
}

fn check_peers(phase: &PhaseReport) -> Result<(), Failure> {
    let sent = |node: &NodeUsage| node.traffic.map_or(0, |traffic| traffic.sent_bytes);
    let servers = phase.nodes.iter().filter(|node| sent(node) >= phase.bytes() / SERVED_SHARE).count();
    if servers >= 2 {
        return Ok(());
    }
    let sent: Vec<u64> = phase.nodes.iter().map(sent).collect();
    Err(Failure::other(format!("only {servers} nodes served: bytes sent by each: {sent:?}")))
}

fn show(report: &RunReport, text: &str) -> Result<(), Failure> {
    line(text)?;
    for phase in &report.phases {
        let seconds = phase.elapsed.as_secs_f64().max(1e-6);
        line(&format!(
            "  {:<14} {:>6.2} s  {:>8.1}/s  {:>8.1} MiB/s  {:>5} failed",
            phase.name,
            seconds,
            phase.operations() as f64 / seconds,
            phase.bytes() as f64 / f64::from(1 << 20) / seconds,
            phase.failures.values().map(|failed| failed.count).sum::<u64>(),
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn the_smoke_run_walks_every_scenario() {
        let outer = Arguments::of(["loadgen", "--smoke"]).unwrap();
        let walked: Vec<_> = RUNS.iter().map(|line| arguments_of(line, 7, &outer).unwrap().scenario.unwrap()).collect();
        for scenario in Scenario::value_variants() {
            assert!(walked.contains(scenario), "{scenario:?}");
        }
    }

    #[test]
    fn small_objects_go_both_ways_in_the_smoke_run() {
        let outer = Arguments::of(["loadgen", "--smoke"]).unwrap();
        let is_kept = |line: &&str| {
            let one = arguments_of(line, 7, &outer).unwrap();
            Plan::new(one.scenario.unwrap(), &one.load, 3).unwrap().keepalive
        };
        let (kept, others): (Vec<&str>, Vec<&str>) =
            RUNS.iter().copied().filter(|line| line.starts_with("small")).partition(is_kept);
        assert!(!kept.is_empty() && !others.is_empty(), "{kept:?} and {others:?}");
    }
}
