//! A client of consentd that fails closed: an error, a timeout or no sidecar means *do not send*.
//!
//! ```no_run
//! use consentd_client::{CHECK_DEADLINE, Client, pb};
//!
//! # async fn send() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("127.0.0.1:50051")?;
//! let request = pb::CanSendRequest {
//!     user_id: "+1 555 012 3456".to_owned(),
//!     business_id: "acme".to_owned(),
//!     category: "marketing".to_owned(),
//!     ..Default::default()
//! };
//! if client.may_send(request, CHECK_DEADLINE).await.is_allowed() {
//!     // Send the message now.
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Messages, units and errors are documented in the contract, `proto/consent/v1`.

#![warn(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]

mod verdict;

use std::future::Future;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::errors::InvalidMetadataValue;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tonic::{Request, Response, Status};

pub use self::verdict::Verdict;
pub use consentd_proto::{code_name, v1 as pb};
use pb::consent_service_client::ConsentServiceClient;
use pb::record_service_client::RecordServiceClient;

/// The usual deadline of a check. It is answered from memory, within microseconds: one that takes
/// this long has failed.
pub const CHECK_DEADLINE: Duration = Duration::from_millis(250);

/// The usual deadline of a recording, which is acknowledged once it is durable.
pub const RECORD_DEADLINE: Duration = Duration::from_secs(5);

/// A client of one sidecar. Clones share its connection, so a process needs one.
#[derive(Clone, Debug)]
pub struct Client {
    checks: ConsentServiceClient<Channel>,
    records: RecordServiceClient<Channel>,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// Makes a client of the sidecar at `HOST:PORT`, `unix:PATH` or `unix:@NAME`, an abstract
    /// socket. The first call connects, and a call after a lost connection connects again.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// An error means that the address is invalid. That no sidecar is there is an error of the calls.
    pub fn connect(address: &str) -> Result<Self, Error> {
        let channel = channel(address)?;
        Ok(Self {
            checks: ConsentServiceClient::new(channel.clone()),
            records: RecordServiceClient::new(channel),
            authorization: None,
        })
    }

    /// Sends a bearer token with each recording: one of those in the sidecar's
    /// `--record-token-file`.
    ///
    /// # Errors
    ///
    /// An error means that the token has characters that a header cannot hold.
    pub fn with_record_token(mut self, token: &str) -> Result<Self, InvalidMetadataValue> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse()?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// Checks whether a message may be sent now. Call it right before each send, usually with
    /// [`CHECK_DEADLINE`].
    ///
    /// Any error is a verdict that denies: keep the message, and check again later.
    pub async fn may_send(&self, request: pb::CanSendRequest, deadline: Duration) -> Verdict {
        let mut checks = self.checks.clone();
        let call = checks.can_send(with_timeout(request, deadline));
        match within(deadline, call).await {
            Ok(response) => Verdict::of_response(response),
            Err(status) => Verdict::NoAnswer(status),
        }
    }

    /// Checks many messages in one call, and returns one verdict for each request, in order. An
    /// invalid request is denied and does not affect the others.
    pub async fn may_send_each(
        &self,
        requests: Vec<pb::CanSendRequest>,
        deadline: Duration,
    ) -> Vec<Verdict> {
        let count = requests.len();
        let mut checks = self.checks.clone();
        let request = pb::BatchCanSendRequest { requests };
        let call = checks.batch_can_send(with_timeout(request, deadline));
        let results = within(deadline, call).await.and_then(|response| {
            // Verdicts are matched to requests by their order.
            if response.results.len() == count {
                return Ok(response.results);
            }
            Err(Status::internal("the batch has not one result for each request"))
        });
        match results {
            Ok(results) => results.into_iter().map(Verdict::of_result).collect(),
            Err(status) => vec![Verdict::NoAnswer(status); count],
        }
    }

    /// Records an event durably, usually with [`RECORD_DEADLINE`].
    ///
    /// # Errors
    ///
    /// After an error it is unknown whether the event was recorded, unless the code is
    /// `INVALID_ARGUMENT`. Call it again with the same `request_id`, which makes the call
    /// idempotent.
    pub async fn record(
        &self,
        event: pb::ConsentEvent,
        request_id: &str,
        deadline: Duration,
    ) -> Result<pb::RecordEventResponse, Status> {
        let mut records = self.records.clone();
        let request =
            pb::RecordEventRequest { event: Some(event), request_id: request_id.to_owned() };
        let mut request = with_timeout(request, deadline);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        within(deadline, records.record_event(request)).await
    }
}

fn channel(address: &str) -> Result<Channel, Error> {
    if let Some(name) = address.strip_prefix("unix:@") {
        // The name of an abstract socket begins with a zero byte, which no URI can hold.
        let name = format!("\0{name}");
        let endpoint = Endpoint::from_static("http://localhost");
        return Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let name = name.clone();
            async move { UnixStream::connect(name).await.map(TokioIo::new) }
        })));
    }
    let scheme = if address.starts_with("unix:") { "" } else { "http://" };
    Ok(Endpoint::from_shared(format!("{scheme}{address}"))?.connect_lazy())
}

/// Sends the deadline to the sidecar, which abandons the call then.
fn with_timeout<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Waits for a response until the deadline. tonic's own timer does not run while it connects, and
/// reports its expiry as `CANCELLED`.
async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if status.message() != "Timeout expired" => Err(status),
        Ok(Err(_)) | Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tonic::Code;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    fn code(verdict: &Verdict) -> Option<Code> {
        match verdict {
            Verdict::NoAnswer(status) => Some(status.code()),
            _ => None,
        }
    }

    #[tokio::test]
    async fn silent_server_denies_at_the_deadline() {
        // The kernel accepts connections that nothing reads from.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::connect(&listener.local_addr().unwrap().to_string()).unwrap();
        let request = pb::CanSendRequest::default();
        let verdict = client.may_send(request.clone(), SHORT).await;
        assert_eq!(code(&verdict), Some(Code::DeadlineExceeded));
        let verdicts = client.may_send_each(vec![request; 3], SHORT).await;
        assert_eq!(verdicts.len(), 3);
        assert!(verdicts.iter().all(|verdict| code(verdict) == Some(Code::DeadlineExceeded)));
        let recorded = client.record(pb::ConsentEvent::default(), "id", SHORT).await;
        assert_eq!(recorded.unwrap_err().code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn missing_server_denies() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        for address in [port.to_string(), "unix:/no/such/socket".into(), "unix:@no-such".into()] {
            let client = Client::connect(&address).unwrap();
            let request = pb::CanSendRequest::default();
            let verdict = client.may_send(request, RECORD_DEADLINE).await;
            assert_eq!(code(&verdict), Some(Code::Unavailable), "{address}: {verdict}");
            assert!(!verdict.is_allowed());
        }
    }

    #[tokio::test]
    async fn invalid_address_or_token_is_an_error() {
        assert!(Client::connect("a b:1").is_err());
        let client = Client::connect("127.0.0.1:1").unwrap();
        assert!(client.clone().with_record_token("secret").is_ok());
        assert!(client.with_record_token("two\nlines").is_err());
    }
}
