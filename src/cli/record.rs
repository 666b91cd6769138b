//! `record`: records an event.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::fmt::Write as _;

use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};

use super::client::{ClientArgs, TokenArgs};
use super::{Verdict, output, time};
use crate::grpc::pb;
use crate::grpc::pb::consent_event::What;
use crate::grpc::pb::record_service_client::RecordServiceClient;
use consentd_core::time::Timestamp;

#[derive(Args, Debug)]
pub(super) struct RecordArgs {
    #[command(subcommand)]
    what: WhatArgs,
}

/// The arguments of every event.
#[derive(Args, Debug)]
struct EventArgs {
    /// The user: a phone number in any notation, or a business-scoped id
    user: String,
    /// The business, by the deployment's own id
    business: String,
    /// When it happened, as RFC 3339 (2026-01-31T09:30:00Z) or as a time ago (2h) [default: now, by
    /// the ledger's clock]
    #[arg(long, value_name = "TIME", value_parser = time::parse_past)]
    time: Option<Timestamp>,
    /// Makes a retry safe: a pair remembers its last 8 [default: a random one for an opt-in
    /// without a time]
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

#[derive(Debug, Subcommand)]
enum WhatArgs {
    /// The user agreed to a category
    OptIn(OptInArgs),
    /// The user withdrew from a category, from a class, or from everything
    OptOut {
        #[command(flatten)]
        event: EventArgs,
        /// What from: *, CLASS or CLASS.TOPIC
        #[arg(value_name = "SCOPE")]
        scope: String,
        /// What the user said or did, for the record
        #[arg(long, default_value = "", hide_default_value = true)]
        reference: String,
    },
    /// The user wrote or called: the 24-hour window opens
    Inbound {
        #[command(flatten)]
        event: EventArgs,
        /// The text, read for keywords such as STOP and never stored
        #[arg(long, default_value = "", hide_default_value = true)]
        text: String,
        /// The platform's message id, for the record
        #[arg(long, default_value = "", hide_default_value = true)]
        message_id: String,
    },
    /// The user stopped or resumed marketing inside WhatsApp
    Platform {
        #[command(flatten)]
        event: EventArgs,
        /// Which of the two
        preference: Preference,
        /// Meta's id of the business's number that it was at; a resume lifts the stop at its own
        /// number [default: unknown, which is a number of its own]
        #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
        phone_number_id: String,
    },
    /// WhatsApp refused a message to the user
    Failure {
        #[command(flatten)]
        event: EventArgs,
        /// WhatsApp's error code, such as 131047
        code: i32,
        /// Meta's id of the business's number that the message was sent from [default: unknown]
        #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
        phone_number_id: String,
    },
    /// The user must not be contacted
    Suppress {
        #[command(flatten)]
        event: EventArgs,
        /// Lift the suppression instead
        #[arg(long)]
        lift: bool,
        /// Why, for the record
        #[arg(long, default_value = "", hide_default_value = true)]
        reference: String,
    },
    /// The user has another id: what is denied under either is denied under both
    Link {
        #[command(flatten)]
        event: EventArgs,
        /// The other id: a phone number in any notation, or a business-scoped id
        #[arg(value_name = "OTHER")]
        other: String,
        /// The user left the first id for it, such as by changing the number
        #[arg(long)]
        moved: bool,
    },
}

/// The heading of the flags without which an opt-in has no effect.
const EVIDENCE: &str = "Evidence";

/// Shown by the help of an opt-in, and by the error about one without evidence.
const OPT_IN_EXAMPLE: &str = "\
\u{20}\u{20}consentd record opt-in \"+1 555 012 3456\" acme marketing --method website \\
    --statement \"Yes, send me offers from Acme on WhatsApp\" --business-name Acme";

#[derive(Args, Debug)]
#[command(after_help = format!("Example:\n{OPT_IN_EXAMPLE}"))]
struct OptInArgs {
    #[command(flatten)]
    event: EventArgs,
    /// What for: CLASS or CLASS.TOPIC, such as utility.order_updates
    category: String,
    /// How it was obtained
    #[arg(long, value_enum, help_heading = EVIDENCE)]
    method: Option<Method>,
    /// The words that the user agreed to; they must name the business, and WhatsApp unless the
    /// sidecar has --statement-names business
    #[arg(long, default_value = "", hide_default_value = true, help_heading = EVIDENCE)]
    statement: String,
    /// The business's name as the user saw it
    #[arg(long, default_value = "", hide_default_value = true, help_heading = EVIDENCE)]
    business_name: String,
    /// The statement's language, such as pt-BR
    #[arg(long, default_value = "", hide_default_value = true, help_heading = EVIDENCE)]
    locale: String,
    /// Where the proof is kept; for whatsapp-signup its signup_id
    #[arg(long, default_value = "", hide_default_value = true, help_heading = EVIDENCE)]
    reference: String,
    /// For whatsapp-signup: Meta's id of the business's number that the user signed up with
    #[arg(
        long,
        value_name = "ID",
        default_value = "",
        hide_default_value = true,
        help_heading = EVIDENCE
    )]
    phone_number_id: String,
    /// When it expires, as RFC 3339 or as a time from now (365d) [default: never]
    #[arg(long, value_name = "TIME", value_parser = time::parse_future)]
    expires: Option<Timestamp>,
    /// It has no effect until its double opt-in confirmation
    #[arg(long)]
    pending: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Preference {
    /// Marketing was stopped.
    Stop,
    /// Marketing was resumed.
    Resume,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Method {
    /// By text message.
    Sms,
    /// On a web page or in an app.
    Website,
    /// In a WhatsApp conversation.
    Whatsapp,
    /// By phone.
    Phone,
    /// In person or in writing.
    InPerson,
    /// Through WhatsApp's in-app signup link.
    WhatsappSignup,
}

/// An error that names all missing evidence at once, if there is any.
fn missing_evidence(args: &OptInArgs) -> Option<anyhow::Error> {
    let mut missing = String::new();
    if args.method.is_none() {
        missing.push_str(
            "\n  --method: how it was obtained: sms, website, whatsapp, phone, in-person or \
             whatsapp-signup",
        );
    }
    let needed: &[(&str, &str, &str)] = if matches!(args.method, Some(Method::WhatsappSignup)) {
        &[("--reference", &args.reference, "the signup_id that WhatsApp gave")]
    } else {
        &[
            (
                "--statement",
                &args.statement,
                "the words that the user agreed to; they must name WhatsApp and the business",
            ),
            ("--business-name", &args.business_name, "the business's name as the user saw it"),
        ]
    };
    for (flag, _, what) in needed.iter().filter(|(_, given, _)| given.trim().is_empty()) {
        missing.push_str("\n  ");
        missing.push_str(flag);
        missing.push_str(": ");
        missing.push_str(what);
    }
    (!missing.is_empty()).then(|| {
        anyhow!(
            "an opt-in counts only with evidence of it; missing:{missing}\nsuch as:\n\
             {OPT_IN_EXAMPLE}"
        )
    })
}

impl From<Method> for pb::OptInMethod {
    fn from(method: Method) -> Self {
        match method {
            Method::Sms => Self::Sms,
            Method::Website => Self::Website,
            Method::Whatsapp => Self::Whatsapp,
            Method::Phone => Self::Phone,
            Method::InPerson => Self::InPerson,
            Method::WhatsappSignup => Self::WhatsappSignup,
        }
    }
}

impl EventArgs {
    /// Adds a random request id if there is neither an id nor a time. The contract requires one of
    /// them of an event that lifts a denial, so that a replay cannot lift a later denial.
    fn with_request_id(mut self) -> anyhow::Result<Self> {
        if self.time.is_none() && self.request_id.is_none() {
            self.request_id = Some(random_request_id()?);
        }
        Ok(self)
    }
}

impl WhatArgs {
    /// The arguments of every event, and the event itself.
    fn split(self) -> anyhow::Result<(EventArgs, What)> {
        Ok(match self {
            Self::OptIn(args) => {
                if let Some(error) = missing_evidence(&args) {
                    return Err(error);
                }
                let event = args.event.with_request_id()?;
                let method = args.method.map(pb::OptInMethod::from);
                let evidence = pb::Evidence {
                    method: method.unwrap_or_default().into(),
                    statement: args.statement,
                    business_name: args.business_name,
                    locale: args.locale,
                    reference: args.reference,
                    confirmation: String::new(),
                    phone_number_id: args.phone_number_id,
                    // The sidecar sets it.
                    statement_names: pb::StatementNames::Unspecified.into(),
                };
                let opt_in = pb::OptIn {
                    category: args.category,
                    evidence: Some(evidence),
                    expire_time: args.expires.map(time::to_wire),
                    pending: args.pending,
                };
                (event, What::OptIn(opt_in))
            }
            Self::OptOut { event, scope, reference } => {
                (event, What::OptOut(pb::OptOut { scope, reference }))
            }
            Self::Inbound { event, text, message_id } => {
                (event, What::InboundMessage(pb::InboundMessage { message_id, text }))
            }
            Self::Platform { event, preference, phone_number_id } => {
                let marketing_stopped = matches!(preference, Preference::Stop);
                let event = if marketing_stopped { event } else { event.with_request_id()? };
                let preference = pb::PlatformPreference { marketing_stopped, phone_number_id };
                (event, What::PlatformPreference(preference))
            }
            Self::Failure { event, code, phone_number_id } => {
                (event, What::DeliveryFailure(pb::DeliveryFailure { code, phone_number_id }))
            }
            Self::Suppress { event, lift, reference } => {
                let event = if lift { event.with_request_id()? } else { event };
                (event, What::Suppression(pb::Suppression { suppressed: !lift, reference }))
            }
            Self::Link { event, other: other_user_id, moved } => {
                (event, What::Link(pb::Link { other_user_id, moved }))
            }
        })
    }
}

/// The name of a request's field on the command line.
fn flag_of(field: &str) -> Option<&'static str> {
    Some(match field.strip_prefix("event.").unwrap_or(field) {
        "user_id" => "USER",
        "business_id" => "BUSINESS",
        "event_time" => "--time",
        "request_id" => "--request-id",
        "opt_in.category" => "CATEGORY",
        "opt_in.expire_time" => "--expires",
        "opt_in.evidence.method" => "--method",
        "opt_in.evidence.statement" => "--statement",
        "opt_in.evidence.business_name" => "--business-name",
        "opt_in.evidence.locale" => "--locale",
        "opt_out.scope" => "SCOPE",
        "opt_in.evidence.reference" | "opt_out.reference" | "suppression.reference" => {
            "--reference"
        }
        "opt_in.evidence.phone_number_id"
        | "platform_preference.phone_number_id"
        | "delivery_failure.phone_number_id" => "--phone-number-id",
        "inbound_message.message_id" => "--message-id",
        "delivery_failure.code" => "CODE",
        "link.other_user_id" => "OTHER",
        _ => return None,
    })
}

/// A random request id.
pub(super) fn random_request_id() -> anyhow::Result<String> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)?;
    Ok(format!("cli-{:016x}", u64::from_be_bytes(random)))
}

pub(super) async fn record(args: RecordArgs) -> anyhow::Result<Verdict> {
    let (args, what) = args.what.split()?;
    let channel = args.client.connect().await?;
    let event = pb::ConsentEvent {
        user_id: args.user,
        business_id: args.business,
        event_time: args.time.map(time::to_wire),
        what: Some(what),
    };
    let request_id = args.request_id.unwrap_or_default();
    let request = pb::RecordEventRequest { event: Some(event), request_id };
    let mut request = args.client.request(request);
    args.token.authorize(&mut request)?;
    let response = RecordServiceClient::new(channel).record_event(request).await;
    let response =
        response.map_err(|status| args.client.explain_as(&status, flag_of))?.into_inner();
    if args.client.json {
        output::json("RecordEventResponse", &response)?;
        return Ok(Verdict::Yes);
    }
    let done =
        if response.applied { "recorded" } else { "recorded before, or older than what is known" };
    let mut text = format!("{done}, revision {}", response.revision);
    for (did, scope) in
        [("opted out of", &response.opted_out_scope), ("opted in to", &response.opted_in_category)]
    {
        if !scope.is_empty() {
            let (keyword, locale) = (&response.matched_keyword, &response.keyword_locale);
            let language = if locale.is_empty() { String::new() } else { format!(" ({locale})") };
            let keyword = output::printable(keyword);
            let _ =
                write!(text, "\n  the text is the keyword {keyword:?}{language}: {did} {scope}");
        }
    }
    output::line(&text)?;
    Ok(Verdict::Yes)
}
