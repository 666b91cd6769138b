//! The lists in the documents, against the code: flags, reasons, calls and metrics.

use std::collections::BTreeSet;
use std::fs;

use super::root;

/// The text of a page, by its path from the root of the repository.
fn page(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The first cells of the page's table whose header starts so, with their backticks.
fn first_cells(path: &str, header: &str) -> String {
    let page = page(path);
    let (_, table) = page.split_once(&format!("| {header} |")).expect("the page has the table");
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| row.split('|').nth(1)).collect::<Vec<_>>().join("\n")
}

#[test]
fn configuration_page_lists_every_flag_with_its_default() {
    let command = consentd::cli::command();
    let serve = command.find_subcommand("serve").unwrap();
    let page = page("docs/configuration.md");
    let mut flags = 0;
    for argument in serve.get_arguments() {
        let Some(long) = argument.get_long().filter(|long| *long != "help") else { continue };
        flags += 1;
        // A flag with a value, or one without.
        let starts = [format!("| `--{long} "), format!("| `--{long}` ")];
        let row = page.lines().find(|line| starts.iter().any(|start| line.starts_with(start)));
        let row =
            row.unwrap_or_else(|| panic!("--{long} is not in the table of docs/configuration.md"));
        let variable = argument.get_env().and_then(|name| name.to_str()).unwrap();
        assert_eq!(variable, format!("CONSENTD_{}", long.to_uppercase().replace('-', "_")));
        let help = argument.get_help().unwrap().to_string();
        let default = help.split_once("[default: ").map(|(_, rest)| rest.trim_end_matches(']'));
        if let Some(default) = default.filter(|default| !default.contains(", ")) {
            let told = row.split('|').nth(2).unwrap().trim().trim_matches('`');
            let all = "marketing,utility,authentication,service";
            assert!(told == default || (told == "all four" && default == all), "{row} / {default}");
        }
    }
    let rows = page.lines().filter(|line| line.starts_with("| `--")).count();
    assert_eq!(rows, flags, "docs/configuration.md has an unknown flag");
}

#[test]
fn consent_and_api_pages_list_every_reason_and_call() {
    use consentd::decision::Reason;
    let reasons = first_cells("docs/consent.md", "reason");
    for reason in Reason::ALL {
        assert!(reasons.contains(&format!("`{}`", reason.name())), "{}", reason.name());
        let wire = consentd::grpc::pb::Reason::from_str_name(&format!("REASON_{}", reason.name()));
        let wire = wire.expect("the contract has it");
        assert_eq!(reason.allows(), (1..10).contains(&i32::from(wire)), "{}", reason.name());
    }
    assert_eq!(reasons.matches('`').count(), 2 * Reason::ALL.len());
    let calls = first_cells("docs/api.md", "call");
    let pool = prost_reflect::DescriptorPool::decode(consentd::grpc::DESCRIPTOR_SET).unwrap();
    let methods: Vec<_> = pool
        .services()
        .flat_map(|service| {
            service.methods().map(|method| method.name().to_owned()).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(methods.len(), 15);
    for method in &methods {
        assert!(calls.contains(method.as_str()), "{method}");
    }
    // Each cell names a service's call, and maybe others of it.
    for call in calls.split('`').skip(1).step_by(2) {
        let name = call.rsplit('/').next().unwrap();
        let is_event = name == "Link";
        assert!(is_event || methods.iter().any(|method| method == name), "{call} is no call");
    }
}

#[test]
fn metrics_page_lists_every_metric() {
    let registry = prometheus::Registry::new();
    let metrics = consentd::metrics::Metrics::new(registry.clone()).unwrap();
    let gauges = consentd::metrics::TableGauges {
        staleness: std::time::Duration::ZERO,
        revision: 0,
        pairs: 0,
        bytes: 0,
        clock_offset: 0.0,
        remembered: 0,
    };
    metrics.render(gauges).unwrap();
    let told = first_cells("docs/metrics.md", "metric");
    let families = registry.gather();
    assert!(families.len() >= 20, "some are not registered before they are used");
    for family in &families {
        let labels: BTreeSet<_> = family
            .get_metric()
            .iter()
            .flat_map(|metric| {
                metric.get_label().iter().map(|label| label.name().to_owned()).collect::<Vec<_>>()
            })
            .collect();
        let labels = labels.into_iter().collect::<Vec<_>>().join(",");
        let name = match labels.as_str() {
            "" => format!("`{}`", family.name()),
            labels => format!("`{}{{{labels}}}`", family.name()),
        };
        assert!(told.contains(&name), "{name} is not in docs/metrics.md");
    }
    assert_eq!(
        told.matches('`').count(),
        2 * families.len(),
        "docs/metrics.md has an unknown metric"
    );
}
