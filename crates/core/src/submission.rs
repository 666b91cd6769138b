//! A submission: an event as a caller or a webhook hands it in to be recorded, with what is known of
//! its source.

use super::event::Event;

/// An event to be recorded.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What happened.
    pub event: Event,
    /// The caller's idempotency key for this event, or empty if there is none.
    pub request_id: String,
    /// The precision of the event's time.
    pub precision: SourcePrecision,
    /// What an inbound message changes. Other events ignore it.
    pub inbound_effect: InboundEffect,
    /// Whether the text of an inbound message is a button's label or payload. Some of them opt out only
    /// if they are pressed, and mean nothing if a user types them.
    pub is_button: bool,
    /// The id that the event's own one must be linked to. If the two are not linked in the record that
    /// the event is applied to, the event changes nothing.
    pub only_if_linked_to: Option<String>,
    /// Whether this records an event again that a ledger had, such as a denial that a failover lost.
    /// Its ids are then accepted in notations that only older versions accepted, and its time may be
    /// ahead of the ledger's clock by any amount.
    pub is_replay: bool,
}

/// The precision with which the source of an event states times.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SourcePrecision {
    /// Milliseconds: the event happened at its time.
    #[default]
    Milliseconds,
    /// Whole seconds: the event happened at some moment of its second. A denial counts as of the last
    /// millisecond of that second, and any other event as of the first, so that the denial wins.
    Seconds,
}

/// What an inbound message changes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum InboundEffect {
    /// It opens the window, and its text is read for keywords.
    #[default]
    WindowAndKeywords,
    /// Its text is read for keywords; the window stays as it is.
    Keywords,
    /// Its text is read for keywords that opt out; anything else in it has no effect.
    OptOutKeywords,
}

impl Submission {
    /// A submission by a client of this API: its time is precise to the millisecond and an inbound
    /// message has its full effect.
    #[must_use]
    pub fn new(event: Event, request_id: String) -> Self {
        Self {
            event,
            request_id,
            precision: SourcePrecision::default(),
            inbound_effect: InboundEffect::default(),
            is_button: false,
            only_if_linked_to: None,
            is_replay: false,
        }
    }
}
