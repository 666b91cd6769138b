//! The tables of a ledger's partitions, read as one: each pair is looked up in the table of its partition.
//!
//! A ledger in one partition has one table, and a look-up costs a load and a compare more than that table's own.
//! Until it is known how the ledger is divided there is one table, too, which is not loaded: nothing is answered.
//!
//! What a check reads may be in several partitions: a user's pair, the pair of a former notation, and those of the
//! template and the account. Each is looked up in its own table, and the answer is as current as the least current
//! of them: see [`Freshness::joined`]. Its revision is that of the user's own partition.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};

use super::{Freshness, KeyDeriver, NoPair, Pair, PairSummary, Table, UnreadablePair, Validity};
use consentd_core::businesses::Businesses;
use consentd_core::id::{BusinessId, BusinessTag, Key, KeySecret, Spread};
use consentd_core::partition::Layout;
use consentd_core::record::Revision;
use consentd_core::scope::{Category, Class};
use consentd_core::standing::Facts;
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

/// How current a table is that is not there: nothing was ever loaded.
const ABSENT: Freshness = Freshness {
    validity: Validity::Loading,
    proven: Moment { boot: Duration::ZERO, wall: Timestamp::MIN },
    ledger_offsets: [0; 2],
    revision: 0,
};

/// The tables of all partitions; clones share them.
#[derive(Clone)]
pub struct Tables {
    /// The table of the first partition, which has all pairs unless the ledger is divided.
    first: Table,
    divided: Arc<OnceLock<Divided>>,
}

/// The tables of a ledger in several partitions.
pub(super) struct Divided {
    layout: Layout,
    /// The table of each partition that is followed.
    tables: Box<[ArcSwapOption<Table>]>,
    /// The businesses that questions are answered about: all of their partitions were loaded.
    held: ArcSwap<Businesses>,
    /// The partitions that were followed at the start, and were never loaded so far.
    awaited: Mutex<BTreeSet<u32>>,
    /// Whether there are none of them any more.
    is_ready: AtomicBool,
}

/// How current the look-ups of a batch were.
pub enum BatchFreshness {
    /// All of them in one table.
    Whole(Freshness),
    /// Each in that of its partition, by the places of the pairs.
    Each(Vec<Freshness>),
}

impl BatchFreshness {
    /// Adds that the answer at this place rests on another look-up, too.
    pub fn join(&mut self, place: usize, other: Freshness) {
        match self {
            Self::Whole(freshness) => *freshness = freshness.joined(other),
            Self::Each(each) => {
                if let Some(freshness) = each.get_mut(place) {
                    *freshness = freshness.joined(other);
                }
            }
        }
    }

    /// Adds that the answer at this place rests on an earlier look-up, too: see [`Tables::resting_on`].
    pub fn rest_on(&mut self, place: usize, earlier: Freshness) {
        match self {
            Self::Whole(freshness) => *freshness = freshness.as_of_earlier(earlier),
            Self::Each(_) => self.join(place, earlier),
        }
    }
}

impl From<Table> for Tables {
    fn from(first: Table) -> Self {
        Self { first, divided: Arc::default() }
    }
}

impl Tables {
    /// Sets how the ledger is divided, before any table is valid: which businesses are held, and the partitions
    /// that are followed from the start. Their tables are [inserted](Self::insert) next. It is set once.
    pub fn divide(&self, layout: Layout, held: Businesses, initial: &[u32]) {
        if layout.partitions() > 1 {
            let tables = layout.all().map(|_| ArcSwapOption::empty()).collect();
            let (held, is_ready) = (ArcSwap::from_pointee(held), AtomicBool::new(false));
            let awaited = Mutex::new(initial.iter().copied().collect());
            let divided = Divided { layout, tables, held, awaited, is_ready };
            // A second layout would be another ledger's, whose pages are refused.
            let _ = self.divided.set(divided);
        }
    }

    /// The number of partitions, as far as it is known.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.divided.get().map_or(1, |divided| divided.layout.partitions())
    }

    /// Whether there are several partitions.
    #[inline]
    #[must_use]
    pub fn is_divided(&self) -> bool {
        self.divided.get().is_some()
    }

    /// Answers questions about a partition's pairs from this table.
    pub fn insert(&self, partition: u32, table: Table) {
        if let Some(slot) = self.divided.get().and_then(|divided| divided.slot(partition)) {
            slot.store(Some(Arc::new(table)));
        }
    }

    /// Takes the table of a partition away, whose pairs are then not known. It is freed with its writer.
    pub fn remove(&self, partition: u32) {
        let Some(divided) = self.divided.get() else { return };
        // A partition whose last business was removed is not waited for.
        divided.awaited().remove(&partition);
        if let Some(slot) = divided.slot(partition) {
            slot.store(None);
        }
    }

    /// Sets which businesses questions are answered about. Those that are added must be held by all of their
    /// tables already; those that are left out must not be dropped there before.
    pub fn hold(&self, businesses: Businesses) {
        if let Some(divided) = self.divided.get() {
            divided.held.store(Arc::new(businesses));
        }
    }

    /// The tables that there are, each with the number of its partition, in order.
    #[must_use]
    pub fn all(&self) -> Vec<(u32, Table)> {
        match self.divided.get() {
            None => vec![(0, self.first.clone())],
            Some(divided) => divided
                .layout
                .all()
                .zip(&divided.tables)
                .filter_map(|(number, slot)| Some((number, Table::clone(slot.load().as_deref()?))))
                .collect(),
        }
    }

    /// The table of a partition.
    #[must_use]
    pub fn table(&self, partition: u32) -> Option<Table> {
        match self.divided.get() {
            None => (partition == 0).then(|| self.first.clone()),
            Some(divided) => divided.at(partition, Table::clone),
        }
    }

    /// The number of the partition that a pair is in.
    #[must_use]
    pub fn partition_of(&self, pair: Pair) -> u32 {
        self.divided.get().map_or(0, |divided| divided.layout.partition_of(pair.key))
    }

    /// Whether every partition that was followed at the start was loaded once. It stays true.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let is_loaded = |table: &Table| table.freshness().validity != Validity::Loading;
        let Some(divided) = self.divided.get() else { return is_loaded(&self.first) };
        if divided.is_ready.load(Ordering::Acquire) {
            return true;
        }
        let mut awaited = divided.awaited();
        awaited.retain(|number| !divided.at(*number, is_loaded).unwrap_or(false));
        let is_ready = awaited.is_empty();
        divided.is_ready.fetch_or(is_ready, Ordering::AcqRel);
        is_ready
    }

    /// Whether this is so of every table that there is.
    pub fn every(&self, mut is_so: impl FnMut(&Table) -> bool) -> bool {
        match self.divided.get() {
            None => is_so(&self.first),
            Some(divided) => divided.tables.iter().all(|slot| {
                let table = slot.load();
                table.as_deref().is_none_or(&mut is_so)
            }),
        }
    }

    /// Whether this is so of the table of every partition that a business's pairs are in.
    pub fn every_of(
        &self,
        business: BusinessId<'_>,
        mut is_so: impl FnMut(&Table) -> bool,
    ) -> bool {
        match self.divided.get() {
            None => is_so(&self.first),
            Some(divided) => {
                let mut partitions = divided.layout.partitions_of(business.tag());
                partitions.all(|number| divided.at(number, &mut is_so).unwrap_or(false))
            }
        }
    }

    /// How current an answer is that rests on an earlier look-up, perhaps in another partition, and on a later one of
    /// the user. In one table the answer is as of the earlier; in several, its revision is that of the user's own.
    #[must_use]
    pub fn resting_on(&self, earlier: Freshness, later: Freshness) -> Freshness {
        if self.is_divided() { later.joined(earlier) } else { later.as_of_earlier(earlier) }
    }

    /// The last applied revision of each partition; 0 of those that are not followed.
    #[must_use]
    pub fn revisions(&self) -> Vec<Revision> {
        let revision = |table: &Table| table.freshness().revision;
        match self.divided.get() {
            None => vec![revision(&self.first)],
            Some(divided) => {
                let all = divided.layout.all();
                all.map(|number| divided.at(number, revision).unwrap_or(0)).collect()
            }
        }
    }

    /// The current key deriver: see [`Table::key_deriver`].
    #[inline]
    #[must_use]
    pub fn key_deriver(&self) -> KeyDeriver<'_> {
        match self.divided.get() {
            None => self.first.key_deriver(),
            Some(divided) => KeyDeriver::divided(divided),
        }
    }

    /// The pair of a user and a business.
    ///
    /// # Errors
    ///
    /// [`NoPair`] if either id is invalid, or the business is not held.
    pub fn pair(&self, user_id: &str, business_id: &str) -> Result<Pair, NoPair> {
        self.key_deriver().parse(user_id, business_id).map(|(pair, _)| pair)
    }

    /// The businesses that questions are answered about.
    #[must_use]
    pub fn businesses(&self) -> Arc<Businesses> {
        match self.divided.get() {
            None => self.first.businesses(),
            Some(divided) => divided.held.load_full(),
        }
    }

    /// How current the table of a pair's partition is.
    #[inline]
    #[must_use]
    pub fn freshness(&self, pair: Pair) -> Freshness {
        self.read(pair, Table::freshness).unwrap_or(ABSENT)
    }

    /// The facts that a decision about `category` needs, and how current they are: see [`Table::facts`].
    #[inline]
    pub fn facts(
        &self,
        pair: Pair,
        category: Category<'_>,
    ) -> (Result<Facts, UnreadablePair>, Freshness) {
        self.look_up(pair, |table| table.facts(pair, category))
    }

    /// The facts of a person from two pairs, which may be in two partitions: the id's own, and the one under whose key
    /// versions before recorded it. The revision is that of the id's own partition.
    ///
    /// The caller must read the clock after this call. It allocates nothing.
    pub fn facts_joined(
        &self,
        pair: Pair,
        former: Pair,
        category: Category<'_>,
    ) -> (Result<Facts, UnreadablePair>, Freshness) {
        joined(self.facts(pair, category), self.facts(former, category), Facts::joined)
    }

    /// The facts of many pairs, each for the category at its place, and how current they are: see
    /// [`Table::facts_batch`].
    pub fn facts_batch(
        &self,
        pairs: &[Pair],
        categories: &[Category<'_>],
        into: &mut Vec<Result<Facts, UnreadablePair>>,
    ) -> BatchFreshness {
        match self.divided.get() {
            None => BatchFreshness::Whole(self.first.facts_batch(pairs, categories, into)),
            Some(divided) => BatchFreshness::Each(divided.facts_batch(pairs, categories, into)),
        }
    }

    /// All that the tables hold of a person at `now`, from the pair and the former one as in
    /// [`facts_joined`](Self::facts_joined).
    pub fn summary(
        &self,
        pair: Pair,
        former: Option<Pair>,
        now: Timestamp,
    ) -> (Result<PairSummary, UnreadablePair>, Freshness) {
        let summary = |pair| self.look_up(pair, |table| table.summary(pair, now));
        match former {
            None => summary(pair),
            Some(former) => joined(summary(pair), summary(former), PairSummary::joined),
        }
    }

    /// The least strict class that a template may be sent as: see [`Table::least_class`].
    pub fn least_class(&self, template: Pair) -> (Result<Class, UnreadablePair>, Freshness) {
        self.look_up(template, |table| table.least_class(template))
    }

    /// Until when the utility templates of an account count as marketing: see [`Table::restricted_until`].
    pub fn restricted_until(
        &self,
        account: Pair,
    ) -> (Result<Option<Timestamp>, UnreadablePair>, Freshness) {
        self.look_up(account, |table| table.restricted_until(account))
    }

    #[inline]
    fn read<T>(&self, pair: Pair, read: impl FnOnce(&Table) -> T) -> Option<T> {
        match self.divided.get() {
            None => Some(read(&self.first)),
            Some(divided) => divided.at(divided.layout.partition_of(pair.key), read),
        }
    }

    /// Looks a pair up in its table. Nothing follows from a table that is not there.
    #[inline]
    fn look_up<T>(
        &self,
        pair: Pair,
        read: impl FnOnce(&Table) -> (Result<T, UnreadablePair>, Freshness),
    ) -> (Result<T, UnreadablePair>, Freshness) {
        self.read(pair, read).unwrap_or((Err(UnreadablePair), ABSENT))
    }
}

/// What is known of a person from two look-ups.
fn joined<T>(
    (own, freshness): (Result<T, UnreadablePair>, Freshness),
    (former, other): (Result<T, UnreadablePair>, Freshness),
    join: impl FnOnce(T, T) -> T,
) -> (Result<T, UnreadablePair>, Freshness) {
    let joined = own.and_then(|own| former.map(|former| join(own, former)));
    (joined, freshness.joined(other))
}

impl Divided {
    fn slot(&self, partition: u32) -> Option<&ArcSwapOption<Table>> {
        self.tables.get(usize::try_from(partition).ok()?)
    }

    fn awaited(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at<T>(&self, partition: u32, read: impl FnOnce(&Table) -> T) -> Option<T> {
        let table = self.slot(partition)?.load();
        table.as_deref().map(read)
    }

    pub(super) fn held(&self) -> Guard<Arc<Businesses>> {
        self.held.load()
    }

    /// The pair whose key this makes, with the secrets of its partition's table.
    pub(super) fn pair(
        &self,
        business: BusinessTag,
        spread: Spread,
        key: impl Fn(&KeySecret) -> Key,
    ) -> Pair {
        let partition = self.layout.partition_at(business, spread);
        let pair = self.at(partition, |table| table.pair_of(&key));
        // Without a table there is nothing to find, but the key says in which partition.
        pair.unwrap_or_else(|| Pair::from(key(&KeySecret::new(&[0; 16]))))
    }

    /// Looks the pairs up partition by partition, so that those of one are prefetched together.
    fn facts_batch(
        &self,
        pairs: &[Pair],
        categories: &[Category<'_>],
        into: &mut Vec<Result<Facts, UnreadablePair>>,
    ) -> Vec<Freshness> {
        let partition = |(place, pair): (usize, &Pair)| (self.layout.partition_of(pair.key), place);
        let mut order: Vec<_> = pairs.iter().enumerate().map(partition).collect();
        order.sort_unstable();
        into.clear();
        into.resize(pairs.len(), Err(UnreadablePair));
        let mut freshness = vec![ABSENT; pairs.len()];
        let (mut of_one, mut about, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for group in order.chunk_by(|(one, _), (next, _)| one == next) {
            let places = || group.iter().map(|(_, place)| *place);
            of_one.clear();
            of_one.extend(places().filter_map(|place| pairs.get(place)));
            about.clear();
            about.extend(places().filter_map(|place| categories.get(place)));
            let Some((partition, _)) = group.first() else { continue };
            let read = |table: &Table| table.facts_batch(&of_one, &about, &mut found);
            let Some(current) = self.at(*partition, read) else { continue };
            for (place, facts) in places().zip(&found) {
                if let (Some(slot), Some(freshness)) =
                    (into.get_mut(place), freshness.get_mut(place))
                {
                    (*slot, *freshness) = (*facts, current);
                }
            }
        }
        freshness
    }
}
