//! Ctrl-C and SIGTERM: the first one ends the run early, with a report of what was measured; the second one ends the
//! process at once, but not without the nodes that it started.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use gabion::cli::exit::Exit;
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub fn requested() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Listens on a thread of its own, from now on. `on_second` is the last thing that happens in this process.
pub fn listen(on_second: impl Fn() + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let listen = move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if INTERRUPTED.swap(true, Ordering::SeqCst) {
                    on_second();
                    std::process::exit(i32::from(Exit::Interrupted.code()));
                }
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map(|_| ())
}
