//! What is printed. A closed stdout ends the run, quietly as `head` expects, and nothing that is printed may panic: a panic
//! aborts, and the nodes that this process started would go on.

use std::io::{Write, stderr};

use gabion::cli::exit::Failure;
pub use gabion::cli::output::line;

/// On stderr. Nothing can be done when that is closed.
pub fn remark(text: &str) {
    let _ = writeln!(stderr().lock(), "loadgen: {text}");
}

/// The error of a run. It says nothing where nobody reads any more.
pub fn failure(failure: &Failure, seed: u64) {
    if !failure.message.is_empty() {
        remark(&format!("{} (seed {seed})", failure.message));
    }
}
