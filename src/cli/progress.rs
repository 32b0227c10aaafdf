//! How far a command is: bytes, rate, time left. A bar on a terminal; with `--progress always` plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::ProgressChoice;
use super::units::{show_duration, show_rate, show_size};
use crate::limits::PROGRESS_LINE_INTERVAL;

const BAR: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
const NO_TOTAL: &str = "{msg} {spinner} {bytes} {bytes_per_sec}";

/// Where the progress of one command's files is shown.
#[derive(Clone)]
pub enum Display {
    Hidden,
    Bars(MultiProgress),
    Lines,
}

impl Display {
    pub fn new(choice: ProgressChoice) -> Self {
        let terminal = std::io::stderr().is_terminal();
        match choice {
            ProgressChoice::Never => Self::Hidden,
            ProgressChoice::Auto if !terminal => Self::Hidden,
            ProgressChoice::Always if !terminal => Self::Lines,
            ProgressChoice::Auto | ProgressChoice::Always => {
                Self::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
            }
        }
    }

    /// For a transfer whose content goes to `output`: a bar would stand among what a terminal shows.
    pub fn beside(&self, output: &impl IsTerminal) -> Self {
        match self {
            Self::Bars(_) if output.is_terminal() => Self::Hidden,
            _ => self.clone(),
        }
    }

    /// Starts to show one transfer.
    pub fn start(&self, label: &str) -> Progress {
        match self {
            Self::Hidden => Progress::Hidden,
            Self::Bars(bars) => {
                let bar = ProgressBar::no_length().with_message(super::output::one_line(label));
                if let Ok(style) = ProgressStyle::with_template(NO_TOTAL) {
                    bar.set_style(style);
                }
                Progress::Bar(bars.add(bar))
            }
            Self::Lines => {
                let now = Instant::now();
                Progress::Lines { label: super::output::one_line(label), started: now, printed: now }
            }
        }
    }

    /// Prints through the bars, so that a line does not end up inside one.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match self {
            Self::Bars(bars) => bars.suspend(print),
            Self::Hidden | Self::Lines => print(),
        }
    }
}

/// One transfer.
pub enum Progress {
    Hidden,
    Bar(ProgressBar),
    Lines { label: String, started: Instant, printed: Instant },
}

impl Progress {
    pub fn update(&mut self, done: u64, total: Option<u64>) {
        match self {
            Self::Hidden => {}
            Self::Bar(bar) => {
                if let Some(total) = total.filter(|total| bar.length() != Some(*total)) {
                    bar.set_length(total);
                    if let Ok(style) = ProgressStyle::with_template(BAR) {
                        bar.set_style(style);
                    }
                }
                bar.set_position(done);
            }
            Self::Lines { label, started, printed } => {
                if printed.elapsed() >= PROGRESS_LINE_INTERVAL {
                    *printed = Instant::now();
                    eprintln_quietly(&progress_line(label, done, total, started.elapsed()));
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn progress_line(label: &str, done: u64, total: Option<u64>, took: Duration) -> String {
    let rate = show_rate(done, took);
    match total {
        Some(total) if done > 0 => {
            let left = took.as_secs_f64() / done as f64 * total.saturating_sub(done) as f64;
            let left = show_duration(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX));
            format!("{label} {}/{} {rate} {left} left", show_size(done), show_size(total))
        }
        _ => format!("{label} {} {rate}", show_size(done)),
    }
}

fn eprintln_quietly(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn no_bar_stands_among_content_on_a_terminal() {
        let bars = || Display::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::hidden()));
        // Opening it makes a terminal of its own.
        let terminal = File::open("/dev/ptmx").unwrap();
        assert!(matches!(bars().beside(&terminal), Display::Hidden));
        assert!(matches!(bars().beside(&File::open("/dev/null").unwrap()), Display::Bars(_)));
        assert!(matches!(Display::Lines.beside(&terminal), Display::Lines));
    }

    #[test]
    fn a_line_tells_bytes_rate_and_time_left() {
        let line = progress_line("a", 1 << 20, Some(4 << 20), Duration::from_secs(2));
        assert_eq!(line, "a 1.0 MiB/4.0 MiB 512.0 KiB/s 6.00 s left");
        assert_eq!(progress_line("a", 0, Some(1), Duration::ZERO), "a 0 B 0 B/s");
    }
}
