//! A line of an export: an event as imports read it, and beside it how it was recorded.
//!
//! What stands beside the event is of the ledger that it was exported from: another ledger has
//! numbers and chains of its own, so an import leaves it out.

use anyhow::Context as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::{Map, Value};

use super::print::Json;
use crate::grpc::{DESCRIPTOR_SET, pb};

/// Under which name a line says how its event was recorded.
const RECORDED: &str = "recorded";

/// Writes exported events as lines.
pub(super) struct Writer {
    event: Json,
    recorded: Json,
}

impl Writer {
    pub(super) fn new() -> anyhow::Result<Self> {
        let (event, recorded) = (Json::new("ConsentEvent")?, Json::new("ExportEventsResponse")?);
        Ok(Self { event, recorded })
    }

    /// An exported event as a line of NDJSON.
    pub(super) fn line(&self, mut exported: pb::ExportEventsResponse) -> anyhow::Result<Vec<u8>> {
        let event = self.event.without_defaults(&exported.event.take().unwrap_or_default())?;
        let recorded = self.recorded.without_defaults(&exported)?;
        // Behind the event's own fields, which stay in their order.
        let event = event.strip_suffix(b"}").context("an event is a JSON object")?;
        let comma: &[u8] = if event.len() > 1 { b"," } else { b"" };
        let name = format!("\"{RECORDED}\":");
        Ok([event, comma, name.as_bytes(), &recorded, b"}"].concat())
    }
}

/// The event of a line, without how it was recorded; none where the line does not say that.
pub(super) fn without_recorded(line: &str) -> Option<Value> {
    // Most lines that were not exported do not have the name anywhere.
    if !line.contains(RECORDED) {
        return None;
    }
    let mut line: Map<String, Value> = serde_json::from_str(line).ok()?;
    line.remove(RECORDED)?.is_object().then_some(Value::Object(line))
}

/// Reads exported events of lines.
pub(super) struct Reader {
    event: MessageDescriptor,
    recorded: MessageDescriptor,
}

/// What is wrong with a line that should be of an export. It may name a person, so what stands in
/// it is not said.
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
        let pool = DescriptorPool::decode(DESCRIPTOR_SET)?;
        let of = |name: &str| pool.get_message_by_name(name).context("not in the contract");
        let event = of("consent.v1.ConsentEvent")?;
        Ok(Self { event, recorded: of("consent.v1.ExportEventsResponse")? })
    }

    /// The exported event that a line is.
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
    fn a_line_is_read_as_it_was_written() {
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
