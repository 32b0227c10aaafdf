//! Questions to other nodes that outlive the connection they are asked on.
//!
//! Only what may be carried out twice is asked this way: reads; chunks and references, which their address and version
//! name; name records and claims, which (clock, version) decides.
//!
//! | an attempt has ended by | then |
//! | --- | --- |
//! | an answer, other than "cannot now" | that is the answer |
//! | the end of the connection, or the peer dropping the request | it is asked once more, over another connection |
//! | no buffer for the answer, or "cannot now" | a pause by lot, at most [`ASK_PAUSES_MAX`] times |
//! | no connection, after one has ended | the same: the peer may be the one that dials |
//! | silence, a stall, a breach | that is the end |
//!
//! Nobody gets more patience by this: what is left of it counts from the peer's last byte where a connection ended, and from
//! the first attempt where the peer refused. A fetch takes no pauses: others may hold the chunk, and whoever plans the read
//! goes to them first.

use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::connections::{PeerError, connect};
use super::shard::Shard;
use crate::format::frame::{FrameKind, Status};
use crate::format::{Address, NodeId};
use crate::limits::{ASK_PAUSE_MS, ASK_PAUSES_MAX};
use crate::wire::{Answer, CloseReason, PayloadSource, RequestError};

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

pub struct Question {
    pub kind: FrameKind,
    pub address: Address,
    /// What it runs under: who runs under another refuses.
    pub layout: u32,
    /// How long an attempt may make no progress at all.
    pub patience: Duration,
}

/// Asks `node`, as often as the table above says. `content`: body and payload, for each attempt anew.
pub async fn ask(
    shard: &Rc<Shard>,
    node: &NodeId,
    question: Question,
    content: impl Fn() -> (Vec<u8>, Option<PayloadSource>),
) -> Result<Answer, AskError> {
    let Question { kind, address, layout, patience } = question;
    let (began, mut attempts) = (Instant::now(), Attempts::new(patience, kind != FrameKind::Fetch));
    let mut connected = connect(shard, node).await;
    let mut left = patience;
    loop {
        let (outcome, silent) = match connected {
            Ok(connection) => {
                let (body, payload) = content();
                let asked = Instant::now();
                let outcome = connection.request(kind, address, layout, body, payload, left).await;
                let silent = connection.heard_at().elapsed().min(asked.elapsed());
                (outcome.map_err(AskError::from), silent)
            }
            Err(error) => (Err(error.into()), Duration::ZERO),
        };
        let next = attempts.after(Ended::by(kind, &outcome), began.elapsed(), silent);
        let Some(next) = next.filter(|_| !shard.node.is_stopping()) else { return outcome };
        tracing::debug!(?node, ?kind, outcome = ?outcome.as_ref().map(|answer| answer.status), "asked again");
        drop(outcome);
        let until = Instant::now() + next.left;
        if next.with_pause {
            pause().await;
        }
        // A dial is a task of its own and goes on for whoever asks next.
        connected = match tokio::time::timeout_at(until.into(), connect(shard, node)).await {
            Ok(connected) => connected,
            Err(_) => Err(PeerError::Unreachable { node: *node, reason: "not connected again in time".into() }),
        };
        left = until.saturating_duration_since(Instant::now());
    }
}

/// Before somebody who could not is asked again.
pub async fn pause() {
    let pause = rand::rng().random_range(ASK_PAUSE_MS);
    tokio::time::sleep(Duration::from_millis(pause)).await;
}

/// How one attempt has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// With an answer, or in a way that another attempt does not mend.
    ForGood,
    /// The other side, or the way to it, let the request fall.
    Lost,
    /// Not now.
    Refused,
    NotConnected,
}

impl Ended {
    fn by(kind: FrameKind, outcome: &Result<Answer, AskError>) -> Self {
        match outcome {
            Ok(answer) if answer.status == Status::Unavailable => Self::Refused,
            Ok(_) => Self::ForGood,
            Err(AskError::Peer(_)) => Self::NotConnected,
            Err(AskError::Request(error)) => Self::by_error(kind, error),
        }
    }

    fn by_error(kind: FrameKind, error: &RequestError) -> Self {
        match error {
            RequestError::NoBuffer => Self::Refused,
            RequestError::Cancelled => Self::Lost,
            RequestError::Stalled { .. } | RequestError::TooLong { .. } => Self::ForGood,
            RequestError::Closed { reason } => match reason {
                CloseReason::Here(_)
                | CloseReason::Goodbye(_)
                | CloseReason::HungUp
                | CloseReason::Lost(_)
                | CloseReason::SessionOver => Self::Lost,
                // Who fetches counts them; for others it was a neighbour's payload.
                CloseReason::PayloadMismatch(_) if kind != FrameKind::Fetch => Self::Lost,
                CloseReason::PayloadMismatch(_)
                | CloseReason::Silent(_)
                | CloseReason::Stalled(_)
                | CloseReason::Violation(_) => Self::ForGood,
            },
        }
    }
}

/// Decides whether a question is asked once more.
struct Attempts {
    patience: Duration,
    may_pause: bool,
    has_lost: bool,
    pauses: u32,
}

/// The next attempt.
#[derive(Debug, PartialEq, Eq)]
struct Next {
    with_pause: bool,
    /// Of the patience, the pause included.
    left: Duration,
}

impl Attempts {
    fn new(patience: Duration, may_pause: bool) -> Self {
        Self { patience, may_pause, has_lost: false, pauses: 0 }
    }

    /// `elapsed`: since the first attempt began. `silent`: since the peer's last byte in this one.
    fn after(&mut self, ended: Ended, elapsed: Duration, silent: Duration) -> Option<Next> {
        match ended {
            Ended::Lost if !self.has_lost => {
                self.has_lost = true;
                let left = self.patience.saturating_sub(silent);
                (!left.is_zero()).then_some(Next { with_pause: false, left })
            }
            Ended::NotConnected if !self.has_lost => None,
            Ended::Refused | Ended::NotConnected if self.may_pause && self.pauses < ASK_PAUSES_MAX => {
                self.pauses += 1;
                let left = self.patience.saturating_sub(elapsed);
                (left > Duration::from_millis(ASK_PAUSE_MS.end)).then_some(Next { with_pause: true, left })
            }
            Ended::ForGood | Ended::Lost | Ended::Refused | Ended::NotConnected => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::format::frame::FrameHeader;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn closed(reason: CloseReason) -> Result<Answer, AskError> {
        Err(RequestError::Closed { reason }.into())
    }

    fn answer(status: Status) -> Result<Answer, AskError> {
        Ok(Answer { status, header: FrameHeader::new(FrameKind::Answer, 1), body: Vec::new(), payload: None })
    }

    #[test]
    fn a_connection_that_ends_takes_no_question_with_it() {
        for reason in [
            CloseReason::HungUp,
            CloseReason::Lost(ErrorKind::ConnectionReset),
            CloseReason::SessionOver,
            CloseReason::Goodbye("its time is over".into()),
            CloseReason::Here("too many connections of one node".into()),
            CloseReason::PayloadMismatch(Address::ZERO),
        ] {
            assert_eq!(Ended::by(FrameKind::Store, &closed(reason.clone())), Ended::Lost, "{reason}");
        }
        let dropped = Err(RequestError::Cancelled.into());
        assert_eq!(Ended::by(FrameKind::NameWrite, &dropped), Ended::Lost);
        let mut attempts = Attempts::new(PATIENCE, true);
        let next = attempts.after(Ended::Lost, Duration::from_secs(60), Duration::ZERO);
        assert_eq!(next, Some(Next { with_pause: false, left: PATIENCE }), "a transfer that moved may take long");
        assert_eq!(attempts.after(Ended::Lost, Duration::ZERO, Duration::ZERO), None, "once is enough");
    }

    #[test]
    fn who_is_silent_gets_no_more_patience() {
        for reason in [CloseReason::Silent(PATIENCE), CloseReason::Stalled(PATIENCE)] {
            assert_eq!(Ended::by(FrameKind::Store, &closed(reason.clone())), Ended::ForGood, "{reason}");
        }
        let stalled = Err(RequestError::Stalled { patience: PATIENCE }.into());
        assert_eq!(Ended::by(FrameKind::Refer, &stalled), Ended::ForGood);
        let second = Duration::from_secs(1);
        let left = |silent| Attempts::new(PATIENCE, true).after(Ended::Lost, silent, silent).map(|next| next.left);
        assert_eq!(left(PATIENCE - second), Some(second));
        assert_eq!(left(PATIENCE), None);
        let mut attempts = Attempts::new(PATIENCE, true);
        assert_eq!(attempts.after(Ended::Refused, PATIENCE, Duration::ZERO), None);
    }

    #[test]
    fn who_cannot_now_is_asked_again_after_pauses_and_not_for_ever() {
        assert_eq!(Ended::by(FrameKind::Offer, &answer(Status::Unavailable)), Ended::Refused);
        assert_eq!(Ended::by(FrameKind::Store, &Err(RequestError::NoBuffer.into())), Ended::Refused);
        assert_eq!(Ended::by(FrameKind::Store, &answer(Status::NoSpace)), Ended::ForGood);
        let mut attempts = Attempts::new(PATIENCE, true);
        for pauses in 0..ASK_PAUSES_MAX {
            let elapsed = Duration::from_secs(u64::from(pauses));
            let next = attempts.after(Ended::Refused, elapsed, Duration::ZERO);
            assert_eq!(next, Some(Next { with_pause: true, left: PATIENCE - elapsed }));
        }
        assert_eq!(attempts.after(Ended::Refused, Duration::ZERO, Duration::ZERO), None);
        assert_eq!(Attempts::new(PATIENCE, false).after(Ended::Refused, Duration::ZERO, Duration::ZERO), None);
    }

    #[test]
    fn a_peer_that_is_not_there_fails_at_once_unless_it_was_there_just_now() {
        let mut attempts = Attempts::new(PATIENCE, true);
        assert_eq!(attempts.after(Ended::NotConnected, Duration::ZERO, Duration::ZERO), None);
        assert!(attempts.after(Ended::Lost, Duration::ZERO, Duration::ZERO).is_some());
        let next = attempts.after(Ended::NotConnected, Duration::ZERO, Duration::ZERO);
        assert_eq!(next, Some(Next { with_pause: true, left: PATIENCE }));
    }

    #[test]
    fn a_fetch_leaves_damaged_payloads_to_who_counts_them() {
        let mismatch = closed(CloseReason::PayloadMismatch(Address::ZERO));
        assert_eq!(Ended::by(FrameKind::Fetch, &mismatch), Ended::ForGood);
    }
}
