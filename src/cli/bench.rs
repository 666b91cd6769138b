//! `bench`: what load testers need.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::Serialize;
use siphasher::sip128::SipHasher24;

use super::{Verdict, print};
use crate::synthetic::{self, MAX_PAIRS};

/// What is asked about, in turn.
const CATEGORIES: [&str; 4] =
    ["marketing", "utility.order_updates", "marketing.daily_deals", "authentication"];

#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write requests about the pairs of `serve --synthetic`, as the JSON that ghz takes by -D
    Requests(RequestsArgs),
}

#[derive(Args, Debug)]
struct RequestsArgs {
    /// How many pairs the sidecar holds: what --synthetic was given
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    users: u64,
    /// The share of requests that are about one of them; the others are about users unheard of
    #[arg(long, value_name = "P", default_value_t = 0.9)]
    hit_ratio: f64,
    /// The same seed makes the same requests
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
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

pub(super) fn bench(args: &BenchArgs) -> anyhow::Result<Verdict> {
    let What::Requests(args) = &args.what;
    if !(1..=MAX_PAIRS).contains(&args.users) {
        bail!("--users: must be from 1 to {MAX_PAIRS}");
    }
    if !(0.0..=1.0).contains(&args.hit_ratio) {
        bail!("--hit-ratio: must be from 0 to 1, such as 0.9");
    }
    if args.batch == Some(0) {
        bail!("--batch: must be 1 or more");
    }
    let requests: Vec<Request> = (0..args.count).map(|number| args.request(number)).collect();
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

impl RequestsArgs {
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
fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}
