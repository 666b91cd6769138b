//! The commands, against real sidecars: what they print, and with which exit code they end.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consentd::budget::{Budget, BudgetSizes};
use consentd::checker::Checker;
use consentd::grpc::connection::{Limits, Security, serve};
use consentd::grpc::{CheckLimits, CheckService, DESCRIPTOR_SET, HealthService, Router, pb};
use consentd::metrics::Metrics;
use consentd::net::Drain;
use consentd::net::socket::{Address, Listener};
use consentd::table::Writer;
use consentd_core::decision::Policy;
use consentd_core::id::KeySecret;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;
use tonic_types::StatusExt as _;

use crate::sidecar::{BINARY, PATIENCE, Sidecar, ago, channel, event, question, run};

/// Runs a command against a sidecar; it must end with this exit code, and say nothing of an error
/// unless that is 2. Gives what it printed, or else its error.
#[track_caller]
fn told(code: i32, address: &str, arguments: &[&str]) -> String {
    let (ended, printed, error) = run(&[arguments, &["--addr", address]].concat());
    assert_eq!(ended, code, "{arguments:?}: {printed}{error}");
    if code == 2 {
        assert_eq!(printed, "", "{arguments:?}");
        return error;
    }
    assert_eq!(error, "", "{arguments:?}");
    printed
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{said:?} has no {part:?}");
    }
}

/// Reads lines of proto3 JSON, as strictly as it is defined; gives them as plain JSON.
#[track_caller]
fn proto3(name: &str, printed: &str) -> Vec<Value> {
    let pool = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
    let descriptor = pool.get_message_by_name(&format!("consent.v1.{name}")).unwrap();
    let read = |line: &str| {
        let mut json = serde_json::Deserializer::from_str(line);
        let message = DynamicMessage::deserialize(descriptor.clone(), &mut json);
        message.unwrap_or_else(|error| panic!("{error}: {line}"));
        json.end().unwrap();
        let json: Value = serde_json::from_str(line).unwrap();
        assert_names_are_camel_case(&json);
        json
    };
    printed.lines().map(read).collect()
}

fn assert_names_are_camel_case(json: &Value) {
    if let Value::Array(items) = json {
        items.iter().for_each(assert_names_are_camel_case);
    }
    for (name, value) in json.as_object().into_iter().flatten() {
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
        assert_names_are_camel_case(value);
    }
}

const OPT_IN: [&str; 9] = [
    "record",
    "opt-in",
    "+1 555 010 0001",
    "acme",
    "marketing.news",
    "--method",
    "website",
    "--business-name",
    "Acme",
];
const STATEMENT: [&str; 2] = ["--statement", "Yes to \"news\" from Acme on WhatsApp"];

#[tokio::test]
async fn every_command_answers_over_tcp_and_over_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s").to_str().unwrap().to_owned();
    let sidecar = Sidecar::live(folder.path(), &["--unix", &path]).await;
    let unix = format!("unix:{path}");
    let asked = ["check", "15550100001", "acme", "marketing.news"];

    let denied = told(1, &sidecar.grpc, &asked);
    assert!(denied.starts_with("denied: NO_CONSENT\n"), "{denied}");
    assert_says(&denied, &["an opt-in", "template no, free-form no", "revision 0, proven "]);
    let given = told(0, &unix, &[&OPT_IN[..], &STATEMENT].concat());
    assert_eq!(given, "recorded, revision 1\n");
    let from_form = ["--form", "free-form", "--min-revision", "1"];
    let denied = told(1, &sidecar.grpc, &[&asked[..], &from_form].concat());
    assert!(denied.starts_with("denied: WINDOW_CLOSED\n"), "{denied}");

    let slashes = format!("unix://{path}");
    for address in [&sidecar.grpc, &unix, &slashes] {
        let allowed = told(0, address, &asked);
        assert!(allowed.starts_with("allowed: OPTED_IN\n"), "{allowed}");
        let json = told(0, address, &[&asked[..], &["--json"]].concat());
        let json = &proto3("CanSendResponse", &json)[0];
        assert_eq!((&json["allowed"], &json["revision"]), (&true.into(), &"1".into()));
        assert_eq!(
            (&json["reason"], &json["freeFormAllowed"]),
            (&"REASON_OPTED_IN".into(), &false.into())
        );

        let pair = ["15550100001", "acme"];
        let known = told(0, address, &[&["get"], &pair[..]].concat());
        assert_says(&known, &["opted in to      marketing.news\n", "opted out of     nothing\n"]);
        let json = told(0, address, &[&["get", "--json"], &pair[..]].concat());
        let json = &proto3("GetConsentResponse", &json)[0];
        assert_eq!(json["optedIn"], serde_json::json!(["marketing.news"]));

        let recorded = told(0, address, &[&["history"], &pair[..]].concat());
        let words = "r1  opt-in marketing.news, by WEBSITE\n    \"Yes to \\\"news\\\" from Acme";
        assert_says(&recorded, &[words]);
        let json = told(0, address, &[&["history", "--json"], &pair[..]].concat());
        let json = &proto3("ListEventsResponse", &json)[0];
        assert_eq!(json["event"]["userId"], "+1 555 010 0001");
        assert_eq!(told(0, address, &["history", "1", "acme"]), "nothing was recorded\n");
        let none = told(0, address, &["history", "1", "acme", "--json"]);
        let none = &proto3("ListEventsResponse", &none)[0];
        assert_eq!(none["chain"]["eventCount"], "0");

        let status = told(0, address, &["status"]);
        let ledger = crate::sidecar::ledger_in(folder.path());
        let ledger = format!("ledger     file:{}\n", ledger.display());
        assert_says(&status, &["phase      live\n", "revision   1\n", "pairs      1\n", &ledger]);
        let json = &proto3("GetStatusResponse", &told(0, address, &["status", "--json"]))[0];
        assert_eq!((&json["phase"], &json["pairs"]), (&"PHASE_LIVE".into(), &"1".into()));

        for service in ["", "readiness", "consent.v1.RecordService"] {
            assert_eq!(told(0, address, &["healthcheck", service]), "SERVING\n");
        }
        let json: Value =
            serde_json::from_str(&told(0, address, &["healthcheck", "--json"])).unwrap();
        assert_eq!(json, serde_json::json!({ "status": "SERVING" }));
        assert_says(&told(2, address, &["healthcheck", "nothing"]), &["readiness, liveness"]);
    }
}

#[tokio::test]
async fn everything_that_can_happen_can_be_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let record = |what: &str, arguments: &[&str]| {
        told(0, &sidecar.grpc, &[&["record", what, "7", "acme"], arguments].concat())
    };
    let signup = ["marketing", "--method", "whatsapp-signup", "--reference", "13176", "--pending"];
    record("opt-in", &[&signup[..], &["--time", "3h", "--expires", "365d"]].concat());
    record("opt-out", &["utility", "--reference", "by phone", "--time", "2h"]);
    assert_eq!(
        record("inbound", &["--text", "Stop!", "--message-id", "wamid.1"]),
        "recorded, revision 3\n  the text is the keyword \"stop\": opted out of *\n"
    );
    record("platform", &["stop"]);
    record("platform", &["resume"]);
    record("failure", &["131049"]);
    record("suppress", &["--reference", "asked so"]);
    record("suppress", &["--lift"]);
    let json = record("inbound", &["--json", "--request-id", "once"]);
    assert_eq!(proto3("RecordEventResponse", &json)[0]["applied"], true);
    assert_eq!(record("inbound", &["--json", "--request-id", "once"]), json, "a retry is safe");
    let late = record("platform", &["stop", "--time", "2026-01-31T09:30:00Z"]);
    assert_eq!(late, "recorded before, or older than what is known, revision 9\n");
    let history = told(0, &sidecar.grpc, &["history", "7", "acme"]);
    let mut rest = history.as_str();
    for part in [
        "r1  opt-in marketing, pending, until ",
        ", by WHATSAPP_SIGNUP [13176]\n",
        "r2  opt-out utility [by phone]\n",
        "r3  inbound message [wamid.1]\n",
        "r3  opt-out * [keyword in message wamid.1]\n",
        "r4  marketing stopped inside WhatsApp\n",
        "r5  marketing resumed inside WhatsApp\n",
        "r6  delivery failure 131049: the user got much marketing lately; again after 24 hours",
        "r7  suppressed [asked so]\n",
        "r8  suppression lifted\n",
        "r9  inbound message\n",
        "chain checked: intact, 10 events: 10 kept\n  head ",
    ] {
        let Some((_, behind)) = rest.split_once(part) else { panic!("no {part:?} in {rest}") };
        rest = behind;
    }
    assert_eq!(rest.trim_end().len(), 64, "{rest}");
}

#[tokio::test]
async fn what_went_wrong_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let address = sidecar.grpc.as_str();
    assert_eq!(
        told(2, address, &["check", "", "acme", "news", "--json"]),
        "consentd: the request is not valid:\n  USER: required: 1 to 160 bytes of UTF-8\n  \
         CATEGORY: unknown class \"news\", did you mean marketing? It is one of marketing, utility, \
         authentication or service, perhaps with a topic: utility.order_updates\n"
    );
    assert_says(&told(2, address, &OPT_IN), &["--statement: the words that the user agreed to"]);
    assert_says(
        &told(2, address, &["record", "inbound", "7", "acme", "--time", "2099-01-01T00:00:00Z"]),
        &["--time: ", "ahead of the ledger's clock"],
    );
    for when in ["yesterday", "1969-12-31T00:00:00Z", "5"] {
        let said = told(2, address, &["record", "inbound", "7", "acme", "--time", when]);
        assert_says(&said, &["--time", "2026-01-31T09:30:00Z", "90m"]);
    }
    // Nobody listens, nobody is there, and nobody speaks gRPC.
    let nowhere = folder.path().join("nowhere");
    let nowhere = format!("unix:{}", nowhere.display());
    for (address, why) in [
        ("127.0.0.1:1", "Connection refused"),
        (&nowhere, "No such file"),
        ("unix:@consentd-nowhere", "Connection refused"),
    ] {
        let said = told(2, address, &["check", "7", "acme", "utility"]);
        assert_says(&said, &["cannot reach consentd at ", address, why, "`consentd serve"]);
        assert_says(&said, &["--addr", "CONSENTD_ADDR"]);
    }
    told(2, &sidecar.admin, &["status"]);
    assert_says(&told(2, "http://a:1", &["status"]), &["HOST:PORT", "unix:PATH", "unix:@NAME"]);
    // A revision that does not come. Where the machine is slow, the command gives up first.
    let waits = ["check", "7", "acme", "utility", "--min-revision", "99", "--timeout", "1s"];
    let said = told(2, address, &waits);
    let (missed, slow) = ("revision 99 did not arrive in time", "did not answer within 1s");
    assert!(said.contains(missed) || said.contains(slow), "{said}");
}

#[tokio::test]
async fn the_servers_token_file_serves_the_commands_too() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let tokens = write("tokens", "\n# the shop's own\nfirst-secret-token\nsecond-secret-token\n");
    let sidecar = Sidecar::live(folder.path(), &["--record-token-file", &tokens]).await;
    let inbound = ["record", "inbound", "7", "acme"];
    let with = |file: &str| [&inbound[..], &["--token-file", file]].concat().join("\n");
    let with = |file: &str| with(file).lines().map(str::to_owned).collect::<Vec<_>>();
    let told_with = |code, file: &str| {
        let arguments = with(file);
        told(code, &sidecar.grpc, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(told_with(0, &tokens), "recorded, revision 1\n");
    assert_says(&told(2, &sidecar.grpc, &inbound), &["authorization: Bearer", "Unauthenticated"]);
    let wrong = told_with(2, &write("wrong", "a-token-of-another\n"));
    assert!(!wrong.contains("a-token"), "{wrong}");
    assert_says(&told_with(2, &write("empty", "\n")), &["empty"]);
    assert_says(&told_with(2, "/nowhere"), &["/nowhere", "No such file"]);
    let history = ["history", "7", "acme", "--token-file", &tokens];
    assert_says(&told(0, &sidecar.grpc, &history), &["inbound message"]);
}

#[tokio::test]
async fn what_others_wrote_cannot_write_to_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let reference = "\u{1b}[2Jfake\n2026-11-24T00:00:00.000Z  r9  suppression lifted";
    let record = ["record", "opt-out", "7", "acme", "*", "--reference", reference];
    told(0, &sidecar.grpc, &record);
    let history = told(0, &sidecar.grpc, &["history", "7", "acme"]);
    let chain = history.lines().position(|line| line.starts_with("chain checked: intact, 1 event"));
    assert_eq!(chain, Some(1), "{history}");
    assert!(!history.contains('\u{1b}'), "{history:?}");
}

/// A server whose table was never loaded, in this process.
pub async fn unloaded() -> (String, Drain) {
    served(|_| {}).await
}

/// A server in this process, whose table is as `prepare` makes it.
pub async fn served(prepare: impl FnOnce(&mut Writer)) -> (String, Drain) {
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let (table, mut writer) = consentd::table::new();
    writer.reset(&KeySecret::new(&[7; 16]));
    prepare(&mut writer);
    let bound = Duration::from_secs(5);
    let checker = Checker::new(table, Policy::default(), bound, Arc::clone(&metrics));
    let drain = Drain::default();
    let health = HealthService::new(checker.clone(), drain.begun.clone());
    let sizes = BudgetSizes { bytes: 1 << 26, connection_bytes: 1 << 23, calls: 100 };
    let budget = Budget::new(sizes, Arc::clone(&metrics));
    let most = CheckLimits { batch: 100, recipients: 100 };
    let checks = CheckService::new(checker, "file:none".into(), most, Arc::clone(&metrics));
    let routes = Router::new(health).unwrap().with_checks(checks).unwrap();
    let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".into())).await.unwrap();
    let address = listener.address().unwrap().to_string();
    let limits =
        Limits { connections: 100, connection_age: PATIENCE, connection_age_grace: PATIENCE };
    tokio::spawn(serve(
        listener,
        Security::default(),
        routes,
        limits,
        budget,
        metrics,
        drain.clone(),
    ));
    (address, drain)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_loaded_yet_neither_serves_nor_decides() {
    let (address, drain) = unloaded().await;
    assert_eq!(told(1, &address, &["healthcheck"]), "NOT_SERVING\n");
    assert_eq!(
        told(1, &address, &["healthcheck", "readiness", "--json"]),
        "{\"status\":\"NOT_SERVING\"}\n"
    );
    assert_eq!(told(0, &address, &["healthcheck", "liveness"]), "SERVING\n");
    assert_says(
        &told(1, &address, &["status"]),
        &["phase      loading: reading the ledger", "proven     never"],
    );
    let asked = ["check", "7", "acme", "utility"];
    assert_says(&told(2, &address, &asked), &["not been loaded yet: do not send", "Unavailable"]);
    told(2, &address, &["get", "7", "acme"]);

    let channel = channel(&address).await;
    let mut checks = pb::consent_service_client::ConsentServiceClient::new(channel);
    let one = question("7", "acme", "utility");
    // A batch is no exception; what is malformed is told apart from what is early.
    let batch = pb::BatchCanSendRequest { requests: vec![question("", "", ""), one.clone()] };
    for status in
        [checks.can_send(one).await.unwrap_err(), checks.batch_can_send(batch).await.unwrap_err()]
    {
        assert_eq!(status.code(), tonic::Code::Unavailable);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "NOT_READY");
        assert!(details.retry_info().unwrap().retry_delay.is_some());
    }
    let malformed = checks.can_send(question("", "acme", "utility")).await.unwrap_err();
    assert_eq!(malformed.code(), tonic::Code::InvalidArgument);
    drain.begun.cancel();
    drain.over.cancel();
}

#[test]
fn the_demo_shows_every_reason_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let demo = |flags: &[&str]| -> Output {
        let mut command = Command::new(BINARY);
        command.arg("demo").args(flags).current_dir(folder.path());
        command.env("TMPDIR", folder.path()).env("CONSENTD_LISTEN", "nonsense").output().unwrap()
    };
    let started = Instant::now();
    let told = demo(&[]);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let text = String::from_utf8(told.stdout).unwrap();
    assert!(told.status.success() && told.stderr.is_empty(), "{text}");
    assert_says(&text, &["OPTED_IN", "WINDOW_OPEN", "REPLY_AFTER_OPT_OUT", "NO_CONSENT"]);
    assert_says(&text, &["WINDOW_CLOSED", "OPTED_OUT_ALL", "PLATFORM_STOPPED", "SUPPRESSED"]);
    assert_says(&text, &["CONSENT_PENDING", "FREQUENCY_CAPPED", "`consentd serve`"]);
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let json = demo(&["--json"]);
    let answers = proto3("CanSendResponse", &String::from_utf8(json.stdout).unwrap());
    assert!(answers.len() > 10 && answers.iter().any(|answer| answer["retryTime"].is_string()));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Every command, with the names that lead to it.
pub fn commands(command: &clap::Command, path: &[String], found: &mut Vec<Vec<String>>) {
    found.push(path.to_vec());
    for inner in command.get_subcommands() {
        commands(inner, &[path, &[inner.get_name().to_owned()]].concat(), found);
    }
}

#[test]
fn every_command_has_help_and_mistakes_are_corrected() {
    consentd::cli::command().debug_assert();
    let mut found = Vec::new();
    commands(&consentd::cli::command(), &[], &mut found);
    assert!(found.len() > 12, "{found:?}");
    for path in found {
        for help in ["--help", "-h"] {
            let path: Vec<_> = path.iter().map(String::as_str).chain([help]).collect();
            let (code, printed, error) = run(&path);
            assert_eq!((code, error.as_str()), (0, ""), "{path:?}");
            assert_says(&printed, &["Usage: consentd"]);
            // Rows to be copied are as long as they are.
            let prose = printed.lines().filter(|line| !line.starts_with("  {\""));
            let mut prose = prose.filter(|line| !line.starts_with("  1555"));
            assert!(prose.all(|line| line.chars().count() <= 100), "{printed}");
        }
    }
    assert!(run(&["--version"]).1.starts_with("consentd 0."));
    for (arguments, part) in [
        (&["chek"][..], "'check'"),
        (&["check", "7", "acme", "utility", "--frm", "template"], "'--form'"),
        (&["check", "7", "acme", "utility", "--form", "templat"], "'template'"),
        (&["check", "7", "acme"], "<CATEGORY>"),
        (&["record", "optin"], "'opt-in'"),
        (&["record", "opt-in", "7", "acme", "utility"], "--method"),
        (&["record", "platform", "7", "acme", "halt"], "stop, resume"),
        (&["serve", "--max-stalenes", "1s"], "'--max-staleness'"),
        (&["serve", "--max-staleness", "1"], "such as 5s"),
        (&["serve", "--ledger-cache", "much"], "--ledger-cache"),
        (&[], "Usage: consentd"),
    ] {
        let (code, printed, error) = run(arguments);
        assert_eq!((code, printed.as_str()), (2, ""), "{arguments:?}");
        assert_says(&error, &[part]);
    }
}

/// Starts a command whose output nobody reads beyond its first line; it must not mind.
fn read_one_line(arguments: &[&str]) -> String {
    let mut command = Command::new(BINARY);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ended = child.wait_with_output().unwrap();
    let error = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success() && error.is_empty(), "{arguments:?}: {error}");
    line
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error_and_a_full_disk_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    // More than a pipe holds, in all.
    let many = (0..400_u16).map(|sequence| {
        let reference = format!("{sequence} {}", "x".repeat(500));
        let out = pb::OptOut { scope: "*".into(), reference };
        let mut said = event("7", "acme", pb::consent_event::What::OptOut(out)).event;
        let at = Duration::from_secs(u64::from(400 - sequence));
        said.as_mut().unwrap().event_time = Some(ago(at));
        pb::RecordEventsRequest { event: said, ..Default::default() }
    });
    let many = tokio_stream::iter(many.collect::<Vec<_>>());
    let mut answers = sidecar.records().await.record_events(many).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    let address = sidecar.grpc.as_str();
    let (_, all, _) = run(&["history", "7", "acme", "--addr", address]);
    assert!(all.len() > 100_000, "{}", all.len());
    assert_says(&read_one_line(&["history", "7", "acme", "--addr", address]), &["opt-out *"]);
    let json = read_one_line(&["history", "7", "acme", "--json", "--addr", address]);
    assert_eq!(proto3("ListEventsResponse", &json).len(), 1);
    read_one_line(&["status", "--addr", address]);
    read_one_line(&["serve", "--help"]);
    read_one_line(&["demo"]);

    let full = File::options().write(true).open(Path::new("/dev/full")).unwrap();
    let mut command = Command::new(BINARY);
    let ended = command.args(["status", "--addr", address]).stdout(full).output().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    assert_says(&String::from_utf8(ended.stderr).unwrap(), &["standard output", "No space left"]);
}
