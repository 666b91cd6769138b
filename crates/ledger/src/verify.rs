//! Whether all that a ledger holds fits together: what was found where it does not.

use std::collections::HashMap;
use std::fmt;

use super::portable_pair::{PortablePair, statements};
use super::{
    Embedded, Ledger, LedgerError, LogHead, Position, Tail, UnreadableRecord, bucket_of, codec,
};
use consentd_core::id::Key;
use consentd_core::record::{Revision, sha256};

/// The most findings that a report keeps; the rest is counted.
pub const MAX_FINDINGS: usize = 10_000;

/// How much is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Depth {
    /// The log, and every record.
    Records,
    /// Histories and statements too.
    Histories,
}

/// What does not fit.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Damage {
    /// What says which ledger this is.
    #[error("the meta key lacks {0}, or it is damaged")]
    Meta(&'static str),
    /// What followers read, and appends extend.
    #[error("the log is missing: it was deleted or evicted, and nothing can be appended")]
    NoLog,
    /// What proves polls.
    #[error("the fence is missing: no follower can prove that it is current")]
    NoFence,
    /// A hash without the field that keeps it there.
    #[error("{0} lacks its sentinel field: the key was deleted or evicted, and is not used")]
    NoSentinel(String),
    /// Something else has a key of the ledger's.
    #[error("{0} is not what it should be, but another kind of key")]
    WrongKind(String),
    /// An append was cut short.
    #[error("an append was cut short: the log has {0} entries that the ledger does not have yet")]
    CutShort(u64),
    /// Entries behind the ledger's end that do not continue it.
    #[error("the log goes on behind the ledger's end with what does not continue it")]
    StrayEntries,
    /// Redis takes no more entries.
    #[error(
        "nothing can be appended, no opt-out either: the log's last-generated-id is above the \
         ledger's revision"
    )]
    AppendsRefused,
    /// Entries are missing.
    #[error("the log lacks what came after revision {0}")]
    LogGap(Revision),
    /// An entry was changed.
    #[error("the log's entry {0} does not continue the one before it, or was changed")]
    LogHead(Revision),
    /// An entry cannot be read.
    #[error("the log's entry {0} cannot be read")]
    LogEntry(Revision),
    /// The log ends elsewhere than meta says.
    #[error("the log's last entry is not where the ledger ends")]
    LogEnd,
    /// Something in a bucket that is no pair.
    #[error("a field that is no pair's is in {0}")]
    Foreign(String),
    /// A pair where nobody looks for it.
    #[error("its record is in bucket {0}, where nobody looks for it")]
    Misplaced(u32),
    /// A record that cannot be read.
    #[error("its record is damaged")]
    Unreadable,
    /// A record of a newer version.
    #[error("its record has format {0}, which this version cannot read: upgrade it")]
    Newer(u32),
    /// A record from after the end.
    #[error("its record is of revision {0}, which is after the ledger's end")]
    Ahead(Revision),
    /// An out-of-band write.
    #[error("its record is not what the log last said of it")]
    NotAsLogged,
    /// The record has gone.
    #[error("it has no record, though the log or a history tells of it")]
    Lost,
    /// What proves the pair's past.
    #[error("its history is not whole, or was changed")]
    History,
    /// What was agreed to.
    #[error("a statement that its history names is missing, or was changed")]
    Statement,
}

impl Damage {
    /// In one word, for scripts.
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
            Self::History => "history",
            Self::Statement => "statement",
        }
    }
}

/// One thing that does not fit, and of which pair.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The pair, where it is one's: a keyed hash, which names nobody.
    pub key: Option<Key>,
    /// The last revision at which the log tells of that pair, where it does.
    pub logged: Option<Revision>,
    /// What is wrong.
    pub damage: Damage,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key {
            None => self.damage.fmt(f),
            Some(key) => {
                f.write_str("pair ")?;
                for byte in key.to_bytes() {
                    write!(f, "{byte:02x}")?;
                }
                write!(f, ": {}", self.damage)
            }
        }
    }
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Pairs.
    pub pairs: u64,
    /// Entries of the log.
    pub log_entries: u64,
    /// Entries of histories.
    pub history_entries: u64,
    /// How much was found.
    pub found: u64,
    /// The first of it, [`MAX_FINDINGS`] at most.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Adds something of the ledger's own.
    pub(super) fn add_ledger_damage(&mut self, damage: Damage) {
        self.add(Finding { key: None, logged: None, damage });
    }

    /// Adds something.
    pub(super) fn add(&mut self, finding: Finding) {
        self.found = self.found.saturating_add(1);
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    /// Adds the pairs of which the log tells, and that nobody came upon.
    pub(super) fn add_lost_pairs(&mut self, logged: &LogIndex) {
        let unseen = |key: Option<Key>| {
            logged.pairs.get(&key?.to_bytes()).filter(|word| !word.seen).map(|word| word.revision)
        };
        // Histories may have told of them too.
        let before = self.findings.len();
        self.findings.retain(|found| found.damage != Damage::Lost || unseen(found.key).is_none());
        let again = u64::try_from(before.saturating_sub(self.findings.len())).unwrap_or(0);
        self.found = self.found.saturating_sub(again);
        for (key, word) in logged.pairs.iter().filter(|(_, word)| !word.seen) {
            let (key, logged) = (Some(Key::from_bytes(*key)), Some(word.revision));
            self.add(Finding { key, logged, damage: Damage::Lost });
        }
    }

    /// Adds what another part found.
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

/// How far it has come: buckets looked at, of how many.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// Buckets that are done with.
    pub done: u32,
    /// All of them.
    pub of: u32,
    /// Pairs in them.
    pub pairs: u64,
}

/// What the log last said of a pair, in as little room as that takes: a log has a million entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastLogged {
    pub(super) revision: Revision,
    pub(super) head_prefix: u64,
    /// The first bytes of the record's digest.
    digest: [u8; 8],
    pub(super) seen: bool,
}

/// What the log says.
#[derive(Default)]
pub(super) struct LogIndex {
    pub(super) pairs: HashMap<[u8; 16], LastLogged>,
    /// The first and the last revision that it has, where it has any.
    pub(super) range: Option<(Revision, Revision)>,
    last: Option<LogHead>,
    /// Whether it may lack what was said.
    is_broken: bool,
}

impl LogIndex {
    /// Takes the log's next entry: its body, and the head behind it. `next` reckons the head that
    /// follows a head by a revision and a body, where it can be reckoned.
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
            // What was changed is nobody's word, and what it was is not known.
            (Some((key, _)), Ok(_)) if is_changed => {
                self.pairs.remove(&key.to_bytes());
            }
            (Some((key, record)), Ok(_)) => {
                let head_prefix = head_prefix_of(&head);
                let word =
                    LastLogged { revision, head_prefix, digest: short(&record), seen: false };
                self.pairs.insert(key.to_bytes(), word);
            }
            _ => {
                report.add_ledger_damage(Damage::LogEntry(revision));
                self.is_broken = true;
            }
        }
    }

    /// Looks whether the log ends where the ledger does.
    pub(super) fn end(&self, report: &mut Report, end: &Position) {
        if let (Some((_, revision)), Some(head)) = (self.range, self.last)
            && (revision, head) != (end.revision, end.head)
        {
            report.add_ledger_damage(Damage::LogEnd);
        }
    }

    /// What does not fit of a pair's record, by itself and by the log; notes that it is there.
    pub(super) fn damage_of(&mut self, pair: &PortablePair, end: &Position) -> Option<Damage> {
        let word = self.pairs.get_mut(&pair.key);
        let word = word.map(|word| {
            word.seen = true;
            *word
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
        // What was written after the log was read is not in it.
        if pair.revision > last {
            return None;
        }
        let as_logged = match word {
            Some(word) => {
                pair.revision == word.revision
                    && (word.head_prefix == pair.head_prefix)
                    && word.digest == short(&pair.record)
            }
            None => pair.revision < first || self.is_broken,
        };
        (!as_logged).then_some(Damage::NotAsLogged)
    }

    /// When the log last tells of a pair.
    pub(super) fn revision_of(&self, key: &[u8; 16]) -> Option<Revision> {
        self.pairs.get(key).map(|word| word.revision)
    }
}

/// How the log's hash marks a version.
pub(super) fn head_prefix_of(head: &LogHead) -> u64 {
    head.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn short(record: &[u8]) -> [u8; 8] {
    let digest = sha256(record);
    let mut short = [0; 8];
    short.copy_from_slice(&digest[..8]);
    short
}

impl Ledger {
    /// Looks at all that the ledger holds; others may go on writing meanwhile.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be asked.
    pub async fn verify(
        &self,
        depth: Depth,
        tell: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Report, LedgerError> {
        match self {
            Self::Embedded(ledger) => verify_file(ledger, depth, tell).await,
            Self::Redis(ledger) => ledger.verify(depth, tell).await,
        }
    }
}

/// A file's buckets are parts of one tree: nothing can lie in the wrong one, or lack a fence.
async fn verify_file(
    ledger: &Embedded,
    depth: Depth,
    tell: &mut (dyn FnMut(Progress) + Send),
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
        let words = if depth == Depth::Histories {
            let digests: Vec<_> = statements(&bucket.pairs).into_iter().collect();
            let texts = ledger.statements(&digests).await?;
            let there = digests.iter().zip(texts).filter(|(_, text)| text.is_some());
            there.map(|(digest, _)| *digest).collect()
        } else {
            std::collections::BTreeSet::new()
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
                    let missing = |entry: &_| missing(entry, &words);
                    if !pair.is_intact(&record) {
                        Some(Damage::History)
                    } else if pair.history.iter().flatten().any(missing) {
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
        tell(Progress { done: number.saturating_add(1), of: buckets, pairs: report.pairs });
    }
    Ok(report)
}

fn next(revision: Revision) -> Option<Revision> {
    revision.checked_add(1)
}

fn missing(
    entry: &super::portable_pair::Entry,
    there: &std::collections::BTreeSet<[u8; 32]>,
) -> bool {
    entry.statement().is_some_and(|digest| !there.contains(&digest))
}
