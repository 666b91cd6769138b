//! What is noted of the arrival of updates.

use super::*;

#[test]
fn the_metrics_know_every_field_and_kind_that_arrives() {
    use crate::metrics::{ACCOUNT_ARRIVALS, NUMBER_ARRIVALS};

    let mut found = BTreeSet::new();
    for payload in std::fs::read_dir("tests/fixtures/whatsapp").unwrap() {
        let body = std::fs::read(payload.unwrap().path()).unwrap();
        found.extend(parse(&body, &rules()).unwrap().arrivals);
    }
    let is_known = |arrival: &Arrival| {
        let series = (arrival.field, arrival.kind.name());
        if arrival.number.is_empty() {
            ACCOUNT_ARRIVALS.contains(&series)
        } else {
            NUMBER_ARRIVALS.contains(&series)
        }
    };
    assert!(found.iter().all(is_known), "{found:?}");
    let of_numbers: BTreeSet<_> = found
        .iter()
        .filter(|arrival| !arrival.number.is_empty())
        .map(|arrival| (arrival.field, arrival.kind.name()))
        .collect();
    assert_eq!(of_numbers, NUMBER_ARRIVALS.into_iter().collect());
}
