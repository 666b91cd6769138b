//! Listening sockets and the connections that they accept, for gRPC and HTTP alike.
//!
//! In reading order: [`socket`] (addresses, TCP and Unix sockets),
//! [`unix_connection`] (reading and writing on the latter), [`accept`] (how many connections a
//! listener takes at once, and which one makes room for another), [`http1`] (the serving loop of the
//! admin listener and the webhook receiver), [`tls`] (handshakes on accepted
//! connections), [`log_throttle`] (limits how often a warning is logged).

pub(crate) mod accept;
pub(crate) mod http1;
pub(crate) mod log_throttle;
pub mod socket;
pub(crate) mod tls;
mod unix_connection;

use tokio_util::sync::CancellationToken;

/// The two signals by which a server is shut down.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// Accept no more connections, announce the end on each, and finish the calls that were begun.
    pub begun: CancellationToken,
    /// End everything at once.
    pub over: CancellationToken,
}
