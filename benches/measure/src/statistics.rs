//! The middle of repeated measurements, and how far they spread.

/// Order statistics of some measurements, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quartiles {
    /// The middle.
    pub median: f64,
    /// A quarter of the measurements lie below.
    pub low: f64,
    /// A quarter of them lie above.
    pub high: f64,
    /// The number of measurements.
    pub count: usize,
}

impl Quartiles {
    /// Returns the order statistics, or `None` of no measurements.
    pub fn of(seconds: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = seconds.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| quantile(&sorted, share);
        Some(Self { median: at(0.5)?, low: at(0.25)?, high: at(0.75)?, count: sorted.len() })
    }

    /// Returns half the distance between the quartiles, as a share of the median.
    pub fn relative(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.median
    }
}

/// Between the two measurements nearest to it, in proportion.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let [below, above] = [place.floor(), place.ceil()].map(|index| sorted[whole(index)]);
    Some(below + (above - below) * place.fract())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index of a list, rounded before"
)]
const fn whole(index: f64) -> usize {
    index as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_quartiles_halve_the_halves() {
        let spread = Quartiles::of([5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!(spread, Quartiles { median: 3.0, low: 2.0, high: 4.0, count: 5 });
        assert_eq!(spread.relative(), 1.0 / 3.0);
    }

    #[test]
    fn an_even_number_has_its_median_between_the_two_in_the_middle() {
        let spread = Quartiles::of([8.0, 2.0, 4.0, 16.0]).unwrap();
        assert_eq!(spread, Quartiles { median: 6.0, low: 3.5, high: 10.0, count: 4 });
    }

    #[test]
    fn one_measurement_has_no_spread_and_none_have_no_median() {
        assert_eq!(Quartiles::of([7.0]), Some(Quartiles { median: 7.0, low: 7.0, high: 7.0, count: 1 }));
        assert_eq!(Quartiles::of([]), None);
    }

    #[test]
    fn one_wild_measurement_moves_the_median_little() {
        let spread = Quartiles::of([1.0, 1.1, 0.9, 1.0, 1000.0]).unwrap();
        assert_eq!((spread.median, spread.high), (1.0, 1.1));
    }
}
