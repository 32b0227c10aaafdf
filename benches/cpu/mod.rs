//! CPU time beside the wall clock.
//!
//! On a machine with few cores and other users the wall clock of anything that waits for a disk or a socket moves from
//! run to run; the CPU time of the same work hardly does. So every bench that does I/O prints it, for all samples
//! together, warm-up included. It is that of all threads of this process, the kernel's workers for its rings and what
//! the kernel does in their name; it does not know what the kernel writes back later, or the driver of the disk does.

use std::time::Duration;

/// Adds up what a bench cost.
pub struct Account {
    what: String,
    bytes_each: u64,
    operations: u64,
    spent: Duration,
}

impl Account {
    pub fn new(what: impl Into<String>, bytes_each: u64) -> Self {
        Self { what: what.into(), bytes_each, operations: 0, spent: Duration::ZERO }
    }

    pub fn add(&mut self, operations: u64, since: CpuTime) {
        self.operations += operations;
        self.spent += CpuTime::now().0.saturating_sub(since.0);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.operations == 0 {
            return;
        }
        let each_us = self.spent.as_secs_f64() * 1e6 / self.operations as f64;
        print!("{:<50} CPU:  {each_us:.2} us each", self.what);
        if self.bytes_each > 0 {
            let gibibytes = (self.bytes_each * self.operations) as f64 / f64::from(1 << 30);
            print!(", {:.3} s/GiB", self.spent.as_secs_f64() / gibibytes);
        }
        println!();
    }
}

/// What all threads that are alive have used so far.
#[derive(Clone, Copy)]
pub struct CpuTime(Duration);

impl CpuTime {
    pub fn now() -> Self {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let nanoseconds = tasks.filter_map(|task| {
            // A thread may end while it is looked at.
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Self(Duration::from_nanos(nanoseconds.sum()))
    }
}
