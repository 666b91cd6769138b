//! The status page, in one self-contained file.
//!
//! The served HTML contains all figures, so that the page works without JavaScript. Its script only
//! fetches the page again and replaces what has changed.

use askama::Template;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytesize::ByteSize;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

use super::Admin;
use super::check::{CheckOutcome, CheckSection};
use super::format::{float, grouped, in_percent, long, per_second, percent, short, whole};
use super::rate;
use crate::checker::TablePhase;
use crate::metrics::MetricsSummary;
use consentd_os::clock;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The parts that are the same in every page.
pub(super) struct Assets {
    style: &'static str,
    script: &'static str,
    /// A hash that differs between versions of the page.
    build: String,
    /// The content security policy: the page may only run its own script, on its own origin.
    policy: HeaderValue,
}

impl Assets {
    /// Computes the parts.
    pub(super) fn new() -> Self {
        let hash = |text: &str| format!("sha256-{}", STANDARD.encode(Sha256::digest(text)));
        let policy = format!(
            "default-src 'none'; style-src '{}'; script-src '{}'; img-src data:; \
             connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT),
        );
        let build = Sha256::new().chain_update(STYLE).chain_update(SCRIPT).finalize();
        Self {
            style: STYLE,
            script: SCRIPT,
            build: STANDARD.encode(build),
            policy: HeaderValue::try_from(policy)
                .unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'")),
        }
    }
}

/// The most held businesses that are named.
const MAX_BUSINESSES: usize = 20;

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    assets: &'a Assets,
    /// Whether the page reloads itself without JavaScript. Not while a form is being filled in.
    reloads: bool,
    version: &'static str,
    time: String,
    clock: String,
    phase: &'static PhaseDisplay,
    draining: bool,
    cause: String,
    warnings: Arc<[String]>,
    remembered: u64,
    /// The businesses that are held, if not all are; and of how many.
    businesses: Option<(String, usize)>,
    /// The partitions that are followed, if there are several, and how many of them are live.
    partitions: Option<(usize, usize)>,
    staleness: String,
    staleness_share: f64,
    bound: String,
    rate: String,
    rate_most: String,
    line: String,
    line_width: usize,
    line_height: usize,
    pairs: String,
    bytes: String,
    revision: String,
    uptime: String,
    decisions: [Group; 2],
    p50: String,
    p99: String,
    latency: Vec<Row>,
    records: Vec<(String, String)>,
    ledger: &'a str,
    connections: String,
    refused: String,
    clock_offset: String,
    check: Option<CheckSection>,
}

/// How a phase is displayed.
struct PhaseDisplay {
    word: &'static str,
    class: &'static str,
    symbol: &'static str,
    /// An SVG path of 24 by 24 units, so that phases differ by shape as well as by colour.
    drawing: &'static str,
    /// The colour of the icon in the browser's tab, URL-encoded.
    colour: &'static str,
    says: &'static str,
}

/// A tick in a circle.
pub(super) const YES: &str = "M12 2a10 10 0 1 0 0 20a10 10 0 1 0 0-20z\
                              M10.6 16.6l-4.2-4.2l1.6-1.6l2.6 2.6l5.6-5.6l1.6 1.6z";
/// A cross in an octagon.
pub(super) const NO: &str = "M7.9 2h8.2l5.9 5.9v8.2l-5.9 5.9h-8.2l-5.9-5.9v-8.2z\
                             M8.7 7.1l-1.6 1.6l3.3 3.3l-3.3 3.3l1.6 1.6l3.3-3.3l3.3 3.3l1.6-1.6\
                             l-3.3-3.3l3.3-3.3l-1.6-1.6l-3.3 3.3z";

const LOADING: PhaseDisplay = PhaseDisplay {
    word: "LOADING",
    class: "loading",
    symbol: "◌",
    drawing: "M12 2a10 10 0 1 0 0 20a10 10 0 1 0 0-20z\
              M5.5 10.5h3v3h-3zM10.5 10.5h3v3h-3zM15.5 10.5h3v3h-3z",
    colour: "%232c78c4",
    says: "The ledger is being read for the first time. Until then every check is answered with \
           an error, which means: do not send.",
};
const LIVE: PhaseDisplay = PhaseDisplay {
    word: "LIVE",
    class: "live",
    symbol: "●",
    drawing: YES,
    colour: "%231f9d5c",
    says: "Checks are answered from a table that is proven to be current.",
};
const STALE: PhaseDisplay = PhaseDisplay {
    word: "STALE",
    class: "stale",
    symbol: "▲",
    drawing: "M12 2l11 20h-22zM10.9 9h2.2v6.5h-2.2zM10.9 17h2.2v2.2h-2.2z",
    colour: "%23d18b00",
    says: "The table’s last proof is too old. Checks are denied as STALE, but for the classes \
           that --stale-allow names.",
};
const INVALID: PhaseDisplay = PhaseDisplay {
    word: "INVALID",
    class: "invalid",
    symbol: "✕",
    drawing: NO,
    colour: "%23cf2f45",
    says: "The table is known to be wrong. Every check is denied as STALE until it has been read again.",
};

struct Group {
    word: &'static str,
    class: &'static str,
    count: String,
    percent: String,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    none: bool,
    count: String,
    percent: String,
    /// The length of its bar, in percent.
    width: f64,
}

/// The page as a response, with its security headers.
pub(super) fn answer(
    admin: &Admin,
    status: StatusCode,
    reloads: bool,
    check: Option<CheckSection>,
) -> Response {
    match page(admin, reloads, check).render() {
        Ok(page) => {
            let headers = [
                (header::CONTENT_SECURITY_POLICY, admin.assets.policy.clone()),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
                (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
                (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
                // A stricter policy would make the browser omit the origin of a form's post.
                (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
                (
                    HeaderName::from_static("cross-origin-resource-policy"),
                    HeaderValue::from_static("same-origin"),
                ),
            ];
            (status, headers, Html(page)).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn page(admin: &Admin, reloads: bool, check: Option<CheckSection>) -> Page<'_> {
    let (status, gauges) = (admin.checker.status(), admin.checker.gauges());
    let (figures, rate) = (admin.metrics.summary(), admin.rate());
    let bound = admin.checker.max_staleness();
    let now = clock::wall().rfc3339_seconds();
    Page {
        assets: &admin.assets,
        reloads,
        version: env!("CARGO_PKG_VERSION"),
        clock: now.get(11..19).unwrap_or_default().to_owned(),
        time: now,
        phase: match status.phase {
            TablePhase::Loading => &LOADING,
            TablePhase::Live => &LIVE,
            TablePhase::Stale => &STALE,
            TablePhase::Invalid => &INVALID,
        },
        draining: admin.draining.is_cancelled(),
        cause: status.cause,
        warnings: status.warnings,
        remembered: status.remembered,
        businesses: status.businesses.ids().map(|ids| {
            let count = ids.len();
            (ids.take(MAX_BUSINESSES).collect::<Vec<_>>().join(", "), count)
        }),
        partitions: (!status.partitions.is_empty()).then(|| {
            let live = status.partitions.iter().filter(|one| one.phase == TablePhase::Live);
            (status.partitions.len(), live.count())
        }),
        staleness: match status.phase {
            TablePhase::Loading => "–".to_owned(),
            _ => short(status.staleness.as_secs_f64()),
        },
        staleness_share: percent(status.staleness.as_secs_f64(), bound.as_secs_f64()).min(100.0),
        bound: short(bound.as_secs_f64()),
        rate: rate.now.map_or_else(|| "–".to_owned(), per_second),
        rate_most: per_second(rate.most),
        line: rate.line,
        line_width: rate::WIDTH,
        line_height: rate::HEIGHT,
        pairs: grouped(whole(status.pairs)),
        bytes: ByteSize::b(whole(gauges.bytes)).display().iec().to_string(),
        revision: grouped(status.revision),
        uptime: long(clock::boot().saturating_sub(admin.started)),
        decisions: decisions(&figures),
        p50: format_quantile(0.5, &figures),
        p99: format_quantile(0.99, &figures),
        latency: latency(&figures),
        records: records(&figures),
        ledger: &admin.ledger,
        connections: grouped(figures.connections),
        refused: refused(&figures),
        clock_offset: offset(gauges.clock_offset),
        check,
    }
}

/// Decisions by reason, in two groups: allowed and denied.
fn decisions(figures: &MetricsSummary) -> [Group; 2] {
    let all: u64 = figures.decisions.iter().map(|(_, count)| count).sum();
    let share = |count: u64| percent(float(count), float(all));
    [(true, "Allowed", "allowed"), (false, "Denied", "denied")].map(|(allows, word, class)| {
        let of_this = figures.decisions.iter().filter(|(reason, _)| reason.allows() == allows);
        let count = of_this.clone().map(|(_, count)| count).sum();
        let rows = of_this.map(|(reason, count)| Row {
            name: reason.name().to_owned(),
            none: *count == 0,
            count: grouped(*count),
            percent: in_percent(share(*count)),
            width: share(*count),
        });
        let rows = rows.collect();
        Group { word, class, count: grouped(count), percent: in_percent(share(count)), rows }
    })
}

/// The number of checks by latency bucket. The last bucket has no upper bound.
fn latency(figures: &MetricsSummary) -> Vec<Row> {
    let mut before = 0;
    let mut counts = Vec::new();
    for (bound, up_to) in &figures.check_buckets {
        counts.push((short(*bound), up_to.saturating_sub(before)));
        before = *up_to;
    }
    counts.push(("longer".to_owned(), figures.checks.saturating_sub(before)));
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let row = |(name, count)| Row {
        name,
        none: count == 0,
        count: grouped(count),
        percent: String::new(),
        width: percent(float(count), float(most)),
    };
    counts.into_iter().map(row).collect()
}

fn format_quantile(q: f64, figures: &MetricsSummary) -> String {
    match quantile(q, &figures.check_buckets, figures.checks) {
        None => "–".to_owned(),
        Some(Quantile::About(seconds)) => format!("≈ {}", short(seconds)),
        Some(Quantile::Above(seconds)) => format!("> {}", short(seconds)),
    }
}

#[derive(Debug, PartialEq)]
enum Quantile {
    About(f64),
    Above(f64),
}

/// Estimates a quantile like Prometheus: by linear interpolation inside its bucket.
fn quantile(q: f64, buckets: &[(f64, u64)], count: u64) -> Option<Quantile> {
    if count == 0 {
        return None;
    }
    let rank = q * float(count);
    let mut lower = (0.0, 0);
    for (bound, up_to) in buckets {
        if float(*up_to) >= rank {
            let inside = (rank - float(lower.1)) / float(up_to.saturating_sub(lower.1)).max(1.0);
            return Some(Quantile::About(lower.0 + (bound - lower.0) * inside));
        }
        lower = (*bound, *up_to);
    }
    Some(Quantile::Above(lower.0))
}

fn records(figures: &MetricsSummary) -> Vec<(String, String)> {
    const USUAL: [&str; 4] = ["applied", "unchanged", "refused", "failed"];
    let unusual = figures.records.iter().map(|(outcome, _)| outcome.as_str());
    let unusual = unusual.filter(|outcome| !USUAL.contains(outcome));
    let count = |outcome: &str| {
        figures.records.iter().find(|(name, _)| name == outcome).map_or(0, |(_, count)| *count)
    };
    let told = |outcome: &str| (outcome.to_owned(), grouped(count(outcome)));
    USUAL.into_iter().chain(unusual).map(told).collect()
}

fn refused(figures: &MetricsSummary) -> String {
    if figures.refused.is_empty() {
        return "none".to_owned();
    }
    let told = |(limit, count): &(String, u64)| format!("{} by {limit}", grouped(*count));
    figures.refused.iter().map(told).collect::<Vec<_>>().join(", ")
}

fn offset(seconds: f64) -> String {
    match seconds {
        near if near.abs() < 0.1 => "within 0.1 s of this machine’s".to_owned(),
        ahead if ahead > 0.0 => format!("{} ahead of this machine’s", short(ahead)),
        behind => format!("{} behind this machine’s", short(-behind)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::budget::{Budget, BudgetSizes, MIN_BYTES, MIN_CONNECTION_BYTES};
    use crate::checker::Checker;
    use crate::metrics::Metrics;
    use crate::table;
    use consentd_core::decision::Policy;
    use consentd_core::time::Timestamp;
    use consentd_os::clock::Moment;

    #[test]
    fn page_shows_each_phase_in_words_in_the_title_and_with_its_cause() {
        let (table, mut writer) = table::new();
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        let policy = Policy::default();
        let bound = Duration::from_secs(5);
        let checker = Checker::new(table, policy, bound, Arc::clone(&metrics));
        let sizes =
            BudgetSizes { bytes: MIN_BYTES, connection_bytes: MIN_CONNECTION_BYTES, calls: 1 };
        let budget = Budget::new(sizes, Arc::clone(&metrics));
        let admin = Admin {
            checker,
            budget,
            metrics,
            ledger: "file:<b>&amp;.redb".into(),
            checks: false,
            draining: CancellationToken::new(),
            assets: Arc::new(Assets::new()),
            samples: Arc::default(),
            started: clock::boot(),
        };
        let shows = |parts: &[&str]| {
            let page = page(&admin, true, None).render().unwrap();
            for part in parts {
                assert!(page.contains(part), "no {part:?} in {page}");
            }
            assert!(page.contains("<code>file:&#60;b&#62;&#38;amp;.redb</code>"), "{page}");
        };
        let cause = "Cause: reading the ledger for the first time";
        shows(&["<title>◌ loading –", "<strong>LOADING</strong>", cause]);
        let long_ago = Moment { boot: Duration::ZERO, wall: Timestamp::MIN };
        writer.set_proof(long_ago, clock::wall());
        writer.validate();
        writer.set_cause("");
        shows(&["<title>▲ stale –", "<strong>STALE</strong>", "Cause: no proof from the ledger"]);
        writer.set_proof(Moment::now(), clock::wall());
        shows(&["<title>● live –", "<strong>LIVE</strong>", "proven to be current.</p>"]);
        writer.invalidate();
        writer.set_cause("<script>");
        let cause = "Cause: &#60;script&#62;";
        shows(&["<title>✕ invalid –", "<strong>INVALID</strong>", cause]);
        admin.draining.cancel();
        shows(&["<strong>INVALID, DRAINING</strong>", "It was told to end"]);
    }

    #[test]
    fn quantiles_are_those_of_the_buckets() {
        let buckets = [(1.0, 10), (2.0, 30), (4.0, 40)];
        assert_eq!(quantile(0.5, &buckets, 40), Some(Quantile::About(1.5)));
        assert_eq!(quantile(1.0, &buckets, 40), Some(Quantile::About(4.0)));
        assert_eq!(quantile(0.99, &buckets, 50), Some(Quantile::Above(4.0)));
        assert_eq!(quantile(0.5, &buckets, 0), None);
        assert_eq!(quantile(0.1, &[(1.0, 0), (2.0, 10)], 10), Some(Quantile::About(1.1)));
    }
}
