//! What of all that is done to the table those are told who watch it.

use super::apply::Done;
use super::machine::Action;
use crate::changes::{Cause, Publisher};
use consentd_ledger::LogBody;

/// Tells changes once they are in the table, under the ids that came with them.
///
/// A snapshot, a remembered denial of a pair that is no more, or a mended pair have keys and no
/// ids. Whatever is done while the table is not valid is told as one: it was read anew.
pub(super) struct Feed {
    publisher: Publisher,
    /// Whether the table is valid.
    valid: bool,
    /// What is in the table already, and its revision not yet.
    body: Option<Box<LogBody>>,
}

impl Feed {
    pub(super) fn new(publisher: Publisher) -> Self {
        Self { publisher, valid: false, body: None }
    }

    /// An action was performed, and this came of it.
    pub(super) fn on(&mut self, action: Action, done: Done) {
        match done {
            Done::Valid { .. } if !self.valid => {
                self.valid = true;
                self.publisher.missed(Cause::Rebuilt);
            }
            Done::Overflowed { .. } => self.valid = false,
            Done::Doubted { pairs } if pairs > 0 && self.valid => {
                self.publisher.missed(Cause::Mended);
            }
            Done::Compared { mismatches } if mismatches > 0 && self.valid => {
                self.publisher.missed(Cause::Mended);
            }
            Done::Valid { .. } | Done::Doubted { .. } | Done::Compared { .. } | Done::Done => {}
        }
        match action {
            Action::Invalidate(_) => {
                self.valid = false;
                self.body = None;
            }
            Action::Apply(body) if self.valid => self.body = Some(body),
            Action::Applied(revision, _) => match self.body.take() {
                Some(body) => {
                    let LogBody { user_id, business_id, .. } = *body;
                    self.publisher.changed(revision, user_id, business_id);
                }
                None => self.publisher.applied(revision),
            },
            _ => {}
        }
    }

    /// Tells what was not told yet: everything that was to be done now is done.
    pub(super) fn tell(&mut self) {
        self.publisher.tell();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::changes::{self, Missed, Subscription};
    use crate::follower::machine::Cause as Why;
    use consentd_core::id::Key;
    use consentd_core::record::{Record, Revision};
    use consentd_core::time::Timestamp;

    /// Tells the change of a revision, as the machine has it done.
    fn apply(feed: &mut Feed, revision: Revision, done: Done) {
        let body = LogBody {
            key: Key::from_bytes([1; 16]),
            user_id: format!("u{revision}"),
            business_id: "b".to_owned(),
            record: Ok(Record::default()),
            record_time: Timestamp::MIN,
        };
        feed.on(Action::Apply(Box::new(body)), done);
        feed.on(Action::Applied(revision, Timestamp::MIN), Done::Done);
        feed.tell();
    }

    fn read(watching: &mut Subscription) -> Result<Vec<Revision>, Missed> {
        let mut read = VecDeque::new();
        watching.read(&mut read)?;
        Ok(read.iter().map(|change| change.revision).collect())
    }

    fn missed(cause: Cause, revision: Revision) -> Result<Vec<Revision>, Missed> {
        Err(Missed { cause, revision })
    }

    #[test]
    fn changes_are_told_while_the_table_is_valid_and_anything_else_as_missed() {
        let (changes, publisher) = changes::new();
        let mut feed = Feed::new(publisher);
        let mut watching = changes.subscribe(1).unwrap();
        apply(&mut feed, 1, Done::Done);
        assert_eq!(read(&mut watching), Ok(vec![]), "it is being loaded");
        feed.on(Action::Validate, Done::Valid { sticky: 0 });
        assert_eq!(read(&mut watching), missed(Cause::Rebuilt, 1));
        apply(&mut feed, 2, Done::Done);
        // A denial that is remembered no more, or once more, makes nothing anew.
        apply(&mut feed, 3, Done::Valid { sticky: 1 });
        assert_eq!(read(&mut watching), Ok(vec![2, 3]));
        feed.on(Action::Validate, Done::Compared { mismatches: 0 });
        assert_eq!(read(&mut watching), Ok(vec![]));
        feed.on(Action::Validate, Done::Compared { mismatches: 1 });
        assert_eq!(read(&mut watching), missed(Cause::Mended, 3));

        feed.on(Action::Invalidate(Why::Fork), Done::Done);
        apply(&mut feed, 2, Done::Done);
        assert_eq!(read(&mut watching), Ok(vec![]), "it is read anew");
        feed.on(Action::Validate, Done::Valid { sticky: 0 });
        apply(&mut feed, 3, Done::Done);
        assert_eq!(read(&mut watching), missed(Cause::Rebuilt, 3));

        // Of a table that remembers too much to be valid, and then less.
        apply(&mut feed, 4, Done::Overflowed { sticky: 9 });
        apply(&mut feed, 5, Done::Done);
        assert_eq!(read(&mut watching), Ok(vec![]));
        apply(&mut feed, 6, Done::Valid { sticky: 8 });
        assert_eq!(read(&mut watching), missed(Cause::Rebuilt, 6));
        apply(&mut feed, 7, Done::Done);
        assert_eq!(read(&mut watching), Ok(vec![7]));
    }
}
