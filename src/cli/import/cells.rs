//! Splits a row of a CSV file into its cells, and finds quotes that are not closed where a cell ends.
//!
//! The `csv` crate reads on until a quote is closed, over as many rows as that takes, and does not say
//! so. Here an opt-out would be lost by it, so that the quotes of each line are known while it is read.

use std::borrow::Cow;

use memchr::memchr;

/// What is said of a row that ends [`Ending::Malformed`].
pub(super) const DOUBLED_QUOTES: &str = "a quote inside of quotes must be doubled: \"\"";

/// Where a cell is in its row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Cell {
    /// The first byte, behind an opening quote.
    start: usize,
    /// The end, before a closing quote.
    end: usize,
    is_quoted: bool,
    /// Whether a quote in it is written twice.
    has_doubled_quotes: bool,
}

/// How the text that was split ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ending {
    /// All of its quotes are closed.
    Closed,
    /// The quotes of the last cell are not closed yet.
    Open,
    /// Behind the closing quote of the cell after the last one is more text.
    Malformed,
}

/// The cells of a row.
#[derive(Debug)]
pub(super) struct Splitter {
    delimiter: u8,
    cells: Vec<Cell>,
    /// Where the text is split further.
    next: usize,
    /// The quoted cell that is not closed yet.
    open: Option<Cell>,
}

impl Splitter {
    pub(super) fn new(delimiter: u8) -> Self {
        Self::with_capacity(delimiter, 0)
    }

    /// One that has room for so many cells.
    pub(super) fn with_capacity(delimiter: u8, cells: usize) -> Self {
        Self { delimiter, cells: Vec::with_capacity(cells), next: 0, open: None }
    }

    /// Forgets the text that was split.
    pub(super) fn clear(&mut self) {
        self.cells.clear();
        (self.next, self.open) = (0, None);
    }

    /// Splits a text, so far as it was not split before: a text that ended [`Ending::Open`] can be split
    /// again with more lines behind it.
    pub(super) fn split(&mut self, text: &[u8]) -> Ending {
        loop {
            if let Some(open) = self.open {
                let rest = text.get(self.next..).unwrap_or_default();
                let Some(quote) = memchr(b'"', rest) else {
                    self.next = text.len();
                    return Ending::Open;
                };
                let quote = self.next + quote;
                if text.get(quote + 1) == Some(&b'"') {
                    self.open = Some(Cell { has_doubled_quotes: true, ..open });
                    self.next = quote + 2;
                    continue;
                }
                self.open = None;
                let behind = text.get(quote + 1..).unwrap_or_default();
                let blanks = behind.iter().take_while(|byte| self.is_blank(**byte)).count();
                self.cells.push(Cell { end: quote, ..open });
                self.next = quote + 2 + blanks;
                match behind.get(blanks) {
                    None => return Ending::Closed,
                    Some(byte) if *byte == self.delimiter => {}
                    Some(_) => {
                        self.cells.pop();
                        return Ending::Malformed;
                    }
                }
            }
            let start = self.next;
            let rest = text.get(start..).unwrap_or_default();
            let cell = Cell { start, end: 0, is_quoted: false, has_doubled_quotes: false };
            if rest.first() == Some(&b'"') {
                self.next = start + 1;
                self.open = Some(Cell { start: start + 1, is_quoted: true, ..cell });
                continue;
            }
            let len = memchr(self.delimiter, rest);
            self.cells.push(Cell { end: start + len.unwrap_or(rest.len()), ..cell });
            match len {
                Some(len) => self.next = start + len + 1,
                None => return Ending::Closed,
            }
        }
    }

    fn is_blank(&self, byte: u8) -> bool {
        matches!(byte, b' ' | b'\t') && byte != self.delimiter
    }

    /// How many cells there are, with one whose quotes are not closed.
    pub(super) fn len(&self) -> usize {
        self.cells.len() + usize::from(self.open.is_some())
    }

    /// The texts of the cells.
    pub(super) fn texts<'t>(&self, text: &'t str) -> Vec<Cow<'t, str>> {
        let of_cell = |cell: &Cell| {
            let text = text.get(cell.start..cell.end).unwrap_or_default();
            if cell.has_doubled_quotes {
                Cow::Owned(text.replace("\"\"", "\""))
            } else {
                Cow::Borrowed(text)
            }
        };
        self.cells.iter().map(of_cell).collect()
    }

    /// Whether all cells from this one on are empty.
    pub(super) fn are_empty_from(&self, text: &[u8], first: usize) -> bool {
        let behind = self.cells.get(first..).unwrap_or_default();
        let is_empty = |cell: &Cell| {
            text.get(cell.start..cell.end).is_none_or(|text| text.trim_ascii().is_empty())
        };
        behind.iter().all(is_empty) && (self.open.is_none() || self.cells.len() < first)
    }

    /// Whether a cell that is not quoted has a quote in it, as the end of a quoted cell has whose
    /// beginning is on another line.
    pub(super) fn has_stray_quote(&self, text: &[u8]) -> bool {
        self.cells.iter().filter(|cell| !cell.is_quoted).any(|cell| {
            text.get(cell.start..cell.end).is_some_and(|text| memchr(b'"', text).is_some())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_is_split_as_rfc_4180_says() {
        for (row, cells, ending) in [
            ("", &[""][..], Ending::Closed),
            ("a,b", &["a", "b"], Ending::Closed),
            ("a,,", &["a", "", ""], Ending::Closed),
            (r#""a,b",c"#, &["a,b", "c"], Ending::Closed),
            (r#""say ""yes""",c"#, &[r#"say "yes""#, "c"], Ending::Closed),
            ("\"\",\"\"", &["", ""], Ending::Closed),
            ("\"two\nlines\" ,c", &["two\nlines", "c"], Ending::Closed),
            (r#"5"tall,c"#, &[r#"5"tall"#, "c"], Ending::Closed),
            (r#"a,"b,c"#, &["a"], Ending::Open),
            (r#"a,"b"c,d"#, &["a"], Ending::Malformed),
        ] {
            let mut splitter = Splitter::new(b',');
            assert_eq!(splitter.split(row.as_bytes()), ending, "{row}");
            assert_eq!(splitter.texts(row), cells, "{row}");
        }
    }

    #[test]
    fn open_row_is_split_further_with_its_next_lines() {
        let lines = ["a,\"one", "two \"\"2\"\"", "three\",b,\"four", "five\""];
        let mut splitter = Splitter::new(b',');
        let mut text = String::new();
        let endings: Vec<_> = lines
            .iter()
            .map(|line| {
                text.push_str(if text.is_empty() { "" } else { "\r\n" });
                text.push_str(line);
                splitter.split(text.as_bytes())
            })
            .collect();
        assert_eq!(endings, [Ending::Open, Ending::Open, Ending::Open, Ending::Closed]);
        let cells = ["a", "one\r\ntwo \"2\"\r\nthree", "b", "four\r\nfive"];
        assert_eq!(splitter.texts(&text), cells);
    }
}
