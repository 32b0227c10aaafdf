//! What an object holds: a function of the run's seed and the object's number.

use std::io::{self, Read, Write};

const PIECE_BYTES: usize = 64 << 10;

/// One object.
#[derive(Debug, Clone, Copy)]
pub struct Object {
    pub seed: u64,
    pub number: u64,
    pub len: u64,
}

impl Object {
    /// Its length is fixed, or anything up to `bytes_max`.
    pub fn new(seed: u64, number: u64, bytes_max: u64, fixed: bool) -> Self {
        let mut object = Self { seed, number, len: bytes_max };
        if !fixed {
            let mut word = [0; 8];
            object.stream(b"length").fill(&mut word);
            object.len = u64::from_le_bytes(word) % (bytes_max + 1);
        }
        object
    }

    fn stream(&self, purpose: &[u8]) -> blake3::OutputReader {
        let mut hasher = blake3::Hasher::new_derive_key("gabion loadgen contents");
        hasher.update(&self.seed.to_le_bytes()).update(&self.number.to_le_bytes()).update(purpose);
        hasher.finalize_xof()
    }

    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut stream = self.stream(b"bytes").take(self.len);
        io::copy(&mut stream, out).map(|_| ())
    }

    /// Where the bytes of `input` begin to differ from this object's, if they do.
    pub fn difference(&self, input: &mut dyn Read) -> io::Result<Option<u64>> {
        let mut expected = self.stream(b"bytes").take(self.len);
        let mut at = 0;
        loop {
            let (mut found, mut wanted) = (Vec::new(), Vec::new());
            input.take(PIECE_BYTES as u64).read_to_end(&mut found)?;
            (&mut expected).take(PIECE_BYTES as u64).read_to_end(&mut wanted)?;
            if found != wanted {
                let same = found.iter().zip(&wanted).take_while(|(found, wanted)| found == wanted).count();
                return Ok(Some(at + same as u64));
            }
            if found.is_empty() {
                return Ok(None);
            }
            at += found.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_a_cut_and_an_excess_are_found_where_they_are() {
        let object = Object::new(7, 3, 200_000, true);
        let mut bytes = Vec::new();
        object.write_to(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 200_000);
        assert_eq!(object.difference(&mut bytes.as_slice()).unwrap(), None);
        assert_eq!(object.difference(&mut &bytes[..150_000]).unwrap(), Some(150_000));
        bytes[123_456] ^= 1;
        assert_eq!(object.difference(&mut bytes.as_slice()).unwrap(), Some(123_456));
        bytes[123_456] ^= 1;
        bytes.push(0);
        assert_eq!(object.difference(&mut bytes.as_slice()).unwrap(), Some(200_000));
    }

    #[test]
    fn objects_differ_by_seed_and_number() {
        let bytes = |seed, number| {
            let mut bytes = Vec::new();
            Object::new(seed, number, 64, true).write_to(&mut bytes).unwrap();
            bytes
        };
        assert_ne!(bytes(1, 1), bytes(1, 2));
        assert_ne!(bytes(1, 1), bytes(2, 1));
    }
}
