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

    /// Checks that the next gradient can be split into `rows` rows, or into `columns` columns; the other is 1.
    pub(crate) fn check(
        &mut self,
        gradient: &dyn Fn() -> GradientId,
        rows: u64,
        columns: u64,
        elements: u64,
    ) -> Result<(), Error> {
        if rows != 1 && columns != 1 {
            return Err(Error::RowsAndColumns { gradient: gradient(), rows, columns });
        }
        if columns == 0 || !elements.is_multiple_of(columns) {
            return Err(Error::Columns { gradient: gradient(), columns, elements });
        }
        if rows == 0 || !elements.is_multiple_of(rows) {
            return Err(Error::Rows { gradient: gradient(), rows, elements });
        }
        // One of the two is 1. A gradient with one row is not split and does not count.
        let rows = rows.max(columns);
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
        let mut check = |index: usize, count, elements| limit.check(&|| index.into(), count, 1, elements);
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
        // Columns count as rows do.
        let mut limit = RowLimit::default();
        let mut check = |index: usize, columns, elements| limit.check(&|| index.into(), 1, columns, elements);
        assert_eq!(check(0, MAX, 0), Ok(()));
        assert_eq!(check(1, 1 << 40, 1 << 40), Ok(()));
        assert_eq!(check(2, 2, 0), Err(Error::TooManyEmptyRows { gradient: 2.into(), rows: 2, most: MAX }));
        assert_eq!(check(3, 0, 0), Err(Error::Columns { gradient: 3.into(), columns: 0, elements: 0 }));
        assert_eq!(check(4, 2, 3), Err(Error::Columns { gradient: 4.into(), columns: 2, elements: 3 }));
    }

    #[test]
    fn a_gradient_has_rows_or_columns() {
        for (rows, columns) in [(2, 3), (0, 2), (2, 0)] {
            let error = Error::RowsAndColumns { gradient: 0.into(), rows, columns };
            assert_eq!(RowLimit::default().check(&|| 0_usize.into(), rows, columns, 6), Err(error));
        }
    }
}
