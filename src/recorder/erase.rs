//! Erasing a person: of every pair a tombstone is left, which names nobody.

use std::collections::HashSet;

use super::call::Call;
use super::linked::must_stay;
use super::returned::{Returnable, again};
use super::{MAX_EVENTS, MAX_TRIES, Recorder, Refusal, UserPair, pause};
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
    /// Whether there is anything to erase, or to make sure of.
    fn is_there(&self) -> bool {
        self.stored.as_ref().map_or(true, |stored| stored.version.revision > 0)
    }
}

/// What came of erasing a person.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ErasedUser {
    /// How many pairs there were that something was known of. Those that were erased before, and
    /// of which nothing was heard since, are not among them.
    pub erased: u32,
    /// The last revision of it; 0 where there was nothing to do.
    pub revision: Revision,
    /// When the last of the log's entries that name the person will have gone, at the latest, of
    /// these pairs and of those that were erased before; none where there are none, or where this
    /// process does not see to it.
    pub log_expire: Option<Timestamp>,
}

impl Recorder {
    /// Erases a person: with one business, or, where that is empty, with every one; under the id
    /// given and all that it is linked to. Once it answers, the pairs are suppressed and their
    /// histories gone. What fails half-way is done when it is asked for again.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where the ids are malformed, a record must not be rewritten, or the ledger fails.
    pub async fn erase(&self, user_id: &str, business_id: &str) -> Result<ErasedUser, Refusal> {
        let call = Call::new(self, true);
        let found = self.pairs_to_erase(user_id, business_id).await?;
        let found = self.with_linked(found).await?;
        let keys: HashSet<Key> = found.iter().flatten().map(|pair| pair.key).collect();
        let mut done = ErasedUser::default();
        let mut last = None;
        // From the farthest on: cut short, every one that is left is still named by one that is.
        for mut waiting in found.into_iter().rev() {
            while !waiting.is_empty() {
                let rest = waiting.split_off(waiting.len().min(MAX_APPEND));
                last = last.max(self.erase_pairs(&call, waiting, &mut done).await?);
                waiting = rest;
            }
        }
        self.forget_denials(&keys).await?;
        let keys: Vec<Key> = keys.into_iter().collect();
        // Those that were erased before too: whoever did may have died before this.
        self.ledger.purge(&keys).await?;
        call.finish().await?;
        let after = self.ledger.max_log_age();
        done.log_expire = last.zip(after).map(|(last, after)| last.plus(after));
        self.metrics.erased(done.erased);
        Ok(done)
    }

    /// The person's pairs that there are: with one business, or with all that any kept event names.
    async fn pairs_to_erase(
        &self,
        user_id: &str,
        business_id: &str,
    ) -> Result<Vec<Found>, Refusal> {
        if business_id.is_empty() {
            let found = self.pairs_of_user(user_id, &[]).await?.pairs.into_iter();
            let found = found.map(|UserPair { business_id, key, stored }| Found {
                business_id,
                key,
                stored: Ok(stored),
            });
            return Ok(found.collect());
        }
        let identity = self.ledger.identity().await?;
        let key = identity.secret.read(user_id, business_id).map_err(Refusal::Invalid)?;
        self.look_at(vec![(business_id.to_owned(), key)]).await
    }

    /// Reads pairs; gives those that are there.
    async fn look_at(&self, pairs: Vec<(String, Key)>) -> Result<Vec<Found>, Refusal> {
        let mut found = Vec::new();
        for some in pairs.chunks(MAX_APPEND) {
            let read = self.ledger.read(some.iter().map(|(_, key)| *key).collect()).await?;
            let read = some.iter().zip(read.pairs).map(|((business_id, key), stored)| Found {
                business_id: business_id.clone(),
                key: *key,
                stored,
            });
            found.extend(read.filter(Found::is_there));
        }
        Ok(found)
    }

    /// Adds the pairs that these are linked to, then those that they are, and so on.
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
            levels.push(self.look_at(next).await?);
        }
    }

    /// Leaves tombstones of these pairs; gives the time of the latest.
    async fn erase_pairs(
        &self,
        call: &Call<'_>,
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
                // Of one that is there already it is only made sure that it is.
                let update = (!is_tombstone).then(|| nameless(tombstone, clock));
                changes.push(Change { key, base: version, update });
            }
            let given: Vec<_> = changes.iter().map(|c| (c.key, c.update.is_some())).collect();
            let appended = call.append(changes).await?;
            pairs = Vec::new();
            let given = given.into_iter().zip(times).zip(businesses);
            for ((((key, is_new), time), business_id), appended) in given.zip(appended) {
                match appended {
                    Appended::Committed(revision) => {
                        if let Some(time) = time.filter(|_| !is_new) {
                            // It is acknowledged like one that was erased now.
                            call.keep(Returnable::Erase { key, time });
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

    /// Erases a pair again, as of the time at which it was, unless the ledger still knows of that;
    /// tells whether it did. What was recorded of the pair as having happened later stays.
    pub(super) async fn erase_again(&self, key: Key, time: Timestamp) -> Result<bool, Refusal> {
        let call = Call::new(self, false);
        for attempt in 0..MAX_TRIES {
            let read = self.ledger.read(vec![key]).await?;
            let stored =
                read.pairs.into_iter().next().unwrap_or_else(|| Ok(StoredRecord::default()));
            let StoredRecord { version, record } = stored?;
            let is_erased = record.erased.as_ref().is_some_and(|erased| erased.time >= time);
            let later = if is_erased { Vec::new() } else { self.later_than(key, time).await? };
            // The tombstone takes the place of these: they must not be lost where what follows fails.
            for denial in later.iter().filter(|entry| must_stay(&entry.what)) {
                self.acknowledged.keep(Returnable::Denial(Box::new(denial.clone())), None);
            }
            // That it is erased still is made sure of by a write, too: an old primary answers reads.
            let update = (!is_erased).then(|| nameless(record.tombstone_at(time), read.clock));
            let appended = call.append(vec![Change { key, base: version, update }]).await?;
            match appended.into_iter().next() {
                Some(Appended::Committed(_)) => {
                    call.finish().await?;
                    if is_erased {
                        return Ok(false);
                    }
                    let later: Vec<_> = later.iter().map(again).collect();
                    let mut lost = None;
                    for some in later.chunks(MAX_EVENTS) {
                        let results = self.record_for_good(some, true).await;
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

    /// What was recorded of a pair as having happened later than that.
    async fn later_than(&self, key: Key, time: Timestamp) -> Result<Vec<HistoryEntry>, Refusal> {
        let history = self.ledger.history(key).await?.entries.into_iter();
        Ok(history.map(|(_, entry)| entry).filter(|entry| entry.time > time).collect())
    }

    /// Forgets what could be given back of these pairs: it names the person.
    async fn forget_denials(&self, keys: &HashSet<Key>) -> Result<(), Refusal> {
        let identity = self.ledger.identity().await?;
        self.acknowledged.forget(|denial| {
            let key = identity.secret.read(&denial.user_id, &denial.business_id);
            key.is_ok_and(|key| keys.contains(&key))
        });
        Ok(())
    }
}

fn time_of(tombstone: &Record) -> Option<Timestamp> {
    tombstone.erased.as_ref().map(|erased| erased.time)
}

/// What is written of an erased pair: its entry in the log names nobody.
fn nameless(record: Record, record_time: Timestamp) -> Update {
    let (user_id, business_id) = (String::new(), String::new());
    Update { user_id, business_id, record, history: Vec::new(), record_time }
}
