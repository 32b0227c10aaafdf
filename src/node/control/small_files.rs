//! A [`ControlRequest::PutSmall`] that is written while its files are read: their bytes go straight to where they are sent
//! from, and one buffer serves many requests. (A buffer for each file, and one for all of them that grows, took a quarter of
//! the time of the command that puts a tree, most of it for memory that it had given back a moment before.)

use super::field::Field;
use super::{ControlRequest, LENGTH_BYTES, PROTOCOL_VERSION, with_length};
use crate::format::Writer;
use crate::format::name::Metadata;

/// Bytes of the length in front of a byte string, and of the count in front of a list.
const COUNT_BYTES: usize = 4;

/// The message so far.
pub struct SmallFiles {
    message: Vec<u8>,
    /// Where the number of files stands.
    count_at: usize,
    count: u32,
}

impl SmallFiles {
    /// `room`: a buffer to write into.
    pub fn new(mut room: Vec<u8>, bucket: &str, no_dedup: bool, no_clobber: bool) -> Self {
        room.clear();
        let mut writer = Writer::appending(room);
        writer.u32(0).u16(PROTOCOL_VERSION);
        ControlRequest::PutSmall { bucket: bucket.to_owned(), no_dedup, no_clobber, files: Vec::new() }
            .write(&mut writer);
        let message = writer.finish();
        let count_at = message.len() - COUNT_BYTES; // the list of files is the last field, and empty
        Self { message, count_at, count: 0 }
    }

    /// Adds a file of `len` bytes, which `read` fills in. After its error the message is as it was.
    pub fn add<E>(
        &mut self,
        key: &str,
        metadata: &Metadata,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let before = self.message.len();
        let mut writer = Writer::appending(std::mem::take(&mut self.message));
        writer.long_bytes(key.as_bytes());
        metadata.write(&mut writer);
        writer.u32(len as u32);
        self.message = writer.finish();
        let contents_at = self.message.len();
        self.message.resize(contents_at + len, 0);
        let outcome = self.message.get_mut(contents_at..).map_or(Ok(()), read);
        match outcome {
            Ok(()) => self.count += 1,
            Err(_) => self.message.truncate(before),
        }
        outcome
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// All that it has so far.
    pub fn bytes(&self) -> usize {
        self.message.len() - LENGTH_BYTES
    }

    /// The whole message, as [`ControlRequest::encode`] gives it.
    pub fn finish(mut self) -> Vec<u8> {
        if let Some(count) =
            self.message.get_mut(self.count_at..).and_then(|rest| rest.first_chunk_mut::<COUNT_BYTES>())
        {
            *count = self.count.to_le_bytes();
        }
        with_length(self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::control::{Bytes, SmallFile};

    fn fill(contents: &[u8]) -> impl FnOnce(&mut [u8]) -> Result<(), ()> {
        |bytes| {
            bytes.copy_from_slice(contents);
            Ok(())
        }
    }

    #[test]
    fn a_message_that_was_written_file_by_file_is_the_request_encoded() {
        let link = Metadata { symlink_target: Some(b"there".to_vec()), mtime_s: -1, ..Metadata::default() };
        let file = |key: &str, metadata: &Metadata, contents: &[u8]| SmallFile {
            key: key.to_owned(),
            metadata: metadata.clone(),
            contents: Bytes(contents.to_vec()),
        };
        let files = vec![
            file("a", &Metadata::default(), b"some bytes"),
            file("a/link", &link, b""),
            file("b", &Metadata::default(), &[7; 5000]),
        ];
        let mut message = SmallFiles::new(vec![1; 100], "bucket", true, false);
        assert!(message.is_empty());
        for SmallFile { key, metadata, contents } in &files {
            message.add(key, metadata, contents.0.len(), fill(&contents.0)).unwrap();
        }
        assert_eq!(message.count(), 3);
        let bytes = message.bytes();
        let message = message.finish();
        assert_eq!(message.len(), bytes + LENGTH_BYTES);
        let request =
            ControlRequest::PutSmall { bucket: "bucket".to_owned(), no_dedup: true, no_clobber: false, files };
        assert_eq!(message, request.encode());
    }

    #[test]
    fn a_file_that_cannot_be_read_leaves_no_trace() {
        let mut message = SmallFiles::new(Vec::new(), "bucket", false, true);
        message.add("a", &Metadata::default(), 3, fill(b"abc")).unwrap();
        let before = message.bytes();
        assert_eq!(message.add("b", &Metadata::default(), 9, |_| Err("unreadable")), Err("unreadable"));
        assert_eq!((message.count(), message.bytes()), (1, before));
        message.add("c", &Metadata::default(), 0, fill(b"")).unwrap();
        let Ok(ControlRequest::PutSmall { files, .. }) =
            ControlRequest::decode(message.finish().get(LENGTH_BYTES..).unwrap())
        else {
            panic!("another request")
        };
        assert_eq!(files.iter().map(|file| file.key.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    }
}
