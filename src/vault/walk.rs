//! Which chunks a read needs, in file order, without I/O.
//!
//! A [`Walk`] goes depth first through the part of a tree that a range of the file touches. It asks for one inner node
//! at a time, is given the node's plaintext, checks it ([`check_node`]), and hands out the leaves below a node of level
//! 1 as one [`LeafRun`]: at most 8,192 leaves, whose entries stay in the one allocation they came in.
//!
//! ```text
//! step -> Node(inner)  --> the caller fetches and opens it, and gives it to `expand` (or gives up)
//!      -> Leaves(run)
//!      -> End
//! ```
//! Memory: one node a level.

use std::ops::Range;

use zerocopy::FromBytes;
use zeroize::Zeroizing;

use super::tree::{TreeError, check_depth, check_node, chunk_bytes, leaf_bytes};
use crate::crypto::cipher::ChunkKey;
use crate::format::Address;
use crate::format::tree::{TreeEntry, full_span_bytes};
use crate::limits::{CHUNK_BYTES_MAX, TREE_ENTRY_BYTES};

/// All that is needed to read a file.
#[derive(Clone, Debug)]
pub struct Root {
    pub address: Address,
    pub key: ChunkKey,
    pub depth: u8,
    pub length: u64,
}

/// An inner node to be fetched.
pub struct Inner {
    pub address: Address,
    pub key: ChunkKey,
    pub level: u8,
    /// File bytes below it, and where they begin.
    pub span: u64,
    pub start: u64,
    /// Bytes of its chunk.
    pub len: usize,
}

/// A leaf to be fetched.
pub struct Leaf {
    pub address: Address,
    pub key: ChunkKey,
    /// File bytes in it, and where they begin.
    pub span: usize,
    pub start: u64,
}

impl Leaf {
    /// Bytes of its chunk.
    pub fn len(&self) -> usize {
        leaf_bytes(self.span)
    }

    pub fn is_empty(&self) -> bool {
        self.span == 0
    }

    /// The part of the leaf's bytes that lies in `range` of the file.
    pub fn cut(&self, range: &Range<u64>) -> Range<usize> {
        let clip = |position: u64| position.saturating_sub(self.start).min(self.span as u64) as usize;
        clip(range.start)..clip(range.end)
    }
}

/// Neighbouring leaves, not yet handed out.
pub struct LeafRun {
    entries: Zeroizing<Vec<u8>>,
    /// Indices of entries.
    left: Range<usize>,
    /// Where the file bytes of entry 0 begin.
    start: u64,
}

impl LeafRun {
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }
}

impl Iterator for LeafRun {
    type Item = Leaf;

    fn next(&mut self) -> Option<Leaf> {
        let index = self.left.next()?;
        let entry = entry_at(&self.entries, index)?;
        Some(Leaf {
            address: entry.address,
            key: ChunkKey::from_bytes(entry.key),
            span: entry.span.get() as usize,
            start: self.start + index as u64 * CHUNK_BYTES_MAX as u64,
        })
    }
}

fn entry_at(entries: &[u8], index: usize) -> Option<&TreeEntry> {
    let bytes = entries.get(index * TREE_ENTRY_BYTES..(index + 1) * TREE_ENTRY_BYTES)?;
    TreeEntry::ref_from_bytes(bytes).ok()
}

pub enum Step {
    Node(Inner),
    Leaves(LeafRun),
    End,
}

/// An expanded node above level 1.
struct Frame {
    entries: Zeroizing<Vec<u8>>,
    left: Range<usize>,
    start: u64,
    /// Of its children.
    level: u8,
}

impl Frame {
    fn next(&mut self) -> Option<Result<Inner, TreeError>> {
        let index = self.left.next()?;
        let entry = entry_at(&self.entries, index)?;
        let start = self.start + index as u64 * full_span_bytes(self.level);
        Some(inner(entry.address, ChunkKey::from_bytes(entry.key), self.level, entry.span.get(), start))
    }
}

fn inner(address: Address, key: ChunkKey, level: u8, span: u64, start: u64) -> Result<Inner, TreeError> {
    Ok(Inner { address, key, level, span, start, len: chunk_bytes(level, span)? })
}

pub struct Walk {
    range: Range<u64>,
    root: Option<Inner>,
    frames: Vec<Frame>,
    run: Option<LeafRun>,
}

impl Walk {
    /// Through all of the file, or the part of it that is wanted.
    pub fn new(root: &Root, range: Option<Range<u64>>) -> Result<Walk, TreeError> {
        check_depth(root.depth, root.length)?;
        let Range { start, end } = range.unwrap_or(0..root.length);
        if start > end || end > root.length {
            return Err(TreeError::Range { start, end, length: root.length });
        }
        let mut walk = Walk { range: start..end, root: None, frames: Vec::new(), run: None };
        if start < end {
            if root.depth > 0 {
                walk.root = Some(inner(root.address, root.key.clone(), root.depth, root.length, 0)?);
            } else {
                walk.run = Some(single_leaf(root));
            }
        }
        Ok(walk)
    }

    /// The bytes of the file that are wanted.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Leaves that the wanted bytes touch.
    pub fn leaf_count(&self) -> u64 {
        let chunk = CHUNK_BYTES_MAX as u64;
        if self.range.is_empty() { 0 } else { self.range.end.div_ceil(chunk) - self.range.start / chunk }
    }

    /// What comes next. A node that was handed out and not given to [`Self::expand`] is passed over.
    pub fn step(&mut self) -> Result<Step, TreeError> {
        if let Some(run) = self.run.take() {
            return Ok(Step::Leaves(run));
        }
        if let Some(root) = self.root.take() {
            return Ok(Step::Node(root));
        }
        while let Some(frame) = self.frames.last_mut() {
            if let Some(child) = frame.next() {
                return child.map(Step::Node);
            }
            self.frames.pop();
        }
        Ok(Step::End)
    }

    /// Goes into a node: `plaintext` is what its verified chunk decrypts to.
    pub fn expand(&mut self, node: &Inner, plaintext: Zeroizing<Vec<u8>>) -> Result<(), TreeError> {
        let count = check_node(&plaintext, node.level, node.span)?.len();
        let level = node.level - 1;
        let full = full_span_bytes(level);
        let from = self.range.start.saturating_sub(node.start) / full;
        let to = self.range.end.saturating_sub(node.start).div_ceil(full).min(count as u64);
        let left = from as usize..to as usize;
        if level == 0 {
            self.run = Some(LeafRun { entries: plaintext, left, start: node.start });
        } else {
            self.frames.push(Frame { entries: plaintext, left, start: node.start, level });
        }
        Ok(())
    }
}

/// A file of at most one chunk is its own root.
fn single_leaf(root: &Root) -> LeafRun {
    use zerocopy::IntoBytes;
    let entry = TreeEntry { address: root.address, key: *root.key.as_bytes(), span: root.length.into() };
    LeafRun { entries: Zeroizing::new(entry.as_bytes().to_vec()), left: 0..1, start: 0 }
}
