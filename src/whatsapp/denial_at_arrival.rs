//! Denials without a usable time, which count from their arrival.

use sha2::{Digest as _, Sha256};

use super::templates::without_lift;
use consentd_core::event::{
    CODE_FREQUENCY_CAPPED, CODE_PLATFORM_STOPPED, CODE_WINDOW_CLOSED, What,
};
use consentd_core::failure::UserFailure;
use consentd_core::submission::{InboundEffect, Submission};

/// Whether a failure with this code is a denial, or is one if the operator says so.
pub(super) fn denies(code: i32) -> bool {
    matches!(code, CODE_WINDOW_CLOSED | CODE_FREQUENCY_CAPPED | CODE_PLATFORM_STOPPED)
        || UserFailure::of(code).is_some()
}

/// The part of an event that denies, without anything that allows. Nothing if no part denies. Of a
/// message only the opt-outs in its text are left, whatever they are.
pub(super) fn denial_of(submission: &Submission) -> Option<Submission> {
    let mut denial = submission.clone();
    match &submission.event.what {
        What::Inbound { text, .. } if text.is_empty() => return None,
        What::Inbound { .. } => denial.inbound_effect = InboundEffect::OptOutKeywords,
        What::Failure { code, .. } if denies(*code) => {}
        what if what.is_denial() => denial.event.what = without_lift(what.clone()),
        _ => return None,
    }
    Some(denial)
}

/// The [denial](denial_of) in an event, without a time: the recorder stamps it by the ledger's clock.
/// Nothing if the event denies nothing. For events whose time is missing, invalid, or too far ahead to
/// be recorded.
///
/// A window opens at the message's own time, and so not without one. A link counts as a denial, because
/// it copies denials to another id.
///
/// The result is idempotent for a message with an id, which becomes its request id, by itself or in the
/// reference of an opt-out: the platform repeats a message for seven days, and a user who opted in again
/// meanwhile must stay opted in. An event without an id is recorded at each arrival, which can only deny
/// too much.
#[must_use]
pub(crate) fn denial_at_arrival(submission: &Submission) -> Option<Submission> {
    let mut denial = match submission.event.what {
        What::Link { .. } => submission.clone(),
        _ => denial_of(submission)?,
    };
    denial.event.time = None;
    match &submission.event.what {
        What::Inbound { message_id, text } => denial.request_id = request_id(message_id, text),
        What::OptOut { reference, .. } => denial.request_id = request_id(reference, ""),
        _ => {}
    }
    Some(denial)
}

/// The request id by which a message's text is recorded once; empty if the message has no id.
///
/// The text is part of it: a button has two texts in one message, and the recorder refuses a request
/// id that it has seen with another event.
fn request_id(message_id: &str, text: &str) -> String {
    if message_id.is_empty() {
        return String::new();
    }
    let digest = Sha256::new().chain_update(message_id).chain_update("\0").chain_update(text);
    format!("webhook-arrival:{}", hex::encode(digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use consentd_core::event::Event;
    use consentd_core::scope::Scope;
    use consentd_core::time::Timestamp;

    fn arrived(what: What) -> Option<Submission> {
        let (user_id, business_id) = ("1".to_owned(), "acme".to_owned());
        let event = Event { user_id, business_id, time: Some(Timestamp::MAX), what };
        denial_at_arrival(&Submission::new(event, String::new()))
    }

    fn said(message_id: &str, text: &str) -> What {
        What::Inbound { message_id: message_id.into(), text: text.into() }
    }

    #[test]
    fn only_denials_are_kept_at_arrival() {
        for what in [
            What::Platform { stopped: true, phone_number_id: None },
            What::Failure { code: CODE_PLATFORM_STOPPED, phone_number_id: None },
            What::Failure { code: CODE_WINDOW_CLOSED, phone_number_id: None },
            What::Link { other_user_id: "2".into(), moved: true },
        ] {
            let denial = arrived(what.clone()).unwrap();
            assert_eq!((denial.event.time, &*denial.request_id), (None, ""), "{what:?}");
            assert_eq!(denial.event.what, what);
        }
        let denial = arrived(said("wamid.1", "STOP")).unwrap();
        assert_eq!(
            (denial.event.time, denial.inbound_effect),
            (None, InboundEffect::OptOutKeywords)
        );
        for what in [
            said("wamid.1", ""),
            What::Platform { stopped: false, phone_number_id: None },
            What::Failure { code: 131_026, phone_number_id: None },
        ] {
            assert!(arrived(what).is_none());
        }
    }

    #[test]
    fn request_id_depends_on_message_id_and_text() {
        let id = |message, text| arrived(said(message, text)).unwrap().request_id;
        assert_eq!(id("wamid.1", "STOP"), id("wamid.1", "STOP"));
        assert_ne!(id("wamid.1", "STOP"), id("wamid.2", "STOP"));
        assert_ne!(id("wamid.1", "STOP"), id("wamid.1", "stop-button"));
        assert_eq!(id("", "STOP"), "");
        let opt_out =
            |reference: &str| What::OptOut { scope: Scope::All, reference: reference.into() };
        let id_of = |reference| arrived(opt_out(reference)).unwrap().request_id;
        assert_ne!(id_of("message wamid.1"), id_of("message wamid.2"));
        assert_eq!(id_of(""), "");
        assert!(id("wamid.1", "STOP").len() <= consentd_core::event::MAX_REQUEST_ID_BYTES);
    }
}
