//! What the reasons on the wire mean, in the words of the rules.

use crate::grpc::pb::Reason;
use consentd_core::decision;

/// Why a message may be sent, or what would make it so.
pub(super) fn reason(reason: Reason) -> &'static str {
    let known = decision::Reason::ALL.into_iter().find(|known| known.name() == name(reason));
    known.map_or("the sidecar gave no reason: do not send", decision::Reason::explanation)
}

/// A reason's name without its prefix.
pub(super) fn name(reason: Reason) -> &'static str {
    reason.as_str_name().trim_start_matches("REASON_")
}
