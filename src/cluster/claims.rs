//! Claims: who may give a name that nobody has, where only one may.
//!
//! A put with `--no-clobber` must not win over another one. Owners refuse its record where a file of another version has the
//! name, so of two that run at once no more than one reaches a majority. But the one that lost would leave its record
//! with a minority, and a later clock there would win over the winner at the next read. So it claims the name first, and
//! writes nothing unless it has a majority of the claims:
//!
//! ```text
//! claim at all owners --W granted--> record to all owners --W acks--> done
//!      \___ the name has a file: taken       \___ too few: taken, or failed (it may still appear, as with any put)
//!      \___ too few are free: release them, pause, begin again: by then the other one's record is there, or its claim gone
//! ```
//!
//! - An owner grants a name to one version at a time, in memory, for [`NAME_CLAIM_MAX`], and takes a record that claims to be
//!   new only under the claim of its own (clock, version). One that has started again grants nothing for as long: what it granted before
//!   counts until then. A name's sole owner needs no claims: it decides under its own lock.
//! - Who claims sends its record within half of that time since it asked, or begins again.
//! - So, where messages arrive within the other half: all records of one version arrive while its claims live, and a
//!   majority of claims meets any other in an owner. That owner grants the next claim only when the first record is there
//!   (and then refuses, by the record), or will never be. Hence a version that was refused anywhere for another's sake has
//!   written nowhere; one that has written nowhere displaces nothing and gives no ground for a death.
//! - Where messages get lost, or owners start again, still one wins at most; but a put that failed for silence may have left its
//!   record with a minority.
//! - Messages that are later than that meet owners whose claims are over, and are refused; what one leaves behind is older by
//!   its clock than what was put since, and loses by it.
//! - Both of two may lose (each holds one of two owners when one owner is away, until the attempts are used up): each is told.
//! - A put without `--no-clobber` asks for no claim. Against it clocks decide, as ever.

use std::collections::HashMap;
use std::time::Duration;

use crate::format::{NameId, Stamp, VersionId};
use crate::limits::{NAME_CLAIM_MAX, NAME_CLAIMS_MAX};

/// What one owner has granted: to which attempt of which put, by its (clock, version), until when.
#[derive(Debug, Default)]
pub struct NameClaims {
    granted: HashMap<NameId, (Order, Duration)>,
}

type Order = (Stamp, VersionId);

impl NameClaims {
    /// Grants `name`, unless another version has it. Who has it already has it for the whole time again, and a later attempt
    /// of the same put takes over from the one before, whose release may still be under way.
    pub fn grant(&mut self, name: NameId, order: Order, now: Duration) -> bool {
        if self.granted.len() >= NAME_CLAIMS_MAX {
            self.granted.retain(|_, (_, until)| *until > now);
        }
        let is_free = match self.granted.get(&name) {
            Some((holder, until)) => *until <= now || (holder.1 == order.1 && *holder <= order),
            None => self.granted.len() < NAME_CLAIMS_MAX,
        };
        if is_free {
            self.granted.insert(name, (order, now + NAME_CLAIM_MAX));
        }
        is_free
    }

    pub fn is_held(&self, name: &NameId, order: &Order, now: Duration) -> bool {
        self.granted.get(name).is_some_and(|(holder, until)| holder == order && *until > now)
    }

    /// Of this very attempt: a later one of the same put keeps what it was granted.
    pub fn release(&mut self, name: &NameId, order: &Order) {
        if self.granted.get(name).is_some_and(|(holder, _)| holder == order) {
            self.granted.remove(name);
        }
    }
}
