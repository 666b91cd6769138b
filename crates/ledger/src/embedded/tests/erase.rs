//! The garbage collection of statements, interleaved with appends and erasures.

use redb::{ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};

use super::super::memtable::{Flusher, Memtable};
use super::super::statement_gc::StatementGc;
use super::super::tables::CONDEMNED;
use super::*;

/// A ledger without an appender thread.
struct Offline {
    database: Database,
    memtable: Memtable,
    flusher: Flusher,
}

impl Offline {
    fn new() -> Self {
        let backend = Disk::new(Vec::new());
        let database = Database::builder().create_with_backend(backend).unwrap();
        tables::prepare(&database, Path::new("disk")).unwrap();
        let (memtable, flusher) = Memtable::load(&database).unwrap();
        Self { database, memtable, flusher }
    }

    fn read(&self, key: Key) -> StoredRecord {
        read::read(&self.database, &self.memtable, &[key]).unwrap().pairs.remove(0).unwrap()
    }

    fn write(&mut self, change: Change) {
        let group = vec![EncodedChange::new(change)];
        let Self { database, memtable, flusher } = self;
        let written = append::append(database, memtable, flusher, vec![group], FOREVER).unwrap();
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

    /// The number of statements, and how many of them are condemned.
    fn texts(&self) -> (u64, u64) {
        let transaction = self.database.begin_read().unwrap();
        let texts = transaction.open_table(TEXTS).unwrap().len().unwrap();
        (texts, transaction.open_table(CONDEMNED).unwrap().len().unwrap())
    }
}

#[test]
fn statements_are_looked_for_while_others_write() {
    // The same statement, with 0 to 2 new references while a pass runs.
    for later in 0..3_u8 {
        let mut ledger = Offline::new();
        ledger.record(1, opt_in("a"));
        for pair in 2..=5 {
            ledger.record(pair, inbound("wamid"));
        }
        ledger.erase(1);
        assert_eq!(ledger.texts(), (1, 1));
        let mut statement_gc = StatementGc::default();
        assert!(statement_gc.step(&ledger.database).unwrap(), "it knows what to look for");
        assert!(statement_gc.step(&ledger.database).unwrap(), "it has looked at some");
        assert_eq!(ledger.texts(), (1, 1));
        for pair in 6..6 + later {
            ledger.record(pair, opt_in("a"));
        }
        while statement_gc.step(&ledger.database).unwrap() {}
        assert_eq!(ledger.texts(), (u64::from(later > 0), 0));
        for pair in 6..6 + later {
            assert_eq!(ledger.texts().0, 1);
            ledger.erase(pair);
            while statement_gc.step(&ledger.database).unwrap() {}
        }
        assert_eq!(ledger.texts(), (0, 0));
    }
}

#[test]
fn a_statement_that_is_doomed_anew_is_looked_for_anew() {
    let mut ledger = Offline::new();
    ledger.record(1, opt_in("a"));
    ledger.record(2, opt_in("a"));
    for pair in 3..=5 {
        ledger.record(pair, inbound("wamid"));
    }
    ledger.erase(1);
    let mut statement_gc = StatementGc::default();
    assert!(statement_gc.step(&ledger.database).unwrap());
    assert!(statement_gc.step(&ledger.database).unwrap(), "it has found the other one's");
    ledger.erase(2);
    while statement_gc.step(&ledger.database).unwrap() {}
    assert_eq!(ledger.texts(), (0, 0), "nobody is left who refers to it");
    // The history table has no rows of them.
    let transaction = ledger.database.begin_read().unwrap();
    let rows = transaction.open_table(HISTORY).unwrap();
    assert_eq!(rows.iter().unwrap().count(), 3);
}
