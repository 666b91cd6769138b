//! Reads many buckets one after the other, over a connection of its own.
//!
//! **Why no script.** A script would return a bucket with its label in one step, as `read_bucket.lua` does
//! for single buckets, but Lua makes a string of its own of each field and value, and Redis does nothing
//! else meanwhile. Here the label is read before and after the bucket, in one pipeline:
//!
//! - Redis executes the commands of a connection in their order, and each of them at once.
//! - Every append changes the revision, which never goes back within a history of the ledger, and the head
//!   is a hash over all that was appended. So if both labels are equal, the ledger had the same log before
//!   and after, and no append was executed between them: the bucket is that of the label. What is written
//!   past the log changes no label, with a script as without one.
//! - If they differ, the bucket is read by the script, so that writers cannot hold a reader up for ever.
//!
//! MULTI would do the same at the price of two more permissions in the ACL of every sidecar.
//!
//! **Why its own connection.** The replies are handed over field by field out of the receive buffer, and a
//! poll does not wait behind them.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::conn::{RECONNECT, Reply, RespConnection, RespError};
use super::error::{RedisFailure, RedisRejection, ResponseTimeout};
use super::read::BucketPairs;
use super::scripts::RESPONSE_TIMEOUT;
use super::{RedisPartition, Shared};
use crate::{Bucket, LedgerError, Position, codec};

/// How many buckets Redis is asked for before the first of them has arrived: enough that neither side waits
/// for the other, and few enough that another client waits for no more than so many.
const MAX_ASKED: usize = 2;

/// How many callers may wait for a place among them.
const MAX_WAITING: usize = 64;

/// How many buckets are decoded before their callers take them: a decoded bucket takes some ten times the
/// memory of its reply.
const MAX_DECODED: usize = 2;

/// A bucket, unless its label changed while it was read.
type Answer = Result<Option<Bucket>, RedisFailure>;

/// A request for the bucket with this number. The permit is one of [`MAX_DECODED`].
type Request = (u32, oneshot::Sender<(Answer, OwnedSemaphorePermit)>);

/// Reads buckets over one connection, which is opened by the first read and closed when this is dropped.
pub(crate) struct BucketStream {
    shared: Arc<Shared>,
    link: Mutex<Link>,
    /// One of the places of partitions that are loaded at once, since the turn came.
    turn: Mutex<Option<OwnedSemaphorePermit>>,
}

/// The connection, if there is one.
struct Link {
    open: Option<OpenLink>,
    /// The earliest time of the next attempt to connect.
    not_before: Instant,
}

struct OpenLink {
    requests: mpsc::Sender<Request>,
    /// The number of the ledger's connection for reading when this one was opened: a failover replaces both.
    number: u64,
    _driver: AbortOnDropHandle<()>,
}

impl RedisPartition {
    /// A reader of many buckets.
    pub(crate) fn bucket_stream(&self) -> BucketStream {
        let link = Mutex::new(Link { open: None, not_before: Instant::now() });
        BucketStream { shared: Arc::clone(&self.shared), link, turn: Mutex::default() }
    }
}

impl BucketStream {
    /// Waits until fewer than the most partitions of the ledger are loaded, and takes one of their places.
    pub(crate) async fn turn(&self) {
        let mut turn = self.turn.lock().await;
        if turn.is_none() {
            // It is never closed.
            *turn = Arc::clone(&self.shared.common.loads).acquire_owned().await.ok();
        }
    }

    /// Gives its place to another partition.
    pub(crate) fn leave_turn(&self) {
        // While it is locked, this partition waits for a place, and has none.
        if let Ok(mut turn) = self.turn.try_lock() {
            *turn = None;
        }
    }

    /// Reads one bucket. Of its records, what a table does not need is left out: see
    /// [`BucketReader`](crate::BucketReader).
    pub(crate) async fn bucket(&self, number: u32) -> Result<Bucket, LedgerError> {
        let shared = &*self.shared;
        shared.check_open()?;
        let read = async {
            match self.read(number).await? {
                Some(bucket) => Ok(bucket),
                None => shared.bucket(&shared.held(), number).await,
            }
        };
        let bucket = read.await.map_err(|failure| shared.convert_failure(failure))?;
        shared.forget_if(|known| known.epoch != bucket.label.epoch);
        Ok(bucket)
    }

    async fn read(&self, number: u32) -> Answer {
        let requests = self.requests().await.map_err(RedisFailure::NotSent)?;
        let closed = || RedisFailure::NoReply(Arc::new(RespError::Closed));
        let (answer, answered) = oneshot::channel();
        requests.send((number, answer)).await.map_err(|_| closed())?;
        let (answer, _permit) = answered.await.map_err(|_| closed())?;
        answer
    }

    /// The way to the connection; opens one if there is none.
    async fn requests(&self) -> Result<mpsc::Sender<Request>, LedgerError> {
        // Whatever ends the other connection for reading ends this one: its manager knows of failovers, and
        // how long to wait after a failure.
        let reads = &self.shared.reads;
        let number = reads.connection().await?.number();
        let mut link = self.link.lock().await;
        if let Some(open) = &link.open
            && open.number == number
            && !open.requests.is_closed()
        {
            return Ok(open.requests.clone());
        }
        link.open = None;
        sleep_until(link.not_before).await;
        link.not_before = Instant::now() + RECONNECT.first;
        let (connection, moved) = reads.open_another().await?;
        let (requests, waiting) = mpsc::channel(MAX_WAITING);
        let driver = Driver { shared: Arc::clone(&self.shared), connection };
        #[allow(clippy::disallowed_methods, reason = "ended when the stream is dropped")]
        let driver = tokio::spawn(async move {
            tokio::select! {
                () = driver.run(waiting) => {}
                () = moved => {}
            }
        });
        link.open = Some(OpenLink {
            requests: requests.clone(),
            number,
            _driver: AbortOnDropHandle::new(driver),
        });
        Ok(requests)
    }
}

/// Sends the requests and receives the replies, in order.
struct Driver {
    shared: Arc<Shared>,
    connection: RespConnection,
}

impl Driver {
    /// Answers requests until the connection fails or nobody can send more. What is not answered by then
    /// fails with the channel of its answer.
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut asked = VecDeque::new();
        let decoded = Arc::new(Semaphore::new(MAX_DECODED));
        loop {
            while asked.len() < MAX_ASKED {
                let next = if asked.is_empty() {
                    let Some(request) = requests.recv().await else { return };
                    Some(request)
                } else {
                    requests.try_recv().ok()
                };
                let Some((number, answer)) = next else { break };
                if self.ask(number).await.is_err() {
                    return;
                }
                asked.push_back((number, answer));
            }
            let Some((number, answer)) = asked.pop_front() else { continue };
            let Ok(permit) = Arc::clone(&decoded).acquire_owned().await else { return };
            let received = timeout(RESPONSE_TIMEOUT, self.receive(number)).await;
            let (bucket, is_over) = match received {
                Ok(Ok(bucket)) => (bucket, false),
                Ok(Err(why)) => (Err(RedisFailure::NoReply(Arc::new(why))), true),
                Err(_) => {
                    let why = Arc::new(ResponseTimeout(RESPONSE_TIMEOUT));
                    (Err(RedisFailure::NoReply(why)), true)
                }
            };
            // The caller may have been cancelled.
            drop(answer.send((bucket, permit)));
            if is_over {
                return;
            }
        }
    }

    /// Asks for a bucket, with its label before and after it.
    async fn ask(&mut self, number: u32) -> Result<(), RespError> {
        let keyspace = &self.shared.keyspace;
        let bucket = keyspace.bucket(number);
        let label: [&[u8]; 5] = [b"HMGET", keyspace.meta.as_bytes(), b"epoch", b"rev", b"head"];
        let commands = [label.to_vec(), vec![b"HGETALL", bucket.as_bytes()], label.to_vec()];
        let sent = self.connection.send(&commands);
        let late = |_| RespError::Io(io::ErrorKind::TimedOut.into());
        timeout(RESPONSE_TIMEOUT, sent).await.map_err(late)?
    }

    /// Receives all three replies, so that the next ones are those of the next bucket. The outer error is
    /// one of the connection.
    async fn receive(&mut self, number: u32) -> Result<Answer, RespError> {
        let before = label_of(&self.connection.reply().await?);
        // Without a label nothing is kept of the bucket.
        let held = self.shared.held();
        let mut pairs = before.as_ref().ok().map(|label| BucketPairs::new(*label, held));
        let refused = self.connection.string_pairs(|field, value| {
            if let Some(pairs) = &mut pairs {
                pairs.add(field, value, codec::decode_record_for_table);
            }
        });
        let refused = refused.await?;
        let after = label_of(&self.connection.reply().await?);
        Ok(match (before, refused, after, pairs) {
            (Err(failure), ..) | (_, _, Err(failure), _) => Err(failure),
            (_, Some(Reply::Error(error)), ..) => Err(RedisFailure::of_error_reply(&error)),
            (Ok(before), None, Ok(after), Some(pairs)) if before == after => {
                pairs.into_bucket(number, &self.shared.keyspace).map(Some)
            }
            (_, None, ..) => Ok(None),
            (_, Some(_), ..) => Err(RedisFailure::Rejected(RedisRejection::MalformedReply)),
        })
    }
}

/// The position in a reply to HMGET.
fn label_of(reply: &Reply) -> Result<Position, RedisFailure> {
    let malformed = || RedisFailure::Rejected(RedisRejection::MalformedReply);
    let values = match reply {
        Reply::Array(values) => values,
        Reply::Error(error) => return Err(RedisFailure::of_error_reply(error)),
        _ => return Err(malformed()),
    };
    let [epoch, revision, head] = &values[..] else { return Err(malformed()) };
    if *epoch == Reply::Bulk(None) {
        return Err(RedisFailure::Rejected(RedisRejection::Missing));
    }
    let bytes = |value: &Reply| value.bytes().cloned().ok_or_else(malformed);
    let revision = revision.text().and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
    Ok(Position {
        epoch: bytes(epoch)?[..].try_into().map_err(|_| malformed())?,
        revision,
        head: bytes(head)?[..].try_into().map_err(|_| malformed())?,
    })
}
