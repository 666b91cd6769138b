//! SIGHUP, and what is warned of at the start.

use std::os::unix::fs::symlink;
use std::process::Command;

use consentd::grpc::pb::record_service_client::RecordServiceClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::faults::redis::Redis;
use crate::faults::stage::{init, ledger_at};
use crate::sidecar::{
    BINARY, PATIENCE, Sidecar, channel, event, eventually, inbound, ledger_in, run,
};

const DONE: &str = "every other setting takes a restart";

/// Sends SIGHUP, and waits until the sidecar says what it did.
async fn hang_up(sidecar: &Sidecar) {
    let before = sidecar.said().matches(DONE).count();
    sidecar.signal("HUP");
    eventually("SIGHUP is heard", || async { sidecar.said().matches(DONE).count() > before }).await;
}

#[tokio::test]
async fn sighup_without_a_webhook_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    for _ in 0..3 {
        hang_up(&sidecar).await;
    }
    let mut records = sidecar.records().await;
    records.record_event(event("1", "acme", inbound("Hi"))).await.unwrap();
    sidecar.signal("TERM");
    assert!(sidecar.wait(PATIENCE).success());
}

#[tokio::test]
async fn sighup_with_one_worker_and_on_a_redis_ends_nothing() {
    let redis = Redis::start(&[]);
    let ledger = ledger_at(&redis.address());
    init(&ledger, &["--buckets", "16"]);
    let flags = ["--workers", "1", "--record", "127.0.0.1:0", "--admin", "none"];
    let sidecar = Sidecar::try_start_by(Command::new(BINARY), &ledger, &flags, &[]).unwrap();
    hang_up(&sidecar).await;
    sidecar.wait_until_live().await;
    let mut records = RecordServiceClient::new(channel(&sidecar.record).await);
    records.record_event(event("1", "acme", inbound("Hi"))).await.unwrap();
}

/// The code with which a recording with this token is answered.
async fn recording_with(records: &RecordServiceClient<Channel>, token: &str) -> Code {
    let mut request = tonic::Request::new(event("1", "acme", inbound("Hi")));
    let header = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", header);
    records.clone().record_event(request).await.map_or_else(|said| said.code(), |_| Code::Ok)
}

#[tokio::test]
async fn token_file_that_changes_is_read_again_without_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    // As Kubernetes replaces the files of a Secret: the path leads through a link that is renamed.
    let (link, next) = (folder.path().join("secret"), folder.path().join("next"));
    for (version, token) in [("1", "first-secret-token"), ("2", "second-secret-token")] {
        std::fs::create_dir(folder.path().join(version)).unwrap();
        std::fs::write(folder.path().join(version).join("tokens"), token).unwrap();
    }
    symlink(folder.path().join("1"), &link).unwrap();
    let tokens = link.join("tokens");
    let flags = ["--record-token-file", tokens.to_str().unwrap()];
    let sidecar = Sidecar::live(folder.path(), &flags).await;
    let records = sidecar.records().await;
    assert_eq!(recording_with(&records, "first-secret-token").await, Code::Ok);
    symlink(folder.path().join("2"), &next).unwrap();
    std::fs::rename(&next, &link).unwrap();
    eventually("the new token records", || async {
        recording_with(&records, "second-secret-token").await == Code::Ok
    })
    .await;
    assert_eq!(recording_with(&records, "first-secret-token").await, Code::Unauthenticated);
    eventually("the log says so", || async {
        sidecar.said().contains("tokens that may record were read again")
    })
    .await;
}

#[tokio::test]
async fn sighup_reads_the_tokens_again() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "first-secret-token\n").unwrap();
    let flags = ["--record-token-file", tokens.to_str().unwrap()];
    let sidecar = Sidecar::live(folder.path(), &flags).await;
    let records = sidecar.records().await;
    let code = async |token: &str| recording_with(&records, token).await;
    assert_eq!(code("first-secret-token").await, Code::Ok);
    std::fs::write(&tokens, "second-secret-token\n").unwrap();
    hang_up(&sidecar).await;
    assert_eq!(code("first-secret-token").await, Code::Unauthenticated);
    assert_eq!(code("second-secret-token").await, Code::Ok);
    // What cannot be used changes nothing.
    for bad in ["short\n", ""] {
        std::fs::write(&tokens, bad).unwrap();
        hang_up(&sidecar).await;
        assert_eq!(code("second-secret-token").await, Code::Ok);
    }
    // The file is read by itself too, and may have been found bad before the signal.
    assert!(sidecar.said().matches("keeping the previous bearer tokens").count() >= 2);
    assert!(!sidecar.said().contains("secret-token"), "{}", sidecar.said());
}

#[tokio::test]
async fn an_unknown_variable_is_warned_of_with_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let variables = [("CONSENTD_MAX_STALENES", "the-value"), ("CONSENTD_SERVICE_HOST", "10.0.0.1")];
    let sidecar = Sidecar::try_start_in(&ledger_in(folder.path()), &[], &variables).unwrap();
    let said = sidecar.said();
    let part = "CONSENTD_MAX_STALENES sets nothing; did you mean CONSENTD_MAX_STALENESS?";
    assert!(said.contains(part) && said.contains("WARN"), "{said}");
    assert!(!said.contains("the-value") && !said.contains("SERVICE_HOST"), "{said}");
}

#[tokio::test]
async fn a_password_on_the_command_line_is_warned_of() {
    let redis = Redis::start(&[]);
    redis.command(&["ACL", "SETUSER", "sidecar", "on", ">hunter2-hunter2", "~*", "&*", "+@all"]);
    let ledger = format!("redis://sidecar:hunter2-hunter2@{}", redis.address());
    let (code, printed, said) = run(&["init", "--ledger", &ledger, "--buckets", "16"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("--ledger-password-file"), "{said}");
    let sidecar = Sidecar::try_start_by(Command::new(BINARY), &ledger, &[], &[]).unwrap();
    assert!(sidecar.said().contains("--ledger-password-file"), "{}", sidecar.said());
    for said in [printed, said, sidecar.said()] {
        assert!(!said.contains("hunter2"), "{said}");
    }
}
