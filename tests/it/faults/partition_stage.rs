//! A Cluster with a ledger of several partitions, two sidecars on it, and crowds: writers and checkers about
//! some of the partitions alone, so that what befalls those can be told from what befalls the others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use consentd::grpc::pb;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::get_status_response::Phase;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use consentd_core::id::{BusinessId, KeySecret, UserId};
use consentd_core::partition::Layout;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::checker::{check, compare};
use super::cluster::Cluster;
use super::history::{Acknowledged, Did, History, Line, Sent, now, wall};
use super::load::{BUSINESS, Checker, Failures, Writer, channel, listed, request};
use super::redis::PASSWORD;
use super::stage::{ask, init, live_within, serve, status};
use crate::rng::Rng;
use crate::sidecar::{PATIENCE, Sidecar, eventually};

/// The bound of the sidecars: a failover takes longer, and so do elections on a busy machine.
pub const BOUND: Duration = Duration::from_secs(2);

/// The same as a flag.
pub const PATIENT: [&str; 2] = ["--max-staleness", "2s"];

/// How much later than the bound a sidecar may be seen to deny, by a test that looks at it.
const LATE: Duration = Duration::from_secs(3);

/// How long after a change of the Cluster the sidecars may need to be live again.
const LIVE_AGAIN: Duration = Duration::from_secs(30);

/// How many partitions the ledger has.
pub const PARTITIONS: u32 = 8;

/// The options of nodes that keep what they confirmed, and serve without the shards that are lost.
pub const KEEPING: [&str; 6] =
    ["--appendonly", "yes", "--appendfsync", "always", "--cluster-require-full-coverage", "no"];

/// How many users of a partition a crowd writes and asks about.
const USERS: usize = 2;

/// The stage.
pub struct Scene {
    /// The nodes.
    pub cluster: Cluster,
    /// How the ledger is divided.
    pub layout: Layout,
    /// The slot of each partition.
    pub slots: BTreeMap<u32, u16>,
    /// The sidecar that records.
    pub recorder: Sidecar,
    /// The other one.
    pub reader: Sidecar,
    said: u64,
    crowds: u64,
}

/// The partition of a user's pair with a business.
pub fn partition_of(layout: Layout, user: &str, business: &str) -> u32 {
    let (user, business) = (UserId::parse(user).unwrap(), BusinessId::parse(business).unwrap());
    layout.partition_of(KeySecret::new(&[0; 16]).key(&user, business))
}

/// The partitions that a business's pairs are in, in order.
pub fn business_partitions(layout: Layout, business: &str) -> Vec<u32> {
    let mut partitions: Vec<u32> =
        layout.partitions_of(BusinessId::parse(business).unwrap().tag()).collect();
    partitions.sort_unstable();
    partitions
}

/// So many users whose pairs are in a partition, whose names begin so.
pub fn users_in(layout: Layout, partition: u32, prefix: &str, count: usize) -> Vec<String> {
    let users = (0_u32..).map(|number| format!("US.{prefix}{number}"));
    users.filter(|user| partition_of(layout, user, BUSINESS) == partition).take(count).collect()
}

/// The flags of a sidecar that records.
const RECORDER: [&str; 4] = ["--ledger-user", "recorder", "--record", "127.0.0.1:0"];

fn serve_as(ledger: &str, role: &[&str], flags: &[&str]) -> Sidecar {
    let flags = [&PATIENT, role, flags].concat();
    serve(ledger, &flags, &[("CONSENTD_LEDGER_PASSWORD", PASSWORD)])
}

impl Scene {
    /// Makes a ledger whose businesses are each in all partitions, and starts the sidecars.
    pub async fn set(cluster: Cluster, flags: &[&str]) -> Self {
        Self::set_of(cluster, PARTITIONS, PARTITIONS, flags).await
    }

    /// The same with so many partitions, each business in so many of them.
    pub async fn set_of(cluster: Cluster, partitions: u32, spread: u32, flags: &[&str]) -> Self {
        let (count, each) = (partitions.to_string(), spread.to_string());
        let shape = ["--partitions", &count, "--spread", &each, "--buckets", "8"];
        init(&cluster.url(2), &shape);
        let recorder = serve_as(&cluster.url(3), &RECORDER, flags);
        let reader = serve_as(&cluster.url(3), &["--ledger-user", "sidecar"], flags);
        let slots = cluster.partitions();
        assert_eq!(slots.len(), partitions as usize, "{slots:?}");
        let layout = Layout::new(partitions, spread).unwrap();
        let scene = Self { cluster, layout, slots, recorder, reader, said: 0, crowds: 0 };
        scene.live().await;
        scene
    }

    /// Starts another sidecar that records and knows all nodes.
    pub fn start_recorder(&self) -> Sidecar {
        serve_as(&self.cluster.url(6), &RECORDER, &[])
    }

    /// Both sidecars.
    pub fn sidecars(&self) -> [&Sidecar; 2] {
        [&self.recorder, &self.reader]
    }

    /// Waits until both sidecars are live.
    pub async fn live(&self) {
        for sidecar in self.sidecars() {
            live_within(sidecar, LIVE_AGAIN).await;
        }
    }

    /// The place of the node that has a partition, as all say.
    pub fn owner(&self, partition: u32) -> usize {
        self.cluster.owner_of(self.slots[&partition])
    }

    /// All partitions: those at a node, and the others.
    pub fn split(&self, place: usize) -> (Vec<u32>, Vec<u32>) {
        let (here, elsewhere): (Vec<u32>, Vec<u32>) =
            self.layout.all().partition(|partition| self.owner(*partition) == place);
        assert!(!here.is_empty() && !elsewhere.is_empty(), "{here:?} and {elsewhere:?}");
        (here, elsewhere)
    }

    /// Kills a primary and its replica, which cannot take over then; gives their places.
    pub fn kill_shard(&mut self, primary: usize) -> [usize; 2] {
        let places = [self.cluster.replica_of(primary).expect("it has a replica"), primary];
        for place in places {
            self.cluster.nodes[place].kill();
        }
        places
    }

    /// Starts these nodes again, and waits until the Cluster is whole.
    pub fn start_again(&mut self, places: impl IntoIterator<Item = usize>) {
        for place in places {
            self.cluster.nodes[place].start_again();
        }
        self.cluster.wait_until_ok();
    }

    /// Waits until exactly these partitions are not live at a sidecar, as must be soon after the bound; gives what
    /// it says of itself then.
    pub async fn denies_only(&self, sidecar: &Sidecar, lost: &[u32]) -> pb::GetStatusResponse {
        let started = Instant::now();
        loop {
            let status = status(sidecar).await;
            let denied = status.partitions.iter().filter(|one| one.phase() != Phase::Live);
            let denied: Vec<u32> = denied.map(|one| one.number).collect();
            if denied == lost {
                return status;
            }
            let took = started.elapsed();
            assert!(took < BOUND + LATE, "{denied:?}, not {lost:?}, after {took:?}: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Records something about a user, and waits for the acknowledgement; told in this history.
    pub async fn say(&mut self, history: &History, user: &str, did: Did, scope: &str) {
        self.said += 1;
        let mut writer = self.writer("said", Vec::new(), history, &Failures::default());
        let sent = sent(&format!("said-{}", self.said), user, did, scope);
        let within = tokio::time::timeout(PATIENCE, writer.record(sent)).await;
        within.unwrap_or_else(|_| panic!("not recorded: {}", self.recorder.said()));
    }

    /// Records an opt-out of everything in one attempt, and says whether it was acknowledged.
    pub async fn try_stop(&self, user: &str, name: &str) -> Result<(), tonic::Status> {
        let mut records = RecordServiceClient::new(channel(&self.recorder.record));
        let stop = request(&sent(name, user, Did::OptOut, "*"));
        records.record_event(stop).await.map(drop)
    }

    fn writer(
        &self,
        name: &str,
        users: Vec<String>,
        history: &History,
        failures: &Failures,
    ) -> Writer {
        Writer {
            history: history.clone(),
            failures: failures.clone(),
            name: name.to_owned(),
            records: RecordServiceClient::new(channel(&self.recorder.record)),
            users,
            rng: Rng::new(self.crowds + 7),
            pace: Duration::from_millis(20),
        }
    }

    /// Begins to write and to ask about users in these partitions, and waits until that is under way.
    pub async fn crowd(&mut self, partitions: &[u32]) -> Crowd {
        let sidecars = [(&self.recorder, "recorder"), (&self.reader, "reader")];
        let sidecars = sidecars.map(|(sidecar, name)| (sidecar.grpc.clone(), name));
        self.crowd_at(partitions, &sidecars).await
    }

    /// The same with checkers at these addresses.
    pub async fn crowd_at(&mut self, partitions: &[u32], sidecars: &[(String, &str)]) -> Crowd {
        self.crowds += 1;
        let (history, failures) = (History::default(), Failures::default());
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let mut users = Vec::new();
        for partition in partitions {
            // A writer of its own: one that waits for a partition holds up no other.
            let theirs = users_in(self.layout, *partition, &format!("{}-", self.crowds), USERS);
            let name = format!("writer-{}-{partition}", self.crowds);
            let writer = self.writer(&name, theirs.clone(), &history, &failures);
            tasks.spawn(writer.run(stop.clone()));
            users.extend(theirs);
        }
        for (address, name) in sidecars {
            let checker = Checker {
                history: history.clone(),
                failures: failures.clone(),
                sidecar: (*name).to_owned(),
                checks: ConsentServiceClient::new(channel(address)),
                users: users.clone(),
                pace: Duration::from_millis(10),
            };
            tasks.spawn(checker.run(stop.clone()));
        }
        let crowd = Crowd { users, history, failures, stop, tasks };
        crowd.goes_on().await;
        crowd
    }

    /// Ends these crowds, which all go on before: whatever happened, the invariant holds, and the ledger has what it
    /// said it has.
    pub async fn end<const N: usize>(self, crowds: [Crowd; N]) {
        self.live().await;
        for crowd in &crowds {
            crowd.goes_on().await;
        }
        for mut crowd in crowds {
            crowd.rest().await;
            self.both_are_as_far().await;
            crowd.judge();
            let records = RecordServiceClient::new(channel(&self.recorder.record));
            let users: BTreeSet<String> = crowd.users.iter().cloned().collect();
            let listed = listed(&records, users).await.expect("the ledger lists them");
            let wrong = compare(&crowd.history.lines(), &listed);
            assert!(wrong.is_empty(), "{wrong:#?}");
        }
    }

    async fn both_are_as_far(&self) {
        eventually("both sidecars are as far", || async {
            let [one, other] =
                [status(&self.recorder).await, status(&self.reader).await].map(|s| s.revision);
            one == other
        })
        .await;
    }
}

fn sent(name: &str, user: &str, did: Did, scope: &str) -> Sent {
    Sent {
        process: "said".into(),
        name: name.to_owned(),
        user: user.to_owned(),
        did,
        scope: scope.to_owned(),
        event_time: None,
        wall: wall(),
        at: now(),
    }
}

/// Writers and checkers about some of the partitions.
pub struct Crowd {
    /// About whom.
    pub users: Vec<String>,
    /// What happened.
    pub history: History,
    failures: Failures,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Crowd {
    /// Waits until so much more was written, and so much more was allowed, that it goes on.
    pub async fn goes_on(&self) {
        let (before, started) = (self.history.counts(), Instant::now());
        loop {
            let after = self.history.counts();
            let [written, allowed] = [
                after.acknowledged.saturating_sub(before.acknowledged),
                after.allowed.saturating_sub(before.allowed),
            ];
            if written >= 30 && allowed >= 30 {
                return;
            }
            let told = self.failures.told();
            assert!(started.elapsed() < PATIENCE, "{before:?}, then {after:?}: {told}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How long the acknowledgements took of what was first sent between two moments; the shortest first.
    pub fn acknowledged_within(&self, from: u64, until: u64) -> Vec<Duration> {
        let lines = self.history.lines();
        let sent: BTreeMap<&str, u64> = lines
            .iter()
            .filter_map(|line| match line {
                Line::Sent(sent) => Some((sent.name.as_str(), sent.at)),
                _ => None,
            })
            .filter(|(_, at)| (from..until).contains(at))
            .collect();
        let took = lines.iter().filter_map(|line| match line {
            Line::Acknowledged(Acknowledged { name, at, .. }) => {
                Some(Duration::from_nanos(at - sent.get(name.as_str())?))
            }
            _ => None,
        });
        let mut took: Vec<Duration> = took.collect();
        took.sort_unstable();
        took
    }

    /// How many answers between two moments were denials for want of a proof.
    pub fn denied_as_stale(&self, from: u64, until: u64) -> usize {
        let lines = self.history.lines();
        let is_stale = |line: &&Line| match line {
            Line::Answer(answer) => {
                answer.reason == pb::Reason::Stale as i32
                    && answer.asked > from
                    && answer.answered < until
            }
            _ => false,
        };
        lines.iter().filter(is_stale).count()
    }

    /// Ends what writes and asks.
    pub async fn rest(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    /// Whatever happened, the invariant holds.
    pub fn judge(&self) {
        let verdict = check(&self.history.lines(), BOUND);
        assert_eq!(verdict.violated, 0, "{verdict:#?}; {}", self.keep().display());
        assert!(verdict.opt_outs > 0 && verdict.allowed > 0, "{verdict:#?}");
    }

    /// Writes what happened to a file, for whoever looks for the cause.
    fn keep(&self) -> std::path::PathBuf {
        let name = format!("history-{}-{}", std::process::id(), now());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let file = History::to_file(&path);
        self.history.lines().into_iter().for_each(|line| file.add(line));
        path
    }
}

/// What a sidecar answers about marketing.
pub async fn reason(sidecar: &Sidecar, user: &str) -> pb::Reason {
    ask(sidecar, user, "marketing").await.reason()
}

/// Waits until a sidecar denies a user as opted out, no longer than the bound and some.
pub async fn is_out(sidecar: &Sidecar, user: &str) {
    let started = Instant::now();
    while !is_denied_as_out(reason(sidecar, user).await) {
        let took = started.elapsed();
        assert!(took < BOUND + LATE, "{user} after {took:?}: {:?}", reason(sidecar, user).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a reason is that of an opt-out.
pub fn is_denied_as_out(reason: pb::Reason) -> bool {
    matches!(reason, pb::Reason::OptedOut | pb::Reason::OptedOutAll)
}

/// Waits until a sidecar allows a user.
pub async fn is_in(sidecar: &Sidecar, user: &str) {
    eventually("the user is allowed", || async {
        reason(sidecar, user).await == pb::Reason::OptedIn
    })
    .await;
}
