//! What one call sent to the ledger, and what became of it. Pure: the caller does the I/O, so that
//! the simulation runs the same code.

use super::replay_denials::Replayable;
use consentd_ledger::{AppendReceipt, Appended, Change, Version};

/// Where a change comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// An event of the call, under the user id that it was given for.
    Event,
    /// A walk, which copies the event's denial or link to the person's other ids. Giving back the
    /// event walks again, so that a copy which the ledger has is not kept: it would be given back
    /// a second time, under its own id. One whose outcome is unknown is kept, since the caller may
    /// not repeat the event.
    Walk,
}

/// The changes of one call: which versions must be found in the table before the call is answered,
/// and which denials and erases must be kept in memory in case the ledger loses them.
#[derive(Default)]
pub struct SentChanges {
    /// Whether denials and erases are kept at all.
    keeps: bool,
    /// What was written, or found as it should be.
    versions: Vec<Version>,
    kept: Vec<Kept>,
    /// How many changes were sent.
    count: u64,
}

struct Kept {
    /// The number of the change that says it.
    change: u64,
    origin: Origin,
    what: Replayable,
    is_written: bool,
}

impl SentChanges {
    /// No changes yet. `keeps` says whether denials and erases are kept to be given back.
    #[must_use]
    pub fn new(keeps: bool) -> Self {
        Self { keeps, ..Self::default() }
    }

    /// Notes changes before they are sent: from then on their outcome is unknown. Returns the number
    /// of the first.
    pub fn send(&mut self, changes: &[Change], origin: Origin) -> u64 {
        let first = self.count;
        for change in changes {
            let number = self.count;
            self.count = number.saturating_add(1);
            if self.keeps {
                let kept = Replayable::of(change).into_iter();
                let kept =
                    kept.map(|what| Kept { change: number, origin, what, is_written: false });
                self.kept.extend(kept);
            }
        }
        first
    }

    /// These changes were certainly not written, so that nothing of them needs to be given back.
    pub fn discard(&mut self, first: u64, count: u64) {
        let own = first..first.saturating_add(count);
        self.kept.retain(|kept| !own.contains(&kept.change));
    }

    /// Notes the outcomes of changes, from the one with this number on.
    pub fn answered(&mut self, first: u64, written: &[AppendReceipt]) {
        for (change, written) in (first..).zip(written) {
            self.answered_one(change, written);
        }
    }

    fn answered_one(&mut self, change: u64, written: &AppendReceipt) {
        match &written.outcome {
            Appended::Committed(_) => {
                self.versions.extend(written.version());
                let kept = self.kept.iter_mut().filter(|kept| kept.change == change);
                kept.for_each(|kept| kept.is_written = true);
            }
            Appended::Failed(error) if error.may_be_written() => {}
            // Another change came first on the branch that answered; an earlier attempt may have
            // written this one to another branch, and no other process knows of it.
            Appended::Conflict(_) if written.maybe_written => {}
            Appended::Conflict(_) | Appended::Failed(_) => {
                self.kept.retain(|kept| kept.change != change);
            }
        }
    }

    /// Keeps something that the ledger was found to have.
    pub fn keep(&mut self, what: Replayable) {
        if self.keeps {
            let (change, origin) = (u64::MAX, Origin::Event);
            self.kept.push(Kept { change, origin, what, is_written: true });
        }
    }

    /// The versions that the table must have before the call is answered, the latest first: a
    /// follower that has the latest has applied the others, too.
    #[must_use]
    pub fn versions(&self) -> Vec<Version> {
        let mut versions = self.versions.clone();
        versions.sort_unstable_by_key(|version| std::cmp::Reverse(version.revision));
        versions.dedup();
        versions
    }

    /// Takes what is to be kept, with whether the ledger is known to have it. `is_followed` says
    /// whether the table has all versions; where it has not, nothing is known.
    #[must_use]
    pub fn take_kept(&mut self, is_followed: bool) -> Vec<(Replayable, bool)> {
        let kept = std::mem::take(&mut self.kept).into_iter();
        let kept = kept.map(|kept| (kept.origin, kept.what, kept.is_written && is_followed));
        let kept = kept.filter(|(origin, _, is_settled)| *origin == Origin::Event || !is_settled);
        kept.map(|(_, what, is_settled)| (what, is_settled)).collect()
    }
}
