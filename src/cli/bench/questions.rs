//! The questions that load tests ask, and `bench requests`, which writes them to a file.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde::Serialize;
use siphasher::sip128::SipHasher24;

use crate::cli::{Verdict, print};
use crate::grpc::{DESCRIPTOR_SET, pb};
use crate::synthetic::{self, MAX_PAIRS};

/// What is asked about, in turn.
const CATEGORIES: [&str; 4] =
    ["marketing", "utility.order_updates", "marketing.daily_deals", "authentication"];

/// Which questions are asked.
#[derive(Args, Clone, Debug)]
pub(super) struct QuestionArgs {
    /// How many pairs the sidecar holds: what --synthetic was given
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(super) users: u64,
    /// The share of requests that are about one of them; the others are about users unheard of
    #[arg(long, value_name = "P", default_value_t = 0.9)]
    hit_ratio: f64,
    /// The same seed makes the same requests
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
}

#[derive(Args, Debug)]
pub(super) struct RequestsArgs {
    #[command(flatten)]
    questions: QuestionArgs,
    /// How many requests
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    count: u64,
    /// Write BatchCanSend requests of so many each
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Where to; - is standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

/// A CanSendRequest, as proto3 JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    user_id: String,
    business_id: &'static str,
    category: &'static str,
}

impl QuestionArgs {
    /// Refuses what makes no sense.
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        if !(1..=MAX_PAIRS).contains(&self.users) {
            bail!("--users: must be from 1 to {MAX_PAIRS}");
        }
        if !(0.0..=1.0).contains(&self.hit_ratio) {
            bail!("--hit-ratio: must be from 0 to 1, such as 0.9");
        }
        Ok(())
    }

    /// A question by its number.
    pub(super) fn question(&self, number: u64) -> pb::CanSendRequest {
        let Request { user_id, business_id, category } = self.request(number);
        pb::CanSendRequest {
            user_id,
            business_id: business_id.to_owned(),
            category: category.to_owned(),
            ..Default::default()
        }
    }

    /// A request by its number. Numbers are hashed with the seed: no generator's versions matter.
    fn request(&self, number: u64) -> Request {
        let random = SipHasher24::new_with_keys(self.seed, 0).hash(&number.to_be_bytes());
        let place = random.h1 % self.users;
        let hit = fraction(random.h2) < self.hit_ratio;
        let user_id = if hit { synthetic::user(place) } else { synthetic::stranger(place) };
        let category = usize::try_from(number % 4).ok().and_then(|at| CATEGORIES.get(at));
        let category = category.copied().unwrap_or("marketing");
        Request { user_id, business_id: synthetic::BUSINESS, category }
    }
}

/// A number from 0 up to 1, 1 excluded.
#[allow(clippy::cast_precision_loss, reason = "it has as many bits as fit")]
pub(super) fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

pub(super) fn requests(args: &RequestsArgs) -> anyhow::Result<Verdict> {
    args.questions.validate()?;
    if args.batch == Some(0) {
        bail!("--batch: must be 1 or more");
    }
    let requests: Vec<_> = (0..args.count).map(|number| args.questions.request(number)).collect();
    let json = match args.batch {
        None => serde_json::to_vec(&requests)?,
        Some(size) => {
            let batch = |requests| serde_json::json!({ "requests": requests });
            serde_json::to_vec(&requests.chunks(size).map(batch).collect::<Vec<_>>())?
        }
    };
    print::file(&args.output, &json)?;
    Ok(Verdict::Yes)
}

/// Reads a file such as `bench requests` writes: CanSend requests, or batches of them.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<pb::CanSendRequest>> {
    let named = || format!("--requests: {}", path.display());
    let text = std::fs::read(path).with_context(named)?;
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&text)
        .with_context(|| format!("{}: must be a JSON array of requests", named()))?;
    let message = DescriptorPool::decode(DESCRIPTOR_SET)?
        .get_message_by_name("consent.v1.CanSendRequest")
        .context("the contract has no CanSendRequest")?;
    let mut questions = Vec::new();
    for (number, mut entry) in entries.into_iter().enumerate() {
        let inner = match entry.get_mut("requests").map(serde_json::Value::take) {
            Some(serde_json::Value::Array(batch)) => batch,
            _ => vec![entry],
        };
        for question in inner {
            let read = DynamicMessage::deserialize(message.clone(), question)
                .with_context(|| format!("{}: request {}", named(), number + 1))?;
            questions.push(read.transcode_to()?);
        }
    }
    if questions.is_empty() {
        bail!("{}: there are no requests in it", named());
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_the_same_questions() {
        let folder = tempfile::tempdir().unwrap();
        let asked = QuestionArgs { users: 50, hit_ratio: 0.5, seed: 7 };
        let expected: Vec<_> = (0..10).map(|number| asked.question(number)).collect();
        for batch in [None, Some(4)] {
            let output = folder.path().join("requests.json");
            let args =
                RequestsArgs { questions: asked.clone(), count: 10, batch, output: output.clone() };
            requests(&args).unwrap();
            assert_eq!(read(&output).unwrap(), expected);
        }
    }
}
