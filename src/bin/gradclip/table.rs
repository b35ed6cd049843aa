//! Aligned columns for people.

use std::fmt::{self, Write as _};

/// Columns as wide as what they hold, below a heading.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// The columns from this on are flush right.
    numbers_from: usize,
}

impl Table {
    pub(crate) fn new<'a>(heading: impl IntoIterator<Item = &'a str>) -> Self {
        Self { rows: vec![heading.into_iter().map(str::to_owned).collect()], numbers_from: usize::MAX }
    }

    /// With all columns from this one on flush right.
    pub(crate) fn numbers_from(self, column: usize) -> Self {
        Self { numbers_from: column, ..self }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column < self.numbers_from {
                    write!(line, "{cell:width$}  ")?;
                } else {
                    write!(line, "{cell:>width$}  ")?;
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
