//! Records of a newer version, and files that were modified from outside.

use redb::{ReadableDatabase as _, ReadableTable as _};

use super::super::tables;
use super::disk::Rng;
use super::*;
use crate::{Cursor, UnreadableRecord};
use consentd_core::record::FORMAT;

/// Modifies the database directly.
fn edit(database: &Database, edit: impl FnOnce(&redb::WriteTransaction)) {
    let transaction = database.begin_write().unwrap();
    edit(&transaction);
    transaction.commit().unwrap();
}

fn put_pair(database: &Database, key: Key, value: &[u8]) {
    edit(database, |transaction| {
        let mut pairs = transaction.open_table(PAIRS).unwrap();
        pairs.insert(&key.to_bytes(), value).unwrap();
    });
}

fn raw_pair(database: &Database, key: Key) -> Vec<u8> {
    let pairs = database.begin_read().unwrap().open_table(PAIRS).unwrap();
    pairs.get(&key.to_bytes()).unwrap().unwrap().value().to_vec()
}

fn raw_entry(database: &Database, revision: Revision) -> Vec<u8> {
    let history = database.begin_read().unwrap().open_table(HISTORY).unwrap();
    history.get(revision).unwrap().unwrap().value().to_vec()
}

fn put_entry(database: &Database, revision: Revision, value: &[u8]) {
    edit(database, |transaction| {
        transaction.open_table(HISTORY).unwrap().insert(revision, value).unwrap();
    });
}

/// A record of a newer version, with an unknown field.
fn newer_record(record: &Record) -> Vec<u8> {
    let mut bytes = codec::encode_record(record);
    bytes.extend_from_slice(&[0x08, u8::try_from(FORMAT + 1).unwrap()]); // format
    bytes.extend_from_slice(&[0xfa, 0x01, 0x03, b'n', b'e', b'w']); // field 31
    bytes
}

#[tokio::test]
async fn a_newer_records_pair_is_refused_and_left_as_it_is() {
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let key = key(1);
    append(&running.ledger, key, opt_out("letter"), at(1)).await;
    let running = running.reopen().await;
    let (ledger, database) = (&running.ledger, running.database());
    let stored = read(ledger, key).await;
    let value = [&raw_pair(&database, key)[..16], &newer_record(&stored.record)].concat();
    put_pair(&database, key, &value);

    let newer = UnreadableRecord::Newer { format: FORMAT + 1 };
    assert_eq!(raw_pair(&database, key), value, "not a byte is changed");
    assert_eq!(ledger.read_after(0).await.unwrap().end.revision, stored.version.revision);
    assert_eq!(ledger.read(vec![key]).await.unwrap().pairs, [Err(newer)]);
    assert_eq!(all(ledger).await, [(key, Err(newer))]);
    // A change that is based on an older version of the record conflicts.
    let late = change(key, &StoredRecord::default(), opt_in("late"), at(9));
    let appended = ledger.append(vec![late]).await.unwrap();
    assert!(matches!(&appended[..], [Appended::Conflict(Err(found))] if *found == newer));
    assert_eq!(raw_pair(&database, key), value);
    // Other pairs can still be changed.
    append(ledger, self::key(2), opt_out("letter"), at(2)).await;
    drop(database);
    running.close().await;
}

#[tokio::test]
async fn a_damaged_records_pair_is_refused_and_left_as_it_is() {
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let key = key(1);
    append(&running.ledger, key, opt_out("letter"), at(1)).await;
    let running = running.reopen().await;
    let (ledger, database) = (&running.ledger, running.database());
    let value = [&1_u64.to_be_bytes()[..], &[0xff; 20]].concat();
    put_pair(&database, key, &value);
    let read = ledger.read(vec![key]).await.unwrap().pairs;
    assert_eq!(read, [Err(UnreadableRecord::Damaged)]);
    assert_eq!(raw_pair(&database, key), value);
    assert_eq!(all(ledger).await, [(key, Err(UnreadableRecord::Damaged))]);
    assert!(matches!(ledger.history(key).await, Err(LedgerError::Damaged(_))));
    drop(database);
    running.close().await;
}

#[tokio::test]
async fn values_that_are_too_short_are_damage_and_no_panic() {
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    for n in 1..=3 {
        append(&running.ledger, key(n), opt_in("form"), at(1)).await;
    }
    let running = running.reopen().await;
    let (ledger, database) = (&running.ledger, running.database());
    let damaged = |error: &LedgerError| matches!(error, LedgerError::Damaged(_));
    for value in [&[][..], &[1, 2, 3], &[0; 15], &[0; 16]] {
        // Only that pair is lost. The others can be read.
        put_pair(&database, key(1), value);
        let lost: Result<StoredRecord, _> = Err(UnreadableRecord::Damaged);
        assert_eq!(ledger.read(vec![key(1)]).await.unwrap().pairs, [lost]);
        let all = all(ledger).await;
        assert_eq!((all.len(), &all[0].1), (3, &Err(UnreadableRecord::Damaged)));
        assert!(all[1].1.is_ok() && all[2].1.is_ok());
        assert!(ledger.history(key(1)).await.is_err_and(|error| damaged(&error)));
        let nothing = StoredRecord::default();
        let over = change(key(1), &nothing, opt_in("over"), at(2));
        let appended = ledger.append(vec![over]).await.unwrap();
        assert!(matches!(&appended[..], [Appended::Conflict(Err(_))]), "{appended:?}");
    }
    for value in [&[][..], &[0; 7], &[0; 15], &[0; 17], &[9; 40], &[0; 40]] {
        put_entry(&database, 2, value);
        let history = ledger.history(key(2)).await.unwrap();
        assert!(!history.intact && history.entries.is_empty(), "{value:?}");
        let all = ledger.events_after(Cursor::default()).await;
        // An empty row cannot be recognised as damaged in a listing of all events.
        let adds_nothing = value == [0; 16];
        assert!(adds_nothing || all.is_err_and(|error| damaged(&error)), "{value:?}");
    }
    for value in [&[][..], &[0; 20], &[0; 55]] {
        edit(&database, |transaction| {
            transaction.open_table(LOG).unwrap().insert(2, value).unwrap();
        });
        assert!(ledger.read_after(0).await.is_err_and(|error| damaged(&error)), "{value:?}");
    }
    edit(&database, |transaction| {
        transaction.open_table(LOG).unwrap().insert(2, &[0xff; 60][..]).unwrap();
    });
    let page = ledger.read_after(1).await.unwrap();
    let crate::Tail::Entries(entries) = page.tail else { panic!("{page:?}") };
    assert!(entries[0].body.is_err(), "an entry that is no message is told as such");
    // Without the end in meta nothing can be read; the next append writes it again.
    edit(&database, |transaction| {
        transaction.open_table(META).unwrap().insert("head", &[0; 3][..]).unwrap();
    });
    assert!(ledger.read_after(0).await.is_err_and(|error| damaged(&error)));
    let next = change(key(4), &StoredRecord::default(), opt_in("form"), at(1));
    assert!(matches!(ledger.append(vec![next]).await.unwrap()[..], [Appended::Committed(4)]));
    assert_eq!(ledger.read_after(3).await.unwrap().end.revision, 4);
    drop(database);
    running.close().await;
}

#[tokio::test]
async fn an_edited_history_is_noticed() {
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let (ledger, database) = (&running.ledger, running.database());
    for (what, n) in [opt_in("form"), opt_out("letter"), inbound("wamid.1")].into_iter().zip(1..) {
        append(ledger, key(1), what, at(n)).await;
    }
    let raw = [1, 2, 3].map(|revision| raw_entry(&database, revision));
    let entry = ledger.history(key(1)).await.unwrap().entries[1].1.clone();
    // After the previous revision and the time: the item's tag, its length, and its payload.
    let with_item = |tag: u8, item: &[u8]| {
        let len = u32::try_from(item.len()).unwrap().to_be_bytes();
        [&raw[1][..16], &[tag], &len, item].concat()
    };
    assert_eq!(with_item(0, &codec::encode_history(&entry)), raw[1]);
    let forged = |edit: &dyn Fn(&mut HistoryEntry)| {
        let mut forged = entry.clone();
        edit(&mut forged);
        with_item(0, &codec::encode_history(&forged))
    };
    let before = |revision: u64| [&revision.to_be_bytes()[..], &raw[1][8..]].concat();
    let forgeries = [
        forged(&|entry| entry.time = at(900)),
        forged(&|entry| entry.record_time = at(900)),
        forged(&|entry| entry.user_id = "another".into()),
        forged(&|entry| entry.what = opt_in("farm")),
        with_item(2, &[7; 32]),
        raw[1][..16].to_vec(),
        [&raw[1][..], &raw[1][16..]].concat(),
        // Its previous row: none, itself, a later one, and one that does not exist.
        before(0),
        before(2),
        before(3),
        before(u64::MAX),
    ];
    for forgery in forgeries {
        put_entry(&database, 2, &forgery);
        assert!(!ledger.history(key(1)).await.unwrap().intact, "{forgery:?}");
        put_entry(&database, 2, &raw[1]);
        assert!(ledger.history(key(1)).await.unwrap().intact);
    }
    // Two rows swapped, and one missing.
    put_entry(&database, 1, &[&raw[0][..16], &raw[1][16..]].concat());
    put_entry(&database, 2, &[&raw[1][..16], &raw[0][16..]].concat());
    assert!(!ledger.history(key(1)).await.unwrap().intact);
    put_entry(&database, 1, &raw[0]);
    put_entry(&database, 2, &raw[1]);
    for gone in [1, 2, 3] {
        edit(&database, |transaction| {
            transaction.open_table(HISTORY).unwrap().remove(gone).unwrap();
        });
        assert!(!ledger.history(key(1)).await.unwrap().intact, "without {gone}");
    }
    drop(database);
    running.close().await;
}

#[tokio::test]
async fn an_edited_statement_is_not_shown_as_what_was_agreed_to() {
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let (ledger, database) = (&running.ledger, running.database());
    append(ledger, key(1), opt_in("form"), at(1)).await;
    let What::OptIn { evidence, .. } = opt_in("form") else { unreachable!() };
    let digest = sha256(evidence.statement.as_bytes());
    let put = |statement: Option<&str>| {
        edit(&database, |transaction| {
            let mut texts = transaction.open_table(TEXTS).unwrap();
            match statement {
                Some(statement) => texts.insert(&digest, statement).unwrap(),
                None => texts.remove(&digest).unwrap(),
            };
        });
    };
    for edited in [Some("Yes to all messages of WhatsApp from Acme and others"), Some(""), None] {
        put(edited);
        // It is neither shown nor exported, and counts as unreadable.
        let history = ledger.history(key(1)).await.unwrap();
        assert!(!history.intact && history.entries.is_empty(), "{history:?}");
        assert_eq!(history.unreadable, 1);
        let all = ledger.events_after(Cursor::default()).await;
        assert!(matches!(all, Err(LedgerError::Damaged(_))), "{all:?}");
    }
    put(Some(&evidence.statement));
    assert!(ledger.history(key(1)).await.unwrap().intact);
    drop(database);
    running.close().await;
}

/// Modifies a value at random, like a fault or a person.
fn mangle(value: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut value = value.to_vec();
    match rng.below(4) {
        0 => value.truncate(rng.below(value.len() + 1)),
        1 => value.extend((0..=rng.below(20)).map(|_| rng.next().to_be_bytes()[0])),
        2 if !value.is_empty() => {
            let index = rng.below(value.len());
            value[index] ^= 1 << rng.below(8);
        }
        _ => value.iter_mut().for_each(|byte| *byte = rng.next().to_be_bytes()[0]),
    }
    value
}

#[tokio::test]
async fn no_mangled_value_makes_anything_panic() {
    let disk = Disk::new(Vec::new());
    let running = Running::on(disk.clone()).unwrap();
    for (what, n) in [opt_in("form"), opt_out("letter"), inbound("wamid.1")].into_iter().zip(1..) {
        append(&running.ledger, key(1), what, at(n)).await;
    }
    running.close().await;
    let whole = disk.bytes();
    let mut rng = Rng(7);
    for _ in 0..300 {
        let running = Running::on(Disk::new(whole.clone())).unwrap();
        let database = running.database();
        edit(&database, |transaction| match rng.below(4) {
            0 => {
                let mut pairs = transaction.open_table(PAIRS).unwrap();
                let value = pairs.get(&[1; 16]).unwrap().unwrap().value().to_vec();
                pairs.insert(&[1; 16], mangle(&value, &mut rng).as_slice()).unwrap();
            }
            1 => {
                let mut log = transaction.open_table(LOG).unwrap();
                let revision = 1 + rng.next() % 3;
                let value = log.get(revision).unwrap().unwrap().value().to_vec();
                log.insert(revision, mangle(&value, &mut rng).as_slice()).unwrap();
            }
            2 => {
                let mut history = transaction.open_table(HISTORY).unwrap();
                let revision = 1 + rng.next() % 3;
                let value = history.get(revision).unwrap().unwrap().value().to_vec();
                history.insert(revision, mangle(&value, &mut rng).as_slice()).unwrap();
            }
            _ => {
                let mut meta = transaction.open_table(META).unwrap();
                let name = rng.pick(&["epoch", "secret", "format", "revision", "head"]);
                let value = meta.get(name).unwrap().unwrap().value().to_vec();
                meta.insert(name, mangle(&value, &mut rng).as_slice()).unwrap();
            }
        });
        let ledger = &running.ledger;
        let _ = ledger.read_after(0).await;
        for number in 0..ledger.identity().buckets {
            let _ = ledger.bucket(number).await;
        }
        let _ = ledger.history(key(1)).await;
        let _ = ledger.events_after(Cursor::default()).await;
        let little = Retention { log_entries: 1, history: Duration::ZERO, ..FOREVER };
        let _ = super::super::retention::sweep(&database, 3, little);
        let again = tables::prepare(&database, Path::new("disk"));
        assert!(!matches!(again, Err(OpenError::Io { .. } | OpenError::InUse { .. })));
        let base = match ledger.read(vec![key(1)]).await.map(|mut read| read.pairs.remove(0)) {
            Ok(Ok(stored)) => stored,
            _ => StoredRecord { version: version(3), record: Record::default() },
        };
        let _ = ledger.append(vec![change(key(1), &base, opt_out("again"), at(9))]).await;
        drop(database);
        running.ledger.close().await;
        // The appender may have ended with an error, but not with a panic.
        let _ = running.writer.join().unwrap();
    }
}
