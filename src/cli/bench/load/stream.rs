//! A stream of questions, or of a campaign's recipients.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::SendStream;
use h2::client::SendRequest;
use tonic::Code;

use super::answers;
use super::connection::{Line, request};
use super::pace::{Next, Pace};
use super::requests::{Call, PREFIX, sequenced};
use super::wire::{Failure, Incoming};
use consentd_os::clock;

/// An open stream. Recipients are answered in order; questions by their sequence, which is the
/// number of their slot.
pub(super) struct Stream<'l> {
    line: &'l Line<'l>,
    sending: SendStream<Bytes>,
    incoming: Incoming,
    /// Slots whose questions were answered.
    free: VecDeque<usize>,
    /// The others, in the order in which their messages were sent.
    order: VecDeque<usize>,
    /// What has arrived of a message.
    received: BytesMut,
}

impl<'l> Stream<'l> {
    pub(super) async fn open(
        line: &'l Line<'l>,
        sender: SendRequest<Bytes>,
    ) -> Result<Self, Failure> {
        let mut sender = sender.ready().await?;
        let (response, sending) = sender.send_request(request(line.job.requests.call()), false)?;
        Ok(Self {
            line,
            sending,
            incoming: Incoming::new(response),
            free: (0..line.slots.len()).collect(),
            order: VecDeque::new(),
            received: BytesMut::new(),
        })
    }

    /// Asks what is due until nothing is left, and all was answered.
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let line = self.line;
        let mut pace = line.pace.lock().await;
        loop {
            let wake = self.send_what_is_due(&mut pace);
            if line.over.get() && self.free.len() == line.slots.len() {
                return self.end().await;
            }
            let wait = async {
                match wake {
                    Some(at) => line.wait_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                part = self.incoming.next() => match part {
                    Ok(Some(part)) => {
                        self.received.extend_from_slice(&part);
                        self.settle_what_arrived()?;
                    }
                    Ok(None) => return Err(self.ended().await),
                    Err(failure) => return Err(line.stream_failed(failure)),
                },
                () = wait => {}
            }
        }
    }

    /// Why a stream ended that we did not end. With its connection, as the contract has it, when
    /// what was not answered is to be asked again on another.
    async fn ended(&mut self) -> Failure {
        match self.incoming.end().await {
            Ok(()) => Failure::NotTaken,
            Err(failure) if failure == Code::Unavailable.into() => Failure::NotTaken,
            Err(failure) => self.line.stream_failed(failure),
        }
    }

    /// Sends what is due, in one piece; gives the time at which more is, where that is known.
    fn send_what_is_due(&mut self, pace: &mut Pace) -> Option<Duration> {
        let requests = &self.line.job.requests;
        let mut outgoing = BytesMut::new();
        let mut wake = None;
        let now = clock::boot();
        while let Some(&place) = self.free.front() {
            let ticket = match pace.next(now) {
                Next::Due(ticket) => ticket,
                Next::At(at) => {
                    wake = Some(at);
                    break;
                }
                Next::Over => {
                    self.line.over.set(true);
                    break;
                }
            };
            self.free.pop_front();
            if let Some(slot) = self.line.slots.get(place) {
                slot.set(Some(ticket));
            }
            let bytes = requests.get(ticket.number);
            if requests.call() == Call::Stream {
                sequenced(&mut outgoing, sequence(place), &bytes);
            } else {
                self.order.push_back(place);
                outgoing.extend_from_slice(&bytes);
            }
        }
        if !outgoing.is_empty() {
            // Why a stream has ended is found where it is read.
            let _ = self.sending.send_data(outgoing.freeze(), false);
        }
        wake
    }

    fn settle_what_arrived(&mut self) -> Result<(), Failure> {
        while let Some(message) = message(&mut self.received) {
            let place = if self.line.job.requests.call() == Call::Stream {
                answers::sequence(&message).ok().and_then(place_of)
            } else {
                self.order.pop_front()
            };
            let slot = place.and_then(|place| self.line.slots.get(place));
            // An answer to nothing that was asked: no other can be trusted.
            let slot = slot.filter(|slot| slot.get().is_some()).ok_or(Code::Internal)?;
            self.line.settle(slot, &message);
            self.free.extend(place);
        }
        Ok(())
    }

    /// Says that nothing more comes, and waits for the server to say the same.
    async fn end(mut self) -> Result<(), Failure> {
        self.sending.send_data(Bytes::new(), true)?;
        let ended = async {
            while self.incoming.next().await?.is_some() {}
            self.incoming.end().await
        };
        let ended = tokio::time::timeout(self.line.job.client.timeout(), ended).await;
        let ended = ended.unwrap_or(Err(Code::DeadlineExceeded.into()));
        match ended {
            // All was answered: that its connection was ending as well is no loss.
            Err(failure) if failure == Code::Unavailable.into() => Ok(()),
            ended => ended.map_err(|failure| self.line.stream_failed(failure)),
        }
    }
}

/// Takes a whole message from what was received, without its prefix.
fn message(received: &mut BytesMut) -> Option<BytesMut> {
    let length = received.get(1..PREFIX)?.try_into().ok().map(u32::from_be_bytes)?;
    let end = PREFIX.checked_add(usize::try_from(length).ok()?)?;
    if received.len() < end {
        return None;
    }
    let mut message = received.split_to(end);
    Some(message.split_off(PREFIX))
}

/// A slot's sequence. Not 0, which would not be on the wire.
fn sequence(place: usize) -> u64 {
    u64::try_from(place).unwrap_or(u64::MAX).saturating_add(1)
}

fn place_of(sequence: u64) -> Option<usize> {
    usize::try_from(sequence).ok()?.checked_sub(1)
}
