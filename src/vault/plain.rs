//! A get on a plain thread, chunk by chunk: for a command that reads a link through a node which must not be able to.
//! The node hands over ciphertext; keys and plaintext stay in the command.

use std::io::Write;
use std::ops::Range;

use zeroize::Zeroizing;

use super::ChunkError;
use super::get::GetError;
use super::tree::check_padding;
use super::walk::{Root, Step, Walk};
use crate::crypto::cipher::{ChunkKey, open_chunk};
use crate::format::Address;

/// Gives the chunk at an address, of a length in bytes; what it returns is verified.
pub type Fetch<'a> = dyn FnMut(&Address, usize) -> Result<Vec<u8>, ChunkError> + 'a;

/// Writes a file, or the wanted range of it, and returns how many bytes that were.
pub fn get_plain(
    root: &Root,
    range: Option<Range<u64>>,
    fetch: &mut Fetch<'_>,
    out: &mut dyn Write,
) -> Result<u64, GetError> {
    let mut walk = Walk::new(root, range)?;
    let range = walk.range();
    loop {
        match walk.step()? {
            Step::Node(node) => {
                let plaintext = fetch_open(fetch, &node.address, &node.key, node.len)?;
                walk.expand(&node, plaintext)?;
            }
            Step::Leaves(run) => {
                for leaf in run {
                    let bytes = fetch_open(fetch, &leaf.address, &leaf.key, leaf.len())?;
                    check_padding(&bytes, leaf.span)?;
                    let wanted = bytes.get(leaf.cut(&range)).unwrap_or_default();
                    out.write_all(wanted).map_err(GetError::output)?;
                }
            }
            Step::End => break,
        }
    }
    out.flush().map_err(GetError::output)?;
    Ok(range.end - range.start)
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
