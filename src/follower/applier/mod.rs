//! What the machine decided, done to the table; and what the table must not forget.
//!
//! **Sticky denials.** Whatever the cause of a reload, what the table denied before and would not
//! deny after it stays denied, as if it had been said when the loss was seen, until something is
//! said later on a scope that covers it. The same holds for a scope that vanishes from a record.
//! Pure, but for the table.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::state_machine::{Action, StateMachine};
use crate::table::{TableImage, UnreadablePair, Validity, Writer};
use consentd_core::denied::Denied;
use consentd_core::facts::Resolved;
use consentd_core::id::Key;
use consentd_core::record::Record;
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_ledger::{Bucket, Identity, LogBody, UnreadableRecord, bucket_of};
use consentd_os::clock::Moment;

/// How many pairs may be denied by what is remembered alone. Beyond that the ledger has lost so
/// much that the table stays invalid until an operator has looked: `consentd ledger accept`.
pub const MAX_RETAINED_PAIRS: usize = 100_000;

/// What came of an action, for metrics and the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ActionOutcome {
    /// What was asked for.
    Performed,
    /// The table holds the ledger, and this many pairs are denied by what is remembered alone.
    Valid {
        /// How many.
        retained: usize,
    },
    /// The ledger lost more than may be remembered: the table stays invalid.
    Overflowed {
        /// How many pairs would have to be remembered.
        retained: usize,
    },
    /// A bucket is lost: so many pairs are denied until it is back.
    BucketDenied {
        /// How many.
        pairs: usize,
    },
    /// A bucket was compared: so many of its pairs were otherwise in the table.
    BucketCompared {
        /// How many.
        mismatches: usize,
    },
}

/// Does to the table what the machine decided.
pub struct Applier {
    writer: Writer,
    buckets: u32,
    /// How many pairs of each bucket the table holds.
    counts: Vec<u32>,
    /// A table that was saved, and what its ledger's clock had said by then.
    saved: Option<(TableImage, Timestamp)>,
    /// Whether a snapshot is being loaded.
    loading: bool,
    /// The latest that a ledger's clock said, or that something recorded is of, for a denial may be
    /// ahead of that clock: what is lost now is taken to be lost no earlier.
    seen: Timestamp,
    /// The same when the last reload began: when what that lost was seen to be lost.
    begun: Timestamp,
    /// While a snapshot is loaded: what was denied before.
    old: HashMap<Key, Arc<Denied>>,
    /// While the log behind a saved table is read: what that denied of pairs that were put back.
    put_back: HashMap<Key, Arc<Denied>>,
    /// What pairs are denied beyond what their records say.
    sticky: HashMap<Key, Arc<State>>,
    /// Those of them that the ledger holds nothing of, which no bucket's count has.
    alone: HashSet<Key>,
    /// Whether that was changed and not judged yet.
    changed: bool,
    /// Whether what another ledger denied could not be kept.
    dropped: bool,
    most: usize,
}

impl Applier {
    /// One that writes to an empty table, and remembers at most `most` pairs' denials
    /// ([`MAX_RETAINED_PAIRS`], but in tests).
    #[must_use]
    pub fn new(writer: Writer, most: usize) -> Self {
        Self {
            writer,
            buckets: 1,
            counts: vec![0],
            saved: None,
            loading: false,
            seen: Timestamp::MIN,
            begun: Timestamp::MIN,
            old: HashMap::new(),
            put_back: HashMap::new(),
            sticky: HashMap::new(),
            alone: HashSet::new(),
            changed: false,
            dropped: false,
            most,
        }
    }

    /// Has a table that was saved at hand, and what its ledger's clock had said by then.
    pub fn keep(&mut self, saved: TableImage, seen: Timestamp) {
        self.saved = Some((saved, seen));
    }

    /// The latest that the ledger's clock said, or that something recorded is of.
    #[must_use]
    pub fn seen(&self) -> Timestamp {
        self.seen
    }

    /// How often an operator had accepted the ledger, where the table may be saved: one that is
    /// current, and remembers nothing that is not in the ledger.
    ///
    /// # Errors
    ///
    /// Why it may not, as a metric's label.
    pub fn may_save(
        &mut self,
        machine: &StateMachine,
        bound: Duration,
        now: Moment,
    ) -> Result<u64, &'static str> {
        let table = self.writer.table();
        let freshness = table.freshness();
        let live = freshness.validity == Validity::Valid && freshness.staleness(now) <= bound;
        match machine.accepted().filter(|_| live) {
            None => Err("not_live"),
            // What is denied for its bucket was lost is not known to a table that is read again.
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

    /// Does what an action says to the table; actions that ask the ledger do nothing here.
    pub fn perform(&mut self, action: &Action) -> ActionOutcome {
        match action {
            Action::ResetTable { identity, clock, forget } => self.begin(identity, *clock, *forget),
            Action::RestoreSnapshot { identity, clock } => self.restore(identity, *clock),
            Action::RejectWarmStart(_) => self.saved = None,
            Action::Replay(body) => self.replay(body),
            Action::LoadBucket(bucket) => self.load(bucket),
            Action::UnloadBucket(bucket) => self.unload(*bucket),
            Action::Apply(body) => self.apply_body(body),
            Action::NoteIds(body) => self.meet_body(body),
            Action::CompareBucket(bucket) => {
                let mismatches = self.compare(bucket);
                // What a mismatch left to be remembered may be too much, as after a reload.
                let judged = if self.changed { self.judge() } else { ActionOutcome::Performed };
                let overflowed = matches!(judged, ActionOutcome::Overflowed { .. });
                return if overflowed {
                    judged
                } else {
                    ActionOutcome::BucketCompared { mismatches }
                };
            }
            Action::DenyBucket(number) => {
                let pairs = self.doubt(*number);
                let judged = if self.changed { self.judge() } else { ActionOutcome::Performed };
                let overflowed = matches!(judged, ActionOutcome::Overflowed { .. });
                return if overflowed { judged } else { ActionOutcome::BucketDenied { pairs } };
            }
            Action::AdvanceRevision(revision, _) => self.writer.set_revision(*revision),
            Action::SetProof(asked, clock) => {
                self.seen = self.seen.max(*clock);
                self.writer.set_proof(*asked, *clock);
            }
            Action::Validate => return self.validate(),
            Action::Invalidate(_) => self.writer.invalidate(),
            Action::Poll | Action::ReadBucket(_) | Action::GapRepaired => {}
        }
        if self.changed && !self.loading { self.judge() } else { ActionOutcome::Performed }
    }

    /// Remembers what is denied, and empties the table.
    fn begin(&mut self, identity: &Identity, clock: Timestamp, forget: bool) {
        // A table that was being loaded is not whole: what was denied before it still counts.
        let mut old = if self.loading { std::mem::take(&mut self.old) } else { HashMap::new() };
        self.writer.for_each_denied(|key, denied| remember(&mut old, key, denied));
        for (key, denied) in std::mem::take(&mut self.put_back) {
            remember(&mut old, key, &denied);
        }
        self.remember_unreadable(&mut old, |_| true);
        if forget {
            old.clear();
            self.dropped = false;
            self.writer.set_previous_ledger_denials(identity.secret.clone(), Vec::new());
        }
        self.seen = self.seen.max(clock);
        self.begun = self.seen;
        let secret = self.writer.secret();
        if !secret.is_same_as(&identity.secret) && !old.is_empty() {
            // Other keys: which pairs these are there is known once their ids are seen again. Of
            // two such ledgers at once the table cannot remember all, and stays invalid.
            self.dropped |= self.writer.previous_ledger_denied_pairs() > 0;
            self.writer.set_previous_ledger_denials(
                secret,
                std::mem::take(&mut old).into_iter().collect(),
            );
        }
        self.old = old;
        self.saved = None;
        self.sticky.clear();
        self.alone.clear();
        self.loading = true;
        self.buckets = identity.buckets.max(1);
        self.counts = vec![0; usize::try_from(self.buckets).unwrap_or(usize::MAX)];
        self.writer.reset(&identity.secret);
    }

    /// Puts the saved table into this one, which is then loaded but for what the log brings.
    fn restore(&mut self, identity: &Identity, clock: Timestamp) {
        self.loading = true;
        self.buckets = identity.buckets.max(1);
        self.counts = vec![0; usize::try_from(self.buckets).unwrap_or(usize::MAX)];
        let restored = self.saved.take().is_some_and(|(saved, seen)| {
            self.seen = self.seen.max(seen).max(clock);
            self.writer.restore(saved, &identity.secret)
        });
        self.begun = self.seen;
        // It is never so, for the machine asks once; but an empty table must not become valid.
        self.dropped = !restored;
        let (buckets, counts) = (self.buckets, &mut self.counts);
        self.writer.for_each_key(|key| {
            let place = usize::try_from(bucket_of(key, buckets)).unwrap_or(usize::MAX);
            if let Some(count) = counts.get_mut(place) {
                *count = count.saturating_add(1);
            }
        });
    }

    /// Puts a record into the table that it may hold already, or a later one: then it is put back
    /// for a while, and nothing has vanished.
    fn replay(&mut self, body: &LogBody) {
        self.seen = self.seen.max(body.record_time);
        let known = self.writer.contains(body.key);
        // Where the ledger turns out to have lost what comes, it is remembered.
        if let Some(denied) = self.writer.denials(body.key) {
            remember(&mut self.put_back, body.key, &Arc::new(denied));
        }
        let state = body.record.as_ref().map(|record| &record.state).map_err(|_| UnreadablePair);
        self.seen = self.seen.max(state.ok().and_then(State::latest).unwrap_or(self.seen));
        self.writer.apply(body.key, state);
        if !known {
            self.count_in(body.key);
        }
    }

    /// Remembers what pairs were denied before their records could no longer be read: the table's
    /// own entry of such a pair does not say.
    fn remember_unreadable(
        &self,
        old: &mut HashMap<Key, Arc<Denied>>,
        which: impl Fn(Key) -> bool,
    ) {
        for (key, state) in &self.sticky {
            if which(*key)
                && self.writer.holds_state(*key, Err(UnreadablePair))
                && let Some(denied) = Denied::of(&Resolved::of(state).profile)
            {
                remember(old, *key, &Arc::new(denied));
            }
        }
    }

    fn load(&mut self, bucket: &Bucket) {
        for (key, record) in &bucket.pairs {
            self.apply(*key, record.as_ref(), self.seen);
        }
    }

    /// Takes a bucket out again that was read on a branch of the log that is none.
    fn unload(&mut self, bucket: u32) {
        let buckets = self.buckets;
        let old = &mut self.old;
        self.writer.for_each_denied(|key, denied| {
            if bucket_of(key, buckets) == bucket {
                remember(old, key, denied);
            }
        });
        let mut old = std::mem::take(&mut self.old);
        self.remember_unreadable(&mut old, |key| bucket_of(key, buckets) == bucket);
        self.old = old;
        for key in self.writer.remove_where(|key| bucket_of(key, buckets) == bucket) {
            self.sticky.remove(&key);
        }
        if let Some(count) = self.count(bucket) {
            *count = 0;
        }
    }

    /// Takes what a ledger of other keys denied the pair of these ids for what this one did; gives
    /// its key there.
    fn meet(&mut self, body: &LogBody) -> Option<Key> {
        let (key, denied) =
            self.writer.previous_ledger_denials(&body.user_id, &body.business_id)?;
        if self.loading {
            remember(&mut self.old, body.key, &denied);
        } else {
            let state = body.record.as_ref().map(|record| &record.state);
            let lost = denied.beyond(state.unwrap_or(&State::default()), self.begun);
            self.stick(body.key, lost);
        }
        self.changed = true;
        Some(key)
    }

    /// Takes a body whose record comes with its bucket, before the table is valid again.
    fn meet_body(&mut self, body: &LogBody) {
        let before = self.meet(body);
        // Or came already, of a bucket that was read ahead of the log, and knew nothing of what
        // was just remembered. The last of the bodies up to there has the record that was read.
        if self.old.contains_key(&body.key) && self.writer.contains(body.key) {
            self.apply(body.key, body.record.as_ref(), body.record_time.max(self.seen));
        }
        if let Some(key) = before {
            self.writer.remove_previous_ledger_denials(key);
        }
    }

    fn apply_body(&mut self, body: &LogBody) {
        let before = self.meet(body);
        // By then the ledger's clock had said this.
        self.seen = self.seen.max(body.record_time);
        self.apply(body.key, body.record.as_ref(), self.seen);
        if let Some(key) = before {
            self.writer.remove_previous_ledger_denials(key);
        }
    }

    /// Puts a pair's record into the table, with what it must not forget.
    fn apply(&mut self, key: Key, record: Result<&Record, &UnreadableRecord>, now: Timestamp) {
        let known = self.writer.contains(key);
        if let Ok(record) = record {
            // No event in the table is later than this, once the record is in it.
            self.seen = self.seen.max(record.state.latest().unwrap_or(self.seen));
            let lost = match self.old.get(&key) {
                Some(old) => {
                    let lost = old.beyond(&record.state, self.begun);
                    self.sticky.remove(&key);
                    lost
                }
                None if known => self.writer.denials(key).and_then(|denied| {
                    let state = self.joined(key, &record.state);
                    denied.vanished_from(state.as_ref().unwrap_or(&record.state), now)
                }),
                None => None,
            };
            self.stick(key, lost);
            self.write(key, &record.state);
        } else {
            // It denies everything; once it can be read again, this must not be forgotten.
            let nothing = State::default();
            let kept = if let Some(old) = self.old.get(&key) {
                old.beyond(&nothing, self.begun)
            } else {
                let denied = self.writer.denials(key);
                denied.and_then(|denied| denied.beyond(&nothing, self.seen))
            };
            self.stick(key, kept);
            self.writer.apply(key, Err(UnreadablePair));
        }
        if !known || self.alone.remove(&key) {
            self.count_in(key);
        }
    }

    /// Writes a state and what sticks to it; what no longer makes a difference sticks no more.
    fn write(&mut self, key: Key, state: &State) {
        if let Some(joined) = self.joined(key, state) {
            if joined != *state {
                return self.writer.apply(key, Ok(&joined));
            }
            self.sticky.remove(&key);
            self.changed = true;
        }
        self.writer.apply(key, Ok(state));
    }

    /// A state with what sticks to its pair; none where nothing does.
    fn joined(&self, key: Key, state: &State) -> Option<State> {
        let sticky = self.sticky.get(&key)?;
        Some(state.clone().join(State::clone(sticky)))
    }

    /// Lets denials stick to a pair, beside those that do already.
    fn stick(&mut self, key: Key, lost: Option<State>) {
        let Some(lost) = lost else { return };
        let known = self.sticky.get(&key).map(|known| State::clone(known));
        self.sticky.insert(key, Arc::new(lost.join(known.unwrap_or_default())));
        self.changed = true;
    }

    fn validate(&mut self) -> ActionOutcome {
        // Pairs of which nothing is left in the ledger.
        let mut shapes: HashMap<*const Denied, Option<Arc<State>>> = HashMap::new();
        for (key, denied) in &self.old {
            if self.writer.contains(*key) {
                continue;
            }
            let shape = shapes
                .entry(Arc::as_ptr(denied))
                .or_insert_with(|| denied.beyond(&State::default(), self.begun).map(Arc::new));
            if let Some(state) = shape {
                self.sticky.insert(*key, Arc::clone(state));
                self.alone.insert(*key);
                self.writer.apply(*key, Ok(state));
            }
        }
        self.old = HashMap::new();
        self.put_back = HashMap::new();
        self.loading = false;
        self.judge()
    }

    /// Says whether so much may be remembered, and makes the table valid if so.
    fn judge(&mut self) -> ActionOutcome {
        self.changed = false;
        let retained = self.sticky.len().saturating_add(self.writer.previous_ledger_denied_pairs());
        self.writer.set_retained_pairs(retained);
        if retained > self.most || self.dropped {
            self.writer.invalidate();
            return ActionOutcome::Overflowed { retained };
        }
        self.writer.validate();
        ActionOutcome::Valid { retained }
    }

    /// Denies all pairs of a bucket that the ledger has lost, as if their records could not be read,
    /// and remembers what they were denied: it may not come back with the bucket.
    fn doubt(&mut self, bucket: u32) -> usize {
        let (buckets, mut pairs) = (self.buckets, Vec::new());
        self.writer.for_each_key(|key| {
            if bucket_of(key, buckets) == bucket {
                pairs.push(key);
            }
        });
        // What only the table knows of is denied by that alone already.
        pairs.retain(|key| !self.alone.contains(key));
        for key in &pairs {
            let denied = self.writer.denials(*key);
            let kept = denied.and_then(|denied| denied.beyond(&State::default(), self.seen));
            self.stick(*key, kept);
            self.writer.apply(*key, Err(UnreadablePair));
        }
        pairs.len()
    }

    /// Compares a bucket, read at the revision that is applied, with the table, and mends that.
    fn compare(&mut self, bucket: &Bucket) -> usize {
        let mut mismatches = 0_usize;
        for (key, record) in &bucket.pairs {
            let joined = record.as_ref().ok().and_then(|record| self.joined(*key, &record.state));
            let state = record.as_ref().map(|record| joined.as_ref().unwrap_or(&record.state));
            if !self.writer.holds_state(*key, state.map_err(|_| UnreadablePair)) {
                mismatches = mismatches.saturating_add(1);
                self.apply(*key, record.as_ref(), self.seen);
            } else if self.alone.remove(key) {
                self.count_in(*key);
            }
        }
        mismatches.saturating_add(self.take_out_strangers(bucket))
    }

    /// Takes out pairs of a bucket that the table alone has, but for those that must stay denied.
    ///
    /// They are looked for only where the bucket has more pairs in the table than in the ledger: to
    /// find them the whole table is walked.
    fn take_out_strangers(&mut self, bucket: &Bucket) -> usize {
        let ours: HashSet<_> = bucket.pairs.iter().map(|(key, _)| *key).collect();
        let count = self.count(bucket.number).map_or(0, |count| *count);
        if usize::try_from(count).unwrap_or(usize::MAX) == ours.len() {
            return 0;
        }
        let (buckets, number) = (self.buckets, bucket.number);
        let stranger = move |key: Key| bucket_of(key, buckets) == number && !ours.contains(&key);
        let mut denied = HashMap::new();
        self.writer.for_each_denied(|key, what| {
            if stranger(key) {
                denied.insert(key, Arc::clone(what));
            }
        });
        let (sticky, writer) = (&self.sticky, &mut self.writer);
        let mut gone = writer.remove_where(|key| stranger(key) && !sticky.contains_key(&key));
        // What sticks to a pair stays; what else its record said is gone with it.
        let more = |(key, state): &(&Key, &Arc<State>)| {
            stranger(**key) && !writer.holds_state(**key, Ok(state))
        };
        gone.extend(sticky.iter().filter(more).map(|(key, _)| *key));
        for key in &gone {
            let known = self.sticky.get(key).map(|known| State::clone(known)).unwrap_or_default();
            let lost = denied.get(key).and_then(|denied| denied.beyond(&known, self.seen));
            self.stick(*key, lost);
            if self.sticky.contains_key(key) {
                self.alone.insert(*key);
                self.write(*key, &State::default());
            }
        }
        let held = u32::try_from(bucket.pairs.len()).unwrap_or(u32::MAX);
        if let Some(count) = self.count(number) {
            *count = held;
        }
        gone.len()
    }

    /// The ledger holds this pair, too, from now on.
    fn count_in(&mut self, key: Key) {
        if let Some(count) = self.count(bucket_of(key, self.buckets)) {
            *count = count.saturating_add(1);
        }
    }

    fn count(&mut self, bucket: u32) -> Option<&mut u32> {
        self.counts.get_mut(usize::try_from(bucket).unwrap_or(usize::MAX))
    }
}

fn remember(old: &mut HashMap<Key, Arc<Denied>>, key: Key, denied: &Arc<Denied>) {
    old.entry(key)
        .and_modify(|known| *known = Arc::new(known.join(denied)))
        .or_insert_with(|| Arc::clone(denied));
}

#[cfg(test)]
mod tests;
