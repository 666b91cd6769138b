//! `grpc.health.v1`, read off the table itself: there is no second flag to forget.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::checker::Checker;

/// How often a watcher's answer is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Tells whether checks and recordings are served.
#[derive(Clone)]
pub struct HealthService {
    checker: Checker,
    draining: CancellationToken,
    services: Vec<&'static str>,
}

impl HealthService {
    /// The names that can be asked for wherever this is served: the whole server, and what
    /// Kubernetes asks.
    const ALWAYS: [&'static str; 3] = ["", "readiness", "liveness"];

    /// The service. Everything but `liveness` stops serving when `draining` is cancelled.
    #[must_use]
    pub fn new(checker: Checker, draining: CancellationToken) -> Self {
        Self { checker, draining, services: Vec::new() }
    }

    /// Knows this service too, which is served on the same listener.
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

    /// Tells the status now and whenever it changes, until draining ends it.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let known = self.clone();
        let changes = stream::unfold(None, move |told: Option<(ServingStatus, bool)>| {
            let (known, service) = (known.clone(), service.clone());
            async move {
                loop {
                    // What draining changes is told, and is the last that is.
                    let last = known.draining.is_cancelled();
                    let status = known.status(&service).unwrap_or(ServingStatus::ServiceUnknown);
                    match told {
                        Some((_, true)) => return None,
                        Some((before, false)) if before == status && !last => {}
                        _ => return Some((Ok(response(status)), Some((status, last)))),
                    }
                    tokio::select! {
                        () = known.draining.cancelled() => {}
                        () = tokio::time::sleep(LOOK_AGAIN) => {}
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
