//! Making a ledger in Redis. Nothing else ever makes one: a Redis that lost its data must not look
//! like a new ledger in which nobody has opted out.

use redis::Value;

use super::super::conn::ConnectionManager;
use super::super::error::{RedisFailure, RedisRejection};
use super::super::keyspace::{Keyspace, LAYOUT_FORMAT, SENTINEL_FIELD};
use super::super::scripts::{self, Answer, ask, ask_all};
use super::super::{Target, scripts::Script};
use crate::{Epoch, LedgerError, LogHead};

/// The most buckets that a ledger can have: a snapshot asks for each.
pub const MAX_BUCKETS: u32 = 1 << 20;

/// How many keys one script makes.
pub(super) const MAX_KEYS: usize = 512;

/// Why a ledger was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// So many buckets do not make sense.
    #[error("a ledger has 1 to {MAX_BUCKETS} buckets; 8192 do for some million pairs")]
    Buckets,
    /// There is one.
    #[error(
        "there is a ledger in this Redis already, or what is left of one: nothing was changed; \
             give another database, or follow the one that is there"
    )]
    Exists,
    /// No randomness.
    #[error("the system gives no random bytes: {0}")]
    Random(#[source] getrandom::Error),
    /// Redis did not do it. What was made by then is no ledger yet, and is taken over next time.
    #[error("the ledger is not made yet, and making it again goes on from here: {0}")]
    Redis(#[source] LedgerError),
}

/// What making a ledger would do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plan {
    /// How many keys it would make.
    pub keys: u64,
    /// How many of them are there already, empty, from a run that was cut.
    pub present: u64,
}

/// A ledger that was made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Created {
    /// Which it is.
    pub epoch: Epoch,
    /// How many buckets its pairs lie in.
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

/// Says what [`create`] would do, and does nothing.
///
/// # Errors
///
/// [`CreateError`], as [`create`] would give.
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
                // A hash of the wrong kind is an error of HLEN: it is not a ledger's either.
                _ => return Err(CreateError::Exists),
            }
        }
    }
    let hashes = u64::try_from(hashes.len()).unwrap_or(u64::MAX);
    Ok(Plan { keys: hashes.saturating_add(3), present })
}

/// Makes a ledger. What a run that was cut has left is gone on with; the meta key, which makes it
/// a ledger, comes last.
///
/// # Errors
///
/// [`CreateError`] where anything of a ledger is there, or Redis does not do it.
pub async fn create(target: Target, buckets: u32) -> Result<Created, CreateError> {
    // Before anything is made: of a ledger that has lost its meta key, the hashes that were lost,
    // too, would look like whole ones from then on.
    plan(target.clone(), buckets).await?;
    let (connections, keyspace) = (ConnectionManager::new(target.into()), Keyspace::new());
    let hashes = hashes(&keyspace, buckets)?;
    let (mut epoch, mut secret): (Epoch, _) = ([0; 16], [0; 16]);
    for random in [&mut epoch, &mut secret] {
        getrandom::fill(random).map_err(CreateError::Random)?;
    }
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

/// Runs a step; where its answer is lost, whoever runs it again goes on from there.
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

/// The hashes of a ledger of so many buckets, the meta hash aside.
pub(super) fn hashes(keyspace: &Keyspace, buckets: u32) -> Result<Vec<String>, CreateError> {
    if !(1..=MAX_BUCKETS).contains(&buckets) {
        return Err(CreateError::Buckets);
    }
    let both = |number| [keyspace.bucket(number), keyspace.history(number)];
    Ok(std::iter::once(keyspace.text.clone()).chain((0..buckets).flat_map(both)).collect())
}
