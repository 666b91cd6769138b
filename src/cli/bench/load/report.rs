//! The figures, for people and for scripts.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::HumanCount;
use serde_json::{Map, Value, json};
use tonic::Code;

use super::super::latencies;
use super::tally::Tally;
use super::{Load, LoadArgs};
use crate::cli::{explain, print};
use crate::grpc::pb;

/// A thread that is busy for as much of the time is what limits the figures.
const SATURATED: f64 = 0.9;

pub(super) struct Report<'a> {
    args: &'a LoadArgs,
    server: pb::GetStatusResponse,
    interrupted: bool,
    tally: Tally,
    cpu: Duration,
    /// The largest share of a CPU that a thread used.
    busiest: f64,
    seconds: f64,
}

impl<'a> Report<'a> {
    pub(super) fn new(
        args: &'a LoadArgs,
        server: pb::GetStatusResponse,
        interrupted: bool,
    ) -> Self {
        let tally = Tally::new();
        Self { args, server, interrupted, tally, cpu: Duration::ZERO, busiest: 0.0, seconds: 0.0 }
    }

    /// Adds what a thread did.
    pub(super) fn add(&mut self, load: &Load) {
        self.tally.add(&load.tally);
        self.cpu += load.cpu;
        let share = load.cpu.as_secs_f64() / load.wall.as_secs_f64().max(1e-9);
        self.busiest = self.busiest.max(share);
    }

    /// All was added; requests counted from that time on.
    pub(super) fn end(&mut self, counted_from: Duration) {
        self.seconds = self.tally.last.saturating_sub(counted_from).as_secs_f64();
    }

    /// Whether all was answered.
    pub(super) fn is_clean(&self) -> bool {
        self.tally.all_errors() == 0 && self.tally.lost.is_empty() && self.tally.late == 0
    }

    #[allow(clippy::cast_precision_loss, reason = "a rate, to be read")]
    fn a_second(&self, count: u64) -> f64 {
        if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 }
    }

    fn is_saturated(&self) -> bool {
        self.busiest >= SATURATED
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            print::line(&self.json().to_string())
        } else {
            print::line(self.text().trim_end())
        }
    }

    /// The reasons that were given, the allowing ones first, and how often.
    fn reasons(&self) -> impl Iterator<Item = (String, u64)> {
        (0..).zip(self.tally.reasons).filter(|(_, count)| *count > 0).map(|(number, count)| {
            let known = pb::Reason::try_from(number).map(explain::name);
            (known.map_or_else(|_| number.to_string(), str::to_owned), count)
        })
    }

    /// How many were allowed.
    fn allowed(&self) -> u64 {
        // The contract's promise: these reasons allow, all others deny.
        self.tally.reasons.iter().take(10).sum()
    }

    fn json(&self) -> Value {
        let (args, tally) = (self.args, &self.tally);
        let reasons: Map<String, Value> =
            self.reasons().map(|(name, count)| (name, json!(count))).collect();
        json!({
            "call": args.call.name(),
            "loop": if args.rate.is_some() { "open" } else { "closed" },
            "connections": args.connections,
            "in_flight": args.in_flight(),
            "batch": args.batch(),
            "rate_per_second": args.rate,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "requests": tally.requests,
            "checks": tally.checks(),
            "errors": tally.all_errors(),
            "requests_per_second": self.a_second(tally.requests),
            "checks_per_second": self.a_second(tally.checks()),
            "latency_us": tally.latency.json(),
            "service_time_us": tally.service.json(),
            "allowed": self.allowed(),
            "denied": tally.checks() - self.allowed(),
            "reasons": reasons,
            "errors_by_code": by_code(&tally.errors),
            "not_sent": tally.late,
            "connections_lost": tally.all_lost(),
            "connections_lost_by_code": by_code(&tally.lost),
            "client": {
                "threads": args.threads(),
                "cpu_seconds": self.cpu.as_secs_f64(),
                "busiest_thread_cpu_share": self.busiest,
                "saturated": self.is_saturated(),
            },
            "server": {
                "addr": args.client.addr().to_string(),
                "version": self.server.version,
                "pairs": self.server.pairs,
            },
        })
    }

    fn text(&self) -> String {
        let (args, tally) = (self.args, &self.tally);
        let mut text = String::new();
        let connections = match args.connections {
            1 => "1 connection".to_owned(),
            more => format!("{more} connections"),
        };
        let how = match args.rate {
            Some(rate) => format!("{rate} requests a second"),
            None => "closed loop".to_owned(),
        };
        let batch =
            if args.call.is_batched() { format!(" of {}", args.batch()) } else { String::new() };
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line(format!(
            "{}{batch}, {how}, {connections} with up to {} in flight, {:.1} s{}",
            args.call.name(),
            args.in_flight(),
            self.seconds,
            if self.interrupted { ", interrupted" } else { "" },
        ));
        line(self.counted("requests", tally.requests));
        line(self.counted("checks", tally.checks()));
        let errors = HumanCount(tally.all_errors()).to_string();
        line(
            format!("{:<22}{errors:>14}  {}", "errors", listed(&tally.errors))
                .trim_end()
                .to_owned(),
        );
        if !tally.lost.is_empty() {
            line(format!(
                "{:<22}{:>14}  {}",
                "lost for good",
                tally.all_lost(),
                listed(&tally.lost)
            ));
        }
        if tally.late > 0 {
            let late = HumanCount(tally.late).to_string();
            line(format!("{:<22}{late:>14}  for want of time: the rate is too high", "not sent"));
        }
        line(format!("\n{}", latencies::head("latency, µs")));
        if args.rate.is_some() {
            line(tally.latency.row("from due to answer"));
            line(tally.service.row("from sent to answer"));
        } else {
            line(tally.latency.row(""));
        }
        for (place, (name, count)) in (0..).zip(self.reasons()) {
            if place == 0 {
                line(String::new());
            }
            line(self.counted(&name.to_lowercase(), count));
        }
        line(self.client());
        text
    }

    fn counted(&self, what: &str, count: u64) -> String {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate: it is positive, and its fraction does not matter"
        )]
        let rate = self.a_second(count).round() as u64;
        let (count, rate) = (HumanCount(count).to_string(), HumanCount(rate).to_string());
        format!("{what:<22}{count:>14}{rate:>14} a second")
    }

    /// Whose figures they are.
    fn client(&self) -> String {
        let share = (self.busiest * 100.0).round();
        if self.is_saturated() {
            format!(
                "\nthis client was busy for {share} % of the time: the figures are its own, not the \
                 server's;\ngive it more --connections and --threads, CPUs of its own, or less --rate"
            )
        } else {
            format!("\nthe client's busiest thread was busy for {share} % of the time")
        }
    }
}

fn by_code(counts: &BTreeMap<i32, u64>) -> Value {
    let named = counts.iter().map(|(code, count)| (code_name(*code), json!(count)));
    Value::Object(named.collect())
}

fn listed(counts: &BTreeMap<i32, u64>) -> String {
    let each =
        counts.iter().map(|(code, count)| format!("{} {}", code_name(*code), HumanCount(*count)));
    each.collect::<Vec<_>>().join(", ")
}

/// A code's name, as the documentation of gRPC has it.
fn code_name(code: i32) -> String {
    let mut name = String::new();
    for letter in format!("{:?}", Code::from_i32(code)).chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_names_that_grpc_gives_them() {
        for (code, name) in
            [(4, "DEADLINE_EXCEEDED"), (14, "UNAVAILABLE"), (0, "OK"), (99, "UNKNOWN")]
        {
            assert_eq!(code_name(code), name);
        }
    }
}
