//! Operators' commands on a ledger in Redis: creating, inspecting, verifying, repairing and copying one.

mod copy_target;
mod create;
mod log_tail;
mod other_layouts;
mod portable;
mod repair;
mod repair_inputs;
mod sentinel_field;
mod status;
mod verify;

pub use self::copy_target::NewRedis;
pub use self::create::{CreateError, Created, MAX_BUCKETS, Plan, Shape, create, plan};
pub use self::repair::{RepairMode, Repaired};
pub use self::status::{Shard, Status, inspect_servers};
