//! The Lua scripts, how they are called, and how their replies are decoded.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{Cmd, Value};
use sha1::{Digest as _, Sha1};

use super::conn::{Connection, ConnectionManager};
use super::error::{RedisFailure, RedisRejection, ResponseTimeout};

/// The timeout of a reply. Replies are of bounded size.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A script with its digest, by which Redis knows it once it is cached.
pub(super) struct Script {
    source: String,
    sha: String,
    /// The commands that run it by its digest, and by its source.
    commands: [&'static str; 2],
}

impl Script {
    fn new(flags: &str, body: &str) -> Self {
        let source = format!("#!lua {flags}\n{body}");
        let sha = hex::encode(Sha1::digest(source.as_bytes()));
        let commands = match flags {
            // The read-only commands need fewer permissions, and are accepted by replicas.
            READS => ["EVALSHA_RO", "EVAL_RO"],
            _ => ["EVALSHA", "EVAL"],
        };
        Self { source, sha, commands }
    }

    /// The command that runs this script by its digest, or by its source if Redis has not cached it.
    pub(super) fn command<'a>(
        &self,
        is_source: bool,
        keys: &[impl AsRef<str>],
        args: impl IntoIterator<Item = &'a [u8]>,
    ) -> Cmd {
        let [by_name, by_source] = self.commands;
        let mut command = if is_source {
            let mut command = redis::cmd(by_source);
            command.arg(&self.source);
            command
        } else {
            let mut command = redis::cmd(by_name);
            command.arg(&self.sha);
            command
        };
        command.arg(keys.len());
        for key in keys {
            command.arg(key.as_ref());
        }
        for arg in args {
            command.arg(arg);
        }
        command
    }

    /// Runs the script over the manager's connection.
    pub(super) async fn run(
        &self,
        connections: &ConnectionManager,
        keys: &[impl AsRef<str>],
        args: &[&[u8]],
    ) -> Result<Value, RedisFailure> {
        let connection = connections.connection().await.map_err(RedisFailure::NotSent)?;
        self.run_on(connections, &connection, keys, args).await
    }

    /// Runs a script that returns the number of its changes. Returns whether there were any.
    pub(super) async fn run_counted(
        &self,
        connections: &ConnectionManager,
        keys: &[impl AsRef<str>],
        args: &[&[u8]],
    ) -> Result<bool, RedisFailure> {
        Ok(Answer::one(self.run(connections, keys, args).await?).number()? > 0)
    }

    /// Runs the script over this connection of the manager.
    pub(super) async fn run_on(
        &self,
        connections: &ConnectionManager,
        connection: &Connection,
        keys: &[impl AsRef<str>],
        args: &[&[u8]],
    ) -> Result<Value, RedisFailure> {
        let command = self.command(false, keys, args.iter().copied());
        match ask_on(connections, connection, &command).await {
            Err(RedisFailure::NoScript) => {
                let command = self.command(true, keys, args.iter().copied());
                ask_on(connections, connection, &command).await
            }
            answered => answered,
        }
    }
}

/// The flags of a script that Redis may run even if its memory is full.
const EVEN_FULL: &str = "flags=allow-oom";
/// The flags of a script that does not write.
const READS: &str = "flags=no-writes";

macro_rules! script {
    ($(#[$doc:meta])* $name:ident, $flags:expr, $file:literal) => {
        $(#[$doc])*
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new($flags, include_str!(concat!("scripts/", $file))));
    };
}

script!(
    /// Appends a batch of changes.
    APPEND, "", "append.lua"
);
script!(
    /// Appends denials, which must be recorded even if Redis is full.
    APPEND_EVEN_FULL, EVEN_FULL, "append.lua"
);
script!(
    /// Completes an append that failed half-way. It needs no more memory than the append.
    ROLL_FORWARD, EVEN_FULL, "roll_forward.lua"
);
script!(
    /// The fenced poll.
    POLL, EVEN_FULL, "poll.lua"
);
script!(
    /// Reads pairs.
    READ_PAIRS, READS, "read_pairs.lua"
);
script!(
    /// Reads a bucket.
    READ_BUCKET, READS, "read_bucket.lua"
);
script!(
    /// Replaces history entries by their digests.
    EXPIRE_HISTORY, EVEN_FULL, "expire_history.lua"
);
script!(
    /// Trims the log.
    TRIM_LOG, EVEN_FULL, "trim_log.lua"
);
script!(
    /// Deletes an erased pair's history.
    ERASE_HISTORY, EVEN_FULL, "erase_history.lua"
);
script!(
    /// Deletes marked statements without references.
    DELETE_STATEMENTS, EVEN_FULL, "delete_statements.lua"
);
script!(
    /// Counts an operator's acceptance of the ledger.
    ACCEPT, EVEN_FULL, "accept.lua"
);
script!(
    /// Makes a write without effect.
    WRITE_NOOP, EVEN_FULL, "write_noop.lua"
);
script!(
    /// Creates the hashes of a new ledger.
    CREATE_HASHES, "", "create_hashes.lua"
);
script!(
    /// Creates the other keys of a new ledger, its meta key last.
    CREATE_META, "", "create_meta.lua"
);
script!(
    /// Marks a partition as one of a complete ledger.
    COMPLETE, "", "complete.lua"
);

script!(
    /// Reserves the keys for a copy of a ledger.
    COPY_BEGIN, "", "copy_begin.lua"
);
script!(
    /// Writes fields of a copy.
    COPY_WRITE, "", "copy_write.lua"
);
script!(
    /// Turns a copy into a ledger.
    COPY_FINISH, "", "copy_finish.lua"
);
script!(
    /// Deletes keys of an unfinished copy.
    COPY_WIPE, EVEN_FULL, "copy_wipe.lua"
);
script!(
    /// Recreates the fence, the log and sentinel fields.
    RECREATE_KEYS, EVEN_FULL, "recreate_keys.lua"
);
script!(
    /// Replaces a field of a bucket by a compare-and-set.
    REPLACE_FIELD, EVEN_FULL, "replace_field.lua"
);
script!(
    /// Rebuilds the log without stray entries.
    REBUILD_LOG, EVEN_FULL, "rebuild_log.lua"
);

/// Sends one command over the manager's connection.
pub(super) async fn ask(
    connections: &ConnectionManager,
    command: &Cmd,
) -> Result<Value, RedisFailure> {
    let connection = connections.connection().await.map_err(RedisFailure::NotSent)?;
    ask_on(connections, &connection, command).await
}

/// Sends commands as one pipeline. An error reply to one of them is returned as its value.
pub(super) async fn ask_all(
    connections: &ConnectionManager,
    commands: Vec<Cmd>,
) -> Result<Vec<Value>, RedisFailure> {
    let count = commands.len();
    let mut pipeline = redis::pipe();
    for command in commands {
        pipeline.add_command(command);
    }
    let connection = connections.connection().await.map_err(RedisFailure::NotSent)?;
    let mut redis = connection.redis.clone();
    let sent = redis.send_packed_commands(&pipeline, 0, count);
    let answered = match tokio::time::timeout(RESPONSE_TIMEOUT, sent).await {
        Err(_) => Err(RedisFailure::NoReply(Arc::new(ResponseTimeout(RESPONSE_TIMEOUT)))),
        Ok(answered) => answered.map_err(RedisFailure::of_client),
    };
    leave_if_unusable(connections, &connection, &answered);
    answered
}

/// Sends one command over this connection of the manager.
pub(super) async fn ask_on(
    connections: &ConnectionManager,
    connection: &Connection,
    command: &Cmd,
) -> Result<Value, RedisFailure> {
    let mut redis = connection.redis.clone();
    let asked = tokio::time::timeout(RESPONSE_TIMEOUT, redis.send_packed_command(command)).await;
    let answered = match asked {
        Err(_) => Err(RedisFailure::NoReply(Arc::new(ResponseTimeout(RESPONSE_TIMEOUT)))),
        Ok(Err(error)) => Err(RedisFailure::of_client(error)),
        Ok(Ok(Value::ServerError(error))) => Err(RedisFailure::of_server(&error)),
        Ok(Ok(value)) => Ok(value),
    };
    leave_if_unusable(connections, connection, &answered);
    answered
}

/// Discards a connection that did not answer, and leaves one whose server is not the primary.
pub(super) fn leave_if_unusable<T>(
    connections: &ConnectionManager,
    connection: &Connection,
    answered: &Result<T, RedisFailure>,
) {
    match answered {
        Err(RedisFailure::NoReply(_)) => connections.discard(connection),
        // A fixed address may lead to a new primary after a reconnection, and a Cluster names the slot's owner.
        Err(failure) if failure.is_elsewhere() => connections.elsewhere(connection),
        _ => {}
    }
}

/// Decodes a reply, element by element. A reply of another form is a failure.
pub(super) struct Answer(std::vec::IntoIter<Value>);

const MALFORMED: RedisFailure = RedisFailure::Rejected(RedisRejection::MalformedReply);

impl Answer {
    /// A reply that is one element itself.
    pub(super) fn one(value: Value) -> Self {
        Self(vec![value].into_iter())
    }

    pub(super) fn of(value: Value) -> Result<Self, RedisFailure> {
        match value {
            Value::Array(values) => Ok(Self(values.into_iter())),
            // RESP3's form of a hash.
            Value::Map(pairs) => {
                let values: Vec<_> = pairs.into_iter().flat_map(<[Value; 2]>::from).collect();
                Ok(Self(values.into_iter()))
            }
            _ => Err(MALFORMED),
        }
    }

    pub(super) fn next(&mut self) -> Result<Value, RedisFailure> {
        self.0.next().ok_or(MALFORMED)
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.len() == 0
    }

    /// The next bytes; `None` for a null.
    pub(super) fn optional(&mut self) -> Result<Option<Vec<u8>>, RedisFailure> {
        match self.next()? {
            Value::BulkString(bytes) => Ok(Some(bytes)),
            Value::Nil | Value::Boolean(false) => Ok(None),
            _ => Err(MALFORMED),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, RedisFailure> {
        self.optional()?.ok_or(MALFORMED)
    }

    /// The next bytes, which must be of length `N`.
    pub(super) fn exactly<const N: usize>(&mut self) -> Result<[u8; N], RedisFailure> {
        self.bytes()?.try_into().map_err(|_| MALFORMED)
    }

    /// The next number, as an integer or as a text.
    pub(super) fn number(&mut self) -> Result<u64, RedisFailure> {
        match self.next()? {
            Value::Int(number) => number.try_into().map_err(|_| MALFORMED),
            Value::BulkString(bytes) => number(&bytes),
            _ => Err(MALFORMED),
        }
    }

    /// The revision in the next id of a stream entry.
    pub(super) fn revision(&mut self) -> Result<u64, RedisFailure> {
        let id = self.bytes()?;
        number(id.strip_suffix(b"-0").ok_or(MALFORMED)?)
    }
}

fn number(bytes: &[u8]) -> Result<u64, RedisFailure> {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).ok_or(MALFORMED)
}
