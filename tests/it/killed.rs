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

const ROUNDS: usize = 200;

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

    async fn history(&mut self, user: &str) -> Vec<pb::ListEventsResponse> {
        let request = pb::ListEventsRequest { user_id: user.into(), business_id: BUSINESS.into() };
        let mut stream = self.records.list_events(request).await.unwrap().into_inner();
        let mut listed = Vec::new();
        while let Some(entry) = stream.message().await.unwrap() {
            listed.push(entry);
        }
        listed
    }

    /// Whether a marketing template may be sent; an open window stands in for an opt-out's reply
    /// only in free form.
    async fn says(&mut self, user: &str) -> Says {
        let mut question = question(user, BUSINESS, "marketing");
        question.set_form(pb::MessageForm::Template);
        let answer = self.checks.can_send(question).await.unwrap().into_inner();
        Says { allowed: answer.allowed, reason: answer.reason() }
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
            1 => (1 + self.rng.below(60), self.rng.below(500)),
            _ => (1, self.rng.below(8_000)),
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
            let listed = restarted.history(&user.id).await;
            user.check(&listed, &restarted.says(&user.id).await)?;
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
        let listed = restarted.history(&user.id).await;
        user.check(&listed, &restarted.says(&user.id).await)
    }
}

/// Lets the writers go on for a random while.
async fn pass(micros: usize) {
    let until = Instant::now() + Duration::from_micros(micros as u64);
    while Instant::now() < until {
        tokio::task::yield_now().await;
    }
}

/// Starts a sidecar and kills it a random while later, be it listening by then or not.
async fn start_and_kill(ledger: &Path, micros: usize) {
    let mut child = Command::new(BINARY)
        .arg("serve")
        .arg(format!("--ledger=file:{}", ledger.display()))
        .args(["--listen=127.0.0.1:0", "--admin=127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    pass(micros).await;
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn kill_9_in_the_middle_of_writes_loses_no_acknowledged_event_in_200_rounds() {
    let started = Instant::now();
    let folder = tempfile::tempdir().unwrap();
    let ledger = ledger_in(folder.path());
    let (journal, tally) = (Journal::default(), Tally::default());
    let rng = Rng::new(SEED);
    let mut test = Test { rng, journal, shared: Vec::new(), revision: 0, tally };
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    for round in 0..ROUNDS {
        let users = test.write_and_kill(round, &mut sidecar).await;
        if round.is_multiple_of(STUMBLE_EVERY) {
            start_and_kill(&ledger, test.rng.below(12_000)).await;
        }
        sidecar = Sidecar::live(folder.path(), &[]).await;
        if let Err(fault) = test.check_round(round, &users, &sidecar).await {
            panic!("round {round} of seed {SEED:#x}: {fault}\n{}", sidecar.said());
        }
    }
    let mut restarted = Restarted::of(&sidecar).await;
    for user in 0..test.journal.users.len() {
        if let Err(fault) = test.check_user(user, &mut restarted).await {
            panic!("after all rounds of seed {SEED:#x}: {fault}");
        }
    }
    println!("{:?}, {:?}, revision {}", started.elapsed(), test.tally, test.revision);
    // A kill that meets nothing under way would prove nothing.
    assert_eq!(test.tally.in_the_middle, ROUNDS, "{:?}", test.tally);
    assert!(test.tally.durable_unanswered > 0, "none died before its answer: {:?}", test.tally);
    assert!(test.tally.lost_unanswered > 0, "none died before its commit: {:?}", test.tally);
}
