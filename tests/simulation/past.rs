//! Where the primary stood, and when: what must be in a table that is proven.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::ledger::{Node, fork};
use crate::oracle::Violation;

/// Where the primary stood.
#[derive(Default)]
pub struct Past {
    /// From when on it stood where, and whether what it is there is another one than before.
    moves: Vec<(u64, Rc<Node>, bool)>,
    /// Whether something was written that is on no branch of the primary's.
    is_forked: bool,
    /// The true time at which the log was asked for, by the sidecar's time since boot.
    asked: BTreeMap<Duration, u64>,
}

impl Past {
    /// The primary stands here from now on.
    pub fn stands(&mut self, now: u64, node: &Rc<Node>) {
        let from = self.moves.last().map(|(_, from, _)| from);
        let other =
            from.is_some_and(|from| fork(from, node).is_none_or(|it| !Rc::ptr_eq(&it, from)));
        self.moves.push((now, Rc::clone(node), other));
    }

    /// Whether there was one ledger all the while, of which nothing was ever lost.
    pub fn is_whole(&self) -> bool {
        !self.is_forked && !self.moves.iter().any(|(.., other)| *other)
    }

    /// A server that is not the primary any more was written to.
    pub fn forks(&mut self) {
        self.is_forked = true;
    }

    /// The log is asked for; where two moments are the same to the sidecar, the first one counts.
    pub fn asks(&mut self, boot: Duration, now: u64) {
        self.asked.entry(boot).or_insert(now);
    }

    /// Another sidecar, on a clock that may have been set back.
    pub fn forget_questions(&mut self) {
        self.asked.clear();
    }

    /// What stood in the ledger before then, and was not lost since.
    fn kept(&self, since: u64) -> Option<Rc<Node>> {
        let later = self.moves.partition_point(|(at, ..)| *at < since);
        let (_, node, _) = self.moves.get(later.checked_sub(1)?)?;
        let mut others = self.moves[later..].iter().filter(|(.., other)| *other);
        others.try_fold(Rc::clone(node), |kept, (_, node, _)| fork(&kept, node))
    }

    /// Property 3, before anybody asks: a table that stands at `node` and is proven as of `boot` has
    /// all that stood in the ledger by then, but for what was lost since.
    pub fn proves(&self, boot: Duration, node: &Rc<Node>) -> Result<(), Violation> {
        let Some(since) = self.asked.get(&boot) else {
            return Err(Violation::new(3, "proven as of a moment at which nothing was asked"));
        };
        let Some(kept) = self.kept(*since) else { return Ok(()) };
        if fork(&kept, node).is_some_and(|both| Rc::ptr_eq(&both, &kept)) {
            return Ok(());
        }
        let (at, kept) = (node.position.revision, kept.position.revision);
        Err(Violation::new(3, format!("proven at {at} without what the ledger had by {kept}")))
    }
}
