//! The live line on stderr.

use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::arguments::When;

/// Return to the first column and erase the line.
const ERASE: &str = "\r\x1b[2K";

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
            let _ = write!(stderr(), "{ERASE}{line}");
        }
    }

    pub fn clear(&self) {
        if self.is_shown.swap(false, Ordering::Relaxed) {
            let _ = write!(stderr(), "{ERASE}");
        }
    }
}
