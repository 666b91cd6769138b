//! What is applied, and by which of the last entries.

use std::collections::VecDeque;

use consentd_core::record::Revision;
use consentd_ledger::{Bucket, LogHead, Position};

/// How many of the last revisions are kept, to compare an older claim or label with.
const MAX_STEPS: usize = 4_096;

/// What is applied, and the last steps that led there.
pub(super) struct HeadWindow {
    end: Position,
    /// The head after each of the last revisions, up to and with the end, and the bucket that it
    /// changed; none for the position that the window begins at.
    steps: VecDeque<(LogHead, Option<u32>)>,
}

impl HeadWindow {
    /// A window that begins here.
    pub(super) fn from(start: Position) -> Self {
        Self { end: start, steps: VecDeque::from([(start.head, None)]) }
    }

    /// Where it ends.
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

    /// The head that we had at `revision`, where it is kept.
    pub(super) fn head_at(&self, revision: Revision) -> Option<LogHead> {
        self.steps.get(self.place(revision)?).map(|(head, _)| *head)
    }

    /// Where `revision` is among the steps.
    fn place(&self, revision: Revision) -> Option<usize> {
        let back = usize::try_from(self.end.revision.checked_sub(revision)?).ok()?;
        self.steps.len().checked_sub(back.checked_add(1)?)
    }

    /// Whether the bucket, read at a revision on this window, is still the same at its end.
    pub(super) fn is_untouched(&self, bucket: &Bucket) -> bool {
        let label = bucket.label;
        let Some(place) = self.place(label.revision) else { return false };
        let mut steps = self.steps.iter().skip(place);
        label.epoch == self.end.epoch
            && steps.next().is_some_and(|(head, _)| *head == label.head)
            && steps.all(|(_, changed)| *changed != Some(bucket.number))
    }
}
