//! TLS with a client's certificate, and bearer tokens.

use std::path::Path;
use std::process::Command;

use consentd_client::testing::Sidecar;
use consentd_client::{Client, Event};
use tonic::Code;

use crate::fixture::{PATIENCE, binary, question};

/// Makes a CA and certificates of `localhost`, one for the server and one for the client.
fn make_certificates(folder: &Path) {
    let script = "
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \\
            -subj /CN=test-ca -keyout ca.key -out ca.crt
        for name in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name \\
                -keyout $name.key -out $name.csr
            printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > names
            openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \\
                -out $name.crt -extfile names
        done";
    let made = Command::new("sh").args(["-euc", script]).current_dir(folder).output().unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "apt-get install openssl: {said}");
}

#[tokio::test]
async fn a_client_with_a_certificate_and_a_token_checks_and_records() {
    let folder = std::env::temp_dir().join(format!("consentd-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    make_certificates(&folder);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let tokens = path("tokens");
    std::fs::write(&tokens, "# recorders\n\na-long-enough-token\n").unwrap();
    Command::new("chmod").args(["600", &tokens]).status().unwrap();
    let (certificate, key, ca) = (path("server.crt"), path("server.key"), path("ca.crt"));
    let flags = [
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-client-ca-file",
        &ca,
        "--record-token-file",
        &tokens,
        "--tls-listeners",
        "listen",
    ];
    let sidecar = Sidecar::start_binary_unready(binary(), &flags).unwrap();
    let port = sidecar.address().rsplit_once(':').unwrap().1;
    let builder = || {
        let client = Client::builder().address(format!("localhost:{port}")).deadline(PATIENCE);
        client.ca_file(&ca)
    };
    let known = || builder().identity_files(path("client.crt"), path("client.key"));
    let client = known().token_file(&tokens).build().unwrap();
    client.ready(PATIENCE).await.unwrap();
    assert_eq!(client.may_send(question("u")).await.reason(), "NO_CONSENT");
    let event = Event::opt_out("u", "acme", "*");
    client.record(event.clone()).await.unwrap();
    assert_eq!(client.may_send(question("u")).await.reason(), "OPTED_OUT_ALL");

    // The file is read again for each recording.
    std::fs::write(&tokens, "another-token-altogether\n").unwrap();
    let refused = client.record(event.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    std::fs::remove_file(&tokens).unwrap();
    let refused = client.record(event.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(!refused.to_string().contains("another-token"));
    let literal = known().token("a-long-enough-token").build().unwrap();
    literal.record(event).await.unwrap();

    let soon = std::time::Duration::from_millis(500);
    let unknown = builder().build().unwrap();
    assert!(unknown.may_send(question("u").deadline(soon)).await.is_unavailable());
    let plain = Client::new(sidecar.address()).unwrap();
    assert!(plain.may_send(question("u").deadline(soon)).await.is_unavailable());
    for (builder, name) in [
        (known().token("two\nlines"), "token"),
        (builder().ca_file("/no/such/file"), "/no/such/file"),
        (Client::builder().address("a b:1"), "HOST:PORT"),
    ] {
        let error = builder.build().unwrap_err();
        assert!(error.is_invalid() && error.cause().contains(name), "{error}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}
