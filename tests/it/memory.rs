//! What a sidecar takes after many changes, beside one that starts with what came of them.

use std::time::Duration;

use consentd::grpc::pb;

use crate::faults::redis::Redis;
use crate::faults::stage::{init, ledger_at, live_within, metric, serve, status};
use crate::sidecar::{PATIENCE, ago, event, eventually, opt_in, opt_out};

const USERS: usize = 500;
/// How many topics a user may have: their opt-ins and opt-outs make ever-new profiles.
const TOPICS: usize = 40;
/// How many changes each user has.
const CHANGES: usize = 120;
/// How many changes are on their way at once.
const AT_ONCE: usize = 2_000;

/// What announcements that waited for a follower without a CPU may leave of the allocator's memory. A
/// table that never frees shared profiles took 441 MiB more after 300,000 changes; that
/// it takes at most 1.2 times a fresh one's is shown to the byte by `tests/allocations.rs`.
const BUFFERS: f64 = 8.0 * 1024.0 * 1024.0;

fn change(number: usize) -> pb::RecordEventsRequest {
    let (user, round) = (number % USERS, number / USERS);
    let scope = format!("utility.topic_{}", (user * 7 + round * (1 + user % 3)) % TOPICS);
    let mixed = (user * 31 + round).wrapping_mul(0x9e37_79b9) >> 7;
    let what = if mixed.is_multiple_of(2) { opt_in(&scope) } else { opt_out(&scope) };
    let request = event(&format!("US.{user}"), "acme", what);
    let mut said = request.event.unwrap();
    let before = Duration::from_secs((USERS * CHANGES - number) as u64);
    said.event_time = Some(ago(before));
    pb::RecordEventsRequest { sequence: number as u64, event: Some(said), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_after_60_000_changes_takes_what_one_takes_that_starts_then() {
    let redis = Redis::start(&[]);
    let ledger = ledger_at(&redis.address());
    init(&ledger, &["--buckets", "32"]);
    let recorder = serve(&ledger, &["--record", "127.0.0.1:0"], &[]);
    let follower = serve(&ledger, &[], &[]);
    live_within(&follower, PATIENCE).await;
    let mut records = recorder.records().await;
    for first in (0..USERS * CHANGES).step_by(AT_ONCE) {
        let some: Vec<_> = (first..first + AT_ONCE).map(change).collect();
        let answers = records.record_events(tokio_stream::iter(some)).await;
        let mut answers = answers.unwrap().into_inner();
        while let Some(answer) = answers.message().await.unwrap() {
            let result = answer.result.unwrap();
            let is_recorded = matches!(result, pb::record_events_response::Result::Response(_));
            assert!(is_recorded, "{result:?}");
        }
    }
    let end = status(&recorder).await.revision;
    assert!(end > (USERS * CHANGES / 3) as u64, "{end} changes");
    eventually("it has them", || async { status(&follower).await.revision >= end }).await;
    let fresh = serve(&ledger, &[], &[]);
    live_within(&fresh, PATIENCE).await;
    assert_eq!(status(&fresh).await.revision, end);
    let resident = "process_resident_memory_bytes";
    let (changed, fresh) = (metric(&follower, resident).await, metric(&fresh, resident).await);
    println!("{changed} bytes after {end} changes, {fresh} after a start");
    assert!(
        changed <= fresh * 1.2 + BUFFERS,
        "{changed} bytes after {end} changes, {fresh} after a start"
    );
}
