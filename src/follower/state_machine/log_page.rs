//! Following the log: checks that a page continues what is applied, and applies its entries.

use std::cmp::Ordering;

use super::{Action, EndProof, Mismatch, Phase, ResyncCause, StateMachine};
use consentd_core::record::Revision;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    LogBody, LogEntry, LogHead, Page, Position, Tail, UndecodedEntry, bucket_of,
};
use consentd_os::clock::Moment;

/// How many end proofs wait for their revision to be applied. Beyond that the oldest is dropped: a
/// later one proves more.
const MAX_END_PROOFS: usize = 64;

impl StateMachine {
    /// Applies a page of the log that was asked for at this moment, from behind this revision.
    ///
    /// # Errors
    ///
    /// The ledger is not a continuation of what is applied.
    pub(super) fn follow(
        &mut self,
        asked: Moment,
        after: Revision,
        page: Page,
    ) -> Result<(), Mismatch> {
        let Page { end, tail, clock, accepted, .. } = page;
        self.check_end(after, end)?;
        self.check_acceptance(accepted)?;
        let Tail::Entries(entries) = tail else { return Err(Mismatch(ResyncCause::Trimmed)) };
        if entries.iter().any(|entry| self.lacks(entry)) {
            self.actions.push(Action::Poll);
            return Ok(());
        }
        let before = self.applied();
        let is_empty = entries.is_empty();
        for entry in entries {
            self.apply_entry(entry)?;
        }
        let filled = self.applied() > before && !self.out_of_order.is_empty();
        self.apply_out_of_order()?;
        if filled {
            self.actions.push(Action::GapRepaired);
        }
        self.check_reached(end, is_empty)?;
        if self.applied() < end.revision
            || (self.applied() > before && !self.out_of_order.is_empty())
        {
            self.actions.push(Action::Poll);
        } else {
            // The end did not move. What was announced past it is of a fork that was discarded, or
            // comes with the next page.
            self.out_of_order.clear();
        }
        if self.end_proofs.len() >= MAX_END_PROOFS {
            self.end_proofs.pop_front();
        }
        let Position { revision, head, .. } = end;
        self.end_proofs.push_back(EndProof { asked, clock, revision, head });
        self.read_buckets_again(asked, end.revision);
        self.on_addition_end(asked, end.revision);
        Ok(())
    }

    /// Checks that the log ends no earlier than it is known to have ended before.
    fn check_end(&self, after: Revision, end: Position) -> Result<(), Mismatch> {
        if end.epoch != self.window.end().epoch {
            return Err(Mismatch(ResyncCause::Epoch));
        }
        // All changes in a snapshot of the table were in the ledger.
        let saved = if let Phase::Warming(until) = self.phase { until.revision } else { 0 };
        // So were those up to an end that an earlier page reported, even if they were not read yet.
        let reported = self.end_proofs.back().map_or(0, |proof| proof.revision);
        if end.revision < after.max(saved).max(reported) {
            return Err(Mismatch(ResyncCause::Fork));
        }
        Ok(())
    }

    /// Checks that the ledger was accepted as often as when it was loaded.
    fn check_acceptance(&self, accepted: u64) -> Result<(), Mismatch> {
        match self.accepted.map_or(accepted, |(_, known)| known).cmp(&accepted) {
            Ordering::Less => Err(Mismatch(ResyncCause::Accepted)),
            // A restored backup, or a replica that lags, knows of fewer acceptances than we do. No
            // operator has accepted that state.
            Ordering::Greater => Err(Mismatch(ResyncCause::Fork)),
            Ordering::Equal => Ok(()),
        }
    }

    /// Checks what is applied against the end of the page, once all of its entries are.
    fn check_reached(&self, end: Position, is_empty: bool) -> Result<(), Mismatch> {
        if self.applied() < end.revision && is_empty {
            // The log ends ahead of us, but holds nothing behind us.
            return Err(Mismatch(ResyncCause::Trimmed));
        }
        if self.window.head_at(end.revision).is_some_and(|head| head != end.head) {
            return Err(Mismatch(ResyncCause::Fork));
        }
        Ok(())
    }

    /// Reads again the buckets that could not be used, now that the log's end is known.
    fn read_buckets_again(&mut self, asked: Moment, end: Revision) {
        if let Phase::Loading(bootstrap) = &mut self.phase {
            let lost = bootstrap.on_end(asked, end);
            self.actions.extend(lost.into_iter().map(Action::UnloadBucket));
            self.actions.extend(bootstrap.again().into_iter().map(Action::ReadBucket));
        } else if self.is_live() {
            self.actions.extend(self.lost_buckets.more().into_iter().map(Action::ReadBucket));
        }
    }

    /// Applies the entry if it is the next one; does nothing if it was applied before.
    fn apply_entry(&mut self, entry: LogEntry) -> Result<(), Mismatch> {
        if entry.revision <= self.applied() {
            return self.check_applied(&entry);
        }
        self.check_continues(&entry)?;
        let (key, body) = match entry.body {
            Ok(body) => (body.key, Some(body)),
            // Of others: it only moves the log's end.
            Err(UndecodedEntry::Skipped(key)) => (key, None),
            Err(UndecodedEntry::Unreadable) => return Err(Mismatch(ResyncCause::Unreadable)),
        };
        self.check_saved_end(entry.revision, &entry.head)?;
        let bucket = bucket_of(key, self.buckets);
        let recorded = body.as_ref().map_or(Timestamp::MIN, |body| body.record_time);
        let is_held = self.held.holds_key(key);
        let action = body.map(Box::new).and_then(|body| {
            if is_held {
                Some(self.classify(entry.revision, bucket, body))
            } else {
                self.classify_other(body)
            }
        });
        self.actions.extend(action);
        self.actions.push(Action::AdvanceRevision(entry.revision, recorded));
        self.window.extend(entry.head, bucket);
        if let Phase::Loading(bootstrap) = &mut self.phase {
            // Buckets that were read at this revision, but with another head, are of a fork.
            for bucket in bootstrap.on_reached(entry.revision, &entry.head) {
                self.actions.push(Action::UnloadBucket(bucket));
            }
        }
        self.compare_ahead();
        self.on_addition_reached();
        Ok(())
    }

    /// Checks that an entry which was applied before is still the same.
    fn check_applied(&self, entry: &LogEntry) -> Result<(), Mismatch> {
        match self.window.head_at(entry.revision) {
            Some(head) if head != entry.head => Err(Mismatch(ResyncCause::Fork)),
            _ => Ok(()),
        }
    }

    /// Checks that an entry directly continues what is applied.
    fn check_continues(&self, entry: &LogEntry) -> Result<(), Mismatch> {
        if entry.revision != self.applied().saturating_add(1) {
            return Err(Mismatch(ResyncCause::Trimmed));
        }
        if entry.previous != self.window.end().head {
            return Err(Mismatch(ResyncCause::Fork));
        }
        Ok(())
    }

    /// Checks that the log, once it reaches the end of the snapshot, has the same head there.
    fn check_saved_end(&self, revision: Revision, head: &LogHead) -> Result<(), Mismatch> {
        match self.phase {
            Phase::Warming(until) if revision == until.revision && *head != until.head => {
                Err(Mismatch(ResyncCause::Fork))
            }
            _ => Ok(()),
        }
    }

    /// What to do to the table with an entry that continues the log.
    fn classify(&self, revision: Revision, bucket: u32, body: Box<LogBody>) -> Action {
        match &self.phase {
            // The bucket will be read later, and then contains this change. But only the log has
            // the ids of a pair, and only by them can denials of a ledger with another secret be
            // assigned to it: this entry may be the last that names them.
            Phase::Loading(bootstrap) if !bootstrap.takes(bucket, revision) => {
                Action::NoteIds(body)
            }
            // The snapshot may hold this change already, or a later one of the pair.
            Phase::Warming(until) if revision <= until.revision => Action::Replay(body),
            _ => Action::Apply(body),
        }
    }

    /// Applies announced entries as far as they continue the log, and drops those that were applied.
    pub(super) fn apply_out_of_order(&mut self) -> Result<(), Mismatch> {
        while let Some((revision, entry)) = self.out_of_order.pop_first() {
            let next = revision == self.applied().saturating_add(1);
            let is_usable = !matches!(entry.body, Err(UndecodedEntry::Unreadable));
            let is_whole = is_usable && !self.lacks(&entry);
            if next && entry.previous == self.window.end().head && is_whole {
                self.apply_entry(entry)?;
            } else if revision > self.applied() {
                self.out_of_order.insert(revision, entry);
                break;
            }
        }
        Ok(())
    }
}
