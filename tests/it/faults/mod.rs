//! Faults of Redis, of the network and of the sidecar itself, and what must happen then: the table
//! in replication.md, row by row, with real processes.

pub mod checker;
pub mod history;
pub mod load;
pub mod proxy;
pub mod redis;
pub mod resp;
