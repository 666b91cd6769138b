//! The rows of an input, and the events that they stand for.
//!
//! A row is kept as it was read until it is recorded: it may have to be sent again, or written to
//! the rejected ones.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use csv::StringRecord;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use sha2::{Digest as _, Sha256};

use super::columns::Columns;
use super::hex;
use crate::cli::exported;
use crate::grpc::pb::consent_event::What;
use crate::grpc::{DESCRIPTOR_SET, pb};

/// The longest row, in bytes: above all bounds of an event's fields.
const MAX_ROW: u64 = 1024 * 1024;

pub(super) const NOT_A_MOMENT: &str = "must be a moment with its zone, such as \
                                       2026-01-31T09:30:00Z or 2026-01-31T09:30:00+01:00";

const BOM: &[u8] = b"\xef\xbb\xbf";

/// How an input is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Form {
    /// One `ConsentEvent` a line, as proto3 JSON.
    Ndjson,
    /// Comma-separated values, with a header.
    Csv,
}

/// A row as it was read.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The line that it begins on, from 1.
    pub(super) line: u64,
    /// How many bytes of the input end with it.
    pub(super) end: u64,
    /// The next row's line.
    pub(super) next_line: u64,
    pub(super) raw: Raw,
}

/// What a row consists of.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    Line(Vec<u8>),
    Cells(StringRecord),
    /// Left out of memory: longer than a row may be.
    TooLong,
}

impl Row {
    /// Tells it from all other rows of all inputs.
    fn id(&self) -> String {
        let mut digest = Sha256::new_with_prefix(self.line.to_be_bytes());
        match &self.raw {
            Raw::Line(line) => digest.update(line),
            Raw::Cells(cells) => digest.update(cells.as_slice()),
            Raw::TooLong => {}
        }
        let digest = digest.finalize();
        format!("import-{}", hex(digest.get(..16).unwrap_or_default()))
    }
}

/// Why a row was not recorded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fault {
    /// The field, or the column; empty where it is about the whole row.
    pub(super) field: String,
    pub(super) reason: String,
}

impl Fault {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// Where reading goes on, or begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// How many bytes were read before.
    pub(super) offset: u64,
    /// The line that begins there, from 1.
    pub(super) line: u64,
}

/// Makes events of rows.
#[derive(Clone)]
pub(super) enum Parser {
    Ndjson(MessageDescriptor),
    Csv(Arc<Columns>),
}

impl Parser {
    /// What to ask for, for this row.
    pub(super) fn request(&self, row: &Row) -> Result<pb::RecordEventsRequest, Fault> {
        let event = self.event(&row.raw)?;
        // What a text means depends on what is known when it is read. A row that is sent again
        // after a break must not be read again: all others mean the same however often they come.
        let text = matches!(&event.what, Some(What::InboundMessage(m)) if !m.text.is_empty());
        let request_id = if text { row.id() } else { String::new() };
        Ok(pb::RecordEventsRequest { sequence: 0, event: Some(event), request_id })
    }

    /// The event that a row stands for.
    fn event(&self, raw: &Raw) -> Result<pb::ConsentEvent, Fault> {
        let event = match (self, raw) {
            (_, Raw::TooLong) => {
                return Err(Fault::new("", format!("longer than {MAX_ROW} bytes")));
            }
            (Self::Ndjson(descriptor), Raw::Line(line)) => from_json(descriptor, line)?,
            (Self::Csv(columns), Raw::Cells(cells)) => columns.event(cells)?,
            _ => return Err(Fault::new("", "not a row of this input")),
        };
        if event.event_time.is_none() && !event.what.as_ref().is_some_and(is_denial) {
            return Err(Fault::new(
                "event_time",
                "required in an import: without it the event would count from now on; only \
                 opt-outs, stops and suppressions may go without",
            ));
        }
        Ok(event)
    }

    /// What the sidecar found wrong, in the words of this input's author.
    pub(super) fn fault(&self, error: &pb::ItemError) -> Fault {
        let field = error.field.strip_prefix("event.").unwrap_or(&error.field);
        // Of several faults the message names each one's field.
        if error.message.starts_with(&error.field) && !field.is_empty() {
            return Fault::new("", error.message.replace("event.", ""));
        }
        let column = field.rsplit('.').next().unwrap_or(field);
        let field = if matches!(self, Self::Csv(_)) { column } else { field };
        Fault::new(field, error.message.clone())
    }

    /// The header to write above rows of this form, where it has one.
    pub(super) fn header(&self) -> Option<&StringRecord> {
        match self {
            Self::Ndjson(_) => None,
            Self::Csv(columns) => Some(columns.header()),
        }
    }
}

fn is_denial(what: &What) -> bool {
    match what {
        What::OptOut(_) => true,
        What::PlatformPreference(platform) => platform.marketing_stopped,
        What::Suppression(suppression) => suppression.suppressed,
        _ => false,
    }
}

fn from_json(descriptor: &MessageDescriptor, line: &[u8]) -> Result<pb::ConsentEvent, Fault> {
    let Ok(line) = std::str::from_utf8(line) else { return Err(Fault::new("", "not UTF-8")) };
    let event = match exported::without_recorded(line) {
        // How it was recorded in the ledger that it comes from is nothing to this one.
        Some(event) => message(descriptor, &event.to_string()),
        None => message(descriptor, line),
    }?;
    event.transcode_to().map_err(|_| Fault::new("", "not a ConsentEvent"))
}

fn message(descriptor: &MessageDescriptor, line: &str) -> Result<DynamicMessage, Fault> {
    let mut json = serde_json::Deserializer::from_str(line);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let event = DynamicMessage::deserialize(descriptor.clone(), tracked);
    event.and_then(|event| json.end().map(|()| event)).map_err(|error| {
        let path = track.path().to_string();
        // Where the JSON itself is broken, there is no field.
        let path = path.trim_end_matches(['.', '?']);
        Fault::new(path, reason(&error.to_string()))
    })
}

/// What was wrong, and what would be right.
fn reason(error: &str) -> String {
    let said = without_values(error);
    if said.starts_with("unrecognized enum value") {
        return "must be one of OPT_IN_METHOD_SMS, _WEBSITE, _WHATSAPP, _PHONE, _IN_PERSON and \
                _WHATSAPP_SIGNUP"
            .to_owned();
    }
    if said.starts_with("invalid rfc3339 timestamp") {
        return NOT_A_MOMENT.to_owned();
    }
    said
}

/// What a JSON error says, without what stands in the row: that may name a person.
fn without_values(error: &str) -> String {
    let mut said = String::new();
    let mut quote = None;
    let (error, _) = error.split_once(" at line ").unwrap_or((error, ""));
    for c in error.chars() {
        match quote {
            None if matches!(c, '`' | '"') => quote = Some(c),
            None => said.push(c),
            Some(open) if c == open => {
                quote = None;
                said.push('…');
            }
            Some(_) => {}
        }
    }
    said
}

/// An input's rows, read one by one.
pub(super) enum Rows {
    Ndjson { input: Input, place: Place },
    Csv { reader: Box<csv::Reader<Input>>, start: Place, row: Arc<AtomicU64> },
}

/// An input, read no further than a row may be long at a time.
pub(super) struct Input {
    inner: Box<dyn BufRead + Send>,
    /// How many more bytes may be read before this is refilled.
    left: Arc<AtomicU64>,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::Error::other(format!(
                "a row is longer than {MAX_ROW} bytes: is a quote not closed?"
            )));
        }
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.inner.read(buffer.get_mut(..len).unwrap_or_default())?;
        self.left.fetch_sub(u64::try_from(read).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(read)
    }
}

/// Opens an input; `-` is standard input.
fn open(path: &str) -> anyhow::Result<(Box<dyn BufRead + Send>, Option<File>)> {
    if path == "-" {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let file = File::open(path).with_context(|| format!("cannot read {path}"))?;
    let again = file.try_clone().with_context(|| format!("cannot read {path}"))?;
    Ok((Box::new(BufReader::with_capacity(256 << 10, file)), Some(again)))
}

/// Begins to read an input. From `place` on, where it was read up to there before.
pub(super) fn read(
    path: &str,
    form: Option<Form>,
    delimiter: u8,
    place: Option<Place>,
) -> anyhow::Result<(Parser, Rows)> {
    let (mut inner, file) = open(path)?;
    let first = inner.fill_buf().with_context(|| format!("cannot read {path}"))?;
    if first.starts_with(b"\xff\xfe") || first.starts_with(b"\xfe\xff") {
        bail!("{path} is UTF-16: save it as UTF-8");
    }
    let bom = if first.starts_with(BOM) { BOM.len() } else { 0 };
    let text = first.get(bom..).unwrap_or_default();
    let start = text.iter().find(|byte| !byte.is_ascii_whitespace());
    let form = form.unwrap_or_else(|| match (path.rsplit_once('.'), start) {
        (Some((_, "csv" | "tsv")), _) => Form::Csv,
        (Some((_, "ndjson" | "jsonl" | "json")), _) | (_, Some(b'{' | b'[') | None) => Form::Ndjson,
        _ => Form::Csv,
    });
    if form == Form::Ndjson && start == Some(&b'[') {
        bail!("{path} is one JSON array: write one event a line, such as with `jq -c '.[]'`");
    }
    inner.consume(bom);
    let offset = u64::try_from(bom).unwrap_or(0);
    match form {
        Form::Ndjson => {
            if let (Some(mut file), Some(place)) = (file, place) {
                file.seek(SeekFrom::Start(place.offset))?;
                inner = Box::new(BufReader::with_capacity(256 << 10, file));
            }
            let pool = DescriptorPool::decode(DESCRIPTOR_SET)?;
            let descriptor = pool.get_message_by_name("consent.v1.ConsentEvent");
            let parser = Parser::Ndjson(descriptor.context("no ConsentEvent in the contract")?);
            let input = Input { inner, left: Arc::new(AtomicU64::new(u64::MAX)) };
            let place = place.unwrap_or(Place { offset, line: 1 });
            Ok((parser, Rows::Ndjson { input, place }))
        }
        Form::Csv => {
            let row = Arc::new(AtomicU64::new(MAX_ROW));
            let input = Input { inner, left: Arc::clone(&row) };
            let mut builder = csv::ReaderBuilder::new();
            builder.has_headers(false).flexible(true).delimiter(delimiter);
            let mut reader = builder.from_reader(input);
            let mut header = StringRecord::new();
            reader.read_record(&mut header).with_context(|| format!("cannot read {path}"))?;
            let columns = Columns::new(header, char::from(delimiter))
                .with_context(|| format!("{path}, line 1"))?;
            let parser = Parser::Csv(Arc::new(columns));
            let mut start = Place { offset, line: 1 };
            if let (Some(mut file), Some(place)) = (file, place) {
                file.seek(SeekFrom::Start(place.offset))?;
                let inner = Box::new(BufReader::with_capacity(256 << 10, file));
                reader = builder.from_reader(Input { inner, left: Arc::clone(&row) });
                start = place;
            }
            Ok((parser, Rows::Csv { reader: Box::new(reader), start, row }))
        }
    }
}

impl Rows {
    /// The next row; none at the end. Blank ones are left out.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Row>> {
        match self {
            Self::Ndjson { input, place } => next_line(&mut input.inner, place),
            Self::Csv { reader, start, row } => {
                row.store(MAX_ROW, Ordering::Relaxed);
                let mut cells = StringRecord::new();
                let before = reader.position().line();
                let line = start.line + before - 1;
                let at = || format!("line {line}");
                if !reader.read_record(&mut cells).with_context(at)? {
                    return Ok(None);
                }
                let line = cells.position().map_or(line, |at| start.line + at.line() - 1);
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

fn next_line(input: &mut dyn BufRead, place: &mut Place) -> anyhow::Result<Option<Row>> {
    loop {
        let mut line = Vec::with_capacity(512);
        let read = input.take(MAX_ROW + 1).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(None);
        }
        let mut len = u64::try_from(read)?;
        let mut raw = None;
        if len > MAX_ROW && !line.ends_with(b"\n") {
            raw = Some(Raw::TooLong);
            len += skip_line(input)?;
        }
        let at = place.line;
        *place = Place { offset: place.offset + len, line: at + 1 };
        while line.last().is_some_and(u8::is_ascii_whitespace) {
            line.pop();
        }
        if raw.is_none() && line.is_empty() {
            continue;
        }
        let raw = raw.unwrap_or(Raw::Line(line));
        return Ok(Some(Row { line: at, end: place.offset, next_line: place.line, raw }));
    }
}

/// Reads up to the end of a line, and forgets it.
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
