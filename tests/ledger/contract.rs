//! Appending: compare-and-set, revisions, histories, many at once, and the end.

use std::collections::BTreeSet;
use std::sync::Arc;

use consentd_core::id::{BusinessId, UserId};
use consentd_ledger::{Cursor, MAX_APPEND, Tail, Version};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::*;

#[tokio::test]
async fn a_change_is_made_only_to_the_record_that_it_started_from() {
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        assert_eq!(read(ledger, key(1)).await, nothing());
        let first = change(key(1), &nothing(), [opt_in("Yes")]);
        let appended = ledger.append(vec![first.clone()]).await.unwrap();
        assert!(matches!(appended[..], [Appended::Committed(1)]), "{appended:?}");
        let now = read(ledger, key(1)).await;
        assert_eq!((now.version.revision, &now.record), (1, &record_after(&first, &now)));
        assert_eq!(now.record.history_len, 1);

        // From nothing, though there is something; from an older record; from one to come; and
        // from something, though there is nothing.
        let end = ledger.read_after(0).await.unwrap().end;
        for (key, base, known) in
            [(key(1), 0, now.clone()), (key(1), 2, now.clone()), (key(2), 1, nothing())]
        {
            let mut late = change(key, &nothing(), [opt_out("late")]);
            late.base = Version { revision: base, ..now.version };
            let appended = ledger.append(vec![late]).await.unwrap();
            let [Appended::Conflict(Ok(current))] = &appended[..] else {
                panic!("from {base}: {appended:?}")
            };
            assert_eq!(*current, known, "a conflict says what came first");
        }
        assert_eq!(ledger.read_after(0).await.unwrap().end, end, "conflicts leave no trace");

        let next = change(key(1), &now, [opt_out("letter")]);
        let appended = ledger.append(vec![next.clone()]).await.unwrap();
        assert!(matches!(appended[..], [Appended::Committed(2)]), "{appended:?}");
        let then = read(ledger, key(1)).await;
        assert_eq!((then.version.revision, &then.record), (2, &record_after(&next, &then)));
        open.close().await;
    }
}

#[tokio::test]
async fn of_several_changes_only_those_in_conflict_are_left_out() {
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        append(ledger, key(2), opt_in("Yes")).await;
        let known = read(ledger, key(2)).await;
        let changes = [1, 2, 3].map(|n| change(key(n), &nothing(), [opt_out("letter")]));
        let appended = ledger.append(changes.to_vec()).await.unwrap();
        let [Appended::Committed(2), Appended::Conflict(Ok(current)), Appended::Committed(3)] =
            &appended[..]
        else {
            panic!("{appended:?}")
        };
        assert_eq!(*current, known);
        let read = ledger.read(vec![key(3), key(2), key(1), key(4)]).await.unwrap().pairs;
        let revisions: Vec<_> =
            read.into_iter().map(|pair| pair.unwrap().version.revision).collect();
        assert_eq!(revisions, [3, 1, 2, 0], "in the order asked for");
        assert!(ledger.append(Vec::new()).await.unwrap().is_empty());
        open.close().await;
    }
}

#[tokio::test]
async fn a_whole_append_is_dense_in_the_order_given() {
    for home in homes() {
        let open = home.open(FOREVER);
        let pairs = u64::try_from(MAX_APPEND).unwrap();
        let changes = (0..pairs).map(|n| change(key(n), &nothing(), [inbound("wamid")]));
        let appended = open.ledger.append(changes.collect()).await.unwrap();
        let in_order = |(outcome, next): (&Appended, Revision)| matches!(outcome, Appended::Committed(revision) if *revision == next);
        assert_eq!(appended.len(), MAX_APPEND);
        assert!(appended.iter().zip(1..).all(in_order));
        open.close().await;
    }
}

#[tokio::test]
async fn histories_keep_their_order_and_their_words() {
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        let long = "Ja zu WhatsApp von Acme 🙏 ".repeat(600);
        let first = [opt_in("Yes to WhatsApp"), inbound("wamid.1"), opt_out("wamid.1")];
        let second = [opt_in(&long), opt_in("Yes to WhatsApp"), opt_in("")];
        let mut expected = Vec::new();
        for (happened, revision) in [first, second].into_iter().zip(1..) {
            let change = change(key(1), &read(ledger, key(1)).await, happened);
            expected.extend(update(&change).history.iter().map(|entry| (revision, entry.clone())));
            let appended = ledger.append(vec![change]).await.unwrap();
            assert!(
                matches!(appended[..], [Appended::Committed(at)] if at == revision),
                "{appended:?}"
            );
        }
        // Another pair shares a statement, and is between no others' entries.
        append(ledger, key(2), opt_in(&long)).await;
        let history = ledger.history(key(1)).await.unwrap();
        assert!(history.intact);
        let numbers: Vec<_> = history.entries.iter().map(|(at, _)| at.number).collect();
        assert_eq!(numbers, (1..=history.record.history_len).collect::<Vec<_>>());
        let entries = history.entries.into_iter().map(|(at, entry)| (at.revision, entry));
        assert_eq!(entries.collect::<Vec<_>>(), expected);
        let other = ledger.history(key(2)).await.unwrap();
        assert!(
            other.intact && other.entries.len() == 1 && other.entries[0].1.what == opt_in(&long)
        );
        let unknown = ledger.history(key(3)).await.unwrap();
        assert!(unknown.intact && unknown.entries.is_empty());
        open.close().await;
    }
}

#[tokio::test]
async fn sixteen_at_once_lose_nothing() {
    const TASKS: u64 = 16;
    const EACH: u64 = 20;
    for home in homes() {
        let open = home.open(FOREVER);
        let start = Arc::new(Barrier::new(16));
        let mut tasks = JoinSet::new();
        for task in 1..=TASKS {
            let (ledger, start) = (open.ledger.clone(), Arc::clone(&start));
            tasks.spawn(async move {
                start.wait().await;
                let mut at = Vec::new();
                for number in 0..EACH {
                    let name = format!("{task}-{number}");
                    at.push((key(0), append(&ledger, key(0), inbound(&name)).await, name.clone()));
                    at.push((key(task), append(&ledger, key(task), inbound(&name)).await, name));
                }
                at
            });
        }
        let all: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
        let revisions: BTreeSet<_> = all.iter().map(|(_, revision, _)| *revision).collect();
        assert!(revisions.iter().copied().eq(1..=2 * TASKS * EACH), "dense, and each given once");
        for pair in 0..=TASKS {
            let history = open.ledger.history(key(pair)).await.unwrap();
            assert!(history.intact);
            let mut mine: Vec<_> = all
                .iter()
                .filter(|(of, ..)| *of == key(pair))
                .map(|(_, revision, name)| (*revision, inbound(name)))
                .collect();
            mine.sort_by_key(|(revision, _)| *revision);
            let there = history.entries.into_iter().map(|(at, entry)| (at.revision, entry.what));
            assert_eq!(there.collect::<Vec<_>>(), mine);
        }
        open.close().await;
    }
}

#[tokio::test]
async fn what_it_is_survives_a_restart_and_is_no_other_ledgers() {
    let mut digests = BTreeSet::new();
    for home in homes().chain(homes()) {
        let open = home.open(FOREVER);
        append(&open.ledger, key(1), opt_in("Yes to WhatsApp")).await;
        append(&open.ledger, key(1), opt_out("letter")).await;
        let identity = async |ledger: &Ledger| {
            let identity = ledger.identity().await.unwrap();
            let secret = &identity.secret;
            let pair = (UserId::parse("15550123456").unwrap(), BusinessId::parse("a").unwrap());
            (secret.key(&pair.0, pair.1), secret.digest(b"request"), ledger.describe().to_owned())
        };
        let before = identity(&open.ledger).await;
        let page = open.ledger.read_after(0).await.unwrap();
        let stored = read(&open.ledger, key(1)).await;
        let history = open.ledger.history(key(1)).await.unwrap().entries;
        open.close().await;

        let open = home.open(FOREVER);
        assert_eq!(identity(&open.ledger).await, before);
        let again = open.ledger.read_after(0).await.unwrap();
        assert_eq!((again.end, again.tail), (page.end, page.tail));
        assert_eq!(read(&open.ledger, key(1)).await, stored);
        assert_eq!(open.ledger.history(key(1)).await.unwrap().entries, history);
        assert_eq!(append(&open.ledger, key(2), opt_out("letter")).await, 3);
        open.close().await;
        assert!(digests.insert((page.end.epoch, before.1)), "epochs and secrets are drawn");
    }
    assert_eq!(digests.len(), 2 * KINDS.len());
}

#[tokio::test]
async fn a_closed_ledger_says_so() {
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = open.ledger.clone();
        append(&ledger, key(1), opt_out("letter")).await;
        open.close().await;
        let closed = |error: LedgerError| matches!(error, LedgerError::Closed);
        let change = change(key(1), &nothing(), [opt_out("late")]);
        assert!(ledger.append(vec![change]).await.is_err_and(closed));
        assert!(ledger.read(vec![key(1)]).await.is_err_and(closed));
        assert!(ledger.history(key(1)).await.is_err_and(closed));
        assert!(ledger.bucket(0).await.is_err_and(closed));
        assert!(ledger.read_after(0).await.is_err_and(closed));
        ledger.close().await;
    }
}

#[tokio::test]
async fn appends_while_it_closes_are_durable_or_told_that_it_is_closed() {
    const TASKS: u64 = 64;
    for home in homes() {
        let open = home.open(FOREVER);
        let (half, mut seen) = tokio::sync::mpsc::channel(1);
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let (ledger, half) = (open.ledger.clone(), half.clone());
            tasks.spawn(async move {
                let mut known = nothing();
                for number in 0.. {
                    let change = change(key(task), &known, [inbound(&format!("{number}"))]);
                    let mut record = update(&change).record.clone();
                    match ledger.append(vec![change]).await {
                        Ok(appended) => {
                            let [Appended::Committed(revision)] = appended[..] else {
                                panic!("nobody else writes this pair: {appended:?}")
                            };
                            // Where the chain and the length are is the ledger's to say.
                            record.history_len = number + 1;
                            // The mark is the ledger's to say too.
                            let version = read_or_closed(&ledger, key(task)).await;
                            known = StoredRecord { version: version.unwrap_or_default(), record };
                            known.version.revision = revision;
                        }
                        Err(LedgerError::Closed) => break,
                        Err(error) => panic!("{error}"),
                    }
                    let _ = half.try_send(number);
                }
                (task, known)
            });
        }
        while seen.recv().await.is_some_and(|number| number < 5) {}
        open.close().await;
        let open = home.open(FOREVER);
        let mut acknowledged = 0;
        for (task, known) in tasks.join_all().await {
            let there = read(&open.ledger, key(task)).await;
            assert_eq!(
                there.version.revision, known.version.revision,
                "what was told is what is there"
            );
            assert_eq!(there.record.history_len, known.record.history_len);
            acknowledged += known.record.history_len;
        }
        let end = open.ledger.read_after(0).await.unwrap();
        assert_eq!(end.end.revision, acknowledged, "and no more than that");
        assert!(matches!(end.tail, Tail::Entries(entries) if !entries.is_empty()));
        open.close().await;
    }
}

/// Which record a pair has; nothing once the ledger is closed.
async fn read_or_closed(ledger: &Ledger, key: Key) -> Option<Version> {
    let read = ledger.read(vec![key]).await;
    read.ok().map(|mut read| read.pairs.remove(0).unwrap().version)
}

#[tokio::test]
async fn a_change_without_an_update_only_makes_sure_of_the_record() {
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        append(ledger, key(1), opt_out("letter")).await;
        let known = read(ledger, key(1)).await;
        let end = ledger.read_after(0).await.unwrap().end;
        let only = |key, base| Change { key, base, update: None };
        let sure = vec![only(key(1), known.version), only(key(2), Version::default())];
        let appended = ledger.append(sure).await.unwrap();
        assert!(
            matches!(appended[..], [Appended::Committed(1), Appended::Committed(0)]),
            "{appended:?}"
        );
        let other = Version { revision: 2, ..known.version };
        let wrong = vec![only(key(1), Version::default()), only(key(1), other)];
        for outcome in ledger.append(wrong).await.unwrap() {
            assert!(
                matches!(&outcome, Appended::Conflict(Ok(now)) if *now == known),
                "{outcome:?}"
            );
        }
        assert_eq!(ledger.read_after(0).await.unwrap().end, end, "no revision is given for it");
        assert_eq!(read(ledger, key(1)).await, known);
        open.close().await;
    }
}

#[tokio::test]
async fn all_that_was_recorded_is_listed_once_each_pairs_in_its_order() {
    const PAIRS: u64 = 40;
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        for round in 0..3 {
            for pair in 0..PAIRS {
                append(ledger, key(pair), inbound(&format!("{round}"))).await;
            }
        }
        let (mut from, mut all, mut pages) = (Cursor::default(), Vec::new(), 0);
        loop {
            let page = ledger.events_after(from).await.unwrap();
            all.extend(page.entries);
            let Some(next) = page.next else { break };
            pages += 1;
            assert!(pages < 100, "it ends");
            from = next;
        }
        assert_eq!(all.len(), usize::try_from(3 * PAIRS).unwrap());
        for pair in 0..PAIRS {
            let history = ledger.history(key(pair)).await.unwrap().entries;
            let user = format!("US.{:?}", key(pair));
            let theirs: Vec<_> =
                all.iter().filter(|(_, entry)| entry.user_id == user).cloned().collect();
            assert_eq!(theirs, history);
        }
        open.close().await;
    }
}
