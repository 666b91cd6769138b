//! The follower's core: a pure state machine without I/O, clock or async, so that the simulation in
//! `tests/simulation.rs` can run it through millions of histories.
//!
//! Its invariants: the table is valid only while it holds a state that the ledger had, and it is
//! proven only by the answer to a poll that was sent at that moment or later. Announcements make
//! the follower fast; the log and its hash chain make it correct.

mod action;
mod addition;
mod bootstrap;
mod event;
mod head_window;
mod log_page;
mod lost_buckets;
mod resync_cause;
mod scrub;
mod warm_start;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use self::action::Action;
use self::addition::Addition;
use self::bootstrap::Bootstrap;
pub use self::event::{Attempt, Event};
use self::head_window::HeadWindow;
use self::lost_buckets::LostBuckets;
pub use self::resync_cause::ResyncCause;
use self::scrub::Scrub;
pub use self::warm_start::{WarmStart, WarmStartRefusal};
use consentd_core::businesses::Businesses;
use consentd_core::record::Revision;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Announcement, Bucket, Epoch, LogEntry, LogHead, Page, Position, Tail, UndecodedEntry,
};
use consentd_os::clock::Moment;

/// How many announced entries past a gap are kept until the log closes the gap. Beyond that the
/// oldest is dropped; the log brings it again.
const MAX_OUT_OF_ORDER: usize = 4_096;

/// What a poll proves once the table holds its end: that at the moment when it was sent, the log
/// ended there or earlier.
#[derive(Clone, Copy, Debug)]
struct EndProof {
    asked: Moment,
    clock: Timestamp,
    revision: Revision,
    head: LogHead,
}

enum Phase {
    /// Waiting for a first page, which says where the log ends.
    Starting,
    /// Reading all buckets while the log is followed.
    Loading(Bootstrap),
    /// Following the log from a snapshot of the table, which may hold changes up to this position.
    Warming(Position),
    /// Following the log. The table is valid.
    Live,
    /// An entry of the log could not be read. Only another ledger, or one that has lost that entry,
    /// is followed again.
    Dead,
}

/// Decides, from what happened to the ledger, what to do to the table and what to read next.
pub struct StateMachine {
    phase: Phase,
    attempt: Attempt,
    /// The position that is applied, and the last heads that led to it.
    window: HeadWindow,
    /// The snapshot of a table to start from, until the first page decides whether it can be used.
    warm: Option<WarmStart>,
    /// How many buckets the ledger has.
    buckets: u32,
    /// The ledger that was loaded last, and how often an operator had accepted it by then.
    accepted: Option<(Epoch, u64)>,
    /// Announced entries past a gap, by revision.
    out_of_order: BTreeMap<Revision, LogEntry>,
    /// Proofs whose revision is not applied yet, oldest first.
    end_proofs: VecDeque<EndProof>,
    scrub: Scrub,
    lost_buckets: LostBuckets,
    /// The businesses that the table holds.
    held: Businesses,
    /// The businesses that it is to hold.
    wanted: Businesses,
    /// The businesses that are wanted and not held, while they are added.
    addition: Option<Addition>,
    /// How many additions were started.
    additions: u64,
    actions: Vec<Action>,
}

/// Why a page or an entry does not continue what is applied: the ledger must be read again.
struct Mismatch(ResyncCause);

impl StateMachine {
    /// A machine that starts by reading the whole ledger, and its first actions.
    #[must_use]
    pub fn new() -> (Self, Vec<Action>) {
        Self::from(None)
    }

    /// A machine that starts from a snapshot of the table, if there is one that can be used.
    #[must_use]
    pub fn from(warm: Option<WarmStart>) -> (Self, Vec<Action>) {
        let nowhere = Position { epoch: [0; 16], revision: 0, head: LogHead::default() };
        let mut machine = Self {
            phase: Phase::Starting,
            attempt: 0,
            // The first page is read from here. After a snapshot it may be all that is needed.
            window: HeadWindow::from(warm.map_or(nowhere, |warm| warm.from)),
            warm,
            buckets: 1,
            accepted: None,
            out_of_order: BTreeMap::new(),
            end_proofs: VecDeque::new(),
            scrub: Scrub::default(),
            lost_buckets: LostBuckets::default(),
            held: Businesses::All,
            wanted: Businesses::All,
            addition: None,
            additions: 0,
            actions: Vec::new(),
        };
        machine.resync(ResyncCause::Start);
        let first = std::mem::take(&mut machine.actions);
        (machine, first)
    }

    /// The same machine for a table that holds these businesses from the start.
    #[must_use]
    pub fn holding(mut self, businesses: Businesses) -> Self {
        self.held = businesses.clone();
        self.wanted = businesses;
        self
    }

    /// The revision that is applied.
    #[must_use]
    pub fn applied(&self) -> Revision {
        self.window.end().revision
    }

    /// The position that is applied.
    #[must_use]
    pub fn position(&self) -> Position {
        self.window.end()
    }

    /// The log's head at a revision that was applied, if it is one of the last few thousand.
    #[must_use]
    pub fn head_at(&self, revision: Revision) -> Option<LogHead> {
        self.window.head_at(revision)
    }

    /// How often an operator had accepted the ledger that is followed; `None` unless the machine is
    /// [live](Self::is_live).
    #[must_use]
    pub fn accepted(&self) -> Option<u64> {
        self.accepted.map(|(_, accepted)| accepted).filter(|_| self.is_live())
    }

    /// Whether the table holds the ledger and follows its log.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// How many announced entries, end proofs and buckets wait for the log to reach them.
    #[must_use]
    pub fn waiting(&self) -> [usize; 3] {
        let buckets = match &self.phase {
            Phase::Loading(bootstrap) => bootstrap.waiting(),
            _ => usize::from(self.scrub.is_ahead()),
        };
        [self.out_of_order.len(), self.end_proofs.len(), buckets]
    }

    /// The attempt that requests made now belong to.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Handles an event; returns what to do, in order.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Page { attempt, asked, after, page } if attempt == self.attempt => {
                self.on_page(asked, after, page);
            }
            Event::Bucket { attempt, addition, is_added, arrived, bucket }
                if attempt == self.attempt && addition == self.additions =>
            {
                if is_added {
                    self.on_added(arrived, bucket);
                } else {
                    self.on_bucket(arrived, bucket);
                }
            }
            // The ledger that was followed is lost: a ledger that appears there later is another one.
            Event::Missing { attempt }
                if attempt == self.attempt && !matches!(self.phase, Phase::Starting) =>
            {
                self.resync(ResyncCause::Missing);
            }
            Event::Lost { attempt, number } if attempt == self.attempt => self.on_lost(number),
            // Answers to requests from before a resync or an addition, or a missing ledger that is known
            // already.
            Event::Page { .. }
            | Event::Bucket { .. }
            | Event::Lost { .. }
            | Event::Missing { .. } => {}
            Event::Announced(announcement) => self.on_announced(&announcement),
            Event::Missed => self.actions.push(Action::Poll),
            Event::ScrubDue => self.scrub(),
            Event::Hold(businesses) => self.on_hold(businesses),
        }
        std::mem::take(&mut self.actions)
    }

    /// Invalidates the table and starts again with a new attempt.
    fn resync(&mut self, cause: ResyncCause) {
        self.actions.push(Action::Invalidate(cause));
        self.out_of_order.clear();
        self.end_proofs.clear();
        self.scrub.reset();
        self.lost_buckets = LostBuckets::default();
        // What was added so far is loaded with the rest.
        self.addition = None;
        self.attempt = self.attempt.saturating_add(1);
        // Reading the buckets would skip the unreadable entry, and with it what a newer version of
        // consentd meant by it.
        self.phase = if cause == ResyncCause::Unreadable { Phase::Dead } else { Phase::Starting };
        self.actions.push(Action::Poll);
    }

    fn on_page(&mut self, asked: Moment, after: Revision, page: Page) {
        let warms = matches!(self.phase, Phase::Starting) && self.start_warm(&page);
        match self.phase {
            Phase::Dead if page.end.epoch != self.window.end().epoch => {
                self.resync(ResyncCause::Epoch);
            }
            Phase::Dead if self.unreadable_entry_was_lost(&page) => self.resync(ResyncCause::Fork),
            Phase::Dead => {}
            Phase::Starting if !warms => self.start_loading(&page),
            _ => match self.follow(asked, after, page) {
                Ok(()) => self.settle(),
                Err(Mismatch(cause)) => self.resync(cause),
            },
        }
    }

    /// Restores the snapshot of the table and follows the log from there, if this page is of the
    /// ledger that the snapshot was taken of; returns whether it is.
    fn start_warm(&mut self, page: &Page) -> bool {
        let Some(warm) = self.warm.take() else { return false };
        if let Err(unused) = warm.check(page) {
            self.actions.push(Action::RejectWarmStart(unused));
            return false;
        }
        self.buckets = page.identity.buckets.max(1);
        self.accepted = Some((warm.from.epoch, warm.accepted));
        self.phase = Phase::Warming(warm.until);
        let (identity, clock) = (Arc::clone(&page.identity), page.clock);
        self.actions.push(Action::RestoreSnapshot { identity, clock });
        true
    }

    /// Whether the ledger has lost the entry that could not be read: the log ends before it, or has
    /// a readable entry at its revision.
    ///
    /// An entry that was only trimmed is not lost: its effect is in the records, and must not be
    /// skipped.
    fn unreadable_entry_was_lost(&self, page: &Page) -> bool {
        let applied = self.applied();
        let is_next = |entry: &&LogEntry| entry.revision == applied.saturating_add(1);
        let next = match &page.tail {
            Tail::Entries(entries) => entries.iter().find(is_next),
            Tail::Trimmed => None,
        };
        let is_readable = |entry: &LogEntry| !matches!(entry.body, Err(UndecodedEntry::Unreadable));
        page.end.revision <= applied || next.is_some_and(is_readable)
    }

    /// Starts to read the buckets and to follow the log from the end of this page. The buckets are
    /// read later, so they are no older than that.
    fn start_loading(&mut self, page: &Page) {
        self.window = HeadWindow::from(page.end);
        self.buckets = page.identity.buckets.max(1);
        self.hold_wanted();
        let known = self.accepted.replace((page.end.epoch, page.accepted));
        let mut bootstrap = Bootstrap::new(self.buckets);
        let (identity, clock) = (Arc::clone(&page.identity), page.clock);
        // Acceptance is judged by the ledger's own count and not by the cause of this resync: an
        // operator may have accepted the ledger after a resync for another cause had begun, and
        // must not have to accept it twice. The acceptances of another ledger came before we knew
        // it, so they say nothing about the denials that we retain.
        let forget = known
            .is_some_and(|(epoch, accepted)| epoch == page.end.epoch && page.accepted > accepted);
        self.actions.push(Action::ResetTable { identity, clock, forget });
        self.actions.extend(bootstrap.more().map(Action::ReadBucket));
        self.phase = Phase::Loading(bootstrap);
    }

    /// Uses the end proofs whose revision is applied by now; makes the table valid with the first.
    fn settle(&mut self) {
        if let Phase::Loading(bootstrap) = &mut self.phase {
            self.actions.extend(bootstrap.more().map(Action::ReadBucket));
            if !bootstrap.is_whole() {
                return;
            }
        }
        if matches!(self.phase, Phase::Warming(until) if self.applied() < until.revision) {
            return;
        }
        let proofs = std::mem::take(&mut self.end_proofs);
        for proof in proofs {
            if proof.revision > self.applied() {
                self.end_proofs.push_back(proof);
                continue;
            }
            match self.window.head_at(proof.revision) {
                Some(head) if head == proof.head => {
                    self.actions.push(Action::SetProof(proof.asked, proof.clock));
                    if !matches!(self.phase, Phase::Live) {
                        self.phase = Phase::Live;
                        self.actions.push(Action::AdvanceRevision(self.applied(), Timestamp::MIN));
                        self.actions.push(Action::Validate);
                    }
                }
                Some(_) => return self.resync(ResyncCause::Fork),
                None => {} // Its revision has left the window. A later proof will do.
            }
        }
        self.start_addition();
    }

    fn on_bucket(&mut self, arrived: Moment, bucket: Bucket) {
        match &mut self.phase {
            Phase::Loading(bootstrap) => {
                if bootstrap.on_bucket(&bucket, arrived, &self.window) {
                    let bucket = self.held_of(bucket);
                    self.actions.push(Action::LoadBucket(bucket));
                }
                self.settle();
                if matches!(&self.phase, Phase::Loading(bootstrap) if bootstrap.is_whole()) {
                    self.actions.push(Action::Poll);
                }
            }
            Phase::Live if self.lost_buckets.is_asked(bucket.number) => {
                // If the log is not where the bucket was read, it is read again after the next page.
                if bucket.label == self.window.end() || self.window.is_untouched(&bucket) {
                    self.lost_buckets.remove(bucket.number);
                    let bucket = self.held_of(bucket);
                    self.actions.push(Action::CompareBucket(bucket));
                } else {
                    self.lost_buckets.again(bucket.number);
                }
            }
            Phase::Live if self.scrub.is_reading(bucket.number) => self.on_scrubbed(bucket),
            Phase::Starting | Phase::Warming(_) | Phase::Live | Phase::Dead => {}
        }
    }

    fn on_announced(&mut self, announcement: &Announcement) {
        let following = !matches!(self.phase, Phase::Starting | Phase::Dead);
        if !following || announcement.epoch != self.window.end().epoch {
            return self.actions.push(Action::Poll);
        }
        let applied = self.applied();
        for entry in announcement.entries.iter().filter(|entry| entry.revision > applied) {
            if self.out_of_order.len() >= MAX_OUT_OF_ORDER
                && !self.out_of_order.contains_key(&entry.revision)
            {
                self.out_of_order.pop_first();
            }
            self.out_of_order.entry(entry.revision).or_insert_with(|| entry.clone());
        }
        // The next entry is applied at once. Entries past a gap, or with another hash before them,
        // wait for the log.
        if let Err(Mismatch(cause)) = self.apply_out_of_order() {
            return self.resync(cause);
        }
        if !self.out_of_order.is_empty() {
            self.actions.push(Action::Poll);
        }
        self.settle();
    }
}

/// Splits an announcement into ones of at most `most` entries, so that checks run between them.
pub fn pieces(announcement: &Announcement, most: usize) -> impl Iterator<Item = Announcement> {
    announcement
        .entries
        .chunks(most.max(1))
        .map(|entries| Announcement { epoch: announcement.epoch, entries: Arc::from(entries) })
}
