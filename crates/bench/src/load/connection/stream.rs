//! A stream of checks, or of a campaign's recipients.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use consentd_os::clock;
use h2::SendStream;
use h2::client::SendRequest;
use tonic::Code;

use super::LoadConnection;
use crate::load::call::{CallFailure, Response, request_headers};
use crate::load::response_decode;
use crate::load::schedule::{Next, Schedule};
use crate::workload::{Call, GRPC_PREFIX_BYTES, put_sequenced};

/// An open stream. `FilterRecipients` is answered in the order of its messages, `StreamCanSend` by
/// sequence, which is derived from the index of the request's slot.
pub(super) struct CheckStream<'l> {
    connection: &'l LoadConnection<'l>,
    sending: SendStream<Bytes>,
    response: Response,
    /// The indices of unused slots.
    free: VecDeque<usize>,
    /// The indices of the slots of messages in flight, in the order of sending.
    in_order: VecDeque<usize>,
    /// The received bytes of messages that are not complete.
    received: BytesMut,
}

impl<'l> CheckStream<'l> {
    pub(super) async fn open(
        connection: &'l LoadConnection<'l>,
        sender: SendRequest<Bytes>,
    ) -> Result<Self, CallFailure> {
        let mut sender = sender.ready().await?;
        let headers = request_headers(connection.settings.workload.call());
        let (response, sending) = sender.send_request(headers, false)?;
        Ok(Self {
            connection,
            sending,
            response: Response::new(response),
            free: (0..connection.slots.len()).collect(),
            in_order: VecDeque::new(),
            received: BytesMut::new(),
        })
    }

    /// Sends what is due until nothing is left and all of it was answered.
    pub(super) async fn run(mut self) -> Result<(), CallFailure> {
        let connection = self.connection;
        let mut schedule = connection.schedule.lock().await;
        loop {
            let next_due = self.send_due(&mut schedule);
            if connection.is_finished.get() && self.free.len() == connection.slots.len() {
                return self.close().await;
            }
            let wait = async {
                match next_due {
                    Some(time) => connection.wait_until(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                data = self.response.data() => match data {
                    Ok(Some(bytes)) => {
                        self.received.extend_from_slice(&bytes);
                        self.complete_received()?;
                    }
                    Ok(None) => return Err(self.closed_by_server().await),
                    Err(failure) => return Err(connection.stream_failed(failure)),
                },
                () = wait => {}
            }
        }
    }

    /// Why the server closed the stream. By the contract unanswered requests can be repeated if the
    /// server closes its connection gracefully.
    async fn closed_by_server(&mut self) -> CallFailure {
        match self.response.status().await {
            Ok(()) => CallFailure::NotProcessed,
            Err(failure) if failure == Code::Unavailable.into() => CallFailure::NotProcessed,
            Err(failure) => self.connection.stream_failed(failure),
        }
    }

    /// Sends all requests that are due in one write. Returns when the next one is due, if the
    /// schedule rather than a lack of free slots delays it.
    fn send_due(&mut self, schedule: &mut Schedule) -> Option<Duration> {
        let workload = &self.connection.settings.workload;
        let mut outgoing = BytesMut::new();
        let mut next_due = None;
        let now = clock::boot();
        while let Some(&index) = self.free.front() {
            let request = match schedule.next(now) {
                Next::Send(request) => request,
                Next::WaitUntil(time) => {
                    next_due = Some(time);
                    break;
                }
                Next::Finished => {
                    self.connection.is_finished.set(true);
                    break;
                }
            };
            self.free.pop_front();
            if let Some(slot) = self.connection.slots.get(index) {
                slot.set(Some(request));
            }
            let bytes = workload.request(request.number);
            if workload.call() == Call::Stream {
                put_sequenced(&mut outgoing, sequence_of(index), &bytes);
            } else {
                self.in_order.push_back(index);
                outgoing.extend_from_slice(&bytes);
            }
        }
        if !outgoing.is_empty() {
            // If the stream has ended, receiving reports why.
            let _ = self.sending.send_data(outgoing.freeze(), false);
        }
        next_due
    }

    /// Completes the requests whose responses have been received in full.
    fn complete_received(&mut self) -> Result<(), CallFailure> {
        while let Some(message) = take_message(&mut self.received) {
            let index = if self.connection.settings.workload.call() == Call::Stream {
                response_decode::sequence(&message).ok().and_then(index_of)
            } else {
                self.in_order.pop_front()
            };
            let slot = index.and_then(|index| self.connection.slots.get(index));
            // After a response to no request, responses and requests cannot be matched any more.
            let slot = slot.filter(|slot| slot.get().is_some()).ok_or(Code::Internal)?;
            self.connection.complete(slot, &message);
            self.free.extend(index);
        }
        Ok(())
    }

    /// Closes our side of the stream, and waits for the server to close its own.
    async fn close(mut self) -> Result<(), CallFailure> {
        self.sending.send_data(Bytes::new(), true)?;
        let closed = async {
            while self.response.data().await?.is_some() {}
            self.response.status().await
        };
        let closed = tokio::time::timeout(self.connection.settings.timeout, closed).await;
        match closed.unwrap_or(Err(Code::DeadlineExceeded.into())) {
            // All requests were answered, so a connection that closes at the same time loses none.
            Err(failure) if failure == Code::Unavailable.into() => Ok(()),
            closed => closed.map_err(|failure| self.connection.stream_failed(failure)),
        }
    }
}

/// Takes a complete message from the received bytes, without its gRPC prefix.
fn take_message(received: &mut BytesMut) -> Option<BytesMut> {
    let length = received.get(1..GRPC_PREFIX_BYTES)?.try_into().ok().map(u32::from_be_bytes)?;
    let end = GRPC_PREFIX_BYTES.checked_add(usize::try_from(length).ok()?)?;
    if received.len() < end {
        return None;
    }
    let mut message = received.split_to(end);
    Some(message.split_off(GRPC_PREFIX_BYTES))
}

/// The sequence of a slot. It is not 0, which proto3 would not encode.
fn sequence_of(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX).saturating_add(1)
}

fn index_of(sequence: u64) -> Option<usize> {
    usize::try_from(sequence).ok()?.checked_sub(1)
}
