//! The queue in front of the catalog's thread: bounded by events, first in first out. What the log has made durable is
//! taken in any case; the log waits for room before it makes more durable.
//!
//! Questions are not counted: each is one caller that waits. Events in hand of the thread count until they are committed, so the
//! bound holds for both.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::recent::Recent;
use super::thread::Engine;
use super::{Applied, CatalogError};
use crate::limits::CATALOG_EVENTS_QUEUED_MAX;

/// Is called with the engine, or with why there is none any more.
pub(super) type Question = Box<dyn FnOnce(Result<&mut Engine, CatalogError>) + Send>;

pub(super) enum Message {
    Apply(Applied),
    Ask(Question),
    /// Looks at single names alone, which it sees without a commit.
    AskName(Question),
    /// Runs once no dead version has references left.
    AskWhenSettled(Question),
    /// Works off what came before it, makes it durable and ends the thread.
    Close(Question),
}

impl Message {
    fn question(self) -> Option<Question> {
        match self {
            Self::Apply(_) => None,
            Self::Ask(question) | Self::AskName(question) | Self::AskWhenSettled(question) | Self::Close(question) => {
                Some(question)
            }
        }
    }
}

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    events: usize,
    /// Nobody takes messages any more.
    closed: bool,
    /// Stop now, whatever is queued.
    abandoned: bool,
    /// No room is made before there is space on the disk again.
    waiting_for_space: bool,
}

pub(super) enum Taken {
    Messages(VecDeque<Message>),
    Nothing,
    Abandoned,
}

pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    room: Condvar,
    room_async: Notify,
    pub(super) recent: Arc<Recent>,
}

impl Queue {
    pub fn new(recent: Arc<Recent>) -> Self {
        Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            room: Condvar::new(),
            room_async: Notify::new(),
            recent,
        }
    }

    /// A panic elsewhere leaves the queue as it is: consistent after every statement under the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch larger than the whole queue is let in when the queue is empty.
    fn has_room(state: &State, events: usize) -> bool {
        state.closed || state.events == 0 || state.events + events <= CATALOG_EVENTS_QUEUED_MAX
    }

    /// Once the thread has ended, events go nowhere: the log has them.
    fn put(&self, mut state: MutexGuard<'_, State>, applied: Applied) {
        if !state.closed {
            self.recent.queued(&applied.events);
            state.events += applied.events.len();
            state.messages.push_back(Message::Apply(applied));
            drop(state);
            self.filled.notify_one();
        }
    }

    /// An error when there will be no room until there is space on the disk.
    pub fn push(&self, applied: Applied) -> Result<(), CatalogError> {
        let mut state = self.lock();
        while !Self::has_room(&state, applied.events.len()) {
            if state.waiting_for_space {
                return Err(CatalogError::Full);
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.put(state, applied);
        Ok(())
    }

    pub fn push_now(&self, applied: Applied) {
        self.put(self.lock(), applied);
    }

    /// An error when there will be no room until there is space on the disk.
    pub async fn room(&self) -> Result<(), CatalogError> {
        loop {
            // Registered before the look, so that room made in between is not missed.
            let mut room = std::pin::pin!(self.room_async.notified());
            room.as_mut().enable();
            {
                let state = self.lock();
                if Self::has_room(&state, 1) {
                    return Ok(());
                }
                if state.waiting_for_space {
                    return Err(CatalogError::Full);
                }
            }
            room.await;
        }
    }

    fn try_push(&self, applied: Applied) -> Option<Applied> {
        let state = self.lock();
        if !Self::has_room(&state, applied.events.len()) {
            return Some(applied);
        }
        self.put(state, applied);
        None
    }

    pub async fn push_async(&self, mut applied: Applied) {
        loop {
            // Registered before the look, so that room made in between is not missed.
            let mut room = std::pin::pin!(self.room_async.notified());
            room.as_mut().enable();
            match self.try_push(applied) {
                None => return,
                Some(back) => applied = back,
            }
            room.await;
        }
    }

    /// Answers at once with an error if nobody takes messages any more.
    pub fn ask(&self, message: Message) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            if let Some(question) = message.question() {
                question(Err(CatalogError::Closed));
            }
            return;
        }
        state.messages.push_back(message);
        drop(state);
        self.filled.notify_one();
    }

    /// Everything that is queued; waits for something if `wait`, for as long as `at_most` says.
    pub fn take(&self, wait: bool, at_most: Option<Duration>) -> Taken {
        let mut state = self.lock();
        while wait && state.messages.is_empty() && !state.abandoned {
            let Some(at_most) = at_most else {
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state = self.filled.wait_timeout(state, at_most).unwrap_or_else(PoisonError::into_inner).0;
            break;
        }
        if state.abandoned {
            return Taken::Abandoned;
        }
        if state.messages.is_empty() { Taken::Nothing } else { Taken::Messages(std::mem::take(&mut state.messages)) }
    }

    /// So many events have been committed.
    pub fn made_room(&self, events: usize) {
        if events > 0 {
            let mut state = self.lock();
            state.events = state.events.saturating_sub(events);
            drop(state);
            self.room.notify_all();
            self.room_async.notify_waiters();
        }
    }

    pub fn set_waiting_for_space(&self, waiting: bool) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.waiting_for_space, waiting) != waiting {
            drop(state);
            // Who waits is told that it is in vain.
            self.room.notify_all();
            self.room_async.notify_waiters();
        }
    }

    pub fn is_abandoned(&self) -> bool {
        self.lock().abandoned
    }

    pub fn abandon(&self) {
        self.lock().abandoned = true;
        self.filled.notify_one();
    }

    /// The thread has ended: whoever still waits is told.
    pub fn closed(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.recent.close();
        let left = std::mem::take(&mut state.messages);
        drop(state);
        self.room.notify_all();
        self.room_async.notify_waiters();
        for message in left {
            if let Some(question) = message.question() {
                question(Err(CatalogError::Closed));
            }
        }
    }
}
