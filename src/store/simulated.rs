//! A disk that keeps what was written apart from what was synced, for the tests.
//!
//! - Operations take a random number of turns, so that they overlap and end in any order.
//! - [`SimulatedDisk::crash`] yields the disk as a power cut would leave it: of each write that was not synced, nothing,
//!   everything or any of its 512-byte sectors; allocations, punches and directory changes likewise.
//! - A sync covers the writes that had returned before it was submitted, and nothing else.
//! - Faults by plan: the n-th write or sync fails (a failed sync drops what was dirty for good), reads of damaged places
//!   fail, space runs out.
//! - It panics when a block of a file is written twice, across crashes too, or when a write is not made of blocks.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::rc::Rc;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::disk::{Disk, DiskFile};
use crate::io::{Buffer, SharedBuffer};

const SECTOR: usize = 512;
const BLOCK: usize = 4096;

#[derive(Clone)]
enum Content {
    Write { offset: usize, bytes: Vec<u8> },
    Grow(usize),
    Punch { offset: usize, len: usize },
}

#[derive(Clone)]
struct Change {
    id: u64,
    returned: bool,
    content: Content,
}

#[derive(Clone, Default)]
struct Inode {
    visible: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<Change>,
    written: HashSet<u64>,
    unreadable: HashSet<u64>,
}

#[derive(Clone)]
enum NameChange {
    Create(String, u64),
    Remove(String),
    Rename(String, String),
}

/// What goes wrong, and when. Numbers count down from the next operation; 1 is the next.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    pub fail_write: Option<u64>,
    pub fail_sync: Option<u64>,
}

type CrashHook = (u64, Box<dyn FnOnce(SimulatedDisk)>);

struct State {
    random: SmallRng,
    inodes: HashMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    next_id: u64,
    free: u64,
    faults: Faults,
    syncs: u64,
    crash_at: Option<CrashHook>,
}

#[derive(Clone)]
pub(crate) struct SimulatedDisk(Rc<RefCell<State>>);

#[derive(Clone)]
pub(crate) struct SimulatedFile {
    disk: SimulatedDisk,
    inode: u64,
    writable: bool,
}

fn apply_name(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Create(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

fn apply_content(bytes: &mut Vec<u8>, content: &Content, mut sector_lands: impl FnMut() -> bool) {
    match content {
        Content::Grow(len) => bytes.resize(bytes.len().max(*len), 0),
        Content::Punch { offset, len } => {
            let end = (offset + len).min(bytes.len());
            bytes[(*offset).min(end)..end].fill(0);
        }
        Content::Write { offset, bytes: new } => {
            for (number, sector) in new.chunks(SECTOR).enumerate() {
                if sector_lands() {
                    let at = offset + number * SECTOR;
                    if bytes.len() < at + sector.len() {
                        bytes.resize(at + sector.len(), 0);
                    }
                    bytes[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
    }
}

impl SimulatedDisk {
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(State {
            random: SmallRng::seed_from_u64(seed),
            inodes: HashMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            next_id: 1,
            free: 1 << 40,
            faults: Faults::default(),
            syncs: 0,
            crash_at: None,
        })))
    }

    /// The disk after a power cut at this moment.
    pub fn crash(&self, seed: u64) -> SimulatedDisk {
        let state = self.0.borrow();
        let mut random = SmallRng::seed_from_u64(seed);
        let mut names = state.durable_names.clone();
        for change in &state.name_changes {
            if random.random_bool(0.5) {
                apply_name(&mut names, change);
            }
        }
        let mut inodes = HashMap::new();
        let mut sorted: Vec<_> = state.inodes.iter().collect();
        sorted.sort_by_key(|(id, _)| **id);
        for (id, inode) in sorted {
            let mut bytes = inode.durable.clone();
            for change in &inode.changes {
                match random.random_range(0..3) {
                    0 => {}
                    1 => apply_content(&mut bytes, &change.content, || true),
                    _ => apply_content(&mut bytes, &change.content, || random.random_bool(0.5)),
                }
            }
            // What lies behind the end that survived is no part of the file any more: it is new when it grows again.
            let blocks = bytes.len().div_ceil(BLOCK) as u64;
            let survivor = Inode {
                visible: bytes.clone(),
                durable: bytes,
                changes: Vec::new(),
                written: inode.written.iter().copied().filter(|block| *block < blocks).collect(),
                unreadable: inode.unreadable.clone(),
            };
            inodes.insert(*id, survivor);
        }
        let after = SimulatedDisk::new(random.random());
        {
            let mut new = after.0.borrow_mut();
            new.inodes = inodes;
            new.durable_names = names.clone();
            new.names = names;
            new.next_id = state.next_id;
            new.free = state.free;
        }
        after
    }

    /// Hands the disk as it is after a power cut at the n-th operation from now.
    pub fn crash_at(&self, operation: u64, hook: impl FnOnce(SimulatedDisk) + 'static) {
        self.0.borrow_mut().crash_at = Some((operation, Box::new(hook)));
    }

    pub fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    pub fn set_free(&self, bytes: u64) {
        self.0.borrow_mut().free = bytes;
    }

    pub fn syncs(&self) -> u64 {
        self.0.borrow().syncs
    }

    pub fn names(&self) -> Vec<String> {
        self.0.borrow().names.keys().cloned().collect()
    }

    /// The bytes of a file, to look at and to damage.
    pub fn edit<T>(&self, name: &str, change: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut state = self.0.borrow_mut();
        let id = state.names[name];
        let inode = state.inodes.get_mut(&id).unwrap();
        let result = change(&mut inode.visible);
        inode.durable = inode.visible.clone();
        inode.changes.clear();
        result
    }

    /// Makes a file that nobody wrote.
    pub fn plant(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.0.borrow_mut();
        let id = state.next_id;
        state.next_id += 1;
        state.inodes.insert(id, Inode { visible: bytes.clone(), durable: bytes, ..Inode::default() });
        state.names.insert(name.to_owned(), id);
        state.durable_names.insert(name.to_owned(), id);
    }

    /// Removes a file as a person would, for good.
    pub fn delete(&self, name: &str) {
        let mut state = self.0.borrow_mut();
        state.names.remove(name);
        state.durable_names.remove(name);
    }

    /// Reads of this block fail from now on.
    pub fn make_unreadable(&self, name: &str, offset: u64) {
        let mut state = self.0.borrow_mut();
        let id = state.names[name];
        state.inodes.get_mut(&id).unwrap().unreadable.insert(offset / BLOCK as u64);
    }

    /// Reads of this file succeed again.
    pub fn make_readable(&self, name: &str) {
        let mut state = self.0.borrow_mut();
        let id = state.names[name];
        state.inodes.get_mut(&id).unwrap().unreadable.clear();
    }

    async fn turn(&self) {
        let turns = {
            let mut state = self.0.borrow_mut();
            state.random.random_range(0..4)
        };
        let hook = {
            let mut state = self.0.borrow_mut();
            match state.crash_at.take() {
                Some((1, hook)) => Some((hook, state.random.random::<u64>())),
                Some((left, hook)) => {
                    state.crash_at = Some((left - 1, hook));
                    None
                }
                None => None,
            }
        };
        if let Some((hook, seed)) = hook {
            hook(self.crash(seed));
        }
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }

    fn file(&self, inode: u64, writable: bool) -> SimulatedFile {
        SimulatedFile { disk: self.clone(), inode, writable }
    }
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

impl Disk for SimulatedDisk {
    type File = SimulatedFile;

    async fn create(&self, name: &str) -> io::Result<SimulatedFile> {
        self.turn().await;
        let mut state = self.0.borrow_mut();
        if state.names.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, name.to_owned()));
        }
        let id = state.next_id;
        state.next_id += 1;
        state.inodes.insert(id, Inode::default());
        state.names.insert(name.to_owned(), id);
        state.name_changes.push(NameChange::Create(name.to_owned(), id));
        drop(state);
        Ok(self.file(id, true))
    }

    async fn open(&self, name: &str, writable: bool) -> io::Result<SimulatedFile> {
        self.turn().await;
        let id = self.0.borrow().names.get(name).copied().ok_or_else(|| not_found(name))?;
        Ok(self.file(id, writable))
    }

    async fn open_direct(&self, name: &str) -> io::Result<SimulatedFile> {
        self.open(name, false).await
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.turn().await;
        let mut state = self.0.borrow_mut();
        state.names.remove(name).ok_or_else(|| not_found(name))?;
        state.name_changes.push(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.turn().await;
        let mut state = self.0.borrow_mut();
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        apply_name(&mut state.names, &change);
        state.name_changes.push(change);
        Ok(())
    }

    async fn sync_directory(&self) -> io::Result<()> {
        let count = self.0.borrow().name_changes.len();
        self.turn().await;
        let mut state = self.0.borrow_mut();
        let synced: Vec<_> = {
            let count = count.min(state.name_changes.len());
            state.name_changes.drain(..count).collect()
        };
        let state = &mut *state;
        synced.iter().for_each(|change| apply_name(&mut state.durable_names, change));
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.0.borrow().free)
    }
}

impl SimulatedFile {
    fn with<T>(&self, act: impl FnOnce(&mut Inode) -> T) -> T {
        act(self.disk.0.borrow_mut().inodes.get_mut(&self.inode).unwrap())
    }

    fn begin(&self, content: Content) -> u64 {
        let id = {
            let mut state = self.disk.0.borrow_mut();
            state.next_id += 1;
            state.next_id
        };
        self.with(|inode| inode.changes.push(Change { id, returned: false, content }));
        id
    }

    fn end(&self, id: u64) {
        self.with(|inode| {
            let content = inode.changes.iter_mut().find(|change| change.id == id).map(|change| {
                change.returned = true;
                change.content.clone()
            });
            // A sync that failed meanwhile has dropped it: then only the readers of the cache still see it.
            if let Some(content) = content {
                apply_content(&mut inode.visible, &content, || true);
            }
        });
    }

    fn fault(&self, which: impl FnOnce(&mut Faults) -> &mut Option<u64>) -> bool {
        let mut state = self.disk.0.borrow_mut();
        let left = which(&mut state.faults);
        match left {
            Some(1) => {
                *left = None;
                true
            }
            Some(count) => {
                *count -= 1;
                false
            }
            None => false,
        }
    }

    async fn change(&self, content: Content) {
        let id = self.begin(content);
        self.disk.turn().await;
        self.end(id);
    }

    async fn sync(&self) -> io::Result<()> {
        let covered: HashSet<u64> =
            self.with(|inode| inode.changes.iter().filter(|change| change.returned).map(|change| change.id).collect());
        self.disk.turn().await;
        self.disk.0.borrow_mut().syncs += 1;
        let fails = self.fault(|faults| &mut faults.fail_sync);
        self.with(|inode| {
            let (synced, rest): (Vec<_>, Vec<_>) =
                std::mem::take(&mut inode.changes).into_iter().partition(|change| covered.contains(&change.id));
            inode.changes = rest;
            if fails {
                return Err(io::Error::other("simulated: the sync failed and the dirty data is gone"));
            }
            synced.iter().for_each(|change| apply_content(&mut inode.durable, &change.content, || true));
            Ok(())
        })
    }
}

impl DiskFile for SimulatedFile {
    async fn read_at(&self, mut buffer: Buffer, range: Range<usize>, offset: u64) -> (io::Result<usize>, Buffer) {
        self.disk.turn().await;
        let read = self.with(|inode| {
            let start = (offset as usize).min(inode.visible.len());
            let end = (start + range.len()).min(inode.visible.len());
            let mut blocks = (start / BLOCK) as u64..=(end.saturating_sub(1).max(start) / BLOCK) as u64;
            if blocks.any(|block| inode.unreadable.contains(&block)) {
                return Err(io::Error::from_raw_os_error(5));
            }
            buffer.as_mut_slice()[range.start..range.start + end - start].copy_from_slice(&inode.visible[start..end]);
            Ok(end - start)
        });
        (read, buffer)
    }

    async fn write_at(&self, buffer: SharedBuffer, range: Range<usize>, offset: u64) -> io::Result<()> {
        assert!(self.writable, "a write through a descriptor for reading");
        let aligned = [range.start, range.end, offset as usize].iter().all(|number| number.is_multiple_of(BLOCK));
        assert!(aligned, "a write that is not made of blocks: {range:?} at {offset}");
        let blocks = offset / BLOCK as u64..(offset + range.len() as u64) / BLOCK as u64;
        self.with(|inode| {
            for block in blocks {
                assert!(inode.written.insert(block), "block {block} is written twice");
            }
        });
        let bytes = buffer.as_slice()[range].to_vec();
        let id = self.begin(Content::Write { offset: offset as usize, bytes });
        self.disk.turn().await;
        if self.fault(|faults| &mut faults.fail_write) {
            // Some of it may have reached the disk: it stays a change that never returned.
            return Err(io::Error::from_raw_os_error(5));
        }
        self.end(id);
        Ok(())
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.sync().await
    }

    async fn sync_all(&self) -> io::Result<()> {
        self.sync().await
    }

    async fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        {
            let mut state = self.disk.0.borrow_mut();
            if len > state.free {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            state.free -= len;
        }
        self.change(Content::Grow((offset + len) as usize)).await;
        Ok(())
    }

    async fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(self.writable, "a punch through a descriptor for reading");
        self.change(Content::Punch { offset: offset as usize, len: len as usize }).await;
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.with(|inode| inode.visible.len() as u64))
    }

    /// Every other block-megabyte is: both ways of reading are tried.
    fn is_cached(&self, offset: u64, _len: usize) -> bool {
        (offset >> 20).is_multiple_of(2)
    }
}
