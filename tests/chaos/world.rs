//! Three servers, three sidecars behind a network each, and what can be done to them.

use std::process::Command;
use std::time::{Duration, Instant};

use consentd::grpc::pb;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::get_status_response::Phase;
use tokio::time::sleep;

use crate::load::channel;
use crate::plan::{Fault, SIDECARS, Step, Which};
use crate::proxy::{Faults, Proxy, Pushes};
use crate::redis::Redis;
use crate::sidecar::{BINARY, Sidecar, run};

/// How many servers there are: a primary and its replicas.
const SERVERS: usize = 3;

/// How long a sidecar may need to be live once all faults of a round are over.
const RECOVER: Duration = Duration::from_secs(15);

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

/// All of them.
pub struct World {
    servers: Vec<Redis>,
    primary: usize,
    /// The one that was the primary before, until it has joined the others again.
    former: usize,
    nets: Vec<Proxy>,
    sidecars: Vec<Sidecar>,
    flags: Vec<String>,
}

impl World {
    /// Starts all, and makes a ledger.
    pub async fn start(bound: Duration) -> Self {
        let servers: Vec<Redis> = (0..SERVERS).map(|_| Redis::start(&SERVER)).collect();
        for replica in &servers[1..] {
            replica.follow(&servers[0]);
        }
        servers[0].wait_for_info("min_slaves_good_slaves", |count| count == "2");
        let ledger = format!("redis://{}", servers[0].address());
        let (code, printed, error) = run(&["init", "--ledger", &ledger, "--buckets", "64"]);
        assert_eq!(code, 0, "{printed}{error}");
        let bound = format!("{}ms", bound.as_millis());
        let flags = ["--max-staleness", &bound, "--durability", "replicas:1"];
        let flags = flags.map(str::to_owned).into();
        let (nets, sidecars) = (Vec::new(), Vec::new());
        let mut world = Self { servers, primary: 0, former: 0, nets, sidecars, flags };
        for place in 0..SIDECARS {
            world.nets.push(Proxy::before(&world.servers[0].address()).await);
            let (listen, record) = ("127.0.0.1:0", "127.0.0.1:0");
            let sidecar = world.sidecar(place, listen, record);
            world.sidecars.push(sidecar.unwrap_or_else(|said| panic!("no sidecar: {said}")));
        }
        world.all_live().await.unwrap_or_else(|said| panic!("{said}"));
        world
    }

    fn sidecar(&self, place: usize, listen: &str, record: &str) -> Result<Sidecar, String> {
        let ledger = format!("redis://{}", self.nets[place].address());
        let own = ["--listen", listen, "--record", record];
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).chain(own).collect();
        Sidecar::try_start_by(Command::new(BINARY), &ledger, &flags, &[])
    }

    /// Where each records.
    pub fn records(&self) -> Vec<String> {
        self.sidecars.iter().map(|sidecar| sidecar.record.clone()).collect()
    }

    /// Where each answers.
    pub fn checks(&self) -> Vec<String> {
        self.sidecars.iter().map(|sidecar| sidecar.grpc.clone()).collect()
    }

    /// Plays a round, and sets all right again.
    pub async fn play(&mut self, steps: &[Step]) -> Result<Duration, String> {
        let started = Instant::now();
        let mut acts: Vec<(Duration, Fault, bool)> = Vec::new();
        for step in steps {
            acts.push((step.begin, step.fault, true));
            acts.push((step.begin + step.last, step.fault, false));
        }
        acts.sort_by_key(|(at, ..)| *at);
        for (at, fault, begins) in acts {
            sleep(at.saturating_sub(started.elapsed())).await;
            if begins {
                self.begin(fault);
            } else {
                self.end(fault).await;
            }
        }
        self.nets.iter().for_each(Proxy::heal);
        self.all_live().await
    }

    fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::Network(sidecar, which, faults) => self.disturb(sidecar, which, faults),
            Fault::Pushed(sidecar, pushes) => self.nets[sidecar].pushes(pushes),
            Fault::Refused(sidecar) => {
                self.nets[sidecar].refuse(true);
                self.nets[sidecar].reset();
            }
            Fault::Reset(sidecar) => self.nets[sidecar].reset(),
            Fault::SidecarStopped(sidecar) => self.sidecars[sidecar].signal("STOP"),
            Fault::SidecarKilled(sidecar) => self.sidecars[sidecar].kill(),
            Fault::PrimaryStopped => self.servers[self.primary].stop(),
            Fault::ReplicasStopped => self.replicas().for_each(|replica| replica.stop()),
            Fault::PrimaryKilled => self.servers[self.primary].kill(),
            Fault::FailedOver => {
                self.servers[self.primary].kill();
                self.promote(None);
            }
            Fault::Isolated(sidecar) => self.promote(Some(sidecar)),
            Fault::Trimmed => {
                self.servers[self.primary].command(&["XTRIM", "{consent:0}:log", "MAXLEN", "0"]);
            }
        }
    }

    async fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Network(sidecar, which, _) => self.disturb(sidecar, which, Faults::default()),
            Fault::Pushed(sidecar, _) => self.nets[sidecar].pushes(Pushes::Pass),
            Fault::Refused(sidecar) => self.nets[sidecar].refuse(false),
            Fault::SidecarStopped(sidecar) => self.sidecars[sidecar].signal("CONT"),
            Fault::SidecarKilled(sidecar) => self.start_again(sidecar).await,
            Fault::PrimaryStopped => self.servers[self.primary].go_on(),
            Fault::ReplicasStopped => self.replicas().for_each(|replica| replica.go_on()),
            Fault::PrimaryKilled => self.servers[self.primary].start_again(),
            Fault::FailedOver => {
                self.servers[self.former].start_again();
                self.join();
            }
            Fault::Isolated(sidecar) => {
                self.nets[sidecar].lead_to(&self.servers[self.primary].address());
                self.join();
            }
            Fault::Reset(_) | Fault::Trimmed => {}
        }
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
        self.servers[self.former].follow(&self.servers[self.primary]);
    }

    /// Starts a sidecar that was killed, at the addresses where its clients expect it.
    async fn start_again(&mut self, place: usize) {
        let (listen, record) =
            (self.sidecars[place].grpc.clone(), self.sidecars[place].record.clone());
        let started = Instant::now();
        loop {
            match self.sidecar(place, &listen, &record) {
                Ok(sidecar) => return self.sidecars[place] = sidecar,
                // Somebody may have been given its port for a moment.
                Err(said) => assert!(started.elapsed() < RECOVER, "it does not start: {said}"),
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until all sidecars are live; says how long it took.
    async fn all_live(&self) -> Result<Duration, String> {
        let started = Instant::now();
        for (place, sidecar) in self.sidecars.iter().enumerate() {
            let mut checks = ConsentServiceClient::new(channel(&sidecar.grpc));
            loop {
                let status = checks.get_status(pb::GetStatusRequest {}).await;
                let status = status.map(tonic::Response::into_inner);
                if status.as_ref().is_ok_and(|status| status.phase() == Phase::Live) {
                    break;
                }
                if started.elapsed() > RECOVER {
                    return Err(format!(
                        "sidecar {place} is not live after {RECOVER:?}: {status:?}"
                    ));
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(started.elapsed())
    }

    /// What the sidecars wrote to standard error, and the servers to their logs.
    pub fn logs(&self) -> Vec<(String, String)> {
        let sidecars = self.sidecars.iter().enumerate();
        let sidecars =
            sidecars.map(|(place, sidecar)| (format!("sidecar-{place}.log"), sidecar.said()));
        let servers = self.servers.iter().enumerate();
        sidecars
            .chain(servers.map(|(place, server)| (format!("redis-{place}.log"), server.log())))
            .collect()
    }
}
