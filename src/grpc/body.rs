//! Bodies of requests and responses, whose bytes are charged to the connection's budget.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::call_telemetry::CallWatch;
use super::status;
use crate::budget::{Charge, Pool};

/// Bytes of a request or a response that the charge for an open call covers.
pub(super) const INCLUDED_BYTES: usize = 1024;

/// Bytes of unsent responses that the charge for an open stream covers.
pub(super) const ANSWER_BYTES: usize = 4 * 1024;

/// Bytes of gRPC's prefix of a message: a compression flag, and the length.
const PREFIX_BYTES: usize = 5;

/// A request's body. Its bytes are charged as they arrive, so that an incomplete body counts, too. Over
/// the budget it ends with `RESOURCE_EXHAUSTED`.
pub(super) struct MeteredBody<B = Incoming> {
    body: B,
    charge: Charge,
    /// When it must have arrived whole.
    late: Option<Pin<Box<Sleep>>>,
    messages: Option<MessageBoundaries>,
    /// The most bytes that the decoder holds.
    held: usize,
    /// Bytes that are charged.
    paid: usize,
    /// Whether its first byte has arrived.
    begun: bool,
}

impl<B> MeteredBody<B> {
    /// The body of a unary call. The charge is released with the body.
    pub(super) fn unary(body: B, charge: Charge) -> Self {
        Self {
            body,
            charge,
            late: None,
            messages: None,
            held: 0,
            paid: INCLUDED_BYTES,
            begun: false,
        }
    }

    /// Ends the body with `DEADLINE_EXCEEDED` unless it has arrived whole by then. For a call that may
    /// take longer than its request.
    pub(super) fn arriving_within(self, limit: Duration) -> Self {
        Self { late: Some(Box::pin(sleep(limit))), ..self }
    }

    /// The body of a stream of messages. The decoder's buffer stays as large as the largest message
    /// was, and so does the charge.
    pub(super) fn stream(body: B, charge: Charge) -> Self {
        Self { messages: Some(MessageBoundaries::default()), ..Self::unary(body, charge) }
    }

    /// Charges bytes that have arrived.
    fn pay(&mut self, data: &[u8]) -> Result<(), Status> {
        self.held = self.held.saturating_add(data.len());
        let more = self.held.saturating_sub(self.paid);
        if more > 0 {
            self.charge.grow(more).map_err(status::limit_reached)?;
            self.paid = self.held;
        }
        if let Some(messages) = &mut self.messages {
            // Complete messages leave the decoder before more is read.
            self.held = messages.incomplete_after(data);
        }
        Ok(())
    }
}

impl<B> http_body::Body for MeteredBody<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending()
            && let Some(late) = &mut self.late
        {
            ready!(late.as_mut().poll(context));
            return Poll::Ready(Some(Err(status::late().into())));
        }
        let frame = match ready!(polled) {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
        };
        if let Some(data) = frame.data_ref() {
            if let Some(first) = data.first()
                && !std::mem::replace(&mut self.begun, true)
                && *first > 1
            {
                return Poll::Ready(Some(Err(status::not_framed().into())));
            }
            self.charge.mark_active();
            if let Err(full) = self.pay(data) {
                return Poll::Ready(Some(Err(full.into())));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Finds where gRPC's messages begin and end in a body.
#[derive(Debug, Default)]
struct MessageBoundaries {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the prefix that have arrived.
    prefixed: usize,
    /// Bytes of the message that are missing.
    missing: usize,
    /// Bytes of the incomplete message that have arrived, with its prefix.
    arrived: usize,
}

impl MessageBoundaries {
    /// Returns how many bytes of an incomplete message there are after `data` has arrived.
    fn incomplete_after(&mut self, mut data: &[u8]) -> usize {
        while !data.is_empty() {
            if let Some(place) = self.prefix.get_mut(self.prefixed) {
                let (first, rest) = data.split_at(1);
                *place = first.first().copied().unwrap_or_default();
                data = rest;
                self.prefixed += 1;
                self.arrived += 1;
                if self.prefixed == PREFIX_BYTES {
                    let [_, length @ ..] = self.prefix;
                    self.missing =
                        usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                }
            } else {
                let (taken, rest) = data.split_at(self.missing.min(data.len()));
                data = rest;
                self.missing -= taken.len();
                self.arrived = self.arrived.saturating_add(taken.len());
            }
            if self.prefixed == PREFIX_BYTES && self.missing == 0 {
                (self.prefixed, self.arrived) = (0, 0);
            }
        }
        self.arrived
    }
}

/// A response's body. Its bytes stay charged until they are sent, or the call ends.
pub(super) struct ResponseBody {
    body: Body,
    /// The charge for the open call. In a unary call it moves on to the response's bytes.
    charge: Option<Charge>,
    /// Of a stream: whether unsent bytes use up what the charge for the stream covers.
    included: Option<Arc<AtomicBool>>,
    /// Whether the stream was ended because it was over the budget.
    ended: bool,
    /// What the call's status is reported to.
    watch: Option<Box<CallWatch>>,
}

impl ResponseBody {
    /// The response of a unary call.
    pub(super) fn unary(body: Body, charge: Charge) -> Self {
        Self { body, charge: Some(charge), included: None, ended: false, watch: None }
    }

    /// The response of a stream.
    pub(super) fn stream(body: Body, charge: Charge) -> Self {
        Self { included: Some(Arc::default()), ..Self::unary(body, charge) }
    }

    /// A response that consists of headers alone.
    pub(super) fn refusal(body: Body) -> Self {
        Self { body, charge: None, included: None, ended: false, watch: None }
    }

    /// Reports the call's status, however it ends.
    pub(super) fn watched(self, watch: CallWatch) -> Self {
        Self { watch: Some(Box::new(watch)), ..self }
    }

    /// Reports the call's status, unless that was done.
    fn report(&mut self, status: &Status) {
        if let Some(watch) = self.watch.take() {
            watch.end(status);
        }
    }

    /// Charges bytes that are about to be sent.
    fn pay(&mut self, bytes: Bytes) -> Result<ChargedBytes, Status> {
        let paid = match (&mut self.charge, &self.included) {
            (Some(charge), Some(included)) => {
                // HTTP/2 polls for them once the client's window has room.
                charge.mark_active();
                if bytes.len() > ANSWER_BYTES || included.swap(true, Ordering::Relaxed) {
                    let charge =
                        charge.charge(Pool::Answers, bytes.len()).map_err(status::limit_reached)?;
                    BytesCharge::By(charge)
                } else {
                    BytesCharge::Included(Arc::clone(included))
                }
            }
            (Some(charge), None) => {
                // They are allocated already, in place of a request of about the same size.
                if bytes.len() > INCLUDED_BYTES {
                    charge.grow_unchecked(bytes.len());
                }
                self.charge.take().map_or(BytesCharge::Nothing, BytesCharge::By)
            }
            (None, _) => BytesCharge::Nothing,
        };
        Ok(ChargedBytes { bytes, _paid: paid })
    }
}

impl http_body::Body for ResponseBody {
    type Data = ChargedBytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<ChargedBytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let log = self.watch.as_ref().and_then(|watch| watch.log()).cloned();
        let _in = log.as_ref().map(tracing::Span::enter);
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => frame,
            Some(Err(status)) => return Poll::Ready(Some(Err(status))),
        };
        // To read a status copies its headers, so it is read only if somebody wants it.
        if self.watch.is_some()
            && let Some(status) = frame.trailers_ref().and_then(Status::from_header_map)
        {
            self.report(&status);
        }
        let frame = match frame.into_data() {
            Ok(bytes) => match self.pay(bytes) {
                Ok(unsent) => Frame::data(unsent),
                // The client reads its responses too slowly.
                Err(full) => {
                    self.ended = true;
                    self.body = Body::empty();
                    self.report(&full);
                    let mut trailers = HeaderMap::new();
                    // This cannot fail: the message is short and of visible characters.
                    let _ = full.add_header(&mut trailers);
                    status::encode_message(&mut trailers);
                    Frame::trailers(trailers)
                }
            },
            Err(frame) => match frame.into_trailers() {
                Ok(mut trailers) => {
                    status::encode_message(&mut trailers);
                    Frame::trailers(trailers)
                }
                Err(_) => return Poll::Ready(None),
            },
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes of a response, and their charge, which HTTP/2 drops once it has sent them.
pub(super) struct ChargedBytes {
    bytes: Bytes,
    _paid: BytesCharge,
}

/// How unsent bytes are charged.
enum BytesCharge {
    /// Not at all: they belong to a refusal.
    Nothing,
    By(#[expect(dead_code, reason = "held for its drop alone")] Charge),
    /// By the charge for the open stream; the flag is cleared when they are sent.
    Included(Arc<AtomicBool>),
}

impl Drop for BytesCharge {
    fn drop(&mut self) {
        if let Self::Included(included) = self {
            included.store(false, Ordering::Relaxed);
        }
    }
}

impl Buf for ChargedBytes {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, BudgetSizes, MIN_BYTES, MIN_CONNECTION_BYTES};
    use crate::metrics::Metrics;

    /// A message of so many bytes, behind its prefix.
    fn framed(length: usize) -> Vec<u8> {
        let prefix = u32::try_from(length).unwrap().to_be_bytes();
        [&[0][..], &prefix, &vec![7; length]].concat()
    }

    #[test]
    fn incomplete_after_finds_boundaries_wherever_the_body_is_cut() {
        let body = [framed(0), framed(3), framed(1_000), framed(1), framed(70_000)].concat();
        let ends = [5, 13, 1_018, 1_024, 71_029];
        for step in [1, 2, 7, 1_000, 16_384] {
            let mut messages = MessageBoundaries::default();
            let mut seen = 0;
            for part in body.chunks(step) {
                seen += part.len();
                let begun = ends.iter().rev().find(|end| **end <= seen).unwrap_or(&0);
                assert_eq!(messages.incomplete_after(part), seen - begun, "by {step} at {seen}");
            }
        }
    }

    /// A body of which nothing more arrives.
    struct Silent;

    impl http_body::Body for Silent {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn body_that_does_not_arrive_in_time_ends() {
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        let sizes =
            BudgetSizes { bytes: MIN_BYTES, connection_bytes: MIN_CONNECTION_BYTES, calls: 1 };
        let charge = Budget::new(sizes, metrics).connection().charge(Pool::Records, 0).unwrap();
        let limit = Duration::from_millis(20);
        let began = tokio::time::Instant::now();
        let mut body = MeteredBody::unary(Silent, charge).arriving_within(limit);
        let ended = std::future::poll_fn(|context| {
            http_body::Body::poll_frame(Pin::new(&mut body), context)
        });
        let Some(Err(error)) = ended.await else { panic!("nothing arrived") };
        assert!(began.elapsed() >= limit);
        let status = error.downcast_ref::<Status>().map(Status::code);
        assert_eq!(status, Some(tonic::Code::DeadlineExceeded));
    }
}
