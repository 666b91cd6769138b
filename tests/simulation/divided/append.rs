//! Appends over several partitions: each part reaches its own partition's owner, or a former owner, at a moment of its
//! own, and counts as durable only once a majority of the nodes has named that owner.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use consentd::recorder::sent_changes::Origin;
use consentd_core::id::Key;
use consentd_core::record::Record;
use consentd_ledger::{
    AppendReceipt, Appended, Change, LedgerError, Position, StoredRecord, UnreadableRecord,
};

use super::process::OWN;
use super::recorder::Step;
use super::world::World;
use crate::append::version;
use crate::ledger::{Said, Stored};
use crate::oracle::is_denial;
use crate::process::process_of;
use crate::sidecar::true_time;
use crate::world::MILLI;

/// How often a recorder is killed at each step of its way through the ids of a person.
pub const KILLED: u64 = 2;

/// No answer came in time, or most nodes name another owner.
#[derive(Debug, thiserror::Error)]
#[error("nobody knows what came of it")]
struct Unknown;

fn unknown() -> AppendReceipt {
    let outcome = Appended::Failed(LedgerError::Unreachable(Arc::new(Unknown)));
    AppendReceipt { outcome, partition: 0, head_prefix: 0, maybe_written: true }
}

/// The pair's record as an append finds it.
pub fn record_of(stored: Option<&Stored>) -> Result<StoredRecord, UnreadableRecord> {
    let record = stored.map_or_else(|| Ok(Record::default()), |stored| stored.said.record());
    record.map(|record| StoredRecord { version: version(stored), record })
}

/// What is appended for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Purpose {
    /// The change of the event's own pair.
    #[default]
    Event,
    /// To prove what was read of the other ids.
    Proof,
    /// The changes of the other ids.
    Propagation,
    /// Tombstones, or the one of an erase that is given back, or what happened after that.
    Erase,
    EraseAgain,
    Later,
}

/// What is being appended.
#[derive(Default)]
pub struct Pending {
    pub changes: Vec<Change>,
    pub receipts: Vec<Option<AppendReceipt>>,
    /// The owners that took a part of it, by their terms.
    pub terms: Vec<(usize, u64)>,
    pub first: u64,
    pub purpose: Purpose,
}

impl World {
    /// Appends changes, those of each partition by themselves, at moments of their own.
    pub fn append_all(&mut self, index: usize, changes: Vec<Change>, purpose: Purpose) {
        let parts: BTreeSet<usize> =
            changes.iter().map(|change| self.place_of(change.key)).collect();
        let is_copied = matches!(purpose, Purpose::Proof | Purpose::Propagation);
        let origin = if is_copied { Origin::Propagation } else { Origin::Event };
        let recorder = &mut self.recorders[index];
        if process_of(index) == Some(OWN) {
            for at in parts.iter().filter(|at| self.partitions[**at].is_followed) {
                let position = &self.partitions[*at].position;
                let partition = u32::try_from(*at).unwrap();
                let noted = || (position.clone(), position.now());
                recorder.followed.entry(partition).or_insert_with(noted);
            }
        }
        let first = recorder.sent.send(&changes, origin);
        let receipts = changes.iter().map(|_| None).collect();
        recorder.pending = Pending { changes, receipts, terms: Vec::new(), first, purpose };
        let mut latest = 0;
        for at in parts {
            let wait = self.soon();
            latest = latest.max(wait);
            self.recorder_goes_on(index, wait, Step::Part(at));
        }
        let wait = latest + self.soon();
        self.recorder_goes_on(index, wait, Step::Appended);
    }

    fn place_of(&self, key: Key) -> usize {
        usize::try_from(self.layout.partition_of(key)).unwrap()
    }

    pub fn append_part(&mut self, index: usize, at: usize) {
        if self.recorders[index].pending.purpose != Purpose::Event && self.random.percent(KILLED) {
            return self.recorder_fails(index);
        }
        let loss = self.partitions[at].wire.page_loss / 2;
        if self.partitions[at].is_missing || self.random.percent(loss) {
            return;
        }
        let Some((_, term)) = self.reached(at) else { return };
        let mut pending = std::mem::take(&mut self.recorders[index].pending);
        for place in 0..pending.changes.len() {
            let change = &pending.changes[place];
            if self.place_of(change.key) == at {
                let (receipt, wrote) = self.append_one(at, term, change);
                if wrote.is_some() && matches!(pending.purpose, Purpose::Event | Purpose::Erase) {
                    let number = self.partitions[at].primary.number_of(change.key).unwrap();
                    self.owes(index, number, change);
                }
                if pending.purpose == Purpose::Event {
                    self.recorders[index].wrote.extend(wrote);
                }
                pending.receipts[place] = Some(receipt);
            }
        }
        pending.terms.push((at, term));
        let partition = &mut self.partitions[at];
        if self.plan.confirmed && partition.term == term {
            if partition.lags {
                pending.terms.pop(); // The replica does not have it: that is no answer.
            } else {
                partition.replica = partition.primary.clone();
            }
        }
        if self.random.percent(loss) {
            pending.terms.retain(|(from, _)| *from != at); // The answer is lost.
        }
        self.recorders[index].pending = pending;
    }

    /// What comes of one change at the owner of that term, and where it was written, if it was.
    fn append_one(
        &mut self,
        at: usize,
        term: u64,
        change: &Change,
    ) -> (AppendReceipt, Option<Position>) {
        let now = true_time(self.time());
        let partition = &mut self.partitions[at];
        let is_current = partition.term == term;
        let server = match &mut partition.former {
            Some(former) if !is_current => &mut former.server,
            _ => &mut partition.primary,
        };
        let number = server.number_of(change.key).unwrap();
        let receipt = |outcome, stored: Option<&Stored>| AppendReceipt {
            outcome,
            partition: u32::try_from(at).unwrap(),
            head_prefix: version(stored).head_prefix,
            maybe_written: false,
        };
        if version(server.stored[number].as_ref()) != change.base {
            let stored = record_of(server.stored[number].as_ref());
            return (receipt(Appended::Conflict(stored), None), None);
        }
        let mut wrote = None;
        if let Some(update) = &change.update {
            let said = Rc::new(Said::of(update.record.clone()));
            let is_tombstone = said.is_tombstone();
            self.acks.written(number, &said);
            let entry = server.append(&mut self.random, number, said, now, true);
            wrote = Some(server.end());
            if is_current {
                if self.plan.log < 1_000_000 {
                    let trimmed = server.end().revision.saturating_sub(self.plan.log);
                    server.trimmed = server.trimmed.max(trimmed);
                }
                let now = self.now;
                self.partitions[at].know(now);
                self.announce(at, &entry);
                if is_tombstone {
                    self.names_nobody(number);
                }
            } else {
                self.know_branch(at);
                if self.random.percent(50) {
                    self.announce(at, &entry);
                }
            }
        }
        let partition = &self.partitions[at];
        let server = match &partition.former {
            Some(former) if !is_current => &former.server,
            _ => &partition.primary,
        };
        let stored = server.stored[number].as_ref();
        (receipt(Appended::Committed(version(stored).revision), stored), wrote)
    }

    /// What is not answered by the owner of today, by the word of most nodes, is unknown.
    pub fn appended(&mut self, index: usize) {
        let now = self.now;
        let pending = std::mem::take(&mut self.recorders[index].pending);
        let Pending { changes, receipts, terms, first, purpose } = pending;
        let is_proven = |change: &Change| {
            let at = self.place_of(change.key);
            let partition = &self.partitions[at];
            terms.contains(&(at, partition.term)) && partition.unconfirmed_until <= now
        };
        let receipts: Vec<AppendReceipt> = changes
            .iter()
            .zip(receipts)
            .map(|(change, receipt)| receipt.filter(|_| is_proven(change)).unwrap_or_else(unknown))
            .collect();
        let recorder = &mut self.recorders[index];
        recorder.sent.answered(first, &receipts);
        let outcomes: Vec<Appended> = receipts.into_iter().map(|it| it.outcome).collect();
        match purpose {
            Purpose::Event => {}
            Purpose::Proof => return self.is_proven(index, &changes, outcomes),
            Purpose::Propagation => return self.propagated(index, &changes, &outcomes),
            Purpose::Erase => return self.leaves_tombstones(index, outcomes),
            Purpose::EraseAgain => return self.has_erased_again(index, outcomes.first()),
            Purpose::Later => return self.has_recorded_later(index, outcomes.first()),
        }
        match outcomes.first() {
            Some(Appended::Committed(revision)) => {
                recorder.revision = *revision;
                let denies = recorder.effects.iter().any(is_denial);
                let links = recorder.link_time.is_some();
                if recorder.is_linked && (denies || links) && !recorder.leaves_no_trace {
                    self.propagate(index);
                } else {
                    let wait = self.soon();
                    self.recorder_goes_on(index, wait, Step::Acknowledge);
                }
            }
            Some(Appended::Conflict(_)) => self.recorder_goes_on(index, MILLI, Step::Read),
            _ => self.recorder_fails(index),
        }
    }
}
