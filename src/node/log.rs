//! From the log to its index: what the store makes durable or replays, told to the catalog.
//!
//! The observer runs before anybody is told of success, on the thread that made the record durable, and the catalog's
//! queue keeps the order: whoever asks the catalog after an acknowledgement sees what was acknowledged.
//!
//! The observer never waits, since it runs on the thread that writes. Where the catalog cannot keep up, the log waits for room
//! in its queue ([`backpressure`]) before it writes the next records, and lets the thread do other work meanwhile. Where
//! only space on the disk would make room, the records are refused.
//!
//! A record that is not what its kind says is damage that every check before missed; it is left out with a warning, as
//! a person has to hear of it and the node has to start all the same.

use std::rc::Rc;

use crate::catalog::{Applied, Catalog, CatalogError, Document, Event};
use crate::format::certificate::Death;
use crate::format::record::FLAG_CACHED;
use crate::format::{Address, Malformed};
use crate::limits::CATALOG_REPLAY_EVENTS_AT_ONCE;
use crate::store::{self, AppliedEvent, Backpressure, NoRoom, Replayed, SmallRecord, StoreError};

/// What the log waits for before it writes.
pub fn backpressure(catalog: &Catalog) -> Backpressure {
    let catalog = catalog.clone();
    Rc::new(move || {
        let catalog = catalog.clone();
        Box::pin(async move { catalog.room().await.map_err(|_| StoreError::NoSpace { reason: NoRoom::Memory }) })
    })
}

/// Tells the catalog what has become durable.
pub fn observe(catalog: &Catalog, applied: store::Applied) {
    let events = applied.events.into_iter().filter_map(|event| understood(convert(event))).collect();
    catalog.apply_now(Applied { segment: applied.segment, end_offset: applied.end_offset, events });
}

fn understood(event: Result<Event, Malformed>) -> Option<Event> {
    event.inspect_err(|error| tracing::warn!(%error, "a durable record was not understood and is left out")).ok()
}

fn convert(event: AppliedEvent) -> Result<Event, Malformed> {
    Ok(match event {
        AppliedEvent::Chunk { address, version, flags } => {
            Event::Chunk { address, version, cached: flags & FLAG_CACHED != 0 }
        }
        AppliedEvent::Reference { address, version, capsule, is_first } => {
            Event::Reference { address, version, capsule: (!capsule.is_empty()).then_some(capsule), is_first }
        }
        AppliedEvent::Name { payload } => Event::Name(payload),
        AppliedEvent::Death { payload } => Event::Death { versions: Death::decode(&payload)?.versions, death: payload },
        AppliedEvent::Document { payload } => Event::Document(Document::decode(&payload)?),
        AppliedEvent::Removed { address } => Event::Removed { address },
    })
}

/// Feeds the catalog what the store replays at opening.
pub struct Replay<'a> {
    catalog: &'a Catalog,
    events: Vec<Event>,
    /// The first that the catalog refused; what comes after it is dropped, and the node does not start.
    refused: Option<CatalogError>,
}

impl<'a> Replay<'a> {
    pub fn new(catalog: &'a Catalog) -> Self {
        Self { catalog, events: Vec::new(), refused: None }
    }

    pub fn apply(&mut self, replayed: Replayed<'_>) {
        let event = match replayed {
            Replayed::Chunk { address, version, flags } => AppliedEvent::Chunk { address, version, flags },
            Replayed::Reference { address, version, capsule } => {
                AppliedEvent::Reference { address, version, capsule: capsule.to_vec(), is_first: false }
            }
            Replayed::Name { payload } => AppliedEvent::Name { payload: payload.to_vec() },
            Replayed::Death { payload } => AppliedEvent::Death { payload: payload.to_vec() },
            Replayed::Document { payload } => AppliedEvent::Document { payload: payload.to_vec() },
            Replayed::Removed { address } => AppliedEvent::Removed { address },
            Replayed::Position { segment, offset } => return self.flush(segment, offset),
        };
        self.events.extend(understood(convert(event)));
        if self.events.len() >= CATALOG_REPLAY_EVENTS_AT_ONCE {
            // No position yet: after a crash in here, the same records are replayed once more.
            self.flush(NO_SEGMENT, 0);
        }
    }

    fn flush(&mut self, segment: u64, end_offset: u64) {
        let events = std::mem::take(&mut self.events);
        if self.refused.is_none() {
            self.refused = self.catalog.apply(Applied { segment, end_offset, events }).err();
        }
    }

    /// Returns once the catalog has taken in everything.
    pub async fn finish(mut self) -> Result<(), CatalogError> {
        if !self.events.is_empty() {
            self.flush(NO_SEGMENT, 0);
        }
        if let Some(error) = self.refused {
            return Err(error);
        }
        self.catalog.counts().await.map(|_| ())
    }
}

/// Stands for "no segment" in a batch that moves no position. Segments are numbered from 1.
const NO_SEGMENT: u64 = 0;

/// A document of the node's own state, as a record. An empty value deletes.
pub fn document(serial: u64, key: &[u8], value: &[u8]) -> SmallRecord {
    SmallRecord::Document(Document { serial, key: key.to_vec(), value: value.to_vec() }.encode())
}

/// The store holds no such chunk, whatever the catalog thinks.
pub async fn forget(catalog: &Catalog, address: Address) {
    let events = vec![Event::Removed { address }];
    catalog.apply_async(Applied { segment: NO_SEGMENT, end_offset: 0, events }).await;
}
