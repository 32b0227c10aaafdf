//! Ctrl-C: cuts the connections to the node, so that it cancels what it does for this command.
//!
//! A thread of its own waits for SIGINT and SIGTERM. The first one sets the flag and hangs up every registered
//! connection: whoever waits for an answer there wakes and ends with exit code 130. The second one exits at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use super::exit::Exit;
use crate::node::control::client::HangUp;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static CONNECTIONS: OnceLock<Mutex<Vec<Weak<HangUp>>>> = OnceLock::new();

/// Whether the command was asked to stop.
pub fn requested() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Hangs this connection up when the command is interrupted, for as long as the returned handle lives.
pub fn guard(connection: HangUp) -> Arc<HangUp> {
    let connection = Arc::new(connection);
    let mut connections = connections();
    connections.retain(|known| known.strong_count() > 0);
    connections.push(Arc::downgrade(&connection));
    if requested() {
        connection.hang_up();
    }
    connection
}

fn connections() -> std::sync::MutexGuard<'static, Vec<Weak<HangUp>>> {
    CONNECTIONS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to listen for signals, and returns once it does. Without it Ctrl-C just ends the process, which the node notices
/// as well.
pub fn listen() {
    // Gone unused when the listener cannot listen.
    let (listens, is_listening) = std::sync::mpsc::channel();
    let listener = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            let _ = listens.send(());
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                on_signal();
            }
        });
    });
    if let Err(error) = listener {
        super::output::warn(&format!("Ctrl-C will end the command without a word: {error}"), false);
    }
    let _ = is_listening.recv();
}

fn on_signal() {
    if INTERRUPTED.swap(true, Ordering::SeqCst) {
        std::process::exit(i32::from(Exit::Interrupted.code()));
    }
    connections().iter().filter_map(Weak::upgrade).for_each(|connection| connection.hang_up());
}
