//! Servers that are slow, or silent, or that answer what no sidecar does; and what coalescing makes of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use consentd_client::pb::batch_can_send_result::Result as Item;
use consentd_client::{Campaign, Change, Client, Event, Observer, Question, Verdict, pb};
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::fixture::{PATIENCE, eventually, patient, question};

#[tokio::test]
async fn a_silent_server_denies_at_the_deadline() {
    // The kernel accepts connections that nothing reads from.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    for coalesce in [true, false] {
        let client = Client::builder().address(&address).coalesce(coalesce).build().unwrap();
        let asking = (0..100).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.may_send(question("u")).await })
        });
        for asked in asking.collect::<Vec<_>>() {
            let verdict = asked.await.unwrap();
            assert_eq!(verdict.code(), Some(Code::DeadlineExceeded), "{verdict}");
        }
    }
}

/// A server that answers each call as a sidecar would, once it is let, and notes the sizes of batches: 0 stands for
/// `CanSend`.
#[derive(Clone)]
struct Slow {
    lets: Arc<Semaphore>,
    sizes: Arc<Mutex<Vec<usize>>>,
    answer: pb::CanSendResponse,
    /// The codes with which the next calls of other methods than checks are refused, the last one first.
    refusals: Arc<Mutex<Vec<Code>>>,
}

impl Slow {
    async fn start(answer: pb::CanSendResponse) -> (Self, String) {
        let slow = Self {
            lets: Arc::new(Semaphore::new(0)),
            sizes: Arc::default(),
            answer,
            refusals: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = slow.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(server.clone().serve(stream));
            }
        });
        (slow, address)
    }

    async fn serve(self, stream: TcpStream) {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(self.clone().answer(request, respond));
        }
    }

    async fn answer(
        self,
        request: http::Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
    ) {
        let (head, mut body) = request.into_parts();
        let mut message = Vec::new();
        while let Some(Ok(part)) = body.data().await {
            let _ = body.flow_control().release_capacity(part.len());
            message.extend_from_slice(&part);
        }
        let message = &message[5..];
        let refuse = |code: Code| {
            let response = http::Response::builder().header("content-type", "application/grpc");
            response.header("grpc-status", i32::from(code)).body(()).unwrap()
        };
        let is_check = head.uri.path().ends_with("CanSend");
        if !is_check && !head.uri.path().ends_with("GetStatus") {
            let refusal = self.refusals.lock().unwrap().pop();
            if let Some(code) = refusal {
                let _ = respond.send_response(refuse(code), true);
                return;
            }
        }
        let answer = match head.uri.path().rsplit_once('/').unwrap().1 {
            "CanSend" => {
                self.sizes.lock().unwrap().push(0);
                self.answer.encode_to_vec()
            }
            "BatchCanSend" => {
                let requests = pb::BatchCanSendRequest::decode(message).unwrap().requests;
                let asked = requests.len();
                self.sizes.lock().unwrap().push(asked);
                if requests.iter().any(|request| request.user_id == REFUSED) {
                    let _ = respond.send_response(refuse(Code::InvalidArgument), true);
                    return;
                }
                let result =
                    pb::BatchCanSendResult { result: Some(Item::Response(self.answer.clone())) };
                pb::BatchCanSendResponse { results: vec![result; asked] }.encode_to_vec()
            }
            "FilterRecipients" => {
                let users = pb::FilterRecipientsRequest::decode(message).unwrap().user_ids;
                let reasons = users.iter().map(|user| user.parse().unwrap()).collect();
                pb::FilterRecipientsResponse { reasons, ..Default::default() }.encode_to_vec()
            }
            // A message of no kind, of a watch; that a client connects by asking for the status is of no matter here.
            _ => Vec::new(),
        };
        if is_check {
            self.lets.acquire().await.unwrap().forget();
        }
        let response = http::Response::builder().header("content-type", "application/grpc");
        let Ok(mut body) = respond.send_response(response.body(()).unwrap(), false) else { return };
        let mut framed = vec![0];
        framed.extend(u32::try_from(answer.len()).unwrap().to_be_bytes());
        framed.extend(answer);
        let _ = body.send_data(framed.into(), false);
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let _ = body.send_trailers(trailers);
    }

    fn sizes(&self) -> Vec<usize> {
        self.sizes.lock().unwrap().clone()
    }
}

/// A user for whom a whole batch is refused.
const REFUSED: &str = "refused";

fn opted_in() -> pb::CanSendResponse {
    pb::CanSendResponse { allowed: true, reason: 1, ..Default::default() }
}

/// Asks without waiting for the answer.
fn ask(client: &Client, question: Question) -> JoinHandle<Verdict> {
    let client = client.clone();
    tokio::spawn(async move { client.may_send(question).await })
}

/// Asks the first question, and waits until it has been sent alone, so that what follows is gathered.
async fn first_under_way(client: &Client, slow: &Slow) -> JoinHandle<Verdict> {
    let first = ask(client, question("first"));
    eventually("the first goes alone", || async { slow.sizes() == [0] }).await;
    first
}

#[tokio::test]
async fn what_comes_meanwhile_goes_as_one_batch() {
    let (slow, address) = Slow::start(opted_in()).await;
    let client = patient(&address);
    let first = first_under_way(&client, &slow).await;
    // Its answer does not come, so what follows goes 1 ms after the first of it came.
    let meanwhile: Vec<_> = (0..10).map(|_| ask(&client, question("u"))).collect();
    let total = || slow.sizes().iter().sum::<usize>();
    eventually("the others go as a batch", || async { total() == 10 }).await;
    assert!(slow.sizes().len() <= 3, "{:?}", slow.sizes());
    // More than a batch takes goes as several.
    let many: Vec<_> = (0..2_500).map(|_| ask(&client, question("u"))).collect();
    eventually("all are asked", || async { total() == 2_510 }).await;
    assert!(slow.sizes().iter().all(|size| *size <= 1_000), "{:?}", slow.sizes());
    slow.lets.add_permits(100);
    for asked in [first].into_iter().chain(meanwhile).chain(many) {
        assert!(asked.await.unwrap().is_allowed());
    }
    // Nothing is under way any more, so the next one is alone again.
    assert!(client.may_send(question("u")).await.is_allowed());
    assert_eq!(slow.sizes().last(), Some(&0));
}

#[tokio::test]
async fn nothing_is_gathered_where_it_is_switched_off() {
    let (slow, address) = Slow::start(opted_in()).await;
    let client = Client::builder().address(&address).coalesce(false).deadline(PATIENCE);
    let client = client.build().unwrap();
    let asked: Vec<_> = (0..50).map(|_| ask(&client, question("u"))).collect();
    eventually("all are asked", || async { slow.sizes() == [0; 50] }).await;
    slow.lets.add_permits(50);
    for asked in asked {
        assert!(asked.await.unwrap().is_allowed());
    }
}

#[tokio::test]
async fn what_waits_for_a_revision_or_is_large_goes_by_itself() {
    let (slow, address) = Slow::start(opted_in()).await;
    let client = patient(&address);
    let asked = [
        ask(&client, question("first")),
        ask(&client, question("u").min_revision(7)),
        ask(&client, question(&"u".repeat(5_000))),
    ];
    eventually("none of them is in a batch", || async { slow.sizes() == [0; 3] }).await;
    slow.lets.add_permits(3);
    for asked in asked {
        assert!(asked.await.unwrap().is_allowed());
    }
}

#[tokio::test]
async fn a_batch_stays_below_the_bytes_that_a_sidecar_takes() {
    let (slow, address) = Slow::start(opted_in()).await;
    let client = patient(&address);
    let large = question(&"u".repeat(4_000));
    let asked: Vec<_> = (0..1_001).map(|_| ask(&client, large.clone())).collect();
    let total = || slow.sizes().iter().sum::<usize>();
    eventually("all are asked", || async { total() == 1_000 }).await;
    assert!(slow.sizes().iter().all(|size| *size < 270), "1 MiB each: {:?}", slow.sizes());
    slow.lets.add_permits(100);
    for asked in asked {
        assert!(asked.await.unwrap().is_allowed());
    }
}

#[tokio::test]
async fn each_call_of_a_batch_has_its_own_deadline_and_may_be_cancelled() {
    let (slow, address) = Slow::start(opted_in()).await;
    let client = patient(&address);
    let first = first_under_way(&client, &slow).await;
    let short = ask(&client, question("u").deadline(Duration::from_millis(100)));
    let cancelled = ask(&client, question("u"));
    let long = ask(&client, question("u"));
    // One whose deadline passes before the batch is sent, as on a busy machine, is not asked at all.
    eventually("the others are asked", || async { slow.sizes().iter().sum::<usize>() >= 2 }).await;
    cancelled.abort();
    assert!(cancelled.await.unwrap_err().is_cancelled());
    assert_eq!(short.await.unwrap().code(), Some(Code::DeadlineExceeded));
    // The first one is cancelled as well, though it was asked by its own caller.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    slow.lets.add_permits(10);
    assert!(long.await.unwrap().is_allowed());
    assert!(client.may_send(question("u")).await.is_allowed());
}

#[tokio::test]
async fn an_answer_without_a_reason_does_not_allow() {
    let (slow, address) = Slow::start(pb::CanSendResponse { reason: 0, ..opted_in() }).await;
    slow.lets.add_permits(10);
    let client = patient(&address);
    let (one, two) = tokio::join!(client.may_send(question("u")), client.may_send(question("u")));
    assert!(!one.is_allowed() && !two.is_allowed());
}

#[tokio::test]
async fn an_observer_is_told_outcomes_and_batches() {
    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<String>>>);
    impl Observer for Told {
        fn on_check(&self, outcome: &str, _took: Duration) {
            self.0.lock().unwrap().push(outcome.to_owned());
        }

        fn on_batch(&self, size: usize) {
            self.0.lock().unwrap().push(format!("batch of {size}"));
        }
    }
    let (slow, address) = Slow::start(opted_in()).await;
    let told = Told::default();
    let intercepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&intercepted);
    let client = Client::builder().address(&address).deadline(PATIENCE).observer(told.clone());
    let client = client.interceptor(move |request| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(request)
    });
    let client = client.build().unwrap();
    let first = first_under_way(&client, &slow).await;
    let second = ask(&client, question("second"));
    eventually("the second is asked", || async { slow.sizes() == [0, 1] }).await;
    slow.lets.add_permits(2);
    assert!(first.await.unwrap().is_allowed() && second.await.unwrap().is_allowed());
    let late = question("u").deadline(Duration::from_millis(1));
    assert!(client.may_send(late).await.is_unavailable());
    let mut told = told.0.lock().unwrap().clone();
    told.sort();
    assert_eq!(told, ["DEADLINE_EXCEEDED", "allowed", "allowed", "batch of 1"]);
    assert!(intercepted.load(Ordering::Relaxed) >= 3);
}

#[tokio::test]
async fn the_panic_of_an_observer_changes_no_verdict() {
    struct Panicking;
    impl Observer for Panicking {
        fn on_check(&self, _outcome: &str, _took: Duration) {
            panic!("on_check");
        }

        fn on_batch(&self, _size: usize) {
            panic!("on_batch");
        }
    }
    let (slow, address) = Slow::start(opted_in()).await;
    let client = Client::builder().address(&address).deadline(PATIENCE).observer(Panicking);
    let client = client.build().unwrap();
    let first = first_under_way(&client, &slow).await;
    let second = ask(&client, question("second"));
    eventually("the second is asked", || async { slow.sizes() == [0, 1] }).await;
    slow.lets.add_permits(2);
    assert!(first.await.unwrap().is_allowed() && second.await.unwrap().is_allowed());
}

#[tokio::test]
async fn a_batch_that_is_refused_for_one_question_is_halved_and_the_size_is_not_kept() {
    let (slow, address) = Slow::start(opted_in()).await;
    let client = patient(&address);
    let first = first_under_way(&client, &slow).await;
    // The test's runtime has one thread, so these are gathered before anything is sent.
    let asked: Vec<_> = (0..7).map(|_| ask(&client, question("u"))).collect();
    let refused = ask(&client, question(REFUSED));
    slow.lets.add_permits(100);
    for asked in asked.into_iter().chain([first]) {
        let verdict = asked.await.unwrap();
        assert!(verdict.is_allowed(), "{verdict}");
    }
    assert!(refused.await.unwrap().is_invalid());
    // A thread that is held up for a millisecond sends a part of them before.
    eventually("a batch is as large as it may be", || async {
        let before = slow.sizes().len();
        let asked: Vec<_> = (0..9).map(|_| ask(&client, question("u"))).collect();
        slow.lets.add_permits(9);
        for asked in asked {
            assert!(asked.await.unwrap().is_allowed());
        }
        slow.sizes()[before..].iter().max() == Some(&8)
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_served_now_is_asked_for_and_recorded_again() {
    let (slow, address) = Slow::start(opted_in()).await;
    let client = patient(&address);
    let codes = [Code::Aborted, Code::ResourceExhausted, Code::Unavailable];
    *slow.refusals.lock().unwrap() = codes.to_vec();
    client.record(Event::opt_out("u", "acme", "*")).await.unwrap();
    assert!(slow.refusals.lock().unwrap().is_empty());
    *slow.refusals.lock().unwrap() = codes.to_vec();
    let users = ["1", "9", "10", "100", "-1", "0"];
    let mut filtered = client.filter(users, Campaign::new("acme", "marketing"));
    for (user, is_allowed) in users.into_iter().zip([true, true, false, false, false, false]) {
        let (said, verdict) = filtered.next().await.unwrap();
        assert_eq!((&*said, verdict.is_allowed()), (user, is_allowed), "{verdict}");
        assert_eq!(verdict.is_invalid(), user == "0", "{verdict}");
    }
    assert!(slow.refusals.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_watch_ends_with_an_error_where_it_is_refused_for_good() {
    let (slow, address) = Slow::start(opted_in()).await;
    let client = patient(&address);
    for code in
        [Code::Unimplemented, Code::PermissionDenied, Code::Unauthenticated, Code::InvalidArgument]
    {
        // It begins after another refusal; a message of no kind is a reset, and the stream's end a silence.
        *slow.refusals.lock().unwrap() = vec![Code::Internal];
        let mut watch = client.watch("acme");
        assert_eq!(watch.next().await, Ok(Some(Change::Reset)));
        slow.refusals.lock().unwrap().push(code);
        let error = loop {
            match watch.next().await {
                Ok(change) => assert!(matches!(change, Some(Change::Silent | Change::Reset))),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), code);
        assert_eq!(watch.next().await, Ok(None));
    }
}

#[tokio::test]
async fn a_watch_that_cannot_begin_tells_its_silence_once() {
    let client = patient("unix:/no/such/socket");
    let started = std::time::Instant::now();
    let mut watch = client.watch("acme");
    assert_eq!(watch.next().await, Ok(Some(Change::Silent)));
    assert!(started.elapsed() >= Duration::from_secs(10));
    let more = tokio::time::timeout(Duration::from_secs(3), watch.next()).await;
    assert!(more.is_err(), "{more:?}");
}
