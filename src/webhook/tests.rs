//! Mutation tests: damaged payloads are parsed, and posted to the receiver's routes in this process.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tower::ServiceExt as _;

use super::{ReceiverConfig, Sender, Signer, Webhook, router};
use crate::budget::{Budget, BudgetSizes, MIN_BYTES, MIN_CONNECTION_BYTES};
use crate::metrics::Metrics;
use crate::recorder::Recorder;
use crate::secrets::Secrets;
use crate::whatsapp::{self, Rules};
use consentd_core::event::PlatformNames;
use consentd_core::id::KeySecret;
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_ledger::{Embedded, FollowerPosition, Ledger, Retention};

/// The number of mutated payloads, unless an environment variable sets it.
const CASES: u64 = 10_000;
const VARIABLE: &str = "CONSENTD_WEBHOOK_CASES";

/// One in so many payloads is posted to a receiver whose ledger works.
const RECORDED: u64 = 50;

const SECRET: &str = "the app's own secret";

/// A pseudorandom number generator: splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap()
    }
}

fn fixtures() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/whatsapp");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 20);
    let read = |path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    paths.into_iter().map(read).collect()
}

/// Values that are wrong for most fields.
fn wrong() -> Vec<Value> {
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    vec![
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!("stop"),
        json!("-9223372036854775808"),
        json!("\u{0}\u{202e}\u{1f6d1}e\u{301}"),
        json!("9".repeat(5_000)),
        json!([]),
        json!({}),
        json!([[], {}, null, "text", 7]),
        json!({"id": {"id": []}, "type": 7}),
        deep,
    ]
}

/// The JSON pointers of all values in a payload.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                places(inner, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (place, inner) in items.iter().enumerate() {
                places(inner, &format!("{at}/{place}"), found);
            }
        }
        _ => {}
    }
}

fn all_places(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    places(value, "", &mut found);
    found
}

/// A payload with one or several mutations.
fn mutated(rng: &mut Rng, fixtures: &[Value], wrong: &[Value]) -> Vec<u8> {
    let (number, _) = NUMBERS[rng.below(NUMBERS.len())];
    let fixture = fixtures[rng.below(fixtures.len())].to_string();
    let mut payload: Value = serde_json::from_str(&fixture.replace(NUMBERS[0].0, number)).unwrap();
    for _ in 0..=rng.below(3) {
        let places = all_places(&payload);
        let place = &places[rng.below(places.len())];
        let other = match rng.below(4) {
            // A part of another payload, or of this one.
            0 => {
                let from = &fixtures[rng.below(fixtures.len())];
                let places = all_places(from);
                from.pointer(&places[rng.below(places.len())]).unwrap().clone()
            }
            1 => payload.pointer(place).map(|value| json!([value, value, value])).unwrap(),
            _ => wrong[rng.below(wrong.len())].clone(),
        };
        *payload.pointer_mut(place).unwrap() = other;
    }
    let mut body = serde_json::to_vec(&payload).unwrap();
    match rng.below(12) {
        0 => body.truncate(rng.below(body.len() + 1)),
        1 => {
            for _ in 0..=rng.below(8) {
                let place = rng.below(body.len());
                if let Some(byte) = body.get_mut(place) {
                    *byte = rng.next().to_le_bytes()[0];
                }
            }
        }
        2 => {
            let place = rng.below(body.len() + 1);
            let random = rng.next().to_le_bytes();
            body.splice(place..place, random);
        }
        _ => {}
    }
    body
}

/// Prints which case failed when the test panics.
struct Case(u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in case {}", self.0);
        }
    }
}

/// Two numbers of one business, and the only one of another.
const NUMBERS: [(&str, &str); 3] =
    [("106540352242922", "acme"), ("106540352242923", "acme"), ("106540352242924", "other")];

fn rules() -> Rules {
    let numbers = NUMBERS.map(|(number, business)| (number.to_owned(), business.to_owned())).into();
    Rules { takes_signup: true, ..Rules::new(numbers) }
}

/// A receiver with a ledger of its own, which is closed if asked.
async fn receiver(folder: &Path, closed: bool) -> (axum::Router, Ledger) {
    receiver_beside(folder, closed, None).await
}

/// A receiver whose recorder waits for a follower, if there is one.
async fn receiver_beside(
    folder: &Path,
    closed: bool,
    follower: Option<FollowerPosition>,
) -> (axum::Router, Ledger) {
    let (ledger, appender) =
        Embedded::open(&folder.join("ledger.redb"), Retention::default(), 1 << 20).unwrap();
    std::thread::spawn(move || appender.run());
    let ledger = Ledger::Embedded(ledger);
    if closed {
        ledger.close().await;
    }
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let keywords = Keywords::new(KeywordLists::default());
    let names = PlatformNames::default();
    let recorder = Recorder::new(ledger.clone(), names, keywords, Arc::clone(&metrics));
    let recorder = match follower {
        Some(follower) => recorder.with_follower(follower),
        None => recorder,
    };
    let path = folder.join("secret");
    std::fs::write(&path, SECRET).unwrap();
    let secrets = Secrets::read([path.as_path()], 1).unwrap();
    let config =
        ReceiverConfig { signers: vec![Signer::app(secrets)], verify_tokens: None, rules: rules() };
    let sizes = BudgetSizes { bytes: MIN_BYTES, connection_bytes: MIN_CONNECTION_BYTES, calls: 1 };
    let sender = Sender::new(&Budget::new(sizes, Arc::clone(&metrics)));
    let router = router(Webhook::new(recorder, config, metrics));
    (router.layer(axum::Extension(sender)), ledger)
}

async fn status(router: &axum::Router, body: &[u8]) -> u16 {
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    let signature = hex::encode(mac.chain_update(body).finalize().into_bytes());
    let request = Request::post("/webhook")
        .header("x-hub-signature-256", format!("sha256={signature}"))
        .body(Body::from(body.to_vec()))
        .unwrap();
    router.clone().oneshot(request).await.unwrap().status().as_u16()
}

/// The status that a body must get: it is an error only if it is no payload at all.
fn expected(body: &[u8]) -> Result<whatsapp::ParsedPayload, u16> {
    // The values are skipped without being parsed.
    let text: String = String::from_utf8_lossy(body).chars().map(|c| c.max(' ')).collect();
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
    let is_object = is_json && text.trim_start().starts_with('{');
    let payload = whatsapp::parse(body, &rules());
    assert_eq!(payload.is_ok(), is_object, "{text}");
    payload.map_err(|_| 400)
}

/// Whether any event of a payload can be recorded: user ids may be invalid.
fn is_recordable(payload: &whatsapp::ParsedPayload) -> bool {
    let (secret, names) = (KeySecret::new(&[7; 16]), PlatformNames::default());
    let updates = payload.links.iter().chain(&payload.updates);
    let events = updates.flat_map(|update| &update.submissions);
    let mut events = events.map(|submission| &submission.event);
    events.any(|event| {
        let subject = event.what.subject();
        secret.parse_subject(subject, &event.user_id, &event.business_id).is_ok()
            && event.what.violations(&names).is_empty()
    })
}

#[tokio::test]
async fn no_field_of_any_type_costs_more_than_its_update() {
    let folder = tempfile::tempdir().unwrap();
    let (closed, _ledger) = receiver(folder.path(), true).await;
    let (mut recorded, mut passed) = (0, 0);
    for fixture in fixtures() {
        for place in all_places(&fixture) {
            for wrong in wrong() {
                let mut payload = fixture.clone();
                *payload.pointer_mut(&place).unwrap() = wrong;
                let body = serde_json::to_vec(&payload).unwrap();
                let payload = expected(&body);
                let status = status(&closed, &body).await;
                match payload {
                    Err(code) => assert_eq!(status, code),
                    Ok(payload) => {
                        // An event that the closed ledger does not have must not be acknowledged.
                        let to_record = is_recordable(&payload);
                        assert_eq!(status, if to_record { 503 } else { 200 }, "{place}");
                        recorded += usize::from(to_record);
                        passed += usize::from(!payload.skipped.is_empty());
                    }
                }
            }
        }
    }
    assert!(recorded > 1_000 && passed > 1_000, "{recorded} {passed}");
}

#[tokio::test]
async fn receive_update_that_the_table_does_not_get_to_is_503() {
    let folder = tempfile::tempdir().unwrap();
    let follower = FollowerPosition::default();
    let (router, ledger) = receiver_beside(folder.path(), false, Some(follower.clone())).await;
    let stop = include_bytes!("../../tests/fixtures/whatsapp/inbound_stop.json");
    assert_eq!(status(&router, stop).await, 503);
    // It is durable; WhatsApp repeats the request.
    let end = ledger.partition(0).unwrap().read_after(0).await.unwrap().end;
    follower.advance(end, |_| None);
    assert_eq!(status(&router, stop).await, 200);
}

/// Each preference of a payload is at a number of its business, or at an unknown one; and only at the
/// only number of a business does a resume lift a stop at an unknown one.
fn numbers_are_of_the_business(payload: &whatsapp::ParsedPayload) {
    use consentd_core::event::What;
    let updates = payload.updates.iter().flat_map(|update| {
        update.submissions.iter().chain(update.copies.iter().map(|copy| &copy.submission))
    });
    for submission in updates {
        let number = match &submission.event.what {
            What::Platform { stopped: false, phone_number_id: None } => {
                assert_eq!(submission.event.business_id, "other");
                continue;
            }
            What::Platform { phone_number_id, .. } | What::Failure { phone_number_id, .. } => {
                phone_number_id
            }
            What::OptIn { evidence, .. } => {
                assert!(evidence.phone_number_id.is_some());
                &evidence.phone_number_id
            }
            _ => continue,
        };
        let known = number.as_ref().map(|id| (id.as_str(), &*submission.event.business_id));
        assert!(known.is_none_or(|known| NUMBERS.contains(&known)), "{known:?}");
    }
}

#[tokio::test]
async fn mutated_payloads_are_answered_and_nothing_panics() {
    let cases = std::env::var(VARIABLE).map_or(CASES, |count| count.parse().unwrap());
    let (folder, shut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (open, ledger) = receiver(folder.path(), false).await;
    let (closed, _ledger) = receiver(shut.path(), true).await;
    let (fixtures, wrong) = (fixtures(), wrong());
    let mut statuses = HashMap::new();
    for case in 0..cases {
        let shown = Case(case);
        let body = mutated(&mut Rng(case), &fixtures, &wrong);
        let payload = expected(&body);
        payload.iter().for_each(numbers_are_of_the_business);
        let is_open = case % RECORDED == 0;
        let status = status(if is_open { &open } else { &closed }, &body).await;
        match payload {
            Err(code) => assert_eq!(status, code),
            Ok(payload) if is_open || !is_recordable(&payload) => assert_eq!(status, 200),
            Ok(_) => assert_eq!(status, 503),
        }
        *statuses.entry(status).or_insert(0_u64) += 1;
        drop(shown);
    }
    assert!(statuses.len() == 3, "all of them are met: {statuses:?}");
    eprintln!("{cases} cases: {statuses:?}");
    ledger.close().await;
}

/// How many users have a denial in the payload of [`denials`].
const DENYING: usize = 8;

/// A payload with eight denials by different users: a message, a preference, a failure, an edit, a
/// caption, a form, a message in standby and one in the history. Each is next to an update of another
/// user.
fn denials(users: &[String; DENYING]) -> Value {
    let metadata =
        json!({"display_phone_number": "15550783881", "phone_number_id": "106540352242922"});
    let message = |from: &str, kind: &str, body: Value| {
        json!({"from": from, "id": format!("wamid.{from}"), "timestamp": "1749416383",
            "type": kind, kind: body})
    };
    let text = |from: &str, body: &str| message(from, "text", json!({"body": body}));
    let edit = json!({"message": {"type": "text", "text": {"body": "STOP"}}});
    let form = json!({"type": "nfm_reply", "nfm_reply": {"response_json": "{\"a\":\"STOP\"}"}});
    let failed = |user: &str, code: u32| {
        json!({"id": "wamid.x", "recipient_id": user, "status": "failed",
            "timestamp": "1749416383", "errors": [{"code": code, "title": "a title"}]})
    };
    let prefers = |user: &str, value: &str| {
        json!({"wa_id": user, "category": "marketing_messages", "value": value,
            "timestamp": 1_749_416_383})
    };
    let contacts = json!([{"wa_id": "2", "profile": {"name": "Ann"}}, {"wa_id": users[0]}]);
    json!({"object": "whatsapp_business_account", "entry": [
        {"id": "1", "time": 7, "changes": [
            {"field": "messages", "value": {"metadata": metadata, "contacts": contacts,
                "messages": [text("2", "Hi"), text(&users[0], "STOP"), text("3", "Hello"),
                    message(&users[3], "edit", edit),
                    message(&users[4], "image", json!({"caption": "STOP"})),
                    message(&users[5], "interactive", form)]}},
            {"field": "user_preferences", "value": {"metadata": metadata,
                "user_preferences": [prefers(&users[1], "stop"), prefers("3", "resume")]}},
        ]},
        {"id": "2", "changes": [
            {"field": "messages", "value": {"metadata": metadata,
                "statuses": [failed("2", 131_026), failed(&users[2], 131_050)]}},
            {"field": "standby", "value": {"metadata": metadata,
                "standby": {"messages": [text("2", "Hi"), text(&users[6], "STOP")]}}},
            {"field": "history", "value": {"metadata": metadata, "history": [{"threads": [
                {"id": "2", "messages": [text("2", "Hi")]},
                {"id": users[7], "messages": [text("15550783881", "Hi"), text(&users[7], "STOP")]},
            ]}]}},
        ]},
    ]})
}

/// The fields without which a denial cannot be read, as JSON pointers with their values; and the fields
/// that may be damaged, but must not have another valid value: in the item, or anywhere.
const NEEDED: [(&str, &[&str], &[&str]); DENYING] = [
    ("/entry/0/changes/0/value/messages/1", &["/from", "/text/body"], &["/type"]),
    ("/entry/0/changes/1/value/user_preferences/0", &["/wa_id", "/value"], &["/category"]),
    (
        "/entry/1/changes/0/value/statuses/1",
        &["/recipient_id", "/errors/0/code"],
        &["/status", "/recipient_type"],
    ),
    ("/entry/0/changes/0/value/messages/3", &["/from", "/edit/message/text/body"], &["/type"]),
    ("/entry/0/changes/0/value/messages/4", &["/from", "/image/caption"], &["/type"]),
    (
        "/entry/0/changes/0/value/messages/5",
        &["/from", "/interactive/nfm_reply/response_json"],
        &["/type"],
    ),
    ("/entry/1/changes/1/value/standby/messages/1", &["/from", "/text/body"], &["/type"]),
    (
        "/entry/1/changes/2/value/history/0/threads/1/messages/1",
        &["/from", "/text/body"],
        &["/type", "/entry/1/changes/2/value/history/0/threads/1/id"],
    ),
];

/// Whether a denial can still be read with this value at this place.
fn is_beside((item, needed, said): &(&str, &[&str], &[&str]), place: &str, wrong: &Value) -> bool {
    let is_on_the_way = |path: &str| path == place || path.starts_with(&format!("{place}/"));
    let change = item.split("/value").next().unwrap();
    let said = said.iter().map(|field| match field.strip_prefix("/entry/") {
        Some(_) => (*field).to_owned(),
        None => format!("{item}{field}"),
    });
    let said = said.chain([
        "/object".to_owned(),
        format!("{change}/field"),
        format!("{change}/value/metadata/phone_number_id"),
    ]);
    // With another type or number it is another update, or another user's.
    let is_readable = wrong.is_u64() || wrong.as_str().is_some_and(|text| !text.is_empty());
    let is_something_else = is_readable && said.into_iter().any(|path| path == place);
    let mut needed = needed.iter().map(|field| format!("{item}{field}"));
    !(is_something_else || needed.any(|path| is_on_the_way(&path)))
}

/// Which of these users have a denial in a payload.
fn denied<'u>(payload: &whatsapp::ParsedPayload, users: &'u [String; DENYING]) -> Vec<&'u String> {
    use consentd_core::event::What;
    let events = payload.updates.iter().flat_map(|update| &update.submissions);
    let events: Vec<_> = events.filter(|one| one.event.business_id == "acme").collect();
    let is_denied = |user: &&String| {
        let mut theirs = events.iter().filter(|one| one.event.user_id == **user);
        theirs.any(|one| match &one.event.what {
            What::Inbound { text, .. } => text == "STOP",
            what => what.is_denial(),
        })
    };
    users.iter().filter(is_denied).collect()
}

#[tokio::test]
async fn a_denial_beside_a_broken_neighbour_is_never_lost() {
    const MARK: &str = "@broken@";
    let folder = tempfile::tempdir().unwrap();
    let (open, ledger) = receiver(folder.path(), false).await;
    let secret = ledger.identity().await.unwrap().secret.clone();
    let unparsable: [&[u8]; 4] = [br#""\ud83d""#, b"\"\xff\"", b"-1e999", b"\"\n\""];
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200)).into_bytes();
    let mut values: Vec<(Value, Vec<u8>)> =
        wrong().into_iter().map(|value| (value.clone(), value.to_string().into_bytes())).collect();
    let unparsable = unparsable.iter().map(|bytes| bytes.to_vec()).chain([deep]);
    values.extend(unparsable.map(|bytes| (json!({}), bytes)));
    let (mut case, mut beside) = (0_u64, 0);
    for place in all_places(&denials(&Default::default())) {
        for (value, bytes) in &values {
            case += 1;
            let users: [String; DENYING] =
                std::array::from_fn(|n| (49_000_000_000 + 10 * case + n as u64).to_string());
            let mut payload = denials(&users);
            *payload.pointer_mut(&place).unwrap() = json!(MARK);
            let body = serde_json::to_vec(&payload).unwrap();
            let mark = format!("\"{MARK}\"");
            let start = body.windows(mark.len()).position(|at| at == mark.as_bytes()).unwrap();
            let body = [&body[..start], bytes, &body[start + mark.len()..]].concat();
            let expected: Vec<_> = users
                .iter()
                .zip(NEEDED)
                .filter(|(_, needed)| is_beside(needed, &place, value))
                .map(|(user, _)| user)
                .collect();
            let Ok(payload) = whatsapp::parse(&body, &rules()) else {
                assert_eq!(place, "", "{bytes:?}");
                continue;
            };
            let found = denied(&payload, &users);
            let lost: Vec<_> = expected.iter().filter(|user| !found.contains(user)).collect();
            assert!(lost.is_empty(), "{place}: {}", String::from_utf8_lossy(bytes));
            beside += expected.len();
            if case % RECORDED == 0 {
                assert_eq!(status(&open, &body).await, 200, "{place}");
                for user in expected {
                    let key = secret.parse(user, "acme").unwrap();
                    let entries = ledger.history(key).await.unwrap().entries;
                    assert!(entries.iter().any(|(_, e)| e.what.is_denial()), "{place}");
                }
            }
        }
    }
    assert!(beside > 3_000, "{beside} denials were beside something broken");
    ledger.close().await;
}
