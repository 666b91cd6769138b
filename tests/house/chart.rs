//! The Helm chart and the kustomize files, against the binary: what they set exists. What the chart
//! renders is tested by `scripts/chart`, for which Helm has to be compiled.

use std::collections::BTreeSet;
use std::fs;

use super::{files, root};

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The words of a text that begin so and go on with these characters.
fn words(text: &str, start: &str, inside: impl Fn(char) -> bool) -> BTreeSet<String> {
    let found = text.match_indices(start).map(|(at, _)| {
        let rest = text[at + start.len()..].chars().take_while(|c| inside(*c));
        start.chars().chain(rest).collect::<String>()
    });
    found.collect()
}

#[test]
fn variables_of_the_manifests_are_those_of_the_flags() {
    let command = consentd::cli::command();
    let mut known = BTreeSet::from(["CONSENTD_ADDR".to_owned()]);
    for name in ["serve", "webhook"] {
        let arguments = command.find_subcommand(name).unwrap().get_arguments();
        let variables = arguments.filter_map(|argument| argument.get_env()?.to_str());
        known.extend(variables.map(str::to_owned));
    }
    let mut set = BTreeSet::new();
    for extension in ["yaml", "tpl"] {
        for path in files("deploy", extension) {
            let text = fs::read_to_string(&path).unwrap();
            let inside = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            let here = words(&text, "CONSENTD_", inside);
            let unknown: Vec<_> = here.difference(&known).collect();
            assert!(unknown.is_empty(), "{} sets {unknown:?}", path.display());
            set.extend(here);
        }
    }
    assert!(set.len() > 15, "only {set:?} were found");
}

#[test]
fn chart_has_the_version_the_alerts_and_the_dashboard_of_the_repository() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = text("deploy/helm/consentd/Chart.yaml");
    assert!(chart.contains(&format!("\nappVersion: {version}\n")), "Chart.yaml: appVersion");
    let helpers = text("deploy/helm/consentd/templates/_helpers.tpl");
    let tag = format!(".image.tag | default \"{version}\"");
    assert!(helpers.contains(&tag), "_helpers.tpl: the tag of the image");
    for (copy, original) in [
        ("alerts.yaml", "deploy/prometheus/alerts.yaml"),
        ("dashboard.json", "deploy/grafana/consentd.json"),
    ] {
        let copied = text(&format!("deploy/helm/consentd/files/{copy}"));
        assert!(copied == text(original), "cp {original} deploy/helm/consentd/files/{copy}");
    }
}
