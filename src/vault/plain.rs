//! A get on a plain thread, chunk by chunk: for a command that reads a link through a node which must not be able to.
//! The node hands over ciphertext; keys and plaintext stay in the command.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use zeroize::Zeroizing;

use super::ChunkError;
use super::get::{GetError, GetResult};
use super::tree::check_padding;
use super::walk::{Leaf, Root, Step, Walk};
use crate::crypto::cipher::{ChunkKey, apply_keystream, open_chunk};
use crate::crypto::hash::address_of;
use crate::format::Address;

/// Gives the chunk at an address, of a length in bytes; what it returns is verified.
pub type Fetch<'a> = dyn FnMut(&Address, usize) -> Result<Vec<u8>, ChunkError> + 'a;

/// Where the bytes go, in order.
pub enum PlainOutput<'a> {
    Stream(&'a mut dyn Write),
    /// From position 0 on; a leaf that an earlier get left there is not fetched again. Open for reading too.
    File(&'a File),
}

impl PlainOutput<'_> {
    /// Whether the output has this leaf already: it encrypts, with its key, to its address.
    fn has(&self, leaf: &Leaf, position: u64) -> bool {
        let PlainOutput::File(file) = self else { return false };
        let mut chunk = Zeroizing::new(vec![0; leaf.len()]);
        let Some(there) = chunk.get_mut(..leaf.span) else { return false };
        // What cannot be read is written anew, and that says what is wrong.
        if file.read_exact_at(there, position).is_err() {
            return false;
        }
        apply_keystream(&mut chunk, &leaf.key);
        address_of(&chunk) == leaf.address
    }

    fn write(&mut self, bytes: &[u8], position: u64) -> std::io::Result<()> {
        match self {
            PlainOutput::Stream(out) => out.write_all(bytes),
            PlainOutput::File(file) => file.write_all_at(bytes, position),
        }
    }

    fn finish(&mut self, len: u64) -> std::io::Result<()> {
        match self {
            PlainOutput::Stream(out) => out.flush(),
            PlainOutput::File(file) if file.metadata()?.len() > len => file.set_len(len),
            PlainOutput::File(_) => Ok(()),
        }
    }
}

/// Writes a file, or the wanted range of it; tells `progress` how many bytes are there.
pub fn get_plain(
    root: &Root,
    range: Option<Range<u64>>,
    fetch: &mut Fetch<'_>,
    mut out: PlainOutput<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<GetResult, GetError> {
    let mut walk = Walk::new(root, range)?;
    let range = walk.range();
    let mut result = GetResult { bytes_written: 0, bytes_resumed: 0 };
    loop {
        match walk.step()? {
            Step::Node(node) => {
                let plaintext = fetch_open(fetch, &node.address, &node.key, node.len)?;
                walk.expand(&node, plaintext)?;
            }
            Step::Leaves(run) => {
                for leaf in run {
                    let wanted = leaf.cut(&range);
                    let position = result.bytes_written + result.bytes_resumed;
                    // A leaf of which only a part is wanted cannot be recognised.
                    if wanted.len() == leaf.span && out.has(&leaf, position) {
                        result.bytes_resumed += wanted.len() as u64;
                    } else {
                        let bytes = fetch_open(fetch, &leaf.address, &leaf.key, leaf.len())?;
                        check_padding(&bytes, leaf.span)?;
                        let wanted = bytes.get(wanted).unwrap_or_default();
                        out.write(wanted, position).map_err(GetError::output)?;
                        result.bytes_written += wanted.len() as u64;
                    }
                    progress(result.bytes_written + result.bytes_resumed);
                }
            }
            Step::End => break,
        }
    }
    out.finish(range.end - range.start).map_err(GetError::output)?;
    Ok(result)
}

fn fetch_open(
    fetch: &mut Fetch<'_>,
    address: &Address,
    key: &ChunkKey,
    len: usize,
) -> Result<Zeroizing<Vec<u8>>, GetError> {
    let mut chunk = Zeroizing::new(fetch(address, len)?);
    if chunk.len() != len || open_chunk(&mut chunk, address, key).is_err() {
        return Err(ChunkError::Damaged { address: *address }.into());
    }
    Ok(chunk)
}
