//! What is reported of the actions on the table: metrics, and the clock's offset.

use super::*;

#[test]
fn every_cause_is_counted_and_a_fork_as_one() {
    use consentd_ledger::{Embedded, Ledger, Retention};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let (ledger, _appender) = Embedded::open(&path, Retention::default(), 1 << 20).unwrap();
    let registry = prometheus::Registry::new();
    let metrics = crate::metrics::Metrics::new(registry.clone()).unwrap();
    let (table, writer) = crate::table::new();
    let bound = Duration::from_secs(5);
    let partition = Ledger::Embedded(ledger).partition(0).unwrap();
    let mut follower = crate::follower::Follower::new(partition, writer, metrics.into(), bound);
    let causes = [
        ResyncCause::Start,
        ResyncCause::Epoch,
        ResyncCause::Fork,
        ResyncCause::Trimmed,
        ResyncCause::Unreadable,
        ResyncCause::Accepted,
    ];
    for cause in causes {
        assert!(crate::metrics::RESYNC_CAUSES.contains(&cause.label()), "{cause}");
        let action = Action::Invalidate(cause);
        let outcome = ActionOutcome::default();
        follower.report.on_action(follower.applier.writer(), &action, outcome);
    }
    // What is read while the table is loaded was not waiting, and a slow answer is no offset.
    let asked = Moment::now();
    let answered = Timestamp::saturating_from_millis(asked.wall.as_millis() - 1_500);
    let asked = Moment { wall: asked.wall.minus(Duration::from_secs(3)), ..asked };
    let mut report = |action: &Action| {
        follower.report.on_action(follower.applier.writer(), action, ActionOutcome::default());
    };
    report(&Action::AdvanceRevision(1, asked.wall));
    report(&Action::SetProof(asked, answered));
    assert_eq!(table.clock_offset(), 0);
    report(&Action::SetProof(asked, asked.wall.minus(Duration::from_secs(2))));
    assert_eq!(table.clock_offset(), -2_000);
    let propagated = || {
        let families = registry.gather();
        let family =
            families.iter().find(|family| family.name() == "consent_propagation_seconds").unwrap();
        family
            .get_metric()
            .iter()
            .map(|metric| metric.get_histogram().get_sample_count())
            .sum::<u64>()
    };
    assert_eq!(propagated(), 0);
    let count = |name: &str| {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum::<f64>()
    };
    assert!((count("consent_forks_total") - 1.0).abs() < 0.1);
    assert!((count("consent_resyncs_total") - 6.0).abs() < 0.1);
}

/// The pairs of a ledger that is divided otherwise are in other tables than those that were made.
#[test]
fn page_of_a_ledger_that_is_divided_otherwise_is_a_failed_read_with_its_cause() {
    use consentd_ledger::{Embedded, Ledger, Retention};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let (ledger, _appender) = Embedded::open(&path, Retention::default(), 1 << 20).unwrap();
    let metrics = crate::metrics::Metrics::new(prometheus::Registry::new()).unwrap();
    let (table, writer) = crate::table::new();
    let partition = Ledger::Embedded(ledger).partition(0).unwrap();
    let bound = Duration::from_secs(5);
    let follower = crate::follower::Follower::new(partition, writer, metrics.into(), bound);
    let mut follower = follower.of_layout(Layout::new(8, 4).unwrap());
    let page = |layout| {
        let mut page = Model::new(1).page(0);
        Arc::make_mut(&mut page.identity).layout = layout;
        page
    };
    assert!(follower.of_known_layout(page(Layout::new(8, 4).unwrap())).is_ok());
    for other in [Layout::SINGLE, Layout::new(8, 2).unwrap(), Layout::new(16, 4).unwrap()] {
        let refused = follower.of_known_layout(page(other));
        assert_eq!(refused.err(), Some(ReadFailure::Unanswered));
        assert!(table.cause().contains("divided otherwise: restart this sidecar"));
    }
    assert_eq!(table.freshness().validity, Validity::Loading);
}
