//! TLS with a real server, and certificates made for the test.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::*;

/// A CA and the certificates that it has signed, as files in a folder.
struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Signs a certificate for a name, and writes it and its key.
    fn sign(&self, file: &str, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        // With the same name as its issuer it would count as self-signed.
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let at = |end: &str| self.folder.path().join(format!("{file}.{end}"));
        std::fs::write(at("pem"), certificate.pem()).unwrap();
        std::fs::write(at("key"), key.serialize_pem()).unwrap();
        (at("pem"), at("key"))
    }

    /// A server that asks its clients for certificates of this CA.
    async fn server(&self, name: &str) -> Server {
        let (certificate, key) = self.sign(&format!("server-{name}"), name);
        let port = servers::free_port();
        let (number, ca) = (port.to_string(), self.ca());
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let arguments = [
            ["--port", "0"],
            ["--tls-port", &number],
            ["--tls-cert-file", &text(&certificate)],
            ["--tls-key-file", &text(&key)],
            ["--tls-ca-cert-file", &text(&ca)],
        ];
        Server::launch(port, &arguments.concat(), None).await
    }
}

#[tokio::test]
async fn client_and_server_certificates_are_verified() {
    let authority = Authority::new();
    let server = authority.server("localhost").await;
    let (certificate, key) = authority.sign("client", "sidecar");
    let url = format!("rediss://localhost:{}", server.port());
    let with_ca = || TargetOptions { ca_file: Some(authority.ca()), ..TargetOptions::default() };
    let whole = || TargetOptions {
        cert_file: Some(certificate.clone()),
        key_file: Some(key.clone()),
        ..with_ca()
    };
    let connection = link(&url, whole()).connection().await.unwrap();
    assert_eq!(whoami(&connection).await, "default");
    assert_eq!(connection.primary.address.to_string(), format!("localhost:{}", server.port()));
    let said = refusal(&link(&url, with_ca())).await;
    assert!(said.contains("--ledger-cert-file"), "without a certificate: {said}");
    let said = refusal(&link(&url, TargetOptions { ca_file: None, ..whole() })).await;
    assert!(said.contains("--ledger-ca-file"), "a CA that is not the system's: {said}");
    // The certificate is for the name localhost only.
    let by_number = format!("rediss://127.0.0.1:{}", server.port());
    let said = refusal(&link(&by_number, whole())).await;
    assert!(said.contains("TLS with 127.0.0.1") && said.contains("not valid for name"), "{said}");
    let plainly = format!("redis://localhost:{}", server.port());
    let said = refusal(&link(&plainly, TargetOptions::default())).await;
    assert!(said.contains("give `rediss`"), "{said}");
    let plain = Server::start(&[]).await;
    let said = refusal(&link(&format!("rediss://localhost:{}", plain.port()), whole())).await;
    assert!(said.contains("in place of `rediss` is without"), "{said}");
    let no_key = TargetOptions { key_file: Some(authority.ca()), ..whole() };
    let said = refusal(&link(&url, no_key)).await;
    assert!(said.contains("must hold a private key"), "{said}");
    let none = PathBuf::from("/no/ca.pem");
    let said = refusal(&link(&url, TargetOptions { ca_file: Some(none), ..whole() })).await;
    assert!(said.contains("/no/ca.pem") && said.contains("there is no folder"), "{said}");
}

#[tokio::test]
async fn rotated_certificates_are_read_for_the_next_connection() {
    let (old, new) = (Authority::new(), Authority::new());
    let first = old.server("localhost").await;
    let port = first.port();
    let (certificate, key) = old.sign("client", "sidecar");
    let ours = tempfile::tempdir().unwrap();
    let install = |from: &PathBuf, name: &str| {
        let to = ours.path().join(name);
        std::fs::copy(from, &to).unwrap();
        Some(to)
    };
    let options = TargetOptions {
        ca_file: install(&old.ca(), "ca.pem"),
        cert_file: install(&certificate, "client.pem"),
        key_file: install(&key, "client.key"),
        ..TargetOptions::default()
    };
    let connections = link(&format!("rediss://localhost:{port}"), options);
    let connection = connections.connection().await.unwrap();
    drop(first);
    let (certificate, key) = new.sign("server", "localhost");
    let (number, ca) = (port.to_string(), new.ca());
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let arguments = [
        ["--port", "0"],
        ["--tls-port", &number],
        ["--tls-cert-file", &text(&certificate)],
        ["--tls-key-file", &text(&key)],
        ["--tls-ca-cert-file", &text(&ca)],
    ];
    let _second = Server::launch(port, &arguments.concat(), None).await;
    connections.discard(&connection);
    let said = in_time("the new certificate", async || {
        Some(refusal(&connections).await).filter(|said| said.contains("TLS with"))
    });
    assert!(said.await.contains("failed"));
    let (certificate, key) = new.sign("client", "sidecar");
    install(&new.ca(), "ca.pem");
    install(&certificate, "client.pem");
    install(&key, "client.key");
    connected(&connections).await;
}

#[tokio::test]
async fn sentinels_and_their_primary_are_reached_over_tls() {
    let authority = Authority::new();
    let primary = authority.server("127.0.0.1").await;
    let (certificate, key) = authority.sign("sentinel", "127.0.0.1");
    let port = servers::free_port();
    let text = format!(
        "port 0\ntls-port {port}\nbind 127.0.0.1\ntls-cert-file {}\ntls-key-file {}\n\
         tls-ca-cert-file {}\ntls-replication yes\n\
         sentinel monitor mymaster 127.0.0.1 {} 1\n",
        certificate.display(),
        key.display(),
        authority.ca().display(),
        primary.port(),
    );
    let _sentinel = Server::launch(port, &["--sentinel"], Some(&text)).await;
    let (certificate, key) = authority.sign("client", "sidecar");
    let options = TargetOptions {
        ca_file: Some(authority.ca()),
        cert_file: Some(certificate),
        key_file: Some(key),
        ..TargetOptions::default()
    };
    let connections = link(&format!("rediss+sentinel://127.0.0.1:{port}/mymaster"), options);
    let connection = connections.connection().await.unwrap();
    assert_eq!(connection.primary.address.to_string(), format!("127.0.0.1:{}", primary.port()));
    assert_eq!(whoami(&connection).await, "default");
    connections.confirm_primary(&connection).await.unwrap();
}
