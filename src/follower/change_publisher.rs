//! Publishes changes of the table to the change feed.

use super::applier::{ActionOutcome, BucketOutcome, Judgement};
use super::state_machine::Action;
use crate::change_feed::{GapCause, Publisher};
use consentd_ledger::LogBody;

/// Publishes changes once they are in the table, with the ids from the log.
///
/// Pairs that were loaded from buckets, corrected by a scrub, or retained have keys but no ids. They
/// are published as a gap, and so is everything that changes while the table is not valid.
pub(super) struct ChangePublisher {
    publisher: Publisher,
    /// Whether the table is valid.
    valid: bool,
    /// The change that is in the table, until its revision is published.
    body: Option<Box<LogBody>>,
}

impl ChangePublisher {
    pub(super) fn new(publisher: Publisher) -> Self {
        Self { publisher, valid: false, body: None }
    }

    /// Handles an action that was performed, and its outcome.
    pub(super) fn on(&mut self, action: Action, done: ActionOutcome) {
        let was_valid = self.valid;
        match done.judgement {
            Some(Judgement::Valid { .. }) => self.valid = true,
            Some(Judgement::Overflowed { .. }) => self.valid = false,
            None => {}
        }
        let is_corrected = match done.bucket {
            Some(BucketOutcome::Denied { pairs }) => pairs > 0,
            Some(BucketOutcome::Compared { mismatches }) => mismatches > 0,
            None => false,
        };
        if self.valid && !was_valid {
            self.publisher.publish_gap(GapCause::Rebuilt);
        } else if self.valid && is_corrected {
            self.publisher.publish_gap(GapCause::Mended);
        }
        match action {
            Action::Invalidate(_) => {
                self.valid = false;
                self.body = None;
            }
            Action::Apply(body) if self.valid => self.body = Some(body),
            // Watchers look again at what they watch, and learn what is refused now.
            Action::Hold(_) if self.valid => self.publisher.publish_gap(GapCause::Businesses),
            Action::AdvanceRevision(revision, _) => match self.body.take() {
                Some(body) => {
                    let LogBody { user_id, business_id, .. } = *body;
                    self.publisher.publish(revision, user_id, business_id);
                }
                None => self.publisher.set_revision(revision),
            },
            _ => {}
        }
    }

    /// Wakes subscribers for the changes that were published since the last flush.
    pub(super) fn flush(&mut self) {
        self.publisher.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::change_feed::{self, MissedChanges, Subscription};
    use crate::follower::state_machine::ResyncCause;
    use consentd_core::id::Key;
    use consentd_core::record::{Record, Revision};
    use consentd_core::time::Timestamp;

    /// Publishes the change of a revision, with the actions of the state machine.
    fn apply(feed: &mut ChangePublisher, revision: Revision, done: ActionOutcome) {
        let body = LogBody {
            key: Key::from_bytes([1; 16]),
            user_id: format!("u{revision}"),
            business_id: "b".to_owned(),
            record: Ok(Record::default()),
            record_time: Timestamp::MIN,
        };
        feed.on(Action::Apply(Box::new(body)), done);
        feed.on(Action::AdvanceRevision(revision, Timestamp::MIN), PERFORMED);
        feed.flush();
    }

    fn read(watching: &mut Subscription) -> Result<Vec<Revision>, MissedChanges> {
        let mut read = VecDeque::new();
        watching.read(&mut read)?;
        Ok(read.iter().map(|change| change.revision).collect())
    }

    fn missed(cause: GapCause, revision: Revision) -> Result<Vec<Revision>, MissedChanges> {
        Err(MissedChanges { cause, revision })
    }

    const PERFORMED: ActionOutcome = ActionOutcome { bucket: None, judgement: None };

    fn valid(retained: usize) -> ActionOutcome {
        ActionOutcome { judgement: Some(Judgement::Valid { retained }), bucket: None }
    }

    fn compared(mismatches: usize, judgement: Option<Judgement>) -> ActionOutcome {
        ActionOutcome { bucket: Some(BucketOutcome::Compared { mismatches }), judgement }
    }

    #[test]
    fn changes_are_told_while_the_table_is_valid_and_anything_else_as_missed() {
        let (changes, publisher) = change_feed::new();
        let mut feed = ChangePublisher::new(publisher);
        let mut watching = changes.subscribe(1).unwrap();
        apply(&mut feed, 1, PERFORMED);
        assert_eq!(read(&mut watching), Ok(vec![]), "it is being loaded");
        feed.on(Action::Validate, valid(0));
        assert_eq!(read(&mut watching), missed(GapCause::Rebuilt, 1));
        apply(&mut feed, 2, PERFORMED);
        // A denial that is remembered no more, or once more, causes no rebuild.
        apply(&mut feed, 3, valid(1));
        assert_eq!(read(&mut watching), Ok(vec![2, 3]));
        feed.on(Action::Validate, compared(0, None));
        assert_eq!(read(&mut watching), Ok(vec![]));
        feed.on(Action::Validate, compared(1, None));
        assert_eq!(read(&mut watching), missed(GapCause::Mended, 3));

        feed.on(Action::Invalidate(ResyncCause::Fork), PERFORMED);
        apply(&mut feed, 2, PERFORMED);
        assert_eq!(read(&mut watching), Ok(vec![]), "it is read anew");
        feed.on(Action::Validate, valid(0));
        apply(&mut feed, 3, PERFORMED);
        assert_eq!(read(&mut watching), missed(GapCause::Rebuilt, 3));

        // Of a table that remembers too much to be valid, and then less.
        let overflowed = Some(Judgement::Overflowed { retained: 9 });
        apply(&mut feed, 4, ActionOutcome { bucket: None, judgement: overflowed });
        apply(&mut feed, 5, PERFORMED);
        assert_eq!(read(&mut watching), Ok(vec![]));
        apply(&mut feed, 6, valid(8));
        assert_eq!(read(&mut watching), missed(GapCause::Rebuilt, 6));
        apply(&mut feed, 7, PERFORMED);
        assert_eq!(read(&mut watching), Ok(vec![7]));

        // A scrub may be what makes so little of it that the table is valid again.
        apply(&mut feed, 8, ActionOutcome { bucket: None, judgement: overflowed });
        feed.on(Action::Poll, compared(1, Some(Judgement::Valid { retained: 8 })));
        assert_eq!(read(&mut watching), missed(GapCause::Rebuilt, 8));
        apply(&mut feed, 9, PERFORMED);
        assert_eq!(read(&mut watching), Ok(vec![9]));
    }
}
