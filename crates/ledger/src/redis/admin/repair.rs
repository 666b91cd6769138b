//! Repairs damage in a ledger in Redis, while recorders go on.
//!
//! Nothing is overwritten without a comparison: records are changed by appends, which compare and which
//! followers apply; a value that an append cannot compare with is first replaced, by a compare-and-set, with
//! the rebuilt one.

use super::super::keyspace::{SENTINEL_FIELD, version_bytes};
use super::super::roll_forward::roll_forward;
use super::super::scripts::{self, Answer, ask};
use super::super::{RedisPartition, Shared};
use super::repair_inputs::RepairInputs;
use crate::verify::{Damage, Depth, Finding, Progress, Report};
use crate::{
    AppendReceipt, Appended, Change, Identity, LedgerError, Update, Version, bucket_of, codec,
};
use consentd_core::id::Key;
use consentd_core::record::Record;

/// The maximum number of passes: a repair may uncover other damage.
const MAX_PASSES: u32 = 20;
/// How often a repair of a pair is retried because the pair was written meanwhile.
const MAX_TRIES: u32 = 10;

/// What is to be repaired.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RepairMode {
    /// Only records that differ from their last log entry.
    OutOfBand,
    /// Everything that can be repaired.
    All,
    /// The same, and what is lost for good counts as never recorded.
    AcceptingLoss,
}

/// The result of a repair.
#[derive(Clone, Debug, Default)]
pub struct Repaired {
    /// The repaired findings, with the action for each; in a dry run the planned ones.
    pub done: Vec<(Finding, &'static str)>,
    /// The findings that are left.
    pub left: Report,
}

/// The order of repairs: each stage depends on those before it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Stage {
    Frame,
    Pair,
    Log,
    /// The sentinel field, with which a rebuilt bucket is read and written again.
    Sentinel,
}

impl RepairMode {
    /// The depth of the final verification. Histories cannot be repaired, so only a full repair reports their
    /// damage.
    fn depth(self) -> Depth {
        match self {
            Self::OutOfBand => Depth::Records,
            Self::All | Self::AcceptingLoss => Depth::Histories,
        }
    }

    /// The stage and the action of a repair; `None` if the finding is not repaired.
    fn plan(self, finding: &Finding) -> Option<(Stage, &'static str)> {
        let planned = match &finding.damage {
            Damage::NotAsLogged => {
                (Stage::Pair, "joined with its last log entry, and announced to followers")
            }
            Damage::Lost if finding.logged.is_some() => {
                (Stage::Pair, "restored from the log, and announced to followers")
            }
            _ if self == Self::OutOfBand => return None,
            Damage::Lost => (Stage::Pair, "restored from its history, and announced to followers"),
            Damage::CutShort(_) => (Stage::Frame, "completed from the log"),
            Damage::StrayEntries => {
                (Stage::Frame, "removed by rebuilding the log: no follower has applied them")
            }
            Damage::AppendsRefused => (Stage::Frame, "repaired by rebuilding the log"),
            Damage::NoLog => (
                Stage::Frame,
                "recreated without entries: followers that lack any read the whole ledger again",
            ),
            Damage::NoSentinel(hash) if hash.contains(":b:") && self == Self::AcceptingLoss => (
                Stage::Sentinel,
                "in use again as it is: what could not be rebuilt counts as never recorded",
            ),
            Damage::NoSentinel(hash) if hash.contains(":b:") => (
                Stage::Sentinel,
                "in use again, once every pair that its histories name is rebuilt",
            ),
            Damage::NoFence | Damage::NoSentinel(_) => (Stage::Frame, "put back"),
            Damage::Foreign(_) => (Stage::Frame, "removed"),
            Damage::Misplaced(_) => (Stage::Pair, "joined with the pair's own record"),
            Damage::Unreadable | Damage::Ahead(_) if finding.logged.is_some() => {
                (Stage::Pair, "rebuilt from the log, and announced to followers")
            }
            Damage::Unreadable | Damage::Ahead(_) => {
                (Stage::Pair, "rebuilt from its history, and announced to followers")
            }
            Damage::LogGap(_) | Damage::LogHead(_) | Damage::LogEntry(_) | Damage::LogEnd => (
                Stage::Log,
                "repaired by trimming the log up to it; followers before it read the whole ledger again",
            ),
            Damage::Meta(_)
            | Damage::WrongKind(_)
            | Damage::Newer(_)
            | Damage::Partition { .. }
            | Damage::History
            | Damage::Statement => return None,
        };
        Some(planned)
    }
}

impl RedisPartition {
    /// Repairs what can be repaired, while recorders go on; with `dry_run` only returns what it would do. The
    /// background task must run.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the ledger cannot be reached or written.
    pub(crate) async fn repair(
        &self,
        mode: RepairMode,
        dry_run: bool,
        report_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Repaired, LedgerError> {
        let mut repaired = Repaired::default();
        for _ in 0..MAX_PASSES {
            let report = self.verify(Depth::Records, report_progress).await?;
            let plans = report.findings.iter();
            let plans = plans.filter_map(|finding| Some((finding.clone(), mode.plan(finding)?)));
            let mut plans: Vec<_> = plans.collect();
            plans.sort_by_key(|(_, (stage, _))| *stage);
            if dry_run {
                repaired.done =
                    plans.into_iter().map(|(finding, (_, action))| (finding, action)).collect();
                repaired.left = report;
                return Ok(repaired);
            }
            // One pass repairs one stage; the next pass verifies again before the later stages.
            let mut active = None;
            for (finding, (stage, action)) in plans {
                if active.is_some_and(|active| active != stage) {
                    break;
                }
                let is_ready = stage != Stage::Sentinel || self.is_rebuilt(mode, &finding, &report);
                if is_ready && self.repair_finding(mode, &finding).await? {
                    active = Some(stage);
                    repaired.done.push((finding, action));
                }
            }
            if active.is_none() {
                break;
            }
        }
        repaired.left = self.verify(mode.depth(), report_progress).await?;
        Ok(repaired)
    }

    /// Repairs one finding. Returns whether anything was changed.
    async fn repair_finding(
        &self,
        mode: RepairMode,
        finding: &Finding,
    ) -> Result<bool, LedgerError> {
        let shared = &*self.shared;
        let identity = shared.identity().await?;
        let keyspace = &shared.keyspace;
        let after = |revision: u64| Some(revision.saturating_add(1));
        let trim_to = match &finding.damage {
            Damage::CutShort(_) => {
                roll_forward(&shared.writes, &shared.keyspace, identity.epoch, true).await?;
                return Ok(true);
            }
            Damage::StrayEntries | Damage::AppendsRefused => {
                return shared.rebuild_log(&identity).await;
            }
            Damage::NoFence | Damage::NoLog => {
                let keys = [&keyspace.meta, &keyspace.fence, &keyspace.log];
                let revision = shared.position().await?.revision.to_string();
                let args = [&identity.epoch[..], revision.as_bytes(), SENTINEL_FIELD, b""];
                let recreated = scripts::RECREATE_KEYS.run_counted(&shared.writes, &keys, &args);
                return Ok(recreated.await?);
            }
            Damage::NoSentinel(hash) => {
                return shared.restore_sentinel_field(&identity, mode, hash).await;
            }
            Damage::Foreign(hash) => return shared.drop_foreign(&identity, hash).await,
            Damage::LogGap(revision) | Damage::LogHead(revision) | Damage::LogEntry(revision) => {
                after(*revision)
            }
            Damage::LogEnd => after(shared.position().await?.revision),
            _ => None,
        };
        if let Some(revision) = trim_to {
            let (keys, revision) = ([&keyspace.meta, &keyspace.log], revision.to_string());
            let args = [&identity.epoch[..], revision.as_bytes()];
            return Ok(scripts::TRIM_LOG.run_counted(&shared.writes, &keys, &args).await?);
        }
        match finding.key {
            Some(key) => self.rebuild(&identity, key, finding).await,
            None => Ok(false),
        }
    }

    /// Rebuilds a pair's record from all its sources, and appends it, so that followers apply it.
    async fn rebuild(
        &self,
        identity: &Identity,
        key: Key,
        finding: &Finding,
    ) -> Result<bool, LedgerError> {
        let shared = &*self.shared;
        for _ in 0..MAX_TRIES {
            let Some(inputs) = shared.repair_inputs(identity, key, finding).await? else {
                return Ok(false);
            };
            let record = inputs.rebuild();
            let Some(base) = shared.replace_unreadable(identity, key, &inputs, &record).await?
            else {
                continue;
            };
            let (user_id, business_id) = inputs.ids();
            let record_time = self.read(Vec::new()).await?.clock;
            let history = Vec::new();
            let update = Update { user_id, business_id, record, history, record_time };
            let change = Change { key, base, update: Some(update) };
            let appended = self.append_as(true, vec![change]).await?;
            if matches!(appended[..], [AppendReceipt { outcome: Appended::Committed(_), .. }]) {
                if let (Damage::Misplaced(number), Some(value)) =
                    (&finding.damage, &inputs.misplaced)
                {
                    shared.replace_field(identity, *number, key, value, b"").await?;
                }
                return Ok(true);
            }
        }
        Err(LedgerError::Busy)
    }
}

impl Shared {
    /// Makes a pair's value one that an append can compare with, by replacing an unreadable value with the
    /// rebuilt record. Returns its version, or `None` if it has changed meanwhile.
    async fn replace_unreadable(
        &self,
        identity: &Identity,
        key: Key,
        inputs: &RepairInputs,
        record: &Record,
    ) -> Result<Option<Version>, LedgerError> {
        let end = self.position().await?.revision;
        match (&inputs.value, &inputs.stored) {
            (None, _) => Ok(Some(Version::default())),
            (Some(_), Some((version, _))) if version.revision <= end => Ok(Some(*version)),
            (Some(value), _) => {
                let version = Version { revision: inputs.revision, head_prefix: 0 };
                let record = codec::encode_record(record);
                let new = [&version_bytes(version)[..], &record].concat();
                let number = bucket_of(key, identity.buckets);
                let swapped = self.replace_field(identity, number, key, value, &new).await?;
                Ok(swapped.then_some(version))
            }
        }
    }

    async fn replace_field(
        &self,
        identity: &Identity,
        number: u32,
        key: Key,
        old: &[u8],
        new: &[u8],
    ) -> Result<bool, LedgerError> {
        let keys = [&self.keyspace.meta, &self.keyspace.bucket(number)];
        let args = [&identity.epoch[..], &key.to_bytes(), old, new];
        Ok(scripts::REPLACE_FIELD.run_counted(&self.writes, &keys, &args).await?)
    }

    /// Deletes fields of a bucket that are not those of a pair.
    async fn drop_foreign(&self, identity: &Identity, hash: &String) -> Result<bool, LedgerError> {
        let mut command = redis::cmd("HGETALL");
        let mut all = Answer::of(ask(&self.reads, command.arg(hash)).await?)?;
        let mut any = false;
        while !all.is_over() {
            let (field, value) = (all.bytes()?, all.bytes()?);
            if field != SENTINEL_FIELD && field.len() != 16 {
                let args = [&identity.epoch[..], &field, &value, b""];
                any |= scripts::REPLACE_FIELD
                    .run_counted(&self.writes, &[&self.keyspace.meta, hash], &args)
                    .await?;
            }
        }
        Ok(any)
    }
}
