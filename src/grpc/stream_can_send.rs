//! `StreamCanSend`: checks over one long-lived stream.
//!
//! A check is answered as it is read, so responses have the order of their requests. A check that
//! waits for a revision is answered when the revision arrives, and holds up no other. Backpressure:
//! while a client does not read its responses, its requests are not read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status, Streaming};

use super::codec::{self, MAX_FIELDS};
use super::consent_service::CheckService;
use super::fast_decode::{OwnedCheckRequest, RawCheckRequest, RawStreamRequest};
use super::pb::batch_can_send_result::Result as Pb;
use super::{convert, deadline, pb, status};
use crate::budget::{Charge, Pool};
use consentd_os::clock;

/// How many checks of one stream may wait for a revision. At that number, reading pauses.
const MAX_WAITING: usize = 1_024;

/// About the memory of a waiting check without its ids: its timers, and its slot in a queue.
const WAITING_BYTES: usize = 1_536;

/// How many of the requests that have arrived are still answered once the connection is to end.
const MAX_WHILE_ENDING: usize = 1_024;

/// How many checks are answered before the task yields: some 0.1 ms of work.
const CHECKS_PER_YIELD: usize = super::consent_service::CHECKS_PER_YIELD;

type PendingCheck = Pin<Box<dyn Future<Output = pb::StreamCanSendResponse> + Send>>;

/// How requests are read.
enum Reading {
    /// Requests are read as they arrive.
    Open,
    /// The connection is to end: so many requests that had arrived were answered since.
    Ending { answered: usize },
    /// No more requests are read. The stream ends like this once all waiting checks are answered.
    Done(Result<(), Status>),
}

/// A request that was read.
enum Handled {
    /// It is answered.
    Answered(pb::StreamCanSendResponse),
    /// It is in the queue of checks that wait for a revision.
    Queued,
}

/// The responses of one stream.
pub(super) struct StreamResponses {
    service: Arc<CheckService>,
    /// Charges the same connection and pool as the open call.
    charge: Charge,
    requests: Streaming<Bytes>,
    deadline: Option<Instant>,
    waiting: FuturesUnordered<PendingCheck>,
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
    reading: Reading,
    /// Responses since the task last yielded.
    answered: usize,
}

impl CheckService {
    pub(super) fn stream_can_send(
        self: &Arc<Self>,
        request: Request<Streaming<Bytes>>,
        ending: &CancellationToken,
        charge: &Charge,
    ) -> Response<StreamResponses> {
        let deadline = deadline(request.metadata());
        Response::new(StreamResponses {
            service: Arc::clone(self),
            charge: charge.empty(),
            requests: request.into_inner(),
            deadline,
            waiting: FuturesUnordered::new(),
            ending: Box::pin(ending.clone().cancelled_owned()),
            reading: Reading::Open,
            answered: 0,
        })
    }

    /// Answers a check that need not wait, or no longer.
    fn respond(&self, sequence: u64, asked: &RawCheckRequest<'_>) -> pb::StreamCanSendResponse {
        let started = clock::boot();
        let result = match self.answer(asked) {
            Ok(answer) => Pb::Response(convert::answer(asked, &answer)),
            // The stream stays open while the table is loaded, too.
            Err(error) => Pb::Error(status::item_check_error(&error)),
        };
        self.metrics.checked(clock::boot().saturating_sub(started));
        sequenced(sequence, result)
    }
}

fn sequenced(sequence: u64, result: Pb) -> pb::StreamCanSendResponse {
    let result = Some(pb::BatchCanSendResult { result: Some(result) });
    pb::StreamCanSendResponse { sequence, result }
}

/// Decodes a request and passes it to `then`.
fn read<T>(bytes: &Bytes, then: impl FnOnce(&RawStreamRequest<'_>) -> T) -> Result<T, Status> {
    if let Ok(read) = RawStreamRequest::read(bytes) {
        return Ok(then(&read));
    }
    let decoded: pb::StreamCanSendRequest = codec::decode(bytes.clone(), MAX_FIELDS)?;
    Ok(then(&RawStreamRequest::from(&decoded)))
}

impl StreamResponses {
    /// Answers a request at once, or queues it until its revision arrives. Only a valid request waits,
    /// and only its fields are kept, not its bytes. Fails if the request cannot be decoded.
    fn handle(&mut self, bytes: &Bytes) -> Result<Handled, Status> {
        let service = &self.service;
        let answered = read(bytes, |read| {
            let asked = read.asked.unwrap_or_default();
            if service.must_wait(&asked) {
                Err((read.sequence, OwnedCheckRequest::from(&asked)))
            } else {
                Ok(service.respond(read.sequence, &asked))
            }
        })?;
        let (sequence, kept) = match answered {
            Ok(answer) => return Ok(Handled::Answered(answer)),
            Err(waits) => waits,
        };
        let place = self.charge.charge(Pool::Checking, 1);
        let bytes = WAITING_BYTES + kept.bytes();
        let charges = place.and_then(|place| Ok((place, self.charge.charge_same_pool(bytes)?)));
        let charges = match charges {
            Ok(charges) => charges,
            Err(full) => {
                let full = status::item_limit_reached(full);
                service.telemetry.item_refused(&full.message);
                let full = Pb::Error(full);
                return Ok(Handled::Answered(sequenced(sequence, full)));
            }
        };
        let (service, deadline) = (Arc::clone(service), self.deadline);
        self.waiting.push(Box::pin(async move {
            let _charges = charges;
            let asked = kept.asked();
            match service.wait(&asked, deadline).await {
                Ok(()) => service.respond(sequence, &asked),
                Err(missed) => {
                    sequenced(sequence, Pb::Error(status::item_revision_timeout(&missed)))
                }
            }
        }));
        Ok(Handled::Queued)
    }

    /// Reads and handles the next request; `None` once reading is done.
    fn poll_request(&mut self, context: &mut Context<'_>) -> Poll<Option<Handled>> {
        if matches!(self.reading, Reading::Done(_)) {
            return Poll::Ready(None);
        }
        if self.waiting.len() >= MAX_WAITING {
            return Poll::Pending;
        }
        if matches!(self.reading, Reading::Open) && self.ending.as_mut().poll(context).is_ready() {
            self.reading = Reading::Ending { answered: 0 };
        }
        let next = match &mut self.reading {
            Reading::Ending { answered } if *answered < MAX_WHILE_ENDING => {
                *answered += 1;
                // Requests that have not arrived yet are not waited for.
                match self.requests.poll_next_unpin(context) {
                    Poll::Ready(next) => next,
                    Poll::Pending => Some(Err(over())),
                }
            }
            Reading::Ending { .. } => Some(Err(over())),
            Reading::Open | Reading::Done(_) => ready!(self.requests.poll_next_unpin(context)),
        };
        // Bytes after a malformed message cannot be trusted, so any error ends the reading.
        let end = match next.map(|bytes| self.handle(&bytes?)) {
            Some(Ok(handled)) => return Poll::Ready(Some(handled)),
            Some(Err(status)) => Err(status),
            None => Ok(()),
        };
        self.reading = Reading::Done(end);
        Poll::Ready(None)
    }

    /// The next response: to a check whose revision has arrived, or else to a request that is read now.
    fn poll_response(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<pb::StreamCanSendResponse, Status>>> {
        loop {
            // This also polls a check that was just queued: it is not woken unless it was polled once.
            if let Poll::Ready(Some(answer)) = self.waiting.poll_next_unpin(context) {
                return Poll::Ready(Some(Ok(answer)));
            }
            match ready!(self.poll_request(context)) {
                Some(Handled::Answered(answer)) => return Poll::Ready(Some(Ok(answer))),
                Some(Handled::Queued) => {}
                None if self.waiting.is_empty() => return Poll::Ready(self.take_error().map(Err)),
                None => return Poll::Pending,
            }
        }
    }

    /// The error that ends the stream; `None` if there is none, or if it was returned before.
    fn take_error(&mut self) -> Option<Status> {
        match std::mem::replace(&mut self.reading, Reading::Done(Ok(()))) {
            Reading::Done(end) => end.err(),
            Reading::Open | Reading::Ending { .. } => None,
        }
    }
}

fn over() -> Status {
    let why = "the connection ends: what was not answered must not be sent, ask again on another";
    Status::unavailable(why)
}

impl Stream for StreamResponses {
    type Item = Result<pb::StreamCanSendResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.answered >= CHECKS_PER_YIELD {
            this.answered = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let response = this.poll_response(context);
        this.answered = if response.is_ready() { this.answered + 1 } else { 0 };
        response
    }
}
