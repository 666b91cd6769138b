//! Repairs what does not fit in a ledger in Redis, while recorders go on.
//!
//! Nothing is written over that was not read: records are changed by appends, which compare, and
//! followers are told of them; what cannot be appended to is first replaced by what it should be,
//! where it is still what was read.

use super::super::error::{RedisFailure, RedisRejection};
use super::super::keyspace::{SENTINEL_FIELD, history_field, split_value, version_bytes};
use super::super::roll_forward::roll_forward;
use super::super::scripts::{self, Answer, Script, ask};
use super::super::{Redis, Shared};
use super::portable::entry;
use crate::portable_pair::{Entry, chain_of};
use crate::verify::{Damage, Depth, Finding, Progress, Report};
use crate::{
    AppendReceipt, Appended, Change, Identity, LedgerError, LogBody, Update, Version, bucket_of,
    codec,
};
use consentd_core::claims::Claim;
use consentd_core::event::{MAX_AHEAD, What};
use consentd_core::id::Key;
use consentd_core::record::{ChainHead, Erased, Link, Record};
use consentd_core::state::State;

/// How often all is looked at: what is mended may bring to light what it hid.
const MAX_PASSES: u32 = 20;
/// How often a pair is tried that others write to.
const MAX_TRIES: u32 = 10;
/// How many items of a history are read at once.
const MAX_ITEMS: u64 = 512;

/// What is to be mended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RepairMode {
    /// Records that are not what the log last said.
    OutOfBand,
    /// All that can be.
    All,
    /// The same; and what was lost for good counts as never recorded.
    AcceptingLoss,
}

/// What was mended, and what is left.
#[derive(Clone, Debug, Default)]
pub struct Repaired {
    /// What was mended, and how; where nothing was to be changed, what would be.
    pub done: Vec<(Finding, &'static str)>,
    /// What was found in the end, when nothing more could be done.
    pub left: Report,
}

/// In which order things are mended: what the next rests on first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Turn {
    Frame,
    Pair,
    Log,
    /// What makes a rebuilt bucket one that is read and written again.
    Sentinel,
}

impl RepairMode {
    /// How much is looked at in the end. Histories cannot be mended: that they are damaged is for
    /// whoever wants all to be well.
    fn depth(self) -> Depth {
        match self {
            Self::OutOfBand => Depth::Records,
            Self::All | Self::AcceptingLoss => Depth::Histories,
        }
    }

    /// When and how something is mended; none where it is not.
    fn plan(self, finding: &Finding) -> Option<(Turn, &'static str)> {
        let planned = match &finding.damage {
            Damage::NotAsLogged => {
                (Turn::Pair, "joined with what the log says, and followers told")
            }
            Damage::Lost if finding.logged.is_some() => {
                (Turn::Pair, "put back from the log, and followers told")
            }
            _ if self == Self::OutOfBand => return None,
            Damage::Lost => (Turn::Pair, "put back from its history, and followers told"),
            Damage::CutShort(_) => (Turn::Frame, "completed from the log"),
            Damage::StrayEntries => {
                (Turn::Frame, "removed by rebuilding the log: nobody was told of them")
            }
            Damage::AppendsRefused => (Turn::Frame, "mended by rebuilding the log"),
            Damage::NoLog => {
                (Turn::Frame, "made anew, without entries: followers that lack any read all anew")
            }
            Damage::NoSentinel(hash) if hash.contains(":b:") && self == Self::AcceptingLoss => (
                Turn::Sentinel,
                "in use again as it is: what could not be rebuilt counts as never recorded",
            ),
            Damage::NoSentinel(hash) if hash.contains(":b:") => (
                Turn::Sentinel,
                "in use again, once every pair that its histories tell of is rebuilt",
            ),
            Damage::NoFence | Damage::NoSentinel(_) => (Turn::Frame, "put back"),
            Damage::Foreign(_) => (Turn::Frame, "removed"),
            Damage::Misplaced(_) => (Turn::Pair, "joined with the pair's own record"),
            Damage::Unreadable | Damage::Ahead(_) if finding.logged.is_some() => {
                (Turn::Pair, "rebuilt from the log, and followers told")
            }
            Damage::Unreadable | Damage::Ahead(_) => {
                (Turn::Pair, "rebuilt from its history, and followers told")
            }
            Damage::LogGap(_) | Damage::LogHead(_) | Damage::LogEntry(_) | Damage::LogEnd => (
                Turn::Log,
                "mended by cutting the log behind it; followers before it read all anew",
            ),
            Damage::Meta(_)
            | Damage::WrongKind(_)
            | Damage::Newer(_)
            | Damage::History
            | Damage::Statement => return None,
        };
        Some(planned)
    }
}

impl Redis {
    /// Mends what can be; where it is only `planned`, says what that would be. The driver must
    /// run.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be asked, or cannot write.
    pub async fn mend(
        &self,
        mending: RepairMode,
        planned: bool,
        tell: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Repaired, LedgerError> {
        let mut mended = Repaired::default();
        for _ in 0..MAX_PASSES {
            let report = self.verify(Depth::Records, tell).await?;
            let plans = report.findings.iter();
            let plans = plans.filter_map(|found| Some((found.clone(), mending.plan(found)?)));
            let mut plans: Vec<_> = plans.collect();
            plans.sort_by_key(|(_, (turn, _))| *turn);
            if planned {
                mended.done = plans.into_iter().map(|(found, (_, how))| (found, how)).collect();
                mended.left = report;
                return Ok(mended);
            }
            // Once something was mended, what comes in later turns is looked at anew.
            let mut last = None;
            for (found, (turn, how)) in plans {
                if last.is_some_and(|last| last != turn) {
                    break;
                }
                let is_ready = turn != Turn::Sentinel || self.is_rebuilt(mending, &found, &report);
                if is_ready && self.mend_one(mending, &found).await? {
                    last = Some(turn);
                    mended.done.push((found, how));
                }
            }
            if last.is_none() {
                break;
            }
        }
        mended.left = self.verify(mending.depth(), tell).await?;
        Ok(mended)
    }

    /// Mends one thing; tells whether it did.
    async fn mend_one(&self, mending: RepairMode, found: &Finding) -> Result<bool, LedgerError> {
        let shared = &*self.shared;
        let identity = shared.identity().await?;
        let keyspace = &shared.keyspace;
        let trim_to = |revision: u64| Some(revision.saturating_add(1));
        let cut = match &found.damage {
            Damage::CutShort(_) => {
                roll_forward(&shared.writes, &shared.keyspace, identity.epoch, true).await?;
                return Ok(true);
            }
            Damage::StrayEntries | Damage::AppendsRefused => {
                return shared.rebuild_log(&identity).await;
            }
            Damage::NoFence | Damage::NoLog => {
                let keys = [&keyspace.meta, &keyspace.fence, &keyspace.log];
                let revision = shared.end().await?.revision.to_string();
                let args = [&identity.epoch[..], revision.as_bytes(), SENTINEL_FIELD, b""];
                return shared.changes(&scripts::RECREATE_KEYS, &keys, &args).await;
            }
            Damage::NoSentinel(hash) => return shared.put_back(&identity, mending, hash).await,
            Damage::Foreign(hash) => return shared.drop_foreign(&identity, hash).await,
            Damage::LogGap(revision) | Damage::LogHead(revision) | Damage::LogEntry(revision) => {
                trim_to(*revision)
            }
            Damage::LogEnd => trim_to(shared.end().await?.revision),
            _ => None,
        };
        if let Some(revision) = cut {
            let (keys, revision) = ([&keyspace.meta, &keyspace.log], revision.to_string());
            let args = [&identity.epoch[..], revision.as_bytes()];
            return shared.changes(&scripts::TRIM_LOG, &keys, &args).await;
        }
        match found.key {
            Some(key) => self.rebuild(&identity, key, found).await,
            None => Ok(false),
        }
    }

    /// Makes a pair's record anew of all that is known of it, and tells followers.
    async fn rebuild(
        &self,
        identity: &Identity,
        key: Key,
        found: &Finding,
    ) -> Result<bool, LedgerError> {
        let shared = &*self.shared;
        for _ in 0..MAX_TRIES {
            let Some(known) = shared.known_of(identity, key, found).await? else {
                return Ok(false);
            };
            let record = known.record();
            let Some(base) = shared.replace_unreadable(identity, key, &known, &record).await?
            else {
                continue;
            };
            let (user_id, business_id) = known.ids();
            let record_time = self.read(Vec::new()).await?.clock;
            let history = Vec::new();
            let update = Update { user_id, business_id, record, history, record_time };
            let change = Change { key, base, update: Some(update) };
            let appended = self.append_as(true, vec![change]).await?;
            if matches!(appended[..], [AppendReceipt { outcome: Appended::Committed(_), .. }]) {
                if let (Damage::Misplaced(number), Some(value)) = (&found.damage, &known.misplaced)
                {
                    shared.swap(identity, *number, key, value, b"").await?;
                }
                return Ok(true);
            }
        }
        Err(LedgerError::Busy)
    }
}

/// All that is known of a pair.
struct RepairInputs {
    /// Its value as it lies in its bucket.
    value: Option<Vec<u8>>,
    /// The record in it, where it can be read.
    stored: Option<(Version, Record)>,
    /// What the log last said of it.
    word: Option<LogBody>,
    /// Its history, as far as it is there without a gap.
    items: Vec<Option<Entry>>,
    /// What lies in another bucket.
    misplaced: Option<Vec<u8>>,
    /// The record of that, or the tombstone beside its history.
    misplaced_record: Option<Record>,
    /// A revision at which it may have been written.
    revision: u64,
}

impl RepairInputs {
    fn logged(&self) -> Option<&Record> {
        self.word.as_ref()?.record.as_ref().ok()
    }

    /// The record of all of it; what was erased must not come back with a record from before.
    fn record(&self) -> Record {
        let stored = self.stored.as_ref().map(|(_, record)| record);
        let told: Vec<&Record> = [stored, self.logged()].into_iter().flatten().collect();
        let all = told.iter().copied().chain(&self.misplaced_record);
        let erased = last_erase(all.clone());
        let told: Vec<&Record> = told.iter().copied().filter(|r| r.erased == erased).collect();
        let mut state = State::default();
        for record in all.filter(|record| record.erased == erased) {
            state = state.join(record.state.clone());
        }
        let (start, chain_start) = start_of(erased.as_deref());
        if told.is_empty() {
            for entry in self.items.iter().flatten().filter_map(Entry::decode) {
                for effect in entry.what.effects(entry.time) {
                    // A scope too many was refused the first time, too.
                    let _ = state.apply(&effect);
                }
                // Clock skew: of an allow that counts as of its recording the real time is unknown.
                if entry.what.is_clamped() && entry.time == entry.record_time {
                    state.clamped.insert(entry.time);
                    state.claims.add(Claim::up_to(entry.time, MAX_AHEAD));
                }
            }
            state.forget_clamped();
        }
        let fits = |record: &&&Record| {
            let items = record.history_len.checked_sub(start).and_then(|len| len.try_into().ok());
            let items = items.and_then(|len: usize| self.items.get(..len));
            items.is_some_and(|items| chain_of(chain_start, items) == Some(record.chain))
        };
        let whole = told.iter().filter(fits).max_by_key(|record| record.history_len);
        let (history_len, chain) = if let Some(record) = whole {
            (record.history_len, record.chain)
        } else {
            let len = u64::try_from(self.items.len()).unwrap_or(0);
            let chain = chain_of(chain_start, &self.items);
            (start.saturating_add(len), chain.unwrap_or_default())
        };
        let requests = told.first().map(|record| record.requests.clone()).unwrap_or_default();
        let links = self.links(&told, erased.as_deref());
        Record { state, history_len, chain, requests, links, erased }
    }

    /// The person's other ids, by every record and by the history: one that were forgotten would
    /// not hear of later denials.
    fn links(&self, told: &[&Record], erased: Option<&Erased>) -> Vec<Link> {
        let mut known = Record::default();
        let misplaced_record =
            self.misplaced_record.iter().filter(|record| record.erased.as_deref() == erased);
        let records = told.iter().copied().chain(misplaced_record);
        let kept = records.flat_map(|record| record.links.clone());
        let said = self.items.iter().flatten().filter_map(Entry::decode);
        let said = said.filter_map(|entry| match entry.what {
            What::Link { other_user_id: user_id, moved } => {
                Some(Link { user_id, time: entry.time, moved })
            }
            _ => None,
        });
        for link in kept.chain(said) {
            known.link(link);
        }
        known.links
    }

    /// The user and the business, as they were last written.
    fn ids(&self) -> (String, String) {
        if let Some(word) = &self.word {
            return (word.user_id.clone(), word.business_id.clone());
        }
        let last = self.items.iter().rev().flatten().find_map(Entry::decode);
        last.map(|entry| (entry.user_id, entry.business_id)).unwrap_or_default()
    }
}

/// The last erase that any of these records tells of.
fn last_erase<'a>(records: impl Iterator<Item = &'a Record>) -> Option<Box<Erased>> {
    let erased = records.filter_map(|record| record.erased.as_ref());
    erased.max_by_key(|erased| (erased.time, erased.history_len)).cloned()
}

/// Where a history begins that was erased so.
fn start_of(erased: Option<&Erased>) -> (u64, ChainHead) {
    let erased = erased.map(|erased| Box::new(*erased));
    Record { erased, ..Record::default() }.history_start()
}

impl Shared {
    /// All that is known of a pair; none where that is nothing, or nothing is wrong any more.
    async fn known_of(
        &self,
        identity: &Identity,
        key: Key,
        found: &Finding,
    ) -> Result<Option<RepairInputs>, LedgerError> {
        let number = bucket_of(key, identity.buckets);
        let end = self.end().await?;
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
        let is_well = stored.is_some() && !is_ahead;
        if is_well && matches!(found.damage, Damage::Unreadable | Damage::Ahead(_) | Damage::Lost) {
            return Ok(None);
        }
        let word = match found.logged {
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
            let beside = self.many(&self.keyspace.history(number), &field).await?.pop().flatten();
            misplaced_record =
                beside.as_ref().and_then(readable).and_then(|(_, record)| record.ok());
        }
        let records = stored.iter().map(|(_, record)| record).chain(&misplaced_record);
        let logged = word.as_ref().and_then(|word| word.record.as_ref().ok());
        let (start, _) = start_of(last_erase(records.chain(logged)).as_deref());
        let items = self.items_of(number, key, start).await?;
        if stored.is_none() && word.is_none() && items.is_empty() && misplaced_record.is_none() {
            return Ok(None);
        }
        let last = items.last().and_then(|entry| Some(entry.as_ref()?.revision));
        let revision = found.logged.or(last).unwrap_or(1).min(end.revision).max(1);
        Ok(Some(RepairInputs { value, stored, word, items, misplaced, misplaced_record, revision }))
    }

    /// Sees to it that a pair's value can be compared by an append: gives its version, or none
    /// where it has changed meanwhile.
    async fn replace_unreadable(
        &self,
        identity: &Identity,
        key: Key,
        known: &RepairInputs,
        record: &Record,
    ) -> Result<Option<Version>, LedgerError> {
        let end = self.end().await?.revision;
        match (&known.value, &known.stored) {
            (None, _) => Ok(Some(Version::default())),
            (Some(_), Some((version, _))) if version.revision <= end => Ok(Some(*version)),
            (Some(value), _) => {
                let version = Version { revision: known.revision, head_prefix: 0 };
                let record = codec::encode_record(record);
                let new = [&version_bytes(version)[..], &record].concat();
                let number = bucket_of(key, identity.buckets);
                let swapped = self.swap(identity, number, key, value, &new).await?;
                Ok(swapped.then_some(version))
            }
        }
    }

    async fn swap(
        &self,
        identity: &Identity,
        number: u32,
        key: Key,
        old: &[u8],
        new: &[u8],
    ) -> Result<bool, LedgerError> {
        let keys = [&self.keyspace.meta, &self.keyspace.bucket(number)];
        let args = [&identity.epoch[..], &key.to_bytes(), old, new];
        self.changes(&scripts::REPLACE_FIELD, &keys, &args).await
    }

    /// Runs a script that tells how much it changed.
    pub(super) async fn changes(
        &self,
        script: &Script,
        keys: &[&String],
        args: &[&[u8]],
    ) -> Result<bool, LedgerError> {
        let answer = script.run(&self.writes, keys, args).await?;
        Ok(Answer::of(redis::Value::Array(vec![answer]))?.number()? > 0)
    }

    /// Removes what no pair has from a bucket.
    async fn drop_foreign(&self, identity: &Identity, hash: &String) -> Result<bool, LedgerError> {
        let mut command = redis::cmd("HGETALL");
        let mut all = Answer::of(ask(&self.reads, command.arg(hash)).await?)?;
        let mut any = false;
        while !all.is_over() {
            let (field, value) = (all.bytes()?, all.bytes()?);
            if field != SENTINEL_FIELD && field.len() != 16 {
                let args = [&identity.epoch[..], &field, &value, b""];
                any |= self
                    .changes(&scripts::REPLACE_FIELD, &[&self.keyspace.meta, hash], &args)
                    .await?;
            }
        }
        Ok(any)
    }

    /// What the log says at a revision, where it still has that.
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

    /// A pair's history from the item at a place to the last before a gap.
    async fn items_of(
        &self,
        number: u32,
        key: Key,
        start: u64,
    ) -> Result<Vec<Option<Entry>>, RedisFailure> {
        let hash = self.keyspace.history(number);
        let mut items = Vec::new();
        loop {
            let from = start.saturating_add(u64::try_from(items.len()).unwrap_or(u64::MAX));
            let fields: Vec<_> = (from..from.saturating_add(MAX_ITEMS))
                .map(|place| history_field(key, place))
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
