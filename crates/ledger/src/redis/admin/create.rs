//! Creates a ledger in Redis. Besides `ledger copy`, nothing else ever does: a Redis that lost its data must
//! not look like a new ledger without opt-outs.

use redis::Value;

use super::super::conn::ConnectionManager;
use super::super::error::{RedisFailure, RedisRejection};
use super::super::keyspace::{Keyspace, LAYOUT_FORMAT, SENTINEL_FIELD};
use super::super::scripts::{self, Answer, ask, ask_all};
use super::super::{Target, scripts::Script};
use crate::stored_secret::StoredSecret;
use crate::{Epoch, LedgerError, LogHead};

/// The maximum number of buckets of a ledger: reading a whole ledger takes a command for each.
pub const MAX_BUCKETS: u32 = 1 << 20;

/// How many keys one script creates.
pub(super) const MAX_KEYS: usize = 512;

/// Why a ledger was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The number of buckets is out of range.
    #[error("a ledger has 1 to {MAX_BUCKETS} buckets; 8192 do for some million pairs")]
    Buckets,
    /// A ledger, or a part of one, exists already.
    #[error(
        "there is a ledger in this Redis already, or what is left of one: nothing was changed; \
             give another database or server, or follow the one that is there"
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
    /// The number of its buckets.
    pub buckets: u32,
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
pub async fn plan(target: Target, buckets: u32) -> Result<Plan, CreateError> {
    let (connections, keyspace) = (ConnectionManager::new(target.into()), Keyspace::new());
    let hashes = hashes(&keyspace, buckets)?;
    let mut command = redis::cmd("EXISTS");
    if ask(&connections, command.arg(&keyspace.meta)).await? != Value::Int(0) {
        return Err(CreateError::Exists);
    }
    let mut present = 0_u64;
    for key in [&keyspace.log, &keyspace.fence] {
        let mut command = redis::cmd("TYPE");
        let kind = ask(&connections, command.arg(key)).await?;
        let is = |name: &str| matches!(&kind, Value::SimpleString(kind) if kind == name);
        let mut length = redis::cmd("XLEN");
        let holds = is("stream") && ask(&connections, length.arg(key)).await? != Value::Int(0);
        let expected = if *key == keyspace.log { "stream" } else { "string" };
        if holds || !(is("none") || is(expected)) {
            return Err(CreateError::Exists);
        }
        present += u64::from(!is("none"));
    }
    for some in hashes.chunks(MAX_KEYS) {
        let both = some.iter().flat_map(|hash| {
            let (mut length, mut sentinel) = (redis::cmd("HLEN"), redis::cmd("HEXISTS"));
            length.arg(hash);
            sentinel.arg(hash).arg(SENTINEL_FIELD);
            [length, sentinel]
        });
        for answers in ask_all(&connections, both.collect()).await?.chunks(2) {
            match answers {
                [Value::Int(0), _] => {}
                [Value::Int(1), Value::Int(1)] => present += 1,
                // HLEN fails for a key of another type: it does not belong to a new ledger either.
                _ => return Err(CreateError::Exists),
            }
        }
    }
    let hashes = u64::try_from(hashes.len()).unwrap_or(u64::MAX);
    Ok(Plan { keys: hashes.saturating_add(3), present })
}

/// Creates a ledger. Resumes an interrupted run; the meta key, which makes it a ledger, comes last.
///
/// # Errors
///
/// [`CreateError`] if a part of a ledger exists, or Redis fails.
pub async fn create(target: Target, buckets: u32) -> Result<Created, CreateError> {
    // Checked before anything is created: if a ledger has lost its meta key and some hashes, creating those
    // hashes would make them look complete.
    plan(target.clone(), buckets).await?;
    let (connections, keyspace) = (ConnectionManager::new(target.into()), Keyspace::new());
    let hashes = hashes(&keyspace, buckets)?;
    let mut epoch: Epoch = [0; 16];
    getrandom::fill(&mut epoch).map_err(CreateError::Random)?;
    let secret = StoredSecret::random().map_err(CreateError::Random)?.encode();
    for some in hashes.chunks(MAX_KEYS) {
        let keys: Vec<_> = std::iter::once(&keyspace.meta).chain(some).collect();
        run(&scripts::CREATE_HASHES, &connections, &keys, &[SENTINEL_FIELD]).await?;
    }
    let (format, buckets_text) = (LAYOUT_FORMAT.to_string(), buckets.to_string());
    let head = LogHead::default();
    let meta: [(&str, &[u8]); 9] = [
        ("format", format.as_bytes()),
        ("epoch", &epoch),
        ("secret", &secret),
        ("partitions", b"1"),
        ("buckets", buckets_text.as_bytes()),
        ("rev", b"0"),
        ("head", &head),
        ("accepted", b"0"),
        ("noop", b"0"),
    ];
    let args: Vec<&[u8]> = meta.iter().flat_map(|(name, value)| [name.as_bytes(), value]).collect();
    run(
        &scripts::CREATE_META,
        &connections,
        &[&keyspace.meta, &keyspace.log, &keyspace.fence],
        &args,
    )
    .await?;
    Ok(Created { epoch, buckets })
}

/// Runs a step. Steps are idempotent, so that a run whose reply was lost can be repeated.
async fn run(
    script: &Script,
    connections: &ConnectionManager,
    keys: &[&String],
    args: &[&[u8]],
) -> Result<(), CreateError> {
    let answer = script.run(connections, keys, args).await?;
    let mut answer = Answer::of(Value::Array(vec![answer]))?;
    answer.number()?;
    Ok(())
}

/// The hashes of a ledger with this number of buckets, except the meta hash.
pub(super) fn hashes(keyspace: &Keyspace, buckets: u32) -> Result<Vec<String>, CreateError> {
    if !(1..=MAX_BUCKETS).contains(&buckets) {
        return Err(CreateError::Buckets);
    }
    let both = |number| [keyspace.bucket(number), keyspace.history(number)];
    let both = (0..buckets).flat_map(both);
    Ok([keyspace.text.clone(), keyspace.erased.clone()].into_iter().chain(both).collect())
}
