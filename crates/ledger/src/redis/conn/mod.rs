//! Connections to Redis and its Sentinels: the URL, the handshake, TLS, reconnection, the majority of
//! the Sentinels, and the subscription to announcements.

pub(super) mod backoff;
mod connection;
mod credentials;
mod handshake;
mod primary;
mod resp;
mod sentinel;
mod subscription;
mod tls;
mod url;

pub(super) use self::connection::{Connection, ConnectionManager};
pub(super) use self::handshake::ConnectionError;
pub(super) use self::primary::{PrimaryLocator, Timeouts};
pub(super) use self::subscription::{SubscriptionEvent, listen};
pub use self::url::{InvalidTarget, Target, TargetError, TargetOptions};
