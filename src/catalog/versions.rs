//! Minting versions, and how old one may be when its first name record arrives.
//!
//! A version's first name record is accepted only while the version is younger than a day; a put that takes longer mints a new
//! version and refers to its chunks again. Without this bound nobody could ever conclude that a nameless version will stay
//! nameless. For the same reason a version from the future is refused (beyond the skew that two clocks may have): its bound
//! would last longer than a day.

use std::time::Duration;

use rand::{CryptoRng, RngExt};

use crate::format::VersionId;
use crate::limits::{CLOCK_SKEW_MAX, VERSION_AGE_MAX};

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VersionRefused {
    #[error(
        "version {version:?} is {age_s} s old, and a name is accepted only up to {} s: the put has to mint a new one",
        VERSION_AGE_MAX.as_secs()
    )]
    TooOld { version: VersionId, age_s: u64 },
    #[error(
        "version {version:?} was minted {ahead_s} s in the future (at most {} s are accepted): set both machines' clocks by NTP",
        CLOCK_SKEW_MAX.as_secs()
    )]
    Future { version: VersionId, ahead_s: u64 },
}

/// A new version of a name in the bucket with this slot. The random part must not be guessed or repeated, hence the kind of
/// generator. Seconds end in 2106, with the format's version.
pub fn mint(bucket_slot: u32, now_s: u64, rng: &mut impl CryptoRng) -> VersionId {
    VersionId::new(bucket_slot, u32::try_from(now_s).unwrap_or(u32::MAX), rng.random())
}

/// Whether an owner may accept the first name record of this version now.
pub fn check_age(version: &VersionId, now_s: u64) -> Result<(), VersionRefused> {
    let minted_s = u64::from(version.minted_s());
    let age_s = now_s.saturating_sub(minted_s);
    if Duration::from_secs(age_s) >= VERSION_AGE_MAX {
        return Err(VersionRefused::TooOld { version: *version, age_s });
    }
    let ahead_s = minted_s.saturating_sub(now_s);
    if Duration::from_secs(ahead_s) > CLOCK_SKEW_MAX {
        return Err(VersionRefused::Future { version: *version, ahead_s });
    }
    Ok(())
}

/// A put that has come this far should mint a new version before it writes its name: half of the bound is left for the rest.
pub fn should_mint_again(version: &VersionId, now_s: u64) -> bool {
    Duration::from_secs(now_s.saturating_sub(u64::from(version.minted_s()))) >= VERSION_AGE_MAX / 2
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn version_is_accepted_for_a_day_and_refused_from_then_on() {
        let version = mint(0xdead_beef, 1_000_000, &mut StdRng::seed_from_u64(1));
        assert_eq!((version.slot(), version.minted_s(), version.partition()), (0xdead_beef, 1_000_000, 0xdead));
        assert_eq!(check_age(&version, 1_000_000), Ok(()));
        assert_eq!(check_age(&version, 1_086_399), Ok(()));
        assert_eq!(check_age(&version, 1_086_400), Err(VersionRefused::TooOld { version, age_s: 86_400 }));
        assert!(!should_mint_again(&version, 1_043_199) && should_mint_again(&version, 1_043_200));
    }

    #[test]
    fn version_from_beyond_the_clock_skew_is_refused() {
        let version = mint(0, 1_000_900, &mut StdRng::seed_from_u64(2));
        assert_eq!(check_age(&version, 1_000_000), Ok(()));
        assert_eq!(check_age(&version, 999_999), Err(VersionRefused::Future { version, ahead_s: 901 }));
    }

    #[test]
    fn no_two_versions_of_one_second_are_alike() {
        let mut rng = StdRng::seed_from_u64(3);
        let minted: std::collections::HashSet<VersionId> = (0..1000).map(|_| mint(1, 1, &mut rng)).collect();
        assert_eq!(minted.len(), 1000);
    }
}
