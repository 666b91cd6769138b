//! The lines of an export: an event as imports read it, and how it was recorded.
//!
//! How it was recorded (its number, chain head and revision) belongs to the exporting ledger.
//! Another ledger has numbers and chains of its own, so imports ignore it.

use anyhow::Context as _;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::{Map, Value};

use super::output::{JsonEncoder, descriptor};
use crate::grpc::pb;

/// The name of the field that says how the event was recorded.
const RECORDED: &str = "recorded";

/// Encodes exported events as lines of NDJSON.
pub(super) struct Writer {
    event: JsonEncoder,
    recorded: JsonEncoder,
}

impl Writer {
    pub(super) fn new() -> anyhow::Result<Self> {
        let (event, recorded) =
            (JsonEncoder::new("ConsentEvent")?, JsonEncoder::new("ExportEventsResponse")?);
        Ok(Self { event, recorded })
    }

    /// Encodes one event, without a line break.
    pub(super) fn line(&self, mut exported: pb::ExportEventsResponse) -> anyhow::Result<Vec<u8>> {
        let event = self.event.without_defaults(&exported.event.take().unwrap_or_default())?;
        let recorded = self.recorded.without_defaults(&exported)?;
        // The new field is appended, so that the event's own fields keep their order.
        let event = event.strip_suffix(b"}").context("an event is a JSON object")?;
        let comma: &[u8] = if event.len() > 1 { b"," } else { b"" };
        let name = format!("\"{RECORDED}\":");
        Ok([event, comma, name.as_bytes(), &recorded, b"}"].concat())
    }
}

/// The event of a line without the field that says how it was recorded, if the line has that field.
pub(super) fn without_recorded(line: &str) -> Option<Value> {
    // Lines without the word need not be parsed.
    if !line.contains(RECORDED) {
        return None;
    }
    let mut line: Map<String, Value> = serde_json::from_str(line).ok()?;
    line.remove(RECORDED)?.is_object().then_some(Value::Object(line))
}

/// Decodes the lines of an export.
pub(super) struct Reader {
    event: MessageDescriptor,
    recorded: MessageDescriptor,
}

/// Why a line is not one of an export. The text does not quote the line, which may name a user.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum NotExported {
    #[error("not a line of an export: no JSON object with the fields of a ConsentEvent")]
    NoEvent,
    #[error(
        "has no \"recorded\" with the event's number and chain head: it was exported by an older \
         version, or is no export"
    )]
    NotRecorded,
}

impl Reader {
    pub(super) fn new() -> anyhow::Result<Self> {
        let recorded = descriptor("ExportEventsResponse")?;
        Ok(Self { event: descriptor("ConsentEvent")?, recorded })
    }

    /// Decodes one line.
    pub(super) fn read(&self, line: &[u8]) -> Result<pb::ExportEventsResponse, NotExported> {
        let line = serde_json::from_slice(line);
        let mut line: Map<String, Value> = line.map_err(|_| NotExported::NoEvent)?;
        let recorded = line.remove(RECORDED).ok_or(NotExported::NotRecorded)?;
        let read = |descriptor: &MessageDescriptor, json: Value| {
            DynamicMessage::deserialize(descriptor.clone(), json).ok()
        };
        let event =
            read(&self.event, Value::Object(line)).and_then(|event| event.transcode_to().ok());
        let event: pb::ConsentEvent = event.ok_or(NotExported::NoEvent)?;
        let recorded = read(&self.recorded, recorded).and_then(|said| said.transcode_to().ok());
        let recorded: pb::ExportEventsResponse = recorded.ok_or(NotExported::NotRecorded)?;
        if recorded.number == 0 || recorded.chain_head.len() != 32 {
            return Err(NotExported::NotRecorded);
        }
        Ok(pb::ExportEventsResponse { event: Some(event), ..recorded })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_line_is_read_back() {
        let what = pb::consent_event::What::OptOut(pb::OptOut {
            scope: "*".into(),
            reference: "recorded }\u{2028}".into(),
        });
        let exported = pb::ExportEventsResponse {
            event: Some(pb::ConsentEvent {
                user_id: "US.1".into(),
                business_id: "acme".into(),
                event_time: Some(prost_types::Timestamp { seconds: 7, nanos: 1_000_000 }),
                what: Some(what),
            }),
            record_time: Some(prost_types::Timestamp { seconds: 8, nanos: 0 }),
            revision: 3,
            number: 2,
            chain_head: vec![0xab; 32],
        };
        let line = Writer::new().unwrap().line(exported.clone()).unwrap();
        let reader = Reader::new().unwrap();
        assert_eq!(reader.read(&line), Ok(exported));
        let text = String::from_utf8(line).unwrap();
        let event = without_recorded(&text).unwrap();
        let alone = event.to_string();
        assert!(event.get("optOut").is_some() && event.get(RECORDED).is_none());
        assert_eq!(without_recorded(&alone), None, "the word alone is in its reference");
        assert_eq!(reader.read(alone.as_bytes()), Err(NotExported::NotRecorded));
        for other in ["", "[]", "7", "{\"recorded\":", "user_id,business_id"] {
            assert_eq!(reader.read(other.as_bytes()), Err(NotExported::NoEvent), "{other}");
        }
        for recorded in ["{}", "7", "{\"number\":\"1\"}", "{\"chainHead\":\"AA==\"}"] {
            let line = format!("{{\"userId\":\"1\",\"recorded\":{recorded}}}");
            assert_eq!(reader.read(line.as_bytes()), Err(NotExported::NotRecorded), "{line}");
        }
        let unknown = text.replacen("userId", "userIdd", 1);
        assert_eq!(reader.read(unknown.as_bytes()), Err(NotExported::NoEvent));
    }
}
