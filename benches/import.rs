//! A file of events imported over gRPC into an embedded ledger, as one command does it: how many
//! events a second, durable; how much memory; and whether every answer afterwards is the model's.
//! Then once more, with both sides killed half-way and begun again.
//!
//! `cargo bench --bench import` imports about a million rows; `-- 100000` about so many. `-- 100000 --beside PATH`
//! imports a CSV file instead, by this program and by another one by turns, and divides what it took them; with
//! `--redis` into ledgers in a redis-server.

#![allow(
    clippy::cast_precision_loss,
    dead_code,
    unused_imports,
    reason = "figures are rounded, and it needs a part of the tests' harness"
)]

#[path = "import/beside.rs"]
mod beside;
#[path = "../tests/it/model.rs"]
mod model;
#[path = "harness/ratios.rs"]
mod ratios;
#[path = "../tests/it/rng.rs"]
mod rng;
#[path = "../tests/it/sidecar.rs"]
mod sidecar;
#[path = "../tests/it/world.rs"]
mod world;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sidecar::{BINARY, Sidecar, ledger_in};
use world::{World, world};

/// About how many rows a user has.
const ROWS_PER_USER: f64 = 3.5;

/// The table's age is not what this measures.
const PATIENT: [&str; 2] = ["--max-staleness", "10m"];

fn main() {
    let rows = std::env::args().skip(1).find_map(|arg| arg.parse::<u64>().ok());
    let rows = rows.unwrap_or(1_000_000);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let other = std::env::args().skip_while(|arg| arg != "--beside").nth(1);
    if let Some(other) = other {
        let in_redis = std::env::args().any(|arg| arg == "--redis");
        runtime.block_on(beside::measure(rows, Path::new(&other), in_redis));
        return;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in about")]
    let world = world((rows as f64 / ROWS_PER_USER) as u64);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.ndjson");
    fs::write(&file, world.rows.join("\n")).unwrap();
    let size = fs::metadata(&file).unwrap().len();
    println!("{} rows, {} MiB, {} pairs", world.rows.len(), size >> 20, world.users.len());
    runtime.block_on(whole(&world, &file));
    runtime.block_on(killed(&world, &file));
}

async fn whole(world: &World, file: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &PATIENT).await;
    let started = Instant::now();
    let mut import = begin(file, &sidecar.grpc);
    let peak = watch(&mut import).await;
    let took = started.elapsed().as_secs_f64();
    let (server_cpu, server_peak) = (cpu(sidecar.pid()), peak_of(sidecar.pid()));
    println!(
        "whole: {took:.1} s, {:.0} events a second; the sidecar {server_cpu:.1} s of CPU and {} \
         MiB at most, the importer {} MiB",
        world.rows.len() as f64 / took,
        server_peak >> 20,
        peak >> 20,
    );
    world.assert_agrees(&sidecar).await;
    println!("whole: every answer is the model's");
}

async fn killed(world: &World, file: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &PATIENT).await;
    let address = sidecar.grpc.clone();
    let mut import = begin(file, &address);
    let half = u64::try_from(world.rows.len()).unwrap() / 2;
    while world::records(&sidecar).await < half {
        assert!(import.try_wait().unwrap().is_none(), "it ended before it was killed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    import.kill().unwrap();
    import.wait().unwrap();
    sidecar.kill();
    let flags = [&PATIENT[..], &["--listen", &address]].concat();
    let sidecar = Sidecar::start(&ledger_in(folder.path()), &flags);
    sidecar.wait_until_live().await;
    let started = Instant::now();
    watch(&mut begin(file, &address)).await;
    println!("killed half-way: resumed and done in {:.1} s", started.elapsed().as_secs_f64());
    world.assert_agrees(&sidecar).await;
    println!("killed half-way: every answer is the model's");
}

fn begin(file: &Path, address: &str) -> Child {
    let mut command = Command::new(BINARY);
    command.arg("import").arg(file).args(["--addr", address]);
    command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary was built")
}

/// Waits for an import; gives the most memory that it took.
async fn watch(import: &mut Child) -> u64 {
    let mut peak = 0;
    loop {
        peak = peak.max(peak_of(import.id()));
        if let Some(status) = import.try_wait().unwrap() {
            assert!(status.code().is_some_and(|code| code < 2), "{status}");
            return peak;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The most memory that a process has taken, in bytes.
fn peak_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// How many seconds of CPU a process has taken.
fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11..=12].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}
