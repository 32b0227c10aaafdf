//! How much work strangers may cause before they have shown that they know the network key.
//!
//! Rules:
//! - A connection that is accepted takes one token of its source's bucket and one of the bucket of all sources; without
//!   both it is closed unread. A handshake of a node that was admitted gives both back: honest nodes never run dry,
//!   however often they redial. Whoever else holds the network key and an invite is throttled like a stranger: a
//!   handshake costs this node more than a refusal.
//! - A source is an IPv4 address or an IPv6 /64 (what one household or one machine is given).
//! - At most [`HANDSHAKES_PENDING_MAX`] handshakes are unfinished at a time, each with one fixed buffer and one timer.
//! - Memory is bounded: [`HANDSHAKE_SOURCES_MAX`] buckets; a bucket that has filled up again is forgotten; sources
//!   that find no room share one bucket.
//!
//! The clock is an argument: nothing here reads it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::crypto::source::Source;
use crate::limits::{
    HANDSHAKE_SOURCES_MAX, HANDSHAKES_BURST, HANDSHAKES_PENDING_MAX, HANDSHAKES_PER_SECOND,
    HANDSHAKES_PER_SOURCE_BURST, HANDSHAKES_PER_SOURCE_PER_SECOND,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    #[error("{HANDSHAKES_PENDING_MAX} handshakes are unfinished already")]
    Pending,
    #[error(
        "too many handshakes of nodes that were not admitted from this address (more than {HANDSHAKES_PER_SOURCE_PER_SECOND} a second)"
    )]
    Source,
    #[error(
        "too many handshakes of nodes that were not admitted from all addresses together (more than {HANDSHAKES_PER_SECOND} a second)"
    )]
    All,
}

/// Tokens in thousandths, so that slow rates do not round to nothing.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    milli_tokens: u64,
    filled_at: Instant,
}

#[derive(Clone, Copy)]
struct Rate {
    burst: u32,
    per_second: u32,
}

const SOURCE: Rate = Rate { burst: HANDSHAKES_PER_SOURCE_BURST, per_second: HANDSHAKES_PER_SOURCE_PER_SECOND };
const ALL: Rate = Rate { burst: HANDSHAKES_BURST, per_second: HANDSHAKES_PER_SECOND };

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { milli_tokens: u64::from(rate.burst) * 1000, filled_at: now }
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let elapsed_ms = now.saturating_duration_since(self.filled_at).as_millis() as u64;
        let gained = elapsed_ms.saturating_mul(u64::from(rate.per_second));
        self.milli_tokens = self.milli_tokens.saturating_add(gained).min(u64::from(rate.burst) * 1000);
        // Whole milliseconds only, so that a busy caller does not round every gain away.
        self.filled_at += Duration::from_millis(elapsed_ms);
    }

    fn is_full(&self, rate: Rate) -> bool {
        self.milli_tokens >= u64::from(rate.burst) * 1000
    }

    fn has_token(&self) -> bool {
        self.milli_tokens >= 1000
    }

    fn take(&mut self) {
        self.milli_tokens = self.milli_tokens.saturating_sub(1000);
    }

    fn give(&mut self, rate: Rate) {
        self.milli_tokens = (self.milli_tokens + 1000).min(u64::from(rate.burst) * 1000);
    }
}

struct State {
    all: Bucket,
    /// `None`: everybody for whom there was no room.
    sources: HashMap<Option<Source>, Bucket>,
    pending: usize,
}

/// One per node, shared by its shards.
pub struct Admission {
    state: Mutex<State>,
}

/// A place among the pending handshakes; dropped, it is free again.
pub struct Admitted {
    admission: Arc<Admission>,
    source: Option<Source>,
}

impl Admission {
    pub fn new(now: Instant) -> Arc<Self> {
        let state = State { all: Bucket::full(ALL, now), sources: HashMap::new(), pending: 0 };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is plain numbers, valid after every statement: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Result<Admitted, Crowded> {
        let mut state = self.lock();
        if state.pending >= HANDSHAKES_PENDING_MAX {
            return Err(Crowded::Pending);
        }
        state.all.fill(ALL, now);
        if !state.all.has_token() {
            return Err(Crowded::All);
        }
        let source = state.room_for(Source::of(address), now);
        let bucket = state.sources.entry(source).or_insert_with(|| Bucket::full(SOURCE, now));
        bucket.fill(SOURCE, now);
        if !bucket.has_token() {
            return Err(Crowded::Source);
        }
        bucket.take();
        state.all.take();
        state.pending += 1;
        Ok(Admitted { admission: self.clone(), source })
    }

    pub fn pending(&self) -> usize {
        self.lock().pending
    }
}

impl State {
    /// The source itself if it has a bucket or there is room for one; else the shared one.
    fn room_for(&mut self, source: Source, now: Instant) -> Option<Source> {
        let source = Some(source);
        if self.sources.contains_key(&source) || self.sources.len() < HANDSHAKE_SOURCES_MAX {
            return source;
        }
        self.sources.retain(|_, bucket| {
            bucket.fill(SOURCE, now);
            !bucket.is_full(SOURCE)
        });
        if self.sources.len() < HANDSHAKE_SOURCES_MAX { source } else { None }
    }
}

impl Admitted {
    /// The other side has proved that it was admitted: its tokens come back.
    pub fn succeeded(self) {
        let mut state = self.admission.lock();
        state.all.give(ALL);
        if let Some(bucket) = state.sources.get_mut(&self.source) {
            bucket.give(SOURCE);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.lock().pending -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(last: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + last))
    }

    #[test]
    fn one_source_runs_dry_and_others_do_not() {
        let now = Instant::now();
        let admission = Admission::new(now);
        for _ in 0..HANDSHAKES_PER_SOURCE_BURST {
            admission.admit(address(1), now).unwrap();
        }
        assert_eq!(admission.admit(address(1), now).err(), Some(Crowded::Source));
        assert!(admission.admit(address(2), now).is_ok());
        let later = now + Duration::from_secs(1);
        for _ in 0..HANDSHAKES_PER_SOURCE_PER_SECOND {
            admission.admit(address(1), later).unwrap();
        }
        assert!(admission.admit(address(1), later).is_err());
    }

    #[test]
    fn who_succeeds_is_never_throttled() {
        let now = Instant::now();
        let admission = Admission::new(now);
        for _ in 0..10 * HANDSHAKES_BURST {
            admission.admit(address(1), now).unwrap().succeeded();
        }
        assert_eq!(admission.pending(), 0);
    }

    #[test]
    fn all_sources_together_are_bounded() {
        let now = Instant::now();
        let admission = Admission::new(now);
        let admitted = (0..2 * HANDSHAKES_BURST).filter(|last| admission.admit(address(*last), now).is_ok()).count();
        assert_eq!(admitted, HANDSHAKES_BURST as usize);
        assert_eq!(admission.admit(address(7), now).err(), Some(Crowded::All));
    }

    #[test]
    fn unfinished_handshakes_are_bounded_and_end_when_dropped() {
        let now = Instant::now();
        let admission = Admission::new(now);
        let held: Vec<_> =
            (0..HANDSHAKES_PENDING_MAX as u32).map(|n| admission.admit(address(n), now).unwrap()).collect();
        assert_eq!(admission.admit(address(1), now).err(), Some(Crowded::Pending));
        drop(held);
        assert_eq!(admission.pending(), 0);
        assert!(admission.admit(address(1), now).is_ok());
    }

    #[test]
    fn the_table_of_sources_stays_bounded() {
        let mut now = Instant::now();
        let admission = Admission::new(now);
        for last in 0..4 * HANDSHAKE_SOURCES_MAX as u32 {
            now += Duration::from_millis(2);
            drop(admission.admit(address(last), now));
            assert!(admission.lock().sources.len() <= HANDSHAKE_SOURCES_MAX + 1);
        }
    }
}
