//! Announcements that are lost, doubled, late, or never come, and polls that do not.

use std::time::{Duration, Instant};

use consentd::grpc::pb::Reason;

use super::history::Did;
use super::proxy::{Faults, Flow, Pushes};
use super::stage::{EASY, Setup, Stage, ledger_at, live_within, metric, serve, wait_for_metric};
use crate::sidecar::{PATIENCE, eventually};

const STALE: i32 = Reason::Stale as i32;

fn easy() -> Setup<'static> {
    Setup { bound: EASY, ..Setup::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_announcement_lost_mid_stream_is_repaired_from_the_log() {
    let mut stage = Stage::set(easy()).await;
    stage.hammer().await;
    for _ in 0..3 {
        let before = metric(&stage.reader, "consent_gap_repairs_total").await;
        stage.reader_net.pushes(Pushes::DropNext(1));
        // What comes after it wakes the poll, which a bound this long would keep waiting.
        let started = Instant::now();
        wait_for_metric(&stage.reader, "consent_gap_repairs_total", before + 1.0).await;
        assert!(started.elapsed() < EASY / 3, "{:?}", started.elapsed());
        stage.goes_on().await;
    }
    assert!(stage.reader_net.counted().dropped >= 3);
    let verdict = stage.end().await;
    assert_eq!(verdict.denied_for(STALE), 0, "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_announcements_lost_hold_nothing_up() {
    let mut stage = Stage::set(easy()).await;
    stage.reader_net.pushes(Pushes::DropEvery(3));
    stage.hammer().await;
    for _ in 0..5 {
        stage.goes_on().await;
    }
    let verdict = stage.end().await;
    assert_eq!(verdict.denied_for(STALE), 0, "{verdict:#?}");
    // Each lost one is followed by one that shows the gap: nobody waits for the poll's turn.
    assert!(verdict.longest < EASY / 3, "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_announcement_lost_is_repaired_within_one_poll() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.say("US.last", Did::OptIn, "utility").await;
    stage.is_in(&stage.reader, "US.last", "utility").await;
    stage.reader_net.pushes(Pushes::DropNext(1));
    stage.say("US.last", Did::OptOut, "*").await;
    let started = Instant::now();
    stage.is_out(&stage.reader, "US.last", "utility").await;
    assert!(started.elapsed() < stage.bound, "{:?}", started.elapsed());
    assert_eq!(stage.reader_net.counted().dropped, 1);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicate_and_reordered_announcements_are_ignored() {
    let mut stage = Stage::set(easy()).await;
    stage.hammer().await;
    for pushes in [Pushes::Duplicate, Pushes::Swap] {
        stage.reader_net.pushes(pushes);
        for _ in 0..3 {
            stage.goes_on().await;
        }
    }
    stage.reader_net.heal();
    for cause in ["fork", "trimmed", "unreadable", "epoch"] {
        let resyncs = format!("consent_resyncs_total{{cause=\"{cause}\"}}");
        assert!(metric(&stage.reader, &resyncs).await < 1.0, "{cause}");
    }
    let verdict = stage.end().await;
    assert_eq!(verdict.denied_for(STALE), 0, "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pubsub_dead_and_poll_alive_stays_live_and_is_slower() {
    let mut stage = Stage::set(easy()).await;
    stage.hammer().await;
    // Half-open: the sidecar is told nothing, not even that the connection has ended.
    stage.reader_net.subscriptions(Faults::both(Flow::Swallow));
    for _ in 0..3 {
        stage.goes_on().await;
    }
    stage.say("US.slow", Did::OptIn, "utility").await;
    stage.is_in(&stage.reader, "US.slow", "utility").await;
    stage.say("US.slow", Did::OptOut, "*").await;
    let started = Instant::now();
    stage.is_out(&stage.reader, "US.slow", "utility").await;
    assert!(started.elapsed() < EASY, "{:?}", started.elapsed());
    // It finds out that nobody is there, subscribes anew, and is fast again.
    stage.reader_net.heal();
    let subscribed = metric(&stage.reader, SUBSCRIBED).await;
    wait_for_metric(&stage.reader, SUBSCRIBED, subscribed + 1.0).await;
    let verdict = stage.end().await;
    assert_eq!(verdict.denied_for(STALE), 0, "{verdict:#?}");
}

/// Subscriptions that stood.
const SUBSCRIBED: &str = "consent_subscriptions_total{outcome=\"subscribed\"}";

/// Subscriptions that were refused.
const REFUSED: &str = "consent_subscriptions_total{outcome=\"refused\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poll_dead_and_pubsub_alive_denies_after_the_bound() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.hammer().await;
    stage.reader_net.commands(Faults::both(Flow::Hold));
    let pushes = stage.reader_net.counted().pushes;
    stage.denies_all(&stage.reader).await;
    assert!(stage.reader_net.counted().pushes > pushes, "announcements came all the while");
    stage.reader_net.heal();
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resubscribing_refused_by_acl_is_counted_and_the_poll_carries() {
    let rules = ["nopass", "allcommands", "~*", "&*"];
    let mut stage = Stage::set(easy()).await;
    stage.redis.allow("follower", &rules);
    let user = ["--ledger-user", "follower", "--max-staleness", "6s"];
    let variables = [("CONSENTD_LEDGER_PASSWORD", "any")];
    stage.reader = serve(&ledger_at(&stage.reader_net.address()), &user, &variables);
    live_within(&stage.reader, PATIENCE).await;
    stage.hammer().await;
    // Redis ends the connections of those who listen to what they no longer may.
    stage.redis.command(&["ACL", "SETUSER", "follower", "resetchannels"]);
    wait_for_metric(&stage.reader, REFUSED, 1.0).await;
    for _ in 0..2 {
        stage.goes_on().await;
    }
    let subscribed = metric(&stage.reader, SUBSCRIBED).await;
    stage.redis.command(&["ACL", "SETUSER", "follower", "allchannels"]);
    wait_for_metric(&stage.reader, SUBSCRIBED, subscribed + 1.0).await;
    let verdict = stage.end().await;
    assert_eq!(verdict.denied_for(STALE), 0, "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_too_slow_is_closed_by_the_server_and_loses_nothing() {
    let mut stage = Stage::set(easy()).await;
    stage.hammer().await;
    stage.redis.set("client-output-buffer-limit", "pubsub 64kb 0 0");
    stage.reader_net.subscriptions(Faults { down: Flow::Hold, ..Faults::default() });
    // Nobody reads: the kernel's buffers fill first, then the server's own. What is no
    // announcement fills them as well.
    let ballast = "x".repeat(1 << 20);
    let closed = || stage.redis.log().contains("overcoming of output buffer limits");
    let started = Instant::now();
    while !closed() {
        assert!(started.elapsed() < PATIENCE, "{}", stage.redis.log());
        stage.redis.command(&["PUBLISH", "{consent:0}:ch", &ballast]);
    }
    let subscribed = metric(&stage.reader, SUBSCRIBED).await;
    stage.reader_net.heal();
    wait_for_metric(&stage.reader, SUBSCRIBED, subscribed + 1.0).await;
    let verdict = stage.end().await;
    assert_eq!(verdict.denied_for(STALE), 0, "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_and_dripping_network_delays_and_denies_and_never_more() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.hammer().await;
    for flow in [
        Flow::Delay(Duration::from_millis(120)),
        Flow::Drip(64, Duration::from_millis(20)),
        Flow::Delay(Duration::from_millis(1_500)),
    ] {
        stage.reader_net.all(Faults { down: flow, ..Faults::default() });
        stage.answers(200).await;
    }
    stage.reader_net.heal();
    for _ in 0..5 {
        stage.reader_net.reset();
        stage.answers(60).await;
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_announcement_only_wakes_the_poll() {
    let mut stage = Stage::set(easy()).await;
    stage.hammer().await;
    let epoch = stage.redis.command(&["HGET", "{consent:0}:meta", "epoch"]).bytes();
    let far = [&epoch[..], &u64::MAX.to_be_bytes(), &[7; 40]].concat();
    for junk in [&b""[..], b"x", &epoch, &far, &[0xff; 300]] {
        stage.redis.command(&[b"PUBLISH", &b"{consent:0}:ch"[..], junk]);
        stage.answers(20).await;
    }
    eventually("nothing was read anew", || async {
        metric(&stage.reader, "consent_resyncs_total{cause=\"unreadable\"}").await < 1.0
    })
    .await;
    let verdict = stage.end().await;
    assert_eq!(verdict.denied_for(STALE), 0, "{verdict:#?}");
}
