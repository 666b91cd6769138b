//! The same CSV file imported by two programs by turns, each with a sidecar of its own and into a new ledger:
//! how long that takes, and how much CPU on which side.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use consentd_core::time::Timestamp;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::sidecar::{BINARY, Sidecar, ledger_in};
use super::{PATIENT, cpu, ratios};

/// How often each program imports the file.
const ROUNDS: usize = 5;

/// The CPU of the importers, and that of the servers.
const CPUS: [&str; 2] = ["0", "1"];

/// The time of the first row, and how much later each is than the one before, in milliseconds.
const FIRST_MILLIS: u64 = 1_704_067_200_000;
const STEP_MILLIS: u64 = 20_000;

/// What an import took, in seconds.
struct Took {
    wall: f64,
    /// The CPU of the importer, of its sidecar, and of Redis.
    cpu: [f64; 3],
}

/// The names of [`Took::cpu`].
const PARTS: [&str; 3] = ["the importer", "the sidecar", "Redis"];

struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Imports a file of so many rows by turns, and prints the ratios.
pub async fn measure(rows: u64, other: &Path, in_redis: bool) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.csv");
    fs::write(&file, csv(rows)).unwrap();
    let programs = [("this", Path::new(BINARY)), ("the other", other)];
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        let mut both = Vec::new();
        for (name, program) in programs {
            let took = import(program, &file, in_redis).await;
            let cpu = PARTS.iter().zip(took.cpu).fold(String::new(), |mut text, (part, cpu)| {
                let _ = write!(text, "; {part} {cpu:.2} s");
                text
            });
            let each = rows as f64 / took.wall;
            println!("{round}, {name}: {:.2} s, {each:.0} rows a second{cpu}", took.wall);
            both.push(took);
        }
        rounds.push(both);
    }
    ratio("rows a second", &rounds, |took| 1.0 / took.wall);
    for (place, part) in PARTS.iter().enumerate().take(if in_redis { 3 } else { 2 }) {
        ratio(&format!("CPU of {part}"), &rounds, |took| took.cpu[place]);
    }
}

/// Prints a figure of this program divided by the other's in the same round.
fn ratio(what: &str, rounds: &[Vec<Took>], figure: impl Fn(&Took) -> f64) {
    let ratios = rounds.iter().map(|both| figure(&both[0]) / figure(&both[1]));
    ratios::print(&format!("{what}, this divided by the other"), ratios);
}

/// Opt-ins with their evidence, and opt-outs of those who opted in before, as the pages have them.
fn csv(rows: u64) -> String {
    let mut text = "user_id,business_id,event_time,event,category,method,statement,business_name,\
                    scope\n"
        .to_owned();
    let mut users = 0;
    for row in 0..rows {
        let time = Timestamp::from_millis(i64::try_from(FIRST_MILLIS + row * STEP_MILLIS).unwrap());
        let time = time.unwrap().rfc3339_seconds();
        let _ = if row % 10 < 7 {
            users += 1;
            let evidence = "website,\"Yes to offers from Acme on WhatsApp\",Acme";
            writeln!(text, "1555{:07},acme,{time},opt_in,marketing,{evidence},", users - 1)
        } else {
            writeln!(text, "1555{:07},acme,{time},opt_out,,,,,*", row.wrapping_mul(7_919) % users)
        };
    }
    text
}

fn pinned(cpu: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cpu]).arg(program);
    command
}

/// Imports the file into a new ledger.
async fn import(program: &Path, file: &Path, in_redis: bool) -> Took {
    let folder = tempfile::tempdir().unwrap();
    let redis = in_redis.then(|| redis(folder.path()));
    let mut flags = PATIENT.to_vec();
    let ledger = if redis.is_some() {
        let url = format!("redis+unix://{}", folder.path().join("redis.sock").display());
        let made =
            Command::new(program).args(["init", "--ledger", &url]).stdout(Stdio::null()).status();
        assert!(made.unwrap().success());
        flags.extend(["--record", "127.0.0.1:0"]);
        url
    } else {
        format!("file:{}", ledger_in(folder.path()).display())
    };
    let sidecar = Sidecar::try_start_by(pinned(CPUS[1], program), &ledger, &flags, &[]).unwrap();
    sidecar.wait_until_live().await;
    let address = if redis.is_some() { &sidecar.record } else { &sidecar.grpc };
    let of_redis = || redis.as_ref().map_or(0.0, |redis| cpu(redis.0.id()));
    let before = [cpu(sidecar.pid()), of_redis()];
    let started = Instant::now();
    let mut importer = pinned(CPUS[0], program)
        .arg("import")
        .arg(file)
        .args(["--addr", address, "--from-start"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("taskset is part of util-linux: apt-get install util-linux");
    // Its CPU can be read until it is waited for.
    let pid = Pid::from_child(&importer);
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    let wall = started.elapsed().as_secs_f64();
    let of_importer = cpu(importer.id());
    assert!(importer.wait().unwrap().success(), "every row is recorded");
    let cpu = [of_importer, cpu(sidecar.pid()) - before[0], of_redis() - before[1]];
    Took { wall, cpu }
}

/// Starts a redis-server that listens on `redis.sock` in this folder.
fn redis(folder: &Path) -> Redis {
    let socket = folder.join("redis.sock");
    let mut command = pinned(CPUS[1], Path::new("redis-server"));
    command.args(["--port", "0", "--save", ""]).arg("--unixsocket").arg(&socket);
    let child = command.arg("--dir").arg(folder).stdout(Stdio::null()).spawn();
    let server = Redis(child.expect("install Redis 7 or later"));
    while UnixStream::connect(&socket).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
    server
}
