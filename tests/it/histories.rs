//! Random histories through a real sidecar, against the model: what came of every event, then
//! every answer about every pair.
//!
//! A history is of one pair. An event that has no time or is ahead takes the ledger's clock, and
//! only the sidecar knows the stamp. Two things make it comparable nevertheless. Events are sent
//! in rounds, each at a later millisecond than the one before, with at most one such event of a
//! pair in each, so the stamps of a pair are in the order of its events. And a stamp lies between
//! the start and the end of its round: the model's stamp of round `r` is `r + 1` milliseconds
//! after the generator's `now`, later than any time that is not ahead, so it names its round.
//! Everything else is compared to the millisecond.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use consentd::grpc::pb;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use consentd::grpc::pb::{batch_can_send_result, record_events_response};
use futures_util::stream;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::model::{
    CATEGORIES, Event, Form, Model, Outcome, Refused, Rng, Rules, TableState, What, history,
    notation,
};
use crate::sidecar::{self, Sidecar};
use crate::world::{millis, on_wire, user, wall};

/// How many histories there are; the number of one is its seed.
const HISTORIES: u64 = 100_000;

/// How many clients send at once, each its own pairs.
const LANES: u64 = 4;

/// How many histories a client takes on at once. All of them share the generator's `now`.
const WAVE: usize = 3_125;

/// So long may a wave take: the model keeps times at least 8 minutes from what depends on `now`,
/// but those of events that are ahead only 2.
const WAVE_PATIENCE: i64 = 110_000;

/// In one of so many waves every event has a round of its own, so that the ledger is written and
/// read between all events of a pair. In the others as many as may be are applied together.
const ONE_BY_ONE: u64 = 8;

/// The most questions of one batch.
const BATCH: usize = 1_000;

/// Of one in so many pairs `GetConsent` is asked as well.
const SAMPLE: u64 = 20;

/// How long after the last message the window closes, by default and less the margin.
const WINDOW: i64 = (24 * 60 - 1) * 60_000;

/// How long after the failure a cap ends.
const CAP: i64 = 24 * 60 * 60_000;

/// The failures after which the sidecar denies.
const DENIED_AFTER: [i32; 3] = [130_403, 130_472, 130_497];

/// The beginning of the numbers that get no marketing templates.
const BLOCKED: &str = "5255";

/// How many of the histories that disagree are shown, the shortest first.
const SHOWN: usize = 3;

/// Names alike, so that one mistaken for another would show.
const BUSINESSES: [&str; 5] = ["acme", "Acme", "acme 2", "15550000001", "bäcker"];

const FORMS: [pb::MessageForm; 3] =
    [pb::MessageForm::Template, pb::MessageForm::FreeForm, pb::MessageForm::Unspecified];

/// One pair, all that happens to it, and where the sidecar and the model part.
struct Case {
    seed: u64,
    user: String,
    /// Another way to write the user.
    asked_as: String,
    business: &'static str,
    events: Vec<Event>,
    model: Model,
    disagreements: Vec<String>,
}

/// When the events of a wave were made, and between which moments each round was recorded.
struct Clocks {
    now: i64,
    rounds: Vec<(i64, i64)>,
}

/// What a lane has met, to prove that the histories reach everything.
#[derive(Default)]
struct Seen {
    reasons: BTreeMap<i32, u64>,
    refused: BTreeMap<String, u64>,
    events: u64,
    opted_out: u64,
    confirmed: u64,
    stamps: u64,
    disagreeing: u64,
    shown: Vec<(usize, String)>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_histories_end_as_the_model_says() {
    let folder = tempfile::tempdir().unwrap();
    // How current the table is is not what this is about, and a busy machine must not matter.
    let codes = DENIED_AFTER.map(|code| code.to_string()).join(",");
    let flags = [
        ["--max-staleness", "10m"],
        ["--deny-after-failure", &codes],
        ["--marketing-blocked-countries", BLOCKED],
    ];
    let sidecar = Arc::new(Sidecar::live(folder.path(), &flags.concat()).await);
    let mut lanes = JoinSet::new();
    for number in 0..LANES {
        let (checks, records) = (sidecar.checks().await, sidecar.records().await);
        let lane = Lane { checks, records, seen: Seen::default() };
        lanes.spawn(lane.run(number));
    }
    let mut seen = Seen::default();
    while let Some(lane) = lanes.join_next().await {
        seen.add(lane.unwrap_or_else(|error| panic!("{error}: {}", sidecar.said())));
    }
    seen.shown.sort();
    seen.shown.truncate(SHOWN);
    let shown: Vec<&str> = seen.shown.iter().map(|(_, report)| report.as_str()).collect();
    assert!(
        seen.disagreeing == 0,
        "{} of {HISTORIES} histories disagree; of the shortest:\n\n{}",
        seen.disagreeing,
        shown.join("\n")
    );
    assert_eq!(seen.reasons.len(), 14, "every reason but the stale ones: {:?}", seen.reasons);
    assert!(seen.refused.len() >= 4, "every kind of refusal: {:?}", seen.refused);
    let often = [seen.opted_out, seen.confirmed, seen.stamps];
    assert!(often.iter().all(|often| often * 100 > HISTORIES), "too seldom: {often:?}");
    eprintln!("{} events: {:?} {:?} {often:?}", seen.events, seen.reasons, seen.refused);
}

struct Lane {
    checks: ConsentServiceClient<Channel>,
    records: RecordServiceClient<Channel>,
    seen: Seen,
}

impl Lane {
    /// Takes every history of this lane through the sidecar, in waves.
    async fn run(mut self, number: u64) -> Seen {
        let seeds: Vec<u64> = (0..HISTORIES).filter(|seed| seed % LANES == number).collect();
        for (wave, seeds) in (0..).zip(seeds.chunks(WAVE)) {
            let mut clocks = Clocks { now: wall(), rounds: Vec::new() };
            let mut cases: Vec<Case> =
                seeds.iter().map(|seed| Case::new(*seed, clocks.now)).collect();
            let one_by_one = (wave + number).is_multiple_of(ONE_BY_ONE);
            self.record(&mut cases, &mut clocks, one_by_one).await;
            self.ask(&mut cases, &clocks).await;
            self.read(&mut cases, &clocks).await;
            for case in cases.into_iter().filter(|case| !case.disagreements.is_empty()) {
                self.seen.disagreeing += 1;
                self.seen.shown.push((case.events.len(), case.report(clocks.now)));
            }
            self.seen.shown.sort();
            self.seen.shown.truncate(SHOWN);
        }
        self.seen
    }

    /// Records all events, and waits until the table holds them.
    async fn record(&mut self, cases: &mut [Case], clocks: &mut Clocks, one_by_one: bool) {
        let mut rounds: Vec<Vec<(usize, usize)>> = Vec::new();
        for (place, case) in cases.iter().enumerate() {
            let mut stamps = 0;
            for (number, event) in case.events.iter().enumerate() {
                let round = if one_by_one { number } else { stamps };
                rounds.resize_with(rounds.len().max(round + 1), Vec::new);
                rounds[round].push((place, number));
                stamps += usize::from(event.time.is_none_or(|time| time > clocks.now));
            }
        }
        let mut revision = 0;
        for round in rounds {
            let start = wall();
            let before = clocks.rounds.last().map_or(0, |(_, end)| *end);
            assert!(start > before, "the wall clock was set back while we tested");
            revision = revision.max(self.record_round(cases, clocks, &round).await);
            let end = wall();
            assert!(end - clocks.now < WAVE_PATIENCE, "too slow: events ahead were overtaken");
            clocks.rounds.push((start, end));
            // The one clock step there is: the next round's stamps must be later than this one's.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Each answer waited for the table already, but on a busy machine not for ever.
        sidecar::eventually("the table holds what was recorded", || {
            let mut checks = self.checks.clone();
            async move {
                let status = checks.get_status(pb::GetStatusRequest {}).await;
                status.is_ok_and(|status| status.get_ref().revision >= revision)
            }
        })
        .await;
    }

    /// Records one round in one stream; gives the highest revision that it reached.
    async fn record_round(
        &mut self,
        cases: &mut [Case],
        clocks: &Clocks,
        round: &[(usize, usize)],
    ) -> u64 {
        let requests = round.iter().zip(0..).map(|((case, event), sequence)| {
            let request = on_wire(&cases[*case].events[*event]);
            pb::RecordEventsRequest {
                sequence,
                event: request.event,
                request_id: request.request_id,
            }
        });
        let requests: Vec<_> = requests.collect();
        let answers = self.records.record_events(stream::iter(requests)).await;
        let mut answers = answers.expect("a stream").into_inner();
        let mut got = HashMap::with_capacity(round.len());
        while let Some(answer) = answers.message().await.expect("a stream without faults") {
            let result = answer.result.expect("an answer says what came of it");
            assert!(got.insert(answer.sequence, result).is_none(), "an event has one answer");
        }
        assert_eq!(got.len(), round.len(), "every event has an answer");
        let stamp = clocks.now + 1 + i64::try_from(clocks.rounds.len()).unwrap();
        let mut highest = 0;
        for ((case, event), sequence) in round.iter().zip(0..) {
            let got = got.remove(&sequence).expect("sequences are those that were sent");
            if let record_events_response::Result::Response(response) = &got {
                highest = highest.max(response.revision);
            }
            self.seen.events += 1;
            cases[*case].compare_outcome(*event, stamp, got, &mut self.seen);
        }
        highest
    }

    /// Asks about every category in every form of every pair.
    async fn ask(&mut self, cases: &mut [Case], clocks: &Clocks) {
        let of_case = |case| CATEGORIES.map(|category| (case, category));
        let questions: Vec<(usize, &str)> = (0..cases.len()).flat_map(of_case).collect();
        for batch in questions.chunks(BATCH / FORMS.len()) {
            let requests = batch.iter().flat_map(|(case, category)| {
                let Case { asked_as, business, .. } = &cases[*case];
                FORMS.map(|form| pb::CanSendRequest {
                    form: form.into(),
                    ..sidecar::question(asked_as, business, category)
                })
            });
            let request = pb::BatchCanSendRequest { requests: requests.collect() };
            let answer = self.checks.batch_can_send(request).await.expect("a batch is answered");
            let results = answer.into_inner().results;
            assert_eq!(results.len(), batch.len() * FORMS.len(), "every question has an answer");
            for ((case, category), results) in batch.iter().zip(results.chunks(FORMS.len())) {
                cases[*case].compare_answers(category, results, clocks, &mut self.seen);
            }
        }
    }

    /// Reads what is known of a sample of the pairs.
    async fn read(&mut self, cases: &mut [Case], clocks: &Clocks) {
        for case in cases.iter_mut().filter(|case| (case.seed / LANES).is_multiple_of(SAMPLE)) {
            let (user_id, business_id) = (case.asked_as.clone(), case.business.to_owned());
            let request = pb::GetConsentRequest { user_id, business_id };
            let got = self.checks.get_consent(request).await.expect("it is answered").into_inner();
            case.compare_consent(&got, clocks);
        }
    }
}

impl Case {
    fn new(seed: u64, now: i64) -> Self {
        let mut rng = Rng::new(seed);
        let (user, business) = (user(seed), rng.pick(&BUSINESSES));
        let events = history(&mut rng, &user, business, now, false);
        let asked_as = notation(&mut rng, &user);
        let rules = Rules {
            deny_after: BTreeSet::from(DENIED_AFTER),
            blocked: vec![BLOCKED.to_owned()],
            ..Rules::default()
        };
        let model = Model::new(rules);
        Self { seed, user, asked_as, business, events, model, disagreements: Vec::new() }
    }

    /// What the model makes of an event.
    ///
    /// The page does not say what becomes of an opt-in that had lapsed when it was given. The
    /// sidecar refuses it, so the model must not hear of it.
    fn expected(&mut self, event: usize, stamp: i64) -> Result<Outcome, Refused> {
        let (before, event) = (&self.events[..event], &self.events[event]);
        let What::OptIn { expire: Some(expire), .. } = &event.what else {
            return self.model.record(event, stamp);
        };
        // A repeat by request id is told its answer before the rules of time are looked at.
        let is_repeated = |earlier: &Event| {
            let is_same = earlier.request_id == event.request_id && earlier.what == event.what;
            is_same && earlier.time.is_some_and(|time| *expire > time)
        };
        let is_repeat = !event.request_id.is_empty() && before.iter().any(is_repeated);
        if *expire > event.time.unwrap_or(stamp) || is_repeat {
            return self.model.record(event, stamp);
        }
        let otherwise = self.model.clone().record(event, stamp).err();
        let mut fields = otherwise.map_or(Vec::new(), |refused| refused.fields);
        fields.push("event.opt_in.expire_time");
        Err(Refused { fields })
    }

    /// What came of one event: changed or not, what a text did, or which field was refused.
    fn compare_outcome(
        &mut self,
        event: usize,
        stamp: i64,
        got: record_events_response::Result,
        seen: &mut Seen,
    ) {
        let expected = self.expected(event, stamp);
        let got = match got {
            record_events_response::Result::Response(response) => Ok(Outcome {
                applied: response.applied,
                opted_out_scope: sorted(&response.opted_out_scope),
                opted_in_category: sorted(&response.opted_in_category),
            }),
            record_events_response::Result::Error(error) => Err((error.code, error.field)),
        };
        match &got {
            Ok(outcome) => {
                seen.opted_out += u64::from(!outcome.opted_out_scope.is_empty());
                seen.confirmed += u64::from(!outcome.opted_in_category.is_empty());
            }
            Err((_, field)) => *seen.refused.entry(field.clone()).or_insert(0) += 1,
        }
        let agree = match (&expected, &got) {
            (Ok(expected), Ok(got)) => expected == got,
            // An item's error has room for one of the fields that are wrong.
            (Err(refused), Err((code, field))) => {
                *code == tonic::Code::InvalidArgument as i32
                    && refused.fields.contains(&field.as_str())
            }
            _ => false,
        };
        if !agree {
            let disagreement = disagreement(&format!("event {event}"), expected, got);
            self.disagreements.push(disagreement);
        }
    }

    /// The answers about one category, by form in the order of [`FORMS`].
    fn compare_answers(
        &mut self,
        category: &str,
        results: &[pb::BatchCanSendResult],
        clocks: &Clocks,
        seen: &mut Seen,
    ) {
        let (now, live) = (clocks.now + WAVE_PATIENCE / 2, TableState::Live);
        let [template, free_form] = [Form::Template, Form::FreeForm].map(|form| {
            let answer = self.model.can_send(&self.user, self.business, category, form, now, live);
            answer.expect("the question is well-formed")
        });
        // > Asked for no form: `allowed` is either one's, and the reason is the template's if it
        // > allows or neither does, else the free-form one's.
        let templates = template.allowed || !free_form.allowed;
        let any = if templates { &template } else { &free_form };
        let stamp = template.window_expire_time.is_some_and(|time| time - WINDOW > clocks.now);
        seen.stamps += u64::from(stamp);
        for ((expected, form), result) in
            [&template, &free_form, any].iter().zip(FORMS).zip(results)
        {
            let got = match &result.result {
                Some(batch_can_send_result::Result::Response(response)) => response,
                other => panic!("no decision: {other:?}"),
            };
            *seen.reasons.entry(got.reason).or_insert(0) += 1;
            let agree = expected.allowed == got.allowed
                && expected.reason.number() == got.reason
                && expected.free_form_allowed == got.free_form_allowed
                && expected.template_allowed == got.template_allowed
                && clocks.agree(expected.window_expire_time, got.window_expire_time, WINDOW)
                && clocks.agree(expected.retry_time, got.retry_time, CAP);
            if !agree {
                let window = got.window_expire_time.map(millis);
                let got = (got.reason(), window, got.retry_time.map(millis), got);
                self.disagreements.push(disagreement(
                    &format!("{category}, {form:?}"),
                    expected,
                    got,
                ));
            }
        }
    }

    fn compare_consent(&mut self, got: &pb::GetConsentResponse, clocks: &Clocks) {
        let now = clocks.now + WAVE_PATIENCE / 2;
        let expected = self.model.consent(&self.user, self.business, now);
        let expected = expected.expect("the ids are well-formed");
        let sorted = |scopes: &[String]| {
            let mut scopes = scopes.to_vec();
            scopes.sort();
            scopes
        };
        let agree = expected.opted_in == sorted(&got.opted_in)
            && expected.opted_out == sorted(&got.opted_out)
            && expected.stopped_at == got.stopped_phone_number_ids
            && expected.stopped_at.is_empty() != got.platform_stopped
            && expected.suppressed == got.suppressed
            && clocks.agree(expected.last_inbound, got.last_inbound_time, 0);
        if !agree {
            self.disagreements.push(disagreement("GetConsent", expected, got));
        }
    }

    /// The history and where the two part, with times as milliseconds from `now`.
    fn report(&self, now: i64) -> String {
        let Self { seed, user, business, .. } = self;
        let mut lines = vec![format!("seed {seed}: user {user:?}, business {business:?}, {now}:")];
        for (number, event) in self.events.iter().enumerate() {
            let mut what = event.what.clone();
            if let What::OptIn { expire: Some(expire), .. } = &mut what {
                *expire -= now;
            }
            let (time, id) = (event.time.map(|time| time - now), &event.request_id);
            let written = &event.user;
            lines.push(format!("  {number}  {time:?}  {id:?}  {what:?}  as {written:?}"));
        }
        let more = self.disagreements.len().saturating_sub(6);
        lines.extend(self.disagreements.iter().take(6).cloned());
        lines.extend((more > 0).then(|| format!("and {more} more")));
        lines.join("\n") + "\n"
    }
}

impl Clocks {
    /// Whether two times are one. One that the model derived from a stamp, `after` it, stands for
    /// all of its round.
    fn agree(
        &self,
        expected: Option<i64>,
        got: Option<prost_types::Timestamp>,
        after: i64,
    ) -> bool {
        let (Some(expected), Some(got)) = (expected, got.map(millis)) else {
            return expected.is_none() && got.is_none();
        };
        let round = usize::try_from(expected - after - self.now - 1).ok();
        match round.and_then(|round| self.rounds.get(round)) {
            Some((start, end)) => (*start..=*end).contains(&(got - after)),
            None => expected == got,
        }
    }
}

impl Seen {
    fn add(&mut self, other: Self) {
        for (reason, often) in other.reasons {
            *self.reasons.entry(reason).or_insert(0) += often;
        }
        for (field, often) in other.refused {
            *self.refused.entry(field).or_insert(0) += often;
        }
        self.events += other.events;
        self.opted_out += other.opted_out;
        self.confirmed += other.confirmed;
        self.stamps += other.stamps;
        self.disagreeing += other.disagreeing;
        self.shown.extend(other.shown);
    }
}

fn disagreement(of: &str, expected: impl Debug, got: impl Debug) -> String {
    format!("{of}\n  model   {expected:?}\n  sidecar {got:?}")
}

/// Scopes that are listed in one text, in the model's order: theirs is nobody's promise.
fn sorted(listed: &str) -> String {
    let mut scopes: Vec<&str> = listed.split(", ").collect();
    scopes.sort_unstable();
    scopes.join(", ")
}
