//! The alerting rules and the dashboard of `deploy`: by promtool, and against a running sidecar.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::sidecar::{BINARY, Sidecar, eventually};
use crate::webhook::client::{Files, acme, file};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

/// Runs promtool and fails with what it printed where it does.
fn promtool(arguments: &[&str], files: &[PathBuf]) {
    let output = Command::new("promtool")
        .args(arguments)
        .args(files)
        .output()
        .expect("promtool is needed: apt-get install -y prometheus, or scripts/test");
    let printed = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&printed));
}

/// The samples that a sidecar serves that receives webhooks, each with its name and labels as in `NAME{LABEL="VALUE",…}`.
async fn scrape() -> Vec<String> {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let (status, text) = sidecar.get("/metrics").await;
    assert_eq!(status, 200, "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

/// A series' name and its labels, without those that Prometheus gives a target, and the version.
fn parts(series: &str) -> (&str, BTreeMap<&str, &str>) {
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
    let labels = labels.map(|label| label.trim().split_once('=').unwrap());
    (name, labels.filter(|(name, _)| !["instance", "job", "version"].contains(name)).collect())
}

#[test]
fn every_alert_fires_and_stays_silent_as_its_test_says() {
    promtool(&["check", "rules"], &[deploy("prometheus/alerts.yaml")]);
    let tests = ["prometheus/alerts.test.yaml", "prometheus/silence.test.yaml"];
    promtool(&["test", "rules"], &tests.map(deploy));
}

#[tokio::test]
async fn series_of_the_alerts_tests_are_those_of_a_sidecar() {
    let scraped = scrape().await;
    let served: Vec<_> = scraped.iter().map(|sample| parts(sample)).collect();
    let mut compared = 0;
    for file in ["prometheus/alerts.test.yaml", "prometheus/silence.test.yaml"] {
        let text = fs::read_to_string(deploy(file)).unwrap();
        for series in text.split("series: '").skip(1).map(|rest| rest.split('\'').next().unwrap()) {
            let series = parts(series);
            // Prometheus makes this one itself.
            if series.0 != "up" {
                assert!(served.contains(&series), "no sidecar serves {series:?}");
                compared += 1;
            }
        }
    }
    assert!(compared > 40, "only {compared} series were compared");
}

/// The queries of a dashboard, with the values that Grafana would put in.
fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    let filled = queries.map(|query| {
        query
            .replace("$__rate_interval", "1m")
            .replace("$job", "consentd")
            .replace("$instance", "sidecar")
    });
    filled.collect()
}

/// A test for promtool in which each query must find something among these samples, whose value
/// stays 1 for five minutes.
fn finds_something(samples: &[String], queries: &[String]) -> String {
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    let mut text = "tests:\n- interval: 15s\n  input_series:\n".to_owned();
    for sample in samples {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let comma = if labels == "}" { "" } else { "," };
        let series = format!("{name}{{job=\"consentd\",instance=\"sidecar\"{comma}{labels}");
        writeln!(text, "  - series: {}\n    values: 1x20", quoted(&series)).unwrap();
    }
    text.push_str("  promql_expr_test:\n");
    for query in queries {
        let found = quoted(&format!("count({query}) > bool 0"));
        writeln!(text, "  - expr: {found}\n    eval_time: 5m\n    exp_samples:").unwrap();
        text.push_str("    - {labels: '{}', value: 1}\n");
    }
    text
}

#[tokio::test]
async fn every_query_of_the_dashboard_finds_what_a_sidecar_serves() {
    let dashboard = fs::read_to_string(deploy("grafana/consentd.json")).unwrap();
    let queries = queries(&serde_json::from_str(&dashboard).unwrap());
    assert!(queries.len() > 40, "only {} queries were found", queries.len());
    for query in &queries {
        assert!(!query.contains('$'), "a variable of {query} was not filled in");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dashboard.test.yaml");
    let samples = scrape().await;
    fs::write(&file, finds_something(&samples, &queries)).unwrap();
    promtool(&["test", "rules"], &[file]);
}

#[tokio::test]
async fn a_query_for_a_metric_or_a_label_that_no_sidecar_has_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let samples = scrape().await;
    for query in ["consent_pears", "consent_records_total{outcome=\"apllied\"}"] {
        let file = folder.path().join("typo.test.yaml");
        fs::write(&file, finds_something(&samples, &[query.to_owned()])).unwrap();
        let output = Command::new("promtool").args(["test", "rules"]).arg(file).output().unwrap();
        assert!(!output.status.success(), "{query} found something");
    }
}

#[tokio::test]
async fn staleness_of_a_table_that_was_never_loaded_rises_from_the_start() {
    // Nothing listens at port 1.
    let (binary, ledger) = (Command::new(BINARY), "redis://127.0.0.1:1");
    let sidecar = Sidecar::try_start_by(binary, ledger, &[], &[]).unwrap();
    eventually("the staleness says that there was no proof", || async {
        let (_, text) = sidecar.get("/metrics").await;
        let line = text.lines().find(|line| line.starts_with("consent_staleness_seconds "));
        line.unwrap().rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() > 1.0
    })
    .await;
}
