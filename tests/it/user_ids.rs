//! One person under every notation of a number: what is said by webhook under the platform's digits
//! denies under each of them, and what is said under each of them denies under the digits.

mod rekeyed;

use consentd::grpc::pb::{self, Reason};
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::faults::stage::metric;
use crate::sidecar::{Sidecar, event, eventually, opt_in, opt_out, question, run};
use crate::webhook::client::{
    Files, NUMBER, USER, acme, answers, deliver, file, fixture, history, reason,
};

/// Numbers as the platform writes them, and as others do.
const NOTATIONS: [(&str, &str); 36] = [
    ("15550100001", "+1 (555) 010-0001"),
    ("15550100002", "whatsapp:+15550100002"),
    ("15550100003", "WhatsApp: +1 555 010 0003"),
    ("15550100004", "tel:+1-555-010-0004"),
    ("15550100005", "sms:+15550100005"),
    ("15550100006", "p:+15550100006"),
    ("15550100007", "https://wa.me/15550100007"),
    ("15550100008", "15550100008@s.whatsapp.net"),
    ("15550100009", "15550100009:12@c.us"),
    ("15550100010", "001 555 010 0010"),
    ("447700900011", "+44 (0)7700 900011"),
    ("447700900012", "+44 07700 900012"),
    ("491711230013", "0049 (0) 171/1230013"),
    ("36201230014", "+36 06 20 123 0014"),
    ("15550100015", "\u{202a}+1\u{a0}555\u{2011}010\u{2011}0015\u{202c}"),
    ("15550100016", "\u{ff0b}\u{ff11} 555 010 0016"),
    ("15550100017", "+١٥٥٥٠١٠٠٠١٧"),
    ("5215512340018", "+52 55 1234 0018"),
    ("5491123450019", "+54 11 15 2345 0019"),
    ("5491123450020", "+54 (0)11 15 2345 0020"),
    ("5511987650021", "+55 11 8765 0021"),
    ("2290197120022", "+229 97 12 00 22"),
    ("2250707120023", "+225 07 12 00 23"),
    ("84321230024", "+84 162 123 0024"),
    ("15550100025", "1.555.010.0025"),
    ("491711230026", "+49 171/1230026"),
    ("15550100027", "+1 [555] 010\u{2014}0027"),
    ("15550100028", "\u{feff}+1\u{3000}555\u{2003}010\u{2060}00\u{ad}28"),
    ("15550100029", "\u{2066}\u{ff08}1\u{ff09}\u{200b}5550100029\u{2069}"),
    ("15550100030", "SMS:1-555-010-0030"),
    ("15550100031", "https://api.whatsapp.com/send?phone=15550100031&text=hello"),
    ("15550100032", "15550100032.0:12@s.whatsapp.net"),
    ("79123450033", "+7 8 912 345-00-33"),
    ("24166120034", "+241 06 12 00 34"),
    ("23057120035", "+230 712 0035"),
    ("5215512340036", "+52 1 55 1234 0036"),
];

fn stop(user: &str) -> Vec<u8> {
    let stop = String::from_utf8(fixture("inbound_stop", NUMBER)).unwrap();
    // The fixture's message is from 2025; each user's is one of its own.
    stop.replace(USER, user).replace("wamid.", &format!("wamid.{user}.")).into_bytes()
}

#[tokio::test]
async fn a_stop_by_webhook_under_the_digits_denies_under_every_notation() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let mut records = sidecar.records().await;
    for (place, (digits, other)) in NOTATIONS.into_iter().enumerate() {
        let mut given = event(other, "acme", opt_in("marketing"));
        // Before the message of the fixture.
        given.event.as_mut().unwrap().event_time =
            Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 });
        given.request_id = format!("form-{place}");
        records.record_event(given).await.unwrap();
        for id in [other, digits] {
            assert_eq!(reason(&sidecar, id, "acme", "marketing").await, Reason::OptedIn, "{id}");
        }
        assert_eq!(deliver(&sidecar.webhook, &stop(digits)).await, 200);
        answers(&sidecar, digits, "acme", "marketing", Reason::OptedOutAll).await;
        let said = reason(&sidecar, other, "acme", "marketing").await;
        assert_eq!(said, Reason::OptedOutAll, "{other}");
        // It is one history, with what was given as it was given.
        let events = history(&sidecar, other, "acme").await;
        let named: Vec<_> =
            events.iter().filter_map(|one| Some(one.event.as_ref()?.user_id.as_str())).collect();
        assert!(named.contains(&other) && named.contains(&digits), "{named:?}");
    }
}

#[tokio::test]
async fn a_stop_under_every_notation_denies_under_the_digits() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut records = sidecar.records().await;
    for (place, (digits, other)) in NOTATIONS.into_iter().enumerate() {
        let mut given = event(digits, "acme", opt_in("marketing"));
        given.request_id = format!("form-{place}");
        records.record_event(given).await.unwrap();
        records.record_event(event(other, "acme", opt_out("*"))).await.unwrap();
        let said = reason(&sidecar, digits, "acme", "marketing").await;
        assert_eq!(said, Reason::OptedOutAll, "{other}");
        // Erased under one notation is erased under the other.
        if place < 3 {
            let erase = ["erase", other, "acme", "--yes", "--addr", &sidecar.grpc];
            assert_eq!(run(&erase).0, 0);
            let said = reason(&sidecar, digits, "acme", "marketing").await;
            assert_eq!(said, Reason::Suppressed, "{other}");
        }
    }
}

/// Notations that are refused, and what is said of each.
const REFUSED: [(&str, &str); 16] = [
    ("07700 900123", "country code first"),
    ("+39 (0)6 1234 5678", "from abroad"),
    ("1.5550123456E+10", "format that column as text"),
    ("15550123456.0", "format that column as text"),
    ("15,550,123,456", "without grouping commas"),
    ("'15550123456", "apostrophe"),
    ("=\"15550123456\"", "formula"),
    ("15550123456/15550123457", "each one by itself"),
    ("+15550123456 ext. 7", "extension"),
    ("tel:+15550123456;ext=7", "extension"),
    ("signal:+15550123456", "no known prefix"),
    ("209182374650@lid", "business-scoped id"),
    ("120363041234567890@g.us", "group"),
    ("*15550123456", "with a letter in it"),
    ("#15550123456", "with a letter in it"),
    ("1234567890123456", "at most 15 digits"),
];

#[track_caller]
fn assert_says(status: &Status, field: &str, part: &str) {
    let details = status.get_error_details();
    let found = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    assert_eq!(found.len(), 1, "{status:?}");
    assert_eq!(found[0].field, field);
    assert!(found[0].description.contains(part), "{part}: {:?}", found[0].description);
}

#[tokio::test]
async fn a_number_that_cannot_be_read_is_refused_with_the_reason_by_every_call() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let (mut checks, mut records) = (sidecar.checks().await, sidecar.records().await);
    for (id, part) in REFUSED {
        let asked = question(id, "acme", "utility");
        assert_says(&checks.can_send(asked.clone()).await.unwrap_err(), "user_id", part);
        let pair = pb::GetConsentRequest { user_id: id.into(), business_id: "acme".into() };
        assert_says(&checks.get_consent(pair).await.unwrap_err(), "user_id", part);
        let recorded = records.record_event(event(id, "acme", opt_out("*"))).await;
        assert_says(&recorded.unwrap_err(), "event.user_id", part);
        let link = pb::Link { other_user_id: id.into(), moved: false };
        let link = event("US.1", "acme", pb::consent_event::What::Link(link));
        let linked = records.record_event(link).await;
        assert_says(&linked.unwrap_err(), "event.link.other_user_id", part);
        let batch = pb::BatchCanSendRequest { requests: vec![asked.clone()] };
        let answers = checks.batch_can_send(batch).await.unwrap().into_inner();
        let said = format!("{:?}", answers.results);
        assert!(said.contains(part), "{part}: {said}");
        let asked = pb::StreamCanSendRequest { sequence: 1, request: Some(asked) };
        let answers = checks.stream_can_send(tokio_stream::iter([asked])).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        let said = format!("{answer:?}");
        assert!(said.contains(part), "{part}: {said}");
        let screened = pb::FilterRecipientsRequest {
            business_id: "acme".into(),
            category: "utility".into(),
            user_ids: vec![id.into()],
            ..Default::default()
        };
        let answers = checks.filter_recipients(tokio_stream::iter([screened])).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        assert_eq!((answer.reasons, answer.allowed_count), (vec![0], 0), "{part}");
        for business_id in ["acme", ""] {
            let erase =
                pb::EraseUserRequest { user_id: id.into(), business_id: business_id.into() };
            let erased = records.erase_user(erase).await.unwrap_err();
            assert!(erased.message().contains(part), "{part}: {erased:?}");
        }
    }
    assert_eq!(checks.get_status(pb::GetStatusRequest {}).await.unwrap().get_ref().revision, 0);
}

#[tokio::test]
async fn a_number_that_cannot_be_read_is_refused_with_the_reason_by_imports() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let row = |(id, _)| {
        let event = serde_json::json!({
            "userId": id,
            "businessId": "acme",
            "eventTime": "2026-01-31T09:30:00Z",
            "optOut": {"scope": "*"},
        });
        format!("{event}\n")
    };
    let rows: String = REFUSED.into_iter().map(row).collect();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (file, rejects) = (path("rows.ndjson"), path("rejects.ndjson"));
    std::fs::write(&file, &rows).unwrap();
    let (code, _, said) = run(&["import", &file, "--rejects", &rejects, "--addr", &sidecar.grpc]);
    assert_eq!(code, 1, "{said}");
    for (_, part) in REFUSED {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(std::fs::read_to_string(&rejects).unwrap(), rows);
    let mut checks = sidecar.checks().await;
    assert_eq!(checks.get_status(pb::GetStatusRequest {}).await.unwrap().get_ref().revision, 0);
}

#[tokio::test]
async fn a_number_that_cannot_be_read_is_refused_for_good_by_webhooks() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    for (id, _) in REFUSED {
        let id = serde_json::Value::from(id).to_string();
        let status = deliver(&sidecar.webhook, &stop(&id[1..id.len() - 1])).await;
        assert_eq!(status, 200, "the platform is not to send it for seven days");
    }
    let refused = "consent_webhook_updates_total{kind=\"message\",outcome=\"refused\"}";
    let count = f64::from(u32::try_from(REFUSED.len()).unwrap());
    eventually("each is counted", || async {
        let counted = metric(&sidecar, refused).await;
        counted.total_cmp(&count).is_eq()
    })
    .await;
    let mut checks = sidecar.checks().await;
    assert_eq!(checks.get_status(pb::GetStatusRequest {}).await.unwrap().get_ref().revision, 0);
}
