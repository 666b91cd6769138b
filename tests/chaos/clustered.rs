//! A Cluster: nodes that are lost, suspended and isolated, and slots that move while writers write.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::fleet::Fleet;
use crate::load::BUSINESS;
use crate::plan::{CLUSTER_PARTITIONS, CLUSTER_SPREAD, Fault, Loss, Setting};
use crate::sidecar::run;
use crate::world::World;

/// How long the nodes may take to have another owner of the slot.
const FAILOVER: Duration = Duration::from_secs(40);

/// How often is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How many buckets each partition has.
const BUCKETS: &str = "8";

/// The servers.
pub struct Clustered {
    cluster: Cluster,
    fleet: Fleet,
    /// The slot of each partition.
    slots: BTreeMap<u32, u16>,
    /// The nodes that a fault has stopped or killed.
    down: Vec<usize>,
}

impl Clustered {
    /// Starts all, and makes a ledger.
    pub async fn start() -> Self {
        // What was acknowledged is on the disk of a node that is killed, so that no failover loses it for good: a
        // replica that lags is a loss, which other settings play. With a sync every second it would not be: while a
        // sync takes long, Redis puts off its writes to the file too, and both nodes of a shard are killed here.
        let keeps = ["--appendonly", "yes", "--appendfsync", "always"];
        let coverage = ["--cluster-require-full-coverage", "no"];
        let cluster = Cluster::start(&[&keeps[..], &coverage].concat());
        let ledger = cluster.url(2);
        let [partitions, spread] = [CLUSTER_PARTITIONS, CLUSTER_SPREAD].map(|n| n.to_string());
        let shape = ["--partitions", &partitions, "--spread", &spread, "--buckets", BUCKETS];
        let (code, printed, error) = run(&[&["init", "--ledger", &ledger], &shape[..]].concat());
        assert_eq!(code, 0, "init: {printed}{error}");
        let slots = cluster.partitions();
        let ledgers = vec![cluster.url(2); Setting::Cluster.sidecars()];
        let flags = ["--durability", "replicas:1", "--scrub-every", "100ms"];
        // One holds the only business that is written about, and so follows a few of the partitions.
        let own = [&[][..], &["--business", BUSINESS]];
        let fleet = Fleet::start_each(ledgers, &flags, &own, Self::BOUND).await;
        Self { cluster, fleet, slots, down: Vec::new() }
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

    /// Moves the slot of a partition to the next primary, with writers on.
    async fn move_slot(&self, partition: u32) -> Result<(), String> {
        let slot = self.slots[&partition];
        let from = self.cluster.owner_of(slot);
        let is_primary =
            |place: &usize| *place != from && self.cluster.nodes[*place].info("role") == "master";
        let count = self.cluster.nodes.len();
        let to = (from + 1..from + count).map(|place| place % count).find(is_primary);
        let to = to.ok_or("there is no other primary")?;
        self.cluster.begin_move(slot, from, to);
        while self.cluster.move_keys(slot, from, to) {
            sleep(Duration::from_millis(1)).await;
        }
        self.cluster.end_move(slot, to);
        Ok(())
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
                let replica = self.cluster.replica_of(owner).ok_or("the owner has no replica")?;
                self.cluster.nodes[replica].command(&["CLUSTER", "FAILOVER"]);
                self.successor(owner).await?;
            }
            Fault::SlotMoved(partition) => self.move_slot(partition).await?,
            Fault::ShardLost(partition, loss) => {
                let primary = self.cluster.owner_of(self.slots[&partition]);
                let replica = self.cluster.replica_of(primary).ok_or("it has no replica")?;
                // The replica first, which would take over otherwise.
                self.down = vec![replica, primary];
                for place in &self.down {
                    match loss {
                        Loss::Killed => self.cluster.nodes[*place].kill(),
                        Loss::Stopped => self.cluster.nodes[*place].stop(),
                    }
                }
            }
            other => return self.fleet.begin(other).await,
        }
        Ok(())
    }

    async fn end(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            // The primary first: its replica may not have synced all of it.
            Fault::OwnerKilled | Fault::ShardLost(_, Loss::Killed) => {
                for place in std::mem::take(&mut self.down).into_iter().rev() {
                    self.cluster.nodes[place].start_again();
                }
            }
            Fault::OwnerStopped | Fault::OwnerIsolated | Fault::ShardLost(_, Loss::Stopped) => {
                for place in std::mem::take(&mut self.down) {
                    self.cluster.nodes[place].go_on();
                }
            }
            Fault::OwnerReplaced | Fault::SlotMoved(_) => {}
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
