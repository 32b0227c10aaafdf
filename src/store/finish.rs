//! What happens once a record is durable: its effect on the index, and the message to the catalog.

use std::rc::Rc;

use super::context::Superseded;
use super::disk::Disk;
use super::index::Place;
use super::locks::AddressLock;
use super::{Applied, AppliedEvent, Context};
use crate::format::Address;
use crate::format::record::RecordKind;
use crate::format::segment::FooterEntry;

/// What a record does to the index.
pub(super) enum Effect {
    None,
    /// A `removed` record that compaction carries along: known already.
    Carry,
    /// A chunk appears; the copies that it replaces (cached only, or quarantined) go.
    Insert {
        superseded: Vec<Superseded>,
        lock: AddressLock,
    },
    /// A chunk's copy was moved by compaction.
    Move {
        from: Place,
        lock: AddressLock,
    },
    /// A chunk is gone.
    Drop {
        place: Place,
    },
    /// A place that is not in the index (any more) is dead: nothing to tell.
    Retire {
        place: Place,
    },
    /// A chunk's bytes are wrong.
    Quarantine {
        place: Place,
    },
}

/// A record on its way to the disk.
pub(super) struct Durable {
    pub entry: FooterEntry,
    /// Of references, names, deaths and documents, for the catalog.
    pub payload: Vec<u8>,
    pub effect: Effect,
}

impl Durable {
    /// Of a write that failed: the chunk that may lie there all the same.
    pub fn stray(self, segment: u64) -> Option<Stray> {
        let place = self.place(segment);
        match self.effect {
            Effect::Insert { lock, .. } | Effect::Move { lock, .. } => {
                Some(Stray { address: self.entry.address, place, _lock: lock })
            }
            _ => None,
        }
    }

    fn place(&self, segment: u64) -> Place {
        Place { segment, offset: self.entry.offset.get(), len: self.entry.payload_bytes.get(), flags: self.entry.flags }
    }
}

/// A chunk whose write failed, still locked.
pub(super) struct Stray {
    pub address: Address,
    pub place: Place,
    _lock: AddressLock,
}

/// Applies the effects in order and tells the catalog. The locks come back, to be dropped after the acknowledgements.
pub(super) fn finish<D: Disk>(
    context: &Rc<Context<D>>,
    segment: u64,
    end_offset: u64,
    records: Vec<Durable>,
) -> Vec<AddressLock> {
    let mut locks = Vec::new();
    let mut events = Vec::with_capacity(records.len());
    for mut record in records {
        let effect = std::mem::replace(&mut record.effect, Effect::None);
        let tells =
            !matches!(effect, Effect::Carry | Effect::Move { .. } | Effect::Retire { .. } | Effect::Quarantine { .. });
        locks.extend(apply(context, segment, &record, effect));
        if tells {
            events.extend(event(record));
        }
    }
    (context.observer)(Applied { segment, end_offset, events });
    locks
}

fn apply<D: Disk>(context: &Rc<Context<D>>, segment: u64, record: &Durable, effect: Effect) -> Option<AddressLock> {
    let shared = &context.shared;
    let address = record.entry.address;
    match effect {
        Effect::None | Effect::Carry => None,
        Effect::Retire { place } => {
            shared.note(&place, false);
            None
        }
        Effect::Insert { superseded, lock } => {
            shared.insert(&address, &record.place(segment));
            shared.quarantined().remove(&address);
            let mut gone = superseded;
            gone.retain(|old| shared.forget(&address, old.place.segment, old.place.offset).is_some());
            if !gone.is_empty() {
                let context = context.clone();
                (context.clone().spawn)(Box::pin(async move { context.retire(address, gone).await }));
            }
            Some(lock)
        }
        Effect::Move { from, lock } => {
            shared.insert(&address, &Place { flags: from.flags, ..record.place(segment) });
            shared.forget(&address, from.segment, from.offset);
            Some(lock)
        }
        Effect::Drop { place } => {
            shared.forget(&address, place.segment, place.offset);
            shared.note(&place, false);
            shared.quarantined().remove(&address);
            None
        }
        Effect::Quarantine { place } => {
            shared.index.quarantine(&address, place.segment, place.offset);
            shared.note(&place, true);
            shared.quarantined().insert(address);
            None
        }
    }
}

fn event(record: Durable) -> Option<AppliedEvent> {
    let Durable { entry, payload, .. } = record;
    let FooterEntry { address, version, flags, .. } = entry;
    Some(match RecordKind::parse(entry.kind)? {
        RecordKind::Chunk => AppliedEvent::Chunk { address, version, flags },
        RecordKind::Reference => AppliedEvent::Reference { address, version, capsule: payload },
        RecordKind::Name => AppliedEvent::Name { payload },
        RecordKind::Death => AppliedEvent::Death { payload },
        RecordKind::Document => AppliedEvent::Document { payload },
        RecordKind::Removed => AppliedEvent::Removed { address },
        RecordKind::Batch | RecordKind::Padding => return None,
    })
}
