//! Erasure of a person: each of the person's pairs is replaced by a tombstone, which names no user.

use std::collections::HashSet;

use super::append_tracker::AppendTracker;
use super::linked_ids::must_stay;
use super::replay_denials::{Replayable, resubmission};
use super::sent_changes::Origin;
use super::{MAX_EVENTS, MAX_TRIES, Recorder, Refusal, bounded, pause};
use crate::history::by_user::{UserPair, keys_of, pairs_of_user};
use consentd_core::id::{Key, KeySecret, UserId};
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

    /// The pairs that its record links it to; none where that cannot be read.
    fn links(&self, secret: &KeySecret) -> Result<Vec<Key>, Refusal> {
        let links = self.stored.as_ref().map_or(&[][..], |stored| &stored.record.links);
        let keys = links.iter().map(|link| keys_of(secret, &link.user_id, &self.business_id));
        let keys: Vec<_> = keys.collect::<Result<_, _>>().map_err(Refusal::Invalid)?;
        Ok(keys.into_iter().flatten().collect())
    }
}

/// How far an erase has come.
#[derive(Default)]
struct Erasing {
    done: ErasedUser,
    /// The time of the latest tombstone.
    last: Option<Timestamp>,
    /// The latest of the clocks of the partitions that the pairs are in, as first read.
    clock: Option<Timestamp>,
    /// The pairs that are erased, or will be.
    keys: HashSet<Key>,
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
        let Erasing { mut done, last, keys, .. } = self.erase_found(&tracker, found).await?;
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

    /// Replaces the records of these pairs, and of all that they are linked to, by tombstones.
    async fn erase_found(
        &self,
        tracker: &AppendTracker<'_>,
        found: Vec<Found>,
    ) -> Result<Erasing, Refusal> {
        let mut erasing = Erasing::default();
        // The most distant ids are last, and are taken from the end: if this is interrupted, a repeat
        // still finds each remaining id through the links of another one.
        let mut levels = self.with_linked(found).await?;
        self.know(&mut erasing, &levels).await?;
        while let Some(mut waiting) = levels.pop() {
            levels.push(waiting.split_off(waiting.len().min(MAX_APPEND)));
            levels.retain(|level| !level.is_empty());
            let relinked = self.erase_pairs(tracker, waiting, &mut erasing).await?;
            if !relinked.is_empty() {
                let more = self.with_linked(relinked).await?;
                self.know(&mut erasing, &more).await?;
                levels.extend(more);
            }
        }
        Ok(erasing)
    }

    /// Notes that these pairs are to be erased, and reads the clocks of the partitions that they are in. The other
    /// partitions have nothing of the person, and may be lost.
    async fn know(&self, erasing: &mut Erasing, levels: &[Vec<Found>]) -> Result<(), Refusal> {
        let keys: Vec<Key> = levels.iter().flatten().map(|pair| pair.key).collect();
        for chunk in keys.chunks(MAX_APPEND) {
            let clock = self.ledger.read(chunk.to_vec()).await?.clock;
            erasing.clock = erasing.clock.max(Some(clock));
        }
        erasing.keys.extend(keys);
        Ok(())
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
            let found: Vec<_> = found.collect();
            return reject_unreadable(user_id, found);
        }
        let secret = self.ledger.secret().await?;
        let keys = keys_of(&secret, user_id, business_id).map_err(Refusal::Invalid)?;
        let pairs = keys.map(|key| (business_id.to_owned(), key)).collect();
        reject_unreadable(user_id, self.read_existing(pairs).await?)
    }

    /// Reads pairs, and returns those that have records.
    async fn read_existing(&self, pairs: Vec<(String, Key)>) -> Result<Vec<Found>, Refusal> {
        let mut found = Vec::new();
        // Most ledgers have no pair that names no business, and the partition of such keys may be lost.
        let has_nameless = self.ledger.has_nameless().await?;
        let may_be_there = |(_, key): &(String, Key)| has_nameless || !key.is_nameless();
        let pairs: Vec<_> = pairs.into_iter().filter(may_be_there).collect();
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
        let secret = self.ledger.secret().await?;
        let mut seen: HashSet<Key> = found.iter().map(|pair| pair.key).collect();
        let mut levels = vec![found];
        loop {
            let mut next = Vec::new();
            for found in levels.last().into_iter().flatten() {
                let linked = found.links(&secret)?.into_iter();
                let new = linked.filter(|key| seen.insert(*key));
                next.extend(new.map(|key| (found.business_id.clone(), key)));
            }
            if next.is_empty() {
                return Ok(levels);
            }
            levels.push(self.read_existing(next).await?);
        }
    }

    /// Replaces the records of these pairs by tombstones. Returns those that were linked to further
    /// pairs meanwhile: a tombstone names no id, so that the further pairs must be erased first.
    async fn erase_pairs(
        &self,
        tracker: &AppendTracker<'_>,
        mut pairs: Vec<Found>,
        erasing: &mut Erasing,
    ) -> Result<Vec<Found>, Refusal> {
        let mut relinked = Vec::new();
        let secret = self.ledger.secret().await?;
        let clock = erasing.clock.unwrap_or(Timestamp::MIN);
        // An erase denies, and goes by the clocks that denials go by.
        let clock = clock.max(bounded(self.ledger.latest_clock(), clock));
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
            let appended = tracker.append(changes, Origin::Event).await?;
            pairs = Vec::new();
            let given = given.into_iter().zip(times).zip(businesses);
            for ((((key, is_new), time), business_id), appended) in given.zip(appended) {
                match appended {
                    Appended::Committed(revision) => {
                        if let Some(time) = time.filter(|_| !is_new) {
                            // The tombstone is acknowledged like a new one, so it must not be lost.
                            tracker.retain(Replayable::Erase { key, time });
                        }
                        let done = &mut erasing.done;
                        done.erased = done.erased.saturating_add(u32::from(is_new));
                        done.revision = done.revision.max(revision);
                        erasing.last = erasing.last.max(time);
                    }
                    Appended::Conflict(stored) => {
                        let found = Found { business_id, key, stored };
                        let names_another = found.links(&secret)?;
                        let names_another =
                            names_another.iter().any(|key| !erasing.keys.contains(key));
                        if names_another { &mut relinked } else { &mut pairs }.push(found);
                    }
                    Appended::Failed(error) => return Err(error.into()),
                }
            }
            if pairs.is_empty() {
                return Ok(relinked);
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
            let change = Change { key, base: version, update };
            let appended = tracker.append(vec![change], Origin::Event).await?;
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
        let secret = self.ledger.secret().await?;
        self.recent_denials.forget(|denial| {
            let key = secret.read(&denial.user_id, &denial.business_id);
            key.is_ok_and(|key| keys.contains(&key))
        });
        Ok(())
    }
}

/// Refuses an id that cannot be read today, unless pairs were recorded under it when it could: an answer without
/// an error would mean that it was erased.
fn reject_unreadable(user_id: &str, found: Vec<Found>) -> Result<Vec<Found>, Refusal> {
    match UserId::parse(user_id) {
        Err(violation) if found.is_empty() => Err(Refusal::Invalid(vec![violation])),
        _ => Ok(found),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use consentd_core::event::{Event, PlatformNames, What};
    use consentd_core::keyword::{KeywordLists, Keywords};
    use consentd_core::scope::Scope;
    use consentd_core::submission::Submission;
    use consentd_ledger::{Embedded, Ledger, Retention};

    async fn record(recorder: &Recorder, user_id: &str, what: What) {
        let (user_id, business_id) = (user_id.to_owned(), "acme".to_owned());
        let event = Event { user_id, business_id, time: None, what };
        let results = recorder.record(&[Submission::new(event, String::new())]).await;
        assert!(results[0].as_ref().is_ok_and(|outcome| outcome.applied), "{results:?}");
    }

    /// A former primary answers reads, and others link ids meanwhile.
    #[tokio::test]
    async fn erase_that_began_before_a_link_was_made_erases_the_linked_id_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let (ledger, appender) = Embedded::open(&path, Retention::default(), 1 << 20).unwrap();
        std::thread::spawn(move || appender.run());
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        let keywords = Keywords::new(KeywordLists::default());
        let ledger = Ledger::Embedded(ledger);
        let recorder = Recorder::new(ledger.clone(), PlatformNames::default(), keywords, metrics);
        let opt_out = What::OptOut { scope: Scope::All, reference: String::new() };
        record(&recorder, "US.one", opt_out.clone()).await;
        record(&recorder, "US.two", opt_out).await;
        let found = recorder.pairs_to_erase("US.one", "acme").await.unwrap();
        let link = What::Link { other_user_id: "US.two".to_owned(), moved: false };
        record(&recorder, "US.one", link).await;
        let tracker = AppendTracker::new(&recorder, true);
        let erasing = recorder.erase_found(&tracker, found).await.unwrap();
        assert_eq!((erasing.done.erased, erasing.keys.len()), (2, 2));
        let keys = erasing.keys.into_iter().collect();
        for stored in ledger.read(keys).await.unwrap().pairs {
            assert!(stored.unwrap().record.is_tombstone());
        }
    }
}
