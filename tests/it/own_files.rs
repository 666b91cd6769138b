//! Each file has one use, nobody else's is written, and others do not write ours: against the real
//! binary.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::faults::redis::Redis;
use crate::faults::stage::{init, ledger_at, live_within, metric, serve};
use crate::sidecar::{PATIENCE, Sidecar, event, eventually, ledger_in, opt_out, question, run};

const TOKEN: &str = "a-token-that-is-long-enough";

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{said} has no {part:?}");
    }
}

/// What a sidecar says that must not start with these flags, on a ledger in this folder.
#[track_caller]
fn refused(folder: &Path, flags: &[&str]) -> String {
    match Sidecar::try_start(&ledger_in(folder), flags) {
        Err(said) => said,
        Ok(_) => panic!("it started with {flags:?}"),
    }
}

fn private(path: &Path, content: &str) -> String {
    fs::write(path, content).unwrap();
    set_mode(path, 0o600);
    path.to_str().unwrap().to_owned()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[tokio::test]
async fn two_uses_of_one_file_are_refused_and_leave_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    let ledger = ledger_in(folder.path());
    drop(Sidecar::live(folder.path(), &[]).await);
    let tokens = private(&at("tokens"), TOKEN);
    fs::write(at("settings"), "workers = 1\n").unwrap();
    fs::hard_link(&ledger, at("hard")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    symlink(folder.path(), at("folder/up")).unwrap();
    let before = fs::read(&ledger).unwrap();
    let names: Vec<_> = names_in(folder.path());
    let shown = ledger.to_str().unwrap();
    let (settings, socket) = (text("settings"), text("s"));
    let (hard, round) = (text("hard"), text("folder/up/ledger.redb"));
    let (marked, lock) = (format!("{shown}.acknowledged"), format!("unix:{socket}.lock"));
    let others: [(&[&str], [&str; 2]); 10] = [
        (&["--decision-log", shown], ["--decision-log", "--ledger"]),
        (&["--decision-log", &hard], ["--decision-log", "--ledger"]),
        (&["--decision-log", &round], ["--decision-log", "--ledger"]),
        (&["--decision-log", &marked], ["--decision-log", "--ledger"]),
        (&["--unix", shown], ["--unix", "--ledger"]),
        (&["--unix", &socket, "--record", &lock], ["--unix", "--record"]),
        (&["--decision-log", &settings, "--config", &settings], ["--decision-log", "--config"]),
        (
            &["--decision-log", &tokens, "--record-token-file", &tokens],
            ["--decision-log", "--record-token-file"],
        ),
        (&["--record-token-file", shown], ["--record-token-file", "--ledger"]),
        (&["--unix", &socket, "--decision-log", &socket], ["--unix", "--decision-log"]),
    ];
    for (flags, parts) in others {
        let said = refused(folder.path(), flags);
        assert_says(&said, &parts);
        assert_says(&said, &["is the same file as", "a path of its own"]);
    }
    // The file that a full log would be renamed to.
    fs::hard_link(&ledger, at("log.2")).unwrap();
    let said = refused(folder.path(), &["--decision-log", &text("log")]);
    assert_says(&said, &["--decision-log", "log.2", "--ledger"]);
    fs::remove_file(at("log.2")).unwrap();
    assert!(fs::read(&ledger).unwrap() == before, "the ledger was written");
    assert_eq!(names_in(folder.path()), names, "something was made");
}

#[test]
fn file_of_a_partitions_saved_table_serves_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    // Nothing listens there: the files are looked at first.
    let ledger = ["serve", "--ledger", "redis://127.0.0.1:1", "--snapshot", &at("s")];
    for (flag, name) in [("--decision-log", "s.3"), ("--unix", "s.0"), ("--unix", "s.1023")] {
        let (code, _, said) = run(&[&ledger[..], &[flag, &at(name)]].concat());
        assert_eq!(code, 2, "{said}");
        assert_says(&said, &[flag, "--snapshot", "is the same file as", "a path of its own"]);
    }
    assert!(names_in(folder.path()).is_empty(), "something was made");
}

fn names_in(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn decision_log_is_appended_to_its_own_files_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (log, shown) = (at("log"), at("log").to_str().unwrap().to_owned());
    let flags = ["--decision-log", shown.as_str()];
    let others = "{\"time\":\"2026-11-29T20:00:00.000Z\",\"level\":\"INFO\",\"msg\":\"started\"}\n";
    for (name, content) in [
        ("log", "a letter\n"),
        ("log", "{\"userId\":1}\n"),
        ("log", others),
        ("log.3", others),
        ("log.3", "mine"),
    ] {
        fs::write(at(name), content).unwrap();
        assert_says(
            &refused(folder.path(), &flags),
            &["--decision-log", name, "not a decision log"],
        );
        assert_eq!(fs::read(at(name)).unwrap(), content.as_bytes());
        fs::remove_file(at(name)).unwrap();
    }
    let target = at("target");
    fs::write(&target, "").unwrap();
    symlink("target", &log).unwrap();
    let said = refused(folder.path(), &flags);
    assert_says(&said, &["--decision-log", "symbolic link", target.to_str().unwrap()]);
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    assert_says(&refused(folder.path(), &flags), &["--decision-log", "is a folder"]);
    fs::remove_dir(&log).unwrap();
    // What is empty, and what is its own.
    fs::write(&log, "").unwrap();
    for lines in 1..=2 {
        let mut sidecar = Sidecar::live(folder.path(), &flags).await;
        sidecar.checks().await.can_send(question("1", "acme", "marketing")).await.unwrap();
        sidecar.signal("TERM");
        assert!(sidecar.ended().await.success());
        assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), lines);
    }
    // A link that is put there while it runs gets no line.
    let sidecar = Sidecar::live(folder.path(), &flags).await;
    fs::rename(&log, at("moved")).unwrap();
    symlink("target", &log).unwrap();
    eventually("the link is told of", || async {
        sidecar.checks().await.can_send(question("1", "acme", "marketing")).await.unwrap();
        sidecar.said().contains("decisions cannot be logged")
    })
    .await;
    assert_eq!(fs::read(&target).unwrap(), b"");
}

#[tokio::test]
async fn what_others_may_write_is_refused_or_taken_from_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tokens = private(&at("tokens"), TOKEN);
    let socket = at("s").to_str().unwrap().to_owned();
    let flags = ["--record-token-file", tokens.as_str()];
    for mode in [0o620, 0o602, 0o666] {
        set_mode(&at("tokens"), mode);
        let said = refused(folder.path(), &flags);
        assert_says(&said, &["--record-token-file", &tokens, "may write it", "chmod go-w"]);
        assert!(!said.contains(TOKEN), "{said}");
    }
    // What everybody may read is used, and told of.
    set_mode(&at("tokens"), 0o644);
    let open = Sidecar::live(folder.path(), &flags).await;
    assert_says(&open.said(), &["every user of this machine may read", &tokens, "0644"]);
    let inbound = ["record", "inbound", "1", "acme", "--addr", &open.grpc, "--token-file"];
    let inbound = [&inbound[..], &[&tokens]].concat();
    assert_eq!(run(&inbound).0, 0);
    set_mode(&at("tokens"), 0o666);
    let (code, _, said) = run(&inbound);
    assert_eq!(code, 2);
    assert_says(&said, &[&tokens, "may write it"]);
    drop(open);
    set_mode(&at("tokens"), 0o600);
    // A ledger and a lock are ours to mend; a lock that was left behind is in nobody's way.
    let ledger = ledger_in(folder.path());
    set_mode(&ledger, 0o666);
    fs::write(at("s.lock"), "").unwrap();
    set_mode(&at("s.lock"), 0o666);
    let sidecar = Sidecar::live(folder.path(), &[&flags[..], &["--unix", &socket]].concat()).await;
    assert_eq!((mode_of(&ledger), mode_of(&at("s.lock"))), (0o644, 0o644));
    assert_says(&sidecar.said(), &["file was writable by its group or by everybody", "0666"]);
    assert!(!sidecar.said().contains("every user of this machine"), "{}", sidecar.said());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_path_of_two_sidecars_is_told_and_saved_by_one() {
    let redis = Redis::start(&[]);
    let ledger = ledger_at(&redis.address());
    init(&ledger, &["--buckets", "32"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table");
    let flags = ["--snapshot", path.to_str().unwrap(), "--snapshot-every", "100ms"];
    let saved = "consent_snapshots_total{outcome=\"saved\"}";
    let in_use = "consent_snapshots_total{outcome=\"in_use\"}";
    let mut first = serve(&ledger, &flags, &[]);
    live_within(&first, PATIENCE).await;
    let second = serve(&ledger, &flags, &[]);
    live_within(&second, PATIENCE).await;
    assert_says(&second.said(), &["another sidecar saves", path.to_str().unwrap(), "--snapshot"]);
    eventually("the second one leaves it out", || async { metric(&second, in_use).await >= 2.0 })
        .await;
    assert!(metric(&second, saved).await < 1.0);
    assert_eq!(second.said().matches("another sidecar saves").count(), 1);
    // However the first one ends, the second one goes on.
    first.kill();
    eventually("the second one saves", || async { metric(&second, saved).await >= 1.0 }).await;
    drop(second);
    // What is no saved table is not replaced.
    fs::write(&path, "a letter, and none of ours").unwrap();
    let said = Sidecar::try_start_by(
        std::process::Command::new(crate::sidecar::BINARY),
        &ledger,
        &flags,
        &[],
    );
    let said = said.err().expect("it must not start");
    assert_says(&said, &["--snapshot", path.to_str().unwrap(), "no saved table"]);
    assert_eq!(fs::read(&path).unwrap(), b"a letter, and none of ours");
}

#[tokio::test]
async fn import_and_export_write_over_nothing_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    sidecar.records().await.record_event(event("1", "acme", opt_out("*"))).await.unwrap();
    let ledger = fs::read(ledger_in(folder.path())).unwrap();
    fs::write(at("rows.csv"), "user_id,business_id,event,scope\n,acme,opt_out,*\n").unwrap();
    fs::hard_link(at("rows.csv"), at("same")).unwrap();
    fs::write(at("letter"), "a letter").unwrap();
    symlink("letter", at("link")).unwrap();
    let tokens = private(&at("tokens"), TOKEN);
    let input = text("rows.csv");
    let import = |rejects: &str| {
        let addr = ["--addr", &sidecar.grpc, "--token-file", &tokens];
        run(&[&["import", &input, "--rejects", rejects][..], &addr].concat())
    };
    for (rejects, part) in [
        ("rows.csv", "same file"),
        ("same", "same file"),
        ("rows.csv.import-progress", "same file"),
        ("tokens", "same file"),
        ("ledger.redb", "not empty"),
        ("letter", "not empty"),
        ("link", "symbolic link"),
        ("", "is a folder"),
    ] {
        let (code, _, said) = import(&text(rejects));
        assert_eq!(code, 2, "{rejects}: {said}");
        assert_says(&said, &[part]);
    }
    fs::write(at("rows.csv.import-progress"), "a letter").unwrap();
    let (code, _, said) = import(&text("rejects"));
    assert_eq!(code, 2);
    assert_says(&said, &["rows.csv.import-progress", "something else"]);
    fs::remove_file(at("rows.csv.import-progress")).unwrap();
    let (code, _, said) = import(&text("rejects"));
    assert_eq!(code, 1, "{said}");

    let export = |output: &str| run(&["export", "--output", output, "--addr", &sidecar.grpc]);
    for (output, part) in [
        ("ledger.redb", "is a ledger"),
        ("letter", "no export"),
        ("rows.csv", "no export"),
        ("link", "symbolic link"),
        ("", "is a folder"),
    ] {
        let (code, _, said) = export(&text(output));
        assert_eq!(code, 2, "{output}: {said}");
        assert_says(&said, &["--output", part]);
    }
    for _ in 0..2 {
        assert_eq!(export(&text("export")).0, 0, "an export is replaced by the next one");
    }
    assert_eq!(fs::read(at("letter")).unwrap(), b"a letter");
    assert!(fs::read(ledger_in(folder.path())).unwrap().starts_with(&ledger[..9]));
}
