//! Chunks: deciding whether one is here, writing, reading, doubting and removing it.
//!
//! Everything that decides about one chunk does so under its address lock. What may end a chunk's life:
//!
//! | who | under | does |
//! | --- | --- | --- |
//! | `remove` | lock, no pin, nobody refers | `removed` record, index entry dropped; space back after the guards, in the background |
//! | a new copy of a cached or quarantined chunk | the claim's lock | the old place is dropped and retired; it stays if its first version cannot be known |
//! | compaction | lock | the copy at the new place is durable before the old one goes |

use std::rc::Rc;

use tokio::sync::oneshot;
use zerocopy::IntoBytes;

use super::appender::Slot;
use super::committer::{Message, Op, entry_of};
use super::context::{Confirmed, Context, FLAG_REMOVED_AS_DAMAGED, Path, Superseded, check_header, reference_op};
use super::disk::{Disk, DiskFile};
use super::finish::{Durable, Effect};
use super::index::Place;
use super::locks::{AddressLock, PlaceGuard};
use super::room::check_free;
use super::segment::name_of;
use super::{Store, StoreError};
use crate::format::record::{Batch, FLAG_CACHED, RECORD_HEADER_BYTES, RecordHeader, RecordKind};
use crate::format::{Address, VersionId};
use crate::io::Turn;
use crate::io::buffers::{Buffer, SharedBuffer};
use crate::limits::{BLOCK_BYTES, BULK_PAYLOAD_BYTES_MIN, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, RECORD_HEAD_BYTES};

const HEADER_AT: usize = RECORD_HEAD_BYTES - RECORD_HEADER_BYTES;

/// Answer to "do you hold this chunk for this version?"
pub enum Hold {
    /// It is here, and the reference is durable.
    Held,
    /// It is not: whoever has the claim is the one to bring it. Dropping the claim lets the next one try.
    Absent(Claim),
}

/// The right to write one chunk.
pub struct Claim {
    address: Address,
    lock: AddressLock,
    superseded: Vec<Superseded>,
}

impl Claim {
    pub fn address(&self) -> &Address {
        &self.address
    }
}

/// A chunk that was not staged: nothing of it was reserved or written, and the buffer is as it was.
#[derive(Debug)]
pub struct Refused {
    pub error: StoreError,
    pub buffer: Buffer,
}

impl From<Refused> for StoreError {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

/// A chunk on its way to the disk. Dropping this does not take it back.
pub struct Staged {
    buffer: SharedBuffer,
    done: oneshot::Receiver<Result<(), StoreError>>,
}

impl Staged {
    /// The payload lies where it lay: at `RECORD_HEAD_BYTES`.
    pub fn buffer(&self) -> &SharedBuffer {
        &self.buffer
    }

    /// Returns once the chunk and its reference are durable and in the index.
    pub async fn commit(self) -> Result<(), StoreError> {
        drop(self.buffer);
        self.done.await.unwrap_or(Err(StoreError::Closed))
    }
}

pub enum ReadOutcome {
    /// The payload lies at `RECORD_HEAD_BYTES`, `len` bytes of it. It is NOT verified yet. Bytes that came out of the
    /// page cache were copied within a turn: who verifies them does it within the same, while the core's own cache
    /// still has them; anybody else passes it on. It must be gone before anything else of the store is awaited.
    Found {
        buffer: Buffer,
        len: usize,
        guard: PlaceGuard,
        turn: Turn,
    },
    Absent {
        buffer: Buffer,
    },
    /// It was here, and what lies there now is not it: quarantined.
    Damaged {
        buffer: Buffer,
    },
}

/// Where a chunk's payload lies in a sealed segment.
#[derive(Clone)]
pub struct Located {
    pub segment: u64,
    pub offset: u64,
    pub len: usize,
    pub guard: PlaceGuard,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// It is not here.
    Absent,
    /// Somebody refers to it, or is about to.
    Kept,
    Removed,
}

impl<D: Disk> Store<D> {
    /// The dedup decision, in one step.
    pub async fn hold(&self, address: &Address, version: &VersionId) -> Result<Hold, StoreError> {
        let shared = self.shared();
        let lock = shared.locks.lock(address).await;
        if let Some(superseded) = self.superseded(address).await? {
            return Ok(Hold::Absent(Claim { address: *address, lock, superseded }));
        }
        // The pin keeps the chunk while the reference is written, so that others need not wait for that.
        let pin = shared.locks.pin(address);
        drop(lock);
        let result = self.context().commit(vec![reference_op(address, version)]).await;
        drop(pin);
        result.map(|()| Hold::Held)
    }

    /// The copies that a new one would replace; none when a sound one is held. To be asked under the address lock. A
    /// copy stays, quarantined, when nobody can say which version introduced it: its record is that version's reference.
    pub(super) async fn superseded(&self, address: &Address) -> Result<Option<Vec<Superseded>>, StoreError> {
        let mut superseded = Vec::new();
        let mut unknown = Vec::new();
        for place in self.shared().index.candidates(address) {
            let (confirmed, version_there) = self.context().confirm(address, &place).await?;
            let is_cached = place.flags & FLAG_CACHED != 0;
            match confirmed {
                Confirmed::Other => {}
                Confirmed::Yes if !place.is_quarantined() && !is_cached => return Ok(None),
                Confirmed::Yes | Confirmed::Damaged if is_cached => {
                    superseded.push(Superseded { place, version: None })
                }
                Confirmed::Yes => superseded.push(Superseded { place, version: version_there }),
                Confirmed::Damaged => match self.context().introduced(&place).await {
                    // The table says what the header cannot: another chunk with the same fingerprint.
                    Some(entry) if entry.address != *address => {}
                    Some(entry) => superseded.push(Superseded { place, version: Some(entry.version) }),
                    None => unknown.push(place),
                },
            }
        }
        self.flag_damaged(address, unknown.into_iter().filter(|place| !place.is_quarantined()).collect()).await;
        Ok(Some(superseded))
    }

    /// An error when `bytes` of new chunks are not taken.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.check_free()?;
        self.shared().check_capacity(bytes)
    }

    /// An error when the file system has no space for new chunks.
    pub(super) fn check_free(&self) -> Result<(), StoreError> {
        let free = self.context().disk.free_bytes();
        check_free(free.map_err(|error| StoreError::io("asking for the free space of", "", error))?)
    }

    /// A claim to write a cached copy: none when there is a sound copy of any kind, and none over a damaged one that was
    /// held. That one stays known as damaged until it is held again: a cached copy may go at any time.
    pub async fn claim(&self, address: &Address) -> Result<Option<Claim>, StoreError> {
        let shared = self.shared();
        let lock = shared.locks.lock(address).await;
        let mut superseded = Vec::new();
        for place in shared.index.candidates(address) {
            let (confirmed, version) = self.context().confirm(address, &place).await?;
            match confirmed {
                Confirmed::Other => {}
                Confirmed::Yes if !place.is_quarantined() => return Ok(None),
                Confirmed::Yes | Confirmed::Damaged if place.flags & FLAG_CACHED == 0 => return Ok(None),
                Confirmed::Yes | Confirmed::Damaged => superseded.push(Superseded { place, version }),
            }
        }
        Ok(Some(Claim { address: *address, lock, superseded }))
    }

    /// Starts writing a chunk whose payload lies at `buffer[RECORD_HEAD_BYTES..][..payload_len]`.
    pub async fn stage(
        &self,
        claim: Claim,
        buffer: Buffer,
        payload_len: usize,
        version: &VersionId,
        flags: u8,
    ) -> Result<Staged, Refused> {
        let takes = check_length(&buffer, payload_len)
            .and_then(|()| self.check_room((RECORD_HEADER_BYTES + payload_len) as u64));
        if let Err(error) = takes {
            return Err(Refused { error, buffer });
        }
        let Claim { address, lock, superseded } = claim;
        let effect = Effect::Insert { superseded, lock };
        let header = RecordHeader::new(RecordKind::Chunk, flags, payload_len as u32, address, *version);
        if payload_len >= BULK_PAYLOAD_BYTES_MIN {
            self.stage_bulk(buffer, header, effect).await
        } else {
            self.stage_small(buffer, header, effect).await
        }
    }

    async fn stage_bulk(&self, mut buffer: Buffer, header: RecordHeader, effect: Effect) -> Result<Staged, Refused> {
        let payload_len = header.payload_bytes.get() as usize;
        let len = RECORD_HEAD_BYTES + payload_len.next_multiple_of(BLOCK_BYTES);
        if let Some(rest) = buffer.as_mut_slice().get_mut(RECORD_HEAD_BYTES + payload_len..len) {
            rest.fill(0);
        }
        if let Err(error) = (self.context().backpressure)().await {
            return Err(Refused { error, buffer });
        }
        let (sender, done) = oneshot::channel();
        // Taken out, and the other put in, once it has a place.
        let (mut unplaced, mut placed) = (Some(buffer), None);
        let build = |slot: &Slot| {
            let Some(mut buffer) = unplaced.take() else { unreachable!("a chunk is given one place") };
            let entry = fill_head(&mut buffer, slot, header, len);
            let shared = buffer.freeze();
            placed = Some(shared.clone());
            (shared, vec![Durable { entry, payload: Vec::new(), effect }])
        };
        let tell = Box::new(move |result| {
            let _ = sender.send(result);
        });
        let outcome = self.0.bulk.write(len, 1, build, tell).await;
        match (outcome, unplaced, placed) {
            (Ok(()), _, Some(buffer)) => Ok(Staged { buffer, done }),
            (Err(error), Some(buffer), _) => Err(Refused { error, buffer }),
            _ => unreachable!("a write that was begun has its place, one that was refused has none"),
        }
    }

    async fn stage_small(&self, buffer: Buffer, header: RecordHeader, effect: Effect) -> Result<Staged, Refused> {
        let payload = buffer.as_slice().get(RECORD_HEAD_BYTES..).unwrap_or_default();
        let payload = payload.get(..header.payload_bytes.get() as usize).unwrap_or_default().to_vec();
        let op = Op {
            kind: RecordKind::Chunk,
            flags: header.flags,
            address: header.address,
            version: header.version,
            payload,
            effect,
        };
        let (answer, done) = oneshot::channel();
        match self.context().send(Message::Write { ops: vec![op], answer }).await {
            Ok(()) => Ok(Staged { buffer: buffer.freeze(), done }),
            Err(error) => Err(Refused { error, buffer }),
        }
    }

    /// Whether the only copies here are known to be damaged.
    pub fn is_quarantined(&self, address: &Address) -> bool {
        self.shared().quarantined().contains(address)
    }

    /// Whether a committed, sound chunk with this fingerprint is here.
    pub fn contains(&self, address: &Address) -> bool {
        self.flags(address).is_some()
    }

    /// The flags of the chunk's record, by fingerprint.
    pub fn flags(&self, address: &Address) -> Option<u8> {
        self.shared().index.flags(address)
    }

    /// Reads a chunk for whoever verifies it. The buffer must have room for it behind the record head.
    pub async fn read(&self, address: &Address, mut buffer: Buffer) -> Result<ReadOutcome, StoreError> {
        'again: loop {
            for place in self.shared().index.candidates(address) {
                if place.is_quarantined() {
                    continue;
                }
                let guard = self.shared().locks.guard(place.segment, place.offset);
                if !self.shared().index.has(address, &place) {
                    continue 'again; // removed or moved before the guard was there
                }
                let (confirmed, turn);
                (confirmed, buffer, turn) = self.read_place(address, &place, buffer).await?;
                if confirmed != Confirmed::Yes && !self.shared().index.has(address, &place) {
                    continue 'again; // its segment went while it was opened
                }
                match confirmed {
                    Confirmed::Yes => return Ok(ReadOutcome::Found { buffer, len: place.len as usize, guard, turn }),
                    Confirmed::Other => {}
                    Confirmed::Damaged => {
                        drop(turn);
                        self.flag_damaged(address, vec![place]).await;
                        return Ok(ReadOutcome::Damaged { buffer });
                    }
                }
            }
            return Ok(ReadOutcome::Absent { buffer });
        }
    }

    /// Bulk chunks that are not in the page cache are read past it, straight into the buffer: filling the page cache costs
    /// a copy and, for a file read once, other data's place. A cold 4 GiB get took 2.1 CPU s/GiB through the page cache and
    /// 0.4 past it (two runs of the whole node, on a machine with other work).
    ///
    /// Also says whether all of it lies in the page cache, so that reading is nothing but a copy.
    async fn reader_for(&self, place: &Place, len: usize) -> std::io::Result<(D::File, Path, bool)> {
        let context = self.context();
        let file = context.reader(place.segment).await?;
        let is_aligned =
            place.offset as usize % BLOCK_BYTES == HEADER_AT && place.len as usize >= BULK_PAYLOAD_BYTES_MIN;
        if !is_aligned {
            return Ok((file, Path::Cached, false));
        }
        let is_hot = file.is_cached(place.offset, len);
        if is_hot || context.touched.borrow_mut().again(place) {
            return Ok((file, Path::Cached, is_hot));
        }
        Ok((context.reader_by(place.segment, Path::Direct).await?, Path::Direct, false))
    }

    /// Header and payload in one read; the header is checked. What is hot is copied within a turn.
    async fn read_place(
        &self,
        address: &Address,
        place: &Place,
        buffer: Buffer,
    ) -> Result<(Confirmed, Buffer, Turn), StoreError> {
        let range = HEADER_AT..RECORD_HEAD_BYTES + place.len as usize;
        if range.end > buffer.len() {
            return Err(StoreError::Length {
                what: "read buffer",
                len_bytes: buffer.len(),
                min_bytes: range.end,
                max_bytes: RECORD_HEAD_BYTES + CHUNK_BYTES_MAX,
            });
        }
        let Some(entry) = self.shared().segment(place.segment) else {
            return Ok((Confirmed::Other, buffer, Turn::none()));
        };
        let mut turn = Turn::none();
        let outcome = match self.reader_for(place, range.len()).await {
            Ok((file, Path::Cached, is_hot)) => {
                if is_hot {
                    turn = Turn::take(range.len()).await;
                }
                file.read_at(buffer, range.clone(), place.offset).await
            }
            Ok((file, Path::Direct, _)) => {
                // From the block that ends with the header to the one that ends the payload.
                let blocks = 0..range.end.next_multiple_of(BLOCK_BYTES);
                let (result, buffer) = file.read_at(buffer, blocks, place.offset - HEADER_AT as u64).await;
                (result.map(|read| read.saturating_sub(HEADER_AT).min(range.len())), buffer)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok((Confirmed::Damaged, buffer, turn));
            }
            Err(error) => return Err(StoreError::io("opening", &name_of(place.segment), error)),
        };
        let (result, buffer) = outcome;
        let confirmed = match result {
            Ok(read) if read == range.len() => {
                let header = buffer.as_slice().get(HEADER_AT..RECORD_HEAD_BYTES).unwrap_or_default();
                check_header(header, address, place, &entry.nonce)
            }
            Ok(_) => Confirmed::Damaged,
            Err(error) => {
                tracing::warn!(?address, ?place, %error, "a chunk cannot be read");
                Confirmed::Damaged
            }
        };
        Ok((confirmed, buffer, turn))
    }

    /// Where the payload lies, for sending it from a mapping: sealed segments only, and by fingerprint: the receiver
    /// checks what it gets. None also when that would be ambiguous: use [`Store::read`].
    pub fn locate(&self, address: &Address) -> Option<Located> {
        let candidates = self.shared().index.candidates(address);
        let [place] = candidates.as_slice() else { return None };
        let entry = self.shared().segment(place.segment)?;
        if place.is_quarantined() || !entry.is_sealed() {
            return None;
        }
        let guard = self.shared().locks.guard(place.segment, place.offset);
        self.shared().index.has(address, place).then(|| Located {
            segment: place.segment,
            offset: place.offset + RECORD_HEADER_BYTES as u64,
            len: place.len as usize,
            guard,
        })
    }

    /// A descriptor for reading this segment.
    pub async fn reader(&self, segment: u64) -> std::io::Result<D::File> {
        self.context().reader(segment).await
    }

    /// A user of the bytes found them wrong. They are read again: what is wrong then too is served no more, and the
    /// next `hold` asks for the chunk.
    pub async fn quarantine(&self, address: &Address) {
        let lock = self.shared().locks.lock(address).await;
        let mut damaged = Vec::new();
        for place in self.shared().index.candidates(address) {
            if !place.is_quarantined() && !self.is_sound(address, &place).await {
                damaged.push(place);
            }
        }
        self.flag_damaged(address, damaged).await;
        drop(lock);
    }

    /// Whether the bytes at this place are the chunk's, or another chunk's with the same fingerprint.
    async fn is_sound(&self, address: &Address, place: &Place) -> bool {
        match self.read_place(address, place, Buffer::heap(RECORD_HEAD_BYTES + place.len as usize)).await {
            Ok((Confirmed::Yes, buffer, _turn)) => {
                let payload = buffer.as_slice().get(RECORD_HEAD_BYTES..).unwrap_or_default();
                blake3::hash(payload).as_bytes() == &address.0
            }
            Ok((Confirmed::Other, ..)) => true,
            Ok((Confirmed::Damaged, ..)) | Err(_) => false,
        }
    }

    /// In memory at once, and in the log so that it outlives a restart.
    pub(super) async fn flag_damaged(&self, address: &Address, places: Vec<Place>) {
        let shared = self.shared();
        let context = self.context();
        let mut ops = Vec::new();
        for place in places {
            if shared.index.quarantine(address, place.segment, place.offset) {
                tracing::warn!(?address, ?place, "a chunk is damaged here and will be fetched again");
                shared.quarantined().insert(*address);
                let effect = Effect::Quarantine { place };
                ops.push(context.removed_op(address, &place, FLAG_REMOVED_AS_DAMAGED, effect));
            }
        }
        if ops.is_empty() {
            return;
        }
        if let Err(error) = context.commit(ops).await {
            tracing::warn!(?address, %error, "a quarantine was not recorded; it lasts until the next start");
        }
    }

    /// Removes a chunk that nobody refers to. When it returns, its space is given back, or will be at the sealing or once
    /// nobody reads it any more.
    pub async fn remove(
        &self,
        address: &Address,
        still_referenced: impl AsyncFnOnce(&Address) -> bool,
    ) -> Result<Removal, StoreError> {
        self.remove_if(address, still_referenced, |_| true).await
    }

    /// Removes a copy that is only cached; one that is held stays.
    pub async fn evict(&self, address: &Address) -> Result<Removal, StoreError> {
        self.remove_if(address, async |_| false, |place| place.flags & FLAG_CACHED != 0).await
    }

    async fn remove_if(
        &self,
        address: &Address,
        still_referenced: impl AsyncFnOnce(&Address) -> bool,
        may_go: impl Fn(&Place) -> bool,
    ) -> Result<Removal, StoreError> {
        let context = self.context();
        let lock = context.shared.locks.lock(address).await;
        let counting = context.shared.locks.count(address);
        if counting.is_pinned() {
            return Ok(Removal::Kept);
        }
        let mut places = Vec::new();
        for place in context.shared.index.candidates(address) {
            // A damaged header is nobody else's as far as 58 bits of keyed hash tell.
            if context.confirm(address, &place).await?.0 != Confirmed::Other {
                places.push(place);
            }
        }
        if places.is_empty() {
            return Ok(Removal::Absent);
        }
        if !places.iter().all(may_go) {
            return Ok(Removal::Kept);
        }
        if counting.is_pinned() || still_referenced(address).await || counting.is_pinned() {
            return Ok(Removal::Kept);
        }
        drop(counting);
        // In a task of its own: a caller that gives up must not leave a removed chunk's space behind.
        let (sender, receiver) = oneshot::channel();
        let task = remove_places(context.clone(), *address, places, lock, sender);
        (context.spawn)(Box::pin(task));
        receiver.await.unwrap_or(Err(StoreError::Closed)).map(|()| Removal::Removed)
    }
}

async fn remove_places<D: Disk>(
    context: Rc<Context<D>>,
    address: Address,
    places: Vec<Place>,
    lock: AddressLock,
    answer: oneshot::Sender<Result<(), StoreError>>,
) {
    let ops =
        places.iter().map(|place| context.removed_op(&address, place, 0, Effect::Drop { place: *place })).collect();
    let result = context.commit(ops).await;
    drop(lock);
    if let Err(error) = result {
        let _ = answer.send(Err(error));
        return;
    }
    // New readers do not find it any more. Those that do read it have as long as they like: a peer decides how fast it
    // takes what is sent to it.
    let (read, unread): (Vec<_>, Vec<_>) =
        places.into_iter().partition(|place| context.shared.locks.is_guarded(place.segment, place.offset));
    for place in unread {
        context.release(&place).await;
    }
    // Counted before the answer: who was told that a chunk is gone can wait for its space.
    let release = (!read.is_empty()).then(|| context.shared.releases.begin());
    let _ = answer.send(Ok(()));
    for place in read {
        context.release(&place).await;
    }
    drop(release);
}

fn check_length(buffer: &Buffer, payload_len: usize) -> Result<(), StoreError> {
    let room = buffer.len().saturating_sub(RECORD_HEAD_BYTES);
    // A bulk chunk is written in whole blocks, from this very buffer.
    let room = if payload_len >= BULK_PAYLOAD_BYTES_MIN { room / BLOCK_BYTES * BLOCK_BYTES } else { room };
    let max_bytes = CHUNK_BYTES_MAX.min(room);
    if (CHUNK_BYTES_MIN..=max_bytes).contains(&payload_len) {
        return Ok(());
    }
    Err(StoreError::Length { what: "chunk", len_bytes: payload_len, min_bytes: CHUNK_BYTES_MIN, max_bytes })
}

/// The first block of a bulk write: batch record, a padding record over the middle, the chunk's header at the end.
fn fill_head(
    buffer: &mut Buffer,
    slot: &Slot,
    mut header: RecordHeader,
    len: usize,
) -> crate::format::segment::FooterEntry {
    let bytes = buffer.as_mut_slice();
    let (head, payload) = bytes.split_at_mut(RECORD_HEAD_BYTES);
    let (payload, _) = payload.split_at(header.payload_bytes.get() as usize);
    head.fill(0);
    let batch = Batch {
        sequence: slot.sequence.into(),
        bytes: (len as u64).into(),
        watermark: slot.watermark.into(),
        records: 1.into(),
        reserved: 0.into(),
    };
    let mut batch = RecordHeader::batch(&batch);
    batch.seal(&slot.nonce, slot.offset, &[]);
    let (middle, last) = head.split_at_mut(HEADER_AT);
    let (first, middle) = middle.split_at_mut(RECORD_HEADER_BYTES);
    first.copy_from_slice(batch.as_bytes());
    let (padding_head, zeros) = middle.split_at_mut(RECORD_HEADER_BYTES);
    let mut padding = RecordHeader::new(RecordKind::Padding, 0, zeros.len() as u32, Address::ZERO, VersionId::ZERO);
    padding.seal(&slot.nonce, slot.offset + RECORD_HEADER_BYTES as u64, zeros);
    padding_head.copy_from_slice(padding.as_bytes());
    let offset = slot.offset + HEADER_AT as u64;
    header.seal(&slot.nonce, offset, payload);
    last.copy_from_slice(header.as_bytes());
    entry_of(&header, offset)
}
