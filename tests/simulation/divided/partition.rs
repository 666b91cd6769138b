//! One partition of the ledger: its servers, what was seen of it, and the part of the sidecar that follows it.

use std::collections::HashMap;
use std::rc::Rc;

use consentd_core::businesses::Businesses;
use consentd_core::record::Revision;
use consentd_ledger::{Epoch, FollowerPosition, Position};

use crate::ledger::{Node, Server, USERS};
use crate::oracle::Violation;
use crate::past::Past;
use crate::saved::Saver;
use crate::sidecar::Sidecar;
use crate::wire::Wire;

/// An owner that was replaced and does not know: it answers and takes appends, and most nodes name another one.
pub struct FormerOwner {
    pub server: Server,
    pub machine: usize,
    /// Until when clients reach it.
    pub until: u64,
    pub term: u64,
}

/// One partition, with its own log, epoch, follower and table.
pub struct Partition {
    pub primary: Server,
    pub replica: Server,
    pub backup: Server,
    /// The node that owns it by the word of most nodes, and the one that has its replica.
    pub owner: usize,
    pub spare: usize,
    /// Another number for each owner.
    pub term: u64,
    pub former: Option<FormerOwner>,
    pub lags: bool,
    /// Until when its keys are on their way, one by one, and nothing is answered.
    pub migrating_until: u64,
    /// Whether its owner has none of its keys.
    pub is_missing: bool,
    /// Until when most nodes do not answer who owns it.
    pub unconfirmed_until: u64,
    /// Until when something is wrong with it.
    pub ill_until: u64,
    pub wire: Wire,
    pub wire_until: u64,
    /// How often something of it was lost.
    pub taken: u64,
    pub sidecar: Sidecar,
    /// Whether the sidecar follows it, for which businesses, and in which of its lives.
    pub is_followed: bool,
    pub wanted: Businesses,
    pub life: u64,
    /// What saves its table, where tables are saved.
    pub saver: Option<Saver>,
    pub position: FollowerPosition,
    pub last_announced: u64,
    nodes: HashMap<(Epoch, [u8; 20]), Rc<Node>>,
    past: Past,
}

impl Partition {
    pub fn new(primary: Server, owner: usize, spare: usize, sidecar: Sidecar) -> Self {
        let mut partition = Self {
            replica: primary.clone(),
            backup: primary.clone(),
            primary,
            owner,
            spare,
            term: 0,
            former: None,
            lags: false,
            migrating_until: 0,
            is_missing: false,
            unconfirmed_until: 0,
            ill_until: 0,
            wire: Wire::healthy(),
            wire_until: 0,
            taken: 0,
            sidecar,
            is_followed: false,
            wanted: Businesses::All,
            life: 0,
            saver: None,
            position: FollowerPosition::default(),
            last_announced: 0,
            nodes: HashMap::new(),
            past: Past::default(),
        };
        partition.know(0);
        partition
    }

    /// The place at which the primary stands is one that the ledger had.
    pub fn know(&mut self, now: u64) {
        let end = self.primary.end();
        self.nodes.insert((end.epoch, end.head), Rc::clone(&self.primary.node));
        self.past.stands(now, &self.primary.node);
    }

    /// A server that is not the owner any more stands at this place.
    pub fn know_branch(&mut self, node: &Rc<Node>) {
        self.nodes.insert((node.position.epoch, node.position.head), Rc::clone(node));
        self.past.forks();
    }

    /// The log is asked for, at that time since boot.
    pub fn asks(&mut self, boot: std::time::Duration, now: u64) {
        self.past.asks(boot, now);
    }

    /// Another sidecar takes the place of the one that followed it.
    pub fn follow_anew(&mut self, sidecar: Sidecar) {
        self.sidecar = sidecar;
        self.position = FollowerPosition::default();
        self.past.forget_questions();
    }

    /// Whether it is followed, in this life of its follower.
    pub fn is_in(&self, life: u64) -> bool {
        self.is_followed && self.life == life
    }

    /// What is wrong with it ends then, or later.
    pub fn is_ill(&mut self, until: u64) {
        self.ill_until = self.ill_until.max(until);
    }

    /// Whether its owner answers nothing at this time, for a reason of the partition's own.
    pub fn is_silent(&self, now: u64) -> bool {
        now < self.migrating_until
    }

    /// The former owner, while clients reach it.
    pub fn former(&self, now: u64) -> Option<&FormerOwner> {
        self.former.as_ref().filter(|former| now < former.until)
    }

    pub fn revision(&self) -> Revision {
        self.primary.end().revision
    }

    /// What follows from what its sidecar was just told.
    pub fn after_step(&mut self, touched: bool) -> Result<(), Violation> {
        let machine = self.sidecar.scheduler().state_machine();
        self.position.advance(machine.position(), |revision| machine.head_at(revision));
        if touched {
            self.check_table()?;
        }
        if std::mem::take(&mut self.sidecar.unloaded) && self.past.is_whole() {
            return Err(Violation::new(2, "taken out, though nothing was ever lost"));
        }
        self.sidecar.begun = false;
        self.check_proofs()
    }

    /// Property 3, of what the table was just proven to be.
    fn check_proofs(&mut self) -> Result<(), Violation> {
        let Position { epoch, head, .. } = self.sidecar.scheduler().state_machine().position();
        for asked in std::mem::take(&mut self.sidecar.proven) {
            let node = self.nodes.get(&(epoch, head));
            let node =
                node.ok_or_else(|| Violation::new(2, "proven where no ledger ever stood"))?;
            self.past.proves(asked.boot, node)?;
        }
        Ok(())
    }

    /// Properties 2 and 6.
    fn check_table(&mut self) -> Result<(), Violation> {
        let position = self.sidecar.scheduler().state_machine().position();
        let node = self.nodes.get(&(position.epoch, position.head));
        if !self.sidecar.is_valid() {
            if let Some(node) = node {
                self.sidecar.guards.pass(&node.pairs);
            }
            return Ok(());
        }
        let Some(node) = node.filter(|node| node.position == position) else {
            return Err(Violation::new(2, format!("no ledger ever stood at {position:?}")));
        };
        let Sidecar { guards, table, checked, .. } = &mut self.sidecar;
        let from = checked.replace(position).filter(|from| from.epoch == position.epoch);
        if let Some(from) = from {
            node.way_from(from.revision).iter().for_each(|node| guards.pass(&node.pairs));
        }
        guards.check_remembered(table)?;
        guards.check(table, &node.pairs, [false; USERS], [false; USERS])
    }
}
