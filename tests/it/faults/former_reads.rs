//! A recorder that reads of a primary which was replaced and does not know: only its appends reach the new one.

use std::sync::Arc;

use consentd::metrics::Metrics;
use consentd::recorder::{Recorded, Recorder};
use consentd_core::event::{Event, Evidence, Method, PlatformNames, StatementNames, What};
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_core::record::{Link, Record};
use consentd_core::scope::Scope;
use consentd_core::state::ChoiceKind;
use consentd_core::submission::Submission;
use consentd_ledger::{Ledger, Options, Redis as RedisLedger, Target, TargetOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::proxy::Proxy;
use super::redis::Redis;
use super::stage::{init, ledger_at};

const PERSON: [&str; 2] = ["15550123456", "US.1349"];

/// By how many seconds the clock of the new primary is ahead of the former one's.
const AHEAD: i64 = 30;

/// A recorder in a process of its own.
struct Process {
    ledger: Ledger,
    recorder: Recorder,
    _task: JoinHandle<()>,
}

impl Process {
    fn at(address: &str) -> Self {
        let target = Target::new(&ledger_at(address), TargetOptions::default()).unwrap();
        let (ledger, task) = RedisLedger::new(target, Options::default());
        let task = tokio::spawn(task.run(CancellationToken::new()));
        let ledger = Ledger::Redis(ledger);
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        let keywords = Keywords::new(KeywordLists::default());
        let recorder = Recorder::new(ledger.clone(), PlatformNames::default(), keywords, metrics);
        Self { ledger, recorder, _task: task }
    }

    /// Records an event without a time.
    async fn try_record(&self, user: &str, what: What) -> Recorded {
        let event = Event { user_id: user.into(), business_id: "acme".into(), time: None, what };
        let request_id = format!("{user} {:?}", std::mem::discriminant(&event.what));
        self.recorder.record(&[Submission::new(event, request_id)]).await.remove(0)
    }

    async fn record(&self, user: &str, what: What) {
        self.try_record(user, what).await.unwrap();
    }

    async fn record_of(&self, user: &str) -> Record {
        let key = self.ledger.secret().await.unwrap().read(user, "acme").unwrap();
        self.ledger.read(vec![key]).await.unwrap().pairs.remove(0).unwrap().record
    }
}

fn opt_in() -> What {
    let evidence = Evidence {
        method: Method::Website,
        statement: "Yes to WhatsApp from Acme".into(),
        business_name: "Acme".into(),
        locale: "en".into(),
        reference: "form 1".into(),
        confirmation: String::new(),
        phone_number_id: None,
        statement_names: StatementNames::default(),
    };
    let category = Scope::parse("marketing").unwrap();
    What::OptIn { category, evidence, expire: None, pending: false }
}

/// Two servers: one that was replaced when the other one had no more than it, and the new one, whose clock is ahead.
struct Replaced {
    present: Redis,
    former: Redis,
    /// The way to the present one.
    ahead: Proxy,
}

impl Replaced {
    async fn after(recorded: impl AsyncFnOnce(&Process)) -> Self {
        let present = Redis::start(&[]);
        init(&ledger_at(&present.address()), &[]);
        let ahead = Proxy::before(&present.address()).await;
        ahead.shift_clock(AHEAD);
        recorded(&Process::at(&ahead.address())).await;
        let former = Redis::start_replica_of(&present, &[]);
        former.catch_up_with(&present);
        former.promote();
        Self { present, former, ahead }
    }

    /// A process that reads of the former one, and appends to the present one.
    async fn late(&self) -> Late {
        let net = Proxy::before(&self.former.address()).await;
        let late = Process::at(&net.address());
        late.ledger.read(Vec::new()).await.unwrap();
        net.new_connections_lead_to(&self.present.address());
        late.ledger.reconnect_appends();
        Late { process: late, net }
    }
}

/// A process that reads of the former primary, until it learns of the present one.
struct Late {
    process: Process,
    net: Proxy,
}

impl Late {
    /// Records an event of the first id, which its caller repeats until it is acknowledged. The process learns of the
    /// present primary once that has the event.
    async fn record_until_acknowledged(
        &self,
        present: &Process,
        what: What,
        is_there: impl Fn(&Record) -> bool,
    ) {
        let record = async {
            while self.process.try_record(PERSON[0], what.clone()).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        let learn = async {
            while !is_there(&present.record_of(PERSON[0]).await) {
                tokio::task::yield_now().await;
            }
            self.net.reset();
        };
        tokio::join!(record, learn);
    }
}

#[tokio::test]
async fn untimed_stop_whose_linked_id_is_read_of_a_former_primary_outlives_its_latest_opt_in() {
    let linked = async |before: &Process| {
        let link = What::Link { other_user_id: PERSON[1].into(), moved: false };
        before.record(PERSON[0], link).await;
    };
    let servers = Replaced::after(linked).await;
    let present = Process::at(&servers.ahead.address());
    let late = servers.late().await;
    present.record(PERSON[1], opt_in()).await;
    assert_eq!(
        late.process.record_of(PERSON[1]).await.state.scopes.len(),
        0,
        "it is read of the former"
    );
    let stop = What::OptOut { scope: Scope::All, reference: String::new() };
    let denies = |record: &Record| !record.state.scopes.is_empty();
    late.record_until_acknowledged(&present, stop, denies).await;
    for user in PERSON {
        let state = present.record_of(user).await.state;
        let standing = state.standing_on(&Scope::parse("marketing").unwrap()).choice;
        let kind = standing.map(|choice| choice.kind);
        assert_eq!(kind, Some(ChoiceKind::OptOut), "an opt-in of before it is the latest");
    }
}

#[tokio::test]
async fn untimed_link_to_an_id_that_was_erased_and_is_read_of_a_former_primary_names_both() {
    let consented = async |before: &Process| before.record(PERSON[1], opt_in()).await;
    let servers = Replaced::after(consented).await;
    let present = Process::at(&servers.ahead.address());
    let late = servers.late().await;
    present.recorder.erase(PERSON[1], "acme").await.unwrap();
    assert!(late.process.record_of(PERSON[1]).await.erased.is_none(), "it is read of the former");
    let link = What::Link { other_user_id: PERSON[1].into(), moved: false };
    let is_linked = |record: &Record| !record.links.is_empty();
    late.record_until_acknowledged(&present, link, is_linked).await;
    for (user, other) in [(PERSON[0], PERSON[1]), (PERSON[1], PERSON[0])] {
        let links: Vec<Link> = present.record_of(user).await.links;
        let names: Vec<&str> = links.iter().map(|link| &*link.user_id).collect();
        assert_eq!(names, [other], "a link that was acknowledged is one of both");
    }
}
