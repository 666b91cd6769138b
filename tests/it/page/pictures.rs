//! What the page looks like, in every state that it can be seen in: on a desk, in the dark and on
//! a phone. `scripts/screenshots` runs this and keeps the pictures.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use redb::{Database, TableDefinition};
use tokio::task::JoinSet;

use super::*;

/// The sizes and schemes that people have.
const LOOKS: [(&str, u32, u32, &str); 3] =
    [("light", 1280, 900, "light"), ("dark", 1280, 900, "dark"), ("narrow", 360, 800, "light")];

/// Where pictures are kept, and how long a sidecar is busy before its picture is taken: for people
/// to look at, where a folder is named, else as short as will do.
fn folder() -> (PathBuf, Duration) {
    match std::env::var_os("SCREENSHOTS") {
        Some(folder) => (folder.into(), Duration::from_secs(25)),
        None => (PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("screenshots"), Duration::ZERO),
    }
}

/// Looks at the page in every look, keeps a picture of each, and says what is wrong with them.
async fn look(browser: &Browser, url: &str, state: &str, wait: &str) {
    for (look, width, height, scheme) in LOOKS {
        browser.look_like(width, height, scheme).await;
        browser.open(url).await;
        eventually(state, || async { browser.run(wait).await == true }).await;
        assert_reads_well(browser, &format!("{state}, {look}")).await;
        keep(browser, &format!("{state}-{look}")).await;
    }
}

async fn keep(browser: &Browser, name: &str) {
    let (folder, _) = folder();
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{name}.png")), browser.picture().await).unwrap();
}

/// Nothing sticks out at the side, and no text is fainter than WCAG's level AA allows.
async fn assert_reads_well(browser: &Browser, which: &str) {
    let wide = browser.run(
        "const right = (e) => Math.round(e.getBoundingClientRect().right); \
         return [...document.querySelectorAll('body *')] \
           .filter((e) => right(e) > document.documentElement.clientWidth + 1) \
           .map((e) => `${e.outerHTML.slice(0, 60)} ends at ${right(e)}`)",
    );
    assert_eq!(wide.await, json!([]), "{which}: wider than the window");
    let scrolls = "return document.scrollingElement.scrollWidth > innerWidth";
    assert_eq!(browser.run(scrolls).await, false, "{which} scrolls sideways");
    let faint = browser.run(include_str!("contrast.js")).await;
    assert_eq!(faint["faint"], json!([]), "{which}: too little contrast");
    assert!(faint["looked_at"].as_u64() > Some(40), "{which}: {faint}");
}

/// The same after years of work, on a phone.
async fn assert_large_numbers_fit(browser: &Browser) {
    browser
        .run(
            "document.querySelectorAll('td:not(.chart)').forEach((cell) => {\
               if (cell.textContent.includes('.')) cell.textContent = '100.0';\
               else if (cell.textContent) cell.textContent = '12,345,678,901';\
             });\
             document.querySelectorAll('dd').forEach((dd) => {\
               if (dd.firstChild.nodeType === Node.TEXT_NODE)\
                 dd.firstChild.data = '12,345,678,901';\
             })",
        )
        .await;
    assert_reads_well(browser, "large numbers").await;
}

/// Waits until the page says a phase; the phase in a tab is the same.
fn phase(word: &str) -> String {
    format!(
        "return document.querySelector('#phase strong').innerText === '{word}' \
         && document.title.includes('{}') \
         && decodeURIComponent(document.getElementById('icon').href)\
            .includes(document.querySelector('#phase path').getAttribute('d'))",
        word.to_lowercase()
    )
}

#[tokio::test]
async fn live() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--admin-checks"]).await;
    meet_people(&sidecar).await;
    let mut checks = sidecar.checks().await;
    let busy = self::folder().1;
    let started = Instant::now();
    let mut round = 0_u32;
    while round < 3 || started.elapsed() < busy {
        ask_for_people(&mut checks).await;
        // Now more, now less, as traffic is.
        round += 1;
        let pause = 40.0 + 35.0 * (f64::from(round) / 9.0).sin();
        tokio::time::sleep(Duration::from_secs_f64(pause / 1_000.0)).await;
    }
    let browser = Browser::start().await;
    look(&browser, &page_of(&sidecar), "live", &phase("LIVE")).await;
    for width in [320, 480, 640, 768, 1024, 1920] {
        browser.look_like(width, 800, "light").await;
        assert_reads_well(&browser, &format!("{width} pixels")).await;
    }
    browser.look_like(360, 800, "dark").await;
    assert_large_numbers_fit(&browser).await;
    browser.end().await;
}

/// The page of a sidecar that has gone, which whoever has scrolled down must see too.
#[tokio::test]
async fn gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    meet_people(&sidecar).await;
    ask_for_people(&mut sidecar.checks().await).await;
    let browser = Browser::start().await;
    browser.open(&page_of(&sidecar)).await;
    sidecar.kill();
    eventually("it says so", || async { browser.count("body.gone").await == 1 }).await;
    for (look, width, height, scheme) in LOOKS {
        browser.look_like(width, height, scheme).await;
        assert_reads_well(&browser, &format!("gone, {look}")).await;
        keep(&browser, &format!("gone-{look}")).await;
    }
    let top = "window.scrollTo(0, 400); \
               return document.getElementById('gone').getBoundingClientRect().top";
    let top = browser.run(top).await;
    assert!((0.0..100.0).contains(&top.as_f64().unwrap()), "{top}");
    browser.leave().await;
    browser.end().await;
}

/// The form, with an answer and with what is wrong with what was typed.
#[tokio::test]
async fn form() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--admin-checks"]).await;
    meet_people(&sidecar).await;
    let browser = Browser::start().await;
    let page = page_of(&sidecar);
    for (state, user, category, wait) in [
        ("form-denied", "+1 555 000 0002", "marketing", ".verdict.no"),
        ("form-allowed", "+1 555 000 0003", "utility.order_updates", ".verdict.yes"),
        ("form-wrong", "1555000000300000", "news", ".wrong"),
    ] {
        for (look, width, height, scheme) in LOOKS {
            browser.look_like(width, height, scheme).await;
            browser.open(&page).await;
            form::ask(&browser, user, "acme", category).await;
            eventually(state, || async { browser.count(wait).await > 0 }).await;
            assert_reads_well(&browser, &format!("{state}, {look}")).await;
            keep(&browser, &format!("{state}-{look}")).await;
        }
    }
    let complaints = browser.complaints().await;
    assert!(complaints.iter().all(|said| said.contains("400 (Bad Request)")), "{complaints:?}");
    browser.end().await;
}

/// An overloaded sidecar: with a bound this tight, its proofs are late as long as it has more to
/// do than it can.
#[tokio::test]
async fn stale() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--max-staleness", "10ms", "--workers", "1"];
    let sidecar = Sidecar::live(folder.path(), &flags).await;
    meet_people(&sidecar).await;
    ask_for_people(&mut sidecar.checks().await).await;
    let questions = PEOPLE.iter().cycle().take(1_000);
    let requests: Vec<_> =
        questions.map(|(user, category, _)| question(user, "acme", category)).collect();
    let mut load = JoinSet::new();
    for _ in 0..24 {
        let mut checks = sidecar.checks().await;
        let requests = requests.clone();
        load.spawn(async move {
            loop {
                let batch = pb::BatchCanSendRequest { requests: requests.clone() };
                checks.batch_can_send(batch).await.unwrap();
            }
        });
    }
    let browser = Browser::start().await;
    look(&browser, &page_of(&sidecar), "stale", &phase("STALE")).await;
    // The page is loaded again meanwhile, and a proof may just have come in time.
    eventually("the page says the cause", || async {
        browser.text(".cause").await.starts_with("Cause: no proof from the ledger for ")
    })
    .await;
    load.abort_all();
    while load.join_next().await.is_some() {}
    eventually("it is current again", || async { browser.text("#phase strong").await == "LIVE" })
        .await;
    browser.end().await;
}

/// A ledger whose log cannot be read any more.
#[tokio::test]
async fn loading() {
    const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    meet_people(&sidecar).await;
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
    let ledger = Database::open(ledger_in(folder.path())).unwrap();
    let transaction = ledger.begin_write().unwrap();
    transaction.open_table(LOG).unwrap().insert(1, &b"damaged"[..]).unwrap();
    transaction.commit().unwrap();
    drop(ledger);

    let sidecar = Sidecar::start(&ledger_in(folder.path()), &["--admin-checks"]);
    let browser = Browser::start().await;
    let cause = "document.querySelector('.cause').innerText.includes('log entry')";
    let wait = format!("{} && {cause}", phase("LOADING"));
    look(&browser, &page_of(&sidecar), "loading", &wait).await;
    // Nothing is known, and nothing is said as though it were.
    assert_eq!(browser.text("#staleness").await.lines().next(), Some("–"));
    let (status, answer) = form::post(&sidecar, &[("host", "localhost")], form::BODY).await;
    assert_eq!(status, 503);
    assert!(answer.contains("No answer yet: ") && answer.contains("must not send"), "{answer}");
    browser.end().await;
}
