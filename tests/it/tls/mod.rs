//! TLS on every listener, and clients that are known by their certificates.

pub mod authority;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use consentd::grpc::pb;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd_tls::ClientFiles;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request};
use tower::service_fn;

use self::authority::{Authority, Signed, text};
use crate::sidecar::{Sidecar, eventually, ledger_in, question, run};

/// Starts a sidecar with these flags, and waits until it answers a client with the others.
async fn served(folder: &Path, flags: &[&str], client: &[&str]) -> Sidecar {
    let sidecar = Sidecar::start(&ledger_in(folder), flags);
    let port = sidecar.grpc.rsplit_once(':').unwrap().1.to_owned();
    let addr = format!("127.0.0.1:{port}");
    let health = [&["healthcheck", "readiness", "--addr", &addr], client].concat();
    eventually("the sidecar is ready", || async { run(&health).0 == 0 }).await;
    sidecar
}

/// What `check` prints and says.
fn check(addr: &str, flags: &[&str]) -> (i32, String) {
    let question = ["check", "15550100001", "acme", "marketing", "--addr", addr];
    let (code, printed, said) = run(&[&question, flags].concat());
    (code, printed + &said)
}

/// A connection by TLS for HTTP/1.1.
async fn https(ca: &Path, address: &str, request: &str) -> String {
    let mut config = ClientFiles { ca: Some(ca.to_owned()), own: None }.config().unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // hyper ends the connection without TLS' own end.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

/// What OpenSSL's client says of a server.
fn openssl(ca: &Path, address: &str, flags: &[&str]) -> String {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", address, "-CAfile", text(ca)])
        .args(["-verify_ip", "127.0.0.1"])
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is needed: apt-get install openssl");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn every_listener_serves_tls_of_both_versions() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let (server, ca) = (authority.server("server"), authority.ca());
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let config = file("consentd.toml", "[whatsapp.numbers]\n106540352242922 = \"acme\"\n");
    let secret = file("app-secret", "the-app-secret-of-the-dashboard\n");
    let token = file("verify-token", "a-token-that-we-made-up\n");
    let flags = [
        &server.listener_flags()[..],
        &["--record", "127.0.0.1:0", "--webhook", "127.0.0.1:0", "--probes", "127.0.0.1:0"],
        &["--config", text(&config), "--webhook-app-secret-file", text(&secret)],
        &["--webhook-verify-token-file", text(&token)],
    ];
    let trusting = ["--ca-file", text(&ca)];
    let sidecar = served(folder.path(), &flags.concat(), &trusting).await;
    let recorded = ["record", "opt-out", "15550100001", "acme", "*", "--addr", &sidecar.record];
    let (code, printed, said) = run(&[&recorded, &trusting[..]].concat());
    assert_eq!(code, 0, "{printed}{said}");
    let (code, said) = check(&sidecar.grpc, &trusting);
    assert!(code == 1 && said.contains("OPTED_OUT_ALL"), "{said}");
    for version in ["-tls1_2", "-tls1_3"] {
        let said = openssl(&ca, &sidecar.grpc, &["-alpn", "h2", version]);
        assert!(said.contains("Verification: OK") && said.contains("ALPN protocol: h2"), "{said}");
    }
    // A resumed session would not be verified again.
    for version in ["-tls1_2", "-tls1_3"] {
        let said = openssl(&ca, &sidecar.grpc, &["-reconnect", version]);
        assert!(said.contains("New, ") && !said.contains("Reused, "), "{said}");
    }
    let said = openssl(&ca, &sidecar.grpc, &["-alpn", "http/1.1"]);
    assert!(said.contains("no application protocol"), "{said}");
    let get = "GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let metrics = https(&ca, &sidecar.admin, get).await;
    assert!(metrics.contains("consent_refused_total{limit=\"tls\"} 1"), "the wrong protocol");
    let expiry = metrics.lines().find(|line| line.starts_with("consent_tls_certificate_expiry"));
    let expiry: f64 = expiry.unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    assert!(expiry > 1e9, "{expiry}");
    let handshake = "GET /webhook?hub.mode=subscribe&hub.challenge=42&hub.verify_token=\
                     a-token-that-we-made-up HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = https(&ca, &sidecar.webhook, handshake).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("42"), "{answer}");
    // Probes have no certificate, and nothing but probes is there.
    for (path, status) in [("/livez", 200), ("/readyz", 200), ("/metrics", 404), ("/", 404)] {
        assert_eq!(sidecar.get_at(&sidecar.probes, path).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn what_fails_in_a_handshake_is_said_in_words() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let namesake = Authority::new("ours");
    let ca = ours.ca();
    let trusting = ["--ca-file", text(&ca)];
    for (certificate, flags, expected) in [
        (ours.expired("expired"), &trusting[..], "the certificate has expired"),
        (ours.sign("other", &["other.example"], |_| ()), &trusting, "of another name"),
        (theirs.server("theirs"), &trusting, "not of a CA that is trusted here"),
        (namesake.server("namesake"), &trusting, "signed by another key"),
        (ours.server("plain"), &[], "expects TLS: if a sidecar is there, give --tls, or --ca-file"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let sidecar = Sidecar::start(&ledger_in(folder.path()), &certificate.listener_flags());
        let (code, said) = check(&sidecar.grpc, flags);
        assert!(code == 2 && said.contains(expected), "{expected}: {said}");
    }
    let folder = tempfile::tempdir().unwrap();
    let plain = Sidecar::live(folder.path(), &[]).await;
    let (code, said) = check(&plain.grpc, &trusting);
    assert!(code == 2 && said.contains("does not speak TLS"), "{said}");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_at_the_start() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let (one, other) = (authority.server("one"), authority.server("other"));
    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, "a letter").unwrap();
    let (certificate, key) = (text(&one.certificate), text(&one.key));
    let (roles, ca) = (folder.path().join("roles.toml"), authority.ca());
    std::fs::write(&roles, "[roles]\n\"urn:Example:Sender\" = [\"check\"]\n").unwrap();
    let ca = ["--tls-client-ca-file", text(&ca), "--listen", "0.0.0.0:0"];
    let listening = [&one.listener_flags()[..], &ca].concat();
    for (flags, parts) in [
        (&["--tls-cert-file", certificate][..], &["--tls-cert-file: needs --tls-key-file"][..]),
        (&["--listen", "0.0.0.0:0"], &["RecordService on 0.0.0.0:0 could be reached"]),
        (
            &["--listen", "0.0.0.0:0", "--record", "127.0.0.1:0"],
            &["--listen: 0.0.0.0:0 could be reached", "[roles]", "--anonymous-roles check"],
        ),
        (&["--tls-listeners", "admin"], &["--tls-listeners: needs --tls-cert-file"]),
        (
            &[&listening[..], &["--tls-listeners", "admin", "--config", text(&roles)]].concat(),
            &["[roles] count on 0.0.0.0:0", "leave it in --tls-listeners"],
        ),
        (
            &[&listening[..], &["--tls-listeners", "listen,record"]].concat(),
            &["--tls-listeners: there is no listener of --record on TCP"],
        ),
        (
            &["--tls-cert-file", certificate, "--tls-key-file", text(&other.key)],
            &["one.pem and ", "other.key cannot be used together"],
        ),
        (
            &["--tls-cert-file", text(&garbage), "--tls-key-file", key],
            &["garbage", "BEGIN CERTIFICATE"],
        ),
        (
            &["--tls-cert-file", certificate, "--tls-key-file", text(&garbage)],
            &["garbage", "BEGIN PRIVATE KEY"],
        ),
        (
            &["--tls-cert-file", certificate, "--tls-key-file", "/nowhere"],
            &["cannot read /nowhere"],
        ),
    ] {
        let started = Sidecar::try_start(&ledger_in(folder.path()), flags);
        let said = started.err().unwrap_or_else(|| panic!("{flags:?} is served"));
        for part in parts {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[tokio::test]
async fn certificate_is_rotated_under_load_without_an_error() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let (server, ca) = (authority.server("server"), authority.ca());
    let trusting = ["--ca-file", text(&ca)];
    let flags = [&server.listener_flags()[..], &["--tls-listeners", "listen"]].concat();
    let sidecar = served(folder.path(), &flags, &trusting).await;
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let (addr, ca) = (sidecar.grpc.clone(), ca.clone());
            // Each command makes a connection of its own.
            tokio::task::spawn_blocking(move || {
                while !stop.load(Ordering::Relaxed) {
                    let (code, said) = check(&addr, &["--ca-file", text(&ca)]);
                    assert!(code == 1 && said.contains("NO_CONSENT"), "{said}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // A connection that was open before goes on.
    let bench = ["bench", "load", "--addr", &sidecar.grpc, "--duration", "8s", "--warm-up", "0s"];
    let bench = [&bench[..], &["--connections", "2", "--in-flight", "2", "--rate", "500"]].concat();
    let bench: Vec<_> = bench.iter().chain(&trusting).map(|text| (*text).to_owned()).collect();
    let bench = tokio::task::spawn_blocking(move || {
        run(&bench.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let serial = || openssl(&ca, &sidecar.grpc, &[]);
    let subject = |said: &str| said.contains("CN = second") || said.contains("CN=second");
    assert!(!subject(&serial()));
    authority.server("second").replace(&server);
    sidecar.signal("HUP");
    eventually("the second certificate is served", || async { subject(&serial()) }).await;
    let metrics = sidecar.get("/metrics").await.1;
    assert!(metrics.contains("consent_tls_reloads_total{outcome=\"done\"} 1"), "{metrics}");
    // Files that cannot be used change nothing.
    std::fs::write(&server.key, "half a key").unwrap();
    eventually("the failure is counted", || async {
        let metrics = sidecar.get("/metrics").await.1;
        metrics.contains("consent_tls_reloads_total{outcome=\"failed\"} 1")
    })
    .await;
    assert!(subject(&serial()));
    assert!(sidecar.said().contains("keeping the previous certificate"), "{}", sidecar.said());
    let before = answered.load(Ordering::Relaxed);
    eventually("checks go on", || async { answered.load(Ordering::Relaxed) > before + 2 }).await;
    stop.store(true, Ordering::Relaxed);
    for checks in load {
        checks.await.unwrap();
    }
    let (code, printed, said) = bench.await.unwrap();
    assert_eq!(code, 0, "{printed}{said}");
    let metrics = sidecar.get("/metrics").await.1;
    assert!(metrics.contains("consent_refused_total{limit=\"tls\"} 0"), "{metrics}");
}

/// Roles of clients, on a listener that other machines can reach.
struct Guarded {
    servers: Authority,
    clients: Authority,
    addr: String,
    sidecar: Sidecar,
    folder: tempfile::TempDir,
}

impl Guarded {
    async fn new() -> Self {
        let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("consentd.toml");
        let roles = "[roles]\n\"spiffe://test/sender\" = [\"check\"]\n\"CRM.example\" = \
                     [\"record\"]\n\"privacy.example\" = [\"record\", \"erase\"]\n\
                     \"spiffe://test/bridge\" = [\"watch\"]\n";
        std::fs::write(&config, roles).unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, "a-token-of-a-recorder\n").unwrap();
        let server = servers.server("server");
        // The CA may be replaced, and the folder of the authority keeps its own.
        let trusted = folder.path().join("clients.pem");
        std::fs::copy(clients.ca(), &trusted).unwrap();
        let flags = [
            &server.listener_flags()[..],
            &["--listen", "0.0.0.0:0", "--tls-client-ca-file", text(&trusted)],
            &["--config", text(&config), "--record-token-file", text(&token)],
        ];
        let ca = servers.ca();
        let any = clients.sign("any", &["any.example"], |_| ());
        let health = [&["--ca-file", text(&ca)][..], &any.client_flags()].concat();
        let sidecar = served(folder.path(), &flags.concat(), &health).await;
        let port = sidecar.grpc.rsplit_once(':').unwrap().1;
        let addr = format!("127.0.0.1:{port}");
        Self { servers, clients, addr, sidecar, folder }
    }

    fn client(&self, name: &str) -> Signed {
        let file = name.replace([':', '/', '.'], "-");
        self.clients.sign(&file, &[name], |_| ())
    }

    /// A channel of a client with this certificate.
    async fn channel(&self, client: &Signed) -> Channel {
        let own = Some((client.certificate.clone(), client.key.clone()));
        let files = ClientFiles { ca: Some(self.servers.ca()), own };
        let mut config = files.config().unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (connector, addr) = (TlsConnector::from(Arc::new(config)), self.addr.clone());
        let connect = service_fn(move |_: Uri| {
            let (connector, addr) = (connector.clone(), addr.clone());
            async move {
                let stream = TcpStream::connect(addr).await?;
                let name = ServerName::try_from("127.0.0.1").expect("an address");
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://sidecar");
        endpoint.connect_with_connector(connect).await.unwrap()
    }

    /// Runs a command as a client with this certificate.
    fn run(&self, client: Option<&Signed>, command: &[&str]) -> (i32, String) {
        let ca = self.servers.ca();
        let mut flags = vec!["--addr", &self.addr, "--ca-file", text(&ca)];
        flags.extend(client.iter().flat_map(|client| client.client_flags()));
        let (code, printed, said) = run(&[command, &flags].concat());
        (code, printed + &said)
    }
}

#[tokio::test]
async fn client_may_do_what_its_certificate_has_the_role_for() {
    let guarded = Guarded::new().await;
    let checks = ["check", "15550100001", "acme", "marketing"];
    let records = ["record", "opt-out", "15550100001", "acme", "*"];
    let erases = ["erase", "15550100001", "acme", "--yes"];
    let denied = |role: &str| format!("has the role `{role}`");
    let sender = guarded.client("spiffe://test/sender");
    let crm = guarded.client("crm.example");
    let privacy = guarded.client("privacy.example");
    let stranger = guarded.client("stranger.example");
    for (client, command, code, part) in [
        (&sender, &checks[..], 1, "NO_CONSENT".to_owned()),
        (&sender, &records, 2, denied("record")),
        (&crm, &records, 0, "revision 1".to_owned()),
        (&crm, &checks, 2, denied("check")),
        (&crm, &erases, 2, denied("erase")),
        (&privacy, &erases, 0, String::new()),
        (&stranger, &checks, 2, denied("check")),
        (&stranger, &["watch"], 2, denied("watch")),
    ] {
        let (found, said) = guarded.run(Some(client), command);
        assert!(found == code && said.contains(&part), "{command:?} {code} {part}: {found} {said}");
    }
    // A token is for recording, whatever the certificate.
    let token = guarded.folder.path().join("token");
    let with_token = [&records[..], &["--token-file", text(&token)]].concat();
    assert_eq!(guarded.run(Some(&stranger), &with_token).0, 0);
    let mut asked = Request::new(question("15550100001", "acme", "marketing"));
    asked.metadata_mut().insert("authorization", "Bearer a-token-of-a-recorder".parse().unwrap());
    let mut checks = ConsentServiceClient::new(guarded.channel(&stranger).await);
    assert_eq!(checks.can_send(asked).await.unwrap_err().code(), Code::PermissionDenied);
    let bridge = guarded.client("spiffe://test/bridge");
    let mut checks = ConsentServiceClient::new(guarded.channel(&bridge).await);
    checks.watch_consents(pb::WatchConsentsRequest::default()).await.unwrap();
    let asked = checks.get_status(pb::GetStatusRequest {}).await;
    assert_eq!(asked.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn client_without_a_certificate_has_the_anonymous_roles_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a-token-of-a-recorder\n").unwrap();
    let flags = ["--listen", "0.0.0.0:0", "--record-token-file", text(&token)];
    let sidecar =
        served(folder.path(), &[&flags[..], &["--anonymous-roles", "check"]].concat(), &[]).await;
    let addr = format!("127.0.0.1:{}", sidecar.grpc.rsplit_once(':').unwrap().1);
    let records = ["record", "opt-out", "15550100001", "acme", "*"];
    let with_token = [&records[..], &["--token-file", text(&token)]].concat();
    for (command, code, part) in [
        (&["check", "15550100001", "acme", "marketing"][..], 1, "NO_CONSENT"),
        (&["status"], 0, "live"),
        (&["watch"], 2, "has the role `watch`"),
        (&records, 2, "authorization: Bearer TOKEN"),
        (&with_token, 0, "revision 1"),
    ] {
        let (found, printed, said) = run(&[command, &["--addr", &addr]].concat());
        let said = printed + &said;
        assert!(found == code && said.contains(part), "{command:?} {code} {part}: {found} {said}");
    }
}

#[tokio::test]
async fn client_without_a_certificate_that_is_trusted_gets_no_answer() {
    let guarded = Guarded::new().await;
    let checks = ["check", "15550100001", "acme", "marketing"];
    let (theirs, ours) = (Authority::new("theirs"), &guarded.clients);
    let foreign = theirs.sign("foreign", &["crm.example"], |_| ());
    let expired = ours.expired("gone");
    for client in [None, Some(&foreign), Some(&expired)] {
        let (code, said) = guarded.run(client, &checks);
        assert!(code == 2 && said.contains("may require a client certificate"), "{said}");
    }
    let log = || guarded.sidecar.said();
    assert!(log().contains("the client has sent no certificate, and one is required"), "{}", log());
    // A client is revoked by the removal of its CA.
    let sender = guarded.client("spiffe://test/sender");
    assert_eq!(guarded.run(Some(&sender), &checks).0, 1);
    std::fs::copy(theirs.ca(), guarded.folder.path().join("clients.pem")).unwrap();
    guarded.sidecar.signal("HUP");
    eventually("the CA is not trusted any more", || async {
        guarded.run(Some(&sender), &checks).0 == 2
    })
    .await;
    let named = theirs.sign("named", &["spiffe://test/sender"], |_| ());
    assert_eq!(guarded.run(Some(&named), &checks).0, 1);
}
