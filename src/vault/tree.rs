//! File trees without I/O: building one from its leaves, and checking one before it is believed.
//!
//! # Building
//! Entries are pushed in file order. An inner node is handed out as soon as its last child is known; whoever holds the
//! builder seals and stores it and pushes its entry one level up. So a tree of any size needs one open node a level.
//!
//! ```text
//! push(0, leaf) ... --8192nd--> Node{level 1} --seal, store--> push(1, entry) ... --> Node{level 2} ...
//! finish: the lowest level with entries left -> Node, again and again, until a single entry is left: the root
//! ```
//!
//! # Checking
//! The length decides the whole shape (see [`crate::format::tree`]), so nothing in a node is taken on trust: its level
//! and span come from its parent (the root's from the link or name), its byte count and each child's span follow from
//! these, and any difference is an error. Only then are its entries used. An edited length, a node used at another
//! level, and a node that repeats its children to stand for more bytes than it was asked for all fail here, before a
//! byte of the file comes out.
//!
//! Plaintexts of nodes hold keys: they live in [`Zeroizing`] memory, which is never grown in place.

use zerocopy::{FromBytes, IntoBytes};
use zeroize::Zeroizing;

use crate::format::Address;
use crate::format::tree::{TreeEntry, depth_of, full_span_bytes};
use crate::limits::{CHUNK_BYTES_MIN, TREE_DEPTH_MAX, TREE_ENTRY_BYTES, TREE_NODE_BYTES_MAX};

/// Room of a node that has just got its first entry. Most files are small.
const NODE_BYTES_FIRST: usize = 16 * TREE_ENTRY_BYTES;

/// A tree that is not the tree of the file it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("a file of {length} bytes has a tree of depth {expected}, not {found}: the link or name is wrong")]
    Depth { length: u64, expected: u8, found: u8 },
    #[error("tree level {level} with a span of {span} bytes: no such node can exist")]
    Impossible { level: u8, span: u64 },
    #[error("a tree node of level {level} over {span} bytes has {found} bytes of entries instead of {expected}")]
    NodeLength { level: u8, span: u64, expected: usize, found: usize },
    #[error("child {index} of a tree node of level {level} spans {found} bytes instead of {expected}")]
    ChildSpan { level: u8, index: usize, expected: u64, found: u64 },
    #[error("the last chunk goes on after the {span} bytes that it should hold: the link or name is wrong")]
    Padding { span: u64 },
    #[error("bytes {start}..{end} are not inside a file of {length} bytes")]
    Range { start: u64, end: u64, length: u64 },
}

/// Bytes of a leaf's ciphertext, its padding included.
pub fn leaf_bytes(span: usize) -> usize {
    span.max(CHUNK_BYTES_MIN)
}

/// Bytes of the chunk (leaf or inner node) at `level` that stands for `span` bytes of a file.
pub fn chunk_bytes(level: u8, span: u64) -> Result<usize, TreeError> {
    if level > TREE_DEPTH_MAX || span == 0 || span > full_span_bytes(level) {
        return Err(TreeError::Impossible { level, span });
    }
    match level.checked_sub(1) {
        // At most 1 MiB, as just checked.
        None => Ok(leaf_bytes(span as usize)),
        // At most the fanout, for the same reason.
        Some(below) => Ok(span.div_ceil(full_span_bytes(below)) as usize * TREE_ENTRY_BYTES),
    }
}

/// Checks the depth that a link or a name claims.
pub fn check_depth(depth: u8, length: u64) -> Result<(), TreeError> {
    let expected = depth_of(length);
    if depth == expected { Ok(()) } else { Err(TreeError::Depth { length, expected, found: depth }) }
}

/// The entries of an inner node, once all of them are what a node of this level and span must hold.
pub fn check_node(plaintext: &[u8], level: u8, span: u64) -> Result<&[TreeEntry], TreeError> {
    let below = level.checked_sub(1).ok_or(TreeError::Impossible { level, span })?;
    let expected = chunk_bytes(level, span)?;
    let wrong_length = TreeError::NodeLength { level, span, expected, found: plaintext.len() };
    if plaintext.len() != expected {
        return Err(wrong_length);
    }
    let entries = <[TreeEntry]>::ref_from_bytes(plaintext).map_err(|_| wrong_length)?;
    let full = full_span_bytes(below);
    let mut left = span;
    for (index, entry) in entries.iter().enumerate() {
        let expected = left.min(full);
        if entry.span.get() != expected {
            return Err(TreeError::ChildSpan { level, index, expected, found: entry.span.get() });
        }
        left -= expected;
    }
    Ok(entries)
}

/// Checks what follows the file's bytes in a decrypted leaf: nothing but the padding.
pub fn check_padding(leaf: &[u8], span: usize) -> Result<(), TreeError> {
    let padding = leaf.get(span..).unwrap_or_default();
    if padding.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(TreeError::Padding { span: span as u64 }) }
}

/// An inner node that has all its children: to be sealed and stored.
pub struct Node {
    pub level: u8,
    /// File bytes below it.
    pub span: u64,
    pub plaintext: Zeroizing<Vec<u8>>,
}

impl Node {
    /// What its parent holds once it has an address.
    pub fn entry(&self, address: Address, key: [u8; 32]) -> TreeEntry {
        TreeEntry { address, key, span: self.span.into() }
    }
}

/// What is left to do at the end of a file.
pub enum Finish {
    /// Seal and store this, push its entry, and ask again.
    Seal(Node),
    Root {
        entry: TreeEntry,
        depth: u8,
    },
    /// The file has no byte, and its tree no chunk.
    Empty,
}

/// Entries that wait for their node to be full.
#[derive(Default)]
struct OpenNode {
    entries: Zeroizing<Vec<u8>>,
    span: u64,
}

impl OpenNode {
    fn count(&self) -> u64 {
        (self.entries.len() / TREE_ENTRY_BYTES) as u64
    }

    fn push(&mut self, entry: &TreeEntry) {
        if self.entries.len() == self.entries.capacity() {
            self.grow();
        }
        self.entries.extend_from_slice(entry.as_bytes());
        self.span += entry.span.get();
    }

    /// By hand, since a vector that grows leaves the old bytes, with their keys, behind.
    fn grow(&mut self) {
        let capacity = (2 * self.entries.capacity()).clamp(NODE_BYTES_FIRST, TREE_NODE_BYTES_MAX);
        let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
        larger.extend_from_slice(&self.entries);
        self.entries = larger;
    }
}

/// Builds a file's tree from its leaves' entries.
#[derive(Default)]
pub struct TreeBuilder {
    /// By the level of the chunks that the entries point to.
    open: Vec<OpenNode>,
    length: u64,
}

impl TreeBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    /// File bytes of all leaves so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Takes the entry of the next chunk of `level`, in file order; hands out its parent when that is full.
    ///
    /// # Panics
    /// When the chunk cannot follow those before it: the caller's mistake, which would make a tree nobody can read.
    pub fn push(&mut self, level: u8, entry: TreeEntry) -> Option<Node> {
        let span = entry.span.get();
        let full = full_span_bytes(level);
        assert!(level <= TREE_DEPTH_MAX && span > 0 && span <= full, "level {level} with a span of {span} bytes");
        let index = usize::from(level);
        if self.open.len() <= index {
            self.open.resize_with(index + 1, OpenNode::default);
        }
        let open = self.open.get_mut(index)?;
        assert!(open.span == open.count() * full, "a chunk of level {level} follows the file's last one");
        open.push(&entry);
        let is_full = open.entries.len() == TREE_NODE_BYTES_MAX;
        if level == 0 {
            self.length += span;
        }
        if is_full { self.close(level) } else { None }
    }

    /// Call after the last leaf, until it says `Root` or `Empty`.
    pub fn finish(&mut self) -> Finish {
        let mut left = self.open.iter().zip(0u8..).filter(|(open, _)| open.count() > 0);
        let Some((lowest, level)) = left.next() else { return Finish::Empty };
        let is_single = left.next().is_none() && lowest.count() == 1;
        if is_single && let Ok(entry) = TreeEntry::read_from_bytes(&lowest.entries) {
            return Finish::Root { entry, depth: level };
        }
        self.close(level).map_or(Finish::Empty, Finish::Seal)
    }

    /// The parent of what is open at `level`.
    fn close(&mut self, level: u8) -> Option<Node> {
        let OpenNode { entries, span } = std::mem::take(self.open.get_mut(usize::from(level))?);
        Some(Node { level: level + 1, span, plaintext: entries })
    }
}
