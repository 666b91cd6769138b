//! What arrives, by number and field: the metric, and the doctor that reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::client::{
    Files, NUMBER, SCOPED, SECRET, TOKEN, USER, acme, deliver, file, fixture, redis,
};
use crate::sidecar::{Sidecar, eventually, run};
use crate::world::wall;

/// The times of arrivals that a receiver serves, by what its labels say.
async fn arrivals(sidecar: &Sidecar) -> BTreeMap<String, i64> {
    let metrics = sidecar.get("/metrics").await.1;
    let of_series = metrics.lines().filter_map(|line| {
        let labels = line.strip_prefix("consent_webhook_last_update_timestamp_seconds{")?;
        let (labels, value) = labels.split_once("} ")?;
        let values = labels.split(',').map(|label| label.split('"').nth(1).unwrap());
        Some((values.collect::<Vec<_>>().join(" "), value.parse().unwrap()))
    });
    of_series.collect()
}

/// The series that are not zero.
async fn arrived(sidecar: &Sidecar) -> Vec<String> {
    let all = arrivals(sidecar).await.into_iter();
    all.filter(|(_, time)| *time != 0).map(|(series, _)| series).collect()
}

/// The numbers of two businesses.
fn two() -> Vec<(String, String)> {
    [acme(), vec![("22".to_owned(), "other".to_owned())]].concat()
}

#[tokio::test]
async fn the_last_update_is_told_by_field_and_number() {
    let files = Files::new(&two());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let all = arrivals(&sidecar).await;
    assert_eq!(all.len(), 2 * 7 + 2, "each starts at zero: {all:?}");
    assert_eq!(arrived(&sidecar).await, [""; 0]);
    let before = wall() / 1_000;
    for (payload, series) in [
        ("inbound_text", format!("messages message {NUMBER}")),
        ("status_delivered", format!("messages status {NUMBER}")),
        ("call_user_initiated", format!("calls call {NUMBER}")),
        ("user_preferences_stop", format!("user_preferences preference {NUMBER}")),
        ("standby_stop", format!("standby message {NUMBER}")),
        ("standby_failed_131050", format!("standby status {NUMBER}")),
        ("history_stop", format!("history message {NUMBER}")),
    ] {
        assert!(!arrived(&sidecar).await.contains(&series), "{series} before {payload}");
        assert_eq!(deliver(&sidecar.webhook, &fixture(payload, NUMBER)).await, 200);
        assert!(arrived(&sidecar).await.contains(&series), "{series} after {payload}");
    }
    let after = wall() / 1_000;
    for (series, time) in arrivals(&sidecar).await {
        let is_now = (before..=after).contains(&time);
        assert!(if series.ends_with(NUMBER) { is_now } else { time == 0 }, "{series} {time}");
    }
    // Unsigned, for another number, and without any: none of it is an arrival.
    let text = fixture("inbound_text", "22");
    assert_eq!(super::client::post(&sidecar.webhook, "", &text).await.status, 403);
    assert_eq!(deliver(&sidecar.webhook, &fixture("inbound_text", "33")).await, 200);
    let metrics = sidecar.get("/metrics").await.1;
    assert!(!metrics.contains("\"33\"") && !metrics.contains(USER) && !metrics.contains(SCOPED));
    assert!(arrived(&sidecar).await.iter().all(|series| !series.ends_with(" 22")));
    // Fields of the account have no number.
    for field in ["template_category_update", "account_update"] {
        let body = format!(
            r#"{{"object": "whatsapp_business_account", "entry": [{{"id": "102290129340398",
                "changes": [{{"field": "{field}", "value": {{"event": "A"}}}}]}}]}}"#
        );
        assert_eq!(deliver(&sidecar.webhook, body.as_bytes()).await, 200);
        assert!(arrived(&sidecar).await.contains(&format!("{field} other ")), "{field}");
    }
}

#[tokio::test]
async fn series_follow_the_configured_numbers() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    assert_eq!(deliver(&sidecar.webhook, &fixture("inbound_text", NUMBER)).await, 200);
    let series = format!("messages message {NUMBER}");
    let before = arrivals(&sidecar).await[&series];
    files.name(&two());
    eventually("the new number starts at zero", || async {
        arrivals(&sidecar).await.get("user_preferences preference 22") == Some(&0)
    })
    .await;
    assert_eq!(arrivals(&sidecar).await[&series], before, "a reload forgets nothing");
    files.name(&[("22".to_owned(), "other".to_owned())]);
    eventually("the former number has no series", || async {
        !arrivals(&sidecar).await.keys().any(|series| series.ends_with(NUMBER))
    })
    .await;
}

/// Runs the doctor on these receivers; gives its exit code, what it printed, and its errors.
fn doctor(files: &Files, receivers: &[&Sidecar], flags: &[&str]) -> (i32, String, String) {
    let admin = receivers.iter().map(|one| one.admin.as_str()).collect::<Vec<_>>().join(",");
    let ours = files.flags();
    let ours = ours.iter().map(String::as_str);
    let all = ["webhook", "doctor", "--admin", &admin].into_iter().chain(ours);
    run(&all.chain(flags.iter().copied()).collect::<Vec<_>>())
}

/// The verdict on a kind of update, from the doctor's JSON.
fn verdict(report: &Value, number: &str, field: &str, kind: &str) -> (String, String, bool) {
    let rows = report["updates"].as_array().unwrap();
    let row = rows
        .iter()
        .find(|row| row["number"] == number && row["field"] == field && row["kind"] == kind);
    let row = row.unwrap_or_else(|| panic!("no row of {number} {field} {kind}: {report}"));
    let text = |name: &str| row[name].as_str().unwrap().to_owned();
    (text("subscribed"), text("verdict"), row["finding"].as_bool().unwrap())
}

/// Meta's two answers: the app's fields, and an override of the first number.
fn answers(files: &Files, fields: &[&str]) -> [String; 2] {
    let mut all = String::new();
    for field in fields {
        write!(all, r#"{{"name": "{field}", "version": "v25.0"}},"#).unwrap();
    }
    let all = all.trim_end_matches(',');
    files.write(
        "app.json",
        &format!(
            r#"{{"data": [{{"object": "whatsapp_business_account", "active": true,
                "callback_url": "https://app.example/webhook?key=hidden", "fields": [{all}]}}]}}"#
        ),
    );
    files.write(
        "numbers.json",
        &format!(
            r#"{{"data": [
                {{"id": "{NUMBER}", "webhook_configuration": {{
                    "phone_number": "https://here.example/webhook",
                    "application": "https://app.example/webhook?key=hidden"}}}},
                {{"id": "22", "webhook_configuration": {{
                    "application": "https://app.example/webhook?key=hidden"}}}}]}}"#
        ),
    );
    ["app.json", "numbers.json"].map(|name| files.path(name).display().to_string())
}

#[tokio::test]
async fn the_doctor_says_what_is_missing_and_how_to_mend_it() {
    let files = Files::new(&two());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    for payload in ["inbound_text", "inbound_stop", "status_delivered"] {
        assert_eq!(deliver(&sidecar.webhook, &fixture(payload, NUMBER)).await, 200);
    }
    let (code, text, errors) = doctor(&files, &[&sidecar], &[]);
    assert_eq!(code, 0, "it is too early to miss anything: {text}{errors}");
    for part in ["what is subscribed is not known", "messages (message)", "not yet", "healthy"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let [app, numbers] = answers(&files, &["messages", "user_preferences"]);
    let flags = ["--subscriptions", &app, "--subscriptions", &numbers, "--output", "json"];
    let (code, json, errors) = doctor(&files, &[&sidecar], &flags);
    assert_eq!(code, 1, "{json}{errors}");
    let report: Value = serde_json::from_str(&json).unwrap();
    let is = |number, field, kind, subscribed: &str, said: &str, finding| {
        let expected = (subscribed.to_owned(), said.to_owned(), finding);
        assert_eq!(verdict(&report, number, field, kind), expected, "{number} {field} {kind}");
    };
    is(NUMBER, "messages", "message", "yes", "arrives", false);
    is(NUMBER, "user_preferences", "preference", "elsewhere", "missing", true);
    is("22", "user_preferences", "preference", "yes", "not yet", false);
    is(NUMBER, "calls", "call", "no", "missing", false);
    is("", "template_category_update", "other", "no", "missing", false);
    let (code, text, _) = doctor(&files, &[&sidecar], &flags[..4]);
    assert_eq!(code, 1);
    assert!(text.contains("mend: an override takes this number's webhooks here"), "{text}");
    assert!(text.contains("https://app.example/webhook."), "{text}");
    for private in [SECRET, TOKEN, USER, SCOPED, "hidden", "wamid"] {
        assert!(!json.contains(private) && !text.contains(private), "{private}: {text}{json}");
    }
    let [app, _] = answers(&files, &["user_preferences"]);
    let (code, text, _) = doctor(&files, &[&sidecar], &["--subscriptions", &app]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("subscribe the app to messages"), "{text}");
}

#[tokio::test]
async fn the_doctor_finds_a_silent_number_and_takes_the_latest_of_all_receivers() {
    let (_redis, ledger) = redis(&[]);
    let files = Files::new(&acme());
    let (first, second) = (files.receive(&ledger), files.receive(&ledger));
    let text = fixture("inbound_text", NUMBER);
    for payload in [&fixture("user_preferences_stop", NUMBER), &text] {
        eventually("it is recorded", || async { deliver(&second.webhook, payload).await == 200 })
            .await;
    }
    let both = &[&first, &second];
    let flags = ["--ledger", ledger.as_str(), "--output", "json"];
    let (code, json, errors) = doctor(&files, both, &flags);
    assert_eq!(code, 0, "{json}{errors}");
    let report: Value = serde_json::from_str(&json).unwrap();
    let at_either = verdict(&report, NUMBER, "messages", "message");
    assert_eq!(at_either, ("unknown".into(), "arrives".into(), false));
    let acme = &report["ledger"]["businesses"]["acme"];
    assert_eq!(acme["lastInboundTime"], "2025-06-08T20:59:43.000Z", "{json}");
    assert!(
        acme["lastPreferenceTime"].is_string() && acme["changes"].as_u64() >= Some(2),
        "{json}"
    );
    // The first receiver alone has got nothing, and has run for longer than the number may be silent.
    let start = "process_start_time_seconds ";
    eventually("a second has passed since its start", || async {
        let metrics = first.get("/metrics").await.1;
        let line = metrics.lines().find(|line| line.starts_with(start)).unwrap();
        let started = line[start.len()..].split('.').next().unwrap().parse::<i64>().unwrap();
        wall() / 1_000 > started + 2
    })
    .await;
    let (code, text, _) = doctor(&files, &[&first], &["--silent-after", "1s"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("never") && text.contains("nothing arrives for this number"), "{text}");
    eventually("the second falls silent", || async {
        doctor(&files, both, &["--silent-after", "1s"]).1.contains("silent")
    })
    .await;
}

#[tokio::test]
async fn the_doctor_that_cannot_look_says_so() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let ours = files.flags();
    let with = |flags: &[&str]| {
        let ours = ours.iter().map(String::as_str);
        let all = ["webhook", "doctor"].into_iter().chain(ours).chain(flags.iter().copied());
        run(&all.collect::<Vec<_>>())
    };
    for (flags, part) in [
        (&["--admin", "127.0.0.1:1"][..], "no receiver could be asked"),
        (&["--admin", &sidecar.webhook], "status 404"),
        (&["--admin", "none"], "must serve /metrics"),
        (&["--admin", &sidecar.admin, "--subscriptions", "/nowhere.json"], "/nowhere.json"),
        (&["--admin", &sidecar.admin, "--ledger", "redis://127.0.0.1:1"], "127.0.0.1:1"),
        (&["--admin", &sidecar.admin, "--ledger", "file:/nowhere/ledger"], "there is no ledger"),
    ] {
        let (code, text, errors) = with(flags);
        assert_eq!(code, 2, "{flags:?}: {text}{errors}");
        assert!(errors.contains(part), "{flags:?}: {errors}");
    }
    let (code, _, errors) = run(&["webhook", "doctor", "--config", "/nowhere.toml"]);
    assert!(code == 2 && errors.contains("/nowhere.toml"), "{errors}");
    let plain = Sidecar::live(tempfile::tempdir().unwrap().path(), &[]).await;
    let (code, _, errors) = with(&["--admin", &plain.admin]);
    assert!(code == 2 && errors.contains("receives no webhooks"), "{errors}");
    // The file of the ledger belongs to the sidecar: that is no fault.
    let ledger = file(files.folder.path());
    let (code, text, errors) = with(&["--admin", &sidecar.admin, "--ledger", &ledger]);
    assert_eq!(code, 0, "{text}{errors}");
    assert!(text.contains("not looked at"), "{text}");
    // A receiver of another file, and secrets that cannot be read, are findings.
    let other = Files::new(&two());
    std::fs::remove_file(other.path("token")).unwrap();
    let (code, text, _) = doctor(&other, &[&sidecar], &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("does not know the number 22"), "{text}");
    assert!(text.contains("could not start with these settings"), "{text}");
}

#[test]
fn the_doctor_does_not_change_how_a_receiver_is_started() {
    let (code, _, errors) = run(&["webhook", "--ledger", "redis://127.0.0.1:1"]);
    assert!(code == 2 && errors.contains("--config"), "{errors}");
    let (code, _, errors) = run(&["webhook", "--config", "/nowhere.toml", "doctor"]);
    assert!(code == 2 && errors.contains("doctor"), "{errors}");
}
