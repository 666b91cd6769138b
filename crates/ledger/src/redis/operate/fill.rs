//! A ledger to be, in Redis, that is filled from another one.

use std::collections::HashMap;
use std::sync::Arc;

use redis::Value;

use super::super::Target;
use super::super::create::{CreateError, MAX_KEYS, hashes};
use super::super::layout::{
    Item, LAYOUT_FORMAT, Names, PARTITION, SENTINEL, history_field, version_bytes,
};
use super::super::link::Link;
use super::super::refusal::{Failure, RefusedBy};
use super::super::scripts::{self, Answer, Script, ask};
use crate::portable_pair::{Entry, Kind, PortablePair};
use crate::{CopyError, Created, Epoch, Position, Version, bucket_of};

/// How many fields one script writes at most.
const MAX_FIELDS: usize = 1_024;
/// How many bytes of them, in about: Redis does nothing else meanwhile.
const MAX_BYTES: usize = 1 << 20;

/// A ledger to be. There is none before it is finished.
pub struct NewRedis {
    link: Link,
    names: Names,
    token: [u8; 16],
    buckets: u32,
}

/// One field to be written: in which hash, its name, and its value.
type Field = (String, Vec<u8>, Vec<u8>);

impl NewRedis {
    /// Prepares the place. Where a copy was begun there and never finished, that is an error, or
    /// it is removed.
    ///
    /// # Errors
    ///
    /// [`CopyError`]; where a ledger is there, or anything else that has a ledger's keys, nothing
    /// is changed.
    pub async fn begin(target: Target, buckets: u32, anew: bool) -> Result<Self, CopyError> {
        let link = Link::new(Arc::new(target.clone()));
        let names = Names::of(PARTITION);
        let hashes = hashes(&names, buckets).map_err(CopyError::Target)?;
        if let Some((token, buckets)) = unfinished(&link, &names).await? {
            if !anew {
                return Err(CopyError::Unfinished);
            }
            wipe(&link, &names, token, buckets).await?;
        }
        super::super::create::plan(target, buckets).await.map_err(of_create)?;
        for some in hashes.chunks(MAX_KEYS) {
            let keys: Vec<_> = std::iter::once(&names.meta).chain(some).collect();
            run(&scripts::PREPARE, &link, &keys, &[SENTINEL]).await?;
        }
        let mut token = [0; 16];
        getrandom::fill(&mut token).map_err(|e| CopyError::Target(CreateError::Random(e)))?;
        let number = buckets.to_string();
        let args = [&token[..], number.as_bytes()];
        run(&scripts::FILL_BEGIN, &link, &[&names.meta], &args).await?;
        Ok(Self { link, names, token, buckets })
    }

    /// Says what [`begin`](Self::begin) would find, and changes nothing.
    ///
    /// # Errors
    ///
    /// [`CopyError`], as there.
    pub async fn plan(target: Target, buckets: u32, anew: bool) -> Result<(), CopyError> {
        let link = Link::new(Arc::new(target.clone()));
        let names = Names::of(PARTITION);
        if unfinished(&link, &names).await?.is_some() {
            return if anew { Ok(()) } else { Err(CopyError::Unfinished) };
        }
        super::super::create::plan(target, buckets).await.map(|_| ()).map_err(of_create)
    }

    /// Writes pairs, and statements by their digests. A record comes after its history: what there
    /// is of a pair is whole.
    pub(crate) async fn put(
        &self,
        pairs: &[PortablePair],
        texts: Vec<([u8; 32], Vec<u8>)>,
    ) -> Result<(), CopyError> {
        let text = |(digest, text): ([u8; 32], _)| (self.names.text.clone(), digest.to_vec(), text);
        let mut fields: Vec<Field> = texts.into_iter().map(text).collect();
        for pair in pairs {
            let number = bucket_of(pair.key(), self.buckets);
            let history = self.names.history(number);
            // A record that cannot be read is no reader's, and has none that was erased.
            let start = pair.decode().map_or(0, |record| record.history_start().0);
            for (place, entry) in (start..).zip(&pair.history) {
                // What the other ledger has lost is not made up; verify tells of it.
                let Some(entry) = entry else { continue };
                let field = history_field(pair.key(), place);
                fields.push((history.clone(), field, item(entry)));
            }
            let version = Version { revision: pair.revision, head_prefix: pair.head_prefix };
            let value = [&version_bytes(version)[..], &pair.record].concat();
            if pair.decode().is_ok_and(|record| record.erased.is_some()) {
                fields.push((history, pair.key.to_vec(), value.clone()));
            }
            fields.push((self.names.bucket(number), pair.key.to_vec(), value));
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
        let mut keys = vec![&self.names.meta];
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
        run(&scripts::FILL, &self.link, &keys, &args).await
    }

    /// Makes it a ledger, whose revisions go on from `end`.
    pub(crate) async fn finish(
        self,
        end: &Position,
        secret: &[u8; 16],
    ) -> Result<Created, CopyError> {
        let mut epoch: Epoch = [0; 16];
        getrandom::fill(&mut epoch).map_err(|e| CopyError::Target(CreateError::Random(e)))?;
        let (format, buckets) = (LAYOUT_FORMAT.to_string(), self.buckets.to_string());
        let revision = end.revision.to_string();
        let meta: [(&str, &[u8]); 9] = [
            ("format", format.as_bytes()),
            ("epoch", &epoch),
            ("secret", secret),
            ("partitions", b"1"),
            ("buckets", buckets.as_bytes()),
            ("rev", revision.as_bytes()),
            ("head", &end.head),
            ("accepted", b"0"),
            ("noop", b"0"),
        ];
        let mut args = vec![&self.token[..], self.names.channel.as_bytes()];
        args.extend(meta.iter().flat_map(|(name, value)| [name.as_bytes(), value]));
        let keys = [&self.names.meta, &self.names.log, &self.names.fence];
        run(&scripts::FILL_FINISH, &self.link, &keys, &args).await?;
        Ok(Created { epoch, buckets: self.buckets })
    }
}

/// A history's item as its field's value.
fn item(entry: &Entry) -> Vec<u8> {
    let item = match (entry.kind, <&[u8; 32]>::try_from(entry.bytes.as_slice())) {
        (Kind::Gone, Ok(digest)) => Item::Gone(digest),
        (Kind::Perishable, _) => Item::Perishable(&entry.bytes),
        _ => Item::Kept(&entry.bytes),
    };
    [&entry.revision.to_be_bytes()[..], &item.encode()].concat()
}

/// Whose copy was begun there and never finished, and into how many buckets.
async fn unfinished(link: &Link, names: &Names) -> Result<Option<([u8; 16], u32)>, CopyError> {
    let mut command = redis::cmd("HMGET");
    command.arg(&names.meta).arg("epoch").arg("copying").arg("buckets");
    let mut answer = match ask(link, &command).await {
        Ok(answer) => Answer::of(answer)?,
        // Another kind of key is none of ours; PREPARE says so.
        Err(Failure::Refused(RefusedBy::Other { .. })) => return Ok(None),
        Err(failure) => return Err(failure.into()),
    };
    if answer.optional()?.is_some() {
        return Err(CopyError::Target(CreateError::Exists));
    }
    let Some(token) = answer.optional()? else { return Ok(None) };
    let token = token.try_into().map_err(|_| Failure::Refused(RefusedBy::Strange))?;
    let buckets = u32::try_from(answer.number()?).unwrap_or(u32::MAX);
    Ok(Some((token, buckets)))
}

/// Removes a copy that was never finished; meta, by which it is known, last.
async fn wipe(link: &Link, names: &Names, token: [u8; 16], buckets: u32) -> Result<(), CopyError> {
    let mut rest = hashes(names, buckets).map_err(CopyError::Target)?;
    rest.extend([names.log.clone(), names.fence.clone()]);
    for some in rest.chunks(MAX_KEYS) {
        let keys: Vec<_> = std::iter::once(&names.meta).chain(some).collect();
        run(&scripts::FILL_WIPE, link, &keys, &[&token]).await?;
    }
    run(&scripts::FILL_WIPE, link, &[&names.meta, &names.meta], &[&token]).await
}

async fn run(
    script: &Script,
    link: &Link,
    keys: &[&String],
    args: &[&[u8]],
) -> Result<(), CopyError> {
    let answer = script.run(link, keys, args).await?;
    Answer::of(Value::Array(vec![answer]))?.number()?;
    Ok(())
}

fn of_create(error: CreateError) -> CopyError {
    CopyError::Target(error)
}

impl From<Failure> for CopyError {
    fn from(failure: Failure) -> Self {
        Self::Target(failure.into())
    }
}
