//! `watch`: what changes, as it is applied.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use clap::Args;
use tonic::Code;

use super::Verdict;
use super::client::ClientArgs;
use super::print::{self, Json, shown};
use crate::grpc::pb;
use crate::grpc::pb::consent_service_client::ConsentServiceClient;
use crate::grpc::pb::watch_consents_response::What;

/// For the help.
pub(super) const WHAT_LINES_SAY: &str = "\
A line of each kind:
  checkpoint 42                        all changes up to revision 42 were told; comes first
  changed 43: 15550123456 at acme      whether this user may be sent to may have changed
  reset                                changes were missed: ask again about everybody";

#[derive(Args, Debug)]
pub(super) struct WatchArgs {
    /// Only this business's
    #[arg(long, value_name = "ID", default_value = "")]
    business: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn watch(args: WatchArgs) -> anyhow::Result<Verdict> {
    let json = args.client.json.then(|| Json::new("WatchConsentsResponse")).transpose()?;
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
                    if !print::read_line(&line(&answer, json.as_ref())?)? {
                        return Ok(Verdict::Yes); // Whoever read has gone.
                    }
                }
                Ok(None) => return Ok(Verdict::Yes),
                Err(status) => break status,
            }
        };
        // It said goodbye, as it does to connections of a certain age: there may be another one.
        let goodbye = ended.code() == Code::Unavailable && !ended.message().is_empty();
        if !(begun && goodbye) {
            return Err(args.client.explain(&ended));
        }
        print::note(&format!("consentd: {}; watching again", ended.message()));
    }
}

fn line(answer: &pb::WatchConsentsResponse, json: Option<&Json>) -> anyhow::Result<String> {
    if let Some(json) = json {
        return Ok(String::from_utf8(json.without_defaults(answer)?)?);
    }
    Ok(match &answer.what {
        Some(What::Changed(changed)) => {
            let (user, business) = (shown(&changed.user_id), shown(&changed.business_id));
            format!("changed {}: {user} at {business}", changed.revision)
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
    fn a_line_is_one_and_commands_no_terminal() {
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
