//! Ledgers in which something is not as it should be: half-made, unreadable, changed by others.

use std::time::Duration;

use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::get_status_response::Phase;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use consentd::grpc::pb::{self, Reason};
use sha1::{Digest as _, Sha1};
use tonic::Code;

use super::history::Did;
use super::load::{BUSINESS, channel};
use super::proxy::{Faults, Flow};
use super::redis::Redis;
use super::stage::{
    EASY, Setup, Stage, ask, ledger_at, live_within, metric, serve, status, wait_for_metric,
};
use crate::sidecar::{PATIENCE, ago, event, eventually, inbound, opt_in};

const META: &str = "{consent:0}:meta";
const LOG: &str = "{consent:0}:log";

/// How many buckets the stage's ledgers have.
const BUCKETS: usize = 32;

fn bucket(number: usize) -> String {
    format!("{{consent:0}}:b:{number}")
}

/// The one pair that a ledger has: its bucket, its field there, and its value.
fn only_pair(redis: &Redis) -> (String, Vec<u8>, Vec<u8>) {
    let pairs = (0..BUCKETS).flat_map(|number| {
        let fields = redis.command(&["HGETALL", &bucket(number)]).parts();
        let pairs: Vec<_> =
            fields.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        pairs.into_iter().map(move |(field, value)| (bucket(number), field.bytes(), value.bytes()))
    });
    let mut pairs: Vec<_> = pairs.filter(|(_, field, _)| field.len() == 16).collect();
    assert_eq!(pairs.len(), 1, "one pair");
    pairs.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_cut_short_after_xadd_is_rolled_forward_by_the_next_append() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.say("US.cut", Did::OptIn, "marketing").await;
    for sidecar in stage.sidecars() {
        stage.is_in(sidecar, "US.cut", "marketing").await;
    }
    // Nobody sees the append whole: it is made, and all but its entry in the log is taken back.
    stage.nets().into_iter().for_each(|net| net.all(Faults::both(Flow::Hold)));
    let keys: Vec<String> = (0..BUCKETS).map(bucket).chain([META.to_owned()]).collect();
    let dumps: Vec<_> =
        keys.iter().map(|key| stage.redis.command(&["DUMP", key]).bytes()).collect();
    let other = serve(&ledger_at(&stage.redis.address()), &["--record", "127.0.0.1:0"], &[]);
    live_within(&other, PATIENCE).await;
    let mut records = RecordServiceClient::new(channel(&other.record));
    let request = event("US.cut", "acme", crate::sidecar::opt_out("*"));
    let cut = records.record_event(request).await.unwrap().into_inner().revision;
    drop(other);
    for (key, dump) in keys.iter().zip(&dumps) {
        let words: [&[u8]; 5] = [b"RESTORE", key.as_bytes(), b"0", dump, b"REPLACE"];
        stage.redis.command(&words);
    }
    let rev = || stage.redis.command(&["HGET", META, "rev"]).text().parse::<u64>().unwrap();
    assert_eq!(rev() + 1, cut, "the log is ahead");
    stage.nets().into_iter().for_each(super::proxy::Proxy::heal);
    stage.live_again().await;
    stage.say("US.another", Did::OptIn, "utility").await;
    for sidecar in stage.sidecars() {
        stage.is_out(sidecar, "US.cut", "marketing").await;
        stage.is_in(sidecar, "US.another", "utility").await;
        assert!(metric(sidecar, "consent_forks_total").await < 1.0);
    }
    stage.hammer().await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_fails_on_a_key_of_the_wrong_type_does_no_harm() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.say("US.typed", Did::OptIn, "marketing").await;
    let histories: Vec<String> = (0..BUCKETS).map(|n| format!("{{consent:0}}:h:{n}")).collect();
    for key in &histories {
        stage.redis.command(&["RENAME", key, &format!("saved:{key}")]);
        stage.redis.command(&["SET", key, "not a hash"]);
    }
    let mut records = RecordServiceClient::new(channel(&stage.recorder.record));
    let mut request = event("US.typed", "acme", opt_in("utility"));
    request.request_id = "in".into();
    records.record_event(request).await.expect_err("it cannot be recorded");
    assert!(!ask(&stage.reader, "US.typed", "utility").await.allowed);
    for key in &histories {
        stage.redis.command(&["RENAME", &format!("saved:{key}"), key]);
    }
    stage.say("US.typed", Did::OptOut, "*").await;
    stage.is_out(&stage.reader, "US.typed", "marketing").await;
    stage.hammer().await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_a_stop_in_between_and_the_retry_still_denies() {
    let mut stage = Stage::set(Setup { bound: EASY, ..Setup::default() }).await;
    let other = serve(&ledger_at(&stage.redis.address()), &["--record", "127.0.0.1:0"], &[]);
    live_within(&other, PATIENCE).await;
    // Without a time of its own: what a retry must not be given is a later one than the first.
    for (user, event_time) in
        [("US.untimed", None), ("US.timed", Some(ago(Duration::from_secs(1))))]
    {
        let rev = || stage.redis.command(&["HGET", META, "rev"]).text().parse::<u64>().unwrap();
        let before = rev();
        let late = Flow::Delay(Duration::from_millis(300));
        stage.recorder_net.commands(Faults { down: late, ..Faults::default() });
        let mut request = event(user, "acme", opt_in("marketing"));
        request.request_id = "in".into();
        request.event.as_mut().unwrap().event_time = event_time;
        let records = RecordServiceClient::new(channel(&stage.recorder.record));
        let first = tokio::spawn({
            let (mut records, request) = (records.clone(), request.clone());
            async move { records.record_event(request).await }
        });
        eventually("it is in the ledger", || async { rev() > before }).await;
        // Its answer is on its way, and is lost.
        stage.recorder_net.refuse(true);
        stage.recorder_net.reset();
        let mut others = RecordServiceClient::new(channel(&other.record));
        let stop = event(user, "acme", crate::sidecar::opt_out("*"));
        others.record_event(stop).await.unwrap();
        stage.recorder_net.heal();
        // Whether or not it tries again by itself, the client does.
        drop(tokio::time::timeout(PATIENCE, first).await.expect("it gives up"));
        live_within(&stage.recorder, PATIENCE).await;
        eventually("the retry is answered", || {
            let (mut records, request) = (records.clone(), request.clone());
            async move { records.record_event(request).await.is_ok() }
        })
        .await;
        for sidecar in stage.sidecars() {
            stage.is_out(sidecar, user, "marketing").await;
        }
    }
    stage.hammer().await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_recorder_refuses_to_rewrite_a_newer_record() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.say("US.newer", Did::OptIn, "marketing").await;
    let (bucket, field, mut value) = only_pair(&stage.redis);
    // Of a field that comes twice the last one counts: the record's format is 99 now.
    value.extend_from_slice(&[0x08, 99]);
    let words: [&[u8]; 4] = [b"HSET", bucket.as_bytes(), &field, &value];
    stage.redis.command(&words);
    let mut records = RecordServiceClient::new(channel(&stage.recorder.record));
    for what in [opt_in("utility"), crate::sidecar::opt_out("*")] {
        let mut request = event("US.newer", "acme", what);
        request.request_id = "again".into();
        let refused = records.record_event(request).await.expect_err("it would lose what it has");
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("upgrade"), "{refused}");
    }
    assert_eq!(only_pair(&stage.redis).2, value, "it is as it was");
    // Who reads it without knowing what it says denies that pair, and no other.
    stage.say("US.other", Did::OptIn, "marketing").await;
    let newcomer = serve(&ledger_at(&stage.redis.address()), &[], &[]);
    live_within(&newcomer, PATIENCE).await;
    assert!(!ask(&newcomer, "US.newer", "marketing").await.allowed);
    stage.is_in(&newcomer, "US.other", "marketing").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_entry_of_the_log_makes_the_table_invalid_and_is_never_skipped() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.say("US.before", Did::OptIn, "utility").await;
    stage.is_in(&stage.reader, "US.before", "utility").await;
    let known = stage.redis.command(&["HMGET", META, "rev", "head"]).parts();
    let rev = known[0].text().parse::<u64>().unwrap() + 1;
    // It continues the log as it should, and says nothing that anybody can read.
    let body = b"\xff\xff\xff not a log entry";
    let head = Sha1::new().chain_update(known[1].clone().bytes()).chain_update(rev.to_be_bytes());
    let head = head.chain_update(body).finalize();
    let (id, number) = (format!("{rev}-0"), rev.to_string());
    let place = [0; 13];
    let entry: [&[u8]; 9] =
        [b"XADD", LOG.as_bytes(), id.as_bytes(), b"p", &place, b"b", body, b"h", &head];
    stage.redis.command(&entry);
    let meta: [&[u8]; 6] = [b"HSET", META.as_bytes(), b"rev", number.as_bytes(), b"head", &head];
    stage.redis.command(&meta);
    for sidecar in stage.sidecars() {
        eventually("it is invalid", || async { status(sidecar).await.phase() == Phase::Invalid })
            .await;
    }
    // What it held of a user is not told, for it may lack an opt-out.
    let mut checks = ConsentServiceClient::new(channel(&stage.reader.grpc));
    let pair = pb::GetConsentRequest { user_id: "US.before".into(), business_id: BUSINESS.into() };
    let error = checks.get_consent(pair).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    assert!(error.message().contains("known to be wrong"), "{error:?}");
    // It stays so while polls go on.
    let polled = stage.reader_net.counted().commands;
    eventually("it polls", || async { stage.reader_net.counted().commands > polled + 5 }).await;
    for sidecar in stage.sidecars() {
        assert_eq!(status(sidecar).await.phase(), Phase::Invalid);
        assert_eq!(ask(sidecar, "US.before", "utility").await.reason(), Reason::Stale);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_out_of_band_hset_is_found_by_the_scrub() {
    const MISMATCHES: &str = "consent_scrub_mismatches_total";
    let flags = ["--scrub-every", "20ms"];
    let mut stage = Stage::set(Setup { flags: &flags, ..Setup::default() }).await;
    stage.say("US.band", Did::OptIn, "marketing").await;
    let (bucket, field, agreed) = only_pair(&stage.redis);
    stage.say("US.band", Did::OptOut, "*").await;
    let (_, _, left) = only_pair(&stage.redis);
    stage.is_out(&stage.reader, "US.band", "marketing").await;
    let set = |redis: &Redis, version: &[u8], record: &[u8]| {
        let value = [&version[..16], &record[16..]].concat();
        let words: [&[u8]; 4] = [b"HSET", bucket.as_bytes(), &field, &value];
        redis.command(&words);
    };
    // Somebody turns an opt-out into an opt-in behind the ledger's back.
    set(&stage.redis, &left, &agreed);
    wait_for_metric(&stage.reader, MISMATCHES, 1.0).await;
    assert!(!ask(&stage.reader, "US.band", "marketing").await.allowed, "a record only grows");
    set(&stage.redis, &left, &left);
    // An older record of the same scope is believed no more than one that lacks a scope.
    stage.say("US.band", Did::OptIn, "utility").await;
    stage.is_in(&stage.reader, "US.band", "utility").await;
    let (_, _, agreed) = only_pair(&stage.redis);
    stage.say("US.band", Did::OptOut, "utility").await;
    let (_, _, left) = only_pair(&stage.redis);
    stage.is_out(&stage.reader, "US.band", "utility").await;
    let before = metric(&stage.reader, MISMATCHES).await;
    set(&stage.redis, &left, &agreed);
    wait_for_metric(&stage.reader, MISMATCHES, before + 1.0).await;
    assert!(!ask(&stage.reader, "US.band", "utility").await.allowed, "the log has no such event");
    set(&stage.redis, &left, &left);
    // And an opt-in into an opt-out, which is believed at once.
    stage.say("US.band", Did::OptIn, "marketing").await;
    stage.is_in(&stage.reader, "US.band", "marketing").await;
    let (_, _, again) = only_pair(&stage.redis);
    let before = metric(&stage.reader, MISMATCHES).await;
    let value = [&again[..16], &left[16..]].concat();
    let words: [&[u8]; 4] = [b"HSET", bucket.as_bytes(), &field, &value];
    stage.redis.command(&words);
    wait_for_metric(&stage.reader, MISMATCHES, before + 1.0).await;
    stage.is_out(&stage.reader, "US.band", "marketing").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_steps_is_told_and_the_denying_clock_decides() {
    let stage = Stage::set(Setup::default()).await;
    let (hour, half) = (Duration::from_hours(1), Duration::from_mins(30));
    let mut records = RecordServiceClient::new(channel(&stage.recorder.record));
    for (step, offset) in [(3_600, 3_600.0), (-3_600, -3_600.0), (0, 0.0)] {
        stage.nets().into_iter().for_each(|net| net.shift_clock(step));
        for sidecar in stage.sidecars() {
            eventually("the offset is told", || async {
                let told = metric(sidecar, "consent_clock_offset_seconds").await;
                (told - offset).abs() < 30.0
            })
            .await;
            live_within(sidecar, PATIENCE).await;
            eventually("there is an alarm", || async { sidecar.said().contains("clock") }).await;
        }
        // By the clock that is behind, half an hour before the window's end; past it by the other.
        let behind = if step < 0 { hour } else { Duration::ZERO };
        let edge = half * 47 + behind;
        for (user, since) in [("US.edge", edge), ("US.well", half * 37 + behind)] {
            let mut request = event(&format!("{user}{step}"), "acme", inbound("hello"));
            request.event.as_mut().unwrap().event_time = Some(ago(since));
            records.record_event(request).await.unwrap();
        }
        for sidecar in stage.sidecars() {
            stage.is_in(sidecar, &format!("US.well{step}"), "utility").await;
            let answer = ask(sidecar, &format!("US.edge{step}"), "utility").await;
            assert_eq!(answer.allowed, step == 0, "{step}: {answer:?}");
        }
    }
}

/// The recorder's and the ledger's clock differ by 30 s, as in a Redis that was never synchronised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_ahead_of_a_late_redis_clock_is_not_undone_by_an_older_opt_in() {
    let stage = Stage::set(Setup::default()).await;
    stage.nets().into_iter().for_each(|net| net.shift_clock(-30));
    for sidecar in stage.sidecars() {
        eventually("the offset is told where people look", || async {
            let warnings = status(sidecar).await.warnings;
            let told = |text: &str| text.contains("behind this machine's") && text.contains("NTP");
            warnings.iter().any(|warning| told(warning)) && told(&sidecar.said())
        })
        .await;
    }
    let mut records = RecordServiceClient::new(channel(&stage.recorder.record));
    let (stop, older) = (inbound("STOP"), opt_in("utility"));
    for (what, since) in [(stop, 0), (older, 1)] {
        let mut request = event("US.late", "acme", what);
        request.event.as_mut().unwrap().event_time = Some(ago(Duration::from_secs(since)));
        records.record_event(request).await.unwrap();
        for sidecar in stage.sidecars() {
            stage.is_out(sidecar, "US.late", "utility").await;
        }
    }
}
