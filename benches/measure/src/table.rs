//! Text tables with aligned columns.

use std::fmt;

use crate::text::{self, WIDTH, escaped};

/// The widths of a table's columns.
///
/// Cells are escaped. A column is at most [`WIDTH`] wide, so that one long cell does not pad all other rows. A longer
/// cell overflows its column.
#[derive(Debug)]
pub struct Columns {
    widths: Vec<usize>,
    /// The first right-aligned column.
    numbers_from: usize,
}

impl Columns {
    /// Creates `columns` columns of width 0.
    pub fn new(columns: usize) -> Self {
        Self { widths: vec![0; columns], numbers_from: usize::MAX }
    }

    /// Widens the columns to fit `cells`.
    pub fn fit(&mut self, cells: &[String]) {
        for (width, cell) in self.widths.iter_mut().zip(cells) {
            *width = text::width(&escaped(cell)).min(WIDTH).max(*width);
        }
    }

    /// Formats a row without a line break.
    pub fn line(&self, cells: &[String]) -> String {
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(&self.widths).enumerate() {
            let cell = escaped(cell);
            // Padded by hand: a width above 65535 in a format string panics.
            let padding = " ".repeat(width.saturating_sub(text::width(&cell)));
            let [before, after] = if column < self.numbers_from { ["", &padding] } else { [&padding, ""] };
            line.extend([before, &cell, after, "  "]);
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// A small table with a heading, kept in memory.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    numbers_from: usize,
}

impl Table {
    /// Creates a table without rows.
    pub fn new<'a>(heading: impl IntoIterator<Item = &'a str>) -> Self {
        Self { rows: vec![heading.into_iter().map(str::to_owned).collect()], numbers_from: usize::MAX }
    }

    /// Right-aligns the columns from `column` on.
    #[must_use]
    pub fn numbers_from(self, column: usize) -> Self {
        Self { numbers_from: column, ..self }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut columns = Columns { numbers_from: self.numbers_from, ..Columns::new(self.rows[0].len()) };
        self.rows.iter().for_each(|row| columns.fit(row));
        self.rows.iter().try_for_each(|row| writeln!(f, "{}", columns.line(row)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_whatever_they_hold() {
        let mut table = Table::new(["name", "of", "n"]).numbers_from(2);
        for (name, n) in [("w", "1"), ("重み", "20"), ("e\u{301}\u{1b}[m", "300")] {
            table.row([name.into(), "x".into(), n.into()]);
        }
        let expected = "\
name       of    n
w          x     1
重み       x    20
e\u{301}\\u{1b}[m  x   300
";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn one_long_cell_does_not_pad_the_others() {
        let mut table = Table::new(["name", "n"]);
        table.row(["x".repeat(70_000), "1".into()]);
        table.row(["w".into(), "2".into()]);
        let text = table.to_string();
        let [_, long, short] = text.lines().collect::<Vec<_>>()[..] else { panic!("three lines") };
        assert_eq!((long.len(), short.len()), (70_000 + 3, WIDTH + 3));
    }
}
