//! What of all that is done to the table those are told who watch it.

use super::apply::Done;
use super::machine::Action;
use crate::changes::{Cause, Publisher};
use crate::ledger::LogBody;

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
            Done::Compared { mismatches } if mismatches > 0 && self.valid => {
                self.publisher.missed(Cause::Mended);
            }
            Done::Valid { .. } | Done::Compared { .. } | Done::Done => {}
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
