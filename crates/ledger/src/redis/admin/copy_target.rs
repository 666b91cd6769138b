//! The target of a copy: a new ledger in Redis that is written from another ledger.

use std::collections::HashMap;

use super::super::Target;
use super::super::error::{RedisFailure, RedisRejection};
use super::super::keyspace::{encode_item, history_field, version_bytes};
use super::super::scripts::{self, Answer, ask};
use super::create::{
    CreateError, MAX_KEYS, NewIdentity, Place, Shape, Survey, complete, hashes, places,
};
use super::other_layouts::ensure_no_other;
use crate::portable_pair::{PortableEntry, PortablePair, statement_digests};
use crate::stored_secret::StoredSecret;
use crate::{CopyError, Created, Epoch, Position, Version, bucket_of};

/// The maximum number of fields that one script writes.
const MAX_FIELDS: usize = 1_024;
/// Their approximate maximum size, in bytes: Redis executes nothing else meanwhile.
const MAX_BYTES: usize = 1 << 20;

/// A new ledger that is being written. It is not a ledger before it is finished.
pub struct NewRedis {
    shape: Shape,
    /// The first one comes last.
    partitions: Vec<NewPartition>,
}

/// A partition of it.
struct NewPartition {
    place: Place,
    token: [u8; 16],
    buckets: u32,
}

/// A field to write: its hash, its name, and its value.
type Field = (String, Vec<u8>, Vec<u8>);

impl NewRedis {
    /// Reserves the keys for a copy. An unfinished copy at the target is an error, or is deleted first.
    ///
    /// # Errors
    ///
    /// [`CopyError`]; if the target has a ledger, or anything else in a ledger's keys, nothing is changed.
    pub async fn begin(target: Target, shape: Shape, anew: bool) -> Result<Self, CopyError> {
        let (places, mut left) = (places(target.clone(), shape.layout), Vec::new());
        for place in &places {
            if let Some((token, buckets)) = unfinished(place).await? {
                if !anew {
                    return Err(CopyError::Unfinished);
                }
                left.push((place, token, buckets));
            }
        }
        ensure_no_other(target, shape.layout).await?;
        for (place, token, buckets) in left {
            wipe(place, token, buckets).await?;
        }
        Survey::of(&places, shape).await?;
        let mut partitions = Vec::with_capacity(places.len());
        for place in places {
            partitions.push(NewPartition::begin(place, shape.buckets).await?);
        }
        Ok(Self { shape, partitions })
    }

    /// Checks what [`begin`](Self::begin) would check, and changes nothing.
    ///
    /// # Errors
    ///
    /// The [`CopyError`] that [`begin`](Self::begin) would return.
    pub async fn plan(target: Target, shape: Shape, anew: bool) -> Result<(), CopyError> {
        let (places, mut is_unfinished) = (places(target.clone(), shape.layout), false);
        for place in &places {
            if unfinished(place).await?.is_some() {
                if !anew {
                    return Err(CopyError::Unfinished);
                }
                is_unfinished = true;
            }
        }
        ensure_no_other(target, shape.layout).await?;
        if !is_unfinished {
            Survey::of(&places, shape).await?;
        }
        Ok(())
    }

    /// Writes pairs, and statements by their digests, to the partitions that they are in. A statement is written
    /// to each partition with a pair that refers to it.
    pub(crate) async fn put(
        &self,
        pairs: Vec<PortablePair>,
        texts: Vec<([u8; 32], Vec<u8>)>,
    ) -> Result<(), CopyError> {
        let layout = self.shape.layout;
        if let [only] = &self.partitions[..] {
            return only.put(&pairs, texts).await;
        }
        let mut parts: HashMap<u32, Vec<PortablePair>> = HashMap::new();
        for pair in pairs {
            if pair.key().is_nameless() {
                return Err(CopyError::Nameless);
            }
            parts.entry(layout.partition_of(pair.key())).or_default().push(pair);
        }
        for partition in &self.partitions {
            let Some(pairs) = parts.remove(&partition.place.keyspace.partition) else { continue };
            let needed = statement_digests(&pairs);
            let own = texts.iter().filter(|(digest, _)| needed.contains(digest)).cloned();
            partition.put(&pairs, own.collect()).await?;
        }
        Ok(())
    }

    /// Turns the copy into a ledger, whose partitions' revisions continue from `end`. The first partition comes last:
    /// until then the others are known as those of an unfinished copy, which can be begun anew.
    pub(crate) async fn finish(
        self,
        end: &Position,
        secret: &StoredSecret,
    ) -> Result<Created, CopyError> {
        let mut ledger: Epoch = [0; 16];
        getrandom::fill(&mut ledger).map_err(CreateError::Random)?;
        let (shape, secret) = (self.shape, secret.encode());
        let new = NewIdentity { shape, ledger: &ledger, secret: &secret };
        for partition in &self.partitions {
            partition.finish(end, &new).await?;
        }
        let places: Vec<_> = self.partitions.iter().map(|partition| &partition.place).collect();
        complete(&places, &ledger).await;
        let Shape { layout, buckets } = shape;
        Ok(Created { epoch: ledger, layout, buckets })
    }
}

impl NewPartition {
    async fn begin(place: Place, buckets: u32) -> Result<Self, CopyError> {
        place.create_hashes(buckets).await?;
        let mut token = [0; 16];
        getrandom::fill(&mut token).map_err(CreateError::Random)?;
        let number = buckets.to_string();
        let args = [&token[..], number.as_bytes()];
        place.run(&scripts::COPY_BEGIN, &[&place.keyspace.meta], &args).await?;
        Ok(Self { place, token, buckets })
    }

    /// Writes pairs, and statements by their digests. A pair's record is written after its history, so that
    /// a record's history is always complete.
    async fn put(
        &self,
        pairs: &[PortablePair],
        texts: Vec<([u8; 32], Vec<u8>)>,
    ) -> Result<(), CopyError> {
        let keyspace = &self.place.keyspace;
        let text = |(digest, text): ([u8; 32], _)| (keyspace.text.clone(), digest.to_vec(), text);
        let mut fields: Vec<Field> = texts.into_iter().map(text).collect();
        for pair in pairs {
            let number = bucket_of(pair.key(), self.buckets);
            let history = keyspace.history(number);
            // A record that cannot be decoded is copied as it is; it does not count as erased.
            let start = pair.decode().map_or(0, |record| record.history_start().0);
            for (place, entry) in (start..).zip(&pair.history) {
                // An entry that the source has lost is skipped; `verify` reports it.
                let Some(entry) = entry else { continue };
                let field = history_field(pair.key(), place);
                fields.push((history.clone(), field, item(entry)));
            }
            let version = Version { revision: pair.revision, head_prefix: pair.head_prefix };
            let value = [&version_bytes(version)[..], &pair.record].concat();
            if pair.decode().is_ok_and(|record| record.erased.is_some()) {
                fields.push((history, pair.key.to_vec(), value.clone()));
            }
            fields.push((keyspace.bucket(number), pair.key.to_vec(), value));
        }
        let (mut from, mut bytes) = (0, 0_usize);
        for at in 0..fields.len() {
            let (_, name, value) = &fields[at];
            bytes += name.len() + value.len();
            if at + 1 - from >= MAX_FIELDS || bytes >= MAX_BYTES {
                self.write(&fields[from..=at]).await?;
                (from, bytes) = (at + 1, 0);
            }
        }
        self.write(&fields[from..]).await
    }

    async fn write(&self, fields: &[Field]) -> Result<(), CopyError> {
        if fields.is_empty() {
            return Ok(());
        }
        let mut keys = vec![&self.place.keyspace.meta];
        let mut slots = HashMap::new();
        let mut numbers = Vec::with_capacity(fields.len());
        for (hash, _, _) in fields {
            let slot = *slots.entry(hash).or_insert_with(|| {
                keys.push(hash);
                keys.len()
            });
            numbers.push(slot.to_string());
        }
        let mut args = vec![&self.token[..]];
        for ((_, name, value), slot) in fields.iter().zip(&numbers) {
            args.extend([slot.as_bytes(), name.as_slice(), value.as_slice()]);
        }
        Ok(self.place.run(&scripts::COPY_WRITE, &keys, &args).await?)
    }

    async fn finish(&self, end: &Position, new: &NewIdentity<'_>) -> Result<(), CopyError> {
        let Place { connections, keyspace } = &self.place;
        let mut meta = new.meta(keyspace.partition, end.revision, &end.head)?;
        if keyspace.partition > 0 {
            // The token, as in `copying`, and the revision: what is changed later is nobody's to remove.
            meta.push((
                "finishing",
                [&self.token[..], end.revision.to_string().as_bytes()].concat(),
            ));
        }
        let publish = connections.topology().publish_command();
        let mut args = vec![&self.token[..], keyspace.channel.as_bytes(), publish.as_bytes()];
        args.extend(meta.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_slice()]));
        let keys = [&keyspace.meta, &keyspace.log, &keyspace.fence];
        Ok(self.place.run(&scripts::COPY_FINISH, &keys, &args).await?)
    }
}

/// The value of a history entry's field.
fn item(entry: &PortableEntry) -> Vec<u8> {
    [&entry.revision.to_be_bytes()[..], &encode_item(&entry.item)].concat()
}

/// The token and the number of buckets of an unfinished copy, if there is one. Of such a copy, partitions may be finished
/// already: they have an epoch, and the token all the same.
async fn unfinished(
    Place { connections, keyspace }: &Place,
) -> Result<Option<([u8; 16], u32)>, CopyError> {
    let mut command = redis::cmd("HMGET");
    command.arg(&keyspace.meta).arg("epoch").arg("copying").arg("buckets");
    command.arg("finishing").arg("rev");
    let mut answer = match ask(connections, &command).await {
        Ok(answer) => Answer::of(answer)?,
        // A key of another type does not belong to a copy; `create_hashes.lua` rejects it.
        Err(RedisFailure::Rejected(RedisRejection::Other { .. })) => return Ok(None),
        Err(failure) => return Err(failure.into()),
    };
    let epoch = answer.optional()?;
    let (copying, buckets) = (answer.optional()?, answer.optional()?);
    let (finishing, revision) = (answer.optional()?, answer.optional()?.unwrap_or_default());
    let token = match (epoch, copying) {
        (None, None) => return Ok(None),
        (None, Some(token)) => token,
        (Some(_), _) => {
            let token = finishing.as_ref().and_then(|both| both.strip_suffix(&revision[..]));
            token.ok_or(CopyError::Target(CreateError::Exists))?.to_vec()
        }
    };
    let malformed = || RedisFailure::Rejected(RedisRejection::MalformedReply);
    let token = token.try_into().map_err(|_| malformed())?;
    let buckets = String::from_utf8(buckets.unwrap_or_default()).ok();
    let buckets = buckets.and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
    Ok(Some((token, buckets)))
}

/// Deletes an unfinished copy; its meta key, which identifies it, last.
async fn wipe(place: &Place, token: [u8; 16], buckets: u32) -> Result<(), CopyError> {
    let keyspace = &place.keyspace;
    let mut rest = hashes(keyspace, buckets)?;
    rest.extend([keyspace.log.clone(), keyspace.fence.clone()]);
    for some in rest.chunks(MAX_KEYS) {
        let keys: Vec<_> = std::iter::once(&keyspace.meta).chain(some).collect();
        place.run(&scripts::COPY_WIPE, &keys, &[&token]).await?;
    }
    Ok(place.run(&scripts::COPY_WIPE, &[&keyspace.meta, &keyspace.meta], &[&token]).await?)
}

impl From<CreateError> for CopyError {
    fn from(error: CreateError) -> Self {
        Self::Target(error)
    }
}

impl From<RedisFailure> for CopyError {
    fn from(failure: RedisFailure) -> Self {
        Self::Target(failure.into())
    }
}
