//! The thread that owns the database, and what it does between two messages.
//!
//! ```text
//! take what is queued -> events: into the draft, committed when it is full, before any question, and at the end
//!                     -> questions: answered from committed rows, those that wait for space included
//!                     -> questions about single names: answered through the draft
//! then one step of dropping dead versions' references, if there are any; without any, wait
//! ```

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::draft::Draft;
use super::queue::{Message, Question, Queue, Taken};
use super::recent::Recent;
use super::references::Sweeps;
use super::rows::{self, FreeBytes, POSITION, Rows, SWEEP};
use super::{Applied, CatalogCounts, CatalogError, Event, Positions, Uptime};
use crate::limits::{CATALOG_COMMIT_EVENTS_MAX, CATALOG_RETRY_INTERVAL};

/// What only the thread touches.
pub(super) struct Engine {
    pub(super) rows: Rows,
    pub(super) draft: Draft,
    drafted_events: usize,
    /// Those whose commit is not in the database.
    unwritten_events: usize,
    pub(super) totals: CatalogCounts,
    pub(super) sweeps: Sweeps,
    /// Tells this run's uptimes from those of earlier runs.
    pub(super) run: u64,
    /// Where the last look for garbage stopped.
    pub(super) garbage_cursor: Vec<u8>,
    uptime: Uptime,
    failed: Option<Arc<str>>,
    pub(super) recent: Arc<Recent>,
    /// What came while the database could not be opened for lack of space, and all that came behind it, in order. It keeps
    /// its room in the queue.
    held: Vec<Applied>,
}

impl Engine {
    fn open(directory: &Path, uptime: Uptime, free_bytes: FreeBytes) -> Result<(Self, Positions), CatalogError> {
        let mut rows = Rows::open(directory, free_bytes)?;
        // Rows that do not read are as good a reason to start over as a database that does not open.
        let (totals, positions, sweeps) = match Self::load(&rows) {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::warn!(%error, "the catalog does not read and will be rebuilt");
                rows = rows.rebuilt()?;
                Default::default()
            }
        };
        let engine = Self {
            rows,
            draft: Draft::default(),
            drafted_events: 0,
            unwritten_events: 0,
            totals,
            sweeps,
            run: rand::random(),
            garbage_cursor: Vec::new(),
            uptime,
            failed: None,
            recent: Arc::default(),
            held: Vec::new(),
        };
        Ok((engine, positions))
    }

    fn load(rows: &Rows) -> Result<(CatalogCounts, Positions, Sweeps), fjall::Error> {
        let mut positions = Positions::new();
        for row in rows.prefix(&[POSITION]) {
            let (key, value) = row?;
            positions.insert(u64::from_be_bytes(rows::part(&key, 1)?), rows::number(&value, 0)?);
        }
        let sweeps = Sweeps::new(rows.prefix(&[SWEEP]).next().transpose()?.is_some());
        Ok((rows.totals()?, positions, sweeps))
    }

    pub(super) fn now(&self) -> Duration {
        (self.uptime)()
    }

    /// The first failure latches: the index may have missed something from here on. Lack of space is none.
    pub(super) fn guard<T>(&mut self, result: Result<T, fjall::Error>) -> Result<T, CatalogError> {
        if let Some(reason) = &self.failed {
            return Err(CatalogError::Failed { reason: reason.clone() });
        }
        result.map_err(|error| {
            if rows::is_of_space(&error) {
                return CatalogError::Full;
            }
            let reason: Arc<str> = error.to_string().into();
            tracing::error!(%error, "the catalog failed; it will be rebuilt at the next start");
            self.rows.doubt();
            self.recent.close();
            self.failed = Some(reason.clone());
            CatalogError::Failed { reason }
        })
    }

    /// Runs a question that reads, with its failures latched.
    pub(super) fn read<T>(
        &mut self,
        read: impl FnOnce(&Self, &Rows) -> Result<T, fjall::Error>,
    ) -> Result<T, CatalogError> {
        let result = read(self, &self.rows);
        self.guard(result)
    }

    fn apply(&mut self, applied: Applied, queue: &Queue) {
        let Applied { segment, end_offset, events } = applied;
        let mut events = events.into_iter().peekable();
        let mut is_of_new_chunk = false;
        loop {
            // Looked at before each: a commit in between may have closed the database.
            if self.failed.is_none() && (self.is_behind() || !self.rows.is_open()) {
                return self.held.push(Applied { segment, end_offset, events: events.collect() });
            }
            let Some(event) = events.next() else { break };
            let follows_its_chunk = std::mem::take(&mut is_of_new_chunk);
            if events.peek().is_some_and(|next| says_all_of(next, &event)) {
                is_of_new_chunk = true;
                self.count_drafted(queue);
                continue;
            }
            let name = if let Event::Name(encoded) = &event { Recent::group_of_record(encoded) } else { None };
            if self.failed.is_none() {
                let result = self.apply_event(event, follows_its_chunk);
                let _latched = self.guard(result);
            }
            name.inspect(|group| self.recent.applied(*group));
            self.count_drafted(queue);
        }
        let position = rows::key(POSITION, &[&segment.to_be_bytes()]);
        let result = self.put_position(position, end_offset);
        let _latched = self.guard(result);
    }

    fn count_drafted(&mut self, queue: &Queue) {
        self.drafted_events += 1;
        self.unwritten_events += 1;
        if self.drafted_events >= CATALOG_COMMIT_EVENTS_MAX {
            self.commit(queue);
        }
    }

    /// Whether something newer than what is drafted waits for a database to be there. Nothing is answered then: a row that
    /// waits in memory may be an older one.
    pub(super) fn is_behind(&self) -> bool {
        self.failed.is_none() && !self.held.is_empty()
    }

    /// What was held, once there is a database again, and before any question.
    fn apply_held(&mut self, queue: &Queue) {
        if self.held.is_empty() || !(self.rows.is_open() || self.failed.is_some()) {
            return;
        }
        for applied in std::mem::take(&mut self.held) {
            self.apply(applied, queue);
        }
        self.commit(queue);
    }

    /// With the last of the events that it covers, or in a later commit.
    fn put_position(&mut self, key: rows::Bytes, offset: u64) -> Result<(), fjall::Error> {
        let known = self.draft.get(&self.rows, &key)?.map(|value| rows::number(&value, 0)).transpose()?;
        if known.is_none_or(|known| known < offset) {
            self.draft.put(key, &offset.to_le_bytes());
        }
        Ok(())
    }

    fn apply_event(&mut self, event: Event, follows_its_chunk: bool) -> Result<(), fjall::Error> {
        match event {
            Event::Chunk { cached: true, .. } => Ok(()),
            Event::Chunk { address, version, cached: false } => self.apply_reference(&address, &version, None, false),
            // Without its chunk before it, that is counted already: the two were in two batches.
            Event::Reference { address, version, capsule, is_first } => {
                self.apply_reference(&address, &version, capsule, is_first && follows_its_chunk)
            }
            Event::Name(record) => self.apply_name(record),
            Event::Death { versions, death } => self.apply_death(&versions, death),
            Event::Removed { address } => self.apply_removed(&address),
            Event::Document(document) => self.apply_document(document),
        }
    }

    /// Also after a failure, then without effect: who waits for room must get it. While commits wait for space, their
    /// events keep the room that they take.
    fn commit(&mut self, queue: &Queue) {
        let result = self.commit_draft();
        let _latched = self.guard(result);
        self.drafted_events = 0;
        let is_waiting = self.failed.is_none() && self.rows.is_waiting();
        queue.set_waiting_for_space(is_waiting);
        if !is_waiting {
            queue.made_room(std::mem::take(&mut self.unwritten_events));
        }
        self.apply_held(queue);
    }

    pub(super) fn commit_draft(&mut self) -> Result<(), fjall::Error> {
        let mut draft = std::mem::take(&mut self.draft);
        if self.failed.is_some() {
            return Ok(());
        }
        if draft.is_empty() {
            return self.rows.retry();
        }
        draft.put_totals(&self.totals);
        self.rows.commit(draft)
    }

    /// Whether the references of dead versions are dropped now. Not while all too much waits for space, or nothing reads.
    fn may_sweep(&self) -> bool {
        !self.sweeps.is_empty() && self.failed.is_none() && self.rows.is_open() && !self.rows.is_swamped()
    }

    pub(super) fn settled(&mut self) -> Result<(), CatalogError> {
        if self.is_behind() {
            return Err(CatalogError::Full);
        }
        if !self.sweeps.is_empty() && self.failed.is_none() { Err(CatalogError::Full) } else { self.guard(Ok(())) }
    }

    pub(super) fn counts(&mut self) -> Result<CatalogCounts, CatalogError> {
        let totals = self.totals;
        self.guard(Ok(totals))
    }

    pub(super) fn forget_segment(&mut self, segment: u64) -> Result<(), CatalogError> {
        self.draft.remove(rows::key(POSITION, &[&segment.to_be_bytes()]));
        let result = self.commit_draft();
        self.guard(result)
    }

    fn persist(&mut self) -> Result<(), CatalogError> {
        let result = self.rows.persist();
        self.guard(result)
    }
}

/// Whether the reference that follows a chunk is the one that comes with it: a small file's root and its capsule.
fn says_all_of(next: &Event, chunk: &Event) -> bool {
    let Event::Chunk { address, version, cached: false } = chunk else { return false };
    matches!(next, Event::Reference { address: of, version: by, .. } if of == address && by == version)
}

/// The thread, as handles see it.
pub(super) struct Handle {
    pub(super) queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    pub fn start(directory: &Path, uptime: Uptime, free_bytes: FreeBytes) -> Result<(Self, Positions), CatalogError> {
        let (engine, positions) = Engine::open(directory, uptime, free_bytes)?;
        let queue = Arc::new(Queue::new(engine.recent.clone()));
        let of_thread = queue.clone();
        let thread = std::thread::Builder::new()
            .name("catalog".into())
            .spawn(move || run(engine, &of_thread))
            .map_err(|error| CatalogError::Create {
                directory: directory.display().to_string(),
                reason: format!("no thread for it: {error}"),
            })?;
        Ok((Self { queue, thread: Some(thread) }, positions))
    }

    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Engine) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        self.ask_as(Message::Ask, question).await
    }

    /// The same for a question that looks at single names alone.
    pub async fn ask_name<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Engine) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        self.ask_as(Message::AskName, question).await
    }

    pub async fn ask_when_settled<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Engine) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        self.ask_as(Message::AskWhenSettled, question).await
    }

    async fn ask_as<T: Send + 'static>(
        &self,
        kind: fn(Question) -> Message,
        question: impl FnOnce(&mut Engine) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let (question, answer) = asynchronous(question);
        self.queue.ask(kind(question));
        answer.await.unwrap_or(Err(CatalogError::Closed))
    }

    pub async fn close(&self) -> Result<(), CatalogError> {
        self.ask_as(Message::Close, Engine::persist).await
    }
}

fn asynchronous<T: Send + 'static>(
    question: impl FnOnce(&mut Engine) -> Result<T, CatalogError> + Send + 'static,
) -> (Question, oneshot::Receiver<Result<T, CatalogError>>) {
    let (sender, answer) = oneshot::channel();
    let question = move |engine: Result<&mut Engine, CatalogError>| {
        let _unheard = sender.send(engine.and_then(question));
    };
    (Box::new(question), answer)
}

impl Drop for Handle {
    /// Waits for the commit that is under way, so that the directory is free afterwards.
    fn drop(&mut self) {
        self.queue.abandon();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// Tells those who wait, however the thread ends.
struct Ends<'a>(&'a Queue);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.closed();
    }
}

fn run(mut engine: Engine, queue: &Queue) {
    let _ends = Ends(queue);
    let mut deferred: Vec<Question> = Vec::new();
    loop {
        let retry = (engine.failed.is_none() && engine.rows.is_waiting()).then_some(CATALOG_RETRY_INTERVAL);
        match queue.take(!engine.may_sweep(), retry) {
            Taken::Abandoned => return,
            Taken::Nothing if retry.is_some() => engine.commit(queue),
            Taken::Nothing => {}
            Taken::Messages(messages) => {
                for message in messages {
                    if queue.is_abandoned() {
                        return;
                    }
                    match message {
                        Message::Apply(applied) => engine.apply(applied, queue),
                        Message::Ask(question) => {
                            engine.commit(queue);
                            question(if engine.is_behind() { Err(CatalogError::Full) } else { Ok(&mut engine) });
                        }
                        Message::AskName(question) => question(Ok(&mut engine)),
                        Message::AskWhenSettled(question) => deferred.push(question),
                        Message::Close(question) => {
                            engine.commit(queue);
                            question(Ok(&mut engine));
                            return;
                        }
                    }
                }
                engine.commit(queue);
            }
        }
        if engine.may_sweep() {
            let result = engine.sweep_step();
            let _latched = engine.guard(result);
        }
        if !engine.may_sweep() {
            for question in deferred.drain(..) {
                question(Ok(&mut engine));
            }
        }
    }
}
