//! The embedded ledger's file: what is opened, what is refused, and what is left alone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use consentd_ledger::{Appender, OpenError};
use redb::{Database, ReadableDatabase as _, TableDefinition};
use tempfile::tempdir;
use tokio::task::JoinSet;

use super::*;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

fn open(path: &Path) -> Result<(Embedded, Appender), OpenError> {
    Embedded::open(path, FOREVER, CACHE)
}

/// Why this file is not opened; it must be named, and stay as it is.
fn refused(path: &Path) -> OpenError {
    let before = fs::read(path).ok();
    let Err(error) = open(path) else { panic!("{} was opened", path.display()) };
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    assert!(fs::read(path).ok() == before, "{} was changed: {error}", path.display());
    error
}

/// A ledger file with an opt-out in it, closed.
async fn a_ledger(path: &Path) {
    let (ledger, appender) = open(path).unwrap();
    let writer = std::thread::spawn(move || appender.run());
    let ledger = Ledger::Embedded(ledger);
    append(&ledger, key(1), opt_out("letter")).await;
    Open { ledger, writer: Writer::Thread(writer) }.close().await;
}

#[tokio::test]
async fn a_file_is_open_once_at_a_time() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let (ledger, appender) = open(&path).unwrap();
    let error = refused(&path);
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains("--ledger"), "it says what to do: {error}");
    let writer = std::thread::spawn(move || appender.run());
    Open { ledger: Ledger::Embedded(ledger), writer: Writer::Thread(writer) }.close().await;
    assert!(open(&path).is_ok(), "closed is closed");
}

#[test]
fn a_new_file_is_its_owners_alone() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let (ledger, _appender) = open(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds user ids and the keys' secret");
    let ledger = Ledger::Embedded(ledger);
    assert_eq!(ledger.describe(), format!("file:{}", path.display()));
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing else is left beside it: {names:?}");
}

#[test]
fn an_empty_file_becomes_a_ledger() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    fs::write(&path, "").unwrap();
    assert!(open(&path).is_ok());
}

#[test]
fn what_is_no_ledger_is_refused_and_left_alone() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    for content in ["x", "milk, eggs, bread\n", &"not a ledger ".repeat(9_000), "redb"] {
        fs::write(&path, content).unwrap();
        let error = refused(&path);
        assert!(matches!(error, OpenError::NotALedger { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn half_a_ledger_is_refused() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    a_ledger(&path).await;
    let whole = fs::read(&path).unwrap();
    for length in [9, 100, 4_096, 5_000, whole.len() / 2] {
        fs::write(&path, &whole[..length]).unwrap();
        let Err(error) = open(&path) else { panic!("{length} bytes of it were opened") };
        assert!(matches!(error, OpenError::Damaged { .. }), "{length}: {error:?}");
    }
}

#[test]
fn another_programs_database_is_refused_and_left_alone() {
    const THEIRS: TableDefinition<u64, &str> = TableDefinition::new("theirs");
    let folder = tempdir().unwrap();
    let path = folder.path().join("theirs.redb");
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(THEIRS).unwrap().insert(1, "one").unwrap();
    transaction.commit().unwrap();
    drop(database);
    let Err(error) = open(&path) else { panic!("it was made a ledger") };
    assert!(matches!(error, OpenError::NotALedger { .. }), "{error:?}");
    // That it was opened may show in its header, but its tables are as they were.
    let database = Database::open(&path).unwrap();
    assert_eq!(database.begin_read().unwrap().list_tables().unwrap().count(), 1);
}

#[tokio::test]
async fn a_newer_versions_file_is_refused_and_left_alone() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    a_ledger(&path).await;
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let newer = &4_u32.to_be_bytes()[..];
    transaction.open_table(META).unwrap().insert("format", newer).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let values = || {
        let database = Database::open(&path).unwrap();
        let meta = database.begin_read().unwrap().open_table(META).unwrap();
        let names = ["epoch", "secret", "format", "revision", "head"];
        names.map(|name| meta.get(name).unwrap().unwrap().value().to_vec())
    };
    let before = values();
    let Err(error) = open(&path) else { panic!("it was opened") };
    assert!(matches!(error, OpenError::Newer { format: 4, known: 3, .. }), "{error:?}");
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    assert!(error.to_string().contains("upgrade"), "it says what to do: {error}");
    assert_eq!(values(), before);
}

#[test]
fn what_the_system_refuses_is_told_with_the_systems_words() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&link, &link).unwrap();
    let mut paths = vec![
        folder.path().to_owned(),
        folder.path().join("missing/ledger.redb"),
        file.join("ledger.redb"),
        link,
    ];
    let locked = folder.path().join("locked");
    fs::write(&locked, "").unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o400)).unwrap();
    // Root may write what nobody may; then the other refusals stand for this one.
    if fs::OpenOptions::new().write(true).open(&locked).is_err() {
        paths.push(locked);
    }
    for path in paths {
        let error = refused(&path);
        assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 3, "nothing was made: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_waits_for_whoever_still_reads() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    for _ in 0..20 {
        let (ledger, appender) = open(&path).unwrap();
        let writer = std::thread::spawn(move || appender.run());
        let ledger = Ledger::Embedded(ledger);
        let (read, mut seen) = tokio::sync::mpsc::channel(1);
        let mut readers = JoinSet::new();
        for _ in 0..8 {
            let (ledger, read) = (ledger.clone(), read.clone());
            readers.spawn(async move {
                while ledger.bucket(0).await.is_ok() {
                    let _ = read.try_send(());
                }
            });
        }
        seen.recv().await.unwrap();
        Open { ledger, writer: Writer::Thread(writer) }.close().await;
        if let Err(error) = open(&path) {
            panic!("it is said to be closed: {error}");
        }
        readers.join_all().await;
    }
}

#[tokio::test]
async fn more_than_may_wait_are_told_to_try_again() {
    // As many as may wait, while nobody writes them.
    const WAITING: u64 = 8_192;
    let folder = tempdir().unwrap();
    let (ledger, appender) = open(&folder.path().join("ledger.redb")).unwrap();
    let ledger = Ledger::Embedded(ledger);
    let mut waiting = JoinSet::new();
    for number in 0..=WAITING {
        let ledger = ledger.clone();
        let change = change(key(number), &nothing(), [opt_out("letter")]);
        waiting.spawn(async move { ledger.append(vec![change]).await });
    }
    let first = waiting.join_next().await.unwrap().unwrap();
    assert!(matches!(first, Err(LedgerError::Busy)), "{first:?}");
    let writer = std::thread::spawn(move || appender.run());
    for appended in waiting.join_all().await {
        assert!(matches!(appended.unwrap()[..], [Appended::Committed(_)]));
    }
    assert_eq!(ledger.read_after(0).await.unwrap().end.revision, WAITING);
    Open { ledger, writer: Writer::Thread(writer) }.close().await;
}
