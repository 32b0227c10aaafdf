//! A link read on a storage node: the node hands out ciphertext, the command checks and decrypts it.

use std::ops::Range;

use super::context::{Connection, Context, failure_of, unanswered};
use super::exit::{Exit, Failure};
use super::get::{Fetched, GetChoices};
use super::interrupt;
use super::progress::Progress;
use crate::crypto::cipher::ChunkKey;
use crate::format::Address;
use crate::format::link::Link;
use crate::node::control::client::ClientError;
use crate::node::control::{ControlEvent, ControlRequest, OUTPUT_CLOSED};
use crate::vault::{ChunkError, GetError, GetResult, PlainOutput, Root, get_plain};

/// Writes the file, or a range of it, to `out`; `progress` is of the whole of it.
pub fn read(
    context: &Context,
    link: &Link,
    out: PlainOutput<'_>,
    choices: GetChoices,
    progress: &mut Progress,
) -> Result<Fetched, Failure> {
    if let Some((first, last)) = choices.range
        && first >= link.length
    {
        let length = link.length;
        return Err(Failure::usage(format!("the range {first}-{last} is outside of a file of {length} bytes")));
    }
    let root =
        Root { address: link.root, key: ChunkKey::from_bytes(link.root_key), depth: link.depth, length: link.length };
    let range = choices.range.map(|(first, last)| clamp(first, last, link.length));
    let total = range.as_ref().map_or(link.length, |range| range.end - range.start);
    let mut chunks = Chunks { context, remote: choices.remote, connection: None, failure: None };
    let mut told = |done| progress.update(done, Some(total));
    let result = get_plain(&root, range, &mut |address, len| chunks.fetch(address, len), out, &mut told);
    match (result, chunks.failure) {
        (Ok(GetResult { bytes_written, bytes_resumed }), _) => {
            Ok(Fetched { content: link.root, bytes: bytes_written, bytes_resumed })
        }
        (Err(_), Some(failure)) => Err(failure),
        (Err(error), None) => Err(failure_of_get(&error, link)),
    }
}

/// `first` and `last` inclusive, cut to the file.
pub fn clamp(first: u64, last: u64, length: u64) -> Range<u64> {
    let first = first.min(length);
    first..last.saturating_add(1).clamp(first, length)
}

fn failure_of_get(error: &GetError, link: &Link) -> Failure {
    let exit = match error {
        GetError::OutputClosed => return Failure { code: OUTPUT_CLOSED, message: String::new() },
        GetError::Tree(_) | GetError::Chunk(ChunkError::Damaged { .. }) => Exit::Integrity,
        GetError::Chunk(ChunkError::NotFound { .. }) => Exit::NotFound,
        GetError::Cancelled => Exit::Interrupted,
        _ => Exit::Other,
    };
    Failure::new(exit, error.to_string()).at(link.content_id())
}

/// Ciphertext from the node, over one connection for as long as the node keeps it.
struct Chunks<'a> {
    context: &'a Context,
    remote: bool,
    connection: Option<Connection>,
    /// What went wrong, in the words of the command.
    failure: Option<Failure>,
}

impl Chunks<'_> {
    fn fetch(&mut self, address: &Address, len: usize) -> Result<Vec<u8>, ChunkError> {
        self.try_fetch(address, len).map_err(|failure| {
            let reason = failure.message.clone();
            self.failure = Some(failure);
            ChunkError::Other { reason }
        })
    }

    fn try_fetch(&mut self, address: &Address, len: usize) -> Result<Vec<u8>, Failure> {
        if interrupt::requested() {
            return Err(Failure::interrupted("interrupted"));
        }
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let request = ControlRequest::FetchChunk { address: *address, len, remote: self.remote };
        if let Some(mut connection) = self.connection.take() {
            match ask(&mut connection, &request) {
                // The node closes after an answer when it wants to.
                Err(ClientError::Lost { .. }) => {}
                result => return self.keep(connection, result),
            }
        }
        let mut connection = self.context.connect()?;
        let result = ask(&mut connection, &request);
        self.keep(connection, result)
    }

    fn keep(
        &mut self,
        connection: Connection,
        result: Result<Option<Vec<u8>>, ClientError>,
    ) -> Result<Vec<u8>, Failure> {
        let payload = result.map_err(failure_of)?.ok_or_else(unanswered)?;
        self.connection = Some(connection);
        Ok(payload)
    }
}

fn ask(connection: &mut Connection, request: &ControlRequest) -> Result<Option<Vec<u8>>, ClientError> {
    connection.client.send(request, None)?;
    match connection.client.next_event()? {
        ControlEvent::Chunk { payload } => Ok(Some(payload.0)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_file() {
        assert_eq!(clamp(0, 0, 10), 0..1);
        assert_eq!(clamp(5, u64::MAX, 10), 5..10);
        assert_eq!(clamp(10, 20, 10), 10..10);
        assert_eq!(clamp(30, 40, 10), 10..10);
        assert_eq!(clamp(0, 5, 0), 0..0);
    }
}
