//! The alerting rules of `deploy/prometheus`, against their tests and their runbooks.

use std::collections::BTreeSet;
use std::fs;

use super::{files, root};

/// What each runbook has, in this order.
const HEADINGS: [&str; 3] = ["## What it means", "## What to look at", "## What to do"];

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The names that follow this key in a file, each to the end of its word.
fn named(text: &str, key: &str) -> Vec<String> {
    let names =
        text.split(key).skip(1).map(|rest| rest.trim_start().split([' ', '\n', ',']).next());
    names.map(|name| name.unwrap_or_default().to_owned()).collect()
}

fn alerts() -> Vec<String> {
    named(&text("deploy/prometheus/alerts.yaml"), "- alert: ")
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let rules = text("deploy/prometheus/alerts.yaml");
    let alerts: BTreeSet<_> = alerts().into_iter().collect();
    assert!(alerts.len() > 20, "only {} alerts were found", alerts.len());
    let pages = files("docs/runbooks", "md");
    let pages = pages.iter().map(|page| page.file_stem().unwrap().to_string_lossy().into_owned());
    let pages: BTreeSet<_> = pages.filter(|page| page != "README").collect();
    assert_eq!(alerts, pages, "alerts on the left, pages of docs/runbooks on the right");
    let index = text("docs/runbooks/README.md");
    for alert in &alerts {
        let page = format!("docs/runbooks/{alert}.md");
        assert!(rules.contains(&format!("runbook_url: {page}\n")), "{alert} names no {page}");
        assert!(index.contains(&format!("[{alert}]({alert}.md)")), "{alert} is not in the index");
    }
}

#[test]
fn every_runbook_says_what_an_alert_means_what_to_look_at_and_what_to_do() {
    for alert in alerts() {
        let page = text(&format!("docs/runbooks/{alert}.md"));
        let headings: Vec<_> = page.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(headings, HEADINGS, "{alert}");
        let parts = HEADINGS.iter().filter_map(|heading| page.split_once(heading));
        for (_, part) in parts {
            let part = part.split("\n## ").next().unwrap_or_default();
            assert!(part.split_whitespace().count() > 8, "{alert} has an empty part");
        }
    }
}

#[test]
fn every_alert_is_fired_and_kept_silent_by_a_test() {
    let tests = ["alerts.test.yaml", "silence.test.yaml"];
    let tests = tests.map(|file| text(&format!("deploy/prometheus/{file}"))).concat();
    let cases: Vec<_> = tests.split("\n  - name: ").skip(1).collect();
    let mut alerts = alerts();
    for case in &cases {
        let alert = case.split('\n').next().unwrap_or_default();
        alerts.retain(|left| left != alert);
        let fires = case.matches("- exp_labels:").count();
        assert_eq!(fires, 1, "{alert}: the loud sidecar's alert, and no other one");
        assert!(case.contains("instance=\"quiet\""), "{alert} has no sidecar that stays silent");
    }
    assert!(alerts.is_empty(), "no test fires {alerts:?}");
}

#[test]
fn commands_of_the_runbooks_are_those_of_the_binary() {
    let mut commands = 0;
    for page in files("docs/runbooks", "md") {
        let text = fs::read_to_string(&page).unwrap();
        let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
        for line in blocks.flat_map(str::lines) {
            let Some(at) = line
                .find("consentd ")
                .filter(|at| line[..*at].is_empty() || line[..*at].ends_with("-- /"))
            else {
                continue;
            };
            let words = line[at..].split('#').next().unwrap_or_default().split_whitespace();
            let words = words.map(|word| word.trim_matches('\''));
            let parsed = consentd::cli::command().try_get_matches_from(words);
            assert!(parsed.is_ok(), "{}: {line}: {:?}", page.display(), parsed.err());
            commands += 1;
        }
    }
    assert!(commands > 15, "only {commands} commands were found");
}
