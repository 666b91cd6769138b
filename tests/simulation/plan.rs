//! How a history is made, by chance.

use std::time::Duration;

/// How a history is made.
pub struct Plan {
    pub bound: Duration,
    pub scrub_every: u64,
    pub most_sticky: usize,
    pub page: usize,
    pub write_every: u64,
    /// Whether an append is acknowledged only once the replica has it.
    pub confirmed: bool,
    pub buckets: u32,
    pub log: u64,
    /// Whether faults come when a snapshot is being read, too.
    pub strikes: bool,
    /// Whether the sidecar holds some businesses alone.
    pub some: bool,
    /// Whether some users are one person, which recorders come to hear of.
    pub people: bool,
    /// Whether processes remember what their recorders wrote, and give it back.
    pub memories: bool,
    /// Whether persons are erased.
    pub erases: bool,
}

/// What a history has by a chance of its own, so that a seed without it stays the history that it
/// was.
#[derive(Clone, Copy, Default)]
pub struct Features {
    /// Some users are one person.
    pub people: bool,
    /// Processes remember what their recorders wrote, appends reach former primaries, and failovers
    /// are frequent.
    pub memories: bool,
    /// Persons are erased.
    pub erases: bool,
    /// The sidecar holds some businesses alone.
    pub some: bool,
    /// Keys are written and lost behind the log's back though there are linked ids.
    pub meet: bool,
}
