//! `healthcheck`: a sidecar's gRPC health, for probes.

use clap::Args;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::client::ClientArgs;
use super::{Verdict, output};

#[derive(Args, Debug)]
pub(super) struct HealthArgs {
    /// What to ask for: readiness, liveness, or a service's full name; empty for the whole server
    #[arg(default_value = "")]
    service: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn healthcheck(args: HealthArgs) -> anyhow::Result<Verdict> {
    let channel = args.client.connect().await?;
    let request = args.client.request(HealthCheckRequest { service: args.service });
    let response = HealthClient::new(channel).check(request).await;
    let response = response.map_err(|status| args.client.explain(&status))?.into_inner();
    let name = response.status().as_str_name();
    let text =
        if args.client.json { format!("{{\"status\":\"{name}\"}}") } else { name.to_owned() };
    output::line(&text)?;
    let is_serving = response.status() == ServingStatus::Serving;
    Ok(if is_serving { Verdict::Yes } else { Verdict::No })
}
