//! What makes a first hour easier: a denial that says what would allow it, suggestions,
//! completions, manual pages, and a refused start that leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use consentd_core::decision::Reason;
use consentd_os::clock::{self, Moment};
use tonic::Code;

use crate::commands::{commands, served};
use crate::sidecar::{BINARY, Sidecar, Wire, ledger_in, run};

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{said:?} has no {part:?}");
    }
}

/// A moment so long ago, as the commands take it.
fn ago(hours: u64) -> String {
    humantime::format_rfc3339_seconds(SystemTime::now() - Duration::from_hours(hours)).to_string()
}

/// A reason, what is recorded before, the check's flags, and what must be said.
type Case<'a> = (Reason, Vec<Vec<String>>, &'a [&'a str], &'a [&'a str]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_denial_says_what_would_allow_the_message() {
    let folder = tempfile::tempdir().unwrap();
    // The eleventh user is of a country that is blocked.
    let flags = ["--deny-after-failure", "130403", "--marketing-blocked-countries", "11"];
    let sidecar = Sidecar::live(folder.path(), &flags).await;
    let opt_in = "opt-in USER acme marketing --method website --business-name Acme --statement";
    let opt_in = |more: &str| {
        let mut words: Vec<String> = opt_in.split(' ').map(str::to_owned).collect();
        words.push("Yes, offers from Acme on WhatsApp".to_owned());
        words.extend(more.split_whitespace().map(str::to_owned));
        words
    };
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let (day, hour, year) = (ago(25), ago(1), words("--time 3h --expires"));
    let lapsed = [opt_in(""), year, vec![hour]].concat();
    let free = ["--form", "free-form"].as_slice();
    let cases: [Case; 11] = [
        (Reason::NoConsent, vec![], &[], &["an opt-in to this category or its class would allow"]),
        (
            Reason::WindowClosed,
            vec![opt_in(""), words(&format!("inbound USER acme --time {day}"))],
            free,
            &["send a template, or wait for a message", "window closed at 20"],
        ),
        (
            Reason::OptedOut,
            vec![words("opt-out USER acme marketing")],
            &[],
            &["only a later opt-in by the user allows it"],
        ),
        (
            Reason::OptedOutAll,
            vec![words("opt-out USER acme *")],
            &[],
            &["only a later opt-in by the user allows it", "a message from the user"],
        ),
        (
            Reason::PlatformStopped,
            vec![opt_in(""), words("platform USER acme stop")],
            &[],
            &["only the user can resume it there"],
        ),
        (Reason::ConsentExpired, vec![lapsed], &[], &["the user must opt in again"]),
        (
            Reason::ConsentPending,
            vec![opt_in("--pending")],
            &[],
            &["waits for its confirmation", "the user's yes allows it"],
        ),
        (
            Reason::FrequencyCapped,
            vec![opt_in(""), words("failure USER acme 131049")],
            &[],
            &["ask again at the retry time", "ask again at 20"],
        ),
        (
            Reason::Suppressed,
            vec![words("suppress USER acme")],
            &[],
            &["only once the suppression is lifted"],
        ),
        (
            Reason::PlatformRefused,
            vec![opt_in(""), words("failure USER acme 130403")],
            &[],
            &["--deny-after-failure names: see `consentd get` for the code"],
        ),
        (
            Reason::CountryBlocked,
            vec![opt_in("")],
            &[],
            &["marketing templates to this user's country", "--marketing-blocked-countries"],
        ),
    ];
    let mut denied = BTreeSet::from(["STALE"]);
    for (user, (reason, before, flags, parts)) in (1_u8..).zip(cases) {
        let user = user.to_string();
        for arguments in before {
            let arguments = arguments.iter().map(|word| if word == "USER" { &user } else { word });
            let arguments: Vec<_> = arguments.map(String::as_str).collect();
            let all = [&["record"], &arguments[..], &["--addr", &sidecar.grpc]].concat();
            let (code, _, error) = run(&all);
            assert_eq!(code, 0, "{arguments:?}: {error}");
        }
        let check = ["check", &user, "acme", "marketing", "--addr", &sidecar.grpc];
        assert_denied(&[&check[..], flags].concat(), reason, parts);
        denied.insert(reason.name());
    }
    let (address, drain) = served(|writer| {
        writer.set_proof(Moment::now(), clock::wall());
        writer.validate();
        writer.invalidate();
    })
    .await;
    let check = vec!["check", "1", "acme", "marketing", "--addr", &address];
    let parts = ["denies until it can", "`consentd status` for the cause"];
    tokio::task::block_in_place(|| assert_denied(&check, Reason::Stale, &parts));
    drain.begun.cancel();
    let all = Reason::ALL.into_iter().filter(|reason| !reason.allows()).map(Reason::name);
    assert_eq!(denied, all.collect(), "every reason that denies is here");
}

#[track_caller]
fn assert_denied(check: &[&str], reason: Reason, parts: &[&str]) {
    let (code, printed, error) = run(check);
    assert_eq!((code, error.as_str()), (1, ""), "{printed}");
    assert!(printed.starts_with(&format!("denied: {}\n", reason.name())), "{printed}");
    assert_says(&printed, parts);
    // What it means, and then what may be sent and when.
    let meaning = printed.lines().nth(1).unwrap();
    assert!(meaning.starts_with("  ") && meaning.len() < 170, "{printed}");
}

/// Everything in a folder, its own folders left out.
fn left_in(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_refused_start_leaves_nothing_behind() {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut other = Sidecar::live(elsewhere.path(), &[]).await;
    let taken = other.grpc.clone();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, second) = (path("s"), format!("unix:{}", path("r")));
    let unix = ["--unix", &socket];
    let ledger = ledger_in(folder.path());
    for flags in [
        &["--listen", &taken][..],
        &["--admin", &taken],
        &["--record", &taken],
        &["--listen", "0.0.0.0:0"],
        &["--record", &second, "--record-token-file", "/nowhere"],
        &["--admin", "192.0.2.1:1"],
    ] {
        let flags = [&unix[..], flags].concat();
        assert!(Sidecar::try_start(&ledger, &flags).is_err(), "{flags:?} were taken");
        assert_eq!(left_in(folder.path()), BTreeSet::new(), "{flags:?}");
    }
    // Nor where it is the ledger that is refused; and what was there before stays.
    let theirs = ledger_in(elsewhere.path());
    assert!(Sidecar::try_start(&theirs, &[&unix[..], &["--record", &second]].concat()).is_err());
    assert_eq!(left_in(folder.path()), BTreeSet::new());
    other.signal("TERM");
    assert!(other.ended().await.success());
    assert_eq!(left_in(elsewhere.path()), BTreeSet::from(["ledger.redb".to_owned()]));
    // A whole life leaves the ledger alone.
    let mut sidecar = Sidecar::start(&ledger, &unix);
    assert_eq!(left_in(folder.path()).len(), 3, "the socket and its lock beside it");
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
    assert_eq!(left_in(folder.path()), BTreeSet::from(["ledger.redb".to_owned()]));
}

#[test]
fn settings_that_are_wrong_are_named_where_they_stand() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("consentd.toml");
    let shown = file.to_str().unwrap();
    let refused = |flags: &[&str], variables: &[(&str, &str)]| {
        let started = Sidecar::try_start_in(&ledger_in(folder.path()), flags, variables);
        started.err().unwrap_or_else(|| panic!("{flags:?} {variables:?} were taken"))
    };
    for (key, meant) in [
        ("max-stalenes = \"1s\"", "max-staleness"),
        ("max_batch = 7", "max-batch"),
        ("Listen = \"none\"", "listen"),
        ("[keywords]\ntopic = []", "topics"),
    ] {
        fs::write(&file, format!("workers = 1\n\n{key}\n")).unwrap();
        let line = if key.contains('[') && key.starts_with('[') { 4 } else { 3 };
        let word = key.lines().last().unwrap().split(' ').next().unwrap();
        let said = refused(&["--config", shown], &[]);
        let part = format!("{shown}, line {line}: unknown key `{word}`; did you mean `{meant}`?");
        assert_says(&said, &[&part]);
    }
    fs::write(&file, "colour = 1\n").unwrap();
    assert_says(&refused(&["--config", shown], &[]), &[shown, "line 1", "`colour`", "`max-batch`"]);

    for (variable, value, parts) in [
        ("CONSENTD_MAX_BATCH", "many", ["--max-batch", "a whole number"]),
        ("CONSENTD_MAX_BATCH", "0", ["--max-batch", "1 or more"]),
        ("CONSENTD_WINDOW", "25h", ["--window", "24h"]),
        ("CONSENTD_MAX_STALENESS", "5", ["--max-staleness", "such as 5s"]),
        ("CONSENTD_LEDGER_CACHE", "much", ["--ledger-cache", "64MiB"]),
        ("CONSENTD_LOG", "debgu", ["--log", "info, debug, trace"]),
    ] {
        let said = refused(&[], &[(variable, value)]);
        assert_says(&said, &parts);
        assert_says(&said, &[variable]);
        // What a flag says is the flag's fault.
        let said = refused(&[parts[0], value], &[(variable, value)]);
        assert_says(&said, &parts);
        assert!(!said.contains(variable), "{said}");
    }
    for (word, meant) in [
        ("start", "'serve'"),
        ("ask", "'check'"),
        ("optin", "'record opt-in'"),
        ("chek", "'check'"),
    ] {
        let (code, _, said) = run(&[word, "7", "acme"]);
        assert_eq!(code, 2);
        assert_says(&said, &[word, "tip: a similar subcommand exists", meant]);
        assert!(!said.contains("status"), "{said}");
    }
    let (_, _, said) = run(&["serve", "--ledger", "consentd.redb"]);
    assert_says(&said, &["--ledger", "did you mean file:consentd.redb?"]);
    let output = Command::new(BINARY).arg("status").env("CONSENTD_ADDR", "50051").output().unwrap();
    assert_says(&String::from_utf8(output.stderr).unwrap(), &["--addr", "CONSENTD_ADDR"]);
}

#[tokio::test]
async fn a_variable_that_is_empty_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["UNIX", "MAX_BATCH", "RECORD", "CONFIG", "LOG", "RECORD_TOKEN_FILE"];
    let names = names.map(|name| format!("CONSENTD_{name}"));
    let variables = names.each_ref().map(|name| (name.as_str(), ""));
    let ledger = ledger_in(folder.path());
    let sidecar = Sidecar::try_start_in(&ledger, &[], &variables).ok().unwrap();
    assert_eq!(sidecar.grpc, sidecar.record);
    sidecar.wait_until_live().await;
    let mut command = Command::new(BINARY);
    command.args(["status", "--addr", &sidecar.grpc]).env("CONSENTD_TOKEN_FILE", "");
    assert!(command.output().unwrap().status.success());
    // As a flag it is a mistake.
    let (code, _, said) = run(&["serve", "--unix", ""]);
    assert_eq!(code, 2);
    assert_says(&said, &["--unix", "must be a path such as"]);
}

#[tokio::test]
async fn an_address_may_stand_where_a_path_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("s").display());
    let flags = ["--listen", "none", "--unix", &address];
    let sidecar = Sidecar::live_at(folder.path(), &flags, &address).await;
    assert_eq!(sidecar.grpc, address);
}

#[tokio::test]
async fn a_method_that_is_none_is_named_with_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    for (called, meant) in [
        ("consent.v1.ConsentService/CanSent", "consent.v1.ConsentService/CanSend"),
        ("consent.v1.ConsentService/canSend", "consent.v1.ConsentService/CanSend"),
        ("consent.ConsentService/GetStatus", "consent.v1.ConsentService/GetStatus"),
        ("consent.v1.RecordService/Record", "consent.v1.RecordService/RecordEvent"),
    ] {
        let status = wire.call(called, &[]).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{called}");
        assert_says(status.message(), &[called, &format!("did you mean {meant}?")]);
    }
    let long = format!("a/{}", "b".repeat(500));
    for called in ["helloworld.Greeter/SayHello", "consent.v1.ConsentService/%20", &long] {
        let status = wire.call(called, &[]).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{called}");
        let served = "served: consent.v1.ConsentService, consent.v1.RecordService";
        assert_says(status.message(), &[served, "reflection"]);
        assert!(status.message().len() < 250, "{status}");
    }
}

/// Every command, with the names that lead to it.
fn all_commands() -> Vec<Vec<String>> {
    let mut all = Vec::new();
    commands(&consentd::cli::command(), &[], &mut all);
    assert!(all.len() > 15, "{all:?}");
    all
}

#[test]
fn shells_complete_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, error) = run(&["completions", shell]);
        assert_eq!((code, error.as_str()), (0, ""));
        for name in all_commands().iter().flatten() {
            assert!(script.contains(name), "{shell} does not know {name}");
        }
    }
    let (_, script, _) = run(&["completions", "bash"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("consentd");
    fs::write(&file, script).unwrap();
    let file = file.to_str().unwrap();
    let bash = |arguments: &[&str]| {
        let mut command = Command::new("bash");
        let output = command.args(arguments).stdin(Stdio::null()).output();
        let output = output.expect("no bash: apt-get install bash");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert_eq!(text(output.stderr), "", "{arguments:?}");
        assert!(output.status.success(), "{arguments:?}");
        text(output.stdout)
    };
    bash(&["-n", file]);
    let completed = |words: &str| {
        let typed: Vec<_> = words.split(' ').collect();
        let [.., before, last] = typed[..] else { panic!("{words}") };
        let (place, last) = (typed.len() - 1, if last == "_" { "" } else { last });
        bash(&[
            "--norc",
            "-c",
            &format!(
                "source {file}; \
                 COMP_WORDS=({words}); COMP_CWORD={place}; \
                 $(complete -p consentd | sed 's/.* -F \\([^ ]*\\) .*/\\1/') consentd '{last}' \
                 {before}; echo \"${{COMPREPLY[@]}}\""
            ),
        ])
    };
    assert_eq!(completed("consentd che"), "check\n");
    assert_eq!(completed("consentd record opt-i"), "opt-in\n");
    assert_eq!(completed("consentd serve --max-st"), "--max-staleness\n");
    assert_says(&completed("consentd check --form _"), &["any free-form template"]);
    let (code, _, error) = run(&["completions", "bsh"]);
    assert_eq!(code, 2);
    assert_says(&error, &["'bash'", "fish"]);
}

#[test]
fn manual_pages_are_rendered_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let (code, printed, error) = run(&["man", "--dir", pages.to_str().unwrap()]);
    assert_eq!((code, printed.as_str(), error.as_str()), (0, "", ""));
    let name = |path: &[String]| [&["consentd".to_owned()], path].concat().join("-");
    let wanted = all_commands().iter().map(|path| format!("{}.1", name(path))).collect();
    assert_eq!(left_in(&pages), wanted, "a page for every command");
    for command in all_commands() {
        let name = name(&command);
        let path = pages.join(format!("{name}.1"));
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-Kutf8", "-ww", "-P-cbu"]).arg(&path);
        let output = groff.output().expect("no groff: apt-get install groff-base");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert_eq!(text(output.stderr), "", "{name}");
        let shown = text(output.stdout);
        assert_says(&shown, &["NAME", "SYNOPSIS", "OPTIONS", "consentd 0.", &format!("{name}(1)")]);
        let asked = ["man"].into_iter().chain(command.iter().map(String::as_str));
        let (code, page, _) = run(&asked.collect::<Vec<_>>());
        assert_eq!((code, page), (0, fs::read_to_string(&path).unwrap()), "{name}");
    }
    let import = fs::read_to_string(pages.join("consentd-import.1")).unwrap();
    assert_says(&import, &[".SH NOTES\n.nf\n"]);
    let (code, _, error) = run(&["man", "record", "optin"]);
    assert_eq!(code, 2);
    assert_says(&error, &["no command \"optin\"", "opt-in, opt-out"]);
}
