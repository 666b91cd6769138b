//! Processes that write and that check, until the process that started them ends.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::history::{History, nanos, now};
use crate::load::{Checker, Failures, Writer, channel};
use crate::rng::Rng;

/// How long users are written about before others take their place: a pair's history grows.
const GENERATION: Duration = Duration::from_secs(30);

/// How many tasks of a process write.
const WRITERS: u64 = 3;

/// How many users a generation has, whom all write about.
const USERS: u64 = 12;

/// How many of them a checker asks about at once.
const ASKED: usize = 4;

/// What a process does.
pub enum Role {
    /// Records at these addresses.
    Write,
    /// Asks at these addresses.
    Check,
}

/// A process that was started; it ends when dropped, and says then what it counted.
pub struct Person(Child);

impl Person {
    /// Starts this program again, in a role.
    pub fn start(role: &Role, name: &str, file: &Path, seed: u64, addresses: &[String]) -> Self {
        let role = match role {
            Role::Write => "write",
            Role::Check => "check",
        };
        let child = Command::new(std::env::current_exe().unwrap())
            .args([role, name, &file.display().to_string(), &seed.to_string()])
            .args(addresses)
            .stdin(Stdio::piped())
            .spawn()
            .expect("this program is there");
        Self(child)
    }

    /// Whether it goes on.
    pub fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn users(generation: u64) -> Vec<String> {
    (0..USERS).map(|user| format!("US.{generation}-{user}")).collect()
}

/// What such a process does, by its arguments.
pub async fn be(role: Role, arguments: &[String]) {
    let [name, file, seed, addresses @ ..] = arguments else {
        panic!("a name, a file, a seed and addresses are needed")
    };
    let (history, failures) = (History::to_file(Path::new(file)), Failures::default());
    let seed: u64 = seed.parse().unwrap();
    let end = CancellationToken::new();
    let parent = end.clone();
    let watch = std::thread::spawn(move || {
        // Nothing is ever written: it ends when the other side does.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        parent.cancel();
    });
    while !end.is_cancelled() {
        let generation = now() / nanos(GENERATION);
        let left = Duration::from_nanos((generation + 1) * nanos(GENERATION) - now());
        let stop = end.child_token();
        let mut tasks = JoinSet::new();
        for (place, address) in addresses.iter().enumerate() {
            match role {
                Role::Write => {
                    for task in 0..WRITERS {
                        let records = RecordServiceClient::new(channel(address));
                        let writer = Writer {
                            history: history.clone(),
                            failures: failures.clone(),
                            name: format!("{name}-{place}-{task}-{generation}"),
                            records,
                            users: users(generation),
                            rng: Rng::new(seed ^ (generation << 8) ^ task),
                            pace: Duration::from_millis(10),
                        };
                        tasks.spawn(writer.run(stop.clone()));
                    }
                }
                Role::Check => {
                    for users in users(generation).chunks(ASKED) {
                        let checker = Checker {
                            history: history.clone(),
                            failures: failures.clone(),
                            sidecar: format!("sidecar {place}"),
                            checks: ConsentServiceClient::new(channel(address)),
                            users: users.to_vec(),
                            pace: Duration::from_millis(25),
                        };
                        tasks.spawn(checker.run(stop.clone()));
                    }
                }
            }
        }
        let _ = end.run_until_cancelled(tokio::time::sleep(left)).await;
        stop.cancel();
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    }
    history.finish();
    watch.join().unwrap();
}
