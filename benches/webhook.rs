//! Webhooks on a redis-server of its own: how long one update takes, and how many a second are
//! recorded in batches of a thousand. The real binary, over TCP.
//!
//! `cargo bench --bench webhook` sends 200,000 updates in batches; `-- 1000000` so many. With `--beside PATH` it
//! measures this program and another one by turns, and divides what both did.

#![allow(
    clippy::cast_precision_loss,
    dead_code,
    reason = "figures are rounded, and it needs a part of the tests' harness"
)]

#[path = "harness/ratios.rs"]
mod ratios;
#[path = "../tests/it/sidecar.rs"]
mod sidecar;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use sidecar::{BINARY, Sidecar};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const SECRET: &str = "the app's own secret";

/// As many as the platform puts into one request.
const BATCH: u64 = 1_000;

/// How many requests at once.
const AT_ONCE: u64 = 4;

/// How many single updates, one after the other and by so many at once.
const SINGLES: u64 = 5_000;
const CALLERS: u64 = 16;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How often each program is measured where there are two.
const ROUNDS: usize = 7;

/// One of the rates.
type Figure = fn(&Rates) -> f64;

/// How many updates a second were answered.
struct Rates {
    one_at_a_time: f64,
    sixteen_at_once: f64,
    batches: f64,
}

fn main() {
    let updates = std::env::args().skip(1).find_map(|arg| arg.parse::<u64>().ok());
    let updates = updates.unwrap_or(200_000);
    let other = std::env::args().skip_while(|arg| arg != "--beside").nth(1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match other {
        Some(other) => runtime.block_on(compare(Path::new(&other), updates)),
        None => drop(runtime.block_on(measure(Path::new(BINARY), updates))),
    }
}

/// Measures this program and another one by turns, and prints the ratios of each round.
async fn compare(other: &Path, updates: u64) {
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        println!("round {round}, this:");
        let this = measure(Path::new(BINARY), updates).await;
        println!("round {round}, the other:");
        rounds.push((this, measure(other, updates).await));
    }
    let figures: [(&str, Figure); 3] = [
        ("single updates, one at a time", |rates| rates.one_at_a_time),
        ("single updates, 16 at once", |rates| rates.sixteen_at_once),
        ("batches", |rates| rates.batches),
    ];
    for (what, figure) in figures {
        ratios::print(
            &format!("{what}, this a second divided by the other"),
            rounds.iter().map(|(this, other)| figure(this) / figure(other)),
        );
    }
}

async fn measure(program: &Path, updates: u64) -> Rates {
    let folder = tempfile::tempdir().unwrap();
    let inside = |name: &str| folder.path().join(name).display().to_string();
    let socket = inside("redis.sock");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "yes", "--unixsocket", &socket]);
    let child = command.args(["--dir", &inside("")]).stdout(Stdio::null()).spawn();
    let _server = Server(child.expect("install Redis 7 or later"));
    while UnixStream::connect(&socket).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ledger = format!("redis+unix://{socket}");
    let made = Command::new(program).args(["init", "--ledger", &ledger]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(inside("secret"), SECRET).unwrap();
    std::fs::write(inside("token"), "a verify token of its own").unwrap();
    std::fs::write(inside("consentd.toml"), "[whatsapp.numbers]\n1 = \"acme\"\n").unwrap();
    let (config, secret, token) = (inside("consentd.toml"), inside("secret"), inside("token"));
    let flags = [
        ["--config", &config],
        ["--webhook", "127.0.0.1:0"],
        ["--webhook-app-secret-file", &secret],
        ["--webhook-verify-token-file", &token],
    ]
    .concat();
    let sidecar = Sidecar::try_start_by(Command::new(program), &ledger, &flags, &[]).unwrap();
    sidecar.wait_until_live().await;
    let address = sidecar.webhook.clone();

    let one_at_a_time = singles(&address, 1, "one at a time").await;
    let sixteen_at_once = singles(&address, CALLERS, "16 at once").await;
    let first = batches(&address, updates).await;
    let second = batches(&address, updates).await;
    let (_, metrics) = sidecar.get("/metrics").await;
    for line in metrics.lines().filter(|line| {
        line.starts_with("consent_webhook_updates_total{kind=\"message\"") && !line.ends_with(" 0")
    }) {
        println!("{line}");
    }
    Rates { one_at_a_time, sixteen_at_once, batches: f64::midpoint(first, second) }
}

fn payload(messages: impl Iterator<Item = String>) -> Vec<u8> {
    let messages: Vec<_> = messages.collect();
    format!(
        "{{\"object\":\"whatsapp_business_account\",\"entry\":[{{\"id\":\"1\",\"changes\":[{{\
         \"value\":{{\"messaging_product\":\"whatsapp\",\"metadata\":{{\"display_phone_number\":\
         \"15550783881\",\"phone_number_id\":\"1\"}},\"messages\":[{}]}},\"field\":\"messages\"\
         }}]}}]}}",
        messages.join(",")
    )
    .into_bytes()
}

/// Every twentieth says STOP.
fn message(user: u64, seconds: u64) -> String {
    let text = if user.is_multiple_of(20) { "Stop" } else { "Does it come in another color?" };
    format!(
        "{{\"from\":\"1555{user:07}\",\"id\":\"wamid.HBgLMTY1MDM4Nzk0MzkVAgASGBQzQTRBNjU5OUFF{user}\
         \",\"timestamp\":\"{seconds}\",\"type\":\"text\",\"text\":{{\"body\":\"{text}\"}}}}"
    )
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn request(body: &[u8]) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    let signature = hex::encode(mac.chain_update(body).finalize().into_bytes());
    let head = format!(
        "POST /webhook HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: \
         {}\r\nx-hub-signature-256: sha256={signature}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A connection that is kept.
struct Connection(BufReader<TcpStream>);

impl Connection {
    async fn to(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    async fn send(&mut self, request: &[u8]) {
        self.0.get_mut().write_all(request).await.unwrap();
        let (mut line, mut length) = (String::new(), 0);
        self.0.read_line(&mut line).await.unwrap();
        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
        loop {
            line.clear();
            self.0.read_line(&mut line).await.unwrap();
            if line == "\r\n" {
                break;
            }
            if let Some(told) = line.strip_prefix("content-length: ") {
                length = told.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
    }
}

/// Returns how many were answered a second.
async fn singles(address: &str, callers: u64, how: &str) -> f64 {
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for caller in 0..callers {
        let address = address.to_owned();
        tasks.spawn(async move {
            let mut connection = Connection::to(&address).await;
            let mut took = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3).unwrap();
            for number in 0..SINGLES / callers {
                let user = caller * SINGLES + number;
                let request = request(&payload([message(user, seconds())].into_iter()));
                let begun = Instant::now();
                connection.send(&request).await;
                took.saturating_record(u64::try_from(begun.elapsed().as_micros()).unwrap());
            }
            took
        });
    }
    let mut all = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3).unwrap();
    while let Some(took) = tasks.join_next().await {
        all.add(took.unwrap()).unwrap();
    }
    let rate = all.len() as f64 / begun.elapsed().as_secs_f64();
    println!(
        "single updates, {how}: {rate:.0} a second; p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        all.value_at_quantile(0.5) as f64 / 1_000.0,
        all.value_at_quantile(0.99) as f64 / 1_000.0,
        all.max() as f64 / 1_000.0,
    );
    rate
}

/// All updates, of so many users as there are updates; what is sent is made before. Returns how many were answered
/// a second.
async fn batches(address: &str, updates: u64) -> f64 {
    let requests = updates.div_ceil(BATCH);
    let now = seconds();
    let made = |batch: u64| {
        let users = batch * BATCH..(batch + 1) * BATCH;
        request(&payload(users.map(|user| message(1_000_000 + user, now))))
    };
    let mut mine: Vec<Vec<Vec<u8>>> = vec![Vec::new(); usize::try_from(AT_ONCE).unwrap()];
    for batch in 0..requests {
        mine[usize::try_from(batch % AT_ONCE).unwrap()].push(made(batch));
    }
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for requests in mine {
        let address = address.to_owned();
        tasks.spawn(async move {
            let mut connection = Connection::to(&address).await;
            let mut took = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3).unwrap();
            for request in requests {
                let begun = Instant::now();
                connection.send(&request).await;
                took.saturating_record(u64::try_from(begun.elapsed().as_micros()).unwrap());
            }
            took
        });
    }
    let mut all = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3).unwrap();
    while let Some(took) = tasks.join_next().await {
        all.add(took.unwrap()).unwrap();
    }
    let rate = (requests * BATCH) as f64 / begun.elapsed().as_secs_f64();
    println!(
        "batches of {BATCH}, {AT_ONCE} at once: {rate:.0} updates a second; a request p50 {:.1} ms, p99 \
         {:.1} ms",
        all.value_at_quantile(0.5) as f64 / 1_000.0,
        all.value_at_quantile(0.99) as f64 / 1_000.0,
    );
    rate
}
