//! Verification: checks a ledger's log, records, histories and statements against each other, and
//! reports what does not fit.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use super::log::head_prefix_of;
use super::portable_pair::{PortableEntry, PortablePair, statement_digests};
use super::{
    Embedded, Ledger, LedgerError, LogHead, Position, Tail, UnreadableRecord, bucket_of, codec,
};
use consentd_core::id::Key;
use consentd_core::record::{Revision, sha256};

/// The most findings that a report keeps; further ones are only counted.
pub const MAX_FINDINGS: usize = 10_000;

/// How much is verified.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Depth {
    /// The log, and every record.
    Records,
    /// Also histories and statements.
    Histories,
}

/// A kind of damage.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Damage {
    /// A field of the meta key is missing or invalid.
    #[error("the meta key lacks {0}, or it is damaged")]
    Meta(&'static str),
    /// The log's key is missing.
    #[error("the log is missing: it was deleted or evicted, and nothing can be appended")]
    NoLog,
    /// The fence key is missing.
    #[error("the fence is missing: no follower can prove that it is current")]
    NoFence,
    /// A hash lacks its sentinel field.
    #[error("{0} lacks its sentinel field: the key was deleted or evicted, and is not used")]
    NoSentinel(String),
    /// A key of the ledger has another data type.
    #[error("{0} is not what it should be, but another kind of key")]
    WrongKind(String),
    /// An append is incomplete: its entries are in the log, but not in meta and records.
    #[error("an append was cut short: the log has {0} entries that the ledger does not have yet")]
    CutShort(u64),
    /// The log has entries after the ledger's end that do not continue it.
    #[error("the log goes on behind the ledger's end with what does not continue it")]
    StrayEntries,
    /// Redis rejects further entries, because the log's last id is too high.
    #[error(
        "nothing can be appended, no opt-out either: the log's last-generated-id is above the \
         ledger's revision"
    )]
    AppendsRefused,
    /// Entries of the log are missing.
    #[error("the log lacks what came after revision {0}")]
    LogGap(Revision),
    /// The log's hash chain does not match at an entry.
    #[error("the log's entry {0} does not continue the one before it, or was changed")]
    LogHead(Revision),
    /// An entry of the log cannot be decoded.
    #[error("the log's entry {0} cannot be read")]
    LogEntry(Revision),
    /// The log's last entry does not match meta.
    #[error("the log's last entry is not where the ledger ends")]
    LogEnd,
    /// A bucket has a field that is not a pair's key.
    #[error("unexpected field in {0}: it is not a pair's key")]
    Foreign(String),
    /// A record is stored in the wrong bucket.
    #[error("its record is stored in the wrong bucket, {0}, where it is never looked up")]
    Misplaced(u32),
    /// A record cannot be decoded.
    #[error("its record is damaged")]
    Unreadable,
    /// A record has a newer format.
    #[error("its record has format {0}, which this version cannot read: upgrade it")]
    Newer(u32),
    /// A record has a revision after the ledger's end.
    #[error("its record is of revision {0}, which is after the ledger's end")]
    Ahead(Revision),
    /// A record differs from the pair's last log entry: it was written out of band.
    #[error("its record is not the one in its last log entry")]
    NotAsLogged,
    /// A record is missing.
    #[error("its record is missing, though its log entry or its history exists")]
    Lost,
    /// A whole partition cannot be read.
    #[error("partition {number} cannot be read: {why}")]
    Partition {
        /// Its number.
        number: u32,
        /// The cause.
        why: String,
    },
    /// The history does not match the chain in the record.
    #[error("its history is incomplete or was changed: its chain does not match the record")]
    History,
    /// A statement is missing or modified.
    #[error("a consent statement that its history refers to is missing, or was changed")]
    Statement,
}

impl Damage {
    /// A stable one-word name, for scripts.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Meta(_) => "meta",
            Self::NoLog => "no_log",
            Self::NoFence => "no_fence",
            Self::NoSentinel(_) => "no_sentinel",
            Self::WrongKind(_) => "wrong_kind",
            Self::CutShort(_) => "cut_short",
            Self::StrayEntries => "stray_entries",
            Self::AppendsRefused => "appends_refused",
            Self::LogGap(_) => "log_gap",
            Self::LogHead(_) => "log_head",
            Self::LogEntry(_) => "log_entry",
            Self::LogEnd => "log_end",
            Self::Foreign(_) => "foreign",
            Self::Misplaced(_) => "misplaced",
            Self::Unreadable => "unreadable",
            Self::Newer(_) => "newer",
            Self::Ahead(_) => "ahead",
            Self::NotAsLogged => "not_as_logged",
            Self::Lost => "lost",
            Self::Partition { .. } => "partition",
            Self::History => "history",
            Self::Statement => "statement",
        }
    }
}

/// One instance of damage, and the pair that it affects.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The key of the affected pair, if it affects one. A key is a keyed hash and reveals no ids.
    pub key: Option<Key>,
    /// The revision of that pair's last log entry, if the log has one.
    pub logged: Option<Revision>,
    /// The damage.
    pub damage: Damage,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key {
            None => self.damage.fmt(f),
            Some(key) => write!(f, "pair {}: {}", hex::encode(key.to_bytes()), self.damage),
        }
    }
}

/// The result of a verification.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The number of verified pairs.
    pub pairs: u64,
    /// The number of verified log entries.
    pub log_entries: u64,
    /// The number of verified history entries.
    pub history_entries: u64,
    /// The number of findings.
    pub found: u64,
    /// The first findings, at most [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
}

impl Report {
    /// Adds damage that does not belong to one pair.
    pub(super) fn add_ledger_damage(&mut self, damage: Damage) {
        self.add(Finding { key: None, logged: None, damage });
    }

    /// Adds a finding.
    pub(super) fn add(&mut self, finding: Finding) {
        self.found = self.found.saturating_add(1);
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    /// Adds the pairs that are in the log but were not found in any bucket.
    pub(super) fn add_lost_pairs(&mut self, logged: &LogIndex) {
        let unseen = |key: Option<Key>| {
            logged
                .pairs
                .get(&key?.to_bytes())
                .filter(|entry| !entry.seen)
                .map(|entry| entry.revision)
        };
        // They may have been reported already, because of their histories.
        let before = self.findings.len();
        self.findings.retain(|found| found.damage != Damage::Lost || unseen(found.key).is_none());
        let again = u64::try_from(before.saturating_sub(self.findings.len())).unwrap_or(0);
        self.found = self.found.saturating_sub(again);
        for (key, entry) in logged.pairs.iter().filter(|(_, entry)| !entry.seen) {
            let (key, logged) = (Some(Key::from_bytes(*key)), Some(entry.revision));
            self.add(Finding { key, logged, damage: Damage::Lost });
        }
    }

    /// Adds the report of another part.
    pub(super) fn merge(&mut self, part: Self) {
        self.pairs = self.pairs.saturating_add(part.pairs);
        self.log_entries = self.log_entries.saturating_add(part.log_entries);
        self.history_entries = self.history_entries.saturating_add(part.history_entries);
        let unlisted = part.found.saturating_sub(part.findings.len().try_into().unwrap_or(0));
        for finding in part.findings {
            self.add(finding);
        }
        self.found = self.found.saturating_add(unlisted);
    }
}

/// The progress of an operation on all buckets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// The number of finished buckets.
    pub done: u32,
    /// The total number of buckets.
    pub of: u32,
    /// The number of pairs in the finished buckets.
    pub pairs: u64,
}

/// A pair's last log entry. It is kept small, because a log may have a million entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastLogged {
    pub(super) revision: Revision,
    pub(super) head_prefix: u64,
    /// A prefix of the record's SHA-256.
    digest: [u8; 8],
    /// Whether the pair was found in a bucket.
    pub(super) seen: bool,
}

/// An index of the log: each pair's last entry.
#[derive(Default)]
pub(super) struct LogIndex {
    pub(super) pairs: HashMap<[u8; 16], LastLogged>,
    /// The first and the last revision, unless the log is empty.
    pub(super) range: Option<(Revision, Revision)>,
    last: Option<LogHead>,
    /// Whether entries may be missing, because of a gap or damage.
    is_broken: bool,
}

impl LogIndex {
    /// Verifies and indexes the log's next entry: its revision, its body and the head after it.
    /// `next` computes the head after an entry from the head before it, its revision and its body.
    pub(super) fn take(
        &mut self,
        report: &mut Report,
        entry: (Revision, &[u8], LogHead),
        next: impl Fn(&LogHead, Revision, &[u8]) -> LogHead,
    ) {
        let (revision, body, head) = entry;
        report.log_entries = report.log_entries.saturating_add(1);
        let before = self.range.map_or(0, |(_, last)| last);
        let previous = self.last.or((revision == 1).then(LogHead::default));
        let mut is_changed = false;
        if self.range.is_some() && before.checked_add(1) != Some(revision) {
            report.add_ledger_damage(Damage::LogGap(before));
            self.is_broken = true;
        } else if previous.is_some_and(|previous| next(&previous, revision, body) != head) {
            report.add_ledger_damage(Damage::LogHead(revision));
            (is_changed, self.is_broken) = (true, true);
        }
        self.range = Some((self.range.map_or(revision, |(first, _)| first), revision));
        self.last = Some(head);
        match (codec::decode_pair(body), codec::decode_log(body)) {
            // A modified entry does not count, and what it was before is unknown.
            (Some((key, _)), Ok(_)) if is_changed => {
                self.pairs.remove(&key.to_bytes());
            }
            (Some((key, record)), Ok(_)) => {
                let head_prefix = head_prefix_of(&head);
                let entry =
                    LastLogged { revision, head_prefix, digest: short(&record), seen: false };
                self.pairs.insert(key.to_bytes(), entry);
            }
            _ => {
                report.add_ledger_damage(Damage::LogEntry(revision));
                self.is_broken = true;
            }
        }
    }

    /// Verifies that the log ends at the ledger's end.
    pub(super) fn end(&self, report: &mut Report, end: &Position) {
        if let (Some((_, revision)), Some(head)) = (self.range, self.last)
            && (revision, head) != (end.revision, end.head)
        {
            report.add_ledger_damage(Damage::LogEnd);
        }
    }

    /// Verifies a pair's record, by itself and against the log, and marks the pair as found.
    pub(super) fn damage_of(&mut self, pair: &PortablePair, end: &Position) -> Option<Damage> {
        let logged = self.pairs.get_mut(&pair.key);
        let logged = logged.map(|entry| {
            entry.seen = true;
            *entry
        });
        match pair.decode() {
            Err(UnreadableRecord::Damaged | UnreadableRecord::Lost { .. }) => {
                return Some(Damage::Unreadable);
            }
            Err(UnreadableRecord::Newer { format }) => return Some(Damage::Newer(format)),
            Ok(_) => {}
        }
        if pair.revision > end.revision {
            return Some(Damage::Ahead(pair.revision));
        }
        let (first, last) = self.range?;
        // A record that was written after the log was read is not in the index.
        if pair.revision > last {
            return None;
        }
        let as_logged = match logged {
            Some(entry) => {
                pair.revision == entry.revision
                    && entry.head_prefix == pair.head_prefix
                    && entry.digest == short(&pair.record)
            }
            None => pair.revision < first || self.is_broken,
        };
        (!as_logged).then_some(Damage::NotAsLogged)
    }

    /// The revision of a pair's last log entry.
    pub(super) fn revision_of(&self, key: &[u8; 16]) -> Option<Revision> {
        self.pairs.get(key).map(|entry| entry.revision)
    }
}

fn short(record: &[u8]) -> [u8; 8] {
    let digest = sha256(record);
    let mut short = [0; 8];
    short.copy_from_slice(&digest[..8]);
    short
}

impl Ledger {
    /// Verifies the ledger, while others may continue to write to it.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be read.
    pub async fn verify(
        &self,
        depth: Depth,
        report_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Report, LedgerError> {
        match self {
            Self::Embedded(ledger) => verify_file(ledger, depth, report_progress).await,
            Self::Redis(ledger) => ledger.verify(depth, report_progress).await,
        }
    }
}

/// A file has no fence, and its buckets are key ranges of one table, so no pair can be misplaced.
async fn verify_file(
    ledger: &Embedded,
    depth: Depth,
    report_progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, LedgerError> {
    let mut report = Report::default();
    let mut after = ledger.log_start().await?.saturating_sub(1);
    let mut last = None;
    loop {
        let page = ledger.read_after(after).await?;
        let Tail::Entries(entries) = page.tail else {
            report.add_ledger_damage(Damage::LogGap(after));
            break;
        };
        let Some(end) = entries.last().map(|entry| entry.revision) else { break };
        for entry in entries {
            report.log_entries = report.log_entries.saturating_add(1);
            if last.is_some_and(|(revision, _)| Some(entry.revision) != next(revision)) {
                report.add_ledger_damage(Damage::LogGap(entry.revision.saturating_sub(1)));
            } else if last.is_some_and(|(_, head)| head != entry.previous) {
                report.add_ledger_damage(Damage::LogHead(entry.revision));
            }
            if entry.body.is_err() {
                report.add_ledger_damage(Damage::LogEntry(entry.revision));
            }
            last = Some((entry.revision, entry.head));
        }
        after = end;
    }
    let buckets = ledger.identity().buckets;
    for number in 0..buckets {
        let bucket = ledger.portable_bucket(number).await?;
        let present = if depth == Depth::Histories {
            let digests: Vec<_> = statement_digests(&bucket.pairs).into_iter().collect();
            let texts = ledger.statements(&digests).await?;
            let there = digests.iter().zip(texts).filter(|(_, text)| text.is_some());
            there.map(|(digest, _)| *digest).collect()
        } else {
            BTreeSet::new()
        };
        for pair in &bucket.pairs {
            debug_assert_eq!(bucket_of(pair.key(), buckets), number);
            report.pairs = report.pairs.saturating_add(1);
            let damage = match pair.decode() {
                Err(UnreadableRecord::Damaged | UnreadableRecord::Lost { .. }) => {
                    Some(Damage::Unreadable)
                }
                Err(UnreadableRecord::Newer { format }) => Some(Damage::Newer(format)),
                Ok(_) if pair.revision > bucket.label.revision => {
                    Some(Damage::Ahead(pair.revision))
                }
                Ok(_) if depth == Depth::Records => None,
                Ok(record) => {
                    let entries = u64::try_from(pair.history.len()).unwrap_or(u64::MAX);
                    report.history_entries = report.history_entries.saturating_add(entries);
                    let lacks_statement = |entry: &_| is_missing(entry, &present);
                    if !pair.is_intact(&record) {
                        Some(Damage::History)
                    } else if pair.history.iter().flatten().any(lacks_statement) {
                        Some(Damage::Statement)
                    } else {
                        None
                    }
                }
            };
            if let Some(damage) = damage {
                report.add(Finding { key: Some(pair.key()), logged: None, damage });
            }
        }
        report_progress(Progress {
            done: number.saturating_add(1),
            of: buckets,
            pairs: report.pairs,
        });
    }
    Ok(report)
}

fn next(revision: Revision) -> Option<Revision> {
    revision.checked_add(1)
}

fn is_missing(entry: &PortableEntry, present: &BTreeSet<[u8; 32]>) -> bool {
    entry.item.statement_digest().is_some_and(|digest| !present.contains(&digest))
}
