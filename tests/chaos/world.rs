//! What faults befall, and how a round of them is played.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::fleet::Fleet;
use crate::plan::{Fault, Step};

/// A ledger, and the sidecars that follow it.
pub trait World {
    /// The sidecars' bound.
    const BOUND: Duration;

    /// Whether the ledger may forget request ids of what it still holds: a record that was rebuilt
    /// from a backup or from histories, and a denial that was given back after a failover, have
    /// none. An event without a time of its own that is retried then is recorded a second time.
    const FORGETS_REQUEST_IDS: bool;

    /// The sidecars.
    fn fleet(&mut self) -> &mut Fleet;

    /// Begins a fault.
    async fn begin(&mut self, fault: Fault) -> Result<(), String>;

    /// Ends it, or mends what it broke as an operator would.
    async fn end(&mut self, fault: Fault) -> Result<(), String>;

    /// Sets right what no fault's end does.
    fn heal(&mut self) {}

    /// The servers' logs, by name.
    fn server_logs(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Plays a round, and sets all right again; says how long the sidecars took to be live then.
pub async fn play(world: &mut impl World, steps: &[Step]) -> Result<Duration, String> {
    let started = Instant::now();
    let mut acts: Vec<(Duration, Fault, bool)> = Vec::new();
    for step in steps {
        acts.push((step.begin, step.fault, true));
        acts.push((step.begin + step.last, step.fault, false));
    }
    acts.sort_by_key(|(at, ..)| *at);
    for (at, fault, begins) in acts {
        sleep(at.saturating_sub(started.elapsed())).await;
        let done = if begins { world.begin(fault).await } else { world.end(fault).await };
        done.map_err(|said| format!("{fault:?}: {said}"))?;
    }
    world.heal();
    let took = world.fleet().all_live().await?;
    world.fleet().neighbours_leave().await?;
    Ok(took)
}
