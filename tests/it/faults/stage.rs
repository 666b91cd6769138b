//! What a row of the table is played on: a Redis, two sidecars that follow it through a network of
//! our own each, one of which records, and writers and checkers who hammer some pairs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use consentd::grpc::pb;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::get_status_response::Phase;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::checker::{Verdict, check, compare};
use super::history::{Did, History, Line, Sent, now, wall};
use super::load::{BUSINESS, Checker, Failures, Writer, channel, listed};
use super::proxy::Proxy;
use super::redis::{PASSWORD, Redis};
use crate::rng::Rng;
use crate::sidecar::{BINARY, PATIENCE, Sidecar, eventually, question, run};

/// The bound of most rows: what is waited for is waited for no longer than needed.
pub const BOUND: Duration = Duration::from_millis(900);

/// The bound of rows in which nothing may go stale, on a machine that other tests load too.
pub const EASY: Duration = Duration::from_secs(6);

/// How much later than the bound a sidecar may be seen to deny, by a test that looks at it.
const LATE: Duration = Duration::from_secs(3);

/// How long after a fault is over a sidecar may need to be live again.
pub const LIVE_AGAIN: Duration = Duration::from_secs(6);

/// How many buckets the ledgers have.
const BUCKETS: &str = "32";

/// How many users each of the two writers has for itself.
const OWN: usize = 2;

/// What a stage is made of.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// The server's options.
    pub redis: &'a [&'a str],
    /// The sidecars' bound.
    pub bound: Duration,
    /// More flags of both sidecars.
    pub flags: &'a [&'a str],
    /// Variables of both sidecars.
    pub variables: &'a [(&'a str, &'a str)],
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { redis: &[], bound: BOUND, flags: &[], variables: &[] }
    }
}

/// The stage.
pub struct Stage {
    /// The server that was there first.
    pub redis: Redis,
    /// What lies between it and the sidecar that records.
    pub recorder_net: Proxy,
    /// What lies between it and the other one.
    pub reader_net: Proxy,
    /// The sidecar that records.
    pub recorder: Sidecar,
    /// The other one.
    pub reader: Sidecar,
    /// What happened.
    pub history: History,
    /// The sidecars' bound.
    pub bound: Duration,
    failures: Failures,
    load: Option<(CancellationToken, JoinSet<()>)>,
    said: u64,
    /// How often writers were started: an event's name is never used again.
    hammered: u64,
}

/// The ledger in the Redis at `HOST:PORT`.
pub fn ledger_at(address: &str) -> String {
    format!("redis://{address}")
}

/// Makes a ledger there.
pub fn init(ledger: &str, flags: &[&str]) {
    let arguments = [&["init", "--ledger", ledger][..], flags].concat();
    let (code, printed, error) = run(&arguments);
    assert_eq!(code, 0, "init: {printed}{error}");
}

/// Starts a sidecar on a ledger in Redis.
pub fn serve(ledger: &str, flags: &[&str], variables: &[(&str, &str)]) -> Sidecar {
    let started = Sidecar::try_start_by(Command::new(BINARY), ledger, flags, variables);
    started.unwrap_or_else(|said| panic!("no sidecar: {said}"))
}

/// What a sidecar says of itself.
pub async fn status(sidecar: &Sidecar) -> pb::GetStatusResponse {
    let mut checks = ConsentServiceClient::new(channel(&sidecar.grpc));
    let status = checks.get_status(pb::GetStatusRequest {}).await;
    let status = status.unwrap_or_else(|error| {
        panic!("it says how it is, however it is: {error}\n{}", sidecar.said())
    });
    status.into_inner()
}

/// Waits until a sidecar is live, no longer than this; gives how long it took.
pub async fn live_within(sidecar: &Sidecar, within: Duration) -> Duration {
    let started = Instant::now();
    loop {
        let status = status(sidecar).await;
        if status.phase() == Phase::Live {
            return started.elapsed();
        }
        let took = started.elapsed();
        assert!(took < within, "not live after {took:?}: {status:?}\n{}", sidecar.said());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A figure of a sidecar's, by its name and labels as `/metrics` has them; 0 where there is none.
pub async fn metric(sidecar: &Sidecar, name: &str) -> f64 {
    let (_, text) = sidecar.get("/metrics").await;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or(0.0)
}

/// Waits until a figure is at least so much.
pub async fn wait_for_metric(sidecar: &Sidecar, name: &str, least: f64) {
    let started = Instant::now();
    loop {
        let found = metric(sidecar, name).await;
        if found >= least {
            return;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{name} is {found}, and not {least}; what the sidecar said:\n{}",
            sidecar.said()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a sidecar answers.
pub async fn ask(sidecar: &Sidecar, user: &str, category: &str) -> pb::CanSendResponse {
    let mut checks = ConsentServiceClient::new(channel(&sidecar.grpc));
    checks.can_send(question(user, BUSINESS, category)).await.expect("an answer").into_inner()
}

impl Stage {
    /// Sets all up, and waits until both sidecars are live.
    pub async fn set(setup: Setup<'_>) -> Self {
        let redis = Redis::start(setup.redis);
        init(&ledger_at(&redis.address()), &["--buckets", BUCKETS]);
        Self::set_on(redis, setup).await
    }

    /// The same on a Redis that has a ledger.
    pub async fn set_on(redis: Redis, setup: Setup<'_>) -> Self {
        let recorder_net = Proxy::before(&redis.address()).await;
        let reader_net = Proxy::before(&redis.address()).await;
        let bound = humantime::format_duration(setup.bound).to_string().replace(' ', "");
        let flags = [&["--max-staleness", &bound], setup.flags].concat();
        // With no more rights than docs/redis.md gives them.
        let theirs = setup.flags.contains(&"--ledger-user");
        let user = |name| if theirs { Vec::new() } else { vec!["--ledger-user", name] };
        let recording = [&["--record", "127.0.0.1:0"], &flags[..], &user("recorder")].concat();
        let answering = [&flags[..], &user("sidecar")].concat();
        let mut variables = setup.variables.to_vec();
        if !theirs {
            variables.push(("CONSENTD_LEDGER_PASSWORD", PASSWORD));
        }
        let at = |net: &Proxy| ledger_at(&net.address());
        let recorder = serve(&at(&recorder_net), &recording, &variables);
        let reader = serve(&at(&reader_net), &answering, &variables);
        for sidecar in [&recorder, &reader] {
            live_within(sidecar, PATIENCE).await;
        }
        Self {
            redis,
            recorder_net,
            reader_net,
            recorder,
            reader,
            history: History::default(),
            bound: setup.bound,
            failures: Failures::default(),
            load: None,
            said: 0,
            hammered: 0,
        }
    }

    /// Both networks.
    pub fn nets(&self) -> [&Proxy; 2] {
        [&self.recorder_net, &self.reader_net]
    }

    /// Both sidecars.
    pub fn sidecars(&self) -> [&Sidecar; 2] {
        [&self.recorder, &self.reader]
    }

    fn writer(&self, number: usize) -> Writer {
        let own = (0..OWN).map(|user| format!("US.{number}-{user}"));
        Writer {
            history: self.history.clone(),
            failures: self.failures.clone(),
            name: format!("w{}-{number}", self.hammered),
            records: RecordServiceClient::new(channel(&self.recorder.record)),
            // What two writers write about at once, they conflict about.
            users: own.chain(["US.shared".to_owned()]).collect(),
            rng: Rng::new((self.hammered << 8) + number as u64),
            pace: Duration::from_millis(3),
        }
    }

    fn checker(&self, sidecar: &Sidecar, name: &str) -> Checker {
        let writers = [self.writer(1), self.writer(2)];
        let users: BTreeSet<String> = writers.into_iter().flat_map(|writer| writer.users).collect();
        Checker {
            history: self.history.clone(),
            failures: self.failures.clone(),
            sidecar: name.to_owned(),
            checks: ConsentServiceClient::new(channel(&sidecar.grpc)),
            users: users.into_iter().collect(),
            pace: Duration::from_millis(4),
        }
    }

    /// Begins to write and to ask, and waits until that is under way.
    pub async fn hammer(&mut self) {
        self.hammered += 1;
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for number in [1, 2] {
            tasks.spawn(self.writer(number).run(stop.clone()));
        }
        for (sidecar, name) in [(&self.recorder, "recorder"), (&self.reader, "reader")] {
            tasks.spawn(self.checker(sidecar, name).run(stop.clone()));
        }
        self.load = Some((stop, tasks));
        self.goes_on().await;
    }

    /// Waits until so much more was written, and so much more was allowed, that it goes on.
    pub async fn goes_on(&self) {
        let before = self.history.counts();
        let started = Instant::now();
        loop {
            let after = self.history.counts();
            if after.acknowledged >= before.acknowledged + 30
                && after.allowed >= before.allowed + 30
            {
                return;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "nothing goes on: {before:?}, then {after:?}; {}\n{}\n{}",
                self.failures.told(),
                self.recorder.said(),
                self.reader.said(),
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until so many more checks were answered.
    pub async fn answers(&self, count: u64) {
        let total = || {
            let counts = self.history.counts();
            counts.allowed + counts.denied
        };
        let before = total();
        eventually("checks are answered", || async { total() >= before + count }).await;
    }

    /// Ends what writes and asks.
    pub async fn rest(&mut self) {
        if let Some((stop, mut tasks)) = self.load.take() {
            stop.cancel();
            while let Some(ended) = tasks.join_next().await {
                ended.unwrap();
            }
        }
    }

    /// Records something about a user of its own, and waits for the acknowledgement.
    pub async fn say(&mut self, user: &str, did: Did, scope: &str) {
        self.say_at(user, did, scope, None).await;
    }

    /// The same, of this time.
    pub async fn say_at(&mut self, user: &str, did: Did, scope: &str, event_time: Option<i64>) {
        self.said += 1;
        let event = Sent {
            process: "said".into(),
            name: format!("said-{}", self.said),
            user: user.to_owned(),
            did,
            scope: scope.to_owned(),
            event_time,
            wall: wall(),
            at: now(),
        };
        let recorded = self.writer(0);
        let mut recorded = Writer { name: "said".into(), ..recorded };
        let within = tokio::time::timeout(PATIENCE, recorded.record(event)).await;
        within.unwrap_or_else(|_| panic!("not recorded: {}", self.failures.told()));
    }

    /// Waits until a sidecar denies everything, as it must soon after the bound; gives the cause.
    pub async fn denies_all(&self, sidecar: &Sidecar) -> String {
        let started = Instant::now();
        loop {
            let status = status(sidecar).await;
            if matches!(status.phase(), Phase::Stale | Phase::Invalid) {
                let answer = ask(sidecar, "US.nobody", "utility").await;
                // It may have become live again between the two.
                if answer.reason() == pb::Reason::Stale {
                    assert!(!answer.allowed && !status.cause.is_empty(), "{status:?}");
                    return status.cause;
                }
            }
            let took = started.elapsed();
            assert!(took < self.bound + LATE, "{:?} after {took:?}", status.phase());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a sidecar denies a user as opted out, no longer than the bound and some.
    pub async fn is_out(&self, sidecar: &Sidecar, user: &str, category: &str) {
        let started = Instant::now();
        loop {
            let answer = ask(sidecar, user, category).await;
            if matches!(answer.reason(), pb::Reason::OptedOut | pb::Reason::OptedOutAll) {
                return;
            }
            let took = started.elapsed();
            assert!(took < self.bound + LATE, "{user} {category} after {took:?}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a sidecar allows a user.
    pub async fn is_in(&self, sidecar: &Sidecar, user: &str, category: &str) {
        let what = format!("{user} {category} is allowed");
        eventually(&what, || async { ask(sidecar, user, category).await.allowed }).await;
    }

    /// Waits until both are live, as they must be soon after a fault is over.
    pub async fn live_again(&self) {
        for sidecar in self.sidecars() {
            live_within(sidecar, LIVE_AGAIN).await;
        }
    }

    /// Ends it all; whatever happened, the invariant holds, and the ledger has what it said it has.
    pub async fn end(mut self) -> Verdict {
        let verdict = self.end_with_losses().await;
        let lines = self.history.lines();
        let users: BTreeSet<String> = lines
            .iter()
            .filter_map(
                |line| if let Line::Sent(sent) = line { Some(sent.user.clone()) } else { None },
            )
            .collect();
        let records = RecordServiceClient::new(channel(&self.recorder.record));
        let listed = listed(&records, users).await.expect("the ledger lists them");
        let wrong = compare(&lines, &listed);
        assert!(wrong.is_empty(), "{wrong:#?}");
        verdict
    }

    /// The same, where the ledger may have lost some of it.
    pub async fn end_with_losses(&mut self) -> Verdict {
        self.live_again().await;
        if self.load.is_some() {
            self.goes_on().await;
        }
        self.rest().await;
        eventually("both sidecars are as far", || async {
            status(&self.recorder).await.revision == status(&self.reader).await.revision
        })
        .await;
        let verdict = check(&self.history.lines(), self.bound);
        if verdict.violated > 0 {
            let kept = self.keep_history();
            let said = [&self.recorder, &self.reader].map(Sidecar::said).join("\n\n");
            panic!("{verdict:#?}\n{said}\nthe history is in {}", kept.display());
        }
        verdict
    }

    /// Writes what happened to a file, for whoever looks for the cause.
    fn keep_history(&self) -> PathBuf {
        let port = self.redis.port();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("history-{port}"));
        let file = History::to_file(&path);
        self.history.lines().into_iter().for_each(|line| file.add(line));
        path
    }
}
