//! A ledger in Redis as a whole: its partitions, and which of them a pair is in.

mod operators;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::background::PartitionTask;
use super::conn::{Servers, Subscriptions, Timeouts};
use super::server_info::Topology;
use super::{Common, Options, RedisPartition, RedisRejection, Status, Target};
use crate::{
    AppendReceipt, Appended, Change, Cursor, Events, History, Identity, LedgerError, Page, Read,
    Retention,
};
use consentd_core::id::Key;
use consentd_core::partition::{Layout, MAX_PARTITIONS};
use consentd_core::time::Timestamp;

/// How many partitions that can be read are loaded at once: each has a connection of its own meanwhile.
const MAX_LOADS: usize = 4;

/// How often the layout is asked for until it is known.
const LAYOUT_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A partition's position and status, or why it cannot be read.
pub type PartitionStatus = Result<(Page, Status), LedgerError>;

/// A handle on a ledger in Redis; clones share it.
#[derive(Clone)]
pub struct Redis(Arc<Partitions>);

struct Partitions {
    common: Arc<Common>,
    first: RedisPartition,
    /// The other partitions, each made when it is first needed.
    others: OnceLock<Box<[OnceLock<RedisPartition>]>>,
    /// The tasks of new partitions, for the background task.
    tasks: mpsc::UnboundedSender<PartitionTask>,
    /// Cancelled when the background task has ended.
    closed: CancellationToken,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redis").field(&self.describe()).finish()
    }
}

/// The ledger's background task. Nothing is appended or announced unless it runs.
pub struct BackgroundTask {
    common: Arc<Common>,
    partitions: Weak<Partitions>,
    tasks: mpsc::UnboundedReceiver<PartitionTask>,
    /// Reports the end also if the task is dropped, so that closing does not wait for ever.
    _ended: DropGuard,
}

impl BackgroundTask {
    /// Runs until the ledger is closed or `stop` is cancelled. Changes that are queued by then are still
    /// appended.
    pub async fn run(mut self, stop: CancellationToken) {
        let closing = self.common.closing.clone();
        let mut running = JoinSet::new();
        let subscriptions = Arc::clone(&self.common.subscriptions);
        running.spawn({
            let closing = closing.clone();
            async move {
                let _ = closing.run_until_cancelled(subscriptions.run()).await;
            }
        });
        let make_all = make_all(self.partitions.clone(), self.common.options);
        let mut make_all = std::pin::pin!(make_all);
        let mut is_made = false;
        let mut read_first = std::pin::pin!(read_first(self.partitions.clone()));
        let mut is_read = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = closing.cancelled() => break,
                () = &mut make_all, if !is_made => is_made = true,
                () = &mut read_first, if !is_read => is_read = true,
                Some(task) = self.tasks.recv() => {
                    running.spawn(task.run());
                }
            }
        }
        closing.cancel();
        self.tasks.close();
        while let Some(task) = self.tasks.recv().await {
            running.spawn(task.run());
        }
        while running.join_next().await.is_some() {}
    }
}

/// Makes all partitions, once it is known how many there are, if this process applies the retention: each
/// partition's task sweeps it, whether or not this process appends to it.
async fn make_all(partitions: Weak<Partitions>, options: Options) {
    if options.retention.is_none() {
        return;
    }
    loop {
        let Some(ledger) = partitions.upgrade().map(Redis) else { return };
        match ledger.all().await {
            // With one partition there are no others.
            Ok(_) | Err(LedgerError::Closed) => return,
            Err(_) => {}
        }
        drop(ledger);
        tokio::time::sleep(options.sweep_interval.min(LAYOUT_RETRY_INTERVAL)).await;
    }
}

/// Reads the first partition, whose shard cannot be reached while this process starts, as soon as it can be: the others
/// are compared with it, and a sidecar for some businesses may not follow it.
async fn read_first(partitions: Weak<Partitions>) {
    loop {
        tokio::time::sleep(LAYOUT_RETRY_INTERVAL).await;
        let Some(ledger) = partitions.upgrade().map(Redis) else { return };
        let origins = &ledger.0.common.origins;
        match ledger.known_layout() {
            None => {}
            Some(layout) if layout.partitions() == 1 || origins.knows_first() => return,
            Some(_) => drop(ledger.0.first.ends().await),
        }
    }
}

impl Redis {
    /// A handle on the ledger at `target`, and its background task, without which nothing is appended or
    /// announced. Connects with the first command.
    #[must_use]
    pub fn new(target: Target, options: Options) -> (Self, BackgroundTask) {
        let describe = target.describe().to_owned();
        let servers = Servers::new(target);
        let subscriptions = Subscriptions::new(Arc::clone(&servers), Timeouts::default());
        let common = Arc::new(Common {
            servers,
            options,
            describe,
            layout: OnceLock::new(),
            origins: Arc::default(),
            subscriptions: Arc::new(subscriptions),
            loads: Arc::new(tokio::sync::Semaphore::new(MAX_LOADS)),
            closing: CancellationToken::new(),
        });
        let (first, task) = RedisPartition::new(Arc::clone(&common), 0, Layout::SINGLE);
        let (sender, tasks) = mpsc::unbounded_channel();
        // The receiver is below.
        let _ = sender.send(task);
        let closed = CancellationToken::new();
        let ended = closed.clone().drop_guard();
        let others = OnceLock::new();
        let background = Arc::clone(&common);
        let partitions = Arc::new(Partitions { common, first, others, tasks: sender, closed });
        let background = BackgroundTask {
            common: background,
            partitions: Arc::downgrade(&partitions),
            tasks,
            _ended: ended,
        };
        (Self(partitions), background)
    }

    /// The ledger's layout, if it is known.
    pub(crate) fn known_layout(&self) -> Option<Layout> {
        self.0.common.layout.get().copied()
    }

    /// The partition with this number; `None` while the layout is not known, and for a number that it
    /// does not have. The first partition is always there.
    pub(crate) fn partition(&self, number: u32) -> Option<RedisPartition> {
        self.get(number).cloned()
    }

    fn get(&self, number: u32) -> Option<&RedisPartition> {
        let Partitions { common, first, others, tasks, .. } = &*self.0;
        let Some(place) = number.checked_sub(1) else { return Some(first) };
        let layout = *common.layout.get()?;
        let others =
            others.get_or_init(|| (1..layout.partitions()).map(|_| OnceLock::new()).collect());
        let other = others.get(usize::try_from(place).ok()?)?;
        Some(other.get_or_init(|| {
            let (partition, task) = RedisPartition::new(Arc::clone(common), number, layout);
            // Without the background task, appends fail as closed.
            let _ = tasks.send(task);
            partition
        }))
    }

    /// All partitions.
    async fn all(&self) -> Result<Vec<&RedisPartition>, LedgerError> {
        let layout = self.layout().await?;
        Ok(layout.all().filter_map(|number| self.get(number)).collect())
    }

    /// The layout: as the first partition states it or, while the shard of that one cannot be reached, as the others
    /// do. If the first one is missing, there is no ledger: perhaps it is just being made.
    pub(crate) async fn layout(&self) -> Result<Layout, LedgerError> {
        if let Some(layout) = self.known_layout() {
            return Ok(layout);
        }
        match self.0.first.identity().await {
            Ok(identity) => Ok(identity.layout),
            Err(error) if error.is_missing() => Err(error),
            // Without a Cluster, the others are where the first one is.
            Err(error) if self.0.common.servers.target().topology() != Topology::Cluster => {
                Err(error)
            }
            Err(error) => self.layout_of_others().await.ok_or(error),
        }
    }

    /// The layout as other partitions than the first state it, for a process that starts while the first one's shard
    /// is lost. The tags of the others follow from their number, which is not known: so three partitions
    /// in other quarters of the slots than the first are looked for, for each number that there may be. What is
    /// left of another ledger is no evidence: all that are found must agree.
    async fn layout_of_others(&self) -> Option<Layout> {
        let common = &self.0.common;
        let layouts =
            (1..=MAX_PARTITIONS.ilog2()).filter_map(|power| Layout::new(1 << power, 1).ok());
        let places = layouts.flat_map(|layout| {
            let quarters = (1..4).map(move |quarter| layout.partitions() * quarter / 4);
            let numbers: BTreeSet<u32> = quarters.filter(|number| *number > 0).collect();
            numbers.into_iter().map(move |number| (number, layout))
        });
        let stated = places.map(|(number, layout)| {
            // It must not make known what it is told, for it may be another ledger's.
            let (layout_told, origins) = (OnceLock::new(), Arc::default());
            let common = Arc::new(Common { layout: layout_told, origins, ..Common::clone(common) });
            let (partition, _) = RedisPartition::new(common, number, layout);
            async move { partition.identity().await.ok().map(|identity| identity.layout) }
        });
        let stated = futures_util::future::join_all(stated).await;
        let mut stated = stated.into_iter().flatten();
        let layout = stated.next().filter(|one| stated.all(|other| other == *one))?;
        Some(*common.layout.get_or_init(|| layout))
    }

    /// The partition of a pair.
    async fn of(&self, key: Key) -> Result<&RedisPartition, LedgerError> {
        let layout = self.layout().await?;
        self.get(layout.partition_of(key)).ok_or(LedgerError::Closed)
    }

    pub(crate) fn describe(&self) -> &str {
        &self.0.common.describe
    }

    pub(crate) async fn identity(&self) -> Result<Arc<Identity>, LedgerError> {
        self.0.first.identity().await
    }

    /// The identity of any partition, the first one if that is known: while it is missing or cannot be reached, the
    /// others are recorded in all the same.
    pub(crate) async fn identity_of_any(&self) -> Result<Arc<Identity>, LedgerError> {
        let known = || self.made().find_map(|one| one.shared.known_identity());
        match self.0.first.shared.known_identity().or_else(known) {
            Some(identity) => Ok(identity),
            None => self.0.first.identity().await,
        }
    }

    pub(crate) fn retention(&self) -> Option<Retention> {
        self.0.common.options.retention
    }

    pub(crate) fn reconnect_appends(&self) {
        for partition in self.made() {
            partition.reconnect_appends();
        }
    }

    /// The partitions that were needed so far.
    pub(super) fn made(&self) -> impl Iterator<Item = &RedisPartition> {
        let others = self.0.others.get().into_iter().flatten().filter_map(OnceLock::get);
        std::iter::once(&self.0.first).chain(others)
    }

    pub(crate) async fn close(&self) {
        self.0.common.closing.cancel();
        self.0.closed.cancelled().await;
    }

    /// Reads pairs' records, each in the partition of its place, and the latest of the partitions' clocks.
    pub(crate) async fn read(&self, keys: Vec<Key>) -> Result<Read, LedgerError> {
        let layout = self.layout().await?;
        if layout.partitions() == 1 {
            return self.0.first.read(keys).await;
        }
        let mut parts = Parts::of(keys.iter().map(|key| layout.partition_of(*key)));
        if parts.0.is_empty() {
            // Without pairs, the clocks alone are read: all of them, since the caller may write to any.
            parts.0.extend(layout.all().map(|number| (number, Vec::new())));
        }
        let reads = parts.0.iter().map(|(number, places)| {
            let keys: Vec<_> =
                places.iter().filter_map(|place| keys.get(*place)).copied().collect();
            async move {
                let read = self.get(*number).ok_or(LedgerError::Closed)?.read(keys).await;
                read.map_err(|error| error.of_partition(*number))
            }
        });
        let reads = futures_util::future::try_join_all(reads).await?;
        let mut clock = Timestamp::saturating_from_millis(0);
        let mut pairs: Vec<_> = keys.iter().map(|_| None).collect();
        for ((_, places), read) in parts.0.iter().zip(reads) {
            clock = clock.max(read.clock);
            for (place, pair) in places.iter().zip(read.pairs) {
                if let Some(slot) = pairs.get_mut(*place) {
                    *slot = Some(pair);
                }
            }
        }
        let pairs: Option<Vec<_>> = pairs.into_iter().collect();
        Ok(Read { clock, pairs: pairs.ok_or(LedgerError::Closed)? })
    }

    pub(crate) async fn append(
        &self,
        changes: Vec<Change>,
    ) -> Result<Vec<AppendReceipt>, LedgerError> {
        let layout = self.layout().await?;
        if layout.partitions() == 1 {
            return self.0.first.append(changes).await;
        }
        let known = &self.identity_of_any().await?;
        let parts = Parts::of(changes.iter().map(|change| layout.partition_of(change.key)));
        let mut changes: Vec<_> = changes.into_iter().map(Some).collect();
        let count = changes.len();
        let mut appends = Vec::with_capacity(parts.0.len());
        for (number, places) in &parts.0 {
            let own = places.iter().filter_map(|place| changes.get_mut(*place)?.take());
            let own: Vec<_> = own.collect();
            let partition = self.get(*number).ok_or(LedgerError::Closed)?;
            appends.push(async move {
                // While a ledger is replaced, or with a partition that was restored from another ledger's backup,
                // the keys would be those of nobody there: what was recorded would not be enforced.
                let there = partition.identity().await?;
                if !there.secret.is_same_as(&known.secret) {
                    return Err(RedisRejection::Replaced.into());
                }
                partition.append(own).await
            });
        }
        let appended = futures_util::future::join_all(appends).await;
        let mut receipts: Vec<Option<AppendReceipt>> = (0..count).map(|_| None).collect();
        for ((number, places), appended) in parts.0.iter().zip(appended) {
            // An error of a partition's append is the result of each of its changes.
            let mut appended = match appended {
                Ok(receipts) => receipts,
                Err(error) => {
                    let failed = || AppendReceipt::unforked(Appended::Failed(error.clone()));
                    places.iter().map(|_| failed()).collect()
                }
            };
            for (place, mut receipt) in places.iter().zip(appended.drain(..)) {
                receipt.partition = *number;
                if let Some(slot) = receipts.get_mut(*place) {
                    *slot = Some(receipt);
                }
            }
        }
        let receipts: Option<Vec<_>> = receipts.into_iter().collect();
        RedisPartition::one_error(receipts.ok_or(LedgerError::Closed)?)
    }

    pub(crate) async fn history(&self, key: Key) -> Result<History, LedgerError> {
        self.of(key).await?.history(key).await
    }

    pub(crate) async fn purge(&self, keys: &[Key]) -> Result<(), LedgerError> {
        for key in keys {
            self.of(*key).await?.purge(&[*key]).await?;
        }
        Ok(())
    }

    /// Reads a page of all recorded events, partition by partition.
    pub(crate) async fn events_after(&self, cursor: Cursor) -> Result<Events, LedgerError> {
        let (layout, number) = (self.layout().await?, cursor.partition);
        let partition = self.get(number).ok_or(LedgerError::Closed)?;
        let mut events = match partition.events_after(cursor).await {
            Err(error) if layout.partitions() > 1 => return Err(error.of_partition(number)),
            events => events?,
        };
        let next = number.saturating_add(1);
        match &mut events.next {
            Some(cursor) => cursor.partition = number,
            None if next < layout.partitions() => {
                events.next = Some(Cursor { partition: next, ..Cursor::default() });
            }
            None => {}
        }
        Ok(events)
    }

    /// Checks once that the server is supported, and has a ledger.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Refused`] with [`UnsupportedServer`](super::UnsupportedServer) if its configuration rules it
    /// out, or with [`RedisRejection::Missing`] if it has no ledger; [`LedgerError::Unreachable`] if it cannot be
    /// reached.
    pub async fn probe(&self) -> Result<(), LedgerError> {
        self.0.first.probe().await
    }
}

/// The places of a caller's items, by partition.
struct Parts(Vec<(u32, Vec<usize>)>);

impl Parts {
    fn of(partitions: impl Iterator<Item = u32>) -> Self {
        let mut parts: Vec<(u32, Vec<usize>)> = Vec::new();
        for (place, number) in partitions.enumerate() {
            match parts.iter_mut().find(|(known, _)| *known == number) {
                Some((_, places)) => places.push(place),
                None => parts.push((number, vec![place])),
            }
        }
        Self(parts)
    }
}
