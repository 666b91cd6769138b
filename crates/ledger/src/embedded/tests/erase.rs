//! Statements of erased histories go, whatever is recorded or erased while they are looked for.

use redb::{ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};

use super::super::erase::{DOOMED, Reaper};
use super::super::recent::{Mover, Recent};
use super::*;

/// A ledger without the thread that writes it.
struct Still {
    database: Database,
    recent: Recent,
    mover: Mover,
}

impl Still {
    fn new() -> Self {
        let backend = Disk::new(Vec::new());
        let database = Database::builder().create_with_backend(backend).unwrap();
        store::prepare(&database, Path::new("disk")).unwrap();
        let (recent, mover) = store::load_recent(&database).unwrap();
        Self { database, recent, mover }
    }

    fn read(&self, key: Key) -> StoredRecord {
        store::read(&self.database, &self.recent, &[key]).unwrap().pairs.remove(0).unwrap()
    }

    fn write(&mut self, change: Change) {
        let group = vec![Prepared::of(change)];
        let Self { database, recent, mover } = self;
        let written = store::append(database, recent, mover, vec![group], FOREVER).unwrap();
        assert!(matches!(written.outcomes[0][..], [Appended::Committed(_)]));
    }

    fn record(&mut self, pair: u8, what: What) {
        let change = change(key(pair), &self.read(key(pair)), what, at(pair.into()));
        self.write(change);
    }

    fn erase(&mut self, pair: u8) {
        let StoredRecord { version, record } = self.read(key(pair));
        let record = record.tombstone(at(100));
        let (user_id, business_id, history) = (String::new(), String::new(), Vec::new());
        let update = Update { user_id, business_id, record, history, record_time: at(100) };
        self.write(Change { key: key(pair), base: version, update: Some(update) });
    }

    /// How many statements there are, and how many of them are doomed.
    fn texts(&self) -> (u64, u64) {
        let transaction = self.database.begin_read().unwrap();
        let texts = transaction.open_table(TEXTS).unwrap().len().unwrap();
        (texts, transaction.open_table(DOOMED).unwrap().len().unwrap())
    }
}

#[test]
fn statements_are_looked_for_while_others_write() {
    // The same words, of as many as come to refer to them while they are looked for.
    for later in 0..3_u8 {
        let mut ledger = Still::new();
        ledger.record(1, opt_in("a"));
        for pair in 2..=5 {
            ledger.record(pair, inbound("wamid"));
        }
        ledger.erase(1);
        assert_eq!(ledger.texts(), (1, 1));
        let mut reaper = Reaper::default();
        assert!(reaper.step(&ledger.database).unwrap(), "it knows what to look for");
        assert!(reaper.step(&ledger.database).unwrap(), "it has looked at some");
        assert_eq!(ledger.texts(), (1, 1));
        for pair in 6..6 + later {
            ledger.record(pair, opt_in("a"));
        }
        while reaper.step(&ledger.database).unwrap() {}
        assert_eq!(ledger.texts(), (u64::from(later > 0), 0));
        for pair in 6..6 + later {
            assert_eq!(ledger.texts().0, 1);
            ledger.erase(pair);
            while reaper.step(&ledger.database).unwrap() {}
        }
        assert_eq!(ledger.texts(), (0, 0));
    }
}

#[test]
fn a_statement_that_is_doomed_anew_is_looked_for_anew() {
    let mut ledger = Still::new();
    ledger.record(1, opt_in("a"));
    ledger.record(2, opt_in("a"));
    for pair in 3..=5 {
        ledger.record(pair, inbound("wamid"));
    }
    ledger.erase(1);
    let mut reaper = Reaper::default();
    assert!(reaper.step(&ledger.database).unwrap());
    assert!(reaper.step(&ledger.database).unwrap(), "it has found the other one's");
    ledger.erase(2);
    while reaper.step(&ledger.database).unwrap() {}
    assert_eq!(ledger.texts(), (0, 0), "nobody is left who refers to it");
    // The history tables have nothing of them.
    let transaction = ledger.database.begin_read().unwrap();
    let rows = transaction.open_table(HISTORY).unwrap();
    assert_eq!(rows.iter().unwrap().count(), 3);
}
