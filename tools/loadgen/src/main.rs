//! loadgen: puts load on a real node and checks every byte that comes back.
//!
//! It starts the `gabion` binary that lies beside it (or `--gabion PATH`) on a free port and a temporary directory,
//! stores many small objects and a few large ones through the control socket, reads them all back and compares them
//! with what their seed says. It prints rates, exits 6 on a wrong byte and 1 on any other failure.
//!
//! Contents are a stream of BLAKE3 under the object's seed: nothing has to be kept to know what must come back.

mod contents;
mod node;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use node::Node;
use workload::{Report, Workload};

/// Drives a node with many small and a few large objects, and checks what comes back
#[derive(Debug, Parser)]
#[command(after_help = "Example:\n  cargo build --release && cargo run --release -p loadgen -- --smoke")]
struct Arguments {
    /// The short run: 1,000 small objects and 4 of 32 MiB, on one node
    #[arg(long, required = true)]
    smoke: bool,

    /// The binary to drive; the one beside this program when not given
    #[arg(long, value_name = "PATH")]
    gabion: Option<PathBuf>,

    /// Seed of all contents and sizes
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Why a run failed.
#[derive(Debug)]
pub enum Failure {
    /// A byte came back that was not the one put in.
    WrongByte(String),
    Other(String),
}

impl Failure {
    pub fn other(what: impl std::fmt::Display) -> Self {
        Self::Other(what.to_string())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    println!("seed {}", arguments.seed);
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::WrongByte(message)) => {
            eprintln!("loadgen: WRONG BYTE: {message} (seed {})", arguments.seed);
            ExitCode::from(6)
        }
        Err(Failure::Other(message)) => {
            eprintln!("loadgen: {message} (seed {})", arguments.seed);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let node = Node::start(arguments.gabion.clone())?;
    let small = Workload { kind: "small", count: 1000, bytes_max: 32 << 10, fixed: false, threads: 8 };
    let large = Workload { kind: "large", count: 4, bytes_max: (32 << 20) + 7, fixed: true, threads: 2 };
    for workload in [small, large] {
        show(&format!("put {} {}", workload.count, workload.kind), &workload.put_all(&node, arguments.seed)?);
        show(&format!("get {} {}", workload.count, workload.kind), &workload.get_all(&node, arguments.seed)?);
    }
    println!("every byte came back as it went in");
    Ok(())
}

fn show(what: &str, report: &Report) {
    let seconds = report.took.max(Duration::from_micros(1)).as_secs_f64();
    println!(
        "{what:<16} {:>7.2} s  {:>9.1} objects/s  {:>8.1} MiB/s",
        seconds,
        report.objects as f64 / seconds,
        report.bytes as f64 / f64::from(1 << 20) / seconds
    );
}
