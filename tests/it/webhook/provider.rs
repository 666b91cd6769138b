//! Webhooks that a business solution provider passes on, signed by a secret of its own.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use consentd::grpc::pb::Reason;

use super::client::{
    Files, NUMBER, SECRET, TOKEN, USER, acme, answers, file, fixture, reason, send, sign,
};
use crate::sidecar::Sidecar;

const HEADER: &str = "x-360dialog-signature";
const APP_HEADER: &str = "x-hub-signature-256";
/// The provider's secret.
const PLATFORM: &str = "the platform's secret, of the partner hub";

/// Posts a body with these headers; gives the status.
async fn post(address: &str, headers: &[(&str, &str)], body: &[u8]) -> u16 {
    let mut head = format!("POST /webhook HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").expect("a string takes all");
    }
    send(address, &head, body).await.expect("an answer").status
}

/// An HMAC in hexadecimal, without what Meta puts before it.
fn bare(secret: &str, body: &[u8]) -> String {
    sign(secret, body)["sha256=".len()..].to_owned()
}

/// A receiver of what the app and a provider sign.
async fn both(files: &Files) -> Sidecar {
    files.write("platform", PLATFORM);
    let secret = files.path("platform").display().to_string();
    let flags = ["--webhook-signature-header", HEADER, "--webhook-signature-secret-file", &secret];
    files.serve(&file(files.folder.path()), &flags).await
}

#[tokio::test]
async fn a_signature_counts_in_the_header_of_its_secret_alone() {
    let files = Files::new(&acme());
    let sidecar = both(&files).await;
    let address = &sidecar.webhook;
    let stop = fixture("inbound_stop", NUMBER);
    let (own, app) = (bare(PLATFORM, &stop), sign(SECRET, &stop));
    let stale = bare("a stale secret, of last year", &stop);
    let spaced = [&stop[..], b" "].concat();
    for (headers, body, what) in [
        (&[][..], &stop, "unsigned"),
        (&[(HEADER, "")], &stop, "an empty signature"),
        (&[(HEADER, stale.as_str())], &stop, "another secret"),
        (&[(HEADER, own.as_str())], &spaced, "other bytes"),
        (&[(HEADER, &own[..62])], &stop, "a part of it"),
        (&[(APP_HEADER, own.as_str())], &stop, "in the app's header"),
        (&[(APP_HEADER, &sign(PLATFORM, &stop))], &stop, "in the app's header and form"),
        (&[(HEADER, app.as_str())], &stop, "the app's, in the provider's header"),
        (&[(HEADER, &bare(SECRET, &stop))], &stop, "the app's, in the provider's form"),
        (&[("x-other-signature", own.as_str())], &stop, "in a header that is not configured"),
        (&[(HEADER, own.as_str()), (HEADER, own.as_str())], &stop, "twice"),
        (&[(HEADER, stale.as_str()), (APP_HEADER, stale.as_str())], &stop, "both are wrong"),
    ] {
        assert_eq!(post(address, headers, body).await, 403, "{what}");
    }
    assert_eq!(reason(&sidecar, USER, "acme", "utility").await, Reason::NoConsent);
    let said = sidecar.said();
    assert!(!said.contains(PLATFORM) && !said.contains(&own), "{said}");
    assert!(said.contains("--webhook-signature-secret-file"), "{said}");
    let in_base64 = BASE64_STANDARD.encode(hex::decode(&own).unwrap());
    let meta = sign("the secret of the provider's app", &stop);
    for (headers, what) in [
        (&[(HEADER, own.as_str())][..], "hexadecimal"),
        (&[("X-360Dialog-Signature", &own.to_uppercase())], "without regard to case"),
        (&[(HEADER, &sign(PLATFORM, &stop))], "with what Meta puts before it"),
        (&[(HEADER, in_base64.as_str())], "base64"),
        (&[(APP_HEADER, app.as_str())], "the app's"),
        (&[(HEADER, own.as_str()), (APP_HEADER, app.as_str())], "both"),
        (&[(HEADER, own.as_str()), (APP_HEADER, meta.as_str())], "beside Meta's to the provider"),
        (&[(HEADER, stale.as_str()), (APP_HEADER, app.as_str())], "the app's beside a stale one"),
    ] {
        assert_eq!(post(address, headers, &stop).await, 200, "{what}");
    }
    answers(&sidecar, USER, "acme", "utility", Reason::OptedOutAll).await;
}

#[tokio::test]
async fn a_large_body_is_verified_alike() {
    let files = Files::new(&acme());
    let sidecar = both(&files).await;
    let mut stop = fixture("inbound_stop", NUMBER);
    stop.resize(1 << 20, b' ');
    let (own, stale) = (bare(PLATFORM, &stop), bare("a stale secret, of last year", &stop));
    assert_eq!(post(&sidecar.webhook, &[(HEADER, &stale)], &stop).await, 403);
    assert_eq!(reason(&sidecar, USER, "acme", "utility").await, Reason::NoConsent);
    assert_eq!(post(&sidecar.webhook, &[(HEADER, &own)], &stop).await, 200);
    answers(&sidecar, USER, "acme", "utility", Reason::OptedOutAll).await;
}

#[tokio::test]
async fn a_provider_alone_needs_neither_the_app_nor_its_handshake() {
    let files = Files::new(&acme());
    files.write("platform", PLATFORM);
    let path = |name: &str| files.path(name).display().to_string();
    let (config, platform) = (path("consentd.toml"), path("platform"));
    let flags = [
        "--config",
        &config,
        "--webhook",
        "127.0.0.1:0",
        "--webhook-signature-header",
        HEADER,
        "--webhook-signature-secret-file",
        &platform,
    ];
    let sidecar = Sidecar::live(files.folder.path(), &flags).await;
    let stop = fixture("inbound_stop", NUMBER);
    let (own, app) = (bare(PLATFORM, &stop), sign(SECRET, &stop));
    assert_eq!(post(&sidecar.webhook, &[(APP_HEADER, &app)], &stop).await, 403);
    let empty = sign("", &stop);
    assert_eq!(post(&sidecar.webhook, &[(APP_HEADER, &empty)], &stop).await, 403, "no secret");
    for token in ["", "hub.verify_token=&", &format!("hub.verify_token={TOKEN}&")] {
        let token = token.replace(' ', "%20");
        let head = format!("GET /webhook?{token}hub.mode=subscribe&hub.challenge=7 HTTP/1.1\r\n");
        assert_eq!(send(&sidecar.webhook, &head, b"").await.unwrap().status, 403, "{token}");
    }
    assert_eq!(post(&sidecar.webhook, &[(HEADER, &own)], &stop).await, 200);
    answers(&sidecar, USER, "acme", "utility", Reason::OptedOutAll).await;
}

#[tokio::test]
async fn a_header_without_a_secret_or_the_apps_own_is_refused_at_the_start() {
    let files = Files::new(&acme());
    files.write("platform", PLATFORM);
    let secret = files.path("platform").display().to_string();
    let started = |flags: &[&str]| {
        let ours = files.flags();
        let flags: Vec<_> = ours
            .iter()
            .map(String::as_str)
            .chain(["--webhook", "127.0.0.1:0"])
            .chain(flags.iter().copied())
            .collect();
        let started = Sidecar::try_start(&files.path("ledger.redb"), &flags);
        started.map(|_| ()).expect_err("the settings are wrong")
    };
    let (header, file) = ("--webhook-signature-header", "--webhook-signature-secret-file");
    for (flags, part) in [
        (&[header, HEADER][..], "needs --webhook-signature-secret-file"),
        (&[file, &secret], "needs --webhook-signature-header"),
        (&[header, "X-Hub-Signature-256", file, &secret], "has the app's signature"),
        (&[header, "not a header", file, &secret], "must be the name of an HTTP header"),
        (&[header, HEADER, file, "/nowhere/secret"], "cannot read the secret"),
    ] {
        let said = started(flags);
        assert!(said.contains(part), "{flags:?}: {said}");
    }
}
