//! What each reason means, and what would make a denied message allowed.

use crate::grpc::pb::Reason;

/// Why a message may be sent, or what would make it so.
pub(super) fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::OptedIn => "the user opted in to this category, or to its class",
        Reason::WindowOpen => "the user wrote within the last 24 hours, and has not opted out",
        Reason::ReplyAfterOptOut => {
            "the user opted out of everything, then wrote again: a free-form reply is allowed"
        }
        Reason::AllowedWhileStale => {
            "the table's proof is late, but --stale-allow names this class"
        }
        Reason::NoConsent => {
            "nobody opted in: an opt-in to this category or its class would allow it, or a \
             message from the user"
        }
        Reason::WindowClosed => {
            "the user has not written within the last 24 hours: send a template, or wait for a \
             message"
        }
        Reason::OptedOut => {
            "the user opted out of this category or its class: only a later opt-in by the user \
             allows it"
        }
        Reason::OptedOutAll => {
            "the user opted out of everything: only a later opt-in by the user allows it, or, for \
             a free-form reply that is no marketing, a message from the user"
        }
        Reason::PlatformStopped => {
            "the user stopped this business's marketing inside WhatsApp: only the user can resume \
             it there"
        }
        Reason::ConsentExpired => "the opt-in has lapsed: the user must opt in again",
        Reason::ConsentPending => {
            "a double opt-in waits for its confirmation: the user's yes allows it"
        }
        Reason::FrequencyCapped => {
            "WhatsApp refused marketing to this user lately: ask again at the retry time"
        }
        Reason::Suppressed => {
            "the user must not be contacted: allowed only once the suppression is lifted"
        }
        Reason::Stale => {
            "the table cannot prove that it is current, and denies until it can: see `consentd \
             status` for the cause"
        }
        Reason::Unspecified => "the sidecar gave no reason: do not send",
    }
}

/// A reason's name without its prefix.
pub(super) fn name(reason: Reason) -> &'static str {
    reason.as_str_name().trim_start_matches("REASON_")
}
