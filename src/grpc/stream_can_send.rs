//! `StreamCanSend`: questions over one long-lived stream.
//!
//! A question is answered as it is read, so answers come in the order of their questions; one that
//! waits for a revision is answered when that has arrived, and holds up nobody. A client that does
//! not read its answers is not read from.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Request, Response, Status, Streaming};

use super::codec::{self, MAX_FIELDS};
use super::consent_service::CheckService;
use super::fast_decode::{Asked, Kept, Sequenced};
use super::pb::batch_can_send_result::Result as Pb;
use super::{convert, deadline, pb, status};
use crate::budget::Charge;
use crate::checker::CheckError;
use consentd_os::clock;

/// How many questions of one stream may wait for a revision; while they are as many, nothing
/// more is read.
const MAX_WAITING: usize = 1_024;

/// About the memory of a question that waits, its ids aside: its timers, and its place in a queue.
const WAITING_BYTES: usize = 1_536;

/// How many of the questions that have arrived are answered once the connection is to end.
const MAX_WHILE_ENDING: usize = 1_024;

/// How many questions are answered before others get their turn: some 0.1 ms.
const AT_ONCE: usize = super::consent_service::AT_ONCE;

type Waiting = Pin<Box<dyn Future<Output = pb::StreamCanSendResponse> + Send>>;

/// The answers of one stream.
pub(super) struct Answers {
    service: Arc<CheckService>,
    /// What the open call is charged to.
    charge: Charge,
    questions: Streaming<Bytes>,
    /// When the call's caller has no use for an answer any more.
    deadline: Option<Instant>,
    waiting: FuturesUnordered<Waiting>,
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Set once nothing more is read: how the stream ends when all that waits is answered.
    end: Option<Result<(), Status>>,
    /// Since the connection is to end, so many were answered.
    since_ending: Option<usize>,
    /// So many were answered in this turn.
    answered: usize,
}

impl CheckService {
    pub(super) fn stream_can_send(
        self: &Arc<Self>,
        request: Request<Streaming<Bytes>>,
        ending: &CancellationToken,
        charge: &Charge,
    ) -> Response<Answers> {
        let deadline = deadline(request.metadata());
        Response::new(Answers {
            service: Arc::clone(self),
            charge: charge.beside(),
            questions: request.into_inner(),
            deadline,
            waiting: FuturesUnordered::new(),
            ending: Box::pin(ending.clone().cancelled_owned()),
            end: None,
            since_ending: None,
            answered: 0,
        })
    }

    /// Answers a question of a stream that waits for nothing any more.
    fn sequenced(&self, sequence: u64, asked: &Asked<'_>) -> pb::StreamCanSendResponse {
        let started = clock::boot();
        let result = match self.answer(asked) {
            Ok(answer) => Pb::Response(convert::answer(&answer)),
            Err(CheckError::Invalid(found)) => Pb::Error(status::item_of_check(&found)),
            // The stream outlives the loading of the table.
            Err(error @ CheckError::NotReady) => Pb::Error(pb::ItemError {
                code: Code::Unavailable.into(),
                field: String::new(),
                message: error.to_string(),
            }),
        };
        self.metrics.checked(clock::boot().saturating_sub(started));
        sequenced(sequence, result)
    }
}

fn sequenced(sequence: u64, result: Pb) -> pb::StreamCanSendResponse {
    let result = Some(pb::BatchCanSendResult { result: Some(result) });
    pb::StreamCanSendResponse { sequence, result }
}

/// Reads a question, and makes something of it.
fn read<T>(bytes: &Bytes, then: impl FnOnce(&Sequenced<'_>) -> T) -> Result<T, Status> {
    if let Ok(read) = Sequenced::read(bytes) {
        return Ok(then(&read));
    }
    let decoded: pb::StreamCanSendRequest = codec::decode(bytes.clone(), MAX_FIELDS)?;
    Ok(then(&Sequenced::from(&decoded)))
}

impl Answers {
    /// Answers a question at once, or has it wait; or says why it cannot be read. Of one that
    /// waits nothing but the question is kept, and what is wrong with one needs no waiting.
    fn take(&mut self, bytes: &Bytes) -> Result<Option<pb::StreamCanSendResponse>, Status> {
        let service = &self.service;
        let answered = read(bytes, |read| {
            let asked = read.asked.unwrap_or_default();
            if asked.min_revision <= service.checker.revision() || !service.is_valid(&asked) {
                Ok(service.sequenced(read.sequence, &asked))
            } else {
                Err((read.sequence, Kept::from(&asked)))
            }
        })?;
        let (sequence, kept) = match answered {
            Ok(answer) => return Ok(Some(answer)),
            Err(waits) => waits,
        };
        let charge = match self.charge.another(WAITING_BYTES + kept.bytes()) {
            Ok(charge) => charge.of_a_waiting_question(),
            Err(full) => {
                let full = Pb::Error(status::item_of_full(full));
                return Ok(Some(sequenced(sequence, full)));
            }
        };
        let (service, deadline) = (Arc::clone(service), self.deadline);
        self.waiting.push(Box::pin(async move {
            let _charge = charge;
            let asked = kept.asked();
            match service.checker.wait_for_revision(asked.min_revision, deadline).await {
                Ok(()) => service.sequenced(sequence, &asked),
                Err(missed) => {
                    sequenced(sequence, Pb::Error(status::item_of_revision_timeout(&missed)))
                }
            }
        }));
        Ok(None)
    }

    /// Whether nothing more is to be read, for the connection ends and much was answered since.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        if self.since_ending.is_none() && self.ending.as_mut().poll(context).is_ready() {
            self.since_ending = Some(0);
        }
        self.since_ending.is_some_and(|answered| answered >= MAX_WHILE_ENDING)
    }

    /// Reads on, until there is an answer or there are no more questions.
    fn poll_questions(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<pb::StreamCanSendResponse>> {
        while self.end.is_none() && self.waiting.len() < MAX_WAITING {
            if self.is_over(context) {
                self.end = Some(Err(over()));
                break;
            }
            let next = match self.questions.poll_next_unpin(context) {
                Poll::Pending if self.since_ending.is_some() => {
                    self.end = Some(Err(over()));
                    break;
                }
                next => ready!(next),
            };
            let taken = match next {
                Some(Ok(bytes)) => self.take(&bytes),
                // What a decoder makes of the bytes behind a fault is not what was sent.
                Some(Err(status)) => Err(status),
                None => {
                    self.end = Some(Ok(()));
                    break;
                }
            };
            if let Some(answered) = &mut self.since_ending {
                *answered += 1;
            }
            match taken {
                Ok(Some(answer)) => return Poll::Ready(Some(answer)),
                Ok(None) => {}
                Err(status) => self.end = Some(Err(status)),
            }
        }
        if self.end.is_some() { Poll::Ready(None) } else { Poll::Pending }
    }
}

fn over() -> Status {
    let why = "the connection ends: what was not answered must not be sent, ask again on another";
    Status::unavailable(why)
}

impl Stream for Answers {
    type Item = Result<pb::StreamCanSendResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.answered >= AT_ONCE {
            this.answered = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Those that waited longest come first. A new one among them is looked at once, too.
        for _ in 0..2 {
            if !this.waiting.is_empty()
                && let Poll::Ready(Some(answer)) = this.waiting.poll_next_unpin(context)
            {
                this.answered += 1;
                return Poll::Ready(Some(Ok(answer)));
            }
            let before = this.waiting.len();
            if let Poll::Ready(Some(answer)) = this.poll_questions(context) {
                this.answered += 1;
                return Poll::Ready(Some(Ok(answer)));
            }
            if this.waiting.len() == before {
                break;
            }
        }
        if this.waiting.is_empty()
            && let Some(end) = this.end.take()
        {
            // Whoever asks again is told the same.
            this.end = Some(Ok(()));
            return Poll::Ready(end.err().map(Err));
        }
        this.answered = 0;
        Poll::Pending
    }
}
