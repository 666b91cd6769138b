//! A Cluster: nodes that are lost, suspended and isolated, and a slot that moves while writers write.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::fleet::Fleet;
use crate::plan::{BUCKETS, Fault, Setting};
use crate::sidecar::run;
use crate::world::World;

/// How long the nodes may take to have another owner of the slot.
const FAILOVER: Duration = Duration::from_secs(40);

/// How often is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The servers.
pub struct Clustered {
    cluster: Cluster,
    fleet: Fleet,
    /// The nodes that a fault has stopped or killed.
    down: Vec<usize>,
}

impl Clustered {
    /// Starts all, and makes a ledger.
    pub async fn start() -> Self {
        // What was acknowledged is on the disk of a node that is killed, so that no failover loses it
        // for good: a replica that lags is a loss, which other settings play.
        let cluster = Cluster::start(&["--appendonly", "yes"]);
        let buckets = BUCKETS.to_string();
        let (code, printed, error) =
            run(&["init", "--ledger", &cluster.url(2), "--buckets", &buckets]);
        assert_eq!(code, 0, "init: {printed}{error}");
        let ledgers = vec![cluster.url(2); Setting::Cluster.sidecars()];
        let flags = ["--durability", "replicas:1", "--scrub-every", "100ms"];
        let fleet = Fleet::start(ledgers, &flags, Self::BOUND).await;
        Self { cluster, fleet, down: Vec::new() }
    }

    /// Waits until the nodes that run name another owner than this one.
    async fn successor(&self, of: usize) -> Result<(), String> {
        let asked: Vec<_> =
            (0..self.cluster.nodes.len()).filter(|place| !self.down.contains(place)).collect();
        let started = Instant::now();
        loop {
            if self.cluster.owner_by(&asked).is_some_and(|owner| owner != of) {
                return Ok(());
            }
            if started.elapsed() > FAILOVER {
                return Err(format!("no other owner within {FAILOVER:?}"));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Moves the slot to the next primary, with writers on.
    async fn move_slot(&self) -> Result<(), String> {
        let from = self.cluster.owner();
        let is_primary =
            |place: &usize| *place != from && self.cluster.nodes[*place].info("role") == "master";
        let count = self.cluster.nodes.len();
        let to = (from + 1..from + count).map(|place| place % count).find(is_primary);
        let to = to.ok_or("there is no other primary")?;
        self.cluster.begin_move(from, to);
        while self.cluster.move_keys(from, to) {
            sleep(Duration::from_millis(1)).await;
        }
        self.cluster.end_move(to);
        Ok(())
    }

    /// The replica of the slot's owner.
    fn replica_of(&self, owner: usize) -> Option<usize> {
        let port = self.cluster.nodes[owner].port().to_string();
        (0..self.cluster.nodes.len())
            .find(|place| self.cluster.nodes[*place].info("master_port") == port)
    }
}

impl World for Clustered {
    const BOUND: Duration = Duration::from_millis(1_500);
    const FORGETS_REQUEST_IDS: bool = true;

    fn fleet(&mut self) -> &mut Fleet {
        &mut self.fleet
    }

    async fn begin(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::OwnerKilled | Fault::OwnerStopped => {
                let owner = self.cluster.owner();
                self.down.push(owner);
                if matches!(fault, Fault::OwnerKilled) {
                    self.cluster.nodes[owner].kill();
                } else {
                    self.cluster.nodes[owner].stop();
                }
                self.successor(owner).await?;
            }
            Fault::OwnerIsolated => {
                let owner = self.cluster.owner();
                self.down = (0..self.cluster.nodes.len()).filter(|other| *other != owner).collect();
                for place in &self.down {
                    self.cluster.nodes[*place].stop();
                }
            }
            Fault::OwnerReplaced => {
                let owner = self.cluster.owner();
                let replica = self.replica_of(owner).ok_or("the owner has no replica")?;
                self.cluster.nodes[replica].command(&["CLUSTER", "FAILOVER"]);
                self.successor(owner).await?;
            }
            Fault::SlotMoved => self.move_slot().await?,
            other => return self.fleet.begin(other).await,
        }
        Ok(())
    }

    async fn end(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::OwnerKilled => {
                for place in std::mem::take(&mut self.down) {
                    self.cluster.nodes[place].start_again();
                }
            }
            Fault::OwnerStopped | Fault::OwnerIsolated => {
                for place in std::mem::take(&mut self.down) {
                    self.cluster.nodes[place].go_on();
                }
            }
            Fault::OwnerReplaced | Fault::SlotMoved => {}
            other => self.fleet.end(other),
        }
        Ok(())
    }

    /// The nodes agree again, and each primary has its replica.
    fn heal(&mut self) {
        self.cluster.wait_until_ok();
    }

    fn server_logs(&self) -> Vec<(String, String)> {
        let nodes = self.cluster.nodes.iter().enumerate();
        nodes.map(|(place, node)| (format!("node-{place}.log"), node.log())).collect()
    }
}
