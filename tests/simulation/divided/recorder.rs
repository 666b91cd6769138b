//! Recorders of a ledger in several partitions: each id of a person is in a partition of its own, whose appends
//! fail, conflict or come to nothing known by themselves.

use std::collections::{BTreeMap, BTreeSet};

use consentd::recorder::linked_ids::{self, PropagationRound, last_revision, places};
use consentd::recorder::linked_read::LinkedRead;
use consentd::recorder::sent_changes::{FollowedPartitions, SentChanges};
use consentd_core::event::What;
use consentd_core::id::Key;
use consentd_core::record::{HistoryEntry, Link, Revision};
use consentd_core::scope::Class;
use consentd_core::state::{Choice, Effect};
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, Position, Read};

use super::append::{KILLED, Pending, Purpose, record_of};
use super::checks::OF_TEMPLATE;
use super::erase::Erasing;
use super::world::{Happening, World};
use crate::erase::ErasingAgain;
use crate::held::business_of;
use crate::ledger::{Stored, USERS, secret, user};
use crate::lifts::{PLACES, place_of};
use crate::linked::denial;
use crate::oracle::{Violation, is_denial, scope};
use crate::process::{Owed, gives_back, process_of};
use crate::world::MILLI;

pub const WRITERS: usize = 3;
/// The recorder of the sidecar's own process, which waits for that sidecar's followers.
pub const OWN: usize = 0;
const MAX_TRIES: u64 = 6;
/// Who may be linked to whom.
const PEOPLE: [(usize, usize); 4] = [(0, 1), (1, 2), (2, 3), (3, 4)];

const OUT: [&str; 5] = ["*", "marketing", "marketing.news", "utility", "utility.orders"];
const IN: [&str; 5] = ["marketing", "marketing.news", "utility", "utility.orders", "service"];

/// What a recorder is at.
pub enum Step {
    Start,
    Read,
    /// The other ids are read, and what was read of them is proven.
    ReadOthers,
    Append(Box<Change>),
    /// A part of what is appended reaches its partition.
    Part(usize),
    /// All parts are answered, or are not.
    Appended,
    /// The next round of the propagation.
    Round,
    /// It is on its way through the ids of a person who is to be erased: see [`super::erase`].
    Erase,
    /// Every id has its tombstone.
    Erased,
    /// The tombstone of an erase that is given back is there.
    ErasedAgain,
    Acknowledge,
    TimedOut,
}

impl Step {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start => "starts",
            Self::Read => "reads",
            Self::ReadOthers => "reads the other ids",
            Self::Append(_) => "appends",
            Self::Part(_) => "reaches a partition",
            Self::Appended => "is answered",
            Self::Round => "goes on to the other ids",
            Self::Erase => "erases on",
            Self::Erased => "is answered that all ids are erased",
            Self::ErasedAgain => "has erased again",
            Self::Acknowledge => "acknowledges",
            Self::TimedOut => "waits no longer",
        }
    }
}

#[derive(Clone)]
pub enum Wish {
    Said(Effect),
    Denied(Effect),
    Link(usize),
    Category(Class, bool),
    Erase,
    /// What was recorded before is given back.
    Again,
}

#[derive(Default)]
pub struct Recorder {
    pub operation: u64,
    pub user: usize,
    pub wish: Option<Wish>,
    /// How long ago the caller says that it was.
    pub ago: Option<i64>,
    pub effects: Vec<Effect>,
    pub link_time: Option<Timestamp>,
    /// The clock that was read first in this try.
    pub clock: Option<Timestamp>,
    /// Where the change of its own pair was written, on whatever branch.
    pub wrote: Vec<Position>,
    pub began: u64,
    /// Who was acknowledged to be one person with the user when it began.
    pub person: BTreeSet<usize>,
    /// How often something was lost, and somebody erased, by the time of this try.
    pub taken: (u64, u64),
    /// Whether the record that was read has the event already.
    pub is_known: bool,
    /// Whether it gives back what was recorded before, as of when that counts.
    pub is_replay: bool,
    /// Whether it happened before the pair was erased, so that it leaves no trace.
    pub leaves_no_trace: bool,
    /// How many losses its process had noticed when its call began, where that remembers what it writes.
    pub losses: Option<u64>,
    /// What it wrote, on whatever branch, and must not be lost.
    pub owes: Vec<Owed>,
    pub erasing: Option<Erasing>,
    pub erasing_again: Option<ErasingAgain>,
    pub tries: u64,
    pub sent: SentChanges,
    pub followed: FollowedPartitions,
    pub pending: Pending,
    /// The other ids, where a denial takes its time from them, with what was read of the user and when.
    pub others: Option<(LinkedRead, Option<Stored>, Timestamp)>,
    pub round: Option<PropagationRound>,
    pub is_linked: bool,
    pub revision: Revision,
}

impl World {
    pub fn recorder_starts(&mut self, index: usize) {
        self.end_call(index, false);
        let operation = self.recorders[index].operation + 1;
        self.recorders[index] = Recorder { operation, ..Recorder::default() };
        if gives_back(index) {
            return self.gives_next(index);
        }
        let wait = self.random.between(MILLI, 2 * self.plan.write_every);
        self.recorder_goes_on(index, wait, Step::Start);
    }

    pub fn recorder_goes_on(&mut self, index: usize, wait: u64, step: Step) {
        let operation = self.recorders[index].operation;
        self.after(wait, Happening::Recorder(index, operation, step));
    }

    pub fn soon(&mut self) -> u64 {
        self.random.between(1, 15) * MILLI
    }

    pub fn recorder(&mut self, index: usize, step: Step) -> Result<(), Violation> {
        let is_own = index == OWN || gives_back(index) && process_of(index) == Some(OWN);
        if is_own && self.frozen_until > self.now {
            let wait = self.frozen_until - self.now;
            self.recorder_goes_on(index, wait, step);
            return Ok(());
        }
        match step {
            Step::Start if !self.writing => self.recorder_starts(index),
            Step::Start => {
                self.wishes(index);
                self.recorder_tries(index);
            }
            Step::Read if self.recorders[index].erasing_again.is_some() => self.erase_again(index),
            Step::Read => self.recorder_reads(index),
            Step::ReadOthers => self.reads_others(index),
            Step::Append(change) => {
                self.append_all(index, vec![*change], Purpose::Event);
            }
            Step::Part(at) => self.append_part(index, at),
            Step::Appended => self.appended(index),
            Step::Round => self.goes_round(index),
            Step::Erase => self.erase(index),
            Step::Erased | Step::ErasedAgain | Step::Acknowledge if !self.has_followed(index) => {
                self.follows_on(index, step);
            }
            Step::Erased => return self.erased(index),
            Step::ErasedAgain => self.erased_again(index),
            Step::Acknowledge => return self.acknowledges(index),
            Step::TimedOut if self.recorders[index].tries >= MAX_TRIES || gives_back(index) => {
                self.recorder_starts(index);
            }
            Step::TimedOut => self.recorder_tries(index),
        }
        Ok(())
    }

    /// A process gives back what denied, or linked ids.
    pub fn records_again(&mut self, index: usize, entry: &HistoryEntry) -> bool {
        let number_of = |name: &str| (0..USERS).find(|number| user(*number) == name);
        let Some(number) = number_of(&entry.user_id) else { return false };
        let (operation, person) = (self.recorders[index].operation, self.acks.person(number));
        let mut recorder = Recorder { operation, person, ..Recorder::default() };
        (recorder.user, recorder.is_replay) = (number, true);
        if let What::Link { other_user_id, .. } = &entry.what {
            let Some(other) = number_of(other_user_id) else { return false };
            (recorder.wish, recorder.link_time) = (Some(Wish::Link(other)), Some(entry.time));
        } else {
            recorder.wish = Some(Wish::Again);
            recorder.effects = entry.what.effects(entry.time);
        }
        self.recorders[index] = recorder;
        true
    }

    /// A process gives back an erase.
    pub fn erases_again(&mut self, index: usize, number: usize, time: Timestamp) -> bool {
        let operation = self.recorders[index].operation;
        let mut recorder = Recorder { operation, ..Recorder::default() };
        (recorder.user, recorder.is_replay) = (number, true);
        recorder.erasing_again = Some(ErasingAgain { time, later: None });
        self.recorders[index] = recorder;
        true
    }

    fn wishes(&mut self, index: usize) {
        let time = Timestamp::from_millis(1).unwrap();
        let random = &mut self.random;
        let mut of = random.index(USERS);
        let wish = if of == OF_TEMPLATE {
            let class = random.pick(&[Class::Marketing, Class::Utility, Class::Authentication]);
            Wish::Category(class, random.percent(50))
        } else {
            match random.below(100) {
                0..32 => {
                    let on = random.pick(&OUT);
                    Wish::Denied(Effect::Choice(scope(on), Choice::opt_out(time)))
                }
                32..62 => {
                    let on = random.pick(&IN);
                    Wish::Said(Effect::Choice(scope(on), Choice::opt_in(time, None)))
                }
                62..67 => Wish::Said(Effect::Inbound(time)),
                roll @ 67..76 => {
                    let stopped = random.percent(50);
                    let number = place_of(PLACES[usize::from(roll % 2 == 1)]);
                    let effect = Effect::Platform { time, stopped, number };
                    if stopped { Wish::Denied(effect) } else { Wish::Said(effect) }
                }
                76..84 => {
                    let suppressed = random.percent(40);
                    let effect = Effect::Suppression { time, suppressed };
                    if suppressed { Wish::Denied(effect) } else { Wish::Said(effect) }
                }
                _ => {
                    let (one, other) = random.pick(&PEOPLE);
                    let (one, other) = if random.percent(50) { (one, other) } else { (other, one) };
                    of = one;
                    // At another business somebody is another person.
                    if business_of(one) == business_of(other) {
                        Wish::Link(other)
                    } else {
                        Wish::Said(Effect::Inbound(time))
                    }
                }
            }
        };
        let erases = self.plan.erases && of != OF_TEMPLATE && random.percent(8);
        let wish = if erases { Wish::Erase } else { wish };
        let ago = random.percent(25).then(|| i64::try_from(random.below(20_000)).unwrap());
        let person = self.acks.person(of);
        let began = self.acks.writes();
        let recorder = &mut self.recorders[index];
        (recorder.user, recorder.wish, recorder.ago) = (of, Some(wish), ago);
        (recorder.person, recorder.began) = (person, began);
    }

    pub fn recorder_tries(&mut self, index: usize) {
        self.begin_call(index);
        let taken = (self.taken, self.erasures);
        let recorder = &mut self.recorders[index];
        recorder.tries += 1;
        recorder.operation += 1;
        (recorder.taken, recorder.clock) = (taken, None);
        recorder.followed = BTreeMap::new();
        (recorder.round, recorder.pending, recorder.others) = (None, Pending::default(), None);
        let is_own = index == OWN || gives_back(index);
        let patience = if is_own { 5_000 } else { 1_500 };
        self.recorder_goes_on(index, patience * MILLI, Step::TimedOut);
        if matches!(self.recorders[index].wish, Some(Wish::Erase)) {
            return self.erase_begins(index);
        }
        let wait = self.soon();
        self.recorder_goes_on(index, wait, Step::Read);
    }

    /// It fails, and its caller comes again, or never.
    pub fn recorder_fails(&mut self, index: usize) {
        let wait = self.random.between(20, 300) * MILLI;
        self.recorders[index].operation += 1;
        self.recorder_goes_on(index, wait, Step::TimedOut);
    }

    /// The recorder's own change is durable: what it says goes to the person's other ids.
    pub fn propagate(&mut self, index: usize) {
        let secret = secret(self.partitions[0].primary.secret);
        let recorder = &mut self.recorders[index];
        let link = match (&recorder.wish, recorder.link_time) {
            (Some(Wish::Link(other)), Some(time)) => {
                Some(Link { user_id: user(*other).to_owned(), time, moved: false })
            }
            _ => None,
        };
        let denials = recorder.effects.iter().filter(|it| is_denial(it)).map(denial).collect();
        let links = link.into_iter().collect();
        let name = user(recorder.user);
        let business = business_of(recorder.user);
        recorder.round = Some(PropagationRound::new(&secret, business, name, links, denials));
        let wait = self.soon();
        self.recorder_goes_on(index, wait, Step::Round);
    }

    fn goes_round(&mut self, index: usize) {
        if self.random.percent(KILLED) {
            return self.recorder_fails(index);
        }
        let Some(round) = &mut self.recorders[index].round else { return };
        match round.step() {
            linked_ids::Step::Append(changes) => {
                self.append_all(index, changes, Purpose::Propagation);
            }
            linked_ids::Step::Read(keys) => {
                let Some(read) = self.read_all(&keys) else { return self.recorder_fails(index) };
                let round = self.recorders[index].round.as_mut().unwrap();
                round.read(&keys, read).unwrap();
                let wait = self.soon();
                self.recorder_goes_on(index, wait, Step::Round);
            }
        }
    }

    pub fn read_all(&mut self, keys: &[Key]) -> Option<Read> {
        let (mut latest, mut pairs) = (Timestamp::MIN, Vec::new());
        for key in keys {
            let number = self.partitions[0].primary.number_of(*key)?;
            let (stored, clock) = self.read(number)?;
            latest = latest.max(clock);
            pairs.push(record_of(stored.as_ref()));
        }
        Some(Read { clock: latest, pairs })
    }

    pub fn propagated(&mut self, index: usize, changes: &[Change], outcomes: &[Appended]) {
        let layout = self.layout;
        let wait = self.soon();
        let recorder = &mut self.recorders[index];
        let Some(round) = &mut recorder.round else { return };
        let proven = match round.appended(outcomes) {
            Ok(proven) => proven.is_some(),
            Err(_) => return self.recorder_fails(index),
        };
        if !proven {
            return self.recorder_goes_on(index, wait, Step::Round);
        }
        let own = changes.first().map(|change| change.key);
        let here = own.map(|own| places(changes, layout, own)).unwrap_or_default();
        let revision = last_revision(outcomes, &here).unwrap_or_default();
        recorder.revision = recorder.revision.max(revision);
        self.recorder_goes_on(index, wait, Step::Acknowledge);
    }
}
