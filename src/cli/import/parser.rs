//! Turns rows into events, and faults into the words of the input's author.

use std::sync::Arc;

use csv::StringRecord;
use prost_reflect::{DynamicMessage, MessageDescriptor};

use super::columns::Columns;
use super::fault::{Fault, INVALID_TIME};
use super::rows::{MAX_ROW_BYTES, Raw, Row};
use crate::cli::export_line;
use crate::grpc::pb;
use crate::grpc::pb::consent_event::What;

/// Turns the rows of one input into events.
#[derive(Clone)]
pub(super) enum Parser {
    Ndjson(MessageDescriptor),
    Csv(Arc<Columns>),
}

impl Parser {
    /// The request that records a row.
    pub(super) fn request(&self, row: &Row) -> Result<pb::RecordEventsRequest, Fault> {
        let event = self.event(&row.raw)?;
        // The effect of a keyword depends on the state when it is recorded, so a row with a text
        // that is sent again needs a request id to be idempotent. All other rows are idempotent by
        // themselves.
        let has_text = matches!(&event.what, Some(What::InboundMessage(m)) if !m.text.is_empty());
        let request_id = if has_text { row.request_id() } else { String::new() };
        Ok(pb::RecordEventsRequest { sequence: 0, event: Some(event), request_id })
    }

    /// The event of a row.
    fn event(&self, raw: &Raw) -> Result<pb::ConsentEvent, Fault> {
        let event = match (self, raw) {
            (_, Raw::TooLong) => {
                return Err(Fault::new("", format!("longer than {MAX_ROW_BYTES} bytes")));
            }
            (Self::Ndjson(descriptor), Raw::Line(line)) => parse_json(descriptor, line)?,
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

    /// Translates an error of the sidecar to the names of this input's fields or columns.
    pub(super) fn fault(&self, error: &pb::ItemError) -> Fault {
        let field = error.field.strip_prefix("event.").unwrap_or(&error.field);
        // A message about several faults names the field of each.
        if error.message.starts_with(&error.field) && !field.is_empty() {
            return Fault::new("", error.message.replace("event.", ""));
        }
        let column = field.rsplit('.').next().unwrap_or(field);
        let field = if matches!(self, Self::Csv(_)) { column } else { field };
        Fault::new(field, error.message.clone())
    }

    /// The header of a CSV input.
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

fn parse_json(descriptor: &MessageDescriptor, line: &[u8]) -> Result<pb::ConsentEvent, Fault> {
    let Ok(line) = std::str::from_utf8(line) else { return Err(Fault::new("", "not UTF-8")) };
    let event = match export_line::without_recorded(line) {
        Some(event) => parse_message(descriptor, &event.to_string()),
        None => parse_message(descriptor, line),
    }?;
    event.transcode_to().map_err(|_| Fault::new("", "not a ConsentEvent"))
}

fn parse_message(descriptor: &MessageDescriptor, line: &str) -> Result<DynamicMessage, Fault> {
    let mut json = serde_json::Deserializer::from_str(line);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let event = DynamicMessage::deserialize(descriptor.clone(), tracked);
    event.and_then(|event| json.end().map(|()| event)).map_err(|error| {
        let path = track.path().to_string();
        // If the JSON itself is malformed, the path ends in `.?` or is empty.
        let path = path.trim_end_matches(['.', '?']);
        Fault::new(path, reason_of(&error.to_string()))
    })
}

/// Describes a JSON error and what would be valid.
fn reason_of(error: &str) -> String {
    let reason = without_values(error);
    if reason.starts_with("unrecognized enum value") {
        return "must be one of OPT_IN_METHOD_SMS, _WEBSITE, _WHATSAPP, _PHONE, _IN_PERSON and \
                _WHATSAPP_SIGNUP"
            .to_owned();
    }
    if reason.starts_with("invalid rfc3339 timestamp") {
        return INVALID_TIME.to_owned();
    }
    reason
}

/// The text of a JSON error without the quoted values of the row, which may name a user.
fn without_values(error: &str) -> String {
    let mut text = String::new();
    let mut quote = None;
    let (error, _) = error.split_once(" at line ").unwrap_or((error, ""));
    for c in error.chars() {
        match quote {
            None if matches!(c, '`' | '"') => quote = Some(c),
            None => text.push(c),
            Some(open) if c == open => {
                quote = None;
                text.push('…');
            }
            Some(_) => {}
        }
    }
    text
}
