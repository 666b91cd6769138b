//! Opens an input: finds out how it is written, and where reading continues.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};

use super::cells::{DOUBLED_QUOTES, Ending, Splitter};
use super::columns::Columns;
use super::csv_event::CsvParser;
use super::csv_options::{CsvOptions, Defaults};
use super::parser::{NdjsonParser, Parser};
use super::rows::{Lines, MAX_ROW_BYTES, Position, RowReader};
use crate::cli::output;

/// The byte order mark of UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";
const UTF16_BOMS: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

const BUFFER_BYTES: usize = 256 << 10;

/// What may separate columns.
const DELIMITERS: [u8; 4] = *b",;\t|";

/// How an input is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Format {
    /// One `ConsentEvent` a line, as proto3 JSON.
    Ndjson,
    /// Comma-separated values.
    Csv,
}

/// An open input.
pub(super) struct Input {
    pub(super) parser: Parser,
    pub(super) rows: RowReader,
    /// What is before the first row of a CSV file, without a byte order mark; each line has an end.
    pub(super) preamble: Vec<u8>,
    /// Where the first row is.
    pub(super) first: Position,
    /// The file, if the input is one, to continue elsewhere.
    file: Option<File>,
    format: Format,
}

/// How an input is to be read.
pub(super) struct Reading<'a> {
    pub(super) format: Option<Format>,
    pub(super) csv: &'a CsvOptions,
    pub(super) defaults: &'a Defaults,
}

/// Opens an input at its first row. `-` means standard input.
pub(super) fn open(path: &str, reading: &Reading<'_>) -> anyhow::Result<Input> {
    let cannot_read = || format!("cannot read {path}");
    let (mut reader, file) = open_reader(path)?;
    let beginning = reader.fill_buf().with_context(cannot_read)?;
    let has_nul = beginning.get(..8).is_some_and(|beginning| beginning.contains(&0));
    if has_nul || UTF16_BOMS.iter().any(|bom| beginning.starts_with(bom)) {
        bail!("{path} is UTF-16 or no text: save it as UTF-8");
    }
    let bom = if beginning.starts_with(BOM) { BOM.len() } else { 0 };
    let text = beginning.get(bom..).unwrap_or_default();
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace()).copied();
    let format = reading.format.unwrap_or_else(|| guess_format(path, first));
    if format == Format::Ndjson && first == Some(b'[') {
        bail!("{path} is one JSON array: write one event a line, such as with `jq -c '.[]'`");
    }
    reader.consume(bom);
    let start = Position { offset: u64::try_from(bom).unwrap_or(0), line: 1 };
    let lines = Lines::new(reader, format == Format::Csv, start);
    match format {
        Format::Ndjson => {
            if let Some(flag) = reading.csv.given() {
                bail!("{flag} is for CSV files, and {path} is read as NDJSON: see --format");
            }
            let parser = NdjsonParser::new(output::descriptor("ConsentEvent")?, reading.defaults);
            let parser = Parser::Ndjson(Arc::new(parser));
            let rows = RowReader::new(lines, None);
            Ok(Input { parser, rows, preamble: Vec::new(), first: start, file, format })
        }
        Format::Csv => open_csv(path, lines, reading, file),
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

impl Input {
    /// Goes on at a position of a former run, if the input is a file. The header is behind it already.
    pub(super) fn continue_at(&mut self, position: Position) -> io::Result<bool> {
        let Some(mut file) = self.file.take() else { return Ok(false) };
        if position.offset <= self.first.offset {
            return Ok(true);
        }
        file.seek(SeekFrom::Start(position.offset))?;
        let reader = Box::new(BufReader::with_capacity(BUFFER_BYTES, file));
        let lines = Lines::new(reader, self.format == Format::Csv, position);
        self.rows = RowReader::new(lines, self.rows.shape());
        Ok(true)
    }
}

fn open_csv(
    path: &str,
    mut lines: Lines,
    reading: &Reading<'_>,
    file: Option<File>,
) -> anyhow::Result<Input> {
    let options = reading.csv;
    let given = given_delimiter(path, options)?;
    let mut preamble = Vec::new();
    let mut skipped = Vec::new();
    let mut said = None;
    let header = loop {
        let Some(line) = lines.next().with_context(|| format!("cannot read {path}"))? else {
            bail!("{path} is empty: the first line must name the columns");
        };
        let text = line.text();
        if skipped.is_empty()
            && said.is_none()
            && let Some(delimiter) = separator_line(text)
        {
            said = Some(delimiter);
        } else if !text.trim_ascii().is_empty() {
            break line;
        } else if options.no_header {
            skipped.push(line.clone());
            continue;
        }
        preamble.extend_from_slice(text);
        preamble.push(b'\n');
    };
    let number = lines.position().line - 1;
    let at = || format!("{path}, line {number}");
    if header.is_too_long() {
        return Err(anyhow::anyhow!("longer than {MAX_ROW_BYTES} bytes")).with_context(at);
    }
    let mut text = header.text().to_vec();
    let delimiter = match given.or(said) {
        Some(delimiter) => delimiter,
        None => found_delimiter(&text, options).with_context(at)?,
    };
    if !options.no_header {
        complete_header(&mut lines, &mut text, delimiter).with_context(at)?;
        preamble.extend_from_slice(&text);
        preamble.push(b'\n');
    }
    let cells = header_cells(&text, delimiter, options).with_context(at)?;
    let columns = Columns::new(&cells, options, delimiter).with_context(at)?;
    let shape = columns.shape;
    if options.no_header {
        skipped.push(header);
        lines.unread(skipped.into_iter());
    }
    let parser = CsvParser::new(columns, options, reading.defaults).with_context(at)?;
    let first = lines.position();
    let rows = RowReader::new(lines, Some(shape));
    let parser = Parser::Csv(Arc::new(parser));
    Ok(Input { parser, rows, preamble, first, file, format: Format::Csv })
}

/// The delimiter of the flag, or of the file's extension.
fn given_delimiter(path: &str, options: &CsvOptions) -> anyhow::Result<Option<u8>> {
    let extension = Path::new(path).extension();
    let tabs = extension.is_some_and(|extension| extension == "tsv").then_some(b'\t');
    let Some(delimiter) = options.delimiter else { return Ok(tabs) };
    let must = "--delimiter: must be one ASCII character, such as ; or ,";
    ascii(delimiter).map(Some).context(must)
}

fn ascii(delimiter: char) -> Option<u8> {
    u8::try_from(delimiter).ok().filter(u8::is_ascii)
}

/// The delimiter that a line `sep=;` names, which spreadsheets write before the header.
fn separator_line(line: &[u8]) -> Option<u8> {
    let line = line.strip_prefix(b"\"").and_then(|line| line.strip_suffix(b"\"")).unwrap_or(line);
    match line {
        [b's' | b'S', b'e' | b'E', b'p' | b'P', b'=', delimiter] => Some(*delimiter),
        _ => None,
    }
    .filter(u8::is_ascii)
}

/// The delimiter that the header shows: the only one that occurs in it, or the only one by which it
/// has the columns that a row needs.
fn found_delimiter(header: &[u8], options: &CsvOptions) -> anyhow::Result<u8> {
    let occurs = |delimiter: &u8| {
        let mut splitter = Splitter::new(*delimiter);
        splitter.split(header) != Ending::Malformed && splitter.len() > 1
    };
    let found: Vec<u8> = DELIMITERS.into_iter().filter(occurs).collect();
    if found.len() <= 1 {
        return Ok(found.first().copied().unwrap_or(b','));
    }
    let has_user = |delimiter: &u8| {
        let cells = header_cells(header, *delimiter, options);
        let columns = cells.and_then(|cells| {
            let lenient = CsvOptions { ignore_other_columns: true, ..options.clone() };
            Columns::new(&cells, &lenient, *delimiter)
        });
        columns.is_ok_and(|columns| columns.index("user_id").is_some())
    };
    let fitting: Vec<u8> = found.iter().copied().filter(has_user).collect();
    match fitting[..] {
        [delimiter] => Ok(delimiter),
        // A comma is what it is called after. A doubt would be between two others.
        _ if found.contains(&b',') && !fitting.iter().any(|other| *other != b',') => Ok(b','),
        _ => bail!(
            "the columns may be separated by more than one character of `,`, `;`, `|` and tab: give \
             --delimiter"
        ),
    }
}

/// Adds lines to a header that has a line break in a quoted name.
fn complete_header(lines: &mut Lines, text: &mut Vec<u8>, delimiter: u8) -> anyhow::Result<()> {
    let mut splitter = Splitter::new(delimiter);
    while splitter.split(text) == Ending::Open {
        match lines.next()? {
            Some(line) if text.len() + line.text().len() <= MAX_ROW_BYTES => {
                text.push(b'\n');
                text.extend_from_slice(line.text());
            }
            _ => bail!("a quote in the header is not closed"),
        }
    }
    Ok(())
}

/// The names in a header.
fn header_cells(text: &[u8], delimiter: u8, options: &CsvOptions) -> anyhow::Result<Vec<String>> {
    let text = options.encoding.decode(text)?;
    let mut splitter = Splitter::new(delimiter);
    if splitter.split(text.as_bytes()) == Ending::Malformed {
        bail!(DOUBLED_QUOTES);
    }
    Ok(splitter.texts(&text).into_iter().map(std::borrow::Cow::into_owned).collect())
}
