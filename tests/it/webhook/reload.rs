//! Secrets and numbers change while requests are received.

use consentd::grpc::pb::Reason;

use super::client::{
    Files, NUMBER, SECRET, USER, acme, answers, deliver, file, fixture, post, sign,
};
use crate::faults::stage::{metric, wait_for_metric};
use crate::sidecar::eventually;

const DONE: &str = "consent_webhook_reloads_total{outcome=\"done\"}";
const FAILED: &str = "consent_webhook_reloads_total{outcome=\"failed\"}";
/// A line that says what a secret is for, as files of tokens have them.
const COMMENT: &str = "# the secret of the app since May";
const NEW: &str = "the app's new secret, of today";

#[tokio::test]
async fn a_secret_is_replaced_while_both_are_good() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let address = &sidecar.webhook;
    let body = fixture("inbound_text", NUMBER);
    let status = async |secret: &str| post(address, &sign(secret, &body), &body).await.status;
    assert_eq!((status(SECRET).await, status(NEW).await), (200, 403));
    files.write("secret", &format!("{COMMENT}\n{NEW}\n\n  # old\n{SECRET}\n"));
    sidecar.signal("HUP");
    // The files are also read at the start and by themselves, so that a count does not say which was read.
    eventually("both are good", || async { status(NEW).await == 200 }).await;
    assert_eq!(status(SECRET).await, 200);
    assert_eq!(status(COMMENT).await, 403, "whoever guesses a comment has no secret");
    files.write("secret", &format!("{NEW}\n"));
    sidecar.signal("HUP");
    eventually("the old one is refused", || async { status(SECRET).await == 403 }).await;
    assert_eq!(status(NEW).await, 200);
    assert!(metric(&sidecar, DONE).await >= 2.0);
    assert!(!sidecar.said().contains(NEW) && !sidecar.said().contains(SECRET));
}

#[tokio::test]
async fn several_files_of_secrets_are_all_good() {
    let files = Files::new(&acme());
    files.write("other", NEW);
    let other = files.path("other").display().to_string();
    let flags = ["--webhook-app-secret-file", &other];
    let sidecar = files.serve(&file(files.folder.path()), &flags).await;
    let body = fixture("inbound_text", NUMBER);
    for secret in [SECRET, NEW] {
        let answer = post(&sidecar.webhook, &sign(secret, &body), &body).await;
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test]
async fn a_change_is_seen_unasked_and_a_bad_one_changes_nothing() {
    let files = Files::new(&acme());
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    let address = &sidecar.webhook;
    let second = fixture("inbound_stop", "22");
    assert_eq!(deliver(address, &second).await, 200, "and skipped");
    let both = [acme(), vec![("22".to_owned(), "second".to_owned())]].concat();
    files.name(&both);
    wait_for_metric(&sidecar, DONE, 1.0).await;
    assert_eq!(deliver(address, &second).await, 200);
    answers(&sidecar, USER, "second", "utility", Reason::OptedOutAll).await;
    for (name, text, part) in [
        ("consentd.toml", "[whatsapp.numbers]\n1 = \"\"", "whatsapp: numbers: 1"),
        ("consentd.toml", "[whatsapp", "consentd.toml"),
        ("secret", "short", "shorter than 16 characters"),
    ] {
        let before = metric(&sidecar, FAILED).await;
        files.write(name, text);
        wait_for_metric(&sidecar, FAILED, before + 1.0).await;
        eventually("it says why", || async { sidecar.said().contains(part) }).await;
        assert_eq!(deliver(address, &second).await, 200, "as before");
    }
    assert_eq!(sidecar.said().matches("cannot be used").count(), 3, "each is told once");
    // Once all is well it goes on with what is there now.
    files.name(&acme());
    files.write("secret", NEW);
    eventually("the old secret is gone", || async { deliver(address, &second).await == 403 }).await;
}

#[tokio::test]
async fn what_is_wrong_at_the_start_is_told_there() {
    let files = Files::new(&[]);
    let started = |files: &Files| {
        let flags = files.flags();
        let flags: Vec<_> =
            flags.iter().map(String::as_str).chain(["--webhook", "127.0.0.1:0"]).collect();
        crate::sidecar::Sidecar::try_start(&files.path("ledger.redb"), &flags)
            .map(|_| ())
            .unwrap_err()
    };
    assert!(started(&files).contains("whatsapp.numbers"));
    files.name(&acme());
    files.write("secret", "\n# none of them yet\n");
    assert!(started(&files).contains("--webhook-app-secret-file: there is no secret in"));
    files.write("secret", SECRET);
    std::fs::remove_file(files.path("token")).unwrap();
    assert!(started(&files).contains("--webhook-verify-token-file: cannot read the secret in"));
}
