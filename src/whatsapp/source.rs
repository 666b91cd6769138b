//! Which part of a payload an update is in: the receiver's own conversations, those that another app
//! holds, or the history of a number.

use serde_json::Value;

use super::fields::{has, name};
use super::{Rules, STANDBY};
use consentd_core::user_id::{self, Reading};

/// The part of a payload that an update is in.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// A conversation with this receiver.
    Conversation,
    /// A copy of a conversation that another app or an agent of Meta's holds, in the field `standby`
    /// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/standby>,
    /// 2026-08-04). Whether the user's message opens the window of the business is not documented:
    /// templates need no ownership, and a free-form message does. So it opens none by default.
    Standby,
    /// What a number brings along when it is connected: up to 180 days of its conversations in the
    /// app (<https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/history>,
    /// 2026-05-21). It is read for opt-outs alone.
    History {
        /// The thread, which names its user; a picture that follows its thread is in none.
        thread: Option<&'a Value>,
        /// The business's own number, as it is displayed.
        own: Option<&'a str>,
    },
}

impl Source<'_> {
    /// Whether messages may open the window and confirm what is pending.
    pub(super) fn is_conversation(&self, rules: &Rules) -> bool {
        match self {
            Self::Conversation => true,
            Self::Standby => rules.opens(STANDBY),
            Self::History { .. } => false,
        }
    }

    /// Whether the user's ids in its updates are links. In the history only texts are read.
    pub(super) fn links(&self) -> bool {
        !matches!(self, Self::History { .. })
    }

    /// Whether a message is the user's, and not the business's own. Only the history has both.
    ///
    /// A message is the user's if it is from the thread's user. It is not if it is from the business's
    /// number, or names a recipient, as the business's own messages alone do, or is from another number
    /// than the thread's user has. If the message and the thread have ids of different kinds, or the
    /// thread has none that is readable, the message is the user's: a business has no business-scoped id.
    /// But a number that may be the business's own, because that is unknown, is not taken for the user
    /// of a thread.
    pub(super) fn is_by_user(&self, message: &Value) -> bool {
        let Self::History { thread, own } = self else { return true };
        let ids = |object: &Value, names: [&str; 3]| -> Vec<String> {
            names.iter().filter_map(|field| name(object, field)).collect()
        };
        let from = ids(message, ["from", "from_user_id", "from_parent_user_id"]);
        if from.iter().any(|id| own.is_some_and(|own| is_same(id, own))) {
            return false;
        }
        let users =
            thread.map(|thread| ids(thread, ["id", "wa_id", "user_id"])).unwrap_or_default();
        if from.iter().any(|id| users.iter().any(|user| is_same(id, user))) {
            return true;
        }
        let has_number = |ids: &[String]| ids.iter().any(|id| is_number(id));
        let is_own_known = own.is_some_and(is_number);
        let is_comparable = has_number(&users) || !(users.is_empty() || is_own_known);
        let is_other_number = has_number(&from) && is_comparable;
        !is_other_number && !has(message, "to") && !has(message, "to_user_id")
    }
}

/// What an id is read as, in any notation of a number.
fn read(id: &str) -> Option<Reading<'_>> {
    user_id::read(id).ok().or_else(|| user_id::read_formerly(id))
}

/// Whether an id is a phone number in any notation.
pub(super) fn is_number(id: &str) -> bool {
    matches!(read(id), Some(Reading::Phone(_)))
}

/// Whether two texts are notations of one id.
fn is_same(one: &str, other: &str) -> bool {
    read(one).is_some_and(|one| read(other) == Some(one))
}
