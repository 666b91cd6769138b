//! A person who is erased: denied from then on, and, once the log's retention has passed, in no
//! byte of the ledger any more.

use std::path::Path;
use std::time::{Duration, SystemTime};

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;

use crate::faults::redis::Redis;
use crate::faults::stage::{init, ledger_at, live_within, metric, serve};
use crate::sidecar::{
    PATIENCE, Sidecar, ago, event, eventually, ledger_in, opt_out, question, run,
};

/// Whom the tests erase, as they are written at two businesses, and what else must go.
const PERSON: &str = "US.13491208655302741918";
const NEEDLES: [&str; 5] =
    [PERSON, "Yes, I alone agree", "wamid.of-hers", "letter of hers", "proof of hers"];

/// What somebody else has agreed to as well.
const SHARED: &str = "Yes to messages from Acme on WhatsApp";

/// How long the log is kept: short, and long enough for a restart in between.
const LOG: &[&str] = &["--log-retention", "2s"];

fn agreed(statement: &str, reference: &str) -> pb::consent_event::What {
    let pb::consent_event::What::OptIn(mut opt_in) = crate::sidecar::opt_in("marketing") else {
        unreachable!("an opt-in is one");
    };
    let evidence = opt_in.evidence.as_mut().unwrap();
    (evidence.statement, evidence.reference) = (statement.into(), reference.into());
    pb::consent_event::What::OptIn(opt_in)
}

fn wrote(message_id: &str, text: &str) -> pb::consent_event::What {
    let (message_id, text) = (message_id.into(), text.into());
    pb::consent_event::What::InboundMessage(pb::InboundMessage { message_id, text })
}

/// An event of hers at one business, with a time so long ago.
fn hers(business: &str, seconds: u64, what: pb::consent_event::What) -> pb::RecordEventRequest {
    let mut request = event(PERSON, business, what);
    request.event.as_mut().unwrap().event_time = Some(ago(Duration::from_secs(seconds)));
    request.request_id = format!("{business}-{seconds}");
    request
}

/// Records a person at two businesses, and another one who agreed to the same words.
async fn record(sidecar: &Sidecar) -> Vec<pb::RecordEventRequest> {
    let mine = format!("{}: WhatsApp from Acme", NEEDLES[1]);
    let letter = pb::OptOut { scope: "utility".into(), reference: NEEDLES[3].into() };
    let events = vec![
        hers("acme", 90, agreed(SHARED, NEEDLES[4])),
        hers("acme", 80, agreed(&mine, NEEDLES[4])),
        hers("acme", 70, wrote(NEEDLES[2], "hello")),
        hers("acme", 60, pb::consent_event::What::OptOut(letter)),
        hers("acme", 50, wrote(NEEDLES[2], "stop")),
        hers("bolt", 40, agreed(&mine, "")),
        hers("bolt", 30, wrote(NEEDLES[2], "")),
    ];
    let mut records = sidecar.records().await;
    for request in &events {
        assert!(records.record_event(request.clone()).await.unwrap().into_inner().applied);
    }
    for business in ["acme", "bolt", "core"] {
        let mut request = event("US.2", business, agreed(SHARED, ""));
        request.request_id = business.into();
        records.record_event(request).await.unwrap();
    }
    events
}

/// What a sidecar answers of the person at a business.
async fn reason(sidecar: &Sidecar, user: &str, business: &str) -> Reason {
    let mut checks = sidecar.checks().await;
    let asked = question(user, business, "marketing");
    checks.can_send(asked).await.unwrap().into_inner().reason()
}

/// Somebody else is active, so that nothing goes by itself for want of anything later.
async fn go_on(sidecar: &Sidecar, number: u64) {
    let mut records = sidecar.records().await;
    let what = wrote(&format!("wamid.{number}"), "");
    records.record_event(event("US.2", "acme", what)).await.unwrap();
}

/// Erases the person by the command; gives by when the log forgets.
fn erase(sidecar: &Sidecar, pairs: u64) -> SystemTime {
    let (code, printed, error) =
        run(&["erase", PERSON, "--yes", "--json", "--addr", &sidecar.record]);
    assert_eq!(code, 0, "{error}");
    let answer: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(answer["erasedCount"], pairs, "{printed}");
    humantime::parse_rfc3339(answer["logExpireTime"].as_str().unwrap()).unwrap()
}

/// Goes on recording others until this moment has passed.
async fn wait_until(sidecar: &Sidecar, moment: SystemTime) {
    let begun = SystemTime::now();
    let mut number = 0;
    while SystemTime::now() < moment {
        assert!(begun.elapsed().unwrap() < PATIENCE, "the log forgets soon");
        go_on(sidecar, number).await;
        number += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Erases a person of whom these events were recorded, and sees to it that nothing is left behind
/// or comes back, until the log has forgotten.
async fn erase_and_forget(sidecar: &Sidecar, events: &[pb::RecordEventRequest]) {
    assert_eq!(reason(sidecar, PERSON, "acme").await, Reason::OptedOutAll);
    assert_eq!(reason(sidecar, PERSON, "bolt").await, Reason::OptedIn);
    let by = erase(sidecar, 2);
    assert!(by > SystemTime::now() && by < SystemTime::now() + Duration::from_secs(10));
    for business in ["acme", "bolt"] {
        assert_eq!(reason(sidecar, PERSON, business).await, Reason::Suppressed);
    }
    assert_eq!(reason(sidecar, "US.2", "acme").await, Reason::OptedIn);
    assert_eq!(reason(sidecar, PERSON, "core").await, Reason::NoConsent, "nothing was known there");
    assert!(metric(sidecar, "consent_erased_pairs_total").await >= 2.0);
    // Webhooks that are sent again, and imports of what was known, leave no trace.
    let mut records = sidecar.records().await;
    for request in events {
        let mut request = request.clone();
        assert!(!records.record_event(request.clone()).await.unwrap().into_inner().applied);
        request.request_id.clear();
        assert!(!records.record_event(request).await.unwrap().into_inner().applied);
    }
    assert_eq!(erase(sidecar, 0), by, "what is erased already goes when it was said to");
    wait_until(sidecar, by).await;
    let (code, listed, error) = run(&["history", PERSON, "acme", "--addr", &sidecar.record]);
    assert_eq!((code, listed.contains("opt")), (0, false), "{listed}{error}");
    assert!(!sidecar.said().contains(PERSON));
}

/// What of these is in some bytes.
fn found(bytes: &[u8], needles: &[&'static str]) -> Vec<&'static str> {
    let is_there =
        |needle: &&str| bytes.windows(needle.len()).any(|part| part == needle.as_bytes());
    needles.iter().copied().filter(is_there).collect()
}

fn in_file(path: &Path, needles: &[&'static str]) -> Vec<&'static str> {
    found(&std::fs::read(path).unwrap(), needles)
}

/// Ends a sidecar in order.
async fn end(mut sidecar: Sidecar) {
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_of_a_file_names_who_was_erased_once_the_log_forgets() {
    for by_command in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = ledger_in(folder.path());
        let sidecar = Sidecar::live(folder.path(), LOG).await;
        let events = record(&sidecar).await;
        end(sidecar).await;
        assert_eq!(in_file(&path, &NEEDLES), NEEDLES, "it can be found");
        let sidecar = Sidecar::live(folder.path(), LOG).await;
        erase_and_forget(&sidecar, &events).await;
        end(sidecar).await;
        if by_command {
            // Left by a process that died before it had written what a ledger begins with.
            std::fs::write(folder.path().join("ledger.redb.compacting"), [0; 9_000]).unwrap();
            let ledger = format!("file:{}", path.display());
            let compact = ["ledger", "compact", "--log-retention", "2s", "--ledger", &ledger];
            let (code, printed, error) = run(&compact);
            assert!(code == 0 && printed.contains(" now"), "{printed}{error}");
            assert!(!printed.contains("may name"), "{printed}");
        } else {
            let sidecar = Sidecar::start(&path, LOG);
            assert!(sidecar.said().contains("compacted the ledger's file"), "{}", sidecar.said());
            end(sidecar).await;
        }
        assert_eq!(in_file(&path, &NEEDLES), [""; 0]);
        assert_eq!(in_file(&path, &[SHARED]), [SHARED], "somebody else agreed to it");
        // Beside it is nothing but the mark of what was acknowledged, which names nobody.
        let mark = folder.path().join("ledger.redb.acknowledged");
        assert_eq!(in_file(&mark, &NEEDLES), [""; 0]);
        let there = std::fs::read_dir(folder.path()).unwrap();
        assert_eq!(there.count(), 2, "nothing is left beside it");
        // It is the same ledger, whose tombstones deny; and only once is it written anew.
        let sidecar = Sidecar::live(folder.path(), LOG).await;
        assert!(!sidecar.said().contains("compacted the ledger's file"), "{}", sidecar.said());
        for business in ["acme", "bolt"] {
            assert_eq!(reason(&sidecar, PERSON, business).await, Reason::Suppressed);
        }
        assert_eq!(reason(&sidecar, "US.2", "core").await, Reason::OptedIn);
        end(sidecar).await;
        let (code, printed, error) =
            run(&["ledger", "verify", "--ledger", &format!("file:{}", path.display())]);
        assert_eq!(code, 0, "{printed}{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_is_written_anew_while_its_log_names_who_was_erased() {
    let folder = tempfile::tempdir().unwrap();
    let path = ledger_in(folder.path());
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    record(&sidecar).await;
    erase(&sidecar, 2);
    end(sidecar).await;
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    assert!(!sidecar.said().contains("compacted the ledger's file"), "{}", sidecar.said());
    assert_eq!(reason(&sidecar, PERSON, "acme").await, Reason::Suppressed);
    end(sidecar).await;
    let ledger = format!("file:{}", path.display());
    let (code, printed, error) = run(&["ledger", "compact", "--ledger", &ledger]);
    assert!(code == 0 && printed.contains("may name users who were erased until"), "{error}");
    assert_eq!(in_file(&path, &NEEDLES[..1]), [PERSON], "the log does");
    // Where its time is over, so is the log's.
    let sidecar = Sidecar::start(&path, &["--log-retention", "1ms"]);
    assert!(sidecar.said().contains("compacted the ledger's file"), "{}", sidecar.said());
    end(sidecar).await;
    assert_eq!(in_file(&path, &NEEDLES), [""; 0]);
}

/// Every byte that a Redis holds: its keys, and what each has, as it would be saved.
fn every_byte(redis: &Redis) -> Vec<u8> {
    redis.set("rdbcompression", "no");
    let mut all = Vec::new();
    for key in redis.command(&["KEYS", "*"]).parts() {
        let key = key.bytes();
        all.extend_from_slice(&key);
        all.extend(redis.command(&[b"DUMP".to_vec(), key]).bytes());
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_of_a_redis_names_who_was_erased_once_the_log_forgets() {
    let redis = Redis::start(&[]);
    let ledger = ledger_at(&redis.address());
    init(&ledger, &["--buckets", "32"]);
    let table = tempfile::tempdir().unwrap();
    let saved = table.path().join("table").display().to_string();
    let flags = [LOG, &["--record", "127.0.0.1:0", "--snapshot", &saved]].concat();
    let sidecar = serve(&ledger, &flags, &[]);
    live_within(&sidecar, PATIENCE).await;
    let follower = serve(&ledger, &[], &[]);
    live_within(&follower, PATIENCE).await;
    let events = record(&sidecar).await;
    assert_eq!(found(&every_byte(&redis), &NEEDLES), NEEDLES, "it can be found");
    erase_and_forget(&sidecar, &events).await;
    assert_eq!(found(&every_byte(&redis), &NEEDLES), [""; 0]);
    assert_eq!(found(&every_byte(&redis), &[SHARED]), [SHARED], "somebody else agreed to it");
    eventually("another sidecar denies too", || async {
        reason(&follower, PERSON, "acme").await == Reason::Suppressed
    })
    .await;
    let resyncs = metric(&follower, "consent_resyncs_total{cause=\"trimmed\"}").await;
    assert!(resyncs < 1.0, "whoever follows reads nothing anew for it");
    end(sidecar).await;
    assert_eq!(found(&std::fs::read(&saved).unwrap(), &NEEDLES), [""; 0]);
    let sidecar = serve(&ledger, &flags, &[]);
    live_within(&sidecar, PATIENCE).await;
    for business in ["acme", "bolt"] {
        assert_eq!(reason(&sidecar, PERSON, business).await, Reason::Suppressed);
    }
    let (code, printed, error) = run(&["ledger", "verify", "--ledger", &ledger]);
    assert_eq!(code, 0, "{printed}{error}");
    // The suppression is lifted by an event of its own, and what is said then counts as ever.
    let mut records = sidecar.records().await;
    let lifted = pb::Suppression { suppressed: false, reference: String::new() };
    let mut lifted = event(PERSON, "bolt", pb::consent_event::What::Suppression(lifted));
    lifted.request_id = "lift".to_owned();
    assert!(records.record_event(lifted).await.unwrap().into_inner().applied);
    assert_eq!(reason(&sidecar, PERSON, "bolt").await, Reason::NoConsent);
    records.record_event(event(PERSON, "bolt", opt_out("marketing"))).await.unwrap();
    assert_eq!(reason(&sidecar, PERSON, "bolt").await, Reason::OptedOut);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erase_wants_to_be_confirmed_and_says_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    record(&sidecar).await;
    let addr = sidecar.record.as_str();
    let (code, printed, error) = run(&["erase", PERSON, "--addr", addr]);
    assert!(code == 2 && printed.is_empty() && error.contains("--yes"), "{error}");
    let (code, _, error) = run(&["erase", "", "--yes", "--addr", addr]);
    assert!(code == 2 && error.contains("USER"), "{error}");
    let (code, _, error) = run(&["erase", "+1 555", "a\nb", "--yes", "--addr", addr]);
    assert!(code == 2 && error.contains("BUSINESS"), "{error}");
    assert_eq!(reason(&sidecar, PERSON, "bolt").await, Reason::OptedIn, "nothing was done");
    let (code, printed, _) = run(&["erase", "US.3", "--yes", "--addr", addr]);
    assert_eq!((code, printed.lines().count()), (0, 1), "{printed}");
    assert!(printed.starts_with("nothing to erase"), "{printed}");
    let (code, printed, _) = run(&["erase", PERSON, "bolt", "--yes", "--addr", addr]);
    assert!(code == 0 && printed.starts_with("1 pair erased, and suppressed\n"), "{printed}");
    assert!(printed.contains("forgets by 20"), "{printed}");
    assert_eq!(reason(&sidecar, PERSON, "acme").await, Reason::OptedOutAll, "only that one");
    assert_eq!(reason(&sidecar, PERSON, "bolt").await, Reason::Suppressed);
    let (code, printed, _) = run(&["erase", PERSON, "--yes", "--addr", addr]);
    assert!(code == 0 && printed.starts_with("1 pair erased"), "the rest of them: {printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_is_erased_in_whatever_notation_it_was_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut records = sidecar.records().await;
    for (user, business) in [("+52 1 55 1234 5678", "acme"), ("525512345678", "bolt")] {
        records.record_event(event(user, business, opt_out("*"))).await.unwrap();
    }
    let request = pb::EraseUserRequest { user_id: "5215512345678".into(), ..Default::default() };
    let erased = records.erase_user(request).await.unwrap().into_inner();
    assert_eq!(erased.erased_count, 2);
    for business in ["acme", "bolt"] {
        assert_eq!(reason(&sidecar, "+525512345678", business).await, Reason::Suppressed);
    }
}
