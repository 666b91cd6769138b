//! `bench load` and `bench propagation` against real sidecars.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::tempdir;

use crate::faults::redis::Redis;
use crate::sidecar::{BINARY, Sidecar, eventually, run};

/// What nobody waits for.
const NOW: [&str; 2] = ["--warm-up", "0s"];

/// A sidecar that holds what loads ask about, with more flags.
async fn loaded(folder: &Path, flags: &[&str]) -> Sidecar {
    Sidecar::live(folder, &[&["--synthetic", "2000"], flags].concat()).await
}

fn arguments<'a>(addr: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    [&["bench", "load", "--json", "--users", "2000", "--addr", addr], flags].concat()
}

/// Runs a load; gives its exit code and its figures.
#[track_caller]
fn load(addr: &str, flags: &[&str]) -> (i32, Value) {
    let (code, printed, said) = run(&arguments(addr, flags));
    let figures = serde_json::from_str(&printed);
    (code, figures.unwrap_or_else(|_| panic!("{flags:?}: exit code {code}: {said}")))
}

/// Starts a load that goes on while a test does something to it.
fn begin(addr: &str, flags: &[&str]) -> Running {
    let mut command = Command::new(BINARY);
    command.args(arguments(addr, flags)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the binary was built");
    let pid = Pid::from_child(&child);
    Running { pid, ended: tokio::task::spawn_blocking(|| child.wait_with_output()) }
}

struct Running {
    pid: Pid,
    ended: tokio::task::JoinHandle<std::io::Result<Output>>,
}

impl Running {
    async fn figures(self) -> (i32, Value) {
        let patience = tokio::time::timeout(crate::sidecar::PATIENCE, self.ended);
        let Ok(output) = patience.await else {
            let _ = kill_process(self.pid, Signal::KILL);
            panic!("the load has not ended")
        };
        let output = output.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let figures = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
        (output.status.code().unwrap_or(-1), figures)
    }
}

fn number(figures: &Value, path: &str) -> u64 {
    let value = figures.pointer(path).and_then(Value::as_u64);
    value.unwrap_or_else(|| panic!("no {path} in {figures}"))
}

fn micros(figures: &Value, path: &str) -> f64 {
    let value = figures.pointer(path).and_then(Value::as_f64);
    value.unwrap_or_else(|| panic!("no {path} in {figures}"))
}

fn sum(figures: &Value, of: &str) -> u64 {
    figures[of].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

/// Waits until a sidecar has decided so many.
async fn decided(sidecar: &Sidecar, count: f64) {
    eventually("the load has begun", || async {
        let (_, metrics) = sidecar.get("/metrics").await;
        let lines = metrics.lines().filter(|line| line.starts_with("consent_decisions_total{"));
        let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        counts.sum::<f64>() >= count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_loaded_in_both_loops_and_the_figures_add_up() {
    let folder = tempdir().unwrap();
    let socket = folder.path().join("s.sock");
    let sidecar = loaded(folder.path(), &["--unix", socket.to_str().unwrap()]).await;
    let unix = format!("unix:{}", socket.display());
    for (call, batch, each) in
        [("unary", None, 1), ("batch", Some("7"), 7), ("stream", None, 1), ("filter", Some("7"), 7)]
    {
        let mut flags = vec!["--call", call, "--count", "200", "--questions", "1400"];
        flags.extend(batch.iter().flat_map(|batch| ["--batch", batch]));
        flags.extend(NOW);
        for (addr, rate, arrivals) in
            [(&*sidecar.grpc, None, None), (&unix, Some("2000"), Some("poisson"))]
        {
            let mut flags = flags.clone();
            flags.extend(rate.iter().flat_map(|rate| ["--rate", rate]));
            flags.extend(arrivals.iter().flat_map(|arrivals| ["--arrivals", arrivals]));
            flags.extend(["--connections", "3", "--in-flight", "5"]);
            let (code, figures) = load(addr, &flags);
            assert_eq!((code, number(&figures, "/errors")), (0, 0), "{figures}");
            assert_eq!(number(&figures, "/requests"), 200, "{figures}");
            assert_eq!(number(&figures, "/checks"), 200 * each, "{figures}");
            assert_eq!(sum(&figures, "reasons"), 200 * each, "{figures}");
            let (allowed, denied) = (number(&figures, "/allowed"), number(&figures, "/denied"));
            assert!(allowed > 0 && denied > 0 && allowed + denied == 200 * each, "{figures}");
            assert_eq!(figures["loop"], if rate.is_some() { "open" } else { "closed" });
            for latencies in ["latency_us", "service_time_us"] {
                let quantiles = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];
                let values = quantiles.map(|q| micros(&figures, &format!("/{latencies}/{q}")));
                assert!(values.is_sorted() && values[0] > 0.0, "{figures}");
            }
        }
    }
}

#[tokio::test]
async fn a_file_of_requests_asks_the_same_as_its_seed() {
    let folder = tempdir().unwrap();
    let sidecar = loaded(folder.path(), &[]).await;
    let file = folder.path().join("requests.json");
    let file = file.to_str().unwrap();
    let made = ["bench", "requests", "--users", "2000", "--count", "300", "--seed", "5"];
    let batches = [&made[..], &["--batch", "40", "--output", file]].concat();
    assert_eq!(run(&batches).0, 0);
    let common = ["--count", "300", "--warm-up", "0s"];
    let of_seed = [&common[..], &["--seed", "5", "--questions", "300"]].concat();
    let (_, by_seed) = load(&sidecar.grpc, &of_seed);
    let of_file =
        [&["bench", "load", "--json", "--addr", &sidecar.grpc, "--requests", file], &common[..]];
    let (code, printed, said) = run(&of_file.concat());
    assert_eq!((code, said.as_str()), (0, ""));
    let by_file: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(by_file["reasons"], by_seed["reasons"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_server_is_charged_with_those_that_it_kept_waiting() {
    const STALL: Duration = Duration::from_millis(400);
    let folder = tempdir().unwrap();
    let sidecar = loaded(folder.path(), &[]).await;
    let flags = ["--rate", "500", "--duration", "2s", "--in-flight", "4", "--warm-up", "0s"];
    let running = begin(&sidecar.grpc, &flags);
    decided(&sidecar, 1.0).await;
    sidecar.signal("STOP");
    // This is how long the fault lasts: nothing is waited for.
    tokio::time::sleep(STALL).await;
    sidecar.signal("CONT");
    let (code, figures) = running.figures().await;
    assert_eq!((code, number(&figures, "/errors")), (0, 0), "{figures}");
    assert_eq!(number(&figures, "/requests"), 1_000, "{figures}");
    // A fifth of all was due while it stood still; four of them were sent.
    let (latency, service) =
        (micros(&figures, "/latency_us/p99"), micros(&figures, "/service_time_us/p99"));
    assert!(latency > 250_000.0, "{figures}");
    assert!(service < latency / 2.0, "{figures}");
    assert!(micros(&figures, "/service_time_us/max") > 250_000.0, "{figures}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_goes_ends_the_load_and_is_counted() {
    for call in ["unary", "stream", "filter"] {
        let folder = tempdir().unwrap();
        let mut sidecar = loaded(folder.path(), &[]).await;
        let mut flags = vec!["--call", call, "--duration", "1h", "--timeout", "500ms"];
        flags.extend(NOW);
        flags.extend(if call == "filter" { &["--batch", "10"][..] } else { &[] });
        let running = begin(&sidecar.grpc, &flags);
        // More than what is in flight at first: some of it was answered.
        decided(&sidecar, 2_000.0).await;
        sidecar.kill();
        let (code, figures) = running.figures().await;
        assert_eq!(code, 1, "{figures}");
        assert!(number(&figures, "/errors_by_code/UNAVAILABLE") > 0, "{figures}");
        assert_eq!(number(&figures, "/connections_lost"), 1, "{figures}");
        assert!(number(&figures, "/checks") > 0, "what was answered before is told: {figures}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_hangs_is_given_up() {
    let folder = tempdir().unwrap();
    let sidecar = loaded(folder.path(), &[]).await;
    let flags = ["--count", "1000000000", "--timeout", "500ms", "--warm-up", "0s"];
    let running = begin(&sidecar.grpc, &flags);
    decided(&sidecar, 1.0).await;
    sidecar.signal("STOP");
    let (code, figures) = running.figures().await;
    sidecar.signal("CONT");
    assert_eq!(code, 1, "{figures}");
    assert!(number(&figures, "/errors_by_code/DEADLINE_EXCEEDED") > 0, "{figures}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_grow_old_cost_no_errors() {
    let folder = tempdir().unwrap();
    let sidecar = loaded(folder.path(), &["--max-connection-age", "200ms"]).await;
    for call in ["unary", "stream", "filter"] {
        let flags = ["--call", call, "--duration", "1s", "--warm-up", "0s", "--in-flight", "8"];
        let (code, figures) = load(&sidecar.grpc, &flags);
        assert_eq!(code, 0, "{figures}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_load_gives_its_figures_so_far() {
    let folder = tempdir().unwrap();
    let sidecar = loaded(folder.path(), &[]).await;
    let running = begin(&sidecar.grpc, &["--duration", "1h", "--warm-up", "0s"]);
    decided(&sidecar, 1_000.0).await;
    kill_process(running.pid, Signal::INT).unwrap();
    let (code, figures) = running.figures().await;
    assert_eq!((code, &figures["interrupted"]), (0, &Value::Bool(true)), "{figures}");
    assert!(number(&figures, "/checks") > 0, "{figures}");
}

#[tokio::test]
async fn a_table_says_what_was_measured_and_by_whom() {
    let folder = tempdir().unwrap();
    let sidecar = loaded(folder.path(), &[]).await;
    let flags = ["--count", "50", "--warm-up", "0s", "--rate", "1000", "--users", "4000"];
    let (code, printed, said) =
        run(&[&["bench", "load", "--addr", &sidecar.grpc], &flags[..]].concat());
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("start it with --synthetic 4000"), "{said}");
    for part in
        ["unary, 1000 requests a second", "p99.99", "from due to answer", "no_consent", "busy for"]
    {
        assert!(printed.contains(part), "no {part:?} in {printed}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (flags, named) in [
        (&["--users", "0"][..], "--users: must be from 1"),
        (&["--hit-ratio=-0.1"], "--hit-ratio: must be from 0 to 1"),
        (&["--batch", "5"], "--batch: only a --call of batch or filter"),
        (&["--call", "batch", "--batch", "0"], "--batch: must be from 1 to"),
        (&["--connections", "0"], "--connections: must be from 1 to"),
        (&["--in-flight", "100000"], "--in-flight: must be from 1 to 1000"),
        (&["--threads", "0"], "--threads: must be from 1"),
        (&["--questions", "0"], "--questions: must be from 1"),
        (&["--rate", "0"], "--rate: must be above 0"),
        (&["--rate", "NaN"], "--rate: must be above 0"),
        (&["--arrivals", "even"], "--rate"),
        (&["--count", "0"], "--count: must be 1 or more"),
        (&["--count", "1", "--duration", "1s"], "--duration"),
        (&["--duration", "0s"], "--duration: must be more than nothing"),
        (&["--duration", "52w"], "--duration: must be at most"),
        (&["--call", "both"], "--call"),
        (&["--requests", "/nowhere.json"], "/nowhere.json"),
    ] {
        let (code, printed, said) =
            run(&[&["bench", "load", "--addr", "127.0.0.1:1"], flags].concat());
        assert_eq!((code, printed.as_str()), (2, ""), "{flags:?}");
        let nobody = flags[0] == "--requests" && said.contains("cannot reach consentd");
        assert!(said.contains(named) || nobody, "{flags:?}: {said}");
    }
    for (flags, named) in [
        (&["--yes", "--users", "0"][..], "--users: must be from 1"),
        (&["--yes", "--rate", "0"], "--rate: must be above 0"),
        (&["--yes", "--duration", "0s"], "--duration: must be more than nothing"),
        (&[], "--yes: is missing"),
    ] {
        let command = ["bench", "propagation", "--record", "127.0.0.1:1", "--addr", "127.0.0.1:1"];
        let (code, _, said) = run(&[&command[..], flags].concat());
        assert_eq!(code, 2);
        assert!(said.contains(named), "{flags:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_followed_to_every_sidecar() {
    let redis = Redis::start(&[]);
    let ledger = format!("redis://{}", redis.address());
    assert_eq!(run(&["init", "--ledger", &ledger]).0, 0);
    let serve =
        |flags: &[&str]| Sidecar::try_start_by(Command::new(BINARY), &ledger, flags, &[]).unwrap();
    let recorder = serve(&["--record", "127.0.0.1:0"]);
    let other = serve(&[]);
    recorder.wait_until_live().await;
    other.wait_until_live().await;
    let both = format!("{},{}", recorder.grpc, other.grpc);
    let probe = ["bench", "propagation", "--json", "--record", &recorder.record, "--yes"];
    let flags = ["--rate", "100", "--duration", "500ms", "--users", "10"];
    // Once more, from what the first left behind.
    for _ in 0..2 {
        let (code, printed, said) = run(&[&probe[..], &["--addr", &both], &flags].concat());
        assert_eq!((code, said.as_str()), (0, ""), "{printed}");
        let figures: Value = serde_json::from_str(&printed).unwrap();
        let events = number(&figures, "/events");
        assert!(events > 0 && number(&figures, "/failed") == 0, "{figures}");
        for place in 0..2 {
            assert_eq!(number(&figures, &format!("/sidecars/{place}/enforced")), events);
            assert_eq!(number(&figures, &format!("/sidecars/{place}/missed")), 0);
            let p50 = |of: &str| micros(&figures, &format!("/sidecars/{place}/{of}/p50"));
            assert!(p50("from_sent_us") >= p50("from_answer_us"), "{figures}");
        }
    }
    // One that follows another ledger never hears of it.
    let folder = tempdir().unwrap();
    let stranger = Sidecar::live(folder.path(), &[]).await;
    let flags = ["--addr", &stranger.grpc, "--timeout", "300ms"];
    let (code, _, said) = run(&[&probe[..], &flags].concat());
    assert_eq!(code, 2);
    assert!(said.contains("does it follow the same ledger?"), "{said}");
}
