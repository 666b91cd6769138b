//! kill -9 in the middle of writes: no acknowledged event is lost, none is there twice.

mod journal;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use consentd::grpc::pb;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::record_events_response::Result as Answer;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use self::journal::{BUSINESS, Journal, Place, Says, name_of};
use crate::model::Rng;
use crate::sidecar::{BINARY, Sidecar, ledger_in, question};

/// How many ledgers are written, and how often each is killed.
const LEDGERS: usize = 4;
const ROUNDS: usize = 50;

/// Writers that wait for each answer before they send again.
const UNARY: usize = 4;

/// Writers of a round: those, and those that keep several events of one stream unanswered.
const WRITERS: usize = UNARY + 2;

/// How many events of a stream may be unanswered.
const MAX_UNANSWERED: usize = 24;

/// Users that only one writer of one round writes about.
const OWN: usize = 3;

/// Users that all writers write about, and for how many rounds.
const SHARED: usize = 4;
const SHARED_FOR: usize = 20;

/// How many users of earlier rounds are looked at again after each round.
const SAMPLE: usize = 8;

/// Every so many rounds the next start is killed too, before it is through.
const STUMBLE_EVERY: usize = 10;

/// What is sent depends on this alone; when exactly a process dies does not.
const SEED: u64 = 0x5eed_2026;

/// What the writers of one round share.
#[derive(Clone)]
struct Round {
    journal: Arc<Mutex<Journal>>,
    /// How many events were acknowledged in this round.
    acknowledged: watch::Sender<usize>,
    /// Whether the process is being killed: from then on, and not before, calls may fail.
    killed: Arc<AtomicBool>,
    shared: Vec<usize>,
}

/// One of them.
struct Writer {
    round: Round,
    records: RecordServiceClient<Channel>,
    rng: Rng,
    number: usize,
    own: Vec<usize>,
}

impl Writer {
    fn next(&mut self) -> (Place, pb::ConsentEvent) {
        let shared = self.rng.percent(30);
        let user = self.rng.pick(if shared { &self.round.shared } else { &self.own });
        self.round.journal.lock().unwrap().next(&mut self.rng, self.number, user)
    }

    fn acknowledge(&self, place: Place, answer: pb::RecordEventResponse) {
        self.round.journal.lock().unwrap().acknowledge(place, answer);
        self.round.acknowledged.send_modify(|count| *count += 1);
    }

    fn failed(&self, why: &dyn std::fmt::Debug) {
        assert!(self.round.killed.load(Ordering::SeqCst), "a live sidecar refused: {why:?}");
    }

    /// Sends one event after the other until the process is gone.
    async fn write_unary(mut self) {
        loop {
            let (place, event) = self.next();
            let request = pb::RecordEventRequest { event: Some(event), request_id: String::new() };
            match self.records.record_event(request).await {
                Ok(answer) => self.acknowledge(place, answer.into_inner()),
                Err(status) => return self.failed(&status),
            }
        }
    }

    /// The same over a stream, with several unanswered.
    async fn write_stream(mut self) {
        let (requests, receiver) = mpsc::channel(MAX_UNANSWERED);
        let mut stream = match self.records.record_events(ReceiverStream::new(receiver)).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return self.failed(&status),
        };
        let mut places = Vec::new();
        let mut answered = 0;
        loop {
            let most = 1 + self.rng.below(MAX_UNANSWERED);
            while places.len() - answered < most {
                let (place, event) = self.next();
                let (sequence, request_id) = (places.len() as u64, String::new());
                places.push(place);
                let event = Some(event);
                let request = pb::RecordEventsRequest { sequence, event, request_id };
                if requests.send(request).await.is_err() {
                    break; // The stream has failed: its answers say so.
                }
            }
            match stream.message().await {
                Ok(Some(pb::RecordEventsResponse { sequence, result })) => {
                    assert_eq!(sequence, answered as u64, "answers come in the events' order");
                    match result {
                        Some(Answer::Response(answer)) => {
                            self.acknowledge(places[answered], answer);
                        }
                        refused => panic!("a live sidecar refused: {refused:?}"),
                    }
                    answered += 1;
                }
                ended => return self.failed(&ended),
            }
        }
    }
}

/// The running sidecar, as asked after its restart.
struct Restarted {
    checks: ConsentServiceClient<Channel>,
    records: RecordServiceClient<Channel>,
}

impl Restarted {
    async fn of(sidecar: &Sidecar) -> Self {
        Self { checks: sidecar.checks().await, records: sidecar.records().await }
    }

    async fn history(&mut self, user: &str) -> Result<Vec<pb::ListEventsResponse>, String> {
        let refused = |status| format!("{user}: the history: {status}");
        let request = pb::ListEventsRequest { user_id: user.into(), business_id: BUSINESS.into() };
        let mut stream = self.records.list_events(request).await.map_err(refused)?.into_inner();
        let mut listed = Vec::new();
        while let Some(entry) = stream.message().await.map_err(refused)? {
            // Last of all comes what the check of the chain came to: where it does not hold, an error.
            if entry.event.is_some() {
                listed.push(entry);
            }
        }
        Ok(listed)
    }

    /// Whether a marketing template may be sent: free-form, a reply to an opt-out may be.
    async fn says(&mut self, user: &str) -> Result<Says, String> {
        let mut question = question(user, BUSINESS, "marketing");
        question.set_form(pb::MessageForm::Template);
        let answer = self.checks.can_send(question).await;
        let answer = answer.map_err(|status| format!("{user}: the check: {status}"))?.into_inner();
        Ok(Says { allowed: answer.allowed, reason: answer.reason() })
    }

    async fn revision(&mut self) -> u64 {
        self.checks.get_status(pb::GetStatusRequest {}).await.unwrap().get_ref().revision
    }
}

/// What the rounds came to.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: usize,
    /// Sent, not acknowledged, and in the ledger all the same.
    durable_unanswered: usize,
    lost_unanswered: usize,
    /// Rounds in which some events were acknowledged and others were under way.
    in_the_middle: usize,
}

/// One ledger, and what is known of it.
struct Test {
    rng: Rng,
    journal: Journal,
    shared: Vec<usize>,
    /// The ledger's revision after the round before.
    revision: u64,
    tally: Tally,
}

impl Test {
    fn add_users(&mut self, round: usize) -> Vec<usize> {
        if round.is_multiple_of(SHARED_FOR) {
            let id = |n| format!("US.shared-{round}-{n}");
            self.shared = (0..SHARED).map(|n| self.journal.add_user(id(n), false)).collect();
        }
        let id = |n| format!("US.{round}-{n}");
        let own = WRITERS * OWN;
        (0..own).map(|n| self.journal.add_user(id(n), n.is_multiple_of(OWN))).collect()
    }

    /// Writes until the sidecar is killed; gives the users that were written about.
    async fn write_and_kill(&mut self, round: usize, sidecar: &mut Sidecar) -> Vec<usize> {
        let mut users = self.add_users(round);
        let (acknowledged, mut counted) = watch::channel(0);
        let journal = Arc::new(Mutex::new(std::mem::take(&mut self.journal)));
        let shared = self.shared.clone();
        let state =
            Round { journal: Arc::clone(&journal), acknowledged, killed: Arc::default(), shared };
        let mut writers = JoinSet::new();
        for (writer, own) in users.chunks(OWN).enumerate() {
            let writer_of_round = Writer {
                round: state.clone(),
                records: sidecar.records().await,
                rng: Rng::new(self.rng.next_u64()),
                number: round * WRITERS + writer,
                own: own.to_vec(),
            };
            if writer < UNARY {
                writers.spawn(writer_of_round.write_unary());
            } else {
                writers.spawn(writer_of_round.write_stream());
            }
        }
        // Right at the first acknowledgement, or at a later one, or a random while after one.
        let (count, pause) = match self.rng.below(3) {
            0 => (1, 0),
            1 => (1 + self.rng.below(100), self.rng.below(500)),
            _ => (1, self.rng.below(15_000)),
        };
        counted.wait_for(|seen| *seen >= count).await.unwrap();
        pass(pause).await;
        state.killed.store(true, Ordering::SeqCst);
        sidecar.kill();
        while let Some(ended) = writers.join_next().await {
            ended.unwrap();
        }
        self.journal = std::mem::take(&mut *journal.lock().unwrap());
        users.extend_from_slice(&self.shared);
        users
    }

    /// Compares what the restarted sidecar knows of the round's users, and of a few older ones.
    async fn check_round(
        &mut self,
        round: usize,
        users: &[usize],
        sidecar: &Sidecar,
    ) -> Result<(), String> {
        let mut restarted = Restarted::of(sidecar).await;
        let (before, revision) = (self.revision, restarted.revision().await);
        let highest = self.journal.highest;
        if revision < highest {
            return Err(format!("the ledger is at {revision}; {highest} was acknowledged"));
        }
        let mut revisions = BTreeSet::new();
        let (mut answered, mut durable, mut lost) = (0, 0, 0);
        for user in users {
            let user = &self.journal.users[*user];
            let listed = restarted.history(&user.id).await?;
            user.check(&listed, &restarted.says(&user.id).await?)?;
            let theirs: BTreeSet<u64> = listed.iter().map(|entry| entry.revision).collect();
            for revision in theirs.into_iter().filter(|revision| *revision > before) {
                if !revisions.insert(revision) {
                    return Err(format!("{}: another user has revision {revision}", user.id));
                }
            }
            let names: BTreeSet<&str> = listed.iter().map(name_of).collect();
            for sent in user.sent.iter().filter(|sent| sent.writer / WRITERS == round) {
                match (&sent.answer, names.contains(sent.name.as_str())) {
                    (Some(_), _) => answered += 1,
                    (None, true) => durable += 1,
                    (None, false) => lost += 1,
                }
            }
        }
        // Whatever was written since the round before, was written about these users.
        if !revisions.iter().copied().eq(before + 1..=revision) {
            return Err(format!("{before}..={revision} is not dense: {revisions:?}"));
        }
        self.revision = revision;
        self.tally.acknowledged += answered;
        self.tally.durable_unanswered += durable;
        self.tally.lost_unanswered += lost;
        self.tally.in_the_middle += usize::from(answered > 0 && durable + lost > 0);
        for _ in 0..SAMPLE {
            let user = self.rng.below(self.journal.users.len());
            self.check_user(user, &mut restarted).await?;
        }
        Ok(())
    }

    async fn check_user(&self, user: usize, restarted: &mut Restarted) -> Result<(), String> {
        let user = &self.journal.users[user];
        let listed = restarted.history(&user.id).await?;
        user.check(&listed, &restarted.says(&user.id).await?)
    }
}

/// Lets the writers go on for a random while.
async fn pass(micros: usize) {
    let until = Instant::now() + Duration::from_micros(micros as u64);
    while Instant::now() < until {
        tokio::task::yield_now().await;
    }
}

/// Starts a sidecar and kills it a while after `ready`, be it listening by then or not.
async fn start_and_kill(ledger: &Path, ready: impl Fn() -> bool, micros: usize) {
    let mut child = Command::new(BINARY)
        .arg("serve")
        .arg(format!("--ledger=file:{}", ledger.display()))
        .args(["--listen=127.0.0.1:0", "--admin=127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !ready() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        tokio::task::yield_now().await;
    }
    pass(micros).await;
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_kill_while_the_ledger_is_made_leaves_nothing_in_the_way() {
    let mut rng = Rng::new(SEED);
    for _ in 0..25 {
        let folder = tempfile::tempdir().unwrap();
        let begun = || std::fs::read_dir(folder.path()).unwrap().next().is_some();
        start_and_kill(&ledger_in(folder.path()), begun, rng.below(1_500)).await;
        Sidecar::live(folder.path(), &[]).await;
    }
}

/// Writes to one ledger, killed again and again; says what is wrong with it.
async fn kill_again_and_again(seed: u64, tally: Tally) -> Result<Tally, String> {
    let folder = tempfile::tempdir().unwrap();
    let ledger = ledger_in(folder.path());
    let (rng, journal) = (Rng::new(seed), Journal::default());
    let mut test = Test { rng, journal, shared: Vec::new(), revision: 0, tally };
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    for round in 0..ROUNDS {
        let users = test.write_and_kill(round, &mut sidecar).await;
        if round.is_multiple_of(STUMBLE_EVERY) {
            start_and_kill(&ledger, || true, test.rng.below(12_000)).await;
        }
        sidecar = Sidecar::live(folder.path(), &[]).await;
        let checked = test.check_round(round, &users, &sidecar).await;
        checked.map_err(|fault| format!("round {round}: {fault}\n{}", sidecar.said()))?;
    }
    let mut restarted = Restarted::of(&sidecar).await;
    for user in 0..test.journal.users.len() {
        let checked = test.check_user(user, &mut restarted).await;
        checked.map_err(|fault| format!("after all rounds: {fault}"))?;
    }
    Ok(test.tally)
}

#[tokio::test]
async fn kill_9_in_the_middle_of_writes_loses_no_acknowledged_event_in_200_rounds() {
    let mut tally = Tally::default();
    for seed in (SEED..).take(LEDGERS) {
        match kill_again_and_again(seed, tally).await {
            Ok(so_far) => tally = so_far,
            Err(fault) => panic!("seed {seed:#x}, {fault}"),
        }
    }
    // A kill that meets nothing under way would prove nothing.
    assert_eq!(tally.in_the_middle, LEDGERS * ROUNDS, "{tally:?}");
    assert!(tally.durable_unanswered > 0, "none died before its answer: {tally:?}");
    assert!(tally.lost_unanswered > 0, "none died before its commit: {tally:?}");
    println!("{tally:?}");
}
