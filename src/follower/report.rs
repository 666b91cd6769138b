//! What the follower reports of the ledger itself: in the log, in the metrics, and to the table's
//! readers.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::Follower;
use consentd_core::time::{Timestamp, clock_offset_warning};
use consentd_os::clock::Moment;

/// How often a clock offset that lasts is logged again.
const CLOCK_LOG_INTERVAL: Duration = Duration::from_mins(5);

impl Follower {
    /// Logs that the Pub/Sub subscription is lost or refused: polls carry changes meanwhile, later.
    pub(super) fn unheard(&mut self, refused: bool, why: &(dyn std::error::Error + Send + Sync)) {
        self.metrics.subscribed(if refused { "refused" } else { "failed" });
        let why = why.to_string();
        if self.unheard.as_ref() != Some(&why) {
            warn!(
                cause = why,
                "not subscribed to the ledger's announcements (Redis Pub/Sub): opt-outs are enforced \
                 a poll later than usual, within --max-staleness; it is tried again by itself; if it \
                 lasts, see that the ACL permits +subscribe and the channel, and that the network \
                 lets the connection through"
            );
            self.unheard = Some(why);
        }
    }

    /// Tells what is to be mended about the ledger, whenever that is something else.
    pub(super) fn check_ledger(&mut self) {
        self.metrics.unannounced(self.ledger.unannounced());
        let standing = self.ledger.durability();
        if self.standing.as_ref() == Some(&standing) {
            return;
        }
        for warning in standing.warnings.iter() {
            warn!("the ledger needs attention: {warning}");
        }
        self.metrics.ledger_is(standing.durable, standing.unfenced, standing.lost_keys);
        self.applier.writer().set_warnings(Arc::clone(&standing.warnings));
        self.standing = Some(standing);
    }

    /// Logs a clock offset between this machine and the ledger when it appears, now and then while it
    /// lasts, and when it is gone. The ledger read its clock between `asked` and now, so that a slow
    /// answer is no offset.
    pub(super) fn check_clocks(&mut self, asked: Moment, ledgers: Timestamp) {
        let answered = Moment::now();
        let ours = ledgers.clamp(asked.wall.min(answered.wall), answered.wall.max(asked.wall));
        let Some(warning) = clock_offset_warning(ours, ledgers) else {
            if self.clocks_told.take().is_some() {
                info!("this machine's clock and the ledger's agree again");
            }
            return;
        };
        if self.clocks_told.is_none_or(|told| answered.since(told) >= CLOCK_LOG_INTERVAL) {
            self.clocks_told = Some(answered);
            warn!("{warning}");
        }
    }
}
