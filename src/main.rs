//! The `gabion` command: a node, and everything that talks to one.

use std::process::ExitCode;

/// Records, names and rows are made on one thread and dropped on another, which the C library's allocator does not like: a
/// sixth of the catalog's time was its. 100,000 small files with this one, nine alternating rounds: 0.92 of the time, 0.92
/// of the CPU time, and the node keeps 206 MiB instead of 249 after they were put and got again. (mimalloc 3: no gain; mimalloc
/// 2: half of this one's.)
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    gabion::cli::main(std::env::args_os())
}
