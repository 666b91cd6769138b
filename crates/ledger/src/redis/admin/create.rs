//! Creates a ledger in Redis. Besides `ledger copy`, nothing else ever does: a Redis that lost its data must
//! not look like a new ledger without opt-outs.
//!
//! The partitions are made one after the other, and the first one, which says how many there are, comes last: until
//! then there is no ledger. An interrupted run is continued with the secret of the partitions that it has made,
//! provided that nothing was recorded in them. Once the first one exists, the others are marked as complete: where one
//! of those is found without it, the first one was lost, and a run that goes on would make lost partitions anew, empty.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use redis::Value;

use super::super::conn::{
    Connection, ConnectionManager, PrimaryLocator, Purpose, Servers, Timeouts,
};
use super::super::error::{RedisFailure, RedisRejection};
use super::super::keyspace::{Keyspace, LAYOUT_FORMAT, SENTINEL_FIELD};
use super::super::scripts::{self, Answer, ask, ask_all};
use super::super::{Target, scripts::Script};
use super::other_layouts::ensure_no_other;
use super::sentinel_field::length_and_sentinel;
use crate::stored_secret::StoredSecret;
use crate::{Epoch, LedgerError, LogHead};
use consentd_core::partition::Layout;

/// The maximum number of buckets of a ledger, in all of its partitions: reading a whole ledger takes a command for
/// each.
pub const MAX_BUCKETS: u32 = 1 << 20;

/// How many keys one script creates.
pub(super) const MAX_KEYS: usize = 512;

/// Why a ledger was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The number of buckets is out of range.
    #[error("a ledger has 1 to {MAX_BUCKETS} buckets; 8192 do for some million pairs")]
    Buckets,
    /// A partition of a ledger with another layout exists.
    #[error(
        "partition {partition} of a ledger of {partitions} partitions is in this Redis, or what is left of a copy that \
         was to be one: nothing was changed; if the ledger's other partitions were lost, only a backup brings them \
         back; if nothing of it is needed any more, delete its keys, or give another database (a \
         Cluster has one alone) or server"
    )]
    OtherLayout {
        /// Its number.
        partition: u32,
        /// How many partitions that ledger has.
        partitions: u32,
    },
    /// A partition of a complete ledger exists, and the first one does not.
    #[error(
        "partition {partition} in this Redis is of a ledger that was complete, and the first partition, {{consent:0}}, \
         is missing: it was lost, and only a backup brings it back; nothing was changed"
    )]
    LostFirst {
        /// Its number.
        partition: u32,
    },
    /// A ledger, or a part of one, exists already.
    #[error(
        "there is a ledger in this Redis already, or what is left of one: nothing was changed; \
             give another database (a Cluster has one alone) or server, or serve the one that is there: \
             consentd ledger status shows it"
    )]
    Exists,
    /// The system has no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(#[source] getrandom::Error),
    /// Redis failed. The keys that were created are not a ledger yet, and the next attempt reuses them.
    #[error("the ledger is not made yet, and making it again goes on from here: {0}")]
    Redis(#[source] LedgerError),
}

/// What creating a ledger would do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plan {
    /// The number of keys that it would create.
    pub keys: u64,
    /// The number of those that exist already, empty, from an interrupted run.
    pub present: u64,
}

/// A created ledger.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Created {
    /// The ledger's epoch.
    pub epoch: Epoch,
    /// How it is divided into partitions.
    pub layout: Layout,
    /// The number of buckets of each partition.
    pub buckets: u32,
}

/// What a ledger is to be like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    /// How it is divided into partitions.
    pub layout: Layout,
    /// The number of buckets of each partition.
    pub buckets: u32,
}

impl Shape {
    /// A ledger with this layout and about this many buckets in all: as many in each partition.
    ///
    /// # Errors
    ///
    /// [`CreateError::Buckets`] if there are no buckets, or too many.
    pub fn new(layout: Layout, buckets: u32) -> Result<Self, CreateError> {
        if !(1..=MAX_BUCKETS).contains(&buckets) {
            return Err(CreateError::Buckets);
        }
        Ok(Self { layout, buckets: buckets.div_ceil(layout.partitions()) })
    }

    /// The number of buckets of all partitions.
    #[must_use]
    pub fn total_buckets(self) -> u32 {
        self.layout.partitions().saturating_mul(self.buckets)
    }
}

/// A partition that is to be made, or its copy.
pub(super) struct Place {
    pub(super) connections: ConnectionManager,
    pub(super) keyspace: Keyspace,
}

/// How many places are looked at at once: in a Cluster, they share the questions who has their slots.
const PLACES_AT_ONCE: usize = 64;

/// How many nodes are asked for keys at once.
pub(super) const NODES_AT_ONCE: usize = 8;

/// The partitions of a ledger that is to be made at this target, the first one last.
pub(super) fn places(target: Target, layout: Layout) -> Vec<Place> {
    let servers = Servers::new(target);
    layout.all().rev().map(|number| Place::at(&servers, Keyspace::of(number, layout))).collect()
}

/// The connections to the servers of places, in their order.
pub(super) async fn connected(places: &[&Place]) -> Result<Vec<Connection>, LedgerError> {
    let mut connecting = Vec::with_capacity(places.len());
    for place in places {
        connecting.push(place.connections.connection());
    }
    futures_util::stream::iter(connecting).buffered(PLACES_AT_ONCE).try_collect().await
}

/// Marks the partitions of a new ledger as those of a complete one, once the first one is made. A partition that is not
/// marked, because its server failed meanwhile, is a partition of the ledger all the same.
pub(super) async fn complete(places: &[&Place], ledger: &[u8]) {
    let mut marks = Vec::with_capacity(places.len());
    for place in places {
        if place.keyspace.partition > 0 {
            marks.push(place.complete(ledger));
        }
    }
    futures_util::stream::iter(marks).buffer_unordered(NODES_AT_ONCE).collect::<()>().await;
}

/// What is in the place of a partition.
enum Found {
    /// Nothing but what an interrupted run has made: so many keys.
    Keys(u64),
    /// A partition without a change, which an interrupted run has made: its ledger's id, and the secret.
    Partition(Vec<u8>, Vec<u8>),
    /// A partition of a ledger that was complete.
    Complete,
}

impl From<RedisFailure> for CreateError {
    fn from(failure: RedisFailure) -> Self {
        match failure {
            RedisFailure::Rejected(RedisRejection::Exists) => Self::Exists,
            failure => Self::Redis(failure.into()),
        }
    }
}

/// Returns what [`create`] would do, without doing it.
///
/// # Errors
///
/// The [`CreateError`] that [`create`] would return.
pub async fn plan(target: Target, shape: Shape) -> Result<Plan, CreateError> {
    let places = places(target.clone(), shape.layout);
    let survey = Survey::of(&places, shape).await?;
    ensure_no_other(target, shape.layout).await?;
    let mut plan = Plan { keys: 0, present: 0 };
    for (place, found) in places.iter().zip(survey.found) {
        let hashes = hashes(&place.keyspace, shape.buckets)?;
        let keys = u64::try_from(hashes.len()).unwrap_or(u64::MAX).saturating_add(3);
        plan.keys = plan.keys.saturating_add(keys);
        plan.present = plan.present.saturating_add(match found {
            Found::Keys(present) => present,
            Found::Partition(..) | Found::Complete => keys,
        });
    }
    Ok(plan)
}

/// Creates a ledger. Resumes an interrupted run; the meta key of the first partition, which makes it a ledger,
/// comes last.
///
/// # Errors
///
/// [`CreateError`] if a part of a ledger exists, or Redis fails.
pub async fn create(target: Target, shape: Shape) -> Result<Created, CreateError> {
    // Checked before anything is created: if a ledger has lost its meta key and some hashes, creating those
    // hashes would make them look complete.
    let places = places(target.clone(), shape.layout);
    let Survey { found, ledger } = Survey::of(&places, shape).await?;
    ensure_no_other(target, shape.layout).await?;
    let (ledger, secret) = if let Some(known) = ledger {
        known
    } else {
        let mut id: Epoch = [0; 16];
        getrandom::fill(&mut id).map_err(CreateError::Random)?;
        (id.to_vec(), StoredSecret::random().map_err(CreateError::Random)?.encode())
    };
    let new = NewIdentity { shape, ledger: &ledger, secret: &secret };
    let missing = places.iter().zip(found).filter(|(_, found)| matches!(found, Found::Keys(_)));
    for (place, _) in missing {
        place.create(&new).await?;
    }
    complete(&places.iter().collect::<Vec<_>>(), &ledger).await;
    let epoch = ledger
        .try_into()
        .map_err(|_| CreateError::from(RedisFailure::Rejected(RedisRejection::MalformedReply)))?;
    let Shape { layout, buckets } = shape;
    Ok(Created { epoch, layout, buckets })
}

/// What is in the places of a ledger that is to be made.
pub(super) struct Survey {
    /// What is in each place.
    found: Vec<Found>,
    /// The id and the secret of the ledger that an interrupted run began.
    ledger: Option<(Vec<u8>, Vec<u8>)>,
}

impl Survey {
    /// Looks at all places.
    ///
    /// # Errors
    ///
    /// [`CreateError::Exists`] if one of them has what an interrupted run does not leave, and
    /// [`CreateError::LostFirst`] if that is a partition of a ledger whose first one is missing.
    pub(super) async fn of(places: &[Place], shape: Shape) -> Result<Self, CreateError> {
        let mut finds = Vec::with_capacity(places.len());
        for place in places {
            finds.push(place.find(shape));
        }
        let finds = futures_util::stream::iter(finds).buffered(NODES_AT_ONCE);
        let mut survey = Self { found: finds.try_collect().await?, ledger: None };
        for (place, found) in places.iter().zip(&survey.found) {
            match found {
                Found::Keys(_) => {}
                // The first one would have been found.
                Found::Complete => {
                    let partition = place.keyspace.partition;
                    return Err(CreateError::LostFirst { partition });
                }
                Found::Partition(id, secret) => {
                    let (known, its_secret) =
                        survey.ledger.get_or_insert_with(|| (id.clone(), secret.clone()));
                    if (&*known, &*its_secret) != (id, secret) {
                        return Err(CreateError::Exists);
                    }
                }
            }
        }
        Ok(survey)
    }
}

impl Place {
    fn at(servers: &Arc<Servers>, keyspace: Keyspace) -> Self {
        let primary = PrimaryLocator::new(Arc::clone(servers), keyspace.slot());
        let connections = ConnectionManager::to(primary, Purpose::Reading, Timeouts::default());
        Self { connections, keyspace }
    }

    async fn complete(&self, ledger: &[u8]) {
        let _ = self.run(&scripts::COMPLETE, &[&self.keyspace.meta], &[ledger]).await;
    }

    async fn has_meta(&self) -> Result<bool, CreateError> {
        let mut command = redis::cmd("EXISTS");
        let found = ask(&self.connections, command.arg(&self.keyspace.meta)).await?;
        Ok(found != Value::Int(0))
    }

    async fn find(&self, shape: Shape) -> Result<Found, CreateError> {
        let Self { connections, keyspace } = self;
        if let Some(found) = self.find_partition(shape).await? {
            return Ok(found);
        }
        let mut present = 0_u64;
        for key in [&keyspace.log, &keyspace.fence] {
            let mut command = redis::cmd("TYPE");
            let kind = ask(connections, command.arg(key)).await?;
            let is = |name: &str| matches!(&kind, Value::SimpleString(kind) if kind == name);
            let mut length = redis::cmd("XLEN");
            let holds = is("stream") && ask(connections, length.arg(key)).await? != Value::Int(0);
            let expected = if *key == keyspace.log { "stream" } else { "string" };
            if holds || !(is("none") || is(expected)) {
                return Err(CreateError::Exists);
            }
            present += u64::from(!is("none"));
        }
        for some in hashes(keyspace, shape.buckets)?.chunks(MAX_KEYS) {
            let both = length_and_sentinel(some);
            for answers in ask_all(connections, both).await?.chunks(2) {
                match answers {
                    [Value::Int(0), _] => {}
                    [Value::Int(1), Value::Int(1)] => present += 1,
                    // HLEN fails for a key of another type: it does not belong to a new ledger either.
                    _ => return Err(CreateError::Exists),
                }
            }
        }
        Ok(Found::Keys(present))
    }

    /// The partition that is there already; an error if it is not one that an interrupted run has left.
    async fn find_partition(&self, shape: Shape) -> Result<Option<Found>, CreateError> {
        let mut command = redis::cmd("HMGET");
        command.arg(&self.keyspace.meta).arg("epoch").arg("ledger").arg("secret").arg("rev");
        command.arg("partitions").arg("spread").arg("partition").arg("buckets");
        command.arg("complete").arg("finishing");
        let mut meta = match ask(&self.connections, &command).await {
            Ok(meta) => Answer::of(meta)?,
            // A key of another type does not belong to a new ledger.
            Err(RedisFailure::Rejected(RedisRejection::Other { .. })) => {
                return Err(CreateError::Exists);
            }
            Err(failure) => return Err(failure.into()),
        };
        if !self.has_meta().await? {
            return Ok(None);
        }
        let mut fields = Vec::with_capacity(10);
        while !meta.is_over() {
            fields.push(meta.optional()?.unwrap_or_default());
        }
        let Shape { layout, buckets } = shape;
        let numbers = [0, layout.partitions(), layout.spread(), self.keyspace.partition, buckets];
        let expected = numbers.map(|number| number.to_string().into_bytes());
        let is_other = self.keyspace.partition > 0;
        match &fields[..] {
            [.., complete, _] if is_other && !complete.is_empty() => Ok(Some(Found::Complete)),
            // A copy that is being finished is its command's to remove.
            [epoch, ledger, secret, numbers @ .., _, finishing]
                if is_other
                    && !epoch.is_empty()
                    && *numbers == expected
                    && finishing.is_empty() =>
            {
                Ok(Some(Found::Partition(ledger.clone(), secret.clone())))
            }
            _ => Err(CreateError::Exists),
        }
    }

    /// Makes the partition.
    async fn create(&self, new: &NewIdentity<'_>) -> Result<(), CreateError> {
        let keyspace = &self.keyspace;
        self.create_hashes(new.shape.buckets).await?;
        let meta = new.meta(keyspace.partition, 0, &LogHead::default())?;
        let args: Vec<&[u8]> =
            meta.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_slice()]).collect();
        let keys = [&keyspace.meta, &keyspace.log, &keyspace.fence];
        self.run(&scripts::CREATE_META, &keys, &args).await
    }

    /// Makes the hashes, each with the sentinel field: Redis keeps no empty hash.
    pub(super) async fn create_hashes(&self, buckets: u32) -> Result<(), CreateError> {
        for some in hashes(&self.keyspace, buckets)?.chunks(MAX_KEYS) {
            let keys: Vec<_> = std::iter::once(&self.keyspace.meta).chain(some).collect();
            self.run(&scripts::CREATE_HASHES, &keys, &[SENTINEL_FIELD]).await?;
        }
        Ok(())
    }

    /// Runs a step. Steps are idempotent, so that a run whose reply was lost can be repeated.
    pub(super) async fn run(
        &self,
        script: &Script,
        keys: &[&String],
        args: &[&[u8]],
    ) -> Result<(), CreateError> {
        let answer = script.run(&self.connections, keys, args).await?;
        Answer::one(answer).number()?;
        Ok(())
    }
}

/// What the meta keys of all partitions of a new ledger say.
pub(super) struct NewIdentity<'a> {
    pub(super) shape: Shape,
    /// The ledger's id.
    pub(super) ledger: &'a [u8],
    /// The encoded secret of the pairs' keys.
    pub(super) secret: &'a [u8],
}

impl NewIdentity<'_> {
    /// The fields of a partition's meta key, with the partition's position.
    ///
    /// # Errors
    ///
    /// [`CreateError::Random`].
    pub(super) fn meta(
        &self,
        partition: u32,
        revision: u64,
        head: &LogHead,
    ) -> Result<Vec<(&'static str, Vec<u8>)>, CreateError> {
        let mut epoch: Epoch = [0; 16];
        getrandom::fill(&mut epoch).map_err(CreateError::Random)?;
        // The first partition's epoch is the ledger's id.
        let epoch = if partition == 0 { self.ledger } else { &epoch[..] };
        let Shape { layout, buckets } = self.shape;
        let number = |number: u64| number.to_string().into_bytes();
        Ok(vec![
            ("format", number(LAYOUT_FORMAT.into())),
            ("ledger", self.ledger.to_vec()),
            ("epoch", epoch.to_vec()),
            ("secret", self.secret.to_vec()),
            ("partitions", number(layout.partitions().into())),
            ("spread", number(layout.spread().into())),
            ("partition", number(partition.into())),
            ("buckets", number(buckets.into())),
            ("rev", number(revision)),
            ("head", head.to_vec()),
            ("accepted", number(0)),
            ("noop", number(0)),
        ])
    }
}

/// The hashes of a partition with this number of buckets, except the meta hash.
pub(super) fn hashes(keyspace: &Keyspace, buckets: u32) -> Result<Vec<String>, CreateError> {
    if !(1..=MAX_BUCKETS).contains(&buckets) {
        return Err(CreateError::Buckets);
    }
    let both = |number| [keyspace.bucket(number), keyspace.history(number)];
    let both = (0..buckets).flat_map(both);
    Ok([keyspace.text.clone(), keyspace.erased.clone()].into_iter().chain(both).collect())
}
