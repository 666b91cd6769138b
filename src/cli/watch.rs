//! `watch`: the change feed of a sidecar.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use clap::Args;
use tonic::Code;

use super::Verdict;
use super::client::ClientArgs;
use super::output::{self, JsonEncoder, printable};
use crate::grpc::pb;
use crate::grpc::pb::consent_service_client::ConsentServiceClient;
use crate::grpc::pb::watch_consents_response::What;

/// The end of the command's help.
pub(super) const WHAT_LINES_SAY: &str = "\
A line of each kind:
  checkpoint 42                        all changes up to revision 42 were sent; comes first
  changed 43: 15550123456 at acme      whether this user may be sent to may have changed
  changed 44: template sale en at acme whether this template may be sent may have changed
  reset                                changes were missed: ask again about everybody";

#[derive(Args, Debug)]
pub(super) struct WatchArgs {
    /// Only the changes of this business
    #[arg(long, value_name = "ID", default_value = "")]
    business: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn watch(args: WatchArgs) -> anyhow::Result<Verdict> {
    let json = args.client.json.then(|| JsonEncoder::new("WatchConsentsResponse")).transpose()?;
    loop {
        let mut client = ConsentServiceClient::new(args.client.connect().await?);
        let request = pb::WatchConsentsRequest { business_id: args.business.clone() };
        let answers = client.watch_consents(args.client.request(request)).await;
        let mut answers = answers.map_err(|status| args.client.explain(&status))?.into_inner();
        let mut begun = false;
        let ended = loop {
            match answers.message().await {
                Ok(Some(answer)) => {
                    begun = true;
                    if !output::try_line(&line(&answer, json.as_ref())?)? {
                        return Ok(Verdict::Yes); // The reader closed the pipe.
                    }
                }
                Ok(None) => return Ok(Verdict::Yes),
                Err(status) => break status,
            }
        };
        // A sidecar closes old connections gracefully, and accepts a new one.
        let is_graceful = ended.code() == Code::Unavailable && !ended.message().is_empty();
        if !(begun && is_graceful) {
            return Err(args.client.explain(&ended));
        }
        output::note(&format!("consentd: {}; watching again", ended.message()));
    }
}

fn line(answer: &pb::WatchConsentsResponse, json: Option<&JsonEncoder>) -> anyhow::Result<String> {
    if let Some(json) = json {
        return Ok(String::from_utf8(json.without_defaults(answer)?)?);
    }
    Ok(match &answer.what {
        Some(What::Changed(changed)) => {
            let (user, business) = (printable(&changed.user_id), printable(&changed.business_id));
            format!("changed {}: {user} at {business}", changed.revision)
        }
        Some(What::TemplateChanged(changed)) => {
            let template = match &changed.template {
                None => "all templates".to_owned(),
                Some(pb::Template { name, language }) => {
                    format!("template {} {}", printable(name), printable(language))
                }
            };
            let business = printable(&changed.business_id);
            format!("changed {}: {template} at {business}", changed.revision)
        }
        Some(What::Checkpoint(checkpoint)) => {
            let revisions = checkpoint.partition_revisions.iter().map(ToString::to_string);
            format!("checkpoint {}", revisions.collect::<Vec<_>>().join(" "))
        }
        Some(What::Reset(_)) => "reset".to_owned(),
        None => "something that only a newer consentd knows".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_user_adds_no_line_and_no_terminal_command() {
        use pb::watch_consents_response::{Changed, Checkpoint, Reset};
        let said = |what| line(&pb::WatchConsentsResponse { what: Some(what) }, None).unwrap();
        let (user_id, business_id) = ("a\u{1b}[2J\nreset".to_owned(), "\u{202e}b".to_owned());
        let changed = What::Changed(Changed { user_id, business_id, revision: 7 });
        assert_eq!(said(changed), "changed 7: a\u{fffd}[2J\u{fffd}reset at \u{fffd}b");
        let checkpoint = What::Checkpoint(Checkpoint { partition_revisions: vec![3, 4] });
        assert_eq!(said(checkpoint), "checkpoint 3 4");
        assert_eq!(said(What::Reset(Reset {})), "reset");
    }
}
