//! The position that is applied, and the heads of the last revisions before it.

use std::collections::VecDeque;

use consentd_core::record::Revision;
use consentd_ledger::{Bucket, LogHead, Position};

/// How many revisions the window has, to compare end proofs and buckets of an earlier position with.
const MAX_STEPS: usize = 4_096;

/// The position that is applied, and the last steps that led to it.
pub(super) struct HeadWindow {
    end: Position,
    /// The head at each of the last revisions, the end included, and the bucket that the revision
    /// changed; `None` for the position at which the window begins.
    steps: VecDeque<(LogHead, Option<u32>)>,
}

impl HeadWindow {
    /// A window that begins at this position.
    pub(super) fn from(start: Position) -> Self {
        Self { end: start, steps: VecDeque::from([(start.head, None)]) }
    }

    /// The position that is applied.
    pub(super) fn end(&self) -> Position {
        self.end
    }

    /// Adds the next revision.
    pub(super) fn extend(&mut self, head: LogHead, bucket: u32) {
        self.end.revision = self.end.revision.saturating_add(1);
        self.end.head = head;
        if self.steps.len() >= MAX_STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back((head, Some(bucket)));
    }

    /// The head at `revision`; `None` if the window does not have it.
    pub(super) fn head_at(&self, revision: Revision) -> Option<LogHead> {
        self.steps.get(self.place(revision)?).map(|(head, _)| *head)
    }

    /// The index of `revision` among the steps.
    fn place(&self, revision: Revision) -> Option<usize> {
        let back = usize::try_from(self.end.revision.checked_sub(revision)?).ok()?;
        self.steps.len().checked_sub(back.checked_add(1)?)
    }

    /// Whether the bucket was read at a position in this window, and no revision since has changed it.
    pub(super) fn is_untouched(&self, bucket: &Bucket) -> bool {
        let label = bucket.label;
        let Some(place) = self.place(label.revision) else { return false };
        let mut steps = self.steps.iter().skip(place);
        label.epoch == self.end.epoch
            && steps.next().is_some_and(|(head, _)| *head == label.head)
            && steps.all(|(_, changed)| *changed != Some(bucket.number))
    }
}
