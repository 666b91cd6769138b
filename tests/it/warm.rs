//! A sidecar that begins with the table that it saved.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use consentd::grpc::pb::Reason;
use consentd::grpc::pb::get_status_response::Phase;

use crate::faults::redis::Redis;
use crate::faults::stage::{ask, init, ledger_at, live_within, metric, serve, status};
use crate::sidecar::{PATIENCE, Sidecar, event, eventually, inbound, opt_in, opt_out};

const DAMAGED: &str = "consent_snapshots_refused_total{cause=\"damaged\"}";
const FOREIGN: &str = "consent_snapshots_refused_total{cause=\"foreign\"}";
const BUSINESS: &str = crate::faults::load::BUSINESS;

/// How many events were recorded: each has an id of its own.
static RECORDED: AtomicU64 = AtomicU64::new(0);

struct Scene {
    redis: Redis,
    folder: tempfile::TempDir,
}

impl Scene {
    fn set() -> Self {
        let redis = Redis::start(&[]);
        init(&ledger_at(&redis.address()), &["--buckets", "32"]);
        Self { redis, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("table")
    }

    /// A sidecar that saves its table at the end of its drain alone, and records.
    fn start(&self) -> Sidecar {
        let path = self.path();
        let flags = ["--snapshot", path.to_str().unwrap(), "--snapshot-every", "never"];
        let flags = [&flags[..], &["--record", "127.0.0.1:0", "--max-staleness", "2s"]].concat();
        serve(&ledger_at(&self.redis.address()), &flags, &[])
    }

    async fn live(&self) -> Sidecar {
        let sidecar = self.start();
        live_within(&sidecar, PATIENCE).await;
        sidecar
    }

    /// One that saves nothing, and reads all of the ledger.
    async fn cold(&self) -> Sidecar {
        let flags = ["--record", "127.0.0.1:0"];
        let sidecar = serve(&ledger_at(&self.redis.address()), &flags, &[]);
        live_within(&sidecar, PATIENCE).await;
        sidecar
    }
}

fn user(number: u64) -> String {
    format!("US.{number}")
}

async fn record(sidecar: &Sidecar, user: &str, what: consentd::grpc::pb::consent_event::What) {
    let mut records = consentd::grpc::pb::record_service_client::RecordServiceClient::new(
        crate::faults::load::channel(&sidecar.record),
    );
    let mut request = event(user, BUSINESS, what);
    let number = RECORDED.fetch_add(1, Ordering::Relaxed);
    request.request_id = format!("warm-{number}");
    records.record_event(request).await.unwrap();
}

async fn people(sidecar: &Sidecar) {
    for number in 0..24 {
        record(sidecar, &user(number), opt_in("marketing")).await;
        match number % 4 {
            0 => record(sidecar, &user(number), inbound("hello")).await,
            1 => record(sidecar, &user(number), opt_out("*")).await,
            2 => record(sidecar, &user(number), opt_in("utility.news")).await,
            _ => {}
        }
    }
}

async fn drain(mut sidecar: Sidecar) {
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
}

async fn assert_same(one: &Sidecar, other: &Sidecar) {
    for number in 0..30 {
        for category in ["marketing", "utility.news", "service"] {
            let (one, other) = (
                ask(one, &user(number), category).await,
                ask(other, &user(number), category).await,
            );
            assert_eq!(
                (one.allowed, one.reason),
                (other.allowed, other.reason),
                "{number} {category}"
            );
        }
    }
}

async fn was_warm(sidecar: &Sidecar) -> bool {
    sidecar.said().contains("a saved table was read")
        && metric(sidecar, DAMAGED).await < 1.0
        && metric(sidecar, FOREIGN).await < 1.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_warm_and_has_what_changed_while_it_was_down() {
    let scene = Scene::set();
    let first = scene.live().await;
    people(&first).await;
    drain(first).await;
    let cold = scene.cold().await;
    record(&cold, &user(0), opt_out("*")).await;
    record(&cold, &user(1), opt_in("marketing")).await;
    record(&cold, &user(26), opt_in("marketing")).await;
    let warm = scene.live().await;
    assert!(was_warm(&warm).await, "{}", warm.said());
    assert_same(&warm, &cold).await;
    assert_eq!(ask(&warm, &user(0), "marketing").await.reason(), Reason::OptedOutAll);
    assert_eq!(status(&warm).await.revision, status(&cold).await.revision);
    // And goes on following.
    record(&cold, &user(2), opt_out("*")).await;
    eventually("a change comes", || async {
        ask(&warm, &user(2), "marketing").await.reason() == Reason::OptedOutAll
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_refused_and_the_ledger_read() {
    let scene = Scene::set();
    let first = scene.live().await;
    people(&first).await;
    drain(first).await;
    let whole = std::fs::read(scene.path()).unwrap();
    let cold = scene.cold().await;
    for place in [0, 11, 13, 30, 70, 95, whole.len() / 2, whole.len() - 60, whole.len() - 20] {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        std::fs::write(scene.path(), bytes).unwrap();
        let mut sidecar = scene.live().await;
        assert!((metric(&sidecar, DAMAGED).await - 1.0).abs() < 0.1, "{place}: {}", sidecar.said());
        assert_same(&sidecar, &cold).await;
        sidecar.kill();
    }
    std::fs::write(scene.path(), &whole[..whole.len() / 2]).unwrap();
    let sidecar = scene.live().await;
    assert!((metric(&sidecar, DAMAGED).await - 1.0).abs() < 0.1);
    assert_same(&sidecar, &cold).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ledgers_table_is_refused() {
    let scene = Scene::set();
    let first = scene.live().await;
    people(&first).await;
    drain(first).await;
    let other = Scene::set();
    std::fs::copy(scene.path(), other.path()).unwrap();
    let sidecar = other.live().await;
    assert!((metric(&sidecar, FOREIGN).await - 1.0).abs() < 0.1, "{}", sidecar.said());
    for number in 0..24 {
        assert_eq!(ask(&sidecar, &user(number), "marketing").await.reason(), Reason::NoConsent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_ahead_of_its_ledger_shows_a_fork_and_denials_stay() {
    let mut scene = Scene::set();
    let first = scene.live().await;
    people(&first).await;
    let old = scene.redis.dump();
    record(&first, &user(3), opt_out("*")).await;
    drain(first).await;
    scene.redis.restart_from(Some(&old));
    let warm = scene.live().await;
    assert!(metric(&warm, "consent_resyncs_total{cause=\"fork\"}").await >= 1.0, "{}", warm.said());
    assert!(!ask(&warm, &user(3), "marketing").await.allowed);
    assert!(ask(&warm, &user(2), "marketing").await.allowed, "what was not lost stands");
    assert!((metric(&warm, "consent_remembered_pairs").await - 1.0).abs() < 0.1);
    // It is not in a file: the one of before, which shows the loss again, is kept.
    let kept = std::fs::read(scene.path()).unwrap();
    drain(warm).await;
    assert_eq!(std::fs::read(scene.path()).unwrap(), kept);
    let again = scene.live().await;
    assert!(!ask(&again, &user(3), "marketing").await.allowed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_table_is_not_saved() {
    let scene = Scene::set();
    let first = scene.live().await;
    people(&first).await;
    drain(first).await;
    let before = std::fs::read(scene.path()).unwrap();
    let second = scene.live().await;
    record(&second, &user(3), opt_out("*")).await;
    scene.redis.stop();
    eventually("it is stale", || async { status(&second).await.phase() == Phase::Stale }).await;
    drain(second).await;
    assert_eq!(std::fs::read(scene.path()).unwrap(), before);
    scene.redis.go_on();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_trimmed_past_the_file_is_read_whole() {
    let scene = Scene::set();
    let first = scene.live().await;
    people(&first).await;
    drain(first).await;
    let cold = scene.cold().await;
    record(&cold, &user(0), opt_out("*")).await;
    record(&cold, &user(1), opt_in("marketing")).await;
    scene.redis.command(&["XTRIM", "{consent:0}:log", "MAXLEN", "0"]);
    let sidecar = scene.live().await;
    let trimmed = metric(&sidecar, "consent_snapshots_refused_total{cause=\"trimmed\"}").await;
    assert!((trimmed - 1.0).abs() < 0.1, "{}", sidecar.said());
    assert_eq!(ask(&sidecar, &user(0), "marketing").await.reason(), Reason::OptedOutAll);
    // Opted out of all in the file, and in to marketing since: nothing shows that this was lost.
    assert_eq!(ask(&sidecar, &user(1), "marketing").await.reason(), Reason::OptedIn);
    assert_same(&sidecar, &cold).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_saved_now_and_then_beside_writers_and_a_killed_sidecar_begins_with_that() {
    let scene = Scene::set();
    let path: &Path = &scene.path();
    let flags = ["--snapshot", path.to_str().unwrap(), "--snapshot-every", "100ms"];
    let flags = [&flags[..], &["--record", "127.0.0.1:0"]].concat();
    let mut first = serve(&ledger_at(&scene.redis.address()), &flags, &[]);
    live_within(&first, PATIENCE).await;
    people(&first).await;
    let saved = "consent_snapshots_total{outcome=\"saved\"}";
    eventually("it is saved", || async { metric(&first, saved).await >= 3.0 }).await;
    first.kill();
    let cold = scene.cold().await;
    let warm = scene.live().await;
    assert!(was_warm(&warm).await, "{}", warm.said());
    assert_same(&warm, &cold).await;
}
