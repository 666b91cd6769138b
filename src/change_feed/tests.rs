//! What subscriptions read and miss, and what the backlog keeps.

use super::*;

fn change(publisher: &mut Publisher, revision: Revision) {
    publisher.publish(revision, format!("u{revision}"), "b".to_owned());
}

/// The revisions that can be read now, or why some cannot.
fn read(subscription: &mut Subscription) -> Result<Vec<Revision>, MissedChanges> {
    let mut all = VecDeque::new();
    loop {
        let before = all.len();
        subscription.read(&mut all)?;
        if all.len() == before {
            return Ok(all.iter().map(|change| change.revision).collect());
        }
    }
}

fn kept(changes: &ChangeFeed) -> (usize, usize) {
    let kept = changes.0.lock();
    let bytes: usize = kept.entries.iter().map(|entry| entry.change.bytes()).sum();
    assert_eq!(kept.bytes, bytes, "the count is that of what is there");
    (kept.entries.len(), bytes)
}

#[test]
fn each_reads_all_since_it_subscribed_once_and_in_order() {
    let (changes, mut publisher) = new();
    let mut early = changes.subscribe(2).unwrap();
    (1..=200).for_each(|revision| change(&mut publisher, revision));
    let mut late = changes.subscribe(2).unwrap();
    (201..=300).for_each(|revision| change(&mut publisher, revision));
    publisher.flush();
    assert_eq!(read(&mut early), Ok((1..=300).collect()));
    // It also reads what was staged when it subscribed, which may be in the table or not.
    let late = read(&mut late).unwrap();
    assert!(late.ends_with(&(201..=300).collect::<Vec<_>>()), "{late:?}");
    assert_eq!(read(&mut early), Ok(vec![]));
    assert_eq!(kept(&changes).0, 0, "all of it was read");
}

#[test]
fn nobody_is_named_where_nobody_watches() {
    let (changes, mut publisher) = new();
    change(&mut publisher, 1);
    assert!(publisher.staged.is_empty());
    let mut watching = changes.subscribe(1).unwrap();
    change(&mut publisher, 2);
    publisher.flush();
    assert_eq!(read(&mut watching), Ok(vec![2]));
    change(&mut publisher, 3);
    publisher.flush();
    assert_eq!(kept(&changes).0, 1, "not read yet");
    change(&mut publisher, 4);
    drop(watching);
    assert_eq!(kept(&changes).0, 0, "and nobody is left who would");
    publisher.flush();
    assert_eq!((kept(&changes).0, publisher.staged.len()), (0, 0));
    let allocated = changes.0.lock().entries.capacity();
    assert_eq!(allocated, 0);
}

#[test]
fn whoever_is_too_slow_is_told_and_goes_on_from_the_end() {
    let (changes, mut publisher) = with_limits(100, usize::MAX);
    let [mut fast, mut slow] = [(); 2].map(|()| changes.subscribe(2).unwrap());
    for revision in 1..=150 {
        change(&mut publisher, revision);
        publisher.flush();
        assert_eq!(read(&mut fast), Ok(vec![revision]), "it is not held up by the other");
        assert!(kept(&changes).0 <= 100);
    }
    assert_eq!(read(&mut slow), Err(MissedChanges { cause: GapCause::Slow, revision: 150 }));
    assert_eq!(kept(&changes).0, 0);
    change(&mut publisher, 151);
    publisher.flush();
    assert_eq!((read(&mut slow), read(&mut fast)), (Ok(vec![151]), Ok(vec![151])));
}

#[test]
fn what_is_kept_is_bounded_in_bytes_too() {
    let (changes, mut publisher) = with_limits(usize::MAX, 10_000);
    let mut slow = changes.subscribe(1).unwrap();
    for revision in 1..=100 {
        publisher.publish(revision, "u".repeat(128), "b".repeat(128));
        publisher.flush();
        assert!(kept(&changes).1 <= 10_000);
    }
    assert!(kept(&changes).0 > 20, "and by no more than that");
    assert_eq!(read(&mut slow), Err(MissedChanges { cause: GapCause::Slow, revision: 100 }));
}

#[test]
fn a_table_that_was_rebuilt_or_mended_is_missed_by_all_who_watched() {
    let (changes, mut publisher) = new();
    publisher.set_revision(1);
    publisher.publish_gap(GapCause::Rebuilt);
    let mut watching = changes.subscribe(2).unwrap();
    assert_eq!(read(&mut watching), Ok(vec![]), "that was before");
    change(&mut publisher, 2);
    publisher.flush();
    // Of another ledger, whose revisions are others.
    publisher.set_revision(1);
    publisher.publish_gap(GapCause::Rebuilt);
    let mut newcomer = changes.subscribe(2).unwrap();
    change(&mut publisher, 2);
    publisher.flush();
    assert_eq!(read(&mut newcomer), Ok(vec![2]));
    assert_eq!(read(&mut watching), Err(MissedChanges { cause: GapCause::Rebuilt, revision: 2 }));
    change(&mut publisher, 3);
    publisher.publish_gap(GapCause::Mended);
    let mended = MissedChanges { cause: GapCause::Mended, revision: 3 };
    assert_eq!((read(&mut watching), read(&mut newcomer)), (Err(mended), Err(mended)));
    assert_eq!((read(&mut watching), read(&mut newcomer)), (Ok(vec![]), Ok(vec![])));
}

#[test]
fn a_change_of_nobody_knows_whom_is_missed() {
    let (changes, mut publisher) = new();
    let mut watching = changes.subscribe(1).unwrap();
    change(&mut publisher, 1);
    publisher.publish(2, String::new(), String::new());
    change(&mut publisher, 3);
    publisher.flush();
    let missed = read(&mut watching).unwrap_err();
    assert_eq!(missed, MissedChanges { cause: GapCause::Mended, revision: 3 });
}

#[test]
fn so_many_may_watch_and_a_place_is_free_again() {
    let (changes, _publisher) = new();
    assert!(changes.subscribe(0).is_err());
    let first = changes.subscribe(2).unwrap();
    let _second = changes.subscribe(2).unwrap();
    assert!(changes.subscribe(2).is_err());
    drop(first);
    assert!(changes.subscribe(2).is_ok());
}

#[tokio::test]
async fn news_come_once_and_end_with_the_publisher() {
    let (changes, mut publisher) = new();
    let mut watching = changes.subscribe(1).unwrap();
    change(&mut publisher, 1);
    publisher.flush();
    watching.wait_for_changes().await.unwrap();
    assert_eq!(read(&mut watching), Ok(vec![1]));
    let waiting = tokio::spawn(async move {
        watching.wait_for_changes().await.unwrap();
        let missed = read(&mut watching).unwrap_err();
        (missed.cause, watching.wait_for_changes().await.is_err())
    });
    publisher.publish_gap(GapCause::Mended);
    drop(publisher);
    let within = tokio::time::timeout(std::time::Duration::from_secs(10), waiting).await;
    assert_eq!(within.unwrap().unwrap(), (GapCause::Mended, true));
}

/// A publisher runs concurrently with subscriptions that come and go. A subscription that reads the
/// table's revision afterwards reads every change behind that revision.
#[test]
fn nothing_falls_between_a_subscription_and_a_look_at_the_table() {
    use std::sync::atomic::{AtomicBool, AtomicU64};
    const LAST: Revision = 200_000;
    let (changes, mut publisher) = new();
    let (table, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for revision in 1..=LAST {
                table.store(revision, Ordering::Release);
                change(&mut publisher, revision);
                if revision % 3 == 0 {
                    publisher.flush();
                }
            }
            publisher.flush();
            over.store(true, Ordering::Release);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    let mut watching = changes.subscribe(2).unwrap();
                    let mut at = table.load(Ordering::Acquire);
                    for _ in 0..20 {
                        match read(&mut watching) {
                            Ok(revisions) => {
                                for revision in revisions {
                                    assert!(revision <= at + 1, "{revision} follows {at}");
                                    at = at.max(revision);
                                }
                            }
                            Err(missed) => at = missed.revision,
                        }
                    }
                }
            });
        }
    });
}
