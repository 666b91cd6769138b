//! A real Cluster: three primaries and as many replicas, and what operators do to it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::process::Command;
use std::time::Duration;

use super::redis::{Redis, wait_within};
use super::resp::Value;
use super::servers::{NOT_INSTALLED, ServerKind, free_port};

/// The slot of a ledger's first partition, and so of all keys of a ledger with one.
pub const SLOT: u16 = 4_659;

/// How many shards there are.
const SHARDS: usize = 3;

/// How many slots there are.
const SLOTS: usize = 16_384;

/// After how long without an answer a node is taken for lost.
const NODE_TIMEOUT_MS: &str = "1000";

/// How long the nodes may take to agree on something, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// How many keys are moved at a time from one node to another.
const KEYS_PER_MOVE: &str = "16";

/// The nodes of a Cluster, the primaries first; all are killed when it is dropped.
pub struct Cluster {
    /// Each of them.
    pub nodes: Vec<Redis>,
    kind: ServerKind,
}

/// Starts a node of this kind that belongs to no Cluster yet.
fn node(kind: ServerKind, options: &[&str]) -> Redis {
    let bus = free_port().to_string();
    let ours = [
        ["--cluster-enabled", "yes"],
        ["--cluster-config-file", "nodes.conf"],
        ["--cluster-node-timeout", NODE_TIMEOUT_MS],
        ["--cluster-port", &bus],
    ];
    Redis::start_kind(kind, &[&ours.concat()[..], options].concat())
}

/// The id of a node.
pub fn id(node: &Redis) -> String {
    node.command(&["CLUSTER", "MYID"]).text()
}

/// A field of `CLUSTER INFO`.
fn info(node: &Redis, field: &str) -> String {
    let said = node.try_command(&["CLUSTER", "INFO"]).map(|said| said.text()).unwrap_or_default();
    let line = said.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap_or_default().to_owned()
}

/// Waits until something is so.
pub fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    wait_within(PATIENCE, &format!("the Cluster: {what}"), is_so);
}

impl Cluster {
    /// Starts three primaries, each with a replica.
    pub fn start(options: &[&str]) -> Self {
        Self::start_kind(ServerKind::chosen(), options)
    }

    /// Starts one of this kind, for a test of what that kind does.
    pub fn start_kind(kind: ServerKind, options: &[&str]) -> Self {
        let nodes: Vec<_> = (0..2 * SHARDS).map(|_| node(kind, options)).collect();
        let cluster = Self { nodes, kind };
        for (number, node) in cluster.nodes.iter().enumerate() {
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
        }
        for node in &cluster.nodes[1..] {
            cluster.introduce(node);
        }
        for (shard, primary) in cluster.nodes[..SHARDS].iter().enumerate() {
            let ends = [shard, shard + 1].map(|n| n * SLOTS / SHARDS);
            let (first, last) = (ends[0].to_string(), (ends[1] - 1).to_string());
            primary.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
        }
        for shard in 0..SHARDS {
            replicate(&cluster.nodes[SHARDS + shard], &cluster.nodes[shard]);
        }
        cluster.wait_until_ok();
        cluster
    }

    /// Introduces a node to the first one.
    fn introduce(&self, node: &Redis) {
        let (port, bus) = (node.port().to_string(), bus_port(node));
        self.nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
    }

    /// Adds a node without slots, and waits until all know it.
    pub fn add(&mut self, options: &[&str]) {
        let node = node(self.kind, options);
        self.introduce(&node);
        self.nodes.push(node);
        self.wait_until_ok();
    }

    /// Waits until every node knows every other one and serves.
    pub fn wait_until_ok(&self) {
        let count = self.nodes.len().to_string();
        wait_until("every node serves and knows the others", || {
            self.nodes.iter().all(|node| {
                let nodes = node.try_command(&["CLUSTER", "NODES"]);
                let nodes = nodes.map(|nodes| nodes.text()).unwrap_or_default();
                info(node, "cluster_state") == "ok"
                    && info(node, "cluster_known_nodes") == count
                    && !nodes.contains("fail")
                    && !nodes.contains("handshake")
            })
        });
    }

    /// The URL of a ledger in it, with so many of its nodes.
    pub fn url(&self, given: usize) -> String {
        let nodes: Vec<_> = self.nodes.iter().take(given).map(|node| node.address()).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    /// The place of the node that all of these name as the owner of the ledger's slot, if they agree.
    pub fn owner_by(&self, asked: &[usize]) -> Option<usize> {
        self.owner_of_by(SLOT, asked)
    }

    /// The same of another slot.
    pub fn owner_of_by(&self, slot: u16, asked: &[usize]) -> Option<usize> {
        let mut named = asked.iter().map(|place| self.owner_named_by(slot, *place));
        let first = named.next()??;
        let all = named.all(|owner| owner.as_ref() == Some(&first));
        all.then(|| self.nodes.iter().position(|node| node.address() == first))?
    }

    fn owner_named_by(&self, slot: u16, place: usize) -> Option<String> {
        let nodes = self.nodes[place].try_command(&["CLUSTER", "NODES"]).ok()?.text();
        let owns = |line: &&str| {
            let is_owned = ranges(line).any(|range| range.contains(&slot));
            is_owned && line.split(' ').nth(2).is_some_and(|flags| flags.contains("master"))
        };
        let line = nodes.lines().find(owns)?;
        let address = line.split(' ').nth(1)?.split('@').next()?;
        // A node that met no other one does not know its own host.
        let host = if address.starts_with(':') { "127.0.0.1" } else { "" };
        Some(format!("{host}{address}"))
    }

    /// The place of the node that owns the ledger's slot, as all nodes say.
    pub fn owner(&self) -> usize {
        self.owner_of(SLOT)
    }

    /// The same of another slot.
    pub fn owner_of(&self, slot: u16) -> usize {
        let all: Vec<_> = (0..self.nodes.len()).collect();
        let mut owner = None;
        wait_until("all nodes name one owner", || {
            owner = self.owner_of_by(slot, &all);
            owner.is_some()
        });
        owner.unwrap()
    }

    /// The place of a primary that does not own the slot.
    pub fn other_primary(&self) -> usize {
        let owner = self.owner();
        (0..SHARDS).find(|place| *place != owner).unwrap()
    }

    /// Waits until these name another owner than this one, and gives its place.
    pub fn wait_for_successor(&self, of: usize, asked: &[usize]) -> usize {
        self.wait_for_successor_in(SLOT, of, asked)
    }

    /// The same of another slot.
    pub fn wait_for_successor_in(&self, slot: u16, of: usize, asked: &[usize]) -> usize {
        let mut successor = None;
        wait_until("another node owns the slot", || {
            successor = self.owner_of_by(slot, asked).filter(|owner| *owner != of);
            successor.is_some()
        });
        successor.unwrap()
    }

    /// How many slots a node has, as it says.
    pub fn slots_of(&self, place: usize) -> usize {
        let nodes = self.nodes[place].command(&["CLUSTER", "NODES"]).text();
        let own = nodes.lines().find(|line| line.contains("myself")).expect("a line of its own");
        ranges(own).map(Iterator::count).sum()
    }

    /// The slot of each partition of the ledger, by its number: where its meta key is.
    pub fn partitions(&self) -> BTreeMap<u32, u16> {
        let mut slots = BTreeMap::new();
        for node in &self.nodes {
            for key in node.command(&["KEYS", "{consent:*}:meta"]).parts() {
                let key = key.text();
                let tag = key.trim_start_matches("{consent:").split(['.', '}']).next();
                let number = tag.and_then(|number| number.parse().ok());
                let slot = node.command(&["CLUSTER", "KEYSLOT", &key]).text();
                slots.insert(number.expect("a partition's number"), slot.parse().unwrap());
            }
        }
        slots
    }

    /// Manages the Cluster as an operator does, by `redis-cli --cluster` and these words; the first node is asked.
    #[allow(dead_code, reason = "each test crate uses a part of it")]
    pub fn manage(&self, command: &str, words: &[&str]) {
        let address = self.nodes[0].address();
        let arguments = [&["--cluster", command, &address], words].concat();
        let output = Command::new("redis-cli").args(&arguments).output();
        let output = output.unwrap_or_else(|error| panic!("redis-cli: {error}: {NOT_INSTALLED}"));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }

    /// The place of a node's replica, if it has one; all nodes must be up.
    pub fn replica_of(&self, primary: usize) -> Option<usize> {
        let port = self.nodes[primary].port().to_string();
        (0..self.nodes.len()).find(|place| self.nodes[*place].info("master_port") == port)
    }

    /// Begins to move a slot key by key.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let (slot, [source, target]) = (slot.to_string(), [from, to].map(|at| id(&self.nodes[at])));
        self.nodes[to].command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]);
        self.nodes[from].command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]);
    }

    /// Moves some keys of the slot; returns whether there were any.
    pub fn move_keys(&self, slot: u16, from: usize, to: usize) -> bool {
        let slot = slot.to_string();
        let command = ["CLUSTER", "GETKEYSINSLOT", &slot, KEYS_PER_MOVE];
        let keys = self.nodes[from].command(&command).parts();
        if keys.is_empty() {
            return false;
        }
        let port = self.nodes[to].port().to_string();
        let words = ["MIGRATE", "127.0.0.1", &port, "", "0", "10000", "KEYS"];
        let keys = keys.into_iter().map(Value::bytes);
        let words: Vec<_> = words.iter().map(|word| word.as_bytes().to_vec()).chain(keys).collect();
        // Nothing is moved if the node has lost these keys meanwhile.
        let _ = self.nodes[from].command(&words);
        true
    }

    /// Ends the move: all primaries are told, the new owner first.
    pub fn end_move(&self, slot: u16, to: usize) {
        let (slot, target) = (slot.to_string(), id(&self.nodes[to]));
        let others = (0..self.nodes.len()).filter(|place| *place != to);
        for place in std::iter::once(to).chain(others) {
            if self.nodes[place].info("role") == "master" {
                self.nodes[place].command(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
            }
        }
    }
}

/// The slots in a line of `CLUSTER NODES`.
fn ranges(line: &str) -> impl Iterator<Item = RangeInclusive<u16>> {
    line.split(' ').skip(8).filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    })
}

/// Makes a node the replica of another one.
fn replicate(replica: &Redis, primary: &Redis) {
    let primary = id(primary);
    // It refuses until it has heard of the primary.
    wait_until("the replica knows its primary", || {
        let answer = replica.try_command(&["CLUSTER", "REPLICATE", &primary]);
        matches!(answer, Ok(Value::Simple(said)) if said == "OK")
    });
    replica.wait_for_info("master_link_status", |status| status == "up");
}

/// The port of a node's bus.
fn bus_port(node: &Redis) -> String {
    let parts = node.command(&["CONFIG", "GET", "cluster-port"]).parts();
    parts.get(1).map(Value::text).unwrap_or_default()
}
