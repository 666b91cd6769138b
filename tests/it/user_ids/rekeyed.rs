//! A ledger of the version before, whose keys were made by another reading of user ids: it is refused
//! with the command that re-keys it, and the copy denies all that it denied.

use std::path::Path;
use std::process::Command;

use consentd::grpc::pb::Reason;
use consentd_core::event::{Evidence, Method, StatementNames, What};
use consentd_core::record::{HistoryEntry, Record};
use consentd_core::scope::Scope;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Appended, Change, Embedded, Ledger, Options, Redis as RedisLedger, Retention, Target,
    TargetOptions, Update,
};
use redb::{Database, ReadableDatabase as _, TableDefinition};
use tokio_util::sync::CancellationToken;

use crate::faults::redis::Redis;
use crate::faults::stage::{init, ledger_at, live_within, serve};
use crate::sidecar::{BINARY, PATIENCE, Sidecar, event, ledger_in, opt_out, run};
use crate::webhook::client::reason;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis((1_749_416_383 + seconds) * 1_000).unwrap()
}

fn opted_in() -> What {
    let evidence = Evidence {
        method: Method::Website,
        statement: "Acme may write to me on WhatsApp".into(),
        business_name: "Acme".into(),
        locale: String::new(),
        reference: String::new(),
        confirmation: String::new(),
        phone_number_id: None,
        statement_names: StatementNames::default(),
    };
    let category = Scope::parse("marketing").unwrap();
    What::OptIn { category, evidence, expire: None, pending: false }
}

fn opted_out(scope: &str) -> What {
    What::OptOut { scope: Scope::parse(scope).unwrap(), reference: "letter".into() }
}

/// What the version before recorded, under these ids: each a pair of its own, but for those of which it
/// is said.
fn recorded() -> Vec<(&'static str, i64, What)> {
    let suppressed = What::Suppression { suppressed: true, reference: String::new() };
    let link = |other: &str| What::Link { other_user_id: other.into(), moved: false };
    vec![
        // The other notation is today's key, and was opted in to later.
        ("whatsapp:+15550100001", 1, opted_out("*")),
        ("15550100001", 2, opted_in()),
        // Alone: it gets another key.
        ("+44 (0)7700 900002", 1, opted_out("*")),
        // A renumbered line.
        ("22997120003", 1, opted_out("marketing")),
        ("+229 01 97 12 00 03", 2, opted_in()),
        // Neither of the old spellings is today's key.
        ("whatsapp:+15550100004", 1, suppressed),
        ("sms:+15550100004", 3, opted_in()),
        // Erased under the digits, and recorded under another spelling since.
        ("15550100005", 1, opted_in()),
        ("tel:+15550100005", 9, opted_in()),
        // Erased under a spelling that was an id of its own.
        ("whatsapp:+15550100006", 1, opted_in()),
        // Refused today.
        ("07700 900007", 1, opted_out("*")),
        // Linked.
        ("whatsapp:+15550100008", 1, link("US.8")),
        ("US.8", 1, link("whatsapp:+15550100008")),
        // Notations that were one pair, and are two people today: Spain has no trunk prefix.
        ("340612345012", 1, opted_out("*")),
        ("+34 (0)612 345 012", 2, opted_out("marketing")),
        // Nothing changes.
        ("15550100009", 1, opted_out("*")),
        ("US.10", 1, opted_in()),
        ("+1 (555) 010-0011", 1, opted_in()),
    ]
}

const ERASED: [&str; 2] = ["15550100005", "whatsapp:+15550100006"];

/// Ids that are denied everything after the copy.
const DENIED: [&str; 15] = [
    "whatsapp:+15550100001",
    "15550100001",
    "+44 (0)7700 900002",
    "447700900002",
    "22997120003",
    "2290197120003",
    "whatsapp:+15550100004",
    "sms:+15550100004",
    "15550100004",
    "15550100005",
    "tel:+15550100005",
    "whatsapp:+15550100005",
    "whatsapp:+15550100006",
    "15550100009",
    "p:15550100009",
];

/// Appends it under the keys of the version before.
async fn append_as_before(ledger: &Ledger) {
    let secret = ledger.identity().await.unwrap().secret.clone();
    let key_of = |id: &str| {
        let former = secret.read_formerly(id, "acme");
        former.unwrap_or_else(|| secret.read(id, "acme").unwrap())
    };
    let append = async |id: &str, make: &dyn Fn(Record) -> (Record, Vec<HistoryEntry>)| {
        let key = key_of(id);
        let stored = ledger.read(vec![key]).await.unwrap().pairs.remove(0).unwrap();
        let (record, history) = make(stored.record);
        let (user_id, business_id) = if history.is_empty() {
            (String::new(), String::new())
        } else {
            (id.to_owned(), "acme".to_owned())
        };
        let update = Update { user_id, business_id, record, history, record_time: at(20) };
        let change = Change { key, base: stored.version, update: Some(update) };
        let appended = ledger.append(vec![change]).await.unwrap();
        assert!(matches!(appended[..], [Appended::Committed(_)]), "{appended:?}");
    };
    for (id, time, what) in recorded() {
        append(id, &|mut record| {
            for effect in what.effects(at(time)) {
                record.state.apply(&effect).unwrap();
            }
            if let What::Link { other_user_id, moved } = &what {
                let (user_id, time) = (other_user_id.clone(), at(time));
                record.link(consentd_core::record::Link { user_id, time, moved: *moved });
            }
            let (user_id, business_id) = (id.to_owned(), "acme".to_owned());
            let what = what.clone();
            let entry =
                HistoryEntry { user_id, business_id, time: at(time), record_time: at(20), what };
            (record, vec![entry])
        })
        .await;
    }
    for id in ERASED {
        append(id, &|record| (record.tombstone(at(5)), Vec::new())).await;
    }
}

/// A file as the version before left it.
async fn old_file(path: &Path) {
    drop(Embedded::open(path, Retention::default(), 1 << 20).unwrap());
    set_meta(path, 2, |secret| secret[1..].to_vec());
    let opened = Embedded::open_with_any_keys(path, Retention::default(), 1 << 20);
    let (ledger, appender) = opened.unwrap();
    let appending = std::thread::spawn(move || appender.run());
    let ledger = Ledger::Embedded(ledger);
    append_as_before(&ledger).await;
    ledger.close().await;
    drop(ledger);
    appending.join().unwrap().unwrap();
}

/// Changes a file's format and secret, as another version would have written them.
fn set_meta(path: &Path, format: u32, change: impl Fn(&[u8]) -> Vec<u8>) {
    let database = Database::open(path).unwrap();
    let secret = {
        let meta = database.begin_read().unwrap().open_table(META).unwrap();
        meta.get("secret").unwrap().unwrap().value().to_vec()
    };
    assert_eq!(secret.len(), 17, "the version, and the secret");
    let transaction = database.begin_write().unwrap();
    {
        let mut meta = transaction.open_table(META).unwrap();
        meta.insert("format", &format.to_be_bytes()[..]).unwrap();
        meta.insert("secret", change(&secret).as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

/// A Redis as the version before left it.
async fn old_redis() -> (Redis, String) {
    let redis = Redis::start(&[]);
    let address = ledger_at(&redis.address());
    init(&address, &["--buckets", "16"]);
    set_secret(&redis, "string.sub(secret, 2)");
    let target = Target::new(&address, TargetOptions::default()).unwrap();
    let options = Options { any_keys: true, ..Options::default() };
    let (ledger, task) = RedisLedger::new(target, options);
    let running = tokio::spawn(task.run(CancellationToken::new()));
    let ledger = Ledger::Redis(ledger);
    append_as_before(&ledger).await;
    ledger.close().await;
    running.await.unwrap();
    (redis, address)
}

/// Replaces the secret in Redis by the result of this Lua expression.
fn set_secret(redis: &Redis, expression: &str) {
    let script = format!(
        "local secret = redis.call('HGET', KEYS[1], 'secret') \
         return redis.call('HSET', KEYS[1], 'secret', {expression})"
    );
    redis.command(&["EVAL", &script, "1", "{consent:0}:meta"]);
}

/// The command between backticks.
fn command_in(said: &str) -> Vec<&str> {
    let (_, rest) = said.split_once("`consentd ").unwrap_or_else(|| panic!("no command: {said}"));
    rest.split_once('`').unwrap().0.split(' ').collect()
}

fn try_serve(ledger: &str) -> String {
    let started = Sidecar::try_start_by(Command::new(BINARY), ledger, &[], &[]);
    started.err().unwrap_or_else(|| panic!("{ledger} is served"))
}

/// Runs the copy, and gives what it printed.
#[track_caller]
fn copied(arguments: &[&str]) -> String {
    let (code, printed, said) = run(arguments);
    assert_eq!(code, 0, "{arguments:?}: {printed}{said}");
    for part in [
        // 1, 2, both of 3's old notation, two of 4, 5, 8.
        "re-keyed     7 pairs have the key of another reading, 4 of which",
        "2 pairs name nobody any more",
        "1 pairs have an id that is refused today",
        "1 pairs were recorded under notations that are several people today",
    ] {
        assert!(printed.contains(part), "{printed} has no {part:?}");
    }
    printed
}

/// What must hold of the copy.
async fn assert_denies_all(ledger: &str, sidecar: &Sidecar) {
    for id in DENIED {
        let said = reason(sidecar, id, "acme", "marketing").await;
        assert!(said as i32 > 9, "{id}: {said:?}");
    }
    for id in ["US.10", "15550100011"] {
        assert_eq!(reason(sidecar, id, "acme", "marketing").await, Reason::OptedIn, "{id}");
    }
    for id in ["340612345012", "+34 (0)612 345 012"] {
        assert_eq!(reason(sidecar, id, "acme", "utility").await, Reason::OptedOutAll, "{id}");
    }
    for id in ["15550100004", "tel:+15550100005", "whatsapp:+15550100006"] {
        assert_eq!(reason(sidecar, id, "acme", "utility").await, Reason::Suppressed, "{id}");
    }
    let addr = ["--addr", sidecar.record.as_str()];
    // The history of both, with what stands again.
    let (code, printed, said) = run(&[&["history", "15550100001", "acme"], &addr[..]].concat());
    assert_eq!(code, 0, "{said}");
    for part in ["opt-out * [letter]", "opt-in", "denied under another notation of this id"] {
        assert!(printed.contains(part), "{printed} has no {part:?}");
    }
    // A STOP under the number reaches the id that another notation was linked to.
    let mut records = sidecar.records().await;
    records.record_event(event("15550100008", "acme", opt_out("*"))).await.unwrap();
    assert_eq!(reason(sidecar, "US.8", "acme", "marketing").await, Reason::OptedOutAll);
    // What is refused today is still shown.
    let (code, printed, said) = run(&[&["history", "07700 900007", "acme"], &addr[..]].concat());
    assert!(code == 0 && printed.contains("letter"), "{printed}{said}");
    // The next event of somebody who was erased under an id of its own is not the first of anybody.
    let later = event("whatsapp:+15550100006", "acme", opt_out("utility"));
    records.record_event(later).await.unwrap();
    for id in ["15550100006", "whatsapp:+15550100006"] {
        assert_eq!(reason(sidecar, id, "acme", "marketing").await, Reason::Suppressed, "{id}");
    }
    if ledger.starts_with("redis") {
        let (code, printed, said) = run(&["ledger", "verify", "--ledger", ledger]);
        assert_eq!(code, 0, "{printed}{said}");
    }
}

#[tokio::test]
async fn a_file_of_the_version_before_is_refused_re_keyed_and_denies_all_that_it_denied() {
    let folder = tempfile::tempdir().unwrap();
    let path = ledger_in(folder.path());
    old_file(&path).await;
    let address = format!("file:{}", path.display());
    let said = try_serve(&address);
    // It can be looked at.
    let (code, printed, _) = run(&["ledger", "status", "--ledger", &address]);
    assert!(code == 0 && printed.contains("keys       version 1"), "{printed}");
    let (code, printed, error) = run(&["ledger", "verify", "--ledger", &address]);
    assert_eq!(code, 0, "{printed}{error}");
    copied(&command_in(&said));
    let copy = format!("{address}.rekeyed");
    let (code, printed, error) = run(&["ledger", "verify", "--ledger", &copy]);
    assert_eq!(code, 0, "{printed}{error}");
    let flags = ["--record", "127.0.0.1:0"];
    let sidecar = Sidecar::try_start_by(Command::new(BINARY), &copy, &flags, &[]).unwrap();
    live_within(&sidecar, PATIENCE).await;
    assert_denies_all(&copy, &sidecar).await;
    // A copy of the copy keeps the keys.
    drop(sidecar);
    let again = folder.path().join("again.redb");
    let to = format!("file:{}", again.display());
    let (code, printed, error) = run(&["ledger", "copy", &copy, &to, "--json"]);
    assert!(code == 0 && printed.contains("\"rekeyed\":null"), "{printed}{error}");
    // A later version's keys are refused, too.
    set_meta(&again, 3, |secret| [&[9], &secret[1..]].concat());
    assert!(try_serve(&to).contains("newer consentd"));
    let other = format!("{to}.other");
    let (code, printed, error) = run(&["ledger", "copy", &to, &other]);
    assert!(code == 2 && error.contains("newer consentd"), "{printed}{error}");
}

#[tokio::test]
async fn a_redis_of_the_version_before_is_refused_re_keyed_and_denies_all_that_it_denied() {
    let (redis, address) = old_redis().await;
    let said = try_serve(&address);
    let command = command_in(&said);
    assert_eq!(command[..4], ["ledger", "copy", &address, "TO"]);
    let (code, printed, error) = run(&["ledger", "verify", "--ledger", &address]);
    assert_eq!(code, 0, "{printed}{error}");
    // Into another database, and into a file.
    let copy = format!("{address}/1");
    copied(&["ledger", "copy", &address, &copy]);
    let sidecar = serve(&copy, &["--record", "127.0.0.1:0"], &[]);
    live_within(&sidecar, PATIENCE).await;
    assert_denies_all(&copy, &sidecar).await;
    let folder = tempfile::tempdir().unwrap();
    let file = format!("file:{}", ledger_in(folder.path()).display());
    copied(&["ledger", "copy", &address, &file]);
    let sidecar = Sidecar::try_start(&ledger_in(folder.path()), &["--record", "127.0.0.1:0"]);
    let sidecar = sidecar.unwrap();
    live_within(&sidecar, PATIENCE).await;
    assert_denies_all(&file, &sidecar).await;
    set_secret(&redis, "'\\9' .. secret");
    assert!(try_serve(&address).contains("newer consentd"));
}
