//! How histograms of latencies are printed.

use consentd_bench::latencies::{Latencies, QUANTILES};
use serde_json::{Map, Value, json};

/// The quantiles, the maximum and the mean, in microseconds.
pub(super) fn json(latencies: &Latencies) -> Value {
    let all = latencies.quantiles().chain([("mean", latencies.mean())]);
    Value::Object(all.map(|(name, value)| (name.to_owned(), json!(value))).collect::<Map<_, _>>())
}

/// A row of a table, below [`header`].
pub(super) fn row(name: &str, latencies: &Latencies) -> String {
    let quantiles = latencies.quantiles();
    quantiles.fold(format!("{name:<20}"), |row, (_, value)| format!("{row}{value:>11.1}"))
}

/// The header of a table.
pub(super) fn header(name: &str) -> String {
    let names = QUANTILES.map(|(name, _)| name).into_iter().chain(["max"]);
    names.fold(format!("{name:<20}"), |header, name| format!("{header}{name:>11}"))
}
