//! Writers that opt users in and out, and checkers that ask about them, for as long as they may.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use consentd::grpc::pb;
use consentd::grpc::pb::batch_can_send_result::Result as Checked;
use consentd::grpc::pb::consent_event::What;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::history::{Acknowledged, Answer, Did, History, Line, Sent, now, wall};
use crate::rng::Rng;
use crate::sidecar::{opt_in, opt_out, question};

/// The business of all events.
pub const BUSINESS: &str = "acme";

/// What is asked about.
const ASKED: [&str; 3] = ["marketing.deals", "marketing", "utility"];

/// What is opted in to, and out of.
const INTO: [&str; 3] = ["marketing", "marketing.deals", "utility"];
const OUT_OF: [&str; 4] = ["*", "marketing", "marketing.deals", "utility"];

/// How long a call may take; the ledger's own limits are shorter.
const CALL: Duration = Duration::from_secs(3);

/// How long a writer or a checker rests after a call that failed.
const REST: Duration = Duration::from_millis(20);

/// A channel that connects when it is used, and again after each failure.
pub fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect_timeout(CALL).connect_lazy()
}

/// Why calls failed lately, by what was called.
#[derive(Clone, Default)]
pub struct Failures(Arc<Mutex<BTreeMap<String, String>>>);

impl Failures {
    fn add(&self, what: &str, why: &dyn std::fmt::Display) {
        self.0.lock().unwrap().insert(what.to_owned(), why.to_string());
    }

    /// The last of each.
    pub fn told(&self) -> String {
        format!("{:?}", self.0.lock().unwrap())
    }
}

/// Writes about some users.
pub struct Writer {
    /// What happened is told here.
    pub history: History,
    /// Why calls failed, here.
    pub failures: Failures,
    /// Its name; no other has it.
    pub name: String,
    /// Where it records.
    pub records: RecordServiceClient<Channel>,
    /// About whom.
    pub users: Vec<String>,
    /// What it does next.
    pub rng: Rng,
    /// How long it rests after each event.
    pub pace: Duration,
}

impl Writer {
    /// Writes until it is told to stop; an event that is under way then is left unanswered.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut latest: HashMap<String, i64> = HashMap::new();
        for number in 0_u64.. {
            let user = self.rng.pick(&self.users);
            let after = latest.get(&user).copied().unwrap_or(0);
            let written = stop.run_until_cancelled(self.write(number, &user, after)).await;
            let Some(time) = written else { return };
            latest.insert(user, time);
            if stop.run_until_cancelled(sleep(self.pace)).await.is_none() {
                return;
            }
        }
    }

    /// Records something of a user, later than a moment; gives when it happened.
    async fn write(&mut self, number: u64, user: &str, after: i64) -> i64 {
        // A time that is ahead of the ledger's clock would be taken as another.
        while wall() <= after {
            sleep(Duration::from_millis(1)).await;
        }
        let name = format!("{}-{number}", self.name);
        let time = wall();
        let (did, scope) = if self.rng.percent(55) {
            (Did::OptIn, self.rng.pick(&INTO))
        } else {
            (Did::OptOut, self.rng.pick(&OUT_OF))
        };
        // A STOP that somebody types has no time of its own.
        let event_time = (did == Did::OptIn || self.rng.percent(50)).then_some(time);
        self.record(Sent {
            process: self.name.clone(),
            name,
            user: user.to_owned(),
            did,
            scope: scope.to_owned(),
            event_time,
            wall: time,
            at: now(),
        })
        .await;
        wall()
    }

    /// Records an event, again and again until it is acknowledged.
    pub async fn record(&mut self, sent: Sent) {
        let request = request(&sent);
        let name = sent.name.clone();
        self.history.add(Line::Sent(sent));
        loop {
            let why = match timeout(CALL, self.records.record_event(request.clone())).await {
                Ok(Ok(answer)) => {
                    let pb::RecordEventResponse { revision, applied, .. } = answer.into_inner();
                    let acknowledged = Acknowledged { name, at: now(), revision, applied };
                    return self.history.add(Line::Acknowledged(acknowledged));
                }
                Ok(Err(status)) => {
                    assert_ne!(status.code(), Code::InvalidArgument, "{status}");
                    status.to_string()
                }
                Err(late) => late.to_string(),
            };
            self.failures.add(&format!("record of {}", self.name), &why);
            sleep(REST).await;
        }
    }
}

/// An event as it is sent; its name is in it, so that the ledger lists it.
pub fn request(sent: &Sent) -> pb::RecordEventRequest {
    let what = match sent.did {
        Did::OptIn => {
            let mut what = opt_in(&sent.scope);
            if let What::OptIn(pb::OptIn { evidence: Some(evidence), .. }) = &mut what {
                evidence.reference.clone_from(&sent.name);
            }
            what
        }
        Did::OptOut => {
            let mut what = opt_out(&sent.scope);
            if let What::OptOut(opt_out) = &mut what {
                opt_out.reference.clone_from(&sent.name);
            }
            what
        }
    };
    let mut request = crate::sidecar::event(&sent.user, BUSINESS, what);
    if let Some(event) = &mut request.event {
        event.event_time = sent.event_time.map(|millis| prost_types::Timestamp {
            seconds: millis.div_euclid(1_000),
            nanos: i32::try_from(millis.rem_euclid(1_000) * 1_000_000).unwrap(),
        });
    }
    request.request_id.clone_from(&sent.name);
    request
}

/// The name of a listed event; none where it was not a writer's.
fn name_of(listed: &pb::ListEventsResponse) -> Option<String> {
    match listed.event.as_ref()?.what.as_ref()? {
        What::OptIn(opt_in) => Some(opt_in.evidence.as_ref()?.reference.clone()),
        What::OptOut(opt_out) => Some(opt_out.reference.clone()),
        _ => None,
    }
}

/// The names of all events that a ledger lists of these users.
pub async fn listed(
    records: &RecordServiceClient<Channel>,
    users: impl IntoIterator<Item = String>,
) -> Result<BTreeMap<String, Vec<String>>, tonic::Status> {
    let mut listed = BTreeMap::new();
    for user in users {
        let request =
            pb::ListEventsRequest { user_id: user.clone(), business_id: BUSINESS.to_owned() };
        let mut stream = records.clone().list_events(request).await?.into_inner();
        let mut names = Vec::new();
        while let Some(event) = stream.message().await? {
            names.extend(name_of(&event));
        }
        listed.insert(user, names);
    }
    Ok(listed)
}

/// Asks about some users.
pub struct Checker {
    /// What was answered is told here.
    pub history: History,
    /// Why calls failed, here.
    pub failures: Failures,
    /// The name of the sidecar.
    pub sidecar: String,
    /// Where it is.
    pub checks: ConsentServiceClient<Channel>,
    /// About whom.
    pub users: Vec<String>,
    /// How long it rests after each answer.
    pub pace: Duration,
}

impl Checker {
    /// Asks until it is told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let once = async {
            loop {
                if self.ask().await.is_err() {
                    sleep(REST).await;
                }
                sleep(self.pace).await;
            }
        };
        let _: Option<()> = stop.run_until_cancelled(once).await;
    }

    /// Asks once about all of them.
    pub async fn ask(&mut self) -> Result<(), ()> {
        let pairs: Vec<(&String, &str)> =
            self.users.iter().flat_map(|user| ASKED.map(|category| (user, category))).collect();
        let requests = pairs.iter().map(|(user, category)| question(user, BUSINESS, category));
        let request = pb::BatchCanSendRequest { requests: requests.collect() };
        let asked = now();
        let why = match timeout(CALL, self.checks.batch_can_send(request)).await {
            Ok(Ok(answer)) => {
                let answered = now();
                let results = answer.into_inner().results;
                assert_eq!(results.len(), pairs.len());
                for ((user, category), result) in pairs.into_iter().zip(results) {
                    let Some(Checked::Response(response)) = result.result else { continue };
                    self.tell(user, category, (asked, answered), &response);
                }
                return Ok(());
            }
            Ok(Err(status)) => status.to_string(),
            Err(late) => late.to_string(),
        };
        self.failures.add(&format!("check by {}", self.sidecar), &why);
        Err(())
    }

    fn tell(&self, user: &str, category: &str, when: (u64, u64), answer: &pb::CanSendResponse) {
        let staleness = answer.staleness.unwrap_or_default();
        let nanos = i128::from(staleness.seconds) * 1_000_000_000 + i128::from(staleness.nanos);
        self.history.add(Line::Answer(Answer {
            sidecar: self.sidecar.clone(),
            user: user.to_owned(),
            category: category.to_owned(),
            asked: when.0,
            answered: when.1,
            allowed: answer.allowed,
            reason: answer.reason,
            revision: answer.revision,
            staleness: u64::try_from(nanos).unwrap_or(u64::MAX),
        }));
    }
}

#[tokio::test]
async fn writers_and_checkers_find_no_fault_with_an_embedded_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = crate::sidecar::Sidecar::live(folder.path(), &[]).await;
    let (history, failures) = (History::default(), Failures::default());
    let records = RecordServiceClient::new(channel(&sidecar.record));
    let users: Vec<String> = (0..3).map(|user| format!("US.{user}")).collect();
    let writer = Writer {
        history: history.clone(),
        failures: failures.clone(),
        name: "writer".into(),
        records: records.clone(),
        users: users.clone(),
        rng: Rng::new(1),
        pace: Duration::ZERO,
    };
    let checker = Checker {
        history: history.clone(),
        failures,
        sidecar: "embedded".into(),
        checks: ConsentServiceClient::new(channel(&sidecar.grpc)),
        users: users.clone(),
        pace: Duration::ZERO,
    };
    let stop = CancellationToken::new();
    let tasks = [tokio::spawn(writer.run(stop.clone())), tokio::spawn(checker.run(stop.clone()))];
    crate::sidecar::eventually("much has happened", || async {
        let counts = history.counts();
        counts.acknowledged > 100 && counts.allowed > 100 && counts.denied > 100
    })
    .await;
    stop.cancel();
    for task in tasks {
        task.await.unwrap();
    }
    let lines = history.lines();
    // An embedded ledger enforces what it acknowledges before it does.
    let verdict = super::checker::check(&lines, Duration::from_secs(5));
    assert_eq!((verdict.violated, verdict.longest), (0, Duration::ZERO), "{verdict:#?}");
    let listed = listed(&records, users).await.unwrap();
    assert_eq!(super::checker::compare(&lines, &listed), [] as [&str; 0]);
}
