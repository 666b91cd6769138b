//! How current the table is: the same loads around a look-up as in `src/table/mod.rs`.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use consentd::table::Validity;
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

/// How current the table was at a look-up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freshness {
    pub(crate) validity: Validity,
    proven: Moment,
    ledger_offset: i64,
    pub(crate) revision: u64,
}

impl Freshness {
    /// How long ago the table was proven to have everything.
    pub(crate) fn staleness(&self, now: Moment) -> Duration {
        now.since(self.proven)
    }

    /// The ledger's clock, by its last answer and the time since.
    pub(crate) fn ledger_clock(&self, now: Moment) -> Timestamp {
        let boot = i64::try_from(now.boot.as_millis()).unwrap_or(i64::MAX);
        Timestamp::saturating_from_millis(boot.saturating_add(self.ledger_offset))
    }
}

#[derive(Default)]
pub(super) struct State {
    /// 0 while loading, 1 once valid.
    validity: AtomicU8,
    generation: AtomicU64,
    proven_boot: AtomicU64,
    proven_wall: AtomicI64,
    ledger_offset: AtomicI64,
    revision: AtomicU64,
}

impl State {
    fn load(&self) -> Freshness {
        let validity = match self.validity.load(Ordering::Acquire) {
            0 => Validity::Loading,
            1 => Validity::Valid,
            _ => Validity::Invalid,
        };
        Freshness {
            validity,
            proven: Moment {
                boot: Duration::from_nanos(self.proven_boot.load(Ordering::Acquire)),
                wall: Timestamp::saturating_from_millis(self.proven_wall.load(Ordering::Acquire)),
            },
            ledger_offset: self.ledger_offset.load(Ordering::Acquire),
            revision: self.revision.load(Ordering::Acquire),
        }
    }

    /// Reads freshness first and the pair then, so that what was proven is in what is read; a table
    /// that became valid or invalid in between was not valid.
    pub(super) fn with_generation_check<T>(&self, read: impl FnOnce() -> T) -> (T, Freshness) {
        let generation = self.generation.load(Ordering::Acquire);
        let mut freshness = self.load();
        let found = read();
        if self.generation.load(Ordering::Acquire) != generation
            && freshness.validity == Validity::Valid
        {
            freshness.validity = Validity::Invalid;
        }
        (found, freshness)
    }

    pub(super) fn validate(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.validity.store(1, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn proven(&self, asked: Moment, ledger_clock: Timestamp) {
        let boot = i64::try_from(asked.boot.as_millis()).unwrap_or(i64::MAX);
        let offset = ledger_clock.as_millis().saturating_sub(boot);
        self.ledger_offset.store(offset, Ordering::Release);
        self.proven_wall.store(asked.wall.as_millis(), Ordering::Release);
        let boot = u64::try_from(asked.boot.as_nanos()).unwrap_or(u64::MAX);
        self.proven_boot.store(boot, Ordering::Release);
    }
}
