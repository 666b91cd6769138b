//! Where a sidecar listens, who may connect, and what it says of itself there.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use consentd::grpc::pb;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use consentd::net::socket::{Address, connect_unix};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;

use crate::sidecar::{
    BINARY, Sidecar, channel, event, eventually, inbound, ledger_in, opt_out, question,
};

/// Connects to any address, as the log and the flags name them.
async fn connect(address: &str) -> Channel {
    let address: Address = address.parse().unwrap();
    if let Address::Tcp(address) = &address {
        return channel(address).await;
    }
    let connector = service_fn(move |_: Uri| {
        let address = address.clone();
        async move { connect_unix(&address).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

/// Starts a sidecar that has to refuse; gives what it said.
fn refused(folder: &Path, flags: &[&str]) -> String {
    let started = Sidecar::try_start(&folder.join("refused.redb"), flags);
    let said = started.err().unwrap_or_else(|| panic!("{flags:?} were taken"));
    assert!(said.starts_with("exit status: 2: consentd: "), "{said}");
    said
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{said:?} has no {part:?}");
    }
}

/// Records an event at one address, and waits until a check at another denies by it.
async fn assert_serves(checks: &str, records: &str) {
    let (checks, records) = (connect(checks).await, connect(records).await);
    let stop = event("u", "b", opt_out("*"));
    RecordServiceClient::new(records).record_event(stop).await.unwrap();
    eventually("the check denies", || {
        let mut checks = ConsentServiceClient::new(checks.clone());
        async move {
            let answer = checks.can_send(question("u", "b", "utility")).await;
            answer.is_ok_and(|answer| answer.get_ref().reason() == pb::Reason::OptedOutAll)
        }
    })
    .await;
}

#[tokio::test]
async fn a_unix_socket_is_for_its_group_and_goes_with_the_sidecar() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("consentd.sock");
    let flag = path.to_str().unwrap();
    let flags = ["--listen", "none", "--unix", flag];
    let mut sidecar = Sidecar::start(&ledger_in(folder.path()), &flags);
    let address = format!("unix:{flag}");
    assert_eq!((&sidecar.grpc, &sidecar.record), (&address, &address));
    let found = std::fs::metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    assert_serves(&address, &address).await;

    // A living one is left alone.
    assert_says(&refused(folder.path(), &flags), &[&address, "in use", "--unix"]);
    assert_serves(&address, &address).await;
    // One that a killed process left is replaced.
    sidecar.kill();
    assert!(path.exists());
    let mut sidecar = Sidecar::start(&ledger_in(folder.path()), &flags);
    assert_serves(&address, &address).await;
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
    assert!(!path.exists());

    // What is no socket is left alone.
    std::fs::write(&path, "a letter").unwrap();
    assert_says(&refused(folder.path(), &flags), &[&address, "not a socket"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"a letter");
    let nowhere = ["--listen", "none", "--unix", "/nowhere/at/all"];
    assert_says(&refused(folder.path(), &nowhere), &["unix:/nowhere/at/all", "No such file"]);
}

#[tokio::test]
async fn a_living_unix_socket_that_is_busy_is_left_alone_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("busy.sock");
    let address = socket2::SockAddr::unix(&path).unwrap();
    let socket = || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
    let busy = socket().unwrap();
    busy.bind(&address).unwrap();
    busy.listen(0).unwrap();
    // It has no room for one more: its owner does not accept.
    let mut waiting = Vec::new();
    let full = loop {
        let one = socket().unwrap();
        one.set_nonblocking(true).unwrap();
        match one.connect(&address) {
            Ok(()) => waiting.push(one),
            Err(full) => break full,
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
    let said = refused(folder.path(), &["--listen", "none", "--unix", path.to_str().unwrap()]);
    assert_says(&said, &["in use"]);
}

#[tokio::test]
async fn an_abstract_socket_needs_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("@consentd-test-{}", std::process::id());
    let flags = ["--listen", "none", "--unix", &name];
    let sidecar = Sidecar::start(&ledger_in(folder.path()), &flags);
    let address = format!("unix:{name}");
    assert_eq!(sidecar.grpc, address);
    assert_serves(&address, &address).await;
    assert_says(&refused(folder.path(), &flags), &[&address, "in use"]);
    let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: BTreeSet<_> = left.map(|name| name.into_string().unwrap()).collect();
    let ledger = ["ledger.redb", "ledger.redb.acknowledged"].map(str::to_owned);
    assert_eq!(left, BTreeSet::from(ledger), "the ledger and its mark alone");
}

#[tokio::test]
async fn recording_can_be_moved_to_a_listener_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("unix:{}", folder.path().join("record.sock").display());
    for record in ["127.0.0.1:0", &path] {
        let sidecar = Sidecar::live(folder.path(), &["--record", record]).await;
        assert_ne!(sidecar.grpc, sidecar.record);
        assert_serves(&sidecar.grpc, &sidecar.record).await;
        let mut records = RecordServiceClient::new(connect(&sidecar.grpc).await);
        let refused = records.record_event(event("u", "b", inbound(""))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        assert_says(refused.message(), &["not recorded on this listener", "--record"]);
        let mut checks = ConsentServiceClient::new(connect(&sidecar.record).await);
        let refused = checks.can_send(question("u", "b", "utility")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        assert_says(refused.message(), &["checks are not served on this listener"]);
        let mut health = HealthClient::new(connect(&sidecar.record).await);
        let asked = health.check(HealthCheckRequest::default()).await.unwrap();
        assert_eq!(asked.get_ref().status(), ServingStatus::Serving);
    }
}

#[tokio::test]
async fn recording_from_other_machines_needs_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = "# the webhook\nfirst-secret-token\n\n  second-secret-token  \n";
    let (good, short) = (file("good", good), file("short", "a-good-long-token\nshort\n"));
    let empty = file("empty", "# nothing\n\n");
    let everywhere = ["--record", "0.0.0.0:0", "--record-token-file"];
    let [record, address, tokens] = everywhere;
    let said = refused(folder.path(), &[record, address]);
    assert_says(&said, &["0.0.0.0:0", "--record-token-file", "--record"]);
    // So does serving everything there.
    assert_says(&refused(folder.path(), &["--listen", address]), &["--record-token-file"]);
    let said = refused(folder.path(), &[record, address, tokens, &short]);
    assert_says(&said, &["line 2", &short, "16 characters"]);
    let said = refused(folder.path(), &[record, address, tokens, &empty]);
    assert_says(&said, &["--record-token-file", "there is no secret in", &empty]);
    let said = refused(folder.path(), &[record, address, tokens, "/nowhere"]);
    assert_says(&said, &["/nowhere", "No such file"]);

    // Anonymous checks may be served everywhere without one, where recordings are not.
    let checks = ["--listen", address, "--anonymous-roles", "check", record, "127.0.0.1:0"];
    drop(Sidecar::live(folder.path(), &checks).await);
    let mut sidecar = Sidecar::live(folder.path(), &[record, address, tokens, &good]).await;
    let port = sidecar.record.rsplit_once(':').unwrap().1;
    let mut records = RecordServiceClient::new(channel(&format!("127.0.0.1:{port}")).await);
    for (header, code) in [
        ("", Code::Unauthenticated),
        ("first-secret-token", Code::Unauthenticated),
        ("Basic first-secret-token", Code::Unauthenticated),
        ("Bearer ", Code::Unauthenticated),
        ("Bearer first-secret-toke", Code::Unauthenticated),
        ("Bearer # the webhook", Code::Unauthenticated),
        ("Bearer first-secret-token", Code::Ok),
        ("bearer  second-secret-token", Code::Ok),
    ] {
        let authorized = |mut metadata: tonic::metadata::MetadataMap| {
            if !header.is_empty() {
                metadata.insert("authorization", header.parse().unwrap());
            }
            metadata
        };
        let mut request = Request::new(event("u", "b", inbound("")));
        *request.metadata_mut() = authorized(request.metadata().clone());
        let recorded = records.record_event(request).await;
        let status = recorded.err().unwrap_or_else(|| tonic::Status::ok(""));
        assert_eq!(status.code(), code, "{header:?}: {status:?}");
        let pair = pb::ListEventsRequest { user_id: "u".into(), business_id: "b".into() };
        let mut request = Request::new(pair);
        *request.metadata_mut() = authorized(request.metadata().clone());
        let listed = records.list_events(request).await;
        assert_eq!(listed.map_or_else(|status| status.code(), |_| Code::Ok), code, "{header:?}");
        if code == Code::Unauthenticated {
            assert_says(status.message(), &["authorization: Bearer", "--record-token-file"]);
        }
    }
    let mut checks = sidecar.checks().await;
    checks.can_send(question("u", "b", "utility")).await.unwrap();
    let (_, metrics) = sidecar.get("/metrics").await;
    let refused = "consent_refused_total{limit=\"unauthenticated\"} 12\n";
    assert!(metrics.contains(refused), "six headers, two calls each: {metrics}");
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
    assert!(sidecar.said().contains("UNAUTHENTICATED"), "{}", sidecar.said());
    assert!(!sidecar.said().contains("secret-token"), "{}", sidecar.said());
}

#[tokio::test]
async fn what_is_in_use_is_named_with_its_flag() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    for flag in ["--listen", "--record", "--admin"] {
        let said = refused(folder.path(), &[flag, &sidecar.grpc]);
        assert_says(&said, &[&sidecar.grpc, "in use", flag]);
    }
    let ledger = ledger_in(folder.path());
    let said = Sidecar::try_start(&ledger, &[]).err().unwrap();
    assert_says(&said, &[ledger.to_str().unwrap(), "another process", "--ledger file:PATH"]);
    let said = refused(folder.path(), &["--listen", "none"]);
    assert_says(&said, &["--listen", "--unix"]);
    assert_serves(&sidecar.grpc, &sidecar.record).await;
}

#[tokio::test]
async fn it_says_where_it_listens() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = ledger_in(folder.path());
    let socket = folder.path().join("s").to_str().unwrap().to_owned();
    let sidecar = Sidecar::start(&ledger, &["--unix", &socket, "--admin", "none"]);
    let said = sidecar.said();
    // Behind the warning that the ledger is new.
    let line: serde_json::Value = serde_json::from_str(said.lines().nth(1).unwrap()).unwrap();
    assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &"listening".into()));
    let grpc = format!("{},unix:{socket}", sidecar.grpc);
    assert_eq!((&line["grpc"], &line["record"]), (&grpc.as_str().into(), &line["grpc"]));
    assert_eq!(line["admin"], "none");
    assert_eq!(line["ledger"], format!("file:{}", ledger.display()));
    assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')));
}

#[tokio::test]
async fn metrics_are_prometheus_text_and_name_what_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    assert_serves(&sidecar.grpc, &sidecar.record).await;
    let (status, text) = sidecar.get("/metrics").await;
    assert_eq!(status, 200);
    let mut types = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# TYPE ") {
            let (name, kind) = comment.split_once(' ').unwrap();
            assert_eq!(types.insert(name, kind), None, "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else if let Some(comment) = line.strip_prefix("# HELP ") {
            assert!(comment.split_once(' ').unwrap().1.ends_with('.'), "{line}");
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert_eq!(samples.insert(sample, value), None, "{line}");
            let name = sample.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            assert!(types.contains_key(name) || base.is_some_and(|b| types.contains_key(b)));
            assert!(name.starts_with("consent_") || name.starts_with("process_"), "{line}");
        }
    }
    let denied = "consent_decisions_total{allowed=\"false\",reason=\"OPTED_OUT_ALL\"}";
    assert!(samples[denied] >= 1.0, "{text}");
    assert!(samples["consent_records_total{outcome=\"applied\"}"] >= 1.0, "{text}");
    assert!((samples["consent_applied_revision{partition=\"0\"}"] - 1.0).abs() < 0.1, "{text}");
    assert!((samples["consent_pairs"] - 1.0).abs() < 0.1, "{text}");
    for name in [
        "consent_check_duration_seconds",
        "consent_propagation_seconds",
        "consent_staleness_seconds",
        "consent_clock_offset_seconds",
        "consent_table_bytes",
        "consent_connections",
        "consent_build_info",
    ] {
        assert!(types.contains_key(name), "{name}: {text}");
    }
    assert_eq!(sidecar.get("/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(sidecar.get("/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(sidecar.get("/nothing").await.0, 404);
}

#[tokio::test]
async fn health_is_told_of_every_name_that_may_be_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut health = HealthClient::new(sidecar.channel().await);
    let names =
        ["", "consent.v1.ConsentService", "consent.v1.RecordService", "readiness", "liveness"];
    for service in names {
        let asked = health.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(asked.get_ref().status(), ServingStatus::Serving, "{service}");
    }
    let unknown = HealthCheckRequest { service: "consent.v1.consentservice".into() };
    let refused = health.check(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_says(refused.message(), &names);
}

/// Asks one version of reflection with one message; both versions have the same messages.
macro_rules! reflect {
    ($version:ident, $channel:expr, $asked:expr) => {{
        use tonic_reflection::pb::$version as pb;
        let client = pb::server_reflection_client::ServerReflectionClient::new($channel);
        let request =
            pb::ServerReflectionRequest { host: String::new(), message_request: Some($asked) };
        let mut client = client.max_decoding_message_size(1 << 24);
        match client.server_reflection_info(tokio_stream::once(request)).await {
            Ok(answers) => answers.into_inner().message().await.map(|answer| answer.unwrap()),
            Err(status) => Err(status),
        }
    }};
}

macro_rules! reflects {
    ($version:ident, $channel:expr) => {{
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest as Asked;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse as Answer;
        let channel = $channel;
        let listed = reflect!($version, channel.clone(), Asked::ListServices(String::new()));
        let Some(Answer::ListServicesResponse(listed)) = listed.unwrap().message_response else {
            panic!("no list of services")
        };
        let listed: BTreeSet<_> = listed.service.into_iter().map(|service| service.name).collect();
        for service in
            ["consent.v1.ConsentService", "consent.v1.RecordService", "grpc.health.v1.Health"]
        {
            assert!(listed.contains(service), "{listed:?} has no {service}");
        }
        for (symbol, file) in [
            ("consent.v1.ConsentService", "consent/v1/consent_service.proto"),
            ("consent.v1.CanSendRequest", "consent/v1/consent_service.proto"),
            ("consent.v1.RecordService.RecordEvents", "consent/v1/record_service.proto"),
            ("consent.v1.ConsentEvent", "consent/v1/consent.proto"),
            ("google.protobuf.Timestamp", "google/protobuf/timestamp.proto"),
            ("google.rpc.BadRequest", "error_details.proto"),
            ("google.rpc.Status", "status.proto"),
        ] {
            let by_symbol = Asked::FileContainingSymbol(symbol.into());
            let by_name = Asked::FileByFilename(file.into());
            for asked in [by_symbol, by_name] {
                let answer = reflect!($version, channel.clone(), asked).unwrap();
                let Some(Answer::FileDescriptorResponse(found)) = answer.message_response else {
                    panic!("{symbol}: {answer:?}")
                };
                let found = found.file_descriptor_proto[0].as_slice();
                let found = prost_types::FileDescriptorProto::decode(found).unwrap();
                assert_eq!(found.name(), file);
                for imported in found.dependency {
                    let asked = Asked::FileByFilename(imported);
                    reflect!($version, channel.clone(), asked).unwrap();
                }
            }
        }
        let unknown = Asked::FileContainingSymbol("consent.v1.Nothing".into());
        let refused = reflect!($version, channel, unknown).unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
    }};
}

#[tokio::test]
async fn reflection_shows_the_contract_and_the_details_of_its_errors() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    reflects!(v1, sidecar.channel().await);
    reflects!(v1alpha, sidecar.channel().await);
}

#[tokio::test]
async fn each_listener_tells_what_it_serves() {
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest as Asked;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse as Answer;
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--record", "127.0.0.1:0"]).await;
    let (checks, records) = ("consent.v1.ConsentService", "consent.v1.RecordService");
    for (address, served, other) in
        [(&sidecar.grpc, checks, records), (&sidecar.record, records, checks)]
    {
        let channel = connect(address).await;
        let listed = reflect!(v1, channel.clone(), Asked::ListServices(String::new())).unwrap();
        let Some(Answer::ListServicesResponse(listed)) = listed.message_response else {
            panic!("no list of services")
        };
        let listed: BTreeSet<_> = listed.service.into_iter().map(|service| service.name).collect();
        assert!(listed.contains(served) && !listed.contains(other), "{listed:?}");
        let mut health = HealthClient::new(channel);
        let asked = |service: &str| HealthCheckRequest { service: service.into() };
        let known = health.check(asked(served)).await.unwrap();
        assert_eq!(known.get_ref().status(), ServingStatus::Serving);
        let refused = health.check(asked(other)).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert_says(refused.message(), &["not served on this listener", served]);
    }
}

/// How many requests a batch may have here, as the sidecar says itself.
async fn max_batch(sidecar: &Sidecar) -> String {
    let mut checks = sidecar.checks().await;
    let requests = vec![question("u", "b", "utility"); 100];
    let refused = checks.batch_can_send(pb::BatchCanSendRequest { requests }).await.unwrap_err();
    refused.message().rsplit_once(' ').unwrap().1.to_owned()
}

#[tokio::test]
async fn flags_are_stronger_than_the_environment_and_that_than_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (ledger, file) = (ledger_in(folder.path()), folder.path().join("consentd.toml"));
    std::fs::write(&file, "max-batch = 2\nmax-staleness = \"50s\"\n").unwrap();
    let file = file.to_str().unwrap();
    let (flag, variable) = (["--max-batch", "4"], ("CONSENTD_MAX_BATCH", "3"));
    let from_file = ("CONSENTD_CONFIG", file);
    for (flags, variables, expected) in [
        (vec!["--config", file], vec![], "2"),
        (vec![], vec![from_file], "2"),
        (vec![], vec![from_file, variable], "3"),
        (flag.to_vec(), vec![from_file, variable], "4"),
        (flag.to_vec(), vec![], "4"),
    ] {
        let sidecar = Sidecar::try_start_in(&ledger, &flags, &variables).ok().unwrap();
        sidecar.wait_until_live().await;
        assert_eq!(max_batch(&sidecar).await, expected, "{flags:?} {variables:?}");
    }
    let said = |text: &str| {
        std::fs::write(file, text).unwrap();
        refused(folder.path(), &["--config", file])
    };
    assert_says(&said("max-stalenes = \"1s\""), &[file, "max-stalenes", "max-staleness"]);
    assert_says(&said("config = \"other\""), &[file, "config"]);
    assert_says(&said("max-batch = \"many\""), &[file, "max-batch", "many"]);
    assert_says(&said("max-batch = 0"), &["--max-batch", "1 or more"]);
    assert_says(&refused(folder.path(), &["--config", "/nowhere"]), &["/nowhere", "No such file"]);
    let variables = [("CONSENTD_MAX_STALENESS", "5")];
    let said = Sidecar::try_start_in(&ledger, &[], &variables).err().unwrap();
    assert_says(&said, &["--max-staleness", "such as 5s"]);
}

/// A command's exit code and output in this environment alone.
fn run_in(environment: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(BINARY);
    let output = command.env_clear().envs(environment.iter().copied()).args(arguments).output();
    let output = output.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn commands_ask_where_their_environment_says_that_the_sidecar_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("consentd.sock");
    let flag = path.to_str().unwrap();
    let sidecar = Sidecar::live_at(folder.path(), &["--unix", flag], &format!("unix:{flag}")).await;
    let port = sidecar.grpc.rsplit_once(':').unwrap().1;
    let (any, none, address) = (format!("0.0.0.0:{port}"), "none", format!("unix:{flag}"));
    for environment in [
        [("CONSENTD_UNIX", flag), ("CONSENTD_LISTEN", none)],
        [("CONSENTD_UNIX", &address), ("CONSENTD_LISTEN", none)],
        [("CONSENTD_UNIX", ""), ("CONSENTD_LISTEN", &any)],
    ] {
        let (code, said) = run_in(&environment, &["healthcheck", "readiness"]);
        assert_eq!(code, Some(0), "{environment:?}: {said}");
        let (code, said) = run_in(&environment, &["status"]);
        assert!(code == Some(0) && said.contains("phase      live"), "{environment:?}: {said}");
    }
    // A flag and CONSENTD_ADDR win.
    let elsewhere = [("CONSENTD_UNIX", flag), ("CONSENTD_ADDR", "127.0.0.1:1")];
    let (code, said) = run_in(&elsewhere, &["healthcheck"]);
    assert!(code == Some(2) && said.contains("127.0.0.1:1"), "{said}");
    let (code, said) = run_in(&elsewhere, &["healthcheck", "--addr", &sidecar.grpc]);
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test]
async fn listening_line_has_the_number_of_workers() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--workers", "1"]).await;
    let said = sidecar.said();
    let line = said.lines().find(|line| line.contains("\"listening\"")).unwrap();
    assert!(line.contains("\"workers\":1"), "{line}");
}
