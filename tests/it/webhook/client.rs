//! The platform, as far as a receiver sees it; and receivers that are set up for it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::faults::redis::Redis;
use crate::faults::stage::{init, ledger_at};
use crate::sidecar::{BINARY, PATIENCE, Sidecar, eventually, ledger_in, question};

/// The app's secret.
pub const SECRET: &str = "the app's own secret, of the first day";
/// What the platform says in its handshake.
pub const TOKEN: &str = "a token that nobody guesses";
/// The number that most fixtures are about.
pub const NUMBER: &str = "106540352242922";
/// The WhatsApp business account that all fixtures are of.
pub const ACCOUNT: &str = "102290129340398";
/// Another number of the same business, which the others are about.
pub const SECOND: &str = "106540352242923";
/// The user that most fixtures are about.
pub const USER: &str = "16505551234";
/// The same user's other id.
pub const SCOPED: &str = "US.13491208655302741918";

/// A button of the business's own that stops marketing; and sign-ups count.
const RULES: &str = r#"
[whatsapp]
undocumented-signup = true

[[keywords.opt-out]]
scope = "marketing"
buttons = ["promo:no"]
"#;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Sends a request, and reads its answer while it still sends.
pub async fn send(address: &str, head: &str, body: &[u8]) -> std::io::Result<Answer> {
    let (mut reading, mut writing) = TcpStream::connect(address).await?.into_split();
    let head = format!("{head}host: webhook\r\nconnection: close\r\n\r\n");
    let write = async {
        writing.write_all(head.as_bytes()).await?;
        writing.write_all(body).await
    };
    let mut answer = Vec::new();
    let both = async { tokio::join!(write, reading.read_to_end(&mut answer)) };
    // Who is answered before all is sent may be cut off: what was read counts.
    let (_, read) = timeout(PATIENCE, both).await.expect("an answer in time");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(read.err().unwrap_or_else(|| std::io::Error::other("no answer")));
    };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer { status: status.expect("a status"), head: head.to_lowercase(), body: body.into() })
}

/// The signature of a body.
pub fn sign(secret: &str, body: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length");
    let mut said = "sha256=".to_owned();
    for byte in mac.chain_update(body).finalize().into_bytes() {
        write!(said, "{byte:02x}").expect("a string takes all");
    }
    said
}

/// Posts a body with a signature.
pub async fn post(address: &str, signature: &str, body: &[u8]) -> Answer {
    let length = body.len();
    let head = format!(
        "POST /webhook HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         x-hub-signature-256: {signature}\r\n"
    );
    send(address, &head, body).await.expect("an answer")
}

/// Posts a body as the platform does; gives the status.
pub async fn deliver(address: &str, body: &[u8]) -> u16 {
    post(address, &sign(SECRET, body), body).await.status
}

/// A payload of the fixtures, for another of the business' numbers.
pub fn fixture(name: &str, number: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/whatsapp");
    let text = std::fs::read_to_string(format!("{folder}/{name}.json")).expect("a fixture");
    // What is about templates names the account alone.
    let ids = [NUMBER, SECOND, ACCOUNT];
    assert!(ids.iter().any(|id| text.contains(id)) || !text.contains("phone_number_id"));
    text.replace(NUMBER, number).replace(SECOND, number).into_bytes()
}

/// A receiver's files.
pub struct Files {
    pub folder: TempDir,
}

impl Files {
    /// Files that name these numbers' businesses.
    pub fn new(numbers: &[(String, String)]) -> Self {
        let files = Self { folder: tempfile::tempdir().expect("a folder") };
        files.write("secret", SECRET);
        files.write("token", &format!("{TOKEN}\n"));
        files.name(numbers);
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes one of them in one step, as who rotates secrets does.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.path("new");
        std::fs::write(&new, text).expect("it can be written");
        std::fs::rename(new, self.path(name)).expect("it can be renamed");
    }

    /// Names these numbers' businesses.
    pub fn name(&self, numbers: &[(String, String)]) {
        let mut text = "[whatsapp.numbers]\n".to_owned();
        for (number, business) in numbers {
            writeln!(text, "{number} = \"{business}\"").expect("a string takes all");
        }
        text.push_str(RULES);
        self.write("consentd.toml", &text);
    }

    /// The flags that say where they are.
    pub fn flags(&self) -> Vec<String> {
        let flags = [
            ("--config", "consentd.toml"),
            ("--webhook-app-secret-file", "secret"),
            ("--webhook-verify-token-file", "token"),
        ];
        let both = flags.map(|(flag, name)| [flag.into(), self.path(name).display().to_string()]);
        both.concat()
    }

    /// A sidecar that receives and answers, on a ledger in a file or elsewhere.
    pub async fn serve(&self, ledger: &str, flags: &[&str]) -> Sidecar {
        let ours = self.flags();
        let ours = ours.iter().map(String::as_str).chain(["--webhook", "127.0.0.1:0"]);
        let flags: Vec<_> = ours.chain(flags.iter().copied()).collect();
        let sidecar = Sidecar::try_start_by(Command::new(BINARY), ledger, &flags, &[]);
        let sidecar = sidecar.unwrap_or_else(|said| panic!("no sidecar: {said}"));
        sidecar.wait_until_live().await;
        sidecar
    }

    /// A process that receives and does nothing else.
    pub fn receive(&self, ledger: &str) -> Sidecar {
        let ours = self.flags();
        let flags: Vec<_> = ours.iter().map(String::as_str).collect();
        let receiver = Sidecar::try_start_as("webhook", Command::new(BINARY), ledger, &flags, &[]);
        receiver.unwrap_or_else(|said| panic!("no receiver: {said}"))
    }
}

/// One number, which is acme's.
pub fn acme() -> Vec<(String, String)> {
    vec![(NUMBER.to_owned(), "acme".to_owned())]
}

/// A ledger in a file there.
pub fn file(folder: &Path) -> String {
    format!("file:{}", ledger_in(folder).display())
}

/// A Redis with a new ledger.
pub fn redis(options: &[&str]) -> (Redis, String) {
    let redis = Redis::start(options);
    let ledger = ledger_at(&redis.address());
    init(&ledger, &["--buckets", "16"]);
    (redis, ledger)
}

/// Why a message of this category may be sent, or not.
pub async fn reason(sidecar: &Sidecar, user: &str, business: &str, category: &str) -> Reason {
    let mut checks = sidecar.checks().await;
    let answer = checks.can_send(question(user, business, category)).await.expect("an answer");
    answer.get_ref().reason()
}

/// Waits until the sidecar answers so, and fails where it never does.
pub async fn answers(sidecar: &Sidecar, user: &str, business: &str, category: &str, so: Reason) {
    let what = format!("{category} at {business} is {so:?}");
    eventually(&what, || async { reason(sidecar, user, business, category).await == so }).await;
}

/// What was recorded of a user.
pub async fn history(sidecar: &Sidecar, user: &str, business: &str) -> Vec<pb::ListEventsResponse> {
    let mut records = sidecar.records().await;
    let request =
        pb::ListEventsRequest { user_id: user.to_owned(), business_id: business.to_owned() };
    let mut stream = records.list_events(request).await.expect("a history").into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await.expect("it is intact") {
        // The last says what came of the chain's check, and tells of no event.
        events.extend(Some(event).filter(|event| event.event.is_some()));
    }
    events
}
