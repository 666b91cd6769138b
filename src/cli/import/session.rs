//! Sends rows and takes answers, over as many connections as it takes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use anyhow::anyhow;
use futures_util::stream::{self, SelectAll};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::progress::Tally;
use super::rows::{Fault, Parser, Row, Rows};
use super::{Import, TICK};
use crate::cli::client::ClientArgs;
use crate::grpc::pb::record_events_response::Result as Answer;
use crate::grpc::pb::record_service_client::RecordServiceClient;
use crate::grpc::{LEDGER_ID, REVISION, pb};
use consentd_core::id::KeySecret;
use consentd_os::backoff::{Backoff, Jitter};
use consentd_os::clock;

/// How many rows are under way at most: what is kept in memory, and what a break sends again.
const MAX_WINDOW: usize = 16 * 1024;

/// The same, in bytes of the input, in about.
const MAX_WINDOW_BYTES: u64 = 32 << 20;

/// How many rows the reader hands over at once.
const CHUNK: usize = 128;

/// Streams beside each other: while the rows of one are written to the disk, another's are read.
/// The rows of one pair are all on one, and so recorded in their order.
const STREAMS: usize = 4;

/// The longest that rows are waited for that were sent.
const STALLED: Duration = Duration::from_mins(1);

/// The backoff of reconnection. One import alone needs no jitter.
const RECONNECT: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
    jitter: Jitter::None,
};

/// How an import ended that did not fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    AtTheEnd,
    Interrupted,
}

/// The ledger that rows go to, as the server names it.
#[derive(Clone, Debug)]
pub(super) struct LedgerName {
    pub(super) id: String,
    pub(super) revision: u64,
}

/// A connection to a sidecar, and how to get another.
pub(super) struct Session {
    client: ClientArgs,
    token: Option<MetadataValue<Ascii>>,
    retry_for: Duration,
    wire: Wire,
    ledger: LedgerName,
}

type Answers = Pin<Box<dyn Stream<Item = Result<pb::RecordEventsResponse, Status>> + Send>>;

/// The streams of one connection.
struct Wire {
    requests: Vec<mpsc::Sender<pb::RecordEventsRequest>>,
    answers: SelectAll<Answers>,
}

/// What became of a row.
enum State {
    Sent,
    Recorded(pb::RecordEventResponse),
    Rejected(Fault),
}

/// The rows under way, in order.
struct Window {
    rows: VecDeque<(Row, State)>,
    /// The number of the first of them.
    first: u64,
    /// Where the input was when the first of them was read.
    start: u64,
}

/// A row that was read, and what it stands for.
type Parsed = (Row, Result<pb::RecordEventsRequest, Fault>);

impl Session {
    /// Connects, and learns which ledger is there.
    pub(super) async fn connect(
        client: &ClientArgs,
        token: Option<MetadataValue<Ascii>>,
        retry_for: Duration,
    ) -> anyhow::Result<Self> {
        let channel = client.connect().await?;
        let wire = Wire::open(channel, token.as_ref()).await;
        let (wire, ledger) = wire.map_err(|status| client.explain(&status))?;
        Ok(Self { client: client.clone(), token, retry_for, wire, ledger })
    }

    pub(super) fn ledger(&self) -> &LedgerName {
        &self.ledger
    }

    /// Imports all rows.
    pub(super) async fn run(
        &mut self,
        parser: Parser,
        rows: Rows,
        import: &mut Import,
    ) -> anyhow::Result<Ended> {
        let mut parsed = read_ahead(parser.clone(), rows);
        let start = import.progress.offset;
        let mut window = Window { rows: VecDeque::new(), first: 0, start };
        let mut heard = clock::boot();
        let mut at_end = false;
        let mut ticks = tokio::time::interval(TICK);
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        loop {
            if at_end && window.rows.is_empty() {
                return Ok(Ended::AtTheEnd);
            }
            let broken = tokio::select! {
                answer = self.wire.answers.next(), if !self.wire.answers.is_empty() => {
                    heard = clock::boot();
                    match answer {
                        Some(Ok(answer)) => window.answer(answer, &parser).err(),
                        Some(Err(status)) => Some(status),
                        None => Some(Status::unavailable("the sidecar ended the stream")),
                    }
                }
                chunk = parsed.recv(), if !at_end && window.has_room() => {
                    match chunk {
                        None => at_end = true,
                        Some(chunk) => {
                            if window.rows.is_empty() {
                                heard = clock::boot();
                            }
                            for row in chunk? {
                                window.push(row, &self.wire);
                            }
                        }
                    }
                    None
                }
                _ = ticks.tick() => {
                    (!window.rows.is_empty() && clock::boot().saturating_sub(heard) > STALLED)
                        .then(|| Status::unavailable("no row was answered for a minute"))
                }
                _ = &mut interrupted => return Ok(Ended::Interrupted),
            };
            window.settle(import)?;
            import.tick()?;
            if let Some(status) = broken {
                if !is_transient(status.code()) {
                    return Err(self.client.explain(&status));
                }
                import.shown.say(&format!("{:#}; trying again", self.client.explain(&status)));
                tokio::select! {
                    connected = self.reconnect() => connected?,
                    _ = &mut interrupted => return Ok(Ended::Interrupted),
                }
                window.send_again(&parser, &self.wire);
                heard = clock::boot();
            }
        }
    }

    /// Connects again. The ledger must be the one that the rows before went to.
    async fn reconnect(&mut self) -> anyhow::Result<()> {
        let started = clock::boot();
        let mut attempt = 0_u32;
        loop {
            tokio::time::sleep(RECONNECT.delay(attempt, 0)).await;
            attempt = attempt.saturating_add(1);
            let error = match self.client.connect().await {
                Ok(channel) => match Wire::open(channel, self.token.as_ref()).await {
                    Ok((_, ledger)) if ledger.id != self.ledger.id => {
                        return Err(anyhow!("another ledger is served there now"));
                    }
                    Ok((wire, _)) => {
                        self.wire = wire;
                        return Ok(());
                    }
                    Err(status) if !is_transient(status.code()) => {
                        return Err(self.client.explain(&status));
                    }
                    Err(status) => self.client.explain(&status),
                },
                Err(error) => error,
            };
            if clock::boot().saturating_sub(started) >= self.retry_for {
                return Err(error);
            }
        }
    }
}

/// Whether another try may succeed.
fn is_transient(code: Code) -> bool {
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

impl Wire {
    async fn open(
        channel: Channel,
        token: Option<&MetadataValue<Ascii>>,
    ) -> Result<(Self, LedgerName), Status> {
        let mut wire = Self { requests: Vec::new(), answers: stream::select_all([]) };
        let mut ledger = LedgerName { id: String::new(), revision: 0 };
        for _ in 0..STREAMS {
            let (sender, receiver) = mpsc::channel(MAX_WINDOW + CHUNK);
            let mut request = Request::new(ReceiverStream::new(receiver));
            if let Some(token) = token {
                request.metadata_mut().insert("authorization", token.clone());
            }
            let mut client = RecordServiceClient::new(channel.clone());
            let response = client.record_events(request).await?;
            ledger = LedgerName::of(response.metadata());
            wire.requests.push(sender);
            wire.answers.push(Box::pin(response.into_inner()));
        }
        Ok((wire, ledger))
    }

    fn send(&self, request: pb::RecordEventsRequest) {
        // Any secret will do: all notations of a number are to be on the same stream.
        let event = request.event.as_ref();
        let key = event.and_then(|event| {
            KeySecret::new(&[0; 16]).read(&event.user_id, &event.business_id).ok()
        });
        let place = key.map_or(0, |key| usize::from(key.to_bytes()[0]) % STREAMS);
        if let Some(requests) = self.requests.get(place) {
            // There is room for all rows of the window. A stream that has ended says so itself.
            let _ = requests.try_send(request);
        }
    }
}

impl LedgerName {
    fn of(headers: &MetadataMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        Self { id: text(LEDGER_ID).to_owned(), revision: text(REVISION).parse().unwrap_or(0) }
    }
}

/// Reads and parses on a thread of its own, as far ahead as a few chunks.
fn read_ahead(parser: Parser, mut rows: Rows) -> mpsc::Receiver<anyhow::Result<Vec<Parsed>>> {
    let (sender, receiver) = mpsc::channel(8);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            while chunk.len() < CHUNK {
                match rows.next() {
                    Ok(Some(row)) => {
                        let request = parser.request(&row);
                        chunk.push((row, request));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        let _ = sender.blocking_send(Ok(chunk));
                        let _ = sender.blocking_send(Err(error.context("cannot read on")));
                        return;
                    }
                }
            }
            let done = chunk.len() < CHUNK;
            if sender.blocking_send(Ok(chunk)).is_err() || done {
                return;
            }
        }
    });
    receiver
}

impl Window {
    fn has_room(&self) -> bool {
        let end = self.rows.back().map_or(self.start, |(row, _)| row.end);
        self.rows.len() < MAX_WINDOW && end.saturating_sub(self.start) < MAX_WINDOW_BYTES
    }

    fn push(&mut self, (row, request): Parsed, wire: &Wire) {
        let sequence = self.first + u64::try_from(self.rows.len()).unwrap_or(0);
        let state = match request {
            Ok(request) => {
                wire.send(pb::RecordEventsRequest { sequence, ..request });
                State::Sent
            }
            Err(fault) => State::Rejected(fault),
        };
        self.rows.push_back((row, state));
    }

    /// Takes an answer; gives the status that breaks the session, where it is one.
    fn answer(&mut self, answer: pb::RecordEventsResponse, parser: &Parser) -> Result<(), Status> {
        let place = answer.sequence.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let Some((_, state)) = place.and_then(|place| self.rows.get_mut(place)) else {
            return Ok(());
        };
        *state = match answer.result {
            Some(Answer::Response(response)) => State::Recorded(response),
            Some(Answer::Error(error)) => {
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

    /// Deals with the first rows, as far as they are answered.
    fn settle(&mut self, import: &mut Import) -> anyhow::Result<()> {
        while self.rows.front().is_some_and(|(_, state)| !matches!(state, State::Sent)) {
            let Some((row, state)) = self.rows.pop_front() else { break };
            self.first += 1;
            self.start = row.end;
            let progress = &mut import.progress;
            match state {
                State::Recorded(response) => {
                    progress.revision = progress.revision.max(response.revision);
                    let Tally { applied, unchanged, .. } = &mut progress.tally;
                    *(if response.applied { applied } else { unchanged }) += 1;
                }
                State::Rejected(fault) => {
                    progress.tally.rejected += 1;
                    let rejects = &mut import.rejects;
                    import.shown.beside(|| rejects.add(&row, &fault))?;
                }
                State::Sent => {}
            }
            (import.progress.offset, import.progress.line) = (row.end, row.next_line);
        }
        Ok(())
    }

    fn send_again(&self, parser: &Parser, wire: &Wire) {
        for (sequence, (row, state)) in (self.first..).zip(&self.rows) {
            if matches!(state, State::Sent)
                && let Ok(request) = parser.request(row)
            {
                wire.send(pb::RecordEventsRequest { sequence, ..request });
            }
        }
    }
}
