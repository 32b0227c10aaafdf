//! Writing to the open segment of one kind, group commit, rolling over, sealing.
//!
//! One appender fills one segment at a time: each shard has one for bulk chunks, the committer one for small records.
//!
//! ```text
//! reserve (in order) -> write (many in flight) -> prefix complete -> fdatasync (one in flight) -> finish (in order)
//! ```
//!
//! - The **watermark** is the end of the contiguous prefix of writes that had completed when the last successful
//!   fdatasync was submitted. Everything before it is durable; nobody is told of success but by it.
//! - Finishing a record: its effect on the index, then the message to the catalog, then the acknowledgement, then its
//!   address lock. In log order, also when writes complete out of order.
//! - A segment is made in a task of its own, and so are the write and all that follows: whoever waits may give up, the
//!   log goes on.
//! - The first failed write or fsync latches the segment: whatever was not durable fails, and the next record opens a new
//!   segment. What fails here may be whole on the disk all the same and appear after a crash: chunks among it are
//!   recorded as removed, under their address lock, so that no later removal is undone by it; of all else a repetition
//!   is harmless.
//!
//! Measured (as in [`super::committer`]): 16 writers of 1 MiB chunks, one thread, development build: 1.95 GB/s, about what
//! the disk takes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, oneshot};

use super::disk::{Disk, DiskFile};
use super::finish::{Durable, abandon, finish};
use super::segment::{self, BLOCK, footer_bytes};
use super::shared::{SegmentEntry, State};
use super::{Context, StoreError};
use crate::format::segment::{FooterEntry, SegmentClass};
use crate::io::buffers::SharedBuffer;
use crate::limits::FREE_BYTES_RESERVE;

/// Told once: durable, or why not.
pub(super) type Done = Box<dyn FnOnce(Result<(), StoreError>)>;

/// A reserved place in the log.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub nonce: [u8; 16],
    pub offset: u64,
    pub sequence: u64,
    pub watermark: u64,
}

struct Pending {
    offset: u64,
    end: u64,
    written: bool,
    records: Vec<Durable>,
    done: Done,
}

struct OpenState {
    /// End of what is reserved.
    end: u64,
    allocated: u64,
    sequence: u64,
    records: usize,
    /// Reserved and not in the contiguous prefix yet, in order.
    pending: VecDeque<Pending>,
    /// In the prefix, waiting for a sync to start.
    written: Vec<Pending>,
    writes_in_flight: usize,
    syncing: bool,
    watermark: u64,
    failed: Option<StoreError>,
    entries: Vec<FooterEntry>,
}

struct OpenSegment<D: Disk> {
    context: Rc<Context<D>>,
    entry: Arc<SegmentEntry>,
    file: D::File,
    state: RefCell<OpenState>,
    /// Something ended: a write or a sync.
    ended: Notify,
}

pub(super) struct Appender<D: Disk> {
    context: Rc<Context<D>>,
    class: SegmentClass,
    open: tokio::sync::Mutex<Option<Rc<OpenSegment<D>>>>,
    sealing: Cell<usize>,
    sealed: Notify,
    closed: Cell<bool>,
}

impl<D: Disk> Appender<D> {
    pub fn new(context: Rc<Context<D>>, class: SegmentClass) -> Rc<Self> {
        Rc::new(Self {
            context,
            class,
            open: tokio::sync::Mutex::new(None),
            sealing: Cell::new(0),
            sealed: Notify::new(),
            closed: Cell::new(false),
        })
    }

    /// Reserves `len` bytes, lets `build` fill them for their place, and starts the write. An error means that nothing
    /// was reserved, and `done` is not called.
    pub async fn write(
        self: &Rc<Self>,
        len: usize,
        records: usize,
        build: impl FnOnce(&Slot) -> (SharedBuffer, Vec<Durable>),
        done: Done,
    ) -> Result<(), StoreError> {
        let (segment, slot) = self.reserve(len as u64, records).await?;
        // From here to the push nothing waits: the queue is in the order of the places.
        let (buffer, records) = build(&slot);
        let end = slot.offset + len as u64;
        let pending = Pending { offset: slot.offset, end, written: false, records, done };
        {
            let mut state = segment.state.borrow_mut();
            state.pending.push_back(pending);
            state.writes_in_flight += 1;
        }
        (self.context.spawn)(Box::pin(async move {
            let result = segment.file.write_at(buffer.clone(), 0..len, slot.offset).await;
            // The buffer may go back to its pool before the sync.
            drop(buffer);
            segment.wrote(slot.offset, result);
        }));
        Ok(())
    }

    async fn reserve(self: &Rc<Self>, len: u64, records: usize) -> Result<(Rc<OpenSegment<D>>, Slot), StoreError> {
        loop {
            let mut open = self.open.lock().await;
            if self.closed.get() {
                return Err(StoreError::Closed);
            }
            match open.as_ref() {
                Some(segment) if segment.has_room(len, records) => {
                    let segment = segment.clone();
                    if segment.room_allocated() < len {
                        self.grow(&segment, len).await?;
                        continue;
                    }
                    // Chunks of the small class were asked about before they came to the committer.
                    let are_chunks = self.class == SegmentClass::Bulk;
                    let slot = self.context.shared.take_room(len, are_chunks, || segment.reserve(len, records))?;
                    return Ok((segment, slot));
                }
                Some(_) => self.put_away(open.take()),
                None => {
                    drop(open);
                    self.open_one(len).await?;
                }
            }
        }
    }

    /// Makes a segment and opens it, unless one is open. In a task of its own: a file that its maker gave up would keep
    /// its space, known to nobody, until the next start.
    async fn open_one(self: &Rc<Self>, needed: u64) -> Result<(), StoreError> {
        let (answer, opened) = oneshot::channel();
        let appender = self.clone();
        (self.context.spawn)(Box::pin(async move {
            let _ = answer.send(appender.fill_open(needed).await);
        }));
        opened.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn fill_open(&self, needed: u64) -> Result<(), StoreError> {
        let mut open = self.open.lock().await;
        if open.is_none() && !self.closed.get() {
            *open = Some(self.create(needed).await?);
        }
        Ok(())
    }

    /// How much to allocate at once so that `needed` bytes fit.
    fn step(&self, needed: u64) -> Result<u64, StoreError> {
        let free = self
            .context
            .disk
            .free_bytes()
            .map_err(|error| StoreError::io("asking for the free space of", "", error))?;
        let room_left = self.context.shared.room_left().max(crate::limits::MIB as u64);
        let mut step = self.context.shared.options.step_bytes.min(free / 16).min(room_left) / BLOCK * BLOCK;
        if self.class == SegmentClass::Bulk {
            let spendable = free.saturating_sub(FREE_BYTES_RESERVE);
            if spendable < needed {
                return Err(StoreError::no_space(free));
            }
            step = step.min(spendable / BLOCK * BLOCK);
        }
        Ok(step.max(needed))
    }

    async fn grow(&self, segment: &OpenSegment<D>, needed: u64) -> Result<(), StoreError> {
        let (allocated, end) = {
            let state = segment.state.borrow();
            (state.allocated, state.end)
        };
        let step = self.step(needed - (allocated - end))?;
        self.allocate(&segment.file, segment.entry.id, allocated, step).await?;
        segment.state.borrow_mut().allocated = allocated + step;
        Ok(())
    }

    async fn allocate(&self, file: &D::File, id: u64, offset: u64, len: u64) -> Result<(), StoreError> {
        file.allocate(offset, len).await.map_err(|error| {
            if super::is_of_space(&error) {
                return StoreError::no_space(self.context.disk.free_bytes().unwrap_or(0));
            }
            StoreError::io("allocating space in", &segment::name_of(id), error)
        })
    }

    /// A new segment: it takes records only after its header, its name and its length are durable.
    async fn create(&self, needed: u64) -> Result<Rc<OpenSegment<D>>, StoreError> {
        let context = &self.context;
        let id = context.shared.take_segment_id();
        let name = segment::name_of(id);
        let step = self.step(needed + BLOCK)?;
        let nonce = context.shared.options.nonce(id);
        let file = context.disk.create(&name).await.map_err(|error| StoreError::io("creating", &name, error))?;
        let prepared = async {
            self.allocate(&file, id, 0, step).await?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let incarnation = context.shared.options.incarnation;
            let block = segment::header_block(id, self.class, nonce, incarnation, now.as_millis() as u64);
            let failed = |error| StoreError::io("preparing", &name, error);
            file.write_at(block.freeze(), 0..BLOCK as usize, 0).await.map_err(failed)?;
            file.sync_all().await.map_err(failed)?;
            context.disk.sync_directory().await.map_err(|error| StoreError::io("syncing the folder of", &name, error))
        };
        if let Err(error) = prepared.await {
            // Without a durable header it holds no record: recovery unlinks it if this does not.
            let _ = context.disk.remove(&name).await;
            return Err(error);
        }
        let entry = SegmentEntry::new(id, self.class, nonce, State::Open, BLOCK);
        context.shared.take_room(BLOCK, false, || context.shared.add_segment(entry.clone()))?;
        Ok(Rc::new(OpenSegment {
            context: context.clone(),
            entry,
            file,
            state: RefCell::new(OpenState {
                end: BLOCK,
                allocated: step,
                sequence: 0,
                records: 0,
                pending: VecDeque::new(),
                written: Vec::new(),
                writes_in_flight: 0,
                syncing: false,
                watermark: BLOCK,
                failed: None,
                entries: Vec::new(),
            }),
            ended: Notify::new(),
        }))
    }

    /// Takes the segment out of use and seals it beside.
    fn put_away(self: &Rc<Self>, segment: Option<Rc<OpenSegment<D>>>) {
        let Some(segment) = segment else { return };
        segment.entry.phase().state = State::Closed;
        self.sealing.set(self.sealing.get() + 1);
        let appender = self.clone();
        (self.context.spawn)(Box::pin(async move {
            segment.seal().await;
            appender.sealing.set(appender.sealing.get() - 1);
            appender.sealed.notify_waiters();
        }));
    }

    /// Seals the open segment, if there is one and `when` says so, and waits for every sealing that runs.
    pub async fn seal(self: &Rc<Self>, when: impl FnOnce(&SegmentEntry) -> bool) {
        {
            let mut open = self.open.lock().await;
            if open.as_ref().is_some_and(|segment| when(&segment.entry)) {
                self.put_away(open.take());
            }
        }
        loop {
            let sealed = self.sealed.notified();
            if self.sealing.get() == 0 {
                return;
            }
            sealed.await;
        }
    }

    /// Takes no more, and waits until everything is durable and sealed.
    pub async fn close(self: &Rc<Self>) {
        self.closed.set(true);
        self.seal(|_| true).await;
    }
}

impl<D: Disk> OpenSegment<D> {
    fn has_room(&self, len: u64, records: usize) -> bool {
        let state = self.state.borrow();
        let options = &self.context.shared.options;
        let total = state.records + records;
        let fits = total <= options.segment_records_max as usize
            && state.end + len + footer_bytes(total) <= options.segment_bytes_max;
        state.failed.is_none() && (fits || state.records == 0)
    }

    fn room_allocated(&self) -> u64 {
        let state = self.state.borrow();
        state.allocated - state.end
    }

    fn reserve(&self, len: u64, records: usize) -> Slot {
        assert!(len.is_multiple_of(BLOCK), "a write of {len} bytes is not made of blocks");
        let mut state = self.state.borrow_mut();
        let slot =
            Slot { nonce: self.entry.nonce, offset: state.end, sequence: state.sequence, watermark: state.watermark };
        state.end += len;
        self.entry.reserved_end.store(state.end, Ordering::Relaxed);
        state.sequence += 1;
        state.records += records;
        assert!(state.end <= state.allocated, "a write behind what is allocated");
        slot
    }

    fn wrote(self: Rc<Self>, offset: u64, result: io::Result<()>) {
        self.state.borrow_mut().writes_in_flight -= 1;
        match result {
            Err(error) => self.fail(Vec::new(), "writing to", error),
            Ok(()) => self.advance(offset),
        }
        self.ended.notify_waiters();
    }

    fn advance(self: &Rc<Self>, offset: u64) {
        let mut state = self.state.borrow_mut();
        let Some(pending) = state.pending.iter_mut().find(|pending| pending.offset == offset) else {
            return; // the segment failed meanwhile
        };
        pending.written = true;
        while state.pending.front().is_some_and(|pending| pending.written) {
            let next = state.pending.pop_front();
            state.written.extend(next);
        }
        if !state.written.is_empty() && !state.syncing {
            state.syncing = true;
            (self.context.spawn)(Box::pin(self.clone().sync()));
        }
    }

    /// One fdatasync after the other, for as long as there is something new in the prefix.
    async fn sync(self: Rc<Self>) {
        loop {
            let batch = {
                let mut state = self.state.borrow_mut();
                let batch = std::mem::take(&mut state.written);
                state.syncing = !batch.is_empty();
                batch
            };
            let Some(end) = batch.last().map(|last| last.end) else {
                self.ended.notify_waiters();
                return;
            };
            match self.sync_file().await {
                Ok(()) => self.durable(batch, end),
                Err(error) => self.fail(batch, "syncing", error),
            }
        }
    }

    async fn sync_file(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.context.shared.options.acknowledge_unsynced {
            return Ok(());
        }
        self.file.sync_data().await
    }

    fn durable(&self, batch: Vec<Pending>, end: u64) {
        {
            let mut state = self.state.borrow_mut();
            assert!(end > state.watermark, "the watermark goes backwards");
            state.watermark = end;
            state.entries.extend(batch.iter().flat_map(|pending| pending.records.iter().map(|record| record.entry)));
        }
        self.entry.durable_end.store(end, Ordering::Release);
        let mut records = Vec::with_capacity(batch.iter().map(|pending| pending.records.len()).sum());
        let mut told = Vec::with_capacity(batch.len());
        for pending in batch {
            records.extend(pending.records);
            told.push(pending.done);
        }
        let locks = finish(&self.context, self.entry.id, end, records);
        told.into_iter().for_each(|done| done(Ok(())));
        drop(locks);
    }

    /// Latches the segment and tells everybody whose record is not durable, and those of `batch`.
    fn fail(&self, batch: Vec<Pending>, doing: &'static str, error: io::Error) {
        let name = segment::name_of(self.entry.id);
        tracing::error!(segment = %name, %error, "a segment failed and takes no more writes");
        let mut lost = batch;
        let error = {
            let mut state = self.state.borrow_mut();
            let error = state.failed.get_or_insert_with(|| StoreError::io(doing, &name, error)).clone();
            lost.extend(std::mem::take(&mut state.written));
            lost.extend(std::mem::take(&mut state.pending));
            error
        };
        self.entry.phase().state = State::Closed;
        let mut stray = Vec::new();
        for pending in lost {
            stray.extend(abandon(&self.context, self.entry.id, pending.records));
            (pending.done)(Err(error.clone()));
        }
        if !stray.is_empty() {
            let context = self.context.clone();
            (self.context.spawn)(Box::pin(async move { context.disown(stray).await }));
        }
    }

    async fn drained(&self) {
        loop {
            let ended = self.ended.notified();
            {
                let state = self.state.borrow();
                if state.writes_in_flight == 0 && !state.syncing && state.pending.is_empty() {
                    return;
                }
            }
            ended.await;
        }
    }

    async fn seal(&self) {
        self.drained().await;
        let (entries, end, allocated, failed) = {
            let mut state = self.state.borrow_mut();
            (std::mem::take(&mut state.entries), state.end, state.allocated, state.failed.is_some())
        };
        if failed {
            return; // readable as it is; the next start seals it
        }
        let id = self.entry.id;
        if entries.is_empty() {
            self.context.unlink(id).await;
            return;
        }
        let written = segment::write_footer(&self.file, id, &self.entry.nonce, &entries, end, end, allocated).await;
        drop(entries);
        if let Err(error) = written {
            tracing::error!(segment = format_args!("{id:016x}"), %error, "a segment was not sealed; the next start does it");
            return;
        }
        let dead = {
            let mut phase = self.entry.phase();
            phase.state = State::Sealed;
            phase.notes = Vec::new();
            std::mem::take(&mut phase.dead)
        };
        self.context.shared.room.freed();
        for (start, len) in dead {
            self.context.punch(&self.file, id, start, len).await;
        }
        self.context.unlink_if_dead(&self.entry).await;
    }
}
