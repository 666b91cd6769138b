//! Sign-ups inside WhatsApp, whose shape is assumed: what happens when it differs.

use consentd::grpc::pb::Reason::{NoConsent, OptedIn, PlatformStopped};

use super::client::{Files, NUMBER, USER, acme, answers, deliver, file, fixture, reason};
use crate::faults::stage::{metric, wait_for_metric};
use crate::sidecar::Sidecar;

/// Delivers the fixture with these parts replaced; it must be counted once by this cause.
async fn counted(sidecar: &Sidecar, replaced: &[(&str, &str)], cause: &str) {
    let mut body = String::from_utf8(fixture("user_preferences_signup", NUMBER)).unwrap();
    for (part, by) in replaced {
        assert!(body.contains(part), "{part}");
        body = body.replace(part, by);
    }
    let name = format!("consent_webhook_passed_over_total{{cause=\"{cause}\"}}");
    let before = metric(sidecar, &name).await;
    assert_eq!(deliver(&sidecar.webhook, body.as_bytes()).await, 200, "{replaced:?}");
    let after = metric(sidecar, &name).await;
    assert!((after - before - 1.0).abs() < f64::EPSILON, "{replaced:?} is no {cause}");
}

#[tokio::test]
async fn a_signup_of_another_shape_opts_in_no_user_and_is_counted_by_what_differs() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let category = r#""category":"marketing_messages","#;
    for (replaced, cause) in [
        (&[(r#""value":"signup""#, r#""value":"sign_up""#)][..], "unknown_preference"),
        (&[(r#""value":"signup""#, r#""value":"SIGNUP""#)], "unknown_preference"),
        (&[(r#""value":"signup""#, r#""value":{"signup":true}"#)], "bad_shape"),
        (&[("marketing_messages", "utility_messages")], "unknown_preference"),
        (&[(category, "")], "bad_shape"),
        (&[(r#""signup_id":"13176843987434774","#, "")], "no_signup_id"),
        (&[(r#""13176843987434774""#, "\"\"")], "no_signup_id"),
        (&[(r#""13176843987434774""#, r#"{"id":"13176843987434774"}"#)], "no_signup_id"),
        (&[(r#","timestamp":1731705900"#, "")], "no_time"),
        (&[(r#""wa_id":"16505551234""#, r#""user":"16505551234""#)], "no_user"),
        (&[(r#""field":"user_preferences""#, r#""field":"in_app_signup""#)], "unknown_field"),
    ] {
        counted(&sidecar, replaced, cause).await;
    }
    assert_eq!(reason(&sidecar, USER, "acme", "marketing").await, NoConsent);
    // A stop that is broken in the same ways is a stop.
    let stop = String::from_utf8(fixture("user_preferences_stop", NUMBER)).unwrap();
    let stop = stop.replace(category, "").replace("\"timestamp\"", "\"time\"");
    assert_eq!(deliver(&sidecar.webhook, stop.as_bytes()).await, 200);
    answers(&sidecar, USER, "acme", "marketing", PlatformStopped).await;
}

#[tokio::test]
async fn a_signup_of_the_assumed_shape_allows_only_while_the_key_is_on() {
    let files = Files::new(&acme());
    files.write("consentd.toml", &format!("[whatsapp.numbers]\n{NUMBER} = \"acme\"\n"));
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    counted(&sidecar, &[], "unknown_preference").await;
    assert_eq!(reason(&sidecar, USER, "acme", "marketing").await, NoConsent);
    files.name(&acme());
    sidecar.signal("HUP");
    wait_for_metric(&sidecar, "consent_webhook_reloads_total{outcome=\"done\"}", 1.0).await;
    let body = fixture("user_preferences_signup", NUMBER);
    assert_eq!(deliver(&sidecar.webhook, &body).await, 200);
    answers(&sidecar, USER, "acme", "marketing", OptedIn).await;
}
