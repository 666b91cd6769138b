//! Prints to standard output and standard error, as text and as proto3 JSON.

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::LazyLock;

use anyhow::Context as _;
use consentd_core::decision;
use consentd_core::failure;
use consentd_core::time::Timestamp;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use super::time;
use crate::grpc::{DESCRIPTOR_SET, pb};

/// Prints a line. A closed pipe, such as that of `head`, is no error.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    try_line(text).map(drop)
}

/// Prints a line. Returns false if the reader has closed the pipe.
pub(super) fn try_line(text: &str) -> anyhow::Result<bool> {
    stdout(format!("{text}\n").as_bytes())
}

fn stdout(content: &[u8]) -> anyhow::Result<bool> {
    match io::stdout().lock().write_all(content) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        printed => printed.map(|()| true).context("cannot write to standard output"),
    }
}

/// Writes a file. `-` means standard output.
pub(super) fn file(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return stdout(content).map(drop);
    }
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Prints a line to standard error.
pub(super) fn note(text: &str) {
    // If even standard error is closed, there is nowhere left to report it.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints an error with its causes.
pub(super) fn error(error: &anyhow::Error) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // The text of most of our errors includes their cause.
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    note(&format!("consentd: {}", text.trim_end()));
}

/// Prints a message of the contract as one line of proto3 JSON. Default values are included, so
/// that scripts need not know them.
pub(super) fn json(name: &str, message: &impl Message) -> anyhow::Result<()> {
    let text = JsonEncoder::new(name)?.with_defaults(message)?;
    line(&String::from_utf8(text)?)
}

/// The contract, decoded once.
static CONTRACT: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTOR_SET).unwrap_or_default());

/// The descriptor of a message of the contract, by its name without the package.
///
/// # Errors
///
/// An error means that the contract has no such message.
pub(super) fn descriptor(name: &str) -> anyhow::Result<MessageDescriptor> {
    let full = format!("consent.v1.{name}");
    CONTRACT.get_message_by_name(&full).with_context(|| format!("no {full}"))
}

/// Encodes messages of one type as proto3 JSON.
pub(super) struct JsonEncoder(MessageDescriptor);

impl JsonEncoder {
    pub(super) fn new(name: &str) -> anyhow::Result<Self> {
        Ok(Self(descriptor(name)?))
    }

    /// Encodes a message without the fields that are unset, false or zero.
    pub(super) fn without_defaults(&self, message: &impl Message) -> anyhow::Result<Vec<u8>> {
        self.encode(message, true)
    }

    /// Encodes a message with all its fields.
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

/// A time as RFC 3339, or an empty text if it is unset.
pub(super) fn time_text(time: Option<&prost_types::Timestamp>) -> String {
    time.map(time::from_wire).map(Timestamp::rfc3339_millis).unwrap_or_default()
}

/// A duration, to the millisecond.
pub(super) fn duration_text(duration: Option<&prost_types::Duration>) -> String {
    let duration =
        duration.map(|duration| std::time::Duration::try_from(*duration).unwrap_or_default());
    let millis = duration.unwrap_or_default().as_millis();
    let millis = u64::try_from(millis).unwrap_or(u64::MAX);
    humantime::format_duration(std::time::Duration::from_millis(millis)).to_string()
}

/// A list of scopes or categories.
pub(super) fn scopes_text(scopes: &[String]) -> String {
    if scopes.is_empty() { "nothing".to_owned() } else { scopes.join(", ") }
}

/// The name of a reason in the documentation.
pub(super) fn reason_name(reason: pb::Reason) -> &'static str {
    reason.as_str_name().trim_start_matches("REASON_")
}

/// Explains a reason: why a message may be sent, or what would allow it.
pub(super) fn reason_text(reason: pb::Reason) -> &'static str {
    let name = reason_name(reason);
    let known = decision::Reason::ALL.into_iter().find(|known| known.name() == name);
    known.map_or("the sidecar gave no reason: do not send", decision::Reason::explanation)
}

/// Describes an event.
pub(super) fn event_text(event: &pb::ConsentEvent) -> String {
    use pb::consent_event::What;
    match &event.what {
        None => "nothing".to_owned(),
        Some(What::OptIn(opt_in)) => opt_in_text(opt_in),
        Some(What::OptOut(opt_out)) => {
            format!("opt-out {}{}", opt_out.scope, reference_text(&opt_out.reference))
        }
        Some(What::InboundMessage(inbound)) => {
            format!("inbound message{}", reference_text(&inbound.message_id))
        }
        Some(What::PlatformPreference(preference)) => {
            let did = if preference.marketing_stopped { "stopped" } else { "resumed" };
            let number = at_number(&preference.phone_number_id);
            format!("marketing {did} inside WhatsApp{number}")
        }
        Some(What::DeliveryFailure(refused)) => {
            let (code, number) = (refused.code, at_number(&refused.phone_number_id));
            failure::of(code).map_or_else(
                || format!("delivery failure {code}{number}"),
                |known| {
                    let (meaning, again) = (known.meaning, known.again.text());
                    format!("delivery failure {code}{number}: {meaning}; again {again}")
                },
            )
        }
        Some(What::Suppression(suppression)) => {
            let did = if suppression.suppressed { "suppressed" } else { "suppression lifted" };
            format!("{did}{}", reference_text(&suppression.reference))
        }
        Some(What::Link(link)) => {
            let how = if link.moved { "moved to" } else { "is also" };
            format!("{how} {}", printable(&link.other_user_id))
        }
        Some(What::TemplateCategory(template)) => {
            let lift = match &template.lift_time {
                Some(time) if time::from_wire(time) == Timestamp::MIN => {
                    ", lifting nothing".to_owned()
                }
                _ => String::new(),
            };
            let category = printable(&template.category);
            format!("template is {category}{lift}{}", reference_text(&template.reference))
        }
        Some(What::TemplateRestriction(account)) => {
            let reference = reference_text(&account.reference);
            match &account.until_time {
                _ if !account.restricted => format!("utility is no longer marketing{reference}"),
                None => format!("utility counts as marketing{reference}"),
                Some(until) => {
                    let until = time_text(Some(until));
                    format!("utility counts as marketing, until {until}{reference}")
                }
            }
        }
    }
}

/// At which of the business's numbers something happened; empty if that is unknown.
fn at_number(phone_number_id: &str) -> String {
    match printable(phone_number_id) {
        id if id.is_empty() => id,
        id => format!(" at {id}"),
    }
}

/// At which of the business's numbers a user stopped marketing, if any of them is known.
pub(super) fn stopped_at(consent: &pb::GetConsentResponse) -> String {
    let numbers = &consent.stopped_phone_number_ids;
    if numbers.iter().all(String::is_empty) {
        return String::new();
    }
    let name = |id: &String| if id.is_empty() { "a number unknown".into() } else { printable(id) };
    format!(" at {}", numbers.iter().map(name).collect::<Vec<_>>().join(", "))
}

/// Whether marketing is stopped inside WhatsApp, and at which of the business's numbers.
pub(super) fn stop_text(consent: &pb::GetConsentResponse) -> String {
    format!("{}{}", consent.platform_stopped, stopped_at(consent))
}

/// Describes an opt-in. Its statement is on a line of its own.
fn opt_in_text(opt_in: &pb::OptIn) -> String {
    let evidence = opt_in.evidence.clone().unwrap_or_default();
    let pending = if opt_in.pending { ", pending" } else { "" };
    let expiry = match &opt_in.expire_time {
        None => String::new(),
        Some(expiry) => format!(", until {}", time_text(Some(expiry))),
    };
    let confirmation = match printable(&evidence.confirmation) {
        by if by.is_empty() => by,
        by => format!(", confirmed by {by}"),
    };
    let statement = if evidence.statement.is_empty() {
        String::new()
    } else {
        let name = printable(&evidence.business_name);
        let locale = match printable(&evidence.locale) {
            locale if locale.is_empty() => locale,
            locale => format!(", {locale}"),
        };
        // Any other rule than the default one is said.
        let rule = match evidence.statement_names() {
            pb::StatementNames::Unspecified => "",
            pb::StatementNames::Business => ", need not name WhatsApp",
        };
        format!("\n    {:?} ({name}{locale}{rule})", evidence.statement)
    };
    format!(
        "opt-in {}{pending}{expiry}, by {}{}{}{confirmation}{statement}",
        opt_in.category,
        evidence.method().as_str_name().trim_start_matches("OPT_IN_METHOD_"),
        at_number(&evidence.phone_number_id),
        reference_text(&evidence.reference),
    )
}

fn reference_text(reference: &str) -> String {
    if reference.is_empty() { String::new() } else { format!(" [{}]", printable(reference)) }
}

/// Makes an untrusted text safe to print: it can neither add lines nor send commands to a terminal,
/// nor change the direction of other text.
pub(super) fn printable(text: &str) -> String {
    let is_safe = |c: char| {
        !c.is_control() && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_safe(c) { c } else { '\u{fffd}' }).collect()
}
