//! Doubt: segments that may have held references which nobody here knows any more.
//!
//! A chunk is removed because no living version refers to it. That rests on the absence of a reference, and proves
//! nothing while one may have been lost. So nothing is removed on that ground until every damaged segment is settled.
//! What rests on records that exist (compaction, unlinking a segment without chunks, evicting cached copies) goes on.
//!
//! | a damaged segment | is |
//! | --- | --- |
//! | the catalog was told of all in it, and has written all that it knows to the log again | settled: nothing is missed without it |
//! | the catalog may not have been told of some of it (rebuilt since, or it had not come so far) | in doubt |
//! | its file is gone, before it was settled | in doubt: taking the evidence away brings nothing back |
//! | it is whole again (read again, or restored from a copy) | forgotten: opening the store has told the catalog of it |
//!
//! This is kept in a document, which is in the log like everything else, so that it outlives the file and the catalog.
//! `gabion verify` cannot end a doubt: it looks for what the catalog refers to, and a lost reference is just what the
//! catalog does not have.
//!
//! | bytes of the document | field |
//! | --- | --- |
//! | 1 | version 1 |
//! | 9 each | segment 8, flags 1: bit 0 untold, bit 1 written again |

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::commands::Failure;
use super::log;
use super::shared::lock;
use crate::catalog::{Catalog, CatalogError};
use crate::limits::{DAMAGED_SEGMENTS_MAX, DOCUMENT_VALUE_BYTES_MAX};
use crate::store::{self, Disk, OpenReport, Store};

const DOCUMENT: &[u8] = b"doubt/references";
const VERSION: u8 = 1;
const ENTRY_BYTES: usize = 9;
const FLAG_UNTOLD: u8 = 1 << 0;
const FLAG_WRITTEN: u8 = 1 << 1;
/// No segment has this number: stands for those that a document names in a way not understood here.
const NO_SEGMENT: u64 = 0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Standing {
    /// The catalog may never have been told of some of it.
    is_untold: bool,
    /// What the catalog knows was written to the log again since.
    is_written: bool,
    /// Its file is there, and damaged.
    is_here: bool,
}

impl Standing {
    fn is_settled(&self) -> bool {
        self.is_written && !self.is_untold
    }
}

/// The damaged segments, and where each of them stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Doubt(BTreeMap<u64, Standing>);

impl Doubt {
    /// What was kept, and what opening the store has found. `is_whole`: whether a segment is there, and used.
    pub async fn at_start(
        catalog: &Catalog,
        opened: &OpenReport,
        is_whole: impl Fn(u64) -> bool,
    ) -> Result<Self, CatalogError> {
        let kept = catalog.document(DOCUMENT).await?.unwrap_or_default();
        let mut doubt = Self::decode(&kept);
        for damaged in &opened.damaged_segments {
            let unseen = Standing { is_untold: false, is_written: false, is_here: true };
            let standing = doubt.0.entry(damaged.segment).or_insert(unseen);
            standing.is_here = true;
            // Once all of it stands elsewhere, a catalog that was never told of it is none the worse.
            standing.is_untold |= damaged.is_untold && !standing.is_written;
        }
        doubt.0.retain(|segment, standing| standing.is_here || !(standing.is_settled() || is_whole(*segment)));
        Ok(doubt)
    }

    fn decode(bytes: &[u8]) -> Self {
        let mut doubt = Self::default();
        let Some((version, entries)) = bytes.split_first() else { return doubt };
        let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
        for [segment @ .., flags] in entries {
            let (is_untold, is_written) = (flags & FLAG_UNTOLD != 0, flags & FLAG_WRITTEN != 0);
            doubt.0.insert(u64::from_le_bytes(*segment), Standing { is_untold, is_written, is_here: false });
        }
        if *version != VERSION || !rest.is_empty() {
            doubt.0.insert(NO_SEGMENT, Standing { is_untold: true, is_written: false, is_here: false });
        }
        doubt
    }

    fn encode(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut bytes = vec![VERSION];
        for (segment, standing) in self.0.iter().take(DAMAGED_SEGMENTS_MAX) {
            bytes.extend(segment.to_le_bytes());
            let untold = if standing.is_untold { FLAG_UNTOLD } else { 0 };
            bytes.push(untold | if standing.is_written { FLAG_WRITTEN } else { 0 });
        }
        bytes
    }

    /// Whether the absence of a reference proves that nobody refers.
    pub fn references_are_whole(&self) -> bool {
        self.0.values().all(Standing::is_settled)
    }

    /// Whether the catalog may know something that was lost from the log and not written again.
    pub fn wants_writing(&self) -> bool {
        self.0.values().any(|standing| standing.is_here && !standing.is_written)
    }

    /// The catalog has written all that it knows to the log again.
    pub fn written(&mut self) {
        self.0.values_mut().filter(|standing| standing.is_here).for_each(|standing| standing.is_written = true);
    }

    /// Whether nothing is missed without this segment's file.
    pub fn is_settled(&self, file: &str) -> bool {
        let standing = self.0.iter().find(|(segment, _)| store::segment_name(**segment) == file);
        standing.is_none_or(|(_, standing)| standing.is_settled())
    }

    /// What is not removed, why, and the way out; none without a doubt.
    pub fn reason(&self) -> Option<String> {
        let mut unsettled = self.0.iter().filter(|(_, standing)| !standing.is_settled()).map(|(segment, _)| segment);
        let first = store::segment_name(*unsettled.next()?);
        let others = match unsettled.count() {
            0 => String::new(),
            count => format!(" and {count} other segments"),
        };
        Some(format!(
            "references may be lost with {first}{others}, so chunks without references are kept: restore the files from \
             a copy and start the node again, or start anew with an empty --data-dir"
        ))
    }
}

/// Makes it durable, where that is not so yet.
pub async fn keep<D: Disk>(
    doubt: &Mutex<Doubt>,
    catalog: &Catalog,
    store: &Store<D>,
    serial: u64,
) -> Result<(), Failure> {
    let value = lock(doubt).encode();
    if catalog.document(DOCUMENT).await?.unwrap_or_default() != value {
        store.append(log::document(serial, DOCUMENT, &value)).await?;
    }
    Ok(())
}

const _: () = assert!(ENTRY_BYTES * DAMAGED_SEGMENTS_MAX < DOCUMENT_VALUE_BYTES_MAX);
