//! The links in the documents: each relative one leads to a file, and each anchor to a heading.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{files, root};

/// The folders of the repository whose pages are checked, beside those in its root.
const FOLDERS: [&str; 7] = ["clients", "crates", "deploy", "docs", "tests", "findings", "proto"];

/// Every Markdown page of the repository.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<_> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == "md"))
        .collect();
    // What the clients install has pages of its own.
    let installed = ["node_modules", ".venv", "target"];
    let ours = |path: &PathBuf| {
        !installed.iter().any(|name| path.components().any(|c| c.as_os_str() == *name))
    };
    pages.extend(FOLDERS.iter().flat_map(|folder| files(folder, "md")).filter(ours));
    pages
}

/// A page's lines outside of its code blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    let mut kept = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            kept.push(line);
        }
    }
    kept.join("\n")
}

/// The anchors of a page, made of its headings as GitHub makes them: lower case, spaces become
/// hyphens, other punctuation goes, and a repeated heading gets a number.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut times = BTreeMap::<String, usize>::new();
    let mut found = BTreeSet::new();
    for line in prose(text).lines().filter(|line| line.starts_with('#')) {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let slug: String = title
            .chars()
            .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let before = times.entry(slug.clone()).or_default();
        found.insert(if *before == 0 { slug } else { format!("{slug}-{before}") });
        *before += 1;
    }
    found
}

/// The targets of a page's links, `[text](target)` and `[name]: target`.
fn targets(text: &str) -> Vec<String> {
    let prose = prose(text);
    let inline = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let named = prose.lines().filter(|line| line.starts_with('['));
    let named = named.filter_map(|line| line.split_once("]: ")).map(|(_, target)| target.trim());
    inline.chain(named).map(str::to_owned).collect()
}

/// A path without its `.` and `..`, so that what leads out of the repository is seen.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}

/// What is wrong with a page's links.
fn broken(page: &Path, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    for target in targets(text) {
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
        let file = match path {
            "" => page.to_owned(),
            path => normal(&page.parent().unwrap().join(path)),
        };
        if !file.starts_with(root()) || (file != page && !file.exists()) {
            broken.push(format!("{}: no file at {target}", page.display()));
        } else if !anchor.is_empty() {
            let there =
                if file == page { text.to_owned() } else { fs::read_to_string(&file).unwrap() };
            if !anchors(&there).contains(anchor) {
                broken.push(format!("{}: no heading for {target}", page.display()));
            }
        }
    }
    broken
}

#[test]
fn every_relative_link_and_anchor_leads_somewhere() {
    let pages = pages();
    assert!(pages.len() > 15, "only {} pages were found", pages.len());
    let broken: Vec<_> =
        pages.iter().flat_map(|page| broken(page, &fs::read_to_string(page).unwrap())).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn broken_links_and_anchors_are_found() {
    let page = root().join("docs/page.md");
    let text = "# One `two`, three\n\n[a](limits.md) [b](#one-two-three) [c](https://host/x)\n\
                [d](missing.md) [e](#four) [f](../../outside.md)\n\n[g]: limits.md#nowhere\n\
                ```\n[not](a-link.md)\n```\n";
    let broken = broken(&page, text);
    let wrong = ["missing.md", "#four", "../../outside.md", "limits.md#nowhere"];
    assert_eq!(broken.len(), wrong.len(), "{broken:?}");
    for wrong in wrong {
        assert!(broken.iter().any(|said| said.ends_with(wrong)), "{wrong}");
    }
}

#[test]
fn every_page_of_docs_is_linked_from_the_readme_or_an_index() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let indexes = ["README.md", "docs/adr/README.md", "docs/runbooks/README.md"];
    let linked: BTreeSet<PathBuf> = indexes
        .iter()
        .map(|index| root().join(index))
        .filter(|index| index.exists())
        .flat_map(|index| {
            let folder = index.parent().unwrap().to_owned();
            let targets = targets(&fs::read_to_string(&index).unwrap());
            targets.into_iter().map(move |target| {
                normal(&folder.join(target.split('#').next().unwrap_or_default()))
            })
        })
        .collect();
    for page in files("docs", "md") {
        assert!(linked.contains(&page), "nothing links to {}", page.display());
    }
    assert!(readme.lines().count() <= 150, "the README is to be read in one sitting");
}

#[test]
fn every_page_that_the_code_names_exists() {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
    let mut missing = Vec::new();
    for folder in ["src", "crates", "tests", "benches", "examples"] {
        // This file names made-up pages.
        let sources =
            files(folder, "rs").into_iter().filter(|path| !path.ends_with("house/links.rs"));
        for path in sources {
            let text = fs::read_to_string(&path).unwrap();
            for (at, _) in text.match_indices("docs/") {
                let named: String = text[at..].chars().take_while(|c| is_part(*c)).collect();
                let page = named.split(".md").next().filter(|page| page.len() < named.len());
                if page.is_some_and(|page| !root().join(format!("{page}.md")).is_file()) {
                    missing.push(format!("{} names {named}", path.display()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
