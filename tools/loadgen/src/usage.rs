//! What a process takes of the machine, from `/proc`.

use std::fs;
use std::time::Duration;

/// The unit of CPU times in `/proc/PID/stat` (`USER_HZ`), the same on every Linux.
const TICK: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time, since the process began.
    pub cpu: Duration,
    /// Resident, the most that ever was, and the part of the first that no file backs.
    pub resident_bytes: u64,
    pub peak_bytes: u64,
    pub anonymous_bytes: u64,
}

impl Usage {
    /// None for a process that has ended.
    pub fn of(process: u32) -> Option<Self> {
        let read = |file| fs::read_to_string(format!("/proc/{process}/{file}")).ok();
        Self::parse(&read("stat")?, &read("status")?)
    }

    pub fn of_this_process() -> Self {
        Self::of(std::process::id()).unwrap_or_default()
    }

    fn parse(stat: &str, status: &str) -> Option<Self> {
        // The name, in parentheses, may hold anything; the fields behind it begin with the third.
        let fields = stat.rsplit_once(')')?.1;
        let ticks = |field: usize| fields.split_whitespace().nth(field - 3)?.parse::<u32>().ok();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Self {
            cpu: TICK * ticks(14)?.saturating_add(ticks(15)?),
            resident_bytes: kib("VmRSS")? << 10,
            peak_bytes: kib("VmHWM")? << 10,
            anonymous_bytes: kib("RssAnon")? << 10,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_called_anything() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 9 0 1000 1 1";
        let status = "Name:\ta\nVmHWM:\t  4096 kB\nVmRSS:\t  2048 kB\nRssAnon:\t    1024 kB\n";
        let usage = Usage {
            cpu: Duration::from_secs(3),
            resident_bytes: 2 << 20,
            peak_bytes: 4 << 20,
            anonymous_bytes: 1 << 20,
        };
        assert_eq!(Usage::parse(stat, status), Some(usage));
    }

    #[test]
    fn this_process_is_known_and_an_ended_one_is_not() {
        assert!(Usage::of_this_process().resident_bytes > 0);
        assert_eq!(Usage::of(u32::MAX), None);
    }
}
