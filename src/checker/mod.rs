//! The checker: looks a pair up in the table and decides by the policy and both clocks.

mod batch;
mod error;
mod evaluation;
mod filter;
mod status;
mod template;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use self::batch::{Batch, BatchItem, ParseCache, Parsing, TemplateCache, TemplateItem};
use crate::decision_log::{DecisionLog, DecisionRecord};
use crate::metrics::Metrics;
use crate::table::{Freshness, Pair, Table, Tables, UnreadablePair, Validity};
use consentd_core::Violation;
use consentd_core::country_list::CountryList;
use consentd_core::decision::{Decision, Form, Policy, Reason};
use consentd_core::id::{BusinessId, Key};
use consentd_core::record::Revision;
use consentd_core::scope::{Category, Class};
use consentd_core::standing::Facts;
use consentd_os::clock::Moment;

pub use self::error::{CheckError, RevisionTimeout};
use self::evaluation::{BatchEvaluations, Evaluation};
pub use self::filter::{Campaign, FilterResult};
pub use self::status::{PartitionStatus, TablePhase, TableStatus};
use self::template::parse_template;
pub use self::template::{TemplateName, template_form};
pub use self::waiting::MAX_REVISION_WAIT;
pub use crate::table::PairSummary;

/// An unvalidated check.
#[derive(Clone, Copy, Debug)]
pub struct CheckRequest<'a> {
    /// The user to be messaged.
    pub user_id: &'a str,
    /// The business that would send.
    pub business_id: &'a str,
    /// The category of the message.
    pub category: &'a str,
    /// The form of the message.
    pub form: Result<Form, InvalidForm>,
    /// The revision that the table must hold for the message to be allowed; 0 for any.
    pub min_revision: Revision,
    /// The template that the message will be, if it is known.
    pub template: Option<TemplateName<'a>>,
}

/// A form of a message that does not exist.
#[derive(Clone, Copy, Debug)]
pub struct InvalidForm {
    /// Which forms there are, in the caller's terms.
    pub description: &'static str,
}

impl From<InvalidForm> for Violation {
    fn from(invalid: InvalidForm) -> Self {
        Self::new("form", invalid.description)
    }
}

/// A valid check.
#[derive(Clone, Copy)]
struct ParsedRequest<'q> {
    pair: Pair,
    /// The pair under whose key versions before recorded the user, if they read the id otherwise.
    former: Option<Pair>,
    category: Category<'q>,
    form: Form,
    min_revision: Revision,
    /// Whether the user is in a country that the operator has blocked.
    is_blocked: bool,
}

/// A decision, and the state of the table that it rests on.
#[derive(Clone, Copy, Debug)]
pub struct CheckResult {
    /// The decision.
    pub decision: Decision,
    /// The last revision that the table had applied.
    pub revision: Revision,
    /// How long ago the table was proven to be current.
    pub staleness: Duration,
    /// The class that decided, if the template that the request names is known to be of a stricter one
    /// than was asked for.
    pub stricter: Option<Class>,
}

/// Answers checks; clones share the table.
#[derive(Clone)]
pub struct Checker {
    tables: Tables,
    policy: Policy,
    max_staleness: Duration,
    metrics: Arc<Metrics>,
    log: Option<DecisionLog>,
    /// The countries that get no marketing templates.
    blocked: Arc<CountryList>,
    /// When this checker was created: a table that is not loaded has been without a proof since then.
    created: Moment,
}

impl Checker {
    /// Makes a checker that denies once the table's last proof is older than `max_staleness`.
    #[must_use]
    pub fn new(
        tables: impl Into<Tables>,
        policy: Policy,
        max_staleness: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (tables, blocked, created) = (tables.into(), Arc::default(), Moment::now());
        Self { tables, policy, max_staleness, metrics, log: None, blocked, created }
    }

    /// Denies marketing templates to these countries.
    #[must_use]
    pub fn blocking(mut self, countries: CountryList) -> Self {
        self.blocked = Arc::new(countries);
        self
    }

    /// Sets the decision log.
    #[must_use]
    pub fn logging(mut self, log: Option<DecisionLog>) -> Self {
        self.log = log;
        self
    }

    /// Checks one request, counts the decision, and offers it to the decision log.
    ///
    /// # Errors
    ///
    /// [`CheckError`] if no decision was made.
    pub fn check(&self, request: &CheckRequest<'_>) -> Result<CheckResult, CheckError> {
        self.counting_not_held(self.check_recorded(request))
    }

    fn check_recorded(&self, request: &CheckRequest<'_>) -> Result<CheckResult, CheckError> {
        if let Some(template) = request.template {
            let (parsed, result, now) =
                self.check_template(request, template, Moment::about_now)?;
            self.metrics.decided(result.decision.reason);
            if let Some(log) = &self.log {
                log.log(&log_record(parsed.pair, parsed.category, parsed.form, &result, now));
            }
            return Ok(result);
        }
        let request = self.parse(request)?;
        let ParsedRequest { pair, former, category, form, .. } = request;
        let (facts, freshness) = self.facts(pair, former, category);
        let evaluation = Evaluation::new(self, freshness, Moment::about_now())?;
        let result = evaluation.result(&facts, request.parameters(request.category.class));
        self.metrics.decided(result.decision.reason);
        if let Some(log) = &self.log {
            log.log(&log_record(pair, category, form, &result, evaluation.now));
        }
        Ok(result)
    }

    /// Counts a question about a business that the table does not hold.
    fn counting_not_held<T>(&self, result: Result<T, CheckError>) -> Result<T, CheckError> {
        if let Err(CheckError::NotHeld(_)) = &result {
            self.metrics.not_held(1);
        }
        result
    }

    /// Whether a request is valid, and about a business that the table holds. No pair is looked up, and nothing
    /// is counted or logged.
    #[must_use]
    pub fn is_valid(&self, request: &CheckRequest<'_>) -> bool {
        match request.template {
            None => self.parse(request).is_ok(),
            Some(template) => parse_template(&self.parsing(), request, template).is_ok(),
        }
    }

    /// Checks one request without counting or logging the decision, for the status page: no message
    /// depends on it.
    ///
    /// # Errors
    ///
    /// [`CheckError`] if no decision was made.
    pub fn check_unrecorded(&self, request: &CheckRequest<'_>) -> Result<CheckResult, CheckError> {
        self.check_at(request, Moment::about_now)
    }

    /// Like [`check_unrecorded`](Self::check_unrecorded) with another clock, which is read after the
    /// table; for simulations.
    ///
    /// # Errors
    ///
    /// [`CheckError`] if no decision was made.
    pub fn check_at(
        &self,
        request: &CheckRequest<'_>,
        clock: impl Fn() -> Moment,
    ) -> Result<CheckResult, CheckError> {
        if let Some(template) = request.template {
            return self.check_template(request, template, clock).map(|(_, result, _)| result);
        }
        let request = self.parse(request)?;
        let (facts, freshness) = self.facts(request.pair, request.former, request.category);
        let evaluation = Evaluation::new(self, freshness, clock())?;
        Ok(evaluation.result(&facts, request.parameters(request.category.class)))
    }

    fn facts(
        &self,
        pair: Pair,
        former: Option<Pair>,
        category: Category<'_>,
    ) -> (Result<Facts, UnreadablePair>, Freshness) {
        match former {
            None => self.tables.facts(pair, category),
            Some(former) => self.tables.facts_joined(pair, former, category),
        }
    }

    fn parsing(&self) -> Parsing<'_> {
        Parsing { keys: self.tables.key_deriver(), blocked: &self.blocked }
    }

    fn parse<'q>(&self, request: &CheckRequest<'q>) -> Result<ParsedRequest<'q>, CheckError> {
        let business = BusinessId::parse(request.business_id);
        let category = Category::parse(request.category);
        ParsedRequest::new(&self.parsing(), request, business, category)
    }

    /// Checks a batch in order, with one reading of the clocks: callers must keep a batch so small that
    /// it takes a fraction of a millisecond. `each` gets the result of each request: an invalid one, one about a
    /// business that the table does not hold, or one whose partition was never loaded, fails alone.
    ///
    /// # Errors
    ///
    /// [`CheckError::NotReady`] if none of them can be decided because nothing was loaded.
    pub fn check_many<'q>(
        &self,
        requests: impl ExactSizeIterator<Item = CheckRequest<'q>>,
        each: impl FnMut(Result<CheckResult, CheckError>),
    ) -> Result<(), CheckError> {
        self.check_many_at(requests, Moment::about_now, each)
    }

    /// Like [`check_many`](Self::check_many) with another clock, which is read after the tables; for simulations.
    ///
    /// # Errors
    ///
    /// As those of [`check_many`](Self::check_many).
    pub fn check_many_at<'q>(
        &self,
        requests: impl ExactSizeIterator<Item = CheckRequest<'q>>,
        clock: impl Fn() -> Moment,
        each: impl FnMut(Result<CheckResult, CheckError>),
    ) -> Result<(), CheckError> {
        let parsing = self.parsing();
        let mut cache = ParseCache::default();
        let mut templates = TemplateCache::default();
        let mut batch = Batch::with_capacity(requests.len());
        for request in requests {
            if let Some(template) = request.template {
                match templates.parse(self, &parsing, &request, template, &clock) {
                    Ok((parsed, known)) => batch.push_template(&parsed, &known),
                    Err(error) => batch.push_invalid(error),
                }
                continue;
            }
            match cache.parse(&parsing, &request) {
                Ok(parsed) => batch.push(&parsed),
                Err(error) => batch.push_invalid(error),
            }
        }
        let is_other = |item: &&Result<_, _>| matches!(item, Err(CheckError::NotHeld(_)));
        let others = batch.requests.iter().filter(is_other).count();
        self.metrics.not_held(u64::try_from(others).unwrap_or(u64::MAX));
        self.check_batch(batch, &clock, each).map(|_| ())
    }

    /// Looks all pairs of a batch up, reads the clocks once, and decides.
    ///
    /// # Errors
    ///
    /// As those of [`check_many`](Self::check_many).
    fn check_batch<E: From<CheckError>>(
        &self,
        batch: Batch<'_, E>,
        clock: impl Fn() -> Moment,
        mut each: impl FnMut(Result<CheckResult, E>),
    ) -> Result<Duration, CheckError> {
        let Batch { requests, pairs, categories, former, templates, known } = batch;
        let mut facts = Vec::with_capacity(pairs.len());
        let mut freshness = self.tables.facts_batch(&pairs, &categories, &mut facts);
        for (place, former) in former {
            if let (Some(facts), Some(category)) = (facts.get_mut(place), categories.get(place)) {
                let (also, other) = self.tables.facts(former, *category);
                *facts = facts.and_then(|facts| also.map(|also| facts.joined(also)));
                freshness.join(place, other);
            }
        }
        for TemplateItem { place, former, asked, is_readable, at } in &templates {
            let (Some(facts), Some(pair)) = (facts.get_mut(*place), pairs.get(*place)) else {
                continue;
            };
            let (also, later) = self.facts(*pair, *former, *asked);
            *facts = also.and_then(|asked| facts.map(|facts| facts.denied_as(&asked, *at)));
            if !is_readable {
                *facts = Err(UnreadablePair);
            }
            freshness.join(*place, later);
        }
        // What is known of templates was looked up before, and is as current as it was then.
        for (place, known) in known {
            freshness.rest_on(place, known);
        }
        let evaluations = BatchEvaluations::new(self, &freshness, clock())?;
        let mut counts = [0_u64; Reason::ALL.len()];
        let mut facts = facts.iter();
        // Logged is what was asked for, and in addition what decided.
        let mut asked_categories = categories;
        for TemplateItem { place, asked, .. } in &templates {
            if let Some(slot) = asked_categories.get_mut(*place) {
                *slot = *asked;
            }
        }
        let mut looked_up = pairs.iter().zip(&asked_categories);
        let mut places = 0..;
        for request in requests {
            each(request.and_then(|BatchItem { asked, stricter }| {
                let facts = facts.next().unwrap_or(&Err(UnreadablePair));
                let looked_up = looked_up.next();
                let evaluation = evaluations.at(places.next().unwrap_or(usize::MAX))?;
                let result = CheckResult { stricter, ..evaluation.result(facts, asked) };
                // `Reason::ALL` is in the order of their declaration.
                if let Some(count) = counts.get_mut(result.decision.reason as usize) {
                    *count += 1;
                }
                if let Some(log) = &self.log
                    && let Some((pair, category)) = looked_up
                {
                    log.log(&log_record(*pair, *category, asked.form, &result, evaluation.now));
                }
                Ok(result)
            }));
        }
        self.metrics.decided_many(&counts);
        Ok(evaluations.staleness())
    }

    /// All that the table holds of a pair.
    ///
    /// # Errors
    ///
    /// [`CheckError`] if an id is invalid, or the table is not valid.
    pub fn summary(&self, user_id: &str, business_id: &str) -> Result<KnownPair, CheckError> {
        self.counting_not_held(self.known_pair(user_id, business_id))
    }

    fn known_pair(&self, user_id: &str, business_id: &str) -> Result<KnownPair, CheckError> {
        let keys = self.tables.key_deriver();
        let (pair, former) = keys.parse(user_id, business_id)?;
        let now = Moment::now();
        let freshness = self.tables.freshness(pair);
        let freshness =
            former.map_or(freshness, |pair| freshness.joined(self.tables.freshness(pair)));
        let clock = freshness.clock(now);
        let (summary, freshness) = self.tables.summary(pair, former, clock.latest);
        match freshness.validity {
            Validity::Valid => {}
            Validity::Loading => return Err(CheckError::NotReady),
            Validity::Invalid => return Err(CheckError::Reloading),
        }
        // An unreadable record denies everything, as a suppression does.
        let unreadable = |_| PairSummary { suppressed: true, ..PairSummary::default() };
        let summary = summary.unwrap_or_else(unreadable);
        let (revision, staleness) = (freshness.revision, freshness.staleness(Moment::now()));
        Ok(KnownPair { summary, key: pair.key(), revision, staleness })
    }

    /// Whether the table was ever loaded, with every partition that was followed at the start. It stays true: a
    /// fault of the ledger must not take the sidecars of all senders out of service, and every answer reports it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.tables.is_ready()
    }

    /// Whether the table was proven to be current within the maximum staleness, with every partition.
    #[must_use]
    pub fn is_live(&self) -> bool {
        // The clock is read after each table.
        let is_fresh = |table: &Table| self.is_fresh(table.freshness(), Moment::now());
        self.tables.is_ready() && self.tables.every(is_fresh)
    }

    /// Whether the partitions that a business's pairs are in were proven to be current within the maximum staleness.
    #[must_use]
    pub fn is_live_for(&self, business: BusinessId<'_>) -> bool {
        self.tables.every_of(business, |table| self.is_fresh(table.freshness(), Moment::now()))
    }

    fn is_fresh(&self, freshness: Freshness, now: Moment) -> bool {
        freshness.validity == Validity::Valid && freshness.staleness(now) <= self.max_staleness
    }

    /// Whether the table holds a business, for a question that looks no pair up; counted if not.
    ///
    /// # Errors
    ///
    /// [`CheckError::NotHeld`].
    pub fn ensure_held(&self, business: BusinessId<'_>) -> Result<(), CheckError> {
        let held = self.tables.key_deriver().at(business).map(|_| ());
        self.counting_not_held(held.map_err(CheckError::from))
    }

    /// The last revision that the table has applied of each partition; 0 of those that are not followed.
    #[must_use]
    pub fn revisions(&self) -> Vec<Revision> {
        self.tables.revisions()
    }

    /// The longest staleness at which checks are still decided by consent.
    #[must_use]
    pub fn max_staleness(&self) -> Duration {
        self.max_staleness
    }
}

/// What the table holds of a pair.
#[derive(Debug)]
pub struct KnownPair {
    /// Its last inbound time, opt-ins, opt-outs and marks.
    pub summary: PairSummary,
    /// Its key in the ledger, by which the decision log names it.
    pub key: Key,
    /// The revision that this rests on.
    pub revision: Revision,
    /// How long ago the table was proven to be current.
    pub staleness: Duration,
}

/// The decision log's record of a result.
fn log_record<'q>(
    pair: Pair,
    category: Category<'q>,
    form: Form,
    result: &CheckResult,
    now: Moment,
) -> DecisionRecord<'q> {
    let CheckResult { decision, revision, staleness, stricter } = *result;
    let (key, reason) = (pair.key(), decision.reason);
    DecisionRecord { key, category, form, reason, revision, staleness, now, stricter }
}
