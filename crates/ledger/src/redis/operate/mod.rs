//! What operators do to a ledger in Redis beside making one: look at all of it, and mend it.

mod fill;
mod mend;
mod sentinel;
mod status;
mod tail;
mod verify;
mod whole;

pub use self::fill::NewRedis;
pub use self::mend::{Mended, Mending};
pub use self::status::{Status, look_at};
