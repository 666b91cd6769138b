//! A denial is never dropped for its form: neither for its own time, nor for its neighbours.

use consentd::grpc::pb::Reason;

use super::client::{Files, NUMBER, USER, acme, answers, deliver, file, fixture, history, reason};
use crate::sidecar::{event, opt_in};
use crate::world::wall;

/// A STOP with this in place of its time; the message's id names it.
fn stop(time: &str, id: &str) -> Vec<u8> {
    let stop = String::from_utf8(fixture("inbound_stop", NUMBER)).unwrap();
    let with = stop.replace("\"1749416400\"", time).replace("wamid.", &format!("wamid.{id}"));
    assert!(with != stop && with.contains(id));
    with.into_bytes()
}

#[tokio::test]
async fn a_stop_whose_time_cannot_be_read_counts_as_of_its_arrival_once() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let mut records = sidecar.records().await;
    let ahead = format!("\"{}\"", wall() / 1_000 + 315_360_000);
    let times = [
        "null",
        "\"soon\"",
        "-5",
        "\"-5\"",
        "1.5",
        "{}",
        "1e999",
        // Before WhatsApp was founded.
        "0",
        "\"0\"",
        "\"1970\"",
        "1235433599",
        // Milliseconds, and decimals.
        "1749416400000",
        "\"1749416400000\"",
        "1749416400.0",
        "\"1749416400.5\"",
        &ahead,
        "253402300800",
        "\"99999999999999999999\"",
    ];
    for (place, time) in times.into_iter().enumerate() {
        let id = format!("n{place}.");
        assert_eq!(deliver(&sidecar.webhook, &stop(time, &id)).await, 200, "{time}");
        answers(&sidecar, USER, "acme", "marketing", Reason::OptedOutAll).await;
        // Nothing is written before its own time: no window opens by it.
        assert_eq!(reason(&sidecar, USER, "acme", "service").await, Reason::OptedOutAll);
        // Who opts in again is not denied anew by the platform's repeats.
        let mut again = event(USER, "acme", opt_in("marketing"));
        again.request_id = format!("form-{place}");
        records.record_event(again).await.unwrap();
        assert_eq!(reason(&sidecar, USER, "acme", "marketing").await, Reason::OptedIn);
        assert_eq!(deliver(&sidecar.webhook, &stop(time, &id)).await, 200, "{time}");
        assert_eq!(reason(&sidecar, USER, "acme", "marketing").await, Reason::OptedIn, "{time}");
    }
    // One without an id denies whenever it comes.
    let stop = String::from_utf8(stop("null", "x.")).unwrap().replace("\"id\"", "\"no_id\"");
    assert_eq!(deliver(&sidecar.webhook, stop.as_bytes()).await, 200);
    answers(&sidecar, USER, "acme", "marketing", Reason::OptedOutAll).await;
}

#[tokio::test]
async fn a_stop_in_a_message_of_another_type_is_recorded() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let stop = String::from_utf8(fixture("inbound_stop", NUMBER)).unwrap();
    let stop = stop.replace("\"type\": ", "\"type\":");
    for (place, kind) in
        ["\"type\":\"TEXT\"", "\"type\":\"unsupported\"", "\"type\":\"image\"", "\"kind\":\"text\""]
            .into_iter()
            .enumerate()
    {
        let user = format!("4930123456{place}");
        let body = stop.replace("\"type\":\"text\"", kind).replace(USER, &user);
        assert!(body.contains(kind) && body.contains(&user));
        assert_eq!(deliver(&sidecar.webhook, body.as_bytes()).await, 200);
        answers(&sidecar, &user, "acme", "utility", Reason::OptedOutAll).await;
    }
    // A failure that denies, whatever its status is called.
    let failed = String::from_utf8(fixture("status_failed_131050", NUMBER)).unwrap();
    let body = failed.replace("failed", "FAILED").replace("131050,", "\"131050\",");
    assert_ne!(body, failed);
    assert_eq!(deliver(&sidecar.webhook, body.as_bytes()).await, 200);
    answers(&sidecar, USER, "acme", "marketing", Reason::PlatformStopped).await;
}

#[tokio::test]
async fn a_stop_a_little_too_far_ahead_denies_until_it_can_be_recorded() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let ahead = format!("\"{}\"", wall() / 1_000 + 3_600);
    assert_eq!(deliver(&sidecar.webhook, &stop(&ahead, "a.")).await, 503, "it is to come again");
    answers(&sidecar, USER, "acme", "utility", Reason::OptedOutAll).await;
    let before = history(&sidecar, USER, "acme").await;
    assert_eq!(deliver(&sidecar.webhook, &stop(&ahead, "a.")).await, 503);
    assert_eq!(history(&sidecar, USER, "acme").await, before, "a repeat changes nothing");
}

#[tokio::test]
async fn other_denials_without_a_time_count_as_of_their_arrival() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let untimed = |name: &str, time: &str| {
        let body = String::from_utf8(fixture(name, NUMBER)).unwrap();
        assert!(body.contains(time), "{name}");
        body.replace(time, "null").into_bytes()
    };
    let opted_in = fixture("user_preferences_signup", NUMBER);
    for (name, time) in
        [("user_preferences_stop", "1731705721"), ("status_failed_131050", "\"1749502800\"")]
    {
        assert_eq!(deliver(&sidecar.webhook, &untimed(name, time)).await, 200);
        answers(&sidecar, USER, "acme", "marketing", Reason::PlatformStopped).await;
    }
    // What allows needs its time: nothing is lifted by a resume, and nobody is opted in.
    for (name, time) in
        [("user_preferences_resume", "1731705800"), ("user_preferences_signup", "1731705900")]
    {
        assert_eq!(deliver(&sidecar.webhook, &untimed(name, time)).await, 200);
        assert_eq!(reason(&sidecar, USER, "acme", "marketing").await, Reason::PlatformStopped);
    }
    assert_eq!(deliver(&sidecar.webhook, &opted_in).await, 200);
    assert_eq!(reason(&sidecar, USER, "acme", "marketing").await, Reason::PlatformStopped);
}

#[tokio::test]
async fn a_stop_beside_what_cannot_be_parsed_is_recorded() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let stop = String::from_utf8(fixture("inbound_stop", NUMBER)).unwrap();
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let broken: [&[u8]; 5] =
        [br#""\ud83d""#, br#""\ude00 caf\u00e9""#, b"\"\xff\"", b"1e999", deep.as_bytes()];
    for (place, value) in broken.into_iter().enumerate() {
        let user = format!("4930123456{place}");
        let body = stop.replace(USER, &user);
        let (start, rest) = body.split_once('{').unwrap();
        let body = [start.as_bytes(), b"{\"beside\":", value, b",", rest.as_bytes()].concat();
        assert_eq!(deliver(&sidecar.webhook, &body).await, 200);
        answers(&sidecar, &user, "acme", "utility", Reason::OptedOutAll).await;
    }
}
