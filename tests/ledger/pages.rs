//! Reading: the log page by page, all pairs bucket by bucket, and what is announced.

use std::collections::BTreeMap;

use consentd_ledger::{LogHead, MAX_APPEND, MAX_PAGE, Notification, Position, Tail, bucket_of};

use super::*;

/// Appends one event of each of so many pairs.
async fn append_pairs(ledger: &Ledger, numbers: std::ops::Range<u64>) {
    let numbers: Vec<u64> = numbers.collect();
    for some in numbers.chunks(MAX_APPEND) {
        let changes = some.iter().map(|n| change(key(*n), &nothing(), [inbound("wamid")]));
        for appended in ledger.append(changes.collect()).await.unwrap() {
            assert!(matches!(appended, Appended::Committed(_)), "{appended:?}");
        }
    }
}

fn entries(tail: Tail) -> Vec<consentd_ledger::LogEntry> {
    match tail {
        Tail::Entries(entries) => entries,
        Tail::Trimmed => panic!("nothing was trimmed"),
    }
}

#[tokio::test]
async fn the_log_tells_each_change_in_order_and_each_head_continues_the_last() {
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        let mut expected = Vec::new();
        for (pair, what) in
            [(1, opt_in("Yes to WhatsApp")), (2, inbound("wamid.1")), (1, opt_out("letter"))]
        {
            let change = change(key(pair), &read(ledger, key(pair)).await, [what]);
            ledger.append(vec![change.clone()]).await.unwrap();
            expected.push((change.clone(), record_after(&change, &read(ledger, key(pair)).await)));
        }
        let page = ledger.read_after(0).await.unwrap();
        let mut head = LogHead::default();
        let logged = entries(page.tail);
        assert_eq!(logged.len(), 3);
        for ((entry, (change, record)), revision) in logged.iter().zip(&expected).zip(1..) {
            assert_eq!((entry.revision, entry.previous), (revision, head));
            assert_ne!(entry.head, head);
            head = entry.head;
            let body = entry.body.as_ref().unwrap();
            let update = update(change);
            assert_eq!((body.key, body.record_time), (change.key, update.record_time));
            assert_eq!((&body.user_id, &body.business_id), (&update.user_id, &update.business_id));
            assert_eq!(body.record.as_ref(), Ok(record));
        }
        assert_eq!((page.end.revision, page.end.head), (3, head));
        open.close().await;
    }
}

#[tokio::test]
async fn a_head_stands_for_all_that_came_before_it() {
    for (home, other) in homes().zip(homes()) {
        let (one, other) = (home.open(FOREVER), other.open(FOREVER));
        let mut heads = Vec::new();
        for (open, first) in [(&one, "a letter"), (&other, "a call")] {
            append(&open.ledger, key(1), opt_out(first)).await;
            append(&open.ledger, key(2), opt_out("the same in both")).await;
            heads.push(open.ledger.read_after(2).await.unwrap().end.head);
        }
        assert_ne!(heads[0], heads[1], "a fork shows in every head behind it");
        one.close().await;
        other.close().await;
    }
}

#[tokio::test]
async fn a_long_log_comes_in_pages_without_gaps() {
    for home in homes() {
        let open = home.open(FOREVER);
        let pairs = u64::try_from(MAX_PAGE).unwrap() + 100;
        append_pairs(&open.ledger, 0..pairs).await;
        let end = open.ledger.read_after(0).await.unwrap().end;
        assert_eq!(end.revision, pairs);
        let (mut last, mut head) = (0, LogHead::default());
        for length in [MAX_PAGE, 100, 0] {
            let page = open.ledger.read_after(last).await.unwrap();
            assert_eq!(page.end, end, "each page says where the log ends");
            let page = entries(page.tail);
            assert_eq!(page.len(), length);
            for entry in page {
                assert_eq!((entry.revision, entry.previous), (last + 1, head));
                (last, head) = (entry.revision, entry.head);
            }
        }
        assert_eq!((last, head), (end.revision, end.head));
        open.close().await;
    }
}

#[tokio::test]
async fn behind_the_end_is_nothing_and_behind_that_nothing_is_promised() {
    for home in homes() {
        let open = home.open(FOREVER);
        let nowhere = open.ledger.read_after(0).await.unwrap();
        assert_eq!((nowhere.end.revision, nowhere.end.head), (0, LogHead::default()));
        assert_eq!(nowhere.tail, Tail::Entries(Vec::new()));
        append_pairs(&open.ledger, 0..3).await;
        assert_eq!(open.ledger.read_after(3).await.unwrap().tail, Tail::Entries(Vec::new()));
        for future in [4, 1_000, u64::MAX] {
            // A reader that is ahead of the ledger has seen a fork: the end tells it so.
            let page = open.ledger.read_after(future).await.unwrap();
            assert_eq!(page.end.revision, 3);
            assert!(matches!(&page.tail, Tail::Trimmed | Tail::Entries(_)));
            assert!(!matches!(page.tail, Tail::Entries(entries) if !entries.is_empty()));
        }
        open.close().await;
    }
}

#[tokio::test]
async fn a_reader_whom_the_log_left_behind_is_told() {
    for home in homes() {
        let open = home.open(Retention { log_entries: 5, ..FOREVER });
        let ledger = &open.ledger;
        for number in 1..=20 {
            append(ledger, key(number), opt_out("letter")).await;
        }
        // How much more than it must a ledger keeps is its own affair.
        assert_eq!(ledger.read_after(0).await.unwrap().tail, Tail::Trimmed);
        for (after, left) in [(15, 5), (19, 1), (20, 0)] {
            assert_eq!(entries(ledger.read_after(after).await.unwrap().tail).len(), left);
        }
        assert_eq!(ledger.read_after(0).await.unwrap().end.revision, 20);
        open.close().await;
    }
}

#[tokio::test]
async fn buckets_hold_every_pair_once_as_it_was_at_their_label() {
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        let empty = ledger.bucket(0).await.unwrap();
        let reader = ledger.bucket_reader();
        assert!(empty.pairs.is_empty() && empty.label.revision == 0);
        let pairs = u64::try_from(MAX_PAGE).unwrap() + 100;
        append_pairs(ledger, 0..pairs).await;
        let mut ends: Vec<Position> = vec![ledger.read_after(0).await.unwrap().end];
        let mut seen = BTreeMap::new();
        let buckets = ledger.identity().await.unwrap().buckets;
        for number in 0..buckets {
            let bucket = ledger.bucket(number).await.unwrap();
            assert_eq!(bucket.number, number);
            let mut again = reader.bucket(number).await.unwrap();
            again.pairs.sort_by_key(|(key, _)| *key);
            let mut pairs = bucket.pairs.clone();
            pairs.sort_by_key(|(key, _)| *key);
            assert_eq!((again.number, again.label, again.pairs), (number, bucket.label, pairs));
            assert_eq!(Some(&bucket.label), ends.last(), "a label is where the log ended");
            for (key, record) in bucket.pairs {
                assert_eq!(bucket_of(key, buckets), number);
                assert_eq!(
                    seen.insert(key, (record.unwrap(), bucket.label)),
                    None,
                    "{key:?} twice"
                );
            }
            // Meanwhile a pair that was read already changes: later labels say so.
            if let (true, Some(changed)) = (number % 64 == 1, seen.keys().next().copied()) {
                append(ledger, changed, opt_out("letter")).await;
                ends.push(ledger.read_after(0).await.unwrap().end);
            }
        }
        assert!(
            seen.keys().copied().eq((0..pairs).map(key).collect::<std::collections::BTreeSet<_>>())
        );
        assert!(ends.len() > 1, "it changed meanwhile");
        let page = entries(ledger.read_after(0).await.unwrap().tail);
        for entry in page {
            let body = entry.body.unwrap();
            let (record, label) = &seen[&body.key];
            if entry.revision <= label.revision {
                assert_eq!(body.record.as_ref(), Ok(record));
            }
        }
        open.close().await;
    }
}

#[tokio::test]
async fn announcements_tell_what_was_appended_in_order() {
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        append(ledger, key(9), opt_in("before anybody listens")).await;
        hears(ledger).await;
        let before = ledger.read_after(0).await.unwrap().end.revision;
        let mut listeners = [ledger.listen(), ledger.listen()];
        append(ledger, key(1), opt_in("Yes to WhatsApp")).await;
        // In conflict, in part: what was not appended is not announced.
        let changes = [1, 2, 3].map(|n| change(key(n), &nothing(), [opt_out("letter")]));
        ledger.append(changes.to_vec()).await.unwrap();
        ledger.append(vec![change(key(1), &nothing(), [opt_out("late")])]).await.unwrap();
        append(ledger, key(1), opt_out("letter")).await;
        let page = ledger.read_after(before).await.unwrap();
        let logged = entries(page.tail);
        assert_eq!(logged.len(), 4);
        for listener in &mut listeners {
            let mut heard = Vec::new();
            while heard.len() < logged.len() {
                let next = tokio::time::timeout(PATIENCE, listener.recv()).await;
                let heard_next = next.expect("nothing is lost that few are told").unwrap();
                let Notification::Announcement(announcement) = heard_next else { continue };
                assert_eq!(announcement.epoch, page.end.epoch);
                assert!(!announcement.entries.is_empty());
                heard.extend(announcement.entries.iter().cloned());
            }
            assert_eq!(heard, logged);
            assert!(listener.try_recv().is_err(), "and nothing more");
        }
        open.close().await;
    }
}

/// Waits until what is appended is heard: elsewhere, a subscription takes its time.
async fn hears(ledger: &Ledger) {
    let begun = std::time::Instant::now();
    for number in 10_000.. {
        let mut listener = ledger.listen();
        append(ledger, key(number), inbound("probe")).await;
        let within = Duration::from_millis(100);
        while let Ok(heard) = tokio::time::timeout(within, listener.recv()).await {
            if matches!(heard, Ok(Notification::Announcement(_))) {
                return;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "nothing is heard");
    }
}
