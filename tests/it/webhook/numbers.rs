//! Stops inside WhatsApp at several numbers of one business, on both kinds of ledger.

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;

use super::client::{
    Files, NUMBER, SECOND, USER, acme, answers, deliver, file, fixture, reason, redis,
};
use crate::sidecar::{Sidecar, run};

fn both() -> Vec<(String, String)> {
    [NUMBER, SECOND].map(|number| (number.to_owned(), "acme".to_owned())).to_vec()
}

async fn hears(sidecar: &Sidecar, name: &str, number: &str) {
    assert_eq!(deliver(&sidecar.webhook, &fixture(name, number)).await, 200, "{name}");
}

/// At which numbers the user has stopped marketing.
async fn stops(sidecar: &Sidecar) -> Vec<String> {
    let request = pb::GetConsentRequest { user_id: USER.into(), business_id: "acme".into() };
    let known = sidecar.checks().await.get_consent(request).await.unwrap().into_inner();
    assert_eq!(known.platform_stopped, !known.stopped_phone_number_ids.is_empty());
    known.stopped_phone_number_ids
}

/// What a command prints, which must succeed.
#[track_caller]
fn told(sidecar: &Sidecar, arguments: &[&str]) -> String {
    let address = if arguments[0] == "get" { &sidecar.grpc } else { &sidecar.record };
    let (code, printed, error) = run(&[arguments, &["--addr", address]].concat());
    assert_eq!((code, &*error), (0, ""), "{arguments:?}: {printed}");
    printed
}

#[track_caller]
fn record(sidecar: &Sidecar, arguments: &[&str]) {
    told(sidecar, &[&["record", "platform", USER, "acme"], arguments].concat());
}

async fn resume_at_each_number_lifts_its_own_stop(sidecar: &Sidecar) {
    let opt_in =
        ["--method", "website", "--business-name", "Acme", "--time", "2020-01-01T00:00:00Z"];
    let statement = ["--statement", "Yes to offers from Acme on WhatsApp"];
    let what = ["record", "opt-in", USER, "acme", "marketing"];
    told(sidecar, &[&what[..], &opt_in, &statement].concat());
    answers(sidecar, USER, "acme", "marketing", Reason::OptedIn).await;
    hears(sidecar, "user_preferences_stop", NUMBER).await;
    hears(sidecar, "user_preferences_stop_second_number", SECOND).await;
    answers(sidecar, USER, "acme", "marketing", Reason::PlatformStopped).await;
    assert_eq!(stops(sidecar).await, [NUMBER, SECOND]);
    let shown = told(sidecar, &["get", USER, "acme"]);
    assert!(shown.contains(&format!("WhatsApp stop    true at {NUMBER}, {SECOND}\n")), "{shown}");
    hears(sidecar, "user_preferences_resume", NUMBER).await;
    assert_eq!(stops(sidecar).await, [SECOND]);
    assert_eq!(reason(sidecar, USER, "acme", "marketing").await, Reason::PlatformStopped);
    // Repeats of the stops change nothing.
    hears(sidecar, "user_preferences_stop", NUMBER).await;
    assert_eq!(stops(sidecar).await, [SECOND]);
    hears(sidecar, "user_preferences_resume_second_number", SECOND).await;
    answers(sidecar, USER, "acme", "marketing", Reason::OptedIn).await;
    // A refused message is a stop at the number that it was sent from.
    hears(sidecar, "status_failed_131050_second_number", SECOND).await;
    hears(sidecar, "status_failed_131050", NUMBER).await;
    assert_eq!(stops(sidecar).await, [NUMBER, SECOND]);
    let proven = told(sidecar, &["prove", USER, "acme", "--category", "marketing"]);
    for id in [NUMBER, SECOND] {
        assert!(proven.contains(&format!("delivery failure 131050 at {id}")), "{proven}");
    }
    let history = told(sidecar, &["history", USER, "acme"]);
    for said in
        ["stopped inside WhatsApp at 106540352242923", "resumed inside WhatsApp at 106540352242922"]
    {
        assert!(history.contains(said), "{said}: {history}");
    }
    assert!(history.contains("chain checked: intact"), "{history}");
}

#[tokio::test]
async fn stops_by_number_on_a_file() {
    let files = Files::new(&both());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    resume_at_each_number_lifts_its_own_stop(&sidecar).await;
    exports_say_the_number(&sidecar, &files).await;
}

#[tokio::test]
async fn stops_by_number_on_a_redis() {
    let (_redis, ledger) = redis(&[]);
    let files = Files::new(&both());
    let sidecar = files.serve(&ledger, &["--record", "127.0.0.1:0"]).await;
    resume_at_each_number_lifts_its_own_stop(&sidecar).await;
}

#[tokio::test]
async fn every_receiver_and_sidecar_of_a_ledger_knows_the_number() {
    let (_redis, ledger) = redis(&[]);
    let files = Files::new(&both());
    let sidecar = &files.serve(&ledger, &["--record", "127.0.0.1:0"]).await;
    let receiver = files.receive(&ledger);
    for (name, number) in
        [("user_preferences_stop", NUMBER), ("user_preferences_stop_second_number", SECOND)]
    {
        assert_eq!(deliver(&receiver.webhook, &fixture(name, number)).await, 200);
    }
    let so = "the stops of both numbers have arrived";
    crate::sidecar::eventually(so, || async { stops(sidecar).await == [NUMBER, SECOND] }).await;
    hears(sidecar, "user_preferences_resume", NUMBER).await;
    assert_eq!(stops(sidecar).await, [SECOND]);
    // A sidecar that reads the whole ledger sees what was by whom.
    let other = files.serve(&ledger, &["--record", "127.0.0.1:0"]).await;
    assert_eq!(stops(&other).await, [SECOND]);
    hears(&other, "user_preferences_resume_second_number", SECOND).await;
    let none: [&str; 0] = [];
    crate::sidecar::eventually("no stop stands", || async { stops(sidecar).await == none }).await;
}

/// What is exported is the same as what is recorded, and an import of it makes the same stops.
async fn exports_say_the_number(sidecar: &Sidecar, files: &Files) {
    let path = files.path("all.ndjson").display().to_string();
    told(sidecar, &["export", "--output", &path]);
    let lines = std::fs::read_to_string(&path).unwrap();
    assert_eq!(lines.matches(r#""phoneNumberId":"106540352242923""#).count(), 3, "{lines}");
    let checked = told(sidecar, &["verify-export", &path]);
    assert!(checked.contains("extend what was exported"), "{checked}");
    let forged = files.path("forged.ndjson").display().to_string();
    std::fs::write(&forged, lines.replace(SECOND, "106540352242924")).unwrap();
    let (code, said, _) = run(&["verify-export", &forged, "--addr", &sidecar.grpc]);
    assert_eq!(code, 1, "another number is another event: {said}");
    let list = told(sidecar, &["export", "--stops", "--business", "acme"]);
    let expected = "user_id,business_id,phone_number_id,since\n\
        16505551234,acme,106540352242922,2025-06-09T21:00:00.999Z\n\
        16505551234,acme,106540352242923,2025-06-09T21:01:40.999Z\n";
    assert_eq!(list, expected);
    let empty = Files::new(&both());
    let other = empty.serve(&file(empty.folder.path()), &[]).await;
    told(&other, &["import", &path]);
    assert_eq!(stops(&other).await, [NUMBER, SECOND]);
}

#[tokio::test]
async fn stop_of_an_unknown_number_is_lifted_where_the_business_has_one_number() {
    for (numbers, is_lifted) in [(acme(), true), (both(), false)] {
        let files = Files::new(&numbers);
        let sidecar = files.serve(&file(files.folder.path()), &[]).await;
        // As versions before recorded it, and as who uses the API without a number does.
        record(&sidecar, &["stop", "--time", "2024-11-01T00:00:00Z"]);
        assert_eq!(stops(&sidecar).await, [""]);
        hears(&sidecar, "user_preferences_stop", NUMBER).await;
        assert_eq!(stops(&sidecar).await, ["", NUMBER]);
        let shown = told(&sidecar, &["get", USER, "acme"]);
        let so = format!("WhatsApp stop    true at a number unknown, {NUMBER}\n");
        assert!(shown.contains(&so), "{shown}");
        hears(&sidecar, "user_preferences_resume", NUMBER).await;
        let left: &[&str] = if is_lifted { &[] } else { &[""] };
        assert_eq!(stops(&sidecar).await, left);
        // An operator who knows better lifts it, and nothing beside it.
        hears(&sidecar, "status_failed_131050", NUMBER).await;
        record(&sidecar, &["resume"]);
        assert_eq!(stops(&sidecar).await, [NUMBER]);
        record(&sidecar, &["resume", "--phone-number-id", NUMBER]);
        assert_eq!(reason(&sidecar, USER, "acme", "marketing").await, Reason::NoConsent);
    }
}

#[tokio::test]
async fn stop_under_a_linked_id_keeps_its_number() {
    let files = Files::new(&both());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    hears(&sidecar, "status_failed_131050_second_number", SECOND).await;
    let scoped = super::client::SCOPED;
    told(&sidecar, &["record", "link", USER, "acme", scoped]);
    record(&sidecar, &["stop", "--phone-number-id", NUMBER]);
    let under = told(&sidecar, &["get", scoped, "acme"]);
    assert!(under.contains(&format!("true at {NUMBER}, {SECOND}\n")), "{under}");
    let resume = ["record", "platform", scoped, "acme", "resume", "--phone-number-id", SECOND];
    told(&sidecar, &resume);
    let under = told(&sidecar, &["get", scoped, "acme"]);
    assert!(under.contains(&format!("true at {NUMBER}\n")), "{under}");
    assert_eq!(stops(&sidecar).await, [NUMBER, SECOND]);
}

#[tokio::test]
async fn number_that_cannot_be_one_is_refused() {
    let files = Files::new(&both());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let long = "1".repeat(65);
    for number in [&*long, "1065\u{200b}", " 1065"] {
        let stop = ["record", "platform", USER, "acme", "stop", "--phone-number-id", number];
        let (code, _, said) = run(&[&stop[..], &["--addr", &sidecar.grpc]].concat());
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("--phone-number-id"), "{said}");
    }
    assert!(stops(&sidecar).await.is_empty());
}

#[tokio::test]
async fn import_of_csv_takes_the_number() {
    let files = Files::new(&both());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let csv = "user_id,business_id,event_time,event,marketing_stopped,code,phone_number_id\n\
        16505551234,acme,2024-01-01T00:00:00Z,platform_preference,true,,106540352242922\n\
        16505551234,acme,2024-01-02T00:00:00Z,delivery_failure,,131050,106540352242923\n\
        16505551234,acme,2024-01-03T00:00:00Z,platform_preference,false,,106540352242922\n";
    files.write("stops.csv", csv);
    told(&sidecar, &["import", &files.path("stops.csv").display().to_string()]);
    assert_eq!(stops(&sidecar).await, [SECOND]);
    let misplaced = "user_id,business_id,event_time,event,scope,phone_number_id\n\
        16505551234,acme,2024-01-01T00:00:00Z,opt_out,*,106540352242922\n";
    files.write("out.csv", misplaced);
    let path = files.path("out.csv").display().to_string();
    let (code, printed, said) = run(&["import", &path, "--addr", &sidecar.record]);
    assert_eq!(code, 1, "{printed}");
    assert!(said.contains("phone_number_id"), "{said}");
}
