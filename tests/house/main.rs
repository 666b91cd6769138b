//! The rules of the repository, as tests: which module may import which, how long files are, and
//! that the documents are true.

mod alerts;
mod chart;
mod documents;
mod links;
mod tables;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The root of the repository.
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
        ("reload", &[]),
        ("telemetry", &["metrics", "net"]),
        ("table", &[]),
        ("secrets", &[]),
        ("change_feed", &[]),
        ("follower", &["change_feed", "metrics", "table"]),
        ("history", &[]),
        ("recorder", &["history", "metrics"]),
        ("net", &["metrics"]),
        ("decision_log", &["metrics", "net"]),
        ("checker", &["decision_log", "table", "metrics"]),
        ("budget", &["metrics"]),
        (
            "grpc",
            &[
                "budget",
                "change_feed",
                "checker",
                "history",
                "metrics",
                "net",
                "recorder",
                "secrets",
                "telemetry",
            ],
        ),
        ("whatsapp", &[]),
        ("webhook", &["budget", "metrics", "net", "recorder", "reload", "secrets", "whatsapp"]),
        ("admin", &["budget", "checker", "metrics", "net"]),
        (
            "config",
            &[
                "budget",
                "decision_log",
                "grpc",
                "net",
                "secrets",
                "telemetry",
                "webhook",
                "whatsapp",
            ],
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
        ("axum::", "admin net webhook"),
        ("tonic::", "grpc telemetry"),
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
    let table = code(&root().join("src/table/mod.rs"));
    let (before, _) = table.split_once("pub struct Writer").unwrap();
    let attributes = before.rsplit("\n\n").next().unwrap_or_default();
    assert!(!attributes.contains("Clone"), "two writers could contradict each other");
}

#[test]
fn files_stay_short_enough_to_be_read() {
    for path in ["src", "crates", "tests", "examples"].iter().flat_map(|folder| files(folder, "rs"))
    {
        if path.components().any(|part| part.as_os_str() == "generated") {
            continue;
        }
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        // The model quotes the page beside what it does, and is the one exception.
        let most = if path.ends_with("it/model.rs") { 1_300 } else { 530 };
        assert!(lines <= most, "{} has {lines} lines", path.display());
    }
}

#[test]
fn every_library_turns_on_the_lints_of_libraries() {
    let lints = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let (_, rest) = text.split_once("#![warn(").unwrap_or_default();
        rest.split(")]").next().unwrap_or_default().split_whitespace().collect::<String>()
    };
    let root_library = root().join("src/lib.rs");
    let expected = lints(&root_library);
    assert!(expected.contains("clippy::unwrap_used"), "src/lib.rs has no lints");
    let crates = fs::read_dir(root().join("crates")).unwrap();
    for library in crates.map(|entry| entry.unwrap().path().join("src/lib.rs")) {
        assert_eq!(lints(&library), expected, "{} differs from src/lib.rs", library.display());
    }
}
