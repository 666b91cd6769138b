//! `status`: how current a sidecar is.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use consentd_core::time::Timestamp;
use consentd_os::clock;

use super::client::ClientArgs;
use super::{Verdict, output, time};
use crate::grpc::pb;
use crate::grpc::pb::consent_service_client::ConsentServiceClient;
use crate::grpc::pb::get_status_response::Phase;

/// A smaller clock offset is not reported.
const MAX_CLOCK_OFFSET: Duration = Duration::from_secs(2);

/// How many partitions that are not live are shown.
const MAX_PARTITIONS: usize = 16;

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn status(args: StatusArgs) -> anyhow::Result<Verdict> {
    let channel = args.client.connect().await?;
    let sent = clock::wall();
    let request = args.client.request(pb::GetStatusRequest {});
    let response = ConsentServiceClient::new(channel).get_status(request).await;
    let received = clock::wall();
    let status = response.map_err(|status| args.client.explain(&status))?.into_inner();
    // Before the table is loaded no check is answered.
    let verdict = match status.phase() {
        Phase::Loading => Verdict::No,
        _ => Verdict::Yes,
    };
    if args.client.json {
        output::json("GetStatusResponse", &status)?;
        return Ok(verdict);
    }
    let phase = phase_text(status.phase());
    let cause = if status.cause.is_empty() { String::new() } else { format!(": {}", status.cause) };
    output::line(&format!("phase      {phase}{cause}"))?;
    let proven = match status.phase() {
        Phase::Loading => "never".to_owned(),
        _ => format!("{} ago", output::duration_text(status.staleness.as_ref())),
    };
    output::line(&format!("proven     {proven}"))?;
    output::line(&format!("revision   {}", status.revision))?;
    output::line(&format!("pairs      {}", status.pairs))?;
    output::line(&format!("ledger     {}", status.ledger))?;
    if !status.partitions.is_empty() {
        for line in partition_lines(&status.partitions) {
            output::line(&line)?;
        }
    }
    if status.business_count > 0 {
        output::line(&format!("businesses {}", businesses_text(&status)))?;
    }
    if status.remembered_pairs > 0 {
        let pairs = status.remembered_pairs;
        output::line(&format!("remembers  denials of {pairs} users that the ledger has lost"))?;
    }
    for warning in &status.warnings {
        output::line(&format!("warning    {warning}"))?;
    }
    if let Some(time) = &status.current_time {
        let offset = clock_offset_text(time::from_wire(time), sent, received);
        output::line(&format!("clock      {}{offset}", output::time_text(Some(time))))?;
    }
    output::line(&format!("version    {}", status.version))?;
    Ok(verdict)
}

fn phase_text(phase: Phase) -> String {
    phase.as_str_name().trim_start_matches("PHASE_").to_lowercase()
}

/// The partitions: how many are followed, and how those are that are not live.
fn partition_lines(partitions: &[pb::PartitionStatus]) -> Vec<String> {
    let mut counts = BTreeMap::new();
    for one in partitions {
        *counts.entry(phase_text(one.phase())).or_insert(0_usize) += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(word, count)| format!("{count} {word}")).collect();
    let mut lines =
        vec![format!("partitions {} followed: {}", partitions.len(), counts.join(", "))];
    let faulty = || partitions.iter().filter(|one| one.phase() != Phase::Live);
    lines.extend(faulty().take(MAX_PARTITIONS).map(|one| {
        let proven = match one.phase() {
            Phase::Loading => "never proven".to_owned(),
            _ => format!("proven {} ago", output::duration_text(one.staleness.as_ref())),
        };
        format!("           {} {}, {proven}: {}", one.number, phase_text(one.phase()), one.cause)
    }));
    let more = faulty().count().saturating_sub(MAX_PARTITIONS);
    if more > 0 {
        lines.push(format!("           and {more} more"));
    }
    lines
}

/// The businesses that the sidecar holds.
fn businesses_text(status: &pb::GetStatusResponse) -> String {
    let shown = status.businesses.join(", ");
    match status.business_count.saturating_sub(status.businesses.len().try_into().unwrap_or(0)) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// How far the sidecar's clock is from ours, or nothing if they may agree. The sidecar read its
/// clock between `sent` and `received`.
fn clock_offset_text(theirs: Timestamp, sent: Timestamp, received: Timestamp) -> String {
    let (earliest, latest) = (sent.minus(MAX_CLOCK_OFFSET), received.plus(MAX_CLOCK_OFFSET));
    let (offset, direction) = if theirs > latest {
        (theirs.since(received), "ahead of")
    } else if theirs < earliest {
        (sent.since(theirs), "behind")
    } else {
        return String::new();
    };
    let offset = humantime::format_duration(Duration::from_secs(offset.as_secs()));
    format!(
        ", {offset} {direction} this machine's\n           one of the two is wrong: events that are \
         timed by it count too early or too late"
    )
}
