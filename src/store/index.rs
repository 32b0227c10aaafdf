//! The index: address -> where the chunk lies, in 16 bytes a chunk and at most 24 with all slack.
//!
//! A slot is one 128-bit number, so that slots sort by fingerprint:
//!
//! | bits | field |
//! | --- | --- |
//! | 80..128 | fingerprint: 48 bits of a hash keyed per store, so that nobody can make addresses collide here |
//! | 48..80 | segment |
//! | 24..48 | offset of the record header in units of 64 bytes; never 0, since a file starts with its header |
//! | 4..24 | payload length less one |
//! | 0..4 | flags |
//!
//! Ten more bits of the hash choose one of 1,024 tables, each with a lock of its own. A table is a sorted array with
//! gaps: a slot lies at or after its home (fingerprint scaled to the table), no gap lies between the two, and slots are
//! in order. So a search ends at the first gap or larger fingerprint, growing is one pass, and a table may be 9/10 full.
//! Tables grow by a quarter, one at a time, and shrink again: the memory moves gently and is between 16.7 and 24
//! bytes a chunk.
//!
//! Two chunks may share a fingerprint, and one chunk may lie in two places (its first write failed late, or a crash fell
//! between a move and what follows it): a search yields every candidate, and the reader confirms with the address in the
//! record's header.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::Address;
use crate::format::record::{FLAG_CACHED, FLAG_STAND_IN, RECORD_ALIGN_BYTES};

const TABLES: usize = 1024;
/// The chunk's bytes were found wrong: never served, replaced by the next copy that arrives.
pub(super) const FLAG_QUARANTINED: u8 = 1 << 3;
const FLAGS_OF_RECORD: u8 = FLAG_CACHED | FLAG_STAND_IN;
const EMPTY: u128 = 0;

/// Where a chunk's record lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    pub segment: u64,
    /// Of the record header.
    pub offset: u64,
    /// Of the payload.
    pub len: u32,
    pub flags: u8,
}

impl Place {
    pub(super) fn is_at(&self, segment: u64, offset: u64) -> bool {
        self.segment == segment && self.offset == offset
    }

    pub(super) fn is_quarantined(&self) -> bool {
        self.flags & FLAG_QUARANTINED != 0
    }
}

fn pack(fingerprint: u64, place: &Place) -> u128 {
    let units = place.offset / RECORD_ALIGN_BYTES as u64;
    assert!(units != 0 && units < 1 << 24 && place.segment < 1 << 32, "{place:?} does not fit into an index slot");
    assert!(place.len >= 1 && place.len <= 1 << 20, "{place:?} does not fit into an index slot");
    u128::from(fingerprint) << 80
        | u128::from(place.segment) << 48
        | u128::from(units) << 24
        | u128::from(place.len - 1) << 4
        | u128::from(place.flags & (FLAGS_OF_RECORD | FLAG_QUARANTINED))
}

fn unpack(slot: u128) -> Place {
    Place {
        segment: (slot >> 48) as u64 & 0xffff_ffff,
        offset: ((slot >> 24) as u64 & 0xff_ffff) * RECORD_ALIGN_BYTES as u64,
        len: ((slot >> 4) as u32 & 0xf_ffff) + 1,
        flags: slot as u8 & 0xf,
    }
}

fn fingerprint_of(slot: u128) -> u64 {
    (slot >> 80) as u64
}

#[derive(Default)]
struct Table {
    slots: Box<[u128]>,
    used: usize,
}

impl Table {
    /// Slots that are nobody's home: room for the last runs.
    fn tail(slots: usize) -> usize {
        (slots / 32).min(64).max(slots.min(4))
    }

    fn home(&self, fingerprint: u64) -> usize {
        let span = self.slots.len() - Self::tail(self.slots.len()) + 1;
        ((u128::from(fingerprint) * span as u128) >> 48) as usize
    }

    fn at(&self, position: usize) -> u128 {
        self.slots.get(position).copied().unwrap_or(EMPTY)
    }

    fn set(&mut self, position: usize, slot: u128) {
        if let Some(place) = self.slots.get_mut(position) {
            *place = slot;
        }
    }

    /// Positions of all slots of this fingerprint.
    fn positions(&self, fingerprint: u64) -> std::ops::Range<usize> {
        if self.slots.is_empty() {
            return 0..0;
        }
        let mut start = self.home(fingerprint);
        while self.at(start) != EMPTY && fingerprint_of(self.at(start)) < fingerprint {
            start += 1;
        }
        let mut end = start;
        while self.at(end) != EMPTY && fingerprint_of(self.at(end)) == fingerprint {
            end += 1;
        }
        start..end
    }

    /// False when there is no room for it: grow first.
    fn try_insert(&mut self, slot: u128) -> bool {
        if self.slots.is_empty() || self.used + 1 > self.slots.len() / 10 * 9 + self.slots.len() % 10 {
            return false;
        }
        let mut position = self.home(fingerprint_of(slot));
        while self.at(position) != EMPTY && self.at(position) < slot {
            position += 1;
        }
        let mut gap = position;
        while self.at(gap) != EMPTY {
            gap += 1;
        }
        if gap >= self.slots.len() {
            return false;
        }
        self.slots.copy_within(position..gap, position + 1);
        self.set(position, slot);
        self.used += 1;
        true
    }

    fn remove_at(&mut self, mut position: usize) {
        loop {
            let next = self.at(position + 1);
            if next == EMPTY || self.home(fingerprint_of(next)) > position {
                break;
            }
            self.set(position, next);
            position += 1;
        }
        self.set(position, EMPTY);
        self.used -= 1;
    }

    fn capacity_for(used: usize) -> usize {
        used + used / 4 + 8
    }

    /// Moves everything into `capacity` slots; a little more when the last runs do not fit.
    fn rebuild(&mut self, mut capacity: usize) {
        loop {
            let mut next = Table { slots: vec![EMPTY; capacity].into_boxed_slice(), used: 0 };
            let mut end = 0;
            for slot in self.slots.iter().copied().filter(|slot| *slot != EMPTY) {
                let position = next.home(fingerprint_of(slot)).max(end);
                next.set(position, slot);
                end = position + 1;
            }
            if end <= capacity {
                next.used = self.used;
                *self = next;
                return;
            }
            capacity += 8;
        }
    }

    fn is_sparse(&self) -> bool {
        self.used * 3 < self.slots.len() * 2 && Self::capacity_for(self.used) < self.slots.len()
    }
}

/// All tables. Shared between threads.
pub(super) struct Index {
    key: [u8; 32],
    tables: Box<[Mutex<Table>]>,
    chunks: AtomicU64,
    slots: AtomicUsize,
    slots_peak: AtomicUsize,
}

impl Index {
    pub fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            tables: (0..TABLES).map(|_| Mutex::default()).collect(),
            chunks: AtomicU64::new(0),
            slots: AtomicUsize::new(0),
            slots_peak: AtomicUsize::new(0),
        }
    }

    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    fn locate(&self, address: &Address) -> (MutexGuard<'_, Table>, u64) {
        let hash = blake3::keyed_hash(&self.key, &address.0);
        let word = hash.as_bytes().first_chunk::<8>().map_or(0, |head| u64::from_le_bytes(*head));
        (self.table((word >> 48) as usize % TABLES), word & ((1 << 48) - 1))
    }

    fn table(&self, number: usize) -> MutexGuard<'_, Table> {
        #[allow(clippy::indexing_slicing)] // every caller's number is below TABLES
        self.tables[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that may be this address.
    pub fn candidates(&self, address: &Address) -> Vec<Place> {
        let (table, fingerprint) = self.locate(address);
        table.positions(fingerprint).map(|position| unpack(table.at(position))).collect()
    }

    pub fn has(&self, address: &Address, place: &Place) -> bool {
        let (table, fingerprint) = self.locate(address);
        table.positions(fingerprint).any(|position| unpack(table.at(position)).is_at(place.segment, place.offset))
    }

    /// Whether something usable has this fingerprint, and its flags.
    pub fn flags(&self, address: &Address) -> Option<u8> {
        let (table, fingerprint) = self.locate(address);
        let mut places = table.positions(fingerprint).map(|position| unpack(table.at(position)));
        places.find(|place| !place.is_quarantined()).map(|place| place.flags)
    }

    pub fn insert(&self, address: &Address, place: &Place) {
        let (mut table, fingerprint) = self.locate(address);
        self.insert_slot(&mut table, pack(fingerprint, place));
    }

    fn insert_slot(&self, table: &mut Table, slot: u128) {
        while !table.try_insert(slot) {
            // A table that is not full but has no gap behind its last run grows all the same.
            let capacity = Table::capacity_for(table.used + 1).max(table.slots.len() + 8);
            self.resize(table, capacity);
        }
        self.chunks.fetch_add(1, Ordering::Relaxed);
    }

    fn resize(&self, table: &mut Table, capacity: usize) {
        let before = table.slots.len();
        let with_both = self.slots.fetch_add(capacity, Ordering::Relaxed) + capacity;
        self.slots_peak.fetch_max(with_both, Ordering::Relaxed);
        table.rebuild(capacity);
        self.slots.fetch_add(table.slots.len() - capacity, Ordering::Relaxed);
        self.slots.fetch_sub(before, Ordering::Relaxed);
    }

    /// Drops exactly this place; false when it is not here.
    pub fn remove(&self, address: &Address, segment: u64, offset: u64) -> Option<Place> {
        let (mut table, fingerprint) = self.locate(address);
        let position =
            table.positions(fingerprint).find(|position| unpack(table.at(*position)).is_at(segment, offset))?;
        let place = unpack(table.at(position));
        table.remove_at(position);
        self.chunks.fetch_sub(1, Ordering::Relaxed);
        if table.is_sparse() {
            let capacity = Table::capacity_for(table.used);
            self.resize(&mut table, capacity);
        }
        Some(place)
    }

    /// Flags exactly this place; false when it is not here.
    pub fn quarantine(&self, address: &Address, segment: u64, offset: u64) -> bool {
        let (mut table, fingerprint) = self.locate(address);
        let found = table.positions(fingerprint).find(|position| unpack(table.at(*position)).is_at(segment, offset));
        let Some(position) = found else { return false };
        // The order of slots does not change: of two slots at one place there is none.
        let slot = table.at(position) | u128::from(FLAG_QUARANTINED);
        table.set(position, slot);
        true
    }

    pub fn chunks(&self) -> u64 {
        self.chunks.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        ((self.slots.load(Ordering::Relaxed) * size_of::<u128>()) + TABLES * size_of::<Mutex<Table>>()) as u64
    }

    /// The most that was ever held at once, tables being moved counted twice.
    #[cfg(test)]
    pub fn bytes_peak(&self) -> u64 {
        ((self.slots_peak.load(Ordering::Relaxed) * size_of::<u128>()) + TABLES * size_of::<Mutex<Table>>()) as u64
    }

    // For checkpoints.

    pub fn table_count() -> usize {
        TABLES
    }

    /// The slots of one table that `keep` says yes to, in order.
    pub fn dump(&self, number: usize, mut keep: impl FnMut(&Place) -> bool) -> Vec<u128> {
        let table = self.table(number % TABLES);
        table.slots.iter().copied().filter(|slot| *slot != EMPTY && keep(&unpack(*slot))).collect()
    }

    /// Room for so many slots in one table. Slots that come in order into a table that grows with them would all crowd at
    /// its front: opening 10 million chunks took 7.6 s without this.
    pub fn reserve(&self, number: usize, slots: usize) {
        let mut table = self.table(number % TABLES);
        let capacity = Table::capacity_for(slots);
        if capacity > table.slots.len() {
            self.resize(&mut table, capacity);
        }
    }

    pub fn load(&self, number: usize, slots: impl Iterator<Item = u128>) {
        let mut table = self.table(number % TABLES);
        slots.for_each(|slot| self.insert_slot(&mut table, slot));
    }

    /// Whether these bits can be a slot at all: bytes from a disk never panic.
    pub fn is_slot(slot: u128) -> bool {
        unpack(slot).offset != 0
    }

    pub fn place_of(slot: u128) -> Place {
        unpack(slot)
    }

    /// Calls `each` for every place.
    pub fn for_each(&self, mut each: impl FnMut(&Place)) {
        for number in 0..TABLES {
            self.table(number).slots.iter().filter(|slot| **slot != EMPTY).for_each(|slot| each(&unpack(*slot)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn address(number: u64) -> Address {
        Address(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    fn place(number: u64) -> Place {
        Place { segment: number % 1000 + 1, offset: 4096 + number / 1000 * 64, len: 1 << 20, flags: 0 }
    }

    #[test]
    fn slot_keeps_every_field_at_its_extremes() {
        for place in [
            Place { segment: (1 << 32) - 1, offset: ((1 << 24) - 1) * 64, len: 1 << 20, flags: 0xb },
            Place { segment: 1, offset: 64, len: 1, flags: 0 },
        ] {
            let slot = pack((1 << 48) - 1, &place);
            assert_eq!((unpack(slot), fingerprint_of(slot)), (place, (1 << 48) - 1));
        }
    }

    #[test]
    fn memory_stays_within_24_bytes_a_chunk_while_growing_and_shrinking() {
        let index = Index::new([7; 32]);
        let total = 400_000;
        for number in 0..total {
            index.insert(&address(number), &place(number));
            // Small stores pay for 1,024 tables; the promise is about many chunks.
            if number >= 60_000 {
                let bound = 24 * (number + 1);
                assert!(index.bytes() <= bound, "{} bytes for {} chunks", index.bytes(), number + 1);
                assert!(index.bytes_peak() <= bound, "peak {} for {} chunks", index.bytes_peak(), number + 1);
            }
        }
        for number in 0..total - 60_000 {
            assert!(index.remove(&address(number), place(number).segment, place(number).offset).is_some());
            assert!(index.bytes() <= 24 * index.chunks(), "{} bytes for {} chunks", index.bytes(), index.chunks());
        }
        for number in total - 60_000..total {
            assert_eq!(index.candidates(&address(number)), [place(number)]);
        }
    }

    #[test]
    fn random_operations_agree_with_a_map() {
        let seed = rand::random::<u64>();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let index = Index::new(random.random());
        let mut model: HashMap<u64, Place> = HashMap::new();
        for _ in 0..200_000 {
            let number = random.random_range(0..30_000);
            match model.remove(&number) {
                Some(known) => {
                    assert_eq!(index.remove(&address(number), known.segment, known.offset), Some(known), "seed {seed}");
                }
                None => {
                    index.insert(&address(number), &place(number));
                    model.insert(number, place(number));
                }
            }
        }
        assert_eq!(index.chunks(), model.len() as u64);
        for number in 0..30_000 {
            let expected: Vec<_> = model.get(&number).copied().into_iter().collect();
            assert_eq!(index.candidates(&address(number)), expected, "seed {seed}");
        }
    }

    #[test]
    fn slots_of_one_fingerprint_live_side_by_side() {
        let mut table = Table::default();
        table.rebuild(64);
        let places: Vec<_> = (1..20).map(|segment| Place { segment, ..place(5) }).collect();
        for place in &places {
            assert!(table.try_insert(pack(1 << 47, place)));
        }
        let found: Vec<_> = table.positions(1 << 47).map(|position| unpack(table.at(position))).collect();
        assert_eq!(found, places);
        assert!(table.positions(0).is_empty());
    }
}
