//! Performs the state machine's actions on the table, and retains denials that the ledger has lost.
//!
//! **Retained denials.** Whatever the cause of a reload, what the table denied before it and would
//! not deny after it stays denied, as if it had been said when the loss was detected, until a later
//! event on a scope that covers it. The same holds for a scope that is missing from a newer record.
//! Pure, except that it writes to the table.

mod bucket_counts;
mod retained_pairs;

use std::collections::HashSet;
use std::time::Duration;

use self::bucket_counts::BucketCounts;
use self::retained_pairs::{Change, RetainedPairs};
use super::state_machine::{Action, StateMachine};
use crate::table::{TableImage, UnreadablePair, Validity, Writer};
use consentd_core::id::Key;
use consentd_core::record::Record;
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_ledger::{Bucket, Identity, LogBody, UnreadableRecord};
use consentd_os::clock::Moment;

/// How many pairs may have retained denials. Beyond that the ledger has lost so much that the table
/// stays invalid until an operator restores it, or runs `consentd ledger accept`.
pub const MAX_RETAINED_PAIRS: usize = 100_000;

/// The outcome of an action, for metrics, watchers and the log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ActionOutcome {
    /// What became of a bucket that was denied or compared.
    pub bucket: Option<BucketOutcome>,
    /// Whether the table can be used, if the action may have changed that.
    pub judgement: Option<Judgement>,
}

/// What became of a bucket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BucketOutcome {
    /// It was lost: its pairs are denied until it is restored.
    Denied {
        /// How many pairs.
        pairs: usize,
    },
    /// It was compared with the table.
    Compared {
        /// How many pairs differed, and were corrected.
        mismatches: usize,
    },
}

/// Whether the table can be used, by how much is retained beside the ledger.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Judgement {
    /// The table is valid.
    Valid {
        /// How many pairs have retained denials.
        retained: usize,
    },
    /// The ledger has lost more than may be retained: the table stays invalid.
    Overflowed {
        /// How many pairs have retained denials.
        retained: usize,
    },
}

/// Performs actions on the table.
pub struct Applier {
    writer: Writer,
    counts: BucketCounts,
    /// The snapshot to start from, and the ledger's clock when it was taken.
    snapshot: Option<(TableImage, Timestamp)>,
    /// Whether the table is being loaded, or the log replayed over a snapshot.
    loading: bool,
    /// Whether the table holds a state that the ledger had, so that only what it retains may keep it invalid.
    is_whole: bool,
    /// The latest time of the ledger's clock, and of all recorded events, for a denial may be ahead
    /// of that clock. A loss that is detected now is not dated before it.
    latest_seen: Timestamp,
    retained: RetainedPairs,
    max_retained: usize,
}

impl Applier {
    /// An applier that writes to an empty table and retains the denials of at most `max_retained`
    /// pairs ([`MAX_RETAINED_PAIRS`], except in tests).
    #[must_use]
    pub fn new(writer: Writer, max_retained: usize) -> Self {
        Self {
            writer,
            counts: BucketCounts::new(1),
            snapshot: None,
            loading: false,
            is_whole: false,
            latest_seen: Timestamp::MIN,
            retained: RetainedPairs::new(),
            max_retained,
        }
    }

    /// Provides a snapshot of the table, and the ledger's clock when it was taken, until the state
    /// machine decides whether it is restored.
    pub fn keep(&mut self, snapshot: TableImage, latest_seen: Timestamp) {
        self.snapshot = Some((snapshot, latest_seen));
    }

    /// The latest time of the ledger's clock and of all recorded events.
    #[must_use]
    pub fn latest_seen(&self) -> Timestamp {
        self.latest_seen
    }

    /// How often an operator had accepted the ledger, if a snapshot may be taken of the table: it
    /// must be live, and must not deny anything that the ledger does not hold.
    ///
    /// # Errors
    ///
    /// Why no snapshot may be taken, as a metric's label.
    pub fn may_save(
        &mut self,
        machine: &StateMachine,
        bound: Duration,
        now: Moment,
    ) -> Result<u64, &'static str> {
        let table = self.writer.table();
        let freshness = table.freshness();
        let live = freshness.validity == Validity::Valid && freshness.staleness(now) <= bound;
        match machine.accepted().filter(|_| live && !machine.is_adding()) {
            None => Err("not_live"),
            // A restored table would not know what is denied because its bucket was lost.
            Some(_) if table.retained_pairs() > 0 || machine.has_lost_buckets() => {
                Err("remembering")
            }
            Some(accepted) => Ok(accepted),
        }
    }

    /// The table, for what is neither loaded nor applied.
    pub fn writer(&mut self) -> &mut Writer {
        &mut self.writer
    }

    /// Performs an action on the table; actions that read the ledger do nothing here.
    pub fn perform(&mut self, action: &Action) -> ActionOutcome {
        match action {
            Action::ResetTable { identity, clock, forget } => self.reset(identity, *clock, *forget),
            Action::RestoreSnapshot { identity, clock } => self.restore(identity, *clock),
            Action::RejectWarmStart(_) => self.snapshot = None,
            Action::Replay(body) => self.replay(body),
            Action::LoadBucket(bucket) => self.load(bucket),
            Action::UnloadBucket(bucket) => self.unload(*bucket),
            Action::Apply(body) | Action::ApplyAdded(body) => self.apply_body(body),
            Action::Hold(businesses) => self.writer.set_businesses(businesses.clone()),
            Action::DropOthers => self.drop_others(),
            Action::NoteIds(body) => self.note_ids(body),
            Action::CompareBucket(bucket) => {
                let mismatches = self.compare(bucket);
                let bucket = Some(BucketOutcome::Compared { mismatches });
                return ActionOutcome { bucket, judgement: self.judge_if_changed() };
            }
            Action::DenyBucket(number) => {
                let bucket = Some(BucketOutcome::Denied { pairs: self.deny_bucket(*number) });
                return ActionOutcome { bucket, judgement: self.judge_if_changed() };
            }
            Action::AdvanceRevision(revision, _) => self.writer.set_revision(*revision),
            Action::SetProof(asked, clock) => {
                self.latest_seen = self.latest_seen.max(*clock);
                self.writer.set_proof(*asked, *clock);
            }
            Action::Validate => {
                return ActionOutcome { judgement: Some(self.validate()), bucket: None };
            }
            Action::Invalidate(_) => {
                self.is_whole = false;
                self.writer.invalidate();
            }
            Action::Poll | Action::ReadBucket(_) | Action::ReadAdded(_) | Action::GapRepaired => {}
        }
        let judgement = if self.loading { None } else { self.judge_if_changed() };
        ActionOutcome { judgement, bucket: None }
    }

    /// Empties the table for a ledger that is loaded, after collecting what it denied.
    fn reset(&mut self, identity: &Identity, clock: Timestamp, accepted: bool) {
        self.latest_seen = self.latest_seen.max(clock);
        self.retained.start_reload(&self.writer, self.latest_seen);
        if accepted {
            self.retained.accept_losses();
            self.writer.set_previous_ledger_denials(identity.secret.clone(), Vec::new());
        }
        self.retained.change_secret(&mut self.writer, &identity.secret);
        self.snapshot = None;
        self.loading = true;
        self.counts = BucketCounts::new(identity.buckets);
        self.writer.reset(&identity.secret);
    }

    /// Restores the snapshot. The table is complete once the log has been replayed over it.
    fn restore(&mut self, identity: &Identity, clock: Timestamp) {
        self.loading = true;
        self.counts = BucketCounts::new(identity.buckets);
        let restored = self.snapshot.take().is_some_and(|(snapshot, seen)| {
            self.latest_seen = self.latest_seen.max(seen).max(clock);
            self.writer.restore(snapshot, &identity.secret)
        });
        // The state machine restores at most once, so there is a snapshot. If there were none, the
        // empty table must not become valid.
        self.retained.start_replay(restored, self.latest_seen);
        // A business may not be wanted any more since the snapshot was read.
        self.drop_others();
        let counts = &mut self.counts;
        self.writer.for_each_key(|key| counts.add(key));
    }

    /// Replays a record that the snapshot may hold already, or a later one.
    fn replay(&mut self, body: &LogBody) {
        self.latest_seen = self.latest_seen.max(body.record_time);
        let is_new = !self.writer.contains(body.key);
        let state = body.record.as_ref().map(|record| &record.state).map_err(|_| UnreadablePair);
        self.see(state.ok());
        self.retained.replay(&mut self.writer, body.key, state);
        if is_new {
            self.counts.add(body.key);
        }
    }

    /// Removes the pairs of businesses that are not held, and all that is retained of them. Whoever looked such
    /// a pair's key up before gets no answer: see [`Table::facts`](crate::table::Table::facts).
    fn drop_others(&mut self) {
        let businesses = self.writer.businesses();
        let is_other = |key: Key| !businesses.holds_key(key);
        for key in self.writer.remove_where(is_other) {
            if !self.retained.is_without_record(key) {
                self.counts.remove(key);
            }
        }
        let has_forgotten = self.retained.forget(is_other);
        // Fewer retained pairs may make the table valid, but not one that is to be read again.
        if has_forgotten && self.is_whole {
            self.retained.set_changed();
        }
        self.writer.forget_previous_ledger_denials(is_other);
    }

    /// Loads a bucket. Nearly all of its pairs are new and retain nothing: they are inserted together.
    fn load(&mut self, bucket: &Bucket) {
        let is_plain = |key, record: &Result<_, _>| record.is_ok() && !self.retained.concerns(key);
        let (mut plain, others): (Vec<_>, Vec<_>) =
            bucket.pairs.iter().partition(|(key, record)| is_plain(*key, record));
        plain.sort_by_key(|(key, _)| key.halves());
        let states =
            plain.iter().filter_map(|(key, record)| Some((*key, &record.as_ref().ok()?.state)));
        let states: Vec<_> = states.collect();
        let left_out = self.writer.insert_sorted(&states);
        let mut left = left_out.iter().copied().peekable();
        for (at, (key, state)) in states.iter().enumerate() {
            if left.next_if_eq(&at).is_none() {
                self.see(Some(state));
                self.counts.add(*key);
            }
        }
        let left_out = left_out.iter().filter_map(|at| plain.get(*at).copied());
        for (key, record) in left_out.chain(others) {
            self.apply(*key, record.as_ref(), self.latest_seen, Change::Event);
        }
    }

    /// Removes a bucket that was read on a fork of the log; it is read again.
    fn unload(&mut self, bucket: u32) {
        self.retained.unload(&mut self.writer, self.counts.matcher(bucket));
        self.counts.set(bucket, 0);
    }

    /// Assigns the denials of a previous ledger, whose keys another secret made, to the pair of these
    /// ids; returns the pair's key there. Those denials stay in the table until its entry has them.
    fn match_previous_ledger(&mut self, body: &LogBody) -> Option<Key> {
        let (key, denied) =
            self.writer.previous_ledger_denials(&body.user_id, &body.business_id)?;
        if self.loading {
            self.retained.add_before_reload(body.key, &denied);
        } else {
            let nothing = State::default();
            let state = body.record.as_ref().map_or(&nothing, |record| &record.state);
            self.retained.retain_previous(body.key, &denied, state);
        }
        Some(key)
    }

    /// Handles an entry of the log whose record comes with its bucket, before the table is valid.
    fn note_ids(&mut self, body: &LogBody) {
        // A loss that is detected before the bucket is read is dated no earlier than what it took.
        self.latest_seen = self.latest_seen.max(body.record_time);
        self.see(body.record.as_ref().ok().map(|record| &record.state));
        let previous = self.match_previous_ledger(body);
        // The bucket may have been read ahead of the log, and then was loaded without the denials
        // that were assigned just now. The last entry up to there has the record that was loaded.
        if self.retained.was_denied_before_reload(body.key) && self.writer.contains(body.key) {
            let now = body.record_time.max(self.latest_seen);
            self.apply(body.key, body.record.as_ref(), now, Change::Event);
        }
        if let Some(key) = previous {
            self.writer.remove_previous_ledger_denials(key);
        }
    }

    fn apply_body(&mut self, body: &LogBody) {
        let previous = self.match_previous_ledger(body);
        // The ledger's clock had reached this time when the event was recorded.
        self.latest_seen = self.latest_seen.max(body.record_time);
        self.apply(body.key, body.record.as_ref(), self.latest_seen, Change::Event);
        if let Some(key) = previous {
            self.writer.remove_previous_ledger_denials(key);
        }
    }

    /// Writes a pair's record, with the denials that it retains, into the table.
    fn apply(
        &mut self,
        key: Key,
        record: Result<&Record, &UnreadableRecord>,
        now: Timestamp,
        change: Change,
    ) {
        let is_new = !self.writer.contains(key);
        if let Ok(record) = record {
            // No event in the table is later than this, once the record is in it.
            self.see(Some(&record.state));
            self.retained.write_record(&mut self.writer, key, record, now, change);
        } else {
            self.retained.write_unreadable(&mut self.writer, key, self.latest_seen);
        }
        if is_new || self.retained.add_record(key) {
            self.counts.add(key);
        }
    }

    fn see(&mut self, state: Option<&State>) {
        let latest = state.and_then(State::latest);
        self.latest_seen = self.latest_seen.max(latest.unwrap_or(self.latest_seen));
    }

    fn validate(&mut self) -> Judgement {
        self.retained.finish_reload(&mut self.writer);
        (self.loading, self.is_whole) = (false, true);
        self.judge()
    }

    /// Judges what an action left to be retained, if that changed.
    fn judge_if_changed(&mut self) -> Option<Judgement> {
        self.retained.is_changed().then(|| self.judge())
    }

    /// Makes the table valid, unless more would have to be retained than is allowed.
    fn judge(&mut self) -> Judgement {
        self.retained.take_changed();
        let retained =
            self.retained.len().saturating_add(self.writer.previous_ledger_denied_pairs());
        self.writer.set_retained_pairs(retained);
        if retained > self.max_retained || self.retained.is_incomplete() {
            self.writer.invalidate();
            return Judgement::Overflowed { retained };
        }
        self.writer.validate();
        Judgement::Valid { retained }
    }

    /// Denies all pairs of a bucket that the ledger has lost, as if their records could not be read.
    /// What they were denied is retained: the bucket may be restored without it.
    fn deny_bucket(&mut self, bucket: u32) -> usize {
        let (is_in_bucket, mut pairs) = (self.counts.matcher(bucket), Vec::new());
        self.writer.for_each_key(|key| {
            if is_in_bucket(key) {
                pairs.push(key);
            }
        });
        // Pairs without a record are denied by what they retain, and the bucket did not hold them.
        pairs.retain(|key| !self.retained.is_without_record(*key));
        for key in &pairs {
            self.retained.write_unreadable(&mut self.writer, *key, self.latest_seen);
        }
        pairs.len()
    }

    /// Compares a bucket, read at the revision that is applied, with the table, and corrects the
    /// table; returns how many pairs differed.
    fn compare(&mut self, bucket: &Bucket) -> usize {
        let mut mismatches = 0_usize;
        for (key, record) in &bucket.pairs {
            let record = record.as_ref();
            let joined = record.ok().and_then(|record| self.retained.join(*key, &record.state));
            let state = record.map(|record| joined.as_ref().unwrap_or(&record.state));
            if !self.writer.holds_state(*key, state.map_err(|_| UnreadablePair)) {
                mismatches = mismatches.saturating_add(1);
                self.apply(*key, record, self.latest_seen, Change::OutOfBand);
            } else if self.retained.add_record(*key) {
                self.counts.add(*key);
            }
        }
        mismatches.saturating_add(self.remove_strangers(bucket))
    }

    /// Removes the records of this bucket's pairs that only the table has; returns how many.
    ///
    /// Finding them takes a walk through the whole table, so it is done only if the table holds
    /// another number of the bucket's pairs than the ledger.
    fn remove_strangers(&mut self, bucket: &Bucket) -> usize {
        let held: HashSet<_> = bucket.pairs.iter().map(|(key, _)| *key).collect();
        let count = self.counts.get(bucket.number);
        if usize::try_from(count).unwrap_or(usize::MAX) == held.len() {
            return 0;
        }
        let is_in_bucket = self.counts.matcher(bucket.number);
        let is_stranger = |key: Key| is_in_bucket(key) && !held.contains(&key);
        let removed = self.retained.remove_records(&mut self.writer, is_stranger, self.latest_seen);
        self.counts.set(bucket.number, u32::try_from(bucket.pairs.len()).unwrap_or(u32::MAX));
        removed
    }
}

#[cfg(test)]
mod tests;
