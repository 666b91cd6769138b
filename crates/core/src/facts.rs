//! What a decision needs to know of a pair's state, resolved when a change is applied, so that a
//! check compares no times of events.
//!
//! Most pairs share one of few [`Profile`]s, so a table can keep one copy of each; what few pairs
//! have lies in [`Beside`].

mod bytes;

use super::scope::{Category, Class, Scope};
use super::state::{Said, State, Word};
use super::time::Timestamp;

/// What the latest event that covers a category says of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// No event covers it.
    None,
    /// Opted in, until `expire` where that is set.
    OptedIn {
        /// When it lapses.
        expire: Option<Timestamp>,
    },
    /// Opted in to marketing after an opt-out, which stands again once the opt-in has lapsed.
    OptedInOverOptOut {
        /// When it lapses.
        expire: Timestamp,
        /// Whether that was an opt-out of everything.
        all: bool,
    },
    /// An opt-in that waits for its double opt-in confirmation.
    Pending,
    /// The same, where what it would replace is an opt-out.
    PendingOverOptOut {
        /// As in [`OptedOutAll`](Self::OptedOutAll), of the opt-out that would be replaced; false
        /// where a narrower one stands.
        answerable: bool,
    },
    /// Opted out of the category or its class, whether or not of everything since.
    OptedOut,
    /// Opted out of everything, and of nothing narrower that still stands.
    OptedOutAll {
        /// Whether the user wrote strictly later.
        answerable: bool,
    },
}

/// All that a decision about one category needs to know of a pair.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Facts {
    /// What stands on the category.
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
}

impl Facts {
    /// What is known of a pair that nothing was recorded of.
    pub const NOTHING: Self = Self {
        standing: Standing::None,
        suppressed: false,
        platform_stopped: false,
        capped: None,
        last_inbound: None,
        window_closed: false,
    };
}

/// A standing without times.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(super) enum Mark {
    #[default]
    None,
    OptedIn,
    Pending,
    PendingOverOptOut,
    PendingOverOptOutAll,
    OptedOut,
    OptedOutAll,
    /// Opted in to marketing, until it lapses: then the older opt-out of everything stands again.
    OptedInOverAll,
    /// The same, where the older opt-out is of the class of this topic.
    OptedInOverClass,
    /// The same, where the older opt-out is of this very scope.
    OptedInOverOwn,
    /// A pending opt-in over one of those three: the window does not stand in for it.
    PendingOverLapsing,
}

/// What stands on a class or a topic.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(super) struct Marked {
    pub(super) mark: Mark,
    /// Whether a word on this very scope is what stands, and not one on a broader scope. Beside an
    /// opt-out of everything, the latest opt-out of what is narrower stands as well.
    pub(super) own: bool,
}

impl Mark {
    /// Whether an opt-out stands. One that a pending opt-in would replace does.
    pub(super) fn is_opt_out(self) -> bool {
        match self {
            Self::None
            | Self::OptedIn
            | Self::Pending
            | Self::OptedInOverAll
            | Self::OptedInOverClass
            | Self::OptedInOverOwn
            | Self::PendingOverLapsing => false,
            Self::PendingOverOptOut
            | Self::PendingOverOptOutAll
            | Self::OptedOut
            | Self::OptedOutAll => true,
        }
    }

    /// Whether an opt-in stands until it lapses.
    fn is_opt_in(self) -> bool {
        matches!(
            self,
            Self::OptedIn | Self::OptedInOverAll | Self::OptedInOverClass | Self::OptedInOverOwn
        )
    }
}

/// The timeless part of a pair's state: equal for all pairs of one standing.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Profile {
    pub(super) suppressed: bool,
    pub(super) platform_stopped: bool,
    window_closed: bool,
    /// Set where the user opted out of everything: whether the user wrote strictly later.
    pub(super) opted_out_all: Option<bool>,
    pub(super) classes: [Marked; 4],
    /// Those on which something else may stand than on their class.
    pub(super) topics: Box<[(Class, Box<str>, Marked)]>,
}

/// What few pairs have: opt-ins that lapse, and caps.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Beside {
    /// When the opt-ins that lapse do: a place in the profile (its four classes, then its
    /// topics), and the moment.
    expiries: Box<[(usize, Timestamp)]>,
    capped: Option<Timestamp>,
}

/// The bit of a cap among the bits of what ends at one moment; those before are of places.
const CAP_BIT: u32 = 21;

/// What few pairs have, as whoever keeps it gives it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Times<'a> {
    /// The pair has none of that.
    None,
    /// All of it lies at one moment.
    AtOnce {
        /// A bit for each place in the profile whose opt-in lapses then, and one for a cap.
        what: u32,
        /// The moment.
        time: Timestamp,
    },
    /// Each has its own.
    Each(&'a Beside),
}

impl<'a> From<Option<&'a Beside>> for Times<'a> {
    fn from(beside: Option<&'a Beside>) -> Self {
        beside.map_or(Self::None, Self::Each)
    }
}

impl Times<'_> {
    fn expiry(self, place: usize) -> Option<Timestamp> {
        match self {
            Self::None => None,
            Self::AtOnce { what, time } => {
                let place = u32::try_from(place).ok().filter(|place| *place < CAP_BIT)?;
                (what >> place & 1 == 1).then_some(time)
            }
            Self::Each(beside) => {
                beside.expiries.iter().find(|(at, _)| *at == place).map(|(_, expire)| *expire)
            }
        }
    }

    fn capped(self) -> Option<Timestamp> {
        match self {
            Self::None => None,
            Self::AtOnce { what, time } => (what >> CAP_BIT & 1 == 1).then_some(time),
            Self::Each(beside) => beside.capped,
        }
    }

    /// Whether it is what `beside` holds.
    #[must_use]
    pub fn are(self, beside: Option<&Beside>) -> bool {
        match (self, beside) {
            (Self::None, None) => true,
            (Self::AtOnce { what, time }, Some(beside)) => beside.at_once() == Some((what, time)),
            (Self::Each(ours), Some(theirs)) => ours == theirs,
            _ => false,
        }
    }
}

/// A state, resolved.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Resolved {
    /// What has no times in it.
    pub profile: Profile,
    /// When the user last wrote or called.
    pub last_inbound: Option<Timestamp>,
    /// What few pairs have; unset where this one does not.
    pub beside: Option<Beside>,
}

impl Resolved {
    /// Resolves a state.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let stopped = |mark: Option<(Timestamp, bool)>| mark.is_some_and(|(_, set)| set);
        let all = state.scopes.get(&Scope::All).and_then(|said| said.word);
        let mut profile = Profile {
            suppressed: stopped(state.suppression),
            platform_stopped: stopped(state.platform),
            window_closed: state
                .last_inbound
                .is_some_and(|inbound| state.window_closed.is_some_and(|closed| closed >= inbound)),
            opted_out_all: all.map(|word| state.last_inbound > Some(word.time)),
            ..Profile::default()
        };
        let mut expiries = Vec::new();
        for (place, class) in Class::ALL.into_iter().enumerate() {
            let (marked, expire) = marked(state, &Scope::Class(class));
            if let Some(slot) = profile.classes.get_mut(place) {
                *slot = marked;
            }
            expiries.extend(expire.map(|expire| (place, expire)));
        }
        let mut topics = Vec::new();
        for (scope, said) in &state.scopes {
            let Scope::Topic(class, topic) = scope else { continue };
            let (marked, expire) = marked(state, scope);
            let on_class = Class::ALL.into_iter().zip(profile.classes);
            let on_class = on_class.into_iter().find(|(known, _)| known == class);
            let same = on_class.is_some_and(|(_, on)| on.mark == marked.mark)
                && marked.mark != Mark::OptedInOverOwn;
            if !marked.own && said.pending.is_none() && same {
                continue; // What stands on its class stands on it.
            }
            let place = Class::ALL.len().saturating_add(topics.len());
            expiries.extend(expire.map(|expire| (place, expire)));
            topics.push((*class, topic.clone(), marked));
        }
        profile.topics = topics.into();
        let few = !expiries.is_empty() || state.capped.is_some();
        Self {
            profile,
            last_inbound: state.last_inbound,
            beside: few.then(|| Beside { expiries: expiries.into(), capped: state.capped }),
        }
    }

    /// What a decision about `category` needs to know.
    #[must_use]
    pub fn facts(&self, category: Category<'_>) -> Facts {
        self.profile.facts(category, self.last_inbound, self.beside.as_ref().into())
    }
}

/// What stands on a scope, and when that lapses where it is an opt-in that does.
fn marked(state: &State, scope: &Scope) -> (Marked, Option<Timestamp>) {
    let word_on = |scope: &Scope| state.scopes.get(scope).and_then(|said| said.word);
    let standing = state.standing_on(scope);
    let Some(word) = standing.word else {
        let mark = if standing.pending.is_some() { Mark::Pending } else { Mark::None };
        return (Marked { mark, own: false }, None);
    };
    let class = scope.class().map(Scope::Class);
    // The latest word but for those about everything.
    let narrower = class.as_ref().and_then(word_on).max(word_on(scope));
    let all = word_on(&Scope::All) == Some(word);
    let both = word.is_opt_out() && narrower.is_some_and(Word::is_opt_out);
    let own = word_on(scope).is_some_and(|own| own == word || both && Some(own) == narrower);
    let pending = standing.pending.is_some_and(|pending| pending.stands_over(Some(word)));
    let (mark, expire) = match word.said {
        Said::OptIn { expire: None, .. } if pending => (Mark::Pending, None),
        Said::OptIn { expire: None, .. } => (Mark::OptedIn, None),
        Said::OptIn { expire, .. } => match over_opt_out(state, scope) {
            Mark::OptedIn if pending => (Mark::Pending, None),
            _ if pending => (Mark::PendingOverLapsing, None),
            mark => (mark, expire),
        },
        Said::OptOut if pending && all && !both => (Mark::PendingOverOptOutAll, None),
        Said::OptOut if pending => (Mark::PendingOverOptOut, None),
        Said::OptOut if all && !both => (Mark::OptedOutAll, None),
        Said::OptOut => (Mark::OptedOut, None),
    };
    (Marked { mark, own }, expire)
}

/// How an opt-in is marked that stands on a scope and lapses: for marketing, the latest opt-out that
/// it replaced stands again then, unless another opt-in that never lapses is later than it.
fn over_opt_out(state: &State, scope: &Scope) -> Mark {
    let Some(class) = scope.class().filter(|class| *class == Class::Marketing) else {
        return Mark::OptedIn;
    };
    // Of equally late ones the narrowest is taken: a message from the user lifts none of those.
    let class = Scope::Class(class);
    let covering = [
        (&Scope::All, Mark::OptedInOverAll),
        (&class, Mark::OptedInOverClass),
        (scope, Mark::OptedInOverOwn),
    ];
    let said = |scope: &Scope| state.scopes.get(scope).copied().unwrap_or_default();
    let outs = covering.iter().filter_map(|(scope, mark)| Some((said(scope).opt_out?, *mark)));
    let Some((out, mark)) = outs.max_by_key(|(time, _)| *time) else { return Mark::OptedIn };
    let lifts =
        |word: Word| matches!(word.said, Said::OptIn { expire: None, .. }) && word.time > out;
    let is_lifted = covering.iter().any(|(scope, _)| said(scope).word.is_some_and(lifts));
    if is_lifted { Mark::OptedIn } else { mark }
}

impl Profile {
    /// What a decision about `category` needs to know of a pair of this profile.
    #[must_use]
    pub fn facts(
        &self,
        category: Category<'_>,
        last_inbound: Option<Timestamp>,
        times: Times<'_>,
    ) -> Facts {
        let (place, mark) = self.mark(category);
        let answerable = self.opted_out_all.unwrap_or(false);
        let standing = match mark {
            Mark::None => Standing::None,
            Mark::OptedIn => Standing::OptedIn { expire: times.expiry(place) },
            Mark::OptedInOverAll | Mark::OptedInOverClass | Mark::OptedInOverOwn => {
                // Without its expiry it could not be told from one that has lapsed.
                let expire = times.expiry(place).unwrap_or(Timestamp::MIN);
                Standing::OptedInOverOptOut { expire, all: mark == Mark::OptedInOverAll }
            }
            Mark::Pending => Standing::Pending,
            Mark::PendingOverOptOut | Mark::PendingOverLapsing => {
                Standing::PendingOverOptOut { answerable: false }
            }
            Mark::PendingOverOptOutAll => Standing::PendingOverOptOut { answerable },
            Mark::OptedOut => Standing::OptedOut,
            Mark::OptedOutAll => Standing::OptedOutAll { answerable },
        };
        Facts {
            standing,
            suppressed: self.suppressed,
            platform_stopped: self.platform_stopped,
            capped: times.capped(),
            last_inbound,
            window_closed: self.window_closed,
        }
    }

    fn mark(&self, category: Category<'_>) -> (usize, Mark) {
        if let Some(topic) = category.topic {
            let own = self.topics.iter().enumerate();
            for (index, (class, name, marked)) in own {
                if *class == category.class && **name == *topic {
                    return (Class::ALL.len().saturating_add(index), marked.mark);
                }
            }
        }
        let place = match category.class {
            Class::Marketing => 0,
            Class::Utility => 1,
            Class::Authentication => 2,
            Class::Service => 3,
        };
        (place, self.classes.get(place).copied().unwrap_or_default().mark)
    }

    /// Whether the user stopped marketing inside WhatsApp.
    #[must_use]
    pub fn platform_stopped(&self) -> bool {
        self.platform_stopped
    }

    /// Whether the user must not be contacted.
    #[must_use]
    pub fn suppressed(&self) -> bool {
        self.suppressed
    }

    /// The scopes in force at `now`: those opted in to, and those opted out of. An opt-in that is
    /// pending or has lapsed is neither. It does not hide the opt-out that it would replace, nor the
    /// one of marketing that stands again.
    #[must_use]
    pub fn in_force(&self, times: Times<'_>, now: Timestamp) -> (Vec<Scope>, Vec<Scope>) {
        let (mut opted_in, mut opted_out) = (Vec::new(), Vec::new());
        if self.opted_out_all.is_some() {
            opted_out.push(Scope::All);
        }
        let classes = Class::ALL.into_iter().map(Scope::Class).zip(self.classes);
        let topics = self.topics.iter();
        let topics = topics.map(|(class, name, on)| (Scope::Topic(*class, name.clone()), *on));
        for (place, (scope, marked)) in classes.chain(topics).enumerate() {
            let valid = times.expiry(place).is_none_or(|expire| now < expire);
            match marked.mark {
                Mark::OptedInOverOwn if !valid => opted_out.push(scope),
                _ if !marked.own => {}
                mark if mark.is_opt_in() && valid => opted_in.push(scope),
                mark if mark.is_opt_out() => opted_out.push(scope),
                _ => {}
            }
        }
        (opted_in, opted_out)
    }

    /// About how many bytes of heap the profile takes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let names: usize = self.topics.iter().map(|(_, name, _)| name.len()).sum();
        std::mem::size_of_val(&*self.topics).saturating_add(names)
    }
}

impl Beside {
    /// All of it as one moment and what lies there; none where there are several moments, or too
    /// many places.
    #[must_use]
    pub fn at_once(&self) -> Option<(u32, Timestamp)> {
        let (mut what, mut at) = (0_u32, self.capped);
        if self.capped.is_some() {
            what |= 1 << CAP_BIT;
        }
        for (place, time) in &self.expiries {
            let bit = u32::try_from(*place).ok().filter(|place| *place < CAP_BIT)?;
            if at.is_some_and(|at| at != *time) {
                return None;
            }
            at = Some(*time);
            what |= 1 << bit;
        }
        at.map(|time| (what, time))
    }

    /// About how many bytes of heap it takes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        std::mem::size_of_val(&*self.expiries)
    }
}
