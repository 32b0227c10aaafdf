//! Turns at long computing on a thread that also drives I/O.
//!
//! Operations reach the kernel, and completions reach their tasks, only when the thread has nothing left to run. Ten
//! chunks that become ready together and are hashed one after the other would leave the disk idle meanwhile, and then
//! hand it ten writes at once. So whoever computes for longer than a visit to the ring takes (some 5 us) does it in a
//! turn, and [`Turn::pass`]es it on: the next begins only after the thread has been to the ring.
//!
//! ```text
//! take --> compute, queue operations --> pass --> (park: submit, dispatch) --> next in line
//! ```
//!
//! Measured with a put of 4 GiB, two threads, four pairs of runs in alternation: 2.64 to 2.75 s without turns, 2.15 to
//! 2.64 s with them, at the same CPU time or less; writes in flight are steadily 2 to 11 instead of none or forty.
//!
//! A turn at sealing is [`Turn::pause`]d in its middle, for those who compute little: gets of 4 KiB beside a put of 10 GiB
//! have their p99 at 5.7 to 6.4 ms with it and at 5.1 to 8.8 ms without (five runs each, alternated).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::op::nop;
use super::ring::spawn;
use crate::limits::TURN_BYTES_MIN;

thread_local! {
    static TURNS: Arc<Semaphore> = Arc::new(Semaphore::new(1));
}

/// How long a turn is kept for bytes that should be there at once. A page cache gives 1 MiB in less than 1 ms.
const READ_MAX: Duration = Duration::from_millis(5);

/// This thread's turn. Dropped instead of passed, it is free at once. Who holds it and waits for another waits for ever.
#[must_use = "a turn that is not held keeps nobody from computing"]
pub struct Turn {
    permit: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// The turn of who needs none.
    pub fn none() -> Turn {
        Turn { permit: None }
    }

    pub fn is_none(&self) -> bool {
        self.permit.is_none()
    }

    /// Waits in line, if hashing this much takes longer than a visit to the ring.
    pub async fn take(bytes: usize) -> Turn {
        if bytes < TURN_BYTES_MIN {
            return Turn::none();
        }
        let turns = TURNS.with(Arc::clone);
        // Refused only by a semaphore that was closed; this one never is.
        Turn { permit: turns.acquire_owned().await.ok() }
    }

    /// Runs a read that the page cache should answer at once, and gives the turn back with what it read. Where it does not (the
    /// page was dropped meanwhile, a network's file system hangs), the turn goes to others and the read goes on without.
    pub async fn keep_for<T>(self, read: impl Future<Output = T>) -> (Option<Turn>, T) {
        let mut read = pin!(read);
        // The timer is set only for a read that is not ready when it is first looked at.
        match tokio::time::timeout(READ_MAX, &mut read).await {
            Ok(output) => (Some(self), output),
            Err(_) => {
                drop(self);
                (None, read.await)
            }
        }
    }

    /// Goes to the ring in the middle of a long computation, so that others who compute little need not wait for its end.
    pub async fn pause(&self) {
        if self.permit.is_some() {
            nop().await;
        }
    }

    /// Gives the turn away once everything queued so far has reached the kernel.
    pub fn pass(self) {
        if let Some(permit) = self.permit {
            spawn(async move {
                nop().await;
                drop(permit);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tokio::sync::oneshot;

    use super::*;
    use crate::io::{Ring, RingOptions, yield_now};

    const LONG: Duration = Duration::from_secs(20);

    fn on_ring<F: Future>(future: F) -> F::Output {
        Ring::new(&RingOptions::default()).unwrap().block_on(future)
    }

    #[test]
    fn a_read_that_hangs_keeps_nobody_from_computing() {
        on_ring(async {
            let (bytes, read) = oneshot::channel();
            let has_begun = Rc::new(Cell::new(false));
            let begun = has_begun.clone();
            let (tell, told) = oneshot::channel();
            spawn(async move {
                let turn = Turn::take(TURN_BYTES_MIN).await;
                begun.set(true);
                let (turn, output) = turn.keep_for(read).await;
                let _ = tell.send((turn.is_none(), output));
            });
            while !has_begun.get() {
                yield_now().await;
            }
            let other = tokio::time::timeout(LONG, Turn::take(TURN_BYTES_MIN)).await.expect("the turn is free");
            bytes.send(7).unwrap();
            let (is_given_away, output) = told.await.unwrap();
            assert!(is_given_away && output == Ok(7));
            other.pass();
        });
    }

    #[test]
    fn a_read_that_is_there_keeps_the_turn() {
        on_ring(async {
            let (turn, ()) = Turn::take(TURN_BYTES_MIN).await.keep_for(yield_now()).await;
            assert!(turn.is_some_and(|turn| !turn.is_none()));
        });
    }
}
