//! Checks that wait until the table holds the revision that they name, which is one of their pair's partition.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::template::parse_template;
use super::{CheckRequest, Checker, RevisionTimeout};
use crate::table::{Pair, Validity};
use consentd_core::record::Revision;
use consentd_os::clock::Moment;

/// The longest that a check waits for a revision, whatever its deadline.
pub const MAX_REVISION_WAIT: Duration = Duration::from_secs(5);

/// The longest pause between two looks at the freshness while a check waits for a revision.
const FRESHNESS_POLL_INTERVAL: Duration = Duration::from_millis(100);

impl Checker {
    /// The revision that a request names, if it is valid and the table does not hold that revision yet.
    #[must_use]
    pub fn missing_revision(&self, request: &CheckRequest<'_>) -> Option<RevisionTimeout> {
        let wanted = request.min_revision;
        if wanted == 0 {
            return None;
        }
        let applied = self.tables.freshness(self.pair_of(request)?).revision;
        (applied < wanted).then_some(RevisionTimeout { wanted, applied })
    }

    /// The pair of a valid request about a business that is held.
    fn pair_of(&self, request: &CheckRequest<'_>) -> Option<Pair> {
        match request.template {
            None => self.parse(request).ok().map(|parsed| parsed.pair),
            Some(template) => {
                let parsed = parse_template(&self.parsing(), request, template);
                parsed.ok().map(|(parsed, _)| parsed.pair)
            }
        }
    }

    /// Waits until the table holds the revision that a request names, until `deadline`, and for
    /// [`MAX_REVISION_WAIT`] at most. It does not wait while the table is not live: such a check is denied as
    /// stale, even if `--stale-allow` names its class, because its request says which revision it needs.
    ///
    /// # Errors
    ///
    /// [`RevisionTimeout`] if the revision did not arrive.
    pub async fn wait_for_revision(
        &self,
        request: &CheckRequest<'_>,
        deadline: Option<Instant>,
    ) -> Result<(), RevisionTimeout> {
        match self.pair_of(request) {
            Some(pair) => {
                let partition = self.tables.partition_of(pair);
                self.wait_for(partition, request.min_revision, limit(deadline)).await
            }
            None => Ok(()),
        }
    }

    /// Waits as [`wait_for_revision`](Self::wait_for_revision) does for what all of these requests name.
    ///
    /// # Errors
    ///
    /// [`RevisionTimeout`] if a revision did not arrive.
    pub async fn wait_for_revisions<'q>(
        &self,
        requests: impl Iterator<Item = CheckRequest<'q>>,
        deadline: Option<Instant>,
    ) -> Result<(), RevisionTimeout> {
        let mut highest: BTreeMap<u32, Revision> = BTreeMap::new();
        for request in requests.filter(|request| request.min_revision > 0) {
            let Some(pair) = self.pair_of(&request) else { continue };
            let known = highest.entry(self.tables.partition_of(pair)).or_default();
            *known = request.min_revision.max(*known);
        }
        let limit = limit(deadline);
        for (partition, revision) in highest {
            self.wait_for(partition, revision, limit).await?;
        }
        Ok(())
    }

    async fn wait_for(
        &self,
        partition: u32,
        revision: Revision,
        limit: Instant,
    ) -> Result<(), RevisionTimeout> {
        // A partition that is not followed any more is answered without.
        while let Some(table) = self.tables.table(partition) {
            let freshness = table.freshness();
            if freshness.revision >= revision {
                return Ok(());
            }
            let staleness = freshness.staleness(Moment::now());
            if freshness.validity != Validity::Valid || staleness > self.max_staleness {
                return Ok(());
            }
            // The table may become stale or invalid during the wait.
            let recheck = (self.max_staleness.saturating_sub(staleness))
                .clamp(Duration::from_millis(1), FRESHNESS_POLL_INTERVAL);
            tokio::select! {
                biased;
                () = table.wait_for_revision(revision) => return Ok(()),
                () = sleep_until(limit) => {
                    return Err(RevisionTimeout { wanted: revision, applied: freshness.revision });
                }
                () = tokio::time::sleep(recheck) => {}
            }
        }
        Ok(())
    }
}

fn limit(deadline: Option<Instant>) -> Instant {
    let limit = Instant::now() + MAX_REVISION_WAIT;
    deadline.map_or(limit, |deadline| deadline.min(limit))
}
