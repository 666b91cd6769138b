//! What a check costs its sender: `bench ADDRESS MODE CALLERS SECONDS QUESTIONS`.
//!
//! MODE is `naive` (the generated stub, one unary call a check), `client` (this package), or, to compare, `stream` (all
//! callers' questions over one `StreamCanSend`). QUESTIONS is a file of `consentd bench requests`. After a second of
//! warming up it prints one line of JSON. `clients/bench` runs it beside those of the other languages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use consentd_client::pb::consent_service_client::ConsentServiceClient;
use consentd_client::{Client, Question, pb};
use tokio::sync::{mpsc, oneshot};
use tonic::transport::{Channel, Endpoint};

const DEADLINE: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_secs(1);

/// One way to ask.
#[derive(Clone)]
enum Asker {
    Naive(ConsentServiceClient<Channel>),
    Client(Client),
    Stream(mpsc::UnboundedSender<(pb::CanSendRequest, oneshot::Sender<()>)>),
}

impl Asker {
    async fn new(mode: &str, address: &str) -> Self {
        let channel = || async {
            let address = if address.starts_with("unix:") {
                address.to_owned()
            } else {
                format!("http://{address}")
            };
            Endpoint::from_shared(address).unwrap().connect().await.expect("a sidecar")
        };
        match mode {
            "naive" => Self::Naive(ConsentServiceClient::new(channel().await)),
            "client" => {
                let client = Client::builder().address(address).deadline(DEADLINE).build().unwrap();
                client.ready(Duration::from_mins(1)).await.expect("a sidecar");
                Self::Client(client)
            }
            "stream" => Self::Stream(stream(ConsentServiceClient::new(channel().await)).await),
            mode => panic!("no mode {mode}: naive, client or stream"),
        }
    }

    /// Asks one question; says whether it was decided.
    async fn ask(&mut self, question: &pb::CanSendRequest) -> bool {
        match self {
            Self::Naive(checks) => {
                let mut request = tonic::Request::new(question.clone());
                request.set_timeout(DEADLINE);
                checks.can_send(request).await.is_ok()
            }
            Self::Client(client) => {
                let verdict = client.may_send(Question::from(question.clone())).await;
                verdict.error().is_none()
            }
            Self::Stream(questions) => {
                let (answer, answered) = oneshot::channel();
                questions.send((question.clone(), answer)).is_ok() && answered.await.is_ok()
            }
        }
    }
}

async fn stream(
    mut checks: ConsentServiceClient<Channel>,
) -> mpsc::UnboundedSender<(pb::CanSendRequest, oneshot::Sender<()>)> {
    let (questions, mut asked) =
        mpsc::unbounded_channel::<(pb::CanSendRequest, oneshot::Sender<()>)>();
    let waiting = Arc::new(Mutex::new(HashMap::new()));
    let (outgoing, sent) = mpsc::unbounded_channel();
    let kept = Arc::clone(&waiting);
    tokio::spawn(async move {
        let mut sequence = 0;
        while let Some((request, answer)) = asked.recv().await {
            sequence += 1;
            kept.lock().unwrap().insert(sequence, answer);
            let _ = outgoing.send(pb::StreamCanSendRequest { sequence, request: Some(request) });
        }
    });
    let sent = tokio_stream::wrappers::UnboundedReceiverStream::new(sent);
    let mut answers = checks.stream_can_send(sent).await.expect("a sidecar").into_inner();
    tokio::spawn(async move {
        while let Ok(Some(answer)) = answers.message().await {
            let answer = waiting.lock().unwrap().remove(&answer.sequence);
            let _ = answer.map(|answer| answer.send(()));
        }
    });
    questions
}

/// The CPU time of this process, of all its threads, in seconds.
fn cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let nanoseconds = tasks.map_while(Result::ok).filter_map(|task| {
        let schedstat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        schedstat.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}

fn questions(path: &str) -> Vec<pb::CanSendRequest> {
    let text = std::fs::read_to_string(path).expect("the questions' file");
    let questions: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let field = |question: &serde_json::Value, name: &str| {
        question[name].as_str().unwrap_or_default().to_owned()
    };
    let questions = questions.as_array().expect("an array").iter();
    questions
        .map(|question| pb::CanSendRequest {
            user_id: field(question, "userId"),
            business_id: field(question, "businessId"),
            category: field(question, "category"),
            ..Default::default()
        })
        .collect()
}

#[tokio::main]
async fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, address, mode, callers, seconds, path] = &arguments[..] else {
        panic!("usage: bench ADDRESS MODE CALLERS SECONDS QUESTIONS");
    };
    let (callers, seconds): (usize, f64) = (callers.parse().unwrap(), seconds.parse().unwrap());
    let questions = Arc::new(questions(path));
    let asker = Asker::new(mode, address).await;
    let measuring = Arc::new(AtomicBool::new(false));
    let ended = Arc::new(AtomicBool::new(false));
    let failed = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (mut asker, questions) = (asker.clone(), Arc::clone(&questions));
            let (measuring, ended) = (Arc::clone(&measuring), Arc::clone(&ended));
            let failed = Arc::clone(&failed);
            tokio::spawn(async move {
                let mut took = Vec::with_capacity(1 << 16);
                let mut at = caller * questions.len() / callers;
                while !ended.load(Ordering::Relaxed) {
                    at = (at + 1) % questions.len();
                    let is_measured = measuring.load(Ordering::Relaxed);
                    let started = Instant::now();
                    let decided = asker.ask(&questions[at]).await;
                    if is_measured {
                        took.push(u32::try_from(started.elapsed().as_nanos()).unwrap_or(u32::MAX));
                        failed.fetch_add(u64::from(!decided), Ordering::Relaxed);
                    }
                }
                took
            })
        })
        .collect();
    tokio::time::sleep(WARM_UP).await;
    let before = cpu_seconds();
    measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    measuring.store(false, Ordering::Relaxed);
    let cpu = cpu_seconds() - before;
    ended.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.unwrap());
    }
    took.sort_unstable();
    let quantile = |per_hundred: usize| {
        let at = (took.len() * per_hundred / 100).min(took.len().saturating_sub(1));
        f64::from(took.get(at).copied().unwrap_or_default()) / 1_000.0
    };
    println!(
        "{{\"checks\":{},\"errors\":{},\"cpu_seconds\":{cpu:.6},\"p50_us\":{:.1},\"p99_us\":{:.1}}}",
        took.len(),
        failed.load(Ordering::Relaxed),
        quantile(50),
        quantile(99),
    );
}
