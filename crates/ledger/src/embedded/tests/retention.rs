//! Expired entries are removed, and the rest of the history still verifies.

use redb::{ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};

use super::super::retention;
use super::*;
use crate::Tail;
use consentd_os::clock;

/// Removes everything that has outlived its retention.
fn sweep(database: &Database, keep: Retention) -> Result<(), LedgerError> {
    while retention::sweep(database, Revision::MAX, keep)? {}
    Ok(())
}

const HOUR: Duration = Duration::from_hours(1);

/// Appends messages to one pair, with these times of recording.
async fn hear(ledger: &Embedded, times: impl IntoIterator<Item = Timestamp>) {
    for time in times {
        append(ledger, key(1), inbound("wamid"), time).await;
    }
}

/// The number of log entries after a revision; `None` if the log was trimmed beyond it.
async fn log_after(ledger: &Embedded, after: Revision) -> Option<usize> {
    match ledger.read_after(after).await.unwrap().tail {
        Tail::Entries(entries) => {
            let dense = (after + 1..).zip(&entries).all(|(next, entry)| entry.revision == next);
            assert!(dense, "{entries:?}");
            Some(entries.len())
        }
        Tail::Trimmed => None,
    }
}

#[tokio::test]
async fn the_log_is_trimmed_by_count_while_it_grows() {
    let keep = Retention { log_entries: 10, ..FOREVER };
    let running = Running::keeping(keep, Disk::new(Vec::new())).unwrap();
    let ledger = &running.ledger;
    hear(ledger, (1..=10).map(at)).await;
    assert_eq!(log_after(ledger, 0).await, Some(10), "ten fit");
    hear(ledger, (11..=50).map(at)).await;
    for (after, left) in [(0, None), (39, None), (40, Some(10)), (49, Some(1)), (50, Some(0))] {
        assert_eq!(log_after(ledger, after).await, left, "behind {after}");
    }
    assert_eq!(read(ledger, key(1)).await.record.history_len, 50, "the pair is not the log's");
    running.close().await;
}

#[tokio::test]
async fn a_log_that_is_allowed_less_than_it_has_shrinks_as_it_grows() {
    let disk = Disk::new(Vec::new());
    let running = Running::on(disk.clone()).unwrap();
    hear(&running.ledger, (1..=20).map(at)).await;
    running.close().await;
    let keep = Retention { log_entries: 5, ..FOREVER };
    let running = Running::keeping(keep, Disk::new(disk.bytes())).unwrap();
    let ledger = &running.ledger;
    // Each append removes a little more than it adds, so that no append has to remove everything.
    hear(ledger, [at(21)]).await;
    assert_eq!(log_after(ledger, 1).await, None);
    assert_eq!(log_after(ledger, 2).await, Some(19));
    hear(ledger, (22..=40).map(at)).await;
    assert_eq!(log_after(ledger, 34).await, None);
    assert_eq!(log_after(ledger, 35).await, Some(5));
    running.close().await;
}

#[tokio::test]
async fn the_log_is_trimmed_by_age() {
    let now = clock::wall();
    let keep = Retention { log: HOUR, ..FOREVER };
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let ledger = &running.ledger;
    let old = now.minus(HOUR * 2);
    hear(ledger, (1..=3).map(|n| old.plus(Duration::from_millis(n)))).await;
    hear(ledger, (1..=2).map(|n| now.minus(Duration::from_millis(9 - n)))).await;
    assert_eq!(log_after(ledger, 0).await, Some(5));
    sweep(&running.database(), keep).unwrap();
    assert_eq!(log_after(ledger, 2).await, None);
    assert_eq!(log_after(ledger, 3).await, Some(2));
    // The end of an empty log is still known, and the next append continues it.
    sweep(&running.database(), Retention { log_entries: 0, ..FOREVER }).unwrap();
    assert_eq!(log_after(ledger, 4).await, None);
    assert_eq!(log_after(ledger, 5).await, Some(0));
    let before = ledger.read_after(5).await.unwrap().end;
    hear(ledger, [now]).await;
    let Tail::Entries(entries) = ledger.read_after(5).await.unwrap().tail else { panic!() };
    assert_eq!((entries[0].revision, entries[0].previous), (6, before.head));
    running.close().await;
}

#[tokio::test]
async fn a_long_log_is_swept_whole() {
    // More than one transaction removes.
    const PAIRS: u16 = 9_000;
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let pairs: Vec<u16> = (0..PAIRS).collect();
    for some in pairs.chunks(crate::MAX_APPEND) {
        let changes = some.iter().map(|number| {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            change(Key::from_bytes(bytes), &StoredRecord::default(), inbound("wamid"), at(1))
        });
        running.ledger.append(changes.collect()).await.unwrap();
    }
    let keep = Retention { log: HOUR, log_entries: u64::MAX, history: HOUR };
    sweep(&running.database(), keep).unwrap();
    let transaction = running.database().begin_read().unwrap();
    assert_eq!(transaction.open_table(LOG).unwrap().len().unwrap(), 0);
    assert!(!is_kept(&running.database(), b"wamid"));
    assert_eq!(transaction.open_table(HISTORY).unwrap().len().unwrap(), u64::from(PAIRS));
    running.close().await;
}

/// Whether these bytes occur in any history row.
fn is_kept(database: &Database, bytes: &[u8]) -> bool {
    let transaction = database.begin_read().unwrap();
    let table = transaction.open_table(HISTORY).unwrap();
    table.iter().unwrap().any(|item| {
        let (_, value) = item.unwrap();
        value.value().windows(bytes.len()).any(|window| window == bytes)
    })
}

#[tokio::test]
async fn messages_and_failures_leave_histories_in_time_and_consent_stays() {
    let now = clock::wall();
    let old = |n| now.minus(HOUR * 2).plus(Duration::from_millis(n));
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let (ledger, database) = (&running.ledger, running.database());
    let happened = [
        opt_in("signed up"),
        inbound("wamid.old"),
        What::Failure { code: 131_026, phone_number_id: None },
        What::Failure { code: 131_050, phone_number_id: None },
        What::Platform { stopped: true, phone_number_id: None },
        What::Suppression { suppressed: true, reference: "court".into() },
        opt_out("letter"),
    ];
    for (what, n) in happened.iter().zip(1..) {
        append(ledger, key(1), what.clone(), old(n)).await;
    }
    append(ledger, key(2), inbound("wamid.other"), old(9)).await;
    append(ledger, key(1), inbound("wamid.new"), now).await;
    let (pair, other) = (read(ledger, key(1)).await, read(ledger, key(2)).await);
    assert!(is_kept(&database, b"wamid.old") && is_kept(&database, b"wamid.other"));

    let keep = Retention { history: HOUR, ..FOREVER };
    sweep(&database, keep).unwrap();
    let history = ledger.history(key(1)).await.unwrap();
    assert!(history.intact, "what is left still proves what is gone");
    let left: Vec<_> =
        history.entries.iter().map(|(at, entry)| (at.revision, &entry.what)).collect();
    let fresh = inbound("wamid.new");
    // A platform stop is permanent: replaying a history without it would allow what is denied.
    let kept = [(1, 0), (4, 3), (5, 4), (6, 5), (7, 6)].map(|(at, index)| (at, &happened[index]));
    assert_eq!(left, [&kept[..], &[(9, &fresh)]].concat());
    assert!(!is_kept(&database, b"wamid.old") && !is_kept(&database, b"wamid.other"));
    let other_history = ledger.history(key(2)).await.unwrap();
    assert!(other_history.intact && other_history.entries.is_empty());
    // The records do not change, and so neither do the decisions.
    assert_eq!((read(ledger, key(1)).await, read(ledger, key(2)).await), (pair, other));
    assert!(is_kept(&database, b"wamid.new"));

    // A new entry continues the chain after expired ones.
    append(ledger, key(2), opt_out("later"), now).await;
    let continued = ledger.history(key(2)).await.unwrap();
    assert!(continued.intact);
    assert_eq!(continued.entries[0].1.what, opt_out("later"));
    drop(database);
    running.close().await;
}

#[tokio::test]
async fn an_entry_stays_for_all_of_its_time() {
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let ledger = &running.ledger;
    let recorded = clock::wall();
    append(ledger, key(1), inbound("wamid.1"), recorded).await;
    sweep(&running.database(), Retention { history: HOUR, ..FOREVER }).unwrap();
    assert_eq!(ledger.history(key(1)).await.unwrap().entries.len(), 1);
    running.close().await;
}
