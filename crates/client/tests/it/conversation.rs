//! The conversation that the clients of all languages pass: `clients/conversation.json`.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use consentd_client::testing::Sidecar;
use consentd_client::{Client, Error, Event, Form, OptInMethod, Question, Recorded, Verdict, pb};
use pb::consent_event::What;
use serde_json::{Value, json};
use tonic::Code;

use crate::fixture::{PATIENCE, binary};

#[tokio::test]
async fn every_case_passes_with_and_without_coalescing() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../clients/conversation.json");
    let conversation: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("the conversation")).unwrap();
    let flags: Vec<_> = conversation["serve"].as_array().unwrap().iter().collect();
    let folder = std::env::temp_dir().join(format!("consentd-conversation-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let flags: Vec<_> = flags
        .iter()
        .map(|flag| flag.as_str().unwrap().replace("{folder}", folder.to_str().unwrap()))
        .collect();
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let sidecar = Sidecar::start_binary(binary(), &flags).await.expect("a sidecar");
    let socket = format!("unix:{}", folder.join("consentd.sock").display());

    let rounds = [(true, sidecar.address()), (false, sidecar.address()), (true, &socket)];
    for (round, (coalesce, address)) in rounds.into_iter().enumerate() {
        let client = Client::builder().address(address).coalesce(coalesce).deadline(PATIENCE);
        let client = client.build().unwrap();
        for (number, case) in conversation["cases"].as_array().unwrap().iter().enumerate() {
            let business = conversation["business"].as_str().unwrap();
            let number = 100_000 + 1_000 * round + number;
            let mut tried = Case::new(&client, business, case, number, coalesce);
            Box::pin(tried.run(case)).await;
        }
    }
    drop(sidecar);
    std::fs::remove_dir_all(folder).unwrap();
}

struct Case<'c> {
    client: &'c Client,
    business: &'c str,
    name: &'c str,
    number: String,
    user: String,
    /// The revision of the latest answer to a record.
    revision: u64,
    /// Whether several questions at once become a batch.
    coalesce: bool,
}

impl<'c> Case<'c> {
    fn new(
        client: &'c Client,
        business: &'c str,
        case: &'c Value,
        number: usize,
        coalesce: bool,
    ) -> Self {
        let number = number.to_string();
        let user = if case["country_is_blocked"] == true {
            format!("1555{number}0")
        } else {
            format!("4477009{number}")
        };
        let name = case["name"].as_str().unwrap();
        Self { client, business, name, number, user, revision: 0, coalesce }
    }

    async fn run(&mut self, case: &Value) {
        for step in case["steps"].as_array().unwrap() {
            let step = self.filled(step);
            if step["record"].is_object() {
                self.record(&step).await;
            } else {
                Box::pin(self.check(&step)).await;
            }
        }
    }

    /// A step with what stands for values replaced.
    fn filled(&self, step: &Value) -> Value {
        let hour_ago = rfc3339(SystemTime::now() - Duration::from_hours(1));
        let text = step.to_string();
        let text = text.replace("{user}", &self.user).replace("{n}", &self.number);
        serde_json::from_str(&text.replace("{now-1h}", &hour_ago)).unwrap()
    }

    async fn record(&mut self, step: &Value) {
        let user = step["user"].as_str().unwrap_or(&self.user);
        let mut event = Event::from(pb::ConsentEvent {
            user_id: user.to_owned(),
            business_id: self.business.to_owned(),
            event_time: None,
            what: Some(what(&step["record"])),
        });
        if let Some(at) = step["at"].as_i64() {
            let ago = Duration::from_millis(u64::try_from(-at).unwrap());
            event = event.at(SystemTime::now() - ago);
        }
        if let Some(id) = step["request_id"].as_str() {
            event = event.request_id(id);
        }
        let recorded = self.client.record(event).await;
        let said = record_said(&recorded);
        if step["expect"]["error"].is_null() {
            self.revision =
                recorded.unwrap_or_else(|error| panic!("{}: {error}", self.name)).revision();
        }
        self.expect(&step["expect"], &said);
    }

    async fn check(&self, step: &Value) {
        let asked = &step["check"];
        let text = |field: &str, default: &str| asked[field].as_str().unwrap_or(default).to_owned();
        let mut question = Question::new(
            text("user", &self.user),
            text("business", self.business),
            text("category", ""),
        );
        question = match asked["form"].as_str() {
            Some("TEMPLATE") => question.form(Form::Template),
            Some("FREE_FORM") => question.form(Form::FreeForm),
            other => {
                assert_eq!(other, None);
                question
            }
        };
        let template = &asked["template"];
        if template.is_object() {
            let part = |name: &str| template[name].as_str().unwrap();
            question = question.template(part("name"), part("language"));
        } else if !self.coalesce {
            question = question.min_revision(self.revision);
        }
        let started = Instant::now();
        loop {
            // A question with min_revision goes by itself. Without one, the second and third of these become a batch:
            // this sidecar has recorded the event, and so enforces it already.
            let ask = || self.client.may_send(question.clone());
            let (first, second, third) = tokio::join!(ask(), ask(), ask());
            let [said, second, third] = [first, second, third].map(|verdict| check_said(&verdict));
            if !template.is_object() {
                assert_eq!((&said, &said), (&second, &third), "{}", self.name);
            }
            let is_as_expected = fits(&step["expect"], &said);
            if !template.is_object() || is_as_expected || started.elapsed() > PATIENCE {
                return self.expect(&step["expect"], &said);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn expect(&self, expected: &Value, said: &Value) {
        assert!(fits(expected, said), "{}: {said} is not {expected}", self.name);
    }
}

fn fits(expected: &Value, said: &Value) -> bool {
    let Some(expected) = expected.as_object() else { return true };
    expected.iter().all(|(field, value)| match field.as_str() {
        "cause_contains" => said["cause"].as_str().unwrap().contains(value.as_str().unwrap()),
        _ => &said[field] == value,
    })
}

fn record_said(recorded: &Result<Recorded, Error>) -> Value {
    match recorded {
        Ok(recorded) => json!({
            "applied": recorded.is_applied(),
            "opted_out_scope": recorded.opted_out_scope(),
            "opted_in_category": recorded.opted_in_category(),
            "matched_keyword": recorded.matched_keyword(),
        }),
        Err(error) => {
            let mut fields: Vec<_> =
                error.violations().iter().map(|violation| &violation.field).collect();
            fields.dedup();
            json!({ "error": error.code_name(), "fields": fields })
        }
    }
}

fn check_said(verdict: &Verdict) -> Value {
    json!({
        "allowed": verdict.is_allowed(),
        "reason": verdict.reason(),
        "invalid": verdict.is_invalid(),
        "unavailable": verdict.is_unavailable(),
        "code": verdict.error().map(Error::code_name),
        "field": verdict.field(),
        "cause": verdict.cause(),
    })
}

/// An event as proto3 JSON has it, as far as the conversation needs.
fn what(event: &Value) -> What {
    let (name, event) = event.as_object().unwrap().iter().next().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match name.as_str() {
        "opt_in" => {
            let evidence = &event["evidence"];
            let method = text(&evidence["method"]);
            What::OptIn(pb::OptIn {
                category: text(&event["category"]),
                evidence: Some(pb::Evidence {
                    method: OptInMethod::from_str_name(&method).unwrap().into(),
                    statement: text(&evidence["statement"]),
                    business_name: text(&evidence["business_name"]),
                    locale: text(&evidence["locale"]),
                    ..Default::default()
                }),
                expire_time: event["expire_time"].as_str().map(|time| time.parse().unwrap()),
                pending: event["pending"] == true,
            })
        }
        "opt_out" => {
            What::OptOut(pb::OptOut { scope: text(&event["scope"]), ..Default::default() })
        }
        "inbound_message" => What::InboundMessage(pb::InboundMessage {
            text: text(&event["text"]),
            ..Default::default()
        }),
        "platform_preference" => What::PlatformPreference(pb::PlatformPreference {
            marketing_stopped: event["marketing_stopped"] == true,
            ..Default::default()
        }),
        "delivery_failure" => What::DeliveryFailure(pb::DeliveryFailure {
            code: event["code"].as_i64().unwrap().try_into().unwrap(),
            ..Default::default()
        }),
        "suppression" => What::Suppression(pb::Suppression {
            suppressed: event["suppressed"] == true,
            ..Default::default()
        }),
        "template_category" => What::TemplateCategory(pb::TemplateCategory {
            category: text(&event["category"]),
            ..Default::default()
        }),
        other => panic!("an event of another kind: {other}"),
    }
}

fn rfc3339(time: SystemTime) -> String {
    prost_types::Timestamp::from(time).to_string()
}

#[tokio::test]
async fn a_question_with_an_old_revision_and_one_that_never_comes() {
    let sidecar = crate::fixture::sidecar(&[]).await;
    let client = crate::fixture::patient(sidecar.address());
    let recorded = client.record(crate::fixture::opt_in("u")).await.unwrap();
    let question = crate::fixture::question("u").min_revision(recorded.revision());
    assert!(client.may_send(question.clone()).await.is_allowed());
    let never = question.min_revision(u64::MAX).deadline(Duration::from_millis(200));
    let verdict = client.may_send(never).await;
    assert_eq!(verdict.code(), Some(Code::DeadlineExceeded), "{verdict}");
}
