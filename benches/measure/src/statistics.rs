//! The median and quartiles of repeated measurements.

/// The median and quartiles of a sample, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quartiles {
    /// The median.
    pub median: f64,
    /// The lower quartile.
    pub low: f64,
    /// The upper quartile.
    pub high: f64,
    /// The number of measurements.
    pub count: usize,
}

impl Quartiles {
    /// Computes the quartiles, or returns `None` for an empty sample.
    pub fn of(seconds: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = seconds.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let quantile_at = |fraction: f64| quantile(&sorted, fraction);
        Some(Self {
            median: quantile_at(0.5)?,
            low: quantile_at(0.25)?,
            high: quantile_at(0.75)?,
            count: sorted.len(),
        })
    }

    /// Returns half the interquartile range, as a fraction of the median.
    pub fn relative_spread(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.median
    }
}

/// Interpolates linearly between the two nearest measurements.
fn quantile(sorted: &[f64], fraction: f64) -> Option<f64> {
    let position = fraction * sorted.len().checked_sub(1)? as f64;
    let [below, above] = [position.floor(), position.ceil()].map(|index| sorted[whole(index)]);
    Some(below + (above - below) * position.fract())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rounded index of a slice")]
const fn whole(index: f64) -> usize {
    index as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_an_odd_sample() {
        let quartiles = Quartiles::of([5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!(quartiles, Quartiles { median: 3.0, low: 2.0, high: 4.0, count: 5 });
        assert_eq!(quartiles.relative_spread(), 1.0 / 3.0);
    }

    #[test]
    fn quartiles_of_an_even_sample_are_interpolated() {
        let quartiles = Quartiles::of([8.0, 2.0, 4.0, 16.0]).unwrap();
        assert_eq!(quartiles, Quartiles { median: 6.0, low: 3.5, high: 10.0, count: 4 });
    }

    #[test]
    fn one_measurement_has_no_spread_and_an_empty_sample_has_no_median() {
        assert_eq!(Quartiles::of([7.0]), Some(Quartiles { median: 7.0, low: 7.0, high: 7.0, count: 1 }));
        assert_eq!(Quartiles::of([]), None);
    }

    #[test]
    fn an_outlier_barely_moves_the_median() {
        let quartiles = Quartiles::of([1.0, 1.1, 0.9, 1.0, 1000.0]).unwrap();
        assert_eq!((quartiles.median, quartiles.high), (1.0, 1.1));
    }
}
