//! `check`: may a message be sent?

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use clap::{Args, ValueEnum};
use consentd_os::clock;

use super::client::ClientArgs;
use super::{Verdict, output, time};
use crate::grpc::pb;
use crate::grpc::pb::consent_service_client::ConsentServiceClient;

/// How the message is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(clippy::enum_variant_names, reason = "WhatsApp's own word is free-form")]
enum Form {
    /// Not decided yet.
    Any,
    /// Text, media or an interactive message.
    FreeForm,
    /// An approved template.
    Template,
}

impl From<Form> for pb::MessageForm {
    fn from(form: Form) -> Self {
        match form {
            Form::Any => Self::Unspecified,
            Form::FreeForm => Self::FreeForm,
            Form::Template => Self::Template,
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// The user: a phone number in any notation, or a business-scoped id
    user: String,
    /// The business, by the deployment's own id
    business: String,
    /// The category: CLASS or CLASS.TOPIC, such as utility.order_updates
    category: String,
    /// How the message is written
    #[arg(long, value_enum, default_value_t = Form::Any)]
    form: Form,
    /// Wait until the sidecar holds this revision, as a recording answered it
    #[arg(long, value_name = "REVISION", default_value_t = 0)]
    min_revision: u64,
    /// The template that the message will be: what is known of its category counts, too
    #[arg(long, value_name = "NAME", requires = "language")]
    template: Option<String>,
    /// The language of the template, such as pt_BR
    #[arg(long, value_name = "CODE", requires = "template")]
    language: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn check(args: CheckArgs) -> anyhow::Result<Verdict> {
    let channel = args.client.connect().await?;
    let request = pb::CanSendRequest {
        user_id: args.user,
        business_id: args.business,
        category: args.category,
        form: pb::MessageForm::from(args.form).into(),
        min_revision: args.min_revision,
        template: args
            .template
            .zip(args.language)
            .map(|(name, language)| pb::Template { name, language }),
    };
    let response = ConsentServiceClient::new(channel).can_send(args.client.request(request)).await;
    let response = response.map_err(|status| args.client.explain_as(&status, flag_of))?;
    let response = response.into_inner();
    if args.client.json {
        output::json("CanSendResponse", &response)?;
    } else {
        output::line(&text(&response))?;
    }
    Ok(if response.allowed { Verdict::Yes } else { Verdict::No })
}

/// The name of a request's field on the command line.
fn flag_of(field: &str) -> Option<&'static str> {
    Some(match field {
        "user_id" => "USER",
        "business_id" => "BUSINESS",
        "category" => "CATEGORY",
        "min_revision" => "--min-revision",
        "template.name" => "--template",
        "template.language" => "--language",
        "form" => "--form",
        _ => return None,
    })
}

fn text(response: &pb::CanSendResponse) -> String {
    let yes_or_no = |yes: bool| if yes { "yes" } else { "no" };
    let mut text = format!(
        "{}: {}\n  {}\n  template {}, free-form {}",
        if response.allowed { "allowed" } else { "denied" },
        output::reason_name(response.reason()),
        output::reason_text(response.reason()),
        yes_or_no(response.template_allowed),
        yes_or_no(response.free_form_allowed),
    );
    let is_over = |time: &prost_types::Timestamp| time::from_wire(time) <= clock::wall();
    let window = match &response.window_expire_time {
        Some(time) if is_over(time) => "window closed at",
        _ => "window until",
    };
    for (name, time) in
        [(window, &response.window_expire_time), ("ask again at", &response.retry_time)]
    {
        if time.is_some() {
            text.push_str("\n  ");
            text.push_str(name);
            text.push(' ');
            text.push_str(&output::time_text(time.as_ref()));
        }
    }
    if !response.category_used.is_empty() {
        text.push_str("\n  decided as ");
        text.push_str(&output::printable(&response.category_used));
    }
    let staleness = output::duration_text(response.staleness.as_ref());
    text + &format!("\n  revision {}, proven {staleness} ago", response.revision)
}
