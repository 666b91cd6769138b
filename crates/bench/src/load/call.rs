//! One gRPC call over HTTP/2, without a gRPC library.

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request};
use tonic::Code;

use crate::workload::Call;

/// Why a call has no response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum CallFailure {
    /// The server declared that it did not process the call, so the call can safely be repeated.
    NotProcessed,
    /// The gRPC code that the server sent, or that stands for the failure of the connection.
    Code(i32),
}

impl From<Code> for CallFailure {
    fn from(code: Code) -> Self {
        Self::Code(code.into())
    }
}

impl From<h2::Error> for CallFailure {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            // A connection that shuts down gracefully refuses new calls.
            Some(h2::Reason::REFUSED_STREAM) => Self::NotProcessed,
            Some(h2::Reason::NO_ERROR) if error.is_go_away() => Self::NotProcessed,
            Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted.into(),
            Some(h2::Reason::CANCEL) => Code::Cancelled.into(),
            Some(_) if !error.is_go_away() => Code::Internal.into(),
            _ => Code::Unavailable.into(),
        }
    }
}

/// A response as it arrives: headers, data, trailers.
pub(super) struct Response {
    headers: Option<ResponseFuture>,
    body: Option<RecvStream>,
}

impl Response {
    pub(super) fn new(headers: ResponseFuture) -> Self {
        Self { headers: Some(headers), body: None }
    }

    /// The next bytes of the body, or `None` at its end. Cancel safe.
    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, CallFailure> {
        if let Some(headers) = &mut self.headers {
            let response = headers.await?;
            self.headers = None;
            // A call that fails before its first message has its status in the headers.
            match grpc_status(response.headers()) {
                Some(code) if code != 0 => return Err(CallFailure::Code(code)),
                _ if response.status() != http::StatusCode::OK => return Err(Code::Unknown.into()),
                _ => self.body = Some(response.into_body()),
            }
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        let Some(bytes) = body.data().await.transpose()? else { return Ok(None) };
        body.flow_control().release_capacity(bytes.len())?;
        Ok(Some(bytes))
    }

    /// The status in the trailers, after the body's end.
    pub(super) async fn status(&mut self) -> Result<(), CallFailure> {
        let Some(body) = &mut self.body else { return Err(Code::Unknown.into()) };
        match body.trailers().await?.as_ref().and_then(grpc_status) {
            Some(0) => Ok(()),
            Some(code) => Err(CallFailure::Code(code)),
            None => Err(Code::Unknown.into()),
        }
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The HTTP/2 headers of a call.
pub(super) fn request_headers(call: Call) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::POST;
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some(http::uri::Authority::from_static("localhost"));
    uri.path_and_query = Some(http::uri::PathAndQuery::from_static(call.path()));
    // A URI with a scheme, an authority and a path is always valid.
    *request.uri_mut() = http::Uri::from_parts(uri).unwrap_or_default();
    let headers = request.headers_mut();
    for (name, value) in [
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", concat!("consentd-bench/", env!("CARGO_PKG_VERSION"))),
    ] {
        headers.insert(name, http::HeaderValue::from_static(value));
    }
    request
}

/// Calls with one message, and returns the bytes of the response's body.
pub(super) async fn unary_call(
    sender: &mut SendRequest<Bytes>,
    headers: Request<()>,
    message: Bytes,
) -> Result<Bytes, CallFailure> {
    let (response, mut sending) = sender.send_request(headers, false)?;
    sending.send_data(message, true)?;
    let mut response = Response::new(response);
    let mut body = response.data().await?.unwrap_or_default();
    while let Some(part) = response.data().await? {
        let mut joined = BytesMut::from(body);
        joined.extend_from_slice(&part);
        body = joined.freeze();
    }
    response.status().await?;
    Ok(body)
}
