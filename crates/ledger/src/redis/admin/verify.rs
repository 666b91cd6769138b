//! Verifies everything that a ledger in Redis contains.

use std::collections::{BTreeMap, HashSet};

use futures_util::StreamExt as _;
use redis::Value;

use super::super::error::{RedisFailure, RedisRejection};
use super::super::keyspace::{BodyOffsets, SENTINEL_FIELD, next_head, split_value};
use super::super::scripts::{Answer, ask};
use super::super::{RedisPartition, Shared};
use super::portable::RawBucket;
use crate::portable_pair::{PortableEntry, PortablePair};
use crate::stored_secret::StoredSecret;
use crate::verify::{Damage, Depth, Finding, LogIndex, Progress, Report};
use crate::{Identity, LedgerError, Position, bucket_of};
use consentd_core::id::Key;
use consentd_core::record::{Revision, sha256};

/// How many log entries one command reads.
const LOG_PAGE: usize = 512;

/// How many buckets are read concurrently.
const BUCKETS_AT_ONCE: usize = 16;

/// The maximum size of the cache of statements that are known to be intact.
const MAX_STATEMENTS: usize = 100_000;

/// A verified bucket, to be compared with the log.
struct Read {
    label: Position,
    pairs: Vec<PortablePair>,
    report: Report,
}

impl RedisPartition {
    /// Fails if what is in the place of this partition is missing, or not a partition of this ledger.
    pub(crate) async fn ensure_is_there(&self) -> Result<(), LedgerError> {
        let Err(error) = self.ends().await else { return Ok(()) };
        match RedisRejection::of(&error) {
            Some(
                RedisRejection::Missing
                | RedisRejection::MissingPartition { .. }
                | RedisRejection::ForeignPartition { .. }
                | RedisRejection::OtherLayout { .. }
                | RedisRejection::OtherSpread { .. }
                | RedisRejection::OtherPartition { .. },
            ) => Err(error),
            // Whatever else is the matter is found by looking.
            _ => Ok(()),
        }
    }

    /// Verifies the whole ledger to the given depth.
    pub(crate) async fn verify(
        &self,
        depth: Depth,
        report_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Report, LedgerError> {
        let shared = &*self.shared;
        let mut report = Report::default();
        let fixed = shared.verify_fixed(&mut report).await;
        let fixed = fixed.map_err(|failure| shared.convert_failure(failure))?;
        let Some(identity) = fixed else { return Ok(report) };
        let mut logged = shared.verify_log(&mut report).await?;
        let known = std::sync::Mutex::new(HashSet::new());
        let identity = &identity;
        let reads = (0..identity.buckets).map(|number| {
            let known = &known;
            async move { shared.verify_bucket(identity, number, depth, known).await }
        });
        let mut reads = std::pin::pin!(futures_util::stream::iter(reads).buffered(BUCKETS_AT_ONCE));
        let mut done = 0_u32;
        while let Some(read) = reads.next().await {
            let Read { label, pairs, report: part } = read?;
            report.merge(part);
            for pair in &pairs {
                if let Some(damage) = logged.damage_of(pair, &label) {
                    let logged = logged.revision_of(&pair.key);
                    report.add(Finding { key: Some(pair.key()), logged, damage });
                }
            }
            done = done.saturating_add(1);
            report_progress(Progress { done, of: identity.buckets, pairs: report.pairs });
        }
        report.add_lost_pairs(&logged);
        Ok(report)
    }
}

impl Shared {
    /// Verifies the keys that every ledger has; `None` if their damage precludes further verification.
    async fn verify_fixed(&self, report: &mut Report) -> Result<Option<Identity>, RedisFailure> {
        let mut command = redis::cmd("HGETALL");
        let mut all = Answer::of(ask(&self.reads, command.arg(&self.keyspace.meta)).await?)?;
        let mut meta = BTreeMap::new();
        while !all.is_over() {
            meta.insert(all.bytes()?, all.bytes()?);
        }
        if !meta.contains_key(&b"epoch"[..]) {
            return Err(RedisFailure::Rejected(RedisRejection::Missing));
        }
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<u64>().ok();
        let is_good = |name: &str, value: &[u8]| match name {
            "epoch" => value.len() == 16,
            "secret" => StoredSecret::decode(value).is_some(),
            "head" => value.len() == 20,
            _ => number(value).is_some(),
        };
        let mut can_go_on = true;
        for name in ["epoch", "secret", "head", "rev", "format", "buckets", "accepted", "noop"] {
            if !meta.get(name.as_bytes()).is_some_and(|value| is_good(name, value)) {
                report.add_ledger_damage(Damage::Meta(name));
                can_go_on &= matches!(name, "format" | "noop");
            }
        }
        let mut command = redis::cmd("TYPE");
        for (key, kind) in [(&self.keyspace.log, "stream"), (&self.keyspace.text, "hash")] {
            let Value::SimpleString(found) = ask(&self.reads, command.clone().arg(key)).await?
            else {
                return Err(RedisFailure::Rejected(RedisRejection::MalformedReply));
            };
            if found != kind && found != "none" {
                report.add_ledger_damage(Damage::WrongKind(key.clone()));
                can_go_on = false;
            } else if found == "none" && kind == "hash" {
                report.add_ledger_damage(Damage::NoSentinel(key.clone()));
            } else if found == "none" {
                report.add_ledger_damage(Damage::NoLog);
            }
        }
        match ask(&self.reads, command.arg(&self.keyspace.fence)).await? {
            Value::SimpleString(kind) if kind == "none" => {
                report.add_ledger_damage(Damage::NoFence);
            }
            _ => {}
        }
        let text = &self.keyspace.text;
        if can_go_on && !report.findings.iter().any(|found| found.damage.label() == "no_sentinel") {
            self.verify_sentinel(text, report).await?;
        }
        if !can_go_on {
            return Ok(None);
        }
        // Read from meta, because polls fail without a fence.
        let value = |name: &str| meta.get(name.as_bytes()).map(Vec::as_slice).unwrap_or_default();
        let malformed = || RedisFailure::Rejected(RedisRejection::MalformedReply);
        let buckets = meta.get(&b"buckets"[..]).and_then(|value| number(value)).unwrap_or(0);
        let buckets = u32::try_from(buckets).unwrap_or(0);
        let epoch = value("epoch").try_into().map_err(|_| malformed())?;
        let secret = StoredSecret::decode(value("secret")).ok_or_else(malformed)?;
        // A ledger of before there were partitions does not say so.
        let layout = self.common.layout.get().copied().unwrap_or_default();
        Ok(Some(secret.identity(epoch, layout, buckets)))
    }

    async fn verify_sentinel(&self, hash: &str, report: &mut Report) -> Result<(), RedisFailure> {
        let mut command = redis::cmd("HEXISTS");
        match ask(&self.reads, command.arg(hash).arg(SENTINEL_FIELD)).await {
            Ok(Value::Int(1)) => {}
            Ok(_) => report.add_ledger_damage(Damage::NoSentinel(hash.to_owned())),
            Err(failure) if is_wrong_kind(&failure) => {
                report.add_ledger_damage(Damage::WrongKind(hash.to_owned()));
            }
            Err(failure) => return Err(failure),
        }
        Ok(())
    }

    /// Verifies the log from its first entry to the ledger's present end, or a page beyond it.
    async fn verify_log(&self, report: &mut Report) -> Result<LogIndex, RedisFailure> {
        let mut logged = LogIndex::default();
        let mut reached: Revision = 0;
        let end = loop {
            let end = self.position().await?;
            let from =
                if reached == 0 { "-".to_owned() } else { reached.saturating_add(1).to_string() };
            let mut command = redis::cmd("XRANGE");
            command.arg(&self.keyspace.log).arg(from).arg(end.revision.to_string());
            let page = ask(&self.reads, command.arg("COUNT").arg(LOG_PAGE)).await?;
            let mut entries = Answer::of(page)?;
            if entries.is_over() {
                break end;
            }
            while !entries.is_over() {
                let mut entry = Answer::of(entries.next()?)?;
                let Ok(revision) = entry.revision() else {
                    report.add_ledger_damage(Damage::StrayEntries);
                    return Ok(logged);
                };
                reached = revision;
                let mut fields = Answer::of(entry.next()?)?;
                let (_p, place, _b) = (fields.next()?, fields.next()?, fields.next()?);
                let body = fields.bytes();
                let (_h, head) = (fields.next(), fields.exactly());
                let (Ok(body), Ok(head)) = (body, head) else {
                    report.add_ledger_damage(Damage::LogEntry(revision));
                    continue;
                };
                if !matches!(place, Value::BulkString(place) if BodyOffsets::bucket_of(&place).is_some())
                {
                    report.add_ledger_damage(Damage::LogEntry(revision));
                }
                logged.take(report, (revision, &body, head), next_head);
            }
            if reached >= end.revision {
                break end;
            }
        };
        logged.end(report, &end);
        self.verify_tail(report, &end).await?;
        Ok(logged)
    }

    /// Verifies the log after the ledger's revision: finds an append that failed half-way, stray entries,
    /// and ids that keep Redis from accepting the ledger's next entry.
    async fn verify_tail(&self, report: &mut Report, end: &Position) -> Result<(), RedisFailure> {
        // `None`: the entries belong to another recorder's append, which has moved the ledger's end.
        let Some(tail) = self.log_tail(end).await? else { return Ok(()) };
        if tail.has_strays {
            report.add_ledger_damage(Damage::StrayEntries);
            return Ok(());
        }
        if tail.continuing > 0 {
            report.add_ledger_damage(Damage::CutShort(tail.continuing));
        }
        if tail.refuses_appends {
            report.add_ledger_damage(Damage::AppendsRefused);
        }
        Ok(())
    }

    /// Verifies one bucket, except its comparison with the log.
    async fn verify_bucket(
        &self,
        identity: &Identity,
        number: u32,
        depth: Depth,
        known: &std::sync::Mutex<HashSet<[u8; 32]>>,
    ) -> Result<Read, LedgerError> {
        let mut report = Report::default();
        // Read before the records: a pair that has a history by then has a record afterwards.
        let histories = self.histories(number, &mut report).await?;
        let raw = match self.raw_bucket(number).await {
            Err(failure) if is_wrong_kind(&failure) => {
                report.add_ledger_damage(Damage::WrongKind(self.keyspace.bucket(number)));
                let label = self.position().await?;
                RawBucket { label, has_sentinel: true, fields: Vec::new() }
            }
            raw => raw?,
        };
        if raw.label.epoch != identity.epoch {
            return Err(RedisRejection::Replaced.into());
        }
        if !raw.has_sentinel {
            report.add_ledger_damage(Damage::NoSentinel(self.keyspace.bucket(number)));
        }
        let mut pairs = Vec::with_capacity(raw.fields.len());
        for (field, value) in raw.fields {
            let Ok(key) = <[u8; 16]>::try_from(field) else {
                report.add_ledger_damage(Damage::Foreign(self.keyspace.bucket(number)));
                continue;
            };
            report.pairs = report.pairs.saturating_add(1);
            if bucket_of(Key::from_bytes(key), identity.buckets) != number {
                let damage = Damage::Misplaced(number);
                report.add(Finding { key: Some(Key::from_bytes(key)), logged: None, damage });
                continue;
            }
            // A value without a version counts as a damaged record.
            let (version, record) = split_value(&value).unwrap_or_default();
            let (revision, head_prefix) = (version.revision, version.head_prefix);
            let record = if revision == 0 { b"\xff".to_vec() } else { record.to_vec() };
            pairs.push(PortablePair { key, revision, head_prefix, record, history: Vec::new() });
        }
        let there: HashSet<_> = pairs.iter().map(|pair| pair.key).collect();
        for key in histories.into_iter().filter(|key| !there.contains(key)) {
            let key = Some(Key::from_bytes(key));
            report.add(Finding { key, logged: None, damage: Damage::Lost });
        }
        let no_histories = Damage::WrongKind(self.keyspace.history(number));
        let are_there = report.findings.iter().all(|found| found.damage != no_histories);
        if depth == Depth::Histories && are_there {
            self.verify_histories(number, &mut pairs, &mut report, known).await?;
        }
        Ok(Read { label: raw.label, pairs, report })
    }

    /// Whether a bucket's histories contain all entries that its records state, apart from their missing
    /// sentinel field.
    pub(super) async fn is_complete(
        &self,
        identity: &Identity,
        number: u32,
    ) -> Result<bool, LedgerError> {
        let known = std::sync::Mutex::default();
        let read = self.verify_bucket(identity, number, Depth::Histories, &known).await?;
        let is_missing = |found: &Finding| match &found.damage {
            Damage::NoSentinel(hash) => *hash == self.keyspace.bucket(number),
            Damage::Statement => false,
            _ => true,
        };
        Ok(!read.report.findings.iter().any(is_missing))
    }

    /// The keys of the pairs that a bucket's histories have entries of.
    async fn histories(
        &self,
        number: u32,
        report: &mut Report,
    ) -> Result<HashSet<[u8; 16]>, RedisFailure> {
        let hash = self.keyspace.history(number);
        let mut command = redis::cmd("HKEYS");
        let fields = match ask(&self.reads, command.arg(&hash)).await {
            Err(failure) if is_wrong_kind(&failure) => {
                report.add_ledger_damage(Damage::WrongKind(hash));
                return Ok(HashSet::new());
            }
            fields => fields?,
        };
        let mut fields = Answer::of(fields)?;
        let (mut found, mut has_sentinel) = (HashSet::new(), false);
        while !fields.is_over() {
            let field = fields.bytes()?;
            if field == SENTINEL_FIELD {
                has_sentinel = true;
            } else if let Some(key) = field.first_chunk::<16>() {
                found.insert(*key);
            }
        }
        if !has_sentinel {
            report.add_ledger_damage(Damage::NoSentinel(hash));
        }
        Ok(found)
    }

    async fn verify_histories(
        &self,
        number: u32,
        pairs: &mut [PortablePair],
        report: &mut Report,
        known: &std::sync::Mutex<HashSet<[u8; 32]>>,
    ) -> Result<(), RedisFailure> {
        let mut records = Vec::with_capacity(pairs.len());
        let mut sized = Vec::with_capacity(pairs.len());
        for pair in pairs.iter_mut() {
            // An unreadable record is a finding of its own.
            if let Ok(record) = pair.decode() {
                sized.push((pair, record.history_start().0..record.history_len));
                records.push(record);
            }
        }
        self.fill_histories(number, &mut sized).await?;
        let whole: Vec<&PortablePair> = sized.iter().map(|(pair, _)| &**pair).collect();
        let mut ask_for = crate::portable_pair::statement_digests(whole.iter().copied());
        with(known, |known| ask_for.retain(|digest| !known.contains(digest)));
        let digests: Vec<_> = ask_for.into_iter().collect();
        let fields: Vec<_> = digests.iter().map(|digest| digest.to_vec()).collect();
        let texts = self.many(&self.keyspace.text, &fields).await?;
        let there = digests
            .iter()
            .zip(texts)
            .filter(|(digest, text)| text.as_ref().is_some_and(|text| sha256(text) == **digest));
        let there: HashSet<_> = there.map(|(digest, _)| *digest).collect();
        let missing: HashSet<_> =
            digests.iter().filter(|digest| !there.contains(*digest)).copied().collect();
        with(known, |known| {
            if known.len() > MAX_STATEMENTS {
                known.clear();
            }
            known.extend(there);
        });
        for (pair, record) in whole.into_iter().zip(&records) {
            let entries = u64::try_from(pair.history.len()).unwrap_or(u64::MAX);
            report.history_entries = report.history_entries.saturating_add(entries);
            let lacks = |entry: &PortableEntry| {
                entry.item.statement_digest().is_some_and(|digest| missing.contains(&digest))
            };
            let damage = if !pair.is_intact(record) {
                Damage::History
            } else if pair.history.iter().flatten().any(lacks) {
                Damage::Statement
            } else {
                continue;
            };
            report.add(Finding { key: Some(pair.key()), logged: None, damage });
        }
        // These histories have been verified.
        for (pair, _) in sized {
            pair.history = Vec::new();
        }
        Ok(())
    }
}

fn with<T>(
    known: &std::sync::Mutex<HashSet<[u8; 32]>>,
    ask: impl FnOnce(&mut HashSet<[u8; 32]>) -> T,
) -> T {
    ask(&mut known.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn is_wrong_kind(failure: &RedisFailure) -> bool {
    matches!(
        failure,
        RedisFailure::Rejected(RedisRejection::Other { code, .. }) if &**code == "WRONGTYPE"
    )
}
