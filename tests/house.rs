//! The house's rules, as tests: who may import whom, how long files are, and that the lists in the
//! README are true.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    clippy::disallowed_methods,
    reason = "tests are no library"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A source file's code, its tests and comments left out.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The module of `src` that a file belongs to.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules of this crate that some code names, in paths and in grouped imports.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for part in code.split("crate::").skip(1) {
        let name: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !name.is_empty() {
            found.insert(name);
        }
    }
    found
}

fn is_test(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests")
}

#[test]
fn modules_import_what_the_map_allows() {
    // As in `lib.rs`, from the inside out.
    let allowed: &[(&str, &[&str])] = &[
        ("metrics", &[]),
        ("telemetry", &["metrics"]),
        ("table", &[]),
        ("changes", &[]),
        ("synthetic", &[]),
        ("follower", &["changes", "metrics", "table", "synthetic"]),
        ("recorder", &["metrics"]),
        ("decision_log", &["metrics"]),
        ("gate", &["decision_log", "table", "metrics"]),
        ("budget", &["metrics"]),
        ("grpc", &["accept", "budget", "changes", "gate", "recorder", "metrics", "telemetry"]),
        ("whatsapp", &["recorder"]),
        ("webhook", &["accept", "budget", "metrics", "recorder", "whatsapp"]),
        ("accept", &["metrics"]),
        ("admin", &["accept", "budget", "gate", "metrics"]),
        (
            "config",
            &["budget", "synthetic", "decision_log", "grpc", "telemetry", "webhook", "whatsapp"],
        ),
    ];
    for path in files("src", "rs").into_iter().filter(|path| !is_test(path)) {
        let module = module(&path);
        let Some((_, allowed)) = allowed.iter().find(|(name, _)| *name == module) else {
            assert!(["app", "cli", "lib", "main"].contains(&module.as_str()), "{module} is new");
            continue;
        };
        for import in imports(&code(&path)) {
            let inside = import == module || allowed.contains(&import.as_str());
            assert!(inside, "{} must not import {import}", path.display());
        }
    }
}

#[test]
fn foreign_types_stay_behind_their_module() {
    for (name, home) in [
        ("redb::", ""),
        ("redis::", ""),
        ("dashmap::", "table"),
        ("axum::", "admin webhook"),
        ("tonic::", "grpc"),
        ("opentelemetry", "telemetry"),
        ("std::env::", "config"),
    ] {
        for path in files("src", "rs").into_iter().filter(|path| !is_test(path)) {
            let module = module(&path);
            // Commands are clients of the wire, and parse what clap reads from the environment.
            if !home.split(' ').any(|home| home == module) && module != "cli" {
                assert!(!code(&path).contains(name), "{} must not know {name}", path.display());
            }
        }
    }
    for path in files("src", "rs") {
        let holds = code(&path).contains("table::{") && code(&path).contains("Writer");
        assert!(
            !holds || module(&path) == "follower",
            "only the follower holds the table's writer"
        );
    }
    let table = code(&root().join("src/table.rs"));
    let (before, _) = table.split_once("pub struct Writer").unwrap();
    let attributes = before.rsplit("\n\n").next().unwrap_or_default();
    assert!(!attributes.contains("Clone"), "two writers could contradict each other");
}

#[test]
fn files_stay_short_enough_to_be_read() {
    for path in ["src", "crates", "tests", "examples"].iter().flat_map(|folder| files(folder, "rs"))
    {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        // The model quotes the page beside what it does, and is the one exception.
        let most = if path.ends_with("it/model.rs") { 1_300 } else { 530 };
        assert!(lines <= most, "{} has {lines} lines", path.display());
    }
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// The first cells of the README's table whose header starts so, backticks and all.
fn first_cells(header: &str) -> String {
    let readme = readme();
    let (_, table) = readme.split_once(&format!("| {header} |")).expect("the README has the table");
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| row.split('|').nth(1)).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_readme_lists_every_flag_with_its_default() {
    let command = consentd::cli::command();
    let serve = command.find_subcommand("serve").unwrap();
    let readme = readme();
    let mut flags = 0;
    for argument in serve.get_arguments() {
        let Some(long) = argument.get_long().filter(|long| *long != "help") else { continue };
        flags += 1;
        // A flag with a value, or one without.
        let starts = [format!("| `--{long} "), format!("| `--{long}` ")];
        let row = readme.lines().find(|line| starts.iter().any(|start| line.starts_with(start)));
        let row = row.unwrap_or_else(|| panic!("--{long} is not in the README's table"));
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
    let rows = readme.lines().filter(|line| line.starts_with("| `--")).count();
    assert_eq!(rows, flags, "the README has a flag that is none");
}

#[test]
fn the_readme_lists_every_reason_and_call() {
    use consentd_core::decision::Reason;
    let reasons = first_cells("reason");
    for reason in Reason::ALL {
        assert!(reasons.contains(&format!("`{}`", reason.name())), "{}", reason.name());
        let wire = consentd::grpc::pb::Reason::from_str_name(&format!("REASON_{}", reason.name()));
        let wire = wire.expect("the contract has it");
        assert_eq!(reason.allows(), (1..10).contains(&i32::from(wire)), "{}", reason.name());
    }
    assert_eq!(reasons.matches('`').count(), 2 * Reason::ALL.len());
    let calls = first_cells("call");
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
fn the_readme_lists_every_metric() {
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
    let told = first_cells("metric");
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
        assert!(told.contains(&name), "{name} is not in the README");
    }
    assert_eq!(told.matches('`').count(), 2 * families.len(), "one in the README is none");
}
