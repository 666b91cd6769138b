//! What is malformed is refused with its field and a text that helps, and nobody is named.

use std::time::{Duration, SystemTime};

use consentd::grpc::pb;
use consentd::grpc::pb::consent_event::What;
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::sidecar::{Sidecar, Wire, event, framed, inbound, opt_in, opt_out, question};

const CAN_SEND: &str = "consent.v1.ConsentService/CanSend";
const BATCH: &str = "consent.v1.ConsentService/BatchCanSend";
const RECORD: &str = "consent.v1.RecordService/RecordEvent";
const WATCH: &str = "consent.v1.ConsentService/WatchConsents";
const RECORDS: &str = "consent.v1.RecordService/RecordEvents";

/// A field, and a part of what is said of it.
type Fault = (&'static str, &'static str);

/// What a status says of fields.
fn faults(status: &Status) -> Vec<(String, String)> {
    let details = status.get_error_details();
    let bad = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    bad.into_iter().map(|violation| (violation.field, violation.description)).collect()
}

/// Checks that a call was refused for these faults, in this order, and for no others.
#[track_caller]
fn assert_faults(status: &Status, expected: &[Fault]) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let found = faults(status);
    let fields: Vec<_> = found.iter().map(|(field, _)| field.as_str()).collect();
    let wanted: Vec<_> = expected.iter().map(|(field, _)| *field).collect();
    assert_eq!(fields, wanted, "{status:?}");
    for ((field, said), (_, part)) in found.iter().zip(expected) {
        assert!(said.contains(part), "{field}: {said:?} has no {part:?}");
        assert!(status.message().contains(part), "{:?} has no {part:?}", status.message());
    }
}

/// Every way in which a question can be wrong, and what is said of it.
fn bad_questions() -> Vec<(pb::CanSendRequest, Vec<Fault>)> {
    let (long, longer) = ("x".repeat(129), "x".repeat(161));
    let topic = format!("utility.{}", "a".repeat(49));
    let form = pb::CanSendRequest { form: 3, ..question("u", "b", "utility") };
    let everything = pb::CanSendRequest { form: -1, ..question("", "", "") };
    vec![
        (question("", "b", "utility"), vec![("user_id", "required")]),
        (question("u", "", "utility"), vec![("business_id", "required")]),
        (question("u", "b", ""), vec![("category", "required: marketing, utility")]),
        (
            question("u", "b", "news"),
            vec![("category", "unknown class \"news\", did you mean marketing?")],
        ),
        (question("u", "b", "Utility"), vec![("category", "lower case: utility")]),
        (question("u", "b", "*"), vec![("category", "never for everything")]),
        (question("u", "b", "utility."), vec![("category", "1 to 48 of a-z")]),
        (question("u", "b", "utility.Orders"), vec![("category", "1 to 48 of a-z")]),
        (question("u", "b", "utility.a.b"), vec![("category", "1 to 48 of a-z")]),
        (question("u", "b", " utility"), vec![("category", "U+0020 SPACE at byte 0")]),
        (question("u", "b", &topic), vec![("category", "1 to 48 of a-z")]),
        (question(&longer, "b", "utility"), vec![("user_id", "longer than 160 bytes")]),
        (question("u", &long, "utility"), vec![("business_id", "longer than 128 bytes")]),
        (question("u\n", "b", "utility"), vec![("user_id", "control character")]),
        (question("u", "b\0", "utility"), vec![("business_id", "control character")]),
        (question("\u{feff}u", "b", "utility"), vec![("user_id", "invisible character")]),
        (question("+() -", "b", "utility"), vec![("user_id", "at least one digit")]),
        (question("1234567890123456", "b", "utility"), vec![("user_id", "at most 15 digits")]),
        (question("15550123456.0", "b", "utility"), vec![("user_id", "spreadsheet")]),
        (form, vec![("form", "MESSAGE_FORM_TEMPLATE")]),
        (
            everything,
            vec![
                ("user_id", "required"),
                ("business_id", "required"),
                ("category", "required"),
                ("form", "unknown"),
            ],
        ),
    ]
}

#[tokio::test]
async fn a_malformed_question_is_refused_field_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let (mut checks, mut records) = (sidecar.checks().await, sidecar.records().await);
    for (question, expected) in bad_questions() {
        let refused = checks.can_send(question.clone()).await.unwrap_err();
        assert_faults(&refused, &expected);
        let ids = expected.into_iter().filter(|(field, _)| field.ends_with("_id"));
        let ids: Vec<_> = ids.collect();
        if ids.is_empty() {
            continue;
        }
        let pb::CanSendRequest { user_id, business_id, .. } = question;
        let (user, business) = (user_id.clone(), business_id.clone());
        let pair = pb::GetConsentRequest { user_id: user, business_id: business };
        assert_faults(&checks.get_consent(pair).await.unwrap_err(), &ids);
        let pair = pb::ListEventsRequest { user_id, business_id };
        assert_faults(&records.list_events(pair).await.unwrap_err(), &ids);
    }
}

#[tokio::test]
async fn a_batchs_bad_items_leave_the_others_answered() {
    use pb::batch_can_send_result::Result as Item;
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut checks = sidecar.checks().await;
    let bad = bad_questions();
    let good = question("u", "b", "utility.orders");
    let requests = bad.iter().flat_map(|(bad, _)| [bad.clone(), good.clone()]).collect();
    let batch = pb::BatchCanSendRequest { requests };
    let results = checks.batch_can_send(batch).await.unwrap().into_inner().results;
    assert_eq!(results.len(), 2 * bad.len());
    for ((_, expected), results) in bad.iter().zip(results.chunks(2)) {
        let Some(Item::Error(error)) = &results[0].result else { panic!("{expected:?}") };
        assert_eq!((error.code, error.field.as_str()), (3, expected[0].0));
        for (_, part) in expected {
            assert!(error.message.contains(part), "{error:?} has no {part:?}");
        }
        let Some(Item::Response(answer)) = &results[1].result else { panic!("{:?}", results[1]) };
        assert_eq!(answer.reason(), pb::Reason::NoConsent);
    }
    let full = pb::BatchCanSendRequest { requests: vec![good.clone(); 1_000] };
    assert_eq!(checks.batch_can_send(full).await.unwrap().into_inner().results.len(), 1_000);
    let over = pb::BatchCanSendRequest { requests: vec![good; 1_001] };
    let refused = checks.batch_can_send(over).await.unwrap_err();
    assert_faults(&refused, &[("requests", "1001 requests; at most 1000")]);
    let none = checks.batch_can_send(pb::BatchCanSendRequest::default()).await.unwrap();
    assert!(none.into_inner().results.is_empty());
}

#[tokio::test]
async fn bytes_that_do_not_decode_are_the_clients_fault_and_name_their_field() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let text = [0x0a, 2, 0xff, 0xfe]; // Field 1, two bytes that are no UTF-8.
    let within = |field: u8, inner: &[u8]| {
        [&[field << 3 | 2, u8::try_from(inner.len()).unwrap()], inner].concat()
    };
    let statement = within(1, &within(4, &within(2, &within(2, &[0xff]))));
    let preference = within(2, &within(7, &[0x0a, 0]));
    let cases: Vec<(&str, Vec<u8>, Fault)> = vec![
        (CAN_SEND, text.to_vec(), ("user_id", "UTF-8")),
        (CAN_SEND, vec![0x0a, 20, b'a'], ("user_id", "buffer underflow")),
        (CAN_SEND, vec![0x08, 1], ("user_id", "wire type")),
        (CAN_SEND, vec![0x28], ("min_revision", "varint")),
        (CAN_SEND, vec![0xff; 12], ("", "varint")),
        (CAN_SEND, vec![0, 0], ("", "tag")),
        (CAN_SEND, vec![0x7b; 4_096], ("", "recursion")),
        (BATCH, within(1, &text), ("requests.user_id", "UTF-8")),
        (RECORD, within(2, &[0xff]), ("request_id", "UTF-8")),
        (RECORD, within(1, &text), ("event.user_id", "UTF-8")),
        (RECORD, within(1, &within(4, &text)), ("event.opt_in.category", "UTF-8")),
        (RECORD, statement, ("event.opt_in.evidence.statement", "UTF-8")),
        (RECORDS, preference, ("event.platform_preference.marketing_stopped", "wire type")),
    ];
    for (method, bytes, expected) in cases {
        let refused = wire.call(method, &bytes).await.unwrap_err();
        assert_faults(&refused, &[expected]);
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_is_refused_and_the_connection_lives() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let mebibyte = 1024 * 1024;
    for (method, most) in [(CAN_SEND, mebibyte), (RECORD, mebibyte), (BATCH, 2 * mebibyte)] {
        // tonic's own code. Other implementations answer RESOURCE_EXHAUSTED, which our clients
        // read as an overload that passes.
        let refused = wire.call(method, &vec![0; most + 1]).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
        assert!(refused.message().contains(&most.to_string()), "{refused:?}");
        // A length alone must not make the sidecar wait for, or set aside, so much memory.
        let head = [&[0][..], &u32::MAX.to_be_bytes()].concat();
        let call = wire.begin(method, &[], head).await.unwrap();
        assert_eq!(call.end().await.unwrap_err().code(), Code::OutOfRange);
    }
    let asked = wire.call(CAN_SEND, &question("u", "b", "utility").encode_to_vec()).await;
    assert!(pb::CanSendResponse::decode(&*asked.unwrap()).is_ok());
}

fn at(seconds: i64, nanos: i32) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds, nanos }
}

fn ahead(ahead: Duration) -> prost_types::Timestamp {
    (SystemTime::now() + ahead).into()
}

/// An opt-in of 2023, spoilt.
fn opting_in(spoil: impl FnOnce(&mut pb::OptIn)) -> pb::RecordEventRequest {
    let What::OptIn(mut said) = opt_in("utility") else { unreachable!() };
    spoil(&mut said);
    let mut request = event("u", "b", What::OptIn(said));
    request.event.as_mut().unwrap().event_time = Some(at(1_700_000_000, 0));
    request
}

/// The same, with its evidence spoilt.
fn proven(spoil: impl FnOnce(&mut pb::Evidence)) -> pb::RecordEventRequest {
    opting_in(|said| spoil(said.evidence.as_mut().unwrap()))
}

fn timed(time: Option<prost_types::Timestamp>) -> pb::RecordEventRequest {
    let mut request = event("u", "b", inbound("hello"));
    request.event.as_mut().unwrap().event_time = time;
    request
}

fn named(request_id: &str, mut request: pb::RecordEventRequest) -> pb::RecordEventRequest {
    request.request_id = request_id.into();
    request
}

/// Every way in which an event that is no opt-in can be wrong, and what is said of it.
fn bad_events() -> Vec<(pb::RecordEventRequest, Vec<Fault>)> {
    let time = |time, part: &'static str| (timed(Some(time)), vec![("event.event_time", part)]);
    let failure = |code| {
        event("u", "b", What::DeliveryFailure(pb::DeliveryFailure { code, ..Default::default() }))
    };
    let mut nothing = event("u", "b", opt_out("*"));
    nothing.event.as_mut().unwrap().what = None;
    vec![
        (pb::RecordEventRequest::default(), vec![("event", "required")]),
        (nothing, vec![("event.what", "one of opt_in, opt_out")]),
        (event("", "b", inbound("")), vec![("event.user_id", "required")]),
        (event("u", "", inbound("")), vec![("event.business_id", "required")]),
        (event("5.00", "b", inbound("")), vec![("event.user_id", "spreadsheet")]),
        time(at(-1, 0), "1970"),
        time(at(253_402_300_800, 0), "9999"),
        time(at(i64::MAX, 0), "9999"),
        time(at(i64::MIN, i32::MIN), "1970"),
        time(at(1_700_000_000, -1), "nanos"),
        time(at(1_700_000_000, 1_000_000_000), "nanos"),
        // The year 55,840: milliseconds where seconds are meant.
        time(at(1_700_000_000_000, 0), "not milliseconds"),
        time(ahead(Duration::from_mins(10)), "ahead of the ledger's clock"),
        (event("u", "b", opt_out("news")), vec![("event.opt_out.scope", "unknown class")]),
        (event("u", "b", opt_out("")), vec![("event.opt_out.scope", "or * for everything")]),
        (failure(0), vec![("event.delivery_failure.code", "131047")]),
        (failure(-5), vec![("event.delivery_failure.code", "131047")]),
        (named(&"r".repeat(129), timed(None)), vec![("request_id", "longer than 128")]),
        (event("u", "b", opt_in("utility")), vec![("request_id", "has no event_time")]),
    ]
}

/// Every way in which an opt-in can be wrong; all that is wrong is said at once.
fn bad_opt_ins() -> Vec<(pb::RecordEventRequest, Vec<Fault>)> {
    let category = "event.opt_in.category";
    let expire = "event.opt_in.expire_time";
    let method = "event.opt_in.evidence.method";
    let statement = "event.opt_in.evidence.statement";
    let name = "event.opt_in.evidence.business_name";
    let locale = "event.opt_in.evidence.locale";
    let reference = "event.opt_in.evidence.reference";
    let later = "later than the event's own time";
    let long = "x".repeat(2_049);
    let mut nobody = opting_in(|o| o.category = "*".into());
    nobody.event.as_mut().unwrap().user_id.clear();
    vec![
        (nobody, vec![("event.user_id", "required"), (category, "never for everything")]),
        (opting_in(|o| o.category = "*".into()), vec![(category, "never for everything")]),
        (opting_in(|o| o.category = "news".into()), vec![(category, "unknown class")]),
        (
            opting_in(|o| o.evidence = None),
            vec![(method, "_WEBSITE"), (statement, "required"), (name, "required")],
        ),
        (proven(|e| e.method = 0), vec![(method, "_WEBSITE")]),
        (proven(|e| e.method = 99), vec![(method, "_WEBSITE")]),
        (proven(|e| e.statement = "Messages from Acme".into()), vec![(statement, "WhatsApp")]),
        (proven(|e| e.business_name = "Emca".into()), vec![(statement, "business_name")]),
        (proven(|e| e.business_name = " ".into()), vec![(name, "required")]),
        (proven(|e| e.statement = String::new()), vec![(statement, "required")]),
        (proven(|e| e.locale = "en_GB".into()), vec![(locale, "BCP 47")]),
        (
            proven(|e| e.statement = "Yes to everything".into()),
            vec![(statement, "WhatsApp"), (statement, "business_name")],
        ),
        (
            proven(|e| {
                let (locale, reference) = ("!".into(), long.clone());
                *e = pb::Evidence { method: 1, locale, reference, ..Default::default() };
            }),
            vec![
                (statement, "required"),
                (name, "required"),
                (locale, "BCP 47"),
                (reference, "longer than 2048"),
            ],
        ),
        (
            proven(|e| *e = pb::Evidence { method: 6, ..Default::default() }),
            vec![(reference, "signup_id")],
        ),
        (
            opting_in(|o| {
                o.category = "*".into();
                o.expire_time = Some(at(0, -1));
                o.evidence.as_mut().unwrap().statement = "From Acme".into();
            }),
            vec![(category, "never"), (expire, "nanos"), (statement, "WhatsApp")],
        ),
        (opting_in(|o| o.expire_time = Some(at(1_600_000_000, 0))), vec![(expire, later)]),
        (opting_in(|o| o.expire_time = Some(at(1_700_000_000, 0))), vec![(expire, later)]),
        (opting_in(|o| o.expire_time = Some(at(-1, 0))), vec![(expire, "1970")]),
    ]
}

#[tokio::test]
async fn a_malformed_event_is_refused_field_by_field_alone_and_in_bulk() {
    use pb::record_events_response::Result as Item;
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut records = sidecar.records().await;
    let bad = [bad_events(), bad_opt_ins()].concat();
    for (request, expected) in &bad {
        let refused = records.record_event(request.clone()).await.unwrap_err();
        assert_faults(&refused, expected);
    }
    let mut bulk = Vec::new();
    for (sequence, (bad, _)) in (0..).step_by(2).zip(&bad) {
        let pb::RecordEventRequest { event: what, request_id } = bad.clone();
        bulk.push(pb::RecordEventsRequest { sequence, event: what, request_id });
        let good = event(&format!("user-{sequence}"), "b", opt_out("*")).event;
        let sequence = sequence + 1;
        bulk.push(pb::RecordEventsRequest { sequence, event: good, request_id: String::new() });
    }
    let mut answers = records.record_events(tokio_stream::iter(bulk)).await.unwrap().into_inner();
    for (sequence, (_, expected)) in (0..).step_by(2).zip(&bad) {
        let refused = answers.message().await.unwrap().unwrap();
        let Some(Item::Error(error)) = refused.result else { panic!("{expected:?}") };
        assert_eq!((refused.sequence, error.code), (sequence, 3));
        assert_eq!(error.field, expected[0].0);
        assert!(error.message.contains(expected[0].1), "{error:?}");
        let recorded = answers.message().await.unwrap().unwrap();
        let Some(Item::Response(done)) = recorded.result else { panic!("{recorded:?}") };
        assert!(done.applied && recorded.sequence == sequence + 1);
    }
    assert_eq!(answers.message().await.unwrap(), None);
    let mut checks = sidecar.checks().await;
    let pair = pb::GetConsentRequest { user_id: "u".into(), business_id: "b".into() };
    let known = checks.get_consent(pair).await.unwrap().into_inner();
    assert!(known.opted_in.is_empty() && known.last_inbound_time.is_none(), "{known:?}");
}

#[tokio::test]
async fn a_time_of_five_minutes_ahead_is_taken_as_now() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut records = sidecar.records().await;
    let sent = timed(Some(ahead(Duration::from_mins(5))));
    assert!(records.record_event(sent).await.unwrap().into_inner().applied);
    let pair = pb::ListEventsRequest { user_id: "u".into(), business_id: "b".into() };
    let mut entries = records.list_events(pair).await.unwrap().into_inner();
    let entry = entries.message().await.unwrap().unwrap();
    assert_eq!(entry.event.unwrap().event_time, entry.record_time);
}

#[tokio::test]
async fn a_request_id_is_for_one_event() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut records = sidecar.records().await;
    let first = named("once", event("u", "b", opt_in("utility")));
    let done = records.record_event(first.clone()).await.unwrap().into_inner();
    let other = named("once", event("u", "b", opt_in("marketing")));
    let refused = records.record_event(other).await.unwrap_err();
    assert_faults(&refused, &[("request_id", "was used for a different event")]);
    assert_eq!(records.record_event(first).await.unwrap().into_inner(), done);
    let another_user = named("once", event("v", "b", opt_in("marketing")));
    assert!(records.record_event(another_user).await.unwrap().into_inner().applied);
}

#[tokio::test]
async fn a_bulk_recording_ends_at_bytes_that_do_not_decode_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let stop = |user| pb::RecordEventsRequest {
        sequence: 7,
        event: event(user, "b", opt_out("*")).event,
        request_id: String::new(),
    };
    let [before, within, after] = ["u", "v", "w"].map(|user| stop(user).encode_to_vec());
    // The fault leaves bytes unread that would make a message: they must not be taken for one.
    let fault = [0x12, 4, 0x0a, 2, 0xff, 0xfe];
    let fault = [&fault[..], &framed(&within), &within].concat();
    let body = [framed(&before), framed(&fault), framed(&after)].concat();
    let mut call = wire.begin(RECORDS, &[], body).await.unwrap();
    let answered = call.next().await.unwrap().unwrap();
    let answered = pb::RecordEventsResponse::decode(&answered[5..]).unwrap();
    assert_eq!(answered.sequence, 7);
    assert_faults(&call.end().await.unwrap_err(), &[("event.user_id", "UTF-8")]);
    let mut checks = sidecar.checks().await;
    for (user, reason) in
        [("u", pb::Reason::OptedOutAll), ("v", pb::Reason::NoConsent), ("w", pb::Reason::NoConsent)]
    {
        let answer = checks.can_send(question(user, "b", "utility")).await.unwrap();
        assert_eq!(answer.get_ref().reason(), reason, "{user}");
    }
}

#[tokio::test]
async fn what_comes_later_and_what_is_unknown_is_unimplemented() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    for (method, message, part) in [
        ("consent.v1.ConsentService/CanSendd", vec![], ""),
        ("consent.v1.RecordService/", vec![], ""),
        ("consent.v2.ConsentService/CanSend", vec![], ""),
        ("", vec![], ""),
    ] {
        let refused = wire.call(method, &message).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{method}: {refused:?}");
        assert!(refused.message().contains(part), "{method}: {refused:?}");
    }
}

#[tokio::test]
async fn nobody_is_named_in_an_error_in_a_metric_or_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &["--log", "trace"]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let secrets = ["+1 555 019 7734", "15550197734", "Ignatius", "my own words", "shop-4711"];
    let [phone, digits, name, words, shop] = secrets;
    let mut said = Vec::new();
    let mut watching = wire.begin(WATCH, &[], framed(&[])).await.unwrap();
    watching.next().await.unwrap();
    for user in [phone, digits, name, "Ignatius\n", "15550197734.0", "15550197734 15550197734"] {
        let pair = pb::GetConsentRequest { user_id: user.into(), business_id: shop.into() };
        let pair = pair.encode_to_vec();
        let business = pb::WatchConsentsRequest { business_id: user.into() }.encode_to_vec();
        let watched = wire.begin(WATCH, &[], framed(&business)).await.unwrap().next().await;
        said.extend(
            watched.err().map(|error| format!("{error:?} {:?}", error.get_error_details())),
        );
        let exported = pb::ExportEventsResponse {
            event: event(user, shop, opt_out("*")).event,
            number: 1,
            chain_head: vec![0; 32],
            ..Default::default()
        };
        let exported = pb::CheckEventsRequest { sequence: 1, exported: Some(exported) };
        let mut calls = vec![
            (CAN_SEND, question(user, shop, words).encode_to_vec()),
            (CAN_SEND, question(user, shop, "utility").encode_to_vec()),
            ("consent.v1.ConsentService/GetConsent", pair.clone()),
            ("consent.v1.RecordService/ListEvents", pair.clone()),
            ("consent.v1.RecordService/EraseUser", pair.clone()),
            // Of the same shape: a user, and businesses.
            ("consent.v1.RecordService/ListUserEvents", pair.clone()),
            ("consent.v1.RecordService/ListDueOptIns", business.clone()),
            ("consent.v1.RecordService/CheckEvents", exported.encode_to_vec()),
            (CAN_SEND, [&pair[..], &[0x1a, 1, 0xff]].concat()),
        ];
        for what in [inbound(words), inbound("stop"), opt_out("*"), opt_out(words), opt_in(words)] {
            calls.push((RECORD, named(words, event(user, shop, what)).encode_to_vec()));
        }
        // More scopes than a pair may have.
        for category in (0..70).map(|n| format!("utility.topic_{n}")) {
            let opted = named(&category, event(user, shop, opt_in(&category)));
            calls.push((RECORD, opted.encode_to_vec()));
        }
        for (method, message) in calls {
            if let Err(error) = wire.call(method, &message).await {
                said.push(format!("{error:?} {:?}", error.get_error_details()));
            }
        }
    }
    assert!(said.iter().any(|said| said.contains("FailedPrecondition")));
    assert!(watching.next().await.unwrap().is_some(), "one was told of all that changed");
    said.push(sidecar.get("/metrics").await.1);
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
    assert!(sidecar.said().contains("TRACE"), "there is a log to look through");
    said.push(sidecar.said());
    for secret in secrets {
        let found = said.iter().find(|said| said.contains(secret));
        assert_eq!(found, None, "{secret}");
    }
}
