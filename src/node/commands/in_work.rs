//! Commands in work on a shard. A node that stops cancels them, and waits a moment for what they tell their clients last:
//! a client whose node goes away in silence cannot know whether it crashed.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

#[derive(Default)]
pub struct InWork {
    count: Cell<usize>,
    ended: Notify,
}

/// One command in work, from its request to its answer.
pub struct AtWork(Rc<InWork>);

impl InWork {
    pub fn begin(self: &Rc<Self>) -> AtWork {
        self.count.set(self.count.get() + 1);
        AtWork(self.clone())
    }

    /// Returns when there is none.
    pub async fn ended(&self) {
        while self.count.get() > 0 {
            // One thread: nothing ends between the look and the wait.
            self.ended.notified().await;
        }
    }
}

impl Drop for AtWork {
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
    fn who_waits_is_told_when_the_last_command_ends() {
        let in_work = Rc::new(InWork::default());
        let (first, second) = (in_work.begin(), in_work.begin());
        let mut ended = pin!(in_work.ended());
        let mut poll = || ended.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(poll(), Poll::Pending);
        drop(first);
        assert_eq!(poll(), Poll::Pending);
        drop(second);
        assert_eq!(poll(), Poll::Ready(()));
    }
}
