//! The live line on stderr.

use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::arguments::When;

/// Return to the first column and erase the line.
const ERASE: &str = "\r\x1b[2K";
/// What does not fit the terminal's width is cut off, and must not go on in the next row: that could not be erased.
const WRAP_OFF: &str = "\x1b[?7l";
const WRAP_ON: &str = "\x1b[?7h";

#[derive(Debug)]
pub struct Progress {
    is_on: bool,
    is_shown: AtomicBool,
}

impl Progress {
    pub fn new(when: When) -> Self {
        let is_on = match when {
            When::Auto => stderr().is_terminal(),
            When::Always => true,
            When::Never => false,
        };
        Self { is_on, is_shown: AtomicBool::new(false) }
    }

    pub fn show(&self, line: &str) {
        if self.is_on {
            self.is_shown.store(true, Ordering::Relaxed);
            // A line that cannot be shown is not worth ending a run for.
            let _ = stderr().write_all(in_one_row(line).as_bytes());
        }
    }

    pub fn clear(&self) {
        if self.is_shown.swap(false, Ordering::Relaxed) {
            let _ = write!(stderr(), "{ERASE}");
        }
    }
}

/// All at once: whoever ends this process in between must not leave a terminal that does not wrap.
fn in_one_row(line: &str) -> String {
    format!("{ERASE}{WRAP_OFF}{line}{WRAP_ON}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_wraps_nowhere_and_all_that_follows_does() {
        assert_eq!(in_one_row("12 s"), "\r\x1b[2K\x1b[?7l12 s\x1b[?7h");
    }
}
