//! Servers that are slow, or silent, or that answer what no sidecar does; and what coalescing makes of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use consentd_client::pb::batch_can_send_result::Result as Item;
use consentd_client::{Client, Observer, Question, Verdict, pb};
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
}

impl Slow {
    async fn start(answer: pb::CanSendResponse) -> (Self, String) {
        let slow = Self { lets: Arc::new(Semaphore::new(0)), sizes: Arc::default(), answer };
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
        let answer = match head.uri.path().rsplit_once('/').unwrap().1 {
            "CanSend" => {
                self.sizes.lock().unwrap().push(0);
                self.answer.encode_to_vec()
            }
            "BatchCanSend" => {
                let asked = pb::BatchCanSendRequest::decode(message).unwrap().requests.len();
                self.sizes.lock().unwrap().push(asked);
                let result =
                    pb::BatchCanSendResult { result: Some(Item::Response(self.answer.clone())) };
                pb::BatchCanSendResponse { results: vec![result; asked] }.encode_to_vec()
            }
            // That a client connects by asking for the status is of no matter here.
            _ => Vec::new(),
        };
        if head.uri.path().ends_with("CanSend") {
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

fn opted_in() -> pb::CanSendResponse {
    pb::CanSendResponse { allowed: true, reason: 1, ..Default::default() }
}

/// Asks without waiting for the answer.
fn ask(client: &Client, question: Question) -> JoinHandle<Verdict> {
    let client = client.clone();
    tokio::spawn(async move { client.may_send(question).await })
}

#[tokio::test]
async fn what_comes_meanwhile_goes_as_one_batch() {
    let (slow, address) = Slow::start(opted_in()).await;
    let client = patient(&address);
    let first = ask(&client, question("first"));
    eventually("the first goes alone", || async { slow.sizes() == [0] }).await;
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
    let first = ask(&client, question("first"));
    eventually("the first is asked", || async { slow.sizes() == [0] }).await;
    let short = ask(&client, question("u").deadline(Duration::from_millis(100)));
    let cancelled = ask(&client, question("u"));
    let long = ask(&client, question("u"));
    eventually("the others are asked", || async { slow.sizes().iter().sum::<usize>() == 3 }).await;
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
    let first = ask(&client, question("first"));
    eventually("the first is asked", || async { slow.sizes() == [0] }).await;
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
