//! BLAKE3 of many short messages at once.
//!
//! BLAKE3 cuts a message into blocks of 1 KiB, hashes them side by side and joins their values in a tree. A processor with
//! AVX-512 hashes sixteen side by side, but a message of 4 KiB has four of them. So blocks with the same place in their
//! messages are hashed together here, then pairs of values with the same height in their trees:
//!
//! ```text
//! messages   a0 a1 a2 a3    b0 b1 b2 b3    c0 c1 c2     (c2 is short)
//! hashed     a0 b0 c0 | a1 b1 c1 | a2 b2 | a3 b3 | c2 by itself
//! joined     a01 a23 b01 b23 c01 | then the roots: a0123 b0123 c012
//! ```
//! What the specification calls a chunk is called a block here, since a chunk is something else in this program.
//!
//! The vectors of AVX2 and AVX-512 for two and for four inputs read up to 48 bytes behind the end of the first, and of the
//! third: in the crate another input always lies there, here may be the end of all mapped memory. So they are given eight
//! inputs, or one.
//!
//! The vectors are those of the `blake3` crate. Its interface to them is public, but it promises nothing of it: an update
//! may not compile, and the tests here compare with what it does promise. The gain is worth that: 1,390 ns a message of
//! 4 KiB one by one, 720 ns sixteen together (AMD EPYC Zen 4), and a small file is hashed twice.

use blake3::hazmat::HasherExt;
use blake3::platform::Platform;
use blake3::{BLOCK_LEN, CHUNK_LEN, IncrementCounter, OUT_LEN};
use zeroize::Zeroize;

/// Of a block, of two values, of a message.
type Value = [u8; OUT_LEN];

/// What is hashed when there is no key.
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

// The specification's flags.
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

/// Inputs that fill the widest vectors.
pub(super) const LANES: usize = 16;
/// So many inputs, and none behind their ends, are read by vectors that hold as many or more. So is a single one.
const LANES_EXACT: usize = 8;

/// `blake3::hash` of each message.
pub(super) fn hashes(messages: &[&[u8]]) -> Vec<[u8; 32]> {
    Hashing { platform: Platform::detect(), key: None, words: IV, flags: 0 }.all(messages)
}

/// `blake3::keyed_hash` of each message. They may be keys: nothing of them is left in freed memory.
pub(in crate::crypto) fn keyed_hashes(key: &[u8; 32], messages: &[&[u8]]) -> Vec<[u8; 32]> {
    let mut words = [0; 8];
    words.iter_mut().zip(key.as_chunks().0).for_each(|(word, bytes)| *word = u32::from_le_bytes(*bytes));
    Hashing { platform: Platform::detect(), key: Some(key), words, flags: KEYED_HASH }.all(messages)
}

struct Hashing<'a> {
    platform: Platform,
    key: Option<&'a [u8; 32]>,
    words: [u32; 8],
    flags: u8,
}

impl Hashing<'_> {
    fn all(&self, messages: &[&[u8]]) -> Vec<Value> {
        let mut values = Vec::with_capacity(messages.len());
        messages.chunks(LANES).for_each(|some| self.some(some, &mut values));
        values
    }

    fn some(&self, messages: &[&[u8]], values: &mut Vec<Value>) {
        let mut trees: Vec<Vec<Value>> = messages.iter().map(|message| self.short(message)).collect();
        let longest = messages.iter().map(|message| message.len() / CHUNK_LEN).max().unwrap_or(0);
        for number in 0..longest {
            let (mut of, mut blocks) = (Vec::with_capacity(LANES), Vec::with_capacity(LANES));
            for (tree, message) in trees.iter_mut().zip(messages).filter(|(_, message)| message.len() > CHUNK_LEN) {
                if let Some(block) = message.as_chunks::<CHUNK_LEN>().0.get(number) {
                    blocks.push(block);
                    of.push(tree);
                }
            }
            let of_blocks = self.side_by_side(&blocks, number as u64, 0, [CHUNK_START, CHUNK_END]);
            // The last block stands there already, where it is short.
            of.into_iter().zip(of_blocks).for_each(|(tree, value)| tree.insert(number, value));
        }
        while trees.iter().any(|tree| tree.len() > 1) {
            self.join(&mut trees, |height| height > 2, PARENT);
            self.join(&mut trees, |height| height == 2, PARENT | ROOT);
        }
        values.extend(trees.iter().flatten());
        if self.key.is_some() {
            trees.zeroize();
        }
    }

    /// The value of a message that is one block; else of its last block, where that is short; else none.
    fn short(&self, message: &[u8]) -> Vec<Value> {
        let mut tree = Vec::with_capacity(message.len().div_ceil(CHUNK_LEN).max(1));
        let mut hasher = self.key.map_or_else(blake3::Hasher::new, blake3::Hasher::new_keyed);
        let (whole, rest) = message.as_chunks::<CHUNK_LEN>();
        if message.len() <= CHUNK_LEN {
            tree.push(hasher.update(message).finalize().into());
        } else if !rest.is_empty() {
            hasher.set_input_offset(whole.as_flattened().len() as u64);
            tree.push(hasher.update(rest).finalize_non_root());
        }
        tree
    }

    /// One step up in the trees with so many values: each pair becomes one value, an odd one waits.
    fn join(&self, trees: &mut [Vec<Value>], is_high: impl Fn(usize) -> bool, flags: u8) {
        let pairs: Vec<&[u8; BLOCK_LEN]> = trees
            .iter()
            .filter(|tree| is_high(tree.len()))
            .flat_map(|tree| tree.as_flattened().as_chunks().0)
            .collect();
        let mut joined = Vec::with_capacity(pairs.len());
        pairs.chunks(LANES).for_each(|pairs| joined.extend(self.side_by_side(pairs, 0, flags, [0, 0])));
        let mut values = joined.iter().copied();
        for tree in trees.iter_mut().filter(|tree| is_high(tree.len())) {
            let odd = (tree.len() % 2 == 1).then(|| tree.last().copied()).flatten();
            let count = tree.len() / 2;
            tree.clear();
            tree.extend(values.by_ref().take(count).chain(odd));
        }
        if self.key.is_some() {
            joined.zeroize();
        }
    }

    /// At most [`LANES`] values.
    fn side_by_side<const N: usize>(
        &self,
        inputs: &[&[u8; N]],
        number: u64,
        flags: u8,
        [first, last]: [u8; 2],
    ) -> impl Iterator<Item = Value> + use<N> {
        let count = inputs.len();
        let mut places = [&[0; N]; LANES];
        let inputs = self.filled_up(inputs, &mut places);
        let mut out = [[0; OUT_LEN]; LANES];
        let flags = self.flags | flags;
        let all_alike = IncrementCounter::No;
        let room = out.as_flattened_mut();
        self.platform.hash_many(inputs, &self.words, number, all_alike, flags, first, last, room);
        out.into_iter().take(count)
    }

    /// The same inputs, the last of them as often as it takes that nothing behind any of them is read.
    fn filled_up<'a, const N: usize>(
        &self,
        inputs: &'a [&'a [u8; N]],
        places: &'a mut [&'a [u8; N]; LANES],
    ) -> &'a [&'a [u8; N]] {
        let has_wide_vectors = self.platform.simd_degree() >= LANES_EXACT;
        match inputs.last() {
            Some(last) if has_wide_vectors && inputs.len() % LANES_EXACT > 1 => {
                places.fill(last);
                places.iter_mut().zip(inputs).for_each(|(place, input)| *place = input);
                places.get(..inputs.len().next_multiple_of(LANES_EXACT)).unwrap_or(inputs)
            }
            _ => inputs,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::io::guarded::Guarded;

    const KEY: [u8; 32] = *b"a key of thirty-two bytes, no so";

    fn message(len: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
        bytes
    }

    fn check(messages: &[Vec<u8>]) {
        let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        let one_by_one = |hash: &dyn Fn(&[u8]) -> blake3::Hash| {
            messages.iter().map(|message| *hash(message).as_bytes()).collect::<Vec<_>>()
        };
        let lengths = messages.iter().map(|message| message.len()).collect::<Vec<_>>();
        assert_eq!(hashes(&messages), one_by_one(&blake3::hash), "lengths {lengths:?}");
        let keyed = one_by_one(&|message| blake3::keyed_hash(&KEY, message));
        assert_eq!(keyed_hashes(&KEY, &messages), keyed, "lengths {lengths:?}");
    }

    #[test]
    fn messages_of_one_length_are_hashed_as_one_by_one() {
        for len in [0, 1, 32, 1023, 1024, 1025, 2047, 2048, 2049, 3072, 4095, 4096, 4097, 5120, 7169, 16_384, 65_519] {
            for count in [1, 2, 15, 16, 17, 40] {
                check(&(0..count).map(|number| message(len, number)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn messages_of_any_lengths_are_hashed_as_one_by_one() {
        check(&[]);
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..200 {
            let longest = [100, 3000, 5000, 20_000][rng.random_range(0..4)];
            let lengths = (0..rng.random_range(1..40)).map(|_| rng.random_range(0..=longest)).collect::<Vec<_>>();
            check(&lengths.into_iter().map(|len| message(len, len as u64)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_byte_behind_a_message_is_read() {
        #[cfg(target_arch = "x86_64")]
        let platforms = [Platform::sse2(), Platform::sse41(), Platform::avx2(), Platform::avx512()];
        #[cfg(not(target_arch = "x86_64"))]
        let platforms = [Some(Platform::detect())];
        for platform in platforms.into_iter().flatten() {
            for len in [64, 1024, 2048, 3072, 4096, 5000] {
                for count in 1..=LANES as u64 {
                    let pairs: Vec<_> = (0..count).map(|seed| Guarded::new(&message(BLOCK_LEN, seed))).collect();
                    let pairs: Vec<_> = pairs.iter().map(|pair| pair.as_slice().as_array().expect("a block")).collect();
                    let hashing = Hashing { platform, key: None, words: IV, flags: 0 };
                    let joined = hashing.side_by_side::<BLOCK_LEN>(&pairs, 0, PARENT, [0, 0]).count();
                    assert_eq!(joined, pairs.len());
                    let messages: Vec<_> = (0..count).map(|seed| Guarded::new(&message(len, seed))).collect();
                    let messages: Vec<&[u8]> = messages.iter().map(Guarded::as_slice).collect();
                    let one_by_one: Vec<_> = messages.iter().map(|message| *blake3::hash(message).as_bytes()).collect();
                    assert_eq!(hashing.all(&messages), one_by_one, "{count} of {len} by {platform:?}");
                }
            }
        }
    }
}
