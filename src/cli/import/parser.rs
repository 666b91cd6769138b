//! Turns rows into events, and faults into the words of the input's author.

use std::borrow::Cow;
use std::sync::Arc;

use consentd_core::user_id::Region;
use prost_reflect::{DynamicMessage, MessageDescriptor};

use super::csv_event::{CsvParser, too_long};
use super::csv_options::Defaults;
use super::fault::Fault;
use super::rows::Row;
use super::times::{INVALID_TIME, NULL_DATE, is_null_date};
use crate::cli::export_line;
use crate::grpc::pb;
use crate::grpc::pb::consent_event::What;

/// Turns the rows of one input into events.
#[derive(Clone)]
pub(super) enum Parser {
    Ndjson(Arc<NdjsonParser>),
    Csv(Arc<CsvParser>),
}

/// What a row is.
#[derive(Debug)]
pub(super) enum Parsed<T> {
    Event(T),
    Fault(Fault),
    /// It has no cell that is not empty.
    Blank,
    /// The conditions of `--where` are not met.
    LeftOut,
}

impl<T> Parsed<T> {
    /// What becomes of the event, if there is one.
    pub(super) fn and_then<U>(self, then: impl FnOnce(T) -> Result<U, Fault>) -> Parsed<U> {
        match self {
            Self::Event(event) => then(event).map_or_else(Parsed::Fault, Parsed::Event),
            Self::Fault(fault) => Parsed::Fault(fault),
            Self::Blank => Parsed::Blank,
            Self::LeftOut => Parsed::LeftOut,
        }
    }
}

/// The request that records an event.
fn request(row: &Row, event: pb::ConsentEvent) -> pb::RecordEventsRequest {
    // The effect of a keyword depends on the state when it is recorded, so a row with a text that is
    // sent again needs a request id to be idempotent. All other rows are idempotent by themselves.
    let has_text = matches!(&event.what, Some(What::InboundMessage(m)) if !m.text.is_empty());
    let request_id = if has_text { row.request_id() } else { String::new() };
    pb::RecordEventsRequest { sequence: 0, event: Some(event), request_id }
}

/// Turns lines of NDJSON into events.
pub(super) struct NdjsonParser {
    descriptor: MessageDescriptor,
    business: Option<String>,
    region: Option<Region>,
    dates_denials: bool,
}

impl Parser {
    /// The event of a row, whose numbers have their country code; and the user's id as the row has it,
    /// if it had none.
    pub(super) fn event(&self, row: &Row) -> Parsed<(pb::ConsentEvent, Option<String>)> {
        let (event, region) = match self {
            _ if row.is_blank() => return Parsed::Blank,
            Self::Ndjson(parser) => {
                let event = parser.event(row).map_or_else(Parsed::Fault, Parsed::Event);
                (event, parser.region.as_ref())
            }
            Self::Csv(parser) => (parser.event(row), parser.region()),
        };
        event.and_then(|mut event| {
            let notation = match region {
                Some(region) => complete_numbers(region, &mut event)?,
                None => None,
            };
            if event.event_time.is_none() && !event.what.as_ref().is_some_and(is_denial) {
                return Err(Fault::new(
                    "event_time",
                    "required in an import: without it the event would count from now on; only \
                     opt-outs, stops and suppressions may go without",
                ));
            }
            Ok((event, notation))
        })
    }

    /// The request that records a row.
    pub(super) fn request(&self, row: &Row) -> Parsed<pb::RecordEventsRequest> {
        self.event(row).and_then(|(event, _)| Ok(request(row, event)))
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
}

impl NdjsonParser {
    pub(super) fn new(descriptor: MessageDescriptor, defaults: &Defaults) -> Self {
        let Defaults { business, region, undated_opt_outs } = defaults.clone();
        Self { descriptor, business, region, dates_denials: undated_opt_outs.is_some() }
    }

    fn event(&self, row: &Row) -> Result<pb::ConsentEvent, Fault> {
        if row.defect.is_some() {
            return Err(Fault::new("", too_long()));
        }
        let mut event = parse_json(&self.descriptor, &row.raw)?;
        if event.business_id.is_empty()
            && let Some(business) = &self.business
        {
            event.business_id.clone_from(business);
        }
        if event.event_time.as_ref().is_some_and(is_null_date) {
            if !self.dates_denials || !event.what.as_ref().is_some_and(is_denial) {
                return Err(Fault::new("eventTime", NULL_DATE));
            }
            event.event_time = None;
        }
        let expire = match &event.what {
            Some(What::OptIn(opt_in)) => opt_in.expire_time.as_ref(),
            _ => None,
        };
        if expire.is_some_and(is_null_date) {
            return Err(Fault::new("optIn.expireTime", NULL_DATE));
        }
        Ok(event)
    }
}

/// Writes the country code before the numbers of an event that lack it. Returns the user's id as it was
/// if it is another one now.
fn complete_numbers(
    region: &Region,
    event: &mut pb::ConsentEvent,
) -> Result<Option<String>, Fault> {
    let complete = |id: &mut String, field: &str| {
        let completed = region.international(id);
        match completed.map_err(|why| Fault::new(field, why.to_string()))? {
            Cow::Borrowed(_) => Ok(None),
            Cow::Owned(completed) => Ok(Some(std::mem::replace(id, completed))),
        }
    };
    if let Some(What::Link(link)) = &mut event.what {
        complete(&mut link.other_user_id, "other_user_id")?;
    }
    if matches!(event.what, Some(What::TemplateCategory(_) | What::TemplateRestriction(_))) {
        return Ok(None);
    }
    complete(&mut event.user_id, "user_id")
}

pub(super) fn is_denial(what: &What) -> bool {
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
