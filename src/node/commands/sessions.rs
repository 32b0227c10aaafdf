//! Connections of commands on a shard. A node that stops tells each that it does, and waits a moment until they took it.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

#[derive(Default)]
pub struct Sessions {
    count: Cell<usize>,
    ended: Notify,
}

/// One connection, from its acceptance to its end.
pub struct Session(Rc<Sessions>);

impl Sessions {
    pub fn begin(self: &Rc<Self>) -> Session {
        self.count.set(self.count.get() + 1);
        Session(self.clone())
    }

    /// Returns when there is none.
    pub async fn ended(&self) {
        while self.count.get() > 0 {
            // One thread: nothing ends between the look and the wait.
            self.ended.notified().await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn who_waits_is_told_when_the_last_session_ends() {
        let sessions = Rc::new(Sessions::default());
        let (first, second) = (sessions.begin(), sessions.begin());
        let mut ended = pin!(sessions.ended());
        let mut poll = || ended.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(poll(), Poll::Pending);
        drop(first);
        assert_eq!(poll(), Poll::Pending);
        drop(second);
        assert_eq!(poll(), Poll::Ready(()));
    }
}
