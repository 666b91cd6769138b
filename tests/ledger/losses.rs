//! A ledger that has lost keys, by `DEL` or by eviction, is never taken for an empty one.

use consentd::recorder::Refusal;
use consentd_core::claims::Claims;
use consentd_ledger::{Cursor, RepairMode, UnreadableRecord};

use super::*;

fn bucket_of(number: u64) -> u32 {
    consentd_ledger::bucket_of(key(number), BUCKETS)
}

fn bucket_key(number: u64) -> String {
    format!("{{consent:0}}:b:{}", bucket_of(number))
}

fn history_key(number: u64) -> String {
    format!("{{consent:0}}:h:{}", bucket_of(number))
}

/// How often a test polls that waits for what only a poll finds.
const POLL_EVERY: Duration = Duration::from_millis(50);

const LOG: &str = "{consent:0}:log";
const TEXT: &str = "{consent:0}:text";
const FENCE: &str = "{consent:0}:fence";
const META: &str = "{consent:0}:meta";

/// Two pairs that lie in different buckets.
fn two_apart() -> (u64, u64) {
    let other = (2..1_000).find(|number| bucket_of(*number) != bucket_of(1)).unwrap();
    (1, other)
}

fn as_redis(ledger: &Ledger) -> &Redis {
    let Ledger::Redis(ledger) = ledger else { unreachable!() };
    ledger
}

fn lost(error: &LedgerError) -> String {
    let Some(RedisRejection::LostKey { key }) = RedisRejection::of(error) else {
        panic!("{error:?}")
    };
    assert!(error.to_string().contains("consentd ledger repair"), "{error}");
    key.to_string()
}

async fn exists(server: &Server, key: &str) -> bool {
    say(server, &["EXISTS", key]).await.unwrap() == redis::Value::Int(1)
}

async fn repair(open: &Open, mending: RepairMode) -> consentd_ledger::Repaired {
    as_redis(&open.ledger).repair(mending, false, &mut |_| {}).await.unwrap()
}

#[tokio::test]
async fn lost_bucket_is_neither_read_nor_written_nor_made_anew() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    let ledger = &open.ledger;
    let (one, two) = two_apart();
    append(ledger, key(one), opt_in("Yes")).await;
    append(ledger, key(one), opt_out("letter")).await;
    append(ledger, key(two), opt_in("Yes")).await;
    let before = read(ledger, key(two)).await;
    say(&server, &["DEL", &bucket_key(one)]).await.unwrap();

    // The others of the same call are read and written.
    let pairs = ledger.read(vec![key(one), key(two)]).await.unwrap().pairs;
    let bucket = bucket_of(one);
    assert_eq!(pairs[0], Err(UnreadableRecord::Lost { bucket }));
    assert_eq!(pairs[1], Ok(before.clone()));
    let mine = change(key(one), &nothing(), [opt_in("Yes")]);
    let others = change(key(two), &before, [opt_out("letter")]);
    let appended = ledger.append(vec![mine.clone(), others]).await.unwrap();
    let [Appended::Failed(error), Appended::Committed(4)] = &appended[..] else {
        panic!("{appended:?}")
    };
    assert_eq!(lost(error), bucket_key(one));
    let sure = Change { key: key(one), base: nothing().version, update: None };
    assert_eq!(lost(&ledger.append(vec![sure]).await.unwrap_err()), bucket_key(one));
    assert!(!exists(&server, &bucket_key(one)).await, "it is not made anew");

    assert_eq!(lost(&ledger.bucket(bucket).await.unwrap_err()), bucket_key(one));
    assert_eq!(lost(&ledger.history(key(one)).await.unwrap_err()), bucket_key(one));
    assert_eq!(lost(&ledger.events_after(Cursor::default()).await.unwrap_err()), bucket_key(one));
    let standing = ledger.durability();
    assert_eq!(standing.lost_keys, 1);
    assert!(standing.warnings.iter().any(|warning| warning.contains(&bucket_key(one))));

    // Nor is it whole because somebody wrote into it.
    say(&server, &["HSET", &bucket_key(one), "x", "y"]).await.unwrap();
    assert_eq!(lost(&ledger.append(vec![mine]).await.unwrap_err()), bucket_key(one));
    assert_eq!(lost(&ledger.bucket(bucket).await.unwrap_err()), bucket_key(one));
    open.close().await;
}

#[tokio::test]
async fn repair_of_a_lost_bucket_brings_back_what_log_and_histories_tell() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    let ledger = &open.ledger;
    for number in 1..=20 {
        append(ledger, key(number), opt_in("Yes")).await;
    }
    append(ledger, key(1), opt_out("letter")).await;
    super::super::erase::bury(ledger, key(2)).await;
    ledger.purge(&[key(2)]).await.unwrap();
    let denied = read(ledger, key(1)).await.record.state;
    let erased = read(ledger, key(2)).await.record;
    // Of the first, the log still tells; of the second, nothing but the histories.
    for forgets in [false, true] {
        if forgets {
            say(&server, &["XTRIM", LOG, "MAXLEN", "0"]).await.unwrap();
        }
        for number in 0..BUCKETS {
            say(&server, &["DEL", &format!("{{consent:0}}:b:{number}")]).await.unwrap();
        }
        let mended = repair(&open, RepairMode::All).await;
        assert_eq!(mended.left.found, 0, "{:?}", mended.left.findings);
        for number in 0..BUCKETS {
            ledger.bucket(number).await.unwrap();
        }
        let mut mended = read(ledger, key(1)).await.record.state;
        // What is rebuilt from the history alone takes more moments for clamped, and more times for
        // claimed ahead of the ledger's clock, which only denies.
        mended.clamped.clear();
        mended.claims = Claims::default();
        assert_eq!(mended, denied);
        let mut there = read(ledger, key(2)).await.record;
        there.state.clamped.clear();
        there.state.claims = Claims::default();
        assert_eq!((&there.state, there.erased), (&erased.state, erased.erased.clone()));
        for number in 3..=20 {
            assert_eq!(read(ledger, key(number)).await.record.history_len, 1, "{number}");
        }
        // A pair that has no record, of a bucket that is back, is nobody that was lost.
        append(ledger, key(if forgets { 101 } else { 100 }), opt_in("Yes")).await;
    }
    open.close().await;
}

#[tokio::test]
async fn repair_leaves_a_bucket_whose_histories_are_lost_too_unless_the_loss_is_accepted() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    let ledger = &open.ledger;
    append(ledger, key(1), opt_in("Yes")).await;
    append(ledger, key(1), opt_out("letter")).await;
    say(&server, &["XTRIM", LOG, "MAXLEN", "0"]).await.unwrap();
    say(&server, &["DEL", &bucket_key(1), &history_key(1)]).await.unwrap();
    for _ in 0..2 {
        let mended = repair(&open, RepairMode::All).await;
        let left: Vec<_> = mended.left.findings.iter().map(ToString::to_string).collect();
        assert!(left.iter().any(|left| left.contains(&bucket_key(1))), "{left:?}");
        let opting_in = change(key(1), &nothing(), [opt_in("Yes")]);
        let error = ledger.append(vec![opting_in]).await.unwrap_err();
        assert_eq!(lost(&error), bucket_key(1));
    }
    assert_eq!(repair(&open, RepairMode::AcceptingLoss).await.left.found, 0);
    assert_eq!(read(ledger, key(1)).await, nothing());
    append(ledger, key(1), opt_out("letter")).await;
    open.close().await;
}

#[tokio::test]
async fn lost_histories_are_told_where_they_are_read_and_not_made_anew() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    let ledger = &open.ledger;
    append(ledger, key(1), opt_in("Yes")).await;
    let known = read(ledger, key(1)).await;
    say(&server, &["DEL", &history_key(1)]).await.unwrap();
    assert_eq!(lost(&ledger.history(key(1)).await.unwrap_err()), history_key(1));
    let stop = change(key(1), &known, [opt_out("letter")]);
    let error = ledger.append(vec![stop.clone()]).await.unwrap_err();
    assert_eq!(lost(&error), history_key(1));
    assert!(!exists(&server, &history_key(1)).await);
    let mended = repair(&open, RepairMode::All).await;
    assert_eq!(mended.left.found, 1, "the history itself is gone: {:?}", mended.left.findings);
    ledger.append(vec![stop]).await.unwrap();
    assert!(!ledger.history(key(1)).await.unwrap().intact);
    // From now on they do not have all that a lost bucket would be rebuilt from.
    say(&server, &["XTRIM", LOG, "MAXLEN", "0"]).await.unwrap();
    say(&server, &["DEL", &bucket_key(1)]).await.unwrap();
    assert!(repair(&open, RepairMode::All).await.left.found > 0);
    assert_eq!(lost(&ledger.bucket(bucket_of(1)).await.unwrap_err()), bucket_key(1));
    open.close().await;
}

#[tokio::test]
async fn lost_statements_refuse_what_brings_one_and_let_a_stop_through() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    let ledger = &open.ledger;
    append(ledger, key(1), opt_in("Yes")).await;
    say(&server, &["DEL", TEXT]).await.unwrap();
    assert_eq!(lost(&ledger.history(key(1)).await.unwrap_err()), TEXT);
    let opting_in = change(key(2), &nothing(), [opt_in("Yes, too")]);
    let stop = change(key(3), &nothing(), [opt_out("letter")]);
    let appended = ledger.append(vec![opting_in.clone(), stop]).await.unwrap();
    let [Appended::Failed(error), Appended::Committed(2)] = &appended[..] else {
        panic!("{appended:?}")
    };
    assert_eq!(lost(error), TEXT);
    assert!(!exists(&server, TEXT).await);
    let mended = repair(&open, RepairMode::All).await;
    let left: Vec<_> = mended.left.findings.iter().map(|left| left.damage.label()).collect();
    assert_eq!(left, ["statement"], "the words themselves are gone");
    ledger.append(vec![opting_in]).await.unwrap();
    open.close().await;
}

#[tokio::test]
async fn stop_beside_an_opt_in_whose_statement_has_no_room_is_recorded() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    let recorder = recorder_in(&open.ledger);
    say(&server, &["DEL", TEXT]).await.unwrap();
    let submission = |user: &str, request: &str, what: What| {
        let (user_id, business_id) = (user.to_owned(), "acme".to_owned());
        Submission::new(Event { user_id, business_id, time: None, what }, request.to_owned())
    };
    let yes = || {
        let mut yes = opt_in("Yes, Acme may write to me on WhatsApp");
        if let What::OptIn { evidence, expire, .. } = &mut yes {
            *expire = None;
            evidence.business_name = "Acme".to_owned();
        }
        yes
    };
    let stop = || What::OptOut { scope: Scope::All, reference: String::new() };
    // Of one pair, of others, and where every pair of the call has some of both.
    let mixed = ["US.1", "US.2"].map(|user| [(user, yes()), (user, stop())]);
    let apart = [[("US.3", yes()), ("US.4", stop())], [("US.5", stop()), ("US.3", yes())]];
    for events in [mixed, apart] {
        let events = events.into_iter().flatten().enumerate();
        let submissions = events.map(|(n, (user, what))| submission(user, &format!("{n}"), what));
        let submissions: Vec<_> = submissions.collect();
        let results = recorder.record(&submissions).await;
        for (submission, result) in submissions.iter().zip(results) {
            match (&submission.event.what, result) {
                (What::OptIn { .. }, Err(Refusal::Ledger(error))) => assert_eq!(lost(&error), TEXT),
                (What::OptOut { .. }, Ok(outcome)) => assert!(outcome.applied, "{outcome:?}"),
                (what, result) => panic!("{what:?}: {result:?}"),
            }
        }
    }
    open.close().await;
}

#[tokio::test]
async fn lost_log_is_told_by_polls_and_appends_and_is_no_trimmed_one() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    let ledger = &open.ledger;
    // One that is empty is whole.
    say(&server, &["XTRIM", LOG, "MAXLEN", "0"]).await.unwrap();
    append(ledger, key(1), opt_in("Yes")).await;
    let known = read(ledger, key(1)).await;
    say(&server, &["DEL", LOG]).await.unwrap();
    for after in [0, 1, u64::MAX] {
        assert_eq!(lost(&ledger.read_after(after).await.unwrap_err()), LOG);
    }
    let stop = change(key(1), &known, [opt_out("letter")]);
    assert_eq!(lost(&ledger.append(vec![stop.clone()]).await.unwrap_err()), LOG);
    let sure = Change { key: key(1), base: known.version, update: None };
    assert_eq!(lost(&ledger.append(vec![sure]).await.unwrap_err()), LOG);
    assert!(!exists(&server, LOG).await, "it is not made anew");
    assert_eq!(read(ledger, key(1)).await, known, "nothing of it was written");
    assert_eq!(repair(&open, RepairMode::All).await.left.found, 0);
    ledger.append(vec![stop]).await.unwrap();
    assert_eq!(ledger.read_after(0).await.unwrap().tail, Tail::Trimmed);
    assert_eq!(ledger.durability().lost_keys, 0, "it is back");
    open.close().await;
}

#[tokio::test]
async fn lost_fence_and_meta_prove_and_record_nothing() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    let ledger = &open.ledger;
    append(ledger, key(1), opt_out("letter")).await;
    say(&server, &["DEL", FENCE]).await.unwrap();
    assert_eq!(lost(&ledger.read_after(1).await.unwrap_err()), FENCE);
    let known = read(ledger, key(1)).await;
    let again = change(key(1), &known, [opt_out("another letter")]);
    let sure = Change { key: key(1), base: known.version, update: None };
    for change in [again.clone(), sure] {
        assert_eq!(lost(&ledger.append(vec![change]).await.unwrap_err()), FENCE);
    }
    assert!(!exists(&server, FENCE).await, "it is not made anew");
    assert_eq!(read(ledger, key(1)).await, known, "nothing was written");
    assert_eq!(repair(&open, RepairMode::All).await.left.found, 0);
    ledger.read_after(1).await.unwrap();
    ledger.append(vec![again]).await.unwrap();
    say(&server, &["DEL", META]).await.unwrap();
    let opting_in = change(key(2), &nothing(), [opt_in("Yes")]);
    assert_eq!(refused(ledger.append(vec![opting_in]).await), RedisRejection::Missing);
    for error in [
        ledger.read_after(1).await.unwrap_err(),
        ledger.read(vec![key(1)]).await.unwrap_err(),
        ledger.bucket(bucket_of(1)).await.unwrap_err(),
    ] {
        assert!(error.is_missing() && error.to_string().contains("backup"), "{error}");
    }
    assert!(!exists(&server, META).await);
    // Nor does anybody make a ledger of what is left, or whole hashes of lost ones.
    say(&server, &["DEL", "{consent:0}:b:0"]).await.unwrap();
    let made = create(server.target(), shape(BUCKETS)).await;
    assert!(matches!(made, Err(CreateError::Exists)), "{made:?}");
    assert!(!exists(&server, "{consent:0}:b:0").await);
    open.close().await;
}

#[tokio::test]
async fn append_that_was_cut_short_into_a_lost_bucket_is_completed_by_repair_alone() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    let ledger = &open.ledger;
    append(ledger, key(1), opt_in("Yes")).await;
    append(ledger, key(1), opt_out("letter")).await;
    let denied = read(ledger, key(1)).await.record.state;
    let Tail::Entries(entries) = ledger.read_after(0).await.unwrap().tail else { panic!() };
    let mut command = redis::cmd("HSET");
    command.arg(META).arg("rev").arg(1).arg("head").arg(&entries[0].head[..]);
    command.query_async::<i64>(&mut server.client().await).await.unwrap();
    say(&server, &["DEL", &bucket_key(1)]).await.unwrap();
    let next = change(key(2), &nothing(), [opt_in("Yes")]);
    assert_eq!(lost(&ledger.append(vec![next]).await.unwrap_err()), bucket_key(1));
    assert!(!exists(&server, &bucket_key(1)).await);
    assert_eq!(repair(&open, RepairMode::All).await.left.found, 0);
    assert_eq!(read(ledger, key(1)).await.record.state, denied);
    open.close().await;
}

#[tokio::test]
async fn retention_and_erasing_tell_of_lost_keys_and_go_on_with_the_rest() {
    let (_folder, server) = a_server(&[]);
    let quiet = open_redis(&server, options());
    let (one, two) = two_apart();
    for number in [one, two] {
        append(&quiet.ledger, key(number), opt_in("Yes")).await;
        super::super::erase::bury(&quiet.ledger, key(number)).await;
    }
    quiet.close().await;
    say(&server, &["DEL", &bucket_key(one), &history_key(one)]).await.unwrap();
    let sweeping = Options {
        retention: Some(FOREVER),
        sweep_interval: Duration::from_millis(10),
        ..Options::default()
    };
    let open = open_redis(&server, sweeping);
    // Of both marks, the one whose keys are there is done with.
    until(&server, &["HLEN", &history_key(two)], "int(2)").await;
    let begun = std::time::Instant::now();
    while open.ledger.durability().lost_keys == 0 {
        assert!(begun.elapsed() < PATIENCE, "nobody is told");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!exists(&server, &history_key(one)).await);
    open.close().await;
}

#[tokio::test]
async fn redis_that_begins_to_evict_is_believed_and_written_to_no_more() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    let ledger = &open.ledger;
    for number in 1..=20 {
        append(ledger, key(number), opt_in("Yes")).await;
    }
    ledger.read_after(0).await.unwrap();
    say(&server, &["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]).await.unwrap();
    append(ledger, key(21), opt_in("Yes")).await;
    say(&server, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await.unwrap();
    // It is asked for every two seconds: after so many pauses at the latest, however slow this is.
    let most = Duration::from_secs(2).div_duration_f64(POLL_EVERY);
    let mut polls = 0.0;
    let error = loop {
        match ledger.read_after(0).await {
            Err(error) => break error,
            Ok(_) => polls += 1.0,
        }
        assert!(polls <= most + 1.0, "the policy is not looked at");
        tokio::time::sleep(POLL_EVERY).await;
    };
    assert!(error.to_string().contains("allkeys-lru"), "{error}");
    let known = read(ledger, key(1)).await;
    let stop = change(key(1), &known, [opt_out("letter")]);
    let refused = ledger.append(vec![stop]).await.unwrap_err();
    assert!(refused.to_string().contains("allkeys-lru"), "{refused}");
    assert_eq!(read(ledger, key(1)).await, known, "nothing was written");

    // It does evict, until nothing is left but what was just used.
    say(&server, &["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
    let _ = say(&server, &["SET", "other", "x"]).await;
    until(&server, &["EXISTS", &bucket_key(1)], "int(0)").await;
    say(&server, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await.unwrap();
    say(&server, &["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    // Once it no longer evicts, what is missing is still refused.
    let opting_in = change(key(1), &nothing(), [opt_in("Yes")]);
    let error = ledger.append(vec![opting_in]).await.unwrap_err();
    assert!(!matches!(error, LedgerError::Closed), "{error}");
    assert!(!exists(&server, &bucket_key(1)).await);
    open.close().await;
}
