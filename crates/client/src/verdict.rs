//! The answer to a check, every error included.

use std::fmt;

use consentd_proto::code_name;
use tonic::Status;

use crate::pb;
use crate::pb::batch_can_send_result::Result as BatchResult;

/// Whether a message may be sent, and why. Only [`Verdict::Allowed`] means that it may.
#[derive(Clone, Debug)]
#[must_use]
pub enum Verdict {
    /// The message may be sent now.
    Allowed(pb::CanSendResponse),
    /// The message must not be sent.
    Denied(pb::CanSendResponse),
    /// One request of a batch could not be decided. Its `code` says whether it is invalid (3) or
    /// can be checked again (14).
    Undecided(pb::ItemError),
    /// There is no answer: the call failed or timed out. Keep the message, and check again later.
    NoAnswer(Status),
}

impl Verdict {
    /// Whether the message may be sent.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }

    pub(crate) fn of_response(response: pb::CanSendResponse) -> Self {
        // A newer sidecar may have reasons that this client does not know: `allowed` decides alone.
        if response.allowed { Self::Allowed(response) } else { Self::Denied(response) }
    }

    pub(crate) fn of_result(result: pb::BatchCanSendResult) -> Self {
        match result.result {
            Some(BatchResult::Response(response)) => Self::of_response(response),
            Some(BatchResult::Error(error)) => Self::Undecided(error),
            None => Self::NoAnswer(Status::internal("the result is empty")),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed(response) => write!(f, "send: {}", reason(response)),
            Self::Denied(response) => write!(f, "do not send: {}", reason(response)),
            Self::Undecided(error) => write!(f, "do not send: {}: {}", error.field, error.message),
            Self::NoAnswer(status) => {
                write!(f, "do not send: no answer ({})", code_name(status.code()))
            }
        }
    }
}

/// The name of the reason without its prefix, or its number if this client does not know it.
fn reason(response: &pb::CanSendResponse) -> String {
    match pb::Reason::try_from(response.reason) {
        Ok(reason) => reason.as_str_name().trim_start_matches("REASON_").to_owned(),
        Err(_) => response.reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_allowed_response_allows() {
        let response =
            |allowed, reason| pb::CanSendResponse { allowed, reason, ..Default::default() };
        let unknown_reason = Verdict::of_response(response(true, 9_999));
        assert!(unknown_reason.is_allowed());
        assert_eq!(unknown_reason.to_string(), "send: 9999");
        let opted_in = pb::Reason::OptedIn.into();
        assert!(!Verdict::of_response(response(false, opted_in)).is_allowed());
        assert!(!Verdict::of_result(pb::BatchCanSendResult::default()).is_allowed());
        let error = pb::ItemError { field: "category".to_owned(), ..Default::default() };
        let result = pb::BatchCanSendResult { result: Some(BatchResult::Error(error)) };
        assert!(!Verdict::of_result(result).is_allowed());
    }
}
