//! Printing: for people, and as proto3 JSON.

use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context as _;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use crate::grpc::{DESCRIPTOR_SET, pb};
use consentd_core::time::Timestamp;

/// Prints a line. A reader that has gone, such as `head`, is no error.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    read_line(text).map(drop)
}

/// Prints a line; false where nobody reads any more.
pub(super) fn read_line(text: &str) -> anyhow::Result<bool> {
    stdout(format!("{text}\n").as_bytes())
}

fn stdout(content: &[u8]) -> anyhow::Result<bool> {
    match io::stdout().lock().write_all(content) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        printed => printed.map(|()| true).context("cannot write to standard output"),
    }
}

/// Writes a file; `-` is standard output.
pub(super) fn file(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return stdout(content).map(drop);
    }
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// Says something beside what is printed, on standard error.
pub(super) fn note(text: &str) {
    // Nothing is left to be done where even that fails.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints an error, and what is known of its causes.
pub(super) fn error(error: &anyhow::Error) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Most of our errors say their cause themselves.
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    note(&format!("consentd: {}", text.trim_end()));
}

/// Prints a message of the contract as one line of proto3 JSON.
pub(super) fn json(name: &str, message: &impl Message) -> anyhow::Result<()> {
    // Everything is shown, what is false or zero too: scripts need not know the defaults.
    let text = Json::new(name)?.encode(message, false)?;
    line(&String::from_utf8(text)?)
}

/// Writes messages of one type as proto3 JSON.
pub(super) struct Json(MessageDescriptor);

impl Json {
    pub(super) fn new(name: &str) -> anyhow::Result<Self> {
        let pool = DescriptorPool::decode(DESCRIPTOR_SET)?;
        let full = format!("consent.v1.{name}");
        Ok(Self(pool.get_message_by_name(&full).with_context(|| format!("no {full}"))?))
    }

    /// A message, without what is unset, false or zero.
    pub(super) fn without_defaults(&self, message: &impl Message) -> anyhow::Result<Vec<u8>> {
        self.encode(message, true)
    }

    /// A message, with all that it has.
    pub(super) fn with_defaults(&self, message: &impl Message) -> anyhow::Result<Vec<u8>> {
        self.encode(message, false)
    }

    fn encode(&self, message: &impl Message, skip_defaults: bool) -> anyhow::Result<Vec<u8>> {
        let mut dynamic = DynamicMessage::new(self.0.clone());
        dynamic.transcode_from(message)?;
        let options = prost_reflect::SerializeOptions::new().skip_default_fields(skip_defaults);
        let mut serializer = serde_json::Serializer::new(Vec::new());
        dynamic.serialize_with_options(&mut serializer, &options)?;
        Ok(serializer.into_inner())
    }
}

/// A moment as RFC 3339; empty where unset.
pub(super) fn time(time: Option<&prost_types::Timestamp>) -> String {
    time.map(timestamp).map(Timestamp::rfc3339_millis).unwrap_or_default()
}

/// A moment of the wire.
pub(super) fn timestamp(time: &prost_types::Timestamp) -> Timestamp {
    let millis =
        time.seconds.saturating_mul(1_000).saturating_add(i64::from(time.nanos) / 1_000_000);
    Timestamp::saturating_from_millis(millis)
}

/// A span, to the millisecond.
pub(super) fn span(span: Option<&prost_types::Duration>) -> String {
    let span = span.map(|span| std::time::Duration::try_from(*span).unwrap_or_default());
    let millis = span.unwrap_or_default().as_millis();
    let millis = u64::try_from(millis).unwrap_or(u64::MAX);
    humantime::format_duration(std::time::Duration::from_millis(millis)).to_string()
}

/// What happened, in a few words.
pub(super) fn what(event: &pb::ConsentEvent) -> String {
    use pb::consent_event::What;
    match &event.what {
        None => "nothing".to_owned(),
        Some(What::OptIn(opt_in)) => {
            let evidence = opt_in.evidence.clone().unwrap_or_default();
            let pending = if opt_in.pending { ", pending" } else { "" };
            let expire = match &opt_in.expire_time {
                None => String::new(),
                Some(expire) => format!(", until {}", time(Some(expire))),
            };
            let said = if evidence.statement.is_empty() {
                String::new()
            } else {
                let name = shown(&evidence.business_name);
                let locale = match shown(&evidence.locale) {
                    locale if locale.is_empty() => locale,
                    locale => format!(", {locale}"),
                };
                format!("\n    {:?} ({name}{locale})", evidence.statement)
            };
            let confirmed = match shown(&evidence.confirmation) {
                by if by.is_empty() => by,
                by => format!(", confirmed by {by}"),
            };
            format!(
                "opt-in {}{pending}{expire}, by {}{}{confirmed}{said}",
                opt_in.category,
                evidence.method().as_str_name().trim_start_matches("OPT_IN_METHOD_"),
                reference(&evidence.reference),
            )
        }
        Some(What::OptOut(out)) => format!("opt-out {}{}", out.scope, reference(&out.reference)),
        Some(What::InboundMessage(inbound)) => {
            format!("inbound message{}", reference(&inbound.message_id))
        }
        Some(What::PlatformPreference(preference)) => {
            let did = if preference.marketing_stopped { "stopped" } else { "resumed" };
            format!("marketing {did} inside WhatsApp")
        }
        Some(What::DeliveryFailure(failure)) => format!("delivery failure {}", failure.code),
        Some(What::Suppression(suppression)) => {
            let did = if suppression.suppressed { "suppressed" } else { "suppression lifted" };
            format!("{did}{}", reference(&suppression.reference))
        }
        Some(What::Link(link)) => {
            let how = if link.moved { "moved to" } else { "is also" };
            format!("{how} {}", shown(&link.other_user_id))
        }
    }
}

fn reference(reference: &str) -> String {
    if reference.is_empty() { String::new() } else { format!(" [{}]", shown(reference)) }
}

/// A text of somebody else's: it must neither make lines of its own nor command the terminal.
pub(super) fn shown(text: &str) -> String {
    let is_safe = |c: char| {
        !c.is_control() && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_safe(c) { c } else { '\u{fffd}' }).collect()
}
