//! What the tests share.

use std::ffi::OsString;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use consentd_client::testing::Sidecar;
use consentd_client::{Client, Event, Evidence, Form, OptInMethod, Question, Verdict};
use tokio::task::JoinHandle;

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn binary() -> OsString {
    if let Some(binary) = std::env::var_os("CONSENTD_BIN") {
        return binary;
    }
    let test = std::env::current_exe().expect("this test is a file");
    let built = test.ancestors().nth(2).expect("a folder of Cargo").join("consentd");
    if built.exists() { built.into() } else { "consentd".into() }
}

pub(crate) async fn sidecar(flags: &[&str]) -> Sidecar {
    Sidecar::start_binary(binary(), flags)
        .await
        .expect("a sidecar: run `cargo build`, or set CONSENTD_BIN")
}

/// A client whose checks have the time that they need where both cores are busy.
pub(crate) fn patient(address: &str) -> Client {
    Client::builder().address(address).deadline(PATIENCE).build().unwrap()
}

pub(crate) fn question(user: &str) -> Question {
    Question::new(user, "acme", "marketing").form(Form::Template)
}

pub(crate) fn opt_in(user: &str) -> Event {
    let statement = "Yes, send me offers from Acme on WhatsApp";
    let evidence = Evidence::new(OptInMethod::Website, statement, "Acme").locale("en");
    Event::opt_in(user, "acme", "marketing", evidence)
}

pub(crate) fn signal(sidecar: &Sidecar, name: &str) {
    let pid = sidecar.pid().to_string();
    let status = Command::new("kill").args([&format!("-{name}"), &pid]).status();
    assert!(status.expect("kill is part of every system").success());
    // The signal is sent before it is delivered: a thread may go on for a moment, and still answer.
    let started = Instant::now();
    while name == "STOP" && !is_stopped(&pid) {
        assert!(started.elapsed() < PATIENCE, "the sidecar does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether each thread of a process is in the state T.
fn is_stopped(pid: &str) -> bool {
    // The state comes after the program's name, which is in brackets and may contain any.
    let is_stopped =
        |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"));
    let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // One that cannot be read has ended meanwhile.
    threads.all(|thread| {
        std::fs::read_to_string(thread.unwrap().path().join("stat")).is_ok_and(is_stopped)
    })
}

pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let started = Instant::now();
    while !is_so().await {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Callers that ask all the time, about a user who opted in and one who did not.
pub(crate) struct Load {
    ended: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Vec<Verdict>>>,
}

impl Load {
    /// Begins; each caller keeps the verdicts that are neither the one nor the other.
    pub(crate) fn begin(client: &Client, callers: usize) -> Self {
        let (ended, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let callers = (0..callers).map(|caller| {
            let (client, ended) = (client.clone(), Arc::clone(&ended));
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                let mut unexpected = Vec::new();
                let is_in = caller % 2 == 0;
                let user = if is_in { "opted-in" } else { "opted-out" };
                while !ended.load(Ordering::Relaxed) {
                    let verdict = client.may_send(question(user)).await;
                    let reason = if is_in { "OPTED_IN" } else { "OPTED_OUT_ALL" };
                    assert!(is_in || !verdict.is_allowed());
                    if verdict.reason() != reason {
                        unexpected.push(verdict);
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                    // Each caller leaves the others room.
                    tokio::task::yield_now().await;
                }
                unexpected
            })
        });
        let callers = callers.collect();
        Self { ended, asked, callers }
    }

    pub(crate) async fn asked(&self, more: usize) {
        let enough = self.asked.load(Ordering::Relaxed) + more;
        eventually("checks are answered", || async {
            self.asked.load(Ordering::Relaxed) >= enough
        })
        .await;
    }

    /// Ends; returns what was not decided, or decided otherwise.
    pub(crate) async fn end(self) -> Vec<Verdict> {
        self.ended.store(true, Ordering::Relaxed);
        let mut unexpected = Vec::new();
        for caller in self.callers {
            unexpected.extend(caller.await.unwrap());
        }
        unexpected
    }
}

/// Records what [`Load`] asks about.
pub(crate) async fn prepare(client: &Client) {
    client.record(opt_in("opted-in")).await.unwrap();
    client.record(opt_in("opted-out")).await.unwrap();
    client.record(Event::opt_out("opted-out", "acme", "*")).await.unwrap();
}
