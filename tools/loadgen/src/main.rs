//! loadgen: puts load on real nodes over their control sockets and checks every byte that comes back.
//!
//! It drives nodes that run already (`--node DIR`) or starts some by itself (`--spawn N`). A run is a plan of phases:
//! mostly objects are put beforehand, then the scenario's operations run for a time or a number, in a closed loop (so
//! many at a time) or an open one (so many a second). `loadgen --help` shows an example of each scenario.
//!
//! | module | job |
//! | --- | --- |
//! | `arguments` | the command line |
//! | `scenario` | what a scenario puts, does, and assumes |
//! | `content`, `dice`, `popularity` | what objects hold, what is drawn, which objects are popular: functions of the seed |
//! | `ledger` | what each object may hold now |
//! | `nodes` | nodes that run already, or are started and ended here |
//! | `operation` | one put, get, range or removal |
//! | `connection` | the connections that workers keep; cutting them |
//! | `pacing` | when operations begin: closed and open loop |
//! | `beside` | the put beside gets, and the comparison |
//! | `drive` | workers, and the watch beside them |
//! | `measure`, `sampling`, `usage` | histograms; what happened in each interval; CPU and memory |
//! | `machine` | what figures depend on beside the code |
//! | `report`, `chart`, `progress`, `output` | text and JSON, SVG, the live line; printing |
//! | `smoke` | every scenario, small |
//! | `interrupt`, `clean` | signals; removing what was put |
//!
//! What it measures includes what a program on the node's machine has: for small objects a request and its answer on a
//! connection that is kept, for all else a connection to the control socket and a descriptor passed for each operation,
//! since there the protocol serves one command a connection. `--disable-keepalive` measures small objects as commands too.
//!
//! Exit codes are those of `gabion`: 0 ok, 1 other, 2 usage, 4 an acknowledged object is not there, 5 network, 6 a wrong or
//! missing byte, 130 interrupted; failed operations end with the code of the node's error, objects that could not be removed
//! again with 3. A byte counts as wrong when it is not what the newest acknowledged write put there, or a write that runs at
//! the same time. Either ends the run at once.

mod arguments;
mod beside;
mod chart;
mod clean;
mod connection;
mod content;
mod dice;
mod drive;
mod interrupt;
mod ledger;
mod machine;
mod measure;
mod nodes;
mod operation;
mod output;
mod pacing;
mod popularity;
mod progress;
mod report;
mod sampling;
mod scenario;
mod smoke;
mod usage;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use gabion::cli::exit::{Exit, Failure};

use arguments::{Arguments, Scenario, WhereArguments};
use content::Contents;
use drive::Run;
use ledger::Ledger;
use machine::Machine;
use nodes::{Nodes, SpawnOptions};
use operation::Subject;
use output::{line, remark};
use progress::Progress;
use report::RunReport;
use scenario::{Phase, Plan};

/// Copies on nodes that are started here, when not given.
const REPLICAS_USUAL: u8 = 2;
/// Reads at a time when all is read back.
const READERS: u32 = 16;

fn main() -> ExitCode {
    let arguments = Arguments::of(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let outcome = start().and_then(|()| match (&arguments.scenario, arguments.smoke) {
        (Some(scenario), false) => one(*scenario, &arguments),
        _ => smoke::run(&arguments),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failure(&failure, arguments.load.seed);
            ExitCode::from(failure.code)
        }
    }
}

fn start() -> Result<(), Failure> {
    // A panic aborts, and drops nothing.
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        nodes::end_at_once();
        say(panic);
    }));
    interrupt::listen(nodes::end_at_once)
        .map_err(|error| Failure::other(format!("signals cannot be listened for: {error}")))?;
    // Three descriptors an operation, and two a connection that is kept; with fewer, fewer operations at a time work.
    gabion::io::raise_fd_limit();
    Ok(())
}

fn one(scenario: Scenario, arguments: &Arguments) -> Result<(), Failure> {
    let node_count = arguments.where_.spawn.map_or(arguments.where_.nodes.len(), usize::from);
    let plan = Plan::new(scenario, &arguments.load, node_count)?;
    let mut nodes = find_nodes(&arguments.where_, scenario)?;
    let report = run(&plan, arguments, &mut nodes);
    finish(&report, arguments)
}

fn find_nodes(places: &WhereArguments, scenario: Scenario) -> Result<Nodes, Failure> {
    match places.spawn {
        Some(count) => Nodes::spawn(spawn_options(places, count, scenario)?),
        None => Nodes::attach(&places.nodes),
    }
}

fn spawn_options(places: &WhereArguments, count: u8, scenario: Scenario) -> Result<SpawnOptions, Failure> {
    // One node has the file, whole, and the others must ask for it.
    let is_crowd = scenario == Scenario::Crowd;
    let replicas_usual = if is_crowd { 1 } else { REPLICAS_USUAL };
    Ok(SpawnOptions {
        count: usize::from(count),
        gabion: places.gabion.clone().map_or_else(nodes::beside_this_program, Ok)?,
        parent: places.dir.clone().unwrap_or_else(std::env::temp_dir),
        replicas: places.replicas.unwrap_or(count.min(replicas_usual)),
        one_first: is_crowd,
    })
}

/// All phases of a plan, up to an error; stopped ones are in the report as far as they got. Whatever happens, what was put
/// on nodes that go on is removed.
fn run(plan: &Plan, arguments: &Arguments, nodes: &mut Nodes) -> RunReport {
    let load = &arguments.load;
    let subject = Subject {
        contents: Contents { seed: load.seed, sizes: plan.sizes },
        ledger: Ledger::new(load.seed, plan.removals),
        bucket: format!("loadgen-{}", load.seed),
        via: plan.via,
        no_dedup: load.no_dedup,
        keepalive: plan.keepalive,
        beside: plan.put_beside(),
        scratch: arguments.where_.dir.clone().unwrap_or_else(std::env::temp_dir),
    };
    if load.reuse {
        (0..plan.objects).for_each(|number| subject.ledger.assume_put(number));
    }
    let progress = Progress::new(arguments.output.progress);
    let interval = Duration::from_millis(arguments.output.interval_ms);
    let run = Run::new(&subject, &progress, interval, load.failures_max);
    let mut report = RunReport {
        scenario: plan.name,
        keepalive: plan.keepalive,
        machine: Machine::default(),
        seed: load.seed,
        phases: Vec::new(),
        wrong: None,
        error: None,
        is_interrupted: false,
        left_behind: 0,
    };
    let mut step = |phase: &Phase| -> Result<(), Failure> {
        if !run.is_stopped() {
            if phase.after_joining {
                nodes.join_rest()?;
            }
            let mut phase = run.phase(phase, nodes)?;
            let (error, text) = (phase.error.take(), phase.text());
            report.phases.push(phase);
            let shown = if arguments.output.json || arguments.smoke { Ok(()) } else { line(&text) };
            return error.map_or(shown, Err);
        }
        Ok(())
    };
    let mut ended = plan.phases.iter().try_for_each(&mut step);
    if ended.is_ok() && load.read_back {
        ended = step(&Plan::read_back(READERS, subject.ledger.written()));
    }
    // A node that is no more says better than anybody why it does not answer.
    report.error = nodes.check_alive().and(ended).err();
    report.machine = Machine::of(nodes);
    report.wrong = run.wrong();
    report.is_interrupted = interrupt::requested();
    if !nodes.are_ours() && !load.keep {
        report.left_behind = clean_up(&subject, nodes, &report, arguments.output.json);
    }
    if load.keep && subject.ledger.is_overwritten() {
        let bucket = &subject.bucket;
        remark(&format!("objects of {bucket} were overwritten: --reuse cannot take them up; gabion rm -r {bucket}/"));
    }
    report
}

/// Removes what the run put, unless it is evidence; how many objects are left that should not be.
fn clean_up(subject: &Subject, nodes: &Nodes, report: &RunReport, is_quiet: bool) -> u64 {
    let bucket = &subject.bucket;
    if report.wrong.is_some() {
        remark(&format!("the objects are left in the bucket {bucket}, to be looked at"));
        return 0;
    }
    let left = clean::remove_all(subject, &nodes.all);
    if left > 0 {
        remark(&format!("{left} objects of this run are left behind; remove them: gabion rm -r {bucket}/"));
    } else if !is_quiet {
        // What was removed is removed, whether anybody reads it or not.
        let _ = line("the objects of this run were removed again");
    }
    left
}

/// Prints and draws the report, and makes the exit code of it: what the run found counts before what became of its report.
fn finish(report: &RunReport, arguments: &Arguments) -> Result<(), Failure> {
    let printed = print(report, arguments);
    let drawn = arguments.output.chart.as_ref().map_or(Ok(()), |path| draw(report, path));
    let (found, shown) = (outcome(report), drawn.and(printed));
    if let (Err(first), Err(failure)) = (&found, &shown)
        && first != failure
    {
        output::failure(failure, report.seed);
    }
    found.and(shown)?;
    if !arguments.output.json {
        line(&report.verdict())?;
    }
    Ok(())
}

fn print(report: &RunReport, arguments: &Arguments) -> Result<(), Failure> {
    if arguments.output.json {
        return line(&report.json().to_string());
    }
    if report.keepalive {
        line("objects went over connections that were kept; --disable-keepalive has one for each operation")?;
    }
    line(&report.machine.text())?;
    beside::text(report).map_or(Ok(()), |comparison| line(&comparison))
}

fn draw(report: &RunReport, path: &Path) -> Result<(), Failure> {
    std::fs::write(path, chart::draw(report))
        .map_err(|error| Failure::other(format!("the chart {} cannot be written: {error}", path.display())))
}

fn outcome(report: &RunReport) -> Result<(), Failure> {
    if let Some(wrong) = &report.wrong {
        return Err(Failure { code: wrong.code, message: format!("WRONG: {}", wrong.message) });
    }
    if report.is_interrupted {
        return Err(Failure::interrupted("interrupted: what was measured so far is above"));
    }
    if let Some(error) = &report.error {
        return Err(error.clone());
    }
    match report.failure_code() {
        None if report.left_behind > 0 => Err(Failure::new(Exit::Partial, "objects are left behind")),
        None => Ok(()),
        Some(code) => Err(Failure { code, message: "operations failed, see the report".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(options: &str) -> Arguments {
        Arguments::of(format!("loadgen get --spawn 1 --json {options}").split_whitespace()).unwrap()
    }

    #[test]
    fn a_wrong_byte_counts_before_a_chart_that_cannot_be_written() {
        let nowhere = arguments("--chart /proc/nowhere/chart.svg");
        let mut report = report::tests::sample();
        report.phases.clear();
        assert_eq!(finish(&report, &nowhere).unwrap_err().code, Exit::Other.code());
        report.wrong = Some(Failure::new(Exit::Integrity, "a byte"));
        assert_eq!(finish(&report, &nowhere).unwrap_err().code, Exit::Integrity.code());
    }

    #[test]
    fn an_error_counts_after_a_wrong_byte_and_before_operations_that_failed() {
        let mut report = report::tests::sample();
        assert_eq!(outcome(&report).unwrap_err().code, Exit::NoSpace.code());
        report.error = Some(Failure::new(Exit::Network, "a connection"));
        assert_eq!(outcome(&report).unwrap_err().message, "a connection");
        assert_eq!(report.json()["error"], "a connection");
        report.wrong = Some(Failure::new(Exit::Integrity, "a byte"));
        assert_eq!(outcome(&report).unwrap_err().code, Exit::Integrity.code());
    }
}
