//! Numbers that look random and are a function of the seed: what is drawn for operation 17 does not depend on which
//! thread draws it, nor on what was drawn before.

/// The odd constant of splitmix64's counter (2^64 / golden ratio).
pub const WEYL: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finalizer of splitmix64 (Vigna): one counter in, one well-mixed word out.
#[inline]
pub fn mix(counter: u64) -> u64 {
    let mut word = counter;
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// One word out of several, in this order.
pub fn mix_all(words: &[u64]) -> u64 {
    words.iter().fold(0, |mixed, word| mix((mixed ^ word).wrapping_add(WEYL)))
}

/// A stream of draws.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(words: &[u64]) -> Self {
        Self(mix_all(words))
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(WEYL);
        mix(self.0)
    }

    /// In `0..1`, of 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In `0..limit`; 0 when the limit is 0. (Multiply and shift: the bias is below 2^-64 times the limit.)
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(limit)) >> 64) as u64
    }

    /// True in this many of 100 cases.
    pub fn percent(&mut self, share: u32) -> bool {
        self.below(100) < u64::from(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_a_function_of_the_seed_and_spread_evenly() {
        let draw = |seed: u64| {
            let mut dice = Dice::new(&[seed, 3]);
            (0..10_000).map(|_| dice.below(10)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        for value in 0..10 {
            let count = draw(1).iter().filter(|drawn| **drawn == value).count();
            assert!((850..1150).contains(&count), "{value} came {count} times of 10,000");
        }
        assert!((0..1000).all(|seed| (0.0..1.0).contains(&Dice::new(&[seed]).unit())));
        assert_eq!(Dice::new(&[1]).below(0), 0);
    }
}
