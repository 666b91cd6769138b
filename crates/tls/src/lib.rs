//! TLS from files: certificates, keys and CA certificates in PEM form, which may be rotated while the process
//! runs.
//!
//! [`ServerFiles`] are those of a listener, read again by a blocking call: what was read is a value that can be
//! compared with the one before. [`ClientFiles`] are those of a client, and connect it. [`failure()`] says in words
//! why a handshake failed, and [`peer_names`] what a client's certificate names.
//!
//! The crypto provider is passed explicitly, so that none has to be installed for the whole process. TLS 1.2 and
//! 1.3 are spoken.

#![warn(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed assumption ends the test"))]

mod client;
mod failure;
mod pem;
mod server;

pub use self::client::{ClientFiles, HandshakeError};
pub use self::failure::failure;
pub use self::pem::TlsFileError;
pub use self::server::{Protocol, ServerFiles, ServerIdentity, peer_names};
