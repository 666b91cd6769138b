//! What only the ledger in Redis promises: who is refused and why, what is cut short, what is lost.

#[path = "bucket_reader.rs"]
mod bucket_reader;
#[path = "losses.rs"]
mod losses;
#[path = "rights.rs"]
mod rights;

use std::path::Path;
use std::sync::Arc;

use consentd::metrics::Metrics;
use consentd::recorder::Recorder;
use consentd_core::event::{Event, PlatformNames};
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_core::record::{Outcome, Request};
use consentd_core::submission::Submission;
use consentd_ledger::{
    AppendReceipt, CreateError, Durability, Notification, Plan, Redis, RedisRejection, Tail,
    TargetOptions, create, plan,
};
use server::BUCKETS;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::servers::free_port;
use super::*;

/// A Redis with a ledger in it.
fn a_server(settings: &[&str]) -> (TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), settings);
    server.create();
    (folder, server)
}

fn options() -> Options {
    Options { retention: None, ..Options::default() }
}

async fn say(server: &Server, words: &[&str]) -> redis::RedisResult<redis::Value> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(&mut server.client().await).await
}

/// Waits until a command's answer has these words in it.
pub(super) async fn until(server: &Server, words: &[&str], wanted: &str) {
    let begun = std::time::Instant::now();
    loop {
        let answer = format!("{:?}", say(server, words).await.unwrap());
        if answer.contains(wanted) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{words:?} does not say {wanted}: {answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn refused(appended: Result<Vec<Appended>, LedgerError>) -> RedisRejection {
    let error = appended.unwrap_err();
    assert!(matches!(error, LedgerError::Refused(_)), "{error:?}");
    RedisRejection::of(&error).unwrap_or_else(|| panic!("{error:?}")).clone()
}

/// A change that adds nothing to the history.
fn remember(key: Key, stored: &StoredRecord) -> Change {
    let mut change = change(key, stored, []);
    let outcome = Outcome { applied: true, ..Outcome::default() };
    let request = Request { id: [1; 16], what: [2; 16], outcome, time: None };
    change.update.as_mut().unwrap().record.remember(request);
    change
}

#[tokio::test]
async fn an_append_that_is_cut_short_behind_the_log_is_completed_by_the_next() {
    let (_folder, server) = a_server(&[]);
    say(&server, &["ACL", "SETUSER", "half", "on", ">p", "~*", "&*", "+@all", "-hset"])
        .await
        .unwrap();
    let half = TargetOptions {
        user: Some("half".into()),
        password: Some("p".into()),
        ..TargetOptions::default()
    };
    let (ledger, driver) = Redis::new(server.target_as(half), options());
    let writer = Writer::Task(tokio::spawn(driver.run(CancellationToken::new())));
    let cut = Open { ledger: Ledger::Redis(ledger), writer };
    let error = cut.ledger.append(vec![remember(key(1), &nothing())]).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable(_)), "it may have been written: {error:?}");
    let log = say(&server, &["XLEN", "{consent:0}:log"]).await.unwrap();
    assert_eq!(log, redis::Value::Int(1), "it was cut short behind the log's entry");
    cut.close().await;

    let open = open_redis(&server, options());
    let ledger = &open.ledger;
    let page = ledger.read_after(0).await.unwrap();
    assert_eq!((page.end.revision, page.tail), (0, Tail::Entries(Vec::new())), "nobody is told");
    assert_eq!(append(ledger, key(2), opt_out("letter")).await, 2);
    let remembered = read(ledger, key(1)).await;
    assert_eq!((remembered.version.revision, remembered.record.requests.len()), (1, 1));
    let Tail::Entries(entries) = ledger.read_after(0).await.unwrap().tail else { panic!() };
    let bodies: Vec<_> = entries.into_iter().map(|entry| entry.body.unwrap()).collect();
    assert_eq!(bodies.iter().map(|body| body.key).collect::<Vec<_>>(), [key(1), key(2)]);
    assert_eq!(bodies[0].record, Ok(remembered.record));
    open.close().await;
}

#[tokio::test]
async fn what_was_half_written_is_not_shown_and_is_rolled_forward_where_nobody_appends() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    append(&open.ledger, key(1), opt_in("Yes")).await;
    append(&open.ledger, key(1), opt_out("letter")).await;
    let end = open.ledger.read_after(0).await.unwrap().end;
    let whole = read(&open.ledger, key(1)).await;
    let Tail::Entries(entries) = open.ledger.read_after(0).await.unwrap().tail else { panic!() };
    // As it is where a script ends between the bucket and the meta hash.
    let mut command = redis::cmd("HSET");
    command.arg("{consent:0}:meta").arg("rev").arg(1).arg("head").arg(&entries[0].head[..]);
    command.query_async::<i64>(&mut server.client().await).await.unwrap();
    let number = consentd_ledger::bucket_of(key(1), BUCKETS);
    let error = open.ledger.bucket(number).await.unwrap_err();
    assert_eq!(RedisRejection::of(&error), Some(&RedisRejection::CutShort));
    open.close().await;
    let sweeping = Options {
        retention: Some(FOREVER),
        sweep_interval: Duration::from_millis(10),
        ..Options::default()
    };
    let open = open_redis(&server, sweeping);
    until(&server, &["HGET", "{consent:0}:meta", "rev"], "bulk-string('\"2\"')").await;
    assert_eq!(open.ledger.read_after(0).await.unwrap().end, end);
    assert_eq!(read(&open.ledger, key(1)).await, whole);
    open.close().await;
}

#[tokio::test]
async fn keys_of_the_wrong_type_and_forbidden_ones_change_nothing() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    append(&open.ledger, key(1), opt_in("Yes")).await;
    let end = open.ledger.read_after(0).await.unwrap().end;
    let known = read(&open.ledger, key(1)).await;
    let number = consentd_ledger::bucket_of(key(1), BUCKETS);
    for name in [format!("{{consent:0}}:b:{number}"), format!("{{consent:0}}:h:{number}")] {
        say(&server, &["RENAME", &name, "{consent:0}:aside"]).await.unwrap();
        say(&server, &["SET", &name, "not a hash"]).await.unwrap();
        let late = change(key(1), &known, [opt_out("letter")]);
        let error = open.ledger.append(vec![late]).await.unwrap_err();
        assert!(error.to_string().contains("WRONGTYPE"), "{error}");
        say(&server, &["RENAME", "{consent:0}:aside", &name]).await.unwrap();
        assert_eq!(open.ledger.read_after(0).await.unwrap().end, end);
    }
    let mut words = vec!["ACL", "SETUSER", "some", "on", ">p", "&*", "+@all"];
    words.extend(["~{consent:0}:[mltf]*", "~{consent:0}:h:*"]);
    say(&server, &words).await.unwrap();
    let some = TargetOptions {
        user: Some("some".into()),
        password: Some("p".into()),
        ..TargetOptions::default()
    };
    let (ledger, driver) = Redis::new(server.target_as(some), options());
    let writer = Writer::Task(tokio::spawn(driver.run(CancellationToken::new())));
    let forbidden = Open { ledger: Ledger::Redis(ledger), writer };
    let late = change(key(1), &known, [opt_out("letter")]);
    let why = refused(forbidden.ledger.append(vec![late]).await);
    assert_eq!(why.label(), "denied", "{why}");
    forbidden.close().await;
    assert_eq!(open.ledger.read_after(0).await.unwrap().end, end);
    append(&open.ledger, key(1), opt_out("letter")).await;
    assert!(open.ledger.history(key(1)).await.unwrap().intact);
    open.close().await;
}

#[tokio::test]
async fn scripts_that_redis_has_forgotten_are_given_to_it_again() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    for number in 1..=3 {
        say(&server, &["SCRIPT", "FLUSH"]).await.unwrap();
        assert_eq!(append(&open.ledger, key(number), opt_out("letter")).await, number);
        say(&server, &["SCRIPT", "FLUSH"]).await.unwrap();
        assert_eq!(open.ledger.read_after(0).await.unwrap().end.revision, number);
    }
    open.close().await;
}

#[tokio::test]
async fn a_full_redis_takes_denials_and_refuses_the_rest() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    let ledger = &open.ledger;
    append(ledger, key(1), opt_out("letter")).await;
    let known = read(ledger, key(1)).await;
    say(&server, &["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
    let opting_in = change(key(2), &nothing(), [opt_in("Yes")]);
    assert_eq!(refused(ledger.append(vec![opting_in.clone()]).await), RedisRejection::Full);
    assert_eq!(append(ledger, key(3), opt_out("letter")).await, 2);
    let sure = Change { key: key(1), base: known.version, update: None };
    let appended = ledger.append(vec![sure]).await.unwrap();
    assert!(matches!(appended[..], [Appended::Committed(1)]), "{appended:?}");
    // Of both, the denial is recorded, and each is told what came of it.
    let stop = change(key(4), &nothing(), [opt_out("letter")]);
    let appended = ledger.append(vec![opting_in.clone(), stop]).await.unwrap();
    let [Appended::Failed(error), Appended::Committed(3)] = &appended[..] else {
        panic!("{appended:?}")
    };
    assert_eq!(RedisRejection::of(error), Some(&RedisRejection::Full));
    assert_eq!(ledger.read_after(0).await.unwrap().end.revision, 3, "polls are answered");
    assert_eq!(read(ledger, key(4)).await.version.revision, 3);
    say(&server, &["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    ledger.append(vec![opting_in]).await.unwrap();
    open.close().await;
}

#[tokio::test]
async fn a_redis_that_cannot_save_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--save", "3600 1"]);
    server.create();
    // Nothing can take the place of a folder that holds something.
    std::fs::create_dir_all(folder.path().join("dump.rdb/full")).unwrap();
    let open = open_redis(&server, options());
    say(&server, &["BGSAVE"]).await.unwrap();
    until(&server, &["INFO", "persistence"], "rdb_last_bgsave_status:err").await;
    let stop = change(key(1), &nothing(), [opt_out("letter")]);
    assert_eq!(refused(open.ledger.append(vec![stop]).await), RedisRejection::CannotSave);
    let poll = open.ledger.read_after(0).await.unwrap_err();
    assert_eq!(RedisRejection::of(&poll), Some(&RedisRejection::CannotSave));
    open.close().await;
}

#[tokio::test]
async fn replicas_that_are_asked_for_must_confirm() {
    let port = free_port().to_string();
    let (_folder, server) = a_server(&["--port", &port]);
    let folder = tempfile::tempdir().unwrap();
    let replica = Server::start(folder.path(), &["--replicaof", "127.0.0.1", &port]);
    until(&replica, &["INFO", "replication"], "master_link_status:up").await;
    let durability = Durability::Replicas(1);
    let confirm_within = Duration::from_millis(200);
    let open = open_redis(&server, Options { durability, confirm_within, ..options() });
    let ledger = &open.ledger;
    assert_eq!(append(ledger, key(1), opt_out("letter")).await, 1);
    replica.signal(rustix::process::Signal::STOP);
    let next = change(key(2), &nothing(), [opt_out("letter")]);
    let error = ledger.append(vec![next]).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unconfirmed { asked: 1, confirmed: 0 }), "{error:?}");
    // What changes nothing is confirmed no sooner.
    let there = read(ledger, key(2)).await;
    let sure = Change { key: key(2), base: there.version, update: None };
    let error = ledger.append(vec![sure.clone()]).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unconfirmed { .. }), "{error:?}");
    replica.signal(rustix::process::Signal::CONT);
    let appended = loop {
        match ledger.append(vec![sure.clone()]).await {
            Err(LedgerError::Unconfirmed { .. }) => {}
            appended => break appended.unwrap(),
        }
    };
    assert!(matches!(appended[..], [Appended::Committed(2)]), "{appended:?}");
    open.close().await;
}

/// A ledger whose first answer to a script that writes is lost, as soon as the test says so.
fn lossy_ledger(folder: &TempDir, server: &Server) -> (Open, mpsc::Receiver<oneshot::Sender<()>>) {
    let path = folder.path().join("proxy.sock");
    let (losing, lost) = mpsc::channel(1);
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(server::lossy(listener, server.socket.clone(), losing));
    (open_at(&path), lost)
}

fn open_at(path: &Path) -> Open {
    let url = format!("redis+unix://{}", path.display());
    let target = consentd_ledger::Target::new(&url, TargetOptions::default()).unwrap();
    let (ledger, driver) = Redis::new(target, options());
    let writer = Writer::Task(tokio::spawn(driver.run(CancellationToken::new())));
    Open { ledger: Ledger::Redis(ledger), writer }
}

#[tokio::test]
async fn an_append_whose_answer_is_lost_is_made_once() {
    let (folder, server) = a_server(&[]);
    // Known to Redis: the proxy sees an answer to the script, not that it is unknown.
    let direct = open_redis(&server, options());
    append(&direct.ledger, key(1), opt_in("Yes")).await;
    let (open, mut lost) = lossy_ledger(&folder, &server);
    let appending = append(&open.ledger, key(2), inbound("wamid"));
    let go_on = async { lost.recv().await.unwrap().send(()).unwrap() };
    let (revision, ()) = tokio::join!(appending, go_on);
    assert_eq!(revision, 2);
    assert_eq!(open.ledger.history(key(2)).await.unwrap().entries.len(), 1);
    assert_eq!(open.ledger.read_after(0).await.unwrap().end.revision, 2);
    let noop = say(&server, &["HGET", "{consent:0}:meta", "noop"]).await.unwrap();
    assert_eq!(noop, redis::Value::BulkString(b"1".to_vec()), "it was lost, and made sure of");
    open.close().await;
    direct.close().await;
}

#[tokio::test]
async fn an_opt_out_between_a_lost_answer_and_the_next_attempt_stands() {
    let (folder, server) = a_server(&[]);
    let direct = open_redis(&server, options());
    append(&direct.ledger, key(1), opt_in("Yes")).await;
    let (open, mut lost) = lossy_ledger(&folder, &server);
    let opting_in = change(key(2), &nothing(), [opt_in("Yes")]);
    let appending = open.ledger.append_with_receipts(vec![opting_in]);
    let meanwhile = async {
        let go_on = lost.recv().await.unwrap();
        assert_eq!(append(&direct.ledger, key(2), opt_out("letter")).await, 3);
        go_on.send(()).unwrap();
    };
    let (appended, ()) = tokio::join!(appending, meanwhile);
    let now = read(&direct.ledger, key(2)).await;
    let [AppendReceipt { outcome: Appended::Conflict(Ok(there)), maybe_written: true, .. }] =
        &appended.unwrap()[..]
    else {
        panic!("the attempt that was not answered has written it")
    };
    assert_eq!(*there, now);
    assert_eq!((now.version.revision, now.record.history_len), (3, 2));
    open.close().await;
    direct.close().await;
}

fn recorder_in(ledger: &Ledger) -> Recorder {
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let (names, keywords) = (PlatformNames::default(), Keywords::new(KeywordLists::default()));
    Recorder::new(ledger.clone(), names, keywords, metrics)
}

/// Records of a user that this happened, now.
async fn record(ledger: &Ledger, request: &str, what: What) {
    let recorder = recorder_in(ledger);
    let (user_id, business_id) = ("15550001".to_owned(), "acme".to_owned());
    let event = Event { user_id, business_id, time: None, what };
    let submission = Submission::new(event, request.to_owned());
    recorder.record(&[submission]).await.remove(0).unwrap();
}

#[tokio::test]
async fn an_event_is_as_old_as_when_its_recorder_first_read() {
    let (folder, server) = a_server(&[]);
    let direct = open_redis(&server, options());
    let path = folder.path().join("proxy.sock");
    let (holding, mut held) = mpsc::channel(1);
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(server::holding(listener, server.socket.clone(), holding));
    let open = open_at(&path);
    let mut yes = opt_in("Yes, Acme may write to me on WhatsApp");
    if let What::OptIn { evidence, expire, .. } = &mut yes {
        *expire = None;
        evidence.business_name = "Acme".to_owned();
    }
    let opting_in = record(&open.ledger, "1", yes);
    let meanwhile = async {
        let go_on = held.recv().await.unwrap();
        record(&direct.ledger, "2", opt_out("letter")).await;
        // Whatever is stamped from here on is later than the opt-out.
        let clock = async || direct.ledger.read(vec![key(1)]).await.unwrap().clock;
        let then = clock().await;
        while clock().await <= then {
            tokio::task::yield_now().await;
        }
        go_on.send(()).unwrap();
    };
    tokio::join!(opting_in, meanwhile);
    let secret = &direct.ledger.identity().await.unwrap().secret;
    let now = read(&direct.ledger, secret.read("15550001", "acme").unwrap()).await;
    let choices = now.record.state.scopes.values().filter_map(|scope| scope.choice);
    assert!(choices.max().unwrap().is_opt_out(), "{:?}", now.record.state);
    open.close().await;
    direct.close().await;
}

#[tokio::test]
async fn a_record_of_another_branch_is_not_taken_for_this_ones() {
    let (_folder, server) = a_server(&[]);
    let mut client = server.client().await;
    let names: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut client).await.unwrap();
    let mut before = Vec::new();
    for name in names {
        let value: Vec<u8> = redis::cmd("DUMP").arg(&name).query_async(&mut client).await.unwrap();
        before.push((name, value));
    }
    let open = open_redis(&server, options());
    append(&open.ledger, key(1), opt_in("Yes")).await;
    let lost = read(&open.ledger, key(1)).await;
    for (name, value) in before {
        let mut restore = redis::cmd("RESTORE");
        restore.arg(name).arg(0).arg(value).arg("REPLACE");
        restore.query_async::<()>(&mut client).await.unwrap();
    }
    append(&open.ledger, key(1), opt_out("letter")).await;
    let now = read(&open.ledger, key(1)).await;
    assert_eq!(now.version.revision, lost.version.revision);
    let late = change(key(1), &lost, [opt_in("Yes again")]);
    let appended = open.ledger.append(vec![late]).await.unwrap();
    assert!(matches!(&appended[..], [Appended::Conflict(Ok(there))] if *there == now));
    open.close().await;
}

#[tokio::test]
async fn another_ledger_in_its_place_is_noticed_and_no_ledger_is_none() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    append(&open.ledger, key(1), opt_in("Yes")).await;
    let before = open.ledger.identity().await.unwrap();
    say(&server, &["FLUSHALL"]).await.unwrap();
    let late = change(key(2), &nothing(), [opt_out("letter")]);
    assert_eq!(refused(open.ledger.append(vec![late.clone()]).await), RedisRejection::Missing);
    server.create();
    // Nobody knows yet what the ledger is; whoever still takes it for the old one is refused.
    assert_ne!(open.ledger.identity().await.unwrap().epoch, before.epoch);
    say(&server, &["HSET", "{consent:0}:meta", "epoch", "0123456789abcdef"]).await.unwrap();
    assert_eq!(refused(open.ledger.append(vec![late]).await), RedisRejection::Replaced);
    assert_eq!(open.ledger.identity().await.unwrap().epoch, *b"0123456789abcdef");
    open.close().await;
}

#[tokio::test]
async fn a_ledger_is_made_once_and_gone_on_with_where_that_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let keys = u64::from(BUCKETS) * 2 + 5;
    assert_eq!(plan(server.target(), shape(BUCKETS)).await.unwrap(), Plan { keys, present: 0 });
    assert!(matches!(create(server.target(), shape(0)).await, Err(CreateError::Buckets)));
    say(&server, &["HSET", "{consent:0}:b:3", ".", ""]).await.unwrap();
    assert_eq!(plan(server.target(), shape(BUCKETS)).await.unwrap(), Plan { keys, present: 1 });
    say(&server, &["HSET", "{consent:0}:b:3", "a pair", "of a ledger"]).await.unwrap();
    assert!(matches!(plan(server.target(), shape(BUCKETS)).await, Err(CreateError::Exists)));
    assert!(matches!(create(server.target(), shape(BUCKETS)).await, Err(CreateError::Exists)));
    say(&server, &["HDEL", "{consent:0}:b:3", "a pair"]).await.unwrap();
    let made = create(server.target(), shape(BUCKETS)).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(plan(server.target(), shape(BUCKETS)).await, Err(CreateError::Exists)));
        assert!(matches!(create(server.target(), shape(BUCKETS)).await, Err(CreateError::Exists)));
    }
    let open = open_redis(&server, options());
    let identity = open.ledger.identity().await.unwrap();
    assert_eq!((identity.epoch, identity.buckets), (made.epoch, made.buckets));
    open.close().await;
}

#[tokio::test]
async fn what_has_outlived_its_time_goes_and_the_chain_stays_whole() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    for what in [opt_in("Yes"), inbound("wamid.1"), opt_out("letter"), inbound("wamid.2")] {
        append(&open.ledger, key(1), what).await;
    }
    open.close().await;
    let day = Duration::from_hours(24);
    let retention = Retention { log: day, log_entries: u64::MAX, history: day };
    let sweep_interval = Duration::from_millis(10);
    let options = Options { retention: Some(retention), sweep_interval, ..Options::default() };
    let open = open_redis(&server, options);
    until(&server, &["XLEN", "{consent:0}:log"], "int(0)").await;
    let begun = std::time::Instant::now();
    let history = loop {
        let history = open.ledger.history(key(1)).await.unwrap();
        assert!(history.intact, "at every moment");
        if history.entries.len() == 2 {
            break history;
        }
        assert!(begun.elapsed() < PATIENCE, "{} entries stay", history.entries.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let left: Vec<_> =
        history.entries.iter().map(|(at, entry)| (at.revision, &entry.what)).collect();
    assert_eq!(left, [(1, &opt_in("Yes")), (3, &opt_out("letter"))]);
    assert_eq!(open.ledger.read_after(3).await.unwrap().tail, Tail::Trimmed);
    assert_eq!(append(&open.ledger, key(1), opt_in("Yes again")).await, 5);
    open.close().await;
}

#[tokio::test]
async fn an_entry_behind_an_emptied_log_is_read_by_who_knows_the_hash_before_it() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    append(&open.ledger, key(1), opt_in("Yes")).await;
    append(&open.ledger, key(1), opt_out("letter")).await;
    let known = open.ledger.read_after(0).await.unwrap().end;
    say(&server, &["XTRIM", "{consent:0}:log", "MAXLEN", "0"]).await.unwrap();
    assert_eq!(append(&open.ledger, key(2), opt_out("letter")).await, 3);
    let page = open.ledger.read_after_head(known.revision, known.head).await.unwrap();
    let Tail::Entries(entries) = page.tail else { panic!("nothing is missing") };
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].previous, entries[0].head), (known.head, page.end.head));
    assert_eq!(entries[0].body.as_ref().unwrap().key, key(2));
    // Of another branch, and of a reader that lacks more than that entry.
    let forked = open.ledger.read_after_head(known.revision, [7; 20]).await.unwrap();
    assert_eq!(forked.tail, Tail::Trimmed);
    let behind = open.ledger.read_after_head(1, known.head).await.unwrap();
    assert_eq!(behind.tail, Tail::Trimmed);
    append(&open.ledger, key(2), opt_in("Yes")).await;
    say(&server, &["XTRIM", "{consent:0}:log", "MAXLEN", "1"]).await.unwrap();
    let behind = open.ledger.read_after_head(known.revision, known.head).await.unwrap();
    assert_eq!(behind.tail, Tail::Trimmed, "the entry that comes next is gone");
    open.close().await;
}

#[tokio::test]
async fn an_operators_acceptance_is_told_to_followers() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    assert_eq!(open.ledger.read_after(0).await.unwrap().accepted, 0);
    let Ledger::Redis(ledger) = &open.ledger else { unreachable!() };
    assert_eq!(ledger.accept().await.unwrap(), 1);
    assert_eq!(open.ledger.read_after(0).await.unwrap().accepted, 1);
    say(&server, &["FLUSHALL"]).await.unwrap();
    let error = ledger.accept().await.unwrap_err();
    assert_eq!(RedisRejection::of(&error), Some(&RedisRejection::Missing), "nothing is made by it");
    open.close().await;
}
