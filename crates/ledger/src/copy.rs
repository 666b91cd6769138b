//! Copying a ledger into another: all pairs, their histories and what they name, as the same
//! bytes, under a new epoch.
//!
//! Others may write to the first one meanwhile. Buckets are read one after the other; what changes
//! in those that were read is told by the log, which is followed from before the first one, and is
//! read again. In the end nothing must be new, twice: what is written later is in the first ledger
//! alone. The log itself is not copied: its readers find another epoch, and read all there is.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::sleep;

use super::embedded::{NewFile, OpenError};
use super::portable_pair::{PortableBucket, PortablePair, statements};
use super::redis::{CreateError, NewRedis};
use super::verify::Progress;
use super::{Epoch, Ledger, LedgerError, Position, Tail, bucket_of};
use consentd_core::id::Key;
use consentd_core::record::{Record, Revision};
use consentd_os::clock;

/// How many buckets are read before they are written.
const BUCKETS_AT_ONCE: usize = 16;
/// How many pairs are read again at once.
const PAIRS_AT_ONCE: usize = 256;
/// How often the log is followed meanwhile, so that a short one does no harm.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// How often the first ledger is looked at in the end before it is said that it is not still.
const MAX_LOOKS: u32 = 10;

/// Why a ledger was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The first ledger.
    #[error("cannot read the ledger to copy from: {0}")]
    Source(#[source] LedgerError),
    /// It is not the ledger any more that it was, or has lost changes.
    #[error(
        "the ledger to copy from was replaced or set back meanwhile (a failover, or a restart from \
         a backup): see that it is well, and begin anew with --anew"
    )]
    Forked,
    /// Its log was too short.
    #[error(
        "the log of the ledger to copy from lost entries that were still needed: keep it longer \
         (--log-entries, --log-retention), and begin anew with --anew"
    )]
    Trimmed,
    /// Somebody was erased from it.
    #[error(
        "somebody was erased from the ledger to copy from, after the copy had taken what is gone \
         there: begin anew with --anew"
    )]
    Erased,
    /// It is being written to.
    #[error(
        "the ledger to copy from is still being written to, so that a copy would lack what comes \
         next: stop those who record, and begin anew with --anew"
    )]
    NotStill,
    /// A copy was begun there.
    #[error(
        "an unfinished copy is there: it is no ledger, and was left as it is; give --anew to remove \
         it and begin anew"
    )]
    Unfinished,
    /// The second ledger.
    #[error("cannot make the copy: {0}")]
    Target(#[source] CreateError),
    /// The second ledger, in a file.
    #[error("cannot make the copy: {0}")]
    File(#[source] OpenError),
    /// The second ledger, in a file.
    #[error("cannot write the copy: {0}")]
    Writing(#[source] LedgerError),
}

/// A ledger that was copied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CopyReport {
    /// The copy's.
    pub epoch: Epoch,
    /// How many buckets its pairs lie in.
    pub buckets: u32,
    /// How many pairs it has.
    pub pairs: u64,
    /// The revision from which it goes on.
    pub revision: Revision,
    /// Statements that histories name, and that the first ledger does not have.
    pub missing_statements: u64,
    /// How many changes came to the first ledger after all, and are not in the copy.
    pub late: u64,
}

/// Where a copy is made.
pub enum NewLedger {
    /// In a file.
    File(Box<NewFile>),
    /// In Redis.
    Redis(Box<NewRedis>),
}

impl NewLedger {
    async fn put(
        &mut self,
        pairs: Vec<PortablePair>,
        texts: Vec<([u8; 32], Vec<u8>)>,
    ) -> Result<(), CopyError> {
        match self {
            Self::File(file) => file.put(&pairs, &texts).map_err(CopyError::Writing),
            Self::Redis(redis) => redis.put(&pairs, texts).await,
        }
    }

    async fn finish(self, end: &Position, secret: &[u8; 16]) -> Result<(Epoch, u32), CopyError> {
        match self {
            Self::File(file) => file.finish(end, secret),
            Self::Redis(redis) => {
                let made = redis.finish(end, secret).await?;
                Ok((made.epoch, made.buckets))
            }
        }
    }
}

impl Ledger {
    async fn portable_bucket(&self, number: u32) -> Result<PortableBucket, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.portable_bucket(number).await,
            Self::Redis(ledger) => ledger.portable_bucket(number).await,
        }
    }

    async fn portable_pairs(&self, keys: &[Key]) -> Result<Vec<PortablePair>, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.portable_pairs(keys).await,
            Self::Redis(ledger) => ledger.portable_pairs(keys).await,
        }
    }

    async fn statements(&self, digests: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.statements(digests).await,
            Self::Redis(ledger) => ledger.statements(digests).await,
        }
    }

    async fn secret(&self) -> Result<[u8; 16], LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.secret().await,
            Self::Redis(ledger) => ledger.secret().await,
        }
    }
}

/// Copies a ledger. Before the end it waits for `still`, and looks again whether anything is new.
///
/// # Errors
///
/// [`CopyError`]; the copy is no ledger then.
pub async fn copy(
    from: &Ledger,
    to: NewLedger,
    still: Duration,
    tell: &mut (dyn FnMut(Progress) + Send),
) -> Result<CopyReport, CopyError> {
    let identity = from.identity().await.map_err(CopyError::Source)?;
    let cursor = from.read_after(Revision::MAX).await.map_err(CopyError::Source)?.end;
    let mut copying = Copying {
        from,
        to,
        cursor,
        buckets: identity.buckets,
        done: 0,
        pairs: 0,
        missing: BTreeSet::new(),
    };
    let mut followed = clock::boot();
    while copying.done < identity.buckets {
        copying.some_buckets().await?;
        tell(Progress { done: copying.done, of: identity.buckets, pairs: copying.pairs });
        if clock::boot().saturating_sub(followed) >= FOLLOW_EVERY {
            copying.follow().await?;
            followed = clock::boot();
        }
    }
    let mut looks = 0;
    while copying.follow().await? || looks == 0 {
        // The first time, too: nothing new must be there twice.
        if looks >= MAX_LOOKS {
            return Err(CopyError::NotStill);
        }
        looks += 1;
        if matches!(from, Ledger::Redis(_)) {
            sleep(still).await;
        }
    }
    let secret = from.secret().await.map_err(CopyError::Source)?;
    let Copying { to, cursor, pairs, missing, .. } = copying;
    let (epoch, buckets) = to.finish(&cursor, &secret).await?;
    let end = from.read_after(Revision::MAX).await.map_err(CopyError::Source)?.end;
    Ok(CopyReport {
        epoch,
        buckets,
        pairs,
        revision: cursor.revision,
        missing_statements: missing.len().try_into().unwrap_or(u64::MAX),
        late: end.revision.saturating_sub(cursor.revision),
    })
}

struct Copying<'a> {
    from: &'a Ledger,
    to: NewLedger,
    /// Up to here every change of a bucket that is done with is in the copy.
    cursor: Position,
    buckets: u32,
    /// So many buckets are done with.
    done: u32,
    pairs: u64,
    missing: BTreeSet<[u8; 32]>,
}

impl Copying<'_> {
    async fn some_buckets(&mut self) -> Result<(), CopyError> {
        let most = u32::try_from(BUCKETS_AT_ONCE).unwrap_or(1);
        let next = self.done.saturating_add(most).min(self.buckets);
        let from = self.from;
        let reads = (self.done..next).map(|number| from.portable_bucket(number));
        let read: Vec<_> =
            futures_util::stream::iter(reads).buffered(BUCKETS_AT_ONCE).collect().await;
        let mut pairs = Vec::new();
        for bucket in read {
            let bucket = bucket.map_err(CopyError::Source)?;
            let label = bucket.label;
            if label.epoch != self.cursor.epoch || label.revision < self.cursor.revision {
                return Err(CopyError::Forked);
            }
            pairs.extend(bucket.pairs);
        }
        self.pairs = self.pairs.saturating_add(pairs.len().try_into().unwrap_or(u64::MAX));
        self.put(pairs).await?;
        self.done = next;
        Ok(())
    }

    /// Follows the log to where it ends now, and copies again what has changed; tells whether
    /// anything had. What is written meanwhile is left to the next time: there may always be more.
    async fn follow(&mut self) -> Result<bool, CopyError> {
        let mut any = false;
        let mut until = None;
        loop {
            let page = self.from.read_after(self.cursor.revision).await;
            let page = page.map_err(CopyError::Source)?;
            if page.end.epoch != self.cursor.epoch || page.end.revision < self.cursor.revision {
                return Err(CopyError::Forked);
            }
            let Tail::Entries(entries) = page.tail else { return Err(CopyError::Trimmed) };
            let Some(last) = entries.last() else {
                return if page.end == self.cursor { Ok(any) } else { Err(CopyError::Forked) };
            };
            let next = Position { revision: last.revision, head: last.head, ..self.cursor };
            if entries.first().is_some_and(|first| first.previous != self.cursor.head) {
                return Err(CopyError::Forked);
            }
            let mut changed = BTreeSet::new();
            for entry in &entries {
                let body = entry
                    .body
                    .as_ref()
                    .map_err(|_| CopyError::Source(LedgerError::Damaged("an entry of the log")))?;
                if bucket_of(body.key, self.buckets) < self.done {
                    let record = body.record.as_ref();
                    if body.user_id.is_empty() && record.is_ok_and(Record::is_without_history) {
                        return Err(CopyError::Erased);
                    }
                    changed.insert(body.key.to_bytes());
                }
            }
            let changed: Vec<_> = changed.into_iter().map(Key::from_bytes).collect();
            for some in changed.chunks(PAIRS_AT_ONCE) {
                let pairs = self.from.portable_pairs(some).await.map_err(CopyError::Source)?;
                self.put(pairs).await?;
            }
            self.cursor = next;
            any = true;
            if self.cursor.revision >= *until.get_or_insert(page.end.revision) {
                return Ok(any);
            }
        }
    }

    /// Writes pairs, and the statements that their histories name.
    async fn put(&mut self, pairs: Vec<PortablePair>) -> Result<(), CopyError> {
        let digests: Vec<_> = statements(&pairs).into_iter().collect();
        let texts = self.from.statements(&digests).await.map_err(CopyError::Source)?;
        let mut found = Vec::with_capacity(texts.len());
        for (digest, text) in digests.into_iter().zip(texts) {
            match text {
                Some(text) => found.push((digest, text)),
                None => {
                    self.missing.insert(digest);
                }
            }
        }
        self.to.put(pairs, found).await
    }
}
