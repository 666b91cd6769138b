//! Ten mistakes of a first hour, each made for real: what is said must name the mistake and the
//! remedy, and no user.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use consentd::grpc::pb;
use redb::{Database, ReadableDatabase as _, TableDefinition};
use tonic_types::StatusExt as _;

use crate::sidecar::{BINARY, PATIENCE, Sidecar, event, inbound, ledger_in, opt_in, run};

/// The user of all these mistakes, who must not be named in what is said of them.
const USER: &str = "15550142424";

/// What a command that must fail says of it.
#[track_caller]
fn told(arguments: &[&str]) -> String {
    let (code, printed, error) = run(arguments);
    judge(code, &printed, error)
}

#[track_caller]
fn judge(code: i32, printed: &str, error: String) -> String {
    assert_eq!((code, printed), (2, ""), "{error}");
    assert!(!error.contains(USER), "it names a user: {error}");
    error
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{said:?} has no {part:?}");
    }
}

/// A check that is right in all but its address.
fn check_at(address: &str) -> String {
    told(&["check", USER, "acme", "utility", "--timeout", "2s", "--addr", address])
}

/// A program that is ended when this is dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A Redis, which must be installed.
fn redis() -> (Program, String) {
    let address = a_free_port();
    let port = address.rsplit_once(':').unwrap().1;
    let mut command = Command::new("redis-server");
    command.args(["--port", port, "--bind", "127.0.0.1", "--save", ""]);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let redis = command
        .spawn()
        .expect("no redis-server: run scripts/test, or apt-get install redis-server");
    let redis = Program(redis);
    let started = Instant::now();
    while std::net::TcpStream::connect(&address).is_err() {
        assert!(started.elapsed() < PATIENCE, "the Redis does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    (redis, address)
}

/// Something that listens, and answers all it is sent with the same; nothing at all, where empty.
fn listener(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if !answer.is_empty() {
                let _ = stream.read(&mut [0; 1_024]);
                // Whoever asked may have gone.
                let _ = stream.write_all(answer);
                continue;
            }
            open.push(stream);
        }
    });
    address
}

#[tokio::test]
async fn a_wrong_port() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let closed = a_free_port();
    let start = format!("`consentd serve --listen {closed}`");
    let closed = check_at(&closed);
    assert_says(&closed, &["nothing listens there", &start, "--addr", "CONSENTD_ADDR"]);

    let web = listener(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    let tls = listener(b"\x15\x03\x01\x00\x02\x02\x46");
    let (_redis, redis) = redis();
    for (address, what) in [
        (&sidecar.admin, "a sidecar's admin port, for metrics and probes"),
        (&web, "a web server listens there"),
        (&redis, "a Redis listens there"),
        (&tls, "expects TLS"),
    ] {
        for said in [check_at(address), told(&["import", "/dev/null", "--addr", address])] {
            assert_says(&said, &[address, "gRPC port", what, "`serve --listen`", "50051"]);
            assert_says(&said, &["--addr", "CONSENTD_ADDR"]);
        }
    }
    // Each of two gRPC ports names the other.
    let apart = tempfile::tempdir().unwrap();
    let apart = Sidecar::live(apart.path(), &["--record", "127.0.0.1:0"]).await;
    assert_says(&check_at(&apart.record), &["not served on this listener", "--listen"]);
    let said = told(&["record", "inbound", USER, "acme", "--addr", &apart.grpc]);
    assert_says(&said, &["not recorded on this listener", "--record says on which"]);
    let started = Instant::now();
    let silent = check_at(&listener(b""));
    assert_says(&silent, &["accepts connections", "did not answer", "within 2s", "--addr"]);
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert_says(&check_at("nowhere.invalid:50051"), &["nowhere.invalid", "lookup", "--addr"]);
}

#[tokio::test]
async fn a_wrong_category() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let address = sidecar.grpc.as_str();
    for (category, parts) in [
        ("sales", ["\"sales\"", "did you mean marketing?"]),
        ("marketting", ["\"marketting\"", "did you mean marketing?"]),
        ("Marketing", ["\"Marketing\"", "lower case: marketing"]),
        ("weather", ["unknown class", "one of marketing, utility, authentication or service"]),
        ("utility.Order Updates", ["utility.Order Updates", "did you mean utility.order_updates"]),
        ("*", ["never for everything", "marketing, utility, authentication or service"]),
    ] {
        let said = told(&["check", USER, "acme", category, "--addr", address]);
        assert_says(&said, &["CATEGORY: ", parts[0], parts[1]]);
        let scope = if category == "*" { "all" } else { category };
        let said = told(&["record", "opt-out", USER, "acme", scope, "--addr", address]);
        assert_says(&said, &["SCOPE: ", "or * for everything"]);
    }
    // In the wrong order: what stands where the category should is not said back.
    let said = told(&["check", "acme", "marketing", USER, "--addr", address]);
    assert_says(&said, &["CATEGORY: a number is no category", "user, business, category"]);
}

#[tokio::test]
async fn a_spreadsheets_fraction_behind_a_number() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let address = sidecar.grpc.as_str();
    let user = format!("{USER}.0");
    let remedy = ["ends in \".0\"", "spreadsheet", "format that column as text"];
    let said = told(&["check", &user, "acme", "marketing", "--addr", address]);
    assert_says(&said, &remedy);
    assert_says(&told(&["record", "inbound", &user, "acme", "--addr", address]), &remedy);
    let file = folder.path().join("crm.csv");
    let row = format!("{user},acme,opt_out,*");
    fs::write(&file, format!("user_id,business_id,event,scope\n{row}\n")).unwrap();
    let (code, printed, error) = run(&["import", file.to_str().unwrap(), "--addr", address]);
    assert_eq!(code, 1, "a row was rejected: {printed}{error}");
    assert_says(&error, &["line 2: user_id: ", remedy[0], remedy[1], remedy[2]]);
    assert!(!error.contains(USER) && !printed.contains(USER), "{printed}{error}");
}

#[tokio::test]
async fn an_opt_in_without_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let all = ["--method: ", "--statement: ", "--business-name: "];
    let without = ["record", "opt-in", USER, "acme", "marketing", "--addr", &sidecar.grpc];
    let said = told(&without);
    assert_says(&said, &["evidence", "such as", "--method website", "from Acme on WhatsApp"]);
    assert_says(&said, &all);
    let said = told(&[&without[..], &["--method", "phone", "--statement", "yes"]].concat());
    assert_says(&said, &["missing:\n  --business-name: "]);
    assert!(!said.contains("--statement: "), "{said}");
    let said = told(&[&without[..], &["--method", "whatsapp-signup"]].concat());
    assert_says(&said, &["missing:\n  --reference: ", "signup_id"]);
    let vague = ["--method", "sms", "--statement", "Send me news", "--business-name", "Acme"];
    let said = told(&[&without[..], &vague].concat());
    assert_says(&said, &["--statement: must say that the messages come through WhatsApp"]);
    assert_says(&said, &["--statement: must contain the business_name"]);

    // Over gRPC by the fields.
    let what = pb::consent_event::What::OptIn(pb::OptIn {
        category: "marketing".into(),
        ..Default::default()
    });
    let status = sidecar.records().await.record_event(event(USER, "acme", what)).await.unwrap_err();
    let details = status.get_error_details();
    let fields: Vec<_> = details.bad_request().unwrap().field_violations.iter().collect();
    let names: Vec<_> = fields.iter().map(|violation| violation.field.as_str()).collect();
    let path = "event.opt_in.evidence";
    let wanted = ["method", "statement", "business_name"].map(|name| format!("{path}.{name}"));
    assert_eq!(names, wanted);
    for violation in fields {
        assert!(violation.description.starts_with("required: "), "{violation:?}");
    }
    assert!(!status.message().contains(USER), "{}", status.message());
}

#[tokio::test]
async fn a_sidecar_that_was_not_started() {
    let folder = tempfile::tempdir().unwrap();
    let closed = a_free_port();
    assert_says(&check_at(&closed), &[&closed, "Connection refused", "consentd serve"]);
    let path = folder.path().join("s");
    let address = format!("unix:{}", path.display());
    let remedy = format!("`consentd serve --unix {}`", path.display());
    let missing = check_at(&address);
    assert_says(&missing, &[&address, "there is no such socket", &remedy, "--addr"]);

    let flags = ["--listen", "none", "--unix", path.to_str().unwrap()];
    let mut sidecar = Sidecar::live_at(folder.path(), &flags, &address).await;
    let (code, _, error) = run(&["status", "--addr", &address]);
    assert_eq!((code, error.as_str()), (0, ""));
    sidecar.kill();
    let stale = check_at(&address);
    assert_says(&stale, &["left behind by a sidecar that is gone", &remedy, "--addr"]);
}

#[test]
fn a_sidecar_that_takes_no_more_connections() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full");
    let socket = || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
    let name = format!("\0consentd-full-{}", std::process::id());
    let on_path = socket2::SockAddr::unix(&path).unwrap();
    let abstracted = socket2::SockAddr::unix(&name).unwrap();
    let addresses = [format!("unix:{}", path.display()), format!("unix:@{}", &name[1..])];
    for (bound, address) in [on_path, abstracted].iter().zip(addresses) {
        let busy = socket().unwrap();
        busy.bind(bound).unwrap();
        busy.listen(0).unwrap();
        // As many as wait to be accepted, and nobody accepts.
        let mut waiting = Vec::new();
        loop {
            let one = socket().unwrap();
            one.set_nonblocking(true).unwrap();
            if one.connect(bound).is_err() {
                break;
            }
            waiting.push(one);
        }
        let started = Instant::now();
        let said = told(&["status", "--timeout", "300ms", "--addr", &address]);
        assert_says(&said, &[&address, "no connection within 300ms", "--addr"]);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

/// Somebody without privileges, and a folder that is theirs to enter.
struct Nobody {
    folder: tempfile::TempDir,
    is_root: bool,
}

impl Nobody {
    /// Their number, where we are root and can be anybody.
    const UID: u32 = 65_534;

    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        // Where the binary was built they may have no access.
        fs::copy(BINARY, folder.path().join("consentd")).unwrap();
        Self { folder, is_root: rustix::process::geteuid().is_root() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file that is none of theirs.
    fn locked(&self, name: &str, content: &str) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        self.lock(&path)
    }

    fn lock(&self, path: &Path) -> String {
        let mode = if self.is_root { 0o600 } else { 0o000 };
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[track_caller]
    fn told(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(self.path("consentd"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        if self.is_root {
            command.uid(Self::UID).gid(Self::UID);
        }
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap_or(-1);
        judge(code, &text(output.stdout), text(output.stderr))
    }

    /// What must be said of a file that they may not have: whose it is, and who they are.
    fn owners(&self) -> [String; 3] {
        let us = if self.is_root { Self::UID } else { rustix::process::geteuid().as_raw() };
        let owner = rustix::process::geteuid().as_raw();
        [
            "Permission denied".to_owned(),
            format!("belongs to uid {owner}"),
            format!("this process runs as uid {us}"),
        ]
    }

    #[track_caller]
    fn assert_denied(&self, said: &str, parts: &[&str]) {
        assert_says(said, parts);
        assert_says(said, &self.owners().each_ref().map(String::as_str));
        assert_says(said, &["run this as its owner, change the owner or the mode"]);
    }
}

#[tokio::test]
async fn a_socket_without_permission() {
    let nobody = Nobody::new();
    let path = nobody.path("s");
    let address = format!("unix:{}", path.display());
    let flags = ["--listen", "none", "--unix", path.to_str().unwrap()];
    let folder = tempfile::tempdir().unwrap();
    let _sidecar = Sidecar::live_at(folder.path(), &flags, &address).await;
    if !nobody.is_root {
        nobody.lock(&path);
    }
    let said = nobody.told(&["check", USER, "acme", "utility", "--addr", &address]);
    nobody.assert_denied(&said, &[&address, "by its owner and its group"]);

    // The other side of it: a folder in which one may make none.
    let theirs = nobody.path("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, Permissions::from_mode(0o555)).unwrap();
    let socket = theirs.join("s");
    let ledger = format!("file:{}", nobody.path("l").display());
    let serve = ["serve", "--admin", "none", "--ledger", &ledger];
    let unix = ["--listen", "none", "--unix", socket.to_str().unwrap()];
    let said = nobody.told(&[&serve[..], &unix].concat());
    let folder = format!("the folder {} belongs to", theirs.display());
    nobody.assert_denied(&said, &["--unix", socket.to_str().unwrap(), &folder]);
    // Or one in which another's lock was left.
    let anybodys = nobody.path("anybodys");
    fs::create_dir(&anybodys).unwrap();
    fs::set_permissions(&anybodys, Permissions::from_mode(0o1777)).unwrap();
    let lock = nobody.locked("anybodys/s.lock", "");
    let socket = anybodys.join("s");
    let unix = ["--listen", "none", "--unix", socket.to_str().unwrap()];
    let said = nobody.told(&[&serve[..], &unix].concat());
    nobody.assert_denied(&said, &["--unix", &format!("{lock} belongs to")]);
}

#[test]
fn a_file_that_is_anothers() {
    let nobody = Nobody::new();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--admin", "none"];
    let ledger = nobody.locked("ledger.redb", "");
    let file = format!("file:{ledger}");
    let said = nobody.told(&[&serve[..], &["--ledger", &file]].concat());
    nobody.assert_denied(&said, &["cannot open the ledger file", &ledger, "give another path"]);
    let tokens = nobody.locked("tokens", "a-token-that-is-secret\n");
    let said = nobody.told(&[&serve[..], &["--record-token-file", &tokens]].concat());
    nobody.assert_denied(&said, &["--record-token-file", "cannot read the secret in", &tokens]);
    let config = nobody.locked("consentd.toml", "workers = 1\n");
    let said = nobody.told(&[&serve[..], &["--config", &config]].concat());
    nobody.assert_denied(&said, &["cannot read the configuration file", &config]);
    let listens = listener(b"");
    let record = ["record", "inbound", USER, "acme", "--addr", &listens, "--token-file", &tokens];
    nobody.assert_denied(&nobody.told(&record), &["cannot read the token file", &tokens]);
    let csv = nobody.locked("crm.csv", "user_id\n");
    assert_says(&nobody.told(&["import", &csv]), &["cannot read", &csv, "Permission denied"]);
}

#[tokio::test]
async fn a_ledger_that_is_not_for_this_sidecar() {
    const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
    let folder = tempfile::tempdir().unwrap();
    let path = ledger_in(folder.path());
    let shown = path.to_str().unwrap();
    let refused = || Sidecar::try_start(&path, &[]).err().expect("it must not start");
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    assert_says(&refused(), &[shown, "open in another process", "stop the other", "--ledger"]);
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());

    let database = Database::create(&path).unwrap();
    let meta = database.begin_read().unwrap().open_table(META).unwrap();
    let known = meta.get("format").unwrap().unwrap().value().to_vec();
    let newer = u32::from_be_bytes(known.try_into().unwrap()) + 1;
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("format", &newer.to_be_bytes()[..]).unwrap();
    transaction.commit().unwrap();
    drop((meta, database));
    let format = format!("format {newer}");
    assert_says(&refused(), &[shown, "newer consentd", &format, "upgrade this one", "--ledger"]);

    fs::write(&path, "milk, eggs, bread\n").unwrap();
    assert_says(&refused(), &[shown, "not a ledger", "left as it is", "--ledger file:PATH"]);
    assert_eq!(fs::read(&path).unwrap(), b"milk, eggs, bread\n");
}

#[tokio::test]
async fn a_spreadsheets_csv() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let file = folder.path().join("crm.csv");
    let path = file.to_str().unwrap();
    let import = ["import", path, "--addr", &sidecar.grpc];
    fs::write(&file, format!("user_id,notes;event\n{USER},acme;opt_out\n")).unwrap();
    assert_says(&told(&import), &[path, "line 1", "`notes;event`", "--ignore-other-columns"]);
    // Its delimiter is found, and the mark before the first column is no part of its name.
    let header = "user_id;business_id;event;scope";
    fs::write(&file, format!("\u{feff}{header}\r\n{USER};acme;opt_out;*\r\n")).unwrap();
    let (code, printed, error) = run(&import);
    assert_eq!((code, error.as_str()), (0, ""), "{printed}");
    let (_, history, _) = run(&["history", USER, "acme", "--addr", &sidecar.grpc]);
    assert_says(&history, &["opt-out *"]);
    fs::write(&file, b"\xff\xfeu\0s\0e\0r\0").unwrap();
    assert_says(&told(&import), &[path, "UTF-16", "save it as UTF-8"]);
}

#[tokio::test]
async fn a_clock_that_is_off_by_an_hour() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let address = sidecar.grpc.as_str();
    let ahead = SystemTime::now() + Duration::from_hours(1);
    let mut given = event(USER, "acme", inbound("hello"));
    given.event.as_mut().unwrap().event_time = Some(ahead.into());
    let status = sidecar.records().await.record_event(given).await.unwrap_err();
    let details = status.get_error_details();
    let violation = &details.bad_request().unwrap().field_violations[0];
    assert_eq!(violation.field, "event.event_time");
    let by_how_much = violation.description.split(" ahead of").next().unwrap();
    let by_how_much = humantime::parse_duration(by_how_much).unwrap();
    assert!(by_how_much <= Duration::from_hours(1), "{by_how_much:?}");
    assert!(by_how_much > Duration::from_mins(58), "{by_how_much:?}");
    let remedy =
        ["the ledger's clock, by which it is 20", "set the clock of the sender, or of the"];
    assert_says(&violation.description, &remedy);

    // What somebody sees whose own machine's clock is off.
    let shifted = |by: &str, arguments: &[&str]| {
        let mut command = Command::new("faketime");
        command.args(["-f", by, BINARY]).args(arguments).args(["--addr", address]);
        let output = command.output().expect("no faketime: apt-get install faketime");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    };
    let (code, printed, error) =
        shifted("+1h", &["record", "inbound", USER, "acme", "--time", "1s"]);
    assert_says(&judge(code, &printed, error), &["--time: 59m", remedy[0], remedy[1]]);
    for (by, which) in [("+1h", "behind"), ("-1h", "ahead of")] {
        let (code, printed, error) = shifted(by, &["status"]);
        assert_eq!((code, error.as_str()), (0, ""));
        assert_says(
            &printed,
            &["clock      20", which, "this machine's", "one of the two is wrong"],
        );
        assert!(printed.contains("59m 5") || printed.contains("1h"), "{printed}");
    }
    let (_, printed, _) = run(&["status", "--addr", address]);
    assert_says(&printed, &["clock      20"]);
    assert!(!printed.contains("this machine's"), "{printed}");
    // What was refused has left no trace, and the next one is taken.
    let mut given = event(USER, "acme", opt_in("utility"));
    given.request_id = "1".into();
    assert!(sidecar.records().await.record_event(given).await.unwrap().into_inner().applied);
}
