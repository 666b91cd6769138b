//! A naive reference model of the consent rules, written from decisions.md and the protos alone.
//!
//! Every accepted event of a pair is kept in a list, and every question is answered by scanning
//! that list. Quotes marked `>` are sentences of decisions.md, `decided:` marks where we depart
//! from the page or sharpen it, and `choice:` a reading of the model's own. Evidence, links and
//! erasure are out of scope. All times are Unix milliseconds.

// The test that uses the model need not use all of it, and WhatsApp's codes are names.
#![allow(dead_code, unreachable_pub, clippy::unreadable_literal)]
// An arm of its own for what the page tells apart, and backticks as the page has them.
#![allow(clippy::match_same_arms, clippy::enum_variant_names, clippy::doc_markdown)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

pub use self::histories::{CATEGORIES, history, notation};
use self::keywords::{plain, stopped_by};
pub use self::rules::Rules;
pub use crate::rng::Rng;

#[path = "model/histories.rs"]
mod histories;
#[path = "model/keywords.rs"]
mod keywords;
#[path = "model/rules.rs"]
mod rules;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
/// > Times ahead of the ledger's clock: only what allows is clamped to now; a denial keeps its time
/// > (up to 5 minutes ahead).
const AHEAD: i64 = 5 * MINUTE;
/// > `131049` caps marketing templates for 24 hours from the failure
const CAP: i64 = 24 * HOUR;

/// > `marketing`, `utility`, `authentication` or `service`: WhatsApp's own message categories
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Marketing,
    Utility,
    Authentication,
    Service,
}

/// Every class, with its name.
pub const CLASSES: [(Class, &str); 4] = [
    (Class::Marketing, "marketing"),
    (Class::Utility, "utility"),
    (Class::Authentication, "authentication"),
    (Class::Service, "service"),
];

/// How an opt-in was obtained; only the in-app signup differs in its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Ordinary,
    /// With a number of the business, or an unknown one.
    WhatsappSignup(Option<&'static str>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[rustfmt::skip] // a variant is a line
pub enum What {
    /// Either an opt-in or, pending, the first half of a double one.
    OptIn { category: String, method: Method, pending: bool, expire: Option<i64> },
    /// An opt-out of `*` or of a category.
    OptOut { scope: String },
    /// A message from the user.
    Inbound { text: String },
    /// The user stopped or resumed marketing inside WhatsApp, at a number of the business or an unknown one.
    Platform { stopped: bool, number: Option<&'static str> },
    /// A delivery failed, with one of WhatsApp's codes: what was sent from a number, or an unknown one.
    Failure { code: i32, number: Option<&'static str> },
    /// The business suppressed the user, or no longer does.
    Suppress { suppressed: bool },
}

/// One event as a client sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub user: String,
    pub business: String,
    /// None leaves it to the ledger's clock.
    pub time: Option<i64>,
    /// Empty for none.
    pub request_id: String,
    pub what: What,
}

/// Whether the table is proven, merely late, or known to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableState {
    Live,
    Late,
    Invalid,
}

/// The form asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Any,
    FreeForm,
    Template,
}

/// Why a decision came out as it did, with the numbers of the proto's enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    OptedIn = 1,
    WindowOpen = 2,
    ReplyAfterOptOut = 3,
    AllowedWhileStale = 4,
    NoConsent = 10,
    WindowClosed = 11,
    OptedOut = 12,
    OptedOutAll = 13,
    PlatformStopped = 14,
    ConsentExpired = 15,
    ConsentPending = 16,
    FrequencyCapped = 17,
    Suppressed = 18,
    Stale = 19,
    PlatformRefused = 22,
    CountryBlocked = 23,
}

impl Reason {
    /// The number of the proto's enum.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// > Values 1 to 9 allow; every other value denies.  (consent.proto)
    pub fn allows(self) -> bool {
        (1..=9).contains(&self.number())
    }
}

/// What came of recording an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// > False where the event changed nothing: a replay, or older than what the ledger knows.
    /// > (record_service.proto)
    pub applied: bool,
    /// What a keyword opted out of; several scopes are sorted and joined by ", ".
    pub opted_out_scope: String,
    /// What a `yes` confirmed, likewise.
    pub opted_in_category: String,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What was wrong, by the proto's field paths, in the order of the request's fields.
    pub fields: Vec<&'static str>,
}

/// One answer of `can_send`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of the form asked for, as is the reason.
    pub allowed: bool,
    pub reason: Reason,
    pub free_form_allowed: bool,
    pub template_allowed: bool,
    /// > `window_expire_time` is `last_inbound + window − margin`.
    pub window_expire_time: Option<i64>,
    /// When a cap ends, where it is the reason.
    pub retry_time: Option<i64>,
}

/// What is known of a pair, as `GetConsent` gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consent {
    pub last_inbound: Option<i64>,
    /// Scopes opted in to and in force, sorted.
    pub opted_in: Vec<String>,
    /// Scopes opted out of and in force, sorted.
    pub opted_out: Vec<String>,
    /// The numbers at which marketing is stopped, sorted; an empty one is an unknown one.
    pub stopped_at: Vec<&'static str>,
    pub suppressed: bool,
}

/// The key that the notations of one user share, or None where the id is malformed.
pub fn user_key(id: &str) -> Option<String> {
    // > Ids are 1 to 160 bytes of UTF-8, without control characters.
    if !is_id(id) {
        return None;
    }
    // > An id made only of digits and `+ ( ) . -` and spaces is a phone number
    // decided: any Unicode white space counts as a space (a tab is a control character first).
    if !id.chars().all(|c| c.is_ascii_digit() || "+().-".contains(c) || c.is_whitespace()) {
        // > Anything else is opaque and case-sensitive
        return Some(id.to_owned());
    }
    // > only its digits count
    let digits: String = id.chars().filter(char::is_ascii_digit).collect();
    // > It has 1 to 15 digits (E.164); none, more, or a spreadsheet's trailing `.0` is an error
    // choice: spaces after the `.0` do not hide it.
    if digits.is_empty() || digits.len() > 15 || id.trim_end().ends_with(".0") {
        return None;
    }
    let rest = |prefix| digits.strip_prefix(prefix).filter(|_| digits.len() == 13);
    // > Mexico `521` + 10 digits / `52` + 10, … Argentina `549` + 10 / `54` + 10
    for (mobile, country) in [("521", "52"), ("549", "54")] {
        if let Some(ten) = rest(mobile) {
            return Some(format!("{country}{ten}"));
        }
    }
    // > Brazil `55 DD 9XXXXXXXX` / `55 DD XXXXXXXX` (mobiles only: the eight digits start with
    // > 6–9)
    if let Some((area, number)) = rest("55").map(|eleven| eleven.split_at(2))
        && let Some(eight) = number.strip_prefix('9')
        && eight.starts_with(['6', '7', '8', '9'])
    {
        return Some(format!("55{area}{eight}"));
    }
    Some(digits)
}

fn is_id(id: &str) -> bool {
    (1..=160).contains(&id.len()) && !id.chars().any(char::is_control)
}

/// The class of a category, or None where the category is malformed.
pub fn class_of(category: &str) -> Option<Class> {
    // > `<class>` or `<class>.<topic>`
    let (class, topic) = category.split_once('.').map_or((category, None), |(c, t)| (c, Some(t)));
    // > a business's own name for a kind of message: `order_updates`; `[a-z0-9_]{1,48}`
    let topic_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if topic.is_some_and(|t| !(1..=48).contains(&t.len()) || !t.chars().all(topic_char)) {
        return None;
    }
    CLASSES.iter().find(|(_, name)| *name == class).map(|(class, _)| *class)
}

/// The scopes that cover a scope, the broadest first, itself the last.
fn covering(scope: &str) -> Vec<&str> {
    match scope.split_once('.') {
        _ if scope == "*" => vec!["*"],
        None => vec!["*", scope],
        Some((class, _)) => vec!["*", class, scope],
    }
}

/// The fields that are wrong, of checks and fields.
fn wrong<const N: usize>(checks: [(bool, &'static str); N]) -> Vec<&'static str> {
    checks.into_iter().filter(|(wrong, _)| *wrong).map(|(_, field)| field).collect()
}

// ---- The list of what was recorded ---------------------------------------------------------

/// What events speak of. Of each the latest word stands, and of equally late ones the greatest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// > Per pair and scope the event with the latest `event_time` stands
    ///
    /// decided: opt-outs and non-pending opt-ins on one side, pending opt-ins on the other.
    Confirmed(String),
    Pending(String),
    /// > `last_inbound` is the latest inbound `event_time`.
    Inbound,
    /// > Platform preference …: latest wins, ties stop.
    ///
    /// decided: at each of the business's numbers, and apart from them where the number is unknown.
    Platform(Option<&'static str>),
    /// > Suppression: latest wins, ties suppress.
    Suppression,
    Closed,
    Capped,
    /// > Other codes (`131026`, `131048`, `131056` …) are recorded and change nothing
    OtherFailure,
    /// > 130403, 130472 and 130497 deny if an operator says so
    Failed(i32),
}

/// What an event says, in the order of who wins at equal times.
///
/// > at equal times the opt-out wins, and of two opt-ins … the one that expires sooner
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Code(i32),
    /// Yes, until then.
    Allow(Reverse<i64>),
    /// The same, by a `yes` to a pending opt-in of that time.
    Confirmed(Reverse<i64>),
    Deny,
}

impl Word {
    /// Until when it allows.
    fn until(self) -> Option<i64> {
        match self {
            Word::Allow(Reverse(until)) | Word::Confirmed(Reverse(until)) => Some(until),
            Word::Code(_) | Word::Deny => None,
        }
    }
}

/// The confirmed scopes among these words, joined; they come sorted.
fn names(words: &[(Subject, i64, Word)]) -> String {
    let name = |(subject, ..): &(Subject, i64, Word)| match subject {
        Subject::Confirmed(scope) => Some(scope.clone()),
        _ => None,
    };
    words.iter().filter_map(name).collect::<Vec<_>>().join(", ")
}

/// A yes that never ends.
const ALLOW: Word = Word::Allow(Reverse(i64::MAX));

#[derive(Clone, Debug, Default)]
struct Pair {
    words: Vec<(Subject, i64, Word)>,
    /// What is remembered with its answer: events with a request id.
    answered: Vec<(Event, Outcome)>,
    /// When events that allow were taken as now, as long as something that allows is of that time.
    taken_as_now: BTreeSet<i64>,
    /// From when until when the given times of such events were, and as of when they count.
    claimed: Vec<(i64, i64, i64)>,
}

/// Whether a word on this subject denies, so that its time is never moved back.
fn is_denial(subject: &Subject, word: Word) -> bool {
    let of_whatsapp = [Subject::Closed, Subject::Capped, Subject::OtherFailure];
    let failed = matches!(subject, Subject::Failed(_));
    word == Word::Deny || failed || of_whatsapp.contains(subject)
}

/// decided: a pending opt-in stands if it is later than the latest confirmed word, or as late and
/// that is an opt-in, or if there is none.
fn stands(pending: i64, confirmed: Option<(i64, Word)>) -> bool {
    confirmed.is_none_or(|(time, word)| {
        pending > time || (pending == time && matches!(word, Word::Allow(_)))
    })
}

impl Pair {
    /// > A pair remembers its last 8 request ids and what came of each; a repeat gets the same
    /// > answer and changes nothing.
    ///
    /// choice: the time of a repeat may differ; another `what` is refused.
    fn repeated(&self, event: &Event) -> Option<Result<Outcome, Refused>> {
        let same_id = |(earlier, _): &&(Event, Outcome)| earlier.request_id == event.request_id;
        let mut remembered = self.answered.iter().rev().take(8).filter(same_id);
        let (earlier, outcome) = remembered.next().filter(|_| !event.request_id.is_empty())?;
        let same = earlier.what == event.what;
        Some(if same { Ok(outcome.clone()) } else { Err(Refused { fields: vec!["request_id"] }) })
    }

    /// What an event says, without what a `yes` confirms.
    fn says(&self, what: &What) -> Vec<(Subject, Word)> {
        let until = |expire: Option<i64>| expire.map_or(ALLOW, |time| Word::Allow(Reverse(time)));
        let mut words = vec![match what.clone() {
            What::OptIn { category, pending: true, expire, .. } => {
                (Subject::Pending(category), until(expire))
            }
            What::OptIn { category, expire, .. } => (Subject::Confirmed(category), until(expire)),
            What::OptOut { scope } => (Subject::Confirmed(scope), Word::Deny),
            What::Inbound { .. } => (Subject::Inbound, ALLOW),
            What::Platform { stopped: true, number } => (Subject::Platform(number), Word::Deny),
            What::Platform { stopped: false, number } => (Subject::Platform(number), ALLOW),
            What::Suppress { suppressed: true } => (Subject::Suppression, Word::Deny),
            What::Suppress { suppressed: false } => (Subject::Suppression, ALLOW),
            // > `131047` closes the window (until a later inbound message); `131050` is a platform
            // > stop; `131049` caps marketing templates
            What::Failure { code: 131047, .. } => (Subject::Closed, ALLOW),
            What::Failure { code: 131050, number } => (Subject::Platform(number), Word::Deny),
            What::Failure { code: 131049, .. } => (Subject::Capped, ALLOW),
            What::Failure { code, .. } => (Subject::OtherFailure, Word::Code(code)),
        }];
        match what {
            What::Failure { code: code @ (130403 | 130472 | 130497), .. } => {
                words.push((Subject::Failed(*code), ALLOW));
            }
            // > An opt-in by `WHATSAPP_SIGNUP` also clears the platform stop
            // choice: whatever its category, as a resume at its own time.
            // decided: not one that is pending.
            What::OptIn { method: Method::WhatsappSignup(number), pending: false, .. } => {
                words.push((Subject::Platform(*number), ALLOW));
            }
            What::Inbound { text } => {
                let stopped = stopped_by(text, &self.scopes()).into_iter();
                words.extend(stopped.map(|scope| (Subject::Confirmed(scope), Word::Deny)));
            }
            _ => {}
        }
        words
    }

    fn latest(&self, wanted: &Subject) -> Option<(i64, Word)> {
        let of_it = self.words.iter().filter(|(subject, ..)| subject == wanted);
        of_it.map(|(_, time, word)| (*time, *word)).max()
    }

    fn time(&self, wanted: &Subject) -> Option<i64> {
        self.latest(wanted).map(|(time, _)| time)
    }

    fn denied(&self, wanted: &Subject) -> bool {
        self.latest(wanted).is_some_and(|(_, word)| word == Word::Deny)
    }

    /// The numbers at which the user stopped marketing inside WhatsApp; an empty one is unknown.
    fn stops(&self) -> Vec<&'static str> {
        let number = |subject: &Subject| match subject {
            Subject::Platform(number) if self.denied(subject) => Some(number.unwrap_or_default()),
            _ => None,
        };
        let numbers: BTreeSet<_> = self.words.iter().filter_map(|(s, ..)| number(s)).collect();
        numbers.into_iter().collect()
    }

    /// Of the words on a scope and on those that cover it, the one that stands.
    ///
    /// > The standing of category `K.T` is the latest of the events on `*`, `K` and `K.T`; at equal
    /// > times an opt-out wins.
    ///
    /// choice: of two opt-ins at equal times the one that expires sooner, between scopes too.
    fn over(&self, scope: &str, subject: fn(String) -> Subject) -> Option<(i64, Word)> {
        covering(scope).iter().filter_map(|s| self.latest(&subject((*s).to_owned()))).max()
    }

    /// When the subject was last denied, whatever was said since.
    fn last_denial(&self, wanted: &Subject) -> Option<i64> {
        let of_it = self.words.iter().filter(|(subject, ..)| subject == wanted);
        let denials = of_it.filter(|(subject, _, word)| is_denial(subject, *word));
        denials.map(|(_, time, _)| *time).max()
    }

    /// An event that leaves this as it was changed nothing: what was last said, and last denied.
    #[expect(clippy::type_complexity, reason = "it is compared, and never looked into")]
    fn winners(&self) -> BTreeMap<Subject, (Option<(i64, Word)>, Option<i64>)> {
        let winner = |subject: &Subject| {
            (subject.clone(), (self.latest(subject), self.last_denial(subject)))
        };
        self.words.iter().map(|(subject, ..)| winner(subject)).collect()
    }

    /// When a word counts that is given this time, or none, at this time of the ledger's clock.
    ///
    /// > only what allows is clamped to now; a denial keeps its time … a fast clock's opt-in never
    /// > outlives a STOP recorded after it.
    ///
    /// decided: a denial that is earlier than what was clamped before it was recorded, by five
    /// minutes at most, counts as of the moment that was clamped to; one that is on record already,
    /// as the latest of its subject, is a repeat.
    fn counts(&self, subject: &Subject, word: Word, given: Option<i64>, now: i64) -> i64 {
        // > A later message lifts 130403, so that it counts as a denial does.
        let blocked = Subject::Failed(130403);
        let subject = if word == Word::Code(130403) { &blocked } else { subject };
        if !is_denial(subject, word) {
            return given.map_or(now, |time| self.first_taken(time).min(now));
        }
        let own = match given {
            Some(time) => time,
            // > A denial … without one is stamped no earlier than the pair's latest event
            None if word == Word::Deny => {
                self.words.iter().map(|(_, time, _)| *time).fold(now, i64::max)
            }
            None => now,
        };
        if self.last_denial(subject) == Some(own) || *subject == Subject::Capped {
            return own;
        }
        let after = self.taken_as_now.range(own..=own.saturating_add(AHEAD));
        let lifted_by_none = matches!(subject, Subject::Failed(130472 | 130497));
        if *subject == Subject::OtherFailure || lifted_by_none {
            own
        } else {
            after.max().copied().unwrap_or(own)
        }
    }

    /// As of when an event that allows counts by its given time, whatever the ledger's clock.
    ///
    /// > An event of a time that was clamped before counts as of the same moment.
    fn first_taken(&self, given: i64) -> i64 {
        let told = self.claimed.iter().filter(|(from, until, _)| *from <= given && given <= *until);
        told.map(|(.., moment)| *moment).min().unwrap_or(given)
    }

    /// > The last eight of these times are remembered exactly; the ones before as a range.
    fn claim(&mut self, given: i64, moment: i64) {
        if self.first_taken(given) <= moment {
            return;
        }
        self.claimed.push((given, given, moment));
        self.claimed.sort_unstable();
        if self.claimed.len() == 9 {
            let (from, one, first) = self.claimed.remove(0);
            let (_, other, second) = self.claimed[0];
            self.claimed[0] = (from, one.max(other), first.min(second));
        }
    }

    /// What was taken as now matters as long as something that allows is of that time.
    fn forget(&mut self) {
        let stands = |time: i64| {
            self.words.iter().any(|(subject, ..)| {
                let latest = self.latest(subject);
                latest.is_some_and(|(at, word)| at == time && !is_denial(subject, word))
            })
        };
        self.taken_as_now = self.taken_as_now.iter().copied().filter(|t| stands(*t)).collect();
    }

    /// The scope of the latest opt-out that stands again on a scope once the opt-in there lapses.
    ///
    /// > Over an older opt-out, an expired opt-in lets the opt-out stand again for marketing.
    ///
    /// decided: not where an opt-in that never lapses, on a scope that covers it, is later.
    /// choice: of equally late ones the narrowest.
    fn beneath<'a>(&self, scope: &'a str) -> Option<&'a str> {
        let confirmed = |scope: &str| Subject::Confirmed(scope.to_owned());
        let covering = covering(scope);
        let outs = covering.iter().filter_map(|on| {
            let time = self.last_denial(&confirmed(on))?;
            Some((time, *on))
        });
        let (out, on) = outs.max_by_key(|(time, _)| *time)?;
        let lifts = |(time, word): (i64, Word)| word.until() == Some(i64::MAX) && time > out;
        let lifted = covering.iter().any(|on| self.latest(&confirmed(on)).is_some_and(lifts));
        let standing = self.over(scope, Subject::Confirmed)?.1.until()?;
        let marketing = class_of(scope) == Some(Class::Marketing);
        (marketing && !lifted && standing != i64::MAX).then_some(on)
    }

    /// The latest word on a scope and on its class, but for those on everything.
    fn narrower(&self, scope: &str) -> Option<(i64, Word)> {
        let narrower = covering(scope).split_off(1);
        narrower.iter().filter_map(|s| self.latest(&Subject::Confirmed((*s).to_owned()))).max()
    }

    fn scopes(&self) -> BTreeSet<String> {
        let scope = |subject: &Subject| match subject {
            Subject::Confirmed(scope) | Subject::Pending(scope) => Some(scope.clone()),
            _ => None,
        };
        self.words.iter().filter_map(|(subject, ..)| scope(subject)).collect()
    }

    /// The pending scopes that a `yes` at this time confirms.
    ///
    /// > `yes` counts only while a double opt-in is pending
    ///
    /// decided: of each scope its own pending opt-in, if it stands and is strictly older.
    /// choice: all of them as they were before the `yes`. One that had lapsed by then is confirmed
    /// no more than an opt-in counts that had lapsed when it was given.
    ///
    /// > A `yes` confirms nothing across an opt-out in between.
    ///
    /// decided: what it confirms counts as of the time of the pending opt-in, so that an opt-out
    /// that arrives late stands as well.
    fn confirmed_by_yes(&self, yes: i64) -> Vec<(Subject, i64, Word)> {
        let confirmed = |scope: String| {
            let (time, word) = self.latest(&Subject::Pending(scope.clone()))?;
            let Word::Allow(Reverse(expire)) = word else { return None };
            let counts =
                time < yes && yes < expire && stands(time, self.over(&scope, Subject::Confirmed));
            counts.then_some((Subject::Confirmed(scope), time, Word::Confirmed(Reverse(expire))))
        };
        self.scopes().into_iter().filter_map(confirmed).collect()
    }
}

/// > What is missing or wrong is named field by field
fn malformed(event: &Event) -> Vec<&'static str> {
    let (lifts, category, scope) = match &event.what {
        // > Untimed `resume` and lifted suppressions need a request id.
        What::Platform { stopped: false, .. } | What::Suppress { suppressed: false } => {
            (true, false, false)
        }
        // > An opt-in to `*` is rejected: consent is per category.
        What::OptIn { category, .. } => (true, class_of(category).is_none(), false),
        // > what an opt-in or opt-out covers: a category, or (opt-outs alone) `*`, everything
        What::OptOut { scope } => (false, false, scope != "*" && class_of(scope).is_none()),
        _ => (false, false, false),
    };
    wrong([
        (user_key(&event.user).is_none(), "event.user_id"),
        (!is_id(&event.business), "event.business_id"),
        (category, "event.opt_in.category"),
        (scope, "event.opt_out.scope"),
        // > An opt-in without one needs a `request_id`
        (lifts && event.time.is_none() && event.request_id.is_empty(), "request_id"),
    ])
}

/// The whole model: every pair and all that was recorded of it.
#[derive(Clone, Debug, Default)]
pub struct Model {
    rules: Rules,
    pairs: BTreeMap<(String, String), Pair>,
}

impl Model {
    /// An empty model.
    pub fn new(rules: Rules) -> Self {
        Model { rules, pairs: BTreeMap::new() }
    }

    /// Records one event at this time of the ledger's clock.
    pub fn record(&mut self, event: &Event, ledger_now: i64) -> Result<Outcome, Refused> {
        // > An `event_time` up to 5 minutes ahead …; further ahead is rejected.
        let too_far = event.time.is_some_and(|t| t > ledger_now.saturating_add(AHEAD));
        let mut fields = malformed(event);
        if !fields.is_empty() {
            fields.extend(too_far.then_some("event.event_time"));
            return Err(Refused { fields });
        }
        let key = (user_key(&event.user).unwrap_or_default(), event.business.clone());
        let pair = self.pairs.entry(key).or_default();

        // choice: a repeat is told its answer before the rules of time and of the number of scopes
        // are looked at.
        if let Some(repeated) = pair.repeated(event) {
            return repeated;
        }
        if too_far {
            return Err(Refused { fields: vec!["event.event_time"] });
        }
        // > A pair has at most 64 scopes; one more is refused, denials excepted.
        let scopes = pair.scopes();
        if let What::OptIn { category, .. } = &event.what
            && scopes.len() >= 64
            && !scopes.contains(category)
        {
            return Err(Refused { fields: vec!["event.opt_in.category"] });
        }

        let said = pair.says(&event.what);
        // > only what allows is clamped to now
        let allows = said.iter().any(|(subject, word)| !is_denial(subject, *word));
        let given = event.time.unwrap_or(ledger_now);
        let counts = pair.first_taken(given).min(ledger_now);
        if allows && counts < given {
            pair.taken_as_now.insert(counts);
            pair.claim(given, counts);
        }
        // choice: a text that opts out is an inbound event, which is clamped, and an opt-out, which
        // is not.
        let timed = said.into_iter().map(|(subject, word)| {
            let time = pair.counts(&subject, word, event.time, ledger_now);
            (subject, time, word)
        });
        let mut words: Vec<_> = timed.collect();

        let mut outcome = Outcome::default();
        if let What::Inbound { text } = &event.what {
            outcome.opted_out_scope = names(&words);
            // decided: an untimed message without a request id confirms nothing.
            let identified = event.time.is_some() || !event.request_id.is_empty();
            if identified && plain(text) == "yes" {
                words.extend(pair.confirmed_by_yes(counts));
                outcome.opted_in_category = names(&words);
            }
        }
        let before = pair.winners();
        pair.words.extend(words);
        pair.forget();
        outcome.applied = pair.winners() != before;

        if !event.request_id.is_empty() {
            pair.answered.push((event.clone(), outcome.clone()));
        }
        Ok(outcome)
    }

    /// Decides one message at `now`, by a table in this state.
    pub fn can_send(
        &self,
        user: &str,
        business: &str,
        category: &str,
        form: Form,
        now: i64,
        state: TableState,
    ) -> Result<Answer, Refused> {
        let (pair, class) = match (self.pair(user, business), class_of(category)) {
            (Ok(pair), Some(class)) => (pair, class),
            (pair, class) => {
                let mut fields = pair.err().map_or(vec![], |refused| refused.fields);
                fields.extend(class.is_none().then_some("category"));
                return Err(Refused { fields });
            }
        };
        let decide = |template: bool| {
            let reason = self.rows_2_to_8(&pair, (user, category, class), template, now);
            match state {
                TableState::Live => reason,
                // > 9: proof merely late, rows 2–8 allow and the class is in `stale_allow`
                TableState::Late if reason.allows() && self.rules.stale_allow.contains(&class) => {
                    Reason::AllowedWhileStale
                }
                // > 1: table not proven within the bound → `STALE`, whatever else holds
                // > invalid always denies
                TableState::Late | TableState::Invalid => Reason::Stale,
            }
        };
        // > Both forms are always decided, and both `*_allowed` fields filled.
        let (template, free_form) = (decide(true), decide(false));
        let reason = match form {
            Form::Template => template,
            Form::FreeForm => free_form,
            // > Asked for no form: `allowed` is either one's, and the reason is the template's if
            // > it allows or neither does, else the free-form one's.
            Form::Any if template.allows() || !free_form.allows() => template,
            Form::Any => free_form,
        };
        let capped = pair.time(&Subject::Capped).filter(|_| reason == Reason::FrequencyCapped);
        Ok(Answer {
            allowed: reason.allows(),
            reason,
            free_form_allowed: free_form.allows(),
            template_allowed: template.allows(),
            window_expire_time: pair.time(&Subject::Inbound).map(|time| self.window_end(time)),
            retry_time: capped.map(|time| time.saturating_add(CAP)),
        })
    }

    /// > First match wins.
    fn rows_2_to_8(
        &self,
        pair: &Pair,
        of: (&str, &str, Class),
        template: bool,
        now: i64,
    ) -> Reason {
        let (user, category, class) = of;
        let (open, marketing) = (self.open(pair, now), class == Class::Marketing);
        // > `standing(C)` is one of: opted in (valid), pending, expired, opted out (scope `*`, or
        // > a narrower one), none.
        let confirmed = pair.over(category, Subject::Confirmed);
        let out = confirmed.filter(|(_, word)| *word == Word::Deny);
        let out_by = |s: &str| out.is_some() && pair.latest(&Subject::Confirmed(s.into())) == out;
        // > A narrower opt-out that still stands denies its topic after `STOP` and a later message too.
        let narrower = pair.narrower(category).is_some_and(|(_, word)| word == Word::Deny);
        let out_of_all = out_by("*") && !narrower;
        let wrote_later = pair.time(&Subject::Inbound) > out.map(|(time, _)| time);
        // > 130403 and 130497 deny everything, 130472 marketing templates unless the window is open; a
        // > message at a later time ends 130403.
        let failed = |code: i32| {
            let at = pair.time(&Subject::Failed(code));
            let ended = code == 130403 && pair.time(&Subject::Inbound) > at;
            self.rules.deny_after.contains(&code) && at.is_some() && !ended
        };
        let refused = failed(130403) || failed(130497);
        let reply = !marketing && open && wrote_later && out_of_all && !refused;
        // choice: at the very millisecond of its expiry a consent has expired; a pending opt-in
        // past its expiry is still pending.
        let within = |word: Word| word.until().is_some_and(|until| now < until);
        let valid = confirmed.is_some_and(|(_, word)| within(word));
        let expired = confirmed.is_some() && out.is_none() && !valid;
        let pending = pair.over(category, Subject::Pending);
        let pending = pending.is_some_and(|(time, _)| stands(time, confirmed));
        let capped = pair.time(&Subject::Capped).is_some_and(|t| now < t.saturating_add(CAP));
        // > Over an older opt-out, an expired opt-in lets the opt-out stand again for marketing.
        let again = pair.beneath(category).filter(|_| out.is_none());
        let stands_again = again.filter(|_| expired && !pending);
        let implied = open && self.rules.window_implies.contains(&class);
        let rows = [
            // > 2: suppressed → `SUPPRESSED`
            (pair.denied(&Subject::Suppression), Reason::Suppressed),
            // > 3: opted out by `*` → `OPTED_OUT_ALL`; free-form: the same, unless class ≠
            // > marketing and open and `last_inbound` is strictly later than that opt-out →
            // > **allow** `REPLY_AFTER_OPT_OUT`
            // decided: the exception holds also where a pending opt-in stands over the opt-out.
            (!template && reply, Reason::ReplyAfterOptOut),
            (out_of_all && !pending, Reason::OptedOutAll),
            // > 4: opted out otherwise → `OPTED_OUT`
            (out.is_some() && !pending, Reason::OptedOut),
            (stands_again == Some("*"), Reason::OptedOutAll),
            (stands_again.is_some(), Reason::OptedOut),
            // > 5: marketing, platform stop → `PLATFORM_STOPPED`
            (marketing && !pair.stops().is_empty(), Reason::PlatformStopped),
            // > 5: refused by 130403 or 130497, which the operator has denied → `PLATFORM_REFUSED`
            (refused, Reason::PlatformRefused),
            // > 6: template: marketing, 130472 denied, not open → `PLATFORM_REFUSED`
            (template && marketing && failed(130472) && !open, Reason::PlatformRefused),
            // > 6: template: marketing, capped → `FREQUENCY_CAPPED` + `retry_time`
            (template && marketing && capped, Reason::FrequencyCapped),
            // > 6: template: marketing, to a blocked country → `COUNTRY_BLOCKED`
            (template && marketing && self.rules.block(user), Reason::CountryBlocked),
            // > 6: free-form: not open → `WINDOW_CLOSED`
            (!template && !open, Reason::WindowClosed),
            // > 7: opted in, valid → **allow** `OPTED_IN`
            (valid && !pending, Reason::OptedIn),
            // > 8: open and class in `window_implies` → **allow** `WINDOW_OPEN`; else pending →
            // > `CONSENT_PENDING`, expired → `CONSENT_EXPIRED`, none → `NO_CONSENT`
            // decided: a pending opt-in lifts no opt-out, so the window does not stand in there.
            // choice: nor over an opt-in that lapses and lets one stand again, even before it does.
            (implied && out.is_none() && !(pending && again.is_some()), Reason::WindowOpen),
            (pending, Reason::ConsentPending),
            (expired, Reason::ConsentExpired),
        ];
        rows.iter().find(|(holds, _)| *holds).map_or(Reason::NoConsent, |(_, reason)| *reason)
    }

    /// > `open` means `now < last_inbound + window − margin` and no `131047` at or after
    /// > `last_inbound`; … a `last_inbound` more than 5 minutes ahead opens nothing
    fn open(&self, pair: &Pair, now: i64) -> bool {
        pair.time(&Subject::Inbound).is_some_and(|inbound| {
            now < self.window_end(inbound)
                && pair.time(&Subject::Closed).is_none_or(|failure| failure < inbound)
                && inbound <= now.saturating_add(AHEAD)
        })
    }

    fn window_end(&self, inbound: i64) -> i64 {
        inbound.saturating_add(self.rules.window).saturating_sub(self.rules.margin)
    }

    /// What is in force for a pair at `now`, as `GetConsent` gives it.
    pub fn consent(&self, user: &str, business: &str, now: i64) -> Result<Consent, Refused> {
        let pair = self.pair(user, business)?;
        let mut consent = Consent {
            last_inbound: pair.time(&Subject::Inbound),
            stopped_at: pair.stops(),
            suppressed: pair.denied(&Subject::Suppression),
            ..Consent::default()
        };
        for scope in pair.scopes() {
            let own = pair.latest(&Subject::Confirmed(scope.clone()));
            let standing = pair.over(&scope, Subject::Confirmed);
            let Some((_, word)) = own else { continue };
            // A broader word beats it that is later, or as late and denies more: where that is an
            // opt-in that expires sooner, the broader scope is what is in force.
            let beaten = standing > own;
            // decided: a pending opt-in hides no opt-out, but an opt-in that is no later.
            let pending = pair.over(&scope, Subject::Pending).is_some_and(|(t, _)| stands(t, own));
            // A narrower opt-out that still stands is in force beside that of everything.
            let both = standing.is_some_and(|(_, word)| word == Word::Deny)
                && pair.narrower(&scope) == own;
            // One that stands again, since the opt-in over it has lapsed, is in force.
            let waits = pair.over(&scope, Subject::Pending);
            let waits = waits.is_some_and(|(time, _)| stands(time, standing));
            let lapsed = standing.is_some_and(|(_, word)| word.until().is_some_and(|t| now >= t));
            if lapsed && !waits && pair.beneath(&scope) == Some(scope.as_str()) {
                consent.opted_out.push(scope);
                continue;
            }
            match word {
                // > Scopes that the user opted out of and that are in force.
                Word::Deny if !beaten || both => consent.opted_out.push(scope),
                // > Scopes that the user opted in to and that are in force.
                word if !beaten && !pending && word.until().is_some_and(|until| now < until) => {
                    consent.opted_in.push(scope);
                }
                _ => {}
            }
        }
        Ok(consent)
    }

    fn pair(&self, user: &str, business: &str) -> Result<Pair, Refused> {
        let key = user_key(user);
        let fields = wrong([(key.is_none(), "user_id"), (!is_id(business), "business_id")]);
        if !fields.is_empty() {
            return Err(Refused { fields });
        }
        let key = (key.unwrap_or_default(), business.to_owned());
        Ok(self.pairs.get(&key).cloned().unwrap_or_default())
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)] // A test may panic.
mod tests {
    use super::Reason::*;
    use super::*;

    const NOW: i64 = 1_800_000_000_000;
    const T: i64 = NOW - HOUR;
    const USER: &str = "15550123456";

    fn event(time: i64, what: What) -> Event {
        let (user, business) = (USER.to_owned(), "b".to_owned());
        Event { user, business, time: Some(time), request_id: String::new(), what }
    }

    /// What these words stand for; a text where they are none of ours.
    fn what(words: &str) -> What {
        let opt_in = |category: &str, method, pending, expire| {
            let category = category.to_owned();
            What::OptIn { category, method, pending, expire }
        };
        let number = |digits: &str| digits.parse::<i64>().expect("a number");
        let at = |number: &str| ["1", "2"].into_iter().find(|known| *known == number);
        match *words.split(' ').collect::<Vec<_>>() {
            ["in", category] => opt_in(category, Method::Ordinary, false, None),
            ["in", category, "until", n] => {
                opt_in(category, Method::Ordinary, false, Some(T + number(n)))
            }
            ["pending", category] => opt_in(category, Method::Ordinary, true, None),
            ["signup"] => opt_in("marketing", Method::WhatsappSignup(None), false, None),
            ["signup", "at", number] => {
                opt_in("marketing", Method::WhatsappSignup(at(number)), false, None)
            }
            ["pending-signup"] => opt_in("marketing", Method::WhatsappSignup(None), true, None),
            ["resume"] => What::Platform { stopped: false, number: None },
            ["stopped", "at", number] => What::Platform { stopped: true, number: at(number) },
            ["resume", "at", number] => What::Platform { stopped: false, number: at(number) },
            ["out", scope] => What::OptOut { scope: scope.to_owned() },
            ["fail", code] => What::Failure { code: code.parse().expect("a code"), number: None },
            ["fail", code, "at", number] => {
                What::Failure { code: code.parse().expect("a code"), number: at(number) }
            }
            ["suppress"] => What::Suppress { suppressed: true },
            _ => What::Inbound { text: words.to_owned() },
        }
    }

    /// A model of what happened so many milliseconds after T: "0 out *, 1 hi".
    fn model(happened: &str) -> Model {
        let mut model = Model::new(Rules::default());
        for (after, words) in happened.split(", ").filter_map(|one| one.split_once(' ')) {
            let time = T + after.parse::<i64>().expect("a number");
            model.record(&event(time, what(words)), NOW).expect("accepted");
        }
        model
    }

    fn ask(model: &Model, category: &str, form: Form, state: TableState) -> Reason {
        model.can_send(USER, "b", category, form, NOW, state).expect("well-formed").reason
    }

    fn template(model: &Model, category: &str) -> Reason {
        ask(model, category, Form::Template, TableState::Live)
    }

    #[test]
    fn users() {
        for same in ["15550123456", "+1 (555) 012-3456", "1.555.0123456 ", "1\u{2009}5550123456"] {
            assert_eq!(user_key(same).as_deref(), Some(USER));
        }
        assert_eq!(user_key("5215512345678"), user_key("525512345678"));
        assert_eq!(user_key("5491112345678"), user_key("541112345678"));
        assert_eq!(user_key("5511987654321"), user_key("551187654321"));
        assert_ne!(user_key("5511923456789"), user_key("551123456789"), "a landline");
        let long = "x".repeat(161);
        for bad in ["", "+", "\u{a0}", "1234567890123456", "15550123456.0\u{a0}", "1\t2", &long] {
            assert_eq!(user_key(bad), None, "{bad}");
        }
        assert_eq!(user_key("US.1349").as_deref(), Some("US.1349"));
    }

    #[test]
    #[rustfmt::skip] // a row is a line
    fn rows() {
        let (u, m) = ("utility.x", "marketing");
        for (happened, category, by_template, free_form) in [
            ("", u, NoConsent, WindowClosed),
            ("0 suppress, 0 hi", u, Suppressed, Suppressed),
            ("0 out *, 0 hi", u, OptedOutAll, OptedOutAll),
            ("0 out *, 1 hi", u, OptedOutAll, ReplyAfterOptOut),
            ("0 out *, 1 hi", m, OptedOutAll, OptedOutAll),
            ("0 out *, 0 out utility.x, 1 hi", u, OptedOut, OptedOut),
            ("0 out utility.x, 1 out *, 2 hi", u, OptedOut, OptedOut),
            ("0 out utility, 1 out *, 2 hi", u, OptedOut, OptedOut),
            ("0 out utility, 1 in utility.x, 2 out *, 3 hi", u, OptedOutAll, ReplyAfterOptOut),
            ("0 out utility.y, 1 out *, 2 hi", u, OptedOutAll, ReplyAfterOptOut),
            ("0 out utility, 1 hi", u, OptedOut, OptedOut),
            ("0 out *, 1 in utility.x", u, OptedIn, WindowClosed),
            ("0 in utility.x, 0 out *", u, OptedOutAll, OptedOutAll),
            ("0 fail 131050, 0 in marketing", "marketing.x", PlatformStopped, PlatformStopped),
            ("0 fail 131050", u, NoConsent, WindowClosed),
            ("0 fail 131050, 1 signup", m, OptedIn, WindowClosed),
            ("0 fail 131050, 1 pending-signup", m, PlatformStopped, PlatformStopped),
            // By number: each stop is lifted at its own, and an unknown one by a resume without a number.
            ("0 in marketing, 0 stopped at 1, 1 resume at 1", m, OptedIn, WindowClosed),
            ("0 in marketing, 0 stopped at 1, 1 resume at 2", m, PlatformStopped, PlatformStopped),
            ("0 in marketing, 0 stopped at 1, 1 resume", m, PlatformStopped, PlatformStopped),
            ("0 in marketing, 0 fail 131050, 1 resume at 1", m, PlatformStopped, PlatformStopped),
            ("0 in marketing, 0 fail 131050, 1 resume", m, OptedIn, WindowClosed),
            ("0 fail 131050 at 1, 0 stopped at 2, 1 resume at 2, 1 in marketing", m, PlatformStopped, PlatformStopped),
            ("0 fail 131050 at 1, 1 signup at 1", m, OptedIn, WindowClosed),
            ("0 fail 131050 at 1, 1 signup at 2", m, PlatformStopped, PlatformStopped),
            ("0 stopped at 1, 0 resume at 1, 1 in marketing", m, PlatformStopped, PlatformStopped),
            // NOW is 3600000 after T, and 24 hours are 86400000.
            ("-82799999 fail 131049, 0 hi", m, FrequencyCapped, WindowOpen),
            ("-82800000 fail 131049, 0 hi", m, WindowOpen, WindowOpen),
            ("-82739999 hi", u, WindowOpen, WindowOpen),
            ("-82740000 hi", u, NoConsent, WindowClosed),
            ("0 hi, 0 fail 131047", u, NoConsent, WindowClosed),
            ("0 in utility.x until 3600000", u, ConsentExpired, WindowClosed),
            ("0 in utility.x until 3600001", u, OptedIn, WindowClosed),
            // As the page reads: an opt-in that has expired still takes an opt-out away.
            ("0 stop, 1 in utility.x until 2", u, WindowOpen, WindowOpen),
            // An opt-in that has lapsed over an older opt-out: that stands again for marketing.
            ("0 stop, 1 in marketing until 2", m, OptedOutAll, OptedOutAll),
            ("0 out marketing, 1 in marketing until 2, 3 hi", m, OptedOut, OptedOut),
            ("0 out *, 1 in marketing, 2 in marketing.x until 3", "marketing.x", ConsentExpired, WindowClosed),
            ("0 out marketing, 1 in marketing until 3600001", m, OptedIn, WindowClosed),
            ("0 stop, 1 in marketing until 2, 3 pending marketing", m, ConsentPending, ConsentPending),
            // Pending over no opt-out.
            ("0 pending utility.x", u, ConsentPending, WindowClosed),
            ("0 pending utility.x, 0 hi", u, WindowOpen, WindowOpen),
            ("0 in utility.x, 0 pending utility", u, ConsentPending, WindowClosed),
            ("0 pending utility.x, 1 in utility.x", u, OptedIn, WindowClosed),
            // Pending over an opt-out.
            ("0 pending utility.x, 0 out utility, 1 hi", u, OptedOut, OptedOut),
            ("0 out utility.x, 1 pending utility.x", u, ConsentPending, WindowClosed),
            ("0 out utility.x, 1 pending utility, 1 hi", u, ConsentPending, ConsentPending),
            ("0 stop, 1 pending utility.x", u, ConsentPending, ConsentPending),
            ("0 out *, 1 pending marketing, 2 hi", m, ConsentPending, ConsentPending),
            ("0 out *, 2 pending utility, 1 hi", u, ConsentPending, ReplyAfterOptOut),
            ("0 stop, 0 out utility, 1 pending utility, 1 hi", u, ConsentPending, ConsentPending),
            ("0 out *, 1 pending utility, 1 hi, 1 suppress", u, Suppressed, Suppressed),
            ("0 stop, 0 fail 131050, 1 pending marketing", m, PlatformStopped, PlatformStopped),
            ("0 out *, 0 fail 131049, 1 pending marketing", m, FrequencyCapped, WindowClosed),
        ] {
            let model = model(happened);
            let answers = (
                template(&model, category),
                ask(&model, category, Form::FreeForm, TableState::Live),
            );
            assert_eq!(answers, (by_template, free_form), "{happened}");
        }
    }

    #[test]
    fn states_and_forms() {
        let mut model = model("0 out *, 1 hi");
        assert_eq!(ask(&model, "service", Form::Any, TableState::Live), ReplyAfterOptOut);
        assert_eq!(ask(&model, "service", Form::Any, TableState::Late), Stale);
        model.rules.stale_allow.insert(Class::Service);
        assert_eq!(ask(&model, "service", Form::Any, TableState::Late), AllowedWhileStale);
        assert_eq!(ask(&model, "service", Form::Any, TableState::Invalid), Stale);
    }

    #[test]
    fn repeats() {
        let mut model = model("");
        let with_id = |id: &str, words| {
            let request_id = id.to_owned();
            Event { time: None, request_id, ..event(NOW, what(words)) }
        };
        let first = with_id("0", "in utility");
        let ahead = event(NOW + MINUTE, what("in utility"));
        let answers = [&first, &ahead].map(|event| model.record(event, NOW));
        model.record(&event(NOW + 1, what("stop")), NOW + 1).expect("accepted");
        assert_eq!([&first, &ahead].map(|event| model.record(event, NOW + HOUR)), answers);
        assert_eq!(template(&model, "utility"), OptedOutAll);
        let other = model.record(&with_id("0", "hi"), NOW + 2);
        assert_eq!(other.expect_err("refused").fields, ["request_id"]);
        for id in ["1", "2", "3", "4", "5", "6", "7", "8"] {
            model.record(&with_id(id, "hi"), NOW + 3).expect("accepted");
        }
        model.record(&with_id("0", "hi"), NOW + 4).expect("forgotten");
    }

    #[test]
    fn scopes_are_limited() {
        let scopes: Vec<_> = (0..64).map(|n| format!("0 pending utility.t{n}")).collect();
        let mut model = model(&scopes.join(", "));
        let mut accepts = |words| model.record(&event(NOW, what(words)), NOW).is_ok();
        assert!(!accepts("in service") && accepts("in utility.t1") && accepts("out service"));
    }

    #[test]
    fn keywords() {
        let has =
            "0 in utility.order_updates, 0 in marketing.order_updates, 0 in utility.promotions";
        let both = "marketing.order_updates, utility.order_updates";
        for (said, scope) in [
            ("Stop.", "*"),
            ("_stop_ 🛑", "*"),
            ("Opt-out", "*"),
            ("stop promotions", "marketing"),
            ("Stop Service!", "service"),
            ("stop order updates", both),
            ("stop order_updates", both),
            ("stop utility.order_updates", "utility.order_updates"),
            ("stop unknown", ""),
            ("STOP, stop!", "*"),
            ("please stop now. Thank you", "*"),
            ("please stop promotions", "marketing"),
            ("stop order_updates now please", both),
            ("please", ""),
            ("please stop by", ""),
            ("we must stop this bill", ""),
        ] {
            let outcome = model(has).record(&event(T + 1, what(said)), NOW).expect("accepted");
            assert_eq!(outcome.opted_out_scope, scope, "{said}");
        }
        // Without a time it stands, whatever the clock says.
        let mut model = model(has);
        let untimed = Event { time: None, ..event(T, what("stop")) };
        assert!(model.record(&untimed, T - HOUR).expect("accepted").applied);
        assert_eq!(template(&model, "utility.order_updates"), OptedOutAll);
    }

    #[test]
    fn yes() {
        let has = "0 out utility.b, 0 pending utility.b, 0 pending utility.a, 0 out service, \
                   1 pending service, 2 pending marketing";
        for (time, said, id, confirmed) in [
            (Some(T + 2), "Yes! 👍", "", "service, utility.a"),
            (Some(T + 2), "yes please", "", ""),
            (Some(T), "yes", "", ""),
            (None, "yes", "", ""),
            (None, "yes", "r", "marketing, service, utility.a"),
        ] {
            let mut model = model(has);
            let yes = Event { time, request_id: id.to_owned(), ..event(T, what(said)) };
            let outcome = model.record(&yes, NOW).expect("accepted");
            assert_eq!(outcome.opted_in_category, confirmed);
            assert_eq!(template(&model, "service") == OptedIn, confirmed.contains("service"));
        }
    }

    #[test]
    fn in_force() {
        for (happened, opted_in, opted_out) in [
            ("0 in utility.a, 1 out utility, 2 in utility.b", "utility.b", "utility"),
            ("0 in utility, 0 out *, 0 in service until 1", "", "*"),
            ("0 in utility.a, 0 pending utility, 1 in utility.b", "utility.b", ""),
            ("0 out utility.a, 1 pending utility.a", "", "utility.a"),
            ("0 out utility.a, 1 in utility", "utility", ""),
            ("0 in utility until 1, 0 in utility.a", "", ""),
            ("0 in utility until 3600001, 0 in utility.a", "utility", ""),
            ("0 in utility, 0 in utility.a until 3600001", "utility, utility.a", ""),
        ] {
            let consent = model(happened).consent(USER, "b", NOW).expect("well-formed");
            let lists = (consent.opted_in.join(", "), consent.opted_out.join(", "));
            assert_eq!(lists, (opted_in.to_owned(), opted_out.to_owned()), "{happened}");
        }
    }

    /// > So replays and reordering change nothing
    ///
    /// Of past events with times; texts that read the pair's state (`yes`, `stop <topic>`) do not
    /// commute, and neither do request ids.
    #[test]
    fn order_does_not_matter() {
        for seed in 0..1_500 {
            let mut rng = Rng::new(seed);
            let mut events = history(&mut rng, USER, "b", NOW, true);
            events.retain(|event| event.time.is_some_and(|time| time <= NOW));
            for event in &mut events {
                event.request_id.clear();
                if let What::Inbound { text } = &mut event.what {
                    *text = rng.pick(&["hello", "STOP", "stop promotions"]).to_owned();
                }
            }
            let answers = |events: &[Event]| {
                let mut model = Model::new(Rules::default());
                for event in events {
                    let _refused_either_way = model.record(event, NOW);
                }
                let live = TableState::Live;
                let ask = |c| model.can_send(USER, "b", c, Form::Any, NOW, live);
                (CATEGORIES.map(ask), model.consent(USER, "b", NOW))
            };
            let forwards = answers(&events);
            events.extend(events.clone());
            events.reverse();
            let turn = rng.below(events.len());
            events.rotate_left(turn);
            assert_eq!(answers(&events), forwards, "seed {seed}");
        }
    }

    #[test]
    fn histories_reach_everything() {
        let (mut seen, mut pending_over_out) = (BTreeMap::new(), BTreeMap::new());
        let (mut confirmed, mut refused) = (0, BTreeSet::new());
        for seed in 0..6_000 {
            let mut rng = Rng::new(seed);
            let boundaries = rng.percent(50);
            let mut model = Model::new(Rules::default());
            model.rules.window_implies.remove(&Class::Marketing);
            model.rules.deny_after = BTreeSet::from([130403, 130472, 130497]);
            for event in history(&mut rng, "525512345678", "b", NOW, boundaries) {
                match model.record(&event, NOW) {
                    Ok(outcome) => confirmed += usize::from(!outcome.opted_in_category.is_empty()),
                    Err(why) => refused.extend(why.fields),
                }
            }
            let pair = model.pair("+52 1 5512345678", "b").expect("well-formed");
            for category in CATEGORIES {
                let out = pair.over(category, Subject::Confirmed).filter(|c| c.1 == Word::Deny);
                let pending = pair.over(category, Subject::Pending);
                let over_out = out.is_some() && pending.is_some_and(|(t, _)| stands(t, out));
                for form in [Form::FreeForm, Form::Template] {
                    let live = TableState::Live;
                    let answer = model.can_send("525512345678", "b", category, form, NOW, live);
                    let reason = answer.expect("well-formed").reason.number();
                    *seen.entry(reason).or_insert(0) += 1;
                    *pending_over_out.entry(reason).or_insert(0) += i32::from(over_out);
                }
            }
        }
        assert_eq!(seen.len(), 13, "all but the stale ones: {seen:?}");
        pending_over_out.retain(|_, often| *often > 20);
        assert_eq!(pending_over_out.len(), 7, "all that can be: {pending_over_out:?}");
        assert!(confirmed > 500, "{confirmed}");
        assert_eq!(refused.len(), 4, "time, category, scope and request id: {refused:?}");
    }
}
