//! The answer of a call, as it arrives.

use bytes::Bytes;
use h2::RecvStream;
use h2::client::ResponseFuture;
use http::HeaderMap;
use tonic::Code;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// The server never took it, and has said so: it may be asked again.
    NotTaken,
    /// The code that the server gave, or that clients of gRPC give to what broke.
    Code(i32),
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self::Code(code.into())
    }
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            // A connection that ends as it should takes no more calls.
            Some(h2::Reason::REFUSED_STREAM) => Self::NotTaken,
            Some(h2::Reason::NO_ERROR) if error.is_go_away() => Self::NotTaken,
            Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted.into(),
            Some(h2::Reason::CANCEL) => Code::Cancelled.into(),
            Some(_) if !error.is_go_away() => Code::Internal.into(),
            _ => Code::Unavailable.into(),
        }
    }
}

/// What arrives of a call: headers, data, trailers.
pub(super) struct Incoming {
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
}

impl Incoming {
    pub(super) fn new(response: ResponseFuture) -> Self {
        Self { response: Some(response), body: None }
    }

    /// The next bytes of the body; nothing at its end. Whoever stops waiting loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if let Some(response) = &mut self.response {
            let response = response.await?;
            self.response = None;
            // An error that came before any answer is in the headers.
            match status(response.headers()) {
                Some(code) if code != 0 => return Err(Failure::Code(code)),
                _ if response.status() != http::StatusCode::OK => return Err(Code::Unknown.into()),
                _ => self.body = Some(response.into_body()),
            }
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        let Some(bytes) = body.data().await.transpose()? else { return Ok(None) };
        body.flow_control().release_capacity(bytes.len())?;
        Ok(Some(bytes))
    }

    /// How the call ended, once its body has.
    pub(super) async fn end(&mut self) -> Result<(), Failure> {
        let Some(body) = &mut self.body else { return Err(Code::Unknown.into()) };
        match body.trailers().await?.as_ref().and_then(status) {
            Some(0) => Ok(()),
            Some(code) => Err(Failure::Code(code)),
            None => Err(Code::Unknown.into()),
        }
    }
}

fn status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
