//! Opening a store: which files are whole, what the index must say, what the catalog has not seen yet.
//!
//! Nothing needs a person or an option, nothing valid is dropped. Per file:
//!
//! | row | header block | footer | rest | is | and is |
//! | --- | --- | --- | --- | --- | --- |
//! | 1 | of a newer format | - | - | another program's | an error, before anything is changed |
//! | 2 | sound | sound | - | sealed | read by its footer, or by the checkpoint |
//! | 3 | sound | sound, its entries are not | - | a media fault | walked ([`super::scan`]), sealed again behind its end |
//! | 4 | sound | none | records | open when the process ended | walked, then sealed |
//! | 5 | sound | none | no record | never used | unlinked |
//! | 5a | sound | none, or its entries are not | blocks that cannot be read | a media fault | walked; neither sealed over nor unlinked, and reported |
//! | 5b | sound, of small records | none, or its entries are not | lost blocks | a media fault | as row 5a, also when no record is left |
//! | 6 | unsound | - | zeros | made, but never durable | unlinked: records come only after its header was synced |
//! | 7 | unsound | - | not zeros | a media fault | left alone and reported: nothing in it can be checked without its nonce |
//!
//! Open segments are sealed and not continued: which blocks behind the last record were touched by a torn write cannot be
//! known, no block is written twice, and a sealed segment needs no walk at the next start.
//!
//! Row 5a holds whatever else is there: what cannot be read now may hold records, and may be read the next time. Its
//! records are used, it takes no more, and the catalog's position in it stays before the first such block, unless it had
//! passed it already: then that was told, and to go back would make it untold at the next start. A file that
//! cannot be sealed for lack of space is used in the same way until the next start.
//!
//! Row 5b: a footer would list what is left, and hide from every later start that something was there. The catalog's
//! position stays before the first lost block that it was never told of, so that this block is known for untold every
//! time. In a bulk segment each hole that was punched looks like lost blocks, and what was in them is missed by who reads
//! or verifies: it is sealed.
//!
//! The position of a file that stays open to the next walk is a watermark for it. So where writes were torn, it does not
//! pass what is known to have been durable: the same places would count as lost the next time.
//!
//! Order between segments does not matter: chunks are inserted first, `removed` records are applied after, each to exactly
//! the place that it names. Segment ids are never used twice, not even those that only a `removed` record still names.
//! A crash between a `removed` record and its punch leaves space behind: the records that are newer than the
//! checkpoint are punched again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::FromBytes;

use super::checkpoint::{self, Checkpoint};
use super::context::FLAG_REMOVED_AS_DAMAGED;
use super::disk::{Disk, DiskFile, read_exact};
use super::index::{Index, Place};
use super::scan::{Scan, Window, checked_payload, scan};
use super::segment::{self, BLOCK, Footer, Header, name_of, parse_name};
use super::shared::{Note, SegmentEntry, Shared, State};
use super::{StoreError, StoreOptions};
use crate::format::record::{RECORD_HEADER_BYTES, RecordHeader, RecordKind, Removed};
use crate::format::segment::{FooterEntry, SegmentClass};
use crate::format::{Address, VersionId};
use crate::limits::{BLOCK_BYTES, MIB};

/// What the log says, told to the catalog when a store is opened: idempotent, in any order between segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayed<'a> {
    Chunk {
        address: Address,
        version: VersionId,
        flags: u8,
    },
    Reference {
        address: Address,
        version: VersionId,
        capsule: &'a [u8],
    },
    Name {
        payload: &'a [u8],
    },
    Death {
        payload: &'a [u8],
    },
    Document {
        payload: &'a [u8],
    },
    /// No copy of this chunk is here any more. Comes after everything else but positions.
    Removed {
        address: Address,
    },
    /// Everything before this offset of this segment has been told.
    Position {
        segment: u64,
        offset: u64,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    pub segments: u64,
    pub chunks: u64,
    /// Segments that were open when the last process ended.
    pub recovered_segments: u64,
    /// Places that were being written when the last process ended and are not whole.
    pub torn: u64,
    /// Blocks that were durable and are not readable as records any more.
    pub lost_blocks: u64,
    /// Those among them of which the catalog has not been told before either.
    pub lost_untold: u64,
    /// Both again, of segments of small records alone: those hold references, and no hole in them was punched.
    pub lost_small: u64,
    pub lost_small_untold: u64,
    /// Segments of small records with lost blocks, and files with a damaged header.
    pub damaged_segments: Vec<DamagedSegment>,
    /// Names, deaths, documents and references that were durable and are damaged.
    pub damaged_records: u64,
    /// Where those are of which the catalog has never been told: {segment, offset}.
    pub untold: Vec<(u64, u64)>,
    /// Chunks whose bytes are wrong: to be fetched again.
    pub quarantined: Vec<Address>,
    /// Files whose header is damaged, left as they are.
    pub unreadable: Vec<String>,
    /// The last process closed the store, and its checkpoint says all.
    pub clean: bool,
}

/// A segment that may have held records which cannot be read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedSegment {
    pub segment: u64,
    /// The catalog may never have been told of some of them.
    pub is_untold: bool,
}

/// Opens the store in `disk`. `catalog_positions` says up to where the catalog knows each segment; the rest is told to
/// `apply`.
pub async fn open<D: Disk>(
    disk: &D,
    options: StoreOptions,
    catalog_positions: &HashMap<u64, u64>,
    apply: &mut dyn FnMut(Replayed<'_>),
) -> Result<(Arc<Shared>, OpenReport), StoreError> {
    let mut opening = Opening {
        disk,
        positions: catalog_positions,
        apply,
        report: OpenReport::default(),
        segments: Vec::new(),
        removals: Vec::new(),
        positions_told: Vec::new(),
        notes: HashMap::new(),
        id_max: catalog_positions.keys().copied().max().unwrap_or(0),
    };
    let (found, unused) = opening.classify().await?;
    let checkpoint = opening.load_checkpoint(&found).await?;
    for id in unused {
        opening.unlink(id).await?;
    }
    opening.run(found, checkpoint, options).await
}

/// A file with a sound header.
struct FoundFile<F> {
    id: u64,
    file: F,
    header: Header,
    len: u64,
    footer: Option<Footer>,
}

/// What a file holds, and how it is used from now on.
struct Records {
    /// By offset.
    entries: Vec<FooterEntry>,
    end: u64,
    /// Up to where the catalog need not hear of it again.
    position: u64,
    state: State,
}

impl Records {
    fn sealed(entries: Vec<FooterEntry>, end: u64) -> Self {
        Self { entries, end, position: end, state: State::Sealed }
    }
}

struct Removal {
    address: Address,
    segment: u64,
    offset: u64,
    damaged: bool,
}

struct Opening<'a, D: Disk> {
    disk: &'a D,
    positions: &'a HashMap<u64, u64>,
    apply: &'a mut dyn FnMut(Replayed<'_>),
    report: OpenReport,
    segments: Vec<Arc<SegmentEntry>>,
    /// From segments that the checkpoint does not cover.
    removals: Vec<Removal>,
    positions_told: Vec<(u64, u64)>,
    /// From the checkpoint, about segments that it does not cover.
    notes: HashMap<u64, Vec<Note>>,
    id_max: u64,
}

impl<D: Disk> Opening<'_, D> {
    /// Rows 1, 6 and 7; the others go on. All headers are looked at before anything is changed. Row 6 comes second.
    async fn classify(&mut self) -> Result<(Vec<FoundFile<D::File>>, Vec<u64>), StoreError> {
        let names = self.disk.list().await.map_err(|error| StoreError::io("listing", "the data directory", error))?;
        let mut ids: Vec<u64> = names.iter().filter_map(|name| parse_name(name)).collect();
        ids.sort_unstable();
        let mut found = Vec::new();
        let mut unused = Vec::new();
        for id in ids {
            self.id_max = self.id_max.max(id);
            match segment::read_header(self.disk, id).await? {
                Some((file, header)) => found.push(self.with_footer(id, file, header).await?),
                None if self.is_unused(id).await? => unused.push(id),
                None => {
                    let name = name_of(id);
                    tracing::error!(segment = %name, "the header of a segment is damaged; the file is left alone");
                    self.report.unreadable.push(name);
                    let is_untold = !self.was_told(id).await;
                    self.report.damaged_segments.push(DamagedSegment { segment: id, is_untold });
                }
            }
        }
        Ok((found, unused))
    }

    async fn with_footer(&self, id: u64, file: D::File, header: Header) -> Result<FoundFile<D::File>, StoreError> {
        let failed = |error| StoreError::io("reading", &name_of(id), error);
        let len = file.len().await.map_err(failed)?;
        let footer = segment::read_footer(&file, id, &header.nonce).await.map_err(failed)?;
        Ok(FoundFile { id, file, header, len, footer })
    }

    /// Whether nothing but zeros lies behind the header block.
    async fn is_unused(&self, id: u64) -> Result<bool, StoreError> {
        let name = name_of(id);
        let failed = |error| StoreError::io("reading", &name, error);
        let file = self.disk.open(&name, false).await.map_err(failed)?;
        let len = file.len().await.map_err(failed)?;
        Ok(is_zero(&file, BLOCK, len).await)
    }

    /// Whether the catalog knows all that a file without a header held: nothing but zeros lies between its position and
    /// the footer, or the end where there is none.
    async fn was_told(&self, id: u64) -> bool {
        let told = self.positions.get(&id).copied().unwrap_or(0);
        let Ok(file) = self.disk.open(&name_of(id), false).await else { return false };
        let Ok(len) = file.len().await else { return false };
        let end = segment::footer_start(&file, id, len).await.unwrap_or(len);
        (BLOCK..=end).contains(&told) && is_zero(&file, told, end).await
    }

    async fn unlink(&self, id: u64) -> Result<(), StoreError> {
        let name = name_of(id);
        self.disk.remove(&name).await.map_err(|error| StoreError::io("unlinking", &name, error))
    }

    async fn load_checkpoint(&mut self, found: &[FoundFile<D::File>]) -> Result<Option<Checkpoint>, StoreError> {
        let sealed: HashSet<u64> = found.iter().filter(|file| file.footer.is_some()).map(|file| file.id).collect();
        let checkpoint = checkpoint::load(self.disk, |id| sealed.contains(&id)).await?;
        if let Some(checkpoint) = &checkpoint {
            self.id_max = self.id_max.max(checkpoint.next_segment.saturating_sub(1));
        }
        Ok(checkpoint)
    }

    async fn run(
        mut self,
        found: Vec<FoundFile<D::File>>,
        checkpoint: Option<Checkpoint>,
        options: StoreOptions,
    ) -> Result<(Arc<Shared>, OpenReport), StoreError> {
        let (index, covered, mut clean) = match checkpoint {
            Some(checkpoint) => {
                self.report.quarantined.extend(checkpoint.quarantined);
                self.notes = checkpoint.notes;
                (checkpoint.index, checkpoint.covered, checkpoint.clean)
            }
            None => (Index::new(options.index_key()), HashMap::new(), false),
        };
        for file in &found {
            let dead_bytes = covered.get(&file.id).copied().filter(|_| file.footer.is_some());
            clean &= dead_bytes.is_some();
            self.segment(file, dead_bytes, &index).await?;
        }
        self.report.clean = clean;
        self.finish(options, index).await
    }

    /// One file: its entries into the index unless the checkpoint has them, and what is new to the catalog told.
    async fn segment(
        &mut self,
        found: &FoundFile<D::File>,
        covered: Option<u64>,
        index: &Index,
    ) -> Result<(), StoreError> {
        let told = self.positions.get(&found.id).copied().unwrap_or(0);
        let records = match found.footer {
            // Row 2, and nobody wants its entries.
            Some(footer) if covered.is_some() && told >= footer.records_end => {
                Records::sealed(Vec::new(), footer.records_end)
            }
            Some(footer) => match self.read_entries(found, &footer).await? {
                Some(entries) => Records::sealed(entries, footer.records_end),
                None => self.walk(found, footer.records_end).await?,
            },
            None => self.walk(found, found.len).await?,
        };
        let Records { entries, end, position, state } = records;
        if entries.is_empty() && found.footer.is_none() && state == State::Sealed {
            return self.unlink(found.id).await; // row 5
        }
        let entry = SegmentEntry::new(found.id, found.header.class, found.header.nonce, state, end);
        entry.dead_bytes.store(covered.unwrap_or(0), Ordering::Relaxed);
        entry.covered.store(covered.is_some(), Ordering::Relaxed);
        if covered.is_none() {
            let chunks = entries.iter().filter(|entry| entry.kind == RecordKind::Chunk as u8);
            chunks.for_each(|entry| index.insert(&entry.address, &place_of(found.id, entry)));
            self.apply_notes(found.id, &entries);
        }
        let untold_from = self.tell(found, &entries, told, covered.is_some()).await?;
        self.positions_told.push((found.id, untold_from.map_or(position, |offset| offset.min(position))));
        self.segments.push(entry);
        Ok(())
    }

    /// What the checkpoint says about places of a segment that it does not cover.
    fn apply_notes(&mut self, segment: u64, entries: &[FooterEntry]) {
        for Note { offset, damaged } in self.notes.remove(&segment).unwrap_or_default() {
            if let Ok(found) = entries.binary_search_by_key(&offset, |entry| entry.offset.get())
                && let Some(entry) = entries.get(found)
            {
                self.removals.push(Removal { address: entry.address, segment, offset, damaged });
            }
        }
    }

    async fn read_entries(
        &self,
        found: &FoundFile<D::File>,
        footer: &Footer,
    ) -> Result<Option<Vec<FooterEntry>>, StoreError> {
        let entries = segment::read_entries(&found.file, footer, &found.header.nonce).await;
        let entries = entries.map_err(|error| StoreError::io("reading", &name_of(found.id), error))?;
        Ok(entries.map(|mut entries| {
            entries.sort_unstable_by_key(|entry| entry.offset.get());
            entries
        }))
    }

    /// Rows 3, 4, 5, 5a and 5b: walks the records, then seals the file behind its end.
    async fn walk(&mut self, found: &FoundFile<D::File>, end: u64) -> Result<Records, StoreError> {
        let name = name_of(found.id);
        let failed = |error| StoreError::io("recovering", &name, error);
        let told = self.positions.get(&found.id).copied().unwrap_or(0);
        let (class, nonce) = (found.header.class, found.header.nonce);
        let scan = scan(&found.file, nonce, class, end, told).await.map_err(failed)?;
        let Scan { entries, damaged, records_end, torn, lost, unreadable, watermark } = scan;
        self.report.torn += torn;
        let untold = || lost.iter().copied().filter(|block| *block >= told);
        self.report.lost_blocks += lost.len() as u64;
        self.report.lost_untold += untold().count() as u64;
        let lost_small = class == SegmentClass::Small && !lost.is_empty();
        if lost_small {
            let untold = untold().count() as u64;
            self.report.lost_small += lost.len() as u64;
            self.report.lost_small_untold += untold;
            self.report.damaged_segments.push(DamagedSegment { segment: found.id, is_untold: untold > 0 });
        }
        let mut records = Records::sealed(entries, records_end);
        if !unreadable.is_empty() || lost_small {
            let (lost, unreadable_blocks) = (lost.len(), unreadable.len());
            tracing::error!(segment = %name, lost, unreadable_blocks, "a segment is damaged; it is left as it is");
            let unread_from = unreadable.range(told..).next().copied();
            let untold_from = untold().min().filter(|_| lost_small);
            let first = unread_from.into_iter().chain(untold_from).min();
            records.position = first.map_or(records.position, |block| block.min(records.position));
            records.state = State::Closed;
        } else if records.entries.is_empty() {
            return Ok(records);
        } else {
            records.state = self.seal(found, &records).await?;
        }
        if records.state == State::Closed && torn > 0 {
            records.position = records.position.min(watermark);
        }
        // Damaged records of other kinds are counted when their payload is wanted.
        for entry in damaged.iter().filter(|entry| entry.kind == RecordKind::Chunk as u8) {
            let (segment, offset) = (found.id, entry.offset.get());
            self.removals.push(Removal { address: entry.address, segment, offset, damaged: true });
        }
        Ok(records)
    }

    /// Writes the footer of a walked file behind its end. For lack of space that has to wait for another start.
    async fn seal(&mut self, found: &FoundFile<D::File>, records: &Records) -> Result<State, StoreError> {
        let name = name_of(found.id);
        let file = self.disk.open(&name, true).await.map_err(|error| StoreError::io("opening", &name, error))?;
        let len = segment::round_up(found.len, BLOCK);
        let nonce = &found.header.nonce;
        match segment::write_footer(&file, found.id, nonce, &records.entries, records.end, len, len).await {
            Ok(_) => {
                self.report.recovered_segments += 1;
                Ok(State::Sealed)
            }
            Err(error) if super::is_of_space(&error) => {
                tracing::warn!(segment = %name, %error, "a segment is not sealed yet: the disk is full");
                Ok(State::Closed)
            }
            Err(error) => Err(StoreError::io("recovering", &name, error)),
        }
    }

    /// Removals go to the list unless the checkpoint knows them; what the catalog has not seen goes to it. Where the first
    /// record lies that cannot be told: the catalog's position stays before it, so that it is known for untold every time.
    async fn tell(
        &mut self,
        found: &FoundFile<D::File>,
        entries: &[FooterEntry],
        told: u64,
        covered: bool,
    ) -> Result<Option<u64>, StoreError> {
        let mut untold_from = None;
        let mut window = Window::new(found.file.clone(), found.len, MIB);
        let failed = |error| StoreError::io("reading", &name_of(found.id), error);
        for entry in entries {
            let new = entry.offset.get() >= told;
            let kind = RecordKind::parse(entry.kind);
            let (address, version) = (entry.address, entry.version);
            match kind {
                Some(RecordKind::Chunk) if new => {
                    (self.apply)(Replayed::Chunk { address, version, flags: entry.flags });
                }
                Some(RecordKind::Removed) if new || !covered => {
                    let len = RECORD_HEADER_BYTES + entry.payload_bytes.get() as usize;
                    let bytes = window.get(entry.offset.get(), len).await.map_err(failed)?;
                    self.note_removal(checked_payload(bytes, &found.header.nonce, entry), entry);
                }
                Some(RecordKind::Reference) if new && entry.payload_bytes.get() == 0 => {
                    (self.apply)(Replayed::Reference { address, version, capsule: &[] });
                }
                Some(RecordKind::Reference | RecordKind::Name | RecordKind::Death | RecordKind::Document) if new => {
                    let len = RECORD_HEADER_BYTES + entry.payload_bytes.get() as usize;
                    let bytes = window.get(entry.offset.get(), len).await.map_err(failed)?;
                    match checked_payload(bytes, &found.header.nonce, entry) {
                        Some(capsule) if kind == Some(RecordKind::Reference) => {
                            (self.apply)(Replayed::Reference { address, version, capsule });
                        }
                        Some(payload) => (self.apply)(replay_payload(kind, payload)),
                        None => {
                            if kind == Some(RecordKind::Reference) {
                                // Its capsule is lost, that it refers is not.
                                (self.apply)(Replayed::Reference { address, version, capsule: &[] });
                            }
                            self.report.damaged_records += 1;
                            self.report.untold.push((found.id, entry.offset.get()));
                            untold_from = untold_from.or(Some(entry.offset.get()));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(untold_from)
    }

    fn note_removal(&mut self, payload: Option<&[u8]>, entry: &FooterEntry) {
        let Some(removed) = payload.and_then(|payload| Removed::read_from_bytes(payload).ok()) else {
            self.report.damaged_records += 1;
            return;
        };
        self.id_max = self.id_max.max(removed.segment.get());
        self.removals.push(Removal {
            address: entry.address,
            segment: removed.segment.get(),
            offset: removed.offset.get(),
            damaged: entry.flags & FLAG_REMOVED_AS_DAMAGED != 0,
        });
    }

    async fn finish(mut self, options: StoreOptions, index: Index) -> Result<(Arc<Shared>, OpenReport), StoreError> {
        let shared = Shared::new(options, index, self.id_max + 1);
        for entry in std::mem::take(&mut self.segments) {
            shared.add_segment(entry);
        }
        self.count_live(&shared);
        let removals = std::mem::take(&mut self.removals);
        let mut quarantined: HashSet<Address> = std::mem::take(&mut self.report.quarantined).into_iter().collect();
        for removal in &removals {
            if !removal.damaged {
                self.bury(&shared, removal).await?;
            }
        }
        for removal in removals.iter().filter(|removal| removal.damaged) {
            if shared.index.quarantine(&removal.address, removal.segment, removal.offset) {
                quarantined.insert(removal.address);
            }
        }
        // A sound copy elsewhere, or none at all, ends a quarantine.
        quarantined.retain(|address| {
            let places = shared.index.candidates(address);
            !places.is_empty() && places.iter().all(Place::is_quarantined)
        });
        self.unlink_dead(&shared).await?;
        self.tell_removed(&shared, &removals);
        self.disk.sync_directory().await.map_err(|error| StoreError::io("syncing", "the data directory", error))?;
        self.report.quarantined = quarantined.iter().copied().collect();
        *shared.quarantined() = quarantined;
        self.report.segments = shared.segments().len() as u64;
        self.report.chunks = shared.index.chunks();
        Ok((Arc::new(shared), self.report))
    }

    fn count_live(&self, shared: &Shared) {
        let segments: HashMap<u64, _> = shared.segments().into_iter().map(|entry| (entry.id, entry)).collect();
        shared.index.for_each(|place| {
            if let Some(entry) = segments.get(&place.segment) {
                entry.count_live(place);
            }
        });
    }

    /// Applies one removal, and punches what it left, if that did not happen before the crash.
    async fn bury(&self, shared: &Shared, removal: &Removal) -> Result<(), StoreError> {
        let Some(entry) = shared.segment(removal.segment) else { return Ok(()) };
        let dropped = shared.forget(&removal.address, removal.segment, removal.offset);
        if let Some(place) = &dropped {
            shared.note(place, false); // no checkpoint covers a segment that stays unsealed
        }
        if entry.class == SegmentClass::Small {
            return Ok(());
        }
        let name = name_of(entry.id);
        let failed = |error| StoreError::io("giving back space in", &name, error);
        let place = match dropped {
            Some(place) => Some(place),
            None => self.unpunched(&entry, removal).await,
        };
        if let Some(place) = place {
            let (start, len) = entry.extent(&place);
            if !entry.is_sealed() {
                entry.phase().dead.push((start, len)); // holes would look like lost writes to the next walk
                return Ok(());
            }
            let file = self.disk.open(&name, true).await.map_err(failed)?;
            file.punch(start, len).await.map_err(failed)?;
        }
        Ok(())
    }

    /// The place of a dead chunk whose header still stands.
    async fn unpunched(&self, entry: &SegmentEntry, removal: &Removal) -> Option<Place> {
        let file = self.disk.open(&name_of(entry.id), false).await.ok()?;
        let bytes = read_exact(&file, removal.offset, RECORD_HEADER_BYTES).await.ok()?;
        let header = RecordHeader::read_from_bytes(bytes.as_slice()).ok()?;
        let stands = header.is_valid_at(&entry.nonce, removal.offset) && header.kind == RecordKind::Chunk as u8;
        stands.then(|| Place {
            segment: removal.segment,
            offset: removal.offset,
            len: header.payload_bytes.get(),
            flags: header.flags,
        })
    }

    async fn unlink_dead(&self, shared: &Shared) -> Result<(), StoreError> {
        for entry in shared.segments() {
            if entry.class == SegmentClass::Bulk && entry.is_sealed() && entry.live_chunks.load(Ordering::Relaxed) == 0
            {
                shared.drop_segment(entry.id);
                self.unlink(entry.id).await?;
            }
        }
        Ok(())
    }

    fn tell_removed(&mut self, shared: &Shared, removals: &[Removal]) {
        for removal in removals.iter().filter(|removal| !removal.damaged) {
            if shared.index.candidates(&removal.address).is_empty() {
                (self.apply)(Replayed::Removed { address: removal.address });
            }
        }
        for (segment, offset) in &self.positions_told {
            (self.apply)(Replayed::Position { segment: *segment, offset: *offset });
        }
    }
}

/// Whether nothing but zeros lies there; what cannot be read is something.
async fn is_zero<F: DiskFile>(file: &F, mut at: u64, end: u64) -> bool {
    while at < end {
        let piece = (end - at).min(MIB as u64) as usize;
        let Ok(bytes) = read_exact(file, at, piece).await else { return false };
        if bytes.as_slice().iter().any(|byte| *byte != 0) {
            return false;
        }
        at += piece as u64;
    }
    true
}

fn place_of(segment: u64, entry: &FooterEntry) -> Place {
    Place { segment, offset: entry.offset.get(), len: entry.payload_bytes.get(), flags: entry.flags }
}

fn replay_payload<'a>(kind: Option<RecordKind>, payload: &'a [u8]) -> Replayed<'a> {
    match kind {
        Some(RecordKind::Name) => Replayed::Name { payload },
        Some(RecordKind::Death) => Replayed::Death { payload },
        _ => Replayed::Document { payload },
    }
}

const _: () = assert!(BLOCK == BLOCK_BYTES as u64);
