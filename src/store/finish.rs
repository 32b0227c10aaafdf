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
    /// None either; of a reference: the first by its version.
    First,
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

/// What a failed write leaves to do, since all of it may be on the disk and be replayed after a crash. The chunks of it
/// come back, to be disowned. A chunk whose removal failed must not be held by it any more: it is doubtful from now on, so
/// that the next to refer to it brings another copy.
pub(super) fn abandon<D: Disk>(context: &Rc<Context<D>>, segment: u64, records: Vec<Durable>) -> Vec<Stray> {
    let mut strays = Vec::new();
    for record in records {
        let address = record.entry.address;
        let place = record.place(segment);
        match record.effect {
            Effect::Insert { lock, .. } | Effect::Move { lock, .. } => {
                strays.push(Stray { address, place, _lock: lock })
            }
            Effect::Drop { place } => {
                context.shared.index.quarantine(&address, place.segment, place.offset);
            }
            Effect::None | Effect::First | Effect::Carry | Effect::Retire { .. } | Effect::Quarantine { .. } => {}
        }
    }
    strays
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
        let is_first = matches!(effect, Effect::First);
        locks.extend(apply(context, segment, &record, effect));
        if tells {
            events.extend(event(record, is_first));
        }
    }
    (context.observer)(Applied { segment, end_offset, events });
    locks
}

fn apply<D: Disk>(context: &Rc<Context<D>>, segment: u64, record: &Durable, effect: Effect) -> Option<AddressLock> {
    let shared = &context.shared;
    let address = record.entry.address;
    match effect {
        Effect::None | Effect::First | Effect::Carry => None,
        Effect::Retire { place } => {
            shared.note(&place, false);
            None
        }
        Effect::Insert { superseded, lock } => {
            shared.insert(&address, &record.place(segment));
            shared.quarantined().remove(&address);
            let mut gone = superseded;
            // Their bytes count as living until the references that they carry stand elsewhere too.
            gone.retain(|old| shared.index.remove(&address, old.place.segment, old.place.offset).is_some());
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

fn event(record: Durable, is_first: bool) -> Option<AppliedEvent> {
    let Durable { entry, payload, .. } = record;
    let FooterEntry { address, version, flags, .. } = entry;
    Some(match RecordKind::parse(entry.kind)? {
        RecordKind::Chunk => AppliedEvent::Chunk { address, version, flags },
        RecordKind::Reference => AppliedEvent::Reference { address, version, capsule: payload, is_first },
        RecordKind::Name => AppliedEvent::Name { payload },
        RecordKind::Death => AppliedEvent::Death { payload },
        RecordKind::Document => AppliedEvent::Document { payload },
        RecordKind::Removed => AppliedEvent::Removed { address },
        RecordKind::Batch | RecordKind::Padding => return None,
    })
}
