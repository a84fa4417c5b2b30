//! Tables for people, and the format of numbers in them.
//!
//! On a terminal the widest columns are shortened until a row fits; elsewhere nothing is shortened.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use ratatui::crossterm::terminal;

/// Rows held back until the widths of their columns are known.
const PAGE: usize = 128;

/// The width that a column keeps when others need room.
const NARROWEST: usize = 6;

/// Between two columns.
const GAP: &str = "  ";

/// A table that is printed a page at a time, so that a million rows take no memory. Columns only
/// get wider from page to page. A column of numbers is aligned to the right.
pub struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
    is_begun: bool,
    /// Columns that were left out, each by its position at that time.
    dropped: Vec<usize>,
    /// Columns to leave out while a row does not fit, in this order.
    drops: Vec<String>,
    /// Whether the remaining cells are never cut.
    is_whole: bool,
    /// Columns of the terminal; none if stdout is not a terminal.
    limit: Option<usize>,
}

impl Table {
    pub fn new(headers: &[&str]) -> Table {
        Table::with_limit(headers, terminal_width())
    }

    /// A table for a terminal of this many columns; `None` if stdout is something else.
    pub fn with_limit(headers: &[&str], limit: Option<usize>) -> Table {
        Table {
            headers: headers.iter().map(|header| (*header).to_owned()).collect(),
            rows: Vec::new(),
            widths: vec![0; headers.len()],
            is_begun: false,
            dropped: Vec::new(),
            drops: Vec::new(),
            is_whole: false,
            limit,
        }
    }

    /// Leaves out these columns, in this order, while a row does not fit the terminal; all others
    /// stay.
    pub fn dropping(mut self, drops: &[&str]) -> Table {
        self.drops = drops.iter().map(|drop| (*drop).to_owned()).collect();
        self
    }

    /// Never cuts a cell: one that still does not fit goes beyond the edge.
    pub fn whole(mut self) -> Table {
        self.is_whole = true;
        self
    }

    /// Adds a row with one cell per header.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) -> &mut Table {
        let mut row: Vec<String> = cells.into_iter().map(Into::into).collect();
        for column in &self.dropped {
            row.remove(*column);
        }
        self.rows.push(row);
        self
    }

    /// Adds a row; prints the rows when a page is full.
    pub fn stream(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) -> io::Result<()> {
        match self.row(cells).rows.len() {
            PAGE.. => self.print(),
            _ => Ok(()),
        }
    }

    /// Prints the remaining rows; the headers come before the first ones.
    pub fn print(&mut self) -> io::Result<()> {
        let text = self.render();
        io::stdout().lock().write_all(text.as_bytes())
    }

    /// The text that [`Table::print`] prints.
    pub fn render(&mut self) -> String {
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        if is_first {
            self.rows.insert(0, self.headers.clone());
        }
        self.measure();
        if is_first {
            self.drop_columns();
        }
        if let Some(limit) = self.limit.filter(|_| !self.is_whole) {
            shorten(&mut self.widths, limit);
        }
        let is_number = |column: usize| {
            let mut cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.all(|cell| *cell == self.headers[column] || is_number(cell))
        };
        let right: Vec<bool> = (0..self.widths.len()).map(is_number).collect();
        let mut text = String::new();
        for row in std::mem::take(&mut self.rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate().take(self.widths.len()) {
                let (width, cell) = (self.widths[column], self.fit(cell, column));
                let gap = if column == 0 { "" } else { GAP };
                let _ = match right[column] {
                    true => write!(line, "{gap}{cell:>width$}"),
                    false => write!(line, "{gap}{cell:<width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn measure(&mut self) {
        for (column, width) in self.widths.iter_mut().enumerate() {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            *width = cells.map(|cell| length(cell)).fold(*width, usize::max);
        }
    }

    /// Leaves out columns until a row fits, as far as allowed.
    fn drop_columns(&mut self) {
        for drop in std::mem::take(&mut self.drops) {
            if self
                .limit
                .is_none_or(|limit| row_width(&self.widths) <= limit)
            {
                return;
            }
            if let Some(column) = self.headers.iter().position(|header| *header == drop) {
                self.headers.remove(column);
                self.widths.remove(column);
                self.dropped.push(column);
                for row in &mut self.rows {
                    row.remove(column);
                }
            }
        }
    }

    fn fit(&self, cell: &str, column: usize) -> String {
        let width = self.widths[column];
        if length(cell) <= width {
            return cell.to_owned();
        }
        let kept = cell.chars().take(width.saturating_sub(1));
        kept.chain(['…']).collect()
    }
}

/// The width of the terminal if stdout is one.
pub fn terminal_width() -> Option<usize> {
    let size = || terminal::size().ok().map(|(columns, _)| columns.into());
    io::stdout().is_terminal().then(size).flatten()
}

/// A number with a unit of 1000: `12.3k`.
pub fn count(number: u64) -> String {
    scaled(number, 1000.0, ["", "k", "M", "G", "T"])
}

/// Bytes with a unit of 1024: `12.3 MiB`.
pub fn bytes(number: u64) -> String {
    scaled(number, 1024.0, [" B", " KiB", " MiB", " GiB", " TiB"])
}

/// Seconds in their two biggest units: `45s`, `12m 5s`, `2h 3m`, `3d 4h`.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

fn scaled(number: u64, step: f64, units: [&str; 5]) -> String {
    let (mut value, mut unit) = (number as f64, 0);
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    match unit {
        0 => format!("{number}{}", units[0]),
        _ => format!("{value:.1}{}", units[unit]),
    }
}

fn row_width(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
}

/// Shortens the widest columns until all of them fit.
fn shorten(widths: &mut [usize], limit: usize) {
    while row_width(widths) > limit {
        let Some(widest) = widths
            .iter_mut()
            .max()
            .filter(|widest| **widest > NARROWEST)
        else {
            return;
        };
        *widest -= 1;
    }
}

/// Whether a cell contains numbers with units, or `-`.
fn is_number(cell: &str) -> bool {
    let is_unit = |c: char| c.is_ascii_alphabetic() || c == '%';
    let mut words = cell.split_whitespace();
    words.all(|word| {
        let number = word.trim_end_matches(is_unit);
        word == "-" || number.parse::<f64>().is_ok() || is_byte_unit(word)
    })
}

fn is_byte_unit(word: &str) -> bool {
    ["B", "KiB", "MiB", "GiB", "TiB"].contains(&word)
}

fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_and_numbers_are_to_the_right() {
        let mut table = Table::with_limit(&["NAME", "BYTES", "ADDRESS"], None);
        table.row(["a", "1", "10.0.0.1"]);
        table.row(["a-long-name", "12.5 KiB", "10.0.0.1:80"]);
        table.row(["b", "-", ""]);
        let wanted = "\
NAME            BYTES  ADDRESS
a                   1  10.0.0.1
a-long-name  12.5 KiB  10.0.0.1:80
b                   -
";
        assert_eq!(table.render(), wanted);
    }

    #[test]
    fn the_widest_columns_give_way_on_a_terminal() {
        let mut table = Table::with_limit(&["A", "LONG"], Some(20));
        table.row(["short", "a-name-longer-than-that"]);
        assert_eq!(table.render(), "A      LONG\nshort  a-name-longe…\n");
        table.row(["later", "x"]);
        assert_eq!(table.render(), "later  x\n", "no second header");
    }

    #[test]
    fn columns_are_left_out_rather_than_cut() {
        let headers = ["ADDRESS", "STATE", "BYTES"];
        let row = ["10.100.200.250:40000", "established", "12.3 MiB"];
        let mut table = Table::with_limit(&headers, Some(40))
            .dropping(&["BYTES", "STATE"])
            .whole();
        table.row(row);
        assert_eq!(
            table.render(),
            "ADDRESS               STATE\n10.100.200.250:40000  established\n"
        );
        table.row(["[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:1", "x", "1 B"]);
        assert_eq!(
            table.render(),
            "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:1  x\n",
            "no address is cut"
        );
        let mut wide = Table::with_limit(&headers, None)
            .dropping(&["BYTES"])
            .whole();
        wide.row(row);
        assert!(wide.render().contains("12.3 MiB"));
    }

    #[test]
    fn a_terminal_of_no_width_is_survived() {
        let mut table = Table::with_limit(&["COLUMN-A", "COLUMN-B"], Some(0));
        assert_eq!(table.render(), "COLUM…  COLUM…\n");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(count(999), "999");
        assert_eq!(count(12_345), "12.3k");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3 << 20), "3.0 MiB");
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(725), "12m 5s");
        assert_eq!(duration(7_440), "2h 4m");
        assert_eq!(duration(100_000), "1d 3h");
    }
}
