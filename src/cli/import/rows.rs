//! Reads the rows of an input, one at a time and within a bound.
//!
//! A row is kept as it was read until it is recorded, because it may have to be sent again or
//! written to the rejected rows.

use std::collections::VecDeque;
use std::io::{self, BufRead, ErrorKind};

use memchr::{memchr, memchr2};
use sha2::{Digest as _, Sha256};

use super::cells::{Ending, Splitter};

/// The longest row, in bytes: more than the bounds of an event's fields add up to.
pub(super) const MAX_ROW_BYTES: usize = 1024 * 1024;

/// A row as it was read.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The line on which it begins, from 1.
    pub(super) line: u64,
    /// The offset of its end in the input, in bytes.
    pub(super) end: u64,
    /// The line on which the next row begins.
    pub(super) next_line: u64,
    /// Its bytes without the end of its last line; none if it was too long to be kept.
    pub(super) raw: Vec<u8>,
    pub(super) defect: Option<Defect>,
}

/// Why a row cannot be split into cells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Defect {
    /// Longer than [`MAX_ROW_BYTES`], so that it was not kept.
    TooLong,
    /// A quote of this cell, counted from 0, is not closed on its line.
    OpenQuote(usize, OpenQuote),
}

/// Why the next lines are not the rest of a quoted cell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum OpenQuote {
    /// This line looks like a row of its own.
    RowInside(u64),
    /// On this line the quotes are closed, and more text follows.
    TextBehind(u64),
    /// With the lines up to this one the row has so many cells.
    OtherCount(u64, usize),
    /// No line within [`MAX_ROW_BYTES`] closes it.
    NotClosed,
}

impl Row {
    /// A digest of the row and its line. A row that is sent again has the same request id.
    pub(super) fn request_id(&self) -> String {
        let mut digest = Sha256::new_with_prefix(self.line.to_be_bytes());
        digest.update(&self.raw);
        let digest = digest.finalize();
        format!("import-{}", hex::encode(digest.get(..16).unwrap_or_default()))
    }

    /// How many lines it has.
    pub(super) fn lines(&self) -> u64 {
        self.next_line.saturating_sub(self.line)
    }

    /// Whether there is nothing on its line.
    pub(super) fn is_blank(&self) -> bool {
        self.defect.is_none() && self.raw.trim_ascii().is_empty()
    }
}

/// Where a row begins in the input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Position {
    /// In bytes.
    pub(super) offset: u64,
    /// The line, from 1.
    pub(super) line: u64,
}

/// A line as it was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    /// With its end; empty if it was too long.
    bytes: Vec<u8>,
    len: u64,
    is_too_long: bool,
}

impl Line {
    /// The line without its end.
    pub(super) fn text(&self) -> &[u8] {
        without_end(&self.bytes)
    }

    pub(super) fn is_too_long(&self) -> bool {
        self.is_too_long
    }

    fn push(&mut self, bytes: &[u8]) {
        self.len += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.is_too_long |= self.bytes.len() + bytes.len() > MAX_ROW_BYTES + 2;
        if self.is_too_long {
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }
}

fn without_end(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

/// Reads lines, of which some may be read again.
pub(super) struct Lines {
    input: Box<dyn BufRead + Send>,
    /// Whether a carriage return alone ends a line, too.
    ends_at_cr: bool,
    /// Lines that were looked at and belong to rows that come later.
    unread: VecDeque<Line>,
    /// Where the next line begins.
    position: Position,
}

impl Lines {
    pub(super) fn new(
        input: Box<dyn BufRead + Send>,
        ends_at_cr: bool,
        position: Position,
    ) -> Self {
        Self { input, ends_at_cr, unread: VecDeque::new(), position }
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// The next line, or `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        let line = match self.unread.pop_front() {
            Some(line) => Some(line),
            None => self.read()?,
        };
        if let Some(line) = &line {
            self.position.offset += line.len;
            self.position.line += 1;
        }
        Ok(line)
    }

    /// Has these lines, which are the last that were read, read again.
    pub(super) fn unread(&mut self, lines: impl DoubleEndedIterator<Item = Line>) {
        for line in lines.rev() {
            self.position.offset -= line.len;
            self.position.line -= 1;
            self.unread.push_front(line);
        }
    }

    fn read(&mut self) -> io::Result<Option<Line>> {
        let mut line = Line { bytes: Vec::with_capacity(256), ..Line::default() };
        loop {
            let buffer = fill(&mut self.input)?;
            if buffer.is_empty() {
                return Ok((line.len > 0).then_some(line));
            }
            let end =
                if self.ends_at_cr { memchr2(b'\n', b'\r', buffer) } else { memchr(b'\n', buffer) };
            let (taken, _) = buffer.split_at(end.map_or(buffer.len(), |end| end + 1));
            let (len, last) = (taken.len(), taken.last().copied());
            line.push(taken);
            self.input.consume(len);
            match last.filter(|_| end.is_some()) {
                None => {}
                Some(b'\r') => {
                    if fill(&mut self.input)?.first() == Some(&b'\n') {
                        line.push(b"\n");
                        self.input.consume(1);
                    }
                    return Ok(Some(line));
                }
                Some(_) => return Ok(Some(line)),
            }
        }
    }
}

/// Fills the buffer, also if a signal came in between.
fn fill(input: &mut Box<dyn BufRead + Send>) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    // The buffer is full, so that nothing is read here.
    input.fill_buf()
}

/// How the rows of a CSV file look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) delimiter: u8,
    /// The number of columns that have a name.
    pub(super) named: usize,
    /// The number of all columns: what is behind those with a name has none.
    pub(super) width: usize,
}

impl Shape {
    /// A splitter with room for a row's cells.
    pub(super) fn splitter(self) -> Splitter {
        Splitter::with_capacity(self.delimiter, self.named)
    }

    /// Whether a row has a cell for each named column, and nothing behind the last column.
    pub(super) fn fits(self, splitter: &Splitter, text: &[u8]) -> bool {
        splitter.len() >= self.named && splitter.are_empty_from(text, self.width)
    }

    /// Whether a line by itself looks like a row: it has a row's cells, and each of its quotes begins
    /// or ends one.
    fn looks_like_row(self, line: &[u8]) -> bool {
        let mut splitter = self.splitter();
        splitter.split(line) != Ending::Malformed
            && !splitter.has_stray_quote(line)
            && self.fits(&splitter, line)
    }
}

/// Reads the rows of an input.
pub(super) struct RowReader {
    lines: Lines,
    /// The shape of the rows of a CSV file. Rows of NDJSON are lines.
    shape: Option<Shape>,
    /// Where lines with quotes are split, to keep its room for the next one.
    splitter: Splitter,
}

impl RowReader {
    pub(super) fn new(lines: Lines, shape: Option<Shape>) -> Self {
        let splitter = shape.map_or_else(|| Splitter::new(b','), Shape::splitter);
        Self { lines, shape, splitter }
    }

    pub(super) fn shape(&self) -> Option<Shape> {
        self.shape
    }

    /// The next row, which may be blank, or `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Row>> {
        let line = self.lines.position().line;
        let Some(mut first) = self.lines.next()? else { return Ok(None) };
        let mut defect = first.is_too_long.then_some(Defect::TooLong);
        if let Some(shape) = self.shape
            && memchr(b'"', &first.bytes).is_some()
        {
            defect = self.complete(&mut first, shape)?;
        }
        let mut raw = first.bytes;
        raw.truncate(match self.shape {
            Some(_) => without_end(&raw).len(),
            None => raw.trim_ascii_end().len(),
        });
        let Position { offset: end, line: next_line } = self.lines.position();
        Ok(Some(Row { line, end, next_line, raw, defect }))
    }

    /// Adds the next lines to a line whose last cell is quoted and not closed. If they cannot be the
    /// rest of that cell, they are read again as rows of their own, so that no row is swallowed.
    fn complete(&mut self, first: &mut Line, shape: Shape) -> io::Result<Option<Defect>> {
        let splitter = &mut self.splitter;
        splitter.clear();
        if splitter.split(first.text()) != Ending::Open {
            return Ok(None);
        }
        let column = splitter.len() - 1;
        let mut text = first.bytes.clone();
        let mut added = Vec::new();
        let why = loop {
            let number = self.lines.position().line;
            let Some(line) = self.lines.next()? else { break OpenQuote::NotClosed };
            let is_too_long = line.is_too_long || text.len() + line.bytes.len() > MAX_ROW_BYTES;
            let is_row = !is_too_long && shape.looks_like_row(line.text());
            text.extend_from_slice(&line.bytes);
            added.push(line);
            if is_too_long {
                break OpenQuote::NotClosed;
            }
            if is_row {
                break OpenQuote::RowInside(number);
            }
            let whole = without_end(&text);
            match splitter.split(whole) {
                Ending::Open => {}
                Ending::Malformed => break OpenQuote::TextBehind(number),
                Ending::Closed if shape.fits(splitter, whole) => {
                    first.bytes = text;
                    return Ok(None);
                }
                Ending::Closed => break OpenQuote::OtherCount(number, splitter.len()),
            }
        };
        self.lines.unread(added.into_iter());
        Ok(Some(Defect::OpenQuote(column, why)))
    }
}
