//! A ledger whose keys name no business, and the copy of it whose keys do.

use consentd_core::event::What;
use consentd_core::record::{HistoryEntry, Record};
use consentd_core::scope::Scope;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Appended, Change, Ledger, Options, Redis as RedisLedger, Target, TargetOptions, Update,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::sidecar::BINARY;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis((1_749_416_383 + seconds) * 1_000).unwrap()
}

/// Appends as a version before did: an opt-out from this scope, or an erasure.
async fn append(ledger: &Ledger, user: &str, business: &str, scope: Option<&str>) {
    let secret = ledger.identity().await.unwrap().secret.clone();
    let key = secret.read(user, business).unwrap();
    let stored = ledger.read(vec![key]).await.unwrap().pairs.remove(0).unwrap();
    let update = match scope {
        Some(scope) => {
            let scope = Scope::parse(scope).unwrap();
            let what = What::OptOut { scope, reference: "letter".into() };
            let mut record: Record = stored.record;
            for effect in what.effects(at(1)) {
                record.state.apply(&effect).unwrap();
            }
            let (user_id, business_id) = (user.to_owned(), business.to_owned());
            let (time, record_time) = (at(1), at(2));
            let entry = HistoryEntry {
                user_id: user_id.clone(),
                business_id: business_id.clone(),
                time,
                record_time,
                what,
            };
            Update { user_id, business_id, record, history: vec![entry], record_time }
        }
        None => Update {
            user_id: String::new(),
            business_id: String::new(),
            record: stored.record.tombstone(at(3)),
            history: Vec::new(),
            record_time: at(3),
        },
    };
    let change = Change { key, base: stored.version, update: Some(update) };
    let appended = ledger.append(vec![change]).await.unwrap();
    assert!(matches!(appended[..], [Appended::Committed(_)]), "{appended:?}");
}

/// Turns an empty ledger into one of key version 2, and records what that has.
async fn of_version_2(redis: &Redis, address: &str) {
    let script = "local secret = redis.call('HGET', KEYS[1], 'secret') \
                  return redis.call('HSET', KEYS[1], 'secret', '\\2' .. string.sub(secret, 2))";
    redis.command(&["EVAL", script, "1", "{consent:0}:meta"]);
    let target = Target::new(address, TargetOptions::default()).unwrap();
    let (ledger, task) = RedisLedger::new(target, Options::default());
    let running = tokio::spawn(task.run(CancellationToken::new()));
    let ledger = Ledger::Redis(ledger);
    append(&ledger, "15550100001", "acme", Some("*")).await;
    append(&ledger, "15550100001", "globex", Some("marketing")).await;
    for business in ["acme", "globex"] {
        append(&ledger, "15550100002", business, Some("marketing")).await;
        append(&ledger, "15550100002", business, None).await;
    }
    ledger.close().await;
    running.await.unwrap();
}

#[tokio::test]
async fn ledger_of_key_version_2_is_served_whole_and_in_part_once_it_is_copied() {
    let (redis, address) = ledger();
    of_version_2(&redis, &address).await;
    // As it is: served whole, and by no partial table.
    let before = live(&address, &[]).await;
    let assert_denies = async |sidecar: &Sidecar, businesses: &[&str]| {
        for (business, said) in [("acme", Reason::OptedOutAll), ("globex", Reason::OptedOut)] {
            if businesses.contains(&business) {
                answers(sidecar, "15550100001", business, "marketing", said).await;
                answers(sidecar, "15550100002", business, "utility", Reason::Suppressed).await;
            }
        }
    };
    assert_denies(&before, &["acme", "globex"]).await;
    record(&before, "15550100003", "acme", opt_out("*")).await;
    answers(&before, "15550100003", "acme", "marketing", Reason::OptedOutAll).await;
    drop(before);
    let (code, printed, _) = run(&["ledger", "status", "--ledger", &address]);
    assert!(code == 0 && printed.contains("version 2"), "{printed}");
    let command = std::process::Command::new(BINARY);
    let said = Sidecar::try_start_by(command, &address, &["--business", "acme"], &[]);
    let said = said.err().expect("refused");
    assert!(said.contains(&format!("`consentd ledger copy {address} TO`")), "{said}");
    // The copy: what names nobody is held by everybody.
    let copy = format!("{address}/1");
    let (code, printed, said) = run(&["ledger", "copy", &address, &copy]);
    assert_eq!(code, 0, "{printed}{said}");
    assert!(printed.contains("2 pairs name nobody any more"), "{printed}");
    let (code, printed, said) = run(&["ledger", "verify", "--ledger", &copy]);
    assert_eq!(code, 0, "{printed}{said}");
    for (business, pairs) in [("acme", 4), ("globex", 3)] {
        let sidecar = live(&copy, &["--business", business]).await;
        assert_denies(&sidecar, &[business]).await;
        assert_eq!(status(&sidecar).await.pairs, pairs, "with the two that name nobody");
    }
    let full = live(&copy, &[]).await;
    assert_denies(&full, &["acme", "globex"]).await;
    // The next event of somebody who was erased continues the tombstone: it denies until it is lifted.
    record(&full, "15550100002", "acme", opt_in("marketing")).await;
    let partial = live(&copy, &["--business", "acme"]).await;
    for sidecar in [&full, &partial] {
        answers(sidecar, "15550100002", "acme", "marketing", Reason::Suppressed).await;
    }
    let lift = pb::consent_event::What::Suppression(pb::Suppression {
        suppressed: false,
        ..Default::default()
    });
    record(&full, "15550100002", "acme", lift).await;
    for sidecar in [&full, &partial] {
        answers(sidecar, "15550100002", "acme", "marketing", Reason::OptedIn).await;
    }
    answers(&full, "15550100002", "globex", "utility", Reason::Suppressed).await;
    let (code, printed, said) = run(&["ledger", "verify", "--ledger", &copy]);
    assert_eq!(code, 0, "{printed}{said}");
    // A copy of the copy, and one into a file, keep all of it.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ledger.redb");
    let to = format!("file:{}", file.display());
    for to in [format!("{address}/2"), to] {
        let (code, printed, said) = run(&["ledger", "copy", &copy, &to]);
        assert_eq!(code, 0, "{printed}{said}");
        let sidecar = live(&to, &[]).await;
        assert_denies(&sidecar, &["globex"]).await;
        answers(&sidecar, "15550100002", "acme", "marketing", Reason::OptedIn).await;
        // Erased once more, and at the other business for the first time since.
        for business in ["acme", "globex"] {
            let addr = ["--addr", sidecar.record.as_str()];
            let (code, printed, said) =
                run(&[&["erase", "15550100002", business, "--yes"], &addr[..]].concat());
            assert!(code < 2, "{printed}{said}");
            answers(&sidecar, "15550100002", business, "utility", Reason::Suppressed).await;
        }
    }
}
