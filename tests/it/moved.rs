//! A ledger's file that is deleted, moved or replaced, and a start where one seems to be missing:
//! against the real binary.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use consentd::grpc::pb::Reason;

use crate::sidecar::{
    BINARY, PATIENCE, Sidecar, event, eventually, ledger_in, opt_in, opt_out, question, run,
};

/// Why a check is answered so.
async fn reason(sidecar: &Sidecar, user: &str) -> Reason {
    let asked = question(user, "acme", "marketing");
    sidecar.checks().await.can_send(asked).await.unwrap().into_inner().reason()
}

/// Records that a user opted out of everything; whether that was acknowledged.
async fn stop(sidecar: &Sidecar, user: &str) -> bool {
    sidecar.records().await.record_event(event(user, "acme", opt_out("*"))).await.is_ok()
}

async fn drain(mut sidecar: Sidecar) {
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{said} has no {part:?}");
    }
}

/// Opts a user in, so that what is lost would show.
async fn opted_in(sidecar: &Sidecar, user: &str) {
    let mut given = event(user, "acme", opt_in("marketing"));
    given.request_id = "signup".into();
    sidecar.records().await.record_event(given).await.unwrap();
}

#[tokio::test]
async fn deleted_ledger_a_stop_is_not_acknowledged_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = ledger_in(folder.path());
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    opted_in(&sidecar, "1").await;
    opted_in(&sidecar, "2").await;
    assert!(stop(&sidecar, "1").await);
    fs::remove_file(&path).unwrap();
    assert!(!stop(&sidecar, "2").await, "it would be gone after a restart");
    assert!(!sidecar.ended().await.success());
    let (said, rescued) = (sidecar.said(), folder.path().join("ledger.redb.rescued"));
    assert_says(&said, &[path.to_str().unwrap(), "no longer there", rescued.to_str().unwrap()]);
    // Without it, nothing is begun anew in silence.
    let said = Sidecar::try_start(&path, &[]).err().expect("it must not start");
    assert_says(&said, &["there is no ledger", path.to_str().unwrap(), "--new", "opted out"]);
    assert!(!path.exists(), "nothing was made");
    // With it, what was acknowledged holds.
    fs::rename(&rescued, &path).unwrap();
    let again = Sidecar::live(folder.path(), &[]).await;
    assert_eq!(reason(&again, "1").await, Reason::OptedOutAll);
    drain(again).await;
}

#[tokio::test]
async fn replaced_ledger_an_idle_sidecar_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = ledger_in(folder.path());
    let first = Sidecar::live(folder.path(), &[]).await;
    opted_in(&first, "1").await;
    drain(first).await;
    let backup = folder.path().join("backup");
    fs::copy(&path, &backup).unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    assert!(stop(&sidecar, "1").await);
    let replaced = Instant::now();
    fs::rename(&backup, &path).unwrap();
    eventually("it is told", || async { sidecar.said().contains("is another file than") }).await;
    assert!(replaced.elapsed() < Duration::from_secs(10), "{:?}", replaced.elapsed());
    assert!(!sidecar.ended().await.success());
    // The backup ends before what was acknowledged.
    let said = Sidecar::try_start(&path, &[]).err().expect("it must not start");
    assert_says(&said, &["ends at revision 1", "revision 2", "ledger.redb.acknowledged"]);
    fs::rename(folder.path().join("ledger.redb.rescued"), &path).unwrap();
    let again = Sidecar::live(folder.path(), &[]).await;
    assert_eq!(reason(&again, "1").await, Reason::OptedOutAll);
}

#[tokio::test]
async fn replaced_ledger_after_kill_an_older_copy_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = ledger_in(folder.path());
    let first = Sidecar::live(folder.path(), &[]).await;
    opted_in(&first, "1").await;
    drain(first).await;
    let backup = fs::read(&path).unwrap();
    let mut second = Sidecar::live(folder.path(), &[]).await;
    assert!(stop(&second, "1").await);
    second.kill();
    let newest = fs::read(&path).unwrap();
    fs::write(&path, backup).unwrap();
    let said = Sidecar::try_start(&path, &[]).err().expect("it must not start");
    assert_says(&said, &["revision 2", "put the newest copy in its place"]);
    fs::write(&path, newest).unwrap();
    let again = Sidecar::live(folder.path(), &[]).await;
    assert_eq!(reason(&again, "1").await, Reason::OptedOutAll);
}

#[tokio::test]
async fn emptied_ledger_is_none_for_commands_which_leave_its_mark() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    assert!(stop(&sidecar, "1").await);
    drain(sidecar).await;
    let path = ledger_in(folder.path());
    let beside = folder.path().join("ledger.redb.acknowledged");
    let mark = fs::read(&beside).unwrap();
    fs::write(&path, "").unwrap();
    let address = format!("file:{}", path.display());
    for command in ["status", "verify", "compact"] {
        let (code, _, said) = run(&["ledger", command, "--ledger", &address]);
        assert_eq!(code, 2, "{said}");
        assert_says(&said, &["there is no ledger at", path.to_str().unwrap()]);
    }
    assert_eq!(fs::read(&path).unwrap(), b"", "none was made");
    assert_eq!(fs::read(&beside).unwrap(), mark);
    let said = Sidecar::try_start(&path, &[]).err().expect("it must not start");
    assert_says(&said, &["ledger.redb.acknowledged", "--new"]);
}

#[tokio::test]
async fn missing_ledger_in_a_folder_with_traces_wants_new() {
    let empty = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(empty.path(), &[]).await;
    let said = sidecar.said();
    let full = ledger_in(empty.path());
    assert_says(&said, &["made a new ledger", full.to_str().unwrap(), "nobody has opted out"]);
    drain(sidecar).await;
    let again = Sidecar::live(empty.path(), &[]).await;
    assert!(!again.said().contains("made a new ledger"), "{}", again.said());
    drop(again);

    let saved_table: Vec<u8> = [&b"consentd\0\0\0\x01"[..], &[0; 40]].concat();
    let (epoch, head) = ("0".repeat(32), "0".repeat(40));
    let mark = format!("ledger {epoch} acknowledged revision {:020} head {head}\n", 7);
    for (name, content) in [
        ("ledger.redb.lock", &b""[..]),
        ("ledger.redb.acknowledged", mark.as_bytes()),
        ("ledger.redb.2026-11-01", b"a backup"),
        ("ledger.redb~", b"a backup"),
        ("crm.csv.import-progress", b"{}"),
        ("table", &saved_table),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = ledger_in(folder.path());
        fs::write(folder.path().join(name), content).unwrap();
        // An empty file is a ledger no more than none is.
        for is_empty in [false, true] {
            let shows = name != "table" || !is_empty;
            if is_empty {
                fs::write(&path, "").unwrap();
            }
            if shows {
                let said = Sidecar::try_start(&path, &[]).err().expect("it must not start");
                assert_says(&said, &[name, "--new", path.to_str().unwrap()]);
                assert_eq!(path.exists(), is_empty, "{name}");
            }
        }
        let sidecar = Sidecar::live(folder.path(), &["--new"]).await;
        assert_says(&sidecar.said(), &["made a new ledger"]);
        assert!(stop(&sidecar, "1").await);
        drain(sidecar).await;
        // It is there now, and no longer asked for.
        let sidecar = Sidecar::live(folder.path(), &[]).await;
        assert_eq!(reason(&sidecar, "1").await, Reason::OptedOutAll);
    }
    // What belongs to others is no trace of this one.
    let folder = tempfile::tempdir().unwrap();
    for name in ["ledger.redb2", "other.redb", "notes.txt", "app-secret"] {
        fs::write(folder.path().join(name), "x").unwrap();
    }
    drop(Sidecar::live(folder.path(), &[]).await);
}

#[tokio::test]
async fn damaged_ledger_is_told_and_does_not_crash_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = ledger_in(folder.path());
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    for user in ["1", "2", "3"] {
        assert!(stop(&sidecar, user).await);
    }
    drain(sidecar).await;
    let whole = fs::read(&path).unwrap();
    let mut told = 0;
    for place in (64..whole.len()).step_by(whole.len() / 60) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        fs::write(&path, bytes).unwrap();
        match Sidecar::try_start(&path, &[]) {
            Err(said) => {
                assert!(!said.contains("panicked"), "byte {place}: {said}");
                let shown = path.to_str().unwrap();
                assert_says(&said, &["exit status: 2", shown]);
                assert!(said.contains("is damaged") || said.contains("ends at"), "{said}");
                told += 1;
            }
            Ok(sidecar) => {
                sidecar.wait_until_live().await;
                for user in ["1", "2", "3"] {
                    assert_eq!(reason(&sidecar, user).await, Reason::OptedOutAll, "byte {place}");
                }
            }
        }
    }
    assert!(told > 0);
}

#[tokio::test]
async fn ledger_file_is_measured_and_status_tells_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = ledger_in(folder.path());
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    eventually("it is measured", || async {
        let (_, metrics) = sidecar.get("/metrics").await;
        let value = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        let (bytes, free) =
            (value("consent_ledger_file_bytes "), value("consent_ledger_file_free_bytes "));
        bytes > 0 && free < bytes
    })
    .await;
    drain(sidecar).await;
    let ledger = format!("file:{}", path.display());
    let (code, printed, error) = run(&["ledger", "status", "--ledger", &ledger, "--json"]);
    assert_eq!(code, 0, "{error}");
    let told: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(told["fileBytes"], fs::metadata(&path).unwrap().len());
    assert!(told["fileFreeBytes"].as_u64().unwrap() < told["fileBytes"].as_u64().unwrap());
}

/// Whether a first command in an empty folder works as the README has it.
#[tokio::test]
async fn first_start_in_an_empty_folder_needs_no_flag() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("consentd.redb");
    let started = |folder: &Path| {
        let mut command = Command::new(BINARY);
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "none"]);
        command.current_dir(folder).env_remove("CONSENTD_LEDGER");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let mut sidecar = started(folder.path());
    let began = Instant::now();
    while !path.exists() {
        assert!(began.elapsed() < PATIENCE, "no ledger was made");
        assert!(sidecar.try_wait().unwrap().is_none(), "it has ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sidecar.kill().unwrap();
    sidecar.wait().unwrap();
}
