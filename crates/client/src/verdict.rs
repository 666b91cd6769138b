//! The answer to a question, every failure included.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use tonic::Code;

use crate::error::Error;
use crate::pb;
use crate::pb::batch_can_send_result::Result as BatchResult;

/// Whether a message may be sent now, and why. Only [`is_allowed`](Self::is_allowed) says that it may.
///
/// A verdict is one of four: **allowed**, **denied** (the sidecar decided that it must not be sent, for a
/// [`reason`](Self::reason)), **unavailable** (nothing was decided: keep the message, and ask again later) or
/// **invalid** (nothing was decided, since the question is malformed: asking it again is of no use).
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a message is sent only where its verdict is allowed"]
pub struct Verdict(Result<pb::CanSendResponse, Error>);

impl Verdict {
    /// Whether the message may be sent now.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        // A newer sidecar may have reasons that this client does not know.
        self.0.as_ref().is_ok_and(|response| response.allowed && response.reason != 0)
    }

    /// Whether nothing was decided: no sidecar, an error, an overload, a deadline, a sidecar that is loading.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        self.error().is_some_and(|error| !error.is_invalid())
    }

    /// Whether nothing was decided, since the question is malformed.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.error().is_some_and(Error::is_invalid)
    }

    /// Why it was decided so, such as `OPTED_IN` or `OPTED_OUT_ALL`; the number of a reason that this client does not
    /// know; empty where nothing was decided.
    #[must_use]
    pub fn reason(&self) -> Cow<'static, str> {
        match &self.0 {
            Ok(response) => match pb::Reason::try_from(response.reason) {
                Ok(reason) => reason.as_str_name().trim_start_matches("REASON_").into(),
                Err(_) => response.reason.to_string().into(),
            },
            Err(_) => "".into(),
        }
    }

    /// Why nothing was decided; `None` where it was.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        self.0.as_ref().err()
    }

    /// The code of gRPC where nothing was decided.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        self.error().map(Error::code)
    }

    /// In words, why nothing was decided; empty where it was.
    #[must_use]
    pub fn cause(&self) -> &str {
        self.error().map_or("", Error::cause)
    }

    /// The field of the question that is malformed, such as `category`; empty where none is.
    #[must_use]
    pub fn field(&self) -> &str {
        self.error().map_or("", Error::field)
    }

    /// Whether a free-form message may be sent.
    #[must_use]
    pub fn free_form_allowed(&self) -> bool {
        self.0.as_ref().is_ok_and(|response| response.free_form_allowed)
    }

    /// Whether a template may be sent.
    #[must_use]
    pub fn template_allowed(&self) -> bool {
        self.0.as_ref().is_ok_and(|response| response.template_allowed)
    }

    /// When the 24-hour window closes or closed; `None` where the user never wrote.
    #[must_use]
    pub fn window_expire_time(&self) -> Option<SystemTime> {
        time(self.0.as_ref().ok()?.window_expire_time)
    }

    /// When to ask again, where time alone will change the answer.
    #[must_use]
    pub fn retry_time(&self) -> Option<SystemTime> {
        time(self.0.as_ref().ok()?.retry_time)
    }

    /// The ledger's revision that the answer rests on; 0 where nothing was decided.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.0.as_ref().map_or(0, |response| response.revision)
    }

    /// How long before the answer the sidecar last proved its table to be current.
    #[must_use]
    pub fn staleness(&self) -> Option<Duration> {
        self.0.as_ref().ok()?.staleness.and_then(|staleness| staleness.try_into().ok())
    }

    /// The category that decided, where the question named a template; else empty.
    #[must_use]
    pub fn category_used(&self) -> &str {
        self.0.as_ref().map_or("", |response| &response.category_used)
    }

    /// The verdict where the sidecar decided, allowed or denied.
    ///
    /// # Errors
    ///
    /// Why nothing was decided.
    pub fn into_result(self) -> Result<Self, Error> {
        match self.0 {
            Ok(response) => Ok(Self(Ok(response))),
            Err(error) => Err(error),
        }
    }

    /// What is counted of it, which names nobody: see [`Observer`](crate::Observer).
    pub(crate) fn outcome(&self) -> Cow<'static, str> {
        match &self.0 {
            Ok(_) if self.is_allowed() => "allowed".into(),
            Ok(_) => self.reason(),
            Err(error) => error.code_name().into(),
        }
    }
}

impl From<Result<pb::CanSendResponse, Error>> for Verdict {
    fn from(result: Result<pb::CanSendResponse, Error>) -> Self {
        Self(result)
    }
}

impl From<Error> for Verdict {
    fn from(error: Error) -> Self {
        Self(Err(error))
    }
}

/// One answer of a batch.
pub(crate) fn of_batch(result: pb::BatchCanSendResult) -> Result<pb::CanSendResponse, Error> {
    match result.result {
        Some(BatchResult::Response(response)) => Ok(response),
        Some(BatchResult::Error(error)) => Err(Error::of_item(error)),
        None => Err(Error::new(Code::Internal, "the sidecar's answer has no result")),
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(_) if self.is_allowed() => write!(f, "send: {}", self.reason()),
            Ok(_) => write!(f, "do not send: {}", self.reason()),
            Err(error) if error.is_invalid() => write!(f, "do not send: {}", error.cause()),
            Err(error) => write!(f, "do not send: no answer ({})", error.code_name()),
        }
    }
}

fn time(timestamp: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    timestamp?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(allowed: bool, reason: i32) -> Verdict {
        Ok(pb::CanSendResponse { allowed, reason, ..Default::default() }).into()
    }

    #[test]
    fn only_an_answer_that_allows_and_says_why_allows() {
        let unknown = decided(true, 9_999);
        assert!(unknown.is_allowed());
        assert_eq!((unknown.to_string().as_str(), &*unknown.reason()), ("send: 9999", "9999"));
        assert!(!decided(true, 0).is_allowed(), "no server gives this reason");
        assert!(!decided(false, pb::Reason::OptedIn.into()).is_allowed());
        assert!(of_batch(pb::BatchCanSendResult::default()).is_err());
    }

    #[test]
    fn what_was_not_decided_is_unavailable_or_invalid() {
        for (code, is_invalid) in [
            (Code::InvalidArgument, true),
            (Code::OutOfRange, true),
            (Code::Unavailable, false),
            (Code::DeadlineExceeded, false),
            (Code::PermissionDenied, false),
        ] {
            let verdict = Verdict::from(Error::new(code, "why"));
            assert_eq!((verdict.is_invalid(), verdict.is_unavailable()), (is_invalid, !is_invalid));
            assert!(!verdict.is_allowed() && verdict.into_result().is_err());
        }
        let denied = decided(false, 13);
        assert!(!denied.is_unavailable() && !denied.is_invalid() && denied.into_result().is_ok());
    }
}
