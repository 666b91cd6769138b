//! The scripts, and how Redis is asked to run them.

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{Cmd, Value};
use sha1::{Digest as _, Sha1};

use super::conn::{Connection, ConnectionManager};
use super::error::{RedisFailure, RedisRejection, ResponseTimeout};

/// How long Redis may take to answer what is read in bounded parts.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A script, by what Redis is told of it beforehand.
pub(super) struct Script {
    source: String,
    sha: String,
    /// The commands that run it, by its name and whole.
    commands: [&'static str; 2],
}

impl Script {
    fn new(flags: &str, body: &str) -> Self {
        let source = format!("#!lua {flags}\n{body}");
        let mut sha = String::with_capacity(40);
        for byte in Sha1::digest(source.as_bytes()) {
            let _ = write!(sha, "{byte:02x}"); // Writing to a string does not fail.
        }
        let commands = match flags {
            // What only reads says so to ACLs, and to replicas.
            READS => ["EVALSHA_RO", "EVAL_RO"],
            _ => ["EVALSHA", "EVAL"],
        };
        Self { source, sha, commands }
    }

    /// The command that runs this script: by its name, or, where Redis has forgotten it, whole.
    pub(super) fn command<'a>(
        &self,
        whole: bool,
        keys: &[impl AsRef<str>],
        args: impl IntoIterator<Item = &'a [u8]>,
    ) -> Cmd {
        let [by_name, by_source] = self.commands;
        let mut command = if whole {
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

    /// Runs it, over a link.
    pub(super) async fn run(
        &self,
        connections: &ConnectionManager,
        keys: &[impl AsRef<str>],
        args: &[&[u8]],
    ) -> Result<Value, RedisFailure> {
        let connection = connections.connection().await.map_err(RedisFailure::NotSent)?;
        self.run_on(connections, &connection, keys, args).await
    }

    /// Runs it, on one connection of a link.
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

/// The flags of a script that may be run on a full Redis.
const EVEN_FULL: &str = "flags=allow-oom";
/// Those of a script that writes nothing.
const READS: &str = "flags=no-writes";

macro_rules! script {
    ($(#[$doc:meta])* $name:ident, $flags:expr, $file:literal) => {
        $(#[$doc])*
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new($flags, include_str!(concat!("scripts/", $file))));
    };
}

script!(
    /// Appends.
    APPEND, "", "append.lua"
);
script!(
    /// Appends what must be recorded even where Redis is full.
    APPEND_EVEN_FULL, EVEN_FULL, "append.lua"
);
script!(
    /// Completes an append that was cut short. It takes no more memory than the append would have.
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
    /// Takes away what an erased pair's history had.
    ERASE_HISTORY, EVEN_FULL, "erase_history.lua"
);
script!(
    /// Removes statements that nobody refers to.
    DELETE_STATEMENTS, EVEN_FULL, "delete_statements.lua"
);
script!(
    /// Counts that an operator has accepted the ledger as it is.
    ACCEPT, EVEN_FULL, "accept.lua"
);
script!(
    /// Writes what nobody reads.
    WRITE_NOOP, EVEN_FULL, "write_noop.lua"
);
script!(
    /// Makes keys of a new ledger.
    CREATE_HASHES, "", "create_hashes.lua"
);
script!(
    /// Makes a new ledger of them.
    CREATE_META, "", "create_meta.lua"
);

script!(
    /// Marks a place for a copy of a ledger.
    COPY_BEGIN, "", "copy_begin.lua"
);
script!(
    /// Writes fields of a copy.
    COPY_WRITE, "", "copy_write.lua"
);
script!(
    /// Makes a copy a ledger.
    COPY_FINISH, "", "copy_finish.lua"
);
script!(
    /// Removes a copy that was never finished.
    COPY_WIPE, EVEN_FULL, "copy_wipe.lua"
);
script!(
    /// Puts back the fence and sentinels.
    RECREATE_KEYS, EVEN_FULL, "recreate_keys.lua"
);
script!(
    /// Replaces a field of a bucket.
    REPLACE_FIELD, EVEN_FULL, "replace_field.lua"
);
script!(
    /// Rebuilds the log without entries that nobody was told of.
    REBUILD_LOG, EVEN_FULL, "rebuild_log.lua"
);

/// Asks Redis one thing.
pub(super) async fn ask(
    connections: &ConnectionManager,
    command: &Cmd,
) -> Result<Value, RedisFailure> {
    let connection = connections.connection().await.map_err(RedisFailure::NotSent)?;
    ask_on(connections, &connection, command).await
}

/// Asks Redis several things at once; an error is an answer to one of them.
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
    if is_unusable(&answered) {
        connections.discard(&connection);
    }
    answered
}

/// Asks Redis one thing on one connection of a link.
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
    if is_unusable(&answered) {
        connections.discard(connection);
    }
    answered
}

/// Whether a connection that answered so is of no more use.
pub(super) fn is_unusable<T>(answered: &Result<T, RedisFailure>) -> bool {
    // A replica was the primary once, or was never; elsewhere is a new one.
    matches!(
        answered,
        Err(RedisFailure::NoReply(_) | RedisFailure::Rejected(RedisRejection::ReadOnly))
    )
}

/// Takes answers of the shapes that scripts give; anything else is strange.
pub(super) struct Answer(std::vec::IntoIter<Value>);

const STRANGE: RedisFailure = RedisFailure::Rejected(RedisRejection::MalformedReply);

impl Answer {
    pub(super) fn of(value: Value) -> Result<Self, RedisFailure> {
        match value {
            Value::Array(values) => Ok(Self(values.into_iter())),
            // How RESP3 gives a hash.
            Value::Map(pairs) => {
                let values: Vec<_> = pairs.into_iter().flat_map(<[Value; 2]>::from).collect();
                Ok(Self(values.into_iter()))
            }
            _ => Err(STRANGE),
        }
    }

    pub(super) fn next(&mut self) -> Result<Value, RedisFailure> {
        self.0.next().ok_or(STRANGE)
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.len() == 0
    }

    /// The next bytes; none where there is nothing.
    pub(super) fn optional(&mut self) -> Result<Option<Vec<u8>>, RedisFailure> {
        match self.next()? {
            Value::BulkString(bytes) => Ok(Some(bytes)),
            Value::Nil | Value::Boolean(false) => Ok(None),
            _ => Err(STRANGE),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, RedisFailure> {
        self.optional()?.ok_or(STRANGE)
    }

    pub(super) fn exactly<const N: usize>(&mut self) -> Result<[u8; N], RedisFailure> {
        self.bytes()?.try_into().map_err(|_| STRANGE)
    }

    /// The next number, as Redis counts or as it is written.
    pub(super) fn number(&mut self) -> Result<u64, RedisFailure> {
        match self.next()? {
            Value::Int(number) => number.try_into().map_err(|_| STRANGE),
            Value::BulkString(bytes) => number(&bytes),
            _ => Err(STRANGE),
        }
    }

    /// The next entry's id in a stream, whose first part is its revision.
    pub(super) fn revision(&mut self) -> Result<u64, RedisFailure> {
        let id = self.bytes()?;
        number(id.strip_suffix(b"-0").ok_or(STRANGE)?)
    }
}

fn number(bytes: &[u8]) -> Result<u64, RedisFailure> {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).ok_or(STRANGE)
}
