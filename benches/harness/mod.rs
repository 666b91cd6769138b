//! The servers of the tests.

#[path = "../../tests/it/faults/cluster.rs"]
pub mod cluster;
#[path = "../../tests/it/faults/redis.rs"]
pub mod redis;
#[path = "../../tests/it/faults/resp.rs"]
mod resp;
#[path = "../../tests/servers/mod.rs"]
mod servers;
