//! The facts that a decision needs of a pair's state. They are resolved when a change is applied, so
//! that a check does not compare the times of events.
//!
//! Most pairs share one of few [`Profile`]s, which have no times in them, so that a table can store each
//! profile once. The times that only few pairs have are in [`Expiries`].

mod bytes;
mod category_rule;
mod held_failures;
mod joined;

use super::failure::UserFailures;
use super::id::PhoneNumberId;
use super::scope::{Category, Class, Scope};
use super::state::{Choice, ChoiceKind, State};
use super::time::Timestamp;

/// What the latest event that covers a category says about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// No event covers it.
    None,
    /// Opted in.
    OptedIn {
        /// When the opt-in expires; never if unset.
        expire: Option<Timestamp>,
    },
    /// Opted in to marketing after an opt-out, which applies again once the opt-in has expired.
    OptedInOverOptOut {
        /// When the opt-in expires.
        expire: Timestamp,
        /// Whether that was an opt-out of everything.
        all: bool,
    },
    /// An opt-in that waits for its double opt-in confirmation.
    Pending,
    /// An opt-in that waits for its confirmation, and would replace an opt-out.
    PendingOverOptOut {
        /// As in [`OptedOutAll`](Self::OptedOutAll), of the opt-out that would be replaced; false if
        /// that is narrower than everything.
        answerable: bool,
    },
    /// Opted out of the category or its class, whether or not of everything later.
    OptedOut,
    /// Opted out of everything, and of nothing narrower that still applies.
    OptedOutAll {
        /// Whether the user wrote strictly later than the opt-out.
        answerable: bool,
    },
}

/// All facts of a pair that a decision about one category needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Facts {
    /// The standing of the category.
    pub standing: Standing,
    /// Whether the user must not be contacted.
    pub suppressed: bool,
    /// Whether the user stopped marketing inside WhatsApp.
    pub platform_stopped: bool,
    /// When WhatsApp last capped marketing to the user.
    pub capped: Option<Timestamp>,
    /// When the user last wrote or called.
    pub last_inbound: Option<Timestamp>,
    /// Whether WhatsApp said, at or after `last_inbound`, that the window is closed.
    pub window_closed: bool,
    /// The failures about the user that still hold.
    pub failures: UserFailures,
}

impl Facts {
    /// The facts of a pair without events.
    pub const NOTHING: Self = Self {
        standing: Standing::None,
        suppressed: false,
        platform_stopped: false,
        capped: None,
        last_inbound: None,
        window_closed: false,
        failures: UserFailures::NONE,
    };
}

/// The kind of a standing, without its times.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(super) enum StandingKind {
    #[default]
    None,
    OptedIn,
    Pending,
    PendingOverOptOut,
    PendingOverOptOutAll,
    OptedOut,
    OptedOutAll,
    /// Opted in to marketing with an expiry, after which an older opt-out of everything applies again.
    OptedInOverAll,
    /// As `OptedInOverAll`, but the older opt-out is of this topic's class.
    OptedInOverClass,
    /// As `OptedInOverAll`, but the older opt-out is of the same scope as the opt-in.
    OptedInOverOwn,
    /// A pending opt-in over one of those three. An open window does not replace its confirmation.
    PendingOverExpiring,
}

/// The standing of a class or a topic.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(super) struct ScopeStanding {
    pub(super) kind: StandingKind,
    /// Whether the standing comes from a choice about this scope itself, and not about a broader one. In
    /// addition to an opt-out of everything, the latest narrower opt-out counts as well.
    pub(super) own: bool,
}

impl StandingKind {
    /// Whether an opt-out applies. An opt-out that a pending opt-in would replace does.
    pub(super) fn is_opt_out(self) -> bool {
        match self {
            Self::None
            | Self::OptedIn
            | Self::Pending
            | Self::OptedInOverAll
            | Self::OptedInOverClass
            | Self::OptedInOverOwn
            | Self::PendingOverExpiring => false,
            Self::PendingOverOptOut
            | Self::PendingOverOptOutAll
            | Self::OptedOut
            | Self::OptedOutAll => true,
        }
    }

    /// The moment from which an opt-out applies: [`Timestamp::MIN`] if it does already, and `expire` if
    /// an opt-in suspends it until then. `None` if there is no opt-out.
    pub(super) fn opt_out_start(self, expire: Option<Timestamp>) -> Option<Timestamp> {
        match self {
            Self::None | Self::OptedIn | Self::Pending => None,
            // An opt-in whose expiry is missing counts as expired, which denies.
            Self::OptedInOverAll | Self::OptedInOverClass | Self::OptedInOverOwn => {
                Some(expire.unwrap_or(Timestamp::MIN))
            }
            // A check denies it as pending, as it does over an opt-out that applies.
            Self::PendingOverExpiring
            | Self::PendingOverOptOut
            | Self::PendingOverOptOutAll
            | Self::OptedOut
            | Self::OptedOutAll => Some(Timestamp::MIN),
        }
    }

    /// Whether a later message from the user does not lift the opt-out for replies.
    pub(super) fn is_narrow(self) -> bool {
        !matches!(self, Self::OptedOutAll | Self::PendingOverOptOutAll)
    }

    /// Whether an opt-in applies, until it expires.
    fn is_opt_in(self) -> bool {
        matches!(
            self,
            Self::OptedIn | Self::OptedInOverAll | Self::OptedInOverClass | Self::OptedInOverOwn
        )
    }
}

/// The part of a pair's resolved state that has no times. Many pairs share an equal profile.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Profile {
    pub(super) suppressed: bool,
    /// At which of the business's numbers marketing is stopped inside WhatsApp; `None` stands for a stop
    /// whose number is unknown, and comes first.
    pub(super) stops: Box<[Option<PhoneNumberId>]>,
    window_closed: bool,
    failures: UserFailures,
    /// `Some` if the user opted out of everything; whether the user wrote strictly later.
    pub(super) opted_out_all: Option<bool>,
    pub(super) classes: [ScopeStanding; 4],
    /// The topics whose standing may differ from that of their class.
    pub(super) topics: Box<[(Class, Box<str>, ScopeStanding)]>,
}

/// The times of a pair's resolved state that only few pairs have: expiries of opt-ins, and the time of
/// a frequency cap.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Expiries {
    /// For each opt-in that expires, the index of its scope in the profile (the four classes, then the
    /// topics) and its expiry.
    opt_ins: Box<[(usize, Timestamp)]>,
    capped: Option<Timestamp>,
}

/// The bit of the frequency cap in [`ExpiriesRef::OneTime`]. The lower bits are scope indices.
const CAP_BIT: u32 = 21;

/// A borrowed view of a pair's expiries, in either of the encodings in which the table stores them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ExpiriesRef<'a> {
    /// The pair has no expiries.
    None,
    /// All expiries are at the same time.
    OneTime {
        /// A bit for each scope index in the profile whose opt-in expires then, and one for a cap.
        bits: u32,
        /// The time.
        time: Timestamp,
    },
    /// Each expiry has its own time.
    Each(&'a Expiries),
}

impl<'a> From<Option<&'a Expiries>> for ExpiriesRef<'a> {
    fn from(expiries: Option<&'a Expiries>) -> Self {
        expiries.map_or(Self::None, Self::Each)
    }
}

impl ExpiriesRef<'_> {
    /// When the opt-in of the scope with this index expires; `None` if it does not.
    pub(super) fn expiry(self, index: usize) -> Option<Timestamp> {
        match self {
            Self::None => None,
            Self::OneTime { bits, time } => {
                let bit = u32::try_from(index).ok().filter(|bit| *bit < CAP_BIT)?;
                (bits >> bit & 1 == 1).then_some(time)
            }
            Self::Each(expiries) => {
                expiries.opt_ins.iter().find(|(at, _)| *at == index).map(|(_, expire)| *expire)
            }
        }
    }

    fn capped(self) -> Option<Timestamp> {
        match self {
            Self::None => None,
            Self::OneTime { bits, time } => (bits >> CAP_BIT & 1 == 1).then_some(time),
            Self::Each(expiries) => expiries.capped,
        }
    }

    /// Whether it has the same content as `expiries`, in whichever encoding.
    #[must_use]
    pub fn equals(self, expiries: Option<&Expiries>) -> bool {
        match (self, expiries) {
            (Self::None, None) => true,
            (Self::OneTime { bits, time }, Some(expiries)) => {
                expiries.one_time() == Some((bits, time))
            }
            (Self::Each(ours), Some(theirs)) => ours == theirs,
            _ => false,
        }
    }
}

/// A state, resolved for decisions.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ResolvedState {
    /// The part without times.
    pub profile: Profile,
    /// When the user last wrote or called.
    pub last_inbound: Option<Timestamp>,
    /// The times that few pairs have, if this pair has any.
    pub expiries: Option<Expiries>,
}

impl ResolvedState {
    /// Resolves a state.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let stopped = |mark: Option<(Timestamp, bool)>| mark.is_some_and(|(_, set)| set);
        let all = state.scopes.get(&Scope::All).and_then(|scope_state| scope_state.choice);
        let mut profile = Profile {
            suppressed: stopped(state.suppression),
            stops: state.platform.standing().map(|(number, _)| number.cloned()).collect(),
            window_closed: state
                .last_inbound
                .is_some_and(|inbound| state.window_closed.is_some_and(|closed| closed >= inbound)),
            failures: state.user_failures.held(state.last_inbound),
            opted_out_all: all.map(|choice| state.last_inbound > Some(choice.time)),
            ..Profile::default()
        };
        let mut expiries = Vec::new();
        for (index, class) in Class::ALL.into_iter().enumerate() {
            let (on_scope, expire) = ScopeStanding::of(state, &Scope::Class(class));
            if let Some(slot) = profile.classes.get_mut(index) {
                *slot = on_scope;
            }
            expiries.extend(expire.map(|expire| (index, expire)));
        }
        let mut topics = Vec::new();
        for (scope, scope_state) in &state.scopes {
            let Scope::Topic(class, topic) = scope else { continue };
            let (on_scope, expire) = ScopeStanding::of(state, scope);
            let on_class = Class::ALL.into_iter().zip(profile.classes);
            let on_class = on_class.into_iter().find(|(known, _)| known == class);
            let same = on_class.is_some_and(|(_, on)| on.kind == on_scope.kind)
                && on_scope.kind != StandingKind::OptedInOverOwn;
            if !on_scope.own && scope_state.pending.is_none() && same {
                continue; // Its standing is that of its class.
            }
            let index = Class::ALL.len().saturating_add(topics.len());
            expiries.extend(expire.map(|expire| (index, expire)));
            topics.push((*class, topic.clone(), on_scope));
        }
        profile.topics = topics.into();
        let few = !expiries.is_empty() || state.capped.is_some();
        Self {
            profile,
            last_inbound: state.last_inbound,
            expiries: few.then(|| Expiries { opt_ins: expiries.into(), capped: state.capped }),
        }
    }

    /// The facts for a decision about `category`.
    #[must_use]
    pub fn facts(&self, category: Category<'_>) -> Facts {
        self.profile.facts(category, self.last_inbound, self.expiries.as_ref().into())
    }
}

impl ScopeStanding {
    /// The standing of a scope, and its expiry if it is an opt-in that expires.
    pub(super) fn of(state: &State, scope: &Scope) -> (Self, Option<Timestamp>) {
        let choice_on =
            |scope: &Scope| state.scopes.get(scope).and_then(|scope_state| scope_state.choice);
        let standing = state.standing_on(scope);
        let Some(choice) = standing.choice else {
            let kind =
                if standing.pending.is_some() { StandingKind::Pending } else { StandingKind::None };
            return (Self { kind, own: false }, None);
        };
        let class = scope.class().map(Scope::Class);
        // The latest choice about a scope narrower than everything.
        let narrower = class.as_ref().and_then(choice_on).max(choice_on(scope));
        let all = choice_on(&Scope::All) == Some(choice);
        let both = choice.is_opt_out() && narrower.is_some_and(Choice::is_opt_out);
        let own =
            choice_on(scope).is_some_and(|own| own == choice || both && Some(own) == narrower);
        let pending = standing.pending.is_some_and(|pending| pending.is_pending_over(Some(choice)));
        let (kind, expire) = match choice.kind {
            ChoiceKind::OptIn { expire: None, .. } if pending => (StandingKind::Pending, None),
            ChoiceKind::OptIn { expire: None, .. } => (StandingKind::OptedIn, None),
            ChoiceKind::OptIn { expire, .. } => match over_opt_out(state, scope) {
                StandingKind::OptedIn if pending => (StandingKind::Pending, None),
                _ if pending => (StandingKind::PendingOverExpiring, None),
                kind => (kind, expire),
            },
            ChoiceKind::OptOut if pending && all && !both => {
                (StandingKind::PendingOverOptOutAll, None)
            }
            ChoiceKind::OptOut if pending => (StandingKind::PendingOverOptOut, None),
            ChoiceKind::OptOut if all && !both => (StandingKind::OptedOutAll, None),
            ChoiceKind::OptOut => (StandingKind::OptedOut, None),
        };
        (Self { kind, own }, expire)
    }
}

/// The kind of an opt-in that expires. For marketing, the latest opt-out that it replaced applies again
/// after the expiry, unless another opt-in that never expires is later than that opt-out.
fn over_opt_out(state: &State, scope: &Scope) -> StandingKind {
    let Some(class) = scope.class().filter(|class| *class == Class::Marketing) else {
        return StandingKind::OptedIn;
    };
    // Of opt-outs of the same time the narrowest is used, because a message from the user does not lift
    // a narrow opt-out.
    let class = Scope::Class(class);
    let covering = [
        (&Scope::All, StandingKind::OptedInOverAll),
        (&class, StandingKind::OptedInOverClass),
        (scope, StandingKind::OptedInOverOwn),
    ];
    let scope_state = |scope: &Scope| state.scopes.get(scope).copied().unwrap_or_default();
    let outs =
        covering.iter().filter_map(|(scope, kind)| Some((scope_state(scope).opt_out?, *kind)));
    let Some((out, kind)) = outs.max_by_key(|(time, _)| *time) else {
        return StandingKind::OptedIn;
    };
    let lifts = |choice: Choice| {
        matches!(choice.kind, ChoiceKind::OptIn { expire: None, .. }) && choice.time > out
    };
    let is_lifted = covering.iter().any(|(scope, _)| scope_state(scope).choice.is_some_and(lifts));
    if is_lifted { StandingKind::OptedIn } else { kind }
}

impl Profile {
    /// The facts for a decision about `category`, of a pair with this profile and these times.
    #[must_use]
    pub fn facts(
        &self,
        category: Category<'_>,
        last_inbound: Option<Timestamp>,
        times: ExpiriesRef<'_>,
    ) -> Facts {
        let (index, kind) = self.standing_kind(category);
        let answerable = self.opted_out_all.unwrap_or(false);
        let standing = match kind {
            StandingKind::None => Standing::None,
            StandingKind::OptedIn => Standing::OptedIn { expire: times.expiry(index) },
            StandingKind::OptedInOverAll
            | StandingKind::OptedInOverClass
            | StandingKind::OptedInOverOwn => {
                // An opt-in whose expiry is missing counts as expired, which denies.
                let expire = times.expiry(index).unwrap_or(Timestamp::MIN);
                Standing::OptedInOverOptOut { expire, all: kind == StandingKind::OptedInOverAll }
            }
            StandingKind::Pending => Standing::Pending,
            StandingKind::PendingOverOptOut | StandingKind::PendingOverExpiring => {
                Standing::PendingOverOptOut { answerable: false }
            }
            StandingKind::PendingOverOptOutAll => Standing::PendingOverOptOut { answerable },
            StandingKind::OptedOut => Standing::OptedOut,
            StandingKind::OptedOutAll => Standing::OptedOutAll { answerable },
        };
        Facts {
            standing,
            suppressed: self.suppressed,
            platform_stopped: self.platform_stopped(),
            capped: times.capped(),
            last_inbound,
            window_closed: self.window_closed,
            failures: self.failures,
        }
    }

    fn standing_kind(&self, category: Category<'_>) -> (usize, StandingKind) {
        if let Some(topic) = category.topic {
            let own = self.topics.iter().enumerate();
            for (index, (class, name, on_scope)) in own {
                if *class == category.class && **name == *topic {
                    return (Class::ALL.len().saturating_add(index), on_scope.kind);
                }
            }
        }
        let index = match category.class {
            Class::Marketing => 0,
            Class::Utility => 1,
            Class::Authentication => 2,
            Class::Service => 3,
        };
        (index, self.classes.get(index).copied().unwrap_or_default().kind)
    }

    /// Whether the user stopped marketing inside WhatsApp.
    #[must_use]
    pub fn platform_stopped(&self) -> bool {
        !self.stops.is_empty()
    }

    /// At which of the business's numbers the user stopped marketing inside WhatsApp; `None` stands for a
    /// stop whose number is unknown, and comes first.
    #[must_use]
    pub fn stops(&self) -> &[Option<PhoneNumberId>] {
        &self.stops
    }

    /// Whether the user must not be contacted.
    #[must_use]
    pub fn suppressed(&self) -> bool {
        self.suppressed
    }

    /// The scopes in force at `now`: those opted in to, and those opted out of. An opt-in that is pending
    /// or expired is in neither list, and the opt-out that it replaced, or would replace, is listed.
    #[must_use]
    pub fn in_force(&self, times: ExpiriesRef<'_>, now: Timestamp) -> (Vec<Scope>, Vec<Scope>) {
        let (mut opted_in, mut opted_out) = (Vec::new(), Vec::new());
        if self.opted_out_all.is_some() {
            opted_out.push(Scope::All);
        }
        let classes = Class::ALL.into_iter().map(Scope::Class).zip(self.classes);
        let topics = self.topics.iter();
        let topics = topics.map(|(class, name, on)| (Scope::Topic(*class, name.clone()), *on));
        for (index, (scope, on_scope)) in classes.chain(topics).enumerate() {
            let valid = times.expiry(index).is_none_or(|expire| now < expire);
            match on_scope.kind {
                StandingKind::OptedInOverOwn if !valid => opted_out.push(scope),
                _ if !on_scope.own => {}
                kind if kind.is_opt_in() && valid => opted_in.push(scope),
                kind if kind.is_opt_out() => opted_out.push(scope),
                _ => {}
            }
        }
        (opted_in, opted_out)
    }

    /// The approximate size of the profile on the heap, in bytes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let names: usize = self.topics.iter().map(|(_, name, _)| name.len()).sum();
        let numbers: usize = self.stops.iter().flatten().map(|number| number.as_str().len()).sum();
        let lists = std::mem::size_of_val(&*self.topics)
            .saturating_add(std::mem::size_of_val(&*self.stops));
        lists.saturating_add(names).saturating_add(numbers)
    }
}

impl Expiries {
    /// The expiries in the compact encoding of [`ExpiriesRef::OneTime`]: bits and time. `None` if there
    /// are several times, or scope indices beyond the bits.
    #[must_use]
    pub fn one_time(&self) -> Option<(u32, Timestamp)> {
        let (mut bits, mut at) = (0_u32, self.capped);
        if self.capped.is_some() {
            bits |= 1 << CAP_BIT;
        }
        for (index, time) in &self.opt_ins {
            let bit = u32::try_from(*index).ok().filter(|bit| *bit < CAP_BIT)?;
            if at.is_some_and(|at| at != *time) {
                return None;
            }
            at = Some(*time);
            bits |= 1 << bit;
        }
        at.map(|time| (bits, time))
    }

    /// The approximate size on the heap, in bytes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        std::mem::size_of_val(&*self.opt_ins)
    }
}
