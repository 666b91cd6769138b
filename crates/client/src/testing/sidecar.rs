//! The real binary on a ledger of its own.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::address::random;
use crate::client::Client;
use crate::error::Error;

/// How long a sidecar may take to say where it listens, and to load its table.
const PATIENCE: Duration = Duration::from_mins(1);

/// A sidecar that runs the real binary, `CONSENTD_BIN` or `consentd` on the path, on a new ledger in a temporary
/// folder. Dropping it kills it, and removes the folder.
#[derive(Debug)]
pub struct Sidecar {
    child: Child,
    folder: PathBuf,
    binary: OsString,
    flags: Vec<String>,
    address: String,
}

/// A sidecar cannot be started.
#[derive(Debug)]
pub struct NoSidecar(String);

impl fmt::Display for NoSidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoSidecar {}

impl From<Error> for NoSidecar {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

impl Sidecar {
    /// Starts a sidecar, with more flags of `consentd serve`, and waits until it answers checks.
    ///
    /// # Errors
    ///
    /// There is no binary, it did not start, or it did not load its table.
    pub async fn start(flags: &[&str]) -> Result<Self, NoSidecar> {
        #[allow(clippy::disallowed_methods, reason = "the binary is named by the environment")]
        let binary = std::env::var_os("CONSENTD_BIN").unwrap_or_else(|| "consentd".into());
        Self::start_binary(binary, flags).await
    }

    /// The same with a binary that is named here.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_binary(
        binary: impl Into<OsString>,
        flags: &[&str],
    ) -> Result<Self, NoSidecar> {
        let sidecar = Self::start_binary_unready(binary, flags)?;
        sidecar.loaded().await?;
        Ok(sidecar)
    }

    /// The same without waiting for its answers, where only a client with a certificate gets one.
    ///
    /// # Errors
    ///
    /// There is no binary, or it did not start.
    pub fn start_binary_unready(
        binary: impl Into<OsString>,
        flags: &[&str],
    ) -> Result<Self, NoSidecar> {
        let binary = binary.into();
        let folder = std::env::temp_dir().join(format!("consentd-test-{:016x}", random()));
        std::fs::create_dir_all(&folder).map_err(|error| NoSidecar(error.to_string()))?;
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let listen = if flags.iter().any(|flag| flag == "--listen") { "" } else { "127.0.0.1:0" };
        let started = start(&binary, &folder, &flags, listen);
        let (child, address) = started.inspect_err(|_| drop(std::fs::remove_dir_all(&folder)))?;
        Ok(Self { child, folder, binary, flags, address })
    }

    /// The address of its gRPC listener.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A folder of its own, which goes with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The id of its process, to be sent signals.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A client of it.
    ///
    /// # Errors
    ///
    /// As [`Client::new`].
    pub fn client(&self) -> Result<Client, Error> {
        Client::new(&self.address)
    }

    /// Kills it, as a power failure would, and waits until it is gone.
    pub fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it has ended by itself, such as after a signal, but blocks its thread meanwhile.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn wait(&mut self) -> io::Result<()> {
        self.child.wait().map(drop)
    }

    /// Kills it, and starts it again at the same address and on the same ledger.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), NoSidecar> {
        self.kill();
        let listen = if self.address.starts_with("unix:") { "" } else { &self.address };
        let (child, address) = start(&self.binary, &self.folder, &self.flags, listen)?;
        (self.child, self.address) = (child, address);
        self.loaded().await
    }

    async fn loaded(&self) -> Result<(), NoSidecar> {
        Ok(self.client()?.ready(PATIENCE).await?)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn start(
    binary: &OsStr,
    folder: &Path,
    flags: &[String],
    listen: &str,
) -> Result<(Child, String), NoSidecar> {
    let mut command = Command::new(binary);
    command.arg("serve").args(flags);
    if !flags.iter().any(|flag| matches!(flag.as_str(), "--ledger" | "--synthetic")) {
        command.arg("--ledger").arg(format!("file:{}", folder.join("consentd.redb").display()));
    }
    if !listen.is_empty() {
        command.args(["--listen", listen]);
    }
    if !flags.iter().any(|flag| flag == "--admin") {
        command.args(["--admin", "127.0.0.1:0"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| {
        let binary = binary.display();
        NoSidecar(format!("{binary}: {error}: set CONSENTD_BIN, or have consentd on the path"))
    })?;
    let Some(log) = child.stderr.take() else {
        return Err(NoSidecar("the sidecar has no standard error".to_owned()));
    };
    // Its log is read to the end, so that it never waits for a reader.
    let (said, listening) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = Vec::new();
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            if lines.len() < 100 {
                lines.push(line);
                let address = lines.last().and_then(|line| listening_at(line));
                if let Some(address) = address {
                    let _ = said.send(Ok(address));
                }
            }
        }
        let _ = said.send(Err(lines.join("\n")));
    });
    let failed = match listening.recv_timeout(PATIENCE) {
        Ok(Ok(address)) => return Ok((child, address)),
        Ok(Err(lines)) => format!("the sidecar ended: {lines}"),
        Err(_) => "the sidecar does not say where it listens".to_owned(),
    };
    let _ = child.kill();
    let _ = child.wait();
    Err(NoSidecar(failed))
}

/// The first address that a line of the log says the sidecar listens at.
fn listening_at(line: &str) -> Option<String> {
    let is_it = line.contains("\"message\":\"listening\"");
    let (_, rest) = line.split_once("\"grpc\":\"").filter(|_| is_it)?;
    let (addresses, _) = rest.split_once('"')?;
    addresses.split(',').next().map(str::to_owned)
}
