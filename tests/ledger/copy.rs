//! What is the same in a copy of a ledger, whichever kind is copied into whichever.

use std::time::Duration;

use consentd_core::id::PhoneNumberId;
use consentd_ledger::{Depth, NewFile, NewLedger, NewRedis, Tail, bucket_of, copy};

use super::*;

/// How many pairs there are: some share buckets.
const PAIRS: u64 = 40;

async fn make(ledger: &Ledger) {
    for number in 0..PAIRS {
        append(ledger, key(number), opt_in(&format!("words {}", number % 3))).await;
        append(ledger, key(number), inbound("m1")).await;
        if number % 4 == 0 {
            append(ledger, key(number), opt_out("r")).await;
        }
        if number % 5 == 0 {
            for (stopped, at) in [(true, "11"), (true, "22"), (false, "22"), (true, "")] {
                let phone_number_id = PhoneNumberId::parse(at).ok();
                append(ledger, key(number), What::Platform { stopped, phone_number_id }).await;
            }
        }
    }
}

/// Where a copy of this kind is made, in that home.
async fn place(home: &Home, buckets: u32) -> NewLedger {
    match &home.server {
        None => NewLedger::File(Box::new(NewFile::begin(&home.path()).unwrap())),
        Some(server) => {
            let begun = NewRedis::begin(server.target(), shape(buckets), false).await;
            NewLedger::Redis(Box::new(begun.unwrap()))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_histories_and_revisions_are_the_same_in_a_copy_of_any_kind() {
    for from in homes() {
        let first = from.open(FOREVER);
        make(&first.ledger).await;
        for kind in KINDS {
            let home = empty(kind);
            let to = place(&home, 7).await;
            let copied = copy(&first.ledger, to, Duration::ZERO, &mut |_| {}).await.unwrap();
            assert_eq!((copied.pairs, copied.late, copied.missing_statements), (PAIRS, 0, 0));
            let second = home.open(FOREVER);
            let (old, new) =
                (first.ledger.identity().await.unwrap(), second.ledger.identity().await.unwrap());
            assert!(old.secret.is_same_as(&new.secret) && old.epoch != new.epoch);
            let end = second.ledger.read_after(Revision::MAX).await.unwrap().end;
            assert_eq!(end.revision, copied.revision);
            for number in 0..PAIRS {
                let key = key(number);
                let (ours, theirs) =
                    (read(&first.ledger, key).await, read(&second.ledger, key).await);
                assert_eq!(ours.record, theirs.record, "{from:?}", from = from.kind);
                assert_eq!(ours.version.revision, theirs.version.revision);
                let (ours, theirs) = (
                    first.ledger.history(key).await.unwrap(),
                    second.ledger.history(key).await.unwrap(),
                );
                assert!(ours.intact && theirs.intact);
                assert_eq!(ours.entries, theirs.entries);
                assert!(bucket_of(key, new.buckets) < new.buckets);
            }
            // It goes on like any other.
            let revision = append(&second.ledger, key(1), opt_out("later")).await;
            assert_eq!(revision, copied.revision + 1);
            let page = second.ledger.read_after(copied.revision).await.unwrap();
            assert!(matches!(page.tail, Tail::Entries(_) | Tail::Trimmed), "{page:?}");
            let report = second.ledger.verify(Depth::Histories, &mut |_| {}).await.unwrap();
            assert_eq!(report.findings, []);
            assert_eq!(report.pairs, PAIRS);
            second.close().await;
        }
        first.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recorded_while_a_ledger_is_copied_is_in_the_copy() {
    let from = homes().find(|home| matches!(home.kind, Kind::Redis)).unwrap();
    let first = from.open(FOREVER);
    make(&first.ledger).await;
    let home = empty(Kind::Redis);
    let to = place(&home, 5).await;
    let ledger = first.ledger.clone();
    let writer = tokio::spawn(async move {
        for number in 0..PAIRS * 2 {
            append(&ledger, key(number % (PAIRS + 9)), opt_out("meanwhile")).await;
        }
    });
    let still = Duration::from_millis(1_500);
    let copied = copy(&first.ledger, to, still, &mut |_| {}).await.unwrap();
    writer.await.unwrap();
    let second = home.open(FOREVER);
    let end = first.ledger.read_after(Revision::MAX).await.unwrap().end;
    assert_eq!((copied.late, copied.revision), (0, end.revision));
    for number in 0..PAIRS + 9 {
        let key = key(number);
        assert_eq!(read(&first.ledger, key).await.record, read(&second.ledger, key).await.record);
    }
    let report = second.ledger.verify(Depth::Histories, &mut |_| {}).await.unwrap();
    assert_eq!((report.findings, report.pairs), (Vec::new(), PAIRS + 9));
    first.close().await;
    second.close().await;
}
