//! `import` and `export`, as somebody meets them who moves in with a file, or out again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use consentd::grpc::pb;
use tempfile::tempdir;

use crate::sidecar::{BINARY, Sidecar, eventually, ledger_in, run};
use crate::world::{records, world};

/// Begins an import.
pub fn begin(file: &Path, address: &str, flags: &[&str]) -> Child {
    let mut command = Command::new(BINARY);
    command.arg("import").arg(file).args(["--addr", address]).args(flags);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary was built")
}

pub fn end(child: Child) -> (i32, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

pub fn tally(printed: &str) -> BTreeMap<String, u64> {
    serde_json::from_str(printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_was_killed_twice_answers_as_the_model_says_and_so_does_its_export() {
    let folder = tempdir().unwrap();
    let world = world(12_000);
    let file = folder.path().join("events.ndjson");
    fs::write(&file, world.rows.join("\n")).unwrap();
    let rows = u64::try_from(world.rows.len()).unwrap();
    // The table's age is not what this is about, and a busy machine must not matter.
    let patient = ["--max-staleness", "10m"];
    let mut sidecar = Sidecar::live(folder.path(), &patient).await;
    let address = sidecar.grpc.clone();

    // The sidecar dies, and another one on its address goes on.
    let first = begin(&file, &address, &[]);
    eventually("a fifth is recorded", || async { records(&sidecar).await > rows / 5 }).await;
    sidecar.kill();
    let flags = [&patient[..], &["--listen", &address]].concat();
    let sidecar = Sidecar::start(&ledger_in(folder.path()), &flags);
    // Then the import itself does.
    let kept = folder.path().join("events.ndjson.import-progress");
    eventually("more is recorded", || async {
        records(&sidecar).await > rows / 5 && kept.exists()
    })
    .await;
    let mut first = first;
    assert!(first.try_wait().unwrap().is_none(), "it was to be killed before its end");
    first.kill().unwrap();
    let (_, printed, said) = end(first);
    assert_eq!(printed, "");
    assert!(said.contains("trying again"), "{said}");

    let (code, printed, said) = end(begin(&file, &address, &["--json"]));
    assert!(said.starts_with("going on with line "), "{said}");
    let tally = tally(&printed);
    assert_eq!((tally["rows"], tally["rejected"]), (rows, world.rejected), "{said}");
    assert_eq!(code, 1, "some rows were rejected");
    assert!(!kept.exists(), "nothing is left to go on with");
    world.assert_agrees(&sidecar).await;

    // Once more changes nothing.
    let revision = async || {
        let mut checks = sidecar.checks().await;
        checks.get_status(pb::GetStatusRequest {}).await.unwrap().get_ref().revision
    };
    let before = revision().await;
    let (_, printed, _) = end(begin(&file, &address, &["--json"]));
    assert_eq!(self::tally(&printed)["rows"], rows, "{printed}");
    assert_eq!(revision().await, before);

    // What is exported is accepted elsewhere, row by row, and answers the same there.
    let exported = folder.path().join("exported.ndjson");
    let export = |address: &str, file: &Path| {
        let file = file.to_str().unwrap();
        let (code, _, said) = run(&["export", "--addr", address, "--output", file]);
        assert_eq!((code, said.as_str()), (0, ""));
        fs::read_to_string(file).unwrap()
    };
    let lines = export(&address, &exported);
    let elsewhere = tempdir().unwrap();
    let other = Sidecar::live(elsewhere.path(), &patient).await;
    let (code, printed, said) = end(begin(&exported, &other.grpc, &["--json"]));
    assert_eq!((code, self::tally(&printed)["rejected"]), (0, 0), "{said}");
    world.assert_agrees(&other).await;
    let again = export(&other.grpc, &elsewhere.path().join("again.ndjson"));
    // How each was recorded is another thing there, and still verified here.
    let event = |line: &str| line.split_once(",\"recorded\":").unwrap().0.to_owned();
    let effective = |lines: &str| lines.lines().map(event).collect::<BTreeSet<_>>();
    assert!(effective(&lines) == effective(&again), "an export of an import is the same events");
    let exported = exported.to_str().unwrap();
    let (code, printed, said) = run(&["verify-export", exported, "--addr", &sidecar.grpc]);
    assert_eq!((code, said.as_str()), (0, ""), "{printed}");
    assert!(printed.starts_with(&format!("{} events checked: ", lines.lines().count())));
}

/// Rows, each with what is said of it; none where it is good.
type Rows<'a> = &'a [(&'a str, Option<&'a str>)];

const STATEMENT: &str =
    r#""statement":"Yes to offers from Acme on WhatsApp","businessName":"Acme""#;

/// Imports rows with a header; compares what is said of each, and what is rejected.
async fn import_rows(name: &str, header: Option<&str>, rows: Rows<'_>) {
    let folder = tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let (file, rejects) = (folder.path().join(name), folder.path().join("rejects"));
    let lines = header.into_iter().chain(rows.iter().map(|(row, _)| *row));
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let rejects_flag = ["--json", "--rejects", rejects.to_str().unwrap()];
    let (code, printed, said) = end(begin(&file, &sidecar.grpc, &rejects_flag));
    let first = if header.is_some() { 2 } else { 1 };
    let bad = (first..).zip(rows).filter_map(|(line, (row, why))| Some((line, *row, (*why)?)));
    let bad: Vec<(usize, &str, &str)> = bad.collect();
    let expected: Vec<_> = bad.iter().map(|(line, _, why)| format!("line {line}: {why}")).collect();
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    assert_eq!(code, i32::from(!bad.is_empty()));
    let tally = tally(&printed);
    let count = |count: usize| u64::try_from(count).unwrap();
    assert_eq!(tally["rejected"], count(bad.len()));
    assert_eq!(tally["applied"], count(rows.len() - bad.len()));
    let kept = fs::read_to_string(&rejects).unwrap();
    let kept_rows = header.into_iter().chain(bad.iter().map(|(_, row, _)| *row));
    assert_eq!(kept.lines().collect::<Vec<_>>(), kept_rows.collect::<Vec<_>>());
}

#[tokio::test]
async fn bad_lines_are_told_and_kept_and_the_others_recorded() {
    let opt_in = |rest: &str| {
        format!(
            r#"{{"userId":"15550123456","businessId":"acme",{rest}"optIn":{{"category":"marketing","evidence":{{"method":"OPT_IN_METHOD_WEBSITE",{STATEMENT}}}}}}}"#
        )
    };
    let time = r#""eventTime":"2026-01-31T09:30:00Z","#;
    let no_evidence = r#"{"userId":"15550123456","businessId":"acme","eventTime":"2026-01-31T09:30:00Z","optIn":{"category":"marketing"}}"#;
    let rows: &[(&str, Option<&str>)] = &[
        (&opt_in(time), None),
        (
            &opt_in(""),
            Some(
                "event_time: required in an import: without it the event would count from now \
                 on; only opt-outs, stops and suppressions may go without",
            ),
        ),
        (
            no_evidence,
            Some(
                "opt_in.evidence.method: required: one of OPT_IN_METHOD_SMS, _WEBSITE, _WHATSAPP, \
                 _PHONE, _IN_PERSON and _WHATSAPP_SIGNUP; opt_in.evidence.statement: required: \
                 the words that the user agreed to, as shown, such as \"Yes, send me offers from \
                 Acme on WhatsApp\"; opt_in.evidence.business_name: required: the business's name \
                 as the user saw it, such as Acme",
            ),
        ),
        (r#"{"userId":"15550123457","businessId":"acme","optOut":{"scope":"*"}}"#, None),
        (
            r#"{"userId":15550123456,"businessId":"acme"}"#,
            Some("userId: invalid type: integer …, expected a string"),
        ),
        (r#"{"user":"15550123456"}"#, Some("unrecognized field name 'user'")),
        ("not json", Some("expected ident")),
        (r#"{"userId":"1""#, Some("EOF while parsing an object")),
        (
            r#"{"userId":"15550123456","eventTime":"yesterday"}"#,
            Some(
                "eventTime: must be a moment with its zone, such as 2026-01-31T09:30:00Z or \
                 2026-01-31T09:30:00+01:00",
            ),
        ),
        (
            r#"{"optIn":{"evidence":{"method":"FAX"}}}"#,
            Some(
                "optIn.evidence.method: must be one of OPT_IN_METHOD_SMS, _WEBSITE, _WHATSAPP, \
                 _PHONE, _IN_PERSON and _WHATSAPP_SIGNUP",
            ),
        ),
        (
            r#"{"userId":"15550123458.0","businessId":"acme","optOut":{"scope":"*"}}"#,
            Some(
                "user_id: a phone number that ends in \".0\" was read from a spreadsheet as a \
                 decimal number; format that column as text and give the number without it",
            ),
        ),
    ];
    import_rows("events.ndjson", None, rows).await;
}

#[tokio::test]
async fn bad_csv_rows_are_told_and_kept_and_the_others_recorded() {
    let header =
        "user_id,business_id,event,event_time,category,method,statement,business_name,scope,code";
    let statement = "\"Yes, offers from Acme on WhatsApp\",Acme";
    let rows = [
        (
            format!("15550123456,acme,opt_in,2026-01-31T09:30:00Z,marketing,website,{statement},,"),
            None,
        ),
        (
            format!("15550123457,acme,opt_in,2026-01-31 09:30,marketing,website,{statement},,"),
            Some(
                "event_time: has no zone, and a few hours decide which event stands: write Z or +01:00 \
                 behind it, or say with --time-zone which one all of them have",
            ),
        ),
        (
            format!("15550123457,acme,opt_in,2026-01-31T09:30:00Z,sales,website,{statement},,"),
            Some(
                "category: unknown class \"sales\", did you mean marketing? It is one of \
                 marketing, utility, authentication or service, perhaps with a topic: \
                 utility.order_updates",
            ),
        ),
        (
            format!("15550123457,acme,opt_in,2026-01-31T09:30:00Z,marketing,fax,{statement},,"),
            Some(
                "method: must be one of sms, website, whatsapp, phone, in_person, whatsapp_signup",
            ),
        ),
        ("15550123457,acme,opt_out,2026-01-31T09:30:00Z,,,,,*,".to_owned(), None),
        (
            "15550123457,acme,opt_out,,marketing,,,,*,".to_owned(),
            Some("category: must be empty where event is opt_out"),
        ),
        (
            "15550123457,acme,optout,,,,,,*,".to_owned(),
            Some(
                "event: must be one of opt_in, opt_out, inbound_message, platform_preference, \
                 delivery_failure, suppression, link, template_category, template_restriction",
            ),
        ),
        (
            "15550123457,acme,opt_out".to_owned(),
            Some("has 3 cells, and the header 10: is a comma not quoted?"),
        ),
        ("15550123457,acme,delivery_failure,2026-01-31T09:30:00Z,,,,,,131047".to_owned(), None),
        (
            "15550123457,acme,delivery_failure,2026-01-31T09:30:00Z,,,,,,lots".to_owned(),
            Some("code: must be WhatsApp's error code, such as 131047"),
        ),
    ];
    let rows: Vec<_> = rows.iter().map(|(row, why)| (row.as_str(), *why)).collect();
    import_rows("events.csv", Some(header), &rows).await;
}

/// What is said of an input that is refused as a whole.
async fn refused(name: &str, content: &[u8], flags: &[&str]) -> String {
    let folder = tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let file = folder.path().join(name);
    fs::write(&file, content).unwrap();
    let (code, printed, said) = end(begin(&file, &sidecar.grpc, flags));
    assert_eq!((code, printed.as_str()), (2, ""), "{said}");
    assert_eq!(records(&sidecar).await, 0);
    said
}

#[tokio::test]
async fn what_is_not_an_input_is_named_with_its_remedy() {
    let said = refused("events.csv", b"user,business\n1,acme\n", &[]).await;
    assert!(said.contains("no column `user`, `business` is known"), "{said}");
    assert!(said.contains("--columns") && said.contains("--ignore-other-columns"), "{said}");
    let said = refused("events.csv", b"user_id,business_id\n1,acme\n", &[]).await;
    assert!(said.contains("the column event is missing"), "{said}");
    let said = refused("events.json", b"[\n{\"userId\":\"1\"}]\n", &[]).await;
    assert!(said.contains("one JSON array") && said.contains("jq"), "{said}");
    let said = refused("events.csv", b"\xff\xfeu\0s\0", &[]).await;
    assert!(said.contains("UTF-16") && said.contains("UTF-8"), "{said}");
}

#[tokio::test]
async fn an_export_is_of_one_business_and_since_a_moment() {
    let folder = tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let row = |user: &str, business: &str| {
        format!(r#"{{"userId":"{user}","businessId":"{business}","optOut":{{"scope":"*"}}}}"#)
    };
    let file = folder.path().join("events.ndjson");
    fs::write(&file, [row("1555", "acme"), row("1556", "other")].join("\n")).unwrap();
    assert_eq!(end(begin(&file, &sidecar.grpc, &[])).0, 0);
    let export = |flags: &[&str]| {
        let (code, printed, said) = run(&[&["export", "--addr", &sidecar.grpc], flags].concat());
        assert_eq!((code, said.as_str()), (0, ""));
        printed.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(export(&[]).len(), 2);
    assert_eq!(export(&["--since", "1h"]).len(), 2);
    assert_eq!(export(&["--since", "2100-01-01T00:00:00Z"]).len(), 0);
    let one = export(&["--business", "other"]);
    assert_eq!(one.len(), 1);
    assert!(one[0].contains("\"1556\"") && one[0].contains("eventTime"), "{one:?}");
}

#[tokio::test]
async fn another_ledger_gets_all_rows_though_an_import_was_broken_off() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("events.ndjson");
    let world = world(50);
    fs::write(&file, world.rows.join("\n")).unwrap();
    let address = {
        let sidecar = Sidecar::live(folder.path(), &[]).await;
        // Broken off for good: nobody is there any more before it can end.
        let mut import = begin(&file, &sidecar.grpc, &["--retry-for", "0s"]);
        import.kill().unwrap();
        end(import);
        sidecar.grpc.clone()
    };
    // As it would have been kept by an import into that ledger, half-way.
    let half: String = world.rows[..world.rows.len() / 2].join("\n") + "\n";
    let kept = folder.path().join("events.ndjson.import-progress");
    let tail = consentd_core::record::sha256(&half.as_bytes()[half.len().saturating_sub(65_536)..]);
    let tail = tail.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let progress = serde_json::json!({
        "ledger": "00000000000000000000000000000000", "revision": 1, "offset": half.len(),
        "line": world.rows.len() / 2 + 1, "tail": tail, "rejects": 0,
        "tally": {"applied": 1, "unchanged": 0, "rejected": 0},
    });
    fs::write(&kept, progress.to_string()).unwrap();
    let other = tempdir().unwrap();
    let sidecar = Sidecar::live(other.path(), &["--listen", &address]).await;
    let (_, printed, said) = end(begin(&file, &sidecar.grpc, &["--json"]));
    assert!(said.contains("beginning with the first row"), "{said}");
    assert_eq!(tally(&printed)["rows"], u64::try_from(world.rows.len()).unwrap());
    world.assert_agrees(&sidecar).await;
}
