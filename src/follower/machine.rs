//! The follower's core: pure, without I/O, clock or async, so that its histories can be simulated.
//!
//! What it promises: the table is valid only while it holds a state that the ledger had, and is
//! proven only by an answer of the ledger to a question asked at that moment or later. Pub/sub,
//! or whatever else announces changes, makes it fast; the log and its hashes make it right.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::clock::Moment;
use crate::consent::id::Key;
use crate::consent::record::{Record, Revision};
use crate::consent::time::Timestamp;
use crate::ledger::{
    Announcement, Bucket, LogEntry, LogHead, Page, Position, Tail, UnreadableRecord,
};

/// How many of the last revisions' heads are kept, to compare an older claim with.
const MAX_HEADS: usize = 4_096;
/// How many announced entries past a gap wait for the log to close it; the oldest goes first.
const MAX_HELD: usize = 4_096;
/// How many unsatisfied claims are kept; the oldest goes first.
const MAX_CLAIMS: usize = 64;

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// The log was read.
    Page {
        /// When it was asked for: before the question was sent.
        asked: Moment,
        /// The revision that was asked from: what was applied then.
        after: Revision,
        /// The answer.
        page: Page,
    },
    /// A part of the snapshot was read.
    Bucket(Bucket),
    /// Somebody appended.
    Announced(Announcement),
    /// Announcements were lost.
    Missed,
}

/// What is to be done, in order.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    /// Empty the table.
    Clear,
    /// Put this pair's record into the table.
    Apply(Key, Result<Box<Record>, UnreadableRecord>),
    /// Everything up to this revision, recorded at that time, is in the table.
    Applied(Revision, Timestamp),
    /// The table had everything at this moment; the ledger's clock said this.
    Prove(Moment, Timestamp),
    /// The table holds a state that the ledger had.
    Validate,
    /// The table is wrong.
    Invalidate(Cause),
    /// Read the log behind this revision, now.
    Poll(Revision),
    /// Read this part of the snapshot.
    ReadBucket(u32),
    /// A gap between announcements was filled from the log.
    GapRepaired,
}

/// Why a table is not, or no longer, valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Cause {
    /// Nothing was loaded yet.
    #[error("reading the ledger for the first time")]
    Start,
    /// The ledger is another one than before.
    #[error("the ledger was replaced by another one; reading it anew")]
    Epoch,
    /// The ledger lost changes, or holds others in their place.
    #[error("the ledger lost changes or holds others in their place; reading it anew")]
    Fork,
    /// The log no longer holds what comes next.
    #[error("the ledger's log no longer holds what comes next; reading all of it")]
    Trimmed,
    /// An entry of the log cannot be read.
    #[error(
        "an entry of the ledger's log cannot be read: a newer consentd wrote it, or it is \
             damaged"
    )]
    Unreadable,
}

impl Cause {
    /// The cause as a metric's label.
    #[must_use]
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Epoch => "epoch",
            Self::Fork => "fork",
            Self::Trimmed => "trimmed",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A ledger's word that, at a moment, its log ended there.
#[derive(Clone, Copy, Debug)]
struct Claim {
    asked: Moment,
    clock: Timestamp,
    revision: Revision,
    head: LogHead,
}

enum Phase {
    /// Asking where the log ends.
    Starting,
    /// Reading the snapshot.
    Reading,
    /// Following the log up to all labels of the snapshot.
    CatchingUp,
    /// Following.
    Live,
    /// Nothing more can be done.
    Dead,
}

/// The machine.
pub(super) struct Machine {
    phase: Phase,
    /// What is applied.
    at: Position,
    buckets: u32,
    /// The heads of the last applied revisions, up to and with `at`.
    heads: VecDeque<LogHead>,
    /// The labels of the snapshot's parts that are ahead of `at`.
    labels: Vec<Position>,
    held: VecDeque<LogEntry>,
    claims: VecDeque<Claim>,
    actions: Vec<Action>,
}

/// Why an entry cannot be applied behind what is applied.
struct Broken(Cause);

impl Machine {
    /// A machine that has seen nothing, and what it wants first.
    #[must_use]
    pub(super) fn new() -> (Self, Vec<Action>) {
        let nowhere = Position { epoch: [0; 16], revision: 0, head: LogHead::default() };
        let mut machine = Self {
            phase: Phase::Starting,
            at: nowhere,
            buckets: 0,
            heads: VecDeque::new(),
            labels: Vec::new(),
            held: VecDeque::new(),
            claims: VecDeque::new(),
            actions: Vec::new(),
        };
        machine.resync(Cause::Start);
        let first = std::mem::take(&mut machine.actions);
        (machine, first)
    }

    /// What is applied.
    #[must_use]
    pub(super) fn applied(&self) -> Revision {
        self.at.revision
    }

    /// Whether nobody but the answer to a poll moves it on.
    #[must_use]
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::CatchingUp)
    }

    /// Takes what happened; gives what is to be done.
    pub(super) fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Page { asked, after, page } => self.on_page(asked, after, page),
            Event::Bucket(bucket) => self.on_bucket(bucket),
            Event::Announced(announcement) => self.on_announced(&announcement),
            Event::Missed => self.want_page(),
        }
        std::mem::take(&mut self.actions)
    }

    fn want_page(&mut self) {
        if matches!(self.phase, Phase::Live | Phase::CatchingUp) {
            self.actions.push(Action::Poll(self.at.revision));
        }
    }

    /// Starts anew, from a snapshot.
    fn resync(&mut self, cause: Cause) {
        self.actions.push(Action::Invalidate(cause));
        self.held.clear();
        self.claims.clear();
        self.labels.clear();
        self.phase = Phase::Starting;
        if cause == Cause::Unreadable {
            // A snapshot would skip the entry, and with it what a newer version meant by it.
            self.phase = Phase::Dead;
        } else {
            self.actions.push(Action::Poll(self.at.revision));
        }
    }

    fn on_page(&mut self, asked: Moment, after: Revision, page: Page) {
        match self.phase {
            Phase::Dead | Phase::Reading => {}
            Phase::Starting => {
                // The snapshot is read from here on: its parts are no older than this.
                self.at = page.end;
                self.buckets = page.identity.buckets;
                self.heads = VecDeque::from([page.end.head]);
                self.phase = Phase::Reading;
                self.actions.push(Action::Clear);
                self.actions.push(Action::ReadBucket(0));
            }
            Phase::CatchingUp | Phase::Live => match self.follow(asked, after, page) {
                Ok(()) => self.settle(),
                Err(Broken(cause)) => self.resync(cause),
            },
        }
    }

    fn follow(&mut self, asked: Moment, after: Revision, page: Page) -> Result<(), Broken> {
        if page.end.epoch != self.at.epoch {
            return Err(Broken(Cause::Epoch));
        }
        if page.end.revision < after {
            return Err(Broken(Cause::Fork));
        }
        let Tail::Entries(entries) = page.tail else { return Err(Broken(Cause::Trimmed)) };
        let before = self.at.revision;
        let count = entries.len();
        for entry in entries {
            self.take(entry)?;
        }
        let filled = self.at.revision > before && !self.held.is_empty();
        self.take_held()?;
        if filled {
            self.actions.push(Action::GapRepaired);
        }
        if self.at.revision < page.end.revision {
            if count == 0 {
                // The log ends ahead of us and has nothing behind us.
                return Err(Broken(Cause::Trimmed));
            }
            self.actions.push(Action::Poll(self.at.revision));
        }
        if self.claims.len() >= MAX_CLAIMS {
            self.claims.pop_front();
        }
        let Position { revision, head, .. } = page.end;
        self.claims.push_back(Claim { asked, clock: page.clock, revision, head });
        Ok(())
    }

    /// Applies an entry that is next; leaves one that is applied already.
    fn take(&mut self, entry: LogEntry) -> Result<(), Broken> {
        if entry.revision <= self.at.revision {
            let known = self.head_at(entry.revision);
            return match known {
                Some(head) if head != entry.head => Err(Broken(Cause::Fork)),
                _ => Ok(()),
            };
        }
        if entry.revision != self.at.revision.saturating_add(1) {
            return Err(Broken(Cause::Trimmed));
        }
        if entry.previous != self.at.head {
            return Err(Broken(Cause::Fork));
        }
        let Ok(body) = entry.body else { return Err(Broken(Cause::Unreadable)) };
        self.actions.push(Action::Apply(body.key, body.record.map(Box::new)));
        self.actions.push(Action::Applied(entry.revision, body.record_time));
        self.at.revision = entry.revision;
        self.at.head = entry.head;
        if self.heads.len() >= MAX_HEADS {
            self.heads.pop_front();
        }
        self.heads.push_back(entry.head);
        Ok(())
    }

    /// The head that we had at `revision`, where it is kept.
    fn head_at(&self, revision: Revision) -> Option<LogHead> {
        let back = usize::try_from(self.at.revision.checked_sub(revision)?).ok()?;
        let index = self.heads.len().checked_sub(back.saturating_add(1))?;
        self.heads.get(index).copied()
    }

    /// Draws the conclusions from what is applied now: labels reached, claims satisfied.
    fn settle(&mut self) {
        let mut wrong = false;
        let labels = std::mem::take(&mut self.labels);
        for label in labels {
            match self.head_at(label.revision) {
                Some(head) => wrong |= head != label.head,
                None if label.revision > self.at.revision => self.labels.push(label),
                None => wrong = true,
            }
        }
        if wrong {
            return self.resync(Cause::Fork);
        }
        if matches!(self.phase, Phase::CatchingUp) && self.labels.is_empty() {
            self.phase = Phase::Live;
            self.actions.push(Action::Applied(self.at.revision, Timestamp::MIN));
            self.actions.push(Action::Validate);
        }
        if !matches!(self.phase, Phase::Live) {
            return;
        }
        let claims = std::mem::take(&mut self.claims);
        for claim in claims {
            if claim.revision > self.at.revision {
                self.claims.push_back(claim);
                continue;
            }
            match self.head_at(claim.revision) {
                Some(head) if head == claim.head => {
                    self.actions.push(Action::Prove(claim.asked, claim.clock));
                }
                Some(_) => return self.resync(Cause::Fork),
                None => {} // Too old to be compared: the next one will do.
            }
        }
    }

    fn on_bucket(&mut self, bucket: Bucket) {
        if !matches!(self.phase, Phase::Reading) {
            return;
        }
        if bucket.label.epoch != self.at.epoch || bucket.label.revision < self.at.revision {
            return self.resync(Cause::Fork);
        }
        // Which parts an entry of the log is newer than need not be known: from the position that
        // was read before all parts on, every entry is replayed, in order, up to all labels.
        if !self.labels.contains(&bucket.label) {
            self.labels.push(bucket.label);
        }
        for (key, record) in bucket.pairs {
            self.actions.push(Action::Apply(key, record.map(Box::new)));
        }
        let next = bucket.number.saturating_add(1);
        if next < self.buckets {
            self.actions.push(Action::ReadBucket(next));
        } else {
            self.phase = Phase::CatchingUp;
            self.actions.push(Action::Poll(self.at.revision));
        }
    }

    fn on_announced(&mut self, announcement: &Announcement) {
        if !matches!(self.phase, Phase::Live) || announcement.epoch != self.at.epoch {
            return self.want_page();
        }
        for entry in announcement.entries.iter() {
            if entry.revision <= self.at.revision {
                continue;
            }
            let next = entry.revision == self.at.revision.saturating_add(1);
            if next && entry.previous == self.at.head && entry.body.is_ok() {
                let taken = self.take(entry.clone());
                debug_assert!(taken.is_ok(), "what was checked above holds");
            } else {
                // A gap, or something that only the log can settle.
                if self.held.len() >= MAX_HELD {
                    self.held.pop_front();
                }
                self.held.push_back(entry.clone());
            }
        }
        if !self.held.is_empty() {
            self.want_page();
        }
        self.settle();
    }

    /// Applies what was announced past a gap that is closed now, and forgets what is older.
    fn take_held(&mut self) -> Result<(), Broken> {
        let mut held = std::mem::take(&mut self.held);
        while let Some(entry) = held.pop_front() {
            if entry.revision <= self.at.revision {
                continue;
            }
            let next = entry.revision == self.at.revision.saturating_add(1);
            if next && entry.previous == self.at.head && entry.body.is_ok() {
                self.take(entry)?;
            } else {
                held.push_front(entry);
                break;
            }
        }
        self.held = held;
        Ok(())
    }
}

/// A group of announced entries as smaller ones, so that checks need not wait for all of it.
pub(super) fn pieces(
    announcement: &Announcement,
    most: usize,
) -> impl Iterator<Item = Announcement> {
    announcement
        .entries
        .chunks(most.max(1))
        .map(|entries| Announcement { epoch: announcement.epoch, entries: Arc::from(entries) })
}
