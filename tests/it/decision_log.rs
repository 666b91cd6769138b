//! What was decided, line by line: against the real binary.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use consentd::grpc::pb;
use serde_json::Value;
use tokio::time::timeout;

use crate::sidecar::{
    BINARY, PATIENCE, Sidecar, event, eventually, ledger_in, opt_in, question, run,
};

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A counter's value.
async fn counted(sidecar: &Sidecar, name: &str) -> u64 {
    let (_, metrics) = sidecar.get("/metrics").await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value.expect("it is told").trim().parse().unwrap()
}

const WRITTEN: &str = "consent_decision_log_written_total";
const DROPPED_BY_QUEUE: &str = "consent_decision_log_dropped_total{cause=\"queue\"}";
const DROPPED_BY_FILE: &str = "consent_decision_log_dropped_total{cause=\"file\"}";

/// A sidecar that logs decisions in this file of the folder.
async fn logging(folder: &Path, flags: &[&str]) -> (Sidecar, PathBuf) {
    let path = folder.join("decisions.ndjson");
    let flags = [&["--decision-log", path.to_str().unwrap()], flags].concat();
    (Sidecar::live(folder, &flags).await, path)
}

/// Screens as many users, in messages of ten thousand; all are denied.
async fn screen(sidecar: &Sidecar, users: usize) {
    let users: Vec<_> = (0..users).map(|user| format!("4915{user:08}")).collect();
    let asked = users.chunks(10_000).map(|users| pb::FilterRecipientsRequest {
        template: None,
        business_id: "acme".into(),
        category: "marketing".into(),
        form: 0,
        user_ids: users.to_vec(),
    });
    let asked: Vec<_> = asked.collect();
    let count = asked.len();
    let mut checks = sidecar.checks().await;
    let answers = checks.filter_recipients(tokio_stream::iter(asked)).await.unwrap();
    let mut answers = answers.into_inner();
    for _ in 0..count {
        let answer = timeout(PATIENCE, answers.message()).await.expect("an answer in time");
        assert_eq!(answer.unwrap().unwrap().allowed_count, 0);
    }
}

#[tokio::test]
async fn every_decision_of_every_kind_of_call_is_logged_and_names_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (sidecar, path) = logging(folder.path(), &[]).await;
    let (mut checks, mut records) = (sidecar.checks().await, sidecar.records().await);
    let mut given = event("15550123456", "acme", opt_in("marketing"));
    given.request_id = "1".into();
    let revision = records.record_event(given).await.unwrap().into_inner().revision;
    let asked = pb::CanSendRequest {
        form: pb::MessageForm::Template.into(),
        ..question("+1 555 012 3456", "acme", "marketing.offers")
    };
    let denied = question("15550123457", "acme", "utility");
    let malformed = question("15550123456", "acme", "news");
    assert!(checks.can_send(asked.clone()).await.unwrap().into_inner().allowed);
    assert!(checks.can_send(malformed.clone()).await.is_err());
    let batch = vec![asked.clone(), malformed.clone(), denied.clone()];
    checks.batch_can_send(pb::BatchCanSendRequest { requests: batch.clone() }).await.unwrap();
    let stream = (1..)
        .zip(batch)
        .map(|(sequence, request)| pb::StreamCanSendRequest { sequence, request: Some(request) });
    let stream = tokio_stream::iter(stream.collect::<Vec<_>>());
    let mut answers = checks.stream_can_send(stream).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    let screened = pb::FilterRecipientsRequest {
        template: None,
        business_id: "acme".into(),
        category: "service".into(),
        form: pb::MessageForm::FreeForm.into(),
        user_ids: vec!["15550123457".into(), "not a number\n".into(), "15550123456".into()],
    };
    let screened = checks.filter_recipients(tokio_stream::iter([screened])).await.unwrap();
    let mut screened = screened.into_inner();
    while screened.message().await.unwrap().is_some() {}

    eventually("all decisions are written", || async { lines(&path).len() >= 7 }).await;
    let logged = lines(&path);
    let text = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    let told: Vec<_> = logged
        .iter()
        .map(|line| (text(line, "category"), text(line, "form"), text(line, "reason")))
        .collect();
    let opted_in = ("marketing.offers", "TEMPLATE", "OPTED_IN");
    let none = ("utility", "UNSPECIFIED", "NO_CONSENT");
    let closed = ("service", "FREE_FORM", "WINDOW_CLOSED");
    let expected = [opted_in, opted_in, none, opted_in, none, closed, closed];
    let owned = |(a, b, c): (&str, &str, &str)| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(told, expected.map(owned));
    for line in &logged {
        assert_eq!(line["allowed"], line["reason"] == "OPTED_IN", "{line}");
        assert_eq!(line["revision"], revision, "{line}");
        let staleness = line["staleness"].as_f64().unwrap();
        assert!((0.0..5.0).contains(&staleness), "{line}");
        humantime::parse_rfc3339(line["time"].as_str().unwrap()).unwrap();
    }
    // A line is found by what the pair's standing tells.
    let mut of = BTreeMap::new();
    for user in ["15550123456", "15550123457"] {
        let asked = pb::GetConsentRequest { user_id: user.into(), business_id: "acme".into() };
        of.insert(user, checks.get_consent(asked).await.unwrap().into_inner().pair_key);
    }
    let (first, second) = (&of["15550123456"], &of["15550123457"]);
    let pairs: Vec<_> = logged.iter().map(|line| text(line, "pair")).collect();
    assert_eq!(
        pairs.iter().collect::<Vec<_>>(),
        [first, first, second, first, second, second, first]
    );
    let (code, printed, _) = run(&["get", "15550123457", "acme", "--addr", &sidecar.grpc]);
    assert!(code == 0 && printed.contains(second.as_str()), "{printed}");
    let written = fs::read_to_string(&path).unwrap();
    assert!(!written.contains("5550123") && !written.contains("acme"), "{written}");
    assert_eq!(counted(&sidecar, WRITTEN).await, 7);
}

#[tokio::test]
async fn a_share_of_the_denials_is_logged_and_a_drain_writes_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--decision-log-only", "denials", "--decision-log-sample", "0.25"];
    let (mut sidecar, path) = logging(folder.path(), &flags).await;
    let mut given = event("15550123456", "acme", opt_in("marketing"));
    given.request_id = "1".into();
    sidecar.records().await.record_event(given).await.unwrap();
    let mut checks = sidecar.checks().await;
    for _ in 0..40 {
        let asked = question("15550123456", "acme", "marketing");
        assert!(checks.can_send(asked).await.unwrap().into_inner().allowed);
    }
    screen(&sidecar, 20_000).await;
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
    let logged = lines(&path);
    // A quarter, by eight standard deviations of 61.
    assert!((4_510..=5_490).contains(&logged.len()), "{}", logged.len());
    assert!(logged.iter().all(|line| line["allowed"] == false));
}

#[tokio::test]
async fn files_are_begun_anew_and_the_last_ones_kept() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--decision-log-max-size", "64KiB", "--decision-log-keep", "2"];
    let (mut sidecar, path) = logging(folder.path(), &flags).await;
    screen(&sidecar, 10_000).await;
    eventually("all decisions are written", || async {
        counted(&sidecar, WRITTEN).await == 10_000
    })
    .await;
    // Who moves the file away, as logrotate does, need not tell.
    fs::rename(&path, folder.path().join("moved")).unwrap();
    eventually("another file is begun", || async {
        let asked = question("15550123456", "acme", "marketing");
        sidecar.checks().await.can_send(asked).await.unwrap();
        path.exists() && !lines(&path).is_empty()
    })
    .await;
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
    let mut logged = 0;
    for name in ["decisions.ndjson.2", "decisions.ndjson.1", "moved"] {
        let file = folder.path().join(name);
        assert!(fs::metadata(&file).unwrap().len() <= 64 * 1024, "{name}");
        logged += lines(&file).len();
    }
    // Two full files, of more than half of the size, and what the third has.
    assert!((320..1_100).contains(&logged), "{logged}");
    assert!(!folder.path().join("decisions.ndjson.3").exists());
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("decisions.ndjson");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (mut sidecar, _) = logging(folder.path(), &[]).await;
    screen(&sidecar, 90_000).await;
    let dropped = counted(&sidecar, DROPPED_BY_QUEUE).await;
    // All but the queue, and what the thread has taken out of it.
    assert!((20_000..90_000 - 65_536 + 1).contains(&dropped), "{dropped}");
    let mut checks = sidecar.checks().await;
    for _ in 0..100 {
        let asked = question("15550123456", "acme", "marketing");
        let answer = timeout(Duration::from_secs(5), checks.can_send(asked)).await;
        assert!(!answer.expect("at once").unwrap().into_inner().allowed);
    }
    assert_eq!(counted(&sidecar, DROPPED_BY_QUEUE).await, dropped + 100);
    eventually("it is told", || async { sidecar.said().contains("more is decided than") }).await;
    let began = Instant::now();
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
    assert!(began.elapsed() < Duration::from_secs(20), "an end that waits for nobody");
    let said = sidecar.said();
    assert!(said.contains("last decisions could not be written"), "{said}");
    assert_eq!(said.matches("more is decided than").count(), 1, "{said}");
}

#[tokio::test]
async fn a_full_disk_is_told_once_and_counted_and_checks_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &["--decision-log", "/dev/full"]).await;
    for asked in 1..=3 {
        let mut checks = sidecar.checks().await;
        checks.can_send(question("1", "acme", "marketing")).await.unwrap();
        eventually("the decision is dropped", || async {
            counted(&sidecar, DROPPED_BY_FILE).await == asked
        })
        .await;
    }
    assert_eq!(counted(&sidecar, WRITTEN).await, 0);
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
    let said = sidecar.said();
    assert_eq!(said.matches("decisions cannot be logged").count(), 1, "{said}");
    assert!(said.contains("No space left"), "{said}");
}

#[tokio::test]
async fn standard_output_has_decisions_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" > \"$0\"", out.to_str().unwrap(), BINARY]);
    let ledger = format!("file:{}", ledger_in(folder.path()).display());
    let flags = ["--decision-log", "stdout", "--log", "debug"];
    let mut sidecar = Sidecar::try_start_by(command, &ledger, &flags, &[]).unwrap();
    sidecar.wait_until_live().await;
    sidecar.checks().await.can_send(question("1", "acme", "marketing")).await.unwrap();
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
    let logged = lines(&out);
    assert_eq!(logged.len(), 1);
    assert_eq!(logged[0]["reason"], "NO_CONSENT");
}

#[test]
fn a_log_that_cannot_be_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = format!("file:{}", ledger_in(folder.path()).display());
    for (flags, parts) in [
        (&["--decision-log", "/nowhere/log"][..], ["--decision-log: cannot open", "/nowhere/log"]),
        (&["--decision-log-sample", "0.5"], ["--decision-log-sample", "needs --decision-log"]),
        (&["--decision-log-only", "denials"], ["--decision-log-only", "needs --decision-log"]),
        (
            &["--decision-log", "stdout", "--decision-log-only", "denied"],
            ["--decision-log-only", "all or denials"],
        ),
        (
            &["--decision-log", "stdout", "--decision-log-sample", "0"],
            ["--decision-log-sample", "more than 0"],
        ),
        (
            &["--decision-log", "a", "--decision-log-max-size", "1KiB"],
            ["--decision-log-max-size", "64KiB"],
        ),
        (
            &["--decision-log", "a", "--decision-log-keep", "1001"],
            ["--decision-log-keep", "1000 or less"],
        ),
    ] {
        let fixed = ["serve", "--listen", "127.0.0.1:0", "--admin", "none", "--ledger", &ledger];
        let (code, _, error) = run(&[&fixed, flags].concat());
        assert_eq!(code, 2, "{flags:?}");
        for part in parts {
            assert!(error.contains(part), "{flags:?}: {error}");
        }
    }
}
