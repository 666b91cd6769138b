//! The page for people, in a real browser.

mod form;
mod pictures;

use std::collections::BTreeMap;
use std::time::Duration;

use consentd::grpc::pb::consent_event::What;
use consentd::grpc::pb::{self, consent_service_client::ConsentServiceClient};
use prost::Message as _;
use serde_json::json;
use tonic::transport::Channel;

use crate::browser::Browser;
use crate::sidecar::{
    Sidecar, Wire, event, eventually, framed, inbound, ledger_in, opt_in, opt_out, question,
};

/// People whose answers differ, and how often each is asked for.
const PEOPLE: [(&str, &str, usize); 10] = [
    ("15550000001", "marketing", 40),
    ("15550000002", "marketing", 9),
    ("15550000003", "utility.order_updates", 14),
    ("15550000004", "marketing", 6),
    ("15550000005", "marketing", 3),
    ("15550000006", "service", 2),
    ("15550000007", "marketing", 4),
    ("15550000008", "marketing", 1),
    ("15550000009", "marketing", 12),
    ("15550000010", "marketing", 5),
];

/// Records what makes the answers of [`PEOPLE`] differ.
async fn meet_people(sidecar: &Sidecar) {
    let mut records = sidecar.records().await;
    let pending = match opt_in("marketing") {
        What::OptIn(opt_in) => What::OptIn(pb::OptIn { pending: true, ..opt_in }),
        other => other,
    };
    let phone_number_id = "106540352242922".to_owned();
    let stopped = What::PlatformPreference(pb::PlatformPreference {
        marketing_stopped: true,
        phone_number_id: phone_number_id.clone(),
    });
    let failed = What::DeliveryFailure(pb::DeliveryFailure { code: 131_049, phone_number_id });
    let barred = What::Suppression(pb::Suppression { suppressed: true, reference: String::new() });
    for (nth, (user, what)) in [
        ("15550000001", opt_in("marketing")),
        ("15550000002", opt_in("marketing")),
        ("15550000002", inbound("Stop.")),
        ("15550000003", inbound("Where is my order?")),
        ("15550000004", opt_out("marketing")),
        ("15550000005", pending),
        ("15550000006", opt_out("*")),
        ("15550000006", inbound("one more question")),
        ("15550000007", opt_in("marketing")),
        ("15550000007", failed),
        ("15550000008", barred),
        ("15550000010", opt_in("marketing")),
        ("15550000010", stopped),
    ]
    .into_iter()
    .enumerate()
    {
        // An opt-in without a time needs the name of its request.
        let request = event(user, "acme", what);
        let request_id = format!("event {nth}");
        records.record_event(pb::RecordEventRequest { request_id, ..request }).await.unwrap();
    }
    let nobody = records.record_event(event("", "acme", inbound(""))).await;
    assert!(nobody.is_err(), "one is refused");
}

/// Asks for each of [`PEOPLE`] as often as it says.
async fn ask_for_people(checks: &mut ConsentServiceClient<Channel>) {
    for (user, category, times) in PEOPLE {
        for _ in 0..times {
            checks.can_send(question(user, "acme", category)).await.unwrap();
        }
    }
}

/// The samples of `/metrics`, by name and labels.
async fn samples(sidecar: &Sidecar) -> BTreeMap<String, f64> {
    let (_, text) = sidecar.get("/metrics").await;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    lines.map(sample).collect()
}

/// The rows of a table, by their first cell: what is in the others.
async fn rows(browser: &Browser, table: &str) -> BTreeMap<String, Vec<String>> {
    let read = format!(
        "return [...document.querySelectorAll('{table} tbody tr')]\
         .map((row) => [...row.cells].map((cell) => cell.innerText.trim()))"
    );
    let rows: Vec<Vec<String>> = serde_json::from_value(browser.run(&read).await).unwrap();
    rows.into_iter().map(|mut row| (row.remove(0), row)).collect()
}

/// A number as the page writes it.
fn number(text: &str) -> f64 {
    let digits: String = text.chars().filter(|c| *c != ',').collect();
    digits.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// What of the page's figures differs from the metrics.
async fn differences(browser: &Browser, sidecar: &Sidecar) -> Vec<String> {
    let metrics = samples(sidecar).await;
    let mut told = BTreeMap::new();
    for (reason, cells) in rows(browser, "#decisions").await {
        told.insert(reason, number(&cells[cells.len() - 2]));
    }
    let (mut allowed, mut denied) = (0.0, 0.0);
    let mut expected = BTreeMap::new();
    for (name, value) in &metrics {
        let Some(labels) = name.strip_prefix("consent_decisions_total{allowed=\"") else {
            continue;
        };
        let (yes, reason) = labels.split_once("\",reason=\"").unwrap();
        *if yes == "true" { &mut allowed } else { &mut denied } += value;
        expected.insert(reason.trim_end_matches("\"}").to_owned(), *value);
    }
    assert_eq!(expected.len(), consentd_core::decision::Reason::ALL.len());
    expected.extend([("Allowed".to_owned(), allowed), ("Denied".to_owned(), denied)]);
    let latency = rows(browser, "#latency").await;
    told.insert("checks".into(), latency.values().map(|cells| number(&cells[1])).sum());
    expected.insert("checks".into(), metrics["consent_check_duration_seconds_count"]);
    told.insert("20 µs".into(), number(&latency["20 µs"][1]));
    let bucket =
        |bound| metrics[&format!("consent_check_duration_seconds_bucket{{le=\"{bound}\"}}")];
    expected.insert("20 µs".into(), bucket("0.00002") - bucket("0.00001"));
    for (id, name) in
        [("pairs", "consent_pairs"), ("revision", "consent_applied_revision{partition=\"0\"}")]
    {
        let text = browser.text(&format!("#{id}")).await;
        told.insert(id.into(), number(text.lines().next().unwrap()));
        expected.insert(id.into(), metrics[name]);
    }
    let records = browser.text("#records").await;
    let records: Vec<_> = records.lines().collect();
    for pair in records.chunks(2) {
        let name = format!("consent_records_total{{outcome=\"{}\"}}", pair[0]);
        told.insert(pair[0].to_owned(), number(pair[1]));
        expected.insert(pair[0].to_owned(), metrics.get(&name).copied().unwrap_or(0.0));
    }
    expected
        .into_iter()
        .map(|(name, value)| {
            let told = told.get(&name).copied().unwrap_or(f64::NAN);
            ((told - value).abs() < 0.5, format!("{name}: {told} on the page, {value} measured"))
        })
        .filter(|(same, _)| !same)
        .map(|(_, text)| text)
        .collect()
}

/// The address of a sidecar's page.
fn page_of(sidecar: &Sidecar) -> String {
    format!("http://{}/", sidecar.admin)
}

#[tokio::test]
async fn its_figures_are_the_metrics_and_stay_so_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--admin-checks"]).await;
    let mut checks = sidecar.checks().await;
    meet_people(&sidecar).await;
    ask_for_people(&mut checks).await;
    let browser = Browser::start().await;
    browser.look_like(900, 500, "light").await;
    browser.open(&page_of(&sidecar)).await;
    assert_eq!(differences(&browser, &sidecar).await, Vec::<String>::new());
    assert_eq!(browser.text("#phase strong").await, "LIVE");
    let title = browser.run("return document.title").await;
    assert_eq!(title, "● live – consentd");

    // Somebody reads further down, and types.
    let state = "const row = document.querySelector('#decisions tr:last-child'); \
                 const field = document.activeElement; \
                 const top = Math.round(row.getBoundingClientRect().top); \
                 return [window.mark, window.row === row, field.id, field.value, top]";
    browser.fill("#user_id", "+1 555").await;
    browser
        .run(
            "window.mark = 1; \
             window.row = document.querySelector('#decisions tr:last-child'); \
             document.querySelector('#user_id').focus({ preventScroll: true }); \
             window.scrollTo(0, 500)",
        )
        .await;
    let before = browser.run(state).await;
    let typed = [json!(1), json!(true), json!("user_id"), json!("+1 555")];
    assert_eq!(before.as_array().unwrap()[..4], typed);
    for _ in 0..7 {
        ask_for_people(&mut checks).await;
    }
    let mut records = sidecar.records().await;
    records.record_event(event("15550000011", "acme", inbound("hello"))).await.unwrap();
    eventually("the page has the new figures", || async {
        differences(&browser, &sidecar).await.is_empty()
    })
    .await;
    let rate = browser.text("#rate").await;
    assert!(number(rate.lines().next().unwrap()) > 1.0, "{rate}");
    assert_eq!(browser.run(state).await, before);

    // It spoke to the sidecar alone.
    let asked = browser.requests().await;
    assert!(asked.len() >= 2, "{asked:?}");
    for url in asked {
        assert!(url.starts_with(&page_of(&sidecar)) || url.starts_with("data:"), "{url}");
    }
    browser.end().await;
}

#[tokio::test]
async fn without_javascript_it_shows_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--admin-checks"]).await;
    meet_people(&sidecar).await;
    let mut checks = sidecar.checks().await;
    ask_for_people(&mut checks).await;
    let browser = Browser::start_with(&["--blink-settings=scriptEnabled=false"]).await;
    browser.open(&page_of(&sidecar)).await;
    assert_eq!(differences(&browser, &sidecar).await, Vec::<String>::new());
    ask_for_people(&mut checks).await;
    eventually("it reloads itself", || async { differences(&browser, &sidecar).await.is_empty() })
        .await;

    // The form has a page of its own, which does not reload under somebody who types.
    assert_eq!(browser.run("return document.getElementById('check').hidden").await, true);
    browser.run("document.querySelector('noscript a').click()").await;
    // A click does not always wait for what comes of it.
    let form = format!("{}check", page_of(&sidecar));
    eventually("the form is shown", || async {
        browser.url().await == form
            && browser.run("return !!document.querySelector('#check button')").await == true
    })
    .await;
    assert_eq!(browser.count("meta[http-equiv=refresh]").await, 0);
    browser.fill("#user_id", "15550000002").await;
    browser.fill("#business_id", "acme").await;
    browser.fill("#category", "marketing").await;
    browser.click("#check button").await;
    eventually("it is answered", || async {
        browser.text(".answer").await.starts_with("Denied OPTED_OUT_ALL\n")
    })
    .await;
    assert_eq!(browser.url().await, format!("{}check", page_of(&sidecar)));
    browser.end().await;
}

#[tokio::test]
async fn it_says_when_nobody_answers_any_more_and_rests_when_it_is_not_seen() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &["--admin-checks"]).await;
    let browser = Browser::start().await;
    browser.open(&page_of(&sidecar)).await;
    assert_eq!(browser.run("return document.getElementById('gone').hidden").await, true);
    sidecar.kill();
    form::ask(&browser, "15550000001", "acme", "service").await;
    eventually("nothing is answered", || async {
        browser.text(".answer").await == "The sidecar does not answer. Do not send."
    })
    .await;
    eventually("it says so", || async {
        browser.run("return document.title").await == "✕ not answering – consentd"
    })
    .await;
    let icon = "return document.getElementById('icon').href.includes('%23888888')";
    assert_eq!(browser.run(icon).await, true);
    let told = browser.text("#gone").await;
    assert!(told.starts_with("Not answering since ") && told.contains("what it said at"), "{told}");
    let complaints = browser.complaints().await;
    assert!(complaints.iter().all(|said| said.contains("net::ERR_")), "{complaints:?}");

    let _again = Sidecar::start(&ledger_in(folder.path()), &["--admin", &sidecar.admin]);
    eventually("it is back", || async {
        browser.run("return document.getElementById('gone').hidden").await == true
    })
    .await;
    assert_eq!(browser.run(icon).await, false);
    assert_eq!(browser.text("h1").await, format!("consentd {}", env!("CARGO_PKG_VERSION")));

    // Not seen, it asks for nothing; seen again, it asks at once.
    let hide = |hidden: bool| {
        format!(
            "const get = () => {hidden}; \
             Object.defineProperty(document, 'hidden', {{ configurable: true, get }}); \
             document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    browser.run(&hide(true)).await;
    let asked = "return performance.getEntriesByType('resource').length";
    let before = browser.run(asked).await;
    // As long as two looks and a half take; one may have been under way.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let resting = browser.run(asked).await;
    assert!(resting.as_u64() <= before.as_u64().map(|before| before + 1), "{before}, {resting}");
    browser.run(&hide(false)).await;
    eventually("it looks again", || async { browser.run(asked).await != resting }).await;
    browser.leave().await;
    browser.end().await;
}

#[tokio::test]
async fn it_says_that_it_drains() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    // One call that is not over keeps it from ending.
    let waiting = pb::CanSendRequest { min_revision: 9, ..question("u", "b", "service") };
    let mut wire = Wire::to(&sidecar.grpc).await;
    let method = "consent.v1.ConsentService/CanSend";
    let waiting = wire.begin(method, &[], framed(&waiting.encode_to_vec())).await.unwrap();
    assert!(wire.call("nothing/Nothing", &[]).await.is_err(), "what was begun has arrived");
    sidecar.signal("TERM");
    eventually("it says so", || async {
        sidecar.get("/").await.1.contains("<strong>LIVE, DRAINING</strong>")
    })
    .await;
    assert!(waiting.end().await.is_err(), "the revision never came");
}
