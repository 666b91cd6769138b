//! Opens an input: finds out how it is written, and where reading continues.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek as _, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context as _, bail};
use csv::{ReaderBuilder, StringRecord};

use super::columns::Columns;
use super::parser::Parser;
use super::rows::{BoundedInput, MAX_ROW_BYTES, Position, RowReader};
use crate::cli::output;

/// The byte order mark of UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";
const UTF16_BOMS: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

const BUFFER_BYTES: usize = 256 << 10;

/// How an input is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Format {
    /// One `ConsentEvent` a line, as proto3 JSON.
    Ndjson,
    /// Comma-separated values, with a header.
    Csv,
}

/// An open input, at its first row or at the first line of a CSV file's header.
struct Opened {
    reader: Box<dyn BufRead + Send>,
    /// The file, if the input is one, to continue elsewhere.
    file: Option<File>,
    start: Position,
}

/// Opens an input. `-` means standard input. With a position, reading continues there if the input
/// is a file.
pub(super) fn open(
    path: &str,
    format: Option<Format>,
    delimiter: u8,
    position: Option<Position>,
) -> anyhow::Result<(Parser, RowReader)> {
    let cannot_read = || format!("cannot read {path}");
    let (mut reader, file) = open_reader(path)?;
    let beginning = reader.fill_buf().with_context(cannot_read)?;
    if UTF16_BOMS.iter().any(|bom| beginning.starts_with(bom)) {
        bail!("{path} is UTF-16: save it as UTF-8");
    }
    let bom = if beginning.starts_with(BOM) { BOM.len() } else { 0 };
    let text = beginning.get(bom..).unwrap_or_default();
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace()).copied();
    let format = format.unwrap_or_else(|| guess_format(path, first));
    if format == Format::Ndjson && first == Some(b'[') {
        bail!("{path} is one JSON array: write one event a line, such as with `jq -c '.[]'`");
    }
    reader.consume(bom);
    let start = Position { offset: u64::try_from(bom).unwrap_or(0), line: 1 };
    let opened = Opened { reader, file, start };
    match format {
        Format::Ndjson => open_ndjson(opened, position),
        Format::Csv => open_csv(opened, path, delimiter, position),
    }
}

fn open_reader(path: &str) -> anyhow::Result<(Box<dyn BufRead + Send>, Option<File>)> {
    if path == "-" {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let file = File::open(path).with_context(|| format!("cannot read {path}"))?;
    let again = file.try_clone().with_context(|| format!("cannot read {path}"))?;
    Ok((Box::new(BufReader::with_capacity(BUFFER_BYTES, file)), Some(again)))
}

/// The format by the file's extension, or else by the first character that is not blank.
fn guess_format(path: &str, first: Option<u8>) -> Format {
    match (path.rsplit_once('.'), first) {
        (Some((_, "csv" | "tsv")), _) => Format::Csv,
        (Some((_, "ndjson" | "jsonl" | "json")), _) | (_, Some(b'{' | b'[') | None) => {
            Format::Ndjson
        }
        _ => Format::Csv,
    }
}

impl Opened {
    /// Continues at a position, if there is one and the input is a file.
    fn seek(&mut self, position: Option<Position>) -> io::Result<bool> {
        let (Some(mut file), Some(position)) = (self.file.take(), position) else {
            return Ok(false);
        };
        file.seek(SeekFrom::Start(position.offset))?;
        self.reader = Box::new(BufReader::with_capacity(BUFFER_BYTES, file));
        self.start = position;
        Ok(true)
    }
}

fn open_ndjson(
    mut opened: Opened,
    position: Option<Position>,
) -> anyhow::Result<(Parser, RowReader)> {
    opened.seek(position)?;
    let parser = Parser::Ndjson(output::descriptor("ConsentEvent")?);
    // Lines are bounded where they are read.
    let allowance = Arc::new(AtomicU64::new(u64::MAX));
    let input = BoundedInput { inner: opened.reader, allowance };
    Ok((parser, RowReader::Ndjson { input, position: position.unwrap_or(opened.start) }))
}

fn open_csv(
    mut opened: Opened,
    path: &str,
    delimiter: u8,
    position: Option<Position>,
) -> anyhow::Result<(Parser, RowReader)> {
    let allowance = Arc::new(AtomicU64::new(MAX_ROW_BYTES));
    let bounded = |inner| BoundedInput { inner, allowance: Arc::clone(&allowance) };
    let mut builder = ReaderBuilder::new();
    builder.has_headers(false).flexible(true).delimiter(delimiter);
    let first = std::mem::replace(&mut opened.reader, Box::new(io::empty()));
    let mut reader = builder.from_reader(bounded(first));
    let mut header = StringRecord::new();
    reader.read_record(&mut header).with_context(|| format!("cannot read {path}"))?;
    let columns = Columns::new(header, char::from(delimiter));
    let columns = columns.with_context(|| format!("{path}, line 1"))?;
    if opened.seek(position)? {
        reader = builder.from_reader(bounded(opened.reader));
    }
    let rows = RowReader::Csv { reader: Box::new(reader), start: opened.start, allowance };
    Ok((Parser::Csv(Arc::new(columns)), rows))
}
