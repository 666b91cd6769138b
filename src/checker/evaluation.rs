//! Decisions by the facts of a look-up, the policy, the clocks, and how current the look-up was.

use std::time::Duration;

use super::batch::CheckParameters;
use super::{CheckError, CheckResult, Checker};
use crate::table::{BatchFreshness, Freshness, UnreadablePair, Validity};
use consentd_core::decision::{Policy, Proof, decide};
use consentd_core::record::Revision;
use consentd_core::standing::Facts;
use consentd_core::time::Clock;
use consentd_os::clock::Moment;

/// The evaluations of a batch.
pub(super) enum BatchEvaluations<'a> {
    /// One for all pairs, which are in one partition.
    Whole(Evaluation<'a>),
    /// One for each pair, by its place; an error where its table was never loaded.
    Each(Vec<Result<Evaluation<'a>, CheckError>>),
}

impl<'a> BatchEvaluations<'a> {
    /// `now` must have been read after the look-ups.
    ///
    /// # Errors
    ///
    /// [`CheckError::NotReady`] if none of the pairs can be decided about, because no table was ever loaded.
    pub(super) fn new(
        checker: &'a Checker,
        freshness: &BatchFreshness,
        now: Moment,
    ) -> Result<Self, CheckError> {
        match freshness {
            BatchFreshness::Whole(freshness) => {
                Evaluation::new(checker, *freshness, now).map(Self::Whole)
            }
            BatchFreshness::Each(each) => {
                let each = each.iter().map(|freshness| Evaluation::new(checker, *freshness, now));
                let each: Vec<_> = each.collect();
                match each.first() {
                    Some(Err(error)) if each.iter().all(Result::is_err) => Err(error.clone()),
                    _ => Ok(Self::Each(each)),
                }
            }
        }
    }

    /// The evaluation of the pair at a place.
    ///
    /// # Errors
    ///
    /// [`CheckError::NotReady`] if its table was never loaded.
    pub(super) fn at(&self, place: usize) -> Result<&Evaluation<'a>, CheckError> {
        match self {
            Self::Whole(evaluation) => Ok(evaluation),
            Self::Each(each) => {
                let found = each.get(place);
                found
                    .unwrap_or_else(|| unreachable!("pair {place} was looked up"))
                    .as_ref()
                    .map_err(Clone::clone)
            }
        }
    }

    /// How long ago the least current of the tables that were loaded was proven to be current.
    pub(super) fn staleness(&self) -> Duration {
        match self {
            Self::Whole(evaluation) => evaluation.staleness,
            Self::Each(each) => {
                let loaded = each.iter().flatten();
                loaded.map(|evaluation| evaluation.staleness).max().unwrap_or_default()
            }
        }
    }
}

/// What all decisions of one look-up share: the clocks, the policy and the freshness.
pub(super) struct Evaluation<'a> {
    pub(super) now: Moment,
    policy: &'a Policy,
    clock: Clock,
    proof: Proof,
    revision: Revision,
    pub(super) staleness: Duration,
}

impl<'a> Evaluation<'a> {
    /// `now` must have been read after the look-up.
    pub(super) fn new(
        checker: &'a Checker,
        freshness: Freshness,
        now: Moment,
    ) -> Result<Self, CheckError> {
        let staleness = freshness.staleness(now);
        let proof = match freshness.validity {
            Validity::Loading => return Err(CheckError::NotReady),
            Validity::Invalid => Proof::Invalid,
            Validity::Valid if staleness > checker.max_staleness => Proof::Late,
            Validity::Valid => Proof::Fresh,
        };
        let clock = freshness.clock(now);
        let (policy, revision) = (&checker.policy, freshness.revision);
        Ok(Self { now, policy, clock, proof, revision, staleness })
    }

    pub(super) fn result(
        &self,
        facts: &Result<Facts, UnreadablePair>,
        asked: CheckParameters,
    ) -> CheckResult {
        let CheckParameters { class, form, min_revision, is_barred } = asked;
        let (facts, proof) = match facts {
            // The table lacks an event that the caller knows of: for this check it is not valid.
            Ok(facts) if self.revision < min_revision => (facts, Proof::Invalid),
            Ok(facts) => (facts, self.proof),
            Err(UnreadablePair) => (&Facts::NOTHING, Proof::Invalid),
        };
        let barring;
        let policy = if is_barred {
            barring = Policy { bars_marketing_templates: true, ..*self.policy };
            &barring
        } else {
            self.policy
        };
        let decision = decide(facts, class, form, policy, self.clock, proof);
        let (revision, staleness) = (self.revision, self.staleness);
        CheckResult { decision, revision, staleness, stricter: None }
    }
}
