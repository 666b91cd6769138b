//! The example clients: each is built as `examples/README.md` says, and holds the conversation that
//! is written there, on every transport.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::sidecar::Sidecar;

/// How many seconds a client may take to be built, and to hold its conversation.
const PATIENCE: (u32, u32) = (600, 120);

/// How many milliseconds the clients' checks may take here, where other tests keep the CPUs busy.
const DEADLINE: &str = "30000";

/// An example client.
struct Client {
    /// Its section in the examples' README.
    language: &'static str,
    folder: &'static str,
    /// All that it consists of.
    files: &'static [&'static str],
    /// A command that shows whether a tool is there, and the Debian packages that bring it.
    tools: &'static [(&'static str, &'static str)],
}

const PYTHON: Client = Client {
    language: "Python",
    folder: "python",
    files: &["client.py", "requirements.txt"],
    tools: &[("python3 -c 'import ensurepip'", "python3-venv")],
};

const GO: Client = Client {
    language: "Go",
    folder: "go",
    files: &["main.go", "tools.go", "go.mod", "go.sum", "generate"],
    tools: &[
        ("go version", "golang-go"),
        ("protoc --version", "protobuf-compiler libprotobuf-dev"),
    ],
};

const NODE: Client = Client {
    language: "Node",
    folder: "node",
    files: &["client.js", "package.json", "package-lock.json", ".npmrc"],
    tools: &[("node --version", "nodejs"), ("npm --version", "npm")],
};

const JAVA: Client = Client {
    language: "Java",
    folder: "java",
    files: &["pom.xml", "src/main/java/Client.java"],
    tools: &[("javac -version", "default-jdk-headless"), ("mvn --version", "maven")],
};

#[tokio::test]
async fn the_python_client_converses_as_written() {
    converses(&PYTHON).await;
}

#[tokio::test]
async fn the_go_client_converses_as_written() {
    converses(&GO).await;
}

#[tokio::test]
async fn the_node_client_converses_as_written() {
    converses(&NODE).await;
}

#[tokio::test]
async fn the_java_client_converses_as_written() {
    converses(&JAVA).await;
}

async fn converses(client: &Client) {
    client.needs_its_tools();
    let (making, run) = client.commands();
    let folder = client.laid_out();
    let made = shell(&making, &folder, PATIENCE.0);
    assert!(made.status.success(), "{} was not built: {}", client.language, said(&made));

    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let socket = here.path().join("consentd.sock");
    let path = socket.to_str().unwrap();
    let name = format!("@consentd-client-{}", there.path().file_name().unwrap().display());
    let tcp_and_unix = Sidecar::live(here.path(), &["--unix", path]).await;
    let _abstract = Sidecar::live(there.path(), &["--unix", &name]).await;

    let addresses = [tcp_and_unix.grpc.clone(), format!("unix:{path}"), format!("unix:{name}")];
    for address in addresses {
        let run = run.replace("127.0.0.1:50051", &format!("'{address}' {DEADLINE}"));
        // A proxy that is not there: a client that took it for a sidecar's would get no answer.
        let proxy = "unset no_proxy NO_PROXY; export http_proxy=http://127.0.0.1:1";
        let output = shell(&format!("{proxy}\n{run}"), &folder, PATIENCE.1);
        let what = format!("{} at {address}: {}", client.language, said(&output));
        if address.starts_with("unix:@") && client.language == "Node" && node_pads_names() {
            // It calls another name, where nobody listens; the examples' README says so.
            assert!(!output.status.success() && output.stdout.is_empty(), "{what}");
            continue;
        }
        assert!(output.status.success(), "{what}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected(), "{what}");
    }
}

impl Client {
    fn needs_its_tools(&self) {
        for (shows, packages) in self.tools {
            let shown = shell(shows, Path::new("."), PATIENCE.1);
            assert!(
                shown.status.success(),
                "the {} client needs what `{shows}` shows: run scripts/test, or apt-get install \
                 {packages}\n{}",
                self.language,
                said(&shown)
            );
        }
    }

    /// What the README has people type: how to build it, and, the last line, how to run it.
    fn commands(&self) -> (String, String) {
        let readme = readme();
        let (_, section) = readme.split_once(&format!("\n### {}\n", self.language)).unwrap();
        assert!(section.trim_start().starts_with(&format!("In `examples/{}`", self.folder)));
        let (making, run) = block(section, "sh").trim_end().rsplit_once('\n').unwrap();
        assert!(run.ends_with(" 127.0.0.1:50051"), "{run}");
        (making.to_owned(), run.to_owned())
    }

    /// Its folder, laid beside the contract where everything that is built goes.
    fn laid_out(&self) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let inside = Path::new("examples").join(self.folder);
        let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(self.folder);
        for file in self.files {
            lay(&root.join(&inside).join(file), &copy.join(&inside).join(file));
        }
        for file in ["consent.proto", "consent_service.proto", "record_service.proto"] {
            let file = Path::new("proto/consent/v1").join(file);
            lay(&root.join(&file), &copy.join(file));
        }
        copy.join(inside)
    }
}

/// Copies a file that has changed; where none has, what was built of them before still stands.
fn lay(from: &Path, to: &Path) {
    if fs::read(to).ok() != Some(fs::read(from).unwrap()) {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
}

/// Runs what somebody would type.
fn shell(script: &str, folder: &Path, seconds: u32) -> Output {
    Command::new("timeout")
        .args([&seconds.to_string(), "sh", "-euc", script])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("coreutils and a shell are part of every system")
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// Whether this Node pads the names of abstract sockets, as it did before version 22.
fn node_pads_names() -> bool {
    let version = shell("node --version", Path::new("."), PATIENCE.1);
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let major = version.trim_start_matches('v').split('.').next().unwrap().parse::<u32>();
    major.unwrap() < 22
}

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/README.md")).unwrap()
}

/// The first block of this kind in some Markdown.
fn block<'a>(markdown: &'a str, kind: &str) -> &'a str {
    let (_, rest) = markdown.split_once(&format!("\n```{kind}\n")).unwrap();
    rest.split_once("```\n").unwrap().0
}

/// What every client says.
fn expected() -> String {
    block(&readme(), "text").to_owned()
}
