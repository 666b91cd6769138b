//! One connection of a load. It speaks HTTP/2 with nothing in between, so that what is measured is
//! the server's rather than a client library's.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use h2::client::SendRequest;
use http::Request;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tokio_util::either::Either;
use tonic::Code;

use super::answers;
use super::pace::{Alarm, Next, Pace, Ticket};
use super::requests::{Call, PREFIX, Requests};
use super::stream::Stream;
use super::tally::{Live, Tally};
use super::wire::{Failure, Incoming};
use crate::cli::client::ClientArgs;
use consentd_os::clock;

/// How often it is looked whether an answer is overdue.
const LOOK: Duration = Duration::from_millis(50);

/// How long to wait before another try to connect.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Bytes of answers that may be on their way, on a stream and on the connection.
const WINDOW: u32 = 16 * 1024 * 1024;

pub(super) type Socket = Either<TcpStream, UnixStream>;

/// What all connections need.
pub(super) struct Job {
    pub(super) client: ClientArgs,
    pub(super) requests: Requests,
    /// How many requests wait for their answers at once, on each connection.
    pub(super) in_flight: usize,
}

/// One connection, and those that follow it where it ends.
pub(super) struct Line<'a> {
    pub(super) job: &'a Job,
    pub(super) pace: Mutex<Pace>,
    alarm: Alarm,
    /// What waits for an answer.
    pub(super) slots: Vec<Cell<Option<Ticket>>>,
    /// Whether nothing is left to be sent.
    pub(super) over: Cell<bool>,
    /// How many requests were answered, in whatever way.
    answered: Cell<u64>,
    tally: &'a RefCell<Tally>,
    live: &'a Live,
}

impl<'a> Line<'a> {
    pub(super) fn new(
        job: &'a Job,
        pace: Pace,
        tally: &'a RefCell<Tally>,
        live: &'a Live,
    ) -> io::Result<Self> {
        Ok(Self {
            job,
            pace: Mutex::new(pace),
            alarm: Alarm::new()?,
            slots: (0..job.in_flight).map(|_| Cell::new(None)).collect(),
            over: Cell::new(false),
            answered: Cell::new(0),
            tally,
            live,
        })
    }

    /// Sends what is due until nothing is left, over `socket` and over those that follow it.
    pub(super) async fn run(&self, socket: Option<Socket>) {
        self.send_all(socket).await;
        self.tally.borrow_mut().late += self.pace.lock().await.late();
    }

    async fn send_all(&self, mut socket: Option<Socket>) {
        let mut ended_by = Failure::from(Code::Unavailable);
        while let Some(stream) = socket {
            let before = self.answered.get();
            let Err(failure) = self.converse(stream).await else { return };
            ended_by = failure;
            self.give_up(failure).await;
            if self.is_over().await {
                return;
            }
            // One on which nothing is answered will not be better the next time.
            socket =
                if self.answered.get() == before { None } else { connect(&self.job.client).await };
        }
        self.tally.borrow_mut().lost(match ended_by {
            Failure::Code(code) => code,
            Failure::NotTaken => Code::Unavailable.into(),
        });
    }

    /// Nobody answers what waits any more.
    async fn give_up(&self, failure: Failure) {
        let mut pace = self.pace.lock().await;
        for ticket in self.slots.iter().filter_map(Cell::take) {
            match failure {
                Failure::Code(code) => self.fail(&ticket, code),
                Failure::NotTaken => pace.put_back(ticket),
            }
        }
    }

    async fn is_over(&self) -> bool {
        self.over.get() && self.pace.lock().await.is_empty()
    }

    async fn converse(&self, socket: Socket) -> Result<(), Failure> {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .enable_push(false);
        let (sender, connection) = builder.handshake(socket).await?;
        let work = async {
            if self.job.requests.call().is_unary() {
                self.calls(&sender).await;
            } else {
                Stream::open(self, sender).await?.run().await?;
            }
            if self.is_over().await { Ok(()) } else { Err(Code::Unavailable.into()) }
        };
        tokio::pin!(work);
        // What is to be sent first: then it leaves when the connection is looked at.
        tokio::select! {
            biased;
            done = &mut work => done,
            // What waits for an answer has been told why there is none.
            _ = connection => match tokio::time::timeout(LOOK, work).await {
                Ok(done) => done,
                Err(_) => Err(Code::Unavailable.into()),
            },
            () = self.overdue() => Err(Code::DeadlineExceeded.into()),
        }
    }

    /// Returns once something has waited for longer than it may.
    async fn overdue(&self) {
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            let earliest = clock::boot().saturating_sub(self.job.client.timeout());
            let waits = |slot: &Cell<Option<Ticket>>| slot.get().is_some_and(|t| t.sent < earliest);
            if self.slots.iter().any(waits) {
                return;
            }
        }
    }

    /// Each request a call.
    async fn calls(&self, sender: &SendRequest<Bytes>) {
        let request = request(self.job.requests.call());
        let callers = self.slots.iter().map(|slot| self.caller(slot, sender.clone(), &request));
        let mut callers: FuturesUnordered<_> = callers.collect();
        while callers.next().await.is_some() {}
    }

    /// Calls again and again, until nothing is left or the connection ends.
    async fn caller(
        &self,
        slot: &Cell<Option<Ticket>>,
        mut sender: SendRequest<Bytes>,
        request: &Request<()>,
    ) {
        while let Some(ticket) = self.due().await {
            slot.set(Some(ticket));
            let Ok(ready) = sender.ready().await else {
                slot.set(None);
                self.pace.lock().await.put_back(ticket);
                return;
            };
            sender = ready;
            let bytes = self.job.requests.get(ticket.number);
            match call(&mut sender, request.clone(), bytes).await {
                Ok(answer) => self.settle(slot, answer.get(PREFIX..).unwrap_or_default()),
                Err(Failure::NotTaken) => {
                    slot.set(None);
                    self.pace.lock().await.put_back(ticket);
                }
                Err(Failure::Code(code)) => {
                    slot.set(None);
                    self.answered.set(self.answered.get() + 1);
                    self.fail(&ticket, code);
                }
            }
        }
    }

    /// The next request, when it is due.
    async fn due(&self) -> Option<Ticket> {
        let mut pace = self.pace.lock().await;
        loop {
            match pace.next(clock::boot()) {
                Next::Due(ticket) => return Some(ticket),
                Next::At(at) => self.wait_until(at).await,
                Next::Over => {
                    self.over.set(true);
                    return None;
                }
            }
        }
    }

    pub(super) async fn wait_until(&self, at: Duration) {
        if self.alarm.at(at).await.is_err() {
            // Without an alarm there is still the runtime's coarser clock.
            tokio::time::sleep(at.saturating_sub(clock::boot())).await;
        }
    }

    /// A request was answered.
    pub(super) fn settle(&self, slot: &Cell<Option<Ticket>>, message: &[u8]) {
        let now = clock::boot();
        let Some(ticket) = slot.take() else { return };
        self.answered.set(self.answered.get() + 1);
        let mut tally = self.tally.borrow_mut();
        let (mut decided, mut refused) = (0, 0);
        let read = answers::read(self.job.requests.call(), message, |answer| {
            match answer {
                answers::Answer::Reason(_) => decided += 1,
                answers::Answer::Error(_) => refused += 1,
            }
            if ticket.counts {
                tally.count(answer);
            }
        });
        let asked = self.job.requests.questions(ticket.number);
        if read.is_err() || decided + refused != asked {
            refused += 1;
            if ticket.counts {
                tally.failed(Code::Internal.into(), 1);
            }
        } else if ticket.counts {
            tally.answered(&ticket, now);
        }
        self.live.add(decided, refused);
    }

    /// A stream ended with an error, which is told once where nothing waited for an answer.
    pub(super) fn stream_failed(&self, failure: Failure) -> Failure {
        if let Failure::Code(code) = failure
            && self.slots.iter().all(|slot| slot.get().is_none())
        {
            self.tally.borrow_mut().failed(code, 1);
            self.live.add(0, 1);
        }
        failure
    }

    /// A request failed.
    fn fail(&self, ticket: &Ticket, code: i32) {
        if ticket.counts {
            self.tally.borrow_mut().failed(code, 1);
        }
        self.live.add(0, 1);
    }
}

/// Connects; tries for as long as an answer may take.
pub(super) async fn connect(client: &ClientArgs) -> Option<Socket> {
    let connecting = async {
        loop {
            match client.socket().await {
                Ok(socket) => return socket,
                Err(_) => tokio::time::sleep(TRY_AGAIN).await,
            }
        }
    };
    tokio::time::timeout(client.timeout(), connecting).await.ok()
}

/// The headers of a call.
pub(super) fn request(call: Call) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::POST;
    let path = http::uri::PathAndQuery::from_static(call.path());
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some(http::uri::Authority::from_static("localhost"));
    uri.path_and_query = Some(path);
    // All three parts are there.
    *request.uri_mut() = http::Uri::from_parts(uri).unwrap_or_default();
    let headers = request.headers_mut();
    for (name, value) in [
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", concat!("consentd-bench/", env!("CARGO_PKG_VERSION"))),
    ] {
        headers.insert(name, http::HeaderValue::from_static(value));
    }
    request
}

/// Calls with one message, and gives the bytes of the answer's body.
async fn call(
    sender: &mut SendRequest<Bytes>,
    request: Request<()>,
    bytes: Bytes,
) -> Result<Bytes, Failure> {
    let (response, mut sending) = sender.send_request(request, false)?;
    sending.send_data(bytes, true)?;
    let mut incoming = Incoming::new(response);
    let mut answer = incoming.next().await?.unwrap_or_default();
    while let Some(part) = incoming.next().await? {
        let mut whole = BytesMut::from(answer);
        whole.extend_from_slice(&part);
        answer = whole.freeze();
    }
    incoming.end().await?;
    Ok(answer)
}
