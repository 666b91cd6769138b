//! `grpc.health.v1`. Health is derived from the table, so there is no second flag to keep in step.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::connection_context::ConnectionContext;
use crate::checker::Checker;

/// How often a health watch checks for a change.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Reports whether checks and recordings are served.
#[derive(Clone)]
pub struct HealthService {
    checker: Checker,
    draining: CancellationToken,
    services: Vec<&'static str>,
}

impl HealthService {
    /// Service names that every listener knows: the whole server, and Kubernetes' probes.
    const ALWAYS: [&'static str; 3] = ["", "readiness", "liveness"];

    /// The service. All names but `liveness` report `NOT_SERVING` once `draining` is cancelled.
    #[must_use]
    pub fn new(checker: Checker, draining: CancellationToken) -> Self {
        Self { checker, draining, services: Vec::new() }
    }

    /// Adds a service that is served on the same listener.
    pub(super) fn add(&mut self, service: &'static str) {
        self.services.push(service);
    }

    /// The services that are served on the same listener.
    pub(super) fn services(&self) -> &[&'static str] {
        &self.services
    }

    fn status(&self, service: &str) -> Option<ServingStatus> {
        (Self::ALWAYS.contains(&service) || self.services.contains(&service)).then(|| {
            let serving =
                service == "liveness" || (self.checker.is_ready() && !self.draining.is_cancelled());
            if serving { ServingStatus::Serving } else { ServingStatus::NotServing }
        })
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let status = self.status(&request.get_ref().service);
        let status = status.ok_or_else(|| {
            let known = [&self.services[..], &["readiness", "liveness"]].concat().join(", ");
            Status::not_found(format!("not served on this listener; one of \"\", {known}"))
        })?;
        Ok(Response::new(response(status)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Sends the status now and whenever it changes, until the process drains or the connection ends.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let ending = ConnectionContext::of(&request)?.ending;
        let service = request.into_inner().service;
        let known = self.clone();
        let changes = stream::unfold(None, move |sent: Option<(ServingStatus, bool)>| {
            let (known, service, ending) = (known.clone(), service.clone(), ending.clone());
            async move {
                loop {
                    // The change by draining is sent, and is the last.
                    let last = known.draining.is_cancelled();
                    let status = known.status(&service).unwrap_or(ServingStatus::ServiceUnknown);
                    match sent {
                        Some((_, true)) => return None,
                        Some((before, false)) if before == status && !last => {}
                        _ => return Some((Ok(response(status)), Some((status, last)))),
                    }
                    if ending.is_cancelled() && !known.draining.is_cancelled() {
                        let ended = Status::unavailable("the connection ends: watch on another");
                        return Some((Err(ended), Some((status, true))));
                    }
                    tokio::select! {
                        () = known.draining.cancelled() => {}
                        () = ending.cancelled() => {}
                        () = tokio::time::sleep(WATCH_INTERVAL) => {}
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
