//! Ctrl-C, SIGTERM, and SIGHUP, which comes when the terminal is closed: the first one ends the run early, with a report
//! of what was measured; the second one ends the process at once, but not without the nodes that it started. (A terminal that
//! goes may say so twice: SIGHUP is never the second.)

use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use gabion::cli::exit::Exit;
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub fn requested() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Listens on a thread of its own, from now on. `on_second` is the last thing that happens in this process.
pub fn listen(on_second: impl Fn() + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _inside = runtime.enter();
        // Under `nohup` it goes on.
        let hang_up = if is_hang_up_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, hang_up)
    };
    let listen = move || {
        runtime.block_on(async {
            loop {
                let hung_up = tokio::select! {
                    _ = interrupt.recv() => false,
                    _ = terminate.recv() => false,
                    Some(()) = async { hang_up.as_mut()?.recv().await } => true,
                };
                if INTERRUPTED.swap(true, Ordering::SeqCst) && !hung_up {
                    on_second();
                    std::process::exit(i32::from(Exit::Interrupted.code()));
                }
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map(|_| ())
}

/// Whether whoever started this process said so.
fn is_hang_up_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The mask's lowest bit is signal 1.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
