//! The follower's core: pure, without I/O, clock or async, so that its histories can be simulated.
//!
//! What it promises: the table is valid only while it holds a state that the ledger had, and is
//! proven only by an answer of the ledger to a question asked at that moment or later. Pub/sub,
//! or whatever else announces changes, makes it fast; the log and its hashes make it right.

mod action;
mod bootstrap;
mod event;
mod head_window;
mod lost_buckets;
mod resync_cause;
mod warm_start;

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use self::action::Action;
use self::bootstrap::Bootstrap;
pub use self::event::{Attempt, Event};
use self::head_window::HeadWindow;
use self::lost_buckets::LostBuckets;
pub use self::resync_cause::ResyncCause;
pub use self::warm_start::{WarmStart, WarmStartRefusal};
use consentd_core::record::Revision;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Announcement, Bucket, Epoch, LogEntry, LogHead, Page, Position, Tail, bucket_of,
};
use consentd_os::clock::Moment;

/// How many announced entries past a gap wait for the log to close it; the oldest goes first.
const MAX_OUT_OF_ORDER: usize = 4_096;
/// How many unsatisfied claims are kept; the oldest goes first.
const MAX_END_PROOFS: usize = 64;

/// A ledger's word that, at a moment, its log ended there.
#[derive(Clone, Copy, Debug)]
struct EndProof {
    asked: Moment,
    clock: Timestamp,
    revision: Revision,
    head: LogHead,
}

enum Phase {
    /// Asking where the log ends.
    Starting,
    /// Reading the snapshot, and following the log meanwhile.
    Loading(Bootstrap),
    /// Following the log behind a saved table, at least to here.
    Warming(Position),
    /// Following.
    Live,
    /// An entry could not be read: nothing more can be done with this ledger.
    Dead,
}

/// The machine.
pub struct StateMachine {
    phase: Phase,
    attempt: Attempt,
    /// What is applied, and how it came to be.
    window: HeadWindow,
    /// The table that was saved, until a ledger was heard of.
    warm: Option<WarmStart>,
    buckets: u32,
    /// The ledger whose snapshot was begun last, and how often an operator had accepted it by then.
    accepted: Option<(Epoch, u64)>,
    out_of_order: BTreeMap<Revision, LogEntry>,
    end_proofs: VecDeque<EndProof>,
    /// The bucket to be compared next, and whether it was asked for.
    scrub: (u32, bool),
    /// Buckets that the ledger has lost, and those of them that were asked for again.
    lost_buckets: LostBuckets,
    /// A bucket that was read ahead of what is applied, to be compared once that is reached.
    ahead: Option<Bucket>,
    actions: Vec<Action>,
}

/// Why an entry cannot be applied behind what is applied.
struct Mismatch(ResyncCause);

impl StateMachine {
    /// A machine that has seen nothing, and what it wants first.
    #[must_use]
    pub fn new() -> (Self, Vec<Action>) {
        Self::from(None)
    }

    /// The same, beside a table that was saved before.
    #[must_use]
    pub fn from(warm: Option<WarmStart>) -> (Self, Vec<Action>) {
        let nowhere = Position { epoch: [0; 16], revision: 0, head: LogHead::default() };
        let mut machine = Self {
            phase: Phase::Starting,
            attempt: 0,
            // The first page is asked for from there, and may be all that is needed.
            window: HeadWindow::from(warm.map_or(nowhere, |warm| warm.from)),
            warm,
            buckets: 1,
            accepted: None,
            out_of_order: BTreeMap::new(),
            end_proofs: VecDeque::new(),
            scrub: (0, false),
            lost_buckets: LostBuckets::default(),
            ahead: None,
            actions: Vec::new(),
        };
        machine.resync(ResyncCause::Start);
        let first = std::mem::take(&mut machine.actions);
        (machine, first)
    }

    /// What is applied.
    #[must_use]
    pub fn applied(&self) -> Revision {
        self.window.end().revision
    }

    /// The position of what is applied.
    #[must_use]
    pub fn position(&self) -> Position {
        self.window.end()
    }

    /// The head that it had at one of the last revisions, where it is kept.
    #[must_use]
    pub fn head_at(&self, revision: Revision) -> Option<LogHead> {
        self.window.head_at(revision)
    }

    /// How often an operator had accepted the ledger that is followed; none while it is not
    /// followed without a gap.
    #[must_use]
    pub fn accepted(&self) -> Option<u64> {
        self.accepted.map(|(_, accepted)| accepted).filter(|_| self.is_live())
    }

    /// Whether it follows a ledger without a gap.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// How many announcements, claims and buckets wait for the log to get to them.
    #[must_use]
    pub fn waiting(&self) -> [usize; 3] {
        let labels = match &self.phase {
            Phase::Loading(bootstrap) => bootstrap.waiting(),
            _ => usize::from(self.ahead.is_some()),
        };
        [self.out_of_order.len(), self.end_proofs.len(), labels]
    }

    /// The attempt that questions asked now belong to.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Takes what happened; gives what is to be done.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Page { attempt, asked, after, page } if attempt == self.attempt => {
                self.on_page(asked, after, page);
            }
            Event::Bucket { attempt, arrived, bucket } if attempt == self.attempt => {
                self.on_bucket(arrived, bucket);
            }
            // What was there is lost: whatever comes in its place is another ledger.
            Event::Missing { attempt }
                if attempt == self.attempt && !matches!(self.phase, Phase::Starting) =>
            {
                self.resync(ResyncCause::Missing);
            }
            Event::Lost { attempt, number } if attempt == self.attempt => self.on_lost(number),
            // Asked for before a resync, or known already.
            Event::Page { .. }
            | Event::Bucket { .. }
            | Event::Lost { .. }
            | Event::Missing { .. } => {}
            Event::Announced(announcement) => self.on_announced(&announcement),
            Event::Missed => self.actions.push(Action::Poll),
            Event::ScrubDue => self.scrub(),
        }
        std::mem::take(&mut self.actions)
    }

    /// Starts anew, from a bootstrap.
    fn resync(&mut self, cause: ResyncCause) {
        self.actions.push(Action::Invalidate(cause));
        self.out_of_order.clear();
        self.end_proofs.clear();
        self.ahead = None;
        self.scrub.1 = false;
        self.lost_buckets = LostBuckets::default();
        self.attempt = self.attempt.saturating_add(1);
        // A snapshot would skip an entry that cannot be read, and what a newer version meant by it.
        self.phase = if cause == ResyncCause::Unreadable { Phase::Dead } else { Phase::Starting };
        self.actions.push(Action::Poll);
    }

    fn on_page(&mut self, asked: Moment, after: Revision, page: Page) {
        let warms = matches!(self.phase, Phase::Starting) && self.is_warm(&page);
        match self.phase {
            Phase::Dead if page.end.epoch != self.window.end().epoch => {
                self.resync(ResyncCause::Epoch);
            }
            Phase::Dead if self.is_gone(&page) => self.resync(ResyncCause::Fork),
            Phase::Dead => {}
            Phase::Starting if !warms => self.begin(&page),
            _ => match self.follow(asked, after, page) {
                Ok(()) => self.settle(),
                Err(Mismatch(cause)) => self.resync(cause),
            },
        }
    }

    /// Whether there is a saved table of this very ledger. It is then put in its place, and the
    /// log followed from there, as if the table had been here all the time.
    fn is_warm(&mut self, page: &Page) -> bool {
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

    /// Whether the entry that could not be read was lost: the log ends before it, or holds another
    /// in its place. Where it was trimmed, what it meant is in the records, and not to be skipped.
    fn is_gone(&self, page: &Page) -> bool {
        let applied = self.applied();
        let next = |entry: &&LogEntry| entry.revision == applied.saturating_add(1);
        let next = match &page.tail {
            Tail::Entries(entries) => entries.iter().find(next),
            Tail::Trimmed => None,
        };
        page.end.revision <= applied || next.is_some_and(|entry| entry.body.is_ok())
    }

    /// From here on the log is followed, and the snapshot read: its parts are no older than this.
    fn begin(&mut self, page: &Page) {
        self.window = HeadWindow::from(page.end);
        self.buckets = page.identity.buckets.max(1);
        let known = self.accepted.replace((page.end.epoch, page.accepted));
        let mut bootstrap = Bootstrap::new(self.buckets);
        let (identity, clock) = (Arc::clone(&page.identity), page.clock);
        // By what the ledger says and not by why it is read: an operator may have accepted it
        // after something else had made us read it anew, and must not have to say so again. Of
        // another ledger it was said before we knew it, so not of what we remember.
        let forget = known
            .is_some_and(|(epoch, accepted)| epoch == page.end.epoch && page.accepted > accepted);
        self.actions.push(Action::ResetTable { identity, clock, forget });
        self.actions.extend(bootstrap.more().map(Action::ReadBucket));
        self.phase = Phase::Loading(bootstrap);
    }

    fn follow(&mut self, asked: Moment, after: Revision, page: Page) -> Result<(), Mismatch> {
        let Page { end, tail, clock, accepted, .. } = page;
        if end.epoch != self.window.end().epoch {
            return Err(Mismatch(ResyncCause::Epoch));
        }
        // What was saved is what the ledger had: one that ends before it has lost something.
        let least = if let Phase::Warming(until) = self.phase { until.revision } else { after };
        // So has one that ends before it ended, though what came then was not told yet.
        let told = self.end_proofs.back().map_or(0, |claim| claim.revision);
        if end.revision < after.max(least).max(told) {
            return Err(Mismatch(ResyncCause::Fork));
        }
        match self.accepted.map_or(accepted, |(_, known)| known).cmp(&accepted) {
            Ordering::Less => return Err(Mismatch(ResyncCause::Accepted)),
            // An old backup, or a replica that lags, knows less of it than we do. Nobody has
            // accepted that.
            Ordering::Greater => return Err(Mismatch(ResyncCause::Fork)),
            Ordering::Equal => {}
        }
        let Tail::Entries(entries) = tail else { return Err(Mismatch(ResyncCause::Trimmed)) };
        let before = self.applied();
        let count = entries.len();
        for entry in entries {
            self.take(entry)?;
        }
        let filled = self.applied() > before && !self.out_of_order.is_empty();
        self.apply_out_of_order()?;
        if filled {
            self.actions.push(Action::GapRepaired);
        }
        if self.applied() < end.revision && count == 0 {
            // The log ends ahead of us and has nothing behind us.
            return Err(Mismatch(ResyncCause::Trimmed));
        }
        if self.window.head_at(end.revision).is_some_and(|head| head != end.head) {
            return Err(Mismatch(ResyncCause::Fork));
        }
        if self.applied() < end.revision
            || (self.applied() > before && !self.out_of_order.is_empty())
        {
            self.actions.push(Action::Poll);
        } else {
            // Past an end that does not move: of a branch that is none, or in the next page.
            self.out_of_order.clear();
        }
        if self.end_proofs.len() >= MAX_END_PROOFS {
            self.end_proofs.pop_front();
        }
        let Position { revision, head, .. } = end;
        self.end_proofs.push_back(EndProof { asked, clock, revision, head });
        if let Phase::Loading(bootstrap) = &mut self.phase {
            let lost = bootstrap.on_end(asked, end.revision);
            self.actions.extend(lost.into_iter().map(Action::UnloadBucket));
            self.actions.extend(bootstrap.again().into_iter().map(Action::ReadBucket));
        } else if self.is_live() {
            self.actions.extend(self.lost_buckets.more().into_iter().map(Action::ReadBucket));
        }
        Ok(())
    }

    /// Applies an entry that is next; leaves one that is applied already.
    fn take(&mut self, entry: LogEntry) -> Result<(), Mismatch> {
        let applied = self.applied();
        if entry.revision <= applied {
            let known = self.window.head_at(entry.revision);
            return match known {
                Some(head) if head != entry.head => Err(Mismatch(ResyncCause::Fork)),
                _ => Ok(()),
            };
        }
        if entry.revision != applied.saturating_add(1) {
            return Err(Mismatch(ResyncCause::Trimmed));
        }
        if entry.previous != self.window.end().head {
            return Err(Mismatch(ResyncCause::Fork));
        }
        let Ok(body) = entry.body else { return Err(Mismatch(ResyncCause::Unreadable)) };
        let bucket = bucket_of(body.key, self.buckets);
        let recorded = body.record_time;
        let (wanted, again) = match &self.phase {
            // What is not read yet is read later, and then holds this.
            Phase::Loading(bootstrap) => (bootstrap.takes(bucket, entry.revision), false),
            Phase::Warming(until)
                if entry.revision == until.revision && entry.head != until.head =>
            {
                return Err(Mismatch(ResyncCause::Fork));
            }
            Phase::Warming(until) => (true, entry.revision <= until.revision),
            _ => (true, false),
        };
        // Ids are told by the log alone, and by them alone is known what a ledger of other keys
        // denied the pair: where its record is read later, this may be the last that is heard.
        let body = Box::new(body);
        self.actions.push(match (wanted, again) {
            (true, true) => Action::Replay(body),
            (true, false) => Action::Apply(body),
            (false, _) => Action::NoteIds(body),
        });
        self.actions.push(Action::AdvanceRevision(entry.revision, recorded));
        self.window.extend(entry.head, bucket);
        if let Phase::Loading(bootstrap) = &mut self.phase {
            // A label on another branch of the log: what it labels is read again.
            for bucket in bootstrap.on_reached(entry.revision, &entry.head) {
                self.actions.push(Action::UnloadBucket(bucket));
            }
        }
        self.compare_ahead();
        Ok(())
    }

    /// Applies what was announced past a gap that is closed now, and forgets what is older.
    fn apply_out_of_order(&mut self) -> Result<(), Mismatch> {
        while let Some((revision, entry)) = self.out_of_order.pop_first() {
            let next = revision == self.applied().saturating_add(1);
            if next && entry.previous == self.window.end().head && entry.body.is_ok() {
                self.take(entry)?;
            } else if revision > self.applied() {
                self.out_of_order.insert(revision, entry);
                break;
            }
        }
        Ok(())
    }

    /// Draws the conclusions from what is applied now: claims that are satisfied.
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
        let claims = std::mem::take(&mut self.end_proofs);
        for claim in claims {
            if claim.revision > self.applied() {
                self.end_proofs.push_back(claim);
                continue;
            }
            match self.window.head_at(claim.revision) {
                Some(head) if head == claim.head => {
                    self.actions.push(Action::SetProof(claim.asked, claim.clock));
                    if !matches!(self.phase, Phase::Live) {
                        self.phase = Phase::Live;
                        self.actions.push(Action::AdvanceRevision(self.applied(), Timestamp::MIN));
                        self.actions.push(Action::Validate);
                    }
                }
                Some(_) => return self.resync(ResyncCause::Fork),
                None => {} // Too old to be compared: the next one will do.
            }
        }
    }

    fn on_bucket(&mut self, arrived: Moment, bucket: Bucket) {
        match &mut self.phase {
            Phase::Loading(bootstrap) => {
                if bootstrap.on_bucket(&bucket, arrived, &self.window) {
                    self.actions.push(Action::LoadBucket(bucket));
                }
                self.settle();
                if matches!(&self.phase, Phase::Loading(bootstrap) if bootstrap.is_whole()) {
                    self.actions.push(Action::Poll);
                }
            }
            Phase::Live if self.lost_buckets.is_asked(bucket.number) => {
                // Where the log has not come to it, it is asked for again with the next page.
                if bucket.label == self.window.end() || self.window.is_untouched(&bucket) {
                    self.lost_buckets.remove(bucket.number);
                    self.actions.push(Action::CompareBucket(bucket));
                } else {
                    self.lost_buckets.again(bucket.number);
                }
            }
            Phase::Live if self.scrub == (bucket.number, true) => {
                self.scrub.1 = false;
                if bucket.label.revision > self.applied() {
                    self.ahead = Some(bucket);
                    self.actions.push(Action::Poll);
                } else if self.window.is_untouched(&bucket) {
                    self.compare(bucket);
                }
            }
            Phase::Starting | Phase::Warming(_) | Phase::Live | Phase::Dead => {}
        }
    }

    /// Asks for the next bucket to be compared with the table.
    fn scrub(&mut self) {
        // One that was never reached is of a branch that is none, and is read again.
        self.ahead = None;
        // What was asked for is asked for until it is answered, and not beside that.
        if matches!(self.phase, Phase::Live) && !self.scrub.1 {
            self.scrub.0 = if self.scrub.0 < self.buckets { self.scrub.0 } else { 0 };
            self.scrub.1 = true;
            self.actions.push(Action::ReadBucket(self.scrub.0));
        }
    }

    /// Compares the table with what the ledger held at the very revision that is applied.
    fn compare(&mut self, bucket: Bucket) {
        self.scrub.0 = bucket.number.saturating_add(1);
        self.actions.push(Action::CompareBucket(bucket));
    }

    fn compare_ahead(&mut self) {
        let end = self.window.end();
        if let Some(bucket) = self.ahead.take_if(|bucket| bucket.label.revision <= end.revision)
            && bucket.label == end
        {
            self.compare(bucket);
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
        // What is next is applied at once; what is past a gap, or does not continue what is
        // applied, is for the log to settle.
        if let Err(Mismatch(cause)) = self.apply_out_of_order() {
            return self.resync(cause);
        }
        if !self.out_of_order.is_empty() {
            self.actions.push(Action::Poll);
        }
        self.settle();
    }
}

/// A group of announced entries as smaller ones, so that checks need not wait for all of it.
pub fn pieces(announcement: &Announcement, most: usize) -> impl Iterator<Item = Announcement> {
    announcement
        .entries
        .chunks(most.max(1))
        .map(|entries| Announcement { epoch: announcement.epoch, entries: Arc::from(entries) })
}
