//! Unary checks end to end, over TCP and a Unix socket, against a bare tonic echo of the same
//! messages in the same run: rate, latency, and the server's CPU a call (user and system).
//!
//! `cargo bench --bench unary`. Server and load are pinned to different CPUs; the two servers are
//! measured in turn, and medians are told. Figures of shared machines are ratios, no more.

#![allow(clippy::cast_precision_loss, reason = "figures are rounded")]

#[path = "echo/server.rs"]
mod echo;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use consentd::grpc::pb;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use consentd::net::socket::{Address, connect_unix};
use hyper_util::rt::TokioIo;
use rustix::thread::{CpuSet, sched_setaffinity};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// Calls of one measurement.
const CALLS: usize = 100_000;
/// Measurements of each server, in turn.
const ROUNDS: usize = 5;
/// Calls in flight, where the server shall be busy.
const DEPTH: usize = 64;
/// Pairs that the sidecar holds.
const PAIRS: u64 = 10_000;

/// A server in a process of its own, pinned to the first CPU.
struct Served {
    child: Child,
    tcp: Address,
    unix: Address,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pin(pid: Option<u32>, cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    let pid = pid.and_then(|pid| rustix::process::Pid::from_raw(pid.try_into().unwrap()));
    sched_setaffinity(pid, &cpus).expect("this machine has two CPUs that can be pinned to");
}

fn serve_echo(folder: &std::path::Path) -> Served {
    let path = folder.join("echo.sock");
    let mut child = Command::new("taskset")
        .args(["-c", "0"])
        .arg(std::env::current_exe().unwrap())
        .arg("echo")
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("taskset is part of util-linux: apt-get install util-linux");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    Served { child, tcp: Address::Tcp(line.trim().to_owned()), unix: Address::Unix(path) }
}

fn serve_consentd(folder: &std::path::Path) -> Served {
    let path = folder.join("consentd.sock");
    let mut child = Command::new("taskset")
        .args(["-c", "0", env!("CARGO_BIN_EXE_consentd"), "serve", "--workers", "1"])
        .args(["--listen", "127.0.0.1:0", "--admin", "none", "--unix"])
        .arg(&path)
        .arg("--ledger")
        .arg(format!("file:{}", folder.join("bench.redb").display()))
        .stderr(Stdio::piped())
        .spawn()
        .expect("taskset is part of util-linux: apt-get install util-linux");
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = lines.map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()));
    // Behind the warning that the ledger is new.
    let said = said.find_map(|said| said.ok().filter(|said| said["message"] == "listening"));
    let said = said.expect("it says where it listens");
    let tcp = said["grpc"].as_str().unwrap().split(',').next().unwrap().to_owned();
    Served { child, tcp: Address::Tcp(tcp), unix: Address::Unix(path) }
}

/// User and system time that a process has used.
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
}

async fn connect(address: &Address) -> Channel {
    match address {
        Address::Tcp(address) => {
            Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
        }
        unix => {
            let unix = unix.clone();
            let connector = service_fn(move |_: Uri| {
                let unix = unix.clone();
                async move { connect_unix(&unix).await.map(TokioIo::new) }
            });
            let endpoint = Endpoint::from_static("http://localhost");
            endpoint.connect_with_connector(connector).await.unwrap()
        }
    }
}

#[derive(Clone, Copy)]
struct Figures {
    calls_per_second: f64,
    p50: Duration,
    p99: Duration,
    cpu_per_call: Duration,
}

fn question(n: usize) -> pb::CanSendRequest {
    let user = (n as u64).wrapping_mul(2_654_435_761) % (2 * PAIRS);
    pb::CanSendRequest {
        template: None,
        user_id: format!("1555{user:08}"),
        business_id: "acme".into(),
        category: "utility.order_updates".into(),
        form: pb::MessageForm::Template.into(),
        min_revision: 0,
    }
}

/// Calls in a closed loop, `depth` at once over one connection.
async fn measure(served: &Served, address: &Address, depth: usize, calls: usize) -> Figures {
    let client = ConsentServiceClient::new(connect(address).await);
    let before = cpu_time(served.child.id());
    let started = Instant::now();
    let callers = (0..depth).map(|caller| {
        let mut client = client.clone();
        tokio::task::spawn(async move {
            let mut took = Vec::with_capacity(calls / depth);
            for n in 0..calls / depth {
                let question = question(n * depth + caller);
                let started = Instant::now();
                client.can_send(question).await.unwrap();
                took.push(started.elapsed());
            }
            took
        })
    });
    let mut took = Vec::with_capacity(calls);
    for caller in callers.collect::<Vec<_>>() {
        took.extend(caller.await.unwrap());
    }
    let wall = started.elapsed();
    let cpu = cpu_time(served.child.id()).saturating_sub(before);
    took.sort_unstable();
    let done = took.len();
    Figures {
        calls_per_second: done as f64 / wall.as_secs_f64(),
        p50: took[done / 2],
        p99: took[done * 99 / 100],
        cpu_per_call: cpu / u32::try_from(done).unwrap(),
    }
}

fn median<T: Copy + PartialOrd>(values: impl Iterator<Item = T>) -> (T, T, T) {
    let mut values: Vec<T> = values.collect();
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn print_row(name: &str, figures: &[Figures]) {
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let rate = median(figures.iter().map(|f| f.calls_per_second)).0;
    let p50 = median(figures.iter().map(|f| micros(f.p50))).0;
    let p99 = median(figures.iter().map(|f| micros(f.p99))).0;
    let (cpu, least, most) = median(figures.iter().map(|f| micros(f.cpu_per_call)));
    println!("| {name} | {rate:.0} | {p50:.1} | {p99:.1} | {cpu:.2} ({least:.2}–{most:.2}) |");
}

async fn populate(served: &Served) {
    let events = (0..PAIRS).map(|user| pb::RecordEventsRequest {
        sequence: user,
        event: Some(pb::ConsentEvent {
            user_id: format!("1555{user:08}"),
            business_id: "acme".into(),
            event_time: Some(std::time::SystemTime::now().into()),
            what: Some(pb::consent_event::What::OptIn(pb::OptIn {
                category: "utility.order_updates".into(),
                evidence: Some(pb::Evidence {
                    method: pb::OptInMethod::Website.into(),
                    statement: "Order updates from Acme on WhatsApp".into(),
                    business_name: "Acme".into(),
                    ..Default::default()
                }),
                ..Default::default()
            })),
        }),
        request_id: String::new(),
    });
    let mut client = RecordServiceClient::new(connect(&served.tcp).await);
    let events = tokio_stream::iter(events.collect::<Vec<_>>());
    let mut answers = client.record_events(events).await.unwrap().into_inner();
    while let Some(answer) = answers.message().await.unwrap() {
        let applied =
            matches!(answer.result, Some(pb::record_events_response::Result::Response(_)));
        assert!(applied, "{answer:?}");
    }
}

async fn compare() {
    let folder = tempfile::tempdir().unwrap();
    let (echo, consentd) = (serve_echo(folder.path()), serve_consentd(folder.path()));
    pin(None, 1);
    populate(&consentd).await;
    println!("{CALLS} calls each, {ROUNDS} rounds in turn, medians; CPU with its least and most\n");
    println!("| server | calls/s | p50 µs | p99 µs | server CPU µs/call |");
    println!("|---|---|---|---|---|");
    let mut ratios = Vec::new();
    for transport in ["TCP", "Unix"] {
        for depth in [1, DEPTH] {
            let mut figures: [Vec<Figures>; 2] = [Vec::new(), Vec::new()];
            for round in 0..=ROUNDS {
                for (server, figures) in [&echo, &consentd].into_iter().zip(&mut figures) {
                    let address = if transport == "TCP" { &server.tcp } else { &server.unix };
                    let measured = measure(server, address, depth, CALLS).await;
                    if round > 0 {
                        figures.push(measured); // The first round warms up.
                    }
                }
            }
            for (name, figures) in ["echo", "consentd"].into_iter().zip(&figures) {
                print_row(&format!("{name}, {transport}, {depth} in flight"), figures);
            }
            let [echo, ours] = &figures;
            let ratio = |of: fn(&Figures) -> f64| {
                median(ours.iter().zip(echo).map(|(ours, echo)| of(ours) / of(echo)))
            };
            let cpu = ratio(|figures| figures.cpu_per_call.as_secs_f64());
            let p50 = ratio(|figures| figures.p50.as_secs_f64());
            ratios.push(format!(
                "| {transport}, {depth} in flight | {:.3} ({:.3}–{:.3}) | {:.3} |",
                cpu.0, cpu.1, cpu.2, p50.0
            ));
        }
    }
    println!("\n| consentd ÷ echo | server CPU a call | p50 |\n|---|---|---|");
    for ratio in ratios {
        println!("{ratio}");
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match arguments.get(1).map(String::as_str) {
        Some("echo") => runtime.block_on(echo::serve(arguments[2].as_ref())),
        // cargo test builds benchmarks too, and runs them without `--bench`.
        _ if !arguments.iter().any(|argument| argument == "--bench") => {}
        _ => runtime.block_on(compare()),
    }
}
