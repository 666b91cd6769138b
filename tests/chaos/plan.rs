//! Which faults come when: by a seed alone, so that a run can be repeated.

use std::fmt;
use std::time::Duration;

use consentd_core::id::BusinessId;
use consentd_core::partition::Layout;

use crate::load::BUSINESS;
use crate::proxy::{Faults, Flow, Pushes};
use crate::rng::Rng;

/// How long faults of a round may last, each from its beginning.
const LONGEST: usize = 4_000;

/// In which part of a round they begin.
const BEGIN: usize = 2_500;

/// At most so many faults begin in one round.
const MOST: usize = 4;

/// How many faults are drawn to find one of the names that are wanted.
const MAX_DRAWN: usize = 10_000;

/// How many buckets a ledger in Redis has.
pub const BUCKETS: usize = 64;

/// How many partitions a ledger in a Cluster has.
pub const CLUSTER_PARTITIONS: u32 = 64;

/// How many of them each business is in.
pub const CLUSTER_SPREAD: u32 = 4;

/// At most so many kibibytes are too many where Redis is to evict keys.
const MOST_EVICTED: usize = 400;

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

/// What a ledger is kept in, and how its sidecars find it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Setting {
    /// A Redis with replicas, and a network of its own before each sidecar.
    Replicated,
    /// A Redis with replicas whose primary is named by Sentinels.
    Sentinels,
    /// A Cluster of three primaries with a replica each.
    Cluster,
    /// A file, which one sidecar has open.
    File,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Replicated, Self::Sentinels, Self::Cluster, Self::File];

    /// How many sidecars there are.
    pub fn sidecars(self) -> usize {
        match self {
            Self::Replicated => 3,
            Self::Sentinels | Self::Cluster => 2,
            Self::File => 1,
        }
    }
}

/// Which keys of a ledger are deleted.
#[derive(Clone, Copy, Debug)]
pub enum Keys {
    /// A bucket of pairs.
    Bucket(usize),
    /// The histories of a bucket's pairs.
    Histories(usize),
    /// A bucket and its histories.
    Both(usize),
    /// The statements.
    Text,
    /// The log.
    Log,
    /// The fence.
    Fence,
    /// What says which ledger it is, and how far it goes.
    Meta,
}

/// What a neighbour takes more of than its share.
#[derive(Clone, Copy, Debug)]
pub enum Greed {
    /// Calls that are begun and say nothing.
    SilentCalls,
    /// Questions and messages with user ids of a megabyte, whose answers the client does not read.
    LongIds,
    /// Questions that wait for a revision that never comes.
    Waits,
    /// Messages that never arrive whole.
    UnfinishedBodies,
    /// Connections, as many as there may be, that say nothing.
    IdleConnections,
}

/// How the nodes of a shard are lost.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// They are killed, and started again with what they had.
    Killed,
    /// They are stopped: connections stay, and nobody answers.
    Stopped,
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
    /// Keys of the ledger are deleted.
    KeysDeleted(Keys),
    /// Redis is configured to evict keys, and its memory limit is exceeded by this many kibibytes.
    Evicted(u64),
    /// Clients take more of a sidecar than their share.
    Greedy(usize, Greed),
    /// The Sentinels name another primary, and the old one goes on answering.
    FailedOverAnswering,
    /// Most of the Sentinels are killed, so that no majority can name the primary.
    SentinelsKilled,
    /// The node that owns the ledger's slot is killed; its replica takes its place.
    OwnerKilled,
    /// The node that owns the slot is stopped, for longer than its replica waits.
    OwnerStopped,
    /// All nodes but the owner are stopped: it answers, and nobody names it.
    OwnerIsolated,
    /// The owner's replica takes its place by agreement.
    OwnerReplaced,
    /// The slot of this partition is moved to another node, key by key.
    SlotMoved(u32),
    /// The primary that has this partition and its replica are killed, or stopped: nobody takes their place.
    ShardLost(u32, Loss),
    /// The ledger's file is deleted.
    FileDeleted,
    /// The ledger's file is renamed.
    FileRenamed,
    /// A backup is renamed over the ledger's file.
    FileReplaced,
}

impl Fault {
    /// Its name, without what it is about.
    pub fn name(self) -> String {
        let told = format!("{self:?}");
        let end = told.find('(').unwrap_or(told.len());
        told[..end].to_owned()
    }
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

fn keys(rng: &mut Rng) -> Keys {
    let bucket = rng.below(BUCKETS);
    let bucket_or_histories = [Keys::Bucket(bucket), Keys::Histories(bucket), Keys::Both(bucket)];
    match rng.below(7) {
        0..3 => rng.pick(&bucket_or_histories),
        3 => Keys::Text,
        4 => Keys::Log,
        5 => Keys::Fence,
        _ => Keys::Meta,
    }
}

/// Any partition of a Cluster's ledger; more often than not one that the writers' business is in.
fn partition(rng: &mut Rng) -> u32 {
    let layout = Layout::new(CLUSTER_PARTITIONS, CLUSTER_SPREAD).expect("both are powers of two");
    let tag = BusinessId::parse(BUSINESS).expect("a business").tag();
    let written: Vec<u32> = layout.partitions_of(tag).collect();
    if rng.percent(60) {
        rng.pick(&written)
    } else {
        let all: Vec<u32> = layout.all().collect();
        rng.pick(&all)
    }
}

fn greedy(sidecar: usize, rng: &mut Rng) -> Fault {
    let kinds = [
        Greed::SilentCalls,
        Greed::LongIds,
        Greed::Waits,
        Greed::UnfinishedBodies,
        Greed::IdleConnections,
    ];
    Fault::Greedy(sidecar, rng.pick(&kinds))
}

fn fault(setting: Setting, rng: &mut Rng) -> Fault {
    let sidecar = rng.below(setting.sidecars());
    match setting {
        Setting::Replicated => replicated(sidecar, rng),
        Setting::Sentinels => match rng.below(100) {
            0..45 => Fault::FailedOverAnswering,
            45..60 => Fault::SentinelsKilled,
            60..75 => greedy(sidecar, rng),
            75..85 => Fault::SidecarStopped(sidecar),
            _ => Fault::SidecarKilled(sidecar),
        },
        Setting::Cluster => match rng.below(100) {
            0..16 => Fault::OwnerKilled,
            16..27 => Fault::OwnerStopped,
            27..38 => Fault::OwnerIsolated,
            38..50 => Fault::OwnerReplaced,
            50..68 => Fault::SlotMoved(partition(rng)),
            68..80 => {
                let loss = rng.pick(&[Loss::Killed, Loss::Stopped]);
                Fault::ShardLost(partition(rng), loss)
            }
            80..90 => Fault::SidecarStopped(sidecar),
            _ => Fault::SidecarKilled(sidecar),
        },
        Setting::File => match rng.below(100) {
            0..18 => Fault::FileDeleted,
            18..36 => Fault::FileRenamed,
            36..54 => Fault::FileReplaced,
            54..80 => greedy(sidecar, rng),
            80..90 => Fault::SidecarStopped(sidecar),
            _ => Fault::SidecarKilled(sidecar),
        },
    }
}

fn replicated(sidecar: usize, rng: &mut Rng) -> Fault {
    match rng.below(130) {
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
        96..100 => Fault::Trimmed,
        100..113 => Fault::KeysDeleted(keys(rng)),
        113..120 => Fault::Evicted(1 + rng.below(MOST_EVICTED) as u64),
        _ => greedy(sidecar, rng),
    }
}

/// Whether a fault says who is the primary from then on, or what it has.
fn is_of_servers(fault: Fault) -> bool {
    use Fault::{
        Evicted, FailedOver, FailedOverAnswering, Isolated, KeysDeleted, OwnerIsolated,
        OwnerKilled, OwnerReplaced, OwnerStopped, PrimaryKilled, PrimaryStopped, ReplicasStopped,
        SentinelsKilled, ShardLost, SlotMoved, Trimmed,
    };
    matches!(
        fault,
        FailedOver
            | FailedOverAnswering
            | Isolated(_)
            | OwnerIsolated
            | OwnerKilled
            | OwnerReplaced
            | OwnerStopped
            | ShardLost(..)
            | SlotMoved(_)
            | PrimaryKilled
            | PrimaryStopped
            | ReplicasStopped
            | SentinelsKilled
            | Trimmed
            | KeysDeleted(_)
            | Evicted(_)
    )
}

/// The sidecar whose process a fault is about.
fn process(fault: Fault) -> Option<usize> {
    match fault {
        Fault::SidecarStopped(sidecar)
        | Fault::SidecarKilled(sidecar)
        | Fault::Greedy(sidecar, _) => Some(sidecar),
        Fault::FileDeleted | Fault::FileRenamed | Fault::FileReplaced => Some(0),
        _ => None,
    }
}

/// Whether two faults cannot come in one round: they would be about servers and processes that are
/// no longer what they were. Until sidecars know that a Redis evicts keys, which they ask for every
/// two seconds, it may lose what it acknowledged: all of them must be able to hear of it.
fn exclude(one: Fault, other: Fault) -> bool {
    let is_evicted = |fault: Fault| matches!(fault, Fault::Evicted(_));
    let goes_along = |fault: Fault| matches!(fault, Fault::Greedy(..));
    let both_of_servers = is_of_servers(one) && is_of_servers(other);
    both_of_servers
        || process(one).is_some_and(|sidecar| process(other) == Some(sidecar))
        || (is_evicted(one) && !goes_along(other))
        || (is_evicted(other) && !goes_along(one))
}

/// The faults of one round, in the order of their beginnings; only such as have this in their
/// name, where there is any.
pub fn round(setting: Setting, seed: u64, number: u64, only: &str) -> Vec<Step> {
    // Mixed once: the generator's own states are a fixed step apart, and would come again shifted.
    let mut rng = Rng::new(Rng::new(seed ^ (number << 32)).next_u64());
    let count = 1 + rng.below(MOST);
    let mut steps: Vec<Step> = Vec::new();
    for _ in 0..count {
        let (begin, last) = (millis(rng.below(BEGIN)), millis(200 + rng.below(LONGEST - 200)));
        let wanted = |fault: &Fault| format!("{fault:?}").contains(only);
        let drawn = (0..MAX_DRAWN).map(|_| fault(setting, &mut rng)).find(wanted);
        let fault = drawn.unwrap_or_else(|| panic!("{setting:?} has no fault {only:?}"));
        if !steps.iter().any(|step| exclude(step.fault, fault)) {
            steps.push(Step { begin, last, fault });
        }
    }
    steps.sort_by_key(|step| step.begin);
    steps
}

/// Whether a setting has a fault with this in its name.
pub fn has(setting: Setting, only: &str) -> bool {
    let mut rng = Rng::new(1);
    (0..MAX_DRAWN).any(|_| format!("{:?}", fault(setting, &mut rng)).contains(only))
}
