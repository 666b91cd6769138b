//! Reads the rows of an input, one at a time and within a bound.
//!
//! A row is kept as it was read until it is recorded, because it may have to be sent again or
//! written to the rejected rows.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use csv::StringRecord;
use sha2::{Digest as _, Sha256};

/// The longest row, in bytes: more than the bounds of an event's fields add up to.
pub(super) const MAX_ROW_BYTES: u64 = 1024 * 1024;

/// A row as it was read.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The line on which it begins, from 1.
    pub(super) line: u64,
    /// The offset of its end in the input, in bytes.
    pub(super) end: u64,
    /// The line on which the next row begins.
    pub(super) next_line: u64,
    pub(super) raw: Raw,
}

/// The content of a row.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    Line(Vec<u8>),
    Cells(StringRecord),
    /// Longer than [`MAX_ROW_BYTES`], so that it was not kept.
    TooLong,
}

impl Row {
    /// A digest of the row and its line. A row that is sent again has the same request id.
    pub(super) fn request_id(&self) -> String {
        let mut digest = Sha256::new_with_prefix(self.line.to_be_bytes());
        match &self.raw {
            Raw::Line(line) => digest.update(line),
            Raw::Cells(cells) => digest.update(cells.as_slice()),
            Raw::TooLong => {}
        }
        let digest = digest.finalize();
        format!("import-{}", hex::encode(digest.get(..16).unwrap_or_default()))
    }
}

/// Where a row begins in the input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// In bytes.
    pub(super) offset: u64,
    /// The line, from 1.
    pub(super) line: u64,
}

/// Reads the rows of an input.
pub(super) enum RowReader {
    Ndjson {
        input: BoundedInput,
        /// Where the next row begins.
        position: Position,
    },
    Csv {
        reader: Box<csv::Reader<BoundedInput>>,
        /// Where the reader began, to which its own positions are added.
        start: Position,
        /// The input's allowance, which is renewed for each row.
        allowance: Arc<AtomicU64>,
    },
}

/// An input that returns an error once an allowance is used up. It bounds the memory that the CSV
/// reader needs for a row whose quote is not closed.
pub(super) struct BoundedInput {
    pub(super) inner: Box<dyn BufRead + Send>,
    /// How many more bytes may be read.
    pub(super) allowance: Arc<AtomicU64>,
}

impl Read for BoundedInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::Error::other(format!(
                "a row is longer than {MAX_ROW_BYTES} bytes: is a quote not closed?"
            )));
        }
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.inner.read(buffer.get_mut(..len).unwrap_or_default())?;
        self.allowance.fetch_sub(u64::try_from(read).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(read)
    }
}

impl RowReader {
    /// The next row, or `None` at the end. Blank lines are skipped.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Row>> {
        match self {
            Self::Ndjson { input, position } => next_line(&mut input.inner, position),
            Self::Csv { reader, start, allowance } => {
                allowance.store(MAX_ROW_BYTES, Ordering::Relaxed);
                let mut cells = StringRecord::new();
                let before = reader.position().line();
                let line = start.line + before - 1;
                let context = || format!("line {line}");
                if !reader.read_record(&mut cells).with_context(context)? {
                    return Ok(None);
                }
                let line =
                    cells.position().map_or(line, |position| start.line + position.line() - 1);
                let position = reader.position();
                Ok(Some(Row {
                    line,
                    end: start.offset + position.byte(),
                    next_line: start.line + position.line() - 1,
                    raw: Raw::Cells(cells),
                }))
            }
        }
    }
}

fn next_line(input: &mut dyn BufRead, position: &mut Position) -> anyhow::Result<Option<Row>> {
    loop {
        let mut line = Vec::with_capacity(512);
        let read = input.take(MAX_ROW_BYTES + 1).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(None);
        }
        let mut len = u64::try_from(read)?;
        let is_too_long = len > MAX_ROW_BYTES && !line.ends_with(b"\n");
        if is_too_long {
            len += skip_line(input)?;
        }
        let number = position.line;
        *position = Position { offset: position.offset + len, line: number + 1 };
        line.truncate(line.trim_ascii_end().len());
        if line.is_empty() && !is_too_long {
            continue;
        }
        let raw = if is_too_long { Raw::TooLong } else { Raw::Line(line) };
        let (end, next_line) = (position.offset, position.line);
        return Ok(Some(Row { line: number, end, next_line, raw }));
    }
}

/// Skips the rest of a line. Returns how many bytes it had.
fn skip_line(input: &mut dyn BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = input.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let len = end.map_or(buffer.len(), |end| end + 1);
        input.consume(len);
        skipped += u64::try_from(len).unwrap_or(u64::MAX);
        if end.is_some() || len == 0 {
            return Ok(skipped);
        }
    }
}
