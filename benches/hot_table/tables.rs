//! Both hot tables behind one interface: that of `consentd::table`, as far as checks and the
//! application of changes go.

use std::time::Duration;

use consentd::table::{self, Pair, Table, UnreadablePair, Validity, Writer};
use consentd_core::id::{Key, KeySecret};
use consentd_core::scope::Category;
use consentd_core::standing::Facts;
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

use crate::dashmap_table;

/// How current a table was at a look-up.
pub(crate) trait ProofOfFreshness {
    fn validity(&self) -> Validity;
    fn staleness(&self, now: Moment) -> Duration;
    fn ledger_clock(&self, now: Moment) -> Timestamp;
}

/// The read side of a hot table.
pub(crate) trait HotTable: Send + Sync + Sized {
    const NAME: &'static str;
    type Writer: HotWriter;
    type Freshness: ProofOfFreshness;

    /// An empty table for pairs whose keys this secret makes.
    fn create(secret: &KeySecret) -> (Self, Self::Writer);

    fn facts(
        &self,
        pair: Pair,
        category: Category<'_>,
    ) -> (Result<Facts, UnreadablePair>, Self::Freshness);

    fn facts_batch(
        &self,
        pairs: &[Pair],
        categories: &[Category<'_>],
        into: &mut Vec<Result<Facts, UnreadablePair>>,
    ) -> Self::Freshness;

    fn pairs(&self) -> usize;
}

/// The write side of a hot table.
pub(crate) trait HotWriter: Send {
    fn apply(&mut self, key: Key, state: Result<&State, UnreadablePair>);
    /// Takes out one pair.
    #[allow(dead_code, reason = "only the property test of both tables calls it")]
    fn remove(&mut self, key: Key);
    /// Makes the table valid and proven now.
    fn prove(&mut self, now: Moment);
}

impl ProofOfFreshness for table::Freshness {
    fn validity(&self) -> Validity {
        self.validity
    }

    fn staleness(&self, now: Moment) -> Duration {
        self.staleness(now)
    }

    fn ledger_clock(&self, now: Moment) -> Timestamp {
        self.ledger_clock(now)
    }
}

impl HotTable for Table {
    const NAME: &'static str = "own";
    type Writer = Writer;
    type Freshness = table::Freshness;

    fn create(secret: &KeySecret) -> (Self, Writer) {
        let (table, mut writer) = table::new();
        writer.reset(secret);
        (table, writer)
    }

    fn facts(
        &self,
        pair: Pair,
        category: Category<'_>,
    ) -> (Result<Facts, UnreadablePair>, Self::Freshness) {
        self.facts(pair, category)
    }

    fn facts_batch(
        &self,
        pairs: &[Pair],
        categories: &[Category<'_>],
        into: &mut Vec<Result<Facts, UnreadablePair>>,
    ) -> Self::Freshness {
        self.facts_batch(pairs, categories, into)
    }

    fn pairs(&self) -> usize {
        self.pairs()
    }
}

impl HotWriter for Writer {
    fn apply(&mut self, key: Key, state: Result<&State, UnreadablePair>) {
        self.apply(key, state);
    }

    fn remove(&mut self, key: Key) {
        self.remove_where(|held| held == key);
    }

    fn prove(&mut self, now: Moment) {
        self.validate();
        self.set_proof(now, now.wall);
    }
}

impl ProofOfFreshness for dashmap_table::Freshness {
    fn validity(&self) -> Validity {
        self.validity
    }

    fn staleness(&self, now: Moment) -> Duration {
        self.staleness(now)
    }

    fn ledger_clock(&self, now: Moment) -> Timestamp {
        self.ledger_clock(now)
    }
}

impl HotTable for dashmap_table::Table {
    const NAME: &'static str = "dashmap";
    type Writer = dashmap_table::Writer;
    type Freshness = dashmap_table::Freshness;

    fn create(_: &KeySecret) -> (Self, dashmap_table::Writer) {
        let (table, mut writer) = dashmap_table::new();
        writer.reset();
        (table, writer)
    }

    fn facts(
        &self,
        pair: Pair,
        category: Category<'_>,
    ) -> (Result<Facts, UnreadablePair>, Self::Freshness) {
        self.facts(pair, category)
    }

    fn facts_batch(
        &self,
        pairs: &[Pair],
        categories: &[Category<'_>],
        into: &mut Vec<Result<Facts, UnreadablePair>>,
    ) -> Self::Freshness {
        self.facts_batch(pairs, categories, into)
    }

    fn pairs(&self) -> usize {
        self.pairs()
    }
}

impl HotWriter for dashmap_table::Writer {
    fn apply(&mut self, key: Key, state: Result<&State, UnreadablePair>) {
        self.apply(key, state);
    }

    fn remove(&mut self, key: Key) {
        self.remove(key);
    }

    fn prove(&mut self, now: Moment) {
        self.validate();
        self.proven(now, now.wall);
    }
}
