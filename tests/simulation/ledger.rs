//! A ledger that can be forked, trimmed, flushed and written to behind its back. It shares no code
//! with the real ones: a log is a tree of nodes, each of which knows the whole state that it made.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use consentd_core::id::{KEY_VERSION, Key, KeySecret};
use consentd_core::partition::Layout;
use consentd_core::record::{Erased, Link, Record, Revision};
use consentd_core::scope::{Category, Scope};
use consentd_core::standing::{Facts, ResolvedState};
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Bucket, Identity, LogBody, LogEntry, Page, Position, Tail, UndecodedEntry, UnreadableRecord,
    Version, bucket_of,
};

use crate::held::business_of;
use crate::random::Random;

/// Few users, so that events meet.
pub const USERS: usize = 6;
pub const BUSINESS: &str = "shop";
/// What is asked about: every class, the topics that are spoken of, and one that never is.
pub const CATEGORIES: [&str; 7] = [
    "marketing",
    "marketing.news",
    "marketing.other",
    "utility",
    "utility.orders",
    "service",
    "authentication",
];
/// The secrets that a ledger's keys may be made with.
pub const SECRETS: usize = 2;

/// The template that stands in the place of the last user, in histories of a ledger of several partitions.
pub const TEMPLATE: &str = "template:news:en";

thread_local! {
    /// Whether the last user of this thread's history is a template.
    pub static HAS_TEMPLATE: Cell<bool> = const { Cell::new(false) };
}

pub fn user(number: usize) -> &'static str {
    const NAMES: [&str; USERS] =
        ["15550000000", "15550000001", "15550000002", "15550000003", "15550000004", "15550000005"];
    if number == USERS - 1 && HAS_TEMPLATE.get() {
        return TEMPLATE;
    }
    NAMES[number]
}

/// A category, parsed once: it is asked about at every step.
pub fn category(number: usize) -> Category<'static> {
    static PARSED: LazyLock<[Category<'static>; CATEGORIES.len()]> =
        LazyLock::new(|| CATEGORIES.map(|name| Category::parse(name).unwrap()));
    PARSED[number]
}

pub fn secret(number: usize) -> KeySecret {
    KeySecret::new(&[u8::try_from(number + 1).unwrap(); 16])
}

/// Whether a word on a scope is about a category. Written out again: the oracle must not rest on
/// the code that it judges.
pub fn covers(scope: &Scope, category: usize) -> bool {
    let category = self::category(category);
    match scope {
        Scope::All => true,
        Scope::Class(class) => *class == category.class,
        Scope::Topic(class, topic) => *class == category.class && category.topic == Some(&**topic),
    }
}

/// A pair's record, and what it says of every category.
pub struct Said {
    pub state: State,
    pub facts: [Facts; CATEGORIES.len()],
    /// The same person's other ids.
    pub links: Vec<Link>,
    /// When what came before was erased, if it was.
    pub erased: Option<Timestamp>,
    /// Whether this version can read it.
    pub readable: bool,
}

impl Said {
    pub fn new(state: State, readable: bool) -> Self {
        let resolved = ResolvedState::of(&state);
        let facts = std::array::from_fn(|number| resolved.facts(category(number)));
        Self { state, facts, links: Vec::new(), erased: None, readable }
    }

    /// What a record says that this version can read.
    pub fn of(record: Record) -> Self {
        let erased = record.erased.map(|erased| erased.time);
        Self::new(record.state, true).linked(record.links).erased_at(erased)
    }

    pub fn linked(self, links: Vec<Link>) -> Self {
        Self { links, ..self }
    }

    pub fn erased_at(self, erased: Option<Timestamp>) -> Self {
        Self { erased, ..self }
    }

    /// Whether this is a tombstone and no more. Its entry in the log has no user id.
    pub fn is_tombstone(&self) -> bool {
        self.record().is_ok_and(|record| record.is_tombstone())
    }

    /// Whether the record names another user as the same person.
    pub fn names(&self, number: usize) -> bool {
        self.links.iter().any(|link| link.user_id == user(number))
    }

    pub fn record(&self) -> Result<Record, UnreadableRecord> {
        if !self.readable {
            return Err(UnreadableRecord::Newer { format: 99 });
        }
        let (state, links) = (self.state.clone(), self.links.clone());
        let erased = self.erased.map(|time| Erased { time, history_len: 0, chain: [0; 32] });
        Ok(Record { state, links, erased: erased.map(Box::new), ..Record::default() })
    }
}

pub type Pairs = [Option<Rc<Said>>; USERS];

/// A place in a log: where it ended once, with all that was recorded by then.
pub struct Node {
    pub position: Position,
    pub pairs: Pairs,
    parent: Option<Rc<Node>>,
    /// What led here from the parent.
    entry: Option<LogEntry>,
}

impl Node {
    /// The pair that was recorded here, and how; nothing where a ledger begins.
    pub fn said(&self) -> Option<(usize, Rc<Said>)> {
        let before = &self.parent.as_ref()?.pairs;
        let same = |(one, other): (&Option<Rc<Said>>, &Option<Rc<Said>>)| match (one, other) {
            (Some(one), Some(other)) => Rc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        let number = self.pairs.iter().zip(before).position(|both| !same(both))?;
        Some((number, self.pairs[number].clone()?))
    }

    /// The places behind a revision that led here, oldest first, without this one.
    pub fn way_from(&self, revision: Revision) -> Vec<Rc<Node>> {
        let mut way = Vec::new();
        let mut node = self.parent.as_ref();
        while let Some(at) = node.filter(|node| node.position.revision > revision) {
            way.push(Rc::clone(at));
            node = at.parent.as_ref();
        }
        way.reverse();
        way
    }
}

/// The place that led to both; none where they are of different ledgers.
pub fn fork(mut one: &Rc<Node>, mut other: &Rc<Node>) -> Option<Rc<Node>> {
    while one.position != other.position {
        if one.position.revision >= other.position.revision {
            one = one.parent.as_ref()?;
        } else {
            other = other.parent.as_ref()?;
        }
    }
    Some(Rc::clone(one))
}

/// What a recorder read of a pair.
#[derive(Clone)]
pub struct Stored {
    /// The place at which it was written: two branches never share one.
    pub version: (Revision, [u8; 20]),
    pub said: Rc<Said>,
}

/// One server's data. A clone is a replica of it, or a backup.
#[derive(Clone)]
pub struct Server {
    pub identity: Arc<Identity>,
    pub secret: usize,
    pub accepted: u64,
    pub node: Rc<Node>,
    /// Entries up to here are gone.
    pub trimmed: Revision,
    /// What buckets hold: what the log says, and what somebody wrote beside it.
    pub stored: [Option<Stored>; USERS],
    /// Buckets that were deleted: they are neither read nor written.
    pub lost: BTreeSet<u32>,
    /// Its clock less the true time, in milliseconds.
    pub clock: i64,
    keys: [Key; USERS],
}

impl Server {
    /// A new ledger: empty, or a copy of what was there, which ends where that does, by the same
    /// hash, though its epoch and its buckets are others.
    pub fn new(
        random: &mut Random,
        secret: usize,
        buckets: u32,
        copied: Option<&Rc<Node>>,
    ) -> Self {
        let (revision, head) =
            copied.map_or((0, [0; 20]), |node| (node.position.revision, node.position.head));
        let pairs: Pairs = copied.map(|node| node.pairs.clone()).unwrap_or_default();
        let epoch = random.bytes();
        let position = Position { epoch, revision, head };
        let key = self::secret(secret);
        let stored =
            pairs.clone().map(|said| said.map(|said| Stored { version: (revision, head), said }));
        let keys =
            std::array::from_fn(|number| key.read(user(number), business_of(number)).unwrap());
        Self {
            identity: Arc::new(Identity {
                epoch,
                secret: key,
                key_version: KEY_VERSION,
                has_nameless: false,
                layout: Layout::SINGLE,
                buckets,
            }),
            secret,
            accepted: 0,
            node: Rc::new(Node { position, pairs, parent: None, entry: None }),
            trimmed: revision,
            stored,
            lost: BTreeSet::new(),
            clock: 0,
            keys,
        }
    }

    /// The same as one partition of a ledger that is divided so.
    pub fn in_layout(mut self, layout: Layout) -> Self {
        Arc::make_mut(&mut self.identity).layout = layout;
        self
    }

    pub fn end(&self) -> Position {
        self.node.position
    }

    /// Whether that place is on the way to where its log ends.
    pub fn has(&self, position: Position) -> bool {
        let way = self.node.way_from(position.revision.saturating_sub(1));
        self.end() == position || way.first().is_some_and(|first| first.position == position)
    }

    /// Whether the log has, or had, a record of this version.
    pub fn has_version(&self, version: Version) -> bool {
        let mut node = Some(&self.node);
        while let Some(at) = node.filter(|node| node.position.revision > version.revision) {
            node = at.parent.as_ref();
        }
        let mark = |node: &Rc<Node>| {
            u64::from_be_bytes(node.position.head[..8].try_into().unwrap()) == version.head_prefix
        };
        version.revision == 0 || node.is_none_or(mark)
    }

    /// The user whose key this is, by this ledger's secret.
    pub fn number_of(&self, key: Key) -> Option<usize> {
        self.keys.iter().position(|known| *known == key)
    }

    pub fn clock(&self, now: Timestamp) -> Timestamp {
        Timestamp::saturating_from_millis(now.as_millis() + self.clock)
    }

    /// Writes a record; gives the entry that tells of it.
    pub fn append(
        &mut self,
        random: &mut Random,
        number: usize,
        said: Rc<Said>,
        now: Timestamp,
        readable_entry: bool,
    ) -> LogEntry {
        let Position { epoch, revision, head: previous } = self.end();
        let (revision, head) = (revision + 1, random.bytes());
        let (user_id, business_id) =
            if said.is_tombstone() { ("", "") } else { (user(number), business_of(number)) };
        let body = LogBody {
            key: self.keys[number],
            user_id: user_id.to_owned(),
            business_id: business_id.to_owned(),
            record: said.record(),
            record_time: self.clock(now),
        };
        let body = if readable_entry { Ok(body) } else { Err(UndecodedEntry::Unreadable) };
        let entry = LogEntry { revision, previous, head, body };
        let mut pairs = self.node.pairs.clone();
        pairs[number] = Some(Rc::clone(&said));
        self.stored[number] = Some(Stored { version: (revision, head), said });
        self.node = Rc::new(Node {
            position: Position { epoch, revision, head },
            pairs,
            parent: Some(Rc::clone(&self.node)),
            entry: Some(entry.clone()),
        });
        entry
    }

    /// Whether an entry that the log still holds cannot be read.
    pub fn has_unreadable_entry(&self) -> bool {
        let mut node = Some(&self.node);
        while let Some(at) = node.filter(|node| node.position.revision > self.trimmed) {
            if at.entry.as_ref().is_some_and(|entry| entry.body.is_err()) {
                return true;
            }
            node = at.parent.as_ref();
        }
        false
    }

    pub fn page(&self, after: Revision, most: usize, now: Timestamp) -> Page {
        let end = self.end();
        let tail = if after > end.revision || after < self.trimmed && after != end.revision {
            Tail::Trimmed
        } else {
            let mut entries = Vec::new();
            let mut node = &self.node;
            while node.position.revision > after {
                entries.extend(node.entry.as_ref());
                let Some(parent) = &node.parent else { break };
                node = parent;
            }
            Tail::Entries(entries.into_iter().rev().take(most).cloned().collect())
        };
        Page {
            identity: Arc::clone(&self.identity),
            end,
            accepted: self.accepted,
            clock: self.clock(now),
            tail,
        }
    }

    /// The bucket that a user's pair lies in.
    pub fn bucket_of(&self, number: usize) -> u32 {
        bucket_of(self.keys[number], self.identity.buckets)
    }

    /// The key of a user's pair.
    pub fn key_of(&self, number: usize) -> Key {
        self.keys[number]
    }

    /// Whether the bucket of a user's pair was deleted.
    pub fn has_lost(&self, number: usize) -> bool {
        self.lost.contains(&self.bucket_of(number))
    }

    pub fn bucket(&self, number: u32) -> Bucket {
        let buckets = self.identity.buckets;
        let pairs = self.keys.iter().zip(&self.stored);
        let pairs = pairs.filter(|(key, _)| bucket_of(**key, buckets) == number);
        let pairs = pairs
            .filter_map(|(key, stored)| Some((*key, stored.as_ref()?.said.record())))
            .collect();
        Bucket { number, label: self.end(), pairs }
    }
}
