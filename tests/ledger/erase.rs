//! What an erase takes away, what it leaves, and what it must not take.

use std::collections::BTreeSet;

use consentd_core::record::Erased;
use consentd_ledger::{Depth, NewFile, NewLedger, NewRedis, Tail, copy};
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::task::JoinSet;

use super::*;

const TEXTS: TableDefinition<&[u8; 32], &str> = TableDefinition::new("texts");

/// The change that erases a pair which was read as `stored`.
fn erasure(key: Key, stored: &StoredRecord) -> Change {
    let record = stored.record.tombstone(at(5));
    let (user_id, business_id) = (String::new(), String::new());
    let update = Update { user_id, business_id, record, history: Vec::new(), record_time: at(5) };
    Change { key, base: stored.version, update: Some(update) }
}

/// Erases a pair, however often others come first, and leaves the rest to whoever comes.
pub(super) async fn bury(ledger: &Ledger, key: Key) -> Revision {
    loop {
        let change = erasure(key, &read(ledger, key).await);
        match &ledger.append(vec![change]).await.unwrap()[..] {
            [Appended::Committed(revision)] => return *revision,
            [Appended::Conflict(_)] => {}
            other => panic!("one change has one outcome: {other:?}"),
        }
    }
}

/// One that removes what is due all the time.
fn sweeping() -> Options {
    let sweep_interval = Duration::from_millis(5);
    Options { retention: Some(FOREVER), sweep_interval, ..Options::default() }
}

/// All recorded events, page by page.
async fn all_events(ledger: &Ledger) -> Vec<(consentd_ledger::EntryPosition, HistoryEntry)> {
    let (mut next, mut all) = (Some(consentd_ledger::Cursor::default()), Vec::new());
    while let Some(cursor) = next {
        let page = ledger.events_after(cursor).await.unwrap();
        all.extend(page.entries);
        next = page.next;
    }
    all
}

/// The statements of a ledger that is closed, once all that is to be removed is.
async fn statements(home: &Home) -> BTreeSet<String> {
    match home.kind {
        Kind::Embedded => {
            Embedded::compact(&home.path(), FOREVER, CACHE).unwrap();
            let database = redb::Database::open(home.path()).unwrap();
            let texts = database.begin_read().unwrap().open_table(TEXTS).unwrap();
            texts.iter().unwrap().map(|row| row.unwrap().1.value().to_owned()).collect()
        }
        Kind::Redis | Kind::Cluster => {
            let server = home.server.as_ref().unwrap();
            let open = open_redis(server, sweeping());
            // Of the partition that the keys are in.
            let mut client = server.client().await;
            let mut keys = redis::cmd("KEYS");
            let keys: Vec<String> = keys.arg("*:text").query_async(&mut client).await.unwrap();
            let text = keys.iter().max().unwrap().as_str();
            let erased = text.replace(":text", ":erased");
            on_redis::until(server, &["HLEN", &erased], "int(1)").await;
            open.close().await;
            let mut command = redis::cmd("HVALS");
            let values: Vec<String> =
                command.arg(text).query_async(&mut server.client().await).await.unwrap();
            values.into_iter().filter(|text| !text.is_empty()).collect()
        }
    }
}

fn words(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// How many things do not fit in a ledger.
async fn damage(ledger: &Ledger) -> u64 {
    let report = ledger.verify(Depth::Histories, &mut |_| {}).await.unwrap();
    assert!(report.found == 0, "{:?}", report.findings);
    report.history_entries
}

#[tokio::test]
async fn a_tombstone_stays_and_the_history_begins_anew() {
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        for what in [opt_in("Yes, ours"), inbound("wamid.1"), opt_in("Yes, mine"), opt_out("r")] {
            append(ledger, key(1), what).await;
        }
        append(ledger, key(2), opt_in("Yes, ours")).await;
        let before = read(ledger, key(1)).await;
        assert_eq!(bury(ledger, key(1)).await, 6);
        ledger.purge(&[key(1)]).await.unwrap();

        let now = read(ledger, key(1)).await;
        let (history_len, chain) = (4, before.record.chain);
        let time = before.record.state.latest().unwrap().max(at(5));
        assert_eq!(now.record.erased, Some(Box::new(Erased { time, history_len, chain })));
        assert_eq!((now.record.history_len, now.record.chain), (history_len, chain));
        assert_eq!(now.record.state.suppression, Some((time, true)));
        assert!(now.record.is_tombstone() && now.record.state.scopes.is_empty());
        let history = ledger.history(key(1)).await.unwrap();
        assert!(history.intact && history.entries.is_empty(), "{history:?}");
        let all = all_events(ledger).await;
        assert_eq!(all.len(), 1, "the other's is all that is left: {all:?}");
        let Tail::Entries(log) = ledger.read_after(5).await.unwrap().tail else { panic!() };
        let body = log[0].body.as_ref().unwrap();
        assert_eq!((body.user_id.as_str(), body.business_id.as_str()), ("", ""));
        assert_eq!(body.record, Ok(now.record.clone()));

        // What comes later goes on from the chain's head, whatever the ledger went through.
        append(ledger, key(1), inbound("wamid.2")).await;
        append(ledger, key(1), opt_in("Yes, again")).await;
        assert_eq!(damage(ledger).await, 3);
        open.close().await;
        assert_eq!(statements(&home).await, words(&["Yes, ours", "Yes, again"]));
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        assert_eq!(damage(ledger).await, 3);
        let history = ledger.history(key(1)).await.unwrap();
        let happened: Vec<_> =
            history.entries.iter().map(|(_, entry)| entry.what.clone()).collect();
        assert_eq!(happened, [inbound("wamid.2"), opt_in("Yes, again")]);
        assert!(history.intact);
        let numbers: Vec<_> = history.entries.iter().map(|(place, _)| place.number).collect();
        assert_eq!(numbers, [5, 6], "they go on, too");
        let heads = [4, 5, 6, 7].map(|number| history.head_after(number));
        let told = history.entries.iter().map(|(place, _)| Some(place.head)).collect::<Vec<_>>();
        assert_eq!(heads, [None, told[0], told[1], None]);
        assert_eq!(told[1], Some(history.record.chain));
        let all = all_events(ledger).await;
        let user = format!("US.{:?}", key(1));
        let hers: Vec<_> = all.into_iter().filter(|(_, entry)| entry.user_id == user).collect();
        assert_eq!(hers, history.entries);
        let later = read(ledger, key(1)).await;
        assert_eq!((later.record.history_len, &later.record.erased), (6, &now.record.erased));

        // And it can be erased again.
        bury(ledger, key(1)).await;
        bury(ledger, key(2)).await;
        open.close().await;
        assert_eq!(statements(&home).await, words(&[]));
        let open = home.open(FOREVER);
        assert_eq!(damage(&open.ledger).await, 0);
        let last = read(&open.ledger, key(1)).await.record.erased.unwrap();
        assert_eq!((last.history_len, last.chain), (6, later.record.chain));
        open.close().await;
    }
}

#[tokio::test]
async fn an_erase_is_made_only_to_the_record_that_it_started_from() {
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        append(ledger, key(1), opt_in("Yes")).await;
        let late = erasure(key(1), &read(ledger, key(1)).await);
        append(ledger, key(1), opt_out("letter")).await;
        let appended = ledger.append(vec![late]).await.unwrap();
        assert!(matches!(appended[..], [Appended::Conflict(Ok(_))]), "{appended:?}");
        ledger.purge(&[key(1)]).await.unwrap();
        assert_eq!(ledger.history(key(1)).await.unwrap().entries.len(), 2);
        open.close().await;
        assert_eq!(statements(&home).await, words(&["Yes"]));
        let open = home.open(FOREVER);
        assert_eq!(damage(&open.ledger).await, 2);
        open.close().await;
    }
}

#[tokio::test]
async fn words_that_are_somebody_elses_by_then_stay() {
    for home in homes() {
        let open = home.open(FOREVER);
        let ledger = &open.ledger;
        append(ledger, key(1), opt_in("Yes")).await;
        append(ledger, key(1), opt_in("Yes, mine")).await;
        // In one append, which is when it is closest.
        let changes = vec![
            erasure(key(1), &read(ledger, key(1)).await),
            change(key(2), &nothing(), [opt_in("Yes")]),
        ];
        let appended = ledger.append(changes).await.unwrap();
        assert!(
            matches!(appended[..], [Appended::Committed(3), Appended::Committed(4)]),
            "{appended:?}"
        );
        ledger.purge(&[key(1)]).await.unwrap();
        append(ledger, key(3), opt_in("Yes, mine")).await;
        open.close().await;
        assert_eq!(statements(&home).await, words(&["Yes", "Yes, mine"]));
        let open = home.open(FOREVER);
        assert_eq!(damage(&open.ledger).await, 2);
        open.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ones_words_are_lost_to_erases_of_others_at_the_same_time() {
    const PAIRS: u64 = 8;
    const ROUNDS: u64 = 40;
    for home in homes() {
        let open = match &home.server {
            Some(server) => open_redis(server, sweeping()),
            None => home.open(FOREVER),
        };
        let mut tasks = JoinSet::new();
        for pair in 0..PAIRS {
            let ledger = open.ledger.clone();
            tasks.spawn(async move {
                let key = key(pair);
                for round in 0..ROUNDS {
                    append(&ledger, key, opt_in(&format!("Yes {}", (pair + round) % 3))).await;
                    if (pair + round) % 4 == 0 {
                        bury(&ledger, key).await;
                        ledger.purge(&[key]).await.unwrap();
                    }
                    let history = ledger.history(key).await.unwrap();
                    assert!(history.intact, "pair {pair}, round {round}");
                    assert!(history.entries.iter().all(|(_, entry)| match &entry.what {
                        What::OptIn { evidence, .. } => !evidence.statement.is_empty(),
                        _ => false,
                    }));
                }
            });
        }
        tasks.join_all().await;
        damage(&open.ledger).await;
        for pair in 0..PAIRS {
            bury(&open.ledger, key(pair)).await;
        }
        open.close().await;
        assert_eq!(statements(&home).await, words(&[]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_has_what_was_left() {
    for from in homes() {
        let first = from.open(FOREVER);
        for number in 0..6 {
            append(&first.ledger, key(number), opt_in(&format!("Yes {number}"))).await;
            append(&first.ledger, key(number), inbound("wamid")).await;
        }
        for number in 0..3 {
            bury(&first.ledger, key(number)).await;
            append(&first.ledger, key(number), opt_in("Yes 1")).await;
        }
        for kind in KINDS {
            let home = empty(kind);
            let to = match &home.server {
                None => NewLedger::File(Box::new(NewFile::begin(&home.path()).unwrap())),
                Some(server) => {
                    let begun = NewRedis::begin(server.target(), shape(7), false).await;
                    NewLedger::Redis(Box::new(begun.unwrap()))
                }
            };
            let copied = copy(&first.ledger, to, Duration::ZERO, &mut |_| {}).await.unwrap();
            assert_eq!((copied.pairs, copied.missing_statements), (6, 0));
            let second = home.open(FOREVER);
            assert_eq!(damage(&second.ledger).await, 9);
            for number in 0..6 {
                let (old, new) = (
                    read(&first.ledger, key(number)).await,
                    read(&second.ledger, key(number)).await,
                );
                assert_eq!(old.record, new.record);
                let entries = |history: consentd_ledger::History| history.entries;
                assert_eq!(
                    entries(first.ledger.history(key(number)).await.unwrap()),
                    entries(second.ledger.history(key(number)).await.unwrap())
                );
            }
            second.close().await;
            assert_eq!(statements(&home).await.len(), 4);
        }
        first.close().await;
    }
}

/// What a test does while what an erase is about to remove is held back.
async fn while_words_are_being_removed(meanwhile: impl AsyncFnOnce(&Ledger)) -> Home {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    server.create();
    let direct = open_redis(&server, Options { retention: None, ..Options::default() });
    let gone = async || on_redis::until(&server, &["HLEN", "{consent:0}:erased"], "int(1)").await;
    // Redis knows the scripts by then: what is held back is done once it is let go.
    append(&direct.ledger, key(9), opt_in("Yes, once")).await;
    bury(&direct.ledger, key(9)).await;
    let first = open_redis(&server, sweeping());
    gone().await;
    first.close().await;
    append(&direct.ledger, key(1), opt_in("Yes")).await;
    bury(&direct.ledger, key(1)).await;
    let path = folder.path().join("proxy.sock");
    let (holding, mut held) = tokio::sync::mpsc::channel(1);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let passing = tokio::spawn(server::holding(listener, server.socket.clone(), holding));
    // It appends nothing: the first that it says of statements is to remove them.
    let target = consentd_ledger::Target::new(
        &format!("redis+unix://{}", path.display()),
        consentd_ledger::TargetOptions::default(),
    );
    let (ledger, driver) = consentd_ledger::Redis::new(target.unwrap(), sweeping());
    let writer = Writer::Task(tokio::spawn(driver.run(CancellationToken::new())));
    let sweeper = Open { ledger: Ledger::Redis(ledger), writer };
    let go_on = tokio::time::timeout(PATIENCE, held.recv()).await.unwrap().unwrap();
    meanwhile(&direct.ledger).await;
    go_on.send(()).unwrap();
    // Once it has seen to another erase, that is done.
    append(&direct.ledger, key(9), opt_in("Yes, twice")).await;
    bury(&direct.ledger, key(9)).await;
    gone().await;
    sweeper.close().await;
    direct.close().await;
    passing.abort();
    Home { kind: Kind::Redis, folder, server: Some(server) }
}

#[tokio::test]
async fn words_that_somebody_agrees_to_while_they_are_being_removed_stay() {
    let home = while_words_are_being_removed(async |ledger| {
        append(ledger, key(2), opt_in("Yes")).await;
    })
    .await;
    assert_eq!(statements(&home).await, words(&["Yes"]));
    // And where they are doomed anew meanwhile, by one of two who came to refer to them.
    let home = while_words_are_being_removed(async |ledger| {
        append(ledger, key(2), opt_in("Yes")).await;
        append(ledger, key(3), opt_in("Yes")).await;
        bury(ledger, key(3)).await;
        ledger.purge(&[key(3)]).await.unwrap();
    })
    .await;
    assert_eq!(statements(&home).await, words(&["Yes"]));
    let home = while_words_are_being_removed(async |_| {}).await;
    assert_eq!(statements(&home).await, words(&[]));
}

#[tokio::test]
async fn an_erase_that_is_cut_short_is_finished_by_whoever_sweeps() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    server.create();
    let open = open_redis(&server, Options { retention: None, ..Options::default() });
    let ledger = &open.ledger;
    append(ledger, key(1), opt_in("Yes")).await;
    let end = ledger.read_after(0).await.unwrap().end;
    let before = read(ledger, key(1)).await;
    bury(ledger, key(1)).await;
    open.close().await;
    // As it is where the script ends behind the log's entry, and its recorder with it.
    let number = consentd_ledger::bucket_of(key(1), server::BUCKETS);
    let bucket = format!("{{consent:0}}:b:{number}");
    let mut client = server.client().await;
    let value: Vec<u8> = redis::cmd("HGET")
        .arg(&bucket)
        .arg(&key(1).to_bytes()[..])
        .query_async(&mut client)
        .await
        .unwrap();
    let mut pipeline = redis::pipe();
    pipeline.cmd("HSET").arg("{consent:0}:meta").arg("rev").arg(1).arg("head").arg(&end.head[..]);
    pipeline.cmd("HDEL").arg(&bucket).arg(&key(1).to_bytes()[..]);
    pipeline.query_async::<()>(&mut client).await.unwrap();
    assert!(!value.is_empty() && before.record.history_len == 1);
    let home = Home { kind: Kind::Redis, folder, server: Some(server) };
    assert_eq!(statements(&home).await, words(&[]));
    let open = home.open(FOREVER);
    assert!(read(&open.ledger, key(1)).await.record.is_tombstone());
    assert_eq!(damage(&open.ledger).await, 0);
    open.close().await;
    let mut histories: Vec<Vec<u8>> = redis::cmd("HKEYS")
        .arg(format!("{{consent:0}}:h:{number}"))
        .query_async(&mut client)
        .await
        .unwrap();
    histories.retain(|field| field != b".");
    assert_eq!(histories, [key(1).to_bytes()], "nothing but the tombstone is left");
}

/// Appends one thing that happened to a pair that nobody knows yet, recorded now.
async fn append_now(ledger: &Ledger, number: u64) {
    let mut change = change(key(number), &nothing(), [inbound("wamid")]);
    change.update.as_mut().unwrap().record_time = ledger.read(Vec::new()).await.unwrap().clock;
    ledger.append(vec![change]).await.unwrap();
}

#[tokio::test]
async fn what_is_trimmed_from_the_log_before_an_erase_leaves_no_bytes_in_what_stays() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--rdbcompression", "no"]);
    server.create();
    let open = open_redis(&server, Options { retention: None, ..Options::default() });
    let ledger = &open.ledger;
    // Long ago, and from then on somebody every now and then.
    append(ledger, key(1), opt_out("her letter")).await;
    bury(ledger, key(1)).await;
    for number in 2..5 {
        append_now(ledger, number).await;
    }
    let log = async || -> Vec<u8> {
        let mut command = redis::cmd("DUMP");
        command.arg("{consent:0}:log").query_async(&mut server.client().await).await.unwrap()
    };
    let user = format!("US.{:?}", key(1));
    let names_her = |bytes: &[u8]| bytes.windows(user.len()).any(|part| part == user.as_bytes());
    assert!(names_her(&log().await));
    let retention = Some(Retention { log: Duration::from_hours(1), ..FOREVER });
    let sweeper = open_redis(&server, Options { retention, ..sweeping() });
    on_redis::until(&server, &["XLEN", "{consent:0}:log"], "int(3)").await;
    assert!(!names_her(&log().await), "not even in what Redis has yet to free");
    sweeper.close().await;
    open.close().await;
}
