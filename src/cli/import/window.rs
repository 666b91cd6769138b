//! The rows in flight, whose outcomes are counted in the order of the input.

use std::collections::VecDeque;

use tonic::{Code, Status};

use super::Import;
use super::fault::Fault;
use super::parser::{Parsed, Parser};
use super::rows::Row;
use super::streams::Streams;
use crate::grpc::pb;
use crate::grpc::pb::record_events_response::Result as Outcome;

/// The most rows in flight: those are kept in memory, and sent again after a reconnect.
pub(super) const MAX_ROWS: usize = 16 * 1024;

/// The most bytes of the input in flight, exceeded by less than a chunk of rows.
const MAX_BYTES: u64 = 32 << 20;

/// A row, and the request that records it.
pub(super) type ParsedRow = (Row, Parsed<pb::RecordEventsRequest>);

/// What an import needs to know of a row that is recorded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorded {
    /// The partition of the ledger that the pair is in.
    pub(super) partition: u32,
    /// The revision of that partition after the event.
    pub(super) revision: u64,
    /// Whether the event changed anything.
    pub(super) applied: bool,
}

enum State {
    /// Sent, as an event of a pair in this partition of the ledger.
    Sent(u32),
    Recorded(Recorded),
    Rejected(Fault),
    Blank,
    LeftOut,
}

pub(super) struct Window {
    rows: VecDeque<(Row, State)>,
    /// The sequence of the first row.
    first: u64,
    /// The offset of the first row in the input.
    start: u64,
}

impl Window {
    /// A window that begins at an offset of the input.
    pub(super) fn new(start: u64) -> Self {
        Self { rows: VecDeque::new(), first: 0, start }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        let end = self.rows.back().map_or(self.start, |(row, _)| row.end);
        self.rows.len() < MAX_ROWS && end.saturating_sub(self.start) < MAX_BYTES
    }

    /// Adds a row, and sends its request if there is one.
    pub(super) fn push(&mut self, (row, request): ParsedRow, streams: &Streams) {
        let sequence = self.first + u64::try_from(self.rows.len()).unwrap_or(0);
        let state = match request {
            Parsed::Event(request) => {
                State::Sent(streams.send(pb::RecordEventsRequest { sequence, ..request }))
            }
            Parsed::Fault(fault) => State::Rejected(fault),
            Parsed::Blank => State::Blank,
            Parsed::LeftOut => State::LeftOut,
        };
        self.rows.push_back((row, state));
    }

    /// Notes the outcome of a row.
    ///
    /// # Errors
    ///
    /// A transient error of one row, after which the session has to reconnect.
    pub(super) fn note(
        &mut self,
        response: pb::RecordEventsResponse,
        parser: &Parser,
    ) -> Result<(), Status> {
        let index = response.sequence.checked_sub(self.first);
        let index = index.and_then(|index| usize::try_from(index).ok());
        let row = index.and_then(|index| self.rows.get_mut(index));
        let Some((_, state)) = row else { return Ok(()) };
        let State::Sent(partition) = *state else { return Ok(()) };
        *state = match response.result {
            Some(Outcome::Response(response)) => {
                let pb::RecordEventResponse { revision, applied, .. } = response;
                State::Recorded(Recorded { partition, revision, applied })
            }
            Some(Outcome::Error(error)) => {
                let code = Code::from(error.code);
                if is_transient(code) {
                    return Err(Status::new(code, error.message));
                }
                State::Rejected(parser.fault(&error))
            }
            None => return Ok(()),
        };
        Ok(())
    }

    /// Removes the finished rows from the front, and counts or rejects them.
    pub(super) fn finish_rows(&mut self, import: &mut Import) -> anyhow::Result<()> {
        while self.rows.front().is_some_and(|(_, state)| !matches!(state, State::Sent(_))) {
            let Some((row, state)) = self.rows.pop_front() else { break };
            self.first += 1;
            self.start = row.end;
            match state {
                State::Recorded(recorded) => import.count(recorded),
                State::Rejected(fault) => import.reject(&row, &fault)?,
                State::LeftOut => import.progress.tally.left_out += 1,
                State::Blank => import.progress.tally.blank_lines += 1,
                State::Sent(_) => {}
            }
            import.pass(&row);
        }
        Ok(())
    }

    /// Sends all rows again that have no outcome.
    pub(super) fn send_again(&self, parser: &Parser, streams: &Streams) {
        for (sequence, (row, state)) in (self.first..).zip(&self.rows) {
            if matches!(state, State::Sent(_))
                && let Parsed::Event(request) = parser.request(row)
            {
                streams.send(pb::RecordEventsRequest { sequence, ..request });
            }
        }
    }
}

/// Whether a retry may succeed.
pub(super) fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
    )
}
