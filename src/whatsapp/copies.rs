//! Events of an update that names several ids of its user: they count under each of them.
//!
//! A link alone carries denials, and never an allow. But if one signed update names two ids, then its
//! window, its resume and its sign-up are of both: the business may send to either
//! (<https://developers.facebook.com/documentation/business-messaging/whatsapp/business-scoped-user-ids>,
//! 2026-06-29). A failure is of both too: the window that it closes was opened under both.
//!
//! A typed `yes` or `start` counts under the first id alone.

use super::LinkedCopy;
use super::denial_at_arrival::denial_of;
use consentd_core::event::What;
use consentd_core::submission::{InboundEffect, Submission};

/// What is recorded under another id of an event's user whether or not the ids can be linked: what
/// denies. Ids beyond the most that one person may have are linked no more.
pub(super) fn denial(submission: &Submission, other: &str) -> Option<Submission> {
    denial_of(submission).map(|denial| under(&denial, other))
}

/// What is recorded under another id of an event's user once the ids are linked: what allows. The
/// recorder checks that they are, because a link from before an erasure is accepted without an effect.
pub(super) fn allow(submission: &Submission, other: &str, link: usize) -> Option<LinkedCopy> {
    let mut copy = under(submission, other);
    match &mut copy.event.what {
        What::Inbound { text, .. } if copy.inbound_effect == InboundEffect::WindowAndKeywords => {
            text.clear();
        }
        What::Platform { stopped: false, .. } | What::OptIn { .. } => {}
        _ => return None,
    }
    copy.only_if_linked_to = Some(submission.event.user_id.clone());
    Some(LinkedCopy { link, submission: copy })
}

fn under(submission: &Submission, other: &str) -> Submission {
    let mut copy = submission.clone();
    other.clone_into(&mut copy.event.user_id);
    copy
}
