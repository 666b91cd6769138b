//! Re-keying a ledger while it is copied: pairs get the keys of today's reading of user ids, and pairs that are
//! one person by that reading become one.
//!
//! A pair's names are in its history, and in the log's entries while the copy runs. A pair without names, such as
//! one of somebody who was erased, keeps the reading of its key, and so does a pair whose id is refused today:
//! checks that look at the former key of a notation still find them there. So does a pair that was recorded
//! under notations which are several people today: which of them an event was about is not known, and what is
//! denied there is denied to all of them, by their former keys.
//!
//! Every key then gets the tag of the business and the spread of the user that its history names, in place of
//! its lower bits; a pair without names gets the [tag of none](super::nameless). All keys in here are those before that.

use std::collections::{HashMap, HashSet};

use super::history::HistoryItem;
use super::portable_pair::{PortableEntry, PortablePair};
use super::{UnreadableRecord, codec};
use consentd_core::event::What;
use consentd_core::id::{BusinessTag, Key, KeySecret, Spread};
use consentd_core::record::{ChainHead, HistoryEntry, Record, extend_chain};
use consentd_core::time::Timestamp;
use consentd_core::unified::{Unified, unify};

/// What became of a ledger's keys.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RekeyReport {
    /// The number of pairs that have the key of another reading than before.
    pub moved: u64,
    /// The number of pairs that became a part of another one.
    pub unified: u64,
    /// The number of pairs whose names are gone, so that their keys name no business: those of erased people,
    /// and those of which only expired events are left.
    pub nameless: u64,
    /// The number of pairs whose user id is refused today, which keep the reading of their key.
    pub refused: u64,
    /// The number of pairs whose notations are several people today, which keep the reading of their key.
    pub several: u64,
}

/// The keys that change.
pub(super) struct Rekeying {
    secret: KeySecret,
    /// The secret with which the copy's keys are derived: the same, for the keys of today.
    target: KeySecret,
    /// When it began, by the ledger's clock.
    clock: Timestamp,
    /// Former keys to the keys of today, of the pairs that move.
    moved: HashMap<Key, Key>,
    /// Keys of today to the former keys of the pairs that move there.
    former: HashMap<Key, Vec<Key>>,
    /// Keys of today to the number of pairs that became a part of another one there.
    unified: HashMap<Key, u64>,
    /// Pairs whose notations are several people today.
    several: HashSet<Key>,
    nameless: u64,
    refused: u64,
    /// Whether a pair was written whose key names no business. It may have had names when they were counted.
    has_nameless: bool,
}

impl Rekeying {
    /// The re-keying of a ledger with this secret, whose copy has the keys of `target`.
    pub(super) fn new(secret: KeySecret, target: KeySecret, clock: Timestamp) -> Self {
        Self {
            secret,
            target,
            clock,
            moved: HashMap::new(),
            former: HashMap::new(),
            unified: HashMap::new(),
            several: HashSet::new(),
            nameless: 0,
            refused: 0,
            has_nameless: false,
        }
    }

    /// Notes a pair of the source, by all names that its history has.
    pub(super) fn survey(&mut self, pair: &PortablePair) {
        let key = pair.key();
        let mut is_named = false;
        let mut today = Vec::new();
        for entry in pair.history.iter().flatten() {
            let Some(entry) = entry.item.decode_without_statement() else { continue };
            is_named = true;
            today.extend(self.secret.key_today(&entry.user_id, &entry.business_id));
        }
        today.sort_unstable();
        today.dedup();
        match today[..] {
            [] if is_named => self.refused += 1,
            [] => self.nameless += 1,
            [today] => self.move_to(key, today),
            _ => {
                self.several.insert(key);
                if let Some(noted) = self.moved.remove(&key) {
                    self.former.entry(noted).or_default().retain(|former| *former != key);
                }
            }
        }
    }

    /// Notes the names of a pair of which an event was recorded while the copy runs, the first one if `is_new`.
    /// Returns false if they have another key today than the pair has in the copy, which may be written already.
    pub(super) fn note(
        &mut self,
        key: Key,
        user_id: &str,
        business_id: &str,
        is_new: bool,
    ) -> bool {
        match self.secret.key_today(user_id, business_id) {
            Some(today) if is_new => {
                self.move_to(key, today);
                true
            }
            Some(today) => self.several.contains(&key) || self.key_today(key) == today,
            None => true,
        }
    }

    fn move_to(&mut self, key: Key, today: Key) {
        if today != key && !self.several.contains(&key) && !self.moved.contains_key(&key) {
            self.moved.insert(key, today);
            self.former.entry(today).or_default().push(key);
        }
    }

    /// The key in the copy of a pair with this key in the source.
    pub(super) fn key_today(&self, key: Key) -> Key {
        self.moved.get(&key).copied().unwrap_or(key)
    }

    /// The key of a pair in the copy with the tag of its business and the spread of its user, as far as
    /// its history names them.
    pub(super) fn placed(&mut self, key: Key, pair: &PortablePair) -> Key {
        let entries = pair.history.iter().flatten();
        let mut named = entries.filter_map(|entry| entry.item.decode_without_statement());
        let placed = named.find_map(|entry| {
            let (user, business) = (&entry.user_id, &entry.business_id);
            let today = self.target.read(user, business).ok();
            let former = self.target.read_formerly(user, business);
            // The pair's key is by the one or the other reading of this name, or of another of its names.
            today.into_iter().chain(former).find(|named| named.bits() == key.bits())
        });
        self.has_nameless |= placed.is_none();
        placed.unwrap_or_else(|| nameless(key))
    }

    /// Whether the copy has pairs whose keys name no business.
    pub(super) fn has_nameless(&self) -> bool {
        self.has_nameless
    }

    /// The keys of the source's pairs that have this key in the copy, if there may be several.
    pub(super) fn sources(&self, today: Key) -> Option<Vec<Key>> {
        let mut sources = self.former.get(&today)?.clone();
        if !self.moved.contains_key(&today) {
            sources.push(today);
        }
        (sources.len() > 1).then_some(sources)
    }

    /// Makes one pair with this key of these, which are one person.
    pub(super) fn unify(
        &mut self,
        key: Key,
        mut parts: Vec<PortablePair>,
    ) -> Result<Option<PortablePair>, UnreadableRecord> {
        // Of the same event times, the one that was written first comes first, in every run.
        parts.sort_by_key(|part| (part.revision, part.key));
        let others = u64::try_from(parts.len().saturating_sub(1)).unwrap_or(u64::MAX);
        self.unified.insert(key, others);
        let Some(last) = parts.last() else { return Ok(None) };
        let (revision, head_prefix) = (last.revision, last.head_prefix);
        let mut records = Vec::with_capacity(parts.len());
        let mut is_intact = true;
        for part in &parts {
            let mut record = part.decode()?;
            is_intact &= part.is_intact(&record);
            record.written_at(part.revision);
            records.push(record);
        }
        let mut history: Vec<_> =
            parts.into_iter().flat_map(|part| part.history).flatten().collect();
        // Of one pair, revisions only grow: its entries stay in their order.
        history.sort_by_key(|entry| entry.revision);
        let named = history.iter().rev().find_map(|entry| entry.item.decode_without_statement());
        let (user_id, business_id) =
            named.map(|entry| (entry.user_id, entry.business_id)).unwrap_or_default();
        let Unified { mut record, denials } = unify(&records, self.clock);
        record.links.retain(|link| self.secret.key_today(&link.user_id, &business_id) != Some(key));
        for (time, what) in denials {
            let (user_id, business_id) = (user_id.clone(), business_id.clone());
            let item = self.item(user_id, business_id, time, what);
            history.push(PortableEntry { revision, item });
        }
        if is_intact {
            extend(&mut record, &history);
        } else {
            // What is damaged in the source is found damaged in the copy.
            record.chain = ChainHead::default();
        }
        let history = history.into_iter().map(Some).collect();
        let record = codec::encode_record(&record);
        let mut unified =
            PortablePair { key: key.to_bytes(), revision, head_prefix, record, history };
        unified.key = self.placed(key, &unified).to_bytes();
        Ok(Some(unified))
    }

    fn item(
        &self,
        user_id: String,
        business_id: String,
        time: Timestamp,
        what: What,
    ) -> HistoryItem<'static> {
        let record_time = self.clock;
        let entry = HistoryEntry { user_id, business_id, time, record_time, what };
        HistoryItem::Permanent(codec::encode_history(&entry).into())
    }

    pub(super) fn report(&self) -> RekeyReport {
        RekeyReport {
            moved: self.moved.len().try_into().unwrap_or(u64::MAX),
            unified: self.unified.values().sum(),
            nameless: self.nameless,
            refused: self.refused,
            several: self.several.len().try_into().unwrap_or(u64::MAX),
        }
    }
}

/// The key in the copy of a pair whose names are gone.
fn nameless(key: Key) -> Key {
    key.with_tag(BusinessTag::NAMELESS).with_spread(Spread::FIRST)
}

fn extend(record: &mut Record, history: &[PortableEntry]) {
    for entry in history {
        record.chain = extend_chain(&record.chain, &entry.item.digest());
        record.history_len = record.history_len.saturating_add(1);
    }
}
