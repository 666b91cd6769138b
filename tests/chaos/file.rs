//! A ledger in a file that is deleted, moved and replaced while a sidecar has it open.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use consentd::grpc::pb::GetStatusResponse;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::fleet::Fleet;
use crate::plan::Fault;
use crate::sidecar::ledger_in;
use crate::world::World;

/// How long a sidecar whose ledger is not where it was may go on: it looks every second.
const NOTICED: Duration = Duration::from_secs(20);

/// How long an event may take to be recorded where all is well.
const RECORDED: Duration = Duration::from_secs(10);

/// The file, and its sidecar.
pub struct File {
    folder: TempDir,
    fleet: Fleet,
    /// How far the backup goes.
    backed_up: u64,
}

impl File {
    /// Starts a sidecar on a new file.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ledger = format!("file:{}", ledger_in(folder.path()).display());
        let fleet = Fleet::start(vec![ledger], &[], Self::BOUND).await;
        let mut file = Self { folder, fleet, backed_up: 0 };
        file.fleet.sidecar(0).kill();
        file.start_again().await.unwrap_or_else(|said| panic!("{said}"));
        file
    }

    fn ledger(&self) -> PathBuf {
        ledger_in(self.folder.path())
    }

    fn backup(&self) -> PathBuf {
        self.folder.path().join("backup")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("ledger.redb.{suffix}"))
    }

    /// Takes a backup while no process has the file open, and starts the sidecar again.
    async fn start_again(&mut self) -> Result<(), String> {
        fs::copy(self.ledger(), self.backup()).map_err(|error| error.to_string())?;
        self.fleet.start_again(0);
        self.fleet.all_live().await?;
        let revision = Cell::new(0);
        let reads = |status: &GetStatusResponse| {
            revision.set(status.revision);
            true
        };
        self.fleet.until(0, RECORDED, "says how far it is", reads).await?;
        // What is recorded from here on is not in the backup.
        self.backed_up = revision.get();
        Ok(())
    }

    /// The sidecar must end with an error, and not start without the remedy.
    async fn ends(&mut self, says: &str) -> Result<(), String> {
        let ended = timeout(NOTICED, self.fleet.sidecar(0).ended()).await;
        let said = self.fleet.sidecar(0).said();
        match ended {
            Err(_) => return Err(format!("it goes on after {NOTICED:?}: {said}")),
            Ok(status) if status.success() => return Err(format!("it ended well: {said}")),
            Ok(_) => {}
        }
        match self.fleet.try_start_again(0) {
            Ok(_) => Err("it starts though what was acknowledged is not there".to_owned()),
            Err(said) if said.contains(says) => Ok(()),
            Err(said) => Err(format!("it does not say {says:?}: {said}")),
        }
    }
}

impl World for File {
    const BOUND: Duration = Duration::from_millis(1_500);
    const FORGETS_REQUEST_IDS: bool = false;

    fn fleet(&mut self) -> &mut Fleet {
        &mut self.fleet
    }

    async fn begin(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::FileDeleted => fs::remove_file(self.ledger()).unwrap(),
            Fault::FileRenamed => fs::rename(self.ledger(), self.beside("moved")).unwrap(),
            Fault::FileReplaced => {
                let before = self.backed_up;
                let is_more = |status: &GetStatusResponse| status.revision > before;
                self.fleet.until(0, RECORDED, "records", is_more).await?;
                let copy = self.folder.path().join("restored");
                fs::copy(self.backup(), &copy).unwrap();
                fs::rename(copy, self.ledger()).unwrap();
                return self.ends("ends at revision").await;
            }
            other => return self.fleet.begin(other).await,
        }
        self.ends("there is no ledger").await
    }

    async fn end(&mut self, fault: Fault) -> Result<(), String> {
        let content = match fault {
            Fault::FileDeleted | Fault::FileReplaced => self.beside("rescued"),
            Fault::FileRenamed => self.beside("moved"),
            Fault::SidecarKilled(_) => return self.start_again().await,
            other => {
                self.fleet.end(other);
                return Ok(());
            }
        };
        let moved = fs::rename(&content, self.ledger());
        moved.map_err(|error| format!("{}: {error}", content.display()))?;
        self.start_again().await
    }
}
