//! The answer of a call, as it arrives.

use bytes::Bytes;
use h2::RecvStream;
use h2::client::ResponseFuture;
use http::HeaderMap;
use tonic::Code;

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
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, i32> {
        let broken = |error: h2::Error| code_of(&error);
        if let Some(response) = &mut self.response {
            let response = response.await.map_err(broken)?;
            self.response = None;
            // An error that came before any answer is in the headers.
            match status(response.headers()) {
                Some(code) if code != 0 => return Err(code),
                _ if response.status() != http::StatusCode::OK => return Err(Code::Unknown.into()),
                _ => self.body = Some(response.into_body()),
            }
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        let Some(bytes) = body.data().await.transpose().map_err(broken)? else { return Ok(None) };
        body.flow_control().release_capacity(bytes.len()).map_err(broken)?;
        Ok(Some(bytes))
    }

    /// The code that the call ended with, once its body has.
    pub(super) async fn status(&mut self) -> i32 {
        let Some(body) = &mut self.body else { return Code::Unknown.into() };
        match body.trailers().await {
            Ok(trailers) => trailers.as_ref().and_then(status).unwrap_or(Code::Unknown.into()),
            Err(error) => code_of(&error),
        }
    }
}

fn status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The code that clients of gRPC give to a connection or a stream that broke.
pub(super) fn code_of(error: &h2::Error) -> i32 {
    match error.reason() {
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted.into(),
        Some(h2::Reason::CANCEL) => Code::Cancelled.into(),
        Some(reason) if !error.is_go_away() && reason != h2::Reason::REFUSED_STREAM => {
            Code::Internal.into()
        }
        _ => Code::Unavailable.into(),
    }
}
