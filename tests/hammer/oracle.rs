//! What was recorded, and whether an answer can be right by it. Knows no code that it judges.
//!
//! An answer that allows is right where something that allows, and was sent before the answer came,
//! beats every denial that was acknowledged before the question was asked. It beats a denial where
//! its claimed time is later, unless it was clamped for certain and the denial was sent after it was
//! acknowledged: a fast clock's opt-in never outlives an opt-out that is recorded after it.

use std::sync::Mutex;

use crate::rng::Rng;

/// How many users are written about at once, by all writers.
const USERS: usize = 24;

/// After so many events another user takes the place: a user's history grows.
const EVENTS: usize = 60;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    OptIn(&'static str),
    OptOut(&'static str),
    /// A message that says nothing.
    Message,
    /// A message that says STOP.
    Stop,
}

/// An event that was sent.
#[derive(Clone, Debug)]
struct Told {
    kind: Kind,
    claimed: i64,
    sent: u64,
    /// In the order of all that is sent, asked and acknowledged; unset until it is.
    acknowledged: Option<u64>,
    /// Whether its time was ahead of every clock when it was acknowledged.
    clamped: bool,
}

impl Told {
    fn beats(&self, denial: &Self) -> bool {
        let outlives = self.clamped
            && self.acknowledged.is_some_and(|acknowledged| denial.sent > acknowledged);
        self.claimed > denial.claimed && !outlives
    }
}

struct User {
    name: String,
    told: Vec<Told>,
}

struct All {
    /// The order of all that happens.
    now: u64,
    names: u64,
    users: Vec<User>,
}

/// The users, and what was recorded of each.
pub struct Users(Mutex<All>);

impl Default for Users {
    fn default() -> Self {
        let name = |number: usize| User { name: format!("US.0-{number}"), told: Vec::new() };
        Self(Mutex::new(All { now: 0, names: 0, users: (0..USERS).map(name).collect() }))
    }
}

/// An event that was sent, by its place.
pub struct Sent {
    pub user: String,
    place: usize,
    index: usize,
}

/// A question, and the denials that were acknowledged before it.
pub struct Asked {
    pub user: String,
    place: usize,
    denials: Vec<usize>,
}

impl Users {
    pub fn send(&self, rng: &mut Rng, kind: Kind, claimed: i64) -> Sent {
        let place = rng.below(USERS);
        let mut all = self.0.lock().unwrap();
        all.now += 1;
        if all.users[place].told.len() >= EVENTS {
            all.names += 1;
            let name = format!("US.{}-{place}", all.names);
            all.users[place] = User { name, told: Vec::new() };
        }
        let sent = all.now;
        let user = &mut all.users[place];
        user.told.push(Told { kind, claimed, sent, acknowledged: None, clamped: false });
        Sent { user: user.name.clone(), place, index: user.told.len() - 1 }
    }

    /// An event was acknowledged by `wall`.
    pub fn acknowledge(&self, sent: &Sent, wall: i64) {
        let mut all = self.0.lock().unwrap();
        all.now += 1;
        let now = all.now;
        let user = &mut all.users[sent.place];
        if user.name == sent.user {
            let told = &mut user.told[sent.index];
            told.acknowledged = Some(now);
            told.clamped = told.claimed > wall;
        }
    }

    pub fn ask(&self, rng: &mut Rng) -> Asked {
        let place = rng.below(USERS);
        let all = self.0.lock().unwrap();
        let user = &all.users[place];
        let acknowledged = user.told.iter().enumerate();
        let acknowledged = acknowledged.filter(|(_, told)| {
            told.acknowledged.is_some() && matches!(told.kind, Kind::OptOut(_) | Kind::Stop)
        });
        let denials = acknowledged.map(|(index, _)| index).collect();
        Asked { user: user.name.clone(), place, denials }
    }

    /// Why an answer that allows is wrong.
    pub fn objection(&self, asked: &Asked, category: &str, is_reply: bool) -> Option<String> {
        let all = self.0.lock().unwrap();
        let user = &all.users[asked.place];
        if user.name != asked.user {
            return None; // Another user has taken the place.
        }
        let denials: Vec<&Told> = asked.denials.iter().map(|index| &user.told[*index]).collect();
        let narrower = |told: &&Told| matches!(told.kind, Kind::OptOut(scope) if scope != "*");
        let (narrow, broad): (Vec<&Told>, Vec<&Told>) = denials.iter().copied().partition(narrower);
        let opts_in = |kind| matches!(kind, Kind::OptIn(scope) if covers(scope, category));
        let wrote = |kind| matches!(kind, Kind::Message | Kind::Stop);
        let beaten = |denials: &[&Told], allows: &dyn Fn(Kind) -> bool| {
            denials.is_empty()
                || user.told.iter().any(|told| {
                    allows(told.kind) && denials.iter().all(|denial| told.beats(denial))
                })
        };
        let right = if is_reply {
            beaten(&broad, &wrote) && beaten(&narrow, &opts_in)
        } else {
            beaten(&denials, &opts_in)
        };
        (!right).then(|| format!("no event allows it over {denials:?}; all: {:?}", user.told))
    }
}

fn covers(scope: &str, category: &str) -> bool {
    scope == category || category.split('.').next() == Some(scope)
}
