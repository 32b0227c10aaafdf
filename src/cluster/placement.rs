//! Partition -> owners, by weighted rendezvous hashing.
//!
//! Every node draws, for every partition, a number `h` in (0, 1) from a hash of its placement id and the partition; its
//! distance is `-ln(h) / weight`, and the nodes with the smallest distances own the partition. A distance so made is
//! exponentially distributed with rate `weight`, so a node wins a partition with probability `weight / sum of weights`
//! (the logarithmic method: Schindelhauer and Schomaker, "Weighted distributed hash tables", SPAA 2005; Resch, "New
//! hashing algorithms for data storage", SDC 2015). A node that joins takes partitions only to itself, a node that leaves
//! gives up only its own; nothing moves between the others.
//!
//! Rules:
//! - One owner per zone while zones last: the best node of each zone first, in order of distance; when there are fewer
//!   zones than replicas, the remaining places go to the best of the others.
//! - Every node must compute the same table, on every platform. So no `f64::ln`, whose last bits differ between
//!   implementations: the logarithm is taken in integers (Q32, by a table that is itself made by integer squaring), and
//!   the only floating-point operations are one conversion and one division, which IEEE 754 fixes to the last bit. Base 2
//!   serves as well as base e: it scales all distances alike. Equal distances are ordered by placement id.
//! - The hash is a mixer, not a cryptographic function: it must spread, and there are 65,536 draws for each node. What it
//!   mixes is BLAKE3 of the placement id. (Whoever may choose a placement id could look for one that wins a partition under any
//!   public hash; ids come with certificates, from invites that the authority signed.)
//! - A node of weight 0 owns nothing, unless all are 0: then all are equal.

#![allow(clippy::indexing_slicing)] // table lookups with masked indexes, and ranges that `build` fixes

use crate::format::{NodeId, PlacementId};
use crate::limits::{NODES_MAX, PARTITIONS, REPLICAS_MAX};

const REPLICAS: usize = REPLICAS_MAX as usize;

/// A node that may own partitions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub node: NodeId,
    pub placement: PlacementId,
    /// Capacity in bytes.
    pub weight: u64,
    /// Nodes of one zone fail together.
    pub zone: String,
}

/// The owners of all partitions, best first, as indexes into the candidates that it was built from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlacementTable {
    owners: Vec<u16>,
    per_partition: usize,
}

#[derive(Clone, Copy)]
struct Drawn {
    distance: f64,
    node: u16,
    zone: u16,
}

/// What a candidate's draws are made from.
struct Lot {
    seed: [u64; 2],
    weight: f64,
    zone: u16,
    node: u16,
}

/// The nearest so far of one partition, ascending. Offers come in order of placement ids, so an equal distance does not
/// displace an earlier one.
struct Best {
    drawn: [Drawn; REPLICAS],
    len: usize,
    wanted: usize,
}

impl Best {
    fn new(wanted: usize) -> Self {
        Self { drawn: [Drawn { distance: f64::INFINITY, node: u16::MAX, zone: u16::MAX }; REPLICAS], len: 0, wanted }
    }

    fn drawn(&self) -> &[Drawn] {
        &self.drawn[..self.len]
    }

    /// Keeps the nearest of each zone. A zone that was pushed out can only come back with a nearer node, which is
    /// offered like any other, so one pass is enough.
    fn offer_for_zone(&mut self, offer: Drawn) {
        if self.len == self.wanted && self.drawn().last().is_none_or(|last| offer.distance >= last.distance) {
            return;
        }
        if let Some(at) = self.drawn().iter().position(|drawn| drawn.zone == offer.zone) {
            if offer.distance >= self.drawn[at].distance {
                return;
            }
            self.drawn.copy_within(at + 1..self.len, at);
            self.len -= 1;
        }
        self.insert(offer, 0);
    }

    /// Gives the places that zones alone could not fill to the nearest of the other nodes, behind those that have one.
    fn fill_up(&mut self, offers: impl Iterator<Item = Drawn>) {
        let first = self.len;
        for offer in offers {
            if !self.drawn[..first].iter().any(|drawn| drawn.node == offer.node) {
                self.insert(offer, first);
            }
        }
    }

    fn insert(&mut self, offer: Drawn, first: usize) {
        let at = first + self.drawn[first..self.len].partition_point(|drawn| drawn.distance <= offer.distance);
        if at >= self.wanted {
            return;
        }
        let end = self.len.min(self.wanted - 1);
        self.drawn.copy_within(at..end, at + 1);
        self.drawn[at] = offer;
        self.len = end + 1;
    }
}

impl PlacementTable {
    /// At most [`NODES_MAX`] candidates and [`REPLICAS_MAX`] replicas: a layout beyond that does not decode.
    pub fn build(candidates: &[Candidate], replicas: u8) -> Self {
        assert!(candidates.len() <= NODES_MAX, "more than {NODES_MAX} candidates");
        assert!((1..=REPLICAS_MAX).contains(&replicas), "replicas outside 1..={REPLICAS_MAX}");
        let (lots, zones) = lots(candidates);
        let per_partition = usize::from(replicas).min(lots.len());
        let mut owners = Vec::with_capacity(PARTITIONS * per_partition);
        for partition in 0..=u16::MAX {
            let mut best = Best::new(per_partition);
            for lot in &lots {
                best.offer_for_zone(lot.draw(partition));
            }
            if zones < per_partition {
                best.fill_up(lots.iter().map(|lot| lot.draw(partition)));
            }
            owners.extend(best.drawn().iter().map(|drawn| drawn.node));
        }
        Self { owners, per_partition }
    }

    /// Best first; as many as there are replicas, or nodes if they are fewer.
    pub fn owners(&self, partition: u16) -> &[u16] {
        let start = usize::from(partition) * self.per_partition;
        &self.owners[start..start + self.per_partition]
    }

    pub fn owners_per_partition(&self) -> usize {
        self.per_partition
    }
}

/// Sorted by placement id, so that the table does not depend on the order of the candidates; and the number of zones.
fn lots(candidates: &[Candidate]) -> (Vec<Lot>, usize) {
    let weightless = candidates.iter().all(|candidate| candidate.weight == 0);
    let mut zones: Vec<&str> = Vec::new();
    let mut lots = Vec::with_capacity(candidates.len());
    for (node, candidate) in candidates.iter().enumerate() {
        let weight = if weightless { 1 } else { candidate.weight };
        if weight == 0 {
            continue;
        }
        let zone = zones.iter().position(|zone| *zone == candidate.zone).unwrap_or_else(|| {
            zones.push(&candidate.zone);
            zones.len() - 1
        });
        lots.push(Lot {
            seed: seed_of(&candidate.placement),
            weight: weight as f64,
            zone: zone as u16,
            node: node as u16,
        });
    }
    lots.sort_by_key(|lot| {
        let candidate = &candidates[usize::from(lot.node)];
        (candidate.placement, candidate.node)
    });
    (lots, zones.len())
}

fn seed_of(placement: &PlacementId) -> [u64; 2] {
    let hash = *blake3::hash(&placement.0).as_bytes();
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| hash[at + byte]));
    [word(0), word(8)]
}

impl Lot {
    fn draw(&self, partition: u16) -> Drawn {
        let hash = mix(mix(self.seed[0] ^ u64::from(partition)).wrapping_add(self.seed[1]));
        Drawn { distance: minus_log2(hash) as f64 / self.weight, node: self.node, zone: self.zone }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014), "variant 13" of Stafford.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

const LOG_BITS: u32 = 10;
const LOG_TABLE: [u64; (1 << LOG_BITS) + 1] = log_table();

/// log2(1 + i / 1024) in Q32, by squaring: each squaring of a number in [1, 2) yields the next binary digit.
const fn log_table() -> [u64; (1 << LOG_BITS) + 1] {
    let mut table = [0u64; (1 << LOG_BITS) + 1];
    let mut i = 0;
    while i < 1 << LOG_BITS {
        let mut number: u128 = ((1u128 << LOG_BITS) + i as u128) << (62 - LOG_BITS);
        let mut digits = 0u64;
        let mut digit = 0;
        while digit < 32 {
            number = (number * number) >> 62;
            digits <<= 1;
            if number >> 63 != 0 {
                number >>= 1;
                digits |= 1;
            }
            digit += 1;
        }
        table[i] = digits;
        i += 1;
    }
    table[1 << LOG_BITS] = 1 << 32;
    table
}

/// -log2(hash / 2^64) in Q32, never 0; the table's values are joined by straight lines (error below 2e-7).
fn minus_log2(hash: u64) -> u64 {
    let hash = hash | 1;
    let zeros = hash.leading_zeros();
    let mantissa = (hash << zeros) << 1;
    let at = (mantissa >> (64 - LOG_BITS)) as usize;
    let rest = (mantissa << LOG_BITS) >> 32;
    let (low, high) = (LOG_TABLE[at], LOG_TABLE[at + 1]);
    let fraction = low + (((high - low) * rest) >> 32);
    (((u64::from(zeros) + 1) << 32) - fraction).max(1)
}

#[cfg(test)]
mod tests {
    use super::minus_log2;

    #[test]
    fn integer_logarithm_agrees_with_the_real_one() {
        let mut hash = u64::MAX;
        while hash > 1_000_003 {
            let real = 64.0 - (hash as f64).log2();
            let ours = minus_log2(hash) as f64 / (1u64 << 32) as f64;
            assert!((real - ours).abs() < 2e-7, "{hash:#x}: {ours} instead of {real}");
            hash = hash / 1_000_003 * 999_983 - 1;
            hash -= hash >> 9;
        }
    }

    #[test]
    fn distance_is_never_zero_and_falls_as_the_hash_rises() {
        assert!(minus_log2(u64::MAX) > 0);
        assert_eq!(minus_log2(0), minus_log2(1));
        assert!((1..64).all(|bit| minus_log2(1 << bit) < minus_log2((1 << bit) - 1)));
    }
}
