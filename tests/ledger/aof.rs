//! `--durability aof`: on which servers and settings it is what it says, and how that is found.

use consentd_ledger::{Durability, Redis, RedisRejection, UnsupportedServer};
use servers::ServerKind;

use super::*;

/// A server of this kind with an append-only file and a ledger.
fn a_server(kind: ServerKind, appendfsync: &str) -> (TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["--appendonly", "yes", "--appendfsync", appendfsync];
    let server = Server::start_kind(kind, folder.path(), &settings);
    server.create();
    (folder, server)
}

fn open(server: &Server) -> (Open, Redis) {
    let durability = Durability::Aof;
    let confirm_within = durability.confirm_within();
    let options = Options { durability, confirm_within, ..Options::default() };
    let (ledger, driver) = Redis::new(server.target(), options);
    let writer = Writer::Task(tokio::spawn(driver.run(CancellationToken::new())));
    (Open { ledger: Ledger::Redis(ledger.clone()), writer }, ledger)
}

fn unfit(error: &LedgerError) -> &UnsupportedServer {
    let LedgerError::Refused(why) = error else { panic!("{error:?}") };
    why.downcast_ref().unwrap_or_else(|| panic!("{error:?}"))
}

async fn set(server: &Server, name: &str, value: &str) {
    let mut command = redis::cmd("CONFIG");
    command.arg("SET").arg(name).arg(value);
    command.query_async::<()>(&mut server.client().await).await.unwrap();
}

/// An opt-out of somebody of whom nothing is known.
fn stop(number: u64) -> Change {
    change(key(number), &nothing(), [opt_out("letter")])
}

#[tokio::test]
async fn redis_8_with_a_sync_every_second_confirms_every_append() {
    let (_folder, server) = a_server(ServerKind::Redis82, "everysec");
    let (open, ledger) = open(&server);
    ledger.probe().await.unwrap();
    // Each waits for a sync of its own, up to a second and a little.
    for number in 1..=3 {
        let appended = open.ledger.append(vec![stop(number)]).await.unwrap();
        assert!(matches!(appended[..], [Appended::Committed(_)]), "{number}: {appended:?}");
    }
    open.close().await;
}

#[tokio::test]
async fn valkey_with_a_sync_every_second_is_refused_until_it_always_syncs() {
    let (_folder, server) = a_server(ServerKind::Valkey91, "everysec");
    let (open, ledger) = open(&server);
    let error = ledger.probe().await.unwrap_err();
    assert_eq!(*unfit(&error), UnsupportedServer::ConfirmsUnsynced);
    assert!(error.needs_an_operator());
    let error = open.ledger.append(vec![stop(1)]).await.unwrap_err();
    assert_eq!(*unfit(&error), UnsupportedServer::ConfirmsUnsynced);
    assert!(error.to_string().contains("set appendfsync always"), "{error}");
    assert_eq!(read(&open.ledger, key(1)).await, nothing(), "nothing was written");
    set(&server, "appendfsync", "always").await;
    ledger.probe().await.unwrap();
    let appended = open.ledger.append(vec![stop(1)]).await.unwrap();
    assert!(matches!(appended[..], [Appended::Committed(_)]), "{appended:?}");
    open.close().await;
}

#[tokio::test]
async fn a_file_that_is_never_synced_is_refused_and_a_sync_in_each_write_is_taken() {
    for kind in [ServerKind::Redis82, ServerKind::Valkey91] {
        let (_folder, server) = a_server(kind, "no");
        let (open, ledger) = open(&server);
        let error = ledger.probe().await.unwrap_err();
        assert_eq!(*unfit(&error), UnsupportedServer::NeverSyncs, "{kind:?}");
        set(&server, "appendfsync", "always").await;
        let appended = open.ledger.append(vec![stop(1)]).await.unwrap();
        assert!(matches!(appended[..], [Appended::Committed(_)]), "{kind:?}: {appended:?}");
        open.close().await;
    }
}

#[tokio::test]
async fn a_confirmation_that_does_not_come_names_the_file_and_not_replicas() {
    let (_folder, server) = a_server(ServerKind::Redis82, "always");
    let (open, ledger) = open(&server);
    ledger.probe().await.unwrap();
    // Since it was looked at, the operator has set it up so that it never syncs.
    set(&server, "appendfsync", "no").await;
    let error = open.ledger.append(vec![stop(1)]).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unsynced(_)), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("append-only file") && !said.contains("replica"), "{said}");
    assert_eq!(RedisRejection::of(&error), None);
    open.close().await;
}

#[tokio::test]
async fn confirmation_that_times_out_proves_nothing_about_the_server() {
    let (_folder, server) = a_server(ServerKind::Redis82, "everysec");
    // Far less than the second that this server takes to sync.
    let confirm_within = Duration::from_millis(1);
    let options = Options { durability: Durability::Aof, confirm_within, ..Options::default() };
    let (ledger, driver) = Redis::new(server.target(), options);
    let writer = Writer::Task(tokio::spawn(driver.run(CancellationToken::new())));
    let open = Open { ledger: Ledger::Redis(ledger.clone()), writer };
    let error = ledger.probe().await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("did not confirm within 1ms") && said.contains("WAITAOF"), "{said}");
    assert!(!error.needs_an_operator(), "its disk may only have been busy: {said}");
    open.close().await;
}

#[tokio::test]
async fn redis_7_0_cannot_confirm_and_is_refused() {
    let (_folder, server) = a_server(ServerKind::Redis70, "always");
    let (open, ledger) = open(&server);
    let error = ledger.probe().await.unwrap_err();
    assert!(matches!(unfit(&error), UnsupportedServer::NoWaitAof(_)), "{error}");
    open.close().await;
}
