//! Output for people: tables and durations.

use std::io::{self, Write as _};

use crate::failure::Failure;

/// What goes to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For scripts: JSON with stable names, one object per line when watching.
    Json,
}

/// Writes a line to standard output. A reader that has gone ends the program quietly.
///
/// # Errors
/// When the output cannot be written.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::other(format!("cannot write the output: {error}"))),
    }
}

/// A duration in milliseconds as a person says it.
pub fn age(milliseconds: f64) -> String {
    let seconds = (milliseconds / 1000.0) as u64;
    match seconds {
        0 => format!("{milliseconds:.0} ms"),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Rows under headings, columns aligned, no trailing spaces.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let heading: Vec<String> = headings.iter().map(ToString::to_string).collect();
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["gw-1".to_owned(), "1".to_owned()], vec!["a".to_owned(), "22".to_owned()]];
        assert_eq!(table(&["NODE", "EPOCH"], &rows), "NODE  EPOCH\ngw-1  1\na     22\n");
    }

    #[test]
    fn durations_read_as_a_person_says_them() {
        let said =
            [(12.4, "12 ms"), (61_000.0, "1 min 1 s"), (7_260_000.0, "2 h 1 min"), (90_000_000.0, "1 d 1 h")];
        for (ms, text) in said {
            assert_eq!(age(ms), text);
        }
    }
}
