//! What every fixture makes of a pair, by what is answered about it afterwards.

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;

use super::client::{
    Files, NUMBER, SCOPED, USER, acme, answers, deliver, file, fixture, history, reason, redis,
};
use crate::sidecar::Sidecar;
use crate::world::{millis, wall};

/// An id as long as WhatsApp's may be.
const LONGEST: &str = "US.A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4\
                       A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4";

/// A fixture, whom it is about, and what is known of that user then: the last message, what the
/// user opted in to and out of, whether marketing was stopped; and why marketing and utility
/// templates may be sent or not. All of it is long ago: no window is open.
const STATES: [(&str, &str, &str); 74] = [
    ("call_accepted", USER, "1752583200000 [] [] false NoConsent NoConsent"),
    ("call_business_initiated", USER, "never [] [] false NoConsent NoConsent"),
    ("call_permission_accept", USER, "never [] [] false NoConsent NoConsent"),
    ("call_permission_reject_automatic", USER, "never [] [] false NoConsent NoConsent"),
    ("call_rejected", USER, "never [] [] false NoConsent NoConsent"),
    ("call_sip", USER, "1752583202000 [] [] false NoConsent NoConsent"),
    ("call_user_initiated", USER, "1752583107000 [] [] false NoConsent NoConsent"),
    ("history_caption_stop", USER, "never [] [*] false OptedOutAll OptedOutAll"),
    ("history_declined", USER, "never [] [] false NoConsent NoConsent"),
    ("history_stop", USER, "never [] [*] false OptedOutAll OptedOutAll"),
    ("inbound_button_configured", USER, "1749416399000 [] [marketing] false OptedOut NoConsent"),
    ("inbound_button_promotions_es", USER, "1749416397000 [] [marketing] false OptedOut NoConsent"),
    ("inbound_button_promotions_fr", USER, "1749416398000 [] [marketing] false OptedOut NoConsent"),
    (
        "inbound_button_username_only",
        SCOPED,
        "1749416383000 [] [marketing] false OptedOut NoConsent",
    ),
    ("inbound_contact_card", USER, "never [] [] false NoConsent NoConsent"),
    ("inbound_contact_request", USER, "never [] [] false NoConsent NoConsent"),
    ("inbound_edit", USER, "never [] [] false NoConsent NoConsent"),
    ("inbound_edit_caption_stop", USER, "never [] [*] false OptedOutAll OptedOutAll"),
    ("inbound_edit_stop", USER, "never [] [*] false OptedOutAll OptedOutAll"),
    ("inbound_edit_unsupported_stop", USER, "never [] [*] false OptedOutAll OptedOutAll"),
    ("inbound_flow_stop", USER, "1749416394000 [] [*] false OptedOutAll OptedOutAll"),
    ("inbound_group_stop", USER, "never [] [*] false OptedOutAll OptedOutAll"),
    ("inbound_group_text", USER, "never [] [] false NoConsent NoConsent"),
    ("inbound_image", USER, "1749416383000 [] [] false NoConsent NoConsent"),
    ("inbound_image_caption_stop", USER, "1749416393000 [] [*] false OptedOutAll OptedOutAll"),
    (
        "inbound_interactive_button_reply",
        USER,
        "1749416383000 [] [*] false OptedOutAll OptedOutAll",
    ),
    ("inbound_interactive_list_reply", USER, "1749416383000 [] [*] false OptedOutAll OptedOutAll"),
    ("inbound_number_and_id", USER, "1749416383000 [] [] false NoConsent NoConsent"),
    ("inbound_reaction", USER, "never [] [] false NoConsent NoConsent"),
    ("inbound_stop", USER, "1749416400000 [] [*] false OptedOutAll OptedOutAll"),
    ("inbound_text", USER, "1749416383000 [] [] false NoConsent NoConsent"),
    ("inbound_three_ids", SCOPED, "1749416383000 [] [] false NoConsent NoConsent"),
    ("inbound_unsupported", USER, "never [] [] false NoConsent NoConsent"),
    ("message_echoes", USER, "never [] [] false NoConsent NoConsent"),
    ("several", USER, "1749416384000 [] [*] false OptedOutAll OptedOutAll"),
    ("standby_failed_131050", USER, "never [] [] true PlatformStopped NoConsent"),
    ("standby_stop", USER, "never [] [*] false OptedOutAll OptedOutAll"),
    ("standby_text", USER, "never [] [] false NoConsent NoConsent"),
    ("status_delivered", USER, "never [] [] false NoConsent NoConsent"),
    ("status_failed_131026", USER, "never [] [] false NoConsent NoConsent"),
    ("status_failed_131047", USER, "never [] [] false NoConsent NoConsent"),
    ("status_failed_131050", USER, "never [] [] true PlatformStopped NoConsent"),
    ("status_failed_131050_second_number", USER, "never [] [] true PlatformStopped NoConsent"),
    ("system_user_changed_number_ids", USER, "never [] [] false NoConsent NoConsent"),
    ("system_user_changed_number_no_from", USER, "never [] [] false NoConsent NoConsent"),
    ("system_user_changed_user_id", USER, "never [] [] false NoConsent NoConsent"),
    ("system_user_changed_user_id_older", USER, "never [] [] false NoConsent NoConsent"),
    ("system_user_changed_user_id_older_no_from", USER, "never [] [] false NoConsent NoConsent"),
    ("user_preferences_resume", USER, "never [] [] false NoConsent NoConsent"),
    ("user_preferences_resume_second_number", USER, "never [] [] false NoConsent NoConsent"),
    ("user_preferences_resume_three_ids", USER, "never [] [] false NoConsent NoConsent"),
    ("user_preferences_signup", USER, "never [marketing] [] false OptedIn NoConsent"),
    ("user_preferences_signup_two_ids", SCOPED, "never [marketing] [] false OptedIn NoConsent"),
    ("user_preferences_stop", USER, "never [] [] true PlatformStopped NoConsent"),
    ("user_preferences_stop_second_number", USER, "never [] [] true PlatformStopped NoConsent"),
    ("user_preferences_unknown", USER, "never [] [] false NoConsent NoConsent"),
    ("call_scoped_only", SCOPED, "1752583203000 [] [] false NoConsent NoConsent"),
    ("inbound_longest_ids", LONGEST, "1749416405000 [] [] false NoConsent NoConsent"),
    ("status_failed_scoped_only", SCOPED, "never [] [] true PlatformStopped NoConsent"),
    // Recorded at the most, and nothing more.
    ("status_failed_group", USER, "never [] [] false NoConsent NoConsent"),
    ("inbound_referral", USER, "1749416404000 [] [] false NoConsent NoConsent"),
    ("inbound_revoke", USER, "never [] [] false NoConsent NoConsent"),
    ("inbound_unsupported_131060", USER, "never [] [] false NoConsent NoConsent"),
    ("phone_number_quality_update", USER, "never [] [] false NoConsent NoConsent"),
    ("smb_app_state_sync", USER, "never [] [] false NoConsent NoConsent"),
    ("status_delivered_and_failed", USER, "never [] [] true PlatformStopped NoConsent"),
    ("status_failed_130403", USER, "never [] [] false NoConsent NoConsent"),
    ("status_failed_130472", USER, "never [] [] false NoConsent NoConsent"),
    ("status_failed_130497", USER, "never [] [] false NoConsent NoConsent"),
    ("status_failed_131049", USER, "never [] [] false NoConsent NoConsent"),
    ("status_failed_account", USER, "never [] [] false NoConsent NoConsent"),
    ("user_actions", USER, "never [] [] false NoConsent NoConsent"),
    ("user_id_update", USER, "never [] [] false NoConsent NoConsent"),
    ("value_errors", USER, "never [] [] false NoConsent NoConsent"),
];

/// A number of its own for each of them.
fn numbers() -> Vec<(String, String)> {
    let names = STATES.iter().enumerate();
    names.map(|(place, (name, ..))| ((1_000 + place).to_string(), (*name).to_owned())).collect()
}

async fn state(sidecar: &Sidecar, user: &str, business: &str) -> String {
    let mut checks = sidecar.checks().await;
    let request =
        pb::GetConsentRequest { user_id: user.to_owned(), business_id: business.to_owned() };
    let known = checks.get_consent(request).await.unwrap().into_inner();
    let last = known.last_inbound_time.map_or("never".to_owned(), |time| millis(time).to_string());
    let marketing = reason(sidecar, user, business, "marketing").await;
    let utility = reason(sidecar, user, business, "utility").await;
    format!(
        "{last} [{}] [{}] {} {marketing:?} {utility:?}",
        known.opted_in.join(", "),
        known.opted_out.join(", "),
        known.platform_stopped
    )
}

/// Delivers every fixture, twice, and asks.
async fn every_fixture_ends_as_the_rules_say(sidecar: &Sidecar) {
    for _ in 0..2 {
        for (number, name) in numbers() {
            let status = deliver(&sidecar.webhook, &fixture(&name, &number)).await;
            assert_eq!(status, 200, "{name}: {}", sidecar.said());
        }
        // The answer comes when it is durable; this table hears of it a moment later.
        answers(sidecar, USER, "user_preferences_stop", "marketing", Reason::PlatformStopped).await;
        for (name, user, expected) in STATES {
            crate::sidecar::eventually(&format!("{name} ends as {expected}"), || async {
                state(sidecar, user, name).await == expected
            })
            .await;
        }
    }
    let metrics = sidecar.get("/metrics").await.1;
    for line in [
        "consent_webhook_requests_total{code=\"200\"} 148",
        "consent_webhook_passed_over_total{cause=\"opens_no_window\"} 12",
        "consent_webhook_passed_over_total{cause=\"no_time\"} 2",
        "consent_webhook_updates_total{kind=\"message\",outcome=\"malformed\"} 2",
        "consent_webhook_updates_total{kind=\"call\",outcome=\"applied\"} 4",
        "consent_webhook_updates_total{kind=\"call\",outcome=\"unchanged\"} 4",
        "consent_webhook_updates_total{kind=\"preference\",outcome=\"applied\"} 7",
        "consent_webhook_updates_total{kind=\"preference\",outcome=\"skipped\"} 2",
    ] {
        assert!(metrics.contains(&format!("{line}\n")), "{line}\n{metrics}");
    }
    // A denial is the last millisecond of its second, the message that said it the first.
    let events = history(sidecar, USER, "inbound_stop").await;
    let times = events.iter().map(|event| event.event.as_ref().unwrap().event_time.unwrap());
    let times: Vec<_> = times.map(millis).collect();
    assert_eq!(times, [1_749_416_400_000, 1_749_416_400_999]);
    let said = sidecar.said();
    for private in [USER, SCOPED, "Sheena", "another color", "wamid"] {
        assert!(!said.contains(private) && !metrics.contains(private), "{private}: {said}");
    }
}

#[tokio::test]
async fn fixtures_on_a_file() {
    let files = Files::new(&numbers());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    every_fixture_ends_as_the_rules_say(&sidecar).await;
}

#[tokio::test]
async fn fixtures_on_a_redis() {
    let (_redis, ledger) = redis(&[]);
    let files = Files::new(&numbers());
    let sidecar = files.serve(&ledger, &["--record", "127.0.0.1:0"]).await;
    every_fixture_ends_as_the_rules_say(&sidecar).await;
}

/// A text, as of these seconds.
fn text(body: &str, seconds: i64) -> Vec<u8> {
    let text = String::from_utf8(fixture("inbound_text", NUMBER)).unwrap();
    let text = text.replace("1749416383", &seconds.to_string());
    text.replace("Does it come in another color?", body).into_bytes()
}

#[tokio::test]
async fn a_conversation_of_today() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let now = wall() / 1_000;
    assert_eq!(deliver(&sidecar.webhook, &text("Hello", now - 60)).await, 200);
    answers(&sidecar, USER, "acme", "marketing", Reason::WindowOpen).await;
    assert_eq!(deliver(&sidecar.webhook, &text("Stop!", now - 30)).await, 200);
    answers(&sidecar, USER, "acme", "utility", Reason::OptedOutAll).await;
    // Another message of the same second is not later than the STOP, whichever came first.
    assert_eq!(deliver(&sidecar.webhook, &text("Sorry?", now - 30)).await, 200);
    assert_eq!(reason(&sidecar, USER, "acme", "utility").await, Reason::OptedOutAll);
    assert_eq!(deliver(&sidecar.webhook, &text("Where is my order?", now - 20)).await, 200);
    answers(&sidecar, USER, "acme", "utility", Reason::ReplyAfterOptOut).await;
    assert_eq!(reason(&sidecar, USER, "acme", "marketing").await, Reason::OptedOutAll);
}

#[tokio::test]
async fn what_is_ahead_of_the_ledgers_clock_is_sent_again_until_it_is_not() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let now = wall() / 1_000;
    assert_eq!(deliver(&sidecar.webhook, &text("Stop", now + 3_600)).await, 503);
    assert_eq!(deliver(&sidecar.webhook, &text("Stop", now + 240)).await, 200, "as of now");
    // In ten years nobody sends it again any more.
    assert_eq!(deliver(&sidecar.webhook, &text("Hello", now + 315_360_000)).await, 200);
    let refused = "consent_webhook_updates_total{kind=\"message\",outcome=\"refused\"}";
    assert!((crate::faults::stage::metric(&sidecar, refused).await - 1.0).abs() < f64::EPSILON);
    assert!(sidecar.said().contains("webhook updates that the consent rules reject"));
}

#[tokio::test]
async fn a_stop_goes_along_to_a_new_number_and_an_opt_in_does_not() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let new = "16505559999";
    let changed = fixture("system_user_changed_number", NUMBER);
    assert_eq!(deliver(&sidecar.webhook, &fixture("user_preferences_signup", NUMBER)).await, 200);
    answers(&sidecar, USER, "acme", "marketing", Reason::OptedIn).await;
    assert_eq!(deliver(&sidecar.webhook, &changed).await, 200);
    assert_eq!(deliver(&sidecar.webhook, &fixture("user_preferences_stop", NUMBER)).await, 200);
    // The stop is older than the signup, and under the new number there was no signup.
    answers(&sidecar, new, "acme", "marketing", Reason::PlatformStopped).await;
    assert_eq!(reason(&sidecar, USER, "acme", "marketing").await, Reason::OptedIn);
    assert_eq!(deliver(&sidecar.webhook, &fixture("inbound_stop", NUMBER)).await, 200);
    answers(&sidecar, new, "acme", "utility", Reason::OptedOutAll).await;
    let before = history(&sidecar, new, "acme").await;
    assert_eq!(deliver(&sidecar.webhook, &changed).await, 200);
    assert_eq!(history(&sidecar, new, "acme").await, before, "a repeat changes nothing");
}

#[tokio::test]
async fn a_stop_under_one_id_holds_under_the_other() {
    let (_redis, ledger) = redis(&[]);
    let files = Files::new(&acme());
    let sidecar = files.serve(&ledger, &["--record", "127.0.0.1:0"]).await;
    // WhatsApp's button, from somebody of whom only the business-scoped id is told; who wrote
    // with both ids either before that or after it.
    let linked = fixture("inbound_number_and_id", NUMBER);
    let stop = fixture("inbound_button_username_only", NUMBER);
    for bodies in [[&linked, &stop], [&stop, &linked]] {
        for body in bodies {
            assert_eq!(deliver(&sidecar.webhook, body).await, 200, "{}", sidecar.said());
        }
        answers(&sidecar, USER, "acme", "marketing", Reason::OptedOut).await;
        answers(&sidecar, SCOPED, "acme", "marketing", Reason::OptedOut).await;
    }
    let other = String::from_utf8(stop.clone()).unwrap().replace("13491", "13492");
    let linked = String::from_utf8(linked).unwrap().replace("13491", "13492");
    let linked = linked.replace(USER, "16505550000");
    for body in [other, linked] {
        assert_eq!(deliver(&sidecar.webhook, body.as_bytes()).await, 200);
    }
    answers(&sidecar, "16505550000", "acme", "marketing", Reason::OptedOut).await;
}
