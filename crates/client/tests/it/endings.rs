//! Sidecars that are absent, killed, drained, old, stale or slow: nothing is lost that could be had, and nothing is
//! allowed by mistake.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use consentd_client::{Client, Event};
use tonic::Code;

use crate::fixture::{
    Load, PATIENCE, binary, eventually, patient, prepare, question, sidecar, signal,
};

#[tokio::test]
async fn an_absent_sidecar_denies_before_the_deadline() {
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [nowhere.to_string(), "unix:/no/such/socket".into(), "unix:@no-such".into()] {
        for coalesce in [true, false] {
            // After pauses of 315 ms in all, that of 320 ms would end after the deadline.
            let deadline = Duration::from_millis(600);
            let client = Client::builder().address(&address).coalesce(coalesce);
            let client = client.deadline(deadline).build().unwrap();
            // Who is held up on a busy machine is late instead, so all are asked again until nobody is.
            eventually("each says that there is nobody, before the deadline", || async {
                let started = Instant::now();
                let asking = (0..100).map(|_| {
                    let client = client.clone();
                    tokio::spawn(async move { client.may_send(question("u")).await })
                });
                let mut codes = Vec::new();
                for asked in asking.collect::<Vec<_>>() {
                    let verdict = asked.await.unwrap();
                    assert!(!verdict.is_allowed() && verdict.is_unavailable(), "{verdict}");
                    codes.push(verdict.code());
                }
                codes == [Some(Code::Unavailable); 100] && started.elapsed() < deadline
            })
            .await;
            eventually("an error says that there is nobody", || async {
                let error = client.check(question("u").deadline(deadline)).await.unwrap_err();
                error.code() == Code::Unavailable
            })
            .await;
            eventually("the cause says that there is nobody", || async {
                let ready = client.ready(Duration::from_millis(100)).await.unwrap_err();
                ready.cause().contains("onnect") || ready.cause().contains("o such")
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_sidecar_that_comes_later_is_found() {
    let mut late = sidecar(&[]).await;
    let address = late.address().to_owned();
    late.kill();
    let client = patient(&address);
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.may_send(question("u")).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    late.restart().await.unwrap();
    // The sidecar may have answered that it loads its table.
    let verdict = asked.await.unwrap();
    let is_loading = verdict.cause().contains("has not been loaded yet");
    assert!(is_loading || verdict.reason() == "NO_CONSENT", "{verdict}");
    assert_eq!(client.may_send(question("u")).await.reason(), "NO_CONSENT");
}

#[tokio::test]
async fn a_kill_in_the_middle_of_batches_allows_nothing_by_mistake() {
    for coalesce in [true, false] {
        let mut killed = sidecar(&[]).await;
        prepare(&patient(killed.address())).await;
        let client =
            Client::builder().address(killed.address()).coalesce(coalesce).build().unwrap();
        let load = Load::begin(&client, 64);
        for _ in 0..3 {
            load.asked(200).await;
            killed.kill();
            load.asked(200).await;
            killed.restart().await.unwrap();
        }
        load.asked(200).await;
        let unexpected = load.end().await;
        assert!(!unexpected.is_empty(), "it was absent for a while");
        for verdict in unexpected {
            assert!(verdict.is_unavailable() && !verdict.is_allowed(), "{verdict}");
        }
    }
}

#[tokio::test]
async fn a_drain_under_load_loses_no_call() {
    for coalesce in [true, false] {
        let mut drained = sidecar(&[]).await;
        let client =
            Client::builder().address(drained.address()).coalesce(coalesce).deadline(PATIENCE);
        let client = client.build().unwrap();
        prepare(&client).await;
        let load = Load::begin(&client, 64);
        for _ in 0..3 {
            load.asked(500).await;
            signal(&drained, "TERM");
            let (ended, back) = tokio::task::spawn_blocking(move || {
                let ended = drained.wait();
                (ended, drained)
            })
            .await
            .unwrap();
            ended.unwrap();
            drained = back;
            drained.restart().await.unwrap();
        }
        load.asked(500).await;
        let mut unexpected = load.end().await;
        // The next sidecar says that it loads its table, which is an answer.
        unexpected.retain(|verdict| !verdict.cause().contains("has not been loaded yet"));
        assert_eq!(unexpected, []);
    }
}

#[tokio::test]
async fn an_age_of_one_second_under_load_loses_no_call() {
    for coalesce in [true, false] {
        let young = sidecar(&["--max-connection-age", "1s"]).await;
        let client =
            Client::builder().address(young.address()).coalesce(coalesce).deadline(PATIENCE);
        let client = client.build().unwrap();
        prepare(&client).await;
        let load = Load::begin(&client, 64);
        tokio::time::sleep(Duration::from_secs(5)).await;
        load.asked(500).await;
        assert_eq!(load.end().await, []);
    }
}

#[tokio::test]
async fn a_deadline_that_has_passed_denies() {
    let sidecar = sidecar(&[]).await;
    let client = patient(sidecar.address());
    client.ready(PATIENCE).await.unwrap();
    for deadline in [Duration::ZERO, Duration::from_nanos(1)] {
        let verdict = client.may_send(question("u").min_revision(9).deadline(deadline)).await;
        assert_eq!(verdict.code(), Some(Code::DeadlineExceeded), "{verdict}");
    }
    let forever = question("u").deadline(Duration::MAX);
    assert_eq!(client.may_send(forever).await.reason(), "NO_CONSENT");
}

/// A Redis of Debian's redis-server, for a ledger that can be taken away.
struct Redis(Child, u16);

impl Redis {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let port_text = port.to_string();
        let flags = ["--port", &port_text, "--save", "", "--appendonly", "no", "--dir", "/tmp"];
        let redis = Command::new("redis-server").args(flags).stdout(Stdio::piped()).spawn();
        let mut redis = redis.expect("redis-server: apt-get install redis-server");
        let lines = BufReader::new(redis.stdout.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok);
        assert!(lines.any(|line| line.contains("Ready to accept")), "Redis does not start");
        // What it says later is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self(redis, port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_stale_table_denies() {
    let redis = Redis::start();
    let ledger = format!("redis://127.0.0.1:{}", redis.1);
    let made = Command::new(binary()).args(["init", "--ledger", &ledger]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // Where the ledger is shared, a sidecar records on a listener of its own.
    let record = format!("unix:@consentd-test-{}", redis.1);
    let flags = ["--ledger", &ledger, "--max-staleness", "1s", "--record", &record];
    let sidecar = sidecar(&flags).await;
    let client = patient(sidecar.address());
    prepare(&patient(&record)).await;
    // Where the sidecar does not come to read the ledger for a second, it says STALE meanwhile.
    eventually("it allows", || async { client.may_send(question("opted-in")).await.is_allowed() })
        .await;
    drop(redis);
    eventually("it is stale", || async {
        client.may_send(question("opted-in")).await.reason() == "STALE"
    })
    .await;
    let verdict = client.may_send(question("opted-in")).await;
    assert!(!verdict.is_allowed() && !verdict.is_unavailable(), "{verdict}");
    assert!(verdict.staleness().is_some_and(|staleness| staleness > Duration::ZERO));
}

#[tokio::test]
async fn an_event_that_is_recorded_over_a_restart_counts_once() {
    let mut restarted = sidecar(&[]).await;
    let client = patient(restarted.address());
    client.ready(PATIENCE).await.unwrap();
    let event = Event::inbound_message("15550123456", "acme", "STOP").request_id("message-1");
    restarted.kill();
    let recording = tokio::spawn({
        let (client, event) = (client.clone(), event.clone());
        async move { client.record_within(event, PATIENCE).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    restarted.restart().await.unwrap();
    let first = recording.await.unwrap().unwrap();
    assert!(first.is_applied() && first.opted_out_scope() == "*");
    restarted.restart().await.unwrap();
    let again = client.record_within(event, PATIENCE).await.unwrap();
    assert_eq!(again.revision(), first.revision(), "the same answer");
    let refused = client.record(Event::opt_out("15550123456", "acme", "everything")).await;
    let refused = refused.unwrap_err();
    assert!(refused.is_invalid() && refused.field() == "event.opt_out.scope", "{refused}");
}

#[tokio::test]
async fn a_recording_that_nobody_takes_is_an_error() {
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = patient(&nowhere.to_string());
    let event = Event::opt_out("u", "acme", "*");
    // Where the first attempt does not come to its end within 200 ms, there is nothing to say of it.
    eventually("the cause names the last attempt", || async {
        let recording = client.record_within(event.clone(), Duration::from_millis(200));
        let error = recording.await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        error.cause().contains("last attempt")
    })
    .await;
}

#[tokio::test]
async fn clients_that_are_dropped_leave_nothing_behind() {
    let sidecar = sidecar(&[]).await;
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let make = || async {
        let client = patient(sidecar.address());
        assert_eq!(client.may_send(question("u")).await.reason(), "NO_CONSENT");
        let asking = client.may_send(question("u"));
        let _ = tokio::time::timeout(Duration::ZERO, asking).await;
    };
    make().await;
    let before = files();
    for _ in 0..1_000 {
        make().await;
    }
    eventually("connections are closed", || async { files() < before + 20 }).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    eventually("tasks have ended", || async { tasks() < 20 }).await;
}
