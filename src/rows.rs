//! The check of rows: how many a gradient may be cut into.

use crate::{Error, GradientId};

/// The rows of a list of gradients, checked one gradient after the other.
#[derive(Default)]
pub(crate) struct Rows {
    /// How many rows without elements there have been.
    empty: u64,
}

impl Rows {
    /// The most rows that gradients without elements may have together. Each has a record, and nothing but the caller's word
    /// says how many there are: other rows are at least as large as an element.
    pub(crate) const MOST_EMPTY: u64 = 1 << 20;

    /// Checks that the next gradient can be cut into this number of rows.
    pub(crate) fn check(
        &mut self,
        gradient: &dyn Fn() -> GradientId,
        rows: u64,
        elements: u64,
    ) -> Result<(), Error> {
        if rows == 0 || !elements.is_multiple_of(rows) {
            return Err(Error::Rows { gradient: gradient(), rows, elements });
        }
        // What is not cut has one row; any number of gradients may have that.
        if elements == 0 && rows > 1 {
            self.empty = self.empty.saturating_add(rows);
            if self.empty > Self::MOST_EMPTY {
                return Err(Error::TooManyEmptyRows { gradient: gradient(), rows, most: Self::MOST_EMPTY });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_elements_are_bounded_together() {
        const MOST: u64 = Rows::MOST_EMPTY;
        let mut rows = Rows::default();
        let mut check = |index: usize, count, elements| rows.check(&|| index.into(), count, elements);
        assert_eq!(check(0, 5, 0), Ok(()));
        assert_eq!(check(1, 1 << 40, 1 << 40), Ok(()));
        assert_eq!(check(2, MOST - 5, 0), Ok(()));
        assert_eq!(check(3, 1, 0), Ok(()));
        assert_eq!(check(4, 2, 0), Err(Error::TooManyEmptyRows { gradient: 4.into(), rows: 2, most: MOST }));
        assert_eq!(
            check(5, u64::MAX, 0),
            Err(Error::TooManyEmptyRows { gradient: 5.into(), rows: u64::MAX, most: MOST })
        );
        assert_eq!(check(6, 0, 0), Err(Error::Rows { gradient: 6.into(), rows: 0, elements: 0 }));
    }
}
