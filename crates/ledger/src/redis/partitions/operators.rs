//! Operators' commands on all partitions of a ledger. They go on without those that are lost.

use futures_util::StreamExt as _;

use super::{PartitionStatus, Redis};
use crate::redis::{RedisPartition, RedisRejection, RepairMode, Repaired};
use crate::verify::{Damage, Report};
use crate::{Depth, LedgerError, Progress};
use consentd_core::partition::Layout;

/// How many partitions an operator's command reads at once.
const PARTITIONS_AT_ONCE: usize = 8;

impl Redis {
    /// The layout for an operator's command, which goes on without the first partition also if that one is missing.
    async fn layout_for_operator(&self) -> Result<Layout, LedgerError> {
        match self.layout().await {
            Err(error) if error.is_missing() => self.layout_of_others().await.ok_or(error),
            layout => layout,
        }
    }

    /// All partitions for an operator's command, once it is known which ledger each is of: a foreign one is judged by
    /// most of the others.
    async fn all_for_operator(&self) -> Result<Vec<&RedisPartition>, LedgerError> {
        self.layout_for_operator().await?;
        let all = self.all().await?;
        let mut reads = Vec::with_capacity(all.len());
        for partition in &all {
            reads.push(partition.ends());
        }
        // Those that cannot be read are reported when it is their turn.
        let reads = futures_util::stream::iter(reads).buffer_unordered(PARTITIONS_AT_ONCE);
        reads.for_each(|_| std::future::ready(())).await;
        Ok(all)
    }

    /// All partitions, once it is known which ledger each is of; or the first one alone if its meta key is so damaged
    /// that it has no identity, for a verification reports that.
    async fn all_or_first(&self) -> Result<Vec<&RedisPartition>, LedgerError> {
        match self.all_for_operator().await {
            Err(error)
                if matches!(RedisRejection::of(&error), Some(RedisRejection::MalformedReply)) =>
            {
                Ok(vec![&self.0.first])
            }
            all => all,
        }
    }

    /// Reads each partition's position, by a fenced poll that succeeds even if its log or its fence was lost, and its
    /// status; an error for a partition that cannot be read.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the layout is not known, because neither the first partition nor another can be reached.
    pub async fn status(&self) -> Result<Vec<PartitionStatus>, LedgerError> {
        let all = self.all_for_operator().await?.into_iter();
        let all = all.map(|one| async move { Ok((one.ends().await?, one.status().await?)) });
        Ok(futures_util::stream::iter(all).buffered(PARTITIONS_AT_ONCE).collect().await)
    }

    /// Accepts the ledger as it is, so that followers drop their retained denials. Returns how often it has
    /// been accepted.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if a partition cannot be reached or rejects the command. Those before it are accepted then.
    pub async fn accept(&self) -> Result<u64, LedgerError> {
        let mut accepted = 0;
        for partition in self.all().await? {
            accepted = partition.accept().await?.max(accepted);
        }
        Ok(accepted)
    }

    pub(crate) async fn verify(
        &self,
        depth: Depth,
        report_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Report, LedgerError> {
        let mut report = Report::default();
        let all = self.all_or_first().await?;
        let mut total = TotalProgress::new(all.len(), report_progress);
        let mut unread = Unread::of(all.len());
        for (before, partition) in (0..).zip(all) {
            let verified = async {
                partition.ensure_is_there().await?;
                partition.verify(depth, &mut total.after(before)).await
            };
            match verified.await {
                Ok(verified) => report.merge(verified),
                Err(error) => unread.add(&mut report, partition, error)?,
            }
        }
        Ok(report)
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
        let mut repaired = Repaired::default();
        let all = self.all_or_first().await?;
        let mut total = TotalProgress::new(all.len(), report_progress);
        let mut unread = Unread::of(all.len());
        for (before, partition) in (0..).zip(all) {
            let part = async {
                partition.ensure_is_there().await?;
                partition.repair(mode, dry_run, &mut total.after(before)).await
            };
            match part.await {
                Ok(part) => {
                    repaired.done.extend(part.done);
                    repaired.left.merge(part.left);
                }
                Err(error) => unread.add(&mut repaired.left, partition, error)?,
            }
        }
        Ok(repaired)
    }
}

/// The partitions that an operator's command cannot read.
struct Unread {
    partitions: usize,
    count: usize,
}

impl Unread {
    fn of(partitions: usize) -> Self {
        Self { partitions, count: 0 }
    }

    /// Adds one to the report of the others.
    ///
    /// # Errors
    ///
    /// Returns its error if no partition could be read.
    fn add(
        &mut self,
        report: &mut Report,
        partition: &RedisPartition,
        error: LedgerError,
    ) -> Result<(), LedgerError> {
        self.count += 1;
        if self.count == self.partitions {
            return Err(error);
        }
        let (number, why) = (partition.shared.keyspace.partition, error.to_string());
        report.add_ledger_damage(Damage::Partition { number, why });
        Ok(())
    }
}

/// Reports the progress over all partitions, which have as many buckets each.
struct TotalProgress<'a> {
    report: &'a mut (dyn FnMut(Progress) + Send),
    partitions: u32,
    /// How many pairs the partitions before the present one have, and how many that has so far.
    pairs: (u64, u64),
}

impl<'a> TotalProgress<'a> {
    fn new(partitions: usize, report: &'a mut (dyn FnMut(Progress) + Send)) -> Self {
        let partitions = u32::try_from(partitions).unwrap_or(u32::MAX);
        Self { report, partitions, pairs: (0, 0) }
    }

    /// Reports the progress of the next partition, which comes after this many.
    fn after(&mut self, partitions: u32) -> impl FnMut(Progress) + Send {
        self.pairs = (self.pairs.0.saturating_add(self.pairs.1), 0);
        move |part| {
            self.pairs.1 = part.pairs;
            (self.report)(Progress {
                done: partitions.saturating_mul(part.of).saturating_add(part.done),
                of: self.partitions.saturating_mul(part.of),
                pairs: self.pairs.0.saturating_add(part.pairs),
            });
        }
    }
}
