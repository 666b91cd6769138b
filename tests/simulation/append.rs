//! What comes of a recorder's append: on the primary, or on a former one that still answers.
//!
//! After a failover a recorder's connection may lead to the former primary for a while. What it
//! appends there is durable on a branch of the log that is dead. The Sentinels, asked after every
//! append, name another server then: the outcome is unknown, and must never be answered as recorded.

use std::rc::Rc;
use std::sync::Arc;

use consentd_core::state::Effect;
use consentd_ledger::{AppendReceipt, Appended, LedgerError, StoredRecord, Version};

use crate::ledger::{Said, Stored};
use crate::oracle::Ack;
use crate::sidecar::true_time;
use crate::world::{Happening, MILLI, World};

/// In how many of a hundred appends after a failover the recorder still reaches the former primary.
const REACHES_FORMER: u64 = 40;

/// How many of a hundred entries of a former primary are announced to the sidecar.
const ANNOUNCED_BY_FORMER: u64 = 50;

/// The version that a recorder compares by.
pub fn version(stored: Option<&Stored>) -> Version {
    stored.map_or_else(Version::default, |stored| {
        let (revision, head) = stored.version;
        let head_prefix = u64::from_be_bytes(head[..8].try_into().unwrap());
        Version { revision, head_prefix }
    })
}

/// The Sentinels name another primary than the server that took an append.
#[derive(Debug, thiserror::Error)]
#[error("another primary is named")]
struct AnotherIsNamed;

impl World {
    /// Appends a change of one user, or only compares where there is nothing to write. Returns
    /// nothing if no answer ever comes.
    pub fn append(
        &mut self,
        number: usize,
        base: Version,
        said: Option<Rc<Said>>,
    ) -> Option<Result<AppendReceipt, LedgerError>> {
        if self.reaches_former() {
            return self.append_to_former(number, base, said);
        }
        let known = self.primary.stored[number].as_ref();
        if version(known) != base {
            return Some(Ok(conflict()));
        }
        if let Some(said) = said {
            self.write(number, said, true);
        }
        if self.plan.confirmed {
            // An append that the replica does not have is not acknowledged.
            if self.replica_lags || self.random.percent(self.wire.page_loss) {
                return None;
            }
            self.replica = self.primary.clone();
        }
        Some(Ok(written(version(self.primary.stored[number].as_ref()))))
    }

    fn reaches_former(&mut self) -> bool {
        let is_there = self.isolated.as_ref().is_some_and(|former| self.now < former.until);
        self.plan.memories && is_there && self.random.percent(REACHES_FORMER)
    }

    fn append_to_former(
        &mut self,
        number: usize,
        base: Version,
        said: Option<Rc<Said>>,
    ) -> Option<Result<AppendReceipt, LedgerError>> {
        let time = true_time(self.time());
        let former = self.isolated.as_mut()?;
        if former.server.has_lost(number) {
            return None;
        }
        if version(former.server.stored[number].as_ref()) != base {
            return Some(Ok(conflict()));
        }
        if let Some(said) = said {
            self.acks.written(number, &said);
            let entry = former.server.append(&mut self.random, number, said, time, true);
            let (node, epoch) = (Rc::clone(&former.server.node), former.server.end().epoch);
            self.know_branch(&node);
            if self.random.percent(ANNOUNCED_BY_FORMER) {
                self.announce(epoch, &[entry]);
            }
        }
        let former = self.isolated.as_ref()?;
        let outcome = written(version(former.server.stored[number].as_ref()));
        // The Sentinels are asked after the append, and name another server.
        let proof = Err(LedgerError::Unreachable(Arc::new(AnotherIsNamed)));
        Some(proof.map(|()| outcome))
    }
}

fn written(version: Version) -> AppendReceipt {
    let outcome = Appended::Committed(version.revision);
    AppendReceipt { outcome, partition: 0, head_prefix: version.head_prefix, maybe_written: false }
}

/// A conflict. The caller reads the record that came first by itself.
fn conflict() -> AppendReceipt {
    let outcome = Appended::Conflict(Ok(StoredRecord::default()));
    AppendReceipt { outcome, partition: 0, head_prefix: 0, maybe_written: false }
}

impl World {
    /// A recorder was answered that this denial is durable.
    pub fn acknowledge(&mut self, number: usize, effect: Effect, began: u64) {
        let at = self.time();
        self.acks.acknowledged(number, Ack { effect, at, began });
        let bound = u64::try_from(self.plan.bound.as_micros()).unwrap();
        let jitter = self.random.pick(&[0, 100, 1_000]) * MILLI;
        self.after(bound + 2 * MILLI + jitter, Happening::Check(number));
    }
}
