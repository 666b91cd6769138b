//! The sources that a pair's record is rebuilt from: its bucket, the log, its history, and a record that was
//! found elsewhere.

use super::super::Shared;
use super::super::error::{RedisFailure, RedisRejection};
use super::super::keyspace::{history_field, split_value};
use super::super::scripts::{Answer, ask};
use super::portable::entry;
use crate::portable_pair::{PortableEntry, chain_of};
use crate::verify::{Damage, Finding};
use crate::{Identity, LedgerError, LogBody, Version, bucket_of, codec};
use consentd_core::claims::Claim;
use consentd_core::event::{MAX_AHEAD, What};
use consentd_core::id::Key;
use consentd_core::record::{ChainHead, Erased, HistoryEntry, Link, Record};
use consentd_core::state::State;

/// How many items of a history are read at once.
const MAX_ITEMS: u64 = 512;

/// All that is known about a pair.
pub(super) struct RepairInputs {
    /// The pair's value in its bucket.
    pub(super) value: Option<Vec<u8>>,
    /// The version and the record in that value, if it can be decoded.
    pub(super) stored: Option<(Version, Record)>,
    /// The pair's last log entry.
    logged: Option<LogBody>,
    /// The pair's history up to its first gap.
    items: Vec<Option<PortableEntry>>,
    /// The pair's value in another bucket.
    pub(super) misplaced: Option<Vec<u8>>,
    /// The record in that value, or the copy of the tombstone in the histories.
    misplaced_record: Option<Record>,
    /// A revision at which the pair may have been written.
    pub(super) revision: u64,
}

/// The records that count: those that tell of the last erase. An older record would bring back what was
/// erased.
struct Sources<'a> {
    /// The last erase that any record tells of.
    erased: Option<Box<Erased>>,
    /// The pair's own records: as stored in its bucket, and as last logged.
    own: Vec<&'a Record>,
    /// The record that was found elsewhere.
    misplaced: Option<&'a Record>,
}

impl<'a> Sources<'a> {
    fn all(&self) -> impl Iterator<Item = &'a Record> {
        self.own.iter().copied().chain(self.misplaced)
    }

    /// The join of all states: that of all events of all records.
    fn state(&self) -> State {
        self.all().fold(State::default(), |state, record| state.join(record.state.clone()))
    }
}

impl RepairInputs {
    /// Rebuilds the record: the join of all sources' states, the longest history that matches a source's
    /// chain, and the links of all sources.
    pub(super) fn rebuild(&self) -> Record {
        let sources = self.sources();
        let mut state = sources.state();
        // A record of the pair itself contains all events of its history.
        if sources.own.is_empty() {
            self.replay_history(&mut state);
        }
        let (history_len, chain) = self.history_end(&sources);
        let requests = sources.own.first().map(|record| record.requests.clone());
        let links = self.links(&sources);
        let requests = requests.unwrap_or_default();
        Record { state, history_len, chain, requests, links, erased: sources.erased }
    }

    fn sources(&self) -> Sources<'_> {
        let stored = self.stored.as_ref().map(|(_, record)| record);
        let logged = self.logged.as_ref().and_then(|body| body.record.as_ref().ok());
        let own = [stored, logged].into_iter().flatten();
        let misplaced = self.misplaced_record.as_ref();
        let erased = last_erase(own.clone().chain(misplaced));
        let is_current = |record: &&Record| record.erased == erased;
        let own = own.filter(is_current).collect();
        let misplaced = misplaced.filter(is_current);
        Sources { erased, own, misplaced }
    }

    /// Applies all events of the history to a state.
    fn replay_history(&self, state: &mut State) {
        for entry in self.items.iter().flatten().filter_map(decoded) {
            for effect in entry.what.effects(entry.time) {
                // An effect beyond the limit of scopes was rejected when it was recorded, too.
                let _ = state.apply(&effect);
            }
            // A clamped allow counts as of its recording. Its claimed time is unknown.
            if entry.what.is_clamped() && entry.time == entry.record_time {
                state.clamped.insert(entry.time);
                state.claims.add(Claim::up_to(entry.time, MAX_AHEAD));
            }
        }
        state.forget_clamped();
    }

    /// The length and the chain of the history: those of the longest own record that the items match,
    /// otherwise those of the items.
    fn history_end(&self, sources: &Sources<'_>) -> (u64, ChainHead) {
        let (start, chain_start) = history_start(sources.erased.as_deref());
        let matches = |record: &&&Record| {
            let items = record.history_len.checked_sub(start).and_then(|len| len.try_into().ok());
            let items = items.and_then(|len: usize| self.items.get(..len));
            items.is_some_and(|items| chain_of(chain_start, items) == Some(record.chain))
        };
        let longest = sources.own.iter().filter(matches).max_by_key(|record| record.history_len);
        if let Some(record) = longest {
            return (record.history_len, record.chain);
        }
        let len = u64::try_from(self.items.len()).unwrap_or(0);
        let chain = chain_of(chain_start, &self.items).unwrap_or_default();
        (start.saturating_add(len), chain)
    }

    /// The person's other ids, by all records and by the history. Denials are copied to linked ids, so none
    /// may be forgotten.
    fn links(&self, sources: &Sources<'_>) -> Vec<Link> {
        let mut collected = Record::default();
        let recorded = sources.all().flat_map(|record| record.links.clone());
        let entries = self.items.iter().flatten().filter_map(decoded);
        let in_history = entries.filter_map(|entry| match entry.what {
            What::Link { other_user_id: user_id, moved } => {
                Some(Link { user_id, time: entry.time, moved })
            }
            _ => None,
        });
        for link in recorded.chain(in_history) {
            collected.link(link);
        }
        collected.links
    }

    /// The user and the business, as they were last recorded.
    pub(super) fn ids(&self) -> (String, String) {
        if let Some(body) = &self.logged {
            return (body.user_id.clone(), body.business_id.clone());
        }
        let last = self.items.iter().rev().flatten().find_map(decoded);
        last.map(|entry| (entry.user_id, entry.business_id)).unwrap_or_default()
    }
}

/// The decoded entry, unless it has expired or is damaged.
fn decoded(entry: &PortableEntry) -> Option<HistoryEntry> {
    entry.item.decode_without_statement()
}

/// The last erase that any of these records tells of.
fn last_erase<'a>(records: impl Iterator<Item = &'a Record>) -> Option<Box<Erased>> {
    let erased = records.filter_map(|record| record.erased.as_ref());
    erased.max_by_key(|erased| (erased.time, erased.history_len)).cloned()
}

/// The index and the chain at which a history begins after an erase.
fn history_start(erased: Option<&Erased>) -> (u64, ChainHead) {
    let erased = erased.map(|erased| Box::new(*erased));
    Record { erased, ..Record::default() }.history_start()
}

impl Shared {
    /// Reads all sources of a pair's record; `None` if there is none, or if the pair is intact by now.
    pub(super) async fn repair_inputs(
        &self,
        identity: &Identity,
        key: Key,
        found: &Finding,
    ) -> Result<Option<RepairInputs>, LedgerError> {
        let number = bucket_of(key, identity.buckets);
        let end = self.position().await?;
        let field = [key.to_bytes().to_vec()];
        let value = self.many(&self.keyspace.bucket(number), &field).await?.pop().flatten();
        let readable = |value: &Vec<u8>| {
            let (version, record) = split_value(value)?;
            Some((version, codec::decode_record(record)))
        };
        let read = value.as_ref().and_then(readable);
        if let Some((_, Err(crate::UnreadableRecord::Newer { .. }))) = read {
            return Ok(None);
        }
        let stored = read.and_then(|(version, record)| Some((version, record.ok()?)));
        let is_ahead = stored.as_ref().is_some_and(|(v, _)| v.revision > end.revision);
        let is_intact = stored.is_some() && !is_ahead;
        if is_intact && matches!(found.damage, Damage::Unreadable | Damage::Ahead(_) | Damage::Lost)
        {
            return Ok(None);
        }
        let logged = match found.logged {
            Some(revision) => self.log_body(revision).await?,
            None => None,
        };
        let misplaced = match found.damage {
            Damage::Misplaced(number) => {
                self.many(&self.keyspace.bucket(number), &field).await?.pop().flatten()
            }
            _ => None,
        };
        let misplaced_record = misplaced.as_ref().and_then(readable);
        let mut misplaced_record = misplaced_record.and_then(|(_, record)| record.ok());
        if stored.is_none() && misplaced_record.is_none() {
            let tombstone =
                self.many(&self.keyspace.history(number), &field).await?.pop().flatten();
            misplaced_record =
                tombstone.as_ref().and_then(readable).and_then(|(_, record)| record.ok());
        }
        let records = stored.iter().map(|(_, record)| record).chain(&misplaced_record);
        let logged_record = logged.as_ref().and_then(|body| body.record.as_ref().ok());
        let (start, _) = history_start(last_erase(records.chain(logged_record)).as_deref());
        let items = self.history_items(number, key, start).await?;
        if stored.is_none() && logged.is_none() && items.is_empty() && misplaced_record.is_none() {
            return Ok(None);
        }
        let last = items.last().and_then(|entry| Some(entry.as_ref()?.revision));
        let revision = found.logged.or(last).unwrap_or(1).min(end.revision).max(1);
        Ok(Some(RepairInputs {
            value,
            stored,
            logged,
            items,
            misplaced,
            misplaced_record,
            revision,
        }))
    }

    /// The body of the log entry at a revision, if the log still has it.
    async fn log_body(&self, revision: u64) -> Result<Option<LogBody>, RedisFailure> {
        let mut command = redis::cmd("XRANGE");
        command.arg(&self.keyspace.log).arg(revision).arg(revision);
        let mut entries = Answer::of(ask(&self.reads, &command).await?)?;
        if entries.is_over() {
            return Ok(None);
        }
        let mut entry = Answer::of(entries.next()?)?;
        let _id = entry.next()?;
        let mut fields = Answer::of(entry.next()?)?;
        let (_p, _place, _b) = (fields.next()?, fields.next()?, fields.next()?);
        Ok(codec::decode_log(&fields.bytes()?).ok())
    }

    /// A pair's history from index `start` up to the first gap.
    async fn history_items(
        &self,
        number: u32,
        key: Key,
        start: u64,
    ) -> Result<Vec<Option<PortableEntry>>, RedisFailure> {
        let hash = self.keyspace.history(number);
        let mut items = Vec::new();
        loop {
            let from = start.saturating_add(u64::try_from(items.len()).unwrap_or(u64::MAX));
            let fields: Vec<_> = (from..from.saturating_add(MAX_ITEMS))
                .map(|index| history_field(key, index))
                .collect();
            for value in self.many(&hash, &fields).await? {
                let Some(value) = value else { return Ok(items) };
                let item =
                    entry(&value).ok_or(RedisFailure::Rejected(RedisRejection::MalformedReply))?;
                items.push(Some(item));
            }
        }
    }
}
