//! Ids that change, and users with several: what is denied under one is denied under all.

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;

use super::client::{
    Files, NUMBER, SCOPED, USER, acme, answers, deliver, file, fixture, history, reason, redis,
};
use crate::sidecar::{Sidecar, eventually};
use crate::world::wall;

const PARENT: &str = "US.ENT.11815799212886844830";
const NEW: &str = "16505559999";
const NEW_SCOPED: &str = "US.20071455931182640035";
const NEW_PARENT: &str = "US.ENT.20944180066153327741";

/// A change of ids, the old ids that it names, and the new ones.
const CHANGES: [(&str, &[&str], &[&str]); 6] = [
    ("system_user_changed_number", &[USER], &[NEW]),
    ("system_user_changed_number_ids", &[USER, SCOPED, PARENT], &[NEW, NEW_SCOPED, NEW_PARENT]),
    ("system_user_changed_number_no_from", &[SCOPED], &[NEW_SCOPED]),
    ("system_user_changed_user_id", &[SCOPED, PARENT], &[NEW_SCOPED, NEW_PARENT]),
    ("system_user_changed_user_id_older", &[USER], &[NEW, NEW_SCOPED]),
    ("system_user_changed_user_id_older_no_from", &[SCOPED], &[NEW_SCOPED]),
];

/// The field of a message that names such an id.
fn field(id: &str) -> &'static str {
    match id {
        _ if id.contains(".ENT.") => "from_parent_user_id",
        _ if id.contains('.') => "from_user_id",
        _ => "from",
    }
}

/// A text from these ids, as of these seconds, to this number of the business.
fn text(body: &str, ids: &[&str], seconds: i64, number: &str) -> Vec<u8> {
    let from: Vec<_> = ids.iter().map(|id| format!(r#""{}":"{id}","#, field(id))).collect();
    let from = from.concat();
    format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"id":"1","changes":[{{"field":"messages",
        "value":{{"metadata":{{"phone_number_id":"{number}"}},"messages":[{{{from}
        "id":"wamid.{seconds}.{number}","timestamp":"{seconds}","type":"text",
        "text":{{"body":"{body}"}}}}]}}}}]}}]}}"#
    )
    .into_bytes()
}

/// A business, with a number of its own, for each change and whether the STOP comes before it.
fn businesses() -> Vec<(String, String)> {
    let cases = CHANGES.iter().flat_map(|(name, ..)| ["before", "after"].map(|when| (name, when)));
    let cases = cases.enumerate();
    cases
        .map(|(place, (name, when))| ((3_000 + place).to_string(), format!("{name}-{when}")))
        .collect()
}

async fn delivered(sidecar: &Sidecar, body: &[u8]) {
    assert_eq!(deliver(&sidecar.webhook, body).await, 200, "{}", sidecar.said());
}

async fn a_denial_goes_along_to_every_new_id(sidecar: &Sidecar) {
    let now = wall() / 1_000;
    let mut businesses = businesses().into_iter();
    for (name, olds, news) in CHANGES {
        let changed = |number: &str| fixture(name, number);
        // The STOP comes first, under any old id; then the change, and a message from the new ids.
        let (number, business) = businesses.next().unwrap();
        delivered(sidecar, &text("STOP", &olds[..1], now - 600, &number)).await;
        delivered(sidecar, &changed(&number)).await;
        for id in olds.iter().chain(news) {
            answers(sidecar, id, &business, "utility", Reason::OptedOutAll).await;
            assert_eq!(reason(sidecar, id, &business, "marketing").await, Reason::OptedOutAll);
        }
        delivered(sidecar, &text("Hello", news, now - 60, &number)).await;
        for id in news {
            answers(sidecar, id, &business, "utility", Reason::ReplyAfterOptOut).await;
            assert_eq!(
                reason(sidecar, id, &business, "marketing").await,
                Reason::OptedOutAll,
                "{id}"
            );
        }
        // The change comes first, and nothing else goes along with it.
        let (number, business) = businesses.next().unwrap();
        delivered(sidecar, &text("Hello", &olds[..1], now - 600, &number)).await;
        answers(sidecar, olds[0], &business, "marketing", Reason::WindowOpen).await;
        delivered(sidecar, &changed(&number)).await;
        for id in news {
            assert_eq!(
                reason(sidecar, id, &business, "marketing").await,
                Reason::NoConsent,
                "{id}"
            );
        }
        let last = olds.last().unwrap();
        delivered(sidecar, &text("STOP", &[*last], now - 300, &number)).await;
        for id in olds.iter().chain(news) {
            eventually(&format!("{name}: {id} is denied"), || async {
                reason(sidecar, id, &business, "marketing").await == Reason::OptedOutAll
            })
            .await;
        }
    }
}

#[tokio::test]
async fn changed_ids_on_a_file() {
    let files = Files::new(&businesses());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    a_denial_goes_along_to_every_new_id(&sidecar).await;
}

#[tokio::test]
async fn changed_ids_on_a_redis() {
    let (_redis, ledger) = redis(&[]);
    let files = Files::new(&businesses());
    let sidecar = files.serve(&ledger, &["--record", "127.0.0.1:0"]).await;
    a_denial_goes_along_to_every_new_id(&sidecar).await;
}

#[tokio::test]
async fn an_update_with_several_ids_counts_under_each_and_a_link_alone_allows_nothing() {
    let names = ["window", "resume", "signup", "asked", "card", "full"];
    let names =
        names.iter().zip(4_000..).map(|(name, number)| (number.to_string(), (*name).to_owned()));
    let names: Vec<_> = names.collect();
    let number = |name: &str| names.iter().find(|(_, known)| known == name).unwrap().0.clone();
    let files = Files::new(&names);
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let now = wall() / 1_000;
    let ids = [USER, SCOPED, PARENT];
    delivered(&sidecar, &text("Hello", &ids, now - 600, &number("window"))).await;
    for id in ids {
        answers(&sidecar, id, "window", "marketing", Reason::WindowOpen).await;
    }
    // The message that was refused for its window was sent to one of them.
    let refused = String::from_utf8(fixture("status_failed_131047", &number("window"))).unwrap();
    let refused = refused.replace("\"1749502800\"", &format!("\"{}\"", now - 60));
    let both = format!("\"recipient_user_id\":\"{SCOPED}\",\"recipient_id\"");
    let refused = refused.replace("\"recipient_id\"", &both);
    delivered(&sidecar, refused.as_bytes()).await;
    for (id, so) in
        [(USER, Reason::NoConsent), (SCOPED, Reason::NoConsent), (PARENT, Reason::WindowOpen)]
    {
        answers(&sidecar, id, "window", "marketing", so).await;
    }
    // A stop under one of them, and a resume that names all.
    let stop = fixture("user_preferences_stop", &number("resume"));
    delivered(&sidecar, &text("Hello", &ids, now - 600, &number("resume"))).await;
    delivered(&sidecar, &stop).await;
    for id in ids {
        answers(&sidecar, id, "resume", "marketing", Reason::PlatformStopped).await;
    }
    delivered(&sidecar, &fixture("user_preferences_resume_three_ids", &number("resume"))).await;
    for id in ids {
        answers(&sidecar, id, "resume", "marketing", Reason::WindowOpen).await;
    }
    delivered(&sidecar, &fixture("user_preferences_signup_two_ids", &number("signup"))).await;
    for (id, so) in
        [(USER, Reason::OptedIn), (SCOPED, Reason::OptedIn), (PARENT, Reason::NoConsent)]
    {
        answers(&sidecar, id, "signup", "marketing", so).await;
    }
    // A number that was asked for is the user's; a card is anybody's.
    for (business, shared, so) in [
        ("asked", "inbound_contact_request", Reason::OptedOutAll),
        ("card", "inbound_contact_card", Reason::NoConsent),
    ] {
        delivered(&sidecar, &fixture(shared, &number(business))).await;
        delivered(&sidecar, &text("STOP", &[SCOPED], now - 60, &number(business))).await;
        answers(&sidecar, SCOPED, business, "utility", Reason::OptedOutAll).await;
        answers(&sidecar, USER, business, "utility", so).await;
    }
    // With as many ids as there may be no other one is linked; a STOP that names it denies under it.
    for place in 0..16 {
        let other = format!("US.{place}");
        let body = text("Hello", &[USER, &other], now - 600 + place, &number("full"));
        delivered(&sidecar, &body).await;
    }
    delivered(&sidecar, &text("Hello", &[USER, "US.one-more"], now - 60, &number("full"))).await;
    assert_eq!(reason(&sidecar, "US.one-more", "full", "marketing").await, Reason::NoConsent);
    delivered(&sidecar, &text("STOP", &[USER, "US.one-more"], now - 30, &number("full"))).await;
    for id in [USER, "US.3", "US.one-more"] {
        answers(&sidecar, id, "full", "marketing", Reason::OptedOutAll).await;
    }
}

#[tokio::test]
async fn an_allow_under_a_second_id_needs_a_link_that_was_recorded() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let now = wall() / 1_000;
    // The link is from before the erasure of the first id, so that it leaves no trace.
    delivered(&sidecar, &text("Hello", &[USER], now - 600, NUMBER)).await;
    answers(&sidecar, USER, "acme", "marketing", Reason::WindowOpen).await;
    let request = pb::EraseUserRequest { user_id: USER.into(), business_id: "acme".into() };
    sidecar.records().await.erase_user(request).await.expect("it is erased");
    answers(&sidecar, USER, "acme", "marketing", Reason::Suppressed).await;
    for seconds in [now - 300, now - 200] {
        delivered(&sidecar, &text("Hello", &[USER, SCOPED], seconds, NUMBER)).await;
        assert_eq!(reason(&sidecar, SCOPED, "acme", "marketing").await, Reason::NoConsent);
    }
    assert!(history(&sidecar, SCOPED, "acme").await.is_empty());
    // A repeated link changes nothing, and the two ids are linked.
    for (seconds, id) in [(now - 300, SCOPED), (now - 200, PARENT), (now - 100, SCOPED)] {
        delivered(&sidecar, &text("Hello", &[NEW, id], seconds, NUMBER)).await;
        let message = format!("wamid.{seconds}.{NUMBER}");
        let recorded = history(&sidecar, id, "acme").await;
        let is_message = |event: &pb::ListEventsResponse| format!("{event:?}").contains(&message);
        assert!(recorded.iter().any(is_message), "{recorded:?}");
    }
}

#[tokio::test]
async fn a_payload_links_two_ids_as_of_its_latest_update_that_names_them() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let now = wall() / 1_000;
    delivered(&sidecar, &text("Hello", &[SCOPED], now - 600, NUMBER)).await;
    let request = pb::EraseUserRequest { user_id: SCOPED.into(), business_id: "acme".into() };
    sidecar.records().await.erase_user(request).await.expect("it is erased");
    // One update is from before the erasure of the second id, and one from after it.
    let message = |seconds: i64| {
        format!(
            r#"{{"from":"{USER}","from_user_id":"{SCOPED}","id":"wamid.{seconds}",
            "timestamp":"{seconds}","type":"image"}}"#
        )
    };
    let body = format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"id":"1","changes":[{{
        "field":"messages","value":{{"metadata":{{"phone_number_id":"{NUMBER}"}},
        "messages":[{},{}]}}}}]}}]}}"#,
        message(now - 300),
        message(now + 60)
    );
    delivered(&sidecar, body.as_bytes()).await;
    // What suppresses the erased id is copied along the link.
    answers(&sidecar, USER, "acme", "marketing", Reason::Suppressed).await;
}
