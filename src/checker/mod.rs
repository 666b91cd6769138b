//! What every reader calls: the table, the policy and the clocks make a decision.

mod batch;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use self::batch::{Batch, ParseCache};
use crate::decision_log::{DecisionLog, DecisionRecord};
use crate::metrics::{Metrics, TableGauges};
use crate::table::{Freshness, Pair, Table, UnreadablePair, Validity};
use consentd_core::Violation;
use consentd_core::decision::{Decision, Form, Policy, Proof, Reason, decide};
use consentd_core::facts::Facts;
use consentd_core::id::{BusinessId, Key, UserId};
use consentd_core::record::Revision;
use consentd_core::scope::{Category, Class};
use consentd_core::time::{Clock, Timestamp, clock_offset_warning};
use consentd_os::clock::{self, Moment};

pub use crate::table::PairSummary;

/// The longest that a check waits for a revision, whatever its deadline.
pub const MAX_WAIT: Duration = Duration::from_secs(5);

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct CheckRequest<'a> {
    /// The user to be messaged.
    pub user_id: &'a str,
    /// The business that would send.
    pub business_id: &'a str,
    /// What the message is about.
    pub category: &'a str,
    /// How it is written.
    pub form: Form,
}

/// What the messages to a campaign's recipients have in common.
#[derive(Clone, Copy, Debug)]
pub struct Campaign<'a> {
    /// The business that would send.
    pub business: BusinessId<'a>,
    /// What the messages are about.
    pub category: Category<'a>,
    /// How they are written.
    pub form: Form,
}

/// A decision, and what it rests on.
#[derive(Clone, Copy, Debug)]
pub struct CheckResult {
    /// The decision.
    pub decision: Decision,
    /// The revision that it rests on.
    pub revision: Revision,
    /// How long ago the table was proven to be current.
    pub staleness: Duration,
}

/// Why no decision was made. A client that gets one must not send.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CheckError {
    /// The question is malformed.
    #[error("the request is not valid")]
    Invalid(Vec<Violation>),
    /// The table has not been loaded yet.
    #[error("the table has not been loaded yet")]
    NotReady,
}

/// A revision that did not arrive in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("revision {wanted} did not arrive in time; the table holds {applied}")]
pub struct RevisionTimeout {
    /// The revision that was waited for.
    pub wanted: Revision,
    /// What the table held.
    pub applied: Revision,
}

/// What the follower is doing, as a whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Reading the first snapshot.
    Loading,
    /// Current within the bound.
    Live,
    /// Not proven within the bound.
    Stale,
    /// Known to be wrong.
    Invalid,
}

/// How current the table is.
#[derive(Clone, Debug)]
pub struct Status {
    /// What the follower is doing.
    pub phase: Phase,
    /// How long ago the table was proven to be current; zero while loading.
    pub staleness: Duration,
    /// The last applied revision.
    pub revision: Revision,
    /// How many pairs the table holds.
    pub pairs: usize,
    /// What holds the phase where it is; empty when live.
    pub cause: String,
    /// What the ledger's clock says; this machine's, while loading.
    pub now: Timestamp,
    /// What an operator should mend about the ledger, or about the clocks.
    pub warnings: Arc<[String]>,
    /// How many pairs are denied by what the table remembers alone.
    pub remembered: u64,
}

/// Answers checks; clones share the table.
#[derive(Clone)]
pub struct Checker {
    table: Table,
    policy: Policy,
    max_staleness: Duration,
    metrics: Arc<Metrics>,
    log: Option<DecisionLog>,
}

impl Checker {
    /// A checker that denies once the table's last proof is older than `bound`.
    #[must_use]
    pub fn new(
        table: Table,
        policy: Policy,
        max_staleness: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { table, policy, max_staleness, metrics, log: None }
    }

    /// Logs what it decides from now on.
    #[must_use]
    pub fn logging(mut self, log: Option<DecisionLog>) -> Self {
        self.log = log;
        self
    }

    /// Answers a question from memory.
    ///
    /// # Errors
    ///
    /// [`CheckError`] where no decision was made.
    pub fn check(&self, question: &CheckRequest<'_>) -> Result<CheckResult, CheckError> {
        let read = ParseCache::default().read(&self.table.key_deriver(), question);
        let (pair, category) = read.map_err(CheckError::Invalid)?;
        let (answer, now) = self.decide_one(pair, category, question.form, Moment::about_now)?;
        self.metrics.decided(answer.decision.reason);
        if let Some(log) = &self.log {
            log.log(&decided(pair, category, question.form, &answer, now));
        }
        Ok(answer)
    }

    /// Whether a question has an answer: nothing is looked up, counted or logged.
    #[must_use]
    pub fn is_valid(&self, question: &CheckRequest<'_>) -> bool {
        ParseCache::default().read(&self.table.key_deriver(), question).is_ok()
    }

    /// The same answer for a person who wants to know: it is neither counted nor logged as a
    /// decision, for no message hangs on it.
    ///
    /// # Errors
    ///
    /// [`CheckError`] where no decision was made.
    pub fn check_unrecorded(&self, question: &CheckRequest<'_>) -> Result<CheckResult, CheckError> {
        // The ledger's clock, which runs on the exact one of the two, decides to the millisecond.
        self.check_at(question, Moment::about_now)
    }

    /// The same by another clock, which is read after the table.
    ///
    /// # Errors
    ///
    /// [`CheckError`] where no decision was made.
    pub fn check_at(
        &self,
        question: &CheckRequest<'_>,
        clock: impl FnOnce() -> Moment,
    ) -> Result<CheckResult, CheckError> {
        let read = ParseCache::default().read(&self.table.key_deriver(), question);
        let (pair, category) = read.map_err(CheckError::Invalid)?;
        Ok(self.decide_one(pair, category, question.form, clock)?.0)
    }

    /// Looks one pair up, reads the clock, and decides; gives when that was, too.
    fn decide_one(
        &self,
        pair: Pair,
        category: Category<'_>,
        form: Form,
        clock: impl FnOnce() -> Moment,
    ) -> Result<(CheckResult, Moment), CheckError> {
        let (facts, freshness) = self.table.facts(pair, category);
        let evaluation = Evaluation::new(self, freshness, clock())?;
        Ok((evaluation.answer(&facts, category.class, form), evaluation.now))
    }

    /// Answers many questions, in their order, by one reading of the clocks: so give it no more of
    /// them than are answered in a fraction of a millisecond.
    ///
    /// # Errors
    ///
    /// [`CheckError::NotReady`]; what is wrong with a question is an answer.
    pub fn check_many<'q>(
        &self,
        questions: impl ExactSizeIterator<Item = CheckRequest<'q>>,
        each: impl FnMut(Result<CheckResult, Vec<Violation>>),
    ) -> Result<(), CheckError> {
        let keys = self.table.key_deriver();
        let (mut lately, mut wanted) =
            (ParseCache::default(), Batch::with_capacity(questions.len()));
        for question in questions {
            match lately.read(&keys, &question) {
                Ok((pair, category)) => wanted.ask(pair, category, question.form),
                Err(found) => wanted.refuse(found),
            }
        }
        self.decide_many(wanted, each).map(|_| ())
    }

    /// Decides one message to each of `users`, in their order, as [`check_many`](Self::check_many)
    /// does; nothing for one whose id is malformed. Gives the table's staleness.
    ///
    /// # Errors
    ///
    /// [`CheckError::NotReady`].
    pub fn filter<'q>(
        &self,
        campaign: &Campaign<'q>,
        users: impl ExactSizeIterator<Item = &'q str>,
        mut each: impl FnMut(Option<Reason>),
    ) -> Result<Duration, CheckError> {
        let keys = self.table.key_deriver();
        let Campaign { business, category, form } = *campaign;
        let mut wanted = Batch::with_capacity(users.len());
        for user in users {
            match UserId::parse(user) {
                Ok(user) => wanted.ask(keys.pair(&user, business), category, form),
                Err(_) => wanted.refuse(()),
            }
        }
        self.decide_many(wanted, |answer: Result<CheckResult, ()>| {
            each(answer.ok().map(|answer| answer.decision.reason));
        })
    }

    /// Looks all of them up, reads the clocks, and decides.
    fn decide_many<E>(
        &self,
        wanted: Batch<'_, E>,
        mut each: impl FnMut(Result<CheckResult, E>),
    ) -> Result<Duration, CheckError> {
        let Batch { asked, pairs, categories } = wanted;
        let mut facts = Vec::with_capacity(pairs.len());
        let freshness = self.table.facts_batch(&pairs, &categories, &mut facts);
        let evaluation = Evaluation::new(self, freshness, Moment::about_now())?;
        let mut counts = [0_u64; Reason::ALL.len()];
        let mut facts = facts.iter();
        let mut looked_up = pairs.iter().zip(&categories);
        for asked in asked {
            each(asked.map(|(class, form)| {
                let facts = facts.next().unwrap_or(&Err(UnreadablePair));
                let answer = evaluation.answer(facts, class, form);
                // `Reason::ALL` is in the order of their declaration.
                if let Some(count) = counts.get_mut(answer.decision.reason as usize) {
                    *count += 1;
                }
                if let Some(log) = &self.log
                    && let Some((pair, category)) = looked_up.next()
                {
                    log.log(&decided(*pair, *category, form, &answer, evaluation.now));
                }
                answer
            }));
        }
        self.metrics.decided_many(&counts);
        Ok(evaluation.staleness)
    }

    /// Waits until the table holds `revision`: until `deadline`, [`MAX_WAIT`] at the most, and not
    /// at all while the table is not live: such a check is denied as stale whatever arrives.
    ///
    /// # Errors
    ///
    /// [`RevisionTimeout`] where it did not arrive.
    pub async fn wait_for_revision(
        &self,
        revision: Revision,
        deadline: Option<Instant>,
    ) -> Result<(), RevisionTimeout> {
        let limit = Instant::now() + MAX_WAIT;
        let limit = deadline.map_or(limit, |deadline| deadline.min(limit));
        loop {
            let freshness = self.table.freshness();
            if freshness.revision >= revision {
                return Ok(());
            }
            let staleness = freshness.staleness(Moment::now());
            if freshness.validity != Validity::Valid || staleness > self.max_staleness {
                return Ok(());
            }
            // The table may go stale, or be found wrong, while we wait.
            let look_again = (self.max_staleness.saturating_sub(staleness))
                .clamp(Duration::from_millis(1), Duration::from_millis(100));
            tokio::select! {
                biased;
                () = self.table.wait_for_revision(revision) => return Ok(()),
                () = sleep_until(limit) => {
                    return Err(RevisionTimeout { wanted: revision, applied: freshness.revision });
                }
                () = tokio::time::sleep(look_again) => {}
            }
        }
    }

    /// All that the table holds of a pair, the revision that it rests on, and its staleness.
    ///
    /// # Errors
    ///
    /// [`CheckError`] where the ids are malformed, or nothing was loaded yet.
    pub fn summary(
        &self,
        user_id: &str,
        business_id: &str,
    ) -> Result<(PairSummary, Revision, Duration), CheckError> {
        let pair = self.table.pair(user_id, business_id).map_err(CheckError::Invalid)?;
        let (summary, freshness) = self.table.summary(pair, clock::wall());
        if freshness.validity == Validity::Loading {
            return Err(CheckError::NotReady);
        }
        // A record that cannot be read denies everything, which is what suppression says.
        let unreadable = |_| PairSummary { suppressed: true, ..PairSummary::default() };
        let summary = summary.unwrap_or_else(unreadable);
        Ok((summary, freshness.revision, freshness.staleness(Moment::now())))
    }

    /// The key that a pair has in the ledger, by which the decision log names it.
    ///
    /// # Errors
    ///
    /// [`CheckError::Invalid`] where the ids are malformed.
    pub fn key(&self, user_id: &str, business_id: &str) -> Result<Key, CheckError> {
        let pair = self.table.pair(user_id, business_id).map_err(CheckError::Invalid)?;
        Ok(pair.key())
    }

    /// Whether the table was ever loaded. It stays so: an upstream fault must not take every
    /// sender's sidecar out of service, and is told in every answer.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.table.freshness().validity != Validity::Loading
    }

    /// Whether the table is proven to be current, within the bound.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let freshness = self.table.freshness();
        let staleness = freshness.staleness(Moment::now());
        freshness.validity == Validity::Valid && staleness <= self.max_staleness
    }

    /// The last applied revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.table.freshness().revision
    }

    /// How current the table is.
    #[must_use]
    pub fn status(&self) -> Status {
        let freshness = self.table.freshness();
        let staleness = staleness_of(&freshness);
        let phase = match freshness.validity {
            Validity::Loading => Phase::Loading,
            Validity::Invalid => Phase::Invalid,
            Validity::Valid if staleness > self.max_staleness => Phase::Stale,
            Validity::Valid => Phase::Live,
        };
        let cause = match phase {
            Phase::Live => String::new(),
            _ => match self.table.cause() {
                cause if cause.is_empty() => {
                    let since = match staleness.as_secs() {
                        0 => Duration::from_millis(whole_millis(staleness)),
                        seconds => Duration::from_secs(seconds),
                    };
                    format!("no proof from the ledger for {}", humantime::format_duration(since))
                }
                cause => cause,
            },
        };
        let now = Moment::now();
        let wall = now.wall;
        let now = match freshness.validity {
            Validity::Loading => now.wall,
            Validity::Valid | Validity::Invalid => freshness.ledger_clock(now),
        };
        let (revision, pairs) = (freshness.revision, self.table.pairs());
        let (mut warnings, remembered) = (self.table.warnings(), self.table.retained_pairs());
        let offset = clock_offset_warning(wall, now);
        if let Some(warning) = offset {
            warnings = warnings.iter().cloned().chain([warning]).collect();
        }
        Status { phase, staleness, revision, pairs, cause, now, warnings, remembered }
    }

    /// The longest staleness at which checks are still answered.
    #[must_use]
    pub fn max_staleness(&self) -> Duration {
        self.max_staleness
    }

    /// What metrics show of the table.
    #[must_use]
    pub fn gauges(&self) -> TableGauges {
        let freshness = self.table.freshness();
        let now = Moment::now();
        let offset = freshness.ledger_clock(now).as_millis() - now.wall.as_millis();
        let loaded = freshness.validity != Validity::Loading;
        TableGauges {
            staleness: staleness_of(&freshness),
            revision: freshness.revision,
            pairs: self.table.pairs(),
            bytes: self.table.bytes(),
            clock_offset: if loaded { seconds(offset) } else { 0.0 },
            remembered: self.table.retained_pairs(),
        }
    }
}

/// What is logged of an answer.
fn decided<'q>(
    pair: Pair,
    category: Category<'q>,
    form: Form,
    answer: &CheckResult,
    now: Moment,
) -> DecisionRecord<'q> {
    let CheckResult { decision, revision, staleness } = *answer;
    let (key, reason) = (pair.key(), decision.reason);
    DecisionRecord { key, category, form, reason, revision, staleness, now }
}

/// What answers that were looked up together have in common.
struct Evaluation<'a> {
    now: Moment,
    policy: &'a Policy,
    clock: Clock,
    proof: Proof,
    revision: Revision,
    staleness: Duration,
}

impl<'a> Evaluation<'a> {
    fn new(checker: &'a Checker, freshness: Freshness, now: Moment) -> Result<Self, CheckError> {
        let staleness = freshness.staleness(now);
        let proof = match freshness.validity {
            Validity::Loading => return Err(CheckError::NotReady),
            Validity::Invalid => Proof::Invalid,
            Validity::Valid if staleness > checker.max_staleness => Proof::Late,
            Validity::Valid => Proof::Fresh,
        };
        let clock = Clock::of(now.wall, freshness.ledger_clock(now));
        let (policy, revision) = (&checker.policy, freshness.revision);
        Ok(Self { now, policy, clock, proof, revision, staleness })
    }

    fn answer(
        &self,
        facts: &Result<Facts, UnreadablePair>,
        class: Class,
        form: Form,
    ) -> CheckResult {
        let (facts, proof) = match facts {
            Ok(facts) => (facts, self.proof),
            Err(UnreadablePair) => (&Facts::NOTHING, Proof::Invalid),
        };
        let decision = decide(facts, class, form, self.policy, self.clock, proof);
        CheckResult { decision, revision: self.revision, staleness: self.staleness }
    }
}

/// How long ago the table was proven; zero before there was anything to prove.
fn staleness_of(freshness: &Freshness) -> Duration {
    match freshness.validity {
        Validity::Loading => Duration::ZERO,
        Validity::Valid | Validity::Invalid => freshness.staleness(Moment::now()),
    }
}

fn whole_millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(millis: i64) -> f64 {
    let magnitude = Duration::from_millis(millis.unsigned_abs()).as_secs_f64();
    if millis < 0 { -magnitude } else { magnitude }
}
