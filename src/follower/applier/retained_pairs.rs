//! Retained denials: what the table goes on denying although the ledger has lost it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::table::{UnreadablePair, Writer};
use consentd_core::id::{Key, KeySecret};
use consentd_core::record::Record;
use consentd_core::retained_denials::RetainedDenials;
use consentd_core::standing::ResolvedState;
use consentd_core::state::State;
use consentd_core::time::Timestamp;

/// The pairs that are denied more than their records say.
///
/// The table stores no event times, so a lost denial is retained as an opt-out at the time when the
/// loss was detected. A later event on a scope that covers it lifts it by the ordinary rules: the
/// entry of a pair is always the join of its record's state and its retained state.
///
/// **Invariants**, between two actions:
///
/// 1. The table holds each pair of `states`, either as that join or as unreadable.
/// 2. No state in `states` is implied by its pair's record: it would be removed.
/// 3. `without_record` is a subset of the keys of `states`. The table holds these pairs for their
///    retained state alone.
/// 4. `before_reload` is empty unless the table is being loaded. `overwritten_by_replay` is empty
///    unless the log is being replayed over a snapshot.
///
/// **Transitions** of a pair's denials:
///
/// | from | to | when |
/// |---|---|---|
/// | the table | `before_reload` | a reload starts, or a bucket that was read on a fork is unloaded |
/// | the table | `overwritten_by_replay` | the log replays a record over the snapshot's entry |
/// | the table | `states` | a record loses a scope, becomes unreadable, or is changed or removed past the log |
/// | `overwritten_by_replay` | `before_reload` | the replay turns into a reload |
/// | `before_reload` | `states` | a record is loaded that lacks them; or the reload finishes, and there is no record of the pair (`without_record`) |
/// | `before_reload` | the previous ledger's, in the table | the reload is of a ledger with another secret, so keys do not match |
/// | the previous ledger's | `before_reload`, `states` | the log names the pair's ids, while loading and afterwards |
/// | `states` | none | the record implies them, or an operator accepted the ledger |
pub(super) struct RetainedPairs {
    /// What pairs are denied in addition to their records.
    states: HashMap<Key, Arc<State>>,
    /// Those of them that have no record in the ledger.
    without_record: HashSet<Key>,
    /// What pairs were denied before the reload that is going on.
    before_reload: HashMap<Key, Arc<RetainedDenials>>,
    /// What the snapshot denied of pairs that a replayed record has overwritten for a while.
    overwritten_by_replay: HashMap<Key, Arc<RetainedDenials>>,
    /// The ledger's time when the last reload started: when the losses that it reveals were detected.
    loss_time: Timestamp,
    /// Whether the number of retained pairs may have changed since it was judged.
    changed: bool,
    /// Whether denials were dropped that could not be retained.
    incomplete: bool,
}

/// How a record came to differ from what the table holds of its pair.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// By events, which the log has or had: one of them may have lifted a denial.
    Event,
    /// By a write that the log does not have, for the table has applied all of the log. Whatever the
    /// record lacks of the pair's denials was lost.
    OutOfBand,
}

impl RetainedPairs {
    pub(super) fn new() -> Self {
        Self {
            states: HashMap::new(),
            without_record: HashSet::new(),
            before_reload: HashMap::new(),
            overwritten_by_replay: HashMap::new(),
            loss_time: Timestamp::MIN,
            changed: false,
            incomplete: false,
        }
    }

    /// How many pairs have retained denials.
    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether denials were dropped that could not be retained, so that the table may allow too much.
    pub(super) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// Whether the number of retained pairs may have changed since [`Self::take_changed`].
    pub(super) fn is_changed(&self) -> bool {
        self.changed
    }

    /// Has the number of retained pairs judged.
    pub(super) fn set_changed(&mut self) {
        self.changed = true;
    }

    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Starts a reload at this time of the ledger: collects what the table denies before it is reset.
    ///
    /// If a reload is going on, the table is not complete, and what was collected before counts too.
    pub(super) fn start_reload(&mut self, writer: &Writer, loss_time: Timestamp) {
        let before = &mut self.before_reload;
        writer.for_each_denied(|key, denied| add(before, key, denied));
        for (key, denied) in std::mem::take(&mut self.overwritten_by_replay) {
            add(before, key, &denied);
        }
        self.collect_unreadable(writer, |_| true);
        self.states.clear();
        self.without_record.clear();
        self.loss_time = loss_time;
    }

    /// Drops what was collected for the reload: an operator has accepted the ledger as it is.
    pub(super) fn accept_losses(&mut self) {
        self.before_reload.clear();
        self.incomplete = false;
    }

    /// Hands what was collected over to the table if the reload is of a ledger with another secret:
    /// which of its pairs these are is known only once the log names their ids.
    pub(super) fn change_secret(&mut self, writer: &mut Writer, to: &KeySecret) {
        let secret = writer.secret();
        if secret.is_same_as(to) || self.before_reload.is_empty() {
            return;
        }
        // The table keeps the denials of one previous ledger only.
        self.incomplete |= writer.previous_ledger_denied_pairs() > 0;
        let denials = std::mem::take(&mut self.before_reload);
        writer.set_previous_ledger_denials(secret, denials.into_iter().collect());
    }

    /// Forgets everything about these pairs, which the table does not hold any more. Returns whether that
    /// changed the number of retained pairs.
    pub(super) fn forget(&mut self, is_other: impl Fn(Key) -> bool) -> bool {
        let before = self.states.len();
        self.states.retain(|key, _| !is_other(*key));
        self.without_record.retain(|key| !is_other(*key));
        self.before_reload.retain(|key, _| !is_other(*key));
        self.overwritten_by_replay.retain(|key, _| !is_other(*key));
        self.states.len() != before
    }

    /// Starts a replay of the log over a snapshot, which must have been restored: the table without
    /// it would lack every denial.
    pub(super) fn start_replay(&mut self, is_restored: bool, loss_time: Timestamp) {
        self.loss_time = loss_time;
        self.incomplete = !is_restored;
    }

    /// Writes a record that the table may hold already, or a later one: nothing is lost by going back
    /// to it, but if the replay reveals a loss, what the snapshot denied is retained.
    pub(super) fn replay(
        &mut self,
        writer: &mut Writer,
        key: Key,
        state: Result<&State, UnreadablePair>,
    ) {
        if let Some(denied) = writer.denials(key) {
            add(&mut self.overwritten_by_replay, key, &Arc::new(denied));
        }
        writer.apply(key, state);
    }

    /// Removes the pairs of a bucket that was read on a fork. What they were denied is treated like
    /// what was denied before the reload.
    pub(super) fn unload(
        &mut self,
        writer: &mut Writer,
        is_in_bucket: impl Fn(Key) -> bool + Copy,
    ) {
        let before = &mut self.before_reload;
        writer.for_each_denied(|key, denied| {
            if is_in_bucket(key) {
                add(before, key, denied);
            }
        });
        self.collect_unreadable(writer, is_in_bucket);
        for key in writer.remove_where(is_in_bucket) {
            self.states.remove(&key);
        }
    }

    /// Collects what unreadable pairs were denied before: their entries in the table do not say.
    fn collect_unreadable(&mut self, writer: &Writer, is_meant: impl Fn(Key) -> bool) {
        for (key, state) in &self.states {
            if is_meant(*key)
                && writer.holds_state(*key, Err(UnreadablePair))
                && let Some(denied) = denials_of(state)
            {
                add(&mut self.before_reload, *key, &Arc::new(denied));
            }
        }
    }

    /// Adds what the previous ledger denied a pair that the log has named, during a reload.
    pub(super) fn add_before_reload(&mut self, key: Key, denied: &Arc<RetainedDenials>) {
        add(&mut self.before_reload, key, denied);
        self.changed = true;
    }

    /// Retains what the previous ledger denied a pair that the log has named, after the reload.
    pub(super) fn retain_previous(&mut self, key: Key, denied: &RetainedDenials, state: &State) {
        self.retain(key, denied.missing_from(state, self.loss_time));
        self.changed = true;
    }

    /// Whether this pair is denied more than its record says, or may have to be once its record is loaded.
    pub(super) fn concerns(&self, key: Key) -> bool {
        self.before_reload.contains_key(&key) || self.states.contains_key(&key)
    }

    /// Whether the reload has still to compare what this pair was denied before with its record.
    pub(super) fn was_denied_before_reload(&self, key: Key) -> bool {
        self.before_reload.contains_key(&key)
    }

    /// Writes a record with the pair's retained denials. What it lacks of the denials before the
    /// reload, or of those in the table, is retained; the latter as lost at `now`.
    pub(super) fn write_record(
        &mut self,
        writer: &mut Writer,
        key: Key,
        record: &Record,
        now: Timestamp,
        change: Change,
    ) {
        let state = &record.state;
        let lost = if let Some(before) = self.before_reload.get(&key) {
            self.states.remove(&key);
            before.missing_from(state, self.loss_time)
        } else if record.is_tombstone() {
            // It denies everything by its suppression, whatever is retained of the pair: nothing
            // was lost.
            None
        } else {
            writer.denials(key).and_then(|denied| {
                let joined = self.join(key, state);
                let state = joined.as_ref().unwrap_or(state);
                match change {
                    // A record only grows, so nothing but a loss removes a scope from it.
                    Change::Event => denied.dropped_scopes(state, now),
                    Change::OutOfBand => denied.missing_from(state, now),
                }
            })
        };
        self.retain(key, lost);
        self.write(writer, key, state);
    }

    /// Denies a pair whose record cannot be read. All that it was denied is retained, as lost at
    /// `now`: once the record can be read again, it may lack it.
    pub(super) fn write_unreadable(&mut self, writer: &mut Writer, key: Key, now: Timestamp) {
        let nothing = State::default();
        let denied = match self.before_reload.get(&key) {
            Some(before) => before.missing_from(&nothing, self.loss_time),
            None => writer.denials(key).and_then(|denied| denied.missing_from(&nothing, now)),
        };
        self.retain(key, denied);
        writer.apply(key, Err(UnreadablePair));
    }

    /// The join of a record's state and what its pair retains; `None` if it retains nothing.
    pub(super) fn join(&self, key: Key, state: &State) -> Option<State> {
        let retained = self.states.get(&key)?;
        Some(state.clone().join(State::clone(retained)))
    }

    /// Whether the table holds this pair for its retained denials alone.
    pub(super) fn is_without_record(&self, key: Key) -> bool {
        self.without_record.contains(&key)
    }

    /// Notes that the ledger has a record of this pair; returns whether it had none before.
    pub(super) fn add_record(&mut self, key: Key) -> bool {
        self.without_record.remove(&key)
    }

    /// Removes the records of pairs that the ledger does not have, as of `now`; their denials are
    /// retained. Returns how many pairs it changed.
    pub(super) fn remove_records(
        &mut self,
        writer: &mut Writer,
        is_stranger: impl Fn(Key) -> bool,
        now: Timestamp,
    ) -> usize {
        let mut denials = HashMap::new();
        writer.for_each_denied(|key, denied| {
            if is_stranger(key) {
                denials.insert(key, Arc::clone(denied));
            }
        });
        let states = &self.states;
        let mut changed = writer.remove_where(|key| is_stranger(key) && !states.contains_key(&key));
        // A pair with retained denials stays in the table, without what its record added to them.
        let has_more = |(key, state): &(&Key, &Arc<State>)| {
            is_stranger(**key) && !writer.holds_state(**key, Ok(state))
        };
        changed.extend(states.iter().filter(has_more).map(|(key, _)| *key));
        for key in &changed {
            let retained = self.states.get(key).map(|state| State::clone(state));
            let retained = retained.unwrap_or_default();
            let lost = denials.get(key).and_then(|denied| denied.missing_from(&retained, now));
            if lost.is_some() {
                self.retain(*key, hidden_denials(writer, *key, now));
            }
            self.retain(*key, lost);
            if self.states.contains_key(key) {
                self.without_record.insert(*key);
                self.write(writer, *key, &State::default());
            }
        }
        changed.len()
    }

    /// Finishes a reload: pairs that were denied before it, and have no record, stay denied.
    pub(super) fn finish_reload(&mut self, writer: &mut Writer) {
        // Pairs of one profile share their denials, and so the state that is made of them.
        let mut shared: HashMap<*const RetainedDenials, Option<Arc<State>>> = HashMap::new();
        for (key, denied) in &self.before_reload {
            if writer.contains(*key) {
                continue;
            }
            let state = shared.entry(Arc::as_ptr(denied)).or_insert_with(|| {
                denied.missing_from(&State::default(), self.loss_time).map(Arc::new)
            });
            if let Some(state) = state {
                let mut state = Arc::clone(state);
                if let Some(hidden) = hidden_denials(writer, *key, self.loss_time) {
                    state = Arc::new(hidden.join(State::clone(&state)));
                }
                writer.apply(*key, Ok(&state));
                self.states.insert(*key, state);
                self.without_record.insert(*key);
            }
        }
        self.before_reload = HashMap::new();
        self.overwritten_by_replay = HashMap::new();
    }

    /// Writes a state joined with what its pair retains. What no longer makes a difference is not
    /// retained any more.
    fn write(&mut self, writer: &mut Writer, key: Key, state: &State) {
        if let Some(joined) = self.join(key, state) {
            if joined != *state {
                return writer.apply(key, Ok(&joined));
            }
            self.states.remove(&key);
            self.changed = true;
        }
        writer.apply(key, Ok(state));
    }

    /// Adds to what a pair retains.
    fn retain(&mut self, key: Key, lost: Option<State>) {
        let Some(lost) = lost else { return };
        let known = self.states.get(&key).map(|state| State::clone(state));
        self.states.insert(key, Arc::new(lost.join(known.unwrap_or_default())));
        self.changed = true;
    }
}

/// What the [nameless](consentd_core::id::KeySecret::nameless) pair of one without a record denies, as lost at this time: the entry
/// that the retained denials get would hide it. All is denied if its record cannot be read.
fn hidden_denials(writer: &Writer, key: Key, time: Timestamp) -> Option<State> {
    let nameless = writer.secret().nameless(key)?;
    if writer.holds_state(nameless, Err(UnreadablePair)) {
        return Some(State { suppression: Some((time, true)), ..State::default() });
    }
    writer.denials(nameless)?.missing_from(&State::default(), time)
}

/// What a retained state denies.
fn denials_of(state: &State) -> Option<RetainedDenials> {
    let ResolvedState { profile, expiries, .. } = ResolvedState::of(state);
    RetainedDenials::of(&profile, expiries.as_ref().into())
}

fn add(to: &mut HashMap<Key, Arc<RetainedDenials>>, key: Key, denied: &Arc<RetainedDenials>) {
    to.entry(key)
        .and_modify(|known| *known = Arc::new(known.join(denied)))
        .or_insert_with(|| Arc::clone(denied));
}
