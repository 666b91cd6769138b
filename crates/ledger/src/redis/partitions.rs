//! A ledger in Redis as a whole: its partitions, and which of them a pair is in.

use std::fmt;
use std::sync::Arc;

use super::{BackgroundTask, Options, RedisPartition, RepairMode, Repaired, Status, Target};
use crate::{LedgerError, Page, Progress};
use consentd_core::partition::Layout;

/// A handle on a ledger in Redis; clones share it.
#[derive(Clone)]
pub struct Redis(Arc<Partitions>);

struct Partitions {
    first: RedisPartition,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redis").field(&self.describe()).finish()
    }
}

impl Redis {
    /// A handle on the ledger at `target`, and its background task, without which nothing is appended or
    /// announced. Connects with the first command, or when the task is run.
    #[must_use]
    pub fn new(target: Target, options: Options) -> (Self, BackgroundTask) {
        let (first, task) = RedisPartition::new(target, options);
        (Self(Arc::new(Partitions { first })), task)
    }

    /// The ledger's layout, if it is known.
    pub(crate) fn known_layout(&self) -> Option<Layout> {
        Some(Layout::SINGLE)
    }

    /// The partition with this number; `None` while the layout is not known, and for a number that it
    /// does not have. The first partition is always there.
    pub(crate) fn partition(&self, number: u32) -> Option<RedisPartition> {
        (number == 0).then(|| self.0.first.clone())
    }

    pub(crate) fn describe(&self) -> &str {
        self.0.first.describe()
    }

    /// The partition that has the whole ledger.
    pub(crate) fn single(&self) -> &RedisPartition {
        &self.0.first
    }

    /// Each partition's end, by a fenced poll that succeeds even if its log or its fence was lost.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if a partition cannot be reached.
    pub async fn ends(&self) -> Result<Vec<Page>, LedgerError> {
        Ok(vec![self.0.first.ends().await?])
    }

    /// Reads each partition's status.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if a partition cannot be reached.
    pub async fn status(&self) -> Result<Vec<Status>, LedgerError> {
        Ok(vec![self.0.first.status().await?])
    }

    /// Accepts the ledger as it is, so that followers drop their retained denials. Returns how often it has
    /// been accepted.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the ledger cannot be reached or rejects the command.
    pub async fn accept(&self) -> Result<u64, LedgerError> {
        self.0.first.accept().await
    }

    /// Repairs what can be repaired, while recorders go on; with `dry_run` only returns what it would do. The
    /// background task must run.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the ledger cannot be reached or written.
    pub async fn repair(
        &self,
        mode: RepairMode,
        dry_run: bool,
        report_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Repaired, LedgerError> {
        self.0.first.repair(mode, dry_run, report_progress).await
    }

    /// Checks once that the server is supported, and has a ledger.
    ///
    /// # Errors
    ///
    /// As [`RedisPartition::probe`].
    pub async fn probe(&self) -> Result<(), LedgerError> {
        self.0.first.probe().await
    }
}
