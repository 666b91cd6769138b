//! Sends the rows of an import, and reconnects as often as needed.

use std::time::Duration;

use anyhow::{anyhow, ensure};
use consentd_os::backoff::{Backoff, Jitter};
use consentd_os::clock;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};

use super::parser::Parser;
use super::rows::RowReader;
use super::streams::{LedgerName, Streams};
use super::window::{MAX_ROWS, ParsedRow, Window, is_transient};
use super::{Import, TICK};
use crate::cli::client::ClientArgs;
use crate::cli::interrupted;

/// How many rows the reading thread hands over at once.
const CHUNK_ROWS: usize = 128;

/// The bytes of rows at which a chunk is complete. Its last row may exceed them.
const CHUNK_BYTES: usize = 256 * 1024;

/// The most chunks that are read ahead.
const MAX_CHUNKS: usize = 8;

/// The most requests that a stream queues: all rows in flight, and one chunk more.
const STREAM_CAPACITY: usize = MAX_ROWS + CHUNK_ROWS;

/// If no row has an outcome for so long, the connection counts as broken.
const STALL_TIMEOUT: Duration = Duration::from_mins(1);

/// The backoff of reconnection. One import alone needs no jitter.
const RECONNECT: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
    jitter: Jitter::None,
};

/// How an import ended without an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    AtTheEnd,
    Interrupted,
}

/// A connection to a sidecar that can be replaced.
pub(super) struct Session {
    client: ClientArgs,
    token: Option<MetadataValue<Ascii>>,
    retry_for: Duration,
    streams: Streams,
    ledger: LedgerName,
}

/// What an iteration of [`Session::run`] waited for.
enum Progressed {
    /// Something happened, or nothing yet.
    Continue,
    /// The connection is broken.
    Broken(Status),
    Interrupted,
}

/// The state of [`Session::run`].
struct Run {
    parser: Parser,
    parsed: mpsc::Receiver<anyhow::Result<Vec<ParsedRow>>>,
    window: Window,
    /// Whether the input was read to its end.
    is_at_end: bool,
    /// When a row last had an outcome, or the first row in flight was sent.
    last_response: Duration,
}

impl Session {
    /// Connects, and learns which ledger is there.
    pub(super) async fn connect(
        client: &ClientArgs,
        token: Option<MetadataValue<Ascii>>,
        retry_for: Duration,
    ) -> anyhow::Result<Self> {
        let channel = client.connect().await?;
        let opened = Streams::open(channel, token.as_ref(), STREAM_CAPACITY).await;
        let (streams, ledger) = opened.map_err(|status| client.explain(&status))?;
        ensure!(!ledger.id.is_empty(), UNNAMED);
        Ok(Self { client: client.clone(), token, retry_for, streams, ledger })
    }

    pub(super) fn ledger(&self) -> &LedgerName {
        &self.ledger
    }

    /// Imports all rows, until the end of the input or Ctrl-C.
    pub(super) async fn run(
        &mut self,
        parser: Parser,
        rows: RowReader,
        import: &mut Import,
    ) -> anyhow::Result<Ended> {
        let mut run = Run {
            parsed: read_ahead(parser.clone(), rows),
            parser,
            window: Window::new(import.progress.offset),
            is_at_end: false,
            last_response: clock::boot(),
        };
        let mut ticks = tokio::time::interval(TICK);
        let interrupted = interrupted();
        tokio::pin!(interrupted);
        while !(run.is_at_end && run.window.is_empty()) {
            let progressed = tokio::select! {
                response = self.streams.responses.next(), if !self.streams.responses.is_empty() => {
                    run.take_response(response)
                }
                chunk = run.parsed.recv(), if !run.is_at_end && run.window.has_room() => {
                    run.send_chunk(chunk, &self.streams)?;
                    Progressed::Continue
                }
                _ = ticks.tick() => run.check_stall(),
                () = &mut interrupted => Progressed::Interrupted,
            };
            if !matches!(progressed, Progressed::Interrupted) {
                run.window.finish_rows(import)?;
                import.tick()?;
            }
            match progressed {
                Progressed::Continue => {}
                Progressed::Interrupted => return Ok(Ended::Interrupted),
                Progressed::Broken(status) => {
                    let error = self.client.explain(&status);
                    if !is_transient(status.code()) {
                        return Err(error);
                    }
                    import.bar.note(&format!("{error:#}; trying again"));
                    tokio::select! {
                        connected = self.reconnect() => connected?,
                        () = &mut interrupted => return Ok(Ended::Interrupted),
                    }
                    run.window.send_again(&run.parser, &self.streams);
                    run.last_response = clock::boot();
                }
            }
        }
        Ok(Ended::AtTheEnd)
    }

    /// Reconnects with backoff, for as long as the user allows. The sidecar must still have the
    /// ledger that the finished rows are in.
    async fn reconnect(&mut self) -> anyhow::Result<()> {
        let started = clock::boot();
        let mut attempt = 0_u32;
        loop {
            tokio::time::sleep(RECONNECT.delay(attempt, 0)).await;
            attempt = attempt.saturating_add(1);
            let error = match self.try_reconnect().await {
                Ok(()) => return Ok(()),
                Err(Reconnect::Final(error)) => return Err(error),
                Err(Reconnect::Transient(error)) => error,
            };
            if clock::boot().saturating_sub(started) >= self.retry_for {
                return Err(error);
            }
        }
    }

    async fn try_reconnect(&mut self) -> Result<(), Reconnect> {
        let channel = self.client.connect().await.map_err(Reconnect::Transient)?;
        match Streams::open(channel, self.token.as_ref(), STREAM_CAPACITY).await {
            Ok((_, ledger)) if ledger.id.is_empty() => Err(Reconnect::Transient(anyhow!(UNNAMED))),
            Ok((_, ledger)) if ledger.id != self.ledger.id => {
                Err(Reconnect::Final(anyhow!("another ledger is served there now")))
            }
            Ok((streams, _)) => {
                self.streams = streams;
                Ok(())
            }
            Err(status) if is_transient(status.code()) => {
                Err(Reconnect::Transient(self.client.explain(&status)))
            }
            Err(status) => Err(Reconnect::Final(self.client.explain(&status))),
        }
    }
}

/// Why a sidecar does not say which ledger it serves: the first partition does, whose shard may be lost for a while.
const UNNAMED: &str = "the sidecar cannot read the ledger's first partition, which says which ledger it is: an \
                       import could not tell where to go on; try again later";

/// Why an attempt to reconnect failed.
enum Reconnect {
    Transient(anyhow::Error),
    /// Further attempts would fail too.
    Final(anyhow::Error),
}

impl Run {
    fn take_response(
        &mut self,
        response: Option<Result<crate::grpc::pb::RecordEventsResponse, Status>>,
    ) -> Progressed {
        self.last_response = clock::boot();
        let noted = match response {
            Some(Ok(response)) => self.window.note(response, &self.parser),
            Some(Err(status)) => Err(status),
            None => Err(Status::unavailable("the sidecar ended the stream")),
        };
        noted.map_or_else(Progressed::Broken, |()| Progressed::Continue)
    }

    fn send_chunk(
        &mut self,
        chunk: Option<anyhow::Result<Vec<ParsedRow>>>,
        streams: &Streams,
    ) -> anyhow::Result<()> {
        let Some(chunk) = chunk else {
            self.is_at_end = true;
            return Ok(());
        };
        if self.window.is_empty() {
            self.last_response = clock::boot();
        }
        for row in chunk? {
            self.window.push(row, streams);
        }
        Ok(())
    }

    fn check_stall(&self) -> Progressed {
        let waited = clock::boot().saturating_sub(self.last_response);
        if self.window.is_empty() || waited <= STALL_TIMEOUT {
            return Progressed::Continue;
        }
        Progressed::Broken(Status::unavailable("no row was answered for a minute"))
    }
}

/// Reads and parses rows ahead, on a thread of its own.
fn read_ahead(
    parser: Parser,
    mut rows: RowReader,
) -> mpsc::Receiver<anyhow::Result<Vec<ParsedRow>>> {
    let (sender, receiver) = mpsc::channel(MAX_CHUNKS);
    tokio::task::spawn_blocking(move || {
        loop {
            let (chunk, end) = read_chunk(&parser, &mut rows);
            if sender.blocking_send(Ok(chunk)).is_err() {
                return;
            }
            match end {
                ChunkEnd::Full => {}
                ChunkEnd::EndOfInput => return,
                ChunkEnd::Failed(error) => {
                    let _ = sender.blocking_send(Err(error.context("cannot read on")));
                    return;
                }
            }
        }
    });
    receiver
}

/// Why a chunk has no more rows.
enum ChunkEnd {
    Full,
    EndOfInput,
    Failed(anyhow::Error),
}

fn read_chunk(parser: &Parser, rows: &mut RowReader) -> (Vec<ParsedRow>, ChunkEnd) {
    let mut chunk = Vec::with_capacity(CHUNK_ROWS);
    let mut bytes = 0;
    while chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
        match rows.next() {
            Ok(Some(row)) => {
                bytes += row.raw.len();
                let request = parser.request(&row);
                chunk.push((row, request));
            }
            Ok(None) => return (chunk, ChunkEnd::EndOfInput),
            Err(error) => return (chunk, ChunkEnd::Failed(error.into())),
        }
    }
    (chunk, ChunkEnd::Full)
}
