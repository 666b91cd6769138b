//! What can be shown of the past: histories and their chains, moments, exports, one user, opt-ins
//! that lapse. On both ledgers.

mod gathered;

use std::path::Path;
use std::time::Duration;

use consentd::grpc::pb;
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use crate::faults::redis::Redis;
use crate::faults::resp::Value;
use crate::faults::stage::{init, ledger_at, live_within, serve};
use crate::model::CATEGORIES;
use crate::sidecar::{
    PATIENCE, Sidecar, ago, event, inbound, ledger_in, opt_in, opt_out, question, run,
};
use crate::world::{record_all, world};

const DAY: Duration = Duration::from_hours(24);

const BUCKETS: u32 = 4;

/// A sidecar that records, on a ledger of its own.
struct Home {
    sidecar: Sidecar,
    redis: Option<Redis>,
    folder: tempfile::TempDir,
}

impl Home {
    async fn embedded() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sidecar = Sidecar::start(&ledger_in(folder.path()), &[]);
        live_within(&sidecar, PATIENCE).await;
        Self { sidecar, redis: None, folder }
    }

    async fn redis() -> Self {
        let redis = Redis::start(&[]);
        let ledger = ledger_at(&redis.address());
        init(&ledger, &["--buckets", &BUCKETS.to_string()]);
        let sidecar = serve(&ledger, &["--record", "127.0.0.1:0"], &[]);
        live_within(&sidecar, PATIENCE).await;
        Self { sidecar, redis: Some(redis), folder: tempfile::tempdir().unwrap() }
    }

    async fn both() -> [Self; 2] {
        [Self::embedded().await, Self::redis().await]
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Runs a command against it; gives its exit code, standard output and standard error.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        run(&[arguments, &["--addr", &self.sidecar.record]].concat())
    }

    #[track_caller]
    fn told(&self, code: i32, arguments: &[&str]) -> String {
        let (ended, printed, error) = self.run(arguments);
        assert_eq!(ended, code, "{arguments:?}: {printed}{error}");
        printed
    }

    #[track_caller]
    fn json(&self, code: i32, arguments: &[&str]) -> Vec<Json> {
        let printed = self.told(code, &[arguments, &["--json"]].concat());
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn record(&self, user: &str, business: &str, since: Duration, what: What) {
        let mut request = event(user, business, what);
        request.event.as_mut().unwrap().event_time = Some(ago(since));
        let recorded = self.sidecar.records().await.record_event(request).await.unwrap();
        assert!(recorded.into_inner().applied);
    }

    fn server(&self) -> &Redis {
        self.redis.as_ref().unwrap()
    }

    /// The fields of all histories: hash, field, value.
    fn entries(&self) -> Vec<(String, Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        for number in 0..BUCKETS {
            let hash = format!("{{consent:0}}:h:{number}");
            let parts = self.server().command(&["HGETALL", &hash]).parts();
            for pair in parts.chunks(2) {
                let (field, value) = (pair[0].clone().bytes(), pair[1].clone().bytes());
                if field.len() > 16 {
                    found.push((hash.clone(), field, value));
                }
            }
        }
        found.sort();
        found
    }

    fn put(&self, hash: &str, field: &[u8], value: &[u8]) {
        self.server().command(&[b"HSET", hash.as_bytes(), field, value]);
    }
}

type What = pb::consent_event::What;

fn letter(scope: &str) -> What {
    What::OptOut(pb::OptOut { scope: scope.into(), reference: "letter".into() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

fn replaced(bytes: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    assert_eq!(what.len(), by.len());
    let at = bytes.windows(what.len()).position(|found| found == what).expect("it is there");
    [&bytes[..at], by, &bytes[at + what.len()..]].concat()
}

#[tokio::test]
async fn a_history_says_that_its_chain_was_checked() {
    for home in Home::both().await {
        home.record("US.1", "acme", 3 * DAY, opt_in("marketing")).await;
        home.record("US.1", "acme", 2 * DAY, letter("*")).await;
        let text = home.told(0, &["history", "US.1", "acme"]);
        let words = "\"Yes to messages from Acme on WhatsApp\" (Acme, en)";
        for part in [words, "opt-out * [letter]", "chain checked: intact, 2 events: 2 kept\n"] {
            assert!(text.contains(part), "{text:?} has no {part:?}");
        }
        let json = home.json(0, &["history", "US.1", "acme"]);
        let [first, second, checked] = json.as_slice() else { panic!("{json:?}") };
        assert_eq!((&first["number"], &second["number"]), (&"1".into(), &"2".into()));
        let chain = &checked["chain"];
        assert_eq!(chain["intact"], true);
        assert_eq!((&chain["eventCount"], &chain["expiredCount"]), (&"2".into(), &"0".into()));
        assert_eq!(chain["head"], second["chainHead"]);
        assert_ne!(chain["head"], first["chainHead"]);
        assert!(checked.get("event").is_none());
        assert_eq!(home.told(0, &["history", "US.2", "acme"]), "nothing was recorded\n");
    }
}

/// Edits the first history entry that has these words.
fn forge(home: &Home, what: &[u8], by: &[u8]) -> (String, Vec<u8>, Vec<u8>) {
    let has = |value: &[u8]| value.windows(what.len()).any(|found| found == what);
    let (hash, field, value) =
        home.entries().into_iter().find(|(.., value)| has(value)).expect("one has the words");
    let forged = replaced(&value, what, by);
    home.put(&hash, &field, &forged);
    (hash, field, forged)
}

#[tokio::test]
async fn an_edited_history_is_loud_and_an_export_from_before_tells_where() {
    let home = Home::redis().await;
    for user in ["US.1", "US.2", "US.3"] {
        home.record(user, "acme", 3 * DAY, opt_in("marketing")).await;
    }
    home.record("US.2", "acme", 2 * DAY, letter("*")).await;
    home.record("US.2", "acme", DAY, opt_in("utility")).await;
    let export = home.path("last-year.ndjson");
    home.told(0, &["export", "--output", &export]);
    let lines = std::fs::read_to_string(&export).unwrap();
    let lines_of = |user: &str| -> Vec<String> {
        let numbered = lines.lines().zip(1..).filter(|(line, _)| line.contains(user));
        numbered.map(|(_, number): (_, u64)| format!("line {number}: ")).collect()
    };
    // What comes later extends what was exported.
    home.record("US.2", "acme", Duration::ZERO, opt_out("utility")).await;
    let said = home.told(0, &["verify-export", &export]);
    assert_eq!(said, "5 events checked: today's histories extend what was exported\n");

    let (hash, field, forged) = forge(&home, b"letter", b"lettre");
    let (code, shown, error) = home.run(&["history", "US.2", "acme"]);
    assert_eq!(code, 2, "{shown}");
    assert!(error.contains("does NOT match"), "{error}");
    for part in ["opt-out * [lettre]", "opt-in utility", "chain checked: BROKEN, 4 events: 4 kept"]
    {
        assert!(shown.contains(part), "{shown:?} has no {part:?}");
    }
    let json = home.json(2, &["history", "US.2", "acme"]);
    assert_eq!((json.len(), &json[4]["chain"]["intact"]), (5, &Json::Bool(false)));
    let proof = home.json(2, &["prove", "US.2", "acme"]);
    assert_eq!(proof[0]["chain"]["intact"], false);
    assert!(home.told(2, &["subject", "US.2"]).contains("BROKEN"));

    let (code, found, error) = home.run(&["verify-export", &export]);
    assert_eq!(code, 1, "{found}{error}");
    // The event before it is as it was, though the chain behind it does not match any more.
    let [before, edited, after] = lines_of("US.2").try_into().unwrap();
    for (line, part) in [
        (before, "does not match behind it"),
        (edited, "was changed since"),
        (after, "was changed since"),
    ] {
        let told = found.lines().find(|told| told.starts_with(&line)).expect("it is told");
        assert!(told.contains(part), "{told}");
    }
    for user in ["US.1", "US.3"] {
        assert!(!found.contains(&lines_of(user)[0]), "{found}");
    }
    assert!(found.ends_with("3 of 5 events checked are NOT as they were exported\n"), "{found}");
    assert!(!found.contains("US."), "no line names a user: {found}");

    // Whoever also writes the record's head anew is found by the export alone.
    let key = &field[..16];
    let mut theirs: Vec<_> =
        home.entries().into_iter().filter(|(_, field, _)| field.starts_with(key)).collect();
    theirs.sort_by_key(|(_, field, _)| field[16]);
    let heads = |entries: &[Vec<u8>]| {
        entries.iter().fold([0_u8; 32], |head, value| {
            // Behind the revision and the tag.
            let digest = Sha256::digest(&value[9..]);
            Sha256::new().chain_update(head).chain_update(digest).finalize().into()
        })
    };
    let now: Vec<_> = theirs.iter().map(|(.., value)| value.clone()).collect();
    let before: Vec<_> =
        now.iter()
            .map(|value| {
                if *value == forged { replaced(value, b"lettre", b"letter") } else { value.clone() }
            })
            .collect();
    let bucket = hash.replace(":h:", ":b:");
    let record = home.server().command(&[b"HGET", bucket.as_bytes(), key]).bytes();
    home.put(&bucket, key, &replaced(&record, &heads(&before), &heads(&now)));
    let shown = home.told(0, &["history", "US.2", "acme"]);
    assert!(shown.contains(&format!("head {}", hex(&heads(&now)))), "{shown}");
    let found = home.told(1, &["verify-export", &export]);
    assert!(found.ends_with("2 of 5 events checked are NOT as they were exported\n"), "{found}");
    let json = home.json(1, &["verify-export", &export]);
    assert_eq!(json.last().unwrap()["findings"]["CHANGED"], 2);
}

#[tokio::test]
async fn an_export_is_imported_elsewhere_and_is_verified_where_it_came_from() {
    for home in Home::both().await {
        home.record("+1 555 012 3456", "acme", 3 * DAY, opt_in("marketing")).await;
        home.record("15550123456", "acme", 2 * DAY, inbound("")).await;
        home.record("US.2", "shop", DAY, letter("marketing")).await;
        let export = home.path("export.ndjson");
        home.told(0, &["export", "--output", &export]);
        assert_eq!(home.json(0, &["verify-export", &export])[0]["same"], 3);
        let lines = std::fs::read_to_string(&export).unwrap();

        // A line that was edited is told from a ledger that was.
        let edited = home.path("edited.ndjson");
        std::fs::write(&edited, lines.replace("letter", "lettre")).unwrap();
        let found = home.told(1, &["verify-export", &edited]);
        assert!(found.contains("the file was changed"), "{found}");
        // As is one that is no export at all.
        let bare = home.path("bare.ndjson");
        std::fs::write(&bare, lines.replace("\"recorded\"", "\"recored\"")).unwrap();
        let (code, _, error) = home.run(&["verify-export", &bare]);
        assert!(code == 2 && error.contains("line 1: has no \"recorded\""), "{error}");
        let (code, _, error) = home.run(&["verify-export", "/dev/null"]);
        assert!(code == 2 && error.contains("nothing was checked"), "{error}");

        // Another ledger takes the events, and has chains of its own.
        let other = Home::embedded().await;
        let found = other.told(1, &["verify-export", &export]);
        assert!(found.contains("ends before this event"), "{found}");
        let imported = other.told(0, &["import", &export]);
        assert!(imported.contains("3 recorded"), "{imported}");
        let found = other.told(1, &["verify-export", &export]);
        assert!(found.contains("3 of 3 events checked are NOT"), "{found}");
        let answers = |home: &Home| {
            let ask = |user| {
                let question = ["check", user, "acme", "marketing"];
                run(&[&question[..], &["--addr", &home.sidecar.grpc]].concat()).0
            };
            [ask("15550123456"), ask("US.2")]
        };
        assert_eq!((answers(&home), answers(&other)), ([0, 1], [0, 1]));
    }
}

#[tokio::test]
async fn an_event_that_is_no_longer_kept_is_told_and_proven() {
    let home = Home::redis().await;
    home.record("US.1", "acme", 3 * DAY, opt_in("utility")).await;
    home.record("US.1", "acme", Duration::from_mins(1), inbound("")).await;
    let then = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    home.record("US.1", "acme", Duration::ZERO, letter("utility")).await;
    let export = home.path("export.ndjson");
    home.told(0, &["export", "--output", &export]);
    let service = ["prove", "US.1", "acme", "--category", "service", "--at", &then];
    assert!(home.told(0, &service).contains("allowed: WINDOW_OPEN"));

    // As the sweep leaves it: tag 2, and the digest.
    let (hash, field, value) = home.entries().swap_remove(1);
    assert_eq!(value[8], 1, "the inbound message is kept for a time alone");
    let digest = Sha256::digest(&value[9..]);
    home.put(&hash, &field, &[&value[..8], &[2], &digest[..]].concat());
    let shown = home.told(0, &["history", "US.1", "acme"]);
    let part = "chain checked: intact, 3 events: 2 kept, 1 gone by retention";
    assert!(shown.contains(part), "{shown}");
    let json = home.json(0, &["verify-export", &export]);
    assert_eq!((&json[0]["same"], &json[0]["expired"]), (&2.into(), &1.into()));
    let proof = home.told(0, &service);
    for part in [
        "1 inbound message or refusal recorded before ",
        " is no longer kept: an open window can be neither shown nor excluded",
        "denied: WINDOW_CLOSED",
        "may have been WINDOW_OPEN",
    ] {
        assert!(proof.contains(part), "{proof:?} has no {part:?}");
    }
    let json = &home.json(0, &service)[0];
    assert_eq!(json["noLongerKept"]["mayHaveOpenedWindow"], true);
    assert_eq!(json["answers"][0]["freeForm"]["orElse"], serde_json::json!(["WINDOW_OPEN"]));
}

#[tokio::test]
async fn a_proof_of_now_says_what_a_check_says() {
    for home in Home::both().await {
        let world = world(48);
        record_all(&world, &mut home.sidecar.records().await).await;
        let mut checks = home.sidecar.checks().await;
        let mut reasons = std::collections::BTreeSet::new();
        for user in &world.users {
            let categories: Vec<_> =
                CATEGORIES.iter().flat_map(|category| ["--category", category]).collect();
            let proof = &home.json(0, &[&["prove", user, "acme"], &categories[..]].concat())[0];
            for (category, answer) in CATEGORIES.iter().zip(proof["answers"].as_array().unwrap()) {
                assert_eq!(answer["category"], **category);
                for (form, name) in [
                    (pb::MessageForm::Template, "template"),
                    (pb::MessageForm::FreeForm, "freeForm"),
                ] {
                    let mut asked = question(user, "acme", category);
                    asked.set_form(form);
                    let answered = checks.can_send(asked).await.unwrap().into_inner();
                    let reason = answered.reason().as_str_name().replace("REASON_", "");
                    assert_eq!(answer[name]["reason"], reason, "{category} {name}: {proof:#}");
                    assert_eq!(answer[name]["allowed"], answered.allowed);
                    reasons.insert(reason);
                }
            }
        }
        assert!(reasons.len() > 6, "{reasons:?}");
    }
}

#[tokio::test]
async fn a_proof_of_a_moment_knows_what_was_recorded_by_then() {
    for home in Home::both().await {
        home.record("+1 555 012 3456", "acme", 9 * DAY, opt_in("marketing.sale")).await;
        let then = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
        // It happened before, and came late.
        home.record("15550123456", "acme", 2 * DAY, letter("*")).await;
        let pair = ["prove", "1 (555) 012-3456", "acme"];
        let proof = home.told(0, &[&pair[..], &["--at", &then]].concat());
        for part in [
            "policy assumed: window 1day less 1m, standing in for an opt-in to marketing, utility",
            "known then: 1 event\n",
            "happened by then, but recorded later, so not known:\n  #2",
            "  marketing.sale\n    template   allowed: OPTED_IN\n",
            "by #1: opt-in marketing.sale, by WEBSITE\n          \"Yes to messages from Acme on",
            "  authentication\n    template   denied: NO_CONSENT\n",
            "after #1\nchain checked: intact, 2 events: 2 kept\n",
        ] {
            assert!(proof.contains(part), "{proof}\nhas no {part:?}");
        }
        let now = &home.json(0, &pair)[0];
        assert_eq!(now["answers"][0]["template"]["reason"], "OPTED_OUT_ALL");
        assert_eq!(now["answers"][0]["template"]["because"], serde_json::json!([2]));
        assert_eq!(now["known"].as_array().unwrap().len(), 2);
        let strict = ["--window-implies", "none", "--window", "2h", "--category", "service"];
        let strict = &home.json(0, &[&pair[..], &strict].concat())[0];
        assert_eq!(strict["policy"]["windowImplies"], serde_json::json!([]));
        assert_eq!(
            (&strict["policy"]["window"], strict["answers"].as_array().unwrap().len()),
            (&"2h".into(), 1)
        );
        // Before anything was recorded, nothing was known.
        let dawn = home.told(0, &[&pair[..], &["--at", "2020-02-29"]].concat());
        assert!(dawn.contains("as known at 2020-02-29T00:00:00.000Z\n"), "{dawn}");
        assert!(dawn.contains("known then: nothing\n"), "{dawn}");
        for (flag, value, part) in [
            ("--at", "2999-01-01", "lies in the future"),
            ("--at", "yesterday", "must be a time such as 2026-01-31T09:30:00Z, or a date"),
            ("--category", "sales", "did you mean marketing?"),
            ("--window", "25h", "may be set shorter alone"),
        ] {
            let (code, _, error) = home.run(&[&pair[..], &[flag, value]].concat());
            assert!(code == 2 && error.contains(part), "{flag} {value}: {error}");
        }
    }
}

#[tokio::test]
async fn a_statement_that_is_lost_is_told_and_the_rest_is_shown() {
    let home = Home::redis().await;
    home.record("US.1", "acme", 3 * DAY, opt_in("marketing")).await;
    home.record("US.1", "acme", DAY, letter("utility")).await;
    for digest in home.server().command(&["HKEYS", "{consent:0}:text"]).parts() {
        let digest: Vec<u8> = Value::bytes(digest);
        if digest.len() == 32 {
            home.put("{consent:0}:text", &digest, b"Yes to something else on WhatsApp from Acme");
        }
    }
    let shown = home.told(2, &["history", "US.1", "acme"]);
    assert!(shown.contains("BROKEN, 2 events: 1 kept, 1 that cannot be read"), "{shown}");
    assert!(shown.contains("opt-out utility") && !shown.contains("something else"), "{shown}");
    let (code, _, error) = home.run(&["export", "--output", &home.path("e.ndjson")]);
    assert!(code == 2 && error.contains("damaged"), "{error}");
    assert!(!Path::new(&home.path("e.ndjson")).exists(), "half an export is none");
}
