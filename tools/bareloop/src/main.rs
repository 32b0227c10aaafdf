//! bareloop: what `tools/compare` needs of gabion's own code.
//!
//! | command | measures |
//! | --- | --- |
//! | `bareloop chunks [MIB] [THREADS]` | the ceiling of every put and get: the very functions that seal and open chunks, on all cores, with no I/O |
//! | `bareloop values put\|get DATA_DIR COUNT BYTES CLIENTS` | many small values through a running node's control socket, each checked when it comes back |
//!
//! It prints one JSON object. It is a program beside the library and not a bench, since a comparison starts it in turn
//! with other programs and takes the middle of several runs, which a bench harness wants to do itself; and a crate of
//! its own, so that the file store does not install it.

mod chunks;
mod values;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: bareloop chunks [MIB] [THREADS]
       bareloop values put|get DATA_DIR COUNT BYTES CLIENTS";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("bareloop: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<serde_json::Value, String> {
    match arguments {
        ["chunks"] => chunks::run(CHUNKS_MIB, gabion::io::thread_count_default()),
        ["chunks", mib] => chunks::run(number(mib)?, gabion::io::thread_count_default()),
        ["chunks", mib, threads] => chunks::run(number(mib)?, number(threads)?),
        ["values", what, directory, count, bytes, clients] => {
            let what = match *what {
                "put" => values::What::Put,
                "get" => values::What::Get,
                _ => return Err(USAGE.to_owned()),
            };
            let load = values::Load {
                what,
                directory: Path::new(directory),
                count: number(count)? as u64,
                bytes: number(bytes)?,
                clients: number(clients)?,
            };
            load.run()
        }
        _ => Err(USAGE.to_owned()),
    }
}

/// Bytes of each direction when none are asked for.
const CHUNKS_MIB: usize = 4096;

fn number(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err(format!("`{text}` is not a number above 0\n{USAGE}")),
    }
}
