//! The container's memory limit while the table is loaded: beyond it the kernel kills the
//! process, and nothing in its log says why.

use std::time::Duration;

use consentd_os::memory_limit::{allocated_memory, memory_limit};
use indicatif::{HumanBytes, HumanCount};
use tokio::time::sleep;
use tracing::warn;

use crate::table::{Table, Tables};

/// How often memory is compared with the limit. A table of millions of pairs grows by some megabytes meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// From this share of the limit on it is warned of.
const WARN_PERCENT: u64 = 80;
/// At this share the process ends by itself, while it can still say why.
const REFUSE_PERCENT: u64 = 95;

/// What is to be said of the memory in use.
#[derive(Debug, Eq, PartialEq)]
enum Judgement {
    Fits,
    NearLimit,
    TooLarge,
}

fn judge(allocated: u64, limit: u64) -> Judgement {
    let reaches =
        |percent: u64| u128::from(allocated) * 100 >= u128::from(limit) * u128::from(percent);
    if reaches(REFUSE_PERCENT) {
        Judgement::TooLarge
    } else if reaches(WARN_PERCENT) {
        Judgement::NearLimit
    } else {
        Judgement::Fits
    }
}

/// Watches memory until the table is loaded. Returns why the process has to end, if the table does not fit; does
/// not return otherwise.
pub(super) async fn watch_while_loading(tables: Tables) -> String {
    let Some(limit) = memory_limit() else { return std::future::pending().await };
    let mut warned = false;
    while !tables.is_ready() {
        let allocated = allocated_memory().unwrap_or(0);
        let tables = tables.all();
        let pairs = tables.iter().map(|(_, table): &(u32, Table)| table.pairs());
        let pairs = u64::try_from(pairs.fold(0, usize::saturating_add)).unwrap_or(u64::MAX);
        match judge(allocated, limit) {
            Judgement::TooLarge => return refusal(allocated, limit, pairs),
            Judgement::NearLimit if !warned => {
                warned = true;
                warn!(
                    pairs,
                    used = %HumanBytes(allocated),
                    limit = %HumanBytes(limit),
                    "memory is near the container's limit while the ledger is still being loaded; it should hold \
                     64 bytes for each pair and what serving takes: see docs/kubernetes.md"
                );
            }
            Judgement::NearLimit | Judgement::Fits => {}
        }
        sleep(POLL_INTERVAL).await;
    }
    std::future::pending().await
}

fn refusal(allocated: u64, limit: u64, pairs: u64) -> String {
    format!(
        "the container's memory limit of {} is too small: {} are in use with {} pairs loaded, and more are to come. \
         Give it 64 bytes for each pair of the ledger, and 30 MiB, --max-request-bytes and 1.2 MiB for each of \
         --max-connections: docs/kubernetes.md, Memory",
        HumanBytes(limit),
        HumanBytes(allocated),
        HumanCount(pairs)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_judged_by_its_share_of_the_limit() {
        for (allocated, judgement) in [
            (0, Judgement::Fits),
            (799, Judgement::Fits),
            (800, Judgement::NearLimit),
            (949, Judgement::NearLimit),
            (950, Judgement::TooLarge),
            (2_000, Judgement::TooLarge),
        ] {
            assert_eq!(judge(allocated, 1_000), judgement, "{allocated}");
        }
        assert_eq!(judge(u64::MAX, u64::MAX), Judgement::TooLarge);
    }

    #[test]
    fn refusal_says_what_is_in_use_and_what_is_needed() {
        let said = refusal(126 << 20, 132 << 20, 1_500_000);
        for part in ["132.00 MiB", "126.00 MiB", "1,500,000 pairs", "64 bytes"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
