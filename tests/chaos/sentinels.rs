//! Servers whose primary is named by Sentinels, and failovers in which the old one goes on
//! answering.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::fleet::Fleet;
use crate::history::{nanos, now};
use crate::judge::Silence;
use crate::plan::{Fault, Setting};
use crate::redis::{MASTER, Redis, Sentinels, Server};
use crate::replicated::init;
use crate::world::World;

/// How long a failover may take: Sentinels may have to hear of the replicas first.
const FAILOVER: Duration = Duration::from_secs(40);

/// For how long writes are held up at most, in milliseconds; longer than a failover takes.
const PAUSE: &str = "120000";

/// How often is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The servers.
pub struct Guarded {
    sentinels: Sentinels,
    /// Two that take turns as the primary.
    servers: [Redis; 2],
    primary: usize,
    /// A replica that stays with a deposed primary, and never becomes the primary itself.
    loyal: Redis,
    fleet: Fleet,
    /// When most Sentinels were killed, and how far the ledger went then.
    unnamed: Option<(u64, u64)>,
}

/// Lets a server obey `REPLICAOF`, or refuse it. One that refuses behaves like a primary behind a
/// partition that leaves its clients on its side.
fn obeys(redis: &Redis, obeys: bool) {
    let sign = if obeys { "+" } else { "-" };
    let [replicaof, slaveof] = ["replicaof", "slaveof"].map(|command| format!("{sign}{command}"));
    redis.command(&["ACL", "SETUSER", "default", &replicaof, &slaveof]);
}

impl Guarded {
    /// Starts all, and makes a ledger.
    pub async fn start() -> Self {
        let first = Redis::start(&["--appendonly", "yes"]);
        init(&first);
        let second = Redis::start_replica_of(&first, &["--appendonly", "yes"]);
        let loyal = Redis::start_replica_of(&first, &["--replica-priority", "0"]);
        let sentinels = Sentinels::watch(&first, 2);
        let ledger = format!("redis+sentinel://{}/{MASTER}", sentinels.addresses());
        let ledgers = vec![ledger; Setting::Sentinels.sidecars()];
        let flags = ["--accept-unfenced", "--scrub-every", "100ms"];
        let fleet = Fleet::start(ledgers, &flags, Self::BOUND).await;
        let servers = [first, second];
        Self { sentinels, servers, primary: 0, loyal, fleet, unnamed: None }
    }

    fn revision(&self) -> u64 {
        let revision = self.servers[self.primary].command(&["HGET", "{consent:0}:meta", "rev"]);
        revision.text().parse().expect("the ledger has a revision")
    }

    /// Has the Sentinels name the other server. What the old one acknowledged is on both; writes
    /// that reach it meanwhile are done there alone, once the other one has been named.
    async fn fail_over(&mut self) -> Result<(), String> {
        let (old, next) = (&self.servers[self.primary], &self.servers[1 - self.primary]);
        obeys(old, false);
        obeys(&self.loyal, false);
        old.command(&["CLIENT", "PAUSE", PAUSE, "WRITE"]);
        next.catch_up_with(old);
        let started = Instant::now();
        let mut said = String::new();
        while self.sentinels.primary() != Some(next.port()) {
            let sentinel = &self.sentinels.servers[0];
            // Refused for as long as it has not heard how the replica is.
            if said != "OK" {
                let answer = sentinel.try_command(&["SENTINEL", "FAILOVER", MASTER]);
                said = answer.map_or_else(|error| error.to_string(), |answer| answer.text());
            }
            if started.elapsed() > FAILOVER {
                return Err(format!("no failover within {FAILOVER:?}: {said}"));
            }
            sleep(LOOK_EVERY).await;
        }
        old.command(&["CLIENT", "UNPAUSE"]);
        if old.info("role") != "master" {
            return Err("the old primary has heard of the failover".to_owned());
        }
        self.primary = 1 - self.primary;
        Ok(())
    }

    /// Makes the other servers replicas of the present primary.
    fn join(&self) {
        let primary = &self.servers[self.primary];
        for replica in [&self.servers[1 - self.primary], &self.loyal] {
            obeys(replica, true);
            replica.follow(primary);
        }
    }
}

impl World for Guarded {
    const BOUND: Duration = Duration::from_millis(1_500);
    const FORGETS_REQUEST_IDS: bool = true;

    fn fleet(&mut self) -> &mut Fleet {
        &mut self.fleet
    }

    async fn begin(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::FailedOverAnswering => return self.fail_over().await,
            Fault::SentinelsKilled => {
                self.sentinels.servers[1..].iter_mut().for_each(Server::kill);
                let from = now();
                self.unnamed = Some((from, self.revision()));
            }
            other => return self.fleet.begin(other).await,
        }
        Ok(())
    }

    async fn end(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::FailedOverAnswering => self.join(),
            Fault::SentinelsKilled => {
                let (from, revision) = self.unnamed.take().expect("they were killed");
                let until = now();
                self.sentinels.servers[1..].iter_mut().for_each(Server::start_again);
                // A poll is a proof for as long as the Sentinels' word of before is not too old.
                let denies_from = from + 2 * nanos(Self::BOUND);
                let why = "most Sentinels are gone".to_owned();
                let revision = Some(revision);
                let silence = Silence { why, from, until, denies_from, revision };
                self.fleet.silences.push(silence);
            }
            other => self.fleet.end(other),
        }
        Ok(())
    }

    fn server_logs(&self) -> Vec<(String, String)> {
        let servers = self.servers.iter().chain([&self.loyal]).enumerate();
        servers.map(|(place, server)| (format!("redis-{place}.log"), server.log())).collect()
    }
}
