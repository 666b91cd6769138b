//! Why there was no decision, or no recording.

use std::error::Error as _;
use std::fmt;

use consentd_proto::code_name;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::pb;

/// Why nothing was decided, or why an event is not known to be recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    code: Code,
    cause: String,
    violations: Vec<Violation>,
}

/// One field of a request that is malformed.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Violation {
    /// The field, such as `category`, or `event.opt_in.category` of an event.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub description: String,
}

impl Error {
    pub(crate) fn new(code: Code, cause: impl Into<String>) -> Self {
        Self { code, cause: cause.into(), violations: Vec::new() }
    }

    /// The code of gRPC.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The name of the code as gRPC's specification writes it, such as `DEADLINE_EXCEEDED`.
    #[must_use]
    pub fn code_name(&self) -> &'static str {
        code_name(self.code)
    }

    /// What happened, in words.
    #[must_use]
    pub fn cause(&self) -> &str {
        &self.cause
    }

    /// What is malformed in the request, a field each; empty where that is not the cause.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The first field that is malformed; empty where that is not the cause.
    #[must_use]
    pub fn field(&self) -> &str {
        self.violations.first().map_or("", |violation| &violation.field)
    }

    /// Whether the request is malformed, so that it is of no use to repeat it.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        // A message over a limit of bytes is as malformed as one with a wrong field.
        matches!(self.code, Code::InvalidArgument | Code::OutOfRange)
    }

    pub(crate) fn of_status(status: &Status) -> Self {
        let bad_request = status.get_details_bad_request();
        let violations = bad_request.map(|bad_request| bad_request.field_violations);
        let violations = violations.unwrap_or_default().into_iter().map(|violation| Violation {
            field: violation.field,
            description: violation.description,
        });
        let violations = violations.collect();
        // "transport error" alone says nothing: what happened is its source's source.
        let mut cause = status.message().to_owned();
        let mut source = status.source();
        while let Some(error) = source {
            let text = error.to_string();
            if !cause.contains(&text) {
                cause = format!("{cause}: {text}");
            }
            source = error.source();
        }
        Self { code: status.code(), cause, violations }
    }

    pub(crate) fn of_item(error: pb::ItemError) -> Self {
        let pb::ItemError { code, field, message } = error;
        // A unary call puts the field before its description in the message; so does the cause here.
        let cause = if field.is_empty() || message.starts_with(&format!("{field}: ")) {
            message.clone()
        } else {
            format!("{field}: {message}")
        };
        let violations = if field.is_empty() {
            Vec::new()
        } else {
            vec![Violation { field, description: message }]
        };
        Self { code: Code::from_i32(code), cause, violations }
    }

    /// There was no answer by the deadline. `last` is what the last attempt ended with.
    pub(crate) fn late(last: Option<&Self>) -> Self {
        let cause = match last {
            None => "no answer in time".to_owned(),
            Some(last) => format!("no answer in time; the last attempt: {}", last.cause),
        };
        Self::new(Code::DeadlineExceeded, cause)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code_name(), self.cause)
    }
}

impl std::error::Error for Error {}

/// Whether a call failed together with its connection, and not by an answer of the sidecar: by a status that tonic made
/// of an error below it. A check can then be repeated.
pub(crate) fn is_connection_failure(status: &Status) -> bool {
    let codes = [Code::Unavailable, Code::Cancelled, Code::Internal, Code::Unknown];
    status.source().is_some() && codes.contains(&status.code())
}

/// Whether it is tonic's own timer that ended a call, which it reports as `CANCELLED`.
pub(crate) fn is_timeout(status: &Status) -> bool {
    status.source().is_some_and(<dyn std::error::Error>::is::<tonic::TimeoutExpired>)
}
