//! What a running receiver says: its metrics, over HTTP.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{anyhow, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::metrics::LAST_UPDATE;
use consentd_core::time::Timestamp;

/// The most of an answer that is read. A number has seven lines of 130 bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// The series of one kind of update: the field, the kind, the number.
pub(super) type Series = (String, String, String);

/// What one receiver says.
#[derive(Clone, Debug, Default)]
pub(super) struct Receiver {
    /// Where it was asked.
    pub(super) address: String,
    /// When its process started.
    pub(super) started: Option<Timestamp>,
    /// When the last update of each series arrived; `None` if there was none since the start.
    pub(super) arrivals: HashMap<Series, Option<Timestamp>>,
    /// Requests that were refused because of their signature.
    pub(super) unsigned: u64,
    /// Updates for numbers that are not configured.
    pub(super) unknown_number: u64,
}

/// A receiver that could not be asked.
#[derive(Debug)]
pub(super) struct Unreachable {
    pub(super) address: String,
    pub(super) why: String,
}

/// Those that answered, and those that did not.
pub(super) type Receivers = (Vec<Receiver>, Vec<Unreachable>);

/// Asks the receiver at `HOST:PORT` for its metrics.
pub(super) async fn ask(address: &str, patience: Duration) -> Result<Receiver, Unreachable> {
    let answer = tokio::time::timeout(patience, metrics(address)).await;
    let answer = answer.unwrap_or_else(|_| Err(anyhow!("no answer in time")));
    answer
        .and_then(|text| Receiver::parse(address, &text))
        .map_err(|error| Unreachable { address: address.to_owned(), why: error.to_string() })
}

/// Sorts the answers.
///
/// # Errors
///
/// If no receiver answered.
pub(super) fn answered(asked: Vec<Result<Receiver, Unreachable>>) -> anyhow::Result<Receivers> {
    let (mut receivers, mut silent) = (Vec::new(), Vec::new());
    for one in asked {
        match one {
            Ok(receiver) => receivers.push(receiver),
            Err(unreachable) => silent.push(unreachable),
        }
    }
    if receivers.is_empty() {
        let why = silent.iter().map(|one| format!("{}: {}", one.address, one.why));
        let why = why.collect::<Vec<_>>().join("; ");
        bail!(
            "no receiver could be asked what arrived: {why}\n  name the admin address of each \
             receiver by --admin or CONSENTD_ADMIN, and try where it runs"
        );
    }
    Ok((receivers, silent))
}

/// The text of `/metrics`.
async fn metrics(address: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
    // The first byte of an alert of TLS (RFC 8446, section 5.1).
    if answer.first() == Some(&0x15) {
        bail!("it serves TLS: leave admin out of the receiver's --tls-listeners for the doctor");
    }
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("this is no admin listener: its answer is no HTTP");
    };
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        Some(status) => bail!("it answered with the status {status}"),
        None => bail!("this is no admin listener: its answer has no status"),
    }
}

impl Receiver {
    /// Parses metrics in Prometheus' text format.
    fn parse(address: &str, text: &str) -> anyhow::Result<Self> {
        let mut receiver = Self { address: address.to_owned(), ..Self::default() };
        let mut is_ours = false;
        for sample in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = sample.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            is_ours |= name == "consent_build_info";
            match name {
                LAST_UPDATE => {
                    let [field, kind, number] =
                        ["field", "kind", "number"].map(|name| label(labels, name));
                    receiver.arrivals.insert((field, kind, number), moment(value));
                }
                "process_start_time_seconds" => receiver.started = moment(value),
                "consent_webhook_requests_total" if label(labels, "code") == "403" => {
                    receiver.unsigned = count(value);
                }
                "consent_webhook_passed_over_total"
                    if label(labels, "cause") == "unknown_number" =>
                {
                    receiver.unknown_number = count(value);
                }
                _ => {}
            }
        }
        if !is_ours {
            bail!(
                "this is no admin listener of consentd: its metrics are those of another program"
            );
        }
        if receiver.arrivals.is_empty() {
            bail!(
                "it serves no {LAST_UPDATE}: it receives no webhooks, or is an earlier version of \
                 consentd"
            );
        }
        Ok(receiver)
    }
}

/// The value of a label, between its quotation marks; empty if there is none.
fn label(labels: &str, name: &str) -> String {
    let wanted = format!("{name}=\"");
    let Some((before, rest)) = labels.split_once(&wanted) else { return String::new() };
    let is_whole = before.is_empty() || before.ends_with(',');
    if is_whole { rest.split('"').next().unwrap_or_default().to_owned() } else { String::new() }
}

/// A Unix time in seconds; `None` for zero.
fn moment(seconds: f64) -> Option<Timestamp> {
    /// Beyond it, a timestamp cannot be represented.
    const MAX_SECONDS: f64 = 1e11;
    if !(1.0..MAX_SECONDS).contains(&seconds) {
        return None;
    }
    // Whole seconds below the bound are exact.
    let millis = format!("{:.0}", seconds * 1e3).parse().ok()?;
    Timestamp::from_millis(millis)
}

fn count(value: f64) -> u64 {
    format!("{value:.0}").parse().unwrap_or(0)
}
