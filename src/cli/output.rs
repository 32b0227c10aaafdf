//! Results on stdout, everything else on stderr. A closed stdout ends the command quietly, as `head` expects.

use std::io::{self, Write};

use serde_json::Value;

use super::exit::{Exit, Failure};

/// One line on stdout.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n")).map_err(|error| write_failure(&error))
}

/// Lines that end with a newline each, with one write: a write for each file of a large tree, and the lock around it, cost
/// as much as reading the file.
pub fn lines(text: &str) -> Result<(), Failure> {
    io::stdout().lock().write_all(text.as_bytes()).map_err(|error| write_failure(&error))
}

/// One JSON object on its own line of stdout.
pub fn json(value: &Value) -> Result<(), Failure> {
    line(&value.to_string())
}

/// A remark on stderr, in one line. Nothing can be done when that is closed.
pub fn warn(message: &str, as_json: bool) {
    let message = one_line(message);
    let text =
        if as_json { serde_json::json!({ "warning": message }).to_string() } else { format!("gabion: {message}") };
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// What a failed write to stdout means: nobody reads any more, or a real error.
pub fn write_failure(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::silent(Exit::Other);
    }
    Failure::other(format!("standard output cannot be written: {error}"))
}

/// The error of a command, or of a part of it, on stderr, in one line.
pub fn failure(failure: &Failure, as_json: bool) {
    if failure.message.is_empty() {
        return;
    }
    let message = one_line(&failure.message);
    let text = if as_json {
        serde_json::json!({ "error": message, "code": failure.code }).to_string()
    } else {
        format!("gabion: {message}")
    };
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Control characters in a name must not reach a terminal.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
