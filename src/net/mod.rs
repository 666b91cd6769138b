//! Listening sockets and the connections that they accept, for gRPC and HTTP alike.
//!
//! In reading order: [`socket`] (addresses, TCP and Unix sockets), [`accept`] (how many connections a
//! listener takes at once, and which one makes room for another).

pub mod accept;
pub mod socket;
