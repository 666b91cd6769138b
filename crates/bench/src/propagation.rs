//! Measures how long a recorded event takes until other sidecars enforce it.
//!
//! Suppressions and their lifting, in turn, are recorded at one sidecar for the users of a business
//! that exists for this alone. The observed sidecars are asked about each user again and again,
//! until their answers reflect the event.

use std::time::Duration;

use consentd_os::clock;
use consentd_proto::v1 as pb;
use futures_util::StreamExt as _;
use futures_util::future::{join, join_all};
use futures_util::stream::FuturesUnordered;
use pb::consent_event::What;
use pb::consent_service_client::ConsentServiceClient;
use pb::record_service_client::RecordServiceClient;
use tokio::time::{MissedTickBehavior, interval};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::Progress;
use crate::latencies::Latencies;

/// The business whose users are written about.
pub const BUSINESS: &str = "consentd-bench";

/// The time between two questions to a sidecar that answers with an error.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// The `grpc-timeout` header has eight digits, so longer timeouts are cut off here.
const MAX_HEADER_TIMEOUT: Duration = Duration::from_hours(24 * 365);

/// What is recorded, and how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The number of users, at least 1, who are written about in turn.
    pub users: u32,
    /// Events a second, above 0.
    pub rate: f64,
    /// For how long events are recorded.
    pub duration: Duration,
    /// How long to wait for a response, and for a sidecar to enforce an event.
    pub timeout: Duration,
    /// A prefix for request ids that no other run has used.
    pub run_id: String,
}

/// The sidecar that records.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// Its record service.
    pub client: RecordServiceClient<Channel>,
    /// The value of the `authorization` header, if it wants one.
    pub authorization: Option<MetadataValue<Ascii>>,
}

/// What was observed at one sidecar.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// From when an event was sent to be recorded until this sidecar enforced it.
    pub since_sent: Latencies,
    /// From when an event was acknowledged until this sidecar enforced it; 0 if it did before.
    pub since_acknowledged: Latencies,
    /// The latency of one question, which is the resolution of the measurement.
    pub question: Latencies,
    /// How often this sidecar enforced an event before it was acknowledged.
    pub before_acknowledged: u64,
    /// How often this sidecar did not enforce an event within the timeout.
    pub missed: u64,
}

/// The result of a measurement.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// What was observed at each sidecar, in the order in which they were given.
    pub observations: Vec<Observation>,
    /// The latency of recordings.
    pub recording: Latencies,
    /// Events that were not recorded, or had no effect.
    pub failed: u64,
    /// Events that were skipped because the previous one of their user was in flight.
    pub skipped: u64,
}

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum PropagationError {
    /// The recorder rejected the first event.
    #[error("the first event was not recorded: {0}")]
    Recorder(#[source] Box<Status>),
    /// The first sidecar did not answer what it knows of the users.
    #[error("the first sidecar did not answer: {0}")]
    FirstSidecar(#[source] Box<Status>),
    /// The sidecar with this index did not enforce the first event within the timeout.
    #[error("sidecar {0} did not enforce the first event")]
    NotEnforced(usize),
}

/// The fate of one event.
struct EventResult {
    user: u32,
    sent: Duration,
    /// When it was acknowledged, if it was.
    acknowledged: Option<Duration>,
    /// For each sidecar, when it enforced the event, and the latencies of the questions.
    enforced: Vec<(Option<Duration>, Vec<Duration>)>,
}

/// Records events, and measures when `sidecars` enforce them, until the settings' duration is over
/// or `interrupt` completes. `on_progress` is called before each event.
///
/// # Errors
///
/// [`PropagationError`] if the first event fails, which is likely to be a mistake in the setup.
/// Later failures are counted.
pub async fn run(
    settings: &Settings,
    recorder: &Recorder,
    sidecars: &[ConsentServiceClient<Channel>],
    on_progress: impl FnMut(Progress),
    interrupt: impl Future<Output = ()>,
) -> Result<Measurement, PropagationError> {
    let run = Run { settings, recorder, sidecars };
    let mut is_suppressed = run.read_suppressions().await?;
    if let Some(first) = is_suppressed.first_mut() {
        *first = !*first;
        run.try_first_event(*first).await?;
    }
    Ok(run.measure(is_suppressed, on_progress, interrupt).await)
}

#[derive(Clone, Copy)]
struct Run<'a> {
    settings: &'a Settings,
    recorder: &'a Recorder,
    sidecars: &'a [ConsentServiceClient<Channel>],
}

impl Run<'_> {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.settings.timeout.min(MAX_HEADER_TIMEOUT));
        request
    }

    /// Whether each user is suppressed by an event of an earlier run.
    async fn read_suppressions(&self) -> Result<Vec<bool>, PropagationError> {
        let Some(mut sidecar) = self.sidecars.first().cloned() else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for user in 0..self.settings.users {
            let pair =
                pb::GetConsentRequest { user_id: user_id(user), business_id: BUSINESS.to_owned() };
            let response = sidecar.get_consent(self.request(pair)).await;
            let failed = |status| PropagationError::FirstSidecar(Box::new(status));
            all.push(response.map_err(failed)?.into_inner().suppressed);
        }
        Ok(all)
    }

    /// Records that a user is suppressed, or is not any more. Returns whether that had an effect.
    async fn record(&self, user: u32, number: u64, suppressed: bool) -> Result<bool, Status> {
        let suppression =
            pb::Suppression { suppressed, reference: "consentd bench propagation".to_owned() };
        let mut request = self.request(pb::RecordEventRequest {
            event: Some(pb::ConsentEvent {
                user_id: user_id(user),
                business_id: BUSINESS.to_owned(),
                event_time: None,
                what: Some(What::Suppression(suppression)),
            }),
            // The contract requires a request id for a lifted suppression that has no event time.
            request_id: format!("{}-{number}", self.settings.run_id),
        });
        if let Some(authorization) = &self.recorder.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        let response = self.recorder.client.clone().record_event(request).await?;
        Ok(response.into_inner().applied)
    }

    /// Records one event and waits for all sidecars, so that mistakes in the setup are errors.
    async fn try_first_event(&self, suppressed: bool) -> Result<(), PropagationError> {
        let recorded = self.record(0, 0, suppressed).await;
        recorded.map_err(|status| PropagationError::Recorder(Box::new(status)))?;
        for (index, sidecar) in self.sidecars.iter().enumerate() {
            if self.wait_until_enforced(sidecar.clone(), 0, suppressed).await.0.is_none() {
                return Err(PropagationError::NotEnforced(index));
            }
        }
        Ok(())
    }

    /// Records events at the rate, each of which is followed to all sidecars concurrently.
    async fn measure(
        &self,
        is_suppressed: Vec<bool>,
        mut on_progress: impl FnMut(Progress),
        interrupt: impl Future<Output = ()>,
    ) -> Measurement {
        let mut measurement = Measurement::new(self.sidecars.len());
        let mut users: Vec<_> = is_suppressed.into_iter().map(UserState::new).collect();
        let mut turns = (0..self.settings.users).cycle();
        let mut in_flight = FuturesUnordered::new();
        let mut ticks = interval(Duration::from_secs_f64(1.0 / self.settings.rate));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let started = clock::boot();
        let (mut is_recording, mut number) = (true, 0);
        tokio::pin!(interrupt);
        while is_recording || !in_flight.is_empty() {
            tokio::select! {
                Some(result) = in_flight.next() => {
                    let result: EventResult = result;
                    if let Some(user) = get_mut(&mut users, result.user) {
                        user.is_in_flight = false;
                    }
                    measurement.add(result);
                }
                _ = ticks.tick(), if is_recording => {
                    let elapsed = clock::boot().saturating_sub(started);
                    on_progress(measurement.progress(elapsed));
                    is_recording = elapsed < self.settings.duration;
                    let Some(turn) = turns.next().filter(|_| is_recording) else { continue };
                    match get_mut(&mut users, turn) {
                        Some(user) if !user.is_in_flight => {
                            user.is_in_flight = true;
                            user.is_suppressed = !user.is_suppressed;
                            number += 1;
                            in_flight.push(self.follow(turn, number, user.is_suppressed));
                        }
                        _ => measurement.skipped += 1,
                    }
                }
                () = &mut interrupt, if is_recording => is_recording = false,
            }
        }
        measurement
    }

    /// Records an event, and asks all sidecars until they enforce it.
    async fn follow(&self, user: u32, number: u64, suppressed: bool) -> EventResult {
        let sent = clock::boot();
        let recording = async {
            let had_effect = self.record(user, number, suppressed).await;
            had_effect.is_ok_and(|had_effect| had_effect).then(clock::boot)
        };
        let sidecars = self.sidecars.iter().cloned();
        let asking = sidecars.map(|sidecar| self.wait_until_enforced(sidecar, user, suppressed));
        let (acknowledged, enforced) = join(recording, join_all(asking)).await;
        EventResult { user, sent, acknowledged, enforced }
    }

    /// Asks a sidecar until its answer reflects the event. Returns when that was, unless it was
    /// later than the timeout, and the latencies of the questions.
    async fn wait_until_enforced(
        &self,
        mut sidecar: ConsentServiceClient<Channel>,
        user: u32,
        suppressed: bool,
    ) -> (Option<Duration>, Vec<Duration>) {
        let mut latencies = Vec::new();
        let began = clock::boot();
        loop {
            let asked = clock::boot();
            if asked.saturating_sub(began) > self.settings.timeout {
                return (None, latencies);
            }
            let response = sidecar
                .can_send(pb::CanSendRequest {
                    user_id: user_id(user),
                    business_id: BUSINESS.to_owned(),
                    category: "service".to_owned(),
                    ..Default::default()
                })
                .await;
            let now = clock::boot();
            latencies.push(now.saturating_sub(asked));
            match response {
                // A stale sidecar denies everything, whatever is recorded: it has enforced nothing.
                Ok(response) if response.get_ref().reason() == pb::Reason::Stale => {
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
                Ok(response)
                    if (response.get_ref().reason() == pb::Reason::Suppressed) == suppressed =>
                {
                    return (Some(now), latencies);
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            }
        }
    }
}

/// What is known of a user while events are recorded.
#[derive(Clone, Copy)]
struct UserState {
    is_suppressed: bool,
    /// Whether an event of this user is in flight.
    is_in_flight: bool,
}

impl UserState {
    fn new(is_suppressed: bool) -> Self {
        Self { is_suppressed, is_in_flight: false }
    }
}

fn get_mut(users: &mut [UserState], user: u32) -> Option<&mut UserState> {
    users.get_mut(usize::try_from(user).ok()?)
}

fn user_id(user: u32) -> String {
    format!("bench-{user}")
}

impl Measurement {
    fn new(sidecars: usize) -> Self {
        let observations = vec![Observation::default(); sidecars];
        Self { observations, recording: Latencies::new(), failed: 0, skipped: 0 }
    }

    fn add(&mut self, result: EventResult) {
        let EventResult { sent, acknowledged, enforced, .. } = result;
        let Some(acknowledged) = acknowledged else {
            self.failed += 1;
            return;
        };
        self.recording.record(acknowledged.saturating_sub(sent));
        for (observation, (enforced, questions)) in self.observations.iter_mut().zip(enforced) {
            for latency in questions {
                observation.question.record(latency);
            }
            let Some(enforced) = enforced else {
                observation.missed += 1;
                continue;
            };
            observation.before_acknowledged += u64::from(enforced <= acknowledged);
            observation.since_sent.record(enforced.saturating_sub(sent));
            observation.since_acknowledged.record(enforced.saturating_sub(acknowledged));
        }
    }

    /// Whether every event was recorded, and enforced by every sidecar.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problems() == 0
    }

    fn problems(&self) -> u64 {
        self.failed + self.observations.iter().map(|one| one.missed).sum::<u64>()
    }

    fn progress(&self, elapsed: Duration) -> Progress {
        Progress { elapsed, answered: self.recording.count(), failed: self.problems() }
    }
}
