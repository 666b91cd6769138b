//! `bench`: the load generator's flags and reports. `consentd_bench` does the work.

mod latency_table;
mod load;
mod load_progress;
mod load_report;
mod propagation;
mod requests;

use clap::{Args, Subcommand};

use super::{Verdict, block_on};

#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Put load on a sidecar, and measure how fast it answers (exit code 1: not all was answered)
    #[command(
        after_help = load::EXAMPLES,
        mut_arg("json", |json| json.help("Print the figures as JSON"))
    )]
    Load(Box<load::LoadArgs>),
    /// Measure how long a recorded event takes until other sidecars answer by it
    #[command(after_help = propagation::WHAT_IS_WRITTEN)]
    Propagation(Box<propagation::PropagationArgs>),
    /// Write requests about the pairs of `serve --synthetic`, as the JSON that ghz takes by -D
    Requests(requests::RequestsArgs),
}

pub(super) fn bench(args: BenchArgs) -> anyhow::Result<Verdict> {
    match args.what {
        What::Load(args) => load::load(&args),
        What::Propagation(args) => block_on(propagation::propagation(*args)),
        What::Requests(args) => requests::requests(&args),
    }
}
