//! Follows the partitions of a ledger: those of the businesses that are to be held, each with a follower and a table
//! of its own.
//!
//! How a ledger in Redis is divided is not known before the first contact. The follower of the first partition, which
//! every ledger has, learns it; only then does any follower begin, so that no table is valid before it is known which
//! pairs belong into it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::shared_log::SharedLog;
use super::{ExtraPairs, Follower, Outlets, SnapshotTarget};
use crate::change_feed::{self, ChangeFeed, GapCause, Publisher};
use crate::metrics::Metrics;
use crate::table::{self, Table, Tables, Validity, Writer};
use consentd_core::businesses::{BusinessSet, Businesses};
use consentd_core::id::BusinessId;
use consentd_core::partition::Layout;
use consentd_ledger::{FollowerPosition, Ledger, Partition};

/// The positions of the followers, by the numbers of their partitions.
type Positions = BTreeMap<u32, FollowerPosition>;

/// Follows the partitions of one ledger.
pub struct Followers {
    ledger: Ledger,
    metrics: Arc<Metrics>,
    max_staleness: Duration,
    scrub_interval: Option<Duration>,
    extra_pairs: Option<ExtraPairs>,
    snapshot_target: Option<SnapshotTarget>,
    /// The businesses that the tables are to hold.
    businesses: watch::Receiver<Businesses>,
    tables: Tables,
    /// The write side of the first partition's table, until its follower is made.
    first: Option<(Table, Writer)>,
    changes: ChangeFeed,
    publisher: Publisher,
    losses: watch::Sender<u64>,
    positions: watch::Sender<Positions>,
    progress: Arc<Notify>,
    /// The moment that the periods of polls are counted from.
    began: Instant,
    shared_log: SharedLog,
}

/// A follower that runs.
struct Running {
    task: AbortHandle,
    table: Table,
    wanted: watch::Sender<Businesses>,
}

/// The followers of the partitions of a ledger that is divided.
struct Fleet {
    layout: Layout,
    running: BTreeMap<u32, Running>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    /// The businesses that are to be held.
    wanted: Businesses,
}

impl Followers {
    /// Followers that poll often enough for `max_staleness`, the longest staleness at which checks are answered.
    #[must_use]
    pub fn new(ledger: Ledger, metrics: Arc<Metrics>, max_staleness: Duration) -> Self {
        let (table, writer) = table::new();
        let (changes, publisher) = change_feed::new();
        Self {
            ledger,
            metrics,
            max_staleness,
            scrub_interval: None,
            extra_pairs: None,
            snapshot_target: None,
            businesses: watch::channel(Businesses::All).1,
            tables: Tables::from(table.clone()),
            first: Some((table, writer)),
            changes,
            publisher,
            losses: watch::Sender::new(0),
            positions: watch::Sender::default(),
            progress: Arc::default(),
            began: Instant::now(),
            shared_log: SharedLog::default(),
        }
    }

    /// Loads these pairs into the tables before the ledger's own, for load tests.
    #[must_use]
    pub fn with_extra_pairs(self, extra_pairs: Option<ExtraPairs>) -> Self {
        Self { extra_pairs, ..self }
    }

    /// Compares one bucket of the ledger with its table in each interval; never if it is `None`. Of several partitions
    /// each has its turn.
    #[must_use]
    pub fn with_scrub_interval(self, scrub_interval: Option<Duration>) -> Self {
        Self { scrub_interval, ..self }
    }

    /// Starts from the snapshot in this file, and saves snapshots there; of several partitions each has a file beside
    /// it, with its number at the end.
    #[must_use]
    pub fn with_snapshots(self, snapshot_target: Option<SnapshotTarget>) -> Self {
        Self { snapshot_target, ..self }
    }

    /// Holds these businesses alone, and whichever are sent later.
    #[must_use]
    pub fn with_businesses(mut self, businesses: watch::Receiver<Businesses>) -> Self {
        if let Some((_, writer)) = &mut self.first {
            writer.set_businesses(businesses.borrow().clone());
        }
        Self { businesses, ..self }
    }

    /// The tables, for whoever asks them.
    #[must_use]
    pub fn tables(&self) -> Tables {
        self.tables.clone()
    }

    /// A counter of the times when the ledger was seen to have lost changes.
    #[must_use]
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.losses.subscribe()
    }

    /// The positions that are in the tables, for recorders that wait for what they have appended.
    #[must_use]
    pub fn positions(&self) -> watch::Receiver<Positions> {
        self.positions.subscribe()
    }

    /// The feed of changes in the tables.
    #[must_use]
    pub fn changes(&self) -> ChangeFeed {
        self.changes.clone()
    }

    /// Follows the ledger until `stop` is cancelled; then saves last snapshots. Returns before if a follower ended.
    pub async fn run(mut self, stop: CancellationToken) {
        let Some(partition) = self.ledger.partition(0) else { return };
        let Some((table, writer)) = self.first.take() else { return };
        let mut first = self.follower(partition, writer, None);
        self.positions.send_modify(|positions| {
            positions.insert(0, first.position());
        });
        let layout = stop.run_until_cancelled(first.learn_layout(&self.ledger)).await;
        let Some(layout) = layout else { return };
        if layout.partitions() == 1 {
            let first = first.of_layout(layout).with_businesses(self.businesses.clone());
            let snapshots = self.snapshot_target.take();
            return first.with_snapshots(snapshots).run(stop).await;
        }
        self.follow_partitions(layout, (table, first), stop).await;
    }

    async fn follow_partitions(
        &mut self,
        layout: Layout,
        first: (Table, Follower),
        stop: CancellationToken,
    ) {
        let mut businesses = self.businesses.clone();
        let wanted = businesses.borrow_and_update().clone();
        let wanted_at = by_partition(layout, &wanted);
        let initial: Vec<u32> = wanted_at.keys().copied().collect();
        info!(
            partitions = layout.partitions(),
            followed = initial.len(),
            "the ledger is in several partitions"
        );
        self.tables.divide(layout, wanted.clone(), &initial);
        let (running, tasks, stop_all) = (BTreeMap::new(), JoinSet::new(), stop.child_token());
        let mut fleet = Fleet { layout, running, tasks, stop: stop_all.clone(), wanted };
        let mut first = Some(first);
        for (number, wanted) in wanted_at {
            let made = if number == 0 { first.take() } else { None };
            self.start(&mut fleet, number, wanted, made);
        }
        if first.is_some() {
            // Only the layout was to be learned there.
            self.forget(0);
        }
        drop(first);
        let mut is_loaded = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = fleet.tasks.join_next() => break,
                Ok(()) = businesses.changed() => {
                    let wanted = businesses.borrow_and_update().clone();
                    if !self.follow_others(&mut fleet, wanted).await {
                        break;
                    }
                }
                () = self.progress.notified() => {
                    self.hold_loaded(&fleet);
                    if !is_loaded && self.tables.is_ready() {
                        is_loaded = true;
                        info!(partitions = fleet.running.len(), "the tables hold the ledger");
                    }
                }
            }
        }
        stop_all.cancel();
        while fleet.tasks.join_next().await.is_some() {}
    }

    /// A follower of a partition, which publishes to what all share.
    fn follower(&self, partition: Partition, writer: Writer, layout: Option<Layout>) -> Follower {
        let publisher = match layout {
            Some(_) => self.publisher.of_partition(partition.number()),
            None => self.publisher.of_whole(),
        };
        let outlets = Outlets {
            publisher,
            losses: self.losses.clone(),
            progress: Arc::clone(&self.progress),
            began: self.began,
            shared_log: self.shared_log.clone(),
        };
        let metrics = Arc::clone(&self.metrics);
        let follower =
            Follower::with_outlets(partition, writer, metrics, self.max_staleness, outlets);
        let partitions = layout.map_or(1, Layout::partitions);
        let scrub_interval = self.scrub_interval.map(|every| every.saturating_mul(partitions));
        follower.with_extra_pairs(self.extra_pairs.clone()).with_scrub_interval(scrub_interval)
    }

    /// Starts to follow a partition, with a follower that was made before or with a new one.
    fn start(
        &self,
        fleet: &mut Fleet,
        number: u32,
        wanted: Businesses,
        made: Option<(Table, Follower)>,
    ) {
        let made = match made {
            Some((table, follower)) => {
                let publisher = self.publisher.of_partition(number);
                Some((table, follower.publishing_to(publisher)))
            }
            None => self.ledger.partition(number).map(|partition| {
                let (table, writer) = table::new();
                (table, self.follower(partition, writer, Some(fleet.layout)))
            }),
        };
        // The ledger has every partition of its layout.
        let Some((table, follower)) = made else { return };
        let (wanted, held) = watch::channel(wanted);
        let follower = follower
            .of_layout(fleet.layout)
            .with_snapshots(self.snapshots_of(number))
            .with_businesses(held);
        self.positions.send_modify(|positions| {
            positions.insert(number, follower.position());
        });
        self.tables.insert(number, table.clone());
        let task = fleet.tasks.spawn(follower.run(fleet.stop.clone()));
        fleet.running.insert(number, Running { task, table, wanted });
    }

    fn snapshots_of(&self, number: u32) -> Option<SnapshotTarget> {
        let target = self.snapshot_target.as_ref()?.of_partition(number);
        target
            .map_err(|error| {
                warn!(partition = number, cause = %error, "the table of this partition is not saved");
            })
            .ok()
    }

    /// Follows the partitions of these businesses, and no others. Returns false if a follower ended unasked.
    async fn follow_others(&self, fleet: &mut Fleet, wanted: Businesses) -> bool {
        let held = self.tables.businesses().intersection(&wanted);
        // Nobody asks for what is dropped from now on.
        self.hold(held);
        let mut wanted_at = by_partition(fleet.layout, &wanted);
        fleet.wanted = wanted;
        let unwanted =
            fleet.running.keys().copied().filter(|number| !wanted_at.contains_key(number));
        for number in unwanted.collect::<Vec<_>>() {
            self.forget(number);
            let Some(Running { task, table, .. }) = fleet.running.remove(&number) else { continue };
            info!(partition = number, "this partition is not followed any more");
            task.abort();
            if !fleet.ended(task.id()).await {
                return false;
            }
            drop(table);
        }
        for (number, running) in &fleet.running {
            if let Some(wanted) = wanted_at.remove(number) {
                running.wanted.send_if_modified(|known| {
                    let is_new = *known != wanted;
                    *known = wanted;
                    is_new
                });
            }
        }
        for (number, wanted) in wanted_at {
            info!(
                partition = number,
                "this partition is followed for the businesses that were added"
            );
            self.start(fleet, number, wanted, None);
        }
        self.hold_loaded(fleet);
        true
    }

    /// Forgets a partition that is not followed any more.
    fn forget(&self, number: u32) {
        self.tables.remove(number);
        self.positions.send_modify(|positions| {
            positions.remove(&number);
        });
        self.metrics.unfollowed(number);
    }

    /// Holds the businesses that were added, once all of their partitions hold them and were loaded.
    fn hold_loaded(&self, fleet: &Fleet) {
        let table_of = |number| fleet.running.get(&number).map(|running| running.table.clone());
        let held = self.tables.businesses();
        self.hold(held_once_loaded(fleet.layout, &fleet.wanted, &held, table_of));
    }

    fn hold(&self, businesses: Businesses) {
        if *self.tables.businesses() != businesses {
            self.tables.hold(businesses);
            // Watchers look again at what they watch, and learn what is refused now.
            self.publisher.of_partition(0).publish_gap(GapCause::Businesses);
        }
    }
}

impl Fleet {
    /// Waits until an aborted task has ended. Returns false if another one ended.
    async fn ended(&mut self, id: Id) -> bool {
        let ended = self.tasks.join_next_with_id().await;
        let ended =
            ended.map(|ended| ended.map_or_else(|error| JoinError::id(&error), |(id, ())| id));
        ended.is_none_or(|ended| ended == id)
    }
}

/// The businesses of `wanted` that questions may be answered about: those that are `held` already, and those that
/// all of their partitions hold and were loaded.
#[must_use]
pub fn held_once_loaded(
    layout: Layout,
    wanted: &Businesses,
    held: &Businesses,
    table_of: impl Fn(u32) -> Option<Table>,
) -> Businesses {
    let Some(ids) = wanted.ids() else { return Businesses::All };
    let has_loaded = |business: BusinessId<'_>| {
        layout.partitions_of(business.tag()).all(|number| {
            table_of(number).is_some_and(|table| {
                let is_loaded = table.freshness().validity != Validity::Loading;
                is_loaded && table.businesses().holds(business)
            })
        })
    };
    let is_held = |id: &&str| {
        BusinessId::parse(id).is_ok_and(|business| held.holds(business) || has_loaded(business))
    };
    // All of these ids were parsed before.
    Businesses::only(BusinessSet::of(ids.filter(is_held)).unwrap_or_default())
}

/// The businesses that each partition is followed for.
#[must_use]
pub fn by_partition(layout: Layout, wanted: &Businesses) -> BTreeMap<u32, Businesses> {
    let Some(ids) = wanted.ids() else {
        return layout.all().map(|number| (number, Businesses::All)).collect();
    };
    let mut at: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    for id in ids {
        let Ok(business) = BusinessId::parse(id) else { continue };
        for number in layout.partitions_of(business.tag()) {
            at.entry(number).or_default().insert(id);
        }
    }
    let only = |ids: BTreeSet<&str>| Businesses::only(BusinessSet::of(ids).unwrap_or_default());
    at.into_iter().map(|(number, ids)| (number, only(ids))).collect()
}
