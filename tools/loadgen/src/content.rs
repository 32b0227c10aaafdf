//! What an object holds: a function of the run's seed, the object's number and its generation (how often it was
//! written), so that nothing has to be kept to know what must come back.
//!
//! Little-endian word `i` of a content is splitmix64 of `start + i * WEYL`, `start` mixed from seed, number and
//! generation. Any offset can be computed by itself, a range is as cheap as a whole, and a few GiB/s a core are checked
//! without a copy.

use crate::dice::{Dice, WEYL, mix, mix_all};

/// Lengths of objects: any between the two, evenly on a logarithmic scale, so that a span from 1 byte to 1 MiB has as
/// many objects of tens of bytes as of tens of KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub bytes_min: u64,
    pub bytes_max: u64,
}

impl Sizes {
    pub fn exactly(bytes: u64) -> Self {
        Self { bytes_min: bytes, bytes_max: bytes }
    }

    pub fn draw(&self, dice: &mut Dice) -> u64 {
        if self.bytes_min == self.bytes_max {
            return self.bytes_min;
        }
        let (low, high) = ((self.bytes_min as f64 + 1.0).ln(), (self.bytes_max as f64 + 2.0).ln());
        let bytes = (low + (high - low) * dice.unit()).exp() - 1.0;
        (bytes as u64).clamp(self.bytes_min, self.bytes_max)
    }
}

/// All contents of a run.
#[derive(Debug, Clone, Copy)]
pub struct Contents {
    pub seed: u64,
    pub sizes: Sizes,
}

impl Contents {
    pub fn of(&self, number: u64, generation: u32) -> Content {
        let words = [self.seed, number, u64::from(generation)];
        let mut dice = Dice::new(&words);
        Content { start: mix_all(&[dice.word(), 1]), len: self.sizes.draw(&mut dice) }
    }
}

/// The bytes of one generation of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    start: u64,
    pub len: u64,
}

impl Content {
    fn word(&self, index: u64) -> [u8; 8] {
        mix(self.start.wrapping_add(index.wrapping_mul(WEYL))).to_le_bytes()
    }

    /// Fills `out` with the bytes from `offset` on, whatever the length.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        let (mut index, skip) = (offset / 8, (offset % 8) as usize);
        let mut rest = out;
        if skip > 0 {
            let word = self.word(index);
            let tail = word.get(skip..).unwrap_or_default();
            let (first, others) = rest.split_at_mut(tail.len().min(rest.len()));
            first.iter_mut().zip(tail).for_each(|(byte, wanted)| *byte = *wanted);
            rest = others;
            index += 1;
        }
        let (words, last) = rest.as_chunks_mut::<8>();
        for word in words {
            *word = self.word(index);
            index += 1;
        }
        last.iter_mut().zip(self.word(index)).for_each(|(byte, wanted)| *byte = wanted);
    }

    /// Where `found`, read at `offset`, begins to differ, counted from the content's first byte.
    pub fn difference(&self, offset: u64, found: &[u8]) -> Option<u64> {
        let skip = offset.next_multiple_of(8) - offset;
        let (head, body) = found.split_at((skip as usize).min(found.len()));
        if let Some(at) = self.difference_in_few(offset, head) {
            return Some(at);
        }
        let (words, tail) = body.as_chunks::<8>();
        let mut index = (offset + skip) / 8;
        for word in words {
            if *word != self.word(index) {
                return self.difference_in_few(index * 8, word);
            }
            index += 1;
        }
        self.difference_in_few(index * 8, tail)
    }

    /// The same for up to 8 bytes.
    fn difference_in_few(&self, offset: u64, found: &[u8]) -> Option<u64> {
        let mut wanted = [0; 8];
        let wanted = wanted.get_mut(..found.len())?;
        self.fill(offset, wanted);
        let same = found.iter().zip(wanted.iter()).take_while(|(found, wanted)| found == wanted).count();
        (same < found.len()).then_some(offset + same as u64)
    }
}

/// The check of one read, piece by piece, against all contents that it may return.
///
/// Mostly that is one. Where a write runs at the same time it is the old one or the new one, but not a mixture.
#[derive(Debug)]
pub struct Check {
    candidates: Vec<Content>,
    first: u64,
    /// Bytes to come, at most; of whole contents their length.
    wanted: Option<u64>,
    seen: u64,
    /// How far the candidate that held out longest was right.
    right_upto: u64,
}

impl Check {
    /// Of whole contents.
    pub fn whole(candidates: Vec<Content>) -> Self {
        Self { candidates, first: 0, wanted: None, seen: 0, right_upto: 0 }
    }

    /// Of `len` bytes from `first` on.
    pub fn range(candidates: Vec<Content>, first: u64, len: u64) -> Self {
        Self { candidates, first, wanted: Some(len), seen: 0, right_upto: first }
    }

    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The next bytes. An error is the offset in the content of the first byte that no candidate has there.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), u64> {
        let (offset, wanted, seen) = (self.first + self.seen, self.wanted, self.seen + piece.len() as u64);
        let right_upto = &mut self.right_upto;
        let first = self.first;
        self.candidates.retain(|content| {
            let end = first + wanted.unwrap_or(content.len);
            let difference = content.difference(offset, piece);
            let difference = difference.filter(|at| *at < end).or_else(|| (first + seen > end).then_some(end));
            if let Some(at) = difference {
                *right_upto = at.max(*right_upto);
            }
            difference.is_none()
        });
        self.seen = seen;
        if self.candidates.is_empty() { Err(self.right_upto) } else { Ok(()) }
    }

    /// The end of the input. An error is the offset at which bytes are missing.
    pub fn finish(&self) -> Result<(), u64> {
        let is_complete = |content: &Content| self.seen == self.wanted.unwrap_or(content.len);
        if self.candidates.iter().any(is_complete) { Ok(()) } else { Err(self.first + self.seen) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(number: u64, generation: u32, len: u64) -> (Content, Vec<u8>) {
        let content = Contents { seed: 7, sizes: Sizes::exactly(len) }.of(number, generation);
        let mut bytes = vec![0; len as usize];
        content.fill(0, &mut bytes);
        (content, bytes)
    }

    #[test]
    fn any_part_is_what_the_whole_has_there() {
        let (content, whole) = content(3, 1, 100);
        for first in 0..100 {
            for end in first..=100 {
                let mut part = vec![0; end - first];
                content.fill(first as u64, &mut part);
                assert_eq!(part, whole[first..end], "{first}..{end}");
                assert_eq!(content.difference(first as u64, &part), None);
            }
        }
    }

    #[test]
    fn one_flipped_bit_at_any_offset_is_found_where_it_is() {
        let (content, mut bytes) = content(3, 1, 1003);
        for at in 0..bytes.len() {
            bytes[at] ^= 1 << (at % 8);
            for piece in [1, 7, 64, 333, 1003] {
                let mut check = Check::whole(vec![content]);
                let found = bytes.chunks(piece).find_map(|piece| check.feed(piece).err());
                assert_eq!(found, Some(at as u64), "in pieces of {piece}");
            }
            bytes[at] ^= 1 << (at % 8);
        }
    }

    #[test]
    fn a_cut_and_an_excess_are_found_where_they_are() {
        let (content, mut bytes) = content(0, 1, 200);
        for end in 0..200 {
            let mut check = Check::whole(vec![content]);
            assert_eq!(check.feed(&bytes[..end]), Ok(()));
            assert_eq!(check.finish(), Err(end as u64));
        }
        bytes.resize(208, 0);
        content.fill(0, &mut bytes);
        for end in 201..208 {
            assert_eq!(Check::whole(vec![content]).feed(&bytes[..end]), Err(200));
        }
        let mut check = Check::whole(vec![content]);
        assert_eq!((check.feed(&bytes[..200]), check.finish()), (Ok(()), Ok(())));
    }

    #[test]
    fn a_range_is_checked_at_its_place_and_for_its_length() {
        let (content, bytes) = content(0, 1, 300);
        let check = |from: usize, upto: usize| {
            let mut check = Check::range(vec![content], 33, 100);
            check.feed(&bytes[from..upto]).and_then(|()| check.finish())
        };
        assert_eq!(check(33, 133), Ok(()));
        assert_eq!(check(33, 132), Err(132));
        assert_eq!(check(33, 134), Err(133));
        assert_eq!(check(32, 132), Err(33));
    }

    #[test]
    fn of_two_generations_each_is_right_and_a_mixture_is_wrong() {
        let ((old, old_bytes), (new, new_bytes)) = (content(5, 1, 500), content(5, 2, 500));
        for bytes in [&old_bytes, &new_bytes] {
            let mut check = Check::whole(vec![old, new]);
            assert_eq!(bytes.chunks(99).find_map(|piece| check.feed(piece).err()), None);
            assert_eq!(check.finish(), Ok(()));
        }
        let mut check = Check::whole(vec![old, new]);
        assert_eq!(check.feed(&old_bytes[..250]), Ok(()));
        assert_eq!(check.feed(&new_bytes[250..]), Err(250));
    }

    #[test]
    fn contents_differ_by_seed_number_and_generation() {
        let of = |seed, number, generation| {
            let mut bytes = [0; 64];
            Contents { seed, sizes: Sizes::exactly(64) }.of(number, generation).fill(0, &mut bytes);
            bytes
        };
        assert_eq!(of(1, 1, 1), of(1, 1, 1));
        assert_ne!(of(1, 1, 1), of(2, 1, 1));
        assert_ne!(of(1, 1, 1), of(1, 2, 1));
        assert_ne!(of(1, 1, 1), of(1, 1, 2));
    }

    #[test]
    fn lengths_reach_both_ends_and_favour_neither() {
        let lengths = |bytes_max| {
            let contents = Contents { seed: 1, sizes: Sizes { bytes_min: 1, bytes_max } };
            (0..20_000).map(|number| contents.of(number, 1).len).collect::<Vec<u64>>()
        };
        let few = lengths(16);
        assert_eq!((few.iter().min(), few.iter().max()), (Some(&1), Some(&16)));
        let lengths = lengths(4096);
        assert!(lengths.iter().all(|len| (1..=4096).contains(len)));
        let small = lengths.iter().filter(|len| **len < 64).count();
        assert!((8_500..11_500).contains(&small), "{small} of 20,000 are below the geometric middle");
    }
}
