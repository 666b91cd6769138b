//! The sidecars of a setting, their greedy neighbours, and when nothing may be acknowledged.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use consentd::grpc::pb;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::get_status_response::Phase;
use tokio::time::sleep;

use crate::judge::Silence;
use crate::load::channel;
use crate::neighbours::Neighbours;
use crate::plan::Fault;
use crate::sidecar::{BINARY, Sidecar};

/// How long a sidecar may need to be live once all faults of a round are over.
pub const RECOVER: Duration = Duration::from_secs(15);

/// How many connections each listener takes, so that greedy neighbours can take them all.
pub const MAX_CONNECTIONS: usize = 160;

/// How often is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How often one that has ended is tried to be started again.
const START_EVERY: Duration = Duration::from_millis(100);

/// The sidecars.
pub struct Fleet {
    sidecars: Vec<Sidecar>,
    /// The ledger of each.
    ledgers: Vec<String>,
    /// The flags of all of them, and those that only one has.
    flags: Vec<String>,
    own_flags: Vec<Vec<String>>,
    /// Those that are to be started again before the round ends.
    down: BTreeSet<usize>,
    /// What greedy clients hold, and of which sidecar.
    neighbours: Vec<(usize, Neighbours)>,
    /// When nothing may have been acknowledged or allowed.
    pub silences: Vec<Silence>,
}

impl Fleet {
    /// Starts one on each of the ledgers, with these flags and this bound.
    pub async fn start(ledgers: Vec<String>, flags: &[&str], bound: Duration) -> Self {
        Self::start_each(ledgers, flags, &[], bound).await
    }

    /// The same, where the first ones have flags of their own too.
    pub async fn start_each(
        ledgers: Vec<String>,
        flags: &[&str],
        own_flags: &[&[&str]],
        bound: Duration,
    ) -> Self {
        let limit = MAX_CONNECTIONS.to_string();
        let bound = format!("{}ms", bound.as_millis());
        let common = ["--max-staleness", &bound, "--max-connections", &limit];
        let common = common.into_iter().chain(["--max-request-bytes", "32MiB"]);
        let owned = |flags: &[&str]| flags.iter().copied().map(str::to_owned).collect();
        let flags = common.chain(flags.iter().copied()).map(str::to_owned).collect();
        let own_flags = own_flags.iter().map(|flags| owned(flags)).collect();
        let mut fleet = Self {
            sidecars: Vec::new(),
            ledgers,
            flags,
            own_flags,
            down: BTreeSet::new(),
            neighbours: Vec::new(),
            silences: Vec::new(),
        };
        for place in 0..fleet.ledgers.len() {
            let sidecar = fleet.begin_sidecar(place, "127.0.0.1:0", "127.0.0.1:0");
            fleet.sidecars.push(sidecar.unwrap_or_else(|said| panic!("no sidecar: {said}")));
        }
        fleet.all_live().await.unwrap_or_else(|said| panic!("{said}"));
        fleet
    }

    fn begin_sidecar(&self, place: usize, listen: &str, record: &str) -> Result<Sidecar, String> {
        let own = ["--listen", listen, "--record", record];
        let only = self.own_flags.get(place).into_iter().flatten();
        let flags = self.flags.iter().chain(only).map(String::as_str);
        let flags: Vec<&str> = flags.chain(own).collect();
        Sidecar::try_start_by(Command::new(BINARY), &self.ledgers[place], &flags, &[])
    }

    /// One of them.
    pub fn sidecar(&mut self, place: usize) -> &mut Sidecar {
        &mut self.sidecars[place]
    }

    /// Where each records.
    pub fn records(&self) -> Vec<String> {
        self.sidecars.iter().map(|sidecar| sidecar.record.clone()).collect()
    }

    /// Where each answers.
    pub fn checks(&self) -> Vec<String> {
        self.sidecars.iter().map(|sidecar| sidecar.grpc.clone()).collect()
    }

    /// Begins a fault that is about a sidecar's process; no other fault gets here.
    pub async fn begin(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::SidecarStopped(place) => self.sidecars[place].signal("STOP"),
            Fault::SidecarKilled(place) => self.sidecars[place].kill(),
            Fault::Greedy(place, greed) => {
                let held = Neighbours::begin(greed, &self.sidecars[place]).await;
                self.neighbours.push((place, held));
            }
            other => return Err(format!("no sidecar can have {other:?}")),
        }
        Ok(())
    }

    /// Ends such a fault. Neighbours stay until everything else is well again.
    pub fn end(&mut self, fault: Fault) {
        match fault {
            Fault::SidecarStopped(place) => self.sidecars[place].signal("CONT"),
            Fault::SidecarKilled(place) => self.start_again(place),
            _ => {}
        }
    }

    /// Starts a sidecar that has ended at the addresses where its clients expect it; later again
    /// where it does not start yet.
    pub fn start_again(&mut self, place: usize) {
        match self.try_start_again(place) {
            Ok(sidecar) => self.sidecars[place] = sidecar,
            Err(_) => {
                self.down.insert(place);
            }
        }
    }

    /// Tries to start a sidecar that has ended; what it said where it does not start.
    pub fn try_start_again(&self, place: usize) -> Result<Sidecar, String> {
        let (listen, record) = (&self.sidecars[place].grpc, &self.sidecars[place].record);
        self.begin_sidecar(place, listen, record)
    }

    /// Waits until all sidecars are there and live; says how long it took.
    pub async fn all_live(&mut self) -> Result<Duration, String> {
        let started = Instant::now();
        while let Some(place) = self.down.first().copied() {
            match self.try_start_again(place) {
                Ok(sidecar) => {
                    self.sidecars[place] = sidecar;
                    self.down.remove(&place);
                }
                // Somebody may have been given its port for a moment.
                Err(said) if started.elapsed() > RECOVER => {
                    return Err(format!("sidecar {place} does not start: {said}"));
                }
                Err(_) => sleep(START_EVERY).await,
            }
        }
        for place in 0..self.sidecars.len() {
            self.until(place, RECOVER, "is live", |status| status.phase() == Phase::Live).await?;
        }
        Ok(started.elapsed())
    }

    /// Waits until what a sidecar says of itself is so.
    pub async fn until(
        &self,
        place: usize,
        within: Duration,
        what: &str,
        is_so: impl Fn(&pb::GetStatusResponse) -> bool,
    ) -> Result<(), String> {
        let started = Instant::now();
        let mut checks = ConsentServiceClient::new(channel(&self.sidecars[place].grpc));
        loop {
            let status = checks.get_status(pb::GetStatusRequest {}).await;
            let status = status.map(tonic::Response::into_inner);
            if status.as_ref().is_ok_and(&is_so) {
                return Ok(());
            }
            if started.elapsed() > within {
                return Err(format!("not so after {within:?}: sidecar {place} {what}: {status:?}"));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The same of all of them.
    pub async fn until_all(
        &self,
        within: Duration,
        what: &str,
        is_so: impl Fn(&pb::GetStatusResponse) -> bool,
    ) -> Result<(), String> {
        for place in 0..self.sidecars.len() {
            self.until(place, within, what, &is_so).await?;
        }
        Ok(())
    }

    /// Sees that others are answered beside greedy neighbours, who leave then.
    pub async fn neighbours_leave(&mut self) -> Result<(), String> {
        for (place, neighbours) in std::mem::take(&mut self.neighbours) {
            let served = neighbours.leave_others_served(&self.sidecars[place]).await;
            served.map_err(|said| format!("sidecar {place}: {said}"))?;
        }
        Ok(())
    }

    /// What the sidecars wrote to standard error.
    pub fn logs(&self) -> Vec<(String, String)> {
        let sidecars = self.sidecars.iter().enumerate();
        sidecars.map(|(place, one)| (format!("sidecar-{place}.log"), one.said())).collect()
    }
}
