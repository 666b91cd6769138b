//! `bench requests`: writes the questions of a load to a file, which `bench load` and ghz read.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use consentd_bench::fixture::MAX_PAIRS;
use consentd_bench::workload::Questions;
use prost_reflect::DynamicMessage;
use serde::Serialize;

use crate::cli::{Verdict, output};
use crate::grpc::pb;

/// Which questions are asked.
#[derive(Args, Clone, Debug)]
pub(super) struct QuestionArgs {
    /// How many pairs the sidecar holds: what --synthetic was given
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(super) users: u64,
    /// The share of requests that are about one of them; the others are about unknown users
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

/// A CanSendRequest as proto3 JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonRequest {
    user_id: String,
    business_id: String,
    category: String,
}

impl From<pb::CanSendRequest> for JsonRequest {
    fn from(request: pb::CanSendRequest) -> Self {
        let pb::CanSendRequest { user_id, business_id, category, .. } = request;
        Self { user_id, business_id, category }
    }
}

impl QuestionArgs {
    /// Checks the bounds of the flags.
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        if !(1..=MAX_PAIRS).contains(&self.users) {
            bail!("--users: must be from 1 to {MAX_PAIRS}");
        }
        if !(0.0..=1.0).contains(&self.hit_ratio) {
            bail!("--hit-ratio: must be from 0 to 1, such as 0.9");
        }
        Ok(())
    }

    pub(super) fn questions(&self) -> Questions {
        Questions { pairs: self.users, hit_ratio: self.hit_ratio, seed: self.seed }
    }
}

pub(super) fn requests(args: &RequestsArgs) -> anyhow::Result<Verdict> {
    args.questions.validate()?;
    if args.batch == Some(0) {
        bail!("--batch: must be 1 or more");
    }
    let questions = args.questions.questions();
    let requests: Vec<JsonRequest> =
        (0..args.count).map(|number| questions.question(number).into()).collect();
    let json = match args.batch {
        None => serde_json::to_vec(&requests)?,
        Some(size) => {
            let batch = |requests| serde_json::json!({ "requests": requests });
            serde_json::to_vec(&requests.chunks(size).map(batch).collect::<Vec<_>>())?
        }
    };
    output::file(&args.output, &json)?;
    Ok(Verdict::Yes)
}

/// Reads a file of CanSend requests or batches of them, as `bench requests` writes it.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<pb::CanSendRequest>> {
    let named = || format!("--requests: {}", path.display());
    let text = std::fs::read(path).with_context(named)?;
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&text)
        .with_context(|| format!("{}: must be a JSON array of requests", named()))?;
    let message = output::descriptor("CanSendRequest")?;
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
    fn written_requests_are_read_as_the_same_questions() {
        let folder = tempfile::tempdir().unwrap();
        let asked = QuestionArgs { users: 50, hit_ratio: 0.5, seed: 7 };
        let questions = asked.questions();
        let expected: Vec<_> = (0..10).map(|number| questions.question(number)).collect();
        for batch in [None, Some(4)] {
            let output = folder.path().join("requests.json");
            let args =
                RequestsArgs { questions: asked.clone(), count: 10, batch, output: output.clone() };
            requests(&args).unwrap();
            assert_eq!(read(&output).unwrap(), expected);
        }
    }
}
