//! Prints the counts of an import, which add up to the lines of the file.

use std::time::Duration;

use indicatif::HumanCount;

use super::progress::RowCounts;
use crate::cli::output;

/// The counts as JSON.
pub(super) fn as_json(counts: &RowCounts) -> serde_json::Value {
    serde_json::json!({
        "rows": counts.rows(),
        "applied": counts.applied,
        "unchanged": counts.unchanged,
        "rejected": counts.rejected,
        "leftOut": counts.left_out,
        "lines": counts.lines(),
        "headerLines": counts.header_lines,
        "blankLines": counts.blank_lines,
        "furtherLines": counts.further_lines,
    })
}

/// How the lines of the file add up to its rows: `1,002 lines (1 of header, 1 empty): 1,000 rows`.
pub(super) fn lines_and_rows(counts: &RowCounts) -> String {
    let RowCounts { header_lines, blank_lines, further_lines, .. } = *counts;
    let parts =
        [(header_lines, "of header"), (blank_lines, "empty"), (further_lines, "inside of rows")];
    let parts: Vec<_> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", HumanCount(*count)))
        .collect();
    let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
    format!("{} lines{parts}: {} rows", HumanCount(counts.lines()), HumanCount(counts.rows()))
}

/// How many rows `--where` left out, if any.
pub(super) fn left_out(counts: &RowCounts) -> String {
    match counts.left_out {
        0 => String::new(),
        count => format!(", {} left out by --where", HumanCount(count)),
    }
}

/// Prints the counts, and the rate at which this run recorded `rows` in `elapsed`.
pub(super) fn print(
    counts: &RowCounts,
    rows: u64,
    elapsed: Duration,
    json: bool,
) -> anyhow::Result<()> {
    if json {
        return output::line(&as_json(counts).to_string());
    }
    #[allow(clippy::cast_precision_loss, reason = "for people to read")]
    let rate = rows as f64 / elapsed.as_secs_f64().max(0.001);
    output::line(&format!(
        "{}, {} recorded, {} known before or older than what is known, {} rejected{}; {:.1} s, {} a \
         second",
        lines_and_rows(counts),
        HumanCount(counts.applied),
        HumanCount(counts.unchanged),
        HumanCount(counts.rejected),
        left_out(counts),
        elapsed.as_secs_f64(),
        HumanCount(to_u64(rate)),
    ))
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate: it is positive, and its fraction does not matter"
)]
fn to_u64(rate: f64) -> u64 {
    rate.round() as u64
}
