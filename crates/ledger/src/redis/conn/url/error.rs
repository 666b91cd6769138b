//! Why an address of a Redis, or a setting beside it, is invalid.

use super::{MAX_DATABASE, MAX_NODES};

/// Why a setting of the connection is invalid. Its text quotes nothing that may be a password.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TargetError {
    /// The scheme is not one of Redis.
    #[error(
        "is not an address of a Redis: give redis://HOST:PORT, rediss://HOST:PORT (TLS), \
         redis+unix:///PATH, redis+sentinel://HOST:PORT,HOST:PORT/MASTER or \
         redis+cluster://HOST:PORT,HOST:PORT"
    )]
    Scheme,
    /// A host, or a list of them, is missing.
    #[error("names no host: give {0}")]
    NoHost(&'static str),
    /// A host is invalid.
    #[error("has an invalid host: give {0}, an IPv6 address in brackets")]
    Host(&'static str),
    /// A port is invalid.
    #[error(
        "has an invalid port: a port is from 1 to 65535; and where a password holds a : / ? # \
         or @, write %3A %2F %3F %23 or %40 for it"
    )]
    Port,
    /// There is an @ after the host.
    #[error(
        "has an @ after its host: where a user or password holds a / ? # or @, write %2F %3F %23 \
         or %40 for it"
    )]
    StrayAt,
    /// A % is not followed by two hexadecimal digits.
    #[error(
        "has a % in its user or password that is not followed by two hexadecimal digits: write % as %25"
    )]
    Percent,
    /// The path is not the number of a database.
    #[error(
        "has a path that is not a database: end it with /N, N from 0 to {MAX_DATABASE}, or with the port"
    )]
    Database,
    /// Unknown settings follow the `?`.
    #[error("has unknown settings after a ?: {0}")]
    Query(&'static str),
    /// The socket's path is missing or relative.
    #[error("needs the socket's whole path, as in redis+unix:///run/redis/redis.sock?db=0")]
    Path,
    /// The primary's name is missing.
    #[error(
        "does not say what the Sentinels call the primary: end it with /MASTER, as in \
         redis+sentinel://host:26379,host:26379/mymaster"
    )]
    Master,
    /// There are several hosts, and the scheme allows one.
    #[error(
        "names several hosts: only redis+sentinel://HOST:PORT,HOST:PORT/MASTER and \
         redis+cluster://HOST:PORT,HOST:PORT do"
    )]
    Several,
    /// There are too many Sentinels or nodes.
    #[error("names more than {MAX_NODES} hosts: some of them suffice, for they name the others")]
    TooMany,
    /// A database is given for a Cluster.
    #[error(
        "names a database, and a Cluster has database 0 alone: leave it out, as in \
         redis+cluster://HOST:PORT,HOST:PORT"
    )]
    ClusterDatabase,
    /// A setting is given twice.
    #[error("is given twice, here and {0}: give it once")]
    Twice(&'static str),
    /// A file for TLS is given, and the scheme is without TLS.
    #[error(
        "is for TLS, and --ledger is without: give rediss://, rediss+sentinel:// or \
         rediss+cluster://"
    )]
    NoTls,
    /// Either a certificate or a key is given, and both are needed.
    #[error("needs {0} too: a certificate and its key go together")]
    Half(&'static str),
    /// A setting for Sentinels is given, and the URL has none.
    #[error("is for Sentinels, and --ledger names none: give redis+sentinel://HOST:PORT/MASTER")]
    NoSentinels,
}

/// An invalid setting of the connection.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{why}")]
pub struct InvalidTarget {
    /// The setting's flag.
    pub setting: &'static str,
    /// What is wrong with it.
    #[source]
    pub why: TargetError,
}
