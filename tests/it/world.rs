//! Events of many pairs as rows of a file, and the model that heard of them.

use std::time::{SystemTime, UNIX_EPOCH};

use consentd::grpc::pb::record_service_client::RecordServiceClient;
use consentd::grpc::{DESCRIPTOR_SET, pb};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};

use tonic::transport::Channel;

use crate::model::{CATEGORIES, Event, Form, Method, Model, Rng, Rules, TableState, What, history};
use crate::sidecar::{self, Sidecar, question};

fn descriptor() -> MessageDescriptor {
    let pool = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
    pool.get_message_by_name("consent.v1.ConsentEvent").unwrap()
}

/// An event as one line of proto3 JSON.
fn line(descriptor: &MessageDescriptor, event: &pb::ConsentEvent) -> String {
    let mut message = DynamicMessage::new(descriptor.clone());
    message.transcode_from(event).unwrap();
    let mut json = serde_json::Serializer::new(Vec::new());
    message.serialize_with_options(&mut json, &SerializeOptions::new()).unwrap();
    String::from_utf8(json.into_inner()).unwrap()
}

/// Events of many pairs, mixed, and the model that heard of them in the same order.
pub struct World {
    pub users: Vec<String>,
    /// Lines of NDJSON.
    pub rows: Vec<String>,
    model: Model,
    /// How many of the rows are refused.
    pub rejected: u64,
    now: i64,
}

/// Events of so many pairs.
pub fn world(users: u64) -> World {
    let now = wall();
    let descriptor = descriptor();
    let mut rng = Rng::new(users);
    let mut histories: Vec<Vec<Event>> = (0..users)
        .map(|seed| {
            let mut events = history(&mut rng, &user(seed), "acme", now, false);
            // What has no time, or is ahead, gets the clock's, which the model cannot know; and of
            // an opt-in that had lapsed when it was given the rules say nothing.
            events.retain(|event| {
                let lapsed = |time| match &event.what {
                    What::OptIn { expire: Some(expire), .. } => *expire <= time,
                    _ => false,
                };
                event.time.is_some_and(|time| time <= now && !lapsed(time))
            });
            events.reverse();
            events
        })
        .collect();
    let mut model = Model::new(Rules::default());
    let (mut rows, mut rejected) = (Vec::new(), 0);
    while !histories.is_empty() {
        let place = rng.below(histories.len());
        let Some(mut event) = histories[place].pop() else {
            histories.swap_remove(place);
            continue;
        };
        event.request_id.clear(); // A row has none.
        rejected += u64::from(model.record(&event, now).is_err());
        rows.push(line(&descriptor, &on_wire(&event).event.unwrap()));
    }
    World { users: (0..users).map(user).collect(), rows, model, rejected, now }
}

impl World {
    fn rows_of(&self, user: &str) -> Vec<&String> {
        self.rows.iter().filter(|row| row.contains(user)).collect()
    }

    /// Asks about every pair and category, in every form, and compares with the model.
    pub async fn assert_agrees(&self, sidecar: &Sidecar) {
        let mut checks = sidecar.checks().await;
        let forms = [
            (Form::Template, pb::MessageForm::Template),
            (Form::FreeForm, pb::MessageForm::FreeForm),
        ];
        for users in self.users.chunks(40) {
            let ask = |user: &String| {
                let user = user.clone();
                CATEGORIES.iter().flat_map(move |category| {
                    let user = user.clone();
                    forms.map(move |(form, on_wire)| (user.clone(), *category, form, on_wire))
                })
            };
            let asked: Vec<_> = users.iter().flat_map(ask).collect();
            let requests = asked.iter().map(|(user, category, _, form)| pb::CanSendRequest {
                form: (*form).into(),
                ..question(user, "acme", category)
            });
            let request = pb::BatchCanSendRequest { requests: requests.collect() };
            let results = checks.batch_can_send(request).await.unwrap().into_inner().results;
            assert_eq!(results.len(), asked.len());
            for ((user, category, form, _), result) in asked.iter().zip(results) {
                let live = TableState::Live;
                let expected =
                    self.model.can_send(user, "acme", category, *form, self.now, live).unwrap();
                let Some(pb::batch_can_send_result::Result::Response(got)) = result.result else {
                    panic!("{user} {category}: {result:?}")
                };
                let got = (got.allowed, got.reason);
                let expected = (expected.allowed, expected.reason.number());
                assert_eq!(got, expected, "{category} {form:?}: {:#?}", self.rows_of(user));
            }
        }
    }
}

/// Records all that happened, in its order.
pub async fn record_all(world: &World, records: &mut RecordServiceClient<Channel>) {
    let descriptor = descriptor();
    let parse = |row: &String| -> pb::ConsentEvent {
        let mut json = serde_json::Deserializer::from_str(row);
        let event = DynamicMessage::deserialize(descriptor.clone(), &mut json).unwrap();
        event.transcode_to().unwrap()
    };
    let requests: Vec<_> = world
        .rows
        .iter()
        .map(|row| pb::RecordEventsRequest { event: Some(parse(row)), ..Default::default() })
        .collect();
    let mut answers =
        records.record_events(tokio_stream::iter(requests)).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
}

/// A user of every kind: numbers of four countries, three of which have two notations, and ids
/// that are none.
pub fn user(seed: u64) -> String {
    match seed % 16 {
        0 => format!("1555{seed:07}"),
        1 => format!("5255{seed:08}"),
        2 => format!("5411{seed:08}"),
        3 => format!("55118{seed:07}"),
        _ => format!("US.{seed}"),
    }
}

pub fn on_wire(event: &Event) -> pb::RecordEventRequest {
    let what = match &event.what {
        What::OptIn { category, method, pending, expire } => {
            let pb::consent_event::What::OptIn(mut opt_in) = sidecar::opt_in(category) else {
                unreachable!("an opt-in is one");
            };
            if let Method::WhatsappSignup(number) = method {
                opt_in.evidence = Some(pb::Evidence {
                    method: pb::OptInMethod::WhatsappSignup.into(),
                    reference: "13176843987434774".into(),
                    phone_number_id: number.unwrap_or_default().into(),
                    ..pb::Evidence::default()
                });
            }
            opt_in.pending = *pending;
            opt_in.expire_time = expire.map(timestamp);
            pb::consent_event::What::OptIn(opt_in)
        }
        What::OptOut { scope } => sidecar::opt_out(scope),
        What::Inbound { text } => sidecar::inbound(text),
        What::Platform { stopped, number } => {
            pb::consent_event::What::PlatformPreference(pb::PlatformPreference {
                marketing_stopped: *stopped,
                phone_number_id: number.unwrap_or_default().into(),
            })
        }
        What::Failure { code, number } => {
            pb::consent_event::What::DeliveryFailure(pb::DeliveryFailure {
                code: *code,
                phone_number_id: number.unwrap_or_default().into(),
            })
        }
        What::Suppress { suppressed } => pb::consent_event::What::Suppression(pb::Suppression {
            suppressed: *suppressed,
            reference: String::new(),
        }),
    };
    let mut request = sidecar::event(&event.user, &event.business, what);
    request.event.as_mut().unwrap().event_time = event.time.map(timestamp);
    request.request_id.clone_from(&event.request_id);
    request
}

pub fn wall() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is set");
    i64::try_from(since.as_millis()).unwrap()
}

fn timestamp(millis: i64) -> prost_types::Timestamp {
    let nanos = i32::try_from(millis.rem_euclid(1_000) * 1_000_000).unwrap();
    prost_types::Timestamp { seconds: millis.div_euclid(1_000), nanos }
}

pub fn millis(time: prost_types::Timestamp) -> i64 {
    time.seconds * 1_000 + i64::from(time.nanos / 1_000_000)
}

/// How many events a sidecar was asked to record since it was started.
pub async fn records(sidecar: &Sidecar) -> u64 {
    let (_, text) = sidecar.get("/metrics").await;
    let counts = text.lines().filter_map(|line| line.strip_prefix("consent_records_total{"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}
