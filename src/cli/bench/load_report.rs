//! The report of `bench load`, for people and for scripts.

use std::collections::BTreeMap;

use consentd_bench::load::{Measurement, Settings};
use consentd_proto::code_name;
use indicatif::HumanCount;
use serde_json::{Map, Value, json};
use tonic::Code;

use super::latency_table;
use crate::cli::output;
use crate::grpc::pb;
use crate::net::socket::Address;

/// The share of a CPU from which on a busy sending thread limits the throughput.
const SATURATED_CPU_SHARE: f64 = 0.9;

pub(super) struct LoadReport<'a> {
    pub(super) addr: &'a Address,
    pub(super) batch: usize,
    pub(super) settings: &'a Settings,
    pub(super) measurement: &'a Measurement,
    pub(super) server: &'a pb::GetStatusResponse,
}

impl LoadReport<'_> {
    /// Whether all requests were sent and answered.
    pub(super) fn is_clean(&self) -> bool {
        let counters = &self.measurement.counters;
        counters.all_errors() == 0 && counters.lost_connections.is_empty() && counters.not_sent == 0
    }

    #[allow(clippy::cast_precision_loss, reason = "a rate, to be read")]
    fn per_second(&self, count: u64) -> f64 {
        let seconds = self.seconds();
        if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
    }

    fn seconds(&self) -> f64 {
        self.measurement.elapsed.as_secs_f64()
    }

    fn is_saturated(&self) -> bool {
        self.measurement.busiest_thread >= SATURATED_CPU_SHARE
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            output::line(&self.json().to_string())
        } else {
            output::line(self.text().trim_end())
        }
    }

    /// The reasons of the decisions and their counts, the allowing reasons first.
    fn reasons(&self) -> impl Iterator<Item = (String, u64)> {
        let counts = (0..).zip(self.measurement.counters.reasons);
        counts.filter(|(_, count)| *count > 0).map(|(number, count)| {
            let known = pb::Reason::try_from(number).map(output::reason_name);
            (known.map_or_else(|_| number.to_string(), str::to_owned), count)
        })
    }

    fn json(&self) -> Value {
        let (settings, counters) = (self.settings, &self.measurement.counters);
        let reasons: Map<String, Value> =
            self.reasons().map(|(name, count)| (name, json!(count))).collect();
        json!({
            "call": settings.workload.call().name(),
            "loop": if settings.rate.is_some() { "open" } else { "closed" },
            "connections": settings.connections,
            "in_flight": settings.in_flight,
            "batch": self.batch,
            "rate_per_second": settings.rate,
            "seconds": self.seconds(),
            "interrupted": self.measurement.interrupted,
            "requests": counters.requests,
            "checks": counters.checks(),
            "errors": counters.all_errors(),
            "requests_per_second": self.per_second(counters.requests),
            "checks_per_second": self.per_second(counters.checks()),
            "latency_us": latency_table::json(&counters.latency),
            "service_time_us": latency_table::json(&counters.service_time),
            "allowed": counters.allowed(),
            "denied": counters.checks() - counters.allowed(),
            "reasons": reasons,
            "errors_by_code": by_code(&counters.errors),
            "not_sent": counters.not_sent,
            "connections_lost": counters.all_lost_connections(),
            "connections_lost_by_code": by_code(&counters.lost_connections),
            "client": {
                "threads": settings.threads,
                "cpu_seconds": self.measurement.cpu.as_secs_f64(),
                "busiest_thread_cpu_share": self.measurement.busiest_thread,
                "saturated": self.is_saturated(),
            },
            "server": {
                "addr": self.addr.to_string(),
                "version": self.server.version,
                "pairs": self.server.pairs,
            },
        })
    }

    fn text(&self) -> String {
        let (settings, counters) = (self.settings, &self.measurement.counters);
        let mut text = String::new();
        let connections = match settings.connections {
            1 => "1 connection".to_owned(),
            more => format!("{more} connections"),
        };
        let how = match settings.rate {
            Some(rate) => format!("{rate} requests a second"),
            None => "closed loop".to_owned(),
        };
        let batch = if settings.workload.call().is_batched() {
            format!(" of {}", self.batch)
        } else {
            String::new()
        };
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line(format!(
            "{}{batch}, {how}, {connections} with up to {} in flight, {:.1} s{}",
            settings.workload.call().name(),
            settings.in_flight,
            self.seconds(),
            if self.measurement.interrupted { ", interrupted" } else { "" },
        ));
        line(self.counted("requests", counters.requests));
        line(self.counted("checks", counters.checks()));
        let errors = HumanCount(counters.all_errors()).to_string();
        line(
            format!("{:<22}{errors:>14}  {}", "errors", listed(&counters.errors))
                .trim_end()
                .to_owned(),
        );
        if !counters.lost_connections.is_empty() {
            line(format!(
                "{:<22}{:>14}  {}",
                "lost for good",
                counters.all_lost_connections(),
                listed(&counters.lost_connections)
            ));
        }
        if counters.not_sent > 0 {
            let late = HumanCount(counters.not_sent).to_string();
            line(format!("{:<22}{late:>14}  for want of time: the rate is too high", "not sent"));
        }
        line(format!("\n{}", latency_table::header("latency, µs")));
        if settings.rate.is_some() {
            line(latency_table::row("from due to answer", &counters.latency));
            line(latency_table::row("from sent to answer", &counters.service_time));
        } else {
            line(latency_table::row("", &counters.latency));
        }
        for (index, (name, count)) in (0..).zip(self.reasons()) {
            if index == 0 {
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
        let rate = self.per_second(count).round() as u64;
        let (count, rate) = (HumanCount(count).to_string(), HumanCount(rate).to_string());
        format!("{what:<22}{count:>14}{rate:>14} a second")
    }

    /// How busy the client was, and so whether it or the server was measured.
    fn client(&self) -> String {
        let share = (self.measurement.busiest_thread * 100.0).round();
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
    let named = counts.iter().map(|(code, count)| (name(*code).to_owned(), json!(count)));
    Value::Object(named.collect())
}

fn listed(counts: &BTreeMap<i32, u64>) -> String {
    let each = counts.iter().map(|(code, count)| format!("{} {}", name(*code), HumanCount(*count)));
    each.collect::<Vec<_>>().join(", ")
}

fn name(code: i32) -> &'static str {
    code_name(Code::from_i32(code))
}
