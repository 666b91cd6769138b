//! The decision whether a message may be sent: the nine rows of `docs/rules.md`. Pure: no clock, no
//! await, no allocation.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::as_conversions, clippy::arithmetic_side_effects)
)]

use std::time::Duration;

use crate::event::MAX_AHEAD;
use crate::failure::{UserFailure, UserFailures};
use crate::scope::{Class, ClassSet};
use crate::standing::{Facts, Standing};
use crate::time::{Clock, Timestamp};

/// How long a frequency cap (131049) holds from the failure.
pub const CAP: Duration = Duration::from_hours(24);

/// How a message is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// The caller has not decided: either form is acceptable.
    Any,
    /// Text, media or an interactive message: only inside the window.
    FreeForm,
    /// An approved template.
    Template,
}

/// The reason of a decision. The first four allow, the others deny.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reason {
    /// The user opted in to the category, or to its class.
    OptedIn,
    /// The user wrote within the window and has not opted out.
    WindowOpen,
    /// The user opted out of everything, then wrote again: a free-form reply is allowed.
    ReplyAfterOptOut,
    /// The check would be denied as stale, but the operator allows this class while the proof is late.
    AllowedWhileStale,
    /// No opt-in covers the category, and no open window replaces one.
    NoConsent,
    /// Free-form only: the window is closed.
    WindowClosed,
    /// The latest choice about the category or its class is an opt-out.
    OptedOut,
    /// The latest choice is an opt-out of everything.
    OptedOutAll,
    /// The user stopped the business's marketing inside WhatsApp.
    PlatformStopped,
    /// The covering opt-in has expired.
    ConsentExpired,
    /// The covering opt-in waits for its confirmation.
    ConsentPending,
    /// WhatsApp refused a marketing message to the user lately.
    FrequencyCapped,
    /// The user must not be contacted.
    Suppressed,
    /// The table is not proven to be current.
    Stale,
    /// WhatsApp refused a message to the user with a code that the operator has denied.
    PlatformRefused,
    /// The operator denies marketing templates to the user's country.
    CountryBlocked,
}

impl Reason {
    /// Every reason, in the order of their numbers on the wire.
    pub const ALL: [Self; 16] = [
        Self::OptedIn,
        Self::WindowOpen,
        Self::ReplyAfterOptOut,
        Self::AllowedWhileStale,
        Self::NoConsent,
        Self::WindowClosed,
        Self::OptedOut,
        Self::OptedOutAll,
        Self::PlatformStopped,
        Self::ConsentExpired,
        Self::ConsentPending,
        Self::FrequencyCapped,
        Self::Suppressed,
        Self::Stale,
        Self::PlatformRefused,
        Self::CountryBlocked,
    ];

    /// Whether the message may be sent.
    #[must_use]
    pub const fn allows(self) -> bool {
        matches!(
            self,
            Self::OptedIn | Self::WindowOpen | Self::ReplyAfterOptOut | Self::AllowedWhileStale
        )
    }

    /// Whether an event denies the message, and not merely the lack of one; for tests of joined pairs.
    #[cfg(test)]
    pub(crate) const fn is_denial_by_events(self) -> bool {
        matches!(
            self,
            Self::Suppressed
                | Self::OptedOut
                | Self::OptedOutAll
                | Self::PlatformStopped
                | Self::FrequencyCapped
                | Self::PlatformRefused
        )
    }

    /// The reason's name, as on the wire without its prefix.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OptedIn => "OPTED_IN",
            Self::WindowOpen => "WINDOW_OPEN",
            Self::ReplyAfterOptOut => "REPLY_AFTER_OPT_OUT",
            Self::AllowedWhileStale => "ALLOWED_WHILE_STALE",
            Self::NoConsent => "NO_CONSENT",
            Self::WindowClosed => "WINDOW_CLOSED",
            Self::OptedOut => "OPTED_OUT",
            Self::OptedOutAll => "OPTED_OUT_ALL",
            Self::PlatformStopped => "PLATFORM_STOPPED",
            Self::ConsentExpired => "CONSENT_EXPIRED",
            Self::ConsentPending => "CONSENT_PENDING",
            Self::FrequencyCapped => "FREQUENCY_CAPPED",
            Self::Suppressed => "SUPPRESSED",
            Self::Stale => "STALE",
            Self::PlatformRefused => "PLATFORM_REFUSED",
            Self::CountryBlocked => "COUNTRY_BLOCKED",
        }
    }

    /// Why the message may be sent, or what would make it so.
    #[must_use]
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::OptedIn => "the user opted in to this category, or to its class",
            Self::WindowOpen => "the user wrote within the last 24 hours, and has not opted out",
            Self::ReplyAfterOptOut => {
                "the user opted out of everything, then wrote again: a free-form reply is allowed"
            }
            Self::AllowedWhileStale => {
                "the table's proof is late, but --stale-allow names this class"
            }
            Self::NoConsent => {
                "nobody opted in: an opt-in to this category or its class would allow it, or a \
                 message from the user"
            }
            Self::WindowClosed => {
                "the user has not written within the last 24 hours: send a template, or wait for a \
                 message"
            }
            Self::OptedOut => {
                "the user opted out of this category or its class: only a later opt-in by the user \
                 allows it"
            }
            Self::OptedOutAll => {
                "the user opted out of everything: only a later opt-in by the user allows it, or, \
                 for a free-form reply that is no marketing, a message from the user"
            }
            Self::PlatformStopped => {
                "the user stopped this business's marketing inside WhatsApp: only the user can \
                 resume it there"
            }
            Self::ConsentExpired => "the opt-in has lapsed: the user must opt in again",
            Self::ConsentPending => {
                "a double opt-in waits for its confirmation: the user's yes allows it"
            }
            Self::FrequencyCapped => {
                "WhatsApp refused marketing to this user lately: ask again at the retry time"
            }
            Self::Suppressed => {
                "the user must not be contacted: allowed only once the suppression is lifted"
            }
            Self::Stale => {
                "the table cannot prove that it is current, and denies until it can: see \
                 `consentd status` for the cause"
            }
            Self::PlatformRefused => {
                "WhatsApp refused a message to this user with a code that --deny-after-failure \
                 names: see `consentd get` for the code, and when to send again"
            }
            Self::CountryBlocked => {
                "marketing templates to this user's country are denied by the operator's \
                 --marketing-blocked-countries"
            }
        }
    }
}

/// Whether the table is proven to be current.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Proof {
    /// It was proven to be current within the maximum staleness.
    Fresh,
    /// Its last proof is older than the maximum staleness.
    Late,
    /// It is known to differ from the ledger.
    Invalid,
}

/// The settings of the rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    /// How long after the user's last message free-form messages are allowed.
    pub window: Duration,
    /// How much earlier than WhatsApp the window is closed here.
    pub margin: Duration,
    /// The classes for which an open window replaces an opt-in.
    pub window_implies: ClassSet,
    /// The classes that are not denied only because the proof is late.
    pub stale_allow: ClassSet,
    /// The failures about a user after which messages to that user are denied.
    pub deny_after: UserFailures,
    /// Whether marketing templates are denied, whatever else holds. It is set for a single check: of a
    /// user in a country that the operator has blocked.
    pub bars_marketing_templates: bool,
}

impl Policy {
    /// WhatsApp's window: 24 hours from the user's last message.
    pub const WINDOW: Duration = Duration::from_hours(24);
    /// The default margin.
    pub const MARGIN: Duration = Duration::from_mins(1);
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            window: Self::WINDOW,
            margin: Self::MARGIN,
            window_implies: ClassSet::ALL,
            stale_allow: ClassSet::NONE,
            deny_after: UserFailures::NONE,
            bars_marketing_templates: false,
        }
    }
}

/// The decision about one message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision {
    /// The reason, for the requested form.
    pub reason: Reason,
    /// Whether a free-form message may be sent.
    pub free_form_allowed: bool,
    /// Whether a template may be sent.
    pub template_allowed: bool,
    /// When the window, less the margin, closes or closed; unset if the user never wrote.
    pub window_expire: Option<Timestamp>,
    /// When to check again, if time alone will change the decision.
    pub retry: Option<Timestamp>,
}

impl Decision {
    /// Whether the message may be sent in the requested form.
    #[must_use]
    pub const fn allowed(&self) -> bool {
        self.reason.allows()
    }
}

/// Decides one message of `class`.
#[must_use]
pub fn decide(
    facts: &Facts,
    class: Class,
    form: Form,
    policy: &Policy,
    clock: Clock,
    proof: Proof,
) -> Decision {
    let standing = standing_at(facts.standing, class, clock);
    let question = Question { facts, standing, class, policy, clock };
    let free_form = question.proven(question.free_form(), proof);
    let template = question.proven(question.template(), proof);
    let reason = match form {
        Form::FreeForm => free_form,
        Form::Any if free_form.allows() && !template.allows() => free_form,
        Form::Template | Form::Any => template,
    };
    Decision {
        reason,
        free_form_allowed: free_form.allows(),
        template_allowed: template.allows(),
        window_expire: question.window_expire(),
        retry: match reason {
            Reason::FrequencyCapped => question.cap_end(),
            _ => None,
        },
    }
}

/// The standing at the time of the check: once an opt-in to marketing over an older opt-out has expired,
/// the opt-out applies again.
fn standing_at(standing: Standing, class: Class, clock: Clock) -> Standing {
    match standing {
        Standing::OptedInOverOptOut { expire, all } => {
            if class != Class::Marketing || clock.latest < expire {
                Standing::OptedIn { expire: Some(expire) }
            } else if all {
                Standing::OptedOutAll { answerable: false }
            } else {
                Standing::OptedOut
            }
        }
        standing => standing,
    }
}

struct Question<'a> {
    facts: &'a Facts,
    standing: Standing,
    class: Class,
    policy: &'a Policy,
    clock: Clock,
}

impl Question<'_> {
    /// Rows 1 and 9: overrides the result of rows 2 to 8 if the table is not proven to be current.
    fn proven(&self, reason: Reason, proof: Proof) -> Reason {
        match proof {
            Proof::Fresh => reason,
            Proof::Late if reason.allows() && self.policy.stale_allow.contains(self.class) => {
                Reason::AllowedWhileStale
            }
            Proof::Late | Proof::Invalid => Reason::Stale,
        }
    }

    /// Rows 2 to 8 for a template.
    fn template(&self) -> Reason {
        if let Some(denied) = self.denied() {
            return denied;
        }
        if self.is_marketing() {
            if self.refused(UserFailure::Experiment) && !self.open() {
                return Reason::PlatformRefused; // row 6
            }
            if self.cap_end().is_some_and(|end| self.clock.earliest < end) {
                return Reason::FrequencyCapped; // row 6
            }
            if self.policy.bars_marketing_templates {
                return Reason::CountryBlocked; // row 6
            }
        }
        self.consent()
    }

    /// Rows 2 to 8 for a free-form message.
    fn free_form(&self) -> Reason {
        if !self.facts.suppressed && !self.is_refused() && self.may_reply() {
            return Reason::ReplyAfterOptOut; // row 3
        }
        if let Some(denied) = self.denied() {
            return denied;
        }
        if !self.open() {
            return Reason::WindowClosed; // row 6
        }
        self.consent()
    }

    /// Rows 2 to 5, which are the same for both forms except for the exception of row 3.
    fn denied(&self) -> Option<Reason> {
        if self.facts.suppressed {
            return Some(Reason::Suppressed);
        }
        match self.standing {
            Standing::OptedOutAll { .. } => Some(Reason::OptedOutAll),
            Standing::OptedOut => Some(Reason::OptedOut),
            _ if self.is_marketing() && self.facts.platform_stopped => {
                Some(Reason::PlatformStopped)
            }
            _ if self.is_refused() => Some(Reason::PlatformRefused),
            _ => None,
        }
    }

    /// Whether there was this failure, and the operator has it denied.
    fn refused(&self, failure: UserFailure) -> bool {
        self.facts.failures.contains(failure) && self.policy.deny_after.contains(failure)
    }

    /// Whether the operator has every message to the user denied, of any class and form.
    fn is_refused(&self) -> bool {
        self.refused(UserFailure::Blocked) || self.refused(UserFailure::Country)
    }

    /// Row 3's exception: the user wrote again, strictly after opting out of everything.
    fn may_reply(&self) -> bool {
        let answerable = matches!(
            self.standing,
            Standing::OptedOutAll { answerable: true }
                | Standing::PendingOverOptOut { answerable: true }
        );
        answerable && !self.is_marketing() && self.open()
    }

    /// Rows 7 and 8. If a pending opt-in would replace an opt-out, the window does not replace its
    /// confirmation.
    fn consent(&self) -> Reason {
        let implied = self.open() && self.policy.window_implies.contains(self.class);
        match self.standing {
            Standing::OptedIn { expire }
                if expire.is_none_or(|expire| self.clock.latest < expire) =>
            {
                Reason::OptedIn
            }
            Standing::PendingOverOptOut { .. } => Reason::ConsentPending,
            _ if implied => Reason::WindowOpen,
            Standing::Pending => Reason::ConsentPending,
            Standing::OptedIn { .. } => Reason::ConsentExpired,
            _ => Reason::NoConsent,
        }
    }

    /// Whether the window is open by both clocks.
    fn open(&self) -> bool {
        let ahead = self.clock.earliest.plus(MAX_AHEAD);
        let believable = self.facts.last_inbound.is_some_and(|inbound| inbound <= ahead);
        let running = self.window_expire().is_some_and(|end| self.clock.latest < end);
        believable && running && !self.facts.window_closed
    }

    fn window_expire(&self) -> Option<Timestamp> {
        let inbound = self.facts.last_inbound?;
        Some(inbound.plus(self.policy.window).minus(self.policy.margin))
    }

    fn cap_end(&self) -> Option<Timestamp> {
        Some(self.facts.capped?.plus(CAP))
    }

    fn is_marketing(&self) -> bool {
        self.class == Class::Marketing
    }
}
