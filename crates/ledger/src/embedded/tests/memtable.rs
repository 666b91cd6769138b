//! Flushing pairs is invisible: to concurrent readers, and after a crash, however short the log's
//! retention is.

use std::collections::HashMap;

use super::disk::Rng;
use super::*;

type Model = HashMap<Key, (StoredRecord, usize)>;

async fn assert_is(ledger: &Embedded, model: &Model) {
    let pairs = all(ledger).await;
    assert!(pairs.is_sorted_by_key(|(key, _)| key.to_bytes()));
    let all: HashMap<_, _> =
        pairs.into_iter().map(|(key, record)| (key, record.unwrap())).collect();
    let records = model.iter().map(|(key, (stored, _))| (*key, stored.record.clone()));
    assert_eq!(all, records.collect());
    for (key, (stored, entries)) in model {
        assert_eq!(read(ledger, *key).await, *stored);
        let history = ledger.history(*key).await.unwrap();
        assert!(history.intact);
        assert_eq!(history.entries.len(), *entries);
    }
}

#[tokio::test]
async fn wherever_pairs_are_they_are_the_same() {
    for seed in 1..=12 {
        let mut rng = Rng(seed);
        let mut model = Model::new();
        let mut bytes = Vec::new();
        let mut time = 0;
        for _ in 0..12 {
            let entries = [1, 3, 9, u64::MAX][rng.below(4)];
            let keep = Retention { log_entries: entries, ..FOREVER };
            let disk = Disk::new(bytes);
            let running = Running::keeping(keep, disk.clone()).unwrap();
            assert_is(&running.ledger, &model).await;
            for _ in 0..rng.below(25) {
                let keys: std::collections::HashSet<u8> =
                    (0..=rng.below(4)).map(|_| u8::try_from(1 + rng.below(12)).unwrap()).collect();
                let mut changes = Vec::new();
                for key in keys.into_iter().map(key) {
                    time += 1;
                    let (stored, _) = model.get(&key).cloned().unwrap_or_default();
                    let what = if rng.below(2) == 0 { opt_out("letter") } else { opt_in("form") };
                    changes.push(change(key, &stored, what, at(time)));
                }
                let appended = running.ledger.append(changes.clone()).await.unwrap();
                for (change, appended) in changes.iter().zip(appended) {
                    let Appended::Committed(revision) = appended else { panic!("{appended:?}") };
                    let (stored, entries) = model.entry(change.key).or_default();
                    *stored =
                        StoredRecord { version: version(revision), record: record_after(change) };
                    *entries += 1;
                }
            }
            assert_is(&running.ledger, &model).await;
            let crashed = disk.bytes();
            running.close().await;
            bytes = if rng.below(3) == 0 { disk.bytes() } else { crashed };
        }
    }
}

#[tokio::test]
async fn a_log_that_lacks_what_the_tree_does_not_have_is_refused() {
    let disk = Disk::new(Vec::new());
    let running = Running::on(disk.clone()).unwrap();
    for n in 1..=4 {
        append(&running.ledger, key(n), opt_out("letter"), at(1)).await;
    }
    let crashed = disk.bytes();
    running.close().await;
    for gone in [1, 2, 4] {
        let disk = Disk::new(crashed.clone());
        let database = Database::builder().create_with_backend(disk.clone()).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(LOG).unwrap().remove(gone).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let Err(error) = Running::on(Disk::new(disk.bytes())) else { panic!("without {gone}") };
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
