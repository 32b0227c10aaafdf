//! The cache's ledger: which chunks lie in the store only because somebody here read them, and which of them goes next.
//!
//! Cached chunks are ordinary records flagged as cached: they count as held by nobody, and a restart finds them again.
//! What goes when the limit is passed is decided by S3-FIFO (the crate `quick_cache`): a flash of one-time reads does
//! not push out what is read again and again.

use quick_cache::sync::Cache as Ledger;
use quick_cache::{DefaultHashBuilder, Lifecycle, Weighter};

use crate::format::Address;
use crate::limits::CHUNK_BYTES_MAX;

pub struct Cache {
    ledger: Ledger<Address, u32, Bytes, DefaultHashBuilder, Evictions>,
    bytes_max: u64,
}

/// A cached chunk weighs its bytes.
#[derive(Clone)]
struct Bytes;

impl Weighter<Address, u32> for Bytes {
    fn weight(&self, _address: &Address, len: &u32) -> u64 {
        u64::from(*len)
    }
}

/// Collects what an insertion pushed out.
#[derive(Clone)]
struct Evictions;

impl Lifecycle<Address, u32> for Evictions {
    type RequestState = Vec<(Address, u32)>;

    fn begin_request(&self) -> Vec<(Address, u32)> {
        Vec::new()
    }

    fn on_evict(&self, evicted: &mut Vec<(Address, u32)>, address: Address, len: u32) {
        evicted.push((address, len));
    }
}

impl Cache {
    pub fn new(bytes_max: u64) -> Self {
        let items = (bytes_max / CHUNK_BYTES_MAX as u64).clamp(16, 1 << 20) as usize;
        let ledger = Ledger::with(items, bytes_max, Bytes, DefaultHashBuilder::default(), Evictions);
        Self { ledger, bytes_max }
    }

    /// Whether a chunk of `len` bytes may be cached at all.
    pub fn takes(&self, len: usize) -> bool {
        len as u64 <= self.bytes_max / 4
    }

    /// Counts a chunk that is now in the store, and says which others have to leave it.
    pub fn insert(&self, address: Address, len: usize) -> Vec<(Address, u32)> {
        self.ledger.insert_with_lifecycle(address, len as u32)
    }

    /// A chunk that should have left and did not. What it pushes out in turn stays for the next insertion to find.
    pub fn count_again(&self, address: Address, len: u32) {
        self.ledger.insert(address, len);
    }

    /// Notes that a cached chunk was read.
    pub fn touch(&self, address: &Address) {
        self.ledger.get(address);
    }

    /// The chunk has left the store, or is now held for good.
    pub fn forget(&self, address: &Address) {
        self.ledger.remove(address);
    }

    pub fn bytes(&self) -> u64 {
        self.ledger.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> Address {
        let mut address = Address::ZERO;
        address.0[..4].copy_from_slice(&number.to_be_bytes());
        address
    }

    #[test]
    fn what_passes_the_limit_pushes_others_out() {
        let cache = Cache::new(64 << 20);
        let mut held = std::collections::HashSet::new();
        for number in 0..256 {
            held.insert(address(number));
            for (evicted, _) in cache.insert(address(number), CHUNK_BYTES_MAX) {
                assert!(held.remove(&evicted), "evicted what was not there");
            }
            assert!(cache.bytes() <= 64 << 20, "{} bytes cached", cache.bytes());
            assert_eq!(cache.bytes(), held.len() as u64 * CHUNK_BYTES_MAX as u64, "ledger and store agree");
        }
        assert!(held.len() > 32, "the cache is used: {} of 64 chunks", held.len());
    }
}
