//! Failures of messages: what denies by itself, what denies if the operator says so, and what is shown.

use consentd::grpc::pb;
use consentd::grpc::pb::Reason::{
    self, CountryBlocked, FrequencyCapped, NoConsent, OptedIn, OptedOutAll, PlatformRefused,
    PlatformStopped, ReplyAfterOptOut, WindowClosed, WindowOpen,
};

use super::client::{
    Files, NUMBER, SCOPED, USER, acme, answers, deliver, file, fixture, history, redis,
};
use crate::sidecar::{Sidecar, eventually, opt_in, question, run};
use crate::world::{millis, wall};

/// Every code that an operator may have denied.
const ALL: [&str; 2] = ["--deny-after-failure", "130403, 130472,130497"];

/// A fixture as of these seconds.
fn as_of(name: &str, from: &str, seconds: i64) -> Vec<u8> {
    let text = String::from_utf8(fixture(name, NUMBER)).unwrap();
    assert!(text.contains(from), "{name}");
    text.replace(from, &seconds.to_string()).into_bytes()
}

fn failed(name: &str, seconds: i64) -> Vec<u8> {
    as_of(name, "1749502800", seconds)
}

fn wrote(seconds: i64) -> Vec<u8> {
    as_of("inbound_text", "1749416383", seconds)
}

async fn takes(sidecar: &Sidecar, body: &[u8]) {
    assert_eq!(deliver(&sidecar.webhook, body).await, 200, "{}", sidecar.said());
}

async fn opted_in(sidecar: &Sidecar, user: &str, category: &str, day: i64) {
    let mut event = crate::sidecar::event(user, "acme", opt_in(category));
    let time = prost_types::Timestamp { seconds: wall() / 1_000 - day * 86_400, nanos: 0 };
    event.event.as_mut().unwrap().event_time = Some(time);
    sidecar.records().await.record_event(event).await.unwrap();
}

/// Why a message of this category and form may be sent, or not, and when to try again.
async fn asked(
    sidecar: &Sidecar,
    user: &str,
    category: &str,
    form: pb::MessageForm,
) -> (Reason, Option<i64>) {
    let request = pb::CanSendRequest { form: form.into(), ..question(user, "acme", category) };
    let answer = sidecar.checks().await.can_send(request).await.unwrap().into_inner();
    (answer.reason(), answer.retry_time.map(millis))
}

/// The reasons for marketing templates and free-form marketing, for utility templates and free-form utility.
async fn reasons(sidecar: &Sidecar, user: &str) -> [Reason; 4] {
    use pb::MessageForm::{FreeForm, Template};
    let mut all = [Reason::Unspecified; 4];
    let asked_for = [
        ("marketing", Template),
        ("marketing", FreeForm),
        ("utility", Template),
        ("utility", FreeForm),
    ];
    for (slot, (category, form)) in all.iter_mut().zip(asked_for) {
        *slot = asked(sidecar, user, category, form).await.0;
    }
    all
}

async fn become_so(sidecar: &Sidecar, so: [Reason; 4]) {
    eventually(&format!("{so:?}"), || async { reasons(sidecar, USER).await == so }).await;
}

async fn known(sidecar: &Sidecar, user: &str) -> Vec<pb::HeldFailure> {
    let request = pb::GetConsentRequest { user_id: user.into(), business_id: "acme".into() };
    sidecar.checks().await.get_consent(request).await.unwrap().into_inner().failures
}

#[tokio::test]
async fn no_code_but_those_about_permission_denies_without_the_operators_word() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let now = wall() / 1_000;
    for category in ["marketing", "utility"] {
        opted_in(&sidecar, USER, category, 2).await;
    }
    let names = ["status_failed_130403", "status_failed_130472", "status_failed_130497"];
    for name in names {
        takes(&sidecar, &failed(name, now - 100)).await;
    }
    takes(&sidecar, &fixture("status_failed_account", NUMBER)).await;
    let after = fixture("status_failed_131026", NUMBER);
    takes(&sidecar, &after).await;
    eventually("all are recorded", || async {
        known(&sidecar, USER).await.len() == 3 && history(&sidecar, USER, "acme").await.len() >= 5
    })
    .await;
    become_so(&sidecar, [OptedIn, WindowClosed, OptedIn, WindowClosed]).await;
    takes(&sidecar, &wrote(now - 50)).await;
    become_so(&sidecar, [OptedIn, OptedIn, OptedIn, OptedIn]).await;
}

#[tokio::test]
async fn an_experiment_denies_marketing_templates_while_no_window_is_open() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &ALL).await;
    let now = wall() / 1_000;
    for category in ["marketing", "utility"] {
        opted_in(&sidecar, USER, category, 2).await;
    }
    takes(&sidecar, &failed("status_failed_130472", now - 100)).await;
    become_so(&sidecar, [PlatformRefused, WindowClosed, OptedIn, WindowClosed]).await;
    assert_eq!(asked(&sidecar, USER, "marketing", pb::MessageForm::Template).await.1, None);
    // Another failure afterwards hides nothing.
    takes(&sidecar, &failed("status_failed_131026", now - 90)).await;
    takes(&sidecar, &wrote(now - 80)).await;
    become_so(&sidecar, [OptedIn, OptedIn, OptedIn, OptedIn]).await;
    takes(&sidecar, &failed("status_failed_131047", now - 70)).await;
    become_so(&sidecar, [PlatformRefused, WindowClosed, OptedIn, WindowClosed]).await;
    let codes: Vec<_> = known(&sidecar, USER).await.iter().map(|one| one.code).collect();
    assert_eq!(codes, [130_472, 131_047]);
}

#[tokio::test]
async fn who_is_blocked_gets_nothing_until_a_message_proves_otherwise() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &ALL).await;
    let now = wall() / 1_000;
    opted_in(&sidecar, USER, "marketing", 2).await;
    takes(&sidecar, &wrote(now - 200)).await;
    takes(&sidecar, &failed("status_failed_130403", now - 100)).await;
    become_so(&sidecar, [PlatformRefused; 4]).await;
    // A message of before, which arrives late, proves nothing; nor does an opt-in.
    takes(&sidecar, &wrote(now - 150)).await;
    opted_in(&sidecar, USER, "utility", 0).await;
    become_so(&sidecar, [PlatformRefused; 4]).await;
    takes(&sidecar, &wrote(now - 50)).await;
    become_so(&sidecar, [OptedIn, OptedIn, OptedIn, OptedIn]).await;
    assert!(known(&sidecar, USER).await.is_empty());
}

#[tokio::test]
async fn a_country_that_the_business_may_not_message_stays_denied_and_allows_no_reply() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &ALL).await;
    let now = wall() / 1_000;
    takes(&sidecar, &as_of("inbound_stop", "1749416400", now - 200)).await;
    takes(&sidecar, &wrote(now - 150)).await;
    become_so(&sidecar, [OptedOutAll, OptedOutAll, OptedOutAll, ReplyAfterOptOut]).await;
    takes(&sidecar, &failed("status_failed_130497", now - 100)).await;
    become_so(&sidecar, [OptedOutAll; 4]).await;
    takes(&sidecar, &wrote(now - 50)).await;
    become_so(&sidecar, [OptedOutAll; 4]).await;
    opted_in(&sidecar, USER, "utility", 0).await;
    become_so(&sidecar, [OptedOutAll, OptedOutAll, PlatformRefused, PlatformRefused]).await;
}

#[tokio::test]
async fn a_flag_denies_by_its_codes_alone_and_marks_outlast_a_restart() {
    let files = Files::new(&acme());
    let (_redis, ledger) = redis(&[]);
    let now = wall() / 1_000;
    let saved = files.path("table").display().to_string();
    let snapshot = ["--record", "127.0.0.1:0", "--snapshot", saved.as_str()];
    let serve = async |codes: &str| {
        let flags = [&["--deny-after-failure", codes][..], &snapshot].concat();
        files.serve(&ledger, &flags).await
    };
    let mut sidecar = serve("130472").await;
    opted_in(&sidecar, USER, "marketing", 2).await;
    takes(&sidecar, &failed("status_failed_130472", now - 100)).await;
    // The later code is not denied, and does not displace the earlier one.
    takes(&sidecar, &failed("status_failed_130403", now - 90)).await;
    become_so(&sidecar, [PlatformRefused, WindowClosed, NoConsent, WindowClosed]).await;
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
    for (codes, so) in [
        ("130403", [PlatformRefused; 4]),
        ("none", [OptedIn, WindowClosed, NoConsent, WindowClosed]),
        ("130472", [PlatformRefused, WindowClosed, NoConsent, WindowClosed]),
    ] {
        let mut sidecar = serve(codes).await;
        become_so(&sidecar, so).await;
        sidecar.signal("TERM");
        assert!(sidecar.ended().await.success(), "{}", sidecar.said());
    }
}

#[tokio::test]
async fn a_failure_to_two_ids_is_of_both() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &ALL).await;
    let now = wall() / 1_000;
    let text = String::from_utf8(failed("status_failed_130403", now - 100)).unwrap();
    let both = format!("\"recipient_id\":\"{USER}\",\"recipient_user_id\":\"{SCOPED}\"");
    let text = text.replace(&format!("\"recipient_id\":\"{USER}\""), &both);
    assert!(text.contains(SCOPED));
    takes(&sidecar, text.as_bytes()).await;
    for user in [USER, SCOPED] {
        answers(&sidecar, user, "acme", "utility", PlatformRefused).await;
    }
}

#[tokio::test]
async fn a_cap_holds_for_templates_while_the_window_is_open() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let now = wall() / 1_000;
    takes(&sidecar, &failed("status_failed_131049", now - 100)).await;
    takes(&sidecar, &wrote(now - 50)).await;
    become_so(&sidecar, [FrequencyCapped, WindowOpen, WindowOpen, WindowOpen]).await;
    let retry = asked(&sidecar, USER, "marketing", pb::MessageForm::Template).await.1;
    assert_eq!(retry, Some((now - 100 + 86_400) * 1_000));
    let [held] = &known(&sidecar, USER).await[..] else { panic!("one failure holds") };
    assert_eq!((held.code, held.retry_time.map(millis)), (131_049, retry));
    assert!(held.meaning.contains("much marketing") && held.again.contains("24 hours"));
    // A stop is no failure that is held: it is known by the preference, too.
    takes(&sidecar, &failed("status_failed_131050", now - 40)).await;
    answers(&sidecar, USER, "acme", "marketing", PlatformStopped).await;
    assert_eq!(known(&sidecar, USER).await.len(), 1);
}

#[tokio::test]
async fn commands_say_what_a_failure_means_and_when_to_send_again() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    for name in ["status_failed_130472", "status_failed_131026"] {
        takes(&sidecar, &fixture(name, NUMBER)).await;
    }
    eventually("both are known", || async { known(&sidecar, USER).await.len() == 1 }).await;
    let (code, text, errors) = run(&["get", USER, "acme", "--addr", &sidecar.grpc]);
    assert_eq!(code, 0, "{errors}");
    let line = "refused          130472, the user is in an experiment of Meta's: marketing \
                templates never arrive; again inside the user's window alone";
    assert!(text.lines().any(|printed| printed == line), "{text}");
    let (_, text, _) = run(&["history", USER, "acme", "--addr", &sidecar.record]);
    for part in [
        "delivery failure 130472: the user is in an experiment",
        "delivery failure 131026: undeliverable, for a reason that is not disclosed; again not stated",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test]
async fn a_blocked_country_gets_no_marketing_templates_and_everything_else() {
    let files = Files::new(&acme());
    let flags = ["--marketing-blocked-countries", "+1, CA"];
    let sidecar = files.serve(&file(files.folder.path()), &flags).await;
    let (canada, germany) = ("CA.20071455931182640035", "4915112345678");
    for user in [USER, SCOPED, canada, germany] {
        for category in ["marketing", "utility"] {
            opted_in(&sidecar, user, category, 2).await;
        }
    }
    let now = wall() / 1_000;
    takes(&sidecar, &wrote(now - 50)).await;
    become_so(&sidecar, [CountryBlocked, OptedIn, OptedIn, OptedIn]).await;
    for (user, so) in [
        ("+1 (650) 555-1234", CountryBlocked),
        (canada, CountryBlocked),
        // The list has the digits of the United States, and not the letters.
        (SCOPED, OptedIn),
        (germany, OptedIn),
    ] {
        let template = pb::MessageForm::Template;
        assert_eq!(asked(&sidecar, user, "marketing", template).await.0, so, "{user}");
        assert_eq!(asked(&sidecar, user, "utility", template).await.0, OptedIn, "{user}");
        let (reason, _) = asked(&sidecar, user, "marketing", pb::MessageForm::Unspecified).await;
        let expected = if user.starts_with("+1") { OptedIn } else { so };
        assert_eq!(reason, expected, "free-form inside the window is another thing: {user}");
    }
    // Batches and campaigns are decided alike.
    let template = pb::MessageForm::Template.into();
    let ask =
        |user: &str| pb::CanSendRequest { form: template, ..question(user, "acme", "marketing") };
    let request = pb::BatchCanSendRequest { requests: vec![ask(germany), ask(USER), ask(SCOPED)] };
    let batch = sidecar.checks().await.batch_can_send(request).await.unwrap().into_inner();
    let reasons: Vec<_> = batch
        .results
        .into_iter()
        .map(|one| match one.result {
            Some(pb::batch_can_send_result::Result::Response(answer)) => answer.reason(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(reasons, [OptedIn, CountryBlocked, OptedIn]);
    let (code, text, _) =
        run(&["check", USER, "acme", "marketing", "--form", "template", "--addr", &sidecar.grpc]);
    assert!(code == 1 && text.contains("COUNTRY_BLOCKED"), "{text}");
}

#[test]
fn a_code_or_a_country_that_is_none_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let started = |flags: &[&str]| {
        let started = Sidecar::try_start(&folder.path().join("ledger.redb"), flags);
        started.map(|_| ()).expect_err("the flag is wrong")
    };
    let (codes, countries) = ("--deny-after-failure", "--marketing-blocked-countries");
    for (flag, value, part) in [
        (
            codes,
            "131026",
            "131026\\\" (undeliverable, for a reason that is not disclosed) is no code",
        ),
        (codes, "131064", "misused templates"),
        (codes, "130472,131050", "130403, 130472, 130497, or none"),
        (codes, "7", "is no code by which a user may be denied"),
        (codes, "", "is no code"),
        (countries, "USA", "neither the beginning of phone numbers"),
        (countries, "1,,2", "neither"),
        (countries, "01", "neither"),
    ] {
        let said = started(&[flag, value]);
        let part = part.replace('\\', "");
        assert!(
            said.contains(&part) || said.contains(&part.replace('"', "\\\"")),
            "{value}: {said}"
        );
    }
}
