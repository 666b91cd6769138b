//! Nonsense on every method and on the bare socket: nothing breaks, and nobody is allowed by it.

use std::collections::BTreeSet;
use std::path::Path;

use consentd::grpc::pb;
use consentd::grpc::pb::consent_event::What;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Status;

use crate::sidecar::{
    PATIENCE, Sidecar, Wire, ago, event, eventually, framed, inbound, opt_in, opt_out, question,
};

/// Calls of each method.
const CALLS: usize = 3_000;
/// Calls at once.
const AT_ONCE: usize = 100;

/// A small generator of pseudo-random numbers (`SplitMix64`), so that a failure comes again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    /// A body made from one of these messages, or from nothing: each way to spoil one comes up.
    fn body(&mut self, messages: &[Vec<u8>]) -> Vec<u8> {
        let mut message = messages[self.below(messages.len())].clone();
        let other = &messages[self.below(messages.len())];
        match self.below(8) {
            0 => message = self.bytes(80),
            1 => message.truncate(self.below(message.len())),
            2 => message.extend_from_slice(&other[self.below(other.len())..]),
            3 => {
                let at = self.below(message.len());
                message.splice(at..at, self.bytes(8));
            }
            // A tag or a length becomes another one, near the front where most of them are.
            4 if !message.is_empty() => {
                let at = self.below(message.len().min(8));
                message[at] = message[at].wrapping_add([8, 0xf8, 1, 0xff][self.below(4)]);
            }
            5 => {}
            _ => {
                for _ in 0..=self.below(3) {
                    let at = self.below(message.len());
                    if let Some(byte) = message.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
            }
        }
        let mut body = framed(&message);
        if self.below(16) == 0 {
            // What lies around the message is spoilt too: its flag, its length, or its end.
            let at = self.below(5);
            body[at] ^= 1 << self.below(8);
            body.truncate(self.below(body.len() + 16));
        }
        body
    }
}

/// The message that a body begins with, as the sidecar must have understood it.
fn understood<M: Message + Default>(body: &[u8]) -> Option<M> {
    let length = u32::from_be_bytes(body.get(1..5)?.try_into().unwrap());
    let end = 5_usize.checked_add(usize::try_from(length).unwrap())?;
    M::decode(body.get(5..end)?).ok()
}

/// Makes [`CALLS`] calls of a method from these messages; shows each body that was answered.
async fn fuzz(
    sidecar: &Sidecar,
    random: &mut Random,
    method: &str,
    messages: &[Vec<u8>],
    mut answered: impl FnMut(&[u8], Vec<u8>),
) {
    let mut wire = Wire::to(&sidecar.grpc).await;
    for _ in 0..CALLS / AT_ONCE {
        let mut calls = Vec::new();
        for _ in 0..AT_ONCE {
            let body = random.body(messages);
            let call = wire.begin(method, &[], body.clone()).await;
            calls.push((body, call.unwrap_or_else(|error| panic!("{method}: {error}"))));
        }
        for (body, mut call) in calls {
            let endless = ["/Watch", "/WatchConsents"].iter().any(|end| method.ends_with(end));
            let answer = if endless {
                // It has no end, so that its beginning must do.
                call.next().await.map(|bytes| bytes.unwrap_or_default().to_vec())
            } else {
                call.end().await
            };
            match answer {
                Ok(answer) => answered(&body, answer),
                Err(status) => assert_blames_the_client(method, &status),
            }
        }
    }
}

/// Nonsense is the client's fault. Only of broken framing does gRPC itself say INTERNAL.
#[track_caller]
fn assert_blames_the_client(method: &str, status: &Status) {
    use tonic::Code::{
        FailedPrecondition, Internal, InvalidArgument, NotFound, OutOfRange, Unimplemented,
    };
    let framing = ["compress", "Unexpected EOF", "Missing request message"];
    let about_framing = framing.iter().any(|part| status.message().contains(part));
    let expected = match status.code() {
        InvalidArgument | OutOfRange | Unimplemented | NotFound | FailedPrecondition => true,
        // Health and reflection are tonic's, whose codec blames itself for what does not decode.
        Internal => about_framing || !method.starts_with("consent."),
        _ => false,
    };
    assert!(expected, "{method}: {status:?}");
}

fn encoded<M: Message>(messages: &[M]) -> Vec<Vec<u8>> {
    messages.iter().map(Message::encode_to_vec).collect()
}

/// Whether a question may be allowed: `in` opted in to `utility` at `acme`, and nobody else did.
fn is_opted_in(asked: &pb::CanSendRequest) -> bool {
    let category = asked.category.as_str();
    let utility = category == "utility" || category.starts_with("utility.");
    asked.user_id == "in" && asked.business_id == "acme" && utility
}

/// Questions about one who opted in, about those who opted out or never in, and near each other.
fn questions() -> Vec<pb::CanSendRequest> {
    let categories = ["utility", "utility.orders", "marketing", "service.a"];
    let mut questions = Vec::new();
    for user in ["in", "out", "blocked", "io", "15550123456"] {
        for category in categories {
            let mut question = question(user, "acme", category);
            question.form = i32::try_from(questions.len() % 3).unwrap();
            questions.push(question);
        }
    }
    questions
}

/// Whom they ask about: every request that is about a pair has this form.
fn pairs() -> Vec<pb::GetConsentRequest> {
    let pair = |question: pb::CanSendRequest| pb::GetConsentRequest {
        user_id: question.user_id,
        business_id: question.business_id,
    };
    questions().into_iter().map(pair).collect()
}

fn is_allowed(result: &pb::BatchCanSendResult) -> bool {
    use pb::batch_can_send_result::Result as Item;
    matches!(&result.result, Some(Item::Response(answer)) if answer.allowed)
}

/// A sidecar that knows one who opted in, one who opted out, and one who was suppressed.
async fn knowing(folder: &Path) -> Sidecar {
    // A stream that was dropped may be one for a moment yet.
    let sidecar = Sidecar::live(folder, &["--max-watchers", "4000"]).await;
    let mut records = sidecar.records().await;
    let suppression = pb::Suppression { suppressed: true, reference: String::new() };
    for (user, request_id, what) in [
        ("in", "1", opt_in("utility")),
        ("out", "1", opt_in("utility")),
        ("out", "", inbound("hello")),
        ("out", "", opt_out("*")),
        ("blocked", "1", opt_in("utility")),
        ("blocked", "", What::Suppression(suppression)),
    ] {
        let mut event = event(user, "acme", what);
        event.request_id = request_id.into();
        records.record_event(event).await.unwrap();
    }
    sidecar
}

/// Checks that the sidecar lives, and that what [`knowing`] told it is still so.
async fn assert_as_it_was(sidecar: &Sidecar) {
    let mut checks = sidecar.checks().await;
    let requests = questions();
    let batch = pb::BatchCanSendRequest { requests: requests.clone() };
    let results = checks.batch_can_send(batch).await.unwrap().into_inner().results;
    let free_form = i32::from(pb::MessageForm::FreeForm);
    for (asked, result) in requests.iter().zip(results) {
        let expected = is_opted_in(asked) && asked.form != free_form;
        assert_eq!(is_allowed(&result), expected, "{asked:?}");
    }
    assert!(!sidecar.said().contains("panicked"), "{}", sidecar.said());
}

#[tokio::test]
async fn nonsense_asked_allows_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = knowing(folder.path()).await;
    let random = &mut Random(1);
    let asked = encoded(&questions());
    let mut allowed = 0;
    fuzz(&sidecar, random, "consent.v1.ConsentService/CanSend", &asked, |body, answer| {
        if pb::CanSendResponse::decode(&*answer).unwrap().allowed {
            let asked = understood(body).expect("what is allowed was understood");
            assert!(is_opted_in(&asked), "{asked:?}");
            allowed += 1;
        }
    })
    .await;
    let batch = |requests: &[_]| pb::BatchCanSendRequest { requests: requests.to_vec() };
    let batches = encoded(&questions().chunks(3).map(batch).collect::<Vec<_>>());
    fuzz(&sidecar, random, "consent.v1.ConsentService/BatchCanSend", &batches, |body, answer| {
        let results = pb::BatchCanSendResponse::decode(&*answer).unwrap().results;
        let asked: pb::BatchCanSendRequest = understood(body).unwrap();
        assert_eq!(asked.requests.len(), results.len());
        for (asked, result) in asked.requests.iter().zip(&results) {
            assert!(!is_allowed(result) || is_opted_in(asked), "{asked:?}");
            allowed += usize::from(is_allowed(result));
        }
    })
    .await;
    assert!(allowed > 50, "what is right in part must come up: {allowed}");

    let pairs = encoded(&pairs());
    let reflected = {
        use tonic_reflection::pb::v1::ServerReflectionRequest;
        use tonic_reflection::pb::v1::server_reflection_request::MessageRequest as Asked;
        let symbol = Asked::FileContainingSymbol("consent.v1.ConsentService".into());
        encoded(&[symbol, Asked::ListServices(String::new())].map(|asked| {
            ServerReflectionRequest { host: String::new(), message_request: Some(asked) }
        }))
    };
    let health = ["", "readiness", "nonsense"];
    let health =
        encoded(&health.map(|name| tonic_health::pb::HealthCheckRequest { service: name.into() }));
    for (method, messages) in [
        ("consent.v1.ConsentService/GetConsent", &pairs),
        ("consent.v1.ConsentService/GetStatus", &pairs),
        ("consent.v1.ConsentService/StreamCanSend", &asked),
        ("consent.v1.ConsentService/FilterRecipients", &asked),
        ("consent.v1.ConsentService/WatchConsents", &pairs),
        ("grpc.health.v1.Health/Check", &health),
        ("grpc.health.v1.Health/Watch", &health),
        ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &reflected),
        ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &reflected),
    ] {
        fuzz(&sidecar, random, method, messages, |_, _| {}).await;
    }
    assert_as_it_was(&sidecar).await;
}

/// Events of users who are not those of [`knowing`].
fn events() -> Vec<pb::RecordEventRequest> {
    let number = "106540352242922".to_owned();
    let platform =
        pb::PlatformPreference { marketing_stopped: true, phone_number_id: number.clone() };
    let suppression = pb::Suppression { suppressed: true, reference: "r".into() };
    let failure = pb::DeliveryFailure { code: 131_049, phone_number_id: number };
    let link = pb::Link { other_user_id: "v".into(), moved: true };
    let mut events = Vec::new();
    for user in ["fuzz-a", "fuzz-b", "fuzz-c"] {
        for what in [
            opt_in("marketing"),
            opt_out("*"),
            opt_out("utility.orders"),
            inbound("stop"),
            What::PlatformPreference(platform.clone()),
            What::Suppression(suppression.clone()),
            What::DeliveryFailure(failure.clone()),
            What::Link(link.clone()),
        ] {
            let mut event = event(user, "fuzzed", what);
            event.request_id = format!("id-{}", events.len());
            if events.len() % 2 == 0 {
                event.event.as_mut().unwrap().event_time = Some(ago(PATIENCE));
            }
            events.push(event);
        }
    }
    events
}

/// Pairs whose events were taken: those whom one of them may have allowed something, and all.
#[derive(Default)]
struct Taken {
    allowed: BTreeSet<(String, String)>,
    all: BTreeSet<(String, String)>,
}

impl Taken {
    fn take(&mut self, event: Option<pb::ConsentEvent>) {
        let event = event.expect("a request without an event is refused");
        let pair = (event.user_id, event.business_id);
        match event.what.expect("an event in which nothing happened is refused") {
            What::OptIn(said) => {
                let evidence = said.evidence.expect("an opt-in without evidence is refused");
                assert!(evidence.method != 0, "{evidence:?}");
                self.allowed.insert(pair.clone());
            }
            What::InboundMessage(_) => {
                self.allowed.insert(pair.clone());
            }
            _ => {}
        }
        self.all.insert(pair);
    }

    /// Those who neither opted in nor wrote. Of a number, another notation may have done that.
    fn denied(&self) -> Vec<&(String, String)> {
        let is_number = |user: &str| !user.chars().any(char::is_alphabetic);
        self.all.difference(&self.allowed).filter(|(user, _)| !is_number(user)).collect()
    }
}

#[tokio::test]
async fn nonsense_recorded_allows_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = knowing(folder.path()).await;
    let random = &mut Random(2);
    let mut taken = Taken::default();
    let single = encoded(&events());
    fuzz(&sidecar, random, "consent.v1.RecordService/RecordEvent", &single, |body, answer| {
        pb::RecordEventResponse::decode(&*answer).unwrap();
        let request: pb::RecordEventRequest = understood(body).unwrap();
        taken.take(request.event);
    })
    .await;
    let of_many = |one: pb::RecordEventRequest| pb::RecordEventsRequest {
        sequence: 300,
        event: one.event,
        request_id: one.request_id,
    };
    let bulk = encoded(&events().into_iter().map(of_many).collect::<Vec<_>>());
    fuzz(&sidecar, random, "consent.v1.RecordService/RecordEvents", &bulk, |body, answer| {
        let answered = pb::RecordEventsResponse::decode(&*answer).unwrap();
        if let Some(pb::record_events_response::Result::Response(_)) = answered.result {
            let request: pb::RecordEventsRequest = understood(body).unwrap();
            assert_eq!(request.sequence, answered.sequence);
            taken.take(request.event);
        }
    })
    .await;
    let asked = encoded(&pairs());
    fuzz(&sidecar, random, "consent.v1.RecordService/ListEvents", &asked, |_, _| {}).await;
    // Others than those who are asked about in the end: it does what it is told to.
    let others = pairs()
        .into_iter()
        .map(|pair| pb::GetConsentRequest { user_id: format!("like {}", pair.user_id), ..pair });
    let others = encoded(&others.collect::<Vec<_>>());
    fuzz(&sidecar, random, "consent.v1.RecordService/EraseUser", &others, |_, answer| {
        assert_eq!(pb::EraseUserResponse::decode(&*answer).unwrap().erased_count, 0);
    })
    .await;
    assert_as_it_was(&sidecar).await;
    let denied = taken.denied();
    assert!(denied.len() > 50 && taken.allowed.len() > 50, "what is right must come up too");
    assert_denied(&sidecar, &denied).await;

    // The ledger survived it too.
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    assert_as_it_was(&sidecar).await;
    assert_denied(&sidecar, &denied).await;
}

async fn assert_denied(sidecar: &Sidecar, pairs: &[&(String, String)]) {
    let mut checks = sidecar.checks().await;
    for (user, business) in pairs {
        let classes = ["marketing", "utility", "authentication", "service"];
        let requests = classes.map(|class| question(user, business, class)).to_vec();
        let batch = checks.batch_can_send(pb::BatchCanSendRequest { requests }).await;
        let results = batch.unwrap().into_inner().results;
        assert!(!results.iter().any(is_allowed), "{user:?} at {business:?}: {results:?}");
    }
}

/// What is no gRPC, or breaks off being it.
fn noises(random: &mut Random) -> Vec<Vec<u8>> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    let tls_hello = [&b"\x16\x03\x01\0\xa5\x01\0\0\xa1\x03\x03"[..], &[7; 160]].concat();
    // A head of 16 MiB, and one that unpacks to nonsense.
    let endless = [PREFACE, SETTINGS, b"\xff\xff\xff\x01\x04\0\0\0\x01", &[0; 4_096]].concat();
    let packed = [PREFACE, SETTINGS, b"\0\0\x08\x01\x05\0\0\0\x01", &[0xff; 8]].concat();
    let mut noises = vec![
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        b"POST /consent.v1.ConsentService/CanSend HTTP/1.0\r\n\r\n".to_vec(),
        tls_hello,
        endless,
        packed,
        [PREFACE, &[0; 9]].concat(),
    ];
    for _ in 0..100 {
        noises.push(random.bytes(2_000));
        noises.push([PREFACE, &random.bytes(500)].concat());
        let mut frames = [PREFACE, SETTINGS].concat();
        for _ in 0..4 {
            let payload = random.bytes(64);
            let length = u8::try_from(payload.len()).unwrap();
            let [kind, flags, stream, ..] = random.next().to_le_bytes();
            frames.extend_from_slice(&[0, 0, length, kind % 11, flags, 0, 0, 0, stream % 4]);
            frames.extend_from_slice(&payload);
        }
        noises.push(frames);
    }
    noises
}

#[tokio::test]
async fn nonsense_on_the_socket_closes_it_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = knowing(folder.path()).await;
    let mut lives = Wire::to(&sidecar.grpc).await;
    for noise in noises(&mut Random(3)) {
        let mut stream = TcpStream::connect(&sidecar.grpc).await.unwrap();
        // It may hang up before it has heard all.
        let _ = stream.write_all(&noise).await;
        let _ = stream.shutdown().await;
        let mut heard = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await;
        assert!(ended.is_ok(), "still open after {noise:?}");
    }
    let asked = question("out", "acme", "utility").encode_to_vec();
    let answer = lives.call("consent.v1.ConsentService/CanSend", &asked).await.unwrap();
    assert!(!pb::CanSendResponse::decode(&*answer).unwrap().allowed);
    drop(lives);
    eventually("every connection is given back", || async {
        sidecar.get("/metrics").await.1.contains("consent_connections 0\n")
    })
    .await;
    assert_as_it_was(&sidecar).await;
}
