//! Validation of the number of rows of each gradient.

use crate::{Error, GradientId};

/// Validates the rows of a list of gradients, one gradient at a time.
#[derive(Default)]
pub(crate) struct RowLimit {
    /// The number of empty rows so far.
    empty: u64,
}

impl RowLimit {
    /// The maximum number of empty rows in a list of gradients. It bounds the number of records, because every row has
    /// one. Memory bounds the number of rows with elements.
    pub(crate) const MAX_EMPTY: u64 = 1 << 20;

    /// Checks that the next gradient can be split into `rows` rows.
    pub(crate) fn check(
        &mut self,
        gradient: &dyn Fn() -> GradientId,
        rows: u64,
        elements: u64,
    ) -> Result<(), Error> {
        if rows == 0 || !elements.is_multiple_of(rows) {
            return Err(Error::Rows { gradient: gradient(), rows, elements });
        }
        // A gradient with one row is not split and does not count.
        if elements == 0 && rows > 1 {
            self.empty = self.empty.saturating_add(rows);
            if self.empty > Self::MAX_EMPTY {
                return Err(Error::TooManyEmptyRows { gradient: gradient(), rows, most: Self::MAX_EMPTY });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_rows_are_limited_in_total() {
        const MAX: u64 = RowLimit::MAX_EMPTY;
        let mut limit = RowLimit::default();
        let mut check = |index: usize, count, elements| limit.check(&|| index.into(), count, elements);
        assert_eq!(check(0, 5, 0), Ok(()));
        assert_eq!(check(1, 1 << 40, 1 << 40), Ok(()));
        assert_eq!(check(2, MAX - 5, 0), Ok(()));
        assert_eq!(check(3, 1, 0), Ok(()));
        assert_eq!(check(4, 2, 0), Err(Error::TooManyEmptyRows { gradient: 4.into(), rows: 2, most: MAX }));
        assert_eq!(
            check(5, u64::MAX, 0),
            Err(Error::TooManyEmptyRows { gradient: 5.into(), rows: u64::MAX, most: MAX })
        );
        assert_eq!(check(6, 0, 0), Err(Error::Rows { gradient: 6.into(), rows: 0, elements: 0 }));
    }
}
