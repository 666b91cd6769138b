//! The check form: who is answered, what, and who is not.

use std::fmt::Write as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What a page says once it has an answer.
const ANSWERED: &str = "return !document.querySelector('.answer').hidden \
                        || document.querySelectorAll('.wrong').length > 0";

/// Fills in the form and sends it.
pub(super) async fn ask(browser: &Browser, user: &str, business: &str, category: &str) {
    browser.fill("#user_id", user).await;
    browser.fill("#business_id", business).await;
    browser.fill("#category", category).await;
    browser.click("#check button").await;
}

/// Posts a form by hand; gives the status of the answer and its body.
pub(super) async fn post(sidecar: &Sidecar, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(&sidecar.admin).await.unwrap();
    let mut request = "POST /check HTTP/1.1\r\nconnection: close\r\n".to_owned();
    if headers.iter().all(|(name, _)| *name != "content-type") {
        request += "content-type: application/x-www-form-urlencoded\r\n";
    }
    for (name, value) in headers {
        write!(request, "{name}: {value}\r\n").unwrap();
    }
    write!(request, "content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    // It may be refused before all of it was read.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

pub(super) const BODY: &str = "user_id=15550000001&business_id=acme&category=marketing&form=any";

#[tokio::test]
async fn it_answers_with_the_reason_and_what_it_rests_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &["--admin-checks", "--log", "trace"]).await;
    meet_people(&sidecar).await;
    let browser = Browser::start().await;
    browser.open(&page_of(&sidecar)).await;
    let before = samples(&sidecar).await;
    browser.run("window.mark = 1").await;
    for (user, category, verdict, why, standing) in [
        ("+1 (555) 000-0001", "marketing", "Allowed OPTED_IN", "opted in to", "marketing"),
        ("15550000002", "marketing", "Denied OPTED_OUT_ALL", "a later opt-in", "everything (*)"),
        ("15550000003", "utility.order_updates", "Allowed WINDOW_OPEN", "wrote within", "nothing"),
        ("15550000004", "marketing", "Denied OPTED_OUT", "later opt-in", "marketing"),
        ("15550000005", "marketing", "Denied CONSENT_PENDING", "double opt-in", "nothing"),
        ("15550000007", "marketing", "Denied FREQUENCY_CAPPED", "retry time", "Ask again at"),
        ("15550000008", "marketing", "Denied SUPPRESSED", "must not be", "yes"),
        ("15550000010", "marketing", "Denied PLATFORM_STOPPED", "inside WhatsApp", "yes"),
        ("15550009999", "service", "Denied NO_CONSENT", "Nobody opted in", "never"),
    ] {
        ask(&browser, user, "acme", category).await;
        let told = format!("return document.querySelector('.verdict')?.innerText === '{verdict}'");
        eventually(verdict, || async { browser.run(&told).await == true }).await;
        let answer = browser.text(".answer").await;
        for part in [why, standing, "Opted in to", "Opted out of", "Window", "proven"] {
            assert!(answer.contains(part), "{verdict}: {answer:?} has no {part:?}");
        }
    }
    // All on one page, and nobody's number in its address.
    assert_eq!(browser.run("return window.mark").await, 1);
    assert_eq!(browser.url().await, page_of(&sidecar));
    for url in browser.requests().await {
        assert!(!url.contains("555"), "{url}");
    }
    // Free-form or a template is asked for, too.
    browser.click("input[value=free-form]").await;
    ask(&browser, "15550000001", "acme", "marketing").await;
    let told = "return document.querySelector('.verdict').innerText === 'Denied WINDOW_CLOSED'";
    eventually("the window is closed", || async { browser.run(told).await == true }).await;
    assert_eq!(browser.run("return document.activeElement.className").await, "answer");

    // For the fleet's figures nothing happened; in the log there is nobody.
    let after = samples(&sidecar).await;
    for (name, value) in before.iter().filter(|(name, _)| name.contains("decisions_total")) {
        assert!((after[name] - value).abs() < 0.1, "{name}");
    }
    assert!(after.keys().all(|name| !name.contains("555")), "{after:?}");
    browser.end().await;
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
    assert!(!sidecar.said().contains("5550000"), "{}", sidecar.said());
}

#[tokio::test]
async fn what_is_wrong_is_told_at_its_field_and_what_was_typed_stays() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--admin-checks"]).await;
    let hostile = "\"><script>document.title = 'taken'</script>{{7*7}}<img src=x onerror=alert(1)>";
    for scripts in [true, false] {
        let flag = format!("--blink-settings=scriptEnabled={scripts}");
        let browser = Browser::start_with(&[&flag]).await;
        browser.open(&format!("{}check", page_of(&sidecar))).await;
        browser.click("input[value=template]").await;
        ask(&browser, hostile, "'&amp;<b>acme", "<script>news").await;
        eventually("it is refused", || async { browser.run(ANSWERED).await == true }).await;
        let class = browser.text("#category-wrong").await;
        assert!(class.contains("marketing, utility"), "{class}");
        let typed = "return ['user_id', 'business_id', 'category']\
                     .map((id) => document.getElementById(id).value)";
        let typed = browser.run(typed).await;
        assert_eq!(typed, json!([hostile, "'&amp;<b>acme", "<script>news"]));
        let chosen = "return document.querySelector('input[name=form]:checked').value";
        assert_eq!(browser.run(chosen).await, "template");
        assert_eq!(browser.count("img, b, body script:not(:last-of-type)").await, 0);
        let title = browser.run("return document.title").await;
        assert!(title.as_str().unwrap().contains("live"), "{title}");
        // Set right, it is answered.
        ask(&browser, hostile, "acme", "service").await;
        eventually("it is answered", || async {
            browser.run("return document.querySelector('.verdict') !== null").await == true
        })
        .await;
        let wrong = browser.run("return document.querySelectorAll('.wrong').length").await;
        assert_eq!(wrong, 0);
        let complaints = browser.complaints().await;
        assert!(complaints.iter().all(|said| said.contains("400 (Bad Request)")), "{complaints:?}");
        browser.end().await;
    }
}

#[tokio::test]
async fn only_its_own_page_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--admin-checks"]).await;
    let port = sidecar.admin.rsplit_once(':').unwrap().1;
    let here = format!("localhost:{port}");
    let origin = format!("http://{here}");
    let host = ("host", &*here);
    let long = format!("{BODY}&more={}", "x".repeat(100_000));
    for (headers, body, status, told) in [
        (&[host][..], BODY, 200, "NO_CONSENT"),
        (&[host, ("origin", &origin)], BODY, 200, "NO_CONSENT"),
        (&[host, ("sec-fetch-site", "same-origin")], BODY, 200, "NO_CONSENT"),
        (&[("host", "127.0.0.1")], BODY, 200, "NO_CONSENT"),
        (&[("host", "[::1]:80")], BODY, 200, "NO_CONSENT"),
        (&[("host", "rebound.example")], BODY, 403, "localhost"),
        (&[("host", "rebound.example"), ("origin", "http://rebound.example")], BODY, 403, "local"),
        (&[host, ("origin", "http://evil.example")], BODY, 403, "on this page"),
        (&[host, ("origin", "null")], BODY, 403, "on this page"),
        (&[host, ("sec-fetch-site", "cross-site")], BODY, 403, "on this page"),
        (&[host], &long, 413, "cannot be read"),
        (&[host], "user_id=1&user_id=2", 422, "each once"),
        (&[host], "", 400, "required"),
        (&[host], "user_id=1&business_id=b&category=service&form=pigeon", 400, "must be any"),
        (&[host, ("content-type", "text/plain")], BODY, 415, "URL-encoded"),
    ] {
        let (found, answer) = post(&sidecar, headers, body).await;
        assert_eq!(found, status, "{headers:?} {}: {answer}", body.len());
        assert!(answer.contains(told), "{headers:?}: {answer}");
        assert!(status < 402 || !answer.contains("1555000"), "{headers:?}: {answer}");
    }
    // A question in an address is not answered: addresses stay in histories and logs.
    let (status, page) = sidecar.get(&format!("/?{BODY}")).await;
    assert!(status == 200 && !page.contains("15550000001"), "{page}");
    assert_eq!(sidecar.get(&format!("/check?{BODY}")).await.0, 403, "the harness' host is none");

    // A page from elsewhere posts through a browser.
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let theirs = format!("http://{}/", elsewhere.local_addr().unwrap());
    let page = format!(
        "<form method=post action='http://{}/check'><input name=user_id value=1>\
         <input name=business_id value=b><input name=category value=service>\
         <button>free offer</button></form>",
        sidecar.admin
    );
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = elsewhere.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/html\r\n";
            let answer = format!("{head}content-length: {}\r\n\r\n{page}", page.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let browser = Browser::start().await;
    browser.open(&theirs).await;
    browser.click("button").await;
    // A click does not always wait for what comes of it.
    let told = "return document.body?.innerText.trim() === \
                'a check can be posted by the form on this page alone'";
    eventually("the form's answer is shown", || async { browser.run(told).await == true }).await;
    assert_eq!(browser.url().await, format!("{}check", page_of(&sidecar)));
    browser.complaints().await;
    browser.end().await;
    server.abort();
}

#[tokio::test]
async fn it_is_there_only_where_it_was_asked_for_and_out_of_reach() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = ledger_in(folder.path());
    for flags in [&[][..], &["--admin-checks=false"]] {
        let sidecar = Sidecar::live(folder.path(), flags).await;
        let (status, page) = sidecar.get("/").await;
        assert!(status == 200 && !page.contains("<form"), "{flags:?}: {page}");
        assert_eq!(sidecar.get("/check").await.0, 404);
        let host = ("host", "localhost");
        assert_eq!(post(&sidecar, &[host], BODY).await.0, 404);
    }
    for on in ["true", "1"] {
        let set = [("CONSENTD_ADMIN_CHECKS", on)];
        let sidecar = Sidecar::try_start_in(&ledger, &[], &set).unwrap();
        assert!(sidecar.get("/").await.1.contains("<form method=\"post\""), "{on}");
    }
    let flags = ["--admin-checks", "--admin", "0.0.0.0:0"];
    let said = Sidecar::try_start(&ledger, &flags).err().expect("it must not start");
    for part in ["exit status: 2", "--admin-checks on 0.0.0.0:0", "127.0.0.1:9464"] {
        assert!(said.contains(part), "{said}");
    }
    let said = Sidecar::try_start(&ledger, &["--admin-checks", "--admin", "none"]).err().unwrap();
    assert!(said.contains("--admin-checks") && said.contains("--admin a loopback"), "{said}");
    // The page itself may be served everywhere.
    let sidecar = Sidecar::try_start(&ledger, &["--admin", "0.0.0.0:0"]).unwrap();
    drop(sidecar);
}
