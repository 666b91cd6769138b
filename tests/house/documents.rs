//! The lists in the documents, against the code: flags, reasons, calls and metrics.

use std::fs;

use super::{root, tables};

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
fn generated_tables_are_current() {
    for table in tables::tables() {
        let page = page(table.page);
        let current = table.put_into(&page).unwrap();
        let stale = current.lines().find(|line| !page.lines().any(|there| there == *line));
        let how = "run `cargo run --example docs-tables`";
        assert!(
            page == current,
            "{} is not current: {how}. Its first new line: {stale:?}",
            table.page
        );
    }
}

#[test]
fn page_without_the_marks_of_a_table_is_refused() {
    assert!(tables::tables().iter().all(|table| table.put_into("# A page\n").is_err()));
}

#[test]
fn every_flag_has_its_variable_and_its_row() {
    let command = consentd::cli::command();
    let page = page("docs/configuration.md");
    for (name, least) in [("serve", 40), ("webhook", 10)] {
        let command = command.find_subcommand(name).unwrap();
        let mut flags = 0;
        for argument in command.get_arguments() {
            let Some(long) = argument.get_long().filter(|long| *long != "help") else { continue };
            flags += 1;
            // A flag with a value, or one without.
            let starts = [format!("| `--{long} "), format!("| `--{long}` ")];
            let row = page.lines().find(|line| starts.iter().any(|start| line.starts_with(start)));
            let row = row.unwrap_or_else(|| panic!("--{long} is not in docs/configuration.md"));
            let meaning = row.split('|').nth(3).unwrap_or_default();
            assert!(meaning.len() > 20, "--{long} is not explained: {row}");
            let variable = argument.get_env().and_then(|name| name.to_str()).unwrap();
            let named = format!("CONSENTD_{}", long.to_uppercase().replace('-', "_"));
            let differs = (name, long) == ("webhook", "listen");
            assert!(variable == named || differs, "{variable} sets --{long}");
        }
        assert!(flags >= least, "{name} has {flags} flags");
    }
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
fn every_metric_is_listed_with_its_labels() {
    let listed = first_cells("docs/metrics.md", "metric");
    let families = tables::families();
    assert!(families.len() >= 20, "some are not registered before they are used");
    for family in &families {
        let labels = tables::labels(family).into_keys().collect::<Vec<_>>().join(",");
        let name = match labels.as_str() {
            "" => format!("`{}`", family.name()),
            labels => format!("`{}{{{labels}}}`", family.name()),
        };
        assert!(listed.contains(&name), "{name} is not in docs/metrics.md");
    }
    assert_eq!(
        listed.matches('`').count(),
        2 * families.len(),
        "docs/metrics.md has an unknown one"
    );
}
