//! Ids that differ by what nobody sees: refused wherever they come in, with the character named;
//! and what versions before recorded under them is still shown, erased and carried over.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;
use consentd::metrics::Metrics;
use consentd::recorder::Recorder;
use consentd_core::event::{Event, PlatformNames, What};
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_core::scope::Scope;
use consentd_core::submission::Submission;
use consentd_core::time::Timestamp;
use consentd_ledger::{Embedded, Ledger, Retention};
use tonic_types::StatusExt as _;

use crate::sidecar::{
    PATIENCE, Sidecar, event, eventually, ledger_in, opt_in, opt_out, question, run,
};

/// Ids that look like `US.1` or nearly so, and what is said of each.
const HIDDEN: [(&str, &str); 8] = [
    (" US.1", "U+0020 SPACE at byte 0"),
    ("US.1 ", "U+0020 SPACE at byte 4"),
    ("US.1\u{a0}", "U+00A0 NO-BREAK SPACE at byte 4"),
    ("US\u{200b}.1", "U+200B ZERO WIDTH SPACE at byte 2"),
    ("\u{202e}US.1", "U+202E RIGHT-TO-LEFT OVERRIDE at byte 0"),
    ("US.\u{ff11}", "U+FF11 at byte 3"),
    ("o\u{fb03}ce", "U+FB03 at byte 1"),
    ("cafe\u{301}", "U+0301 COMBINING ACUTE ACCENT at byte 4"),
];

/// What a call's status says of a field.
#[track_caller]
fn assert_named(status: &tonic::Status, field: &str, named: &str) {
    let details = status.get_error_details();
    let found = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    let said = found.iter().find(|found| found.field == field).map(|found| &found.description);
    let said = said.unwrap_or_else(|| panic!("{field} is not named: {status:?}"));
    assert!(said.contains(named), "{field}: {said:?} has no {named:?}");
}

#[tokio::test]
async fn a_hidden_character_is_refused_and_named_by_every_call() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let (mut checks, mut records) = (sidecar.checks().await, sidecar.records().await);
    for (id, named) in HIDDEN {
        for (user, business, field) in [(id, "acme", "user_id"), ("US.1", id, "business_id")] {
            let asked = question(user, business, "utility");
            let refused = checks.can_send(asked.clone()).await.unwrap_err();
            assert_named(&refused, field, named);
            let pair = pb::GetConsentRequest { user_id: user.into(), business_id: business.into() };
            assert_named(&checks.get_consent(pair).await.unwrap_err(), field, named);
            let refused = records.record_event(event(user, business, opt_out("*"))).await;
            assert_named(&refused.unwrap_err(), &format!("event.{field}"), named);
            let batch = pb::BatchCanSendRequest { requests: vec![asked.clone()] };
            let answers = checks.batch_can_send(batch).await.unwrap().into_inner();
            let Some(pb::batch_can_send_result::Result::Error(error)) = &answers.results[0].result
            else {
                panic!("{answers:?}")
            };
            assert!(error.message.contains(named), "{error:?}");
            let asked = pb::StreamCanSendRequest { sequence: 1, request: Some(asked) };
            let answers = checks.stream_can_send(tokio_stream::iter([asked])).await.unwrap();
            let answer = answers.into_inner().message().await.unwrap().unwrap();
            assert!(format!("{answer:?}").contains(named.split(' ').next().unwrap()), "{answer:?}");
        }
        let link = pb::Link { other_user_id: id.into(), moved: false };
        let link = event("US.1", "acme", pb::consent_event::What::Link(link));
        let refused = records.record_event(link).await.unwrap_err();
        assert_named(&refused, "event.link.other_user_id", named);
        let watch = pb::WatchConsentsRequest { business_id: id.into() };
        assert_named(&checks.watch_consents(watch).await.err().unwrap(), "business_id", named);
        let screened = pb::FilterRecipientsRequest {
            business_id: id.into(),
            category: "utility".into(),
            user_ids: vec!["US.1".into()],
            ..Default::default()
        };
        let mut answers =
            checks.filter_recipients(tokio_stream::iter([screened])).await.unwrap().into_inner();
        assert_named(&answers.message().await.unwrap_err(), "business_id", named);
    }
    for category in [" utility", "utility\u{200b}", "\u{ff55}tility", "utility.\u{ff4f}rders"] {
        let refused = checks.can_send(question("1", "acme", category)).await.unwrap_err();
        assert_named(&refused, "category", "U+");
        let refused = records.record_event(event("1", "acme", opt_out(category))).await;
        assert_named(&refused.unwrap_err(), "event.opt_out.scope", "U+");
        let refused = records.record_event(event("1", "acme", opt_in(category))).await;
        assert_named(&refused.unwrap_err(), "event.opt_in.category", "U+");
    }
    // What a phone number is written with is none of it.
    for phone in [" +1 555 012 3456 ", "+1\u{a0}(555)\u{2009}012-3456"] {
        records.record_event(event(phone, "acme", opt_out("*"))).await.unwrap();
        let answer = checks.can_send(question("15550123456", "acme", "utility")).await.unwrap();
        assert_eq!(answer.get_ref().reason(), Reason::OptedOutAll);
    }
}

#[tokio::test]
async fn a_hidden_character_is_refused_and_named_by_commands_imports_and_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let (code, _, said) =
        run(&["check", "US.1\u{200d}", "acme", "utility", "--addr", &sidecar.grpc]);
    assert!(code == 2 && said.contains("U+200D ZERO WIDTH JOINER at byte 4"), "{said}");
    let row = |user: &str| {
        format!(
            "{{\"userId\":\"{user}\",\"businessId\":\"acme\",\"eventTime\":\"2026-01-31T09:30:00Z\",\
             \"optOut\":{{\"scope\":\"*\"}}}}\n"
        )
    };
    let (file, rejects) = (folder.path().join("rows.ndjson"), folder.path().join("rejects"));
    fs::write(&file, [row("US.1"), row("US.1 ")].concat()).unwrap();
    let (file, to) = (file.to_str().unwrap(), rejects.to_str().unwrap());
    let (code, _, said) = run(&["import", file, "--rejects", to, "--addr", &sidecar.grpc]);
    assert!(code == 1 && said.contains("U+0020 SPACE at byte 4"), "{said}");
    assert_eq!(fs::read_to_string(&rejects).unwrap(), row("US.1 "));
    let config = folder.path().join("consentd.toml");
    fs::write(&config, "[keywords.business.\"acme\u{200c}\"]\n").unwrap();
    let flags = ["--config", config.to_str().unwrap()];
    let said = Sidecar::try_start(&folder.path().join("other.redb"), &flags).err().unwrap();
    assert!(said.contains("U+200C ZERO WIDTH NON-JOINER at byte 4"), "{said}");
}

/// Ids that versions before took, and the ones that are meant.
const OLD: [(&str, &str, &str, &str); 3] = [
    ("US.1 ", "acme", "US.1", "acme"),
    ("\u{ff35}S.2", "acme", "US.2", "acme"),
    ("US.3", "acme\u{200d}", "US.3", "acme"),
];

/// Makes a ledger in which somebody denied something under each of these ids, as by a version
/// before.
async fn recorded_before(path: &Path) {
    let (ledger, appender) = Embedded::open(path, Retention::default(), 1 << 20).unwrap();
    let appending = std::thread::spawn(move || appender.run());
    let ledger = Ledger::Embedded(ledger);
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let keywords = Keywords::new(KeywordLists::default());
    let names = PlatformNames::default();
    let recorder = Recorder::new(ledger.clone(), names, keywords, metrics);
    for (user, business, ..) in OLD {
        let event = Event {
            user_id: user.into(),
            business_id: business.into(),
            time: Timestamp::from_millis(1_749_416_383_000),
            what: What::OptOut { scope: Scope::All, reference: "letter".into() },
        };
        // No more can be said so: only what is in a ledger already.
        let new = Submission::new(event.clone(), String::new());
        assert!(recorder.record(&[new]).await[0].is_err());
        let old = Submission { is_replay: true, ..Submission::new(event, String::new()) };
        recorder.record(&[old]).await.remove(0).unwrap();
    }
    ledger.close().await;
    drop((recorder, ledger));
    appending.join().unwrap().unwrap();
}

#[tokio::test]
async fn what_was_recorded_under_an_old_id_is_shown_carried_over_and_erased() {
    let folder = tempfile::tempdir().unwrap();
    recorded_before(&ledger_in(folder.path())).await;
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let addr = ["--addr", sidecar.grpc.as_str()];
    let run = |arguments: &[&str]| run(&[arguments, &addr].concat());
    // Nobody is asked about in silence.
    for (user, business, ..) in OLD {
        let (code, _, said) = run(&["check", user, business, "utility"]);
        assert!(code == 2 && said.contains("U+"), "{said}");
        let (code, printed, said) = run(&["history", user, business]);
        assert!(code == 0 && printed.contains("opt-out * [letter]"), "{printed}{said}");
        let (code, printed, said) = run(&["subject", user, "--business", business]);
        assert!(code == 0 && printed.contains("opted out of *"), "{printed}{said}");
    }
    // An import of the export names exactly those, and takes them once they are written right.
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (all, rejected) = (path("all.ndjson"), path("rejected.ndjson"));
    assert_eq!(run(&["export", "--output", &all]).0, 0);
    let (code, _, said) = run(&["import", &all, "--rejects", &rejected]);
    assert!(code == 1 && said.matches("U+").count() == OLD.len(), "{said}");
    let mut rows = fs::read_to_string(&rejected).unwrap();
    for (user, business, right, right_business) in OLD {
        rows = rows.replace(&format!("\"{user}\""), &format!("\"{right}\""));
        rows = rows.replace(&format!("\"{business}\""), &format!("\"{right_business}\""));
    }
    let corrected = path("corrected.ndjson");
    fs::write(&corrected, rows).unwrap();
    let (code, _, said) = run(&["import", &corrected]);
    assert_eq!(code, 0, "{said}");
    let mut checks = sidecar.checks().await;
    for (_, _, user, business) in OLD {
        let answer = checks.can_send(question(user, business, "utility")).await.unwrap();
        assert_eq!(answer.get_ref().reason(), Reason::OptedOutAll, "{user}");
    }
    for (user, business, ..) in OLD {
        let (code, printed, said) = run(&["erase", user, business, "--yes"]);
        assert!(code == 0 && printed.starts_with("1 pair"), "{printed}{said}");
        let (code, printed, said) = run(&["history", user, business]);
        assert!(code == 0 && !printed.contains("letter"), "{printed}{said}");
    }
    // At every business, under a user's old id.
    recorded_again(&folder).await;
}

/// Erases an old id with no business named, on a ledger of its own.
async fn recorded_again(folder: &tempfile::TempDir) {
    let path = folder.path().join("again.redb");
    recorded_before(&path).await;
    let mut sidecar = Sidecar::start(&path, &[]);
    sidecar.wait_until_live().await;
    let (code, printed, said) = run(&["erase", OLD[0].0, "--yes", "--addr", &sidecar.grpc]);
    assert!(code == 0 && printed.starts_with("1 pair"), "{printed}{said}");
    eventually("it is gone", || async {
        run(&["history", OLD[0].0, "acme", "--addr", &sidecar.grpc]).1.find("letter").is_none()
    })
    .await;
    sidecar.signal("TERM");
    assert!(sidecar.wait(PATIENCE).success());
}
