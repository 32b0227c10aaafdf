//! References, deaths and garbage.
//!
//! | what comes | version lives | version is dead |
//! | --- | --- | --- |
//! | reference | row added | row added, hidden, and the version is swept (again) |
//! | death | marked dead; swept if it has references | nothing new (of two deaths the one with the smaller id is remembered) |
//!
//! Sweeping drops a dead version's rows and marks each of their chunks with the time. A mark alone means nothing: a chunk is
//! garbage once it has a mark and no row, dead versions' rows included. Neither sweeping nor a new reference looks whether the
//! other is there, which would cost a search for each chunk; whoever reads marks looks for rows and drops marks that are wrong. The
//! last row of a chunk always goes by a sweep, which sets the mark anew, so a wait never counts from an earlier time.

use std::collections::BTreeSet;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use super::CatalogError;
use super::draft::Draft;
use super::rows::{self, CHUNK, DEAD, DEATH, GARBAGE, REFERENCE, Rows, SWEEP, VERSION, key};
use super::thread::Engine;
use crate::cluster::deaths::DeathId;
use crate::format::{Address, VersionId};
use crate::limits::{CATALOG_SCAN_ROWS_MAX, CATALOG_SWEEP_REFERENCES, CATALOG_SWEEPS_REMEMBERED_MAX};

const ADDRESS_BYTES: usize = Address::BYTES;

fn version_at(key: &[u8], at: usize) -> Result<VersionId, fjall::Error> {
    VersionId::read_from_bytes(&rows::part::<16>(key, at)?).map_err(|_| rows::damaged())
}

fn address_at(key: &[u8], at: usize) -> Result<Address, fjall::Error> {
    rows::part::<ADDRESS_BYTES>(key, at).map(Address)
}

/// The row of a version that has references.
struct Counted {
    count: u64,
    first: Address,
}

impl Counted {
    fn read(row: &[u8]) -> Result<Self, fjall::Error> {
        Ok(Self { count: rows::number(row, 0)?, first: address_at(row, 8)? })
    }

    fn row(&self) -> Vec<u8> {
        [self.count.to_le_bytes().as_slice(), &self.first.0].concat()
    }
}

/// The dead versions that are to be swept. Their rows say which for good; these are in memory as well, since a database that
/// marks what was removed passes over all marks of earlier sweeps to find the next row: with a search for each, 40,000
/// overwritten values kept this thread busy for 80 s, and now for 3 s.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    remembered: BTreeSet<VersionId>,
    /// There may be rows of others.
    more: bool,
}

impl Sweeps {
    /// Of a catalog that has been opened; `more`: it has rows of such versions.
    pub fn new(more: bool) -> Self {
        Self { remembered: BTreeSet::new(), more }
    }

    pub fn is_empty(&self) -> bool {
        self.remembered.is_empty() && !self.more
    }

    fn add(&mut self, version: VersionId) {
        if self.remembered.len() < CATALOG_SWEEPS_REMEMBERED_MAX {
            self.remembered.insert(version);
        } else {
            self.more = true;
        }
    }

    fn must_look(&self) -> bool {
        self.remembered.is_empty() && self.more
    }

    /// The first rows that there are.
    fn found(&mut self, versions: BTreeSet<VersionId>) {
        self.more = versions.len() >= CATALOG_SWEEPS_REMEMBERED_MAX;
        self.remembered = versions;
    }

    fn next(&mut self) -> Option<VersionId> {
        self.remembered.pop_first()
    }
}

impl Engine {
    pub(super) fn apply_reference(
        &mut self,
        address: &Address,
        version: &VersionId,
        capsule: Option<Vec<u8>>,
        is_first: bool,
    ) -> Result<(), fjall::Error> {
        if version.is_zero() {
            return Ok(());
        }
        let reference = key(REFERENCE, &[&address.0, version.as_bytes()]);
        let capsule = capsule.unwrap_or_default();
        let counter = key(VERSION, &[version.as_bytes()]);
        // To look for a row that cannot be there takes longer than to write it.
        let counted = if is_first { None } else { self.draft.get(&self.rows, &counter)? };
        let counted = counted.map(|counted| Counted::read(&counted)).transpose()?;
        // A version without references has not this one either: most small files' only one.
        let known = if counted.is_none() { None } else { self.draft.get(&self.rows, &reference)? };
        let is_new = known.is_none();
        // The greater of two capsules, so that their order does not matter (in truth there is one).
        if known.is_none_or(|known| known < capsule) {
            self.draft.put(reference, &capsule);
        }
        if !is_new {
            return Ok(());
        }
        let counted = match counted {
            Some(Counted { count, first }) => {
                self.draft.put(key(CHUNK, &[version.as_bytes(), &address.0]), &[]);
                Counted { count: count + 1, first }
            }
            None => {
                self.totals.versions += 1;
                Counted { count: 1, first: *address }
            }
        };
        self.totals.references += 1;
        self.draft.put(counter, &counted.row());
        // Most stores know of few deaths, and many of none: then there is no row to look for.
        if self.totals.deaths > 0 && self.draft.contains(&self.rows, &key(DEAD, &[version.as_bytes()]))? {
            self.sweep(version);
        }
        Ok(())
    }

    pub(super) fn apply_death(&mut self, versions: &[VersionId], death: Vec<u8>) -> Result<(), fjall::Error> {
        let id = DeathId::of(&death);
        for version in versions {
            let dead = key(DEAD, &[version.as_bytes()]);
            let known = self.draft.get(&self.rows, &dead)?;
            if known.is_none() {
                self.totals.deaths += 1;
                if self.draft.contains(&self.rows, &key(VERSION, &[version.as_bytes()]))? {
                    self.sweep(version);
                }
            }
            if known.is_none_or(|known| id.0.as_slice() < known.as_slice()) {
                self.draft.put(dead, &id.0);
            }
        }
        let stored = key(DEATH, &[&id.0]);
        if !self.draft.contains(&self.rows, &stored)? {
            self.draft.put(stored, &death);
        }
        Ok(())
    }

    fn sweep(&mut self, version: &VersionId) {
        self.draft.put(key(SWEEP, &[version.as_bytes()]), &[]);
        self.sweeps.add(*version);
    }

    pub(super) fn apply_removed(&mut self, address: &Address) -> Result<(), fjall::Error> {
        let mark = key(GARBAGE, &[&address.0]);
        if self.draft.contains(&self.rows, &mark)? {
            self.draft.remove(mark);
        }
        Ok(())
    }

    /// Drops some references of dead versions, in a commit of its own: nothing else is drafted then.
    pub(super) fn sweep_step(&mut self) -> Result<(), fjall::Error> {
        debug_assert!(self.draft.is_empty(), "a sweep reads committed rows");
        let swept = self.sweep_some();
        if swept.is_err() {
            self.sweeps.more = true; // those that were taken
        }
        swept
    }

    fn sweep_some(&mut self) -> Result<(), fjall::Error> {
        if self.sweeps.must_look() {
            let found = self.rows.prefix(&[SWEEP]).take(CATALOG_SWEEPS_REMEMBERED_MAX);
            let found = found.map(|row| version_at(&row?.0, 1)).collect::<Result<_, fjall::Error>>()?;
            self.sweeps.found(found);
        }
        let mut draft = Draft::default();
        let mut dropped = 0;
        let since: Vec<u8> = [self.run, self.now().as_millis() as u64].iter().flat_map(|n| n.to_le_bytes()).collect();
        let mut swept = 0;
        while dropped < CATALOG_SWEEP_REFERENCES && swept < CATALOG_SWEEP_REFERENCES {
            let Some(version) = self.sweeps.next() else { break };
            let (before, left) = (dropped, CATALOG_SWEEP_REFERENCES - dropped);
            let drop_reference = |draft: &mut Draft, address: Address| {
                draft.put(key(GARBAGE, &[&address.0]), &since);
                draft.remove(key(REFERENCE, &[&address.0, version.as_bytes()]));
            };
            let counter = key(VERSION, &[version.as_bytes()]);
            let counted = self.rows.get(&counter)?.map(|counted| Counted::read(&counted)).transpose()?;
            // A version with one reference has no rows to look for.
            if counted.as_ref().is_none_or(|counted| counted.count > 1) {
                for row in self.rows.prefix(&key(CHUNK, &[version.as_bytes()])).take(left) {
                    let (chunk, _) = row?;
                    drop_reference(&mut draft, address_at(&chunk, 17)?);
                    draft.remove(chunk.into());
                    dropped += 1;
                }
            }
            if dropped - before == left {
                self.sweeps.add(version); // there may be more
                break;
            }
            draft.remove(key(SWEEP, &[version.as_bytes()]));
            if let Some(Counted { first, .. }) = counted {
                drop_reference(&mut draft, first);
                dropped += 1;
                draft.remove(counter);
                self.totals.versions = self.totals.versions.saturating_sub(1);
            }
            swept += 1;
        }
        self.totals.references = self.totals.references.saturating_sub(dropped as u64);
        self.draft = draft;
        self.commit_draft()
    }

    pub(super) fn is_dead(&mut self, version: &VersionId) -> Result<bool, CatalogError> {
        self.read(|_, rows| is_dead(rows, version))
    }

    pub(super) fn death_of(&mut self, version: &VersionId) -> Result<Option<Vec<u8>>, CatalogError> {
        self.read(|_, rows| match rows.get(&key(DEAD, &[version.as_bytes()]))? {
            Some(id) => rows.get(&key(DEATH, &[&id])),
            None => Ok(None),
        })
    }

    pub(super) fn has_death(&mut self, id: &DeathId) -> Result<bool, CatalogError> {
        self.read(|_, rows| rows.contains(&key(DEATH, &[&id.0])))
    }

    /// Signed deaths by their ids, after `after`.
    pub(super) fn deaths(
        &mut self,
        after: Option<DeathId>,
        limit: usize,
    ) -> Result<Vec<(DeathId, Vec<u8>)>, CatalogError> {
        let start = after.map_or_else(|| key(DEATH, &[]), |after| key(DEATH, &[&after.0]));
        self.read(|_, rows| {
            let deaths = rows.after(&[DEATH], &start).take(limit);
            deaths.map(|row| row.and_then(|(key, death)| Ok((DeathId(rows::part(&key, 1)?), death)))).collect()
        })
    }

    pub(super) fn references(&mut self, address: &Address) -> Result<Vec<VersionId>, CatalogError> {
        self.read(|_, rows| living_references(rows, address).map(|row| row.map(|(version, _)| version)).collect())
    }

    pub(super) fn first_reference(&mut self, address: &Address) -> Result<Option<VersionId>, CatalogError> {
        self.read(|_, rows| Ok(living_references(rows, address).next().transpose()?.map(|(version, _)| version)))
    }

    pub(super) fn is_referenced(&mut self, address: &Address) -> Result<bool, CatalogError> {
        Ok(self.first_reference(address)?.is_some())
    }

    pub(super) fn capsules(&mut self, root: &Address) -> Result<Vec<(VersionId, Vec<u8>)>, CatalogError> {
        self.read(|_, rows| {
            living_references(rows, root)
                .filter(|row| row.as_ref().map_or(true, |(_, capsule)| !capsule.is_empty()))
                .collect()
        })
    }

    pub(super) fn chunks_of(
        &mut self,
        version: &VersionId,
        after: Option<Address>,
        limit: usize,
    ) -> Result<Vec<Address>, CatalogError> {
        let prefix = key(CHUNK, &[version.as_bytes()]);
        let start = after.map_or_else(|| prefix.clone(), |after| key(CHUNK, &[version.as_bytes(), &after.0]));
        self.read(|_, rows| {
            let further = rows.after(&prefix, &start).take(limit).map(|row| address_at(&row?.0, 17));
            let mut chunks = further.collect::<Result<Vec<_>, fjall::Error>>()?;
            if let Some(counted) = rows.get(&key(VERSION, &[version.as_bytes()]))? {
                let Counted { first, .. } = Counted::read(&counted)?;
                if after.is_none_or(|after| after < first) {
                    chunks.insert(chunks.partition_point(|chunk| *chunk < first), first);
                    chunks.truncate(limit);
                }
            }
            Ok(chunks)
        })
    }

    pub(super) fn versions(&mut self, after: Option<VersionId>, limit: usize) -> Result<Vec<VersionId>, CatalogError> {
        let start = after.map_or_else(|| key(VERSION, &[]), |after| key(VERSION, &[after.as_bytes()]));
        self.read(|_, rows| rows.after(&[VERSION], &start).take(limit).map(|row| version_at(&row?.0, 1)).collect())
    }

    /// Marks whose wait is over and whose chunk has no rows. Passes over a bounded number of marks, from where the last call
    /// stopped; at the end it starts over.
    pub(super) fn garbage(&mut self, limit: usize, wait: Duration) -> Result<Vec<Address>, CatalogError> {
        let result = self.look_for_garbage(limit, wait);
        self.guard(result)
    }

    fn look_for_garbage(&mut self, limit: usize, wait: Duration) -> Result<Vec<Address>, fjall::Error> {
        let now = self.now();
        let start = std::mem::take(&mut self.garbage_cursor);
        let front = vec![GARBAGE];
        let rows = &self.rows;
        let behind = rows.after(&front, if start.is_empty() { &front } else { &start });
        // Around the end, up to where it began.
        let around = rows.prefix(&front).take_while(|row| row.as_ref().map_or(true, |(mark, _)| *mark <= start));
        let (mut found, mut stale, mut cursor) = (Vec::new(), Draft::default(), Vec::new());
        for row in behind.chain(around).take(CATALOG_SCAN_ROWS_MAX) {
            let (mark, since) = row?;
            let address = address_at(&mark, 1)?;
            cursor.clone_from(&mark);
            if rows.prefix(&key(REFERENCE, &[&address.0])).next().transpose()?.is_some() {
                stale.remove(mark.into());
                continue;
            }
            let same_run = rows::number(&since, 0)? == self.run;
            let began = if same_run { Duration::from_millis(rows::number(&since, 8)?) } else { Duration::ZERO };
            if now.saturating_sub(began) >= wait {
                found.push(address);
            }
            if found.len() >= limit {
                break;
            }
        }
        self.garbage_cursor = cursor;
        self.draft = stale;
        self.commit_draft()?;
        Ok(found)
    }

    pub(super) fn unreferenced(&mut self, addresses: Vec<Address>) -> Result<Vec<Address>, CatalogError> {
        self.read(|_, rows| {
            let mut without = Vec::new();
            for address in addresses {
                if living_references(rows, &address).next().transpose()?.is_none() {
                    without.push(address);
                }
            }
            Ok(without)
        })
    }
}

fn is_dead(rows: &Rows, version: &VersionId) -> Result<bool, fjall::Error> {
    rows.contains(&key(DEAD, &[version.as_bytes()]))
}

/// In the order of versions, with their capsules, empty where there is none.
fn living_references(
    rows: &Rows,
    address: &Address,
) -> impl Iterator<Item = Result<(VersionId, Vec<u8>), fjall::Error>> {
    rows.prefix(&key(REFERENCE, &[&address.0])).filter_map(move |row| {
        let living = || {
            let (reference, capsule) = row?;
            let version = version_at(&reference, 1 + ADDRESS_BYTES)?;
            Ok((!is_dead(rows, &version)?).then_some((version, capsule)))
        };
        living().transpose()
    })
}
