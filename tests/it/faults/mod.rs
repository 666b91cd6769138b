//! Faults of Redis, of the network and of the sidecar itself, and what must happen then: the table
//! in replication.md, row by row, with real processes. Each row's test is named after it.

pub mod checker;
mod checker_tests;
mod cluster;
mod cluster_rows;
mod entries;
mod failovers;
mod former_reads;
pub mod history;
pub mod load;
mod losses;
mod messages;
mod outages;
mod partition_clocks;
mod partition_moves;
mod partition_people;
mod partition_rows;
mod partition_stage;
pub mod proxy;
mod proxy_tests;
pub mod redis;
mod refusals;
pub mod resp;
#[path = "../../servers/mod.rs"]
pub mod servers;
pub mod stage;
