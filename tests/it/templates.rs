//! Templates: what is known of their categories decides with the caller's word. On both ledgers.

mod kept;
mod model;

use std::time::Duration;

use consentd::grpc::pb;
use consentd::grpc::pb::batch_can_send_result::Result as Item;
use consentd::grpc::pb::consent_event::What;
use consentd::grpc::pb::watch_consents_response::What as Watched;
use consentd::grpc::pb::{Reason, TemplateCategory, TemplateRestriction};
use serde_json::Value as Json;
use tonic::Code;

use self::model::{Said, class_that_decides};
use crate::faults::redis::Redis;
use crate::faults::stage::{metric, serve};
use crate::rng::Rng;
use crate::sidecar::{Sidecar, ago, event, eventually, opt_in, opt_out, question, run};
use crate::webhook::client::{ACCOUNT, Files, acme, deliver, file, fixture, redis};
use crate::world::wall;

/// A person who opted in to utility, and to no marketing.
const PERSON: &str = "15550123456";
/// The template of the fixtures.
const UPDATE: (&str, &str) = ("order_update", "en_US");

fn template((name, language): (&str, &str)) -> pb::Template {
    pb::Template { name: name.into(), language: language.into() }
}

fn about(user: &str, category: &str, named: (&str, &str)) -> pb::CanSendRequest {
    pb::CanSendRequest { template: Some(template(named)), ..question(user, "acme", category) }
}

/// The reason of an answer, and the category that decided.
fn verdict(answer: &pb::CanSendResponse) -> (Reason, &str) {
    assert_eq!(answer.allowed, (1..=9).contains(&answer.reason));
    (answer.reason(), &answer.category_used)
}

async fn ask(sidecar: &Sidecar, request: &pb::CanSendRequest) -> pb::CanSendResponse {
    sidecar.checks().await.can_send(request.clone()).await.expect("an answer").into_inner()
}

/// Waits until a sidecar answers so.
async fn answers(sidecar: &Sidecar, request: &pb::CanSendRequest, so: (Reason, &str)) {
    let what = format!("{so:?}");
    eventually(&what, || async { verdict(&ask(sidecar, request).await) == so }).await;
}

async fn record(sidecar: &Sidecar, request: pb::RecordEventRequest) -> pb::RecordEventResponse {
    sidecar.records().await.record_event(request).await.expect("it is recorded").into_inner()
}

/// An event that happened then.
fn then(mut request: pb::RecordEventRequest, millis: i64) -> pb::RecordEventRequest {
    let nanos = i32::try_from(millis.rem_euclid(1_000) * 1_000_000).unwrap();
    let seconds = millis.div_euclid(1_000);
    request.event.as_mut().unwrap().event_time = Some(prost_types::Timestamp { seconds, nanos });
    request
}

fn category(name: &str, class: &str) -> pb::RecordEventRequest {
    let category = TemplateCategory { category: class.into(), ..Default::default() };
    event(&format!("template:{name}:en"), "acme", What::TemplateCategory(category))
}

fn restriction(restricted: bool, until: Option<i64>) -> pb::RecordEventRequest {
    let until_time = until.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 });
    let account = TemplateRestriction { restricted, until_time, ..Default::default() };
    event("template:*", "acme", What::TemplateRestriction(account))
}

async fn opt_in_to(sidecar: &Sidecar, user: &str, category: &str) {
    let mut given = event(user, "acme", opt_in(category));
    given.event.as_mut().unwrap().event_time = Some(ago(Duration::from_hours(1)));
    assert!(record(sidecar, given).await.applied);
}

/// Sidecars of both ledgers that receive webhooks.
async fn receivers(files: &Files) -> (Sidecar, Sidecar, Redis, String) {
    let on_file = files.serve(&file(files.folder.path()), &[]).await;
    let (server, ledger) = redis(&[]);
    let on_redis = files.serve(&ledger, &["--record", "127.0.0.1:0"]).await;
    (on_file, on_redis, server, ledger)
}

#[tokio::test]
async fn template_moved_to_marketing_denies_on_another_sidecar_and_prove_shows_why() {
    let files = Files::new(&acme());
    let (server, ledger) = redis(&[]);
    let receiver = files.serve(&ledger, &["--record", "127.0.0.1:0"]).await;
    let other = serve(&ledger, &[], &[]);
    other.wait_until_live().await;
    opt_in_to(&receiver, PERSON, "utility").await;
    let sent = about(PERSON, "utility", UPDATE);
    // Nothing is known of the template: the category that was asked for decides.
    answers(&other, &sent, (Reason::OptedIn, "utility")).await;
    // An announcement changes nothing.
    let announced = fixture("template_category_announced", ACCOUNT);
    assert_eq!(deliver(&receiver.webhook, &announced).await, 200);
    assert_eq!(verdict(&ask(&receiver, &sent).await), (Reason::OptedIn, "utility"));
    // The ledger's times are whole milliseconds: the move must have a later one than what was before.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let moved = fixture("template_category_marketing", ACCOUNT);
    assert_eq!(deliver(&receiver.webhook, &moved).await, 200);
    assert_eq!(verdict(&ask(&receiver, &sent).await), (Reason::NoConsent, "marketing"));
    answers(&other, &sent, (Reason::NoConsent, "marketing")).await;
    // Without the template, in another language and at another business the caller's word counts.
    let plain = question(PERSON, "acme", "utility");
    assert_eq!(verdict(&ask(&other, &plain).await), (Reason::OptedIn, ""));
    let french = about(PERSON, "utility", ("order_update", "fr"));
    assert_eq!(verdict(&ask(&other, &french).await), (Reason::OptedIn, "utility"));

    proven(&receiver);

    // It is moved back, which the platform may send again.
    let back = fixture("template_category_utility", ACCOUNT);
    for _ in 0..2 {
        assert_eq!(deliver(&receiver.webhook, &back).await, 200);
        assert_eq!(deliver(&receiver.webhook, &moved).await, 200);
        answers(&other, &sent, (Reason::OptedIn, "utility")).await;
    }
    drop(server);
}

/// What `prove` says of the template now, and just before its move was recorded.
fn proven(sidecar: &Sidecar) {
    let prove = |more: &[&str]| {
        let named = ["--template", UPDATE.0, "--language", UPDATE.1, "--category", "utility"];
        let flags = [&["prove", PERSON, "acme", "--addr", &sidecar.record], &named[..], more];
        let (code, printed, error) = run(&flags.concat());
        assert_eq!(code, 0, "{printed}{error}");
        printed
    };
    let now = prove(&[]);
    for part in [
        "template   denied: NO_CONSENT",
        "decided as marketing",
        "template:order_update:en_US",
        "for template:order_update:en_US, by #1: template is marketing [template_category_update]",
        "chain checked: intact",
    ] {
        assert!(now.contains(part), "{now} has no {part}");
    }
    let json: Json = serde_json::from_str(&prove(&["--json"])).unwrap();
    let answer = &json["answers"][0];
    assert_eq!(answer["categoryUsed"], "marketing", "{json}");
    assert_eq!(answer["template"]["reason"], "NO_CONSENT");
    assert_eq!(
        answer["usedBecause"][0],
        serde_json::json!({"of": "template:order_update:en_US", "number": 1})
    );
    let known = json["categoryRules"][0]["known"].as_array().unwrap();
    assert_eq!(known.len(), 1);
    // The ledger's own time of the move: this machine's clock may be milliseconds off it.
    let recorded = humantime::parse_rfc3339(known[0]["recordTime"].as_str().unwrap()).unwrap();
    let before = humantime::format_rfc3339_millis(recorded - Duration::from_millis(1));
    let then = prove(&["--at", &before.to_string()]);
    assert!(then.contains("template   allowed: OPTED_IN"), "{then}");
    assert!(then.contains("decided as utility"), "{then}");
}

#[tokio::test]
async fn restricted_account_counts_all_utility_as_marketing_until_its_end() {
    let files = Files::new(&acme());
    let (on_file, on_redis, _server, _) = receivers(&files).await;
    for sidecar in [&on_file, &on_redis] {
        opt_in_to(sidecar, PERSON, "utility").await;
        opt_in_to(sidecar, PERSON, "authentication").await;
        let sent = about(PERSON, "utility", ("any", "en"));
        // What does not concern templates restricts none.
        for other in ["account_restriction_other", "account_terms_signed"] {
            assert_eq!(deliver(&sidecar.webhook, &fixture(other, ACCOUNT)).await, 200);
            assert_eq!(
                verdict(&ask(sidecar, &sent).await),
                (Reason::OptedIn, "utility"),
                "{other}"
            );
        }
        let restricted = fixture("account_restriction", ACCOUNT);
        assert_eq!(deliver(&sidecar.webhook, &restricted).await, 200);
        answers(sidecar, &sent, (Reason::NoConsent, "marketing")).await;
        let code = about(PERSON, "authentication", ("any", "en"));
        assert_eq!(verdict(&ask(sidecar, &code).await), (Reason::OptedIn, "authentication"));
        let plain = question(PERSON, "acme", "utility");
        assert_eq!(verdict(&ask(sidecar, &plain).await), (Reason::OptedIn, ""));
        // The operator lifts it, and another one is over by now.
        let (code, _, said) = run(&[
            "template",
            "restrict",
            "--lift",
            "--business",
            "acme",
            "--addr",
            &sidecar.record,
        ]);
        assert_eq!(code, 0, "{said}");
        answers(sidecar, &sent, (Reason::OptedIn, "utility")).await;
        let over =
            String::from_utf8(restricted.clone()).unwrap().replace("4102444800", "1760600000");
        assert_eq!(deliver(&sidecar.webhook, over.as_bytes()).await, 200);
        assert_eq!(verdict(&ask(sidecar, &sent).await), (Reason::OptedIn, "utility"));
        // One whose end cannot be read stands until it is lifted.
        let now = format!("\"time\": {}", wall() / 1_000);
        let endless = String::from_utf8(restricted.clone()).unwrap();
        let endless =
            endless.replace("4102444800", "\"soon\"").replace("\"time\": 1760000300", &now);
        assert_eq!(deliver(&sidecar.webhook, endless.as_bytes()).await, 200);
        answers(sidecar, &sent, (Reason::NoConsent, "marketing")).await;
        let listed = run(&["template", "list", "--business", "acme", "--addr", &sidecar.record]);
        assert!(
            listed.1.contains("all utility counts as marketing, until it is lifted"),
            "{listed:?}"
        );
    }
}

#[tokio::test]
async fn stricter_category_decides_in_every_kind_of_check_and_opt_outs_of_the_asked_one_deny() {
    let files = Files::new(&acme());
    let (on_file, on_redis, _server, _) = receivers(&files).await;
    for sidecar in [&on_file, &on_redis] {
        for (user, scope) in
            [("US.both", "marketing"), ("US.both", "utility"), ("US.utility", "utility")]
        {
            opt_in_to(sidecar, user, scope).await;
        }
        opt_in_to(sidecar, "US.topic", "marketing").await;
        record(sidecar, event("US.topic", "acme", opt_out("utility.orders"))).await;
        record(sidecar, then(category("sale", "marketing"), wall() - 9_000)).await;
        record(sidecar, then(category("order", "utility"), wall() - 9_000)).await;
        record(sidecar, then(category("code", "authentication"), wall() - 9_000)).await;
        let cases = [
            ("US.both", "utility", "sale", Reason::OptedIn, "marketing"),
            ("US.utility", "utility", "sale", Reason::NoConsent, "marketing"),
            ("US.utility", "utility.orders", "sale", Reason::NoConsent, "marketing"),
            ("US.utility", "utility.orders", "order", Reason::OptedIn, "utility.orders"),
            // The asked one is stricter.
            ("US.utility", "marketing", "order", Reason::NoConsent, "marketing"),
            ("US.both", "marketing.news", "order", Reason::OptedIn, "marketing.news"),
            ("US.utility", "authentication", "order", Reason::OptedIn, "utility"),
            ("US.utility", "service", "order", Reason::OptedIn, "utility"),
            ("US.utility", "utility", "code", Reason::OptedIn, "utility"),
            ("US.utility", "service", "code", Reason::NoConsent, "authentication"),
            // Opted in to marketing, and out of what the message is about.
            ("US.topic", "utility.orders", "sale", Reason::OptedOut, "marketing"),
            ("US.topic", "utility", "sale", Reason::OptedIn, "marketing"),
            ("US.utility", "utility", "unknown", Reason::OptedIn, "utility"),
        ];
        let requests: Vec<_> =
            cases.iter().map(|(user, asked, name, ..)| about(user, asked, (name, "en"))).collect();
        // With those that name none between them.
        let plain = question("US.utility", "acme", "utility");
        let mixed: Vec<_> = requests.iter().flat_map(|one| [one.clone(), plain.clone()]).collect();
        let mut checks = sidecar.checks().await;
        let batch = pb::BatchCanSendRequest { requests: mixed.clone() };
        let batch = checks.batch_can_send(batch).await.unwrap().into_inner().results;
        let asked = mixed.into_iter().enumerate().map(|(sequence, request)| {
            let sequence = u64::try_from(sequence).unwrap();
            pb::StreamCanSendRequest { sequence, request: Some(request) }
        });
        let asked: Vec<_> = asked.collect();
        let streamed = checks.stream_can_send(tokio_stream::iter(asked)).await.unwrap();
        let mut streamed = streamed.into_inner();
        let mut of_stream = vec![None; batch.len()];
        while let Some(answer) = streamed.message().await.unwrap() {
            of_stream[usize::try_from(answer.sequence).unwrap()] = answer.result.unwrap().result;
        }
        for (place, (user, asked, name, reason, used)) in cases.into_iter().enumerate() {
            let single = ask(sidecar, &requests[place]).await;
            assert_eq!(verdict(&single), (reason, used), "{user} {asked} {name}");
            for item in [&batch[2 * place].result, &of_stream[2 * place]] {
                let Some(Item::Response(answer)) = item else { panic!("{item:?}") };
                assert_eq!(verdict(answer), (reason, used), "{user} {asked} {name}");
            }
            for item in [&batch[2 * place + 1].result, &of_stream[2 * place + 1]] {
                let Some(Item::Response(answer)) = item else { panic!("{item:?}") };
                assert_eq!(verdict(answer), (Reason::OptedIn, ""));
            }
            let campaign = pb::FilterRecipientsRequest {
                business_id: "acme".into(),
                category: asked.into(),
                form: pb::MessageForm::Template.into(),
                user_ids: vec![user.into()],
                template: Some(template((name, "en"))),
            };
            let filtered = checks.filter_recipients(tokio_stream::iter([campaign])).await.unwrap();
            let filtered = filtered.into_inner().message().await.unwrap().unwrap();
            assert_eq!((filtered.reasons[0], &*filtered.category_used), (reason.into(), used));
        }
    }
}

#[tokio::test]
async fn template_is_no_person_and_a_person_is_no_template() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let (mut checks, mut records) = (sidecar.checks().await, sidecar.records().await);
    let subject = "template:order:en";
    let refused = |status: tonic::Status, field: &str| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(field), "{}", status.message());
    };
    for what in [opt_in("utility"), opt_out("*")] {
        let status = records.record_event(then(event(subject, "acme", what), wall())).await;
        refused(status.unwrap_err(), "template:");
    }
    let mut about_person = category("order", "marketing");
    about_person.event.as_mut().unwrap().user_id = PERSON.into();
    refused(records.record_event(then(about_person, wall())).await.unwrap_err(), "user_id");
    let mut of_account = category("order", "marketing");
    of_account.event.as_mut().unwrap().user_id = "template:*".into();
    refused(records.record_event(then(of_account, wall())).await.unwrap_err(), "user_id");
    for class in ["service", "utility.orders", "promotion"] {
        let status = records.record_event(then(category("order", class), wall())).await;
        refused(status.unwrap_err(), "template_category.category");
    }
    // What lifts needs a time or a request id.
    refused(records.record_event(category("order", "utility")).await.unwrap_err(), "request_id");
    refused(checks.can_send(question(subject, "acme", "utility")).await.unwrap_err(), "template:");
    for (named, field) in [(("Order", "en"), "template.name"), (("order", ""), "template.language")]
    {
        let asked = about(PERSON, "utility", named);
        refused(checks.can_send(asked.clone()).await.unwrap_err(), field);
        let batch = pb::BatchCanSendRequest { requests: vec![asked] };
        let answered = checks.batch_can_send(batch).await.unwrap().into_inner().results;
        let Some(Item::Error(error)) = &answered[0].result else { panic!("{answered:?}") };
        assert!(error.message.contains(field) || error.field == field, "{error:?}");
    }
    let free_form = pb::CanSendRequest {
        form: pb::MessageForm::FreeForm.into(),
        ..about(PERSON, "utility", UPDATE)
    };
    refused(checks.can_send(free_form).await.unwrap_err(), "form");

    // Watchers are told of it as of a template, and a person's subject access has none.
    let watching = pb::WatchConsentsRequest { business_id: "acme".into() };
    let mut watching = checks.watch_consents(watching).await.unwrap().into_inner();
    assert!(record(&sidecar, then(category("order", "marketing"), wall())).await.applied);
    let changed = loop {
        match watching.message().await.unwrap().unwrap().what.unwrap() {
            Watched::TemplateChanged(changed) => break changed,
            Watched::Checkpoint(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(changed.template, Some(template(("order", "en"))));
    let (code, _, said) = run(&["subject", subject, "--addr", &sidecar.record]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("template"), "{said}");

    // An erased one counts as marketing until its category is recorded again.
    opt_in_to(&sidecar, PERSON, "utility").await;
    record(&sidecar, then(category("order", "utility"), wall() + 1)).await;
    let sent = about(PERSON, "utility", ("order", "en"));
    assert_eq!(verdict(&ask(&sidecar, &sent).await), (Reason::OptedIn, "utility"));
    let erased = pb::EraseUserRequest { user_id: subject.into(), business_id: "acme".into() };
    assert_eq!(records.erase_user(erased).await.unwrap().into_inner().erased_count, 1);
    assert_eq!(verdict(&ask(&sidecar, &sent).await), (Reason::NoConsent, "marketing"));
    let mut again = category("order", "utility");
    again.request_id = "again".into();
    record(&sidecar, again).await;
    assert_eq!(verdict(&ask(&sidecar, &sent).await), (Reason::OptedIn, "utility"));
}

#[tokio::test]
async fn list_of_templates_is_imported_exported_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    for path in [&here, &there] {
        std::fs::create_dir(path).unwrap();
    }
    let (from, to) = (Sidecar::live(&here, &[]).await, Sidecar::live(&there, &[]).await);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let list = "Name,Language,Category,Time\norder_update,en_US,UTILITY,2026-01-02T03:04:05Z\n\
                sale,pt-br,marketing,2026-01-02T03:04:05Z\nOrder,en,utility,2026-01-02T03:04:05Z\n";
    std::fs::write(path("list.csv"), list).unwrap();
    let on = |sidecar: &Sidecar, arguments: &[&str]| {
        let (code, printed, error) = run(&[arguments, &["--addr", &sidecar.record]].concat());
        (code, printed + &error)
    };
    let import = ["template", "import", &path("list.csv"), "--business", "acme"];
    let (code, said) = on(&from, &[&import[..], &["--dry-run"]].concat());
    assert!(code != 2 && said.contains("2 would be recorded, 1 rejected"), "{said}");
    assert!(said.contains("0 notations of ids are 0 people"), "{said}");
    let (_, said) = on(&from, &import);
    assert!(said.contains("2 recorded") || said.contains("2 new"), "{said}");
    let (code, said) =
        on(&from, &["template", "set", "code", "en", "authentication", "--business", "acme"]);
    assert_eq!(code, 0, "{said}");
    assert!(record(&from, then(restriction(true, Some(4_102_444_800)), wall())).await.applied);

    let (code, said) = on(&from, &["export", "--output", &path("all.ndjson")]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = on(&from, &["verify-export", &path("all.ndjson")]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = on(&to, &["import", &path("all.ndjson")]);
    assert_eq!(code, 0, "{said}");
    for sidecar in [&from, &to] {
        let (code, listed) = on(sidecar, &["template", "list", "--business", "acme"]);
        assert_eq!(code, 0, "{listed}");
        let expected = [
            "all utility counts as marketing, until 2100-01-01T00:00:00Z\ncode en: authentication, since ",
            "order_update en_US: utility, since 2026-01-02T03:04:05.000Z\n",
            "sale pt_BR: marketing, since 2026-01-02T03:04:05.000Z\n",
        ];
        for part in expected {
            assert!(listed.contains(part), "{listed} has no {part}");
        }
    }
}

#[tokio::test]
async fn updates_about_templates_are_mapped_by_the_account_and_counted_where_they_are_not() {
    let numbers = [("1".to_owned(), "acme".to_owned()), ("2".to_owned(), "other".to_owned())];
    let files = Files::new(&numbers);
    let text = std::fs::read_to_string(files.path("consentd.toml")).unwrap();
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    opt_in_to(&sidecar, PERSON, "utility").await;
    let sent = about(PERSON, "utility", UPDATE);
    let moved = fixture("template_category_marketing", ACCOUNT);
    // Two businesses, and nothing says whose the account is.
    assert_eq!(deliver(&sidecar.webhook, &moved).await, 200);
    let skipped = "consent_webhook_passed_over_total{cause=\"unknown_account\"}";
    assert!((metric(&sidecar, skipped).await - 1.0).abs() < 0.5);
    assert_eq!(verdict(&ask(&sidecar, &sent).await), (Reason::OptedIn, "utility"));
    // An account that cannot be read denies at every business, and lifts nothing at any.
    let nameless = String::from_utf8(moved.clone()).unwrap().replace(ACCOUNT, "");
    assert_eq!(deliver(&sidecar.webhook, nameless.as_bytes()).await, 200);
    answers(&sidecar, &sent, (Reason::NoConsent, "marketing")).await;
    let back = String::from_utf8(fixture("template_category_utility", ACCOUNT)).unwrap();
    assert_eq!(deliver(&sidecar.webhook, back.replace(ACCOUNT, "").as_bytes()).await, 200);
    assert_eq!(verdict(&ask(&sidecar, &sent).await), (Reason::NoConsent, "marketing"));
    drop(sidecar);
    files.write("consentd.toml", &format!("{text}\n[whatsapp.accounts]\n{ACCOUNT} = \"acme\"\n"));
    let sidecar = files.serve(&file(files.folder.path()), &[]).await;
    assert_eq!(deliver(&sidecar.webhook, back.as_bytes()).await, 200);
    answers(&sidecar, &sent, (Reason::OptedIn, "utility")).await;
}

#[tokio::test]
async fn histories_of_rules_in_any_order_are_decided_as_the_model_says() {
    let files = Files::new(&acme());
    let (on_file, on_redis, _server, _) = receivers(&files).await;
    let mut rng = Rng::new(17);
    for sidecar in [&on_file, &on_redis] {
        opt_in_to(sidecar, PERSON, "utility").await;
        let start = wall() - 60_000;
        // Restrictions are of the account: one history of them, and several templates.
        let mut of_account = Vec::new();
        for _ in 0..6 {
            let time = start + i64::try_from(rng.below(5)).unwrap() * 1_000;
            let end = wall() / 1_000 + rng.pick(&[-30, 3_600]);
            let said = rng.pick(&[
                Said::Free,
                Said::Restricted(None),
                Said::Restricted(Some(end * 1_000)),
            ]);
            let sent = match said {
                Said::Restricted(until) => restriction(true, until.map(|end| end / 1_000)),
                _ => restriction(false, None),
            };
            record(sidecar, then(sent, time)).await;
            of_account.push((time, said));
            for number in 0..3 {
                let name = format!("t{number}_{}", of_account.len());
                let mut said = of_account.clone();
                for _ in 0..rng.below(4) {
                    let class = rng.pick(&["authentication", "utility", "marketing"]);
                    let time = start + i64::try_from(rng.below(4)).unwrap();
                    record(sidecar, then(category(&name, class), time)).await;
                    said.push((time, Said::Category(class)));
                }
                for asked in ["service", "authentication", "utility", "marketing"] {
                    let class = class_that_decides(&said, asked, wall());
                    let answer = ask(sidecar, &about(PERSON, asked, (&name, "en"))).await;
                    assert_eq!(answer.category_used, class, "{asked}: {said:?}");
                    let so = if class == "utility" { Reason::OptedIn } else { Reason::NoConsent };
                    assert_eq!(answer.reason(), so, "{asked}: {said:?}");
                }
            }
        }
    }
}
