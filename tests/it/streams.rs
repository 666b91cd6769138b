//! Questions and campaigns over streams: the answers are those of `CanSend`, whatever happens to
//! the stream.

use std::collections::BTreeMap;
use std::time::Duration;

use consentd::grpc::pb;
use consentd::grpc::pb::batch_can_send_result::Result as Answered;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::commands::unloaded;
use crate::sidecar::{
    PATIENCE, Sidecar, Wire, channel, event, eventually, framed, inbound, opt_in, opt_out, question,
};

const STREAM: &str = "consent.v1.ConsentService/StreamCanSend";
/// More questions than fit into the windows of both ways.
const MOST: u64 = 1_000_000;
const FILTER: &str = "consent.v1.ConsentService/FilterRecipients";

/// A sidecar with users of several standings.
async fn with_users(folder: &std::path::Path, flags: &[&str]) -> Sidecar {
    let sidecar = Sidecar::live(folder, flags).await;
    let mut records = sidecar.records().await;
    for (number, (user, what)) in (0..).zip([
        ("1", opt_in("marketing")),
        ("2", opt_out("*")),
        ("3", inbound("hello")),
        ("4", opt_in("utility.orders")),
        ("4", opt_out("marketing")),
        ("+49 170 1234567", opt_in("marketing.news")),
    ]) {
        let request_id = format!("set-up {number}");
        let event = pb::RecordEventRequest { request_id, ..event(user, "acme", what) };
        records.record_event(event).await.unwrap();
    }
    sidecar
}

fn questions() -> Vec<pb::CanSendRequest> {
    let mut all = Vec::new();
    for user in ["1", "2", "3", "4", "491701234567", "nobody", "", "tab\t", "1.0"] {
        for business in ["acme", "other", ""] {
            for category in ["marketing", "marketing.news", "utility.orders", "nonsense", ""] {
                for form in [0, 1, 2, 77] {
                    all.push(pb::CanSendRequest { form, ..question(user, business, category) });
                }
            }
        }
    }
    all
}

fn sequenced(sequence: u64, request: pb::CanSendRequest) -> pb::StreamCanSendRequest {
    pb::StreamCanSendRequest { sequence, request: Some(request) }
}

/// An answer without what changes from one moment to the next.
fn timeless(answer: pb::CanSendResponse) -> pb::CanSendResponse {
    pb::CanSendResponse { staleness: None, ..answer }
}

/// An open stream of questions, and its answers.
async fn open(
    client: &mut ConsentServiceClient<Channel>,
) -> (mpsc::Sender<pb::StreamCanSendRequest>, Streaming<pb::StreamCanSendResponse>) {
    let (ask, asked) = mpsc::channel(16);
    let answers = client.stream_can_send(ReceiverStream::new(asked)).await.unwrap();
    (ask, answers.into_inner())
}

/// The next answer: its sequence, and its result.
async fn next(answers: &mut Streaming<pb::StreamCanSendResponse>) -> (u64, Answered) {
    let answer = timeout(PATIENCE, answers.message()).await.expect("an answer in time");
    let answer = answer.unwrap().expect("an answer");
    (answer.sequence, answer.result.unwrap().result.unwrap())
}

#[tokio::test]
async fn answers_of_a_stream_and_of_a_batch_are_those_of_single_calls() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = with_users(folder.path(), &[]).await;
    let mut client = sidecar.checks().await;
    let all = questions();
    let requests = all.iter().cloned().zip(0..).map(|(asked, number)| sequenced(number, asked));
    let requests: Vec<_> = requests.collect();
    let answers = client.stream_can_send(tokio_stream::iter(requests)).await.unwrap();
    let mut answers = answers.into_inner();
    let batch = pb::BatchCanSendRequest { requests: all.clone() };
    let batch = client.batch_can_send(batch).await.unwrap().into_inner().results;
    for ((number, asked), of_batch) in (0..).zip(all).zip(batch) {
        let (sequence, answer) = next(&mut answers).await;
        assert_eq!(sequence, number);
        match (client.can_send(asked.clone()).await, answer, of_batch.result.unwrap()) {
            (Ok(alone), Answered::Response(streamed), Answered::Response(batched)) => {
                let alone = timeless(alone.into_inner());
                assert_eq!(alone, timeless(streamed), "{asked:?}");
                assert_eq!(alone, timeless(batched), "{asked:?}");
            }
            (Err(alone), Answered::Error(streamed), Answered::Error(batched)) => {
                assert_eq!(alone.code(), Code::from(streamed.code), "{asked:?}");
                assert!(alone.message().contains(&streamed.message), "{asked:?}: {streamed:?}");
                assert!(alone.message().contains(&streamed.field), "{asked:?}: {streamed:?}");
                assert_eq!(streamed, batched, "{asked:?}");
            }
            differing => panic!("{asked:?}: {differing:?}"),
        }
    }
    assert!(answers.message().await.unwrap().is_none(), "it ends where its questions do");
    // A question that is none is answered as an empty one.
    let (ask, mut answers) = open(&mut client).await;
    ask.send(pb::StreamCanSendRequest { sequence: 7, request: None }).await.unwrap();
    let (7, Answered::Error(error)) = next(&mut answers).await else { panic!("no error") };
    assert_eq!(error.code, i32::from(Code::InvalidArgument));
    assert!(error.message.contains("user_id"), "{error:?}");
}

#[tokio::test]
async fn who_waits_for_a_revision_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = with_users(folder.path(), &[]).await;
    let mut client = sidecar.checks().await;
    let status = client.get_status(pb::GetStatusRequest {}).await.unwrap().into_inner();
    let (ask, mut answers) = open(&mut client).await;
    let later = |revisions, user| pb::CanSendRequest {
        min_revision: status.revision + revisions,
        ..question(user, "acme", "utility")
    };
    ask.send(sequenced(1, later(2, "5"))).await.unwrap();
    ask.send(sequenced(2, later(1, "6"))).await.unwrap();
    ask.send(sequenced(3, later(0, "1"))).await.unwrap();
    assert_eq!(next(&mut answers).await.0, 3);
    let mut records = sidecar.records().await;
    for (user, sequence) in [("6", 2), ("5", 1)] {
        let request_id = format!("later {user}");
        let opt_in = event(user, "acme", opt_in("utility"));
        let opt_in = pb::RecordEventRequest { request_id, ..opt_in };
        records.record_event(opt_in).await.unwrap();
        let (answered, Answered::Response(answer)) = next(&mut answers).await else { panic!() };
        assert_eq!(answered, sequence);
        assert!(answer.allowed, "it knows of what it waited for");
    }
    // What does not come is told, and the stream goes on.
    ask.send(sequenced(4, later(9, "5"))).await.unwrap();
    drop(ask);
    let (4, Answered::Error(error)) = next(&mut answers).await else { panic!() };
    assert_eq!(error.code, i32::from(Code::DeadlineExceeded));
    assert_eq!(error.field, "min_revision");
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_stream_outlives_the_loading_of_the_table() {
    let (address, drain) = unloaded().await;
    let mut client = ConsentServiceClient::new(channel(&address).await);
    let (ask, mut answers) = open(&mut client).await;
    ask.send(sequenced(1, question("7", "acme", "utility"))).await.unwrap();
    let (1, Answered::Error(error)) = next(&mut answers).await else { panic!("decided") };
    assert_eq!(error.code, i32::from(Code::Unavailable));
    let asked = pb::FilterRecipientsRequest {
        template: None,
        business_id: "acme".into(),
        category: "utility".into(),
        user_ids: vec!["7".into()],
        ..Default::default()
    };
    let mut verdicts =
        client.filter_recipients(tokio_stream::iter([asked])).await.unwrap().into_inner();
    assert_eq!(verdicts.message().await.unwrap_err().code(), Code::Unavailable);
    drain.begun.cancel();
    drain.over.cancel();
}

#[tokio::test]
async fn bytes_that_are_no_question_end_a_stream_and_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = with_users(folder.path(), &[]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let good = framed(&sequenced(1, question("1", "acme", "marketing")).encode_to_vec());
    let bad = framed(&[0x12, 0x03, 0x0a, 0x01, 0xff]);
    let body = [&good[..], &bad, &good].concat();
    let mut call = wire.begin(STREAM, &[], body).await.unwrap();
    let mut answered = Vec::new();
    while let Some(bytes) = call.next().await.unwrap() {
        answered.extend(bytes);
    }
    let length = u32::from_be_bytes(answered[1..5].try_into().unwrap());
    assert_eq!(answered.len(), 5 + usize::try_from(length).unwrap(), "one answer, and no more");
    let status = call.status().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("request.user_id"), "{status:?}");
    for (method, bytes, part) in [
        (STREAM, vec![0x08], "the bytes are not the message"),
        (FILTER, vec![0x0a, 0x01, 0xff], "business_id"),
        (FILTER, vec![0x22, 0x01, 0xff], "user_ids"),
    ] {
        let status = wire.call(method, &bytes).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(part), "{status:?}");
    }
}

#[tokio::test]
async fn who_does_not_read_is_not_read_from_and_misses_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = with_users(folder.path(), &[]).await;
    let mut client = sidecar.checks().await;
    let (ask, mut answers) = open(&mut client).await;
    let mut asked = 0;
    while asked < MOST {
        let request = sequenced(asked, question("1", "acme", "marketing"));
        match timeout(Duration::from_secs(1), ask.send(request)).await {
            Ok(sent) => sent.unwrap(),
            Err(_) => break,
        }
        asked += 1;
    }
    assert!((1..MOST).contains(&asked), "it was read from all the while");
    drop(ask);
    for sequence in 0..asked {
        assert_eq!(next(&mut answers).await.0, sequence);
    }
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn streams_end_when_the_server_drains_and_what_has_come_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = with_users(folder.path(), &["--drain-timeout", "20s"]).await;
    let mut client = sidecar.checks().await;
    let (ask, mut answers) = open(&mut client).await;
    let (screen, screened) = mpsc::channel(1);
    let verdicts = client.filter_recipients(ReceiverStream::new(screened)).await.unwrap();
    let mut verdicts = verdicts.into_inner();
    ask.send(sequenced(1, question("1", "acme", "marketing"))).await.unwrap();
    assert_eq!(next(&mut answers).await.0, 1);
    sidecar.signal("TERM");
    let status = timeout(PATIENCE, answers.message()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("must not be sent"), "{status:?}");
    let status = timeout(PATIENCE, verdicts.message()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    drop((ask, screen));
    assert!(sidecar.wait(Duration::from_secs(10)).success());
}

#[tokio::test]
async fn streams_end_with_their_connection_and_go_on_upon_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--max-connection-age", "300ms", "--drain-timeout", "20s"];
    let sidecar = with_users(folder.path(), &flags).await;
    for _ in 0..2 {
        let mut client = sidecar.checks().await;
        let (ask, mut answers) = open(&mut client).await;
        let mut sequence = 0;
        let status = loop {
            if ask.send(sequenced(sequence, question("1", "acme", "marketing"))).await.is_err() {
                break answers.message().await.unwrap_err();
            }
            match timeout(PATIENCE, answers.message()).await.expect("an answer or an end") {
                Ok(answer) => assert_eq!(answer.expect("an answer").sequence, sequence),
                Err(status) => break status,
            }
            sequence += 1;
        };
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains("ask again on another"), "{status:?}");
        assert!(sequence > 0);
    }
}

#[tokio::test]
async fn verdicts_are_the_reasons_of_single_calls() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = with_users(folder.path(), &["--max-recipients", "6"]).await;
    let mut client = sidecar.checks().await;
    let users = ["1", "2", "3", "4", "+49 170 1234567", "nobody"];
    let (screen, screened) = mpsc::channel(1);
    let verdicts = client.filter_recipients(ReceiverStream::new(screened)).await.unwrap();
    let mut verdicts = verdicts.into_inner();
    let mut seen = BTreeMap::new();
    // What is not set again is kept.
    for (business_id, category, form, asked) in [
        ("acme", "marketing", 0, ("acme", "marketing", 0)),
        ("", "marketing.news", 0, ("acme", "marketing.news", 0)),
        ("", "", 1, ("acme", "marketing.news", 1)),
        ("", "utility.orders", 0, ("acme", "utility.orders", 1)),
        ("", "", 2, ("acme", "utility.orders", 2)),
        ("other", "", 0, ("other", "utility.orders", 2)),
    ] {
        let message = pb::FilterRecipientsRequest {
            template: None,
            business_id: business_id.into(),
            category: category.into(),
            form,
            user_ids: users.map(str::to_owned).into(),
        };
        screen.send(message).await.unwrap();
        let verdict = verdicts.message().await.unwrap().expect("verdicts");
        let mut allowed = 0;
        for (user, reason) in users.iter().zip(verdict.reasons()) {
            let (business, category, form) = asked;
            let request = pb::CanSendRequest { form, ..question(user, business, category) };
            let alone = client.can_send(request).await.unwrap().into_inner();
            assert_eq!(alone.reason(), reason, "{user} {asked:?}");
            allowed += u32::from(alone.allowed);
            *seen.entry(reason).or_insert(0) += 1;
        }
        assert_eq!((verdict.reasons.len(), verdict.allowed_count), (users.len(), allowed));
        assert!(verdict.staleness.is_some());
    }
    assert!(seen.len() >= 5, "{seen:?}");
    // An id that is none is told in its place.
    let users = ["", "1", "tab\t"].map(str::to_owned).into();
    let message = pb::FilterRecipientsRequest {
        template: None,
        business_id: "acme".into(),
        category: "marketing".into(),
        user_ids: users,
        ..Default::default()
    };
    screen.send(message.clone()).await.unwrap();
    let verdict = verdicts.message().await.unwrap().unwrap();
    assert_eq!(verdict.reasons, [0, 1, 0]);
    // None is none.
    screen.send(pb::FilterRecipientsRequest::default()).await.unwrap();
    assert_eq!(verdicts.message().await.unwrap().unwrap().reasons, [0; 0]);
    let too_many = vec![String::from("1"); 7];
    screen.send(pb::FilterRecipientsRequest { user_ids: too_many, ..message }).await.unwrap();
    let status = verdicts.message().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("user_ids: 7 users; at most 6"), "{status:?}");
}

#[tokio::test]
async fn a_campaign_says_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = with_users(folder.path(), &[]).await;
    let mut client = sidecar.checks().await;
    for (business_id, category, form, parts) in [
        ("", "", 0, &["business_id", "category"][..]),
        ("acme", "sales", 0, &["category"]),
        ("a\tb", "marketing", 9, &["business_id", "form"]),
    ] {
        let message = pb::FilterRecipientsRequest {
            template: None,
            business_id: business_id.into(),
            category: category.into(),
            form,
            user_ids: vec!["1".into()],
        };
        let verdicts = client.filter_recipients(tokio_stream::iter([message])).await.unwrap();
        let status = verdicts.into_inner().message().await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        for part in parts {
            assert!(status.message().contains(part), "{status:?}");
        }
    }
}

#[tokio::test]
async fn a_message_of_two_mebibytes_is_screened_and_single_checks_go_on_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = with_users(folder.path(), &["--max-recipients", "100000"]).await;
    let mut client = sidecar.checks().await;
    let user_ids: Vec<_> =
        (0..99_990).map(|n| format!("+4917{n:07}000")).chain(["1".into()]).collect();
    let message = pb::FilterRecipientsRequest {
        template: None,
        business_id: "acme".into(),
        category: "marketing".into(),
        user_ids,
        ..Default::default()
    };
    let bytes = message.encoded_len();
    assert!((1_500_000..2_097_152).contains(&bytes), "{bytes}");
    let verdicts = client.filter_recipients(tokio_stream::iter([message])).await.unwrap();
    let verdict = verdicts.into_inner().message().await.unwrap().unwrap();
    assert_eq!((verdict.reasons.len(), verdict.allowed_count), (99_991, 1));
    // Decisions are counted one by one.
    eventually("all are counted", || async {
        let (_, metrics) = sidecar.get("/metrics").await;
        let counted = metrics.lines().filter(|line| line.starts_with("consent_decisions_total"));
        let counted = counted.filter_map(|line| line.split(' ').next_back()?.parse::<u64>().ok());
        counted.sum::<u64>() == 99_991
    })
    .await;
}
