//! A week of webhooks, made up: duplicates, in no order, some retried to the last day, to two
//! receivers at once, while Redis is restarted twice. In the end every answer must be the one of
//! an independent model that was told of each update once and in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use consentd::grpc::pb;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::{Files, deliver, redis};
use crate::model::{CATEGORIES, Event, Form, Method, Model, Rng, Rules, TableState, What};
use crate::sidecar::{PATIENCE, Sidecar, eventually, question};
use crate::world::{user, wall};

/// How many updates there are; more where the variable says so.
const UPDATES: usize = 20_000;
const VARIABLE: &str = "CONSENTD_WEEK_UPDATES";

/// How many updates a user has, about.
const EACH: usize = 20;

/// How many requests are sent at once.
const SENDERS: usize = 8;

/// The most updates of one request.
const REQUEST: usize = 300;

const HOUR: i64 = 3_600;

/// Two numbers of one business, and the only one of another.
const NUMBERS: [(&str, &str); 3] = [("11", "acme"), ("12", "acme"), ("22", "other")];
const BUSINESSES: [&str; 2] = ["acme", "other"];

/// The number of an update that does not say which: its denials count at both businesses.
const UNKNOWN: &str = "";

/// One update: to which number, in which list, and as it is written.
#[derive(Clone)]
struct Update {
    number: &'static str,
    list: &'static str,
    json: Value,
}

/// The ids of one person, by which updates may name them.
struct Person {
    /// The first is the one that they have at the beginning of the week.
    ids: Vec<String>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One id.
    Single,
    /// A number and a business-scoped id, which most updates name both.
    Double,
    /// One id, and in the week a new number with a new business-scoped id.
    Moving,
}

impl Person {
    fn new(number: usize) -> Self {
        let first = user(number as u64);
        let (kind, others) = match number % 4 {
            1 if first.starts_with("US.") => (Kind::Double, vec![format!("4917{number:08}")]),
            1 => (Kind::Double, vec![format!("US.double{number}")]),
            3 => (Kind::Moving, vec![format!("4918{number:08}"), format!("US.moved{number}")]),
            _ => (Kind::Single, Vec::new()),
        };
        Self { ids: std::iter::once(first).chain(others).collect(), kind }
    }

    /// Those of the ids that one update names. What lifts a denial names both of two ids, and is not
    /// said by somebody who moves: whether it came before the link or after it would matter.
    fn named(&self, rng: &mut Rng) -> Vec<String> {
        match self.kind {
            Kind::Double if rng.percent(75) => self.ids.clone(),
            Kind::Moving if rng.percent(25) => self.ids[1..].to_vec(),
            _ => vec![self.ids[rng.below(self.ids.len())].clone()],
        }
    }
}

/// The fields that name these ids, after their prefix in some list; a number has a field of its own.
fn name_in(json: &mut Value, ids: &[String], number: &str, scoped: &str) {
    for id in ids {
        let field = if id.starts_with("US.") { scoped } else { number };
        json[field] = id.clone().into();
    }
}

struct Week {
    users: usize,
    now: i64,
    model: Model,
    updates: Vec<Update>,
}

/// A moment of the week, in seconds: none that may come to matter or not while the test runs, as
/// the end of a window would.
fn moment(rng: &mut Rng, now: i64) -> i64 {
    let hours = if rng.percent(40) { (1, 21) } else { (26, 7 * 24) };
    let span = usize::try_from((hours.1 - hours.0) * HOUR).unwrap();
    let age = hours.0 * HOUR + i64::try_from(rng.below(span)).unwrap();
    now / 1_000 - age
}

impl Week {
    fn new(count: usize) -> Self {
        let users = (count / EACH).max(2);
        let mut week =
            Self { users, now: wall(), model: Model::new(Rules::default()), updates: Vec::new() };
        let mut rng = Rng::new(7);
        for number in 0..users {
            week.link(&mut rng, &Person::new(number), number);
        }
        for number in 0..count {
            week.happen(&mut rng, number);
        }
        week
    }

    /// Makes up the updates that link the ids of one person, at every business.
    fn link(&mut self, rng: &mut Rng, person: &Person, number: usize) {
        for (phone, business) in NUMBERS {
            let seconds = moment(rng, self.now);
            let mut json = json!({"id": format!("wamid.link.{number}"),
                "timestamp": seconds.to_string(), "type": "image"});
            match person.kind {
                Kind::Single => continue,
                Kind::Double => {
                    name_in(&mut json, &person.ids, "from", "from_user_id");
                    let hello = What::Inbound { text: String::new() };
                    self.tell(person, &person.ids, business, &hello, seconds * 1_000);
                }
                Kind::Moving => {
                    name_in(&mut json, &person.ids[..1], "from", "from_user_id");
                    json["type"] = "system".into();
                    let kinds = ["user_changed_number", "user_changed_user_id"];
                    json["system"] = json!({"type": rng.pick(&kinds), "wa_id": person.ids[1],
                        "user_id": person.ids[2]});
                    if json["from_user_id"].is_string() && rng.percent(50) {
                        json["system"]["previous_user_id"] = json["from_user_id"].take();
                    }
                }
            }
            self.updates.push(Update { number: phone, list: "messages", json });
        }
    }

    /// Tells the model what happened: under the ids that an update names, and what denies under all
    /// ids of the person.
    fn tell(&mut self, person: &Person, named: &[String], business: &str, what: &What, time: i64) {
        let denies = matches!(
            what,
            What::OptOut { .. }
                | What::Platform { stopped: true, .. }
                | What::Failure { code: 131_050, .. }
        );
        for user in if denies { person.ids.as_slice() } else { named } {
            let event = Event {
                user: user.clone(),
                business: business.to_owned(),
                time: Some(time),
                request_id: String::new(),
                what: what.clone(),
            };
            self.model.record(&event, self.now).expect("it is against no rule");
        }
    }

    /// Makes up one update, and tells the model what it says.
    #[allow(clippy::too_many_lines, reason = "it is a list of what may happen")]
    fn happen(&mut self, rng: &mut Rng, number: usize) {
        let (phone, business) = rng.pick(&NUMBERS);
        let known = Some(phone);
        // A resume at the only number of a business is one of an unknown number, too.
        let only = (business == "other").then_some(What::Platform { stopped: false, number: None });
        let person = Person::new(rng.below(self.users));
        let named = person.named(rng);
        // Some seconds are busy: ties must end alike in every order.
        let mut seconds = moment(rng, self.now);
        if rng.percent(20) {
            seconds -= seconds.rem_euclid(600);
        }
        let (first, last) = (seconds * 1_000, seconds * 1_000 + 999);
        let id = format!("wamid.{number}");
        let out = |scope: &str| (What::OptOut { scope: scope.to_owned() }, last);
        let hello = || (What::Inbound { text: String::new() }, first);
        let message = |kind: &str, body: Value| {
            let mut json =
                json!({"id": id, "timestamp": seconds.to_string(), "type": kind, kind: body});
            name_in(&mut json, &named, "from", "from_user_id");
            json
        };
        let text = |said: &str| message("text", json!({"body": said}));
        let preference = |value: &str, ids: &[String]| {
            let mut json = json!({"category": "marketing_messages", "value": value,
                "signup_id": "13176843987434774", "timestamp": seconds});
            name_in(&mut json, ids, "wa_id", "user_id");
            json
        };
        let status = |value: &str, code: i32| {
            let mut json = json!({"id": id, "timestamp": seconds.to_string(), "status": value,
                "errors": [{"code": code}]});
            name_in(&mut json, &named, "recipient_id", "recipient_user_id");
            json
        };
        // What lifts names all ids of the person.
        let lifting = if person.kind == Kind::Double { &person.ids } else { &named };
        let edit = json!({"message": {"type": "text", "text": {"body": "Stop"}}});
        let form = json!({"type": "nfm_reply",
            "nfm_reply": {"response_json": r#"{"flow_token":"STOP","more":["Stop"]}"#}});
        let failed = |code| {
            (
                "statuses",
                status("failed", code),
                vec![(What::Failure { code, number: None }, first)],
            )
        };
        let (to, json, happened): (_, _, Vec<(What, i64)>) = match rng.below(100) {
            0..28 => ("messages", text("Where is my order?"), vec![hello()]),
            28..30 => ("messages", message("edit", edit), vec![out("*")]),
            30..32 => {
                ("messages", message("image", json!({"caption": "STOP!"})), vec![hello(), out("*")])
            }
            32..34 => ("messages", message("interactive", form), vec![hello(), out("*")]),
            34..36 => ("standby", text("stop marketing"), vec![out("marketing")]),
            36..38 => ("standby", text("Where is my order?"), Vec::new()),
            38..39 => ("history", text("stop utility"), vec![out("utility")]),
            39..40 => (
                "messages",
                message("button", json!({"text": "Arrêter les promotions", "payload": "7"})),
                vec![hello(), out("marketing")],
            ),
            40..44 => ("messages", text("STOP"), vec![hello(), out("*")]),
            44..47 => ("messages", text("désabonner!"), vec![hello(), out("*")]),
            47..50 => ("messages", text("stop utility"), vec![hello(), out("utility")]),
            50..54 => (
                "messages",
                message("button", json!({"text": "No more", "payload": "Stop promotions"})),
                vec![hello(), out("marketing")],
            ),
            54..60 => ("messages", message("reaction", json!({"emoji": "x"})), Vec::new()),
            60..64 => (
                "calls",
                {
                    let mut call = json!({"id": id, "timestamp": seconds.to_string(),
                        "event": "connect", "direction": "USER_INITIATED"});
                    name_in(&mut call, &named, "from", "from_user_id");
                    call
                },
                vec![hello()],
            ),
            64..69 => {
                let what = What::Platform { stopped: true, number: known };
                ("user_preferences", preference("stop", &named), vec![(what, last)])
            }
            69..80 if person.kind == Kind::Moving => {
                ("statuses", status("delivered", 0), Vec::new())
            }
            69..74 => {
                let what = What::Platform { stopped: false, number: known };
                let also = only.map(|what| (what, first));
                let said = std::iter::once((what, first)).chain(also).collect();
                ("user_preferences", preference("resume", lifting), said)
            }
            74..80 => {
                let what = What::OptIn {
                    category: "marketing".to_owned(),
                    method: Method::WhatsappSignup(known),
                    pending: false,
                    expire: None,
                };
                let also = only.map(|what| (what, first));
                let said = std::iter::once((what, first)).chain(also).collect();
                ("user_preferences", preference("signup", lifting), said)
            }
            80..85 => failed(131_047),
            85..89 => failed(131_049),
            89..91 => {
                let what = What::Failure { code: 131_050, number: known };
                ("statuses", status("failed", 131_050), vec![(what, last)])
            }
            91..94 => failed(131_026),
            _ => ("statuses", status("delivered", 0), Vec::new()),
        };
        if let [(What::Platform { stopped: true, .. }, time)] = happened[..]
            && rng.percent(15)
        {
            let what = What::Platform { stopped: true, number: None };
            for business in BUSINESSES {
                self.tell(&person, &named, business, &what, time);
            }
            self.updates.push(Update { number: UNKNOWN, list: to, json });
            return;
        }
        for (what, time) in happened {
            let lifts = matches!(what, What::OptIn { .. } | What::Platform { stopped: false, .. });
            self.tell(&person, if lifts { lifting } else { &named }, business, &what, time);
        }
        self.updates.push(Update { number: phone, list: to, json });
    }

    /// The requests of the week: every update once at the least, some more often, and some, after
    /// a week of retries, at the very end.
    fn requests(&self) -> Vec<Vec<u8>> {
        let mut rng = Rng::new(8);
        let (mut sent, mut late) = (Vec::new(), Vec::new());
        for update in &self.updates {
            let chosen = if rng.percent(5) { &mut late } else { &mut sent };
            chosen.push(update.clone());
            while rng.percent(20) {
                let chosen = if rng.percent(20) { &mut late } else { &mut sent };
                chosen.push(update.clone());
            }
        }
        for place in (1..sent.len()).rev() {
            sent.swap(place, rng.below(place + 1));
        }
        let (mut all, mut requests) = ([sent, late].concat(), Vec::new());
        while !all.is_empty() {
            let rest = all.split_off((1 + rng.below(REQUEST)).min(all.len()));
            requests.push(payload(&std::mem::replace(&mut all, rest)));
        }
        requests
    }

    fn updates_of(&self, user: &str) -> Vec<String> {
        let updates = self.updates.iter().map(|update| update.json.to_string());
        updates.filter(|update| update.contains(user)).collect()
    }

    /// Asks about every user and category, in both forms, and compares with the model.
    async fn assert_agrees(&self, sidecar: &Sidecar) {
        let mut checks = sidecar.checks().await;
        let mut seen = BTreeMap::new();
        let forms = [
            (Form::Template, pb::MessageForm::Template),
            (Form::FreeForm, pb::MessageForm::FreeForm),
        ];
        let people = (0..self.users).map(|number| (number, Person::new(number)));
        let ids = people.flat_map(|(number, person)| {
            person.ids.into_iter().map(move |user| (number, user)).collect::<Vec<_>>()
        });
        for (number, user) in ids {
            let asked = BUSINESSES.iter().flat_map(|business| {
                let forms = move |category| forms.map(|form| (*business, category, form));
                CATEGORIES.iter().flat_map(forms)
            });
            let asked: Vec<_> = asked.collect();
            let requests = asked.iter().map(|(business, category, (_, form))| {
                let form = (*form).into();
                pb::CanSendRequest { form, ..question(&user, business, category) }
            });
            let request = pb::BatchCanSendRequest { requests: requests.collect() };
            let results = checks.batch_can_send(request).await.unwrap().into_inner().results;
            assert_eq!(results.len(), asked.len());
            for ((business, category, (form, _)), result) in asked.iter().zip(results) {
                let live = TableState::Live;
                let expected =
                    self.model.can_send(&user, business, category, *form, self.now, live).unwrap();
                let Some(pb::batch_can_send_result::Result::Response(got)) = result.result else {
                    panic!("{result:?}")
                };
                assert_eq!(
                    (got.allowed, got.reason),
                    (expected.allowed, expected.reason.number()),
                    "{category} {form:?} of user {number} at {business}: {:#?}",
                    self.updates_of(&user)
                );
                *seen.entry(got.reason).or_insert(0) += 1;
            }
        }
        assert!(seen.len() >= 8, "the week has a bit of everything: {seen:?}");
    }
}

/// A request of these updates: a change for each number and list, as the platform groups them.
fn payload(updates: &[Update]) -> Vec<u8> {
    let mut changes: BTreeMap<(&str, &str), Vec<Value>> = BTreeMap::new();
    for update in updates {
        changes.entry((update.number, update.list)).or_default().push(update.json.clone());
    }
    let changes = changes.into_iter().map(|((number, list), items)| {
        let field = if list == "statuses" { "messages" } else { list };
        let (name, lists) = match list {
            "standby" => ("standby", json!({"messages": items})),
            "history" => ("history", json!([{"threads": threads(&items)}])),
            list => (list, items.into()),
        };
        json!({"field": field, "value": {"messaging_product": "whatsapp",
            "metadata": {"phone_number_id": number}, name: lists}})
    });
    let changes: Vec<_> = changes.collect();
    let payload = json!({"object": "whatsapp_business_account",
        "entry": [{"id": "1", "changes": changes}]});
    payload.to_string().into_bytes()
}

/// A thread for each message of a history, with something that the business wrote.
fn threads(messages: &[Value]) -> Value {
    let threads = messages.iter().map(|message| {
        let from = ["from", "from_user_id"].iter().find_map(|field| message[field].as_str());
        let own = json!({"from": "15550783881", "id": "wamid.own", "type": "text",
            "timestamp": message["timestamp"], "text": {"body": "STOP"}});
        json!({"id": from, "messages": [own, message]})
    });
    threads.collect()
}

/// Sends what is left, one request after the other, each until it is recorded.
async fn sender(
    requests: Arc<Vec<Vec<u8>>>,
    next: Arc<AtomicUsize>,
    addresses: [String; 2],
    mut rng: Rng,
) {
    while let Some(body) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
        // Again means to either, and at times although it was recorded.
        let recorded = async {
            loop {
                match deliver(&rng.pick(&addresses), body).await {
                    200 if rng.percent(95) => return,
                    200 => {}
                    503 => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                    status => panic!("{status}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE * 4, recorded).await.expect("it is recorded in the end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_week_ends_as_the_model_says() {
    let count = std::env::var(VARIABLE).map_or(UPDATES, |count| count.parse().unwrap());
    let week = Week::new(count);
    let requests = Arc::new(week.requests());
    let (mut redis, ledger) = redis(&["--appendonly", "yes", "--appendfsync", "always"]);
    let numbers = NUMBERS.map(|(number, business)| (number.to_owned(), business.to_owned()));
    let files = Files::new(&numbers);
    let sidecar = files.serve(&ledger, &["--record", "127.0.0.1:0"]).await;
    let receiver = files.receive(&ledger);
    let next = Arc::new(AtomicUsize::new(0));
    let mut senders = JoinSet::new();
    for seed in 0..SENDERS {
        let addresses = [sidecar.webhook.clone(), receiver.webhook.clone()];
        let (requests, next) = (Arc::clone(&requests), Arc::clone(&next));
        senders.spawn(sender(requests, next, addresses, Rng::new(seed as u64)));
    }
    for part in 1..=2 {
        while next.load(Ordering::Relaxed) < requests.len() * part / 3 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        redis.kill();
        redis.start_again();
    }
    while let Some(sent) = senders.join_next().await {
        sent.unwrap();
    }
    // All that was acknowledged is in the ledger; the table has it once it is where that ends.
    let end = {
        let mut records = sidecar.records().await;
        let stream = records.record_events(futures_util::stream::empty()).await.unwrap();
        let revision = stream.metadata().get("consentd-revision").unwrap();
        revision.to_str().unwrap().parse::<u64>().unwrap()
    };
    let caught_up = "the table holds all of it";
    eventually(caught_up, || async {
        let status = crate::faults::stage::status(&sidecar).await;
        status.phase() == pb::get_status_response::Phase::Live && status.revision >= end
    })
    .await;
    week.assert_agrees(&sidecar).await;
}
