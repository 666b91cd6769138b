//! Files as other tools and spreadsheets write them, imported by the real binary.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use tempfile::{TempDir, tempdir};

use crate::import::{begin, end, tally};
use crate::sidecar::{BINARY, Sidecar, eventually, run};
use crate::world::records;

/// The commands of the page that import a file, each with the lines on which it goes on.
fn commands() -> Vec<String> {
    let page = include_str!("../../docs/import-export.md");
    let (_, section) = page.split_once("## From other tools").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let section = section.replace("\\\n", " ");
    let commands = section.lines().filter(|line| line.starts_with("consentd import "));
    commands.map(str::to_owned).collect()
}

/// What a shell prints in this folder, where `consentd` is the binary.
fn shell(folder: &Path, address: &str, command: &str) -> (i32, String, String) {
    let mut shell = Command::new("sh");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    shell.arg("-c").arg(command).current_dir(folder);
    let output = shell.env("PATH", path).env("CONSENTD_ADDR", address).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn reason(sidecar: &Sidecar, user: &str) -> String {
    let (_, printed, said) =
        run(&["check", user, "acme", "marketing", "--addr", &sidecar.grpc, "--json"]);
    let answer: serde_json::Value =
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}{said}"));
    answer["reason"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn exports_of_other_tools_go_in_by_the_commands_of_the_page() {
    let commands = commands();
    for (file, opted_out, others, applied, left_out, said_when) in [
        ("numbers.txt", &["447700900001", "447700900003"][..], &[][..], 4, 0, ""),
        ("twilio.csv", &["15550100001"], &["15550100002", "15550199999"], 2, 1, "T09:30:00"),
        ("klaviyo.csv", &["15550100001"], &["15550100002"], 1, 2, "2026-01-31T09:30:00"),
        ("hubspot.csv", &["447700900001"], &["447700900002"], 1, 2, ""),
        ("brevo.csv", &["33612345601"], &["33612345602"], 1, 1, "2026-01-31T23:59:59.999Z"),
        ("mailchimp.csv", &["12015550101", "12015550102"], &[], 2, 0, "2026-01-31T09:30:00"),
        ("salesforce.csv", &["15550100001"], &["15550100002"], 1, 1, "2026-01-31T09:30:00"),
    ] {
        let command = commands.iter().find(|command| command.contains(file));
        let command = command.unwrap_or_else(|| panic!("the page has no command for {file}"));
        let folder = tempdir().unwrap();
        let sidecar = Sidecar::live(folder.path(), &[]).await;
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/imports");
        fs::copy(fixture.join(file), folder.path().join(file)).unwrap();
        symlink(BINARY, folder.path().join("consentd")).unwrap();
        let dry = shell(folder.path(), "127.0.0.1:1", &format!("{command} --dry-run --json"));
        let (code, printed, said) =
            shell(folder.path(), &sidecar.grpc, &format!("{command} --json"));
        assert_eq!((code, said.as_str()), (0, ""), "{file}: {printed}");
        let counts = tally(&printed);
        assert_eq!(counts["applied"] + counts["unchanged"], applied, "{file}: {printed}");
        assert_eq!((counts["leftOut"], counts["rejected"]), (left_out, 0), "{file}: {printed}");
        let lines = fs::read_to_string(fixture.join(file)).unwrap().lines().count();
        assert_eq!(counts["lines"], u64::try_from(lines).unwrap(), "{file}: {printed}");
        // The dry run, which had no sidecar, said the same.
        assert_eq!((dry.0, dry.2.as_str()), (0, ""), "{file}");
        let dry: serde_json::Value = serde_json::from_str(&dry.1).unwrap();
        assert_eq!(
            (&dry["applied"], &dry["leftOut"]),
            (&applied.into(), &left_out.into()),
            "{file}"
        );
        for user in opted_out {
            let found = reason(&sidecar, user);
            assert!(found.starts_with("REASON_OPTED_OUT"), "{file}: {found}");
        }
        for user in others {
            let found = reason(&sidecar, user);
            assert!(!found.starts_with("REASON_OPTED_OUT"), "{file}: {found}");
        }
        let (_, history, _) = run(&["history", opted_out[0], "acme", "--addr", &sidecar.grpc]);
        assert!(history.contains(said_when), "{file}: {history}");
    }
}

/// A folder with a sidecar and a file.
struct Given {
    folder: TempDir,
    sidecar: Sidecar,
}

impl Given {
    async fn new(name: &str, content: impl AsRef<[u8]>) -> Self {
        let folder = tempdir().unwrap();
        let sidecar = Sidecar::live(folder.path(), &[]).await;
        fs::write(folder.path().join(name), content).unwrap();
        Self { folder, sidecar }
    }

    /// Imports the file.
    fn import(&self, name: &str, flags: &[&str]) -> (i32, String, String) {
        end(begin(&self.folder.path().join(name), &self.sidecar.grpc, flags))
    }

    fn rejects(&self) -> String {
        self.folder.path().join("rejects").to_str().unwrap().to_owned()
    }
}

const OPT_OUTS: [&str; 6] = ["--business", "acme", "--event", "opt_out", "--scope", "*"];

#[tokio::test]
async fn quote_that_is_not_closed_loses_no_row_and_all_lines_are_counted() {
    let file = "user_id,event_time,reference\n\
                15550100001,2026-01-31T09:30:00Z,\"never closed\n\
                15550100002,2026-01-31T09:30:00Z,plain\n\
                \n\
                15550100003,2026-01-31T09:30:00Z,\"on two\nlines\"\n\
                15550100004,2026-01-31T09:30:00Z,\"closed \"wrongly\"\"\n\
                15550100005,2026-01-31T09:30:00Z,\"the last one";
    let given = Given::new("rows.csv", file).await;
    let rejects = given.rejects();
    let flags = [&OPT_OUTS[..], &["--json", "--rejects", &rejects]].concat();
    let (code, printed, said) = given.import("rows.csv", &flags);
    assert_eq!(code, 1, "{printed}");
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            "line 2: reference: a quote is not closed on this line, and line 3 looks like a row of \
             its own: close it",
            "line 7: reference: a quote inside of quotes must be doubled: \"\"",
            "line 8: reference: a quote is not closed on this line, and no later line closes it: \
             close it",
        ]
    );
    let counts = tally(&printed);
    assert_eq!((counts["applied"], counts["rejected"]), (2, 3), "{printed}");
    let parts = ["headerLines", "blankLines", "furtherLines", "rows"];
    assert_eq!(parts.map(|part| counts[part]), [1, 1, 1, 5], "{printed}");
    assert_eq!(counts["lines"], 8);
    for (user, is_out) in [("15550100002", true), ("15550100003", true), ("15550100001", false)] {
        assert_eq!(reason(&given.sidecar, user).starts_with("REASON_OPTED_OUT"), is_out);
    }
    let kept = fs::read_to_string(&rejects).unwrap();
    let lines: Vec<_> = file.lines().collect();
    assert_eq!(kept.lines().collect::<Vec<_>>(), [lines[0], lines[1], lines[6], lines[7]]);
}

#[tokio::test]
async fn long_lines_and_a_quote_at_the_start_of_a_large_file_cost_themselves_alone() {
    let filler = format!("{}\n", "x".repeat(127)).repeat(16 << 10);
    let long = "y".repeat(3 << 20);
    let file = format!(
        "user_id,event_time,reference\n15550100001,,\"{long}\n15550100002,,plain\n\
         15550100003,,\"open\n{filler}15550100004,,plain\n"
    );
    let given = Given::new("rows.csv", file).await;
    let flags = [&OPT_OUTS[..], &["--json"]].concat();
    let (code, printed, said) = given.import("rows.csv", &flags);
    assert_eq!(code, 1, "{printed}");
    assert!(said.starts_with("line 2: longer than 1048576 bytes"), "{}", &said[..200]);
    assert!(said.contains("\nline 4: reference: a quote is not closed"), "{}", &said[..400]);
    let counts = tally(&printed);
    assert_eq!((counts["applied"], counts["rejected"]), (2, (16 << 10) + 2), "{printed}");
    assert_eq!(counts["lines"], (16 << 10) + 5);
}

#[tokio::test]
async fn what_spreadsheets_add_is_read_as_what_it_stands_for() {
    let header = "\u{feff}sep=;\r\nUser_ID ; event_time;Reference;;\r\n";
    let file = format!(
        "{header}'+447700900001;2026-01-31 09:30:00 UTC;one;;\r\n;;;;\r\n\
         \"=\"\"07700900002\"\"\";2026-01-31 09:30:00 +0000;two;;\r\n\
         7700900003;1970-01-01T00:00:00;three;;\r\n7700900004;31/01/2026;four\r\n\
         07700 900005;2026-01-31T09:30:00Z;five;;six\r\n"
    );
    let given = Given::new("rows.csv", &file).await;
    let rejects = given.rejects();
    let flags = [&OPT_OUTS[..], &["--region", "GB", "--json"]].concat();
    let with_rejects = [&flags[..], &["--rejects", &rejects]].concat();
    let (code, printed, said) = given.import("rows.csv", &with_rejects);
    assert_eq!(code, 1, "{printed}");
    let said: Vec<_> = said.lines().collect();
    assert!(said[0].starts_with("line 6: event_time: is 1970-01-01 or before"), "{said:?}");
    assert!(said[1].starts_with("line 7: event_time: may be a day and a month"), "{said:?}");
    assert!(said[2].starts_with("line 8: cell 5: the column has no name"), "{said:?}");
    let counts = tally(&printed);
    let parts = ["headerLines", "blankLines", "applied", "rejected"];
    assert_eq!(parts.map(|part| counts[part]), [2, 1, 2, 3], "{printed}");
    for user in ["447700900001", "447700900002"] {
        assert_eq!(reason(&given.sidecar, user), "REASON_OPTED_OUT_ALL");
    }
    // What was rejected is imported by the same command, with the flags that were named.
    let kept = given.folder.path().join("rejects");
    let flags = [
        &flags[..],
        &["--undated-opt-outs", "now", "--time-zone", "UTC", "--ignore-other-columns"],
    ]
    .concat();
    let renamed = given.folder.path().join("again.csv");
    fs::rename(&kept, &renamed).unwrap();
    let (code, printed, said) = given.import("again.csv", &flags);
    assert_eq!((code, said.as_str()), (0, ""), "{printed}");
    assert_eq!(tally(&printed)["applied"], 3, "{printed}");
    assert_eq!(reason(&given.sidecar, "447700900003"), "REASON_OPTED_OUT_ALL");
}

#[tokio::test]
async fn row_in_another_encoding_costs_itself_alone_and_the_flag_reads_it() {
    let file = b"user_id,reference\n15550100001,caf\xe9\n15550100002,plain\n";
    let given = Given::new("rows.csv", file).await;
    let flags = [&OPT_OUTS[..], &["--json"]].concat();
    let (code, printed, said) = given.import("rows.csv", &flags);
    assert_eq!(code, 1, "{printed}");
    assert_eq!(
        said,
        "line 2: reference: is not UTF-8: save the file as UTF-8, or give --encoding windows-1252 \
         if it is that\n"
    );
    let flags = [&flags[..], &["--encoding", "windows-1252"]].concat();
    let (code, printed, said) = given.import("rows.csv", &flags);
    assert_eq!((code, said.as_str()), (0, ""), "{printed}");
    let (_, history, _) = run(&["history", "15550100001", "acme", "--addr", &given.sidecar.grpc]);
    assert!(history.contains("café"), "{history}");
}

#[tokio::test]
async fn line_ends_and_delimiters_of_every_system_are_found() {
    let rows = "user_id;event_time;reference\n15550100001;2026-01-31T09:30:00Z;a, b\n\
                15550100002;2026-01-31T09:30:00Z;c";
    for (end_of_line, delimiter) in [("\r", ";"), ("\r\n", "\t"), ("\n", "|"), ("\n", ";")] {
        let file = rows.replace('\n', end_of_line).replace(';', delimiter);
        let given = Given::new("rows.csv", file).await;
        let flags = [&OPT_OUTS[..], &["--json"]].concat();
        let (code, printed, said) = given.import("rows.csv", &flags);
        assert_eq!((code, said.as_str()), (0, ""), "{delimiter:?}: {printed}");
        let counts = tally(&printed);
        assert_eq!((counts["applied"], counts["lines"]), (2, 3), "{delimiter:?}");
    }
}

#[tokio::test]
async fn column_whose_name_has_a_comma_is_named_as_it_is_written() {
    let rows = "Phone,\"Opted out, on\"\n15550100001,2026-01-31T09:30:00Z\n";
    let given = Given::new("rows.csv", rows).await;
    let columns = ["--columns", "Phone=user_id,Opted out, on=event_time", "--json"];
    let (code, printed, said) = given.import("rows.csv", &[&OPT_OUTS[..], &columns].concat());
    assert_eq!((code, said.as_str()), (0, ""), "{printed}");
    assert_eq!(tally(&printed)["applied"], 1);
}

#[tokio::test]
async fn file_that_is_not_understood_is_refused_with_what_to_give() {
    let given = Given::new("events.ndjson", "{}\n").await;
    for (content, flags, parts) in [
        (
            "phone,name\n1,a\n",
            &OPT_OUTS[..],
            &["no column `phone`, `name` is known", "--columns"][..],
        ),
        ("phone\n1\n", &["--columns", "Phone=user"], &["user is none of user_id"]),
        ("phone\n1\n", &["--columns", "tel=user_id"], &["no column `tel`", "phone"]),
        ("phone\n1\n", &["--columns", "Phone=user_id"], &["business_id is missing", "--business"]),
        ("user_id,USER_ID\n1,2\n", &OPT_OUTS, &["user_id is there twice", "NAME=-"]),
        ("+15550100001\n+15550100002\n", &OPT_OUTS, &["looks like a row", "--no-header"]),
        ("user_id\n", &["--where", "status=out"], &["--where", "no column `status`"]),
        ("user_id,,event\n1,2,3\n", &OPT_OUTS, &["2 (without a name)"]),
        ("", &OPT_OUTS, &["is empty"]),
    ] {
        fs::write(given.folder.path().join("rows.csv"), content).unwrap();
        let (code, printed, said) = given.import("rows.csv", flags);
        assert_eq!((code, printed.as_str()), (2, ""), "{said}");
        for part in parts {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("15550100001"), "{said}");
    }
    let (code, _, said) = given.import("events.ndjson", &["--columns", "a=user_id"]);
    assert_eq!(code, 2);
    assert!(said.contains("--columns is for CSV files"), "{said}");
    assert_eq!(records(&given.sidecar).await, 0);
}

#[tokio::test]
async fn dry_run_tells_what_would_be_folded_and_records_nothing() {
    let file = "user_id\n07700 900001\n+447700900001\n447700900001\n07700 900002\n0123\n";
    let given = Given::new("rows.csv", file).await;
    let flags = [&OPT_OUTS[..], &["--region", "GB", "--dry-run"]].concat();
    let (code, printed, said) = given.import("rows.csv", &flags);
    assert_eq!(code, 1, "{printed}");
    assert!(said.starts_with("line 6: user_id: is no number as it is dialled in GB"), "{said}");
    for part in [
        "nothing was recorded",
        "6 lines (1 of header): 5 rows, 4 would be recorded, 1 rejected",
        "4 notations of ids are 2 people: 2 are folded into another one",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert_eq!(records(&given.sidecar).await, 0);
    assert!(!given.folder.path().join("rows.csv.import-progress").exists());
}

#[tokio::test]
async fn going_on_never_takes_the_header_for_a_row_and_never_with_other_flags() {
    let row = |row: u32| format!("1555{row:07};2026-01-31T09:30:00Z\n");
    let rows = (0..20_000).map(row).collect::<Vec<_>>().concat();
    let given = Given::new("rows.csv", format!("\u{feff}sep=;\nuser_id;event_time\n{rows}")).await;
    let file = given.folder.path().join("rows.csv");
    let kept = given.folder.path().join("rows.csv.import-progress");
    let flags = [&OPT_OUTS[..], &["--json"]].concat();
    // Broken off at two places: before its first row is done with, and later.
    for _ in 0..2 {
        let mut import = begin(&file, &given.sidecar.grpc, &flags);
        eventually("its progress is kept", || async { kept.exists() }).await;
        import.kill().unwrap();
        end(import);
    }
    let progress: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&kept).unwrap()).unwrap();
    assert!(progress["line"].as_u64().unwrap() >= 3, "{progress}");
    let others = [&flags[..], &["--region", "GB"]].concat();
    let (code, _, said) = given.import("rows.csv", &others);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("interrupted with") && said.contains("--from-start"), "{said}");
    let (code, printed, said) = given.import("rows.csv", &flags);
    assert_eq!(code, 0, "{said}");
    let counts = tally(&printed);
    assert_eq!(
        (counts["rows"], counts["rejected"], counts["lines"]),
        (20_000, 0, 20_002),
        "{said}"
    );
}
