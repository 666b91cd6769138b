//! Three servers, three sidecars behind a network each, and what can be done to them.

use std::time::Duration;

use crate::fleet::Fleet;
use crate::lost_keys::Lost;
use crate::plan::{BUCKETS, Fault, Setting, Which};
use crate::proxy::{Faults, Proxy, Pushes};
use crate::redis::Redis;
use crate::sidecar::run;
use crate::world::World;

/// How many servers there are: a primary and its replicas.
const SERVERS: usize = 3;

/// A server that keeps what it acknowledged, and refuses without its replica.
const SERVER: [&str; 8] = [
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--min-replicas-to-write",
    "1",
    "--min-replicas-max-lag",
    "1",
];

/// Makes a ledger in a server.
pub fn init(redis: &Redis) {
    let ledger = format!("redis://{}", redis.address());
    let buckets = BUCKETS.to_string();
    let (code, printed, error) = run(&["init", "--ledger", &ledger, "--buckets", &buckets]);
    assert_eq!(code, 0, "{printed}{error}");
}

/// All of them.
pub struct Replicated {
    servers: Vec<Redis>,
    primary: usize,
    /// The one that was the primary before, until it has joined the others again.
    former: usize,
    nets: Vec<Proxy>,
    fleet: Fleet,
    /// Keys that are gone, or that Redis may evict.
    lost: Option<Lost>,
}

impl Replicated {
    /// Starts all, and makes a ledger.
    pub async fn start() -> Self {
        let servers: Vec<Redis> = (0..SERVERS).map(|_| Redis::start(&SERVER)).collect();
        for replica in &servers[1..] {
            replica.follow(&servers[0]);
        }
        servers[0].wait_for_info("min_slaves_good_slaves", |count| count == "2");
        init(&servers[0]);
        // Only an acknowledged event waits for a replica. A failover that comes before the ledger
        // itself is replicated leaves no ledger, and that is not what is tried here.
        for replica in &servers[1..] {
            replica.catch_up_with(&servers[0]);
        }
        let mut nets = Vec::new();
        for _ in 0..Setting::Replicated.sidecars() {
            nets.push(Proxy::before(&servers[0].address()).await);
        }
        let ledgers = nets.iter().map(|net| format!("redis://{}", net.address())).collect();
        let flags = ["--durability", "replicas:1", "--scrub-every", "100ms"];
        let fleet = Fleet::start(ledgers, &flags, Self::BOUND).await;
        Self { servers, primary: 0, former: 0, nets, fleet, lost: None }
    }

    fn primary(&self) -> &Redis {
        &self.servers[self.primary]
    }

    fn disturb(&self, sidecar: usize, which: Which, faults: Faults) {
        match which {
            Which::Commands => self.nets[sidecar].commands(faults),
            Which::Subscriptions => self.nets[sidecar].subscriptions(faults),
            Which::All => self.nets[sidecar].all(faults),
        }
    }

    fn replicas(&self) -> impl Iterator<Item = &Redis> {
        let servers = self.servers.iter().enumerate();
        servers.filter(|(place, _)| *place != self.primary).map(|(_, server)| server)
    }

    /// Makes a replica the primary, for all sidecars but one that may be left behind. It has all
    /// that was acknowledged: what a failover may lose is a stated limit, and not looked for here.
    fn promote(&mut self, but: Option<usize>) {
        let offset = |place: &usize| {
            self.servers[*place].info("master_repl_offset").parse::<u64>().unwrap_or(0)
        };
        let places = (0..SERVERS).filter(|place| *place != self.primary);
        let next = places.clone().max_by_key(offset).unwrap();
        let other = places.clone().find(|place| *place != next).unwrap();
        if but.is_some() {
            // The old primary lives, and may acknowledge what this one has: it must have it too.
            self.servers[other].lag();
            self.servers[next].wait_for_info("master_repl_offset", |ours| {
                ours.parse::<u64>().unwrap_or(0) >= offset(&other)
            });
        }
        self.servers[next].promote();
        self.servers[other].follow(&self.servers[next]);
        (self.former, self.primary) = (self.primary, next);
        let address = self.servers[next].address();
        for (place, net) in self.nets.iter().enumerate() {
            if Some(place) != but {
                net.lead_to(&address);
            }
        }
    }

    /// Makes the former primary a replica of the present one.
    fn join(&self) {
        self.servers[self.former].follow(self.primary());
    }

    fn begin_at_servers(&mut self, fault: Fault) {
        match fault {
            Fault::PrimaryStopped => self.primary().stop(),
            Fault::ReplicasStopped => self.replicas().for_each(|replica| replica.stop()),
            Fault::PrimaryKilled => self.servers[self.primary].kill(),
            Fault::FailedOver => {
                self.servers[self.primary].kill();
                self.promote(None);
            }
            Fault::Isolated(sidecar) => self.promote(Some(sidecar)),
            Fault::Trimmed => {
                self.primary().command(&["XTRIM", "{consent:0}:log", "MAXLEN", "0"]);
            }
            Fault::KeysDeleted(keys) => self.lost = Some(Lost::delete(self.primary(), keys)),
            _ => {}
        }
    }

    fn end_at_servers(&mut self, fault: Fault) {
        match fault {
            Fault::PrimaryStopped => self.primary().go_on(),
            Fault::ReplicasStopped => self.replicas().for_each(|replica| replica.go_on()),
            Fault::PrimaryKilled => self.servers[self.primary].start_again(),
            Fault::FailedOver => {
                self.servers[self.former].start_again();
                self.join();
            }
            Fault::Isolated(sidecar) => {
                self.nets[sidecar].lead_to(&self.primary().address());
                self.join();
            }
            _ => {}
        }
    }
}

impl World for Replicated {
    const BOUND: Duration = Duration::from_millis(1_500);
    const FORGETS_REQUEST_IDS: bool = true;

    fn fleet(&mut self) -> &mut Fleet {
        &mut self.fleet
    }

    async fn begin(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::Network(sidecar, which, faults) => self.disturb(sidecar, which, faults),
            Fault::Pushed(sidecar, pushes) => self.nets[sidecar].pushes(pushes),
            Fault::Refused(sidecar) => {
                self.nets[sidecar].refuse(true);
                self.nets[sidecar].reset();
            }
            Fault::Reset(sidecar) => self.nets[sidecar].reset(),
            Fault::SidecarStopped(_) | Fault::SidecarKilled(_) | Fault::Greedy(..) => {
                return self.fleet.begin(fault).await;
            }
            Fault::Evicted(kibibytes) => {
                self.lost = Some(Lost::evict(self.primary(), &self.fleet, kibibytes).await?);
            }
            _ => self.begin_at_servers(fault),
        }
        Ok(())
    }

    async fn end(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::Network(sidecar, which, _) => self.disturb(sidecar, which, Faults::default()),
            Fault::Pushed(sidecar, _) => self.nets[sidecar].pushes(Pushes::Pass),
            Fault::Refused(sidecar) => self.nets[sidecar].refuse(false),
            Fault::SidecarStopped(_) | Fault::SidecarKilled(_) => self.fleet.end(fault),
            Fault::KeysDeleted(_) | Fault::Evicted(_) => {
                let lost = self.lost.take().expect("they were deleted");
                let silence = match fault {
                    Fault::Evicted(_) => Some(lost.keep(self.primary(), Self::BOUND)?),
                    _ => lost.mend(self.primary(), Self::BOUND)?,
                };
                self.fleet.silences.extend(silence);
            }
            _ => self.end_at_servers(fault),
        }
        Ok(())
    }

    fn heal(&mut self) {
        self.nets.iter().for_each(Proxy::heal);
    }

    fn server_logs(&self) -> Vec<(String, String)> {
        let servers = self.servers.iter().enumerate();
        servers.map(|(place, server)| (format!("redis-{place}.log"), server.log())).collect()
    }
}
