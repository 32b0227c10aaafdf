//! The `gabion` command: a node, and everything that talks to one.

use std::process::ExitCode;

fn main() -> ExitCode {
    gabion::cli::main(std::env::args_os())
}
