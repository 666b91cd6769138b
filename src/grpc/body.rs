//! Bodies of requests and of answers, whose bytes are charged to the connection's budget.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use super::status;
use crate::budget::{Charge, Pool};

/// Bytes of a message, or of an answer, that the charge for an open call covers.
pub(super) const INCLUDED_BYTES: usize = 1024;

/// Bytes of a stream's answers that the charge for it covers while they wait to be sent.
pub(super) const ANSWER_BYTES: usize = 4 * 1024;

/// Bytes of gRPC's prefix of a message: a flag, and its length.
const PREFIX_BYTES: usize = 5;

/// A request's body. Each byte is charged as it arrives, so a body that never arrives whole counts
/// as well as one that does; over the budget it ends with `RESOURCE_EXHAUSTED`.
pub(super) struct Metered {
    body: Incoming,
    charge: Charge,
    messages: Option<Messages>,
    /// Bytes that the decoder holds at the most.
    held: usize,
    /// Bytes for which the charge was made.
    paid: usize,
}

impl Metered {
    /// The body of a call of one message; what is charged is given back with the body.
    pub(super) fn unary(body: Incoming, charge: Charge) -> Self {
        Self { body, charge, messages: None, held: 0, paid: INCLUDED_BYTES }
    }

    /// The body of a stream of messages. The decoder's buffer stays as large as its largest
    /// message was, and so does the charge.
    pub(super) fn stream(body: Incoming, charge: Charge) -> Self {
        Self { messages: Some(Messages::default()), ..Self::unary(body, charge) }
    }

    /// Charges for these bytes.
    fn pay(&mut self, data: &[u8]) -> Result<(), Status> {
        self.held = self.held.saturating_add(data.len());
        let more = self.held.saturating_sub(self.paid);
        if more > 0 {
            self.charge.grow(more).map_err(status::of_full)?;
            self.paid = self.held;
        }
        if let Some(messages) = &mut self.messages {
            // What is whole by now is taken out of the decoder before more is read.
            self.held = messages.incomplete_after(data);
        }
        Ok(())
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
        };
        if let Some(data) = frame.data_ref() {
            self.charge.touch();
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

/// Where gRPC's messages begin and end in a body.
#[derive(Debug, Default)]
struct Messages {
    prefix: [u8; PREFIX_BYTES],
    /// How many bytes of the prefix have arrived.
    prefixed: usize,
    /// How many bytes of the message are to come.
    missing: usize,
    /// How many bytes of the message that is not whole have arrived, with its prefix.
    arrived: usize,
}

impl Messages {
    /// How many bytes of a message that is not whole there are, after these have arrived.
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

/// An answer's body. Its bytes stay charged until they were sent, or the call has ended.
pub(super) struct Answer {
    body: Body,
    /// What the open call was charged; goes with an only message's bytes.
    charge: Option<Charge>,
    /// Of a stream: whether bytes that the open call was charged for wait to be sent.
    included: Option<Arc<AtomicBool>>,
    /// Set once a stream was ended for want of room: how it was.
    ended: bool,
}

impl Answer {
    /// The answer of a call of one message.
    pub(super) fn unary(body: Body, charge: Charge) -> Self {
        Self { body, charge: Some(charge), included: None, ended: false }
    }

    /// The answer of a call that lasts until its answers end.
    pub(super) fn stream(body: Body, charge: Charge) -> Self {
        Self { included: Some(Arc::default()), ..Self::unary(body, charge) }
    }

    /// An answer that is in its headers.
    pub(super) fn refusal(body: Body) -> Self {
        Self { body, charge: None, included: None, ended: false }
    }

    /// The same answer with another body, which has this one inside.
    pub(super) fn within(mut self, wrap: impl FnOnce(Body) -> Body) -> Self {
        self.body = wrap(self.body);
        self
    }

    /// Charges for bytes that are about to be sent.
    fn pay(&mut self, bytes: Bytes) -> Result<Unsent, Status> {
        let paid = match (&mut self.charge, &self.included) {
            (Some(charge), Some(included)) => {
                // HTTP/2 asks for them once the client has room for them.
                charge.touch();
                if bytes.len() > ANSWER_BYTES || included.swap(true, Ordering::Relaxed) {
                    let charge = charge.of(Pool::Answers, bytes.len()).map_err(status::of_full)?;
                    Paid::By(charge)
                } else {
                    Paid::Included(Arc::clone(included))
                }
            }
            (Some(charge), None) => {
                // They are there already, in place of a request that was about as large.
                if bytes.len() > INCLUDED_BYTES {
                    charge.force(bytes.len());
                }
                self.charge.take().map_or(Paid::Nothing, Paid::By)
            }
            (None, _) => Paid::Nothing,
        };
        Ok(Unsent { bytes, _paid: paid })
    }
}

impl http_body::Body for Answer {
    type Data = Unsent;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unsent>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => frame,
            Some(Err(status)) => return Poll::Ready(Some(Err(status))),
        };
        let frame = match frame.into_data() {
            Ok(bytes) => match self.pay(bytes) {
                Ok(unsent) => Frame::data(unsent),
                // The client reads too little of what it asks for.
                Err(full) => {
                    self.ended = true;
                    self.body = Body::empty();
                    let mut trailers = HeaderMap::new();
                    // It is short, and of visible characters: it can be a header.
                    let _ = full.add_header(&mut trailers);
                    Frame::trailers(trailers)
                }
            },
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => Frame::trailers(trailers),
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

/// Bytes of an answer, and what they are charged until HTTP/2 has sent them.
pub(super) struct Unsent {
    bytes: Bytes,
    _paid: Paid,
}

/// How bytes that wait to be sent were charged for.
enum Paid {
    /// They belong to a refusal.
    Nothing,
    By(#[expect(dead_code, reason = "held for its drop alone")] Charge),
    /// The open stream covers them.
    Included(Arc<AtomicBool>),
}

impl Drop for Paid {
    fn drop(&mut self) {
        if let Self::Included(included) = self {
            included.store(false, Ordering::Relaxed);
        }
    }
}

impl Buf for Unsent {
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

    /// A message of so many bytes, behind its prefix.
    fn framed(length: usize) -> Vec<u8> {
        let told = u32::try_from(length).unwrap().to_be_bytes();
        [&[0][..], &told, &vec![7; length]].concat()
    }

    #[test]
    fn messages_cut_anywhere_are_told_apart() {
        let body = [framed(0), framed(3), framed(1_000), framed(1), framed(70_000)].concat();
        let ends = [5, 13, 1_018, 1_024, 71_029];
        for step in [1, 2, 7, 1_000, 16_384] {
            let mut messages = Messages::default();
            let mut seen = 0;
            for part in body.chunks(step) {
                seen += part.len();
                let begun = ends.iter().rev().find(|end| **end <= seen).unwrap_or(&0);
                assert_eq!(messages.incomplete_after(part), seen - begun, "by {step} at {seen}");
            }
        }
    }
}
