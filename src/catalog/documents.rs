//! Documents: the node's own state that must survive (layouts, pending deaths, the address book, the clock's floor), kept in
//! the log like everything else. Of two documents under one key the one with the higher serial wins; an empty value deletes.
//!
//! Payload of a document record:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 2 | format version |
//! | 2 | 8 | serial |
//! | 10 | 2 + 1..=256 | key behind its length |
//! | | 4 + 0..=256 Ki | value behind its length |

use super::CatalogError;
use super::rows::{self, DOCUMENT, Row, key};
use super::thread::Engine;
use crate::format::{Malformed, Reader, Writer};
use crate::limits::{DOCUMENT_KEY_BYTES_MAX, DOCUMENT_VALUE_BYTES_MAX};

const DOCUMENT_VERSION: u16 = 1;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// Of two under one key the higher wins; [`super::Catalog::next_serial`] knows the next.
    pub serial: u64,
    pub key: Vec<u8>,
    /// Empty: deleted.
    pub value: Vec<u8>,
}

impl Document {
    /// A key or value beyond its limit is the caller's mistake.
    pub fn encode(&self) -> Vec<u8> {
        assert!((1..=DOCUMENT_KEY_BYTES_MAX).contains(&self.key.len()), "a document's key has 1 to 256 bytes");
        assert!(self.value.len() <= DOCUMENT_VALUE_BYTES_MAX, "a document has at most 256 KiB");
        Writer::with_capacity(16 + self.key.len() + self.value.len())
            .u16(DOCUMENT_VERSION)
            .u64(self.serial)
            .short_bytes(&self.key)
            .long_bytes(&self.value)
            .finish()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u16("document")? != DOCUMENT_VERSION {
            return Err(Malformed::new("document's format version (update gabion)"));
        }
        let serial = reader.u64("document's serial")?;
        let key = reader.short_bytes("document's key")?.to_vec();
        let value = reader.long_bytes("document's value")?.to_vec();
        reader.end("bytes after a document")?;
        if key.is_empty() || key.len() > DOCUMENT_KEY_BYTES_MAX || value.len() > DOCUMENT_VALUE_BYTES_MAX {
            return Err(Malformed::new("length of a document's key or value"));
        }
        Ok(Self { serial, key, value })
    }
}

impl Engine {
    /// A deletion stays as a row with its serial, so that an older document that is replayed later does not come back.
    pub(super) fn apply_document(&mut self, document: Document) -> Result<(), fjall::Error> {
        let row = key(DOCUMENT, &[&document.key]);
        let known = self.draft.get(&self.rows, &row)?.map(split).transpose()?;
        if known.is_none_or(|known| known < (document.serial, document.value.clone())) {
            let mut value = document.serial.to_le_bytes().to_vec();
            value.extend_from_slice(&document.value);
            self.draft.put(row, &value);
        }
        Ok(())
    }

    pub(super) fn document(&mut self, name: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        self.read(|_, rows| {
            let found = rows.get(&key(DOCUMENT, &[name]))?.map(split).transpose()?;
            Ok(found.map(|(_, value)| value).filter(|value| !value.is_empty()))
        })
    }

    pub(super) fn documents(&mut self, prefix: &[u8]) -> Result<Vec<Row>, CatalogError> {
        self.read(|_, rows| {
            let mut found = Vec::new();
            for row in rows.prefix(&key(DOCUMENT, &[prefix])) {
                let (mut name, value) = row?;
                name.remove(0);
                let (_, value) = split(value)?;
                if !value.is_empty() {
                    found.push((name, value));
                }
            }
            Ok(found)
        })
    }

    /// Deletions too, ascending by key, after `after`.
    pub(super) fn all_documents(
        &mut self,
        after: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<Vec<Document>, CatalogError> {
        let start = key(DOCUMENT, &[after.as_deref().unwrap_or_default()]);
        self.read(|_, rows| {
            let documents = rows.after(&[DOCUMENT], &start).take(limit);
            documents
                .map(|row| {
                    let (mut key, value) = row?;
                    key.remove(0);
                    let (serial, value) = split(value)?;
                    Ok(Document { serial, key, value })
                })
                .collect()
        })
    }

    pub(super) fn next_serial(&mut self, name: &[u8]) -> Result<u64, CatalogError> {
        self.read(|_, rows| {
            let known = rows.get(&key(DOCUMENT, &[name]))?.map(split).transpose()?;
            Ok(known.map_or(1, |(serial, _)| serial.saturating_add(1)))
        })
    }
}

/// Serial and value of a row.
fn split(row: Vec<u8>) -> Result<(u64, Vec<u8>), fjall::Error> {
    let (serial, value) = row.split_first_chunk::<8>().ok_or_else(rows::damaged)?;
    Ok((u64::from_le_bytes(*serial), value.to_vec()))
}
