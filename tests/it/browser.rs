//! A real browser without a screen: Chromium, driven by chromedriver.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

/// What a machine without a browser lacks.
const INSTALL: &str = "this test needs Chromium: apt-get install -y chromium chromium-driver";

/// Nothing but what a test asks for: no sandbox, which needs rights that root has not, and none of
/// the browser's own requests.
const FLAGS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
    "--window-size=1280,1000",
];

/// A browser with a profile of its own. End it with [`end`](Self::end), which looks at its log.
pub struct Browser {
    client: Client,
    driver: Child,
    _profile: tempfile::TempDir,
}

/// A command of the drivers of Chromium alone.
#[derive(Debug)]
struct Special(&'static str, Value);

impl WebDriverCompatibleCommand for Special {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.0))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.1.to_string()))
    }
}

/// Starts a driver; gives the port that it listens on.
///
/// It takes any port that is free for IPv4, and ends where another test holds the same one for
/// IPv6; the next one takes another.
fn drive() -> (Child, String) {
    loop {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("chromedriver: {error}: {INSTALL}"));
        let mut lines = BufReader::new(driver.stdout.take().expect("piped")).lines();
        let mut said = Vec::new();
        for line in lines.by_ref() {
            let line = line.expect("chromedriver speaks UTF-8");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                // What else it says is read, so that it can go on saying it.
                std::thread::spawn(move || lines.for_each(drop));
                return (driver, port.trim_end_matches('.').to_owned());
            }
            said.push(line);
        }
        driver.wait().expect("it was started");
        let taken = said.iter().any(|line| line.contains("port not available"));
        assert!(taken, "chromedriver ended: {said:?}");
    }
}

impl Browser {
    /// Starts one.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with more flags.
    pub async fn start_with(flags: &[&str]) -> Self {
        let (driver, port) = drive();
        let profile = tempfile::tempdir().unwrap();
        let profile_flag = format!("--user-data-dir={}", profile.path().display());
        let flags: Vec<_> = FLAGS.iter().chain(flags).copied().chain([&*profile_flag]).collect();
        let capabilities = json!({
            "goog:chromeOptions": { "args": flags },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(Capabilities::from(capabilities))
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap_or_else(|error| panic!("chromium: {error}: {INSTALL}"));
        Self { client, driver, _profile: profile }
    }

    /// Opens a page.
    pub async fn open(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// Where it is.
    pub async fn url(&self) -> String {
        self.client.current_url().await.unwrap().to_string()
    }

    /// Runs a function's body in the page; gives what it returns.
    pub async fn run(&self, body: &str) -> Value {
        let done = self.client.execute(body, Vec::new()).await;
        done.unwrap_or_else(|error| panic!("{body}: {error}"))
    }

    /// The text of the first element that is selected, as it is seen.
    pub async fn text(&self, css: &str) -> String {
        // In one go: the page may be replaced at any time.
        let text = self
            .client
            .execute("return document.querySelector(arguments[0]).innerText", vec![css.into()]);
        let text = text.await.unwrap_or_else(|error| panic!("{css}: {error}"));
        text.as_str().expect("a text").trim().to_owned()
    }

    /// How many elements are selected.
    pub async fn count(&self, css: &str) -> usize {
        self.client.find_all(fantoccini::Locator::Css(css)).await.unwrap().len()
    }

    /// Empties a field and types into it.
    pub async fn fill(&self, css: &str, text: &str) {
        let field = self.client.find(fantoccini::Locator::Css(css)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Clicks at an element.
    pub async fn click(&self, css: &str) {
        self.client.find(fantoccini::Locator::Css(css)).await.unwrap().click().await.unwrap();
    }

    /// Sends a command of Chromium's own protocol.
    pub async fn command(&self, name: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": name, "params": parameters });
        let done = self.client.issue_cmd(Special("goog/cdp/execute", body)).await;
        done.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// What was logged since this was last asked.
    async fn log(&self, kind: &str) -> Vec<Value> {
        let log = self.client.issue_cmd(Special("se/log", json!({ "type": kind }))).await.unwrap();
        log.as_array().unwrap().clone()
    }

    /// What pages complained about since this was last asked: errors, and breaches of their policy.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.log("browser").await;
        log.iter().map(|entry| entry["message"].as_str().unwrap_or("").to_owned()).collect()
    }

    /// Every address that pages asked for since this was last asked.
    pub async fn requests(&self) -> Vec<String> {
        let log = self.log("performance").await;
        let message = |entry: &Value| -> Value {
            serde_json::from_str(entry["message"].as_str().unwrap()).unwrap()
        };
        (log.iter().map(message))
            .filter(|event| event["message"]["method"] == "Network.requestWillBeSent")
            .map(|event| event["message"]["params"]["request"]["url"].as_str().unwrap().to_owned())
            // What the empty page that it starts with is made of.
            .filter(|url| !url.starts_with("chrome"))
            .collect()
    }

    /// Says how wide the window is, and whether it is dark.
    pub async fn look_like(&self, width: u32, height: u32, scheme: &str) {
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500,
        });
        self.command("Emulation.setDeviceMetricsOverride", metrics).await;
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.command("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// A picture of the whole page, as PNG.
    pub async fn picture(&self) -> Vec<u8> {
        use base64::Engine as _;
        let options = json!({ "format": "png", "captureBeyondViewport": true });
        let taken = self.command("Page.captureScreenshot", options).await;
        let data = taken["data"].as_str().expect("a picture");
        base64::engine::general_purpose::STANDARD.decode(data).expect("base64")
    }

    /// Leaves the page, and forgets what it complained about: its sidecar has gone.
    pub async fn leave(&self) {
        self.open("about:blank").await;
        self.complaints().await;
    }

    /// Ends it; its pages must have had nothing to complain about.
    pub async fn end(self) {
        let complaints = self.complaints().await;
        assert!(complaints.is_empty(), "{complaints:?}");
        self.client.clone().close().await.unwrap();
    }
}

impl Drop for Browser {
    /// Ends the driver and all that it has started: told to end, it would leave Chromium behind.
    fn drop(&mut self) {
        let group = i32::try_from(self.driver.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            // Gone already is as good.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.driver.wait();
    }
}
