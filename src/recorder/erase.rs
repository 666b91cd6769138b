//! Erasing a person: of every pair a tombstone is left, which names nobody.

use std::collections::HashSet;

use super::{MAX_TRIES, Recorder, Refusal, pause};
use crate::consent::id::Key;
use crate::consent::record::{Record, Revision};
use crate::consent::time::Timestamp;
use crate::ledger::{Appended, Change, MAX_APPEND, Stored, UnreadableRecord, Update};

/// One of the person's pairs, as it was read.
struct Found {
    key: Key,
    stored: Result<Stored, UnreadableRecord>,
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
    /// Erases a person: with one business, or, where that is empty, with every one. Once it answers,
    /// the pairs are suppressed and their histories gone. What fails half-way is done when it is
    /// asked for again.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where the ids are malformed, a record must not be rewritten, or the ledger fails.
    pub async fn erase(&self, user_id: &str, business_id: &str) -> Result<ErasedUser, Refusal> {
        let found = self.pairs_to_erase(user_id, business_id).await?;
        let keys: HashSet<Key> = found.iter().map(|pair| pair.key).collect();
        let mut done = ErasedUser::default();
        let mut last = None;
        let mut waiting = found;
        while !waiting.is_empty() {
            let rest = waiting.split_off(waiting.len().min(MAX_APPEND));
            last = last.max(self.erase_pairs(waiting, &mut done).await?);
            waiting = rest;
        }
        self.forget_denials(&keys).await?;
        let keys: Vec<Key> = keys.into_iter().collect();
        // Those that were erased before too: whoever did may have died before this.
        self.ledger.purge(&keys).await?;
        let after = self.ledger.log_gone_after();
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
            return Ok(found.map(|p| Found { key: p.key, stored: Ok(p.stored) }).collect());
        }
        let identity = self.ledger.identity().await?;
        let key = identity.secret.read(user_id, business_id).map_err(Refusal::Invalid)?;
        let read = self.ledger.read(vec![key]).await?.pairs.into_iter();
        let is_there = |stored: &Result<Stored, UnreadableRecord>| {
            stored.as_ref().map_or(true, |stored| stored.version.revision > 0)
        };
        Ok(read.filter(is_there).map(|stored| Found { key, stored }).collect())
    }

    /// Leaves tombstones of these pairs; gives the time of the latest.
    async fn erase_pairs(
        &self,
        mut pairs: Vec<Found>,
        done: &mut ErasedUser,
    ) -> Result<Option<Timestamp>, Refusal> {
        let mut latest = None;
        let clock = self.ledger.read(Vec::new()).await?.clock;
        for attempt in 0..MAX_TRIES {
            let mut changes = Vec::with_capacity(pairs.len());
            let mut times = Vec::with_capacity(pairs.len());
            for Found { key, stored } in pairs {
                let Stored { version, record } = stored?;
                let is_tombstone = record.is_tombstone();
                let tombstone = if is_tombstone { record } else { record.tombstone(clock) };
                times.push(time_of(&tombstone));
                // Of one that is there already it is only made sure that it is.
                let update = (!is_tombstone).then(|| nameless(tombstone, clock));
                changes.push(Change { key, base: version, update });
            }
            let given: Vec<_> = changes.iter().map(|c| (c.key, c.update.is_some())).collect();
            let appended = self.ledger.append(changes).await?;
            pairs = Vec::new();
            for (((key, is_new), time), appended) in given.into_iter().zip(times).zip(appended) {
                match appended {
                    Appended::At(revision) => {
                        done.erased = done.erased.saturating_add(u32::from(is_new));
                        done.revision = done.revision.max(revision);
                        latest = latest.max(time);
                    }
                    Appended::Conflict(stored) => pairs.push(Found { key, stored }),
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
