//! A newer version's records, and a file that was changed behind the ledger's back.

use redb::{ReadableDatabase as _, ReadableTable as _};

use super::super::store;
use super::disk::Rng;
use super::*;
use crate::consent::event::{Event, PlatformNames};
use crate::consent::keyword::{KeywordLists, Keywords};
use crate::consent::record::FORMAT;
use crate::ledger::{Ledger, UnreadableRecord};
use crate::metrics::Metrics;
use crate::recorder::{Recorder, Refusal, Submission};

/// Changes the file directly.
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

fn place(key: Key, number: u64) -> [u8; 24] {
    let mut place = [0; 24];
    place[..16].copy_from_slice(&key.to_bytes());
    place[16..].copy_from_slice(&number.to_be_bytes());
    place
}

fn raw_entry(database: &Database, place: &[u8; 24]) -> Vec<u8> {
    let history = database.begin_read().unwrap().open_table(HISTORY).unwrap();
    history.get(place).unwrap().unwrap().value().to_vec()
}

fn put_entry(database: &Database, place: &[u8; 24], value: &[u8]) {
    edit(database, |transaction| {
        transaction.open_table(HISTORY).unwrap().insert(place, value).unwrap();
    });
}

fn recorder(ledger: &Embedded) -> Recorder {
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let (names, keywords) = (PlatformNames::default(), Keywords::new(KeywordLists::default()));
    Recorder::new(Ledger::Embedded(ledger.clone()), names, keywords, metrics)
}

/// Records an opt-out of a user whose pair this gives, too.
async fn record(ledger: &Embedded, user: &str) -> (Key, Result<(), Refusal>) {
    let user_id = crate::consent::id::UserId::parse(user).unwrap();
    let business_id = crate::consent::id::BusinessId::parse("acme").unwrap();
    let key = ledger.key_secret().key(&user_id, business_id);
    let event = Event {
        user_id: user.to_owned(),
        business_id: "acme".to_owned(),
        time: None,
        what: opt_out("letter"),
    };
    let submission = Submission { event, request_id: String::new() };
    let result = recorder(ledger).record(&[submission]).await.remove(0);
    (key, result.map(|_| ()))
}

/// A record as a newer version might write it: with a field that this one does not know.
fn newer_record(record: &Record) -> Vec<u8> {
    let mut bytes = codec::encode_record(record);
    bytes.extend_from_slice(&[0x08, u8::try_from(FORMAT + 1).unwrap()]); // format
    bytes.extend_from_slice(&[0xfa, 0x01, 0x03, b'n', b'e', b'w']); // field 31
    bytes
}

#[tokio::test]
async fn a_newer_records_pair_is_refused_and_left_as_it_is() {
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let (ledger, database) = (&running.ledger, running.database());
    let (key, recorded) = record(ledger, "15550123456").await;
    recorded.unwrap();
    let stored = read(ledger, key).await;
    let value = [&stored.revision.to_be_bytes()[..], &newer_record(&stored.record)].concat();
    put_pair(&database, key, &value);

    let newer = UnreadableRecord::Newer { format: FORMAT + 1 };
    let (_, refused) = record(ledger, "15550123456").await;
    assert!(matches!(refused, Err(Refusal::Unreadable(found)) if found == newer), "{refused:?}");
    assert_eq!(raw_pair(&database, key), value, "not a byte is changed");
    assert_eq!(ledger.read_after(0).await.unwrap().end.revision, stored.revision);
    assert_eq!(ledger.read(vec![key]).await.unwrap().pairs, [Err(newer)]);
    assert_eq!(ledger.bucket(None).await.unwrap().pairs, [(key, Err(newer))]);
    // Nor does whoever has an older record of it get to replace it.
    let nothing = Stored { revision: 0, record: Record::default() };
    let late = change(key, &nothing, opt_in("late"), at(9));
    let appended = ledger.append(vec![late]).await.unwrap();
    assert!(matches!(&appended[..], [Appended::Conflict(Err(found))] if *found == newer));
    assert_eq!(raw_pair(&database, key), value);
    // Other pairs are recorded as ever.
    record(ledger, "15550123457").await.1.unwrap();
    drop(database);
    running.close().await;
}

#[tokio::test]
async fn a_damaged_records_pair_is_refused_and_left_as_it_is() {
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let (ledger, database) = (&running.ledger, running.database());
    let (key, recorded) = record(ledger, "15550123456").await;
    recorded.unwrap();
    let value = [&1_u64.to_be_bytes()[..], &[0xff; 20]].concat();
    put_pair(&database, key, &value);
    let (_, refused) = record(ledger, "15550123456").await;
    assert!(matches!(refused, Err(Refusal::Unreadable(UnreadableRecord::Damaged))), "{refused:?}");
    assert_eq!(raw_pair(&database, key), value);
    assert_eq!(ledger.bucket(None).await.unwrap().pairs, [(key, Err(UnreadableRecord::Damaged))]);
    assert!(matches!(ledger.history(key).await, Err(LedgerError::Damaged(_))));
    drop(database);
    running.close().await;
}

#[tokio::test]
async fn values_that_are_too_short_are_damage_and_no_panic() {
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let (ledger, database) = (&running.ledger, running.database());
    for n in 1..=3 {
        append(ledger, key(n), opt_in("form"), at(1)).await;
    }
    put_pair(&database, key(1), &[1, 2, 3]);
    let damaged = |error: &LedgerError| matches!(error, LedgerError::Damaged(_));
    assert!(ledger.read(vec![key(1)]).await.is_err_and(|error| damaged(&error)));
    assert!(ledger.bucket(None).await.is_err_and(|error| damaged(&error)));
    assert!(ledger.history(key(1)).await.is_err_and(|error| damaged(&error)));
    for value in [&[][..], &[0; 7], &[0; 8], &[9; 9], &[1; 9], &[1; 40]] {
        put_entry(&database, &place(key(2), 0), value);
        let history = ledger.history(key(2)).await;
        assert!(history.is_err_and(|error| damaged(&error)), "{value:?}");
    }
    for value in [&[][..], &[0; 20], &[0; 47]] {
        edit(&database, |transaction| {
            transaction.open_table(LOG).unwrap().insert(2, value).unwrap();
        });
        assert!(ledger.read_after(0).await.is_err_and(|error| damaged(&error)), "{value:?}");
    }
    edit(&database, |transaction| {
        transaction.open_table(LOG).unwrap().insert(2, &[0xff; 60][..]).unwrap();
    });
    let page = ledger.read_after(1).await.unwrap();
    let crate::ledger::Tail::Entries(entries) = page.tail else { panic!("{page:?}") };
    assert!(entries[0].body.is_err(), "an entry that is no message is told as such");
    // Of the end, nothing can be said at all: nothing is read, and nothing is written.
    edit(&database, |transaction| {
        transaction.open_table(META).unwrap().insert("head", &[0; 3][..]).unwrap();
    });
    assert!(ledger.read_after(0).await.is_err_and(|error| damaged(&error)));
    let nothing = Stored { revision: 0, record: Record::default() };
    let next = change(key(4), &nothing, opt_in("form"), at(1));
    assert!(ledger.append(vec![next]).await.is_err_and(|error| damaged(&error)));
    // The writer ends then, and with it the sidecar: it cannot promise anything any more.
    assert!(matches!(running.writer.join().unwrap(), Err(LedgerError::Damaged(_))));
}

#[tokio::test]
async fn an_edited_history_is_noticed() {
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let (ledger, database) = (&running.ledger, running.database());
    for (what, n) in [opt_in("form"), opt_out("letter"), inbound("wamid.1")].into_iter().zip(1..) {
        append(ledger, key(1), what, at(n)).await;
    }
    let places = [0, 1, 2, 3].map(|number| place(key(1), number));
    let raw = [0, 1, 2].map(|number| raw_entry(&database, &places[number]));
    let entry = ledger.history(key(1)).await.unwrap().entries[1].1.clone();
    let forged = |edit: &dyn Fn(&mut HistoryEntry)| {
        let mut forged = entry.clone();
        edit(&mut forged);
        [&raw[1][..9], &codec::encode_history(&forged)].concat()
    };
    let forgeries = [
        forged(&|entry| entry.time = at(900)),
        forged(&|entry| entry.record_time = at(900)),
        forged(&|entry| entry.user_id = "another".into()),
        forged(&|entry| entry.what = opt_in("farm")),
        [&raw[1][..8], &[1], &[7; 32][..]].concat(),
    ];
    for forgery in forgeries {
        put_entry(&database, &places[1], &forgery);
        assert!(!ledger.history(key(1)).await.unwrap().intact, "{forgery:?}");
        put_entry(&database, &places[1], &raw[1]);
        assert!(ledger.history(key(1)).await.unwrap().intact);
    }
    // Two in each other's place; one too many; one too few.
    put_entry(&database, &places[0], &raw[1]);
    put_entry(&database, &places[1], &raw[0]);
    assert!(!ledger.history(key(1)).await.unwrap().intact);
    put_entry(&database, &places[0], &raw[0]);
    put_entry(&database, &places[1], &raw[1]);
    put_entry(&database, &places[3], &raw[2]);
    assert!(!ledger.history(key(1)).await.unwrap().intact);
    for gone in [3, 2] {
        edit(&database, |transaction| {
            transaction.open_table(HISTORY).unwrap().remove(&places[gone]).unwrap();
        });
        assert_eq!(ledger.history(key(1)).await.unwrap().intact, gone == 3);
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
        let history = ledger.history(key(1)).await;
        assert!(matches!(history, Err(LedgerError::Damaged(_))), "{history:?}");
    }
    put(Some(&evidence.statement));
    assert!(ledger.history(key(1)).await.unwrap().intact);
    drop(database);
    running.close().await;
}

/// Changes a value as a fault or a person might.
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
                let place = place(key(1), rng.next() % 3);
                let value = history.get(&place).unwrap().unwrap().value().to_vec();
                history.insert(&place, mangle(&value, &mut rng).as_slice()).unwrap();
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
        let _ = ledger.bucket(None).await;
        let _ = ledger.history(key(1)).await;
        let _ = super::super::retention::sweep(&database, Retention { log_entries: 1, ..FOREVER });
        let again = store::prepare(&database, Path::new("disk"));
        assert!(!matches!(again, Err(OpenError::Io { .. } | OpenError::InUse { .. })));
        let base = match ledger.read(vec![key(1)]).await.map(|mut read| read.pairs.remove(0)) {
            Ok(Ok(stored)) => stored,
            _ => Stored { revision: 3, record: Record::default() },
        };
        let _ = ledger.append(vec![change(key(1), &base, opt_out("again"), at(9))]).await;
        drop(database);
        running.ledger.close().await;
        // It may have ended with an error, but not with a panic.
        let _ = running.writer.join().unwrap();
    }
}
