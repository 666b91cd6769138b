//! The meaning of an inbound message, by the keywords for texts or by those for buttons.

use consentd_core::keyword::{KeywordMatch, Keywords};
use consentd_core::state::State;
use consentd_core::submission::Submission;

/// The meaning of an inbound text, if the whole of it is a keyword or a button that opts out.
pub(super) fn keyword_match(
    keywords: &Keywords,
    submission: &Submission,
    text: &str,
    state: &State,
) -> Option<KeywordMatch> {
    if submission.is_button {
        keywords.meaning_of_button(text, state)
    } else {
        keywords.meaning(text, state)
    }
}
