//! Converts our errors to gRPC statuses with `google.rpc` details. Used on the error path only.

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, percent_encode};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _};

use super::method::Method;
use super::pb;
use crate::budget::LimitReached;
use crate::checker::{CheckError, RevisionTimeout};
use crate::history::ReadError;
use crate::recorder::Refusal;
use consentd_core::Violation;
use consentd_ledger::{LedgerError, UnreadableRecord};

/// The retry delay of a check that came before the table was loaded.
const RETRY_NOT_READY: Duration = Duration::from_millis(500);

/// The retry delay of a call that was over a limit.
const RETRY_BUSY: Duration = Duration::from_millis(100);

/// The header, or trailer, that holds a status' message.
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The characters that gRPC's specification percent-encodes in a message, in addition to all bytes outside ASCII.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Encodes a status' message as gRPC's specification says. tonic escapes other characters too, such as `?` and `#`,
/// which grpc-js does not decode again.
pub(super) fn encode_message(headers: &mut HeaderMap) {
    let Some(value) = headers.get_mut(GRPC_MESSAGE) else { return };
    let message: Vec<u8> = percent_decode(value.as_bytes()).collect();
    // HTTP/2 takes no value that begins or ends with a space (RFC 9113, section 8.2.1).
    if message.trim_ascii().len() != message.len() {
        return;
    }
    let encoded = percent_encode(&message, ESCAPED).to_string();
    if let Ok(encoded) = HeaderValue::try_from(encoded) {
        *value = encoded;
    }
}

/// `INVALID_ARGUMENT`, with every invalid field.
pub(super) fn invalid(violations: &[Violation]) -> Status {
    let fields = violations.iter().map(|violation| FieldViolation {
        field: violation.field.clone(),
        description: violation.description.clone(),
        ..Default::default()
    });
    let messages: Vec<_> = violations.iter().map(Violation::to_string).collect();
    Status::with_error_details(
        Code::InvalidArgument,
        messages.join("; "),
        ErrorDetails::with_bad_request(fields.collect::<Vec<_>>()),
    )
}

/// The longest name of a method that is echoed, in bytes.
const MAX_METHOD_BYTES: usize = 80;

/// `UNIMPLEMENTED`: there is no such method among the served `services`.
pub(super) fn unknown_method(path: &str, services: &[&str]) -> Status {
    let called = path.strip_prefix('/').unwrap_or(path);
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/' | b'_');
    let is_printable = called.len() <= MAX_METHOD_BYTES && called.bytes().all(is_name);
    let named =
        if is_printable { format!("no method {called} here") } else { "no such method".into() };
    let similar = if is_printable { Method::most_similar(called, services) } else { None };
    let hint = similar.map(|method| format!("; did you mean {}?", method.full_name()));
    let hint = hint.unwrap_or_default();
    let known = services.join(", ");
    Status::unimplemented(format!("{named}{hint} (served: {known}; reflection lists the rest)"))
}

/// `RESOURCE_EXHAUSTED`, with a retry delay.
pub(super) fn busy(message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_BUSY));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// `RESOURCE_EXHAUSTED` for a limit on what a connection, or all of them, may have in progress.
pub(super) fn limit_reached(full: LimitReached) -> Status {
    busy(match full {
        LimitReached::Bytes => {
            "too many bytes wait to be answered, of all connections: do not send, try again \
             shortly (the server's --max-request-bytes)"
        }
        LimitReached::ConnectionBytes => {
            "too many bytes of this connection wait to be answered, or to be read: do not send, \
             try again once some were (the server's --max-connection-bytes)"
        }
        LimitReached::InFlight => "too many calls at once; do not send, try again shortly",
        LimitReached::Recording => "too many recordings at once; try again shortly",
        LimitReached::Connections => {
            "too many connections: this one may ask for health alone; do not send, try again on \
             another (the server's --max-connections)"
        }
    })
}

/// `DEADLINE_EXCEEDED` of a call that took too long, or whose request did.
pub(super) fn late() -> Status {
    Status::deadline_exceeded("the deadline passed before the request arrived or was answered")
}

/// `INVALID_ARGUMENT` of a body that does not begin as a message of gRPC does, with the flag of its compression: 0 or 1.
pub(super) fn not_framed() -> Status {
    Status::invalid_argument(
        "the body is not a length-prefixed gRPC message; JSON is not supported: use a client of gRPC, such as grpcurl",
    )
}

/// What a question of a stream answers for which there was no room to wait.
pub(super) fn item_limit_reached(full: LimitReached) -> pb::ItemError {
    let message = limit_reached(full).message().to_owned();
    pb::ItemError { code: Code::ResourceExhausted as i32, field: String::new(), message }
}

/// What a call answers that made no decision.
pub(super) fn check_error(error: &CheckError) -> Status {
    match error {
        CheckError::Invalid(violations) => invalid(violations),
        CheckError::NotReady => {
            not_ready("NOT_READY", format!("{error}: do not send, ask again shortly"))
        }
        CheckError::Reloading => {
            let what = "ask again shortly; GetStatus has the cause";
            not_ready("RELOADING", format!("{error}: {what}"))
        }
        CheckError::NotHeld(_) => {
            let mut details = ErrorDetails::new();
            details.set_error_info("BUSINESS_NOT_HELD", "consentd", HashMap::new());
            Status::with_error_details(Code::FailedPrecondition, error.to_string(), details)
        }
    }
}

/// `UNAVAILABLE` until the table is loaded, with this reason as the `ErrorInfo`.
fn not_ready(reason: &str, message: String) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(RETRY_NOT_READY));
    details.set_error_info(reason, "consentd", HashMap::new());
    Status::with_error_details(Code::Unavailable, message, details)
}

/// What an item of a batch or a stream answers that could not be decided.
pub(super) fn item_check_error(error: &CheckError) -> pb::ItemError {
    let (code, field) = match error {
        CheckError::Invalid(violations) => return item(Code::InvalidArgument, violations),
        CheckError::NotHeld(_) => (Code::FailedPrecondition, "business_id"),
        CheckError::NotReady | CheckError::Reloading => (Code::Unavailable, ""),
    };
    pb::ItemError { code: code as i32, field: field.to_owned(), message: error.to_string() }
}

fn item(code: Code, violations: &[Violation]) -> pb::ItemError {
    let field = violations.first().map(|violation| violation.field.clone()).unwrap_or_default();
    let messages: Vec<_> = match violations {
        [one] => vec![one.description.clone()],
        several => several.iter().map(Violation::to_string).collect(),
    };
    pb::ItemError { code: code as i32, field, message: messages.join("; ") }
}

/// What a call answers whose `min_revision` did not arrive.
pub(super) fn revision_timeout(error: &RevisionTimeout) -> Status {
    Status::deadline_exceeded(format!("min_revision: {error}"))
}

/// What an item answers whose `min_revision` did not arrive.
pub(super) fn item_revision_timeout(error: &RevisionTimeout) -> pb::ItemError {
    pb::ItemError {
        code: Code::DeadlineExceeded as i32,
        field: "min_revision".to_owned(),
        message: error.to_string(),
    }
}

fn code_of(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Invalid(_) => Code::InvalidArgument,
        Refusal::TooManyScopes(_)
        | Refusal::TooManyBusinesses(_)
        | Refusal::TooManyIds(_)
        | Refusal::Unreadable(UnreadableRecord::Newer { .. }) => Code::FailedPrecondition,
        Refusal::Unreadable(UnreadableRecord::Damaged)
        | Refusal::Ledger(LedgerError::Damaged(_)) => Code::DataLoss,
        Refusal::Contended => Code::Aborted,
        Refusal::Ledger(LedgerError::Busy) => Code::ResourceExhausted,
        // A lost bucket takes events again once it was repaired: worth another try.
        Refusal::Unreadable(UnreadableRecord::Lost { .. })
        | Refusal::Ledger(
            LedgerError::Closed
            | LedgerError::Storage(_)
            | LedgerError::Unreachable(_)
            | LedgerError::Refused(_)
            | LedgerError::Unconfirmed { .. }
            | LedgerError::Unsynced(_),
        )
        | Refusal::Unknown(_) => Code::Unavailable,
    }
}

/// The status of a call whose event was not recorded.
pub(super) fn refusal_error(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Invalid(violations) => invalid(&in_event(violations)),
        Refusal::TooManyScopes(error) => {
            let violation =
                PreconditionViolation::new("SCOPES", "event.opt_in.category", error.to_string());
            let details = ErrorDetails::with_precondition_failure(vec![violation]);
            Status::with_error_details(code_of(refusal), error.to_string(), details)
        }
        Refusal::TooManyIds(error) => {
            let subject = "event.link.other_user_id";
            let violation = PreconditionViolation::new("IDS", subject, error.to_string());
            let details = ErrorDetails::with_precondition_failure(vec![violation]);
            Status::with_error_details(code_of(refusal), error.to_string(), details)
        }
        Refusal::Ledger(LedgerError::Busy) => busy(refusal.to_string()),
        _ => Status::new(code_of(refusal), refusal.to_string()),
    }
}

/// The status of a call that reads the ledger. Its fields are those of the request, not of an event.
pub(super) fn read_error(error: ReadError) -> Status {
    match error {
        ReadError::Invalid(violations) => invalid(&violations),
        error => refusal_error(&error.into()),
    }
}

/// The error of an item whose event was not recorded.
pub(super) fn item_refusal(refusal: &Refusal) -> pb::ItemError {
    match refusal {
        Refusal::Invalid(violations) => item(Code::InvalidArgument, &in_event(violations)),
        _ => pb::ItemError {
            code: code_of(refusal) as i32,
            field: String::new(),
            message: refusal.to_string(),
        },
    }
}

/// Prefixes the fields with their place in the request: all but the request id are in its event.
fn in_event(violations: &[Violation]) -> Vec<Violation> {
    let outer = |violation: &Violation| match violation.field.as_str() {
        "request_id" => violation.clone(),
        _ => violation.clone().within("event"),
    };
    violations.iter().map(outer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_escaped_as_the_specification_says() {
        for (message, encoded) in [
            ("did you mean \"a\"? <b> #1 `c` {d}", "did you mean \"a\"? <b> #1 `c` {d}"),
            ("100%\n\u{7f}ü", "100%25%0A%7F%C3%BC"),
            ("", ""),
        ] {
            let mut headers = HeaderMap::new();
            Status::unknown(message).add_header(&mut headers).unwrap();
            encode_message(&mut headers);
            let value = headers.get(GRPC_MESSAGE).map_or("", |value| value.to_str().unwrap());
            assert_eq!(value, encoded);
            assert_eq!(Status::from_header_map(&headers).unwrap().message(), message);
        }
    }
}
