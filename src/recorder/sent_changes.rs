//! The changes that one call sent to the ledger, and their outcomes. Pure: the caller does the I/O, so
//! that the simulation runs the same code.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::replay_denials::Replayable;
use consentd_ledger::{
    AppendReceipt, Appended, Change, FollowerCheckpoint, FollowerPosition, Version,
};

/// The followers of the partitions that a call appends to, with where each was before the first append there.
pub type FollowedPartitions = BTreeMap<u32, (FollowerPosition, FollowerCheckpoint)>;

/// A version that a follower must have applied before the call is answered.
pub struct AwaitedVersion {
    /// The partition that it is in.
    pub partition: u32,
    /// The follower of that partition.
    pub follower: FollowerPosition,
    /// Where that follower was before the version was appended.
    pub before: FollowerCheckpoint,
    /// The version.
    pub version: Version,
}

impl AwaitedVersion {
    /// Whether the follower has applied it.
    #[must_use]
    pub fn has_arrived(&self) -> bool {
        self.follower.has(self.version, self.before)
    }
}

/// The cause of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// An event of the call, under the event's own user id.
    Event,
    /// A propagation, which copies the event's denial or link to the person's other ids. A replay of the
    /// event propagates it again, so that a copy which the ledger has is not retained: it would be
    /// replayed a second time, under its own id. A copy whose outcome is unknown is retained, because
    /// the caller may not repeat the event.
    Propagation,
}

/// The changes of one call: the versions that the table must have before the call is answered, and the
/// denials and erasures that are retained in memory in case the ledger loses them.
#[derive(Default)]
pub struct SentChanges {
    /// Whether denials and erasures are retained at all.
    retains: bool,
    /// The versions that were written, or that were found to be complete already, with their partitions.
    versions: Vec<(u32, Version)>,
    retained: Vec<SentReplayable>,
    /// The number of changes that were sent.
    count: u64,
}

/// A part of a sent change that must not be lost.
struct SentReplayable {
    /// The number of its change.
    change: u64,
    origin: Origin,
    what: Replayable,
    /// Whether the ledger has answered that the change is written.
    is_written: bool,
}

impl SentChanges {
    /// No changes yet. `retains` is whether denials and erasures are retained for a replay.
    #[must_use]
    pub fn new(retains: bool) -> Self {
        Self { retains, ..Self::default() }
    }

    /// Adds changes before they are sent: from then on their outcome is unknown. Returns the number
    /// of the first.
    pub fn send(&mut self, changes: &[Change], origin: Origin) -> u64 {
        let first = self.count;
        for change in changes {
            let number = self.count;
            self.count = number.saturating_add(1);
            if self.retains {
                let parts = Replayable::of(change).into_iter();
                self.retained.extend(parts.map(|what| SentReplayable {
                    change: number,
                    origin,
                    what,
                    is_written: false,
                }));
            }
        }
        first
    }

    /// Discards changes that were certainly not written, so that nothing of them can be lost.
    pub fn discard(&mut self, first: u64, count: u64) {
        let own = first..first.saturating_add(count);
        self.retained.retain(|part| !own.contains(&part.change));
    }

    /// Takes the outcomes of changes, from the one with this number on.
    pub fn answered(&mut self, first: u64, written: &[AppendReceipt]) {
        for (change, written) in (first..).zip(written) {
            self.answered_one(change, written);
        }
    }

    fn answered_one(&mut self, change: u64, written: &AppendReceipt) {
        match &written.outcome {
            Appended::Committed(_) => {
                self.versions.extend(written.version().map(|version| (written.partition, version)));
                let parts = self.retained.iter_mut().filter(|part| part.change == change);
                parts.for_each(|part| part.is_written = true);
            }
            Appended::Failed(error) if error.may_be_written() => {}
            // Another change came first on the branch that answered. An earlier attempt may have
            // written this one to another branch, and no other process knows of it.
            Appended::Conflict(_) if written.maybe_written => {}
            Appended::Conflict(_) | Appended::Failed(_) => {
                self.retained.retain(|part| part.change != change);
            }
        }
    }

    /// Also retains a change that the ledger was found to have.
    pub fn retain(&mut self, what: Replayable) {
        if self.retains {
            let (change, origin) = (u64::MAX, Origin::Event);
            self.retained.push(SentReplayable { change, origin, what, is_written: true });
        }
    }

    /// The versions that the table must have before the call is answered, each with its partition, and of each
    /// partition the latest first: a follower that has applied the latest has applied the others too.
    #[must_use]
    pub fn versions(&self) -> Vec<(u32, Version)> {
        let mut versions = self.versions.clone();
        versions
            .sort_unstable_by_key(|(partition, version)| (*partition, Reverse(version.revision)));
        versions.dedup();
        versions
    }

    /// What this process' own followers must apply before the call is answered. What is in a partition that none of
    /// them follows is not waited for.
    #[must_use]
    pub fn awaited(&self, partitions: &FollowedPartitions) -> Vec<AwaitedVersion> {
        let awaited = self.versions().into_iter().filter_map(|(partition, version)| {
            let (follower, before) = partitions.get(&partition)?.clone();
            Some(AwaitedVersion { partition, follower, before, version })
        });
        awaited.collect()
    }

    /// Takes what is to be retained for a replay, each with whether it is confirmed: whether the ledger
    /// is known to have it. `is_followed` is whether the table has all versions; otherwise no change is
    /// confirmed.
    #[must_use]
    pub fn take_retained(&mut self, is_followed: bool) -> Vec<(Replayable, bool)> {
        let parts = std::mem::take(&mut self.retained).into_iter();
        let parts = parts.map(|part| (part.origin, part.what, part.is_written && is_followed));
        let parts =
            parts.filter(|(origin, _, is_confirmed)| *origin == Origin::Event || !is_confirmed);
        parts.map(|(_, what, is_confirmed)| (what, is_confirmed)).collect()
    }
}
