//! WhatsApp's error codes: what each says about sending again.
//!
//! The sources are Meta's pages and public lists of codes; `docs/whatsapp.md` has each with its date. A code
//! that is not listed says nothing here.

use std::fmt;
use std::time::Duration;

use super::decision::CAP;
use super::time::Timestamp;

/// What a code is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum About {
    /// The user, or the conversation with the user.
    User,
    /// The business's account, number or template.
    Account,
    /// The message itself, or something that is not disclosed.
    Message,
    /// A message from the user that could not be read.
    Inbound,
}

/// When the same message may be sent again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Again {
    /// After the user's next message or call; a template at once.
    AfterMessage,
    /// Once this time has passed since the failure.
    After(Duration),
    /// Once the user has resumed marketing inside WhatsApp.
    AfterResume,
    /// Inside the user's window alone.
    InsideWindow,
    /// Once what limits the account has passed. No time is given.
    Later,
    /// To the user's phone number, or by another API.
    OtherWay,
    /// Not as long as the restriction holds, which is ended elsewhere.
    Never,
    /// It does not say.
    Unknown,
    /// No message was sent.
    NothingSent,
}

impl Again {
    /// The rule in words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::AfterMessage => "after the user's next message or call; a template at once",
            Self::After(_) => "after 24 hours; free-form inside the window at once",
            Self::AfterResume => "once the user has resumed marketing inside WhatsApp",
            Self::InsideWindow => "inside the user's window alone",
            Self::Later => "once the account's limit has passed; no time is given",
            Self::OtherWay => "to the phone number, or by the other API",
            Self::Never => "not while the restriction holds",
            Self::Unknown => "not stated",
            Self::NothingSent => "nothing was sent",
        }
    }
}

/// What a code says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failure {
    /// The code.
    pub code: i32,
    /// What it means.
    pub meaning: &'static str,
    /// What it is about.
    pub about: About,
    /// When to send again.
    pub again: Again,
}

const fn failure(code: i32, meaning: &'static str, about: About, again: Again) -> Failure {
    Failure { code, meaning, about, again }
}

/// The codes that say something about sending again, in the order of their numbers.
pub const FAILURES: [Failure; 15] = [
    failure(130_403, "the business has blocked this user", About::User, Again::Never),
    failure(
        130_472,
        "the user is in an experiment of Meta's: marketing templates never arrive",
        About::User,
        Again::InsideWindow,
    ),
    failure(
        130_497,
        "the business may not message users in this country",
        About::User,
        Again::Never,
    ),
    failure(
        131_026,
        "undeliverable, for a reason that is not disclosed",
        About::Message,
        Again::Unknown,
    ),
    failure(131_042, "the account has a problem with its payment", About::Account, Again::Later),
    failure(131_047, "the user's window is closed", About::User, Again::AfterMessage),
    failure(131_048, "the number has met its limit for spam", About::Account, Again::Later),
    failure(131_049, "the user got much marketing lately", About::User, Again::After(CAP)),
    failure(131_050, "the user stopped this business's marketing", About::User, Again::AfterResume),
    failure(
        131_051,
        "a message from the user has a type that is not supported",
        About::Inbound,
        Again::NothingSent,
    ),
    failure(
        131_056,
        "too many messages to this user within a short time",
        About::Account,
        Again::Later,
    ),
    failure(
        131_060,
        "a message from the user was not passed on",
        About::Inbound,
        Again::NothingSent,
    ),
    failure(
        131_062,
        "this template needs a phone number, not a business-scoped id",
        About::Message,
        Again::OtherWay,
    ),
    failure(
        131_063,
        "marketing is off on this API: use the Marketing Messages API",
        About::Account,
        Again::OtherWay,
    ),
    failure(
        131_064,
        "the account has met its limit for misused templates",
        About::Account,
        Again::Later,
    ),
];

/// What a code says, if it says something.
#[must_use]
pub fn of(code: i32) -> Option<&'static Failure> {
    FAILURES.iter().find(|known| known.code == code)
}

/// A code with which WhatsApp refused a message to a user, and that still holds.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct HeldFailure {
    /// WhatsApp's code.
    pub code: i32,
    /// When to send again, if time alone ends it.
    pub retry: Option<Timestamp>,
}

/// A failure that concerns the user and not the user's permission. It denies only if an operator says
/// so: see [`Policy::deny_after`](super::decision::Policy::deny_after).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UserFailure {
    /// 130403: the business has blocked the user, who therefore cannot write either. A later message of
    /// the user proves that this is over.
    Blocked,
    /// 130472: marketing templates never arrive, unless the user's window is open.
    Experiment,
    /// 130497: the business may not message users in this country. Nothing that the user does ends it.
    Country,
}

impl UserFailure {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 3] = [Self::Blocked, Self::Experiment, Self::Country];

    /// The failure with this code.
    #[must_use]
    pub fn of(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|failure| failure.code() == code)
    }

    /// WhatsApp's code.
    #[must_use]
    pub const fn code(self) -> i32 {
        match self {
            Self::Blocked => 130_403,
            Self::Experiment => 130_472,
            Self::Country => 130_497,
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Blocked => 1,
            Self::Experiment => 2,
            Self::Country => 4,
        }
    }
}

/// A set of failures about a user.
#[derive(Clone, Copy, Default, Eq, Hash, PartialEq)]
pub struct UserFailures(u8);

impl fmt::Debug for UserFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(UserFailure::code)).finish()
    }
}

impl UserFailures {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this one is among them.
    #[must_use]
    pub const fn contains(self, failure: UserFailure) -> bool {
        self.0 & failure.bit() != 0
    }

    /// Those of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that both sets have.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Each of them, in the order of their codes.
    pub fn iter(self) -> impl Iterator<Item = UserFailure> {
        UserFailure::ALL.into_iter().filter(move |failure| self.contains(*failure))
    }

    /// The set as three bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set of these bits; `None` if there is a fourth.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits < 8 { Some(Self(bits)) } else { None }
    }
}

impl FromIterator<UserFailure> for UserFailures {
    fn from_iter<I: IntoIterator<Item = UserFailure>>(failures: I) -> Self {
        failures.into_iter().fold(Self::NONE, |set, failure| Self(set.0 | failure.bit()))
    }
}

/// The time of the latest failure of each kind about the user.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct UserFailureTimes([Option<Timestamp>; UserFailure::ALL.len()]);

impl UserFailureTimes {
    fn slot(&mut self, failure: UserFailure) -> Option<&mut Option<Timestamp>> {
        let place = UserFailure::ALL.iter().position(|known| *known == failure)?;
        self.0.get_mut(place)
    }

    /// Notes a failure. Returns whether it is later than what was known.
    pub fn raise(&mut self, failure: UserFailure, time: Timestamp) -> bool {
        self.slot(failure).is_some_and(|slot| {
            let is_later = slot.is_none_or(|known| time > known);
            if is_later {
                *slot = Some(time);
            }
            is_later
        })
    }

    /// When there was such a failure last.
    #[must_use]
    pub fn time(&self, failure: UserFailure) -> Option<Timestamp> {
        self.iter().find(|(known, _)| *known == failure).map(|(_, time)| time)
    }

    /// The failures that there were, and their times.
    pub fn iter(&self) -> impl Iterator<Item = (UserFailure, Timestamp)> {
        UserFailure::ALL
            .into_iter()
            .zip(self.0)
            .filter_map(|(failure, time)| Some((failure, time?)))
    }

    /// The later of each.
    #[must_use]
    pub(crate) fn join(mut self, other: Self) -> Self {
        for (failure, time) in other.iter() {
            self.raise(failure, time);
        }
        self
    }

    /// The failures that still hold after the user's last message. A message from the user ends `Blocked`,
    /// because a blocked user cannot write; it ends no other.
    #[must_use]
    pub fn held(&self, last_inbound: Option<Timestamp>) -> UserFailures {
        let holds = |(failure, time): &(UserFailure, Timestamp)| {
            *failure != UserFailure::Blocked || last_inbound.is_none_or(|last| *time >= last)
        };
        self.iter().filter(holds).map(|(failure, _)| failure).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Effect, State};

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).unwrap()
    }

    #[test]
    fn codes_are_listed_once_and_those_that_may_be_denied_are_about_the_user() {
        for (index, known) in FAILURES.iter().enumerate() {
            assert!(FAILURES.iter().skip(index + 1).all(|other| other.code != known.code));
        }
        for failure in UserFailure::ALL {
            let listed = of(failure.code()).unwrap();
            assert_eq!(listed.about, About::User, "{failure:?}");
            assert_eq!(UserFailure::of(failure.code()), Some(failure));
            let set: UserFailures = [failure].into_iter().collect();
            assert_eq!(UserFailures::from_bits(set.bits()), Some(set));
            assert_eq!(set.iter().collect::<Vec<_>>(), [failure]);
        }
        assert_eq!((of(7), UserFailure::of(131_026)), (None, None));
        assert_eq!(UserFailures::from_bits(8), None);
    }

    #[test]
    fn failures_about_the_user_are_kept_each_by_its_latest_time_in_any_order() {
        let failure = |millis, code| Effect::Failure { time: at(millis), code };
        let effects = [
            failure(5, 130_472),
            failure(3, 130_472),
            failure(6, 130_403),
            failure(9, 131_026),
            Effect::Inbound(at(7)),
        ];
        let of = |effects: &[Effect]| {
            let mut state = State::default();
            for effect in effects {
                state.apply(effect).unwrap();
            }
            state
        };
        let state = of(&effects);
        assert_eq!(state.failure, Some((at(9), 131_026)));
        let found: Vec<_> = state.user_failures.iter().collect();
        assert_eq!(found, [(UserFailure::Blocked, at(6)), (UserFailure::Experiment, at(5))]);
        let held: Vec<_> = state.user_failures.held(state.last_inbound).iter().collect();
        assert_eq!(held, [UserFailure::Experiment], "who was blocked has written since");
        for turn in 1..effects.len() {
            let mut turned = effects.clone();
            turned.rotate_left(turn);
            assert_eq!(of(&turned), state);
            assert_eq!(of(&turned[..turn]).join(of(&turned[turn..])), state);
        }
        // A message that was clamped to a moment does not lift a block that is recorded after it.
        let mut state = of(&[Effect::Inbound(at(50))]);
        state.clamped.insert(at(50));
        assert_eq!(state.counts_as_of(&failure(40, 130_403), at(40)), at(50));
        assert_eq!(state.counts_as_of(&failure(40, 130_472), at(40)), at(40));
    }
}
