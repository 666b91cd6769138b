//! Writers and checkers whose clocks differ: `scripts/hammer --seconds N --seed S`.
//!
//! 64 writers, each with a clock of its own that is up to a minute off, record opt-ins, opt-outs and
//! messages of few users, while 64 checkers ask about them; on the embedded ledger, then on Redis.
//! An answer that allows is wrong where no event can have allowed it: see [`oracle`]. A test target
//! without a harness: cargo tells tests alone where the binary is. Run as a test, it plays shortly.

#![allow(dead_code, reason = "it needs a part of the tests' harness")]

#[path = "../long_runs/mod.rs"]
mod long_runs;
mod oracle;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use consentd::grpc::pb;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::long_runs::redis::Redis;
use self::long_runs::rng::{self, Rng};
use self::long_runs::sidecar::{
    BINARY, Sidecar, event, inbound, ledger_in, opt_in, opt_out, question, run,
};
use self::oracle::{Kind, Users};

const WRITERS: u64 = 64;
const CHECKERS: u64 = 64;

/// How far a writer's clock may be off, in milliseconds.
const MOST_OFF: i64 = 60_000;

/// How long it plays on each ledger where it is run as a test.
const AS_A_TEST: u64 = 4;

const BUSINESS: &str = "acme";
const CATEGORY: &str = "utility.orders";

/// What was asked for.
struct Wanted {
    seconds: u64,
    seed: u64,
    /// Another binary than the one that was built with this, such as an older one.
    binary: String,
}

fn main() -> ExitCode {
    long_runs::play("hammer", &["seconds", "seed", "binary"], |options| async move {
        let wanted = Wanted {
            seconds: options.number("seconds", 2 * AS_A_TEST),
            seed: options.number("seed", 1),
            binary: options.text("binary").unwrap_or(BINARY).to_owned(),
        };
        play(&wanted).await
    })
}

/// Plays on both ledgers, and says what came of it.
async fn play(wanted: &Wanted) -> ExitCode {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("file:{}", ledger_in(folder.path()).display());
    let redis = Redis::start(&["--appendonly", "yes"]);
    let server = format!("redis://{}", redis.address());
    let (code, printed, error) = run(&["init", "--ledger", &server, "--buckets", "64"]);
    assert_eq!(code, 0, "{printed}{error}");
    let mut wrong = 0;
    for (name, ledger) in [("file", &file), ("redis", &server)] {
        let flags = ["--max-staleness", "10m", "--record", "127.0.0.1:0"];
        let command = Command::new(&wanted.binary);
        let sidecar = Sidecar::try_start_by(command, ledger, &flags, &[]).expect("it starts");
        sidecar.wait_until_live().await;
        let seconds = Duration::from_secs(wanted.seconds.div_ceil(2));
        let told = hammer(&sidecar, wanted.seed, seconds).await;
        println!("hammer: {name}, seed {}, {seconds:?}: {told}", wanted.seed);
        assert!(told.events > 0 && told.checks > 0 && told.allowed > 0, "it did nothing");
        wrong += told.wrong;
    }
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What was counted.
struct Told {
    events: u64,
    refused: u64,
    checks: u64,
    allowed: u64,
    wrong: u64,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { events, refused, checks, allowed, wrong } = self;
        write!(
            f,
            "{events} events ({refused} failed), {checks} checks, {allowed} allowed, {wrong} wrong \
             allows"
        )
    }
}

#[derive(Default)]
struct Counts {
    events: AtomicU64,
    refused: AtomicU64,
    checks: AtomicU64,
    allowed: AtomicU64,
    wrong: AtomicU64,
}

async fn hammer(sidecar: &Sidecar, seed: u64, span: Duration) -> Told {
    let (users, counts) = (Arc::new(Users::default()), Arc::new(Counts::default()));
    let end = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for number in 0..WRITERS {
        let (users, counts, end) = (Arc::clone(&users), Arc::clone(&counts), end.clone());
        let records = sidecar.records().await;
        tasks.spawn(write(records, users, counts, end, Rng::new(seed * 1_000 + number)));
    }
    for number in 0..CHECKERS {
        let (users, counts, end) = (Arc::clone(&users), Arc::clone(&counts), end.clone());
        let checks = sidecar.checks().await;
        tasks.spawn(check(checks, users, counts, end, Rng::new(seed * 1_000 + 500 + number)));
    }
    tokio::time::sleep(span).await;
    end.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no writer and no checker panics");
    }
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Told {
        events: read(&counts.events),
        refused: read(&counts.refused),
        checks: read(&counts.checks),
        allowed: read(&counts.allowed),
        wrong: read(&counts.wrong),
    }
}

type Records = pb::record_service_client::RecordServiceClient<tonic::transport::Channel>;
type Checks = pb::consent_service_client::ConsentServiceClient<tonic::transport::Channel>;

/// Records events by a clock of its own, which is off.
async fn write(
    mut records: Records,
    users: Arc<Users>,
    counts: Arc<Counts>,
    end: CancellationToken,
    mut rng: Rng,
) {
    let range = usize::try_from(2 * MOST_OFF).unwrap();
    let off = i64::try_from(rng.below(range + 1)).unwrap() - MOST_OFF;
    while !end.is_cancelled() {
        let kind = rng.pick(&[
            Kind::OptIn(CATEGORY),
            Kind::OptIn(CATEGORY),
            Kind::OptIn("utility"),
            Kind::OptOut("*"),
            Kind::OptOut("utility"),
            Kind::OptOut(CATEGORY),
            Kind::Message,
            Kind::Stop,
        ]);
        // Some events are told as they happen, and some a little later.
        let late = if rng.percent(50) { 0 } else { i64::try_from(rng.below(2_000)).unwrap() };
        let claimed = wall() + off - late;
        let what = match kind {
            Kind::OptIn(scope) => opt_in(scope),
            Kind::OptOut(scope) => opt_out(scope),
            Kind::Message => inbound("hello"),
            Kind::Stop => inbound("STOP"),
        };
        let sent = users.send(&mut rng, kind, claimed);
        let mut request = event(&sent.user, BUSINESS, what);
        let time = UNIX_EPOCH + Duration::from_millis(u64::try_from(claimed).unwrap());
        request.event.as_mut().unwrap().event_time = Some(time.into());
        let answer = records.record_event(request).await;
        let count = if answer.is_ok() { &counts.events } else { &counts.refused };
        count.fetch_add(1, Ordering::Relaxed);
        if answer.is_ok() {
            users.acknowledge(&sent, wall());
        }
    }
}

/// Asks, and judges what is answered.
async fn check(
    mut checks: Checks,
    users: Arc<Users>,
    counts: Arc<Counts>,
    end: CancellationToken,
    mut rng: Rng,
) {
    while !end.is_cancelled() {
        let asked = users.ask(&mut rng);
        let form = rng.pick(&[pb::MessageForm::Template, pb::MessageForm::FreeForm]);
        let mut request = question(&asked.user, BUSINESS, CATEGORY);
        request.form = form.into();
        let Ok(answer) = checks.can_send(request).await else { continue };
        let answer = answer.into_inner();
        counts.checks.fetch_add(1, Ordering::Relaxed);
        if !answer.allowed {
            continue;
        }
        counts.allowed.fetch_add(1, Ordering::Relaxed);
        let is_reply = answer.reason == pb::Reason::ReplyAfterOptOut as i32;
        if let Some(why) = users.objection(&asked, CATEGORY, is_reply) {
            let known = counts.wrong.fetch_add(1, Ordering::Relaxed);
            if known < 5 {
                println!("wrong: {form:?} allowed by reason {}: {why}", answer.reason);
            }
        }
    }
}

fn wall() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}
