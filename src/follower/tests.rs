use std::collections::HashMap;

use super::machine::{Action, Cause, Event, Machine, pieces};
use crate::clock::Moment;
use crate::consent::id::Key;
use crate::consent::record::{Record, Revision};
use crate::consent::time::Timestamp;
use crate::ledger::{
    Announcement, Bucket, LogBody, LogEntry, LogHead, Page, Position, Tail, UnreadableEntry,
};

/// A ledger that is a list: what the machine is told comes from it, or from what a fault makes
/// of it.
struct Model {
    epoch: [u8; 16],
    log: Vec<LogEntry>,
}

fn moment(seconds: u64) -> Moment {
    let boot = std::time::Duration::from_secs(seconds);
    Moment { boot, wall: Timestamp::MIN.plus(boot) }
}

fn key(n: u8) -> Key {
    Key::from_bytes([n; 16])
}

impl Model {
    fn new() -> Self {
        Self { epoch: [1; 16], log: Vec::new() }
    }

    fn end(&self) -> Position {
        let head = self.log.last().map_or([0; 20], |entry| entry.head);
        let revision = u64::try_from(self.log.len()).unwrap();
        Position { epoch: self.epoch, revision, head }
    }

    /// Appends a change of pair `n`; `content` makes its hash.
    fn append(&mut self, n: u8, content: u8) -> LogEntry {
        let end = self.end();
        let mut head: LogHead = [content; 20];
        head[0] = u8::try_from(end.revision + 1).unwrap();
        head[1] = end.head[2].wrapping_add(content);
        let record = Record { history_len: end.revision + 1, ..Record::default() };
        let body = LogBody {
            key: key(n),
            user_id: String::new(),
            business_id: String::new(),
            record: Ok(record),
            record_time: Timestamp::MIN,
        };
        let entry =
            LogEntry { revision: end.revision + 1, previous: end.head, head, body: Ok(body) };
        self.log.push(entry.clone());
        entry
    }

    fn page(&self, after: Revision) -> Page {
        let entries = self.log.iter().filter(|entry| entry.revision > after).cloned().collect();
        Page { end: self.end(), clock: Timestamp::MIN, tail: Tail::Entries(entries) }
    }

    /// The latest record of every pair.
    fn pairs(&self) -> HashMap<Key, Record> {
        let bodies = self.log.iter().map(|entry| entry.body.clone().unwrap());
        bodies.map(|body| (body.key, body.record.unwrap())).collect()
    }

    fn announce(&self, entries: &[LogEntry]) -> Event {
        Event::Announced(Announcement { epoch: self.epoch, entries: entries.into() })
    }
}

/// A machine and the table that it makes.
struct Follower {
    machine: Machine,
    pairs: HashMap<Key, Record>,
    valid: bool,
    proven: Option<Moment>,
    causes: Vec<Cause>,
    repairs: usize,
    wants: Vec<Action>,
}

impl Follower {
    fn new() -> Self {
        let (machine, actions) = Machine::new();
        let mut follower = Self {
            machine,
            pairs: HashMap::new(),
            valid: false,
            proven: None,
            causes: Vec::new(),
            repairs: 0,
            wants: Vec::new(),
        };
        follower.perform(actions);
        follower
    }

    fn live(model: &Model) -> Self {
        let mut follower = Self::new();
        follower.serve(model, 1);
        assert!(follower.valid && follower.proven == Some(moment(1)));
        assert_eq!(follower.pairs, model.pairs());
        follower
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Clear => {
                    assert!(!self.valid, "a valid table is never emptied");
                    self.pairs.clear();
                }
                Action::Apply(key, record) => {
                    self.pairs.insert(key, *record.unwrap());
                }
                Action::Applied(..) => {}
                Action::Prove(asked, _) => self.proven = self.proven.max_by_boot(asked),
                Action::Validate => self.valid = true,
                Action::Invalidate(cause) => {
                    self.valid = false;
                    self.causes.push(cause);
                }
                Action::GapRepaired => self.repairs += 1,
                Action::Poll(_) | Action::ReadBucket(_) => self.wants.push(action),
            }
        }
    }

    fn on(&mut self, event: Event) {
        let actions = self.machine.on(event);
        self.perform(actions);
    }

    /// Answers what the machine wants from the model, until it wants nothing.
    fn serve(&mut self, model: &Model, seconds: u64) {
        for _ in 0..100 {
            let Some(want) = self.wants.pop() else { return };
            match want {
                Action::Poll(after) => {
                    let page = model.page(after);
                    self.on(Event::Page { asked: moment(seconds), after, page });
                }
                Action::ReadBucket(after) => {
                    let mut pairs: Vec<_> =
                        model.pairs().into_iter().filter(|(key, _)| Some(*key) > after).collect();
                    pairs.sort_by_key(|(key, _)| *key);
                    pairs.truncate(2);
                    let pairs = pairs.into_iter().map(|(key, record)| (key, Ok(record))).collect();
                    self.on(Event::Bucket(Bucket { label: model.end(), pairs }));
                }
                _ => unreachable!("only these are kept"),
            }
        }
        panic!("it wants for ever");
    }

    fn poll(&mut self, model: &Model, seconds: u64) {
        self.wants.push(Action::Poll(self.machine.applied()));
        self.serve(model, seconds);
    }
}

trait MaxByBoot {
    fn max_by_boot(self, other: Moment) -> Option<Moment>;
}

impl MaxByBoot for Option<Moment> {
    fn max_by_boot(self, other: Moment) -> Option<Moment> {
        Some(self.filter(|known| known.boot > other.boot).unwrap_or(other))
    }
}

fn model(changes: u8) -> Model {
    let mut model = Model::new();
    for n in 0..changes {
        model.append(n % 5, n);
    }
    model
}

#[test]
fn it_loads_and_then_follows_announcements() {
    let mut model = model(12);
    let mut follower = Follower::live(&model);
    let entry = model.append(3, 7);
    follower.on(model.announce(std::slice::from_ref(&entry)));
    assert_eq!(follower.pairs, model.pairs());
    follower.on(model.announce(&[entry]));
    assert!(follower.wants.is_empty(), "a duplicate is ignored");
    assert_eq!(follower.causes, [Cause::Start]);
}

#[test]
fn an_empty_ledger_is_live_at_once() {
    Follower::live(&Model::new());
}

#[test]
fn what_is_appended_while_it_loads_is_not_missed() {
    let mut model = model(6);
    let mut follower = Follower::new();
    // The first poll, then a bucket before and one after a change of an old and of a new pair.
    let Some(Action::Poll(after)) = follower.wants.pop() else { panic!("it polls first") };
    follower.on(Event::Page { asked: moment(1), after, page: model.page(after) });
    model.append(0, 50);
    model.append(9, 51);
    follower.serve(&model, 2);
    assert!(follower.valid);
    assert_eq!(follower.pairs, model.pairs());
}

#[test]
fn a_lost_announcement_is_repaired_and_later_ones_are_held() {
    let mut model = model(3);
    let mut follower = Follower::live(&model);
    let _lost = model.append(0, 20);
    let next = model.append(1, 21);
    let page = model.page(follower.machine.applied());
    let newest = model.append(2, 22);
    follower.on(model.announce(&[next]));
    follower.on(model.announce(&[newest]));
    assert_eq!(follower.machine.applied(), 3, "nothing past a gap is applied");
    assert!(follower.wants.contains(&Action::Poll(3)));
    // The page was made before the newest change: what was held closes the rest.
    follower.wants.clear();
    follower.on(Event::Page { asked: moment(2), after: 3, page });
    assert_eq!(follower.machine.applied(), 6);
    assert_eq!((follower.pairs.clone(), follower.repairs), (model.pairs(), 1));
    assert_eq!(follower.proven, Some(moment(2)));
}

#[test]
fn a_claim_is_satisfied_by_more_than_it_claims() {
    let mut model = model(3);
    let mut follower = Follower::live(&model);
    let page = model.page(3);
    let entry = model.append(1, 30);
    follower.on(model.announce(&[entry]));
    follower.on(Event::Page { asked: moment(5), after: 3, page });
    assert_eq!(follower.proven, Some(moment(5)), "steady writes must not starve the proof");
}

#[test]
fn a_part_of_a_page_proves_nothing_until_the_rest_is_there() {
    let mut model = model(1);
    let mut follower = Follower::live(&model);
    for n in 0..4 {
        model.append(n, 40 + n);
    }
    let mut page = model.page(1);
    let Tail::Entries(entries) = &mut page.tail else { unreachable!() };
    entries.truncate(2);
    follower.on(Event::Page { asked: moment(3), after: 1, page });
    assert_eq!(follower.proven, Some(moment(1)));
    assert_eq!(follower.wants, [Action::Poll(3)], "the next page follows at once");
    follower.serve(&model, 4);
    assert_eq!(follower.proven, Some(moment(4)));
    assert_eq!(follower.pairs, model.pairs());
}

#[test]
fn another_epoch_a_fork_and_a_trimmed_log_are_told_and_read_anew() {
    type Change = fn(&mut Model);
    let changes: [(Cause, Change); 4] = [
        (Cause::Epoch, |model| model.epoch = [2; 16]),
        (Cause::Fork, |model| {
            model.log.truncate(4);
            model.append(1, 99);
            model.append(2, 98);
            model.append(3, 97);
        }),
        (Cause::Fork, |model| model.log.truncate(3)),
        (Cause::Trimmed, |model| {
            model.append(1, 60);
            model.log[5].body = Err(UnreadableEntry);
        }),
    ];
    for (index, (cause, change)) in changes.into_iter().enumerate() {
        let mut model = model(5);
        let mut follower = Follower::live(&model);
        change(&mut model);
        let expected = if index == 3 { Cause::Unreadable } else { cause };
        follower.wants.push(Action::Poll(5));
        let Some(Action::Poll(after)) = follower.wants.pop() else { unreachable!() };
        follower.on(Event::Page { asked: moment(2), after, page: model.page(after) });
        assert!(!follower.valid, "{cause:?}");
        assert_eq!(follower.causes, [Cause::Start, expected]);
        if index == 3 {
            follower.poll(&model, 3);
            assert!(!follower.valid, "an unreadable entry is never skipped");
        } else {
            follower.serve(&model, 3);
            assert!(follower.valid);
            assert_eq!(follower.pairs, model.pairs());
        }
    }
    let model = model(5);
    let mut follower = Follower::live(&model);
    let page = Page { tail: Tail::Trimmed, ..model.page(5) };
    follower.on(Event::Page { asked: moment(2), after: 5, page });
    assert_eq!(follower.causes, [Cause::Start, Cause::Trimmed]);
}

#[test]
fn a_forged_announcement_only_wakes_the_poll() {
    let mut model = model(3);
    let mut follower = Follower::live(&model);
    let mut forged = model.append(1, 70);
    model.log.pop();
    forged.previous = [9; 20];
    follower.on(model.announce(&[forged]));
    assert_eq!((follower.machine.applied(), follower.valid), (3, true));
    follower.serve(&model, 2);
    assert!(follower.valid, "the log does not know of it");
    assert_eq!(follower.pairs, model.pairs());
    let foreign = Announcement { epoch: [7; 16], entries: Vec::new().into() };
    follower.on(Event::Announced(foreign));
    assert_eq!(follower.wants, [Action::Poll(3)]);
}

#[test]
fn lost_announcements_wake_the_poll() {
    let mut model = model(2);
    let mut follower = Follower::live(&model);
    model.append(0, 80);
    follower.on(Event::Missed);
    follower.serve(&model, 2);
    assert_eq!(follower.pairs, model.pairs());
}

#[test]
fn a_large_announcement_comes_in_pieces() {
    let model = model(10);
    let announcement = Announcement { epoch: model.epoch, entries: model.log.clone().into() };
    let sizes: Vec<_> = pieces(&announcement, 4).map(|piece| piece.entries.len()).collect();
    assert_eq!(sizes, [4, 4, 2]);
}

#[test]
fn every_cause_is_counted_and_a_fork_as_one() {
    use crate::ledger::{Embedded, Ledger, Retention};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let (ledger, _appender) = Embedded::open(&path, Retention::default(), 1 << 20).unwrap();
    let registry = prometheus::Registry::new();
    let metrics = crate::metrics::Metrics::new(registry.clone()).unwrap();
    let (_table, writer) = crate::table::new();
    let bound = std::time::Duration::from_secs(5);
    let mut follower =
        super::Follower::new(Ledger::Embedded(ledger), writer, metrics.into(), bound);
    for cause in [Cause::Start, Cause::Epoch, Cause::Fork, Cause::Trimmed, Cause::Unreadable] {
        assert!(crate::metrics::CAUSES.contains(&cause.label()), "{cause}");
        follower.write(Action::Invalidate(cause));
    }
    let count = |name: &str| {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum::<f64>()
    };
    assert!((count("consent_forks_total") - 1.0).abs() < 0.1);
    assert!((count("consent_resyncs_total") - 5.0).abs() < 0.1);
}
