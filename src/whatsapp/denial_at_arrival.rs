//! Denials whose own time cannot be used: they count as of their arrival.

use sha2::{Digest as _, Sha256};

use crate::recorder::{Counts, Submission};
use consentd_core::event::{
    CODE_FREQUENCY_CAPPED, CODE_PLATFORM_STOPPED, CODE_WINDOW_CLOSED, What,
};

/// Whether a failure's code only ever denies.
pub(super) fn denies(code: i32) -> bool {
    matches!(code, CODE_WINDOW_CLOSED | CODE_FREQUENCY_CAPPED | CODE_PLATFORM_STOPPED)
}

/// What an event denies, as of its arrival by the ledger's clock; nothing where it denies nothing.
/// For events whose time is missing, cannot be read, or lies too far ahead to be recorded.
///
/// Only what denies is left: of a message whether it opts out, for a window opens by the message's
/// own time alone. A link counts as a denial, because it takes denials to another id.
///
/// It can be repeated safely. A message with an id is recorded once, by that id: the platform
/// repeats it for seven days, and who opted in again meanwhile must not be denied anew. What has no
/// id is recorded as of its latest arrival, which denies too much and never too little.
#[must_use]
pub fn denial_at_arrival(submission: &Submission) -> Option<Submission> {
    let mut denial = submission.clone();
    denial.event.time = None;
    match &submission.event.what {
        What::Inbound { text, .. } if text.is_empty() => return None,
        What::Inbound { message_id, text } => {
            denial.told.counts = Counts::OptOut;
            denial.request_id = request_id(message_id, text);
        }
        What::Link { .. } => {}
        What::Failure { code } if denies(*code) => {}
        what if what.is_denial() => {}
        _ => return None,
    }
    Some(denial)
}

/// By which a message's text is recorded once as of its arrival; none where the message has no id.
///
/// The text is part of it, because a button has two of them in one message, and a request id that
/// came with another event before would be refused.
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
    fn only_what_denies_counts_as_of_its_arrival() {
        for what in [
            What::Platform { stopped: true },
            What::Failure { code: CODE_PLATFORM_STOPPED },
            What::Failure { code: CODE_WINDOW_CLOSED },
            What::Link { other_user_id: "2".into(), moved: true },
        ] {
            let denial = arrived(what.clone()).unwrap();
            assert_eq!((denial.event.time, &*denial.request_id), (None, ""), "{what:?}");
            assert_eq!(denial.event.what, what);
        }
        let denial = arrived(said("wamid.1", "STOP")).unwrap();
        assert_eq!((denial.event.time, denial.told.counts), (None, Counts::OptOut));
        for what in [
            said("wamid.1", ""),
            What::Platform { stopped: false },
            What::Failure { code: 131_026 },
        ] {
            assert!(arrived(what).is_none());
        }
    }

    #[test]
    fn a_message_is_known_again_by_its_id_and_text() {
        let id = |message, text| arrived(said(message, text)).unwrap().request_id;
        assert_eq!(id("wamid.1", "STOP"), id("wamid.1", "STOP"));
        assert_ne!(id("wamid.1", "STOP"), id("wamid.2", "STOP"));
        assert_ne!(id("wamid.1", "STOP"), id("wamid.1", "stop-button"));
        assert_eq!(id("", "STOP"), "");
        assert!(id("wamid.1", "STOP").len() <= consentd_core::event::MAX_REQUEST_ID_BYTES);
    }
}
