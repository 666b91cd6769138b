//! What is scraped while the sidecar works: linted by promtool, and true.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use consentd::grpc::pb;
use consentd::metrics::{
    BYTE_POOLS, DECISION_DROP_CAUSES, LIMITS, RECORD_OUTCOMES, RELOAD_OUTCOMES, RESYNC_CAUSES,
    SKIP_CAUSES, SNAPSHOT_OUTCOMES, SNAPSHOT_REFUSAL_CAUSES, SPAN_OUTCOMES, SUBSCRIPTION_OUTCOMES,
    UPDATE_KINDS, UPDATE_OUTCOMES, WATCH_RESET_CAUSES, WEBHOOK_CODES,
};
use consentd_core::decision::Reason;

use crate::sidecar::{Sidecar, event, eventually, inbound, opt_in, opt_out, question};

/// Checks, batches, recordings and streams of each task.
const ROUNDS: u32 = 60;
/// Questions of a batch.
const BATCH: u32 = 50;
/// Who must be in no label.
const BUSINESS: &str = "secretive-business";

/// Fails where promtool has anything to say.
fn lint(text: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed: apt-get install -y prometheus, or scripts/test");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
}

/// A scrape: each family's type, and each sample, by its name and labels.
struct Scrape {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    async fn of(sidecar: &Sidecar) -> Self {
        let (status, text) = sidecar.get("/metrics").await;
        assert_eq!(status, 200, "{text}");
        lint(&text);
        let (mut types, mut samples) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# TYPE ") {
                let (name, kind) = comment.split_once(' ').unwrap();
                types.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                samples.insert(sample.to_owned(), value.parse().unwrap());
            }
        }
        Self { types, samples }
    }

    /// The sum of a family's samples.
    fn sum(&self, family: &str) -> f64 {
        let of_family = |sample: &&String| sample.split('{').next() == Some(family);
        self.samples.iter().filter(|(sample, _)| of_family(sample)).map(|(_, value)| value).sum()
    }

    fn kind(&self, sample: &str) -> &str {
        let name = sample.split('{').next().unwrap();
        let histogram = || {
            let ends = ["_bucket", "_sum", "_count"];
            self.types.get(ends.iter().find_map(|end| name.strip_suffix(end))?)
        };
        self.types.get(name).or_else(histogram).unwrap_or_else(|| panic!("{sample} has no type"))
    }

    /// What counts must not be less than it was.
    fn assert_follows(&self, before: &Self) {
        for (sample, was) in &before.samples {
            if self.kind(sample) != "gauge" {
                let is = self.samples[sample];
                assert!(is >= *was, "{sample} was {was} and is {is}");
            }
        }
    }

    fn assert_histograms_add_up(&self) {
        for (family, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut buckets: Vec<(f64, f64)> = Vec::new();
            for (sample, value) in &self.samples {
                let start = format!("{family}_bucket{{le=\"");
                if let Some(bound) = sample.strip_prefix(&start) {
                    buckets.push((bound.trim_end_matches("\"}").parse().unwrap(), *value));
                }
            }
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.windows(2).all(|two| two[0].1 <= two[1].1), "{family}: {buckets:?}");
            let (bound, all) = *buckets.last().unwrap();
            let count = self.samples[&format!("{family}_count")];
            assert!(bound.is_infinite() && all.total_cmp(&count).is_eq(), "{family}: {buckets:?}");
            let sum = self.samples[&format!("{family}_sum")];
            assert!(sum >= 0.0 && (count > 0.0 || sum <= 0.0), "{family}: {count} take {sum}");
        }
    }

    /// Nobody's name can be in a label, because each has its few values.
    fn assert_labels_are_known(&self) {
        let reasons = Reason::ALL.map(Reason::name);
        let causes = [
            &RESYNC_CAUSES[..],
            &WATCH_RESET_CAUSES,
            &SNAPSHOT_REFUSAL_CAUSES,
            &DECISION_DROP_CAUSES,
            &SKIP_CAUSES,
        ]
        .concat();
        let codes = WEBHOOK_CODES.map(|code| code.to_string());
        let codes = codes.each_ref().map(String::as_str);
        let known: BTreeMap<&str, &[&str]> = BTreeMap::from([
            ("allowed", ["true", "false"].as_slice()),
            ("reason", reasons.as_slice()),
            ("partition", ["0"].as_slice()),
            ("version", [env!("CARGO_PKG_VERSION")].as_slice()),
            ("cause", causes.as_slice()),
            ("limit", LIMITS.as_slice()),
            // Those of calls are two of these.
            ("pool", BYTE_POOLS.as_slice()),
            ("kind", UPDATE_KINDS.as_slice()),
            ("code", codes.as_slice()),
        ]);
        let outcomes = RECORD_OUTCOMES
            .iter()
            .chain(&SPAN_OUTCOMES)
            .chain(&SUBSCRIPTION_OUTCOMES)
            .chain(&SNAPSHOT_OUTCOMES);
        let outcomes: BTreeSet<_> =
            outcomes.chain(&UPDATE_OUTCOMES).chain(&RELOAD_OUTCOMES).collect();
        for sample in self.samples.keys() {
            let Some((_, labels)) = sample.split_once('{') else { continue };
            for label in labels.trim_end_matches('}').split(',') {
                let (name, value) = label.split_once('=').unwrap();
                let value = value.trim_matches('"');
                let is_known = match name {
                    "le" => value.parse::<f64>().is_ok(),
                    "outcome" => outcomes.contains(&value),
                    name => known.get(name).is_some_and(|values| values.contains(&value)),
                };
                assert!(is_known, "{sample}");
            }
        }
    }

    fn assert_well_formed(&self) {
        self.assert_histograms_add_up();
        self.assert_labels_are_known();
        for name in self.types.keys() {
            assert!(name.starts_with("consent_") || name.starts_with("process_"), "{name}");
        }
    }
}

/// Asks and records, each in its own tasks; gives how many decisions were made.
async fn work(sidecar: &Sidecar) -> u32 {
    let decided = Arc::new(AtomicU32::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..3 {
        let (mut checks, decided) = (sidecar.checks().await, Arc::clone(&decided));
        tasks.spawn(async move {
            for round in 0..ROUNDS {
                let user = format!("1555{task}{round:04}");
                checks.can_send(question(&user, BUSINESS, "marketing")).await.unwrap();
                // What is malformed is no decision.
                checks.can_send(question(&user, BUSINESS, "news")).await.unwrap_err();
                let ask = |n| question(&format!("1555{task}{n:04}"), BUSINESS, "utility");
                let requests = (0..BATCH).map(ask).collect();
                checks.batch_can_send(pb::BatchCanSendRequest { requests }).await.unwrap();
                decided.fetch_add(1 + BATCH, Ordering::Relaxed);
            }
        });
        let mut records = sidecar.records().await;
        tasks.spawn(async move {
            for round in 0..ROUNDS {
                let user = format!("1555{task}{round:04}");
                for (id, what) in
                    [("1", opt_in("marketing")), ("2", inbound("Hello")), ("3", opt_out("utility"))]
                {
                    let mut given = event(&user, BUSINESS, what);
                    given.request_id = id.into();
                    records.record_event(given).await.unwrap();
                }
                records.record_event(event(&user, BUSINESS, opt_in("*"))).await.unwrap_err();
            }
        });
    }
    tasks.join_all().await;
    decided.load(Ordering::Relaxed)
}

#[tokio::test]
async fn they_pass_promtool_and_add_up_while_they_are_scraped_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let before = Scrape::of(&sidecar).await;
    let done = AtomicBool::new(false);
    let scraping = async {
        let (mut last, mut scrapes, mut busy) = (Scrape::of(&sidecar).await, 0, 0);
        while !done.load(Ordering::Relaxed) {
            let next = Scrape::of(&sidecar).await;
            next.assert_well_formed();
            next.assert_follows(&last);
            let decisions = |scrape: &Scrape| scrape.sum("consent_decisions_total");
            busy += u32::from(decisions(&next) > decisions(&last));
            (last, scrapes) = (next, scrapes + 1);
        }
        (scrapes, busy)
    };
    let working = async {
        let decided = work(&sidecar).await;
        done.store(true, Ordering::Relaxed);
        decided
    };
    let ((scrapes, busy), decided) = tokio::join!(scraping, working);
    assert!(busy >= 2, "{busy} of {scrapes} scrapes saw the sidecar work");

    let after = Scrape::of(&sidecar).await;
    after.assert_well_formed();
    after.assert_follows(&before);
    let calls = 3 * ROUNDS;
    let grew = |name: &str, by: u32| {
        let grew = after.sum(name) - before.sum(name);
        assert!((grew - f64::from(by)).abs() < 0.5, "{name} grew by {grew}, not by {by}");
    };
    grew("consent_decisions_total", decided);
    grew("consent_check_duration_seconds_count", 2 * calls);
    grew("consent_batch_duration_seconds_count", calls);
    // What is malformed does not get as far as being recorded, but was asked for.
    grew("consent_record_duration_seconds_count", 3 * calls);
    grew("consent_records_total", 4 * calls);
    grew("consent_applied_revision", 3 * calls);
    for (outcome, count) in [("applied", 3 * calls), ("refused", calls), ("failed", 0)] {
        let counted = after.samples[&format!("consent_records_total{{outcome=\"{outcome}\"}}")];
        assert!((counted - f64::from(count)).abs() < 0.5, "{counted} {outcome}, not {count}");
    }
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"]
    {
        assert!(after.sum(name) > 0.0, "{name}");
    }
    assert!(after.types.contains_key("process_cpu_seconds_total"));
}

#[tokio::test]
async fn a_limit_that_was_met_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-connections", "1"]).await;
    eventually("a connection too many is turned away", || async {
        let (_first, _second) = tokio::join!(
            tokio::net::TcpStream::connect(&sidecar.grpc),
            tokio::net::TcpStream::connect(&sidecar.grpc),
        );
        let scrape = Scrape::of(&sidecar).await;
        scrape.samples["consent_refused_total{limit=\"connections\"}"] >= 1.0
    })
    .await;
}
