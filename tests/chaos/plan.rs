//! Which faults come when: by a seed alone, so that a run can be repeated.

use std::fmt;
use std::time::Duration;

use crate::proxy::{Faults, Flow, Pushes};
use crate::rng::Rng;

/// How many sidecars there are.
pub const SIDECARS: usize = 3;

/// How long faults of a round may last, each from its beginning.
const LONGEST: usize = 4_000;

/// In which part of a round they begin.
const BEGIN: usize = 2_500;

/// At most so many faults begin in one round.
const MOST: usize = 4;

/// Which connections a network disturbs.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// Those that send commands.
    Commands,
    /// Those that subscribe.
    Subscriptions,
    /// All.
    All,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A sidecar's network is disturbed.
    Network(usize, Which, Faults),
    /// What is pushed to a sidecar is.
    Pushed(usize, Pushes),
    /// A sidecar's connections are reset, and new ones too.
    Refused(usize),
    /// A sidecar's connections are reset once.
    Reset(usize),
    /// A sidecar is stopped.
    SidecarStopped(usize),
    /// A sidecar is killed, and started again.
    SidecarKilled(usize),
    /// The primary is stopped.
    PrimaryStopped,
    /// The replicas are stopped: nothing can be acknowledged.
    ReplicasStopped,
    /// The primary is killed, and started again with what it had.
    PrimaryKilled,
    /// The primary is killed, and a replica takes its place.
    FailedOver,
    /// A replica takes the primary's place; one sidecar is left with the old one for a while.
    Isolated(usize),
    /// The log is trimmed to nothing.
    Trimmed,
}

/// A fault with its time.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// When it begins, from the round's beginning.
    pub begin: Duration,
    /// How long it lasts, where it lasts.
    pub last: Duration,
    /// What it is.
    pub fault: Fault,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?} for {:?}", self.fault, self.begin, self.last)
    }
}

fn millis(count: usize) -> Duration {
    Duration::from_millis(count as u64)
}

fn flow(rng: &mut Rng) -> Flow {
    match rng.below(4) {
        0 => Flow::Hold,
        1 => Flow::Swallow,
        2 => Flow::Delay(millis(1 + rng.below(1_200))),
        _ => Flow::Drip(1 + rng.below(200), millis(1 + rng.below(30))),
    }
}

fn network(rng: &mut Rng) -> Faults {
    let flow = flow(rng);
    match rng.below(3) {
        0 => Faults { up: flow, ..Faults::default() },
        1 => Faults { down: flow, ..Faults::default() },
        _ => Faults::both(flow),
    }
}

fn fault(rng: &mut Rng) -> Fault {
    let sidecar = rng.below(SIDECARS);
    match rng.below(100) {
        0..34 => {
            let which = rng.pick(&[Which::Commands, Which::Subscriptions, Which::All]);
            Fault::Network(sidecar, which, network(rng))
        }
        34..50 => {
            let every = 2 + rng.below(5) as u64;
            let next = 1 + rng.below(3) as u64;
            let kinds =
                [Pushes::DropEvery(every), Pushes::DropNext(next), Pushes::Duplicate, Pushes::Swap];
            Fault::Pushed(sidecar, rng.pick(&kinds))
        }
        50..55 => Fault::Refused(sidecar),
        55..60 => Fault::Reset(sidecar),
        60..67 => Fault::SidecarStopped(sidecar),
        67..72 => Fault::SidecarKilled(sidecar),
        72..78 => Fault::PrimaryStopped,
        78..82 => Fault::ReplicasStopped,
        82..87 => Fault::PrimaryKilled,
        87..92 => Fault::FailedOver,
        92..96 => Fault::Isolated(sidecar),
        _ => Fault::Trimmed,
    }
}

/// Whether a fault says who is the primary from then on.
fn is_of_servers(fault: Fault) -> bool {
    use Fault::{FailedOver, Isolated, PrimaryKilled, PrimaryStopped, ReplicasStopped, Trimmed};
    matches!(
        fault,
        FailedOver | Isolated(_) | PrimaryKilled | PrimaryStopped | ReplicasStopped | Trimmed
    )
}

/// The sidecar whose process a fault is about.
fn process(fault: Fault) -> Option<usize> {
    match fault {
        Fault::SidecarStopped(sidecar) | Fault::SidecarKilled(sidecar) => Some(sidecar),
        _ => None,
    }
}

/// The faults of one round, in the order of their beginnings.
pub fn round(seed: u64, number: u64) -> Vec<Step> {
    let mut rng = Rng::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let count = 1 + rng.below(MOST);
    let mut steps: Vec<Step> = Vec::new();
    for _ in 0..count {
        let (begin, last) = (millis(rng.below(BEGIN)), millis(200 + rng.below(LONGEST - 200)));
        let fault = fault(&mut rng);
        // Two at once would be about servers and processes that are no longer what they were.
        let excludes = |other: Fault| {
            let both_of_servers = is_of_servers(other) && is_of_servers(fault);
            both_of_servers || process(other).is_some_and(|one| process(fault) == Some(one))
        };
        if !steps.iter().any(|step| excludes(step.fault)) {
            steps.push(Step { begin, last, fault });
        }
    }
    steps.sort_by_key(|step| step.begin);
    steps
}
