//! Businesses that are added to a table which goes on answering for the others.
//!
//! All buckets are read again, and of them the added businesses' pairs are written into the table. Unlike
//! in a [bootstrap](super::bootstrap), the table is in use meanwhile: a bucket that was read ahead of the log
//! waits until the log is there and proves that it was read on this branch, and one that was read behind it is
//! taken only if nothing has changed it since. From then on the log changes it. Once all buckets were taken,
//! the table has all pairs of the added businesses as of the revision that is applied, and holds them.

use std::collections::{BTreeMap, VecDeque};

use super::head_window::HeadWindow;
use super::{Action, Phase, StateMachine};
use consentd_core::businesses::Businesses;
use consentd_core::id::Key;
use consentd_core::record::Revision;
use consentd_ledger::{Bucket, LogBody, LogEntry, Position, UndecodedEntry, bucket_of};
use consentd_os::clock::Moment;

/// How many buckets are read concurrently: fewer than at the start, for the table is in use.
const MAX_READING: usize = 4;

/// The progress of an addition.
pub(super) struct Addition {
    /// Whether each bucket was taken, so that the log changes it.
    taken: Vec<bool>,
    /// How many buckets were not taken.
    missing: usize,
    /// The next bucket to read for the first time.
    next: u32,
    /// Buckets to read again after the next page of the log.
    again: VecDeque<u32>,
    /// How many buckets are being read.
    reading: usize,
    /// Buckets that were read ahead of the log, with their moments of arrival, by revision.
    ahead: BTreeMap<Revision, Vec<(Moment, Bucket)>>,
}

impl Addition {
    fn new(buckets: u32) -> Self {
        let count = usize::try_from(buckets).unwrap_or(usize::MAX);
        Self {
            taken: vec![false; count],
            missing: count,
            next: 0,
            again: VecDeque::new(),
            reading: 0,
            ahead: BTreeMap::new(),
        }
    }

    /// The buckets to start reading now.
    fn more(&mut self) -> impl Iterator<Item = u32> + use<> {
        let first = self.next;
        let last = u32::try_from(self.taken.len()).unwrap_or(u32::MAX);
        while self.reading < MAX_READING && self.next < last {
            self.reading = self.reading.saturating_add(1);
            self.next = self.next.saturating_add(1);
        }
        first..self.next
    }

    /// The buckets to read again, now that the log's end is known.
    fn again(&mut self) -> Vec<u32> {
        let again: Vec<_> = self.again.drain(..).collect();
        self.reading = self.reading.saturating_add(again.len());
        again
    }

    fn has_taken(&self, bucket: u32) -> bool {
        let place = usize::try_from(bucket).unwrap_or(usize::MAX);
        self.taken.get(place).copied().unwrap_or(false)
    }

    /// Takes a bucket that is as of the revision that is applied.
    fn take(&mut self, bucket: Bucket) -> Bucket {
        let place = usize::try_from(bucket.number).unwrap_or(usize::MAX);
        if let Some(taken) = self.taken.get_mut(place)
            && !std::mem::replace(taken, true)
        {
            self.missing = self.missing.saturating_sub(1);
        }
        bucket
    }

    /// Handles a bucket that was read; returns it if it can be written now.
    fn on_bucket(
        &mut self,
        bucket: Bucket,
        arrived: Moment,
        window: &HeadWindow,
    ) -> Option<Bucket> {
        self.reading = self.reading.saturating_sub(1);
        let (label, end) = (bucket.label, window.end());
        if label.epoch == end.epoch && label.revision > end.revision {
            self.ahead.entry(label.revision).or_default().push((arrived, bucket));
            return None;
        }
        if window.is_untouched(&bucket) {
            return Some(self.take(bucket));
        }
        self.again.push_back(bucket.number);
        None
    }

    /// Handles that the log has reached a position; returns the buckets that were read there.
    fn on_reached(&mut self, end: Position) -> Vec<Bucket> {
        let reached = self.ahead.remove(&end.revision).unwrap_or_default();
        let mut written = Vec::with_capacity(reached.len());
        for (_, bucket) in reached {
            if bucket.label == end {
                written.push(self.take(bucket));
            } else {
                // It was read on a fork.
                self.again.push_back(bucket.number);
            }
        }
        written
    }

    /// Handles that the log, as read at this moment, ended there: a bucket that arrived earlier and was read
    /// past that end is of a branch that the ledger has lost.
    fn on_end(&mut self, asked: Moment, end: Revision) {
        let beyond = end.checked_add(1).map(|beyond| self.ahead.split_off(&beyond));
        for (revision, buckets) in beyond.unwrap_or_default() {
            for (arrived, bucket) in buckets {
                if arrived.boot < asked.boot {
                    self.again.push_back(bucket.number);
                } else {
                    self.ahead.entry(revision).or_default().push((arrived, bucket));
                }
            }
        }
    }
}

impl StateMachine {
    /// The businesses that the table holds.
    #[must_use]
    pub fn held(&self) -> &Businesses {
        &self.held
    }

    /// Whether businesses are being added, so that the table has some of their pairs.
    #[must_use]
    pub fn is_adding(&self) -> bool {
        self.addition.is_some()
    }

    /// The number of the last addition. Buckets that were asked for before it may lack pairs.
    #[must_use]
    pub fn addition(&self) -> u64 {
        self.additions
    }

    /// Handles that the table is to hold these businesses. Those that are not wanted any more are refused and
    /// dropped at once; those that are new are added, and held once all of their pairs are in the table.
    pub(super) fn on_hold(&mut self, wanted: Businesses) {
        if wanted == self.wanted {
            return;
        }
        let kept = self.held.intersection(&wanted);
        self.wanted = wanted;
        let was_adding = self.addition.take().is_some();
        if kept != self.held || was_adding {
            self.held = kept;
            self.actions.push(Action::Hold(self.held.clone()));
            self.actions.push(Action::DropOthers);
        }
        self.start_addition();
    }

    /// Takes over all wanted businesses, for a table that is loaded from nothing.
    pub(super) fn hold_wanted(&mut self) {
        self.addition = None;
        if self.held != self.wanted {
            self.held = self.wanted.clone();
            self.actions.push(Action::Hold(self.held.clone()));
        }
    }

    /// Starts to add what is wanted and not held, if the table is in use.
    pub(super) fn start_addition(&mut self) {
        if !matches!(self.phase, Phase::Live) || self.held == self.wanted || self.addition.is_some()
        {
            return;
        }
        // What is being read may lack the added pairs, which a comparison would then take for strangers.
        self.additions = self.additions.saturating_add(1);
        self.scrub.reset();
        self.lost_buckets.ask_again();
        let mut addition = Addition::new(self.buckets);
        self.actions.extend(addition.more().map(Action::ReadAdded));
        self.addition = Some(addition);
        self.actions.push(Action::Poll);
    }

    /// Handles a bucket that was read for the addition.
    pub(super) fn on_added(&mut self, arrived: Moment, mut bucket: Bucket) {
        let Some(addition) = &mut self.addition else { return };
        let (held, wanted) = (&self.held, &self.wanted);
        bucket.pairs.retain(|(key, _)| wanted.holds_key(*key) && !held.holds_key(*key));
        if let Some(bucket) = addition.on_bucket(bucket, arrived, &self.window) {
            self.actions.push(Action::LoadBucket(bucket));
        } else {
            // The log is ahead of the bucket, or the bucket of the log.
            self.actions.push(Action::Poll);
        }
        self.continue_addition();
    }

    /// Writes the buckets that the log has reached.
    pub(super) fn on_addition_reached(&mut self) {
        let Some(addition) = &mut self.addition else { return };
        let reached = addition.on_reached(self.window.end());
        self.actions.extend(reached.into_iter().map(Action::LoadBucket));
        self.continue_addition();
    }

    /// Reads again what could not be used, now that the log's end is known.
    pub(super) fn on_addition_end(&mut self, asked: Moment, end: Revision) {
        let Some(addition) = &mut self.addition else { return };
        addition.on_end(asked, end);
        self.actions.extend(addition.again().into_iter().map(Action::ReadAdded));
    }

    /// Reads more buckets; holds the added businesses once all are taken.
    fn continue_addition(&mut self) {
        let Some(addition) = &mut self.addition else { return };
        self.actions.extend(addition.more().map(Action::ReadAdded));
        if addition.missing == 0 {
            self.hold_wanted();
        }
    }

    /// Whether an entry lacks what the table needs: it was read before its business was wanted. The log has it.
    pub(super) fn lacks(&self, entry: &LogEntry) -> bool {
        matches!(entry.body, Err(UndecodedEntry::Skipped(key)) if self.is_wanted(key))
    }

    fn is_wanted(&self, key: Key) -> bool {
        self.wanted.holds_key(key) || self.held.holds_key(key)
    }

    /// What to do to the table with an entry about a pair that it does not hold.
    pub(super) fn classify_other(&self, body: Box<LogBody>) -> Option<Action> {
        let bucket = bucket_of(body.key, self.buckets);
        let is_added = self.addition.as_ref().is_some_and(|addition| addition.has_taken(bucket));
        (is_added && self.wanted.holds_key(body.key)).then_some(Action::ApplyAdded(body))
    }

    /// The pairs of a bucket that the table has, or is to have. To be asked when the bucket is written or
    /// compared, and not before: that pairs are added may change what the table has.
    pub(super) fn held_of(&self, mut bucket: Bucket) -> Bucket {
        if self.held == Businesses::All {
            return bucket;
        }
        let addition = self.addition.as_ref();
        let has_added = addition.is_some_and(|addition| addition.has_taken(bucket.number));
        bucket.pairs.retain(|(key, _)| {
            self.held.holds_key(*key) || (has_added && self.wanted.holds_key(*key))
        });
        bucket
    }
}
