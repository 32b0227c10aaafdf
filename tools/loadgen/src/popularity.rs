//! Which object an operation is for: all alike, or few of them much more often than the others.
//!
//! Zipf's law with skew s: the object of rank k (from 1) is drawn with a probability proportional to 1 / k^s. Skew 0 is
//! the uniform choice; 0.99 is what YCSB uses. Drawn by binary search in the exact distribution, 8 bytes an object.

use crate::dice::Dice;

#[derive(Debug)]
pub struct Popularity {
    objects: u64,
    /// Up to and including this rank, not normalized; empty for the uniform choice.
    cumulated: Vec<f64>,
}

impl Popularity {
    pub fn new(objects: u64, skew: f64) -> Self {
        let mut sum = 0.0;
        let ranks = 1..=if skew > 0.0 { objects } else { 0 };
        let cumulated = ranks
            .map(|rank| {
                sum += (rank as f64).powf(-skew);
                sum
            })
            .collect();
        Self { objects, cumulated }
    }

    pub fn objects(&self) -> u64 {
        self.objects
    }

    /// The number of an object, the most popular one is 0.
    pub fn draw(&self, dice: &mut Dice) -> u64 {
        match self.cumulated.last() {
            None => dice.below(self.objects),
            Some(sum) => {
                let point = dice.unit() * sum;
                (self.cumulated.partition_point(|upto| *upto <= point) as u64).min(self.objects.saturating_sub(1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 200_000;

    fn shares(objects: u64, skew: f64) -> Vec<f64> {
        let popularity = Popularity::new(objects, skew);
        let mut dice = Dice::new(&[11]);
        let mut counts = vec![0u32; objects as usize];
        for _ in 0..DRAWS {
            counts[popularity.draw(&mut dice) as usize] += 1;
        }
        counts.iter().map(|count| f64::from(*count) / f64::from(DRAWS)).collect()
    }

    /// Five standard deviations of a count, as a share.
    fn tolerance(share: f64) -> f64 {
        5.0 * (share * (1.0 - share) / f64::from(DRAWS)).sqrt()
    }

    #[test]
    fn each_rank_is_drawn_as_often_as_zipf_says() {
        for skew in [0.5, 0.99, 1.5] {
            let sum: f64 = (1..=100).map(|rank| f64::from(rank).powf(-skew)).sum();
            for (index, found) in shares(100, skew).iter().enumerate() {
                let wanted = (index as f64 + 1.0).powf(-skew) / sum;
                assert!(
                    (found - wanted).abs() <= tolerance(wanted),
                    "skew {skew}, rank {index}: {found}, not {wanted}"
                );
            }
        }
    }

    #[test]
    fn no_skew_draws_all_alike() {
        for found in shares(50, 0.0) {
            assert!((found - 0.02).abs() <= tolerance(0.02), "{found}");
        }
    }

    #[test]
    fn one_object_is_always_the_one() {
        assert_eq!(shares(1, 0.0), [1.0]);
        assert_eq!(shares(1, 2.0), [1.0]);
    }
}
