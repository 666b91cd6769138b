//! Erasure of a person: each of the person's pairs is replaced by a tombstone, which names no user.

use std::collections::HashSet;

use super::append_tracker::AppendTracker;
use super::linked_ids::must_stay;
use super::replay_denials::{Replayable, resubmission};
use super::{MAX_EVENTS, MAX_TRIES, Recorder, Refusal, pause};
use crate::history::by_user::{UserPair, pairs_of_user};
use consentd_core::id::Key;
use consentd_core::record::{HistoryEntry, Record, Revision};
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, MAX_APPEND, StoredRecord, UnreadableRecord, Update};

/// One of the person's pairs, as it was read.
struct Found {
    business_id: String,
    key: Key,
    stored: Result<StoredRecord, UnreadableRecord>,
}

impl Found {
    /// Whether the ledger has a record to erase, be it a tombstone, which is then only compared.
    fn is_there(&self) -> bool {
        self.stored.as_ref().map_or(true, |stored| stored.version.revision > 0)
    }
}

/// The result of erasing a person.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ErasedUser {
    /// The number of pairs that were erased. A pair that was a tombstone already is not counted.
    pub erased: u32,
    /// The last revision of the erasure; 0 if there was nothing to erase.
    pub revision: Revision,
    /// The latest time until which the log may still have entries that name the person, including those
    /// of pairs that were erased before. `None` if there are no such pairs, or if this process does not
    /// trim the log.
    pub log_expire: Option<Timestamp>,
}

impl Recorder {
    /// Erases a person at one business, or at every business if `business_id` is empty, under the given
    /// id and all ids that it is linked to. Once this returns, the pairs are suppressed and their histories
    /// deleted. It is idempotent: if it fails half-way, a repeat completes it.
    ///
    /// # Errors
    ///
    /// [`Refusal`] if the ids are malformed, a record must not be overwritten, or the ledger fails.
    pub async fn erase(&self, user_id: &str, business_id: &str) -> Result<ErasedUser, Refusal> {
        let tracker = AppendTracker::new(self, true);
        let found = self.pairs_to_erase(user_id, business_id).await?;
        let found = self.with_linked(found).await?;
        let keys: HashSet<Key> = found.iter().flatten().map(|pair| pair.key).collect();
        let mut done = ErasedUser::default();
        let mut last = None;
        // The most distant ids first: if this is interrupted, a repeat still finds each remaining id
        // through the links of another one.
        for mut waiting in found.into_iter().rev() {
            while !waiting.is_empty() {
                let rest = waiting.split_off(waiting.len().min(MAX_APPEND));
                last = last.max(self.erase_pairs(&tracker, waiting, &mut done).await?);
                waiting = rest;
            }
        }
        self.forget_denials(&keys).await?;
        let keys: Vec<Key> = keys.into_iter().collect();
        // Pairs that were erased before are purged too: that erasure may have been interrupted before
        // its purge.
        self.ledger.purge(&keys).await?;
        tracker.finish().await?;
        let after = self.ledger.max_log_age();
        done.log_expire = last.zip(after).map(|(last, after)| last.plus(after));
        self.metrics.erased(done.erased);
        Ok(done)
    }

    /// The person's pairs: at one business, or at every business that a stored event names.
    async fn pairs_to_erase(
        &self,
        user_id: &str,
        business_id: &str,
    ) -> Result<Vec<Found>, Refusal> {
        if business_id.is_empty() {
            let found = pairs_of_user(&self.ledger, user_id, &[]).await?.pairs.into_iter();
            let found = found.map(|UserPair { business_id, key, stored }| Found {
                business_id,
                key,
                stored: Ok(stored),
            });
            return Ok(found.collect());
        }
        let identity = self.ledger.identity().await?;
        let key = identity.secret.read(user_id, business_id).map_err(Refusal::Invalid)?;
        self.read_existing(vec![(business_id.to_owned(), key)]).await
    }

    /// Reads pairs, and returns those that have records.
    async fn read_existing(&self, pairs: Vec<(String, Key)>) -> Result<Vec<Found>, Refusal> {
        let mut found = Vec::new();
        for chunk in pairs.chunks(MAX_APPEND) {
            let read = self.ledger.read(chunk.iter().map(|(_, key)| *key).collect()).await?;
            let read = chunk.iter().zip(read.pairs).map(|((business_id, key), stored)| Found {
                business_id: business_id.clone(),
                key: *key,
                stored,
            });
            found.extend(read.filter(Found::is_there));
        }
        Ok(found)
    }

    /// Adds the pairs that these are linked to, transitively. Returns them by their distance.
    async fn with_linked(&self, found: Vec<Found>) -> Result<Vec<Vec<Found>>, Refusal> {
        let identity = self.ledger.identity().await?;
        let mut seen: HashSet<Key> = found.iter().map(|pair| pair.key).collect();
        let mut levels = vec![found];
        loop {
            let mut next = Vec::new();
            for Found { business_id, stored, .. } in levels.last().into_iter().flatten() {
                let links = stored.as_ref().map_or(&[][..], |stored| &stored.record.links);
                for link in links {
                    let key = identity.secret.read(&link.user_id, business_id);
                    let key = key.map_err(Refusal::Invalid)?;
                    if seen.insert(key) {
                        next.push((business_id.clone(), key));
                    }
                }
            }
            if next.is_empty() {
                return Ok(levels);
            }
            levels.push(self.read_existing(next).await?);
        }
    }

    /// Replaces the records of these pairs by tombstones. Returns the time of the latest tombstone.
    async fn erase_pairs(
        &self,
        tracker: &AppendTracker<'_>,
        mut pairs: Vec<Found>,
        done: &mut ErasedUser,
    ) -> Result<Option<Timestamp>, Refusal> {
        let mut latest = None;
        let clock = self.ledger.read(Vec::new()).await?.clock;
        for attempt in 0..MAX_TRIES {
            let mut changes = Vec::with_capacity(pairs.len());
            let mut times = Vec::with_capacity(pairs.len());
            let mut businesses = Vec::with_capacity(pairs.len());
            for Found { business_id, key, stored } in pairs {
                businesses.push(business_id);
                let StoredRecord { version, record } = stored?;
                let is_tombstone = record.is_tombstone();
                let tombstone = if is_tombstone { record } else { record.tombstone(clock) };
                times.push(time_of(&tombstone));
                // An existing tombstone is only compared.
                let update = (!is_tombstone).then(|| nameless(tombstone, clock));
                changes.push(Change { key, base: version, update });
            }
            let given: Vec<_> = changes.iter().map(|c| (c.key, c.update.is_some())).collect();
            let appended = tracker.append(changes).await?;
            pairs = Vec::new();
            let given = given.into_iter().zip(times).zip(businesses);
            for ((((key, is_new), time), business_id), appended) in given.zip(appended) {
                match appended {
                    Appended::Committed(revision) => {
                        if let Some(time) = time.filter(|_| !is_new) {
                            // The tombstone is acknowledged like a new one, so it must not be lost.
                            tracker.retain(Replayable::Erase { key, time });
                        }
                        done.erased = done.erased.saturating_add(u32::from(is_new));
                        done.revision = done.revision.max(revision);
                        latest = latest.max(time);
                    }
                    Appended::Conflict(stored) => {
                        pairs.push(Found { business_id, key, stored });
                    }
                    Appended::Failed(error) => return Err(error.into()),
                }
            }
            if pairs.is_empty() {
                return Ok(latest);
            }
            pause(attempt).await;
        }
        Err(Refusal::Contended)
    }

    /// Erases a pair again as of its time, unless the ledger still has the tombstone. Returns whether it
    /// was erased again. Events that happened after that time are kept.
    pub(super) async fn erase_again(&self, key: Key, time: Timestamp) -> Result<bool, Refusal> {
        let tracker = AppendTracker::new(self, false);
        for attempt in 0..MAX_TRIES {
            let read = self.ledger.read(vec![key]).await?;
            let stored =
                read.pairs.into_iter().next().unwrap_or_else(|| Ok(StoredRecord::default()));
            let StoredRecord { version, record } = stored?;
            let is_erased = record.erased.as_ref().is_some_and(|erased| erased.time >= time);
            let later = if is_erased { Vec::new() } else { self.later_than(key, time).await? };
            // The tombstone replaces the later events. They are retained, so that they are not lost if
            // recording them again fails.
            for denial in later.iter().filter(|entry| must_stay(&entry.what)) {
                self.recent_denials.retain(Replayable::Denial(Box::new(denial.clone())), None);
            }
            // An existing tombstone is compared by an append as well: a deposed primary answers reads, but
            // confirms no append.
            let update = (!is_erased).then(|| nameless(record.tombstone_at(time), read.clock));
            let appended = tracker.append(vec![Change { key, base: version, update }]).await?;
            match appended.into_iter().next() {
                Some(Appended::Committed(_)) => {
                    tracker.finish().await?;
                    if is_erased {
                        return Ok(false);
                    }
                    let later: Vec<_> = later.iter().map(resubmission).collect();
                    let mut lost = None;
                    for chunk in later.chunks(MAX_EVENTS) {
                        let results = self.record_tracked(chunk, true).await;
                        lost = lost.or(results.into_iter().find_map(Result::err));
                    }
                    lost.map_or(Ok(()), Err)?;
                    self.ledger.purge(&[key]).await?;
                    return Ok(true);
                }
                Some(Appended::Failed(error)) => return Err(error.into()),
                Some(Appended::Conflict(_)) | None => pause(attempt).await,
            }
        }
        Err(Refusal::Contended)
    }

    /// The events of a pair that happened after `time`.
    async fn later_than(&self, key: Key, time: Timestamp) -> Result<Vec<HistoryEntry>, Refusal> {
        let history = self.ledger.history(key).await?.entries.into_iter();
        Ok(history.map(|(_, entry)| entry).filter(|entry| entry.time > time).collect())
    }

    /// Forgets the retained denials of these pairs, which name the person.
    async fn forget_denials(&self, keys: &HashSet<Key>) -> Result<(), Refusal> {
        let identity = self.ledger.identity().await?;
        self.recent_denials.forget(|denial| {
            let key = identity.secret.read(&denial.user_id, &denial.business_id);
            key.is_ok_and(|key| keys.contains(&key))
        });
        Ok(())
    }
}

fn time_of(tombstone: &Record) -> Option<Timestamp> {
    tombstone.erased.as_ref().map(|erased| erased.time)
}

/// The update that writes a tombstone. Its log entry names no user.
fn nameless(record: Record, record_time: Timestamp) -> Update {
    let (user_id, business_id) = (String::new(), String::new());
    Update { user_id, business_id, record, history: Vec::new(), record_time }
}
