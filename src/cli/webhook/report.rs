//! Prints a diagnosis, for people and for scripts. It has no user and no secret in it.

use std::time::Duration;

use serde_json::{Value, json};

use super::judge::{Diagnosis, Observations, Row};
use crate::cli::output;
use consentd_core::time::Timestamp;

pub(super) fn text(seen: &Observations, diagnosis: &Diagnosis) -> anyhow::Result<()> {
    let review = &seen.review;
    let (receivers, _) = &seen.receivers;
    output::line(&format!("receives at  {}", output::printable(&review.listen)))?;
    output::line(&format!("signed in    {}", list(&review.signed_in)))?;
    for receiver in receivers {
        let since = receiver.started.map_or_else(String::new, |started| {
            format!(", running for {}", span(seen.now.since(started)))
        });
        output::line(&format!("receiver     {}{since}", output::printable(&receiver.address)))?;
    }
    recorded(seen)?;
    output::line("")?;
    let cells = |row: &Row| {
        let number = if row.number.is_empty() { "the account" } else { &row.number };
        let business = if row.business.is_empty() { "-" } else { &row.business };
        [
            output::printable(number),
            output::printable(business),
            format!("{} ({})", row.field, row.kind),
            row.subscribed.name().to_owned(),
            row.last
                .map_or("never".to_owned(), |last| format!("{} ago", span(seen.now.since(last)))),
            row.verdict.name().to_owned(),
        ]
    };
    let head = ["NUMBER", "BUSINESS", "UPDATES", "SUBSCRIBED", "LAST SEEN", "VERDICT"];
    let table: Vec<_> = diagnosis.rows.iter().map(cells).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = table.iter().filter_map(|row| row.get(column)).map(String::as_str);
            cells
                .chain(head.get(column).copied())
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    output::line(&padded(&head.map(str::to_owned), &widths))?;
    for (row, cells) in diagnosis.rows.iter().zip(&table) {
        output::line(&padded(cells, &widths))?;
        if !row.remedy.is_empty() {
            let mark = if row.is_finding() { "mend" } else { "note" };
            output::line(&format!("    {mark}: {}", row.remedy))?;
        }
    }
    output::line("")?;
    for finding in &diagnosis.findings {
        output::line(&format!("finding: {}", output::printable(finding)))?;
    }
    if seen.subscriptions.app.is_none() {
        output::line(
            "what is subscribed is not known: give Meta's answers by --subscriptions (see --help)",
        )?;
    }
    let count =
        diagnosis.findings.len() + diagnosis.rows.iter().filter(|row| row.is_finding()).count();
    output::line(&match count {
        0 => "healthy: nothing is known to be missing".to_owned(),
        1 => "1 finding".to_owned(),
        count => format!("{count} findings"),
    })
}

fn recorded(seen: &Observations) -> anyhow::Result<()> {
    let Some(recorded) = &seen.recorded else {
        return output::line("ledger       not looked at: give --ledger to see what was recorded");
    };
    let address = output::printable(&recorded.address);
    let log = match &recorded.log {
        Ok(log) => log,
        Err(why) => {
            let why = output::printable(why);
            return output::line(&format!("ledger       {address}: not looked at: {why}"));
        }
    };
    let since = log.since.map_or("no changes".to_owned(), |since| {
        format!("changes of the last {}", span(seen.now.since(since)))
    });
    output::line(&format!("ledger       {address}: {since}"))?;
    let mut businesses: Vec<_> = seen.review.numbers.values().collect();
    businesses.sort_unstable();
    businesses.dedup();
    for name in businesses {
        let business = log.businesses.get(name).copied().unwrap_or_default();
        let ago = |time: Option<Timestamp>| {
            time.map_or("none".to_owned(), |time| format!("{} ago", span(seen.now.since(time))))
        };
        output::line(&format!(
            "  {}: {} changes, last message {}, last stop or resume inside WhatsApp {}",
            output::printable(name),
            business.changes,
            ago(business.last_inbound),
            ago(business.last_preference),
        ))?;
    }
    Ok(())
}

pub(super) fn json(seen: &Observations, diagnosis: &Diagnosis) -> anyhow::Result<()> {
    let (receivers, _) = &seen.receivers;
    let time = |time: Option<Timestamp>| time.map(Timestamp::rfc3339_millis);
    let receivers: Vec<_> = receivers
        .iter()
        .map(|one| json!({"address": one.address, "startTime": time(one.started)}))
        .collect();
    let rows: Vec<_> = diagnosis
        .rows
        .iter()
        .map(|row| {
            json!({
                "number": row.number, "business": row.business, "field": row.field,
                "kind": row.kind, "subscribed": row.subscribed.name(),
                "lastUpdateTime": time(row.last), "verdict": row.verdict.name(),
                "finding": row.is_finding(), "remedy": row.remedy,
            })
        })
        .collect();
    let report = json!({
        "healthy": diagnosis.is_healthy(), "listen": seen.review.listen,
        "signedIn": seen.review.signed_in, "receivers": receivers,
        "ledger": ledger_json(seen), "findings": diagnosis.findings, "updates": rows,
    });
    output::line(&report.to_string())
}

fn ledger_json(seen: &Observations) -> Value {
    let Some(recorded) = &seen.recorded else { return Value::Null };
    let time = |time: Option<Timestamp>| time.map(Timestamp::rfc3339_millis);
    match &recorded.log {
        Err(why) => json!({"address": recorded.address, "error": why}),
        Ok(log) => {
            let businesses = seen.review.numbers.values().map(|name| {
                let one = log.businesses.get(name).copied().unwrap_or_default();
                let value = json!({
                    "changes": one.changes, "lastInboundTime": time(one.last_inbound),
                    "lastPreferenceTime": time(one.last_preference),
                });
                (name.clone(), value)
            });
            let businesses: serde_json::Map<_, _> = businesses.collect();
            json!({
                "address": recorded.address, "sinceTime": time(log.since), "businesses": businesses,
            })
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// A row of a table, with two spaces between its columns.
fn padded(cells: &[String], widths: &[usize]) -> String {
    let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

fn span(span: Duration) -> String {
    humantime::format_duration(Duration::from_secs(span.as_secs())).to_string()
}
