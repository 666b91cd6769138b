//! `WatchConsents`: every change is told, or that some were not.

mod model;

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use consentd::grpc::pb;
use consentd::grpc::pb::watch_consents_response::{Changed, What};
use prost::Message as _;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::faults::history::Did;
use crate::faults::load::BUSINESS;
use crate::faults::redis::Redis;
use crate::faults::stage::{EASY, Setup, Stage, ledger_at, metric, serve, wait_for_metric};
use crate::sidecar::{
    BINARY, PATIENCE, Sidecar, Wire, event, eventually, framed, inbound, opt_in, opt_out, question,
    run,
};

const WATCH: &str = "consent.v1.ConsentService/WatchConsents";

/// One who watches.
struct Watching(Streaming<pb::WatchConsentsResponse>);

impl Watching {
    async fn begin(sidecar: &Sidecar, business: &str) -> Result<Self, Status> {
        let mut checks = sidecar.checks().await;
        let request = pb::WatchConsentsRequest { business_id: business.into() };
        Ok(Self(checks.watch_consents(request).await?.into_inner()))
    }

    async fn of(sidecar: &Sidecar, business: &str) -> Self {
        Self::begin(sidecar, business).await.expect("whoever asks may watch")
    }

    async fn try_next(&mut self) -> Result<What, Status> {
        let next = timeout(PATIENCE, self.0.message()).await.expect("something comes");
        Ok(next?.expect("it has no end of its own").what.expect("it says something"))
    }

    async fn next(&mut self) -> What {
        self.try_next().await.expect("it goes on")
    }

    /// The revision of the checkpoint that must come next.
    async fn checkpoint(&mut self) -> u64 {
        revision(&self.next().await).expect("a checkpoint")
    }

    /// Reads on until this finds what it looks for; checkpoints go on coming, whatever is missing.
    async fn until<T>(&mut self, what: &str, mut found: impl FnMut(What) -> Option<T>) -> T {
        let reading = async {
            loop {
                if let Some(found) = found(self.next().await) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
    }

    /// The next change, and nothing but checkpoints before it.
    async fn changed(&mut self) -> Changed {
        self.until("a change", |what| match what {
            What::Changed(changed) => Some(changed),
            What::Checkpoint(_) => None,
            What::Reset(_) => panic!("nothing was missed"),
            What::TemplateChanged(_) => panic!("no template changed"),
        })
        .await
    }

    /// Reads on until a reset; gives the checkpoint behind it.
    async fn reset(&mut self) -> u64 {
        self.until("a reset", |what| matches!(what, What::Reset(_)).then_some(())).await;
        self.checkpoint().await
    }

    /// Why it ends.
    async fn end(&mut self) -> Status {
        let reading = async {
            loop {
                if let Err(status) = self.try_next().await {
                    return status;
                }
            }
        };
        timeout(PATIENCE, reading).await.expect("it ends")
    }
}

/// The revision of a checkpoint.
fn revision(what: &What) -> Option<u64> {
    match what {
        What::Checkpoint(checkpoint) => match checkpoint.partition_revisions[..] {
            [revision] => Some(revision),
            _ => panic!("{checkpoint:?}"),
        },
        _ => None,
    }
}

fn change(user: &str, business: &str, revision: u64) -> Changed {
    Changed { user_id: user.into(), business_id: business.into(), revision }
}

#[tokio::test]
async fn a_watcher_is_told_where_it_begins_and_then_of_every_change_that_checks_know() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let (mut checks, mut records) = (sidecar.checks().await, sidecar.records().await);
    records.record_event(event("before", "acme", opt_out("*"))).await.unwrap();
    let mut watching = Watching::of(&sidecar, "").await;
    assert_eq!(watching.checkpoint().await, 1);
    assert!((metric(&sidecar, "consent_watchers").await - 1.0).abs() < 0.1);
    let given = [
        (opt_in("marketing"), pb::Reason::OptedIn),
        (inbound("stop"), pb::Reason::OptedOutAll),
        (opt_in("marketing"), pb::Reason::OptedIn),
        (opt_out("*"), pb::Reason::OptedOutAll),
    ];
    let started = Instant::now();
    for (index, (what, reason)) in (0..).zip(given) {
        // Named as written, whatever the notation.
        let user = ["+1 (555) 012-3456", "15550123456"][index % 2];
        let mut said = event(user, "acme", what);
        said.request_id = format!("r{index}");
        let recorded = records.record_event(said).await.unwrap().into_inner();
        let changed = watching.changed().await;
        assert_eq!(changed, change(user, "acme", recorded.revision));
        let answer = checks.can_send(question(user, "acme", "marketing")).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!(answer.reason(), reason);
        assert!(answer.revision >= changed.revision);
        assert_eq!(watching.checkpoint().await, changed.revision);
    }
    // Four checkpoints that come when nothing else does would take eight seconds.
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    // What changes nothing is told to nobody, and who hears nothing hears that.
    let mut again = event("15550123456", "acme", opt_in("marketing"));
    again.request_id = "r0".into();
    records.record_event(again).await.unwrap();
    for _ in 0..2 {
        assert_eq!(watching.checkpoint().await, 5);
    }
    drop(watching);
    eventually("nobody watches", || async { metric(&sidecar, "consent_watchers").await < 0.5 })
        .await;
}

#[tokio::test]
async fn a_watcher_of_one_business_is_told_of_its_changes_and_of_all_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut records = sidecar.records().await;
    let mut watching = Watching::of(&sidecar, "acme").await;
    assert_eq!(watching.checkpoint().await, 0);
    for (revision, business) in (1..).zip(["other", "acme", "acm", "Acme", "acme"]) {
        records.record_event(event("u", business, opt_out("*"))).await.unwrap();
        if business == "acme" {
            assert_eq!(watching.changed().await, change("u", "acme", revision));
        }
        // One was on its way, maybe.
        watching
            .until("the checkpoint", |what| {
                let at = self::revision(&what).expect("a checkpoint");
                (at >= revision).then_some(())
            })
            .await;
    }
    for (business, part) in
        [("a\tb", "control"), (&"x".repeat(129) as &str, "128"), ("\u{200b}acme", "invisible")]
    {
        let refused = Watching::begin(&sidecar, business).await.err().unwrap();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        let details = refused.get_error_details();
        let violation = &details.bad_request().unwrap().field_violations[0];
        assert_eq!(violation.field, "business_id");
        assert!(violation.description.contains(part), "{violation:?}");
    }
}

/// Reads the messages of a body that was sent whole.
fn messages(mut body: &[u8]) -> Vec<What> {
    let mut found = Vec::new();
    while let Some((head, rest)) = body.split_at_checked(5) {
        let length = u32::from_be_bytes(head[1..].try_into().unwrap());
        // The last one may be under way.
        let Some((message, rest)) = rest.split_at_checked(length.try_into().unwrap()) else {
            break;
        };
        found.push(pb::WatchConsentsResponse::decode(message).unwrap().what.unwrap());
        body = rest;
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_read_is_reset_and_holds_up_nobody() {
    /// More than is kept, of ids as long as they may be, and than a socket holds beside.
    const CHANGES: u64 = 32_000;
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let mut slow = wire.begin(WATCH, &[], framed(&[])).await.unwrap();
    let first = slow.next().await.unwrap().unwrap();
    assert_eq!(revision(&messages(&first)[0]), Some(0));
    let mut fast = Watching::of(&sidecar, "").await;
    assert_eq!(fast.checkpoint().await, 0);
    let reading = tokio::spawn(async move {
        for expected in 1..=CHANGES {
            assert_eq!(fast.changed().await.revision, expected, "it misses nothing");
        }
        fast
    });
    let business = "b".repeat(128);
    let stops = (0..CHANGES).map(move |sequence| {
        let event = event(&format!("{sequence:u>128}"), &business, opt_out("*")).event;
        pb::RecordEventsRequest { sequence, event, request_id: String::new() }
    });
    let mut records = sidecar.records().await;
    let answers = records.record_events(tokio_stream::iter(stops)).await.unwrap();
    let mut answers = answers.into_inner();
    while answers.message().await.unwrap().is_some() {}
    let mut fast = timeout(PATIENCE, reading).await.expect("it is as fast as they come").unwrap();
    let slows = "consent_watch_resets_total{cause=\"slow\"}";
    assert!(metric(&sidecar, slows).await < 0.5, "nobody has noticed yet");

    // Now it reads: what was under way, that more was missed, and up to where.
    let mut read = first.to_vec();
    let reset = loop {
        let bytes = timeout(PATIENCE, slow.next()).await.expect("it comes").unwrap().unwrap();
        read.extend_from_slice(&bytes);
        let messages = messages(&read);
        let reset = messages.iter().position(|what| matches!(what, What::Reset(_)));
        if let Some(at) = reset.filter(|at| at + 1 < messages.len()) {
            break messages[at..].to_vec();
        }
    };
    assert_eq!(revision(&reset[1]), Some(CHANGES));
    let told = messages(&read);
    let changes = told.iter().filter(|what| matches!(what, What::Changed(_))).count();
    assert!(changes < 20_000, "{changes} were told");
    wait_for_metric(&sidecar, slows, 1.0).await;
    // And goes on, as the other does.
    records.record_event(event("u", "b", opt_out("*"))).await.unwrap();
    let next = timeout(PATIENCE, async {
        loop {
            read.extend_from_slice(&slow.next().await.unwrap().unwrap());
            if let Some(What::Changed(changed)) = messages(&read)
                .into_iter()
                .skip(told.len())
                .find(|what| matches!(what, What::Changed(_)))
            {
                return changed;
            }
        }
    });
    assert_eq!(next.await.unwrap(), change("u", "b", CHANGES + 1));
    assert_eq!(fast.changed().await, change("u", "b", CHANGES + 1));
}

#[tokio::test]
async fn so_many_may_watch_and_where_none_may_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-watchers", "2"]).await;
    let mut first = Watching::of(&sidecar, "").await;
    let _second = Watching::of(&sidecar, "acme").await;
    let refused = Watching::begin(&sidecar, "").await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("--max-watchers"), "{refused:?}");
    assert!(refused.get_error_details().retry_info().is_some(), "{refused:?}");
    let limit = "consent_refused_total{limit=\"watchers\"}";
    assert!((metric(&sidecar, limit).await - 1.0).abs() < 0.1);
    first.checkpoint().await;
    drop(first);
    eventually("there is a place again", || async { Watching::begin(&sidecar, "").await.is_ok() })
        .await;

    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-watchers", "0"]).await;
    let refused = Watching::begin(&sidecar, "").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
}

#[tokio::test]
async fn a_watch_ends_with_its_connection_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--max-connection-age", "400ms", "--drain-timeout", "20s"];
    let mut sidecar = Sidecar::live(folder.path(), &flags).await;
    let started = Instant::now();
    let mut watching = Watching::of(&sidecar, "").await;
    let ended = watching.end().await;
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert!(ended.message().contains("watch again"), "{ended:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "not at the end of its grace");

    let mut watching = Watching::of(&sidecar, "").await;
    let started = Instant::now();
    sidecar.signal("TERM");
    let ended = watching.end().await;
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    let status = sidecar.ended().await;
    assert!(status.success(), "{status}: {}", sidecar.said());
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(!sidecar.said().contains("drain timeout has passed"), "{}", sidecar.said());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_lost_changes_resets_its_watchers() {
    let mut stage = Stage::set(Setup { bound: EASY, ..Setup::default() }).await;
    stage.say("US.kept", Did::OptIn, "marketing").await;
    let old = stage.redis.dump();
    let mut watching = [
        Watching::of(&stage.reader, "").await,
        Watching::of(&stage.recorder, "").await,
        Watching::of(&stage.reader, "nobody").await,
    ];
    for watching in &mut watching {
        watching.checkpoint().await;
    }
    stage.say("US.lost", Did::OptOut, "*").await;
    for watching in &mut watching[..2] {
        assert_eq!(watching.changed().await.user_id, "US.lost");
    }
    stage.redis.restart_from(Some(&old));
    for watching in &mut watching {
        watching.reset().await;
    }
    for sidecar in stage.sidecars() {
        let rebuilt = "consent_watch_resets_total{cause=\"rebuilt\"}";
        assert!(metric(sidecar, rebuilt).await >= 1.0);
        let mut checks = sidecar.checks().await;
        let answer = checks.can_send(question("US.lost", BUSINESS, "utility")).await.unwrap();
        assert!(!answer.get_ref().allowed, "who asks again is told what was denied");
    }
    // It goes on in the ledger as it is: with what the recorder gives back, and with news.
    stage.say("US.new", Did::OptIn, "utility").await;
    for watching in &mut watching[..2] {
        watching
            .until("the news", |what| match what {
                What::Changed(changed) => (changed.user_id == "US.new").then_some(()),
                What::Checkpoint(_) => None,
                What::Reset(_) => panic!("nothing was missed"),
                What::TemplateChanged(_) => panic!("no template changed"),
            })
            .await;
    }
    stage.end_with_losses().await;
}

#[tokio::test]
async fn nobody_watches_a_table_that_was_not_loaded() {
    let redis = Redis::start(&[]);
    let sidecar = serve(&ledger_at(&redis.address()), &[], &[]);
    let refused = Watching::begin(&sidecar, "").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let details = refused.get_error_details();
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("NOT_READY"));
}

/// The command that watches, and the lines that it prints.
struct Command {
    child: Child,
    printed: Lines<BufReader<ChildStdout>>,
}

impl Command {
    fn run(sidecar: &Sidecar, flags: &[&str]) -> Self {
        let mut command = std::process::Command::new(BINARY);
        command.args(["watch", "--addr", &sidecar.grpc]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let printed = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, printed }
    }

    fn line(&mut self) -> String {
        self.printed.next().expect("it goes on").unwrap()
    }

    /// The next line that tells a change.
    fn changed(&mut self) -> String {
        loop {
            let line = self.line();
            if line.contains("changed") {
                return line;
            }
            assert!(line.contains("checkpoint"), "{line}");
        }
    }
}

async fn stop(sidecar: &Sidecar, user: &str, business: &str) {
    let mut records = sidecar.records().await;
    records.record_event(event(user, business, opt_out("*"))).await.unwrap();
}

#[tokio::test]
async fn the_command_prints_what_changes_until_nobody_reads() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut command = Command::run(&sidecar, &[]);
    assert_eq!(command.line(), "checkpoint 0");
    stop(&sidecar, "+1 555", "acme").await;
    assert_eq!(command.changed(), "changed 1: +1 555 at acme");
    drop(command.printed);
    stop(&sidecar, "2", "acme").await;
    let ended = command.child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");

    let mut command = Command::run(&sidecar, &["--json", "--business", "acme"]);
    assert_eq!(command.line(), r#"{"checkpoint":{"partitionRevisions":["2"]}}"#);
    stop(&sidecar, "3", "other").await;
    stop(&sidecar, "4", "acme").await;
    let expected = r#"{"changed":{"userId":"4","businessId":"acme","revision":"4"}}"#;
    assert_eq!(command.changed(), expected);
    command.child.kill().unwrap();
    command.child.wait().unwrap();

    let (code, printed, said) = run(&["watch", "--business", "a\tb", "--addr", &sidecar.grpc]);
    assert_eq!((code, printed.as_str()), (2, ""), "{said}");
    assert!(said.contains("business_id"), "{said}");
}

#[tokio::test]
async fn the_command_outlives_its_connection_and_not_the_sidecar() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &["--max-connection-age", "500ms"]).await;
    let mut command = Command::run(&sidecar, &[]);
    let mut said = BufReader::new(command.child.stderr.take().unwrap()).lines();
    let again = said.next().unwrap().unwrap();
    assert!(again.contains("watching again"), "{again}");
    // It begins with where it is, wherever the event comes between.
    stop(&sidecar, "5", "acme").await;
    let last = loop {
        let line = command.line();
        if line.ends_with(" 1") || line.contains("changed 1:") {
            break line;
        }
    };
    assert!(last == "checkpoint 1" || last == "changed 1: 5 at acme", "{last}");
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
    let said: Vec<_> = said.map(Result::unwrap).collect();
    assert!(said.iter().all(|line| !line.contains("panicked")) && !said.is_empty(), "{said:?}");
    assert_eq!(command.child.wait().unwrap().code(), Some(2));
}
