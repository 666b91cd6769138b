//! `demo`: plays the events of a small shop's days on a sidecar of its own, and asks what may be
//! sent afterwards.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

use super::{Verdict, output, time};
use crate::app::Sidecar;
use crate::config::{LedgerArgs, ListenerArgs, ServeArgs};
use crate::grpc::pb;
use crate::grpc::pb::consent_event::What;
use crate::grpc::pb::consent_service_client::ConsentServiceClient;
use crate::grpc::pb::get_status_response::Phase;
use crate::grpc::pb::record_service_client::RecordServiceClient;
use crate::net::socket::Address;
use consentd_os::clock;

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// Print the answers as proto3 JSON, one a line
    #[arg(long)]
    json: bool,
}

const BUSINESS: &str = "corner-bakery";
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// The users and their phone numbers.
const PEOPLE: [(&str, &str); 8] = [
    ("Ana", "+1 555 010 0001"),
    ("Bo", "+1 555 010 0002"),
    ("Chitra", "+1 555 010 0003"),
    ("Dev", "+1 555 010 0004"),
    ("Eve", "+1 555 010 0005"),
    ("Femi", "+1 555 010 0006"),
    ("Gil", "+1 555 010 0007"),
    ("Hana", "+1 555 010 0008"),
];

/// An event of the story.
struct Scene {
    who: &'static str,
    ago: Duration,
    text: &'static str,
    what: What,
}

/// The events, the oldest first.
fn story() -> Vec<Scene> {
    let scene = |who, ago, text, what| Scene { who, ago, text, what };
    vec![
        scene(
            "Ana",
            9 * DAY,
            "ticks \"order updates\" in the web shop",
            opt_in("utility.order_updates", false),
        ),
        scene("Bo", 8 * DAY, "signs up for offers at the counter", opt_in("marketing", false)),
        scene("Chitra", 7 * DAY, "signs up for offers, to be confirmed", opt_in("marketing", true)),
        scene("Dev", 6 * DAY, "signs up for offers", opt_in("marketing", false)),
        scene("Hana", 5 * DAY, "signs up for offers", opt_in("marketing", false)),
        scene("Dev", 20 * HOUR, "writes \"STOP\"", inbound("STOP")),
        scene(
            "Dev",
            2 * HOUR,
            "writes \"do you have rye today?\"",
            inbound("do you have rye today?"),
        ),
        scene("Eve", 3 * HOUR, "asks \"are you open?\", never opted in", inbound("are you open?")),
        scene("Femi", 30 * HOUR, "asked something yesterday", inbound("do you do cakes?")),
        scene(
            "Gil",
            4 * HOUR,
            "asks never to be contacted",
            What::Suppression(pb::Suppression { suppressed: true, reference: "by phone".into() }),
        ),
        scene(
            "Hana",
            HOUR,
            "gets an offer that WhatsApp refuses: 131049, too many lately",
            What::DeliveryFailure(pb::DeliveryFailure { code: 131_049, ..Default::default() }),
        ),
        scene(
            "Bo",
            HOUR,
            "turns offers off inside WhatsApp",
            What::PlatformPreference(pb::PlatformPreference {
                marketing_stopped: true,
                ..Default::default()
            }),
        ),
    ]
}

/// How often the sidecar's phase is polled until it has read its empty ledger.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The questions at the end: user, category and form.
const QUESTIONS: [(&str, &str, pb::MessageForm); 14] = [
    ("Ana", "utility.order_updates", pb::MessageForm::Template),
    ("Ana", "utility.order_updates", pb::MessageForm::FreeForm),
    ("Ana", "marketing", pb::MessageForm::Template),
    ("Bo", "marketing", pb::MessageForm::Template),
    ("Bo", "utility", pb::MessageForm::Template),
    ("Chitra", "marketing", pb::MessageForm::Template),
    ("Dev", "marketing", pb::MessageForm::Template),
    ("Dev", "service", pb::MessageForm::FreeForm),
    ("Dev", "service", pb::MessageForm::Template),
    ("Eve", "service", pb::MessageForm::FreeForm),
    ("Eve", "marketing", pb::MessageForm::Unspecified),
    ("Femi", "service", pb::MessageForm::FreeForm),
    ("Gil", "utility", pb::MessageForm::Template),
    ("Hana", "marketing", pb::MessageForm::Template),
];

fn opt_in(category: &str, pending: bool) -> What {
    What::OptIn(pb::OptIn {
        category: category.into(),
        evidence: Some(pb::Evidence {
            method: pb::OptInMethod::Website.into(),
            statement: "Yes, Corner Bakery may write to me on WhatsApp.".into(),
            business_name: "Corner Bakery".into(),
            locale: "en".into(),
            reference: "https://bakery.example/signup".into(),
            ..Default::default()
        }),
        expire_time: None,
        pending,
    })
}

fn inbound(text: &str) -> What {
    What::InboundMessage(pb::InboundMessage { message_id: String::new(), text: text.into() })
}

fn number(who: &str) -> &'static str {
    PEOPLE.iter().find(|(name, _)| *name == who).map_or("", |(_, number)| *number)
}

pub(super) async fn demo(args: DemoArgs) -> anyhow::Result<Verdict> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let settings = ServeArgs {
        ledger: LedgerArgs {
            ledger: Some(format!("file:{}", folder.path().join("demo.redb").display())),
            ..LedgerArgs::default()
        },
        listeners: ListenerArgs {
            listen: Some("127.0.0.1:0".into()),
            admin: Some("none".into()),
            ..ListenerArgs::default()
        },
        ..ServeArgs::default()
    };
    let sidecar = Sidecar::new(settings.settings()?).await?;
    let bound = sidecar.bound()?;
    let Some(Address::Tcp(address)) = bound.grpc.first().cloned() else {
        anyhow::bail!("the demo's sidecar does not listen");
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = sidecar.run(async {
        let _ = stopped.await;
    });
    let playing = async {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
        let played = play(&channel, &address, args.json).await;
        let _ = stop.send(());
        played
    };
    let (served, played) = tokio::join!(serving, playing);
    served.and(played)?;
    Ok(Verdict::Yes)
}

async fn play(channel: &Channel, address: &str, json: bool) -> anyhow::Result<()> {
    let mut recorder = RecordServiceClient::new(channel.clone());
    let mut asker = ConsentServiceClient::new(channel.clone());
    // Once it is live, an event is enforced before its recording is acknowledged.
    while asker.get_status(pb::GetStatusRequest {}).await?.into_inner().phase() != Phase::Live {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let now = clock::wall();
    let mut events = table(["when", "who", "what happens"]);
    for scene in story() {
        let event = pb::ConsentEvent {
            user_id: number(scene.who).into(),
            business_id: BUSINESS.into(),
            event_time: Some(time::to_wire(now.minus(scene.ago))),
            what: Some(scene.what),
        };
        let request = pb::RecordEventRequest { event: Some(event), request_id: String::new() };
        recorder.record_event(request).await?;
        let hours = scene.ago.as_secs() / 3_600;
        let ago =
            if hours > 48 { format!("{} days ago", hours / 24) } else { format!("{hours} h ago") };
        events.add_row([ago.as_str(), scene.who, scene.text]);
    }
    if !json {
        output::line(&format!("A sidecar on {address}, and a small shop's days, told to it:\n"))?;
        output::line(&format!("{events}\n\nWhat may the shop send now?\n"))?;
    }
    let mut answers = table(["to", "category", "form", "", "reason", "which means"]);
    for (who, category, form) in QUESTIONS {
        let request = pb::CanSendRequest {
            template: None,
            user_id: number(who).into(),
            business_id: BUSINESS.into(),
            category: category.into(),
            form: form.into(),
            min_revision: 0,
        };
        let answer = asker.can_send(request).await?.into_inner();
        if json {
            output::json("CanSendResponse", &answer)?;
            continue;
        }
        let form = match form {
            pb::MessageForm::Unspecified => "any",
            pb::MessageForm::FreeForm => "free-form",
            pb::MessageForm::Template => "template",
        };
        let verdict = if answer.allowed { "send" } else { "don't" };
        let reason = answer.reason();
        let why = output::reason_text(reason);
        answers.add_row([who, category, form, verdict, output::reason_name(reason), why]);
    }
    if !json {
        output::line(&answers.to_string())?;
        output::line(
            "\nStart your own with `consentd serve`, record with `consentd record`, ask with \
             `consentd check`.",
        )?;
    }
    Ok(())
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(100);
    table.set_header(header);
    table
}
